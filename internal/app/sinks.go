package app

import (
	"context"
	"fmt"
	"io"

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

func (d *dialled) ExportTrail(ctx context.Context, q audit.ExportQuery, take func([]audit.Entry) error) error {
	return takePieces(ctx, d, "/audit/export", q, take)
}
