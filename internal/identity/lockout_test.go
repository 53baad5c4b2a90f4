package identity

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// Whatever an attacker does in whatever order, from whatever keys and addresses, with or without the
// private code, the guesses of his that are really compared are bounded, and the customer's own
// device with the right codes gets in, always.
func TestLockOutOfTheAttackerNeverOfTheOwner(t *testing.T) {
	for _, engine := range []db.Engine{db.SQLite, db.PostgreSQL} {
		t.Run(engine.String(), func(t *testing.T) {
			// Messages lie until somebody reads them, so that a check costs no more than it must.
			h := newHouse(t, dbtest.Open(t, engine), func(o *Options) { o.Wake = func(string) {} })
			next := 0
			rapid.Check(t, func(r *rapid.T) {
				next++
				if engine == db.PostgreSQL && next > 8 || next > 30 {
					return // the rules are the same; here only the statements are another engine's
				}
				to := number(next)
				h.attack(r, to)
			})
		})
	}
}

func (h *house) attack(r *rapid.T, to string) {
	ctx := context.Background()
	read := func() string {
		if err := h.deliver(ctx); err != nil {
			r.Fatal(err)
		}
		return h.code(to)
	}
	s, err := h.StartRegistration(ctx, from("owner"), to)
	if err != nil {
		r.Fatal(err)
	}
	if _, err := h.CompleteRegistration(ctx, from("owner"), s.ID, value(read()), value(goodCode), "x"); err != nil {
		r.Fatal(err)
	}
	unknown := func() (l lane) {
		if err := h.DB.View(ctx, func(tx *db.Tx) (err error) {
			l, err = getLane(ctx, tx, h.laneKeys(to, ""))
			return err
		}); err != nil {
			r.Fatal(err)
		}
		return l
	}

	compared := 0           // wrong guesses that were compared since the owner last got in
	window := []time.Time{} // when
	var open []string       // logins that the attacker has started with the right private code
	var keys []string
	guess := func() {
		compared++
		window = append(window, h.clk.Now())
	}
	steps := rapid.IntRange(5, 30).Draw(r, "steps")
	for range steps {
		key := fmt.Sprint("attacker", rapid.IntRange(0, 4).Draw(r, "key"))
		by := from(key)
		by.Address = netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 255).Draw(r, "address"))})
		switch rapid.SampledFrom([]string{"guess", "guess", "guess", "know", "code", "wait", "owner"}).Draw(r, "step") {
		case "guess": // the private code
			before := unknown()
			if _, err := h.StartLogin(ctx, by, to, value("83920486")); err != nil {
				r.Fatal(err)
			}
			if unknown() != before {
				guess()
			}
			read() // the owner may have been warned
		case "know": // the private code is known to the attacker; the telephone is not his
			login, err := h.StartLogin(ctx, by, to, value(goodCode))
			if err != nil {
				r.Fatal(err)
			}
			open, keys = append(open, login.ID), append(keys, key)
			read() // two messages that wait together may overtake each other
		case "code": // guesses a one-time code
			if len(open) == 0 {
				continue
			}
			n := rapid.IntRange(0, len(open)-1).Draw(r, "login")
			before := unknown()
			_, err := h.CompleteLogin(ctx, from(keys[n]), open[n], value(wrongCode(read())), "")
			if !problem.Is(err, "login-failed") {
				r.Fatalf("attacker: %v", err)
			}
			if unknown() != before {
				guess()
			}
			read()
		case "wait":
			h.clk.Advance(time.Duration(rapid.IntRange(1, 30*60).Draw(r, "minutes")) * time.Minute)
		case "owner":
			login, err := h.StartLogin(ctx, from("owner"), to, value(goodCode))
			if err != nil {
				r.Fatal(err)
			}
			if _, err := h.CompleteLogin(ctx, from("owner"), login.ID, value(read()), ""); err != nil {
				r.Fatalf("the owner is refused: %v", err)
			}
			compared = 0
		}
		if compared > ceiling {
			r.Fatalf("%d guesses in a row were compared", compared)
		}
		// Blocks of 15, 30, 60 … minutes after every five: in a day not more than 40.
		day := 0
		for _, at := range window {
			if at.After(h.clk.Now().Add(-24 * time.Hour)) {
				day++
			}
		}
		if day > 8*maxFailures {
			r.Fatalf("%d guesses in a day", day)
		}
	}
	login, err := h.StartLogin(ctx, from("owner"), to, value(goodCode))
	if err != nil {
		r.Fatal(err)
	}
	if _, err := h.CompleteLogin(ctx, from("owner"), login.ID, value(read()), ""); err != nil {
		r.Fatalf("the owner is refused at the end: %v", err)
	}
}

// The rules of a lane alone, through many more sequences than a database allows.
func TestLane(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var l lane
		wrong := 0
		for range rapid.IntRange(1, 300).Draw(r, "steps") {
			switch rapid.SampledFrom([]string{"wrong", "wrong", "right", "both", "wait"}).Draw(r, "step") {
			case "wrong":
				if l.charge(now) {
					wrong++
				}
			case "right": // the private code was right: its charge comes back
				before := l
				if l.charge(now) {
					l.refund()
					if l.failures != before.failures || l.total != before.total || l.level != before.level || l.isBlocked(now) {
						r.Fatalf("a refund does not undo its charge: %+v, %+v", before, l)
					}
				}
			case "both": // a wrong one begins while a right one is under way
				if !l.charge(now) {
					continue
				}
				if l.charge(now) {
					wrong++
				}
				l.refund()
			case "wait":
				now = now.Add(time.Duration(rapid.IntRange(0, 48*60).Draw(r, "minutes")) * time.Minute)
			}
			if wrong > ceiling || l.total != int64(wrong) || l.failures >= maxFailures || l.failures < 0 || l.level < 0 {
				r.Fatalf("%d wrong, %+v", wrong, l)
			}
			if l.blocked > now.Add(longBlock).UnixMicro() {
				r.Fatalf("blocked for more than a day: %+v", l)
			}
		}
		l.reset()
		if l.isBlocked(now) {
			r.Fatal("blocked after a success")
		}
	})
}

// The sliding window never lets more than twice the rate through in one period, nor more than the rate
// in one that begins empty.
func TestCounter(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		rate := Rate{rapid.IntRange(1, 20).Draw(r, "limit"), time.Hour}
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var c counter
		var passed []time.Time
		for range rapid.IntRange(1, 200).Draw(r, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 40*60).Draw(r, "seconds")) * time.Second)
			if c.add(now, rate, 1) {
				passed = append(passed, now)
			}
			recent := 0
			for _, at := range passed {
				if at.After(now.Add(-rate.Per)) {
					recent++
				}
			}
			if recent > 2*rate.Limit {
				r.Fatalf("%d passed in one period of a rate of %d", recent, rate.Limit)
			}
			if first := passed[0]; now.Sub(first) < rate.Per && len(passed) > rate.Limit {
				r.Fatalf("%d passed in the first period", len(passed))
			}
		}
	})
}
