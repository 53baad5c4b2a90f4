package audit

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

// Kind is the kind of a finding.
type Kind string

// The kinds of finding.
const (
	Altered    Kind = "altered"     // an event, or a row of the log itself, is not what it was
	Dropped    Kind = "dropped"     // it is gone, or was taken out of the queue
	Inserted   Kind = "inserted"    // it was not written by Strongroom, or stands where it does not belong
	Reordered  Kind = "reordered"   // it is genuine and stands at another's place
	Forked     Kind = "forked"      // the log does not have the beginning that was seen before
	RolledBack Kind = "rolled-back" // the log is shorter than it was seen before
	Stalled    Kind = "stalled"     // it waits for its place longer than half a minute: nothing sequences
)

// Finding is one way in which the trail does not hold.
type Finding struct {
	Kind   Kind   `json:"kind"`
	Event  string `json:"event,omitempty"` // its id, where there is one to name
	Index  int64  `json:"index"`           // its place in the log, from 0; -1 where there is none
	Detail string `json:"detail"`          // for people
}

// Report is the result of Verify. The trail holds when there are no findings.
type Report struct {
	Events  int64 `json:"events"`         // in the log
	From    int64 `json:"from,omitempty"` // of Events, those that an earlier verification has found right
	Pending int64 `json:"pending"`        // authentic, and waiting for a place in the log
	Erased  int64 `json:"erased"`         // of Events, those whose personal part is erased
	// Archived is how many of Events are not in the database any more; those were verified by their hashes
	// alone, but for the ArchiveRead that were read from the archive.
	Archived    int64     `json:"archived,omitempty"`
	ArchiveRead int64     `json:"archive_read,omitempty"`
	Checkpoint  string    `json:"checkpoint,omitempty"` // the newest, a signed note
	Findings    []Finding `json:"findings,omitempty"`   // in no particular order, at most some thousand
}

const (
	// verifyPage is how many events are read in one snapshot; a multiple of the width of a tile.
	verifyPage = 8 * tileWidth
	// verifyWorkers read and hash at the same time. The embedded database has four readers, and
	// others want to read as well.
	verifyWorkers = 2
	maxFindings   = 1000
	maxStrays     = 100
)

// Verify recomputes the trail from its rows: each event's leaf, MAC and personal part, the tree over
// all leaves, every tile, and every checkpoint's root and signature; then it looks for events that
// are neither in the log nor in the queue, and compares the log with what was seen of it before.
//
// It reads page by page, in a snapshot each, and so holds nobody up: what is in the log does not
// change any more. progress, which may be nil, is told from time to time how many events of how many
// are done. Only the system may verify so far. The verification is itself an event, recorded at its
// end; its reason is "findings" when there are any.
func (t *Trail) Verify(ctx context.Context, by actor.Actor, progress func(done, total int64)) (Report, error) {
	return t.verify(ctx, by, progress, verifyMode{})
}

// verifyMode says what is verified beside what always is, or not.
type verifyMode struct {
	onlyNew bool
	archive bool // read the archive too
}

func (t *Trail) verify(ctx context.Context, by actor.Actor, progress func(done, total int64), mode verifyMode) (Report, error) {
	e := Event{Action: ActionVerify, Resource: "trail"}
	if p := mayInspect(by); p != nil {
		return Report{}, t.Deny(ctx, by, e, p)
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	if mode.archive && t.archive.Load() == nil {
		return Report{}, t.Deny(ctx, by, e, errNoArchive)
	}
	v := &verification{Trail: t, progress: progress, verifyMode: mode}
	err := v.run(ctx)
	e.Outcome, e.Reason = Granted, ""
	if err != nil {
		e.Outcome, e.Reason = classify(err)
	} else if len(v.Findings) > 0 {
		e.Reason = "findings"
	}
	if failed := t.alone(ctx, by, e); failed != nil {
		return Report{}, unrecorded(failed, err)
	}
	if err != nil {
		return Report{}, err
	}
	t.metrics.findings.Set(float64(len(v.Findings)))
	if err := v.keep(); err != nil {
		t.log.WarnContext(ctx, "the next verification of new events begins where the last did", "error", err)
	}
	return v.Report, nil
}

// verification is one run of Verify.
type verification struct {
	*Trail
	Report
	progress func(done, total int64)
	verifyMode
	ranges []archived // what was archived at the beginning
	from   int64      // the events before it were verified earlier
	full   int64      // when all were verified last, Unix seconds

	accepted  map[uint32]bool  // the signing keys that are the first, or were announced
	announced map[uint32]int64 // key → where in the log it was announced first
	strange   map[uint32]bool  // keys that were not
	vouched   int64            // the size of the newest checkpoint by an accepted key

	head   head
	size   int64
	expect []expectation // trees that were seen before

	// Two trees are grown over each stretch between two checkpoints: one from the events, the other
	// from the hashes in the tiles. Where they differ, the checkpoint says which of them is right.
	events, tiles         *edge
	eventsFull, tilesFull []tile
	apart                 bool // they differ since the last good checkpoint
	lost                  bool // neither led to a checkpoint; the trees are not compared any more

	newest        checkpointRow // the newest good checkpoint so far
	epoch         int64         // the number of the last one, good or not
	unsigned      bool          // a bad one was found since the newest good one
	open, settled []mismatch    // since the newest good checkpoint; before it
	missingKeys   map[string]bool
	dropped       map[tlog.Hash]int // the hash of a leaf that is gone → where in Findings that is said
}

// expectation is a tree that was seen before and where.
type expectation struct {
	tree tlog.Tree
	from string
}

// verdict says which of the two trees a checkpoint confirmed.
type verdict int

const (
	undecided verdict = iota
	tilesRight
	eventsRight
)

// mismatch is a place where the event does not have the hash that the tile has.
type mismatch struct {
	index   int64
	event   string // empty when the place is missing
	there   bool   // the event is there
	mac     macState
	hash    tlog.Hash
	tile    tlog.Hash
	verdict verdict
}

func (v *verification) find(kind Kind, event string, index int64, detail string, args ...any) {
	switch {
	case len(v.Findings) < maxFindings:
		v.Findings = append(v.Findings, Finding{kind, clean(event, maxField), index, fmt.Sprintf(detail, args...)})
	case len(v.Findings) == maxFindings:
		v.Findings = append(v.Findings, Finding{kind, "", -1, fmt.Sprintf("there are more than %d findings; the others are not listed", maxFindings)})
	}
}

func (v *verification) run(ctx context.Context) error {
	v.missingKeys, v.dropped = make(map[string]bool), make(map[tlog.Hash]int)
	v.accepted, v.announced, v.strange = make(map[uint32]bool), make(map[uint32]int64), make(map[uint32]bool)
	v.events = new(edge)
	v.seenBefore()
	if err := v.begin(ctx); err != nil {
		return err
	}
	if v.onlyNew {
		if err := v.resume(ctx); err != nil {
			return err
		}
	}
	if err := v.walk(ctx); err != nil {
		return err
	}
	v.end()
	if err := v.outside(ctx); err != nil {
		return err
	}
	if err := v.queue(ctx); err != nil {
		return err
	}
	if err := v.orphans(ctx); err != nil {
		return err
	}
	if v.verifyMode.archive {
		if err := v.readArchive(ctx); err != nil {
			return err
		}
	}
	v.progress(v.size, v.size)
	return nil
}

// seenBefore collects what this process and its Options.Remember know of the log. It comes before
// the first look at the database, which may grow meanwhile.
func (v *verification) seenBefore() {
	s := &v.sequencer
	s.mu.Lock()
	seen := s.seen
	s.mu.Unlock()
	if seen.N > 0 {
		v.expect = append(v.expect, expectation{seen, "this process"})
	}
	tree, signed, err := v.remembered()
	if err != nil {
		v.find(Altered, "", -1, "the remembered checkpoint (%v) is not usable: %v", v.remember, err)
	} else if signed != nil && tree != seen {
		v.expect = append(v.expect, expectation{tree, fmt.Sprint(v.remember)})
	}
	slices.SortFunc(v.expect, func(a, b expectation) int { return int(min(1, max(-1, a.tree.N-b.tree.N))) })
}

// begin reads the head of the log and decides how long the log is: as long as its newest checkpoint
// of ours says, or, when that was removed, as long as the head says and places are there.
func (v *verification) begin(ctx context.Context) error {
	var gone bool
	var places int64
	var above []checkpointRow
	var strays []placed
	var badRanges []int64
	err := v.db.View(ctx, func(tx *db.Tx) (err error) {
		if v.ranges, badRanges, err = v.selectRanges(ctx, tx); err != nil {
			return err
		}
		v.head, err = selectHead(ctx, tx)
		if gone = errors.Is(err, sql.ErrNoRows); err != nil && !gone {
			return err
		}
		v.size = v.head.size
		if tree, err := v.headTree(v.head); err != nil {
			if places, err = countPlaces(ctx, tx, endOf(v.ranges)); err != nil {
				return err
			}
			v.size = min(max(0, v.head.size), places)
			if gone {
				v.size = places
			}
			if tree, err = parseCheckpoint([]byte(v.head.note), v.keys.CheckpointVerifiers()); err == nil && tree.N == v.head.size {
				v.find(Altered, "", -1, "log_head, the head of the log, has another root than its checkpoint")
			}
		} else {
			v.size = tree.N
		}
		if above, err = selectNewestCheckpoints(ctx, tx, v.size, maxStrays); err != nil {
			return err
		}
		for _, c := range above {
			checked := v.checkCheckpoint(c)
			if checked.err == nil {
				v.size = c.size
				break
			}
			v.find(Altered, "", c.size-1, "the checkpoint of size %d is not one that was signed here: %v", c.size, checked.err)
		}
		strays, err = selectStrays(ctx, tx, v.size, maxStrays)
		return err
	})
	if err != nil {
		return err
	}
	for _, first := range badRanges {
		v.find(Altered, "", -1, "the row of audit_archive for the events from index %d on was not written by Strongroom, or altered since", first)
	}
	if gone {
		v.find(Dropped, "", -1, "log_head, the head of the log, is missing")
	} else if v.size != v.head.size {
		v.find(Altered, "", -1, "log_head, the head of the log, says that it has %d events, and it has %d", v.head.size, v.size)
	}
	for _, p := range strays {
		v.find(Inserted, p.event, p.index, "the event has a place outside of the log, which ends at %d", v.size)
	}
	v.Events = v.size
	return nil
}

// checkCheckpoint checks a checkpoint by itself.
func (t *Trail) checkCheckpoint(c checkpointRow) checkedCheckpoint {
	tree, key, err := openCheckpoint([]byte(c.note), t.keys.CheckpointVerifiers())
	if err == nil && (tree.N != c.size || tree.Hash.String() != c.root) {
		err = errors.New("its columns do not say what it says")
	}
	return checkedCheckpoint{c, tree, key, err}
}

// page is what a worker found in a stretch of the log.
type page struct {
	lo, hi      int64
	leaves      []leafState // one for each index
	tiles       map[int64][]byte
	checkpoints []checkedCheckpoint
	erased      int64
	away        int64 // archived
	announced   map[uint32]int64
	twice       []placed // rows of which another has the same place or id
	err         error
}

// leafState is what one place of the log looks like.
type leafState struct {
	event    string // empty when the place is missing
	there    bool
	archived bool // and not there for that reason
	mac      macState
	hash     tlog.Hash
	personal personalState
	why      string
	customer string
}

type macState int

const (
	macRight macState = iota
	macWrong
	macKeyless // its key was destroyed, or never was
)

type personalState int

const (
	personalFine personalState = iota
	personalErased
	personalAltered
	personalKeyless
)

type checkedCheckpoint struct {
	checkpointRow
	tree tlog.Tree
	key  uint32
	err  error
}

// walk has workers read the log and follows them in order.
func (v *verification) walk(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	type task struct {
		lo, hi int64
		out    chan *page
	}
	tasks := make(chan task)
	ordered := make(chan chan *page, 2*verifyWorkers)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	workers.Go(func() {
		defer close(ordered)
		defer close(tasks)
		for lo := v.from; lo < v.size; lo += verifyPage {
			work := task{lo, min(lo+verifyPage, v.size), make(chan *page, 1)}
			select {
			case ordered <- work.out:
			case <-ctx.Done():
				return
			}
			select {
			case tasks <- work:
			case <-ctx.Done():
				return
			}
		}
	})
	for range verifyWorkers {
		workers.Go(func() {
			for work := range tasks {
				work.out <- v.read(ctx, work.lo, work.hi)
			}
		})
	}
	for next := range ordered {
		var p *page
		select {
		case p = <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
		if p.err != nil {
			return p.err
		}
		if err := v.follow(ctx, p); err != nil {
			return err
		}
		v.progress(p.hi, v.size)
	}
	return ctx.Err()
}

// read loads a page and computes all of it that does not depend on the pages before. It runs in a
// worker and does not touch v but to read.
func (v *verification) read(ctx context.Context, lo, hi int64) *page {
	p := &page{lo: lo, hi: hi, leaves: make([]leafState, hi-lo)}
	var events []placed
	var checkpoints []checkpointRow
	known := make(rings)
	p.err = v.db.Snapshot(ctx, func(tx *db.Tx) (err error) {
		if events, err = selectLeaves(ctx, tx, lo, hi); err != nil {
			return err
		}
		if err := v.away(ctx, tx, p, events); err != nil {
			return err
		}
		if checkpoints, err = selectCheckpoints(ctx, tx, lo, hi); err != nil {
			return err
		}
		if p.tiles, err = selectTiles(ctx, tx, 0, lo/tileWidth, (hi+tileWidth-1)/tileWidth); err != nil {
			return err
		}
		for i := range events {
			if events[i].sealedUnder == underCustomer {
				if _, _, err := v.opener(ctx, tx, &events[i].row, known); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if p.err != nil {
		return p
	}
	var leaf []byte
	for i := range events {
		e := &events[i]
		s := &p.leaves[e.index-lo]
		leaf = e.appendLeaf(leaf[:0])
		if s.there || s.event != "" { // somebody has taken the tables' keys away
			if p.twice = append(p.twice, *e); s.there && s.mac == macRight {
				continue
			}
			*s = leafState{}
		}
		s.event = e.event
		if e.version == 0 {
			continue
		}
		s.there, s.customer = true, e.customer
		s.hash = leafHash(leaf)
		if key, at, ok := e.announced(e.index); ok {
			if p.announced == nil {
				p.announced = make(map[uint32]int64)
			}
			if _, known := p.announced[key]; !known {
				p.announced[key] = at
			}
		}
		err := v.authentic(&e.row, leaf)
		switch {
		case errors.Is(err, seal.ErrKeyVersion):
			s.mac = macKeyless // the tree is proof enough
		case err != nil:
			s.mac = macWrong
		}
		if s.personal, err = v.personal(ctx, e, known); err != nil {
			s.why = err.Error()
		}
		if s.personal == personalErased {
			p.erased++
		}
	}
	for _, c := range checkpoints {
		p.checkpoints = append(p.checkpoints, v.checkCheckpoint(c))
	}
	return p
}

// personal checks the sealed part of an event whose key is in known.
func (v *verification) personal(ctx context.Context, e *placed, known rings) (personalState, error) {
	if e.sealedUnder == underNothing {
		if e.sealed != nil || e.commitment != nil {
			return personalAltered, errors.New("it has a personal part that it does not commit to")
		}
		return personalFine, nil
	}
	ring, state, err := v.opener(ctx, nil, &e.row, known)
	if err != nil {
		return personalAltered, err
	}
	switch state {
	case keyErased:
		return personalErased, nil
	case keyMissing:
		return personalKeyless, errors.New("its key is missing")
	}
	if _, err := e.openPersonal(ring); err != nil {
		return personalAltered, err
	}
	return personalFine, nil
}

// follow takes the next page in order.
func (v *verification) follow(ctx context.Context, p *page) error {
	v.Erased += p.erased
	v.Archived += p.away
	for key, at := range p.announced {
		if _, known := v.announced[key]; !known {
			v.announced[key] = at
		}
	}
	for _, e := range p.twice {
		v.find(Inserted, e.event, e.index, "there is more than one row for the event at this place")
	}
	checkpoints := p.checkpoints
	for i := range p.leaves {
		index := p.lo + int64(i)
		if err := v.leaf(index, &p.leaves[i], p.tiles[index/tileWidth]); err != nil {
			return err
		}
		for len(v.expect) > 0 && v.expect[0].tree.N == index+1 {
			if err := v.meet(v.expect[0]); err != nil {
				return err
			}
			v.expect = v.expect[1:]
		}
		for len(checkpoints) > 0 && checkpoints[0].size == index+1 {
			if err := v.checkpoint(ctx, checkpoints[0]); err != nil {
				return err
			}
			checkpoints = checkpoints[1:]
		}
	}
	return nil
}

// leaf takes the next place of the log.
func (v *verification) leaf(index int64, s *leafState, hashes []byte) error {
	var stored tlog.Hash
	offset := int(index%tileWidth) * tlog.HashSize
	has := len(hashes) >= offset+tlog.HashSize
	if offset == 0 && len(hashes) > tileBytes {
		v.find(Altered, "", -1, "tile 0/%d of the log is longer than a tile can be", index/tileWidth)
	}
	if has {
		stored = tlog.Hash(hashes[offset:])
	} else if len(hashes)/tlog.HashSize*tlog.HashSize == offset { // say it once
		if hashes == nil {
			v.find(Dropped, "", -1, "tile 0/%d of the log is missing", index/tileWidth)
		} else {
			v.find(Altered, "", -1, "tile 0/%d of the log was cut after %d hashes", index/tileWidth, len(hashes)/tlog.HashSize)
		}
	}
	switch {
	case !s.there:
	case s.mac == macWrong:
		v.find(Altered, s.event, index, "the event does not have the MAC that Strongroom gave it")
	default:
		switch s.personal {
		case personalAltered:
			v.find(Altered, s.event, index, "the personal part of the event was altered: %s", s.why)
		case personalKeyless:
			if !v.missingKeys[s.customer] {
				v.missingKeys[s.customer] = true
				v.find(Altered, s.event, index, "the data key of customer %q is missing or damaged, and no erasure is on record; this is the first event concerned",
					clean(s.customer, maxField))
			}
		}
	}
	fromEvent, fromTile := s.hash, stored
	switch {
	case !s.there && !has:
		// Nothing is left to compute with; the next checkpoint will not be met.
	case !s.there:
		fromEvent = stored
	case !has:
		fromTile = s.hash
	}
	if !s.there && !s.archived || fromEvent != fromTile {
		v.open = append(v.open, mismatch{
			index: index, event: s.event, there: s.there, mac: s.mac, hash: s.hash, tile: stored,
		})
		if len(v.open)+len(v.settled) > 100*maxFindings {
			v.open = v.open[:len(v.open)-1] // far more than are listed
		}
	}
	if fromEvent != fromTile && !v.apart && !v.lost {
		v.apart, v.tiles, v.tilesFull = true, v.events.clone(), slices.Clone(v.eventsFull)
	}
	var err error
	if v.eventsFull, err = grow(v.events, fromEvent, v.eventsFull); err == nil && v.apart {
		v.tilesFull, err = grow(v.tiles, fromTile, v.tilesFull)
	}
	if v.lost {
		v.eventsFull = nil
	}
	return err
}

// grow adds a leaf and keeps the tiles that it completes, but for the lowest level: those are
// compared hash by hash.
func grow(e *edge, leaf tlog.Hash, full []tile) ([]tile, error) {
	n := len(full)
	full, err := e.append(leaf, full)
	if len(full) > n {
		full = slices.Delete(full, n, n+1) // the first that a leaf completes is of level 0
	}
	return full, err
}

// meet compares the log with a tree that was seen before.
func (v *verification) meet(x expectation) error {
	root, err := v.events.root()
	if err != nil {
		return err
	}
	if root != x.tree.Hash && v.apart {
		if root, err = v.tiles.root(); err != nil {
			return err
		}
	}
	if root != x.tree.Hash && !v.lost {
		v.find(Forked, "", x.tree.N-1, "the first %d events are not those that were seen before (by %s)", x.tree.N, x.from)
	}
	return nil
}

// checkpoint compares the log with its next checkpoint.
func (v *verification) checkpoint(ctx context.Context, c checkedCheckpoint) error {
	switch {
	case c.epoch == v.epoch+1:
	case c.epoch > v.epoch+1:
		v.find(Dropped, "", c.size-1, "checkpoints %s before the one of size %d are missing", span(v.epoch+1, c.epoch-1), c.size)
	default:
		v.find(Altered, "", c.size-1, "the checkpoint of size %d has number %d, and follows number %d", c.size, c.epoch, v.epoch)
	}
	v.epoch = max(v.epoch, c.epoch)
	if c.err != nil {
		v.unsigned = true
		v.find(Altered, "", c.size-1, "the checkpoint of size %d is not one that was signed here: %v", c.size, c.err)
		return nil
	}
	good := v.newest.size
	v.newest, v.unsigned = c.checkpointRow, false
	if v.lost {
		return nil
	}
	root, err := v.events.root()
	if err != nil {
		return err
	}
	found := undecided
	if root == c.tree.Hash {
		found = eventsRight
	} else if v.apart {
		if root, err = v.tiles.root(); err != nil {
			return err
		}
		if root == c.tree.Hash {
			found = tilesRight
			v.events, v.eventsFull = v.tiles, v.tilesFull
		}
	}
	if found == undecided {
		v.lost = true
		if len(v.open) == 0 {
			v.find(Altered, "", good, "the events at index %s and their tiles do not lead to the checkpoint of size %d: one or more were altered, dropped, inserted or reordered",
				span(good, c.size-1), c.size)
		}
	}
	for _, m := range v.open {
		m.verdict = found
		v.settled = append(v.settled, m)
	}
	v.open = v.open[:0]
	v.apart, v.tiles, v.tilesFull = false, nil, nil
	if found == undecided {
		v.eventsFull = nil
		return nil
	}
	v.handedOver(c)
	return v.compareTiles(ctx, c.size == v.size)
}

// compareTiles compares the tiles above the lowest level, those that were completed since the last
// time, and at the end also those that are not complete.
func (v *verification) compareTiles(ctx context.Context, last bool) error {
	computed := v.eventsFull
	if last {
		computed = append(computed, v.events.partial(0)...)
	}
	v.eventsFull = v.eventsFull[:0]
	for _, c := range computed {
		if c.level == 0 {
			continue
		}
		var stored []byte
		err := v.db.View(ctx, func(tx *db.Tx) (err error) {
			stored, err = selectTile(ctx, tx, c.level, c.n)
			return err
		})
		switch {
		case err != nil:
			return err
		case stored == nil:
			v.find(Dropped, "", -1, "tile %d/%d of the log is missing", c.level, c.n)
		case !bytes.HasPrefix(stored, c.hashes), len(c.hashes) == tileBytes && len(stored) != tileBytes: // it may have grown since
			v.find(Altered, "", -1, "tile %d/%d of the log was altered", c.level, c.n)
		}
	}
	return nil
}

func span(lo, hi int64) string {
	if lo == hi {
		return strconv.FormatInt(lo, 10)
	}
	return fmt.Sprintf("%d to %d", lo, hi)
}

// end settles what is left when the last page was followed.
func (v *verification) end() {
	for _, x := range v.expect {
		v.find(RolledBack, "", -1, "the log has %d events, and %d were seen before (by %s)", v.size, x.tree.N, x.from)
	}
	switch {
	case v.head.epoch > v.epoch:
		v.find(Dropped, "", -1, "log_head counts %d checkpoints; missing: %s", v.head.epoch, span(v.epoch+1, v.head.epoch))
	case v.newest.size < v.size && !v.unsigned:
		v.find(Dropped, "", v.size-1, "there is no checkpoint that covers the events from index %d on", v.newest.size)
	}
	if v.head.epoch < v.epoch && v.head.note != "" {
		v.find(Altered, "", -1, "log_head, the head of the log, counts %d checkpoints, and there are %d", v.head.epoch, v.epoch)
	}
	v.Checkpoint = v.newest.note
	v.settled = append(v.settled, v.open...)

	belongs := make(map[tlog.Hash]int64, len(v.settled)) // hash → the place of which the tile has it
	for _, m := range v.settled {
		belongs[m.tile] = m.index
	}
	for _, m := range v.settled {
		right, moved := belongs[m.hash]
		switch {
		case !m.there && m.event == "":
			v.dropped[m.tile] = len(v.Findings)
			v.find(Dropped, "", m.index, "the event at index %d is missing; its leaf had the hash %s", m.index, hex.EncodeToString(m.tile[:]))
		case !m.there:
			v.find(Dropped, m.event, m.index, "the event is missing")
		case m.verdict == eventsRight:
			v.find(Altered, m.event, m.index, "tile 0/%d of the log has another hash for this event, which itself is as it was", m.index/tileWidth)
		case m.mac == macWrong:
			// Its MAC said so already.
		case moved:
			v.find(Reordered, m.event, m.index, "the event stands at index %d and belongs to index %d", m.index, right)
		case m.verdict == tilesRight && m.mac == macRight:
			v.dropped[m.tile] = len(v.Findings)
			v.find(Inserted, m.event, m.index, "the event stands where another was logged")
		default:
			v.find(Altered, m.event, m.index, "the event does not have the hash that tile 0/%d of the log has for it", m.index/tileWidth)
		}
	}
}

// outside looks for rows of the log's tables, and ends of its tiles, that do not belong to the tree.
func (v *verification) outside(ctx context.Context) error {
	return v.db.View(ctx, func(tx *db.Tx) error {
		// The log may have grown since begin; what it has now, a checkpoint in this snapshot says.
		h, err := selectHead(ctx, tx)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		size := v.size
		if tree, err := v.headTree(h); err == nil {
			size = max(size, tree.N)
		}
		for level := range tileLevels {
			w, n := width(v.size, level)
			if w == 0 {
				continue
			}
			hashes, err := selectTile(ctx, tx, level, n)
			if err != nil {
				return err
			}
			want := min(tileWidth, size>>(tileHeight*level)-n*tileWidth) * tlog.HashSize
			if int64(len(hashes)) > want {
				v.find(Altered, "", -1, "tile %d/%d of the log is longer than the log", level, n)
			}
		}
		tiles, err := selectStrayTiles(ctx, tx, size, maxStrays)
		if err != nil {
			return err
		}
		for _, t := range tiles {
			v.find(Inserted, "", -1, "tile %d/%d does not belong to the log", t.level, t.n)
		}
		empty, err := selectEmptyCheckpoints(ctx, tx, maxStrays)
		if err != nil {
			return err
		}
		for _, c := range empty {
			v.find(Inserted, "", -1, "there is a checkpoint of size %d", c.size)
		}
		events, waiting, err := countLong(ctx, tx)
		if err != nil {
			return err
		}
		if events > 0 {
			v.find(Inserted, "", -1, "%d rows of event have an id that is longer than Strongroom makes them", events)
		}
		if waiting > 0 {
			v.find(Inserted, "", -1, "%d rows of event_pending have an id that is longer than Strongroom makes them", waiting)
		}
		return nil
	})
}

// stalled reports that events have waited too long. A process that has just begun gives its sequencer
// time first: after a crash the queue is as old as the crash.
func (v *verification) stalled(ctx context.Context, oldest *placed, count int64) error {
	for v.clock.Now().Sub(v.born) < settleTime {
		var waits bool
		err := v.db.View(ctx, func(tx *db.Tx) (err error) {
			waits, err = isPending(ctx, tx, oldest.event)
			return err
		})
		if err != nil || !waits {
			return err
		}
		select {
		case <-time.After(pace):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	v.find(Stalled, oldest.event, -1, "the event has waited for its place in the log for %v, and %d in all for more than %v: nothing sequences, or something in the database keeps it from its work",
		v.age(oldest.madeAt).Round(time.Second), count, maxWait)
	return nil
}

// settleTime is how long after its start a process may find old events waiting: the lease of a
// sequencer that died lasts 15 s.
const settleTime = 20 * time.Second

// queue checks the events that wait.
func (v *verification) queue(ctx context.Context) error {
	var leaf []byte
	var oldest placed
	var late int64
	previous := ""
	for after := ""; ; {
		var waiting []placed
		err := v.db.View(ctx, func(tx *db.Tx) (err error) {
			waiting, err = selectPending(ctx, tx, after, verifyPage)
			return err
		})
		if err != nil {
			return err
		}
		if len(waiting) == 0 {
			break
		}
		after = waiting[len(waiting)-1].event
		for i := range waiting {
			p := &waiting[i]
			leaf = p.appendLeaf(leaf[:0])
			why := v.inadmissible(p, leaf)
			if why == "" && p.event == previous {
				why = "is there twice"
			}
			switch {
			case why == "":
				v.Pending++
				previous = p.event
				if v.age(p.madeAt) > maxWait {
					if late++; late == 1 || p.madeAt < oldest.madeAt {
						oldest = *p
					}
				}
			case p.version == 0:
				v.find(Dropped, p.event, -1, "the event is missing; it waited for its place in the log")
			default:
				v.find(Inserted, p.event, p.index, "the event waits for its place in the log and %s", why)
			}
		}
	}
	if late > 0 {
		return v.stalled(ctx, &oldest, late)
	}
	return nil
}

// orphans looks for events that are neither in the log nor in the queue.
func (v *verification) orphans(ctx context.Context) error {
	var leaf []byte
	first, err := v.eldestNew(ctx)
	if err != nil {
		return err
	}
	for after := first; ; {
		var found []placed
		var last string
		err := v.db.View(ctx, func(tx *db.Tx) (err error) {
			found, last, err = selectOrphans(ctx, tx, after, 2*verifyPage)
			return err
		})
		if err != nil {
			return err
		}
		for i := range found {
			p := &found[i]
			leaf = p.appendLeaf(leaf[:0])
			hash := leafHash(leaf)
			if i, ok := v.dropped[hash]; ok && i < maxFindings {
				if f := &v.Findings[i]; f.Kind == Dropped {
					f.Event, f.Detail = clean(p.event, maxField), "the event lost its place in the log"
				} else {
					v.find(Dropped, p.event, f.Index, "the event lost its place in the log to another")
				}
				continue
			}
			if err := v.authentic(&p.row, leaf); errors.Is(err, errForged) {
				v.find(Inserted, p.event, -1, "the event is not in the log and "+notOurs)
			} else {
				v.find(Dropped, p.event, -1, "the event was taken out of the queue before it got its place in the log")
			}
		}
		if last == "" {
			return nil
		}
		after = last
	}
}
