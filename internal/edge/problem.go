package edge

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/problem"
)

// Classify returns the problem that err is, as the caller is told it, with the request's id as its
// instance. An error that is no Problem becomes a bare 500. What the caller is not told goes, with the
// same id, into the request's line in the log.
func Classify(ctx context.Context, err error) *problem.Problem {
	p := problem.Of(err)
	var over *http.MaxBytesError
	switch {
	case p != nil:
	case errors.As(err, &over):
		p = tooLarge.Because(err)
	case errors.Is(err, context.DeadlineExceeded):
		p = problem.New(problem.Unavailable, "timeout", "This took too long. Try again.").RetryAfter(time.Second).Because(err)
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		// Nobody is left to read it; it must only not look like a fault of ours.
		p = problem.New(problem.Unavailable, "cancelled", "The request was cancelled.").Because(err)
	default:
		p = problem.New(problem.Internal, "internal", "Something went wrong on our side. Quote the request id when you report it.").Because(err)
	}
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		x.problem = p
	} else if p.Kind() >= problem.Internal && p.Slug() != "cancelled" {
		slog.ErrorContext(ctx, "request failed", "problem", p.Slug(), "error", p.Unwrap())
	}
	if id := actor.From(ctx).Request; id != "" {
		p = p.With("instance", "urn:strongroom:request:"+id)
	}
	return p
}

// WriteProblem answers r with err as application/problem+json (RFC 9457); Classify says which. When the
// answer has already begun, the connection is broken off instead, so that half an answer is never
// taken for a whole one.
func WriteProblem(w http.ResponseWriter, r *http.Request, err error) {
	p := Classify(r.Context(), err)
	if x, ok := r.Context().Value(exchangeKey{}).(*exchange); ok && x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	for name, values := range p.GetHeaders() {
		h[name] = values
	}
	body, err := json.Marshal(p)
	if err != nil { // an extension member that JSON does not know
		p, body = problem.New(problem.Internal, "internal", ""), []byte(`{"status":500,"type":"urn:strongroom:problem:internal"}`)
	}
	h.Del("Content-Length")
	h.Del("ETag")
	h["Content-Type"] = problemType
	w.WriteHeader(p.GetStatus())
	_, _ = w.Write(append(body, '\n')) // the client has gone; there is nobody to tell
}

var (
	problemType = []string{"application/problem+json"}
	tooLarge    = problem.New(problem.TooLarge, "body-too-large", "The body is larger than this operation takes.")
)
