package app

import (
	"context"
	"net/http"

	"strongroom/internal/clock"
	"strongroom/internal/config"
	"strongroom/internal/customer"
	"strongroom/internal/identity"
	"strongroom/internal/identity/attest"
	"strongroom/internal/identity/phone"
)

// deviceOptions are the settings of customers' devices and passkeys.
func deviceOptions(o *identity.Options, c config.Config) error {
	d := c.Devices
	signers, err := d.SignerHashes()
	if err != nil {
		return &config.Error{Key: "devices.android_signers", Problem: err.Error()}
	}
	o.MaxDevices, o.CancelURL = d.Max, d.CancelURL
	o.Attest = identity.AttestOptions{Policy: identity.AttestPolicy(d.Attestation), Options: attest.Options{
		AndroidPackages: d.AndroidPackages, AndroidSigners: signers, AppleApps: d.AppleApps, AppleDevelopment: c.Environment != config.Live,
	}}
	o.Passkeys = identity.PasskeyOptions{RelyingParty: d.PasskeyDomain, Origins: d.PasskeyOrigins, AppOrigins: d.PasskeyApps}
	return nil
}

// LoginOperator is what the command line may do for customers who have lost what they log in with.
type LoginOperator interface {
	// ApproveDevice vouches for whoever holds a pending device; the second member of staff lets it in.
	ApproveDevice(ctx context.Context, operator, device string) (identity.Assisted, error)
	// ChangeNumber vouches for a change of number; the second member of staff has it begin.
	ChangeNumber(ctx context.Context, operator string, c customer.ID, number string) (identity.Assisted, error)
	// LoseDevice shuts a device out at once.
	LoseDevice(ctx context.Context, operator, device string) (identity.Assisted, error)
}

func (o operator) desk() identity.Assist {
	h := o.house
	options := identity.Options{
		DB: h.DB, Keys: h.Ring, Trail: h.Trail, Clock: clock.System, CancelURL: h.Config.Devices.CancelURL,
		Phone: phone.Rules{Region: h.Config.Login.DefaultRegion, AllowTestNumbers: h.Config.Login.AllowTestNumbers},
	}
	if !o.alone {
		options.Wake = h.Jobs.Wake
	}
	return identity.NewAssist(options)
}

func (o operator) ApproveDevice(ctx context.Context, operator, device string) (identity.Assisted, error) {
	return o.desk().ApproveDevice(ctx, o.by, operator, device)
}

func (o operator) ChangeNumber(ctx context.Context, operator string, c customer.ID, number string) (identity.Assisted, error) {
	return o.desk().ChangeNumber(ctx, o.by, operator, c, number)
}

func (o operator) LoseDevice(ctx context.Context, operator, device string) (identity.Assisted, error) {
	return o.desk().LoseDevice(ctx, o.by, operator, device)
}

type assistRequest struct {
	Operator string      `json:"operator"`
	Device   string      `json:"device,omitempty"`
	Customer customer.ID `json:"customer,omitempty"`
	Number   string      `json:"number,omitempty"`
}

// loginRoutes adds the commands on login to the control socket.
func (c *control) loginRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /login/approve-device", command(c, func(ctx context.Context, o operator, ask assistRequest) (identity.Assisted, error) {
		return o.ApproveDevice(ctx, ask.Operator, ask.Device)
	}))
	mux.HandleFunc("POST /login/change-number", command(c, func(ctx context.Context, o operator, ask assistRequest) (identity.Assisted, error) {
		return o.ChangeNumber(ctx, ask.Operator, ask.Customer, ask.Number)
	}))
	mux.HandleFunc("POST /login/lose-device", command(c, func(ctx context.Context, o operator, ask assistRequest) (identity.Assisted, error) {
		return o.LoseDevice(ctx, ask.Operator, ask.Device)
	}))
}

func (d *dialled) ApproveDevice(ctx context.Context, operator, device string) (out identity.Assisted, err error) {
	err = d.call(ctx, "/login/approve-device", assistRequest{Operator: operator, Device: device}, &out, nil)
	return out, err
}

func (d *dialled) ChangeNumber(ctx context.Context, operator string, c customer.ID, number string) (out identity.Assisted, err error) {
	err = d.call(ctx, "/login/change-number", assistRequest{Operator: operator, Customer: c, Number: number}, &out, nil)
	return out, err
}

func (d *dialled) LoseDevice(ctx context.Context, operator, device string) (out identity.Assisted, err error) {
	err = d.call(ctx, "/login/lose-device", assistRequest{Operator: operator, Device: device}, &out, nil)
	return out, err
}
