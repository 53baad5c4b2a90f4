package edge

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

var benchBody = []byte(strings.Repeat("x", 300))

func benchHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/things/{thing}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(benchBody)
	})
	return mux
}

// BenchmarkRequest compares a bare TLS handler with the same one behind the door, over connections
// that are kept open, with the log written as JSON to nowhere. One operation is one request, client included.
func BenchmarkRequest(b *testing.B) {
	run := func(b *testing.B, c *http.Client, url string) {
		b.ReportAllocs()
		for b.Loop() {
			resp, err := c.Get(url)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				b.Fatal(err)
			}
			resp.Body.Close()
		}
	}
	h := unbuilt(b)
	h.build(Options{Log: slog.New(slog.NewJSONHandler(io.Discard, nil))}, Listener{Name: "app", Handler: benchHandler(), Limits: Limits{RequestsPerSecond: 1e9, Burst: 1e9}})
	for _, http2 := range []bool{false, true} {
		version := map[bool]string{false: "HTTP1", true: "HTTP2"}[http2]
		bare := httptest.NewUnstartedServer(benchHandler())
		bare.EnableHTTP2 = http2
		bare.TLS = &tls.Config{Certificates: []tls.Certificate{h.certs.current.Load().pair}}
		bare.StartTLS()
		b.Cleanup(bare.Close)
		client := h.client(func(tr *http.Transport) { tr.ForceAttemptHTTP2 = http2 })
		b.Run(version+"/bare", func(b *testing.B) { run(b, client, bare.URL+"/v1/things/1") })
		b.Run(version+"/door", func(b *testing.B) { run(b, client, h.URL("app")+"/v1/things/1") })
	}
}

type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}

// BenchmarkDoor is what the door itself costs: the handler alone, and behind it, without a network.
func BenchmarkDoor(b *testing.B) {
	m, err := newMetrics(nil)
	if err != nil {
		b.Fatal(err)
	}
	s, err := New(Options{Log: slog.New(slog.NewJSONHandler(io.Discard, nil))}, Listener{Name: "ops", Mode: Plain, Handler: benchHandler()})
	if err != nil {
		b.Fatal(err)
	}
	l := s.find("ops").Listener
	l.Mode, l.Limits.RequestsPerSecond, l.Limits.Burst = Public, 1e9, 1e9
	d := newDoor(l, s.options, m)
	d.next = l.Handler
	for name, handler := range map[string]http.Handler{"bare": l.Handler, "door": d} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequestWithContext(context.Background(), "GET", "/v1/things/1", nil)
				handler.ServeHTTP(&nowhere{make(http.Header)}, r)
			}
		})
	}
}
