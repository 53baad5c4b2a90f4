package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// JobReseal is the name of the job that renews customers' data keys and seals their values anew: wake it
// after RotateCustomers and CompromiseCustomer.
const JobReseal = "keyring-reseal"

const (
	// resealBatch is how many values one transaction replaces: few, because everybody who reads or
	// writes waits for it on the embedded database.
	resealBatch = 50
	// customerSettle is how much longer than a lease it is waited, before nothing is taken to be sealed
	// with an old version any more: a transaction may have the ring and not be committed yet.
	customerSettle = 90 * time.Second
	// againAfter is when values that do not open are tried again.
	againAfter = time.Hour
	// scheduleEvery is how often it is looked for customers whose keys have come of age.
	scheduleEvery = time.Hour
)

// Resealer is a room that keeps values sealed under customers' data keys.
type Resealer interface {
	// Stale calls found for up to limit values of c that do not begin with header, in no order that
	// matters: with the place that the value is sealed for, the value, and swap, which puts another in
	// its stead, if it still stands there as it was found, and returns how many rows that changed.
	// Nothing else about the row changes, and nobody who looks at it sees a difference.
	Stale(ctx context.Context, tx *db.Tx, c customer.ID, header []byte, limit int,
		found func(p seal.Place, sealed []byte, swap func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error))) error
}

// Immutable is a room whose values are never sealed anew. The audit trail is behind it.
type Immutable interface {
	// NeedsKey reports whether a value of c is sealed under the version of their key.
	NeedsKey(ctx context.Context, tx *db.Tx, c customer.ID, version uint32) (bool, error)
}

// Connect tells the keyring of the rooms that keep values of customers. Call it before any job runs.
func (k *Keyring) Connect(trail Immutable, rooms ...Resealer) {
	k.resealer.trail, k.resealer.rooms = trail, rooms
}

// resealer is what sealing anew knows from one batch to the next.
type resealer struct {
	rooms    []Resealer
	trail    Immutable
	findings Findings
	settle   time.Duration

	mu       sync.Mutex
	failed   map[customer.ID]map[string]bool // values that do not open, of the pass that goes on
	broken   int64                           // of all passes since the rotation began
	told     int64                           // 1 more than the versions that the finding is about; 0 when nobody was told yet
	schedule time.Time
}

func (r *resealer) unopened() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.broken
	r.broken = 0
	return n
}

// staleValue is a value on its way to be sealed anew.
type staleValue struct {
	place  seal.Place
	sealed []byte
	swap   func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error)
}

// staleOf is what waits of a customer.
type staleOf struct {
	customer customer.ID
	ring     *seal.Ring
	values   []staleValue
	all      bool // there are no more
}

// stale returns up to limit values of c that another version than the active one sealed, but for those
// that are known not to open.
func (k *Keyring) stale(ctx context.Context, tx *db.Tx, c customer.ID, limit int, skip map[string]bool) (s staleOf, err error) {
	s.customer = c
	if s.ring, err = k.readCustomer(ctx, tx, c); err != nil {
		return s, err
	}
	header := seal.Header(s.ring.Version())
	for _, room := range k.resealer.rooms {
		// More than wanted by as many as may have to be skipped.
		err := room.Stale(ctx, tx, c, header, limit-len(s.values)+len(skip),
			func(p seal.Place, sealed []byte, swap func(context.Context, *db.Tx, []byte) (int64, error)) {
				if !skip[string(sealed)] && len(s.values) < limit {
					s.values = append(s.values, staleValue{p, sealed, swap})
				}
			})
		if err != nil {
			return s, err
		}
		if len(s.values) == limit {
			return s, nil
		}
	}
	s.all = true
	return s, nil
}

// Resealed is what a step of sealing anew did.
type Resealed struct {
	Customers int  // that were looked at; 0: nothing waits
	Values    int  // that were sealed anew
	Failed    int  // that do not open, and are left as they are
	Urgent    bool // they were of compromised versions
}

// Reseal seals up to limit values anew that wait for it: of customers with a compromised version first,
// and of no others when urgent says so. Any number of processes may do it at once, and it may end at any
// moment: a value is replaced only where it still stands as it was read, and what waits is written down
// with the keys.
func (k *Keyring) Reseal(ctx context.Context, limit int, urgent bool) (r Resealed, err error) {
	if len(k.resealer.rooms) == 0 {
		return r, nil
	}
	now := clock.Micros(k.clock.Now())
	var work []staleOf
	err = k.db.View(ctx, func(tx *db.Tx) error {
		work, r = nil, Resealed{Urgent: true}
		next, err := selectWaiting(ctx, tx, true, now, limit)
		if err == nil && len(next) == 0 && !urgent {
			r.Urgent = false
			next, err = selectWaiting(ctx, tx, false, now, limit)
		}
		if err != nil {
			return err
		}
		seen, left := make(map[customer.ID]bool), limit
		for _, c := range next {
			if seen[c] {
				continue
			}
			seen[c] = true
			one, err := k.stale(ctx, tx, c, left, k.resealer.skipped(c))
			if p := problem.Of(err); errors.Is(err, ErrUnwrap) || errors.Is(err, ErrDamaged) || p != nil && p.Kind() != problem.Unavailable {
				k.log.LogAttrs(ctx, slog.LevelError, "a customer's data key does not open; their values are not sealed anew",
					slog.String("customer", string(c)), slog.Any("error", err))
				one = staleOf{customer: c}
			} else if err != nil {
				return err
			}
			work = append(work, one)
			if left -= len(one.values); left <= 0 {
				break
			}
		}
		return nil
	})
	if err != nil || len(work) == 0 {
		return Resealed{Urgent: r.Urgent}, err
	}
	values, failed, err := k.replace(ctx, work)
	r.Customers, r.Values, r.Failed = len(work), values, failed
	return r, err
}

// ResealCustomer seals anew all values of c that other versions than the active one sealed, in small
// transactions, and returns how many there were and how many do not open.
func (k *Keyring) ResealCustomer(ctx context.Context, c customer.ID) (done, failed int, err error) {
	for {
		var one staleOf
		err := k.db.View(ctx, func(tx *db.Tx) (err error) {
			one, err = k.stale(ctx, tx, c, resealBatch, k.resealer.skipped(c))
			return err
		})
		if err != nil {
			return done, failed, err
		}
		d, f, err := k.replace(ctx, []staleOf{one})
		done, failed = done+d, failed+f
		if err != nil || one.all {
			return done, failed, err
		}
	}
}

func (r *resealer) skipped(c customer.ID) map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	skip := make(map[string]bool, len(r.failed[c]))
	for sealed := range r.failed[c] {
		skip[sealed] = true
	}
	return skip
}

// fail has a value skipped until the pass over its customer is over.
func (r *resealer) fail(c customer.ID, sealed []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == nil {
		r.failed = make(map[customer.ID]map[string]bool)
	}
	if r.failed[c] == nil {
		r.failed[c] = make(map[string]bool)
	}
	r.failed[c][string(sealed)] = true
	r.broken++
}

// pass ends the pass over a customer, and reports whether something of them did not open.
func (r *resealer) pass(c customer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed := len(r.failed[c]) > 0
	delete(r.failed, c)
	return failed
}

// replace seals the values anew, before the transaction, and puts them in place.
func (k *Keyring) replace(ctx context.Context, work []staleOf) (done, failed int, err error) {
	fresh := make([][][]byte, len(work))
	for i, w := range work {
		fresh[i] = make([][]byte, len(w.values))
		for j, v := range w.values {
			plain, err := w.ring.Open(v.place, v.sealed)
			if err != nil {
				failed++
				k.resealer.fail(w.customer, v.sealed)
				k.log.LogAttrs(ctx, slog.LevelError, "a value does not open and is not sealed anew", slog.String("customer", string(w.customer)),
					slog.String("table", v.place.Room+"."+v.place.Table), slog.String("record", v.place.Record), slog.Any("error", err))
				continue
			}
			fresh[i][j] = w.ring.Seal(v.place, plain)
			clear(plain)
		}
	}
	broken := make([]bool, len(work)) // something of the customer does not open
	for i, w := range work {
		broken[i] = w.ring == nil || w.all && k.resealer.pass(w.customer)
	}
	now := k.clock.Now()
	err = k.db.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
		done = 0
		for i, w := range work {
			missed := false
			for j, v := range w.values {
				if fresh[i][j] == nil {
					continue
				}
				n, err := v.swap(ctx, tx, fresh[i][j])
				if err != nil {
					return err
				}
				// Somebody was faster: with a value under the newest version, or by moving this one to a
				// place that was looked at before.
				missed = missed || n == 0
				done += int(n)
			}
			switch {
			case w.ring == nil:
				if err := deferDataKeys(ctx, tx, w.customer, 1<<31, clock.Micros(now.Add(againAfter))); err != nil {
					return err
				}
			case !w.all || missed:
			case broken[i]:
				if err := deferDataKeys(ctx, tx, w.customer, w.ring.Version(), clock.Micros(now.Add(againAfter))); err != nil {
					return err
				}
			default:
				settle := k.resealer.settle
				if _, err := settleDataKeys(ctx, tx, w.customer, w.ring.Version(), clock.Micros(now.Add(-settle)), settle.Microseconds()); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		k.metrics.resealed.Add(float64(done))
	}
	return done, failed, err
}

var byReseal = actor.OfSystem("job:" + JobReseal)

// reseal is the job: whatever waits is sealed anew; when nothing waits, the rotation of all customers'
// keys takes its next step. Compromised versions know neither pause nor rate.
func (k *Keyring) reseal(ctx context.Context) error {
	lease, ok := jobs.LeaseOf(ctx)
	if !ok {
		return errors.New("keyring: sealing anew needs a lease")
	}
	if err := k.scheduleCustomers(ctx); err != nil {
		return err
	}
	batch := min(max(k.rate/20, 1), resealBatch)
	var worked time.Duration // since it was last written down
	for {
		began := time.Now()
		var row rotationRow
		err := k.db.View(ctx, func(tx *db.Tx) (err error) {
			row, err = selectRotation(ctx, tx, customerName)
			return err
		})
		if err != nil {
			return err
		}
		did, err := k.Reseal(ctx, batch, row.open() && row.Paused)
		if err != nil {
			return err
		}
		n := max(did.Values, did.Customers)
		if n == 0 && row.open() && !row.Paused {
			n, err = k.renewCustomers(ctx, lease, row, batch, worked+time.Since(began))
			worked, began = 0, time.Now()
			if errors.Is(err, errStopped) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		if n == 0 {
			k.tell(ctx)
			return nil
		}
		if !did.Urgent || did.Customers == 0 {
			if err := k.wait(ctx, max(0, time.Duration(float64(n)/float64(k.rate)*float64(time.Second))-time.Since(began))); err != nil {
				return err
			}
		}
		worked += time.Since(began)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// scheduleCustomers begins a rotation when a customer's key has come of age.
func (k *Keyring) scheduleCustomers(ctx context.Context) error {
	now := k.clock.Now()
	k.resealer.mu.Lock()
	due := k.customerEvery > 0 && !now.Before(k.resealer.schedule)
	if due {
		k.resealer.schedule = now.Add(scheduleEvery)
	}
	k.resealer.mu.Unlock()
	if !due {
		return nil
	}
	var oldest int64
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		oldest, err = oldestDataKey(ctx, tx)
		return err
	})
	if err != nil || oldest == 0 || clock.FromMicros(oldest).Add(k.customerEvery).After(now) {
		return err
	}
	_, err = k.startCustomers(ctx, byReseal, reasonScheduled)
	if problem.Is(err, errRotating.Slug()) {
		return nil
	}
	return err
}

// tell raises the finding while compromised versions seal values, and clears it when none does.
func (k *Keyring) tell(ctx context.Context) {
	var n int64
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		n, err = countExposed(ctx, tx)
		return err
	})
	if err != nil {
		k.log.WarnContext(ctx, "it is not known whether compromised keys seal values", "error", err)
		return
	}
	k.metrics.known.Set(float64(n))
	r := &k.resealer
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.findings == nil || r.told == n+1 {
		return
	}
	if n > 0 {
		err = r.findings.Raise(ctx, FindingCompromised, customerName,
			fmt.Sprintf("%d versions of customers' data keys are marked compromised and may seal values that wait to be sealed anew.", n))
	} else {
		err = r.findings.Clear(ctx, FindingCompromised, customerName)
	}
	if err != nil {
		k.log.WarnContext(ctx, "a finding could not be changed", "finding", FindingCompromised, "error", err)
		return
	}
	r.told = n + 1
}
