package audit_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
)

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// callers runs b.N deeds on n goroutines and reports their rate and the CPU time of each; finish is
// part of both.
func callers(b *testing.B, n int, deed, finish func()) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var group sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	cpu, began := cpuTime(), time.Now()
	for range n {
		group.Go(func() {
			for left.Add(-1) >= 0 {
				deed()
			}
		})
	}
	group.Wait()
	took := time.Since(began)
	finish()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/took.Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
}

func engines() []db.Engine {
	if os.Getenv(dbtest.Variable) == "" {
		return []db.Engine{db.SQLite}
	}
	return []db.Engine{db.SQLite, db.PostgreSQL}
}

// BenchmarkRecord measures one durable event in a transaction of its own: "alone" without the
// sequencer, "sequenced" with it running beside and all events under a signed checkpoint at the end,
// "row" a transaction that writes one short row and no event. (On PostgreSQL the CPU time is
// that of the client only.)
func BenchmarkRecord(b *testing.B) {
	ctx := context.Background()
	for _, engine := range engines() {
		for _, n := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/row/%d", engine, n), func(b *testing.B) {
				h := newHouse(b, dbtest.Open(b, engine), audit.Options{})
				var next atomic.Int64
				callers(b, n, func() {
					err := h.db.Update(ctx, func(tx *db.Tx) error {
						_, err := tx.Exec(ctx, `INSERT INTO event_pending (event_id) VALUES ($1)`, fmt.Sprintf("%030d", next.Add(1)))
						return err
					})
					if err != nil {
						b.Error(err)
					}
				}, func() {})
			})
			for _, sequenced := range []bool{false, true} {
				name := "alone"
				if sequenced {
					name = "sequenced"
				}
				b.Run(fmt.Sprintf("%s/%s/%d", engine, name, n), func(b *testing.B) {
					d := dbtest.Open(b, engine)
					runner := jobs.New(d, jobs.Options{})
					h := newHouse(b, d, audit.Options{Wake: func() { runner.Wake(audit.JobName) }})
					if sequenced {
						runner.Add(h.trail.Job())
						runner.Start(ctx)
					}
					e := audit.Event{Action: "vault.record.read", Resource: "record profile/main", Customer: h.ada}
					callers(b, n, func() {
						if err := h.trail.Do(ctx, h.by, e, nothing); err != nil {
							b.Error(err)
						}
					}, func() {
						if sequenced {
							if err := runner.Stop(ctx); err != nil {
								b.Error(err)
							}
							h.sequence()
						}
					})
				})
			}
		}
	}
}

// BenchmarkVerify measures the verification of a log; one operation is one event.
func BenchmarkVerify(b *testing.B) {
	const events = 30_000
	for _, engine := range engines() {
		b.Run(engine.String(), func(b *testing.B) {
			h := newHouse(b, dbtest.Open(b, engine), audit.Options{})
			h.fill(events)
			h.sequence()
			b.ResetTimer()
			cpu, began, done := cpuTime(), time.Now(), 0
			for done < b.N {
				h.holds()
				done += events
			}
			b.StopTimer()
			b.ReportMetric(float64(done)/time.Since(began).Seconds(), "events/s")
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(done)/1000, "cpu-µs/event")
		})
	}
}

// BenchmarkSequence measures the sequencer alone; one operation is one event.
func BenchmarkSequence(b *testing.B) {
	for _, engine := range engines() {
		b.Run(engine.String(), func(b *testing.B) {
			h := newHouse(b, dbtest.Open(b, engine), audit.Options{})
			h.fill(b.N)
			b.ResetTimer()
			cpu := cpuTime()
			h.sequence()
			b.StopTimer()
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
		})
	}
}
