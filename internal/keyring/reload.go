package keyring

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/jobs"
)

// JobReload is the name of the job that keeps this process's keys up to date.
const JobReload = "keyring-reload"

const (
	// reloadEvery is well under the time that a new KEK waits for all processes.
	reloadEvery = 2 * time.Second
	// reloadPause is how long one failure stands for all that ask, so that a root key's service that
	// is down is not asked by every request.
	reloadPause = time.Second
)

// keyRows are all rows of which a key set is made, of one snapshot.
type keyRows struct {
	generation int64
	roster     []byte
	keks       []kekRow
	services   []serviceRow
	indexing   uint32 // see selectIndexing
}

func selectKeys(ctx context.Context, tx *db.Tx) (r keyRows, err error) {
	if r.generation, err = selectGeneration(ctx, tx); err != nil {
		return r, err
	}
	if r.roster, err = selectRoster(ctx, tx); err != nil {
		return r, err
	}
	if r.keks, err = selectKEKs(ctx, tx); err != nil {
		return r, err
	}
	if r.services, err = selectServiceKeys(ctx, tx); err != nil {
		return r, err
	}
	r.indexing, err = selectIndexing(ctx, tx)
	return r, err
}

// opening has one goroutine at a time open new keys. Nobody asks the database while it holds mu: who
// waits may hold the connection.
type opening struct {
	mu         sync.Mutex
	failed     error
	generation int64 // that failed
	until      time.Time
}

// Reload has this process hold the keys that the database has now. When it fails, the keys that were
// held before stay.
func (k *Keyring) Reload(ctx context.Context) error {
	have := k.keys.Load().generation
	var rows keyRows
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		rows = keyRows{}
		if rows.generation, err = selectGeneration(ctx, tx); err != nil || rows.generation == have {
			return err
		}
		rows, err = selectKeys(ctx, tx)
		return err
	})
	if err != nil || rows.generation == have {
		return err
	}
	_, err = k.adopt(ctx, rows)
	return err
}

// current returns the keys as tx sees them. The root key is called, with tx open, only for a KEK that
// Reload has not seen in all the time that it was published.
func (k *Keyring) current(ctx context.Context, tx *db.Tx) (*keySet, error) {
	generation, err := selectGeneration(ctx, tx)
	if err != nil {
		return nil, err
	}
	if set := k.keys.Load(); set.generation >= generation {
		return set, nil
	}
	rows, err := selectKeys(ctx, tx)
	if err != nil {
		return nil, err
	}
	return k.adopt(ctx, rows)
}

// adopt opens the keys of rows, unless it has newer ones.
func (k *Keyring) adopt(ctx context.Context, rows keyRows) (*keySet, error) {
	k.opening.mu.Lock()
	defer k.opening.mu.Unlock()
	old := k.keys.Load()
	if old.generation >= rows.generation {
		return old, nil
	}
	o := &k.opening
	if o.failed != nil && o.generation == rows.generation && time.Now().Before(o.until) {
		return nil, o.failed
	}
	set, err := k.unwrapKEKs(ctx, rows, old)
	if err == nil {
		err = set.checkRoster(rows)
	}
	if err == nil {
		err = k.open(set, rows.services)
	}
	if err != nil && ctx.Err() != nil {
		return nil, err // of this caller, not of the keys
	}
	if err != nil {
		k.metrics.reloads.WithLabelValues("failed").Inc()
		k.log.ErrorContext(ctx, "the keys have changed and the new ones cannot be had; the old ones stay", "error", err)
		o.failed, o.generation, o.until = fmt.Errorf("take over changed keys: %w", err), rows.generation, time.Now().Add(reloadPause)
		return nil, o.failed
	}
	o.failed = nil
	k.hold(set)
	k.metrics.reloads.WithLabelValues("ok").Inc()
	k.log.InfoContext(ctx, "keys have changed", "kek", set.kek.Version(), "held", set.kek.Versions())
	return set, nil
}

// tend is the job: it takes over changed keys, reserves uses, and says what is wrong.
func (k *Keyring) tend(ctx context.Context) error {
	return errors.Join(k.Reload(ctx), k.reserve(ctx), k.report(ctx))
}

// hold has the set used from now on.
func (k *Keyring) hold(set *keySet) {
	k.keys.Store(set)
	k.cache.clear() // a version of a customer's key may have been marked compromised
	k.named.clear() // or one of a named key, or destroyed
	k.metrics.exposed.Set(float64(set.compromised))
}

// Jobs returns the jobs that keep the keys up to date and rotate them.
func (k *Keyring) Jobs() []jobs.Job {
	return []jobs.Job{
		{Name: JobReseal, Every: rotationEvery, Quiet: true, Leased: true, Run: k.reseal},
		{Name: JobReload, Every: reloadEvery, Quiet: true, Run: k.tend},
		{Name: JobRotation, Every: rotationEvery, Quiet: true, Leased: true, Run: k.rotate},
	}
}
