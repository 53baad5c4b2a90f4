package identity

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// twoServers are two houses with one clock and one set of keys. With PostgreSQL each has connections of its
// own, as two processes have; the embedded database has one process.
func twoServers(t *testing.T, e db.Engine) (first, second *house) {
	t.Helper()
	if e == db.SQLite {
		first = newHouse(t, dbtest.Open(t, e), nil)
		return first, newHouseOn(first)
	}
	u := dbtest.PostgresURL(t)
	open := func() *db.DB {
		d, err := db.Open(context.Background(), db.Options{URL: u, Environment: "dev", Create: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	d := open()
	first = newHouse(t, d, nil)
	o := first.Options
	o.DB = open()
	o.Trail = audit.New(o.DB, o.Keys, audit.Options{Clock: o.Clock})
	i, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return first, &house{Identity: i, t: t, inbox: first.inbox, clk: first.clk, logs: first.logs}
}

// sessionOn is a session that can be asked for at any server.
type sessionOn struct {
	phone  *phoneClient
	tokens Tokens
}

// ask reports whether the session is good at a server.
func (s sessionOn) ask(t testing.TB, at *house) bool {
	t.Helper()
	s.phone.nonce = at.Nonce()
	token := string(s.tokens.Access.Reveal())
	q, err := http.NewRequest("GET", s.phone.server.URL+"/v1/session", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("DPoP", s.phone.proof("GET", "/v1/session", token))
	q.Header.Set("Authorization", "DPoP "+token)
	q.Host = strings.TrimPrefix(s.phone.server.URL, "http://")
	_, err = at.Session(t.Context(), q)
	if err != nil && problem.Of(err) == nil {
		t.Fatal(err)
	}
	return err == nil
}

// Whatever ends sessions, at whatever server, ends them at every server within a second, though each remembers the
// sessions that it found good. What is asked is what the code promises, so a slow machine cannot break it: a
// request that begins a second after the deed was acknowledged is refused.
func TestASVS_7_4_1_EndsReachServersThatRemember(t *testing.T) {
	for _, e := range []db.Engine{db.SQLite, db.PostgreSQL} {
		t.Run(e.String(), func(t *testing.T) {
			first, second := twoServers(t, e)
			servers := []*house{first, second}
			s := first.serve()
			deeds := []struct {
				name string
				do   func(h *house, s sessionOn) error
			}{
				{"logout", func(h *house, s sessionOn) error { return h.Logout(t.Context(), h.acting(s.tokens, s.phone.jkt)) }},
				{"revoke", func(h *house, s sessionOn) error {
					return h.RevokeSession(t.Context(), h.acting(s.tokens, s.phone.jkt), s.tokens.Session)
				}},
				{"lost", func(h *house, s sessionOn) error {
					return h.ReportLost(t.Context(), h.acting(s.tokens, s.phone.jkt), s.tokens.Device)
				}},
				{"others", func(h *house, s sessionOn) error {
					by := h.acting(s.tokens, s.phone.jkt)
					by.Session = "ses_another"
					_, err := h.RevokeOtherSessions(t.Context(), by)
					return err
				}},
				{"reuse", func(h *house, s sessionOn) error {
					for range 2 {
						next, err := h.Refresh(t.Context(), from(s.phone.jkt), s.tokens.Refresh)
						if err == nil {
							_, err = h.Refresh(t.Context(), from(s.phone.jkt), next.Refresh)
						}
						if err != nil && !problem.Is(err, "session-revoked") {
							return err
						}
					}
					return nil
				}},
				{"erase", func(h *house, s sessionOn) error {
					return h.DB.Update(t.Context(), func(tx *db.Tx) error {
						_, err := NewEraser(h.Keys).EraseCustomer(t.Context(), tx, s.tokens.Customer)
						return err
					})
				}},
			}
			remembered := 0
			p := first.newPhone(s)
			first.register(number(99), p.jkt)
			for one := (sessionOn{p, first.mustLogin(number(99), p.jkt)}); ; { // until the first server believes its memory
				if !one.ask(t, first) {
					t.Fatal("a good session is refused")
				}
				if _, ok := first.memory.session(sha256.Sum256(one.tokens.Access.Reveal())); ok {
					break
				}
			}
			for n, deed := range deeds {
				p := first.newPhone(s)
				first.register(number(n), p.jkt)
				one := sessionOn{p, first.mustLogin(number(n), p.jkt)}
				for _, h := range servers {
					for range 3 { // the first remembers, the others are answered from memory
						if !one.ask(t, h) {
							t.Fatalf("%s: a good session is refused", deed.name)
						}
					}
					if _, ok := h.memory.session(sha256.Sum256(one.tokens.Access.Reveal())); ok {
						remembered++
					}
				}
				if err := deed.do(servers[n%2], one); err != nil {
					t.Fatalf("%s: %v", deed.name, err)
				}
				ended := time.Now()
				if one.ask(t, servers[n%2]) {
					t.Errorf("%s: the server that did it lets the session in", deed.name)
				}
				for {
					asked := time.Now()
					if !one.ask(t, servers[1-n%2]) {
						break
					}
					if asked.Sub(ended) > time.Second {
						t.Errorf("%s: another server lets the session in after %v", deed.name, asked.Sub(ended))
						break
					}
				}
			}
			t.Logf("%d of %d answers came from memory at the end", remembered, 2*len(deeds))
			if e == db.SQLite && remembered != 2*len(deeds) {
				t.Error("a session that was good is not remembered: this test proves nothing")
			}
		})
	}
}

// A server that hears nothing asks the database: it never believes its memory.
func TestSilentFeedIsNotBelieved(t *testing.T) {
	d := dbtest.Open(t, db.PostgreSQL)
	h := newHouse(t, d, nil)
	h.memory.keep(0, time.Now(), [32]byte{1}, sessionRow{customer: "cus_1"})
	if _, ok := h.memory.session([32]byte{1}); ok {
		t.Error("a memory is believed before anything was heard")
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if time.Since(h.memory.feed.Current()) < sessionLease/2 {
			break
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	h.memory.keep(h.memory.forgotten, time.Now(), [32]byte{1}, sessionRow{customer: "cus_1"})
	if _, ok := h.memory.session([32]byte{1}); ok {
		t.Error("a memory is believed though nothing is heard any more")
	}
}

// What is remembered is what was kept and not forgotten since it was read, whatever happens in between, and never
// more than there is room for.
func TestMemory(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		m := &memory{most: 4, byToken: map[[32]byte]remembered{}, byCustomer: map[customer.ID][][32]byte{}, feed: &db.Feed{}}
		type reading struct {
			forgotten uint64
			token     byte
			c         customer.ID
			stale     bool
		}
		var underway []reading
		ended := map[customer.ID]bool{} // since the last read of it that may be kept
		r.Repeat(map[string]func(*rapid.T){
			"read": func(r *rapid.T) {
				token := rapid.ByteRange(0, 7).Draw(r, "token")
				forgotten, _ := m.begin()
				underway = append(underway, reading{forgotten, token, customer.ID(fmt.Sprint(token % 3)), false})
			},
			"keep": func(r *rapid.T) {
				if len(underway) == 0 {
					r.Skip()
				}
				n := rapid.IntRange(0, len(underway)-1).Draw(r, "which")
				one := underway[n]
				underway = append(underway[:n], underway[n+1:]...)
				m.keep(one.forgotten, time.Now(), [32]byte{one.token}, sessionRow{customer: one.c})
				if _, ok := m.byToken[[32]byte{one.token}]; ok && !one.stale {
					ended[one.c] = false
				}
			},
			"end": func(r *rapid.T) {
				c := customer.ID(fmt.Sprint(rapid.IntRange(0, 2).Draw(r, "customer")))
				ended[c] = true
				for n := range underway {
					underway[n].stale = underway[n].stale || underway[n].c == c
				}
				m.forget(string(c))
			},
			"doubt": func(r *rapid.T) {
				for n := range underway {
					underway[n].stale = true
				}
				m.forget("")
				if len(m.byToken) != 0 {
					r.Fatal("something is remembered in doubt")
				}
			},
			"": func(r *rapid.T) {
				if len(m.byToken) > m.most {
					r.Fatalf("%d sessions are remembered", len(m.byToken))
				}
				listed := 0
				for c, tokens := range m.byCustomer {
					listed += len(tokens)
					for _, token := range tokens {
						if m.byToken[token].session.customer != c {
							r.Fatal("the list of a customer names a session of nobody")
						}
						if ended[c] {
							r.Fatalf("a session of %s is remembered that was read before its end", c)
						}
					}
				}
				if listed != len(m.byToken) {
					r.Fatalf("%d sessions are listed of %d", listed, len(m.byToken))
				}
			},
		})
	})
}

// What was heard before the machine was suspended, or before its clock was set, is not believed afterwards.
func TestMemoryDoubtsTheClock(t *testing.T) {
	now := time.Now()
	told := now.Round(0) // without what the measuring clock said
	for _, row := range []struct {
		name     string
		from, to time.Time
		want     time.Duration
	}{
		{"as ever", now, now.Add(time.Second), time.Second},
		{"suspended", told.Add(-time.Hour), now, time.Hour},
		{"set back", told.Add(time.Hour), now, time.Hour},
		{"nothing was heard", time.Time{}, now, math.MaxInt64},
	} {
		if got := passed(row.from, row.to); got != row.want {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

// An answer from memory changes nothing: what has ended by itself is refused at the same instant.
func TestMemoryKnowsTheTime(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), nil)
	p := h.newPhone(h.serve())
	h.register(number(1), p.jkt)
	s := sessionOn{p, h.mustLogin(number(1), p.jkt)}
	for range 3 {
		if !s.ask(t, h) {
			t.Fatal("a good session is refused")
		}
	}
	h.clk.Advance(h.AccessLifetime - time.Second)
	if !s.ask(t, h) {
		t.Error("a token is refused before its end")
	}
	used := h.idleExpires(s.tokens.Session)
	if want := clock.Micros(h.clk.Now().Add(h.IdleLifetime)); used != want {
		t.Errorf("the use of a session that is remembered was not written down: %d, want %d", used, want)
	}
	h.clk.Advance(time.Second)
	if s.ask(t, h) {
		t.Error("a token is good after its end")
	}
}
