package app

import (
	"context"
	"errors"
	"net/http"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/assurance"
	"strongroom/internal/assurance/risk"
	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// openRisks opens the register of risks; a new installation gets the starter register.
func (h *House) openRisks(ctx context.Context, by actor.Actor, create bool) (err error) {
	h.Risks, err = risk.New(risk.Options{DB: h.DB, Trail: h.Trail, Claims: standing{h}, Findings: h.Findings, Clock: clock.System})
	if err != nil || !create {
		return err
	}
	return h.Risks.Settle(ctx, by)
}

// settleRisks gives the starter register to an installation from before there was one.
func (h *House) settleRisks() error {
	return h.Risks.Settle(context.Background(), actor.OfSystem("server"))
}

// standing says how the claims of a house stand that has its doors.
type standing struct{ house *House }

// Standing is that of assurance.Assurance.
func (s standing) Standing(ctx context.Context, tx *db.Tx) ([]assurance.Status, error) {
	if s.house.Assurance == nil {
		return nil, errors.New("no server runs that could say how the claims stand")
	}
	return s.house.Assurance.Standing(ctx, tx)
}

// RiskOperator is what the command line may do with risks, the statement of applicability and improvements.
type RiskOperator interface {
	Risks(ctx context.Context) ([]risk.Assessed, error)
	PutRisk(ctx context.Context, id string, c risk.Change) (risk.Risk, error)
	// ReviewRisk notes a review; a zero next leaves the day of the next one to the register.
	ReviewRisk(ctx context.Context, id string, next time.Time) (risk.Risk, error)
	Statement(ctx context.Context) ([]risk.Applied, error)
	DecideControl(ctx context.Context, control string, applies bool, justification string) error
	Improvements(ctx context.Context, all bool) ([]risk.Action, error)
	AddImprovement(ctx context.Context, a risk.Action) (risk.Action, error)
	EndImprovement(ctx context.Context, id, state, remark string) (risk.Action, error)
}

func (o operator) Risks(ctx context.Context) ([]risk.Assessed, error) {
	return o.house.Risks.Risks(ctx, o.by)
}

func (o operator) PutRisk(ctx context.Context, id string, c risk.Change) (risk.Risk, error) {
	return o.house.Risks.Put(ctx, o.by, id, c)
}

func (o operator) ReviewRisk(ctx context.Context, id string, next time.Time) (risk.Risk, error) {
	return o.house.Risks.Review(ctx, o.by, id, next)
}

func (o operator) Statement(ctx context.Context) ([]risk.Applied, error) {
	return o.house.Risks.Statement(ctx, o.by)
}

func (o operator) DecideControl(ctx context.Context, control string, applies bool, justification string) error {
	return o.house.Risks.Decide(ctx, o.by, control, applies, justification)
}

func (o operator) Improvements(ctx context.Context, all bool) ([]risk.Action, error) {
	return o.house.Risks.Actions(ctx, o.by, all)
}

func (o operator) AddImprovement(ctx context.Context, a risk.Action) (risk.Action, error) {
	return o.house.Risks.AddAction(ctx, o.by, a)
}

func (o operator) EndImprovement(ctx context.Context, id, state, remark string) (risk.Action, error) {
	return o.house.Risks.EndAction(ctx, o.by, id, state, remark)
}

// riskRequest is what the command line asks; each route reads its own part.
type riskRequest struct {
	ID      string      `json:"id,omitempty"`
	Change  risk.Change `json:"change,omitzero"`
	Next    time.Time   `json:"next,omitzero"`
	Applies bool        `json:"applies,omitempty"`
	Text    string      `json:"text,omitempty"`
	All     bool        `json:"all,omitempty"`
	Action  risk.Action `json:"action,omitzero"`
	State   string      `json:"state,omitempty"`
}

func (c *control) riskRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /risk/list", command(c, func(ctx context.Context, o operator, _ riskRequest) ([]risk.Assessed, error) {
		return o.Risks(ctx)
	}))
	mux.HandleFunc("POST /risk/put", command(c, func(ctx context.Context, o operator, ask riskRequest) (risk.Risk, error) {
		return o.PutRisk(ctx, ask.ID, ask.Change)
	}))
	mux.HandleFunc("POST /risk/review", command(c, func(ctx context.Context, o operator, ask riskRequest) (risk.Risk, error) {
		return o.ReviewRisk(ctx, ask.ID, ask.Next)
	}))
	mux.HandleFunc("POST /risk/statement", command(c, func(ctx context.Context, o operator, _ riskRequest) ([]risk.Applied, error) {
		return o.Statement(ctx)
	}))
	mux.HandleFunc("POST /risk/decide", command(c, func(ctx context.Context, o operator, ask riskRequest) (struct{}, error) {
		return struct{}{}, o.DecideControl(ctx, ask.ID, ask.Applies, ask.Text)
	}))
	mux.HandleFunc("POST /risk/actions", command(c, func(ctx context.Context, o operator, ask riskRequest) ([]risk.Action, error) {
		return o.Improvements(ctx, ask.All)
	}))
	mux.HandleFunc("POST /risk/actions/add", command(c, func(ctx context.Context, o operator, ask riskRequest) (risk.Action, error) {
		return o.AddImprovement(ctx, ask.Action)
	}))
	mux.HandleFunc("POST /risk/actions/end", command(c, func(ctx context.Context, o operator, ask riskRequest) (risk.Action, error) {
		return o.EndImprovement(ctx, ask.ID, ask.State, ask.Text)
	}))
}

func (d *dialled) Risks(ctx context.Context) (list []risk.Assessed, err error) {
	err = d.call(ctx, "/risk/list", riskRequest{}, &list, nil)
	return list, err
}

func (d *dialled) PutRisk(ctx context.Context, id string, c risk.Change) (k risk.Risk, err error) {
	err = d.call(ctx, "/risk/put", riskRequest{ID: id, Change: c}, &k, nil)
	return k, err
}

func (d *dialled) ReviewRisk(ctx context.Context, id string, next time.Time) (k risk.Risk, err error) {
	err = d.call(ctx, "/risk/review", riskRequest{ID: id, Next: next}, &k, nil)
	return k, err
}

func (d *dialled) Statement(ctx context.Context) (list []risk.Applied, err error) {
	err = d.call(ctx, "/risk/statement", riskRequest{}, &list, nil)
	return list, err
}

func (d *dialled) DecideControl(ctx context.Context, control string, applies bool, justification string) error {
	return d.call(ctx, "/risk/decide", riskRequest{ID: control, Applies: applies, Text: justification}, &struct{}{}, nil)
}

func (d *dialled) Improvements(ctx context.Context, all bool) (list []risk.Action, err error) {
	err = d.call(ctx, "/risk/actions", riskRequest{All: all}, &list, nil)
	return list, err
}

func (d *dialled) AddImprovement(ctx context.Context, a risk.Action) (out risk.Action, err error) {
	err = d.call(ctx, "/risk/actions/add", riskRequest{Action: a}, &out, nil)
	return out, err
}

func (d *dialled) EndImprovement(ctx context.Context, id, state, remark string) (out risk.Action, err error) {
	err = d.call(ctx, "/risk/actions/end", riskRequest{ID: id, State: state, Text: remark}, &out, nil)
	return out, err
}
