package audit_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// An excerpt goes from the last checkpoint before a time to the first that covers an event, day by day, and stays the
// same while the log grows and is archived; each event in it is proven against its end.
func TestExcerpt(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newArchiveHouse(t, d)
		known := verifiers(t, h.logKey())
		h.fill(600)
		h.sequence()
		for n := range time.Duration(2) {
			h.clock.by = (n + 1) * day
			h.record(3)
			h.sequence()
		}
		cited := []string{h.eventAt(0), h.eventAt(100), h.eventAt(511), h.eventAt(605)}
		last, err := h.trail.Last(t.Context(), cited)
		if err != nil || last != 605 {
			t.Fatalf("%d, %v", last, err)
		}
		from := h.clock.Now().Add(-day / 2)
		chain := func(from time.Time) ([]audit.Link, tlog.Tree) {
			t.Helper()
			links, end, err := h.trail.Chain(t.Context(), from, last)
			if err != nil {
				t.Fatal(err)
			}
			var before tlog.Tree
			for i, link := range links {
				tree, err := audit.OpenCheckpoint(link.Checkpoint, known)
				if err != nil {
					t.Fatal(err)
				}
				if i > 0 && tlog.CheckTree(link.Consistency, tree.N, tree.Hash, before.N, before.Hash) != nil {
					t.Errorf("link %d of %d events does not continue that of %d", i, tree.N, before.N)
				}
				before = tree
			}
			if before != end || end.N <= last {
				t.Errorf("the chain ends with %d events", end.N)
			}
			return links, end
		}
		all, end := chain(time.Time{})
		since, _ := chain(from)
		if len(all) < 3 || len(since) < 2 || len(since) > len(all) || !since[0].Time.Before(from) || !since[1].Time.After(from) {
			t.Errorf("%d links in all and %d since %s", len(all), len(since), from)
		}

		h.clock.by = 13*day + time.Hour
		h.record(1)
		h.mustRun()
		if n := h.count(`SELECT COALESCE(min(idx), -1) FROM event_leaf`); n != 512 {
			t.Fatalf("the database begins at index %d", n)
		}
		if again, _ := chain(time.Time{}); !reflect.DeepEqual(again, all) {
			t.Error("the chain is another one after the log has grown")
		}
		proofs, err := h.trail.Cite(t.Context(), end.N, cited)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range proofs {
			if said, err := p.Check(known); err != nil || said.ID != cited[i] || p.Checkpoint != all[len(all)-1].Checkpoint {
				t.Errorf("event %d: %+v, %v", i, said, err)
			}
			if err := p.NameKey([]string{h.logKey()}); err != nil || p.Key != h.logKey() {
				t.Errorf("the key %q, %v", p.Key, err)
			}
		}

		if _, err := h.trail.Cite(t.Context(), end.N, []string{cited[0], "evt_none"}); !problem.Is(err, "event-not-found") {
			t.Errorf("an event that is not there: %v", err)
		}
		newest := h.eventAt(h.count(`SELECT max(idx) FROM event_leaf`))
		if _, err := h.trail.Cite(t.Context(), end.N, []string{newest}); !errors.Is(err, audit.ErrNotPlaced) {
			t.Errorf("an event that the checkpoint does not cover: %v", err)
		}
		if _, _, err := h.trail.Chain(t.Context(), from, 1<<40); !errors.Is(err, audit.ErrNotPlaced) {
			t.Errorf("a place that the log does not have: %v", err)
		}

		// The first checkpoint that a witness has cosigned is preferred.
		size := h.count(`SELECT max(size) FROM log_checkpoint`)
		line := "— witness.example AAAAAAAAAAAA\n"
		h.exec(`INSERT INTO log_cosignature (size, witness, line, made_at) VALUES ($1, $2, $3, $4)`, size, "witness.example", line, 1)
		links, witnessed, err := h.trail.Chain(t.Context(), from, last)
		if err != nil || witnessed.N != size {
			t.Fatalf("the chain ends with %d events, and %d are cosigned: %v", witnessed.N, size, err)
		}
		n, err := note.Open([]byte(links[len(links)-1].Checkpoint), known)
		if err != nil || len(n.UnverifiedSigs) != 1 {
			t.Errorf("%+v, %v", n, err)
		}

		h.exec(`UPDATE log_checkpoint SET root = 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=' WHERE size = $1`, size)
		if _, _, err := h.trail.Chain(t.Context(), from, last); err == nil {
			t.Error("an altered checkpoint is in the chain")
		}
		if _, err := h.trail.Cite(t.Context(), size, cited); err == nil {
			t.Error("an event is proven against an altered checkpoint")
		}
	})
}
