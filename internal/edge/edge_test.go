package edge

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// house is a server with development certificates, and what a client needs to reach it.
type house struct {
	*Server
	t       testing.TB
	dir     string
	files   DevFiles
	certs   *Certificates
	roots   *x509.CertPool
	log     *lockedBuffer
	metrics *prometheus.Registry
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// unbuilt makes the certificates and nothing else; build does the rest.
func unbuilt(t testing.TB) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir(), log: &lockedBuffer{}, metrics: prometheus.NewRegistry()}
	var err error
	if h.files, err = DevCA(h.dir, nil); err != nil {
		t.Fatal(err)
	}
	if h.certs, err = LoadCertificates(h.files.Server, nil); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(h.files.CA)
	if err != nil {
		t.Fatal(err)
	}
	h.roots = x509.NewCertPool()
	h.roots.AppendCertsFromPEM(pem)
	return h
}

func (h *house) build(o Options, listeners ...Listener) *house {
	h.t.Helper()
	if o.Log == nil {
		o.Log = slogJSON(h.log)
	}
	o.Metrics = h.metrics
	for i := range listeners {
		l := &listeners[i]
		set(&l.Address, "127.0.0.1:0")
		if l.Mode != Plain {
			l.Certificates = h.certs
		}
		if l.Handler == nil {
			l.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
		}
	}
	var err error
	if h.Server, err = New(o, listeners...); err != nil {
		h.t.Fatal(err)
	}
	if err := h.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = h.Shutdown(ctx) // some tests leave requests behind on purpose
	})
	return h
}

// open starts a server with one public listener called app.
func open(t testing.TB, l Listener) *house {
	t.Helper()
	l.Name = "app"
	return unbuilt(t).build(Options{}, l)
}

func (h *house) tls() *tls.Config {
	return &tls.Config{RootCAs: h.roots, ServerName: "127.0.0.1"}
}

func (h *house) client(change func(*http.Transport)) *http.Client {
	tr := &http.Transport{TLSClientConfig: h.tls(), ForceAttemptHTTP2: true}
	if change != nil {
		change(tr)
	}
	h.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (h *house) clientCert() tls.Certificate {
	h.t.Helper()
	pair, err := tls.LoadX509KeyPair(h.files.ClientPEM, h.files.ClientKey)
	if err != nil {
		h.t.Fatal(err)
	}
	return pair
}

func (h *house) address(name string) string { return h.Addr(name).String() }

// dial opens a TLS connection by hand.
func (h *house) dial(config *tls.Config) *tls.Conn {
	h.t.Helper()
	c, err := tls.Dial("tcp", h.address("app"), config)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// count reads a counter or gauge with exactly these label values; 0 when it is not there.
func (h *house) count(name string, labels ...string) float64 {
	h.t.Helper()
	families, err := h.metrics.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			if len(m.GetLabel()) != len(labels) {
				continue
			}
			for _, l := range m.GetLabel() {
				found := false
				for _, want := range labels {
					found = found || l.GetName()+"="+l.GetValue() == want
				}
				if !found {
					continue series
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

// await asks again until the answer is yes. It waits for what happens on another goroutine's time and
// cannot be waited for otherwise; the test's own deadline ends it.
func await(t testing.TB, what string, yes func() bool) {
	t.Helper()
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		if yes() {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("never: %s", what)
		}
	}
}

// ended reads until the other side closes, and returns what came before.
func ended(t testing.TB, c net.Conn) []byte {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Fatalf("the server left the connection open; it sent %q", got)
	}
	return got
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) problem(t testing.TB) (slug, instance string) {
	t.Helper()
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		t.Fatalf("status %d has content type %q and body %q", a.status, got, a.body)
	}
	var p struct {
		Type, Title, Instance string
		Status                int
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatal(err)
	}
	if p.Status != a.status || p.Title == "" {
		t.Errorf("problem %q on an answer with status %d", a.body, a.status)
	}
	return strings.TrimPrefix(p.Type, "urn:strongroom:problem:"), p.Instance
}

func do(t testing.TB, c *http.Client, r *http.Request) answer {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func get(t testing.TB, c *http.Client, url string) answer {
	t.Helper()
	return do(t, c, request(t, "GET", url, ""))
}

func request(t testing.TB, method, url, body string) *http.Request {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, r)
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

func sClient(t testing.TB, h *house, args ...string) (string, bool) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("this test drives openssl; run: apt-get install openssl")
	}
	args = append([]string{"s_client", "-connect", h.address("app"), "-CAfile", h.files.CA, "-verify_return_error", "-brief"}, args...)
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader("") // it ends after the handshake
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// ASVS 12.1.1, 12.1.2
func TestSuites(t *testing.T) {
	h := open(t, Listener{})
	for _, tt := range []struct {
		args string
		ok   bool
		want string
	}{
		{"-tls1_3", true, "TLS_AES_256_GCM_SHA384"},
		{"-tls1_3 -ciphersuites TLS_AES_256_GCM_SHA384", true, "TLS_AES_256_GCM_SHA384"},
		{"-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256", true, "TLS_CHACHA20_POLY1305_SHA256"},
		{"-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384", true, "TLS_AES_256_GCM_SHA384"},
		{"-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256", true, "TLS_CHACHA20_POLY1305_SHA256"},
		{"-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", false, "handshake failure"},
		{"-tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256", false, "handshake failure"},
		{"-tls1_2", false, "protocol version"},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384", false, "protocol version"},
		{"-tls1_1 -cipher DEFAULT:@SECLEVEL=0", false, "protocol version"},
		{"-tls1 -cipher DEFAULT:@SECLEVEL=0", false, "protocol version"},
		{"-tls1_3 -groups P-521", false, "handshake failure"},
		{"-tls1_3 -groups P-384", true, "TLS_AES_256_GCM_SHA384"},
		{"-tls1_3 -groups P-256", true, "TLS_AES_256_GCM_SHA384"},
		{"-tls1_3 -groups X25519", true, "TLS_AES_256_GCM_SHA384"},
		{"-tls1_3 -alpn spdy/3", false, "no application protocol"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			out, ok := sClient(t, h, strings.Fields(tt.args)...)
			if ok != tt.ok || !strings.Contains(out, tt.want) {
				t.Errorf("accepted: %v, wanted %v and %q in:\n%s", ok, tt.ok, tt.want, out)
			}
			if strings.Contains(out, "CONNECTION ESTABLISHED") != tt.ok || strings.Contains(out, "Ciphersuite: TLS_AES_128") {
				t.Errorf("openssl says:\n%s", out)
			}
		})
	}
	for _, reason := range []string{"suite", "version", "group", "alpn"} {
		if h.count("strongroom_tls_handshake_failures_total", "listener=app", "reason="+reason) == 0 {
			t.Errorf("no handshake failure is counted for %s", reason)
		}
	}
	for _, list := range [][]uint16{defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES} {
		if len(list) != 2 {
			t.Errorf("suites %x", list)
		}
		for _, suite := range list {
			if err := verifySuite(tls.ConnectionState{CipherSuite: suite}); err != nil {
				t.Error(err)
			}
		}
	}
	if verifySuite(tls.ConnectionState{CipherSuite: tls.TLS_AES_128_GCM_SHA256}) == nil {
		t.Error("verifySuite takes AES-128")
	}
}

// Rather no server than one that speaks AES-128 or to nobody.
func TestFIPSMode(t *testing.T) {
	if fips140.Enabled() {
		h := unbuilt(t)
		if _, err := New(Options{}, Listener{Name: "app", Certificates: h.certs}); err == nil || !strings.Contains(err.Error(), "fips140") {
			t.Errorf("error %v", err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestFIPSMode$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=on")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestFIPSMode") {
		t.Errorf("in FIPS mode: %v\n%s", err, out)
	}
}

func TestHandshake(t *testing.T) {
	h := open(t, Listener{})
	for _, tt := range []struct {
		name  string
		given []tls.CurveID
		want  tls.CurveID
	}{
		{"hybrid by default", nil, tls.X25519MLKEM768},
		{"hybrid though the client likes it less", []tls.CurveID{tls.X25519, tls.X25519MLKEM768}, tls.X25519MLKEM768},
		{"without hybrid", []tls.CurveID{tls.X25519}, tls.X25519},
		{"FIPS client", []tls.CurveID{tls.CurveP256, tls.CurveP384}, tls.CurveP256},
		{"CNSA client", []tls.CurveID{tls.CurveP384}, tls.CurveP384},
	} {
		config := h.tls()
		config.CurvePreferences = tt.given
		config.NextProtos = []string{"h2", "http/1.1"}
		state := h.dial(config).ConnectionState()
		if state.CurveID != tt.want || state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "h2" {
			t.Errorf("%s: group %v, version %x, protocol %q", tt.name, state.CurveID, state.Version, state.NegotiatedProtocol)
		}
		if err := verifySuite(state); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	await(t, "handshakes are counted by suite and group", func() bool {
		return h.count("strongroom_tls_handshakes_total", "listener=app", "suite=TLS_AES_256_GCM_SHA384", "group=X25519MLKEM768")+
			h.count("strongroom_tls_handshakes_total", "listener=app", "suite=TLS_CHACHA20_POLY1305_SHA256", "group=X25519MLKEM768") == 2
	})
}

func TestNoResumption(t *testing.T) {
	h := open(t, Listener{})
	cache := tls.NewLRUClientSessionCache(8)
	for range 3 {
		c := h.client(func(tr *http.Transport) {
			tr.TLSClientConfig.ClientSessionCache = cache
			tr.DisableKeepAlives = true
		})
		resp, err := c.Get(h.URL("app"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.TLS.DidResume {
			t.Error("a session was resumed")
		}
	}
}

// prefixes is for tests that name address rules.
func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func slogJSON(w io.Writer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
