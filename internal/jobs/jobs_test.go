package jobs_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
	"strongroom/internal/problem"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestLease(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clk := clock.NewManual(start)
		acquire := func(holder string, wantEpoch int64, wantHeld bool) {
			t.Helper()
			epoch, held, err := jobs.Acquire(ctx, d, clk, "sequencer", holder, time.Minute)
			if err != nil || epoch != wantEpoch || held != wantHeld {
				t.Fatalf("Acquire by %s: %d, %v, %v; want %d, %v", holder, epoch, held, err, wantEpoch, wantHeld)
			}
		}
		holds := func(holder string, epoch int64, want bool) {
			t.Helper()
			err := d.Update(ctx, func(tx *db.Tx) error {
				got, err := jobs.Holds(ctx, tx, "sequencer", holder, epoch)
				if got != want {
					t.Errorf("Holds(%s, %d) = %v, want %v", holder, epoch, got, want)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		acquire("a", 1, true)
		acquire("b", 0, false)
		clk.Advance(50 * time.Second)
		acquire("a", 1, true) // renewed
		clk.Advance(50 * time.Second)
		acquire("b", 0, false)
		holds("a", 1, true)
		clk.Advance(time.Minute)
		holds("a", 1, true) // late, but nobody took over
		acquire("b", 2, true)
		holds("a", 1, false) // fenced
		holds("b", 1, false)
		holds("b", 2, true)
		acquire("a", 0, false)
		if err := jobs.Release(ctx, d, "sequencer", "a", 1); err != nil { // not a's any more
			t.Fatal(err)
		}
		holds("b", 2, true)
		if err := jobs.Release(ctx, d, "sequencer", "b", 2); err != nil {
			t.Fatal(err)
		}
		holds("b", 2, false)
		acquire("b", 3, true) // also for the same holder: what it did under 2 is over
	})
}

// A takeover cannot slip in between the look at the lease and the commit of the deed.
func TestLeaseFencesConcurrently(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clk := clock.NewManual(start)
		var wg sync.WaitGroup
		for _, holder := range []string{"a", "b", "c", "d"} {
			wg.Go(func() {
				for range 20 {
					epoch, held, err := jobs.Acquire(ctx, d, clk, "deed", holder, time.Second)
					if err != nil {
						t.Error(err)
						return
					}
					if !held {
						clk.Advance(300 * time.Millisecond)
						continue
					}
					err = d.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
						ok, err := jobs.Holds(ctx, tx, "deed", holder, epoch)
						if err != nil || !ok {
							return err
						}
						clk.Advance(2 * time.Second) // late from here on
						var now int64
						if err := tx.QueryRow(ctx, `SELECT epoch FROM lease WHERE name = $1`, "deed").Scan(&now); err != nil {
							return err
						}
						if now != epoch {
							t.Errorf("the lease went from %d to %d under its holder", epoch, now)
						}
						return nil
					})
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func wait(t *testing.T, c <-chan string) string {
	t.Helper()
	select {
	case s := <-c:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("nothing happened for 30 s")
		return ""
	}
}

func TestRunner(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := jobs.New(d, jobs.Options{})
		ran := make(chan string, 100)
		outcomes := []error{nil, errors.New("secret text"), problem.New(problem.Unavailable, "sms-unavailable", "later"), nil}
		n := 0
		r.Add(jobs.Job{Name: "tidy", Leased: true, Run: func(ctx context.Context) error {
			l, ok := jobs.LeaseOf(ctx)
			if !ok || l.Holder != r.Holder() || l.Name != "tidy" {
				t.Errorf("lease %+v, %v", l, ok)
			}
			defer func() { n++; ran <- "tidy" }()
			if n == 3 {
				panic("at the disco")
			}
			return outcomes[n]
		}})
		r.Add(jobs.Job{Name: "often", Every: time.Millisecond, Quiet: true, Run: func(context.Context) error {
			select {
			case ran <- "often":
			default:
			}
			return nil
		}})
		r.Start(ctx)
		for range 4 {
			r.Wake("tidy")
			for wait(t, ran) != "tidy" {
			}
		}
		r.Wake("nobody")
		stop, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if err := r.Stop(stop); err != nil {
			t.Fatal(err)
		}
		runs, err := jobs.History(ctx, d, "tidy", 10)
		if err != nil {
			t.Fatal(err)
		}
		want := []struct{ outcome, detail string }{
			{jobs.Panicked, ""}, {jobs.Failed, "sms-unavailable"}, {jobs.Failed, ""}, {jobs.OK, ""},
		}
		if len(runs) != len(want) {
			t.Fatalf("%d runs in the history, want %d: %+v", len(runs), len(want), runs)
		}
		for i, w := range want {
			if runs[i].Outcome != w.outcome || runs[i].Detail != w.detail || runs[i].Ended.IsZero() {
				t.Errorf("run %d: %+v, want %+v", i, runs[i], w)
			}
		}
		if quiet, err := jobs.History(ctx, d, "often", 10); err != nil || len(quiet) != 0 {
			t.Errorf("a quiet job left %d runs (%v)", len(quiet), err)
		}
		// Given back: another replica need not wait for the lease to expire.
		if _, held, err := jobs.Acquire(ctx, d, clock.System, "tidy", "other", time.Minute); err != nil || !held {
			t.Errorf("the lease was not given back: %v", err)
		}
	})
}

// Wakes that come while the job runs lead to one more run, however many they are.
func TestWakeIsCoalesced(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	r := jobs.New(d, jobs.Options{})
	entered, leave := make(chan string), make(chan struct{})
	r.Add(jobs.Job{Name: "j", Quiet: true, Run: func(ctx context.Context) error {
		select {
		case entered <- "":
		case <-ctx.Done():
			return nil
		}
		<-leave
		return nil
	}})
	r.Start(context.Background())
	r.Wake("j")
	wait(t, entered)
	for range 10 {
		r.Wake("j")
	}
	leave <- struct{}{}
	wait(t, entered)
	close(leave)
	// Had there been an eleventh run, it would be waiting to tell us; Stop lets it end and counts.
	if err := r.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestStopWaitsAndCancels(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	r := jobs.New(d, jobs.Options{})
	entered := make(chan string)
	ended := false
	r.Add(jobs.Job{Name: "long", Run: func(ctx context.Context) error {
		entered <- ""
		<-ctx.Done()
		ended = true
		return ctx.Err()
	}})
	r.Start(context.Background())
	r.Wake("long")
	wait(t, entered)
	if err := r.Stop(context.Background()); err != nil || !ended {
		t.Fatalf("Stop: %v, ended %v", err, ended)
	}
	runs, err := jobs.History(context.Background(), d, "long", 1)
	if err != nil || len(runs) != 1 || runs[0].Outcome != jobs.Stopped {
		t.Fatalf("%+v, %v", runs, err)
	}
}

// Of two replicas one does a leased job; when it stops, the other takes over, and neither does it
// before its time.
func TestTwoReplicas(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ran := make(chan string, 1000)
		replica := func(name string) *jobs.Runner {
			r := jobs.New(d, jobs.Options{Holder: name})
			r.Add(jobs.Job{Name: "shared", Every: 5 * time.Millisecond, Leased: true, Quiet: true,
				Run: func(ctx context.Context) error {
					l, _ := jobs.LeaseOf(ctx)
					return d.Update(ctx, func(tx *db.Tx) error {
						if ok, err := jobs.Holds(ctx, tx, l.Name, l.Holder, l.Epoch); err != nil || !ok {
							t.Errorf("%s ran without its lease (%v)", name, err)
						}
						tx.AfterCommit(func() { ran <- name })
						return nil
					})
				}})
			r.Start(ctx)
			return r
		}
		a := replica("a")
		if got := wait(t, ran); got != "a" {
			t.Fatalf("%s ran", got)
		}
		b := replica("b")
		for range 10 {
			if got := wait(t, ran); got != "a" {
				t.Fatalf("%s ran while a had the lease", got)
			}
		}
		if err := a.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		for wait(t, ran) != "b" {
		}
		if err := b.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

// A run that a dead process left behind is shown as lost when the next one begins, and a job that
// ran a moment ago is not run again because of a restart.
func TestHistoryAcrossRestarts(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		err := d.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `
				INSERT INTO job_run (id, name, holder, outcome, detail, started_at)
				VALUES ('jrn_1', 'nightly', 'gone', 'running', '', $1)`, clock.Micros(start))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan string, 10)
		clk := clock.NewManual(start.Add(time.Hour))
		r := jobs.New(d, jobs.Options{Clock: clk})
		r.Add(jobs.Job{Name: "nightly", Every: 24 * time.Hour, Leased: true, Run: func(context.Context) error {
			clk.Advance(3 * time.Second)
			ran <- "nightly"
			return nil
		}})
		r.Start(ctx)
		r.Wake("nightly")
		wait(t, ran)
		if err := r.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		runs, err := jobs.History(ctx, d, "nightly", 10)
		if err != nil || len(runs) != 2 {
			t.Fatalf("%+v, %v", runs, err)
		}
		if runs[1].Outcome != jobs.Lost || runs[0].Outcome != jobs.OK || runs[0].Estimate != 3*time.Second ||
			!runs[0].Next.Equal(start.Add(25*time.Hour)) {
			t.Errorf("%+v", runs)
		}
		if len(ran) != 0 {
			t.Error("the job ran before its time")
		}
	})
}

// A job whose lease is taken over while it runs is told to stop, and what it still tries is fenced.
func TestLostLeaseEndsTheRun(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := jobs.New(d, jobs.Options{})
		jobs.SetLeaseTime(r, 60*time.Millisecond)
		ended := make(chan string, 1)
		r.Add(jobs.Job{Name: "shared", Leased: true, Run: func(run context.Context) error {
			l, _ := jobs.LeaseOf(run)
			future := clock.NewManual(time.Now().Add(time.Hour)) // whose clock sees the lease expired
			if _, held, err := jobs.Acquire(ctx, d, future, l.Name, "thief", time.Hour); err != nil || !held {
				t.Errorf("takeover: %v %v", held, err)
			}
			<-run.Done()
			err := d.Update(ctx, func(tx *db.Tx) error {
				if ok, err := jobs.Holds(ctx, tx, l.Name, l.Holder, l.Epoch); err != nil || ok {
					t.Errorf("Holds: %v %v", ok, err)
				}
				return nil
			})
			ended <- "ended"
			return errors.Join(err, run.Err())
		}})
		r.Start(ctx)
		r.Wake("shared")
		wait(t, ended)
		if err := r.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		runs, err := jobs.History(ctx, d, "shared", 1)
		if err != nil || len(runs) != 1 || runs[0].Outcome != jobs.Stopped {
			t.Errorf("%+v, %v", runs, err)
		}
	})
}
