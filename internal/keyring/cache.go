package keyring

import (
	"container/list"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/keyring/seal"
)

// cache keeps customers' rings, the latest used, each for one lease at most. It holds only what was
// committed.
type cache struct {
	size  int
	lease time.Duration
	clock clock.Clock

	hits, misses prometheus.Counter

	mu      sync.Mutex
	entries map[customer.ID]*list.Element
	order   *list.List // latest used first
	swept   time.Time
	marks   uint64
}

type entry struct {
	customer customer.ID
	ring     *seal.Ring // nil: nothing may be kept for this customer until the lease ends
	until    time.Time
	mark     uint64 // of the forget that made it
}

func newCache(size int, lease time.Duration, c clock.Clock, metrics prometheus.Registerer) (*cache, error) {
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "strongroom_keyring_lookups_total",
		Help: "Look-ups of customers' data keys in the cache, by result.",
	}, []string{"result"})
	if metrics != nil {
		if err := metrics.Register(lookups); err != nil {
			var there prometheus.AlreadyRegisteredError
			if !errors.As(err, &there) {
				return nil, err
			}
			lookups = there.ExistingCollector.(*prometheus.CounterVec)
		}
	}
	return &cache{
		size: size, lease: lease, clock: c,
		hits: lookups.WithLabelValues("hit"), misses: lookups.WithLabelValues("miss"),
		entries: make(map[customer.ID]*list.Element), order: list.New(), swept: c.Now(),
	}, nil
}

// get returns the ring of id, or nil.
func (c *cache) get(id customer.ID) *seal.Ring {
	now := c.clock.Now()
	c.mu.Lock()
	c.sweep(now)
	var ring *seal.Ring
	if element := c.entries[id]; element != nil {
		if e := element.Value.(*entry); e.until.After(now) {
			c.order.MoveToFront(element)
			ring = e.ring
		} else {
			c.remove(element)
		}
	}
	c.mu.Unlock()
	if ring != nil {
		c.hits.Inc()
	} else {
		c.misses.Inc()
	}
	return ring
}

// put keeps the ring for a lease, unless the customer was just forgotten or a ring is there that has a
// newer version: a transaction that began before a rotation may end after it.
func (c *cache) put(id customer.ID, ring *seal.Ring) {
	now := c.clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep(now)
	if element := c.entries[id]; element != nil {
		e := element.Value.(*entry)
		if e.until.After(now) && (e.ring == nil || e.ring.Version() > ring.Version()) {
			return
		}
	}
	c.set(entry{id, ring, now.Add(c.lease), 0})
}

// replace keeps the ring of a customer who was forgotten with that mark, and not again since.
func (c *cache) replace(id customer.ID, ring *seal.Ring, mark uint64) {
	now := c.clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if element := c.entries[id]; element != nil && element.Value.(*entry).mark == mark {
		c.set(entry{id, ring, now.Add(c.lease), 0})
	}
}

// clear drops all rings; who was forgotten stays so.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for element := c.order.Front(); element != nil; {
		next := element.Next()
		if element.Value.(*entry).ring != nil {
			c.remove(element)
		}
		element = next
	}
}

// forget drops what is kept for id, and has put ignored for a lease: a transaction that began before
// the key was destroyed or renewed may still be about to put it back.
func (c *cache) forget(id customer.ID) (mark uint64) {
	now := c.clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep(now)
	c.marks++
	c.set(entry{id, nil, now.Add(c.lease), c.marks})
	return c.marks
}

func (c *cache) set(e entry) {
	if element := c.entries[e.customer]; element != nil {
		*element.Value.(*entry) = e
		c.order.MoveToFront(element)
		return
	}
	c.entries[e.customer] = c.order.PushFront(&e)
	if c.order.Len() > c.size {
		c.remove(c.order.Back())
	}
}

// sweep drops every few minutes what nobody asked for again, so that keys don't stay in memory long
// after their lease.
func (c *cache) sweep(now time.Time) {
	if now.Sub(c.swept) < c.lease {
		return
	}
	c.swept = now
	for element := c.order.Front(); element != nil; {
		next := element.Next()
		if !element.Value.(*entry).until.After(now) {
			c.remove(element)
		}
		element = next
	}
}

func (c *cache) remove(element *list.Element) {
	delete(c.entries, c.order.Remove(element).(*entry).customer)
}
