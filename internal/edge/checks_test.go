package edge

import (
	"testing"

	"strongroom/internal/check"
)

// Every check sees the failure that it is there for.
func TestChecksSeeSabotage(t *testing.T) {
	for _, c := range Checks(func() *Server { return nil }) {
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
