package vault

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/policy"
)

// Erase is Vault.Erase for a service. Asked again with the same idempotency key it gives the receipt again,
// against the checkpoint that is newest then.
func (s *Services) Erase(ctx context.Context, by actor.Actor, a Access, owner customer.ID, reason string) (Erasure, error) {
	d := s.begin(by, a, ask{action: ActionErase, permit: policy.CustomerErase, resource: policy.Environment(s.db.Environment()), owner: owner,
		asked: []string{reason}})
	d.Resource = "customer"
	if d.once != nil {
		d.once.nobody = true // what is sealed for the customer dies with them
	}
	return s.erase(ctx, d, owner, reason)
}

// Receipt is Vault.Receipt for a service.
func (s *Services) Receipt(ctx context.Context, by actor.Actor, a Access, owner customer.ID) (Receipt, error) {
	d := s.begin(by, a, ask{action: ActionReceipt, permit: policy.CustomerProof, resource: policy.Environment(s.db.Environment()), owner: owner})
	d.Resource = "customer"
	return s.giveReceipt(ctx, d, owner)
}

type eraseInput struct {
	CustomerPath
	Change
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500" doc:"Why, without describing the person: it is kept." example:"asked to be forgotten, case 4711"`
	}
}

type receiptInput struct {
	CustomerPath
	Purpose
}

// ReceiptView is a receipt in an answer.
type ReceiptView struct {
	Statement string      `json:"statement" doc:"A signed note (C2SP signed-note): a title, and who was erased when, and what was deleted, as JSON."`
	Proof     audit.Proof `json:"proof" doc:"That the event of the erasure is in the log."`
	Key       string      `json:"key" doc:"The log's verifier key; trust it only as far as you know it from elsewhere."`
}

// ErasureView is what came of an erasure in an answer.
type ErasureView struct {
	Receipt  ReceiptView `json:"receipt"`
	Scrubbed bool        `json:"scrubbed" doc:"No file of the database holds the wrapped keys any more."`
}

type erasureOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         ErasureView
}

type receiptOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         ReceiptView
}

func (s *Services) registerErasure(api huma.API, operation func(id, method, path, tag, summary string, errors ...int) huma.Operation) {
	erase := operation("erase-customer", http.MethodPost, "/v1/customers/{customer}/erase", "Customers", "Erase a customer for good", http.StatusBadRequest, http.StatusConflict)
	huma.Register(api, erase, func(ctx context.Context, in *eraseInput) (*erasureOutput, error) {
		e, err := s.Erase(ctx, actor.From(ctx), in.access(), in.id(), in.Body.Reason)
		if err != nil {
			return nil, err
		}
		return &erasureOutput{noStore, ErasureView{ReceiptView(e.Receipt), e.Scrubbed}}, nil
	})
	receipt := operation("get-erasure-receipt", http.MethodGet, "/v1/customers/{customer}/receipt", "Customers", "Read the receipt of an erasure")
	huma.Register(api, receipt, func(ctx context.Context, in *receiptInput) (*receiptOutput, error) {
		r, err := s.Receipt(ctx, actor.From(ctx), in.access(), in.id())
		if err != nil {
			return nil, err
		}
		return &receiptOutput{noStore, ReceiptView(r)}, nil
	})
}
