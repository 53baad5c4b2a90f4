package identity

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/identity/passcode"
	"strongroom/internal/secret"
)

// privateCode is a private code in a request. In the document it is a string; in Go it cannot be
// printed.
type privateCode struct{ secret.Value }

// Schema implements huma.SchemaProvider.
func (privateCode) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeString, Format: "password", MinLength: new(1), MaxLength: new(passcode.MaxLength),
		Description: "Known to the customer alone: at least 8 digits, or a passphrase of up to 64 characters.",
		Examples:    []any{"73920485"},
	}
}

// oneTimeCode is a one-time code in a request.
type oneTimeCode struct{ secret.Value }

// Schema implements huma.SchemaProvider.
func (oneTimeCode) Schema(huma.Registry) *huma.Schema {
	s := &huma.Schema{
		Type: huma.TypeString, Pattern: "^[0-9]{6}$", MinLength: new(6), MaxLength: new(6),
		Description: "The six digits that came as a text message.",
		Examples:    []any{"123456"},
	}
	s.PrecomputeMessages()
	return s
}

// refreshToken is a refresh token in a request.
type refreshToken struct{ secret.Value }

// Schema implements huma.SchemaProvider.
func (refreshToken) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeString, MinLength: new(1), MaxLength: new(256),
		Description: "The refresh token that came last. It works once.",
		Examples:    []any{"srt_…"},
	}
}

type startRegistrationInput struct {
	Body struct {
		Phone string `json:"phone" maxLength:"40" minLength:"1" doc:"A mobile number with its country code." example:"+447700900123"`
	}
}

type startRegistrationOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Registration string `json:"registration" doc:"Names this registration when it is completed." example:"reg_01jd8xk2m3n4p5q6r7s8t9v0wx"`
		ExpiresIn    int    `json:"expires_in" doc:"Seconds for which the one-time code is good." example:"300"`
	}
}

type completeRegistrationInput struct {
	Registration string `path:"registration" maxLength:"64" doc:"As the start of the registration named it."`
	Body         struct {
		Code        oneTimeCode `json:"code"`
		PrivateCode privateCode `json:"private_code"`
		DeviceName  string      `json:"device_name,omitempty" maxLength:"64" doc:"What the customer calls this device." example:"Ada's phone"`

		Attestation *AttestationInput `json:"attestation,omitempty" doc:"What vouches for the device's key."`
	}
}

type completeRegistrationOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Customer customer.ID `json:"customer" example:"cus_01jd8xk2m3n4p5q6r7s8t9v0wx"`
		Device   string      `json:"device" example:"dev_01jd8xk2m3n4p5q6r7s8t9v0wx"`
	}
}

type startLoginInput struct {
	Body struct {
		Phone       string      `json:"phone" maxLength:"40" minLength:"1" doc:"The number that was registered." example:"+447700900123"`
		PrivateCode privateCode `json:"private_code"`
		Method      string      `json:"method,omitempty" enum:"sms,totp,passkey" doc:"The second step; a code by SMS if it is not said."`
	}
}

type startLoginOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Login     string `json:"login" doc:"Names this login when it is completed." example:"log_01jd8xk2m3n4p5q6r7s8t9v0wx"`
		ExpiresIn int    `json:"expires_in" doc:"Seconds for which the one-time code is good." example:"300"`
		Passkey   any    `json:"passkey,omitempty" doc:"For navigator.credentials.get, or an app's equivalent, when the method is passkey (PublicKeyCredentialRequestOptionsJSON)."`
	}
}

type completeLoginInput struct {
	Login string `path:"login" maxLength:"64" doc:"As the start of the login named it."`
	Body  struct {
		Code       oneTimeCode `json:"code,omitempty"`
		DeviceName string      `json:"device_name,omitempty" maxLength:"64" doc:"What the customer calls this device, should it be new." example:"Ada's phone"`
		Scope      string      `json:"scope,omitempty" maxLength:"64" doc:"What the session is to be good for: read, write, payment, with spaces between. Nothing means write." example:"read payment"`

		Passkey     any               `json:"passkey,omitempty" doc:"The answer of a passkey (AuthenticationResponseJSON), instead of a code."`
		Attestation *AttestationInput `json:"attestation,omitempty" doc:"What vouches for the device's key."`
	}
}

type refreshInput struct {
	Body struct {
		RefreshToken refreshToken `json:"refresh_token"`
	}
}

// TokensView is a pair of tokens in an answer (RFC 6749 section 5.1, RFC 9449 section 5).
type TokensView struct {
	AccessToken      string      `json:"access_token" doc:"Goes into Authorization: DPoP <token>, with a proof for each request."`
	TokenType        string      `json:"token_type" enum:"DPoP"`
	ExpiresIn        int         `json:"expires_in" doc:"Seconds until the access token expires." example:"300"`
	RefreshToken     string      `json:"refresh_token" doc:"Gives the next pair of tokens, once."`
	Scope            string      `json:"scope" doc:"What the session may do, with spaces between." example:"write"`
	RefreshExpiresIn int         `json:"refresh_expires_in" doc:"Seconds until the session ends if it is not used." example:"3600"`
	Session          string      `json:"session"`
	Customer         customer.ID `json:"customer"`
	Device           string      `json:"device"`
}

type tokensOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         TokensView
}

func tokensAnswer(t Tokens) *tokensOutput {
	return &tokensOutput{CacheControl: noStore, Body: TokensView{
		AccessToken: string(t.Access.Reveal()), TokenType: "DPoP", ExpiresIn: seconds(t.AccessExpires),
		RefreshToken: string(t.Refresh.Reveal()), RefreshExpiresIn: seconds(t.RefreshExpires), Scope: t.Scope,
		Session: t.Session, Customer: t.Customer, Device: t.Device,
	}}
}

// noStore keeps tokens and what they show out of every cache (RFC 6749 section 5.1).
const noStore = "no-store"

type sessionOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Session       string      `json:"session"`
		Customer      customer.ID `json:"customer"`
		Device        string      `json:"device"`
		DeviceName    string      `json:"device_name"`
		Scope         string      `json:"scope" doc:"What the session may do now; scopes end by themselves."`
		ACR           string      `json:"acr" doc:"How the customer was authenticated."`
		LoggedInAt    time.Time   `json:"logged_in_at"`
		IdleExpiresAt time.Time   `json:"idle_expires_at" doc:"When the session ends if it is not used."`
		ExpiresAt     time.Time   `json:"expires_at" doc:"When the session ends in any case."`
	}
}

// DeviceView is a device in an answer.
type DeviceView struct {
	Device     string    `json:"device"`
	Name       string    `json:"name"`
	Status     string    `json:"status" enum:"authorised,pending,revoked"`
	AddedAt    time.Time `json:"added_at"`
	LastSeenAt time.Time `json:"last_seen_at" doc:"To the hour."`
	Current    bool      `json:"current" doc:"Whether this request came from it."`

	Attestation string `json:"attestation,omitempty" enum:"android-tee,android-strongbox,apple" doc:"What vouches for its key."`
	Risk        Risk   `json:"risk" enum:"low,medium,high" doc:"Medium: nothing vouches for its key, or it is less than a day old, or was not seen for 90 days. High: it is pending or revoked."`
}

type devicesOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Devices []DeviceView `json:"devices" nullable:"false"`
	}
}

type deviceInput struct {
	Device string `path:"device" maxLength:"64" doc:"As the list of devices names it."`
}

// maxBody bounds the bodies of these operations, in bytes.
const maxBody = 4 << 10

// Register adds the operations of registration, login, sessions and devices.
func (i *Identity) Register(api huma.API) {
	device := []map[string][]string{{"device": {}}}
	read, write := []map[string][]string{{"session": {ScopeRead}}}, []map[string][]string{{"session": {ScopeWrite}}}
	operation := func(name, method, path, summary string, security []map[string][]string, status int, errs ...int) huma.Operation {
		tag := "Login"
		if security[0]["session"] != nil {
			tag = "Session and devices"
			errs = append(errs, http.StatusForbidden) // without the scope
		}
		return huma.Operation{
			OperationID: name, Method: method, Path: path, Summary: summary, Tags: []string{tag},
			Security: security, DefaultStatus: status, MaxBodyBytes: maxBody, BodyReadTimeout: 10 * time.Second,
			RejectUnknownQueryParameters: true,
			Errors:                       append([]int{http.StatusUnauthorized, http.StatusServiceUnavailable}, errs...),
		}
	}
	attested := func(o huma.Operation) huma.Operation {
		o.MaxBodyBytes = maxAttested
		return o
	}
	const (
		bad, over, weak, many = http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusTooManyRequests
		forbidden, absent     = http.StatusForbidden, http.StatusNotFound
	)
	huma.Register(api, operation("start-registration", http.MethodPost, "/v1/registrations",
		"Register a number: sends a one-time code", device, http.StatusAccepted, bad, over, weak, many), i.startRegistration)
	huma.Register(api, attested(operation("complete-registration", http.MethodPost, "/v1/registrations/{registration}/complete",
		"Complete a registration with the one-time code and a private code", device, http.StatusCreated, bad, over, weak, forbidden)), i.completeRegistration)
	huma.Register(api, operation("start-login", http.MethodPost, "/v1/logins",
		"Log in: sends a one-time code if number and private code are right", device, http.StatusAccepted, bad, over, weak, many), i.startLogin)
	huma.Register(api, attested(operation("complete-login", http.MethodPost, "/v1/logins/{login}/complete",
		"Complete a login with the one-time code or the passkey", device, http.StatusOK, bad, over, weak, forbidden)), i.completeLogin)
	huma.Register(api, operation("refresh-session", http.MethodPost, "/v1/sessions/refresh",
		"Exchange a refresh token for new tokens", device, http.StatusOK, bad, over, weak), i.refresh)
	huma.Register(api, operation("get-session", http.MethodGet, "/v1/session",
		"Show the current session", read, http.StatusOK), i.getSession)
	huma.Register(api, operation("logout", http.MethodPost, "/v1/logout",
		"End the current session", read, http.StatusNoContent), i.logout)
	huma.Register(api, operation("list-devices", http.MethodGet, "/v1/devices",
		"List the customer's devices", read, http.StatusOK), i.listDevices)
	huma.Register(api, operation("approve-device", http.MethodPost, "/v1/devices/{device}/approve",
		"Let a pending device in that shows this number", write, http.StatusNoContent, bad, over, weak, absent, http.StatusConflict), i.approveDevice)
	huma.Register(api, operation("revoke-device", http.MethodDelete, "/v1/devices/{device}",
		"Shut a device out and end its sessions", write, http.StatusNoContent, absent, http.StatusConflict), i.revokeDevice)
	i.registerSessions(api, operation)
	i.registerCodes(api)
	i.registerFactors(api)
}

func (i *Identity) startRegistration(ctx context.Context, in *startRegistrationInput) (*startRegistrationOutput, error) {
	s, err := i.StartRegistration(ctx, actor.From(ctx), in.Body.Phone)
	if err != nil {
		return nil, err
	}
	out := &startRegistrationOutput{CacheControl: noStore}
	out.Body.Registration, out.Body.ExpiresIn = s.ID, seconds(s.Expires)
	return out, nil
}

func (i *Identity) completeRegistration(ctx context.Context, in *completeRegistrationInput) (*completeRegistrationOutput, error) {
	r, err := i.CompleteRegistrationWith(ctx, actor.From(ctx), in.Registration, in.Body.PrivateCode.Value,
		Answer{Code: in.Body.Code.Value, DeviceName: in.Body.DeviceName, Attestation: in.Body.Attestation.value()})
	if err != nil {
		return nil, err
	}
	out := &completeRegistrationOutput{CacheControl: noStore}
	out.Body.Customer, out.Body.Device = r.Customer, r.Device
	return out, nil
}

func (i *Identity) startLogin(ctx context.Context, in *startLoginInput) (*startLoginOutput, error) {
	s, err := i.StartLoginBy(ctx, actor.From(ctx), cmp.Or(Method(in.Body.Method), BySMS), in.Body.Phone, in.Body.PrivateCode.Value)
	if err != nil {
		return nil, err
	}
	out := &startLoginOutput{CacheControl: noStore}
	out.Body.Login, out.Body.ExpiresIn = s.ID, seconds(s.Expires)
	if s.Passkey != nil {
		out.Body.Passkey = s.Passkey
	}
	return out, nil
}

func (i *Identity) completeLogin(ctx context.Context, in *completeLoginInput) (*tokensOutput, error) {
	answer := Answer{Code: in.Body.Code.Value, DeviceName: in.Body.DeviceName, Scope: in.Body.Scope, Attestation: in.Body.Attestation.value()}
	var err error
	if answer.Passkey, err = json.Marshal(in.Body.Passkey); err != nil {
		return nil, errLoginFailed.Because(err)
	}
	t, err := i.CompleteLoginBy(ctx, actor.From(ctx), in.Login, answer)
	if err != nil {
		return nil, err
	}
	return tokensAnswer(t), nil
}

func (i *Identity) refresh(ctx context.Context, in *refreshInput) (*tokensOutput, error) {
	t, err := i.Refresh(ctx, actor.From(ctx), in.Body.RefreshToken.Value)
	if err != nil {
		return nil, err
	}
	return tokensAnswer(t), nil
}

func (i *Identity) getSession(ctx context.Context, _ *struct{}) (*sessionOutput, error) {
	s, err := i.CurrentSession(ctx, actor.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &sessionOutput{CacheControl: noStore}
	b := &out.Body
	b.Session, b.Customer, b.Device, b.DeviceName = s.Session, s.Customer, s.Device, s.DeviceName
	b.LoggedInAt, b.IdleExpiresAt, b.ExpiresAt, b.Scope, b.ACR = s.LoggedIn, s.IdleExpires, s.Expires, s.Scope, s.ACR
	return out, nil
}

func (i *Identity) logout(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, i.Logout(ctx, actor.From(ctx))
}

func (i *Identity) listDevices(ctx context.Context, _ *struct{}) (*devicesOutput, error) {
	all, err := i.Devices(ctx, actor.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &devicesOutput{CacheControl: noStore}
	out.Body.Devices = make([]DeviceView, len(all))
	for n, d := range all {
		out.Body.Devices[n] = DeviceView{d.ID, d.Name, d.Status, d.Added, d.LastSeen, d.Current, d.Attestation, d.Risk}
	}
	return out, nil
}

func (i *Identity) approveDevice(ctx context.Context, in *approveInput) (*struct{}, error) {
	return nil, i.ApproveDevice(ctx, actor.From(ctx), in.Device, in.Body.Number)
}

func (i *Identity) revokeDevice(ctx context.Context, in *deviceInput) (*struct{}, error) {
	return nil, i.RevokeDevice(ctx, actor.From(ctx), in.Device)
}

// seconds rounds, since times are stored in microseconds and read with nanoseconds.
func seconds(d time.Duration) int { return int(d.Round(time.Second) / time.Second) }
