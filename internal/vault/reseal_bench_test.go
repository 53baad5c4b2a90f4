package vault_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/vault"
)

// BenchmarkReseal seals 100,000 records of 2,000 customers anew: as fast as it can, beside opening and
// sealing alone; and at the default rate beside a reader, whose p99 stands beside the one when all is quiet.
func BenchmarkReseal(b *testing.B) {
	const people, each = 2_000, 50
	for _, engine := range benchEngines() {
		b.Run(engine.String(), func(b *testing.B) {
			h := newHouse(b, dbtest.Open(b, engine), nil)
			p := h.server(b, keyring.Options{Rate: 5_000, Clock: clock.System})
			wide := append(vault.Defaults(), vault.Collection{Name: "bulk", Purposes: []string{"support"}, Limit: each, Fields: vault.Defaults()[0].Fields})
			p.vault = p.another(b, wide)
			p.keys.Connect(p.trail, p.vault, p.book)
			var all []actor.Actor
			for range people {
				all = append(all, p.person(b))
			}
			var filling sync.WaitGroup
			callers := 64
			if engine == db.PostgreSQL {
				callers = 4 // more would be in each other's way
			}
			for worker := range callers {
				filling.Go(func() {
					for i := worker; i < people; i += callers {
						for n := range each {
							p.put(b, all[i], vault.Ref{Collection: "bulk", Key: fmt.Sprint(n)}, benchRecord, vault.Condition{})
						}
					}
				})
			}
			filling.Wait()
			renew := func() {
				for _, by := range all {
					if _, err := p.keys.RotateCustomer(b.Context(), operator, by.Customer()); err != nil {
						b.Fatal(err)
					}
				}
			}
			// How long nobody but the cipher would take.
			var ring *seal.Ring
			if err := p.db.View(b.Context(), func(tx *db.Tx) (err error) {
				ring, err = p.keys.Customer(b.Context(), tx, all[0].Customer())
				return err
			}); err != nil {
				b.Fatal(err)
			}
			where := seal.Place{Room: "vault", Table: "record", Customer: string(all[0].Customer()), Record: "bulk/1#1@1767323045678901", Version: 1}
			sealed := ring.Seal(where, []byte(benchRecord))
			began := time.Now()
			for range people * each {
				plain, err := ring.Open(where, sealed)
				if err != nil {
					b.Fatal(err)
				}
				ring.Seal(where, plain)
			}
			cipher := people * each / time.Since(began).Seconds()

			for b.Loop() {
				renew()
				cpu, began := processTime(), time.Now()
				values := 0
				for {
					did, err := p.keys.Reseal(b.Context(), 250, false)
					if err != nil {
						b.Fatal(err)
					}
					if did.Customers == 0 {
						break
					}
					values += did.Values
				}
				if values != people*each {
					b.Fatalf("%d values were sealed anew", values)
				}
				b.ReportMetric(cipher, "cipher-values/s")
				b.ReportMetric(float64(values)/time.Since(began).Seconds(), "values/s")
				b.ReportMetric(float64((processTime()-cpu).Microseconds())/float64(values), "cpu-µs/value")

				quiet := reads(b, p, all, 3*time.Second, nil)
				renew()
				wake, stop := p.run(b)
				over, end := context.WithCancel(b.Context())
				var beside []time.Duration
				var reading sync.WaitGroup
				reading.Go(func() { beside = reads(b, p, all, 8*time.Second, over.Done()) })
				wake()
				reading.Wait()
				end()
				stop()
				b.ReportMetric(float64(percentile(quiet).Microseconds()), "quiet-p99-µs")
				b.ReportMetric(float64(percentile(beside).Microseconds()), "resealing-p99-µs")
				for left := true; left; { // for the next round
					did, err := p.keys.Reseal(b.Context(), 250, false)
					if err != nil {
						b.Fatal(err)
					}
					left = did.Customers > 0
				}
			}
		})
	}
}

// reads reads records one after the other, at a steady pace, and returns how long each took.
func reads(b *testing.B, p *process, all []actor.Actor, long time.Duration, stop <-chan struct{}) (took []time.Duration) {
	b.Helper()
	for i, end := 0, time.Now().Add(long); time.Now().Before(end); i += 7919 {
		select {
		case <-stop:
			return took
		default:
		}
		by := all[i%len(all)]
		began := time.Now()
		if _, err := p.vault.Get(b.Context(), by, by.Customer(), vault.Ref{Collection: "bulk", Key: "7"}, vault.Reveal{}); err != nil {
			b.Error(err)
			return took
		}
		took = append(took, time.Since(began))
		time.Sleep(time.Millisecond)
	}
	return took
}

func percentile(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)*99/100]
}
