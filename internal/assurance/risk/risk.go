// Package risk keeps the register of risks, the statement of applicability and the actions of improvement that a
// management of security asks for (ISO/IEC 27001:2022 clauses 6.1, 8.2, 8.3 and 10; ENS op.pl.1).
//
// The promise: a risk is worth what its treatment proves. Each names the claims that its treatment leans on; while one
// of them does not hold the risk counts as if it were untreated, while one is unproven as if half of the treatment were
// missing, and it falls back by itself when they are proven again. The statement of applicability is made from what
// the catalogue of claims says of each control of Annex A, and says so where it covers nothing. A review or an action
// that is overdue is a finding. Every change is an event with what was changed, and so is every reading.
//
// The register holds no personal data: owners are roles, and texts are about systems.
package risk

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"strongroom/internal/actor"
	"strongroom/internal/assurance"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
	"strongroom/internal/problem"
)

// The actions that risk records.
const (
	ActionSeed   = "assurance.risks.seed"       // the starter register was written into a new installation
	ActionRead   = "assurance.risks.read"       // somebody read the register
	ActionPut    = "assurance.risk.put"         // a risk was made or changed
	ActionReview = "assurance.risk.review"      // its owner has looked at a risk
	ActionState  = "assurance.statement.read"   // somebody read the statement of applicability
	ActionDecide = "assurance.statement.decide" // somebody decided about a control

	ActionImprovements = "assurance.improvements.list" // somebody read the actions
	ActionImprove      = "assurance.improvement.add"
	ActionImproved     = "assurance.improvement.end"
)

// The kinds of findings; the subject is the risk or the action.
const (
	FindingReview      = "assurance.risk-review-overdue"
	FindingImprovement = "assurance.improvement-overdue"
)

// JobName is the name of the job that notices what is overdue.
const JobName = "assurance-risks"

const (
	// starterReview is when the risks of the starter register have to be reviewed.
	starterReview = 90 * 24 * time.Hour
	// longestReview is the latest that a review may be put off to: ISO/IEC 27001 asks for planned intervals, and
	// auditors come once a year.
	longestReview = 400 * 24 * time.Hour
	// MaxRisks bounds the register, and MaxActions the list of actions.
	MaxRisks, MaxActions = 500, 1000
)

// Level is how likely something is, and how bad, each from 1 to 5.
type Level struct {
	Likelihood int `yaml:"likelihood" json:"likelihood"`
	Impact     int `yaml:"impact" json:"impact"`
}

// Value is likelihood times impact, from 1 to 25.
func (l Level) Value() int { return l.Likelihood * l.Impact }

func (l Level) valid() bool {
	return l.Likelihood >= 1 && l.Likelihood <= 5 && l.Impact >= 1 && l.Impact <= 5
}

// Band is a value in a word.
func Band(value int) string {
	switch {
	case value >= 17:
		return "severe"
	case value >= 10:
		return "high"
	case value >= 5:
		return "medium"
	}
	return "low"
}

// Treatments are what may be done about a risk.
var Treatments = []string{"reduce", "accept", "transfer", "avoid"}

// Risk is an entry of the register.
type Risk struct {
	ID        string   `yaml:"id" json:"id"`
	Asset     string   `yaml:"asset" json:"asset"`         // what could be harmed
	Threat    string   `yaml:"threat" json:"threat"`       // by what
	Before    Level    `yaml:"before" json:"before"`       // without the treatment
	After     Level    `yaml:"after" json:"after"`         // with the treatment, while it works
	Owner     string   `yaml:"owner" json:"owner"`         // a role, not a person
	Treatment string   `yaml:"treatment" json:"treatment"` // one of Treatments
	Measures  string   `yaml:"measures" json:"measures"`   // what is done
	Claims    []string `yaml:"claims" json:"claims"`       // that the treatment leans on; may be empty

	ReviewAt   time.Time  `yaml:"-" json:"review_at"` // when it has to be looked at again
	ReviewedAt *time.Time `yaml:"-" json:"reviewed_at,omitempty"`
	ReviewedBy string     `yaml:"-" json:"reviewed_by,omitempty"`
}

// Lean is a claim that a treatment leans on and that does not bear.
type Lean struct {
	Claim string          `json:"claim"`
	State assurance.State `json:"state"`
	Why   string          `json:"why"`
}

// Assessed is a risk with what it is worth now.
type Assessed struct {
	Risk
	Inherent int    `json:"inherent"` // value without treatment
	Target   int    `json:"target"`   // value while all claims hold
	Residual int    `json:"residual"` // value now
	Band     string `json:"band"`     // of Residual
	Raised   []Lean `json:"raised"`   // why Residual is above Target
	Overdue  bool   `json:"overdue"`  // its review is
}

// assess returns what a risk is worth when the claims stand so.
func assess(r Risk, claims map[string]assurance.Status, now time.Time) Assessed {
	a := Assessed{Risk: r, Inherent: r.Before.Value(), Target: r.After.Value(), Overdue: !now.Before(r.ReviewAt), Raised: []Lean{}}
	a.Residual = a.Target
	for _, id := range r.Claims {
		s, known := claims[id]
		worth := a.Inherent // a claim that fails, or that this version does not have, treats nothing
		switch {
		case !known:
			s.State, s.Why = assurance.Grey, "This version of Strongroom does not have the claim."
		case s.State == assurance.Green:
			continue
		case s.State == assurance.Amber:
			worth = (a.Inherent + a.Target + 1) / 2
		}
		a.Residual = max(a.Residual, worth)
		a.Raised = append(a.Raised, Lean{id, s.State, s.Why})
	}
	a.Band = Band(a.Residual)
	return a
}

// Claims says how the claims stand. Package assurance is behind it.
type Claims interface {
	Standing(ctx context.Context, tx *db.Tx) ([]assurance.Status, error)
}

// Findings is where it is said that something is overdue. Package finding is behind it.
type Findings interface {
	Raise(ctx context.Context, kind, subject, detail string) error
	Clear(ctx context.Context, kind, subject string) error
}

// Options say what a Register works with. DB and Trail are needed, and Claims for what depends on how they stand.
type Options struct {
	DB       *db.DB
	Trail    *audit.Trail
	Claims   Claims
	Findings Findings    // nil tells nobody
	Clock    clock.Clock // nil means clock.System
}

// Register keeps risks, decisions and actions. It is safe for concurrent use.
type Register struct {
	o        Options
	starter  []Risk
	controls []Control
	known    map[string]bool // the claims
}

//go:embed starter.yaml
var starterFile []byte

//go:embed annexa.yaml
var controlsFile []byte

// read reads one of the product's own lists.
func read(file []byte, list any) error {
	loader, err := yaml.NewLoader(bytes.NewReader(file), yaml.WithKnownFields())
	if err != nil {
		return err
	}
	return loader.Load(list)
}

// New returns the register in o.DB.
func New(o Options) (*Register, error) {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	r := &Register{o: o, known: make(map[string]bool)}
	claims, err := assurance.Catalogue()
	if err != nil {
		return nil, err
	}
	for _, c := range claims {
		r.known[c.ID] = true
	}
	if err := read(controlsFile, &r.controls); err != nil {
		return nil, fmt.Errorf("annexa.yaml: %w", err)
	}
	if err := read(starterFile, &r.starter); err != nil {
		return nil, fmt.Errorf("starter.yaml: %w", err)
	}
	for _, risk := range r.starter {
		if err := r.check(risk); err != nil {
			return nil, fmt.Errorf("starter.yaml: %s: %w", risk.ID, err)
		}
	}
	return r, nil
}

// Settle writes the starter register into an installation that has none.
func (r *Register) Settle(ctx context.Context, by actor.Actor) error {
	var n int
	err := r.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		n, err = countRisks(ctx, tx)
		return err
	})
	if err != nil || n > 0 {
		return err
	}
	return r.o.DB.Update(ctx, func(tx *db.Tx) error {
		if n, err := countRisks(ctx, tx); err != nil || n > 0 {
			return err
		}
		for _, risk := range r.starter {
			risk.ReviewAt = day(r.o.Clock.Now().Add(starterReview))
			if err := putRisk(ctx, tx, risk); err != nil {
				return err
			}
		}
		return r.o.Trail.Record(ctx, tx, by, audit.Event{Action: ActionSeed, Outcome: audit.Granted, Resource: fmt.Sprintf("risks %d", len(r.starter))})
	})
}

// day is the beginning of a day in UTC: people set dates, not instants.
func day(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

var operators = []actor.Kind{actor.System, actor.Staff}

// do runs a deed of an operator with its event; everybody else is refused.
func (r *Register) do(ctx context.Context, by actor.Actor, e audit.Event, fn func(tx *db.Tx, e *audit.Event) error) error {
	if !slices.Contains(operators, by.Kind) {
		return r.o.Trail.Deny(ctx, by, e, problem.New(problem.Forbidden, "risks-forbidden", "The register of risks is for the operators of this installation."))
	}
	return r.o.Trail.Do(ctx, by, e, fn)
}

// standing returns the claims by their ids.
func (r *Register) standing(ctx context.Context, tx *db.Tx) (map[string]assurance.Status, []assurance.Status, error) {
	all, err := r.o.Claims.Standing(ctx, tx)
	byID := make(map[string]assurance.Status, len(all))
	for _, s := range all {
		byID[s.ID] = s
	}
	return byID, all, err
}

// Risks returns the register, the worst first.
func (r *Register) Risks(ctx context.Context, by actor.Actor) (list []Assessed, err error) {
	err = r.do(ctx, by, audit.Event{Action: ActionRead, Resource: "risks"}, func(tx *db.Tx, _ *audit.Event) error {
		list = []Assessed{}
		risks, err := selectRisks(ctx, tx)
		if err != nil {
			return err
		}
		claims, _, err := r.standing(ctx, tx)
		if err != nil {
			return err
		}
		for _, risk := range risks {
			list = append(list, assess(risk, claims, r.o.Clock.Now()))
		}
		return nil
	})
	slices.SortStableFunc(list, func(a, b Assessed) int {
		return cmp.Or(cmp.Compare(b.Residual, a.Residual), cmp.Compare(b.Inherent, a.Inherent), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// Change says what is to be changed of a risk; nil leaves it as it is. A risk that is not there yet needs all of them
// but Claims and Review.
type Change struct {
	Asset            *string    `json:"asset,omitempty"`
	Threat           *string    `json:"threat,omitempty"`
	LikelihoodBefore *int       `json:"likelihood,omitempty"`
	ImpactBefore     *int       `json:"impact,omitempty"`
	LikelihoodAfter  *int       `json:"likelihood_after,omitempty"`
	ImpactAfter      *int       `json:"impact_after,omitempty"`
	Owner            *string    `json:"owner,omitempty"`
	Treatment        *string    `json:"treatment,omitempty"`
	Measures         *string    `json:"measures,omitempty"`
	Claims           *[]string  `json:"claims,omitempty"`
	Review           *time.Time `json:"review,omitempty"`
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func (c Change) apply(r *Risk) {
	set(&r.Asset, c.Asset)
	set(&r.Threat, c.Threat)
	set(&r.Before.Likelihood, c.LikelihoodBefore)
	set(&r.Before.Impact, c.ImpactBefore)
	set(&r.After.Likelihood, c.LikelihoodAfter)
	set(&r.After.Impact, c.ImpactAfter)
	set(&r.Owner, c.Owner)
	set(&r.Treatment, c.Treatment)
	set(&r.Measures, c.Measures)
	set(&r.Claims, c.Claims)
	if c.Review != nil {
		r.ReviewAt = day(*c.Review)
	}
}

var riskID = regexp.MustCompile(`^[A-Z][A-Z0-9]{0,7}-[0-9]{1,4}$`)

// line reports whether a text is one line of at most n characters, and not empty.
func line(s string, n int) bool {
	return strings.TrimSpace(s) != "" && utf8.ValidString(s) && utf8.RuneCountInString(s) <= n && !strings.ContainsFunc(s, unicode.IsControl)
}

func invalid(detail string, args ...any) error {
	return problem.New(problem.Unprocessable, "risk-invalid", detail, args...)
}

// check returns what is wrong with a risk, as the problem "risk-invalid".
func (r *Register) check(k Risk) error {
	for _, text := range []struct {
		name, value string
		most        int
	}{{"asset", k.Asset, 100}, {"threat", k.Threat, 300}, {"owner", k.Owner, 100}, {"measures", k.Measures, 500}} {
		if !line(text.value, text.most) {
			return invalid("Say the %s in one line of up to %d characters.", text.name, text.most)
		}
	}
	switch {
	case !riskID.MatchString(k.ID):
		return invalid("A risk is called like R-16: capitals, a dash, a number.")
	case !k.Before.valid() || !k.After.valid():
		return invalid("Likelihood and impact go from 1 to 5, before and after the treatment.")
	case k.After.Value() > k.Before.Value():
		return invalid("A treatment does not make a risk worse: %d × %d after it is more than %d × %d before.", k.After.Likelihood, k.After.Impact, k.Before.Likelihood, k.Before.Impact)
	case !slices.Contains(Treatments, k.Treatment):
		return invalid("The treatment is one of %s.", strings.Join(Treatments, ", "))
	}
	for i, c := range k.Claims {
		if !r.known[c] || slices.Contains(k.Claims[:i], c) {
			return invalid("There is no claim %q, or it is there twice; `strongroom claims` lists them.", c)
		}
	}
	return nil
}

// checkReview returns what is wrong with the day of a review.
func (r *Register) checkReview(at time.Time) error {
	now := r.o.Clock.Now()
	if !at.After(now) || at.After(now.Add(longestReview)) {
		return invalid("The next review is on a day to come, within 400 days.")
	}
	return nil
}

// Put changes a risk, or makes one. The event has what was changed. It fails with the problems "risk-invalid" and
// "risks-full".
func (r *Register) Put(ctx context.Context, by actor.Actor, id string, c Change) (Risk, error) {
	var risk Risk
	text, err := json.Marshal(c)
	if err != nil {
		return risk, err
	}
	e := audit.Event{Action: ActionPut, Resource: "risk " + id, Personal: map[string]string{"change": string(text)}}
	if !riskID.MatchString(id) {
		e.Resource, e.Personal = "risk", nil
	}
	if len(text) > 8<<10 {
		e.Personal = nil // and it is refused
	}
	err = r.do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		was, found, err := selectRisk(ctx, tx, id)
		if err != nil {
			return err
		}
		if risk = was; !found {
			n, err := countRisks(ctx, tx)
			if err != nil {
				return err
			}
			if n >= MaxRisks {
				return problem.New(problem.Conflict, "risks-full", "The register holds %d risks. Put some of them together.", MaxRisks)
			}
			risk = Risk{ID: id, ReviewAt: day(r.o.Clock.Now().Add(starterReview))}
		}
		c.apply(&risk)
		if err := r.check(risk); err != nil {
			return err
		}
		if c.Review != nil {
			if err := r.checkReview(risk.ReviewAt); err != nil {
				return err
			}
		}
		return putRisk(ctx, tx, risk)
	})
	if err == nil && c.Review != nil {
		err = r.clear(ctx, FindingReview, id)
	}
	return risk, err
}

func (r *Register) clear(ctx context.Context, kind, subject string) error {
	if r.o.Findings == nil {
		return nil
	}
	return r.o.Findings.Clear(ctx, kind, subject)
}

// Review notes that a risk was looked at and stands as it is written, and when it is looked at next. It fails with the
// problems "risk-not-found" and "risk-invalid".
func (r *Register) Review(ctx context.Context, by actor.Actor, id string, next time.Time) (Risk, error) {
	var risk Risk
	e := audit.Event{Action: ActionReview, Resource: "risk " + id}
	if !riskID.MatchString(id) {
		e.Resource = "risk"
	}
	err := r.do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		was, found, err := selectRisk(ctx, tx, id)
		if err != nil {
			return err
		}
		if !found {
			return problem.New(problem.NotFound, "risk-not-found", "There is no such risk; `strongroom risk list` has them all.")
		}
		risk = was
		if risk.ReviewAt = day(next); next.IsZero() {
			risk.ReviewAt = day(r.o.Clock.Now().Add(longestReview / 2))
		}
		if err := r.checkReview(risk.ReviewAt); err != nil {
			return err
		}
		now := r.o.Clock.Now()
		risk.ReviewedAt, risk.ReviewedBy = &now, by.ID
		return putRisk(ctx, tx, risk)
	})
	if err == nil {
		err = r.clear(ctx, FindingReview, id)
	}
	return risk, err
}

// Job notices what is overdue, on one server at a time.
func (r *Register) Job() jobs.Job {
	return jobs.Job{Name: JobName, Every: 10 * time.Minute, Leased: true, Run: r.tend}
}

func (r *Register) tend(ctx context.Context) error {
	if r.o.Findings == nil {
		return nil
	}
	risks, actions, err := r.planned(ctx)
	if err != nil {
		return err
	}
	now := r.o.Clock.Now()
	tell := func(overdue bool, kind, subject, detail string) error {
		if !overdue {
			return r.o.Findings.Clear(ctx, kind, subject)
		}
		return r.o.Findings.Raise(ctx, kind, subject, detail)
	}
	for _, k := range risks {
		detail := fmt.Sprintf("The review of this risk was due on %s, and its owner is: %s. Look at it, and say so with `strongroom risk review %s`.",
			k.ReviewAt.Format(time.DateOnly), k.Owner, k.ID)
		if err := tell(!now.Before(k.ReviewAt), FindingReview, k.ID, detail); err != nil {
			return err
		}
	}
	for _, a := range actions {
		detail := fmt.Sprintf("This was to be done by %s, and its owner is: %s. When it is, say so with `strongroom risk actions done %s`.",
			a.Due.Format(time.DateOnly), a.Owner, a.ID)
		if err := tell(a.overdue(now), FindingImprovement, a.ID, detail); err != nil {
			return err
		}
	}
	return nil
}

// planned returns what has a day on which it is due: all risks and the actions that are open.
func (r *Register) planned(ctx context.Context) (risks []Risk, actions []Action, err error) {
	err = r.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		if risks, err = selectRisks(ctx, tx); err != nil {
			return err
		}
		actions, err = selectActions(ctx, tx, false)
		return err
	})
	return risks, actions, err
}
