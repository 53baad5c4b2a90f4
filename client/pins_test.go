package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/client"
)

// publisher is a server that changes its key and publishes signed pin sets.
type publisher struct {
	*httptest.Server
	pool   *x509.CertPool
	signer note.Signer
	key    string // that verifies

	mu    sync.Mutex
	cert  tls.Certificate
	set   []byte
	asked []string
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "strongroom/test/ins_1")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	p := &publisher{signer: signer, key: public, pool: x509.NewCertPool()}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asked = append(p.asked, r.URL.Path)
		if r.URL.Path == "/.well-known/strongroom-pins" && r.Header.Get("DPoP") == "" {
			_, _ = w.Write(p.set)
			return
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(401)
		_, _ = w.Write([]byte(`{"type":"urn:strongroom:problem:login-failed"}`))
	}))
	p.Server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{p.cert}, SessionTicketsDisabled: true}, nil
	}}
	p.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.turn()
	p.Server.StartTLS()
	t.Cleanup(p.Server.Close)
	return p
}

// turn gives the server a certificate with a new key, and returns its pin.
func (p *publisher) turn() string {
	authority, key := certificate("authority", nil, nil)
	leaf, leafKey := certificate("127.0.0.1", authority, key)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pool.AddCert(authority)
	p.cert = tls.Certificate{Certificate: [][]byte{leaf.Raw, authority.Raw}, PrivateKey: (*ecdsa.PrivateKey)(leafKey), Leaf: leaf}
	return client.Pin(leaf)
}

func (p *publisher) pin() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return client.Pin(p.cert.Leaf)
}

// publish signs a set, with a header of the text's first line.
func (p *publisher) publish(t *testing.T, header string, signer note.Signer, s client.PinSet) []byte {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: header + "\n" + string(text) + "\n"}, signer)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set = signed
	return signed
}

type memoryPins struct{ b []byte }

func (m *memoryPins) LoadPins(context.Context) ([]byte, error)       { return m.b, nil }
func (m *memoryPins) SavePins(_ context.Context, b []byte) (_ error) { m.b = b; return }

const pinsHeader = "strongroom-pins/1"

func TestUpdatePins(t *testing.T) {
	p := newPublisher(t)
	key, err := client.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	store := &memoryPins{}
	old, backup := p.pin(), client.Pin(func() *x509.Certificate { c, _ := certificate("backup", nil, nil); return c }())
	app := func(keys ...string) *client.Client {
		c, err := client.New(client.Options{BaseURL: p.URL, Pins: []string{old, backup}, PinKeys: keys, PinStore: store, RootCAs: p.pool, Key: key, Retries: -1})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	reaches := func(c *client.Client) bool {
		t.Helper()
		c.Close() // a connection that is open was checked before
		_, err := c.Register(t.Context(), "+447700900123")
		if err != nil && !errors.Is(err, client.ErrPinMismatch) && !errors.Is(err, client.ErrLoginFailed) {
			t.Fatal(err)
		}
		return errors.Is(err, client.ErrLoginFailed)
	}
	now := time.Now().UTC().Truncate(time.Second)
	set := func(sequence int64, life time.Duration, pins ...string) client.PinSet {
		return client.PinSet{Sequence: sequence, IssuedAt: now, ExpiresAt: now.Add(life), Pins: pins}
	}
	c := app(p.key)
	if !reaches(c) {
		t.Fatal("the built-in pins do not hold")
	}
	fresh := p.turn()
	if reaches(c) {
		t.Fatal("a key that nobody announced was taken")
	}

	// What must not be taken. The server's certificate verifies in all of them: only the signature counts.
	stranger, _, err := note.GenerateKey(rand.Reader, "strongroom/test/ins_1")
	if err != nil {
		t.Fatal(err)
	}
	strange, err := note.NewSigner(stranger)
	if err != nil {
		t.Fatal(err)
	}
	late := set(10, time.Hour, fresh)
	late.IssuedAt, late.ExpiresAt = now.Add(48*time.Hour), now.Add(72*time.Hour)
	for _, row := range []struct {
		name   string
		header string
		signer note.Signer
		set    client.PinSet
		want   error
	}{
		{"of another key", pinsHeader, strange, set(10, time.Hour, fresh), client.ErrPinsUnverified},
		{"a checkpoint", "strongroom/test/ins_1", p.signer, set(10, time.Hour, fresh), client.ErrPinsUnverified},
		{"without a pin", pinsHeader, p.signer, set(10, time.Hour), client.ErrPinsUnverified},
		{"with a pin that is none", pinsHeader, p.signer, set(10, time.Hour, fresh, "sha256/x"), client.ErrPinsUnverified},
		{"without a sequence", pinsHeader, p.signer, set(0, time.Hour, fresh), client.ErrPinsUnverified},
		{"that ends before it begins", pinsHeader, p.signer, set(10, -time.Hour, fresh), client.ErrPinsUnverified},
		{"of the future", pinsHeader, p.signer, late, client.ErrPinsUnverified},
	} {
		p.publish(t, row.header, row.signer, row.set)
		if _, err := c.UpdatePins(t.Context()); !errors.Is(err, row.want) {
			t.Errorf("a set %s: %v, want %v", row.name, err, row.want)
		}
	}
	expired := set(10, time.Hour, fresh)
	expired.IssuedAt, expired.ExpiresAt = now.Add(-2*time.Hour), now.Add(-time.Hour)
	p.publish(t, pinsHeader, p.signer, expired)
	if _, err := c.UpdatePins(t.Context()); !errors.Is(err, client.ErrPinsExpired) {
		t.Errorf("an expired set: %v", err)
	}
	if reaches(c) || store.b != nil {
		t.Fatal("one of them was taken")
	}

	older := p.publish(t, pinsHeader, p.signer, set(20, time.Hour, old, backup))
	newest := p.publish(t, pinsHeader, p.signer, set(30, time.Hour, fresh, backup))
	got, err := c.UpdatePins(t.Context())
	if err != nil || got.Sequence != 30 || !reaches(c) {
		t.Fatalf("the new set: %+v %v", got, err)
	}
	p.mu.Lock()
	p.set = older
	p.mu.Unlock()
	if _, err := c.UpdatePins(t.Context()); !errors.Is(err, client.ErrPinsOlder) {
		t.Errorf("an older set: %v", err)
	}
	if string(store.b) != string(newest) {
		t.Error("the newest set is not kept")
	}
	again := app(p.key)
	if !reaches(again) {
		t.Error("the set did not survive a restart")
	}
	if _, err := again.UpdatePins(t.Context()); !errors.Is(err, client.ErrPinsOlder) {
		t.Errorf("an older set after a restart: %v", err)
	}
	if reaches(app()) {
		t.Error("a set holds for an app that knows no key to verify it with")
	}
	// A set that expired while the app slept: the built-in pins hold again.
	store.b = p.publish(t, pinsHeader, p.signer, func() client.PinSet {
		s := set(40, 0, fresh)
		s.IssuedAt, s.ExpiresAt = now.Add(-2*time.Hour), now.Add(-time.Hour)
		return s
	}())
	if reaches(app(p.key)) {
		t.Error("an expired set holds")
	}
	store.b = []byte("torn")
	if reaches(app(p.key)) {
		t.Error("garbage holds")
	}
}

func FuzzPinSet(f *testing.F) {
	private, public, err := note.GenerateKey(rand.Reader, "strongroom/test/ins_1")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{pinsHeader + "\n{}\n", pinsHeader + "\n{\"sequence\":1,\"pins\":[\"sha256/x\"]}\n", "\n", pinsHeader + "\nnull\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _ = client.ParsePinSet(text, []string{public})
		if signed, err := note.Sign(&note.Note{Text: string(text) + "\n"}, signer); err == nil {
			if s, err := client.ParsePinSet(signed, []string{public}); err == nil && (s.Sequence <= 0 || len(s.Pins) == 0) {
				t.Errorf("%+v was taken", s)
			}
		}
	})
}
