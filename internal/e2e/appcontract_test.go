package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"
	"github.com/pquerna/otp/totp"

	"strongroom/client"
)

// TestAppSDKKeepsTheContract does everything that an app can do, while every request and answer is held
// against the OpenAPI document of the app listener; and holds that there is no operation, header, parameter or
// member of a body that the SDK cannot say.
func TestAppSDKKeepsTheContract(t *testing.T) {
	s, err := tryStart(t, "dev", t.TempDir(), []string{"STRONGROOM_DEVICES_PASSKEY_DOMAIN=example.com", "STRONGROOM_DEVICES_PASSKEY_ORIGINS=https://example.com",
		"STRONGROOM_DEVICES_ATTESTATION=off"}) // so that what is said of a key need not be true
	if err != nil {
		t.Fatal(err)
	}
	c, base := newContract(t, s, s.urls.App)
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(err error, want client.Slug) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%v instead of %s", err, want)
		}
	}
	device := func() *client.Client {
		key, err := client.NewDeviceKey()
		ok(err)
		d, err := client.New(client.Options{BaseURL: base, Pins: s.pins(), RootCAs: s.authority(), Key: key})
		ok(err)
		t.Cleanup(d.Close)
		return d
	}
	const phone, other = "+447700900500", "+447700900501"
	private := "83510274"
	sent := map[string]string{}
	code := func(number string) string {
		t.Helper()
		next, err := s.code(ctx, number, sent[number])
		ok(err)
		sent[number] = next
		return next
	}
	vouched := func(d *client.Client) *client.Attestation {
		return &client.Attestation{Challenge: d.Nonce(), Android: [][]byte{{0x30}}, Apple: []byte{0xa0}}
	}

	// Registration, login, payment, and a standard client beside the app.
	app := device()
	registration, err := app.Register(ctx, phone)
	ok(err)
	reference, err := app.ReportConcern(ctx, "The lock on the third door can be opened with a hairpin.", "mailto:ada@example.com")
	if err != nil || !strings.HasPrefix(reference, "rep_") {
		t.Error(reference, err)
	}
	registered, err := registration.CompleteWith(ctx, client.RegistrationAnswer{Code: code(phone), PrivateCode: private, DeviceName: "first", Attestation: vouched(app)})
	ok(err)
	login, err := app.Login(ctx, phone, private)
	ok(err)
	_, err = login.CompleteWith(ctx, client.LoginAnswer{Code: code(phone), DeviceName: "first", Attestation: vouched(app),
		Scope: client.ScopeWrite + " " + client.ScopePayment})
	ok(err)
	session, err := app.Session(ctx)
	if err != nil || session.Scope != "write payment" || session.ACR != "aal2" || session.Customer != registered.Customer {
		t.Error(session, err)
	}
	ok(app.Refresh(ctx))
	terms := client.PaymentTerms{Amount: "49.90", Currency: "EUR", Payee: "Example Shop", Account: "GB33BUKB20201555555555"}
	errand := s.service().For("payment")
	asked, err := errand.AskPayment(ctx, registered.Customer, terms)
	ok(err)
	if shown, err := app.Payment(ctx, asked.ID); err != nil || shown.PaymentTerms != terms {
		t.Error(shown, err)
	}
	until, err := app.SendPaymentCode(ctx, asked.ID)
	if err != nil || time.Until(until) < time.Minute {
		t.Error(until, err)
	}
	if done, err := app.AuthorisePayment(ctx, asked.ID, code(phone), terms); err != nil || done.Status != client.PaymentAuthorised {
		t.Error(done, err)
	}
	login, err = app.Login(ctx, phone, private)
	ok(err)
	challenge := sha256.Sum256([]byte(rand.Text() + rand.Text())) // of a verifier
	authorization, err := login.Authorize(ctx, client.AuthorizationRequest{Code: code(phone), DeviceName: "first", ClientID: "app", RedirectURI: "https://example.com/back",
		CodeChallenge: base64.RawURLEncoding.EncodeToString(challenge[:]), Scope: client.ScopeRead, State: "state"})
	if err != nil || authorization.State != "state" || authorization.Issuer == "" || authorization.Code.IsZero() {
		t.Error(authorization, err)
	}

	// Records and documents.
	profiles := app.Collection("profile")
	first, err := profiles.Put(ctx, "main", map[string]string{"given_name": "Ada", "family_name": "Lovelace"}, client.IfNew())
	ok(err)
	first, err = profiles.Put(ctx, "main", map[string]string{"given_name": "Ada", "family_name": "King"}, client.IfMatch(first.ETag))
	ok(err)
	_, err = profiles.Get(ctx, "main")
	ok(err)
	_, err = profiles.Reveal(ctx, "main", "show-to-customer")
	ok(err)
	if page, err := profiles.List(ctx, 10, "a"); err != nil || len(page.Records) != 1 {
		t.Error(page, err)
	}
	ok(profiles.Delete(ctx, "main", client.IfMatch(first.ETag)))
	scan := make([]byte, 3<<20)
	rand.Read(scan)
	blobs := app.Blobs("profile")
	blob, err := blobs.Put(ctx, "scan", bytes.NewReader(scan), client.IfNew())
	ok(err)
	blob, err = blobs.Put(ctx, "scan", bytes.NewReader(scan), client.IfMatch(blob.ETag))
	ok(err)
	_, err = blobs.Get(ctx, "scan", "curiosity")
	refused(err, client.ErrPurposeNotAllowed)
	content, err := blobs.Get(ctx, "scan", "show-to-customer")
	ok(err)
	read, err := io.ReadAll(content)
	ok(err)
	ok(content.Close())
	if !bytes.Equal(read, scan) || blob.Size != int64(len(scan)) || content.ETag != blob.ETag {
		t.Errorf("%d bytes came back, %+v %+v", len(read), blob, content.Blob)
	}
	ok(blobs.Delete(ctx, "scan", client.IfMatch(blob.ETag)))

	// Second steps: an authenticator app and a passkey, and then no SMS.
	enrolled, err := app.EnrolTOTP(ctx)
	ok(err)
	now := time.Now()
	step := func(at time.Time) string {
		digits, err := totp.GenerateCode(enrolled.Secret.Reveal(), at)
		ok(err)
		return digits
	}
	ok(enrolled.Confirm(ctx, step(now)))
	site := virtualwebauthn.RelyingParty{ID: "example.com", Name: "Strongroom", Origin: "https://example.com"}
	holder := virtualwebauthn.NewAuthenticatorWithOptions(virtualwebauthn.AuthenticatorOptions{UserHandle: []byte(registered.Customer)})
	key := passkeyPair()
	holder.AddCredential(key)
	making, err := app.EnrolPasskey(ctx)
	ok(err)
	create, err := virtualwebauthn.ParseAttestationOptions(string(making.Options))
	ok(err)
	ok(making.Confirm(ctx, json.RawMessage(virtualwebauthn.CreateAttestationResponse(site, holder, key, *create))))
	ok(app.SetSMS(ctx, false))
	factors, sms, err := app.Factors(ctx)
	if err != nil || len(factors) != 2 || sms {
		t.Error(factors, sms, err)
	}
	login, err = app.LoginBy(ctx, client.ByPasskey, phone, private)
	ok(err)
	get, err := virtualwebauthn.ParseAssertionOptions(string(login.Passkey))
	ok(err)
	_, err = login.CompleteWith(ctx, client.LoginAnswer{Passkey: json.RawMessage(virtualwebauthn.CreateAssertionResponse(site, holder, key, *get))})
	ok(err)

	// Sessions and devices.
	second := device()
	login, err = second.LoginBy(ctx, client.ByTOTP, phone, private)
	ok(err)
	// The next step's code: that of this one is used, and the server forgives a clock that is half a minute ahead.
	_, err = login.Complete(ctx, step(now.Add(30*time.Second)), "second")
	refused(err, client.ErrDevicePending)
	var waiting *client.Problem
	if !errors.As(err, &waiting) {
		t.Fatal(err)
	}
	ok(app.ApproveDevice(ctx, waiting.Text("device"), waiting.Text("number")))
	sessions, err := app.Sessions(ctx)
	if err != nil || len(sessions) != 2 {
		t.Fatal(sessions, err)
	}
	for _, one := range sessions {
		if !one.Current {
			ok(app.RevokeSession(ctx, one.ID))
		}
	}
	if n, err := app.RevokeOtherSessions(ctx); err != nil || n != 0 {
		t.Error(n, err)
	}
	devices, err := app.Devices(ctx)
	if err != nil || len(devices) != 2 {
		t.Error(devices, err)
	}
	ok(app.ReportLost(ctx, waiting.Text("device")))
	ok(app.RevokeDevice(ctx, waiting.Text("device")))

	// The number, and the private code.
	change, err := app.ChangeNumber(ctx, other)
	ok(err)
	due, err := change.Complete(ctx, code(other))
	if err != nil || time.Until(due) < 23*time.Hour {
		t.Error(due, err)
	}
	cancel, err := s.found(ctx, phone, regexp.MustCompile(`\b[0-9A-Z]{16}\b`), "")
	ok(err)
	ok(device().CancelNumberChangeByCode(ctx, cancel))
	change, err = app.ChangeNumber(ctx, other)
	ok(err)
	_, err = change.Complete(ctx, code(other))
	ok(err)
	ok(app.CancelNumberChange(ctx))
	ok(app.SetSMS(ctx, true))
	for _, f := range factors {
		ok(app.RemoveFactor(ctx, f.ID))
	}
	ok(app.ChangePrivateCode(ctx, private, "orchard 77 lantern"))
	refused(app.ChangePrivateCode(ctx, private, "orchard 78 lantern"), client.ErrWrongPrivateCode)
	reset, err := app.ResetPrivateCode(ctx, phone)
	ok(err)
	usable, err := reset.Complete(ctx, code(phone), "meadow 31 anchor")
	if err != nil || time.Until(usable) < 23*time.Hour {
		t.Error(usable, err)
	}
	ok(app.CancelPrivateCodeReset(ctx))
	notices, err := app.Notices(ctx)
	if err != nil || len(notices) == 0 {
		t.Error(notices, err)
	}
	ok(app.Logout(ctx))
	c.kept()
}

// passkeyPair returns a key with coordinates of 32 bytes: the library cuts zeros off their fronts, which no
// authenticator may (RFC 9053 section 7.1.1).
func passkeyPair() virtualwebauthn.Credential {
	for {
		if k := virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2); len(k.Key.AttestationData()) == 77 {
			return k
		}
	}
}
