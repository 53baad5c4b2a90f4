package audit_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
)

// awaiter lets callers wait until their events are under a signed checkpoint: the transaction that takes
// an event out of the queue is the one that signs.
type awaiter struct {
	mu      sync.Mutex
	waiting map[string]chan struct{}
}

func (a *awaiter) wait(event string) {
	done := make(chan struct{})
	a.mu.Lock()
	a.waiting[event] = done
	a.mu.Unlock()
	<-done
}

func (a *awaiter) poll(b *testing.B, d *db.DB, every time.Duration, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(every):
		}
		a.mu.Lock()
		asked := make([]string, 0, len(a.waiting))
		for event := range a.waiting {
			asked = append(asked, event)
		}
		a.mu.Unlock()
		queue := make(map[string]bool)
		err := d.View(context.Background(), func(tx *db.Tx) error {
			rows, err := tx.Query(context.Background(), `SELECT event_id FROM event_pending`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var event string
				if err := rows.Scan(&event); err != nil {
					return err
				}
				queue[event] = true
			}
			return rows.Err()
		})
		if err != nil {
			b.Error(err)
			return
		}
		a.mu.Lock()
		for _, event := range asked {
			if !queue[event] {
				close(a.waiting[event])
				delete(a.waiting, event)
			}
		}
		a.mu.Unlock()
	}
}

// BenchmarkPromise measures events whose callers wait for the same promises as those of bench/tessera,
// with the sequencer beside: "durable" is committed, with its place and its checkpoint to follow;
// "published" is under a signed checkpoint.
func BenchmarkPromise(b *testing.B) {
	for _, engine := range engines() {
		for _, promise := range []string{"durable", "published"} {
			for _, n := range []int{1, 16, 64, 256} {
				b.Run(fmt.Sprintf("%s/%s/%d", engine, promise, n), func(b *testing.B) {
					d := dbtest.Open(b, engine)
					runner := jobs.New(d, jobs.Options{})
					h := newHouse(b, d, audit.Options{Wake: func() { runner.Wake(audit.JobName) }})
					runner.Add(h.trail.Job())
					runner.Start(b.Context())
					a := &awaiter{waiting: make(map[string]chan struct{})}
					stop := make(chan struct{})
					if promise == "published" {
						go a.poll(b, d, 10*time.Millisecond, stop)
					}
					var mu sync.Mutex
					var took []time.Duration
					callers(b, n, func() {
						e := audit.Event{ID: audit.NewID(), Action: "vault.record.read", Resource: "record profile/main", Customer: h.ada}
						at := time.Now()
						if err := h.trail.Do(context.Background(), h.by, e, nothing); err != nil {
							b.Error(err)
							return
						}
						if promise == "published" {
							a.wait(e.ID)
						}
						mu.Lock()
						took = append(took, time.Since(at))
						mu.Unlock()
					}, func() {})
					close(stop)
					if err := runner.Stop(context.Background()); err != nil {
						b.Error(err)
					}
					slices.Sort(took)
					b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
					b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
				})
			}
		}
	}
}
