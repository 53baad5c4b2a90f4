package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"strongroom/client"
	"strongroom/client/local"
	"strongroom/internal/check"
	"strongroom/internal/edge"
)

// clientChecks try what apps are built on, against this server.
func (s *Server) clientChecks() []check.Check {
	return []check.Check{{
		ID: "app-pins-hold", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says: "The app's pins are the keys that the server shows and will show next; a server with another key gets nothing from the app.",
		Run:  func(ctx context.Context) check.Observation { return s.pinsHold(ctx, nil) },
		Sabotage: func(ctx context.Context) check.Observation {
			// An app that was made to pin whatever it meets.
			return s.pinsHold(ctx, func(c *x509.Certificate) string { return client.Pin(c) })
		},
	}, {
		ID: "app-database-encrypted", Version: 1, Every: 6 * time.Hour, Valid: 24 * time.Hour,
		Says: "What the app keeps on a phone cannot be read from its files.",
		Run: func(context.Context) check.Observation {
			return localDatabase(func(string, []byte) error { return nil })
		},
		Sabotage: func(context.Context) check.Observation {
			return localDatabase(func(dir string, plain []byte) error {
				return os.WriteFile(filepath.Join(dir, "local.db-journal"), plain, 0o600)
			})
		},
	}}
}

// pinsHold connects with the SDK to the app's listener, with the pins that it publishes, and then to somebody who
// has the same name, and a certificate that the app trusts, but another key. More is what the app pins too.
func (s *Server) pinsHold(ctx context.Context, more func(*x509.Certificate) string) check.Observation {
	did := "fetched the signed pin set with the SDK, compared it with the certificate that is shown and the keys that are configured, connected with it, and then to a server that has another key and a certificate that is trusted"
	undecided := func(err error) check.Observation { return check.Undecided(did, "It could not be tried: %v", err) }
	ours := strings.TrimPrefix(s.edge.URL("app"), "https://")
	if ours == "" {
		return undecided(errors.New("the app's listener does not serve"))
	}
	leaf, err := shown(ctx, ours)
	if err != nil {
		return undecided(err)
	}
	name := "127.0.0.1"
	switch {
	case len(leaf.DNSNames) > 0:
		name = strings.Replace(leaf.DNSNames[0], "*", "pins", 1)
	case len(leaf.IPAddresses) > 0:
		name = leaf.IPAddresses[0].String()
	}
	impostor, err := impostorOf(name)
	if err != nil {
		return undecided(err)
	}
	// Whom the machine trusts is not the question: both certificates are trusted, and the keys are not alike.
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	roots.AddCert(impostor.Leaf)
	app := func(to string, pins []string) (*client.Client, error) {
		key, err := client.NewDeviceKey()
		if err != nil {
			return nil, err
		}
		return client.New(client.Options{BaseURL: "https://" + net.JoinHostPort(name, "443"), Pins: pins, PinKeys: []string{s.house.Ring.CheckpointKey()},
			RootCAs: roots, Key: key, Retries: -1, HTTPTimeout: 10 * time.Second,
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", to)
			}})
	}
	unpinned := edge.Pin(impostor.Leaf) // that nobody shows; UpdatePins trusts the signature alone
	c, err := app(ours, []string{unpinned})
	if err != nil {
		return undecided(err)
	}
	set, err := c.UpdatePins(ctx)
	if err != nil {
		return check.Failed(did, "The SDK does not take the pin set that the server publishes: %v", err)
	}
	if !slices.Contains(set.Pins, edge.Pin(leaf)) {
		return check.Failed(did, "The certificate that the listener shows is not of the pin set that it publishes: apps would not connect.")
	}
	if !slices.Equal(set.Pins, s.urls.Pins) && !slices.Equal(set.Pins, s.pins()) {
		return check.Failed(did, "The pin set is not that of the configured keys.")
	}
	// A number that is none: the answer shows that the request came through, and nothing is begun.
	call := func(c *client.Client) error {
		_, err := c.Register(ctx, "+999")
		return err
	}
	c, err = app(ours, set.Pins)
	if err != nil {
		return undecided(err)
	}
	var answered *client.Problem
	if err := call(c); !errors.As(err, &answered) {
		return check.Failed(did, "The SDK does not reach the server with the pins that it publishes: %v", err)
	}
	var asked atomic.Int64
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{impostor}})
	if err != nil {
		return undecided(err)
	}
	defer l.Close()
	go listenIn(l, &asked)
	pins := set.Pins
	if more != nil {
		pins = append(slices.Clone(pins), more(impostor.Leaf))
	}
	if c, err = app(l.Addr().String(), pins); err != nil {
		return undecided(err)
	}
	err = call(c)
	switch {
	case asked.Load() > 0 || err == nil || errors.As(err, &answered):
		return check.Failed(did, "The SDK sent a request to a server whose key is not pinned.")
	case !errors.Is(err, client.ErrPinMismatch):
		return undecided(fmt.Errorf("the server with another key was refused for another reason: %w", err))
	}
	return check.Held(did, "The server was reached with its %d pins; the one with another key was refused before anything was sent.", len(set.Pins)).With("pins", len(set.Pins))
}

// pins are those of the app's certificate as it is configured at this moment.
func (s *Server) pins() []string {
	loaded, err := edge.LoadCertificates(appFiles(s.house.Config), nil)
	if err != nil {
		return nil
	}
	return loaded.Pins()
}

// shown returns the certificate that a listener shows.
func shown(ctx context.Context, address string) (*x509.Certificate, error) {
	// What it is worth is found out with it.
	conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// impostorOf makes a certificate for a name, and a key of its own.
func impostorOf(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(raw)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}, err
}

// listenIn counts the connections over which something is said.
func listenIn(l net.Listener, asked *atomic.Int64) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second)) // a scratch connection: it ends either way
			if n, _ := conn.Read(make([]byte, 1)); n > 0 {
				asked.Add(1)
			}
		}()
	}
}

// localDatabase writes into the SDK's database and searches its files, while it is open and after. Damage is done
// to the folder before they are searched.
func localDatabase(damage func(dir string, plain []byte) error) check.Observation {
	did := "kept a text in the SDK's database, searched its files for it while it was open and after it was closed, and read it again"
	undecided := func(err error) check.Observation { return check.Undecided(did, "It could not be tried: %v", err) }
	dir, err := os.MkdirTemp("", "strongroom-app-*")
	if err != nil {
		return undecided(err)
	}
	defer os.RemoveAll(dir)
	plain := []byte(strings.Repeat("what the app keeps: "+strings.ToLower(rand.Text())+" ", 256)) // over several pages
	keys, err := local.OpenKeyFile(local.KeyFileOptions{Path: filepath.Join(dir, "device.key"), Passphrase: []byte(rand.Text())})
	if err != nil {
		return undecided(err)
	}
	needle, total := plain[:32], 0
	look := func() (where string, err error) {
		files, err := os.ReadDir(dir)
		if err != nil {
			return "", err
		}
		for _, f := range files {
			found, n, _, err := search(context.Background(), filepath.Join(dir, f.Name()), needle, false)
			if err != nil {
				return "", err
			}
			if total += int(n); found {
				return f.Name(), nil
			}
		}
		return "", nil
	}
	store, err := local.Open(dir, keys)
	if err != nil {
		return undecided(err)
	}
	if err := errors.Join(store.Put("canary", "canary", plain), damage(dir, plain)); err != nil {
		return undecided(errors.Join(err, store.Close()))
	}
	where, err := look()
	if err = errors.Join(err, store.Close()); err != nil {
		return undecided(err)
	}
	if where == "" {
		if where, err = look(); err != nil {
			return undecided(err)
		}
	}
	if where != "" {
		return check.Failed(did, "The text is readable in %s.", where)
	}
	if store, err = local.Open(dir, keys); err != nil {
		return check.Failed(did, "The database does not open again: %v", err)
	}
	defer store.Close()
	if again, err := store.Get("canary", "canary"); err != nil || string(again) != string(plain) {
		return check.Failed(did, "What was kept is not there any more: %v", err)
	}
	return check.Held(did, "It was not found in %d bytes of its files.", total).With("bytes", total)
}
