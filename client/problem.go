package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Problem is what the server answers when it does not do what was asked (RFC 9457). Its texts are
// the server's; they never hold a secret or a personal value.
type Problem struct {
	Type       string // "urn:strongroom:problem:<slug>"
	Slug       Slug   // the last part of Type; "" when the answer was no problem document
	Title      string
	Status     int // HTTP status code
	Detail     string
	Members    map[string]json.RawMessage // the problem's extension members
	RequestID  string                     // quote it when you ask the operator
	RetryAfter time.Duration              // how long to wait before another attempt; 0 when not said
}

// Error returns the problem in one line.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString("strongroom: ")
	if p.Slug != "" {
		fmt.Fprintf(&b, "%s (%d)", string(p.Slug), p.Status)
	} else {
		fmt.Fprintf(&b, "status %d", p.Status)
	}
	if p.Detail != "" {
		b.WriteString(": " + p.Detail)
	} else if p.Title != "" {
		b.WriteString(": " + p.Title)
	}
	if p.RequestID != "" {
		b.WriteString(" [request " + p.RequestID + "]")
	}
	return b.String()
}

// Is reports whether target is the Slug of this problem, so that errors.Is(err, ErrLoginFailed) works.
func (p *Problem) Is(target error) bool {
	s, ok := target.(Slug)
	return ok && s == p.Slug && s != ""
}

// Text returns an extension member that is a string, or "".
func (p *Problem) Text(member string) string {
	var s string
	if json.Unmarshal(p.Members[member], &s) != nil {
		return ""
	}
	return s
}

// Slug names a kind of problem. It is an error so that errors.Is can compare a *Problem with it.
type Slug string

// Error returns the slug.
func (s Slug) Error() string { return "strongroom: " + string(s) }

// The problems that an app is most likely to tell apart. Any other is Slug("…").
const (
	ErrRegistrationFailed Slug = "registration-failed"   // wrong or expired code, or an account exists already
	ErrWeakPrivateCode    Slug = "weak-private-code"     // choose another; see Detail
	ErrWrongPrivateCode   Slug = "wrong-private-code"    // of ChangePrivateCode
	ErrLoginFailed        Slug = "login-failed"          // one of the factors is wrong; which one is not said
	ErrDevicePending      Slug = "device-pending"        // all factors are right; the device, Text("device"), awaits approval
	ErrWrongNumber        Slug = "wrong-number"          // not the number that the new device shows
	ErrStepUpNeeded       Slug = "step-up-needed"        // log in again, and repeat it in the new session
	ErrInsufficientScope  Slug = "insufficient-scope"    // log in again, and ask for the scope
	ErrSessionRevoked     Slug = "session-revoked"       // log in again
	ErrInvalidRefresh     Slug = "invalid-refresh-token" // log in again
	ErrInvalidToken       Slug = "invalid-token"         // the session has ended
	ErrThisDeviceRevoked  Slug = "this-device-revoked"   // for good: wipe what the device keeps
	ErrTokenExpired       Slug = "token-expired"         // the Client refreshes it by itself
	ErrInvalidProof       Slug = "invalid-dpop-proof"    // not the session's device, or the device's clock is wrong
	ErrUseNonce           Slug = "use-dpop-nonce"        // the Client answers it by itself
	ErrRecordNotFound     Slug = "record-not-found"
	ErrCollectionNotFound Slug = "collection-not-found"
	ErrInvalidRecord      Slug = "invalid-record"        // FieldErrors says which fields
	ErrVersionMismatch    Slug = "version-mismatch"      // somebody else has changed the record; read it again
	ErrPreconditionNeeded Slug = "precondition-required" // use IfMatch to replace a record
	ErrPurposeRequired    Slug = "purpose-required"
	ErrPurposeNotAllowed  Slug = "purpose-not-allowed"
	ErrTooManyRequests    Slug = "too-many-requests" // wait for RetryAfter
	ErrSMSUnavailable     Slug = "sms-unavailable"
	ErrLoginBusy          Slug = "login-busy"
)

// FieldError says what is wrong with one field.
type FieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// FieldErrors returns what is wrong with which field, for ErrInvalidRecord and the like.
func (p *Problem) FieldErrors() []FieldError {
	var f []FieldError
	if json.Unmarshal(p.Members["errors"], &f) != nil {
		return nil
	}
	return f
}

const urn = "urn:strongroom:problem:"

func problemOf(a answer, now time.Time) *Problem {
	p := &Problem{
		Title:      http.StatusText(a.status),
		Status:     a.status,
		RequestID:  a.header.Get("X-Request-Id"),
		RetryAfter: retryAfter(a.header.Get("Retry-After"), now),
	}
	var members map[string]json.RawMessage
	if !isType(a.header, "application/problem+json") || json.Unmarshal(a.body, &members) != nil {
		p.Detail = "the answer is not one of Strongroom's; is this its address?"
		return p
	}
	for name, field := range map[string]*string{"type": &p.Type, "title": &p.Title, "detail": &p.Detail} {
		if json.Unmarshal(members[name], field) == nil {
			delete(members, name)
		}
	}
	delete(members, "status") // the answer's own counts
	p.Members = members
	if slug, ok := strings.CutPrefix(p.Type, urn); ok {
		p.Slug = Slug(slug)
	}
	return p
}

// retryAfter reads the header in both its forms (RFC 9110 section 10.2.3).
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}
