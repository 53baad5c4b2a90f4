package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"strongroom/internal/actor"
	"strongroom/internal/backup"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/edge"
	"strongroom/internal/identity"
	"strongroom/internal/once"
	"strongroom/internal/vault"
)

// VaultOperator is what the command line may ask of the vault; it is a part of Operator.
type VaultOperator interface {
	// Erase erases a customer for good; see vault.Vault.Erase.
	Erase(ctx context.Context, c customer.ID, reason string) (vault.Erasure, error)
	// Receipt gives the receipt of an erasure again.
	Receipt(ctx context.Context, c customer.ID) (vault.Receipt, error)
	// Import writes up to vault.MaxImport records; see vault.Vault.Import.
	Import(ctx context.Context, collection string, rows []vault.ImportRow, replace bool) ([]vault.ImportResult, error)
	// Export returns all records of a customer whole.
	Export(ctx context.Context, c customer.ID) (vault.Export, error)
	CollectionOperator
}

// blobBodies are the large bodies that the app listener takes.
var blobBodies = []edge.Body{{
	Method: http.MethodPut, Prefix: vault.BlobPath, Limit: vault.MaxBlob, ContentTypes: []string{vault.BlobType},
}}

// openVault makes the vault, which the command line needs too.
func (h *House) openVault(ctx context.Context, by actor.Actor) (err error) {
	accounts := identity.NewEraser(h.Ring)
	options := vault.Options{
		Clock: clock.System, Log: h.log, Metrics: h.Metrics, Wake: h.Jobs.Wake,
		Erasers: []vault.Eraser{accounts, h.Trail}, Identity: accounts,
		Erased: func() { h.Jobs.Wake(backup.JobKeys) },
	}
	if options.Collections, err = pinned(h.Config); err != nil {
		return err
	}
	options.Pinned = options.Collections != nil
	if h.Vault, err = vault.New(h.DB, h.Ring, h.Trail, options); err != nil {
		return fmt.Errorf("collections: %w", err)
	}
	h.Ring.SetDependents(identity.Peppers, append(h.Vault.Indexes(), identity.NewIndex(h.Ring, clock.System))...)
	h.Ring.Connect(h.Trail, h.Vault, identity.Resealer{}, once.New(h.DB, h.Ring, clock.System))
	return h.Vault.Settle(ctx, by)
}

func (o operator) Erase(ctx context.Context, c customer.ID, reason string) (vault.Erasure, error) {
	out, err := o.house.Vault.Erase(ctx, o.by, c, reason)
	if err == nil && o.alone {
		o.refreshKeys(ctx) // a running server does it by itself
	}
	return out, err
}

func (o operator) Receipt(ctx context.Context, c customer.ID) (vault.Receipt, error) {
	return o.house.Vault.Receipt(ctx, o.by, c)
}

func (o operator) Import(ctx context.Context, collection string, rows []vault.ImportRow, replace bool) ([]vault.ImportResult, error) {
	return o.house.Vault.Import(ctx, o.by, collection, rows, replace)
}

func (o operator) Export(ctx context.Context, c customer.ID) (vault.Export, error) {
	return o.house.Vault.Export(ctx, o.by, c)
}

// vaultRoutes adds the vault's commands to the control socket.
func (c *control) vaultRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /vault/erase", command(c, func(ctx context.Context, o operator, ask eraseRequest) (vault.Erasure, error) {
		return o.Erase(ctx, ask.Customer, ask.Reason)
	}))
	mux.HandleFunc("POST /vault/receipt", command(c, func(ctx context.Context, o operator, ask eraseRequest) (vault.Receipt, error) {
		return o.Receipt(ctx, ask.Customer)
	}))
	mux.HandleFunc("POST /vault/import", command(c, func(ctx context.Context, o operator, ask importRequest) ([]vault.ImportResult, error) {
		return o.Import(ctx, ask.Collection, ask.Rows, ask.Replace)
	}))
	c.collectionRoutes(mux)
	mux.HandleFunc("POST /vault/export", command(c, func(ctx context.Context, o operator, ask eraseRequest) (vault.Export, error) {
		return o.Export(ctx, ask.Customer)
	}))
}

// maxAsk bounds what a command sends to a running server.
const maxAsk = 16 << 20

// command is a handler of the control socket that reads what is asked and answers with what fn returns.
func command[Ask, Answer any](c *control, fn func(ctx context.Context, o operator, ask Ask) (Answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var ask Ask
		if err := json.NewDecoder(io.LimitReader(r.Body, maxAsk)).Decode(&ask); err != nil {
			c.answer(w, r, nil, err)
			return
		}
		answer, err := fn(r.Context(), c.by(r), ask)
		c.answer(w, r, answer, err)
	}
}

type eraseRequest struct {
	Customer customer.ID `json:"customer"`
	Reason   string      `json:"reason,omitempty"`
}

type importRequest struct {
	Collection string            `json:"collection"`
	Rows       []vault.ImportRow `json:"rows"`
	Replace    bool              `json:"replace,omitempty"`
}

func (d *dialled) Import(ctx context.Context, collection string, rows []vault.ImportRow, replace bool) (results []vault.ImportResult, err error) {
	err = d.call(ctx, "/vault/import", importRequest{collection, rows, replace}, &results, nil)
	return results, err
}

func (d *dialled) Export(ctx context.Context, c customer.ID) (out vault.Export, err error) {
	err = d.call(ctx, "/vault/export", eraseRequest{Customer: c}, &out, nil)
	return out, err
}

func (d *dialled) Erase(ctx context.Context, c customer.ID, reason string) (out vault.Erasure, err error) {
	err = d.call(ctx, "/vault/erase", eraseRequest{c, reason}, &out, nil)
	return out, err
}

func (d *dialled) Receipt(ctx context.Context, c customer.ID) (out vault.Receipt, err error) {
	err = d.call(ctx, "/vault/receipt", eraseRequest{Customer: c}, &out, nil)
	return out, err
}
