package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/problem"
)

// gate admits the bearer of the header "Let: in" and refuses everyone else.
type gate struct{}

var refused = problem.New(problem.Unauthenticated, "invalid-token", "Log in again.").WithHeader("WWW-Authenticate", "DPoP")

func (gate) Session(ctx context.Context, r *http.Request) (actor.Actor, error) {
	if r.Header.Get("Let") != "in" {
		return actor.Actor{}, refused
	}
	by := actor.From(ctx)
	by.Kind, by.ID = actor.Customer, "cus_1"
	return by, nil
}

func (g gate) Device(ctx context.Context, r *http.Request) (actor.Actor, error) {
	return g.Session(ctx, r)
}

func (gate) Permit(_ context.Context, _ actor.Actor, scopes []string) error {
	if len(scopes) > 0 {
		return problem.New(problem.Forbidden, "insufficient-scope", "Ask for %s.", scopes[0])
	}
	return nil
}

func (gate) Nonce() string { return "nonce" }

type nameInput struct {
	Body struct {
		Name string `json:"name" maxLength:"8"`
	}
}

type nameOutput struct {
	Body struct {
		Name string `json:"name"`
		By   string `json:"by"`
	}
}

func serve(t *testing.T) (http.Handler, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	mux := http.NewServeMux()
	api := New(mux, gate{}, Options{Title: "test", Version: "1", Log: slog.New(slog.NewJSONHandler(&log, nil))})
	add := func(how, path string, fn func(context.Context, *nameInput) (*nameOutput, error)) {
		huma.Register(api, huma.Operation{OperationID: path[1:], Method: http.MethodPost, Path: path,
			MaxBodyBytes: 1024, Security: []map[string][]string{{how: {}}}}, fn)
	}
	add(Session, "/who", func(ctx context.Context, in *nameInput) (*nameOutput, error) {
		out := &nameOutput{}
		out.Body.Name, out.Body.By = in.Body.Name, actor.From(ctx).ID
		return out, nil
	})
	add(None, "/denies", func(context.Context, *nameInput) (*nameOutput, error) {
		return nil, problem.New(problem.Conflict, "taken", "It is taken.").With("device", "dev_1").Because(errors.New("select * from secrets"))
	})
	add(None, "/breaks", func(context.Context, *nameInput) (*nameOutput, error) {
		return nil, errors.New("select * from secrets")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		by := actor.Actor{Kind: actor.Anonymous, Request: "req_1"}
		mux.ServeHTTP(w, r.WithContext(actor.With(r.Context(), by)))
	}), &log
}

func TestAnswers(t *testing.T) {
	rows := []struct {
		name, path, body, contentType, let string
		status                             int
		want                               []string
		never                              string
		logged                             string
	}{
		{name: "proven", path: "/who", let: "in", body: `{"name":"Ada"}`, status: 200, want: []string{`"name":"Ada"`, `"by":"cus_1"`}, never: "$schema"},
		{name: "not proven", path: "/who", body: `{"name":"Ada"}`, status: 401, want: []string{`urn:strongroom:problem:invalid-token`, `urn:strongroom:request:req_1`}},
		{name: "not proven and malformed", path: "/who", body: `{`, status: 401, want: []string{`invalid-token`}},
		{name: "malformed", path: "/who", let: "in", body: `{"name":`, status: 400, want: []string{"malformed-request", "not valid JSON"}},
		{name: "broken UTF-8", path: "/who", let: "in", body: "{\"name\":\"\xff\"}", status: 400, want: []string{"malformed-request", "not valid UTF-8"}},
		{name: "member twice", path: "/who", let: "in", body: `{"name":"a","name":"b"}`, status: 400, want: []string{"has a member twice"}},
		{name: "deep", path: "/who", let: "in", body: `{"name":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, status: 400, want: []string{"nests deeper"}},
		{name: "unknown member", path: "/who", let: "in", body: `{"name":"a","nick":"b"}`, status: 422, want: []string{"invalid-request", "body.nick"}},
		{name: "wrong type", path: "/who", let: "in", body: `{"name":12345678901}`, status: 422, want: []string{"body.name", "expected string"}, never: "12345678901"},
		{name: "too long a value", path: "/who", let: "in", body: `{"name":"tell-nobody"}`, status: 422, want: []string{"body.name"}, never: "tell-nobody"},
		{name: "too large", path: "/who", let: "in", body: `{"name":"` + strings.Repeat("a", 2000) + `"}`, status: 413, want: []string{"body-too-large"}},
		{name: "no body", path: "/who", let: "in", status: 400, want: []string{"malformed-request"}},
		{name: "not JSON", path: "/who", let: "in", body: `name=a`, contentType: "application/x-www-form-urlencoded", status: 415, want: []string{"not-json"}},
		{name: "unknown query parameter", path: "/who?debug=1", let: "in", body: `{"name":"a"}`, status: 422, want: []string{"invalid-request", "debug"}},
		{name: "a problem", path: "/denies", body: `{"name":"a"}`, status: 409, want: []string{`"type":"urn:strongroom:problem:taken"`, `"device":"dev_1"`, `"detail":"It is taken."`}, never: "select"},
		{name: "not a problem", path: "/breaks", body: `{"name":"a"}`, status: 500, want: []string{"urn:strongroom:request:req_1"}, never: "select", logged: "select * from secrets"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			h, log := serve(t)
			r := httptest.NewRequest(http.MethodPost, row.path, strings.NewReader(row.body))
			r.Header.Set("Content-Type", "application/json")
			if row.contentType != "" {
				r.Header.Set("Content-Type", row.contentType)
			}
			r.Header.Set("Let", row.let)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			body := w.Body.String()
			if w.Code != row.status {
				t.Errorf("status %d, want %d: %s", w.Code, row.status, body)
			}
			if row.status >= 400 && w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("content type is %q", w.Header().Get("Content-Type"))
			}
			for _, want := range row.want {
				if !strings.Contains(body, want) {
					t.Errorf("answer lacks %q: %s", want, body)
				}
			}
			if row.never != "" && strings.Contains(body, row.never) {
				t.Errorf("answer tells %q: %s", row.never, body)
			}
			if row.logged != "" && !(strings.Contains(log.String(), row.logged) && strings.Contains(log.String(), "req_1")) {
				t.Errorf("log lacks %q: %s", row.logged, log)
			}
		})
	}
}

func TestAnswersCarryTheNextNonce(t *testing.T) {
	h, _ := serve(t)
	r := httptest.NewRequest(http.MethodPost, "/who", strings.NewReader(`{}`))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Header().Get("DPoP-Nonce") != "nonce" || w.Header().Get("WWW-Authenticate") != "DPoP" {
		t.Errorf("headers are %v", w.Header())
	}
}

func TestAnOperationWithoutProofCannotBeMounted(t *testing.T) {
	for _, security := range [][]map[string][]string{nil, {}, {{}}, {{"magic": {}}}, {{Session: {}}, {None: {}}}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("mounted with %v", security)
				}
			}()
			api := New(http.NewServeMux(), gate{}, Options{Title: "t", Version: "1", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
			huma.Register(api, huma.Operation{OperationID: "x", Method: http.MethodGet, Path: "/x", Security: security},
				func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
		}()
	}
}

func TestDocument(t *testing.T) {
	h, _ := serve(t)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	var doc struct {
		OpenAPI string         `json:"openapi"`
		Paths   map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Paths["/who"] == nil {
		t.Errorf("document is %s", w.Body)
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"name":"a"}`))
	f.Add([]byte(`{"a":{"a":1},"b":[{"a":1},{"a":1}]}`))
	f.Add([]byte(`[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v any
		if unmarshal(b, &v) == nil && !json.Valid(b) {
			t.Error("accepted what is not JSON")
		}
	})
}
