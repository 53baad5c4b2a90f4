package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"

	"strongroom/internal/actor"
	"strongroom/internal/db"
)

// keptKeys is how many copies of the keys a repository keeps: a restore takes the newest, and the one
// before is for the day on which that one is damaged everywhere.
const keptKeys = 2

// keyTombstones is the table that a copy of the keys is as old as.
const keyTombstones = "data_key_tombstone"

// sweepKeys deletes, in every repository that has the new copy of the keys, all copies before the last two,
// and every copy that was made before the latest erasure: with it goes the last wrapped key of whoever was
// erased. Objects that no copy needs go too. What is locked stays until its lock ends, at most for the
// retention of keys, and Prune deletes it then; when a repository does not delete for another reason, its
// copy does not count.
func (b *Backup) sweepKeys(ctx context.Context, s *Snapshot, t *taking) error {
	var failed error
	for i := range s.Copies {
		c := &s.Copies[i]
		if c.Part != Keys || c.Error != "" {
			continue
		}
		for _, r := range t.repositories {
			if r.Name != c.Repository {
				continue
			}
			if err := b.sweepOld(ctx, t, r); err != nil {
				c.Error = "older copies of the keys were not deleted: " + err.Error()
				failed = errors.Join(failed, err)
			}
		}
	}
	if failed != nil {
		b.o.Log.WarnContext(ctx, "older copies of the keys were not deleted", "error", failed)
	}
	return nil // the copy counts as missing there, which judge tells
}

func (b *Backup) sweepOld(ctx context.Context, t *taking, r *Repository) error {
	ids, _, err := b.manifests(ctx, []*Repository{r})
	if err != nil {
		return err
	}
	needed := t.manifest.objects()
	kept := 1
	for i := len(ids) - 1; i >= 0; i-- {
		if ids[i] == t.manifest.ID {
			continue
		}
		m, err := readManifest(ctx, t.key, []*Repository{r}, ids[i], b.o.Keys.EvidenceVerifiers())
		if err == nil && kept < keptKeys && tombstones(m) == tombstones(t.manifest) {
			kept++
			maps.Copy(needed, m.objects())
			continue
		}
		if err := r.remove(ctx, manifestPrefix+ids[i]); err != nil && !errors.Is(err, errLocked) {
			return err
		}
	}
	var surplus []string
	err = r.list(ctx, objectPrefix, func(key string, _ int64) error {
		if _, ok := needed[path.Base(key)]; !ok {
			surplus = append(surplus, key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range surplus {
		if err := r.remove(ctx, key); errors.Is(err, errLocked) {
			continue
		} else if err != nil {
			return err
		}
		r.forget(key[strings.LastIndexByte(key, '/')+1:])
	}
	return nil
}

// forget notes that an object is gone.
func (r *Repository) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.have, name)
}

// tombstones returns how many customers were erased when the keys were copied; -1 when it does not say.
func tombstones(m *Manifest) int64 {
	for _, t := range m.Tables {
		if t.Name == keyTombstones {
			return t.Rows
		}
	}
	return -1
}

// RefreshKeys copies the keys, and nothing else, when a customer was erased since they were copied last.
func (b *Backup) RefreshKeys(ctx context.Context, by actor.Actor) error {
	if len(b.o.Repositories) == 0 {
		return nil
	}
	var erased int64
	var runs []run
	err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		if erased, err = countTombstones(ctx, tx); err == nil {
			runs, err = selectRuns(ctx, tx, 100)
		}
		return err
	})
	if err != nil || len(runs) == 0 {
		return err // without a copy there is nothing to refresh
	}
	for _, r := range runs {
		if r.outcome == "failed" {
			continue
		}
		if r.figures.Erased == erased && keysEverywhere(r) {
			return nil
		}
		break
	}
	if _, err := b.Take(ctx, by, Taking{Class: classKeys, keysOnly: true}); err != nil {
		return fmt.Errorf("the keys of erased customers may still lie in a repository: %w", err)
	}
	return nil
}

// keysEverywhere reports whether every repository for keys had the copy, and nothing older that it
// should not have.
func keysEverywhere(r run) bool {
	for _, c := range r.figures.Copies {
		if c.Part == Keys && c.Error != "" {
			return false
		}
	}
	return true
}
