package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ActionRestore is recorded where the restore was asked for, and in what was restored.
const ActionRestore = "backup.snapshot.restore"

// Restored says what a restore made.
type Restored struct {
	Snapshot     string            `json:"snapshot"`
	Taken        time.Time         `json:"taken"`      // how the data stood
	KeysTaken    time.Time         `json:"keys_taken"` // how the keys stood: the newest there are
	Installation string            `json:"installation"`
	Environment  string            `json:"environment"`
	TreeSize     int64             `json:"tree_size"`
	TreeRoot     string            `json:"tree_root"`
	Tables       int               `json:"tables"`
	Rows         int64             `json:"rows"`
	Bytes        int64             `json:"bytes"`
	Took         time.Duration     `json:"took_ns"`
	Files        map[string][]byte `json:"-"` // settings and policies, as they were
	// Passed are newer snapshots that could not be taken, when the newest was asked for: their manifests do not open,
	// or there are no keys as new as they are.
	Passed []string `json:"passed,omitempty"`
}

// Plan is a restore that was looked up and not begun.
type Plan struct {
	Restored
	KEKs    []byte // sealed to the holders of the recovery keys; nil when there were none
	sources []*source
}

// Engine is the kind of database that was copied.
func (p *Plan) Engine() string { return p.sources[0].manifest.Engine }

func newPlan(parts []*source) *Plan {
	data, keys := parts[0].manifest, parts[1].manifest
	return &Plan{sources: parts, KEKs: keys.KEKs, Restored: Restored{
		Snapshot: data.ID, Taken: data.Taken, KeysTaken: keys.Taken, Installation: data.Installation, Environment: data.Environment,
		TreeSize: data.TreeSize, TreeRoot: data.TreeRoot, Tables: len(data.Tables) + len(keys.Tables), Rows: data.Rows + keys.Rows,
		Bytes: data.Bytes + keys.Bytes, Files: data.Files, Passed: parts[0].passed,
	}}
}

// Plan looks up a snapshot to restore, "" for the newest, and records who asked.
func (b *Backup) Plan(ctx context.Context, by actor.Actor, id string) (*Plan, error) {
	e := audit.Event{Action: ActionRestore, Resource: "snapshot " + id}
	if by.Kind != actor.System {
		return nil, b.o.Trail.Deny(ctx, by, e, errForbidden)
	}
	if len(b.o.Repositories) == 0 {
		return nil, errNotConfigured
	}
	var p *Plan
	parts, err := b.current(ctx, by, id)
	if err == nil {
		p = newPlan(parts)
		e.Resource = "snapshot " + p.Snapshot
	}
	refused := problem.Of(err)
	if err != nil && refused == nil {
		return nil, err
	}
	if refused != nil {
		return nil, b.o.Trail.Deny(ctx, by, e, refused)
	}
	return p, b.o.Trail.Do(ctx, by, e, func(*db.Tx, *audit.Event) error { return nil })
}

// Restore makes the database that o describes. What was cut off is restored on when it is asked for again.
func (p *Plan) Restore(ctx context.Context, o db.Options, into Into) (Restored, error) {
	began := time.Now()
	// The sources are shared by whoever restores the plan; Only cuts them.
	parts := append([]*source(nil), p.sources...)
	err := restoreInto(ctx, o, parts, into)
	p.Took = time.Since(began)
	return p.Restored, err
}

// ErrSigner means that a manifest is signed by none of the keys that it must be signed by.
var ErrSigner = errors.New("it is not signed by a key that was named")

// Signed returns the key, as its name and its hash, that is among the verifiers and signed the manifest of the
// data; that of the keys must be signed by one of them too. It fails with ErrSigner.
func (p *Plan) Signed(by note.Verifiers) (key string, err error) {
	for i, s := range p.sources {
		signer, err := s.manifest.signedBy(by)
		if err != nil {
			return "", fmt.Errorf("the manifest of the %s, %s: %w, but by %s", s.manifest.Part, s.manifest.ID, ErrSigner, s.manifest.signers())
		}
		if i == 0 {
			key = signer
		}
	}
	return key, nil
}

// PlanRecovery looks up a snapshot, "" for the newest, on a machine that has nothing but the repositories
// and a recovery key. Without the installation's keys the manifests' signatures are not checked yet: that they
// were encrypted under the repositories' keys says that somebody who has those made them. Whoever knows the
// public key asks Plan.Signed before anything is restored, and everybody does with the keys that were restored.
func PlanRecovery(ctx context.Context, repositories []*Repository, identities []age.Identity, id string) (*Plan, error) {
	both := make(map[Part]*source)
	for _, part := range []Part{Data, Keys} {
		s := &source{}
		var failed error
		for _, r := range repositories {
			text, err := r.get(ctx, headerKey)
			h := new(header)
			if err == nil {
				err = json.Unmarshal(text, h)
			}
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("backup repository %s: %w", r.Name, err))
				continue
			}
			if h.Part != part || h.Format != formatVersion {
				continue
			}
			r.Part = part
			if s.key == nil {
				master, err := openWithRecovery(ctx, h.Recovery, identities)
				if err != nil {
					failed = errors.Join(failed, fmt.Errorf("backup repository %s: %w", r.Name, err))
					continue
				}
				s.key, err = newVaultKey(master, h.Environment+"/"+h.Installation, part)
				clear(master)
				if err != nil {
					return nil, err
				}
			}
			s.repositories = append(s.repositories, r)
		}
		if s.key == nil {
			if part == Keys && failed == nil {
				failed = errNoKeys
			}
			if failed == nil {
				failed = errNothing
			}
			return nil, failed
		}
		both[part] = s
	}
	parts, err := choose(ctx, &Backup{}, both[Data], both[Keys], id, nil)
	if err != nil {
		return nil, err
	}
	if a, b := parts[0].manifest, parts[1].manifest; a.Installation != b.Installation || a.Environment != b.Environment {
		return nil, errors.New("the repositories for the data and for the keys belong to different installations")
	}
	return newPlan(parts), nil
}
