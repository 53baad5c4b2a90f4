package sms

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/secret"
)

// SignatureHeader carries the signature of a webhook request: "t=<Unix seconds>,v1=<hex>", where v1
// is the HMAC-SHA-256, under the shared secret, of the seconds, a full stop and the body. A receiver
// checks it in constant time and refuses an old t.
const SignatureHeader = "Strongroom-Signature"

// maxAnswer bounds what is read of a gateway's answer, in bytes.
const maxAnswer = 64 << 10

// WebhookOptions configure a Webhook.
type WebhookOptions struct {
	// URL is the gateway's https address. It must not hold a user or a fragment.
	URL string
	// Secret signs each request; at least 16 bytes.
	Secret secret.Value
	// Timeout bounds one request; 0 means 5 s.
	Timeout time.Duration
	// Roots are the authorities that may vouch for the gateway; nil means the host's.
	Roots *x509.CertPool
	Clock clock.Clock
}

// Webhook is a Sender that asks a gateway by a signed POST with the JSON body
// {"id", "to", "text", "sent_at"}. Any 2xx answer is acceptance. 408 and 429 mean that this message
// must be tried again later, every other 4xx but 401 and 403 that it will never be taken. Everything
// else, and no answer, is a failure of the gateway. Redirects are not followed, since they would carry
// a code to where nobody configured.
type Webhook struct {
	url    string
	secret secret.Value
	client *http.Client
	clock  clock.Clock
}

// NewWebhook returns a Webhook, or says what is wrong with its options.
func NewWebhook(o WebhookOptions) (*Webhook, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("sms: the webhook's address must be https://host/path without user and fragment")
	}
	if o.Secret.Len() < 16 {
		return nil, errors.New("sms: the webhook's secret must have at least 16 bytes")
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	return &Webhook{
		url: u.String(), secret: o.Secret, clock: o.Clock,
		client: &http.Client{
			Timeout:       o.Timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots},
				ForceAttemptHTTP2:      true,
				TLSHandshakeTimeout:    o.Timeout,
				ResponseHeaderTimeout:  o.Timeout,
				MaxResponseHeaderBytes: 16 << 10,
				MaxIdleConnsPerHost:    8,
				IdleConnTimeout:        time.Minute,
			},
		},
	}, nil
}

// Send implements Sender.
func (w *Webhook) Send(ctx context.Context, m Message) error {
	now := w.clock.Now()
	body, err := json.Marshal(map[string]string{
		"id": m.ID, "to": m.To, "text": m.Text, "sent_at": now.UTC().Format(time.RFC3339),
	})
	if err != nil {
		return fmt.Errorf("sms: encoding message %s: %w", m.ID, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("sms: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", m.ID)
	r.Header.Set("User-Agent", "Strongroom")
	r.Header.Set(SignatureHeader, Sign(w.secret, now, body))
	answer, err := w.client.Do(r)
	if err != nil {
		// What the client adds is the address, which may hold a password.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return fmt.Errorf("sms: asking the gateway: %w", err)
	}
	defer answer.Body.Close()
	// Reading to the end lets the connection be used again; a longer answer costs the connection.
	if _, err := io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer)); err != nil {
		return fmt.Errorf("sms: reading the gateway's answer: %w", err)
	}
	switch status := answer.StatusCode; {
	case status >= 200 && status <= 299:
		return nil
	case status == http.StatusRequestTimeout || status == http.StatusTooManyRequests:
		return fmt.Errorf("%w (status %d)", ErrLater, status)
	case status >= 400 && status <= 499 && status != http.StatusUnauthorized && status != http.StatusForbidden:
		return fmt.Errorf("%w (status %d)", ErrRejected, status)
	default:
		return fmt.Errorf("sms: the gateway answered with status %d", status)
	}
}

// Sign returns the value of SignatureHeader for a body sent at the given time.
func Sign(key secret.Value, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	h := hmac.New(sha256.New, key.Reveal())
	h.Write([]byte(t + "."))
	h.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(h.Sum(nil))
}
