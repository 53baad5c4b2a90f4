package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/api"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/identity/dpop"
	"strongroom/internal/identity/phone"
	"strongroom/internal/identity/sms"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// house is the room with everything real around it, and a clock that stands still.
type house struct {
	*Identity
	t     testing.TB
	inbox *sms.Inbox
	clk   *clock.Manual
	logs  *bytes.Buffer
}

const goodCode = "73920485"

func newHouse(t testing.TB, d *db.DB, change func(*Options)) *house {
	t.Helper()
	return newHouseOf(t, d, keyringtest.Open(t, d), change)
}

func newHouseOf(t testing.TB, d *db.DB, keys *keyring.Keyring, change func(*Options)) *house {
	t.Helper()
	h := &house{t: t, clk: clock.NewManual(time.Now().Truncate(time.Second)), logs: &bytes.Buffer{}}
	h.inbox = sms.NewInbox(h.clk)
	o := Options{
		DB: d, Keys: keys, Trail: audit.New(d, keys, audit.Options{Clock: h.clk}), Sender: h.inbox, Clock: h.clk,
		Log:   slog.New(slog.NewTextHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Phone: phone.Rules{Region: "GB", AllowTestNumbers: true}, Cost: 4, HashWorkers: 2,
		Limits: Limits{Registrations: Rate{1e6, time.Hour}, Logins: Rate{1e6, time.Hour}, NumberHourly: 1e6, NumberDaily: 1e6, Daily: 1e6, BlockDaily: 1e6},
	}
	o.Wake = func(string) {
		if err := h.deliver(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if change != nil {
		change(&o)
	}
	var err error
	if h.Identity, err = New(o); err != nil {
		t.Fatal(err)
	}
	return h
}

// each runs f on both engines at the same time, so f shares nothing that it changes with the function around it.
func each(t *testing.T, change func(*Options), f func(t *testing.T, h *house)) {
	t.Helper()
	for _, e := range []db.Engine{db.SQLite, db.PostgreSQL} {
		t.Run(e.String(), func(t *testing.T) {
			t.Parallel()
			f(t, newHouse(t, dbtest.Open(t, e), change))
		})
	}
}

// eachAlone is each, one engine after the other.
func eachAlone(t *testing.T, change func(*Options), f func(t *testing.T, h *house)) {
	t.Helper()
	dbtest.Each(t, func(t *testing.T, d *db.DB) { f(t, newHouse(t, d, change)) })
}

func number(n int) string { return fmt.Sprintf("+447700900%03d", n) }

func from(key string) actor.Actor {
	return actor.Actor{Kind: actor.Anonymous, Key: key, Address: netip.MustParseAddr("192.0.2.1"), Request: "req"}
}

func value(s string) secret.Value { return secret.FromString(s) }

var sixDigits = regexp.MustCompile(`\b[0-9]{6}\b`)

// code returns the newest code sent to the number, or "" when the newest message has none.
func (h *house) code(to string) string {
	found := h.inbox.Search(to)
	if len(found) == 0 {
		return ""
	}
	return sixDigits.FindString(found[0].Text)
}

func wrongCode(code string) string {
	if code == "000000" {
		return "000001"
	}
	return "000000"
}

func (h *house) register(to, key string) Registered {
	h.t.Helper()
	s, err := h.StartRegistration(context.Background(), from(key), to)
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := h.CompleteRegistration(context.Background(), from(key), s.ID, value(h.code(to)), value(goodCode), "First")
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// login plays a whole login. Without a message it tries a code at random.
func (h *house) login(to, key, private string) (Tokens, error) {
	h.t.Helper()
	before := len(h.inbox.Search(to))
	s, err := h.StartLogin(context.Background(), from(key), to, value(private))
	if err != nil {
		return Tokens{}, err
	}
	code := "000000"
	if len(h.inbox.Search(to)) > before {
		code = h.code(to)
	}
	return h.CompleteLogin(context.Background(), from(key), s.ID, value(code), "Another")
}

func (h *house) mustLogin(to, key string) Tokens {
	h.t.Helper()
	tokens, err := h.login(to, key, goodCode)
	if err != nil {
		h.t.Fatal(err)
	}
	return tokens
}

func (h *house) acting(tokens Tokens, key string) actor.Actor {
	by := from(key)
	by.Kind, by.ID, by.Session, by.Device = actor.Customer, string(tokens.Customer), tokens.Session, tokens.Device
	return by
}

// events returns "action outcome reason" of all events of the action, oldest first.
func (h *house) events(action string) []string {
	h.t.Helper()
	var out []string
	err := h.DB.View(context.Background(), func(tx *db.Tx) error {
		out = nil
		rows, err := tx.Query(context.Background(), `SELECT outcome, reason FROM event WHERE action = $1 ORDER BY made_at, id`, action)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var outcome, reason string
			if err := rows.Scan(&outcome, &reason); err != nil {
				return err
			}
			out = append(out, strings.TrimSpace(outcome+" "+reason))
		}
		return rows.Err()
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h *house) lastEvent(action string) string {
	all := h.events(action)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

func (h *house) countEvents(action, event string) int {
	n := 0
	for _, e := range h.events(action) {
		if e == event {
			n++
		}
	}
	return n
}

func (h *house) count(table string) (n int) {
	h.t.Helper()
	err := h.DB.View(context.Background(), func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), `SELECT count(*) FROM `+table).Scan(&n)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

func want(t testing.TB, err error, slug string) {
	t.Helper()
	if slug == "" && err == nil {
		return
	}
	if !problem.Is(err, slug) {
		t.Errorf("error %v, want %s", err, slug)
	}
}

// phoneClient is a device that speaks HTTP: it holds a real key and makes real proofs.
type phoneClient struct {
	t      testing.TB
	server *httptest.Server
	key    *ecdsa.PrivateKey
	jkt    string
	h      *house
	nonce  string
	access string
}

// serve puts the room behind the real api package.
func (h *house) serve() *httptest.Server {
	mux := http.NewServeMux()
	h.Identity.Register(api.New(mux, h.Identity, api.Options{Title: "test", Version: "1", Log: slog.New(slog.DiscardHandler)}))
	h.Identity.RegisterOAuth(mux)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := actor.Actor{Kind: actor.Anonymous, Address: netip.MustParseAddr("192.0.2.1"), Request: "req"}
		mux.ServeHTTP(w, r.WithContext(actor.With(r.Context(), a)))
	}))
	h.t.Cleanup(s.Close)
	return s
}

func (h *house) newPhone(s *httptest.Server) *phoneClient {
	h.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	jkt, err := dpop.Thumbprint(&k.PublicKey)
	if err != nil {
		h.t.Fatal(err)
	}
	return &phoneClient{t: h.t, server: s, key: k, jkt: jkt, h: h}
}

var proofs atomic.Int64

func (c *phoneClient) proof(method, path, token string) string {
	enc := base64.RawURLEncoding.EncodeToString
	raw, err := c.key.PublicKey.Bytes()
	if err != nil {
		c.t.Fatal(err)
	}
	header := map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": map[string]string{"kty": "EC", "crv": "P-256", "x": enc(raw[1:33]), "y": enc(raw[33:])}}
	claims := map[string]any{
		"jti": fmt.Sprint(proofs.Add(1)), "htm": method, "iat": c.h.clk.Now().Unix(), "nonce": c.nonce,
		"htu": "https://" + strings.TrimPrefix(c.server.URL, "http://") + path,
	}
	if token != "" {
		claims["ath"] = dpop.TokenHash(token)
	}
	a, _ := json.Marshal(header)
	b, _ := json.Marshal(claims)
	input := enc(a) + "." + enc(b)
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, c.key, sum[:])
	if err != nil {
		c.t.Fatal(err)
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return input + "." + enc(sig[:])
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

func (a answer) text(name string) string { s, _ := a.body[name].(string); return s }

func (a answer) slug() string { return strings.TrimPrefix(a.text("type"), problem.URN) }

// do sends a request with a proof, and once more when the server asks for a nonce.
func (c *phoneClient) do(method, path string, body any) answer {
	c.t.Helper()
	for range 2 {
		var b bytes.Buffer
		if body != nil {
			if err := json.NewEncoder(&b).Encode(body); err != nil {
				c.t.Fatal(err)
			}
		}
		r, err := http.NewRequest(method, c.server.URL+path, &b)
		if err != nil {
			c.t.Fatal(err)
		}
		r.Header.Set("DPoP", c.proof(method, path, c.access))
		if body != nil {
			r.Header.Set("Content-Type", "application/json")
		}
		if c.access != "" {
			r.Header.Set("Authorization", "DPoP "+c.access)
		}
		a := c.send(r)
		if a.slug() != "use-dpop-nonce" {
			return a
		}
	}
	c.t.Fatal("the server asks for a nonce again and again")
	return answer{}
}

func (c *phoneClient) send(r *http.Request) answer {
	c.t.Helper()
	w, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer w.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(w.Body); err != nil {
		c.t.Fatal(err)
	}
	if n := w.Header.Get("DPoP-Nonce"); n != "" {
		c.nonce = n
	}
	a := answer{status: w.StatusCode, header: w.Header, raw: b.String()}
	if b.Len() > 0 {
		if err := json.Unmarshal(b.Bytes(), &a.body); err != nil {
			c.t.Fatalf("%s %s: %v in %q", r.Method, r.URL.Path, err, b.String())
		}
	}
	return a
}

func sorted(header http.Header) []string {
	var out []string
	for k := range header {
		if k != "Date" && k != "Dpop-Nonce" {
			out = append(out, k+"="+strings.Join(header[k], ","))
		}
	}
	slices.Sort(out)
	return out
}
