package app

import (
	"context"
	"net/http"

	"strongroom/internal/actor"
	"strongroom/internal/api"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/edge"
	"strongroom/internal/events"
	"strongroom/internal/identity"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
	"strongroom/internal/transit"
)

// serviceBodies are the large bodies that the service listener takes.
var serviceBodies = append([]edge.Body{{
	Method: http.MethodPost, Prefix: transit.BatchPath, Limit: transit.MaxBatchBody, ContentTypes: []string{"application/json"},
}, {
	Method: http.MethodPost, Prefix: events.BatchPath, Limit: events.MaxBody, ContentTypes: []string{events.BatchType},
}}, appBodies...) // the form is that of introspection

// appBodies are the bodies of both listeners that are no JSON: documents, and the forms of OAuth.
var appBodies = append([]edge.Body{{
	Method: http.MethodPost, Prefix: identity.OAuthPrefix, Limit: identity.MaxForm, ContentTypes: []string{identity.FormType},
}}, blobBodies...)

// services returns what the service listener serves: the vault and named keys, as far as the policies permit.
func (s *Server) services(ctx context.Context, o Options) (http.Handler, error) {
	h := s.house
	policies, err := h.loadPolicies(ctx, actor.OfSystem("server"))
	if err != nil {
		return nil, err
	}
	book := once.New(h.DB, h.Ring, clock.System)
	mux := http.NewServeMux()
	surface := api.NewService(mux, api.Options{Title: "Strongroom for services", Version: o.Version, Log: h.log})
	s.records.ForServices(policies, book).Register(surface)
	transit.New(transit.Options{DB: h.DB, Keys: h.Ring, Trail: h.Trail, Policy: policies, Book: book}).Register(surface)
	s.feed = h.Trail.NewFeed(func(by actor.Actor, purpose string) *problem.Problem {
		return policies.Decide(policy.Question{By: by, Action: policy.AuditStream, Resource: policy.Environment(h.DB.Environment()), Purpose: purpose})
	})
	s.feed.Register(surface)
	h.events(policies, book).Register(surface)
	mux.Handle(audit.TilesPath, h.tilesForServices(policies))
	logins := s.identity.ForServices(policies)
	logins.Register(surface)
	logins.RegisterOAuth(mux)
	h.Jobs.Add(book.Job())
	return mux, nil
}
