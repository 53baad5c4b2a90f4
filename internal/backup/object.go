package backup

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"strongroom/internal/keyring/seal"
	"strongroom/internal/keyring/stream"
)

// Everything in a repository but its header is an object: the plaintext is compressed, encrypted in
// chunks (package stream) under a file key of its own, and the file key sealed under the repository's
// key for the name of the object. An object of data is named by the MAC of its plaintext, so equal content
// is stored once and nobody without the key learns that two contents are equal to one they know.

// masterSize is the length of a repository's master key in bytes.
const masterSize = 32

// ErrObject means that an object was altered, cut, or put in another's place.
var ErrObject = errors.New("backup: the object is damaged or is not what its name says")

// maxObject bounds the plaintext of one object in bytes.
const maxObject = 256 << 20

// vaultKey opens and makes the objects of a set of repositories that hold the same things.
type vaultKey struct {
	ring     *seal.Ring
	name     []byte // MACs plaintexts into names
	row      []byte // MACs rows and keys of rows into fingerprints
	recovery []byte // MACs what a header has for the holders of the recovery keys
}

// newVaultKey derives the keys from the master key. Part says what the repositories hold; the scope names
// the environment and the installation.
func newVaultKey(master []byte, scope string, part Part) (*vaultKey, error) {
	if len(master) != masterSize {
		return nil, fmt.Errorf("backup: a repository's key has %d bytes, not %d", masterSize, len(master))
	}
	derive := func(use string) []byte {
		key, err := hkdf.Key(sha256.New, master, nil, "strongroom backup v1 "+use+" "+string(part), sha256.Size)
		if err != nil {
			panic("backup: " + err.Error()) // only for an output that is too long
		}
		return key
	}
	material := derive("objects")
	defer clear(material)
	key, err := seal.NewKey(1, material)
	if err != nil {
		return nil, err
	}
	ring, err := seal.NewRing(scope+"/backup/"+string(part), key)
	if err != nil {
		return nil, err
	}
	return &vaultKey{ring: ring, name: derive("names"), row: derive("rows"), recovery: derive("recovery")}, nil
}

// mark returns the MAC of what a header has for the holders of the recovery keys.
func (k *vaultKey) mark(h *header) []byte {
	mac := hmac.New(sha256.New, k.recovery)
	fmt.Fprintf(mac, "%d %s ", len(h.RecoveryOf), h.RecoveryOf)
	mac.Write(h.Recovery)
	return mac.Sum(nil)
}

// sealed reports whether this installation has sealed what the header has for the holders of the recovery keys.
func (k *vaultKey) sealed(h *header) bool { return hmac.Equal(h.RecoveryMark, k.mark(h)) }

// nameOf returns the name of the object with that plaintext.
func (k *vaultKey) nameOf(plaintext []byte) string {
	mac := hmac.New(sha256.New, k.name)
	mac.Write(plaintext)
	return hex.EncodeToString(mac.Sum(nil))
}

// fingerprints returns the function that shortens rows and their keys.
func (k *vaultKey) fingerprints() func(parts ...[]byte) fingerprint {
	var mac hash.Hash = hmac.New(sha256.New, k.row)
	var sum []byte
	return func(parts ...[]byte) (f fingerprint) {
		mac.Reset()
		for _, p := range parts {
			mac.Write(p)
		}
		sum = mac.Sum(sum[:0])
		copy(f[:], sum)
		return f
	}
}

// fingerprint stands for a row or its key: 128 bits of an HMAC-SHA-256.
type fingerprint [16]byte

func objectPlace(name string) seal.Place {
	return seal.Place{Room: "backup", Table: "object", Record: name}
}

// sealedKeySize is how long a sealed file key is.
const sealedKeySize = stream.KeySize + seal.Overhead

// The encoder and the decoder are kept for good: each has some megabytes that it works in.
var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic("backup: " + err.Error()) // only for options that do not exist
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxObject))
		if err != nil {
			panic("backup: " + err.Error())
		}
		return d
	})
)

// packing are buffers for what is compressed and not encrypted yet.
var packing = sync.Pool{New: func() any { return new([]byte) }}

// seal returns the object with that name and plaintext, as it is stored.
func (k *vaultKey) seal(name string, plaintext []byte) ([]byte, error) {
	buffer := packing.Get().(*[]byte)
	defer packing.Put(buffer)
	*buffer = encoder().EncodeAll(plaintext, (*buffer)[:0])
	packed := *buffer
	fileKey := stream.NewFileKey()
	defer clear(fileKey)
	stored := make([]byte, 0, sealedKeySize+len(packed)+int(stream.Chunks(int64(len(packed))))*stream.Overhead)
	stored = k.ring.AppendSeal(stored, objectPlace(name), fileKey)
	w, err := stream.NewWriter(fileKey, name, func(chunk []byte) error {
		stored = append(stored, chunk...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(packed); err != nil {
		return nil, err
	}
	err = w.Close()
	return stored, err
}

// open returns the plaintext of a stored object. For an object that is named by its content it also holds
// the content against the name.
func (k *vaultKey) open(name string, stored []byte, byContent bool) ([]byte, error) {
	if len(stored) < sealedKeySize {
		return nil, fmt.Errorf("%w: %s is cut short", ErrObject, name)
	}
	fileKey, err := k.ring.Open(objectPlace(name), stored[:sealedKeySize])
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrObject, name)
	}
	defer clear(fileKey)
	r, err := stream.NewReader(fileKey, name, stream.Split(stored[sealedKeySize:]))
	if err != nil {
		return nil, err
	}
	packed := bytes.NewBuffer(make([]byte, 0, len(stored)+bytes.MinRead))
	if _, err := packed.ReadFrom(r); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrObject, name)
	}
	plaintext, err := decoder().DecodeAll(packed.Bytes(), nil)
	if err != nil || len(plaintext) > maxObject {
		return nil, fmt.Errorf("%w: %s", ErrObject, name)
	}
	if byContent && !hmac.Equal([]byte(k.nameOf(plaintext)), []byte(name)) {
		return nil, fmt.Errorf("%w: %s", ErrObject, name)
	}
	return plaintext, nil
}

// newMaster returns a fresh master key.
func newMaster() []byte {
	master := make([]byte, masterSize)
	rand.Read(master)
	return master
}

// sealToRecovery encrypts the master key to the holders of the recovery keys (age).
func sealToRecovery(master []byte, recipients []age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(master); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil // only now: closing writes the end
}

// openWithRecovery is the reverse.
func openWithRecovery(_ context.Context, sealed []byte, identities []age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	if err != nil {
		return nil, fmt.Errorf("this recovery key does not open the repository: %w", err)
	}
	return io.ReadAll(io.LimitReader(r, masterSize+1))
}
