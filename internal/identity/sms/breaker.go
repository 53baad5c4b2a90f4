package sms

import (
	"slices"
	"sync"
	"time"
)

// Breaker remembers whether a gateway works, so that while it does not, people are told at once
// instead of waiting for a code that will not come. After failures with Threshold numbers in a row it
// is open; from then on one trial is let through per pause, and the first success closes it. One
// number that the gateway dislikes is no evidence about the gateway: it counts once.
type Breaker struct {
	mu     sync.Mutex
	failed []string     // the numbers that failed since the last success, Threshold at most
	until  [2]time.Time // no trial before, for strangers and for known customers
	pause  time.Duration
}

// The breaker's numbers.
const (
	Threshold = 5
	minPause  = 10 * time.Second
	maxPause  = time.Minute
)

func (b *Breaker) open() bool { return len(b.failed) >= Threshold }

// Allow reports whether a message may be promised to somebody at now. When not, wait says how long
// until the next trial. An open breaker that allows has given its trial away; strangers cannot take
// that of known customers.
func (b *Breaker) Allow(now time.Time, known bool) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open() {
		return 0, true
	}
	until := &b.until[0]
	if known {
		until = &b.until[1]
	}
	if now.Before(*until) {
		return until.Sub(now), false
	}
	*until = now.Add(b.pause)
	return 0, true
}

// Broken reports whether the breaker is open.
func (b *Breaker) Broken() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open()
}

// Success closes the breaker.
func (b *Breaker) Success() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed, b.pause = nil, 0
}

// Failure counts that at now the gateway failed to take a message to the number, and opens the breaker
// when it was the last straw. While it is open, a failed trial puts off the next; one of a stranger
// does not put off those of known customers.
func (b *Breaker) Failure(now time.Time, to string, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Contains(b.failed, to) {
		return
	}
	already := b.open()
	if already {
		if now.Before(b.until[0]) && (!known || now.Before(b.until[1])) {
			return // several were under way
		}
		b.failed = b.failed[1:]
	}
	if b.failed = append(b.failed, to); !b.open() {
		return
	}
	b.pause = min(max(2*b.pause, minPause), maxPause)
	b.until[0] = now.Add(b.pause)
	if known || !already {
		b.until[1] = now.Add(b.pause)
	}
}
