package audit

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
)

// The order of events is that of the log; within a process their ids and times only grow, whatever its clock
// does. Their times are worth as much as the servers' clocks, so those are compared: each with the database's,
// through that with each other, and with the newest checkpoint, which none should be behind.

// FindingClockSkew is the kind of the finding that clocks are too far apart.
const FindingClockSkew = "audit.clock-skew"

// Findings keeps what is wrong until it is not. Package finding is behind it.
type Findings interface {
	// Raise says that something is wrong; to say it again changes nothing but the detail.
	Raise(ctx context.Context, kind, subject, detail string) error
	// Clear says that it no longer is.
	Clear(ctx context.Context, kind, subject string) error
}

const (
	// clockEvery is how often a server looks at its clock.
	clockEvery = 15 * time.Second
	// clockCurrent is for how long what a server saw counts, and clockKept how long it is kept.
	clockCurrent = time.Minute
	clockKept    = time.Hour
	// DefaultClockLimit is how far clocks may be apart when Options.ClockLimit does not say.
	DefaultClockLimit = 2 * time.Second
)

// ClockJob returns the job with which every server compares its clock.
func (t *Trail) ClockJob() jobs.Job {
	return jobs.Job{Name: "audit.clock", Every: clockEvery, Run: t.CompareClocks, Quiet: true}
}

// serverClock is how far a server's clock is ahead of the database's.
type serverClock struct {
	holder string
	ahead  time.Duration
}

// CompareClocks measures this server's clock against the database's, leaves the result for the others, and
// compares it with theirs. More than Options.ClockLimit apart is a finding.
func (t *Trail) CompareClocks(ctx context.Context) error {
	ahead, now, err := t.ahead(ctx)
	if err != nil {
		return err
	}
	var all []serverClock
	var newest int64
	err = t.db.Update(ctx, func(tx *db.Tx) (err error) {
		if err := upsertClock(ctx, tx, serverClock{t.holder, ahead}, clock.Micros(now)); err != nil {
			return err
		}
		if all, err = selectClocks(ctx, tx, clock.Micros(now.Add(-clockCurrent))); err != nil {
			return err
		}
		newest, err = selectNewestCheckpointTime(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	// The database's own clock is one of them.
	all = append(all, serverClock{"the database", 0})
	byAhead := func(a, b serverClock) int { return cmp.Compare(a.ahead, b.ahead) }
	first, last := slices.MaxFunc(all, byAhead), slices.MinFunc(all, byAhead)
	skew := first.ahead - last.ahead
	detail := fmt.Sprintf("the clock of %s is %v ahead of that of %s", first.holder, skew.Round(time.Millisecond), last.holder)
	if behind := clock.FromMicros(newest).Sub(t.clock.Now()); behind > skew {
		skew = behind
		detail = fmt.Sprintf("the clock of %s is %v behind the newest checkpoint", t.holder, skew.Round(time.Millisecond))
	}
	t.metrics.skew.Set(skew.Seconds())
	if skew <= t.clockLimit {
		t.skewed.Store(false)
		if t.findings != nil {
			return t.findings.Clear(ctx, FindingClockSkew, "servers")
		}
		return nil
	}
	if !t.skewed.Swap(true) {
		t.log.WarnContext(ctx, "clocks are apart: the times of events cannot be compared", "detail", detail, "limit", t.clockLimit)
	}
	if t.findings != nil {
		return t.findings.Raise(ctx, FindingClockSkew, "servers", detail)
	}
	return nil
}

// ahead returns how far this server's clock is ahead of the database's, and the database's time: of three
// looks that which took the shortest, as its answer is the least old.
func (t *Trail) ahead(ctx context.Context) (ahead time.Duration, now time.Time, err error) {
	best := time.Duration(-1)
	for range 3 {
		began, before := time.Now(), t.clock.Now()
		theirs, err := t.db.Now(ctx)
		if err != nil {
			return 0, now, err
		}
		took := time.Since(began)
		if best < 0 || took < best {
			best, ahead, now = took, before.Add(took/2).Sub(theirs), theirs
		}
	}
	return ahead, now, nil
}

func upsertClock(ctx context.Context, tx *db.Tx, c serverClock, at int64) error {
	if _, err := tx.Exec(ctx, `DELETE FROM server_clock WHERE looked_at < $1`, at-clockKept.Microseconds()); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO server_clock (holder, ahead, looked_at) VALUES ($1, $2, $3)
		ON CONFLICT (holder) DO UPDATE SET ahead = excluded.ahead, looked_at = excluded.looked_at`, c.holder, c.ahead.Microseconds(), at)
	return err
}

func selectClocks(ctx context.Context, tx *db.Tx, since int64) ([]serverClock, error) {
	rows, err := tx.Query(ctx, `SELECT holder, ahead FROM server_clock WHERE looked_at >= $1 ORDER BY holder LIMIT 1000`, since)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []serverClock
	for rows.Next() {
		var c serverClock
		var us int64
		if err := rows.Scan(&c.holder, &us); err != nil {
			return nil, err
		}
		c.holder, c.ahead = clean(c.holder, maxField), time.Duration(us)*time.Microsecond
		list = append(list, c)
	}
	return list, rows.Err()
}

// selectNewestCheckpointTime returns when the newest checkpoint was signed; 0 without one.
func selectNewestCheckpointTime(ctx context.Context, tx *db.Tx) (at int64, err error) {
	err = tx.QueryRow(ctx, `SELECT made_at FROM log_checkpoint ORDER BY size DESC LIMIT 1`).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return at, err
}
