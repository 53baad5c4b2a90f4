package audit

import (
	"context"
	"fmt"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ActionAcceptRestore is recorded when an operator declares that a backup was put back on purpose.
const ActionAcceptRestore = "audit.restore.accept"

// Accepted says what AcceptRestore has given up.
type Accepted struct {
	Size int64 `json:"size"` // of the checkpoint that holds from now on
	Seen int64 `json:"seen"` // of the one that was seen before, and is given up
}

// AcceptRestore declares that the database was put back to a backup on purpose: at is the last
// checkpoint of the backup, and the log as it is now has to continue it. What this process and its
// Options.Remember have seen beyond is given up; the event says which checkpoint that was, so that
// nobody hides a lost stretch of the log behind it. Every server that has seen more has to be told.
//
// Witnesses have seen what they have seen: they refuse the log from here on, since to those who rely
// on them it was forked. Only the system may accept. It fails with the problem "restore-not-needed" when
// the log continues all that was seen, and "checkpoint-unknown" when the log does not have at.
func (t *Trail) AcceptRestore(ctx context.Context, by actor.Actor, at tlog.Tree) (Accepted, error) {
	e := Event{Action: ActionAcceptRestore, Resource: "checkpoint " + sizeRoot(at)}
	if p := mayInspect(by); p != nil {
		return Accepted{}, t.Deny(ctx, by, e, p)
	}
	s := &t.sequencer
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	if kept, _, err := t.remembered(); err == nil && kept.N > seen.N {
		seen = kept
	}
	e.Resource += " instead of " + sizeRoot(seen)
	var now string
	err := t.Do(ctx, by, e, func(tx *db.Tx, e *Event) error {
		h, err := selectHead(ctx, tx)
		if err != nil {
			return err
		}
		tree, err := t.headTree(h)
		if err != nil {
			return err
		}
		reader := tlog.TileHashReader(tree, tileReader{ctx, tx})
		if at.N > tree.N {
			return errUnknownCheckpoint
		}
		if ok, err := extends(at, reader); err != nil {
			return tampered(err)
		} else if !ok {
			return errUnknownCheckpoint
		}
		if seen.N <= tree.N {
			ok, err := seen.N == 0, error(nil)
			if !ok {
				ok, err = extends(seen, reader)
			}
			if err != nil {
				return tampered(err)
			}
			if ok {
				return problem.New(problem.Conflict, "restore-not-needed",
					"The log continues everything that was seen of it here: there is nothing to accept.")
			}
		}
		rows, err := selectCheckpoints(ctx, tx, at.N-1, at.N)
		if err != nil {
			return err
		}
		if len(rows) != 1 || t.checkCheckpoint(rows[0]).err != nil || rows[0].root != at.Hash.String() {
			return errUnknownCheckpoint
		}
		now = rows[0].note
		return nil
	})
	if err != nil {
		return Accepted{}, err
	}
	if t.remember != nil {
		if err := t.remember.Store([]byte(now)); err != nil {
			return Accepted{}, fmt.Errorf("audit: the restore is on record, but the remembered checkpoint was not replaced: %w", err)
		}
	}
	s.seen, s.signed, s.edge, s.kept, s.loaded = at, []byte(now), nil, at, true
	return Accepted{Size: at.N, Seen: seen.N}, nil
}

var errUnknownCheckpoint = problem.New(problem.Conflict, "checkpoint-unknown",
	"The log as it is now does not have this checkpoint. Name the last one of the backup, which \"strongroom audit checkpoints\" lists.")

func sizeRoot(t tlog.Tree) string { return strconv.FormatInt(t.N, 10) + ":" + t.Hash.String() }
