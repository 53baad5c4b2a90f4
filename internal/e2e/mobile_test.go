package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"strongroom/client"
	"strongroom/client/mobile"
)

// TestMobile plays a customer with two telephones through what gomobile binds, against the binary: registration,
// an authenticator app, an approval by number, a payment, sessions, and a lost telephone.
func TestMobile(t *testing.T) {
	s := start(t, "dev", t.TempDir())
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	authority, err := os.ReadFile(s.urls.CA)
	ok(err)
	open := func() *mobile.App {
		settings := mobile.NewSettings()
		settings.BaseURL, settings.Pins, settings.Authorities, settings.Folder = s.urls.App, strings.Join(s.pins(), "\n"), string(authority), t.TempDir()
		app, err := mobile.OpenWithPassphrase(settings, []byte("a passphrase"), nil)
		ok(err)
		t.Cleanup(func() { _ = app.Close() })
		return app
	}
	const phone, private = "+447700900600", "83510274"
	last := ""
	code := func() string {
		t.Helper()
		next, err := s.code(ctx, phone, last)
		ok(err)
		last = next
		return next
	}
	app, second := open(), open()
	registration, err := app.Register(phone)
	ok(err)
	ok(registration.CompleteAttested(code(), private, "first", nil))
	login, err := app.LoginBy("sms", phone, private)
	ok(err)
	ok(login.CompleteWith(code(), "", "first", "write payment", nil))
	if err := registration.CompleteAttested("", "", "", &mobile.Attestation{Android: []byte("no chain")}); err == nil {
		t.Error("an attestation that is none was sent")
	}

	enrolled, err := app.EnrolTOTP()
	ok(err)
	now := time.Now()
	step := func(at time.Time) string {
		digits, err := totp.GenerateCode(enrolled.Secret, at)
		ok(err)
		return digits
	}
	ok(enrolled.Confirm(step(now)))
	if factors, err := app.Factors(); err != nil || !strings.Contains(factors, `"kind":"totp"`) || !strings.Contains(factors, `"sms":true`) {
		t.Error(factors, err)
	}
	waiting, err := second.LoginBy("totp", phone, private)
	ok(err)
	// The next step's code: that of this one is used, and the server forgives a clock that is half a minute ahead.
	err = waiting.Complete(step(now.Add(30*time.Second)), "second")
	if err == nil || mobile.Slug(err.Error()) != "device-pending" || len(waiting.Number()) != 3 {
		t.Fatal(waiting.Number(), err)
	}
	devices, err := app.Devices()
	ok(err)
	var all []client.Device
	ok(json.Unmarshal([]byte(devices), &all))
	pending := ""
	for _, d := range all {
		if d.Status == client.DevicePending {
			pending = d.ID
		}
	}
	ok(app.ApproveDevice(pending, waiting.Number()))
	login, err = second.Login(phone, private)
	ok(err)
	ok(login.Complete(code(), "second"))

	var session struct{ Customer string }
	about, err := app.Session()
	ok(err)
	ok(json.Unmarshal([]byte(about), &session))
	asked, err := s.service().For("payment").AskPayment(ctx, session.Customer, client.PaymentTerms{Amount: "49.90", Currency: "EUR", Payee: "Example Shop"})
	ok(err)
	shown, err := app.Payment(asked.ID)
	if err != nil || shown.Amount != "49.90" || shown.Payee != "Example Shop" {
		t.Fatal(shown, err)
	}
	ok(app.SendPaymentCode(shown.ID))
	if done, err := app.AuthorisePayment(shown, code()); err != nil || done.Status != "authorised" {
		t.Error(done, err)
	}

	if sessions, err := app.Sessions(); err != nil || strings.Count(sessions, `"session"`) != 2 {
		t.Error(sessions, err)
	}
	if n, err := app.RevokeOtherSessions(); err != nil || n != 1 {
		t.Error(n, err)
	}
	ok(app.ReportLost(pending))
	if notices, err := app.Notices(); err != nil || !strings.Contains(notices, "device-lost") {
		t.Error(notices, err)
	}
	ok(app.ChangePrivateCode(private, "orchard 77 lantern"))
	ok(app.Logout())
}
