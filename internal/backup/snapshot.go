package backup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"time"

	"strongroom/internal/db"
)

// tellEvery is after how many rows the progress is told.
const tellEvery = 512

// tableCopy is the copying of one table in the order of its keys.
type tableCopy struct {
	*copier
	table  db.Table
	base   []Segment // of the snapshot before
	out    Copied
	digest hash.Hash

	// The segment that is being filled.
	at      int                         // index into base, if there is one
	against map[fingerprint]fingerprint // key → row of base[at]; what is left at its end was deleted
	rows    []byte
	prints  []print
	first   []byte
	last    []byte
	count   int64
	delta   change

	pack    []byte // changes that wait to be stored together
	waiting []int  // the segments in out that they belong to

	mark func(parts ...[]byte) fingerprint
}

// copier stores what a snapshot consists of, in every repository of its part.
type copier struct {
	key          *vaultKey
	repositories []*Repository
	memory       memory
	segment      int
	until        time.Time     // repositories that lock data keep what is new until then; keys, for LockFor from now on
	erasing      bool          // what was deleted must be in no object that is needed
	slots        chan struct{} // bounds the objects that lie nowhere yet
	sealers      chan struct{} // bounds what is sealed beside the reading of rows
	whole        bool          // fold changes into the segments
	tell         func(rows int64)
	way          *way                            // nil gives way to nobody
	wait         sync.WaitGroup                  // for those
	pending      map[*Repository]*sync.WaitGroup // for what is being stored in each repository

	mu       sync.Mutex
	sizes    map[string]int64      // of the objects that the snapshot before or this one needs, as they are stored
	lost     map[*Repository]error // repositories that failed; the others go on
	behind   map[*Repository]bool  // repositories that are too slow to be waited for
	newBytes int64
	err      error
}

func newCopier(key *vaultKey, repositories []*Repository, segment int) *copier {
	c := &copier{
		key: key, repositories: repositories, segment: segment, slots: make(chan struct{}, inFlight),
		// One core reads, and one is left to those for whom the server is there.
		sealers: make(chan struct{}, max(0, runtime.GOMAXPROCS(0)-2)),
		sizes:   make(map[string]int64), lost: make(map[*Repository]error), behind: make(map[*Repository]bool),
		pending: make(map[*Repository]*sync.WaitGroup),
	}
	for _, r := range repositories {
		c.pending[r] = new(sync.WaitGroup)
	}
	return c
}

// settle waits for everything that is being stored.
func (c *copier) settle() {
	c.wait.Wait()
	for _, w := range c.pending {
		w.Wait()
	}
}

// store has the plaintext, which stays the caller's, stored in the background, and returns its name. What no snapshot is known to need
// is stored even if it is there: it may have been cut when its writer died, or be about to be swept.
func (c *copier) store(ctx context.Context, plaintext []byte) string {
	name := c.key.nameOf(plaintext)
	var missing []*Repository
	for _, r := range c.repositories {
		if !c.holds(r, name) && !c.failed(r) {
			missing = append(missing, r)
		}
	}
	if len(missing) == 0 {
		return name
	}
	c.slots <- struct{}{}
	seal := func(plaintext []byte) []byte {
		stored, err := c.key.seal(name, plaintext)
		if err != nil {
			c.fail(nil, err)
			return nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.newBytes += int64(len(stored))
		c.sizes[name] = int64(len(stored))
		return stored
	}
	spread := func(stored []byte) {
		if stored != nil {
			c.spread(ctx, name, stored, missing)
		}
		<-c.slots
	}
	select {
	case c.sealers <- struct{}{}:
		plaintext = slices.Clone(plaintext)
		c.wait.Go(func() {
			stored := seal(plaintext)
			<-c.sealers
			spread(stored)
		})
	default:
		stored := seal(plaintext)
		c.wait.Go(func() { spread(stored) })
	}
	return name
}

// grip is how long a repository is waited for, once, before it counts as behind.
const grip = 2 * time.Second

// spread stores an object where it is missing, and returns when the first repository has it; the others go
// on by themselves. One that stays busy with inFlight earlier objects is behind: it is left out, and fetches
// what it lacks from another when all is read (complete). So a slow repository does not keep the
// database's snapshot open, and memory is bounded.
func (c *copier) spread(ctx context.Context, name string, stored []byte, missing []*Repository) {
	results := make(chan error, len(missing))
	begun := 0
	begin := func(r *Repository) {
		begun++
		c.pending[r].Go(func() {
			defer func() { <-r.gate }()
			err := r.putObject(ctx, name, stored, c.until)
			if err != nil {
				c.fail(r, err)
			}
			results <- err
		})
	}
	for _, r := range missing {
		if c.admitted(r) {
			begin(r)
		}
	}
	if begun == 0 { // wait for whichever is free first
		gates := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}}
		for _, r := range missing {
			gates = append(gates, reflect.SelectCase{Dir: reflect.SelectSend, Chan: reflect.ValueOf(r.gate), Send: reflect.ValueOf(struct{}{})})
		}
		i, _, _ := reflect.Select(gates)
		if i == 0 {
			c.fail(nil, ctx.Err())
			return
		}
		begin(missing[i-1])
	}
	for range begun {
		if <-results == nil {
			return
		}
	}
}

// admitted takes a place among what is being stored in a repository, unless it is behind.
func (c *copier) admitted(r *Repository) bool {
	select {
	case r.gate <- struct{}{}:
		return true
	default:
	}
	c.mu.Lock()
	behind := c.behind[r]
	c.mu.Unlock()
	if behind {
		return false
	}
	patience := time.NewTimer(grip)
	defer patience.Stop()
	select {
	case r.gate <- struct{}{}:
		return true
	case <-patience.C:
		c.mu.Lock()
		c.behind[r] = true
		c.mu.Unlock()
		return false
	}
}

// holds reports whether a repository has an object that a snapshot needs, and of the right size.
func (c *copier) holds(r *Repository, name string) bool {
	c.mu.Lock()
	size, known := c.sizes[name]
	c.mu.Unlock()
	return known && r.holds(name, size)
}

// held reports whether any repository does.
func (c *copier) held(name string) bool {
	return slices.ContainsFunc(c.repositories, func(r *Repository) bool { return c.holds(r, name) })
}

func (c *copier) fail(r *Repository, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r == nil {
		c.err = errors.Join(c.err, err)
	} else if c.lost[r] == nil {
		c.lost[r] = err
	}
}

func (c *copier) failed(r *Repository) bool { return c.failure(r) != nil }

func (c *copier) failure(r *Repository) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost[r]
}

// open returns the plaintext of an object from the first repository that has it whole.
func (c *copier) open(ctx context.Context, name string) ([]byte, error) {
	return openObject(ctx, c.key, c.repositories, name)
}

func openObject(ctx context.Context, k *vaultKey, repositories []*Repository, name string) ([]byte, error) {
	plaintext, _, err := fetchObject(ctx, k, repositories, name)
	return plaintext, err
}

// fetchObject returns an object's plaintext, and the object as it is stored, from the first repository
// that has it whole.
func fetchObject(ctx context.Context, k *vaultKey, repositories []*Repository, name string) (plaintext, stored []byte, err error) {
	var failed error
	for _, r := range promising(repositories) {
		plaintext, stored, err := r.object(ctx, k, name)
		if err == nil {
			return plaintext, stored, nil
		}
		failed = errors.Join(failed, err)
	}
	if failed == nil {
		failed = errors.New("there is no repository to read from")
	}
	return nil, nil, failed
}

// promising returns the repositories, those last that did not answer when they were last asked: a dead one
// costs a read its patience once, and not for every object.
func promising(repositories []*Repository) []*Repository {
	sorted := slices.Clone(repositories)
	slices.SortStableFunc(sorted, func(a, b *Repository) int {
		switch x, y := a.isAiling(), b.isAiling(); {
		case x == y:
			return 0
		case y:
			return -1
		}
		return 1
	})
	return sorted
}

// object returns an object that a repository has whole. One that is damaged is remembered as missing; in a
// bucket with versions an older one may still be whole.
func (r *Repository) object(ctx context.Context, k *vaultKey, name string) (plaintext, stored []byte, err error) {
	key := objectKey(name)
	if stored, err = r.get(ctx, key); err == nil {
		r.ails(false)
		if plaintext, err = k.open(name, stored, true); err == nil {
			return plaintext, stored, nil
		}
		err = fmt.Errorf("backup repository %s: %w", r.Name, err)
	}
	if !errors.Is(err, ErrObject) && !errors.Is(err, errAbsent) {
		r.ails(true)
		return nil, nil, err
	}
	r.distrust(name)
	older := r.older(ctx, key, func(version []byte) bool {
		plain, failed := k.open(name, version, true)
		if failed == nil {
			plaintext, stored = plain, version
		}
		return failed == nil
	})
	if older {
		return plaintext, stored, nil
	}
	return nil, nil, err
}

// copyTable copies a table as it stands in tx. before is what the snapshot before has of it, or nil.
func (c *copier) copyTable(ctx context.Context, tx *db.Tx, t db.Table, before *Copied) (Copied, int64, error) {
	w := &tableCopy{copier: c, table: t, digest: sha256.New(), mark: c.key.fingerprints()}
	w.out.Table = t
	if before != nil && sameShape(before.Table, t) {
		w.base = before.Segments
	}
	if len(w.base) > 0 {
		if err := w.enter(ctx, 0); err != nil {
			return Copied{}, 0, err
		}
	}
	bytes, err := w.all(ctx, tx)
	if err != nil {
		return Copied{}, 0, fmt.Errorf("table %s: %w", t.Name, err)
	}
	w.out.Hash = hex.EncodeToString(w.digest.Sum(nil))
	return w.out, bytes, nil
}

func sameShape(a, b db.Table) bool {
	return a.Name == b.Name && slices.Equal(a.Columns, b.Columns) && slices.Equal(a.Key, b.Key)
}

func (w *tableCopy) all(ctx context.Context, tx *db.Tx) (bytes int64, err error) {
	columns := keyColumns(&w.table)
	key, bound := make([]db.Value, len(columns)), make([]db.Value, len(columns))
	next := -1 // the segment whose first key bound holds
	var row, keyed []byte
	var n int64
	err = tx.Each(ctx, selectRows(w.table), func(values []db.Value) error {
		if n++; n%tellEvery == 0 && w.tell != nil {
			w.tell(tellEvery)
		}
		if n%giveWayEvery == 0 && w.way != nil {
			w.way.give(ctx)
		}
		row = appendRow(row[:0], values)
		for i, column := range w.table.Key {
			key[i] = values[column]
		}
		keyed = appendRow(keyed[:0], key)
		// On to the segment that the key belongs to.
		for w.at+1 < len(w.base) {
			if next != w.at+1 {
				next = w.at + 1
				if err := readRow(w.base[next].First, bound, columns); err != nil {
					return err
				}
			}
			if compareKeys(key, bound) < 0 {
				break
			}
			if err := w.leave(ctx); err != nil {
				return err
			}
			if err := w.enter(ctx, next); err != nil {
				return err
			}
		}
		bytes += int64(len(row))
		return w.add(ctx, keyed, row)
	})
	if err != nil {
		return 0, err
	}
	// What is left of the base has no rows any more.
	for {
		if err := w.leave(ctx); err != nil {
			return 0, err
		}
		if w.at+1 >= len(w.base) {
			break
		}
		if err := w.enter(ctx, w.at+1); err != nil {
			return 0, err
		}
	}
	return bytes, w.flushPack(ctx)
}

// enter begins with segment i of the base.
func (w *tableCopy) enter(ctx context.Context, i int) error {
	w.at, w.against = i, nil
	s := w.base[i]
	if !w.held(s.Object) || s.Change != nil && !w.held(s.Change.Object) {
		return nil // nobody has it whole: the segment is written anew, which mends it
	}
	// The last one, while it is short, is written anew with what was added behind it: a table that only
	// grows would otherwise fall into crumbs.
	if i == len(w.base)-1 && s.Bytes < int64(w.segment)/2 {
		return nil
	}
	prints := w.memory.load(s.Object)
	if prints == nil {
		plaintext, err := w.open(ctx, s.Object)
		if err != nil {
			return nil // nobody has it whole: the segment is written anew, which mends it
		}
		if prints, err = printsOf(w.key, &w.table, plaintext); err != nil {
			return err
		}
		if err := w.memory.store(s.Object, prints); err != nil {
			return err
		}
	}
	w.against = make(map[fingerprint]fingerprint, len(prints))
	for _, p := range prints {
		w.against[p.key] = p.row
	}
	return nil
}

// add takes a row into the segment that is open.
func (w *tableCopy) add(ctx context.Context, key, row []byte) error {
	if len(row) > maxRow {
		return fmt.Errorf("a row has %d bytes, and at most %d can be copied", len(row), maxRow)
	}
	var length [binary.MaxVarintLen64]byte
	head := length[:binary.PutUvarint(length[:], uint64(len(row)))]
	w.digest.Write(head)
	w.digest.Write(row)
	p := print{w.mark(key), w.mark(row)}
	if w.against != nil {
		was, known := w.against[p.key]
		delete(w.against, p.key)
		if known && was != p.row {
			w.delta.removed = append(w.delta.removed, p.key)
		}
		if !known || was != p.row {
			w.delta.added = append(append(w.delta.added, head...), row...)
			w.delta.rows++
		}
	}
	if w.count == 0 {
		w.first = slices.Clone(key)
	}
	w.last = append(w.last[:0], key...)
	w.rows = append(append(w.rows, head...), row...)
	w.prints = append(w.prints, p)
	w.count++
	w.out.Rows++
	if len(w.rows) < w.segment {
		return nil
	}
	// A stretch without a base is full; one with a base has grown to twice the size: what is left of the
	// base is of no use to the rows behind.
	if w.against == nil || len(w.rows) >= 2*w.segment {
		w.against = nil
		return w.write(ctx)
	}
	return nil
}

// leave ends the segment that is open: it stays as it was, or with a change, or is written anew.
func (w *tableCopy) leave(ctx context.Context) error {
	if w.against == nil {
		return w.write(ctx)
	}
	for key := range w.against {
		w.delta.removed = append(w.delta.removed, key)
	}
	w.against = nil
	slices.SortFunc(w.delta.removed, func(a, b fingerprint) int { return slices.Compare(a[:], b[:]) })
	s := w.base[w.at]
	s.Change = nil
	size := len(w.delta.added) + len(w.delta.removed)*len(fingerprint{})
	switch {
	case w.count == 0:
		w.clear()
		return nil
	case w.delta.empty():
	case w.whole, w.erasing && len(w.delta.removed) > 0:
		return w.write(ctx)
	case size > int(s.Bytes)/rewriteShare:
		return w.write(ctx)
	default:
		offset := len(w.pack)
		w.pack = w.delta.append(w.pack)
		s.Change = &Change{Offset: offset, Length: len(w.pack) - offset}
		w.waiting = append(w.waiting, len(w.out.Segments))
	}
	w.out.Segments = append(w.out.Segments, s)
	w.clear()
	if len(w.pack) >= w.segment {
		return w.flushPack(ctx)
	}
	return nil
}

// write stores the rows of the open segment as an object of their own.
func (w *tableCopy) write(ctx context.Context) error {
	if w.count > 0 {
		name := w.store(ctx, w.rows)
		if err := w.memory.store(name, w.prints); err != nil {
			return err
		}
		w.out.Segments = append(w.out.Segments, Segment{
			Object: name, First: w.first, Last: slices.Clone(w.last), Rows: w.count, Bytes: int64(len(w.rows)),
		})
	}
	w.clear()
	return nil
}

func (w *tableCopy) clear() {
	w.rows, w.prints, w.count = w.rows[:0], w.prints[:0], 0
	w.delta.removed, w.delta.added, w.delta.rows = w.delta.removed[:0], w.delta.added[:0], 0
}

// flushPack stores the changes that wait.
func (w *tableCopy) flushPack(ctx context.Context) error {
	if len(w.pack) == 0 {
		return nil
	}
	name := w.store(ctx, w.pack)
	for _, i := range w.waiting {
		w.out.Segments[i].Change.Object = name
	}
	w.pack, w.waiting = w.pack[:0], w.waiting[:0]
	return nil
}
