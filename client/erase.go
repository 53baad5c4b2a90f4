package client

import (
	"context"
	"net/http"
)

// ErrNotErased means that there is no erasure of such a customer.
const ErrNotErased = Slug("not-erased")

// Receipt proves to others that a customer was erased. As JSON it is what `strongroom vault check-receipt`
// checks, without Strongroom running.
type Receipt struct {
	Statement string       `json:"statement"` // a signed note: who was erased when, and what was deleted
	Proof     ReceiptProof `json:"proof"`
	Key       string       `json:"key"` // the log's verifier key; trust it only as far as you know it from elsewhere
}

// ReceiptProof proves that the event of an erasure is in the log.
type ReceiptProof struct {
	Leaf       string   `json:"leaf"`
	Index      int64    `json:"index"`
	Hashes     []string `json:"hashes"`
	Checkpoint string   `json:"checkpoint"`
}

// Erasure is what Erase did.
type Erasure struct {
	Receipt  Receipt `json:"receipt"`
	Scrubbed bool    `json:"scrubbed"` // no file of the server's database holds the customer's key any more
}

// Erase erases a customer for good, in the vault and everywhere else in Strongroom, by destroying their key.
// The reason is kept in the trail: it must not describe the person.
func (e Errand) Erase(ctx context.Context, customer, reason string) (Erasure, error) {
	var out Erasure
	_, err := e.change(ctx, http.MethodPost, nil, map[string]string{"reason": reason}, &out, "customers", customer, "erase")
	return out, err
}

// Receipt returns the receipt of an erasure again, against the newest checkpoint.
func (e Errand) Receipt(ctx context.Context, customer string) (Receipt, error) {
	var out Receipt
	_, err := e.ask(ctx, http.MethodGet, nil, &out, nil, "customers", customer, "receipt")
	return out, err
}

// DeleteToken deletes a token with the value that it stands for. The errand's purpose must be the one that
// the token was made for.
func (e Errand) DeleteToken(ctx context.Context, token string) error {
	_, err := e.change(ctx, http.MethodPost, nil, map[string]string{"token": token}, nil, "tokens", "delete")
	return err
}
