package keyring

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// TestRotateService: a new version of each service key that can be rotated takes over in every process,
// and what the old one made still opens and verifies, also after the KEK was rotated.
func TestRotateService(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		a, b := openRotating(t, d, root), openRotating(t, d, root)
		wake, _ := a.work(t)
		b.work(t)
		code := []byte("code")
		outbox, event := a.Service(KeyOutbox).Seal(place, code), a.Service(KeyEvent).Seal(place, code)
		token, _ := a.MAC(KeyToken, code)
		pepper, _ := a.MAC(KeyPepper, code)
		signed, err := note.Sign(&note.Note{Text: "checkpoint 1\n"}, a.CheckpointSigner())
		if err != nil {
			t.Fatal(err)
		}

		for _, name := range []string{"customer", "nothing"} {
			if _, err := a.Rotate(ctx, by, name); !problem.Is(err, "key-not-rotatable") {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range Rotatable() {
			begun, err := a.Rotate(ctx, by, name)
			if err != nil || begun.Key != name || begun.Version != 2 {
				t.Fatalf("%s: %+v, %v", name, begun, err)
			}
			if done := a.finish(t, wake); done.ID != begun.ID || done.Phase != PhaseDone {
				t.Errorf("%s: %+v", name, done)
			}
		}
		if err := b.Reload(ctx); err != nil {
			t.Fatal(err)
		}
		for _, k := range []setup{a, b, openKeyring(t, d, root)} {
			for name, sealed := range map[string][]byte{KeyOutbox: outbox, KeyEvent: event} {
				ring := k.Service(name)
				if got, err := ring.Open(place, sealed); err != nil || !bytes.Equal(got, code) || ring.Version() != 2 {
					t.Errorf("%s: %q, %v, version %d seals", name, got, err, ring.Version())
				}
			}
			mac, version := k.MAC(KeyToken, code)
			if old, err := k.MACVersion(KeyToken, 1, code); err != nil || !bytes.Equal(old, token) || bytes.Equal(mac, token) || version != 2 {
				t.Errorf("token: %v, version %d", err, version)
			}
			mac, version = k.MAC(KeyPepper, code)
			if old, err := k.MACVersion(KeyPepper, 1, code); err != nil || !bytes.Equal(old, pepper) || bytes.Equal(mac, pepper) || version != 2 {
				t.Errorf("pepper: %v, version %d", err, version)
			}
			if _, err := note.Open(signed, k.CheckpointVerifiers()); err != nil {
				t.Errorf("a checkpoint of the old key: %v", err)
			}
			again, err := note.Sign(&note.Note{Text: "checkpoint 2\n"}, k.CheckpointSigner())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := note.Open(again, a.CheckpointVerifiers()); err != nil {
				t.Errorf("a checkpoint of the new key: %v", err)
			}
			// Whoever has read the trail can verify the new key's checkpoints with nothing else.
			if _, err := note.Open(again, note.VerifierList(announced(t, a.events))); err != nil {
				t.Errorf("the announced verifier: %v", err)
			}
		}
	})
}

// announced returns the verifier that the events name.
func announced(t *testing.T, e *events) note.Verifier {
	t.Helper()
	for _, s := range e.since(0) {
		if text, ok := strings.CutPrefix(s, ActionServicePublish+" service key checkpoint/2 "); ok {
			v, err := note.NewVerifier(text)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatal("no event names the new verifier")
	return nil
}

// TestPublishedServiceKeyWaits: until its time has come a new version opens and does not seal, and the
// signing key's waits on the embedded database too.
func TestPublishedServiceKeyWaits(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		clk := clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		k := openWith(t, Options{DB: d, Root: root, Clock: clk, Publish: time.Minute})
		before := k.CheckpointSigner().KeyHash()
		r, err := k.Rotate(ctx, by, KeyCheckpoint)
		if err != nil || !r.Due.Equal(clk.Now().Add(time.Minute)) {
			t.Fatalf("%+v, %v", r, err)
		}
		if _, err := k.Rotate(ctx, by, KeyToken); !problem.Is(err, "rotation-under-way") {
			t.Errorf("a second rotation: %v", err)
		}
		again := openKeyring(t, d, root)
		if k.CheckpointSigner().KeyHash() != before || again.CheckpointSigner().KeyHash() != before {
			t.Error("the published key signs")
		}
		wake, _ := k.work(t)
		clk.Advance(time.Minute)
		k.finish(t, wake)
		if k.CheckpointSigner().KeyHash() == before {
			t.Error("the old key still signs")
		}
		if got := k.events.all[len(k.events.all)-1]; got != "keyring.service-key.activate service key checkpoint/2" {
			t.Errorf("event %q", got)
		}
	})
}

// TestCompromiseDuringServiceRotation: another key's rotation does not stand in the way.
func TestCompromiseDuringServiceRotation(t *testing.T) {
	d, root := dbtest.Open(t, db.SQLite), testRoot(t)
	k := openWith(t, Options{DB: d, Root: root, Clock: clock.System, Publish: time.Hour})
	all := k.populate(t, 2)
	if _, err := k.Rotate(t.Context(), by, KeyCheckpoint); err != nil {
		t.Fatal(err)
	}
	if _, err := k.CompromiseKEK(t.Context(), by, 1); err != nil {
		t.Fatal(err)
	}
	wake, _ := k.work(t)
	k.until(t, wake, func(r Rotation) bool { return r.Key == KeyCheckpoint && k.keys.Load().kek.Version() == 2 })
	if err := k.DestroyKEK(t.Context(), by, 1); err != nil {
		t.Error(err)
	}
	for c, sealed := range all {
		if err := k.opens(t.Context(), c, sealed); err != nil {
			t.Error(err)
		}
	}
}

// TestScheduledServiceRotation: one key after the other, each once.
func TestScheduledServiceRotation(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	clk := clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	k := openWith(t, Options{DB: d, Root: testRoot(t), Clock: clk, Publish: time.Millisecond, ServiceEvery: 24 * time.Hour})
	wake, _ := k.work(t)
	clk.Advance(24 * time.Hour)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		wake()
		clk.Advance(time.Millisecond)
		if n := count(t, d, `SELECT COUNT(*) FROM service_key WHERE version = 2 AND state = 'active'`); n == len(rotatable) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not all were rotated")
		}
	}
	wake()
	if n := count(t, d, `SELECT COUNT(*) FROM service_key WHERE version > 2`); n != 0 {
		t.Errorf("%d were rotated twice", n)
	}
	list, err := k.List(t.Context(), by)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if wants := i.State == active && slices.Contains(rotatable, i.Name); wants == i.Next.IsZero() {
			t.Errorf("%s/%d (%s) is rotated next at %v", i.Name, i.Version, i.State, i.Next)
		}
	}
}
