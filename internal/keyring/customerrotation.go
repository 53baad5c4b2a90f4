package keyring

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// The actions on versions of a customer's data key. A new version leaves ActionCustomerCreate.
const (
	ActionCustomerCompromise = "keyring.customer-key.compromise"
	ActionCustomersRotate    = "keyring.customer-keys.rotate"
)

// AllCustomers is what Rotate takes for the data keys of all customers.
const AllCustomers = "customers"

// Holding returns ring, the key of c, or when it lacks the version that one of the values names, the
// ring as tx sees it. Whoever opens a value asks it in the transaction that read the value: another
// process may have sealed it under a version that is newer than the ring in this one's cache.
func (k *Keyring) Holding(ctx context.Context, tx *db.Tx, c customer.ID, ring *seal.Ring, values ...[]byte) (*seal.Ring, error) {
	for _, sealed := range values {
		if version, err := seal.KeyVersion(sealed); err == nil && !ring.Holds(version) {
			return k.readCustomer(ctx, tx, c)
		}
	}
	return ring, nil
}

// CustomerVersion describes a version of a customer's data key.
type CustomerVersion struct {
	Version uint32
	State   string // active, retired, compromised or destroyed
	MadeAt  time.Time
	Waiting bool // values that it sealed may wait to be sealed anew
}

// CustomerVersions lists the versions of c's data key, oldest first, and leaves the event of a listing.
func (k *Keyring) CustomerVersions(ctx context.Context, by actor.Actor, c customer.ID) (list []CustomerVersion, err error) {
	if !c.Valid() {
		return nil, errUnknown
	}
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		list = nil
		rows, err := k.dataKeys(ctx, tx, c)
		if err != nil {
			return err
		}
		waiting, err := selectWaitingVersions(ctx, tx, c)
		if err != nil {
			return err
		}
		for _, r := range rows {
			list = append(list, CustomerVersion{r.version, r.state, clock.FromMicros(r.madeAt), slices.Contains(waiting, r.version)})
		}
		return k.event(ctx, tx, by, c, ActionList, "customer key "+string(c))
	})
	return list, err
}

// dataKeys returns the versions of a customer who is there.
func (k *Keyring) dataKeys(ctx context.Context, tx *db.Tx, c customer.ID) ([]dataRow, error) {
	if err := k.Erased(ctx, tx, c); err != nil {
		return nil, err
	}
	rows, err := selectDataKeys(ctx, tx, c)
	if err == nil && len(rows) == 0 {
		err = errUnknown
	}
	return rows, err
}

// RotateCustomer gives c a new version of their data key. It seals from then on: in this process at
// once, in another one no later than a lease after, and what that seals in between under the version
// before opens as well. Values of older versions are sealed anew by the job, or by ResealCustomer.
func (k *Keyring) RotateCustomer(ctx context.Context, by actor.Actor, c customer.ID) (version uint32, err error) {
	if !c.Valid() {
		return 0, errUnknown
	}
	err = k.db.Update(ctx, func(tx *db.Tx) (err error) {
		version, err = k.renew(ctx, tx, by, c, retired)
		return err
	})
	return version, err
}

// renew makes a new version, which alone seals from the commit on; the one before becomes what is said.
func (k *Keyring) renew(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, before string) (version uint32, err error) {
	rows, err := k.dataKeys(ctx, tx, c)
	if err != nil {
		return 0, err
	}
	states := make([]string, len(rows))
	for i, r := range rows {
		states[i] = r.state
	}
	old, err := activeOf(states)
	if err != nil {
		return 0, fmt.Errorf("data key %s: %w", c, err)
	}
	set, err := k.current(ctx, tx) // a retired KEK never wraps again; see CreateCustomer
	if err != nil {
		return 0, err
	}
	material := newMaterial()
	defer clear(material)
	now := clock.Micros(k.clock.Now())
	version = rows[len(rows)-1].version + 1
	if err := stopDataKey(ctx, tx, c, rows[old].version, before, now); err != nil {
		return 0, err
	}
	made, err := insertDataKey(ctx, tx, c, dataRow{
		version: version, kekVersion: set.kek.Version(), state: active,
		wrapped: set.kek.Seal(dataPlace(c, version), material), madeAt: now,
	})
	if err != nil {
		return 0, err
	}
	if !made {
		return 0, fmt.Errorf("%w: data key %s/%d is there already", ErrDamaged, c, version)
	}
	// From here on nobody in this process finds the old ring, whatever becomes of this transaction; who
	// comes behind it reads the new one.
	mark := k.cache.forget(c)
	if before != compromised {
		ring, err := k.readCustomer(ctx, tx, c)
		if err != nil {
			return 0, err
		}
		tx.AfterCommit(func() { k.cache.replace(c, ring, mark) })
	}
	return version, k.event(ctx, tx, by, c, ActionCustomerCreate, dataResource(c, version))
}

func dataResource(c customer.ID, version uint32) string {
	return "customer key " + string(c) + "/" + strconv.Itoa(int(version))
}

// CompromiseCustomer marks a version of c's data key as known to somebody who must not know it. It
// never seals again: in this process from now on, in another from its next look at the keys, two
// seconds later, and at the latest when its lease is over. When it is the active one, a new version
// takes its place. What it sealed is sealed anew before everything else that waits. It fails with the
// problem "key-not-found" for a version that is not there or was destroyed.
func (k *Keyring) CompromiseCustomer(ctx context.Context, by actor.Actor, c customer.ID, version uint32) error {
	if !c.Valid() {
		return errUnknown
	}
	err := k.db.Update(ctx, func(tx *db.Tx) error {
		if _, err := k.current(ctx, tx); err != nil { // the active KEK, which seals the new states
			return err
		}
		if err := k.compromiseCustomer(ctx, tx, by, c, version); err != nil {
			return err
		}
		return k.changed(ctx, tx)
	})
	if err != nil {
		return err
	}
	k.log.WarnContext(ctx, "a customer's data key was marked compromised; what it sealed is sealed anew", "customer", c, "version", version)
	k.tell(ctx)
	return k.Reload(ctx)
}

func (k *Keyring) compromiseCustomer(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, version uint32) error {
	rows, err := k.dataKeys(ctx, tx, c)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(r dataRow) bool { return r.version == version && r.state != destroyed })
	if i < 0 {
		return errNoKey
	}
	if err := k.event(ctx, tx, by, c, ActionCustomerCompromise, dataResource(c, version)); err != nil {
		return err
	}
	k.Forget(c)
	tx.AfterCommit(func() { k.Forget(c) })
	if rows[i].state == active {
		_, err = k.renew(ctx, tx, by, c, compromised)
		return err
	}
	return exposeDataKey(ctx, tx, c, version)
}

// compromiseBatch is how many versions one transaction of CompromiseCustomersBefore marks.
const compromiseBatch = 64

// CompromiseCustomersBefore is CompromiseCustomer for all versions of all customers' data keys that were
// made before a time, after somebody had them all. It returns how many it marked; when it is cut short,
// call it again.
func (k *Keyring) CompromiseCustomersBefore(ctx context.Context, by actor.Actor, before time.Time) (n int64, err error) {
	if before.After(k.clock.Now()) {
		return 0, problem.New(problem.Unprocessable, "time-in-future", "Name a time that has passed.")
	}
	var cursor customerRow
	var told time.Time
	for {
		var batch []customerRow
		err := k.db.View(ctx, func(tx *db.Tx) (err error) {
			batch, err = selectMadeBefore(ctx, tx, cursor, clock.Micros(before), compromiseBatch)
			return err
		})
		if err != nil || len(batch) == 0 && n == 0 {
			return n, err
		}
		// The other processes hear of it as soon as they listen.
		last := len(batch) < compromiseBatch
		tell := last || time.Since(told) > reloadEvery
		err = k.db.Update(ctx, func(tx *db.Tx) error {
			if _, err := k.current(ctx, tx); err != nil {
				return err
			}
			for _, r := range batch {
				if err := k.compromiseCustomer(ctx, tx, by, r.customer, r.version); err != nil && !problem.Is(err, errErased.Slug()) && !problem.Is(err, errUnknown.Slug()) {
					return err
				}
			}
			if !tell {
				return nil
			}
			return k.changed(ctx, tx)
		})
		if err != nil {
			return n, err
		}
		if tell {
			told = time.Now()
		}
		n += int64(len(batch))
		if last {
			k.log.WarnContext(ctx, "customers' data keys were marked compromised; what they sealed is sealed anew", "keys", n, "made_before", before)
			k.tell(ctx)
			return n, k.Reload(ctx)
		}
		cursor = batch[len(batch)-1]
	}
}

// customersResource names all customers' data keys in an event.
const customersResource = "customer keys"

// RotateCustomers begins to give every customer a new version of their data key and to seal anew what
// older ones sealed, which the job does, customer by customer. It fails with the problem
// "rotation-under-way" when that goes on already.
func (k *Keyring) RotateCustomers(ctx context.Context, by actor.Actor) (Rotation, error) {
	return k.startCustomers(ctx, by, reasonAsked)
}

func (k *Keyring) startCustomers(ctx context.Context, by actor.Actor, reason string) (Rotation, error) {
	r := rotationRow{Rotation: Rotation{ID: id.New("rot"), Key: customerName, Reason: reason, Phase: PhaseResealing, Started: k.clock.Now()}}
	r.Due = r.Started
	// Counted before: whoever makes a key need not wait for it.
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		r.Total, err = countDue(ctx, tx, clock.Micros(k.dueBefore(r)))
		return err
	})
	if err != nil {
		return Rotation{}, err
	}
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		open, err := selectRotation(ctx, tx, customerName)
		if err != nil {
			return err
		}
		if open.open() {
			return errRotating
		}
		if err := insertRotation(ctx, tx, r); err != nil {
			return err
		}
		if err := activateRotation(ctx, tx, r.ID, r.Total); err != nil {
			return err
		}
		return k.event(ctx, tx, by, "", ActionCustomersRotate, customersResource)
	})
	return r.public(), err
}

// dueBefore is when a version was made, at the latest, that the rotation replaces.
func (k *Keyring) dueBefore(r rotationRow) time.Time {
	if r.Reason == reasonScheduled {
		return r.Started.Add(-k.customerEvery)
	}
	return r.Started
}

// renewCustomers gives the next customers of the rotation a new version, and ends it when none is left.
// It is called when nothing waits to be sealed anew, so that what is done is done.
func (k *Keyring) renewCustomers(ctx context.Context, lease jobs.Lease, row rotationRow, limit int, worked time.Duration) (int, error) {
	var next []customer.ID
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		next, err = selectDue(ctx, tx, row.cursorCustomer, clock.Micros(k.dueBefore(row)), limit)
		return err
	})
	if err != nil {
		return 0, err
	}
	if len(next) == 0 {
		return 0, k.completeCustomers(ctx, lease, row)
	}
	row.cursorCustomer = next[len(next)-1]
	err = k.fenced(ctx, lease, k.db.Update, func(tx *db.Tx) error {
		done := int64(0)
		for _, c := range next {
			_, err := k.renew(ctx, tx, byReseal, c, retired)
			switch {
			case problem.Is(err, errErased.Slug()), problem.Is(err, errUnknown.Slug()): // meanwhile
			case err != nil:
				return err
			default:
				done++
			}
		}
		going, err := advanceRotation(ctx, tx, row, done, 0, row.worked+worked)
		if err == nil && !going {
			err = errStopped
		}
		return err
	})
	return len(next), err
}

func (k *Keyring) completeCustomers(ctx context.Context, lease jobs.Lease, row rotationRow) error {
	failed := k.resealer.unopened()
	return k.fenced(ctx, lease, k.db.Update, func(tx *db.Tx) error {
		now, err := selectRotation(ctx, tx, customerName)
		if err != nil {
			return err
		}
		if now.ID != row.ID || !now.Ended.IsZero() {
			return errStopped
		}
		if err := failRotation(ctx, tx, row.ID, failed); err != nil {
			return err
		}
		if err := endRotation(ctx, tx, row.ID, clock.Micros(k.clock.Now())); err != nil {
			return err
		}
		return k.event(ctx, tx, byReseal, "", ActionRotationComplete,
			fmt.Sprintf("%s, %d customers, %d values failed", customersResource, now.Done, failed))
	})
}

// destroyAfter is for how long a version must have stopped to seal before it is destroyed. It is far
// longer than a lease and the longest transaction, so that nobody is about to commit what it sealed.
const destroyAfter = time.Hour

// DestroyCustomerVersion destroys a version of c's data key that nothing needs any more. It fails with
// the problem "key-not-found" when there is no such version, and with "key-needed" while it is active or
// has been until an hour ago, while values wait that it or another old version sealed, and while an event
// of the trail or somebody outside of the database needs it.
func (k *Keyring) DestroyCustomerVersion(ctx context.Context, by actor.Actor, c customer.ID, version uint32) error {
	if !c.Valid() {
		return errUnknown
	}
	needed := func(why string, args ...any) error {
		return problem.New(problem.Conflict, "key-needed", "Version %d of the customer's data key cannot be destroyed: %s.", version, fmt.Sprintf(why, args...))
	}
	if k.resealer.trail == nil {
		return needed("it is not known whether the trail needs it")
	}
	// Whatever it sealed an hour ago or before is there to be seen, and nothing was added since: it is
	// looked for outside of the transaction, because the trail is long.
	look := func(tx *db.Tx) error {
		rows, err := k.dataKeys(ctx, tx, c)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(rows, func(r dataRow) bool { return r.version == version && r.state != destroyed })
		if i < 0 {
			return errNoKey
		}
		if rows[i].state == active {
			return needed("it is active; rotate first")
		}
		stopped, err := selectStopped(ctx, tx, c, version)
		if err != nil {
			return err
		}
		if at := clock.FromMicros(stopped).Add(destroyAfter); at.After(k.clock.Now()) {
			return needed("it has sealed until a short time ago; try again after %s", at.UTC().Format(time.RFC3339))
		}
		return nil
	}
	err := k.db.View(ctx, func(tx *db.Tx) error {
		if err := look(tx); err != nil {
			return err
		}
		waiting, err := k.stale(ctx, tx, c, 1, nil)
		if err != nil {
			return err
		}
		if len(waiting.values) > 0 {
			return needed("values wait to be sealed anew; let the job do it, or rotate the customer's key with --watch")
		}
		events, err := k.resealer.trail.NeedsKey(ctx, tx, c, version)
		if err == nil && events {
			err = needed("events of the trail, which never change, are sealed with it; it goes when the customer is erased")
		}
		return err
	})
	if err != nil {
		return err
	}
	return k.db.Update(ctx, func(tx *db.Tx) error {
		if err := look(tx); err != nil {
			return err
		}
		who, err := k.needed(ctx, tx, customerName+"/"+string(c), version)
		if err != nil {
			return err
		}
		if who != "" {
			return needed("it is needed by %s", who)
		}
		if err := destroyDataKey(ctx, tx, c, version); err != nil {
			return err
		}
		tx.AfterCommit(func() { k.Forget(c) })
		return k.event(ctx, tx, by, c, ActionCustomerDestroy, dataResource(c, version))
	})
}
