package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"strongroom/internal/config"
	"strongroom/internal/vault"
)

// CollectionOperator is what the command line may ask about the declarations of collections.
type CollectionOperator interface {
	// Collections lists every collection that was ever declared; see vault.Vault.Collections.
	Collections(ctx context.Context) ([]vault.Declared, error)
	// Collection shows the newest declaration of a collection, or the version that is not 0.
	Collection(ctx context.Context, name string, version int) (vault.Declared, error)
	// CollectionHistory lists the versions of a declaration, newest first.
	CollectionHistory(ctx context.Context, name string) ([]vault.Declared, error)
	// PutCollection declares the next version of a collection; see vault.Vault.PutCollection.
	PutCollection(ctx context.Context, text []byte) (vault.Declared, error)
}

// pinned returns the collections of the settings, nil when they name none.
func pinned(c config.Config) (all []vault.Collection, err error) {
	var errs []error
	for i, declared := range c.Collections {
		text, err := json.Marshal(declared)
		if err != nil {
			errs = append(errs, fmt.Errorf("collections[%d]: %w", i, err))
			continue
		}
		collection, err := vault.ParseCollection(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("collections[%d]: %w", i, err))
			continue
		}
		all = append(all, collection)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return all, vault.Validate(all)
}

func (o operator) Collections(ctx context.Context) ([]vault.Declared, error) {
	return o.house.Vault.Collections(ctx, o.by)
}

func (o operator) Collection(ctx context.Context, name string, version int) (vault.Declared, error) {
	return o.house.Vault.ShowCollection(ctx, o.by, name, version)
}

func (o operator) CollectionHistory(ctx context.Context, name string) ([]vault.Declared, error) {
	return o.house.Vault.CollectionHistory(ctx, o.by, name)
}

func (o operator) PutCollection(ctx context.Context, text []byte) (vault.Declared, error) {
	out, err := o.house.Vault.PutCollection(ctx, o.by, text)
	if err == nil && o.alone && out.Building != nil {
		// No server runs that would do it.
		err = o.house.Vault.BuildIndexes(ctx)
		out.Building = nil
	}
	return out, err
}

type collectionRequest struct {
	Name    string `json:"name,omitempty"`
	Version int    `json:"version,omitempty"`
	Text    []byte `json:"text,omitempty"`
}

func (c *control) collectionRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /vault/collections", command(c, func(ctx context.Context, o operator, _ collectionRequest) ([]vault.Declared, error) {
		return o.Collections(ctx)
	}))
	mux.HandleFunc("POST /vault/collections/show", command(c, func(ctx context.Context, o operator, ask collectionRequest) (vault.Declared, error) {
		return o.Collection(ctx, ask.Name, ask.Version)
	}))
	mux.HandleFunc("POST /vault/collections/history", command(c, func(ctx context.Context, o operator, ask collectionRequest) ([]vault.Declared, error) {
		return o.CollectionHistory(ctx, ask.Name)
	}))
	mux.HandleFunc("POST /vault/collections/put", command(c, func(ctx context.Context, o operator, ask collectionRequest) (vault.Declared, error) {
		return o.PutCollection(ctx, ask.Text)
	}))
}

func (d *dialled) Collections(ctx context.Context) (out []vault.Declared, err error) {
	err = d.call(ctx, "/vault/collections", collectionRequest{}, &out, nil)
	return out, err
}

func (d *dialled) Collection(ctx context.Context, name string, version int) (out vault.Declared, err error) {
	err = d.call(ctx, "/vault/collections/show", collectionRequest{Name: name, Version: version}, &out, nil)
	return out, err
}

func (d *dialled) CollectionHistory(ctx context.Context, name string) (out []vault.Declared, err error) {
	err = d.call(ctx, "/vault/collections/history", collectionRequest{Name: name}, &out, nil)
	return out, err
}

func (d *dialled) PutCollection(ctx context.Context, text []byte) (out vault.Declared, err error) {
	err = d.call(ctx, "/vault/collections/put", collectionRequest{Text: text}, &out, nil)
	return out, err
}
