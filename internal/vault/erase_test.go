package vault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

var operator = actor.OfSystem("cli:ada")

// neighbour stands for another room.
type neighbour struct {
	asked []customer.ID
	err   error
}

func (n *neighbour) EraseCustomer(_ context.Context, tx *db.Tx, c customer.ID) (map[string]int64, error) {
	n.asked = append(n.asked, c)
	return map[string]int64{"accounts": 1, "nothings": 0}, n.err
}

func TestErase(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		other := new(neighbour)
		v, err := vault.New(h.db, h.keys, h.trail, vault.Options{Clock: h.clock, Erasers: []vault.Eraser{other}})
		if err != nil {
			t.Fatal(err)
		}
		h.vault = v
		ada, eve := h.person(t), h.person(t)
		for _, by := range []actor.Actor{ada, eve} {
			h.put(t, by, profile, adaProfile, vault.Condition{})
			h.put(t, by, vault.Ref{Collection: "bank_account", Key: "rent"}, adaAccount, vault.Condition{})
		}

		for _, row := range []struct {
			name   string
			by     actor.Actor
			who    customer.ID
			reason string
			want   string
			event  string
		}{
			{"herself", ada, ada.Customer(), "because", "erasure-not-allowed", "vault.customer.erase denied erasure-not-allowed customer"},
			{"a stranger", eve, ada.Customer(), "because", "erasure-not-allowed", "vault.customer.erase denied erasure-not-allowed customer"},
			{"no reason", operator, ada.Customer(), " \n", "reason-required", "vault.customer.erase denied reason-required customer"},
			{"too much reason", operator, ada.Customer(), strings.Repeat("x", 501), "reason-required", "vault.customer.erase denied reason-required customer"},
			{"unknown", operator, customer.NewID(), "because", "customer-not-found", "vault.customer.erase denied customer-not-found customer"},
			{"no customer", operator, "cus_'", "because", "customer-not-found", "vault.customer.erase denied customer-not-found customer"},
		} {
			before := h.events(t)
			if _, err := v.Erase(t.Context(), row.by, row.who, row.reason); !problem.Is(err, row.want) {
				t.Errorf("%s: %v", row.name, err)
			}
			if got := since(before, h.events(t)); len(got) != 1 || got[0] != row.event {
				t.Errorf("%s left %v", row.name, got)
			}
		}
		if len(other.asked) != 0 {
			t.Error("a refused erasure reached another room")
		}

		// Another room that fails keeps everything as it was.
		other.err = errors.New("no")
		if _, err := v.Erase(t.Context(), operator, ada.Customer(), "because"); !errors.Is(err, other.err) {
			t.Errorf("with a room that fails: %v", err)
		}
		other.err = nil
		if _, err := v.Get(t.Context(), ada, ada.Customer(), profile, vault.Reveal{}); err != nil {
			t.Errorf("after an erasure that failed: %v", err)
		}

		out, err := v.Erase(t.Context(), operator, ada.Customer(), "customer asked")
		if err != nil {
			t.Fatal(err)
		}
		if out.Scrubbed != (d.Engine() == db.SQLite) {
			t.Errorf("scrubbed: %v", out.Scrubbed)
		}
		check := func(r vault.Receipt) {
			t.Helper()
			s, proved, err := r.Check(h.keys.CheckpointKey())
			if err != nil {
				t.Fatalf("receipt: %v", err)
			}
			want := map[string]int64{"records": 2, "record-marks": 2, "index-entries": 2, "accounts": 1}
			if s.Customer != ada.Customer() || s.Keys != 1 || !maps.Equal(s.Deleted, want) || s.Environment != "dev" ||
				s.Installation != d.Installation() || !s.ErasedAt.Equal(h.clock.Now().Truncate(1000)) {
				t.Errorf("the receipt says %+v", s)
			}
			if proved.Actor.ID != operator.ID || proved.ID != s.Event {
				t.Errorf("the proof says %+v", proved)
			}
		}
		check(out.Receipt)
		again, err := v.Receipt(t.Context(), operator, ada.Customer())
		if err != nil {
			t.Fatal(err)
		}
		check(again)
		for _, row := range []struct {
			by   actor.Actor
			who  customer.ID
			want string
		}{{operator, eve.Customer(), "not-erased"}, {operator, "cus_x", "not-erased"}, {eve, ada.Customer(), "erasure-not-allowed"}} {
			if _, err := v.Receipt(t.Context(), row.by, row.who); !problem.Is(err, row.want) {
				t.Errorf("receipt of %s: %v", row.who, err)
			}
		}

		// Every operation says that the customer is gone; the neighbour's records are as they were.
		for name, err := range h.everything(t, v, ada) {
			if !problem.Is(err, "customer-erased") || problem.Of(err).Kind() != problem.Gone {
				t.Errorf("%s afterwards: %v", name, err)
			}
		}
		if _, err := v.Get(t.Context(), eve, eve.Customer(), profile, vault.Reveal{}); err != nil {
			t.Errorf("the neighbour: %v", err)
		}
		if got := h.lookup(t, "bank_account", "iban", "GB82WEST12345698765432"); len(got) != 1 || got[0].Customer != eve.Customer() {
			t.Errorf("look-up: %v", got)
		}

		// The trail holds and shows what was personal as erased; the reason is readable.
		report, err := h.trail.Verify(t.Context(), operator, nil)
		if err != nil || len(report.Findings) != 0 || report.Erased == 0 {
			t.Errorf("the trail: %+v, %v", report, err)
		}
		entries, err := h.trail.Tail(t.Context(), operator, "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		shown, reasons := 0, 0
		for _, e := range entries {
			if e.Customer != ada.Customer() {
				continue
			}
			if e.Personal["address"] == audit.Erased {
				shown++
			} else if e.Personal["address"] != "" && e.Actor.ID == ada.ID {
				t.Errorf("an address of the erased customer is readable in %s", e.Action)
			}
			if e.Personal["reason"] == "customer asked" {
				reasons++
			}
		}
		if shown == 0 || reasons != 1 {
			t.Errorf("%d erased parts and %d reasons", shown, reasons)
		}
	})
}

// everything tries each operation on a customer's records and returns what came of it.
func (h *house) everything(t testing.TB, v *vault.Vault, by actor.Actor) map[string]error {
	ctx, c := t.Context(), by.Customer()
	errs := make(map[string]error)
	_, errs["get"] = v.Get(ctx, by, c, profile, vault.Reveal{})
	_, errs["reveal"] = v.Get(ctx, by, c, profile, whole)
	_, _, errs["put"] = v.Put(ctx, by, c, profile, []byte(adaProfile), vault.Condition{})
	_, _, errs["list"] = v.List(ctx, by, c, "profile", "", 10)
	errs["delete"] = v.Delete(ctx, by, c, profile, vault.Condition{})
	_, errs["erase"] = v.Erase(ctx, operator, c, "again")
	return errs
}

// A process that holds the key of a customer whom another process erases serves nothing of them, and
// writes nothing that nobody could read again.
func TestEraseReachesOtherProcesses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		ada := h.person(t)
		h.put(t, ada, profile, adaProfile, vault.Condition{})
		first := h.vault
		h.reopen(t)
		second := h.vault
		if _, err := second.Get(t.Context(), ada, ada.Customer(), profile, whole); err != nil {
			t.Fatal(err) // the key is in the memory of both
		}
		if _, err := first.Erase(t.Context(), operator, ada.Customer(), "customer asked"); err != nil {
			t.Fatal(err)
		}
		for name, err := range h.everything(t, second, ada) {
			if !problem.Is(err, "customer-erased") {
				t.Errorf("%s by a process with the key: %v", name, err)
			}
		}
	})
}

// Whatever the order of writes, readings, deletions and erasures by two processes: a read returns what
// was acknowledged last, or says that the customer was erased.
func TestEraseProperty(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		first := h.vault
		h.reopen(t)
		processes := []*vault.Vault{first, h.vault}
		rapid.Check(t, func(r *rapid.T) {
			type person struct {
				by     actor.Actor
				erased bool
				texts  map[string]string // key → the name that was written last
			}
			people := []*person{{by: h.person(t), texts: map[string]string{}}, {by: h.person(t), texts: map[string]string{}}}
			for step := range rapid.IntRange(1, 24).Draw(r, "steps") {
				p := rapid.SampledFrom(people).Draw(r, "person")
				v := rapid.SampledFrom(processes).Draw(r, "process")
				key := rapid.SampledFrom([]string{"a", "b"}).Draw(r, "key")
				ref := vault.Ref{Collection: "profile", Key: key}
				was, there := p.texts[key]
				check := func(what string, err error, want string) bool {
					if p.erased {
						want = "customer-erased"
					}
					if want == "" && err != nil || want != "" && !problem.Is(err, want) {
						r.Fatalf("step %d: %s: %v, and not %q", step, what, err, want)
					}
					return err == nil
				}
				switch rapid.SampledFrom([]string{"put", "put", "get", "get", "list", "delete", "erase"}).Draw(r, "do") {
				case "put":
					name := fmt.Sprintf("Name%d", step)
					cond := vault.IfAbsent()
					if there {
						cond = vault.Condition{IfMatch: "*"}
					}
					if p.erased {
						cond = vault.Condition{}
					}
					_, _, err := v.Put(t.Context(), p.by, p.by.Customer(), ref, []byte(`{"given_name":"`+name+`","family_name":"X"}`), cond)
					if check("put", err, "") {
						p.texts[key] = name
					}
				case "get":
					want := "record-not-found"
					if there {
						want = ""
					}
					record, err := v.Get(t.Context(), p.by, p.by.Customer(), ref, whole)
					if check("get", err, want) && record.Fields["given_name"] != was {
						r.Fatalf("step %d: read %v instead of %s", step, record.Fields["given_name"], was)
					}
				case "list":
					page, _, err := v.List(t.Context(), p.by, p.by.Customer(), "profile", "", 10)
					if check("list", err, "") && len(page) != len(p.texts) {
						r.Fatalf("step %d: %d records instead of %d", step, len(page), len(p.texts))
					}
				case "delete":
					want := "record-not-found"
					if there {
						want = ""
					}
					if check("delete", v.Delete(t.Context(), p.by, p.by.Customer(), ref, vault.Condition{}), want) {
						delete(p.texts, key)
					}
				case "erase":
					_, err := v.Erase(t.Context(), operator, p.by.Customer(), "property")
					if check("erase", err, "") {
						p.erased = true
					}
				}
			}
		})
	})
}

// No receipt holds once any of it was changed, nor one of another installation under our key.
func TestReceiptsCannotBeForged(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), nil)
	ada, eve := h.person(t), h.person(t)
	erase := func(by actor.Actor) vault.Receipt {
		out, err := h.vault.Erase(t.Context(), operator, by.Customer(), "customer asked")
		if err != nil {
			t.Fatal(err)
		}
		return out.Receipt
	}
	good, hers := erase(ada), erase(eve)
	key := h.keys.CheckpointKey()
	if _, _, err := good.Check(""); err != nil {
		t.Errorf("under its own key: %v", err)
	}
	for _, row := range []struct {
		name   string
		change func(r *vault.Receipt)
	}{
		{"another customer", func(r *vault.Receipt) {
			r.Statement = strings.ReplaceAll(r.Statement, string(ada.Customer()), string(eve.Customer()))
		}},
		{"the proof of another erasure", func(r *vault.Receipt) { r.Proof = hers.Proof }},
		{"the statement of another erasure", func(r *vault.Receipt) { r.Statement = hers.Statement }},
		{"a checkpoint as statement", func(r *vault.Receipt) { r.Statement = r.Proof.Checkpoint }},
		{"a statement as checkpoint", func(r *vault.Receipt) { r.Proof.Checkpoint = r.Statement }},
		{"another leaf", func(r *vault.Receipt) { r.Proof.Leaf = strings.Replace(r.Proof.Leaf, "granted", "denied", 1) }},
		{"no signature", func(r *vault.Receipt) { r.Statement, _, _ = strings.Cut(r.Statement, "\n\n") }},
		{"nothing", func(r *vault.Receipt) { *r = vault.Receipt{} }},
	} {
		r := good
		row.change(&r)
		if _, _, err := r.Check(key); !errors.Is(err, vault.ErrReceipt) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	elsewhere := keyringtest.Open(t, dbtest.Open(t, db.SQLite))
	if _, _, err := good.Check(elsewhere.CheckpointKey()); !errors.Is(err, vault.ErrReceipt) {
		t.Errorf("under another installation's key: %v", err)
	}
	if _, _, err := good.Check("no key"); !errors.Is(err, vault.ErrReceipt) {
		t.Errorf("under no key: %v", err)
	}
}

func FuzzReceipt(f *testing.F) {
	f.Add([]byte(`{"statement":"strongroom erasure receipt v1\n{}\n\n— x AAAA\n","proof":{"leaf":"{}","index":0,"hashes":[],"checkpoint":"x\n1\nAAAA\n\n— x AAAA\n"},"key":"x+00000000+AAAA"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r vault.Receipt
		if json.Unmarshal(b, &r) != nil {
			return
		}
		if _, _, err := r.Check("strongroom/dev/x+e3a9d2a9+AbUT7m9Zl6q2sYYm0cGq3Fj0rYvVbS3uF8mQ9XlSv0Xk"); err == nil {
			t.Error("a made-up receipt holds")
		}
	})
}
