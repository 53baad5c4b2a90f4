package edge

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// busy counts the requests of each source that are being handled. It holds as many sources as there
// are requests, which Limits.Requests bounds.
type busy struct {
	mu sync.Mutex
	of map[netip.Addr]int
}

// enter counts a request in and returns how many its source now has, and what counts it out again.
func (b *busy) enter(a netip.Addr) (n int, leave func()) {
	src := source(a)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.of[src]++
	return b.of[src], func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.of[src]--; b.of[src] == 0 {
			delete(b.of, src)
		}
	}
}

// buckets is a token bucket for each source, at most so many: the one unused for longest makes room.
// Whoever commands more networks than there are buckets is held by the limit on requests at once.
type buckets struct {
	limit  rate.Limit
	burst  int
	shards [bucketShards]bucketShard
}

const (
	bucketShards   = 16
	bucketsInShard = 4096
)

type bucketShard struct {
	mu     sync.Mutex
	of     map[netip.Addr]*bucket
	newest *bucket // a ring: newest.prev is the oldest
	max    int
}

type bucket struct {
	limiter    *rate.Limiter
	source     netip.Addr
	prev, next *bucket // next is the one used before this one
}

// newBuckets returns nil, which takes everything, for a negative rate.
func newBuckets(perSecond float64, burst int) *buckets {
	if perSecond < 0 {
		return nil
	}
	b := &buckets{limit: rate.Limit(perSecond), burst: burst}
	for i := range b.shards {
		b.shards[i] = bucketShard{of: make(map[netip.Addr]*bucket), max: bucketsInShard}
	}
	return b
}

// take takes a token of the address's source. It returns 0, or how long to wait for the next one.
func (b *buckets) take(a netip.Addr, now time.Time) time.Duration {
	if b == nil {
		return 0
	}
	src := source(a)
	raw := src.As16()
	// Any bit of a network may be the one that varies: fold them all.
	var h byte
	for _, x := range raw {
		h = h*31 + x
	}
	s := &b.shards[h%bucketShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.of[src]
	switch {
	case k != nil:
	case len(s.of) < s.max:
		k = &bucket{limiter: rate.NewLimiter(b.limit, b.burst), source: src}
		s.of[src] = k
	default:
		k = s.newest.prev
		delete(s.of, k.source)
		k.limiter, k.source = rate.NewLimiter(b.limit, b.burst), src
		s.of[src] = k
	}
	s.touch(k)
	r := k.limiter.ReserveN(now, 1)
	if !r.OK() { // burst of zero
		return time.Second
	}
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// touch makes k the newest of the ring.
func (s *bucketShard) touch(k *bucket) {
	if s.newest == k {
		return
	}
	if k.next != nil {
		k.prev.next, k.next.prev = k.next, k.prev
	}
	if s.newest == nil {
		k.prev, k.next = k, k
	} else {
		k.next, k.prev = s.newest, s.newest.prev
		k.prev.next, k.next.prev = k, k
	}
	s.newest = k
}
