package oracle

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"strongroom/internal/clock"
	"strongroom/internal/identity/sms"
	"strongroom/internal/secret"
)

// SIMWebhook asks the operator's own service when SIMs were changed: {"id", "asked_at", "number"} is answered with
// {"id", "changed_at"}, RFC 3339, or null when it was not, or nobody knows.
type SIMWebhook struct{ *Webhook }

// ChangedAt implements identity.SIMs.
func (w SIMWebhook) ChangedAt(ctx context.Context, number string) (time.Time, error) {
	var answer struct {
		ID      string          `json:"id"`
		Changed json.RawMessage `json:"changed_at"`
	}
	if err := w.ask(ctx, map[string]any{"number": number}, &answer, &answer.ID); err != nil {
		return time.Time{}, err
	}
	if string(answer.Changed) == "null" {
		return time.Time{}, nil
	}
	var at time.Time
	if err := json.Unmarshal(answer.Changed, &at); err != nil || at.IsZero() || at.After(w.clock.Now().Add(ahead)) {
		return time.Time{}, errors.New("oracle: the answer has no changed_at, or one that is no time of a change")
	}
	return at, nil
}

// CAMARAOptions configure a CAMARA.
type CAMARAOptions struct {
	// URL is that of the API with its version: https://api.example.com/sim-swap/v2.
	URL string
	// TokenURL gives access tokens by the client credentials grant (RFC 6749 section 4.4).
	TokenURL, Client string
	Secret           secret.Value
	// Scope is asked for with the token; "" means sim-swap:check.
	Scope string
	// MaxAge is how far back a change counts, in whole hours from 1 to 2400.
	MaxAge time.Duration
	// Unknown takes numbers that the API does not serve, those of other networks for one, as unchanged. Else
	// they are an error.
	Unknown bool
	Timeout time.Duration // bounds one request; 0 means 5 s
	Roots   *x509.CertPool
	Clock   clock.Clock
}

// CAMARA asks mobile networks by the CAMARA SIM Swap API, which GSMA Open Gateway offers: POST /check with phoneNumber
// and maxAge (API version 2.1, two-legged tokens). It tells that a SIM was changed within MaxAge and not when.
type CAMARA struct {
	CAMARAOptions
	client *http.Client
	tokens *clientcredentials.Config

	mu    sync.Mutex
	token *oauth2.Token
}

// NewCAMARA returns a CAMARA, or says what is wrong with its options.
func NewCAMARA(o CAMARAOptions) (*CAMARA, error) {
	if err := errors.Join(endpoint(o.URL), endpoint(o.TokenURL)); err != nil {
		return nil, err
	}
	if o.Client == "" || o.Secret.Len() == 0 {
		return nil, errors.New("oracle: the client and its secret are missing")
	}
	if hours := o.MaxAge / time.Hour; o.MaxAge%time.Hour != 0 || hours < 1 || hours > 2400 {
		return nil, fmt.Errorf("oracle: %v is not a number of hours from 1 to 2400", o.MaxAge)
	}
	if o.Scope == "" {
		o.Scope = "sim-swap:check"
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	o.URL = strings.TrimSuffix(o.URL, "/")
	return &CAMARA{CAMARAOptions: o, client: sms.HTTPClient(o.Timeout, o.Roots), tokens: &clientcredentials.Config{
		ClientID: o.Client, ClientSecret: string(o.Secret.Reveal()), TokenURL: o.TokenURL, Scopes: strings.Fields(o.Scope),
		AuthStyle: oauth2.AuthStyleInHeader,
	}}, nil
}

// errUnauthorised says that the access token was not taken.
var errUnauthorised = errors.New("oracle: the SIM swap API does not take our access token")

// ChangedAt implements identity.SIMs. A SIM that was changed within MaxAge counts as changed now.
func (c *CAMARA) ChangedAt(ctx context.Context, number string) (time.Time, error) {
	swapped, err := c.check(ctx, number)
	if errors.Is(err, errUnauthorised) { // it may have been revoked before its time
		swapped, err = c.check(ctx, number)
	}
	if err != nil || !swapped {
		return time.Time{}, err
	}
	return c.Clock.Now(), nil
}

func (c *CAMARA) check(ctx context.Context, number string) (bool, error) {
	token, err := c.accessToken(ctx)
	if err != nil {
		return false, err
	}
	body, err := json.Marshal(map[string]any{"phoneNumber": number, "maxAge": int(c.MaxAge / time.Hour)})
	if err != nil {
		return false, fmt.Errorf("oracle: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+"/check", bytes.NewReader(body))
	if err != nil {
		return false, fmt.Errorf("oracle: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	r.Header.Set("x-correlator", rand.Text())
	r.Header.Set("Authorization", "Bearer "+token.AccessToken)
	got, body, err := send(c.client, r)
	if err != nil {
		return false, err
	}
	if got.StatusCode == http.StatusOK {
		var answer struct {
			Swapped *bool `json:"swapped"`
		}
		if err := json.Unmarshal(body, &answer); err != nil || answer.Swapped == nil {
			return false, errors.New("oracle: the SIM swap API does not say whether the SIM was changed")
		}
		return *answer.Swapped, nil
	}
	var problem struct {
		Code string `json:"code"`
	}
	_ = json.Unmarshal(body, &problem) // without a code it is an error all the same
	switch {
	case got.StatusCode == http.StatusUnauthorized:
		c.drop(token)
		return false, errUnauthorised
	case c.Unknown && (got.StatusCode == http.StatusNotFound && problem.Code == "IDENTIFIER_NOT_FOUND" ||
		got.StatusCode == http.StatusUnprocessableEntity && problem.Code == "SERVICE_NOT_APPLICABLE"):
		return false, nil
	}
	return false, fmt.Errorf("oracle: the SIM swap API answers with status %d %s", got.StatusCode, word(problem.Code))
}

// accessToken returns the token that is in use, or a new one.
func (c *CAMARA) accessToken(ctx context.Context) (*oauth2.Token, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token.Valid() { // nil is not
		return c.token, nil
	}
	token, err := c.tokens.Token(context.WithValue(ctx, oauth2.HTTPClient, c.client))
	if err != nil {
		if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok && e.Response != nil { // its text holds the whole answer
			return nil, fmt.Errorf("oracle: the token endpoint answers with status %d %s", e.Response.StatusCode, word(e.ErrorCode))
		}
		return nil, errors.New("oracle: the token endpoint gives no token")
	}
	c.token = token
	return token, nil
}

// drop forgets a token, if it is still the one in use.
func (c *CAMARA) drop(token *oauth2.Token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token == token {
		c.token = nil
	}
}

// word makes a code of others fit for a log.
func word(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_' || r == '.' {
			return r
		}
		return -1
	}, s)
	return s[:min(len(s), 40)]
}
