package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
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
	"strongroom/internal/keyring/seal"
	"strongroom/internal/once"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// process is a server: a keyring with a cache of its own and a vault, over the database of all.
type process struct {
	*house
	book     *once.Book
	clock    *clock.Manual
	findings *findings

	mu  sync.Mutex
	all []string // events of the keyring
}

// findings remembers what is wrong.
type findings struct {
	mu   sync.Mutex
	open map[string]string
	err  error
}

func (f *findings) Raise(_ context.Context, kind, subject, detail string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.open[kind+" "+subject] = detail
	}
	return f.err
}

func (f *findings) Clear(_ context.Context, kind, subject string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, kind+" "+subject)
	return nil
}

func (f *findings) list() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.open {
		all = append(all, k)
	}
	return all
}

// server starts another process over the house's database.
func (h *house) server(t testing.TB, o keyring.Options) *process {
	t.Helper()
	other := *h
	p := &process{house: &other, findings: &findings{open: make(map[string]string)}}
	o.DB, o.Root, o.Create, o.Findings = h.db, h.root, true, p.findings
	if o.Clock == nil {
		p.clock = clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		o.Clock = p.clock
	}
	o.Record = func(_ context.Context, _ *db.Tx, _ actor.Actor, c customer.ID, action, resource string) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if c != "" {
			resource = strings.ReplaceAll(resource, string(c), "C")
		}
		p.all = append(p.all, action+" "+resource)
		return nil
	}
	var err error
	if p.keys, err = keyring.Open(t.Context(), operator, o); err != nil {
		t.Fatal(err)
	}
	p.trail = audit.New(h.db, p.keys, audit.Options{})
	p.vault = p.another(t, withHistory())
	p.book = once.New(h.db, p.keys, nil)
	p.keys.Connect(p.trail, p.vault, p.book)
	return p
}

// run runs the keyring's jobs until stop is called.
func (p *process) run(t testing.TB) (wake, stop func()) {
	t.Helper()
	r := jobs.New(p.db, jobs.Options{})
	for _, j := range p.keys.Jobs() {
		r.Add(j)
	}
	r.Start(context.Background())
	stop = sync.OnceFunc(func() {
		if err := r.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return func() { r.Wake(keyring.JobReseal); r.Wake(keyring.JobRotation) }, stop
}

// until wakes the jobs until ok.
func until(t testing.TB, wake func(), what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", what)
		}
		wake()
	}
}

// under counts, by version of the key, the values of c that the vault and the book keep.
func (p *process) under(t testing.TB, c customer.ID) map[uint32]int {
	t.Helper()
	n := make(map[uint32]int)
	err := p.db.View(t.Context(), func(tx *db.Tx) error {
		clear(n)
		for _, room := range []keyring.Resealer{p.vault, p.book} {
			err := room.Stale(t.Context(), tx, c, seal.Header(1<<31), 10_000, func(_ seal.Place, sealed []byte, _ func(context.Context, *db.Tx, []byte) (int64, error)) {
				version, err := seal.KeyVersion(sealed)
				if err != nil {
					t.Error(err)
				}
				n[version]++
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// states returns the versions of c's key, "1 retired, 2 active".
func (p *process) states(t testing.TB, c customer.ID) string {
	t.Helper()
	versions, err := p.keys.CustomerVersions(t.Context(), operator, c)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, v := range versions {
		s := fmt.Sprintf("%d %s", v.Version, v.State)
		if v.Waiting {
			s += " waiting"
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

// settled has everybody's old rings be gone.
func (p *process) settled() { p.clock.Advance(10 * time.Minute) }

func (p *process) reseal(t testing.TB) (all keyring.Resealed) {
	t.Helper()
	for {
		r, err := p.keys.Reseal(t.Context(), 7, false)
		if err != nil {
			t.Fatal(err)
		}
		if r.Customers == 0 {
			return all
		}
		all.Customers, all.Values, all.Failed = all.Customers+r.Customers, all.Values+r.Values, all.Failed+r.Failed
	}
}

// TestReseal: everything that a customer has is sealed anew under a new version of their key, and nobody
// who reads it sees a difference.
func TestReseal(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		p := newHouse(t, d, nil).server(t, keyring.Options{})
		results, err := p.vault.Import(ctx, operator, "profile", []vault.ImportRow{importRow(1, "crm-1", adaProfile)}, false)
		if err != nil || results[0].Outcome != vault.Created {
			t.Fatalf("%v, %v", results, err)
		}
		c := results[0].Customer
		ada := actor.Actor{Kind: actor.Customer, ID: string(c), Address: p.person(t).Address}
		main := vault.Ref{Collection: "profile", Key: "main"}
		for range 2 {
			if _, _, err := p.vault.Put(ctx, ada, c, main, []byte(adaProfile), vault.Condition{IfMatch: "*"}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 9 {
			p.put(t, ada, vault.Ref{Collection: "bank_account", Key: fmt.Sprint(i)}, strings.Replace(adaAccount, "Ada", fmt.Sprint("Ada", i), 1), vault.Condition{})
		}
		passport := vault.Ref{Collection: "profile", Key: "passport"}
		if _, _, err := p.vault.PutBlob(ctx, ada, c, passport, strings.NewReader(strings.Repeat("passport ", 30_000)), vault.Condition{}); err != nil {
			t.Fatal(err)
		}
		ask := once.Request{Service: "crm", Key: "0123456789", Asked: [][]byte{[]byte("x")}}
		if err := d.Update(ctx, func(tx *db.Tx) error { return p.book.Keep(ctx, tx, ask, c, []byte("answer")) }); err != nil {
			t.Fatal(err)
		}
		desk := deskOf(t, p.house, p.book)
		token, err := desk.services.Tokenise(ctx, service("crm"), vault.Access{Purpose: "payment"}, c, vault.TokenCard, "4111111111111111", true)
		if err != nil {
			t.Fatal(err)
		}
		look := func() string {
			t.Helper()
			out, err := p.vault.Export(ctx, operator, c)
			if err != nil {
				t.Fatal(err)
			}
			out.ExportedAt = time.Time{}
			history, err := desk.services.History(ctx, service("crm"), vault.Access{Purpose: "support"}, c, main)
			if err != nil {
				t.Fatal(err)
			}
			var versions []string
			for _, v := range history {
				old, err := desk.services.Get(ctx, service("crm"), vault.Access{Purpose: "support"}, c, main, v.Version, vault.Reveal{})
				if err != nil {
					t.Fatal(err)
				}
				versions = append(versions, fmt.Sprint(old))
			}
			blob, err := p.vault.OpenBlob(ctx, ada, c, passport, whole.Purpose)
			if err != nil {
				t.Fatal(err)
			}
			defer blob.Close()
			content, err := io.ReadAll(blob)
			if err != nil {
				t.Fatal(err)
			}
			same, err := desk.services.Tokenise(ctx, service("crm"), vault.Access{Purpose: "payment"}, c, vault.TokenCard, "4111111111111111", true)
			if err != nil || same != token {
				t.Errorf("the token: %v, %v", same, err)
			}
			original, err := desk.services.Detokenise(ctx, service("crm"), vault.Access{Purpose: "payment"}, token.Token)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := p.book.Look(ctx, ask)
			if err != nil || answer == nil {
				t.Fatalf("the answer: %v, %v", answer, err)
			}
			if err := d.Update(ctx, func(tx *db.Tx) error { return answer.Unlock(ctx, tx) }); err != nil {
				t.Fatal(err)
			}
			text, err := answer.Open()
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(out, history, versions, blob.Blob, len(content), bytes.Count(content, []byte("passport ")), original, string(text))
		}
		before := look()
		// 1 record with 2 older versions, 9 accounts, a token, a blob, an external name, an answer.
		if n := p.under(t, c); n[1] != 16 || len(n) != 1 {
			t.Fatalf("values by version %v", n)
		}
		if v, err := p.keys.RotateCustomer(ctx, operator, c); err != nil || v != 2 {
			t.Fatalf("%d, %v", v, err)
		}
		if after := look(); after != before {
			t.Errorf("rotated, it reads\n%s\nand before\n%s", after, before)
		}
		all := p.reseal(t)
		if all.Values != 16 || all.Failed != 0 {
			t.Errorf("%+v", all)
		}
		if n := p.under(t, c); n[2] != 16 || len(n) != 1 {
			t.Errorf("values by version %v", n)
		}
		if after := look(); after != before {
			t.Errorf("sealed anew, it reads\n%s\nand before\n%s", after, before)
		}
		p.settled()
		p.reseal(t)
		if got := p.states(t, c); got != "1 retired, 2 active" {
			t.Errorf("the versions: %s", got)
		}
		if want := []string{"keyring.customer-key.create customer key C/1", "keyring.customer-key.create customer key C/2"}; !slices.Equal(p.keyEventsOf("customer-key"), want) {
			t.Errorf("events %q", p.keyEventsOf(""))
		}
	})
}

// keyEventsOf returns the different events of the keyring in which kind occurs.
func (p *process) keyEventsOf(kind string) (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := map[string]bool{}
	for _, e := range p.all {
		if strings.Contains(e, kind) && !seen[e] {
			seen[e] = true
			out = append(out, e)
		}
	}
	return out
}

// A server that has the old version in its cache opens what another one seals under the new one, and what
// it seals itself under the old one the other one opens; and all of it is sealed anew in the end.
func TestRotationReachesOtherProcesses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		h := newHouse(t, d, nil)
		a, b := h.server(t, keyring.Options{}), h.server(t, keyring.Options{})
		ada := a.person(t)
		c := ada.Customer()
		ref := func(key string) vault.Ref { return vault.Ref{Collection: "bank_account", Key: key} }
		for _, p := range []*process{a, b} {
			p.put(t, ada, ref("of"+fmt.Sprint(p == a)), adaAccount, vault.Condition{})
		}
		for version := uint32(2); version < 5; version++ {
			if _, err := a.keys.RotateCustomer(ctx, operator, c); err != nil {
				t.Fatal(err)
			}
			a.put(t, ada, ref("new"+fmt.Sprint(version)), adaAccount, vault.Condition{})
			b.put(t, ada, ref("late"+fmt.Sprint(version)), adaAccount, vault.Condition{})
			if n := a.under(t, c); n[version] == 0 || n[version-1] == 0 {
				t.Errorf("values by version %v: this test shows nothing", n)
			}
			for name, p := range map[string]*process{"a": a, "b": b} {
				page, _, err := p.vault.List(ctx, ada, c, "bank_account", "", 50)
				if err != nil {
					t.Fatalf("%s after version %d: %v", name, version, err)
				}
				for _, r := range page {
					if _, err := p.vault.Get(ctx, ada, c, r.Ref, vault.Reveal{}); err != nil {
						t.Errorf("%s: %s: %v", name, r.Key, err)
					}
				}
			}
			if _, _, err := a.keys.ResealCustomer(ctx, c); err != nil {
				t.Fatal(err)
			}
			if n := a.under(t, c); len(n) != 1 {
				t.Errorf("values by version %v", n)
			}
		}
	})
}

// What is sealed anew never takes the place of what somebody wrote meanwhile, nor of what was erased, and
// of an older version that a writer put into the history at that moment nothing is left behind.
func TestResealYieldsToWriters(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		p := newHouse(t, d, nil).server(t, keyring.Options{})
		ada := p.person(t)
		c := ada.Customer()
		p.put(t, ada, profile, adaProfile, vault.Condition{})
		if _, err := p.keys.RotateCustomer(ctx, operator, c); err != nil {
			t.Fatal(err)
		}
		meanwhile := func() {
			if _, _, err := p.vault.Put(ctx, ada, c, profile, []byte(strings.Replace(adaProfile, "Ada", "Augusta", 1)), vault.IfVersion(1)); err != nil {
				t.Error(err)
			}
		}
		p.keys.Connect(p.trail, interrupted{p.vault, &meanwhile})
		r, err := p.keys.Reseal(ctx, 100, false)
		if err != nil || r.Values != 0 {
			t.Errorf("%+v, %v", r, err)
		}
		if got := p.states(t, c); got != "1 retired waiting, 2 active" {
			t.Errorf("the versions: %s", got)
		}
		if all := p.reseal(t); all.Values != 1 { // the old version, in the history
			t.Errorf("%+v", all)
		}
		if n := p.under(t, c); n[2] != 2 || len(n) != 1 {
			t.Errorf("values by version %v", n)
		}
		record, err := p.vault.Get(ctx, ada, c, profile, whole)
		if err != nil || record.Version != 2 || record.Fields["given_name"] != "Augusta" {
			t.Errorf("%+v, %v", record, err)
		}
		if _, err := p.keys.RotateCustomer(ctx, operator, c); err != nil {
			t.Fatal(err)
		}
		var swaps []func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error)
		if err := d.View(ctx, func(tx *db.Tx) error {
			return p.vault.Stale(ctx, tx, c, seal.Header(3), 100, func(_ seal.Place, _ []byte, swap func(context.Context, *db.Tx, []byte) (int64, error)) {
				swaps = append(swaps, swap)
			})
		}); err != nil || len(swaps) != 2 {
			t.Fatalf("%d values, %v", len(swaps), err)
		}
		if _, err := p.vault.Erase(ctx, operator, c, "customer asked"); err != nil {
			t.Fatal(err)
		}
		if err := d.Update(ctx, func(tx *db.Tx) error {
			for _, swap := range swaps {
				if n, err := swap(ctx, tx, []byte("x")); err != nil || n != 0 {
					t.Errorf("%d rows, %v", n, err)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if n := p.under(t, c); len(n) != 0 {
			t.Errorf("of the erased there are %v", n)
		}
		if _, err := p.keys.RotateCustomer(ctx, operator, c); !problem.Is(err, "customer-erased") {
			t.Errorf("rotating the erased: %v", err)
		}
		if err := p.keys.CompromiseCustomer(ctx, operator, c, 1); !problem.Is(err, "customer-erased") {
			t.Errorf("marking the erased: %v", err)
		}
	})
}

// interrupted lets somebody else act between the reading of values and their replacement.
type interrupted struct {
	keyring.Resealer
	act *func()
}

func (i interrupted) Stale(ctx context.Context, tx *db.Tx, c customer.ID, header []byte, limit int,
	found func(p seal.Place, sealed []byte, swap func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error))) error {
	var acted sync.WaitGroup
	err := i.Resealer.Stale(ctx, tx, c, header, limit, found)
	if act := *i.act; act != nil {
		*i.act = nil
		acted.Go(act)
		acted.Wait()
	}
	return err
}

// A value that does not open is left as it is, counted once, and in nobody's way.
func TestResealLeavesWhatDoesNotOpen(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		p := newHouse(t, d, nil).server(t, keyring.Options{})
		ada := p.person(t)
		c := ada.Customer()
		for i := range 20 {
			p.put(t, ada, vault.Ref{Collection: "bank_account", Key: fmt.Sprint("k", i)}, adaAccount, vault.Condition{})
		}
		if _, err := p.keys.RotateCustomer(ctx, operator, c); err != nil {
			t.Fatal(err)
		}
		if err := d.Update(ctx, func(tx *db.Tx) error {
			n, err := tx.Exec(ctx, `UPDATE record SET updated_at = updated_at + 1 WHERE key IN ('k0', 'k1', 'k2', 'k3', 'k10', 'k11', 'k12', 'k13', 'k14')`)
			if n != 9 {
				t.Errorf("%d rows", n)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if all := p.reseal(t); all.Values != 11 || all.Failed != 9 {
			t.Errorf("%+v", all)
		}
		if n := p.under(t, c); n[1] != 9 || n[2] != 11 {
			t.Errorf("values by version %v", n)
		}
		p.clock.Advance(2 * time.Hour)
		if all := p.reseal(t); all.Values != 0 || all.Failed != 9 {
			t.Errorf("later: %+v", all)
		}
		if err := p.keys.DestroyCustomerVersion(ctx, operator, c, 1); !problem.Is(err, "key-needed") {
			t.Errorf("destroying what it needs: %v", err)
		}
	})
}

// A compromised version seals no more, what it sealed is sealed anew before all else, and the finding
// stands until then.
func TestCompromisedCustomerKey(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		h := newHouse(t, d, nil)
		a, b := h.server(t, keyring.Options{}), h.server(t, keyring.Options{})
		people := []actor.Actor{a.person(t), a.person(t), a.person(t)}
		for _, by := range people {
			a.put(t, by, profile, adaProfile, vault.Condition{})
			if _, err := b.vault.Get(ctx, by, by.Customer(), profile, whole); err != nil {
				t.Fatal(err)
			}
		}
		for _, by := range people[:2] {
			if _, err := a.keys.RotateCustomer(ctx, operator, by.Customer()); err != nil {
				t.Fatal(err)
			}
		}
		last := people[2].Customer()
		if err := a.keys.CompromiseCustomer(ctx, operator, last, 7); !problem.Is(err, "key-not-found") {
			t.Errorf("an unknown version: %v", err)
		}
		if err := a.keys.CompromiseCustomer(ctx, operator, customer.NewID(), 1); !problem.Is(err, "customer-not-found") {
			t.Errorf("an unknown customer: %v", err)
		}
		if len(a.findings.list()) != 0 {
			t.Errorf("findings %q", a.findings.list())
		}
		if err := a.keys.CompromiseCustomer(ctx, operator, last, 1); err != nil {
			t.Fatal(err)
		}
		if want := []string{"keyring.key-compromised customer"}; !slices.Equal(a.findings.list(), want) {
			t.Errorf("findings %q", a.findings.list())
		}
		if want := []string{"keyring.customer-key.compromise customer key C/1"}; !slices.Equal(a.keyEventsOf("compromise"), want) {
			t.Errorf("events %q", a.keyEventsOf(""))
		}
		// Neither process seals with it again: the other one learns it with its next look at the keys.
		if err := b.keys.Reload(ctx); err != nil {
			t.Fatal(err)
		}
		for i, p := range []*process{a, b} {
			p.put(t, people[2], vault.Ref{Collection: "bank_account", Key: fmt.Sprint(i)}, adaAccount, vault.Condition{})
		}
		if n := a.under(t, last); n[1] != 1 || n[2] != 2 {
			t.Errorf("values by version %v", n)
		}
		// It comes first, also while all others are paused.
		r, err := a.keys.Reseal(ctx, 100, true)
		if err != nil || !r.Urgent || r.Values != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		if n := a.under(t, people[0].Customer()); n[1] != 1 {
			t.Errorf("another customer's values by version %v", n)
		}
		if r, err := a.keys.Reseal(ctx, 100, true); err != nil || r.Customers != 0 {
			t.Errorf("again: %+v, %v", r, err)
		}
		a.settled()
		wake, _ := a.run(t)
		until(t, wake, "the end of the finding", func() bool { return len(a.findings.list()) == 0 })
		if got := a.states(t, last); got != "1 compromised, 2 active" {
			t.Errorf("the versions: %s", got)
		}
		// All versions that were made until now.
		n, err := a.keys.CompromiseCustomersBefore(ctx, operator, a.clock.Now().Add(time.Hour))
		if n != 0 || !problem.Is(err, "time-in-future") {
			t.Errorf("of the future: %d, %v", n, err)
		}
		a.clock.Advance(time.Second)
		if n, err = a.keys.CompromiseCustomersBefore(ctx, operator, a.clock.Now()); err != nil || n != 5 {
			t.Errorf("%d were marked, %v", n, err)
		}
		if n, err = a.keys.CompromiseCustomersBefore(ctx, operator, a.clock.Now()); err != nil || n != 0 {
			t.Errorf("again %d were marked, %v", n, err)
		}
		a.settled()
		until(t, wake, "the end of the finding", func() bool { return len(a.findings.list()) == 0 })
		for _, by := range people {
			if got := a.states(t, by.Customer()); got != "1 compromised, 2 compromised, 3 active" {
				t.Errorf("the versions: %s", got)
			}
			if n := a.under(t, by.Customer()); len(n) != 1 || n[3] == 0 {
				t.Errorf("values by version %v", n)
			}
			if _, err := b.vault.Get(ctx, by, by.Customer(), profile, whole); err != nil {
				t.Error(err)
			}
		}
		// A finding that cannot be raised is raised later.
		a.findings.mu.Lock()
		a.findings.err = errors.New("no")
		a.findings.mu.Unlock()
		if err := a.keys.CompromiseCustomer(ctx, operator, last, 3); err != nil {
			t.Fatal(err)
		}
		if d.Engine() == db.PostgreSQL { // where it is waited for other processes
			a.findings.mu.Lock()
			a.findings.err = nil
			a.findings.mu.Unlock()
			until(t, wake, "the finding", func() bool { return len(a.findings.list()) == 1 })
		}
	})
}

// TestRotateCustomers: every customer gets a new version and every value is sealed by it, through a pause
// and through the end of the process that does it, while others read and write.
func TestRotateCustomers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		h := newHouse(t, d, nil)
		a := h.server(t, keyring.Options{Rate: 200, Publish: time.Millisecond})
		var people []actor.Actor
		for range 60 {
			by := a.person(t)
			people = append(people, by)
			a.put(t, by, profile, adaProfile, vault.Condition{})
		}
		gone := a.person(t)
		if _, err := a.vault.Erase(ctx, operator, gone.Customer(), "customer asked"); err != nil {
			t.Fatal(err)
		}
		a.clock.Advance(time.Hour) // so that it begins after the KEK's rotation
		wake, stop := a.run(t)
		begun, err := a.keys.RotateCustomers(ctx, operator)
		if err != nil || begun.Total != 60 || begun.Key != "customer" {
			t.Fatalf("%+v, %v", begun, err)
		}
		if _, err := a.keys.RotateCustomers(ctx, operator); !problem.Is(err, "rotation-under-way") {
			t.Errorf("twice: %v", err)
		}
		progress := func(p *process) keyring.Rotation {
			r, err := p.keys.Rotation(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		until(t, wake, "progress", func() bool { return progress(a).Done > 0 })
		paused, err := a.keys.PauseRotation(ctx, operator)
		if err != nil || !paused.Paused || paused.Key != "customer" {
			t.Errorf("%+v, %v", paused, err)
		}
		stop()
		at := progress(a)
		if at.Done == 0 || at.Done == 60 {
			t.Fatalf("%+v: this test shows nothing", at)
		}
		// Another process goes on where the first one stopped.
		b := h.server(t, keyring.Options{Publish: time.Millisecond})
		wake, _ = b.run(t)
		wake()
		if r, err := b.keys.Reseal(ctx, 1, true); err != nil || r.Customers != 0 {
			t.Errorf("%+v, %v", r, err)
		}
		if now := progress(b); now.Done != at.Done {
			t.Errorf("paused at %d, it is at %d", at.Done, now.Done)
		}
		// A KEK's rotation is another matter.
		if _, err := b.keys.RotateKEK(ctx, operator); err != nil {
			t.Errorf("the KEK meanwhile: %v", err)
		}
		b.clock.Advance(time.Minute)
		until(t, wake, "the KEK", func() bool { return progress(b).Key == "customer" })
		if _, err := b.keys.ResumeRotation(ctx, operator); err != nil {
			t.Fatal(err)
		}
		until(t, wake, "the end", func() bool { return !progress(b).Ended.IsZero() })
		if end := progress(b); end.Done != 60 || end.Failed != 0 {
			t.Errorf("%+v", end)
		}
		for _, by := range people {
			if n := b.under(t, by.Customer()); n[2] != 1 || len(n) != 1 {
				t.Errorf("values by version %v", n)
			}
			for _, p := range []*process{a, b} {
				if _, err := p.vault.Get(ctx, by, by.Customer(), profile, whole); err != nil {
					t.Error(err)
				}
			}
		}
		want := []string{"keyring.customer-keys.rotate customer keys", "keyring.rotation.pause customer keys"}
		if got := a.keyEventsOf("customer keys"); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
		want = []string{"keyring.rotation.resume customer keys", "keyring.rotation.complete customer keys, 60 customers, 0 values failed"}
		if got := b.keyEventsOf("customer keys"); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
	})
}

// Keys that have come of age are renewed, and no others.
func TestCustomerKeysComeOfAge(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), nil)
	p := h.server(t, keyring.Options{CustomerEvery: 100 * 24 * time.Hour})
	old := p.person(t)
	p.put(t, old, profile, adaProfile, vault.Condition{})
	p.clock.Advance(99 * 24 * time.Hour)
	young := p.person(t)
	p.clock.Advance(2 * 24 * time.Hour)
	wake, _ := p.run(t)
	until(t, wake, "the rotation", func() bool {
		r, err := p.keys.Rotation(t.Context())
		return err == nil && !r.Ended.IsZero() && r.Reason == "scheduled" && r.Done == 1
	})
	if a, b := p.states(t, old.Customer()), p.states(t, young.Customer()); a != "1 retired, 2 active" || b != "1 active" {
		t.Errorf("the old one has %s, the young one %s", a, b)
	}
}

// A version goes when nothing needs it, and not before.
func TestDestroyCustomerVersion(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		backup := ""
		p := newHouse(t, d, nil).server(t, keyring.Options{
			Needed: func(_ context.Context, _ *db.Tx, name string, version uint32) (string, error) { return backup, nil },
		})
		results, err := p.vault.Import(ctx, operator, "profile", []vault.ImportRow{importRow(1, "crm-1", adaProfile)}, false)
		if err != nil {
			t.Fatal(err)
		}
		c := results[0].Customer // of whom no event has a personal part yet
		destroy := func(version uint32, want string) {
			t.Helper()
			err := p.keys.DestroyCustomerVersion(ctx, operator, c, version)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("destroying %d: %v, and not %q", version, err, want)
			}
		}
		destroy(1, "it is active")
		destroy(2, "no such version")
		if _, err := p.keys.RotateCustomer(ctx, operator, c); err != nil {
			t.Fatal(err)
		}
		destroy(1, "until a short time ago")
		p.clock.Advance(61 * time.Minute)
		destroy(1, "values wait")
		p.reseal(t)
		backup = "the backup of Monday"
		destroy(1, "needed by the backup of Monday")
		backup = ""
		destroy(1, "")
		destroy(1, "no such version")
		if got := p.states(t, c); got != "1 destroyed, 2 active" {
			t.Errorf("the versions: %s", got)
		}
		if _, err := p.vault.Export(ctx, operator, c); err != nil {
			t.Error(err)
		}
		// An event with a personal part keeps its version.
		ada := actor.Actor{Kind: actor.Customer, ID: string(c), Address: p.person(t).Address}
		if _, err := p.vault.Get(ctx, ada, c, profile, whole); err != nil {
			t.Fatal(err)
		}
		if _, err := p.keys.RotateCustomer(ctx, operator, c); err != nil {
			t.Fatal(err)
		}
		p.clock.Advance(61 * time.Minute)
		p.reseal(t)
		destroy(2, "events of the trail")
		if _, err := p.vault.Erase(ctx, operator, c, "customer asked"); err != nil {
			t.Fatal(err)
		}
		destroy(2, "erased")
		if want := []string{"keyring.customer-key.destroy customer key C/1", "keyring.customer-key.destroy customer key C/2",
			"keyring.customer-key.destroy customer key C/3"}; !slices.Equal(p.keyEventsOf("destroy"), want) {
			t.Errorf("events %q", p.keyEventsOf("destroy"))
		}
	})
}

// Whatever the order of writes, readings, rotations of every level, sealing anew, marks and erasures by two
// processes: a read returns what was acknowledged last, or says that the customer was erased.
func TestRotationProperty(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		var processes []*process
		for range 2 {
			p := h.server(t, keyring.Options{Publish: time.Millisecond, Clock: clock.System})
			processes = append(processes, p)
		}
		wake, _ := processes[0].run(t)
		rapid.Check(t, func(r *rapid.T) {
			type person struct {
				by     actor.Actor
				erased bool
				texts  map[string]string // key → the name that was written last
			}
			people := []*person{{by: processes[0].person(t), texts: map[string]string{}}, {by: processes[1].person(t), texts: map[string]string{}}}
			for step := range rapid.IntRange(1, 24).Draw(r, "steps") {
				p := rapid.SampledFrom(people).Draw(r, "person")
				process := rapid.SampledFrom(processes).Draw(r, "process")
				key := rapid.SampledFrom([]string{"a", "b"}).Draw(r, "key")
				ref, c := vault.Ref{Collection: "profile", Key: key}, p.by.Customer()
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
				switch do := rapid.SampledFrom([]string{"put", "put", "get", "get", "rotate", "rotate", "reseal", "reseal one", "kek", "compromise", "erase"}).Draw(r, "do"); do {
				case "put":
					name := fmt.Sprintf("Name%d", step)
					cond := vault.IfAbsent()
					if there {
						cond = vault.Condition{IfMatch: "*"}
					}
					if p.erased {
						cond = vault.Condition{}
					}
					_, _, err := process.vault.Put(t.Context(), p.by, c, ref, []byte(`{"given_name":"`+name+`","family_name":"X"}`), cond)
					if check(do, err, "") {
						p.texts[key] = name
					}
				case "get":
					want := "record-not-found"
					if there {
						want = ""
					}
					record, err := process.vault.Get(t.Context(), p.by, c, ref, whole)
					if check(do, err, want) && record.Fields["given_name"] != was {
						r.Fatalf("step %d: read %v instead of %s", step, record.Fields["given_name"], was)
					}
				case "rotate":
					_, err := process.keys.RotateCustomer(t.Context(), operator, c)
					check(do, err, "")
				case "reseal":
					_, _, err := process.keys.ResealCustomer(t.Context(), c)
					check(do, err, "")
				case "reseal one":
					if _, err := process.keys.Reseal(t.Context(), 1, false); err != nil {
						r.Fatalf("step %d: %v", step, err)
					}
				case "kek":
					if _, err := process.keys.RotateKEK(t.Context(), operator); err != nil && !problem.Is(err, "rotation-under-way") {
						r.Fatalf("step %d: %v", step, err)
					}
					wake()
				case "compromise":
					check(do, process.keys.CompromiseCustomer(t.Context(), operator, c, 1), "")
				case "erase":
					_, err := process.vault.Erase(t.Context(), operator, c, "property")
					if check(do, err, "") {
						p.erased = true
					}
				}
			}
		})
	})
}
