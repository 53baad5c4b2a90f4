package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
)

// The findings about backups.
const (
	FindingOverdue    = "backup.overdue"      // the newest snapshot that counts is older than the schedule allows
	FindingIncomplete = "backup.incomplete"   // a snapshot lies on fewer media than asked for, or none was stored
	FindingDrill      = "backup.drill-failed" // a restore for practice failed
)

// The names of the jobs.
const (
	JobSnapshot   = "backup.snapshot"
	JobKeys       = "backup.keys" // woken by an erasure
	JobContinuous = "backup.continuous"
	JobDrill      = "backup.drill"
	JobWatch      = "backup.watch"
)

// Schedule says when snapshots and drills are due.
type Schedule struct {
	Daily      time.Duration // since midnight UTC
	Every      time.Duration // between increments; 0 means daily only
	Continuous time.Duration // least time between looks for changes; 0 means none
	DrillEvery time.Duration // 0 means none
}

// look is how often the jobs ask whether something is due.
const look = time.Minute

// continuousShare bounds how much of the time continuous snapshots take: one part in so many.
const continuousShare = 10

var system = actor.OfSystem("backup")

// Jobs returns the jobs that keep the copies up to date. open returns the Backup, whose repositories may be
// others from run to run; configured says that there are any. wake wakes a job.
func Jobs(s Schedule, engine db.Engine, configured bool, open func(ctx context.Context) (*Backup, error), drill func(ctx context.Context) error, wake func(job string)) []jobs.Job {
	with := func(run func(b *Backup, ctx context.Context) error) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			b, err := open(ctx)
			if err != nil {
				return err
			}
			return run(b, ctx)
		}
	}
	all := []jobs.Job{{Name: JobWatch, Every: look, Quiet: true, Leased: true, Run: with((*Backup).watch)}}
	if !configured {
		return all
	}
	all = append(all,
		jobs.Job{Name: JobSnapshot, Every: look, Quiet: true, Leased: true, Run: with(func(b *Backup, ctx context.Context) error {
			err := b.whenDue(ctx)
			wake(JobDrill) // the first snapshot is tried at once
			return err
		})},
		jobs.Job{Name: JobKeys, Every: look, Quiet: true, Leased: true, Run: with(func(b *Backup, ctx context.Context) error { return b.RefreshKeys(ctx, system) })})
	if s.Continuous > 0 && engine == db.SQLite {
		all = append(all, jobs.Job{Name: JobContinuous, Every: s.Continuous, Quiet: true, Leased: true, Run: with((*Backup).whenChanged)})
	}
	if s.DrillEvery > 0 {
		all = append(all, jobs.Job{Name: JobDrill, Every: look, Quiet: true, Leased: true, Run: with(func(b *Backup, ctx context.Context) error {
			due, err := b.drillDue(ctx)
			if err != nil || !due {
				return err
			}
			return drill(ctx)
		})})
	}
	return all
}

// runs returns the newest runs of snapshots, the newest first.
func (b *Backup) runs(ctx context.Context, limit int) (all []run, err error) {
	err = b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		all, err = selectRuns(ctx, tx, limit)
		return err
	})
	return slices.DeleteFunc(all, func(r run) bool { return r.class == classKeys }), err
}

// due returns when the next snapshot is due, and its class.
func (s Schedule) due(runs []run, now time.Time) (time.Time, string) {
	midnight := now.UTC().Truncate(24 * time.Hour)
	daily := midnight.Add(s.Daily)
	if now.Before(daily) {
		daily = daily.Add(-24 * time.Hour)
	}
	var lastDaily, last time.Time
	for _, r := range runs {
		at := clock.FromMicros(r.started)
		if r.outcome != "kept" || at.After(now) { // of a clock that was ahead: it says nothing of when the next is due
			continue
		}
		if at.After(last) {
			last = at
		}
		if r.class == ClassDaily && at.After(lastDaily) {
			lastDaily = at
		}
	}
	switch {
	case last.IsZero():
		return now, ClassDaily // there is none at all
	case lastDaily.Before(daily) && (!last.After(daily) || !lastDaily.IsZero()):
		return daily, ClassDaily
	}
	next, class := daily.Add(24*time.Hour), ClassDaily
	if s.Every > 0 && last.Add(s.Every).Before(next) {
		next, class = last.Add(s.Every), ClassHourly
	}
	return next, class
}

// recent is how many runs are looked at to decide what is due: more than a day of increments.
const recent = 2000

// retryAfter is how long a snapshot that did not count waits for the next try.
const retryAfter = 10 * time.Minute

func (b *Backup) whenDue(ctx context.Context) error {
	runs, err := b.runs(ctx, recent)
	if err != nil {
		return err
	}
	now := b.o.Clock.Now()
	at, class := b.o.Schedule.due(runs, now)
	if now.Before(at) {
		return nil
	}
	if tried := lastTried(runs, now); tried != nil && tried.outcome != "kept" && now.Sub(clock.FromMicros(tried.ended)) < retryAfter {
		return nil
	}
	if _, err = b.Take(ctx, system, Taking{Class: class}); err == nil && class == ClassDaily {
		_, err = b.Prune(ctx, system) // only after one that counts
	}
	return err
}

// lastTried returns the newest run that ended by now, or nil.
func lastTried(runs []run, now time.Time) *run {
	for i := range runs {
		if !clock.FromMicros(runs[i].ended).After(now) {
			return &runs[i]
		}
	}
	return nil
}

// newestKept returns when the newest snapshot that counts began; zero when there is none.
func newestKept(runs []run, now time.Time) (newest time.Time) {
	for _, r := range runs {
		if at := clock.FromMicros(r.started); r.outcome == "kept" && at.After(newest) && !at.After(now) {
			newest = at
		}
	}
	return newest
}

// drillRetry is how long a drill that failed waits for the next try.
const drillRetry = time.Hour

// drillDue reports whether it is time to restore for practice: there is a snapshot that counts, and the last
// drill is as old as the schedule says.
func (b *Backup) drillDue(ctx context.Context) (bool, error) {
	now := b.o.Clock.Now()
	runs, err := b.runs(ctx, recent)
	if err != nil || newestKept(runs, now).IsZero() {
		return false, err
	}
	var d *Drill
	err = b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		d, err = selectDrill(ctx, tx, now)
		return err
	})
	if err != nil || d == nil {
		return err == nil, err
	}
	wait := b.o.Schedule.DrillEvery
	if len(d.Failed) > 0 {
		wait = min(wait, drillRetry)
	}
	return now.Sub(d.Started) >= wait, nil
}

// pace is the longest time between two snapshots, when all goes well.
func (s Schedule) pace() time.Duration {
	if s.Every > 0 {
		return s.Every
	}
	return 24 * time.Hour
}

// overdue is the age from which on the newest snapshot, or drill, is a finding.
func overdue(pace time.Duration) time.Duration { return 2*pace + time.Hour }

// whenChanged takes a snapshot when the trail has grown by more than the last one's own events: every
// change of anything leaves an event.
func (b *Backup) whenChanged(ctx context.Context) error {
	runs, err := b.runs(ctx, recent)
	if err != nil {
		return err
	}
	now := b.o.Clock.Now()
	last := lastTried(runs, now)
	if last == nil {
		return nil // the first is whenDue's
	}
	if took := time.Duration(last.ended-last.started) * time.Microsecond; now.Sub(clock.FromMicros(last.ended)) < took*continuousShare {
		return nil
	}
	changed := false
	err = b.o.DB.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `
			SELECT EXISTS (SELECT 1 FROM event_leaf l JOIN event e ON e.id = l.event_id WHERE l.idx >= $1 AND e.action NOT LIKE $2)`,
			last.figures.TreeSize, "backup.%").Scan(&changed)
	})
	if err != nil || !changed {
		return err
	}
	_, err = b.Take(ctx, system, Taking{Class: ClassContinuous})
	return err
}

// watch raises the finding that the newest snapshot is too old: twice its pace, and an hour.
func (b *Backup) watch(ctx context.Context) error {
	if b.o.Findings == nil {
		return nil
	}
	if len(b.o.Repositories) == 0 {
		if b.o.DB.Environment() == "dev" {
			return nil
		}
		return b.o.Findings.Raise(ctx, FindingOverdue, "", "No repositories are named in backup.repositories: nothing is copied anywhere.")
	}
	runs, err := b.runs(ctx, recent)
	if err != nil {
		return err
	}
	now := b.o.Clock.Now()
	pace, newest := b.o.Schedule.pace(), newestKept(runs, now)
	switch {
	case newest.IsZero() && len(runs) == 0:
		return nil // the first is about to be taken
	case newest.IsZero():
		return b.o.Findings.Raise(ctx, FindingOverdue, "", "No snapshot has ever counted. See strongroom backup list, mend the repositories, and run strongroom backup run.")
	case now.Sub(newest) > overdue(pace):
		return b.o.Findings.Raise(ctx, FindingOverdue, "", fmt.Sprintf("The newest snapshot is of %s; one is due every %v. See strongroom backup list.", newest.UTC().Format(time.RFC3339), pace))
	}
	return b.o.Findings.Clear(ctx, FindingOverdue, "")
}

// Estimate is what the next run will probably be.
type Estimate struct {
	At       time.Time     `json:"at"` // zero when nothing is scheduled
	Class    string        `json:"class"`
	Took     time.Duration `json:"took_ns"`
	NewBytes int64         `json:"new_bytes"`
}

// estimate takes the median of the last runs that counted, of the same class when there are some.
func (s Schedule) estimate(runs []run, now time.Time) Estimate {
	var e Estimate
	e.At, e.Class = s.due(runs, now)
	var took, size []int64
	for _, same := range []bool{true, false} {
		for _, r := range runs {
			if r.outcome == "kept" && (!same || r.class == e.Class) && len(took) < 9 {
				took, size = append(took, r.ended-r.started), append(size, r.figures.NewBytes)
			}
		}
		if len(took) > 0 {
			break
		}
	}
	if len(took) > 0 {
		slices.Sort(took)
		slices.Sort(size)
		e.Took, e.NewBytes = time.Duration(took[len(took)/2])*time.Microsecond, size[len(size)/2]
	}
	return e
}

// keptKeysNeed is for how many of the newest runs a KEK counts as needed: those whose keys are kept.
const keptKeysNeed = keptKeys

// Needed says which snapshot still needs a version of a key; "" is none. A KEK is needed by the copies of
// the keys that are kept, everything else by every snapshot that was not deleted. It is the keyring's
// Options.Needed.
func Needed(ctx context.Context, tx *db.Tx, name string, version uint32) (string, error) {
	limit := 1 << 30
	if name == "kek" {
		limit = keptKeysNeed
	}
	rows, err := tx.Query(ctx, `
		SELECT id, needs FROM backup_run WHERE pruned_at IS NULL AND outcome <> $1
		ORDER BY started_at DESC, id DESC LIMIT $2`, "failed", limit)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	for rows.Next() {
		var id, text string
		if err := rows.Scan(&id, &text); err != nil {
			return "", err
		}
		var needs map[string][]uint32
		if err := json.Unmarshal([]byte(text), &needs); err != nil {
			return "", err
		}
		if slices.Contains(needs[name], version) {
			return "the backup " + id, rows.Err()
		}
	}
	return "", rows.Err()
}
