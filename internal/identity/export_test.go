package identity

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// tablesOfCustomers are all tables with a column that names a customer: the part of the export in which this
// room's have their say, or which room sees to it.
var tablesOfCustomers = map[string]string{
	"account": "number", "device": "devices", "device_trust": "devices", "session": "sessions", "factor": "second_steps",
	"sms_rule": "sms_off", "number_change": "number_change", "code_change": "private_code_changed_at", "code_reset": "private_code_reset",
	"payment": "payments", "notice": "notices", "vouch": "assistance",
	"oauth_code": "-", // a secret of 60 seconds, of which the hash is kept

	"data_key": "keyring", "data_key_tombstone": "keyring", "rotation": "keyring",
	"event": "audit", "event_search": "audit", "event_search_erased": "audit", "audit_archive_key": "audit",
	"record": "vault", "record_mark": "vault", "record_index": "vault", "record_version": "vault", "blob": "vault", "blob_content": "vault",
	"external_ref": "vault", "erasure": "vault", "token": "vault", "collection_build": "vault", "answer": "once",
	"canary": "assurance", "honey": "assurance", // of nobody
}

// An export holds what every table of this room knows of the customer, nothing that secures the account, and an
// erasure empties every such table. A table that comes later has to be decided on here.
func TestExportAndErasureKnowEveryTable(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, dbtest.Open(t, db.SQLite), nil)
	var tables []string
	if err := h.DB.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table' AND p.name LIKE '%customer%' GROUP BY m.name`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			tables = append(tables, name)
		}
		return rows.Err()
	}); err != nil {
		t.Fatal(err)
	}
	if known := slices.Sorted(maps.Keys(tablesOfCustomers)); !slices.Equal(slices.Sorted(slices.Values(tables)), known) {
		t.Fatalf("tables that name customers: %v\nknown here: %v", tables, known)
	}

	s, _ := h.services(paymentPolicy)
	r := h.register(number(1), "own")
	by := h.acting(h.loginFor(number(1), "own", "write payment"), "own")
	if err := h.ChangeCode(ctx, by, value(goodCode), value(newCode)); err != nil {
		t.Fatal(err)
	}
	if err := h.ChangeCode(ctx, by, value(newCode), value(goodCode)); err != nil {
		t.Fatal(err)
	}
	h.clk.Advance(time.Second)
	h.enrolTOTP(by)
	if _, err := s.AskPayment(ctx, serviceActor("payments"), "payment", r.Customer, Terms{Amount: "49.90", Currency: "EUR", Payee: "Example Shop"}); err != nil {
		t.Fatal(err)
	}
	h.authorise(number(1), "own", "a-verifier-of-forty-three-characters-or-more-it-is", "read")
	device, shown := h.pending(1, "tablet")
	if _, err := NewAssist(h.Options).ApproveDevice(ctx, actor.OfSystem("cli:root"), "ada", device); err != nil {
		t.Fatal(err)
	}
	started, code := h.startNumber(by, number(3))
	if _, err := h.CompleteNumberChange(ctx, by, started.ID, value(code)); err != nil {
		t.Fatal(err)
	}
	if step, err := h.step(number(1), "own", goodCode); err != nil || step.Changed {
		t.Fatalf("%+v, %v", step, err)
	}
	want(t, h.SetSMS(ctx, by, false), "")
	var exported map[string]any
	var text []byte
	if err := h.DB.View(ctx, func(tx *db.Tx) error {
		out, err := NewEraser(h.Keys).ExportCustomer(ctx, tx, r.Customer)
		if err != nil {
			return err
		}
		if text, err = json.Marshal(out); err != nil {
			return err
		}
		return json.Unmarshal(text, &exported)
	}); err != nil {
		t.Fatal(err)
	}
	mine := func(table string) (n int) {
		t.Helper()
		if err := h.DB.View(ctx, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, `SELECT count(*) FROM `+table+` WHERE customer_id = $1`, string(r.Customer)).Scan(&n)
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	rooms := []string{"keyring", "audit", "vault", "once", "assurance"}
	for table, part := range tablesOfCustomers {
		if slices.Contains(rooms, part) {
			continue
		}
		n := mine(table)
		if n == 0 {
			t.Errorf("%s is empty: this test proves nothing of it", table)
		}
		switch v := exported[part].(type) {
		case nil:
			if part != "-" {
				t.Errorf("nothing of %s is exported", table)
			}
		case []any:
			if table != "device_trust" && len(v) != n {
				t.Errorf("%s has %d rows, and %d are exported", table, n, len(v))
			}
		case bool:
			if !v {
				t.Errorf("%s is exported as %v", table, v)
			}
		}
	}
	for _, part := range []string{number(1), number(3), `"49.90"`, "Example Shop", "192.0.2.1", `"totp"`, device, `"waits_until"`, `"First"`, `"scope":"write payment"`} {
		if !strings.Contains(string(text), part) {
			t.Errorf("the export lacks %s", part)
		}
	}
	for _, never := range []string{goodCode, newCode, "jkt", "hash", "secret", "stamp", "sat_", "srt_", `"` + shown + `"`, `"ada"`} {
		if strings.Contains(string(text), never) {
			t.Errorf("the export holds %s", never)
		}
	}
	if err := h.DB.Update(ctx, func(tx *db.Tx) error {
		_, err := NewEraser(h.Keys).EraseCustomer(ctx, tx, r.Customer)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for table, part := range tablesOfCustomers {
		if !slices.Contains(rooms, part) && mine(table) != 0 {
			t.Errorf("%s holds %d rows of an erased customer", table, mine(table))
		}
	}
}
