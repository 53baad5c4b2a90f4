package backup

import (
	"context"
	"errors"
	"slices"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// Listing is what there is.
type Listing struct {
	Snapshots    []Snapshot `json:"snapshots"` // the newest first
	Next         Estimate   `json:"next"`
	Unreachable  []string   `json:"unreachable,omitempty"` // repositories, and why
	LastDrill    *Drill     `json:"last_drill,omitempty"`
	Recoverable  bool       `json:"recoverable"` // recovery recipients are named
	Repositories int        `json:"repositories"`
}

// List returns the snapshots that the repositories hold, whoever took them, and what comes next.
func (b *Backup) List(ctx context.Context, by actor.Actor) (Listing, error) {
	l := Listing{Recoverable: len(b.o.Recovery) > 0, Repositories: len(b.o.Repositories)}
	e := audit.Event{Action: ActionList, Resource: "snapshots"}
	if by.Kind != actor.System {
		return l, b.o.Trail.Deny(ctx, by, e, errForbidden)
	}
	if len(b.o.Repositories) == 0 {
		return l, errNotConfigured
	}
	var known []run
	err := b.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) (err error) {
		if known, err = selectRuns(ctx, tx, 1<<20); err != nil {
			return err
		}
		l.LastDrill, err = selectDrill(ctx, tx, b.o.Clock.Now())
		return err
	})
	if err != nil {
		return l, err
	}
	byID := make(map[string]run, len(known))
	for _, r := range known {
		byID[r.id] = r
	}
	key, reached, lost, err := b.key(ctx, Data, false)
	for r, err := range lost {
		l.Unreachable = append(l.Unreachable, r.Name+": "+err.Error())
	}
	for _, u := range b.o.Unopened {
		l.Unreachable = append(l.Unreachable, u.Err.Error())
	}
	slices.Sort(l.Unreachable)
	if problem.Is(err, "backup-not-found") {
		l.Next = b.o.Schedule.estimate(nil, b.o.Clock.Now())
		return l, nil
	}
	if err != nil {
		return l, err
	}
	ids, holders, err := b.manifests(ctx, reached)
	if err != nil {
		return l, err
	}
	for _, id := range slices.Backward(ids) {
		s, err := b.describe(ctx, key, byID[id], id, holders[id])
		if err != nil {
			l.Unreachable = append(l.Unreachable, err.Error())
			continue
		}
		l.Snapshots = append(l.Snapshots, s)
	}
	l.Next = b.o.Schedule.estimate(slices.DeleteFunc(known, func(r run) bool { return r.class == classKeys }), b.o.Clock.Now())
	return l, nil
}

// errNotConfigured means that there is nowhere to copy to.
var errNotConfigured = problem.New(problem.Unprocessable, "backup-not-configured",
	"No repositories are named. Name two for the data and two for the keys in backup.repositories; docs/backup.md shows how.")

// describe takes what is known of a snapshot from the history, or from its manifest when the history does not have it.
func (b *Backup) describe(ctx context.Context, key *vaultKey, r run, id string, holders []*Repository) (Snapshot, error) {
	if r.id != "" {
		s := Snapshot{
			ID: id, Class: r.class, Taken: clock.FromMicros(r.figures.Taken), Took: time.Duration(r.ended-r.started) * time.Microsecond,
			Rows: r.figures.Rows, Bytes: r.figures.Bytes, NewBytes: r.figures.NewBytes, TreeSize: r.figures.TreeSize, Kept: r.outcome == "kept",
		}
		for _, c := range r.figures.Copies {
			// What a repository has lost since, it has not.
			if c.Part == Data && c.Error == "" && !slices.ContainsFunc(holders, func(h *Repository) bool { return h.Name == c.Repository }) {
				c.Error, s.Kept = "it is not there any more, or cannot be reached", false
			}
			s.Copies = append(s.Copies, c)
		}
		return s, nil
	}
	m, err := readManifest(ctx, key, holders, id, b.o.Keys.EvidenceVerifiers())
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{ID: id, Class: m.Retention, Taken: m.Taken, Rows: m.Rows, Bytes: m.Bytes, NewBytes: m.NewBytes, TreeSize: m.TreeSize}
	media := make(map[string]bool)
	for _, h := range holders {
		s.Copies = append(s.Copies, Copy{Repository: h.Name, Part: Data, Medium: h.Medium, Region: h.Region})
		media[h.Medium] = true
	}
	s.Kept = len(media) >= b.o.Media
	return s, nil
}

// Shown is one snapshot in full.
type Shown struct {
	Snapshot
	Installation string              `json:"installation"`
	Environment  string              `json:"environment"`
	Engine       string              `json:"engine"`
	Schema       int64               `json:"schema"`
	Program      string              `json:"program"`
	TreeRoot     string              `json:"tree_root"`
	Label        string              `json:"label,omitempty"`
	Jurisdiction string              `json:"jurisdiction,omitempty"`
	Tables       []ShownTable        `json:"tables"`
	Needs        map[string][]uint32 `json:"needs"`
	KeysTaken    time.Time           `json:"keys_taken"` // of the newest copy of the keys, which a restore takes
}

// ShownTable is a table of a snapshot.
type ShownTable struct {
	Name string `json:"name"`
	Rows int64  `json:"rows"`
	Hash string `json:"sha256"`
}

// Show describes a snapshot; "" is the newest.
func (b *Backup) Show(ctx context.Context, by actor.Actor, id string) (Shown, error) {
	list, err := b.List(ctx, by)
	if err != nil {
		return Shown{}, err
	}
	i := 0
	if id != "" {
		i = slices.IndexFunc(list.Snapshots, func(s Snapshot) bool { return s.ID == id })
	}
	if i < 0 || i >= len(list.Snapshots) {
		return Shown{}, errNothing
	}
	parts, err := b.sources(ctx, list.Snapshots[i].ID)
	if err != nil {
		return Shown{}, err
	}
	m := parts[0].manifest
	out := Shown{Snapshot: list.Snapshots[i], Installation: m.Installation, Environment: m.Environment, Engine: m.Engine, Schema: m.Schema,
		Program: m.Program, TreeRoot: m.TreeRoot, Label: m.Label, Jurisdiction: m.Jurisdiction, Needs: m.Needs, KeysTaken: parts[1].manifest.Taken}
	for _, t := range m.Tables {
		out.Tables = append(out.Tables, ShownTable{t.Name, t.Rows, t.Hash})
	}
	return out, nil
}

// errNoKeys means that the keys part of a backup cannot be had.
var errNoKeys = errors.New("there is no copy of the keys in these repositories: name those for the keys too")
