// Package api mounts the rooms' operations on a listener. It promises that
//
//   - no operation runs before its caller has proven who they are, in the way that the operation
//     declares; an operation that declares nothing cannot be mounted;
//   - bodies are read strictly: JSON only, valid UTF-8, no repeated and no unknown members; only the
//     bytes of a document that an operation takes as it is are not looked at;
//   - every failure becomes a problem (RFC 9457) that never repeats what the caller sent, and
//     whatever was not meant for the caller is a bare 500 whose id the log carries too;
//   - the OpenAPI 3.1 document at /openapi.json describes all of it.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"strongroom/internal/actor"
	"strongroom/internal/problem"
)

// The ways in which an operation may ask its caller to prove who they are.
const (
	Session = "session" // a customer's access token, of the scopes listed, and a DPoP proof by the device it is bound to
	Device  = "device"  // a DPoP proof alone: the caller holds a key, and is otherwise unknown
	None    = "none"    // nothing: only what is public may say so
	Service = "service" // a client certificate, on the listener that asks for one
)

// Authenticator proves who calls. Both methods start from the actor in the request's context,
// which knows the address and the request id, and return it with what was proven.
type Authenticator interface {
	// Session checks access token and proof. Its errors are problems.
	Session(ctx context.Context, r *http.Request) (actor.Actor, error)
	// Permit refuses an actor that Session returned when its session lacks one of the scopes that the
	// operation asks for, which may be none. Its errors are problems.
	Permit(ctx context.Context, by actor.Actor, scopes []string) error
	// Device checks the proof alone. Its errors are problems.
	Device(ctx context.Context, r *http.Request) (actor.Actor, error)
	// Nonce returns the nonce that the next proof must carry (RFC 9449 section 8).
	Nonce() string
}

// Options say what the document tells about itself.
type Options struct {
	Title   string
	Version string
	Log     *slog.Logger
}

// New returns an API that mounts operations on mux.
func New(mux *http.ServeMux, auth Authenticator, o Options) huma.API {
	api := mount(mux, o, map[string]*huma.SecurityScheme{
		Session: {Type: "http", Scheme: "DPoP", Description: "An access token bound to the device's key, with a proof for this request (RFC 9449)."},
		Device:  {Type: "apiKey", In: "header", Name: "DPoP", Description: "A proof by the device's key for this request (RFC 9449); who holds the device is not known yet."},
		None:    {Type: "apiKey", In: "header", Name: "X-Request-Id", Description: "Nothing is asked."},
	})
	api.UseMiddleware(func(ctx huma.Context, next func(huma.Context)) {
		authenticate(api, auth, ctx, next)
	})
	return api
}

// mount returns an API of which every operation declares one of the schemes.
func mount(mux *http.ServeMux, o Options, schemes map[string]*huma.SecurityScheme) huma.API {
	errorsBecomeProblems()
	config := huma.DefaultConfig(o.Title, o.Version)
	config.DocsPath, config.SchemasPath = "", ""
	config.CreateHooks = nil // no $schema member in answers
	config.OpenAPIPath = ""  // huma's own handler builds the document without a lock
	format := huma.Format{Marshal: marshal, Unmarshal: unmarshal}
	config.Formats = map[string]huma.Format{"application/json": format, "json": format}
	config.RejectUnknownQueryParameters = true
	config.NoFormatFallback = false
	config.Info.Description = "Customers' identity and personal data, encrypted, with every access in a tamper-evident trail."
	config.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	config.Components.SecuritySchemes = schemes
	config.Transformers = []huma.Transformer{func(ctx huma.Context, _ string, v any) (any, error) {
		if p, ok := v.(*problem.Problem); ok {
			return finish(ctx, o.Log, p), nil
		}
		return v, nil
	}}
	config.OnAddOperation = append(config.OnAddOperation, func(_ *huma.OpenAPI, op *huma.Operation) {
		how, err := scheme(op)
		if err == nil && schemes[how] == nil {
			err = fmt.Errorf("api: operation %s %s asks for %s, which this listener cannot prove", op.Method, op.Path, how)
		}
		if err != nil {
			panic(err) // a programming error, found when the program starts and by the tests
		}
	})
	api := humago.New(mux, config)
	document := sync.OnceValues(func() ([]byte, error) { return json.Marshal(api.OpenAPI()) })
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		b, err := document()
		if err != nil {
			panic(err) // a programming error that every test of the document finds
		}
		w.Header().Set("Content-Type", "application/vnd.oai.openapi+json;version=3.1")
		_, _ = w.Write(b) // whoever asked has gone
	})
	return api
}

// scheme returns the one way of proof that the operation declares.
func scheme(op *huma.Operation) (string, error) {
	if len(op.Security) == 1 && len(op.Security[0]) == 1 {
		for name := range op.Security[0] {
			if name == Session || name == Device || name == None || name == Service {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("api: operation %s %s does not declare one way of proof", op.Method, op.Path)
}

func authenticate(api huma.API, auth Authenticator, ctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	how, err := scheme(ctx.Operation())
	var by actor.Actor
	switch {
	case err != nil:
	case how == Service:
		err = unproven // never on this listener; mount sees to it
	case how == None:
		next(ctx)
		return
	case how == Session:
		if by, err = auth.Session(r.Context(), r); err == nil {
			err = auth.Permit(r.Context(), by, ctx.Operation().Security[0][Session])
		}
	case how == Device:
		by, err = auth.Device(r.Context(), r)
	}
	// The next proof needs a nonce; sending it with every answer saves the round trip.
	w.Header().Set("DPoP-Nonce", auth.Nonce())
	if err != nil {
		write(api, ctx, err)
		return
	}
	next(huma.WithContext(ctx, actor.With(r.Context(), by)))
}

// write answers with err. Middlewares need it; operations just return their error.
func write(api huma.API, ctx huma.Context, err error) {
	var p *problem.Problem
	if !errors.As(err, &p) {
		p = internal(err)
	}
	for name, values := range p.GetHeaders() {
		for _, v := range values {
			ctx.AppendHeader(name, v)
		}
	}
	ctx.SetHeader("Content-Type", p.ContentType(""))
	body, err := api.Transform(ctx, "", p)
	ctx.SetStatus(p.GetStatus())
	if err == nil {
		_ = marshal(ctx.BodyWriter(), body) // the client has gone; there is nobody to tell
	}
}

func internal(err error) *problem.Problem {
	return problem.New(problem.Internal, "internal", "Something went wrong on our side. Quote the request id when you report it.").Because(err)
}

// finish gives a problem its request id, and the log what the caller is not told.
func finish(ctx huma.Context, log *slog.Logger, p *problem.Problem) *problem.Problem {
	by := actor.From(ctx.Context())
	if p.Kind() >= problem.Internal {
		op := ctx.Operation()
		log.ErrorContext(ctx.Context(), "request failed", "request", by.Request, "method", op.Method, "route", op.Path,
			"problem", p.Slug(), "error", p.Unwrap())
	}
	if by.Request == "" {
		return p
	}
	return p.With("instance", "urn:strongroom:request:"+by.Request)
}

// errorsBecomeProblems makes huma's own errors problems. Huma keeps its error constructor in a
// package variable, so this is done once for the whole program.
var errorsBecomeProblems = sync.OnceFunc(func() {
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		return fromHuma(status, message, errs)
	}
	huma.NewErrorWithContext = func(_ huma.Context, status int, message string, errs ...error) huma.StatusError {
		return fromHuma(status, message, errs)
	}
})

// detail is one member of the "errors" extension. It names the place and says what is wrong there;
// unlike huma's own it never repeats the value, which may be a private code.
type detail struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

func fromHuma(status int, message string, errs []error) *problem.Problem {
	details := make([]detail, 0, len(errs))
	for _, err := range errs {
		var e *huma.ErrorDetail
		if errors.As(err, &e) {
			details = append(details, detail{e.Location, e.Message})
		}
	}
	switch status {
	case http.StatusBadRequest:
		text := "The body is not the JSON that this operation takes"
		if len(details) > 0 {
			text += ": " + details[0].Message // one of the texts in decode.go
		}
		return problem.New(problem.Invalid, "malformed-request", "%s.", text)
	case http.StatusNotAcceptable:
		return problem.New(problem.NotAcceptable, "not-acceptable", "Answers are application/json.")
	case http.StatusRequestTimeout:
		return problem.New(problem.Invalid, "slow-request", "The body did not arrive in time. Send it again.")
	case http.StatusRequestEntityTooLarge:
		return tooLarge
	case http.StatusUnsupportedMediaType:
		return problem.New(problem.UnsupportedMedia, "not-json", "Send the body as application/json.")
	case http.StatusUnprocessableEntity:
		p := problem.New(problem.Unprocessable, "invalid-request", "One or more values are not what this operation takes.")
		if len(details) > 0 {
			p = p.With("errors", details)
		}
		return p
	}
	cause := errors.Join(append([]error{errors.New(message)}, errs...)...)
	var over *http.MaxBytesError
	switch {
	case errors.As(cause, &over):
		return tooLarge
	case message == "cannot read request body":
		return problem.New(problem.Invalid, "incomplete-body", "The body ended early. Send it again.").Because(cause)
	}
	return internal(cause)
}

var tooLarge = problem.New(problem.TooLarge, "body-too-large", "The body is larger than this operation takes.")

func marshal(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
