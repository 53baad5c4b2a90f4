package sms

import (
	"sync"
	"time"
)

// Breaker remembers whether a gateway works, so that while it does not, people are told at once
// instead of waiting for a code that will not come. After Threshold failures in a row it is open;
// from then on one trial is let through per pause, and the first success closes it.
type Breaker struct {
	mu       sync.Mutex
	failures int
	until    time.Time // no trial before
	pause    time.Duration
}

// The breaker's numbers.
const (
	Threshold = 5
	minPause  = 10 * time.Second
	maxPause  = time.Minute
)

// Allow reports whether a message may be promised to somebody at now. When not, wait says how long
// until the next trial. An open breaker that allows has given its trial away.
func (b *Breaker) Allow(now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < Threshold {
		return 0, true
	}
	if now.Before(b.until) {
		return b.until.Sub(now), false
	}
	b.until = now.Add(b.pause)
	return 0, true
}

// Broken reports whether the breaker is open, and until when it is not worth trying.
func (b *Breaker) Broken(now time.Time) (until time.Time, broken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.until, b.failures >= Threshold
}

// Success closes the breaker.
func (b *Breaker) Success() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.pause = 0, 0
}

// Failure counts a failure at now, and opens the breaker when it was the last straw.
func (b *Breaker) Failure(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures++; b.failures < Threshold {
		return
	}
	if now.Before(b.until) {
		return // several were under way
	}
	b.pause = min(max(2*b.pause, minPause), maxPause)
	b.until = now.Add(b.pause)
}
