package report

import (
	"bytes"
	"context"
	"html/template"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

var (
	operator = actor.OfSystem("cli:ada")
	stranger = actor.Actor{Kind: actor.Anonymous, Address: netip.MustParseAddr("192.0.2.7")}
)

const text = "The page at /v1/session shows the name of somebody else."

// office is a desk with everything around it.
type office struct {
	*Desk
	db    *db.DB
	ring  *keyring.Keyring
	trail *audit.Trail
	clock *clock.Manual
	open  []string // findings
}

func (o *office) Raise(_ context.Context, kind, subject, _ string) error {
	if f := kind + " " + subject; !slices.Contains(o.open, f) {
		o.open = append(o.open, f)
	}
	return nil
}

func (o *office) Clear(_ context.Context, kind, subject string) error {
	o.open = slices.DeleteFunc(o.open, func(f string) bool { return f == kind+" "+subject })
	return nil
}

func newOffice(t *testing.T, d *db.DB, limits Limits) *office {
	t.Helper()
	o := &office{db: d, ring: keyringtest.Open(t, d), clock: clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))}
	o.trail = audit.New(d, o.ring, audit.Options{Clock: o.clock})
	o.Desk = New(Options{DB: d, Keys: o.ring, Trail: o.trail, Findings: o, Limits: limits, Clock: o.clock})
	return o
}

// events returns what the trail has of reports, oldest first: action, resource, outcome and reason.
func (o *office) events(t *testing.T) (all []string) {
	t.Helper()
	entries, err := o.trail.Tail(t.Context(), operator, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Action, "assurance.report") {
			all = append(all, strings.TrimSpace(e.Action+" "+e.Resource+" "+string(e.Outcome)+" "+e.Reason))
		}
	}
	return all
}

func slug(err error) string {
	if p := problem.Of(err); p != nil {
		return p.Slug()
	}
	return ""
}

func TestAReport(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o, ctx := newOffice(t, d, Limits{}), t.Context()
		e, err := o.Submit(ctx, stranger, Message{Text: "  " + text + "\r\nTwice. ", Contact: " ada@example.com "})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(o.open, []string{FindingOpen + " " + e.Reference}) {
			t.Errorf("findings: %q", o.open)
		}
		var sealed []byte
		if err := d.View(ctx, func(tx *db.Tx) (err error) { _, sealed, err = selectReport(ctx, tx, e.Reference); return err }); err != nil {
			t.Fatal(err)
		}
		for _, plain := range []string{"somebody else", "ada@example"} {
			if bytes.Contains(sealed, []byte(plain)) {
				t.Errorf("the database has %q in the open", plain)
			}
		}
		list, err := o.List(ctx, operator, false)
		if err != nil || len(list) != 1 || list[0].Reference != e.Reference {
			t.Fatalf("%+v %v", list, err)
		}
		r, err := o.Show(ctx, operator, e.Reference)
		if err != nil || r.Text != text+"\nTwice." || r.Contact != "ada@example.com" || r.Closed != nil {
			t.Errorf("%+v %v", r, err)
		}
		for _, by := range []actor.Actor{stranger, {Kind: actor.Customer, ID: "cus_x"}, {Kind: actor.Service, ID: "ledger"}} {
			_, listed := o.List(ctx, by, true)
			_, shown := o.Show(ctx, by, e.Reference)
			if closed := o.Close(ctx, by, e.Reference, "no"); slug(listed) != "reports-forbidden" || slug(shown) != "reports-forbidden" || slug(closed) != "reports-forbidden" {
				t.Errorf("%s: %v, %v, %v", by.Kind, listed, shown, closed)
			}
		}
		if _, err := o.Show(ctx, operator, "rep_' OR 1=1"); slug(err) != "report-not-found" {
			t.Errorf("a reference that is none: %v", err)
		}
		if err := o.Close(ctx, operator, e.Reference, " "); slug(err) != "verdict-missing" {
			t.Errorf("closed without a word: %v", err)
		}
		if err := o.Close(ctx, operator, e.Reference, "mended"); err != nil || len(o.open) > 0 {
			t.Errorf("%v, findings %q", err, o.open)
		}
		if err := o.Close(ctx, operator, e.Reference, "again"); slug(err) != "report-closed" {
			t.Errorf("closed twice: %v", err)
		}
		if list, err := o.List(ctx, operator, false); err != nil || len(list) != 0 {
			t.Errorf("%+v %v", list, err)
		}
		events := o.events(t)
		for _, want := range []string{
			"assurance.report.submit report " + e.Reference + " granted", "assurance.report.read report " + e.Reference + " granted",
			"assurance.reports.list reports granted", "assurance.report.close report " + e.Reference + " granted",
			"assurance.report.read report " + e.Reference + " denied reports-forbidden", "assurance.report.read report denied report-not-found",
			"assurance.report.close report " + e.Reference + " denied verdict-missing", "assurance.report.close report " + e.Reference + " denied report-closed",
		} {
			if !slices.Contains(events, want) {
				t.Errorf("the trail lacks %q:\n%s", want, strings.Join(events, "\n"))
			}
		}
		// A year later it is gone, with an event.
		o.clock.Advance(keepClosed + time.Hour)
		if err := o.tend(ctx); err != nil {
			t.Fatal(err)
		}
		if list, err := o.List(ctx, operator, true); err != nil || len(list) != 0 || !slices.Contains(o.events(t), "assurance.report.expire report "+e.Reference+" granted") {
			t.Errorf("%+v %v", list, err)
		}
	})
}

func TestWhatIsNoReport(t *testing.T) {
	o := newOffice(t, dbtest.Open(t, db.SQLite), Limits{})
	for name, m := range map[string]Message{
		"short": {Text: "   hacked   "}, "long": {Text: strings.Repeat("ü", MaxText+1)}, "not UTF-8": {Text: text + "\xff"},
		"contact of two lines": {Text: text, Contact: "a\nb"}, "long contact": {Text: text, Contact: strings.Repeat("x", MaxContact+1)},
	} {
		if _, err := o.Submit(t.Context(), stranger, m); slug(err) != "report-invalid" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(o.open) > 0 || len(o.events(t)) > 0 {
		t.Errorf("something was left behind: %q %q", o.open, o.events(t))
	}
	if _, err := o.Submit(t.Context(), stranger, Message{Text: strings.Repeat("ü", MaxText)}); err != nil {
		t.Errorf("the longest that is allowed: %v", err)
	}
}

// One network is told to wait before the others notice it; then everybody is, until the next day.
func TestLimits(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o, ctx := newOffice(t, d, Limits{Hourly: 2, Daily: 4}), t.Context()
		send := func(address, want string) {
			t.Helper()
			_, err := o.Submit(ctx, actor.Actor{Kind: actor.Anonymous, Address: netip.MustParseAddr(address)}, Message{Text: text})
			if got := slug(err); got != want || want == "" && err != nil {
				t.Errorf("from %s: %v, not %q", address, err, want)
			}
			if want != "" && problem.Of(err).GetHeaders().Get("Retry-After") == "" {
				t.Errorf("from %s: it does not say when to try again", address)
			}
		}
		send("2001:db8::1", "")
		send("2001:db8::ffff", "") // of the same /64
		for range 5 {
			send("2001:db8::2", "too-many-reports")
		}
		send("::ffff:192.0.2.1", "")
		send("192.0.2.2", "")
		send("192.0.2.3", "reports-full")
		send("192.0.2.4", "reports-full")
		if !slices.Contains(o.open, FindingFull+" ") {
			t.Errorf("findings: %q", o.open)
		}
		denied := 0
		for _, e := range o.events(t) {
			if strings.Contains(e, "denied") {
				denied++
			}
		}
		if denied != 2 { // the first of each window
			t.Errorf("%d refusals are in the trail:\n%s", denied, strings.Join(o.events(t), "\n"))
		}
		var sources int
		if err := d.View(ctx, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM security_report_count WHERE taken > $1`, 0).Scan(&sources)
		}); err != nil || sources != 4 {
			t.Errorf("%d counts: %v", sources, err)
		}
		var written int
		if err := d.View(ctx, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, `SELECT MAX(refused) FROM security_report_count WHERE taken > $1`, 0).Scan(&written)
		}); err != nil || written != 1 {
			t.Errorf("%d refusals of one window were written down: %v", written, err)
		}
		o.open = nil // the register of findings did not answer
		if err := o.tend(ctx); err != nil || !slices.Contains(o.open, FindingFull+" ") {
			t.Errorf("the job does not say that reports are refused: %v %q", err, o.open)
		}
		o.clock.Advance(24*time.Hour + time.Second)
		if err := o.tend(ctx); err != nil || slices.Contains(o.open, FindingFull+" ") {
			t.Errorf("a day later: %v %q", err, o.open)
		}
		send("2001:db8::2", "")
	})
}

// rotated is a keyring with other versions of the sealing key.
type rotated struct {
	*keyring.Keyring
	ring *seal.Ring
}

func (r *rotated) Service(string) *seal.Ring { return r.ring }

// ringOf returns a ring of the versions, the last of which seals.
func ringOf(t *testing.T, versions ...uint32) *seal.Ring {
	t.Helper()
	var keys []*seal.Key
	for _, v := range versions {
		k, err := seal.NewKey(v, bytes.Repeat([]byte{byte(v)}, seal.KeySize))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	ring, err := seal.NewRing("test", keys...)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// What an older version of the key sealed is sealed anew, so that the version can go.
func TestRotation(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o, ctx := newOffice(t, d, Limits{}), t.Context()
		o.o.Keys = &rotated{Keyring: o.ring, ring: ringOf(t, 1)}
		e, err := o.Submit(ctx, stranger, Message{Text: text})
		if err != nil {
			t.Fatal(err)
		}
		o.o.Keys = &rotated{Keyring: o.ring, ring: ringOf(t, 1, 2)}
		if _, err := o.Submit(ctx, stranger, Message{Text: text}); err != nil {
			t.Fatal(err)
		}
		needed := func(version uint32) (by string) {
			t.Helper()
			if err := d.View(ctx, func(tx *db.Tx) (err error) { by, err = KeyNeeded(ctx, tx, sealingKey, version); return err }); err != nil {
				t.Fatal(err)
			}
			return by
		}
		if needed(1) != "1 security reports" || needed(2) != "1 security reports" {
			t.Errorf("before: %q, %q", needed(1), needed(2))
		}
		if err := o.tend(ctx); err != nil {
			t.Fatal(err)
		}
		if needed(1) != "" || needed(2) != "2 security reports" {
			t.Errorf("after: %q, %q", needed(1), needed(2))
		}
		if r, err := o.Show(ctx, operator, e.Reference); err != nil || r.Text != text {
			t.Errorf("%+v %v", r, err)
		}
	})
}

// plainFrame is a page without looks.
type plainFrame struct{}

func (plainFrame) Frame(title string, main template.HTML) ([]byte, error) {
	return []byte("<h1>" + title + "</h1>" + string(main)), nil
}
func (plainFrame) Headers(http.Header) {}

func TestTheForm(t *testing.T) {
	o := newOffice(t, dbtest.Open(t, db.SQLite), Limits{Hourly: 1, Daily: 10})
	mux := http.NewServeMux()
	o.RegisterForm(mux, plainFrame{})
	rows := []struct {
		name, method, body, site string
		status                   int
		want, never              string
	}{
		{name: "empty", method: "GET", status: 200, want: `<textarea id="report-text" name="text"`},
		{name: "too short", method: "POST", body: "text=x&contact=%22%3E%3Cscript%3E", status: 422, want: `value="&#34;&gt;&lt;script&gt;"`, never: "<script>"},
		{name: "another field", method: "POST", body: "text=" + url.QueryEscape(text) + "&to=me", status: 400, want: "could not be read"},
		{name: "a field twice", method: "POST", body: "text=a&text=b", status: 400, want: "could not be read"},
		{name: "too large", method: "POST", body: "text=" + strings.Repeat("x", MaxForm), status: 400, want: "could not be read", never: "xxxx"},
		{name: "from another site", method: "POST", site: "cross-site", body: "text=" + url.QueryEscape(text), status: 403, want: "another site"},
		{name: "taken", method: "POST", site: "same-origin", body: "text=" + url.QueryEscape(text) + "&contact=", status: 200, want: "Its reference is <code>rep_", never: "<form"},
		{name: "one too many", method: "POST", body: "text=" + url.QueryEscape("Something else entirely."), status: 429, want: ">Something else entirely.</textarea>"},
	}
	for _, row := range rows {
		r := httptest.NewRequest(row.method, FormPath, strings.NewReader(row.body))
		r = r.WithContext(actor.With(r.Context(), stranger))
		r.Header.Set("Content-Type", FormType)
		if row.site != "" {
			r.Header.Set("Sec-Fetch-Site", row.site)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if body := w.Body.String(); w.Code != row.status || !strings.Contains(body, row.want) || row.never != "" && strings.Contains(body, row.never) {
			t.Errorf("%s: %d\n%.600s", row.name, w.Code, body)
		}
		if w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: a cache may keep it", row.name)
		}
	}
	if list, err := o.List(t.Context(), operator, true); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
}

func FuzzForm(f *testing.F) {
	for _, seed := range []string{"", "text=a&contact=b", "text=%ff", "text=a;b", "text=%", "contact=a&contact=b", "text=" + url.QueryEscape(text)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest(http.MethodPost, FormPath, strings.NewReader(body))
		r.Header.Set("Content-Type", FormType)
		m, err := decode(httptest.NewRecorder(), r)
		if err != nil {
			return
		}
		if m, err = m.normal(); err != nil {
			return
		}
		again, err := m.normal()
		if err != nil || again != m {
			t.Errorf("%+v is not as it is kept: %+v %v", m, again, err)
		}
		html, err := render(filled{Message: m})
		if err != nil || strings.Count(string(html), "<") != strings.Count(mustForm(t), "<") {
			t.Errorf("what was written has become a part of the page: %s %v", html, err)
		}
	})
}

func mustForm(t *testing.T) string {
	form, err := Form()
	if err != nil {
		t.Fatal(err)
	}
	return string(form)
}
