package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
)

// replica returns the room as another server on the database has it, with keys of its own.
func replica(t *testing.T, d *db.DB, root keyring.Root) *house {
	t.Helper()
	keys, err := keyring.Open(t.Context(), actor.OfSystem("test"), keyring.Options{
		DB: d, Root: root, Create: true, Publish: time.Millisecond, Rate: 1 << 30,
		Record: func(context.Context, *db.Tx, actor.Actor, customer.ID, string, string) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	h := newHouseOf(t, d, keys, nil)
	keys.SetDependents(Peppers, NewIndex(keys, h.clk))
	return h
}

// rotate gives the key a new version and waits until that has taken over everything.
func (h *house) rotate(key string) (out keyring.Rotation) {
	h.t.Helper()
	ctx := h.t.Context()
	if _, err := h.Keys.Rotate(ctx, actor.OfSystem("test"), key); err != nil {
		h.t.Error(err)
		return out
	}
	return h.rotated()
}

// compromise has the version of the key be known to somebody, and what follows from it be done.
func (h *house) compromise(key string, version uint32) keyring.Rotation {
	h.t.Helper()
	if err := h.Keys.CompromiseService(h.t.Context(), actor.OfSystem("test"), key, version); err != nil {
		h.t.Error(err)
		return keyring.Rotation{}
	}
	return h.rotated()
}

// rotated waits for the rotation that goes on.
func (h *house) rotated() (out keyring.Rotation) {
	h.t.Helper()
	ctx := h.t.Context()
	r := jobs.New(h.DB, jobs.Options{})
	done := make(chan error, 1)
	for _, j := range h.Keys.Jobs() {
		if j.Name == keyring.JobRotation {
			run := j.Run
			j.Run = func(ctx context.Context) error {
				err := run(ctx)
				select {
				case done <- err:
				default:
				}
				return err
			}
			r.Add(j)
		}
	}
	r.Start(context.Background())
	defer func() {
		if err := r.Stop(context.Background()); err != nil {
			h.t.Error(err)
		}
	}()
	for range 50 {
		r.Wake(keyring.JobRotation)
		if err := <-done; err != nil {
			h.t.Error(err)
			return out
		}
		var err error
		if out, err = h.Keys.Rotation(ctx); err != nil || !out.Ended.IsZero() {
			if err != nil {
				h.t.Error(err)
			}
			return out
		}
	}
	h.t.Error("the rotation does not end")
	return out
}

// TestRotateWhileCustomersComeIn: while the blind-index key and the pepper are rotated, and then known to
// somebody, customers register and log in through two servers, one of which is told nothing, and nobody is refused. A number has one
// account still.
func TestRotateWhileCustomersComeIn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := keyringtest.Root(t)
		a, b := replica(t, d, root), replica(t, d, root)
		const n = 4
		comes := func(h *house, to, key string) error {
			ctx := t.Context()
			codes := func() int { return len(a.inbox.Search(to)) + len(b.inbox.Search(to)) }
			before := codes()
			s, err := h.StartLogin(ctx, from(key), to, value(goodCode))
			if err != nil {
				return err
			}
			// Whichever server carries the message, it goes to one of the two inboxes.
			for deadline := time.Now().Add(20 * time.Second); codes() == before; {
				if time.Now().After(deadline) {
					return fmt.Errorf("no code comes: %s", h.lastEvent(ActionLoginStart))
				}
				if err := h.deliver(ctx); err != nil {
					return err
				}
			}
			for _, inbox := range []*house{a, b} {
				if code := inbox.code(to); code != "" {
					tokens, err := h.CompleteLogin(ctx, from(key), s.ID, value(code), "x")
					if err == nil && tokens.Session != "" {
						return nil
					}
				}
			}
			return errors.New("the code does not let in")
		}
		for i := range n {
			a.register(number(i), fmt.Sprint("key", i))
		}
		var stop atomic.Bool
		var coming sync.WaitGroup
		for i := range n {
			h, key := []*house{a, b}[i%2], fmt.Sprint("key", i)
			coming.Go(func() {
				for round := 0; round < 3 || !stop.Load(); round++ {
					if err := comes(h, number(i), key); err != nil {
						t.Errorf("customer %d, round %d: %v", i, round, err)
						return
					}
					if err := h.rehash(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for _, key := range []string{keyring.KeyBlindIndex, keyring.KeyPepper} {
			if r := a.rotate(key); r.Failed > 0 || key == keyring.KeyBlindIndex && r.Done != n {
				t.Errorf("%+v", r)
			}
		}
		if r := a.compromise(keyring.KeyBlindIndex, 2); r.Failed > 0 || r.Done != n || r.Version != 3 {
			t.Errorf("%+v", r)
		}
		a.compromise(keyring.KeyPepper, 2)
		stop.Store(true)
		coming.Wait()
		for i := range n {
			h := []*house{a, b}[(i+1)%2]
			// A registration of a number with an account never makes another, whoever is asked.
			s, err := h.StartRegistration(t.Context(), from("stranger"), number(i))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.CompleteRegistration(t.Context(), from("stranger"), s.ID, value("000000"), value(goodCode), "x"); err == nil {
				t.Error("a number has two accounts")
			}
			if got := h.lastEvent(ActionRegistrationComplete); got != "denied known-number" {
				t.Errorf("event %q", got)
			}
		}
		if got := a.count("account"); got != n {
			t.Errorf("%d accounts", got)
		}
	})
}

// TestOneAccountOverTwoVersions: one number is registered at the same moment by two servers, of which one
// takes the old version of the key for the active one.
func TestOneAccountOverTwoVersions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := keyringtest.Root(t)
		a, b := replica(t, d, root), replica(t, d, root)
		houses := []*house{a, b}
		for round := range 3 {
			to := number(round)
			var started []Started
			for k, h := range houses {
				s, err := h.StartRegistration(t.Context(), from(fmt.Sprint("key", k)), to)
				if err != nil {
					t.Fatal(err)
				}
				started = append(started, s)
			}
			codes := []string{a.code(to), b.code(to)}
			if round == 1 {
				a.rotate(keyring.KeyBlindIndex) // b is told nothing
			}
			var coming sync.WaitGroup
			var made atomic.Int64
			for k, h := range houses {
				coming.Go(func() {
					_, err := h.CompleteRegistration(t.Context(), from(fmt.Sprint("key", k)), started[k].ID, value(codes[k]), value(goodCode), "x")
					switch {
					case err == nil:
						made.Add(1)
					case !problem.Is(err, errRegistrationFailed.Slug()):
						t.Error(err)
					}
				})
			}
			coming.Wait()
			if made.Load() != 1 || a.count("account") != round+1 {
				t.Errorf("round %d: %d registered, %d accounts", round, made.Load(), a.count("account"))
			}
		}
	})
}

// TestLimitsOutliveRotation: a lane stays blocked, a guess during a login stays counted, and a number's
// messages stay bounded over a rotation, for numbers with an account and without.
func TestLimitsOutliveRotation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := keyringtest.Root(t)
		a, b := replica(t, d, root), replica(t, d, root)
		a.register(number(1), "own")
		for range maxFailures {
			for _, to := range []string{number(1), number(2)} {
				if _, err := a.StartLogin(t.Context(), from("guesser"), to, value("83920486")); err != nil {
					t.Fatal(err)
				}
			}
		}
		// A login that waits for its code when the key changes.
		waiting, err := a.StartLogin(t.Context(), from("own"), number(1), value(goodCode))
		if err != nil {
			t.Fatal(err)
		}
		code := a.code(number(1))
		quota := func(h *house) (n int64) {
			if err := h.DB.View(t.Context(), func(tx *db.Tx) error {
				c, err := getCounter(t.Context(), tx, h.quotaKeys("messages-daily", number(1)+"own"), h.clk.Now(), 24*time.Hour)
				n = c.count
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		sent := quota(a)
		before := a.lane(number(2), "")
		if r := a.rotate(keyring.KeyBlindIndex); r.Done != 1 || r.Failed != 0 {
			t.Errorf("%+v", r)
		}
		for _, h := range []*house{a, b} {
			if err := h.Keys.Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, to := range []string{number(1), number(2)} {
				if l := h.lane(to, ""); !l.isBlocked(h.clk.Now()) || l.total != before.total {
					t.Errorf("%s: %+v", to, l)
				}
				if _, err := h.StartLogin(t.Context(), from("guesser"), to, value(goodCode)); err != nil {
					t.Fatal(err)
				}
				if got := h.lastEvent(ActionLoginStart); got != "denied locked-out" && got != "denied unknown-number" {
					t.Errorf("%s: %q", to, got)
				}
			}
		}
		if got := quota(a); got != sent || sent == 0 {
			t.Errorf("%d messages are counted, there were %d", got, sent)
		}
		if _, err := a.CompleteLogin(t.Context(), from("own"), waiting.ID, value(wrongCode(code)), "x"); !problem.Is(err, errLoginFailed.Slug()) {
			t.Error(err)
		}
		if l := a.lane(number(1), "own"); l.total != 1 {
			t.Errorf("a guess at a login from before is not counted: %+v", l)
		}
		if tokens, err := a.CompleteLogin(t.Context(), from("own"), waiting.ID, value(code), "x"); err != nil || tokens.Session == "" {
			t.Error(err)
		}
		if l := a.lane(number(1), "own"); l.total != 0 {
			t.Errorf("%+v", l)
		}
		if got := b.mustLogin(number(1), "own"); got.Session == "" || quota(b) != sent+1 {
			t.Errorf("%d messages are counted", quota(b))
		}
	})
}

// TestRotatePepper: a private code moves to the new pepper with its customer's next login, who has not
// logged in keeps the old one needed, and all take the same work: one hash.
func TestRotatePepper(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := replica(t, d, keyringtest.Root(t))
		h.register(number(1), "one")
		h.register(number(2), "two")
		if r := h.rotate(keyring.KeyPepper); r.Left != 2 || r.Version != 2 {
			t.Errorf("%+v", r)
		}
		var work atomic.Int64
		compare := h.hasher.compare
		h.hasher.compare = func(hash, in []byte) error {
			work.Add(1)
			return compare(hash, in)
		}
		hashes := func(to, key, code string) int64 {
			work.Store(0)
			if _, err := h.StartLogin(t.Context(), from(key), to, value(code)); err != nil {
				t.Fatal(err)
			}
			return work.Load()
		}
		used := func() (n map[uint32]int64) {
			if err := d.View(t.Context(), func(tx *db.Tx) (err error) {
				n, err = Peppers(t.Context(), tx)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if old, none := hashes(number(1), "one", goodCode), hashes(number(3), "x", goodCode); old != 1 || none != 1 {
			t.Errorf("%d and %d comparisons", old, none)
		}
		if err := h.rehash(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := used(); got[1] != 1 || got[2] != 1 {
			t.Errorf("hashes by pepper: %v", got)
		}
		if fresh, wrong := hashes(number(1), "one", goodCode), hashes(number(2), "two", "83920486"); fresh != 1 || wrong != 1 {
			t.Errorf("%d and %d comparisons", fresh, wrong)
		}
		if len(h.stale) > 0 {
			t.Error("a code under the new pepper is hashed anew")
		}
		infos, err := h.Keys.List(t.Context(), actor.OfSystem("test"))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range infos {
			if k.Name == keyring.KeyPepper {
				got = append(got, fmt.Sprint(k.Version, " ", k.State, " ", k.Uses))
			}
		}
		if want := []string{"1 retired 1", "2 active 1"}; !slices.Equal(got, want) {
			t.Errorf("listed %v, want %v", got, want)
		}
		if r, err := h.Keys.Rotation(t.Context()); err != nil || r.Left != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		h.mustLogin(number(1), "one")
		if _, err := h.login(number(2), "two", "83920486"); err == nil || errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		h.mustLogin(number(2), "two")
	})
}
