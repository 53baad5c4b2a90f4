package local

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"

	"strongroom/client"
)

// KeyStore holds the two keys that never leave the device: the one that signs, and the one that seals. Apps
// implement it over their platform's keystore (Android Keystore, Secure Enclave); KeyFile is for the rest.
// Implementations must be safe for concurrent use.
type KeyStore interface {
	// Device returns the key that signs. It is the same for as long as the store lives.
	Device() client.DeviceKey
	// Seal encrypts and authenticates a secret of at most 1 KiB, so that only this store opens it.
	Seal(secret []byte) ([]byte, error)
	// Open is the inverse of Seal.
	Open(sealed []byte) ([]byte, error)
	// Destroy makes both keys unusable for ever. Destroying them again is no error.
	Destroy() error
}

// Errors of a KeyFile. ErrWiped is also what a Store answers once it is wiped.
var (
	ErrWrongPassphrase = errors.New("strongroom: the passphrase is wrong")
	ErrWiped           = errors.New("strongroom: what this device kept is wiped")
)

// KeyFileOptions say where a KeyFile is, and who may open it.
type KeyFileOptions struct {
	Path       string
	Passphrase []byte // of any length; the app asks for it and forgets it
	// Failures is how many wrong passphrases in a row destroy the keys; 0 means 10. The count is in a file
	// beside the keys: it stops a person with the app in hand. Whoever has copied the files meets Argon2id.
	Failures int
	// Wiped is called after they were, to remove what the keys sealed; nil means that nothing is. Remove is a
	// good one.
	Wiped func() error
}

// Argon2id's parameters: RFC 9106 section 4, the recommendation for memory-constrained devices.
const (
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 4
	maxKeyFile   = 4 << 10 // bytes
)

// sealedKeys is what a key file holds. Everything before Sealed is authenticated with it.
type sealedKeys struct {
	Version int    `json:"version"`
	KDF     string `json:"kdf"`
	Time    uint32 `json:"time"`
	Memory  uint32 `json:"memory_kib"`
	Threads uint8  `json:"threads"`
	Salt    []byte `json:"salt"`
	Nonce   []byte `json:"nonce"`
	Sealed  []byte `json:"sealed,omitempty"`
}

// aead derives the key that the passphrase stands for.
func (k sealedKeys) aead(passphrase []byte) (_ cipher.AEAD, additional []byte, err error) {
	k.Sealed = nil
	if additional, err = json.Marshal(k); err != nil {
		return nil, nil, err
	}
	key := argon2.IDKey(passphrase, k.Salt, k.Time, k.Memory, k.Threads, 32)
	defer clear(key)
	a, err := gcm(key)
	return a, additional, err
}

// sound refuses parameters that are weaker than ours, or that would take the device's memory.
func (k sealedKeys) sound() bool {
	return k.Version == 1 && k.KDF == "argon2id" && k.Time >= argonTime && k.Time <= 64 && k.Memory >= argonMemory && k.Memory <= 1<<20 &&
		k.Threads >= 1 && k.Threads <= 64 && len(k.Salt) >= 16 && len(k.Salt) <= 64 && len(k.Nonce) == 12
}

// KeyFile is a KeyStore in a file that is sealed by a passphrase: Argon2id (RFC 9106) and AES-256-GCM. The
// keys are never on the disk in the clear.
type KeyFile struct {
	path    string
	seals   cipher.AEAD
	private *ecdsa.PrivateKey
}

// OpenKeyFile opens the keys, or makes them when there is no file. It fails with ErrWrongPassphrase, and with
// ErrWiped when that was one failure too many.
func OpenKeyFile(o KeyFileOptions) (*KeyFile, error) {
	if len(o.Passphrase) == 0 {
		return nil, errors.New("strongroom: a passphrase is needed")
	}
	if o.Failures <= 0 {
		o.Failures = 10
	}
	text, err := os.ReadFile(o.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return createKeyFile(o)
	}
	if err != nil {
		return nil, fmt.Errorf("strongroom: key file: %w", err)
	}
	k, err := parseKeyFile(text)
	if err != nil {
		return nil, fmt.Errorf("strongroom: key file %s: %w", o.Path, err)
	}
	// The try is counted before it is made, so that ending the process in between gains none.
	tries, err := countTry(o.Path)
	if err != nil {
		return nil, err
	}
	a, additional, err := k.aead(o.Passphrase)
	if err != nil {
		return nil, err
	}
	secret, err := a.Open(nil, k.Nonce, k.Sealed, additional)
	if err == nil {
		defer clear(secret)
		if err := os.Remove(triesOf(o.Path)); err != nil {
			return nil, fmt.Errorf("strongroom: key file: %w", err)
		}
		return newKeyFile(o.Path, secret)
	}
	if tries < o.Failures {
		return nil, fmt.Errorf("%w; %d more and this device is wiped", ErrWrongPassphrase, o.Failures-tries)
	}
	err = (&KeyFile{path: o.Path}).Destroy()
	if o.Wiped != nil {
		err = errors.Join(err, o.Wiped())
	}
	return nil, errors.Join(ErrWiped, err)
}

// parseKeyFile reads a key file. Its errors repeat nothing of it.
func parseKeyFile(text []byte) (sealedKeys, error) {
	var k sealedKeys
	if len(text) > maxKeyFile || json.Unmarshal(text, &k) != nil || !k.sound() || len(k.Sealed) != 64+16 {
		return k, errors.New("it is damaged, or of another version")
	}
	return k, nil
}

func createKeyFile(o KeyFileOptions) (*KeyFile, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	scalar, err := private.Bytes()
	if err != nil {
		return nil, err
	}
	secret := append(random(32), scalar...)
	defer clear(secret)
	clear(scalar)
	k := sealedKeys{Version: 1, KDF: "argon2id", Time: argonTime, Memory: argonMemory, Threads: argonThreads, Salt: random(16), Nonce: random(12)}
	a, additional, err := k.aead(o.Passphrase)
	if err != nil {
		return nil, err
	}
	k.Sealed = a.Seal(nil, k.Nonce, secret, additional)
	text, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, fmt.Errorf("strongroom: key file: %w", err)
	}
	if err := writeFile(o.Path, append(text, '\n')); err != nil {
		return nil, fmt.Errorf("strongroom: key file: %w", err)
	}
	return newKeyFile(o.Path, secret)
}

func newKeyFile(path string, secret []byte) (*KeyFile, error) {
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), secret[32:])
	if err != nil {
		return nil, errors.New("strongroom: the key file holds no P-256 key")
	}
	a, err := gcm(secret[:32])
	return &KeyFile{path, a, private}, err
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Device returns the key that signs.
func (k *KeyFile) Device() client.DeviceKey { return deviceKey{k.private} }

// Seal encrypts a secret with AES-256-GCM under a random nonce.
func (k *KeyFile) Seal(secret []byte) ([]byte, error) {
	nonce := random(12)
	return k.seals.Seal(nonce, nonce, secret, []byte("strongroom local seal 1")), nil
}

// Open is the inverse of Seal.
func (k *KeyFile) Open(sealed []byte) ([]byte, error) {
	if len(sealed) >= 12 {
		if secret, err := k.seals.Open(nil, sealed[:12], sealed[12:], []byte("strongroom local seal 1")); err == nil {
			return secret, nil
		}
	}
	return nil, errors.New("strongroom: this was not sealed by this device's key")
}

// Destroy overwrites and removes the file. The keys in memory go with the process.
func (k *KeyFile) Destroy() error {
	return errors.Join(shred(k.path), remove(triesOf(k.path)))
}

// Format hides the keys from every verb of fmt.
func (k *KeyFile) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }

type deviceKey struct{ private *ecdsa.PrivateKey }

func (d deviceKey) Public() *ecdsa.PublicKey { return &d.private.PublicKey }

func (d deviceKey) SignES256(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, d.private, digest[:])
	if err != nil {
		return nil, err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signature, nil
}

// Format hides the key from every verb of fmt.
func (d deviceKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }

func triesOf(path string) string { return path + ".tries" }

// countTry adds one to the count of tries, durably, and returns it. A count that cannot be read is taken
// for the last try but one.
func countTry(path string) (int, error) {
	text, err := os.ReadFile(triesOf(path))
	tries := 0
	if err == nil {
		if tries, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil || tries < 0 {
			tries = 1 << 20
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("strongroom: key file: %w", err)
	}
	tries++
	if err := writeFile(triesOf(path), []byte(strconv.Itoa(tries)+"\n")); err != nil {
		return 0, fmt.Errorf("strongroom: key file: %w", err)
	}
	return tries, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // crypto/rand never fails
	return b
}

// writeFile replaces a file, whole and durably, for its owner alone.
func writeFile(path string, text []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// shred overwrites a file and removes it. On flash the old bytes may survive; they are sealed.
func shred(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, min(info.Size(), maxKeyFile)), 0)
	}
	return errors.Join(err, f.Sync(), f.Close(), remove(path))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
