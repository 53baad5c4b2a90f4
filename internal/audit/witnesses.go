package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
	"strongroom/internal/witness"
)

// Witness is one who is asked to cosign the log's checkpoints (C2SP tlog-witness).
type Witness struct {
	Key note.Verifier // of the witness; its name is unique among them
	URL string        // its submission prefix
}

// The findings about witnesses; the subject is the witness's name.
const (
	FindingWitnessLag     = "audit.witness-lag"     // it has not been reached for some time
	FindingWitnessRefused = "audit.witness-refused" // it does not cosign: it has seen another log, or does not know this one
)

// Witnesses asks witnesses to cosign the log.
type Witnesses struct {
	trail    *Trail
	list     []Witness
	every    time.Duration
	findings Findings
	lag      *prometheus.GaugeVec
	refused  *prometheus.CounterVec

	mu     sync.Mutex
	failed map[string]int // by name, since the last success
}

// failuresForLag is how often in a row a witness may not be reached before that is a finding.
const failuresForLag = 3

// NewWitnesses returns what asks the witnesses for a cosignature, no more often than every (at least a
// second). findings and metrics may be nil.
func NewWitnesses(t *Trail, list []Witness, every time.Duration, findings Findings, metrics prometheus.Registerer) *Witnesses {
	return &Witnesses{
		trail: t, list: list, every: max(every, time.Second), findings: findings, failed: make(map[string]int),
		lag: register(metrics, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strongroom_audit_witness_lag_events", Help: "Events in the log that the witness has not cosigned.",
		}, []string{"witness"})),
		refused: register(metrics, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strongroom_audit_witness_refusals_total", Help: "Checkpoints that the witness has refused to cosign.",
		}, []string{"witness"})),
	}
}

// Job returns the job that asks; the lease picks one replica.
func (w *Witnesses) Job() jobs.Job {
	return jobs.Job{Name: "audit.witnesses", Every: w.every, Run: w.Ask, Leased: true, Quiet: true}
}

// Ask asks each witness that has not cosigned the newest checkpoint to do so, all at once, and stores what
// they answer. A cosignature is no event of the trail: it would be another checkpoint to cosign. It fails
// when the database does; a witness that fails is a finding.
func (w *Witnesses) Ask(ctx context.Context) error {
	var h head
	var tree tlog.Tree
	known := make(map[string]int64)
	err := w.trail.db.View(ctx, func(tx *db.Tx) (err error) {
		if h, err = selectHead(ctx, tx); err != nil {
			return err
		}
		if tree, err = w.trail.headTree(h); err != nil {
			return err
		}
		for _, one := range w.list {
			size, err := selectCosigned(ctx, tx, one.Key.Name())
			if err != nil {
				return err
			}
			if size == tree.N && size > 0 {
				// A row that nobody signed must not keep the witness from being asked.
				line, err := selectCosignature(ctx, tx, size, one.Key.Name())
				if err != nil {
					return err
				}
				if names, err := cosigners(h.note+line, []note.Verifier{one.Key}); err != nil || len(names) == 0 {
					size = 0
				}
			}
			known[one.Key.Name()] = size
		}
		return nil
	})
	if err != nil || tree.N == 0 {
		return err
	}
	errs := make([]error, len(w.list))
	var group sync.WaitGroup
	for i, one := range w.list {
		name := one.Key.Name()
		w.lag.WithLabelValues(name).Set(float64(max(0, tree.N-known[name])))
		if known[name] == tree.N {
			continue
		}
		group.Go(func() { errs[i] = w.settle(ctx, one, tree, w.cosign(ctx, one, h, tree, min(known[name], tree.N))) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// cosign has one witness cosign the tree, which it is thought to know up to the size old.
func (w *Witnesses) cosign(ctx context.Context, one Witness, h head, tree tlog.Tree, old int64) error {
	client := witness.Client{Verifier: one.Key, URL: one.URL}
	for attempt := 0; ; attempt++ {
		ask := witness.Request{Old: old, Checkpoint: []byte(h.note)}
		if old > 0 && old < tree.N {
			err := w.trail.db.View(ctx, func(tx *db.Tx) (err error) {
				ask.Proof, err = tlog.ProveTree(tree.N, old, tlog.TileHashReader(tree, tileReader{ctx, tx}))
				return err
			})
			if err != nil {
				return tampered(err)
			}
		}
		line, err := client.Add(ctx, ask)
		var refused *witness.Refusal
		switch {
		case err == nil:
			return w.trail.db.Update(ctx, func(tx *db.Tx) error {
				return insertCosignature(ctx, tx, tree.N, one.Key.Name(), line, clock.Micros(w.trail.clock.Now()))
			})
		case !errors.As(err, &refused) || refused.Known < 0 || attempt == 2:
			return err
		case refused.Known > tree.N:
			return &witness.Refusal{Status: refused.Status, Known: -1,
				Why: fmt.Sprintf("it has seen the log with %d events, and it has %d: the log was rolled back", refused.Known, tree.N)}
		}
		old = refused.Known // the database does not know what it was told, or another server was faster
	}
}

// settle makes what came of asking a finding, or ends it.
func (w *Witnesses) settle(ctx context.Context, one Witness, tree tlog.Tree, err error) error {
	name := one.Key.Name()
	w.mu.Lock()
	failed := w.failed[name] + 1
	if err == nil {
		failed = 0
	}
	w.failed[name] = failed
	w.mu.Unlock()
	var refused *witness.Refusal
	switch {
	case err == nil:
		w.lag.WithLabelValues(name).Set(0)
		return errors.Join(w.clear(ctx, FindingWitnessLag, name), w.clear(ctx, FindingWitnessRefused, name))
	case isEngine(err) || ctx.Err() != nil:
		return err
	case errors.As(err, &refused):
		w.refused.WithLabelValues(name).Inc()
		w.trail.log.ErrorContext(ctx, "a witness refuses the log", "witness", name, "size", tree.N, "reason", refused.Error())
		return w.raise(ctx, FindingWitnessRefused, name, fmt.Sprintf("The witness refuses the checkpoint of size %d: %v.", tree.N, refused))
	}
	w.trail.log.WarnContext(ctx, "a witness has not cosigned", "witness", name, "size", tree.N, "error", err)
	if failed < failuresForLag {
		return nil
	}
	return w.raise(ctx, FindingWitnessLag, name, fmt.Sprintf("The witness was asked %d times in a row and has not cosigned.", failed))
}

func (w *Witnesses) raise(ctx context.Context, kind, subject, detail string) error {
	if w.findings == nil {
		return nil
	}
	return w.findings.Raise(ctx, kind, subject, detail)
}

func (w *Witnesses) clear(ctx context.Context, kind, subject string) error {
	if w.findings == nil {
		return nil
	}
	return w.findings.Clear(ctx, kind, subject)
}

// selectCosignature returns the line of the witness for the size.
func selectCosignature(ctx context.Context, tx *db.Tx, size int64, witness string) (line string, err error) {
	err = tx.QueryRow(ctx, `SELECT `+boundedLine+` FROM log_cosignature WHERE size = $1 AND witness = $2`, size, witness).Scan(&line)
	return line, err
}

// selectCosigned returns the size of the newest checkpoint that the witness has cosigned, or 0.
func selectCosigned(ctx context.Context, tx *db.Tx, witness string) (size int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COALESCE(max(size), 0) FROM log_cosignature WHERE witness = $1`, witness).Scan(&size)
	return max(0, size), err
}
