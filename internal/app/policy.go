package app

import (
	"context"
	_ "embed"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/config"
	"strongroom/internal/db"
	"strongroom/internal/policy"
)

// devPolicy is what `strongroom dev` grants the certificate that it makes.
//
//go:embed dev.cedar
var devPolicy string

// writeDevPolicy puts the example into the folder of policies of a new development installation. A
// folder that is there already is its owner's.
func writeDevPolicy(c config.Config) error {
	if c.Environment != config.Dev || c.Policies == "" {
		return nil
	}
	if _, err := os.Stat(c.Policies); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(c.Policies, 0o700); err != nil {
		return err
	}
	return writeFile(filepath.Join(c.Policies, "dev.cedar"), devPolicy)
}

// loadPolicies reads the policies and records which ones hold from now on.
func (h *House) loadPolicies(ctx context.Context, by actor.Actor) (*policy.Set, error) {
	set, err := policy.Load(h.Config.Policies)
	if err != nil {
		return nil, &config.Error{Key: "policies", Problem: err.Error()}
	}
	err = h.Trail.Do(ctx, by, audit.Event{Action: policy.ActionLoad, Resource: set.Resource()},
		func(*db.Tx, *audit.Event) error { return nil })
	if err != nil {
		return nil, err
	}
	h.log.Info("policies are loaded", "count", set.Count(), "sha256", set.Hash())
	return set, nil
}
