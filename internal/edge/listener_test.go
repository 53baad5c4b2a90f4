package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"strongroom/internal/actor"
)

func TestConnectionLimits(t *testing.T) {
	h := open(t, Listener{Allow: prefixes("127.0.0.0/8"), Limits: Limits{Connections: 5, ConnectionsPerAddress: 3}})
	from := h.dialFrom
	var one []net.Conn
	for range 3 {
		c, err := from("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		one = append(one, c)
	}
	if _, err := from("127.0.0.1"); err == nil {
		t.Error("a fourth connection of one address is taken")
	}
	for range 2 {
		if _, err := from("127.0.0.2"); err != nil {
			t.Errorf("another address is refused: %v", err)
		}
	}
	if _, err := from("127.0.0.3"); err == nil {
		t.Error("a sixth connection is taken")
	}
	if got := h.count("strongroom_connections", "listener=app"); got != 5 {
		t.Errorf("%v connections are counted", got)
	}
	for _, reason := range []string{refusedPerAddress, refusedTotal} {
		if h.count("strongroom_connections_refused_total", "listener=app", "reason="+reason) != 1 {
			t.Errorf("no refusal is counted for %s", reason)
		}
	}
	one[0].Close()
	await(t, "the place becomes free", func() bool { _, err := from("127.0.0.1"); return err == nil })
}

// dialFrom opens a TLS connection from one of the many loopback addresses. A refusal may come as early as
// from connect itself.
func (h *house) dialFrom(ip string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.DialContext(h.t.Context(), "tcp", h.address("app"))
	if err != nil {
		return nil, err
	}
	h.t.Cleanup(func() { c.Close() })
	s := tls.Client(c, h.tls())
	return s, s.HandshakeContext(h.t.Context())
}

// A flood of connections that say nothing must not keep others out, nor stay.
func TestConnectionFlood(t *testing.T) {
	h := open(t, Listener{Allow: prefixes("127.0.0.0/8"), Limits: Limits{ConnectionsPerAddress: 10, HandshakeAndHeader: 2 * time.Second}})
	var flood []net.Conn
	for range 300 {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 6, 6, 6)}}).DialContext(t.Context(), "tcp", h.address("app"))
		if err != nil {
			continue // refused so fast that connect already tells
		}
		defer c.Close()
		flood = append(flood, c)
	}
	if a := get(t, h.client(nil), h.URL("app")); a.status != 200 {
		t.Errorf("during a flood: %v", a)
	}
	for _, c := range flood {
		ended(t, c)
	}
	await(t, "the flood is gone", func() bool { return h.count("strongroom_connections", "listener=app") <= 1 })
	if got := h.count("strongroom_connections_refused_total", "listener=app", "reason="+refusedPerAddress); got < 280 {
		t.Errorf("%v connections were refused", got)
	}
}

func TestAddressRules(t *testing.T) {
	for _, tt := range []struct {
		name     string
		listener Listener
		from     string
		ok       bool
	}{
		{"default is loopback", Listener{}, "127.0.0.9", true},
		{"everyone", Listener{Everyone: true}, "127.0.0.9", true},
		{"listed", Listener{Allow: prefixes("127.0.0.9/32")}, "127.0.0.9", true},
		{"not listed", Listener{Allow: prefixes("127.0.0.9/32")}, "127.0.0.8", false},
		{"other family listed", Listener{Allow: prefixes("::/0")}, "127.0.0.8", false},
		{"proxy", Listener{Allow: prefixes("10.0.0.0/8"), TrustedProxies: prefixes("127.0.0.8/32")}, "127.0.0.8", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := open(t, tt.listener)
			if _, err := h.dialFrom(tt.from); (err == nil) != tt.ok {
				t.Errorf("handshake: %v", err)
			}
			if got := h.count("strongroom_connections_refused_total", "listener=app", "reason="+refusedAddress); (got == 0) != tt.ok {
				t.Errorf("%v refusals", got)
			}
		})
	}
	for addr, want := range map[string]bool{"127.0.0.1": true, "::1": true, "192.0.2.1": false, "2001:db8::1": false} {
		if allowed(plainAddr(netip.MustParseAddr(addr)), false, nil) != want {
			t.Errorf("without rules, %s: %v", addr, !want)
		}
	}
	if !allowed(plainAddr(netip.MustParseAddr("::ffff:10.1.2.3")), false, prefixes("10.0.0.0/8")) {
		t.Error("IPv4 inside IPv6 is not taken for IPv4")
	}
}

// A network that gives everyone a /64 must not be 2^64 sources.
func TestSourceOfIPv6(t *testing.T) {
	g := &gate{everyone: true, max: -1, maxPer: 2, per: make(map[netip.Addr]int)}
	var counted []netip.Addr
	for i := range 3 {
		a, reason := g.admit(netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::%x", i+1)))
		if want := map[bool]string{true: refusedPerAddress}[i == 2]; reason != want {
			t.Errorf("connection %d: %q", i, reason)
		}
		counted = append(counted, a)
	}
	if _, reason := g.admit(netip.MustParseAddr("2001:db8:0:2::1")); reason != "" {
		t.Errorf("another /64: %q", reason)
	}
	g.release(counted[0])
	g.release(counted[1])
	if len(g.per) != 1 || g.open != 1 {
		t.Errorf("left behind: %v, %d", g.per, g.open)
	}
}

func TestPlainBindsToLoopbackOnly(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:0": true, "localhost:0": true, "127.9.9.9:0": true, "[::ffff:127.0.0.1]:0": true,
		"0.0.0.0:0": false, ":0": false, "[::]:0": false, "192.0.2.1:0": false, "example.com:0": false, "localhost.example:0": false, "x": false,
	} {
		s, err := New(Options{}, Listener{Name: "ops", Mode: Plain, Address: address, Handler: http.NotFoundHandler(), Everyone: true})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Listen(t.Context())
		if (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
		if err == nil && !s.Addr("ops").Addr().Unmap().IsLoopback() {
			t.Errorf("%s is bound to %v", address, s.Addr("ops"))
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// "Goes nowhere": whoever does not speak TLS learns nothing, not even that this is HTTPS.
func TestNotTLS(t *testing.T) {
	h := open(t, Listener{})
	for _, said := range []string{"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "SSH-2.0-x\r\n", "\x80\x2e\x01\x00\x02", "\x00"} {
		c, err := net.Dial("tcp", h.address("app"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, said)
		if got := ended(t, c); len(got) > 0 {
			t.Errorf("%q is answered with %q", said, got)
		}
	}
	if got := h.count("strongroom_connections_refused_total", "listener=app", "reason="+refusedNotTLS); got != 4 {
		t.Errorf("%v refusals are counted", got)
	}
	await(t, "failures are counted", func() bool {
		return h.count("strongroom_tls_handshake_failures_total", "listener=app", "reason=not-tls") == 4
	})
	if strings.Contains(h.log.String(), "127.0.0.1:") && strings.Contains(h.log.String(), `"error":"http: TLS handshake error from 127.0.0.1:`) {
		t.Error("the log holds a whole address")
	}
}

func TestSlowClients(t *testing.T) {
	read := map[string]chan error{"/h1": make(chan error, 1), "/idle": make(chan error, 1), "/h2": make(chan error, 1)}
	h := open(t, Listener{
		Limits: Limits{HandshakeAndHeader: time.Second, Read: 2 * time.Second, Idle: time.Second},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			read[r.URL.Path] <- err
			if err != nil {
				WriteProblem(w, r, err)
			}
		}),
	})
	plain := func() net.Conn {
		c, err := net.Dial("tcp", h.address("app"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	h1 := h.tls()
	h1.NextProtos = []string{"http/1.1"}
	h2 := h.tls()
	h2.NextProtos = []string{"h2"}
	h2Preface := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	slow := map[string]func(*testing.T){}
	run := func(name string, f func(*testing.T)) { slow[name] = f }
	run("silent", func(t *testing.T) { ended(t, plain()) })
	run("half a client hello", func(t *testing.T) {
		c := plain()
		c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252})
		ended(t, c)
	})
	run("drop by drop", func(t *testing.T) { // each byte in time, the whole never
		c := plain()
		go func() {
			hello := append([]byte{22, 3, 1, 2, 0}, make([]byte, 512)...)
			for i := range hello {
				if _, err := c.Write(hello[i : i+1]); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		ended(t, c)
	})
	run("no request", func(t *testing.T) { ended(t, h.dial(h1)) })
	run("half a header", func(t *testing.T) {
		c := h.dial(h1)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
		ended(t, c)
	})
	run("half a body", func(t *testing.T) {
		c := h.dial(h1)
		io.WriteString(c, "POST /h1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
		if err := <-read["/h1"]; err == nil {
			t.Error("the handler read half a body without an error")
		}
		ended(t, c)
	})
	run("idle", func(t *testing.T) {
		c := h.dial(h1)
		io.WriteString(c, "GET /idle HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
		<-read["/idle"]
		if got := ended(t, c); !bytes.HasPrefix(got, []byte("HTTP/1.1 200")) {
			t.Errorf("%q", got)
		}
	})
	run("HTTP/2 without preface", func(t *testing.T) {
		if testing.Short() {
			t.Skip("net/http gives the preface ten seconds")
		}
		ended(t, h.dial(h2))
	})
	run("HTTP/2 idle", func(t *testing.T) {
		c := h.dial(h2)
		io.WriteString(c, h2Preface)
		ended(t, c)
	})
	run("HTTP/2 half a header", func(t *testing.T) {
		c := h.dial(h2)
		io.WriteString(c, h2Preface+"\x00\x00\x01\x01\x01\x00\x00\x00\x01\x82") // HEADERS without END_HEADERS
		ended(t, c)
	})
	run("HTTP/2 half a body", func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		req := request(t, "POST", h.URL("app")+"/h2", "")
		req.Body, req.ContentLength = r, 100
		req.Header.Set("Content-Type", "application/json")
		resp, err := h.client(nil).Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if err := <-read["/h2"]; err == nil {
			t.Error("the handler read half a body without an error")
		}
	})
	t.Run("all", func(t *testing.T) {
		for name, f := range slow {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f(t)
			})
		}
	})
	await(t, "nobody is left", func() bool { return h.count("strongroom_connections", "listener=app") == 0 })
}

func TestOversizeHeader(t *testing.T) {
	h := open(t, Listener{Limits: Limits{HeaderBytes: 8 << 10}})
	for _, http2 := range []bool{false, true} {
		c := h.client(func(tr *http.Transport) { tr.ForceAttemptHTTP2 = http2 })
		req := request(t, "GET", h.URL("app"), "")
		req.Header.Set("X-Long", strings.Repeat("x", 64<<10))
		resp, err := c.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("HTTP/2 %v: %s", http2, resp.Status)
			}
		}
		if a := get(t, c, h.URL("app")); a.status != 200 {
			t.Errorf("afterwards: %v", a)
		}
	}
}

// failing is a listener whose first Accepts fail as they do when there are no file descriptors left.
type failing struct {
	net.Listener
	failures int
}

func (f *failing) Accept() (net.Conn, error) {
	if f.failures > 0 {
		f.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return f.Listener.Accept()
}

func TestAcceptFailures(t *testing.T) {
	h := unbuilt(t)
	s, err := New(Options{Metrics: h.metrics}, Listener{Name: "app", Address: "127.0.0.1:0", Certificates: h.certs,
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})})
	if err != nil {
		t.Fatal(err)
	}
	h.Server = s
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := s.find("app")
	v.gate.Listener = &failing{v.gate.Listener, 3}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := get(t, h.client(nil), s.URL("app")); a.status != 200 {
		t.Error(a)
	}
	if got := h.count("strongroom_accept_failures_total", "listener=app"); got != 3 {
		t.Errorf("%v failures are counted", got)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMutualTLS(t *testing.T) {
	var by actor.Actor
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { by = actor.From(r.Context()) })
	h := unbuilt(t).build(Options{}, Listener{Name: "app", Mode: Mutual, Handler: handler})

	for _, http2 := range []bool{false, true} {
		c := h.client(func(tr *http.Transport) {
			tr.ForceAttemptHTTP2 = http2
			tr.TLSClientConfig.Certificates = []tls.Certificate{h.clientCert()}
		})
		if a := get(t, c, h.URL("app")); a.status != 200 {
			t.Fatal(a)
		}
		if by.Kind != actor.Service || by.ID != DevService || len(by.Key) != 43 || by.Address != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("actor %+v", by)
		}
	}
	stranger := unbuilt(t)
	for name, certs := range map[string][]tls.Certificate{
		"no certificate":                nil,
		"another authority's":           {stranger.clientCert()},
		"a server's certificate":        {h.certs.current.Load().pair},
		"a certificate without its key": {{Certificate: h.clientCert().Certificate, PrivateKey: stranger.clientCert().PrivateKey}},
	} {
		by = actor.Actor{}
		c := h.client(func(tr *http.Transport) {
			// Whatever the server asks for: the client would not offer a stranger's by itself.
			tr.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(certs) == 0 {
					return &tls.Certificate{}, nil
				}
				return &certs[0], nil
			}
		})
		resp, err := c.Get(h.URL("app"))
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s: %s", name, resp.Status)
		}
		if by != (actor.Actor{}) {
			t.Errorf("%s: the handler ran for %+v", name, by)
		}
	}
	await(t, "failures are counted", func() bool {
		return h.count("strongroom_tls_handshake_failures_total", "listener=app", "reason=client-certificate") >= 3
	})
}

// A client authority that was taken away must count for nothing from the next connection on.
func TestClientAuthorityReload(t *testing.T) {
	h := unbuilt(t)
	h.files.Server.ClientCAs = h.dir + "/clients.pem"
	ca := readFiles(t, h.dir)["ca.pem"]
	write(t, h.files.Server.ClientCAs, []byte(ca))
	var err error
	if h.certs, err = LoadCertificates(h.files.Server, nil); err != nil {
		t.Fatal(err)
	}
	h.build(Options{}, Listener{Name: "app", Mode: Mutual})
	try := func() error {
		c := h.client(func(tr *http.Transport) { tr.TLSClientConfig.Certificates = []tls.Certificate{h.clientCert()} })
		defer c.CloseIdleConnections()
		resp, err := c.Get(h.URL("app"))
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	other := unbuilt(t)
	write(t, h.files.Server.ClientCAs, []byte(readFiles(t, other.dir)["ca.pem"]))
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	if try() == nil {
		t.Error("the authority that was taken away still counts")
	}
}

func TestNewRefuses(t *testing.T) {
	h := unbuilt(t)
	noClients := h.files.Server
	noClients.ClientCAs = ""
	bare, err := LoadCertificates(noClients, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]Listener{
		"no name":            {{Certificates: h.certs}},
		"one name twice":     {{Name: "a", Certificates: h.certs}, {Name: "a", Certificates: h.certs}},
		"TLS without cert":   {{Name: "a"}},
		"plain with cert":    {{Name: "a", Mode: Plain, Certificates: h.certs}},
		"no client CA":       {{Name: "a", Mode: Mutual, Certificates: bare}},
		"mode that is none":  {{Name: "a", Mode: 9, Certificates: h.certs}},
		"negative mode also": {{Name: "a", Mode: -1, Certificates: h.certs}},
	} {
		if _, err := New(Options{}, list...); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	s, err := New(Options{}, Listener{Name: "a", Address: "127.0.0.1:0", Certificates: h.certs})
	if err != nil {
		t.Fatal(err)
	}
	if s.Start(t.Context()) == nil {
		t.Error("a listener without a handler starts")
	}
	if s.Handle("b", http.NotFoundHandler()) == nil {
		t.Error("a handler for no listener is taken")
	}
	if err := s.Handle("a", http.NotFoundHandler()); err != nil {
		t.Error(err)
	}
	// All or none: the second cannot be bound, so the first must be free again.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	two, err := New(Options{},
		Listener{Name: "a", Address: free.Addr().String(), Certificates: h.certs, Handler: http.NotFoundHandler()},
		Listener{Name: "b", Address: taken.Addr().String(), Certificates: h.certs, Handler: http.NotFoundHandler()})
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Start(t.Context()); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "listener b") {
		t.Errorf("error %v", err)
	}
	again, err := net.Listen("tcp", free.Addr().String())
	if err != nil {
		t.Errorf("the first listener is still bound: %v", err)
	} else {
		again.Close()
	}
}

func TestShutdown(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", http2), func(t *testing.T) {
			begun, goOn := make(chan bool), make(chan bool)
			h := unbuilt(t)
			h.build(Options{}, Listener{Name: "app", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					begun <- true
					<-goOn
				}
				io.WriteString(w, "done")
			})}, Listener{Name: "ops", Mode: Plain})
			c := h.client(func(tr *http.Transport) { tr.ForceAttemptHTTP2 = http2 })
			get(t, c, h.URL("app"))
			fresh, err := net.Dial("tcp", h.address("app")) // says nothing, and must not hold the rest up
			if err != nil {
				t.Fatal(err)
			}
			defer fresh.Close()

			answers, stopped := make(chan answer, 1), make(chan error, 1)
			go func() { answers <- get(t, c, h.URL("app")+"/slow") }()
			<-begun
			if !h.Ready() {
				t.Error("not ready before Shutdown")
			}
			go func() { stopped <- h.Shutdown(t.Context()) }()
			await(t, "not ready any more", func() bool { return !h.Ready() })
			await(t, "no new connections", func() bool {
				c, err := net.Dial("tcp", h.address("app"))
				if err == nil {
					c.Close()
				}
				return err != nil
			})
			if a := get(t, http.DefaultClient, h.URL("ops")); a.body != "hello" {
				t.Errorf("ops while requests are finished: %v", a)
			}
			ended(t, fresh)
			select {
			case err := <-stopped:
				t.Errorf("Shutdown returned %v before the request was finished", err)
			default:
			}
			close(goOn)
			if a := <-answers; a.status != 200 || a.body != "done" {
				t.Errorf("the request in flight got %v", a)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			if err := h.Shutdown(t.Context()); err != nil {
				t.Errorf("a second Shutdown: %v", err)
			}
			if h.Start(t.Context()) == nil {
				t.Error("a stopped server starts again")
			}
		})
	}
}

// Whatever a handler has begun when the server stops under load, its client gets the answer.
func TestShutdownUnderLoad(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		var mu sync.Mutex
		begun, answered := map[string]bool{}, map[string]bool{}
		note := func(m map[string]bool, id string) int {
			mu.Lock()
			defer mu.Unlock()
			m[id] = true
			return len(m)
		}
		enough := make(chan bool, 1)
		h := open(t, Listener{Limits: Limits{RequestsPerSecond: -1}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if note(begun, r.URL.Path) == 500 {
				enough <- true
			}
			io.WriteString(w, r.URL.Path)
		})})
		var wg sync.WaitGroup
		for worker := range 8 {
			c := h.client(func(tr *http.Transport) { tr.ForceAttemptHTTP2 = http2 })
			wg.Go(func() {
				for i := 0; ; i++ {
					path := fmt.Sprintf("/%d-%d", worker, i)
					resp, err := c.Get(h.URL("app") + path)
					if err != nil {
						return
					}
					body, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err == nil && string(body) == path {
						note(answered, path)
					}
				}
			})
		}
		<-enough
		if err := h.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		wg.Wait()
		for path := range begun {
			if !answered[path] {
				t.Errorf("HTTP/2 %v: request %s of %d was begun and its answer lost", http2, path, len(begun))
			}
		}
	}
}

// While load balancers are still to notice, everything is answered, and clients are asked to leave.
func TestDrain(t *testing.T) {
	h := unbuilt(t)
	h.build(Options{Drain: time.Hour}, Listener{Name: "app"})
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- h.Shutdown(ctx) }()
	await(t, "draining", func() bool { return h.find("app").draining.Load() })
	resp, err := h.client(func(tr *http.Transport) { tr.ForceAttemptHTTP2 = false }).Get(h.URL("app"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || !resp.Close {
		t.Errorf("while draining: %s, close: %v", resp.Status, resp.Close)
	}
	if h.Ready() {
		t.Error("ready while draining")
	}
	cancel()
	<-stopped
}

func TestForcedShutdown(t *testing.T) {
	begun, gone := make(chan bool), make(chan bool)
	h := open(t, Listener{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		begun <- true
		<-r.Context().Done()
		close(gone)
	})})
	failed := make(chan error, 1)
	go func() {
		resp, err := h.client(nil).Get(h.URL("app"))
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Shutdown(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "broken off") {
		t.Errorf("Shutdown: %v", err)
	}
	<-gone
	<-failed
}

func TestFailed(t *testing.T) {
	h := open(t, Listener{})
	h.find("app").gate.Listener.Close() // as when the operating system takes the socket away
	if err := <-h.Failed(); err == nil || !strings.Contains(err.Error(), "listener app") {
		t.Errorf("Failed delivers %v", err)
	}
}
