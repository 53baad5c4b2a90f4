// Package finding keeps what is wrong until it is right again.
//
// A room that notices something which somebody has to look at (a key that was marked compromised, a
// key-management service that does not answer, a copy that is overdue) raises a finding, again and
// again while it lasts, and clears it when it is over. The promise: opening and clearing are events of
// the trail, in the same transaction; noticing the same thing once more is not; and a finding is open
// until the room that raised it, and nobody else, says that it is over.
//
// Details are for operators and leave the house by way of alerts: they hold no personal data.
package finding

import (
	"context"
	"log/slog"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// The actions that finding records. The resource is the finding, "audit.sink-lag archive".
const (
	ActionOpen  = "finding.finding.open"  // something was noticed that was not known, or was over
	ActionClear = "finding.finding.clear" // it is right again
	ActionList  = "finding.findings.list" // somebody read what is open
)

const (
	// settle is for how long a finding that is open is not written again.
	settle = time.Minute
	// maxDetail and maxSubject bound the texts, in bytes.
	maxDetail, maxSubject = 1024, 200
	// maxListed bounds a list.
	maxListed = 1000
)

var kinds = regexp.MustCompile(`^[a-z]+\.[a-z][a-z0-9-]{1,60}$`)

// Finding is one thing that is or was wrong.
type Finding struct {
	Kind    string     `json:"kind"`    // room and name: "audit.sink-lag"
	Subject string     `json:"subject"` // which one, when there may be several; never personal; may be empty
	Detail  string     `json:"detail"`  // for people: what is wrong and what to do
	Opened  time.Time  `json:"opened"`
	Seen    time.Time  `json:"seen"`              // within a minute of when it was noticed last
	Times   int        `json:"times"`             // how often it was written down
	Cleared *time.Time `json:"cleared,omitempty"` // nil while it is open
}

// Options say what a Register works with. DB and Trail are needed.
type Options struct {
	DB      *db.DB
	Trail   *audit.Trail
	Clock   clock.Clock           // nil means clock.System
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil keeps none
}

// Register keeps findings. It is safe for concurrent use. Its Raise and Clear are the interface that
// rooms declare for themselves; they act in the name of the system.
type Register struct {
	db      *db.DB
	trail   *audit.Trail
	clock   clock.Clock
	log     *slog.Logger
	changes *prometheus.CounterVec
}

// New returns the register in o.DB.
func New(o Options) *Register {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Register{db: o.DB, trail: o.Trail, clock: o.Clock, log: o.Log,
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strongroom_findings_total", Help: "Findings that were opened and cleared, by kind.",
		}, []string{"kind", "change"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(r.changes)
	}
	return r
}

// Raise opens the finding of that kind about subject, or notes that it still holds. It fails for a
// kind of another form than room.name and when the database does.
func (r *Register) Raise(ctx context.Context, kind, subject, detail string) error {
	if err := check(kind, subject); err != nil {
		return err
	}
	if len(detail) > maxDetail {
		detail = strings.ToValidUTF8(detail[:maxDetail], "")
	}
	// Most findings are noticed again and again: that asks for no transaction that writes.
	now := clock.Micros(r.clock.Now())
	if known, err := r.known(ctx, kind, subject); err != nil || known != nil && known.detail == detail && now-known.seen < settle.Microseconds() {
		return err
	}
	opened := false
	err := r.db.Update(ctx, func(tx *db.Tx) (err error) {
		opened = false
		again, err := seen(ctx, tx, kind, subject, detail, now)
		if err != nil || again {
			return err
		}
		opened = true
		if err := open(ctx, tx, kind, subject, detail, now); err != nil {
			return err
		}
		return r.trail.Record(ctx, tx, system, event(ActionOpen, kind, subject))
	})
	if err == nil && opened {
		r.changes.WithLabelValues(kind, "opened").Inc()
		r.log.LogAttrs(ctx, slog.LevelWarn, "finding opened", slog.String("kind", kind), slog.String("subject", subject), slog.String("detail", detail))
	}
	return err
}

// Clear closes the finding; one that is not open is left alone.
func (r *Register) Clear(ctx context.Context, kind, subject string) error {
	if err := check(kind, subject); err != nil {
		return err
	}
	if known, err := r.known(ctx, kind, subject); err != nil || known == nil {
		return err
	}
	closed := false
	err := r.db.Update(ctx, func(tx *db.Tx) (err error) {
		if closed, err = clearOpen(ctx, tx, kind, subject, clock.Micros(r.clock.Now())); err != nil || !closed {
			return err
		}
		return r.trail.Record(ctx, tx, system, event(ActionClear, kind, subject))
	})
	if err == nil && closed {
		r.changes.WithLabelValues(kind, "cleared").Inc()
		r.log.LogAttrs(ctx, slog.LevelInfo, "finding cleared", slog.String("kind", kind), slog.String("subject", subject))
	}
	return err
}

// List returns the findings, the newest first, at most 1,000: those that are open, or with all the
// ones that are over too. Customers may not ask.
func (r *Register) List(ctx context.Context, by actor.Actor, all bool) (list []Finding, err error) {
	e := audit.Event{Action: ActionList, Resource: "findings"}
	if by.Kind != actor.System && by.Kind != actor.Staff {
		return nil, r.trail.Deny(ctx, by, e, problem.New(problem.Forbidden, "findings-forbidden", "Findings are for the operators of this installation."))
	}
	err = r.trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) (err error) {
		list, err = selectAll(ctx, tx, all)
		return err
	})
	return list, err
}

var system = actor.OfSystem("finding")

func event(action, kind, subject string) audit.Event {
	e := audit.Event{Action: action, Resource: kind, Outcome: audit.Granted}
	if subject != "" {
		e.Resource += " " + subject
	}
	return e
}

// known returns the finding when it is open.
func (r *Register) known(ctx context.Context, kind, subject string) (known *openFinding, err error) {
	err = r.db.View(ctx, func(tx *db.Tx) (err error) {
		known, err = selectOpen(ctx, tx, kind, subject)
		return err
	})
	return known, err
}

func check(kind, subject string) error {
	if !kinds.MatchString(kind) || len(subject) > maxSubject || !utf8.ValidString(subject) {
		return problem.New(problem.Internal, "finding-malformed", "A finding could not be written down.")
	}
	return nil
}
