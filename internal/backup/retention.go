package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"gocloud.dev/blob"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// The actions of retention. The resource is the snapshot, or the retention.
const (
	ActionPrune   = "backup.snapshots.prune"
	ActionRetain  = "backup.retention.set" // the retention in force was changed
	ActionHold    = "backup.snapshot.hold"
	ActionRelease = "backup.snapshot.release"
	ActionDelete  = "backup.snapshot.delete" // before its time
)

// Retention says which snapshots are kept: of each class, the first one of each of the newest so many
// hours, days, ISO weeks, months and years (UTC) that have any, and always the newest of all. It counts
// snapshots and not time, so no clock that jumps makes it delete one.
type Retention struct {
	Hourly, Daily, Weekly, Monthly, Yearly int
	// Keys is for how long old copies of the keys are kept. It is short: it is how long an erased
	// customer's key outlives the erasure. The newest is always kept, and opens every snapshot.
	Keys time.Duration
}

// DefaultRetention is what applies when nothing is said.
var DefaultRetention = Retention{Hourly: 24, Daily: 14, Weekly: 8, Monthly: 12, Yearly: 7, Keys: 7 * 24 * time.Hour}

// defaultGrace is how old, by the repository's own clock, an object is that no snapshot needs when it is
// deleted: longer than any run takes to write the manifest that needs it.
const defaultGrace = 24 * time.Hour

// String returns the retention as deeds name it.
func (k Retention) String() string {
	return fmt.Sprintf("hourly=%d daily=%d weekly=%d monthly=%d yearly=%d keys=%dh", k.Hourly, k.Daily, k.Weekly, k.Monthly, k.Yearly, k.Keys/time.Hour)
}

func parseRetention(s string) (k Retention, err error) {
	var hours int64
	_, err = fmt.Sscanf(s, "hourly=%d daily=%d weekly=%d monthly=%d yearly=%d keys=%dh", &k.Hourly, &k.Daily, &k.Weekly, &k.Monthly, &k.Yearly, &hours)
	k.Keys = time.Duration(hours) * time.Hour
	return k, err
}

// shorter reports whether k keeps less data than was. Keys do not count: to keep old ones less long is
// what erasure wants.
func (k Retention) shorter(was Retention) bool {
	return k.Hourly < was.Hourly || k.Daily < was.Daily || k.Weekly < was.Weekly || k.Monthly < was.Monthly || k.Yearly < was.Yearly
}

type class struct {
	name   string
	count  int
	period func(t time.Time) string
	years  int
	months int
	days   int
	hours  int
}

// classes returns the classes, the longest first.
func (k Retention) classes() []class {
	layout := func(layout string) func(time.Time) string {
		return func(t time.Time) string { return t.Format(layout) }
	}
	week := func(t time.Time) string {
		year, week := t.ISOWeek()
		return fmt.Sprintf("%04d-%02d", year, week)
	}
	return []class{
		{name: "yearly", count: k.Yearly, period: layout("2006"), years: 1},
		{name: "monthly", count: k.Monthly, period: layout("2006-01"), months: 1},
		{name: "weekly", count: k.Weekly, period: week, days: 7},
		{name: "daily", count: k.Daily, period: layout("2006-01-02"), days: 1},
		{name: "hourly", count: k.Hourly, period: layout("2006-01-02T15"), hours: 1},
	}
}

// kept is what the retention makes of a snapshot.
type kept struct {
	class string    // the longest that it is kept for; "" for none
	until time.Time // about until when; a copy is locked until then
}

// keep returns which of the snapshots, the oldest first, are kept. It does not know of holds.
func (k Retention) keep(ids []string) map[string]kept {
	all := make(map[string]kept)
	if len(ids) > 0 {
		newest := ids[len(ids)-1]
		all[newest] = kept{until: timeOf(newest).Add(leastLock)}
	}
	for _, c := range k.classes() {
		var first []string // of each period
		seen := make(map[string]bool)
		for _, id := range ids {
			if p := c.period(timeOf(id)); !seen[p] {
				seen[p] = true
				first = append(first, id)
			}
		}
		for _, id := range first[max(0, len(first)-c.count):] {
			at := timeOf(id)
			until := at.AddDate(c.years*c.count, c.months*c.count, c.days*c.count).Add(time.Duration(c.hours*c.count) * time.Hour)
			is := all[id]
			if is.class == "" {
				is.class = c.name
			}
			if until.After(is.until) {
				is.until = until
			}
			all[id] = is
		}
	}
	return all
}

// keepKeys is keep for the part Keys.
func (k Retention) keepKeys(ids []string, now time.Time) map[string]kept {
	all := make(map[string]kept)
	for i, id := range ids {
		if i == len(ids)-1 || now.Sub(timeOf(id)) < k.Keys {
			all[id] = kept{class: "keys"}
		}
	}
	return all
}

var snapshotIDs = regexp.MustCompile(`^snap_[0-9]{8}t[0-9]{6}_[a-z0-9]{6}$`)

const idTime = "20060102t150405"

// timeOf returns the time in a snapshot's id, in seconds.
func timeOf(id string) time.Time {
	text, _, _ := strings.Cut(strings.TrimPrefix(id, "snap_"), "_")
	t, err := time.Parse(idTime, text)
	if err != nil {
		return time.Time{}
	}
	return t
}

// afterNewest returns the time for the id of a snapshot: ids are in the order of the snapshots, even when
// the clock was set back or stands still. A restore takes the newest keys, and must not take older ones.
func afterNewest(now time.Time, newest ...string) time.Time {
	for _, id := range newest {
		if least := timeOf(id).Add(time.Second); id != "" && now.Before(least) {
			now = least
		}
	}
	return now
}

// Findings keeps what is wrong until it is right again; nil keeps nothing.
type Findings interface {
	Raise(ctx context.Context, kind, subject, detail string) error
	Clear(ctx context.Context, kind, subject string) error
}

// The kinds of findings.
const (
	FindingEarlyDeletion = "backup.early-deletion"      // a snapshot, or the retention, was cut short
	FindingDamaged       = "backup.copy-damaged"        // a repository does not give back what was stored
	FindingUnreadable    = "backup.manifest-unreadable" // so nothing is swept
)

func (b *Backup) raise(ctx context.Context, kind, subject, detail string) {
	if b.o.Findings == nil {
		return
	}
	if err := b.o.Findings.Raise(context.WithoutCancel(ctx), kind, subject, detail); err != nil {
		b.o.Log.ErrorContext(ctx, "a finding was not kept", "kind", kind, "subject", subject, "error", err)
	}
}

func (b *Backup) clear(ctx context.Context, kind, subject string) {
	if b.o.Findings == nil {
		return
	}
	if err := b.o.Findings.Clear(context.WithoutCancel(ctx), kind, subject); err != nil {
		b.o.Log.ErrorContext(ctx, "a finding was not cleared", "kind", kind, "subject", subject, "error", err)
	}
}

// Pruned is what Prune did.
type Pruned struct {
	Snapshots []string          `json:"snapshots"` // whose data are past their retention; deleted in one repository at least
	Manifests int               `json:"manifests"` // deleted, in all repositories and of both parts
	Objects   int               `json:"objects"`   // deleted
	Bytes     int64             `json:"bytes"`     // of those
	Locked    int               `json:"locked"`    // would have been deleted, and are locked
	Extended  int               `json:"extended"`  // locks that were made longer
	Skipped   map[string]string `json:"skipped"`   // repositories in which not everything was done, and why

	gone []string // of Snapshots, those that no repository has any more
}

// Prune deletes the snapshots that the retention does not keep, and the objects that no snapshot needs any
// more. It deletes no object as long as any manifest cannot be read, and none that is younger than the
// grace, for a run may be about to need it. Where objects are locked, those that are still needed get their
// lock extended. A retention that is shorter than the one in force takes two approvals.
func (b *Backup) Prune(ctx context.Context, by actor.Actor) (Pruned, error) {
	b.taking.Lock()
	defer b.taking.Unlock()
	p := Pruned{Skipped: make(map[string]string)}
	if err := b.admit(ctx, by); err != nil {
		return p, err
	}
	err := b.prune(ctx, &p)
	recorded := b.o.Trail.Do(context.WithoutCancel(ctx), by, audit.Event{Action: ActionPrune, Resource: "snapshots"}, func(tx *db.Tx, e *audit.Event) error {
		if err != nil {
			e.Deny(problemOf(err, "backup-prune-failed", "Old snapshots were not all deleted. The log says why."))
		}
		return markPruned(ctx, tx, p.gone, clock.Micros(b.o.Clock.Now()))
	})
	if err != nil {
		b.o.Log.ErrorContext(ctx, "old snapshots were not all deleted", "error", err)
	}
	return p, recorded
}

func problemOf(err error, slug, detail string) *problem.Problem {
	var p *problem.Problem
	if errors.As(err, &p) {
		return p
	}
	return problem.New(problem.Unavailable, slug, "%s", detail).Because(err)
}

// admit puts the configured retention into force.
func (b *Backup) admit(ctx context.Context, by actor.Actor) error {
	wanted := b.o.Retention
	var was string
	err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		was, err = readRetention(ctx, tx)
		return err
	})
	if err != nil || was == wanted.String() {
		return err
	}
	shortened := false
	err = b.o.Trail.Do(ctx, by, audit.Event{Action: ActionRetain, Resource: "retention " + wanted.String()}, func(tx *db.Tx, e *audit.Event) error {
		was, err := readRetention(ctx, tx)
		if err != nil {
			return err
		}
		shortened = false
		if was != "" {
			old, err := parseRetention(was)
			if err != nil {
				return err
			}
			if shortened = wanted.shorter(old); shortened {
				if _, err := b.o.Approvals.Spend(ctx, tx, "keep "+wanted.String()); err != nil {
					return err
				}
			}
		}
		return putRetention(ctx, tx, wanted.String(), clock.Micros(b.o.Clock.Now()))
	})
	if err == nil && shortened {
		b.raise(ctx, FindingEarlyDeletion, "retention", "The retention was shortened to "+wanted.String()+", with two approvals. See that this was meant, and by whom, in the trail.")
	}
	return err
}

func (b *Backup) prune(ctx context.Context, p *Pruned) error {
	var held map[string]bool
	err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		held, err = readHolds(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	for _, part := range []Part{Data, Keys} {
		key, reached, absent, err := b.key(ctx, part, false)
		for r, why := range absent {
			p.Skipped[r.Name] = why.Error()
		}
		if errors.Is(err, errNothing) {
			continue
		}
		if err != nil {
			return err
		}
		inventory := b.inventory(ctx, part, reached, p)
		now := b.o.Clock.Now()
		// What does not open counts for nothing and is not deleted: else whoever can write into one repository
		// could, with names of his own, push the snapshots of all of them out of the retention.
		var ids []string
		for _, id := range inventory.ids {
			if _, err := readManifest(ctx, key, inventory.holders[id], id, b.o.Keys.EvidenceVerifiers()); err == nil {
				ids = append(ids, id)
			}
		}
		keep := b.o.Retention.keep(ids)
		if part == Keys {
			keep = b.o.Retention.keepKeys(ids, now)
		} else {
			for id := range held {
				is := keep[id]
				is.class = "hold"
				if until := now.Add(4 * lockSlack); until.After(is.until) {
					is.until = until
				}
				keep[id] = is
			}
		}
		for _, id := range ids {
			if _, ok := keep[id]; ok {
				continue
			}
			if b.removeManifest(ctx, inventory, id, p) > 0 && part == Data {
				p.Snapshots = append(p.Snapshots, id)
			}
			if len(inventory.holders[id]) == 0 && part == Data && len(p.Skipped) == 0 {
				p.gone = append(p.gone, id)
			}
		}
		if err := b.sweep(ctx, key, inventory, keep, p); err != nil {
			return err
		}
	}
	return nil
}

// inventory is which snapshots there are in the repositories that answer.
type inventory struct {
	part    Part
	ids     []string // the oldest first
	holders map[string][]*Repository
	usable  []*Repository
}

func (b *Backup) inventory(ctx context.Context, part Part, repositories []*Repository, p *Pruned) *inventory {
	v := &inventory{part: part, holders: make(map[string][]*Repository)}
	for _, r := range repositories {
		err := r.list(ctx, manifestPrefix, func(key string, _ int64) error {
			if id := strings.TrimPrefix(key, manifestPrefix); snapshotIDs.MatchString(id) {
				v.holders[id] = append(v.holders[id], r)
			}
			return nil
		})
		if err != nil {
			p.Skipped[r.Name] = err.Error()
			continue
		}
		v.usable = append(v.usable, r)
	}
	v.ids = slices.Sorted(maps.Keys(v.holders))
	return v
}

// removeManifest deletes a manifest in every repository that lets it, and returns in how many.
func (b *Backup) removeManifest(ctx context.Context, v *inventory, id string, p *Pruned) (removed int) {
	var left []*Repository
	for _, r := range v.holders[id] {
		err := r.remove(ctx, manifestPrefix+id)
		switch {
		case err == nil:
			p.Manifests++
			removed++
			continue
		case errors.Is(err, errLocked):
			p.Locked++
		default:
			p.Skipped[r.Name] = err.Error()
		}
		left = append(left, r)
	}
	v.holders[id] = left
	return removed
}

// sweep deletes the objects that no manifest needs, and extends the locks of those that one does.
func (b *Backup) sweep(ctx context.Context, key *vaultKey, v *inventory, keep map[string]kept, p *Pruned) error {
	needed := make(map[string]time.Time)
	for _, id := range v.ids {
		if len(v.holders[id]) == 0 {
			continue
		}
		m, err := readManifest(ctx, key, v.holders[id], id, b.o.Keys.EvidenceVerifiers())
		if err != nil {
			b.raise(ctx, FindingUnreadable, string(v.part), "The manifest of "+id+" cannot be read in any repository, so what it needs is not known and nothing is swept. Restore the repository, or delete the snapshot with two approvals.")
			return fmt.Errorf("nothing was swept: %w", err)
		}
		for name := range m.objects() {
			if until := keep[id].until; until.After(needed[name]) {
				needed[name] = until
			} else if _, ok := needed[name]; !ok {
				needed[name] = time.Time{}
			}
		}
	}
	b.clear(ctx, FindingUnreadable, string(v.part))
	for _, r := range v.usable {
		if err := b.sweepOne(ctx, r, needed, keep, p); err != nil {
			p.Skipped[r.Name] = err.Error()
		}
	}
	return nil
}

// sweepKey is written to learn what time it is for a repository.
const sweepKey = "sweep"

func (b *Backup) sweepOne(ctx context.Context, r *Repository, needed map[string]time.Time, keep map[string]kept, p *Pruned) error {
	if err := r.put(ctx, sweepKey, []byte("strongroom\n")); err != nil {
		return err
	}
	var now time.Time
	err := r.listAll(ctx, sweepKey, func(o *blob.ListObject) error {
		if o.Key == sweepKey {
			now = o.ModTime
		}
		return nil
	})
	if err != nil {
		return err
	}
	var longest time.Time
	for _, is := range keep {
		if is.until.After(longest) {
			longest = is.until
		}
	}
	extend := func(key string, until time.Time) error {
		longer := false
		if r.Part == Data { // keys are never locked for longer than they were at first
			if longer, err = r.extend(ctx, key, until); err != nil {
				return err
			}
		}
		if longer {
			p.Extended++
		}
		return nil
	}
	return r.listAll(ctx, "", func(o *blob.ListObject) error {
		name := o.Key[strings.LastIndexByte(o.Key, '/')+1:]
		switch {
		case strings.HasPrefix(o.Key, objectPrefix):
			if until, ok := needed[name]; ok && o.Key == objectKey(name) {
				return extend(o.Key, until)
			}
		case strings.HasPrefix(o.Key, manifestPrefix) && snapshotIDs.MatchString(name):
			return extend(o.Key, keep[name].until)
		case o.Key == headerKey:
			return extend(o.Key, longest)
		case o.Key == sweepKey, !strings.HasSuffix(o.Key, ".tmp"):
			return nil
		}
		// An object that nobody needs, or what a writer that died left of one.
		if now.IsZero() || now.Sub(o.ModTime) < b.o.Grace {
			return nil
		}
		err := r.remove(ctx, o.Key)
		if errors.Is(err, errLocked) {
			p.Locked++
			return nil
		}
		if err == nil {
			p.Objects++
			p.Bytes += o.Size
		}
		return err
	})
}

// Hold keeps a snapshot, whatever the retention says, until Release.
func (b *Backup) Hold(ctx context.Context, by actor.Actor, snapshot, reason string) error {
	e := audit.Event{Action: ActionHold, Resource: "snapshot " + snapshot, Personal: map[string]string{"reason": reason}}
	if err := b.known(ctx, snapshot); err != nil {
		e.Resource = "snapshot"
		return b.refuse(ctx, by, e, err)
	}
	if strings.TrimSpace(reason) == "" || len(reason) > 500 {
		return b.refuse(ctx, by, e, problem.New(problem.Unprocessable, "backup-reason-missing", "Say why the snapshot is held, in at most 500 bytes."))
	}
	return b.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		return putHold(ctx, tx, snapshot, reason, by.ID, clock.Micros(b.o.Clock.Now()))
	})
}

// Release ends a hold. The next Prune treats the snapshot like any other.
func (b *Backup) Release(ctx context.Context, by actor.Actor, snapshot string) error {
	e := audit.Event{Action: ActionRelease, Resource: "snapshot " + snapshot}
	if !snapshotIDs.MatchString(snapshot) {
		e.Resource = "snapshot"
	}
	return b.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		was, err := deleteHold(ctx, tx, snapshot)
		if err == nil && !was {
			return problem.New(problem.NotFound, "backup-hold-not-found", "No snapshot %q is held.", snapshot)
		}
		return err
	})
}

// refuse records a refusal that is a problem, and returns it; any other error it returns as it is.
func (b *Backup) refuse(ctx context.Context, by actor.Actor, e audit.Event, err error) error {
	var p *problem.Problem
	if errors.As(err, &p) {
		return b.o.Trail.Deny(ctx, by, e, p)
	}
	return err
}

// known returns nil when a repository for data has the snapshot.
func (b *Backup) known(ctx context.Context, snapshot string) error {
	if snapshotIDs.MatchString(snapshot) {
		_, holders, err := b.manifests(ctx, b.of(Data))
		if err != nil {
			return err
		}
		if len(holders[snapshot]) > 0 {
			return nil
		}
	}
	return problem.New(problem.NotFound, "backup-not-found", "There is no snapshot %q in the repositories.", snapshot)
}

// Delete deletes a snapshot before its time: its manifest at once, its objects at the next Prune after the
// grace. It takes two approvals of "delete" and the snapshot's id, or, with locked, of "unlock" and the
// id, which also deletes copies under a lock in the mode Governance. A snapshot that is held cannot be
// deleted.
func (b *Backup) Delete(ctx context.Context, by actor.Actor, snapshot string, locked bool) error {
	b.taking.Lock()
	defer b.taking.Unlock()
	e := audit.Event{Action: ActionDelete, Resource: "snapshot " + snapshot}
	if err := b.known(ctx, snapshot); err != nil {
		e.Resource = "snapshot"
		return b.refuse(ctx, by, e, err)
	}
	deed := "delete " + snapshot
	if locked {
		deed = "unlock " + snapshot
	}
	err := b.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		held, err := readHolds(ctx, tx)
		if err != nil {
			return err
		}
		if held[snapshot] {
			return problem.New(problem.Conflict, "backup-held", "The snapshot %s is held. Release it first.", snapshot)
		}
		_, err = b.o.Approvals.Spend(ctx, tx, deed)
		return err
	})
	if err != nil {
		return err
	}
	b.raise(ctx, FindingEarlyDeletion, snapshot, "A snapshot was deleted before its time, with two approvals. See that this was meant, and by whom, in the trail.")
	var failed []error
	for _, r := range b.of(Data) {
		err := r.remove(ctx, manifestPrefix+snapshot)
		if locked && errors.Is(err, errLocked) {
			err = r.removeVersions(ctx, manifestPrefix+snapshot, true)
		}
		failed = append(failed, err)
	}
	if err := errors.Join(failed...); err != nil {
		p := problem.New(problem.Unavailable, "backup-delete-incomplete", "The snapshot %s is not deleted everywhere: a repository did not answer, or holds it under a lock. The approvals are used up.", snapshot).Because(err)
		return b.o.Trail.Deny(ctx, by, e, p)
	}
	// Nothing needs its keys any more, and nobody misses it.
	return b.o.DB.Update(ctx, func(tx *db.Tx) error {
		return markPruned(ctx, tx, []string{snapshot}, clock.Micros(b.o.Clock.Now()))
	})
}

// Leave has a restored installation begin without snapshots: those that its history knows lie in the
// repositories of the installation that was copied, and are none of this one's.
func Leave(ctx context.Context, tx *db.Tx, at time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE backup_run SET pruned_at = $1 WHERE pruned_at IS NULL`, clock.Micros(at))
	return err
}
