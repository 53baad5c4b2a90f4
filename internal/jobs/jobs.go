// Package jobs does what has to be done again and again in the background: each job at its pace,
// one run of it at a time, a leased job on one replica at a time, and every run that is not quiet
// leaving its start, end, outcome and an estimate of the next in the database.
//
// The promise: a job that fails or panics is logged and runs again; a replica that dies in the
// middle of a leased job is followed by another when the lease expires; and a deed that asks Holds
// in its own transaction cannot be done by a process that lost the lease without noticing.
package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

const (
	// leaseTime is how long a lease lasts that nobody renews: the longest that a leased job pauses
	// when its replica dies.
	leaseTime = 15 * time.Second
	// maxJitter bounds the random delay of the first run after the start.
	maxJitter = 5 * time.Second
	// keep is how long the history of runs is kept.
	keep = 90 * 24 * time.Hour
	// quietLog is the least time between two log lines about a quiet job that keeps failing.
	quietLog = time.Minute
)

// Options say who runs the jobs.
type Options struct {
	// Holder names this process among the replicas; no two may have the same name, nor the same
	// process after a restart. Empty means a fresh random name.
	Holder string

	Clock   clock.Clock           // nil means clock.System
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil keeps none
}

// Job is a deed and its pace.
type Job struct {
	// Name is stable; it is the name of the job's lease and history.
	Name string
	// Every is the time from the start of one run to the start of the next. 0 means on Wake only.
	Every time.Duration
	// Run does it. ctx ends when the runner stops and when a lease is lost; LeaseOf(ctx) gives the
	// lease of a leased job.
	Run func(ctx context.Context) error
	// Leased lets one replica at a time do it.
	Leased bool
	// Quiet keeps no history: for jobs that run more often than once a minute.
	Quiet bool
}

// The outcomes of a run, as the history has them.
const (
	Running  = "running"
	OK       = "ok"
	Failed   = "failed"
	Panicked = "panicked"
	Stopped  = "stopped" // the runner was stopped, or the lease was lost, in the middle of it
	Lost     = "lost"    // the process ended in the middle of it
)

// Run is one run in the history.
type Run struct {
	ID, Name, Holder string
	Outcome          string
	Detail           string // the slug of the problem that it failed with, else empty
	Started          time.Time
	Ended            time.Time     // zero while it runs
	Estimate         time.Duration // how long the next run may take, from the past ones; 0 unknown
	Next             time.Time     // when it will run next; zero when that is not known
}

// Runner runs jobs. Add them, then Start once, then Stop once.
type Runner struct {
	d       *db.DB
	holder  string
	clock   clock.Clock
	log     *slog.Logger
	runs    *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	lease   time.Duration

	mu      sync.Mutex
	jobs    map[string]*worker
	started bool
	cancel  context.CancelFunc
	group   sync.WaitGroup
}

// worker runs one job.
type worker struct {
	*Runner
	Job
	wake chan struct{}

	epoch   int64 // of the lease that is held; 0 for none
	expires time.Time
	outcome string    // of the last run
	told    time.Time // when a failure was logged last
}

// New returns a Runner without jobs.
func New(d *db.DB, o Options) *Runner {
	if o.Holder == "" {
		o.Holder = id.New("run")
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{
		d: d, holder: o.Holder, clock: o.Clock, log: o.Log, lease: leaseTime, jobs: make(map[string]*worker),
		runs: register(o.Metrics, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strongroom_job_runs_total", Help: "Runs of background jobs by outcome.",
		}, []string{"job", "outcome"})),
		seconds: register(o.Metrics, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "strongroom_job_seconds", Help: "Duration of background jobs.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 300, 1800, 7200},
		}, []string{"job"})),
	}
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	err := r.Register(c)
	var was prometheus.AlreadyRegisteredError
	if errors.As(err, &was) {
		if same, ok := was.ExistingCollector.(C); ok {
			return same
		}
	}
	return c
}

// Holder returns the name under which this runner holds leases.
func (r *Runner) Holder() string { return r.holder }

// Add adds a job. It panics on a second job of the same name, a job without Run and after Start:
// these are mistakes of the program.
func (r *Runner) Add(j Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.started:
		panic("jobs: Add after Start")
	case j.Name == "" || j.Run == nil:
		panic("jobs: a job needs a name and a deed")
	case r.jobs[j.Name] != nil:
		panic("jobs: two jobs are named " + j.Name)
	}
	r.jobs[j.Name] = &worker{Runner: r, Job: j, wake: make(chan struct{}, 1)}
}

// Wake has the job run soon, or once more if it is running. Calls that come before that run begins
// share it. On a replica without the lease of a leased job it does nothing: the holder has its pace.
func (r *Runner) Wake(name string) {
	r.mu.Lock()
	w := r.jobs[name]
	r.mu.Unlock()
	if w == nil {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Start begins to run the jobs, each after a short random delay or when it is due by its history.
// They stop when ctx ends or Stop is called.
func (r *Runner) Start(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started {
		panic("jobs: Start was called twice")
	}
	r.started = true
	ctx, r.cancel = context.WithCancel(ctx)
	for _, w := range r.jobs {
		r.group.Go(func() { w.loop(ctx) })
	}
}

// Stop asks the running jobs to end and waits for them, and for their leases to be given back. It
// returns ctx's error when they take longer than that; they go on ending.
func (r *Runner) Stop(ctx context.Context) error {
	r.mu.Lock()
	cancel := r.cancel
	r.mu.Unlock()
	if cancel == nil {
		return nil
	}
	cancel()
	ended := make(chan struct{})
	go func() {
		r.group.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("background jobs are still ending: %w", ctx.Err())
	}
}

// loop waits for the job's time and runs it, until ctx ends.
func (w *worker) loop(ctx context.Context) {
	defer w.release()
	timer := time.NewTimer(w.first(ctx))
	defer timer.Stop()
	if w.Every <= 0 {
		timer.Stop()
	}
	for {
		woken := false
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.wake:
			woken = true
		}
		if ctx.Err() != nil {
			return
		}
		wait := w.turn(ctx, woken)
		if w.Every > 0 {
			timer.Reset(wait)
		}
	}
}

// first returns the delay of the first run.
func (w *worker) first(ctx context.Context) time.Duration {
	if w.Every <= 0 {
		return time.Hour // the timer is stopped
	}
	jitter := rand.N(min(w.Every, maxJitter))
	return max(jitter, w.untilDue(ctx))
}

// untilDue returns how long the history says that the job has time. 0 means it is due.
func (w *worker) untilDue(ctx context.Context) time.Duration {
	if w.Quiet || w.Every <= 0 {
		return 0
	}
	var last time.Time
	err := w.d.View(ctx, func(tx *db.Tx) (err error) {
		last, err = lastStart(ctx, tx, w.Name)
		return err
	})
	if err != nil || last.IsZero() {
		return 0
	}
	return min(w.Every, max(0, last.Add(w.Every).Sub(w.clock.Now())))
}

// turn runs the job if it is this replica's turn, and returns how long to wait for the next.
func (w *worker) turn(ctx context.Context, woken bool) time.Duration {
	began := time.Now()
	if w.Leased {
		held, err := w.hold(ctx)
		if err != nil {
			w.report(ctx, Failed, "", 0, fmt.Errorf("lease: %w", err))
			return min(w.Every, w.lease)
		}
		if !held {
			return min(w.Every, w.lease)
		}
		if !woken {
			// Another replica may have done it while this one waited for the lease.
			if wait := w.untilDue(ctx); wait > w.Every/10 {
				w.releaseUnlessSoon()
				return wait
			}
		}
	}
	w.run(ctx)
	w.releaseUnlessSoon()
	return max(0, w.Every-time.Since(began))
}

// hold acquires the lease, or renews it when half of its time is gone.
func (w *worker) hold(ctx context.Context) (bool, error) {
	now := w.clock.Now()
	if w.epoch != 0 && now.Add(w.lease/2).Before(w.expires) {
		return true, nil
	}
	epoch, held, err := Acquire(ctx, w.d, w.clock, w.Name, w.holder, w.lease)
	if err != nil {
		return false, err
	}
	if !held {
		w.epoch = 0
		return false, nil
	}
	w.epoch, w.expires = epoch, now.Add(w.lease)
	return true, nil
}

// releaseUnlessSoon gives the lease back, unless the next run comes before it would expire.
func (w *worker) releaseUnlessSoon() {
	if w.Every <= 0 || w.Every > w.lease/2 {
		w.release()
	}
}

func (w *worker) release() {
	if w.epoch == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := Release(ctx, w.d, w.Name, w.holder, w.epoch); err != nil {
		w.log.LogAttrs(ctx, slog.LevelWarn, "lease not given back; it will expire",
			slog.String("job", w.Name), slog.Any("error", err))
	}
	w.epoch = 0
}

// run runs the job once, with its history and, if it is leased, its lease renewed all the time.
func (w *worker) run(parent context.Context) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var renewed sync.WaitGroup
	if w.Leased {
		lease := Lease{Name: w.Name, Holder: w.holder, Epoch: w.epoch}
		ctx = context.WithValue(ctx, leaseKey{}, lease)
		stop := make(chan struct{})
		renewed.Go(func() { w.renew(parent, lease, stop, cancel) })
		defer renewed.Wait()
		defer close(stop)
	}
	// The history is written even while the runner stops.
	history := context.WithoutCancel(parent)
	run := Run{ID: id.New("jrn"), Name: w.Name, Holder: w.holder, Outcome: Running, Started: w.clock.Now()}
	began := time.Now()
	if !w.Quiet {
		err := w.d.Update(history, func(tx *db.Tx) error { return insertRun(history, tx, run, w.Leased) })
		if err != nil {
			w.report(ctx, Failed, run.ID, 0, fmt.Errorf("history: %w", err))
			return
		}
	}
	outcome, err := w.call(ctx)
	if errors.Is(context.Cause(ctx), errLeaseLost) {
		w.epoch = 0
	}
	took := time.Since(began)
	if !w.Quiet {
		run.Outcome, run.Ended = outcome, w.clock.Now()
		if p := problem.Of(err); p != nil {
			run.Detail = p.Slug()
		}
		if w.Every > 0 {
			run.Next = run.Started.Add(w.Every)
			if run.Next.Before(run.Ended) {
				run.Next = run.Ended
			}
		}
		if herr := w.d.Update(history, func(tx *db.Tx) error { return endRun(history, tx, run) }); herr != nil {
			err = errors.Join(err, fmt.Errorf("history: %w", herr))
			if outcome == OK {
				outcome = Failed
			}
		}
	}
	w.report(ctx, outcome, run.ID, took, err)
}

// call runs the deed and turns a panic into an error.
func (w *worker) call(ctx context.Context) (outcome string, err error) {
	defer func() {
		if p := recover(); p != nil {
			outcome, err = Panicked, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	switch err := w.Run(ctx); {
	case err == nil:
		return OK, nil
	case ctx.Err() != nil:
		return Stopped, errors.Join(err, context.Cause(ctx))
	default:
		return Failed, err
	}
}

// renew keeps the lease for as long as the deed takes, and ends the deed when the lease is lost.
func (w *worker) renew(ctx context.Context, l Lease, stop chan struct{}, lost context.CancelCauseFunc) {
	tick := time.NewTicker(w.lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		now := w.clock.Now()
		epoch, held, err := Acquire(context.WithoutCancel(ctx), w.d, w.clock, l.Name, l.Holder, w.lease)
		switch {
		case err != nil && now.Before(w.expires): // there will be another tick
		case err != nil || !held || epoch != l.Epoch:
			lost(errors.Join(errLeaseLost, err))
			return
		default:
			w.expires = now.Add(w.lease)
		}
	}
}

var errLeaseLost = errors.New("the lease was lost")

// report logs and counts an outcome. A quiet job that keeps failing is logged once a minute.
func (w *worker) report(ctx context.Context, outcome, run string, took time.Duration, err error) {
	w.runs.WithLabelValues(w.Name, outcome).Inc()
	w.seconds.WithLabelValues(w.Name).Observe(took.Seconds())
	changed := outcome != w.outcome
	w.outcome = outcome
	if outcome == OK || outcome == Stopped {
		if !w.Quiet {
			w.log.LogAttrs(ctx, slog.LevelDebug, "job ran", slog.String("job", w.Name),
				slog.String("outcome", outcome), slog.String("run", run), slog.Duration("took", took))
		}
		return
	}
	if w.Quiet && !changed && time.Since(w.told) < quietLog {
		return
	}
	w.told = time.Now()
	w.log.LogAttrs(ctx, slog.LevelError, "job failed", slog.String("job", w.Name),
		slog.String("outcome", outcome), slog.String("run", run), slog.Duration("took", took), slog.Any("error", err))
}

type leaseKey struct{}

// WithoutLease returns a context without the lease under which a job runs: for what a leased job does in
// another database, where the lease is none.
func WithoutLease(ctx context.Context) context.Context {
	return context.WithValue(ctx, leaseKey{}, nil)
}

// LeaseOf returns the lease under which a leased job runs, from the context that it was given.
func LeaseOf(ctx context.Context) (Lease, bool) {
	l, ok := ctx.Value(leaseKey{}).(Lease)
	return l, ok
}
