package vault_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// kept is what a model holds of a person: a value for each key.
type kept struct {
	by     actor.Actor
	values map[string]int
}

// world is a vault on two servers, of which only the first runs jobs, beside what it should hold.
type world struct {
	t        *testing.T
	servers  []*replica
	people   []*kept
	erased   []actor.Actor
	base     int // values of this run
	declared bool
	indexed  bool // the field name of the collection thing is to be found
	built    bool
}

func (w *world) rotation() keyring.Rotation {
	r, err := w.servers[0].keys.Rotation(context.Background())
	if err != nil && !problem.Is(err, "no-rotation") {
		w.t.Fatal(err)
	}
	return r
}

// declare puts the next declaration of thing, with or without an index on its field.
func (w *world) declare() error {
	w.indexed = !w.indexed
	w.built = !w.indexed || !w.declared
	w.declared = true
	_, err := declare(w.t, w.servers[0].vault, fmt.Sprintf(`name: {type: string, x-strongroom: {sensitivity: personal, mask: all, index: %t}}`, w.indexed))
	return err
}

func thing(value int) string { return fmt.Sprintf(`{"name":"n%d"}`, value) }

// put writes a value into a unique and into a plain index.
func (w *world) put(q *replica, p *kept, key string, value int) error {
	ctx, c := context.Background(), vault.Condition{}
	if _, there := p.values[key]; there {
		c.IfMatch = "*"
	}
	taken := slices.ContainsFunc(w.people, func(other *kept) bool {
		for k, v := range other.values {
			if v == value && (other != p || k != key) {
				return true
			}
		}
		return false
	})
	ref := vault.Ref{Collection: "note", Key: key}
	_, _, err := q.vault.Put(ctx, p.by, p.by.Customer(), ref, badge(value), c)
	if taken {
		if !problem.Is(err, "value-taken") {
			return fmt.Errorf("a value that another has was not refused: %w", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	p.values[key] = value
	if _, _, err := q.vault.Put(ctx, p.by, p.by.Customer(), vault.Ref{Collection: "thing", Key: key}, []byte(thing(value)), c); err != nil {
		return err
	}
	return q.activeOnly(p.by.Customer(), ref)
}

// activeOnly checks that what was just written is sealed under the active version of its customer's key.
func (p *replica) activeOnly(c customer.ID, ref vault.Ref) error {
	ctx := context.Background()
	return p.db.View(ctx, func(tx *db.Tx) error {
		var sealed []byte
		if err := tx.QueryRow(ctx, `SELECT sealed FROM record WHERE customer_id = $1 AND collection = $2 AND key = $3`,
			string(c), ref.Collection, ref.Key).Scan(&sealed); err != nil {
			return err
		}
		version, err := seal.KeyVersion(sealed)
		if err != nil {
			return err
		}
		var state string
		if err := tx.QueryRow(ctx, `SELECT state FROM data_key WHERE customer_id = $1 AND version = $2`, string(c), version).Scan(&state); err != nil {
			return err
		}
		if state == "compromised" {
			return fmt.Errorf("sealed under version %d, which is compromised", version)
		}
		return nil
	})
}

// nothingOf checks that no table holds a value of an erased customer.
func (w *world) nothingOf(c customer.ID) error {
	ctx := context.Background()
	return w.servers[0].db.View(ctx, func(tx *db.Tx) error {
		for _, query := range []string{
			`SELECT COUNT(*) FROM record WHERE customer_id = $1`, `SELECT COUNT(*) FROM record_version WHERE customer_id = $1`,
			`SELECT COUNT(*) FROM record_index WHERE customer_id = $1`, `SELECT COUNT(*) FROM record_mark WHERE customer_id = $1`,
			`SELECT COUNT(*) FROM token WHERE customer_id = $1`, `SELECT COUNT(*) FROM data_key WHERE customer_id = $1 AND wrapped IS NOT NULL`,
		} {
			var n int
			if err := tx.QueryRow(ctx, query, string(c)).Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				return fmt.Errorf("%s: %d are left", query, n)
			}
		}
		return nil
	})
}

// check looks up all values of the run on a server and reads all records.
func (w *world) check(q *replica) error {
	ctx := context.Background()
	for value := w.base; value < w.base+4; value++ {
		var want []vault.Match
		for _, p := range w.people {
			for key, v := range p.values {
				if v == value {
					want = append(want, vault.Match{Customer: p.by.Customer(), Key: key})
				}
			}
		}
		err := q.db.View(ctx, func(tx *db.Tx) error {
			found, err := q.vault.Lookup(ctx, tx, "note", "badge", fmt.Sprint(value))
			if err != nil || !slices.Equal(found, want) {
				return fmt.Errorf("badge %d is found at %v, not at %v: %w", value, found, want, err)
			}
			if q != w.servers[0] || !w.indexed || !w.built {
				return nil
			}
			if found, err = q.vault.Lookup(ctx, tx, "thing", "name", fmt.Sprint("n", value)); err != nil || !slices.Equal(found, want) {
				return fmt.Errorf("name n%d is found at %v, not at %v: %w", value, found, want, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, p := range w.people {
		for key, value := range p.values {
			got, err := q.vault.Get(ctx, p.by, p.by.Customer(), vault.Ref{Collection: "note", Key: key}, vault.Reveal{All: true, Purpose: "test"})
			if err != nil || fmt.Sprint(got.Fields["badge"]) != fmt.Sprint(value) {
				return fmt.Errorf("record %s: %v, want %d: %w", key, got.Fields, value, err)
			}
		}
	}
	for _, by := range w.erased {
		if _, err := q.vault.Get(ctx, by, by.Customer(), vault.Ref{Collection: "note", Key: "a"}, vault.Reveal{}); !problem.Is(err, "customer-erased") {
			return fmt.Errorf("an erased customer is read: %w", err)
		}
	}
	return nil
}

// TestEverythingAtOnce: in whatever order records are written and customers erased while data keys and the
// blind-index key are rotated and compromised, values sealed anew and indexes built, through two servers of
// which one is told nothing, every record is read and found as it was written last, no unique value has two
// holders, nothing is sealed under a compromised version, and of the erased nothing is there.
func TestEverythingAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := context.Background(), keyringtest.Root(t)
		w := &world{t: t}
		for range 2 {
			p := newReplica(t, d, root, 40) // two records a step
			p.keys.Connect(p.trail, p.vault)
			w.servers = append(w.servers, p)
			if err := p.vault.Settle(ctx, operator); err != nil {
				t.Fatal(err)
			}
		}
		first, second := w.servers[0], w.servers[1]
		if err := w.declare(); err != nil {
			t.Fatal(err)
		}
		if err := second.vault.CollectionJobs()[0].Run(ctx); err != nil { // a new collection takes it two seconds
			t.Fatal(err)
		}
		few(t, "6")
		run := 0
		rapid.Check(t, func(r *rapid.T) {
			run++
			w.base = 1000 * run
			for _, p := range w.people { // the run begins with few records
				if _, err := first.vault.Erase(ctx, operator, p.by.Customer(), "the run is over"); err != nil {
					r.Fatal(err)
				}
			}
			w.people, w.erased = []*kept{{first.person(t), map[string]int{}}, {first.person(t), map[string]int{}}}, nil
			for range rapid.IntRange(5, 25).Draw(r, "steps") {
				i := rapid.IntRange(0, 1).Draw(r, "person")
				p, q := w.people[i], w.servers[rapid.IntRange(0, 1).Draw(r, "server")]
				var err error
				do := rapid.SampledFrom([]string{"put", "put", "put", "put", "delete", "rotate", "rotate", "compromise", "step", "step", "step",
					"data key", "known data key", "reseal", "declare", "build", "erase"}).Draw(r, "do")
				switch do {
				case "put":
					err = w.put(q, p, rapid.SampledFrom([]string{"a", "b"}).Draw(r, "key"), w.base+rapid.IntRange(0, 3).Draw(r, "value"))
				case "delete":
					for key := range p.values {
						for _, collection := range []string{"note", "thing"} {
							err = errors.Join(err, q.vault.Delete(ctx, p.by, p.by.Customer(), vault.Ref{Collection: collection, Key: key}, vault.Condition{IfMatch: "*"}))
						}
						delete(p.values, key)
						break
					}
				case "rotate":
					if _, err = first.keys.Rotate(ctx, operator, keyring.KeyBlindIndex); problem.Is(err, "rotation-under-way") {
						err = nil
					}
				case "compromise":
					version := max(w.rotation().Version, 1)
					if err = first.keys.CompromiseService(ctx, operator, keyring.KeyBlindIndex, version); problem.Is(err, "key-not-found") {
						err = nil // destroyed before it was active
					}
				case "step":
					first.limit(rapid.IntRange(1, 6).Draw(r, "steps"))
					if err = first.job(ctx); errors.Is(err, context.Canceled) {
						err = nil
					}
				case "data key":
					_, err = first.keys.RotateCustomer(ctx, operator, p.by.Customer())
				case "known data key":
					if err = first.keys.CompromiseCustomer(ctx, operator, p.by.Customer(), 1); err == nil {
						err = second.keys.Reload(ctx) // as it does by itself, two seconds later
					}
				case "reseal":
					_, err = first.keys.Reseal(ctx, rapid.IntRange(1, 5).Draw(r, "values"), false)
				case "declare":
					err = w.declare()
				case "build":
					w.built, err = true, first.vault.BuildIndexes(ctx)
				case "erase":
					if _, err = q.vault.Erase(ctx, operator, p.by.Customer(), "asked for it"); err == nil {
						err = w.nothingOf(p.by.Customer())
					}
					for _, server := range w.servers { // as the other does when its lease is over
						server.keys.Forget(p.by.Customer())
					}
					w.erased = append(w.erased, p.by)
					w.people[i] = &kept{first.person(t), map[string]int{}}
				}
				if err == nil {
					err = w.check(q)
				}
				if err != nil {
					r.Fatalf("%s: %v", do, err)
				}
			}
			for _, by := range w.erased {
				if err := w.nothingOf(by.Customer()); err != nil {
					r.Fatal(err)
				}
			}
		})
		if w.rotation().Ended.IsZero() && w.rotation().ID != "" {
			if r := first.finish(t); r.Failed > 0 {
				t.Errorf("%+v", r)
			}
		}
	})
}
