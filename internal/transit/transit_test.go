package transit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
	"strongroom/internal/transit"
)

type house struct {
	*transit.Transit
	db   *db.DB
	root keyring.Root
	set  *policy.Set
}

func newHouse(t testing.TB, d *db.DB) *house {
	t.Helper()
	dir := t.TempDir()
	text := `permit (principal == Service::"pay", action in Action::"keys", resource);
		forbid (principal, action, resource == Key::"root");
		permit (principal == Service::"reader", action == Action::"key.verify", resource == Key::"sign");`
	if err := os.WriteFile(filepath.Join(dir, "a.cedar"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := policy.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{db: d, root: keyringtest.Root(t), set: set}
	h.Transit = h.another(t)
	return h
}

// another returns a Transit with a keyring that has nothing in its memory, as after a restart.
func (h *house) another(t testing.TB) *transit.Transit {
	t.Helper()
	var trail *audit.Trail
	keys, err := keyring.Open(t.Context(), actor.OfSystem("test"), keyring.Options{DB: h.db, Root: h.root, Create: true, Connect: func(k *keyring.Keyring) keyring.Recorder {
		trail = audit.New(h.db, k, audit.Options{})
		return func(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, action, resource string) error {
			return trail.Record(ctx, tx, by, audit.Event{Action: action, Resource: resource, Customer: c, Outcome: audit.Granted})
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return transit.New(transit.Options{DB: h.db, Keys: keys, Trail: trail, Policy: h.set, Book: once.New(h.db, keys, nil)})
}

func (h *house) events(t testing.TB) []string {
	t.Helper()
	var out []string
	err := h.db.View(t.Context(), func(tx *db.Tx) error {
		rows, err := tx.Query(t.Context(), `SELECT action, outcome, reason, resource FROM event WHERE action LIKE 'transit.%' OR action LIKE 'keyring.named-key.%'`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var s [4]string
			if err := rows.Scan(&s[0], &s[1], &s[2], &s[3]); err != nil {
				return err
			}
			out = append(out, strings.Join(s[:], " "))
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	pay = actor.Actor{Kind: actor.Service, ID: "pay"}
	why = transit.Access{Purpose: "payment"}
)

func (h *house) make(t testing.TB) {
	t.Helper()
	for name, algorithm := range map[string]string{"seal": keyring.NamedSealing, "mac": keyring.NamedMAC, "sign": keyring.NamedSigning} {
		if err := h.Create(t.Context(), pay, why, name, algorithm); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTransit(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.make(t)
		ctx, message := t.Context(), []byte("a message of some length")
		sealed, err := h.Encrypt(ctx, pay, why, "seal", message, "order/1")
		if err != nil || strings.Contains(sealed, base64.RawURLEncoding.EncodeToString(message)) {
			t.Fatal(sealed, err)
		}
		mac, err := h.MAC(ctx, pay, why, "mac", message, "order/1")
		if err != nil {
			t.Fatal(err)
		}
		signature, err := h.Sign(ctx, pay, why, "sign", message, "order/1")
		if err != nil {
			t.Fatal(err)
		}
		for round := range 2 { // before and after a rotation, the second in a process that has just started
			for name, want := range map[string]bool{"order/1": true, "order/2": false, "": false} {
				got, err := h.Decrypt(ctx, pay, why, "seal", sealed, name)
				if want != (err == nil && bytes.Equal(got, message)) || !want && !problem.Is(err, "does-not-open") {
					t.Errorf("round %d: decrypt for %q: %q %v", round, name, got, err)
				}
				if ok, err := h.VerifyMAC(ctx, pay, why, "mac", message, name, mac); err != nil || ok != want {
					t.Errorf("round %d: verify the MAC for %q: %t %v", round, name, ok, err)
				}
				if ok, err := h.Verify(ctx, pay, why, "sign", message, name, signature); err != nil || ok != want {
					t.Errorf("round %d: verify for %q: %t %v", round, name, ok, err)
				}
			}
			for _, name := range []string{"seal", "mac", "sign"} {
				if v, err := h.Rotate(ctx, pay, why, name); err != nil || v != uint32(round+2) {
					t.Errorf("rotate %s: version %d, %v", name, v, err)
				}
			}
			h.Transit = h.another(t)
		}
		again, err := h.Rewrap(ctx, pay, why, "seal", sealed, "order/1")
		if err != nil || again == sealed {
			t.Fatal(again, err)
		}
		if got, err := h.Decrypt(ctx, pay, why, "seal", again, "order/1"); err != nil || !bytes.Equal(got, message) {
			t.Errorf("%q %v", got, err)
		}
		if newer, err := h.MAC(ctx, pay, why, "mac", message, "order/1"); err != nil || newer == mac || !strings.HasPrefix(newer, "sr1.3.") {
			t.Errorf("%s %v", newer, err)
		}
		// Whoever has the public key verifies without Strongroom.
		algorithm, versions, err := h.Read(ctx, pay, why, "sign")
		if err != nil || algorithm != keyring.NamedSigning || len(versions) != 3 || versions[0].State != "active" || versions[2].State != "retired" {
			t.Fatal(algorithm, versions, err)
		}
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(signature, "sr1.1."))
		if err != nil || !ed25519.Verify(versions[2].Public, transit.Signed("order/1", message), raw) {
			t.Error("the public key does not verify", err)
		}
		if _, versions, err := h.Read(ctx, pay, why, "seal"); err != nil || versions[0].Public != nil {
			t.Error(versions, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.make(t)
		reader := actor.Actor{Kind: actor.Service, ID: "reader"}
		sealed, err := h.Encrypt(t.Context(), pay, why, "seal", []byte("secret"), "c")
		if err != nil {
			t.Fatal(err)
		}
		altered := []byte(sealed)
		altered[len(altered)-1] ^= 1
		encrypt := func(by actor.Actor, a transit.Access, name string, message []byte, about string) func() error {
			return func() error { _, err := h.Encrypt(t.Context(), by, a, name, message, about); return err }
		}
		decrypt := func(text string) func() error {
			return func() error { _, err := h.Decrypt(t.Context(), pay, why, "seal", text, "c"); return err }
		}
		for _, row := range []struct {
			name  string
			do    func() error
			want  string
			event string
		}{
			{"not permitted", encrypt(reader, why, "seal", nil, ""), "not-permitted", "transit.key.encrypt denied not-permitted key seal"},
			{"forbidden", encrypt(pay, why, "root", nil, ""), "not-permitted", "transit.key.encrypt denied not-permitted key root"},
			{"no purpose", encrypt(pay, transit.Access{}, "seal", nil, ""), "purpose-required", "transit.key.encrypt denied purpose-required key seal"},
			{"a customer", encrypt(actor.Actor{Kind: actor.Customer, ID: "pay"}, why, "seal", nil, ""), "not-permitted", "transit.key.encrypt denied not-permitted key seal"},
			{"no such key", encrypt(pay, why, "none", nil, ""), "key-not-found", "transit.key.encrypt denied key-not-found key none"},
			{"a name that is none", encrypt(pay, why, "Ada Lovelace", nil, ""), "invalid-key-name", "transit.key.encrypt denied invalid-key-name key"},
			{"another use", encrypt(pay, why, "mac", nil, ""), "key-for-other-use", "transit.key.encrypt denied key-for-other-use key mac"},
			{"too long", encrypt(pay, why, "seal", make([]byte, transit.MaxMessage+1), ""), "too-long", "transit.key.encrypt denied too-long key seal"},
			{"too long a context", encrypt(pay, why, "seal", nil, strings.Repeat("c", transit.MaxContext+1)), "too-long", "transit.key.encrypt denied too-long key seal"},
			{"altered", decrypt(string(altered)), "does-not-open", "transit.key.decrypt denied does-not-open key seal"},
			{"cut", decrypt(sealed[:20]), "does-not-open", "transit.key.decrypt denied does-not-open key seal"},
			{"no ciphertext", decrypt("secret"), "does-not-open", "transit.key.decrypt denied does-not-open key seal"},
			{"too long a ciphertext", decrypt("sr1." + strings.Repeat("A", 50_000)), "too-long", "transit.key.decrypt denied too-long key seal"},
			{"there already", func() error { return h.Create(t.Context(), pay, why, "seal", keyring.NamedMAC) }, "key-exists", "transit.key.create denied key-exists key seal"},
			{"an algorithm that is none", func() error { return h.Create(t.Context(), pay, why, "new", "DES") }, "invalid-algorithm", "transit.key.create denied invalid-algorithm key new"},
			{"rotate what is not there", func() error { _, err := h.Rotate(t.Context(), pay, why, "new"); return err }, "key-not-found", "transit.key.rotate denied key-not-found key new"},
			{"not valid", func() error {
				if ok, err := h.Verify(t.Context(), reader, why, "sign", []byte("m"), "c", "sr1.1.AAAA"); ok || err != nil {
					t.Error(ok, err)
				}
				return errNone
			}, "none", "transit.key.verify granted purpose:payment not valid key sign"},
		} {
			before := h.events(t)
			err := row.do()
			if !problem.Is(err, row.want) {
				t.Errorf("%s: %v", row.name, err)
			}
			got := slices.DeleteFunc(h.events(t), func(e string) bool {
				i := slices.Index(before, e)
				if i >= 0 {
					before = slices.Delete(before, i, i+1)
				}
				return i >= 0
			})
			if !slices.Equal(got, []string{row.event}) {
				t.Errorf("%s: the trail says %q", row.name, got)
			}
		}
	})
}

var errNone = problem.New(problem.Invalid, "none", "")

// TestNothingLeavesWithoutItsEvent breaks the trail: no ciphertext, plaintext or signature comes out.
func TestNothingLeavesWithoutItsEvent(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.make(t)
		sealed, err := h.Encrypt(t.Context(), pay, why, "seal", []byte("secret"), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `ALTER TABLE event_pending RENAME TO event_lost`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if plain, err := h.Decrypt(t.Context(), pay, why, "seal", sealed, ""); err == nil || plain != nil {
			t.Errorf("%q %v", plain, err)
		}
		if out, err := h.Sign(t.Context(), pay, why, "sign", []byte("m"), ""); err == nil || out != "" {
			t.Errorf("%q %v", out, err)
		}
		if err := h.Create(t.Context(), pay, why, "more", keyring.NamedMAC); err == nil {
			t.Error("a key was made without its event")
		}
	})
}

// TestRotatedOnce has many callers rotate with one idempotency key at once.
func TestRotatedOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.make(t)
		versions := make([]string, 8)
		var wg sync.WaitGroup
		for i := range versions {
			wg.Go(func() {
				v, err := h.Rotate(context.Background(), pay, transit.Access{Purpose: "payment", Once: "rotate-1"}, "seal")
				versions[i] = fmt.Sprint(v, err)
			})
		}
		wg.Wait()
		if got := slices.Compact(versions); !slices.Equal(got, []string{"2 <nil>"}) {
			t.Errorf("%q", got)
		}
		if _, err := h.Rotate(t.Context(), pay, transit.Access{Purpose: "payment", Once: "rotate-1"}, "mac"); !problem.Is(err, "idempotency-key-reused") {
			t.Error(err)
		}
	})
}

// TestAnyInterleaving holds over any order of encryption, rotation, rewrapping and restarts that what
// was encrypted decrypts in its context, and in no other.
func TestAnyInterleaving(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.make(t)
	ctx := t.Context()
	rapid.Check(t, func(r *rapid.T) {
		type item struct {
			text, context string
			plain         []byte
		}
		var items []item
		r.Repeat(map[string]func(*rapid.T){
			"encrypt": func(r *rapid.T) {
				x := item{context: rapid.StringN(0, 20, 60).Draw(r, "context"), plain: rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(r, "plain")}
				var err error
				if x.text, err = h.Encrypt(ctx, pay, why, "seal", x.plain, x.context); err != nil {
					r.Fatal(err)
				}
				items = append(items, x)
			},
			"rotate": func(r *rapid.T) {
				if _, err := h.Rotate(ctx, pay, why, "seal"); err != nil {
					r.Fatal(err)
				}
			},
			"rewrap": func(r *rapid.T) {
				if len(items) == 0 {
					return
				}
				x := &items[rapid.IntRange(0, len(items)-1).Draw(r, "item")]
				var err error
				if x.text, err = h.Rewrap(ctx, pay, why, "seal", x.text, x.context); err != nil {
					r.Fatal(err)
				}
			},
			"": func(r *rapid.T) {
				for _, x := range items {
					if plain, err := h.Decrypt(ctx, pay, why, "seal", x.text, x.context); err != nil || !bytes.Equal(plain, x.plain) {
						r.Fatalf("%q %v", plain, err)
					}
				}
				if len(items) > 0 {
					x := items[len(items)-1]
					if _, err := h.Decrypt(ctx, pay, why, "seal", x.text, x.context+"'"); !problem.Is(err, "does-not-open") {
						r.Fatal(err)
					}
				}
				if len(items) > 2 {
					items = items[1:]
				}
			},
		})
	})
}

// FuzzDecrypt holds that no text brings the decoders down or opens.
func FuzzDecrypt(f *testing.F) {
	h := newHouse(f, dbtest.Open(f, db.SQLite))
	h.make(f)
	f.Add("sr1.AQAAAAE", "sr1.1.AAAA")
	f.Add("sr1.", "sr1.01.")
	f.Fuzz(func(t *testing.T, ciphertext, mac string) {
		if _, err := h.Decrypt(t.Context(), pay, why, "seal", ciphertext, ""); err == nil {
			t.Error("it opens")
		}
		if ok, _ := h.VerifyMAC(t.Context(), pay, why, "mac", []byte("m"), "", mac); ok {
			t.Error("it verifies")
		}
	})
}
