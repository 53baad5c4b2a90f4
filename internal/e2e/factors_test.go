package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"strongroom/client"
)

// TestSecondStepsAndRecovery plays, against the binary and through the SDK, a customer who takes an
// authenticator app instead of SMS, lets a second telephone in by its number, loses the first, and gets a
// third with the help of two members of staff.
func TestSecondStepsAndRecovery(t *testing.T) {
	ctx := t.Context()
	s := start(t, "dev", t.TempDir())
	p := mustPerson(t, s)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	enrolled, err := p.app.EnrolTOTP(ctx)
	must(err)
	code := func(at time.Time) string {
		c, err := totp.GenerateCode(enrolled.Secret.Reveal(), at)
		must(err)
		return c
	}
	at := time.Now()
	must(enrolled.Confirm(ctx, code(at)))
	factors, sms, err := p.app.Factors(ctx)
	if err != nil || len(factors) != 1 || factors[0].Kind != client.ByTOTP || !sms {
		t.Fatal(factors, sms, err)
	}
	device := func() *client.Client {
		key, err := client.NewDeviceKey()
		must(err)
		return s.device(key, &tokens{})
	}

	// A login with the app, on a second telephone, whose number is typed into the first.
	second := device()
	login, err := second.LoginBy(ctx, client.ByTOTP, p.phone, p.privateCode)
	must(err)
	// The next step's code: that of this one is used, and the server forgives a clock that is half a minute ahead.
	_, err = login.CompleteWith(ctx, client.LoginAnswer{Code: code(at.Add(30 * time.Second)), DeviceName: "second"})
	var waiting *client.Problem
	if !errors.As(err, &waiting) || !errors.Is(err, client.ErrDevicePending) || len(waiting.Text("number")) != 3 {
		t.Fatal(err)
	}
	other := "000"
	if waiting.Text("number") == other {
		other = "001"
	}
	if err := p.app.ApproveDevice(ctx, waiting.Text("device"), other); !errors.Is(err, client.ErrWrongNumber) {
		t.Fatal(err)
	}
	must(p.app.ApproveDevice(ctx, waiting.Text("device"), waiting.Text("number")))
	notices, err := p.app.Notices(ctx)
	if err != nil || len(notices) != 3 || notices[0].Kind != "device-approved" {
		t.Fatal(notices, err)
	}

	// A change of number, and its cancelling by the code that the old number got.
	change, err := p.app.ChangeNumber(ctx, "+447700900999")
	must(err)
	sent, err := s.code(ctx, "+447700900999", "")
	must(err)
	due, err := change.Complete(ctx, sent)
	if err != nil || time.Until(due) < 23*time.Hour {
		t.Fatal(due, err)
	}
	must(p.app.CancelNumberChange(ctx))
	if err := device().CancelNumberChangeByCode(ctx, "0000000000000000"); !errors.Is(err, client.Slug("number-change-not-found")) {
		t.Fatal(err)
	}

	// The first telephone is lost, and nothing is left that could approve.
	devices, err := p.app.Devices(ctx)
	must(err)
	for _, d := range devices {
		if d.Current {
			must(p.app.ReportLost(ctx, d.ID))
		}
	}
	if _, err := p.app.Session(ctx); err == nil {
		t.Fatal("the lost telephone goes on")
	}
	third := device()
	login, err = third.Login(ctx, p.phone, p.privateCode)
	must(err)
	sent, err = s.code(ctx, p.phone, sent)
	must(err)
	_, err = login.Complete(ctx, sent, "third")
	if !errors.Is(err, client.ErrDevicePending) || !errors.As(err, &waiting) {
		t.Fatal(err)
	}
	staff := func(operator string) string {
		r := command(t, "login", "approve-device", waiting.Text("device"), "--operator", operator, "--data", s.data)
		return r.stdout + r.stderr
	}
	for _, row := range []struct{ operator, want string }{
		{"ada", "1 of 2"}, {"ada", "Another member of staff"}, {"grace", "is authorised"}, {"grace", "authorised already"},
	} {
		if got := staff(row.operator); !strings.Contains(got, row.want) {
			t.Errorf("%s: %s", row.operator, got)
		} else {
			t.Log(got)
		}
	}
	login, err = third.Login(ctx, p.phone, p.privateCode)
	must(err)
	sent, err = s.code(ctx, p.phone, sent)
	must(err)
	if _, err = login.Complete(ctx, sent, "third"); err != nil {
		t.Fatal(err)
	}
}
