package identity

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/secret"
)

// cancelCode is the code that cancels a change of number.
type cancelCode struct{ secret.Value }

// Schema implements huma.SchemaProvider.
func (cancelCode) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeString, MinLength: new(16), MaxLength: new(32),
		Description: "The code that was sent to the old number.", Examples: []any{"7K3M9QX2ABCD5EFG"},
	}
}

// AttestationInput vouches for the key of a new device.
type AttestationInput struct {
	Challenge string   `json:"challenge" maxLength:"128" doc:"A nonce from a DPoP-Nonce header, at most 15 minutes old."`
	Android   [][]byte `json:"android,omitempty" maxItems:"8" doc:"The chain of Android Key Attestation, DER, leaf first. The challenge is that of the key, as text."`
	Apple     []byte   `json:"apple,omitempty" maxLength:"32768" doc:"App Attest's object over SHA-256 of challenge, a full stop, and the thumbprint (RFC 7638) of the device's key."`
}

func (a *AttestationInput) value() Attestation {
	if a == nil {
		return Attestation{}
	}
	return Attestation{Challenge: a.Challenge, Android: a.Android, Apple: a.Apple}
}

// FactorView is a second step in an answer.
type FactorView struct {
	Factor     string     `json:"factor"`
	Kind       string     `json:"kind" enum:"totp,passkey"`
	Status     string     `json:"status" enum:"pending,active"`
	AddedAt    time.Time  `json:"added_at"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
}

type factorsOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Factors []FactorView `json:"factors" nullable:"false"`
		SMS     struct {
			Enabled    bool       `json:"enabled" doc:"Whether codes are sent by SMS."`
			Restricted bool       `json:"restricted" doc:"Always true: SMS is a restricted authenticator (NIST SP 800-63B-4). Offer a passkey or an authenticator app."`
			HeldUntil  *time.Time `json:"held_until,omitempty" doc:"No codes are sent before, since the SIM was changed."`
		} `json:"sms"`
	}
}

type totpOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Factor string `json:"factor"`
		Secret string `json:"secret" doc:"Base32, to be typed into an authenticator app. It is shown once."`
		URI    string `json:"uri" doc:"The same, to be shown as a QR code." example:"otpauth://totp/…"`
	}
}

type passkeyOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Factor  string `json:"factor"`
		Options any    `json:"options" doc:"For navigator.credentials.create, or an app's equivalent (PublicKeyCredentialCreationOptionsJSON)."`
	}
}

type factorInput struct {
	Factor string `path:"factor" maxLength:"64" doc:"As the enrolment or the list named it."`
}

type confirmTOTPInput struct {
	Factor string `path:"factor" maxLength:"64" doc:"As the enrolment named it."`
	Body   struct {
		Code oneTimeCode `json:"code"`
	}
}

type confirmPasskeyInput struct {
	Factor string `path:"factor" maxLength:"64" doc:"As the enrolment named it."`
	Body   struct {
		Credential any `json:"credential" doc:"The device's answer (RegistrationResponseJSON)."`
	}
}

type smsInput struct {
	Body struct {
		Enabled bool `json:"enabled"`
	}
}

type approveInput struct {
	Device string `path:"device" maxLength:"64" doc:"As the list of devices names it."`
	Body   struct {
		Number string `json:"number" pattern:"^[0-9]{3}$" maxLength:"3" doc:"The number that the new device shows." example:"047"`
	}
}

type startNumberOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Change    string `json:"change" doc:"Names this change when it is completed."`
		ExpiresIn int    `json:"expires_in" doc:"Seconds for which the one-time code is good." example:"300"`
	}
}

type completeNumberInput struct {
	Change string `path:"change" maxLength:"64" doc:"As its start named it."`
	Body   struct {
		Code oneTimeCode `json:"code"`
	}
}

type completeNumberOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		ChangesAt time.Time `json:"changes_at" doc:"When the new number counts. Until then the old one does, and the change may be cancelled."`
	}
}

type cancelNumberInput struct {
	Body struct {
		Code cancelCode `json:"code"`
	}
}

// NoticeView is something that a customer is told.
type NoticeView struct {
	Notice string    `json:"notice"`
	Kind   string    `json:"kind"`
	Device string    `json:"device,omitempty" doc:"The device that it is about."`
	MadeAt time.Time `json:"made_at"`
}

type noticesOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Notices []NoticeView `json:"notices" nullable:"false"`
	}
}

// maxAttested bounds the bodies that hold an attestation or a passkey's answer, in bytes.
const maxAttested = 64 << 10

// registerFactors adds the operations of second steps, of a change of number and of losses. What only
// protects an account takes no more than the scope to read.
func (i *Identity) registerFactors(api huma.API) {
	operation := func(id, method, path, scope, summary string, status int, errs ...int) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"Second steps and recovery"},
			Security: []map[string][]string{{"session": {scope}}}, DefaultStatus: status, MaxBodyBytes: maxAttested,
			BodyReadTimeout: 10 * time.Second, RejectUnknownQueryParameters: true,
			Errors: append([]int{http.StatusUnauthorized, http.StatusForbidden, http.StatusServiceUnavailable}, errs...),
		}
	}
	const (
		get, post, put, del   = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
		absent, clash, cannot = http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity
		bad, over             = http.StatusBadRequest, http.StatusRequestEntityTooLarge
	)
	huma.Register(api, operation("list-factors", get, "/v1/factors", ScopeRead, "List the customer's second steps", 200), i.listFactors)
	huma.Register(api, operation("enrol-totp", post, "/v1/factors/totp", ScopeWrite, "Enrol an authenticator app", 201), i.enrolTOTP)
	huma.Register(api, operation("confirm-totp", post, "/v1/factors/totp/{factor}/confirm", ScopeWrite, "Prove the authenticator app with a code", 204, bad, over, absent, cannot), i.confirmTOTP)
	huma.Register(api, operation("enrol-passkey", post, "/v1/factors/passkeys", ScopeWrite, "Begin to make a passkey", 201), i.enrolPasskey)
	huma.Register(api, operation("confirm-passkey", post, "/v1/factors/passkeys/{factor}/confirm", ScopeWrite, "End the making of a passkey with the device's answer", 204, bad, over, absent, cannot), i.confirmPasskey)
	huma.Register(api, operation("remove-factor", del, "/v1/factors/{factor}", ScopeWrite, "Remove a second step", 204, absent, clash), i.removeFactor)
	huma.Register(api, operation("set-sms", put, "/v1/factors/sms", ScopeWrite, "Put codes by SMS off or on", 204, bad, over, clash, cannot), i.setSMS)
	huma.Register(api, operation("report-lost-device", post, "/v1/devices/{device}/lost", ScopeRead, "Report a device as lost: it is shut out at once", 204, absent), i.reportLost)
	huma.Register(api, operation("start-number-change", post, "/v1/number", ScopeWrite, "Change the number: sends a one-time code to the new one", 202, bad, over, cannot, http.StatusTooManyRequests), i.startNumber)
	huma.Register(api, operation("complete-number-change", post, "/v1/number/{change}/complete", ScopeWrite, "Prove the new number; it counts a day later", 200, bad, over, cannot), i.completeNumber)
	huma.Register(api, operation("cancel-number-change", del, "/v1/number", ScopeRead, "Keep the old number", 204, absent), i.cancelNumber)
	byCode := operation("cancel-number-change-by-code", post, "/v1/number/cancel", ScopeRead, "Keep the old number, with the code that was sent to it", 204, bad, over, absent, cannot)
	byCode.Security, byCode.MaxBodyBytes = []map[string][]string{{"device": {}}}, maxBody
	huma.Register(api, byCode, i.cancelNumberByCode)
	huma.Register(api, operation("list-notices", get, "/v1/notices", ScopeRead, "List what has happened to the account", 200), i.listNotices)
}

func (i *Identity) listFactors(ctx context.Context, _ *struct{}) (*factorsOutput, error) {
	all, err := i.Factors(ctx, actor.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &factorsOutput{CacheControl: noStore}
	out.Body.Factors = make([]FactorView, len(all.All))
	for n, f := range all.All {
		v := FactorView{Factor: f.ID, Kind: f.Kind, Status: f.Status, AddedAt: f.Made}
		if !f.Used.IsZero() {
			v.LastUsedAt = &f.Used
		}
		out.Body.Factors[n] = v
	}
	out.Body.SMS.Enabled, out.Body.SMS.Restricted = all.SMS, true
	if !all.Held.IsZero() {
		out.Body.SMS.HeldUntil = &all.Held
	}
	return out, nil
}

func (i *Identity) enrolTOTP(ctx context.Context, _ *struct{}) (*totpOutput, error) {
	e, err := i.EnrolTOTP(ctx, actor.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &totpOutput{CacheControl: noStore}
	out.Body.Factor, out.Body.Secret, out.Body.URI = e.ID, string(e.Secret.Reveal()), string(e.URI.Reveal())
	return out, nil
}

func (i *Identity) confirmTOTP(ctx context.Context, in *confirmTOTPInput) (*struct{}, error) {
	return nil, i.ConfirmTOTP(ctx, actor.From(ctx), in.Factor, in.Body.Code.Value)
}

func (i *Identity) enrolPasskey(ctx context.Context, _ *struct{}) (*passkeyOutput, error) {
	e, err := i.EnrolPasskey(ctx, actor.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &passkeyOutput{CacheControl: noStore}
	out.Body.Factor, out.Body.Options = e.ID, e.Options
	return out, nil
}

func (i *Identity) confirmPasskey(ctx context.Context, in *confirmPasskeyInput) (*struct{}, error) {
	answer, err := json.Marshal(in.Body.Credential)
	if err != nil {
		return nil, errPasskeyRefused.Because(err)
	}
	return nil, i.ConfirmPasskey(ctx, actor.From(ctx), in.Factor, answer)
}

func (i *Identity) removeFactor(ctx context.Context, in *factorInput) (*struct{}, error) {
	return nil, i.RemoveFactor(ctx, actor.From(ctx), in.Factor)
}

func (i *Identity) setSMS(ctx context.Context, in *smsInput) (*struct{}, error) {
	return nil, i.SetSMS(ctx, actor.From(ctx), in.Body.Enabled)
}

func (i *Identity) reportLost(ctx context.Context, in *deviceInput) (*struct{}, error) {
	return nil, i.ReportLost(ctx, actor.From(ctx), in.Device)
}

func (i *Identity) startNumber(ctx context.Context, in *startRegistrationInput) (*startNumberOutput, error) {
	s, err := i.StartNumberChange(ctx, actor.From(ctx), in.Body.Phone)
	if err != nil {
		return nil, err
	}
	out := &startNumberOutput{CacheControl: noStore}
	out.Body.Change, out.Body.ExpiresIn = s.ID, seconds(s.Expires)
	return out, nil
}

func (i *Identity) completeNumber(ctx context.Context, in *completeNumberInput) (*completeNumberOutput, error) {
	due, err := i.CompleteNumberChange(ctx, actor.From(ctx), in.Change, in.Body.Code.Value)
	if err != nil {
		return nil, err
	}
	out := &completeNumberOutput{CacheControl: noStore}
	out.Body.ChangesAt = due
	return out, nil
}

func (i *Identity) cancelNumber(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, i.CancelNumberChange(ctx, actor.From(ctx))
}

func (i *Identity) cancelNumberByCode(ctx context.Context, in *cancelNumberInput) (*struct{}, error) {
	return nil, i.CancelNumberByCode(ctx, actor.From(ctx), in.Body.Code.Value)
}

func (i *Identity) listNotices(ctx context.Context, _ *struct{}) (*noticesOutput, error) {
	all, err := i.Notices(ctx, actor.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &noticesOutput{CacheControl: noStore}
	out.Body.Notices = make([]NoticeView, len(all))
	for n, a := range all {
		out.Body.Notices[n] = NoticeView{Notice: a.ID, Kind: a.Kind, Device: a.Device, MadeAt: a.Made}
	}
	return out, nil
}
