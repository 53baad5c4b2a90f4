package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"strongroom/client"
)

func start(t *testing.T) *fake {
	t.Helper()
	f := newFake()
	t.Cleanup(f.Close)
	return f
}

func newClient(t *testing.T, o client.Options) *client.Client {
	t.Helper()
	c, err := client.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// noWaits makes the client note its waits in place of waiting.
func noWaits(c *client.Client) *[]time.Duration {
	var mu sync.Mutex
	waits := &[]time.Duration{}
	c.SetSleep(func(ctx context.Context, d time.Duration) error {
		mu.Lock()
		defer mu.Unlock()
		*waits = append(*waits, d)
		return ctx.Err()
	})
	return waits
}

func check(t *testing.T, err error, want client.Slug) *client.Problem {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v; want %s", err, string(want))
	}
	var p *client.Problem
	if !errors.As(err, &p) {
		t.Fatalf("%v is no *Problem", err)
	}
	return p
}

func TestJourney(t *testing.T) {
	f, ctx := start(t), t.Context()
	o := f.options()
	c := newClient(t, o)
	if _, err := c.Session(ctx); !errors.Is(err, client.ErrNotLoggedIn) {
		t.Fatalf("before login: %v", err)
	}
	r, err := c.Register(ctx, phoneNumber)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Complete(ctx, smsCode, "1234", "phone")
	check(t, err, client.ErrWeakPrivateCode)
	_, err = r.Complete(ctx, "000000", privateCode, "phone")
	check(t, err, client.ErrRegistrationFailed)
	made, err := r.Complete(ctx, smsCode, privateCode, "phone")
	if err != nil || made.Customer != "cus_1" || made.Device != "dev_1" {
		t.Fatal(made, err)
	}
	l, err := c.Login(ctx, phoneNumber, "wrong")
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Complete(ctx, smsCode, "phone")
	if p := check(t, err, client.ErrLoginFailed); p.Status != 401 || p.RequestID != "req_1" || p.Detail == "" || p.Title != "Unauthorized" {
		t.Errorf("problem is %+v", p)
	}
	c = f.loggedIn(o)
	tokens, err := c.Tokens(ctx)
	if err != nil || tokens.Session == "" || time.Until(tokens.AccessExpiresAt) < 50*time.Second {
		t.Fatal(tokens, err)
	}
	s, err := c.Session(ctx)
	if err != nil || s.ID != tokens.Session || s.ExpiresAt.Year() != 2026 {
		t.Fatal(s, err)
	}

	second := newClient(t, f.options())
	l, err = second.Login(ctx, phoneNumber, privateCode)
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Complete(ctx, smsCode, "tablet")
	device := check(t, err, client.ErrDevicePending).Text("device")
	if device != "dev_2" {
		t.Fatal(device)
	}
	if err := c.ApproveDevice(ctx, device, "047"); err != nil {
		t.Fatal(err)
	}
	devices, err := c.Devices(ctx)
	if err != nil || len(devices) != 2 {
		t.Fatal(devices, err)
	}
	for _, d := range devices {
		if d.Status != client.DeviceAuthorised || d.Current != (d.ID == "dev_1") {
			t.Error(d, d.Current)
		}
	}
	if err := c.RevokeDevice(ctx, device); err != nil {
		t.Fatal(err)
	}
	check(t, c.RevokeDevice(ctx, "dev_none"), "device-not-found")

	if err := c.Logout(ctx); err != nil {
		t.Fatal(err)
	}
	if t2, _ := c.Tokens(ctx); !t2.IsZero() {
		t.Error("logout left tokens")
	}
	if err := c.Logout(ctx); err != nil {
		t.Errorf("second logout: %v", err)
	}
	ids := map[string]bool{}
	for _, p := range f.proofs {
		if ids[p.ID] {
			t.Errorf("jti %s was used twice", p.ID)
		}
		ids[p.ID] = true
		if strings.ContainsAny(p.Target, "?#") {
			t.Errorf("htu %s has a query", p.Target)
		}
	}
}

func TestRecords(t *testing.T) {
	f, ctx := start(t), t.Context()
	c := f.loggedIn(f.options())
	profiles := c.Collection("profile")
	type profile struct {
		Name   string      `json:"name"`
		Amount json.Number `json:"amount"`
	}
	ada := profile{"Ada Example", "12345678901234567890"}
	r, err := profiles.Put(ctx, "a", ada, client.IfNew())
	if err != nil || r.ETag != `"1"` || r.Version != 1 || r.UpdatedAt.IsZero() {
		t.Fatal(r, err)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", r, r, r, r); strings.Contains(s, "•") || strings.Contains(s, "123") {
		t.Errorf("a record prints as %s", s)
	}
	_, err = profiles.Put(ctx, "a", ada)
	check(t, err, client.ErrPreconditionNeeded)
	_, err = profiles.Put(ctx, "a", ada, client.IfNew())
	check(t, err, client.ErrVersionMismatch)
	newer, err := profiles.Put(ctx, "a", ada, client.IfMatch(r.ETag))
	if err != nil || newer.ETag != `"2"` {
		t.Fatal(newer, err)
	}
	_, err = profiles.Put(ctx, "a", ada, client.IfMatch(r.ETag))
	check(t, err, client.ErrVersionMismatch)
	masked, err := profiles.Get(ctx, "a")
	if err != nil || strings.Trim(masked.Fields["name"].(string), "•") != "" {
		t.Fatal(masked.Fields, err)
	}
	_, err = profiles.Reveal(ctx, "a", "")
	check(t, err, client.ErrPurposeRequired)
	whole, err := profiles.Reveal(ctx, "a", "show-to-customer", "name", "amount")
	if err != nil {
		t.Fatal(err)
	}
	var got profile
	if err := whole.Decode(&got); err != nil || got != ada {
		t.Errorf("revealed %v, %v", got, err)
	}
	_, err = profiles.Put(ctx, "b", map[string]any{"iban": "bad"})
	if e := check(t, err, client.ErrInvalidRecord).FieldErrors(); len(e) != 1 || e[0].Field != "iban" || e[0].Message == "" {
		t.Error(e)
	}
	for _, key := range []string{"b", "c", "d", "e"} {
		if _, err := profiles.Put(ctx, key, map[string]any{"name": key}); err != nil {
			t.Fatal(err)
		}
	}
	var keys string
	for r, err := range profiles.All(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		keys += r.Key
	}
	if keys != "abcde" {
		t.Errorf("All gave %s", keys)
	}
	check(t, profiles.Delete(ctx, "a", client.IfMatch(`"1"`)), client.ErrVersionMismatch)
	if err := profiles.Delete(ctx, "a", client.IfMatch(`"2"`)); err != nil {
		t.Fatal(err)
	}
	_, err = profiles.Get(ctx, "a")
	check(t, err, client.ErrRecordNotFound)
	_, err = c.Collection("nope").Get(ctx, "a")
	check(t, err, client.ErrCollectionNotFound)
	for range c.Collection("nope").All(ctx) {
		break
	}
	for _, key := range []string{"", ".", ".."} {
		if _, err := profiles.Get(ctx, key); err == nil {
			t.Errorf("key %q was accepted", key)
		}
	}
	if _, err := profiles.Get(ctx, "a/b?c#d%é"); !errors.Is(err, client.ErrRecordNotFound) {
		t.Errorf("an odd key: %v", err)
	}
}

// A server that stands in between with a certificate that verifies but is not pinned learns nothing.
func TestPinMismatchSendsNothing(t *testing.T) {
	f := start(t)
	var heard atomic.Int64
	f.raw = func(w http.ResponseWriter, r *http.Request) bool { heard.Add(1); return false }
	stranger := start(t)
	o := f.options()
	o.Pins = []string{client.Pin(stranger.authority), client.Pin(stranger.Certificate())}
	dials := 0
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	c := newClient(t, o)
	waits := noWaits(c)
	_, err := c.Register(t.Context(), phoneNumber)
	if !errors.Is(err, client.ErrPinMismatch) || strings.Contains(err.Error(), "7700") {
		t.Fatalf("error is %v", err)
	}
	if !strings.Contains(err.Error(), client.Pin(f.Certificate())) {
		t.Errorf("the error does not say which pin was seen: %v", err)
	}
	if heard.Load() != 0 || dials != 1 || len(*waits) != 0 {
		t.Errorf("%d requests, %d connections, waits %v", heard.Load(), dials, *waits)
	}
}

func TestPins(t *testing.T) {
	f := start(t)
	leaf, authority := client.Pin(f.Certificate()), client.Pin(f.authority)
	backup := client.Pin(start(t).authority)
	rows := []struct {
		name string
		edit func(o *client.Options)
		ok   bool
	}{
		{"leaf", func(o *client.Options) { o.Pins = []string{leaf} }, true},
		{"authority", func(o *client.Options) { o.Pins = []string{authority} }, true},
		{"one of two", func(o *client.Options) { o.Pins = []string{backup, authority} }, true},
		{"pinned but not verified", func(o *client.Options) { o.RootCAs = nil }, false},
		{"verified but not pinned", func(o *client.Options) { o.Pins = []string{backup} }, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			o := f.options()
			row.edit(&o)
			_, err := newClient(t, o).Register(t.Context(), phoneNumber)
			if (err == nil) != row.ok {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestTLS12Refused(t *testing.T) {
	f := newFake()
	f.Close()
	f.Server.TLS.MinVersion, f.Server.TLS.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	l, err := tls.Listen("tcp", "127.0.0.1:0", f.Server.TLS)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	o := f.options()
	o.BaseURL = "https://" + l.Addr().String()
	c := newClient(t, o)
	waits := noWaits(c)
	if _, err := c.Register(t.Context(), phoneNumber); err == nil || len(*waits) != 0 {
		t.Fatal(err, *waits)
	}
}

func TestOptionsRefused(t *testing.T) {
	f := start(t)
	rows := map[string]func(o *client.Options){
		"plain http":   func(o *client.Options) { o.BaseURL = "http://127.0.0.1" },
		"no host":      func(o *client.Options) { o.BaseURL = "https://" },
		"path":         func(o *client.Options) { o.BaseURL += "/v1" },
		"user":         func(o *client.Options) { o.BaseURL = "https://a@b" },
		"query":        func(o *client.Options) { o.BaseURL += "?a" },
		"no pins":      func(o *client.Options) { o.Pins = nil },
		"short pin":    func(o *client.Options) { o.Pins = []string{"sha256/AAAA"} },
		"pin prefix":   func(o *client.Options) { o.Pins = []string{strings.TrimPrefix(o.Pins[0], "sha256/")} },
		"no key":       func(o *client.Options) { o.Key = nil },
		"empty origin": func(o *client.Options) { o.BaseURL = "" },
	}
	for name, edit := range rows {
		o := f.options()
		edit(&o)
		if _, err := client.New(o); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestNonce(t *testing.T) {
	f, ctx := start(t), t.Context()
	c := f.loggedIn(f.options())
	challenges := 0
	f.raw = func(w http.ResponseWriter, r *http.Request) bool { challenges++; return false }
	if _, err := c.Session(ctx); err != nil || challenges != 1 {
		t.Fatalf("%d requests with a nonce that is known, %v", challenges, err)
	}
	f.setNonce("nonce-2")
	challenges = 0
	if _, err := c.Session(ctx); err != nil || challenges != 2 {
		t.Fatalf("%d requests after the nonce changed, %v", challenges, err)
	}
	// A server that is never content is asked twice, not for ever.
	f.raw = func(w http.ResponseWriter, r *http.Request) bool {
		challenges++
		w.Header().Set("DPoP-Nonce", fmt.Sprint("moving-", challenges))
		f.problem(w, 401, "use-dpop-nonce")
		return true
	}
	challenges = 0
	_, err := c.Session(ctx)
	check(t, err, client.ErrUseNonce)
	if challenges != 2 {
		t.Errorf("%d requests", challenges)
	}
}

func TestWrongClock(t *testing.T) {
	f := start(t)
	for _, wrong := range []time.Duration{-3 * time.Hour, 26 * time.Hour} {
		c := newClient(t, f.options())
		c.SetNow(func() time.Time { return time.Now().Add(wrong) })
		if _, err := c.Register(t.Context(), phoneNumber); err != nil {
			t.Errorf("a clock that is wrong by %v: %v", wrong, err)
		}
	}
}

func TestProofByAnotherDeviceOrReplayed(t *testing.T) {
	f, ctx := start(t), t.Context()
	o := f.options()
	c := f.loggedIn(o)
	tokens, err := c.Tokens(ctx)
	if err != nil {
		t.Fatal(err)
	}
	thief := f.options()
	thief.Store = &store{tokens: tokens}
	_, err = newClient(t, thief).Session(ctx)
	check(t, err, client.ErrInvalidProof)

	proof, err := client.Proof(o.Key, "GET", f.URL+"/v1/session?x=1#y", f.currentNonce(), tokens.Access)
	if err != nil {
		t.Fatal(err)
	}
	for want := range []int{200, 401} {
		r, _ := http.NewRequest("GET", f.URL+"/v1/session", nil)
		r.Header.Set("DPoP", proof)
		r.Header.Set("Authorization", "DPoP "+tokens.Access.Reveal())
		res, err := f.Client().Transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.StatusCode; got != []int{200, 401}[want] {
			t.Errorf("attempt %d: status %d", want+1, got)
		}
	}
}

// store is a TokenStore that counts and fails on demand.
type store struct {
	mu     sync.Mutex
	tokens client.Tokens
	saves  int
	fail   error
}

func (s *store) Load(context.Context) (client.Tokens, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens, s.fail
}

func (s *store) Save(_ context.Context, t client.Tokens) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.tokens = t
		s.saves++
	}
	return s.fail
}

func TestExpiredTokenIsRefreshedOnce(t *testing.T) {
	f, ctx := start(t), t.Context()
	o := f.options()
	s := &store{}
	o.Store = s
	c := f.loggedIn(o)
	before, _ := c.Tokens(ctx)
	// The server finds the token expired while the client believes in it.
	f.mu.Lock()
	for _, g := range f.access {
		g.expires = time.Now().Add(-time.Second)
	}
	f.mu.Unlock()
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := c.Session(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	after, _ := c.Tokens(ctx)
	if f.refreshes != 1 || after.Access == before.Access || s.tokens.Refresh != after.Refresh {
		t.Errorf("%d refreshes", f.refreshes)
	}
	// And the client notices by itself.
	c.SetNow(func() time.Time { return time.Now().Add(59*time.Second + 500*time.Millisecond) })
	for range 32 {
		wg.Go(func() {
			if err := c.ApproveDevice(ctx, "dev_1", "047"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Every refresh brings a token that the moved clock does not see as expired.
	if f.refreshes != 2 {
		t.Errorf("%d refreshes", f.refreshes)
	}
}

// A caller that gives up must not lose the tokens that the refresh brings.
func TestRefreshOutlivesItsCaller(t *testing.T) {
	f := start(t)
	o := f.options()
	c := f.loggedIn(o)
	before, _ := c.Tokens(t.Context())
	arrived, goOn := make(chan struct{}), make(chan struct{})
	f.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/refresh") {
			close(arrived)
			<-goOn
		}
		return false
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Refresh(ctx) }()
	<-arrived
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("error is %v", err)
	}
	second := make(chan error)
	go func() { second <- c.Refresh(t.Context()) }() // joins the one under way
	close(goOn)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if after, _ := c.Tokens(t.Context()); after.Access == before.Access {
		t.Error("the new tokens are lost")
	}
	f.before = nil
	if _, err := c.Session(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRefreshTokenUsedTwiceEndsTheSession(t *testing.T) {
	f, ctx := start(t), t.Context()
	o := f.options()
	c := f.loggedIn(o)
	old, _ := c.Tokens(ctx)
	if err := c.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	o.Store = &store{tokens: old}
	clone := newClient(t, o)
	check(t, clone.Refresh(ctx), client.ErrSessionRevoked)
	if left, _ := clone.Tokens(ctx); !left.IsZero() {
		t.Error("tokens of a revoked session are kept")
	}
	if err := clone.Refresh(ctx); !errors.Is(err, client.ErrNotLoggedIn) {
		t.Errorf("afterwards: %v", err)
	}
	_, err := c.Session(ctx)
	check(t, err, client.ErrInvalidToken)
	check(t, c.Refresh(ctx), client.ErrInvalidRefresh)
	if _, err := c.Session(ctx); !errors.Is(err, client.ErrNotLoggedIn) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestLogoutDuringRefresh(t *testing.T) {
	f, ctx := start(t), t.Context()
	c := f.loggedIn(f.options())
	arrived, goOn := make(chan struct{}), make(chan struct{})
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/refresh") {
			close(arrived)
			<-goOn
		}
		return false
	}
	done := make(chan error)
	go func() { done <- c.Refresh(ctx) }()
	<-arrived
	if err := c.Logout(ctx); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	<-done
	if left, _ := c.Tokens(ctx); !left.IsZero() {
		t.Error("the refresh brought the session back")
	}
}

func TestLogoutIsKeptForLaterWhenTheServerIsAway(t *testing.T) {
	f, ctx := start(t), t.Context()
	o := f.options()
	o.Retries = -1
	c := f.loggedIn(o)
	f.before = func(w http.ResponseWriter, _ *http.Request) bool {
		f.problem(w, 503, "database-unavailable")
		return true
	}
	check(t, c.Logout(ctx), "database-unavailable")
	if left, _ := c.Tokens(ctx); left.IsZero() {
		t.Error("the session was forgotten though it lives")
	}
	f.before = func(w http.ResponseWriter, _ *http.Request) bool { f.problem(w, 401, "invalid-token"); return true }
	if err := c.Logout(ctx); err != nil {
		t.Errorf("a session that is over already: %v", err)
	}
	if left, _ := c.Tokens(ctx); !left.IsZero() {
		t.Error("tokens are left")
	}
}

func TestStoreFailures(t *testing.T) {
	f, ctx := start(t), t.Context()
	o := f.options()
	s := &store{}
	o.Store = s
	c := f.loggedIn(o)
	s.fail = errors.New("no space")
	if err := c.Refresh(ctx); !errors.Is(err, s.fail) {
		t.Errorf("error is %v", err)
	}
	if _, err := c.Session(ctx); err != nil {
		t.Errorf("the session in memory is lost: %v", err)
	}
	if _, err := newClient(t, o).Session(ctx); !errors.Is(err, s.fail) {
		t.Errorf("error is %v", err)
	}
}

func TestRetries(t *testing.T) {
	type row struct {
		name     string
		answer   func(f *fake, w http.ResponseWriter) // to all but the last request
		times    int                                  // how often it answers so
		call     func(c *client.Client) error
		requests int
		ok       bool
		want     client.Slug
		waits    func(t *testing.T, d []time.Duration)
	}
	ctx := context.Background()
	read := func(c *client.Client) error { _, err := c.Session(ctx); return err }
	write := func(c *client.Client) error { return c.ApproveDevice(ctx, "dev_1", "047") }
	refuse := func(status int, slug, retryAfter string) func(f *fake, w http.ResponseWriter) {
		return func(f *fake, w http.ResponseWriter) {
			if retryAfter != "" {
				w.Header().Set("Retry-After", retryAfter)
			}
			f.problem(w, status, slug)
		}
	}
	hangUp := func(*fake, http.ResponseWriter) { panic(http.ErrAbortHandler) }
	breakOff := func(_ *fake, w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "1000")
		w.Write([]byte("{"))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	atLeast := func(d time.Duration) func(*testing.T, []time.Duration) {
		return func(t *testing.T, waits []time.Duration) {
			for _, w := range waits {
				if w < d || w > d*5/4+time.Millisecond {
					t.Errorf("waited %v; want %v and a little more", w, d)
				}
			}
		}
	}
	grows := func(t *testing.T, waits []time.Duration) {
		for i, w := range waits {
			whole := 200 * time.Millisecond << i
			if w < whole/2 || w > whole {
				t.Errorf("wait %d is %v; want %v to %v", i, w, whole/2, whole)
			}
		}
	}
	rows := []row{
		{name: "429 read", answer: refuse(429, "too-many-requests", "2"), times: 2, call: read, requests: 3, ok: true, waits: atLeast(2 * time.Second)},
		{name: "429 write", answer: refuse(429, "too-many-requests", "2"), times: 2, call: write, requests: 3, ok: true, waits: atLeast(2 * time.Second)},
		{name: "429 for ever", answer: refuse(429, "too-many-requests", ""), times: 99, call: write, requests: 4, want: client.ErrTooManyRequests, waits: grows},
		{name: "429 for too long", answer: refuse(429, "too-many-requests", "3600"), times: 99, call: read, requests: 1, want: client.ErrTooManyRequests},
		{name: "503 with Retry-After, write", answer: refuse(503, "login-busy", "1"), times: 1, call: write, requests: 2, ok: true, waits: atLeast(time.Second)},
		{name: "503 without, read", answer: refuse(503, "database-unavailable", ""), times: 3, call: read, requests: 4, ok: true, waits: grows},
		{name: "503 without, write", answer: refuse(503, "database-unavailable", ""), times: 1, call: write, requests: 1, want: "database-unavailable"},
		{name: "500", answer: refuse(500, "internal", ""), times: 1, call: read, requests: 1, want: "internal"},
		{name: "404", answer: refuse(404, "not-found", "1"), times: 1, call: read, requests: 1, want: "not-found"},
		{name: "lost answer, read", answer: hangUp, times: 2, call: read, requests: 3, ok: true, waits: grows},
		{name: "lost answer, write", answer: hangUp, times: 1, call: write, requests: 1},
		{name: "half an answer, read", answer: breakOff, times: 1, call: read, requests: 2, ok: true},
		{name: "half an answer, write", answer: breakOff, times: 1, call: write, requests: 1},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			f := start(t)
			c := f.loggedIn(f.options())
			waits := noWaits(c)
			var requests atomic.Int64
			f.before = func(w http.ResponseWriter, _ *http.Request) bool {
				if requests.Add(1) > int64(row.times) {
					return false
				}
				row.answer(f, w)
				return true
			}
			err := row.call(c)
			if (err == nil) != row.ok {
				t.Errorf("error is %v", err)
			}
			if row.want != "" {
				check(t, err, row.want)
			}
			if got := int(requests.Load()); got != row.requests || len(*waits) != row.requests-1 {
				t.Errorf("%d requests, waits %v; want %d requests", got, *waits, row.requests)
			}
			if row.waits != nil {
				row.waits(t, *waits)
			}
		})
	}
}

func TestConnectFailureIsRetriedForEveryMethod(t *testing.T) {
	f := start(t)
	o := f.options()
	fails := 2
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if fails--; fails >= 0 {
			return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("connection refused")}
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	c := newClient(t, o)
	waits := noWaits(c)
	if _, err := c.Login(t.Context(), phoneNumber, privateCode); err != nil || len(*waits) != 2 {
		t.Errorf("%v, waits %v", err, *waits)
	}
}

func TestRetriesEndWithTheContext(t *testing.T) {
	f := start(t)
	c := f.loggedIn(f.options())
	waits := noWaits(c)
	f.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "20")
		f.problem(w, 429, "too-many-requests")
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := c.Session(ctx)
	if p := check(t, err, client.ErrTooManyRequests); p.RetryAfter != 20*time.Second || len(*waits) != 0 {
		t.Errorf("%v, waits %v", p, *waits)
	}
	f.before = func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.Session(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestTimeoutOfOneAttempt(t *testing.T) {
	f := start(t)
	o := f.options()
	o.HTTPTimeout = 100 * time.Millisecond
	c := f.loggedIn(o)
	noWaits(c)
	var requests atomic.Int64
	f.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if requests.Add(1) > 1 {
			return false
		}
		<-r.Context().Done()
		return true
	}
	if _, err := c.Session(t.Context()); err != nil || requests.Load() != 2 {
		t.Errorf("%v after %d requests", err, requests.Load())
	}
}

func TestStrangeAnswers(t *testing.T) {
	f, ctx := start(t), t.Context()
	c := f.loggedIn(f.options())
	rows := []struct {
		name, contentType, body string
		status                  int
		want                    string
	}{
		{"html page", "text/html", "<p>Ada Example</p>", 200, "not application/json"},
		{"html error", "text/html", "<p>Ada Example</p>", 500, "is this its address"},
		{"broken json", "application/json", `{"session": "Ada Example`, 200, "not the JSON"},
		{"wrong type", "application/json", `{"session": 7, "customer": "Ada Example"}`, 200, "not the JSON"},
		{"no type", "", `{}`, 200, "not application/json"},
		{"problem that is none", "application/problem+json", `["Ada Example"]`, 403, "status 403"},
		{"problem of others", "application/problem+json", `{"type": "about:blank", "title": "Nope"}`, 403, "Nope"},
		{"problem of odd types", "application/problem+json", `{"type": 1, "title": [], "detail": {}}`, 403, "Forbidden"},
		{"redirect", "text/html", "", 302, "status 302"},
		{"too large", "application/json", strings.Repeat(" ", 5<<20), 200, "larger than"},
	}
	for _, row := range rows {
		requests := 0
		f.before = func(w http.ResponseWriter, _ *http.Request) bool {
			requests++
			w.Header()["Content-Type"] = nil
			if row.contentType != "" {
				w.Header().Set("Content-Type", row.contentType)
			}
			w.Header().Set("Location", "https://elsewhere.example/")
			w.WriteHeader(row.status)
			w.Write([]byte(row.body))
			return true
		}
		_, err := c.Session(ctx)
		if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "Ada") {
			t.Errorf("%s: error is %v; want %q", row.name, err, row.want)
		}
		if requests != 1 {
			t.Errorf("%s: %d requests", row.name, requests)
		}
	}
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		f.answer(w, 200, map[string]any{"access_token": "a", "refresh_token": "r", "token_type": "Bearer"})
		return true
	}
	if err := c.Refresh(ctx); err == nil {
		t.Error("tokens that are not bound to the device were accepted")
	}
}

// Nothing that is secret or personal is printed, whatever happens.
func TestNoSecretIsPrinted(t *testing.T) {
	f, ctx := start(t), t.Context()
	var log bytes.Buffer
	o := f.options()
	o.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := f.loggedIn(o)
	tokens, _ := c.Tokens(ctx)
	c.Collection("profile").Put(ctx, "main", map[string]any{"name": "Ada Example"})
	c.Collection("profile").Reveal(ctx, "main", "show-to-customer")
	var errs []string
	for _, fail := range []func(w http.ResponseWriter){
		func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter) { f.problem(w, 401, "session-revoked") },
	} {
		f.before = func(w http.ResponseWriter, _ *http.Request) bool { fail(w); return true }
		l, err := c.Login(ctx, phoneNumber, privateCode)
		errs = append(errs, fmt.Sprint(l, err))
		_, err = c.Collection("profile").Reveal(ctx, "main", "show-to-customer")
		errs = append(errs, fmt.Sprint(err))
		errs = append(errs, fmt.Sprint(c.Refresh(ctx)))
	}
	printed, err := json.Marshal(tokens)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(errs, "\n") + log.String() + string(printed) +
		fmt.Sprintf("%v %+v %#v %s %q %x %v %#v", tokens, tokens, tokens, tokens, tokens.Access, tokens.Access, o.Key, o.Key)
	slog.New(slog.NewTextHandler(&log, nil)).Info("", "tokens", tokens.Access, "key", o.Key)
	all += log.String()
	for _, never := range []string{tokens.Access.Reveal(), tokens.Refresh.Reveal(), phoneNumber[3:], privateCode, smsCode, "Ada", "show-to-customer"} {
		if strings.Contains(all, never) {
			t.Errorf("%q was printed in:\n%s", never, all)
		}
	}
	if !strings.Contains(log.String(), "/v1/sessions/refresh") {
		t.Error("the log holds no request")
	}
	back, err := client.ParseTokens(tokens.Reveal())
	if err != nil || back.Access != tokens.Access || back.Refresh != tokens.Refresh || !back.AccessExpiresAt.Equal(tokens.AccessExpiresAt) || back.Device != tokens.Device {
		t.Errorf("tokens came back as %v, %v", back, err)
	}
	if _, err := client.ParseTokens([]byte("{")); err == nil {
		t.Error("no tokens were parsed")
	}
}

func TestObserve(t *testing.T) {
	f := start(t)
	o := f.options()
	var mu sync.Mutex
	var seen []client.Exchange
	o.Observe = func(x client.Exchange) { mu.Lock(); seen = append(seen, x); mu.Unlock() }
	c := newClient(t, o)
	if _, err := c.Register(t.Context(), phoneNumber); err != nil {
		t.Fatal(err)
	}
	f.Close()
	noWaits(c)
	c.Register(t.Context(), phoneNumber)
	if len(seen) < 3 || seen[0].Status != 401 || seen[1].Status != 202 || seen[1].Path != "/v1/registrations" || seen[1].Duration <= 0 ||
		seen[2].Status != 0 || seen[2].Err == nil {
		t.Errorf("observed %+v", seen)
	}
}

func TestRetryAfterDate(t *testing.T) {
	f := start(t)
	o := f.options()
	o.Retries = -1
	c := f.loggedIn(o)
	f.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", time.Now().Add(time.Minute).UTC().Format(http.TimeFormat))
		f.problem(w, 429, "too-many-requests")
		return true
	}
	_, err := c.Session(t.Context())
	if p := check(t, err, client.ErrTooManyRequests); p.RetryAfter < 50*time.Second || p.RetryAfter > time.Minute {
		t.Errorf("RetryAfter is %v", p.RetryAfter)
	}
}

func FuzzProblem(f *testing.F) {
	f.Add("application/problem+json", []byte(`{"type":"urn:strongroom:problem:x","status":"no","errors":[{"field":1}]}`), "12")
	f.Add("text/html", []byte(`<`), "Wed, 21 Oct 2015 07:28:00 GMT")
	f.Fuzz(func(t *testing.T, contentType string, body []byte, retryAfter string) {
		p := client.ProblemOf(418, contentType, retryAfter, body)
		if p.Status != 418 || p.RetryAfter < 0 || p.Error() == "" {
			t.Errorf("%+v", p)
		}
		p.FieldErrors()
		p.Text("errors")
	})
}
