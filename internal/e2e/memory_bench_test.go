package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"strongroom/internal/config"
)

const (
	manyRecords = 100_000
	manyWriters = 32
)

// BenchmarkMemory writes 100,000 records through the server, 32 at a time, each with its event, and
// then reports what the server's process keeps in memory, at its most and in the end, what the
// records take on disk, and how long a start takes on all this.
func BenchmarkMemory(b *testing.B) {
	data := b.TempDir()
	s, _ := startMeasured(b, data)
	empty := memory(b, s, "VmRSS")
	s.stop()
	declare(b, data)
	s, _ = startMeasured(b, data)
	callers := callersOf(b, s, manyWriters)
	began := time.Now()
	var wg sync.WaitGroup
	for _, c := range callers {
		wg.Go(func() {
			for i := range manyRecords / manyWriters {
				c.etag = "" // each is new
				o := operation{"note", http.MethodPut, fmt.Sprintf("/v1/records/note/%d", i), "", fmt.Sprintf(`{"text":%q}`, strings.Repeat("a note ", 40))}
				if _, err := c.must(b.Context(), s.urls.App, o); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		return
	}
	took := time.Since(began)
	peak, after := memory(b, s, "VmHWM"), memory(b, s, "VmRSS")
	s.stop()
	s, start := startMeasured(b, data)
	fresh := memory(b, s, "VmRSS")
	b.Run(strconv.Itoa(manyRecords), func(b *testing.B) {
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(empty, "empty-MB")
		b.ReportMetric(after, "rss-MB")
		b.ReportMetric(peak, "peak-MB")
		b.ReportMetric(fresh, "restarted-MB")
		b.ReportMetric(float64(start.Milliseconds()), "start-ms")
		b.ReportMetric(manyRecords/took.Seconds(), "req/s")
		b.ReportMetric(size(b, data)/manyRecords*1e6, "disk-B/record")
	})
}

// declare adds a collection of which a customer may have many to the settings in data.
func declare(b *testing.B, data string) {
	b.Helper()
	f, err := os.OpenFile(filepath.Join(data, config.FileName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const collections = `
collections:
  - name: profile
    purposes: [show-to-customer]
    schema:
      properties:
        given_name: {type: string, x-strongroom: {sensitivity: personal, mask: initial}}
        family_name: {type: string, x-strongroom: {sensitivity: personal, mask: initial}}
        date_of_birth: {type: string, format: date, x-strongroom: {sensitivity: personal, mask: year}}
        email: {type: string, format: email, x-strongroom: {sensitivity: personal, mask: email, index: true}}
        address_line1: {type: string, x-strongroom: {sensitivity: personal}}
        address_line2: {type: string, x-strongroom: {sensitivity: personal}}
        postcode: {type: string, x-strongroom: {sensitivity: personal}}
        city: {type: string, x-strongroom: {sensitivity: personal, mask: initial}}
        country: {type: string, format: country, x-strongroom: {sensitivity: personal, mask: none}}
  - name: note
    limit: 10000
    purposes: [show-to-customer]
    schema:
      properties:
        text: {type: string, maxLength: 1000, x-strongroom: {sensitivity: personal}}
`
	if _, err := f.WriteString(collections); err != nil {
		b.Fatal(err)
	}
}

// memory returns a line of /proc/PID/status in MB (10^6 bytes).
func memory(b *testing.B, s *server, name string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, line, ok := strings.Cut(string(text), name+":")
	var kib float64
	if _, err := fmt.Sscan(line, &kib); err != nil || !ok {
		b.Fatalf("no %s: %v", name, err)
	}
	return kib * 1024 / 1e6
}

// size returns what the files in a folder take, in MB.
func size(b *testing.B, folder string) (total float64) {
	b.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			b.Fatal(err)
		}
		total += float64(info.Size()) / 1e6
	}
	return total
}
