package identity

import (
	"context"
	"slices"
	"sync"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// A session that was found good is remembered, so that the next request of its device need not ask the
// database. It is forgotten when a transaction that ends a session, or shuts a device out, is committed, at
// whatever server: each such transaction announces its customer. A memory is believed only while this server
// is known to have heard all that was committed until a moment ago; else the database is asked. So an end
// reaches every server within sessionLease, whatever happens on the way: lost connections, servers that stand
// still, announcements that are late.

const (
	// topicSessions is where ends of sessions are announced, by customer.
	topicSessions = "sessions"
	// sessionLease is for how long a memory is believed after the last instant up to which all ends have been heard.
	sessionLease = 800 * time.Millisecond
	// sessionMemory is for how long one is believed at most.
	sessionMemory = 30 * time.Second
	// sessionMemories is how many are kept.
	sessionMemories = 16384
)

// announceEnd has every server forget the customer's sessions once tx is committed.
func announceEnd(ctx context.Context, tx *db.Tx, c customer.ID) error {
	return tx.Announce(ctx, topicSessions, string(c))
}

// memory is what a server remembers of sessions.
type memory struct {
	feed *db.Feed
	most int

	mu         sync.RWMutex
	forgotten  uint64 // how often something was forgotten
	byToken    map[[32]byte]remembered
	byCustomer map[customer.ID][][32]byte
}

type remembered struct {
	session sessionRow
	read    time.Time
}

// newMemory returns a memory of at most so many sessions; none when most is negative.
func newMemory(d *db.DB, most int) *memory {
	m := &memory{most: most, byToken: map[[32]byte]remembered{}, byCustomer: map[customer.ID][][32]byte{}}
	if most > 0 {
		m.feed = d.Follow(topicSessions, m.forget)
	}
	return m
}

// session returns what is remembered of the session of a token, if that may be believed.
func (m *memory) session(token [32]byte) (sessionRow, bool) {
	if m.feed == nil {
		return sessionRow{}, false
	}
	current := m.feed.Current() // before the look, which then knows of all ends until that instant
	m.mu.RLock()
	r, ok := m.byToken[token]
	m.mu.RUnlock()
	now := time.Now()
	return r.session, ok && passed(current, now) < sessionLease && passed(r.read, now) < sessionMemory
}

// passed is how much time may have passed between two instants. The clock that measures time stands still while the
// machine is suspended, and the one that tells it can be set: where they differ the longer time holds.
func passed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)).Abs())
}

// begin is called before a session is read, for keep.
func (m *memory) begin() (uint64, time.Time) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.forgotten, time.Now()
}

// keep remembers a session that was read after begin, unless something was forgotten meanwhile: that may have been
// this session, as it was read.
func (m *memory) keep(forgotten uint64, read time.Time, token [32]byte, s sessionRow) {
	if m.feed == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.forgotten != forgotten {
		return
	}
	_, again := m.byToken[token]
	if !again && len(m.byToken) >= m.most {
		for other := range m.byToken { // any
			m.drop(other)
			break
		}
	}
	if !again {
		m.byCustomer[s.customer] = append(m.byCustomer[s.customer], token)
	}
	m.byToken[token] = remembered{s, read}
}

// drop forgets one token.
func (m *memory) drop(token [32]byte) {
	c := m.byToken[token].session.customer
	delete(m.byToken, token)
	if left := slices.DeleteFunc(m.byCustomer[c], func(t [32]byte) bool { return t == token }); len(left) > 0 {
		m.byCustomer[c] = left
	} else {
		delete(m.byCustomer, c)
	}
}

// forget forgets the sessions of a customer, or all for "".
func (m *memory) forget(c string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgotten++
	if c == "" {
		clear(m.byToken)
		clear(m.byCustomer)
		return
	}
	for _, token := range m.byCustomer[customer.ID(c)] {
		delete(m.byToken, token)
	}
	delete(m.byCustomer, customer.ID(c))
}

// sessionOf finds the session of an access token, with no more round trips to the database than are needed.
func (i *Identity) sessionOf(ctx context.Context, token string, now time.Time) (s sessionRow, found bool, err error) {
	hash := tokenHash(token)
	key := [32]byte(hash)
	if s, ok := i.memory.session(key); ok && i.untroubled(&s, now) && i.rows.checkSession(&s) == nil {
		return s, true, nil
	}
	forgotten, read := i.memory.begin()
	err = i.DB.Read(ctx, func(tx *db.Tx) (err error) {
		s, found, err = i.rows.sessionByAccess(ctx, tx, hash)
		return err
	})
	if err == nil && found && i.untroubled(&s, now) {
		i.memory.keep(forgotten, read, key, s)
	}
	return s, found, err
}

// untroubled reports whether a session is good, nothing of it has ended, and nothing is to be written down. All
// else is the database's to say: it may know of a later use.
func (i *Identity) untroubled(s *sessionRow, now time.Time) bool {
	return !s.revoked.Valid && s.deviceStatus == authorised && clock.Micros(now) < s.tokenExpires && !s.over(now) &&
		i.live(s, now) == s.granted() && clock.Micros(now)-s.used < i.touchEvery(s).Microseconds()
}
