package db_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/id"
)

// rates keeps the results of one run, so that each can be shown beside its baseline.
var rates sync.Map

// callers runs b.N deeds on n goroutines and reports their rate, the CPU time that each took and
// the ratio to a baseline measured before.
func callers(b *testing.B, n int, key, baseline string, deed func()) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	cpu, began := cpuTime(), time.Now()
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				deed()
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	b.StopTimer()
	rate := float64(b.N) / took.Seconds()
	rates.Store(key, rate)
	b.ReportMetric(rate, "ops/s")
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
	if base, ok := rates.Load(baseline); ok {
		b.ReportMetric(rate/base.(float64), "x-baseline")
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const insertScratch = `INSERT INTO scratch (k, v, n) VALUES ($1, $2, $3)`

// BenchmarkWrite measures a durable insert of 400 bytes: grouped, with one transaction for each
// call (the same connection settings, the same statements), and against a bare write and fdatasync.
func BenchmarkWrite(b *testing.B) {
	ctx := context.Background()
	value := make([]byte, 370) // with its key and number some 400 bytes

	b.Run("fdatasync", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "bare"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		data := make([]byte, 400)
		callers(b, 1, "fdatasync", "", func() {
			if _, err := f.Write(data); err != nil {
				b.Error(err)
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Error(err)
			}
		})
	})
	insert := func(b *testing.B, d *db.DB) {
		err := d.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, insertScratch, id.New("row"), value, 1)
			return err
		})
		if err != nil {
			b.Error(err)
		}
	}
	counts := []int{1, 16, 64, 256}
	for _, n := range counts {
		b.Run(fmt.Sprintf("one-per-call/%d", n), func(b *testing.B) {
			d := dbtest.Open(b, db.SQLite)
			scratch(b, d)
			alone := db.Alone(d)
			callers(b, n, fmt.Sprint("one", n), "fdatasync", func() {
				err := alone(func(tx *db.Tx) error {
					_, err := tx.Exec(ctx, insertScratch, id.New("row"), value, 1)
					return err
				})
				if err != nil {
					b.Error(err)
				}
			})
		})
		b.Run(fmt.Sprintf("grouped/%d", n), func(b *testing.B) {
			d := dbtest.Open(b, db.SQLite)
			scratch(b, d)
			callers(b, n, fmt.Sprint("grouped", n), fmt.Sprint("one", n), func() { insert(b, d) })
		})
	}
	for _, n := range counts {
		b.Run(fmt.Sprintf("postgresql/%d", n), func(b *testing.B) {
			if os.Getenv(dbtest.Variable) == "" {
				b.Skip(dbtest.Variable + " is not set")
			}
			d := dbtest.Open(b, db.PostgreSQL)
			scratch(b, d)
			callers(b, n, fmt.Sprint("pg", n), "fdatasync", func() { insert(b, d) })
		})
	}
}

// BenchmarkRead measures a snapshot with one look-up by primary key.
func BenchmarkRead(b *testing.B) {
	ctx := context.Background()
	engines := []db.Engine{db.SQLite}
	if os.Getenv(dbtest.Variable) != "" {
		engines = append(engines, db.PostgreSQL)
	}
	for _, e := range engines {
		for _, n := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/%d", e, n), func(b *testing.B) {
				d := dbtest.Open(b, e)
				scratch(b, d)
				err := d.Update(ctx, func(tx *db.Tx) error {
					for i := range 10000 {
						if _, err := tx.Exec(ctx, insertScratch, fmt.Sprint("row", i), make([]byte, 370), i); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				var next atomic.Int64
				callers(b, n, fmt.Sprint(e, n), "", func() {
					err := d.View(ctx, func(tx *db.Tx) error {
						var v []byte
						return tx.QueryRow(ctx, `SELECT v FROM scratch WHERE k = $1`,
							fmt.Sprint("row", next.Add(7919)%10000)).Scan(&v)
					})
					if err != nil {
						b.Error(err)
					}
				})
			})
		}
	}
}
