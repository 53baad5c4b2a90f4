package dpop

import (
	"crypto"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"sync"
	"time"
)

const sha256CryptoHash = crypto.SHA256

// NonceLifetime is how long a nonce is accepted after it was made.
const NonceLifetime = 5 * time.Minute

// nonceSkew is how far in the future another replica's nonce may have been made.
const nonceSkew = 30 * time.Second

// Authenticator makes and remakes message authentication codes under a versioned key that all
// replicas share.
type Authenticator interface {
	// MAC returns the code of the parts under the newest key, and the key's version.
	MAC(parts ...[]byte) ([]byte, uint32)
	// MACVersion returns the code under the key of that version, or an error when there is none.
	MACVersion(version uint32, parts ...[]byte) ([]byte, error)
}

// Nonces makes the server's nonces (RFC 9449 section 8). They hold their own time and a code over it,
// so nothing is stored, and a nonce of one replica is good at all of them.
//
// All nonces of one second are one, so those that are good at any moment are few, and each is checked
// once: they are no secret, and their time is looked at whenever they come.
type Nonces struct {
	keys Authenticator

	mu    sync.RWMutex
	known map[string]time.Time // nonces of ours, with their times
}

// maxKnown is three times as many as can be good at once under one key.
const maxKnown = 1024

// NewNonces returns Nonces made with the keys.
func NewNonces(keys Authenticator) *Nonces { return &Nonces{keys: keys, known: map[string]time.Time{}} }

// A nonce is a key version (4 bytes), Unix seconds (8 bytes) and the first 16 bytes of the code.
const (
	nonceHead = 12
	nonceSize = nonceHead + 16
)

var noncePurpose = []byte("identity.dpop-nonce")

// Make returns a nonce that is good for NonceLifetime from now.
func (n *Nonces) Make(now time.Time) string {
	var raw [nonceSize]byte
	binary.BigEndian.PutUint64(raw[4:], uint64(now.Unix()))
	mac, version := n.keys.MAC(noncePurpose, raw[4:nonceHead])
	binary.BigEndian.PutUint32(raw[:], version)
	copy(raw[nonceHead:], mac)
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

// Check reports whether nonce is one of ours and still good at now.
func (n *Nonces) Check(nonce string, now time.Time) bool {
	made, ok := n.read(nonce)
	return ok && inTime(made, now)
}

func inTime(made, now time.Time) bool {
	age := now.Sub(made)
	return age <= NonceLifetime && age >= -nonceSkew
}

// read returns when a nonce was made, if it is one of ours.
func (n *Nonces) read(nonce string) (made time.Time, ok bool) {
	n.mu.RLock()
	made, ok = n.known[nonce]
	n.mu.RUnlock()
	if ok {
		return made, true
	}
	if made, ok = n.check(nonce); !ok {
		return made, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.known) >= maxKnown {
		clear(n.known)
	}
	n.known[strings.Clone(nonce)] = made
	return made, true
}

// check is read without memory.
func (n *Nonces) check(nonce string) (made time.Time, ok bool) {
	var raw [nonceSize]byte
	if l, err := decode(raw[:], nonce); err != nil || l != nonceSize {
		return time.Time{}, false
	}
	mac, err := n.keys.MACVersion(binary.BigEndian.Uint32(raw[:]), noncePurpose, raw[4:nonceHead])
	if err != nil || subtle.ConstantTimeCompare(mac[:nonceSize-nonceHead], raw[nonceHead:]) != 1 {
		return time.Time{}, false
	}
	return time.Unix(int64(binary.BigEndian.Uint64(raw[4:])), 0), true
}

// MadeAt returns when a nonce was made, if it is one of ours, however old it is.
func (n *Nonces) MadeAt(nonce string) (time.Time, bool) { return n.read(nonce) }
