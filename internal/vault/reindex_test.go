package vault_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// replica is one of several servers on one database: it has a keyring of its own.
type replica struct {
	*house
	services *vault.Services
	job      func(ctx context.Context) error // the rotation's
	limit    func(n int)                     // has the job stop after n more steps
}

// limited is an Index that stops the job after some steps, as a kill between two of them does.
type limited struct {
	keyring.Index
	step func(tx *db.Tx)
}

func (l limited) Renew(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (keyring.Renewed, error) {
	l.step(tx)
	return l.Index.Renew(ctx, tx, to, after, limit)
}

func (l limited) Clear(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (keyring.Renewed, error) {
	l.step(tx)
	return l.Index.Clear(ctx, tx, to, after, limit)
}

func newReplica(t testing.TB, d *db.DB, root keyring.Root, rate int) *replica {
	t.Helper()
	h := &house{db: d, root: root, clock: clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)), log: nil}
	var err error
	h.keys, err = keyring.Open(t.Context(), actor.OfSystem("test"), keyring.Options{
		DB: d, Root: root, Create: true, Publish: time.Millisecond, Rate: rate,
		Record: func(context.Context, *db.Tx, actor.Actor, customer.ID, string, string) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	h.trail = audit.New(d, h.keys, audit.Options{})
	all := collections()
	all[len(all)-1].Limit = 1000
	if h.vault, err = vault.New(d, h.keys, h.trail, vault.Options{Collections: all, Clock: h.clock}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "test.cedar"), []byte(grants), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := policy.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	p := &replica{house: h, services: h.vault.ForServices(set, once.New(d, h.keys, h.clock))}

	var left atomic.Int64
	left.Store(1 << 40)
	var stop atomic.Pointer[context.CancelFunc]
	p.limit = func(n int) { left.Store(int64(n)) }
	var indexes []keyring.Index
	for _, index := range h.vault.Indexes() {
		indexes = append(indexes, limited{index, func(tx *db.Tx) {
			tx.AfterCommit(func() {
				if left.Add(-1) <= 0 {
					(*stop.Load())()
				}
			})
		}})
	}
	h.keys.SetDependents(nil, indexes...)
	for _, j := range h.keys.Jobs() {
		if j.Name == keyring.JobRotation {
			p.job = func(ctx context.Context) error {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				stop.Store(&cancel)
				// The lease is the test's own: two jobs of two processes do not run at the same time.
				return underLease(ctx, d, j)
			}
		}
	}
	return p
}

// underLease runs a leased job once.
func underLease(ctx context.Context, d *db.DB, j jobs.Job) error {
	done := make(chan error, 1)
	r := jobs.New(d, jobs.Options{})
	r.Add(jobs.Job{Name: j.Name, Leased: true, Quiet: true, Run: func(running context.Context) error {
		running, cancel := context.WithCancel(running)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		err := j.Run(running)
		select {
		case done <- err:
		default:
		}
		return nil
	}})
	r.Start(context.Background())
	r.Wake(j.Name)
	err := <-done
	return errors.Join(err, r.Stop(context.Background()))
}

// finish runs the rotation to its end.
func (p *replica) finish(t testing.TB) keyring.Rotation {
	t.Helper()
	p.limit(1 << 40)
	for range 100 {
		if err := p.job(t.Context()); err != nil {
			t.Error(err)
			return keyring.Rotation{}
		}
		r, err := p.keys.Rotation(t.Context())
		if err != nil {
			t.Error(err)
			return r
		}
		if !r.Ended.IsZero() {
			return r
		}
	}
	t.Error("the rotation does not end")
	return keyring.Rotation{}
}

func versions(t testing.TB, d *db.DB, index keyring.Index) (n map[uint32]int64) {
	t.Helper()
	if err := d.View(t.Context(), func(tx *db.Tx) (err error) {
		n, err = index.Versions(t.Context(), tx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func badge(n int) []byte { return fmt.Appendf(nil, `{"text":"x","badge":%d}`, n) }

// TestRotateBlindIndex: while the key is rotated and records, tokens and imports come and go, no request
// fails, no look-up misses and no unique value is taken twice; then nothing needs the old version but the
// external names of those who were erased.
func TestRotateBlindIndex(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), keyringtest.Root(t)
		p := newReplica(t, d, root, 1<<30)
		other := newReplica(t, d, root, 1<<30) // runs no job and is told nothing
		const n = 24
		pay := vault.Access{Purpose: "payment"}
		var owners []actor.Actor
		tokens := make([]string, n)
		for i := range n {
			by := p.person(t)
			owners = append(owners, by)
			p.put(t, by, vault.Ref{Collection: "note", Key: "a"}, string(badge(i)), vault.Condition{})
			p.put(t, by, profile, `{"given_name":"A","family_name":"B","email":"same@example.com"}`, vault.Condition{})
			made, err := p.services.Tokenise(ctx, service("crm"), pay, by.Customer(), vault.TokenCard, "4111111111111111", i%2 == 0)
			if err != nil {
				t.Fatal(err)
			}
			tokens[i] = made.Token
		}
		results, err := p.vault.Import(ctx, operator, "note", []vault.ImportRow{
			importRow(1, "crm-1", `{"text":"x","badge":1001}`), importRow(2, "crm-2", `{"text":"x","badge":1002}`)}, false)
		if err != nil || results[1].Outcome != vault.Created {
			t.Fatal(results, err)
		}
		if _, err := p.vault.Erase(ctx, operator, results[1].Customer, "asked for it"); err != nil {
			t.Fatal(err)
		}

		rotated := make(chan keyring.Rotation, 1)
		if _, err := p.keys.Rotate(ctx, operator, keyring.KeyBlindIndex); err != nil {
			t.Fatal(err)
		}
		var working sync.WaitGroup
		var stop atomic.Bool
		var rounds atomic.Int64
		for w, q := range []*replica{p, other, p, other} {
			working.Go(func() {
				for i := w; !stop.Load() || i < n; i++ {
					rounds.Add(1)
					by := owners[i%n]
					if err := q.lives(ctx, by, owners[(i+1)%n], i%n, w, tokens[i%n]); err != nil {
						t.Errorf("replica %d, round %d: %v", w%2, i, err)
						return
					}
				}
			})
		}
		go func() {
			defer stop.Store(true)
			rotated <- p.finish(t)
		}()
		r := <-rotated
		working.Wait()
		if r.Failed > 0 || r.Done < 2*n || r.Version != 2 {
			t.Errorf("%+v", r)
		}
		t.Logf("%d rounds beside %d rows", rounds.Load(), r.Done)
		indexes := p.vault.Indexes()
		for i, want := range []int64{0, 0, 1} {
			if got := versions(t, d, indexes[i])[1]; got != want {
				t.Errorf("%s: %d rows are left under the old version, want %d", indexes[i].Name(), got, want)
			}
		}
		if got := versions(t, d, indexes[0])[2]; got != 2*n+1 {
			t.Errorf("%d rows under the new version", got)
		}
		for _, q := range []*replica{p, other, newReplica(t, d, root, 1)} {
			if found := q.lookup(t, "profile", "email", "same@example.com"); len(found) != 16 {
				t.Errorf("%d found", len(found))
			}
			for i, external := range []string{"crm-1", "crm-2"} {
				results, err := q.vault.Import(ctx, operator, "note", []vault.ImportRow{importRow(1, external, string(badge(1001)))}, false)
				if want := []string{"unchanged", "refused customer-erased"}[i]; err != nil || !slices.Contains([]string{results[0].Outcome, results[0].Outcome + " " + results[0].Reason}, want) {
					t.Errorf("%s: %+v, %v", external, results, err)
				}
			}
		}
	})
}

// lives does of everything something for one customer.
func (p *replica) lives(ctx context.Context, by, neighbour actor.Actor, n, w int, token string) error {
	pay := vault.Access{Purpose: "payment"}
	find := func(value string, want vault.Match) error {
		return p.db.View(ctx, func(tx *db.Tx) error {
			found, err := p.vault.Lookup(ctx, tx, "note", "badge", value)
			if err == nil && !slices.Equal(found, []vault.Match{want}) {
				err = fmt.Errorf("badge %s is found at %v", value, found)
			}
			return err
		})
	}
	if err := find(fmt.Sprint(n), vault.Match{Customer: by.Customer(), Key: "a"}); err != nil {
		return err
	}
	// What another has is taken; what nobody has is free, and is found at once.
	_, _, err := p.vault.Put(ctx, neighbour, neighbour.Customer(), vault.Ref{Collection: "note", Key: fmt.Sprint("taken", w)}, badge(n), vault.Condition{})
	if !problem.Is(err, "value-taken") {
		return fmt.Errorf("a badge of another: %w", errors.Join(errors.New("was not refused"), err))
	}
	ref, free := vault.Ref{Collection: "note", Key: fmt.Sprint("free", w)}, 5000+100*w+n
	if _, _, err := p.vault.Put(ctx, by, by.Customer(), ref, badge(free), vault.Condition{}); err != nil {
		return fmt.Errorf("a free badge: %w", err)
	}
	if err := find(fmt.Sprint(free), vault.Match{Customer: by.Customer(), Key: ref.Key}); err != nil {
		return err
	}
	if _, _, err := p.vault.Put(ctx, by, by.Customer(), ref, badge(free+1000), vault.Condition{IfMatch: "*"}); err != nil {
		return fmt.Errorf("another free badge: %w", err)
	}
	if err := p.vault.Delete(ctx, by, by.Customer(), ref, vault.Condition{IfMatch: "*"}); err != nil {
		return err
	}
	o, err := p.services.Detokenise(ctx, service("crm"), pay, token)
	if err != nil || o.Customer != by.Customer() {
		return fmt.Errorf("token: %v, %w", o.Customer == by.Customer(), errors.Join(errors.New("is lost"), err))
	}
	same, err := p.services.Tokenise(ctx, service("crm"), pay, by.Customer(), vault.TokenCard, "4111111111111111", true)
	if err == nil && n%2 == 0 && same.Token != token {
		err = errors.New("a deterministic token is another one")
	}
	return err
}

// TestUniqueOverTwoVersions: at each step of a rotation many enter one value at the same moment, half of
// them through a replica that has not heard of the rotation. Exactly one gets it.
func TestUniqueOverTwoVersions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), keyringtest.Root(t)
		p := newReplica(t, d, root, 1<<30)
		step := func(name string, value int) {
			t.Helper()
			var working sync.WaitGroup
			var won, lost atomic.Int64
			made := make(map[string]bool)
			var mu sync.Mutex
			pay := vault.Access{Purpose: "payment"}
			owner := p.person(t)
			for i := range 8 {
				q := p
				if i%2 == 1 {
					q = stale(t, d, root)
				}
				by := p.person(t)
				working.Go(func() {
					_, _, err := q.vault.Put(ctx, by, by.Customer(), vault.Ref{Collection: "note", Key: "a"}, badge(value), vault.Condition{})
					switch {
					case err == nil:
						won.Add(1)
					case problem.Is(err, "value-taken"):
						lost.Add(1)
					default:
						t.Errorf("%s: %v", name, err)
					}
					token, err := q.services.Tokenise(ctx, service("crm"), pay, owner.Customer(), vault.TokenText, "same", true)
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
					mu.Lock()
					made[token.Token] = true
					mu.Unlock()
				})
			}
			working.Wait()
			if won.Load() != 1 || lost.Load() != 7 || len(made) != 1 {
				t.Errorf("%s: %d got the value, %d were refused; %d tokens for one value", name, won.Load(), lost.Load(), len(made))
			}
			for v := range value + 1 {
				if found := p.lookup(t, "note", "badge", fmt.Sprint(v)); len(found) != 1 {
					t.Errorf("%s: badge %d is found %d times", name, v, len(found))
				}
			}
		}
		compromise := func(version uint32) {
			t.Helper()
			if err := p.keys.CompromiseService(ctx, operator, keyring.KeyBlindIndex, version); err != nil {
				t.Fatal(err)
			}
			if r, err := p.keys.Rotation(ctx); err != nil || r.Phase != keyring.PhaseResealing || r.Version != version+1 || r.Reason != "compromised" {
				t.Errorf("%+v, %v", r, err)
			}
		}
		step("at rest", 0)
		// Before each change processes are opened that do not hear of it.
		changes := []struct {
			name string
			do   func()
		}{
			{"published", func() {
				if _, err := p.keys.Rotate(ctx, operator, keyring.KeyBlindIndex); err != nil {
					t.Fatal(err)
				}
			}},
			{"active", func() {
				if _, err := p.keys.PauseRotation(ctx, operator); err != nil {
					t.Fatal(err)
				}
				if err := p.job(ctx); err != nil {
					t.Fatal(err)
				}
				if r, err := p.keys.Rotation(ctx); err != nil || r.Phase != keyring.PhaseResealing || r.Done > 0 {
					t.Fatalf("%+v, %v", r, err)
				}
			}},
			{"half re-indexed", func() {
				if _, err := p.keys.ResumeRotation(ctx, operator); err != nil {
					t.Fatal(err)
				}
				p.limit(2)
				_ = p.job(ctx) // ends as if killed
			}},
			{"done", func() { p.finish(t) }},
			{"a whole rotation later", func() {
				if _, err := p.keys.Rotate(ctx, operator, keyring.KeyBlindIndex); err != nil {
					t.Fatal(err)
				}
				p.finish(t)
			}},
			{"the active version is known", func() { compromise(3) }},
			{"half re-indexed, and the new one is known too", func() {
				p.limit(2)
				_ = p.job(ctx)
				compromise(4)
			}},
			{"done again", func() { p.finish(t) }},
			{"published again", func() {
				if _, err := p.keys.Rotate(ctx, operator, keyring.KeyBlindIndex); err != nil {
					t.Fatal(err)
				}
			}},
			{"known before it is active", func() { compromise(6) }},
			{"done at last", func() {
				if r := p.finish(t); r.Failed > 0 {
					t.Errorf("%+v", r)
				}
				for _, index := range p.vault.Indexes() {
					if got := versions(t, d, index); len(got) > 0 && (len(got) != 1 || got[7] == 0) {
						t.Errorf("%s has rows of versions %v", index.Name(), got)
					}
				}
			}},
		}
		for i, c := range changes {
			ready = []*replica{newReplica(t, d, root, 1), newReplica(t, d, root, 1), newReplica(t, d, root, 1), newReplica(t, d, root, 1)}
			c.do()
			step(c.name, i+1)
		}
		ready = nil
	})
}

// ready are processes that hold the keys of before a change.
var ready []*replica

func stale(t testing.TB, d *db.DB, root keyring.Root) *replica {
	t.Helper()
	if len(ready) == 0 {
		return newReplica(t, d, root, 1)
	}
	q := ready[0]
	ready = ready[1:]
	return q
}

// TestReindexAfterKill: the job is killed between any two of its steps and goes on in another replica,
// where it was; no row is done twice.
func TestReindexAfterKill(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), keyringtest.Root(t)
		p := newReplica(t, d, root, 100) // five records a step
		by := p.person(t)
		const n = 23
		for i := range n {
			p.put(t, by, vault.Ref{Collection: "note", Key: fmt.Sprint(i)}, string(badge(i)), vault.Condition{})
		}
		if _, err := p.keys.Rotate(ctx, operator, keyring.KeyBlindIndex); err != nil {
			t.Fatal(err)
		}
		kills := 0
		var r keyring.Rotation
		for ; r.Ended.IsZero() && kills < 50; kills++ {
			p = newReplica(t, d, root, 100)
			p.limit(1)
			if err := p.job(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			var err error
			if r, err = p.keys.Rotation(ctx); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if found := p.lookup(t, "note", "badge", fmt.Sprint(i)); len(found) != 1 {
					t.Fatalf("after %d kills badge %d is found %d times", kills, i, len(found))
				}
			}
		}
		if r.Done != n || r.Total != n || r.Failed != 0 || kills < 10 {
			t.Errorf("%d kills: %+v", kills, r)
		}
		if got := versions(t, d, p.vault.Indexes()[0]); len(got) != 1 || got[2] != n {
			t.Errorf("rows by version: %v", got)
		}
	})
}

// TestDamagedRecordsKeepTheirIndex: what does not open is counted, and found as before by what could open it.
func TestDamagedRecordsKeepTheirIndex(t *testing.T) {
	d, root := dbtest.Open(t, db.SQLite), keyringtest.Root(t)
	p := newReplica(t, d, root, 1<<30)
	by := p.person(t)
	for i := range 3 {
		p.put(t, by, vault.Ref{Collection: "note", Key: fmt.Sprint(i)}, string(badge(i)), vault.Condition{})
	}
	if err := d.Update(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), `UPDATE record SET sealed = (SELECT sealed FROM record WHERE key = '0') WHERE key = '1'`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.keys.Rotate(t.Context(), operator, keyring.KeyBlindIndex); err != nil {
		t.Fatal(err)
	}
	if r := p.finish(t); r.Done != 2 || r.Failed != 1 {
		t.Errorf("%+v", r)
	}
	if got := versions(t, d, p.vault.Indexes()[0]); got[1] != 1 || got[2] != 2 {
		t.Errorf("rows by version: %v", got)
	}
}

// TestReindexProperties: whatever the order of writes, rotations and steps, a look-up finds exactly the
// records that hold the value, and a unique value has one.
func TestReindexProperties(t *testing.T) {
	d, root := dbtest.Open(t, db.SQLite), keyringtest.Root(t)
	p := newReplica(t, d, root, 20) // a record a step
	few(t, "10")                    // each takes some hundred transactions
	rapid.Check(t, func(r *rapid.T) {
		ctx := context.Background()
		owners := []actor.Actor{p.person(t), p.person(t)}
		base := int(time.Now().UnixNano() & 0xffffffff)
		held := make(map[vault.Match]int)
		holder := func(value int) (vault.Match, bool) {
			for m, v := range held {
				if v == value {
					return m, true
				}
			}
			return vault.Match{}, false
		}
		r.Repeat(map[string]func(*rapid.T){
			"put": func(r *rapid.T) {
				by := owners[rapid.IntRange(0, 1).Draw(r, "owner")]
				at := vault.Match{Customer: by.Customer(), Key: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "key")}
				value := base + rapid.IntRange(0, 4).Draw(r, "value")
				c := vault.Condition{}
				if _, there := held[at]; there {
					c.IfMatch = "*"
				}
				other, taken := holder(value)
				taken = taken && other != at
				_, _, err := p.vault.Put(ctx, by, at.Customer, vault.Ref{Collection: "note", Key: at.Key}, badge(value), c)
				if taken != problem.Is(err, "value-taken") || !taken && err != nil {
					r.Fatalf("taken %t: %v", taken, err)
				}
				if !taken {
					held[at] = value
				}
			},
			"delete": func(r *rapid.T) {
				for at := range held {
					i := slices.IndexFunc(owners, func(a actor.Actor) bool { return a.Customer() == at.Customer })
					if err := p.vault.Delete(ctx, owners[i], at.Customer, vault.Ref{Collection: "note", Key: at.Key}, vault.Condition{IfMatch: "*"}); err != nil {
						r.Fatal(err)
					}
					delete(held, at)
					return
				}
			},
			"rotate": func(r *rapid.T) {
				if _, err := p.keys.Rotate(ctx, operator, keyring.KeyBlindIndex); err != nil && !problem.Is(err, "rotation-under-way") {
					r.Fatal(err)
				}
			},
			"step": func(r *rapid.T) {
				p.limit(rapid.IntRange(1, 5).Draw(r, "steps"))
				if err := p.job(ctx); err != nil && !errors.Is(err, context.Canceled) {
					r.Fatal(err)
				}
			},
			"": func(r *rapid.T) {
				for value := base; value < base+5; value++ {
					found := p.lookup(t, "note", "badge", fmt.Sprint(value))
					want, ok := holder(value)
					if ok != (len(found) == 1) || ok && found[0] != want {
						r.Fatalf("badge %d is found at %v; it is at %v", value, found, want)
					}
				}
			},
		})
		for at := range held { // the next run begins with few records
			i := slices.IndexFunc(owners, func(a actor.Actor) bool { return a.Customer() == at.Customer })
			if err := p.vault.Delete(ctx, owners[i], at.Customer, vault.Ref{Collection: "note", Key: at.Key}, vault.Condition{IfMatch: "*"}); err != nil {
				r.Fatal(err)
			}
		}
	})
}

// few has rapid check less often for the rest of the test, unless it is told how often.
func few(t *testing.T, n string) {
	t.Helper()
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		if err := checks.Value.Set(n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = checks.Value.Set(checks.DefValue) })
	}
}

// BenchmarkLookupDuringRotation looks up beside the same at rest: with one version of the key, with two
// while rows stand under both, and with two afterwards, until the old one is destroyed.
func BenchmarkLookupDuringRotation(b *testing.B) {
	for _, engine := range []db.Engine{db.SQLite, db.PostgreSQL} {
		b.Run(fmt.Sprint(engine), func(b *testing.B) {
			d, root := dbtest.Open(b, engine), keyringtest.Root(b)
			p := newReplica(b, d, root, 1<<30)
			const n = 1000
			for i := range n {
				p.put(b, p.person(b), vault.Ref{Collection: "note", Key: "a"}, string(badge(i)), vault.Condition{})
			}
			look := func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					if err := d.View(b.Context(), func(tx *db.Tx) error {
						found, err := p.vault.Lookup(b.Context(), tx, "note", "badge", fmt.Sprint(i%n))
						if err == nil && len(found) != 1 {
							err = fmt.Errorf("%d found", len(found))
						}
						return err
					}); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.Run("at=rest", look)
			if _, err := p.keys.Rotate(b.Context(), operator, keyring.KeyBlindIndex); err != nil {
				b.Fatal(err)
			}
			p.limit(2)
			_ = p.job(b.Context())
			b.Run("at=rotation", look)
			p.finish(b)
			b.Run("at=done", look)
		})
	}
}
