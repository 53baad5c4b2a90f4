package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
)

// ActionSinkStart is recorded at each start, for every sink: what leaves, and whether persons are in it.
const ActionSinkStart = "audit.sink.start"

// FindingSinkLag is the kind of the finding that a sink is too far behind; its subject is the sink's name.
const FindingSinkLag = "audit.sink-lag"

const (
	// followPage is how many events a sink is given at once.
	followPage = 256
	// streamEvery is how often a sink without a backlog looks for events.
	streamEvery = 500 * time.Millisecond
	// sendTime bounds how long a sink may take for one page.
	sendTime = 30 * time.Second
	// A sink that failed is tried again after leastWait, then after twice as long, up to mostWait.
	leastWait = time.Second
	mostWait  = 5 * time.Minute
	// maxSinkLag is the age of the oldest event that was not sent over which it is a finding.
	maxSinkLag = 5 * time.Minute
)

// Sink takes the trail out of Strongroom. Send gets events in the order of the log, and returns nil when
// the receiver has them for good. After a failure the same events come again, so a receiver may see one
// twice, and knows it by its id. Only one Send runs at a time.
type Sink interface {
	Send(ctx context.Context, events []Entry) error
}

// Stream is a sink and what it is sent.
type Stream struct {
	Name     string // stable: where the sink has got to is kept under it
	Form     string // for the event of the start: "webhook ocsf"
	Personal bool   // with personal parts, which then leave the reach of erasure
	To       Sink
}

// Streams sends the trail to sinks. A deed never waits for one: each has its own job, which reads what is
// committed and sequenced, and its own cursor.
type Streams struct {
	trail    *Trail
	all      []*stream
	findings Findings // may be nil
	behind   *prometheus.GaugeVec
	age      *prometheus.GaugeVec
	sent     *prometheus.CounterVec
	failures *prometheus.CounterVec
}

// stream is what the process remembers of one sink.
type stream struct {
	Stream
	*Streams
	failed  int
	retryAt time.Time

	mu     sync.Mutex
	raised *bool // whether the finding was raised by this process; nil when it does not know
}

// OpenStreams records that the sinks are sent the trail from now on, and returns what does so.
func (t *Trail) OpenStreams(ctx context.Context, by actor.Actor, list []Stream, f Findings, r prometheus.Registerer) (*Streams, error) {
	s := &Streams{
		trail: t, findings: f,
		behind: register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strongroom_audit_sink_lag_events", Help: "Events of the log that the sink has not confirmed, at this replica's last look.",
		}, []string{"sink"})),
		age: register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strongroom_audit_sink_lag_seconds", Help: "Age of the oldest event that the sink has not confirmed, at this replica's last look.",
		}, []string{"sink"})),
		sent: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strongroom_audit_sink_events_total", Help: "Events that this process sent and the sink confirmed.",
		}, []string{"sink"})),
		failures: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strongroom_audit_sink_failures_total", Help: "Pages of events that the sink did not confirm.",
		}, []string{"sink"})),
	}
	for _, l := range list {
		parts := "without personal parts"
		if l.Personal {
			parts = "with personal parts"
		}
		e := Event{Action: ActionSinkStart, Resource: "sink " + l.Name + " " + l.Form + ", " + parts}
		err := t.Do(ctx, by, e, func(tx *db.Tx, _ *Event) error { return insertCursor(ctx, tx, l.Name, clock.Micros(t.clock.Now())) })
		if err != nil {
			return nil, err
		}
		s.all = append(s.all, &stream{Stream: l, Streams: s})
	}
	return s, nil
}

// Jobs returns a leased job for each sink, so that one replica sends to it, and one that measures on every
// replica how far the sinks are behind, whoever sends.
func (s *Streams) Jobs() []jobs.Job {
	if len(s.all) == 0 {
		return nil
	}
	list := []jobs.Job{{Name: "audit.sinks.watch", Every: 10 * time.Second, Run: s.watch, Quiet: true}}
	for _, one := range s.all {
		list = append(list, jobs.Job{Name: "audit.sink." + one.Name, Every: streamEvery, Run: one.run, Leased: true, Quiet: true})
	}
	return list
}

// run sends until there is nothing more.
func (s *stream) run(ctx context.Context) error {
	t := s.trail
	if t.clock.Now().Before(s.retryAt) {
		return nil
	}
	for {
		var from, next int64
		var events []Entry
		err := t.db.View(ctx, func(tx *db.Tx) (err error) {
			if from, err = selectCursor(ctx, tx, s.Name); err != nil {
				return err
			}
			events, next, err = t.following(ctx, tx, from, s.Personal)
			return err
		})
		if err != nil {
			return err
		}
		if next == from {
			return nil
		}
		if len(events) > 0 {
			if err := s.send(ctx, events); err != nil {
				return err
			}
		}
		if err := s.move(ctx, from, next); err != nil {
			return err
		}
		s.sent.WithLabelValues(s.Name).Add(float64(len(events)))
	}
}

func (s *stream) send(ctx context.Context, events []Entry) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	err := s.To.Send(ctx, events)
	if err == nil {
		s.failed, s.retryAt = 0, time.Time{}
		return nil
	}
	s.failures.WithLabelValues(s.Name).Inc()
	wait := min(mostWait, leastWait<<min(s.failed, 20))
	s.failed++
	s.retryAt = s.trail.clock.Now().Add(wait)
	return fmt.Errorf("audit: the sink %q did not take the events from index %d on; the next try is in %v: %w", s.Name, events[0].Index, wait, err)
}

// move moves the cursor, if the lease is still ours: who lost it has sent twice, and skipped nothing.
func (s *stream) move(ctx context.Context, from, next int64) error {
	lease, leased := jobs.LeaseOf(ctx)
	return s.trail.db.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
		if leased {
			held, err := jobs.Holds(ctx, tx, lease.Name, lease.Holder, lease.Epoch)
			if err != nil {
				return err
			}
			if !held {
				return errors.New("audit: the sink's lease was lost")
			}
		}
		moved, err := moveCursor(ctx, tx, s.Name, from, next, clock.Micros(s.trail.clock.Now()))
		if err == nil && !moved {
			err = fmt.Errorf("audit: the cursor of the sink %q was moved by another", s.Name)
		}
		return err
	})
}

// following returns the events with a place from the index from on, at most a page of them, and the
// index after the last. Without more events that is from. A place without an event is left out: the
// receiver sees the gap in the numbers, and Verify says what was dropped.
func (t *Trail) following(ctx context.Context, tx *db.Tx, from int64, personal bool) (events []Entry, next int64, err error) {
	h, err := selectHead(ctx, tx)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, from, fmt.Errorf("%w (log_head is empty)", errTampered)
	}
	if err != nil {
		return nil, from, err
	}
	if from > h.size {
		return nil, from, fmt.Errorf("%w (it has %d events, and the next to be sent is at index %d)", ErrRolledBack, h.size, from)
	}
	next = min(from+followPage, h.size)
	if next == from {
		return nil, from, nil
	}
	found, err := selectLeaves(ctx, tx, from, next)
	if err != nil {
		return nil, from, err
	}
	events, err = t.showAll(ctx, tx, found, nil, personal)
	return events, next, err
}

// watch measures all sinks.
func (s *Streams) watch(ctx context.Context) error {
	var errs []error
	for _, one := range s.all {
		errs = append(errs, one.measure(ctx))
	}
	return errors.Join(errs...)
}

func (s *stream) measure(ctx context.Context) error {
	var behind int64
	var age time.Duration
	err := s.trail.db.View(ctx, func(tx *db.Tx) error {
		next, err := selectCursor(ctx, tx, s.Name)
		if err != nil {
			return err
		}
		h, err := selectHead(ctx, tx)
		if err != nil {
			return err
		}
		behind, age = max(0, h.size-next), 0
		if behind == 0 {
			return nil
		}
		madeAt, err := selectTimeFrom(ctx, tx, next)
		if err != nil || madeAt == 0 {
			return err
		}
		age = s.trail.age(madeAt)
		return nil
	})
	if err != nil {
		return err
	}
	s.behind.WithLabelValues(s.Name).Set(float64(behind))
	s.age.WithLabelValues(s.Name).Set(age.Seconds())
	return s.report(ctx, behind, age)
}

// report raises the finding, or clears it, when that changed since this process did so last.
func (s *stream) report(ctx context.Context, behind int64, age time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := age > maxSinkLag
	if s.raised != nil && *s.raised == late {
		return nil
	}
	if late {
		s.trail.log.LogAttrs(ctx, slog.LevelWarn, "a sink of the trail is behind", slog.String("sink", s.Name),
			slog.Int64("events", behind), slog.Duration("oldest", age.Round(time.Second)))
	}
	if s.findings != nil {
		var err error
		if late {
			err = s.findings.Raise(ctx, FindingSinkLag, s.Name, fmt.Sprintf(
				"%d events were not sent; the oldest is %v old. Look at the log for why the sink does not take them.", behind, age.Round(time.Second)))
		} else {
			err = s.findings.Clear(ctx, FindingSinkLag, s.Name)
		}
		if err != nil {
			return err
		}
	}
	s.raised = &late
	return nil
}

func insertCursor(ctx context.Context, tx *db.Tx, name string, now int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO audit_sink (name, next, moved_at) VALUES ($1, 0, $2) ON CONFLICT (name) DO NOTHING`, name, now)
	return err
}

func selectCursor(ctx context.Context, tx *db.Tx, name string) (next int64, err error) {
	err = tx.QueryRow(ctx, `SELECT next FROM audit_sink WHERE name = $1`, name).Scan(&next)
	if err == nil && next < 0 {
		err = fmt.Errorf("%w (the cursor of a sink is negative)", errTampered)
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("%w (the cursor of the sink %q is gone; a restart begins anew)", errTampered, name)
	}
	return next, err
}

func moveCursor(ctx context.Context, tx *db.Tx, name string, from, next, now int64) (bool, error) {
	n, err := tx.Exec(ctx, `UPDATE audit_sink SET next = $1, moved_at = $2 WHERE name = $3 AND next = $4`, next, now, name, from)
	return n == 1, err
}

// selectTimeFrom returns when the first event with a place from index on was made; 0 without one.
func selectTimeFrom(ctx context.Context, tx *db.Tx, index int64) (madeAt int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT e.made_at FROM event_leaf l JOIN event e ON e.id = l.event_id
		WHERE l.idx >= $1 ORDER BY l.idx LIMIT 1`, index).Scan(&madeAt)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return madeAt, err
}
