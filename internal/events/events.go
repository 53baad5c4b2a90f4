// Package events is the trail as the operator's own services may use it: they record what happens with them
// beside what happens here, so that one trail answers who did what in a transaction, and they search, as far
// as policy permits for the purpose that each call must name.
//
// The promise: an event is taken in once, whole or not at all, and only in the form that the operator has
// declared for its source; what is personal in it is sealed under the key of its customer and dies with it.
package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
)

// ActionRecord is the event of reports that were refused.
const ActionRecord = "audit.event.record"

// The bounds of a batch.
const (
	MaxLines = 1000
	MaxLine  = 16 << 10 // bytes
	MaxBody  = 1 << 20  // bytes
)

// Type is what a field holds.
type Type string

// The types of fields.
const (
	Text    Type = "text"    // a string without control characters
	Integer Type = "integer" // a JSON number without fraction, of 64 bits
	Decimal Type = "decimal" // a string like "-12.30": amounts are not binary fractions
	Boolean Type = "boolean"
	Time    Type = "time" // a string in the form of RFC 3339
)

// Field is a field that a source may send.
type Field struct {
	Name      string
	Type      Type
	Personal  bool // shown when it is revealed only
	Required  bool
	MaxLength int // of a text, in bytes; 0 means 256
}

// Source is a service that records events.
type Source struct {
	Name    string
	Service string // the name that its certificate carries
	Actions []string
	Fields  []Field
}

// reserved are the names that events have themselves.
var reserved = []string{"address", "country", "network", "key", "on_behalf_of", "query", "reason", "purpose", "source_event", "occurred_at"}

var (
	sourceForm = regexp.MustCompile(`\A[a-z][a-z0-9-]{0,31}\z`)
	actionForm = regexp.MustCompile(`\A[a-z][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*){1,3}\z`)
	fieldForm  = regexp.MustCompile(`\A[a-z][a-z0-9_]{0,63}\z`)
	slugForm   = regexp.MustCompile(`\A[a-z0-9]+(-[a-z0-9]+)*\z`)
	wordForm   = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9._:/-]*\z`)
	phraseForm = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9._:/# -]*\z`)
	numberForm = regexp.MustCompile(`\A-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?\z`)
)

// rooms are the first words of the program's own actions: no source may speak for them.
var rooms = []string{"audit", "identity", "vault", "keyring", "transit", "policy", "job", "once", "edge"}

// Validate returns every fault of the declarations, joined.
func Validate(sources []Source) error {
	var errs []error
	names, services := map[string]bool{}, map[string]bool{}
	for i, s := range sources {
		fault := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("audit.sources[%d] %q: %s", i, s.Name, fmt.Sprintf(format, args...)))
		}
		switch {
		case !sourceForm.MatchString(s.Name):
			fault("a name is 1 to 32 of a-z, 0-9 and hyphens")
		case slices.Contains(rooms, s.Name):
			fault("the name is one of Strongroom's own; choose another")
		case names[s.Name]:
			fault("the name is there twice")
		}
		if s.Service == "" || services[s.Service] {
			fault("service names the certificate of one service, which no other source has")
		}
		names[s.Name], services[s.Service] = true, true
		if len(s.Actions) == 0 {
			fault("it has no actions")
		}
		for _, a := range s.Actions {
			if !actionForm.MatchString(a) || !strings.HasPrefix(a, s.Name+".") || len(a) > 128 {
				fault("action %q does not read %s.thing.verb, in a-z, 0-9 and hyphens", a, s.Name)
			}
		}
		fields := map[string]bool{}
		for _, f := range s.Fields {
			switch {
			case !fieldForm.MatchString(f.Name):
				fault("field %q: a name is 1 to 64 of a-z, 0-9 and _", f.Name)
			case slices.Contains(reserved, f.Name):
				fault("field %q: events have a member of this name themselves; choose another", f.Name)
			case fields[f.Name]:
				fault("field %q is there twice", f.Name)
			case !slices.Contains([]Type{Text, Integer, Decimal, Boolean, Time}, f.Type):
				fault("field %q: the type is text, integer, decimal, boolean or time", f.Name)
			case f.MaxLength < 0 || f.MaxLength > 4000 || f.MaxLength > 0 && f.Type != Text:
				fault("field %q: max_length is of a text, from 1 to 4000", f.Name)
			}
			fields[f.Name] = true
		}
		if len(s.Fields) > 64 {
			fault("it has more than 64 fields")
		}
	}
	return errors.Join(errs...)
}

// Keys says whether customers are there. The keyring is behind it.
type Keys interface {
	Customer(ctx context.Context, tx *db.Tx, c customer.ID) (*seal.Ring, error)
}

// Options say what Events works with. All but Sources are needed.
type Options struct {
	DB      *db.DB
	Keys    Keys
	Trail   *audit.Trail
	Search  *audit.Search
	Policy  *policy.Set
	Book    *once.Book
	Sources []Source // valid ones
}

// Events takes in the events of services, and searches for them. It is safe for concurrent use.
type Events struct {
	o       Options
	sources map[string]*source // by service
}

type source struct {
	Source
	fields map[string]Field
}

// New returns an Events.
func New(o Options) *Events {
	e := &Events{o: o, sources: make(map[string]*source)}
	for _, s := range o.Sources {
		known := &source{s, make(map[string]Field)}
		for _, f := range s.Fields {
			known.fields[f.Name] = f
		}
		e.sources[s.Service] = known
	}
	return e
}

// Result is what came of one report.
type Result struct {
	Event    string           // the event's id in the trail
	Repeated bool             // it was there already
	Problem  *problem.Problem // why there is none
}

// report is an event as a source sends it.
type report struct {
	ID       string `json:"id"`
	Action   string `json:"action"`
	Outcome  string `json:"outcome"`
	Reason   string `json:"reason"`
	Resource string `json:"resource"`
	Customer string `json:"customer"`
	OnBehalf struct {
		Kind   string `json:"kind"`
		ID     string `json:"id"`
		Device string `json:"device"`
	} `json:"on_behalf_of"`
	Transaction string                    `json:"transaction"`
	OccurredAt  time.Time                 `json:"occurred_at"`
	Fields      map[string]jsontext.Value `json:"fields"`
}

// line is a report on its way.
type line struct {
	event   audit.Event
	device  string
	request once.Request
	result  Result
	twin    int // the line of the batch that says the same, or -1
}

func invalid(detail string, args ...any) *problem.Problem {
	return problem.New(problem.Unprocessable, "invalid-event", detail, args...)
}

var (
	noSource = problem.New(problem.Forbidden, "no-source", "This service is declared as no source of events in audit.sources.")
	reused   = problem.New(problem.Unprocessable, "idempotency-key-reused", "This id came with another event before. Make a new one for each event.")
)

// Record takes in the reports of a service, each a JSON object, in their order: all that are well-formed and
// permitted in one transaction. The results are in the same order. A report with an id that came within
// the last 24 hours gets the event that it got then, and another report with that id is refused. A single
// report may have its id from key instead.
//
// Refused reports are not in the trail themselves; one event says how many there were, and why the first.
// Record fails as a whole, with nothing taken in, only with "no-source", "purpose-required", or when the
// database does.
func (e *Events) Record(ctx context.Context, by actor.Actor, purpose, key string, reports [][]byte) ([]Result, error) {
	refusal := audit.Event{Action: ActionRecord, Resource: "source"}
	src := e.sources[by.ID]
	if by.Kind != actor.Service || src == nil {
		return nil, e.o.Trail.Deny(ctx, by, refusal, noSource)
	}
	refusal.Resource = "source " + src.Name
	if p := policy.Purpose(purpose); p != nil {
		return nil, e.o.Trail.Deny(ctx, by, refusal, p)
	}
	if len(reports) == 0 || len(reports) > MaxLines {
		return nil, e.o.Trail.Deny(ctx, by, refusal, invalid("Send 1 to %d events at once.", MaxLines))
	}
	lines := make([]line, len(reports))
	for i, text := range reports {
		lines[i] = e.read(src, by, purpose, key, text)
	}
	seen := make(map[string]int)
	for i := range lines {
		l := &lines[i]
		if l.result.Problem != nil {
			continue
		}
		first, there := seen[l.request.Key]
		switch {
		case !there:
			seen[l.request.Key] = i
		case bytes.Equal(lines[first].request.Asked[2], l.request.Asked[2]):
			l.twin = first
		default:
			l.result.Problem = reused
		}
	}
	for tries := 0; ; tries++ {
		err := e.keep(ctx, by, refusal, lines)
		if problem.Is(err, once.Raced) && tries < 3 {
			continue
		}
		if err != nil {
			return nil, err
		}
		results := make([]Result, len(lines))
		for i, l := range lines {
			results[i] = l.result
			if l.twin >= 0 {
				results[i] = lines[l.twin].result
				results[i].Repeated = results[i].Problem == nil
			}
		}
		return results, nil
	}
}

// keep records the lines that have no problem and are not there yet.
func (e *Events) keep(ctx context.Context, by actor.Actor, refusal audit.Event, lines []line) error {
	for i := range lines {
		l := &lines[i]
		if l.result.Problem != nil || l.twin >= 0 || l.result.Event != "" {
			continue
		}
		given, err := e.o.Book.Look(ctx, l.request)
		if p := problem.Of(err); p != nil && p.Kind() < problem.Internal {
			l.result.Problem = p
			continue
		}
		if err != nil {
			return err
		}
		if given == nil {
			continue
		}
		var id []byte
		err = e.o.DB.View(ctx, func(tx *db.Tx) error { return given.Unlock(ctx, tx) })
		if err == nil {
			id, err = given.Open()
		}
		if p := problem.Of(err); p != nil && p.Kind() < problem.Internal {
			l.result.Problem = p // the customer is erased
		} else if err != nil {
			return err
		} else {
			l.result = Result{Event: string(id), Repeated: true}
		}
	}
	var results []Result
	err := e.o.DB.Update(ctx, func(tx *db.Tx) error {
		results = make([]Result, len(lines))
		refused, why := 0, (*problem.Problem)(nil)
		for i := range lines {
			l := &lines[i]
			results[i] = l.result
			if l.result.Problem == nil && l.result.Event == "" && l.twin < 0 {
				p, err := e.insert(ctx, tx, by, l)
				if err != nil {
					return err
				}
				if results[i].Problem = p; p == nil {
					results[i].Event = l.event.ID
				}
			}
			if results[i].Problem != nil {
				if refused++; why == nil {
					why = results[i].Problem
				}
			}
		}
		if refused == 0 {
			return nil
		}
		denied := refusal
		denied.Outcome, denied.Reason = audit.Denied, why.Slug()
		denied.Resource += fmt.Sprintf(", %d of %d events", refused, len(lines))
		return e.o.Trail.Record(ctx, tx, by, denied)
	})
	if err != nil {
		return err
	}
	for i := range lines {
		lines[i].result = results[i]
	}
	return nil
}

// insert records a line in tx, or returns why not.
func (e *Events) insert(ctx context.Context, tx *db.Tx, by actor.Actor, l *line) (*problem.Problem, error) {
	if c := l.event.Customer; c != "" {
		if _, err := e.o.Keys.Customer(ctx, tx, c); err != nil {
			if p := problem.Of(err); p != nil && p.Kind() < problem.Internal {
				return p, nil
			}
			return nil, err
		}
	}
	by.Device = l.device
	if err := e.o.Trail.Record(ctx, tx, by, l.event); err != nil {
		return nil, err
	}
	return nil, e.o.Book.Keep(ctx, tx, l.request, l.event.Customer, []byte(l.event.ID))
}

// read checks a report against its source and the policies.
func (e *Events) read(src *source, by actor.Actor, purpose, key string, text []byte) line {
	l := line{twin: -1}
	fail := func(p *problem.Problem) line {
		l.result.Problem = p
		return l
	}
	if len(text) > MaxLine {
		return fail(invalid("An event is at most %d bytes.", MaxLine))
	}
	var r report
	if err := json.Unmarshal(text, &r, json.RejectUnknownMembers(true)); err != nil {
		return fail(invalid("An event is a JSON object with no members but id, action, outcome, reason, resource, customer, on_behalf_of, transaction, occurred_at and fields, each once.").Because(err))
	}
	if r.ID == "" {
		r.ID = key
	}
	if once.Check(r.ID) != nil {
		return fail(invalid("id is 8 to 128 printable ASCII characters without spaces: the same whenever the event is sent again."))
	}
	if p := src.check(r); p != nil {
		return fail(p)
	}
	if p := e.o.Policy.Decide(policy.Question{By: by, Action: policy.EventRecord, Resource: policy.Source(src.Name), Purpose: purpose,
		Customer: customer.ID(r.Customer)}); p != nil {
		return fail(p)
	}
	personal := map[string]string{"open:source_event": r.ID, "open:purpose": purpose}
	if r.OnBehalf.Kind != "" {
		personal["on_behalf_of"] = r.OnBehalf.Kind + ":" + r.OnBehalf.ID
	}
	if !r.OccurredAt.IsZero() {
		personal["open:occurred_at"] = r.OccurredAt.UTC().Format(time.RFC3339Nano)
	}
	for name, raw := range r.Fields {
		f, known := src.fields[name]
		if !known {
			return fail(invalid("fields has a member that the source does not declare."))
		}
		value, ok := f.value(raw)
		if !ok {
			return fail(invalid("The field %s is not as declared: %s.", name, f.describe()))
		}
		if f.Personal && r.Customer == "" {
			return fail(invalid("The field %s is personal: name the customer, under whose key it is sealed.", name))
		}
		if !f.Personal {
			name = "open:" + name
		}
		personal[name] = value
	}
	for _, f := range src.Fields {
		if _, there := r.Fields[f.Name]; f.Required && !there {
			return fail(invalid("The field %s is missing.", f.Name))
		}
	}
	l.device = r.OnBehalf.Device
	l.event = audit.Event{ID: audit.NewID(), Action: r.Action, Resource: r.Resource, Customer: customer.ID(r.Customer),
		Outcome: audit.Outcome(r.Outcome), Reason: r.Reason, Transaction: r.Transaction, Personal: personal}
	l.request = once.Request{Service: by.ID, Key: r.ID, Asked: [][]byte{[]byte(ActionRecord), []byte(purpose), text}}
	return l
}

// check holds a report's own members against their forms. None but fields and on_behalf_of may be personal,
// since they stand in the trail for ever.
func (s *source) check(r report) *problem.Problem {
	word := func(v string) bool { return v == "" || len(v) <= 128 && wordForm.MatchString(v) }
	switch {
	case !slices.Contains(s.Actions, r.Action):
		return invalid("action is none of those that the source declares.")
	case !slices.Contains([]audit.Outcome{audit.Granted, audit.Denied, audit.Failed}, audit.Outcome(r.Outcome)):
		return invalid("outcome is granted, denied or failed.")
	case r.Reason != "" && (len(r.Reason) > 64 || !slugForm.MatchString(r.Reason)):
		return invalid("reason is a slug of at most 64 of a-z, 0-9 and single hyphens.")
	case r.Resource != "" && (len(r.Resource) > 200 || !phraseForm.MatchString(r.Resource)):
		return invalid("resource is at most 200 letters, digits, spaces and . _ : / # -; it is never personal.")
	case r.Customer != "" && !customer.ID(r.Customer).Valid():
		return problem.New(problem.NotFound, "customer-not-found", "There is no such customer.")
	case !word(r.Transaction):
		return invalid("transaction is at most 128 letters, digits and . _ : / -")
	case r.OnBehalf.Kind == "" && (r.OnBehalf.ID != "" || r.OnBehalf.Device != ""),
		r.OnBehalf.Kind != "" && (!slices.Contains([]string{"customer", "staff", "system"}, r.OnBehalf.Kind) || r.OnBehalf.ID == "" || !word(r.OnBehalf.ID)),
		!word(r.OnBehalf.Device):
		return invalid("on_behalf_of has a kind (customer, staff or system), an id, and may have a device.")
	case r.OnBehalf.Kind == "customer" && r.OnBehalf.ID != r.Customer:
		return invalid("An event on behalf of a customer is about that customer: give the same id as customer.")
	case !r.OccurredAt.IsZero() && (r.OccurredAt.Year() < 1970 || r.OccurredAt.Year() > 9999):
		return invalid("occurred_at is not from 1970 to 9999.")
	}
	return nil
}

// value returns the value of a field as a text, if it is one.
func (f Field) value(raw jsontext.Value) (string, bool) {
	switch f.Type {
	case Integer:
		n, err := strconv.ParseInt(string(raw), 10, 64)
		return strconv.FormatInt(n, 10), err == nil
	case Boolean:
		var b bool
		ok := raw.Kind() != 'n' && json.Unmarshal(raw, &b) == nil
		return strconv.FormatBool(b), ok
	}
	var s string
	if raw.Kind() != '"' || json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	switch f.Type {
	case Decimal:
		return s, numberForm.MatchString(s)
	case Time:
		t, err := time.Parse(time.RFC3339, s)
		return t.UTC().Format(time.RFC3339Nano), err == nil
	}
	return s, len(s) <= f.maxLength() && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func (f Field) maxLength() int {
	if f.MaxLength == 0 {
		return 256
	}
	return f.MaxLength
}

func (f Field) describe() string {
	switch f.Type {
	case Integer:
		return "a JSON number without fraction"
	case Decimal:
		return `a string like "12.30"`
	case Boolean:
		return "true or false"
	case Time:
		return "a string like 2026-01-31T12:00:00Z"
	}
	return fmt.Sprintf("a string of at most %d bytes without control characters", f.maxLength())
}
