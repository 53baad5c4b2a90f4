package transit_test

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
	"strongroom/internal/transit"
)

// since does something and returns what is new in the trail of it.
func (h *house) since(t testing.TB, do func()) []string {
	t.Helper()
	before := h.events(t)
	do()
	return slices.DeleteFunc(h.events(t), func(e string) bool {
		i := slices.Index(before, e)
		if i >= 0 {
			before = slices.Delete(before, i, i+1)
		}
		return i >= 0
	})
}

func (h *house) destroy(ctx context.Context, key string, version uint32) error {
	_, err := h.Destroy(ctx, pay, why, key, version)
	return err
}

func TestBatches(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.make(t)
		ctx := t.Context()
		messages := []transit.Item{{Message: []byte("one"), Context: "order/1"}, {Message: []byte{}, Context: ""}, {Message: []byte("three"), Context: "order/3"}}
		var sealed []transit.Done
		var err error
		if got := h.since(t, func() { sealed, err = h.EncryptBatch(ctx, pay, why, "seal", messages) }); err != nil ||
			!slices.Equal(got, []string{"transit.key.encrypt granted purpose:payment key seal v1 3 of 3 items"}) {
			t.Fatalf("%q %v", got, err)
		}
		if _, err := h.Rotate(ctx, pay, why, "seal"); err != nil {
			t.Fatal(err)
		}
		more, err := h.Encrypt(ctx, pay, why, "seal", []byte("four"), "order/4")
		if err != nil {
			t.Fatal(err)
		}
		texts := []transit.Item{{Text: sealed[0].Text, Context: "order/1"}, {Text: sealed[1].Text}, {Text: sealed[2].Text, Context: "order/2"},
			{Text: more, Context: "order/4"}, {Text: "sr1.nothing"}}
		var opened []transit.Done
		if got := h.since(t, func() { opened, err = h.DecryptBatch(ctx, pay, why, "seal", texts) }); err != nil || !slices.Equal(sorted(got), []string{
			"transit.key.decrypt denied does-not-open key seal 2 of 5 items", "transit.key.decrypt granted purpose:payment key seal v1,v2 3 of 5 items"}) {
			t.Fatalf("%q %v", got, err)
		}
		for i, want := range []string{"one", "", "-", "four", "-"} {
			if want == "-" {
				if opened[i].Plaintext != nil || opened[i].Err == nil || opened[i].Err.Slug() != "does-not-open" {
					t.Errorf("item %d: %+v", i, opened[i])
				}
			} else if opened[i].Err != nil || string(opened[i].Plaintext) != want {
				t.Errorf("item %d: %+v", i, opened[i])
			}
		}
		if got := h.since(t, func() { opened, err = h.DecryptBatch(ctx, pay, why, "seal", texts[4:]) }); err != nil || opened[0].Err == nil ||
			!slices.Equal(got, []string{"transit.key.decrypt denied does-not-open key seal 1 of 1 items"}) {
			t.Fatalf("%q %v", got, err)
		}
		again, err := h.RewrapBatch(ctx, pay, why, "seal", texts[:2])
		if err != nil {
			t.Fatal(err)
		}
		if err := h.destroy(ctx, "seal", 1); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"one", ""} {
			if plain, err := h.Decrypt(ctx, pay, why, "seal", again[i].Text, texts[i].Context); err != nil || string(plain) != want {
				t.Errorf("rewrapped %d: %q %v", i, plain, err)
			}
		}
		macs, err := h.MACBatch(ctx, pay, why, "mac", messages)
		if err != nil {
			t.Fatal(err)
		}
		signatures, err := h.SignBatch(ctx, pay, why, "sign", messages)
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range messages {
			if ok, err := h.VerifyMAC(ctx, pay, why, "mac", m.Message, m.Context, macs[i].Text); !ok || err != nil {
				t.Errorf("MAC %d: %t %v", i, ok, err)
			}
			if ok, err := h.Verify(ctx, pay, why, "sign", m.Message, m.Context, signatures[i].Text); !ok || err != nil {
				t.Errorf("signature %d: %t %v", i, ok, err)
			}
		}
		large := slices.Repeat([]transit.Item{{Message: make([]byte, transit.MaxMessage)}}, 17)
		for _, row := range []struct {
			name  string
			by    actor.Actor
			key   string
			items []transit.Item
			want  string
			event string
		}{
			{"nothing", pay, "seal", nil, "invalid-batch", "transit.key.encrypt denied invalid-batch key seal"},
			{"too many", pay, "seal", make([]transit.Item, transit.MaxBatch+1), "invalid-batch", "transit.key.encrypt denied invalid-batch key seal"},
			{"too much", pay, "seal", large, "batch-too-large", "transit.key.encrypt denied batch-too-large key seal"},
			{"too long a message", pay, "seal", []transit.Item{{Message: make([]byte, transit.MaxMessage+1)}}, "too-long", "transit.key.encrypt denied too-long key seal"},
			{"another use", pay, "mac", messages, "key-for-other-use", "transit.key.encrypt denied key-for-other-use key mac"},
			{"no key", pay, "none", messages, "key-not-found", "transit.key.encrypt denied key-not-found key none"},
			{"not permitted", actor.Actor{Kind: actor.Service, ID: "reader"}, "seal", messages, "not-permitted", "transit.key.encrypt denied not-permitted key seal"},
		} {
			var out []transit.Done
			got := h.since(t, func() { out, err = h.EncryptBatch(ctx, row.by, why, row.key, row.items) })
			if !problem.Is(err, row.want) || out != nil || !slices.Equal(got, []string{row.event}) {
				t.Errorf("%s: %v, the trail says %q", row.name, err, got)
			}
		}
		// Without the trail nothing leaves.
		if err := d.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `ALTER TABLE event_pending RENAME TO event_lost`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if out, err := h.SignBatch(ctx, pay, why, "sign", messages); err == nil || out != nil {
			t.Errorf("%v %v", out, err)
		}
	})
}

func sorted(s []string) []string { slices.Sort(s); return s }

// TestBatchIsManySingles holds that a batch opens what singles sealed and the other way round, for any
// messages.
func TestBatchIsManySingles(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.make(t)
	ctx := t.Context()
	rapid.Check(t, func(r *rapid.T) {
		items := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) transit.Item {
			return transit.Item{Message: rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(r, "message"), Context: rapid.StringN(0, 10, 40).Draw(r, "context")}
		}), 1, 6).Draw(r, "items")
		sealed, err := h.EncryptBatch(ctx, pay, why, "seal", items)
		if err != nil {
			r.Fatal(err)
		}
		texts := make([]transit.Item, len(items))
		for i, in := range items {
			if plain, err := h.Decrypt(ctx, pay, why, "seal", sealed[i].Text, in.Context); err != nil || !bytes.Equal(plain, in.Message) {
				r.Fatalf("%q %v", plain, err)
			}
			single, err := h.Encrypt(ctx, pay, why, "seal", in.Message, in.Context)
			if err != nil {
				r.Fatal(err)
			}
			texts[i] = transit.Item{Text: single, Context: in.Context}
		}
		opened, err := h.DecryptBatch(ctx, pay, why, "seal", texts)
		if err != nil {
			r.Fatal(err)
		}
		for i, in := range items {
			if opened[i].Err != nil || !bytes.Equal(opened[i].Plaintext, in.Message) {
				r.Fatalf("%+v", opened[i])
			}
		}
	})
}

func TestVersionsAreDestroyed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.make(t)
		ctx, message := t.Context(), []byte("m")
		sealed, err := h.Encrypt(ctx, pay, why, "seal", message, "c")
		if err != nil {
			t.Fatal(err)
		}
		mac, err := h.MAC(ctx, pay, why, "mac", message, "c")
		if err != nil {
			t.Fatal(err)
		}
		signature, err := h.Sign(ctx, pay, why, "sign", message, "c")
		if err != nil {
			t.Fatal(err)
		}
		verify := func(want bool) {
			t.Helper()
			for range 2 { // the second in a process that has just started
				if ok, err := h.VerifyMAC(ctx, pay, why, "mac", message, "c", mac); ok != want || err != nil {
					t.Errorf("MAC: %t %v", ok, err)
				}
				if ok, err := h.Verify(ctx, pay, why, "sign", message, "c", signature); ok != want || err != nil {
					t.Errorf("signature: %t %v", ok, err)
				}
				h.Transit = h.another(t)
			}
		}
		if err := h.destroy(ctx, "seal", 1); !problem.Is(err, "key-in-use") {
			t.Error(err)
		}
		for key, wanted := range map[string]string{"none": "key-not-found", "seal": "key-version-not-found"} {
			if err := h.destroy(ctx, key, 7); !problem.Is(err, wanted) {
				t.Error(err)
			}
			if _, err := h.Compromise(ctx, pay, why, key, 7); !problem.Is(err, wanted) {
				t.Error(err)
			}
		}
		reader := actor.Actor{Kind: actor.Service, ID: "reader"}
		if _, err := h.Compromise(ctx, reader, why, "sign", 1); !problem.Is(err, "not-permitted") {
			t.Error(err)
		}
		if _, err := h.Destroy(ctx, reader, why, "sign", 1); !problem.Is(err, "not-permitted") {
			t.Error(err)
		}
		verify(true)
		// What is known to others proves nothing any more; what it sealed can still be saved.
		once := transit.Access{Purpose: "payment", Once: "compromise-1"}
		got := h.since(t, func() {
			for range 2 {
				if v, err := h.Compromise(ctx, pay, once, "seal", 1); v != 2 || err != nil {
					t.Error(v, err)
				}
			}
		})
		if want := []string{"keyring.named-key.compromise granted  named key seal/1", "keyring.named-key.rotate granted  named key seal/2",
			"transit.key.compromise granted purpose:payment key seal v1", "transit.key.compromise granted purpose:payment replayed key seal v1"}; !slices.Equal(sorted(got), want) {
			t.Errorf("the trail says %q", got)
		}
		for _, key := range []string{"mac", "sign"} {
			if v, err := h.Compromise(ctx, pay, why, key, 1); v != 2 || err != nil {
				t.Error(v, err)
			}
		}
		verify(false)
		if _, versions, err := h.Read(ctx, pay, why, "sign"); err != nil || len(versions) != 2 || versions[1].State != "compromised" || versions[0].State != "active" {
			t.Error(versions, err)
		}
		// An older version does not make another when it is found out later.
		if _, err := h.Rotate(ctx, pay, why, "sign"); err != nil {
			t.Fatal(err)
		}
		if v, err := h.Compromise(ctx, pay, why, "sign", 2); v != 3 || err != nil {
			t.Error(v, err)
		}
		again, err := h.Rewrap(ctx, pay, why, "seal", sealed, "c")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			scrubbed, err := h.Destroy(ctx, pay, transit.Access{Purpose: "payment", Once: "destroy-1"}, "seal", 1)
			if err != nil || scrubbed != (d.Engine() == db.SQLite) {
				t.Error(scrubbed, err)
			}
		}
		if err := h.destroy(ctx, "seal", 1); !problem.Is(err, "key-version-not-found") {
			t.Error(err)
		}
		for range 2 {
			if _, err := h.Decrypt(ctx, pay, why, "seal", sealed, "c"); !problem.Is(err, "does-not-open") {
				t.Error(err)
			}
			if plain, err := h.Decrypt(ctx, pay, why, "seal", again, "c"); err != nil || string(plain) != "m" {
				t.Error(plain, err)
			}
			h.Transit = h.another(t)
		}
		var wrapped int
		if err := d.View(ctx, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM service_key WHERE name = 'named/seal' AND version = 1 AND wrapped IS NOT NULL`).Scan(&wrapped)
		}); err != nil || wrapped != 0 {
			t.Error("the destroyed version is still there", err)
		}
	})
}
