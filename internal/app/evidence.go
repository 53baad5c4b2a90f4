package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"strongroom/internal/actor"
	"strongroom/internal/assurance"
)

// EvidenceOperator is what the command line may ask of evidence; it is a part of Checker.
type EvidenceOperator interface {
	// ExportEvidence writes the bundle of a period; see assurance.Assurance.Export.
	ExportEvidence(ctx context.Context, p assurance.Period, out io.Writer) error
	// EvidenceKeys returns the verifier keys of what the installation says of itself, oldest first, but for those that
	// somebody may know.
	EvidenceKeys(ctx context.Context) ([]string, error)
	// ClaimHistory returns the newest changes of claims' states; see assurance.Assurance.History.
	ClaimHistory(ctx context.Context, claim string, limit int) ([]assurance.Change, error)
}

func (m *momentary) ExportEvidence(ctx context.Context, p assurance.Period, out io.Writer) error {
	return exportEvidence(ctx, m.server.house, m.by, p, out)
}

func (m *momentary) EvidenceKeys(ctx context.Context) ([]string, error) {
	return m.server.house.Ring.TrustedEvidenceKeys(ctx)
}

func (m *momentary) ClaimHistory(ctx context.Context, claim string, limit int) ([]assurance.Change, error) {
	return m.server.house.Assurance.History(ctx, m.by, claim, limit)
}

func exportEvidence(ctx context.Context, h *House, by actor.Actor, p assurance.Period, out io.Writer) error {
	return h.Assurance.Export(ctx, by, p, out)
}

type historyRequest struct {
	Claim string `json:"claim"`
	Limit int    `json:"limit"`
}

// bundleLine is one line of the answer to an export: some bytes, its end, or why it was cut short.
type bundleLine struct {
	Data  []byte `json:"data,omitempty"`
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

// bundleWriter sends what is written as lines.
type bundleWriter struct{ lines *json.Encoder }

func (w bundleWriter) Write(b []byte) (int, error) {
	if err := w.lines.Encode(bundleLine{Data: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *control) evidenceRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /evidence/keys", command(c, func(ctx context.Context, o operator, _ struct{}) ([]string, error) {
		return o.house.Ring.TrustedEvidenceKeys(ctx)
	}))
	mux.HandleFunc("POST /claims/history", command(c, func(ctx context.Context, o operator, ask historyRequest) ([]assurance.Change, error) {
		return o.house.Assurance.History(ctx, o.by, ask.Claim, ask.Limit)
	}))
	mux.HandleFunc("POST /evidence/export", func(w http.ResponseWriter, r *http.Request) {
		out := bundleWriter{json.NewEncoder(w)}
		var p assurance.Period
		err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&p)
		if err == nil {
			o := c.by(r)
			err = exportEvidence(r.Context(), o.house, o.by, p, out)
		}
		last := bundleLine{End: true}
		if err != nil {
			last = bundleLine{Error: err.Error()}
			c.log.ErrorContext(r.Context(), "control command failed", "path", r.URL.Path, "error", err)
		}
		_ = out.lines.Encode(last) // the command may have gone; there is nobody to tell
	})
}

func (d *dialled) EvidenceKeys(ctx context.Context) (keys []string, err error) {
	err = d.call(ctx, "/evidence/keys", struct{}{}, &keys, nil)
	return keys, err
}

func (d *dialled) ClaimHistory(ctx context.Context, claim string, limit int) (all []assurance.Change, err error) {
	err = d.call(ctx, "/claims/history", historyRequest{claim, limit}, &all, nil)
	return all, err
}

func (d *dialled) ExportEvidence(ctx context.Context, p assurance.Period, out io.Writer) error {
	body, write := io.Pipe()
	go func() { write.CloseWithError(json.NewEncoder(write).Encode(p)) }()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://strongroom/evidence/export", body)
	if err != nil {
		return err
	}
	answer, err := d.client.Do(r)
	if err != nil {
		return fmt.Errorf("the running server did not answer: %w", err)
	}
	defer answer.Body.Close()
	for lines := json.NewDecoder(answer.Body); ; {
		var l bundleLine
		if err := lines.Decode(&l); err != nil {
			return fmt.Errorf("the running server stopped in the middle of its answer; ask again: %w", err)
		}
		switch {
		case l.Error != "":
			return errors.New(l.Error)
		case l.End:
			return nil
		}
		if _, err := out.Write(l.Data); err != nil {
			return err
		}
	}
}
