package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestSinkMissesNothing kills the server again and again while it streams the trail to a file that is
// rotated: in the end the files hold every event of the log, in whole lines, none of them personal.
func TestSinkMissesNothing(t *testing.T) {
	data := t.TempDir()
	start(t, "dev", data).stop()
	settings := filepath.Join(data, "strongroom.yaml")
	text, err := os.ReadFile(settings)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, "audit: {sinks: [{name: siem, type: file, path: out/audit.ndjson, format: json, max_size: 65536}]}\n"...)
	if err := os.WriteFile(settings, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(data, "out"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := start(t, "dev", data)
	for range 3 {
		service := s.service().For("payment")
		for range 60 {
			if _, err := service.CreateCustomer(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s.kill()
		s = start(t, "dev", data)
	}

	type event struct {
		ID       string            `json:"id"`
		Index    int64             `json:"index"`
		Personal map[string]string `json:"personal"`
	}
	// The leases of a server that was killed last for 15 s, and until then nobody sequences.
	ops := s.client()
	eventually(t, "the log has the events", func() error {
		metric := "strongroom_audit_tree_size "
		_, text := get(t, ops, s.urls.Ops+"/metrics")
		_, rest, _ := strings.Cut(text, "\n"+metric)
		number, _, _ := strings.Cut(rest, "\n")
		if size, err := strconv.ParseFloat(number, 64); err != nil || size < 300 {
			return fmt.Errorf("%s is %q", metric, number)
		}
		return nil
	})
	var want []event
	for _, line := range lines(must(t, "audit", "export", "--data", data, "--format", "json").stdout) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Index >= 0 {
			want = append(want, e)
		}
	}
	if len(want) < 300 {
		t.Fatalf("only %d events", len(want))
	}
	eventually(t, "the sink has all events", func() error {
		got := map[int64]string{}
		files, err := filepath.Glob(filepath.Join(data, "out", "audit.ndjson*"))
		if err != nil {
			return err
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for _, line := range lines(string(b)) {
				var e event
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					return fmt.Errorf("%s: %w: %q", file, err, line)
				}
				if e.Personal != nil || got[e.Index] != "" && got[e.Index] != e.ID {
					t.Fatalf("%s: %s", file, line)
				}
				got[e.Index] = e.ID
			}
		}
		for _, e := range want {
			if got[e.Index] != e.ID {
				return fmt.Errorf("of %d events at least the one with index %d is not there; %d are", len(want), e.Index, len(got))
			}
		}
		if len(files) < 2 {
			return fmt.Errorf("the file was not rotated: %v", files)
		}
		return nil
	})
	s.stop()
}
