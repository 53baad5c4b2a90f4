// Package vault keeps customers' records: documents of personal data, in collections that the
// configuration declares.
//
// The promise: a record stands in the database only sealed, under its customer's own key and bound
// to its place and version, so that a copy of the database shows nothing and an exchanged row does
// not open. A read answers masked values unless whole ones are asked for with a purpose that the
// collection allows. No value leaves before the event that says who read it is durable, and no
// change is made without its event in the same transaction; a refusal is an event too. Two writers
// never overwrite each other unnoticed.
//
// A record has a key, which its customer chooses, and a version. Look-up by an indexed field goes
// through a keyed hash, the blind index. A blob is a document that is too large for a record. Erasing a
// customer destroys their key, and with it all of that in every copy.
package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// The actions that vault records.
const (
	ActionCreate = "vault.record.create"
	ActionUpdate = "vault.record.update"
	ActionRead   = "vault.record.read"
	ActionList   = "vault.record.list"
	ActionDelete = "vault.record.delete"
	ActionExpire = "vault.record.expire"
)

const (
	room = "vault"
	// MaxPage is the most records that List returns at once.
	MaxPage = 100
	// expireBatch is how many records one transaction of Expire deletes.
	expireBatch = 64
	// maxMatches is how many records Lookup finds.
	maxMatches = 16
)

// Ref names a record of a customer.
type Ref struct {
	Collection string
	Key        string // 1 to 64 of A-Z, a-z, 0-9, dot, hyphen and underscore
}

// Record is a record as its reader may see it.
type Record struct {
	Ref
	Version       int64
	SchemaVersion int            // the version of the collection's declaration under which it was written
	Fields        map[string]any // string, json.Number or bool; a masked value is a string
	UpdatedAt     time.Time
}

// Reveal says which fields to read whole, and why. The zero Reveal reads masked.
type Reveal struct {
	All     bool
	Fields  []string
	Purpose string // one of the collection's purposes
}

// Match is a record that Lookup found.
type Match struct {
	Customer customer.ID
	Key      string
}

// Options say what a Vault works with.
type Options struct {
	Collections []Collection // nil means Defaults
	Pinned      bool         // Collections are the settings': nobody changes them but these
	Erasers     []Eraser     // the other rooms that Erase has to reach
	// Erased is called after an erasure was committed, for copies elsewhere to follow; nil calls nobody.
	Erased func()

	Identity Exporter // what Export has to ask beside the vault; may be nil

	Wake func(job string) // runs a job at once; may be nil

	Clock   clock.Clock           // nil means clock.System
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil keeps none
}

// Vault keeps records. It is safe for concurrent use.
type Vault struct {
	db         *db.DB
	keys       *keyring.Keyring
	trail      *audit.Trail
	pinned     map[string]*schema // of the settings, or those that ship
	state      atomic.Pointer[map[string]*schema]
	stamp      string     // what state was loaded from
	refreshing sync.Mutex // guards stamp, and makes refresh one at a time
	wake       func(job string)
	erasers    []Eraser
	erased     func()
	identity   Exporter
	clock      clock.Clock
	log        *slog.Logger
	operations *prometheus.CounterVec
	transfers  atomic.Int64 // blobs on their way
}

// New returns a vault over the database. It fails when a collection's declaration is not right.
func New(d *db.DB, keys *keyring.Keyring, trail *audit.Trail, o Options) (*Vault, error) {
	if o.Collections == nil {
		o.Collections = Defaults()
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	collections, err := compile(o.Collections)
	if err != nil {
		return nil, err
	}
	v := &Vault{db: d, keys: keys, trail: trail, pinned: collections, erasers: o.Erasers, erased: o.Erased, identity: o.Identity, wake: o.Wake, clock: o.Clock, log: o.Log}
	for _, s := range collections {
		if s.source = FromDefault; o.Pinned {
			s.source = FromConfiguration
		}
	}
	v.state.Store(&collections)
	v.operations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "strongroom_vault_operations_total",
		Help: "Operations on records, by action and outcome.",
	}, []string{"action", "outcome"})
	if o.Metrics != nil {
		if err := o.Metrics.Register(v.operations); err != nil {
			var there prometheus.AlreadyRegisteredError
			if !errors.As(err, &there) {
				return nil, fmt.Errorf("vault: %w", err)
			}
			v.operations = there.ExistingCollector.(*prometheus.CounterVec)
		}
	}
	return v, nil
}

var keyForm = regexp.MustCompile(`\A[A-Za-z0-9._-]{1,64}\z`)

// allowed is the rule who may touch whose records: customers their own.
func allowed(by actor.Actor, owner customer.ID) *problem.Problem {
	if !owner.Valid() || by.Customer() != owner {
		return problem.New(problem.Forbidden, "not-your-record", "You may only work with your own records.")
	}
	return nil
}

// find returns the collection, and the name under which the record stands in an event. A name that
// is not well-formed may be anything, a personal value included, and is left out of the event.
func (v *Vault) find(ref Ref) (s *schema, resource string, p *problem.Problem) {
	if s = v.collections()[ref.Collection]; s == nil {
		return nil, "record", problem.New(problem.NotFound, "collection-not-found", "There is no such collection.")
	}
	if !keyForm.MatchString(ref.Key) {
		return nil, "record " + s.Name, problem.New(problem.Unprocessable, "invalid-key",
			"A record's key is 1 to 64 letters, digits, dots, hyphens and underscores.")
	}
	return s, "record " + s.Name + "/" + ref.Key, nil
}

var errAbsent = problem.New(problem.NotFound, "record-not-found", "There is no such record.")

// absent refuses for a record that is not there: it, or its owner with all records, which a process
// with the owner's key in its memory learns only here.
func (v *Vault) absent(ctx context.Context, tx *db.Tx, e *audit.Event, owner customer.ID) error {
	if err := v.keys.Erased(ctx, tx, owner); err != nil {
		return err
	}
	e.Deny(errAbsent)
	return nil
}

// deed is one operation on its way: its event, and the first reason to refuse it.
type deed struct {
	*Vault
	by actor.Actor
	audit.Event
	err *problem.Problem

	once *onceDeed // of a service's request that is answered once; nil for all others
}

func (v *Vault) begin(by actor.Actor, owner customer.ID, action string) *deed {
	d := &deed{Vault: v, by: by, Event: audit.Event{Action: action, Customer: owner}}
	if !owner.Valid() {
		d.Customer = ""
	}
	d.err = allowed(by, owner)
	return d
}

// refuse keeps the first reason to refuse; nil is none.
func (d *deed) refuse(p *problem.Problem) {
	if d.err == nil {
		d.err = p
	}
}

// do runs fn together with the event, or leaves only the event when the deed was refused before.
func (d *deed) do(ctx context.Context, fn func(tx *db.Tx, e *audit.Event) error) error {
	if d.err != nil {
		return d.count(d.trail.Deny(ctx, d.by, d.Event, d.err))
	}
	if d.once != nil {
		return d.count(d.once.do(ctx, d, fn))
	}
	return d.count(d.trail.Do(ctx, d.by, d.Event, fn))
}

// version names, behind the record, the version that was read, written or deleted. Nothing in the
// database proves which version of a record is the newest; the trail does.
func (d *deed) version(resource string, version int64) string {
	return resource + " v" + strconv.FormatInt(version, 10) + strings.TrimPrefix(d.Resource, resource)
}

func (d *deed) count(err error) error {
	outcome := "granted"
	if p := problem.Of(err); p != nil && p.Kind() < problem.Internal {
		outcome = "denied"
	} else if err != nil {
		outcome = "failed"
	}
	d.operations.WithLabelValues(d.Action, outcome).Inc()
	return err
}

// damaged reports a record that does not open: it was altered, moved or exchanged.
func (d *deed) damaged(ctx context.Context, ref Ref, err error) error {
	d.log.ErrorContext(ctx, "a record does not open", "customer", d.Customer, "record", ref.Collection+"/"+ref.Key,
		"request", d.by.Request, "error", err)
	p := problem.New(problem.Internal, "record-unreadable",
		"The record cannot be read. The operator has been told.").Because(err)
	return d.count(d.trail.Deny(ctx, d.by, d.Event, p))
}

// Put writes a record whole: body is a JSON object of its fields. A record that exists is replaced
// only when the condition names its version. The record comes back masked; created says whether it
// is new.
func (v *Vault) Put(ctx context.Context, by actor.Actor, owner customer.ID, ref Ref, body []byte, c Condition) (r Record, created bool, err error) {
	r, created, err = v.put(ctx, v.begin(by, owner, ActionUpdate), owner, ref, body, c)
	if v.outdated(ctx, err) {
		r, created, err = v.put(ctx, v.begin(by, owner, ActionUpdate), owner, ref, body, c)
	}
	return r, created, err
}

func (v *Vault) put(ctx context.Context, d *deed, owner customer.ID, ref Ref, body []byte, c Condition) (r Record, created bool, err error) {
	s, resource, p := v.find(ref)
	d.Resource = resource
	d.refuse(p)
	var cond condition
	var values []value
	if d.err == nil {
		cond, p = c.parse()
		d.refuse(p)
		if cond.absent {
			d.Action = ActionCreate
		}
	}
	if d.err == nil {
		values, p = s.decode(body)
		d.refuse(p)
	}
	// All that does not depend on the database is done before the transaction: on SQLite every writer
	// waits for it.
	var plain []byte
	var blinds []blind
	var index []byte
	generation := v.keys.Generation()
	if d.err == nil {
		plain = encode(values)
		defer clear(plain)
		blinds = v.blinds(s, values)
		index = digest(blinds)
	}
	now := v.clock.Now()
	var version int64
	result := func() written {
		return written{Record{
			Ref: ref, Version: version, SchemaVersion: s.Version, Fields: s.show(values, Reveal{}),
			UpdatedAt: clock.FromMicros(clock.Micros(now)),
		}, created}
	}
	d.remember(func() any { return result() })
	err = d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		ring, err := v.keys.Customer(ctx, tx, owner)
		if err != nil {
			return err
		}
		if len(blinds) > 0 {
			now, err := v.keys.CatchUp(ctx, tx)
			if err != nil {
				return err
			}
			if now != generation {
				blinds = v.blinds(s, values)
				index = digest(blinds)
			}
		}
		old, indexed, err := selectVersion(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		if err := s.current(ctx, tx); err != nil {
			return err
		}
		created = old == 0
		e.Action = ActionUpdate
		if created {
			e.Action = ActionCreate
		}
		d.Action = e.Action // what is counted
		if p := cond.check(old); p != nil {
			e.Deny(p)
			return nil
		}
		if created {
			// The key may come from the cache of a process that has not heard of an erasure by another.
			if err := v.keys.Erased(ctx, tx, owner); err != nil {
				return err
			}
			var count int
			if version, count, err = selectRoom(ctx, tx, owner, ref.Collection); err != nil {
				return err
			}
			if count >= s.Limit {
				e.Deny(problem.New(problem.Conflict, "too-many-records",
					"This collection holds at most %d records of one customer.", s.Limit))
				return nil
			}
		} else {
			if !cond.match {
				e.Deny(errUnconditional)
				return nil
			}
			version = old + 1
		}
		w := row{
			version: version, schemaVersion: s.Version, indexed: index, updatedAt: clock.Micros(now),
		}
		w.sealed = ring.Seal(place(owner, ref, w), plain)
		e.Resource = d.version(resource, version)
		if created {
			err = insertRecord(ctx, tx, owner, ref, w)
		} else {
			err = v.replace(ctx, tx, s, owner, ref, old, w)
		}
		if err != nil {
			return err
		}
		if !created {
			if bytes.Equal(indexed, index) {
				return nil
			}
			if err := deleteIndex(ctx, tx, owner, ref); err != nil {
				return err
			}
		}
		return insertIndex(ctx, tx, owner, ref, blinds)
	})
	if err != nil {
		return Record{}, false, err
	}
	out, err := recall(d, result)
	return out.Record, out.Created, err
}

// Get reads a record, whole where reveal says so and masked otherwise.
func (v *Vault) Get(ctx context.Context, by actor.Actor, owner customer.ID, ref Ref, reveal Reveal) (Record, error) {
	return v.get(ctx, v.begin(by, owner, ActionRead), owner, ref, 0, reveal)
}

// get reads a version of a record; 0 is the newest.
func (v *Vault) get(ctx context.Context, d *deed, owner customer.ID, ref Ref, version int64, reveal Reveal) (Record, error) {
	s, resource, p := v.find(ref)
	if version != 0 {
		resource += " v" + strconv.FormatInt(version, 10)
	}
	d.Resource = resource
	d.refuse(p)
	if d.err == nil && (reveal.All || len(reveal.Fields) > 0) {
		d.refuse(s.allows(reveal))
		d.tell(s, reveal)
	}
	var ring *seal.Ring
	var w row
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) (err error) {
		if ring, err = v.keys.Customer(ctx, tx, owner); err != nil {
			return err
		}
		var found bool
		if w, found, err = selectAt(ctx, tx, owner, ref, version); err == nil && !found {
			return v.absent(ctx, tx, e, owner)
		} else if err != nil {
			return err
		}
		if version == 0 {
			e.Resource = d.version(resource, w.version)
		}
		ring, err = v.keys.Holding(ctx, tx, owner, ring, w.sealed)
		return err
	})
	if err != nil {
		return Record{}, err
	}
	// The event is durable: only now is anything opened.
	values, err := open(ring, owner, ref, w)
	if err != nil {
		return Record{}, d.damaged(ctx, ref, err)
	}
	return s.record(ref, w, values, reveal), nil
}

// allows reports whether whole values may be read for the purpose.
func (s *schema) allows(r Reveal) *problem.Problem {
	switch {
	case r.Purpose == "":
		return problem.New(problem.Unprocessable, "purpose-required", "Say for which purpose whole values are read.")
	case !slices.Contains(s.Purposes, r.Purpose):
		return problem.New(problem.Unprocessable, "purpose-not-allowed",
			"This collection is not read for that purpose; it is for %s.", strings.Join(s.Purposes, ", "))
	}
	for _, name := range r.Fields {
		// What only older declarations know can be revealed by name, for the collection's purposes.
		f := s.fields[name]
		if f == nil && !s.gone[name] {
			return problem.New(problem.Unprocessable, "unknown-field", "A field to reveal is no field of this collection.")
		}
		if f != nil && f.Purposes != nil && !slices.Contains(f.Purposes, r.Purpose) {
			return problem.New(problem.Unprocessable, "purpose-not-allowed",
				"Field %s is not read for that purpose; it is for %s.", name, strings.Join(f.Purposes, ", "))
		}
	}
	if r.All {
		for _, f := range s.Fields {
			if f.Purposes != nil && !slices.Contains(f.Purposes, r.Purpose) {
				return problem.New(problem.Unprocessable, "purpose-not-allowed",
					"Field %s is not read for that purpose; name the fields to reveal.", f.Name)
			}
		}
	}
	return nil
}

// maxResource is how long the resource of an event may be before it is cut.
const maxResource = 256

// tell has the event name the purpose and the revealed fields, in the order of the declaration. More names than the
// resource has room for go into the event's sealed part, so that none is lost.
func (d *deed) tell(s *schema, r Reveal) {
	if d.err != nil {
		return
	}
	d.Reason = "purpose:" + r.Purpose
	if r.All {
		d.Resource += " reveal all"
		return
	}
	var names []string
	for _, f := range s.Fields {
		if slices.Contains(r.Fields, f.Name) {
			names = append(names, f.Name)
		}
	}
	for _, name := range r.Fields {
		if s.gone[name] && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	list := strings.Join(names, ",")
	if len(d.Resource)+len(" v9223372036854775807 reveal ")+len(list) > maxResource {
		d.Personal = map[string]string{"revealed": list}
		list = strconv.Itoa(len(names)) + " fields"
	}
	d.Resource += " reveal " + list
}

func (s *schema) record(ref Ref, w row, values []value, reveal Reveal) Record {
	return Record{
		Ref: ref, Version: w.version, SchemaVersion: w.schemaVersion, Fields: s.show(values, reveal),
		UpdatedAt: clock.FromMicros(w.updatedAt),
	}
}

// List reads the records of a collection, masked, in the order of their keys: those after the key
// `after`, at most limit. Next is the key to go on after, or empty. A page is one event, which names
// its first and last key.
func (v *Vault) List(ctx context.Context, by actor.Actor, owner customer.ID, collection, after string, limit int) (page []Record, next string, err error) {
	return v.list(ctx, v.begin(by, owner, ActionList), owner, collection, after, limit)
}

func (v *Vault) list(ctx context.Context, d *deed, owner customer.ID, collection, after string, limit int) (page []Record, next string, err error) {
	s := v.collections()[collection]
	d.Resource = "collection"
	if s == nil {
		d.refuse(problem.New(problem.NotFound, "collection-not-found", "There is no such collection."))
	} else {
		d.Resource += " " + s.Name
	}
	if limit < 1 || limit > MaxPage {
		d.refuse(problem.New(problem.Unprocessable, "invalid-limit", "limit must be between 1 and %d.", MaxPage))
	}
	if after != "" && !keyForm.MatchString(after) {
		d.refuse(problem.New(problem.Unprocessable, "invalid-key", "after must be the next of the page before."))
	}
	var ring *seal.Ring
	var rows []row
	err = d.do(ctx, func(tx *db.Tx, e *audit.Event) (err error) {
		next = ""
		if ring, err = v.keys.Customer(ctx, tx, owner); err != nil {
			return err
		}
		if rows, err = selectPage(ctx, tx, owner, collection, after, limit+1); err != nil {
			return err
		}
		if len(rows) == 0 {
			if err := v.keys.Erased(ctx, tx, owner); err != nil {
				return err
			}
		}
		if len(rows) > limit {
			rows = rows[:limit]
			next = rows[limit-1].key
		}
		for _, w := range rows {
			if ring, err = v.keys.Holding(ctx, tx, owner, ring, w.sealed); err != nil {
				return err
			}
		}
		e.Resource = d.Resource + " " + strconv.Itoa(len(rows)) + " records"
		if len(rows) > 0 {
			e.Resource += " " + rows[0].key + " to " + rows[len(rows)-1].key
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	page = make([]Record, len(rows))
	for i, w := range rows {
		ref := Ref{collection, w.key}
		values, err := open(ring, owner, ref, w)
		if err != nil {
			// A page that silently leaves out a record would be a lie.
			d.Resource += "/" + w.key
			return nil, "", d.damaged(ctx, ref, err)
		}
		page[i] = s.record(ref, w, values, Reveal{})
	}
	return page, next, nil
}

// Delete removes a record and its indexes.
func (v *Vault) Delete(ctx context.Context, by actor.Actor, owner customer.ID, ref Ref, c Condition) error {
	return v.delete(ctx, v.begin(by, owner, ActionDelete), owner, ref, c)
}

func (v *Vault) delete(ctx context.Context, d *deed, owner customer.ID, ref Ref, c Condition) error {
	_, resource, p := v.find(ref)
	d.Resource = resource
	d.refuse(p)
	cond, p := c.parse()
	d.refuse(p)
	return d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		// Of a customer whose keys are gone there is nothing left to delete, and the answer says so.
		if _, err := v.keys.Customer(ctx, tx, owner); err != nil {
			return err
		}
		version, _, err := selectVersion(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		if version == 0 {
			return v.absent(ctx, tx, e, owner)
		}
		if p := cond.check(version); p != nil {
			e.Deny(p)
			return nil
		}
		e.Resource = d.version(resource, version)
		return remove(ctx, tx, owner, ref, version)
	})
}

// Job returns the job that ends retention, hourly, on one replica at a time.
func (v *Vault) Job() jobs.Job {
	return jobs.Job{Name: "vault-expiry", Every: time.Hour, Run: v.Expire, Leased: true}
}

// Expire deletes the records whose collection keeps them no longer, each with its event, in batches
// until none is left or ctx ends. Retention counts from a record's last change.
func (v *Vault) Expire(ctx context.Context) error {
	by := actor.OfSystem("job:vault-expiry")
	for _, s := range v.collections() {
		if s.Retention == 0 {
			continue
		}
		before := clock.Micros(v.clock.Now().Add(-s.Retention))
		for more := true; more; {
			if err := ctx.Err(); err != nil {
				return err
			}
			var gone int
			err := v.db.Update(ctx, func(tx *db.Tx) error {
				old, err := selectOld(ctx, tx, s.Name, before, expireBatch)
				if err != nil {
					return err
				}
				for _, o := range old {
					ref := Ref{s.Name, o.key}
					if err := remove(ctx, tx, o.customer, ref, o.version); err != nil {
						return err
					}
					if err := v.trail.Record(ctx, tx, by, audit.Event{
						Action: ActionExpire, Resource: "record " + s.Name + "/" + o.key + " v" + strconv.FormatInt(o.version, 10), Customer: o.customer,
						Outcome: audit.Granted, Reason: "retention-over",
					}); err != nil {
						return err
					}
				}
				gone = len(old)
				return nil
			})
			if err != nil {
				return fmt.Errorf("expire %s: %w", s.Name, err)
			}
			v.operations.WithLabelValues(ActionExpire, "granted").Add(float64(gone))
			more = gone == expireBatch
		}
		if err := v.expireBlobs(ctx, by, s, before); err != nil {
			return err
		}
	}
	return v.trim(ctx)
}

var errBuilding = problem.New(problem.Unavailable, "index-building",
	"The index of this field is being built. Ask again later.").RetryAfter(time.Minute)

// Lookup returns the records, of any customer, whose indexed field has exactly this value, at most
// 16. It works within the caller's transaction, so that the caller's event covers it. The index only
// points: a record counts when it opens and really holds the value, so that a row planted in the
// index leads nowhere. Records of erased customers are not found.
func (v *Vault) Lookup(ctx context.Context, tx *db.Tx, collection, name, text string) ([]Match, error) {
	s := v.collections()[collection]
	if s == nil || s.fields[name] == nil || !s.fields[name].Index {
		return nil, fmt.Errorf("vault: there is no index on %s.%s; declare the field with index: true", collection, name)
	}
	if s.building[name] {
		return nil, errBuilding
	}
	f := s.fields[name]
	canonical, ok := f.canonical(text)
	if !ok {
		return nil, nil // no record can hold it
	}
	if _, err := v.keys.CatchUp(ctx, tx); err != nil {
		return nil, err
	}
	found, err := selectIndex(ctx, tx, collection, name, v.keys.BlindIndexes(f.blind, []byte(canonical)))
	if err != nil {
		return nil, err
	}
	held := found[:0]
	for _, m := range found {
		ok, err := v.holds(ctx, tx, m, Ref{collection, m.Key}, name, canonical)
		if err != nil {
			return nil, err
		}
		if ok {
			held = append(held, m)
		}
	}
	return held, nil
}

func (v *Vault) holds(ctx context.Context, tx *db.Tx, m Match, ref Ref, name, canonical string) (bool, error) {
	ring, err := v.keys.Customer(ctx, tx, m.Customer)
	if p := problem.Of(err); p != nil && (p.Kind() == problem.Gone || p.Kind() == problem.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	w, ok, err := selectRecord(ctx, tx, m.Customer, ref)
	if err != nil || !ok {
		return false, err
	}
	if ring, err = v.keys.Holding(ctx, tx, m.Customer, ring, w.sealed); err != nil {
		return false, err
	}
	values, err := open(ring, m.Customer, ref, w)
	if err == nil {
		i := slices.IndexFunc(values, func(x value) bool { return x.name == name })
		if i >= 0 && subtle.ConstantTimeCompare([]byte(values[i].text), []byte(canonical)) == 1 {
			return true, nil
		}
		err = errors.New("the record does not hold the indexed value")
	}
	v.log.ErrorContext(ctx, "an index row leads to a wrong record", "customer", m.Customer,
		"record", ref.Collection+"/"+ref.Key, "error", err)
	return false, nil
}

// canonical returns the form of text in which the field's index was made.
func (f *field) canonical(text string) (string, bool) {
	if f.Type == Integer {
		n, err := strconv.ParseInt(text, 10, 64)
		return strconv.FormatInt(n, 10), err == nil
	}
	text, message := f.normalise(text)
	return text, message == ""
}

// blind is one row of the index of a record.
type blind struct {
	field string
	sole  bool
	keyring.Blind
}

// blinds returns the index of values under each version of the blind-index key under which rows are
// written at the moment.
func (v *Vault) blinds(s *schema, values []value) []blind {
	var out []blind
	for _, x := range values {
		if f := s.fields[x.name]; f.Index {
			for _, b := range v.keys.IndexesToWrite(f.blind, []byte(x.text)) {
				out = append(out, blind{x.name, f.Unique, b})
			}
		}
	}
	return out
}

// digest stands for all rows that a record has in the index: equal digests, equal rows. It says no
// more than those rows do.
func digest(blinds []blind) []byte {
	h := sha256.New()
	for _, b := range blinds {
		fmt.Fprintf(h, "%s %t %d %x\n", b.field, b.sole, b.Version, b.Value)
	}
	return h.Sum(nil)
}

// place binds a sealed record to where it lives, to its version and the time of its last change, and to
// the declaration that it was written under. Neither collection nor key holds a slash, a number sign or
// an at sign, so no two places are alike.
func place(owner customer.ID, ref Ref, w row) seal.Place {
	return seal.Place{
		Room: room, Table: "record", Customer: string(owner), Version: w.version,
		Record: ref.Collection + "/" + ref.Key + "#" + strconv.Itoa(w.schemaVersion) + "@" + strconv.FormatInt(w.updatedAt, 10),
	}
}

func open(ring *seal.Ring, owner customer.ID, ref Ref, w row) ([]value, error) {
	plain, err := ring.Open(place(owner, ref, w), w.sealed)
	if err != nil {
		return nil, err
	}
	values, ok := parse(plain)
	if !ok {
		return nil, errors.New("the record holds something else than its fields")
	}
	return values, nil
}
