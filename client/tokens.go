package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

const redacted = "[redacted]"

// Secret is a token. It formats, marshals and logs as "[redacted]".
type Secret struct{ s string }

// NewSecret returns s as a Secret.
func NewSecret(s string) Secret { return Secret{s} }

// Reveal returns the token. Never log it.
func (s Secret) Reveal() string { return s.s }

// IsZero reports whether there is no token.
func (s Secret) IsZero() bool { return s.s == "" }

// String hides the token.
func (s Secret) String() string { return redacted }

// Format hides the token from every verb of fmt.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the token from log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the token from encoding/json.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Tokens are a session as the device keeps it. The zero Tokens are no session.
type Tokens struct {
	Access           Secret
	AccessExpiresAt  time.Time
	Refresh          Secret
	RefreshExpiresAt time.Time // zero when the server did not say
	Session          string    // "ses_…"
	Customer         string    // "cus_…"
	Device           string    // "dev_…"
}

// IsZero reports whether there is no session.
func (t Tokens) IsZero() bool { return t.Refresh.IsZero() }

type plainTokens struct {
	Access           string    `json:"access"`
	AccessExpiresAt  time.Time `json:"access_expires_at"`
	Refresh          string    `json:"refresh"`
	RefreshExpiresAt time.Time `json:"refresh_expires_at"`
	Session          string    `json:"session"`
	Customer         string    `json:"customer"`
	Device           string    `json:"device"`
}

// Reveal returns the tokens in the clear, as JSON that ParseTokens reads, for a TokenStore to
// encrypt. Never log it.
func (t Tokens) Reveal() []byte {
	b, err := json.Marshal(plainTokens{
		t.Access.s, t.AccessExpiresAt, t.Refresh.s, t.RefreshExpiresAt, t.Session, t.Customer, t.Device,
	})
	if err != nil {
		panic(err) // strings and times always marshal
	}
	return b
}

// ParseTokens is the inverse of Tokens.Reveal.
func ParseTokens(b []byte) (Tokens, error) {
	var p plainTokens
	if json.Unmarshal(b, &p) != nil {
		return Tokens{}, errors.New("strongroom: these are not tokens")
	}
	return Tokens{
		Secret{p.Access}, p.AccessExpiresAt, Secret{p.Refresh}, p.RefreshExpiresAt, p.Session, p.Customer, p.Device,
	}, nil
}

// TokenStore keeps one session over restarts of the app, encrypted. Only one Client may use it at a
// time: two that refresh the same session look like a thief to the server, which then ends it.
type TokenStore interface {
	// Load returns what was saved last, or the zero Tokens.
	Load(ctx context.Context) (Tokens, error)
	// Save replaces what was saved; the zero Tokens mean that the session is over. It must be
	// durable when it returns.
	Save(ctx context.Context, t Tokens) error
}

type memoryStore struct {
	mu     sync.Mutex
	tokens Tokens
}

func (m *memoryStore) Load(context.Context) (Tokens, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tokens, nil
}

func (m *memoryStore) Save(_ context.Context, t Tokens) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens = t
	return nil
}

// ErrNotLoggedIn means that the operation needs a session and there is none.
var ErrNotLoggedIn = errors.New("strongroom: not logged in")

// early is how long before its end an access token is refreshed; so that it does not expire on the way.
const early = time.Second

// tokenAnswer is the answer to a login and to a refresh. Lifetimes are in seconds.
type tokenAnswer struct {
	AccessToken      string `json:"access_token"`
	TokenType        string `json:"token_type"`
	ExpiresIn        int64  `json:"expires_in"`
	RefreshToken     string `json:"refresh_token"`
	RefreshExpiresIn int64  `json:"refresh_expires_in"`
	Session          string `json:"session"`
	Customer         string `json:"customer"`
	Device           string `json:"device"`
}

func (a tokenAnswer) tokens(now time.Time) (Tokens, error) {
	if a.AccessToken == "" || a.RefreshToken == "" || a.TokenType != "DPoP" {
		return Tokens{}, errors.New("strongroom: the answer holds no DPoP-bound tokens")
	}
	t := Tokens{
		Access:          Secret{a.AccessToken},
		AccessExpiresAt: now.Add(time.Duration(a.ExpiresIn) * time.Second),
		Refresh:         Secret{a.RefreshToken},
		Session:         a.Session,
		Customer:        a.Customer,
		Device:          a.Device,
	}
	if a.RefreshExpiresIn > 0 {
		t.RefreshExpiresAt = now.Add(time.Duration(a.RefreshExpiresIn) * time.Second)
	}
	return t, nil
}

// Tokens returns the current session, or the zero Tokens.
func (c *Client) Tokens(ctx context.Context) (Tokens, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.loaded {
		t, err := c.store.Load(ctx)
		if err != nil {
			return Tokens{}, fmt.Errorf("strongroom: token store: %w", err)
		}
		c.tokens, c.loaded = t, true
	}
	return c.tokens, nil
}

// replace puts new tokens in the place of old ones, in memory and in the store. When the old ones
// are gone already, because of a logout or another login, nothing happens.
func (c *Client) replace(ctx context.Context, old *Tokens, t Tokens) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old != nil && c.tokens.Refresh != old.Refresh {
		return nil
	}
	c.tokens, c.loaded = t, true
	if err := c.store.Save(ctx, t); err != nil {
		return fmt.Errorf("strongroom: token store: %w", err)
	}
	return nil
}

// access returns an access token that is good for now, refreshed if it must be.
func (c *Client) access(ctx context.Context) (Secret, error) {
	t, err := c.Tokens(ctx)
	if err != nil {
		return Secret{}, err
	}
	if t.IsZero() {
		return Secret{}, ErrNotLoggedIn
	}
	if c.now().Before(t.AccessExpiresAt.Add(-early)) {
		return t.Access, nil
	}
	if err := c.refresh(ctx, t.Access); err != nil {
		return Secret{}, err
	}
	if t, err = c.Tokens(ctx); err != nil {
		return Secret{}, err
	}
	if t.IsZero() {
		return Secret{}, ErrNotLoggedIn
	}
	return t.Access, nil
}

// Refresh gets new tokens for the session now. There is seldom a need for it: every method does so
// when the time has come. ErrSessionRevoked, ErrInvalidRefresh and ErrThisDeviceRevoked mean that the
// session is over and forgotten.
func (c *Client) Refresh(ctx context.Context) error {
	t, err := c.Tokens(ctx)
	if err != nil {
		return err
	}
	if t.IsZero() {
		return ErrNotLoggedIn
	}
	return c.refresh(ctx, t.Access)
}

// flight is a refresh that is under way. All who need it wait for the same one, because a refresh
// token is good for one use and the second ends the session.
type flight struct {
	done chan struct{}
	err  error
}

// refresh replaces the tokens to which the access token stale belongs, unless that has happened.
func (c *Client) refresh(ctx context.Context, stale Secret) error {
	c.mu.Lock()
	if c.tokens.Access != stale {
		c.mu.Unlock()
		return nil
	}
	f := c.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		c.flight = f
		old := c.tokens
		// It goes on when the caller gives up: once the server has changed the tokens, losing its
		// answer would lose the session.
		whole := context.WithoutCancel(ctx)
		go func() {
			f.err = c.exchangeRefresh(whole, old)
			c.mu.Lock()
			c.flight = nil
			c.mu.Unlock()
			close(f.done)
		}()
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("strongroom: refresh: %w", ctx.Err())
	}
}

func (c *Client) exchangeRefresh(ctx context.Context, old Tokens) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+c.maxWait)
	defer cancel()
	var a tokenAnswer
	_, err := c.call(ctx, request{
		method: http.MethodPost,
		path:   "/v1/sessions/refresh",
		body:   map[string]string{"refresh_token": old.Refresh.s},
	}, &a)
	if over(err) {
		return errors.Join(err, c.replace(ctx, &old, Tokens{}))
	}
	if err != nil {
		return err
	}
	t, err := a.tokens(c.now())
	if err != nil {
		return err
	}
	return c.replace(ctx, &old, t)
}
