package keyring

import (
	"bytes"
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

var by = actor.OfSystem("test")

// events remembers what a recorder was told.
type events struct {
	mu   sync.Mutex
	all  []string
	fail error
}

func (e *events) record(_ context.Context, tx *db.Tx, by actor.Actor, _ customer.ID, action, resource string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if tx == nil || by.ID != "test" && by != byRotation {
		return errors.New("an event without a transaction or an actor")
	}
	e.all = append(e.all, action+" "+resource)
	return e.fail
}

type setup struct {
	*Keyring
	events *events
	clock  *clock.Manual
	root   Root
}

func openKeyring(t testing.TB, d *db.DB, root Root) setup {
	t.Helper()
	return openWith(t, Options{DB: d, Root: root})
}

func openWith(t testing.TB, o Options) setup {
	t.Helper()
	s := setup{events: new(events), root: o.Root}
	if o.Clock == nil {
		s.clock = clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		o.Clock = s.clock
	}
	o.Record = s.events.record
	var err error
	o.Create = true
	if s.Keyring, err = Open(t.Context(), by, o); err != nil {
		t.Fatal(err)
	}
	s.SetDependents(nil)
	return s
}

func (s setup) create(t testing.TB) customer.ID {
	t.Helper()
	c := customer.NewID()
	update(t, s.db, func(tx *db.Tx) error {
		_, err := s.CreateCustomer(t.Context(), tx, by, c)
		return err
	})
	return c
}

// resign has the states of the keys be those that Strongroom wrote.
func (s setup) resign(t testing.TB) {
	t.Helper()
	update(t, s.db, func(tx *db.Tx) error { return s.changed(t.Context(), tx) })
}

// ring asks for c's ring in a transaction of its own.
func (s setup) ring(t testing.TB, c customer.ID) (ring *seal.Ring, err error) {
	t.Helper()
	err = s.db.View(t.Context(), func(tx *db.Tx) (err error) {
		ring, err = s.Customer(t.Context(), tx, c)
		return err
	})
	return ring, err
}

func update(t testing.TB, d *db.DB, fn func(tx *db.Tx) error) {
	t.Helper()
	if err := d.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func exec(t testing.TB, d *db.DB, query string, args ...any) {
	t.Helper()
	update(t, d, func(tx *db.Tx) error {
		n, err := tx.Exec(t.Context(), query, args...)
		if err == nil && n == 0 {
			return errors.New("no row was changed")
		}
		return err
	})
}

func count(t testing.TB, d *db.DB, query string) (n int) {
	t.Helper()
	if err := d.View(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), query).Scan(&n) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// erase does to c's keys what an erasure does.
func erase(t testing.TB, k *Keyring, c customer.ID) {
	t.Helper()
	exec(t, k.db, `DELETE FROM data_key WHERE customer_id = $1`, c)
	exec(t, k.db, `INSERT INTO data_key_tombstone (customer_id, erased_at, mac) VALUES ($1, 1, $2)`, c, k.TombstoneMAC(c, 1))
}

var place = seal.Place{Room: "vault", Table: "record", Record: "profile/main", Version: 1}

func TestFirstAndSecondOpen(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := testRoot(t)
		a := openKeyring(t, d, root)
		want := []string{
			"keyring.kek.create kek 1",
			"keyring.service-key.create service key backup/1",
			"keyring.service-key.create service key blind-index/1",
			"keyring.service-key.create service key checkpoint/1",
			"keyring.service-key.create service key event/1",
			"keyring.service-key.create service key event-mac/1",
			"keyring.service-key.create service key evidence/1",
			"keyring.service-key.create service key outbox/1",
			"keyring.service-key.create service key pepper/1",
			"keyring.service-key.create service key token/1",
		}
		if !slices.Equal(a.events.all, want) {
			t.Errorf("events %q", a.events.all)
		}
		c := a.create(t)
		before, err := a.ring(t, c)
		if err != nil {
			t.Fatal(err)
		}
		sealed, outbox := before.Seal(place, []byte("Ada")), a.Service(KeyOutbox).Seal(place, []byte("code"))
		mac, version := a.MAC(KeyPepper, []byte("code"))

		b := openKeyring(t, d, root)
		if len(b.events.all) != 0 {
			t.Errorf("the second opening made %q", b.events.all)
		}
		ring, err := b.ring(t, c)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.Open(place, sealed); err != nil || string(got) != "Ada" {
			t.Errorf("customer: %q, %v", got, err)
		}
		if got, err := b.Service(KeyOutbox).Open(place, outbox); err != nil || string(got) != "code" {
			t.Errorf("outbox: %q, %v", got, err)
		}
		if _, err := b.Service(KeyEvent).Open(place, outbox); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("one service key opens another's: %v", err)
		}
		if again, err := b.MACVersion(KeyPepper, version, []byte("code")); err != nil || !hmac.Equal(mac, again) {
			t.Errorf("MAC %x, %x, %v", mac, again, err)
		}
		if !bytes.Equal(a.BlindIndex("phone", []byte("x")), b.BlindIndex("phone", []byte("x"))) {
			t.Error("the blind index changed")
		}
	})
}

// TestNothingWithoutAnEvent: keys and their events are committed together or not at all.
func TestNothingWithoutAnEvent(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		boom := errors.New("boom")
		failing := &events{fail: boom}
		for name, o := range map[string]Options{
			"no recorder":      {DB: d, Root: root},
			"failing recorder": {DB: d, Root: root, Record: failing.record},
		} {
			if k, err := Open(ctx, by, o); err == nil || k != nil {
				t.Errorf("%s: opened", name)
			}
		}
		if n := count(t, d, `SELECT COUNT(*) FROM kek`) + count(t, d, `SELECT COUNT(*) FROM kek_wrap`) + count(t, d, `SELECT COUNT(*) FROM service_key`); n != 0 {
			t.Fatalf("%d keys without an event", n)
		}

		k := openKeyring(t, d, root)
		c := customer.NewID()
		create := func() error {
			return d.Update(ctx, func(tx *db.Tx) error {
				_, err := k.CreateCustomer(ctx, tx, by, c)
				return err
			})
		}
		k.SetRecorder(nil)
		if err := create(); !errors.Is(err, errNoRecorder) {
			t.Errorf("no recorder: %v", err)
		}
		if _, err := k.List(ctx, by); !errors.Is(err, errNoRecorder) {
			t.Errorf("list without recorder: %v", err)
		}
		k.SetRecorder(failing.record)
		if err := create(); !errors.Is(err, boom) {
			t.Errorf("failing recorder: %v", err)
		}
		if n := count(t, d, `SELECT COUNT(*) FROM data_key`); n != 0 {
			t.Fatalf("%d data keys without an event", n)
		}
		if _, err := k.ring(t, c); !problem.Is(err, "customer-not-found") {
			t.Errorf("rolled back, yet: %v", err)
		}
		k.SetRecorder(k.events.record)
		if err := create(); err != nil {
			t.Fatal(err)
		}
		if last := k.events.all[len(k.events.all)-1]; last != "keyring.customer-key.create customer key "+string(c)+"/1" {
			t.Errorf("event %q", last)
		}
	})
}

// TestConnect: what records the first events may use the very keys that are being made.
func TestConnect(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := testRoot(t)
		for range 2 {
			var e events
			calls := 0
			var sealed []byte
			var during *seal.Ring
			k, err := Open(t.Context(), by, Options{Create: true, DB: d, Root: root, Connect: func(k *Keyring) Recorder {
				calls++
				during = k.Service(KeyEvent)
				return func(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, action, resource string) error {
					sealed = k.Service(KeyEvent).Seal(place, []byte(action))
					if k.CheckpointSigner() == nil {
						return errors.New("there is no signer")
					}
					return e.record(ctx, tx, by, c, action, resource)
				}
			}})
			if err != nil || calls != 1 {
				t.Fatalf("%d calls, %v", calls, err)
			}
			if sealed != nil {
				if _, err := k.Service(KeyEvent).Open(place, sealed); err != nil {
					t.Errorf("what was sealed during Open: %v", err)
				}
			}
			if _, err := k.Service(KeyEvent).Open(place, during.Seal(place, nil)); err != nil {
				t.Errorf("the ring seen during Open: %v", err)
			}
			if _, err := k.List(t.Context(), by); err != nil || len(e.all) == 0 {
				t.Errorf("%q, %v", e.all, err)
			}
		}
	})
}

// TestTwoReplicasStart: processes that make the first keys at the same time agree on one set.
func TestTwoReplicasStart(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, first *db.DB) {
		replicas := []*db.DB{first, first, first}
		if first.Engine() == db.PostgreSQL {
			url := dbtest.PostgresURL(t)
			for i := range replicas {
				d, err := db.Open(t.Context(), db.Options{URL: url, Environment: "dev", Create: true})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = d.Close() })
				replicas[i] = d
			}
		}
		root := testRoot(t)
		rings := make([]*Keyring, len(replicas))
		var e events
		start := make(chan struct{})
		var group sync.WaitGroup
		for i, d := range replicas {
			group.Go(func() {
				<-start
				var err error
				if rings[i], err = Open(t.Context(), by, Options{Create: true, DB: d, Root: root, Record: e.record}); err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		group.Wait()
		if t.Failed() {
			return
		}
		d := replicas[0]
		if n := count(t, d, `SELECT COUNT(*) FROM kek`); n != 1 {
			t.Errorf("%d KEKs", n)
		}
		if n := count(t, d, `SELECT COUNT(*) FROM service_key`); n != len(serviceDefinitions) {
			t.Errorf("%d service keys", n)
		}
		c := customer.NewID()
		var sealed []byte
		update(t, d, func(tx *db.Tx) error {
			ring, err := rings[0].CreateCustomer(t.Context(), tx, by, c)
			if err == nil {
				sealed = ring.Seal(place, []byte("Ada"))
			}
			return err
		})
		want := rings[0].BlindIndex("f", nil)
		for i, k := range rings {
			if !bytes.Equal(k.BlindIndex("f", nil), want) || k.CheckpointSigner().KeyHash() != rings[0].CheckpointSigner().KeyHash() {
				t.Errorf("replica %d holds other keys", i)
			}
			ring, err := (setup{Keyring: k}).ring(t, c)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := ring.Open(place, sealed); err != nil || string(got) != "Ada" {
				t.Errorf("replica %d: %q, %v", i, got, err)
			}
		}
	})
}

// TestLosesTheRace: keys that another process committed between the look and the try are taken over.
func TestLosesTheRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := testRoot(t)
		var winner setup
		racing := &wrapHook{Root: root, before: func() { winner = openKeyring(t, d, root) }}
		connects := 0
		late, err := Open(t.Context(), by, Options{Create: true, DB: d, Root: racing, Connect: func(*Keyring) Recorder {
			connects++
			return new(events).record
		}})
		if err != nil || connects != 1 {
			t.Fatalf("%d connects, %v", connects, err)
		}
		if !bytes.Equal(late.BlindIndex("f", nil), winner.BlindIndex("f", nil)) {
			t.Error("the late process holds other keys")
		}
	})
}

// wrapHook does something just before the first key is wrapped.
type wrapHook struct {
	Root
	before func()
}

func (h *wrapHook) Wrap(ctx context.Context, plaintext, context []byte) ([]byte, error) {
	if h.before != nil {
		h.before()
		h.before = nil
	}
	return h.Root.Wrap(ctx, plaintext, context)
}

// TestNewServiceKey: an upgrade that brings a new service key makes only that one.
func TestNewServiceKey(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := testRoot(t)
		a := openKeyring(t, d, root)
		exec(t, d, `DELETE FROM service_key WHERE name = $1`, KeyOutbox)
		a.resign(t) // the version before did not know this key
		b := openKeyring(t, d, root)
		if !slices.Equal(b.events.all, []string{"keyring.service-key.create service key outbox/1"}) {
			t.Errorf("events %q", b.events.all)
		}
		if !bytes.Equal(a.BlindIndex("f", nil), b.BlindIndex("f", nil)) {
			t.Error("another key changed")
		}
	})
}

func TestCustomerKeyWithinItsTransaction(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		k := openKeyring(t, d, testRoot(t))
		c, undone := customer.NewID(), customer.NewID()
		boom := errors.New("boom")
		in := func(c customer.ID, end error) error {
			return d.Update(ctx, func(tx *db.Tx) error {
				if _, err := k.Customer(ctx, tx, c); !problem.Is(err, "customer-not-found") {
					return fmt.Errorf("before: %w", err)
				}
				made, err := k.CreateCustomer(ctx, tx, by, c)
				if err != nil {
					return err
				}
				seen, err := k.Customer(ctx, tx, c)
				if err != nil {
					return fmt.Errorf("within: %w", err)
				}
				if got, err := seen.Open(place, made.Seal(place, []byte("x"))); err != nil || string(got) != "x" {
					return fmt.Errorf("within: %q, %w", got, err)
				}
				if k.cache.get(c) != nil {
					return errors.New("cached before it was committed")
				}
				return end
			})
		}
		if err := in(undone, boom); !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if k.cache.get(undone) != nil {
			t.Error("cached although it was rolled back")
		}
		if _, err := k.ring(t, undone); !problem.Is(err, "customer-not-found") {
			t.Errorf("rolled back: %v", err)
		}
		if err := in(c, nil); err != nil {
			t.Fatal(err)
		}
		if k.cache.get(c) == nil {
			t.Error("not cached after the commit")
		}
		err := d.Update(ctx, func(tx *db.Tx) error {
			_, err := k.CreateCustomer(ctx, tx, by, c)
			return err
		})
		if !problem.Is(err, "customer-exists") {
			t.Errorf("a second time: %v", err)
		}
		err = d.Update(ctx, func(tx *db.Tx) error {
			_, err := k.CreateCustomer(ctx, tx, by, "cus_'; --")
			return err
		})
		if err == nil {
			t.Error("a malformed id was taken")
		}
	})
}

func TestErasedIsNotUnknown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		k := openKeyring(t, d, testRoot(t))
		c, other := k.create(t), k.create(t)
		backup := func() (rows []dataRow) {
			_ = d.View(ctx, func(tx *db.Tx) (err error) { rows, err = selectDataKeys(ctx, tx, c); return err })
			return rows
		}()

		erase(t, k.Keyring, c) // by another process: seen when the lease ends
		if _, err := k.ring(t, c); err != nil {
			t.Errorf("within the lease: %v", err)
		}
		k.clock.Advance(defaultLease)
		if _, err := k.ring(t, c); !problem.Is(err, "customer-erased") || problem.Of(err).Kind() != problem.Gone {
			t.Errorf("after the lease: %v", err)
		}
		if _, err := k.ring(t, customer.NewID()); !problem.Is(err, "customer-not-found") || problem.Of(err).Kind() != problem.NotFound {
			t.Errorf("never made: %v", err)
		}
		if _, err := k.ring(t, "cus_x"); !problem.Is(err, "customer-not-found") {
			t.Errorf("malformed: %v", err)
		}

		erase(t, k.Keyring, other) // by this process: seen at once
		k.Forget(other)
		if _, err := k.ring(t, other); !problem.Is(err, "customer-erased") {
			t.Errorf("after Forget: %v", err)
		}
		err := d.Update(ctx, func(tx *db.Tx) error {
			_, err := k.CreateCustomer(ctx, tx, by, c)
			return err
		})
		if !problem.Is(err, "customer-erased") {
			t.Errorf("made again: %v", err)
		}

		// A backup of the keys brings the row back: the tombstone wins.
		update(t, d, func(tx *db.Tx) error {
			_, err := insertDataKey(ctx, tx, c, backup[0])
			return err
		})
		if _, err := k.ring(t, c); !problem.Is(err, "customer-erased") {
			t.Errorf("with an old key brought back: %v", err)
		}
	})
}

// TestForgetBeatsALateReader: a transaction that read the key before it was destroyed and ends after
// Forget does not bring it back into the cache.
func TestForgetBeatsALateReader(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	k := openKeyring(t, d, testRoot(t))
	c := k.create(t)
	k.clock.Advance(defaultLease)
	update(t, d, func(tx *db.Tx) error {
		_, err := k.Customer(t.Context(), tx, c)
		k.Forget(c)
		return err
	})
	if k.cache.get(c) != nil {
		t.Error("the late reader filled the cache")
	}
	k.clock.Advance(defaultLease)
	update(t, d, func(tx *db.Tx) error {
		_, err := k.Customer(t.Context(), tx, c)
		return err
	})
	if k.cache.get(c) == nil {
		t.Error("still blocked after a lease")
	}
}

// TestTamperedRows: whatever an attacker with the database in hand does to a row of keys, it does not
// open, and the error says what to do.
func TestTamperedRows(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		k := openKeyring(t, d, root)
		a, b := k.create(t), k.create(t)
		rows := map[customer.ID]dataRow{}
		for _, c := range []customer.ID{a, b} {
			if err := d.View(ctx, func(tx *db.Tx) error {
				r, err := selectDataKeys(ctx, tx, c)
				rows[c] = r[0]
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		set := func(c customer.ID, wrapped []byte, kek, version uint32, state string) {
			exec(t, d, `UPDATE data_key SET wrapped = $2, kek_version = $3, version = $4, state = $5 WHERE customer_id = $1`, c, wrapped, kek, version, state)
		}
		flip := func(b []byte, i int) []byte { b = bytes.Clone(b); b[i] ^= 1; return b }
		good := rows[a].wrapped
		k.clock.Advance(defaultLease)
		for name, change := range map[string]func(){
			"another customer's": func() { set(a, rows[b].wrapped, 1, 1, active) },
			"a bit":              func() { set(a, flip(good, 20), 1, 1, active) },
			"the tag":            func() { set(a, flip(good, len(good)-1), 1, 1, active) },
			"the KEK's version":  func() { set(a, good, 2, 1, active) },
			"the version":        func() { set(a, good, 1, 2, active) },
			"cut short":          func() { set(a, good[:10], 1, 1, active) },
			"no key":             func() { set(a, nil, 1, 1, active) },
		} {
			change()
			ring, err := k.ring(t, a)
			if !errors.Is(err, ErrUnwrap) || ring != nil || !strings.Contains(err.Error(), "backup") {
				t.Errorf("%s: %v", name, err)
			}
		}
		set(a, good, 1, 1, retired)
		if _, err := k.ring(t, a); !errors.Is(err, ErrDamaged) {
			t.Errorf("no active version: %v", err)
		}
		set(a, good, 1, 1, "blessed")
		if _, err := k.ring(t, a); !errors.Is(err, ErrDamaged) {
			t.Errorf("unknown state: %v", err)
		}
		set(a, nil, 1, 1, destroyed)
		if _, err := k.ring(t, a); !errors.Is(err, ErrDamaged) {
			t.Errorf("destroyed without a tombstone: %v", err)
		}
		set(a, good, 1, 1, active)
		if _, err := k.ring(t, a); err != nil {
			t.Errorf("put back: %v", err)
		}

		refused := func(name string, want error) {
			t.Helper()
			again, err := Open(ctx, by, Options{Create: true, DB: d, Root: root, Record: k.events.record})
			if !errors.Is(err, want) || again != nil {
				t.Errorf("%s: %v; want %v", name, err, want)
			}
		}
		swap := func() {
			exec(t, d, `UPDATE service_key SET name = 'x' WHERE name = $1`, KeyPepper)
			exec(t, d, `UPDATE service_key SET name = $1 WHERE name = $2`, KeyPepper, KeyToken)
			exec(t, d, `UPDATE service_key SET name = $1 WHERE name = 'x'`, KeyToken)
		}
		swap()
		refused("two service keys swapped", ErrUnwrap)
		swap()
		exec(t, d, `UPDATE service_key SET algorithm = $1 WHERE name = $2`, aesGCM, KeyPepper)
		refused("another algorithm", ErrDamaged)
		exec(t, d, `UPDATE service_key SET algorithm = $1 WHERE name = $2`, hmacSHA256, KeyPepper)
		exec(t, d, `UPDATE service_key SET state = 'retired' WHERE name = $1`, KeyPepper)
		refused("no active version", ErrDamaged)
		exec(t, d, `UPDATE service_key SET state = 'active' WHERE name = $1`, KeyPepper)

		exec(t, d, `UPDATE kek SET version = 2`)
		refused("a KEK without its wrap", ErrDamaged)
		exec(t, d, `UPDATE kek_wrap SET kek_version = 2`)
		refused("a KEK of another version", ErrEnvironment)
		exec(t, d, `UPDATE kek SET version = 1`)
		exec(t, d, `UPDATE kek_wrap SET kek_version = 1`)
		exec(t, d, `UPDATE kek SET algorithm = 'none'`)
		if _, err := Open(ctx, by, Options{Create: true, DB: d, Root: root}); err == nil {
			t.Error("an unknown algorithm was taken")
		}
		exec(t, d, `UPDATE kek SET algorithm = $1`, aesGCM)
		exec(t, d, `UPDATE kek_wrap SET wrapped = $1`, []byte("altered"))
		refused("the wrapped KEK altered", ErrUnwrap)
	})
}

// TestForeignKeys: another root, and keys copied from another environment or installation, are
// refused by name.
func TestForeignKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		k := openKeyring(t, d, root)
		c := k.create(t)

		if _, err := Open(ctx, by, Options{Create: true, DB: d, Root: testRoot(t)}); !errors.Is(err, ErrOtherRoot) || !strings.Contains(err.Error(), root.ID()) {
			t.Errorf("another root: %v", err)
		}
		if _, err := Open(ctx, by, Options{Create: true, DB: d, Root: &wrapHook{Root: downRoot{root}}}); !problem.Is(err, "keys-unavailable") {
			t.Errorf("a root that does not answer: %v", err)
		}

		// The same root holds both environments; all rows of keys are copied.
		o := dbtest.SQLite(t)
		o.Environment = "live"
		live, err := db.Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = live.Close() }()
		copyKeys(t, d, live, c)
		_, err = Open(ctx, by, Options{Create: true, DB: live, Root: root, Record: k.events.record})
		if !errors.Is(err, ErrEnvironment) || !strings.Contains(err.Error(), "live") || !strings.Contains(err.Error(), "configure") {
			t.Errorf("another environment: %v", err)
		}

		twin := dbtest.New(t, d.Engine())
		copyKeys(t, d, twin, c)
		if _, err := Open(ctx, by, Options{Create: true, DB: twin, Root: root, Record: k.events.record}); !errors.Is(err, ErrEnvironment) {
			t.Errorf("another installation: %v", err)
		}

		// Only the customer's row is copied, into an installation with keys of its own.
		third := dbtest.Open(t, d.Engine())
		other := openKeyring(t, third, root)
		copyData(t, d, third, c)
		if _, err := other.ring(t, c); !errors.Is(err, ErrUnwrap) {
			t.Errorf("another installation's customer: %v", err)
		}
	})
}

type downRoot struct{ Root }

func (downRoot) Unwrap(context.Context, []byte, []byte) ([]byte, error) {
	return nil, keysUnavailable(errors.New("connection refused"))
}

func copyKeys(t *testing.T, from, to *db.DB, c customer.ID) {
	t.Helper()
	ctx := t.Context()
	var keks []kekRow
	var services []serviceRow
	if err := from.View(ctx, func(tx *db.Tx) (err error) {
		if keks, err = selectKEKs(ctx, tx); err != nil {
			return err
		}
		services, err = selectServiceKeys(ctx, tx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	update(t, to, func(tx *db.Tx) error {
		for _, r := range keks {
			if err := insertKEK(ctx, tx, r); err != nil {
				return err
			}
		}
		for _, r := range services {
			if err := insertServiceKey(ctx, tx, r); err != nil {
				return err
			}
		}
		return nil
	})
	copyData(t, from, to, c)
}

func copyData(t *testing.T, from, to *db.DB, c customer.ID) {
	t.Helper()
	ctx := t.Context()
	var rows []dataRow
	if err := from.View(ctx, func(tx *db.Tx) (err error) { rows, err = selectDataKeys(ctx, tx, c); return err }); err != nil {
		t.Fatal(err)
	}
	update(t, to, func(tx *db.Tx) error {
		_, err := insertDataKey(ctx, tx, c, rows[0])
		return err
	})
}

// TestManyVersions: rows as rotations will leave them open already.
func TestManyVersions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		k := openKeyring(t, d, root)
		c := k.create(t)
		ring, err := k.ring(t, c)
		if err != nil {
			t.Fatal(err)
		}
		old := ring.Seal(place, []byte("old"))
		oldMAC, _ := k.MAC(KeyToken, []byte("t"))
		oldBlind := k.BlindIndex("f", []byte("v"))
		oldSigner := k.CheckpointSigner()

		// KEK 2 under the same root; KEK 1 is retired and still wraps the old rows.
		material := newMaterial()
		wrapped, err := root.Wrap(ctx, material, k.kekContext(2))
		if err != nil {
			t.Fatal(err)
		}
		held, err := holdKEK(2, material)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, d, `UPDATE kek SET state = 'retired'`)
		update(t, d, func(tx *db.Tx) error {
			vouch := k.keys.Load().kek.Seal(vouchPlace(2), held.digest)
			return insertKEK(ctx, tx, kekRow{version: 2, algorithm: aesGCM, state: active, madeAt: 2, vouch: vouch, wraps: []kekWrap{
				{"awskms://elsewhere", []byte("the same key, wrapped by a root that it moves to")}, {root.ID(), wrapped},
			}})
		})
		key, err := seal.NewKey(2, material)
		if err != nil {
			t.Fatal(err)
		}
		kek2, err := seal.NewRing(k.scope(kekName), key)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, d, `UPDATE data_key SET state = 'compromised'`)
		for _, name := range []string{KeyToken, KeyBlindIndex, KeyCheckpoint} {
			exec(t, d, `UPDATE service_key SET state = 'retired' WHERE name = $1`, name)
		}
		update(t, d, func(tx *db.Tx) error {
			_, err := insertDataKey(ctx, tx, c, dataRow{version: 2, kekVersion: 2, state: active, wrapped: kek2.Seal(dataPlace(c, 2), newMaterial()), madeAt: 2})
			if err != nil {
				return err
			}
			for _, def := range serviceDefinitions {
				if def.name != KeyToken && def.name != KeyBlindIndex && def.name != KeyCheckpoint {
					continue
				}
				if err := insertServiceKey(ctx, tx, serviceRow{name: def.name, version: 2, kekVersion: 2, algorithm: def.algorithm,
					state: active, wrapped: kek2.Seal(servicePlace(def.name, def.algorithm, 2), newMaterial()), madeAt: 2}); err != nil {
					return err
				}
			}
			return nil
		})

		// A process that holds only KEK 1 says that it cannot, for now.
		k.clock.Advance(defaultLease)
		if _, err := k.ring(t, c); !problem.Is(err, "keys-unavailable") {
			t.Errorf("without KEK 2: %v", err)
		}

		now := openWith(t, Options{DB: d, Root: root, AcceptStates: true})
		ring, err = now.ring(t, c)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.Open(place, old); err != nil || string(got) != "old" || ring.Version() != 2 {
			t.Errorf("%q, %v, version %d", got, err, ring.Version())
		}
		if mac, version := now.MAC(KeyToken, []byte("t")); version != 2 || bytes.Equal(mac, oldMAC) {
			t.Errorf("MAC of version %d", version)
		}
		if mac, err := now.MACVersion(KeyToken, 1, []byte("t")); err != nil || !bytes.Equal(mac, oldMAC) {
			t.Errorf("MAC of version 1: %v", err)
		}
		blinds := now.BlindIndexes("f", []byte("v"))
		if len(blinds) != 2 || blinds[0].Version != 2 || blinds[1].Version != 1 || !bytes.Equal(blinds[1].Value, oldBlind) ||
			!bytes.Equal(now.BlindIndex("f", []byte("v")), blinds[0].Value) {
			t.Errorf("blind indexes %v", blinds)
		}
		signed, err := note.Sign(&note.Note{Text: "checkpoint\n"}, oldSigner)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := note.Open(signed, now.CheckpointVerifiers()); err != nil {
			t.Errorf("an old checkpoint: %v", err)
		}
		if now.CheckpointSigner().KeyHash() == oldSigner.KeyHash() {
			t.Error("the old key still signs")
		}
		fresh := now.create(t)
		if err := d.View(ctx, func(tx *db.Tx) error {
			rows, err := selectDataKeys(ctx, tx, fresh)
			if err == nil && rows[0].kekVersion != 2 {
				err = fmt.Errorf("wrapped by KEK %d", rows[0].kekVersion)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	})
}

func TestList(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := openWith(t, Options{DB: d, Root: testRoot(t), KEKEvery: 90 * 24 * time.Hour, ServiceEvery: 365 * 24 * time.Hour})
		for range 3 {
			k.create(t)
		}
		list, err := k.List(t.Context(), by)
		if err != nil {
			t.Fatal(err)
		}
		madeAt := k.clock.Now()
		var never time.Time
		kek, year := madeAt.Add(90*24*time.Hour), madeAt.Add(365*24*time.Hour)
		want := []Info{
			{"kek", 1, "AES-256-GCM", "active", madeAt, 12, leastBlock + 10, k.root.ID(), kek},
			{"customer", 1, "AES-256-GCM", "active", madeAt, 3, -1, "kek/1", never},
			{"backup", 1, "AES-256-GCM", "active", madeAt, -1, leastBlock, "kek/1", year},
			{"blind-index", 1, "HMAC-SHA-256", "active", madeAt, 0, -1, "kek/1", year},
			{"checkpoint", 1, "Ed25519", "active", madeAt, -1, -1, "kek/1", year},
			{"event", 1, "AES-256-GCM", "active", madeAt, -1, leastBlock, "kek/1", year},
			{"event-mac", 1, "HMAC-SHA-256", "active", madeAt, -1, -1, "kek/1", year},
			{"evidence", 1, "Ed25519", "active", madeAt, -1, -1, "kek/1", year},
			{"outbox", 1, "AES-256-GCM", "active", madeAt, -1, leastBlock, "kek/1", year},
			{"pepper", 1, "HMAC-SHA-256", "active", madeAt, -1, -1, "kek/1", year},
			{"token", 1, "HMAC-SHA-256", "active", madeAt, -1, -1, "kek/1", year},
		}
		if !slices.Equal(list, want) {
			t.Errorf("got  %v\nwant %v", list, want)
		}
		if last := k.events.all[len(k.events.all)-1]; last != "keyring.keys.list keys" {
			t.Errorf("event %q", last)
		}
	})
}

func TestMACsAndBlindIndexes(t *testing.T) {
	k := openKeyring(t, dbtest.Open(t, db.SQLite), testRoot(t))
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 3), 0, 3)
		a, b := parts.Draw(t, "a"), parts.Draw(t, "b")
		macA, version := k.MAC(KeyToken, a...)
		macB, err := k.MACVersion(KeyToken, version, b...)
		if err != nil {
			t.Fatal(err)
		}
		if same := slices.EqualFunc(a, b, bytes.Equal); same != bytes.Equal(macA, macB) {
			t.Fatalf("%x and %x: same %v", a, b, same)
		}
		if other, _ := k.MAC(KeyPepper, a...); bytes.Equal(macA, other) {
			t.Fatal("two keys give the same MAC")
		}
	})
	if _, err := k.MACVersion(KeyToken, 2); !errors.Is(err, seal.ErrKeyVersion) {
		t.Errorf("an unknown version: %v", err)
	}
	x := k.BlindIndex("phone", []byte("+447700900123"))
	if len(x) != 32 || !bytes.Equal(x, k.BlindIndex("phone", []byte("+447700900123"))) {
		t.Errorf("index %x", x)
	}
	for _, other := range [][]byte{k.BlindIndex("iban", []byte("+447700900123")), k.BlindIndex("phone", []byte("+447700900124"))} {
		if bytes.Equal(x, other) {
			t.Error("two fields or values share an index")
		}
	}
	for _, f := range []func(){
		func() { k.Service("none") },
		func() { k.Service(KeyPepper) },
		func() { k.MAC(KeyEvent) },
		func() { _, _ = k.MACVersion(KeyCheckpoint, 1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a key that does not exist was given")
				}
			}()
			f()
		}()
	}
}

func TestCheckpoints(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	k := openKeyring(t, d, testRoot(t))
	if got, want := k.CheckpointSigner().Name(), "strongroom/dev/"+d.Installation(); got != want {
		t.Errorf("name %q, want %q", got, want)
	}
	signed, err := note.Sign(&note.Note{Text: "strongroom\n1\nroot\n"}, k.CheckpointSigner())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := note.Open(signed, k.CheckpointVerifiers()); err != nil || len(n.Sigs) != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	if _, err := note.Open(bytes.Replace(signed, []byte("\n1\n"), []byte("\n2\n"), 1), k.CheckpointVerifiers()); err == nil {
		t.Error("an altered checkpoint was accepted")
	}
}

func TestCacheBounds(t *testing.T) {
	manual := clock.NewManual(time.Unix(1, 0))
	c, err := newCache(3, time.Minute, manual, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ring, err := ringOf("s", newMaterial())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []customer.ID{"a", "b", "c"} {
		c.put(id, ring)
	}
	c.get("a")
	c.put("d", ring) // b is the one not used longest
	for id, want := range map[customer.ID]bool{"a": true, "b": false, "c": true, "d": true} {
		if got := c.get(id) != nil; got != want {
			t.Errorf("%s: %v", id, got)
		}
	}
	c.forget("a")
	c.put("a", ring)
	if c.get("a") != nil {
		t.Error("came back after forget")
	}
	manual.Advance(time.Minute)
	if c.get("c") != nil || len(c.entries) != 0 || c.order.Len() != 0 {
		t.Errorf("%d left after the lease", len(c.entries))
	}
	c.put("a", ring)
	if c.get("a") == nil {
		t.Error("still blocked after the lease")
	}
}

// TestMetricsTwice: two keyrings in one process share their metrics.
func TestMetricsTwice(t *testing.T) {
	d, root, registry := dbtest.Open(t, db.SQLite), testRoot(t), prometheus.NewRegistry()
	for range 2 {
		if _, err := Open(t.Context(), by, Options{Create: true, DB: d, Root: root, Record: new(events).record, Metrics: registry}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNothingLeaks: no key shows in the database's rows, in what prints, or in the log.
func TestNothingLeaks(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var log bytes.Buffer
		e := new(events)
		k, err := Open(t.Context(), by, Options{Create: true, DB: d, Root: testRoot(t), Record: e.record, Log: slog.New(slog.NewJSONHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "keyring", k, "signer", k.CheckpointSigner())
		pepper := k.service(KeyPepper, hmacSHA256).macs[0].material
		printed := fmt.Sprintf("%v %+v %#v %s %x %v %+v %#v", k, k, k, k, k, k.CheckpointSigner(), k.CheckpointSigner(), k.CheckpointSigner()) +
			fmt.Sprintf("%v %+v %#v", *k.service(KeyPepper, hmacSHA256), *k.service(KeyPepper, hmacSHA256), *k.service(KeyPepper, hmacSHA256)) +
			fmt.Sprintf("%v %+v %#v", k.keys.Load().held, *k.keys.Load(), *k.keys.Load()) + log.String() + strings.Join(e.all, " ")
		for _, never := range []string{string(pepper), fmt.Sprintf("%x", pepper), fmt.Sprint(pepper), "PrivateKey", "aead"} {
			if strings.Contains(printed, never) {
				t.Errorf("%q shows in %s", never, printed)
			}
		}
		if err := d.View(t.Context(), func(tx *db.Tx) error {
			rows, err := selectServiceKeys(t.Context(), tx)
			for _, r := range rows {
				if bytes.Contains(r.wrapped, pepper) {
					t.Errorf("%s stands in the clear", r.name)
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkCustomer(b *testing.B) {
	k := openKeyring(b, dbtest.Open(b, db.SQLite), testRoot(b))
	c := k.create(b)
	if err := k.db.View(b.Context(), func(tx *db.Tx) error {
		b.Run("cached", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Customer(b.Context(), tx, c); err != nil {
					b.Fatal(err)
				}
			}
		})
		k.Forget(c)
		b.Run("loaded", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Customer(b.Context(), tx, c); err != nil {
					b.Fatal(err)
				}
			}
		})
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkMAC(b *testing.B) {
	k := openKeyring(b, dbtest.Open(b, db.SQLite), testRoot(b))
	token := make([]byte, 32)
	b.Run("mac", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			k.MAC(KeyToken, token)
		}
	})
	b.Run("blind", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			k.BlindIndex("profile.phone", token)
		}
	})
}

func BenchmarkLocalRoot(b *testing.B) {
	path := b.TempDir() + "/root.key"
	if err := CreateLocalRoot(path, goodPassphrase); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := OpenRoot(b.Context(), RootConfig{Path: path, Passphrase: goodPassphrase}); err != nil {
			b.Fatal(err)
		}
	}
}
