package app

import (
	"context"
	"net/http"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/audit/repository"
	"strongroom/internal/config"
	"strongroom/internal/secret"
)

// openArchive connects the trail with its archive, if the settings name one.
func (h *House) openArchive() error {
	c := h.Config.Audit
	if c.Repository.URL == "" {
		return nil
	}
	o := repository.Options{URL: c.Repository.URL}
	for _, s := range []struct {
		key  string
		from config.Secret
		to   *secret.Value
	}{{"access_key", c.Repository.AccessKey, &o.AccessKey}, {"secret_key", c.Repository.SecretKey, &o.SecretKey}} {
		if s.from.IsZero() {
			continue
		}
		var err error
		if *s.to, err = s.from.Read(); err != nil {
			return &config.Error{Key: "audit.repository." + s.key, Problem: err.Error()}
		}
	}
	r, err := repository.Open(o)
	if err != nil {
		return &config.Error{Key: "audit.repository.url", Problem: err.Error()}
	}
	h.closers = append(h.closers, r)
	hold, err := c.Hold()
	if err != nil {
		return &config.Error{Key: "audit.hold_until", Problem: err.Error()}
	}
	var sinks []string
	for _, s := range c.Sinks {
		sinks = append(sinks, s.Name)
	}
	h.archive = h.Trail.OpenArchive(audit.ArchiveOptions{Repository: r, Online: c.Online, Keep: c.Archive, HoldUntil: hold, Sinks: sinks})
	return nil
}

// startArchive adds the archive's job, and records a legal hold.
func (h *House) startArchive(ctx context.Context, by actor.Actor) error {
	if h.archive == nil {
		return nil
	}
	if h.Config.Audit.HoldUntil != "" {
		if err := h.archive.Hold(ctx, by, h.Config.Audit.HoldReason); err != nil {
			return err
		}
	}
	h.Jobs.Add(h.archive.Job())
	return nil
}

func (o operator) VerifyArchive(ctx context.Context, progress func(done, total int64)) (audit.Report, error) {
	o.upToDate(ctx)
	return o.house.Trail.VerifyArchive(ctx, o.by, progress)
}

// archiveRoutes adds the archive's command to the control socket.
func (c *control) archiveRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /trail/verify-archive", func(w http.ResponseWriter, r *http.Request) {
		c.verifying(w, r, c.by(r).VerifyArchive)
	})
}

func (d *dialled) VerifyArchive(ctx context.Context, progress func(done, total int64)) (report audit.Report, err error) {
	err = d.call(ctx, "/trail/verify-archive", nil, &report, progress)
	return report, err
}
