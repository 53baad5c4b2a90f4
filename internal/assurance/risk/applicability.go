package risk

import (
	"context"
	"slices"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/assurance"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// Control is a control of ISO/IEC 27001:2022 Annex A: its identifier, and in our own words what it asks and why it
// applies.
type Control struct {
	ID   string `yaml:"id" json:"control"`
	Asks string `yaml:"asks" json:"asks"`
	Why  string `yaml:"why" json:"-"`
}

// NotCovered is the state of a control that no claim speaks of: Strongroom shows nothing of it.
const NotCovered = "not covered"

// NotApplicable is the state of a control that the operator has decided not to need.
const NotApplicable = "not applicable"

// Covering is a claim that makes a control true in part, with the checks that watch that part.
type Covering struct {
	Claim  string          `json:"claim"`
	State  assurance.State `json:"state"`
	Checks []string        `json:"checks"`
}

// Applied is a line of the statement of applicability.
type Applied struct {
	Control
	Applies       bool       `json:"applies"`
	Justification string     `json:"justification"`
	Claims        []Covering `json:"claims"`
	State         string     `json:"state"` // the worst of the claims', NotCovered or NotApplicable
	DecidedAt     *time.Time `json:"decided_at,omitempty"`
	DecidedBy     string     `json:"decided_by,omitempty"`
}

// Statement returns the statement of applicability as it is now: all controls, in their order.
func (r *Register) Statement(ctx context.Context, by actor.Actor) (list []Applied, err error) {
	err = r.do(ctx, by, audit.Event{Action: ActionState, Resource: "statement of applicability"}, func(tx *db.Tx, _ *audit.Event) error {
		_, claims, err := r.standing(ctx, tx)
		if err != nil {
			return err
		}
		decided, err := selectDecisions(ctx, tx)
		if err != nil {
			return err
		}
		list = state(r.controls, claims, decided)
		return nil
	})
	return list, err
}

// decision is what the operator said of a control.
type decision struct {
	applies       bool
	justification string
	at            int64 // Unix microseconds
	by            string
}

// state makes the statement of the controls from how the claims stand and what was decided.
func state(controls []Control, claims []assurance.Status, decided map[string]decision) []Applied {
	covering := make(map[string][]Covering)
	for _, c := range claims {
		checks := make(map[string][]string) // by reference
		for _, control := range c.Controls {
			for _, reference := range control.References {
				if id, ok := strings.CutPrefix(reference, "iso:"); ok {
					checks[id] = append(checks[id], control.Checks...)
				}
			}
		}
		for id, names := range checks {
			slices.Sort(names)
			covering[id] = append(covering[id], Covering{c.ID, c.State, slices.Compact(names)})
		}
	}
	list := make([]Applied, 0, len(controls))
	for _, control := range controls {
		a := Applied{Control: control, Applies: true, Justification: control.Why, Claims: covering[control.ID], State: NotCovered}
		if a.Claims == nil {
			a.Claims = []Covering{}
		}
		worst := 0
		for _, c := range a.Claims {
			if rank := slices.Index(ranks, c.State); rank >= worst {
				worst, a.State = rank, string(c.State)
			}
		}
		if d, ok := decided[control.ID]; ok {
			at := clock.FromMicros(d.at)
			a.Applies, a.Justification, a.DecidedAt, a.DecidedBy = d.applies, d.justification, &at, d.by
		}
		if !a.Applies {
			a.State = NotApplicable
		}
		list = append(list, a)
	}
	return list
}

// ranks are the states, the best first.
var ranks = []assurance.State{assurance.Green, assurance.Grey, assurance.Amber, assurance.Red}

// Decide says whether a control applies, and why. It fails with the problems "control-not-found" and "risk-invalid".
func (r *Register) Decide(ctx context.Context, by actor.Actor, control string, applies bool, justification string) error {
	known := slices.ContainsFunc(r.controls, func(c Control) bool { return c.ID == control })
	e := audit.Event{Action: ActionDecide, Resource: "control"}
	if known {
		e.Resource = "control " + control
	}
	if line(justification, 500) {
		e.Personal = map[string]string{"change": justification}
	}
	return r.do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		if !known {
			return problem.New(problem.NotFound, "control-not-found", "Annex A has no such control; write it like A.8.24.")
		}
		if !line(justification, 500) {
			return invalid("Justify the decision in one line of up to 500 characters.")
		}
		return putDecision(ctx, tx, control, decision{applies, justification, clock.Micros(r.o.Clock.Now()), by.ID})
	})
}
