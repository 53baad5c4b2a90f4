package keyring

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"filippo.io/age"

	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// ageTestRoot returns a root whose identity is in the clear, as on a disk that forgets.
func ageTestRoot(t testing.TB) Root {
	t.Helper()
	identity, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "identity.age")
	if err := os.WriteFile(path, []byte("# made for a test\n"+identity.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := OpenRoot(t.Context(), RootConfig{URL: "age://" + path})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestAgeRoot(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "identity.age")
	if err := CreateAgeRoot(path, goodPassphrase); err != nil {
		t.Fatal(err)
	}
	if err := CreateAgeRoot(path, goodPassphrase); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	if raw, _ := os.ReadFile(path); bytes.Contains(raw, []byte("AGE-SECRET-KEY")) {
		t.Error("the identity stands in the file")
	}
	a, err := OpenRoot(ctx, RootConfig{URL: "age://" + path, Passphrase: goodPassphrase})
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenRoot(ctx, RootConfig{URL: "age://" + path, Passphrase: goodPassphrase})
	if err != nil || a.ID() != b.ID() || a.ID() == ageTestRoot(t).ID() {
		t.Fatalf("%v; ids %s", err, a.ID())
	}
	key := []byte("thirty-two bytes of key material")
	wrapped, err := a.Wrap(ctx, key, []byte("live"))
	if err != nil || bytes.Contains(wrapped, key) {
		t.Fatalf("%v", err)
	}
	if got, err := b.Unwrap(ctx, wrapped, []byte("live")); err != nil || !bytes.Equal(got, key) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := b.Unwrap(ctx, wrapped, []byte("uat")); !errors.Is(err, ErrContext) {
		t.Errorf("another context: %v", err)
	}
	if _, err := ageTestRoot(t).Unwrap(ctx, wrapped, []byte("live")); !errors.Is(err, ErrUnwrap) {
		t.Errorf("another identity: %v", err)
	}
	wrapped[len(wrapped)-1] ^= 1
	if _, err := b.Unwrap(ctx, wrapped, []byte("live")); !errors.Is(err, ErrUnwrap) {
		t.Errorf("altered: %v", err)
	}
	write := func(content string) string {
		p := filepath.Join(t.TempDir(), "identity.age")
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "age://" + p
	}
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRoot(ctx, RootConfig{URL: write(x.String())}); err != nil {
		t.Errorf("X25519: %v", err)
	}
	for _, row := range []struct {
		name, url  string
		passphrase string
		want       error
	}{
		{"wrong passphrase", "age://" + path, "incorrect horse battery", ErrPassphrase},
		{"no passphrase", "age://" + path, "", ErrPassphrase},
		{"absent", "age://" + path + "x", "", ErrNoRoot},
		{"empty", write(""), "", ErrDamaged},
		{"garbage", write("AGE-SECRET-KEY-1S3CRET\n"), "", ErrDamaged},
		{"two", write(x.String() + "\n" + x.String() + "\n"), "", ErrDamaged},
		{"relative", "age://identity.age", "", nil},
	} {
		root, err := OpenRoot(ctx, RootConfig{URL: row.url, Passphrase: secret.FromString(row.passphrase)})
		if root != nil || err == nil || row.want != nil && !errors.Is(err, row.want) {
			t.Errorf("%s: %v; want %v", row.name, err, row.want)
		} else if strings.Contains(err.Error(), "horse") || strings.Contains(err.Error(), "S3CRET") {
			t.Errorf("%s: a secret shows: %v", row.name, err)
		}
	}
}

// starts reports whether a server with the roots starts and opens what was sealed.
func starts(t *testing.T, d *db.DB, o Options, sealed map[string]func(setup) error) error {
	t.Helper()
	o.DB = d
	o.Record = new(events).record
	k, err := Open(t.Context(), by, o)
	if err != nil {
		return err
	}
	for _, opens := range sealed {
		if err := opens(setup{Keyring: k}); err != nil {
			return err
		}
	}
	return nil
}

// TestMoveRoot: there and back again, under customers, with a rotation in the middle.
func TestMoveRoot(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, local, identity := t.Context(), testRoot(t), ageTestRoot(t)
		manifest := filepath.Join(t.TempDir(), ManifestName)
		made, err := CreateFileKey(ctx, local, manifest, d.Environment(), "strongroom-1.db")
		if err != nil {
			t.Fatal(err)
		}
		k := openWith(t, Options{DB: d, Root: local, Manifest: manifest, Clock: clock.System, Publish: 1, Rate: 1 << 30})
		wake, _ := k.work(t)
		sealed := k.populate(t, 5)
		opens := map[string]func(setup) error{"customers": func(s setup) error {
			for c, b := range sealed {
				if err := s.opens(ctx, c, b); err != nil {
					return err
				}
			}
			return nil
		}}
		start := func(first, second Root) error {
			key, err := OpenFileKey(ctx, first, manifest, d.Environment())
			if err == nil && !key.Key.Equal(made.Key) {
				t.Error("another file key")
			}
			return errors.Join(err, starts(t, d, Options{Root: first, Second: second, Manifest: manifest}, opens))
		}
		for _, step := range []func(context.Context) error{
			func(ctx context.Context) error { _, err := k.RootMove(ctx); return err },
			func(ctx context.Context) error { _, err := k.ConfirmRootMove(ctx, by); return err },
			func(ctx context.Context) error { _, err := k.AbortRootMove(ctx, by); return err },
		} {
			if err := step(ctx); !problem.Is(err, "no-root-move") {
				t.Errorf("without a move: %v", err)
			}
		}
		if _, err := k.BeginRootMove(ctx, by, local); !problem.Is(err, "root-move-same") {
			t.Errorf("to itself: %v", err)
		}
		if _, err := k.BeginRootMove(ctx, by, nil); !problem.Is(err, "root-move-where") {
			t.Errorf("to nowhere: %v", err)
		}

		// Begin, change one's mind, begin again.
		for _, abort := range []bool{true, false} {
			m, err := k.BeginRootMove(ctx, by, identity)
			if err != nil || m.Phase != MoveOpen || m.KEKs != 1 || m.Wrapped != 1 || m.FileKey != "both" {
				t.Fatalf("begin: %+v, %v", m, err)
			}
			if err := errors.Join(start(local, nil), start(identity, nil)); err != nil {
				t.Fatalf("either root: %v", err)
			}
			if !abort {
				break
			}
			m, err = k.AbortRootMove(ctx, by)
			if err != nil || m.Phase != MoveAborted || m.Wrapped != 0 || m.FileKey != "old" {
				t.Fatalf("abort: %+v, %v", m, err)
			}
			if err := start(identity, nil); !errors.Is(err, ErrOtherRoot) {
				t.Errorf("the aborted root: %v", err)
			}
			if err := start(local, nil); err != nil {
				t.Errorf("the old root: %v", err)
			}
		}
		if again, err := k.BeginRootMove(ctx, by, identity); err != nil || again.Phase != MoveOpen {
			t.Errorf("begin twice: %+v, %v", again, err)
		}
		if _, err := k.BeginRootMove(ctx, by, ageTestRoot(t)); !problem.Is(err, "root-move-under-way") {
			t.Errorf("to a third: %v", err)
		}

		// A rotation wraps by both, and whoever holds one root says that it cannot.
		k.CloseSecond()
		if _, err := k.RotateKEK(ctx, by); !problem.Is(err, "root-move-needs-both") {
			t.Errorf("rotate with one root: %v", err)
		}
		k.second.Store(&otherHolder{identity})
		if _, err := k.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		k.finish(t, wake)
		if n := count(t, d, `SELECT count(*) FROM kek_wrap WHERE kek_version = 2`); n != 2 {
			t.Errorf("KEK 2 has %d wraps", n)
		}
		if err := errors.Join(start(local, nil), start(identity, nil)); err != nil {
			t.Errorf("either root, after the rotation: %v", err)
		}

		// A wrap that does not open is noticed while there is a way back.
		exec(t, d, `UPDATE kek_wrap SET root_id = 'spare' WHERE kek_version = 2 AND root_id = $1`, identity.ID())
		exec(t, d, `INSERT INTO kek_wrap (kek_version, root_id, wrapped, made_at) SELECT 2, root_id, wrapped, 0 FROM kek_wrap WHERE kek_version = 1 AND root_id = $1`, identity.ID())
		if _, err := k.ConfirmRootMove(ctx, by); !problem.Is(err, "root-move-refused") || !strings.Contains(err.Error(), "KEK 2") {
			t.Errorf("confirm with a wrap that does not open: %v", err)
		}
		if n := count(t, d, `SELECT count(*) FROM kek_wrap`); n != 5 {
			t.Errorf("%d wraps are left", n)
		}
		exec(t, d, `DELETE FROM kek_wrap WHERE kek_version = 2 AND root_id = $1`, identity.ID())
		exec(t, d, `UPDATE kek_wrap SET root_id = $1 WHERE root_id = 'spare'`, identity.ID())

		m, err := k.ConfirmRootMove(ctx, by)
		if err != nil || m.Phase != MoveConfirmed || m.FileKey != "new" || m.Ended.IsZero() {
			t.Fatalf("confirm: %+v, %v", m, err)
		}
		what := "root key " + local.ID() + " to " + identity.ID()
		if got := k.events.since(0); !slices.Equal(got[len(got)-2:], []string{ActionRootMoveConfirm + " " + what, ActionRootMoveEnd + " " + what + ", confirmed"}) {
			t.Errorf("events %q", got)
		}
		if err := start(local, nil); !errors.Is(err, ErrOtherRoot) {
			t.Errorf("the old root: %v", err)
		}
		if err := start(identity, nil); err != nil {
			t.Errorf("the new root: %v", err)
		}
		if raw, _ := os.ReadFile(manifest); bytes.Contains(raw, []byte(local.ID())) {
			t.Error("the manifest still names the old root")
		}

		// The server that was never restarted wraps by the new root from now on; one that holds only the
		// old root makes no KEK that others could not open.
		if _, err := k.RotateKEK(ctx, by); err != nil {
			t.Fatal(err)
		}
		k.finish(t, wake)
		if err := start(identity, nil); err != nil {
			t.Errorf("after another rotation: %v", err)
		}
		k.CloseSecond()
		if _, err := k.RotateKEK(ctx, by); !problem.Is(err, "root-moved") {
			t.Errorf("rotate with the old root: %v", err)
		}

		// And back: to a passphrase.
		back := openWith(t, Options{DB: d, Root: identity, Second: local, Manifest: manifest})
		if _, err := back.BeginRootMove(ctx, by, nil); err != nil {
			t.Fatal(err)
		}
		if m, err = back.ConfirmRootMove(ctx, by); err != nil || m.To != local.ID() {
			t.Fatalf("%+v, %v", m, err)
		}
		if err := start(local, nil); err != nil {
			t.Errorf("back: %v", err)
		}
		if err := start(identity, nil); !errors.Is(err, ErrOtherRoot) {
			t.Errorf("back, the other: %v", err)
		}
		if key, err := OpenFileKey(ctx, local, manifest, d.Environment()); err != nil || !key.Key.Equal(made.Key) {
			t.Errorf("the file key: %v", err)
		}
	})
}

// TestTwoServersDuringAMove: one with the old settings, one with the new; both serve and make keys.
func TestTwoServersDuringAMove(t *testing.T) {
	d := dbtest.Open(t, db.PostgreSQL)
	ctx, local, identity := t.Context(), testRoot(t), ageTestRoot(t)
	a := openRotating(t, d, local)
	if _, err := a.BeginRootMove(ctx, by, identity); err != nil {
		t.Fatal(err)
	}
	b := openWith(t, Options{DB: d, Root: identity, Second: local, Clock: clock.System, Publish: 1, Rate: 1 << 30})
	wake, _ := b.work(t)
	place := seal.Place{Room: "test", Table: "t"}
	crossed := func() {
		t.Helper()
		for from, to := range map[*setup]*setup{&a: &b, &b: &a} {
			c := from.create(t)
			mine, err := from.ring(t, c)
			if err != nil {
				t.Fatal(err)
			}
			ring, err := to.ring(t, c)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := ring.Open(place, mine.Seal(place, []byte("x"))); err != nil || string(got) != "x" {
				t.Errorf("%q, %v", got, err)
			}
		}
	}
	crossed()
	if _, err := b.RotateKEK(ctx, by); err != nil {
		t.Fatal(err)
	}
	crossed() // published
	b.finish(t, wake)
	crossed() // active
	if _, err := b.ConfirmRootMove(ctx, by); err != nil {
		t.Fatal(err)
	}
	crossed() // the old one serves with what it holds
}

// failing is a root that fails after so many calls.
type failing struct {
	Root
	left atomic.Int32
}

var errCut = errors.New("cut off")

func (f *failing) Wrap(ctx context.Context, plaintext, context []byte) ([]byte, error) {
	if f.left.Add(-1) < 0 {
		return nil, errCut
	}
	return f.Root.Wrap(ctx, plaintext, context)
}

// TestMoveGoesOn: a move that is cut off between any two steps goes on when it is run again, by a new
// process, and either way every key opens.
func TestMoveGoesOn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, local, identity := t.Context(), testRoot(t), ageTestRoot(t)
		manifest := filepath.Join(t.TempDir(), ManifestName)
		if _, err := CreateFileKey(ctx, local, manifest, d.Environment(), "strongroom-1.db"); err != nil {
			t.Fatal(err)
		}
		k := openRotating(t, d, local)
		wake, stop := k.work(t)
		for range 2 {
			if _, err := k.RotateKEK(ctx, by); err != nil {
				t.Fatal(err)
			}
			k.finish(t, wake)
		}
		stop()
		fresh := func(second Root) setup {
			return openWith(t, Options{DB: d, Root: local, Second: second, Manifest: manifest})
		}
		// The first wrap is the try; each of the last three gets one KEK further, and the file key is left.
		for _, calls := range []int32{0, 1, 2, 2, 2} {
			cut := &failing{Root: identity}
			cut.left.Store(calls)
			if _, err := fresh(nil).BeginRootMove(ctx, by, cut); !errors.Is(err, errCut) {
				t.Fatalf("%d calls: %v", calls, err)
			}
			p := fresh(identity)
			m, err := p.RootMove(ctx)
			if calls == 0 { // nothing depends on a root that was never seen to work
				if !problem.Is(err, "no-root-move") {
					t.Errorf("%+v, %v", m, err)
				}
				continue
			}
			if err != nil || m.Phase != MoveWrapping {
				t.Fatalf("%+v, %v", m, err)
			}
			if _, err := p.ConfirmRootMove(ctx, by); !problem.Is(err, "root-move-unfinished") {
				t.Errorf("confirm: %v", err)
			}
		}
		if m, err := fresh(nil).BeginRootMove(ctx, by, identity); err != nil || m.Phase != MoveOpen || m.Wrapped != 3 || m.FileKey != "both" {
			t.Fatalf("%+v, %v", m, err)
		}
		// Cut off after the wraps were dropped and before the manifest was written, and after that.
		both, err := os.ReadFile(manifest)
		if err != nil {
			t.Fatal(err)
		}
		p := fresh(identity)
		if _, err := p.ConfirmRootMove(ctx, by); err != nil {
			t.Fatal(err)
		}
		exec(t, d, `UPDATE root_move SET phase = 'confirming', ended_at = NULL`)
		if err := replace(manifest, both); err != nil {
			t.Fatal(err)
		}
		p = openWith(t, Options{DB: d, Root: identity, Manifest: manifest})
		if _, err := p.AbortRootMove(ctx, by); !problem.Is(err, "root-move-ending") {
			t.Errorf("abort: %v", err)
		}
		for range 2 {
			if m, err := p.ConfirmRootMove(ctx, by); err != nil || m.Phase != MoveConfirmed || m.FileKey != "new" {
				t.Fatalf("%+v, %v", m, err)
			}
			exec(t, d, `UPDATE root_move SET phase = 'confirming', ended_at = NULL`)
		}
	})
}
