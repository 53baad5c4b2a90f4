package app

import (
	"context"
	"net/http"

	"strongroom/internal/actor"
	"strongroom/internal/api"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/once"
	"strongroom/internal/transit"
)

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
	transit.New(transit.Options{Keys: h.Ring, Trail: h.Trail, Policy: policies, Book: book}).Register(surface)
	mux.Handle(audit.TilesPath, h.tilesForServices(policies))
	h.Jobs.Add(book.Job())
	return mux, nil
}
