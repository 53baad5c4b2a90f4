package edge

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"strongroom/internal/check"
	"strongroom/internal/clock"
)

const (
	probeTime = 5 * time.Second
	// leastLife is how long a certificate must still be good for.
	leastLife = 7 * 24 * time.Hour
)

// probed is a listener as a check meets it.
type probed struct {
	name    string
	address string
	mode    Mode
	leaf    *x509.Certificate // that it should show; nil for one that has none
	admits  func(netip.Addr) bool
}

// probes returns the listeners that speak TLS.
func (s *Server) probes() (all []probed) {
	for _, v := range s.doors {
		d := probed{name: v.Name, address: s.Addr(v.Name).String(), mode: v.Mode}
		d.admits = v.gate.admits
		if v.Certificates != nil {
			d.leaf = v.Certificates.current.Load().pair.Leaf
			all = append(all, d)
		}
	}
	return all
}

// Checks returns the checks of the doors. Server returns the server that runs, or nil while none does.
func Checks(server func() *Server) []check.Check {
	running := func(exercise func(ctx context.Context, all []probed) check.Observation) func(context.Context) check.Observation {
		return func(ctx context.Context) check.Observation {
			s := server()
			if s == nil || !s.Ready() {
				return check.Undecided("", "No listener serves.")
			}
			all := s.probes()
			if len(all) == 0 { // of none everything would be true
				return check.Undecided("", "No listener speaks TLS.")
			}
			return exercise(ctx, all)
		}
	}
	return []check.Check{{
		ID: "tls-old-versions-refused", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says: "TLS 1.0, 1.1 and 1.2 are refused by every listener.",
		Run:  running(oldVersions), Sabotage: inScratch(&tls.Config{MinVersion: tls.VersionTLS12}, oldVersions),
	}, {
		ID: "tls-strong-only", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says: "TLS 1.3 with a 256-bit cipher and a hybrid post-quantum key exchange works; an offer of AES-128 alone is refused.",
		Run:  running(strongOnly), Sabotage: acceptsAnything(strongOnly),
	}, {
		ID: "tls-no-plain-http", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says: "Plain HTTP gets no answer from any listener.",
		Run:  running(noPlainHTTP), Sabotage: plainServer(noPlainHTTP),
	}, {
		ID: "tls-certificate-life", Version: 1, Every: 6 * time.Hour, Valid: 24 * time.Hour,
		Says: "Every certificate is good for another week at least, and is the one that was configured.",
		Run:  running(certificateLife), Sabotage: inScratch(&tls.Config{MinVersion: tls.VersionTLS13}, certificateLife),
	}, {
		ID: "net-service-needs-certificate", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says: "The services' listener lets nobody in without a certificate, nor with one that is self-made.",
		Run:  running(needsCertificate), Sabotage: inScratch(&tls.Config{MinVersion: tls.VersionTLS13}, needsCertificate),
	}, {
		ID: "net-admin-addresses", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says: "The administrators' listener turns away addresses that are not listed.",
		Run:  running(adminAddresses),
		Sabotage: func(ctx context.Context) check.Observation {
			return adminAddresses(ctx, []probed{{name: "admin", admits: (&gate{everyone: true}).admits}})
		},
	}}
}

func of(all []probed, name string) (probed, bool) {
	i := slices.IndexFunc(all, func(d probed) bool { return d.name == name })
	if i < 0 {
		return probed{}, false
	}
	return all[i], true
}

// handshake connects and returns what was agreed on. Whose certificate the server shows is the question of one
// check, certificateLife, which compares it with the one that is configured; here it would hide the others.
func handshake(ctx context.Context, address string, config *tls.Config) (tls.ConnectionState, error) {
	return handshakeAndWait(ctx, address, config, 200*time.Millisecond)
}

// handshakeAndWait is handshake that gives the server so long to refuse after all.
func handshakeAndWait(ctx context.Context, address string, config *tls.Config, wait time.Duration) (tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	config.InsecureSkipVerify = true
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	// In TLS 1.3 a client is done before the server has looked at its certificate: a read tells.
	state := conn.(*tls.Conn).ConnectionState()
	if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return state, err
	}
	_, err = conn.Read(make([]byte, 1))
	var slow net.Error
	if errors.As(err, &slow) && slow.Timeout() {
		err = nil // it is open, and nobody speaks
	}
	return state, err
}

// refused reports whether err is the peer's refusal and not that nobody was there.
func refused(err error) bool {
	var down *net.OpError
	return err != nil && !(errors.As(err, &down) && down.Op == "dial") && !errors.Is(err, context.DeadlineExceeded)
}

func oldVersions(ctx context.Context, all []probed) check.Observation {
	did := "connected to every listener with TLS 1.0, 1.1 and 1.2 only"
	n := 0
	for _, d := range all {
		for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
			_, err := handshake(ctx, d.address, &tls.Config{MinVersion: version, MaxVersion: version})
			switch {
			case err == nil:
				return check.Failed(did, "The listener %s speaks %s.", d.name, tls.VersionName(version))
			case !refused(err):
				return check.Undecided(did, "The listener %s did not answer: %v", d.name, err)
			}
			n++
		}
	}
	return check.Held(did, "All %d attempts were refused.", n).With("attempts", n)
}

func strongOnly(ctx context.Context, all []probed) check.Observation {
	did := "connected to every listener with TLS 1.3 and X25519MLKEM768; offered every listener AES-128-GCM alone"
	for _, d := range all {
		state, err := handshake(ctx, d.address, &tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}})
		if err != nil && !(d.mode == Mutual && state.HandshakeComplete) {
			return check.Failed(did, "The listener %s does not take TLS 1.3 with a hybrid key exchange: %v", d.name, err)
		}
		if err := verifySuite(state); err != nil {
			return check.Failed(did, "The listener %s agreed to %s.", d.name, tls.CipherSuiteName(state.CipherSuite))
		}
		if state.CurveID != tls.X25519MLKEM768 {
			return check.Failed(did, "The listener %s agreed to the key exchange %s.", d.name, state.CurveID)
		}
		// That the strong offer of the same form is taken shows that it is the suite which is refused.
		for _, offer := range []struct {
			suite uint16
			taken bool
		}{{tls.TLS_AES_256_GCM_SHA384, true}, {tls.TLS_AES_128_GCM_SHA256, false}} {
			taken, err := offerSuite(ctx, d.address, offer.suite)
			if err != nil {
				return check.Undecided(did, "The listener %s did not answer: %v", d.name, err)
			}
			if taken != offer.taken {
				verb := map[bool]string{true: "takes", false: "refuses"}[taken]
				return check.Failed(did, "The listener %s %s %s.", d.name, verb, tls.CipherSuiteName(offer.suite))
			}
		}
	}
	return check.Held(did, "%d listeners take strong connections and no other.", len(all)).With("listeners", len(all))
}

// Content types of TLS records (RFC 8446 section 5.1).
const (
	recordAlert     = 21
	recordHandshake = 22
)

// offerSuite sends a ClientHello (RFC 8446 section 4.1.2) that offers one cipher suite, which crypto/tls cannot
// be made to send, and reports whether the server went on with the handshake.
func offerSuite(ctx context.Context, address string, suite uint16) (taken bool, err error) {
	share, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return false, err
	}
	random := make([]byte, 32)
	rand.Read(random)
	extension := func(b *cryptobyte.Builder, kind uint16, body func(b *cryptobyte.Builder)) {
		b.AddUint16(kind)
		b.AddUint16LengthPrefixed(body)
	}
	var b cryptobyte.Builder
	b.AddUint8(recordHandshake)
	b.AddUint16(tls.VersionTLS10) // of the first record, for old middleboxes
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(1) // client_hello
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint16(tls.VersionTLS12) // legacy_version
			b.AddBytes(random)
			b.AddUint8LengthPrefixed(func(*cryptobyte.Builder) {}) // legacy_session_id
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(suite) })
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) }) // no compression
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				extension(b, 43, func(b *cryptobyte.Builder) { // supported_versions
					b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(tls.VersionTLS13) })
				})
				extension(b, 10, func(b *cryptobyte.Builder) { // supported_groups
					b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(uint16(tls.X25519)) })
				})
				extension(b, 13, func(b *cryptobyte.Builder) { // signature_algorithms
					b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
						for _, s := range []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.Ed25519, tls.PSSWithSHA256, tls.PSSWithSHA384} {
							b.AddUint16(uint16(s))
						}
					})
				})
				extension(b, 51, func(b *cryptobyte.Builder) { // key_share
					b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
						b.AddUint16(uint16(tls.X25519))
						b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(share.PublicKey().Bytes()) })
					})
				})
			})
		})
	})
	hello, err := b.Bytes()
	if err != nil {
		return false, err
	}
	answer, err := say(ctx, address, hello)
	if err != nil {
		return false, err
	}
	switch answer {
	case recordHandshake:
		return true, nil
	case recordAlert:
		return false, nil
	}
	return false, fmt.Errorf("its answer begins with %d, which is no TLS", answer)
}

// say sends bytes and returns the first one of the answer.
func say(ctx context.Context, address string, message []byte) (byte, error) {
	conn, err := (&net.Dialer{Timeout: probeTime}).DialContext(ctx, "tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(probeTime)); err != nil {
		return 0, err
	}
	if _, err := conn.Write(message); err != nil {
		return 0, err
	}
	return bufio.NewReader(conn).ReadByte()
}

func noPlainHTTP(ctx context.Context, all []probed) check.Observation {
	did := "sent a plain HTTP request to every listener that speaks TLS"
	for _, d := range all {
		conn, err := (&net.Dialer{Timeout: probeTime}).DialContext(ctx, "tcp", d.address)
		if err != nil {
			return check.Undecided(did, "The listener %s did not answer: %v", d.name, err)
		}
		err = conn.SetDeadline(time.Now().Add(probeTime))
		if err == nil {
			_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		}
		answer := make([]byte, 4096)
		n := 0
		if err == nil {
			n, err = io.ReadAtLeast(conn, answer, 12)
		}
		conn.Close()
		var slow net.Error
		if errors.As(err, &slow) && slow.Timeout() {
			continue // no answer at all
		}
		// net/http tells a plain caller, in plain words and with status 400, that this is an HTTPS server.
		if head := string(answer[:n]); strings.HasPrefix(head, "HTTP/") && !strings.Contains(strings.SplitN(head, "\r\n", 2)[0], " 400 ") {
			return check.Failed(did, "The listener %s answers plain HTTP.", d.name)
		}
	}
	return check.Held(did, "No listener served plain HTTP.").With("listeners", len(all))
}

func certificateLife(ctx context.Context, all []probed) check.Observation {
	did := "connected to every listener and read its certificate"
	least := time.Duration(1<<63 - 1)
	for _, d := range all {
		state, err := handshake(ctx, d.address, &tls.Config{MinVersion: tls.VersionTLS13})
		if len(state.PeerCertificates) == 0 {
			return check.Undecided(did, "The listener %s showed no certificate: %v", d.name, err)
		}
		leaf := state.PeerCertificates[0]
		if d.leaf == nil || !bytes.Equal(leaf.Raw, d.leaf.Raw) {
			return check.Failed(did, "The listener %s shows another certificate than the one that is configured.", d.name)
		}
		least = min(least, leaf.NotAfter.Sub(clock.System.Now()))
	}
	days := int(least.Hours() / 24)
	if least < leastLife {
		return check.Failed(did, "A certificate is good for %d more days only.", days).With("days_left", days)
	}
	return check.Held(did, "The certificate that ends first is good for %d more days.", days).With("days_left", days)
}

func needsCertificate(ctx context.Context, all []probed) check.Observation {
	did := "connected to the services' listener without a certificate, and with a self-made one"
	d, ok := of(all, "service")
	if !ok {
		return check.Undecided(did, "There is no listener for services.")
	}
	stranger, err := selfMade(time.Hour)
	if err != nil {
		return check.Undecided(did, "No certificate could be made: %v", err)
	}
	for what, config := range map[string]*tls.Config{
		"without a certificate":        {MinVersion: tls.VersionTLS13},
		"with a self-made certificate": {MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{stranger}},
	} {
		// A busy server takes its time to refuse; only one that lets the caller in makes us wait to the end.
		_, err := handshakeAndWait(ctx, d.address, config, 2*time.Second)
		if err == nil {
			return check.Failed(did, "The services' listener let a caller in %s.", what)
		}
		if !refused(err) {
			return check.Undecided(did, "The services' listener did not answer: %v", err)
		}
	}
	return check.Held(did, "Both were refused.")
}

// strangers are addresses that belong to nobody (RFC 5737, RFC 3849).
var strangers = []netip.Addr{
	netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("203.0.113.99"), netip.MustParseAddr("2001:db8::1"),
}

// adminAddresses asks the rule of the running listener: nobody can connect from an address that is not theirs.
func adminAddresses(_ context.Context, all []probed) check.Observation {
	did := "asked the running administrators' listener whether it admits addresses that belong to nobody"
	d, ok := of(all, "admin")
	if !ok {
		return check.Undecided(did, "There is no listener for administrators.")
	}
	for _, a := range strangers {
		if d.admits(a) {
			return check.Failed(did, "The administrators' listener admits everybody.")
		}
	}
	return check.Held(did, "None of %d addresses is admitted.", len(strangers)).With("addresses", len(strangers))
}

// selfMade returns a certificate that nobody vouches for.
func selfMade(life time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"stranger.invalid"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(raw)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}, err
}

// scratch serves on a free port of this machine, and runs the check on it as on a listener of the product.
func scratch(ctx context.Context, leaf *x509.Certificate, listen func(net.Listener) net.Listener, serve func(net.Conn), exercise func(context.Context, []probed) check.Observation) check.Observation {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return check.Undecided("", "no scratch listener: %v", err)
	}
	l = listen(l)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(probeTime)) // a scratch connection: it ends either way
				serve(conn)
			}()
		}
	}()
	return exercise(ctx, []probed{{name: "service", address: l.Addr().String(), leaf: leaf}})
}

// inScratch runs a check on a listener with other settings than the product's.
func inScratch(config *tls.Config, exercise func(context.Context, []probed) check.Observation) func(context.Context) check.Observation {
	return func(ctx context.Context) check.Observation {
		pair, err := selfMade(time.Hour) // which is also too short a life
		if err != nil {
			return check.Undecided("", "no scratch certificate: %v", err)
		}
		broken := config.Clone()
		broken.Certificates = []tls.Certificate{pair}
		return scratch(ctx, pair.Leaf, func(l net.Listener) net.Listener { return tls.NewListener(l, broken) },
			func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, exercise)
	}
}

// acceptsAnything runs a check on a listener that goes on with every handshake: it passes those that are
// strong to a proper server, and answers any other with a handshake record of its own.
func acceptsAnything(exercise func(context.Context, []probed) check.Observation) func(context.Context) check.Observation {
	return func(ctx context.Context) check.Observation {
		pair, err := selfMade(time.Hour)
		if err != nil {
			return check.Undecided("", "no scratch certificate: %v", err)
		}
		config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
		return scratch(ctx, pair.Leaf, func(l net.Listener) net.Listener { return l }, func(c net.Conn) {
			first := make([]byte, 16<<10)
			n, err := c.Read(first)
			if err != nil {
				return
			}
			weak := []byte{0x00, 0x02, byte(tls.TLS_AES_128_GCM_SHA256 >> 8), byte(tls.TLS_AES_128_GCM_SHA256 & 0xff), 0x01, 0x00}
			if bytes.Contains(first[:n], weak) { // it is the only suite that is offered
				_, _ = c.Write([]byte{recordHandshake, 3, 3, 0, 1, 2})
				return
			}
			server := tls.Server(&replayed{Conn: c, first: bytes.NewReader(first[:n])}, config)
			_, _ = io.Copy(io.Discard, server)
		}, exercise)
	}
}

// replayed is a connection of which a beginning was read already.
type replayed struct {
	net.Conn
	first *bytes.Reader
}

func (r *replayed) Read(b []byte) (int, error) {
	if r.first.Len() > 0 {
		return r.first.Read(b)
	}
	return r.Conn.Read(b)
}

// plainServer runs a check on a server without TLS.
func plainServer(exercise func(context.Context, []probed) check.Observation) func(context.Context) check.Observation {
	return func(ctx context.Context) check.Observation {
		return scratch(ctx, nil, func(l net.Listener) net.Listener { return l }, func(c net.Conn) {
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				_ = r.Body.Close()
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}, exercise)
	}
}
