package identity

import (
	"context"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"
	"github.com/pquerna/otp/totp"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/identity/attest"
	"strongroom/internal/identity/attest/attesttest"
	"strongroom/internal/identity/oracle"
	"strongroom/internal/problem"
)

func withPasskeys(o *Options) {
	o.Passkeys = PasskeyOptions{RelyingParty: "example.com", Origins: []string{"https://example.com"}}
}

// customer is a registered customer in a session on their first device.
func (h *house) logged(n int, key string) (Registered, actor.Actor) {
	h.t.Helper()
	r := h.register(number(n), key)
	return r, h.acting(h.mustLogin(number(n), key), key)
}

// app is an authenticator app that is not ours.
type app string

func (a app) code(at time.Time) string {
	c, err := totp.GenerateCode(string(a), at)
	if err != nil {
		panic(err)
	}
	return c
}

func (h *house) enrolTOTP(by actor.Actor) app {
	h.t.Helper()
	e, err := h.EnrolTOTP(context.Background(), by)
	if err != nil {
		h.t.Fatal(err)
	}
	a := app(e.Secret.Reveal())
	if err := h.ConfirmTOTP(context.Background(), by, e.ID, value(a.code(h.clk.Now()))); err != nil {
		h.t.Fatal(err)
	}
	h.clk.Advance(31 * time.Second) // the code of the enrolment is used
	return a
}

func (h *house) loginBy(n int, key string, m Method, private string, answer func(Started) Answer) (Tokens, error) {
	h.t.Helper()
	s, err := h.StartLoginBy(context.Background(), from(key), m, number(n), value(private))
	if err != nil {
		return Tokens{}, err
	}
	return h.CompleteLoginBy(context.Background(), from(key), s.ID, answer(s))
}

func TestASVS_6_5_1_TOTPInsteadOfSMS(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		_, by := h.logged(1, "own")
		h.logged(2, "neighbour")
		e, err := h.EnrolTOTP(ctx, by)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(e.URI.Reveal()), "otpauth://totp/") || strings.Contains(string(e.URI.Reveal()), "7700") {
			t.Error("the URI is wrong, or names the customer")
		}
		phone := app(e.Secret.Reveal())
		with := func(code string) func(Started) Answer {
			return func(Started) Answer { return Answer{Code: value(code)} }
		}
		_, err = h.loginBy(1, "own", ByTOTP, goodCode, with(phone.code(h.clk.Now())))
		want(t, err, "login-failed") // it is not proven yet
		want(t, h.ConfirmTOTP(ctx, by, e.ID, value("000000")), "factor-not-proven")
		used := phone.code(h.clk.Now())
		want(t, h.ConfirmTOTP(ctx, by, e.ID, value(used)), "")

		sent := len(h.inbox.Search(number(1)))
		_, err = h.loginBy(1, "own", ByTOTP, goodCode, with(used))
		want(t, err, "login-failed") // the enrolment has used it up
		h.clk.Advance(30 * time.Second)
		fresh := phone.code(h.clk.Now())
		tokens, err := h.loginBy(1, "own", ByTOTP, goodCode, with(fresh))
		want(t, err, "")
		if tokens.Session == "" {
			t.Error("no session")
		}
		_, err = h.loginBy(1, "own", ByTOTP, goodCode, with(fresh))
		want(t, err, "login-failed") // replayed
		h.clk.Advance(30 * time.Second)
		_, err = h.loginBy(1, "own", ByTOTP, "83920486", with(phone.code(h.clk.Now())))
		want(t, err, "login-failed") // without the private code
		_, err = h.loginBy(2, "neighbour", ByTOTP, goodCode, with(phone.code(h.clk.Now())))
		want(t, err, "login-failed") // of another account
		_, err = h.loginBy(1, "stranger", ByTOTP, goodCode, with(phone.code(h.clk.Now())))
		want(t, err, "device-pending") // a second step is no device
		if n := len(h.inbox.Search(number(1))) - sent; n != 1 {
			t.Errorf("%d messages were sent, and not the one about the new device", n)
		}
		if got := h.events(ActionLoginStart); got[len(got)-2] != "denied no-totp" {
			t.Error(got)
		}
		// Who guesses is locked out as with any code.
		for range maxFailures {
			_, err = h.loginBy(1, "own", ByTOTP, goodCode, with("000000"))
			want(t, err, "login-failed")
		}
		h.clk.Advance(30 * time.Second)
		_, err = h.loginBy(1, "own", ByTOTP, goodCode, with(phone.code(h.clk.Now())))
		want(t, err, "login-failed")
		if h.lastEvent(ActionLoginComplete) != "denied locked-out" {
			t.Error(h.lastEvent(ActionLoginComplete))
		}
	})
}

// The secret is sealed under the customer's key and found nowhere in the database.
func TestTOTPSecretIsSealed(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		_, by := h.logged(1, "own")
		text := string(h.enrolTOTP(by))
		raw, err := base32.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		err = h.DB.View(t.Context(), func(tx *db.Tx) error {
			var sealed []byte
			if err := tx.QueryRow(t.Context(), `SELECT sealed FROM factor`).Scan(&sealed); err != nil {
				return err
			}
			if strings.Contains(string(sealed), text) || strings.Contains(string(sealed), string(raw)) {
				t.Error("the secret stands in the row")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(h.logs.String(), text) {
			t.Error("the secret stands in the log")
		}
	})
}

// virtualKey returns a key with coordinates of 32 bytes: the library cuts zeros off their fronts, which no
// authenticator may (RFC 9053 section 7.1.1).
func virtualKey() virtualwebauthn.Credential {
	for {
		if k := virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2); len(k.Key.AttestationData()) == 77 {
			return k
		}
	}
}

// An authenticator that is not ours makes a passkey and logs in with it.
func TestASVS_6_3_3_PasskeyInsteadOfSMS(t *testing.T) {
	each(t, withPasskeys, func(t *testing.T, h *house) {
		ctx := context.Background()
		r, by := h.logged(1, "own")
		h.logged(2, "neighbour")
		rp := virtualwebauthn.RelyingParty{ID: "example.com", Name: "Strongroom", Origin: "https://example.com"}
		device := virtualwebauthn.NewAuthenticatorWithOptions(virtualwebauthn.AuthenticatorOptions{UserHandle: []byte(r.Customer)})
		key := virtualKey()
		device.AddCredential(key)

		e, err := h.EnrolPasskey(ctx, by)
		if err != nil {
			t.Fatal(err)
		}
		options, err := virtualwebauthn.ParseAttestationOptions(string(e.Options))
		if err != nil {
			t.Fatal(err)
		}
		phished := rp
		phished.Origin = "https://examp1e.com"
		want(t, h.ConfirmPasskey(ctx, by, e.ID, []byte(virtualwebauthn.CreateAttestationResponse(phished, device, key, *options))), "factor-not-proven")
		want(t, h.ConfirmPasskey(ctx, by, e.ID, []byte(`{}`)), "factor-not-proven")
		answer := []byte(virtualwebauthn.CreateAttestationResponse(rp, device, key, *options))
		want(t, h.ConfirmPasskey(ctx, by, e.ID, answer), "")
		want(t, h.ConfirmPasskey(ctx, by, e.ID, answer), "factor-not-found")

		sign := func(rp virtualwebauthn.RelyingParty, key virtualwebauthn.Credential) func(Started) Answer {
			return func(s Started) Answer {
				options, err := virtualwebauthn.ParseAssertionOptions(string(s.Passkey))
				if err != nil {
					t.Fatal(err)
				}
				return Answer{Passkey: json.RawMessage(virtualwebauthn.CreateAssertionResponse(rp, device, key, *options))}
			}
		}
		var last Answer
		_, err = h.loginBy(1, "own", ByPasskey, goodCode, func(s Started) Answer { last = sign(rp, key)(s); return last })
		want(t, err, "")
		_, err = h.loginBy(1, "own", ByPasskey, goodCode, func(Started) Answer { return last })
		want(t, err, "login-failed") // the answer to another challenge
		_, err = h.loginBy(1, "own", ByPasskey, goodCode, sign(phished, key))
		want(t, err, "login-failed") // made for another site
		_, err = h.loginBy(1, "own", ByPasskey, "83920486", sign(rp, key))
		want(t, err, "login-failed") // without the private code
		_, err = h.loginBy(2, "neighbour", ByPasskey, goodCode, sign(rp, key))
		want(t, err, "login-failed") // another's
		_, err = h.loginBy(1, "own", ByPasskey, goodCode, sign(rp, virtualKey()))
		want(t, err, "login-failed")
		h.mustLogin(number(1), "own")

		// An authenticator whose counter goes back is a copy.
		key.Counter = 9
		_, err = h.loginBy(1, "own", ByPasskey, goodCode, sign(rp, key))
		want(t, err, "")
		key.Counter = 3
		_, err = h.loginBy(1, "own", ByPasskey, goodCode, sign(rp, key))
		want(t, err, "login-failed")
		if h.lastEvent(ActionLoginComplete) != "denied passkey-cloned" {
			t.Error(h.lastEvent(ActionLoginComplete))
		}
	})
}

// Whoever names a number learns nothing from the method that they choose.
func TestASVS_6_3_8_MethodsTellNothing(t *testing.T) {
	each(t, withPasskeys, func(t *testing.T, h *house) {
		_, by := h.logged(1, "own")
		h.enrolTOTP(by)
		server := h.serve()
		for _, method := range []string{"totp", "passkey"} {
			var seen string
			for _, who := range []struct{ phone, private string }{
				{number(1), goodCode}, {number(1), "83920486"}, {number(9), goodCode},
			} {
				phone := h.newPhone(server)
				a := phone.do(http.MethodPost, "/v1/logins", map[string]string{"phone": who.phone, "private_code": who.private, "method": method})
				shape := fmt.Sprint(a.status, len(a.raw), sorted(a.header))
				b := phone.do(http.MethodPost, "/v1/logins/"+a.text("login")+"/complete", map[string]string{"code": "000000"})
				shape += fmt.Sprint(b.status, b.raw, sorted(b.header))
				if seen == "" {
					seen = shape
				}
				if shape != seen {
					t.Errorf("%s: %s\nand not %s", method, shape, seen)
				}
			}
		}
	})
}

func TestASVS_7_5_1_SecondStepsChangeAfterAFreshLogin(t *testing.T) {
	each(t, withPasskeys, func(t *testing.T, h *house) {
		ctx := context.Background()
		_, by := h.logged(1, "own")
		h.enrolTOTP(by)
		all, err := h.Factors(ctx, by)
		if err != nil || len(all.All) != 1 || !all.SMS {
			t.Fatal(all, err)
		}
		h.clk.Advance(h.StepUpAge + time.Second)
		_, err = h.EnrolTOTP(ctx, by)
		want(t, err, "step-up-needed")
		_, err = h.EnrolPasskey(ctx, by)
		want(t, err, "step-up-needed")
		want(t, h.ConfirmTOTP(ctx, by, all.All[0].ID, value("000000")), "step-up-needed")
		want(t, h.RemoveFactor(ctx, by, all.All[0].ID), "step-up-needed")
		want(t, h.SetSMS(ctx, by, false), "step-up-needed")
		_, err = h.StartNumberChange(ctx, by, number(5))
		want(t, err, "step-up-needed")
		fresh := h.acting(h.mustLogin(number(1), "own"), "own")
		want(t, h.RemoveFactor(ctx, fresh, all.All[0].ID), "")
		want(t, h.RemoveFactor(ctx, from("own"), all.All[0].ID), "customers-only")
	})
}

func TestNIST_3_2_9_SMSCanBePutOff(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		_, by := h.logged(1, "own")
		want(t, h.SetSMS(ctx, by, false), "sms-needed")
		phone := h.enrolTOTP(by)
		waiting, err := h.StartLogin(ctx, from("own"), number(1), value(goodCode))
		if err != nil {
			t.Fatal(err)
		}
		code := h.code(number(1))
		want(t, h.SetSMS(ctx, by, false), "")
		_, err = h.CompleteLogin(ctx, from("own"), waiting.ID, value(code), "")
		want(t, err, "login-failed") // a code on its way is not good either
		_, err = h.login(number(1), "own", goodCode)
		want(t, err, "login-failed")
		if h.lastEvent(ActionLoginStart) != "denied sms-off" {
			t.Error(h.lastEvent(ActionLoginStart))
		}
		_, err = h.step(number(1), "own", newCode) // nor does a forgotten private code lead around it
		want(t, err, "reset-failed")
		if h.lastEvent(ActionCodeResetStart) != "denied sms-off" {
			t.Error(h.lastEvent(ActionCodeResetStart))
		}
		all, err := h.Factors(ctx, by)
		if err != nil || all.SMS {
			t.Error(all, err)
		}
		want(t, h.RemoveFactor(ctx, by, all.All[0].ID), "last-factor")
		_, err = h.loginBy(1, "own", ByTOTP, goodCode, func(Started) Answer { return Answer{Code: value(phone.code(h.clk.Now()))} })
		want(t, err, "")
		want(t, h.SetSMS(ctx, by, true), "")
		h.mustLogin(number(1), "own")
		want(t, h.RemoveFactor(ctx, by, all.All[0].ID), "")
	})
}

// sims is what a network knows.
type sims struct {
	at  time.Time
	err error
}

func (s *sims) ChangedAt(context.Context, string) (time.Time, error) { return s.at, s.err }

func TestNIST_3_1_3_3_NoCodesAfterASIMSwap(t *testing.T) {
	network := &sims{}
	eachAlone(t, func(o *Options) { o.SIMs = network }, func(t *testing.T, h *house) {
		*network = sims{at: h.clk.Now().Add(-30 * 24 * time.Hour)}
		_, by := h.logged(1, "own")
		h.mustLogin(number(1), "own") // a change of long ago is none
		network.at = h.clk.Now().Add(-time.Hour)
		sent := len(h.inbox.Search(number(1)))
		_, err := h.login(number(1), "own", goodCode)
		want(t, err, "login-failed")
		if len(h.inbox.Search(number(1))) != sent {
			t.Error("the code went to the new SIM")
		}
		if h.lastEvent(ActionMessageSend) != "denied sim-changed" {
			t.Error(h.lastEvent(ActionMessageSend))
		}
		notices, err := h.Notices(t.Context(), by)
		if err != nil || len(notices) != 1 || notices[0].Kind != NoticeSIMChanged {
			t.Error(notices, err)
		}
		phone := h.enrolTOTP(by)
		_, err = h.loginBy(1, "own", ByTOTP, goodCode, func(Started) Answer { return Answer{Code: value(phone.code(h.clk.Now()))} })
		want(t, err, "") // another second step goes on
		_, err = h.login(number(1), "own", goodCode)
		want(t, err, "login-failed")
		if h.lastEvent(ActionLoginStart) != "denied sim-changed" {
			t.Error(h.lastEvent(ActionLoginStart))
		}
		h.clk.Advance(SIMHold)
		h.mustLogin(number(1), "own")
		network.err = errors.New("the network does not answer")
		sent = len(h.inbox.Search(number(1)))
		_, err = h.login(number(1), "own", goodCode)
		want(t, err, "login-failed") // in doubt no code leaves
		if len(h.inbox.Search(number(1))) != sent {
			t.Error("a code left in doubt")
		}
	})
}

// pending logs in on a new device, and returns its name and its number.
func (h *house) pending(n int, key string) (device, shown string) {
	h.t.Helper()
	_, err := h.login(number(n), key, goodCode)
	want(h.t, err, "device-pending")
	p := problem.Of(err)
	if p == nil || p.Member("device") == nil {
		h.t.Fatal(err)
	}
	return p.Member("device").(string), p.Member("number").(string)
}

func wrongNumber(shown string) string {
	if shown == "000" {
		return "001"
	}
	return "000"
}

func TestASVS_6_6_4_NumberMatchingStopsPushBombing(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		_, by := h.logged(1, "own")
		device, shown := h.pending(1, "attacker")
		if again, same := h.pending(1, "attacker"); again != device || same != shown {
			t.Error("the number changes from login to login")
		}
		for n := range numberTries {
			slug := "wrong-number"
			if n == numberTries-1 {
				slug = "device-refused"
			}
			want(t, h.ApproveDevice(ctx, by, device, wrongNumber(shown)), slug)
		}
		want(t, h.ApproveDevice(ctx, by, device, shown), "device-revoked")
		_, err := h.login(number(1), "attacker", goodCode)
		want(t, err, "login-failed")

		tablet, shown := h.pending(1, "tablet")
		want(t, h.ApproveDevice(ctx, by, tablet, wrongNumber(shown)), "wrong-number")
		want(t, h.ApproveDevice(ctx, by, tablet, shown), "")
		h.mustLogin(number(1), "tablet")
		var kinds []string
		notices, err := h.Notices(ctx, by)
		for _, n := range notices {
			kinds = append(kinds, n.Kind)
		}
		if got := strings.Join(kinds, " "); err != nil || got != "device-approved device-new device-refused device-new" {
			t.Error(got, err)
		}
	})
}

func TestPendingDevicesExpire(t *testing.T) {
	each(t, func(o *Options) { o.MaxDevices = 2 }, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.logged(1, "own")
		device, shown := h.pending(1, "tablet")
		_, err := h.login(number(1), "third", goodCode)
		want(t, err, "too-many-devices")
		h.clk.Advance(pendingFor)
		by := h.acting(h.mustLogin(number(1), "own"), "own")
		want(t, h.ApproveDevice(ctx, by, device, shown), "device-not-found") // the login has forgotten it
		again, shown := h.pending(1, "tablet")
		if again == device {
			t.Error("the device came back")
		}
		h.clk.Advance(pendingFor - time.Minute)
		by = h.acting(h.mustLogin(number(1), "own"), "own")
		h.clk.Advance(time.Minute)
		want(t, h.ApproveDevice(ctx, by, again, shown), "device-expired")
		if h.lastEvent(ActionDeviceExpire) != "granted" {
			t.Error("no event")
		}
	})
}

func TestLostDeviceIsDeadAtOnce(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		_, by := h.logged(1, "own")
		tokens := h.mustLogin(number(1), "own")
		want(t, h.ReportLost(ctx, by, by.Device), "") // it is the last, and goes all the same
		_, err := h.Refresh(ctx, from("own"), tokens.Refresh)
		want(t, err, "this-device-revoked")
		_, err = h.login(number(1), "own", goodCode)
		want(t, err, "login-failed")
		_, err = h.Devices(ctx, by)
		if err == nil {
			if _, err = h.Factors(ctx, by); err == nil {
				t.Error("the dead session acts")
			}
		}
		if h.lastEvent(ActionSessionRevoke) != "granted device-revoked" || h.lastEvent(ActionDeviceLost) != "granted" {
			t.Error("no events")
		}
	})
}

func TestASVS_2_3_5_TwoMembersOfStaffLetADeviceIn(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.logged(1, "lost")
		device, _ := h.pending(1, "new")
		desk := NewAssist(h.Options)
		by := actor.OfSystem("cli:root")
		_, err := desk.ApproveDevice(ctx, from("new"), "ada", device)
		want(t, err, "staff-only")
		_, err = desk.ApproveDevice(ctx, by, "Ada Lovelace", device)
		want(t, err, "invalid-operator")
		out, err := desk.ApproveDevice(ctx, by, "ada", device)
		if err != nil || out.Vouched != 1 || out.Done {
			t.Fatal(out, err)
		}
		_, err = desk.ApproveDevice(ctx, by, "ada", device)
		want(t, err, "same-operator")
		h.pending(1, "new") // still
		if text := h.inbox.Search(number(1))[1].Text; !strings.Contains(text, "asked our staff") {
			t.Errorf("the customer was told %q", text)
		}
		if out, err = desk.ApproveDevice(ctx, by, "grace", device); err != nil || !out.Done {
			t.Fatal(out, err)
		}
		h.mustLogin(number(1), "new")
		if h.lastEvent(ActionDeviceApprove) != "granted vouched-for" || h.countEvents(ActionRecoveryVouch, "granted") != 2 {
			t.Error(h.events(ActionRecoveryVouch))
		}

		// A word that is a day old counts no more.
		other, _ := h.pending(1, "other")
		if _, err := desk.ApproveDevice(ctx, by, "ada", other); err != nil {
			t.Fatal(err)
		}
		h.clk.Advance(pendingFor)
		_, err = desk.ApproveDevice(ctx, by, "grace", other)
		want(t, err, "device-expired")
		if out, err = desk.LoseDevice(ctx, by, "ada", device); err != nil || !out.Done {
			t.Error(out, err)
		}
		_, err = h.login(number(1), "new", goodCode)
		want(t, err, "login-failed")
	})
}

// proofs is a room that has seen somebody's papers.
type provenDevices map[string]time.Time

func (p provenDevices) Proven(_ context.Context, waiting []oracle.Waiting) (out []oracle.Proof, err error) {
	for _, d := range waiting {
		if at, ok := p[d.Device]; ok {
			out = append(out, oracle.Proof{Customer: d.Customer, Device: d.Device, At: at})
		}
	}
	return out, nil
}

func TestProofOfIdentityLetsADeviceIn(t *testing.T) {
	papers := provenDevices{}
	eachAlone(t, func(o *Options) { o.Proofs = papers }, func(t *testing.T, h *house) {
		_, by := h.logged(1, "lost")
		device, _ := h.pending(1, "new")
		papers[device] = h.clk.Now().Add(-time.Hour) // of before the device
		ask := func() {
			t.Helper()
			if err := h.acceptProofs(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		h.pending(1, "new")
		if err := h.acceptProof(t.Context(), actor.OfSystem("test"), oracle.Proof{Customer: by.Customer(), Device: device, At: papers[device]}); !problem.Is(err, "old-proof") {
			t.Errorf("an old proof counts: %v", err)
		}
		papers[device] = h.clk.Now()
		ask()
		h.mustLogin(number(1), "new")
		if h.lastEvent(ActionDeviceApprove) != "granted proof-of-identity" {
			t.Error(h.lastEvent(ActionDeviceApprove))
		}
		if _, err := h.CurrentSession(t.Context(), by); !problem.Is(err, "session-revoked") {
			t.Errorf("the session of the lost telephone goes on: %v", err)
		}
		before := len(h.events(ActionRecoveryProof))
		ask() // nobody waits
		if len(h.events(ActionRecoveryProof)) != before {
			t.Error("a device was let in twice")
		}
	})
}

func (h *house) startNumber(by actor.Actor, to string) (Started, string) {
	h.t.Helper()
	s, err := h.StartNumberChange(context.Background(), by, to)
	if err != nil {
		h.t.Fatal(err)
	}
	return s, h.code(to)
}

func TestNumberChangeWaitsADay(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		r, by := h.logged(1, "own")
		h.logged(2, "neighbour")

		// A number that has an account is told so, and cannot be taken.
		s, _ := h.startNumber(by, number(2))
		if text := h.inbox.Search(number(2))[0].Text; !strings.Contains(text, "already have an account") {
			t.Errorf("the neighbour was told %q", text)
		}
		_, err := h.CompleteNumberChange(ctx, by, s.ID, value("000000"))
		want(t, err, "number-change-failed")

		s, code := h.startNumber(by, number(3))
		_, err = h.CompleteNumberChange(ctx, by, s.ID, value(wrongCode(code)))
		want(t, err, "number-change-failed")
		due, err := h.CompleteNumberChange(ctx, by, s.ID, value(code))
		if err != nil || !due.Equal(h.clk.Now().Add(numberHold)) {
			t.Fatal(due, err)
		}
		told := h.inbox.Search(number(1))[0].Text
		cancel := told[strings.LastIndex(told, " ")+1:]
		if len(cancel) != 16 {
			t.Fatalf("the old number was told %q", told)
		}
		want(t, h.CancelNumberByCode(ctx, from("anybody"), value("0000000000000000")), "number-change-not-found")
		want(t, h.CancelNumberByCode(ctx, from("anybody"), value(strings.ToLower(cancel))), "")
		want(t, h.CancelNumberByCode(ctx, from("anybody"), value(cancel)), "number-change-not-found")
		h.clk.Advance(numberHold)
		if err := h.changeNumbers(ctx); err != nil {
			t.Fatal(err)
		}
		by = h.acting(h.mustLogin(number(1), "own"), "own")

		s, code = h.startNumber(by, number(3))
		if _, err = h.CompleteNumberChange(ctx, by, s.ID, value(code)); err != nil {
			t.Fatal(err)
		}
		want(t, h.CancelNumberChange(ctx, by), "")
		want(t, h.CancelNumberChange(ctx, by), "number-change-not-found")

		s, code = h.startNumber(by, number(3))
		if _, err = h.CompleteNumberChange(ctx, by, s.ID, value(code)); err != nil {
			t.Fatal(err)
		}
		h.clk.Advance(numberHold - time.Second)
		if err := h.changeNumbers(ctx); err != nil {
			t.Fatal(err)
		}
		h.mustLogin(number(1), "own")
		h.clk.Advance(time.Second)
		if err := h.changeNumbers(ctx); err != nil {
			t.Fatal(err)
		}
		if tokens := h.mustLogin(number(3), "own"); tokens.Customer != r.Customer {
			t.Error("another customer")
		}
		_, err = h.login(number(1), "own", goodCode)
		want(t, err, "login-failed")
		if text := h.inbox.Search(number(1))[0].Text; !strings.Contains(text, "moved to another number") {
			t.Errorf("the old number was told %q", text)
		}
		if h.lastEvent(ActionNumberChange) != "granted" {
			t.Error(h.lastEvent(ActionNumberChange))
		}
	})
}

// A lock-out goes along with the account to its new number, and a number that somebody has registered
// meanwhile stays theirs.
func TestNumberChangeIsNoWayOutOfALockOut(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		_, by := h.logged(1, "own")
		move := func(to string) {
			s, code := h.startNumber(by, to)
			if _, err := h.CompleteNumberChange(ctx, by, s.ID, value(code)); err != nil {
				t.Fatal(err)
			}
			h.clk.Advance(numberHold)
		}
		move(number(3))
		h.register(number(3), "faster")
		if err := h.changeNumbers(ctx); err != nil {
			t.Fatal(err)
		}
		if h.lastEvent(ActionNumberChange) != "denied number-taken" {
			t.Error(h.lastEvent(ActionNumberChange))
		}
		by = h.acting(h.mustLogin(number(1), "own"), "own")
		move(number(4))
		for range maxFailures {
			_, err := h.login(number(1), "guesser", "83920486")
			want(t, err, "login-failed")
		}
		if err := h.changeNumbers(ctx); err != nil {
			t.Fatal(err)
		}
		_, err := h.login(number(4), "guesser", goodCode)
		want(t, err, "login-failed")
		if h.lastEvent(ActionLoginStart) != "denied locked-out" {
			t.Error(h.lastEvent(ActionLoginStart))
		}
		h.mustLogin(number(4), "own")
	})
}

func TestStaffChangeANumber(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		r, _ := h.logged(1, "own")
		h.logged(2, "neighbour")
		desk, by := NewAssist(h.Options), actor.OfSystem("cli:root")
		_, err := desk.ChangeNumber(ctx, by, "ada", r.Customer, number(2))
		want(t, err, "number-taken")
		if _, err = desk.ChangeNumber(ctx, by, "ada", r.Customer, number(3)); err != nil {
			t.Fatal(err)
		}
		out, err := desk.ChangeNumber(ctx, by, "grace", r.Customer, number(4))
		if err != nil || out.Done {
			t.Error("two words about two numbers were one", out, err)
		}
		if out, err = desk.ChangeNumber(ctx, by, "grace", r.Customer, number(3)); err != nil || !out.Done || !out.Due.Equal(h.clk.Now().Add(numberHold)) {
			t.Fatal(out, err)
		}
		h.mustLogin(number(1), "own")
		h.clk.Advance(numberHold)
		if err := h.changeNumbers(ctx); err != nil {
			t.Fatal(err)
		}
		h.mustLogin(number(3), "own")
	})
}

func TestAttestation(t *testing.T) {
	maker := attesttest.New(t, time.Now())
	each(t, func(o *Options) {
		o.Attest = AttestOptions{Policy: AttestRequired, Options: attest.Options{
			AndroidPackages: []string{attesttest.Package}, AndroidSigners: [][]byte{attesttest.Signer[:]},
			AppleApps: []string{attesttest.AppID}, GoogleRoots: maker.Roots, AppleRoots: maker.Roots,
		}}
	}, func(t *testing.T, h *house) {
		server := h.serve()
		type object = map[string]any
		register := func(phone *phoneClient, n int, attestation any) answer {
			a := phone.do(http.MethodPost, "/v1/registrations", object{"phone": number(n)})
			body := object{"code": h.code(number(n)), "private_code": goodCode, "device_name": "Phone"}
			if attestation != nil {
				body["attestation"] = attestation
			}
			return phone.do(http.MethodPost, "/v1/registrations/"+a.text("registration")+"/complete", body)
		}
		android := func(phone *phoneClient, change func(*attesttest.Android)) object {
			if phone.nonce == "" {
				phone.do(http.MethodGet, "/v1/session", nil)
			}
			a := attesttest.Good([]byte(phone.nonce))
			if change != nil {
				change(&a)
			}
			return object{"challenge": phone.nonce, "android": maker.Android(&phone.key.PublicKey, a)}
		}
		expect := func(a answer, status int, slug string) {
			t.Helper()
			if a.status != status || a.slug() != slug {
				t.Errorf("%d %s, want %d %s: %s", a.status, a.slug(), status, slug, a.raw)
			}
		}
		phone := h.newPhone(server)
		expect(register(phone, 1, nil), 403, "attestation-required")
		expect(register(phone, 1, android(phone, func(a *attesttest.Android) { a.Level = 0 })), 403, "attestation-refused")
		expect(register(phone, 1, android(phone, func(a *attesttest.Android) { a.Challenge = []byte("x") })), 403, "attestation-refused")
		expect(register(phone, 1, android(h.newPhone(server), nil)), 403, "attestation-refused") // another's key
		old := android(phone, nil)
		h.clk.Advance(attestLifetime + time.Second)
		expect(register(phone, 1, old), 403, "attestation-refused")
		phone.nonce = ""
		expect(register(phone, 1, android(phone, nil)), 201, "")

		login := func(phone *phoneClient, attestation any) answer {
			a := phone.do(http.MethodPost, "/v1/logins", object{"phone": number(1), "private_code": goodCode})
			body := object{"code": h.code(number(1))}
			if attestation != nil {
				body["attestation"] = attestation
			}
			return phone.do(http.MethodPost, "/v1/logins/"+a.text("login")+"/complete", body)
		}
		a := login(phone, nil) // it is known already
		expect(a, 200, "")
		second := h.newPhone(server)
		expect(login(second, nil), 403, "attestation-required")
		second.nonce = ""
		second.do(http.MethodGet, "/v1/session", nil)
		clientData := []byte(second.nonce + "." + second.jkt)
		apple := object{"challenge": second.nonce, "apple": maker.Apple(attesttest.Genuine(clientData))}
		expect(login(second, apple), 403, "device-pending")
		stolen := h.newPhone(server)
		expect(login(stolen, apple), 403, "attestation-refused") // it names another key
		phone.access = a.text("access_token")
		list := fmt.Sprint(phone.do(http.MethodGet, "/v1/devices", nil).body)
		for _, part := range []string{"attestation:android-strongbox", "attestation:apple", "risk:medium", "risk:high"} {
			if !strings.Contains(list, part) {
				t.Errorf("%s is not in %s", part, list)
			}
		}
		h.clk.Advance(25 * time.Hour)
		phone.access = login(phone, nil).text("access_token")
		if list := fmt.Sprint(phone.do(http.MethodGet, "/v1/devices", nil).body); !strings.Contains(list, "risk:low") {
			t.Error(list)
		}
	})
}

// The rows that decide carry a stamp: whoever can write to the database cannot make one.
func TestForgedFactorsLetNobodyIn(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		r, by := h.logged(1, "own")
		phone := h.enrolTOTP(by)
		device, shown := h.pending(1, "attacker")
		desk := NewAssist(h.Options)
		if _, err := desk.ApproveDevice(ctx, actor.OfSystem("cli:root"), "ada", device); err != nil {
			t.Fatal(err)
		}
		s, code := h.startNumber(by, number(3))
		if _, err := h.CompleteNumberChange(ctx, by, s.ID, value(code)); err != nil {
			t.Fatal(err)
		}
		want(t, h.SetSMS(ctx, by, false), "")
		forge := func(query string, args ...any) {
			t.Helper()
			if err := h.DB.Update(ctx, func(tx *db.Tx) error {
				n, err := tx.Exec(ctx, query, args...)
				if err == nil && n != 1 {
					t.Errorf("%d rows altered by %s", n, query)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		for _, row := range []struct {
			name, do, undo string
			try            func() error
		}{
			{"a used step", `UPDATE factor SET step = step - 10`, `UPDATE factor SET step = step + 10`, func() error {
				_, err := h.loginBy(1, "own", ByTOTP, goodCode, func(Started) Answer { return Answer{Code: value(phone.code(h.clk.Now()))} })
				return err
			}},
			{"codes by SMS", `UPDATE sms_rule SET off = 0`, `UPDATE sms_rule SET off = 1`, func() error {
				_, err := h.login(number(1), "own", goodCode)
				return err
			}},
			{"tries of a number", `UPDATE device_trust SET tries = 1000`, `UPDATE device_trust SET tries = 3`, func() error {
				return h.ApproveDevice(ctx, by, device, shown)
			}},
			{"another's word", `UPDATE vouch SET operator = 'grace'`, `UPDATE vouch SET operator = 'ada'`, func() error {
				_, err := desk.ApproveDevice(ctx, actor.OfSystem("cli:root"), "ada", device)
				return err
			}},
			{"an earlier change of number", `UPDATE number_change SET due_at = 1`, `UPDATE number_change SET due_at = 2`, func() error { return h.changeNumbers(ctx) }},
		} {
			t.Run(row.name, func(t *testing.T) {
				forge(row.do)
				if err := row.try(); !errors.Is(err, errForged) {
					t.Errorf("got %v", err)
				}
				forge(row.undo)
			})
		}
		_ = r
	})
}

// An erased customer leaves nothing of second steps, devices, numbers and notices.

// TestASVS_6_3_4_NoPathAroundAFactor tries every method with every part of what a customer has, and only the
// whole of it gives a session.
func TestASVS_6_3_4_NoPathAroundAFactor(t *testing.T) {
	each(t, withPasskeys, func(t *testing.T, h *house) {
		ctx := context.Background()
		r, by := h.logged(1, "own")
		phone := h.enrolTOTP(by)
		rp := virtualwebauthn.RelyingParty{ID: "example.com", Name: "Strongroom", Origin: "https://example.com"}
		device := virtualwebauthn.NewAuthenticatorWithOptions(virtualwebauthn.AuthenticatorOptions{UserHandle: []byte(r.Customer)})
		key, strange := virtualKey(), virtualKey()
		device.AddCredential(key)
		e, err := h.EnrolPasskey(ctx, by)
		if err != nil {
			t.Fatal(err)
		}
		options, err := virtualwebauthn.ParseAttestationOptions(string(e.Options))
		if err != nil {
			t.Fatal(err)
		}
		want(t, h.ConfirmPasskey(ctx, by, e.ID, []byte(virtualwebauthn.CreateAttestationResponse(rp, device, key, *options))), "")
		tries := 0
		for _, method := range []Method{BySMS, ByTOTP, ByPasskey} {
			for has := range 8 {
				private, step, own := has&1 != 0, has&2 != 0, has&4 != 0
				tries++
				jkt, code := fmt.Sprint("attacker", tries), "83920486"
				if own {
					jkt = "own"
				}
				if private {
					code = goodCode
				}
				h.clk.Advance(longBlock) // so that nothing but the factors decides
				before := len(h.inbox.Search(number(1)))
				_, err := h.loginBy(1, jkt, method, code, func(s Started) Answer {
					switch {
					case method == ByPasskey:
						options, err := virtualwebauthn.ParseAssertionOptions(string(s.Passkey))
						if err != nil {
							t.Fatal(err)
						}
						signer := strange
						if step {
							signer = key
						}
						return Answer{Passkey: json.RawMessage(virtualwebauthn.CreateAssertionResponse(rp, device, signer, *options))}
					case method == ByTOTP && step:
						return Answer{Code: value(phone.code(h.clk.Now()))}
					case method == BySMS && step && len(h.inbox.Search(number(1))) > before:
						return Answer{Code: value(h.code(number(1)))}
					case method == BySMS:
						return Answer{Code: value(wrongCode(h.code(number(1))))}
					}
					return Answer{Code: value(wrongCode(phone.code(h.clk.Now())))}
				})
				slug := "login-failed"
				switch {
				case private && step && own:
					slug = ""
				case private && step:
					slug = "device-pending"
				}
				if want(t, err, slug); t.Failed() {
					t.Fatalf("by %s with private code %v, second step %v, device %v", method, private, step, own)
				}
			}
		}
	})
}
