package app

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/assurance"
	"strongroom/internal/check"
	"strongroom/internal/config"
)

// Checker is what the command line may ask of the claims of a running server.
type Checker interface {
	// Check runs the checks named, or all.
	Check(ctx context.Context, names []string) ([]assurance.Evidence, error)
	// Sabotage runs them where what they are about is broken.
	Sabotage(ctx context.Context, names []string) ([]Sabotaged, error)
	// Claims returns the claims as they stand.
	Claims(ctx context.Context) ([]assurance.Status, error)
	RiskOperator
	EvidenceOperator
	// Close lets go of the server, and stops it when it was started for this.
	Close() error
}

// Sabotaged is what a check saw where it had to fail.
type Sabotaged struct {
	Check string        `json:"check"`
	Took  time.Duration `json:"took_ns"`
	check.Observation
}

// OpenChecker returns the server that runs on the data folder; when none does, it starts one on free ports of
// this machine for as long as it is needed: checks ask a system that runs.
func OpenChecker(ctx context.Context, c config.Config, log *slog.Logger, version string) (Checker, error) {
	if remote, err := dial(ctx, c.Data); err == nil {
		return remote, nil
	}
	for _, address := range []*string{&c.Listeners.App.Address, &c.Listeners.Service.Address, &c.Listeners.Admin.Address, &c.Listeners.Ops.Address} {
		*address = "127.0.0.1:0"
	}
	server, err := Serve(ctx, c, Options{Log: log, Version: version})
	if err != nil {
		return nil, err
	}
	by := commandActor(os.Getuid())
	return &momentary{operator{server.house, by, false}, server, by}, nil
}

// momentary is a server that was started to be checked.
type momentary struct {
	RiskOperator
	server *Server
	by     actor.Actor
}

func (m *momentary) Check(ctx context.Context, names []string) ([]assurance.Evidence, error) {
	return m.server.house.Assurance.Run(ctx, m.by, names)
}

func (m *momentary) Sabotage(ctx context.Context, names []string) ([]Sabotaged, error) {
	return sabotage(ctx, m.server.house, names)
}

func (m *momentary) Claims(ctx context.Context) ([]assurance.Status, error) {
	return m.server.house.Assurance.Claims(ctx, m.by)
}

func (m *momentary) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return m.server.Close(ctx)
}

func sabotage(ctx context.Context, h *House, names []string) (all []Sabotaged, err error) {
	began := time.Now()
	err = h.Assurance.Sabotage(ctx, names, func(name string, seen check.Observation) {
		all = append(all, Sabotaged{name, time.Since(began), seen})
		began = time.Now()
	})
	return all, err
}

type checksRequest struct {
	Names []string `json:"names"`
}

func (c *control) assuranceRoutes(mux *http.ServeMux) {
	c.riskRoutes(mux)
	route := func(path string, do func(ctx context.Context, o operator, names []string) (any, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			var ask checksRequest
			var result any
			err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&ask)
			if err == nil {
				result, err = do(r.Context(), c.by(r), ask.Names)
			}
			c.answer(w, r, result, err)
		})
	}
	route("/checks", func(ctx context.Context, o operator, names []string) (any, error) {
		return o.house.Assurance.Run(ctx, o.by, names)
	})
	route("/sabotage", func(ctx context.Context, o operator, names []string) (any, error) {
		return sabotage(ctx, o.house, names)
	})
	c.evidenceRoutes(mux)
	route("/claims", func(ctx context.Context, o operator, _ []string) (any, error) {
		return o.house.Assurance.Claims(ctx, o.by)
	})
}

func (d *dialled) Check(ctx context.Context, names []string) (all []assurance.Evidence, err error) {
	err = d.call(ctx, "/checks", checksRequest{names}, &all, nil)
	return all, err
}

func (d *dialled) Sabotage(ctx context.Context, names []string) (all []Sabotaged, err error) {
	err = d.call(ctx, "/sabotage", checksRequest{names}, &all, nil)
	return all, err
}

func (d *dialled) Claims(ctx context.Context) (all []assurance.Status, err error) {
	err = d.call(ctx, "/claims", checksRequest{}, &all, nil)
	return all, err
}
