package vault_test

import (
	"fmt"
	"testing"

	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/vault"
)

// BenchmarkReindex gives the rows of many customers an index under a new version of the key, one after
// the other, as the job does when nothing bounds its rate; the rows of old version are cleared, too.
func BenchmarkReindex(b *testing.B) {
	for _, engine := range benchEngines() {
		b.Run(fmt.Sprint(engine), func(b *testing.B) {
			p := newReplica(b, dbtest.Open(b, engine), keyringtest.Root(b), 1<<30)
			const n = 5000
			rows := make([]vault.ImportRow, 50)
			for i := 0; i < n; i += len(rows) {
				for j := range rows {
					rows[j] = importRow(int64(j+1), fmt.Sprint("crm-", i+j), string(badge(i+j)))
				}
				if _, err := p.vault.Import(b.Context(), operator, "note", rows, false); err != nil {
					b.Fatal(err)
				}
			}
			var done int64
			for b.Loop() {
				if _, err := p.keys.Rotate(b.Context(), operator, keyring.KeyBlindIndex); err != nil {
					b.Fatal(err)
				}
				done += p.finish(b).Done
			}
			b.ReportMetric(float64(done)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
