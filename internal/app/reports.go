package app

import (
	"context"
	"net/http"
	"os"

	"strongroom/internal/assurance"
	"strongroom/internal/assurance/report"
	"strongroom/internal/config"
	"strongroom/internal/edge"
)

// reportBodies are the forms of people who report a concern.
var reportBodies = []edge.Body{{Method: http.MethodPost, Prefix: report.FormPath, Limit: report.MaxForm, ContentTypes: []string{report.FormType}}}

// furnish adds to the looks of the trust page what is more than a word: the operator's picture, and the form for
// reports.
func (h *House) furnish(look *assurance.PageOptions) (err error) {
	trust := h.Config.Trust
	look.Title, look.Concern, look.AccentDark, look.Origin = trust.Title, trust.Concern, trust.AccentDark, h.Config.Login.Origin
	if look.Logo, err = logo(h.Config); err != nil {
		return err
	}
	look.FormPath = report.FormPath
	look.Form, err = report.Form()
	return err
}

// logo returns the operator's picture, or nil when the settings name none.
func logo(c config.Config) (*assurance.Logo, error) {
	if c.Trust.Logo == "" {
		return nil, nil
	}
	b, err := os.ReadFile(c.Trust.Logo)
	if err == nil {
		var l *assurance.Logo
		if l, err = assurance.NewLogo(b); err == nil {
			return l, nil
		}
	}
	return nil, &config.Error{Key: "trust.logo", Problem: err.Error(), Remedy: "name a PNG, JPEG or WebP picture of at most 64 KiB"}
}

// ReportOperator is what the command line may do with what people report about security.
type ReportOperator interface {
	// Reports lists those that are open, or with all also the closed ones.
	Reports(ctx context.Context, all bool) ([]report.Entry, error)
	// ShowReport opens one, with an event.
	ShowReport(ctx context.Context, reference string) (report.Report, error)
	// CloseReport says that one is dealt with, and how.
	CloseReport(ctx context.Context, reference, verdict string) error
}

func (o operator) Reports(ctx context.Context, all bool) ([]report.Entry, error) {
	return o.house.Reports.List(ctx, o.by, all)
}

func (o operator) ShowReport(ctx context.Context, reference string) (report.Report, error) {
	return o.house.Reports.Show(ctx, o.by, reference)
}

func (o operator) CloseReport(ctx context.Context, reference, verdict string) error {
	return o.house.Reports.Close(ctx, o.by, reference, verdict)
}

type reportRequest struct {
	All       bool   `json:"all,omitempty"`
	Reference string `json:"reference,omitempty"`
	Verdict   string `json:"verdict,omitempty"`
}

func (c *control) reportRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /reports/list", command(c, func(ctx context.Context, o operator, ask reportRequest) ([]report.Entry, error) {
		return o.Reports(ctx, ask.All)
	}))
	mux.HandleFunc("POST /reports/show", command(c, func(ctx context.Context, o operator, ask reportRequest) (report.Report, error) {
		return o.ShowReport(ctx, ask.Reference)
	}))
	mux.HandleFunc("POST /reports/close", command(c, func(ctx context.Context, o operator, ask reportRequest) (struct{}, error) {
		return struct{}{}, o.CloseReport(ctx, ask.Reference, ask.Verdict)
	}))
}

func (d *dialled) Reports(ctx context.Context, all bool) (list []report.Entry, err error) {
	err = d.call(ctx, "/reports/list", reportRequest{All: all}, &list, nil)
	return list, err
}

func (d *dialled) ShowReport(ctx context.Context, reference string) (r report.Report, err error) {
	err = d.call(ctx, "/reports/show", reportRequest{Reference: reference}, &r, nil)
	return r, err
}

func (d *dialled) CloseReport(ctx context.Context, reference, verdict string) error {
	return d.call(ctx, "/reports/close", reportRequest{Reference: reference, Verdict: verdict}, &struct{}{}, nil)
}
