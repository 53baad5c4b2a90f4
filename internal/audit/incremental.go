package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/db"
)

// verified is what Options.Verified keeps: how far the log was found right, and what has to be known
// to go on from there.
type verified struct {
	Checkpoint string   `json:"checkpoint"` // a signed note
	Number     int64    `json:"number"`     // of that checkpoint
	Keys       []uint32 `json:"keys"`       // the hashes of the signing keys that were accepted
	Erased     int64    `json:"erased"`
	Full       int64    `json:"full"` // when all of the log was verified last, Unix seconds
}

// VerifyNew is Verify of what was added since the last verification that found nothing, which
// Options.Verified remembers: the tree has to continue the one that was verified then, and what a
// server has seen has to be in it. What was done to older events meanwhile, only Verify finds. Without
// anything remembered, or when the log does not continue it, all is verified.
func (t *Trail) VerifyNew(ctx context.Context, by actor.Actor, progress func(done, total int64)) (Report, error) {
	return t.verify(ctx, by, progress, true)
}

// resume has v begin where the last verification ended. Whatever does not fit is left to a full
// verification, which names it.
func (v *verification) resume(ctx context.Context) error {
	if v.Trail.verified == nil || v.size == 0 {
		return nil
	}
	text, err := v.Trail.verified.Load()
	if err != nil || text == nil {
		return nil
	}
	var before verified
	if json.Unmarshal(text, &before) != nil {
		return nil
	}
	tree, key, err := openCheckpoint([]byte(before.Checkpoint), v.keys.CheckpointVerifiers())
	if err != nil || tree.N > v.size || !slices.Contains(before.Keys, key) {
		return nil
	}
	var start *edge
	var kept []checkpointRow
	fits := true
	err = v.db.View(ctx, func(tx *db.Tx) (err error) {
		start, err = newEdge(tree, func(level int, n int64) ([]byte, error) {
			hashes, err := selectTile(ctx, tx, level, n)
			w, _ := width(tree.N, level)
			return hashes[:min(len(hashes), w*tlog.HashSize)], err
		})
		if err != nil {
			return err
		}
		reader := tlog.TileHashReader(tree, tileReader{ctx, tx})
		for _, x := range v.expect {
			if x.tree.N > tree.N {
				continue
			}
			if ok, err := extends(x.tree, reader); err != nil || !ok {
				fits = false
				return err
			}
		}
		kept, err = selectCheckpoints(ctx, tx, tree.N-1, tree.N)
		return err
	})
	if isEngine(err) {
		return err
	}
	if err != nil || !fits || len(kept) != 1 || kept[0].epoch != before.Number || kept[0].root != tree.Hash.String() {
		return nil
	}
	v.from, v.events, v.newest, v.epoch = tree.N, start, kept[0], before.Number
	v.expect = slices.DeleteFunc(v.expect, func(x expectation) bool { return x.tree.N <= tree.N })
	for _, key := range before.Keys {
		v.accepted[key] = true
	}
	v.vouched, v.full = tree.N, before.Full
	v.From, v.Erased = tree.N, before.Erased
	return nil
}

// keep remembers a verification that has found nothing.
func (v *verification) keep() error {
	if v.Trail.verified == nil || len(v.Findings) > 0 || v.newest.note == "" {
		return nil
	}
	now := verified{Checkpoint: v.newest.note, Number: v.newest.epoch, Erased: v.Erased, Full: v.full}
	if v.from == 0 {
		now.Full = v.clock.Now().Unix()
	}
	for key := range v.accepted {
		now.Keys = append(now.Keys, key)
	}
	slices.Sort(now.Keys)
	text, err := json.Marshal(now)
	if err == nil {
		err = v.Trail.verified.Store(text)
	}
	if err != nil {
		return fmt.Errorf("audit: how far the trail was verified could not be remembered: %w", err)
	}
	return nil
}

// eldestNew returns an id that is below those of all events that were made when the log had its first
// from events, less an hour for clocks that differ; empty means from the beginning.
func (v *verification) eldestNew(ctx context.Context) (string, error) {
	if v.from == 0 {
		return "", nil
	}
	var events []placed
	err := v.db.View(ctx, func(tx *db.Tx) (err error) {
		events, err = selectLeaves(ctx, tx, v.from-1, v.from)
		return err
	})
	if err != nil || len(events) != 1 || events[0].madeAt <= 0 || events[0].madeAt > maxTime {
		return "", err
	}
	at := time.UnixMicro(events[0].madeAt).Add(-time.Hour)
	return newID(at.UnixMicro())[:len("evt_0000000000")], nil
}

// announceAction is the event with which the keyring publishes the next signing key, and announcePrefix what its
// resource begins with; behind the version's number stands the verifier key.
const (
	announceAction = "keyring.service-key.publish"
	// A key that somebody else knows announces nobody: its successor is named by the event with which it takes
	// its place, which only Strongroom can have authenticated. Of a hand-over that event names no key.
	replaceAction  = "keyring.service-key.activate"
	announcePrefix = "service key checkpoint/"
)

// announced returns the hash of the signing key that the event announces.
func (r *row) announced() (key uint32, ok bool) {
	if r.action != announceAction && r.action != replaceAction {
		return 0, false
	}
	rest, ok := strings.CutPrefix(r.resource, announcePrefix)
	_, text, found := strings.Cut(rest, " ")
	if !ok || !found {
		return 0, false
	}
	v, err := NewVerifier(text)
	if err != nil {
		return 0, false
	}
	return v.KeyHash(), true
}

// handedOver checks that the key of a checkpoint that holds was announced by the key before it: in an
// event over which a checkpoint stands that an accepted key signed. The first key has nobody before it.
func (v *verification) handedOver(c checkedCheckpoint) {
	at, announced := v.announced[c.key]
	switch {
	case v.accepted[c.key]:
	case len(v.accepted) == 0, announced && (at < v.vouched || v.replaced[c.key] && at < c.size):
		v.accepted[c.key] = true
	default:
		if !v.strange[c.key] {
			v.strange[c.key] = true
			v.find(Altered, "", c.size-1, "the checkpoint of size %d is signed by the key %s, which no checkpoint of the key before it announces",
				c.size, hexHash(c.key))
		}
		return
	}
	v.vouched = c.size
}

// ParseSizeRoot reads a checkpoint as SIZE:ROOT, the form in which `audit checkpoints` prints it.
func ParseSizeRoot(text string) (tlog.Tree, error) {
	size, root, _ := strings.Cut(text, ":")
	n, err := strconv.ParseInt(size, 10, 64)
	hash, bad := tlog.ParseHash(root)
	if err = errors.Join(err, bad); err != nil || n < 1 {
		return tlog.Tree{}, fmt.Errorf("%q is no checkpoint: give it as SIZE:ROOT, as \"strongroom audit checkpoints\" prints it", text)
	}
	return tlog.Tree{N: n, Hash: hash}, nil
}
