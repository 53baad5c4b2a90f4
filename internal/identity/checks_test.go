package identity

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/identity/passcode"
	"strongroom/internal/problem"
)

var checker = actor.OfSystem("cli:test")

// scratch is a room over a database, on the machine's clock.
func scratch(t *testing.T, d *db.DB, change func(*Options)) *house {
	return newHouse(t, d, func(o *Options) {
		o.Clock = clock.System
		o.Limits = Limits{}
		if change != nil {
			change(o)
		}
	})
}

// Every check holds on a room as it is, on both databases, again and again, and sees its failure; whom it
// attacks is nobody, and whoever is somebody notices nothing.
func TestTrials(t *testing.T) {
	each(t, func(o *Options) {
		o.Clock, o.Limits = clock.System, Limits{Logins: Rate{7, time.Hour}, NumberDaily: 2, BlockDaily: 2, Daily: 40}
	}, func(t *testing.T, h *house) {
		ctx := actor.With(t.Context(), checker)
		h.register(number(1), "ada")
		for _, trial := range Trials() {
			if trial.ID == "login-timing-alike" {
				continue // which takes long; the test of `strongroom check` has it
			}
			for range 2 { // the limits of one network and number are far below what these need together
				if seen := trial.Run(ctx, h.Identity); seen.Outcome != check.Holds {
					t.Errorf("%s: %s, %s", trial.ID, seen.Outcome, seen.Detail)
				}
			}
		}
		if n := len(h.inbox.Search("")); n != 1 {
			t.Errorf("%d messages were sent, of which the customer asked for one", n)
		}
		if n := h.count("session"); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		if n := h.count("device"); n != 2 {
			t.Errorf("%d devices are left; the customer has one, and so has the honey customer", n)
		}
		h.mustLogin(number(1), "ada")
	})
}

func TestTrialsSeeDamage(t *testing.T) {
	for _, trial := range Trials() {
		if trial.ID == "login-timing-alike" {
			continue
		}
		t.Run(trial.ID, func(t *testing.T) {
			h := scratch(t, dbtest.Open(t, db.SQLite), nil)
			ctx := actor.With(t.Context(), checker)
			if seen := trial.Broken(ctx, h.Identity); seen.Outcome != check.Fails {
				t.Errorf("%s: %s", seen.Outcome, seen.Detail)
			}
		})
	}
}

// A deployment that takes shorter codes is told so, and sees what else is refused all the same.
func TestShorterCodesThanPromisedAreAmber(t *testing.T) {
	h := scratch(t, dbtest.Open(t, db.SQLite), func(o *Options) { o.MinCodeLength = 6 })
	n := slices.IndexFunc(Trials(), func(trial Trial) bool { return trial.ID == "login-code-policy" })
	ctx := actor.With(t.Context(), checker)
	seen := Trials()[n].Run(ctx, h.Identity)
	if seen.Outcome != check.Unknown || !strings.Contains(seen.Detail, "6 characters are accepted, by login.private_code_min_length; 8 are promised") {
		t.Errorf("%s: %s", seen.Outcome, seen.Detail)
	}
	if seen := Trials()[n].Broken(ctx, h.Identity); seen.Outcome != check.Fails {
		t.Errorf("%s: %s", seen.Outcome, seen.Detail)
	}
}

// Each code that the check tries is weak for a reason of its own, whatever chance makes of it.
func TestWeakCodesAreWeak(t *testing.T) {
	for range 200 {
		for _, w := range weakCodes(passcode.MinLength) {
			if passcode.Judge([]byte(w.code), honeyNumber, passcode.MinLength) == "" {
				t.Fatalf("%s, %q, is good", w.what, w.code)
			}
		}
	}
}

// What a check does is in the trail, in the name of who runs it.
func TestTrialsAreRecorded(t *testing.T) {
	each(t, func(o *Options) { o.Clock = clock.System }, func(t *testing.T, h *house) {
		s, err := h.enterStage(actor.With(t.Context(), checker))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.enterStage(actor.With(t.Context(), checker)); err != errStageHeld {
			t.Errorf("a second check had the honey customer at the same time: %v", err)
		}
		if _, err := s.login(t.Context(), s.own); err != nil {
			t.Fatal(err)
		}
		s.leave(t.Context())
		if err := h.DB.View(t.Context(), func(tx *db.Tx) error {
			for _, action := range []string{ActionHoneyMake, ActionHoneyTry, ActionLoginStart, ActionLoginComplete} {
				var n int
				if err := tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM event WHERE action = $1 AND actor_kind = $2 AND actor_id = $3 AND customer_id = $4`,
					action, string(checker.Kind), checker.ID, string(s.owner)).Scan(&n); err != nil {
					return err
				}
				if n != 1 {
					t.Errorf("%d events %s of the honey customer by whoever runs the check", n, action)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// Nobody outside can name the honey customer, and nothing is ever carried to it.
func TestNobodyReachesTheHoneyCustomer(t *testing.T) {
	h := scratch(t, dbtest.Open(t, db.SQLite), nil)
	if _, err := h.enterStage(actor.With(t.Context(), checker)); err != nil {
		t.Fatal(err)
	}
	for _, typed := range []string{honeyNumber, strayNumber, "00999" + strings.TrimPrefix(honeyNumber, unreal), strings.TrimPrefix(honeyNumber, "+")} {
		if _, err := h.StartLogin(t.Context(), from("eve"), typed, value(goodCode)); !problem.Is(err, errInvalidPhone.Slug()) {
			t.Errorf("a login with %s: %v", typed, err)
		}
		if _, err := h.StartRegistration(t.Context(), from("eve"), typed); !problem.Is(err, errInvalidPhone.Slug()) {
			t.Errorf("a registration with %s: %v", typed, err)
		}
	}
	if err := h.DB.Update(t.Context(), func(tx *db.Tx) error {
		return h.post(t.Context(), tx, letter{To: honeyNumber, Text: "hello"}, h.Clock.Now())
	}); err != nil {
		t.Fatal(err)
	}
	if caught := h.caught.take(); len(caught) != 1 || caught[0].Text != "hello" {
		t.Errorf("the check got %v", caught)
	}
	if err := h.deliver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sent := h.inbox.Search(""); len(sent) != 0 {
		t.Errorf("the gateway got %v", sent)
	}
}

// A check that took too long takes nothing from the one that has the honey customer by now.
func TestLateCheckLeavesTheStageToTheNext(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := actor.With(t.Context(), checker)
		late, err := h.enterStage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		h.clk.Advance(stageHeld + time.Second)
		next, err := h.enterStage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := next.login(ctx, next.own); err != nil {
			t.Fatal(err)
		}
		late.leave(ctx)
		if n := h.count("session"); n != 1 {
			t.Errorf("%d sessions are left to the check that is at it", n)
		}
		if _, err := h.enterStage(ctx); err != errStageHeld {
			t.Errorf("a third check had the honey customer at the same time: %v", err)
		}
		next.leave(ctx)
		if n := h.count("session"); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// A honey customer that was erased, or whose device was shut out, is followed by another.
func TestHoneyCustomerIsReplaced(t *testing.T) {
	each(t, func(o *Options) { o.Clock = clock.System }, func(t *testing.T, h *house) {
		ctx := actor.With(t.Context(), checker)
		enter := func() *stage {
			t.Helper()
			s, err := h.enterStage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			s.leave(ctx)
			return s
		}
		first := enter()
		if again := enter(); again.owner != first.owner {
			t.Error("it was made twice")
		}
		if err := h.DB.Update(ctx, func(tx *db.Tx) error {
			d, _, err := h.rows.deviceByID(ctx, tx, first.owner, first.device)
			if err != nil {
				return err
			}
			return h.revoke(ctx, tx, checker, d, h.Clock.Now())
		}); err != nil {
			t.Fatal(err)
		}
		second := enter()
		if second.owner == first.owner {
			t.Error("a honey customer without a device stayed")
		}
		if err := h.DB.Update(ctx, func(tx *db.Tx) error {
			if _, err := h.Keys.DestroyCustomer(ctx, tx, checker, second.owner); err != nil {
				return err
			}
			_, err := NewEraser(h.Keys).EraseCustomer(ctx, tx, second.owner)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if third := enter(); third.owner == second.owner {
			t.Error("an erased honey customer stayed")
		}
	})
}

// What the honey customer's owner would know moves to the newest version of its key with the rest.
func TestHoneyIsSealedAnew(t *testing.T) {
	each(t, func(o *Options) { o.Clock = clock.System }, func(t *testing.T, h *house) {
		ctx := actor.With(t.Context(), checker)
		s, err := h.enterStage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s.leave(ctx)
		if _, err := h.Keys.RotateCustomer(ctx, checker, s.owner); err != nil {
			t.Fatal(err)
		}
		again, err := h.enterStage(ctx)
		if err != nil || again.owner != s.owner {
			t.Errorf("after a rotation: %v", err)
		}
	})
}

func TestPermutation(t *testing.T) {
	sample := func(n int, from, width time.Duration) (all []time.Duration) {
		for range n {
			all = append(all, from+rand.N(width))
		}
		return all
	}
	if p := permutation(sample(24, 100*time.Millisecond, 10*time.Millisecond), sample(24, 120*time.Millisecond, 10*time.Millisecond)); p > leastChance {
		t.Errorf("samples that do not overlap: p = %g", p)
	}
	alarms := 0
	for range 40 {
		if permutation(sample(12, 0, time.Second), sample(12, 0, time.Second)) < 0.05 {
			alarms++
		}
	}
	if alarms > 12 { // 2 are expected; this many come once in ten million times
		t.Errorf("%d of 40 pairs of samples of one distribution are told apart at 0.05", alarms)
	}
	if p := permutation(make([]time.Duration, 12), make([]time.Duration, 12)); p != 1 {
		t.Errorf("samples of one value: p = %g", p)
	}
}

func TestHoneyAddressesAreNobodys(t *testing.T) {
	documentation := netip.MustParsePrefix("2001:db8::/32")
	for _, a := range []netip.Addr{homeAddress, attackerAddress} {
		if !documentation.Contains(a) {
			t.Errorf("%s may be somebody's", a)
		}
	}
	if network(homeAddress) == network(attackerAddress) {
		t.Error("the attacker is at home")
	}
}
