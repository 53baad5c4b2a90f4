package api

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/problem"
)

var unproven = problem.New(problem.Unauthenticated, "certificate-required",
	"Call this listener with a client certificate that names your service.")

// NewService returns an API for services, which mounts operations on mux. The front door has proven
// the service by its certificate and put it into the request's context; nobody else gets in.
func NewService(mux *http.ServeMux, o Options) huma.API {
	api := mount(mux, o, map[string]*huma.SecurityScheme{
		Service: {Type: "mutualTLS", Description: "A client certificate that names the service."},
	})
	api.UseMiddleware(func(ctx huma.Context, next func(huma.Context)) {
		if by := actor.From(ctx.Context()); by.Kind != actor.Service || by.ID == "" {
			write(api, ctx, unproven)
			return
		}
		next(ctx)
	})
	return api
}
