package sms

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"strongroom/internal/secret"
)

// State is what a provider says has become of a message that it accepted.
type State string

// The states. Providers report steps on the way too; those are Underway.
const (
	Underway  State = "underway"
	Delivered State = "delivered"
	Failed    State = "failed"
)

// Receipt is a provider's report about a message.
type Receipt struct {
	Message string // the Message.ID
	State   State
	Code    string // the provider's own code for the reason, at most 40 letters, digits and -_.; may be empty
}

// Reporter is a Sender whose provider reports what became of messages. Receipt reads a report from a
// request with that body, once it knows that the provider made it. Everything else is ErrReceipt.
type Reporter interface {
	Sender
	Receipt(r *http.Request, body []byte) (Receipt, error)
}

// ErrReceipt means that a request is not a report of the provider.
var ErrReceipt = errors.New("sms: not a delivery receipt of this provider")

// MaxReceipt bounds the body of a report, in bytes.
const MaxReceipt = 16 << 10

// receiptAge is how old a signed report may be, and how far ahead of our clock.
const receiptAge = 5 * time.Minute

// receiptCode makes a provider's code fit for a log and an event.
func receiptCode(s string) string {
	s = strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.' {
			return c
		}
		return -1
	}, s)
	return s[:min(len(s), 40)]
}

// Receipt implements Reporter: a gateway reports by a POST that is signed as ours are, with the body
// {"id": …, "state": "delivered" | "failed" | "underway", "code": …}.
func (w *Webhook) Receipt(r *http.Request, body []byte) (Receipt, error) {
	if !Verify(w.secret, r.Header.Values(SignatureHeader), body, w.clock.Now()) {
		return Receipt{}, ErrReceipt
	}
	var in struct {
		ID    string `json:"id"`
		State State  `json:"state"`
		Code  string `json:"code"`
	}
	if err := json.Unmarshal(body, &in); err != nil || in.ID == "" {
		return Receipt{}, ErrReceipt
	}
	switch in.State {
	case Delivered, Failed, Underway:
		return Receipt{in.ID, in.State, receiptCode(in.Code)}, nil
	}
	return Receipt{}, ErrReceipt
}

// Verify reports whether headers are the one signature that Sign makes of body, not older than five minutes and not
// from further ahead.
func Verify(key secret.Value, headers []string, body []byte, now time.Time) bool {
	if len(headers) != 1 {
		return false
	}
	stamp, _, ok := strings.Cut(strings.TrimPrefix(headers[0], "t="), ",")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if !ok || err != nil {
		return false
	}
	at := time.Unix(seconds, 0)
	if now.Sub(at) > receiptAge || at.Sub(now) > receiptAge {
		return false
	}
	return hmac.Equal([]byte(headers[0]), []byte(Sign(key, at, body)))
}

// Carrier is a Sender of several providers. Carry is Send that leaves out the providers named in not,
// unless no other is left, and says which one took the message.
type Carrier interface {
	Sender
	Carry(ctx context.Context, m Message, not []string) (via string, err error)
}
