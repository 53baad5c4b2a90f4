package db_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

func admin(t testing.TB, u string) *sql.DB {
	t.Helper()
	pool, err := sql.Open("pgx", u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	return pool
}

// wire is a TCP proxy before PostgreSQL that can be cut and restored.
type wire struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	conns    []net.Conn
	down     atomic.Bool
	// cutAt, when set, cuts a connection after a message with this text was passed on to the server
	// and before its answer comes back.
	cutAt atomic.Pointer[[]byte]
}

// proxied returns a wire to the server of u, and the URL that leads through it.
func proxied(t testing.TB, u string) (*wire, string) {
	t.Helper()
	parsed, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, target: parsed.Host}
	t.Cleanup(func() {
		_ = l.Close()
		w.cut()
	})
	go w.serve()
	parsed.Host = l.Addr().String()
	return w, parsed.String()
}

func (w *wire) serve() {
	for {
		c, err := w.listener.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", w.target)
		if err != nil || w.down.Load() {
			_ = c.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, c, s)
		w.mu.Unlock()
		go func() { _, _ = io.Copy(c, s); _ = c.Close() }()
		go func() {
			defer s.Close()
			buf := make([]byte, 1<<16)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				at := w.cutAt.Load()
				cut := at != nil && bytes.Contains(buf[:n], *at)
				if cut {
					_ = c.Close() // first, so that no answer gets through
				}
				if _, err := s.Write(buf[:n]); err != nil {
					return
				}
				if cut {
					_, _ = io.Copy(io.Discard, s)
					return
				}
			}
		}()
	}
}

func (w *wire) cut() {
	w.down.Store(true)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

func (w *wire) restore() { w.down.Store(false) }

func openURL(t testing.TB, u string) *db.DB {
	return open(t, db.Options{URL: u, Environment: "dev", Create: true})
}

// A server that is gone is a 503 with Retry-After, and all is well again when it is back.
func TestPostgresLostAndFound(t *testing.T) {
	ctx := context.Background()
	w, u := proxied(t, dbtest.PostgresURL(t))
	d := openURL(t, u)
	scratch(t, d)
	for round := range 3 {
		update(t, d, insertScratch, fmt.Sprint(round), nil, round)
		w.cut()
		for range 20 {
			if err := d.Update(ctx, func(tx *db.Tx) error { return insert(tx, "never") }); !isUnavailable(err) {
				t.Errorf("Update without a server: %v", err)
			}
			if err := d.View(ctx, func(tx *db.Tx) error { return nil }); !isUnavailable(err) {
				t.Errorf("View without a server: %v", err)
			}
			if err := d.Ping(ctx); !isUnavailable(err) {
				t.Errorf("Ping without a server: %v", err)
			}
		}
		w.restore()
		if err := d.Ping(ctx); err != nil {
			t.Error(err)
		}
		if n := count(t, d, `SELECT count(*) FROM scratch`); n != round+1 {
			t.Errorf("%d rows", n)
		}
	}
	w.cut()
	if _, err := db.Open(ctx, db.Options{URL: u, Environment: "dev"}); !isUnavailable(err) {
		t.Errorf("Open without a server: %v", err)
	}
}

// Connections that the server ended, in the pool or in the middle of a transaction, are replaced,
// and nobody notices.
func TestPostgresTerminated(t *testing.T) {
	ctx := context.Background()
	u := dbtest.PostgresURL(t)
	d := openURL(t, u)
	scratch(t, d)
	server := admin(t, u)
	kill := func() {
		t.Helper()
		_, err := server.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'strongroom'`)
		if err != nil {
			t.Error(err)
		}
	}
	var here, wg sync.WaitGroup
	here.Add(16)
	for range 16 { // fill the pool
		wg.Go(func() {
			if err := d.View(ctx, func(*db.Tx) error { here.Done(); here.Wait(); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	kill()
	update(t, d, insertScratch, "pool", nil, 1)
	kill()
	if err := d.Ping(ctx); err != nil {
		t.Error(err)
	}
	tries := 0
	err := d.Update(ctx, func(tx *db.Tx) error {
		tries++
		if err := insert(tx, "middle"); err != nil {
			return err
		}
		if tries == 1 {
			kill()
		}
		return insert(tx, "middle too")
	})
	if err != nil || tries != 2 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if n := count(t, d, `SELECT count(*) FROM scratch`); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
}

// When the connection breaks between COMMIT and its answer, nobody knows the outcome: the deed is
// not done a second time, and the caller is told to look.
func TestPostgresUnknownCommitIsNotRepeated(t *testing.T) {
	ctx := context.Background()
	w, u := proxied(t, dbtest.PostgresURL(t))
	d := openURL(t, u)
	scratch(t, d)
	update(t, d, insertScratch, "n", nil, 0)
	text := []byte("commit\x00")
	w.cutAt.Store(&text)
	ran := 0
	err := d.Update(ctx, func(tx *db.Tx) error {
		ran++
		tx.AfterCommit(func() { t.Error("AfterCommit ran") })
		_, err := tx.Exec(ctx, `UPDATE scratch SET n = n + 1`)
		return err
	})
	w.cutAt.Store(nil)
	if !isUnavailable(err) || !errors.Is(err, db.ErrOutcomeUnknown) || ran != 1 {
		t.Errorf("ran %d times, %v", ran, err)
	}
	for n := 0; n != 1; { // the server did commit
		n = count(t, d, `SELECT n FROM scratch`)
	}
}

// A conflict that fn hides makes it run again all the same.
func TestPostgresHiddenConflict(t *testing.T) {
	ctx := context.Background()
	d := dbtest.Open(t, db.PostgreSQL)
	scratch(t, d)
	update(t, d, insertScratch, "n", nil, 0)
	tries := 0
	err := d.Update(ctx, func(tx *db.Tx) error {
		tries++
		var n int64
		if err := tx.QueryRow(ctx, `SELECT n FROM scratch`).Scan(&n); err != nil {
			return err
		}
		if tries == 1 {
			other := make(chan error)
			go func() {
				other <- d.Update(ctx, func(tx *db.Tx) error {
					_, err := tx.Exec(ctx, `UPDATE scratch SET n = 10`)
					return err
				})
			}()
			if err := <-other; err != nil {
				return err
			}
		}
		_, _ = tx.Exec(ctx, `UPDATE scratch SET n = $1`, n+1)
		return nil
	})
	if err != nil || tries != 2 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if n := count(t, d, `SELECT n FROM scratch`); n != 11 {
		t.Errorf("n = %d, want 11", n)
	}
	// And a failed statement that it hides fails the transaction.
	err = d.Update(ctx, func(tx *db.Tx) error {
		_, _ = tx.Exec(ctx, `SELECT nonsense`)
		return nil
	})
	if err == nil {
		t.Error("a transaction that the server rolled back was acknowledged")
	}
}

// Replicas that start together make one database.
func TestPostgresReplicasStartTogether(t *testing.T) {
	u := dbtest.PostgresURL(t)
	ids := make(chan string, 6)
	var wg sync.WaitGroup
	for range cap(ids) {
		wg.Go(func() {
			d, err := db.Open(context.Background(), db.Options{URL: u, Environment: "dev", Create: true})
			if err != nil {
				t.Error(err)
				return
			}
			ids <- d.Installation()
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(ids)
	first := <-ids
	for id := range ids {
		if id != first || id == "" {
			t.Errorf("installations %q and %q", first, id)
		}
	}
}

func TestPostgresRefused(t *testing.T) {
	ctx := context.Background()
	u := dbtest.PostgresURL(t)
	server := admin(t, u)
	tables := func() (n int) {
		t.Helper()
		if err := server.QueryRow(`SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := db.Open(ctx, db.Options{URL: u, Environment: "dev"}); !errors.Is(err, db.ErrNoDatabase) || tables() != 0 {
		t.Errorf("got %v and %d tables", err, tables())
	}
	missing, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	missing.Path = "/strongroom_missing"
	if _, err := db.Open(ctx, db.Options{URL: missing.String(), Environment: "dev", Create: true}); !errors.Is(err, db.ErrNoDatabase) {
		t.Errorf("got %v", err)
	}
	d := openURL(t, u)
	before := tables()
	if _, err := db.Open(ctx, db.Options{URL: u, Environment: "live", Create: true}); !errors.Is(err, db.ErrEnvironment) || tables() != before {
		t.Errorf("got %v", err)
	}
	update(t, d, `INSERT INTO schema_version (version) VALUES (9999)`)
	if _, err := db.Open(ctx, db.Options{URL: u, Environment: "dev", Create: true}); !errors.Is(err, db.ErrNewerSchema) || tables() != before {
		t.Errorf("got %v", err)
	}
}

// A caller whose time runs out while all connections are taken is told to come back.
func TestPostgresPoolExhausted(t *testing.T) {
	d := dbtest.Open(t, db.PostgreSQL)
	leave := make(chan struct{})
	var here, wg sync.WaitGroup
	here.Add(16)
	for range 16 {
		wg.Go(func() {
			if err := d.View(context.Background(), func(*db.Tx) error { here.Done(); <-leave; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	here.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 1)
	defer cancel()
	<-ctx.Done()
	if err := d.View(ctx, func(*db.Tx) error { return nil }); !isUnavailable(err) {
		t.Errorf("got %v", err)
	}
	close(leave)
	wg.Wait()
}
