package risk

import (
	"context"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

// The states of an action.
const (
	Open    = "open"
	Done    = "done"
	Dropped = "dropped"
)

const actionPrefix = "act"

// Action is something that is to become better.
type Action struct {
	ID     string     `json:"id"`
	Action string     `json:"action"`         // what is to be done
	Owner  string     `json:"owner"`          // a role, not a person
	Risk   string     `json:"risk,omitempty"` // that it is about; empty for none
	Due    time.Time  `json:"due"`
	State  string     `json:"state"`
	Made   time.Time  `json:"made"`
	Ended  *time.Time `json:"ended,omitempty"`
	Remark string     `json:"remark,omitempty"` // why it was dropped, or what came of it

	Overdue bool `json:"overdue"`
}

func (a Action) overdue(now time.Time) bool { return a.State == Open && !now.Before(a.Due) }

// Actions returns what is to become better, what is due first coming first; with all also what has ended,
// after them.
func (r *Register) Actions(ctx context.Context, by actor.Actor, all bool) (list []Action, err error) {
	err = r.do(ctx, by, audit.Event{Action: ActionImprovements, Resource: "improvements"}, func(tx *db.Tx, _ *audit.Event) (err error) {
		list, err = selectActions(ctx, tx, all)
		for i, a := range list {
			list[i].Overdue = a.overdue(r.o.Clock.Now())
		}
		return err
	})
	return list, err
}

// AddAction plans an improvement; of a, only Action, Owner, Risk and Due are looked at. It fails with the problems
// "risk-invalid", "risk-not-found" and "improvements-full".
func (r *Register) AddAction(ctx context.Context, by actor.Actor, a Action) (Action, error) {
	now := r.o.Clock.Now()
	a = Action{ID: id.New(actionPrefix), Action: strings.TrimSpace(a.Action), Owner: strings.TrimSpace(a.Owner), Risk: a.Risk, Due: day(a.Due), State: Open, Made: now}
	e := audit.Event{Action: ActionImprove, Resource: "improvement " + a.ID}
	if line(a.Action, 300) {
		e.Personal = map[string]string{"change": a.Action}
	}
	err := r.do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		switch {
		case !line(a.Action, 300):
			return invalid("Say what is to be done in one line of up to 300 characters.")
		case !line(a.Owner, 100):
			return invalid("Say who does it, a role, in one line of up to 100 characters.")
		case !a.Due.After(now) || a.Due.After(now.Add(5*365*24*time.Hour)):
			return invalid("An action is due on a day to come, within five years.")
		}
		if a.Risk != "" {
			if _, found, err := selectRisk(ctx, tx, a.Risk); err != nil || !found {
				if err == nil {
					err = problem.New(problem.NotFound, "risk-not-found", "There is no such risk; `strongroom risk list` has them all.")
				}
				return err
			}
		}
		n, err := countActions(ctx, tx)
		if err != nil {
			return err
		}
		if n >= MaxActions {
			return problem.New(problem.Conflict, "improvements-full", "%d actions are open. End some of them first.", MaxActions)
		}
		return putAction(ctx, tx, a)
	})
	return a, err
}

// EndAction says that an action is Done or Dropped; the remark is needed for the second. It fails with the problems
// "improvement-not-found", "improvement-ended" and "risk-invalid".
func (r *Register) EndAction(ctx context.Context, by actor.Actor, action, state, remark string) (Action, error) {
	var a Action
	e := audit.Event{Action: ActionImproved, Resource: "improvement " + action + " " + state}
	if !id.Valid(actionPrefix, action) || state != Done && state != Dropped {
		e.Resource = "improvement"
	}
	if line(remark, 300) {
		e.Personal = map[string]string{"change": remark}
	}
	err := r.do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		was, found, err := selectAction(ctx, tx, action)
		switch {
		case err != nil:
			return err
		case !found:
			return problem.New(problem.NotFound, "improvement-not-found", "There is no such action; `strongroom risk actions --all` has them all.")
		case was.State != Open:
			return problem.New(problem.Conflict, "improvement-ended", "The action is %s already.", was.State)
		case state != Done && state != Dropped:
			return invalid("An action ends as %s or %s.", Done, Dropped)
		case remark == "" && state == Dropped || remark != "" && !line(remark, 300):
			return invalid("Say why in one line of up to 300 characters.")
		}
		now := r.o.Clock.Now()
		a = was
		a.State, a.Ended, a.Remark = state, &now, remark
		return putAction(ctx, tx, a)
	})
	if err == nil {
		err = r.clear(ctx, FindingImprovement, action)
	}
	return a, err
}
