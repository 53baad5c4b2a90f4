package sink

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/secret"
)

// SignatureHeader carries the signature of a request: "t=<Unix seconds>,v1=<hex>", where v1 is the
// HMAC-SHA-256, under the shared secret, of the seconds, a full stop and the body.
const SignatureHeader = "Strongroom-Signature"

// Window is how old or new a signature's time may be for Verify.
const Window = 5 * time.Minute

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 10

// minSecret is the least length of a webhook's secret in bytes.
const minSecret = 16

// WebhookOptions configure a Webhook.
type WebhookOptions struct {
	URL    string       // https, without user and fragment
	Secret secret.Value // at least 16 bytes
	TLS    *tls.Config  // nil: the host's authorities, no certificate
	Encode Encode
	Clock  clock.Clock
}

// Webhook posts events as JSON lines (application/x-ndjson), up to some hundred in a request. An answer of
// 2xx says that they are kept; after any other, and after none, the same come again. Redirects are not
// followed.
type Webhook struct {
	WebhookOptions
	client *http.Client
}

// NewWebhook returns a Webhook, or says what is wrong with its options.
func NewWebhook(o WebhookOptions) (*Webhook, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("sink: the webhook's address must be https://host/path without user and fragment")
	}
	if o.Secret.Len() < minSecret {
		return nil, fmt.Errorf("sink: the webhook's secret must have at least %d bytes", minSecret)
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.TLS == nil {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return &Webhook{o, &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: o.TLS, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 16 << 10, IdleConnTimeout: time.Minute,
		},
	}}, nil
}

// Send implements audit.Sink.
func (w *Webhook) Send(ctx context.Context, events []audit.Entry) error {
	body, err := lines(events, w.Encode)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	r.Header.Set("Content-Type", "application/x-ndjson")
	r.Header.Set("User-Agent", "Strongroom")
	r.Header.Set("Strongroom-Events", strconv.Itoa(len(events)))
	r.Header.Set(SignatureHeader, sign(w.Secret, w.Clock.Now(), body))
	answer, err := w.client.Do(r)
	if err != nil {
		// What the client adds is the address, which may hold a password.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return fmt.Errorf("sink: asking the webhook: %w", err)
	}
	defer answer.Body.Close()
	// Reading to the end lets the connection be used again.
	if _, err := io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer)); err != nil {
		return fmt.Errorf("sink: reading the webhook's answer: %w", err)
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("sink: the webhook answered with status %d", answer.StatusCode)
	}
	return nil
}

// Close closes the connections.
func (w *Webhook) Close() error {
	w.client.CloseIdleConnections()
	return nil
}

func sign(key secret.Value, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac(key, t, body))
}

func mac(key secret.Value, t string, body []byte) []byte {
	h := hmac.New(sha256.New, key.Reveal())
	h.Write([]byte(t + "."))
	h.Write(body)
	return h.Sum(nil)
}

// ErrSignature means that a request was not signed with the secret, or not lately.
var ErrSignature = errors.New("sink: the signature does not hold")

// Verify is what a receiver does with the value of SignatureHeader: it recomputes the signature of the
// body, compares in constant time, and refuses a time that is more than Window away from now, so that an
// old request that somebody kept is worth nothing. It fails with ErrSignature.
func Verify(key secret.Value, header string, body []byte, now time.Time) error {
	stamp, signature, ok := strings.Cut(header, ",v1=")
	t, ok2 := strings.CutPrefix(stamp, "t=")
	seconds, err := strconv.ParseInt(t, 10, 64)
	if !ok || !ok2 || err != nil || strconv.FormatInt(seconds, 10) != t {
		return ErrSignature
	}
	given, err := hex.DecodeString(signature)
	if err != nil || !hmac.Equal(given, mac(key, t, body)) {
		return ErrSignature
	}
	if age := now.Unix() - seconds; age > int64(Window/time.Second) || age < -int64(Window/time.Second) {
		return fmt.Errorf("%w (its time is more than %v away)", ErrSignature, Window)
	}
	return nil
}
