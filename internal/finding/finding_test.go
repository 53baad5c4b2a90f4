package finding_test

import (
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/finding"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
)

var operator = actor.OfSystem("cli:test")

type house struct {
	clock    *clock.Manual
	trail    *audit.Trail
	findings *finding.Register
}

func newHouse(t *testing.T, d *db.DB) house {
	h := house{clock: clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))}
	h.trail = audit.New(d, keyringtest.Open(t, d), audit.Options{Clock: h.clock})
	h.findings = finding.New(finding.Options{DB: d, Trail: h.trail, Clock: h.clock})
	return h
}

// changes returns the openings and clearings that the trail holds, oldest first.
func (h house) changes(t *testing.T) (all []string) {
	t.Helper()
	entries, err := h.trail.Tail(t.Context(), operator, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if verb, ok := strings.CutPrefix(e.Action, "finding.finding."); ok {
			all = append(all, verb+" "+e.Resource)
		}
	}
	return all
}

func (h house) list(t *testing.T, all bool) []finding.Finding {
	t.Helper()
	list, err := h.findings.List(t.Context(), operator, all)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestLife(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		raise := func(subject, detail string) {
			t.Helper()
			if err := h.findings.Raise(t.Context(), "audit.sink-lag", subject, detail); err != nil {
				t.Fatal(err)
			}
		}
		clearIt := func(subject string) {
			t.Helper()
			if err := h.findings.Clear(t.Context(), "audit.sink-lag", subject); err != nil {
				t.Fatal(err)
			}
		}
		clearIt("siem") // what is not open needs no clearing
		raise("siem", "behind by 10 s")
		raise("siem", "behind by 10 s") // within the minute: not even written
		raise("archive", "behind by 3 s")
		if got := h.list(t, false); len(got) != 2 || got[1].Subject != "siem" || got[1].Times != 1 {
			t.Errorf("open: %+v", got)
		}
		h.clock.Advance(2 * time.Minute)
		raise("siem", "behind by 10 s")
		raise("siem", "behind by 130 s") // another detail is written at once
		clearIt("archive")
		got := h.list(t, false)
		if len(got) != 1 || got[0].Times != 3 || got[0].Detail != "behind by 130 s" || got[0].Seen.Sub(got[0].Opened) != 2*time.Minute {
			t.Errorf("open: %+v", got)
		}
		if got := h.list(t, true); len(got) != 2 || got[0].Cleared == nil && got[1].Cleared == nil {
			t.Errorf("all: %+v", got)
		}
		raise("archive", "behind again")
		if got := h.list(t, false); len(got) != 2 || got[0].Subject != "archive" || got[0].Times != 1 || got[0].Cleared != nil {
			t.Errorf("opened anew: %+v", got)
		}
		want := "open audit.sink-lag siem, open audit.sink-lag archive, clear audit.sink-lag archive, open audit.sink-lag archive"
		if got := strings.Join(h.changes(t), ", "); got != want {
			t.Errorf("events: %s\nwant:   %s", got, want)
		}
	})
}

// However many replicas notice the same thing at once, it opens once.
func TestConcurrentRaise(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		other := finding.New(finding.Options{DB: d, Trail: h.trail, Clock: h.clock})
		var wait sync.WaitGroup
		for i := range 16 {
			wait.Go(func() {
				register := h.findings
				if i%2 == 1 {
					register = other
				}
				if err := register.Raise(t.Context(), "keyring.root-unavailable", "", "no answer"); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if got := h.changes(t); len(got) != 1 {
			t.Errorf("opened %d times: %v", len(got), got)
		}
	})
}

func TestRefusals(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		for _, kind := range []string{"", "nothing", "Audit.Lag", "audit.", "audit.lag now", strings.Repeat("a", 90) + ".b"} {
			if h.findings.Raise(t.Context(), kind, "", "x") == nil || h.findings.Clear(t.Context(), kind, "") == nil {
				t.Errorf("the kind %q was taken", kind)
			}
		}
		long := strings.Repeat("é", 2000)
		if err := h.findings.Raise(t.Context(), "audit.sink-lag", "", "x"+long); err != nil {
			t.Fatal(err)
		}
		if got := h.list(t, false); len(got) != 1 || len(got[0].Detail) > 1024 || !utf8.ValidString(got[0].Detail) {
			t.Errorf("a long detail: %d bytes", len(got[0].Detail))
		}
		_, err := h.findings.List(t.Context(), actor.Actor{Kind: actor.Customer, ID: "cus_x"}, true)
		if p := problem.Of(err); p == nil || p.Slug() != "findings-forbidden" {
			t.Errorf("a customer who asks: %v", err)
		}
	})
}
