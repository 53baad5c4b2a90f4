package app

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/config"
	"strongroom/internal/edge"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
)

// LogOperator is what the command line may ask of the log; it is a part of Operator.
type LogOperator interface {
	// Prove returns the proof that an event is in the log; see audit.Trail.Prove.
	Prove(ctx context.Context, event string) (audit.Proof, error)
	// VerifyNew verifies what was added since the last verification; see audit.Trail.VerifyNew.
	VerifyNew(ctx context.Context, progress func(done, total int64)) (audit.Report, error)
	// VerifyArchive verifies all, and reads the archive too; see audit.Trail.VerifyArchive.
	VerifyArchive(ctx context.Context, progress func(done, total int64)) (audit.Report, error)
	// AcceptRestore declares that a backup was put back on purpose; see audit.Trail.AcceptRestore.
	AcceptRestore(ctx context.Context, checkpoint string) (audit.Accepted, error)
	// LogKeys returns the verifier keys of the log, oldest first.
	LogKeys(ctx context.Context) ([]string, error)
	// Checkpoints returns checkpoints of sizes below the one given, newest first; see audit.Trail.Checkpoints.
	Checkpoints(ctx context.Context, below int64, limit int) ([]audit.Checkpoint, error)
}

func (o operator) Prove(ctx context.Context, event string) (audit.Proof, error) {
	p, err := o.house.Trail.Prove(ctx, o.by, event)
	if err != nil {
		return audit.Proof{}, err
	}
	keys, err := o.LogKeys(ctx)
	if err != nil {
		return audit.Proof{}, err
	}
	return p, p.NameKey(keys)
}

func (o operator) VerifyNew(ctx context.Context, progress func(done, total int64)) (audit.Report, error) {
	o.upToDate(ctx)
	return o.house.Trail.VerifyNew(ctx, o.by, progress)
}

// upToDate sequences what the last server left behind, which waits for nobody else when none runs. When
// it cannot be sequenced, the verification says why.
func (o operator) upToDate(ctx context.Context) {
	if !o.alone {
		return
	}
	if err := o.house.settle(ctx); err != nil {
		o.house.log.WarnContext(ctx, "the trail was not brought up to date", "error", err)
	}
}

func (o operator) AcceptRestore(ctx context.Context, checkpoint string) (audit.Accepted, error) {
	at, err := audit.ParseSizeRoot(checkpoint)
	if err != nil {
		return audit.Accepted{}, err
	}
	return o.house.Trail.AcceptRestore(ctx, o.by, at)
}

func (o operator) LogKeys(ctx context.Context) ([]string, error) {
	return o.house.Ring.CheckpointKeys(ctx)
}

func (o operator) Checkpoints(ctx context.Context, below int64, limit int) ([]audit.Checkpoint, error) {
	return o.house.Trail.Checkpoints(ctx, o.by, below, limit)
}

type checkpointsRequest struct {
	Below int64 `json:"below"`
	Limit int   `json:"limit"`
}

// logRoutes adds the log's commands to the control socket.
func (c *control) logRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /trail/prove", command(c, func(ctx context.Context, o operator, event string) (audit.Proof, error) {
		return o.Prove(ctx, event)
	}))
	mux.HandleFunc("POST /trail/verify-new", func(w http.ResponseWriter, r *http.Request) {
		c.verifying(w, r, c.by(r).VerifyNew)
	})
	c.archiveRoutes(mux)
	mux.HandleFunc("POST /trail/accept-restore", command(c, func(ctx context.Context, o operator, checkpoint string) (audit.Accepted, error) {
		return o.AcceptRestore(ctx, checkpoint)
	}))
	mux.HandleFunc("POST /trail/keys", command(c, func(ctx context.Context, o operator, _ struct{}) ([]string, error) {
		return o.LogKeys(ctx)
	}))
	mux.HandleFunc("POST /trail/checkpoints", command(c, func(ctx context.Context, o operator, ask checkpointsRequest) ([]audit.Checkpoint, error) {
		return o.Checkpoints(ctx, ask.Below, ask.Limit)
	}))
}

func (d *dialled) Prove(ctx context.Context, event string) (p audit.Proof, err error) {
	err = d.call(ctx, "/trail/prove", event, &p, nil)
	return p, err
}

func (d *dialled) VerifyNew(ctx context.Context, progress func(done, total int64)) (report audit.Report, err error) {
	err = d.call(ctx, "/trail/verify-new", nil, &report, progress)
	return report, err
}

func (d *dialled) AcceptRestore(ctx context.Context, checkpoint string) (done audit.Accepted, err error) {
	err = d.call(ctx, "/trail/accept-restore", checkpoint, &done, nil)
	return done, err
}

func (d *dialled) LogKeys(ctx context.Context) (keys []string, err error) {
	err = d.call(ctx, "/trail/keys", struct{}{}, &keys, nil)
	return keys, err
}

func (d *dialled) Checkpoints(ctx context.Context, below int64, limit int) (list []audit.Checkpoint, err error) {
	err = d.call(ctx, "/trail/checkpoints", checkpointsRequest{below, limit}, &list, nil)
	return list, err
}

// witnessEvery is the least time between two checkpoints that a witness is asked to cosign.
const witnessEvery = 10 * time.Second

// openWitnesses has the witnesses of the settings asked.
func (h *House) openWitnesses() error {
	var list []audit.Witness
	for i, w := range h.Config.Witnesses {
		key, err := audit.NewVerifier(w.Key)
		if err != nil {
			return &config.Error{Key: fmt.Sprintf("witnesses[%d].key", i), Problem: err.Error()}
		}
		list = append(list, audit.Witness{Key: key, URL: w.URL})
	}
	if len(list) > 0 {
		h.Jobs.Add(audit.NewWitnesses(h.Trail, list, witnessEvery, h.Findings, h.Metrics).Job())
	}
	return nil
}

// admin returns what the admin listener serves, to known addresses.
func (s *Server) admin() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(audit.TilesPath, s.house.Trail.Tiles(func(*http.Request) *problem.Problem { return nil }, edge.WriteProblem))
	return mux
}

// tilesForServices returns the log for services that a policy lets read it. The purpose is "audit"
// unless the request names another: the ordinary clients of a log name none.
func (h *House) tilesForServices(policies *policy.Set) http.Handler {
	return h.Trail.Tiles(func(r *http.Request) *problem.Problem {
		by := actor.From(r.Context())
		if by.Kind != actor.Service || by.ID == "" {
			return problem.New(problem.Unauthenticated, "certificate-required",
				"Call this listener with a client certificate that names your service.")
		}
		purpose := r.Header.Get("Strongroom-Purpose")
		if purpose == "" {
			purpose = "audit"
		}
		return policies.Decide(policy.Question{
			By: by, Action: policy.AuditTiles, Purpose: purpose, Resource: policy.Environment(h.Config.Environment),
		})
	}, edge.WriteProblem)
}
