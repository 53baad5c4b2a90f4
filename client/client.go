// Package client is the Go SDK for apps that keep their customers in Strongroom.
//
// A Client is one customer's app on one device. It promises that
//
//   - nothing is sent to a server whose certificate does not both verify and match a pin;
//   - every request is proven by the device's key (DPoP, RFC 9449), so a stolen token is worthless
//     without the device, and a recorded request is worthless altogether;
//   - an access token that has expired is refreshed once, however many goroutines notice;
//   - a request is sent again only when that cannot do a thing twice: reads, and requests that the
//     server certainly did not process;
//   - no error and no log line holds a token, a code, a phone number or a record.
//
// A new customer registers, and then logs in, which takes three factors: the private code that they
// chose, a one-time code that comes by SMS, and the device's key.
//
//	c, err := client.New(client.Options{BaseURL: "https://api.example.com", Pins: pins, Key: key, Store: store})
//	registration, err := c.Register(ctx, "+447700900123")
//	customer, err := registration.Complete(ctx, code, privateCode, "Ada's phone")
//	login, err := c.Login(ctx, "+447700900123", privateCode)
//	tokens, err := login.Complete(ctx, nextCode, "Ada's phone")
//	record, err := c.Collection("profile").Put(ctx, "main", fields)
//
// What the server refuses comes back as a *Problem, and errors.Is tells which:
//
//	if errors.Is(err, client.ErrDevicePending) { … }
package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure a Client. BaseURL, Pins and Key are needed.
type Options struct {
	// BaseURL is the origin of the app listener: https://host[:port].
	BaseURL string
	// Pins are public keys of which the server's verified certificate chain must hold at least one,
	// each in the form that Pin returns. Give the key in use and a backup that is kept offline: an
	// app whose only pin is lost cannot reach its server again.
	Pins []string
	// PinKeys are the keys that sign the server's pin set, as `strongroom pins` prints them; with them,
	// UpdatePins moves this app to new pins. None means that Pins hold for ever.
	PinKeys []string
	// PinStore keeps the newest pin set over restarts; nil keeps it in memory.
	PinStore PinStore
	// RootCAs are the authorities that the chain may end in; nil means the system's.
	RootCAs *x509.CertPool
	// Key is the device's key.
	Key DeviceKey
	// Store keeps the session over restarts; nil keeps it in memory.
	Store TokenStore
	// HTTPTimeout bounds one attempt at a request; 0 means 30 s.
	HTTPTimeout time.Duration
	// Retries is how often a request that may be sent again is; 0 means 3, negative means never.
	Retries int
	// MaxRetryWait is the longest wait that the Client takes upon itself; when a server asks for
	// more by Retry-After, the call returns the *Problem at once. 0 means 30 s.
	MaxRetryWait time.Duration
	// UserAgent is sent with every request; "" means "strongroom-go".
	UserAgent string
	// Log gets a line at debug level for every attempt; nil means none.
	Log *slog.Logger
	// Observe is called after every attempt, for metrics; nil means never. It must not block.
	Observe func(Exchange)
	// Revoked is called when the server says that this device was shut out for good (ErrThisDeviceRevoked),
	// so that the app wipes what it keeps; nil means never. It may be called more than once.
	Revoked func()
	// Dial makes the network connections; nil means a net.Dialer. TLS and pins stay in force.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Exchange is one attempt at a request, as Options.Observe sees it.
type Exchange struct {
	Method   string
	Path     string // without query
	Status   int    // 0 when there was no answer
	Duration time.Duration
	Err      error // why there was no answer
}

// Client talks to Strongroom for one customer on one device. It is safe for concurrent use.
type Client struct {
	origin    string
	pinning   *pinning
	transport *http.Transport
	revoked   func()
	http      *http.Client
	timeout   time.Duration
	retries   int
	maxWait   time.Duration
	userAgent string
	log       *slog.Logger
	observe   func(Exchange)
	prover    *prover
	store     TokenStore
	now       func() time.Time
	sleep     func(ctx context.Context, d time.Duration) error

	mu     sync.Mutex
	nonce  string        // the newest that the server gave
	skew   time.Duration // how far the server's clock is ahead of ours, when that matters
	tokens Tokens
	loaded bool    // tokens were read from the store
	flight *flight // the refresh that is under way, or nil
}

// Bounds on what is read and waited for.
const (
	defaultTimeout = 30 * time.Second
	defaultRetries = 3
	defaultMaxWait = 30 * time.Second
	firstBackoff   = 200 * time.Millisecond
	maxBackoff     = 10 * time.Second
	maxAnswer      = 4 << 20 // bytes
)

// New returns a Client. It does not connect.
func New(o Options) (*Client, error) {
	origin, err := parseOrigin(o.BaseURL)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	builtin, err := pinSet(o.Pins)
	if err != nil {
		return nil, err
	}
	if len(builtin) == 1 {
		o.Log.Warn("strongroom: there is no backup pin; if the pinned key is lost, this app is locked out")
	}
	pinning := &pinning{builtin: builtin, keys: o.PinKeys, store: o.PinStore, now: time.Now}
	transport := newTransport(o, pinning.allowed)
	prover, err := newProver(o.Key)
	if err != nil {
		return nil, err
	}
	c := &Client{
		origin:    origin,
		pinning:   pinning,
		transport: transport,
		revoked:   o.Revoked,
		http: &http.Client{
			Transport: transport,
			// A redirect would carry tokens and proofs to an address that they are not for.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		timeout:   o.HTTPTimeout,
		retries:   max(o.Retries, 0),
		maxWait:   o.MaxRetryWait,
		userAgent: o.UserAgent,
		log:       o.Log,
		observe:   o.Observe,
		prover:    prover,
		store:     o.Store,
		now:       time.Now,
		sleep:     sleep,
	}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if o.Retries == 0 {
		c.retries = defaultRetries
	}
	if c.maxWait <= 0 {
		c.maxWait = defaultMaxWait
	}
	if c.userAgent == "" {
		c.userAgent = "strongroom-go"
	}
	if c.observe == nil {
		c.observe = func(Exchange) {}
	}
	if c.store == nil {
		c.store = &memoryStore{}
	}
	return c, nil
}

// Close closes idle connections. The session stays valid; end it with Logout.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func parseOrigin(base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("strongroom: BaseURL %q is not of the form https://host[:port]", base)
	}
	return "https://" + u.Host, nil
}

// proof says how a request proves where it comes from.
type proof int

const (
	byDevice  proof = iota // by the device's key alone
	bySession              // by the device's key and the access token
	byNobody               // not at all: whoever asks stays unknown
)

// request is one operation before it is sent.
type request struct {
	method string
	path   string // escaped
	query  url.Values
	header http.Header
	body   any // JSON; nil means none
	proof  proof
	// repeatable says that doing it twice does no more than doing it once, and that the second
	// answer is as good as the first.
	repeatable bool
}

// answer is what came back, read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// failure is an attempt that brought no answer.
type failure struct {
	err  error
	sent bool // the server may have processed the request
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// call sends r, with a fresh nonce, a fresh token and again where that is right, and decodes the
// answer into out, which may be nil. Its errors are *Problem, or say that there was no answer.
func (c *Client) call(ctx context.Context, r request, out any) (answer, error) {
	a, err := c.deliver(ctx, r)
	if err == nil && out != nil {
		err = decode(a, out)
	}
	if err == nil {
		return a, nil
	}
	return answer{}, c.failed(r, err)
}

// failed returns the error of a request for its caller.
func (c *Client) failed(r request, err error) error {
	if p := (*Problem)(nil); errors.As(err, &p) {
		if p.Slug == ErrThisDeviceRevoked && c.revoked != nil {
			c.revoked()
		}
		return err
	}
	return fmt.Errorf("strongroom: %s %s: %w", r.method, r.path, err)
}

func (c *Client) deliver(ctx context.Context, r request) (answer, error) {
	var body []byte
	if r.body != nil {
		var err error
		if raw, ok := r.body.(rawBody); ok {
			body = raw
		} else if body, err = json.Marshal(r.body); err != nil {
			return answer{}, fmt.Errorf("request body: %w", err)
		}
	}
	var done remedies
	for attempt := 0; ; {
		var access Secret
		if r.proof == bySession {
			var err error
			if access, err = c.access(ctx); err != nil {
				return answer{}, err
			}
		}
		a, err := c.attempt(ctx, r, body, access)
		if err == nil {
			return a, nil
		}
		if cured, err := c.cure(ctx, access, a.header, err, &done); err != nil {
			return answer{}, err
		} else if cured {
			continue
		}
		wait, again := c.again(ctx, r, attempt, err)
		if !again {
			return answer{}, err
		}
		if err := c.sleep(ctx, wait); err != nil {
			return answer{}, err
		}
		attempt++
		done.nonce = false // it may have gone stale while we waited
	}
}

// remedies are what was done about refused proofs and tokens; each once.
type remedies struct{ nonce, token, clock bool }

// cure does what a refusal asks for, and reports whether the request may be sent again at once. The server
// has not looked at more of it than proof and token.
func (c *Client) cure(ctx context.Context, access Secret, h http.Header, refusal error, done *remedies) (bool, error) {
	switch {
	case errors.Is(refusal, ErrUseNonce) && !done.nonce:
		done.nonce = true
	case errors.Is(refusal, ErrTokenExpired) && !access.IsZero() && !done.token:
		done.token = true
		return true, c.refresh(ctx, access)
	case errors.Is(refusal, ErrInvalidProof) && !done.clock && c.setClock(h):
		done.clock = true
	default:
		return false, nil
	}
	return true, nil
}

// attempt sends r once.
func (c *Client) attempt(ctx context.Context, r request, body []byte, access Secret) (_ answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders: func() { sent.Store(true) },
	})
	req, err := http.NewRequestWithContext(ctx, r.method, c.origin+r.path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.URL.RawQuery = r.query.Encode()
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	req.Header.Set("User-Agent", c.userAgent)
	if body != nil && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if err := c.sign(req, r, access); err != nil {
		return answer{}, err
	}
	began := time.Now()
	a := answer{}
	defer func() {
		x := Exchange{Method: r.method, Path: r.path, Status: a.status, Duration: time.Since(began)}
		if a.status == 0 {
			x.Err = err
		}
		c.observe(x)
		c.log.DebugContext(ctx, "strongroom request", "method", x.Method, "path", x.Path, "status", x.Status,
			"duration", x.Duration, "error", err)
	}()
	res, err := c.http.Do(req)
	if err != nil {
		// A *url.Error would repeat the address with its query.
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return answer{}, &failure{err, sent.Load()}
	}
	defer res.Body.Close()
	c.keepNonce(res.Header)
	read, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return answer{}, &failure{fmt.Errorf("the answer broke off: %w", err), true}
	}
	if len(read) > maxAnswer {
		return answer{}, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	a = answer{res.StatusCode, res.Header, read}
	if a.status < 200 || a.status > 299 {
		return a, problemOf(a, c.now())
	}
	return a, nil
}

// sign proves a request by the device's key. A service has none: it proves itself by its certificate.
func (c *Client) sign(req *http.Request, r request, access Secret) error {
	if c.prover == nil || r.proof == byNobody {
		return nil
	}
	nonce, issued := c.proofState()
	signed, err := c.prover.prove(r.method, c.origin+r.path, nonce, access, issued)
	if err != nil {
		return err
	}
	req.Header.Set("DPoP", signed)
	if !access.IsZero() {
		req.Header.Set("Authorization", "DPoP "+access.Reveal())
	}
	return nil
}

func (c *Client) keepNonce(h http.Header) {
	if nonce := h.Get("DPoP-Nonce"); nonce != "" {
		c.mu.Lock()
		c.nonce = nonce
		c.mu.Unlock()
	}
}

// proofState returns the nonce and the time that the next proof shall carry.
func (c *Client) proofState() (nonce string, issued time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nonce, c.now().Add(c.skew)
}

// tolerance is how wrong a device's clock may be before proofs are dated by the server's.
const tolerance = 20 * time.Second

// setClock dates the next proofs by the server's clock when the device's own is wrong, as happens
// to phones; it reports whether that changed anything. The server's nonce, not the time, is what
// makes a proof fresh.
func (c *Client) setClock(h http.Header) bool {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	skew := date.Sub(c.now())
	if (skew - c.skew).Abs() < tolerance {
		return false
	}
	c.skew = skew
	return true
}

// again says whether r may be sent once more after err, and after which wait.
func (c *Client) again(ctx context.Context, r request, attempt int, err error) (time.Duration, bool) {
	if attempt >= c.retries || ctx.Err() != nil {
		return 0, false
	}
	wait := backoff(attempt)
	var p *Problem
	var f *failure
	switch {
	case errors.As(err, &p):
		switch p.Status {
		case http.StatusTooManyRequests: // refused before anything was done
		case http.StatusServiceUnavailable:
			if p.RetryAfter <= 0 && !r.repeatable {
				return 0, false
			}
		case http.StatusBadGateway, http.StatusGatewayTimeout: // a proxy's; the server may have done it
			if !r.repeatable {
				return 0, false
			}
		default:
			return 0, false
		}
		if p.RetryAfter > 0 {
			// Later, never earlier, and not all clients in the same moment.
			wait = p.RetryAfter + rand.N(p.RetryAfter/4+time.Millisecond)
		}
	case errors.As(err, &f):
		if permanent(f.err) || f.sent && !r.repeatable {
			return 0, false
		}
	default:
		return 0, false
	}
	if wait > c.maxWait {
		return 0, false
	}
	if end, ok := ctx.Deadline(); ok && c.now().Add(wait).After(end) {
		return 0, false // what we know now is worth more than a wait in vain
	}
	return wait, true
}

// backoff returns between half of and the whole of 200 ms, doubled for each attempt, 10 s at most.
func backoff(attempt int) time.Duration {
	d := min(firstBackoff<<min(attempt, 16), maxBackoff)
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// decode reads a successful answer. Members that this version does not know are ignored.
func decode(a answer, out any) error {
	if !isType(a.header, "application/json") {
		return errors.New("the answer is not application/json")
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		return errors.New("the answer is not the JSON that was expected") // err might repeat a value
	}
	return nil
}

func isType(h http.Header, want string) bool {
	got, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && got == want
}

// path joins escaped segments. A segment that a server would take for a direction is refused.
func path(segments ...string) (string, error) {
	var b strings.Builder
	b.WriteString("/v1")
	for _, s := range segments {
		if s == "" || s == "." || s == ".." {
			return "", fmt.Errorf("strongroom: %q cannot stand in an address", s)
		}
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String(), nil
}
