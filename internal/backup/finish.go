package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// patience is how long a repository that fell behind may take to get what it lacks. What it has by then
// stays there, and the next run goes on.
const patience = 30 * time.Minute

// finish sees that each repository has all objects, stores the manifest there, reads a sample of it all
// back, and notes the copies. The repositories do so side by side.
func (b *Backup) finish(ctx context.Context, s *Snapshot, t *taking) error {
	m := t.manifest
	m.NewBytes = t.newBytes
	m.measure(t.sizes)
	s.NewBytes += t.newBytes
	stored, err := m.seal(t.key, b.o.Keys.EvidenceSigner())
	if err != nil {
		return err
	}
	repositories := b.of(m.Part)
	copies := make([]Copy, len(repositories))
	var wait sync.WaitGroup
	for i, r := range repositories {
		wait.Go(func() {
			copies[i] = Copy{Repository: r.Name, Part: m.Part, Medium: r.Medium, Region: r.Region}
			if err := b.finishOne(ctx, t, r, stored); err != nil {
				copies[i].Error = err.Error()
				b.o.Log.WarnContext(ctx, "a backup repository has no copy", "repository", r.Name, "snapshot", s.ID, "error", err)
			}
		})
	}
	wait.Wait()
	s.Copies = append(s.Copies, copies...)
	for _, u := range b.o.Unopened {
		if u.Part == m.Part {
			s.Copies = append(s.Copies, Copy{Repository: u.Name, Part: m.Part, Medium: u.Medium, Region: u.Region, Error: u.Err.Error()})
		}
	}
	keep := make(map[string]bool)
	for name := range m.objects() {
		keep[name] = true
	}
	return t.memory.keep(keep)
}

func (b *Backup) finishOne(ctx context.Context, t *taking, r *Repository, manifest []byte) error {
	if err := t.absent[r]; err != nil {
		return err
	}
	t.pending[r].Wait()
	if err := t.failure(r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the repository is too slow: it lacks objects after %v; the next run goes on", patience))
	defer cancel()
	needed := t.manifest.objects()
	if err := t.complete(ctx, r, needed); err != nil {
		return err
	}
	if err := r.putLocked(ctx, manifestPrefix+t.manifest.ID, manifest, t.until); err != nil {
		return err
	}
	if faults := b.sample(ctx, t.key, r, t.manifest); len(faults) > 0 {
		return fmt.Errorf("what was stored does not read back: %w", errors.Join(faults...))
	}
	return nil
}

// complete copies the objects that a repository lacks from another one.
func (t *taking) complete(ctx context.Context, r *Repository, needed map[string]int64) error {
	var wait sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for name, size := range needed {
		if r.holds(name, size) {
			continue
		}
		select {
		case r.gate <- struct{}{}:
		case <-ctx.Done():
			wait.Wait()
			return context.Cause(ctx)
		}
		wait.Go(func() {
			defer func() { <-r.gate }()
			_, stored, err := fetchObject(ctx, t.key, t.repositories, name)
			if err == nil {
				err = r.putObject(ctx, name, stored, t.until)
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}
