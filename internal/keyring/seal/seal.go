// Package seal encrypts one value so that it opens only in the place it was sealed for.
//
// A value is sealed with AES-256-GCM (NIST SP 800-38D) under one version of a key, with a
// random 96-bit nonce. What the value is (the Place) and whose key it is (the scope of the Ring) are
// associated data: a sealed value that is moved to another row, customer, table, version, environment
// or key does not open. The package is pure: no I/O, no clock, no state but the keys.
//
// Sealed format, version 1:
//
//	offset  size  field
//	0       1     format version, 0x01
//	1       4     key version, big endian
//	5       12    nonce
//	17      n     ciphertext
//	17+n    16    tag
//
// Associated data: the format version (1 byte), the key version (4 bytes), then scope, room, table,
// customer and record, each as a 4-byte big-endian length and its bytes, then the place's version
// (8 bytes). Every field has a fixed position and a known length, so two different places never
// encode alike.
//
// One key version seals at most 2^32 values (SP 800-38D section 8.3): Counter counts them.
package seal

import (
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

const (
	// KeySize is the length of a key in bytes.
	KeySize = 32
	// Overhead is how many bytes longer a sealed value is than its plaintext.
	Overhead = headerSize + nonceSize + tagSize

	formatV1   = 0x01
	headerSize = 1 + 4
	nonceSize  = 12
	tagSize    = 16
)

var (
	// ErrOpen means that the value was altered, or was not sealed for this place with this key. It
	// says nothing more, so that it helps nobody who is guessing.
	ErrOpen = errors.New("seal: the value does not open here")
	// ErrKeyVersion means that the value was sealed with a key version that the ring does not hold.
	ErrKeyVersion = errors.New("seal: the value was sealed with a key version that is not here")
)

// Place says where a sealed value lives. All of it is associated data. Fields that don't apply stay
// empty.
type Place struct {
	Room     string // the package that owns the value
	Table    string
	Customer string // whose value it is; empty if nobody's
	Record   string // the row within table and customer
	Version  int64  // the version of the row
}

// Key is one version of a key. It cannot be read back or printed.
type Key struct {
	version uint32
	aead    cipher.AEAD
	counter *Counter // nil counts nothing
}

// NewKey returns the key with the given version, which counts from 1, and KeySize bytes of material.
// It keeps no reference to material; the caller should clear it.
func NewKey(version uint32, material []byte) (*Key, error) {
	if version == 0 {
		return nil, errors.New("seal: key versions count from 1")
	}
	if len(material) != KeySize {
		return nil, fmt.Errorf("seal: a key has %d bytes, not %d", KeySize, len(material))
	}
	aead, err := newAEAD(material)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return &Key{version: version, aead: aead}, nil
}

func newAEAD(material []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(material)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Version returns the version of the key.
func (k Key) Version() uint32 { return k.version }

// Ring holds versions of one key: the newest seals, unless Under chose another; any opens. It is
// immutable and safe for concurrent use.
type Ring struct {
	scope string
	keys  []*Key // newest first
	seals *Key   // one of keys
}

// NewRing returns a ring of the keys, of which there is at least one and no two have the same
// version. The scope is bound into everything that the ring seals; it names the environment, the
// installation and the key.
func NewRing(scope string, keys ...*Key) (*Ring, error) {
	if len(keys) == 0 {
		return nil, errors.New("seal: a ring needs a key")
	}
	if slices.Contains(keys, nil) {
		return nil, errors.New("seal: a ring's key is nil")
	}
	keys = slices.Clone(keys)
	slices.SortFunc(keys, func(a, b *Key) int { return cmp.Compare(b.version, a.version) })
	for i := range len(keys) - 1 {
		if keys[i].version == keys[i+1].version {
			return nil, fmt.Errorf("seal: the ring has key version %d twice", keys[i].version)
		}
	}
	return &Ring{scope: scope, keys: keys, seals: keys[0]}, nil
}

// Under returns a ring of the same keys in which the given version seals. It fails with ErrKeyVersion
// when the ring does not hold it. While a new version makes its way to every process, the one before
// goes on sealing.
func (r *Ring) Under(version uint32) (*Ring, error) {
	i := slices.IndexFunc(r.keys, func(k *Key) bool { return k.version == version })
	if i < 0 {
		return nil, ErrKeyVersion
	}
	return &Ring{scope: r.scope, keys: r.keys, seals: r.keys[i]}, nil
}

// Version returns the version of the key that seals.
func (r *Ring) Version() uint32 { return r.seals.version }

// Versions returns the versions of all keys in the ring, newest first.
func (r *Ring) Versions() []uint32 {
	versions := make([]uint32, len(r.keys))
	for i, k := range r.keys {
		versions[i] = k.version
	}
	return versions
}

// Holds reports whether the ring opens what the version sealed.
func (r *Ring) Holds(version uint32) bool {
	return slices.ContainsFunc(r.keys, func(k *Key) bool { return k.version == version })
}

// Seal returns plaintext sealed for p under the key that seals, Overhead bytes longer.
func (r *Ring) Seal(p Place, plaintext []byte) []byte {
	return r.AppendSeal(nil, p, plaintext)
}

// AppendSeal appends what Seal returns to dst. It allocates only when dst has no room left. The two
// slices must not overlap.
func (r *Ring) AppendSeal(dst []byte, p Place, plaintext []byte) []byte {
	k := r.seals
	if k.counter != nil {
		k.counter.take()
	}
	if need := len(plaintext) + Overhead; cap(dst)-len(dst) < need {
		dst = append(make([]byte, 0, len(dst)+need), dst...)
	}
	dst = append(dst, formatV1)
	dst = binary.BigEndian.AppendUint32(dst, k.version)
	ad := r.associated(k.version, p)
	dst = k.aead.Seal(dst, nil, plaintext, *ad)
	buffers.Put(ad)
	return dst
}

// Open returns the plaintext of what was sealed for p. It fails with ErrOpen or ErrKeyVersion.
func (r *Ring) Open(p Place, sealed []byte) ([]byte, error) {
	return r.AppendOpen(nil, p, sealed)
}

// AppendOpen appends what Open returns to dst. It allocates only when dst has no room left. The two
// slices must not overlap.
func (r *Ring) AppendOpen(dst []byte, p Place, sealed []byte) ([]byte, error) {
	version, err := KeyVersion(sealed)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(r.keys, func(k *Key) bool { return k.version == version })
	if i < 0 {
		return nil, ErrKeyVersion
	}
	ad := r.associated(version, p)
	opened, err := r.keys[i].aead.Open(dst, nil, sealed[headerSize:], *ad)
	buffers.Put(ad)
	if err != nil {
		return nil, ErrOpen
	}
	return opened, nil
}

// KeyVersion returns the version of the key that sealed claims to be sealed with. Only opening it
// proves the claim. It fails with ErrOpen when sealed has no such form.
func KeyVersion(sealed []byte) (uint32, error) {
	if len(sealed) < Overhead || sealed[0] != formatV1 {
		return 0, ErrOpen
	}
	return binary.BigEndian.Uint32(sealed[1:]), nil
}

// Header returns the first bytes of all that the version seals, by which a database finds it.
func Header(version uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{formatV1}, version)
}

// buffers holds associated data that is no longer used: passed through the AEAD interface, a buffer
// on the stack would escape to the heap on every call.
var buffers = sync.Pool{New: func() any { return new(make([]byte, 0, 256)) }}

// associated returns the associated data in a buffer that the caller puts back.
func (r *Ring) associated(version uint32, p Place) *[]byte {
	buffer := buffers.Get().(*[]byte)
	b := append((*buffer)[:0], formatV1)
	b = binary.BigEndian.AppendUint32(b, version)
	b = appendField(b, r.scope)
	b = appendField(b, p.Room)
	b = appendField(b, p.Table)
	b = appendField(b, p.Customer)
	b = appendField(b, p.Record)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Version))
	*buffer = b
	return buffer
}

func appendField(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// fmt reaches unexported fields, the key schedule included: these methods keep it away from them.

const redacted = "[redacted]"

// String hides the key.
func (k Key) String() string { return redacted }

// GoString hides the key from %#v.
func (k Key) GoString() string { return redacted }

// Format hides the key from every verb.
func (k Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the key from log/slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// String hides the keys.
func (r Ring) String() string { return redacted }

// GoString hides the keys from %#v.
func (r Ring) GoString() string { return redacted }

// Format hides the keys from every verb.
func (r Ring) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the keys from log/slog.
func (r Ring) LogValue() slog.Value { return slog.StringValue(redacted) }
