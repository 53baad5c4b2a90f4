package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"strongroom/client"
)

// tally counts what a loop has done.
type tally struct {
	mu        sync.Mutex
	ok        int
	failed    int
	requests  int
	durations []time.Duration // since the last line
	all       reservoir
}

// reservoir keeps a bounded, evenly thinned part of all durations.
type reservoir struct {
	kept  []time.Duration
	every int // one in so many is kept
	count int
}

func (r *reservoir) add(d time.Duration) {
	r.every = max(r.every, 1)
	if r.count++; r.count%r.every != 0 {
		return
	}
	if r.kept = append(r.kept, d); len(r.kept) == 100_000 {
		for i := range len(r.kept) / 2 {
			r.kept[i] = r.kept[2*i]
		}
		r.kept = r.kept[:len(r.kept)/2]
		r.every *= 2
	}
}

func (t *tally) observe(x client.Exchange) {
	if x.Status == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.requests++
	t.durations = append(t.durations, x.Duration)
	t.all.add(x.Duration)
}

func (t *tally) run(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.ok++
	} else {
		t.failed++
	}
}

// summary is one line of a loop.
type summary struct {
	Seconds  float64 `json:"seconds"` // since the start
	Runs     int     `json:"runs"`
	OK       int     `json:"ok"`
	Failed   int     `json:"failed"`
	Requests int     `json:"requests"`
	Rate     float64 `json:"requests_per_second"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
}

func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}

// summarise describes an interval, or the whole loop.
func (t *tally) summarise(since, began time.Time, whole bool) summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	sorted, requests := t.durations, len(t.durations)
	if whole {
		sorted, requests, since = slices.Clone(t.all.kept), t.requests, began
	}
	slices.Sort(sorted)
	s := summary{
		Seconds: time.Since(began).Seconds(), Runs: t.ok + t.failed, OK: t.ok, Failed: t.failed, Requests: t.requests,
		Rate: float64(requests) / max(time.Since(since).Seconds(), 0.001),
		P50:  millis(percentile(sorted, 0.50)), P99: millis(percentile(sorted, 0.99)),
	}
	t.durations = t.durations[:0]
	return s
}

func (s summary) String() string {
	return fmt.Sprintf("%7.1f s  runs %-6d ok %-6d failed %-4d %7.1f requests/s  p50 %7.1f ms  p99 %7.1f ms",
		s.Seconds, s.Runs, s.OK, s.Failed, s.Rate, s.P50, s.P99)
}

// loop plays journeys until it is told to stop. Customers who have finished come back when there
// are no new numbers left.
func loop(ctx context.Context, w *world, o Options) error {
	if o.Every <= 0 {
		o.Every = 10 * time.Second
	}
	o.Parallel = max(o.Parallel, 1)
	began := time.Now()
	lines := &tally{}
	w.observe = lines.observe
	p := newPrinter(o.Out, o.JSON)
	var printing sync.Mutex
	say := func(s summary) {
		printing.Lock()
		defer printing.Unlock()
		if o.JSON {
			p.line(s)
		} else {
			fmt.Fprintln(p.out, s)
		}
	}
	p.begin(w.url)

	more, stop := context.WithCancel(ctx) // no new journeys once it ends; those begun are finished
	defer stop()
	if o.For > 0 {
		defer time.AfterFunc(o.For, stop).Stop()
	}
	regulars := &regulars{world: w}
	var begun atomic.Int64
	var lost atomic.Pointer[error] // why there can be no more journeys at all
	var workers sync.WaitGroup
	for range o.Parallel {
		workers.Go(func() {
			for more.Err() == nil && (o.Runs == 0 || begun.Add(1) <= int64(o.Runs)) {
				j, err := regulars.next(more)
				if err == nil {
					_, err = j.run(ctx, newPrinter(io.Discard, true))
				} else if more.Err() != nil {
					return
				}
				if ctx.Err() != nil {
					return // cut off by hand: neither a success nor a failure
				}
				if errors.Is(err, errNoNumbers) {
					begun.Add(-1)
					if !regulars.takeOver(j) {
						lost.CompareAndSwap(nil, &err)
						stop()
						return
					}
					continue
				}
				lines.run(err)
				regulars.back(j, err == nil)
				if err == nil {
					continue
				}
				printing.Lock()
				if o.JSON {
					p.line(map[string]any{"ok": false, "error": err.Error()})
				} else {
					fmt.Fprintf(p.out, "%s %v\n", p.paint(red, "✗"), err)
				}
				printing.Unlock()
			}
		})
	}
	finished := make(chan struct{})
	go func() { workers.Wait(); close(finished) }()
	tick := time.NewTicker(o.Every)
	defer tick.Stop()
	since := began
	for running := true; running; {
		select {
		case <-tick.C:
			say(lines.summarise(since, began, false))
			since = time.Now()
		case <-finished:
			running = false
		}
	}
	whole := lines.summarise(since, began, true)
	if !o.JSON {
		fmt.Fprintln(p.out, "in all:")
	}
	say(whole)
	if err := lost.Load(); err != nil {
		return *err
	}
	if o.VerifyAudit != nil && ctx.Err() == nil {
		events, _, err := o.VerifyAudit(ctx)
		if err != nil {
			return fmt.Errorf("the audit trail after %d runs: %w", whole.Runs, err)
		}
		if !o.JSON {
			fmt.Fprintf(p.out, "%s the audit trail holds: %d events\n", p.paint(green, "✓"), events)
		}
	}
	if whole.Failed > 0 {
		return fmt.Errorf("%d of %d runs did not come out as they should", whole.Failed, whole.Runs)
	}
	return nil
}

// regulars hands out customers: new ones while there are numbers, then those who were here before,
// the one who was away longest first.
type regulars struct {
	world *world

	mu   sync.Mutex
	idle []*journey
	away int  // handed out and not back yet
	only bool // no numbers are left
}

// next returns a customer. When all are away it waits for one.
func (r *regulars) next(ctx context.Context) (*journey, error) {
	for {
		j, err := r.take()
		if j != nil || err != nil {
			return j, err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (r *regulars) take() (*journey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.only:
		j, err := r.world.newcomer()
		if err == nil {
			r.away++
		}
		return j, err
	case len(r.idle) > 0:
		j := r.idle[0]
		r.idle = r.idle[1:]
		r.away++
		return j, nil
	case r.away > 0:
		return nil, nil
	}
	return nil, errNoNumbers
}

// back takes a customer who has finished a journey; one whose journey failed does not come again.
func (r *regulars) back(j *journey, again bool) {
	if j == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away--
	j.leave()
	if again {
		r.idle = append(r.idle, j)
	}
}

// takeOver says that the newcomer j, if any, found no number: from here on customers come back. It
// reports whether there are any.
func (r *regulars) takeOver(j *journey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.only = true
	if j != nil {
		r.away--
	}
	return len(r.idle)+r.away > 0
}
