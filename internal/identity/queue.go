package identity

import (
	"context"
	"slices"
	"sync"
)

// guest is who asks for a place in the queue.
type guest struct {
	known  bool   // by the key of an authorised device
	source string // has placesEach places at most; "" is not bounded
}

// placesEach is how many places one network, or one known device, has in the queue at a time.
const placesEach = 2

// queue bounds how many hash at the same time and how many wait. Known devices and strangers wait in
// queues of their own, each first come, first served. One worker is kept for known devices; where
// there is but one, they come first. So strangers, however many, never keep a customer waiting for
// more than one hash.
type queue struct {
	mu      sync.Mutex
	workers int
	waiters int // of each kind, at most
	busy    int
	others  int // of the busy, those who serve strangers
	waiting [2][]*ticket
	held    map[guest]int
}

type ticket struct {
	guest
	turn chan struct{} // closed when a worker is free for it
}

func newQueue(workers, waiters int) *queue {
	return &queue{workers: workers, waiters: waiters, held: map[guest]int{}}
}

func (g guest) kind() int {
	if g.known {
		return 1
	}
	return 0
}

// enter waits for a worker and returns the function that gives it back. It refuses at once when too
// many wait already or the guest's source has its places.
func (q *queue) enter(ctx context.Context, g guest) (leave func(), err error) {
	t := &ticket{guest: g, turn: make(chan struct{})}
	if !q.join(t) {
		return nil, errLoginBusy
	}
	select {
	case <-t.turn:
	case <-ctx.Done():
		if !q.withdraw(t) {
			q.leave(t) // its turn came at the same instant
		}
		return nil, errLoginBusy.Because(ctx.Err())
	}
	return func() { q.leave(t) }, nil
}

func (q *queue) join(t *ticket) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.source != "" && q.held[t.guest] >= placesEach {
		return false
	}
	k := t.kind()
	q.waiting[k] = append(q.waiting[k], t)
	q.serve()
	if len(q.waiting[k]) > q.waiters {
		q.waiting[k] = q.waiting[k][:len(q.waiting[k])-1] // it is the last, or there would be room
		return false
	}
	q.held[t.guest]++
	return true
}

// serve gives free workers to those who wait.
func (q *queue) serve() {
	for q.busy < q.workers {
		k := 1
		if len(q.waiting[k]) == 0 {
			k = 0
			if len(q.waiting[k]) == 0 || q.others >= max(1, q.workers-1) {
				return
			}
			q.others++
		}
		q.busy++
		t := q.waiting[k][0]
		q.waiting[k] = slices.Delete(q.waiting[k], 0, 1)
		close(t.turn)
	}
}

// withdraw takes a ticket out of the queue, unless its turn has come.
func (q *queue) withdraw(t *ticket) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := t.kind()
	n := slices.Index(q.waiting[k], t)
	if n < 0 {
		return false
	}
	q.waiting[k] = slices.Delete(q.waiting[k], n, n+1)
	q.release(t)
	return true
}

func (q *queue) leave(t *ticket) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	if !t.known {
		q.others--
	}
	q.release(t)
	q.serve()
}

func (q *queue) release(t *ticket) {
	if q.held[t.guest]--; q.held[t.guest] <= 0 {
		delete(q.held, t.guest)
	}
}

// length is how many hash or wait.
func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.busy + len(q.waiting[0]) + len(q.waiting[1])
}
