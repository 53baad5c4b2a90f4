package audit

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

// ActionProve is recorded for every proof that is given.
const ActionProve = "audit.event.prove"

// Proof shows, without the database, that an event is in the log: the leaf leads by way of the hashes
// to the root that the signed checkpoint names (RFC 6962 section 2.1.1). Nothing in it is personal.
type Proof struct {
	Leaf       string      `json:"leaf"`       // the event as it was hashed; see appendLeaf
	Index      int64       `json:"index"`      // its place in the log, from 0
	Hashes     []tlog.Hash `json:"hashes"`     // from the leaf's neighbour upwards, in base64
	Checkpoint string      `json:"checkpoint"` // a signed note (C2SP tlog-checkpoint)
	// Key is the verifier key of the log, as the proof itself names it: anybody can write a proof with a key of
	// their own. Whoever relies on it has to know the key from elsewhere.
	Key string `json:"key,omitempty"`
}

// Proved is what a proof says of the event.
type Proved struct {
	ID       string
	Time     time.Time
	Actor    actor.Actor // kind, id, device and session
	Action   string
	Resource string
	Customer customer.ID
	Outcome  Outcome
	Reason   string
	Index    int64
	Size     int64 // of the log at the checkpoint
}

var (
	errNoEvent = problem.New(problem.NotFound, "event-not-found", "There is no such event in the trail.")
	// ErrProof means that a proof does not hold: it was altered, or is not of the log whose key verifies it.
	ErrProof = errors.New("the proof does not hold")
)

// Prove returns the proof that the event is in the log, against the newest checkpoint that a witness has
// cosigned, or against the newest when none has. An event that
// still waits for its place is given one first. The proof is checked before it is returned: a log
// whose tables were altered gives none. Only the system may ask so far; the proof leaves an event.
func (t *Trail) Prove(ctx context.Context, by actor.Actor, event string) (Proof, error) {
	e := Event{Action: ActionProve, Resource: "event"}
	if p := mayInspect(by); p != nil {
		return Proof{}, t.Deny(ctx, by, e, p)
	}
	if !id.Valid("evt", event) {
		return Proof{}, t.Deny(ctx, by, e, errNoEvent)
	}
	e.Resource = "event " + event
	var proof Proof
	err := error(nil)
	// Another process may be sequencing at this moment, and so may leave our event to the next round.
	for range 50 {
		if proof, err = t.prove(ctx, event); !errors.Is(err, errNotPlaced) {
			break
		}
		if _, err = t.Sequence(ctx); err != nil {
			break
		}
		if proof, err = t.prove(ctx, event); !errors.Is(err, errNotPlaced) {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
		if ctx.Err() != nil {
			break
		}
	}
	e.Outcome = Granted
	if err != nil {
		e.Outcome, e.Reason = classify(err)
	}
	if failed := t.alone(ctx, by, e); failed != nil {
		return Proof{}, unrecorded(failed, err)
	}
	if err != nil {
		return Proof{}, err
	}
	return proof, nil
}

// errNotPlaced means that the event has no place in the log yet.
var errNotPlaced = errors.New("audit: the event has no place in the log yet")

func (t *Trail) prove(ctx context.Context, event string) (Proof, error) {
	proof, err := t.proveFrom(ctx, event, nil)
	if !problem.Is(err, "event-not-found") {
		return proof, err
	}
	p, found, failed := t.inArchive(ctx, event)
	if failed != nil || !found {
		return Proof{}, cmp.Or(failed, err)
	}
	return t.proveFrom(ctx, event, &p)
}

// proveFrom proves the event that is given, or the one in the database.
func (t *Trail) proveFrom(ctx context.Context, event string, archived *placed) (proof Proof, err error) {
	err = t.db.View(ctx, func(tx *db.Tx) error {
		h, err := selectHead(ctx, tx)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w (log_head is empty)", errTampered)
		}
		if err != nil {
			return err
		}
		tree, err := t.headTree(h)
		if err != nil {
			return err
		}
		p, found, err := selectOne(ctx, tx, event)
		if archived != nil {
			p, found = *archived, true
		}
		switch {
		case err != nil:
			return err
		case !found:
			return errNoEvent
		case p.index < 0:
			return errNotPlaced
		case p.index >= tree.N:
			return fmt.Errorf("%w (the event has a place behind the end of the log)", errTampered)
		}
		// A checkpoint that witnesses have signed proves more than the newest.
		signed := h.note
		witnessed, err := selectWitnessed(ctx, tx, p.index, tree.N)
		if err != nil {
			return err
		}
		if witnessed > 0 {
			rows, err := selectCheckpoints(ctx, tx, witnessed-1, witnessed)
			if err != nil {
				return err
			}
			for _, row := range rows {
				if older := t.checkCheckpoint(row); older.err == nil {
					tree, signed = older.tree, row.note
				}
			}
		}
		leaf := p.appendLeaf(nil)
		hashes, err := tlog.ProveRecord(tree.N, p.index, tlog.TileHashReader(tree, tileReader{ctx, tx}))
		if err != nil {
			return tampered(err)
		}
		if err := tlog.CheckRecord(hashes, tree.N, tree.Hash, p.index, leafHash(leaf)); err != nil {
			return tampered(err)
		}
		if signed, err = withCosignatures(ctx, tx, tree.N, signed); err != nil {
			return err
		}
		proof = Proof{Leaf: string(leaf), Index: p.index, Hashes: hashes, Checkpoint: signed}
		return nil
	})
	return proof, err
}

// leafText is a leaf as appendLeaf writes it.
type leafText struct {
	V     int64  `json:"v"`
	ID    string `json:"id"`
	Time  int64  `json:"time"`
	Actor struct {
		Kind    actor.Kind `json:"kind"`
		ID      string     `json:"id"`
		Device  string     `json:"device"`
		Session string     `json:"session"`
	} `json:"actor"`
	Action      string      `json:"action"`
	Resource    string      `json:"resource"`
	Customer    customer.ID `json:"customer"`
	Outcome     Outcome     `json:"outcome"`
	Reason      string      `json:"reason"`
	Transaction string      `json:"transaction"`
	Request     string      `json:"request"`
	SealedUnder string      `json:"sealed_under"`
	Commitment  string      `json:"commitment"`
}

// selectOne returns an event with its place.
func selectOne(ctx context.Context, tx *db.Tx, event string) (p placed, found bool, err error) {
	list, err := queryPlaced(ctx, tx, nil, `
		SELECT e.id, COALESCE(l.idx, -1), `+eventColumns+`
		FROM event e LEFT JOIN event_leaf l ON l.event_id = e.id
		WHERE e.id = $1`, event)
	if err != nil || len(list) == 0 {
		return placed{}, false, err
	}
	return list[0], true, nil
}

// Check checks the proof against the verifiers of the log's signing key, which the caller trusts, and
// returns what it says. It needs nothing else. It fails with ErrProof.
func (p Proof) Check(known note.Verifiers) (Proved, error) {
	tree, err := parseCheckpoint([]byte(p.Checkpoint), known)
	if err != nil {
		return Proved{}, fmt.Errorf("%w: the checkpoint: %w", ErrProof, err)
	}
	return p.CheckIn(tree)
}

// CheckIn is Check against the tree that the checkpoint describes, for a caller who has checked the checkpoint
// already.
func (p Proof) CheckIn(tree tlog.Tree) (Proved, error) {
	// tlog computes with these.
	if p.Index < 0 || p.Index >= tree.N {
		return Proved{}, fmt.Errorf("%w: the log has no such place", ErrProof)
	}
	if err := tlog.CheckRecord(p.Hashes, tree.N, tree.Hash, p.Index, leafHash([]byte(p.Leaf))); err != nil {
		return Proved{}, fmt.Errorf("%w: the leaf does not lead to the checkpoint's root", ErrProof)
	}
	// The leaf is in a tree that Strongroom signed, so it is one that Strongroom wrote.
	var leaf leafText
	if err := json.Unmarshal([]byte(p.Leaf), &leaf); err != nil || leaf.V != leafVersion {
		return Proved{}, fmt.Errorf("%w: the leaf has an unknown form", ErrProof)
	}
	return Proved{
		ID: leaf.ID, Time: clock.FromMicros(leaf.Time),
		Actor:  actor.Actor{Kind: leaf.Actor.Kind, ID: leaf.Actor.ID, Device: leaf.Actor.Device, Session: leaf.Actor.Session},
		Action: leaf.Action, Resource: leaf.Resource, Customer: leaf.Customer, Outcome: leaf.Outcome, Reason: leaf.Reason,
		Index: p.Index, Size: tree.N,
	}, nil
}
