package client

import (
	"context"
	"net/http"
	"time"
)

// What can be wrong with a payment.
const (
	ErrPaymentVoid     = Slug("payment-void")      // it is not authorised, was used, or amount or payee differ
	ErrPaymentNotFound = Slug("payment-not-found") // there is none, or no longer
)

// PaymentTerms are what a customer authorises: exactly this amount to exactly this payee.
type PaymentTerms struct {
	Amount   string `json:"amount"`            // decimal, as the customer sees it: "49.90"
	Currency string `json:"currency"`          // ISO 4217
	Payee    string `json:"payee"`             // at most 70 characters
	Account  string `json:"account,omitempty"` // if the customer is to see it
}

// PaymentStatus is how far a payment is.
type PaymentStatus string

// The states of a payment.
const (
	PaymentAsked      PaymentStatus = "asked"      // it awaits its customer
	PaymentAuthorised PaymentStatus = "authorised" // VerifyPayment may be called, once
	PaymentUsed       PaymentStatus = "used"
	PaymentVoid       PaymentStatus = "void"
)

// Payment is a payment that a customer is asked to authorise.
type Payment struct {
	ID     string        `json:"payment"` // "pay_…": give it to the customer's app
	Status PaymentStatus `json:"status"`
	PaymentTerms
	ExpiresAt time.Time `json:"expires_at"`
	DecidedAt time.Time `json:"decided_at"` // zero until then
}

type paymentBody struct {
	Customer string `json:"customer"`
	PaymentTerms
}

// AskPayment asks a customer to authorise a payment. Their message and their screen show its terms, and the
// one-time code is good for no others (PSD2 RTS article 5).
func (e Errand) AskPayment(ctx context.Context, customer string, t PaymentTerms) (Payment, error) {
	var out Payment
	_, err := e.once(ctx, paymentBody{customer, t}, &out, "payments")
	return out, err
}

// Payment tells what became of a payment that this service asked for.
func (e Errand) Payment(ctx context.Context, payment string) (Payment, error) {
	var out Payment
	_, err := e.ask(ctx, http.MethodGet, nil, &out, nil, "payments", payment)
	return out, err
}

// VerifyPayment succeeds once, when the customer has authorised exactly these terms: pay after it and not
// before. Other terms void the authorisation and are ErrPaymentVoid. When the answer is lost, Payment tells
// whether it is PaymentUsed: no other service can have done that.
func (e Errand) VerifyPayment(ctx context.Context, payment, customer string, t PaymentTerms) (Payment, error) {
	var out Payment
	_, err := e.once(ctx, paymentBody{customer, t}, &out, "payments", payment, "verify")
	return out, err
}

// Payment shows a payment that the customer is asked to authorise. Like all of a payment it needs a session
// of ScopePayment (ErrInsufficientScope).
func (c *Client) Payment(ctx context.Context, payment string) (Payment, error) {
	return c.payment(ctx, request{method: http.MethodGet, repeatable: true}, "payments", payment)
}

// SendPaymentCode sends a one-time code by SMS that is good for this payment's terms alone, and returns until
// when.
func (c *Client) SendPaymentCode(ctx context.Context, payment string) (time.Time, error) {
	p, err := path("payments", payment, "code")
	if err != nil {
		return time.Time{}, err
	}
	var a struct {
		ExpiresIn int64 `json:"expires_in"`
	}
	_, err = c.call(ctx, request{method: http.MethodPost, path: p, proof: bySession}, &a)
	return c.now().Add(time.Duration(a.ExpiresIn) * time.Second), err
}

// AuthorisePayment authorises a payment: code is the one that came for it, and t are the terms that the
// customer was shown, on this screen. Any other terms void it and are ErrPaymentVoid.
func (c *Client) AuthorisePayment(ctx context.Context, payment, code string, t PaymentTerms) (Payment, error) {
	return c.payment(ctx, request{method: http.MethodPost, body: struct {
		Code string `json:"code"`
		PaymentTerms
	}{code, t}}, "payments", payment, "authorise")
}

func (c *Client) payment(ctx context.Context, r request, segments ...string) (out Payment, err error) {
	if r.path, err = path(segments...); err != nil {
		return out, err
	}
	r.proof = bySession
	_, err = c.call(ctx, r, &out)
	return out, err
}

// once sends a request that is not sent again by itself.
func (e Errand) once(ctx context.Context, body, out any, segments ...string) (answer, error) {
	p, err := path(segments...)
	if err != nil {
		return answer{}, err
	}
	return e.client.call(ctx, request{method: http.MethodPost, path: p, body: body, header: http.Header{"Strongroom-Purpose": {e.purpose}}}, out)
}
