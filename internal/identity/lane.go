package identity

import "time"

// The numbers of the lock-out.
const (
	maxFailures = 5                // then the lane is blocked (PSD2 RTS on SCA article 4)
	firstBlock  = 15 * time.Minute // and each block in a row is twice as long as the one before,
	longBlock   = 24 * time.Hour   // up to this
	ceiling     = 100              // failures in a row in one lane (NIST SP 800-63B-4 section 3.2.2)
)

// lane counts the failures of one account from one source: one of its authorised devices, or all
// unknown devices together (OWASP device cookies). Guessing therefore blocks those who guess.
type lane struct {
	failures int64 // since the last block
	total    int64 // in a row
	level    int64 // blocks in a row
	blocked  int64 // until when, in Unix microseconds
	older    bool  // some of it stands under an older version of the blind-index key
}

// add adds what another row of the same lane says.
func (l *lane) add(o lane) {
	l.failures += o.failures
	l.total += o.total
	l.level, l.blocked = max(l.level, o.level), max(l.blocked, o.blocked)
}

// isBlocked reports whether nothing is compared in this lane at now. At the ceiling time opens it no
// more: that of unknown devices only a success from a known device lifts, and a known device that
// reaches it is revoked.
func (l *lane) isBlocked(now time.Time) bool {
	return l.blocked > now.UnixMicro() || l.total >= ceiling
}

// charge counts an attempt before it is made, so that many at the same instant do not all find the
// lane open. It reports whether the attempt may be made.
func (l *lane) charge(now time.Time) bool {
	if l.isBlocked(now) {
		return false
	}
	l.failures++
	l.total++
	if l.failures >= maxFailures {
		l.failures = 0
		pause := longBlock
		if l.level < 7 { // 15 minutes doubled seven times are over a day
			pause = min(firstBlock<<l.level, longBlock)
		}
		l.level++
		l.blocked = now.Add(pause).UnixMicro()
	}
	return true
}

// refund takes back one charge, of an attempt that turned out right. What others were charged stays:
// starting a new login never resets a count.
func (l *lane) refund() {
	if l.total > 0 {
		l.total--
	}
	switch {
	case l.failures > 0:
		l.failures--
	case l.level > 0:
		l.failures, l.level, l.blocked = maxFailures-1, l.level-1, 0
	}
}

// reset forgets all failures, after a complete login.
func (l *lane) reset() { *l = lane{older: l.older} }

// counter counts in a sliding window: the present window, and of the one before the part that the
// window still covers.
type counter struct {
	since    int64 // start of the present window, Unix microseconds
	count    int64
	previous int64
	refused  int64 // in the present window
	older    bool  // some of it stands under an older version of the blind-index key
}

// merge adds what another row of the same counter says, at now.
func (c *counter) merge(o counter, now time.Time, per time.Duration) {
	if o.since == 0 {
		return
	}
	if c.since == 0 {
		o.older, *c = c.older, o
		return
	}
	c.slide(now, per)
	o.slide(now, per)
	c.since = max(c.since, o.since)
	c.count += o.count
	c.previous += o.previous
	c.refused = max(c.refused, o.refused)
}

// slide moves the window to now.
func (c *counter) slide(now time.Time, per time.Duration) {
	us, window := now.UnixMicro(), per.Microseconds()
	switch elapsed := us - c.since; {
	case c.since == 0 || elapsed >= 2*window || elapsed < 0:
		*c = counter{since: us, older: c.older}
	case elapsed >= window:
		*c = counter{since: c.since + window, previous: c.count, older: c.older}
	}
}

// add counts n more at now, unless that would be over the rate; n may be 0.
func (c *counter) add(now time.Time, r Rate, n int64) bool {
	if !c.room(now, r, n) {
		c.refused++
		return false
	}
	c.count += n
	return true
}

// room reports whether n more fit at now.
func (c *counter) room(now time.Time, r Rate, n int64) bool {
	c.slide(now, r.Per)
	left := 1 - float64(now.UnixMicro()-c.since)/float64(r.Per.Microseconds())
	used := float64(c.previous)*left + float64(c.count)
	return n == 0 || used+float64(n) <= float64(r.Limit)
}

// wait returns how long a refused caller should wait.
func (c *counter) wait(now time.Time, r Rate) time.Duration {
	return min(max(time.Second, r.Per-time.Duration(now.UnixMicro()-c.since)*time.Microsecond), r.Per)
}
