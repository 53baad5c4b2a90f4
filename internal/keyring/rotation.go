package keyring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// JobRotation is the name of the job that rotates keys: wake it after Rotate and Resume.
const JobRotation = "keyring-rotation"

// The actions of a rotation.
const (
	ActionKEKPublish       = "keyring.kek.publish"
	ActionKEKActivate      = "keyring.kek.activate"
	ActionKEKCompromise    = "keyring.kek.compromise"
	ActionKEKDestroy       = "keyring.kek.destroy"
	ActionRotationPause    = "keyring.rotation.pause"
	ActionRotationResume   = "keyring.rotation.resume"
	ActionRotationComplete = "keyring.rotation.complete"
)

// The phases of a rotation.
const (
	PhasePublished = "published" // the new version makes its way to every process
	PhaseResealing = "resealing" // it seals, and what older ones sealed is sealed anew
	PhaseDone      = "done"
)

// The reasons for a rotation.
const (
	reasonAsked       = "asked"
	reasonScheduled   = "scheduled"
	reasonCompromised = "compromised"
)

const (
	rotationEvery = 5 * time.Second
	// watchPause is how long a rotation that waits for its time sleeps before it looks again.
	watchPause = time.Second
	// newKEKRounds is how often a new KEK is made again because a rotation that goes on, or another process,
	// has changed the keys meanwhile.
	newKEKRounds = 20
	// rewrapBatch is how many keys one transaction wraps anew: few enough that others wait some
	// milliseconds for it, and enough to share the cost of a commit.
	rewrapBatch = 250
)

// Rotation is how far the change to a new version of a key is.
type Rotation struct {
	ID       string
	Key      string // "kek", or the name of a service key
	Version  uint32 // the new one
	Reason   string // asked, scheduled or compromised
	Phase    string // published, resealing, clearing or done
	Paused   bool
	Done     int64         // keys that were sealed anew
	Total    int64         // of those that there were when it began
	Failed   int64         // keys that do not open, and so keep the old version needed
	Rate     float64       // keys a second, over the time that was worked
	Estimate time.Duration // until it is done; 0 when that is not known
	Started  time.Time
	Due      time.Time // when the new version becomes active
	Ended    time.Time // zero while it goes on
	Left     int64     // pepper: private codes that older versions made
}

var (
	errRotating   = problem.New(problem.Conflict, "rotation-under-way", "A key is being rotated already: wait for its end.")
	errNoRotation = problem.New(problem.NotFound, "no-rotation", "No key is being rotated.")
	errNoKey      = problem.New(problem.NotFound, "key-not-found", "There is no such version of the key.")
)

// RotateKEK makes a new KEK and publishes it. The job does the rest: once every process had the time
// to load it, it becomes active and the one before is retired; then all keys that older ones wrap are
// wrapped anew. It fails with the problem "rotation-under-way" when that goes on already.
func (k *Keyring) RotateKEK(ctx context.Context, by actor.Actor) (Rotation, error) {
	return k.startKEK(ctx, by, reasonAsked)
}

func (k *Keyring) startKEK(ctx context.Context, by actor.Actor, reason string) (Rotation, error) {
	return k.withNewKEK(ctx, func(tx *db.Tx, fresh newKEK) (rotationRow, error) {
		open, err := selectRotation(ctx, tx, "")
		if err != nil {
			return open, err
		}
		if open.open() {
			return open, errRotating
		}
		return k.publishKEK(ctx, tx, by, fresh, reason)
	})
}

// CompromiseKEK marks a KEK as known to somebody who must not know it: it never wraps again, and
// whatever it wraps is wrapped anew, at once and without a bound on the rate. When it is the active
// one, another takes its place without waiting for the other processes: each loads it when it meets
// it. A KEK that is only published is destroyed. It fails with the problem "key-not-found" for a
// version that is not there or was destroyed.
func (k *Keyring) CompromiseKEK(ctx context.Context, by actor.Actor, version uint32) (Rotation, error) {
	r, err := k.withNewKEK(ctx, func(tx *db.Tx, fresh newKEK) (rotationRow, error) {
		open, err := selectRotation(ctx, tx, kekName)
		if err != nil {
			return open, err
		}
		rows, err := selectKEKs(ctx, tx)
		if err != nil {
			return open, err
		}
		i := slices.IndexFunc(rows, func(r kekRow) bool { return r.version == version && r.state != destroyed })
		if i < 0 {
			return open, errNoKey
		}
		if err := k.event(ctx, tx, by, "", ActionKEKCompromise, kekResource(version)); err != nil {
			return open, err
		}
		r, err := k.compromiseKEK(ctx, tx, by, rows[i], open, fresh)
		if err != nil {
			return r, err
		}
		return r, k.changed(ctx, tx, fresh.held)
	})
	if err == nil {
		k.log.WarnContext(ctx, "a KEK was marked compromised; what it wraps is wrapped anew", "kek", version)
	}
	return r, err
}

// compromiseKEK does what is right for the state of the KEK that row is.
func (k *Keyring) compromiseKEK(ctx context.Context, tx *db.Tx, by actor.Actor, row kekRow, open rotationRow, fresh newKEK) (rotationRow, error) {
	now := clock.Micros(k.clock.Now())
	if row.state == published { // nothing needs it yet
		if err := deleteKEK(ctx, tx, row.version); err != nil {
			return open, err
		}
		if err := endRotation(ctx, tx, open.ID, now); err != nil {
			return open, err
		}
		return selectRotation(ctx, tx, kekName)
	}
	becomes := retired // the active one
	if row.state == active {
		becomes = compromised
	} else {
		if err := setKEKState(ctx, tx, row.version, compromised); err != nil {
			return open, err
		}
		wraps, err := countWrapped(ctx, tx, row.version)
		if err != nil || wraps == 0 {
			return open, err
		}
	}
	if open.open() {
		if err := hurryRotation(ctx, tx, open.ID, now); err != nil {
			return open, err
		}
		if open.Version != row.version { // a newer one is on its way
			if open.Phase == PhasePublished {
				if err := k.promoteKEK(ctx, tx, by, open.rotationKey(), becomes, fresh.others); err != nil {
					return open, err
				}
			}
			return selectRotation(ctx, tx, kekName)
		}
		if err := endRotation(ctx, tx, open.ID, now); err != nil {
			return open, err
		}
	}
	begun, err := k.publishKEK(ctx, tx, by, fresh, reasonCompromised)
	if err != nil {
		return open, err
	}
	if err := k.promoteKEK(ctx, tx, by, begun.rotationKey(), becomes, fresh.others); err != nil {
		return open, err
	}
	return selectRotation(ctx, tx, kekName)
}

// newKEK is a KEK that is not in the database yet.
type newKEK struct {
	held   heldKEK
	row    kekRow
	others int64 // how many keys it does not wrap yet
}

// withNewKEK has the root key wrap a new KEK, which it cannot do in a transaction, and runs fn in one.
// Should another process be faster, the next round has the KEK after that.
func (k *Keyring) withNewKEK(ctx context.Context, fn func(tx *db.Tx, fresh newKEK) (rotationRow, error)) (Rotation, error) {
	if k.record.Load() == nil {
		return Rotation{}, errNoRecorder
	}
	var r rotationRow
	for range newKEKRounds {
		if err := k.Reload(ctx); err != nil {
			return Rotation{}, err
		}
		next, err := k.nextKEK(ctx)
		if err != nil {
			return Rotation{}, err
		}
		var fresh newKEK
		if fresh.others, err = k.countOthers(ctx, next); err != nil {
			return Rotation{}, err
		}
		if fresh.held, fresh.row, err = k.newKEK(ctx, next); err != nil {
			return Rotation{}, err
		}
		err = k.db.Update(ctx, func(tx *db.Tx) (err error) {
			r, err = fn(tx, fresh)
			return err
		})
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return Rotation{}, err
		}
		if err := k.Reload(ctx); err != nil {
			k.log.WarnContext(ctx, "the KEKs have changed and are not loaded here yet", "error", err)
		}
		return r.public(), nil
	}
	return Rotation{}, keysUnavailable(errMoved)
}

func (k *Keyring) nextKEK(ctx context.Context) (next uint32, err error) {
	err = k.db.View(ctx, func(tx *db.Tx) error {
		rows, err := selectKEKs(ctx, tx)
		if err == nil && len(rows) == 0 {
			err = fmt.Errorf("%w: there is no KEK: bring the table kek back from a backup", ErrDamaged)
		}
		if err == nil {
			next = rows[len(rows)-1].version + 1
		}
		return err
	})
	return next, err
}

func (k *Keyring) countOthers(ctx context.Context, version uint32) (n int64, err error) {
	err = k.db.View(ctx, func(tx *db.Tx) (err error) {
		n, err = countOthers(ctx, tx, version)
		return err
	})
	return n, err
}

func kekResource(version uint32) string { return "kek " + strconv.Itoa(int(version)) }

// publishKEK inserts the new KEK and its rotation.
func (k *Keyring) publishKEK(ctx context.Context, tx *db.Tx, by actor.Actor, fresh newKEK, reason string) (r rotationRow, err error) {
	rows, err := selectKEKs(ctx, tx)
	if err != nil {
		return r, err
	}
	// The active KEK, as this very transaction sees it, vouches for the new one.
	voucher := k.keys.Load().kek
	i := slices.IndexFunc(rows, func(r kekRow) bool { return r.state == active })
	if i < 0 || rows[i].version != voucher.Version() || rows[len(rows)-1].version >= fresh.row.version {
		return r, errMoved
	}
	if ok, err := k.wrapsSuffice(ctx, tx, fresh.row); err != nil || !ok {
		return r, cmp.Or(err, errMoved) // a move of the root key began or ended since
	}
	row := fresh.row
	row.state, row.vouch = published, voucher.Seal(vouchPlace(row.version), fresh.held.digest)
	if err := insertKEK(ctx, tx, row); err != nil {
		return r, err
	}
	now := k.clock.Now()
	r.Rotation = Rotation{
		ID: id.New("rot"), Key: kekName, Version: row.version, Reason: reason, Phase: PhasePublished,
		Started: now, Due: now.Add(k.publish),
	}
	if err := insertRotation(ctx, tx, r); err != nil {
		return r, err
	}
	if err := k.changed(ctx, tx); err != nil {
		return r, err
	}
	return r, k.event(ctx, tx, by, "", ActionKEKPublish, kekResource(row.version))
}

// rotationKey names a rotation and its new version.
type rotationKey struct {
	id      string
	version uint32
}

func (r rotationRow) rotationKey() rotationKey { return rotationKey{r.ID, r.Version} }

func (r rotationRow) open() bool { return r.ID != "" && r.Ended.IsZero() }

// promoteKEK makes a published KEK the active one; the one before becomes what is said. How many keys
// there are to be wrapped anew was counted before: a transaction that looks at all of them is in the
// way of everybody who makes one.
func (k *Keyring) promoteKEK(ctx context.Context, tx *db.Tx, by actor.Actor, r rotationKey, before string, total int64) error {
	if err := replaceActiveKEK(ctx, tx, r.version, before); err != nil {
		return err
	}
	if err := activateRotation(ctx, tx, r.id, total); err != nil {
		return err
	}
	return k.event(ctx, tx, by, "", ActionKEKActivate, kekResource(r.version))
}

// Rotation returns the rotation that goes on, or else the latest. It fails with the problem
// "no-rotation" when there was none.
func (k *Keyring) Rotation(ctx context.Context) (r Rotation, err error) {
	err = k.db.View(ctx, func(tx *db.Tx) error {
		row, err := shownRotation(ctx, tx)
		if err == nil && row.ID == "" {
			err = errNoRotation
		}
		r = row.public()
		if err == nil && row.Key == KeyPepper {
			r.Left, err = k.stillPeppered(ctx, tx, row.Version)
		}
		return err
	})
	return r, err
}

// PauseRotation has the rotation stop where it is, until ResumeRotation. A published key still becomes
// active. It fails with the problem "no-rotation" when none goes on.
func (k *Keyring) PauseRotation(ctx context.Context, by actor.Actor) (Rotation, error) {
	return k.pause(ctx, by, true, ActionRotationPause)
}

// ResumeRotation lets a paused rotation go on. It fails with the problem "no-rotation" when none is
// under way.
func (k *Keyring) ResumeRotation(ctx context.Context, by actor.Actor) (Rotation, error) {
	return k.pause(ctx, by, false, ActionRotationResume)
}

func (k *Keyring) pause(ctx context.Context, by actor.Actor, paused bool, action string) (r Rotation, err error) {
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		row, err := shownRotation(ctx, tx)
		if err != nil {
			return err
		}
		if !row.open() {
			return errNoRotation
		}
		if err := pauseRotation(ctx, tx, row.ID, paused); err != nil {
			return err
		}
		row.Paused = paused
		r = row.public()
		resource := kekResource(row.Version)
		switch row.Key {
		case kekName:
		case customerName:
			resource = customersResource
		default:
			resource = serviceResource(row.Key, row.Version)
		}
		return k.event(ctx, tx, by, "", action, resource)
	})
	return r, err
}

// DestroyKEK destroys a KEK that nothing needs any more: its wrapped form is deleted, and every process
// drops it at the next reload. It fails with the problem "key-not-found" when there is no such version,
// and with "key-needed" when it is active or published, when it wraps a key, or when somebody outside
// of the database needs it.
func (k *Keyring) DestroyKEK(ctx context.Context, by actor.Actor, version uint32) error {
	err := k.db.Update(ctx, func(tx *db.Tx) error {
		set, err := k.current(ctx, tx)
		if err != nil {
			return err
		}
		rows, err := selectKEKs(ctx, tx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(rows, func(r kekRow) bool { return r.version == version && r.state != destroyed })
		if i < 0 {
			return errNoKey
		}
		needed := func(why string, args ...any) error {
			return problem.New(problem.Conflict, "key-needed", "KEK %d cannot be destroyed: %s.", version, fmt.Sprintf(why, args...))
		}
		if s := rows[i].state; s == active || s == published {
			return needed("it is %s; rotate first", s)
		}
		// Whoever makes a key reads the generation that this transaction raises, so that none is made
		// under this KEK while we look.
		wraps, err := countWrapped(ctx, tx, version)
		if err != nil {
			return err
		}
		if wraps > 0 {
			return needed("it wraps %d keys; let the rotation end, or start one", wraps)
		}
		who, err := k.needed(ctx, tx, kekName, version)
		if err != nil {
			return err
		}
		if who != "" {
			return needed("it is needed by %s", who)
		}
		if err := k.vouchAgain(ctx, tx, set, rows, version); err != nil {
			return err
		}
		if err := deleteKEK(ctx, tx, version); err != nil {
			return err
		}
		if err := k.changed(ctx, tx); err != nil {
			return err
		}
		return k.event(ctx, tx, by, "", ActionKEKDestroy, kekResource(version))
	})
	if err != nil {
		return err
	}
	return k.Reload(ctx)
}

// vouchAgain has the oldest KEK that is left vouch for those that the one to be destroyed vouched for.
func (k *Keyring) vouchAgain(ctx context.Context, tx *db.Tx, set *keySet, rows []kekRow, version uint32) error {
	var oldest *seal.Ring
	for _, row := range rows {
		if row.state == destroyed || row.version == version {
			continue
		}
		if oldest == nil {
			var err error
			if oldest, err = set.kek.Under(row.version); err != nil {
				return err
			}
			continue
		}
		if by, err := seal.KeyVersion(row.vouch); err == nil && by == version {
			vouch := oldest.Seal(vouchPlace(row.version), set.held[row.version].digest)
			if err := setVouch(ctx, tx, row.version, vouch); err != nil {
				return err
			}
		}
	}
	return nil
}

// errStopped means that the rotation was paused or ended, or that another process does it now.
var errStopped = errors.New("the rotation goes on elsewhere or later")

var byRotation = actor.OfSystem("job:" + JobRotation)

// rotate is the job: it starts a rotation when one is due, and does what there is to do of the open one.
// Whatever it does is committed together with how far that is, under its lease.
func (k *Keyring) rotate(ctx context.Context) error {
	lease, ok := jobs.LeaseOf(ctx)
	if !ok {
		return errors.New("keyring: a rotation needs a lease")
	}
	for {
		var row rotationRow
		err := k.db.View(ctx, func(tx *db.Tx) (err error) {
			row, err = selectRotation(ctx, tx, "")
			return err
		})
		if err != nil {
			return err
		}
		switch {
		case !row.open():
			switch name := k.due(); name {
			case "":
				return nil
			case kekName:
				_, err = k.startKEK(ctx, byRotation, reasonScheduled)
			default:
				_, err = k.startService(ctx, byRotation, name, reasonScheduled)
			}
			if problem.Is(err, errRotating.Slug()) {
				err = nil
			}
			if problem.Is(err, errNeedsBoth.Slug()) || problem.Is(err, errRootMoved.Slug()) {
				return nil // another server may hold the root key that is needed
			}
		case row.Key != kekName:
			err = k.activateService(ctx, lease, row)
		case row.Phase == PhasePublished:
			err = k.activateKEK(ctx, lease, row)
		case row.Paused:
			return nil
		default:
			err = k.rewrap(ctx, lease, row)
		}
		if errors.Is(err, errStopped) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// due returns the name of a key whose active version is as old as it may become, or has sealed as often as
// it should, or "".
func (k *Keyring) due() string {
	set, now := k.keys.Load(), k.clock.Now()
	if k.uses.worn(kekName, set.kek.Version()) {
		return kekName
	}
	if at := next(k.kekEvery, active, clock.Micros(set.kekMade)); !at.IsZero() && !at.After(now) {
		return kekName
	}
	for _, name := range rotatable {
		if ring := set.service[name].ring; ring != nil && k.uses.worn(name, ring.Version()) {
			return name
		}
		if at := next(k.serviceEvery, active, set.service[name].made); !at.IsZero() && !at.After(now) {
			return name
		}
	}
	return ""
}

// next returns when a version is rotated by itself.
func next(every time.Duration, state string, madeAt int64) time.Time {
	if every <= 0 || state != active {
		return time.Time{}
	}
	return clock.FromMicros(madeAt).Add(every)
}

func (k *Keyring) everyService(name string) time.Duration {
	if !slices.Contains(rotatable, name) {
		return 0
	}
	return k.serviceEvery
}

func (k *Keyring) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fenced runs fn in a transaction that commits only while the lease holds.
func (k *Keyring) fenced(ctx context.Context, lease jobs.Lease, update func(context.Context, func(*db.Tx) error) error, fn func(tx *db.Tx) error) error {
	return update(ctx, func(tx *db.Tx) error {
		held, err := jobs.Holds(ctx, tx, lease.Name, lease.Holder, lease.Epoch)
		if err != nil {
			return err
		}
		if !held {
			return errStopped
		}
		return fn(tx)
	})
}

// activateKEK has the published KEK seal from now on, once its time has come.
func (k *Keyring) activateKEK(ctx context.Context, lease jobs.Lease, row rotationRow) error {
	if left := row.Due.Sub(k.clock.Now()); left > 0 {
		return k.wait(ctx, min(left, watchPause))
	}
	// This process, at least, holds it.
	if err := k.Reload(ctx); err != nil {
		return err
	}
	if k.keys.Load().held[row.Version].key == nil {
		return keysUnavailable(fmt.Errorf("KEK %d is published and cannot be loaded here", row.Version))
	}
	total, err := k.countOthers(ctx, row.Version)
	if err != nil {
		return err
	}
	err = k.fenced(ctx, lease, k.db.Update, func(tx *db.Tx) error {
		now, err := selectRotation(ctx, tx, row.Key)
		if err != nil {
			return err
		}
		if now.ID != row.ID || now.Phase != PhasePublished {
			return errStopped
		}
		if err := k.promoteKEK(ctx, tx, byRotation, row.rotationKey(), retired, total); err != nil {
			return err
		}
		return k.changed(ctx, tx)
	})
	if err != nil {
		return err
	}
	k.log.InfoContext(ctx, "a new KEK is active; what older ones wrap is wrapped anew", "kek", row.Version)
	return k.Reload(ctx)
}

// rewrap wraps the next keys anew, and ends the rotation when none is left.
func (k *Keyring) rewrap(ctx context.Context, lease jobs.Lease, row rotationRow) error {
	if err := k.Reload(ctx); err != nil {
		return err
	}
	kek := k.keys.Load().kek
	if kek.Version() != row.Version {
		return fmt.Errorf("%w: KEK %d is not active in the middle of its rotation", ErrDamaged, row.Version)
	}
	began := time.Now()
	batch := rewrapBatch
	if row.Reason != reasonCompromised {
		batch = min(max(k.rate/20, 1), batch) // a slow rotation goes in small steps, not in rare large ones
	}
	var services []serviceRow
	var data []customerRow
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		if services, err = selectServiceKeys(ctx, tx); err != nil {
			return err
		}
		data, err = selectWrapped(ctx, tx, row.cursorCustomer, row.cursorVersion, row.Version, batch)
		return err
	})
	if err != nil {
		return err
	}
	first := row.cursorCustomer == "" // the service keys are done once in each pass
	services = slices.DeleteFunc(services, func(r serviceRow) bool {
		return !first || r.wrapped == nil || r.kekVersion == row.Version
	})
	last := len(data) < batch
	if len(data) > 0 {
		end := data[len(data)-1]
		row.cursorCustomer, row.cursorVersion = end.customer, end.version
	}

	// All that is slow is done before the transaction.
	var failed int64
	again := func(p seal.Place, kekVersion uint32, wrapped []byte, what string) []byte {
		material, err := unwrap(kek, p, kekVersion, wrapped)
		if err != nil {
			failed++
			k.log.LogAttrs(ctx, slog.LevelError, "a key does not open and is left as it is", slog.String("key", what), slog.Any("error", err))
			return nil
		}
		fresh := kek.Seal(p, material)
		clear(material)
		return fresh
	}
	for i, r := range services {
		services[i].wrapped = again(servicePlace(r.name, r.algorithm, r.version), r.kekVersion, r.wrapped, r.name+"/"+strconv.Itoa(int(r.version)))
	}
	for i, r := range data {
		data[i].wrapped = again(dataPlace(r.customer, r.version), r.kekVersion, r.wrapped, string(r.customer)+"/"+strconv.Itoa(int(r.version)))
	}

	var done int64
	err = k.fenced(ctx, lease, k.db.UpdateReadCommitted, func(tx *db.Tx) error {
		done = 0
		for _, r := range services {
			if r.wrapped == nil {
				continue
			}
			n, err := rewrapServiceKey(ctx, tx, r, row.Version)
			if err != nil {
				return err
			}
			done += n
		}
		n, err := rewrapDataKeys(ctx, tx, data, row.Version)
		if err != nil {
			return err
		}
		done += n
		going, err := advanceRotation(ctx, tx, row, done, failed, row.worked+time.Since(began))
		if err == nil && !going {
			err = errStopped
		}
		return err
	})
	if err != nil {
		return err
	}
	k.metrics.rewrapped.Add(float64(done))
	if last {
		return k.completeKEK(ctx, lease, row, row.Failed+failed)
	}
	if row.Reason == reasonCompromised {
		return ctx.Err()
	}
	pause := time.Duration(float64(len(data))/float64(k.rate)*float64(time.Second)) - time.Since(began)
	return k.wait(ctx, max(0, pause))
}

// completeKEK ends the rotation when nothing is left, or nothing but what does not open. Else, somebody
// was late with a key that the one before wraps: there is another pass.
func (k *Keyring) completeKEK(ctx context.Context, lease jobs.Lease, row rotationRow, failed int64) error {
	left, err := k.countOthers(ctx, row.Version)
	if err != nil {
		return err
	}
	if left > failed {
		return k.fenced(ctx, lease, k.db.UpdateReadCommitted, func(tx *db.Tx) error { return restartRotation(ctx, tx, row.ID) })
	}
	var done int64
	err = k.fenced(ctx, lease, k.db.Update, func(tx *db.Tx) error {
		now, err := selectRotation(ctx, tx, row.Key)
		if err != nil {
			return err
		}
		if now.ID != row.ID || !now.Ended.IsZero() {
			return errStopped
		}
		done = now.Done
		if err := endRotation(ctx, tx, row.ID, clock.Micros(k.clock.Now())); err != nil {
			return err
		}
		resource := fmt.Sprintf("%s, %d keys, %d failed", kekResource(row.Version), now.Done, left)
		return k.event(ctx, tx, byRotation, "", ActionRotationComplete, resource)
	})
	if err != nil {
		return err
	}
	k.metrics.failed.Set(float64(left))
	k.log.InfoContext(ctx, "rotation is complete", "kek", row.Version, "keys", done, "failed", left)
	return nil
}

// rotationRow is a Rotation as it is stored.
type rotationRow struct {
	Rotation
	worked         time.Duration
	cursorCustomer customer.ID
	cursorVersion  uint32
}

// public reckons rate and estimate.
func (r rotationRow) public() Rotation {
	p := r.Rotation
	if r.worked > 0 {
		p.Rate = float64(p.Done) / r.worked.Seconds()
	}
	if p.Rate > 0 && p.Phase == PhaseResealing {
		p.Estimate = time.Duration(float64(max(0, p.Total-p.Done)) / p.Rate * float64(time.Second)).Round(time.Millisecond)
	}
	return p
}
