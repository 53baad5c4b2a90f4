package identity

import (
	"context"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// An erased customer leaves no row of theirs, and a neighbour's rows stay as they are.
func TestEraseCustomer(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		tables := []string{"account", "device", "session", "throttle", "challenge", "sms_outbox"}
		counts := func() map[string]int {
			all := make(map[string]int)
			for _, table := range tables {
				all[table] = h.count(table)
			}
			return all
		}
		live := func(n int, key string) (Registered, Tokens) {
			r := h.register(number(n), key)
			tokens := h.mustLogin(number(n), key)
			if _, err := h.login(number(n), "stranger", "wrong-private-code"); !problem.Is(err, "login-failed") {
				t.Fatal(err)
			}
			return r, tokens
		}
		live(1, "neighbour")
		before := counts()
		ada, tokens := live(2, "ada")
		var exported any
		if err := h.DB.View(ctx, func(tx *db.Tx) (err error) {
			exported, err = NewEraser(h.Keys).ExportCustomer(ctx, tx, ada.Customer)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if got := exported.(Exported); got.Number != number(2) || len(got.Devices) != 1 || got.Devices[0].ID != ada.Device || got.Devices[0].Status != authorised ||
			got.Devices[0].Name == "" || len(got.Sessions) != 1 || got.Sessions[0].Device != ada.Device || got.Sessions[0].Revoked {
			t.Errorf("exported %+v", got)
		}
		if err := h.ChangeCode(ctx, h.acting(tokens, "ada"), value(goodCode), value(newCode)); err != nil {
			t.Fatal(err)
		}
		if r, err := h.step(number(2), "ada", goodCode); err != nil || r.Changed {
			t.Fatalf("%+v, %v", r, err)
		}
		var deleted map[string]int64
		err := h.DB.Update(ctx, func(tx *db.Tx) (err error) {
			if deleted, err = NewEraser(h.Keys).EraseCustomer(ctx, tx, ada.Customer); err != nil {
				return err
			}
			_, err = h.Keys.DestroyCustomer(ctx, tx, from(""), ada.Customer)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for kind, want := range map[string]int64{"accounts": 1, "devices": 1, "sessions": 1, "lanes": 2, "challenges": 3} {
			if deleted[kind] < want {
				t.Errorf("%d %s were deleted, and not %d", deleted[kind], kind, want)
			}
		}
		if h.count("code_change") != 0 || h.count("code_reset") != 0 {
			t.Error("what was done to the private code is left")
		}
		for _, of := range []string{string(registering), string(stranger), "ada"} {
			if err := h.DB.View(ctx, func(tx *db.Tx) error {
				c, err := getCounter(ctx, tx, h.quotaKeys("messages-daily", number(2)+of), h.clk.Now(), 24*time.Hour)
				if c.count != 0 {
					t.Errorf("%d messages of %s are still counted for the number", c.count, of)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		after := counts()
		for _, table := range []string{"account", "device", "session", "throttle"} {
			if after[table] != before[table] {
				t.Errorf("%s has %d rows, and had %d before the customer came", table, after[table], before[table])
			}
		}
		if _, err := h.Refresh(ctx, from("ada"), tokens.Refresh); !problem.Is(err, "invalid-refresh-token") {
			t.Errorf("refresh: %v", err)
		}
		if again := h.register(number(2), "ada"); again.Customer == ada.Customer {
			t.Error("the customer came back")
		}
		h.mustLogin(number(1), "neighbour")
	})
}
