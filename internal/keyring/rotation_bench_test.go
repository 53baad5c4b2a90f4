package keyring

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/seal"
)

// benchKeys is how many data keys are wrapped anew.
const benchKeys = 100_000

// fill makes data keys fast; they belong to customers of whom nothing else is known.
func (s setup) fill(b *testing.B, n int) []customer.ID {
	b.Helper()
	ids := make([]customer.ID, n)
	kek := s.keys.Load().kek
	for begin := 0; begin < n; begin += 5000 {
		update(b, s.db, func(tx *db.Tx) error {
			for i := begin; i < min(begin+5000, n); i++ {
				ids[i] = customer.NewID()
				row := dataRow{version: 1, kekVersion: kek.Version(), state: active, wrapped: kek.Seal(dataPlace(ids[i], 1), newMaterial()), madeAt: 1}
				if _, err := insertDataKey(b.Context(), tx, ids[i], row); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return ids
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRewrap wraps 100,000 data keys anew: as fast as it can, beside opening and sealing alone;
// and at the default rate while a reader opens keys, whose p99 stands beside the one without a rotation.
func BenchmarkRewrap(b *testing.B) {
	b.Run("baseline=crypto", func(b *testing.B) {
		k := openRotating(b, dbtest.Open(b, db.SQLite), testRoot(b))
		kek := k.keys.Load().kek
		wrapped := kek.Seal(dataPlace("cus_x", 1), newMaterial())
		for b.Loop() {
			material, err := kek.Open(dataPlace("cus_x", 1), wrapped)
			if err != nil {
				b.Fatal(err)
			}
			kek.Seal(dataPlace("cus_x", 1), material)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "keys/s")
	})
	for _, engine := range []db.Engine{db.SQLite, db.PostgreSQL} {
		b.Run(fmt.Sprintf("database=%s/unpaced", engine), func(b *testing.B) {
			k := openRotating(b, dbtest.Open(b, engine), testRoot(b))
			k.fill(b, benchKeys)
			wake, _ := k.work(b)
			for b.Loop() {
				began := cpuTime(b)
				if _, err := k.RotateKEK(b.Context(), by); err != nil {
					b.Fatal(err)
				}
				done := k.finish(b, wake)
				b.ReportMetric(done.Rate, "keys/s")
				b.ReportMetric(float64(done.Done)/(cpuTime(b)-began).Seconds(), "keys/s/core")
			}
		})
		b.Run(fmt.Sprintf("database=%s/paced", engine), func(b *testing.B) {
			k := openWith(b, Options{DB: dbtest.Open(b, engine), Root: testRoot(b), CacheSize: 1, Publish: time.Millisecond})
			ids := k.fill(b, benchKeys)
			wake, _ := k.work(b)
			for b.Loop() {
				quiet := k.read(b, ids, 3*time.Second, nil)
				k.clock.Advance(time.Second)
				if _, err := k.RotateKEK(b.Context(), by); err != nil {
					b.Fatal(err)
				}
				k.clock.Advance(time.Second)
				over, end := context.WithCancel(b.Context())
				var loaded []time.Duration
				var reading sync.WaitGroup
				reading.Go(func() { loaded = k.read(b, ids, time.Minute, over.Done()) })
				began := time.Now()
				done := k.finish(b, wake)
				end()
				reading.Wait()
				b.ReportMetric(float64(done.Done)/time.Since(began).Seconds(), "keys/s")
				b.ReportMetric(float64(p99(quiet).Microseconds()), "quiet-p99-µs")
				b.ReportMetric(float64(p99(loaded).Microseconds()), "rotating-p99-µs")
			}
		})
	}
}

// read opens keys from the database one after the other, at a steady pace, and returns how long each took.
func (s setup) read(b *testing.B, ids []customer.ID, long time.Duration, stop <-chan struct{}) (took []time.Duration) {
	b.Helper()
	for i, end := 0, time.Now().Add(long); time.Now().Before(end); i += 7919 {
		select {
		case <-stop:
			return took
		default:
		}
		began := time.Now()
		err := s.db.View(b.Context(), func(tx *db.Tx) error {
			var ring *seal.Ring
			ring, err := s.Customer(b.Context(), tx, ids[i%len(ids)])
			if err == nil {
				ring.Seal(place, nil)
			}
			return err
		})
		if err != nil {
			b.Error(err)
			return took
		}
		took = append(took, time.Since(began))
		time.Sleep(time.Millisecond)
	}
	return took
}

func p99(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)*99/100]
}
