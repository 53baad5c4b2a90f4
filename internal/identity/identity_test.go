package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

type object map[string]any

// The whole way of a customer over HTTP, as the contract with the apps has it.
func TestJourney(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		ada := h.newPhone(s)
		expect := func(a answer, status int, slug string) answer {
			t.Helper()
			if a.status != status || a.slug() != slug {
				t.Fatalf("status %d %q, want %d %q: %s", a.status, a.slug(), status, slug, a.raw)
			}
			return a
		}
		a := expect(ada.do("POST", "/v1/registrations", object{"phone": "07700 900123"}), 202, "")
		reg := a.text("registration")
		if a.body["expires_in"] != 300.0 {
			t.Errorf("expires_in %v", a.body["expires_in"])
		}
		complete := func(code, private string) answer {
			return ada.do("POST", "/v1/registrations/"+reg+"/complete", object{"code": code, "private_code": private, "device_name": "Ada's\u202e phone\n"})
		}
		code := h.code(number(123))
		weak := expect(complete(code, "12345678"), 422, "weak-private-code")
		if weak.text("reason") != "common" {
			t.Errorf("reason %v", weak.body)
		}
		expect(complete(code, "00900123"), 422, "weak-private-code")
		expect(complete(wrongCode(code), goodCode), 401, "registration-failed")
		a = expect(complete(code, goodCode), 201, "")
		cus, dev := a.text("customer"), a.text("device")
		expect(complete(code, goodCode), 401, "registration-failed")

		a = expect(ada.do("POST", "/v1/logins", object{"phone": "+447700900123", "private_code": goodCode}), 202, "")
		a = expect(ada.do("POST", "/v1/logins/"+a.text("login")+"/complete", object{"code": h.code(number(123))}), 200, "")
		if a.text("customer") != cus || a.text("device") != dev || a.text("token_type") != "DPoP" ||
			a.body["expires_in"] != 300.0 || a.body["refresh_expires_in"] != 3600.0 || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("tokens %v %v", a.body, a.header)
		}
		refresh, session := a.text("refresh_token"), a.text("session")
		ada.access = a.text("access_token")
		if len(ada.access) != tokenLength {
			t.Errorf("token of %d bytes", len(ada.access))
		}
		a = expect(ada.do("GET", "/v1/session", nil), 200, "")
		if a.text("session") != session || a.text("device_name") != "Ada's phone" || a.text("customer") != cus {
			t.Errorf("session %v", a.body)
		}
		if _, err := time.Parse(time.RFC3339, a.text("idle_expires_at")); err != nil {
			t.Error(err)
		}

		h.clk.Advance(5 * time.Minute)
		expect(ada.do("GET", "/v1/session", nil), 401, "token-expired")
		old := ada.access
		ada.access = ""
		a = expect(ada.do("POST", "/v1/sessions/refresh", object{"refresh_token": refresh}), 200, "")
		ada.access = a.text("access_token")
		if ada.access == old || a.text("refresh_token") == refresh || a.text("session") != session {
			t.Errorf("refresh changed the wrong things: %v", a.body)
		}
		refresh = a.text("refresh_token")
		expect(ada.do("GET", "/v1/session", nil), 200, "")

		// A second telephone waits until the first approves it.
		second := h.newPhone(s)
		enter := func() answer {
			a := expect(second.do("POST", "/v1/logins", object{"phone": "+447700900123", "private_code": goodCode}), 202, "")
			return second.do("POST", "/v1/logins/"+a.text("login")+"/complete", object{"code": h.code(number(123)), "device_name": "Tablet"})
		}
		a = expect(enter(), 403, "device-pending")
		tablet, shown := a.text("device"), object{"number": a.text("number")}
		if again := expect(enter(), 403, "device-pending"); again.text("device") != tablet {
			t.Error("one key became two devices")
		}
		expect(second.do("GET", "/v1/devices", nil), 401, "invalid-token")
		a = expect(ada.do("GET", "/v1/devices", nil), 200, "")
		if got := fmt.Sprint(a.body["devices"]); !strings.Contains(got, "pending") || !strings.Contains(got, "current:true") || !strings.Contains(got, "name:Tablet") {
			t.Errorf("devices %s", got)
		}
		expect(ada.do("POST", "/v1/devices/dev_nope/approve", shown), 404, "device-not-found")
		expect(ada.do("DELETE", "/v1/devices/"+dev, nil), 409, "last-device")
		expect(ada.do("POST", "/v1/devices/"+tablet+"/approve", shown), 204, "")
		second.access = expect(enter(), 200, "").text("access_token")
		expect(second.do("GET", "/v1/session", nil), 200, "")

		// A lost telephone is shut out at once and for good.
		expect(ada.do("DELETE", "/v1/devices/"+tablet, nil), 204, "")
		expect(second.do("GET", "/v1/session", nil), 401, "this-device-revoked")
		second.access = ""
		expect(enter(), 401, "login-failed")
		expect(ada.do("POST", "/v1/devices/"+tablet+"/approve", shown), 409, "device-revoked")

		expect(ada.do("POST", "/v1/logout", nil), 204, "")
		expect(ada.do("GET", "/v1/session", nil), 401, "invalid-token")
		ada.access = ""
		expect(ada.do("POST", "/v1/sessions/refresh", object{"refresh_token": refresh}), 401, "session-revoked")

		for action, last := range map[string]string{
			ActionRegistrationStart: "granted", ActionLoginComplete: "granted", ActionSessionRefresh: "denied session-revoked",
			ActionSessionRevoke: "granted logout", ActionDeviceApprove: "denied device-revoked", ActionDeviceRevoke: "granted",
			ActionDeviceAdd: "granted", ActionDeviceList: "granted", ActionSessionCheck: "denied session-revoked", ActionMessageSend: "granted",
		} {
			if action == ActionLoginComplete {
				if !slices.Contains(h.events(action), "granted") || !slices.Contains(h.events(action), "denied device-pending") {
					t.Errorf("%s: %v", action, h.events(action))
				}
			} else if got := h.lastEvent(action); got != last {
				t.Errorf("%s: last event %q, want %q", action, got, last)
			}
		}
		if got := h.events(ActionRegistrationComplete); !slices.Equal(got, []string{
			"denied weak-private-code", "denied weak-private-code", "denied wrong-one-time-code", "granted", "denied used-code"}) {
			t.Errorf("registration events %v", got)
		}
		if logs := h.logs.String(); strings.Contains(logs, "7700900123") || strings.Contains(logs, goodCode) || strings.Contains(logs, refresh) {
			t.Error("the log tells secrets")
		}
	})
}

var anyID = regexp.MustCompile(`(log|reg)_[0-9a-hjkmnp-tv-z]{26}`)

// Unknown, wrong, locked and right are one answer, one hash and the same number of writes.
func TestASVS_6_3_8_LoginTellsNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, func(o *Options) { o.Wake = func(string) {} })
		s := h.serve()
		carry := func() {
			if err := h.deliver(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		owner := h.newPhone(s)
		started, err := h.StartRegistration(t.Context(), from(owner.jkt), number(1))
		if err != nil {
			t.Fatal(err)
		}
		carry()
		if _, err := h.CompleteRegistration(t.Context(), from(owner.jkt), started.ID, value(h.code(number(1))), value(goodCode), "x"); err != nil {
			t.Fatal(err)
		}
		stranger := h.newPhone(s)
		stranger.do("POST", "/v1/logins", object{"phone": number(900), "private_code": goodCode}) // fetches a nonce

		type trace struct {
			status             int
			raw, headers       string
			hashes             float64
			challenges, outbox int
			sizes              string
			second             string // what completing answers
		}
		observe := func(to, private, reason string) trace {
			t.Helper()
			hashes, challenges, outbox := counterValue(h.metrics.hashes), h.count("challenge"), h.count("sms_outbox")
			a := stranger.do("POST", "/v1/logins", object{"phone": to, "private_code": private})
			tr := trace{status: a.status, raw: anyID.ReplaceAllString(a.raw, "ID"), headers: fmt.Sprint(sorted(a.header))}
			tr.hashes = counterValue(h.metrics.hashes) - hashes
			tr.challenges, tr.outbox = h.count("challenge")-challenges, h.count("sms_outbox")-outbox
			tr.sizes = h.newestSizes()
			if got := h.lastEvent(ActionLoginStart); got != reason {
				t.Errorf("event %q, want %q", got, reason)
			}
			c := stranger.do("POST", "/v1/logins/"+a.text("login")+"/complete", object{"code": "000000"})
			tr.second = fmt.Sprint(c.status, c.raw, sorted(c.header))
			return tr
		}
		first := observe(number(2), goodCode, "denied unknown-number")
		if first.hashes != 1 || first.challenges != 1 || first.outbox != 1 || first.status != 202 || !strings.Contains(first.second, "login-failed") {
			t.Errorf("unknown number: %+v", first)
		}
		check := func(name string, got trace) {
			t.Helper()
			if got != first {
				t.Errorf("%s differs:\n%+v\n%+v", name, got, first)
			}
		}
		check("right", observe(number(1), goodCode, "granted"))
		for n := range maxFailures - 1 {
			check(fmt.Sprint("wrong ", n), observe(number(1), "83920486", "denied wrong-private-code"))
		}
		check("locked, right", observe(number(1), goodCode, "denied locked-out"))
		check("locked, wrong", observe(number(1), "83920486", "denied locked-out"))
		for range maxFailures + 1 {
			check("unknown again", observe(number(2), goodCode, "denied unknown-number"))
		}
		before := len(h.inbox.Search(number(1)))
		carry()
		if got := len(h.inbox.Search(number(1))) - before; got != 2 || warned(h, number(1)) != 1 {
			t.Errorf("%d messages, want 2: of the login that was right, and a warning", got)
		}
		if len(h.inbox.Search(number(2))) != 0 {
			t.Error("a message to a number that is not registered")
		}
		if n := h.count("sms_outbox"); n != 0 {
			t.Errorf("%d rows left in the outbox", n)
		}
	})
}

func (h *house) newestSizes() string {
	var a, b, c int
	err := h.DB.View(context.Background(), func(tx *db.Tx) error {
		if err := tx.QueryRow(context.Background(), `SELECT length(sealed), length(slot) FROM challenge ORDER BY id DESC LIMIT 1`).Scan(&a, &b); err != nil {
			return err
		}
		return tx.QueryRow(context.Background(), `SELECT length(sealed) FROM sms_outbox ORDER BY id DESC LIMIT 1`).Scan(&c)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return fmt.Sprint(a, b, c)
}

func counterValue(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	return m.GetCounter().GetValue()
}

func TestASVS_6_3_8_RegistrationTellsNothing(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		s := h.serve()
		p := h.newPhone(s)
		p.do("POST", "/v1/registrations", object{"phone": number(900)})
		unknown := p.do("POST", "/v1/registrations", object{"phone": number(2)})
		known := p.do("POST", "/v1/registrations", object{"phone": number(1)})
		mask := func(a answer) string {
			return fmt.Sprint(a.status, anyID.ReplaceAllString(a.raw, "ID"), sorted(a.header))
		}
		if mask(unknown) != mask(known) {
			t.Errorf("%s\n%s", mask(unknown), mask(known))
		}
		if text := h.inbox.Search(number(1))[0].Text; !strings.Contains(text, "already have an account") || sixDigits.MatchString(text) {
			t.Errorf("the owner is told %q", text)
		}
		for _, a := range []answer{unknown, known} {
			hashes := counterValue(h.metrics.hashes)
			c := p.do("POST", "/v1/registrations/"+a.text("registration")+"/complete", object{"code": "000000", "private_code": goodCode})
			if c.status != 401 || c.slug() != "registration-failed" || counterValue(h.metrics.hashes) != hashes {
				t.Errorf("%d %s", c.status, c.raw)
			}
		}
		if got := h.events(ActionRegistrationComplete); !slices.Equal(got[1:], []string{"denied wrong-one-time-code", "denied known-number"}) {
			t.Errorf("events %v", got)
		}
		if p.do("POST", "/v1/registrations", object{"phone": "+44 20 7946 0000"}).slug() != "invalid-phone" {
			t.Error("a fixed line is registered")
		}
	})
}

func TestASVS_6_6_2_OneTimeCodeBoundToRequest(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		start := func(key string) (string, string) {
			t.Helper()
			s, err := h.StartLogin(t.Context(), from(key), number(1), value(goodCode))
			if err != nil {
				t.Fatal(err)
			}
			return s.ID, h.code(number(1))
		}
		complete := func(login, key, code string) error {
			_, err := h.CompleteLogin(t.Context(), from(key), login, value(code), "")
			return err
		}
		reason := func(want string) {
			t.Helper()
			if got := h.lastEvent(ActionLoginComplete); got != "denied "+want {
				t.Errorf("event %q, want %q", got, want)
			}
		}
		t.Run("of another login, and of the one before", func(t *testing.T) {
			a, codeA := start("owner")
			b, codeB := start("owner")
			want(t, complete(b, "owner", codeA), "login-failed")
			reason("wrong-one-time-code")
			want(t, complete(a, "owner", codeA), "login-failed")
			reason("superseded-code")
			want(t, complete(b, "owner", codeB), "")
		})
		t.Run("on another device", func(t *testing.T) {
			a, code := start("owner")
			want(t, complete(a, "thief", code), "login-failed")
			reason("other-device")
			want(t, complete(a, "owner", code), "")
		})
		t.Run("twice", func(t *testing.T) {
			a, code := start("owner")
			want(t, complete(a, "owner", code), "")
			want(t, complete(a, "owner", code), "login-failed")
			reason("used-code")
		})
		t.Run("after three wrong ones", func(t *testing.T) {
			a, code := start("owner")
			for range codeTries {
				want(t, complete(a, "owner", wrongCode(code)), "login-failed")
				reason("wrong-one-time-code")
			}
			want(t, complete(a, "owner", code), "login-failed")
			reason("used-code")
		})
		t.Run("late", func(t *testing.T) {
			a, code := start("owner")
			h.clk.Advance(CodeLifetime - time.Second)
			b, codeB := start("owner")
			_ = a
			_ = code
			h.clk.Advance(CodeLifetime)
			want(t, complete(b, "owner", codeB), "login-failed")
			reason("expired-code")
		})
		t.Run("for a registration", func(t *testing.T) {
			a, code := start("owner")
			_, err := h.CompleteRegistration(t.Context(), from("owner"), strings.Replace(a, "log_", "reg_", 1), value(code), value(goodCode), "")
			want(t, err, "registration-failed")
			want(t, complete("reg_"+a[4:], "owner", code), "login-failed")
			want(t, complete("nonsense", "owner", code), "login-failed")
		})
		t.Run("a stranger's login voids nothing", func(t *testing.T) {
			a, code := start("owner")
			if _, err := h.StartLogin(t.Context(), from("thief"), number(1), value("83920486")); err != nil {
				t.Fatal(err)
			}
			want(t, complete(a, "owner", code), "")
		})
	})
}

func TestPSD2_RTS_4_FiveFailuresBlock(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		for range maxFailures {
			_, err := h.login(number(1), "attacker", "83920486")
			want(t, err, "login-failed")
		}
		codes := func() int { return len(h.inbox.Search(number(1))) - warned(h, number(1)) }
		sent := codes()
		for block := range 9 {
			_, err := h.login(number(1), "another attacker", goodCode)
			want(t, err, "login-failed")
			if got := h.lastEvent(ActionLoginStart); got != "denied locked-out" {
				t.Fatalf("event %q", got)
			}
			if codes() != sent {
				t.Fatal("a locked account sends codes")
			}
			pause := min(firstBlock<<block, longBlock)
			h.clk.Advance(pause - time.Second)
			_, err = h.login(number(1), "attacker", goodCode)
			want(t, err, "login-failed")
			h.clk.Advance(time.Second)
			for range maxFailures {
				_, err := h.login(number(1), "attacker", "83920486")
				want(t, err, "login-failed")
				if got := h.lastEvent(ActionLoginStart); got != "denied wrong-private-code" {
					t.Fatalf("block %d: event %q", block, got)
				}
			}
		}
		// All the while the customer's own device is let in, and that does not help the attacker.
		h.mustLogin(number(1), "owner")
		_, err := h.login(number(1), "attacker", goodCode)
		want(t, err, "login-failed")
		if got := h.lastEvent(ActionLoginStart); got != "denied locked-out" {
			t.Fatalf("event %q", got)
		}
	})
}

func TestNIST_3_2_2_AtMostHundredFailuresInARow(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		for n := 0; n < 2*ceiling; n++ {
			if _, err := h.StartLogin(t.Context(), from(fmt.Sprint("attacker", n)), number(1), value("83920486")); err != nil {
				t.Fatal(err)
			}
			h.clk.Advance(longBlock / 4)
		}
		if got := h.countEvents(ActionLoginStart, "denied wrong-private-code"); got != ceiling {
			t.Errorf("%d comparisons, want %d", got, ceiling)
		}
		h.clk.Advance(365 * 24 * time.Hour)
		if err := h.cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := h.login(number(1), "attacker", goodCode); !problem.Is(err, "login-failed") {
			t.Error("time opens the ceiling")
		}
		h.mustLogin(number(1), "owner")
		if _, err := h.login(number(1), "new telephone", goodCode); !problem.Is(err, "device-pending") {
			t.Errorf("after a login by a known device unknown ones may try again: %v", err)
		}
	})
}

func TestOwnDeviceHasItsOwnCount(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		for range maxFailures {
			if _, err := h.login(number(1), "owner", "83920486"); !problem.Is(err, "login-failed") {
				t.Fatal(err)
			}
		}
		if _, err := h.login(number(1), "owner", goodCode); !problem.Is(err, "login-failed") {
			t.Error("a stolen telephone may guess for ever")
		}
		if _, err := h.login(number(1), "new", goodCode); !problem.Is(err, "device-pending") {
			t.Error("one device's failures lock another")
		}
		h.clk.Advance(firstBlock)
		h.mustLogin(number(1), "owner")
	})
}

// Asking for new codes, with the right private code, resets no count (NIST SP 800-63B-4 3.1.3.1).
func TestNewCodeResetsNoCount(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		wrong := 0
		for range 2 * maxFailures {
			s, err := h.StartLogin(t.Context(), from("thief"), number(1), value(goodCode))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				_, err = h.CompleteLogin(t.Context(), from("thief"), s.ID, value(wrongCode(h.code(number(1)))), "")
				want(t, err, "login-failed")
			}
		}
		wrong = h.countEvents(ActionLoginComplete, "denied wrong-one-time-code")
		if wrong > maxFailures+1 {
			t.Errorf("%d one-time codes were tried", wrong)
		}
		h.mustLogin(number(1), "owner")
	})
}

func TestGuessesInParallelAreAllCounted(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		var wg sync.WaitGroup
		for n := range 30 {
			wg.Go(func() {
				by := from(fmt.Sprint("attacker", n))
				by.Address = netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})
				_, err := h.StartLogin(context.Background(), by, number(1), value("83920486"))
				if err != nil && !problem.Is(err, "login-busy") {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := h.countEvents(ActionLoginStart, "denied wrong-private-code"); got != maxFailures {
			t.Errorf("%d comparisons at the same instant", got)
		}

		s, err := h.StartLogin(t.Context(), from("owner"), number(1), value(goodCode))
		if err != nil {
			t.Fatal(err)
		}
		wrong := wrongCode(h.code(number(1)))
		for range 20 {
			wg.Go(func() {
				_, err := h.CompleteLogin(context.Background(), from("owner"), s.ID, value(wrong), "")
				want(t, err, "login-failed")
			})
		}
		wg.Wait()
		if got := h.countEvents(ActionLoginComplete, "denied wrong-one-time-code"); got != codeTries {
			t.Errorf("%d one-time codes were compared", got)
		}
	})
}

func TestOneNumberHasOneAccount(t *testing.T) {
	each(t, func(o *Options) { o.HashWorkers, o.HashQueue = 4, 100 }, func(t *testing.T, h *house) {
		const n = 6
		ids, codes := make([]string, n), make([]string, n)
		for k := range n {
			s, err := h.StartRegistration(t.Context(), from(fmt.Sprint("device", k)), number(1))
			if err != nil {
				t.Fatal(err)
			}
			ids[k], codes[k] = s.ID, h.code(number(1))
		}
		var won atomic.Int32
		var wg sync.WaitGroup
		for k := range n {
			wg.Go(func() {
				_, err := h.CompleteRegistration(context.Background(), from(fmt.Sprint("device", k)), ids[k], value(codes[k]), value(goodCode), "x")
				if err == nil {
					won.Add(1)
				} else if !problem.Is(err, "registration-failed") {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || h.count("account") != 1 || h.count("device") != 1 || h.count("data_key") != 1 {
			t.Errorf("%d winners, %d accounts, %d devices, %d keys", won.Load(), h.count("account"), h.count("device"), h.count("data_key"))
		}
		if got := h.countEvents(ActionRegistrationComplete, "denied known-number"); got != n-1 {
			t.Errorf("events %v", h.events(ActionRegistrationComplete))
		}
	})
}

func TestRefreshTokens(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		refresh := func(key string, token string) (Tokens, error) {
			return h.Refresh(t.Context(), from(key), value(token))
		}
		text := func(tokens Tokens) string { return string(tokens.Refresh.Reveal()) }

		t.Run("ASVS 7.2.4: of another device is refused and ends nothing", func(t *testing.T) {
			first := h.mustLogin(number(1), "owner")
			_, err := refresh("thief", text(first))
			want(t, err, "invalid-refresh-token")
			if got := h.lastEvent(ActionSessionRefresh); got != "denied other-device" {
				t.Errorf("event %q", got)
			}
			_, err = refresh("owner", text(first))
			want(t, err, "")
		})
		t.Run("RFC 9700 4.14: reuse ends the session", func(t *testing.T) {
			first := h.mustLogin(number(1), "owner")
			second, err := refresh("owner", text(first))
			want(t, err, "")
			h.clk.Advance(grace + time.Second)
			_, err = refresh("owner", text(first))
			want(t, err, "session-revoked")
			if got := h.lastEvent(ActionSessionRefresh); got != "denied refresh-token-reused" {
				t.Errorf("event %q", got)
			}
			if got := h.lastEvent(ActionSessionRevoke); got != "granted refresh-token-reused" {
				t.Errorf("event %q", got)
			}
			_, err = refresh("owner", text(second))
			want(t, err, "session-revoked")
		})
		t.Run("in parallel all get siblings, and the first use of one voids the rest", func(t *testing.T) {
			first := h.mustLogin(number(1), "owner")
			var won atomic.Int32
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if _, err := h.Refresh(context.Background(), from("owner"), first.Refresh); err == nil {
						won.Add(1)
					} else if !problem.Is(err, "session-revoked") {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if won.Load() != 8 {
				t.Errorf("%d winners", won.Load())
			}
			next, err := refresh("owner", text(first))
			want(t, err, "")
			_, err = refresh("owner", text(next))
			want(t, err, "")
			_, err = refresh("owner", text(first))
			want(t, err, "session-revoked")
		})
		t.Run("NIST AAL2: idle for an hour", func(t *testing.T) {
			first := h.mustLogin(number(1), "owner")
			h.clk.Advance(time.Hour)
			_, err := refresh("owner", text(first))
			want(t, err, "invalid-refresh-token")
		})
		t.Run("NIST AAL2: a day at most", func(t *testing.T) {
			tokens := h.mustLogin(number(1), "owner")
			for range 26 {
				h.clk.Advance(55 * time.Minute)
				next, err := refresh("owner", text(tokens))
				if err != nil {
					break
				}
				if next.RefreshExpires > time.Hour || next.AccessExpires > 5*time.Minute {
					t.Errorf("lifetimes %v %v", next.AccessExpires, next.RefreshExpires)
				}
				tokens = next
			}
			h.clk.Advance(50 * time.Minute)
			_, err := refresh("owner", text(tokens))
			want(t, err, "invalid-refresh-token")
		})
		for _, junk := range []string{"", "x", "srt_" + strings.Repeat("A", 43), "sat_" + strings.Repeat("A", 43)} {
			_, err := refresh("owner", junk)
			want(t, err, "invalid-refresh-token")
		}
	})
}

// What the door refuses, and what the trail says of it.
func TestSessionCheck(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		ada, eve := h.newPhone(s), h.newPhone(s)
		h.register(number(1), ada.jkt)
		tokens := h.mustLogin(number(1), ada.jkt)
		good := string(tokens.Access.Reveal())
		ada.nonce, eve.nonce = h.Nonce(), h.Nonce()

		rows := []struct {
			name          string
			by            *phoneClient
			token         string
			change        func(r *http.Request)
			status        int
			slug, reason  string
			authenticate  string
			notAnEventYet bool
		}{
			{name: "good", by: ada, token: good, status: 200},
			{name: "scheme in lower case", by: ada, token: good, status: 200, change: func(r *http.Request) { r.Header.Set("Authorization", "dpop "+good) }},
			{name: "no token", by: ada, status: 401, slug: "invalid-token", reason: "no-token", authenticate: `DPoP algs="ES256"`},
			{name: "bearer", by: ada, token: good, change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+good) }, status: 401, slug: "invalid-token", reason: "no-token"},
			{name: "two tokens", by: ada, token: good, change: func(r *http.Request) { r.Header.Add("Authorization", "DPoP "+good) }, status: 401, slug: "invalid-token", reason: "no-token"},
			{name: "stolen token, thief's key", by: eve, token: good, status: 401, slug: "invalid-token", reason: "other-device", authenticate: `error="invalid_token"`},
			{name: "made-up token", by: ada, token: "sat_" + strings.Repeat("A", 43), status: 401, slug: "invalid-token", reason: "unknown-token"},
			{name: "refresh token", by: ada, token: string(tokens.Refresh.Reveal()), status: 401, slug: "invalid-token", reason: "unknown-token"},
			{name: "no proof", by: ada, token: good, change: func(r *http.Request) { r.Header.Del("DPoP") }, status: 401, slug: "invalid-dpop-proof", reason: "proof-missing", authenticate: `error="invalid_dpop_proof"`},
			{name: "proof of another token", by: ada, token: good, change: func(r *http.Request) { r.Header.Set("DPoP", ada.proof("GET", "/v1/session", "sat_x")) }, status: 401, slug: "invalid-dpop-proof", reason: "proof-token"},
			{name: "proof of another request", by: ada, token: good, change: func(r *http.Request) { r.Header.Set("DPoP", ada.proof("POST", "/v1/logout", good)) }, status: 401, slug: "invalid-dpop-proof", reason: "proof-method"},
			{name: "no nonce", by: &phoneClient{t: t, server: s, key: ada.key, h: h}, token: good, status: 401, slug: "use-dpop-nonce", authenticate: `DPoP error="use_dpop_nonce"`},
		}
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				before := len(h.events(ActionSessionCheck))
				r, err := http.NewRequest("GET", s.URL+"/v1/session", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("DPoP", row.by.proof("GET", "/v1/session", row.token))
				if row.token != "" {
					r.Header.Set("Authorization", "DPoP "+row.token)
				}
				if row.change != nil {
					row.change(r)
				}
				a := row.by.send(r)
				if a.status != row.status || a.slug() != row.slug || strings.Contains(a.raw, good) {
					t.Errorf("%d %s", a.status, a.raw)
				}
				if got := a.header.Get("WWW-Authenticate"); !strings.Contains(got, row.authenticate) || row.slug != "" && got == "" {
					t.Errorf("WWW-Authenticate %q", got)
				}
				if len(a.header["Dpop-Nonce"]) != 1 {
					t.Errorf("nonces %v", a.header["Dpop-Nonce"])
				}
				events := h.events(ActionSessionCheck)[before:]
				if row.reason == "" && len(events) != 0 || row.reason != "" && !slices.Equal(events, []string{"denied " + row.reason}) {
					t.Errorf("events %v, want %q", events, row.reason)
				}
			})
		}
		t.Run("replay", func(t *testing.T) {
			proof := ada.proof("GET", "/v1/session", good)
			for n := range 2 {
				r, _ := http.NewRequest("GET", s.URL+"/v1/session", nil)
				r.Header.Set("DPoP", proof)
				r.Header.Set("Authorization", "DPoP "+good)
				if a := ada.send(r); n == 1 && a.slug() != "invalid-dpop-proof" || n == 0 && a.status != 200 {
					t.Errorf("time %d: %d %s", n, a.status, a.raw)
				}
			}
		})
		t.Run("use keeps a session from idling, to the minute", func(t *testing.T) {
			h.clk.Advance(90 * time.Second)
			ada.nonce, ada.access = h.Nonce(), good
			was := h.idleExpires(tokens.Session)
			if a := ada.do("GET", "/v1/session", nil); a.status != 200 {
				t.Fatal(a.raw)
			}
			if moved := h.idleExpires(tokens.Session) - was; moved != (90 * time.Second).Microseconds() {
				t.Errorf("moved by %d", moved)
			}
			h.clk.Advance(30 * time.Second)
			was = h.idleExpires(tokens.Session)
			if a := ada.do("GET", "/v1/session", nil); a.status != 200 || h.idleExpires(tokens.Session) != was {
				t.Error("written at every request")
			}
		})
	})
}

func (h *house) idleExpires(session string) (us int64) {
	err := h.DB.View(context.Background(), func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), `SELECT idle_expires_at FROM session WHERE id = $1`, session).Scan(&us)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return us
}

func TestFloodOfJunkLeavesBoundedTrace(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		for range 500 {
			_, err := h.Refresh(t.Context(), from("x"), value("junk"))
			want(t, err, "invalid-refresh-token")
		}
		if got := len(h.events(ActionSessionRefresh)); got != denialBurst {
			t.Errorf("%d events", got)
		}
		if got := counterValue(h.metrics.unrecorded); got != 500-denialBurst {
			t.Errorf("%v counted", got)
		}
		// A genuine session is not hidden behind the junk.
		h.register(number(1), "owner")
		tokens := h.mustLogin(number(1), "owner")
		_, err := h.Refresh(t.Context(), from("thief"), tokens.Refresh)
		want(t, err, "invalid-refresh-token")
		if got := h.lastEvent(ActionSessionRefresh); got != "denied other-device" {
			t.Errorf("event %q", got)
		}
	})
}

func TestLimits(t *testing.T) {
	t.Run("per address", func(t *testing.T) {
		each(t, func(o *Options) { o.Limits.Logins = Rate{3, time.Hour} }, func(t *testing.T, h *house) {
			by := from("k")
			start := func() error {
				_, err := h.StartLogin(t.Context(), by, number(1), value(goodCode))
				return err
			}
			by.Address = netip.MustParseAddr("2001:db8:1:2::1")
			for range 3 {
				want(t, start(), "")
			}
			by.Address = netip.MustParseAddr("2001:db8:1:2:ffff::9") // the same customer of the provider
			for range 5 {
				err := start()
				want(t, err, "too-many-requests")
				if p := problem.Of(err); p == nil || p.GetHeaders().Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
			}
			if got := h.countEvents(ActionLoginStart, "denied too-many-requests"); got != 1 {
				t.Errorf("%d events for one window", got)
			}
			by.Address = netip.MustParseAddr("2001:db8:1:3::1")
			want(t, start(), "")
			by.Address = netip.MustParseAddr("::ffff:192.0.2.7")
			want(t, start(), "")
			// Another replica counts on.
			other := newHouseOn(h)
			by.Address = netip.MustParseAddr("2001:db8:1:2::1")
			_, err := other.StartLogin(t.Context(), by, number(1), value(goodCode))
			want(t, err, "too-many-requests")
			h.clk.Advance(2 * time.Hour)
			want(t, start(), "")
		})
	})
	t.Run("per number, silently, and apart for the customer's device", func(t *testing.T) {
		each(t, func(o *Options) { o.Limits.NumberHourly, o.Limits.NumberDaily = 3, 4 }, func(t *testing.T, h *house) {
			h.register(number(1), "owner")
			sent := func() int { return len(h.inbox.Search(number(1))) }
			before := sent()
			for n := range 6 {
				s, err := h.StartLogin(t.Context(), from("thief with the code"), number(1), value(goodCode))
				if err != nil || s.ID == "" {
					t.Fatalf("%d: %v", n, err)
				}
			}
			if sent()-before != 3 {
				t.Errorf("%d messages in an hour", sent()-before)
			}
			if got := h.lastEvent(ActionLoginStart); got != "denied message-quota" {
				t.Errorf("event %q", got)
			}
			h.mustLogin(number(1), "owner")
			h.clk.Advance(2 * time.Hour)
			before = sent()
			for range 6 {
				if _, err := h.StartLogin(t.Context(), from("thief with the code"), number(1), value(goodCode)); err != nil {
					t.Fatal(err)
				}
			}
			if sent()-before != 1 {
				t.Errorf("%d more messages in a day", sent()-before)
			}
			for range 6 {
				if _, err := h.StartRegistration(t.Context(), from("prankster"), number(7)); err != nil {
					t.Fatal(err)
				}
			}
			if got := len(h.inbox.Search(number(7))); got != 3 {
				t.Errorf("%d messages to a number that is not registered", got)
			}
		})
	})
	t.Run("per day, for each class", func(t *testing.T) {
		each(t, func(o *Options) { o.Limits.Daily = 12 }, func(t *testing.T, h *house) {
			h.register(number(1), "owner")
			for n := range 2 {
				if _, err := h.StartRegistration(t.Context(), from("x"), number(10+n)); err != nil {
					t.Fatal(err)
				}
			}
			// Strangers have drained the registrations of the day, and registrations alone.
			_, err := h.StartRegistration(t.Context(), from("x"), number(13))
			want(t, err, "sms-unavailable")
			for range 3 {
				if _, err := h.StartLogin(t.Context(), from("thief with the code"), number(1), value(goodCode)); err != nil {
					t.Fatal(err)
				}
			}
			for _, to := range []string{number(1), number(2)} {
				_, err := h.StartLogin(t.Context(), from("thief"), to, value(goodCode))
				want(t, err, "sms-unavailable")
			}
			for range 6 {
				h.mustLogin(number(1), "owner")
			}
			sent := len(h.inbox.Search(""))
			if sent != 12 {
				t.Errorf("%d messages with a cap of 12", sent)
			}
			_, err = h.StartLogin(t.Context(), from("owner"), number(1), value(goodCode))
			want(t, err, "sms-unavailable")
			h.clk.Advance(48 * time.Hour)
			h.mustLogin(number(1), "owner")
			h.register(number(3), "another")
		})
	})
}

// newHouseOn is another replica on the same database.
func newHouseOn(h *house) *house {
	i, err := New(h.Options)
	if err != nil {
		h.t.Fatal(err)
	}
	return &house{Identity: i, t: h.t, inbox: h.inbox, clk: h.clk, logs: h.logs}
}

func TestDevices(t *testing.T) {
	each(t, func(o *Options) { o.MaxDevices = 3 }, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		h.register(number(2), "other")
		owner := h.acting(h.mustLogin(number(1), "owner"), "owner")
		other := h.acting(h.mustLogin(number(2), "other"), "other")
		var shown string
		pendingDevice := func(key string) (string, error) {
			_, err := h.login(number(1), key, goodCode)
			if p := problem.Of(err); p != nil && p.Member("device") != nil {
				if shown == "" {
					shown = p.Member("number").(string)
				}
				return p.Member("device").(string), err
			}
			return "", err
		}
		second, err := pendingDevice("second")
		want(t, err, "device-pending")
		third, err := pendingDevice("third")
		want(t, err, "device-pending")
		_, err = pendingDevice("fourth")
		want(t, err, "too-many-devices")

		want(t, h.ApproveDevice(t.Context(), other, second, shown), "device-not-found")
		want(t, h.RevokeDevice(t.Context(), other, second), "device-not-found")
		want(t, h.ApproveDevice(t.Context(), from("second"), second, shown), "customers-only")
		want(t, h.ApproveDevice(t.Context(), owner, second, shown), "")
		want(t, h.ApproveDevice(t.Context(), owner, second, shown), "")
		want(t, h.RevokeDevice(t.Context(), owner, third), "")
		want(t, h.RevokeDevice(t.Context(), owner, third), "")

		// Two devices that revoke each other at the same instant do not both succeed.
		secondActor := h.acting(h.mustLogin(number(1), "second"), "second")
		var wg sync.WaitGroup
		var done atomic.Int32
		for _, pair := range []struct {
			by     int
			device string
		}{{0, second}, {1, owner.Device}} {
			wg.Go(func() {
				by := owner
				if pair.by == 1 {
					by = secondActor
				}
				if err := h.RevokeDevice(context.Background(), by, pair.device); err == nil {
					done.Add(1)
				} else if !problem.Is(err, "session-revoked") && !problem.Is(err, "last-device") {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if done.Load() != 1 {
			t.Errorf("%d revocations", done.Load())
		}

		// One telephone may serve two customers; for each it is a device of its own.
		_, err = h.login(number(2), "owner", goodCode)
		want(t, err, "device-pending")
	})
}

func TestHashQueue(t *testing.T) {
	each(t, func(o *Options) { o.HashWorkers, o.HashQueue = 1, 1 }, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		leave, err := h.hasher.enter(t.Context(), guest{})
		if err != nil {
			t.Fatal(err)
		}
		// One of each kind may wait, and leaves the queue with its context.
		ctx, cancel := context.WithCancel(t.Context())
		waiting := make(chan error)
		for _, g := range []guest{{}, {known: true}} {
			go func() {
				_, err := h.hasher.enter(ctx, g)
				waiting <- err
			}()
		}
		for h.hasher.queue.length() < 3 {
			time.Sleep(time.Millisecond)
		}
		challenges := h.count("challenge")
		for _, key := range []string{"owner", "stranger"} {
			for _, to := range []string{number(1), number(2)} {
				_, err := h.StartLogin(t.Context(), from(key), to, value(goodCode))
				want(t, err, "login-busy")
				if p := problem.Of(err); p == nil || p.GetHeaders().Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
			}
		}
		if h.count("challenge") != challenges || h.count("throttle") != 0 {
			t.Error("something was done for a login that was refused for lack of a worker")
		}
		cancel()
		for range 2 {
			if err := <-waiting; !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		}
		leave()
		h.mustLogin(number(1), "owner")
		if n := h.hasher.queue.length(); n != 0 || len(h.hasher.queue.held) != 0 {
			t.Errorf("%d places are still taken", n)
		}
	})
}

func TestCleanup(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		h.mustLogin(number(1), "owner")
		for range 3 {
			if _, err := h.login(number(2), "x", goodCode); err == nil {
				t.Fatal("unknown number got in")
			}
		}
		if err := h.cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if h.count("session") != 1 || h.count("refresh_token") != 1 || h.count("challenge") != 5 {
			t.Error("something that lives was deleted")
		}
		h.clk.Advance(100 * 24 * time.Hour)
		if err := h.cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"challenge", "access_token", "refresh_token", "session", "quota", "sms_outbox", "throttle"} {
			if n := h.count(table); n != 0 {
				t.Errorf("%d rows left in %s", n, table)
			}
		}
		h.mustLogin(number(1), "owner")
	})
}

func TestNothingReadableInTheDatabase(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		tokens := h.mustLogin(number(1), "owner")
		var phone, name, hash []byte
		err := h.DB.View(t.Context(), func(tx *db.Tx) error {
			if err := tx.QueryRow(t.Context(), `SELECT phone, code_hash FROM account`).Scan(&phone, &hash); err != nil {
				return err
			}
			return tx.QueryRow(t.Context(), `SELECT name FROM device`).Scan(&name)
		})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(phone), "7700900") || strings.Contains(string(name), "First") || !strings.HasPrefix(string(hash), "$2a$04$") {
			t.Error("plaintext")
		}
		if s := fmt.Sprintf("%v %+v", tokens, tokens); strings.Contains(s, "sat_") || strings.Contains(s, "srt_") {
			t.Error("tokens print themselves")
		}
		var c customer.ID
		err = h.DB.View(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT customer_id FROM account WHERE phone_index = $1`, h.phoneIndexes(number(1))[0].Value).Scan(&c)
		})
		if err != nil || c != tokens.Customer {
			t.Error("the number is not found by its blind index")
		}
	})
}

func TestASVS_6_5_4_CodesAreUniform(t *testing.T) {
	const n = 60_000
	var digits [6][10]int
	for range n {
		code := newOneTimeCode()
		if len(code) != 6 {
			t.Fatalf("%q", code)
		}
		for i, c := range code {
			digits[i][c-'0']++
		}
	}
	for i := range digits {
		chi := 0.0
		for _, got := range digits[i] {
			d := float64(got) - n/10.0
			chi += d * d / (n / 10.0)
		}
		if chi > 45 { // 9 degrees of freedom: once in a million runs
			t.Errorf("position %d: chi-squared %.1f, %v", i, chi, digits[i])
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), nil)
	for name, change := range map[string]func(*Options){
		"no database":  func(o *Options) { o.DB = nil },
		"no sender":    func(o *Options) { o.Sender = nil },
		"cost":         func(o *Options) { o.Cost = 40 },
		"short codes":  func(o *Options) { o.MinCodeLength = 5 },
		"wrong origin": func(o *Options) { o.Origins = []string{"app.example/x"} },
	} {
		o := h.Options
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	o := h.Options
	o.Metrics = prometheus.NewRegistry()
	if _, err := New(o); err != nil {
		t.Error(err)
	}
}
