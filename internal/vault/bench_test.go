package vault_test

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/vault"
)

// benchEngines are the embedded database, and PostgreSQL when there is one.
func benchEngines() []db.Engine {
	if os.Getenv(dbtest.Variable) == "" {
		return []db.Engine{db.SQLite}
	}
	return []db.Engine{db.SQLite, db.PostgreSQL}
}

// processTime is the CPU time of this process, in user and kernel mode.
func processTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const benchRecord = `{"given_name":"Ada","family_name":"Lovelace","date_of_birth":"1985-12-10","email":"ada.lovelace@example.com",` +
	`"address_line1":"12 St James's Square","address_line2":"Second floor, the door on the left","postcode":"SW1Y 4JH","city":"London","country":"GB"}`

// benchmark measures an operation at 1, 16 and 64 callers, each a customer with a record, and
// reports the CPU time that one costs. PostgreSQL's own CPU time is not in it.
func benchmark(b *testing.B, op func(b *testing.B, h *house, by actor.Actor, n int)) {
	for _, engine := range benchEngines() {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", engine, callers), func(b *testing.B) {
				h := newHouse(b, dbtest.Open(b, engine), nil)
				people := make([]actor.Actor, callers)
				for i := range people {
					people[i] = h.person(b)
					h.put(b, people[i], profile, benchRecord, vault.Condition{})
				}
				var left atomic.Int64
				left.Store(int64(b.N))
				b.ReportAllocs()
				began := processTime()
				b.ResetTimer()
				var wg sync.WaitGroup
				for _, by := range people {
					wg.Go(func() {
						for n := 1; left.Add(-1) >= 0; n++ {
							op(b, h, by, n)
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64((processTime()-began).Microseconds())/float64(b.N), "cpu-µs/op")
			})
		}
	}
}

// BenchmarkGet is an audited read of a whole record of about 300 bytes.
func BenchmarkGet(b *testing.B) {
	benchmark(b, func(b *testing.B, h *house, by actor.Actor, _ int) {
		if _, err := h.vault.Get(b.Context(), by, by.Customer(), profile, whole); err != nil {
			b.Error(err)
			runtime.Goexit()
		}
	})
}

// BenchmarkPut is an audited, durable replacement of such a record, one of its fields indexed.
func BenchmarkPut(b *testing.B) {
	benchmark(b, func(b *testing.B, h *house, by actor.Actor, n int) {
		if _, _, err := h.vault.Put(b.Context(), by, by.Customer(), profile, []byte(benchRecord), vault.IfVersion(int64(n))); err != nil {
			b.Error(err)
			runtime.Goexit()
		}
	})
}
