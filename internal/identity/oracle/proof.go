package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"strongroom/internal/customer"
)

// Waiting is a device whose holder may prove who they are, and since when it waits.
type Waiting struct {
	Customer customer.ID `json:"customer"`
	Device   string      `json:"device"`
	Since    time.Time   `json:"since"`
}

// Proof says when the customer proved their identity by evidence that the device sent.
type Proof struct {
	Customer customer.ID `json:"customer"`
	Device   string      `json:"device"`
	At       time.Time   `json:"at"`
}

// ProofWebhook asks whoever checks papers and faces for the operator: {"id", "asked_at", "waiting": [{"customer",
// "device", "since"}]} is answered with {"id", "proven": [{"customer", "device", "at"}]}, times in RFC 3339. No number
// and no name is in it: the app gave the checker the device's name.
type ProofWebhook struct{ *Webhook }

// Proven implements identity.IdentityProofs.
func (w ProofWebhook) Proven(ctx context.Context, waiting []Waiting) ([]Proof, error) {
	var answer struct {
		ID     string          `json:"id"`
		Proven json.RawMessage `json:"proven"`
	}
	if err := w.ask(ctx, map[string]any{"waiting": waiting}, &answer, &answer.ID); err != nil {
		return nil, err
	}
	var proofs []Proof
	if err := json.Unmarshal(answer.Proven, &proofs); err != nil || proofs == nil {
		return nil, errors.New("oracle: the answer has no list of what is proven")
	}
	asked := map[Proof]bool{}
	for _, d := range waiting {
		asked[Proof{Customer: d.Customer, Device: d.Device}] = true
	}
	for _, p := range proofs {
		if !asked[Proof{Customer: p.Customer, Device: p.Device}] || p.At.IsZero() || p.At.After(w.clock.Now().Add(ahead)) {
			return nil, errors.New("oracle: the answer names a device that was not asked about, or a time to come")
		}
	}
	return proofs, nil
}
