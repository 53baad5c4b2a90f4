package backup

import (
	"context"
	_ "embed"
	"strings"
	"text/template"
	"time"

	"strongroom/internal/actor"
)

// Facts are what a runbook says of an installation besides its backups.
type Facts struct {
	Data   string // folder
	Engine string // of the database
	Root   string // where the root key is
	// Signers are the verifier keys (C2SP signed-note) of the manifests, the oldest first.
	Signers []string
}

// noneCounts is what the guide says when there is nothing to restore.
const noneCounts = "NONE COUNTS"

//go:embed runbook.txt
var runbookText string

var runbook = template.Must(template.New("runbook").Funcs(template.FuncMap{
	"day":   func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"about": func(d time.Duration) string { return d.Round(time.Millisecond * 100).String() },
}).Parse(runbookText))

// Runbook returns the guide to recovery, filled in with the names, the places and the last measured times
// of this installation. It holds no secret: print it, and keep it where no computer is needed to read it.
func (b *Backup) Runbook(ctx context.Context, by actor.Actor, facts Facts) (string, error) {
	list, err := b.List(ctx, by)
	if err != nil {
		return "", err
	}
	view := struct {
		Facts
		Environment, Installation, Program string
		Printed                            time.Time
		Repositories                       []RepositoryOptions
		Newest                             *Snapshot
		Drill                              *Drill
		Recoverable                        bool
		Media                              int
	}{
		Facts: facts, Environment: b.o.DB.Environment(), Installation: b.o.DB.Installation(), Program: b.o.Program, Printed: b.o.Clock.Now(),
		Drill: list.LastDrill, Recoverable: list.Recoverable, Media: b.o.Media,
	}
	for _, part := range []Part{Data, Keys} {
		for _, r := range b.of(part) {
			view.Repositories = append(view.Repositories, r.RepositoryOptions)
		}
	}
	for i, s := range list.Snapshots {
		if s.Kept {
			view.Newest = &list.Snapshots[i]
			break
		}
	}
	var out strings.Builder
	err = runbook.Execute(&out, view)
	return out.String(), err
}
