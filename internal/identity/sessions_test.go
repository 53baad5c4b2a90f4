package identity

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// loginFor logs in and asks for scopes.
func (h *house) loginFor(to, key, scope string) Tokens {
	h.t.Helper()
	s, err := h.StartLogin(context.Background(), from(key), to, value(goodCode))
	if err != nil {
		h.t.Fatal(err)
	}
	t, err := h.CompleteLoginBy(context.Background(), from(key), s.ID, Answer{Code: value(h.code(to)), DeviceName: "Another", Scope: scope})
	if err != nil {
		h.t.Fatal(err)
	}
	return t
}

// An answer that was lost on the way costs nothing; a thief is found out all the same.
func TestRFC_9700_4_14_LostAnswersAndThieves(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		refresh := func(key string, tokens Tokens) (Tokens, error) {
			return h.Refresh(t.Context(), from(key), tokens.Refresh)
		}
		t.Run("the same device asks again within the grace", func(t *testing.T) {
			first := h.mustLogin(number(1), "owner")
			lost, err := refresh("owner", first)
			want(t, err, "")
			h.clk.Advance(grace)
			again, err := refresh("owner", first)
			want(t, err, "")
			if got := h.lastEvent(ActionSessionRefresh); got != "granted answer-lost" {
				t.Errorf("event %q", got)
			}
			if again.Session != first.Session || string(again.Refresh.Reveal()) == string(lost.Refresh.Reveal()) {
				t.Error("not a pair of the same session of its own")
			}
			_, err = refresh("owner", again)
			want(t, err, "")
		})
		t.Run("an answer that arrived was not lost", func(t *testing.T) {
			first := h.mustLogin(number(1), "owner")
			second, err := refresh("owner", first)
			want(t, err, "")
			_, err = refresh("owner", second)
			want(t, err, "")
			_, err = refresh("owner", first)
			want(t, err, "session-revoked")
		})
		t.Run("a thief with another key ends the session, also within the grace", func(t *testing.T) {
			first := h.mustLogin(number(1), "owner")
			second, err := refresh("owner", first)
			want(t, err, "")
			_, err = refresh("thief", first)
			want(t, err, "invalid-refresh-token")
			if got := h.lastEvent(ActionSessionRevoke); got != "granted refresh-token-reused" {
				t.Errorf("event %q", got)
			}
			_, err = refresh("owner", second)
			want(t, err, "session-revoked")
		})
		t.Run("after the grace nobody asks again", func(t *testing.T) {
			first := h.mustLogin(number(1), "owner")
			_, err := refresh("owner", first)
			want(t, err, "")
			h.clk.Advance(grace + time.Second)
			_, err = refresh("owner", first)
			want(t, err, "session-revoked")
		})
	})
}

func TestPSD2_RTS_4_ScopesEndByThemselves(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		ada := h.newPhone(s)
		h.register(number(1), ada.jkt)
		tokens := h.loginFor(number(1), ada.jkt, "payment read")
		if tokens.Scope != "read payment" || tokens.RefreshExpires != 30*24*time.Hour {
			t.Errorf("scope %q for %v", tokens.Scope, tokens.RefreshExpires)
		}
		ada.access = string(tokens.Access.Reveal())
		payment := "/v1/payments/pay_01jd8xk2m3n4p5q6r7s8t9v0wx"
		if a := ada.do("GET", payment, nil); a.slug() != "payment-not-found" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		h.clk.Advance(4*time.Minute + 50*time.Second)
		if a := ada.do("GET", payment, nil); a.slug() != "payment-not-found" {
			t.Errorf("after 4:50 %d %s", a.status, a.raw)
		}
		h.clk.Advance(5 * time.Minute)
		next, err := h.Refresh(t.Context(), from(ada.jkt), tokens.Refresh)
		want(t, err, "")
		if next.Scope != "read" {
			t.Errorf("scope %q after five idle minutes", next.Scope)
		}
		ada.access = string(next.Access.Reveal())
		a := ada.do("GET", payment, nil)
		if a.status != 403 || a.slug() != "insufficient-scope" || a.header.Get("WWW-Authenticate") != `DPoP error="insufficient_scope", scope="payment", algs="ES256"` {
			t.Errorf("%d %s %s", a.status, a.raw, a.header.Get("WWW-Authenticate"))
		}
		if got := h.lastEvent(ActionSessionCheck); got != "denied insufficient-scope" {
			t.Errorf("event %q", got)
		}
		if a := ada.do("GET", "/v1/session", nil); a.status != 200 || a.text("scope") != "read" || a.text("acr") != ACR {
			t.Errorf("%d %s", a.status, a.raw)
		}
		if a := ada.do("DELETE", "/v1/devices/"+tokens.Device, nil); a.slug() != "insufficient-scope" {
			t.Errorf("a session that reads revokes a device: %d %s", a.status, a.raw)
		}
		h.clk.Advance(29 * 24 * time.Hour)
		again, err := h.Refresh(t.Context(), from(ada.jkt), next.Refresh)
		want(t, err, "")
		h.clk.Advance(29 * 24 * time.Hour)
		again, err = h.Refresh(t.Context(), from(ada.jkt), again.Refresh)
		want(t, err, "")
		h.clk.Advance(29 * 24 * time.Hour)
		again, err = h.Refresh(t.Context(), from(ada.jkt), again.Refresh)
		want(t, err, "")
		h.clk.Advance(4 * 24 * time.Hour)
		_, err = h.Refresh(t.Context(), from(ada.jkt), again.Refresh)
		want(t, err, "invalid-refresh-token")

		paying := h.loginFor(number(1), ada.jkt, "payment")
		h.clk.Advance(5 * time.Minute)
		_, err = h.Refresh(t.Context(), from(ada.jkt), paying.Refresh)
		want(t, err, "invalid-refresh-token")
		_, err = h.CompleteLoginBy(t.Context(), from(ada.jkt), "log_x", Answer{Code: value("000000"), Scope: "everything"})
		want(t, err, "invalid-scope")
	})
}

// Scopes are under the stamp: whoever can write to the database widens none.
func TestForgedScopesLetNobodyIn(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		tokens := h.loginFor(number(1), "owner", "read")
		for _, scope := range []string{"read payment", ""} {
			if err := h.DB.Update(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), `UPDATE session SET scope = $1 WHERE id = $2`, scope, tokens.Session)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Refresh(t.Context(), from("owner"), tokens.Refresh); err == nil || problem.Of(err) != nil {
				t.Errorf("scope %q: %v", scope, err)
			}
		}
	})
}

func TestRFC_9470_StepUp(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		ada := h.newPhone(s)
		h.register(number(1), ada.jkt)
		tokens := h.mustLogin(number(1), ada.jkt)
		_, err := h.login(number(1), "new", goodCode)
		device, _ := problem.Of(err).Member("device").(string)
		shown := object{"number": problem.Of(err).Member("number")}
		h.clk.Advance(15*time.Minute + time.Second)
		next, err := h.Refresh(t.Context(), from(ada.jkt), tokens.Refresh)
		want(t, err, "")
		ada.access = string(next.Access.Reveal())
		a := ada.do("POST", "/v1/devices/"+device+"/approve", shown)
		if a.status != 401 || a.slug() != "step-up-needed" {
			t.Fatalf("%d %s", a.status, a.raw)
		}
		for _, part := range []string{`error="insufficient_user_authentication"`, `acr_values="aal2"`, `max_age="900"`} {
			if got := a.header.Get("WWW-Authenticate"); !strings.Contains(got, part) {
				t.Errorf("%s is not in %q", part, got)
			}
		}
		if got := h.lastEvent(ActionDeviceApprove); got != "denied step-up-needed" {
			t.Errorf("event %q", got)
		}
		ada.access = string(h.mustLogin(number(1), ada.jkt).Access.Reveal())
		if a := ada.do("POST", "/v1/devices/"+device+"/approve", shown); a.status != 204 {
			t.Errorf("after a new login: %d %s", a.status, a.raw)
		}
	})
}

func TestASVS_7_5_2_CustomersSeeAndEndTheirSessions(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		ada := h.newPhone(s)
		h.register(number(1), ada.jkt)
		h.register(number(2), "other")
		first, second, third := h.mustLogin(number(1), ada.jkt), h.loginFor(number(1), ada.jkt, "read"), h.mustLogin(number(1), ada.jkt)
		foreign := h.mustLogin(number(2), "other")
		ada.access = string(first.Access.Reveal())
		a := ada.do("GET", "/v1/sessions", nil)
		all, _ := a.body["sessions"].([]any)
		if len(all) != 3 {
			t.Fatalf("%d %s", a.status, a.raw)
		}
		for _, v := range all {
			one := v.(map[string]any)
			if one["device_name"] != "First" || one["address"] != "192.0.2.1" || one["current"] != (one["session"] == first.Session) {
				t.Errorf("%v", one)
			}
		}
		if a := ada.do("DELETE", "/v1/sessions/"+foreign.Session, nil); a.slug() != "session-not-found" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		if a := ada.do("DELETE", "/v1/sessions/"+second.Session, nil); a.status != 204 {
			t.Errorf("%d %s", a.status, a.raw)
		}
		_, err := h.Refresh(t.Context(), from(ada.jkt), second.Refresh)
		want(t, err, "session-revoked")
		if a := ada.do("POST", "/v1/sessions/revoke-others", map[string]any{}); a.status != 200 || a.body["revoked"] != 1.0 {
			t.Errorf("%d %s", a.status, a.raw)
		}
		_, err = h.Refresh(t.Context(), from(ada.jkt), third.Refresh)
		want(t, err, "session-revoked")
		if a := ada.do("GET", "/v1/session", nil); a.status != 200 {
			t.Errorf("%d %s", a.status, a.raw)
		}
		_, err = h.Refresh(t.Context(), from("other"), foreign.Refresh)
		want(t, err, "")
	})
}

// What a change of the private code does: every session ends, and so does every code that could become one.
func TestASVS_7_4_3_EndSessions(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "owner")
		first, second := h.mustLogin(number(1), "owner"), h.mustLogin(number(1), "owner")
		code := h.authorise(number(1), "owner", verifier, "write")
		var n int
		err := h.DB.Update(t.Context(), func(tx *db.Tx) (err error) {
			n, err = h.endSessions(t.Context(), tx, actor.OfSystem("test"), first.Customer, first.Session, "private-code-changed", h.clk.Now())
			return err
		})
		if err != nil || n != 1 {
			t.Fatal(n, err)
		}
		_, err = h.Refresh(t.Context(), from("owner"), second.Refresh)
		want(t, err, "session-revoked")
		_, err = h.ExchangeCode(t.Context(), from("owner"), code, value(verifier), OAuthClient, "")
		want(t, err, "invalid-grant")
		_, err = h.Refresh(t.Context(), from("owner"), first.Refresh)
		want(t, err, "")
		if got := h.lastEvent(ActionSessionRevoke); got != "granted private-code-changed" {
			t.Errorf("event %q", got)
		}
	})
}

// What changes something in a session that may pay is accepted once, however many servers there are.
func TestRFC_9449_11_1_ReplayAtAnotherServer(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		if h.DB.Engine() == db.SQLite {
			return // one process has the database
		}
		s := h.serve()
		ada := h.newPhone(s)
		h.register(number(1), ada.jkt)
		token := string(h.loginFor(number(1), ada.jkt, "payment").Access.Reveal())
		h.clk.Advance(2 * time.Second)
		second := newHouseOn(h)
		h.clk.Advance(2 * time.Second)
		ada.nonce = second.Nonce() // as good at the first
		request := func(method string) *http.Request {
			r, err := http.NewRequest(method, "https://"+strings.TrimPrefix(s.URL, "http://")+"/v1/logout", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("DPoP", ada.proof(method, "/v1/logout", token))
			r.Header.Set("Authorization", "DPoP "+token)
			return r
		}
		post := request("POST")
		if _, err := h.Session(t.Context(), post); err != nil {
			t.Fatal(err)
		}
		_, err := second.Session(t.Context(), post)
		want(t, err, "invalid-dpop-proof")
		if got := h.lastEvent(ActionSessionCheck); got != "denied proof-replayed" {
			t.Errorf("event %q", got)
		}
		if _, err := second.Session(t.Context(), request("POST")); err != nil {
			t.Error(err)
		}
	})
}
