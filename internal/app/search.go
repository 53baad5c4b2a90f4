package app

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/config"
	"strongroom/internal/customer"
	"strongroom/internal/events"
	"strongroom/internal/location"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
)

// SearchOperator is what the command line may ask of the trail's search; it is a part of Operator.
type SearchOperator interface {
	// Search returns a page of what a query finds, or of what the search saved under a name does.
	Search(ctx context.Context, saved string, q audit.Query, a audit.Ask) (audit.Page, error)
	// SaveSearch keeps a query under a name.
	SaveSearch(ctx context.Context, name string, q audit.Query) error
	// Searches lists the saved searches.
	Searches(ctx context.Context) ([]audit.Saved, error)
	// DeleteSearch forgets a saved search.
	DeleteSearch(ctx context.Context, name string) error
}

// openAtlas reads the files that say where addresses are, and has them read again when they change.
func (h *House) openAtlas() (*location.Atlas, error) {
	atlas, err := location.Open(h.Config.Audit.LocationDatabase, h.Config.Audit.NetworkDatabase)
	if err != nil {
		return nil, &config.Error{Key: "audit", Problem: err.Error(), Remedy: "put the file there, or leave the setting empty"}
	}
	h.Jobs.Add(atlas.Job())
	return atlas, nil
}

// events makes the trail as services may use it.
func (h *House) events(set *policy.Set, book *once.Book) *events.Events {
	return events.New(events.Options{
		DB: h.DB, Keys: h.Ring, Trail: h.Trail, Search: h.Trail.Search(searchPolicy{set, h.Config.Environment}),
		Policy: set, Book: book, Sources: sourcesOf(h.Config.Audit.Sources),
	})
}

func sourcesOf(list []config.Source) []events.Source {
	var all []events.Source
	for _, s := range list {
		source := events.Source{Name: s.Name, Service: s.Service, Actions: s.Actions}
		for _, f := range s.Fields {
			source.Fields = append(source.Fields, events.Field{Name: f.Name, Type: events.Type(f.Type), Personal: f.Personal,
				Required: f.Required, MaxLength: f.MaxLength})
		}
		all = append(all, source)
	}
	return all
}

// searchPolicy lets the policies decide on searches.
type searchPolicy struct {
	set         *policy.Set
	environment string
}

func (p searchPolicy) MaySearch(by actor.Actor, purpose string, c customer.ID, reveal bool) *problem.Problem {
	q := policy.Question{By: by, Action: policy.AuditSearch, Resource: policy.Environment(p.environment), Purpose: purpose, Customer: c}
	if reveal {
		q.Action = policy.AuditReveal
	}
	return p.set.Decide(q)
}

// findable makes what the last server left behind findable, when none runs that will.
func (o operator) findable(ctx context.Context) {
	if !o.alone {
		return
	}
	err := o.house.settle(ctx)
	if err == nil {
		err = o.house.Trail.IndexAll(ctx)
	}
	if err != nil {
		o.house.log.WarnContext(ctx, "the trail was not brought up to date", "error", err)
	}
}

func (o operator) Search(ctx context.Context, saved string, q audit.Query, a audit.Ask) (audit.Page, error) {
	o.findable(ctx)
	search := o.house.Trail.Search(nil)
	if saved != "" {
		return search.RunSaved(ctx, o.by, saved, a)
	}
	return search.Run(ctx, o.by, q, a)
}

func (o operator) SaveSearch(ctx context.Context, name string, q audit.Query) error {
	return o.house.Trail.Search(nil).Save(ctx, o.by, "", name, q)
}

func (o operator) Searches(ctx context.Context) ([]audit.Saved, error) {
	return o.house.Trail.Search(nil).List(ctx, o.by, "")
}

func (o operator) DeleteSearch(ctx context.Context, name string) error {
	return o.house.Trail.Search(nil).Delete(ctx, o.by, "", name)
}

type searchRequest struct {
	Saved string
	Query audit.Query
	Ask   audit.Ask
}

func (c *control) searchRoutes(mux *http.ServeMux) {
	route := func(path string, do func(o operator, ctx context.Context, ask searchRequest) (any, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			var ask searchRequest
			var result any
			err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&ask)
			if err == nil {
				result, err = do(c.by(r), r.Context(), ask)
			}
			c.answer(w, r, result, err)
		})
	}
	route("/search", func(o operator, ctx context.Context, ask searchRequest) (any, error) {
		return o.Search(ctx, ask.Saved, ask.Query, ask.Ask)
	})
	route("/searches", func(o operator, ctx context.Context, _ searchRequest) (any, error) { return o.Searches(ctx) })
	route("/searches/save", func(o operator, ctx context.Context, ask searchRequest) (any, error) {
		return struct{}{}, o.SaveSearch(ctx, ask.Saved, ask.Query)
	})
	route("/searches/delete", func(o operator, ctx context.Context, ask searchRequest) (any, error) {
		return struct{}{}, o.DeleteSearch(ctx, ask.Saved)
	})
}

func (d *dialled) Search(ctx context.Context, saved string, q audit.Query, a audit.Ask) (page audit.Page, err error) {
	err = d.call(ctx, "/search", searchRequest{saved, q, a}, &page, nil)
	return page, err
}

func (d *dialled) SaveSearch(ctx context.Context, name string, q audit.Query) error {
	return d.call(ctx, "/searches/save", searchRequest{Saved: name, Query: q}, &struct{}{}, nil)
}

func (d *dialled) Searches(ctx context.Context) (list []audit.Saved, err error) {
	err = d.call(ctx, "/searches", searchRequest{}, &list, nil)
	return list, err
}

func (d *dialled) DeleteSearch(ctx context.Context, name string) error {
	return d.call(ctx, "/searches/delete", searchRequest{Saved: name}, &struct{}{}, nil)
}
