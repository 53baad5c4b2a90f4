package identity

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// floodCost is bcrypt's cost here; at 12 the share of everything else is a quarter of what it is at 10.
const floodCost = 10

// flooded is a house at a real cost whose limits let everything through to bcrypt.
func flooded(b *testing.B, workers int) *house {
	h := newHouse(b, dbtest.Open(b, db.SQLite), func(o *Options) {
		o.Wake, o.HashWorkers, o.HashQueue = func(string) {}, workers, 64
		o.Limits.DeviceLogins = Rate{1e6, time.Hour}
	})
	h.hasher = newHasher(h.Keys, floodCost, nil, workers, 64, h.metrics)
	return h
}

// hashing runs hashes on as many goroutines for a while, and returns how many a second there were.
func hashing(workers int, d time.Duration, one func(worker int)) float64 {
	var n atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for w := range workers {
		all.Go(func() {
			for time.Since(began) < d {
				one(w)
				n.Add(1)
			}
		})
	}
	all.Wait()
	return float64(n.Load()) / time.Since(began).Seconds()
}

// BenchmarkLogins compares the first half of logins from known devices, with the private code right, with
// raw bcrypt on as many cores, turn by turn. What bounds logins is bcrypt alone when the ratio is near 1.
func BenchmarkLogins(b *testing.B) {
	const workers, clients = 2, 12
	h := flooded(b, workers)
	for n := range clients {
		h.register0(number(n), fmt.Sprint("k", n))
	}
	hash, err := bcrypt.GenerateFromPassword(make([]byte, 44), floodCost)
	if err != nil {
		b.Fatal(err)
	}
	var raw, logins []float64
	for b.Loop() {
		raw = append(raw, hashing(workers, 2*time.Second, func(int) { _ = bcrypt.CompareHashAndPassword(hash, make([]byte, 44)) }))
		logins = append(logins, hashing(clients, 2*time.Second, func(n int) {
			if _, err := h.StartLogin(context.Background(), from(fmt.Sprint("k", n)), number(n), value(goodCode)); err != nil {
				b.Error(err)
			}
		}))
	}
	sum := func(all []float64) (t float64) {
		for _, v := range all {
			t += v
		}
		return t / float64(len(all))
	}
	b.ReportMetric(sum(raw), "bcrypt/s")
	b.ReportMetric(sum(logins), "logins/s")
	b.ReportMetric(sum(logins)/sum(raw), "ratio")
}

// BenchmarkSessionsUnderLoginFlood compares the time of session checks when nobody logs in with that while
// strangers from 64 networks do without pause, turn by turn.
func BenchmarkSessionsUnderLoginFlood(b *testing.B) {
	h := flooded(b, 1)
	s := h.serve()
	p := h.newPhone(s)
	h.register0(number(1), p.jkt)
	login, err := h.StartLogin(b.Context(), from(p.jkt), number(1), value(goodCode))
	if err != nil {
		b.Fatal(err)
	}
	if err := h.deliver(b.Context()); err != nil {
		b.Fatal(err)
	}
	tokens, err := h.CompleteLogin(b.Context(), from(p.jkt), login.ID, value(h.code(number(1))), "")
	if err != nil {
		b.Fatal(err)
	}
	token := string(tokens.Access.Reveal())
	p.nonce = h.Nonce()
	host := strings.TrimPrefix(s.URL, "http://")
	check := func() time.Duration {
		q, err := http.NewRequest("GET", "https://"+host+"/v1/session", nil)
		if err != nil {
			b.Fatal(err)
		}
		q.Header.Set("DPoP", p.proof("GET", "/v1/session", token))
		q.Header.Set("Authorization", "DPoP "+token)
		began := time.Now()
		if _, err := h.Session(b.Context(), q); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	const checks = 3000
	var quiet, loud []time.Duration
	refused := atomic.Int64{}
	for b.Loop() {
		for range checks {
			quiet = append(quiet, check())
		}
		ctx, stop := context.WithCancel(b.Context())
		var flood sync.WaitGroup
		for n := range 64 {
			by := from(fmt.Sprint("stranger", n))
			by.Address = netip.AddrFrom4([4]byte{10, 0, byte(n), 1})
			flood.Go(func() {
				for ctx.Err() == nil {
					if _, err := h.StartLogin(ctx, by, number(n), value("83920486")); err != nil {
						refused.Add(1)
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
		}
		for range checks {
			loud = append(loud, check())
		}
		stop()
		flood.Wait()
	}
	at := func(all []time.Duration, part float64) float64 {
		slices.Sort(all)
		return float64(all[int(part*float64(len(all)-1))].Microseconds())
	}
	b.ReportMetric(at(quiet, 0.5), "quiet-p50-µs")
	b.ReportMetric(at(loud, 0.5), "flood-p50-µs")
	b.ReportMetric(at(quiet, 0.99), "quiet-p99-µs")
	b.ReportMetric(at(loud, 0.99), "flood-p99-µs")
	b.ReportMetric(at(loud, 0.99)/at(quiet, 0.99), "p99-ratio")
}
