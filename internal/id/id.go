// Package id makes identifiers: unguessable, ordered by the time they were made, safe in URLs, and
// saying what they name.
//
// An identifier is a prefix, an underscore and 26 characters of lower-case Crockford base32 over
// 128 bits: 48 bits of Unix milliseconds and 80 random bits (the layout of RFC 9562 UUIDv7 without
// its version bits). Being ordered by time keeps B-tree inserts at the right edge of the index.
package id

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
	"time"
)

var encoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// length is the number of base32 characters after the prefix and its underscore.
const length = 26

// New returns a fresh identifier with the prefix, for example "cus_01jd…".
func New(prefix string) string {
	var raw [16]byte
	ms := uint64(time.Now().UnixMilli())
	for i := range 6 {
		raw[i] = byte(ms >> (40 - 8*i))
	}
	rand.Read(raw[6:])
	return prefix + "_" + encoding.EncodeToString(raw[:])
}

// Valid reports whether s has the form that New(prefix) returns. Handlers ask it before they ask
// the database, so that no outside byte reaches a query unchecked.
func Valid(prefix, s string) bool {
	body, ok := strings.CutPrefix(s, prefix+"_")
	if !ok || len(body) != length {
		return false
	}
	for i := range len(body) {
		if strings.IndexByte("0123456789abcdefghjkmnpqrstvwxyz", body[i]) < 0 {
			return false
		}
	}
	return true
}
