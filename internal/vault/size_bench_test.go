package vault_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/id"
	"strongroom/internal/vault"
)

const (
	benchCustomers = 10_000
	benchCopies    = 99 // of each customer, which make a million of them
)

// grow puts benchCopies rows behind each customer's own, in every table that a read or look-up walks
// through: with the same bytes, under ids that sort right behind theirs. Nobody reads them; they make the
// tables and their indexes as large as those of a hundred times as many customers, and move what is read
// onto pages of its own.
func (h *house) grow(b *testing.B, ids []customer.ID) {
	const series = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $3) `
	const these = ` WHERE customer_id >= $1 AND customer_id <= $2`
	ids = slices.Sorted(slices.Values(ids))
	ctx := context.Background()
	for chunk := range slices.Chunk(ids, 500) {
		err := h.db.Update(ctx, func(tx *db.Tx) error {
			for _, query := range []string{
				`INSERT INTO data_key (customer_id, version, kek_version, state, wrapped, made_at) ` + series + `
					SELECT customer_id || '-' || i, version, kek_version, state, wrapped, made_at FROM data_key, n` + these,
				`INSERT INTO record (customer_id, collection, key, version, schema_version, sealed, indexed, made_at, updated_at, updated_day) ` + series + `
					SELECT customer_id || '-' || i, collection, key, version, schema_version, sealed, indexed, made_at, updated_at, updated_day FROM record, n` + these,
				`INSERT INTO record_mark (customer_id, collection, version, records) ` + series + `
					SELECT customer_id || '-' || i, collection, version, records FROM record_mark, n` + these,
			} {
				if _, err := tx.Exec(ctx, query, string(chunk[0]), string(chunk[len(chunk)-1]), benchCopies); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSize is an audited read of a whole record, and an audited durable write, among ten thousand and
// among a million customers, of whom ten thousand, spread evenly, are asked for at random.
func BenchmarkSize(b *testing.B) {
	for _, engine := range benchEngines() {
		d := dbtest.Open(b, engine)
		h := newHouse(b, d, nil)
		ids := h.load(b)
		base := map[string]float64{}
		measure := func(size int) {
			for _, op := range []string{"read", "write"} {
				for _, callers := range []int{1, 16} {
					b.Run(fmt.Sprintf("%s/%s/customers=%d/callers=%d", engine, op, size, callers), func(b *testing.B) {
						cpu := h.measure(b, ids, op, callers)
						key := fmt.Sprint(op, callers)
						if size == benchCustomers {
							base[key] = cpu
						} else if base[key] > 0 {
							b.ReportMetric(cpu/base[key], "x-10000")
						}
					})
				}
			}
		}
		measure(benchCustomers)
		began := time.Now()
		h.grow(b, ids)
		b.Logf("%s: a million customers were loaded in %v", engine, time.Since(began).Round(time.Second))
		measure(benchCustomers * (benchCopies + 1))
	}
}

// bodyOf is the record of the customer with the number.
func bodyOf(i int) []byte {
	return fmt.Appendf(nil, `{"given_name":"Ada","family_name":"Lovelace","date_of_birth":"1985-12-10","email":"ada%d@example.com",`+
		`"address_line1":"12 St James's Square","address_line2":"Second floor, the door on the left","city":"London","country":"GB"}`, i)
}

// load makes the customers, each with a record, through the rooms.
func (h *house) load(b *testing.B) []customer.ID {
	var ids []customer.ID
	var rows []vault.ImportRow
	for i := range benchCustomers {
		rows = append(rows, vault.ImportRow{External: fmt.Sprint("x", i), Key: profile.Key, Fields: bodyOf(i)})
	}
	for chunk := range slices.Chunk(rows, vault.MaxImport) {
		results, err := h.vault.Import(b.Context(), operator, "profile", chunk, false)
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range results {
			if r.Customer == "" {
				b.Fatalf("%+v", r)
			}
			ids = append(ids, r.Customer)
		}
	}
	return ids
}

// measure has callers read, or write, records of random customers, and returns the CPU time of one.
func (h *house) measure(b *testing.B, ids []customer.ID, op string, callers int) float64 {
	var left atomic.Int64
	left.Store(int64(b.N))
	took := make([][]time.Duration, callers)
	device, session := id.New("dev"), id.New("ses")
	var wg sync.WaitGroup
	began := processTime()
	b.ResetTimer()
	for i := range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				n := rand.IntN(len(ids))
				by := actor.Actor{Kind: actor.Customer, ID: string(ids[n]), Device: device, Session: session}
				asked := time.Now()
				var err error
				if op == "read" {
					_, err = h.vault.Get(b.Context(), by, by.Customer(), profile, vault.Reveal{All: true, Purpose: "show-to-customer"})
				} else {
					_, _, err = h.vault.Put(b.Context(), by, by.Customer(), profile, bodyOf(n), vault.Condition{IfMatch: "*"})
				}
				if err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(asked))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	cpu := float64((processTime() - began).Nanoseconds()) / 1000 / float64(b.N)
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(cpu, "cpu-µs/op")
	if len(all) > 0 {
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	}
	return cpu
}
