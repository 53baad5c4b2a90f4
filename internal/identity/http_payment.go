package identity

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
)

// TermsView is what a payment is for, in requests and answers.
type TermsView struct {
	Amount   string `json:"amount" maxLength:"17" example:"49.90"`
	Currency string `json:"currency" minLength:"3" maxLength:"3" example:"EUR"`
	Payee    string `json:"payee" minLength:"1" maxLength:"70" example:"Example Shop"`
	Account  string `json:"account,omitempty" maxLength:"34" doc:"The payee's account, if the customer is to see it." example:"GB33BUKB20201555555555"`
}

func (t TermsView) terms() Terms { return Terms(t) }

// PaymentView is a payment in an answer.
type PaymentView struct {
	Payment string `json:"payment" example:"pay_01jd8xk2m3n4p5q6r7s8t9v0wx"`
	Status  string `json:"status" enum:"asked,authorised,used,void"`
	TermsView
	ExpiresAt time.Time  `json:"expires_at"`
	DecidedAt *time.Time `json:"decided_at,omitempty" doc:"When it was authorised, or became void."`
}

type paymentOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         PaymentView
}

func paymentAnswer(p Payment, err error) (*paymentOutput, error) {
	if err != nil {
		return nil, err
	}
	out := &paymentOutput{CacheControl: noStore, Body: PaymentView{Payment: p.ID, Status: p.Status, TermsView: TermsView(p.Terms), ExpiresAt: p.Expires}}
	if !p.Decided.IsZero() {
		out.Body.DecidedAt = &p.Decided
	}
	return out, nil
}

type paymentInput struct {
	Payment string `path:"payment" maxLength:"64"`
}

type paymentCodeOutput struct {
	Body struct {
		ExpiresIn int `json:"expires_in" doc:"Seconds for which the one-time code is good." example:"300"`
	}
}

type authorisePaymentInput struct {
	Payment string `path:"payment" maxLength:"64"`
	Body    struct {
		Code oneTimeCode `json:"code"`
		TermsView
	}
}

// registerPayments adds what the customer does about a payment.
func (i *Identity) registerPayments(api huma.API, operation func(name, method, path, summary string, security []map[string][]string, status int, errs ...int) huma.Operation) {
	pay := []map[string][]string{{"session": {ScopePayment}}}
	huma.Register(api, operation("get-payment", http.MethodGet, "/v1/payments/{payment}",
		"Show a payment that the customer is asked to authorise", pay, http.StatusOK, http.StatusNotFound), i.getPayment)
	huma.Register(api, operation("send-payment-code", http.MethodPost, "/v1/payments/{payment}/code",
		"Send a one-time code that is bound to amount and payee", pay, http.StatusAccepted, http.StatusNotFound, http.StatusConflict, http.StatusTooManyRequests), i.sendPaymentCode)
	huma.Register(api, operation("authorise-payment", http.MethodPost, "/v1/payments/{payment}/authorise",
		"Authorise a payment with the one-time code and the terms that were shown", pay, http.StatusOK,
		http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge), i.authorisePayment)
}

func (i *Identity) getPayment(ctx context.Context, in *paymentInput) (*paymentOutput, error) {
	return paymentAnswer(i.ReadPayment(ctx, actor.From(ctx), in.Payment))
}

func (i *Identity) sendPaymentCode(ctx context.Context, in *paymentInput) (*paymentCodeOutput, error) {
	s, err := i.SendPaymentCode(ctx, actor.From(ctx), in.Payment)
	if err != nil {
		return nil, err
	}
	out := &paymentCodeOutput{}
	out.Body.ExpiresIn = seconds(s.Expires)
	return out, nil
}

func (i *Identity) authorisePayment(ctx context.Context, in *authorisePaymentInput) (*paymentOutput, error) {
	return paymentAnswer(i.AuthorisePayment(ctx, actor.From(ctx), in.Payment, in.Body.Code.Value, in.Body.terms()))
}

type askPaymentInput struct {
	Purpose string `header:"Strongroom-Purpose" doc:"Why this is done: a slug that policies decide on and the trail keeps. Needed." example:"payment"`
	Body    struct {
		Customer customer.ID `json:"customer" maxLength:"64"`
		TermsView
	}
}

type verifyPaymentInput struct {
	ServicePaymentCall
	Body struct {
		Customer customer.ID `json:"customer" maxLength:"64"`
		TermsView
	}
}

// ServicePaymentCall is what a request of a service about a payment carries. It is exported because huma
// looks only into exported fields.
type ServicePaymentCall struct {
	Purpose string `header:"Strongroom-Purpose" doc:"Why this is done: a slug that policies decide on and the trail keeps. Needed." example:"payment"`
	Payment string `path:"payment" maxLength:"64"`
}

// Register adds what services do about payments.
func (s *Services) Register(api huma.API) {
	operation := func(name, method, path, summary string, status int, errs ...int) huma.Operation {
		return huma.Operation{
			OperationID: name, Method: method, Path: path, Summary: summary, Tags: []string{"Payments"},
			Security: []map[string][]string{{"service": {}}}, DefaultStatus: status, MaxBodyBytes: maxBody, BodyReadTimeout: 10 * time.Second,
			RejectUnknownQueryParameters: true,
			Errors: append([]int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusUnprocessableEntity,
				http.StatusServiceUnavailable}, errs...),
		}
	}
	huma.Register(api, operation("ask-payment", http.MethodPost, "/v1/payments",
		"Ask a customer to authorise a payment", http.StatusCreated, http.StatusBadRequest, http.StatusRequestEntityTooLarge), s.ask)
	huma.Register(api, operation("payment-status", http.MethodGet, "/v1/payments/{payment}",
		"Show what became of a payment", http.StatusOK), s.status)
	huma.Register(api, operation("verify-payment", http.MethodPost, "/v1/payments/{payment}/verify",
		"Verify, once, that the customer authorised exactly these terms", http.StatusOK, http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge), s.verify)
}

func (s *Services) ask(ctx context.Context, in *askPaymentInput) (*paymentOutput, error) {
	return paymentAnswer(s.AskPayment(ctx, actor.From(ctx), in.Purpose, in.Body.Customer, in.Body.terms()))
}

func (s *Services) status(ctx context.Context, in *ServicePaymentCall) (*paymentOutput, error) {
	return paymentAnswer(s.PaymentStatus(ctx, actor.From(ctx), in.Purpose, in.Payment))
}

func (s *Services) verify(ctx context.Context, in *verifyPaymentInput) (*paymentOutput, error) {
	return paymentAnswer(s.VerifyPayment(ctx, actor.From(ctx), in.Purpose, in.Payment, in.Body.Customer, in.Body.terms()))
}
