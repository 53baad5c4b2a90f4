package vault_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

func importRow(line int64, external, fields string) vault.ImportRow {
	return vault.ImportRow{Line: line, External: external, Fields: json.RawMessage(fields)}
}

func TestImport(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, collections())
		note := func(text string, badge int) string { return fmt.Sprintf(`{"text":%q,"badge":%d}`, text, badge) }
		for _, row := range []struct {
			name    string
			by      actor.Actor
			into    string
			rows    []vault.ImportRow
			replace bool
			want    string // outcome or reason of each row; or the problem of all
			events  string // all but the keys', with | between
		}{
			{name: "a customer", by: actor.Actor{Kind: actor.Customer}, into: "note", rows: []vault.ImportRow{importRow(1, "x", note("a", 1))},
				want: "not-allowed", events: "vault.import denied not-allowed collection note"},
			{name: "no collection", by: operator, into: "Ada", rows: []vault.ImportRow{importRow(1, "x", note("a", 1))},
				want: "collection-not-found", events: "vault.import denied collection-not-found collection"},
			{name: "no rows", by: operator, into: "note", want: "invalid-batch", events: "vault.import denied invalid-batch collection note"},
			{name: "first", by: operator, into: "note", rows: []vault.ImportRow{
				importRow(1, "crm-1", note("a", 1)), importRow(2, "crm-2", note("b", 2)),
				{Line: 3, External: "crm-1", Key: "other", Columns: map[string]string{"text": "true", "badge": "3"}},
			}, want: "created created created",
				events: "create granted import record note/main v1|create granted import record note/main v1|create granted import record note/other v1|vault.import granted collection note 3 rows"},
			{name: "again", by: operator, into: "note", rows: []vault.ImportRow{
				importRow(1, "crm-1", `{"badge": 1, "text": "\u0061"}`), importRow(2, "crm-2", note("b", 2)),
			}, want: "unchanged unchanged",
				events: "compare granted import record note/main|compare granted import record note/main|vault.import granted collection note 2 rows"},
			{name: "refused and taken", by: operator, into: "note", rows: []vault.ImportRow{
				importRow(1, "crm-1", note("other", 1)),
				importRow(2, "crm-3", note("c", 2)),            // crm-2's badge
				importRow(3, "", note("c", 9)),                 // nobody
				importRow(4, "crm-4", `{"text":7}`),            // wrong type
				importRow(5, "crm-4", `{"secretname!":"x"`),    // no JSON
				{Line: 6, External: "crm-4", Key: "Ada Lovel"}, // no key
				importRow(7, "crm-4", note("d", 4)),
				importRow(8, "crm-5", note("e", 4)), // the badge of the row before
			}, want: "record-exists value-taken invalid-customer invalid-record invalid-json invalid-key created value-taken",
				events: "create granted import record note/main v1|vault.import granted collection note 8 rows, 7 refused"},
			{name: "replaced", by: operator, into: "note", replace: true, rows: []vault.ImportRow{importRow(1, "crm-1", note("new", 7))},
				want: "updated", events: "update granted import record note/main v2|vault.import granted collection note 1 rows"},
			{name: "the badge is free again", by: operator, into: "note", rows: []vault.ImportRow{importRow(1, "crm-6", note("f", 1))},
				want: "created", events: "create granted import record note/main v1|vault.import granted collection note 1 rows"},
		} {
			before := h.events(t)
			results, err := h.vault.Import(t.Context(), row.by, row.into, row.rows, row.replace)
			var got []string
			if err != nil {
				got = append(got, problem.Of(err).Slug())
			}
			for i, r := range results {
				if r.Line != row.rows[i].Line {
					t.Errorf("%s: line %d came back as %d", row.name, row.rows[i].Line, r.Line)
				}
				if r.Outcome == vault.Refused {
					got = append(got, r.Reason)
				} else {
					got = append(got, r.Outcome)
				}
				b, _ := json.Marshal(r)
				for _, never := range []string{"crm-", "secretname", "Lovel"} {
					if strings.Contains(string(b), never) {
						t.Errorf("%s: a result repeats a value: %s", row.name, b)
					}
				}
			}
			if strings.Join(got, " ") != row.want {
				t.Errorf("%s: %v, not %v", row.name, got, row.want)
			}
			if events := strings.Join(since(before, h.events(t)), "|"); events != row.events {
				t.Errorf("%s left\n%s, not\n%s", row.name, events, row.events)
			}
		}

		// Each external name is one customer, whose export has all of it; and erased they stay.
		results, err := h.vault.Import(t.Context(), operator, "note", []vault.ImportRow{importRow(1, "crm-1", `{"text":"new","badge":7}`)}, false)
		if err != nil {
			t.Fatal(err)
		}
		c := results[0].Customer
		h.putBlob(t, actor.Actor{Kind: actor.Customer, ID: string(c)}, vault.Ref{Collection: "note", Key: "scan"}, []byte("x"), vault.Condition{})
		out, err := h.vault.Export(t.Context(), operator, c)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"external":"crm-1"`, `"note":[{"key":"main","version":2`, `{"badge":7,"text":"new"}`, `{"badge":3,"text":"true"}`, `"blobs":[{"collection":"note","key":"scan"`} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s is missing in %s", want, b)
			}
		}
		if events := h.events(t); !strings.Contains(strings.Join(events, "|"), "vault.customer.export granted purpose:portability customer 2 records") {
			t.Errorf("events: %v", events)
		}
		if _, err := h.vault.Export(t.Context(), actor.Actor{Kind: actor.Customer, ID: string(c)}, c); !problem.Is(err, "not-allowed") {
			t.Errorf("export by a customer: %v", err)
		}
		if _, err := h.vault.Erase(t.Context(), operator, c, "customer asked"); err != nil {
			t.Fatal(err)
		}
		if _, err := h.vault.Export(t.Context(), operator, c); !problem.Is(err, "customer-erased") {
			t.Errorf("export of somebody erased: %v", err)
		}
		results, err = h.vault.Import(t.Context(), operator, "note", []vault.ImportRow{importRow(1, "crm-1", `{"text":"new","badge":7}`)}, true)
		if err != nil || results[0].Reason != "customer-erased" {
			t.Errorf("import of somebody erased: %+v, %v", results, err)
		}
		report, err := h.trail.Verify(t.Context(), operator, nil)
		if err != nil || len(report.Findings) > 0 {
			t.Errorf("the trail: %+v, %v", report, err)
		}
	})
}

var update = flag.Bool("update", false, "write testdata/customers-10k.ndjson anew")

const fixture = "../../testdata/customers-10k.ndjson"

// people returns n made-up customers as a file to be imported. No name, address or number is a real
// person's: example.com is nobody's (RFC 2606), and ZZ99 is the postcode area of no place.
func people(n int) []byte {
	r := rand.New(rand.NewPCG(10, 2026))
	given := strings.Fields("Ada Berengaria Cosmo Dorothea Evander Fenella Gideon Hypatia Ignatius Juno Kestrel Leander Minerva Nestor Ottoline Peregrine Quilla Rufus Sidonie Thaddeus Ursula Valentin Winifred Xanthe Yorick Zenobia")
	family := strings.Fields("Applewhistle Brambleby Cogsworthy Dandelane Elderwick Fernhollow Gadabout Hazelthorpe Inkpenn Jollifer Kettlemere Lanternby Mossgrave Nimblewick Oakenfold Plumridge Quillfeather Rosethistle Silverlane Thimblewood Umberfield Velvetine Wintermoor Yarrowby")
	streets := strings.Fields("Lantern Acorn Teasel Fable Compass Bellows Thistle Harbour Kite Mirror")
	cities := strings.Fields("Examplebury Samplemouth Fixtureham Mockington Specimenford")
	var b bytes.Buffer
	for i := range n {
		first, last := given[r.IntN(len(given))], family[r.IntN(len(family))]
		fmt.Fprintf(&b, `{"customer":"crm-%06d","key":"main","fields":{"given_name":%q,"family_name":%q,"date_of_birth":"%d-%02d-%02d",`+
			`"email":"%s.%s.%d@example.com","address_line1":"%d %s Street","postcode":"ZZ99 %d%c%c","city":%q,"country":"GB"}}`+"\n",
			i+1, first, last, 1940+r.IntN(67), 1+r.IntN(12), 1+r.IntN(28), strings.ToLower(first), strings.ToLower(last), i+1,
			1+r.IntN(200), streets[r.IntN(len(streets))], r.IntN(10), 'A'+rune(r.IntN(26)), 'A'+rune(r.IntN(26)), cities[r.IntN(len(cities))])
	}
	return b.Bytes()
}

// The file that is there to try an import with is what people makes.
func TestFixture(t *testing.T) {
	want := people(10_000)
	if *update {
		if err := os.WriteFile(fixture, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(fixture)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what this test makes (%v): run it with -update", fixture, err)
	}
}

// BenchmarkImport takes rows of the fixture in batches, each customer new.
func BenchmarkImport(b *testing.B) {
	for _, engine := range benchEngines() {
		b.Run(engine.String(), func(b *testing.B) {
			h := newHouse(b, dbtest.Open(b, engine), nil)
			lines := bufio.NewScanner(bytes.NewReader(people(10_000)))
			var rows []vault.ImportRow
			for lines.Scan() {
				var r vault.ImportRow
				if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
					b.Fatal(err)
				}
				rows = append(rows, r)
			}
			began := processTime()
			b.ResetTimer()
			for n := 0; n < b.N; n += vault.MaxImport {
				batch := make([]vault.ImportRow, min(vault.MaxImport, b.N-n))
				for i := range batch {
					batch[i] = rows[(n+i)%len(rows)]
					batch[i].External += fmt.Sprint("-", (n+i)/len(rows))
				}
				results, err := h.vault.Import(b.Context(), operator, "profile", batch, false)
				if err != nil {
					b.Fatal(err)
				}
				if results[0].Outcome != vault.Created {
					b.Fatal(results[0])
				}
			}
			b.StopTimer()
			cpu := processTime() - began
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/row")
			b.ReportMetric(float64(b.N)/cpu.Minutes(), "rows/min/core")
		})
	}
}
