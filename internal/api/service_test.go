package api_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/api"
)

func TestServiceAPI(t *testing.T) {
	mux := http.NewServeMux()
	surface := api.NewService(mux, api.Options{Title: "test", Log: slog.New(slog.DiscardHandler)})
	type out struct{ Body struct{ Service string } }
	huma.Register(surface, huma.Operation{OperationID: "who", Method: http.MethodGet, Path: "/who",
		Security: []map[string][]string{{api.Service: {}}}},
		func(ctx context.Context, _ *struct{}) (*out, error) {
			o := &out{}
			o.Body.Service = actor.From(ctx).ID
			return o, nil
		})
	for _, row := range []struct {
		name, path  string
		by          actor.Actor
		status      int
		want, never string
	}{
		{"a service", "/who", actor.Actor{Kind: actor.Service, ID: "spiffe://x/y"}, 200, "spiffe://x/y", "problem"},
		{"a service without a name", "/who", actor.Actor{Kind: actor.Service}, 401, "certificate-required", "Service"},
		{"a customer", "/who", actor.Actor{Kind: actor.Customer, ID: "cus_1"}, 401, "certificate-required", "cus_1"},
		{"nobody", "/who", actor.Actor{}, 401, "certificate-required", "Service"},
		{"the document", "/openapi.json", actor.Actor{Kind: actor.Service, ID: "x"}, 200, `"mutualTLS"`, "DPoP"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest("GET", row.path, nil).WithContext(actor.With(t.Context(), row.by)))
			body, _ := io.ReadAll(w.Result().Body)
			if w.Code != row.status || !strings.Contains(string(body), row.want) || strings.Contains(string(body), row.never) {
				t.Errorf("%d %s", w.Code, body)
			}
			if w.Header().Get("DPoP-Nonce") != "" {
				t.Error("a nonce for proofs that nobody makes here")
			}
		})
	}
	t.Run("an operation of customers cannot be mounted", func(t *testing.T) {
		defer func() {
			if recover() == nil {
				t.Error("mounted")
			}
		}()
		huma.Register(surface, huma.Operation{OperationID: "no", Method: http.MethodGet, Path: "/no",
			Security: []map[string][]string{{api.Session: {}}}},
			func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
	})
}
