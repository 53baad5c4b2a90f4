package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/audit/ocsf"
	"strongroom/internal/audit/sink"
	"strongroom/internal/clock"
	"strongroom/internal/config"
)

// closingSink is a sink that holds something open.
type closingSink interface {
	audit.Sink
	io.Closer
}

// openSinks makes the sinks of the settings and the jobs that send to them. They are closed with the house.
func (h *House) openSinks(ctx context.Context, by actor.Actor, version string, findings audit.Findings) error {
	product := ocsf.Product{Version: version, Installation: h.DB.Installation()}
	var list []audit.Stream
	for i, c := range h.Config.Audit.Sinks {
		key := fmt.Sprintf("audit.sinks[%d]", i)
		encode, format := sink.OCSF(product), "ocsf"
		if c.Format == "json" {
			encode, format = sink.JSON, "json"
		}
		to, err := openSink(c, encode)
		if err != nil {
			return &config.Error{Key: key, Problem: err.Error()}
		}
		h.closers = append(h.closers, to)
		list = append(list, audit.Stream{Name: c.Name, Form: c.Type + " " + format, Personal: c.Personal, To: to})
	}
	streams, err := h.Trail.OpenStreams(ctx, by, list, findings, h.Metrics)
	if err != nil {
		return err
	}
	for _, job := range streams.Jobs() {
		h.Jobs.Add(job)
	}
	return nil
}

func openSink(c config.Sink, encode sink.Encode) (closingSink, error) {
	if c.Type == "file" {
		return sink.NewFile(sink.FileOptions{Path: c.Path, MaxSize: c.MaxSize, MaxAge: c.MaxAge, Encode: encode, Clock: clock.System})
	}
	trust, err := sink.TLSFiles{CA: c.CA, Certificate: c.Certificate, Key: c.Key}.Config()
	if err != nil {
		return nil, err
	}
	if c.Type == "syslog" {
		return sink.NewSyslog(sink.SyslogOptions{Address: c.Address, TLS: trust, Encode: encode})
	}
	secret, err := c.Secret.Read()
	if err != nil {
		return nil, err
	}
	return sink.NewWebhook(sink.WebhookOptions{URL: c.URL, Secret: secret, TLS: trust, Encode: encode, Clock: clock.System})
}

// TrailOperator is what the command line may ask of the trail beside Verify and Tail; it is a part of Operator.
type TrailOperator interface {
	// ExportTrail gives take the events that q names; see audit.Trail.Export.
	ExportTrail(ctx context.Context, q audit.ExportQuery, take func([]audit.Entry) error) error
}

func (o operator) ExportTrail(ctx context.Context, q audit.ExportQuery, take func([]audit.Entry) error) error {
	return o.house.Trail.Export(ctx, o.by, q, take)
}

// exportLine is one line of the answer to an export: some events, its end, or why it was cut short.
type exportLine struct {
	Events []audit.Entry `json:"events,omitempty"`
	End    bool          `json:"end,omitempty"`
	Error  string        `json:"error,omitempty"`
}

func (c *control) exportTrail(w http.ResponseWriter, r *http.Request) {
	out := json.NewEncoder(w)
	var q audit.ExportQuery
	err := json.NewDecoder(io.LimitReader(r.Body, maxAsk)).Decode(&q)
	if err == nil {
		err = c.by(r).ExportTrail(r.Context(), q, func(events []audit.Entry) error { return out.Encode(exportLine{Events: events}) })
	}
	last := exportLine{End: true}
	if err != nil {
		last = exportLine{Error: err.Error()}
		c.log.ErrorContext(r.Context(), "control command failed", "path", r.URL.Path, "error", err)
	}
	_ = out.Encode(last) // the command may have gone; there is nobody to tell
}

func (d *dialled) ExportTrail(ctx context.Context, q audit.ExportQuery, take func([]audit.Entry) error) error {
	body, write := io.Pipe()
	go func() { write.CloseWithError(json.NewEncoder(write).Encode(q)) }()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://strongroom/audit/export", body)
	if err != nil {
		return err
	}
	answer, err := d.client.Do(r)
	if err != nil {
		return fmt.Errorf("the running server did not answer: %w", err)
	}
	defer answer.Body.Close()
	for lines := json.NewDecoder(answer.Body); ; {
		var l exportLine
		if err := lines.Decode(&l); err != nil {
			return fmt.Errorf("the running server stopped in the middle of its answer; ask again: %w", err)
		}
		switch {
		case l.Error != "":
			return errors.New(l.Error)
		case l.End:
			return nil
		}
		if err := take(l.Events); err != nil {
			return err
		}
	}
}
