package app

import (
	"context"
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

// bytesTo is a writer that hands on what is written, a piece at a time.
type bytesTo func([]byte) error

func (send bytesTo) Write(b []byte) (int, error) {
	if err := send(b); err != nil {
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
	mux.HandleFunc("POST /evidence/export", sendPieces(c, func(ctx context.Context, o operator, p assurance.Period, send func([]byte) error) error {
		return exportEvidence(ctx, o.house, o.by, p, bytesTo(send))
	}))
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
	return takePieces(ctx, d, "/evidence/export", p, func(b []byte) error {
		_, err := out.Write(b)
		return err
	})
}
