package keyring

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/clock"
	"strongroom/internal/keyring/seal"
)

// The service keys.
const (
	KeyEvent      = "event"       // seals personal parts of events that belong to no customer
	KeyOutbox     = "outbox"      // seals messages that wait to be sent, and reports that wait to be read
	KeyPepper     = "pepper"      // MACs private codes before they are hashed
	KeyToken      = "token"       // MACs tokens and codes at rest
	KeyEventMAC   = "event-mac"   // MACs event rows
	KeyBlindIndex = "blind-index" // derives the blind indexes' keys
	KeyCheckpoint = "checkpoint"  // signs checkpoints of the trail
	KeyBackup     = "backup"      // seals the keys of backup repositories
	KeyEvidence   = "evidence"    // signs certificates, manifests and other evidence
)

type serviceDefinition struct{ name, algorithm string }

var serviceDefinitions = []serviceDefinition{
	{KeyBackup, aesGCM},
	{KeyBlindIndex, hmacSHA256},
	{KeyCheckpoint, ed25519Name},
	{KeyEvent, aesGCM},
	{KeyEventMAC, hmacSHA256},
	{KeyEvidence, ed25519Name},
	{KeyOutbox, aesGCM},
	{KeyPepper, hmacSHA256},
	{KeyToken, hmacSHA256},
}

// missingServices returns the definitions of which there is no version.
func missingServices(rows []serviceRow) []serviceDefinition {
	var missing []serviceDefinition
	for _, d := range serviceDefinitions {
		if !slices.ContainsFunc(rows, func(r serviceRow) bool { return r.name == d.name }) {
			missing = append(missing, d)
		}
	}
	return missing
}

// serviceKey is all versions of one service key. One of ring, macs and signer is there.
type serviceKey struct {
	ring      *seal.Ring
	macs      []macKey // the active one first, then the newest
	written   int      // of the blind-index key: how many of macs rows are written under
	signer    *signer
	verifiers note.Verifiers
	all       []note.Verifier
	made      int64 // the active one, Unix microseconds
}

type macKey struct {
	version  uint32
	state    string
	material []byte
}

// Format hides the key from every verb, also in a panic's text. What holds it needs one too: fmt does
// not call the methods of unexported fields.
func (k macKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// Format hides the keys.
func (k serviceKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// servicePlace binds the algorithm too, so that a key made for one is never used for another.
func servicePlace(name, algorithm string, version uint32) seal.Place {
	return seal.Place{Room: room, Table: "service_key", Record: algorithm + " " + name, Version: int64(version)}
}

func (k *Keyring) newServiceRow(kek *seal.Ring, d serviceDefinition, version uint32) serviceRow {
	material := newMaterial()
	defer clear(material)
	return serviceRow{
		name: d.name, version: version, kekVersion: kek.Version(), algorithm: d.algorithm, state: active,
		wrapped: kek.Seal(servicePlace(d.name, d.algorithm, version), material), madeAt: clock.Micros(k.clock.Now()),
	}
}

// open puts all service keys that this version of Strongroom knows into the set; a later one's stay as
// they are.
func (k *Keyring) open(set *keySet, rows []serviceRow) error {
	keys := make(map[string]*serviceKey)
	for _, d := range serviceDefinitions {
		key, err := k.openService(set.kek, d, rows)
		if err != nil {
			return fmt.Errorf("service key %s: %w", d.name, err)
		}
		keys[d.name] = key
	}
	index := keys[KeyBlindIndex]
	index.written = written(index.macs, set.indexing)
	set.service = keys
	return nil
}

func (k *Keyring) openService(kek *seal.Ring, d serviceDefinition, rows []serviceRow) (*serviceKey, error) {
	var states []string
	var own []serviceRow
	var versions []macKey
	for _, r := range rows {
		if r.name != d.name {
			continue
		}
		states = append(states, r.state)
		own = append(own, r)
		if r.state == destroyed {
			continue
		}
		if r.algorithm != d.algorithm {
			return nil, fmt.Errorf("%w: version %d is for %q, not %s", ErrDamaged, r.version, r.algorithm, d.algorithm)
		}
		material, err := unwrap(kek, servicePlace(d.name, d.algorithm, r.version), r.kekVersion, r.wrapped)
		if err != nil {
			return nil, fmt.Errorf("version %d: %w", r.version, err)
		}
		if len(material) != seal.KeySize {
			return nil, fmt.Errorf("%w: version %d has the wrong length", ErrDamaged, r.version)
		}
		versions = append(versions, macKey{r.version, r.state, material})
	}
	i, err := activeOf(states)
	if err != nil {
		return nil, err
	}
	made := own[i].madeAt
	activeFirst(versions, own[i].version)
	if d.algorithm == hmacSHA256 {
		return &serviceKey{macs: versions, made: made}, nil
	}
	defer func() {
		for _, v := range versions {
			clear(v.material)
		}
	}()
	if d.algorithm == ed25519Name {
		key, err := newSigningKey(k.signerName(d.name), versions, made)
		if err != nil {
			return nil, err
		}
		return key, key.alsoVerify(own)
	}
	keys := make([]*seal.Key, len(versions))
	for i, v := range versions {
		var err error
		if keys[i], err = seal.NewKey(v.version, v.material); err != nil {
			return nil, err
		}
		keys[i] = keys[i].Counted(k.uses.counter(d.name, v.version))
	}
	ring, err := seal.NewRing(k.scope(d.name), keys...)
	if err != nil {
		return nil, err
	}
	ring, err = ring.Under(own[i].version)
	return &serviceKey{ring: ring, made: made}, err
}

// signerName is the name that a signing key signs under: the log's for the one of the log, and for others
// the log's and their own.
func (k *Keyring) signerName(key string) string {
	if key == KeyCheckpoint {
		return k.logName()
	}
	return k.logName() + "/" + key
}

// logName is the name of the log's signing key, and the origin of the log.
func (k *Keyring) logName() string {
	return "strongroom/" + k.db.Environment() + "/" + k.db.Installation()
}

// service returns the key with the name. To ask for one that does not exist is a mistake in the
// program, not of a caller, and must not be survived: what would be sealed with?
func (k *Keyring) service(name, algorithm string) *serviceKey {
	key := k.keys.Load().service[name]
	if key == nil || algorithm == aesGCM && key.ring == nil || algorithm == hmacSHA256 && key.macs == nil {
		panic(fmt.Sprintf("keyring: there is no service key %q for %s", name, algorithm))
	}
	return key
}

// Service returns the ring of a service key that seals: KeyEvent or KeyOutbox. Ask each time: a
// rotation replaces the ring.
func (k *Keyring) Service(name string) *seal.Ring { return k.service(name, aesGCM).ring }

// MAC returns the HMAC-SHA-256 of the parts under the active version of a service key that MACs
// (KeyPepper, KeyToken or KeyEventMAC), and that version. Each part has its length in front of it, so
// different lists never give the same MAC. Compare MACs with hmac.Equal.
func (k *Keyring) MAC(name string, parts ...[]byte) (mac []byte, version uint32) {
	newest := k.service(name, hmacSHA256).macs[0]
	return macOf(newest.material, parts...), newest.version
}

// MACVersion is MAC under an older version. It fails with seal.ErrKeyVersion when there is no such
// version, or no longer.
func (k *Keyring) MACVersion(name string, version uint32, parts ...[]byte) ([]byte, error) {
	for _, key := range k.service(name, hmacSHA256).macs {
		if key.version == version {
			return macOf(key.material, parts...), nil
		}
	}
	return nil, seal.ErrKeyVersion
}

func macOf(material []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, material)
	var length [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(length[:], uint64(len(p)))
		h.Write(length[:])
		h.Write(p)
	}
	return h.Sum(make([]byte, 0, sha256.Size))
}

// Blind is a blind index under one version of the blind-index key.
type Blind struct {
	Version uint32
	Value   []byte // 32 bytes
}

// BlindIndexes returns the blind index of a field's value under every version of the key that is not
// destroyed, the active one first: look up any, and write IndexesToWrite. The index says whether two values of
// one field are equal and nothing more; the field's key is derived by HKDF-SHA-256 (RFC 5869).
func (k *Keyring) BlindIndexes(field string, value []byte) []Blind {
	return blindsOf(k.service(KeyBlindIndex, hmacSHA256).macs, field, value)
}

func blindsOf(macs []macKey, field string, value []byte) []Blind {
	blinds := make([]Blind, len(macs))
	for i, key := range macs {
		derived, err := hkdf.Expand(sha256.New, key.material, "strongroom blind index v1 "+field, sha256.Size)
		if err != nil {
			panic("keyring: " + err.Error()) // only for an output of more than 8160 bytes
		}
		blinds[i] = Blind{key.version, macOf(derived, value)}
		clear(derived)
	}
	return blinds
}

// BlindIndex returns the first of BlindIndexes, 32 bytes.
func (k *Keyring) BlindIndex(field string, value []byte) []byte {
	return k.BlindIndexes(field, value)[0].Value
}

// CheckpointSigner returns the signer of the trail's checkpoints: Ed25519 signed notes (C2SP
// signed-note), whose key name is "strongroom/<environment>/<installation>". Ask each time: a rotation
// replaces the signer.
func (k *Keyring) CheckpointSigner() note.Signer { return k.keys.Load().service[KeyCheckpoint].signer }

// CheckpointVerifiers returns the verifiers of all versions of the signing key.
func (k *Keyring) CheckpointVerifiers() note.Verifiers {
	return k.keys.Load().service[KeyCheckpoint].verifiers
}

// EvidenceSigner returns the signer of evidence: what this installation says of itself to others, in
// signed notes whose key name is that of the log and "/evidence". Ask each time.
func (k *Keyring) EvidenceSigner() note.Signer { return k.keys.Load().service[KeyEvidence].signer }

// EvidenceVerifiers returns the verifiers of all versions of that key.
func (k *Keyring) EvidenceVerifiers() note.Verifiers {
	return k.keys.Load().service[KeyEvidence].verifiers
}

type signer struct {
	note.Verifier
	key ed25519.PrivateKey
}

// verifier returns the signing key of a seed, with its public part as it is written down.
func verifier(name string, seed []byte) (*signer, string, error) {
	private := ed25519.NewKeyFromSeed(seed)
	encoded, err := note.NewEd25519VerifierKey(name, private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, "", err
	}
	v, err := note.NewVerifier(encoded)
	return &signer{v, private}, encoded, err
}

// newSigningKey takes the seeds of all versions, the active one first.
func newSigningKey(name string, versions []macKey, made int64) (*serviceKey, error) {
	var signs *signer
	var verifiers []note.Verifier
	for _, v := range versions {
		s, _, err := verifier(name, v.material)
		if err != nil {
			return nil, err
		}
		verifiers = append(verifiers, s.Verifier)
		if signs == nil {
			signs = s
		}
	}
	return &serviceKey{signer: signs, verifiers: note.VerifierList(verifiers...), all: verifiers, made: made}, nil
}

// alsoVerify adds the public parts of destroyed versions: what they signed still verifies.
func (k *serviceKey) alsoVerify(rows []serviceRow) error {
	for _, r := range rows {
		if r.state != destroyed || r.verifier == "" {
			continue
		}
		v, err := note.NewVerifier(r.verifier)
		if err != nil {
			return fmt.Errorf("%w: the public part of version %d: %w", ErrDamaged, r.version, err)
		}
		k.all = append(k.all, v)
	}
	k.verifiers = note.VerifierList(k.all...)
	return nil
}

func (s *signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

const redacted = "[redacted]"

// String hides the key.
func (s signer) String() string { return redacted }

// GoString hides the key from %#v.
func (s signer) GoString() string { return redacted }

// Format hides the key from every verb.
func (s signer) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the key from log/slog.
func (s signer) LogValue() slog.Value { return slog.StringValue(redacted) }

// String hides the keys.
func (k *Keyring) String() string { return redacted }

// GoString hides the keys from %#v.
func (k *Keyring) GoString() string { return redacted }

// Format hides the keys from every verb.
func (k *Keyring) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the keys from log/slog.
func (k *Keyring) LogValue() slog.Value { return slog.StringValue(redacted) }
