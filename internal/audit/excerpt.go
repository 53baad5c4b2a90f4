package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// An excerpt of the log is for somebody who has nothing but its key: some events with their proofs, and the
// checkpoints between which they happened with the proofs that each continues the one before. Nothing in it
// is personal as long as the events are of the system's own; who asks for one records that.

// Link is one checkpoint of a chain.
type Link struct {
	Time       time.Time `json:"time"`       // when it was signed, by the clock of the server
	Checkpoint string    `json:"checkpoint"` // a signed note (C2SP tlog-checkpoint) with its cosignatures
	// Consistency proves that the log continues that of the link before (RFC 6962 section 2.1.2); the first
	// link has none.
	Consistency []tlog.Hash `json:"consistency,omitempty"`
}

// ErrNotPlaced means that an event has no place in the log yet, or none that the checkpoint covers.
var ErrNotPlaced = errNotPlaced

// Settle gives a place to every event that was committed before it was called. When another process is at it, it waits
// for a second; events that this installation did not write never get one.
func (t *Trail) Settle(ctx context.Context) error {
	for waits := 0; waits < 50; {
		n, err := t.Sequence(ctx)
		if err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		var waiting int64
		err = t.db.View(ctx, func(tx *db.Tx) (err error) {
			waiting, err = countPending(ctx, tx)
			return err
		})
		if err != nil || waiting == 0 {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
			waits++
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Last returns the greatest place in the log that one of the events has, or -1 when none of them has one in
// the database.
func (t *Trail) Last(ctx context.Context, events []string) (last int64, err error) {
	last = -1
	err = t.db.View(ctx, func(tx *db.Tx) error {
		for _, event := range events {
			var index int64
			switch err := tx.QueryRow(ctx, `SELECT idx FROM event_leaf WHERE event_id = $1`, event).Scan(&index); {
			case errors.Is(err, sql.ErrNoRows):
			case err != nil:
				return err
			default:
				last = max(last, index)
			}
		}
		return nil
	})
	return last, err
}

// Chain returns checkpoints in order: the last that was signed before from, if there is one; the last of each
// day (UTC) since then, or of that day the newest that a witness has cosigned; and at the end the first that
// covers the place last, or the first such that a witness has cosigned. What it returns of a past period
// stays the same. The tree is that of the last one. It fails with ErrNotPlaced when no checkpoint covers last.
func (t *Trail) Chain(ctx context.Context, from time.Time, last int64) (chain []Link, end tlog.Tree, err error) {
	err = t.db.View(ctx, func(tx *db.Tx) error {
		sizes, err := selectChain(ctx, tx, clock.Micros(from), last)
		if err != nil {
			return err
		}
		chain = chain[:0]
		for i, size := range sizes {
			row, madeAt, err := selectCheckpoint(ctx, tx, size)
			if err != nil {
				return err
			}
			c := t.checkCheckpoint(row)
			if c.err != nil {
				return fmt.Errorf("%w (the checkpoint of size %d: %w)", errTampered, size, c.err)
			}
			link := Link{Time: clock.FromMicros(min(max(0, madeAt), maxTime))}
			if link.Checkpoint, err = withCosignatures(ctx, tx, size, row.note); err != nil {
				return err
			}
			if i > 0 {
				link.Consistency, err = tlog.ProveTree(c.tree.N, end.N, tlog.TileHashReader(c.tree, tileReader{ctx, tx}))
				if err == nil {
					err = tlog.CheckTree(link.Consistency, c.tree.N, c.tree.Hash, end.N, end.Hash)
				}
				if err != nil {
					return tampered(err)
				}
			}
			chain, end = append(chain, link), c.tree
		}
		return nil
	})
	return chain, end, err
}

// selectChain returns the sizes of the checkpoints of Chain.
func selectChain(ctx context.Context, tx *db.Tx, from, last int64) ([]int64, error) {
	var end int64
	for _, source := range []string{
		`log_cosignature g JOIN log_checkpoint c ON c.size = g.size`,
		`log_checkpoint c`,
	} {
		if err := tx.QueryRow(ctx, `SELECT COALESCE(min(c.size), 0) FROM `+source+` WHERE c.size > $1`, last).Scan(&end); err != nil {
			return nil, err
		}
		if end > 0 {
			break
		}
	}
	if end == 0 {
		return nil, ErrNotPlaced
	}
	sizes := []int64{end}
	_, at, err := selectCheckpoint(ctx, tx, end)
	for size := end; err == nil && at >= from; {
		day := clock.FromMicros(at).UTC().Truncate(24 * time.Hour)
		var earlier int64
		err = tx.QueryRow(ctx, `
			SELECT size, made_at FROM log_checkpoint WHERE size < $1 AND size > 0 AND made_at < $2
			ORDER BY size DESC LIMIT 1`, size, max(clock.Micros(day), min(from, at))).Scan(&earlier, &at)
		if errors.Is(err, sql.ErrNoRows) {
			err = nil
			break
		}
		if err != nil {
			break
		}
		size = earlier
		sizes = append(sizes, earlier)
	}
	if err != nil {
		return nil, err
	}
	slices.Reverse(sizes)
	for i := 1; i < len(sizes)-1; i++ {
		witnessed, err := selectWitnessed(ctx, tx, sizes[i-1], sizes[i])
		if err != nil {
			return nil, err
		}
		if witnessed > 0 {
			sizes[i] = witnessed
		}
	}
	return sizes, nil
}

// selectCheckpoint returns the checkpoint of a size.
func selectCheckpoint(ctx context.Context, tx *db.Tx, size int64) (row checkpointRow, madeAt int64, err error) {
	err = tx.QueryRow(ctx, `SELECT `+checkpointColumns+`, made_at FROM log_checkpoint WHERE size = $1`, size).
		Scan(&row.size, &row.epoch, &row.root, &row.note, &madeAt)
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("%w (the checkpoint of size %d is gone)", errTampered, size)
	}
	return row, madeAt, err
}

// Cite returns the proofs that the events are in the log, in their order, each against the checkpoint of that
// size. It reads the archive too. It fails with the problem "event-not-found" and with ErrNotPlaced.
func (t *Trail) Cite(ctx context.Context, size int64, events []string) (proofs []Proof, err error) {
	var archived map[string]placed
	for {
		var missing []string
		err := t.db.View(ctx, func(tx *db.Tx) (err error) {
			proofs, missing, err = t.cite(ctx, tx, size, events, archived)
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(missing) == 0 {
			return proofs, nil
		}
		if archived != nil {
			return nil, fmt.Errorf("%w (the event %s is cited)", errNoEvent, shown(missing[0]))
		}
		if archived, err = t.fromArchive(ctx, missing); err != nil {
			return nil, err
		}
	}
}

func (t *Trail) cite(ctx context.Context, tx *db.Tx, size int64, events []string, archived map[string]placed) (proofs []Proof, missing []string, err error) {
	row, _, err := selectCheckpoint(ctx, tx, size)
	if err != nil {
		return nil, nil, err
	}
	c := t.checkCheckpoint(row)
	if c.err != nil {
		return nil, nil, fmt.Errorf("%w (the checkpoint of size %d: %w)", errTampered, size, c.err)
	}
	signed, err := withCosignatures(ctx, tx, size, row.note)
	if err != nil {
		return nil, nil, err
	}
	hashes := tlog.TileHashReader(c.tree, rememberedTiles{tileReader{ctx, tx}, make(map[tlog.Tile][]byte)})
	for _, event := range events {
		p, found, err := selectOne(ctx, tx, event)
		if err != nil {
			return nil, nil, err
		}
		if a, ok := archived[event]; !found && ok {
			p, found = a, true
		}
		if !found {
			missing = append(missing, event)
			continue
		}
		if p.index < 0 || p.index >= c.tree.N {
			return nil, nil, ErrNotPlaced
		}
		leaf := p.appendLeaf(nil)
		path, err := tlog.ProveRecord(c.tree.N, p.index, hashes)
		if err == nil {
			err = tlog.CheckRecord(path, c.tree.N, c.tree.Hash, p.index, leafHash(leaf))
		}
		if err != nil {
			return nil, nil, tampered(err)
		}
		proofs = append(proofs, Proof{Leaf: string(leaf), Index: p.index, Hashes: path, Checkpoint: signed})
	}
	return proofs, missing, nil
}

// fromArchive returns those of the events that are archived; each object is read once.
func (t *Trail) fromArchive(ctx context.Context, events []string) (map[string]placed, error) {
	ranges, err := t.ranges(ctx)
	if err != nil {
		return nil, err
	}
	found := make(map[string]placed)
	for i := range ranges {
		r := &ranges[i]
		if r.RemovedAt != 0 || !slices.ContainsFunc(events, func(e string) bool { return r.FirstID <= e && e <= r.LastID }) {
			continue
		}
		inside, err := t.object(ctx, r)
		if err != nil {
			return nil, err
		}
		for _, p := range inside {
			if slices.Contains(events, p.id) {
				found[p.id] = p
			}
		}
	}
	return found, nil
}

// rememberedTiles keeps the tiles of one page of proofs: neighbours in time are neighbours in the tree.
type rememberedTiles struct {
	tileReader
	seen map[tlog.Tile][]byte
}

func (r rememberedTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, t := range tiles {
		if data[i] = r.seen[t]; data[i] != nil {
			continue
		}
		one, err := r.tileReader.ReadTiles(tiles[i : i+1])
		if err != nil {
			return nil, err
		}
		data[i], r.seen[t] = one[0], one[0]
	}
	return data, nil
}

// Show returns the proof of an event of the system's own without leaving an event: it is for what is public
// anyway. It fails with ErrNotPlaced for one that was committed a moment ago.
func (t *Trail) Show(ctx context.Context, event string) (Proof, error) { return t.prove(ctx, event) }

// NameKey sets the proof's Key to that of the log's verifier keys which has signed its checkpoint.
func (p *Proof) NameKey(keys []string) error {
	for _, key := range keys {
		v, err := NewVerifier(key)
		if err != nil {
			return err
		}
		if _, err := parseCheckpoint([]byte(p.Checkpoint), note.VerifierList(v)); err == nil {
			p.Key = key
		}
	}
	return nil
}

// OpenCheckpoint returns the tree that a checkpoint describes which one of the known keys has signed. It fails
// with ErrProof.
func OpenCheckpoint(checkpoint string, known note.Verifiers) (tlog.Tree, error) {
	tree, err := parseCheckpoint([]byte(checkpoint), known)
	if err != nil {
		return tree, fmt.Errorf("%w: the checkpoint: %w", ErrProof, err)
	}
	return tree, nil
}
