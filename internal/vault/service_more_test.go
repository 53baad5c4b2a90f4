package vault_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/once"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// TestServicesWorkWithBlobs holds each answer, and what the trail says of it. In this order: each row sees
// what those before it have left.
func TestServicesWorkWithBlobs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada := k.customer(t)
		passport := string(random(200 << 10))
		at := func(rest string) string { return "/v1/blobs/" + string(ada) + "/" + rest }
		ghost := "/v1/blobs/" + string(customer.NewID()) + "/profile/passport"
		head := func(pairs ...string) map[string]string {
			h := map[string]string{"Content-Type": vault.BlobType}
			for i := 0; i < len(pairs); i += 2 {
				h[pairs[i]] = pairs[i+1]
			}
			return h
		}
		var etag string
		for _, row := range []struct {
			name   string
			call   call
			status int
			want   string
			event  string
		}{
			{"make", call{method: "PUT", path: at("profile/passport"), body: passport, header: head("Idempotency-Key", "make-0001")}, 201, `"size":204800`,
				"vault.blob.create granted purpose:show-to-customer blob profile/passport"},
			{"again", call{method: "PUT", path: at("profile/passport"), body: passport, header: head("Idempotency-Key", "make-0001")}, 201, `"size":204800`,
				"vault.blob.create granted purpose:show-to-customer replayed blob profile/passport"},
			{"again with another content", call{method: "PUT", path: at("profile/passport"), body: passport + "x", header: head("Idempotency-Key", "make-0001")}, 422, "idempotency-key-reused",
				"vault.blob.create denied idempotency-key-reused blob profile/passport"},
			{"again by another name", call{method: "PUT", path: at("profile/passport2"), body: passport, header: head("Idempotency-Key", "make-0001")}, 422, "idempotency-key-reused",
				"vault.blob.create denied idempotency-key-reused blob profile/passport2"},
			{"a key that is none", call{method: "PUT", path: at("profile/passport"), body: passport, header: head("Idempotency-Key", "x")}, 400, "invalid-idempotency-key",
				"vault.blob.create denied invalid-idempotency-key blob profile/passport"},
			{"over it without a condition", call{method: "PUT", path: at("profile/passport"), body: "x", header: head("Idempotency-Key", "make-0002")}, 428, "precondition-required",
				"vault.blob.create denied precondition-required blob profile/passport"},
			{"not permitted", call{method: "PUT", path: at("profile/passport"), by: "payouts", body: "x", header: head()}, 403, "not-permitted",
				"vault.blob.create denied not-permitted blob profile/passport"},
			{"no purpose", call{method: "GET", path: at("profile/passport"), purpose: "-"}, 422, "purpose-required",
				"vault.blob.read denied purpose-required blob profile/passport"},
			{"read", call{method: "GET", path: at("profile/passport")}, 200, passport,
				"vault.blob.read granted purpose:show-to-customer blob profile/passport"},
			{"for a purpose that is none of the collection's", call{method: "GET", path: at("profile/passport"), purpose: "curiosity"}, 422, "purpose-not-allowed",
				"vault.blob.read denied purpose-not-allowed blob profile/passport"},
			{"not permitted to read", call{method: "GET", path: at("profile/passport"), by: "payouts"}, 403, "not-permitted",
				"vault.blob.read denied not-permitted blob profile/passport"},
			{"nobody's", call{method: "GET", path: ghost}, 404, "customer-not-found",
				"vault.blob.read denied customer-not-found blob profile/passport"},
			{"none", call{method: "GET", path: at("profile/visa")}, 404, "blob-not-found",
				"vault.blob.read denied blob-not-found blob profile/visa"},
			{"replace", call{method: "PUT", path: at("profile/passport"), body: "v2", header: head("If-Match", "*", "Idempotency-Key", "make-0003")}, 200, `"size":2`,
				"vault.blob.update granted purpose:show-to-customer blob profile/passport"},
			{"replace again", call{method: "PUT", path: at("profile/passport"), body: "v2", header: head("If-Match", "*", "Idempotency-Key", "make-0003")}, 200, `"size":2`,
				"vault.blob.update granted purpose:show-to-customer replayed blob profile/passport"},
			{"read the new one", call{method: "GET", path: at("profile/passport")}, 200, "v2",
				"vault.blob.read granted purpose:show-to-customer blob profile/passport"},
			{"delete not permitted", call{method: "DELETE", path: at("profile/passport"), by: "payouts"}, 403, "not-permitted",
				"vault.blob.delete denied not-permitted blob profile/passport"},
			{"delete", call{method: "DELETE", path: at("profile/passport"), header: map[string]string{"Idempotency-Key": "gone-0001"}}, 204, "",
				"vault.blob.delete granted purpose:show-to-customer blob profile/passport"},
			{"delete again", call{method: "DELETE", path: at("profile/passport"), header: map[string]string{"Idempotency-Key": "gone-0001"}}, 204, "",
				"vault.blob.delete granted purpose:show-to-customer replayed blob profile/passport"},
			{"an old answer brings nothing back", call{method: "PUT", path: at("profile/passport"), body: passport, header: head("Idempotency-Key", "make-0001")}, 201, `"size":204800`,
				"vault.blob.create granted purpose:show-to-customer replayed blob profile/passport"},
			{"it is gone", call{method: "GET", path: at("profile/passport")}, 404, "blob-not-found",
				"vault.blob.read denied blob-not-found blob profile/passport"},
		} {
			before := k.events(t)
			if row.call.purpose == "" {
				row.call.purpose = "show-to-customer"
			}
			status, header, body := k.call(t, row.call)
			if status != row.status || !strings.Contains(body, row.want) {
				t.Errorf("%s: %d %.200s", row.name, status, body)
			}
			if got := strings.Join(since(before, k.events(t)), "; "); got != row.event {
				t.Errorf("%s: the trail says %q", row.name, got)
			}
			if row.name == "make" {
				etag = header.Get("ETag")
			} else if strings.HasSuffix(row.event, "replayed blob profile/passport") && strings.Contains(row.name, "again") && row.call.body == passport && header.Get("ETag") != etag {
				t.Errorf("%s: ETag %s instead of %s", row.name, header.Get("ETag"), etag)
			}
		}
		// Nothing of what was sent in vain, replaced or deleted stays.
		k.clock.Advance(3 * time.Hour)
		if err := k.vault.SweepBlobs(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := k.count(t, `SELECT COUNT(*) FROM blob_chunk`); n != 0 {
			t.Errorf("%d chunks are left", n)
		}
	})
}

func TestServicesErase(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada, eve := k.customer(t), k.customer(t)
		for _, c := range []customer.ID{ada, eve} {
			path := "/v1/customers/" + string(c) + "/records/profile/main"
			if status, _, b := k.call(t, call{method: "PUT", path: path, body: strings.ReplaceAll(adaProfile, "ada@", strings.ToLower(string(c))+"@")}); status != 201 {
				t.Fatal(b)
			}
		}
		at := func(c customer.ID, rest string) string { return "/v1/customers/" + string(c) + "/" + rest }
		once0 := map[string]string{"Idempotency-Key": "erase-0001"}
		const reason = `{"reason":"asked to be forgotten, case 4711"}`
		var first string
		for _, row := range []struct {
			name   string
			call   call
			status int
			want   string
			event  string
		}{
			{"not permitted", call{method: "POST", path: at(ada, "erase"), by: "payouts", body: reason}, 403, "not-permitted", "vault.customer.erase denied not-permitted customer"},
			{"no purpose", call{method: "POST", path: at(ada, "erase"), purpose: "-", body: reason}, 422, "purpose-required", "vault.customer.erase denied purpose-required customer"},
			{"no reason", call{method: "POST", path: at(ada, "erase"), body: `{"reason":" "}`}, 422, "reason-required", "vault.customer.erase denied reason-required customer"},
			{"nobody", call{method: "POST", path: at("cus_x", "erase"), body: reason}, 404, "customer-not-found", "vault.customer.erase denied customer-not-found customer"},
			{"a receipt of nothing", call{method: "GET", path: at(ada, "receipt")}, 404, "not-erased", "vault.customer.receipt denied not-erased customer"},
			{"erase", call{method: "POST", path: at(ada, "erase"), body: reason, header: once0}, 200, `"statement"`, "vault.customer.erase granted purpose:support customer"},
			{"again", call{method: "POST", path: at(ada, "erase"), body: reason, header: once0}, 200, `"statement"`, "vault.customer.erase granted purpose:support replayed customer"},
			{"again with another reason", call{method: "POST", path: at(ada, "erase"), body: `{"reason":"other"}`, header: once0}, 422, "idempotency-key-reused", "vault.customer.erase denied idempotency-key-reused customer"},
			{"another customer with the key", call{method: "POST", path: at(eve, "erase"), body: reason, header: once0}, 422, "idempotency-key-reused", "vault.customer.erase denied idempotency-key-reused customer"},
			{"once more", call{method: "POST", path: at(ada, "erase"), body: reason}, 410, "customer-erased", "vault.customer.erase denied customer-erased customer"},
			{"the receipt", call{method: "GET", path: at(ada, "receipt")}, 200, `"statement"`, "vault.customer.receipt granted purpose:support customer"},
			{"the receipt, not permitted", call{method: "GET", path: at(ada, "receipt"), by: "payouts"}, 403, "not-permitted", "vault.customer.receipt denied not-permitted customer"},
			{"the record", call{method: "GET", path: at(ada, "records/profile/main")}, 410, "customer-erased", "read denied customer-erased record profile/main"},
			{"another's record", call{method: "GET", path: at(eve, "records/profile/main")}, 200, "A**", "read granted purpose:support record profile/main v1"},
		} {
			before := k.events(t)
			status, _, body := k.call(t, row.call)
			if status != row.status || !strings.Contains(body, row.want) {
				t.Errorf("%s: %d %s", row.name, status, body)
			}
			if got := strings.Join(since(before, k.events(t)), "; "); got != row.event {
				t.Errorf("%s: the trail says %q", row.name, got)
			}
			if status != 200 || !strings.Contains(body, "statement") {
				continue
			}
			var out struct {
				vault.Receipt
				Inner *vault.Receipt `json:"receipt"`
			}
			if err := json.Unmarshal([]byte(body), &out); err != nil {
				t.Fatal(err)
			}
			if out.Inner != nil {
				out.Receipt = *out.Inner
			}
			s, proved, err := out.Check(k.keys.CheckpointKey())
			if err != nil || s.Customer != ada || proved.Actor.ID != "crm" || s.Deleted["records"] != 1 {
				t.Errorf("%s: the receipt says %+v %+v %v", row.name, s, proved, err)
			}
			if first == "" {
				first = out.Statement
			}
			if out.Statement != first {
				t.Errorf("%s: another statement:\n%s\ninstead of\n%s", row.name, out.Statement, first)
			}
		}
		k.clock.Advance(once.Lifetime + time.Second)
		if status, _, b := k.call(t, call{method: "POST", path: at(ada, "erase"), body: reason, header: once0}); status != 410 {
			t.Errorf("after a day: %d %s", status, b)
		}
	})
}

func TestDeleteToken(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada := k.customer(t)
		pay := vault.Access{Purpose: "payment"}
		make := func() string {
			token, err := k.services.Tokenise(t.Context(), service("crm"), pay, ada, vault.TokenCard, "4111111111111111", true)
			if err != nil {
				t.Fatal(err)
			}
			return token.Token
		}
		token := make()
		body := fmt.Sprintf(`{"token":%q}`, token)
		key := map[string]string{"Idempotency-Key": "forget-01"}
		for _, row := range []struct {
			name   string
			call   call
			status int
			want   string
			event  string
		}{
			{"not permitted", call{by: "payouts", body: body}, 403, "not-permitted", "vault.token.delete denied not-permitted token card"},
			{"another purpose", call{purpose: "fraud", body: body}, 422, "purpose-not-allowed", "vault.token.delete denied purpose-not-allowed token card"},
			{"unknown", call{body: `{"token":"tok_x"}`}, 404, "token-not-found", "vault.token.delete denied token-not-found token text"},
			{"delete", call{body: body, header: key}, 204, "", "vault.token.delete granted purpose:payment token card"},
			{"again", call{body: body, header: key}, 204, "", "vault.token.delete granted purpose:payment replayed token card"},
			{"the key of another service is another key", call{by: "payouts", body: body, header: key}, 403, "not-permitted", "vault.token.delete denied not-permitted token card"},
			{"another token", call{body: `{"token":"tok_x"}`, header: key}, 422, "idempotency-key-reused", "vault.token.delete denied idempotency-key-reused token text"},
			{"without the key", call{body: body}, 404, "token-not-found", "vault.token.delete denied token-not-found token card"},
		} {
			before := k.events(t)
			row.call.method, row.call.path = "POST", "/v1/tokens/delete"
			if row.call.purpose == "" {
				row.call.purpose = "payment"
			}
			status, _, got := k.call(t, row.call)
			if status != row.status || !strings.Contains(got, row.want) || strings.Contains(got, token) {
				t.Errorf("%s: %d %s", row.name, status, got)
			}
			if got := strings.Join(since(before, k.events(t)), "; "); got != row.event {
				t.Errorf("%s: the trail says %q", row.name, got)
			}
		}
		if _, err := k.services.Detokenise(t.Context(), service("crm"), pay, token); !problem.Is(err, "token-not-found") {
			t.Error(err)
		}
		if again := make(); again == token {
			t.Error("the same token came back")
		}
	})
}

// TestWrittenOnceAtTheSameMoment has many callers send one document, or one record, with one key at once: it
// is written once, and all of them have the same answer.
func TestWrittenOnceAtTheSameMoment(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := newDesk(t, d)
		ada, content := k.customer(t), random(100<<10)
		for name, write := range map[string]func() string{
			"blob": func() string {
				b, created, err := k.services.PutBlob(t.Context(), service("crm"), vault.Access{Purpose: "support", Once: "same-blob"}, ada,
					vault.Ref{Collection: "profile", Key: "passport"}, bytes.NewReader(content), vault.Condition{})
				return fmt.Sprint(b.ETag, created, err)
			},
			"record": func() string {
				r, created, err := k.services.Put(t.Context(), service("crm"), vault.Access{Purpose: "support", Once: "same-record"}, ada, profile, []byte(adaProfile), vault.Condition{})
				return fmt.Sprint(r.Version, created, err)
			},
		} {
			const callers = 8
			answers := make(chan string, callers)
			for range callers {
				go func() { answers <- write() }()
			}
			var all []string
			for range callers {
				all = append(all, <-answers)
			}
			slices.Sort(all)
			if all = slices.Compact(all); len(all) != 1 || !strings.HasSuffix(all[0], "true <nil>") {
				t.Errorf("%s: %q", name, all)
			}
		}
		if n := k.count(t, `SELECT COUNT(*) FROM blob_content WHERE state = 'live'`); n != 1 {
			t.Errorf("%d contents", n)
		}
	})
}
