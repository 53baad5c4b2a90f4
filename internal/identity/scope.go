package identity

import (
	"slices"
	"strings"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/problem"
)

// The scopes of a session (RFC 6749 section 3.3), from the least to the most. Each includes those before
// it, and each ends by itself: a session that was granted read and payment may pay until it has idled for
// five minutes (PSD2 RTS art. 4), and goes on reading for weeks.
const (
	ScopeRead    = "read"    // the customer's own data, and the ends of sessions
	ScopeWrite   = "write"   // changes of it; what a login is granted that asks for nothing
	ScopePayment = "payment" // authorisation of payments
)

var scopeOrder = []string{ScopeRead, ScopeWrite, ScopePayment}

// ACR is how the customer of every session was authenticated: with number, private code and one-time code,
// from a device whose key proves itself (NIST SP 800-63B-4 AAL2, PSD2 strong customer authentication).
const ACR = "aal2"

var errInvalidScope = problem.New(problem.Unprocessable, "invalid-scope", "A scope is one or more of %s, with spaces between them.", strings.Join(scopeOrder, ", "))

// readScope returns the scopes that text names, each once and in order.
func readScope(text string) (string, error) {
	if text == "" {
		return ScopeWrite, nil
	}
	asked := strings.Split(text, " ")
	var granted []string
	for _, s := range scopeOrder {
		if slices.Contains(asked, s) {
			granted = append(granted, s)
		}
	}
	for _, s := range asked {
		if !slices.Contains(scopeOrder, s) {
			return "", errInvalidScope
		}
	}
	return strings.Join(granted, " "), nil
}

// limits returns how long a scope lasts unused, and in any case.
func (i *Identity) limits(scope string) (idle, whole time.Duration) {
	switch scope {
	case ScopePayment:
		return i.PaymentIdle, i.SessionLifetime
	case ScopeRead:
		return i.ReadIdle, i.ReadLifetime
	}
	return i.IdleLifetime, i.SessionLifetime
}

// granted returns the scopes of the session; those from before there were scopes may write.
func (s *sessionRow) granted() string {
	if s.scope == "" {
		return ScopeWrite
	}
	return s.scope
}

// ends returns when a scope of the session ends, in Unix microseconds.
func (i *Identity) ends(s *sessionRow, scope string) int64 {
	idle, whole := i.limits(scope)
	return min(s.used+idle.Microseconds(), s.made+whole.Microseconds(), s.expires)
}

// live returns the scopes of the session that have not ended.
func (i *Identity) live(s *sessionRow, now time.Time) string {
	var out []string
	for scope := range strings.SplitSeq(s.granted(), " ") {
		if clock.Micros(now) < i.ends(s, scope) {
			out = append(out, scope)
		}
	}
	return strings.Join(out, " ")
}

// include returns the scopes with all that they include.
func include(scope string) string {
	for n := len(scopeOrder) - 1; n >= 0; n-- {
		if slices.Contains(strings.Split(scope, " "), scopeOrder[n]) {
			return strings.Join(scopeOrder[:n+1], " ")
		}
	}
	return ""
}

// use marks the session used. What has ended by then does not come back.
func (i *Identity) use(s *sessionRow, now time.Time) {
	if live := i.live(s, now); live != s.granted() {
		s.scope = live
	}
	s.used = clock.Micros(now)
	s.idleExpires = 0
	for scope := range strings.SplitSeq(s.granted(), " ") {
		s.idleExpires = max(s.idleExpires, i.ends(s, scope))
	}
}

// touchEvery is how exactly the last use of a session and a device is known. Writing it down at each
// request would make every read a write.
func (i *Identity) touchEvery(s *sessionRow) time.Duration {
	if strings.Contains(s.scope, ScopePayment) {
		return min(time.Minute, i.PaymentIdle/10)
	}
	return time.Minute
}

// within reports whether all scopes that are asked for are among those granted and what they include.
func within(asked, granted string) bool {
	all := strings.Split(include(granted), " ")
	for scope := range strings.FieldsSeq(asked) {
		if !slices.Contains(all, scope) {
			return false
		}
	}
	return true
}
