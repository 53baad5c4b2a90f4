package edge

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

// things is a handler as rooms have them.
func things(saw func(*http.Request)) http.Handler {
	mux := http.NewServeMux()
	echo := func(w http.ResponseWriter, r *http.Request) {
		if saw != nil {
			saw(r)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			WriteProblem(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	}
	mux.HandleFunc("GET /v1/things/{thing}", echo)
	mux.HandleFunc("POST /v1/things", echo)
	mux.HandleFunc("GET /nothing", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /no-content", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'self'")
		io.WriteString(w, "page")
	})
	mux.HandleFunc("GET /own-404", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "mine", 404) })
	mux.HandleFunc("GET /flush", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		io.WriteString(w, "b")
	})
	mux.HandleFunc("GET /problem", func(w http.ResponseWriter, r *http.Request) {
		WriteProblem(w, r, problem.New(problem.Conflict, "taken", "It is taken.").RetryAfter(1500*time.Millisecond).Because(errors.New("row 7")))
	})
	mux.HandleFunc("GET /error", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"7"`)
		WriteProblem(w, r, fmt.Errorf("connecting: %w", errors.New("host db-7 says no")))
	})
	mux.HandleFunc("GET /timeout", func(w http.ResponseWriter, r *http.Request) { WriteProblem(w, r, context.DeadlineExceeded) })
	mux.HandleFunc("GET /late-error", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "half")
		WriteProblem(w, r, errors.New("too late"))
	})
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("+447700900123") })
	mux.HandleFunc("GET /panic-index", func(_ http.ResponseWriter, r *http.Request) { _ = make([]int, 0)[len(r.Host)] })
	mux.HandleFunc("GET /late-panic", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic("late")
	})
	return mux
}

// Every row holds over HTTP/1.1 and HTTP/2.
func TestRequests(t *testing.T) {
	h := open(t, Listener{Handler: things(nil), Limits: Limits{Body: 1000, RequestsPerSecond: -1}})
	json := func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }
	kind := func(values ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header["Content-Type"] = values }
	}
	for _, tt := range []struct {
		name, method, path, body string
		change                   func(*http.Request)
		status                   int
		want                     string // the body, or the problem's slug
		header                   map[string]string
		route                    string
	}{
		{name: "read", method: "GET", path: "/v1/things/1?secret=hush", status: 200, route: "/v1/things/{thing}"},
		{name: "head", method: "HEAD", path: "/v1/things/1", status: 200, route: "/v1/things/{thing}"},
		{name: "write", method: "POST", path: "/v1/things", body: `{"a":1}`, change: json, status: 200, want: `{"a":1}`, route: "/v1/things"},
		{name: "write nothing", method: "POST", path: "/v1/things", status: 200, route: "/v1/things"},
		{name: "nothing written", method: "GET", path: "/nothing", status: 200, route: "/nothing"},
		{name: "no content", method: "GET", path: "/no-content", status: 204, route: "/no-content"},
		{name: "flush", method: "GET", path: "/flush", status: 200, want: "ab", route: "/flush"},
		{name: "own policy", method: "GET", path: "/page", status: 200, want: "page", route: "/page",
			header: map[string]string{"Content-Security-Policy": "default-src 'self'"}},

		{name: "absent", method: "GET", path: "/nowhere/+447700900123", status: 404, want: "not-found", route: "unmatched"},
		{name: "absent, head", method: "HEAD", path: "/nowhere", status: 404, route: "unmatched"},
		{name: "other method", method: "DELETE", path: "/v1/things", status: 405, want: "method-not-allowed", route: "unmatched",
			header: map[string]string{"Allow": "POST"}},
		{name: "trace", method: "TRACE", path: "/v1/things/1", status: 405, want: "method-not-allowed", route: "unmatched",
			header: map[string]string{"Allow": allowHeader}},
		{name: "made-up method", method: "BREW", path: "/v1/things/1", status: 405, want: "method-not-allowed", route: "unmatched"},
		{name: "handler's own 404", method: "GET", path: "/own-404", status: 404, want: "mine\n", route: "/own-404"},
		{name: "untidy path", method: "GET", path: "/v1//things/../page", status: 307, route: "unmatched"},

		{name: "charset", method: "POST", path: "/v1/things", body: "{}", change: kind("application/json; charset=UTF-8"), status: 200, want: "{}", route: "/v1/things"},
		{name: "no type", method: "POST", path: "/v1/things", body: "{}", change: kind(), status: 415, want: "not-json", route: "unmatched"},
		{name: "form", method: "POST", path: "/v1/things", body: "a=b", change: kind("application/x-www-form-urlencoded"), status: 415, want: "not-json", route: "unmatched"},
		{name: "text", method: "POST", path: "/v1/things", body: "{}", change: kind("text/plain"), status: 415, want: "not-json", route: "unmatched"},
		{name: "two types", method: "POST", path: "/v1/things", body: "{}", change: kind("application/json", "text/plain"), status: 415, want: "not-json", route: "unmatched"},
		{name: "Latin-1", method: "POST", path: "/v1/things", body: "{}", change: kind("application/json; charset=iso-8859-1"), status: 415, want: "not-json", route: "unmatched"},
		{name: "broken type", method: "POST", path: "/v1/things", body: "{}", change: kind("application/json; ="), status: 415, want: "not-json", route: "unmatched"},
		{name: "gzip", method: "POST", path: "/v1/things", body: "{}", change: func(r *http.Request) { json(r); r.Header.Set("Content-Encoding", "gzip") },
			status: 415, want: "not-json", route: "unmatched"},

		{name: "body at its limit", method: "POST", path: "/v1/things", body: strings.Repeat("x", 1000), change: json, status: 200,
			want: strings.Repeat("x", 1000), route: "/v1/things"},
		{name: "body over its limit", method: "POST", path: "/v1/things", body: strings.Repeat("x", 1001), change: json, status: 413, want: "body-too-large", route: "unmatched"},
		{name: "body over its limit, unannounced", method: "POST", path: "/v1/things", body: strings.Repeat("x", 100_000),
			change: func(r *http.Request) { json(r); r.ContentLength = -1 }, status: 413, want: "body-too-large", route: "/v1/things"},

		{name: "other host", method: "GET", path: "/nothing", change: func(r *http.Request) { r.Host = "evil.example" }, status: 200, route: "/nothing",
			header: map[string]string{"Strict-Transport-Security": hsts[0]}},

		{name: "problem", method: "GET", path: "/problem", status: 409, want: "taken", route: "/problem", header: map[string]string{"Retry-After": "2"}},
		{name: "error", method: "GET", path: "/error", status: 500, want: "internal", route: "/error", header: map[string]string{"ETag": ""}},
		{name: "timeout", method: "GET", path: "/timeout", status: 503, want: "timeout", route: "/timeout", header: map[string]string{"Retry-After": "1"}},
		{name: "panic", method: "GET", path: "/panic", status: 500, want: "internal", route: "/panic"},
		{name: "panic of the runtime", method: "GET", path: "/panic-index", status: 500, want: "internal", route: "/panic-index"},
		{name: "error after half an answer", method: "GET", path: "/late-error", route: "/late-error"},
		{name: "panic after half an answer", method: "GET", path: "/late-panic", route: "/late-panic"},
	} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/HTTP2=%v", tt.name, http2), func(t *testing.T) {
				c := h.client(func(tr *http.Transport) { tr.ForceAttemptHTTP2 = http2; tr.DisableCompression = true })
				u, err := url.Parse(h.URL("app") + tt.path)
				if err != nil {
					t.Fatal(err)
				}
				req := request(t, tt.method, h.URL("app"), tt.body)
				req.Header.Del("Content-Type")
				req.URL = u
				if tt.change != nil {
					tt.change(req)
				}
				if tt.status == 0 { // the connection must break, or a half would look whole
					resp, err := c.Do(req)
					if err == nil {
						_, err = io.ReadAll(resp.Body)
						resp.Body.Close()
					}
					if err == nil {
						t.Error("half an answer looks whole")
					}
					return
				}
				before := len(h.log.String())
				a := do(t, c, req)
				if a.status != tt.status {
					t.Fatalf("%d %s", a.status, a.body)
				}
				requestID := a.header.Get("X-Request-Id")
				if !id.Valid("req", requestID) {
					t.Errorf("request id %q", requestID)
				}
				if a.header.Get("Content-Type") == "application/problem+json" && tt.method != "HEAD" {
					slug, instance := a.problem(t)
					if slug != tt.want || instance != "urn:strongroom:request:"+requestID {
						t.Errorf("problem %s of %s", slug, instance)
					}
				} else if tt.want != "" && a.body != tt.want {
					t.Errorf("body %q", a.body)
				}
				want := map[string]string{"Server": "", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
					"Content-Security-Policy": defaultHeaders["Content-Security-Policy"], "Cross-Origin-Resource-Policy": "same-origin",
					"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "X-Frame-Options": "DENY",
					"Strict-Transport-Security": ""}
				for name, value := range tt.header {
					want[name] = value
				}
				for name, value := range want {
					if got := a.header.Get(name); got != value {
						t.Errorf("header %s: %q", name, got)
					}
				}
				for _, never := range []string{"db-7", "row 7", "goroutine", "+447700900123"} {
					if strings.Contains(a.body, never) {
						t.Errorf("the answer holds %q", never)
					}
				}
				var line string
				await(t, "the request is logged", func() bool {
					for _, line = range strings.Split(h.log.String()[before:], "\n") {
						if strings.Contains(line, requestID) {
							return true
						}
					}
					return false
				})
				for _, part := range []string{`"listener":"app"`, fmt.Sprintf(`"status":%d`, tt.status), fmt.Sprintf(`"route":%q`, tt.route), `"network":"127.0.0.0/24"`} {
					if !strings.Contains(line, part) {
						t.Errorf("the log says %s, without %s", line, part)
					}
				}
				if tt.want == "internal" != strings.Contains(line, `"level":"ERROR"`) && tt.want != "timeout" {
					t.Errorf("level of %s", line)
				}
				switch tt.name {
				case "error":
					if !strings.Contains(line, "host db-7 says no") {
						t.Errorf("the log does not tell the cause: %s", line)
					}
				case "panic of the runtime":
					if !strings.Contains(line, "index out of range") || !strings.Contains(line, "middleware_test.go") {
						t.Errorf("the log does not tell the cause: %s", line)
					}
				}
				m := tt.method
				if !methods[m] {
					m = "other"
				}
				if h.count("strongroom_http_requests_total", "listener=app", "route="+tt.route, "method="+m, fmt.Sprintf("code=%d", tt.status)) == 0 {
					t.Error("the request is not counted")
				}
			})
		}
	}
	for _, never := range []string{"hush", "+447700900123", "127.0.0.1", "nowhere"} {
		for _, line := range strings.Split(h.log.String(), "\n") {
			if strings.Contains(line, never) && !strings.Contains(line, `"msg":"listening"`) {
				t.Errorf("the log holds %q: %s", never, line)
			}
		}
	}
	if h.count("strongroom_http_panics_total", "listener=app") == 0 {
		t.Error("panics are not counted")
	}
	if got := h.count("strongroom_http_in_flight", "listener=app"); got != 0 {
		t.Errorf("%v requests are in flight", got)
	}
}

// net/http would answer these itself.
func TestRawRequests(t *testing.T) {
	h := open(t, Listener{Handler: things(nil)})
	config := h.tls()
	config.NextProtos = []string{"http/1.1"}
	for raw, want := range map[string]string{
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":                               "HTTP/1.1 400",
		"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\nConnection: close\r\n\r\n": "HTTP/1.1 405",
		"GET / HTTP/1.1\r\n\r\n":                       "HTTP/1.1 400",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n": "HTTP/1.1 400",
		"GET / HTTP/9.9\r\nHost: a\r\n\r\n":            "HTTP/1.1 505",
		"POST /v1/things HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab": "HTTP/1.1 400",
		"POST /v1/things HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n":                  "HTTP/1.1 501",
		"GET / HTTP/1.1\r\nHost: a\r\n Folded: x\r\n\r\n":                                         "HTTP/1.1 400",
		"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n":                                                   "HTTP/1.1 400",
		"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n":                                                    "HTTP/1.1 400",
		"\r\n\r\n":                                                                                "HTTP/1.1 400",
		"POST /v1/things HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n\r\n": "HTTP/1.1 413",
	} {
		c := h.dial(config)
		io.WriteString(c, raw)
		if got := string(ended(t, c)); !strings.HasPrefix(got, want) || strings.Contains(got, "Server:") {
			t.Errorf("%q is answered with %q", raw, got)
		}
	}
}

func TestHosts(t *testing.T) {
	h := open(t, Listener{Handler: things(nil), Hosts: []string{"API.example", "127.0.0.1"}})
	for host, status := range map[string]int{"api.example": 200, "api.example:8443": 200, "Api.Example.": 200, "127.0.0.1:1": 200,
		"evil.example": 421, "api.example.evil": 421, "localhost": 421} {
		req := request(t, "GET", h.URL("app")+"/page", "")
		req.Host = host
		if a := do(t, h.client(nil), req); a.status != status {
			t.Errorf("host %s: %d", host, a.status)
		}
	}
	// The handshake was for localhost, the request is for another.
	h = open(t, Listener{Handler: things(nil)})
	c := h.client(func(tr *http.Transport) { tr.TLSClientConfig.ServerName = "localhost" })
	for host, status := range map[string]int{"localhost": 200, "LOCALHOST:7": 200, "evil.example": 421} {
		req := request(t, "GET", h.URL("app")+"/page", "")
		req.Host = host
		if a := do(t, c, req); a.status != status {
			t.Errorf("host %s after a handshake for localhost: %d", host, a.status)
		}
	}
	// A page that rebinds its name to 127.0.0.1 must not read health and metrics.
	ops := unbuilt(t).build(Options{}, Listener{Name: "ops", Mode: Plain, Handler: things(nil)})
	for host, status := range map[string]int{"localhost:8446": 200, "127.0.0.1": 200, "[::1]:8446": 200, "evil.example": 421, "10.0.0.1": 421, "": 400} {
		req := request(t, "GET", ops.URL("ops")+"/page", "")
		req.Host = host
		if host == "" {
			continue
		}
		a := do(t, http.DefaultClient, req)
		if a.status != status || a.header.Get("Strict-Transport-Security") != "" {
			t.Errorf("host %s on ops: %d", host, a.status)
		}
	}
}

func TestProxies(t *testing.T) {
	var by actor.Actor
	saw := func(r *http.Request) { by = actor.From(r.Context()) }
	for _, tt := range []struct {
		name     string
		listener Listener
		header   map[string]string
		status   int
		address  string
		request  string
	}{
		{name: "no proxy is trusted", header: map[string]string{"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "mine"}, status: 200, address: "127.0.0.1"},
		{name: "trusted", listener: Listener{Everyone: true, TrustedProxies: prefixes("127.0.0.0/8")},
			header: map[string]string{"X-Forwarded-For": "10.9.9.9, 203.0.113.9", "X-Request-Id": "trace-1.A_b"}, status: 200, address: "203.0.113.9", request: "trace-1.A_b"},
		{name: "trusted, with a broken id", listener: Listener{Everyone: true, TrustedProxies: prefixes("127.0.0.0/8")},
			header: map[string]string{"X-Request-Id": "a b"}, status: 200, address: "127.0.0.1"},
		{name: "for whom it may not speak", listener: Listener{Allow: prefixes("10.0.0.0/8"), TrustedProxies: prefixes("127.0.0.0/8")},
			header: map[string]string{"X-Forwarded-For": "203.0.113.9"}, status: 403},
		{name: "for whom it may speak", listener: Listener{Allow: prefixes("10.0.0.0/8"), TrustedProxies: prefixes("127.0.0.0/8")},
			header: map[string]string{"X-Forwarded-For": "203.0.113.9, 10.0.0.7"}, status: 200, address: "10.0.0.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			by = actor.Actor{}
			tt.listener.Handler = things(saw)
			h := open(t, tt.listener)
			req := request(t, "GET", h.URL("app")+"/v1/things/1", "")
			for name, value := range tt.header {
				req.Header.Set(name, value)
			}
			a := do(t, h.client(nil), req)
			if a.status != tt.status {
				t.Fatalf("%d %s", a.status, a.body)
			}
			if tt.status != 200 {
				if by.Kind != "" {
					t.Error("the handler ran")
				}
				return
			}
			if by.Kind != actor.Anonymous || by.Address.String() != tt.address || by.Request != a.header.Get("X-Request-Id") {
				t.Errorf("actor %+v", by)
			}
			if tt.request != "" && by.Request != tt.request || tt.request == "" && !id.Valid("req", by.Request) {
				t.Errorf("request id %s", by.Request)
			}
		})
	}
}

func TestRateLimit(t *testing.T) {
	clk := clock.NewManual(time.Now())
	h := unbuilt(t)
	h.build(Options{Clock: clk}, Listener{Name: "app", Everyone: true, TrustedProxies: prefixes("127.0.0.0/8"), Limits: Limits{RequestsPerSecond: 0.5, Burst: 3}})
	ask := func(from string) answer {
		req := request(t, "GET", h.URL("app"), "")
		req.Header.Set("X-Forwarded-For", from)
		return do(t, h.client(nil), req)
	}
	for range 3 {
		if a := ask("203.0.113.9"); a.status != 200 {
			t.Fatal(a)
		}
	}
	a := ask("203.0.113.9")
	if slug, _ := a.problem(t); a.status != 429 || slug != "too-many-requests" || a.header.Get("Retry-After") != "2" {
		t.Errorf("%v", a)
	}
	if a := ask("203.0.113.10"); a.status != 200 {
		t.Errorf("another address: %v", a)
	}
	for i := range 4 {
		if a := ask(fmt.Sprintf("2001:db8::%d", i)); (a.status == 200) != (i < 3) {
			t.Errorf("request %d of a /64: %v", i, a)
		}
	}
	clk.Advance(2 * time.Second)
	if a := ask("203.0.113.9"); a.status != 200 {
		t.Errorf("after the wait that was asked for: %v", a)
	}
	if a := ask("203.0.113.9"); a.status != 429 {
		t.Errorf("refused requests paid for this one: %v", a)
	}
}

// The ring and the map of a shard must agree, whatever comes in whatever order.
func TestBucketsAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBuckets(1, 1)
		for i := range b.shards {
			b.shards[i].max = 4
		}
		now := time.Unix(1e9, 0)
		var lately []netip.Addr
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 200), 1, 400).Draw(t, "sources") {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})
			b.take(a, now)
			lately = append(lately, a)
		}
		if b.take(lately[len(lately)-1], now) == 0 {
			t.Fatal("the source that was seen last is forgotten")
		}
		for i := range b.shards {
			s := &b.shards[i]
			ring := 0
			for k := s.newest; k != nil; k = k.next {
				if s.of[k.source] != k || k.next.prev != k {
					t.Fatal("the ring is broken")
				}
				if ring++; k.next == s.newest {
					break
				}
			}
			if ring != len(s.of) || ring > 4 {
				t.Fatalf("%d in the ring, %d in the map", ring, len(s.of))
			}
		}
	})
	var none *buckets
	if none.take(netip.MustParseAddr("10.0.0.1"), time.Now()) != 0 {
		t.Error("no limit is a limit")
	}
}

func TestRequestsAtOnce(t *testing.T) {
	begun, goOn := make(chan bool), make(chan bool)
	h := open(t, Listener{Limits: Limits{Requests: 2}, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		begun <- true
		<-goOn
	})})
	c := h.client(nil)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if a := get(t, c, h.URL("app")); a.status != 200 {
				t.Error(a)
			}
		})
		<-begun
	}
	a := get(t, c, h.URL("app"))
	if slug, _ := a.problem(t); a.status != 503 || slug != "server-busy" || a.header.Get("Retry-After") != "1" {
		t.Errorf("%v", a)
	}
	close(goOn)
	wg.Wait()
	go func() { <-begun }()
	if a := get(t, c, h.URL("app")); a.status != 200 {
		t.Errorf("afterwards: %v", a)
	}
}

func TestListenerHeaders(t *testing.T) {
	h := open(t, Listener{Headers: map[string]string{"content-security-policy": "default-src 'self'", "X-Frame-Options": "", "Permissions-Policy": "camera=()"},
		ContentTypes: []string{"application/json", "application/x-www-form-urlencoded"}})
	req := request(t, "POST", h.URL("app"), "a=b")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	a := do(t, h.client(nil), req)
	for name, want := range map[string]string{"Content-Security-Policy": "default-src 'self'", "X-Frame-Options": "", "Permissions-Policy": "camera=()"} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if a.status != 200 {
		t.Errorf("a form: %v", a)
	}
	req = request(t, "POST", h.URL("app"), "<a/>")
	req.Header.Set("Content-Type", "text/xml")
	if a := do(t, h.client(nil), req); a.status != 415 {
		t.Errorf("XML: %v", a)
	}
}

// Outside of a server, as in the tests of others, problems are answered all the same.
func TestWriteProblemAlone(t *testing.T) {
	w := httptest.NewRecorder()
	WriteProblem(w, httptest.NewRequest("GET", "/", nil), problem.New(problem.Gone, "gone", "").With("bad", func() {}))
	if w.Code != 500 || !strings.Contains(w.Body.String(), "problem:internal") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p := Classify(ctx, fmt.Errorf("reading: %w", context.Canceled)); p.Slug() != "cancelled" {
		t.Errorf("a cancelled request is %s", p.Slug())
	}
}

func TestServiceName(t *testing.T) {
	uri := func(s string) []*url.URL { u, _ := url.Parse(s); return []*url.URL{u} }
	for _, tt := range []struct {
		name string
		cert x509.Certificate
		want string
	}{
		{"SPIFFE", x509.Certificate{URIs: uri("spiffe://bank.example/ns/pay/sa/ledger"), DNSNames: []string{"x"}}, "spiffe://bank.example/ns/pay/sa/ledger"},
		{"DNS", x509.Certificate{DNSNames: []string{"ledger.internal"}}, "ledger.internal"},
		{"common name alone", x509.Certificate{}, ""},
		{"DNS name that claims a SPIFFE ID", x509.Certificate{DNSNames: []string{"spiffe://prod/billing"}}, ""},
		{"two URIs", x509.Certificate{URIs: append(uri("spiffe://a/b"), uri("spiffe://a/c")...)}, ""},
		{"other URI", x509.Certificate{URIs: uri("https://bank.example/ledger"), DNSNames: []string{"x"}}, ""},
		{"no trust domain", x509.Certificate{URIs: uri("spiffe:///ledger")}, ""},
		{"two names", x509.Certificate{DNSNames: []string{"a", "b"}}, ""},
		{"wildcard", x509.Certificate{DNSNames: []string{"*.internal"}}, ""},
		{"address", x509.Certificate{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}, ""},
		{"person", x509.Certificate{EmailAddresses: []string{"ada@bank.example"}}, ""},
		{"odd bytes", x509.Certificate{DNSNames: []string{"a b"}}, ""},
		{"line end", x509.Certificate{DNSNames: []string{"a\nb"}}, ""},
		{"long", x509.Certificate{DNSNames: []string{strings.Repeat("a", 256)}}, ""},
	} {
		tt.cert.Subject.CommonName = "ledger"
		got, err := ServiceName(&tt.cert)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
}

// TestOneSourceCannotTakeAllRequests: a client that keeps its requests busy meets its own bound, and
// others go on.
func TestOneSourceCannotTakeAllRequests(t *testing.T) {
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	release, entered := make(chan struct{}), make(chan struct{}, 8)
	l := Listener{Name: "app", Limits: Limits{RequestsPerAddress: 4, Requests: 6}.withDefaults(Public), Everyone: true}
	l.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { entered <- struct{}{}; <-release })
	d := newDoor(l, Options{Log: slogJSON(io.Discard), Clock: clock.System}, m)
	d.next = l.Handler
	ask := func(from string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "https://localhost/", nil)
		r.TLS, r.RemoteAddr = nil, from+":4711"
		w := httptest.NewRecorder()
		d.ServeHTTP(w, r)
		return w
	}
	var busy sync.WaitGroup
	for range 4 {
		busy.Go(func() { ask("192.0.2.1") })
		<-entered
	}
	if w := ask("192.0.2.1"); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("the fifth at once: %d", w.Code)
	}
	busy.Go(func() {
		if w := ask("192.0.2.9"); w.Code != http.StatusOK {
			t.Errorf("somebody else: %d", w.Code)
		}
	})
	<-entered
	close(release)
	busy.Wait()
	if w := ask("192.0.2.1"); w.Code != http.StatusOK {
		t.Errorf("after they were answered: %d", w.Code)
	}
	if len(d.busy.of) != 0 {
		t.Errorf("%d sources are remembered", len(d.busy.of))
	}
}

func TestTruncate(t *testing.T) {
	for in, want := range map[string]string{"203.0.113.9": "203.0.113.0/24", "2001:db8:1:2::3": "2001:db8:1::/48", "::ffff:203.0.113.9": "203.0.113.0/24", "fe80::1%eth0": "fe80::/48"} {
		if got := Truncate(netip.MustParseAddr(in)); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
	if got := Truncate(netip.Addr{}); got != "" {
		t.Errorf("no address: %q", got)
	}
}

func TestErrorLog(t *testing.T) {
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := &lockedBuffer{}
	l := errorLog(slogJSON(h), "app", m)
	var _ *log.Logger = l
	l.Printf("http: TLS handshake error from %s: read tcp %s->%s: i/o timeout", "203.0.113.9:4711", "192.0.2.1:443", "203.0.113.9:4711")
	l.Printf("http2: server: error reading preface from client [2001:db8::7]:99: EOF")
	for _, never := range []string{"203.0.113.9", "4711", "2001:db8::7", "192.0.2.1"} {
		if strings.Contains(h.String(), never) {
			t.Errorf("the log holds %s: %s", never, h.String())
		}
	}
	for _, want := range []string{"i/o timeout", "203.0.113.0/24", "2001:db8::/48", `"level":"DEBUG"`, `"level":"WARN"`} {
		if !strings.Contains(h.String(), want) {
			t.Errorf("the log lacks %s: %s", want, h.String())
		}
	}
}

func FuzzClientAddress(f *testing.F) {
	for _, s := range []string{"", "203.0.113.9", "10.0.0.1, 203.0.113.9", "a, 10.0.0.2", "[2001:db8::1]:443, 10.0.0.1", "203.0.113.9:80", "[::1]", "::ffff:10.0.0.1",
		"fe80::1%eth0", ",,,", " , ", "10.0.0.1," + strings.Repeat("10.0.0.1,", 40), "unknown", "_hidden", "1.2.3.4\n5.6.7.8"} {
		f.Add(s, "10.0.0.9", s)
	}
	trusted := prefixes("10.0.0.0/8", "2001:db8::/32")
	f.Fuzz(func(t *testing.T, first, peer, last string) {
		p, err := netip.ParseAddr(peer)
		if err != nil {
			p = netip.MustParseAddr("10.0.0.9")
		}
		p = plainAddr(p)
		h := http.Header{"X-Forwarded-For": {first, last}}
		got := clientAddress(p, trusted, h)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("address %v", got)
		}
		if !contains(trusted, p) && got != p {
			t.Fatalf("%v speaks for %v", p, got)
		}
		// The walk is the same as over one line that holds both.
		if one := clientAddress(p, trusted, http.Header{"X-Forwarded-For": {first + "," + last}}); one != got {
			t.Fatalf("%v over two lines, %v over one", got, one)
		}
		// Nothing that a client adds on the left changes what an untrusted entry on the right says.
		if !contains(trusted, got) {
			if more := clientAddress(p, trusted, http.Header{"X-Forwarded-For": {"198.51.100.1, 10.1.1.1", first, last}}); more != got {
				t.Fatalf("%v with entries on the left, %v without", more, got)
			}
		}
		Truncate(got)
		source(got)
	})
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"localhost:8446", "[::1]:1", "[::1", "a:b:c", "", ".", ":", "127.0.0.1", "LOCALHOST.", "req_1", "a b", "http: x 1.2.3.4:5: EOF", "1.2.3.4:5->6.7.8.9:10:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name := hostName(s)
		if isLoopbackName(name) && !strings.Contains(name, "localhost") {
			if a, err := netip.ParseAddr(name); err != nil || !a.Unmap().IsLoopback() {
				t.Fatalf("%q is taken for loopback", s)
			}
		}
		if validRequestID(s) && (len(s) > 64 || strings.ContainsAny(s, " \r\n\"'<>%")) {
			t.Fatalf("%q is taken for a request id", s)
		}
		if got := cutAddresses(s); strings.Count(got, " ") != strings.Count(s, " ") {
			t.Fatalf("%q became %q", s, got)
		}
		handshakeReason(s)
		d := &door{Listener: Listener{ContentTypes: []string{"application/json"}}}
		if takes(d.ContentTypes, []string{s}) && !strings.Contains(strings.ToLower(s), "application/json") {
			t.Fatalf("content type %q is taken", s)
		}
		if name, err := ServiceName(&x509.Certificate{DNSNames: []string{s}}); err == nil && name != s {
			t.Fatalf("%q became the service %q", s, name)
		}
	})
}

func FuzzPEM(f *testing.F) {
	dir := f.TempDir()
	if _, err := DevCA(dir, nil); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\n-----END EC PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN X-----\n-----END X-----\n-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := parseKey(data)
		if err == nil && key == nil {
			t.Fatal("neither key nor error")
		}
		if err == nil && !bytes.Contains(data, []byte("KEY")) {
			t.Fatal("a key out of nothing")
		}
	})
}
