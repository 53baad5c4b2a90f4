package edge

import (
	"testing"

	"strongroom/internal/check"
)

// Every check sees the failure that it is there for.
func TestChecksSeeSabotage(t *testing.T) {
	for _, c := range append(Checks(func() *Server { return nil }), FloodCheck(func() *Server { return nil }, "app")) {
		t.Run(c.ID, func(t *testing.T) {
			if seen := c.Sabotage(t.Context()); seen.Outcome != check.Fails {
				t.Errorf("%+v", seen)
			}
			if seen := c.Run(t.Context()); seen.Outcome != check.Unknown {
				t.Errorf("without a server: %+v", seen)
			}
		})
	}
}

func TestFlood(t *testing.T) {
	if seen := flood(t.Context(), "", Listener{Name: "app", Mode: Plain, Limits: Limits{RequestsPerSecond: 5, Burst: 10}}); seen.Outcome != check.Holds || seen.Figures["refused_at"] != 11 {
		t.Errorf("%+v", seen)
	}
}
