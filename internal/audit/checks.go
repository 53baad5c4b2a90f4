package audit

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
)

const (
	// sampled is how many events CheckInclusion looks at.
	sampled = 20
	// longestWait is for how long an event may wait for its place in the log.
	longestWait = 30 * time.Second
)

// CheckConsistency holds the two newest checkpoints against each other and against their signatures: the
// older log must be the beginning of the newer.
func (t *Trail) CheckConsistency(ctx context.Context) check.Observation {
	return t.onceBegun(ctx, t.checkConsistency)
}

// onceBegun gives a log that has just begun its next checkpoint when the check finds nothing to look at.
func (t *Trail) onceBegun(ctx context.Context, look func(ctx context.Context) check.Observation) check.Observation {
	seen := look(ctx)
	if seen.Outcome != check.Unknown {
		return seen
	}
	if _, err := t.Sequence(ctx); err != nil {
		return seen
	}
	return look(ctx)
}

func (t *Trail) checkConsistency(ctx context.Context) check.Observation {
	did := "verified the signatures of the two newest checkpoints and the consistency proof between them (RFC 6962 section 2.1.2)"
	seen := check.Undecided(did, "There are no two checkpoints yet.")
	err := t.db.View(ctx, func(tx *db.Tx) error {
		var sizes []int64
		rows, err := tx.Query(ctx, `SELECT size FROM log_checkpoint WHERE size > $1 ORDER BY size DESC LIMIT 2`, 0)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var n int64
			if err := rows.Scan(&n); err != nil {
				return err
			}
			sizes = append(sizes, n)
		}
		if err := rows.Err(); err != nil || len(sizes) < 2 {
			return err
		}
		list, err := selectCheckpoints(ctx, tx, sizes[1]-1, sizes[0])
		if err != nil || len(list) < 2 {
			return err
		}
		older, newer := t.checkCheckpoint(list[0]), t.checkCheckpoint(list[len(list)-1])
		for _, c := range []checkedCheckpoint{older, newer} {
			if c.err != nil {
				seen = check.Failed(did, "A checkpoint is not as it was signed: %v", c.err)
				return nil
			}
		}
		proof, err := tlog.ProveTree(newer.tree.N, older.tree.N, tlog.TileHashReader(newer.tree, tileReader{ctx, tx}))
		if err == nil {
			err = tlog.CheckTree(proof, newer.tree.N, newer.tree.Hash, older.tree.N, older.tree.Hash)
		}
		if err != nil {
			seen = check.Failed(did, "The log of %d events is not the beginning of the log of %d: %v", older.tree.N, newer.tree.N, err)
			return nil
		}
		seen = check.Held(did, "The log of %d events is the beginning of the log of %d.", older.tree.N, newer.tree.N).With("events", newer.tree.N)
		return nil
	})
	if err != nil {
		return check.Undecided(did, "The database did not answer: %v", err)
	}
	return seen
}

// CheckInclusion takes events at random and proves from the database that each is in the signed log.
func (t *Trail) CheckInclusion(ctx context.Context) check.Observation {
	return t.onceBegun(ctx, t.checkInclusion)
}

func (t *Trail) checkInclusion(ctx context.Context) check.Observation {
	did := "took events at random, recomputed their leaves from their rows, and checked their inclusion proofs against the signed checkpoint"
	var ids []string
	err := t.db.View(ctx, func(tx *db.Tx) error {
		h, err := selectHead(ctx, tx)
		if err != nil || h.size == 0 {
			return err
		}
		for range sampled {
			var id string
			if err := tx.QueryRow(ctx, `SELECT event_id FROM event_leaf WHERE idx >= $1 ORDER BY idx LIMIT 1`, rand.Int64N(h.size)).Scan(&id); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return check.Undecided(did, "The events could not be read: %v", err)
	}
	if len(ids) == 0 {
		return check.Undecided(did, "The log is empty.")
	}
	for _, id := range ids {
		proof, err := t.prove(ctx, id)
		if err == nil {
			_, err = proof.Check(t.keys.CheckpointVerifiers())
		}
		if err != nil {
			return check.Failed(did, "The event %s is not in the log as it stands in the database: %v", id, err)
		}
	}
	return check.Held(did, "%d of %d events are in the log.", len(ids), len(ids)).With("sample", len(ids))
}

// CheckSequenced sees that no event waits long for its place, and that the log has as many as places.
func (t *Trail) CheckSequenced(ctx context.Context) check.Observation {
	did := "looked for events that wait for their place in the log, and counted places"
	var oldest, waiting, places, size int64
	err := t.db.View(ctx, func(tx *db.Tx) error {
		err := tx.QueryRow(ctx, `
			SELECT COUNT(*), COALESCE(MIN(e.made_at), 0) FROM event_pending p JOIN event e ON e.id = p.event_id
			WHERE e.made_at >= $1`, 0).Scan(&waiting, &oldest)
		if err != nil {
			return err
		}
		h, err := selectHead(ctx, tx)
		if err != nil {
			return err
		}
		size = h.size
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM event_leaf WHERE idx >= $1`, 0).Scan(&places)
	})
	if err != nil {
		return check.Undecided(did, "The database did not answer: %v", err)
	}
	if places < size {
		return check.Failed(did, "The log has %d events and %d places: some were taken away.", size, places)
	}
	if waited := t.clock.Now().Sub(clock.FromMicros(oldest)); waiting > 0 && waited > longestWait {
		return check.Failed(did, "An event waits for its place for %s.", waited.Round(time.Second)).With("waiting", waiting)
	}
	return check.Held(did, "All events are in the log but %d of the last seconds.", waiting).With("events", size).With("waiting", waiting)
}

// Vouches reports whether the trail has that event as Strongroom wrote it: its row is authenticated, and says
// that action of that resource. It is for rows that an event has the digest of.
func (t *Trail) Vouches(ctx context.Context, tx *db.Tx, event, action, resource string) (bool, error) {
	p, found, err := selectOne(ctx, tx, event)
	if err != nil || !found {
		return false, err
	}
	return p.action == action && p.resource == resource && t.authentic(&p.row, p.appendLeaf(nil)) == nil, nil
}

// After reports whether the log has the second event, and the first at a later place or waiting for one.
func (t *Trail) After(ctx context.Context, tx *db.Tx, first, second string) (bool, error) {
	var n int64
	err := tx.QueryRow(ctx, `
		SELECT COUNT(*) FROM event_leaf s WHERE s.event_id = $2
			AND NOT EXISTS (SELECT 1 FROM event_leaf f WHERE f.event_id = $1 AND f.idx <= s.idx)`, first, second).Scan(&n)
	return n > 0, err
}

// Since calls each with the events of an action that are findable and were made at a time, in Unix microseconds,
// or later; the newest comes first. It leaves no event, and the rows are as the database has them: Vouches says
// of one whether Strongroom wrote it.
func (t *Trail) Since(ctx context.Context, tx *db.Tx, action string, since int64, each func(event, resource string, madeAt int64)) error {
	rows, err := tx.Query(ctx, `
		SELECT e.id, e.resource, s.made_at FROM event_search s JOIN event e ON e.id = s.event_id
		WHERE s.action = $1 AND s.action <> 0 AND s.made_at >= $2 AND e.action = $3
		ORDER BY s.made_at DESC, s.idx DESC`, term("action", action), since, action)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var event, resource string
		var madeAt int64
		if err := rows.Scan(&event, &resource, &madeAt); err != nil {
			return err
		}
		each(event, resource, madeAt)
	}
	return rows.Err()
}

// searched is how many events CheckSearch looks for.
const searched = 5

// CheckSearch takes events at random and searches for each, which has to find it.
func (t *Trail) CheckSearch(ctx context.Context) check.Observation {
	did := "took events at random from the log and searched for each by what was done and when"
	type wanted struct {
		id, action string
		madeAt     int64
	}
	var all []wanted
	for range 2 {
		err := t.db.View(ctx, func(tx *db.Tx) error {
			all = nil
			indexed, err := selectIndexed(ctx, tx)
			if err != nil || indexed == 0 {
				return err
			}
			for range searched {
				var w wanted
				err := tx.QueryRow(ctx, `
					SELECT e.id, e.action, e.made_at FROM event_leaf l JOIN event e ON e.id = l.event_id
					WHERE l.idx < $1 AND l.idx >= $2 ORDER BY l.idx LIMIT 1`, indexed, rand.Int64N(indexed)).Scan(&w.id, &w.action, &w.madeAt)
				if err != nil {
					return err
				}
				all = append(all, w)
			}
			return nil
		})
		if err != nil {
			return check.Undecided(did, "The events could not be read: %v", err)
		}
		if len(all) > 0 {
			break
		}
		if err := t.IndexAll(ctx); err != nil { // a log that has just begun
			return check.Undecided(did, "No event is findable yet: %v", err)
		}
	}
	if len(all) == 0 {
		return check.Undecided(did, "The log is empty.")
	}
	for _, w := range all {
		page, err := t.Search(nil).Run(ctx, actor.From(ctx), Query{Action: w.action, From: w.madeAt, To: w.madeAt + 1}, Ask{Limit: 500})
		if err != nil {
			return check.Undecided(did, "The trail could not be searched: %v", err)
		}
		if !slices.ContainsFunc(page.Events, func(f Found) bool { return f.ID == w.id }) {
			return check.Failed(did, "The event %s is in the log, and a search does not find it.", w.id)
		}
	}
	return check.Held(did, "%d of %d events were found.", len(all), len(all)).With("sample", len(all))
}

// Begins reports whether the log of that size and root (base64) is the beginning of the log as tx sees it: what
// was copied or published once must be.
func (t *Trail) Begins(ctx context.Context, tx *db.Tx, size int64, root string) (bool, error) {
	h, err := selectHead(ctx, tx)
	if err != nil {
		return false, err
	}
	tree, err := t.headTree(h)
	if err != nil {
		return false, err
	}
	hash, err := tlog.ParseHash(root)
	if err != nil || size < 0 || size > tree.N {
		return false, nil
	}
	return extends(tlog.Tree{N: size, Hash: hash}, tlog.TileHashReader(tree, tileReader{ctx, tx}))
}
