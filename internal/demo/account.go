package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/pquerna/otp/totp"

	"strongroom/client"
)

// hold is the least that a change waits which would give an account away: a day, less what clocks differ.
const hold = 23 * time.Hour

// sessions shows what is logged in, and ends what the second device has.
func (j *journey) sessions(ctx context.Context) error {
	all, err := j.phone.Sessions(ctx)
	if err != nil {
		return done("listing the sessions", err)
	}
	var names []string
	var other client.Session
	for _, s := range all {
		if s.Device == j.tabletID {
			other = s
		}
		names = append(names, fmt.Sprintf("%s from %s", s.DeviceName, s.Address))
	}
	if other.ID == "" {
		return &mismatch{"the list of sessions", "to hold the second device's", "it has " + strings.Join(names, ", ")}
	}
	j.holds("%d sessions: %s", len(all), strings.Join(names, ", "))
	if err := j.phone.RevokeSession(ctx, other.ID); err != nil {
		return done("ending the second device's session", err)
	}
	if _, err := j.tablet.Session(ctx); err == nil {
		return &mismatch{"the session that was ended", "to be over", "it goes on"}
	} else if err := refused("the session that was ended", err, client.ErrInvalidToken); err != nil {
		return err
	}
	j.holds("the customer ends the tablet's from the phone: it is over at once")
	if err := j.enter(ctx, j.tablet, "Ada's tablet"); err != nil {
		return done("a login on the second device", err)
	}
	j.holds("the tablet is still one of the customer's devices, and logs in again")
	return nil
}

// authenticator takes an authenticator app as the second step, and gives it up again.
func (j *journey) authenticator(ctx context.Context) error {
	enrolled, err := j.phone.EnrolTOTP(ctx)
	if err != nil {
		return done("enrolling an authenticator app", err)
	}
	now := time.Now()
	code := func(at time.Time) string {
		c, err := totp.GenerateCode(enrolled.Secret.Reveal(), at)
		if err != nil {
			return "" // which the server refuses
		}
		return c
	}
	if err := enrolled.Confirm(ctx, code(now)); err != nil {
		return done("the app's first code", err)
	}
	j.holds("the app proves with its first code that it has the secret")
	before, err := j.world.newest(ctx, j.number)
	if err != nil {
		return err
	}
	enter := func(c *client.Client, code string) error {
		login, err := c.LoginBy(ctx, client.ByTOTP, j.number, j.private)
		if err != nil {
			return err
		}
		_, err = login.Complete(ctx, code, "Ada's phone")
		return err
	}
	// That of this half minute is used; the server forgives a clock that is half a minute ahead.
	next := code(now.Add(30 * time.Second))
	if err := enter(j.phone, next); err != nil {
		return done("a login with the app's next code", err)
	}
	sent, err := j.world.messages(ctx, j.number, before)
	if err != nil {
		return err
	}
	if codes(sent) != 0 {
		return &mismatch{"a login with an authenticator app", "to need no message", "a code was sent"}
	}
	j.holds("private code, device and its next code open a session; no code was sent by SMS")
	if err := refused("the same code of the app again", enter(j.phone, next), client.ErrLoginFailed); err != nil {
		return err
	}
	j.holds("the same code again is refused: each is good once")
	if err := j.phone.RemoveFactor(ctx, enrolled.Factor); err != nil {
		return done("giving the app up", err)
	}
	factors, sms, err := j.phone.Factors(ctx)
	if err != nil {
		return done("listing the second steps", err)
	}
	if len(factors) != 0 || !sms {
		return &mismatch{"the second steps", "SMS alone", fmt.Sprintf("%d others, SMS %v", len(factors), sms)}
	}
	notices, err := j.phone.Notices(ctx)
	if err != nil {
		return done("reading the notices", err)
	}
	if len(notices) < 2 || notices[0].Kind != "factor-removed" || notices[1].Kind != "factor-added" {
		return &mismatch{"the account's notices", "to tell of the app's coming and going", fmt.Sprint(notices)}
	}
	j.holds("given up, it is gone; the account's notices tell of its coming and its going")
	return nil
}

// payment has a service ask for a payment, and the customer authorise it.
func (j *journey) payment(ctx context.Context) error {
	shop := j.world.service.For("payment")
	tokens, err := j.phone.Tokens(ctx)
	if err != nil {
		return err
	}
	terms := client.PaymentTerms{Amount: "49.90", Currency: "EUR", Payee: "Example Shop"}
	dearer := terms
	dearer.Amount = "490.00"
	ask := func() (string, error) {
		p, err := shop.AskPayment(ctx, tokens.Customer, terms)
		return p.ID, done("a service's payment", err)
	}
	asked, err := ask()
	if err != nil {
		return err
	}
	_, err = j.phone.Payment(ctx, asked)
	if err := refused("a payment in a session without its scope", err, client.ErrInsufficientScope); err != nil {
		return err
	}
	j.holds("a service asks for 49.90 EUR to Example Shop: the session may read and write, not pay")
	before, err := j.world.newest(ctx, j.number)
	if err != nil {
		return err
	}
	login, err := j.phone.Login(ctx, j.number, j.private)
	if err != nil {
		return done("a login", err)
	}
	m, err := j.world.await(ctx, j.number, before, patience, sixDigits)
	if err != nil {
		return arrived(j.number, err)
	}
	_, err = login.CompleteWith(ctx, client.LoginAnswer{Code: m.code(), Scope: client.ScopeWrite + " " + client.ScopePayment})
	if err != nil {
		return done("a login for payments", err)
	}
	j.holds("the customer steps up: a login for payments, which ends after 5 minutes without use")

	code := func(payment string) (string, error) {
		before, err := j.world.newest(ctx, j.number)
		if err != nil {
			return "", err
		}
		if _, err := j.phone.SendPaymentCode(ctx, payment); err != nil {
			return "", done("a code for the payment", err)
		}
		m, err := j.world.await(ctx, j.number, before, patience, sixDigits)
		if err != nil {
			return "", arrived(j.number, err)
		}
		if !strings.Contains(m.Text, "49.90 EUR") || !strings.Contains(m.Text, "Example Shop") {
			return "", &mismatch{"the message with the code", "to name amount and payee", "it does not"}
		}
		return m.code(), nil
	}
	good, err := code(asked)
	if err != nil {
		return err
	}
	j.holds("the code comes with the amount and the payee that it is for")
	_, err = j.phone.AuthorisePayment(ctx, asked, good, dearer)
	if err := refused("the code, for another amount", err, client.ErrPaymentVoid); err != nil {
		return err
	}
	_, err = shop.VerifyPayment(ctx, asked, tokens.Customer, terms)
	if err := refused("a payment that was tampered with", err, client.ErrPaymentVoid); err != nil {
		return err
	}
	j.holds("somebody makes 490.00 of it: the code is not good for that, and the payment is void")

	if asked, err = ask(); err != nil {
		return err
	}
	if good, err = code(asked); err != nil {
		return err
	}
	if _, err = j.phone.AuthorisePayment(ctx, asked, good, terms); err != nil {
		return done("the authorisation", err)
	}
	paid, err := shop.VerifyPayment(ctx, asked, tokens.Customer, terms)
	if err != nil || paid.Status != client.PaymentUsed {
		return done("the service's verification", err)
	}
	_, err = shop.VerifyPayment(ctx, asked, tokens.Customer, terms)
	if err := refused("a second payment with one authorisation", err, client.ErrPaymentVoid); err != nil {
		return err
	}
	j.holds("asked again and authorised as it was shown, the service may pay: once, and not twice")
	return nil
}

// changeNumber moves the account to another number, and has the owner of the old one keep it.
func (j *journey) changeNumber(ctx context.Context) error {
	var change *client.NumberChange
	var other string
	var m message
	for silent := 0; ; silent++ {
		number, _, err := j.world.number(ctx)
		if err != nil {
			return err
		}
		before, err := j.world.newest(ctx, number)
		if err != nil {
			return err
		}
		if change, err = j.phone.ChangeNumber(ctx, number); err != nil {
			return done("a change of number", err)
		}
		m, err = j.world.await(ctx, number, before, patience, anything)
		if err != nil {
			return arrived(number, err)
		}
		if other = number; m.code() != "" {
			break
		}
		if silent == 3 { // it is somebody's, who is told
			return arrived(number, errSilence)
		}
	}
	before, err := j.world.newest(ctx, j.number)
	if err != nil {
		return err
	}
	due, err := change.Complete(ctx, m.code())
	if err != nil {
		return done("the proof of the new number", err)
	}
	if time.Until(due) < hold {
		return &mismatch{"a change of number", "to wait a day", "it counts at " + due.Format(time.RFC3339)}
	}
	j.holds("%s is proven by a code; the change waits until %s", pretty(other), due.Local().Format("15:04 on 2 January"))
	told, err := j.world.await(ctx, j.number, before, patience, cancelCode)
	if err != nil {
		return arrived(j.number, err)
	}
	code := cancelCode.FindString(told.Text)
	o, err := j.world.options()
	if err != nil {
		return err
	}
	borrowed, err := client.New(o)
	if err != nil {
		return err
	}
	defer borrowed.Close()
	if err := borrowed.CancelNumberChangeByCode(ctx, code); err != nil {
		return done("the owner's cancelling", err)
	}
	j.holds("the old number is told how to keep it, and its owner does so from another device")
	err = borrowed.CancelNumberChangeByCode(ctx, code)
	if err := refused("a second cancelling", err, "number-change-not-found"); err != nil {
		return err
	}
	j.holds("nothing is left of the change")
	return nil
}

// forgottenCode begins to choose a private code anew, and ends that again.
func (j *journey) forgottenCode(ctx context.Context) error {
	begin := func() (*client.PrivateCodeReset, string, error) {
		before, err := j.world.newest(ctx, j.number)
		if err != nil {
			return nil, "", err
		}
		reset, err := j.phone.ResetPrivateCode(ctx, j.number)
		if err != nil {
			return nil, "", done("a reset of the private code", err)
		}
		m, err := j.world.await(ctx, j.number, before, patience, sixDigits)
		if err != nil {
			return nil, "", arrived(j.number, err)
		}
		return reset, m.code(), nil
	}
	chosen := goodCode()
	reset, code, err := begin()
	if err != nil {
		return err
	}
	_, err = reset.Complete(ctx, otherCode(code), chosen)
	if err := refused("a reset with a wrong one-time code", err, "reset-failed"); err != nil {
		return err
	}
	j.holds("an authorised device asks, and a code comes by SMS; a wrong one is refused")
	first, err := reset.Complete(ctx, code, chosen)
	if err != nil {
		return done("the reset", err)
	}
	if time.Until(first) < hold {
		return &mismatch{"a forgotten private code", "to be chosen anew after a day", "it was changed at once"}
	}
	j.holds("with the right one a new private code can be chosen, but only a day later")
	if err := j.phone.CancelPrivateCodeReset(ctx); err != nil {
		return done("ending the reset", err)
	}
	if reset, code, err = begin(); err != nil {
		return err
	}
	again, err := reset.Complete(ctx, code, chosen)
	if err != nil {
		return done("a reset after that", err)
	}
	if !again.After(first) {
		return &mismatch{"a reset that was ended", "to begin its day anew", "it goes on"}
	}
	j.holds("the customer ends it from a session: whoever asks again waits a whole day again")
	return nil
}

// changeCode changes the private code, which the customer then has.
func (j *journey) changeCode(ctx context.Context) error {
	chosen := goodCode()
	err := j.phone.ChangePrivateCode(ctx, goodCode(), chosen)
	if err := refused("a change without the current private code", err, client.ErrWrongPrivateCode); err != nil {
		return err
	}
	j.holds("a session alone is not enough: without the current code nothing is changed")
	if err := j.phone.ChangePrivateCode(ctx, j.private, chosen); err != nil {
		return done("the change", err)
	}
	// A login with the old one begins first: its message would be there before that of the customer's own.
	before, err := j.world.newest(ctx, j.number)
	if err != nil {
		return err
	}
	if _, err := j.phone.Login(ctx, j.number, j.private); err != nil {
		return done("the start of a login", err)
	}
	j.private = chosen
	if err := j.enter(ctx, j.phone, "Ada's phone"); err != nil {
		return done("a login with the new private code", err)
	}
	sent, err := j.world.messages(ctx, j.number, before)
	if err != nil {
		return err
	}
	if n := codes(sent); n != 1 {
		return &mismatch{"the codes sent for the old and the new private code", "one", fmt.Sprintf("there are %d", n)}
	}
	j.holds("with it the code is changed: the new one opens the account, the old one gets no SMS")
	return nil
}

// goodCode returns a private code that no rule refuses.
func goodCode() string { return "lantern " + digits(4) + " orchard" }
