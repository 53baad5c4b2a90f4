package vault_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// settled returns a vault as a process of its own has it, with these collections in its settings.
func (h *house) settled(t testing.TB, pinned ...vault.Collection) *vault.Vault {
	t.Helper()
	v, err := vault.New(h.db, h.keys, h.trail, vault.Options{Collections: pinned, Pinned: pinned != nil, Clock: h.clock,
		Log: slog.New(slog.NewJSONHandler(h.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Settle(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	return v
}

// declare puts the collection "thing" with these properties.
func declare(t testing.TB, v *vault.Vault, properties string) (vault.Declared, error) {
	t.Helper()
	return v.PutCollection(t.Context(), operator, []byte(`{name: thing, purposes: [test, other], retention: 30d, legal_basis: contract, history: 2,
		schema: {type: object, properties: {`+properties+`}}}`))
}

func mustDeclare(t testing.TB, v *vault.Vault, properties string) vault.Declared {
	t.Helper()
	d, err := declare(t, v, properties)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const (
	plainName  = `name: {type: string, x-strongroom: {sensitivity: personal, mask: initial}}`
	indexName  = `name: {type: string, x-strongroom: {sensitivity: personal, mask: initial, index: true}}`
	uniqueName = `name: {type: string, x-strongroom: {sensitivity: personal, mask: all, index: true, unique: true}}`
	plainPin   = `, pin: {type: string, minLength: 4, enum: [abcd, efgh, ijklm], x-strongroom: {sensitivity: special, purposes: [other]}}`
)

func slug(err error) string {
	if p := problem.Of(err); p != nil {
		return p.Slug()
	}
	return fmt.Sprint(err)
}

func lookup(t testing.TB, h *house, v *vault.Vault, text string) (found []vault.Match, err error) {
	t.Helper()
	err = h.db.View(t.Context(), func(tx *db.Tx) (err error) {
		found, err = v.Lookup(t.Context(), tx, "thing", "name", text)
		return err
	})
	return found, err
}

func TestDeclarations(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		one, two := h.settled(t), h.settled(t)
		ada := h.person(t)
		ref := func(key string) vault.Ref { return vault.Ref{Collection: "thing", Key: key} }
		write := func(v *vault.Vault, key, body string) (vault.Record, error) {
			r, _, err := v.Put(t.Context(), ada, ada.Customer(), ref(key), []byte(body), vault.Condition{})
			return r, err
		}

		first := mustDeclare(t, one, plainName+plainPin)
		if first.Version != 1 || first.Source != vault.FromOperator || first.Building != nil {
			t.Fatalf("got %+v", first)
		}
		if again := mustDeclare(t, one, plainName+plainPin); !again.Unchanged || again.Version != 1 {
			t.Fatalf("the same declaration made a version: %+v", again)
		}
		// Another process hears of it by its job.
		if _, err := write(two, "a", `{"name":"Ada"}`); slug(err) != "collection-not-found" {
			t.Fatalf("got %v", err)
		}
		for _, job := range two.CollectionJobs() {
			if job.Name == vault.JobCollections {
				if err := job.Run(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if r, err := write(two, "a", `{"name":"Ada","pin":"abcd"}`); err != nil || r.SchemaVersion != 1 || r.Fields["name"] != "A****" {
			t.Fatalf("got %v, %v", r, err)
		}
		if _, err := write(one, "b", `{"name":"Ada"}`); err != nil {
			t.Fatal(err)
		}
		_, err := write(one, "c", `{"name":"Ada","pin":"4711secret"}`)
		body, _ := json.Marshal(problem.Of(err))
		if slug(err) != "invalid-record" || !strings.Contains(string(body), `"pointer":"/pin"`) || strings.Contains(string(body)+h.log.String(), "4711") {
			t.Fatalf("got %s", body)
		}

		// A field has purposes of its own; all at once is refused when one of them is not for the purpose.
		for _, row := range []struct {
			reveal vault.Reveal
			want   string
		}{
			{vault.Reveal{Fields: []string{"pin"}, Purpose: "test"}, "purpose-not-allowed"},
			{vault.Reveal{All: true, Purpose: "test"}, "purpose-not-allowed"},
			{vault.Reveal{Fields: []string{"pin"}, Purpose: "other"}, "<nil>"},
			{vault.Reveal{All: true, Purpose: "other"}, "<nil>"},
			{vault.Reveal{Fields: []string{"name"}, Purpose: "test"}, "<nil>"},
		} {
			r, err := one.Get(t.Context(), ada, ada.Customer(), ref("a"), row.reveal)
			if slug(err) != row.want {
				t.Errorf("%+v: got %v, %v", row.reveal, r, err)
			}
		}

		// A new index is built by a job, and is not looked up before.
		second := mustDeclare(t, one, indexName+plainPin)
		if second.Version != 2 || second.Building == nil || !slices.Equal(second.Building.Fields, []string{"name"}) {
			t.Fatalf("got %+v", second)
		}
		if _, err := lookup(t, h, one, "Ada"); slug(err) != "index-building" {
			t.Fatalf("got %v", err)
		}
		if _, err := declare(t, one, uniqueName+plainPin); slug(err) != "unique-needs-index" {
			t.Fatalf("got %v", err)
		}
		// The other process has not heard of it; what it writes is in the index all the same.
		if r, err := write(two, "d", `{"name":"Dee"}`); err != nil || r.SchemaVersion != 2 {
			t.Fatalf("got %v, %v", r, err)
		}
		if err := two.BuildIndexes(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := lookup(t, h, one, "Ada"); slug(err) != "index-building" {
			t.Fatalf("one has heard of it by magic: %v", err)
		}
		if err := one.BuildIndexes(t.Context()); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]int{"Ada": 2, "Dee": 1, "Nobody": 0} {
			if found, err := lookup(t, h, one, name); err != nil || len(found) != want {
				t.Errorf("%s: got %v, %v", name, found, err)
			}
		}

		// Uniqueness waits for the values to be unique, and says how many are not.
		_, err = declare(t, one, uniqueName+plainPin)
		if slug(err) != "values-not-unique" || !strings.Contains(err.Error(), "1 values") {
			t.Fatalf("got %v", err)
		}
		if err := one.Delete(t.Context(), ada, ada.Customer(), ref("b"), vault.Condition{}); err != nil {
			t.Fatal(err)
		}
		if third := mustDeclare(t, one, uniqueName+plainPin); third.Version != 3 || third.Building != nil {
			t.Fatalf("got %+v", third)
		}
		if _, err := write(two, "e", `{"name":"Ada"}`); slug(err) != "value-taken" {
			t.Fatalf("got %v", err)
		}
		// The newest masks hold for what was written before.
		if r, err := two.Get(t.Context(), ada, ada.Customer(), ref("a"), vault.Reveal{}); err != nil || r.Fields["name"] != "****" || r.SchemaVersion != 1 {
			t.Fatalf("got %v, %v", r, err)
		}

		// Another type is refused, also after the field was away; what is away is hidden unless it is named.
		if _, err := declare(t, one, `name: {type: integer, x-strongroom: {sensitivity: personal}}`); slug(err) != "field-type-changed" {
			t.Fatalf("got %v", err)
		}
		mustDeclare(t, one, `other: {type: integer, x-strongroom: {sensitivity: public}}`)
		if _, err := declare(t, one, `pin: {type: number, x-strongroom: {sensitivity: public}}`); slug(err) != "field-type-changed" {
			t.Fatalf("got %v", err)
		}
		r, err := one.Get(t.Context(), ada, ada.Customer(), ref("a"), vault.Reveal{All: true, Purpose: "test"})
		if err != nil || r.Fields["name"] != "****" || r.Fields["pin"] != "****" {
			t.Fatalf("got %v, %v", r, err)
		}
		if r, err = one.Get(t.Context(), ada, ada.Customer(), ref("a"), vault.Reveal{Fields: []string{"name"}, Purpose: "test"}); err != nil || r.Fields["name"] != "Ada" {
			t.Fatalf("got %v, %v", r, err)
		}
		if err := one.BuildIndexes(t.Context()); err != nil {
			t.Fatal(err)
		}
		var left int
		if err := d.View(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM record_index WHERE collection = 'thing'`).Scan(&left)
		}); err != nil || left != 0 {
			t.Fatalf("%d rows of a field without an index are left, %v", left, err)
		}

		// What the operator sees, and what the trail keeps.
		show, err := one.ShowCollection(t.Context(), operator, "thing", 0)
		if err != nil || show.Version != 4 || show.Records.All != 2 || show.Records.Over != 0 || show.Records.Over30d != 2 || !show.Served {
			t.Fatalf("got %+v %+v, %v", show, show.Records, err)
		}
		out, err := one.Export(t.Context(), operator, ada.Customer())
		if err != nil || out.LegalBases["thing"] != vault.Contract || len(out.Collections["thing"]) != 2 || out.Collections["thing"][0].Fields["pin"] != "abcd" {
			t.Fatalf("exported %+v, %v", out, err)
		}
		h.clock.Advance(31 * 24 * time.Hour)
		if show, err = one.ShowCollection(t.Context(), operator, "thing", 0); err != nil || show.Records.Over != 2 {
			t.Fatalf("got %+v, %v", show.Records, err)
		}
		versions, err := one.CollectionHistory(t.Context(), operator, "thing")
		if err != nil || len(versions) != 4 || versions[3].Digest != first.Digest || versions[3].Served {
			t.Fatalf("got %+v, %v", versions, err)
		}
		if _, err := one.PutCollection(t.Context(), ada, []byte(`{name: thing}`)); slug(err) != "not-allowed" {
			t.Fatalf("got %v", err)
		}
		events := strings.Join(h.events(t), "\n")
		for _, want := range []string{
			"vault.collection.put granted operator collection thing v1 " + first.Digest + " basis contract",
			"vault.collection.index granted declaration-changed collection thing v2 3 records, index complete",
			"vault.collection.put denied values-not-unique collection thing",
			"vault.collection.put denied not-allowed collection",
			"vault.collection.show granted collection thing",
		} {
			if !strings.Contains(events, want) {
				t.Errorf("no event %q in\n%s", want, events)
			}
		}
	})
}

// The settings go before the operator, and an older server does not undo a newer one.
func TestPinned(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		parse := func(version int, mask string) vault.Collection {
			c, err := vault.ParseCollection(fmt.Appendf(nil, `{name: thing, version: %d, purposes: [test],
				schema: {properties: {name: {type: string, x-strongroom: {sensitivity: personal, mask: %s}}}}}`, version, mask))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		start := func(c vault.Collection) error {
			v, err := vault.New(h.db, h.keys, h.trail, vault.Options{Collections: []vault.Collection{c}, Pinned: true, Clock: h.clock})
			if err != nil {
				t.Fatal(err)
			}
			return v.Settle(t.Context(), operator)
		}
		v := h.settled(t, parse(1, "all"))
		if _, err := declare(t, v, plainName); slug(err) != "collection-pinned" {
			t.Fatalf("got %v", err)
		}
		if err := start(parse(1, "initial")); err == nil || !strings.Contains(err.Error(), "raise it to 2") {
			t.Fatalf("got %v", err)
		}
		if err := start(parse(2, "initial")); err != nil {
			t.Fatal(err)
		}
		if err := start(parse(1, "all")); err != nil { // the server that is still on the settings of before
			t.Fatal(err)
		}
		free := h.settled(t)
		if _, err := free.ShowCollection(t.Context(), operator, "thing", 0); err != nil {
			t.Fatal(err)
		}
		ada := h.person(t)
		if _, err := free.Get(t.Context(), ada, ada.Customer(), vault.Ref{Collection: "thing", Key: "a"}, vault.Reveal{}); slug(err) != "collection-not-found" {
			t.Fatalf("what the settings name no longer is served: %v", err)
		}
		if out := mustDeclare(t, free, plainName); out.Version != 3 {
			t.Fatalf("got %+v", out)
		}
		if err := start(parse(2, "initial")); err == nil || !strings.Contains(err.Error(), "take the collection out of the settings") {
			t.Fatalf("got %v", err)
		}
		// A server that serves it already goes on when the settings of another take it over.
		if err := start(parse(4, "all")); err != nil {
			t.Fatal(err)
		}
		if err := free.BuildIndexes(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r, _, err := free.Put(t.Context(), ada, ada.Customer(), vault.Ref{Collection: "thing", Key: "a"}, []byte(`{"name":"Ada"}`), vault.Condition{}); err != nil || r.SchemaVersion != 4 || r.Fields["name"] != "****" {
			t.Fatalf("got %v, %v", r, err)
		}
		// What ships is declared once, however often a server starts, and an operator may change it.
		all, err := free.Collections(t.Context(), operator)
		if err != nil || len(all) != 3 || all[0].Version != 1 || all[0].Source != vault.FromDefault {
			t.Fatalf("got %+v, %v", all, err)
		}
		if _, err := free.PutCollection(t.Context(), operator, []byte(`{name: profile, purposes: [test], schema: {properties: {given_name: {type: string, x-strongroom: {sensitivity: personal}}}}}`)); err != nil {
			t.Fatal(err)
		}
		h.settled(t)
		if all, err = free.Collections(t.Context(), operator); err != nil || all[1].Name != "profile" || all[1].Version != 2 || all[1].Source != vault.FromOperator {
			t.Fatalf("got %+v, %v", all, err)
		}
	})
}

// A declaration that was altered in the database is not believed, and neither is an older one.
func TestDeclarationTampered(t *testing.T) {
	for name, query := range map[string]string{
		"altered":  `UPDATE collection_version SET declaration = replace(declaration, 'initial', 'none') WHERE name = 'thing' AND version = 2`,
		"promoted": `UPDATE collection_version SET version = 9 WHERE name = 'thing' AND version = 1`,
		"managed":  `UPDATE collection_version SET source = 'default' WHERE name = 'thing' AND version = 2`,
		"cut":      `DELETE FROM collection_version WHERE name = 'thing' AND version = 1`,
		"put back": `DELETE FROM collection_version WHERE name = 'thing' AND version = 2`,
		"missing":  `DELETE FROM collection_version WHERE name = 'thing'`,
	} {
		t.Run(name, func(t *testing.T) {
			d := dbtest.Open(t, db.SQLite)
			h := newHouse(t, d, nil)
			v := h.settled(t)
			mustDeclare(t, v, plainName)
			mustDeclare(t, v, indexName)
			if err := v.BuildIndexes(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := d.Update(t.Context(), func(tx *db.Tx) error {
				n, err := tx.Exec(t.Context(), query)
				if n == 0 {
					t.Fatal("nothing was altered")
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if name == "altered" || name == "managed" {
				// No version changed: the process does not look. A new one does.
				fresh, err := vault.New(h.db, h.keys, h.trail, vault.Options{Clock: h.clock})
				if err != nil {
					t.Fatal(err)
				}
				if err := fresh.Settle(t.Context(), operator); !errors.Is(err, vault.ErrDeclarationDamaged) {
					t.Fatalf("got %v", err)
				}
			} else if err := v.BuildIndexes(t.Context()); !errors.Is(err, vault.ErrDeclarationDamaged) {
				t.Fatalf("got %v", err)
			}
			// And what was in force stays in force: a read shows the mask of before.
			ada := h.person(t)
			if _, _, err := v.Put(t.Context(), ada, ada.Customer(), vault.Ref{Collection: "thing", Key: "a"}, []byte(`{"name":"Ada"}`), vault.Condition{}); err == nil && name != "altered" && name != "managed" && name != "cut" {
				t.Error("a record was written under a declaration that is in doubt")
			}
		})
	}
}

// Whatever is declared after whatever, a record that was acknowledged stays readable, with what was written.
func TestAcknowledgedStaysReadable(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		v, ada, run := h.settled(t), h.person(t), 0
		rapid.Check(t, func(r *rapid.T) {
			run++
			collection := fmt.Sprintf("c%d", run)
			type acked struct {
				fields  map[string]any
				version int
			}
			written := make(map[string]acked)
			var names []string
			version := 0
			for range rapid.IntRange(2, 3).Draw(r, "steps") {
				properties := make(map[string]any)
				for _, name := range []string{"a", "b", "c"} {
					if rapid.Bool().Draw(r, "has "+name) || name == "a" && len(properties) == 0 {
						properties[name] = map[string]any{
							"type": map[string]string{"a": "string", "b": "integer", "c": "string"}[name],
							"x-strongroom": map[string]any{
								"sensitivity": rapid.SampledFrom([]string{"public", "internal", "personal", "special"}).Draw(r, "class"),
								"index":       rapid.Bool().Draw(r, "index"), "mask": "all",
							},
						}
					}
				}
				text, err := json.Marshal(map[string]any{"name": collection, "purposes": []string{"test"}, "schema": map[string]any{"properties": properties}})
				if err != nil {
					r.Fatal(err)
				}
				declared, err := v.PutCollection(t.Context(), operator, text)
				if err != nil {
					r.Fatal(err)
				}
				if !declared.Unchanged {
					version++
				}
				if declared.Version != version {
					r.Fatalf("version %d, want %d", declared.Version, version)
				}
				if rapid.Bool().Draw(r, "build") {
					if err := v.BuildIndexes(t.Context()); err != nil {
						r.Fatal(err)
					}
				}
				fields := make(map[string]any)
				for name := range properties {
					if fields[name] = any("text-" + rapid.StringMatching(`[a-z]{1,8}`).Draw(r, "text")); name == "b" {
						fields[name] = json.Number(fmt.Sprint(rapid.IntRange(-1000, 1000).Draw(r, "number")))
					}
				}
				body, err := json.Marshal(fields)
				if err != nil {
					r.Fatal(err)
				}
				key := fmt.Sprintf("k%d", len(written))
				if _, _, err := v.Put(t.Context(), ada, ada.Customer(), vault.Ref{Collection: collection, Key: key}, body, vault.Condition{}); err != nil {
					r.Fatal(err)
				}
				written[key] = acked{fields, version}
				for name := range fields {
					if !slices.Contains(names, name) {
						names = append(names, name)
					}
				}
			}
			for key, want := range written {
				got, err := v.Get(t.Context(), ada, ada.Customer(), vault.Ref{Collection: collection, Key: key}, vault.Reveal{Fields: names, Purpose: "test"})
				if err != nil || got.SchemaVersion != want.version || fmt.Sprint(got.Fields) != fmt.Sprint(want.fields) {
					r.Fatalf("%s: got %v, %v; want %v", key, got, err, want)
				}
				masked, err := v.Get(t.Context(), ada, ada.Customer(), vault.Ref{Collection: collection, Key: key}, vault.Reveal{})
				if err != nil {
					r.Fatal(err)
				}
				for name, shown := range masked.Fields {
					if shown != "****" {
						r.Fatalf("%s.%s shows %v", key, name, shown)
					}
				}
			}
		})
	})
}
