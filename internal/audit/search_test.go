package audit_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// atlas is a locator for tests: the last byte decides.
type atlas struct{}

func (atlas) Locate(a netip.Addr) (country, network string) {
	b := a.As4()
	return []string{"", "DE", "NG"}[b[3]%3], []string{"", "AS64500 Example", ""}[b[3]%3]
}

func (h *house) index() {
	h.t.Helper()
	h.sequence()
	if err := h.trail.IndexAll(context.Background()); err != nil {
		h.t.Fatal(err)
	}
}

// find returns the ids that all pages of a search give, oldest first.
func (h *house) find(q audit.Query, a audit.Ask) (found []audit.Found) {
	h.t.Helper()
	s := h.trail.Search(nil)
	seen := map[string]bool{}
	for {
		page, err := s.Run(context.Background(), operator, q, a)
		if err != nil {
			h.t.Fatalf("%+v: %v", q, err)
		}
		for _, f := range page.Events {
			if seen[f.ID] {
				h.t.Fatalf("%s is on two pages", f.ID)
			}
			seen[f.ID] = true
			found = append(found, f)
		}
		if page.Next == "" {
			slices.Reverse(found)
			return found
		}
		a.After = page.Next
	}
}

// naive is what a search should find.
func naive(list []audit.Entry, q audit.Query) (ids []string) {
	for _, e := range list {
		prefix, cut := strings.CutSuffix(q.Action, "*")
		same := func(want, has string) bool { return want == "" || want == has }
		if same(q.Actor, e.Actor.ID) && same(q.Customer, string(e.Customer)) && same(q.Device, e.Actor.Device) &&
			(cut && strings.HasPrefix(e.Action, prefix) || !cut && same(q.Action, e.Action)) &&
			same(q.Outcome, string(e.Outcome)) && same(q.Resource, e.Resource) && same(q.Address, e.Personal["address"]) &&
			same(q.Country, e.Personal["country"]) && same(q.OnBehalf, e.Personal["on_behalf_of"]) && same(q.Request, e.Request) &&
			same(q.Transaction, e.Transaction) && strings.Contains(e.Reason, strings.ToLower(q.Reason)) &&
			(q.From == 0 || e.Time.UnixMicro() >= q.From) && (q.To == 0 || e.Time.UnixMicro() < q.To) {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

func TestSearchEqualsAFilterOverTheTail(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{Locator: atlas{}})
		customers := []customer.ID{h.ada, h.newCustomer(), ""}
		rapid.Check(t, func(rt *rapid.T) {
			pick := func(label string, list ...string) string { return rapid.SampledFrom(list).Draw(rt, label) }
			var fresh []string
			h.update(func(tx *db.Tx) error {
				for range rapid.IntRange(1, 30).Draw(rt, "events") {
					by := actor.Actor{Kind: actor.Service, ID: pick("actor", "pay", "kyc"), Device: pick("device", "", "dev_1", "dev_2"),
						Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(1, 4).Draw(rt, "address"))}), Request: pick("request", "", "req_1", "req_2")}
					e := audit.Event{ID: audit.NewID(), Action: pick("action", "vault.record.read", "vault.record.put", "vault_x.a.b", "key.read"),
						Resource: pick("resource", "", "record profile/main", "100%"), Customer: rapid.SampledFrom(customers).Draw(rt, "customer"),
						Outcome: rapid.SampledFrom([]audit.Outcome{audit.Granted, audit.Denied, audit.Failed}).Draw(rt, "outcome"),
						Reason:  pick("reason", "", "wrong-code", "locked-out"), Transaction: pick("transaction", "", "tr-1", "tr-2")}
					if behalf := pick("behalf", "", "staff:anna"); behalf != "" {
						e.Personal = map[string]string{"on_behalf_of": behalf}
					}
					if err := h.trail.Record(context.Background(), tx, by, e); err != nil {
						return err
					}
					fresh = append(fresh, e.ID)
				}
				return nil
			})
			h.index()
			var list []audit.Entry
			for _, e := range h.tail() {
				if slices.Contains(fresh, e.ID) {
					list = append(list, e)
				}
			}
			if len(list) != len(fresh) {
				rt.Fatalf("the tail has %d of %d events", len(list), len(fresh))
			}
			begin := list[0].Time.UnixMicro()
			for range 3 {
				q := audit.Query{
					Actor: pick("q actor", "", "", "", "pay"), Customer: pick("q customer", "", "", string(h.ada), string(customers[1])),
					Device: pick("q device", "", "", "", "dev_1"), Action: pick("q action", "", "", "vault.record.read", "vault*", "vault.rec*", "v*", "vault.*"),
					Outcome: pick("q outcome", "", "", "granted", "denied", "failed"), Resource: pick("q resource", "", "", "", "record profile/main", "100%"),
					Address: pick("q address", "", "", "", "192.0.2.1", "::ffff:192.0.2.2"), Country: pick("q country", "", "", "", "DE", "NG"),
					OnBehalf: pick("q behalf", "", "", "", "staff:anna"), Request: pick("q request", "", "", "", "req_1"),
					Transaction: pick("q transaction", "", "", "", "tr-1"), Reason: pick("q reason", "", "", "", "CODE", "%", "-"),
					From: begin + int64(rapid.IntRange(0, 200).Draw(rt, "q from")),
				}
				if rapid.Bool().Draw(rt, "q to there") {
					q.To = begin + int64(rapid.IntRange(0, 2000).Draw(rt, "q to"))
				}
				plain := q
				plain.Address = strings.TrimPrefix(q.Address, "::ffff:")
				want := naive(list, plain)
				var got []string
				for _, f := range h.find(q, audit.Ask{Limit: rapid.IntRange(1, 20).Draw(rt, "limit")}) {
					if !slices.Contains(fresh, f.ID) {
						continue // this search's own readings
					}
					got = append(got, f.ID)
				}
				slices.Sort(want)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					rt.Fatalf("%+v:\ngot  %v\nwant %v", q, got, want)
				}
			}
			// One of them is erased now and then, in the middle of what is known about them.
			if rapid.IntRange(0, 9).Draw(rt, "erase") == 0 {
				who := customers[rapid.IntRange(0, 1).Draw(rt, "whom")]
				h.eraseEverywhere(who)
				for i, c := range customers {
					if c == who {
						customers[i] = h.newCustomer()
					}
				}
				for _, f := range h.find(audit.Query{Customer: string(who)}, audit.Ask{Reveal: true, Purpose: "test", Limit: 500}) {
					if slices.Contains(fresh, f.ID) && (len(f.Personal) != 1 || f.Personal["address"] != audit.Erased) {
						rt.Fatalf("of an erased customer %q is shown", f.Personal)
					}
				}
				for _, q := range []audit.Query{{Address: "192.0.2.1"}, {Country: "DE"}, {OnBehalf: "staff:anna"}} {
					q.Customer = string(who)
					if got := h.find(q, audit.Ask{}); len(got) != 0 {
						rt.Fatalf("an erased customer is found by %+v", q)
					}
				}
			}
		})
		if n := h.count(`SELECT count(*) FROM event_search WHERE (address <> 0 OR country <> 0 OR behalf <> 0)
			AND event_id IN (SELECT e.id FROM event e WHERE e.sealed_under = 'customer' AND e.customer_id NOT IN (SELECT customer_id FROM data_key))`); n != 0 {
			t.Errorf("%d index rows say something personal of erased customers", n)
		}
		h.holds()
	})
}

// eraseEverywhere does what the vault does: the rooms first, then the key.
func (h *house) eraseEverywhere(c customer.ID) {
	h.t.Helper()
	h.update(func(tx *db.Tx) error {
		_, err := h.trail.EraseCustomer(context.Background(), tx, c)
		return err
	})
	h.erase(c)
}

func TestLateEventsOfAnErasedCustomerGetNoPersonalTerms(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{Locator: atlas{}})
		h.record(3)
		h.sequence()
		// The index is behind, and this process still holds the key.
		h.update(func(tx *db.Tx) error {
			_, err := h.trail.EraseCustomer(t.Context(), tx, h.ada)
			return err
		})
		h.index()
		if n := h.count(`SELECT count(*) FROM event_search WHERE customer <> 0`); n != 3 {
			t.Fatalf("%d events are indexed", n)
		}
		if n := h.count(`SELECT count(*) FROM event_search WHERE address <> 0 OR country <> 0`); n != 0 {
			t.Errorf("%d rows have personal terms", n)
		}
	})
}

func TestSearchIsAnEventThatTellsNoPersonalValue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(2)
		h.index()
		found := h.find(audit.Query{Customer: string(h.ada), Address: address.String(), Since: 3600}, audit.Ask{})
		if len(found) != 2 || found[0].Personal != nil {
			t.Errorf("without reveal: %+v", found)
		}
		e := h.newest(audit.ActionSearch)
		if e.Resource != "search customer address time" || e.Customer != h.ada || !strings.Contains(e.Personal["query"], address.String()) {
			t.Errorf("event %+v", e)
		}
		if n := h.count(`SELECT count(*) FROM event WHERE resource LIKE '%203.0.113%' OR reason LIKE '%203.0.113%'`); n != 0 {
			t.Error("an address stands in the clear")
		}
		found = h.find(audit.Query{Customer: string(h.ada), Action: "test.*"}, audit.Ask{Reveal: true, Purpose: "support"})
		if len(found) != 2 || found[0].Personal["address"] != address.String() || found[0].Personal["country"] != "unknown" {
			t.Errorf("revealed: %+v", found)
		}
		if e := h.newest(audit.ActionSearch); e.Reason != "purpose:support" || e.Resource != "search customer action revealed" {
			t.Errorf("event %+v", e)
		}
		// The searches themselves are about ada, and found as such, once they are indexed.
		h.index()
		if got := h.find(audit.Query{Customer: string(h.ada), Action: audit.ActionSearch}, audit.Ask{}); len(got) != 2 {
			t.Errorf("%d searches about her", len(got))
		}
	})
}

func TestSearchSaysHowFarItSees(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), audit.Options{})
	h.record(3)
	h.index()
	h.record(2)
	h.sequence()
	h.record(1)
	page, err := h.trail.Search(nil).Run(t.Context(), operator, audit.Query{}, audit.Ask{})
	if err != nil || len(page.Events) != 3 || page.Indexed != 3 || page.Waiting != 3 {
		t.Errorf("%d events, indexed %d, waiting %d, %v", len(page.Events), page.Indexed, page.Waiting, err)
	}
}

func TestWhoMaySearch(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), audit.Options{})
	h.record(3)
	h.index()
	service := actor.Actor{Kind: actor.Service, ID: "fraud"}
	first, err := h.trail.Search(nil).Run(t.Context(), operator, audit.Query{}, audit.Ask{Limit: 1})
	if err != nil || first.Next == "" {
		t.Fatal(first, err)
	}
	for _, c := range []struct {
		name string
		by   actor.Actor
		q    audit.Query
		ask  audit.Ask
		want string
	}{
		{"customer", h.by, audit.Query{}, audit.Ask{Purpose: "test"}, "trail-not-allowed"},
		{"service without a policy", service, audit.Query{}, audit.Ask{Purpose: "test"}, "trail-not-allowed"},
		{"reveal without a purpose", operator, audit.Query{}, audit.Ask{Reveal: true}, "purpose-required"},
		{"too many", operator, audit.Query{}, audit.Ask{Limit: 501}, "invalid-limit"},
		{"odd action", operator, audit.Query{Action: "vault.*.read"}, audit.Ask{}, "invalid-search"},
		{"odd outcome", operator, audit.Query{Outcome: "perhaps"}, audit.Ask{}, "invalid-search"},
		{"odd address", operator, audit.Query{Address: "203.0.113.0/24"}, audit.Ask{}, "invalid-search"},
		{"odd country", operator, audit.Query{Country: "Germany"}, audit.Ask{}, "invalid-search"},
		{"control character", operator, audit.Query{Resource: "a\nb"}, audit.Ask{}, "invalid-search"},
		{"no cursor", operator, audit.Query{}, audit.Ask{After: "AAAA"}, "invalid-cursor"},
		{"another's cursor", actor.OfSystem("cli:other"), audit.Query{}, audit.Ask{After: first.Next}, "invalid-cursor"},
		{"another query's cursor", operator, audit.Query{Customer: string(h.ada)}, audit.Ask{After: first.Next}, "invalid-cursor"},
		{"altered cursor", operator, audit.Query{}, audit.Ask{After: "B" + first.Next[1:]}, "invalid-cursor"},
	} {
		_, err := h.trail.Search(nil).Run(t.Context(), c.by, c.q, c.ask)
		if !problem.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if e := h.newest(audit.ActionSearch); e.Outcome != audit.Denied || e.Reason != c.want {
			t.Errorf("%s: event %+v", c.name, e)
		}
	}
}

func TestSavedSearches(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(2)
		h.index()
		s := h.trail.Search(nil)
		q := audit.Query{Customer: string(h.ada), Since: 60}
		if err := s.Save(t.Context(), operator, "", "about-ada", audit.Query{Outcome: "denied"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Save(t.Context(), operator, "", "about-ada", q); err != nil {
			t.Fatal(err)
		}
		if err := s.Save(t.Context(), operator, "", "where", audit.Query{Address: "203.0.113.7"}); !problem.Is(err, "invalid-search") {
			t.Errorf("an address was saved: %v", err)
		}
		if err := s.Save(t.Context(), h.by, "", "mine", q); !problem.Is(err, "trail-not-allowed") {
			t.Errorf("a customer saved a search: %v", err)
		}
		list, err := s.List(t.Context(), operator, "")
		if err != nil || len(list) != 1 || list[0].Name != "about-ada" || list[0].Query != q || list[0].MadeBy != operator.ID {
			t.Fatalf("list %+v, %v", list, err)
		}
		page, err := s.RunSaved(t.Context(), operator, "about-ada", audit.Ask{Limit: 1})
		if err != nil || len(page.Events) != 1 || page.Next == "" {
			t.Fatalf("run %+v, %v", page, err)
		}
		if page, err = s.RunSaved(t.Context(), operator, "about-ada", audit.Ask{Limit: 1, After: page.Next}); err != nil || len(page.Events) != 1 {
			t.Fatalf("second page %+v, %v", page, err)
		}
		if e := h.newest(audit.ActionSearch); e.Resource != "saved search about-ada" || e.Customer != h.ada {
			t.Errorf("event %+v", e)
		}
		// Exchanged rows do not open.
		h.exec(`INSERT INTO saved_search (name, sealed, made_by, made_at) SELECT 'other', sealed, made_by, made_at FROM saved_search`)
		if _, err := s.RunSaved(t.Context(), operator, "other", audit.Ask{}); !problem.Is(err, "search-damaged") {
			t.Errorf("a planted search: %v", err)
		}
		for _, want := range []string{"", "search-not-found"} {
			if err := s.Delete(t.Context(), operator, "", "about-ada"); want == "" && err != nil || want != "" && !problem.Is(err, want) {
				t.Errorf("delete: %v", err)
			}
		}
	})
}

// TestEachValueHasItsIndex asks both databases how they would search a trail of some size.
func TestEachValueHasItsIndex(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{Locator: atlas{}})
		h.bulk(20_000)
		for _, c := range []struct {
			q     audit.Query
			index string
		}{
			{audit.Query{}, "event_search_time"},
			{audit.Query{Actor: "cus_7"}, "event_search_actor"},
			{audit.Query{Customer: "cus_7", Outcome: "denied"}, "event_search_customer"},
			{audit.Query{Device: "dev_7"}, "event_search_device"},
			{audit.Query{Action: "vault.record.read"}, "event_search_action"},
			{audit.Query{Action: "vault.*"}, "event_search_room"},
			{audit.Query{Outcome: "denied", Action: "vault.record.read"}, "event_search_outcome"},
			{audit.Query{Resource: "record profile/7"}, "event_search_resource"},
			{audit.Query{Request: "req_7", Customer: "cus_7"}, "event_search_request"},
			{audit.Query{Transaction: "tr_7"}, "event_search_transaction"},
			{audit.Query{Address: "192.0.2.7"}, "event_search_address"},
			{audit.Query{Country: "DE"}, "event_search_country"},
			{audit.Query{OnBehalf: "staff:anna"}, "event_search_behalf"},
			{audit.Query{Reason: "code", From: 1}, "event_search_time"},
		} {
			plan := h.plan(c.q)
			// What a quarter of all events have is found as fast by walking back in time, and PostgreSQL does so
			// once it has counted.
			common := d.Engine() == db.PostgreSQL && (c.q.Action != "" || c.q.Country != "" || c.q.Outcome != "")
			if !strings.Contains(plan, c.index) && !(common && strings.Contains(plan, "event_search_time")) {
				t.Errorf("%+v does not use %s:\n%s", c.q, c.index, plan)
			}
			if strings.Contains(plan, "TEMP B-TREE FOR ORDER BY") && d.Engine() == db.SQLite {
				t.Errorf("%+v sorts:\n%s", c.q, plan)
			}
		}
	})
}

func (h *house) plan(q audit.Query) string {
	h.t.Helper()
	query, args := h.trail.Statement(q)
	explain := "EXPLAIN QUERY PLAN "
	if h.db.Engine() == db.PostgreSQL {
		explain = "EXPLAIN "
	}
	var lines []string
	err := h.db.View(context.Background(), func(tx *db.Tx) error {
		rows, err := tx.Query(context.Background(), explain+query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var a, b, c any
			var line string
			if h.db.Engine() == db.PostgreSQL {
				err = rows.Scan(&line)
			} else {
				err = rows.Scan(&a, &b, &c, &line)
			}
			if err != nil {
				return err
			}
			lines = append(lines, line)
		}
		return rows.Err()
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// bulk puts n events of many customers into the trail, gives them places behind the sequencer's back, and
// indexes them.
func (h *house) bulk(n int) {
	h.t.Helper()
	ctx := context.Background()
	for done := 0; done < n; {
		some := min(n-done, 1000)
		h.update(func(tx *db.Tx) error {
			for i := done; i < done+some; i++ {
				by := actor.Actor{Kind: actor.Customer, ID: fmt.Sprintf("cus_%d", i%(n/20+1)), Device: fmt.Sprintf("dev_%d", i%(n/20+1)),
					Address: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Request: fmt.Sprintf("req_%d", i)}
				e := audit.Event{Action: []string{"vault.record.read", "vault.record.put", "identity.login.start", "identity.session.refresh"}[i%4],
					Resource: fmt.Sprintf("record profile/%d", i%100), Customer: customer.ID(by.ID), Outcome: audit.Granted}
				if i%10 == 0 {
					e.Outcome, e.Reason = audit.Denied, "wrong-code"
				}
				if i%3 == 0 {
					e.Transaction = fmt.Sprintf("tr_%d", i/3)
				}
				if i%100 == 0 {
					e.Personal = map[string]string{"on_behalf_of": "staff:anna"}
				}
				if err := h.trail.Record(ctx, tx, by, e); err != nil {
					return err
				}
			}
			return nil
		})
		done += some
	}
	h.exec(`INSERT INTO event_leaf (idx, event_id) SELECT row_number() OVER (ORDER BY id) - 1, id FROM event`)
	h.exec(`DELETE FROM event_pending`)
	h.exec(`UPDATE log_head SET size = (SELECT count(*) FROM event)`)
	for {
		indexed, err := h.trail.IndexMany(ctx)
		if err != nil {
			h.t.Fatal(err)
		}
		if indexed == 0 {
			break
		}
	}
}

// BenchmarkSearch measures the first page of searches in a trail of a million events (or as many as
// STRONGROOM_TEST_EVENTS says), the search's own event included, and reports the slowest of a hundred.
func BenchmarkSearch(b *testing.B) {
	events := 1_000_000
	if text := os.Getenv("STRONGROOM_TEST_EVENTS"); text != "" {
		if _, err := fmt.Sscan(text, &events); err != nil {
			b.Fatal(err)
		}
	}
	for _, engine := range engines() {
		b.Run(engine.String(), func(b *testing.B) {
			h := newHouse(b, dbtest.Open(b, engine), audit.Options{Locator: atlas{}})
			began := time.Now()
			h.bulk(events)
			// As autovacuum does: without it, PostgreSQL sorts what it could read in order.
			h.exec(`ANALYZE event_search`)
			b.Logf("%s: %d events in %v", engine, events, time.Since(began).Round(time.Second))
			s := h.trail.Search(nil)
			for _, c := range []struct {
				name string
				q    audit.Query
			}{
				{"everything", audit.Query{}},
				{"customer", audit.Query{Customer: "cus_77"}},
				{"device", audit.Query{Device: "dev_77"}},
				{"action", audit.Query{Action: "identity.login.start"}},
				{"prefix", audit.Query{Action: "identity.*"}},
				{"denied", audit.Query{Outcome: "denied"}},
				{"resource", audit.Query{Resource: "record profile/77"}},
				{"request", audit.Query{Request: "req_7777"}},
				{"transaction", audit.Query{Transaction: "tr_7777"}},
				{"address", audit.Query{Address: "192.0.7.77"}},
				{"country", audit.Query{Country: "DE"}},
				{"country-and-action", audit.Query{Country: "DE", Action: "vault.record.put"}},
				{"denied-of-prefix", audit.Query{Outcome: "denied", Action: "identity.session.*"}},
				{"reason", audit.Query{Reason: "code"}},
				{"reason-that-is-none", audit.Query{Reason: "no-such-reason"}},
			} {
				b.Run(c.name, func(b *testing.B) {
					var took []time.Duration
					for b.Loop() {
						began := time.Now()
						if _, err := s.Run(context.Background(), operator, c.q, audit.Ask{}); err != nil {
							b.Fatal(err)
						}
						took = append(took, time.Since(began))
					}
					slices.Sort(took)
					b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
				})
			}
		})
	}
}

// BenchmarkIndex measures what makes events findable, after they have their places; one operation is one
// event.
func BenchmarkIndex(b *testing.B) {
	for _, engine := range engines() {
		b.Run(engine.String(), func(b *testing.B) {
			h := newHouse(b, dbtest.Open(b, engine), audit.Options{Locator: atlas{}})
			h.fill(b.N)
			h.sequence()
			b.ResetTimer()
			cpu := cpuTime()
			if err := h.trail.IndexAll(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
		})
	}
}
