package keyring

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// openRotating opens a keyring that rotates as fast as it can, by the real clock.
func openRotating(t testing.TB, d *db.DB, root Root) setup {
	t.Helper()
	return openWith(t, Options{DB: d, Root: root, Clock: clock.System, Publish: time.Millisecond, Rate: 1 << 30})
}

// work runs the keyring's jobs until stop is called, which the end of the test does too.
func (s setup) work(t testing.TB) (wake, stop func()) {
	t.Helper()
	r := jobs.New(s.db, jobs.Options{})
	for _, j := range s.Jobs() {
		r.Add(j)
	}
	r.Start(context.Background())
	stop = sync.OnceFunc(func() {
		if err := r.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return func() { r.Wake(JobRotation) }, stop
}

// finish drives the open rotation to its end, and has this process notice.
func (s setup) finish(t testing.TB, wake func()) Rotation {
	t.Helper()
	r := s.until(t, wake, func(r Rotation) bool { return !r.Ended.IsZero() })
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (s setup) until(t testing.TB, wake func(), ok func(Rotation) bool) Rotation {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		wake()
		r, err := s.Rotation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ok(r) {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("the rotation stays at %+v", r)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// populate makes n customers at once, each with a value sealed under their key.
func (s setup) populate(t testing.TB, n int) map[customer.ID][]byte {
	t.Helper()
	all := make(map[customer.ID][]byte)
	for n > 0 {
		batch := min(n, 1000)
		n -= batch
		update(t, s.db, func(tx *db.Tx) error {
			for range batch {
				c := customer.NewID()
				ring, err := s.CreateCustomer(t.Context(), tx, by, c)
				if err != nil {
					return err
				}
				all[c] = ring.Seal(place, []byte(c))
			}
			return nil
		})
	}
	return all
}

// opens checks that what was sealed under c's key still opens, with the key from the database.
func (s setup) opens(ctx context.Context, c customer.ID, sealed []byte) error {
	s.cache.forget(c)
	return s.db.View(ctx, func(tx *db.Tx) error {
		ring, err := s.Customer(ctx, tx, c)
		if err != nil {
			return err
		}
		got, err := ring.Open(place, sealed)
		if err == nil && string(got) != string(c) {
			err = fmt.Errorf("%s opens to %q", c, got)
		}
		return err
	})
}

func (e *events) since(n int) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.all[n:]), func(s string) bool { return strings.HasPrefix(s, ActionCustomerCreate) })
}

// TestRotateKEK: while the KEK is rotated, two processes make and open keys and nothing fails; then
// nothing is wrapped by the old one, and it can be destroyed.
func TestRotateKEK(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		a, b := openRotating(t, d, root), openRotating(t, d, root)
		all := a.populate(t, 2*rewrapBatch+17)
		before := len(a.events.all)
		pepper, _ := a.MAC(KeyPepper, []byte("code"))
		wake, _ := a.work(t)
		b.work(t)

		if _, err := a.PauseRotation(ctx, by); !problem.Is(err, "no-rotation") {
			t.Errorf("pause without a rotation: %v", err)
		}
		begun, err := a.RotateKEK(ctx, by)
		if err != nil || begun.Version != 2 || begun.Phase != PhasePublished {
			t.Fatalf("%+v, %v", begun, err)
		}
		if _, err := b.RotateKEK(ctx, by); !problem.Is(err, "rotation-under-way") {
			t.Errorf("a second rotation: %v", err)
		}
		stop, failures := make(chan struct{}), make(chan error, 4)
		var load sync.WaitGroup
		var deeds atomic.Int64
		ids := make([]customer.ID, 0, len(all))
		for c := range all {
			ids = append(ids, c)
		}
		for i, s := range []setup{a, b, a, b} {
			load.Go(func() {
				for n := i; ; n += 7 {
					select {
					case <-stop:
						return
					default:
					}
					err := d.Update(ctx, func(tx *db.Tx) error {
						_, err := s.CreateCustomer(ctx, tx, by, customer.NewID())
						return err
					})
					c := ids[n%len(ids)]
					if err = errors.Join(err, s.opens(ctx, c, all[c])); err != nil {
						failures <- err
						return
					}
					deeds.Add(1)
				}
			})
		}
		done := a.finish(t, wake)
		close(stop)
		load.Wait()
		select {
		case err := <-failures:
			t.Fatalf("a request failed during the rotation: %v", err)
		default:
		}
		if deeds.Load() == 0 {
			t.Error("there was no load")
		}
		if done.ID != begun.ID || done.Failed != 0 || done.Done < int64(len(all)+len(serviceDefinitions)) || done.Rate <= 0 {
			t.Errorf("%+v", done)
		}
		want := []string{
			"keyring.kek.publish kek 2", "keyring.kek.activate kek 2",
			fmt.Sprintf("keyring.rotation.complete kek 2, %d keys, 0 failed", done.Done),
		}
		// The job of either process may have done it.
		got := append(a.events.since(before), b.events.since(0)...)
		if slices.Sort(got); !slices.Equal(got, []string{want[1], want[0], want[2]}) {
			t.Errorf("events %q", got)
		}
		if n := count(t, d, `SELECT COUNT(*) FROM data_key WHERE kek_version <> 2`) + count(t, d, `SELECT COUNT(*) FROM service_key WHERE kek_version <> 2`); n != 0 {
			t.Errorf("KEK 1 still wraps %d keys", n)
		}

		if err := a.DestroyKEK(ctx, by, 1); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, `SELECT COUNT(*) FROM kek_wrap WHERE kek_version = 1`); n != 0 {
			t.Error("the wrapped KEK 1 is still there")
		}
		if held := a.keys.Load().kek.Versions(); !slices.Equal(held, []uint32{2}) {
			t.Errorf("KEKs %v are held", held)
		}
		again := openKeyring(t, d, root)
		for c, sealed := range all {
			if err := again.opens(ctx, c, sealed); err != nil {
				t.Fatalf("after the rotation: %v", err)
			}
		}
		if mac, _ := again.MAC(KeyPepper, []byte("code")); string(mac) != string(pepper) {
			t.Error("the pepper changed")
		}
	})
}

func TestDestroyRefused(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		keeper := ""
		k := openWith(t, Options{DB: d, Root: root, Clock: clock.System, Publish: time.Millisecond,
			Needed: func(_ context.Context, tx *db.Tx, name string, version uint32) (string, error) {
				if tx == nil || name != "kek" || version != 1 {
					return "", fmt.Errorf("asked for %s/%d", name, version)
				}
				return keeper, nil
			}})
		k.create(t)
		wake, stop := k.work(t)
		refuse := func(name string, version uint32, slug, say string) {
			t.Helper()
			before := len(k.events.all)
			err := k.DestroyKEK(ctx, by, version)
			if !problem.Is(err, slug) || !strings.Contains(err.Error(), say) {
				t.Errorf("%s: %v", name, err)
			}
			if k.keys.Load().held[1].key == nil || len(k.events.all) != before {
				t.Errorf("%s: refused, and yet something was done", name)
			}
		}
		refuse("active", 1, "key-needed", "active")
		refuse("absent", 9, "key-not-found", "")
		if _, err := k.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		refuse("published", 2, "key-needed", "published")
		k.finish(t, wake)
		stop()
		keeper = "backup 2026-01-02"
		refuse("in a backup", 1, "key-needed", "backup 2026-01-02")
		keeper = ""
		c := k.create(t)
		exec(t, d, `UPDATE data_key SET kek_version = 1 WHERE customer_id = $1`, c)
		refuse("it wraps a key", 1, "key-needed", "wraps 1 keys")
		exec(t, d, `UPDATE data_key SET kek_version = 2 WHERE customer_id = $1`, c)
		if err := k.DestroyKEK(ctx, by, 1); err != nil {
			t.Error(err)
		}
		if last := k.events.all[len(k.events.all)-1]; last != "keyring.kek.destroy kek 1" {
			t.Errorf("event %q", last)
		}
		if err := k.DestroyKEK(ctx, by, 1); !problem.Is(err, "key-not-found") {
			t.Errorf("destroyed twice: %v", err)
		}
	})
}

// TestRotationGoesOn: paused, stopped or followed by another process, a rotation goes on where it was.
func TestRotationGoesOn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		k := openWith(t, Options{DB: d, Root: root, Clock: clock.System, Publish: time.Millisecond, Rate: 20 * rewrapBatch})
		all := k.populate(t, 6*rewrapBatch)
		wake, stop := k.work(t)
		if _, err := k.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		k.until(t, wake, func(r Rotation) bool { return r.Done > 0 })
		paused, err := k.PauseRotation(ctx, by)
		if err != nil || !paused.Paused || !paused.Ended.IsZero() {
			t.Fatalf("%+v, %v", paused, err)
		}
		wake()
		stop() // what was begun is over
		r, err := k.Rotation(ctx)
		if err != nil || r.Done != paused.Done || r.Done == 0 || r.Done >= r.Total || r.Estimate == 0 {
			t.Fatalf("paused at %+v, now %+v, %v", paused, r, err)
		}

		next := openRotating(t, d, root)
		wake, _ = next.work(t)
		wake()
		if resumed, err := next.ResumeRotation(ctx, by); err != nil || resumed.Paused {
			t.Fatalf("%+v, %v", resumed, err)
		}
		done := next.finish(t, wake)
		if done.Done != done.Total || done.Failed != 0 {
			t.Errorf("%+v: some keys were wrapped twice or not at all", done)
		}
		for c, sealed := range all {
			if err := next.opens(ctx, c, sealed); err != nil {
				t.Fatal(err)
			}
		}
		if got := next.events.since(0); !slices.Equal(got, []string{"keyring.rotation.resume kek 2",
			fmt.Sprintf("keyring.rotation.complete kek 2, %d keys, 0 failed", done.Done)}) {
			t.Errorf("events %q", got)
		}
	})
}

// TestRotationIsFenced: a process that lost the lease leaves nothing behind.
func TestRotationIsFenced(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		k := openRotating(t, d, testRoot(t))
		k.create(t)
		if _, err := k.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		var row rotationRow
		if err := d.View(ctx, func(tx *db.Tx) (err error) { row, err = selectRotation(ctx, tx, ""); return err }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
		late := jobs.Lease{Name: JobRotation, Holder: "late", Epoch: 1}
		if err := k.activateKEK(ctx, late, row); !errors.Is(err, errStopped) {
			t.Errorf("activated without the lease: %v", err)
		}
		epoch, held, err := jobs.Acquire(ctx, d, clock.System, JobRotation, "late", time.Minute)
		if err != nil || !held {
			t.Fatal(err)
		}
		late.Epoch = epoch
		if err := k.activateKEK(ctx, late, row); err != nil {
			t.Fatal(err)
		}
		late.Epoch++
		if err := k.rewrap(ctx, late, row); !errors.Is(err, errStopped) {
			t.Errorf("wrapped anew without the lease: %v", err)
		}
		if n := count(t, d, `SELECT COUNT(*) FROM data_key WHERE kek_version = 1`); n != 1 {
			t.Error("the key was wrapped anew by a process without the lease")
		}
	})
}

// TestErasedStaysErased: a key that was destroyed after it was read for wrapping does not come back.
func TestErasedStaysErased(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		k := openKeyring(t, d, testRoot(t))
		gone, emptied, there := k.create(t), k.create(t), k.create(t)
		var read []customerRow
		if err := d.View(ctx, func(tx *db.Tx) (err error) {
			read, err = selectWrapped(ctx, tx, "", 0, 2, 10)
			return err
		}); err != nil || len(read) != 3 {
			t.Fatalf("%d rows, %v", len(read), err)
		}
		erase(t, k.Keyring, gone)
		exec(t, d, `UPDATE data_key SET wrapped = NULL, state = 'destroyed' WHERE customer_id = $1`, emptied)
		update(t, d, func(tx *db.Tx) error {
			n, err := rewrapDataKeys(ctx, tx, read, 2)
			if err == nil && n != 1 {
				err = fmt.Errorf("%d keys were written", n)
			}
			return err
		})
		if n := count(t, d, `SELECT COUNT(*) FROM data_key WHERE wrapped IS NOT NULL`); n != 1 {
			t.Errorf("%d keys are there", n)
		}
		_ = there
	})
}

// TestDamagedKeyStopsNoRotation: what does not open is counted and keeps the old KEK alive.
func TestDamagedKeyStopsNoRotation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		k := openRotating(t, d, testRoot(t))
		bad := k.create(t)
		k.populate(t, rewrapBatch)
		exec(t, d, `UPDATE data_key SET wrapped = $1 WHERE customer_id = $2`, []byte("altered"), bad)
		wake, _ := k.work(t)
		if _, err := k.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		done := k.finish(t, wake)
		if done.Failed != 1 || done.Done != done.Total-1 {
			t.Errorf("%+v", done)
		}
		if err := k.DestroyKEK(ctx, by, 1); !problem.Is(err, "key-needed") {
			t.Errorf("destroyed although a key needs it: %v", err)
		}
	})
}

// TestStaleProcess: a process that has not noticed a rotation never wraps with a retired KEK, and opens
// what the new one wraps.
func TestStaleProcess(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		a, stale := openRotating(t, d, root), openRotating(t, d, root)
		all := a.populate(t, 3)
		wake, _ := a.work(t)
		if _, err := a.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		a.finish(t, wake)
		for c, sealed := range all {
			if err := stale.opens(ctx, c, sealed); err != nil {
				t.Errorf("opens: %v", err)
			}
		}
		stale2 := openWith(t, Options{DB: d, Root: root, Clock: clock.System, Publish: time.Millisecond})
		if _, err := a.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		a.finish(t, wake)
		c := stale2.create(t)
		if n := count(t, d, `SELECT kek_version FROM data_key WHERE customer_id = '`+string(c)+`'`); n != 3 {
			t.Errorf("wrapped by KEK %d", n)
		}
	})
}

// TestRootDownDuringRotation: without its root key's service a process goes on with what it holds, says
// for anything else that it cannot for now, and recovers by itself.
func TestRootDownDuringRotation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		a := openRotating(t, d, root)
		flaky := &switchRoot{Root: root}
		b := openRotating(t, d, flaky)
		old := a.populate(t, 1)
		flaky.down.Store(true)
		wake, _ := a.work(t)
		if _, err := a.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		if err := b.Reload(ctx); !problem.Is(err, "keys-unavailable") {
			t.Errorf("reload: %v", err)
		}
		for c, sealed := range old {
			if err := b.opens(ctx, c, sealed); err != nil && !problem.Is(err, "keys-unavailable") {
				t.Errorf("during: %v", err)
			}
		}
		a.finish(t, wake)
		create := func() error {
			return d.Update(ctx, func(tx *db.Tx) error {
				_, err := b.CreateCustomer(ctx, tx, by, customer.NewID())
				return err
			})
		}
		if err := create(); !problem.Is(err, "keys-unavailable") {
			t.Errorf("a key under a KEK that is not here: %v", err)
		}
		calls := flaky.calls.Load()
		for range 20 {
			if err := create(); !problem.Is(err, "keys-unavailable") {
				t.Errorf("again: %v", err)
			}
		}
		if n := flaky.calls.Load() - calls; n > 3 {
			t.Errorf("every request asked the service that is down: %d calls", n)
		}
		if mac, _ := b.MAC(KeyPepper, []byte("x")); mac == nil {
			t.Error("keys in memory stopped serving")
		}
		flaky.down.Store(false)
		b.opening.until = time.Time{}
		if err := create(); err != nil {
			t.Errorf("recovered: %v", err)
		}
		for c, sealed := range old {
			if err := b.opens(ctx, c, sealed); err != nil {
				t.Errorf("recovered: %v", err)
			}
		}
	})
}

type switchRoot struct {
	Root
	down  atomic.Bool
	calls atomic.Int64
}

func (r *switchRoot) Unwrap(ctx context.Context, wrapped, context []byte) ([]byte, error) {
	r.calls.Add(1)
	if r.down.Load() {
		return nil, keysUnavailable(errors.New("connection refused"))
	}
	return r.Root.Unwrap(ctx, wrapped, context)
}

// TestPlantedKEK: a KEK that the root opens and nobody vouches for is refused, by a process that runs
// and by one that starts.
func TestPlantedKEK(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		k := openRotating(t, d, root)
		c := k.create(t)
		known, row, err := k.newKEK(ctx, 2) // by somebody who may wrap, and write to the database
		if err != nil {
			t.Fatal(err)
		}
		other := openKeyring(t, dbtest.Open(t, d.Engine()), root).keys.Load().kek
		for name, vouch := range map[string][]byte{
			"none":            nil,
			"of another KEK":  k.keys.Load().kek.Seal(vouchPlace(2), known.digest[:31]),
			"moved":           k.keys.Load().kek.Seal(vouchPlace(3), known.digest),
			"of a foreigner":  other.Seal(vouchPlace(2), known.digest),
			"of its own":      selfVouch(t, k, known),
			"not even sealed": []byte("trust me"),
		} {
			exec(t, d, `UPDATE kek SET state = 'retired'`)
			update(t, d, func(tx *db.Tx) error {
				row.state, row.vouch = active, vouch
				return errors.Join(insertKEK(ctx, tx, row), raiseGeneration(ctx, tx))
			})
			k.opening.until = time.Time{}
			if err := k.Reload(ctx); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "vouches") {
				t.Errorf("%s: reload: %v", name, err)
			}
			if k.keys.Load().kek.Version() != 1 {
				t.Errorf("%s: taken over", name)
			}
			if err := d.Update(ctx, func(tx *db.Tx) error {
				_, err := k.CreateCustomer(ctx, tx, by, customer.NewID())
				return err
			}); err == nil {
				t.Errorf("%s: a key was made", name)
			}
			if again, err := Open(ctx, by, Options{DB: d, Root: root, Record: k.events.record}); !errors.Is(err, ErrDamaged) || again != nil {
				t.Errorf("%s: open: %v", name, err)
			}
			exec(t, d, `DELETE FROM kek_wrap WHERE kek_version = 2`)
			exec(t, d, `DELETE FROM kek WHERE version = 2`)
			exec(t, d, `UPDATE kek SET state = 'active'`)
		}
		if _, err := openWith(t, Options{DB: d, Root: root, AcceptStates: true}).ring(t, c); err != nil {
			t.Error(err)
		}
	})
}

func selfVouch(t *testing.T, k setup, held heldKEK) []byte {
	t.Helper()
	ring, err := seal.NewRing(k.scope(kekName), held.key)
	if err != nil {
		t.Fatal(err)
	}
	return ring.Seal(vouchPlace(2), held.digest)
}

// TestDestroyInAnyOrder: the KEKs that are left stay vouched for.
func TestDestroyInAnyOrder(t *testing.T) {
	d, root := dbtest.Open(t, db.SQLite), testRoot(t)
	k := openRotating(t, d, root)
	all := k.populate(t, 2)
	wake, _ := k.work(t)
	for range 3 {
		if _, err := k.RotateKEK(t.Context(), by); err != nil {
			t.Fatal(err)
		}
		k.finish(t, wake)
	}
	for _, version := range []uint32{2, 1, 3} {
		if err := k.DestroyKEK(t.Context(), by, version); err != nil {
			t.Fatal(err)
		}
		again := openKeyring(t, d, root)
		for c, sealed := range all {
			if err := again.opens(t.Context(), c, sealed); err != nil {
				t.Errorf("without KEK %d: %v", version, err)
			}
		}
	}
}

func TestCompromiseKEK(t *testing.T) {
	for _, test := range []struct {
		name    string
		before  func(t *testing.T, k setup, wake func())
		version uint32
		slug    string
		states  []string // of KEK 1, 2 … once all is done
		events  []string
	}{
		{name: "absent", version: 7, slug: "key-not-found", states: []string{active}},
		{name: "the active one", version: 1, states: []string{compromised, active},
			events: []string{"keyring.kek.compromise kek 1", "keyring.kek.publish kek 2", "keyring.kek.activate kek 2", "keyring.rotation.complete kek 2, 12 keys, 0 failed"}},
		{name: "a retired one that nothing needs", version: 1, states: []string{compromised, active},
			before: func(t *testing.T, k setup, wake func()) {
				if _, err := k.RotateKEK(t.Context(), by); err != nil {
					t.Fatal(err)
				}
				k.finish(t, wake)
			},
			events: []string{"keyring.kek.compromise kek 1"}},
		{name: "a retired one that wraps", version: 1, states: []string{compromised, retired, active},
			before: func(t *testing.T, k setup, wake func()) {
				if _, err := k.RotateKEK(t.Context(), by); err != nil {
					t.Fatal(err)
				}
				k.finish(t, wake)
				restoreUnder(t, k, 1)
			},
			events: []string{"keyring.kek.compromise kek 1", "keyring.kek.publish kek 3", "keyring.kek.activate kek 3", "keyring.rotation.complete kek 3, 13 keys, 0 failed"}},
		{name: "the active one while its successor is published", version: 1, states: []string{compromised, active},
			before: func(t *testing.T, k setup, _ func()) { publishSlowly(t, k) },
			events: []string{"keyring.kek.compromise kek 1", "keyring.kek.activate kek 2", "keyring.rotation.complete kek 2, 12 keys, 0 failed"}},
		{name: "a published one", version: 2, states: []string{active, destroyed},
			before: func(t *testing.T, k setup, _ func()) { publishSlowly(t, k) },
			events: []string{"keyring.kek.compromise kek 2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, d *db.DB) {
				ctx, root := t.Context(), testRoot(t)
				registry := prometheus.NewRegistry()
				k := openWith(t, Options{DB: d, Root: root, Clock: clock.System, Publish: time.Millisecond, Metrics: registry})
				all := k.populate(t, 3)
				wake, _ := k.work(t)
				if test.before != nil {
					test.before(t, k, wake)
				}
				before := len(k.events.all)
				_, err := k.CompromiseKEK(ctx, by, test.version)
				if test.slug != "" {
					if !problem.Is(err, test.slug) {
						t.Errorf("%v", err)
					}
				} else if err != nil {
					t.Fatal(err)
				}
				if r, err := k.Rotation(ctx); err == nil && r.Ended.IsZero() {
					k.finish(t, wake)
				}
				if got := k.events.since(before); !slices.Equal(got, test.events) {
					t.Errorf("events %q", got)
				}
				var states []string
				exposed := 0
				if err := d.View(ctx, func(tx *db.Tx) error {
					rows, err := selectKEKs(ctx, tx)
					for _, r := range rows {
						states = append(states, r.state)
						if r.state == compromised {
							exposed++
							n, err := countWrapped(ctx, tx, r.version)
							if err != nil || n != 0 {
								t.Errorf("it still wraps %d keys, %v", n, err)
							}
						}
					}
					return err
				}); err != nil || !slices.Equal(states, test.states) {
					t.Errorf("states %v, %v", states, err)
				}
				if got := gauge(t, registry, "strongroom_keyring_compromised_keys"); int(got) != exposed {
					t.Errorf("the metric says %v", got)
				}
				again := openKeyring(t, d, root)
				for c, sealed := range all {
					if err := errors.Join(k.opens(ctx, c, sealed), again.opens(ctx, c, sealed)); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// publishSlowly leaves a rotation whose new KEK is not due for an hour.
func publishSlowly(t *testing.T, k setup) {
	t.Helper()
	k.publish = time.Hour
	if _, err := k.RotateKEK(t.Context(), by); err != nil {
		t.Fatal(err)
	}
}

// restoreUnder makes a customer whose key an old KEK wraps, as a backup brings one back.
func restoreUnder(t *testing.T, k setup, version uint32) {
	t.Helper()
	c := k.create(t)
	old, err := k.keys.Load().kek.Under(version)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, k.db, `UPDATE data_key SET kek_version = $1, wrapped = $2 WHERE customer_id = $3`,
		version, old.Seal(dataPlace(c, 1), newMaterial()), c)
}

func gauge(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// TestScheduledRotation: a KEK that is old enough is rotated by the job, in the job's name.
func TestScheduledRotation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clk := clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		k := openWith(t, Options{DB: d, Root: testRoot(t), Clock: clk, Publish: time.Millisecond, KEKEvery: 90 * 24 * time.Hour})
		wake, _ := k.work(t)
		clk.Advance(90*24*time.Hour - time.Second)
		wake()
		if _, err := k.Rotation(t.Context()); !problem.Is(err, "no-rotation") {
			t.Errorf("too early: %v", err)
		}
		clk.Advance(time.Second)
		var r Rotation
		for deadline := time.Now().Add(time.Minute); r.Ended.IsZero(); time.Sleep(5 * time.Millisecond) {
			wake()
			clk.Advance(time.Millisecond)
			r, _ = k.Rotation(t.Context())
			if time.Now().After(deadline) {
				t.Fatalf("%+v", r)
			}
		}
		if r.Version != 2 || r.Reason != "scheduled" {
			t.Errorf("%+v", r)
		}
		wake()
		if again, err := k.Rotation(t.Context()); err != nil || again.ID != r.ID {
			t.Errorf("rotated twice: %+v, %v", again, err)
		}
	})
}

// TestAnyOrderOfDeeds: whatever is done to KEKs and customers in whatever order, what was sealed under a
// customer's key opens, in this process and in one that starts, until the customer is erased.
func TestAnyOrderOfDeeds(t *testing.T) {
	few(t, 30)
	rapid.Check(t, func(r *rapid.T) {
		d, root := dbtest.Open(t, db.SQLite), testRoot(t)
		k := openRotating(t, d, root)
		wake, stop := k.work(t)
		defer stop()
		sealed, erased := map[customer.ID][]byte{}, map[customer.ID]bool{}
		ctx := t.Context()
		fine := func(err error, slugs ...string) {
			for _, s := range slugs {
				if problem.Is(err, s) {
					return
				}
			}
			if err != nil {
				r.Fatal(err)
			}
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(*rapid.T) { maps(sealed, k.populate(t, 1)) },
			"rotate": func(*rapid.T) { _, err := k.RotateKEK(ctx, by); fine(err, "rotation-under-way"); wake() },
			"pause":  func(*rapid.T) { _, err := k.PauseRotation(ctx, by); fine(err, "no-rotation") },
			"resume": func(*rapid.T) { _, err := k.ResumeRotation(ctx, by); fine(err, "no-rotation"); wake() },
			"destroy": func(r *rapid.T) {
				fine(k.DestroyKEK(ctx, by, rapid.Uint32Range(1, 6).Draw(r, "version")), "key-needed", "key-not-found")
			},
			"compromise": func(r *rapid.T) {
				_, err := k.CompromiseKEK(ctx, by, rapid.Uint32Range(1, 6).Draw(r, "version"))
				fine(err, "key-not-found")
				wake()
			},
			"erase": func(r *rapid.T) {
				for c := range sealed {
					if !erased[c] {
						erase(t, k.Keyring, c)
						k.Forget(c)
						erased[c] = true
						return
					}
				}
			},
			"": func(*rapid.T) {
				again := openKeyring(t, d, root)
				for c, s := range sealed {
					for _, ring := range []setup{k, again} {
						err := ring.opens(ctx, c, s)
						if erased[c] && problem.Is(err, "customer-erased") {
							continue
						}
						if err != nil || erased[c] {
							r.Fatalf("%s (erased %v): %v", c, erased[c], err)
						}
					}
				}
			},
		})
	})
}

// few has rapid check less often than its flag says by default: each check opens databases.
func few(t *testing.T, n int) {
	t.Helper()
	checks := flag.Lookup("rapid.checks")
	if was := checks.Value.String(); was == checks.DefValue {
		if err := checks.Value.Set(strconv.Itoa(n)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = checks.Value.Set(was) }) // it was taken before
	}
}

func maps(to, from map[customer.ID][]byte) {
	for c, s := range from {
		to[c] = s
	}
}
