package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"

	"golang.org/x/crypto/argon2"

	"strongroom/internal/id"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/secret"
)

// MinPassphrase is the least length of a passphrase in bytes.
const MinPassphrase = 12

// The second recommended option of RFC 9106 section 4, well above OWASP's least.
var standardCost = argonCost{MemoryKiB: 64 << 10, Time: 3, Threads: 4}

const (
	rootFormat    = "strongroom-root-key/1"
	rootAlgorithm = "argon2id+AES-256-GCM"
	saltSize      = 16
)

// rootFile is the local root key: 32 random bytes, sealed under a key that Argon2id (RFC 9106) makes
// of the passphrase.
type rootFile struct {
	Format    string    `json:"format"`
	ID        string    `json:"id"`
	Algorithm string    `json:"algorithm"`
	Cost      argonCost `json:"cost"`
	Salt      []byte    `json:"salt"`
	Sealed    []byte    `json:"sealed"`
}

type argonCost struct {
	MemoryKiB uint32 `json:"memory_kib"`
	Time      uint32 `json:"time"`
	Threads   uint8  `json:"threads"`
}

// check refuses a cost that makes guessing cheap (OWASP's least is 19 MiB with two passes), and one
// that makes an altered file exhaust the machine.
func (c argonCost) check() error {
	if c.MemoryKiB < 19<<10 || c.MemoryKiB > 1<<20 || c.Time < 2 || c.Time > 16 || c.Threads < 1 || c.Threads > 16 {
		return errors.New("the Argon2id cost is out of bounds")
	}
	return nil
}

func parseRootFile(b []byte) (rootFile, error) {
	var f rootFile
	if err := decodeStrict(b, &f); err != nil {
		return rootFile{}, err
	}
	switch {
	case f.Format != rootFormat:
		return rootFile{}, errors.New("its format is not known to this version")
	case f.Algorithm != rootAlgorithm:
		return rootFile{}, errors.New("its algorithm is not known to this version")
	case !id.Valid("root", f.ID):
		return rootFile{}, errors.New("its id has the wrong form")
	case len(f.Salt) != saltSize:
		return rootFile{}, errors.New("its salt has the wrong length")
	case len(f.Sealed) != seal.KeySize+seal.Overhead:
		return rootFile{}, errors.New("its sealed key has the wrong length")
	}
	return f, f.Cost.check()
}

func (f rootFile) place() seal.Place {
	return seal.Place{Room: "keyring", Table: "root", Record: f.ID}
}

// ring returns the ring that the passphrase opens.
func (f rootFile) ring(passphrase secret.Value) (*seal.Ring, error) {
	material := argon2.IDKey(passphrase.Reveal(), f.Salt, f.Cost.Time, f.Cost.MemoryKiB, f.Cost.Threads, seal.KeySize)
	// Argon2's memory holds what the passphrase became, and is more than everything else at start:
	// give it back now.
	debug.FreeOSMemory()
	return ringOf("strongroom/root-file", material)
}

// ringOf returns a ring of one key, version 1, and clears the material.
func ringOf(scope string, material []byte) (*seal.Ring, error) {
	defer clear(material)
	key, err := seal.NewKey(1, material)
	if err != nil {
		return nil, err
	}
	return seal.NewRing(scope, key)
}

// CreateLocalRoot makes a new root key and writes it to path, sealed by the passphrase, which must
// have MinPassphrase bytes. It never replaces a file (ErrExists).
func CreateLocalRoot(path string, passphrase secret.Value) error {
	if passphrase.Len() < MinPassphrase {
		return fmt.Errorf("the root key's passphrase has %d characters: give it at least %d, better five random words", passphrase.Len(), MinPassphrase)
	}
	return createLocalRoot(path, passphrase, standardCost)
}

func createLocalRoot(path string, passphrase secret.Value, cost argonCost) error {
	f := rootFile{Format: rootFormat, ID: id.New("root"), Algorithm: rootAlgorithm, Cost: cost, Salt: make([]byte, saltSize)}
	rand.Read(f.Salt)
	ring, err := f.ring(passphrase)
	if err != nil {
		return err
	}
	material := make([]byte, seal.KeySize)
	defer clear(material)
	rand.Read(material)
	f.Sealed = ring.Seal(f.place(), material)
	content, err := encode(f)
	if err != nil {
		return err
	}
	if err := writeNew(path, content); err != nil {
		return fmt.Errorf("write the root key file: %w", err)
	}
	return nil
}

type localRoot struct {
	id   string
	ring *seal.Ring
}

func openLocalRoot(path string, passphrase secret.Value) (Root, error) {
	if path == "" {
		return nil, fmt.Errorf("%w: name its file, or its URL at a key management service", ErrNoRoot)
	}
	if passphrase.IsZero() {
		return nil, fmt.Errorf("%w: none is given: give the one that %s was made with", ErrPassphrase, path)
	}
	content, err := readPrivate(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s does not exist: bring it back from where you keep it safe, or make one with strongroom init when there are no data yet: %w", ErrNoRoot, path, err)
	case err != nil:
		return nil, fmt.Errorf("read the root key file: %w", err)
	}
	f, err := parseRootFile(content)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is no root key file, %w: bring it back from where you keep it safe", ErrDamaged, path, err)
	}
	outer, err := f.ring(passphrase)
	if err != nil {
		return nil, err
	}
	material, err := outer.Open(f.place(), f.Sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: check the passphrase of %s; if it is right, the file was altered: bring it back from where you keep it safe", ErrPassphrase, path)
	}
	ring, err := ringOf("strongroom/root/"+f.ID, material)
	if err != nil {
		return nil, err
	}
	return &localRoot{id: "local:" + f.ID, ring: ring}, nil
}

var localPlace = seal.Place{Room: "keyring", Table: "wrapped"}

func (r *localRoot) Wrap(_ context.Context, plaintext, context []byte) ([]byte, error) {
	bound := bind(plaintext, context)
	defer clear(bound)
	return r.ring.Seal(localPlace, bound), nil
}

func (r *localRoot) Unwrap(_ context.Context, wrapped, context []byte) ([]byte, error) {
	bound, err := r.ring.Open(localPlace, wrapped)
	if err != nil {
		return nil, ErrUnwrap
	}
	defer clear(bound)
	plaintext, err := unbind(bound, context)
	return bytes.Clone(plaintext), err
}

func (r *localRoot) ID() string { return r.id }

func (r *localRoot) Close() error { return nil }
