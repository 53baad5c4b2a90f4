package keyring

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// found is what stands at the moment.
type found struct {
	mu    sync.Mutex
	stand map[string]bool
	fail  error
}

func (f *found) Raise(_ context.Context, kind, subject, detail string) error {
	return f.set(kind, subject, detail != "")
}

func (f *found) Clear(_ context.Context, kind, subject string) error {
	return f.set(kind, subject, false)
}

func (f *found) set(kind, subject string, is bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	if f.stand == nil {
		f.stand = make(map[string]bool)
	}
	if delete(f.stand, kind+" "+subject); is {
		f.stand[kind+" "+subject] = true
	}
	return nil
}

func (f *found) are(t *testing.T, want ...string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]bool)
	for _, w := range want {
		all[w] = true
	}
	if !reflect.DeepEqual(f.stand, all) && len(f.stand)+len(all) > 0 {
		t.Errorf("findings %v, want %v", f.stand, want)
	}
}

// wholeOutage is a root that, while it is down, wraps no more than it unwraps.
type wholeOutage struct{ switchRoot }

func (r *wholeOutage) Wrap(ctx context.Context, plaintext, context []byte) ([]byte, error) {
	if r.down.Load() {
		return nil, keysUnavailable(errors.New("connection refused"))
	}
	return r.Root.Wrap(ctx, plaintext, context)
}

// TestRootUnavailable: without the root key what is held goes on serving, what is not fails with a problem
// and nothing is kept in the clear instead; it is a finding until the root key answers again.
func TestRootUnavailable(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), &wholeOutage{switchRoot: switchRoot{Root: testRoot(t)}}
		f := new(found)
		k := openWith(t, Options{DB: d, Root: root, Findings: f})
		tend := func() {
			t.Helper()
			k.clock.Advance(probeEvery)
			if err := k.tend(ctx); err != nil {
				t.Error(err)
			}
		}
		sealed := k.populate(t, 3)
		tend()
		f.are(t)

		root.down.Store(true)
		f.fail = errCut
		k.clock.Advance(probeEvery)
		if err := k.tend(ctx); err == nil {
			t.Error("a finding that cannot be raised goes unnoticed")
		}
		f.fail = nil
		tend()
		f.are(t, FindingRoot+" "+root.ID())
		k.clock.Advance(2 * defaultLease) // the customers' leases end; the KEK that is held opens their keys
		for c, b := range sealed {
			if err := k.opens(ctx, c, b); err != nil {
				t.Errorf("what is held: %v", err)
			}
		}
		if _, err := k.RotateKEK(ctx, by); !problem.Is(err, "keys-unavailable") {
			t.Errorf("a new KEK: %v", err)
		}
		if n := count(t, d, `SELECT count(*) FROM kek`); n != 1 {
			t.Errorf("%d KEKs", n)
		}
		if _, err := Open(ctx, by, Options{DB: d, Root: root, Record: k.events.record}); !problem.Is(err, "keys-unavailable") {
			t.Errorf("a start: %v", err)
		}

		root.down.Store(false)
		if err := k.tend(ctx); err != nil { // at once, not in a minute
			t.Error(err)
		}
		f.are(t)
		if _, err := k.RotateKEK(ctx, by); err != nil {
			t.Error(err)
		}

		// Compromised is a finding until it is destroyed, and another process clears what this one raised.
		k.clock.Advance(defaultPublish)
		if _, err := k.CompromiseKEK(ctx, by, 1); err != nil {
			t.Fatal(err)
		}
		tend()
		f.are(t, FindingCompromised+" kek/1")
		again := openWith(t, Options{DB: d, Root: root, Findings: f})
		if err := again.tend(ctx); err != nil {
			t.Error(err)
		}
		f.are(t, FindingCompromised+" kek/1")
		f.stand[FindingRoot+" "+root.ID()] = true // left by a process that ended
		last := openWith(t, Options{DB: d, Root: root, Findings: f})
		if err := last.tend(ctx); err != nil {
			t.Error(err)
		}
		f.are(t, FindingCompromised+" kek/1")
	})
}
