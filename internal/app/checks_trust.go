package app

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/assurance/report"
	"strongroom/internal/check"
)

// riskChecks are those of the management of security.
func (h *House) riskChecks() []check.Check {
	return []check.Check{
		h.of("risks-within-dates", "Risks are reviewed and improvements are made when they were to be.", time.Hour, 6*time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Risks.CheckCurrent(ctx) },
			statements(`UPDATE risk SET review_at = 1 WHERE id = 'R-01'`)),
		h.of("reports-sealed", "What people report about security is stored sealed.", time.Hour, 6*time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Reports.CheckSealed(ctx) },
			func(ctx context.Context, h *House) error {
				by := actor.Actor{Kind: actor.Anonymous}
				if _, err := h.Reports.Submit(ctx, by, report.Message{Text: "A report that was not sealed."}); err != nil {
					return err
				}
				return statements(`UPDATE security_report SET sealed = substr(sealed, 1, 20)`)(ctx, h)
			}),
	}
}

// reportCheck is that anybody can report a concern.
func (s *Server) reportCheck() check.Check {
	return check.Check{
		ID: "reports-taken", Version: 1, Every: 10 * time.Minute, Valid: time.Hour,
		Says: "Anybody can report a concern about security, and a report that says nothing is turned away.",
		Run:  func(ctx context.Context) check.Observation { return takesReports(ctx, s.edge.URL("app")) },
		Sabotage: func(ctx context.Context) check.Observation {
			scratch := httptest.NewTLSServer(http.NotFoundHandler())
			defer scratch.Close()
			return takesReports(ctx, scratch.URL)
		},
	}
}

// takesReports asks both ways in with a report that is too short, so that nothing is kept: whoever says so has read it.
func takesReports(ctx context.Context, base string) check.Observation {
	did := "read the form over TLS, and sent a report that says nothing to the form and to the operation"
	if base == "" {
		return check.Undecided(did, "The app's listener does not serve.")
	}
	client := visitor()
	defer client.CloseIdleConnections()
	for _, ask := range []struct {
		method, path, kind, body string
		status                   int
		says                     string
	}{
		{http.MethodGet, report.FormPath, "", "", http.StatusOK, "<form method=\"post\""},
		{http.MethodPost, report.FormPath, report.FormType, "text=-", http.StatusUnprocessableEntity, "Describe what you found"},
		{http.MethodPost, "/v1/security-reports", "application/json", `{"text":"-"}`, http.StatusUnprocessableEntity, "urn:strongroom:problem:"},
	} {
		status, body, err := exchange(ctx, client, ask.method, base+ask.path, ask.kind, ask.body)
		if err != nil {
			return check.Failed(did, "%s did not answer: %v", ask.path, err)
		}
		if status != ask.status || !bytes.Contains(body, []byte(ask.says)) {
			return check.Failed(did, "%s answered %d, and not what it has to.", ask.path, status)
		}
	}
	return check.Held(did, "The form and the operation answer, and turned it away.")
}

// exchange sends a request and returns the answer's status and body.
func exchange(ctx context.Context, client *http.Client, method, url, kind, body string) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return 0, nil, fmt.Errorf("the answer ended early: %w", err)
	}
	return answer.StatusCode, b, nil
}
