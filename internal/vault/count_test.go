package vault_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// miscounted returns how many counts of records are wrong.
func miscounted(t testing.TB, d *db.DB) int {
	return count(t, d, `
		SELECT COUNT(*) FROM record_mark m
		WHERE m.records <> (SELECT COUNT(*) FROM record r WHERE r.customer_id = m.customer_id AND r.collection = m.collection)`) +
		count(t, d, `
		SELECT COUNT(*) FROM record r
		WHERE NOT EXISTS (SELECT 1 FROM record_mark m WHERE m.customer_id = r.customer_id AND m.collection = r.collection)`)
}

// TestLimitHoldsAtTheSameMoment has many callers make records at once: exactly as many are made as the
// collection takes, and again after some were deleted, while the count stays that of the rows.
func TestLimitHoldsAtTheSameMoment(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		all := collections()
		limit := 0
		for i := range all {
			if all[i].Name == "profile" {
				all[i].Limit = 5
				limit = all[i].Limit
			}
		}
		h := newHouse(t, d, all)
		ada := h.person(t)
		for round := range 2 {
			var mu sync.Mutex
			made := 0
			var wg sync.WaitGroup
			for i := range 3 * limit {
				wg.Go(func() {
					ref := vault.Ref{Collection: "profile", Key: fmt.Sprintf("k%d-%d", round, i)}
					body := fmt.Sprintf(`{"given_name":"Ada","family_name":"L","email":"ada%d.%d@example.com"}`, round, i)
					_, _, err := h.vault.Put(t.Context(), ada, ada.Customer(), ref, []byte(body), vault.Condition{})
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						made++
					} else if !problem.Is(err, "too-many-records") {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			want := limit
			if round == 1 {
				want = 2
			}
			if made != want {
				t.Errorf("round %d: %d records were made instead of %d", round, made, want)
			}
			page, _, err := h.vault.List(t.Context(), ada, ada.Customer(), "profile", "", 100)
			if err != nil || len(page) != limit {
				t.Fatal(len(page), err)
			}
			if round == 0 {
				for _, r := range page[:2] {
					wg.Go(func() {
						if err := h.vault.Delete(t.Context(), ada, ada.Customer(), r.Ref, vault.Condition{}); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			}
		}
		if n := miscounted(t, d); n != 0 {
			t.Errorf("%d counts are wrong", n)
		}
	})
}

// TestCountsStayTrue holds over any order of writing, deleting, expiring and erasing that the count is that
// of the rows.
func TestCountsStayTrue(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d, nil)
	rapid.Check(t, func(r *rapid.T) {
		ada := h.person(t)
		r.Repeat(map[string]func(*rapid.T){
			"put": func(r *rapid.T) {
				ref := vault.Ref{Collection: "bank_account", Key: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "key")}
				match := rapid.SampledFrom([]string{"", "*"}).Draw(r, "match")
				_, _, err := h.vault.Put(t.Context(), ada, ada.Customer(), ref, []byte(adaAccount), vault.Condition{IfMatch: match})
				if err != nil && problem.Of(err) == nil {
					r.Fatal(err)
				}
			},
			"delete": func(r *rapid.T) {
				ref := vault.Ref{Collection: "bank_account", Key: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "key")}
				if err := h.vault.Delete(t.Context(), ada, ada.Customer(), ref, vault.Condition{}); err != nil && problem.Of(err) == nil {
					r.Fatal(err)
				}
			},
			"": func(r *rapid.T) {
				if n := miscounted(t, d); n != 0 {
					r.Fatalf("%d counts are wrong", n)
				}
			},
		})
		if _, err := h.vault.Erase(t.Context(), operator, ada.Customer(), "done"); err != nil {
			r.Fatal(err)
		}
		if n := miscounted(t, d); n != 0 {
			r.Fatalf("%d counts are wrong after an erasure", n)
		}
	})
}

// TestOlderRecordsAreCounted runs the migration's count over records that were there before it.
func TestOlderRecordsAreCounted(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		ada, eve := h.person(t), h.person(t)
		h.put(t, ada, profile, adaProfile, vault.Condition{})
		for _, key := range []string{"a", "b", "c"} {
			h.put(t, eve, vault.Ref{Collection: "bank_account", Key: key}, adaAccount, vault.Condition{})
		}
		if err := h.vault.Delete(t.Context(), eve, eve.Customer(), vault.Ref{Collection: "bank_account", Key: "b"}, vault.Condition{}); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile("../db/migrations/0015_record_count.sql")
		if err != nil {
			t.Fatal(err)
		}
		_, fill, found := strings.Cut(string(text), "DEFAULT 0;")
		if !found {
			t.Fatal("the migration has another form")
		}
		h.exec(t, `DELETE FROM record_mark WHERE customer_id = $1`, string(ada.Customer()))
		h.exec(t, `UPDATE record_mark SET records = 0`)
		if n := miscounted(t, d); n != 2 {
			t.Fatalf("%d counts are wrong before", n)
		}
		h.exec(t, strings.TrimSuffix(strings.TrimSpace(fill), ";"))
		if n := miscounted(t, d); n != 0 {
			t.Errorf("%d counts are wrong", n)
		}
	})
}
