// Package keyring keeps the keys that everything else is sealed with.
//
// A root key, outside the database, wraps key-encryption keys (KEK, versioned); a KEK wraps one data
// key per customer and the service keys, which are Strongroom's own: the pepper, the token key, the
// blind-index key, the keys of the audit trail. The promise: no key stands in the database that is
// not wrapped; a wrapped key opens only for the customer or the name, the version, the environment
// and the installation that it was made for; a key is never made, changed or destroyed, and the list
// never read, without an event in the same transaction; a KEK is believed only when an older one
// vouches for it; a rotation stops no request and goes on where it was cut off; and once a customer's
// data key is destroyed, nothing that was sealed with it opens again, in any copy.
//
// Plaintext keys live in memory only: the KEKs and service keys for the life of the process, the
// customers' data keys in a bounded cache with a lease. No key prints, whatever the verb. A ring
// that leaves the cache may still be in use by a request, so its key schedule is left to the garbage
// collector and not overwritten: sealing under an overwritten key would be far worse. The bytes that
// a ring is made of are cleared as soon as it is made.
package keyring

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// The actions that keyring records.
const (
	ActionKEKCreate      = "keyring.kek.create"
	ActionServiceCreate  = "keyring.service-key.create"
	ActionCustomerCreate = "keyring.customer-key.create"
	ActionList           = "keyring.keys.list"
)

// The states of a key version. The newest that is neither published nor destroyed is active, and it
// alone seals.
const (
	published   = "published" // opens, and waits until every process holds it
	active      = "active"
	retired     = "retired"     // opens, until nothing needs it
	compromised = "compromised" // opens, and what it sealed is sealed anew first
	destroyed   = "destroyed"   // is gone
)

const (
	room = "keyring"
	// kekName names the key-encryption keys in scopes and in the list, customerName the data keys.
	kekName, customerName = "kek", "customer"
	aesGCM                = "AES-256-GCM"
	hmacSHA256            = "HMAC-SHA-256"
	ed25519Name           = "Ed25519"

	defaultCacheSize = 10_000
	defaultLease     = 5 * time.Minute
	defaultPublish   = 10 * time.Second
	defaultRate      = 5_000
)

// Recorder records an event in the deed's own transaction. The audit trail is behind it.
// The customer is whose key it is about, or "".
type Recorder func(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, action, resource string) error

// Options say what a Keyring works with. DB and Root are needed.
type Options struct {
	DB   *db.DB
	Root Root

	// Second is the other root key while the root moves from one to the other; nil when it does not. The
	// keyring closes it in CloseSecond.
	Second Root
	// Manifest is the path of the embedded database's manifest, whose file key moves with the KEKs; empty
	// with PostgreSQL.
	Manifest string

	// Create makes the keys that are missing: for the one who makes the installation. Without it a key
	// that is missing was taken away, and a new one in its place would hide that.
	Create bool

	// AcceptStates takes the states of KEKs and service keys as they are in the database, and has them
	// hold from now on: for whoever has looked at them after bringing tables back from a backup.
	AcceptStates bool

	// Record records the events. When the trail needs this very keyring, as it does, give Connect
	// instead: it is called once, as soon as the keyring holds its keys and before they are committed,
	// and returns the recorder that then also records their making. It must not touch the database,
	// and what it makes asks the keyring for a key each time it needs one and keeps none: in a race
	// between two first starts the keys change once more before Open returns.
	Record  Recorder
	Connect func(k *Keyring) Recorder

	CacheSize int           // how many customers' rings are kept; 0 means 10,000
	Lease     time.Duration // for how long one is used without asking the database; 0 means 5 minutes

	// Publish is how long a new KEK waits for all processes to hold it before it seals; 0 means 10
	// seconds. The embedded database has one process, and needs no wait but for the signing key, whose
	// successor the log announces.
	Publish time.Duration
	// Rate bounds how many keys a second a rotation wraps anew; 0 means 5,000.
	Rate int
	// KEKEvery is the age at which the active KEK is rotated; 0 means never by itself.
	KEKEvery time.Duration
	// ServiceEvery is the age at which the service keys that can be are rotated; 0 means never.
	ServiceEvery time.Duration
	// CustomerEvery is the age at which a customer's data key is; 0 means only when asked.
	CustomerEvery time.Duration
	// Needed says who else needs a version of a key that nothing in the database does any more, a
	// retained backup for one; "" means nobody does. nil asks nobody.
	Needed func(ctx context.Context, tx *db.Tx, name string, version uint32) (by string, err error)

	// Findings is told what is wrong with the keys; nil tells nobody.
	Findings Findings

	Clock   clock.Clock           // nil means clock.System
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil keeps none
}

// Keyring hands out keys. It is safe for concurrent use.
type Keyring struct {
	db       *db.DB
	root     Root
	second   atomic.Pointer[otherHolder]
	accept   bool
	manifest string
	clock    clock.Clock
	log      *slog.Logger
	keys     atomic.Pointer[keySet]
	record   atomic.Pointer[Recorder]
	cache    *cache
	publish  time.Duration
	handOver time.Duration // of the signing key, which the log has to announce first
	rate     int
	needed   func(ctx context.Context, tx *db.Tx, name string, version uint32) (string, error)
	metrics  *metrics
	named    namedCache
	uses     uses
	findings Findings
	reports  reports

	kekEvery, serviceEvery, customerEvery time.Duration

	peppered func(ctx context.Context, tx *db.Tx) (map[uint32]int64, error)
	indexes  []Index

	opening  opening
	resealer resealer
}

// keySet is all keys that live as long as the process; it is replaced as a whole.
type keySet struct {
	generation int64      // of the rows that it was made of
	kek        *seal.Ring // the active one seals
	kekMade    time.Time  // when the active one was made
	held       map[uint32]heldKEK
	states     map[versionOf]string // of all KEKs and service keys, named ones too
	service    map[string]*serviceKey

	compromised int // KEKs that are, and are not destroyed
	indexing    uint32
}

// heldKEK is a KEK that was unwrapped once and need not be again.
type heldKEK struct {
	key    *seal.Key
	digest []byte // what an older KEK vouches for
}

// Format hides the keys from every verb, also in a panic's text.
func (s keySet) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// Format hides what is told of the key.
func (h heldKEK) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// Open unwraps the keys of o.DB. With o.Create it makes the first KEK and the service keys that are
// missing, each with its event, in one transaction; two processes that do so at the same time agree on
// one set. Without, it fails with ErrDamaged when one is missing.
//
// It fails with ErrEnvironment for the keys of another environment or installation, with ErrOtherRoot
// or ErrUnwrap when the root key does not open them, and with the problem "keys-unavailable" when the
// root key's service does not answer.
func Open(ctx context.Context, by actor.Actor, o Options) (*Keyring, error) {
	if o.DB == nil || o.Root == nil {
		return nil, errors.New("keyring: a database and a root key are needed")
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.CacheSize <= 0 {
		o.CacheSize = defaultCacheSize
	}
	if o.Lease <= 0 {
		o.Lease = defaultLease
	}
	if o.Publish <= 0 {
		o.Publish = defaultPublish
	}
	handOver := o.Publish
	if o.DB.Engine() == db.SQLite {
		o.Publish = 0
	}
	if o.Rate <= 0 {
		o.Rate = defaultRate
	}
	if o.Needed == nil {
		o.Needed = func(context.Context, *db.Tx, string, uint32) (string, error) { return "", nil }
	}
	k := &Keyring{
		db: o.DB, root: o.Root, manifest: o.Manifest, findings: o.Findings, accept: o.AcceptStates, clock: o.Clock, log: o.Log, metrics: newMetrics(o.Metrics),
		publish: o.Publish, handOver: handOver, rate: o.Rate, needed: o.Needed,
		kekEvery: o.KEKEvery, serviceEvery: o.ServiceEvery, customerEvery: o.CustomerEvery,
		resealer: resealer{findings: o.Findings, settle: customerSettle + o.Lease},
	}
	if o.DB.Engine() == db.SQLite {
		k.resealer.settle = 0 // one process, which notices at once
	}
	var err error
	if k.cache, err = newCache(o.CacheSize, o.Lease, o.Clock, o.Metrics); err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	k.SetRecorder(o.Record)
	if o.Second != nil {
		k.second.Store(&otherHolder{o.Second})
	}

	connected := false
	connect := func() {
		if o.Connect != nil && !connected {
			connected = true
			k.SetRecorder(o.Connect(k))
		}
	}
	// Another process may make keys between our look and our try; the second round finds them. More
	// rounds are for an upgrade that makes keys at the same moment.
	for range 5 {
		err = k.load(ctx, by, o.Create, connect)
		if !errors.Is(err, errMoved) {
			break
		}
	}
	if errors.Is(err, errMoved) {
		return nil, keysUnavailable(err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the keys: %w", err)
	}
	if k.accept {
		if err := k.acceptStates(ctx, by); err != nil {
			return nil, fmt.Errorf("accept the states of the keys: %w", err)
		}
	}
	if err := k.reserve(ctx); err != nil {
		return nil, fmt.Errorf("count the uses of the keys: %w", err)
	}
	k.log.Info("keys are ready", "kek", k.keys.Load().kek.Version(), "root", k.root.ID())
	return k, nil
}

// SetRecorder sets what records the events. Without a recorder nothing is made and nothing listed.
func (k *Keyring) SetRecorder(r Recorder) {
	if r == nil {
		k.record.Store(nil)
		return
	}
	k.record.Store(&r)
}

var errNoRecorder = errors.New("keyring: there is no recorder: no key is made and no list read without an event")

func (k *Keyring) event(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, action, resource string) error {
	record := k.record.Load()
	if record == nil {
		return errNoRecorder
	}
	return (*record)(ctx, tx, by, c, action, resource)
}

// scope is what a ring binds into all that it seals.
func (k *Keyring) scope(name string) string {
	return "strongroom/" + k.db.Environment() + "/" + k.db.Installation() + "/" + name
}

// errMoved means that another process made keys since the first look.
var errMoved = errors.New("another process is making the keys")

// load reads and unwraps all keys and makes what is missing. The root is called outside of any
// transaction: it may be a service far away.
func (k *Keyring) load(ctx context.Context, by actor.Actor, create bool, connect func()) error {
	var rows keyRows
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		rows, err = selectKeys(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}

	var set *keySet
	var first *kekRow
	if len(rows.keks) == 0 {
		if !create {
			return fmt.Errorf("%w: there is no KEK: bring the tables kek, kek_wrap and service_key back from a backup", ErrDamaged)
		}
		if set, first, err = k.firstKEK(ctx); err != nil {
			return err
		}
	} else if set, err = k.unwrapKEKs(ctx, rows, nil); err != nil {
		return err
	}

	missing := missingServices(rows.services)
	if first == nil && len(missing) == 0 {
		if err := k.admit(ctx, set, rows); err != nil {
			return err
		}
		if err := k.open(set, rows.services); err != nil {
			return err
		}
		k.hold(set)
		connect()
		return nil
	}
	if !create {
		return fmt.Errorf("%w: service key %s is missing: bring the table service_key back from a backup", ErrDamaged, missing[0].name)
	}

	if first == nil {
		if err := k.admit(ctx, set, rows); err != nil {
			return err
		}
	}

	// The keys are made before the transaction, which may run more than once: whatever Connect saw in
	// a run that came to nothing is still true in the next.
	made := make([]serviceRow, len(missing))
	for i, d := range missing {
		made[i] = k.newServiceRow(set.kek, d, 1)
	}
	return k.db.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
		// Every insertion waits for another process that is inserting the same row, and then does
		// nothing: who is late knows it and rolls back.
		if first != nil {
			if err := insertKEK(ctx, tx, *first); err != nil {
				return err
			}
		}
		for _, row := range made {
			if err := insertServiceKey(ctx, tx, row); err != nil {
				return err
			}
		}
		all, err := selectServiceKeys(ctx, tx)
		if err != nil {
			return err
		}
		if err := k.open(set, all); err != nil {
			return err
		}
		k.hold(set)
		connect()
		if err := k.changed(ctx, tx); err != nil {
			return err
		}
		if first != nil {
			if err := k.event(ctx, tx, by, "", ActionKEKCreate, "kek "+strconv.Itoa(int(first.version))); err != nil {
				return err
			}
		}
		for _, row := range made {
			resource := "service key " + row.name + "/" + strconv.Itoa(int(row.version))
			if err := k.event(ctx, tx, by, "", ActionServiceCreate, resource); err != nil {
				return err
			}
		}
		return nil
	})
}

func (k *Keyring) kekContext(version uint32) []byte {
	return contextOf(kekName, k.db.Environment(), k.db.Installation(), uint64(version))
}

// firstKEK makes KEK 1, which is not in the database yet.
func (k *Keyring) firstKEK(ctx context.Context) (*keySet, *kekRow, error) {
	held, row, err := k.newKEK(ctx, 1)
	if err != nil {
		return nil, nil, err
	}
	row.state = active
	ring, err := k.kekRing(held.key)
	if err != nil {
		return nil, nil, err
	}
	return &keySet{kek: ring, kekMade: clock.FromMicros(row.madeAt), held: map[uint32]heldKEK{1: held}}, &row, nil
}

// newKEK makes a KEK and has the root key wrap it.
func (k *Keyring) newKEK(ctx context.Context, version uint32) (heldKEK, kekRow, error) {
	material := newMaterial()
	defer clear(material)
	row := kekRow{version: version, algorithm: aesGCM, madeAt: clock.Micros(k.clock.Now())}
	var roots []Root
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		roots, err = k.wrapRoots(ctx, tx)
		return err
	})
	if err != nil {
		return heldKEK{}, kekRow{}, err
	}
	for _, root := range roots {
		wrapped, err := root.Wrap(ctx, material, k.kekContext(version))
		if err != nil {
			return heldKEK{}, kekRow{}, fmt.Errorf("wrap KEK %d: %w", version, err)
		}
		row.wraps = append(row.wraps, kekWrap{root.ID(), wrapped})
	}
	held, err := holdKEK(version, material)
	return held, row, err
}

func (k *Keyring) kekRing(keys ...*seal.Key) (*seal.Ring, error) {
	counted := make([]*seal.Key, len(keys))
	for i, key := range keys {
		counted[i] = key.Counted(k.uses.counter(kekName, key.Version()))
	}
	return seal.NewRing(k.scope(kekName), counted...)
}

// admit checks the states of the keys at the start; only who was asked to look at them takes them as they
// are.
func (k *Keyring) admit(ctx context.Context, set *keySet, rows keyRows) error {
	err := set.checkRoster(rows)
	if err != nil && k.accept {
		k.log.WarnContext(ctx, "the states of the keys are taken as they are", "error", err)
		return nil
	}
	return err
}

func holdKEK(version uint32, material []byte) (heldKEK, error) {
	key, err := seal.NewKey(version, material)
	if err != nil {
		return heldKEK{}, fmt.Errorf("KEK %d: %w", version, err)
	}
	digest := sha256.Sum256(append([]byte("strongroom KEK digest v1 "), material...))
	return heldKEK{key, digest[:]}, nil
}

// unwrapKEKs opens all KEKs that are not destroyed, but for those that old holds. The rows are in
// order of their version. The set has no service keys yet.
func (k *Keyring) unwrapKEKs(ctx context.Context, rows keyRows, old *keySet) (*keySet, error) {
	set := &keySet{generation: rows.generation, indexing: rows.indexing, held: make(map[uint32]heldKEK), states: statesOf(rows)}
	var keys []*seal.Key
	states := make([]string, len(rows.keks))
	for i, row := range rows.keks {
		states[i] = row.state
		if row.state == destroyed {
			continue
		}
		if row.state == compromised {
			set.compromised++
		}
		if row.algorithm != aesGCM {
			return nil, fmt.Errorf("KEK %d is for %q, which this version does not know", row.version, row.algorithm)
		}
		var held heldKEK
		if old != nil {
			held = old.held[row.version]
		}
		if held.key == nil {
			material, err := k.unwrapKEK(ctx, row)
			if err != nil {
				return nil, err
			}
			held, err = holdKEK(row.version, material)
			clear(material)
			if err != nil {
				return nil, err
			}
		}
		set.held[row.version] = held
		keys = append(keys, held.key)
	}
	i, err := activeOf(states)
	if err != nil {
		return nil, fmt.Errorf("the KEKs: %w", err)
	}
	ring, err := k.kekRing(keys...)
	if err != nil {
		return nil, err
	}
	if err := set.checkVouches(ring, rows.keks); err != nil {
		return nil, err
	}
	set.kekMade = clock.FromMicros(rows.keks[i].madeAt)
	set.kek, err = ring.Under(rows.keks[i].version)
	return set, err
}

func vouchPlace(version uint32) seal.Place {
	return seal.Place{Room: room, Table: "kek", Record: aesGCM, Version: int64(version)}
}

// checkVouches has every KEK but the oldest that is left vouched for by an older one. Some key
// management services wrap for everybody (RSA with a public key), so that a key that the root opens
// is not yet a key that Strongroom made: whoever writes to the database could have new keys wrapped
// by one that they know.
func (s *keySet) checkVouches(ring *seal.Ring, rows []kekRow) error {
	oldest := true
	for _, row := range rows {
		if row.state == destroyed {
			continue
		}
		if oldest {
			oldest = false
			continue
		}
		by, err := seal.KeyVersion(row.vouch)
		var digest []byte
		if err == nil && by < row.version {
			digest, err = ring.Open(vouchPlace(row.version), row.vouch)
		}
		if err != nil || subtle.ConstantTimeCompare(digest, s.held[row.version].digest) != 1 {
			return fmt.Errorf("%w: no older KEK vouches for KEK %d: the row was altered, or somebody else put the key there: bring the table kek back from a backup", ErrDamaged, row.version)
		}
	}
	return nil
}

func (k *Keyring) unwrapKEK(ctx context.Context, row kekRow) ([]byte, error) {
	if len(row.wraps) == 0 {
		return nil, fmt.Errorf("%w: KEK %d is not there: bring the table kek_wrap back from a backup", ErrDamaged, row.version)
	}
	// A root that is named first. Its id may also have changed while the key is the same (an alias, say),
	// so what nobody here is named for is tried as well.
	var tries []rootTry
	for _, w := range row.wraps {
		if root := k.rootNamed(w.rootID); root == k.root {
			tries = append([]rootTry{{root, w}}, tries...)
		} else if root != nil {
			tries = append(tries, rootTry{root, w})
		}
	}
	if len(tries) == 0 {
		for _, w := range row.wraps {
			tries = append(tries, rootTry{k.root, w})
		}
	}
	var failed error
	for _, t := range tries {
		material, err := t.root.Unwrap(ctx, t.wrapped, k.kekContext(row.version))
		switch {
		case err == nil:
			return material, nil
		case errors.Is(err, ErrContext):
			return nil, fmt.Errorf("%w: KEK %d was not made for %s, installation %s: configure the environment, database and root key that belong together: %w",
				ErrEnvironment, row.version, k.db.Environment(), k.db.Installation(), err)
		case problem.Of(err) != nil:
			failed = err // the other root, if there is one, may answer
		case t.rootID != t.root.ID():
			failed = otherRoot(fmt.Sprintf("KEK %d", row.version), t.rootID, t.root.ID())
		default:
			failed = fmt.Errorf("KEK %d: %w: the row was altered, or the root key %s was replaced: bring them back from a backup", row.version, err, t.rootID)
		}
	}
	return nil, failed
}

// rootTry is a wrap, and a root that may open it.
type rootTry struct {
	root Root
	kekWrap
}

// activeOf returns the place of the active version among the states of a key's versions, oldest first.
func activeOf(states []string) (int, error) {
	found, newest := -1, ""
	for i, s := range states {
		switch s {
		case active:
			found, newest = i, s
		case retired, compromised:
			newest = s
		case published, destroyed:
		default:
			return 0, fmt.Errorf("%w: the state %q is not known to this version", ErrDamaged, s)
		}
	}
	if newest != active {
		return 0, fmt.Errorf("%w: the newest version is not active", ErrDamaged)
	}
	return found, nil
}

// unwrap opens what a KEK wraps. The row's own note of which KEK that is must agree, because KEKs are
// destroyed by it.
func unwrap(kek *seal.Ring, p seal.Place, kekVersion uint32, wrapped []byte) ([]byte, error) {
	if v, err := seal.KeyVersion(wrapped); err != nil || v != kekVersion {
		return nil, fmt.Errorf("%w: the row was altered: bring it back from a backup", ErrUnwrap)
	}
	material, err := kek.Open(p, wrapped)
	if errors.Is(err, seal.ErrKeyVersion) {
		return nil, keysUnavailable(fmt.Errorf("it is wrapped by KEK %d, which this process does not hold", kekVersion))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the row was altered or belongs elsewhere: bring it back from a backup", ErrUnwrap)
	}
	return material, nil
}

func newMaterial() []byte {
	b := make([]byte, seal.KeySize)
	rand.Read(b)
	return b
}

// CreateCustomer makes the data key of a new customer, in the transaction that makes the customer.
// It fails with the problem "customer-exists" when there is one, and with "customer-erased" when
// there was one: an erased customer never comes back under the same name.
func (k *Keyring) CreateCustomer(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID) (*seal.Ring, error) {
	if !c.Valid() {
		return nil, fmt.Errorf("keyring: %q is no customer's id", c)
	}
	if k.record.Load() == nil {
		return nil, errNoRecorder
	}
	if err := k.Erased(ctx, tx, c); err != nil {
		return nil, err
	}
	// What another process has made of the KEKs holds for this transaction too: a retired one never
	// wraps again, so that what is found not to need it never will.
	set, err := k.current(ctx, tx)
	if err != nil {
		return nil, err
	}
	material := newMaterial()
	kek := set.kek
	if kek.Worn() {
		return nil, keysUnavailable(seal.ErrWornOut)
	}
	row := dataRow{
		version: 1, kekVersion: kek.Version(), state: active,
		wrapped: kek.Seal(dataPlace(c, 1), material), madeAt: clock.Micros(k.clock.Now()),
	}
	ring, err := ringOf(k.scope(customerName), material)
	if err != nil {
		return nil, err
	}
	made, err := insertDataKey(ctx, tx, c, row)
	if err != nil {
		return nil, err
	}
	if !made {
		return nil, problem.New(problem.Conflict, "customer-exists", "The customer exists already.")
	}
	if err := k.event(ctx, tx, by, c, ActionCustomerCreate, "customer key "+string(c)+"/1"); err != nil {
		return nil, err
	}
	tx.AfterCommit(func() { k.cache.put(c, ring) })
	return ring, nil
}

var (
	errErased  = problem.New(problem.Gone, "customer-erased", "The customer's data were erased.")
	errUnknown = problem.New(problem.NotFound, "customer-not-found", "There is no such customer.")
)

// Customer returns the ring of c's data key, in all its versions, as tx sees it: also of a customer
// that tx itself has just made. It fails with the problem "customer-erased" when the key was
// destroyed and with "customer-not-found" when there never was one.
//
// The ring comes from the cache while its lease lasts, so that an erasure by another process takes
// up to a lease to be seen; an erasure by this one is seen at once, by Forget.
func (k *Keyring) Customer(ctx context.Context, tx *db.Tx, c customer.ID) (*seal.Ring, error) {
	if !c.Valid() {
		return nil, errUnknown
	}
	if ring := k.cache.get(c); ring != nil {
		return ring, nil
	}
	return k.readCustomer(ctx, tx, c)
}

// readCustomer is Customer as the database has it.
func (k *Keyring) readCustomer(ctx context.Context, tx *db.Tx, c customer.ID) (*seal.Ring, error) {
	rows, err := selectDataKeys(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, errUnknown
	}
	set := k.keys.Load()
	var keys []*seal.Key
	states := make([]string, len(rows))
	for i, row := range rows {
		if row.version == 0 { // the tombstone
			if !k.isTombstone(c, row.madeAt, row.wrapped) {
				return nil, fmt.Errorf("%w: the tombstone of customer %s was not written by Strongroom: remove it", ErrDamaged, c)
			}
			return nil, errErased
		}
		if set.held[row.kekVersion].key == nil && row.state != destroyed {
			if set, err = k.current(ctx, tx); err != nil {
				return nil, err
			}
		}
		states[i] = row.state
		if row.state == destroyed {
			continue
		}
		material, err := unwrap(set.kek, dataPlace(c, row.version), row.kekVersion, row.wrapped)
		if err != nil {
			return nil, fmt.Errorf("data key %s/%d: %w", c, row.version, err)
		}
		key, err := seal.NewKey(row.version, material)
		clear(material)
		if err != nil {
			return nil, fmt.Errorf("data key %s/%d: %w", c, row.version, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: data key %s is destroyed without a tombstone: bring its rows back from a backup", ErrDamaged, c)
	}
	if _, err := activeOf(states); err != nil {
		return nil, fmt.Errorf("data key %s: %w", c, err)
	}
	ring, err := seal.NewRing(k.scope(customerName), keys...)
	if err != nil {
		return nil, err
	}
	// What tx sees may be its own and not committed: it is kept once it is. A View has no commit and
	// leaves nothing in the cache.
	tx.AfterCommit(func() { k.cache.put(c, ring) })
	return ring, nil
}

func dataPlace(c customer.ID, version uint32) seal.Place {
	return seal.Place{Room: room, Table: "data_key", Customer: string(c), Version: int64(version)}
}

// Forget has this process drop c's ring and ask the database each time for one lease, so that a
// request that began before does not bring back what it had read. Call it after the transaction
// that destroyed or changed c's key was committed.
func (k *Keyring) Forget(c customer.ID) { k.cache.forget(c) }

// Info describes one version of a key, or of all customers' data keys together.
type Info struct {
	Name      string // "kek", "customer", or the name of a service key
	Version   uint32
	Algorithm string
	State     string // published, active, retired, compromised or destroyed
	MadeAt    time.Time
	Uses      int64  // KEK: how many keys it wraps; customer: how many customers; pepper, blind-index: how many rows; -1 for others
	Seals     int64  // how often it sealed, at most; -1 for what is not counted
	WrappedBy string // the root key's id, or "kek/1"

	Next time.Time // when an active version is rotated by itself; zero for never
}

// List returns all keys, without anything secret: KEKs first, then the customers' data keys summed up
// by version, KEK and state (MadeAt is the oldest), then the service keys. It leaves an event. Only the
// system may ask for it so far; anybody else gets the problem "keys-not-allowed", and the event of that
// is the caller's to record.
func (k *Keyring) List(ctx context.Context, by actor.Actor) ([]Info, error) {
	if by.Kind != actor.System {
		return nil, problem.New(problem.Forbidden, "keys-not-allowed", "You may not list the keys.")
	}
	var list []Info
	err := k.db.Update(ctx, func(tx *db.Tx) error {
		list = nil
		if err := k.event(ctx, tx, by, "", ActionList, "keys"); err != nil {
			return err
		}
		keks, err := selectKEKs(ctx, tx)
		if err != nil {
			return err
		}
		services, err := selectServiceKeys(ctx, tx)
		if err != nil {
			return err
		}
		data, err := countDataKeys(ctx, tx)
		if err != nil {
			return err
		}
		used, err := selectUses(ctx, tx)
		if err != nil {
			return err
		}
		wraps := make(map[uint32]int64)
		for _, d := range data {
			wraps[d.kekVersion] += d.count
		}
		for _, s := range services {
			if s.wrapped != nil {
				wraps[s.kekVersion]++
			}
		}
		wrappedBy := func(kek uint32) string { return kekName + "/" + strconv.Itoa(int(kek)) }
		for _, r := range keks {
			var roots []string
			for _, w := range r.wraps {
				roots = append(roots, w.rootID)
			}
			list = append(list, Info{
				Name: kekName, Version: r.version, Algorithm: r.algorithm, State: r.state,
				MadeAt: clock.FromMicros(r.madeAt), Uses: wraps[r.version], WrappedBy: strings.Join(roots, ", "),
				Seals: used[versionOf{kekName, r.version}],
				Next:  next(k.kekEvery, r.state, r.madeAt),
			})
		}
		for _, d := range data {
			list = append(list, Info{
				Name: customerName, Version: d.version, Algorithm: aesGCM, State: d.state,
				MadeAt: clock.FromMicros(d.madeAt), Uses: d.count, Seals: -1, WrappedBy: wrappedBy(d.kekVersion),
				Next: next(k.customerEvery, d.state, d.madeAt),
			})
		}
		made := make(map[string]map[uint32]int64)
		for _, name := range []string{KeyPepper, KeyBlindIndex} {
			if made[name], err = k.rowsOf(ctx, tx, name); err != nil {
				return err
			}
		}
		for _, s := range services {
			uses, seals := int64(-1), int64(-1)
			if made[s.name] != nil {
				uses = made[s.name][s.version]
			}
			if s.algorithm == aesGCM {
				seals = used[versionOf{s.name, s.version}]
			}
			list = append(list, Info{
				Name: s.name, Version: s.version, Algorithm: s.algorithm, State: s.state,
				MadeAt: clock.FromMicros(s.madeAt), Uses: uses, Seals: seals, WrappedBy: wrappedBy(s.kekVersion),
				Next: next(k.everyService(s.name), s.state, s.madeAt),
			})
		}
		return nil
	})
	return list, err
}
