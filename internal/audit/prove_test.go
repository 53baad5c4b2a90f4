package audit_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
)

func verifiers(t testing.TB, key string) note.Verifiers {
	t.Helper()
	v, err := note.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	return note.VerifierList(v)
}

// Every event of a log of several hundred has a proof, also the one that has no place yet; and no
// proof holds once any of its parts was changed.
func TestProve(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		keys := keyringtest.Open(t, d)
		trail := audit.New(d, keys, audit.Options{})
		system := actor.OfSystem("cli:ada")
		var ids []string
		record := func(n int) {
			t.Helper()
			err := d.Update(t.Context(), func(tx *db.Tx) error {
				for range n {
					e := audit.Event{ID: audit.NewID(), Action: "test.thing.do", Resource: `a "thing"`, Outcome: audit.Granted,
						Personal: map[string]string{"phone": "+447700900123"}}
					if err := trail.Record(t.Context(), tx, system, e); err != nil {
						return err
					}
					ids = append(ids, e.ID)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		record(300)
		if _, err := trail.Sequence(t.Context()); err != nil {
			t.Fatal(err)
		}
		record(1) // waits for its place
		trust := verifiers(t, keys.CheckpointKey())
		var proof audit.Proof
		for _, id := range []string{ids[0], ids[1], ids[255], ids[256], ids[299], ids[300]} {
			var err error
			if proof, err = trail.Prove(t.Context(), system, id); err != nil {
				t.Fatalf("Prove: %v", err)
			}
			said, err := proof.Check(trust)
			if err != nil || said.ID != id || said.Action != "test.thing.do" || said.Actor.ID != "cli:ada" || said.Resource != `a "thing"` {
				t.Errorf("Check: %+v, %v", said, err)
			}
			b, err := json.Marshal(proof)
			if err != nil || strings.Contains(string(b), "7700900") {
				t.Errorf("%v %s", err, b)
			}
			var read audit.Proof
			if err := json.Unmarshal(b, &read); err != nil {
				t.Fatal(err)
			}
			if _, err := read.Check(trust); err != nil {
				t.Errorf("after a journey as JSON: %v", err)
			}
		}

		other := keyringtest.Open(t, dbtest.Open(t, db.SQLite))
		if _, err := proof.Check(verifiers(t, other.CheckpointKey())); !errors.Is(err, audit.ErrProof) {
			t.Errorf("under a key that is not the log's: %v", err)
		}
		rapid.Check(t, func(r *rapid.T) {
			p := proof
			p.Hashes = append(p.Hashes[:0:0], p.Hashes...)
			switch rapid.IntRange(0, 4).Draw(r, "what") {
			case 0:
				p.Index += rapid.Int64Range(1, 1<<40).Draw(r, "index")
			case 1:
				p.Index -= rapid.Int64Range(1, 1<<40).Draw(r, "index")
			case 2:
				b := []byte(p.Leaf)
				b[rapid.IntRange(0, len(b)-1).Draw(r, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
				p.Leaf = string(b)
			case 3:
				p.Hashes[rapid.IntRange(0, len(p.Hashes)-1).Draw(r, "hash")][rapid.IntRange(0, 31).Draw(r, "at")] ^= 1
			case 4:
				if rapid.Bool().Draw(r, "more") {
					p.Hashes = append(p.Hashes, p.Hashes[0])
				} else {
					p.Hashes = p.Hashes[:len(p.Hashes)-1]
				}
			}
			if _, err := p.Check(trust); !errors.Is(err, audit.ErrProof) {
				r.Fatalf("a changed proof holds: %v", err)
			}
		})

		for _, row := range []struct {
			name  string
			by    actor.Actor
			event string
			want  string
		}{
			{"nobody's event", system, audit.NewID(), "event-not-found"},
			{"no id", system, "evt_'", "event-not-found"},
			{"a customer", actor.Actor{Kind: actor.Customer}, ids[0], "trail-not-allowed"},
		} {
			if _, err := trail.Prove(t.Context(), row.by, row.event); !problem.Is(err, row.want) {
				t.Errorf("%s: %v", row.name, err)
			}
		}
		entries, err := trail.Tail(t.Context(), system, "", 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Action != audit.ActionProve || e.Outcome != audit.Denied {
				t.Errorf("event: %+v", e)
			}
		}

		// A log that was altered gives no proof.
		err = d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE event SET reason = $1 WHERE id = $2`, "altered", ids[7])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trail.Prove(t.Context(), system, ids[7]); err == nil || problem.Of(err) != nil {
			t.Errorf("of an altered event: %v", err)
		}
	})
}
