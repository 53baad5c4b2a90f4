package assurance

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/assurance/bundle"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

func (h *house) export(t *testing.T, p Period) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := h.Export(t.Context(), operator, p, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (h *house) verify(t *testing.T, b []byte) bundle.Report {
	t.Helper()
	keys, err := h.o.Keys.EvidenceKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := bundle.Verify(t.Context(), bytes.NewReader(b), int64(len(b)), bundle.Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (h *house) statement(t *testing.T, query string, args ...any) {
	t.Helper()
	if err := h.o.DB.Update(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), query, args...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func member(t *testing.T, b []byte, name string) string {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	f, err := z.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A bundle has every run and every change of its period and what stood at its beginning, verifies with the public
// key alone, is the same each time, and leaves an event.
func TestExport(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		checks := int64(len(h.outcomes))
		run := func() {
			t.Helper()
			if _, err := h.Run(t.Context(), operator, nil); err != nil {
				t.Fatal(err)
			}
			h.clock.Advance(time.Minute)
		}
		empty := h.verify(t, h.export(t, Period{}))
		if empty.Checks != 0 || empty.Changes != 0 || empty.Claims["green"] != 0 {
			t.Errorf("before anything happened: %+v", empty)
		}
		run()
		h.outcomes["vault-canary-opens"] = check.Fails
		run()
		middle := h.clock.Now()
		h.outcomes["vault-canary-opens"] = check.Holds
		run()
		p := Period{To: h.clock.Now()}
		b := h.export(t, p)
		r := h.verify(t, b)
		if r.Runs["holds"] != 3*checks-1 || r.Runs["fails"] != 1 || r.Changes != int64(len(h.claims))+2 || r.Unlinked != 0 || r.Claims["green"] != 1 || r.Program != "strongroom test" {
			t.Errorf("%+v", r)
		}
		for _, never := range []string{"cli:test", "203.0.113"} {
			if strings.Contains(member(t, b, "history.jsonl"), never) {
				t.Errorf("the bundle says %q", never)
			}
		}
		if second := h.export(t, p); !bytes.Equal(second, b) {
			t.Error("the same period gave other bytes")
		}
		h.outcomes["vault-canary-opens"] = check.Unknown
		run()
		if third := h.export(t, p); !bytes.Equal(third, b) {
			t.Error("a period that is over gave other bytes after more has happened")
		}
		since := h.verify(t, h.export(t, Period{From: middle, To: p.To}))
		// The newest run of each check and state of each claim before, and what came then.
		if since.Runs["holds"] != 2*checks-1 || since.Runs["fails"] != 1 || since.Changes != int64(len(h.claims))+1 || since.Claims["green"] != 1 {
			t.Errorf("since the middle: %+v", since)
		}
		if none := h.verify(t, h.export(t, Period{From: h.clock.Now().Add(-time.Second)})); none.Runs["holds"] != checks-1 || none.Runs["unknown"] != 1 || none.Claims["amber"] == 0 {
			t.Errorf("in a second in which nothing happened: %+v", none)
		}
		entries, err := h.trail.Tail(t.Context(), operator, "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		for _, e := range entries {
			switch e.Action {
			case ActionExport:
				asked++
				if e.Outcome != audit.Granted || e.Actor.ID != operator.ID || !strings.HasPrefix(e.Resource, "evidence from ") {
					t.Errorf("%+v", e)
				}
			case ActionCheck, ActionState:
				if e.Actor.ID != "job:"+JobName {
					t.Errorf("what is shown to everybody names %s", e.Actor.ID)
				}
			}
		}
		if asked != 6 {
			t.Errorf("%d exports left an event", asked)
		}
	})
}

// What somebody has written into the database does not get into a bundle, or makes one that does not verify.
func TestExportOfWhatWasAltered(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d)
	h.outcomes["vault-canary-opens"] = check.Fails
	if _, err := h.Run(t.Context(), operator, nil); err != nil {
		t.Fatal(err)
	}
	h.clock.Advance(time.Minute)
	const forge = `UPDATE evidence SET body = '{"outcome":"holds","detail":"seen","exercised":"looked"}', outcome = 'holds' WHERE check_id = 'vault-canary-opens'`
	const mend = `UPDATE evidence SET body = '{"outcome":"fails","detail":"seen","exercised":"looked"}', outcome = 'fails' WHERE check_id = 'vault-canary-opens'`
	h.statement(t, forge)
	err := h.Export(t.Context(), operator, Period{}, io.Discard)
	if !problem.Is(err, "evidence-altered") {
		t.Errorf("forged evidence: %v", err)
	}
	h.statement(t, mend)
	h.verify(t, h.export(t, Period{}))
	h.statement(t, `UPDATE claim_state SET state = 'green' WHERE claim_id = 'ENC-1'`)
	b := h.export(t, Period{})
	_, err = bundle.Verify(t.Context(), bytes.NewReader(b), int64(len(b)), bundle.Options{})
	if !errors.Is(err, bundle.ErrBundle) || !strings.Contains(err.Error(), "history.jsonl") {
		t.Errorf("a forged change of state: %v", err)
	}
	// Changes from before they named their events are in it, and are counted.
	h.statement(t, `UPDATE claim_state SET event_id = '' WHERE claim_id = 'ENC-1'`)
	if r := h.verify(t, h.export(t, Period{})); r.Unlinked != 1 {
		t.Errorf("%+v", r)
	}
	// An event that somebody planted waits for ever, and nothing waits for it.
	h.statement(t, `INSERT INTO event_pending (event_id) VALUES ('evt_06gzyff7mn176a0r354wph42gc')`)
	h.verify(t, h.export(t, Period{}))
	entries, err := h.trail.Tail(t.Context(), operator, "", 1000)
	if err != nil || !slices.ContainsFunc(entries, func(e audit.Entry) bool {
		return e.Action == ActionExport && e.Outcome == audit.Denied && e.Reason == "evidence-altered"
	}) {
		t.Errorf("the export that was cut short left no event: %v", err)
	}
}

func TestExportRefusals(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d)
	now := h.clock.Now()
	for _, row := range []struct {
		by   actor.Actor
		p    Period
		want string
	}{
		{actor.Actor{Kind: actor.Customer, ID: "cus_x"}, Period{}, "evidence-forbidden"},
		{actor.Actor{}, Period{}, "evidence-forbidden"},
		{operator, Period{From: now, To: now}, "invalid-period"},
		{operator, Period{To: now.Add(time.Hour)}, "invalid-period"},
		{operator, Period{To: time.Date(1979, 1, 1, 0, 0, 0, 0, time.UTC)}, "invalid-period"},
	} {
		var out bytes.Buffer
		if err := h.Export(t.Context(), row.by, row.p, &out); !problem.Is(err, row.want) || out.Len() > 0 {
			t.Errorf("%+v: %v, %d bytes", row, err, out.Len())
		}
	}
	h.o.Keys = nil
	if err := h.Export(t.Context(), operator, Period{}, io.Discard); !problem.Is(err, "evidence-unsigned") {
		t.Errorf("without keys: %v", err)
	}
}

func TestHistory(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		for _, o := range []check.Outcome{check.Holds, check.Holds, check.Fails, check.Unknown, check.Holds} {
			h.outcomes["vault-canary-opens"] = o
			if _, err := h.Run(t.Context(), operator, nil); err != nil {
				t.Fatal(err)
			}
			h.clock.Advance(time.Minute)
		}
		history, err := h.History(t.Context(), operator, "ENC-1", 10)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := h.trail.Tail(t.Context(), operator, "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		var states []State
		for _, c := range history {
			states = append(states, c.State)
			if !slices.ContainsFunc(entries, func(e audit.Entry) bool {
				return e.ID == c.Event && e.Action == ActionState && e.Resource == "claim ENC-1 "+string(c.State)
			}) {
				t.Errorf("%+v is no event of the trail", c)
			}
		}
		if !slices.Equal(states, []State{Green, Amber, Red, Green}) {
			t.Errorf("ENC-1 was %v", states)
		}
		all, err := h.History(t.Context(), operator, "", 1000)
		if err != nil || len(all) != len(h.claims)+3 {
			t.Errorf("%d changes in all, %v", len(all), err)
		}
		for _, row := range []struct {
			by    actor.Actor
			claim string
			limit int
			want  string
		}{
			{actor.Actor{Kind: actor.Service, ID: "x"}, "ENC-1", 10, "claims-forbidden"},
			{operator, "NO-1", 10, "claim-not-found"}, {operator, "", 0, "invalid-limit"}, {operator, "", 1001, "invalid-limit"},
		} {
			if _, err := h.History(t.Context(), row.by, row.claim, row.limit); !problem.Is(err, row.want) {
				t.Errorf("%+v: %v", row, err)
			}
		}
	})
}

// A server that dies after a state was written and before the finding was raised leaves it to the next one.
func TestFindingsAreSaidAgain(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d)
	h.outcomes["vault-canary-opens"] = check.Fails
	if _, err := h.Run(t.Context(), operator, nil); err != nil {
		t.Fatal(err)
	}
	h.findings, h.told = nil, false // what another process has not seen
	if err := h.due(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(h.findings, "assurance.claim-fails ENC-1") {
		t.Errorf("findings: %q", h.findings)
	}
}
