package vault_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/id"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// house is a vault over a real database, keyring and trail.
type house struct {
	db    *db.DB
	root  keyring.Root
	keys  *keyring.Keyring
	trail *audit.Trail
	vault *vault.Vault
	clock *clock.Manual
	log   *bytes.Buffer
}

// collections are the defaults and one that tests limits.
func collections() []vault.Collection {
	return append(vault.Defaults(), vault.Collection{
		Name: "note", Purposes: []string{"test"}, Retention: 24 * time.Hour, Limit: 3,
		Fields: []vault.Field{
			{Name: "text", Type: vault.String, Required: true, Sensitivity: vault.Special},
			{Name: "badge", Type: vault.Integer, Sensitivity: vault.Personal, Index: true, Unique: true},
		},
	})
}

func newHouse(t testing.TB, d *db.DB, collections []vault.Collection) *house {
	t.Helper()
	h := &house{
		db: d, root: keyringtest.Root(t), log: &bytes.Buffer{},
		clock: clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)),
	}
	h.reopen(t)
	h.vault = h.another(t, collections)
	return h
}

// reopen gives the house a keyring that has no key in its cache, as after a restart.
func (h *house) reopen(t testing.TB) {
	t.Helper()
	var err error
	h.keys, err = keyring.Open(t.Context(), actor.OfSystem("test"), keyring.Options{
		DB: h.db, Root: h.root, Create: true,
		Record: func(context.Context, *db.Tx, actor.Actor, customer.ID, string, string) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	h.trail = audit.New(h.db, h.keys, audit.Options{})
	h.vault = h.another(t, nil)
}

// another returns a second vault over the same database, as after a change of the configuration.
func (h *house) another(t testing.TB, collections []vault.Collection) *vault.Vault {
	t.Helper()
	v, err := vault.New(h.db, h.keys, h.trail, vault.Options{Collections: collections, Clock: h.clock, Log: slog.New(slog.NewJSONHandler(h.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// person makes a customer and returns them as an actor.
func (h *house) person(t testing.TB) actor.Actor {
	t.Helper()
	c := customer.NewID()
	err := h.db.Update(t.Context(), func(tx *db.Tx) error {
		_, err := h.keys.CreateCustomer(t.Context(), tx, actor.OfSystem("test"), c)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return actor.Actor{Kind: actor.Customer, ID: string(c), Device: id.New("dev"), Session: id.New("ses"),
		Address: netip.MustParseAddr("192.0.2.7"), Request: id.New("req")}
}

// events returns what the trail says of the vault, as "action outcome reason resource".
func (h *house) events(t testing.TB) []string {
	t.Helper()
	var out []string
	err := h.db.View(t.Context(), func(tx *db.Tx) error {
		out = nil
		rows, err := tx.Query(t.Context(), `SELECT action, outcome, reason, resource FROM event WHERE action LIKE $1`, "vault.%")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var action, outcome, reason, resource string
			if err := rows.Scan(&action, &outcome, &reason, &resource); err != nil {
				return err
			}
			out = append(out, strings.Join(strings.Fields(strings.TrimPrefix(action, "vault.record.")+" "+outcome+" "+reason+" "+resource), " "))
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// since returns the events that are new, sorted.
func since(before, after []string) []string {
	var out []string
	for _, e := range after {
		if i := slices.Index(before, e); i >= 0 {
			before = slices.Delete(slices.Clone(before), i, i+1)
		} else {
			out = append(out, e)
		}
	}
	return out
}

// serve answers as by, through HTTP.
func (h *house) serve(by actor.Actor) http.Handler {
	mux := http.NewServeMux()
	h.vault.Register(humago.New(mux, huma.DefaultConfig("test", "1")))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(actor.With(r.Context(), by)))
	})
}

const (
	adaProfile = `{"given_name":"Ada","family_name":"Lovelace","date_of_birth":"1985-12-10","email":"ada@example.com","country":"GB"}`
	adaAccount = `{"holder":"Ada Lovelace","iban":"GB82 WEST 1234 5698 7654 32","currency":"GBP"}`
)

func TestOperations(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, collections())
		ada, eve := h.person(t), h.person(t)
		stranger := actor.Actor{Kind: actor.Customer, ID: string(customer.NewID())}
		staff := actor.Actor{Kind: actor.Staff, ID: ada.ID}

		for _, row := range []struct {
			name           string
			by             *actor.Actor // nil is Ada
			do, body       string
			header         string
			status         int
			want, never    string // several with | between
			tag            string
			event, another string
		}{
			{name: "nothing yet", do: "GET /v1/records/profile/main", status: 404, want: "record-not-found", never: "sql",
				event: "read denied record-not-found record profile/main"},
			{name: "unknown collection", do: "GET /v1/records/medical/main", status: 404, want: "collection-not-found", never: "medical",
				event: "read denied collection-not-found record"},
			{name: "bad key", do: "GET /v1/records/profile/Ada%20Lovelace", status: 422, want: "invalid-key", never: "Lovelace",
				event: "read denied invalid-key record profile"},
			{name: "made", do: "PUT /v1/records/profile/main", body: adaProfile, status: 201,
				want:  `"version":1|"given_name":"A****"|"email":"a****@e****.com"|"date_of_birth":"1985-**-**"|"country":"GB"|"updated_at":"2026-01-02T03:04:05.678901Z"`,
				never: "Ada|Lovelace|ada@|12-10", tag: `"1"`, event: "create granted record profile/main v1"},
			{name: "blind overwrite", do: "PUT /v1/records/profile/main", body: adaProfile, status: 428, want: "precondition-required",
				event: "update denied precondition-required record profile/main"},
			{name: "make only new", do: "PUT /v1/records/profile/main", header: "If-None-Match: *", body: adaProfile, status: 412, want: "version-mismatch",
				event: "update denied version-mismatch record profile/main"},
			{name: "old version", do: "PUT /v1/records/profile/main", header: `If-Match: "7"`, body: adaProfile, status: 412, want: "version-mismatch",
				event: "update denied version-mismatch record profile/main"},
			{name: "broken condition", do: "PUT /v1/records/profile/main", header: `If-Match: 1`, body: adaProfile, status: 400, want: "invalid-precondition",
				event: "update denied invalid-precondition record profile/main"},
			{name: "replace what is not there", do: "PUT /v1/records/profile/other", header: `If-Match: *`, body: adaProfile, status: 412, want: "version-mismatch",
				event: "create denied version-mismatch record profile/other"},
			{name: "replaced", do: "PUT /v1/records/profile/main", header: `If-Match: "1"`, body: strings.Replace(adaProfile, "Ada", "Augusta", 1),
				status: 200, want: `"version":2`, never: "Augusta", tag: `"2"`, event: "update granted record profile/main v2"},
			{name: "masked", do: "GET /v1/records/profile/main", status: 200, want: `"given_name":"A****"|"family_name":"L****"`,
				never: "Augusta|Lovelace", tag: `"2"`, event: "read granted record profile/main v2"},
			{name: "purpose alone", do: "GET /v1/records/profile/main?purpose=show-to-customer", status: 200, never: "Augusta",
				event: "read granted record profile/main v2"},
			{name: "whole", do: "GET /v1/records/profile/main?reveal=all&purpose=show-to-customer", status: 200,
				want:  `"given_name":"Augusta"|"family_name":"Lovelace"|"email":"ada@example.com"`,
				event: "read granted purpose:show-to-customer record profile/main v2 reveal all"},
			{name: "one field", do: "GET /v1/records/profile/main?reveal=email,given_name&purpose=show-to-customer", status: 200,
				want: `"given_name":"Augusta"|"email":"ada@example.com"`, never: "Lovelace",
				event: "read granted purpose:show-to-customer record profile/main v2 reveal given_name,email"},
			{name: "no purpose", do: "GET /v1/records/profile/main?reveal=all", status: 422, want: "purpose-required", never: "Augusta",
				event: "read denied purpose-required record profile/main"},
			{name: "wrong purpose", do: "GET /v1/records/profile/main?reveal=all&purpose=marketing", status: 422, want: "purpose-not-allowed|show-to-customer",
				never: "Augusta|marketing", event: "read denied purpose-not-allowed record profile/main"},
			{name: "unknown field", do: "GET /v1/records/profile/main?reveal=nick_name&purpose=show-to-customer", status: 422, want: "unknown-field",
				never: "nick_name", event: "read denied unknown-field record profile/main"},
			{name: "mistyped parameter", do: "GET /v1/records/profile/main?reveals=all", status: 422, want: "unknown query parameter"},
			{name: "another's", by: &eve, do: "GET /v1/records/profile/main", status: 404, want: "record-not-found", never: "Augusta",
				event: "read denied record-not-found record profile/main"},
			{name: "nobody's", by: &stranger, do: "GET /v1/records/profile/main", status: 404, want: "customer-not-found",
				event: "read denied customer-not-found record profile/main"},
			{name: "staff", by: &staff, do: "GET /v1/records/profile/main", status: 403, want: "not-your-record", never: "Augusta",
				event: "read denied not-your-record record profile/main"},
			{name: "anonymous", by: &actor.Actor{Kind: actor.Anonymous}, do: "DELETE /v1/records/profile/main", status: 403, want: "not-your-record",
				event: "delete denied not-your-record record profile/main"},
			{name: "wrong fields", do: "PUT /v1/records/bank_account/main", body: `{"holder":"Ada","iban":"GB82WEST12345698765433","nick":"x"}`, status: 422,
				want: `invalid-record|"field":"iban"|"field":"nick"`, never: "GB82|Ada", event: "update denied invalid-record record bank_account/main"},
			{name: "not JSON", do: "PUT /v1/records/bank_account/main", body: `holder=Ada`, status: 400, want: "invalid-json", never: "Ada",
				event: "update denied invalid-json record bank_account/main"},
			{name: "not an object", do: "PUT /v1/records/bank_account/main", body: `"Ada"`, status: 400, want: "invalid-json", never: "Ada",
				event: "update denied invalid-json record bank_account/main"},
			{name: "form", do: "PUT /v1/records/bank_account/main", header: "Content-Type: application/x-www-form-urlencoded", body: adaAccount, status: 415,
				want: "unsupported-media-type", never: "Ada"},
			{name: "too large", do: "PUT /v1/records/bank_account/main", body: `{"holder":"` + strings.Repeat("x", 64<<10) + `"}`, status: 413},
			{name: "account", do: "PUT /v1/records/bank_account/main", header: "If-None-Match: *", body: adaAccount, status: 201,
				want: `"iban":"GB****5432"|"currency":"GBP"`, never: "WEST|Lovelace", tag: `"1"`, event: "create granted record bank_account/main v1"},
			{name: "another account", do: "PUT /v1/records/bank_account/a.b-C_9", header: "Content-Type: application/json; charset=utf-8", body: adaAccount, status: 201,
				want: `"key":"a.b-C_9"`, event: "create granted record bank_account/a.b-C_9 v1"},
			{name: "list", do: "GET /v1/records/bank_account", status: 200, want: `"key":"a.b-C_9"|"key":"main"|"next":""|"GB****5432"`, never: "WEST|Lovelace",
				event: "list granted collection bank_account 2 records a.b-C_9 to main"},
			{name: "first page", do: "GET /v1/records/bank_account?limit=1", status: 200, want: `"key":"a.b-C_9"|"next":"a.b-C_9"`, never: `"key":"main"`,
				event: "list granted collection bank_account 1 records a.b-C_9 to a.b-C_9"},
			{name: "second page", do: "GET /v1/records/bank_account?limit=1&after=a.b-C_9", status: 200, want: `"key":"main"|"next":""`, never: `"a.b-C_9"`,
				event: "list granted collection bank_account 1 records main to main"},
			{name: "no page", by: &eve, do: "GET /v1/records/bank_account", status: 200, want: `"records":[]|"next":""`,
				event: "list granted collection bank_account 0 records"},
			{name: "limit", do: "GET /v1/records/bank_account?limit=101", status: 422},
			{name: "bad after", do: "GET /v1/records/bank_account?after=%00", status: 422, want: "invalid-key", event: "list denied invalid-key collection bank_account"},
			{name: "list of nothing known", do: "GET /v1/records/medical", status: 404, want: "collection-not-found", event: "list denied collection-not-found collection"},
			{name: "delete an old version", do: "DELETE /v1/records/profile/main", header: `If-Match: "1"`, status: 412, want: "version-mismatch",
				event: "delete denied version-mismatch record profile/main"},
			{name: "delete", do: "DELETE /v1/records/profile/main", header: `If-Match: "1", "2"`, status: 204, event: "delete granted record profile/main v2"},
			{name: "delete again", do: "DELETE /v1/records/profile/main", status: 404, want: "record-not-found", event: "delete denied record-not-found record profile/main"},
			{name: "made anew", do: "PUT /v1/records/profile/main", body: adaProfile, status: 201, want: `"version":3`, tag: `"3"`, event: "create granted record profile/main v3"},
			{name: "with a tag of the former", do: "PUT /v1/records/profile/main", header: `If-Match: "2"`, body: adaProfile, status: 412, want: "version-mismatch",
				event: "update denied version-mismatch record profile/main"},
			{name: "any version", do: "PUT /v1/records/profile/main", header: `If-Match: *`, body: adaProfile, status: 200, want: `"version":4`, event: "update granted record profile/main v4"},
			{name: "unique", do: "PUT /v1/records/note/1", body: `{"text":"x","badge":7}`, status: 201, want: `"badge":"****"`, event: "create granted record note/1 v1"},
			{name: "unique, kept", do: "PUT /v1/records/note/1", header: "If-Match: *", body: `{"text":"y","badge":7}`, status: 200, event: "update granted record note/1 v2"},
			{name: "taken", by: &eve, do: "PUT /v1/records/note/1", body: `{"text":"x","badge":7}`, status: 409, want: `value-taken|"field":"badge"`,
				event: "create denied value-taken record note/1 v1", never: `:7`},
			{name: "taken, so not made", by: &eve, do: "GET /v1/records/note/1", status: 404, event: "read denied record-not-found record note/1"},
			{name: "second note", do: "PUT /v1/records/note/2", body: `{"text":"x"}`, status: 201, event: "create granted record note/2 v1"},
			{name: "third note", do: "PUT /v1/records/note/3", body: `{"text":"x"}`, status: 201, event: "create granted record note/3 v1"},
			{name: "one too many", do: "PUT /v1/records/note/4", body: `{"text":"x"}`, status: 409, want: "too-many-records|at most 3",
				event: "create denied too-many-records record note/4"},
			{name: "full but replaced", do: "PUT /v1/records/note/3", header: "If-Match: *", body: `{"text":"x"}`, status: 200, event: "update granted record note/3 v2"},
		} {
			t.Run(row.name, func(t *testing.T) {
				by := ada
				if row.by != nil {
					by = *row.by
				}
				method, path, _ := strings.Cut(row.do, " ")
				r := httptest.NewRequest(method, path, strings.NewReader(row.body))
				if method == "PUT" {
					r.Header.Set("Content-Type", "application/json")
				}
				if name, value, ok := strings.Cut(row.header, ": "); ok {
					r.Header.Set(name, value)
				}
				before := h.events(t)
				w := httptest.NewRecorder()
				h.serve(by).ServeHTTP(w, r)
				answer := w.Body.String()
				if w.Code != row.status {
					t.Fatalf("status %d, want %d: %s", w.Code, row.status, answer)
				}
				for want := range strings.SplitSeq(row.want, "|") {
					if !strings.Contains(answer, want) {
						t.Errorf("%s lacks %s", answer, want)
					}
				}
				for never := range strings.SplitSeq(row.never, "|") {
					if never != "" && strings.Contains(answer, never) {
						t.Errorf("%s shows %s", answer, never)
					}
				}
				if row.tag != "" && w.Header().Get("ETag") != row.tag {
					t.Errorf("ETag %s, want %s", w.Header().Get("ETag"), row.tag)
				}
				if w.Code == 200 && w.Header().Get("Cache-Control") != "no-store" {
					t.Errorf("may be cached")
				}
				var want []string
				if row.event != "" {
					want = []string{row.event}
				}
				if got := since(before, h.events(t)); !slices.Equal(got, want) {
					t.Errorf("events %q, want %q", got, want)
				}
			})
		}
		if h.log.Len() > 0 {
			t.Errorf("logged: %s", h.log)
		}
	})
}

func TestDocument(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), nil)
	api := humago.New(http.NewServeMux(), huma.DefaultConfig("test", "1"))
	h.vault.Register(api)
	document, err := json.Marshal(api.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"RecordOf_profile"`, `#/components/schemas/RecordOf_bank_account`, `"required":["holder","iban"]`,
		`"additionalProperties":false`, `"If-None-Match"`, `"application/octet-stream":{}`, `"security":[{"session":["write"]}]`} {
		if !bytes.Contains(document, []byte(want)) {
			t.Errorf("the document lacks %s", want)
		}
	}
	for _, never := range []string{`"binary"`, `"Content-Type"`} {
		if bytes.Contains(document, []byte(never)) {
			t.Errorf("the document has %s", never)
		}
	}
}

func (h *house) put(t testing.TB, by actor.Actor, ref vault.Ref, body string, c vault.Condition) vault.Record {
	t.Helper()
	r, _, err := h.vault.Put(t.Context(), by, by.Customer(), ref, []byte(body), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var (
	profile = vault.Ref{Collection: "profile", Key: "main"}
	account = vault.Ref{Collection: "bank_account", Key: "main"}
	whole   = vault.Reveal{All: true, Purpose: "show-to-customer"}
)

// Of writers that hold the same ETag, or that make the same record, exactly one wins.
func TestOneWriterWins(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		ada := h.person(t)
		race := func(c vault.Condition) (won int64) {
			const writers = 8
			var wg sync.WaitGroup
			results := make([]error, writers)
			versions := make([]int64, writers)
			for i := range writers {
				wg.Go(func() {
					var r vault.Record
					r, _, results[i] = h.vault.Put(t.Context(), ada, ada.Customer(), profile, []byte(adaProfile), c)
					versions[i] = r.Version
				})
			}
			wg.Wait()
			wins := 0
			for i, err := range results {
				switch {
				case err == nil:
					wins++
					won = versions[i]
				case !problem.Is(err, "version-mismatch"):
					t.Fatal(err)
				}
			}
			if wins != 1 {
				t.Fatalf("%d writers won", wins)
			}
			return won
		}
		version := race(vault.IfAbsent())
		for range 4 {
			next := race(vault.IfVersion(version))
			if next != version+1 {
				t.Fatalf("version %d after %d", next, version)
			}
			version = next
		}
		got := h.events(t)
		if count := strings.Count(strings.Join(got, "\n"), " granted "); count != 5 || len(got) != 40 {
			t.Errorf("%d of %d events granted, want 5 of 40", count, len(got))
		}
	})
}

// However records are made, replaced and deleted, an ETag is given once.
func TestVersionsNeverComeBack(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		ada := h.person(t)
		seen := map[string]map[int64]bool{}
		for i := range 30 {
			ref := vault.Ref{Collection: "profile", Key: string("ab"[i%2])}
			if seen[ref.Key] == nil {
				seen[ref.Key] = map[int64]bool{}
			}
			c := vault.Condition{}
			for range i % 5 {
				r := h.put(t, ada, ref, adaProfile, c)
				if seen[ref.Key][r.Version] {
					t.Fatalf("version %d of %s came back", r.Version, ref.Key)
				}
				seen[ref.Key][r.Version] = true
				c = vault.IfVersion(r.Version)
			}
			if i%5 > 0 {
				if err := h.vault.Delete(t.Context(), ada, ada.Customer(), ref, c); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// exchange swaps the sealed values of two records in the database, as somebody could who has it but
// not the keys.
func (h *house) exchange(t *testing.T, one, two string) {
	t.Helper()
	err := h.db.Update(t.Context(), func(tx *db.Tx) error {
		read := func(where string) (sealed []byte) {
			if err := tx.QueryRow(t.Context(), `SELECT sealed FROM record WHERE `+where).Scan(&sealed); err != nil {
				t.Error(err)
			}
			return sealed
		}
		a, b := read(one), read(two)
		if _, err := tx.Exec(t.Context(), `UPDATE record SET sealed = $1 WHERE `+one, b); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `UPDATE record SET sealed = $1 WHERE `+two, a)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAlteredRowsDoNotOpen(t *testing.T) {
	is := func(c actor.Actor, key string) string { return "customer_id = '" + c.ID + "' AND key = '" + key + "'" }
	set := func(h *house, t *testing.T, where, change string) {
		t.Helper()
		err := h.db.Update(t.Context(), func(tx *db.Tx) error {
			n, err := tx.Exec(t.Context(), `UPDATE record SET `+change+` WHERE `+where)
			if n != 1 {
				t.Errorf("changed %d rows", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, alter := range map[string]func(t *testing.T, h *house, ada, eve actor.Actor){
		"exchanged with another record":   func(t *testing.T, h *house, ada, eve actor.Actor) { h.exchange(t, is(ada, "main"), is(ada, "other")) },
		"exchanged with another customer": func(t *testing.T, h *house, ada, eve actor.Actor) { h.exchange(t, is(ada, "main"), is(eve, "main")) },
		"version":                         func(t *testing.T, h *house, ada, eve actor.Actor) { set(h, t, is(ada, "main"), "version = 2") },
		"schema version": func(t *testing.T, h *house, ada, eve actor.Actor) {
			set(h, t, is(ada, "main"), "schema_version = 2")
		},
		"cut": func(t *testing.T, h *house, ada, eve actor.Actor) {
			set(h, t, is(ada, "main"), "sealed = substr(sealed, 1, 20)")
		},
		"another's row": func(t *testing.T, h *house, ada, eve actor.Actor) {
			set(h, t, is(ada, "main"), "key = 'away'")
			set(h, t, is(eve, "main"), "customer_id = '"+ada.ID+"'")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, d *db.DB) {
				h := newHouse(t, d, nil)
				ada, eve := h.person(t), h.person(t)
				other := vault.Ref{Collection: "profile", Key: "other"}
				h.put(t, ada, profile, adaProfile, vault.Condition{})
				h.put(t, ada, other, strings.Replace(adaProfile, "Ada", "Canary", 1), vault.Condition{})
				h.put(t, eve, profile, strings.Replace(adaProfile, "Ada", "Canary", 1), vault.Condition{})
				alter(t, h, ada, eve)
				before := h.events(t)
				r, err := h.vault.Get(t.Context(), ada, ada.Customer(), profile, whole)
				if !problem.Is(err, "record-unreadable") || r.Fields != nil {
					t.Fatalf("got %v, %v", r, err)
				}
				page, next, err := h.vault.List(t.Context(), ada, ada.Customer(), "profile", "", 10)
				if !problem.Is(err, "record-unreadable") || page != nil || next != "" {
					t.Fatalf("got %v, %v", page, err)
				}
				want := "read failed record-unreadable record profile/main reveal all"
				if got := since(before, h.events(t)); !slices.Contains(got, want) {
					t.Errorf("events %q lack %q", got, want)
				}
				if !strings.Contains(h.log.String(), "a record does not open") || strings.Contains(h.log.String(), "Canary") {
					t.Errorf("log: %s", h.log)
				}
			})
		})
	}
}

func (h *house) lookup(t testing.TB, collection, field, value string) (found []vault.Match) {
	t.Helper()
	err := h.db.View(t.Context(), func(tx *db.Tx) (err error) {
		found, err = h.vault.Lookup(t.Context(), tx, collection, field, value)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestLookup(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, collections())
		ada, eve := h.person(t), h.person(t)
		h.put(t, ada, account, adaAccount, vault.Condition{})
		h.put(t, ada, profile, adaProfile, vault.Condition{})
		expect := func(want []vault.Match, collection, field, value string) {
			t.Helper()
			if got := h.lookup(t, collection, field, value); !slices.Equal(got, want) {
				t.Fatalf("%s: found %v, want %v", field, got, want)
			}
		}
		hers := []vault.Match{{Customer: ada.Customer(), Key: "main"}}
		expect(hers, "bank_account", "iban", "GB82WEST12345698765432")
		expect(hers, "bank_account", "iban", "gb82 west 1234 5698 7654 32")
		expect(nil, "bank_account", "iban", "GB33BUKB20201555555555")
		expect(nil, "bank_account", "iban", "nonsense")
		expect(hers, "profile", "email", "ada@example.com")

		h.put(t, ada, profile, strings.Replace(adaProfile, "ada@", "countess@", 1), vault.IfVersion(1))
		expect(nil, "profile", "email", "ada@example.com")
		expect(hers, "profile", "email", "countess@example.com")

		// Somebody who can write the database plants Ada's index on Eve's record.
		h.put(t, eve, profile, strings.Replace(adaProfile, "ada@", "eve@", 1), vault.Condition{})
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `INSERT INTO record_index (collection, field, key_version, blind, customer_id, key, sole)
				SELECT collection, field, key_version, blind, $1, key, sole FROM record_index WHERE customer_id = $2 AND field = 'email'`, eve.ID, ada.ID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		expect(hers, "profile", "email", "countess@example.com")
		if !strings.Contains(h.log.String(), "an index row leads to a wrong record") {
			t.Error("the planted row is not reported")
		}

		if err := h.vault.Delete(t.Context(), ada, ada.Customer(), account, vault.Condition{}); err != nil {
			t.Fatal(err)
		}
		expect(nil, "bank_account", "iban", "GB82WEST12345698765432")
		_ = d.View(t.Context(), func(tx *db.Tx) error {
			if _, err := h.vault.Lookup(t.Context(), tx, "profile", "city", "London"); err == nil {
				t.Error("found by a field without an index")
			}
			return nil
		})
	})
}

// What the configuration says today does not take away what was written yesterday.
func TestOldDeclarations(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		old := vault.Collection{Name: "c", Purposes: []string{"test"}, Fields: []vault.Field{
			{Name: "kept", Type: vault.String, Sensitivity: vault.Personal, Index: true},
			{Name: "dropped", Type: vault.String, Sensitivity: vault.Public, Index: true},
		}}
		h := newHouse(t, d, []vault.Collection{old})
		ada := h.person(t)
		ref := vault.Ref{Collection: "c", Key: "1"}
		h.put(t, ada, ref, `{"kept":"one","dropped":"two"}`, vault.Condition{})

		changed := vault.Collection{Name: "c", Version: 2, Purposes: []string{"test"}, Fields: []vault.Field{
			{Name: "kept", Type: vault.String, Sensitivity: vault.Personal},
			{Name: "new", Type: vault.String, Required: true, Sensitivity: vault.Personal},
		}}
		h.vault = h.another(t, []vault.Collection{changed})
		r, err := h.vault.Get(t.Context(), ada, ada.Customer(), ref, vault.Reveal{All: true, Purpose: "test"})
		if err != nil || r.SchemaVersion != 1 || r.Fields["kept"] != "one" || r.Fields["dropped"] != "****" {
			t.Fatalf("got %v, %v", r, err)
		}
		if r, err = h.vault.Get(t.Context(), ada, ada.Customer(), ref, vault.Reveal{}); err != nil || r.Fields["dropped"] != "****" {
			t.Fatalf("got %v, %v", r, err)
		}
		if r := h.put(t, ada, ref, `{"new":"three"}`, vault.IfVersion(r.Version)); r.SchemaVersion != 2 {
			t.Fatalf("got %v", r)
		}
		var left int
		err = d.View(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM record_index`).Scan(&left)
		})
		if err != nil || left != 0 {
			t.Errorf("%d index rows are left, %v", left, err)
		}
	})
}

func TestExpire(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		c := collections()
		c[2].Limit = 200
		h := newHouse(t, d, c)
		ada := h.person(t)
		key := func(i int) vault.Ref { return vault.Ref{Collection: "note", Key: fmt.Sprintf("%03d", i)} }
		for i := range 130 { // more than two batches
			h.put(t, ada, key(i), fmt.Sprintf(`{"text":"x","badge":%d}`, i), vault.Condition{})
		}
		h.put(t, ada, profile, adaProfile, vault.Condition{})
		h.clock.Advance(24*time.Hour - time.Microsecond)
		h.put(t, ada, key(7), `{"text":"y"}`, vault.IfVersion(1))
		before := h.events(t)
		if err := h.vault.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := since(before, h.events(t)); got != nil {
			t.Fatalf("too early: %q", got)
		}
		h.clock.Advance(time.Microsecond)
		if err := h.vault.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := since(before, h.events(t))
		if len(got) != 129 || got[0] != "expire granted retention-over record note/000 v1" || slices.ContainsFunc(got, func(e string) bool { return strings.Contains(e, "note/007") }) {
			t.Fatalf("%d events: %q", len(got), got)
		}
		page, _, err := h.vault.List(t.Context(), ada, ada.Customer(), "note", "", 100)
		if err != nil || len(page) != 1 || page[0].Key != "007" {
			t.Fatalf("left %v, %v", page, err)
		}
		if found := h.lookup(t, "note", "badge", "8"); len(found) > 0 {
			t.Errorf("found %v", found)
		}
		if _, err := h.vault.Get(t.Context(), ada, ada.Customer(), profile, vault.Reveal{}); err != nil {
			t.Error(err)
		}
		if r := h.put(t, ada, key(8), `{"text":"x"}`, vault.Condition{}); r.Version != 2 {
			t.Errorf("version %d, want 2", r.Version)
		}
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.vault.Expire(cancelled); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestErasedCustomer(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		ada := h.person(t)
		h.put(t, ada, profile, adaProfile, vault.Condition{})
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			if _, err := tx.Exec(t.Context(), `UPDATE data_key SET wrapped = NULL, state = 'destroyed' WHERE customer_id = $1`, ada.ID); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `INSERT INTO data_key_tombstone (customer_id, erased_at, mac) VALUES ($1, $2, $3)`, ada.ID, 1, h.keys.TombstoneMAC(ada.Customer(), 1))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		// A keyring that never held the key, as after a restart.
		h.reopen(t)
		before := h.events(t)
		_, err = h.vault.Get(t.Context(), ada, ada.Customer(), profile, vault.Reveal{})
		gone := func(err error) {
			t.Helper()
			if p := problem.Of(err); p == nil || p.Kind() != problem.Gone {
				t.Errorf("got %v", err)
			}
		}
		gone(err)
		_, _, err = h.vault.List(t.Context(), ada, ada.Customer(), "profile", "", 10)
		gone(err)
		_, _, err = h.vault.Put(t.Context(), ada, ada.Customer(), profile, []byte(adaProfile), vault.IfVersion(1))
		gone(err)
		gone(h.vault.Delete(t.Context(), ada, ada.Customer(), profile, vault.Condition{}))
		if found := h.lookup(t, "profile", "email", "ada@example.com"); len(found) > 0 {
			t.Errorf("found %v", found)
		}
		if got := since(before, h.events(t)); len(got) != 4 || !strings.HasPrefix(got[0], "delete denied customer-erased") {
			t.Errorf("events %q", got)
		}
	})
}

// Neither the database's files nor its decrypted tables hold a value in plaintext.
func TestNoPlaintext(t *testing.T) {
	const canary = "Zephyrine"
	o := dbtest.SQLite(t)
	d, err := db.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h := newHouse(t, d, nil)
	ada := h.person(t)
	h.put(t, ada, profile, strings.ReplaceAll(adaProfile, "Ada", canary), vault.Condition{})
	if r, err := h.vault.Get(t.Context(), ada, ada.Customer(), profile, whole); err != nil || r.Fields["given_name"] != canary {
		t.Fatal(r, err)
	}
	_, _, err = h.vault.Put(t.Context(), ada, ada.Customer(), profile, []byte(`{"`+canary+`":"`+canary+`"}`), vault.Condition{})
	if err == nil || strings.Contains(err.Error(), canary) {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(o.Dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(canary)) || bytes.Contains(content, []byte("ada@example.com")) {
			t.Errorf("%s holds plaintext", path)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Fatal(files, err)
	}
	err = d.View(t.Context(), func(tx *db.Tx) error {
		for _, query := range []string{`SELECT sealed FROM record`, `SELECT blind FROM record_index`, `SELECT resource FROM event`, `SELECT reason FROM event`} {
			rows, err := tx.Query(t.Context(), query)
			if err != nil {
				return err
			}
			seen := 0
			for rows.Next() {
				seen++
				var b []byte
				if err := rows.Scan(&b); err != nil {
					return err
				}
				if bytes.Contains(b, []byte(canary)) || bytes.Contains(b, []byte("ada@example.com")) {
					t.Errorf("%s shows plaintext", query)
				}
			}
			if seen == 0 {
				t.Errorf("%s shows nothing", query)
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(h.log.String(), canary) {
		t.Error("the log holds plaintext")
	}
}

// Many readers and writers on one record: a reader sees a version that was written, whole.
func TestReadersAmongWriters(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		ada := h.person(t)
		body := func(n int64) string { return strings.Replace(adaProfile, "ada@", fmt.Sprintf("v%d@", n), 1) }
		h.put(t, ada, profile, body(1), vault.Condition{})
		const last = 20
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for version := int64(0); version < last; {
					r, err := h.vault.Get(t.Context(), ada, ada.Customer(), profile, whole)
					if err != nil {
						t.Error(err)
						return
					}
					if r.Version < version || r.Fields["email"] != fmt.Sprintf("v%d@example.com", r.Version) {
						t.Errorf("version %d after %d holds %v", r.Version, version, r.Fields["email"])
						return
					}
					version = r.Version
				}
			})
		}
		for n := int64(2); n <= last; n++ {
			h.put(t, ada, profile, body(n), vault.IfVersion(n-1))
		}
		wg.Wait()
	})
}

// Customers who work with their own records at the same time are not in each other's way.
func TestCustomersDoNotDisturbEachOther(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		h.vault = h.settled(t)
		var wg sync.WaitGroup
		for i := range 24 {
			by := h.person(t)
			wg.Go(func() {
				for round := range 4 {
					body := strings.Replace(adaProfile, "ada@", fmt.Sprintf("ada%d.%d@", i, round), 1)
					r, created, err := h.vault.Put(t.Context(), by, by.Customer(), profile, []byte(body), vault.IfAbsent())
					if err != nil || !created {
						t.Errorf("create: %v", err)
						return
					}
					r, _, err = h.vault.Put(t.Context(), by, by.Customer(), profile, []byte(adaProfile), vault.IfVersion(r.Version))
					if err != nil {
						t.Errorf("update: %v", err)
						return
					}
					if _, err := h.vault.Get(t.Context(), by, by.Customer(), profile, vault.Reveal{}); err != nil {
						t.Errorf("read: %v", err)
					}
					if err := h.vault.Delete(t.Context(), by, by.Customer(), profile, vault.IfVersion(r.Version)); err != nil {
						t.Errorf("delete: %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}
