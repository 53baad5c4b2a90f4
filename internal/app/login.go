package app

import (
	"context"
	"math"
	"net/http"
	"slices"
	"strings"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/config"
	"strongroom/internal/customer"
	"strongroom/internal/edge"
	"strongroom/internal/identity"
	"strongroom/internal/identity/attest"
	"strongroom/internal/identity/phone"
	"strongroom/internal/identity/sms"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// LoginOperator is what the command line may do for customers who cannot log in.
type LoginOperator interface {
	// Unlock forgets the failed logins of a customer's account; see identity.Support.
	Unlock(ctx context.Context, c customer.ID, reason string) (identity.Unlocked, error)
	// ApproveDevice vouches for whoever holds a pending device; the second member of staff lets it in.
	ApproveDevice(ctx context.Context, operator, device string) (identity.Assisted, error)
	// ChangeNumber vouches for a change of number; the second member of staff has it begin.
	ChangeNumber(ctx context.Context, operator string, c customer.ID, number string) (identity.Assisted, error)
	// LoseDevice shuts a device out at once.
	LoseDevice(ctx context.Context, operator, device string) (identity.Assisted, error)
}

func (o operator) Unlock(ctx context.Context, c customer.ID, reason string) (identity.Unlocked, error) {
	return identity.NewSupport(o.house.DB, o.house.Ring, o.house.Trail, clock.System).Unlock(ctx, o.by, c, reason)
}

// loginRoutes adds the login commands to the control socket.
func (c *control) loginRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /login/unlock", command(c, func(ctx context.Context, o operator, ask eraseRequest) (identity.Unlocked, error) {
		return o.Unlock(ctx, ask.Customer, ask.Reason)
	}))
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

func (d *dialled) Unlock(ctx context.Context, c customer.ID, reason string) (out identity.Unlocked, err error) {
	err = d.call(ctx, "/login/unlock", eraseRequest{c, reason}, &out, nil)
	return out, err
}

// receiptBodies are the delivery receipts of message providers, which come in types of their own.
var receiptBodies = []edge.Body{{
	Method: http.MethodPost, Prefix: identity.ReceiptPath, Limit: sms.MaxReceipt,
	ContentTypes: []string{"application/json", "application/x-www-form-urlencoded"},
}}

// gateways returns what sends messages, in the order of the settings.
func gateways(ctx context.Context, c config.Config) (*sms.Route, error) {
	providers := c.SMS.Providers
	if c.SMS.Sender == "webhook" {
		providers = []config.Provider{{Name: "webhook", Kind: "webhook", URL: c.SMS.Webhook, Secret: c.SMS.Secret}}
	}
	var links []sms.Link
	for _, p := range providers {
		s, err := gateway(ctx, c.Login.Origin, p)
		if err != nil {
			return nil, &config.Error{Key: "sms.providers." + p.Name, Problem: err.Error()}
		}
		links = append(links, sms.Link{Name: p.Name, Sender: s})
	}
	return sms.NewRoute(clock.System, links...)
}

func gateway(ctx context.Context, origin string, p config.Provider) (s sms.Sender, err error) {
	key, err := p.Secret.Read()
	if err != nil && (p.Kind != "sns" || p.Key != "") {
		return nil, err
	}
	receipt, err := p.ReceiptSecret.Read()
	if err != nil && !p.ReceiptSecret.IsZero() {
		return nil, err
	}
	callback := ""
	if origin != "" && !p.ReceiptSecret.IsZero() {
		callback = strings.TrimSuffix(origin, "/") + identity.ReceiptPath + p.Name
	}
	switch p.Kind {
	case "twilio":
		return sms.NewTwilio(sms.TwilioOptions{Account: p.Account, Key: p.Key, Secret: key, Token: receipt, From: p.From, Callback: callback, URL: p.URL})
	case "vonage":
		return sms.NewVonage(sms.VonageOptions{Application: p.Account, Key: key, Signature: receipt, From: p.From, Callback: callback, URL: p.URL, Clock: clock.System})
	case "sns":
		return sms.NewSNS(ctx, sms.SNSOptions{Region: p.Region, Key: p.Key, Secret: key, From: p.From, URL: p.URL})
	default:
		return sms.NewWebhook(sms.WebhookOptions{URL: p.URL, Secret: key, Clock: clock.System})
	}
}

// loginOptions adds to o what the settings say about budgets, messages and private codes.
func loginOptions(o *identity.Options, c config.Config, v *vault.Vault) {
	o.CodeResetHold, o.Brand = c.Login.CodeResetHold, c.Login.Brand
	o.WebOTPHost, o.AppHash = c.Login.WebOTPHost, c.Login.AndroidAppHash
	o.Limits.CountryDaily, o.Limits.BlockDaily = c.SMS.CountryDaily, c.SMS.BlockDaily
	o.Limits.Spend.Daily = millionths(c.SMS.DailySpend)
	o.Limits.Spend.Prices = map[string]int64{}
	for _, p := range c.SMS.Prices {
		o.Limits.Spend.Prices[p.Prefix] = millionths(p.Price)
	}
	if collection, field, ok := strings.Cut(c.Login.BirthDate, "."); ok {
		o.Profiles = births{v, collection, field}
	}
}

func millionths(amount float64) int64 { return int64(math.Round(amount * 1e6)) }

// birthPurpose is the purpose for which birth dates are read; their collection has to allow it.
const birthPurpose = "private-code-check"

// births reads birth dates from customers' records, in the customer's name, with an event of each read.
type births struct {
	vault             *vault.Vault
	collection, field string
}

// BirthDate implements identity.Profiles. A customer has one record of that kind, or the first counts.
func (b births) BirthDate(ctx context.Context, by actor.Actor, c customer.ID) (string, error) {
	by.Kind, by.ID = actor.Customer, string(c)
	page, _, err := b.vault.List(ctx, by, c, b.collection, "", 1)
	if err != nil || len(page) == 0 {
		return "", err
	}
	r, err := b.vault.Get(ctx, by, c, page[0].Ref, vault.Reveal{Fields: []string{b.field}, Purpose: birthPurpose})
	if problem.Is(err, "record-not-found") {
		return "", nil // it was deleted meanwhile
	}
	day, _ := r.Fields[b.field].(string)
	return day, err
}

// checkBirthDate returns what is wrong with login.birth_date, given the collections.
func checkBirthDate(c config.Config) error {
	name, field, ok := strings.Cut(c.Login.BirthDate, ".")
	if !ok {
		return nil
	}
	collections := vault.Defaults()
	if len(c.Collections) > 0 {
		var err error
		if collections, err = pinned(c); err != nil {
			return nil // which is told of itself
		}
	}
	for _, s := range collections {
		if s.Name == name && slices.ContainsFunc(s.Fields, func(f vault.Field) bool { return f.Name == field && f.Type == vault.Date }) &&
			slices.Contains(s.Purposes, birthPurpose) {
			return nil
		}
	}
	return &config.Error{Key: "login.birth_date", Problem: "names no date of a collection that is read for " + birthPurpose,
		Remedy: "declare the collection with that field and add " + birthPurpose + " to its purposes"}
}

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
