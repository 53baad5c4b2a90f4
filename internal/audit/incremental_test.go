package audit_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/problem"
)

func (h *house) verifyNew() audit.Report {
	h.t.Helper()
	r, err := h.trail.VerifyNew(context.Background(), operator, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// A verification goes on where the last one has found nothing wrong, and only there.
func TestVerifyNew(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{Verified: audit.RememberFile(filepath.Join(t.TempDir(), "verified"))})
		h.fill(700)
		h.sequence()
		if r := h.verifyNew(); r.From != 0 || r.Events != 700 || len(r.Findings) != 0 {
			t.Fatalf("the first: %+v", r)
		}
		done := h.count(`SELECT size FROM log_head`)
		for _, n := range []int{1, 300, 0, 3000} {
			h.fill(n)
			h.sequence()
			size := h.count(`SELECT size FROM log_head`)
			if r := h.verifyNew(); r.From != done || r.Events != size || len(r.Findings) != 0 {
				t.Fatalf("after %d more: %+v", n, r)
			}
			done = size
		}

		// An old event is left to Verify; a new one is not.
		h.fill(20)
		h.sequence()
		h.exec(`UPDATE event SET resource = 'altered' WHERE id = $1`, h.eventAt(5))
		if r := h.verifyNew(); len(r.Findings) != 0 {
			t.Errorf("%+v", r.Findings)
		}
		if r := h.verify(); len(r.Findings) == 0 {
			t.Error("Verify has not found it")
		}
		h.fill(20)
		h.sequence()
		last := h.count(`SELECT size FROM log_head`) - 1
		h.exec(`UPDATE event SET resource = 'altered' WHERE id = $1`, h.eventAt(last))
		r := h.verifyNew()
		if len(r.Findings) != 1 || r.Findings[0].Index != last || r.Findings[0].Kind != audit.Altered || r.From == 0 {
			t.Errorf("%+v", r)
		}
		// What was found is not forgotten by looking again.
		if r := h.verifyNew(); len(r.Findings) != 1 {
			t.Errorf("%+v", r)
		}
		h.exec(`DELETE FROM event WHERE id = $1`, h.eventAt(last))
		if r := h.verifyNew(); len(r.Findings) != 1 || r.Findings[0].Kind != audit.Dropped {
			t.Errorf("%+v", r)
		}
	})
}

// When the log does not continue what was verified, all of it is looked at.
func TestVerifyNewOfAnotherLog(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		dir := t.TempDir()
		h := newHouse(t, d, audit.Options{
			Verified: audit.RememberFile(filepath.Join(dir, "verified")), Remember: audit.RememberFile(filepath.Join(dir, "checkpoint")),
		})
		h.fill(300)
		h.sequence()
		h.verifyNew()
		h.tile(0, 1, func(b []byte) { b[0] ^= 1 })
		if r := h.verifyNew(); r.From != 0 || len(r.Findings) == 0 {
			t.Errorf("with another tile: %+v", r)
		}
		h.tile(0, 1, func(b []byte) { b[0] ^= 1 })
		if r := h.verifyNew(); r.From != 300 || len(r.Findings) != 0 {
			t.Errorf("%+v", r)
		}
		for _, table := range []string{"event", "event_leaf", "event_pending", "log_tile", "log_checkpoint"} {
			h.exec(`DELETE FROM ` + table)
		}
		h.exec(`UPDATE log_head SET size = 0, epoch = 0, root = '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='`)
		if r := h.verifyNew(); r.From != 0 || len(r.Findings) == 0 || r.Findings[0].Kind != audit.RolledBack {
			t.Errorf("emptied: %+v", r)
		}
	})
}

// twoKeys is a keyring whose log is signed by a key of its own.
type twoKeys struct {
	*keyring.Keyring
	signer   note.Signer
	verifier []note.Verifier
}

func (k *twoKeys) CheckpointSigner() note.Signer { return k.signer }
func (k *twoKeys) CheckpointVerifiers() note.Verifiers {
	return note.VerifierList(k.verifier...)
}

type seeded struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s seeded) Sign(text []byte) ([]byte, error) { return ed25519.Sign(s.key, text), nil }

func (k *twoKeys) next(t *testing.T, name string, seed byte) string {
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), 32)))
	text, err := note.NewEd25519VerifierKey(name, key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		t.Fatal(err)
	}
	k.verifier = append(k.verifier, v)
	k.signer = seeded{v, key}
	return text
}

// A signing key that takes over without a word of the one before it, which whoever holds the root key
// could make, is found; one that was announced is not.
func TestHandOverOfSigningKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		keys := &twoKeys{Keyring: h.ring}
		keys.next(t, "log.example", 'a')
		h.trail = audit.New(d, keys, audit.Options{})
		h.record(2)
		h.sequence()
		first := keys.signer

		announce := func(key string) {
			t.Helper()
			err := h.trail.Do(t.Context(), operator, audit.Event{Action: "keyring.service-key.publish", Resource: "service key checkpoint/2 " + key}, nothing)
			if err != nil {
				t.Fatal(err)
			}
		}
		announce(keys.next(t, "log.example", 'b'))
		second := keys.signer
		keys.signer = first
		h.sequence()
		keys.signer = second
		h.record(1)
		h.sequence()
		keys.signer = first // a server that has not loaded the new key yet
		h.record(1)
		h.sequence()
		h.holds()

		// The third announces itself.
		announce(keys.next(t, "log.example", 'c'))
		h.sequence()
		h.record(1)
		h.sequence()
		r := h.verify()
		if len(r.Findings) != 1 || r.Findings[0].Kind != audit.Altered || !strings.Contains(r.Findings[0].Detail, "announces") || r.Findings[0].Index != 6 {
			t.Errorf("%+v", r.Findings)
		}
	})
}

func TestAcceptRestore(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		path := filepath.Join(t.TempDir(), "checkpoint")
		o := audit.Options{Remember: audit.RememberFile(path)}
		h := newHouse(t, d, o)
		h.record(300)
		h.sequence()
		if err := h.trail.Remember(); err != nil {
			t.Fatal(err)
		}
		list, err := h.trail.Checkpoints(t.Context(), operator, -1, 1)
		if err != nil {
			t.Fatal(err)
		}
		at, err := audit.ParseSizeRoot("300:" + list[0].Root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.trail.AcceptRestore(t.Context(), operator, at); !problem.Is(err, "restore-not-needed") {
			t.Errorf("nothing was restored: %v", err)
		}
		h.sequence()
		saved := h.count(`SELECT size FROM log_head`)
		// A copy of every table, as a backup holds it.
		tables := []string{"event", "event_leaf", "event_pending", "log_tile", "log_checkpoint", "log_head"}
		for _, table := range tables {
			h.exec(`CREATE TABLE backup_` + table + ` AS SELECT * FROM ` + table)
		}
		h.record(40)
		h.sequence()
		if err := h.trail.Remember(); err != nil {
			t.Fatal(err)
		}
		for _, table := range tables {
			h.exec(`DELETE FROM ` + table)
			h.exec(`INSERT INTO ` + table + ` SELECT * FROM backup_` + table)
		}

		fresh := audit.New(d, h.ring, o)
		for _, trail := range []*audit.Trail{h.trail, fresh} {
			if _, err := trail.Sequence(t.Context()); !errors.Is(err, audit.ErrRolledBack) {
				t.Errorf("%v", err)
			}
		}
		if _, err := h.trail.AcceptRestore(t.Context(), h.by, at); !problem.Is(err, "trail-not-allowed") {
			t.Errorf("a customer: %v", err)
		}
		other := at
		other.Hash[0] ^= 1
		if _, err := h.trail.AcceptRestore(t.Context(), operator, other); !problem.Is(err, "checkpoint-unknown") {
			t.Errorf("another root: %v", err)
		}
		other = at
		other.N += 1000
		if _, err := h.trail.AcceptRestore(t.Context(), operator, other); !problem.Is(err, "checkpoint-unknown") {
			t.Errorf("a longer log: %v", err)
		}
		done, err := h.trail.AcceptRestore(t.Context(), operator, at)
		if err != nil || done.Size != 300 || done.Seen != saved+40 {
			t.Fatalf("%+v %v", done, err)
		}
		if e := h.newest(audit.ActionAcceptRestore); e.Outcome != audit.Granted || !strings.Contains(e.Resource, at.Hash.String()) || !strings.Contains(e.Resource, " instead of ") {
			t.Errorf("%+v", e)
		}
		h.sequence()
		h.holds()
		h.trail = audit.New(d, h.ring, o)
		h.sequence()
		h.holds()
	})
}

func TestParseSizeRoot(t *testing.T) {
	for _, text := range []string{"", "5", "5:", ":47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "-1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "5:xx", "5:47DEQpj8HBSa"} {
		if _, err := audit.ParseSizeRoot(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
