package seal

import (
	"errors"
	"sync/atomic"
)

// Limit is how many values one key version may seal with random nonces, so that two of them have the same
// nonce with a probability under 2^-32 (NIST SP 800-38D section 8.3).
const Limit = 1 << 32

// ErrWornOut is what Seal panics with when the key version has sealed Limit values: one more could give
// away all of them, and must not be survived. Whoever can fail asks Worn before.
var ErrWornOut = errors.New("seal: the key version has sealed as many values as it may: rotate the key")

// Counter counts the values that one key version seals in this process. What it may seal is granted to
// it in blocks, by whoever keeps the count of all processes; while it waits for the next block it goes
// on, unless it was told that there is none.
type Counter struct {
	used, granted atomic.Int64
	last          atomic.Bool
}

// Used returns how many values were sealed.
func (c *Counter) Used() int64 { return c.used.Load() }

// Granted returns how many values may be sealed.
func (c *Counter) Granted() int64 { return c.granted.Load() }

// Grant allows n values more. The last grant is the one after which there is none.
func (c *Counter) Grant(n int64, last bool) {
	c.granted.Add(n)
	c.last.Store(last)
}

// Worn reports whether the key version may seal no more.
func (c *Counter) Worn() bool { return c.last.Load() && c.used.Load() >= c.granted.Load() }

func (c *Counter) take() {
	if c.used.Add(1) > c.granted.Load() && c.last.Load() {
		panic(ErrWornOut)
	}
}

// Counted returns the same key, whose seals c counts.
func (k *Key) Counted(c *Counter) *Key {
	counted := *k
	counted.counter = c
	return &counted
}

// Worn reports whether the key that seals may seal no more.
func (r *Ring) Worn() bool { return r.seals.counter != nil && r.seals.counter.Worn() }
