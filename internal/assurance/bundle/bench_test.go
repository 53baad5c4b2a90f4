package bundle

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"io"
	"testing"

	"strongroom/internal/check"
)

// What a run of a check costs in a bundle, written and verified, beside the one signature and the one verification
// that it cannot do without.
func BenchmarkBundle(b *testing.B) {
	const runs = 2000
	m := newMaker(b)
	m.runs, m.changes, m.claims = nil, nil, m.claims[1:]
	for i := range runs {
		m.run("doors-shut", 1, check.Held("pushed every door that the settings name", "All %d are shut.", i).With("doors", i))
	}
	source := m.source(b)
	source.To = began.AddDate(1, 0, 0)
	perRun := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/runs, "µs/run")
	}
	var out bytes.Buffer
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			out.Reset()
			if err := Write(b.Context(), &out, m.evidence, source); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(out.Len())/runs, "bytes/run")
		perRun(b)
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if _, err := Verify(b.Context(), bytes.NewReader(out.Bytes()), int64(out.Len()), Options{Keys: []string{m.evidenceKey}}); err != nil {
				b.Fatal(err)
			}
		}
		perRun(b)
	})
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	text := []byte(fmt.Sprintf("%2000d", 1))
	b.Run("baseline-sign", func(b *testing.B) {
		for b.Loop() {
			for range runs {
				_, _ = io.Discard.Write(ed25519.Sign(private, text))
			}
		}
		perRun(b)
	})
	b.Run("baseline-verify", func(b *testing.B) {
		signature := ed25519.Sign(private, text)
		for b.Loop() {
			for range runs {
				if !ed25519.Verify(public, text, signature) {
					b.Fatal("not verified")
				}
			}
		}
		perRun(b)
	})
}
