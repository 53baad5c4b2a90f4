package identity

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/id"
)

// BenchmarkCustomers is what a session check that reads the database, and the start of a login, take among 10,000
// customers and among as many as STRONGROOM_BENCH_CUSTOMERS says, each with three devices and their sessions, on
// SQLite. Those who are asked for are made as the room makes them; every one of them gets the same number of
// others behind them in each table that is read, so that they lie on pages of their own. 1,000,000 take some minutes
// and 4 GB.
func BenchmarkCustomers(b *testing.B) {
	most, err := strconv.Atoi(os.Getenv("STRONGROOM_BENCH_CUSTOMERS"))
	if err != nil {
		b.Skip("STRONGROOM_BENCH_CUSTOMERS does not say how many")
	}
	const real = 500
	h := newHouse(b, dbtest.Open(b, db.SQLite), func(o *Options) {
		o.SessionMemories = -1
		o.Wake = func(string) {}
	})
	s := h.serve()
	var phones []*phoneClient
	for n := range real {
		p := h.newPhone(s)
		starting, err := h.StartRegistration(b.Context(), from(p.jkt), number(n))
		if err != nil {
			b.Fatal(err)
		}
		if err := h.deliver(b.Context()); err != nil {
			b.Fatal(err)
		}
		r, err := h.CompleteRegistration(b.Context(), from(p.jkt), starting.ID, value(h.code(number(n))), value(goodCode), "First")
		if err != nil {
			b.Fatal(err)
		}
		if err := h.DB.Update(b.Context(), func(tx *db.Tx) error {
			d, _, err := h.rows.deviceByKey(b.Context(), tx, r.Customer, p.jkt)
			if err != nil {
				return err
			}
			tokens, err := h.newSession(b.Context(), tx, from(p.jkt), d, ScopeWrite, h.clk.Now())
			if err != nil {
				return err
			}
			p.access = string(tokens.Access.Reveal())
			for n := range 2 {
				other := d
				other.id, other.jkt = id.New("dev"), fmt.Sprint(n, p.jkt)
				if err := h.rows.insertDevice(b.Context(), tx, other); err != nil {
					return err
				}
				if _, err := h.newSession(b.Context(), tx, from(other.jkt), other, ScopeWrite, h.clk.Now()); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		phones = append(phones, p)
	}
	type middle struct{ check, start time.Duration }
	measured := map[int]middle{}
	behind := 0
	for _, size := range []int{10_000, most} {
		h.crowd(b, behind, size/real-1)
		behind = size/real - 1
		var m middle
		b.Run(fmt.Sprintf("check/%d", size), func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				p := phones[rand.IntN(real)]
				p.nonce = h.Nonce()
				q, err := http.NewRequest("GET", "https://"+strings.TrimPrefix(s.URL, "http://")+"/v1/session", nil)
				if err != nil {
					b.Fatal(err)
				}
				q.Header.Set("DPoP", p.proof("GET", "/v1/session", p.access))
				q.Header.Set("Authorization", "DPoP "+p.access)
				began := time.Now()
				if _, err := h.Session(b.Context(), q); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			m.check = median(took)
			b.ReportMetric(float64(m.check.Nanoseconds()), "median-ns")
		})
		b.Run(fmt.Sprintf("start/%d", size), func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				n := rand.IntN(real)
				began := time.Now()
				if _, err := h.StartLogin(b.Context(), from(phones[n].jkt), number(n), value(goodCode)); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			m.start = median(took)
			b.ReportMetric(float64(m.start.Nanoseconds()), "median-ns")
		})
		measured[size] = m
	}
	few, many := measured[10_000], measured[most]
	b.Logf("%d customers beside 10,000: session check %.2f, login start %.2f", most,
		float64(many.check)/float64(few.check), float64(many.start)/float64(few.start))
}

// crowd puts others behind every customer, device, session and access token: the numbers from+1 to n.
func (h *house) crowd(b *testing.B, from, n int) {
	b.Helper()
	ctx := context.Background()
	began := time.Now()
	const step = 100
	for low := from + 1; low <= n; low += step {
		high := min(low+step-1, n)
		if err := h.DB.Update(ctx, func(tx *db.Tx) error {
			for _, q := range []string{`
				INSERT INTO account (customer_id, phone_index, index_version, phone, code_hash, pepper_version, made_at, stamp)
				SELECT r.customer_id || n.i, unhex(hex(r.phone_index) || n.i), r.index_version, r.phone, r.code_hash, r.pepper_version, r.made_at, r.stamp
				FROM (SELECT * FROM account WHERE length(phone_index) = 32 ORDER BY customer_id) r CROSS JOIN n`, `
				INSERT INTO device (id, customer_id, jkt, name, status, added_at, decided_at, last_seen_at, stamp)
				SELECT r.id || n.i, r.customer_id || n.i, r.jkt, r.name, r.status, r.added_at, r.decided_at, r.last_seen_at, r.stamp
				FROM (SELECT d.* FROM device d JOIN account a ON a.customer_id = d.customer_id WHERE length(a.phone_index) = 32 ORDER BY d.id) r CROSS JOIN n`, `
				INSERT INTO access_token (hash, session_id, expires_at)
				SELECT unhex(hex(r.hash) || n.i), r.session_id || n.i, r.expires_at
				FROM (SELECT * FROM access_token WHERE length(hash) = 32 ORDER BY hash) r CROSS JOIN n`, `
				INSERT INTO session (id, customer_id, device_id, jkt, made_at, used_at, idle_expires_at, expires_at, scope, acr, origin, stamp)
				SELECT r.id || n.i, r.customer_id || n.i, r.device_id || n.i, r.jkt, r.made_at, r.used_at, r.idle_expires_at, r.expires_at, r.scope, r.acr, r.origin, r.stamp
				FROM (SELECT s.* FROM session s JOIN account a ON a.customer_id = s.customer_id WHERE length(a.phone_index) = 32 ORDER BY s.id) r CROSS JOIN n`,
			} {
				if _, err := tx.Exec(ctx, `WITH RECURSIVE m(k) AS (SELECT CAST($1 AS INTEGER) UNION ALL SELECT k + 1 FROM m WHERE k < $2),
					n(i) AS (SELECT printf('%08x', k) FROM m) `+q, int64(low), int64(high)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	b.Logf("%d customers, %d devices, %d sessions after %v", h.count("account"), h.count("device"), h.count("session"), time.Since(began).Round(time.Second))
}
