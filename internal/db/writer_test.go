package db_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"pgregory.net/rapid"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

func isUnavailable(err error) bool {
	p := problem.Of(err)
	return p != nil && p.Kind() == problem.Unavailable && p.Slug() == "database-unavailable" &&
		p.GetHeaders().Get("Retry-After") != ""
}

func insert(tx *db.Tx, k string) error {
	_, err := tx.Exec(context.Background(), insertScratch, k, []byte("v"), 1)
	return err
}

func keys(t testing.TB, d *db.DB) (out []string) {
	t.Helper()
	ctx := context.Background()
	err := d.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT k FROM scratch ORDER BY k`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var k string
			if err := rows.Scan(&k); err != nil {
				return err
			}
			out = append(out, k)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// held keeps the writer busy with a transaction that inserts "held", so that what is queued
// meanwhile runs in the same batch. release lets it go on, and wait waits for all.
type held struct {
	t    testing.TB
	d    *db.DB
	gate chan struct{}
	wg   sync.WaitGroup
}

func hold(t testing.TB, d *db.DB) *held {
	h := &held{t: t, d: d, gate: make(chan struct{})}
	began := make(chan struct{}, 10)
	h.wg.Go(func() {
		err := d.Update(context.Background(), func(tx *db.Tx) error {
			began <- struct{}{}
			<-h.gate
			return insert(tx, "held")
		})
		if err != nil {
			t.Error("held:", err)
		}
	})
	<-began
	return h
}

// queue starts an Update and returns when it is in the queue.
func (h *held) queue(ctx context.Context, fn func(*db.Tx) error, check func(error)) {
	n := db.Queued(h.d)
	h.wg.Go(func() { check(h.d.Update(ctx, fn)) })
	for db.Queued(h.d) == n {
		runtime.Gosched()
	}
}

func (h *held) release() {
	close(h.gate)
	h.wg.Wait()
}

// One that fails, one that panics and one that ends its goroutine take nothing of their neighbours
// with them.
func TestNeighboursInABatch(t *testing.T) {
	ctx := context.Background()
	d := dbtest.Open(t, db.SQLite)
	scratch(t, d)
	h := hold(t, d)
	ok := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	boom := errors.New("boom")
	h.queue(ctx, func(tx *db.Tx) error { return insert(tx, "a") }, ok)
	h.queue(ctx, func(tx *db.Tx) error { return errors.Join(insert(tx, "bad1"), boom) }, func(err error) {
		if !errors.Is(err, boom) {
			t.Error(err)
		}
	})
	h.queue(ctx, func(tx *db.Tx) error { return insert(tx, "b") }, ok)
	n := db.Queued(d)
	h.wg.Go(func() {
		defer func() {
			if p := recover(); p != "panic in fn" {
				t.Errorf("recovered %v", p)
			}
		}()
		_ = d.Update(ctx, func(tx *db.Tx) error {
			_ = insert(tx, "bad2")
			panic("panic in fn")
		})
		t.Error("Update returned")
	})
	h.wg.Go(func() {
		_ = d.Update(ctx, func(tx *db.Tx) error {
			_ = insert(tx, "bad3")
			runtime.Goexit()
			return nil
		})
		t.Error("Update returned")
	})
	for db.Queued(d) < n+2 {
		runtime.Gosched()
	}
	h.queue(ctx, func(tx *db.Tx) error { return insert(tx, "c") }, ok)
	h.queue(ctx, func(tx *db.Tx) error { return insert(tx, "a") }, func(err error) {
		if !db.IsUnique(err) {
			t.Error(err)
		}
	})
	h.release()
	if got := keys(t, d); !slices.Equal(got, []string{"a", "b", "c", "held"}) {
		t.Errorf("got %v", got)
	}
}

// The first of a batch runs without a savepoint; its failure is as clean.
func TestFirstOfABatchFails(t *testing.T) {
	ctx := context.Background()
	d := dbtest.Open(t, db.SQLite)
	scratch(t, d)
	for range 2 {
		if err := d.Update(ctx, func(tx *db.Tx) error { return errors.Join(insert(tx, "x"), errors.New("no")) }); err == nil {
			t.Error("no error")
		}
		func() {
			defer func() { _ = recover() }()
			_ = d.Update(ctx, func(tx *db.Tx) error {
				_ = insert(tx, "x")
				panic("no")
			})
		}()
	}
	update(t, d, insertScratch, "y", nil, 0)
	if got := keys(t, d); !slices.Equal(got, []string{"y"}) {
		t.Errorf("got %v", got)
	}
}

// A context that ends does not interrupt a transaction that has begun, and keeps one that has not
// from ever beginning.
func TestContexts(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	scratch(t, d)
	h := hold(t, d)
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan struct{})
	h.queue(ctx, func(tx *db.Tx) error { return insert(tx, "never") }, func(err error) {
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		close(left)
	})
	cancel()
	<-left // while the writer is still busy: certainly not run

	running, cancelRunning := context.WithCancel(context.Background())
	h.queue(running, func(tx *db.Tx) error {
		cancelRunning()
		return insert(tx, "awaited")
	}, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	h.release()
	if err := d.Update(ctx, func(tx *db.Tx) error { return insert(tx, "never") }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := keys(t, d); !slices.Equal(got, []string{"awaited", "held"}) {
		t.Errorf("got %v", got)
	}
	if err := d.View(ctx, func(tx *db.Tx) error { return nil }); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The end of the context interrupts a long read, and the reader is good again afterwards.
func TestViewIsInterrupted(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for range 6 { // more than there are readers
			ctx, cancel := context.WithCancel(context.Background())
			err := d.View(ctx, func(tx *db.Tx) error {
				cancel()
				var n int64
				return tx.QueryRow(ctx, `
					WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100000000)
					SELECT count(*) FROM c`).Scan(&n)
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
		}
		if err := d.Ping(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// Rows that fn forgot, a row it never scanned, and an INSERT … RETURNING that it did not read to
// the end do not wedge anything; a query may run again while its own rows are being read.
func TestForgottenRows(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		scratch(t, d)
		for i := range 20 {
			update(t, d, insertScratch, fmt.Sprint("k", i), nil, i)
		}
		const all = `SELECT k FROM scratch WHERE n >= $1 ORDER BY n`
		for i := range 40 {
			do := d.Update
			if i%4 == 3 {
				do = d.View
			}
			err := do(ctx, func(tx *db.Tx) error {
				if i%4 == 1 {
					tx.QueryRow(ctx, all, 1)
					return nil
				}
				query, args := all, []any{1}
				if i%4 == 2 {
					query = `INSERT INTO scratch (k, n) VALUES ($1, 1), ($2, 2) RETURNING k`
					args = []any{fmt.Sprint("x", i), fmt.Sprint("y", i)}
				}
				rows, err := tx.Query(ctx, query, args...)
				if err != nil {
					return err
				}
				if !rows.Next() {
					t.Error("no row")
				}
				return nil
			})
			if err != nil {
				t.Fatal(i, err)
			}
		}
		if n := count(t, d, `SELECT count(*) FROM scratch`); n != 40 {
			t.Errorf("%d rows, want 40", n)
		}
		if d.Engine() == db.SQLite {
			err := d.View(ctx, func(tx *db.Tx) error {
				outer, err := tx.Query(ctx, all, 0)
				if err != nil {
					return err
				}
				defer outer.Close()
				for outer.Next() {
					var k string
					if err := tx.QueryRow(ctx, all, 3).Scan(&k); err != nil || k != "k3" {
						t.Errorf("inner: %q %v", k, err)
					}
				}
				return outer.Err()
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		// A transaction that is over is of no use any more.
		var kept *db.Tx
		if err := d.View(ctx, func(tx *db.Tx) error { kept = tx; return nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := kept.Exec(ctx, all, 1); err == nil {
			t.Error("a dead transaction works")
		}
		if _, err := kept.Query(ctx, all, 1); err == nil {
			t.Error("a dead transaction works")
		}
	})
}

// Text that PostgreSQL refuses is refused on both engines in the same way, and the transaction lives on.
func TestArguments(t *testing.T) {
	ctx := context.Background()
	type name string
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		scratch(t, d)
		err := d.Update(ctx, func(tx *db.Tx) error {
			for _, bad := range []any{"nul\x00", "utf\xff8", name("\x00")} {
				_, exec := tx.Exec(ctx, insertScratch, bad, nil, 1)
				_, query := tx.Query(ctx, `SELECT k FROM scratch WHERE k = $1`, bad)
				var k string
				row := tx.QueryRow(ctx, `SELECT k FROM scratch WHERE k = $1`, bad).Scan(&k)
				for where, err := range map[string]error{"Exec": exec, "Query": query, "QueryRow": row} {
					if p := problem.Of(err); p == nil || p.Kind() != problem.Unprocessable || p.Slug() != "invalid-text" {
						t.Errorf("%s(%q): %v", where, bad, err)
					}
				}
			}
			if _, err := tx.Exec(ctx, insertScratch, struct{}{}, nil, 1); err == nil {
				t.Error("a struct was stored")
			}
			_, err := tx.Exec(ctx, insertScratch, name("named"), []byte("\x00\xff"), true)
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, insertScratch, "empty", []byte{}, nil)
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, insertScratch, "2026-01-02T03:04:05.100Z", []byte(nil), uint8(3))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = d.View(ctx, func(tx *db.Tx) error {
			for _, w := range []struct {
				k   string
				v   []byte
				n   any
				nul bool
			}{
				{"named", []byte("\x00\xff"), int64(1), false},
				{"empty", []byte{}, nil, false},
				{"2026-01-02T03:04:05.100Z", nil, int64(3), true},
			} {
				var k string
				var v []byte
				var n any
				// An expression has no declared type; text must come back as it was all the same.
				err := tx.QueryRow(ctx, `SELECT COALESCE(k, ''), v, n FROM scratch WHERE k = $1`, w.k).Scan(&k, &v, &n)
				if err != nil {
					return err
				}
				if k != w.k || !bytes.Equal(v, w.v) || n != w.n || (v == nil) != w.nul {
					t.Errorf("got %q %v %v, want %+v", k, v, n, w)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// A full database makes SQLite roll back everything, also what others in the batch have done. They
// run again; whoever caused it is told, even if it hides the failure; and when there is space
// again all is well without a restart.
func TestFull(t *testing.T) {
	ctx := context.Background()
	d := dbtest.Open(t, db.SQLite)
	scratch(t, d)
	var pages, limit int
	limitTo := func(n int) {
		t.Helper()
		err := d.Update(ctx, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, fmt.Sprintf(`PRAGMA max_page_count = %d`, n)).Scan(&limit)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	pages = count(t, d, `PRAGMA page_count`)
	limitTo(pages + 10)
	huge := bytes.Repeat([]byte("x"), 1<<20)
	ok := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	full := func(err error) {
		if !isUnavailable(err) {
			t.Errorf("got %v", err)
		}
	}
	h := hold(t, d)
	var again atomic.Int32
	h.queue(ctx, func(tx *db.Tx) error {
		again.Add(1)
		tx.AfterCommit(func() { again.Add(100) })
		return insert(tx, "a")
	}, ok)
	h.queue(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, insertScratch, "huge", huge, 1)
		return err
	}, full)
	h.queue(ctx, func(tx *db.Tx) error { return insert(tx, "b") }, ok)
	h.queue(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(ctx, insertScratch, "huge", huge, 1); err == nil {
			t.Error("the huge row was taken")
		}
		if err := insert(tx, "sneaked in"); err == nil {
			t.Error("a statement ran outside of the transaction that was rolled back")
		}
		return nil
	}, full)
	h.queue(ctx, func(tx *db.Tx) error { return insert(tx, "c") }, ok)
	h.release()
	if got := keys(t, d); !slices.Equal(got, []string{"a", "b", "c", "held"}) {
		t.Errorf("got %v", got)
	}
	if n := again.Load(); n != 102 {
		t.Errorf("the neighbour ran %d times and was told %d times of its commit, want 2 and 1", n%100, n/100)
	}
	limitTo(1 << 20)
	if err := d.Ping(ctx); err != nil {
		t.Error(err)
	}
	update(t, d, insertScratch, "huge", huge, 1)
}

// The same on a real file system that is full, where the commit itself fails.
func TestDiskFull(t *testing.T) {
	ctx := context.Background()
	o := dbtest.SQLite(t)
	if err := syscall.Mount("tmpfs", o.Dir, "tmpfs", 0, "size=2m,mode=0700"); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(o.Dir, syscall.MNT_DETACH) })
	d := open(t, o)
	scratch(t, d)
	blob := bytes.Repeat([]byte("x"), 20000)
	var kept []string
	var failed error
	for i := range 1000 {
		k := fmt.Sprintf("k%04d", i)
		failed = d.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, insertScratch, k, blob, i)
			return err
		})
		if failed != nil {
			break
		}
		kept = append(kept, k)
	}
	if !isUnavailable(failed) {
		t.Fatalf("got %v", failed)
	}
	if got := keys(t, d); !slices.Equal(got, kept) {
		t.Errorf("kept %v, acknowledged %v", got, kept)
	}
	if err := syscall.Mount("tmpfs", o.Dir, "tmpfs", syscall.MS_REMOUNT, "size=32m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	if err := d.Ping(ctx); err != nil {
		t.Error(err)
	}
	update(t, d, insertScratch, "after", blob, 1)
	kept = append([]string{"after"}, kept...)
	if got := keys(t, d); !slices.Equal(got, kept) {
		t.Errorf("kept %v, acknowledged %v", got, kept)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := keys(t, open(t, o)); !slices.Equal(got, kept) {
		t.Errorf("after reopening %v, acknowledged %v", got, kept)
	}
}

// Out of memory is an answer, not a panic, and takes nothing of the neighbours with it.
func TestOutOfMemory(t *testing.T) {
	ctx := context.Background()
	d := dbtest.Open(t, db.SQLite)
	scratch(t, d)
	h := hold(t, d)
	h.queue(ctx, func(tx *db.Tx) error { return insert(tx, "a") }, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	h.queue(ctx, func(tx *db.Tx) error {
		var limit int64
		if err := tx.QueryRow(ctx, `PRAGMA hard_heap_limit = 3000000`).Scan(&limit); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, insertScratch+` -- and`, "huge", bytes.Repeat([]byte("x"), 10<<20), 1)
		return err
	}, func(err error) {
		if !isUnavailable(err) {
			t.Errorf("got %v", err)
		}
	})
	h.release()
	if got := keys(t, d); !slices.Equal(got, []string{"a", "held"}) {
		t.Errorf("got %v", got)
	}
}

// A full disk is reported by Ping until a write succeeds.
func TestPingAfterDiskFull(t *testing.T) {
	ctx := context.Background()
	o := dbtest.SQLite(t)
	if err := syscall.Mount("tmpfs", o.Dir, "tmpfs", 0, "size=16m,mode=0700"); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(o.Dir, syscall.MNT_DETACH) })
	d := open(t, o)
	scratch(t, d)
	fill, err := os.Create(o.Dir + "/fill")
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = fill.Write(block)
	}
	for i := 0; err != nil && i < 2000 && !isUnavailable(err); i++ {
		err = d.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, insertScratch, fmt.Sprint(i), make([]byte, 50000), 1)
			return err
		})
		if err == nil {
			err = errors.New("still space in the log")
		}
	}
	if !isUnavailable(err) {
		t.Fatalf("got %v", err)
	}
	if err := d.Ping(ctx); !isUnavailable(err) {
		t.Errorf("ping on a full disk: %v", err)
	}
	if err := errors.Join(fill.Close(), os.Remove(fill.Name())); err != nil {
		t.Fatal(err)
	}
	if err := d.Ping(ctx); err != nil {
		t.Error(err)
	}
	update(t, d, insertScratch, "after", nil, 1)
}

func TestAfterCommit(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		scratch(t, d)
		var ran []string
		err := d.Update(ctx, func(tx *db.Tx) error {
			tx.AfterCommit(func() {
				if n := count(t, d, `SELECT count(*) FROM scratch`); n != 1 {
					t.Errorf("%d rows in AfterCommit", n)
				}
				ran = append(ran, "first")
			})
			tx.AfterCommit(func() { ran = append(ran, "second") })
			return insert(tx, "a")
		})
		if err != nil || !slices.Equal(ran, []string{"first", "second"}) {
			t.Errorf("%v, %v", ran, err)
		}
		_ = d.Update(ctx, func(tx *db.Tx) error {
			tx.AfterCommit(func() { t.Error("ran after a rollback") })
			return errors.New("no")
		})
	})
}

func TestProblemPassesThrough(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		p := problem.New(problem.NotFound, "record-not-found", "no")
		for _, do := range []func(context.Context, func(*db.Tx) error) error{d.Update, d.UpdateReadCommitted, d.View} {
			if err := do(context.Background(), func(*db.Tx) error { return p }); err != error(p) {
				t.Errorf("got %v", err)
			}
		}
	})
}

func TestClose(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		scratch(t, d)
		var wg sync.WaitGroup
		var acknowledged atomic.Int64
		began := make(chan struct{}, 1000)
		for i := range 50 {
			wg.Go(func() {
				for j := 0; ; j++ {
					err := d.Update(ctx, func(tx *db.Tx) error { return insert(tx, fmt.Sprint(i, "-", j)) })
					if err != nil {
						if !isUnavailable(err) {
							t.Error(err)
						}
						return
					}
					acknowledged.Add(1)
					select {
					case began <- struct{}{}:
					default:
					}
				}
			})
		}
		<-began
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := d.View(ctx, func(*db.Tx) error { return nil }); !isUnavailable(err) {
			t.Error(err)
		}
		if acknowledged.Load() == 0 {
			t.Error("nothing was acknowledged")
		}
	})
}

// Whatever mixture of transactions runs at once, those that were acknowledged are there afterwards
// and no others.
func TestExactlyTheAcknowledged(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		scratch(t, d)
		round := 0
		rapid.Check(t, func(rt *rapid.T) {
			round++
			const succeed, fail, panics, duplicate, swallow, exit = 0, 1, 2, 3, 4, 5
			deeds := rapid.SliceOfN(rapid.IntRange(succeed, exit), 1, 40).Draw(rt, "deeds")
			var mu sync.Mutex
			want := map[string]bool{}
			var wg sync.WaitGroup
			for i, deed := range deeds {
				wg.Go(func() {
					k := fmt.Sprintf("%d/%d", round, i)
					acknowledged := false
					defer func() {
						_ = recover()
						if acknowledged {
							mu.Lock()
							defer mu.Unlock()
							want[k] = true
						}
					}()
					err := d.Update(ctx, func(tx *db.Tx) error {
						if err := insert(tx, k); err != nil {
							return err
						}
						switch deed {
						case fail:
							return errors.New("fail")
						case panics:
							panic("panic")
						case duplicate:
							return insert(tx, k)
						case swallow:
							_, _ = tx.Exec(ctx, `SELECT nonsense`)
						case exit:
							runtime.Goexit()
						}
						return nil
					})
					acknowledged = err == nil
					if acknowledged && deed != succeed && deed != swallow || !acknowledged && deed == succeed {
						t.Errorf("deed %d: %v", deed, err)
					}
				})
			}
			wg.Wait()
			got := map[string]bool{}
			for _, k := range keys(t, d) {
				if strings.HasPrefix(k, fmt.Sprint(round, "/")) {
					got[k] = true
				}
			}
			if len(got) != len(want) {
				rt.Fatalf("kept %v, acknowledged %v", got, want)
			}
			for k := range want {
				if !got[k] {
					rt.Fatalf("%s was acknowledged and is gone", k)
				}
			}
		})
	})
}

// Increments from many callers at once are all counted, at either isolation.
func TestSerializable(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		scratch(t, d)
		update(t, d, insertScratch, "counter", nil, 0)
		const each, n = 20, 8
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				for range each {
					err := d.Update(ctx, func(tx *db.Tx) error {
						var n int64
						if err := tx.QueryRow(ctx, `SELECT n FROM scratch WHERE k = $1`, "counter").Scan(&n); err != nil {
							return err
						}
						_, err := tx.Exec(ctx, `UPDATE scratch SET n = $1 WHERE k = $2`, n+1, "counter")
						return err
					})
					for isUnavailable(err) { // gave up after many attempts: the caller tries again
						err = d.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
							_, err := tx.Exec(ctx, `UPDATE scratch SET n = n + 1 WHERE k = $1`, "counter")
							return err
						})
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if got := count(t, d, `SELECT n FROM scratch WHERE k = $1`, "counter"); got != each*n {
			t.Errorf("counted %d, want %d", got, each*n)
		}
	})
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	o := dbtest.SQLite(t)
	o.Metrics = registry
	d := open(t, o)
	scratch(t, d)
	h := hold(t, d)
	for i := range 9 {
		h.queue(context.Background(), func(tx *db.Tx) error { return insert(tx, fmt.Sprint(i)) }, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	h.release()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*dto.Metric{}
	for _, f := range families {
		got[f.GetName()] = f.GetMetric()[0]
	}
	batches := got["strongroom_db_group_commit_batch"].GetHistogram()
	if batches.GetSampleCount() != 2 || batches.GetSampleSum() != 11 { // the table, and ten together
		t.Errorf("batches: %v", batches)
	}
	if n := got["strongroom_db_update_seconds"].GetHistogram().GetSampleCount(); n != 11 {
		t.Errorf("%d updates", n)
	}
	if n := got["strongroom_db_queue"].GetGauge().GetValue(); n != 0 {
		t.Errorf("%v in the queue", n)
	}
	if got["strongroom_db_retries_total"] == nil {
		t.Error("no counter of retries")
	}
	// A second database of the process shares the metrics.
	p := dbtest.SQLite(t)
	p.Metrics = registry
	open(t, p)
}
