// Package secret holds values that must never be printed. A Value formats, marshals and logs as
// "[redacted]"; the only way to its bytes is Reveal, which is easy to find in a review.
package secret

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Value is a secret: a key, a passphrase, a private code, a one-time code, a token.
// The zero Value is empty.
type Value struct {
	// A pointer, because fmt answers some wrong verbs (%p) with a struct's raw members before it
	// asks Format; of a pointer it prints the address.
	b *[]byte
}

// New returns a Value that holds b itself, not a copy.
func New(b []byte) Value { return Value{&b} }

// FromString returns a Value that holds the bytes of s.
func FromString(s string) Value { return New([]byte(s)) }

// Reveal returns the secret's own bytes. The caller must not change or log them.
func (v Value) Reveal() []byte {
	if v.b == nil {
		return nil
	}
	return *v.b
}

// Len returns the length in bytes.
func (v Value) Len() int { return len(v.Reveal()) }

// IsZero reports whether there is no secret.
func (v Value) IsZero() bool { return v.Len() == 0 }

// Equal compares in constant time for values of equal length.
func (v Value) Equal(w Value) bool { return subtle.ConstantTimeCompare(v.Reveal(), w.Reveal()) == 1 }

// Wipe overwrites the bytes. Copies that others made stay.
func (v Value) Wipe() { clear(v.Reveal()) }

// String hides the secret from fmt.
func (v Value) String() string { return redacted }

// GoString hides the secret from %#v.
func (v Value) GoString() string { return redacted }

// Format hides the secret from every verb, %x included.
func (v Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the secret from log/slog.
func (v Value) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the secret from text encoders.
func (v Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON hides the secret from encoding/json.
func (v Value) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// UnmarshalJSON reads a JSON string, so that request bodies can carry secrets.
func (v *Value) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("secret is not a JSON string")
	}
	*v = FromString(s)
	return nil
}
