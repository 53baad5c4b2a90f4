package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// BenchmarkSessionCheck is what every request of a customer costs before its operation begins: token and
// proof of a session that is remembered, or that is read from the database. The ratio is to one raw P-256 verification
// in the same run.
func BenchmarkSessionCheck(b *testing.B) {
	for _, row := range []struct {
		name     string
		engine   db.Engine
		memories int
	}{{"sqlite", db.SQLite, 0}, {"sqlite-read", db.SQLite, -1}, {"postgresql", db.PostgreSQL, 0}, {"postgresql-read", db.PostgreSQL, -1}} {
		b.Run(row.name, func(b *testing.B) {
			h := newHouse(b, dbtest.Open(b, row.engine), func(o *Options) { o.SessionMemories = row.memories })
			s := h.serve()
			p := h.newPhone(s)
			h.register(number(1), p.jkt)
			token := string(h.mustLogin(number(1), p.jkt).Access.Reveal())
			p.nonce = h.Nonce()
			host := strings.TrimPrefix(s.URL, "http://")
			digest := sha256.Sum256([]byte("x"))
			r, sig, err := ecdsa.Sign(rand.Reader, p.key, digest[:])
			if err != nil {
				b.Fatal(err)
			}
			rb, sb := r.Bytes(), sig.Bytes()
			var whole, raw time.Duration
			n := 0
			for b.Loop() {
				b.StopTimer()
				q, err := http.NewRequest("GET", "https://"+host+"/v1/session", nil)
				if err != nil {
					b.Fatal(err)
				}
				q.Header.Set("DPoP", p.proof("GET", "/v1/session", token))
				q.Header.Set("Authorization", "DPoP "+token)
				b.StartTimer()
				t0 := time.Now()
				if _, err := h.Session(b.Context(), q); err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				ecdsa.Verify(&p.key.PublicKey, digest[:], new(big.Int).SetBytes(rb), new(big.Int).SetBytes(sb))
				raw += time.Since(t1)
				whole += t1.Sub(t0)
				n++
			}
			b.ReportMetric(float64(whole.Nanoseconds())/float64(n), "check-ns")
			b.ReportMetric(float64(raw.Nanoseconds())/float64(n), "raw-verify-ns")
			b.ReportMetric(float64(whole)/float64(raw), "ratio")
		})
	}
}
