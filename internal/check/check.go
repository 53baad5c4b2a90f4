// Package check is what a room says of a check: how the running system is asked whether a promise holds.
// It holds types and no I/O; package assurance runs what the rooms declare.
package check

import (
	"context"
	"fmt"
	"time"
)

// Outcome is what a check found.
type Outcome string

// The outcomes.
const (
	Holds   Outcome = "holds"
	Fails   Outcome = "fails"
	Unknown Outcome = "unknown" // it could not be found out; never taken for Holds
)

// Observation is what a check saw. Nothing in it is personal or secret: it is shown to auditors, and in part
// to everybody.
type Observation struct {
	Outcome   Outcome        `json:"outcome"`
	Detail    string         `json:"detail"`            // a sentence: what was found
	Exercised string         `json:"exercised"`         // what was done to find out
	Figures   map[string]any `json:"figures,omitempty"` // numbers and short texts
}

// Held returns the observation that the promise holds.
func Held(exercised, detail string, args ...any) Observation {
	return Observation{Outcome: Holds, Exercised: exercised, Detail: fmt.Sprintf(detail, args...)}
}

// Failed returns the observation that it does not.
func Failed(exercised, detail string, args ...any) Observation {
	return Observation{Outcome: Fails, Exercised: exercised, Detail: fmt.Sprintf(detail, args...)}
}

// Undecided returns the observation that it could not be found out.
func Undecided(exercised, detail string, args ...any) Observation {
	return Observation{Outcome: Unknown, Exercised: exercised, Detail: fmt.Sprintf(detail, args...)}
}

// With adds a figure.
func (o Observation) With(name string, value any) Observation {
	figures := map[string]any{name: value}
	for k, v := range o.Figures {
		figures[k] = v
	}
	o.Figures = figures
	return o
}

// Check exercises the running system.
type Check struct {
	ID      string        // stable, "tls-old-versions-refused"
	Says    string        // what is true when it holds, for people
	Version int           // of what is done; raise it when the same outcome would mean something else
	Every   time.Duration // how often it is run
	Valid   time.Duration // for how long its evidence counts
	Run     func(ctx context.Context) Observation
	// Sabotage breaks what the check is about, in a scratch copy, and returns what the same check sees there.
	// A check that does not see it is no check.
	Sabotage func(ctx context.Context) Observation
}
