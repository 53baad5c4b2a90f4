package keyring

import (
	"context"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

func TestCompromisedServiceKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root, who := t.Context(), testRoot(t), ""
		f := new(found)
		k := openWith(t, Options{DB: d, Root: root, Findings: f, Needed: func(context.Context, *db.Tx, string, uint32) (string, error) { return who, nil }})
		for name, version := range map[string]uint32{"nobody": 1, KeyToken: 9} {
			if err := k.CompromiseService(ctx, by, name, version); !problem.Is(err, "key-not-found") {
				t.Errorf("%s/%d: %v", name, version, err)
			}
			if err := k.DestroyService(ctx, by, name, version); !problem.Is(err, "key-not-found") {
				t.Errorf("%s/%d: %v", name, version, err)
			}
		}

		place := seal.Place{Room: "test", Table: "t"}
		sealed := k.Service(KeyOutbox).Seal(place, []byte("x"))
		mac, _ := k.MAC(KeyToken, []byte("t"))
		signed, err := note.Sign(&note.Note{Text: "checkpoint\n"}, k.CheckpointSigner())
		if err != nil {
			t.Fatal(err)
		}
		erased := k.create(t)
		update(t, d, func(tx *db.Tx) error {
			_, err := k.DestroyCustomer(ctx, tx, by, erased)
			return err
		})
		old := []string{KeyOutbox, KeyToken, KeyCheckpoint, KeyEventMAC}
		for _, name := range old {
			if err := k.DestroyService(ctx, by, name, 1); !problem.Is(err, "key-needed") || !strings.Contains(err.Error(), "active") {
				t.Errorf("%s is active: %v", name, err)
			}
			if err := k.CompromiseService(ctx, by, name, 1); err != nil {
				t.Fatal(err)
			}
		}
		got := k.events.since(0)
		if !slices.Contains(got, "keyring.service-key.compromise service key token/1") || !slices.Contains(got, "keyring.service-key.activate service key token/2") ||
			!slices.ContainsFunc(got, func(s string) bool {
				return strings.HasPrefix(s, "keyring.service-key.activate service key checkpoint/2 strongroom/")
			}) {
			t.Errorf("events %q", got)
		}
		other := openKeyring(t, d, root)
		if _, version := other.MAC(KeyToken, nil); version != 2 || other.Service(KeyOutbox).Version() != 2 {
			t.Error("the compromised version still makes something")
		}
		if again, err := other.MACVersion(KeyToken, 1, []byte("t")); err != nil || string(again) != string(mac) {
			t.Errorf("what it made no longer verifies: %v", err)
		}
		if got, err := other.Service(KeyOutbox).Open(place, sealed); err != nil || string(got) != "x" {
			t.Errorf("what it sealed no longer opens: %v", err)
		}
		if err := k.tend(ctx); err != nil {
			t.Error(err)
		}
		f.are(t, FindingCompromised+" outbox/1", FindingCompromised+" token/1", FindingCompromised+" checkpoint/1", FindingCompromised+" event-mac/1")

		who = "3 sessions"
		if err := k.DestroyService(ctx, by, KeyToken, 1); !problem.Is(err, "key-needed") || !strings.Contains(err.Error(), who) {
			t.Errorf("needed: %v", err)
		}
		who = ""
		if err := k.DestroyService(ctx, by, KeyEventMAC, 1); !problem.Is(err, "key-needed") || !strings.Contains(err.Error(), "1 tombstones") {
			t.Errorf("a tombstone needs it: %v", err)
		}
		for _, name := range old[:3] {
			if err := k.DestroyService(ctx, by, name, 1); err != nil {
				t.Fatal(err)
			}
			if n := count(t, d, `SELECT count(*) FROM service_key WHERE wrapped IS NOT NULL AND version = 1 AND name = '`+name+`'`); n != 0 {
				t.Errorf("%s: the wrapped key is left", name)
			}
		}
		for _, p := range []setup{k, openKeyring(t, d, root)} {
			if _, err := p.MACVersion(KeyToken, 1, nil); err == nil {
				t.Error("the destroyed version makes MACs")
			}
			if _, err := note.Open(signed, p.CheckpointVerifiers()); err != nil {
				t.Errorf("what a destroyed key signed: %v", err)
			}
		}
		if err := k.tend(ctx); err != nil {
			t.Error(err)
		}
		f.are(t, FindingCompromised+" event-mac/1")

		// One that only waits for its turn is destroyed; one whose successor waits hands over at once.
		if _, err := k.Rotate(ctx, by, KeyEvent); err != nil {
			t.Fatal(err)
		}
		if err := k.CompromiseService(ctx, by, KeyEvent, 2); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Rotate(ctx, by, KeyEvent); err != nil {
			t.Fatal(err)
		}
		if err := k.CompromiseService(ctx, by, KeyEvent, 1); err != nil {
			t.Fatal(err)
		}
		if v := k.Service(KeyEvent).Version(); v != 3 {
			t.Errorf("version %d seals", v)
		}
		if n := count(t, d, `SELECT count(*) FROM rotation WHERE ended_at IS NULL`); n != 0 {
			t.Errorf("%d rotations are open", n)
		}
	})
}
