// Package oracle asks those outside who know more than Strongroom does: whether the SIM of a number was
// changed, and whether somebody has proven who they are. Each answer decides who may come in, so whatever is
// not a clear answer is an error, and the caller denies.
package oracle

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/identity/sms"
	"strongroom/internal/secret"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 256 << 10

// ahead is how far a time in an answer may lie ahead of our clock.
const ahead = time.Minute

// endpoint checks an address.
func endpoint(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("oracle: the address must be https://host/path without user and fragment")
	}
	return nil
}

// send returns the answer to a request. The error holds no address and nothing of what was asked.
func send(client *http.Client, r *http.Request) (answer *http.Response, body []byte, err error) {
	r.Header.Set("User-Agent", "Strongroom")
	answer, err = client.Do(r)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return nil, nil, fmt.Errorf("oracle: asking: %w", err)
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("oracle: reading the answer: %w", err)
	}
	return answer, body, nil
}

// WebhookOptions configure a Webhook.
type WebhookOptions struct {
	// URL is the https address that is asked.
	URL string
	// Secret signs each request and each answer; at least 16 bytes.
	Secret secret.Value
	// Timeout bounds one request; 0 means 5 s.
	Timeout time.Duration
	// Roots are the authorities that may vouch for the address; nil means the host's.
	Roots *x509.CertPool
	Clock clock.Clock
}

// Webhook asks the operator's own service by a signed POST of JSON. The question has an "id", which the answer
// repeats, and an "asked_at"; request and answer have the signature that sms.SignatureHeader describes. An
// answer without a good signature, about another question, or with a status other than 200 is none.
type Webhook struct {
	url    string
	secret secret.Value
	client *http.Client
	clock  clock.Clock
}

// NewWebhook returns a Webhook, or says what is wrong with its options.
func NewWebhook(o WebhookOptions) (*Webhook, error) {
	if err := endpoint(o.URL); err != nil {
		return nil, err
	}
	if o.Secret.Len() < 16 {
		return nil, errors.New("oracle: the webhook's secret must have at least 16 bytes")
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	return &Webhook{o.URL, o.Secret, sms.HTTPClient(o.Timeout, o.Roots), o.Clock}, nil
}

// ask puts a question and reads the answer, whose id is at *id.
func (w *Webhook) ask(ctx context.Context, question map[string]any, answer any, id *string) error {
	asked, now := rand.Text(), w.clock.Now()
	question["id"], question["asked_at"] = asked, now.UTC().Format(time.RFC3339)
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("oracle: encoding a question: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("oracle: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(sms.SignatureHeader, sms.Sign(w.secret, now, body))
	got, body, err := send(w.client, r)
	switch {
	case err != nil:
		return err
	case got.StatusCode != http.StatusOK:
		return fmt.Errorf("oracle: the answer has status %d", got.StatusCode)
	case !sms.Verify(w.secret, got.Header.Values(sms.SignatureHeader), body, w.clock.Now()):
		return errors.New("oracle: the answer is not signed with the shared secret, or too old")
	case json.Unmarshal(body, answer) != nil:
		return errors.New("oracle: the answer is not the JSON that was asked for")
	case *id != asked:
		return errors.New("oracle: the answer is to another question")
	}
	return nil
}
