package vault_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

const grants = `
permit (principal == Service::"crm", action, resource);
permit (
  principal == Service::"payouts",
  action in [Action::"record.read", Action::"record.reveal"],
  resource == Collection::"bank_account"
) when { context.purpose == "payment" && ["iban"].containsAll(context.fields) };
`

// desk is the vault as services see it.
type desk struct {
	*house
	book     *once.Book
	services *vault.Services
	mux      *http.ServeMux
}

func withHistory() []vault.Collection {
	all := collections()
	for i := range all {
		if all[i].Name == "profile" {
			all[i].History = 2
		}
	}
	return all
}

func newDesk(t testing.TB, d *db.DB) *desk {
	t.Helper()
	h := newHouse(t, d, withHistory())
	return deskOf(t, h, once.New(d, h.keys, h.clock))
}

func deskOf(t testing.TB, h *house, book *once.Book) *desk {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "test.cedar"), []byte(grants), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := policy.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	k := &desk{house: h, book: book, mux: http.NewServeMux()}
	k.services = h.vault.ForServices(set, k.book)
	k.services.Register(humago.New(k.mux, huma.DefaultConfig("test", "1")))
	return k
}

func service(name string) actor.Actor {
	return actor.Actor{Kind: actor.Service, ID: name, Request: "req_test"}
}

// customer makes a customer who is known without the app.
func (k *desk) customer(t testing.TB) customer.ID {
	t.Helper()
	c, err := k.services.CreateCustomer(t.Context(), service("crm"), vault.Access{Purpose: "onboarding"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type call struct {
	method, path, body string
	by                 string            // the service; crm unless said otherwise
	purpose            string            // "-" is none
	header             map[string]string // more
}

func (k *desk) call(t testing.TB, c call) (int, http.Header, string) {
	t.Helper()
	r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)).WithContext(t.Context())
	if c.by == "" {
		c.by = "crm"
	}
	if c.purpose == "" {
		c.purpose = "support"
	}
	if c.purpose != "-" {
		r.Header.Set("Strongroom-Purpose", c.purpose)
	}
	if c.body != "" {
		r.Header.Set("Content-Type", "application/json")
		if c.method == "PATCH" {
			r.Header.Set("Content-Type", "application/merge-patch+json")
		}
	}
	for name, value := range c.header {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	k.mux.ServeHTTP(w, r.WithContext(actor.With(r.Context(), service(c.by))))
	b, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, w.Header(), string(b)
}

func TestServicesWorkWithRecords(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada, eve := k.customer(t), k.customer(t)
		at := func(rest string) string { return "/v1/customers/" + string(ada) + "/records/" + rest }
		ghost := "/v1/customers/" + string(customer.NewID()) + "/records/profile/main"
		// In this order: each row sees what those before it have left.
		for _, row := range []struct {
			name   string
			call   call
			status int
			want   string
			never  string
			event  string // what is new in the trail, "; " between
		}{
			{"make a record", call{method: "PUT", path: at("profile/main"), body: adaProfile}, 201, `"given_name":"A****"`, "Lovelace",
				"create granted purpose:support record profile/main v1"},
			{"make it again", call{method: "PUT", path: at("profile/main"), body: adaProfile}, 428, "precondition-required", "Ada",
				"update denied precondition-required record profile/main"},
			{"replace it", call{method: "PUT", path: at("profile/main"), body: adaProfile, header: map[string]string{"If-Match": `"1"`}}, 200, `"version":2`, "Lovelace",
				"update granted purpose:support record profile/main v2"},
			{"change a field", call{method: "PATCH", path: at("profile/main"), body: `{"city":"London","country":null}`}, 200, `"city":"L****"`, `"country"`,
				"update granted purpose:support record profile/main v3"},
			{"change an old version", call{method: "PATCH", path: at("profile/main"), body: `{"city":"Paris"}`, header: map[string]string{"If-Match": `"2"`}}, 412, "version-mismatch", "Paris",
				"update denied version-mismatch record profile/main"},
			{"take a needed field away", call{method: "PATCH", path: at("profile/main"), body: `{"given_name":null}`}, 422, `"is required"`, "Lovelace",
				"update denied invalid-record record profile/main"},
			{"change to something else", call{method: "PATCH", path: at("profile/main"), body: `{"email":"not an address"}`}, 422, `"email"`, "not an address",
				"update denied invalid-record record profile/main"},
			{"change twice in one", call{method: "PATCH", path: at("profile/main"), body: `{"city":"Rome","city":"Oslo"}`}, 422, "more than once", "Oslo",
				"update denied invalid-record record profile/main"},
			{"change what is not there", call{method: "PATCH", path: at("profile/other"), body: `{"city":"Rome"}`}, 404, "record-not-found", "Rome",
				"update denied record-not-found record profile/other"},
			{"patch as plain JSON", call{method: "PATCH", path: at("profile/main"), body: `{"city":"Rome"}`, header: map[string]string{"Content-Type": "application/json"}}, 415, "merge-patch", "Rome", ""},
			{"read masked", call{method: "GET", path: at("profile/main")}, 200, `"date_of_birth":"1985-**-**"`, "Lovelace",
				"read granted purpose:support record profile/main v3"},
			{"reveal for a purpose that the collection has not", call{method: "GET", path: at("profile/main?reveal=email")}, 422, "purpose-not-allowed", "ada@example",
				"read denied purpose-not-allowed record profile/main"},
			{"reveal", call{method: "GET", path: at("profile/main?reveal=email"), purpose: "show-to-customer"}, 200, `"email":"ada@example.com"`, "Lovelace",
				"read granted purpose:show-to-customer record profile/main v3 reveal email"},
			{"reveal all", call{method: "GET", path: at("profile/main?reveal=all"), purpose: "show-to-customer"}, 200, "Lovelace", "****",
				"read granted purpose:show-to-customer record profile/main v3 reveal all"},
			{"list versions", call{method: "GET", path: at("profile/main/versions")}, 200, `{"version":1,`, "Ada",
				"history granted purpose:support record profile/main"},
			{"read an old version", call{method: "GET", path: at("profile/main?version=1&reveal=country"), purpose: "show-to-customer"}, 200, `"country":"GB"`, "Lovelace",
				"read granted purpose:show-to-customer record profile/main v1 reveal country"},
			{"read a version that never was", call{method: "GET", path: at("profile/main?version=9")}, 404, "record-not-found", "Ada",
				"read denied record-not-found record profile/main v9"},
			{"list", call{method: "GET", path: at("profile?limit=5")}, 200, `"key":"main"`, "Lovelace",
				"list granted purpose:support collection profile 1 records main to main"},
			{"no purpose", call{method: "GET", path: at("profile/main"), purpose: "-"}, 422, "purpose-required", "Ada",
				"read denied purpose-required record profile/main"},
			{"a purpose that is a person", call{method: "GET", path: at("profile/main"), purpose: "Ada Lovelace"}, 422, "invalid-purpose", "Ada",
				"read denied invalid-purpose record profile/main"},
			{"a service without permission", call{method: "GET", path: at("profile/main"), by: "payouts", purpose: "payment"}, 403, "not-permitted", "Ada",
				"read denied not-permitted record profile/main"},
			{"a service that nobody knows", call{method: "DELETE", path: at("profile/main"), by: "stranger"}, 403, "not-permitted", "Ada",
				"delete denied not-permitted record profile/main"},
			{"a collection that is not there", call{method: "GET", path: at("secrets/main")}, 404, "collection-not-found", "Ada",
				"read denied collection-not-found record"},
			{"a customer who is not there", call{method: "GET", path: ghost}, 404, "customer-not-found", "Ada",
				"read denied customer-not-found record profile/main"},
			{"a customer who cannot be", call{method: "GET", path: "/v1/customers/+447700900123/records/profile/main"}, 404, "customer-not-found", "447700",
				"read denied customer-not-found record profile/main"},
			{"an account for the other", call{method: "PUT", path: "/v1/customers/" + string(eve) + "/records/bank_account/rent", body: adaAccount}, 201, `GB****5432`, "GB82",
				"create granted purpose:support record bank_account/rent v1"},
			{"payouts reads it for its purpose", call{method: "GET", path: "/v1/customers/" + string(eve) + "/records/bank_account/rent?reveal=iban", by: "payouts", purpose: "payment"}, 200, "GB82WEST12345698765432", "Lovelace",
				"read granted purpose:payment record bank_account/rent v1 reveal iban"},
			{"and not for another", call{method: "GET", path: "/v1/customers/" + string(eve) + "/records/bank_account/rent?reveal=iban", by: "payouts", purpose: "show-to-customer"}, 403, "not-permitted", "GB82",
				"read denied not-permitted record bank_account/rent"},
			{"nor another field", call{method: "GET", path: "/v1/customers/" + string(eve) + "/records/bank_account/rent?reveal=holder", by: "payouts", purpose: "payment"}, 403, "not-permitted", "Ada",
				"read denied not-permitted record bank_account/rent"},
			{"nor all of them", call{method: "GET", path: "/v1/customers/" + string(eve) + "/records/bank_account/rent?reveal=all", by: "payouts", purpose: "payment"}, 403, "not-permitted", "GB82",
				"read denied not-permitted record bank_account/rent"},
			{"look up", call{method: "POST", path: "/v1/lookup", body: `{"collection":"profile","field":"email","value":"ada@example.com"}`}, 200, string(ada), "ada@",
				"lookup granted purpose:support collection profile field email 1 found; lookup granted purpose:support record profile/main field email"},
			{"look up nobody", call{method: "POST", path: "/v1/lookup", body: `{"collection":"profile","field":"email","value":"eve@example.com"}`}, 200, `"matches":[]`, "eve@",
				"lookup granted purpose:support collection profile field email 0 found"},
			{"look up by a field without index", call{method: "POST", path: "/v1/lookup", body: `{"collection":"profile","field":"city","value":"London"}`}, 422, "field-not-indexed", "London",
				"lookup denied field-not-indexed collection profile"},
			{"look up without permission", call{method: "POST", path: "/v1/lookup", by: "payouts", purpose: "payment", body: `{"collection":"bank_account","field":"iban","value":"GB82WEST12345698765432"}`}, 403, "not-permitted", "GB82",
				"lookup denied not-permitted collection bank_account field iban"},
			{"delete", call{method: "DELETE", path: at("profile/main"), header: map[string]string{"If-Match": `"3"`}}, 204, "", "Ada",
				"delete granted purpose:support record profile/main v3"},
			{"its history is gone too", call{method: "GET", path: at("profile/main/versions")}, 404, "record-not-found", "Ada",
				"history denied record-not-found record profile/main"},
		} {
			before := k.events(t)
			status, _, body := k.call(t, row.call)
			if status != row.status || !strings.Contains(body, row.want) || strings.Contains(body, row.never) {
				t.Errorf("%s: %d %s", row.name, status, body)
			}
			if got := strings.Join(since(before, k.events(t)), "; "); got != row.event {
				t.Errorf("%s: the trail says %q", row.name, got)
			}
		}
		if strings.Contains(k.log.String(), "Lovelace") {
			t.Error("the log holds a value")
		}
	})
}

func TestCustomersDoNotGetInAsServices(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada := k.person(t)
		k.put(t, ada, profile, adaProfile, vault.Condition{})
		a := vault.Access{Purpose: "show-to-customer"}
		_, err := k.services.Get(t.Context(), ada, a, ada.Customer(), profile, 0, vault.Reveal{})
		if !problem.Is(err, "not-permitted") {
			t.Errorf("get: %v", err)
		}
		_, err = k.services.Batch(t.Context(), ada, a, []vault.Read{{Customer: ada.Customer(), Ref: profile}})
		if !problem.Is(err, "not-permitted") {
			t.Errorf("batch: %v", err)
		}
		// And a service is no customer.
		_, err = k.vault.Get(t.Context(), service("crm"), ada.Customer(), profile, vault.Reveal{})
		if !problem.Is(err, "not-your-record") {
			t.Errorf("get as a customer: %v", err)
		}
	})
}

func TestBatch(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada, eve := k.customer(t), k.customer(t)
		for _, c := range []customer.ID{ada, eve} {
			for _, key := range []string{"rent", "pay"} {
				if status, _, body := k.call(t, call{method: "PUT", path: "/v1/customers/" + string(c) + "/records/bank_account/" + key, body: adaAccount}); status != 201 {
					t.Fatal(body)
				}
			}
		}
		before := k.events(t)
		one := func(c customer.ID, key, reveal string) string {
			return fmt.Sprintf(`{"customer":%q,"collection":"bank_account","key":%q,"reveal":[%s]}`, c, key, reveal)
		}
		status, _, body := k.call(t, call{method: "POST", path: "/v1/records/read", by: "payouts", purpose: "payment", body: `{"reads":[` + strings.Join([]string{
			one(ada, "rent", `"iban"`), one(eve, "rent", ""), one(ada, "pay", `"holder"`), one(ada, "none", ""), one("cus_x", "rent", ""), one(ada, "pay", `"iban"`),
		}, ",") + `]}`})
		if status != 200 {
			t.Fatal(body)
		}
		var out struct {
			Results []struct {
				Record  *struct{ Fields map[string]string }
				Problem *struct{ Type string }
			}
		}
		if err := json.Unmarshal([]byte(body), &out); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range out.Results {
			if r.Record != nil {
				got = append(got, r.Record.Fields["iban"])
			} else {
				got = append(got, strings.TrimPrefix(r.Problem.Type, problem.URN))
			}
		}
		if want := []string{"GB82WEST12345698765432", "GB****5432", "not-permitted", "record-not-found", "customer-not-found", "GB82WEST12345698765432"}; !slices.Equal(got, want) {
			t.Errorf("%q instead of %q", got, want)
		}
		// One event for the batch, one per customer of what was read and one of what was refused.
		want := []string{
			"batch granted purpose:payment 6 records of 3 customers",
			"read denied customer-not-found records bank_account/rent",
			"read denied not-permitted records bank_account/pay, bank_account/none",
			"read granted purpose:payment records bank_account/rent v1 reveal iban, bank_account/pay v1 reveal iban",
			"read granted purpose:payment records bank_account/rent v1",
		}
		slices.Sort(want)
		if got := since(before, k.events(t)); !slices.Equal(got, want) {
			t.Errorf("the trail says\n%s", strings.Join(got, "\n"))
		}
		for _, size := range []int{0, vault.MaxBatch + 1} {
			reads := make([]vault.Read, size)
			if _, err := k.services.Batch(t.Context(), service("crm"), vault.Access{Purpose: "payment"}, reads); !problem.Is(err, "invalid-batch") {
				t.Errorf("%d records: %v", size, err)
			}
		}
	})
}

// TestBatchNeedsItsEvents holds that no value leaves when the trail cannot be written.
func TestBatchNeedsItsEvents(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada := k.customer(t)
		if status, _, body := k.call(t, call{method: "PUT", path: "/v1/customers/" + string(ada) + "/records/bank_account/rent", body: adaAccount}); status != 201 {
			t.Fatal(body)
		}
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `ALTER TABLE event_pending RENAME TO event_lost`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		results, err := k.services.Batch(t.Context(), service("crm"), vault.Access{Purpose: "payment"}, []vault.Read{{Customer: ada, Ref: account, All: true}})
		if err == nil || results != nil {
			t.Errorf("%v %v", results, err)
		}
	})
}

func TestHistoryKeepsWhatItSays(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada := k.customer(t)
		a := vault.Access{Purpose: "show-to-customer"}
		by := service("crm")
		for i := range 5 {
			c := vault.Condition{}
			if i > 0 {
				c = vault.IfVersion(int64(i))
			}
			if _, _, err := k.services.Put(t.Context(), by, a, ada, profile, []byte(fmt.Sprintf(`{"given_name":"Ada%d","family_name":"L"}`, i+1)), c); err != nil {
				t.Fatal(err)
			}
		}
		versions, err := k.services.History(t.Context(), by, a, ada, profile)
		if err != nil || len(versions) != 3 || versions[0].Version != 5 || !versions[0].Current || versions[2].Version != 3 || versions[2].Current {
			t.Fatalf("%+v %v", versions, err)
		}
		for version, want := range map[int64]string{0: "Ada5", 5: "Ada5", 4: "Ada4", 3: "Ada3"} {
			r, err := k.services.Get(t.Context(), by, a, ada, profile, version, vault.Reveal{All: true})
			if err != nil || r.Fields["given_name"] != want {
				t.Errorf("version %d: %v %v", version, r.Fields, err)
			}
		}
		if _, err := k.services.Get(t.Context(), by, a, ada, profile, 2, vault.Reveal{}); !problem.Is(err, "record-not-found") {
			t.Errorf("version 2: %v", err)
		}
		// An older version in the place of another does not open.
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE record_version SET sealed = (SELECT sealed FROM record_version WHERE version = 3) WHERE version = 4`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := k.services.Get(t.Context(), by, a, ada, profile, 4, vault.Reveal{}); !problem.Is(err, "record-unreadable") {
			t.Errorf("an exchanged version: %v", err)
		}
		// A collection that keeps none any more loses what there is.
		if err := k.another(t, collections()).Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if versions, err := k.services.History(t.Context(), by, a, ada, profile); err != nil || len(versions) != 1 {
			t.Errorf("%+v %v", versions, err)
		}
	})
}

func TestAnsweredOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada := k.customer(t)
		path := "/v1/customers/" + string(ada) + "/records/profile/main"
		key := func(k string) map[string]string { return map[string]string{"Idempotency-Key": k} }
		first, head, body := k.call(t, call{method: "PUT", path: path, body: adaProfile, header: key("key-00001")})
		if first != 201 {
			t.Fatal(body)
		}
		// The record goes on, the answer stays.
		if status, _, b := k.call(t, call{method: "PATCH", path: path, body: `{"city":"London"}`, header: key("key-00002")}); status != 200 {
			t.Fatal(b)
		}
		before := k.events(t)
		again, headAgain, bodyAgain := k.call(t, call{method: "PUT", path: path, body: adaProfile, header: key("key-00001")})
		if again != first || bodyAgain != body || headAgain.Get("ETag") != head.Get("ETag") {
			t.Errorf("%d %s\ninstead of %d %s", again, bodyAgain, first, body)
		}
		if got := since(before, k.events(t)); !slices.Equal(got, []string{"create granted purpose:support replayed record profile/main"}) {
			t.Errorf("the trail says %q", got)
		}
		for _, row := range []struct {
			name   string
			call   call
			status int
			want   string
		}{
			{"another body", call{method: "PUT", path: path, body: adaAccount, header: key("key-00001")}, 422, "invalid-record"},
			{"another record", call{method: "PUT", path: path + "2", body: adaProfile, header: key("key-00001")}, 422, "idempotency-key-reused"},
			{"another purpose", call{method: "PUT", path: path, purpose: "other", body: adaProfile, header: key("key-00001")}, 422, "idempotency-key-reused"},
			{"another operation", call{method: "DELETE", path: path, header: key("key-00001")}, 422, "idempotency-key-reused"},
			{"a key that is none", call{method: "DELETE", path: path, header: key("short")}, 400, "invalid-idempotency-key"},
			{"a refusal", call{method: "PUT", path: path, body: adaProfile, header: key("key-00003")}, 428, "precondition-required"},
			{"is not kept", call{method: "DELETE", path: path, header: key("key-00003")}, 204, ""},
			{"a deletion", call{method: "DELETE", path: path, header: key("key-00003")}, 204, ""},
			{"nobody is permitted by an old answer", call{method: "DELETE", path: path, by: "stranger", header: key("key-00003")}, 403, "not-permitted"},
		} {
			if status, _, b := k.call(t, row.call); status != row.status || !strings.Contains(b, row.want) {
				t.Errorf("%s: %d %s", row.name, status, b)
			}
		}
		// A customer is made once, too.
		_, _, one := k.call(t, call{method: "POST", path: "/v1/customers", header: key("key-00004")})
		_, _, two := k.call(t, call{method: "POST", path: "/v1/customers", header: key("key-00004")})
		if one != two || !strings.Contains(one, "cus_") {
			t.Errorf("%s %s", one, two)
		}
		// After a day it is forgotten.
		k.clock.Advance(once.Lifetime + time.Second)
		if status, _, b := k.call(t, call{method: "PUT", path: path, body: adaProfile, header: key("key-00001")}); status != 201 || strings.Contains(b, `"version":1,`) {
			t.Errorf("after a day: %d %s", status, b)
		}
		if err := k.book.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, d, `SELECT COUNT(*) FROM answer`); n != 1 {
			t.Errorf("%d answers are left", n)
		}
	})
}

func count(t testing.TB, d *db.DB, query string, args ...any) (n int) {
	t.Helper()
	if err := d.View(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), query, args...).Scan(&n) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAnsweredOnceAtTheSameMoment has many callers send one request at once: it is done once, and all
// of them have the same answer.
func TestAnsweredOnceAtTheSameMoment(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada := k.customer(t)
		const callers = 16
		for round := range 4 {
			answers := make([]string, callers)
			var wg sync.WaitGroup
			for i := range callers {
				wg.Go(func() {
					token, err := k.services.Tokenise(context.Background(), service("crm"),
						vault.Access{Purpose: "payment", Once: fmt.Sprintf("same-key-%d", round)}, ada, vault.TokenText, "secret", false)
					answers[i] = fmt.Sprint(token, err)
				})
			}
			wg.Wait()
			if slices.Sort(answers); answers[0] != answers[callers-1] || !strings.Contains(answers[0], "tok_") {
				t.Errorf("%q", slices.Compact(answers))
			}
		}
		if n := count(t, d, `SELECT COUNT(*) FROM token`); n != 4 {
			t.Errorf("%d tokens instead of 4", n)
		}
	})
}

// TestAnswersAreSealed looks for the customer's values in every column that an answer is kept in.
func TestAnswersAreSealed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada := k.customer(t)
		a := vault.Access{Purpose: "onboarding", Once: "a-key-of-some-length"}
		if _, _, err := k.services.Put(t.Context(), service("crm"), a, ada, profile, []byte(adaProfile), vault.Condition{}); err != nil {
			t.Fatal(err)
		}
		if _, err := k.services.Tokenise(t.Context(), service("crm"), vault.Access{Purpose: "payment", Once: "another-of-them"}, ada, vault.TokenCard, "4111 1111 1111 1111", true); err != nil {
			t.Fatal(err)
		}
		err := d.View(t.Context(), func(tx *db.Tx) error {
			rows, err := tx.Query(t.Context(), `SELECT name, print, sealed FROM answer UNION ALL SELECT blind, value_blind, sealed FROM token`)
			if err != nil {
				return err
			}
			defer rows.Close()
			n := 0
			for rows.Next() {
				var columns [3][]byte
				if err := rows.Scan(&columns[0], &columns[1], &columns[2]); err != nil {
					return err
				}
				for _, c := range columns {
					for _, secret := range []string{"A****", "1985", a.Once, "1111", "onboarding"} {
						if strings.Contains(string(c), secret) {
							t.Errorf("%q stands in the clear", secret)
						}
					}
				}
				n++
			}
			if n != 3 {
				t.Errorf("%d rows", n)
			}
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada, eve := k.customer(t), k.customer(t)
		by, pay := service("crm"), vault.Access{Purpose: "payment"}
		make := func(c customer.ID, kind, value, purpose string, same bool) string {
			t.Helper()
			token, err := k.services.Tokenise(t.Context(), by, vault.Access{Purpose: purpose}, c, kind, value, same)
			if err != nil {
				t.Fatal(err)
			}
			return token.Token
		}
		const pan = "4111111111111111"
		card := make(ada, vault.TokenCard, "4111 1111 1111 1111", "payment", false)
		if len(card) != 16 || !strings.HasSuffix(card, "1111") || vault.Luhn(card) || card == pan {
			t.Errorf("token %s", card)
		}
		same := make(ada, vault.TokenCard, pan, "payment", true)
		for name, row := range map[string]struct {
			got  string
			same bool
		}{
			"the same again":      {make(ada, vault.TokenCard, pan, "payment", true), true},
			"a random one":        {make(ada, vault.TokenCard, pan, "payment", false), false},
			"for another purpose": {make(ada, vault.TokenCard, pan, "fraud", true), false},
			"of another customer": {make(eve, vault.TokenCard, pan, "payment", true), false},
			"another card":        {make(ada, vault.TokenCard, "5500005555555559", "payment", true), false},
		} {
			if (row.got == same) != row.same {
				t.Errorf("%s: %s and %s", name, same, row.got)
			}
		}
		text := make(ada, vault.TokenText, "Ärger & 4111111111111111", "payment", false)
		for token, want := range map[string]string{card: pan, same: pan, text: "Ärger & 4111111111111111"} {
			o, err := k.services.Detokenise(t.Context(), by, pay, token)
			if err != nil || o.Value != want || o.Customer != ada {
				t.Errorf("%s: %+v %v", token, o, err)
			}
		}
		for _, row := range []struct {
			name, body, by, purpose string
			status                  int
			want                    string
			event                   string
		}{
			{"granted", `{"token":"` + text + `"}`, "crm", "payment", 200, "Ärger", "vault.token.reveal granted purpose:payment token text"},
			{"another purpose", `{"token":"` + text + `"}`, "crm", "fraud", 422, "purpose-not-allowed", "vault.token.reveal denied purpose-not-allowed token text"},
			{"not permitted", `{"token":"` + text + `"}`, "payouts", "payment", 403, "not-permitted", "vault.token.reveal denied not-permitted token text"},
			{"unknown and not permitted", `{"token":"tok_x"}`, "payouts", "payment", 403, "not-permitted", "vault.token.reveal denied not-permitted token text"},
			{"unknown", `{"token":"4111111111111111"}`, "crm", "payment", 404, "token-not-found", "vault.token.reveal denied token-not-found token card"},
		} {
			before := k.events(t)
			status, _, body := k.call(t, call{method: "POST", path: "/v1/detokenise", by: row.by, purpose: row.purpose, body: row.body})
			if status != row.status || !strings.Contains(body, row.want) {
				t.Errorf("%s: %d %s", row.name, status, body)
			}
			if got := strings.Join(since(before, k.events(t)), "; "); got != row.event {
				t.Errorf("%s: the trail says %q", row.name, got)
			}
		}
		for name, row := range map[string][3]string{
			"a wrong check digit": {vault.TokenCard, "4111111111111112", "invalid-value"},
			"letters":             {vault.TokenCard, "4111x", "invalid-value"},
			"nothing":             {vault.TokenText, "", "invalid-value"},
			"broken text":         {vault.TokenText, "\xff", "invalid-value"},
			"another kind":        {"iban", "GB82", "invalid-kind"},
		} {
			_, err := k.services.Tokenise(t.Context(), by, pay, ada, row[0], row[1], false)
			if !problem.Is(err, row[2]) || row[1] != "" && strings.Contains(problem.Of(err).Detail(), row[1]) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// A row in the place of another does not open as it.
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE token SET sealed = (SELECT sealed FROM token WHERE customer_id = $1 AND kind = 'card' AND purpose = 'payment' ORDER BY sealed LIMIT 1)
				WHERE customer_id = $1 AND kind = 'card' AND purpose = 'payment'`, string(ada))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var wrong int
		for _, token := range []string{card, same} {
			if _, err := k.services.Detokenise(t.Context(), by, pay, token); problem.Is(err, "record-unreadable") {
				wrong++
			}
		}
		if wrong == 0 {
			t.Error("a token opens as another")
		}
	})
}

// TestCardTokens holds for any card number: its token has its length and last four digits, and is never
// a card number.
func TestCardTokens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		digits := []byte(rapid.StringMatching(`[0-9]{11,18}`).Draw(t, "digits"))
		var pan string
		for c := byte('0'); c <= '9'; c++ {
			if pan = string(append(slices.Clone(digits), c)); vault.Luhn(pan) {
				break
			}
		}
		token := vault.NewToken(vault.TokenCard, pan)
		if len(token) != len(pan) || token[len(token)-4:] != pan[len(pan)-4:] || vault.Luhn(token) || strings.Trim(token, "0123456789") != "" {
			t.Fatalf("%s for %s", token, pan)
		}
	})
}

// TestMergePatch holds RFC 7396 for flat records against a merge of maps.
func TestMergePatch(t *testing.T) {
	member := rapid.Custom(func(t *rapid.T) map[string]any {
		m := map[string]any{}
		for _, name := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d\"", "é"}), rapid.ID).Draw(t, "names") {
			m[name] = rapid.OneOf(rapid.Just[any](nil), rapid.Map(rapid.String(), func(s string) any { return s }),
				rapid.Map(rapid.IntRange(-9, 9), func(n int) any { return float64(n) }), rapid.Map(rapid.Bool(), func(b bool) any { return b })).Draw(t, name)
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		old, patch := member.Draw(t, "old"), member.Draw(t, "patch")
		want := map[string]any{}
		for name, value := range old {
			if value == nil {
				delete(old, name) // a record holds no null
			} else {
				want[name] = value
			}
		}
		for name, value := range patch {
			if want[name] = value; value == nil {
				delete(want, name)
			}
		}
		encode := func(v any) []byte {
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		var got map[string]any
		if err := json.Unmarshal(vault.MergePatch(encode(old), encode(patch)), &got); err != nil {
			t.Fatal(err)
		}
		if string(encode(got)) != string(encode(want)) {
			t.Fatalf("%s with %s is %s", encode(old), encode(patch), encode(got))
		}
	})
}

// FuzzMergePatch holds that no patch brings the reader down, and that what comes of one is JSON.
func FuzzMergePatch(f *testing.F) {
	f.Add(`{"given_name":"Ada"}`)
	f.Add(`{"x":null,"y":{"z":[1]}}`)
	f.Fuzz(func(t *testing.T, patch string) {
		if merged := vault.MergePatch([]byte(`{"a":"b"}`), []byte(patch)); merged != nil && !json.Valid(merged) {
			t.Errorf("%q becomes %q", patch, merged)
		}
	})
}
