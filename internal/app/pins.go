package app

import (
	"context"
	"io"
	"net/http"
	"path/filepath"

	"strongroom/internal/clock"
	"strongroom/internal/config"
	"strongroom/internal/edge"
)

// Pins are what an app needs to know of this installation before it connects for the first time.
type Pins struct {
	Origin string   `json:"origin"`
	Pins   []string `json:"pins"`     // the key in use first, then the next one
	Keys   []string `json:"pin_keys"` // that sign the sets which UpdatePins fetches
}

// PinOperator is what the command line may ask about pins.
type PinOperator interface {
	Pins(ctx context.Context) (Pins, error)
}

func (o operator) Pins(context.Context) (Pins, error) {
	c := o.house.Config
	certificates, err := edge.LoadCertificates(appFiles(c), clock.System)
	if err != nil {
		return Pins{}, err
	}
	origin := c.Login.Origin
	if origin == "" {
		origin = "https://" + c.Listeners.App.Address
	}
	return Pins{Origin: origin, Pins: certificates.Pins(), Keys: []string{o.house.Ring.CheckpointKey()}}, nil
}

// appFiles are those of the app listener; in dev, when none are named, the development authority's.
func appFiles(c config.Config) edge.Files {
	l := c.Listeners.App
	if l.Certificate == "" {
		at := func(name string) string { return filepath.Join(c.Data, "tls", name) }
		return edge.Files{Certificate: at("server.pem"), Key: at("server.key"), BackupKey: at("server-next.key")}
	}
	return edge.Files{Certificate: l.Certificate, Key: l.Key, BackupKey: l.BackupKey}
}

func (c *control) pins(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 4096)) // nothing is asked but the pins
	p, err := c.by(r).Pins(r.Context())
	c.answer(w, r, p, err)
}

func (d *dialled) Pins(ctx context.Context) (p Pins, err error) {
	err = d.call(ctx, "/pins", nil, &p, nil)
	return p, err
}
