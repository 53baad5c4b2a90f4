package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"strongroom/internal/audit/catalogue"
	"strongroom/internal/audit/ocsf"
)

// checkCatalogue exports the whole trail of an installation: what a journey has left behind is in the
// catalogue, is what the OCSF schema allows, and holds nothing that is personal.
func checkCatalogue(t *testing.T, data string) {
	t.Helper()
	out := must(t, "audit", "export", "--data", data, "--format", "ocsf").stdout
	if found := personal.FindString(out); found != "" || strings.Contains(out, "127.0.0.1") {
		t.Errorf("an export without --reveal holds %q, or an address", found)
	}
	actions := map[string]bool{}
	for _, line := range lines(out) {
		if err := ocsf.Validate([]byte(line)); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		var e struct {
			Metadata struct {
				EventCode string `json:"event_code"`
			} `json:"metadata"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		actions[e.Metadata.EventCode] = true
		if _, ok := catalogue.Find(e.Metadata.EventCode); !ok {
			t.Errorf("%q was recorded and is not in the catalogue", e.Metadata.EventCode)
		}
	}
	if len(actions) < 8 {
		t.Errorf("only %v were recorded", actions)
	}
	t.Logf("%d actions were recorded", len(actions))
}
