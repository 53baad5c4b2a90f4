package keyring

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"

	"strongroom/internal/secret"
)

// Root is the key at the top: it wraps the key-encryption keys and the database's file key, and
// nothing else. The context is bound: what was wrapped with one context is refused with another.
//
// A root whose service does not answer fails with the problem "keys-unavailable"; what it answers
// wrongly fails with ErrUnwrap or ErrContext.
type Root interface {
	Wrap(ctx context.Context, plaintext, context []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, context []byte) ([]byte, error)
	ID() string // names the root key; stands in the database and in logs, so it holds no secret
	Close() error
}

// What may be wrong with a root key and with what it wrapped. The errors that carry them name the
// remedy.
var (
	ErrNoRoot      = errors.New("there is no root key")
	ErrPassphrase  = errors.New("the passphrase does not open the root key")
	ErrDamaged     = errors.New("the file is damaged")
	ErrPermissions = errors.New("the file's permissions are too loose")
	ErrExists      = errors.New("the file exists")
	ErrUnwrap      = errors.New("the wrapped key does not open with this root key")
	ErrContext     = errors.New("the wrapped key was made for another purpose, environment or installation")
	ErrOtherRoot   = errors.New("the keys are wrapped by another root key")
	ErrEnvironment = errors.New("the keys belong to another environment or installation")
)

// RootConfig says where the root key is.
type RootConfig struct {
	// URL is empty or file:///… for a local root key file, age:///… for a file with an age identity, or
	// the key's URL at a key management
	// service, as gocloud.dev/secrets writes it: awskms://, gcpkms://, azurekeyvault://, hashivault://.
	// The drivers of those live in strongroom/internal/keyring/kms and are there when it is imported.
	URL string
	// Path is the local root key file when URL is empty.
	Path string
	// Passphrase opens the local root key file, or the age identity when it is encrypted.
	Passphrase secret.Value
}

// OpenRoot opens the root key that c names. A root at a key management service is first called when
// something is wrapped or unwrapped.
func OpenRoot(ctx context.Context, c RootConfig) (Root, error) {
	if c.URL == "" {
		return openLocalRoot(c.Path, c.Passphrase)
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme == "" {
		return nil, errors.New("the root key's URL cannot be parsed: write it as file:///path/root.key or awskms://…, gcpkms://…, azurekeyvault://…, hashivault://…")
	}
	if u.Scheme == "file" {
		if u.Host != "" || u.Path == "" {
			return nil, errors.New("the root key's file URL needs three slashes and an absolute path: file:///path/root.key")
		}
		return openLocalRoot(u.Path, c.Passphrase)
	}
	if u.Scheme == "age" {
		if u.Host != "" || u.Path == "" {
			return nil, errors.New("the root key's age URL needs three slashes and an absolute path: age:///path/identity.age")
		}
		return openAgeRoot(u.Path, c.Passphrase)
	}
	return openRemoteRoot(ctx, c.URL, u)
}

const bindingV1 = 0x01

// bind puts the digest of the context in front of the plaintext. Key management services differ in
// what context they take, if any; a digest inside the ciphertext works with all of them, stays under
// the 190 bytes that RSA-OAEP leaves, and tells "altered" from "made for something else".
func bind(plaintext, context []byte) []byte {
	digest := sha256.Sum256(context)
	b := make([]byte, 0, 1+len(digest)+len(plaintext))
	b = append(b, bindingV1)
	b = append(b, digest[:]...)
	return append(b, plaintext...)
}

// unbind returns the plaintext within bound, which it reuses.
func unbind(bound, context []byte) ([]byte, error) {
	digest := sha256.Sum256(context)
	if len(bound) < 1+len(digest) || bound[0] != bindingV1 {
		return nil, ErrUnwrap
	}
	if subtle.ConstantTimeCompare(bound[1:1+len(digest)], digest[:]) != 1 {
		return nil, ErrContext
	}
	return bound[1+len(digest):], nil
}

// contextOf encodes what a wrapped key is for, each part with its length in front of it.
func contextOf(purpose, environment, installation string, number uint64) []byte {
	b := []byte("strongroom root context v1")
	for _, s := range []string{purpose, environment, installation} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return binary.BigEndian.AppendUint64(b, number)
}

func otherRoot(what, wrapped, configured string) error {
	return fmt.Errorf("%w: %s is wrapped by %s, the configured root key is %s: configure the former", ErrOtherRoot, what, wrapped, configured)
}
