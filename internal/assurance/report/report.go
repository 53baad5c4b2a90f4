// Package report takes what people tell us about our security.
//
// Anybody may send a report, without an account and without saying who they are. The promise: what they write is
// sealed before it is stored and opened for staff alone, with an event of each reading; the sender gets a reference
// that nobody can guess; the report, its event and its place in the count are there when the sender is thanked, and
// a finding says so until somebody closes it; and whoever floods us with reports is told to wait, alone if it is one
// network, without an event of each refusal that would fill the trail.
package report

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// The actions that report records.
const (
	ActionSubmit = "assurance.report.submit" // somebody sent a report
	ActionList   = "assurance.reports.list"  // staff listed them, unopened
	ActionRead   = "assurance.report.read"   // staff opened one
	ActionClose  = "assurance.report.close"  // staff closed one
	ActionExpire = "assurance.report.expire" // one that was closed a year ago was deleted
)

// FindingOpen says that a report waits; the subject is its reference.
const FindingOpen = "assurance.report-waits"

// FindingFull says that reports are refused from everybody until tomorrow.
const FindingFull = "assurance.reports-full"

// JobName is the name of the job that looks after reports.
const JobName = "assurance-reports"

const (
	// MaxText and MaxContact bound what is taken, in characters; minText keeps out the empty gesture.
	MaxText, MaxContact = 8000, 200
	minText             = 10

	maxVerdict = 500 // characters
	keepClosed = 365 * 24 * time.Hour
	batch      = 50
	prefix     = "rep"

	// A message that waits to be read is what the outbox key is for. Its versions are not needed for long:
	// the job seals reports anew under the newest.
	sealingKey = "outbox"
	macKey     = "token"
)

// Keys gives the keys that reports are sealed and sources are counted with. The keyring is behind it.
type Keys interface {
	Service(name string) *seal.Ring
	MAC(name string, parts ...[]byte) (mac []byte, version uint32)
}

// Findings is where it is said that a report waits. Package finding is behind it.
type Findings interface {
	Raise(ctx context.Context, kind, subject, detail string) error
	Clear(ctx context.Context, kind, subject string) error
}

// Limits say how many reports are taken.
type Limits struct {
	Hourly int64 // from one network, an IPv4 address or an IPv6 /64, in an hour
	Daily  int64 // from everybody together, in a day
}

// DefaultLimits are more than honest reporters need.
var DefaultLimits = Limits{Hourly: 5, Daily: 100}

// Options say what a Desk works with. DB, Keys and Trail are needed.
type Options struct {
	DB       *db.DB
	Keys     Keys
	Trail    *audit.Trail
	Findings Findings     // nil tells nobody
	Limits   Limits       // zero: DefaultLimits
	Clock    clock.Clock  // nil means clock.System
	Log      *slog.Logger // nil discards
}

// Desk takes reports and shows them to staff. It is safe for concurrent use.
type Desk struct{ o Options }

// New returns the desk of an installation.
func New(o Options) *Desk {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Limits == (Limits{}) {
		o.Limits = DefaultLimits
	}
	return &Desk{o}
}

// Message is what somebody tells us. In the database it is sealed.
type Message struct {
	Text    string `json:"text"`
	Contact string `json:"contact,omitempty"` // where an answer may go; empty for nowhere
}

// Entry is a report as a list shows it.
type Entry struct {
	Reference string     `json:"reference"`
	Received  time.Time  `json:"received"`
	Closed    *time.Time `json:"closed,omitempty"` // nil while it is open
	ClosedBy  string     `json:"closed_by,omitempty"`
	Verdict   string     `json:"verdict,omitempty"` // what staff said when they closed it
}

// Report is one that was opened.
type Report struct {
	Entry
	Message
}

var (
	errForbidden = problem.New(problem.Forbidden, "reports-forbidden", "Reports are for the operators of this installation.")
	errNotFound  = problem.New(problem.NotFound, "report-not-found", "There is no report with this reference; `strongroom reports list --all` has them all.")
	errMany      = problem.New(problem.TooMany, "too-many-reports", "Several reports came from your network within the hour. Please wait and send the next one then.")
	errFull      = problem.New(problem.TooMany, "reports-full", "More reports came today than we can read. Please try again tomorrow, or write to the contact in security.txt.")
)

// normal returns the message as it is kept, or the problem "report-invalid".
func (m Message) normal() (Message, error) {
	m.Text = strings.TrimSpace(strings.ReplaceAll(m.Text, "\r\n", "\n"))
	m.Contact = strings.TrimSpace(m.Contact)
	n := utf8.RuneCountInString(m.Text)
	if !utf8.ValidString(m.Text) || n < minText || n > MaxText {
		return m, problem.New(problem.Unprocessable, "report-invalid", "Describe what you found in %d to %d characters.", minText, MaxText)
	}
	if !utf8.ValidString(m.Contact) || utf8.RuneCountInString(m.Contact) > MaxContact || strings.ContainsFunc(m.Contact, unicode.IsControl) {
		return m, problem.New(problem.Unprocessable, "report-invalid", "Say in one line of up to %d characters how we can reach you, or leave it empty.", MaxContact)
	}
	return m, nil
}

func place(reference string) seal.Place {
	return seal.Place{Room: "assurance", Table: "security_report", Record: reference}
}

// Submit takes a report and returns its reference. It fails with the problems "report-invalid", "too-many-reports" and
// "reports-full".
func (d *Desk) Submit(ctx context.Context, by actor.Actor, m Message) (Entry, error) {
	m, err := m.normal()
	if err != nil {
		return Entry{}, err // nothing was done, and there is nothing to learn from who it was
	}
	now := d.o.Clock.Now()
	if err := d.admit(ctx, by, now); err != nil {
		return Entry{}, err
	}
	plain, err := json.Marshal(m)
	if err != nil {
		return Entry{}, err
	}
	defer clear(plain)
	entry := Entry{Reference: id.New(prefix), Received: now}
	err = d.o.Trail.Do(ctx, by, audit.Event{Action: ActionSubmit, Resource: "report " + entry.Reference}, func(tx *db.Tx, _ *audit.Event) error {
		return insertReport(ctx, tx, entry.Reference, clock.Micros(now), d.o.Keys.Service(sealingKey).Seal(place(entry.Reference), plain))
	})
	if err != nil {
		return Entry{}, err
	}
	if err := d.raise(ctx, entry.Reference); err != nil { // the job raises it soon
		d.o.Log.ErrorContext(ctx, "a report waits and its finding could not be opened", "report", entry.Reference, "error", err)
	}
	return entry, nil
}

func (d *Desk) raise(ctx context.Context, reference string) error {
	if d.o.Findings == nil {
		return nil
	}
	return d.o.Findings.Raise(ctx, FindingOpen, reference, "Somebody reported a concern about security: read it with `strongroom reports show "+
		reference+"`, and close it when it is dealt with.")
}

// source is what counts as one sender, as the front door has it: an IPv4 address, or the /64 of an IPv6 address.
func source(a netip.Addr) string {
	if a = a.Unmap(); a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Masked().String()
		}
	}
	return a.String()
}

// count is how many reports came in a window.
type count struct {
	since          int64 // Unix microseconds
	taken, refused int64
}

// at begins a new window when the old one is over.
func (c count) at(now, window int64) count {
	if now-c.since >= window || now < c.since {
		return count{since: now}
	}
	return c
}

// total is the name under which all reports are counted.
var total = []byte("total")

// The windows of the limits, in microseconds.
const hour, day = int64(time.Hour / time.Microsecond), 24 * hour

// tally is how many reports came, and what that makes of one more.
type tally struct {
	all, own count
	refusal  *problem.Problem // nil: there is room
	said     bool             // the refusal is an event already
}

func (d *Desk) tally(ctx context.Context, tx *db.Tx, mac []byte, now int64) (t tally, err error) {
	if t.all, err = selectCount(ctx, tx, total); err != nil {
		return t, err
	}
	if t.own, err = selectCount(ctx, tx, mac); err != nil {
		return t, err
	}
	t.all, t.own = t.all.at(now, day), t.own.at(now, hour)
	switch {
	case t.all.taken >= d.o.Limits.Daily:
		t.refusal, t.said = errFull.RetryAfter(time.Duration(t.all.since+day-now)*time.Microsecond), t.all.refused > 0
	case t.own.taken >= d.o.Limits.Hourly:
		t.refusal, t.said = errMany.RetryAfter(time.Duration(t.own.since+hour-now)*time.Microsecond), t.own.refused > 0
	}
	return t, nil
}

// admit counts a report. What a source is refused does not count for everybody, or one could shut out the others;
// and no source is written down when nothing is taken any more, so that there are no more of them than reports in
// a day. Only the first refusal of a window is an event, or written down at all: the others say the same, and would
// let whoever is over the limit fill the disk and keep the database busy.
func (d *Desk) admit(ctx context.Context, by actor.Actor, at time.Time) error {
	mac, _ := d.o.Keys.MAC(macKey, []byte("report"), []byte(source(by.Address)))
	now := clock.Micros(at)
	var t tally
	err := d.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		t, err = d.tally(ctx, tx, mac, now)
		return err
	})
	if err != nil {
		return err
	}
	if t.said {
		return t.refusal
	}
	err = d.o.DB.Update(ctx, func(tx *db.Tx) (err error) {
		if t, err = d.tally(ctx, tx, mac, now); err != nil || t.said {
			return err
		}
		switch {
		case t.refusal == nil:
			t.all.taken++
			t.own.taken++
			if err := putCount(ctx, tx, mac, t.own); err != nil {
				return err
			}
		case t.refusal.Is(errFull):
			t.all.refused++
		default:
			t.own.refused++
			return putCount(ctx, tx, mac, t.own)
		}
		return putCount(ctx, tx, total, t.all)
	})
	switch {
	case err != nil:
		return err
	case t.refusal == nil:
		return nil
	case t.said:
		return t.refusal
	case t.refusal.Is(errFull):
		if err := d.full(ctx); err != nil {
			return err
		}
	}
	return d.o.Trail.Deny(ctx, by, audit.Event{Action: ActionSubmit}, t.refusal)
}

// full says that reports are refused; the job says it again.
func (d *Desk) full(ctx context.Context) error {
	if d.o.Findings == nil {
		return nil
	}
	return d.o.Findings.Raise(ctx, FindingFull, "", "More than the day's reports came: the others are refused. The trail says from where.")
}

var operators = []actor.Kind{actor.System, actor.Staff}

func (d *Desk) permit(ctx context.Context, by actor.Actor, e audit.Event) error {
	if slices.Contains(operators, by.Kind) {
		return nil
	}
	return d.o.Trail.Deny(ctx, by, e, errForbidden)
}

// List returns the reports that are open, or with all also those that were closed, the newest first, at most 1,000.
func (d *Desk) List(ctx context.Context, by actor.Actor, all bool) (list []Entry, err error) {
	e := audit.Event{Action: ActionList, Resource: "reports"}
	if err := d.permit(ctx, by, e); err != nil {
		return nil, err
	}
	err = d.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) (err error) {
		list, err = selectReports(ctx, tx, all)
		return err
	})
	return list, err
}

// Show opens a report. The event of it is committed before anybody sees a word. It fails with the problem
// "report-not-found".
func (d *Desk) Show(ctx context.Context, by actor.Actor, reference string) (r Report, err error) {
	e, err := d.about(ctx, by, ActionRead, reference)
	if err != nil {
		return r, err
	}
	var sealed []byte
	err = d.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) (err error) {
		r.Entry, sealed, err = selectReport(ctx, tx, reference)
		return err
	})
	if err != nil {
		return Report{}, err
	}
	plain, err := d.o.Keys.Service(sealingKey).Open(place(reference), sealed)
	if err != nil {
		return Report{}, fmt.Errorf("report %s: %w", reference, err)
	}
	defer clear(plain)
	return r, json.Unmarshal(plain, &r.Message)
}

// about checks the caller and the form of a reference, which is the caller's until it was looked up.
func (d *Desk) about(ctx context.Context, by actor.Actor, action, reference string) (audit.Event, error) {
	e := audit.Event{Action: action, Resource: "report " + reference}
	if !id.Valid(prefix, reference) {
		e.Resource = "report"
		if err := d.permit(ctx, by, e); err != nil {
			return e, err
		}
		return e, d.o.Trail.Deny(ctx, by, e, errNotFound)
	}
	return e, d.permit(ctx, by, e)
}

// Close says that a report is dealt with, and how. It fails with the problems "report-not-found", "report-closed" and
// "verdict-missing".
func (d *Desk) Close(ctx context.Context, by actor.Actor, reference, verdict string) error {
	e, err := d.about(ctx, by, ActionClose, reference)
	if err != nil {
		return err
	}
	if verdict = strings.TrimSpace(verdict); verdict == "" || utf8.RuneCountInString(verdict) > maxVerdict {
		return d.o.Trail.Deny(ctx, by, e, problem.New(problem.Invalid, "verdict-missing",
			"Say in up to %d characters what came of the report, without personal data.", maxVerdict))
	}
	err = d.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		was, _, err := selectReport(ctx, tx, reference)
		if err != nil {
			return err
		}
		if was.Closed != nil {
			return problem.New(problem.Conflict, "report-closed", "%s closed this report already: %s", was.ClosedBy, was.Verdict)
		}
		return closeReport(ctx, tx, reference, clock.Micros(d.o.Clock.Now()), by.ID, verdict)
	})
	if err == nil && d.o.Findings != nil {
		err = d.o.Findings.Clear(ctx, FindingOpen, reference)
	}
	return err
}

// Job looks after reports, on one server at a time: it sees to the findings, seals anew what an older key version
// sealed, and deletes what was closed a year ago.
func (d *Desk) Job() jobs.Job {
	return jobs.Job{Name: JobName, Every: 10 * time.Minute, Leased: true, Run: d.tend}
}

func (d *Desk) tend(ctx context.Context) error {
	now := d.o.Clock.Now()
	var open []string
	err := d.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		open, err = selectOpen(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	for _, reference := range open {
		if err := d.raise(ctx, reference); err != nil {
			return err
		}
	}
	if err := d.settleFull(ctx, now); err != nil {
		return err
	}
	if err := d.reseal(ctx); err != nil {
		return err
	}
	return d.expire(ctx, now)
}

// settleFull says whether reports are taken again, and forgets sources of whom nothing came lately.
func (d *Desk) settleFull(ctx context.Context, now time.Time) error {
	var c count
	err := d.o.DB.Update(ctx, func(tx *db.Tx) (err error) {
		if err := deleteCounts(ctx, tx, clock.Micros(now)-day); err != nil {
			return err
		}
		c, err = selectCount(ctx, tx, total)
		return err
	})
	if err != nil || d.o.Findings == nil {
		return err
	}
	if c.refused > 0 {
		return d.full(ctx)
	}
	return d.o.Findings.Clear(ctx, FindingFull, "")
}

// reseal seals anew what the newest version of the key did not seal. Nobody who reads a report sees a difference.
func (d *Desk) reseal(ctx context.Context) error {
	for {
		ring := d.o.Keys.Service(sealingKey)
		var stale map[string][]byte
		err := d.o.DB.Update(ctx, func(tx *db.Tx) (err error) {
			if stale, err = selectStale(ctx, tx, seal.Header(ring.Version()), batch); err != nil {
				return err
			}
			for reference, sealed := range stale {
				plain, err := ring.Open(place(reference), sealed)
				if err != nil {
					return fmt.Errorf("report %s: %w", reference, err)
				}
				err = swap(ctx, tx, reference, sealed, ring.Seal(place(reference), plain))
				clear(plain)
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || len(stale) < batch {
			return err
		}
	}
}

// expire deletes what was closed a year ago, each with an event.
func (d *Desk) expire(ctx context.Context, now time.Time) error {
	by := actor.OfSystem("job:" + JobName)
	return d.o.DB.Update(ctx, func(tx *db.Tx) error {
		gone, err := deleteClosed(ctx, tx, clock.Micros(now.Add(-keepClosed)), batch)
		if err != nil {
			return err
		}
		for _, reference := range gone {
			e := audit.Event{Action: ActionExpire, Resource: "report " + reference, Outcome: audit.Granted}
			if err := d.o.Trail.Record(ctx, tx, by, e); err != nil {
				return err
			}
		}
		return nil
	})
}
