package e2e

import (
	"os/exec"
	"testing"
	"time"
)

// BenchmarkStart measures how long it takes from the start of the process until it serves on all
// listeners: the first time, when keys, database and certificates are made, and on an installation
// that is there. The baseline is the same binary printing its version.
func BenchmarkStart(b *testing.B) {
	b.Run("process", func(b *testing.B) {
		for range b.N {
			if err := exec.Command(binary, "version").Run(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1000, "ms")
	})
	starts := func(b *testing.B, folder func() string) {
		var total, longest time.Duration
		for range b.N {
			s, took := startMeasured(b, folder())
			total, longest = total+took, max(longest, took)
			s.stop()
		}
		b.ReportMetric(0, "ns/op") // stopping is in it
		b.ReportMetric(float64(total.Microseconds())/float64(b.N)/1000, "ms")
		b.ReportMetric(float64(longest.Microseconds())/1000, "longest-ms")
	}
	b.Run("first", func(b *testing.B) { starts(b, b.TempDir) })
	b.Run("again", func(b *testing.B) {
		data := b.TempDir()
		s, _ := startMeasured(b, data)
		s.stop()
		starts(b, func() string { return data })
	})
}
