// Package problem holds the errors that a caller may be told about. A Problem keeps apart what may
// be said (its type, title and detail, as RFC 9457 asks) from what is only logged (its cause).
// Every error that is not a Problem is answered with a bare 500 and an id.
package problem

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Kind is a class of failure; each has one HTTP status code.
type Kind int

// The kinds of failure, each with the HTTP status that it becomes.
const (
	Invalid              Kind = http.StatusBadRequest            // the request is malformed
	Unauthenticated      Kind = http.StatusUnauthorized          // who calls is not proven
	Forbidden            Kind = http.StatusForbidden             // who calls may not do this
	NotFound             Kind = http.StatusNotFound              // there is no such thing for this caller
	MethodNotAllowed     Kind = http.StatusMethodNotAllowed      // the resource has no such method
	NotAcceptable        Kind = http.StatusNotAcceptable         // no representation fits Accept
	Conflict             Kind = http.StatusConflict              // the state does not allow it
	Gone                 Kind = http.StatusGone                  // it was erased
	PreconditionFailed   Kind = http.StatusPreconditionFailed    // If-Match names another version
	TooLarge             Kind = http.StatusRequestEntityTooLarge // the body is over its limit
	UnsupportedMedia     Kind = http.StatusUnsupportedMediaType  // the body is not JSON
	Unprocessable        Kind = http.StatusUnprocessableEntity   // well-formed, but a value is wrong
	PreconditionRequired Kind = http.StatusPreconditionRequired  // If-Match is needed
	TooMany              Kind = http.StatusTooManyRequests       // a limit was reached; see Retry-After
	Internal             Kind = http.StatusInternalServerError   // our fault
	Unavailable          Kind = http.StatusServiceUnavailable    // our fault, for a while; see Retry-After
)

// URN is what stands before a problem's slug in its "type" member.
const URN = "urn:strongroom:problem:"

// Problem is an error with an outside and an inside. It implements the interfaces through which
// huma writes errors, so an operation just returns it.
type Problem struct {
	kind       Kind
	slug       string
	detail     string
	cause      error
	retryAfter time.Duration
	members    map[string]any
	header     http.Header
}

// New returns a problem. The slug is stable and names the problem's type; the detail is for the
// caller, says what to do, and must hold no secret and no personal value.
func New(kind Kind, slug, detail string, args ...any) *Problem {
	if len(args) > 0 {
		detail = fmt.Sprintf(detail, args...)
	}
	return &Problem{kind: kind, slug: slug, detail: detail}
}

// Because returns a copy of p with the cause that the log, never the caller, is told.
func (p *Problem) Because(err error) *Problem {
	q := *p
	q.cause = err
	return &q
}

// RetryAfter returns a copy of p that asks the caller to wait at least d, in whole seconds.
func (p *Problem) RetryAfter(d time.Duration) *Problem {
	q := *p
	q.retryAfter = d
	return &q
}

// With returns a copy of p with an extension member (RFC 9457 section 3.2).
func (p *Problem) With(name string, value any) *Problem {
	q := *p
	q.members = make(map[string]any, len(p.members)+1)
	for k, v := range p.members {
		q.members[k] = v
	}
	q.members[name] = value
	return &q
}

// WithHeader returns a copy of p whose answer carries the header.
func (p *Problem) WithHeader(name, value string) *Problem {
	q := *p
	if q.header = p.header.Clone(); q.header == nil {
		q.header = http.Header{}
	}
	q.header.Set(name, value)
	return &q
}

// Kind returns the class of failure.
func (p *Problem) Kind() Kind { return p.kind }

// Slug returns the stable name of the problem's type.
func (p *Problem) Slug() string { return p.slug }

// Detail returns what the caller is told.
func (p *Problem) Detail() string { return p.detail }

// Member returns an extension member, or nil.
func (p *Problem) Member(name string) any { return p.members[name] }

// Error returns the inside and the outside; it belongs in logs, not in answers.
func (p *Problem) Error() string {
	if p.cause != nil {
		return p.slug + ": " + p.cause.Error()
	}
	return p.slug + ": " + p.detail
}

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.cause }

// Is reports whether target is a Problem with the same slug, so that errors.Is works across copies.
func (p *Problem) Is(target error) bool {
	t, ok := target.(*Problem)
	return ok && t.slug == p.slug
}

// GetStatus returns the HTTP status code.
func (p *Problem) GetStatus() int { return int(p.kind) }

// ContentType returns application/problem+json.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders returns the headers of the answer, Retry-After among them.
func (p *Problem) GetHeaders() http.Header {
	h := p.header.Clone()
	if h == nil {
		h = http.Header{}
	}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retryAfter+time.Second-1)/time.Second)))
	}
	return h
}

// MarshalJSON writes the outside, as RFC 9457 section 3 describes it.
func (p *Problem) MarshalJSON() ([]byte, error) {
	m := make(map[string]any, len(p.members)+4)
	for k, v := range p.members {
		m[k] = v
	}
	m["type"] = URN + p.slug
	m["title"] = http.StatusText(int(p.kind))
	m["status"] = int(p.kind)
	if p.detail != "" {
		m["detail"] = p.detail
	}
	return json.Marshal(m)
}

// Of returns the Problem in err's chain, or nil.
func Of(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return nil
}

// Is reports whether err's chain holds a Problem with the slug.
func Is(err error, slug string) bool {
	p := Of(err)
	return p != nil && p.slug == slug
}
