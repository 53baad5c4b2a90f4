package risk

import (
	"context"

	"strongroom/internal/check"
)

// CheckCurrent finds out whether risks are reviewed and improvements are made when they were to be.
func (r *Register) CheckCurrent(ctx context.Context) check.Observation {
	did := "read from the register when each risk is to be reviewed and each open action to be done"
	risks, actions, err := r.planned(ctx)
	if err != nil {
		return check.Undecided(did, "The register could not be read: %v", err)
	}
	if len(risks) == 0 {
		return check.Failed(did, "The register is empty.")
	}
	now := r.o.Clock.Now()
	late, behind := 0, 0
	for _, k := range risks {
		if !now.Before(k.ReviewAt) {
			late++
		}
	}
	for _, a := range actions {
		if a.overdue(now) {
			behind++
		}
	}
	if late+behind > 0 {
		return check.Failed(did, "%d of %d reviews and %d of %d actions are overdue.", late, len(risks), behind, len(actions))
	}
	return check.Held(did, "%d risks and %d open actions are within their dates.", len(risks), len(actions)).
		With("risks", len(risks)).With("open_actions", len(actions))
}
