package keyring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"filippo.io/age"
	"filippo.io/age/armor"

	"strongroom/internal/secret"
)

// ageRoot wraps with an age identity (age-encryption.org/v1): X25519, or the hybrid of ML-KEM-768 and
// X25519. Whoever knows its public part can wrap too, which is why KEKs vouch for each other.
type ageRoot struct {
	id        string
	identity  age.Identity
	recipient age.Recipient
}

// CreateAgeRoot makes a hybrid post-quantum age identity and writes it to path, encrypted by the
// passphrase, which must have MinPassphrase bytes. It never replaces a file (ErrExists).
func CreateAgeRoot(path string, passphrase secret.Value) error {
	if passphrase.Len() < MinPassphrase {
		return fmt.Errorf("the age identity's passphrase has %d characters: give it at least %d, better five random words", passphrase.Len(), MinPassphrase)
	}
	identity, err := age.GenerateHybridIdentity()
	if err != nil {
		return err
	}
	to, err := age.NewScryptRecipient(string(passphrase.Reveal()))
	if err != nil {
		return err
	}
	var content bytes.Buffer
	w, err := age.Encrypt(&content, to)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, identity.String()+"\n"); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := writeNew(path, content.Bytes()); err != nil {
		return fmt.Errorf("write the age identity: %w", err)
	}
	return nil
}

// openAgeRoot reads an identity file as age-keygen writes it, in the clear or encrypted by a
// passphrase, armoured or not.
func openAgeRoot(path string, passphrase secret.Value) (Root, error) {
	content, err := readPrivate(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s does not exist: bring it back from where you keep it safe: %w", ErrNoRoot, path, err)
	case err != nil:
		return nil, fmt.Errorf("read the age identity: %w", err)
	}
	defer clear(content)
	if content, err = decryptIdentity(content, path, passphrase); err != nil {
		return nil, err
	}
	defer clear(content)
	// What the parser says may quote the file.
	identities, err := age.ParseIdentities(bytes.NewReader(content))
	if err != nil || len(identities) != 1 {
		return nil, fmt.Errorf("%w: %s does not hold exactly one age identity: bring it back from where you keep it safe", ErrDamaged, path)
	}
	r := &ageRoot{identity: identities[0]}
	var public string
	switch i := identities[0].(type) {
	case *age.HybridIdentity:
		r.recipient, public = i.Recipient(), i.Recipient().String()
	case *age.X25519Identity:
		r.recipient, public = i.Recipient(), i.Recipient().String()
	default:
		return nil, fmt.Errorf("%w: %s holds an age identity of a kind that cannot be a root key: make one with age-keygen", ErrNoRoot, path)
	}
	digest := sha256.Sum256([]byte(public))
	r.id = "age:" + hex.EncodeToString(digest[:8])
	return r, nil
}

func decryptIdentity(content []byte, path string, passphrase secret.Value) ([]byte, error) {
	var from io.Reader = bytes.NewReader(content)
	switch {
	case bytes.HasPrefix(content, []byte("age-encryption.org/")):
	case bytes.HasPrefix(content, []byte(armor.Header)):
		from = armor.NewReader(from)
	default:
		return bytes.Clone(content), nil
	}
	if passphrase.IsZero() {
		return nil, fmt.Errorf("%w: none is given: give the one that %s was encrypted with", ErrPassphrase, path)
	}
	opener, err := age.NewScryptIdentity(string(passphrase.Reveal()))
	if err != nil {
		return nil, err
	}
	opener.SetMaxWorkFactor(20) // a file that somebody altered must not keep the start busy for ever
	var plain []byte
	r, err := age.Decrypt(from, opener)
	if err == nil {
		plain, err = io.ReadAll(io.LimitReader(r, maxFileSize))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: check the passphrase of %s; if it is right, the file was altered: bring it back from where you keep it safe", ErrPassphrase, path)
	}
	return plain, nil
}

func (r *ageRoot) Wrap(_ context.Context, plaintext, context []byte) ([]byte, error) {
	bound := bind(plaintext, context)
	defer clear(bound)
	var out bytes.Buffer
	w, err := age.Encrypt(&out, r.recipient)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(bound); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (r *ageRoot) Unwrap(_ context.Context, wrapped, context []byte) ([]byte, error) {
	from, err := age.Decrypt(bytes.NewReader(wrapped), r.identity)
	if err != nil {
		return nil, ErrUnwrap
	}
	bound, err := io.ReadAll(io.LimitReader(from, maxFileSize))
	if err != nil {
		return nil, ErrUnwrap
	}
	defer clear(bound)
	plaintext, err := unbind(bound, context)
	return bytes.Clone(plaintext), err
}

func (r *ageRoot) ID() string { return r.id }

func (r *ageRoot) Close() error { return nil }

// Format hides the identity from every verb.
func (r *ageRoot) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }
