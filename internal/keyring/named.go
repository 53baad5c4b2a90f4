package keyring

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// The actions on named keys that keyring records.
const (
	ActionNamedCreate     = "keyring.named-key.create"
	ActionNamedRotate     = "keyring.named-key.rotate"
	ActionNamedDestroy    = "keyring.named-key.destroy"
	ActionNamedCompromise = "keyring.named-key.compromise"
)

// The algorithms that a named key can be for. A key made for one is never used for another.
const (
	NamedSealing = aesGCM      // encrypts and decrypts
	NamedMAC     = hmacSHA256  // makes and checks message authentication codes
	NamedSigning = ed25519Name // signs and verifies
)

// namedPrefix sets named keys apart from Strongroom's own among the service keys, whose rows they share:
// so they are listed, and wrapped anew when the KEK changes, like these.
const namedPrefix = "named/"

// maxNamed is how many named keys are kept in memory.
const maxNamed = 1000

// Named is a named key in all its versions that are not destroyed: the newest seals, MACs and signs, any
// opens and verifies. It is immutable and safe for concurrent use.
type Named struct {
	name, algorithm string
	versions        []NamedVersion // newest first
	key             *serviceKey    // ring or macs
	private         []ed25519.PrivateKey
}

// NamedVersion describes a version of a named key.
type NamedVersion struct {
	Version uint32
	State   string
	MadeAt  time.Time
	Public  ed25519.PublicKey // of a signing key
}

// Algorithm returns what the key is for.
func (n *Named) Algorithm() string { return n.algorithm }

// Versions returns the versions, newest first.
func (n *Named) Versions() []NamedVersion { return slices.Clone(n.versions) }

// Version returns the newest version.
func (n *Named) Version() uint32 { return n.versions[0].Version }

// namedCache keeps named keys for a lease.
type namedCache struct {
	mu   sync.Mutex
	keys map[string]namedEntry
}

type namedEntry struct {
	key   *Named
	until time.Time
}

func (c *namedCache) get(name string, now time.Time) *Named {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.keys[name]; e.key != nil && e.until.After(now) {
		return e.key
	}
	return nil
}

func (c *namedCache) put(key *Named, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys == nil || len(c.keys) >= maxNamed {
		c.keys = make(map[string]namedEntry)
	}
	c.keys[key.name] = namedEntry{key, until}
}

func (c *namedCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = nil
}

func (c *namedCache) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.keys, name)
}

var errNoNamed = problem.New(problem.NotFound, "key-not-found", "There is no such key.")

// CreateNamed makes the first version of a named key. It fails with the problem "key-exists" when there
// is one with this name.
func (k *Keyring) CreateNamed(ctx context.Context, tx *db.Tx, by actor.Actor, name, algorithm string) error {
	if algorithm != NamedSealing && algorithm != NamedMAC && algorithm != NamedSigning {
		return fmt.Errorf("keyring: there is no key for %q", algorithm)
	}
	set, err := k.current(ctx, tx)
	if err != nil {
		return err
	}
	err = k.insertNamed(ctx, tx, set.kek, name, algorithm, 1)
	if errors.Is(err, errMoved) {
		return problem.New(problem.Conflict, "key-exists", "There is a key with this name already.")
	}
	if err != nil {
		return err
	}
	if err := k.changed(ctx, tx); err != nil {
		return err
	}
	return k.event(ctx, tx, by, "", ActionNamedCreate, "named key "+name+"/1")
}

// RotateNamed makes the next version of a named key, which seals, MACs and signs from now on, and returns
// its number. Other processes use it when their lease of the version before has ended.
func (k *Keyring) RotateNamed(ctx context.Context, tx *db.Tx, by actor.Actor, name string) (uint32, error) {
	rows, err := selectNamed(ctx, tx, name)
	if err != nil {
		return 0, err
	}
	if len(rows) == 0 {
		return 0, errNoNamed
	}
	newest := rows[len(rows)-1]
	set, err := k.current(ctx, tx) // before anything is changed: it holds states against what was sealed
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, `UPDATE service_key SET state = $1 WHERE name = $2 AND version = $3 AND state = $4`,
		retired, namedPrefix+name, newest.version, active); err != nil {
		return 0, err
	}
	version := newest.version + 1
	if err := k.insertNamed(ctx, tx, set.kek, name, newest.algorithm, version); err != nil {
		return 0, err
	}
	if err := k.changed(ctx, tx); err != nil {
		return 0, err
	}
	tx.AfterCommit(func() { k.named.forget(name) })
	return version, k.event(ctx, tx, by, "", ActionNamedRotate, fmt.Sprintf("named key %s/%d", name, version))
}

// DestroyNamed destroys a version of a named key that is not the newest: what it sealed never opens again,
// what it authenticated or signed is no longer valid. Other processes use it until their lease of it has
// ended. Scrub afterwards, so that no file of the database holds it. It fails with the problems
// "key-not-found", "key-version-not-found" for one that is not there or was destroyed, and "key-in-use".
func (k *Keyring) DestroyNamed(ctx context.Context, tx *db.Tx, by actor.Actor, name string, version uint32) error {
	rows, i, err := namedRow(ctx, tx, name, version)
	if err != nil {
		return err
	}
	if i == len(rows)-1 {
		return problem.New(problem.Conflict, "key-in-use", "This is the newest version. Rotate the key, rewrap what the version sealed, and then destroy it.")
	}
	if err := setNamed(ctx, tx, `UPDATE service_key SET state = $1, wrapped = NULL WHERE name = $2 AND version = $3 AND state = $4`,
		destroyed, rows[i]); err != nil {
		return err
	}
	if err := k.changed(ctx, tx); err != nil {
		return err
	}
	tx.AfterCommit(func() { k.named.forget(name) })
	return k.event(ctx, tx, by, "", ActionNamedDestroy, fmt.Sprintf("named key %s/%d", name, version))
}

// CompromiseNamed marks a version of a named key as known to somebody who must not know it, and returns the
// newest version, which is made when there is no newer one. What the version authenticated or signed is no
// longer valid, because others can have made it too; what it sealed still opens, to be rewrapped. It fails
// with the problems "key-not-found" and "key-version-not-found".
func (k *Keyring) CompromiseNamed(ctx context.Context, tx *db.Tx, by actor.Actor, name string, version uint32) (newest uint32, err error) {
	rows, i, err := namedRow(ctx, tx, name, version)
	if err != nil {
		return 0, err
	}
	newest = rows[len(rows)-1].version
	if newest == version {
		if newest, err = k.RotateNamed(ctx, tx, by, name); err != nil {
			return 0, err
		}
		rows[i].state = retired
	}
	if err := setNamed(ctx, tx, `UPDATE service_key SET state = $1 WHERE name = $2 AND version = $3 AND state = $4`, compromised, rows[i]); err != nil {
		return 0, err
	}
	if err := k.changed(ctx, tx); err != nil {
		return 0, err
	}
	tx.AfterCommit(func() { k.named.forget(name) })
	return newest, k.event(ctx, tx, by, "", ActionNamedCompromise, fmt.Sprintf("named key %s/%d", name, version))
}

// namedRow returns all versions of a named key, and the place of one that is not destroyed.
func namedRow(ctx context.Context, tx *db.Tx, name string, version uint32) (rows []serviceRow, i int, err error) {
	if rows, err = selectNamed(ctx, tx, name); err != nil {
		return nil, 0, err
	}
	if len(rows) == 0 {
		return nil, 0, errNoNamed
	}
	i = slices.IndexFunc(rows, func(r serviceRow) bool { return r.version == version && r.state != destroyed })
	if i < 0 {
		return nil, 0, problem.New(problem.NotFound, "key-version-not-found", "The key has no such version, or it was destroyed.")
	}
	return rows, i, nil
}

func setNamed(ctx context.Context, tx *db.Tx, update, state string, r serviceRow) error {
	n, err := tx.Exec(ctx, update, state, r.name, r.version, r.state)
	if err == nil && n != 1 {
		err = errMoved
	}
	return err
}

// insertNamed takes a KEK that is active as tx sees it: a retired one never wraps again; see CreateCustomer.
func (k *Keyring) insertNamed(ctx context.Context, tx *db.Tx, kek *seal.Ring, name, algorithm string, version uint32) error {
	material := newMaterial()
	defer clear(material)
	return insertServiceKey(ctx, tx, serviceRow{
		name: namedPrefix + name, version: version, kekVersion: kek.Version(), algorithm: algorithm, state: active,
		wrapped: kek.Seal(servicePlace(namedPrefix+name, algorithm, version), material), madeAt: clock.Micros(k.clock.Now()),
	})
}

// Named returns the key with the name. It fails with the problem "key-not-found" when there is none. Ask
// each time: a rotation replaces it.
func (k *Keyring) Named(ctx context.Context, name string) (*Named, error) {
	now := k.clock.Now()
	if key := k.named.get(name, now); key != nil {
		return key, nil
	}
	rows, err := k.namedRows(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, errNoNamed
	}
	key, err := k.openNamed(name, rows)
	if err != nil {
		return nil, fmt.Errorf("named key %s: %w", name, err)
	}
	k.named.put(key, now.Add(k.cache.lease))
	return key, nil
}

// namedRows returns the versions of a named key, oldest first, with the states that Strongroom wrote.
func (k *Keyring) namedRows(ctx context.Context, name string) (rows []serviceRow, err error) {
	for range 3 {
		var set *keySet
		var generation int64
		err := k.db.View(ctx, func(tx *db.Tx) (err error) {
			if generation, err = selectGeneration(ctx, tx); err != nil {
				return err
			}
			if set, err = k.current(ctx, tx); err != nil {
				return err
			}
			rows, err = selectNamed(ctx, tx, name)
			return err
		})
		if err != nil {
			return nil, err
		}
		if set.generation != generation {
			continue // this process is ahead of what the transaction saw
		}
		for _, r := range rows {
			if set.states[versionOf{r.name, r.version}] != r.state {
				return nil, fmt.Errorf("%w: the state of version %d of the named key %s is not the one that Strongroom wrote: bring the table service_key back from a backup", ErrDamaged, r.version, name)
			}
		}
		return rows, nil
	}
	return nil, keysUnavailable(errMoved)
}

// selectNamed returns the versions of a named key, oldest first.
func selectNamed(ctx context.Context, tx *db.Tx, name string) ([]serviceRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT name, version, kek_version, algorithm, state, wrapped, made_at
		FROM service_key WHERE name = $1 ORDER BY version`, namedPrefix+name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []serviceRow
	for rows.Next() {
		var r serviceRow
		if err := rows.Scan(&r.name, &r.version, &r.kekVersion, &r.algorithm, &r.state, &r.wrapped, &r.madeAt); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

func (k *Keyring) openNamed(name string, rows []serviceRow) (*Named, error) {
	n := &Named{name: name, algorithm: rows[0].algorithm, key: &serviceKey{}}
	kek := k.keys.Load().kek
	var keys []*seal.Key
	for _, r := range slices.Backward(rows) {
		if r.state == destroyed {
			continue
		}
		if r.algorithm != n.algorithm {
			return nil, fmt.Errorf("%w: version %d is for %q, not %s", ErrDamaged, r.version, r.algorithm, n.algorithm)
		}
		if len(n.versions) == 0 && r.state != active {
			return nil, fmt.Errorf("%w: the newest version is not active", ErrDamaged)
		}
		material, err := unwrap(kek, servicePlace(r.name, r.algorithm, r.version), r.kekVersion, r.wrapped)
		if err != nil {
			return nil, fmt.Errorf("version %d: %w", r.version, err)
		}
		if len(material) != seal.KeySize {
			return nil, fmt.Errorf("%w: version %d has the wrong length", ErrDamaged, r.version)
		}
		v := NamedVersion{Version: r.version, State: r.state, MadeAt: clock.FromMicros(r.madeAt)}
		switch n.algorithm {
		case NamedMAC:
			n.key.macs = append(n.key.macs, macKey{r.version, r.state, material})
		case NamedSigning:
			private := ed25519.NewKeyFromSeed(material)
			clear(material)
			n.private = append(n.private, private)
			v.Public = private.Public().(ed25519.PublicKey)
		case NamedSealing:
			key, err := seal.NewKey(r.version, material)
			clear(material)
			if err != nil {
				return nil, err
			}
			keys = append(keys, key.Counted(k.uses.counter(r.name, r.version)))
		default:
			return nil, fmt.Errorf("it is for %q, which this version does not know", n.algorithm)
		}
		n.versions = append(n.versions, v)
	}
	if len(n.versions) == 0 {
		return nil, errNoNamed
	}
	if n.algorithm != NamedSealing {
		return n, nil
	}
	var err error
	n.key.ring, err = seal.NewRing(k.scope(namedPrefix+name), keys...)
	return n, err
}

// errOtherUse is for a key that is asked for what it was not made for.
func (n *Named) errOtherUse() *problem.Problem {
	return problem.New(problem.Conflict, "key-for-other-use", "This key is for %s.", n.algorithm)
}

// Ring returns the ring of a key that seals; else the problem "key-for-other-use".
func (n *Named) Ring() (*seal.Ring, error) {
	if n.algorithm != NamedSealing {
		return nil, n.errOtherUse()
	}
	return n.key.ring, nil
}

// MAC returns the HMAC-SHA-256 of the parts, each with its length in front, and the version that made it.
func (n *Named) MAC(parts ...[]byte) ([]byte, uint32, error) {
	if n.algorithm != NamedMAC {
		return nil, 0, n.errOtherUse()
	}
	newest := n.key.macs[0]
	return macOf(newest.material, parts...), newest.version, nil
}

// VerifyMAC reports whether a version of the key that is not compromised made mac of the parts.
func (n *Named) VerifyMAC(version uint32, mac []byte, parts ...[]byte) (bool, error) {
	if n.algorithm != NamedMAC {
		return false, n.errOtherUse()
	}
	i := n.index(version)
	return i >= 0 && n.trusted(i) && hmac.Equal(mac, macOf(n.key.macs[i].material, parts...)), nil
}

// Sign returns the Ed25519 signature (RFC 8032) of the message, and the version that made it.
func (n *Named) Sign(message []byte) ([]byte, uint32, error) {
	if n.algorithm != NamedSigning {
		return nil, 0, n.errOtherUse()
	}
	return ed25519.Sign(n.private[0], message), n.Version(), nil
}

// Verify reports whether a version of the key that is not compromised signed the message.
func (n *Named) Verify(version uint32, message, signature []byte) (bool, error) {
	if n.algorithm != NamedSigning {
		return false, n.errOtherUse()
	}
	i := n.index(version)
	return i >= 0 && n.trusted(i) && len(signature) == ed25519.SignatureSize && ed25519.Verify(n.versions[i].Public, message, signature), nil
}

// trusted reports whether only Strongroom can have made what the version made.
func (n *Named) trusted(i int) bool { return n.versions[i].State != compromised }

func (n *Named) index(version uint32) int {
	return slices.IndexFunc(n.versions, func(v NamedVersion) bool { return v.Version == version })
}

// String hides the key.
func (n *Named) String() string { return redacted }

// GoString hides the key from %#v.
func (n *Named) GoString() string { return redacted }

// Format hides the key from every verb.
func (n *Named) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the key from log/slog.
func (n *Named) LogValue() slog.Value { return slog.StringValue(redacted) }
