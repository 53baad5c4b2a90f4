package identity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/identity/oracle"
	"strongroom/internal/problem"
)

// JobProofs lets devices in whose holders have proven who they are.
const JobProofs = "identity.proofs"

// proofsEvery is how often the checker is asked, while devices wait.
const proofsEvery = 15 * time.Second

// proofsAtOnce is about how many devices the checker is asked at once.
const proofsAtOnce = 500

// What is wrong when those do not answer who know more.
const (
	findingProofs = "identity.proofs-unavailable"
	findingSIMs   = "identity.sim-swaps-unavailable"
)

// IdentityProofs knows who has proven their identity: whoever checks papers and faces for the operator. It returns
// what is proven of the devices that it is asked about, by evidence that the very device sent; what it does not know, and
// what it is in doubt about, it leaves out.
type IdentityProofs interface {
	Proven(ctx context.Context, waiting []oracle.Waiting) ([]oracle.Proof, error)
}

// answering raises a finding while somebody outside does not answer, and clears it once they do.
func (i *Identity) answering(ctx context.Context, kind, detail string, err error) {
	if i.Findings == nil || ctx.Err() != nil {
		return
	}
	var failed error
	if err != nil {
		failed = i.Findings.Raise(ctx, kind, "", detail)
	} else {
		failed = i.Findings.Clear(ctx, kind, "")
	}
	if failed != nil {
		i.Log.WarnContext(ctx, "a finding was not written down", "kind", kind, "error", failed)
	}
}

// acceptProofs asks about the devices that wait, and lets those in that are proven since they came. All of it goes
// on outside of any login, so a checker who is slow, or does not answer, holds up nobody else.
func (i *Identity) acceptProofs(ctx context.Context) error {
	now := i.Clock.Now()
	var waiting []oracle.Waiting
	err := i.DB.View(ctx, func(tx *db.Tx) error {
		waiting = nil
		found, err := tx.Query(ctx, `
			SELECT t.customer_id, t.device_id, d.added_at FROM device_trust t JOIN device d ON d.id = t.device_id
			WHERE t.expires_at > $1 AND d.status = $2 ORDER BY t.expires_at DESC LIMIT $3`, clock.Micros(now), pending, proofsAtOnce)
		if err != nil {
			return err
		}
		defer found.Close()
		for found.Next() {
			var w oracle.Waiting
			var added int64
			if err := found.Scan(&w.Customer, &w.Device, &added); err != nil {
				return err
			}
			w.Since = clock.FromMicros(added)
			waiting = append(waiting, w)
		}
		return found.Err()
	})
	if err != nil || len(waiting) == 0 {
		return err
	}
	proofs, err := i.Proofs.Proven(ctx, waiting)
	i.answering(ctx, findingProofs, "Proofs of identity cannot be looked up: devices wait for another device of the customer, or for two members of staff.", err)
	if err != nil {
		return fmt.Errorf("asking for proofs of identity: %w", err)
	}
	since := map[string]time.Time{}
	for _, w := range waiting {
		since[w.Device] = w.Since
	}
	by := actor.OfSystem("job:" + JobProofs)
	for _, p := range proofs {
		if p.At.Before(since[p.Device]) {
			continue // of before the device came, and will be told again and again
		}
		if err := i.acceptProof(ctx, by, p); err != nil && problem.Of(err) == nil {
			return fmt.Errorf("letting in a device that is proven: %w", err)
		}
	}
	return nil
}

// acceptProof lets a device in, if it still waits and the proof is of after it came. As when staff let one in, all
// sessions of the customer end: whoever holds what they have lost may be in one.
func (i *Identity) acceptProof(ctx context.Context, by actor.Actor, p oracle.Proof) error {
	event := audit.Event{Action: ActionRecoveryProof, Resource: "device " + p.Device, Customer: p.Customer}
	err := i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		now := i.Clock.Now()
		d, _, err := i.waitingDevice(ctx, tx, p.Customer, p.Device, now)
		if err != nil {
			return err
		}
		if p.At.Before(clock.FromMicros(d.added)) {
			return errOldProof
		}
		if _, err := i.endSessions(ctx, tx, by, p.Customer, "", "recovered", now); err != nil {
			return err
		}
		return i.letIn(ctx, tx, by, d, "proof-of-identity", now)
	})
	if errors.Is(err, errNotWaiting) {
		return nil
	}
	return err
}

// ActionRecoveryProof is a proof of identity that was brought for a device.
const ActionRecoveryProof = "identity.recovery.proof"

var errOldProof = problem.New(problem.Conflict, "old-proof", "This proof of identity is of before the device came.")
