package events_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/events"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
)

const grants = `
permit (principal == Service::"pay", action == Action::"event.record", resource == Source::"payments") when { context.purpose == "payment" };
permit (principal == Service::"fraud", action == Action::"audit.search", resource == Environment::"dev");
permit (principal == Service::"court", action in [Action::"audit.search", Action::"audit.reveal"], resource == Environment::"dev") when { context.purpose == "court-order" };
`

var sources = []events.Source{{
	Name: "payments", Service: "pay", Actions: []string{"payments.transfer.create", "payments.transfer.settle"},
	Fields: []events.Field{
		{Name: "amount", Type: events.Decimal, Required: true}, {Name: "iban", Type: events.Text, Personal: true, MaxLength: 34},
		{Name: "count", Type: events.Integer}, {Name: "instant", Type: events.Boolean}, {Name: "due", Type: events.Time},
	},
}}

type searchPolicy struct{ set *policy.Set }

func (p searchPolicy) MaySearch(by actor.Actor, purpose string, c customer.ID, reveal bool) *problem.Problem {
	q := policy.Question{By: by, Action: policy.AuditSearch, Resource: policy.Environment("dev"), Purpose: purpose, Customer: c}
	if reveal {
		q.Action = policy.AuditReveal
	}
	return p.set.Decide(q)
}

type house struct {
	t      testing.TB
	db     *db.DB
	ring   *keyring.Keyring
	trail  *audit.Trail
	events *events.Events
	mux    *http.ServeMux
	ada    customer.ID
}

var operator = actor.OfSystem("cli:test")

func newHouse(t testing.TB, d *db.DB) *house {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "test.cedar"), []byte(grants), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := policy.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Validate(sources); err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, db: d, ring: keyringtest.Open(t, d), mux: http.NewServeMux(), ada: customer.NewID()}
	h.trail = audit.New(d, h.ring, audit.Options{})
	err = d.Update(t.Context(), func(tx *db.Tx) error {
		_, err := h.ring.CreateCustomer(t.Context(), tx, operator, h.ada)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	h.events = events.New(events.Options{DB: d, Keys: h.ring, Trail: h.trail, Search: h.trail.Search(searchPolicy{set}), Policy: set,
		Book: once.New(d, h.ring, nil), Sources: sources})
	h.events.Register(humago.New(h.mux, huma.DefaultConfig("test", "1")))
	return h
}

func service(name string) actor.Actor {
	return actor.Actor{Kind: actor.Service, ID: name, Address: netip.MustParseAddr("192.0.2.1"), Request: "req_test"}
}

func (h *house) record(by, purpose string, reports ...string) ([]events.Result, error) {
	h.t.Helper()
	lines := make([][]byte, len(reports))
	for i, r := range reports {
		lines[i] = []byte(r)
	}
	return h.events.Record(context.Background(), service(by), purpose, "", lines)
}

func (h *house) find(q audit.Query) []audit.Found {
	h.t.Helper()
	for {
		n, err := h.trail.Sequence(context.Background())
		if err != nil {
			h.t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	if err := h.trail.IndexAll(context.Background()); err != nil {
		h.t.Fatal(err)
	}
	page, err := h.trail.Search(nil).Run(context.Background(), operator, q, audit.Ask{Reveal: true, Purpose: "test", Limit: 500})
	if err != nil {
		h.t.Fatal(err)
	}
	return page.Events
}

func TestRecord(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		report := fmt.Sprintf(`{"id":"tr-0001-created","action":"payments.transfer.create","outcome":"denied","reason":"limit-reached",
			"resource":"transfer 1","customer":%q,"transaction":"tr-0001","occurred_at":"2026-01-31T12:00:00+01:00",
			"on_behalf_of":{"kind":"customer","id":%[1]q,"device":"dev_1"},
			"fields":{"amount":"12.30","iban":"DE02120300000000202051","count":3,"instant":true,"due":"2026-02-01T00:00:00Z"}}`, h.ada)
		results, err := h.record("pay", "payment", report)
		if err != nil || len(results) != 1 || results[0].Problem != nil || results[0].Repeated {
			t.Fatal(results, err)
		}
		again, err := h.record("pay", "payment", report, report)
		if err != nil || again[0] != (events.Result{Event: results[0].Event, Repeated: true}) || again[1] != again[0] {
			t.Errorf("again: %+v, %v", again, err)
		}
		for _, q := range []audit.Query{{Transaction: "tr-0001"}, {OnBehalf: "customer:" + string(h.ada)}, {Customer: string(h.ada)},
			{Device: "dev_1"}, {Actor: "pay"}, {Action: "payments.*", Outcome: "denied", Reason: "limit"}} {
			found := h.find(q)
			found = found[len(found)-1:] // the oldest: the searches are about ada too
			f := found[0]
			if f.ID != results[0].Event || f.Actor.Kind != actor.Service || f.Actor.ID != "pay" || f.Outcome != audit.Denied || f.Resource != "transfer 1" {
				t.Errorf("%+v finds %+v", q, found)
			}
			want := map[string]string{"amount": "12.30", "count": "3", "instant": "true", "due": "2026-02-01T00:00:00Z",
				"occurred_at": "2026-01-31T11:00:00Z", "purpose": "payment", "source_event": "tr-0001-created"}
			if fmt.Sprint(f.Fields) != fmt.Sprint(want) {
				t.Errorf("fields %q", f.Fields)
			}
			if f.Personal["iban"] != "DE02120300000000202051" || f.Personal["on_behalf_of"] != "customer:"+string(h.ada) {
				t.Errorf("personal %q", f.Personal)
			}
		}
		r, err := h.trail.Verify(t.Context(), operator, nil)
		if err != nil || len(r.Findings) != 0 {
			t.Errorf("%+v, %v", r.Findings, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	good := func(change string) string {
		var m, more map[string]any
		base := fmt.Sprintf(`{"id":"event-00000001","action":"payments.transfer.create","outcome":"granted","customer":%q,"fields":{"amount":"1"}}`, h.ada)
		if err := json.Unmarshal([]byte(base), &m); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(change), &more); err != nil {
			t.Fatal(err)
		}
		for name, value := range more {
			m[name] = value
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct{ name, report, want string }{
		{"no JSON", `{`, "invalid-event"},
		{"member twice", strings.Replace(good(`{}`), `{`, `{"action":"payments.transfer.settle",`, 1), "invalid-event"},
		{"unknown member", good(`{"colour":"red"}`), "invalid-event"},
		{"unknown field", good(`{"fields":{"amount":"1","pin":"1234"}}`), "invalid-event"},
		{"missing field", good(`{"fields":{}}`), "invalid-event"},
		{"wrong decimal", good(`{"fields":{"amount":"1,5"}}`), "invalid-event"},
		{"number for text", good(`{"fields":{"amount":1}}`), "invalid-event"},
		{"null", good(`{"fields":{"amount":null}}`), "invalid-event"},
		{"null boolean", good(`{"fields":{"amount":"1","instant":null}}`), "invalid-event"},
		{"fraction", good(`{"fields":{"amount":"1","count":1.5}}`), "invalid-event"},
		{"long text", good(`{"fields":{"amount":"1","iban":"` + strings.Repeat("x", 35) + `"}}`), "invalid-event"},
		{"control character", good(`{"fields":{"amount":"1","iban":"a\nb"}}`), "invalid-event"},
		{"personal without customer", good(`{"customer":"","fields":{"amount":"1","iban":"DE"}}`), "invalid-event"},
		{"another's action", good(`{"action":"vault.record.read"}`), "invalid-event"},
		{"odd outcome", good(`{"outcome":"maybe"}`), "invalid-event"},
		{"free text as reason", good(`{"reason":"He said so"}`), "invalid-event"},
		{"mail address as resource", good(`{"resource":"ada@example.com"}`), "invalid-event"},
		{"short id", good(`{"id":"1"}`), "invalid-event"},
		{"on behalf of another customer", good(`{"on_behalf_of":{"kind":"customer","id":"` + string(customer.NewID()) + `"}}`), "invalid-event"},
		{"on behalf of nobody", good(`{"on_behalf_of":{"kind":"staff"}}`), "invalid-event"},
		{"unknown customer", good(`{"customer":"` + string(customer.NewID()) + `"}`), "customer-not-found"},
		{"no customer's id", good(`{"customer":"ada"}`), "customer-not-found"},
		{"too long", good(`{"reason":"` + strings.Repeat("x", events.MaxLine) + `"}`), "invalid-event"},
	} {
		results, err := h.record("pay", "payment", c.report)
		if err != nil || !problem.Is(results[0].Problem, c.want) || results[0].Event != "" {
			t.Errorf("%s: %+v, %v", c.name, results, err)
		}
	}
	if n := len(h.find(audit.Query{Action: "payments.*"})); n != 0 {
		t.Errorf("%d events were taken in", n)
	}
	if n := len(h.find(audit.Query{Action: events.ActionRecord, Outcome: "denied", Actor: "pay"})); n != 23 {
		t.Errorf("%d refusals are in the trail", n)
	}
	if results, err := h.record("pay", "marketing", good(`{}`)); err != nil || !problem.Is(results[0].Problem, "not-permitted") {
		t.Errorf("another purpose: %+v, %v", results, err)
	}
	for _, c := range []struct{ by, purpose, want string }{{"fraud", "payment", "no-source"}, {"pay", "", "purpose-required"}} {
		if _, err := h.record(c.by, c.purpose, good(`{}`)); !problem.Is(err, c.want) {
			t.Errorf("%s for %q: %v", c.by, c.purpose, err)
		}
	}
	// Nothing of what was refused stopped the good one.
	if results, err := h.record("pay", "payment", good(`{}`)); err != nil || results[0].Problem != nil {
		t.Errorf("%+v, %v", results, err)
	}
	if results, err := h.record("pay", "payment", good(`{"reason":"other"}`)); err != nil || !problem.Is(results[0].Problem, "idempotency-key-reused") {
		t.Errorf("another event with that id: %+v, %v", results, err)
	}
}

func TestABatchTakesInWhatIsGoodOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		var body bytes.Buffer
		for i := range 200 {
			amount := "1"
			if i%10 == 9 {
				amount = "one"
			}
			fmt.Fprintf(&body, `{"id":"event-%08d","action":"payments.transfer.settle","outcome":"granted","transaction":"tr-%d","fields":{"amount":%q}}`+"\n\n", i, i, amount)
		}
		post := func() (code int, out struct {
			Results []struct {
				Event    string
				Repeated bool
				Problem  *struct{ Type string }
			}
		}) {
			r := httptest.NewRequest("POST", events.BatchPath, bytes.NewReader(body.Bytes())).WithContext(actor.With(context.Background(), service("pay")))
			r.Header.Set("Strongroom-Purpose", "payment")
			r.Header.Set("Content-Type", events.BatchType)
			w := httptest.NewRecorder()
			h.mux.ServeHTTP(w, r)
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
				t.Errorf("%v in %s", err, w.Body)
			}
			return w.Code, out
		}
		// The same batch several times at once.
		var group sync.WaitGroup
		ids := make([]map[int]string, 3)
		for n := range ids {
			ids[n] = map[int]string{}
			group.Go(func() {
				code, out := post()
				if code != 200 || len(out.Results) != 200 {
					t.Errorf("%d with %d results", code, len(out.Results))
					return
				}
				for i, r := range out.Results {
					if (r.Problem != nil) != (i%10 == 9) {
						t.Errorf("line %d: %+v", i, r)
					}
					ids[n][i] = r.Event
				}
			})
		}
		group.Wait()
		for i := range 200 {
			if ids[0][i] != ids[1][i] || ids[1][i] != ids[2][i] {
				t.Errorf("line %d is %q", i, []string{ids[0][i], ids[1][i], ids[2][i]})
			}
		}
		found := h.find(audit.Query{Action: "payments.*"})
		if len(found) != 180 {
			t.Errorf("%d events are in the trail", len(found))
		}
		for i := range len(found) - 1 {
			if found[i].Transaction == found[i+1].Transaction {
				t.Error("an event is there twice")
			}
		}
	})
}

func TestAnErasedCustomersEvents(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		report := fmt.Sprintf(`{"id":"event-00000001","action":"payments.transfer.create","outcome":"granted","customer":%q,"fields":{"amount":"1","iban":"DE"}}`, h.ada)
		if results, err := h.record("pay", "payment", report); err != nil || results[0].Problem != nil {
			t.Fatal(results, err)
		}
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			if _, err := h.trail.EraseCustomer(t.Context(), tx, h.ada); err != nil {
				return err
			}
			_, err := h.ring.DestroyCustomer(t.Context(), tx, operator, h.ada)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		h.ring.Forget(h.ada)
		for _, id := range []string{"event-00000001", "event-00000002"} { // sent again, and a late one
			results, err := h.record("pay", "payment", strings.Replace(report, "event-00000001", id, 1))
			if err != nil || !problem.Is(results[0].Problem, "customer-erased") {
				t.Errorf("%s: %+v, %v", id, results, err)
			}
		}
		found := h.find(audit.Query{Customer: string(h.ada), Action: "payments.*"})
		if len(found) != 1 || found[0].Fields != nil || found[0].Personal["address"] != audit.Erased || found[0].Personal["iban"] != "" {
			t.Errorf("found %+v", found)
		}
	})
}

func TestSearchOverHTTP(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	if results, err := h.record("pay", "payment", fmt.Sprintf(`{"id":"event-00000001","action":"payments.transfer.create","outcome":"granted","customer":%q,"fields":{"amount":"1","iban":"DE77"}}`, h.ada)); err != nil || results[0].Problem != nil {
		t.Fatal(results, err)
	}
	h.find(audit.Query{})
	for _, c := range []struct {
		name, by, purpose, method, path, body string
		status                                int
		want, never                           string
	}{
		{"search", "fraud", "fraud", "POST", "/v1/audit/search", `{"query":{"action":"payments.*"}}`, 200, `"amount":"1"`, "DE77"},
		{"reveal unpermitted", "fraud", "fraud", "POST", "/v1/audit/search", `{"query":{},"reveal":true}`, 403, "not-permitted", "DE77"},
		{"reveal", "court", "court-order", "POST", "/v1/audit/search", `{"query":{"action":"payments.*"},"reveal":true}`, 200, `"iban":"DE77"`, "secret"},
		{"no purpose", "fraud", "", "POST", "/v1/audit/search", `{"query":{}}`, 422, "purpose", "payments"},
		{"who may record may not search", "pay", "payment", "POST", "/v1/audit/search", `{"query":{}}`, 403, "not-permitted", "DE77"},
		{"an odd country", "fraud", "fraud", "POST", "/v1/audit/search", `{"query":{"country":"Germany"}}`, 422, "", "payments"},
		{"a far cursor", "fraud", "fraud", "POST", "/v1/audit/search", `{"query":{},"after":"AAAA"}`, 400, "invalid-cursor", "payments"},
		{"save", "fraud", "fraud", "PUT", "/v1/audit/searches/payments", `{"action":"payments.*","from":"2026-01-01T00:00:00Z"}`, 204, "", "x"},
		{"list", "fraud", "fraud", "GET", "/v1/audit/searches", ``, 200, `"from":"2026-01-01T00:00:00Z"`, "DE77"},
		{"run", "fraud", "fraud", "POST", "/v1/audit/searches/payments/run", `{}`, 200, `"amount":"1"`, "DE77"},
		{"run revealed", "fraud", "fraud", "POST", "/v1/audit/searches/payments/run", `{"reveal":true}`, 403, "not-permitted", "DE77"},
		{"run none", "fraud", "fraud", "POST", "/v1/audit/searches/none/run", `{}`, 404, "search-not-found", "DE77"},
		{"delete", "fraud", "fraud", "DELETE", "/v1/audit/searches/payments", ``, 204, "", "x"},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)).WithContext(actor.With(t.Context(), service(c.by)))
		if c.body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		if c.purpose != "" {
			r.Header.Set("Strongroom-Purpose", c.purpose)
		}
		w := httptest.NewRecorder()
		h.mux.ServeHTTP(w, r)
		if body := w.Body.String(); w.Code != c.status || !strings.Contains(body, c.want) || strings.Contains(body, c.never) {
			t.Errorf("%s: %d %s", c.name, w.Code, body)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := sources[0]
	for _, c := range []struct {
		name   string
		change func(s *events.Source)
		want   string
	}{
		{"name", func(s *events.Source) { s.Name = "Payments" }, "a name is"},
		{"a room's name", func(s *events.Source) { s.Name = "vault" }, "Strongroom's own"},
		{"no service", func(s *events.Source) { s.Service = "" }, "certificate"},
		{"another's action", func(s *events.Source) { s.Actions = []string{"cards.card.make"} }, "payments.thing.verb"},
		{"no action", func(s *events.Source) { s.Actions = nil }, "no actions"},
		{"field", func(s *events.Source) { s.Fields = []events.Field{{Name: "a:b", Type: events.Text}} }, "a name is"},
		{"reserved field", func(s *events.Source) { s.Fields = []events.Field{{Name: "address", Type: events.Text}} }, "themselves"},
		{"type", func(s *events.Source) { s.Fields = []events.Field{{Name: "a", Type: "float"}} }, "the type is"},
		{"length", func(s *events.Source) { s.Fields = []events.Field{{Name: "a", Type: events.Integer, MaxLength: 3}} }, "max_length"},
		{"twice", func(s *events.Source) {
			s.Fields = []events.Field{{Name: "a", Type: events.Text}, {Name: "a", Type: events.Text}}
		}, "twice"},
	} {
		s := ok
		c.change(&s)
		if err := events.Validate([]events.Source{s}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := events.Validate([]events.Source{ok, ok}); err == nil {
		t.Error("two sources of one service")
	}
}

// FuzzRecord holds that no report brings the server down, and that what is taken in is found again.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"event-00000001","action":"payments.transfer.create","outcome":"granted","fields":{"amount":"1"}}`))
	f.Add([]byte(`{"id":"event-00000002","action":"payments.transfer.create","outcome":"denied","on_behalf_of":{"kind":"staff","id":"anna"},"fields":{"amount":"-1.5","instant":false}}`))
	h := newHouse(f, dbtest.Open(f, db.SQLite))
	f.Fuzz(func(t *testing.T, report []byte) {
		results, err := h.events.Record(t.Context(), service("pay"), "payment", "", [][]byte{report})
		if err != nil || len(results) != 1 || (results[0].Problem == nil) == (results[0].Event == "") {
			t.Fatalf("%+v, %v", results, err)
		}
	})
}
