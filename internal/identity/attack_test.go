package identity

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// guessFrom tries a wrong private code from an address of its own.
func (h *house) guessFrom(n int, to string) error {
	by := from(fmt.Sprint("attacker", n%7))
	by.Address = netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 1})
	_, err := h.StartLogin(context.Background(), by, to, value("83920486"))
	return err
}

func warned(h *house, to string) (n int) {
	for _, m := range h.inbox.Search(to) {
		if strings.Contains(m.Text, "was shut out") {
			n++
		}
	}
	return n
}

// The customer who is attacked is told, once a day, and nobody is told about a number without an account.
func TestASVS_6_3_5_AttackedCustomerIsTold(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		for day := 1; day <= 2; day++ {
			for n := range 3 * maxFailures {
				want(t, h.guessFrom(n, number(1)), "")
				want(t, h.guessFrom(n, number(2)), "")
				h.clk.Advance(time.Hour)
			}
			if got := warned(h, number(1)); got != day {
				t.Fatalf("%d warnings after %d days", got, day)
			}
			h.clk.Advance(48 * time.Hour)
		}
		if warned(h, number(2)) != 0 || len(h.inbox.Search(number(2))) != 0 {
			t.Error("a number without an account was told")
		}
		// Whoever knows the private code and guesses one-time codes is told about as well.
		h.register(number(3), "owner")
		for range 2 {
			s, err := h.StartLogin(t.Context(), from("thief"), number(3), value(goodCode))
			if err != nil {
				t.Fatal(err)
			}
			code := h.code(number(3))
			for range codeTries {
				_, err = h.CompleteLogin(t.Context(), from("thief"), s.ID, value(wrongCode(code)), "")
				want(t, err, "login-failed")
			}
		}
		if got := warned(h, number(3)); got != 1 {
			t.Errorf("%d warnings", got)
		}
		h.mustLogin(number(1), "owner")
		h.mustLogin(number(3), "owner")
	})
}

// What a failed attempt writes does not depend on whether there is an account to warn.
func TestASVS_6_3_8_WarningsDoNotShow(t *testing.T) {
	each(t, func(o *Options) { o.Wake = func(string) {} }, func(t *testing.T, h *house) {
		h.register0(number(1), "owner")
		sizes := func(to string) (all []int) {
			for n := range maxFailures + 1 {
				before := [...]int{h.count("sms_outbox"), h.count("quota"), h.count("challenge")}
				want(t, h.guessFrom(n, to), "")
				all = append(all, h.count("sms_outbox")-before[0], h.count("challenge")-before[2])
			}
			return all
		}
		if a, b := fmt.Sprint(sizes(number(1))), fmt.Sprint(sizes(number(2))); a != b {
			t.Errorf("rows with an account %s, without %s", a, b)
		}
	})
}

// register0 registers in a house whose messages wait until somebody delivers them.
func (h *house) register0(to, key string) {
	h.t.Helper()
	s, err := h.StartRegistration(context.Background(), from(key), to)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.deliver(context.Background()); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.CompleteRegistration(context.Background(), from(key), s.ID, value(h.code(to)), value(goodCode), "x"); err != nil {
		h.t.Fatal(err)
	}
}

// A network whose logins come to nothing is slowed down over all accounts; a login that is completed
// there counts for nothing, and a known device is not asked where it is.
func TestFailuresOfANetworkAreDelayed(t *testing.T) {
	each(t, func(o *Options) { o.Limits.Logins, o.Limits.DeviceLogins = Rate{4, time.Hour}, Rate{1e6, time.Hour} }, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		guesses := 0
		for n := range 24 * 60 {
			_, err := h.StartLogin(t.Context(), from("k"), number(n%50+2), value(goodCode))
			switch {
			case err == nil:
				guesses++
			case !problem.Is(err, "too-many-requests"):
				t.Fatal(err)
			case problem.Of(err).GetHeaders().Get("Retry-After") == "":
				t.Fatal("no Retry-After")
			}
			if n%360 == 0 {
				h.mustLogin(number(1), "owner")
			}
			h.clk.Advance(time.Minute)
		}
		if guesses > 4+7+24 {
			t.Errorf("%d logins were started from one network in a day", guesses)
		}
		if h.countEvents(ActionLoginStart, "denied network-delay") == 0 {
			t.Error("no event")
		}
		h.clk.Advance(delayMemory + time.Hour)
		// Logins that come to something are not counted.
		for range 12 {
			s, err := h.StartLogin(t.Context(), from("new"), number(1), value(goodCode))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.CompleteLogin(t.Context(), from("new"), s.ID, value(h.code(number(1))), ""); !problem.Is(err, "device-pending") {
				t.Fatal(err)
			}
			h.clk.Advance(20 * time.Minute)
		}
	})
}

// NIST SP 800-63B-4 section 3.2.2: however an attacker spreads his guesses over addresses, devices, two
// replicas and time, with the limits as they are by default, fewer than 100 a day and at most 100 in a row
// are compared; and the customer's own device, at an address that the attacker uses too, gets in.
func TestNIST_63B_3_2_2_GuessesAreBoundedAndTheOwnerGetsIn(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), func(o *Options) {
		o.Limits = Limits{BlockDaily: 1e6, Daily: 1e6, Registrations: Rate{1e6, time.Hour}}
	})
	other := newHouseOn(h)
	next := 0
	rapid.Check(t, func(r *rapid.T) {
		next++
		if next > 12 {
			return // each is some hundred logins; the rules alone are tried more often by TestLane
		}
		to := number(next)
		h.clk.Advance(48 * time.Hour)
		h.register(to, "owner")
		var compared []time.Time
		row, before := 0, h.laneOf(to, "")
		for range rapid.IntRange(50, 200).Draw(r, "guesses") {
			replica := h.Identity
			if rapid.Bool().Draw(r, "replica") {
				replica = other.Identity
			}
			by := from(fmt.Sprint("attacker", rapid.IntRange(0, 30).Draw(r, "key")))
			// Now and then from where the owner is.
			by.Address = netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(0, 255).Draw(r, "address"))})
			_, err := replica.StartLogin(context.Background(), by, to, value("83920486"))
			if err != nil && !problem.Is(err, "too-many-requests") {
				r.Fatal(err)
			}
			if after := h.laneOf(to, ""); after != before {
				before = after
				row++
				compared = append(compared, h.clk.Now())
			}
			if row > ceiling {
				r.Fatalf("%d guesses in a row", row)
			}
			day := 0
			for _, at := range compared {
				if at.After(h.clk.Now().Add(-24 * time.Hour)) {
					day++
				}
			}
			if day >= 100 {
				r.Fatalf("%d guesses in a day", day)
			}
			switch rapid.IntRange(0, 20).Draw(r, "then") {
			case 0:
				// A login each hour is what the limits on messages leave a known device at least.
				h.clk.Advance(time.Hour)
				if _, err := h.login(to, "owner", goodCode); err != nil {
					r.Fatalf("the owner is refused: %v", err)
				}
				row = 0
				h.clk.Advance(2 * time.Hour)
				before = h.laneOf(to, "")
			case 1, 2, 3:
				h.clk.Advance(time.Duration(rapid.IntRange(1, 600).Draw(r, "minutes")) * time.Minute)
			}
		}
		h.clk.Advance(24 * time.Hour)
		if _, err := h.login(to, "owner", goodCode); err != nil {
			r.Fatalf("the owner is refused at the end: %v", err)
		}
	})
}

func (h *house) laneOf(number, key string) (l lane) {
	h.t.Helper()
	if err := h.DB.View(context.Background(), func(tx *db.Tx) (err error) {
		l, err = getLane(context.Background(), tx, h.laneKeys(number, key))
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	return l
}

// Support lifts blocks, for a reason, and changes nothing else.
func TestSupportUnlocks(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		r := h.register(number(1), "owner")
		support := NewSupport(h.DB, h.Keys, h.Trail, h.clk)
		for n := range maxFailures {
			want(t, h.guessFrom(n, number(1)), "")
			_, err := h.StartLogin(t.Context(), from("owner"), number(1), value("83920486"))
			want(t, err, "")
		}
		if _, err := h.login(number(1), "owner", goodCode); !problem.Is(err, "login-failed") {
			t.Fatal("the lane is not blocked")
		}
		staff := actor.Actor{Kind: actor.Staff, ID: "sta_1"}
		for _, row := range []struct {
			by     actor.Actor
			who    customer.ID
			reason string
			want   string
		}{
			{from("k"), r.Customer, "why not", "unlock-forbidden"},
			{h.acting(Tokens{Customer: r.Customer, Session: "s", Device: r.Device}, "owner"), r.Customer, "me", "unlock-forbidden"},
			{staff, r.Customer, " ", "reason-required"}, {staff, r.Customer, strings.Repeat("x", 501), "reason-required"},
			{staff, customer.NewID(), "x", "customer-not-found"}, {staff, "ada", "x", "customer-not-found"},
		} {
			if _, err := support.Unlock(t.Context(), row.by, row.who, row.reason); !problem.Is(err, row.want) {
				t.Errorf("%v, want %s", err, row.want)
			}
			if got := h.lastEvent(ActionLoginUnlock); got != "denied "+row.want {
				t.Errorf("event %q", got)
			}
		}
		got, err := support.Unlock(t.Context(), staff, r.Customer, "called, and was known by voice")
		if err != nil || got != (Unlocked{r.Customer, 2, 2 * maxFailures}) {
			t.Errorf("%+v, %v", got, err)
		}
		if h.lastEvent(ActionLoginUnlock) != "granted" {
			t.Errorf("events %v", h.events(ActionLoginUnlock))
		}
		h.mustLogin(number(1), "owner")
		if _, err := h.login(number(1), "new", goodCode); !problem.Is(err, "device-pending") {
			t.Errorf("a new device: %v", err)
		}
		// A revoked device stays revoked.
		other := h.register(number(2), "lost")
		if err := h.DB.Update(t.Context(), func(tx *db.Tx) error {
			d, _, err := h.rows.deviceByKey(t.Context(), tx, other.Customer, "lost")
			if err != nil {
				return err
			}
			return h.rows.setDeviceStatus(t.Context(), tx, d, revoked, h.clk.Now())
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := support.Unlock(t.Context(), staff, other.Customer, "x"); err != nil {
			t.Error(err)
		}
		if _, err := h.login(number(2), "lost", goodCode); !problem.Is(err, "login-failed") {
			t.Errorf("revoked: %v", err)
		}
	})
}

// The rules of a network's delays alone.
func TestNetworkDelays(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		now := clock.NewManual(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
		var l lane
		free := rapid.Int64Range(1, 60).Draw(r, "free")
		for range rapid.IntRange(1, 200).Draw(r, "steps") {
			switch rapid.SampledFrom([]string{"start", "start", "complete", "wait"}).Draw(r, "step") {
			case "start":
				if l.networkDelay(now.Now()) > 0 {
					continue
				}
				l.chargeNetwork(now.Now(), free)
				if delay := l.networkDelay(now.Now()); (delay > 0) != (l.failures >= free) || delay > longestDelay {
					r.Fatalf("a delay of %v after %d failures of %d free", delay, l.failures, free)
				}
			case "complete":
				l.refundNetwork(now.Now())
				if l.networkDelay(now.Now()) > 0 || l.failures < 0 {
					r.Fatalf("after a complete login: %+v", l)
				}
			case "wait":
				now.Advance(time.Duration(rapid.IntRange(0, 30*60).Draw(r, "minutes")) * time.Minute)
			}
		}
		now.Advance(longestDelay + delayMemory + time.Minute)
		l.chargeNetwork(now.Now(), free)
		if l.failures != 1 {
			r.Fatalf("remembers %d failures for ever", l.failures)
		}
	})
}
