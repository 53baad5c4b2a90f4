// Package assurance keeps the sentences that an installation publishes about its security, and holds each
// against the running system.
//
// A claim is a sentence for the public. It is made true by controls, and each control is watched by checks
// that exercise the system: connect with what must be refused, read what must be ciphertext, alter a copy
// that must be noticed. What a check saw is evidence; it says when it was seen and until when it counts, and
// is an event of the trail with its digest, so that it can be proven later. The promise: a claim is green
// only while all its checks hold and none of their evidence has expired; what is not known is amber and never
// green; a check that fails turns its claims red within its pace; every change is an event and a finding;
// and each check is shown to see the failure that it is there for.
package assurance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/assurance/bundle"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/jobs"
	"strongroom/internal/problem"
)

// The actions that assurance records.
const (
	ActionCheck = "assurance.check.run"   // "check ID vVERSION sha256:HEX" of the evidence; the reason is the outcome
	ActionState = "assurance.claim.state" // "claim ID STATE"
	ActionRead  = "assurance.claims.read" // somebody read claims and evidence
	ActionAsk   = "assurance.checks.ask"  // somebody had checks run; "N checks"
)

// JobName is the name of the job that runs the checks that are due.
const JobName = "assurance-checks"

const (
	pace      = 10 * time.Second // of the job
	longest   = 2 * time.Minute  // one check
	maxDetail = 2048             // bytes of a text in an observation
	keepFor   = 400 * 24 * time.Hour
	// skew is how far ahead another server's clock may be: what is dated later than that is from the future.
	skew = time.Minute
)

// State is what is known of a claim.
type State string

// The states.
const (
	Green State = "green" // all checks hold and their evidence is fresh
	Amber State = "amber" // something is unknown, missing or expired
	Red   State = "red"   // a check fails
	Grey  State = "grey"  // this version of Strongroom does not have what the claim is about
)

// Findings is where a claim that is red, or turned amber, is said. Package finding is behind it.
type Findings interface {
	Raise(ctx context.Context, kind, subject, detail string) error
	Clear(ctx context.Context, kind, subject string) error
}

// The kinds of findings; the subject is the claim.
const (
	FindingRed   = "assurance.claim-fails"
	FindingAmber = "assurance.claim-unproven"
)

// Options say what an Assurance works with. DB and Trail are needed.
type Options struct {
	DB       *db.DB
	Trail    *audit.Trail
	Checks   []check.Check
	Rooms    []string // those that this version has; a claim of another one is grey
	Findings Findings // nil tells nobody
	Keys     Keys     // nil gives no bundles and no proofs
	Program  string   // name and version of the program, as bundles say it
	Changed  func()   // called when there is something new for the trust page; nil: nobody waits for it

	Clock   clock.Clock           // nil means clock.System
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil keeps none
}

// Assurance runs checks and knows the state of claims. It is safe for concurrent use.
type Assurance struct {
	o      Options
	claims []Claim
	checks map[string]check.Check
	states *prometheus.GaugeVec

	running sync.Mutex // one round at a time: a check may use the machine
	told    bool       // the findings are what the claims were at the last settling; guarded by running

	mu     sync.Mutex
	latest map[string]run // the newest event of each check, as the trail has it
	read   int64          // up to when the trail was read for them, Unix microseconds
}

// run is an event of the trail that says that a check was run.
type run struct {
	event string
	at    int64 // Unix microseconds
}

// New returns the assurance of an installation. It fails when a check is declared twice, or a claim names
// one that nobody declares.
func New(o Options) (*Assurance, error) {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	claims, err := catalogue()
	if err != nil {
		return nil, err
	}
	a := &Assurance{o: o, claims: claims, checks: make(map[string]check.Check), latest: make(map[string]run),
		states: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strongroom_claim_state", Help: "1 for the state that a claim is in.",
		}, []string{"claim", "state"})}
	for _, c := range o.Checks {
		if _, twice := a.checks[c.ID]; twice || c.ID == "" || c.Run == nil || c.Sabotage == nil || c.Every <= 0 || c.Valid < c.Every {
			return nil, fmt.Errorf("assurance: the check %q is declared twice or not whole", c.ID)
		}
		a.checks[c.ID] = c
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(a.states)
	}
	return a, nil
}

// Evidence is what one run of a check saw.
type Evidence struct {
	ID         string        `json:"id"`
	Check      string        `json:"check"`
	Version    int           `json:"version"`
	ObservedAt time.Time     `json:"observed_at"`
	ValidUntil time.Time     `json:"valid_until"`
	Took       time.Duration `json:"took_ns"`
	Every      time.Duration `json:"every_ns,omitempty"` // how often the check is run; 0 when it is not known
	Event      string        `json:"event"`              // of the trail
	check.Observation
}

// Status is a claim as it stands.
type Status struct {
	Claim
	State   State      `json:"state"`
	Why     string     `json:"why"`              // what makes it so
	Since   time.Time  `json:"since"`            // when it became so
	Event   string     `json:"event,omitempty"`  // of the trail, which says that it did
	Proven  *time.Time `json:"proven,omitempty"` // the oldest of the observations that it stands on; nil without
	Results []Result   `json:"results"`
}

// Result is a check of a claim with its newest evidence.
type Result struct {
	Check    string    `json:"check"`
	Says     string    `json:"says"`
	Evidence *Evidence `json:"evidence,omitempty"` // nil when there is none yet
}

var operators = []actor.Kind{actor.System, actor.Staff}

// Run runs the checks named, or all, and returns what they saw in the order of their names. It fails with the
// problem "check-not-found".
func (a *Assurance) Run(ctx context.Context, by actor.Actor, names []string) ([]Evidence, error) {
	if !slices.Contains(operators, by.Kind) {
		return nil, a.o.Trail.Deny(ctx, by, audit.Event{Action: ActionCheck, Resource: "checks"},
			problem.New(problem.Forbidden, "checks-forbidden", "Checks are for the operators of this installation."))
	}
	if len(names) == 0 {
		for name := range a.checks {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if _, ok := a.checks[name]; !ok {
			return nil, problem.New(problem.NotFound, "check-not-found", "There is no check %q; `strongroom claims` lists them.", name)
		}
	}
	names = slices.Compact(names)
	e := audit.Event{Action: ActionAsk, Resource: fmt.Sprintf("%d checks", len(names))}
	if err := a.o.Trail.Do(ctx, by, e, func(*db.Tx, *audit.Event) error { return nil }); err != nil {
		return nil, err
	}
	a.running.Lock()
	defer a.running.Unlock()
	var all []Evidence
	for _, name := range names {
		e, err := a.one(ctx, by, a.checks[name])
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
	err := a.settle(ctx)
	a.changed()
	return all, err
}

func (a *Assurance) changed() {
	if a.o.Changed != nil {
		a.o.Changed()
	}
}

// observe runs a check; one that panics or takes too long has found out nothing, whatever it says then.
func (a *Assurance) observe(ctx context.Context, name string, run func(context.Context) check.Observation) (seen check.Observation) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			// The value of a panic may hold anything, and everybody may read what a check saw; those of the Go runtime
			// hold types and numbers.
			what := fmt.Sprintf("a panic of type %T", p)
			if e, ok := p.(runtime.Error); ok {
				what = e.Error()
			}
			a.o.Log.LogAttrs(ctx, slog.LevelError, "a check broke", slog.String("check", name), slog.String("panic", what), slog.String("stack", string(debug.Stack())))
			seen = check.Undecided("", "The check broke: %s. The log of the server says where.", what)
		} else if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			seen = check.Undecided(seen.Exercised, "It took longer than %s. %s", longest, seen.Detail)
		}
		switch seen.Outcome {
		case check.Holds, check.Fails, check.Unknown:
		default:
			seen = check.Undecided(seen.Exercised, "The check said nothing.")
		}
		seen.Detail, seen.Exercised = cut(seen.Detail), cut(seen.Exercised)
	}()
	return run(ctx)
}

func cut(s string) string {
	if len(s) > maxDetail {
		s = s[:maxDetail]
	}
	return strings.ToValidUTF8(s, "")
}

// system is in whose name checks are run and claims change: their events are shown to auditors, and to everybody, and
// name no person. Who asked for a run has an event of their own.
var system = actor.OfSystem("job:" + JobName)

// one runs a check, whose deeds are of whoever asked for it, and writes its evidence and the event of it.
func (a *Assurance) one(ctx context.Context, by actor.Actor, c check.Check) (Evidence, error) {
	began := a.o.Clock.Now()
	e := Evidence{ID: id.New("ev"), Check: c.ID, Version: c.Version, ObservedAt: began, ValidUntil: began.Add(c.Valid), Every: c.Every, Event: audit.NewID()}
	started := time.Now()
	e.Observation = a.observe(actor.With(ctx, by), c.ID, c.Run)
	e.Took = time.Since(started)
	if err := ctx.Err(); err != nil {
		return e, err // stopped: nothing was found out, and that says nothing of the system
	}
	// Round takes the monotonic clock away, which nobody sets.
	if ended := a.o.Clock.Now(); (ended.Round(0).Sub(began.Round(0)) - e.Took).Abs() > skew { // the clock was set meanwhile
		e.ObservedAt, e.ValidUntil = ended, ended.Add(c.Valid)
	}
	body, err := json.Marshal(e.Observation)
	if err != nil { // a figure that is no number; the other checks must go on
		e.Observation = check.Undecided(e.Exercised, "What the check saw cannot be written down: %v", err)
		if body, err = json.Marshal(e.Observation); err != nil {
			return e, err
		}
	}
	err = a.o.DB.Update(ctx, func(tx *db.Tx) error {
		if err := insertEvidence(ctx, tx, e, string(body)); err != nil {
			return err
		}
		return a.o.Trail.Record(ctx, tx, system, audit.Event{ID: e.Event, Action: ActionCheck, Outcome: audit.Granted,
			Resource: e.resource(), Reason: string(e.Outcome)})
	})
	if err == nil && e.Outcome != check.Holds {
		a.o.Log.LogAttrs(ctx, slog.LevelWarn, "a check does not hold", slog.String("check", c.ID),
			slog.String("outcome", string(e.Outcome)), slog.String("detail", e.Detail))
	}
	return e, err
}

// resource is what the event of a check is about.
func (e Evidence) resource() string {
	return bundle.Resource(e.seen(), e.text())
}

func (e Evidence) seen() bundle.Seen {
	return bundle.Seen{Check: e.Check, Version: e.Version, ObservedAt: e.ObservedAt, ValidUntil: e.ValidUntil, Observation: e.Observation}
}

// text is what the event of a check has the digest of: what was seen, when, and until when it counts.
func (e Evidence) text() string {
	text, err := bundle.Text(e.seen())
	if err != nil {
		return "" // it was written once, so it can be
	}
	return text
}

// Digest is what the event of a check says of its evidence: "sha256:" and the hash of what it saw, when and
// until when it counts.
func Digest(e Evidence) string { return bundle.Digest(e.text()) }

// Job runs the checks that are due, on one server at a time, and brings the states of claims up to date.
func (a *Assurance) Job() jobs.Job {
	return jobs.Job{Name: JobName, Every: pace, Leased: true, Quiet: true, Run: a.due}
}

func (a *Assurance) due(ctx context.Context) error {
	a.running.Lock()
	defer a.running.Unlock()
	newest, err := a.newest(ctx)
	if err != nil {
		return err
	}
	now := a.o.Clock.Now()
	var names []string
	for name, c := range a.checks {
		if e, ok := newest[name]; !ok || e.Version != c.Version || now.Sub(e.ObservedAt) >= c.Every || now.Before(e.ObservedAt) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if _, err := a.one(ctx, system, a.checks[name]); err != nil {
			return err
		}
	}
	return a.settle(ctx)
}

func (a *Assurance) newest(ctx context.Context) (map[string]Evidence, error) {
	var newest map[string]Evidence
	err := a.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		newest, err = a.vouched(ctx, tx)
		return err
	})
	return newest, err
}

// vouched returns the newest evidence of each check. What the trail does not say the same of was not written by a
// check, or altered since, and proves nothing.
func (a *Assurance) vouched(ctx context.Context, tx *db.Tx) (map[string]Evidence, error) {
	newest, err := a.newestOf(ctx, tx)
	if err != nil {
		return nil, err
	}
	for name, e := range newest {
		ours, err := a.o.Trail.Vouches(ctx, tx, e.Event, ActionCheck, e.resource())
		if err != nil {
			return nil, err
		}
		if !ours {
			e.Observation = check.Undecided("", "What is stored of this run is not what the trail says of it.")
			newest[name] = e
		}
	}
	return newest, a.missed(ctx, tx, newest)
}

// newestOf returns the newest rows, unproven. A row from the future, which a clock that was wrong has left behind, is
// the newest until the log has a run after it that is not: it would keep its claim from being proven for as long as the
// clock was ahead.
func (a *Assurance) newestOf(ctx context.Context, tx *db.Tx) (map[string]Evidence, error) {
	newest, err := selectNewest(ctx, tx, forEver)
	if err != nil {
		return nil, err
	}
	horizon := a.o.Clock.Now().Add(skew)
	var present map[string]Evidence
	for name, e := range newest {
		if e.ObservedAt.Before(horizon) {
			continue
		}
		if present == nil {
			if present, err = selectNewest(ctx, tx, clock.Micros(horizon)); err != nil {
				return nil, err
			}
		}
		since, ok := present[name]
		if !ok {
			continue
		}
		past, err := a.o.Trail.After(ctx, tx, since.Event, e.Event)
		if err == nil && !past { // nor does it count when somebody else wrote it; what they took away for it is missed
			past, err = a.o.Trail.Vouches(ctx, tx, e.Event, ActionCheck, e.resource())
			past = !past
		}
		if err != nil {
			return nil, err
		}
		if past {
			newest[name] = since
		}
	}
	return newest, nil
}

// overlap is how long after it was made an event may become findable.
const overlap = 10 * time.Minute

// missed finds checks whose newest run, by the trail, has no evidence any more, or other evidence: somebody took away or
// dated back what a check saw, so that an older observation would count.
func (a *Assurance) missed(ctx context.Context, tx *db.Tx, newest map[string]Evidence) error {
	now := a.o.Clock.Now()
	horizon := clock.Micros(now.Add(skew))
	a.mu.Lock()
	defer a.mu.Unlock()
	since := min(a.read, clock.Micros(now)) - overlap.Microseconds()
	if a.read == 0 {
		since = clock.Micros(now.Add(-a.longestValid())) // what is older has expired
	}
	if err := a.runsSince(ctx, tx, since, horizon, a.latest); err != nil {
		return err
	}
	a.read = clock.Micros(now)
	for name, r := range a.latest {
		e, there := newest[name]
		if !there || e.Event == r.event || e.Outcome != check.Holds || r.at >= horizon {
			continue
		}
		kept, err := a.kept(ctx, tx, name, r.event)
		if err != nil {
			return err
		}
		if !kept {
			e.Observation = check.Undecided("", "The trail knows of a newer run, whose evidence is gone.")
			newest[name] = e
		}
	}
	return nil
}

func (a *Assurance) longestValid() (longest time.Duration) {
	for _, c := range a.checks {
		longest = max(longest, c.Valid)
	}
	return longest
}

// runsSince brings latest up to date with the events of runs that the trail has from since on and before the time given.
func (a *Assurance) runsSince(ctx context.Context, tx *db.Tx, since, before int64, latest map[string]run) error {
	return a.o.Trail.Since(ctx, tx, ActionCheck, since, func(event, resource string, at int64) {
		_, name, _ := strings.Cut(resource, " ")
		if name, _, _ = strings.Cut(name, " "); at < before && latest[name].at < at {
			latest[name] = run{event, at}
		}
	})
}

// kept reports whether the evidence of a run is there as it was when the trail was told of it.
func (a *Assurance) kept(ctx context.Context, tx *db.Tx, name, event string) (ours bool, err error) {
	rows, err := selectRun(ctx, tx, name, event)
	for i := 0; i < len(rows) && err == nil && !ours; i++ {
		ours, err = a.o.Trail.Vouches(ctx, tx, event, ActionCheck, rows[i].resource())
	}
	return ours, err
}

// judge says what the evidence makes of a claim.
func (a *Assurance) judge(c Claim, newest map[string]Evidence, now time.Time) Status {
	s := Status{Claim: c, State: Green}
	names := c.checks()
	if len(names) == 0 {
		s.State, s.Why = Grey, "This version of Strongroom does not have what the sentence is about."
		if slices.Contains(a.o.Rooms, c.Owner) {
			s.State, s.Why = Amber, "No check watches this yet."
		}
		return s
	}
	worse := func(state State, why string, args ...any) {
		if s.State == Red || s.State == Amber && state == Amber {
			return
		}
		s.State, s.Why = state, fmt.Sprintf(why, args...)
	}
	for _, name := range names {
		known, installed := a.checks[name]
		r := Result{Check: name, Says: known.Says}
		e, seen := newest[name]
		if seen {
			r.Evidence = &e
			if s.Proven == nil || e.ObservedAt.Before(*s.Proven) {
				s.Proven = &e.ObservedAt
			}
		}
		s.Results = append(s.Results, r)
		switch {
		case !installed:
			worse(Amber, "The check %s is not installed.", name)
		case !seen:
			worse(Amber, "The check %s was not run yet.", name)
		case e.Version != known.Version:
			worse(Amber, "The check %s was not run since it was changed.", name)
		case !now.Before(e.ValidUntil):
			worse(Amber, "The evidence of %s has expired.", name)
		case now.Before(e.ObservedAt.Add(-skew)):
			worse(Amber, "The evidence of %s is from the future.", name)
		case e.Outcome == check.Fails:
			worse(Red, "%s: %s", name, e.Detail)
		case e.Outcome != check.Holds:
			worse(Amber, "%s: %s", name, e.Detail)
		}
	}
	if s.State == Green {
		s.Why = "All checks hold."
	}
	return s
}

// settle writes down which claims changed their state, and tells the findings.
func (a *Assurance) settle(ctx context.Context) error {
	newest, err := a.newest(ctx)
	if err != nil {
		return err
	}
	now := a.o.Clock.Now()
	var changed []Status
	err = a.o.DB.Update(ctx, func(tx *db.Tx) error {
		changed = changed[:0]
		before, err := selectStates(ctx, tx, clock.Micros(now.Add(skew)))
		if err != nil {
			return err
		}
		same := func(c Claim) bool { return before[c.ID].State == a.judge(c, newest, now).State }
		if slices.ContainsFunc(a.claims, func(c Claim) bool { return !same(c) }) {
			// Another server may have seen more since newest was read.
			if newest, err = a.vouched(ctx, tx); err != nil {
				return err
			}
		}
		for _, c := range a.claims {
			s := a.judge(c, newest, now)
			if same(c) {
				continue
			}
			e := audit.Event{ID: audit.NewID(), Action: ActionState, Outcome: audit.Granted, Resource: "claim " + c.ID + " " + string(s.State)}
			if err := insertState(ctx, tx, Change{Claim: c.ID, State: s.State, Since: now, Why: s.Why, Event: e.ID}); err != nil {
				return err
			}
			if err := a.o.Trail.Record(ctx, tx, system, e); err != nil {
				return err
			}
			changed = append(changed, s)
		}
		_, err = deleteOld(ctx, tx, clock.Micros(now.Add(-keepFor)))
		return err
	})
	if err != nil {
		return err
	}
	var all []Status
	for _, c := range a.claims {
		s := a.judge(c, newest, now)
		all = append(all, s)
		for _, state := range []State{Green, Amber, Red, Grey} {
			is := 0.0
			if s.State == state {
				is = 1
			}
			a.states.WithLabelValues(c.ID, string(state)).Set(is)
		}
	}
	if len(changed) > 0 {
		a.changed()
	}
	// What a server that died, or a register that did not answer, has left unsaid is said with the next change or start.
	if !a.told {
		changed = all
	}
	err = a.tell(ctx, changed)
	a.told = err == nil
	return err
}

func (a *Assurance) tell(ctx context.Context, changed []Status) error {
	if a.o.Findings == nil {
		return nil
	}
	var errs []error
	for _, s := range changed {
		if len(s.checks()) == 0 {
			continue // nothing was found: nobody looks
		}
		if s.State == Red {
			errs = append(errs, a.o.Findings.Raise(ctx, FindingRed, s.ID, s.Why))
		} else {
			errs = append(errs, a.o.Findings.Clear(ctx, FindingRed, s.ID))
		}
		if s.State == Amber {
			errs = append(errs, a.o.Findings.Raise(ctx, FindingAmber, s.ID, s.Why))
		} else {
			errs = append(errs, a.o.Findings.Clear(ctx, FindingAmber, s.ID))
		}
	}
	return errors.Join(errs...)
}

// Claims returns all claims as they stand, in the order of the catalogue. It leaves an event.
func (a *Assurance) Claims(ctx context.Context, by actor.Actor) (all []Status, err error) {
	e := audit.Event{Action: ActionRead, Resource: "claims"}
	if !slices.Contains(operators, by.Kind) {
		return nil, a.o.Trail.Deny(ctx, by, e, problem.New(problem.Forbidden, "claims-forbidden", "Evidence is for the operators of this installation; the trust page is for everybody."))
	}
	err = a.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) (err error) {
		all, err = a.statuses(ctx, tx)
		return err
	})
	return all, err
}

func (a *Assurance) statuses(ctx context.Context, tx *db.Tx) ([]Status, error) {
	newest, err := a.vouched(ctx, tx)
	if err != nil {
		return nil, err
	}
	now := a.o.Clock.Now()
	states, err := selectStates(ctx, tx, clock.Micros(now.Add(skew)))
	if err != nil {
		return nil, err
	}
	var all []Status
	for _, c := range a.claims {
		s := a.judge(c, newest, now)
		if s.Since = now; states[c.ID].State == s.State {
			s.Since, s.Event = states[c.ID].Since, states[c.ID].Event
		}
		all = append(all, s)
	}
	return all, nil
}

// Sabotage breaks what each of the checks named, or all, is about, in a scratch copy, and returns what the
// check saw there. A check that does not fail there is no check.
func (a *Assurance) Sabotage(ctx context.Context, names []string, progress func(name string, seen check.Observation)) error {
	if len(names) == 0 {
		for name := range a.checks {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		c, ok := a.checks[name]
		if !ok {
			return problem.New(problem.NotFound, "check-not-found", "There is no check %q; `strongroom claims` lists them.", name)
		}
		a.running.Lock() // the checks of the system itself must not meet what is broken here
		seen := a.observe(ctx, name, c.Sabotage)
		a.running.Unlock()
		progress(name, seen)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
