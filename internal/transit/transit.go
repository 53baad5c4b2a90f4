// Package transit encrypts, authenticates and signs for services that keep their data elsewhere, with
// named keys that never leave.
//
// The promise: every operation binds the caller's context, with its length, next to the environment,
// the installation, the key's name and its version; what was made for one context is nothing in
// another. A key made for one use serves no other. No answer leaves before the event that says who
// used which key is durable, and a refusal, also of what does not open or verify, is an event.
//
// Terms: a named key has versions; the newest makes, any that is not destroyed opens and verifies. To
// rewrap is to open with an old version and seal with the newest, without showing the plaintext.
//
// Formats. A ciphertext is "sr1." and the base64url of a sealed value (package seal). A MAC or signature is
// "sr1.", the key's version in decimal, a dot, and its base64url. Both are over the domain ("strongroom
// transit mac v1" or "strongroom transit sign v1"), the context and the message, each with its length as 8
// bytes, big endian, in front: whoever has the public key of a version can verify without Strongroom.
package transit

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
)

// The actions that transit records.
const (
	ActionCreate     = "transit.key.create"
	ActionRead       = "transit.key.read"
	ActionRotate     = "transit.key.rotate"
	ActionDestroy    = "transit.key.destroy"
	ActionCompromise = "transit.key.compromise"
	ActionEncrypt    = "transit.key.encrypt"
	ActionDecrypt    = "transit.key.decrypt"
	ActionRewrap     = "transit.key.rewrap"
	ActionMAC        = "transit.key.mac"
	ActionVerifyMAC  = "transit.key.verify-mac"
	ActionSign       = "transit.key.sign"
	ActionVerify     = "transit.key.verify"
)

const (
	// MaxMessage is the longest plaintext or message in bytes.
	MaxMessage = 32 << 10
	// MaxContext is the longest context in bytes.
	MaxContext = 1024

	prefix     = "sr1."
	macDomain  = "strongroom transit mac v1"
	signDomain = "strongroom transit sign v1"
)

// Access is what a service says of a call beside what it asks for.
type Access struct {
	Purpose string // why; a slug
	Once    string // its idempotency key; may be empty, and only counts for what changes a key
}

// Options say what Transit works with. All are needed.
type Options struct {
	DB     *db.DB
	Keys   *keyring.Keyring
	Trail  *audit.Trail
	Policy *policy.Set
	Book   *once.Book
}

// Transit uses named keys. It is safe for concurrent use.
type Transit struct{ Options }

// New returns a Transit.
func New(o Options) *Transit { return &Transit{o} }

var nameForm = regexp.MustCompile(`\A[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?\z`)

var (
	errName = problem.New(problem.Unprocessable, "invalid-key-name", "A key's name is 1 to 64 of a-z, 0-9 and hyphens within.")
	errOpen = problem.New(problem.Unprocessable, "does-not-open",
		"The ciphertext was not made with this key and this context, or was altered.")
	errSize = problem.New(problem.Unprocessable, "too-long", "A message is at most %d bytes, a context at most %d.", MaxMessage, MaxContext)
)

// begin decides on a call. The event names the key only when the name is well-formed.
func (t *Transit) begin(by actor.Actor, a Access, action, permit, name string) (audit.Event, *problem.Problem) {
	e := audit.Event{Action: action, Resource: "key"}
	if !nameForm.MatchString(name) {
		return e, errName
	}
	e.Resource += " " + name
	if p := policy.Purpose(a.Purpose); p != nil {
		return e, p
	}
	e.Reason = "purpose:" + a.Purpose
	return e, t.Policy.Decide(policy.Question{By: by, Action: permit, Resource: policy.Key(name), Purpose: a.Purpose})
}

// use does fn with the key in memory, and then records it: what fn made is the caller's only when use
// returns nil. Nothing of it is in the transaction, which all writers share.
func (t *Transit) use(ctx context.Context, by actor.Actor, a Access, action, permit, name string, size int, about string,
	fn func(k *keyring.Named, e *audit.Event) error) error {
	e, p := t.begin(by, a, action, permit, name)
	if p == nil && (size > MaxMessage || len(about) > MaxContext) {
		p = errSize
	}
	if p == nil {
		key, err := t.Keys.Named(ctx, name)
		if err == nil {
			err = fn(key, &e)
		}
		if p = problem.Of(err); p == nil && err != nil {
			return t.Trail.Do(ctx, by, e, func(*db.Tx, *audit.Event) error { return err })
		}
	}
	if p != nil {
		return t.Trail.Deny(ctx, by, e, p)
	}
	return t.Trail.Do(ctx, by, e, func(*db.Tx, *audit.Event) error { return nil })
}

// change does fn, which changes keys, once.
func (t *Transit) change(ctx context.Context, by actor.Actor, a Access, e audit.Event, asked []string, answer *uint32,
	fn func(tx *db.Tx, e *audit.Event) (uint32, error)) error {
	plain := func(tx *db.Tx, e *audit.Event) (err error) {
		*answer, err = fn(tx, e)
		return err
	}
	if a.Once == "" {
		return t.Trail.Do(ctx, by, e, plain)
	}
	if p := once.Check(a.Once); p != nil {
		return t.Trail.Deny(ctx, by, e, p)
	}
	request := once.Request{Service: by.ID, Key: a.Once, Asked: [][]byte{[]byte(e.Action), []byte(a.Purpose)}}
	for _, part := range asked {
		request.Asked = append(request.Asked, []byte(part))
	}
	for tries := 0; ; tries++ {
		given, err := t.Book.Look(ctx, request)
		if p := problem.Of(err); p != nil && p.Kind() < problem.Internal {
			return t.Trail.Deny(ctx, by, e, p)
		}
		if err != nil {
			return err
		}
		if given != nil {
			e.Reason += " replayed"
			if err := t.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error { return given.Unlock(ctx, tx) }); err != nil {
				return err
			}
			kept, err := given.Open()
			if err != nil {
				return fmt.Errorf("transit: an answer that was kept: %w", err)
			}
			return json.Unmarshal(kept, answer)
		}
		err = t.Trail.Do(ctx, by, e, func(tx *db.Tx, e *audit.Event) error {
			if err := plain(tx, e); err != nil {
				return err
			}
			return t.Book.Keep(ctx, tx, request, "", strconv.AppendUint(nil, uint64(*answer), 10))
		})
		if tries == 2 || !problem.Is(err, once.Raced) {
			return err
		}
	}
}

// Create makes a key for one of keyring's algorithms.
func (t *Transit) Create(ctx context.Context, by actor.Actor, a Access, name, algorithm string) error {
	e, p := t.begin(by, a, ActionCreate, policy.KeyCreate, name)
	if p == nil && algorithm != keyring.NamedSealing && algorithm != keyring.NamedMAC && algorithm != keyring.NamedSigning {
		p = problem.New(problem.Unprocessable, "invalid-algorithm", "A key is for %s, %s or %s.", keyring.NamedSealing, keyring.NamedMAC, keyring.NamedSigning)
	}
	if p != nil {
		return t.Trail.Deny(ctx, by, e, p)
	}
	var version uint32
	return t.change(ctx, by, a, e, []string{name, algorithm}, &version, func(tx *db.Tx, _ *audit.Event) (uint32, error) {
		return 1, t.Keys.CreateNamed(ctx, tx, by, name, algorithm)
	})
}

// Rotate makes the next version of a key and returns its number.
func (t *Transit) Rotate(ctx context.Context, by actor.Actor, a Access, name string) (version uint32, err error) {
	e, p := t.begin(by, a, ActionRotate, policy.KeyRotate, name)
	if p != nil {
		return 0, t.Trail.Deny(ctx, by, e, p)
	}
	err = t.change(ctx, by, a, e, []string{name}, &version, func(tx *db.Tx, _ *audit.Event) (uint32, error) {
		return t.Keys.RotateNamed(ctx, tx, by, name)
	})
	return version, err
}

// Destroy destroys a version of a key for good; it must not be the newest. What only it opens is lost. It
// reports whether no file of the database holds the version any more: PostgreSQL cannot promise it.
func (t *Transit) Destroy(ctx context.Context, by actor.Actor, a Access, name string, version uint32) (scrubbed bool, err error) {
	e, p := t.begin(by, a, ActionDestroy, policy.KeyDestroy, name)
	if p != nil {
		return false, t.Trail.Deny(ctx, by, e, p)
	}
	e.Resource += fmt.Sprintf(" v%d", version)
	done := version
	err = t.change(ctx, by, a, e, []string{name, fmt.Sprint(version)}, &done, func(tx *db.Tx, _ *audit.Event) (uint32, error) {
		return version, t.Keys.DestroyNamed(ctx, tx, by, name, version)
	})
	if err != nil {
		return false, err
	}
	// Committed: what follows can be done again.
	ctx, cancel := context.WithTimeout(ctx, scrubTime)
	defer cancel()
	scrubbed, err = t.DB.Scrub(ctx)
	return scrubbed && err == nil, nil
}

// scrubTime is for how long Destroy waits for readers that keep the database's log.
const scrubTime = 10 * time.Second

// Compromise marks a version of a key as known to others, and returns the newest version, which it makes if
// need be: see keyring.CompromiseNamed. Rewrap what the version sealed, then destroy it.
func (t *Transit) Compromise(ctx context.Context, by actor.Actor, a Access, name string, version uint32) (newest uint32, err error) {
	e, p := t.begin(by, a, ActionCompromise, policy.KeyCompromise, name)
	if p != nil {
		return 0, t.Trail.Deny(ctx, by, e, p)
	}
	e.Resource += fmt.Sprintf(" v%d", version)
	err = t.change(ctx, by, a, e, []string{name, fmt.Sprint(version)}, &newest, func(tx *db.Tx, _ *audit.Event) (uint32, error) {
		return t.Keys.CompromiseNamed(ctx, tx, by, name, version)
	})
	return newest, err
}

// Read returns a key's versions, and of one that signs the public keys.
func (t *Transit) Read(ctx context.Context, by actor.Actor, a Access, name string) (algorithm string, versions []keyring.NamedVersion, err error) {
	err = t.use(ctx, by, a, ActionRead, policy.KeyRead, name, 0, "", func(k *keyring.Named, _ *audit.Event) error {
		algorithm, versions = k.Algorithm(), k.Versions()
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	return algorithm, versions, nil
}

func place(about string) seal.Place {
	return seal.Place{Room: "transit", Table: "ciphertext", Record: about}
}

// Encrypt seals a plaintext for a context.
func (t *Transit) Encrypt(ctx context.Context, by actor.Actor, a Access, name string, plaintext []byte, about string) (ciphertext string, err error) {
	err = t.use(ctx, by, a, ActionEncrypt, policy.KeyEncrypt, name, len(plaintext), about, func(k *keyring.Named, _ *audit.Event) error {
		ring, err := k.Ring()
		if err == nil {
			ciphertext = textOf(ring.Seal(place(about), plaintext))
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return ciphertext, nil
}

func textOf(sealed []byte) string { return prefix + base64.RawURLEncoding.EncodeToString(sealed) }

func open(k *keyring.Named, ciphertext, about string) (ring *seal.Ring, version uint32, plaintext []byte, err error) {
	if ring, err = k.Ring(); err != nil {
		return nil, 0, nil, err
	}
	text, ok := strings.CutPrefix(ciphertext, prefix)
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !ok || err != nil {
		return nil, 0, nil, errOpen
	}
	if plaintext, err = ring.Open(place(about), sealed); err == nil {
		version, err = seal.KeyVersion(sealed)
	}
	if err != nil {
		return nil, 0, nil, errOpen.Because(err)
	}
	return ring, version, plaintext, nil
}

// maxCiphertext is the length of the longest ciphertext.
var maxCiphertext = len(prefix) + base64.RawURLEncoding.EncodedLen(MaxMessage+seal.Overhead)

// fits maps the length of a ciphertext to that of a message, for the check in use.
func fits(ciphertext string) int {
	if len(ciphertext) > maxCiphertext {
		return MaxMessage + 1
	}
	return 0
}

// Decrypt opens what Encrypt sealed for the same context.
func (t *Transit) Decrypt(ctx context.Context, by actor.Actor, a Access, name, ciphertext, about string) (plaintext []byte, err error) {
	err = t.use(ctx, by, a, ActionDecrypt, policy.KeyDecrypt, name, fits(ciphertext), about, func(k *keyring.Named, _ *audit.Event) (err error) {
		_, _, plaintext, err = open(k, ciphertext, about)
		return err
	})
	if err != nil {
		clear(plaintext)
		return nil, err
	}
	return plaintext, nil
}

// Rewrap seals under the newest version what an older one sealed.
func (t *Transit) Rewrap(ctx context.Context, by actor.Actor, a Access, name, ciphertext, about string) (again string, err error) {
	err = t.use(ctx, by, a, ActionRewrap, policy.KeyRewrap, name, fits(ciphertext), about, func(k *keyring.Named, _ *audit.Event) error {
		ring, _, plaintext, err := open(k, ciphertext, about)
		if err != nil {
			return err
		}
		defer clear(plaintext)
		again = textOf(ring.Seal(place(about), plaintext))
		return nil
	})
	if err != nil {
		return "", err
	}
	return again, nil
}

// MAC authenticates a message in a context.
func (t *Transit) MAC(ctx context.Context, by actor.Actor, a Access, name string, message []byte, about string) (mac string, err error) {
	err = t.use(ctx, by, a, ActionMAC, policy.KeyMAC, name, len(message), about, func(k *keyring.Named, _ *audit.Event) error {
		sum, version, err := k.MAC([]byte(macDomain), []byte(about), message)
		mac = versioned(version, sum)
		return err
	})
	if err != nil {
		return "", err
	}
	return mac, nil
}

// VerifyMAC reports whether MAC made mac of the message in the context.
func (t *Transit) VerifyMAC(ctx context.Context, by actor.Actor, a Access, name string, message []byte, about, mac string) (valid bool, err error) {
	err = t.use(ctx, by, a, ActionVerifyMAC, policy.KeyVerifyMAC, name, len(message), about, func(k *keyring.Named, e *audit.Event) error {
		version, sum := parse(mac)
		valid, err = k.VerifyMAC(version, sum, []byte(macDomain), []byte(about), message)
		said(e, valid)
		return err
	})
	return valid && err == nil, err
}

// Sign signs a message in a context.
func (t *Transit) Sign(ctx context.Context, by actor.Actor, a Access, name string, message []byte, about string) (signature string, err error) {
	err = t.use(ctx, by, a, ActionSign, policy.KeySign, name, len(message), about, func(k *keyring.Named, _ *audit.Event) error {
		s, version, err := k.Sign(Signed(about, message))
		signature = versioned(version, s)
		return err
	})
	if err != nil {
		return "", err
	}
	return signature, nil
}

// Verify reports whether Sign made the signature of the message in the context.
func (t *Transit) Verify(ctx context.Context, by actor.Actor, a Access, name string, message []byte, about, signature string) (valid bool, err error) {
	err = t.use(ctx, by, a, ActionVerify, policy.KeyVerify, name, len(message), about, func(k *keyring.Named, e *audit.Event) error {
		version, s := parse(signature)
		valid, err = k.Verify(version, Signed(about, message), s)
		said(e, valid)
		return err
	})
	return valid && err == nil, err
}

func said(e *audit.Event, valid bool) {
	if !valid {
		e.Reason += " not valid"
	}
}

// Signed returns the bytes that a signature of the message in the context is over.
func Signed(about string, message []byte) []byte {
	b := make([]byte, 0, 3*8+len(signDomain)+len(about)+len(message))
	for _, part := range []string{signDomain, about, string(message)} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(part)))
		b = append(b, part...)
	}
	return b
}

func versioned(version uint32, b []byte) string {
	return prefix + strconv.FormatUint(uint64(version), 10) + "." + base64.RawURLEncoding.EncodeToString(b)
}

// parse is the inverse of versioned; what has another form has version 0, which no key has.
func parse(text string) (version uint32, b []byte) {
	rest, ok := strings.CutPrefix(text, prefix)
	number, encoded, cut := strings.Cut(rest, ".")
	v, err := strconv.ParseUint(number, 10, 32)
	if !ok || !cut || err != nil || strconv.FormatUint(v, 10) != number {
		return 0, nil
	}
	if b, err = base64.RawURLEncoding.Strict().DecodeString(encoded); err != nil {
		return 0, nil
	}
	return uint32(v), b
}
