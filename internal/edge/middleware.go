package edge

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

// methods are those that a handler may ever see. TRACE would echo headers, CONNECT would tunnel.
var methods = map[string]bool{
	http.MethodGet: true, http.MethodHead: true, http.MethodOptions: true, http.MethodPost: true,
	http.MethodPut: true, http.MethodPatch: true, http.MethodDelete: true,
}

const allowHeader = "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"

// defaultHeaders are right for an API: nothing may be cached, framed, sniffed, run or referred to. Pages
// loosen what they need by Listener.Headers or in their handler. (ASVS 5.0 chapters 3.4 and 14.3.)
var defaultHeaders = map[string]string{
	"Cache-Control":                "no-store",
	"Content-Security-Policy":      "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	"Cross-Origin-Embedder-Policy": "require-corp",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Referrer-Policy":              "no-referrer",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
}

var hsts = []string{"max-age=63072000; includeSubDomains"}

// door is what every request of one listener passes before its handler.
type door struct {
	Listener
	next      http.Handler
	log       *slog.Logger
	clock     clock.Clock
	metrics   *metrics
	inFlight  prometheus.Gauge
	headers   map[string][]string
	buckets   *buckets
	handling  atomic.Int64
	busy      busy
	draining  atomic.Bool
	loopHosts bool
}

func newDoor(l Listener, o Options, m *metrics) *door {
	d := &door{
		Listener: l, log: o.Log, clock: o.Clock, metrics: m, inFlight: m.inFlight.WithLabelValues(l.Name),
		headers: make(map[string][]string), buckets: newBuckets(l.Limits.RequestsPerSecond, l.Limits.Burst),
		busy:      busy{of: make(map[netip.Addr]int)},
		loopHosts: l.Mode == Plain && len(l.Hosts) == 0,
	}
	for name, value := range defaultHeaders {
		d.headers[name] = []string{value}
	}
	for name, value := range l.Headers {
		if name = http.CanonicalHeaderKey(name); value == "" {
			delete(d.headers, name)
		} else {
			d.headers[name] = []string{value}
		}
	}
	if len(d.ContentTypes) == 0 {
		d.ContentTypes = []string{"application/json"}
	}
	d.Hosts = slices.Clone(d.Hosts)
	for i, host := range d.Hosts {
		d.Hosts[i] = hostName(host)
	}
	return d
}

// exchange is one request and what is known of its answer. It is the http.ResponseWriter that handlers
// see, and the one place that Classify leaves a problem for the log.
type exchange struct {
	http.ResponseWriter
	door    *door
	request *http.Request
	by      actor.Actor
	peer    netip.Addr
	host    string // without port, in lower case
	start   time.Time
	status  int
	bytes   int64
	discard bool // the mux's own text is replaced by a problem
	problem *problem.Problem
}

type exchangeKey struct{}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, door: d, start: time.Now(), host: hostName(r.Host)}
	d.inFlight.Inc()
	x.identify(r)
	x.request = r.WithContext(context.WithValue(actor.With(r.Context(), x.by), exchangeKey{}, x))
	defer x.finish()
	h := w.Header()
	for name, value := range d.headers {
		h[name] = value
	}
	// A browser would apply it to every port of localhost, and lose the plain one.
	if d.Mode != Plain && !isLoopbackName(x.host) {
		h["Strict-Transport-Security"] = hsts
	}
	h["X-Request-Id"] = []string{x.by.Request}
	if d.draining.Load() {
		h["Connection"] = []string{"close"} // HTTP/2 turns it into GOAWAY
	}
	n := d.handling.Add(1)
	defer d.handling.Add(-1)
	mine, leave := d.busy.enter(x.by.Address)
	defer leave()
	if err := x.admit(n, mine); err != nil {
		WriteProblem(x, x.request, err)
		return
	}
	d.next.ServeHTTP(x, x.request)
}

// identify says who asks, as far as the door can know.
func (x *exchange) identify(r *http.Request) {
	d := x.door
	c, _ := r.Context().Value(connKey{}).(*conn)
	if c != nil {
		x.peer = c.peer
	} else if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		x.peer = plainAddr(ap.Addr())
	}
	x.by = actor.Actor{Kind: actor.Anonymous, Address: clientAddress(x.peer, d.TrustedProxies, r.Header)}
	// An id that a client could choose could be chosen twice, and two deeds would share their trace.
	if given := r.Header.Get("X-Request-Id"); given != "" && contains(d.TrustedProxies, x.peer) && validRequestID(given) {
		x.by.Request = given
	} else {
		x.by.Request = id.New("req")
	}
	if d.Mode == Mutual && c != nil {
		c.identify.Do(func() { c.service, c.key = identity(r.TLS) })
		if c.service != "" {
			x.by.Kind, x.by.ID, x.by.Key = actor.Service, c.service, c.key
		}
	}
}

// identity reads the client certificate of a handshake that Certificates.Config let pass.
func identity(state *tls.ConnectionState) (service, key string) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return "", ""
	}
	service, err := ServiceName(state.PeerCertificates[0])
	if err != nil {
		return "", ""
	}
	return service, thumbprint(state.PeerCertificates[0])
}

func validRequestID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// admit says why the request must not reach its handler; cheap questions come first.
func (x *exchange) admit(handling int64, ofSource int) error {
	d, r := x.door, x.request
	if d.Mode == Mutual && x.by.Kind != actor.Service {
		return problem.New(problem.Unauthenticated, "no-certificate", "This listener needs a client certificate that names a service.")
	}
	if !methods[r.Method] {
		return problem.New(problem.MethodNotAllowed, "method-not-allowed", "This method is never allowed.").WithHeader("Allow", allowHeader)
	}
	trusted := contains(d.TrustedProxies, x.peer)
	if x.misdirected(trusted) {
		return problem.New(problem.Kind(http.StatusMisdirectedRequest), "misdirected-request", "This server does not answer for the host that was asked for.")
	}
	if trusted && x.by.Address != x.peer && !allowed(x.by.Address, d.Everyone, d.Allow) {
		return problem.New(problem.Forbidden, "address-not-allowed", "This address may not connect here.")
	}
	if wait := d.buckets.take(x.by.Address, d.clock.Now()); wait > 0 {
		return problem.New(problem.TooMany, "too-many-requests", "Too many requests from this address. Wait and try again.").
			RetryAfter(max(wait, time.Second))
	}
	// A client that never reads its answers keeps their handlers busy. Its own bound comes before the
	// one that all share.
	if limit := d.Limits.RequestsPerAddress; limit >= 0 && ofSource > limit {
		return problem.New(problem.TooMany, "too-many-requests", "Too many requests at once from this address. Read the answers and try again.").
			RetryAfter(time.Second)
	}
	if limit := d.Limits.Requests; limit >= 0 && handling > int64(limit) {
		return problem.New(problem.Unavailable, "server-busy", "The server is busy. Wait and try again.").RetryAfter(time.Second)
	}
	return x.admitBody()
}

// misdirected reports a Host that this listener does not serve, or another one than the TLS handshake
// was for: a certificate for several names must not carry a request past what was decided for one
// (RFC 9110 section 7.4). Proxies handshake with a name of their own.
func (x *exchange) misdirected(trusted bool) bool {
	d, state := x.door, x.request.TLS
	switch {
	case d.loopHosts:
		return !isLoopbackName(x.host)
	case len(d.Hosts) > 0 && !slices.Contains(d.Hosts, x.host):
		return true
	}
	return !trusted && state != nil && state.ServerName != "" && !strings.EqualFold(strings.TrimSuffix(state.ServerName, "."), x.host)
}

func (x *exchange) admitBody() error {
	d, r := x.door, x.request
	if r.ContentLength == 0 { // -1 when it is not known; HTTP/2 has a Body even for none
		return nil
	}
	limit, types := d.body(r)
	if limit >= 0 {
		if r.ContentLength > limit {
			x.Header()["Connection"] = []string{"close"} // rather than read what nobody wants
			return tooLarge
		}
		r.Body = http.MaxBytesReader(x.ResponseWriter, r.Body, limit)
	}
	// A compressed body could unpack to any size.
	if r.Header.Get("Content-Encoding") != "" || !takes(types, r.Header["Content-Type"]) {
		slug, what := "not-json", "application/json"
		if len(types) != 1 || types[0] != "application/json" {
			slug, what = "unsupported-media-type", strings.Join(types, " or ")
		}
		return problem.New(problem.UnsupportedMedia, slug, "Send the body as %s, in UTF-8 and without Content-Encoding.", what)
	}
	return nil
}

// body returns how many bytes of which types the request's body may have. The path is the one that the
// mux will route by: whoever writes it differently gets the stricter rule.
func (d *door) body(r *http.Request) (limit int64, types []string) {
	for _, b := range d.Bodies {
		if r.Method == b.Method && strings.HasPrefix(r.URL.Path, b.Prefix) && path.Clean(r.URL.Path) == r.URL.Path {
			return b.Limit, b.ContentTypes
		}
	}
	return d.Limits.Body, d.ContentTypes
}

// takes reports whether a body with this Content-Type is among the types.
func takes(types, header []string) bool {
	if len(header) != 1 {
		return false
	}
	if slices.Contains(types, header[0]) {
		return true
	}
	kind, params, err := mime.ParseMediaType(header[0])
	if err != nil || !slices.Contains(types, kind) {
		return false
	}
	charset, ok := params["charset"]
	return !ok || strings.EqualFold(charset, "utf-8")
}

// finish is deferred around every handler: it answers for one that panicked, counts and logs.
func (x *exchange) finish() {
	d := x.door
	d.inFlight.Dec()
	if v := recover(); v != nil {
		aborted := v == http.ErrAbortHandler
		if !aborted {
			d.metrics.panics.WithLabelValues(d.Name).Inc()
			// The value of a panic may hold anything, a customer's data too; those of the Go runtime
			// hold only types and numbers.
			text := fmt.Sprintf("panic of type %T", v)
			if e, ok := v.(runtime.Error); ok {
				text = "panic: " + e.Error()
			}
			x.problem = problem.New(problem.Internal, "internal", "").Because(fmt.Errorf("%s\n%s", text, debug.Stack()))
		}
		if aborted || x.status != 0 {
			// Half an answer may be out: break the connection, so that it is not taken for a whole.
			defer panic(http.ErrAbortHandler)
			if !aborted {
				x.status = http.StatusInternalServerError
			}
		} else {
			WriteProblem(x, x.request, x.problem.Unwrap())
		}
	}
	if x.status == 0 {
		x.status = http.StatusOK // net/http answers so when the handler wrote nothing
	}
	route := "unmatched"
	if x.request.Pattern != "" {
		route = x.request.Pattern
		if _, path, ok := strings.Cut(route, " "); ok {
			route = path
		}
	}
	took := time.Since(x.start)
	method := methodLabel(x.request.Method)
	d.metrics.requests.WithLabelValues(d.Name, route, method, statusText(x.status)).Inc()
	d.metrics.seconds.WithLabelValues(d.Name, route).Observe(took.Seconds())

	level := slog.LevelInfo
	switch {
	case x.problem != nil && x.problem.Kind() >= problem.Internal && x.problem.Slug() != "cancelled", x.status == http.StatusInternalServerError:
		level = slog.LevelError
	case d.Mode == Plain:
		level = slog.LevelDebug // probes and scrapes, every few seconds
	}
	ctx := x.request.Context()
	if !d.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 11)
	attrs = append(attrs,
		slog.String("listener", d.Name),
		slog.String("method", method),
		slog.String("route", route),
		slog.Int("status", x.status),
		slog.Int64("microseconds", took.Microseconds()),
		slog.Int64("bytes", x.bytes),
		slog.String("request", x.by.Request),
		slog.String("network", Truncate(x.by.Address)),
	)
	if p := x.problem; p != nil {
		attrs = append(attrs, slog.String("problem", p.Slug()))
		if cause := p.Unwrap(); cause != nil && level == slog.LevelError {
			attrs = append(attrs, slog.String("error", cause.Error()))
		}
	}
	d.log.LogAttrs(ctx, level, "request", attrs...)
}

// statusText is strconv.Itoa without an allocation for what is common.
func statusText(status int) string {
	switch status {
	case http.StatusOK:
		return "200"
	case http.StatusNoContent:
		return "204"
	}
	return strconv.Itoa(status)
}

// WriteHeader also turns the plain-text 404 and 405 of an http.ServeMux into problems. They are known by the
// route: the mux names one on the request before it calls any handler but its own.
func (x *exchange) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols || x.status != 0 {
		x.ResponseWriter.WriteHeader(status)
		return
	}
	if x.request.Pattern == "" && (status == http.StatusNotFound || status == http.StatusMethodNotAllowed) &&
		strings.HasPrefix(x.Header().Get("Content-Type"), "text/plain") {
		p := problem.New(problem.NotFound, "not-found", "There is nothing here.")
		if status == http.StatusMethodNotAllowed {
			p = problem.New(problem.MethodNotAllowed, "method-not-allowed", "This resource takes only: %s.", x.Header().Get("Allow"))
		}
		WriteProblem(x, x.request, p)
		x.discard = true
		return
	}
	x.status = status
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(b []byte) (int, error) {
	if x.discard {
		return len(b), nil
	}
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.ResponseWriter.Write(b)
	x.bytes += int64(n)
	return n, err
}

// Flush implements http.Flusher.
func (x *exchange) Flush() {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	_ = http.NewResponseController(x.ResponseWriter).Flush() // nothing to flush to is fine
}

// Unwrap lets http.ResponseController find what net/http gave us.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }
