package assurance

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
)

var operator = actor.OfSystem("cli:test")

// house is an assurance with the checks of one claim, ENC-1, whose outcomes the test sets.
type house struct {
	*Assurance
	clock    *clock.Manual
	trail    *audit.Trail
	outcomes map[string]check.Outcome
	findings []string
}

func (h *house) Raise(_ context.Context, kind, subject, _ string) error {
	h.findings = append(h.findings, kind+" "+subject)
	return nil
}

func (h *house) Clear(_ context.Context, kind, subject string) error {
	h.findings = slices.DeleteFunc(h.findings, func(f string) bool { return f == kind+" "+subject })
	return nil
}

func newHouse(t *testing.T, d *db.DB) *house {
	t.Helper()
	h := &house{clock: clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)),
		outcomes: map[string]check.Outcome{"storage-no-plaintext": check.Holds, "vault-canary-opens": check.Holds, "vault-records-open": check.Holds}}
	keys := keyringtest.Open(t, d)
	h.trail = audit.New(d, keys, audit.Options{Clock: h.clock})
	var checks []check.Check
	for id := range h.outcomes {
		checks = append(checks, check.Check{ID: id, Says: id + " is so.", Version: 1, Every: time.Hour, Valid: 2 * time.Hour,
			Run: func(context.Context) check.Observation {
				if h.outcomes[id] == "panic" {
					panic("the check is broken")
				}
				return check.Observation{Outcome: h.outcomes[id], Detail: "seen", Exercised: "looked"}
			},
			Sabotage: func(context.Context) check.Observation { return check.Failed("looked", "broken") },
		})
	}
	var err error
	h.Assurance, err = New(Options{DB: d, Trail: h.trail, Checks: checks, Rooms: []string{"vault", "edge", "deploy"}, Findings: h, Keys: keys, Program: "strongroom test", Clock: h.clock})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *house) state(t *testing.T, claim string) Status {
	t.Helper()
	all, err := h.Claims(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s Status) bool { return s.ID == claim })
	if i < 0 {
		t.Fatalf("there is no claim %s", claim)
	}
	return all[i]
}

func TestStates(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		run := func(names ...string) {
			t.Helper()
			if _, err := h.Run(t.Context(), operator, names); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(when string, want State) {
			t.Helper()
			if got := h.state(t, "ENC-1"); got.State != want {
				t.Errorf("%s: ENC-1 is %s (%s), not %s", when, got.State, got.Why, want)
			}
		}
		expect("before any check ran", Amber)
		if got := h.state(t, "KYC-1").State; got != Grey {
			t.Errorf("a claim of a room that is not there is %s", got)
		}
		if got := h.state(t, "OPS-1").State; got != Amber {
			t.Errorf("a claim that nothing watches is %s", got)
		}
		run("storage-no-plaintext")
		expect("after one of the checks", Amber)
		run()
		expect("when all hold", Green)
		h.outcomes["vault-canary-opens"] = check.Fails
		run("vault-canary-opens")
		expect("when one fails", Red)
		if !slices.Contains(h.findings, "assurance.claim-fails ENC-1") {
			t.Errorf("findings: %q", h.findings)
		}
		h.outcomes["vault-canary-opens"] = check.Unknown
		run("vault-canary-opens")
		expect("when one is unknown", Amber)
		h.outcomes["vault-canary-opens"] = "panic"
		run("vault-canary-opens")
		expect("when a check breaks", Amber)
		h.outcomes["vault-canary-opens"] = check.Holds
		run()
		expect("when all hold again", Green)
		if len(h.findings) > 0 && slices.ContainsFunc(h.findings, func(f string) bool { return strings.HasSuffix(f, " ENC-1") }) {
			t.Errorf("findings stay: %q", h.findings)
		}
		h.clock.Advance(3 * time.Hour)
		expect("when the evidence has expired", Amber)
		if err := h.due(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect("after the job", Green)
	})
}

// Each run is an event with the digest of its evidence; each change of a state is one too.
func TestEvidenceIsInTheTrail(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		evidence, err := h.Run(t.Context(), operator, []string{"vault-canary-opens"})
		if err != nil {
			t.Fatal(err)
		}
		stored := h.state(t, "ENC-1")
		i := slices.IndexFunc(stored.Results, func(r Result) bool { return r.Evidence != nil })
		if i < 0 || Digest(*stored.Results[i].Evidence) != Digest(evidence[0]) {
			t.Errorf("what was stored is not what was seen: %+v", stored.Results)
		}
		entries, err := h.trail.Tail(t.Context(), operator, "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		var found, changes bool
		for _, e := range entries {
			found = found || e.ID == evidence[0].Event && e.Action == ActionCheck && strings.HasSuffix(e.Resource, Digest(evidence[0])) && e.Reason == "holds"
			changes = changes || e.Action == ActionState && e.Resource == "claim ENC-1 amber"
		}
		if !found || !changes {
			t.Errorf("events: check %v, state %v", found, changes)
		}
	})
}

// Evidence that somebody writes into the database, or changes there, makes nothing green.
func TestForgedEvidence(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.outcomes["vault-canary-opens"] = check.Fails
		if _, err := h.Run(t.Context(), operator, nil); err != nil {
			t.Fatal(err)
		}
		for _, statement := range []string{
			`UPDATE evidence SET body = '{"outcome":"holds","detail":"seen","exercised":"looked"}', outcome = 'holds' WHERE check_id = 'vault-canary-opens'`,
			`UPDATE evidence SET event_id = (SELECT MAX(event_id) FROM evidence WHERE check_id = 'storage-no-plaintext') WHERE check_id = 'vault-canary-opens'`,
			`UPDATE evidence SET valid_until = valid_until + 1000000`,
		} {
			if err := d.Update(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), statement)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if s := h.state(t, "ENC-1"); s.State != Amber || !strings.Contains(s.Why, "not what the trail says") {
				t.Errorf("after %s: ENC-1 is %s (%s)", statement, s.State, s.Why)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d)
	customer := actor.Actor{Kind: actor.Customer, ID: "cus_x"}
	_, err := h.Run(t.Context(), customer, nil)
	if p := problem.Of(err); p == nil || p.Slug() != "checks-forbidden" {
		t.Errorf("a customer runs checks: %v", err)
	}
	_, err = h.Claims(t.Context(), customer)
	if p := problem.Of(err); p == nil || p.Slug() != "claims-forbidden" {
		t.Errorf("a customer reads evidence: %v", err)
	}
	_, err = h.Run(t.Context(), operator, []string{"nothing"})
	if p := problem.Of(err); p == nil || p.Slug() != "check-not-found" {
		t.Errorf("a check that is not there: %v", err)
	}
	whole := h.o.Checks[0]
	for _, broken := range []check.Check{{}, {ID: "x", Run: whole.Run, Every: 1, Valid: 1}, {ID: "x", Run: whole.Run, Sabotage: whole.Sabotage, Every: 2, Valid: 1}} {
		if _, err := New(Options{DB: d, Trail: h.trail, Checks: []check.Check{broken}}); err == nil {
			t.Errorf("%+v was taken", broken)
		}
	}
}

func TestPage(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d)
	page, err := h.NewPage(PageOptions{Name: "Ada <Bank>", Contact: "mailto:security@ada.example", Detail: map[string]Detail{"ENC-2": ShowNothing, "ENC-1": ShowFigures}})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	page.Register(mux)
	get := func(path, tag string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("If-None-Match", tag)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w
	}
	if w := get("/trust", ""); w.Code != http.StatusServiceUnavailable {
		t.Errorf("before it is made: %d", w.Code)
	}
	if _, err := h.Run(t.Context(), operator, nil); err != nil {
		t.Fatal(err)
	}
	if err := page.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := get("/trust", "")
	for _, want := range []string{"Ada &lt;Bank&gt;", "Customers&#39; data are encrypted", "vault-canary-opens is so. seen", "Not part of this system", "mailto:security@ada.example"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, never := range []string{"<script", "style=", "evt_", "Ada <Bank>"} {
		if strings.Contains(w.Body.String(), never) {
			t.Errorf("the page says %q", never)
		}
	}
	if again := get("/trust", w.Header().Get("ETag")); again.Code != http.StatusNotModified || again.Body.Len() > 0 {
		t.Errorf("asked again: %d", again.Code)
	}
	if !page.Current(w.Body.Bytes()) || page.Current(bytes.Replace(w.Body.Bytes(), []byte("Holds"), []byte("HOLDS"), 1)) {
		t.Error("Current does not tell the page from another")
	}
	text := get("/.well-known/security.txt", "").Body.String()
	if !strings.Contains(text, "Contact: mailto:security@ada.example\n") || !strings.Contains(text, "Expires: 2026-07-02T00:00:00Z\n") {
		t.Errorf("security.txt: %q", text)
	}
	if feed := get("/trust/changes.json", "").Body.String(); !strings.Contains(feed, "ENC-1: Holds") || strings.Contains(feed, "ENC-2") {
		t.Errorf("the feed: %.300s", feed)
	}
}

// The page has the operator's looks, and takes no picture that could be more than one.
func TestLooks(t *testing.T) {
	for name, b := range map[string][]byte{
		"SVG": []byte(`<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>`), "HTML": []byte("<html></html>"), "nothing": nil,
		"large": append([]byte("\x89PNG\r\n\x1a\n"), make([]byte, MaxLogo)...),
	} {
		if _, err := NewLogo(b); err == nil {
			t.Errorf("%s was taken for a logo", name)
		}
	}
	logo, err := NewLogo([]byte("\x89PNG\r\n\x1a\n"))
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	page, err := h.NewPage(PageOptions{Name: "Ada Bank", Title: "Safe & sound", Concern: "Say so.", Logo: logo, Accent: "#0b3d91", AccentDark: "#9ec1ff",
		Origin: "https://app.ada.example/", Form: "<form></form>", FormPath: "/trust/report"})
	if err != nil {
		t.Fatal(err)
	}
	if err := page.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	page.Register(mux)
	framed, err := page.Frame("A <part>", "<p>of it</p>")
	if err != nil {
		t.Fatal(err)
	}
	for path, wants := range map[string][]string{
		"/trust":           {"<title>Safe &amp; sound · Ada Bank</title>", `<img src="data:image/png;base64,iVBORw0KGgo=" alt="" class="logo">`, "Say so.", "<form></form>"},
		"/trust/style.css": {"@media print, not all and (prefers-color-scheme: dark) { :root { --accent: #0b3d91; } }", "dark) { :root { --accent: #9ec1ff; } }"},
		"/.well-known/security.txt": {"Contact: https://app.ada.example/trust/report\nExpires: 2026-07-02T00:00:00Z\n",
			"Canonical: https://app.ada.example/.well-known/security.txt\n"},
		"": {"<h1>A &lt;part&gt;</h1>", "<p>of it</p>", "Ada Bank", `href="/trust"`},
	} {
		text := string(framed)
		if path != "" {
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			text = w.Body.String()
		}
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not say %q:\n%.2000s", path, want, text)
			}
		}
	}
}

// Every claim has its place on the page.
func TestSections(t *testing.T) {
	for claim, want := range map[string]string{"TLS-1": "Connections", "TRU-1": "How we keep at it", "NEW-1": "How we keep at it", "ENV-1": "Copies and continuity"} {
		if got := sectionOf(claim); got != want {
			t.Errorf("%s is shown under %q", claim, got)
		}
	}
}

// The page is served from memory: the baseline answers with as many bytes.
func BenchmarkPage(b *testing.B) {
	page := &Page{css: []byte("x")}
	body := []byte(strings.Repeat("x", 11_000))
	page.current.Store(&rendered{html: body, htmlTag: tag(body)})
	mux := http.NewServeMux()
	page.Register(mux)
	static := http.NewServeMux()
	static.HandleFunc("GET /trust", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	for name, handler := range map[string]http.Handler{"page": mux, "static": static} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/trust", nil))
			}
		})
	}
}

// Somebody who takes a red observation away, or dates it back, does not make the older, green one count, nor a bundle say
// so; a new run does.
func TestTakenAway(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		run := func(o check.Outcome) {
			t.Helper()
			h.clock.Advance(time.Minute)
			h.outcomes["vault-canary-opens"] = o
			if _, err := h.Run(t.Context(), operator, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := h.trail.Sequence(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := h.trail.IndexAll(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, statement := range []string{
			`DELETE FROM evidence WHERE outcome = 'fails'`,
			`UPDATE evidence SET observed_at = 1 WHERE outcome = 'fails' AND check_id = 'vault-canary-opens'`,
			`UPDATE evidence SET observed_at = observed_at - 90000000 WHERE outcome = 'fails' AND observed_at > 1`,
			`UPDATE evidence SET check_id = 'another' WHERE outcome = 'fails' AND observed_at = (SELECT MAX(observed_at) FROM evidence)`,
			`UPDATE evidence SET observed_at = observed_at + 90000000000000 WHERE outcome = 'fails' AND observed_at = (SELECT MAX(observed_at) FROM evidence)`,
		} {
			run(check.Holds)
			if s := h.state(t, "ENC-1"); s.State != Green {
				t.Errorf("after a new run ENC-1 is %s (%s)", s.State, s.Why)
			}
			run(check.Fails)
			if s := h.state(t, "ENC-1"); s.State != Red {
				t.Fatalf("ENC-1 is %s (%s)", s.State, s.Why)
			}
			h.clock.Advance(time.Second)
			h.statement(t, statement)
			if s := h.state(t, "ENC-1"); s.State != Amber || !strings.Contains(s.Why, "evidence is gone") {
				t.Errorf("after %s ENC-1 is %s (%s)", statement, s.State, s.Why)
			}
			if err := h.Export(t.Context(), operator, Period{}, io.Discard); !problem.Is(err, "evidence-altered") {
				t.Errorf("after %s a bundle is made: %v", statement, err)
			}
		}
	})
}

// A clock that was a year ahead for a moment leaves no flood of runs and changes behind, and nothing unproven.
func TestClockWasAhead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		due := func(want int, state State) {
			t.Helper()
			before := h.counts(t)
			if err := h.due(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := h.trail.Sequence(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := h.counts(t) - before; got != want {
				t.Errorf("%d rows were written, not %d", got, want)
			}
			if s := h.state(t, "ENC-1"); s.State != state {
				t.Errorf("ENC-1 is %s (%s), not %s", s.State, s.Why, state)
			}
		}
		const year = 365 * 24 * time.Hour
		due(len(h.checks)+len(h.claims), Green)
		h.clock.Advance(year)
		h.outcomes["vault-canary-opens"] = check.Fails
		due(len(h.checks)+1, Red)
		h.clock.Advance(time.Minute - year)
		if s := h.state(t, "ENC-1"); s.State != Amber || !strings.Contains(s.Why, "from the future") {
			t.Errorf("before a new run ENC-1 is %s (%s)", s.State, s.Why)
		}
		due(len(h.checks)+1, Red) // before the jump it was green
		h.clock.Advance(time.Minute)
		due(0, Red)
		h.clock.Advance(time.Hour)
		h.outcomes["vault-canary-opens"] = check.Holds
		due(len(h.checks)+1, Green)
		h.clock.Advance(time.Minute)
		due(0, Green)
	})
}

// A clock that is set while a check runs does not date what was seen to before it was recorded.
func TestClockIsSetMeanwhile(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	c := h.checks["vault-canary-opens"]
	look := c.Run
	c.Run = func(ctx context.Context) check.Observation {
		h.clock.Advance(24 * time.Hour)
		return look(ctx)
	}
	h.checks[c.ID] = c
	all, err := h.Run(t.Context(), operator, []string{c.ID})
	if err != nil || !all[0].ObservedAt.Equal(h.clock.Now()) || !all[0].ValidUntil.Equal(h.clock.Now().Add(c.Valid)) {
		t.Errorf("%+v: %v", all, err)
	}
	h.clock.Advance(time.Second)
	if r := h.verify(t, h.export(t, Period{})); r.Runs["holds"] != 1 {
		t.Errorf("%+v", r)
	}
}

// counts returns how many runs and changes are stored.
func (h *house) counts(t *testing.T) (n int) {
	t.Helper()
	if err := h.o.DB.View(t.Context(), func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), `SELECT (SELECT COUNT(*) FROM evidence WHERE version > $1) + (SELECT COUNT(*) FROM claim_state WHERE since > $1)`, 0).Scan(&n)
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// A check that says that it holds when its time is over has found out nothing; one that breaks tells nobody what it held.
func TestLateAndBroken(t *testing.T) {
	var log strings.Builder
	a := &Assurance{o: Options{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	synctest.Test(t, func(t *testing.T) {
		for _, late := range []check.Observation{check.Held("looked", "All is well."), check.Failed("looked", "The database did not answer.")} {
			if seen := a.observe(t.Context(), "x", func(context.Context) check.Observation {
				time.Sleep(longest + time.Second)
				return late
			}); seen.Outcome != check.Unknown {
				t.Errorf("after its time a check says %+v", seen)
			}
		}
	})
	seen := a.observe(t.Context(), "x", func(context.Context) check.Observation { panic("the name of a customer") })
	if text := seen.Detail + seen.Exercised + log.String(); seen.Outcome != check.Unknown || strings.Contains(text, "a customer") || !strings.Contains(log.String(), "assurance_test.go") {
		t.Errorf("%+v, and the log %s", seen, log.String())
	}
}

// A figure that is no number is nothing that was found out, and does not keep the other checks from running.
func TestFigureThatIsNone(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	c := h.checks["storage-no-plaintext"]
	c.Run = func(context.Context) check.Observation {
		return check.Held("looked", "seen").With("share", math.NaN())
	}
	h.checks[c.ID] = c
	if err := h.due(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range h.state(t, "ENC-1").Results {
		if want := map[bool]check.Outcome{true: check.Unknown, false: check.Holds}[r.Check == c.ID]; r.Evidence == nil || r.Evidence.Outcome != want {
			t.Errorf("%s: %+v", r.Check, r.Evidence)
		}
	}
}

// What the operator shows nothing of is not in the sum either.
func TestSumSaysNothingOfWhatIsHidden(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.outcomes["vault-canary-opens"] = check.Fails
	if _, err := h.Run(t.Context(), operator, nil); err != nil {
		t.Fatal(err)
	}
	for detail, want := range map[Detail]bool{ShowNothing: false, ShowState: true} {
		refresh, get := publicPage(t, h, PageOptions{Contact: "mailto:security@ada.example", Detail: map[string]Detail{"ENC-1": detail}})
		refresh()
		if page := get("/trust").Body.String(); strings.Contains(page, "not hold") != want {
			t.Errorf("with %s the page says %v that something does not hold", detail, !want)
		}
		if w := get("/.well-known/security.txt"); w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("security.txt with the name that the caller gave us may be kept: %v", w.Header())
		}
	}
}

// What a check could not find out is in the words of an error, which are not for everybody.
func TestErrorsAreNotForEverybody(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	c := h.checks["vault-canary-opens"]
	c.Run = func(context.Context) check.Observation {
		return check.Undecided("looked", "db.inside.example does not answer")
	}
	h.checks[c.ID] = c
	if _, err := h.Run(t.Context(), operator, nil); err != nil {
		t.Fatal(err)
	}
	refresh, get := publicPage(t, h, PageOptions{Detail: map[string]Detail{"ENC-1": ShowFigures}})
	refresh()
	for _, path := range []string{"/trust", "/trust/evidence/ENC-1", "/trust/evidence/ENC-1/vault-canary-opens.txt", "/trust/changes.json"} {
		if text := get(path).Body.String(); strings.Contains(text, "inside.example") {
			t.Errorf("%s says %s", path, text)
		}
	}
	if w := get("/trust/evidence/ENC-1/vault-canary-opens.tlog-proof"); w.Code != http.StatusOK {
		t.Errorf("the proof that it ran is gone: %d", w.Code)
	}
	if text := get("/trust/evidence/ENC-1").Body.String(); !strings.Contains(text, "Could not be found out") || strings.Contains(text, `href=""`) {
		t.Errorf("the page says %s", text)
	}
}
