package identity

import (
	"context"
	"strings"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

const newCode = "58203947"

// profiles are birth dates that are kept in memory.
type profiles map[customer.ID]string

func (p profiles) BirthDate(_ context.Context, _ actor.Actor, c customer.ID) (string, error) {
	return p[c], nil
}

func TestASVS_6_2_3_ChangeAsksForTheCurrentCode(t *testing.T) {
	born := profiles{}
	eachAlone(t, func(o *Options) { o.Profiles = born }, func(t *testing.T, h *house) {
		r := h.register(number(1), "owner")
		born[r.Customer] = "1984-03-29"
		here, there := h.mustLogin(number(1), "owner"), h.mustLogin(number(1), "owner")
		by := h.acting(here, "owner")
		for _, row := range []struct{ current, fresh, want string }{
			{"83920486", newCode, "wrong-private-code"},
			{goodCode, goodCode, "same-private-code"},
			{goodCode, "12345678", "weak-private-code"},
			{goodCode, "7" + "29031984" + "5", "weak-private-code"},
			{goodCode, "a 84 03 29 b", "weak-private-code"},
			{goodCode, "0900123", "weak-private-code"},
		} {
			want(t, h.ChangeCode(t.Context(), by, value(row.current), value(row.fresh)), row.want)
			if got := h.lastEvent(ActionCodeChange); got != "denied "+row.want {
				t.Errorf("event %q, want %s", got, row.want)
			}
		}
		want(t, h.ChangeCode(t.Context(), from("owner"), value(goodCode), value(newCode)), "customers-only")

		// A login that began before the change is over with it.
		pending, err := h.StartLogin(t.Context(), from("owner"), number(1), value(goodCode))
		if err != nil {
			t.Fatal(err)
		}
		code := h.code(number(1))
		want(t, h.ChangeCode(t.Context(), by, value(goodCode), value(newCode)), "")
		if h.lastEvent(ActionCodeChange) != "granted" {
			t.Errorf("events %v", h.events(ActionCodeChange))
		}
		_, err = h.CompleteLogin(t.Context(), from("owner"), pending.ID, value(code), "")
		want(t, err, "login-failed")
		if got := h.lastEvent(ActionLoginComplete); got != "denied private-code-changed" {
			t.Errorf("event %q", got)
		}
		if text := h.inbox.Search(number(1))[0].Text; !strings.Contains(text, "was changed") {
			t.Errorf("told %q", text)
		}
		// This session goes on, the other has ended.
		if _, err := h.Refresh(t.Context(), from("owner"), here.Refresh); err != nil {
			t.Error(err)
		}
		_, err = h.Refresh(t.Context(), from("owner"), there.Refresh)
		want(t, err, "session-revoked")
		if got := h.countEvents(ActionSessionRevoke, "granted private-code-changed"); got != 1 {
			t.Errorf("%d sessions ended", got)
		}
		h.clk.Advance(time.Second)
		if _, err := h.login(number(1), "owner", goodCode); !problem.Is(err, "login-failed") {
			t.Errorf("the old code: %v", err)
		}
		if _, err := h.login(number(1), "owner", newCode); err != nil {
			t.Errorf("the new code: %v", err)
		}
	})
}

// Whoever holds a session and guesses the current code is stopped like one who logs in.
func TestNIST_63B_3_2_2_GuessesThroughAChangeAreCounted(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		by := h.acting(h.mustLogin(number(1), "owner"), "owner")
		for n := range maxFailures + 1 {
			wanted := "wrong-private-code"
			if n == maxFailures {
				wanted = "locked-out"
			}
			want(t, h.ChangeCode(t.Context(), by, value("83920486"), value(newCode)), wanted)
		}
		// Right or wrong does not matter now, and a login is blocked as well.
		want(t, h.ChangeCode(t.Context(), by, value(goodCode), value(newCode)), "locked-out")
		if _, err := h.login(number(1), "owner", goodCode); !problem.Is(err, "login-failed") {
			t.Errorf("login: %v", err)
		}
		h.clk.Advance(2 * firstBlock)
		want(t, h.ChangeCode(t.Context(), by, value(goodCode), value(newCode)), "")
	})
}

// step plays a step of choosing a new code, with the one-time code that came, if one came.
func (h *house) step(to, key, private string) (Reset, error) {
	h.t.Helper()
	before := len(h.inbox.Search(to))
	s, err := h.StartReset(context.Background(), from(key), to)
	if err != nil {
		h.t.Fatal(err)
	}
	code := "000000"
	if len(h.inbox.Search(to)) > before {
		code = h.code(to)
	}
	return h.CompleteReset(context.Background(), from(key), s.ID, value(code), value(private))
}

func TestASVS_6_4_3_ForgottenCodeKeepsTwoFactorsAndAHold(t *testing.T) {
	born := profiles{}
	long := func(o *Options) { o.IdleLifetime, o.SessionLifetime, o.Profiles = 100*time.Hour, 100*time.Hour, born }
	eachAlone(t, long, func(t *testing.T, h *house) {
		born[h.register(number(1), "owner").Customer] = "1984-03-29"
		session := h.mustLogin(number(1), "owner")
		// Only an authorised device of the account, and nobody learns which that is.
		for _, row := range []struct{ to, key string }{{number(1), "stranger"}, {number(2), "owner"}} {
			before := len(h.inbox.Search(row.to))
			_, err := h.step(row.to, row.key, newCode)
			want(t, err, "reset-failed")
			if len(h.inbox.Search(row.to)) != before {
				t.Errorf("%v got a message", row)
			}
			if got := h.lastEvent(ActionCodeResetStart); got != "denied unknown-device" {
				t.Errorf("event %q", got)
			}
		}
		first, err := h.step(number(1), "owner", newCode)
		if err != nil || first.Changed || !first.Ready.Equal(h.clk.Now().Add(24*time.Hour)) {
			t.Fatalf("%+v, %v", first, err)
		}
		if text := h.inbox.Search(number(1))[0].Text; !strings.Contains(text, "log in now") {
			t.Errorf("told %q", text)
		}
		// Not before the hold is over, and asking again does not move it.
		h.clk.Advance(23 * time.Hour)
		again, err := h.step(number(1), "owner", newCode)
		if err != nil || again != first {
			t.Fatalf("%+v, %v; want %+v", again, err, first)
		}
		h.clk.Advance(2 * time.Hour)
		_, err = h.step(number(1), "stranger", newCode)
		want(t, err, "reset-failed")
		_, err = h.step(number(1), "owner", "12345678")
		want(t, err, "weak-private-code")
		// The birth date is refused after the one-time code was right, and no sooner.
		_, err = h.step(number(1), "owner", "55290384")
		want(t, err, "weak-private-code")
		s, err := h.StartReset(t.Context(), from("owner"), number(1))
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.CompleteReset(t.Context(), from("owner"), s.ID, value(wrongCode(h.code(number(1)))), value("55290384"))
		want(t, err, "reset-failed")
		done, err := h.step(number(1), "owner", newCode)
		if err != nil || !done.Changed {
			t.Fatalf("%+v, %v", done, err)
		}
		if h.count("code_reset") != 0 {
			t.Error("the reset stays")
		}
		_, err = h.Refresh(t.Context(), from("owner"), session.Refresh)
		want(t, err, "session-revoked")
		h.clk.Advance(time.Second)
		if _, err := h.login(number(1), "owner", goodCode); !problem.Is(err, "login-failed") {
			t.Errorf("the old code: %v", err)
		}
		if _, err := h.login(number(1), "owner", newCode); err != nil {
			t.Errorf("the new code: %v", err)
		}
	})
}

// The owner who knows the code ends what a thief of the telephone began: by logging in, or from a session.
func TestResetIsEndedByItsOwner(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		begin := func() {
			t.Helper()
			h.clk.Advance(24 * time.Hour)
			if r, err := h.step(number(1), "owner", newCode); err != nil || r.Changed {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		begin()
		tokens := h.mustLogin(number(1), "owner")
		if h.count("code_reset") != 0 || h.lastEvent(ActionCodeResetCancel) != "granted logged-in" {
			t.Errorf("a login leaves the reset: %v", h.events(ActionCodeResetCancel))
		}
		begin()
		want(t, h.CancelReset(t.Context(), h.acting(tokens, "owner")), "")
		begin() // a new hold, not the end of the old one
		h.clk.Advance(24*time.Hour + resetWindow)
		if r, err := h.step(number(1), "owner", newCode); err != nil || r.Changed {
			t.Errorf("a reset that is past: %+v, %v", r, err)
		}
		// Whoever can write to the database cannot end the hold.
		if err := h.DB.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE code_reset SET ready_at = 1`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := h.step(number(1), "owner", newCode); err == nil {
			t.Error("a forged hold is taken")
		}
	})
}

// Guessing the one-time code of a reset is bounded by its tries and then by a lane of its own; the
// customer logs in meanwhile.
func TestASVS_6_6_3_ResetCodesCannotBeGuessed(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		compared := 0
		for range 10 {
			s, err := h.StartReset(t.Context(), from("owner"), number(1))
			if err != nil {
				t.Fatal(err)
			}
			code := h.code(number(1))
			for range codeTries {
				_, err := h.CompleteReset(t.Context(), from("owner"), s.ID, value(wrongCode(code)), value(newCode))
				want(t, err, "reset-failed")
				if h.lastEvent(ActionCodeResetComplete) == "denied wrong-one-time-code" {
					compared++
				}
			}
			_, err = h.CompleteReset(t.Context(), from("owner"), s.ID, value(code), value(newCode))
			want(t, err, "reset-failed")
		}
		if compared != maxFailures {
			t.Errorf("%d guesses were compared", compared)
		}
		h.mustLogin(number(1), "owner")
	})
}

// Through the real api package, with real proofs.
func TestPrivateCodeOverHTTP(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		p := h.newPhone(s)
		h.register(number(1), p.jkt)
		p.access = string(h.mustLogin(number(1), p.jkt).Access.Reveal())
		for _, row := range []struct {
			method, path string
			body         any
			status       int
			slug         string
		}{
			{"POST", "/v1/private-code", map[string]string{"current_code": "83920486", "new_code": newCode}, 403, "wrong-private-code"},
			{"POST", "/v1/private-code", map[string]string{"current_code": goodCode, "new_code": newCode}, 204, ""},
			{"DELETE", "/v1/private-code/resets", nil, 204, ""},
		} {
			if a := p.do(row.method, row.path, row.body); a.status != row.status || a.slug() != row.slug {
				t.Errorf("%s %s: %d %s", row.method, row.path, a.status, a.raw)
			}
		}
		p.access = ""
		for n, wanted := range []string{"held", "changed"} {
			a := p.do("POST", "/v1/private-code/resets", map[string]string{"phone": number(1)})
			if a.status != 202 {
				t.Fatalf("%d %s", a.status, a.raw)
			}
			a = p.do("POST", "/v1/private-code/resets/"+a.text("reset")+"/complete", map[string]string{"code": h.code(number(1)), "private_code": goodCode})
			if a.status != 200 || a.text("status") != wanted || (a.text("usable_at") == "") != (n == 1) {
				t.Errorf("%d %s", a.status, a.raw)
			}
			h.clk.Advance(25 * time.Hour)
		}
	})
}
