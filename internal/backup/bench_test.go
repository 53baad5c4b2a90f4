package backup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// benchRows is how many rows the database holds that is measured, STRONGROOM_TEST_ROWS if that is set; each has 400 bytes, half of which do not
// compress, like records that are sealed.
var benchRows = func() int {
	if n, err := strconv.Atoi(os.Getenv("STRONGROOM_TEST_ROWS")); err == nil {
		return n
	}
	return 60_000
}()

func fillBench(b *testing.B, d *db.DB) {
	b.Helper()
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	random := rand.NewChaCha8([32]byte{1})
	body := make([]byte, 400)
	for from := 0; from < benchRows; from += 5000 {
		err := d.Update(b.Context(), func(tx *db.Tx) error {
			for i := from; i < from+5000; i++ {
				for j := range body[:270] {
					body[j] = letters[random.Uint64()%64]
				}
				copy(body[270:], fmt.Sprintf("%0130d", i))
				_, err := tx.Exec(b.Context(), `
					INSERT INTO finding (kind, subject, detail, opened_at, seen_at, times) VALUES ($1, $2, $3, $4, $4, 1)`,
					"bench.row", fmt.Sprintf("%08d", i), string(body), i)
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// fresh gives the house new repositories, one for each part, so that as much is written as pg_dump writes.
func (h *house) fresh(b *testing.B) {
	h.base = b.TempDir()
	h.with(b, func(o *Options) { o.Segment = defaultSegment }, h.folder("near", Data), h.folder("near-keys", Keys))
}

// tool times a run of a tool of PostgreSQL.
func tool(b *testing.B, name string, args ...string) time.Duration {
	b.Helper()
	began := time.Now()
	if out, err := exec.CommandContext(b.Context(), name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", name, err, out)
	}
	return time.Since(began)
}

// peak samples how much of the heap is in use, until it is stopped and says the most.
func peak() (stop func() (bytes uint64)) {
	runtime.GC()
	done, most := make(chan struct{}), make(chan uint64)
	go func() {
		var top uint64
		var m runtime.MemStats
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for {
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapInuse)
			select {
			case <-ticker.C:
			case <-done:
				most <- top
				return
			}
		}
	}()
	return func() uint64 { close(done); return <-most }
}

// BenchmarkSnapshot takes a whole snapshot, and then one after a change of 1% of the rows, all over the
// table. On PostgreSQL the same data go through pg_dump -Fc in the same run.
func BenchmarkSnapshot(b *testing.B) {
	for _, e := range []db.Engine{db.SQLite, db.PostgreSQL} {
		b.Run(e.String(), func(b *testing.B) {
			url, d := benchDB(b, e)
			fillBench(b, d)
			h := newHouse(b, d)
			for b.Loop() {
				h.fresh(b)
				stop := peak()
				whole, err := h.backup.Run(b.Context(), operator)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(stop())/(1<<20), "peak-MB")
				err = d.Update(b.Context(), func(tx *db.Tx) error {
					for i := range benchRows / 100 {
						if _, err := tx.Exec(b.Context(), `UPDATE finding SET times = times + 1 WHERE kind = $1 AND subject = $2`, "bench.row", fmt.Sprintf("%08d", i*100)); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				change, err := h.backup.Run(b.Context(), operator)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(whole.Bytes)/1e6/whole.Took.Seconds(), "MB/s")
				b.ReportMetric(float64(whole.Rows)/whole.Took.Seconds(), "rows/s")
				b.ReportMetric(float64(change.NewBytes)/float64(whole.NewBytes)*100, "%-stored-for-1%")
				b.ReportMetric(change.Took.Seconds()/whole.Took.Seconds(), "increment/whole")
				if e == db.PostgreSQL {
					dump := tool(b, "pg_dump", "-Fc", "-f", filepath.Join(b.TempDir(), "dump"), url)
					b.ReportMetric(whole.Took.Seconds()/dump.Seconds(), "x-pg_dump")
				}
			}
		})
	}
}

func benchDB(b *testing.B, e db.Engine) (url string, d *db.DB) {
	o := dbtest.SQLite(b)
	if e == db.PostgreSQL {
		url = dbtest.PostgresURL(b)
		o = db.Options{URL: url, Environment: "dev", Create: true}
	}
	d, err := db.Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := d.Close(); err != nil {
			b.Error(err)
		}
	})
	return url, d
}

// BenchmarkRestore restores a snapshot, every row held against the manifest; on PostgreSQL beside
// pg_restore of the same data, which compares nothing.
func BenchmarkRestore(b *testing.B) {
	for _, e := range []db.Engine{db.SQLite, db.PostgreSQL} {
		b.Run(e.String(), func(b *testing.B) {
			url, d := benchDB(b, e)
			fillBench(b, d)
			h := newHouse(b, d)
			h.fresh(b)
			s, err := h.backup.Run(b.Context(), operator)
			if err != nil {
				b.Fatal(err)
			}
			var ours, theirs []time.Duration
			for b.Loop() {
				into := dbtest.SQLite(b)
				if e == db.PostgreSQL {
					into = db.Options{URL: dbtest.PostgresURL(b), Environment: "dev", Create: true}
				}
				stop := peak()
				began := time.Now()
				if err := restore(b.Context(), into, h.sources(b, s.ID), nil); err != nil {
					b.Fatal(err)
				}
				ours = append(ours, time.Since(began))
				b.ReportMetric(float64(stop())/(1<<20), "peak-MB")
				if e == db.PostgreSQL {
					dump := filepath.Join(b.TempDir(), "dump")
					tool(b, "pg_dump", "-Fc", "-f", dump, url)
					theirs = append(theirs, tool(b, "pg_restore", "--no-owner", "-d", dbtest.PostgresURL(b), dump))
				}
			}
			took := median(ours)
			b.ReportMetric(float64(s.Bytes)/1e6/took.Seconds(), "MB/s")
			b.ReportMetric(float64(s.Rows)/took.Seconds(), "rows/s")
			if e == db.PostgreSQL {
				b.ReportMetric(took.Seconds()/median(theirs).Seconds(), "x-pg_restore")
				b.ReportMetric(slices.Min(ours).Seconds()/slices.Min(theirs).Seconds(), "x-pg_restore-best")
			}
		})
	}
}

// median is what stays the same when somebody else uses the machine for a while.
func median(all []time.Duration) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// BenchmarkWritesDuringSnapshot writes while nothing else happens, and while snapshots are taken.
func BenchmarkWritesDuringSnapshot(b *testing.B) {
	for _, e := range []db.Engine{db.SQLite, db.PostgreSQL} {
		b.Run(e.String(), func(b *testing.B) {
			_, d := benchDB(b, e)
			fillBench(b, d)
			n := 0
			write := func() time.Duration {
				n++
				began := time.Now()
				err := d.Update(b.Context(), func(tx *db.Tx) error {
					_, err := tx.Exec(b.Context(), `UPDATE finding SET times = times + 1 WHERE kind = $1 AND subject = $2`, "bench.row", fmt.Sprintf("%08d", n*97%benchRows))
					return err
				})
				if err != nil {
					b.Error(err)
				}
				return time.Since(began)
			}
			p99 := func(all []time.Duration) float64 {
				slices.Sort(all)
				return float64(all[len(all)*99/100].Microseconds())
			}
			h := newHouse(b, d)
			var quiet, busy []time.Duration
			for b.Loop() {
				h.fresh(b)
				ctx, done := context.WithCancel(b.Context())
				var run sync.WaitGroup
				began := time.Now()
				run.Go(func() {
					defer done()
					if _, err := h.backup.Run(b.Context(), operator); err != nil {
						b.Error(err)
					}
				})
				for ctx.Err() == nil {
					busy = append(busy, write())
				}
				run.Wait()
				for took := time.Since(began); took > 0; { // for as long as that took
					one := write()
					quiet, took = append(quiet, one), took-one
				}
			}
			b.ReportMetric(p99(quiet), "µs-p99-quiet")
			b.ReportMetric(p99(busy), "µs-p99-during")
			b.ReportMetric(p99(busy)/p99(quiet), "x-quiet")
			b.ReportMetric(float64(len(busy))/float64(len(quiet)), "x-rate")
		})
	}
}
