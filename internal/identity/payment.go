package identity

import (
	"context"
	"crypto/subtle"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/keyring"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// Dynamic linking (PSD2 RTS art. 5): a service asks that a customer authorise one payment, with its amount
// and payee. The customer's message and screen show them, the one-time code is a MAC over them, and what
// the service verifies in the end is the authorisation of this amount to this payee, once. Whoever names
// another amount or payee on the way, app or service, voids it.

// PaymentLifetime is how long a payment waits for its customer, and how long an authorisation waits for
// its service.
const PaymentLifetime = 10 * time.Minute

// paymentCodes is how many messages a payment may cost.
const paymentCodes = 3

// The states of a payment.
const (
	paymentAsked      = "asked"
	paymentAuthorised = "authorised"
	paymentUsed       = "used"
	paymentVoid       = "void"
)

// Terms are what a customer authorises.
type Terms struct {
	Amount   string `json:"amount"`   // decimal, as it is shown: "49.90"
	Currency string `json:"currency"` // ISO 4217
	Payee    string `json:"payee"`    // the payee's name
	Account  string `json:"account"`  // the payee's account; may be ""
}

// Payment is a payment that waits for its customer, or no longer.
type Payment struct {
	ID       string
	Customer customer.ID
	Status   string
	Terms
	Expires time.Time
	Decided time.Time // zero until then
}

var (
	errPaymentNotFound = problem.New(problem.NotFound, "payment-not-found", "There is no such payment, or no longer.")
	errPaymentFailed   = problem.New(problem.Unauthenticated, "payment-not-authorised", "The payment cannot be authorised with this code.")
	errPaymentVoid     = problem.New(problem.Conflict, "payment-void", "The payment is not open, or its amount or payee is not what was asked for. Start it again.")
	errTerms           = problem.New(problem.Unprocessable, "invalid-payment", "A payment has an amount such as 49.90, a currency of three capital letters, a payee of 1 to 70 printable characters, and perhaps an account of up to 34 letters and digits.")

	amountForm   = regexp.MustCompile(`\A(0|[1-9][0-9]{0,11})(\.[0-9]{1,4})?\z`)
	currencyForm = regexp.MustCompile(`\A[A-Z]{3}\z`)
	accountForm  = regexp.MustCompile(`\A[A-Za-z0-9]{0,34}\z`)
)

// valid keeps whatever could forge the message, a line break above all, out of it.
func (t Terms) valid() bool {
	printable := func(r rune) bool { return unicode.IsPrint(r) && r != utf8.RuneError }
	return amountForm.MatchString(t.Amount) && strings.Trim(t.Amount, "0.") != "" && currencyForm.MatchString(t.Currency) && accountForm.MatchString(t.Account) &&
		utf8.ValidString(t.Payee) && t.Payee == strings.TrimSpace(t.Payee) && t.Payee != "" && utf8.RuneCountInString(t.Payee) <= 70 &&
		strings.IndexFunc(t.Payee, func(r rune) bool { return !printable(r) }) < 0
}

// paymentRow is a payment as it is stored.
type paymentRow struct {
	id          string
	customer    customer.ID
	service     string
	sealed      []byte
	terms       Terms
	status      string
	jkt         string
	mac         []byte
	keyVersion  uint32
	tries       int64
	codeExpires int64
	session     string
	decided     int64
	expires     int64
}

func (p *paymentRow) view() Payment {
	out := Payment{ID: p.id, Customer: p.customer, Status: p.status, Terms: p.terms, Expires: clock.FromMicros(p.expires)}
	if p.decided > 0 {
		out.Decided = clock.FromMicros(p.decided)
	}
	return out
}

// AskPayment has a service ask a customer to authorise a payment.
func (s *Services) AskPayment(ctx context.Context, by actor.Actor, purpose string, c customer.ID, t Terms) (Payment, error) {
	event, p := s.decide(by, purpose, ActionPaymentAsk, policy.PaymentAsk, c)
	if p == nil && !t.valid() {
		p = errTerms
	}
	if p != nil {
		return Payment{}, s.Trail.Deny(ctx, by, event, p)
	}
	now := s.Clock.Now()
	row := paymentRow{id: id.New("pay"), customer: c, service: by.ID, terms: t, status: paymentAsked, tries: codeTries * paymentCodes,
		expires: clock.Micros(now.Add(PaymentLifetime))}
	event.Resource = "payment " + row.id
	event.Personal = map[string]string{"payment": t.text()}
	var err error
	if row.sealed, err = s.sealBlank("payment", row.id, t); err != nil {
		return Payment{}, err
	}
	err = s.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) error {
		_, _, exists, err := s.accountOf(ctx, tx, c)
		if err != nil {
			return err
		}
		if !exists {
			return problem.New(problem.NotFound, "customer-not-found", "There is no such customer.")
		}
		return s.rows.insertPayment(ctx, tx, row)
	})
	if err != nil {
		return Payment{}, err
	}
	return row.view(), nil
}

// PaymentStatus tells the service that asked what became of a payment.
func (s *Services) PaymentStatus(ctx context.Context, by actor.Actor, purpose, payment string) (out Payment, err error) {
	event, p := s.decide(by, purpose, ActionPaymentRead, policy.PaymentRead, "")
	if p != nil {
		return out, s.Trail.Deny(ctx, by, event, p)
	}
	err = s.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		row, err := s.paymentOf(ctx, tx, payment, by.ID, "")
		if err != nil {
			return err
		}
		e.Resource, e.Customer = "payment "+row.id, row.customer
		out = row.view()
		return nil
	})
	return out, err
}

// VerifyPayment tells a service, once, that the customer has authorised exactly these terms. Other terms
// void the authorisation (PSD2 RTS art. 5.1.d).
func (s *Services) VerifyPayment(ctx context.Context, by actor.Actor, purpose, payment string, c customer.ID, t Terms) (out Payment, err error) {
	event, p := s.decide(by, purpose, ActionPaymentVerify, policy.PaymentVerify, c)
	if p != nil {
		return out, s.Trail.Deny(ctx, by, event, p)
	}
	now := s.Clock.Now()
	err = s.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		out = Payment{}
		row, err := s.paymentOf(ctx, tx, payment, by.ID, c)
		if err != nil {
			return err
		}
		e.Resource = "payment " + row.id
		if row.status != paymentAuthorised {
			e.Deny(errPaymentVoid.With("status", row.status))
			return nil
		}
		if row.terms != t {
			e.Deny(errPaymentVoid.With("status", paymentVoid))
			row.status, row.decided = paymentVoid, clock.Micros(now)
			return s.rows.updatePayment(ctx, tx, row)
		}
		row.status = paymentUsed
		out = row.view()
		return s.rows.updatePayment(ctx, tx, row)
	})
	if err != nil {
		return Payment{}, err
	}
	return out, nil
}

// decide begins a deed of a service.
func (s *Services) decide(by actor.Actor, purpose, action, permit string, c customer.ID) (audit.Event, *problem.Problem) {
	e := audit.Event{Action: action, Resource: "payment"}
	if c != "" && !c.Valid() {
		return e, problem.New(problem.NotFound, "customer-not-found", "There is no such customer.")
	}
	e.Customer = c
	if p := policy.Purpose(purpose); p != nil {
		return e, p
	}
	e.Reason = "purpose:" + purpose
	return e, s.policy.Decide(policy.Question{By: by, Action: permit, Resource: policy.Environment(s.DB.Environment()), Purpose: purpose, Customer: c})
}

// paymentOf reads a payment that has not expired, of the service or of the customer, where each may be "".
func (i *Identity) paymentOf(ctx context.Context, tx *db.Tx, payment, service string, c customer.ID) (paymentRow, error) {
	if !id.Valid("pay", payment) {
		return paymentRow{}, errPaymentNotFound
	}
	row, found, err := i.rows.paymentByID(ctx, tx, payment)
	switch {
	case err != nil:
		return row, err
	case !found || service != "" && row.service != service || c != "" && row.customer != c || clock.Micros(i.Clock.Now()) >= row.expires:
		return paymentRow{}, errPaymentNotFound
	}
	return row, i.openBlank("payment", row.id, row.sealed, &row.terms)
}

// ReadPayment shows the customer what they are asked to authorise.
func (i *Identity) ReadPayment(ctx context.Context, by actor.Actor, payment string) (out Payment, err error) {
	c, err := caller(by)
	if err != nil {
		return out, err
	}
	event := audit.Event{Action: ActionPaymentRead, Resource: "payment", Customer: c}
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		row, err := i.paymentOf(ctx, tx, payment, "", c)
		e.Resource, out = "payment "+row.id, row.view()
		return err
	})
	return out, err
}

// SendPaymentCode sends the customer a one-time code for a payment, whose message shows amount and payee.
// It voids the code that was sent before.
func (i *Identity) SendPaymentCode(ctx context.Context, by actor.Actor, payment string) (Started, error) {
	c, err := caller(by)
	if err != nil {
		return Started{}, err
	}
	now := i.Clock.Now()
	event := audit.Event{Action: ActionPaymentCode, Resource: "payment", Customer: c}
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		row, err := i.paymentOf(ctx, tx, payment, "", c)
		if err != nil {
			return err
		}
		e.Resource = "payment " + row.id
		if row.status != paymentAsked || row.tries <= 0 {
			return errPaymentVoid
		}
		_, number, _, err := i.accountOf(ctx, tx, c)
		if err != nil {
			return err
		}
		s := starter{class: known, number: number, key: by.Key, from: network(by.Address)}
		ok, err := i.mayMessage(ctx, tx, s, true, now)
		if err != nil {
			return err
		}
		if !ok {
			e.Deny(errTooMany)
			return nil
		}
		code := newOneTimeCode()
		for strings.Contains(row.terms.text(), code) { // the code is the only one in the message
			code = newOneTimeCode()
		}
		row.jkt, row.codeExpires = by.Key, min(clock.Micros(now.Add(CodeLifetime)), row.expires)
		row.mac, row.keyVersion = i.Keys.MAC(keyring.KeyToken, row.codeParts(code)...)
		if err := i.rows.updatePayment(ctx, tx, row); err != nil {
			return err
		}
		return i.post(ctx, tx, letter{To: number, Text: i.paymentText(row.terms, code), Customer: c, Known: true, Login: true}, now)
	})
	if err != nil {
		return Started{}, err
	}
	return Started{ID: payment, Expires: CodeLifetime}, nil
}

// AuthorisePayment authorises a payment with the one-time code, from the device that the code was sent
// for. The app sends the terms that it showed to the customer; others than those asked for void the
// payment, and the code is good for no others.
func (i *Identity) AuthorisePayment(ctx context.Context, by actor.Actor, payment string, code secret.Value, shown Terms) (out Payment, err error) {
	c, err := caller(by)
	if err != nil {
		return out, err
	}
	now := i.Clock.Now()
	event := audit.Event{Action: ActionPaymentAuthorise, Resource: "payment", Customer: c}
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		out = Payment{}
		row, err := i.paymentOf(ctx, tx, payment, "", c)
		if err != nil {
			return err
		}
		e.Resource = "payment " + row.id
		e.Personal = map[string]string{"payment": row.terms.text()}
		if row.status != paymentAsked {
			e.Deny(errPaymentVoid)
			return nil
		}
		if row.terms != shown {
			e.Deny(errPaymentVoid)
			row.status, row.decided = paymentVoid, clock.Micros(now)
			return i.rows.updatePayment(ctx, tx, row)
		}
		if row.tries <= 0 || len(row.mac) == 0 || row.jkt != by.Key || clock.Micros(now) >= row.codeExpires {
			e.Deny(errPaymentFailed)
			return nil
		}
		mac, err := i.Keys.MACVersion(keyring.KeyToken, row.keyVersion, row.codeParts(string(code.Reveal()))...)
		if err != nil {
			return fmt.Errorf("payment code: %w", err)
		}
		if subtle.ConstantTimeCompare(mac, row.mac) != 1 {
			e.Deny(errPaymentFailed)
			row.tries--
			if row.tries%codeTries == 0 {
				row.mac = nil // this code has had its tries; a new one may be sent until none are left
			}
			return i.rows.updatePayment(ctx, tx, row)
		}
		row.status, row.session, row.decided, row.mac = paymentAuthorised, by.Session, clock.Micros(now), nil
		out = row.view()
		return i.rows.updatePayment(ctx, tx, row)
	})
	if err != nil {
		return Payment{}, err
	}
	return out, nil
}

// text shows the terms to the customer.
func (t Terms) text() string {
	out := t.Amount + " " + t.Currency + " to " + t.Payee
	if t.Account != "" {
		out += " (" + t.Account + ")"
	}
	return out
}

// paymentText shows what the code is for (PSD2 RTS art. 5.1.a). It comes after the code, so that nothing
// in it passes for the code.
func (i *Identity) paymentText(t Terms, code string) string {
	return fmt.Sprintf("%s is your %s code to pay %s. Enter it only if amount and payee are right. Never tell it to anyone.", code, i.Brand, t.text())
}

var purposePayment = []byte("identity.payment-code")

// codeParts binds a code to the payment, its terms, its customer and the device.
func (p *paymentRow) codeParts(code string) [][]byte {
	return [][]byte{purposePayment, []byte(p.id), []byte(p.customer), []byte(p.jkt), []byte(p.terms.Amount), []byte(p.terms.Currency),
		[]byte(p.terms.Payee), []byte(p.terms.Account), []byte(code)}
}

func paymentParts(p *paymentRow) [][]byte {
	return [][]byte{[]byte("identity.payment"), []byte(p.id), []byte(p.customer), []byte(p.service), p.sealed, []byte(p.status), []byte(p.jkt),
		[]byte(p.session), decimal(p.decided), decimal(p.tries), decimal(p.codeExpires), decimal(p.expires), p.mac}
}

func (r rows) insertPayment(ctx context.Context, tx *db.Tx, p paymentRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO payment (id, customer_id, service, terms, status, jkt, code_mac, key_version, tries, code_expires, session_id, decided_at, expires_at, stamp)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		p.id, string(p.customer), p.service, p.sealed, p.status, p.jkt, p.mac, int64(p.keyVersion), p.tries, p.codeExpires, p.session, p.decided, p.expires,
		r.stamp(paymentParts(&p)))
	return err
}

func (r rows) updatePayment(ctx context.Context, tx *db.Tx, p paymentRow) error {
	_, err := tx.Exec(ctx, `
		UPDATE payment SET status = $1, jkt = $2, code_mac = $3, key_version = $4, tries = $5, code_expires = $6, session_id = $7, decided_at = $8, stamp = $9
		WHERE id = $10`,
		p.status, p.jkt, p.mac, int64(p.keyVersion), p.tries, p.codeExpires, p.session, p.decided, r.stamp(paymentParts(&p)), p.id)
	return err
}

func (r rows) paymentByID(ctx context.Context, tx *db.Tx, payment string) (p paymentRow, ok bool, err error) {
	var stamp []byte
	ok, err = none(tx.QueryRow(ctx, `
		SELECT id, customer_id, service, terms, status, jkt, code_mac, key_version, tries, code_expires, session_id, decided_at, expires_at, stamp
		FROM payment WHERE id = $1`, payment).
		Scan(&p.id, &p.customer, &p.service, &p.sealed, &p.status, &p.jkt, &p.mac, &p.keyVersion, &p.tries, &p.codeExpires, &p.session, &p.decided, &p.expires, &stamp))
	if ok {
		err = r.check(stamp, paymentParts(&p))
	}
	return p, ok, err
}
