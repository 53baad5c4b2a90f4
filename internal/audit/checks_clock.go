package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// reading is what the clocks of this machine said at one instant.
type reading struct {
	wall      time.Time
	raw, boot time.Duration
}

// driftLimit is how much slower or faster the clock may run than the machine's oscillator. That is off by some
// ten parts in a million; 500 is the most that NTP corrects without a step.
const driftLimit = 500e-6

// anchor is the reading that the clock is held against: that of the check before, or of the process's beginning.
type anchor struct {
	mu sync.Mutex
	reading
}

func (t *Trail) readClocks() (r reading, err error) {
	before := t.clock.Now()
	r.raw, r.boot, err = steady()
	after := t.clock.Now()
	r.wall = before.Add(after.Sub(before) / 2)
	return r, err
}

// off returns how much more time passed by the wall clock than by the oscillator, and how much passed at all.
func (r reading) off(since reading) (off, passed time.Duration) {
	wall, raw, boot := r.wall.Sub(since.wall), r.raw-since.raw, r.boot-since.boot
	if boot-raw > time.Second { // the machine slept, and the oscillator did not count it
		raw = boot
	}
	return wall - raw, raw
}

// CheckClock holds the clock that events are dated by against evidence that NTP does not touch: against the
// machine's oscillator, and against the times in the log, which was signed in its order.
func (t *Trail) CheckClock(ctx context.Context) check.Observation {
	did := "compared how long it was since the last look by the clock and by the machine's oscillator, and the times of the newest checkpoints with each other and with the clock"
	now, err := t.readClocks()
	if err != nil {
		return check.Undecided(did, "The machine's oscillator could not be read: %v", err)
	}
	t.anchor.mu.Lock()
	before := t.anchor.reading
	t.anchor.reading = now
	t.anchor.mu.Unlock()
	off, passed := now.off(before)
	if allowed := t.clockLimit + time.Duration(float64(passed)*driftLimit); off.Abs() > allowed {
		return check.Failed(did, "The clock was set by %s within the last %s.", off.Round(time.Millisecond), passed.Round(time.Second)).
			With("off_ms", off.Milliseconds()).With("passed_seconds", int(passed.Seconds()))
	}
	var later int64
	n := 0
	err = t.db.View(ctx, func(tx *db.Tx) error {
		later, n = 0, 0
		rows, err := tx.Query(ctx, `SELECT made_at FROM log_checkpoint WHERE size > $1 ORDER BY size DESC LIMIT 200`, 0)
		if err != nil {
			return err
		}
		defer rows.Close()
		next := clock.Micros(now.wall)
		for ; rows.Next(); n++ {
			var at int64
			if err := rows.Scan(&at); err != nil {
				return err
			}
			later = max(later, at-next)
			next = at
		}
		return rows.Err()
	})
	if err != nil {
		return check.Undecided(did, "The checkpoints could not be read: %v", err)
	}
	if back := time.Duration(later) * time.Microsecond; back > t.clockLimit {
		return check.Failed(did, "A checkpoint is dated %s later than the one after it, or than now.", back.Round(time.Millisecond)).With("back_ms", back.Milliseconds())
	}
	return check.Held(did, "Within the last %s they were %s apart; the %d newest checkpoints are in order.", passed.Round(time.Second), off.Abs().Round(time.Millisecond), n).
		With("off_ms", off.Milliseconds()).With("passed_seconds", int(passed.Seconds())).With("checkpoints", n)
}

// Detector reports an error when a proof does not hold.
type Detector func(Proof) error

// Detects is how this trail sees that a proof was altered.
func (t *Trail) Detects(p Proof) error {
	_, err := p.Check(t.keys.CheckpointVerifiers())
	return err
}

// CheckDetector takes proofs of events at random, alters a copy of each in every field and hash, and sees that
// each alteration is detected, and that what was not altered is not.
func (t *Trail) CheckDetector(ctx context.Context, detect Detector) check.Observation {
	return t.onceBegun(ctx, func(ctx context.Context) check.Observation { return t.checkDetector(ctx, detect) })
}

func (t *Trail) checkDetector(ctx context.Context, detect Detector) check.Observation {
	did := "took proofs of events at random, altered copies of each in the event, in every hash, in its place and in the checkpoint, and had each checked"
	var ids []string
	err := t.db.View(ctx, func(tx *db.Tx) error {
		ids = nil
		h, err := selectHead(ctx, tx)
		if err != nil || h.size < 2 { // the proof of an only event has no hashes
			return err
		}
		for range 3 {
			var id string
			if err := tx.QueryRow(ctx, `SELECT event_id FROM event_leaf WHERE idx >= $1 ORDER BY idx LIMIT 1`, rand.Int64N(h.size)).Scan(&id); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil || len(ids) == 0 {
		return check.Undecided(did, "No events could be read: %v", err)
	}
	altered := 0
	for _, id := range ids {
		proof, err := t.prove(ctx, id)
		if err != nil {
			return check.Undecided(did, "An event could not be proven: %v", err)
		}
		if err := detect(proof); err != nil {
			return check.Failed(did, "A proof that was not altered is taken for altered: %v", err)
		}
		copies, err := alterations(proof)
		if err != nil {
			return check.Undecided(did, "A copy could not be altered: %v", err)
		}
		for what, other := range copies {
			if detect(other) == nil {
				return check.Failed(did, "A copy with another %s is taken for what was signed.", what)
			}
			altered++
		}
	}
	return check.Held(did, "All of %d alterations were noticed.", altered).With("alterations", altered)
}

// alteredEvery is how many bytes of an event are between two that are altered.
const alteredEvery = 8

// alterations returns copies of the proof, each of which says something else than the log.
func alterations(p Proof) (map[string]Proof, error) {
	all := make(map[string]Proof)
	for k := rand.IntN(alteredEvery); k < len(p.Leaf); k += alteredEvery {
		other, leaf := p, []byte(p.Leaf)
		leaf[k] ^= 1
		other.Leaf = string(leaf)
		all[fmt.Sprintf("byte %d of the event", k)] = other
	}
	for k := range p.Hashes {
		other := p
		other.Hashes = slices.Clone(p.Hashes)
		other.Hashes[k][0] ^= 1
		all[fmt.Sprintf("hash %d", k)] = other
	}
	// The root is the third line of a checkpoint (C2SP tlog-checkpoint).
	lines := strings.SplitN(p.Checkpoint, "\n", 4)
	if len(lines) != 4 || lines[2] == "" {
		return nil, errors.New("the checkpoint has no root")
	}
	first := "A"
	if lines[2][0] == 'A' {
		first = "B"
	}
	lines[2] = first + lines[2][1:]
	other := p
	other.Checkpoint = strings.Join(lines, "\n")
	all["root"] = other
	moved := p
	moved.Index++
	all["place"] = moved
	return all, nil
}
