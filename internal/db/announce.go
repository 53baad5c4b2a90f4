package db

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Processes on one database tell each other what they have committed, so that one may remember what it has
// read until it hears that it changed. With the embedded database there is one process, and it hears at once.
// With PostgreSQL announcements travel as notifications, which the server delivers in the order of the commits. One
// connection of each process listens, and sends notifications to itself: one that has come back means that
// all before it have come too. A connection that is lost, or silent, is a doubt, which Feed.Current shows; so is one
// that others share, as behind a pooler, which brings back what was sent on it and may lose what others send.

const (
	// channel is the name of PostgreSQL's notifications.
	channel = "strongroom"
	// beatEvery is how often a process makes sure that it still hears.
	beatEvery = 200 * time.Millisecond
	// beatTimeout is how long it waits for a notification to itself before it connects anew.
	beatTimeout = 10 * time.Second
)

// hub tells the followers in this process what was announced.
type hub struct {
	mu        sync.RWMutex
	followers []follower
	remote    *listener // nil with the embedded database
}

type follower struct {
	topic string
	heard func(word string)
}

// Feed is what a follower hears.
type Feed struct{ hub *hub }

// Announce has whoever follows the topic hear the word once the transaction is committed: in this process
// before Update returns, and in all others on the same database. Topics have no spaces. A word may be heard
// twice.
func (tx *Tx) Announce(ctx context.Context, topic, word string) error {
	if tx.hub.remote != nil {
		if _, err := tx.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, topic+" "+word); err != nil {
			return err
		}
	}
	tx.AfterCommit(func() { tx.hub.tell(topic, word) })
	return nil
}

// Follow has heard called with each word that is announced on the topic from now on, and with "" when some
// may have been missed. It is called from any goroutine, also before Follow returns, and must not use the database.
func (d *DB) Follow(topic string, heard func(word string)) *Feed {
	d.hub.mu.Lock()
	defer d.hub.mu.Unlock()
	d.hub.followers = append(d.hub.followers, follower{topic, heard})
	return &Feed{d.hub}
}

// Current returns an instant such that everything has been heard that was announced, by whatever process, in
// transactions committed before it. It is the zero time when that is not known. With PostgreSQL the first
// call begins to listen.
func (f *Feed) Current() time.Time {
	if f.hub.remote == nil {
		return time.Now()
	}
	f.hub.remote.begin.Do(f.hub.remote.start)
	if at := f.hub.remote.current.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

func (h *hub) tell(topic, word string) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, f := range h.followers {
		if f.topic == topic {
			f.heard(word)
		}
	}
}

// doubt tells all followers that they may have missed something.
func (h *hub) doubt() {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, f := range h.followers {
		f.heard("")
	}
}

// listener is the connection that hears other processes.
type listener struct {
	hub     *hub
	config  *pgx.ConnConfig
	begin   sync.Once
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	current atomic.Pointer[time.Time] // when the newest notification to ourselves that has come back was sent
}

func newListener(h *hub, config *pgx.ConnConfig) *listener {
	l := &listener{hub: h, config: config}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

func (l *listener) start() { l.running.Go(l.run) }

// stop ends listening for good.
func (l *listener) stop() {
	l.begin.Do(func() {})
	l.cancel()
	l.running.Wait()
}

// run listens, and begins anew when the connection is lost.
func (l *listener) run() {
	for pauses := beatEvery; l.ctx.Err() == nil; pauses = min(2*pauses, beatTimeout) {
		began := time.Now()
		_ = l.listen() // whoever needs the database hears of its state soon enough
		l.current.Store(nil)
		l.hub.doubt()
		if time.Since(began) > time.Minute {
			pauses = beatEvery
		}
		l.pause(pauses)
	}
}

func (l *listener) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.ctx.Done():
	}
}

// listen returns why it heard no more.
func (l *listener) listen() error {
	var own, by uint32 // processes of the server: ours, and the one that the beat came from
	var beat string
	config := l.config.Copy()
	config.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) {
		if n.Payload == beat {
			by = n.PID
			return
		}
		if topic, word, ok := strings.Cut(n.Payload, " "); ok {
			l.hub.tell(topic, word)
		}
	}
	opening, cancel := context.WithTimeout(l.ctx, beatTimeout)
	defer cancel()
	c, err := pgx.ConnectConfig(opening, config)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(closing)
	}()
	if _, err := c.Exec(opening, `LISTEN `+channel); err != nil {
		return err
	}
	own = c.PgConn().PID()
	l.hub.doubt() // what was announced before LISTEN is missed
	for {
		beat, by = "beat "+rand.Text(), 0
		sent := time.Now()
		if err := l.beat(c, beat, &by); err != nil {
			return err
		}
		if by != own {
			return errShared
		}
		l.current.Store(&sent)
		l.pause(beatEvery)
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
	}
}

// errShared says that the process of the server that does our work is not the one that the connection began with.
// Whoever shares processes among clients names its own, since it has to tell apart whose query is to be cancelled.
var errShared = errors.New("the connection to PostgreSQL is shared with others, who may hear in its place")

// beat sends a notification to ourselves and waits until it is back, from whom is at *by. It need not survive, so its
// commit does not wait for the disk; the setting ends with it, or it would be that of whoever comes next to a
// connection that is shared.
func (l *listener) beat(c *pgx.Conn, beat string, by *uint32) error {
	ctx, cancel := context.WithTimeout(l.ctx, beatTimeout)
	defer cancel()
	_, err := c.Exec(ctx, `SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`, channel, beat)
	for err == nil && *by == 0 {
		err = c.PgConn().WaitForNotification(ctx)
	}
	return err
}
