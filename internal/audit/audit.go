// Package audit keeps the trail: who did what, on which device, from where, to whose data, and how it
// ended, refusals and readings included.
//
// The promise: an event is committed in the transaction of its deed, so there is no deed without a
// trace and no trace of a deed that did not happen; and nobody changes the trail afterwards without
// being noticed, not even the database's administrator. Within about half a second a sequencer gives
// each event its place in a Merkle tree (RFC 6962, by golang.org/x/mod/sumdb/tlog, with tiles as
// C2SP tlog-tiles wants them) and signs the tree's root as a checkpoint (C2SP tlog-checkpoint).
// Verify recomputes all of that from the rows and names every event that was altered, dropped,
// inserted or reordered.
//
// What is personal in an event, the caller's address first of all, is sealed under the data key of
// the customer that the event is about; the tree holds a salted commitment to it only. When the key is
// destroyed the personal part reads "[erased]", and the trail verifies as before.
//
// Terms: an event is a row; its leaf is the text that is hashed into the tree (see appendLeaf); the
// log is the sequence of leaves; an event without a place in the log yet is pending.
package audit

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// The actions that audit itself records.
const (
	ActionVerify = "audit.trail.verify"
	ActionRead   = "audit.trail.read"
)

// Outcome says how a deed ended.
type Outcome string

// The outcomes.
const (
	Granted Outcome = "granted" // it was done
	Denied  Outcome = "denied"  // it was refused: the caller may not, or asked for what cannot be
	Failed  Outcome = "failed"  // it should have been done, but was not
)

// Event is what a room says of a deed; who, from where and when are added by Record. Action and
// Outcome are needed. Longer texts than 256 bytes are cut, and control characters replaced.
type Event struct {
	ID          string            // as NewID returns it, for a deed that has to name its event; empty: Record makes one
	Action      string            // "vault.record.read": room, thing, verb
	Resource    string            // what it was done to, never personal: "record profile/main"
	Customer    customer.ID       // whose data or account it was; empty if nobody's
	Outcome     Outcome           // Do sets it
	Reason      string            // a stable slug such as "wrong-code", never free text; may be empty
	Transaction string            // the caller's business transaction; may be empty
	Personal    map[string]string // what is personal or free text; sealed. "address", "country", "network" and "key" are Record's own

	denial *problem.Problem
}

// Deny has Do commit the transaction, for what it counts and remembers, and yet refuse: the event
// says denied (or failed, for a problem that is our fault) for the problem's slug, and Do returns p.
func (e *Event) Deny(p *problem.Problem) { e.denial = p }

// NewID returns the id of an event to come.
func NewID() string { return newID(clock.System.Now().UnixMicro()) }

// Denied reports whether Deny was called.
func (e *Event) Denied() bool { return e.denial != nil }

// The names of the personal entries that Record adds: the caller's address, and, of a caller without
// a device of their own, the thumbprint of the key that proved the request.
const (
	nameAddress = "address"
	nameKey     = "key"
	nameCountry = "country"      // where the address was when the event happened; see Locator
	nameNetwork = "network"      // and in whose network
	nameBehalf  = "on_behalf_of" // for whom a service reports the event; see package events
)

// Keys gives the keys that events are sealed, authenticated and signed with. The keyring is behind
// it. It is asked each time, because keys rotate.
type Keys interface {
	// Customer returns the data key of c. It fails with the problem "customer-erased" when the key was
	// destroyed and with "customer-not-found" when there never was one.
	Customer(ctx context.Context, tx *db.Tx, c customer.ID) (*seal.Ring, error)
	// Holding returns ring, the key of c, or a newer one when ring does not open one of the values.
	Holding(ctx context.Context, tx *db.Tx, c customer.ID, ring *seal.Ring, values ...[]byte) (*seal.Ring, error)
	// Service returns the sealing key called "event".
	Service(name string) *seal.Ring
	// MAC returns a MAC of the parts under the newest version of the key called "event-mac".
	MAC(name string, parts ...[]byte) (mac []byte, version uint32)
	// MACVersion is MAC under another version; it fails with seal.ErrKeyVersion if there is none.
	MACVersion(name string, version uint32, parts ...[]byte) ([]byte, error)
	// CheckpointSigner returns the newest signing key; its name is the log's origin.
	CheckpointSigner() note.Signer
	// CheckpointVerifiers returns the verifiers of all versions.
	CheckpointVerifiers() note.Verifiers
}

// The names of the service keys.
const (
	sealingKey = "event"
	macKey     = "event-mac"
)

// Options say what a Trail works with. All may be left out.
type Options struct {
	// Holder names this process in the log's head, for whoever asks which one signed last.
	Holder string
	// Wake is called after a commit with an event when the sequencer's job should run soon. It must
	// not wait.
	Wake func()
	// Remember keeps the newest checkpoint outside of the database.
	Remember Memory
	// Locator says where addresses are; nil means that it is not known.
	Locator Locator
	// Findings is told when clocks are further apart than ClockLimit, which by default is DefaultClockLimit.
	Findings   Findings
	ClockLimit time.Duration
	// Verified keeps how far the log was verified, for VerifyNew; nil means not at all.
	Verified Memory

	Clock   clock.Clock           // nil means clock.System
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil keeps none
}

// Trail records, sequences and verifies events. It is safe for concurrent use.
type Trail struct {
	db       *db.DB
	keys     Keys
	clock    clock.Clock
	log      *slog.Logger
	holder   string
	remember Memory
	locator  Locator
	verified Memory
	metrics  *metrics

	findings   Findings
	clockLimit time.Duration
	skewed     atomic.Bool // it was logged that clocks are apart

	last      atomic.Int64 // the time of the last event, Unix microseconds
	awake     atomic.Bool  // the sequencer was woken and has not begun yet
	fresh     atomic.Int64 // events committed here since the sequencer began last
	crowded   chan struct{}
	wake      func()
	committed map[Outcome]func()

	born time.Time // by clock

	sequencer sequencer
	archive   atomic.Pointer[Archive] // nil without one
	anchor    anchor                  // of CheckClock
}

// New returns the trail in d. It does not touch the database.
func New(d *db.DB, keys Keys, o Options) *Trail {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &Trail{
		db: d, keys: keys, clock: o.Clock, log: o.Log, holder: o.Holder, remember: o.Remember, locator: o.Locator,
		findings: o.Findings, clockLimit: cmp.Or(o.ClockLimit, DefaultClockLimit),
		verified: o.Verified,
		metrics:  newMetrics(o.Metrics), wake: o.Wake, committed: make(map[Outcome]func()),
		born: o.Clock.Now(), crowded: make(chan struct{}, 1),
	}
	t.anchor.reading, _ = t.readClocks() // without it, the check says so
	for _, outcome := range []Outcome{Granted, Denied, Failed} {
		counter := t.metrics.events.WithLabelValues(string(outcome))
		t.committed[outcome] = func() {
			counter.Inc()
			if t.fresh.Add(1) == crowd {
				select {
				case t.crowded <- struct{}{}:
				default:
				}
			}
			if t.wake != nil && t.awake.CompareAndSwap(false, true) {
				t.wake()
			}
		}
	}
	return t
}

// now returns the time of an event in Unix microseconds. Within a process no two events have the
// same, and a later one has a later time, unless the clock is set back by more than a second.
func (t *Trail) now() int64 {
	for {
		now, last := clock.Micros(t.clock.Now()), t.last.Load()
		if now <= last && last-now < int64(time.Second/time.Microsecond) {
			now = last + 1
		}
		if t.last.CompareAndSwap(last, now) {
			return now
		}
	}
}

var encoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// newID returns the id of an event made at the time given: as package id makes them, but with the
// microseconds after the milliseconds, so that the events of a process are in order within one too.
func newID(us int64) string {
	var raw [16]byte
	rand.Read(raw[7:])
	// 48 bits of milliseconds, 10 of microseconds, 70 of chance.
	head := uint64(us/1000)<<16 | uint64(us%1000)<<6 | uint64(raw[7])&0x3f
	binary.BigEndian.PutUint64(raw[:], head)
	return string(encoding.AppendEncode(append(make([]byte, 0, 30), "evt_"...), raw[:]))
}

// scratch holds the buffers that one event needs.
type scratch struct{ leaf, plain, sealed []byte }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// Record inserts the event into tx, the transaction of the deed itself. When it fails, so must the
// deed: return its error from the function that was given tx.
//
// What is personal is sealed under the key of e.Customer; without one, or when that customer is not
// known or erased, under the trail's own key. Of a caller who was erased meanwhile nothing personal is
// kept.
func (t *Trail) Record(ctx context.Context, tx *db.Tx, by actor.Actor, e Event) error {
	committed := t.committed[e.Outcome]
	if e.Action == "" || committed == nil {
		return errors.New("audit: an event needs an action and an outcome")
	}
	if by.Kind == "" {
		by.Kind = actor.Anonymous
	}
	now := t.now()
	r := row{
		id: cmp.Or(e.ID, newID(now)), version: leafVersion, madeAt: now,
		actorKind: clean(string(by.Kind), maxField), actorID: clean(by.ID, maxField),
		device: clean(by.Device, maxField), session: clean(by.Session, maxField),
		action: clean(e.Action, maxField), resource: clean(e.Resource, maxField),
		customer: clean(string(e.Customer), maxField), outcome: string(e.Outcome), reason: clean(e.Reason, maxField),
		transaction: clean(e.Transaction, maxField), request: clean(by.Request, maxField),
	}
	s := scratches.Get().(*scratch)
	defer func() {
		clear(s.plain)
		scratches.Put(s)
	}()
	var address, key string
	if by.Address.IsValid() {
		address = by.Address.String()
	}
	if by.Device == "" {
		key = by.Key
	}
	if len(e.Personal) > 0 || address != "" || key != "" {
		ring, under, err := t.sealer(ctx, tx, by, customer.ID(r.customer))
		if err != nil {
			return err
		}
		if ring != nil {
			var country, network string
			if t.locator != nil && address != "" {
				country, network = t.locator.Locate(by.Address)
			}
			s.plain = appendPersonal(s.plain[:0], e.Personal, address, country, key, network)
			if len(s.plain) > maxSealed-1024 {
				return errors.New("audit: an event has too large a personal part")
			}
			s.sealed = ring.AppendSeal(s.sealed[:0], sealPlace(r.id, r.customer), s.plain)
			r.sealedUnder, r.commitment, r.sealed = under, commit(s.plain), s.sealed
		}
	}
	s.leaf = r.appendLeaf(s.leaf[:0])
	mac, version := t.keys.MAC(macKey, s.leaf)
	r.mac, r.macVersion = mac, int64(version)
	if err := insertEvent(ctx, tx, &r); err != nil {
		return err
	}
	tx.AfterCommit(committed)
	return nil
}

// sealer returns the key for the personal part of an event about c; nil when it must not be kept.
func (t *Trail) sealer(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID) (*seal.Ring, string, error) {
	if c == "" {
		return t.keys.Service(sealingKey), underService, nil
	}
	ring, err := t.keys.Customer(ctx, tx, c)
	switch {
	case err == nil:
		return ring, underCustomer, nil
	case problem.Is(err, "customer-erased") && by.Customer() == c:
		return nil, underNothing, nil // a request that was on its way; the address is the erased person's
	case problem.Is(err, "customer-erased"), problem.Is(err, "customer-not-found"):
		return t.keys.Service(sealingKey), underService, nil
	}
	return nil, "", err
}

// Do runs fn and records its event in one transaction: both are committed or neither is. fn may
// complete the event; like the function given to db.Update it may run more than once, and each run
// begins with e as Do was given it.
//
// When fn returns nil the outcome is Granted, unless fn called e.Deny. When fn returns an error or
// panics, what it did is rolled back, and an event of its own says so: Denied for a problem that is
// the caller's (status 4xx), otherwise Failed, with the problem's slug as its reason. Do returns the
// error, or panics again. When that event cannot be recorded, Do returns the problem
// "audit-unavailable" instead: nobody gets an answer that left no trace.
//
// When fn was never begun (ctx ended in the queue, the database refused to begin), nothing was decided
// and there is no event.
func (t *Trail) Do(ctx context.Context, by actor.Actor, e Event, fn func(tx *db.Tx, e *Event) error) error {
	var run Event
	began, returned := false, false
	defer func() {
		if returned {
			return
		}
		p := recover() // nil when fn ended the goroutine
		if began {
			run.Outcome, run.Reason = Failed, "panic"
			if err := t.alone(ctx, by, run); err != nil {
				t.log.LogAttrs(ctx, slog.LevelError, "a panic could not be recorded in the trail",
					slog.String("action", run.Action), slog.String("request", by.Request), slog.Any("error", err))
			}
		}
		if p != nil {
			t.log.LogAttrs(ctx, slog.LevelError, "a deed panicked", slog.String("action", run.Action),
				slog.String("request", by.Request), slog.String("stack", string(debug.Stack())))
			panic(p)
		}
	}()
	err := t.db.Update(ctx, func(tx *db.Tx) error {
		run = e
		run.Personal = maps.Clone(e.Personal)
		run.denial = nil
		began = true
		if err := fn(tx, &run); err != nil {
			return err
		}
		run.Outcome = Granted
		if run.denial != nil {
			run.Outcome, run.Reason = classify(run.denial)
		}
		return t.Record(ctx, tx, by, run)
	})
	returned = true
	switch {
	case err == nil && run.denial != nil:
		return run.denial
	case err == nil || !began:
		return err
	}
	run.Outcome, run.Reason = classify(err)
	if failed := t.alone(ctx, by, run); failed != nil {
		return unrecorded(failed, err)
	}
	return err
}

// Deny records by itself that p was the answer, and returns p; or, when that cannot be recorded, the
// problem "audit-unavailable".
func (t *Trail) Deny(ctx context.Context, by actor.Actor, e Event, p *problem.Problem) error {
	e.Outcome, e.Reason = classify(p)
	if err := t.alone(ctx, by, e); err != nil {
		return unrecorded(err, p)
	}
	return p
}

// maxAlone is how long the record of a refusal may take.
const maxAlone = 15 * time.Second

// alone records an event in a transaction of its own. A caller who hangs up does not get rid of it.
func (t *Trail) alone(ctx context.Context, by actor.Actor, e Event) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxAlone)
	defer cancel()
	e.ID = "" // whatever named the event of the deed has been rolled back
	return t.db.Update(ctx, func(tx *db.Tx) error { return t.Record(ctx, tx, by, e) })
}

// classify returns what an event says of a deed that ended with err.
func classify(err error) (Outcome, string) {
	p := problem.Of(err)
	switch {
	case errors.Is(err, db.ErrOutcomeUnknown):
		return Failed, "outcome-unknown"
	case p != nil && p.Kind() < problem.Internal:
		return Denied, p.Slug()
	case p != nil:
		return Failed, p.Slug()
	case errors.Is(err, context.Canceled):
		return Failed, "cancelled"
	}
	return Failed, "internal-error"
}

func unrecorded(failed, original error) error {
	return problem.New(problem.Unavailable, "audit-unavailable",
		"The request could not be recorded, so it was not answered. Please try again.").
		RetryAfter(time.Second).Because(errors.Join(failed, original))
}

// metrics are the trail's numbers.
type metrics struct {
	events      *prometheus.CounterVec
	pending     prometheus.Gauge
	quarantined prometheus.Gauge
	lag         prometheus.Gauge
	size        prometheus.Gauge
	batch       prometheus.Histogram
	latency     prometheus.Histogram
	findings    prometheus.Gauge
	skew        prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	return &metrics{
		events: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strongroom_audit_events_total", Help: "Events committed to the trail, by outcome.",
		}, []string{"outcome"})),
		pending: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_audit_pending", Help: "Events that waited for their place in the log at this replica's last look.",
		})),
		quarantined: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_audit_quarantined", Help: "Events in the queue that Strongroom did not write, or that are damaged. Run audit verify.",
		})),
		lag: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_audit_lag_seconds", Help: "Age of the oldest event that waited at this replica's last look.",
		})),
		size: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_audit_tree_size", Help: "Events in the log.",
		})),
		batch: register(r, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "strongroom_audit_batch_events", Help: "Events per checkpoint.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 6),
		})),
		latency: register(r, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "strongroom_audit_checkpoint_seconds", Help: "Time from an event to the signed checkpoint that covers it, of the oldest in each batch.",
			Buckets: []float64{.01, .05, .1, .25, .5, .75, 1, 2.5, 10, 60},
		})),
		skew: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_audit_clock_skew_seconds", Help: "How far the clocks of servers and database are apart at most.",
		})),
		findings: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_audit_findings", Help: "Findings of the last verification by this process.",
		})),
	}
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	err := r.Register(c)
	var was prometheus.AlreadyRegisteredError
	if errors.As(err, &was) {
		if same, ok := was.ExistingCollector.(C); ok {
			return same
		}
	}
	return c
}
