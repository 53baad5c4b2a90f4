package db

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxBatch = 256
	// maxHold is how long a batch stays open for more transactions, so that slow ones do not make
	// the fast ones before them wait.
	maxHold = 10 * time.Millisecond
	// queueLength bounds the transactions that wait; whoever comes later waits outside.
	queueLength = 1024
)

// writer runs all writing transactions of the embedded database in one goroutine, and lets those
// that wait share one commit: the fsync is the expensive part. Each but the first runs in a
// savepoint, so that one that fails takes nothing of the others with it. All are acknowledged after
// the commit, or, if the commit fails, all fail.
type writer struct {
	run     *sqliteRunner
	metrics *metrics
	hub     *hub
	queue   chan *request
	aside   chan func() // what must run between two transactions

	mu      sync.RWMutex // held for reading while somebody enqueues
	stopped bool
	ended   chan struct{}

	// Of the writer's goroutine. They are fields so that a goroutine that fn ended
	// (runtime.Goexit) can be replaced by another in the middle of a batch.
	batch []*request // those to run in this commit, in order
	next  int        // the first of batch that was not run yet
	ran   []*request // those of batch that wait for the commit
	later []*request // those to run in the next commit
	only  bool       // the batch takes no more
	began time.Time
}

// The states of a request.
const (
	queued int32 = iota
	running
	abandoned
)

// request is one call of Update that waits for its outcome.
type request struct {
	fn    func(*Tx) error
	state atomic.Int32
	again bool          // it ran already, in a transaction that was rolled back under it
	done  chan struct{} // receives one value when the outcome is there

	err      error
	after    []func()
	panicked any
	exited   bool // fn called runtime.Goexit
}

var requests = sync.Pool{New: func() any { return &request{done: make(chan struct{}, 1)} }}

func newWriter(run *sqliteRunner, m *metrics, h *hub) *writer {
	w := &writer{run: run, metrics: m, hub: h, queue: make(chan *request, queueLength), aside: make(chan func()), ended: make(chan struct{})}
	go w.loop()
	return w
}

// stop refuses new transactions, waits for the queued ones and reports whether it was the first to
// stop.
func (w *writer) stop() bool {
	w.mu.Lock()
	first := !w.stopped
	if first {
		w.stopped = true
		close(w.queue)
	}
	w.mu.Unlock()
	<-w.ended
	return first
}

// do has the writer run fn and returns its outcome. When ctx ends before fn was begun, fn is not
// run at all; afterwards its outcome is awaited whatever becomes of ctx.
func (w *writer) do(ctx context.Context, fn func(*Tx) error) ([]func(), error) {
	if ctx.Err() != nil {
		return nil, waited(ctx)
	}
	r := requests.Get().(*request)
	r.fn = fn
	if err := w.enqueue(ctx, r); err != nil {
		return nil, err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(queued, abandoned) {
			return nil, waited(ctx) // r stays with the writer, which will drop it
		}
		<-r.done
	}
	after, err, panicked, exited := r.after, r.err, r.panicked, r.exited
	r.fn, r.after, r.err, r.panicked, r.exited, r.again = nil, nil, nil, nil, false, false
	r.state.Store(queued)
	requests.Put(r)
	if panicked != nil {
		panic(panicked)
	}
	if exited {
		runtime.Goexit()
	}
	return after, err
}

func (w *writer) enqueue(ctx context.Context, r *request) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.stopped {
		return unavailable(errClosed)
	}
	w.metrics.queue.Inc()
	select {
	case w.queue <- r:
		return nil
	default:
	}
	select {
	case w.queue <- r:
		return nil
	case <-ctx.Done():
		w.metrics.queue.Dec()
		return waited(ctx)
	}
}

// loop runs batches until the queue is closed and empty.
func (w *writer) loop() {
	finished := false
	defer func() {
		if !finished {
			go w.loop() // fn ended this goroutine; its request has its outcome already
		}
	}()
	for {
		if w.next == len(w.batch) && len(w.ran) == 0 {
			w.batch, w.next = append(w.batch[:0], w.later...), 0
			w.later, w.only = nil, false
			if len(w.batch) == 0 {
				select {
				case r, ok := <-w.queue:
					if !ok {
						finished = true
						close(w.ended)
						return
					}
					w.take(r)
				case f := <-w.aside:
					f()
					continue
				}
			}
			w.began = time.Now()
		}
		for w.next < len(w.batch) || w.more() {
			r := w.batch[w.next]
			w.next++
			w.one(r)
		}
		w.commit()
	}
}

// take adds r to the batch, unless its caller has left.
func (w *writer) take(r *request) {
	w.metrics.queue.Dec()
	if r.state.CompareAndSwap(queued, running) {
		w.batch = append(w.batch, r)
	}
}

// more adds a waiting transaction to the batch, if there is one and room for it.
func (w *writer) more() bool {
	if w.only || len(w.batch) >= maxBatch || time.Since(w.began) > maxHold {
		return false
	}
	for n := len(w.batch); n == len(w.batch); {
		select {
		case r, ok := <-w.queue:
			if !ok {
				return false
			}
			w.take(r)
		default:
			return false
		}
	}
	return true
}

// one runs r inside the open transaction, or begins one.
func (w *writer) one(r *request) {
	c := w.run.conn
	if !c.within {
		if err := guard(func() error { return c.begin("BEGIN IMMEDIATE") }); err != nil {
			w.fail(r, err)
			return
		}
	}
	// The first transaction of a batch needs no savepoint: when it fails, there is nothing that a
	// rollback of everything would take with it.
	alone := len(w.ran) == 0
	if !alone {
		if err := guard(func() error { return c.control("SAVEPOINT s") }); err != nil {
			w.fail(r, err)
			w.reset(err)
			return
		}
	}
	c.broken = nil
	tx := &Tx{run: w.run, ctx: context.Background(), hub: w.hub}
	returned := false
	defer func() {
		if returned {
			return
		}
		// fn panicked, or ended the goroutine.
		r.panicked = recover()
		r.exited = r.panicked == nil
		r.err = errors.New("the transaction's function did not return")
		w.undo(tx, alone)
		r.done <- struct{}{}
	}()
	err := r.fn(tx)
	returned = true
	if err == nil && c.broken == nil && c.lost == nil {
		err = w.keep(tx, alone)
		if err == nil && c.lost == nil {
			r.err, r.after = nil, tx.after
			w.ran = append(w.ran, r)
			return
		}
	}
	if c.broken != nil || c.lost != nil || err == nil {
		// What the engine did counts even when fn made light of it.
		err = unavailable(errors.Join(c.broken, c.lost, err))
	}
	w.undo(tx, alone)
	r.err = engineError(err)
	r.done <- struct{}{}
}

// keep makes what tx did a part of the batch.
func (w *writer) keep(tx *Tx, alone bool) error {
	tx.finish()
	w.run.conn.closeRows()
	if alone {
		return nil
	}
	return guard(func() error { return w.run.conn.control("RELEASE s") })
}

// undo takes back what tx did, and only that if it can.
func (w *writer) undo(tx *Tx, alone bool) {
	c := w.run.conn
	tx.finish()
	c.closeRows()
	if c.lost != nil || alone {
		w.reset(c.lost)
		return
	}
	err := guard(func() error {
		if err := c.control("ROLLBACK TO s"); err != nil {
			return err
		}
		return c.control("RELEASE s")
	})
	if err != nil || c.c.GetAutocommit() {
		w.reset(err)
	}
}

// reset rolls everything back. Those that were waiting for the commit run once more, in a commit of
// their own; one that meets this again fails, as on a full disk it would go round for ever.
func (w *writer) reset(cause error) {
	c := w.run.conn
	err := guard(func() error {
		if c.c.GetAutocommit() {
			c.within, c.lost, c.broken = false, nil, nil
			return nil
		}
		return c.end("ROLLBACK")
	})
	ran := w.ran
	w.ran = w.ran[:0]
	rest := w.batch[w.next:]
	var again []*request
	for _, r := range ran {
		r.after = nil
		if r.again || err != nil {
			w.fail(r, errors.Join(cause, err, errors.New("the shared transaction was rolled back")))
			continue
		}
		r.again = true
		w.metrics.retries.Inc()
		again = append(again, r)
	}
	if len(again) > 0 {
		w.later = append(append([]*request(nil), rest...), w.later...)
		w.batch, w.next, w.only = again, 0, true
	}
}

// fail gives r the outcome that the database is not available.
func (w *writer) fail(r *request, cause error) {
	r.err, r.after = unavailable(cause), nil
	r.done <- struct{}{}
}

// commit makes the batch durable and then tells its callers.
func (w *writer) commit() {
	if len(w.ran) == 0 {
		return
	}
	c := w.run.conn
	w.metrics.batch.Observe(float64(len(w.ran)))
	err := guard(func() error { return c.end("COMMIT") })
	for i, r := range w.ran {
		if err != nil {
			r.err, r.after = unavailable(err), nil
		}
		w.ran[i] = nil
		r.done <- struct{}{}
	}
	w.ran = w.ran[:0]
	clear(w.batch)
	w.batch, w.next = w.batch[:0], 0
}

// guard turns a panic of the engine into an error.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errEngine, p)
		}
	}()
	return f()
}
