package backup

import (
	"context"
	"regexp"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// Approvals says whether two people agreed to a deed that one alone may not do: to delete a snapshot before
// its time, to shorten the retention, to delete what is locked.
type Approvals interface {
	// Spend uses up the approvals of a deed in the deed's own transaction and returns who gave them. It
	// fails with the problem "backup-approval-needed" unless there are two, of different people.
	Spend(ctx context.Context, tx *db.Tx, deed string) (approvers []string, err error)
}

// ActionApprove is recorded when somebody approves a deed. The resource is the deed.
const ActionApprove = "backup.deed.approve"

// ApprovalLife is for how long an approval holds.
const ApprovalLife = 24 * time.Hour

// Operators are approvals by the people who use the command line, or members of staff, under their own
// names. They are kept in the database.
type Operators struct {
	Trail *audit.Trail
	Clock clock.Clock // nil means clock.System
}

var deeds = regexp.MustCompile(`^((delete|unlock) snap_[0-9]{8}t[0-9]{6}_[a-z0-9]{6}|keep( [a-z]+=[0-9]+[a-z0-9]*)+)$`)

func (o *Operators) now() time.Time {
	if o.Clock == nil {
		return clock.System.Now()
	}
	return o.Clock.Now()
}

// Approve records that by agrees to a deed, for ApprovalLife. The deed is written as the refusal names it:
// "delete snap_20260102t150405_abcdef". Jobs approve nothing.
func (o *Operators) Approve(ctx context.Context, by actor.Actor, deed string) error {
	e := audit.Event{Action: ActionApprove, Resource: "deed " + deed}
	if !deeds.MatchString(deed) {
		e.Resource = "deed"
		return o.Trail.Deny(ctx, by, e, problem.New(problem.Unprocessable, "backup-deed-unknown",
			"There is no such deed to approve. Write it as the refusal named it, for example \"delete snap_20260102t150405_abcdef\"."))
	}
	person := by.Kind == actor.Staff || by.Kind == actor.System && strings.HasPrefix(by.ID, "cli:")
	if !person || by.ID == "" {
		return o.Trail.Deny(ctx, by, e, problem.New(problem.Forbidden, "backup-approver-refused", "Only a member of staff under their own name can approve this."))
	}
	return o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		return putApproval(ctx, tx, deed, string(by.Kind)+" "+by.ID, clock.Micros(o.now()))
	})
}

// Spend implements Approvals.
func (o *Operators) Spend(ctx context.Context, tx *db.Tx, deed string) ([]string, error) {
	now := o.now()
	all, err := approvers(ctx, tx, deed, clock.Micros(now.Add(-ApprovalLife)), clock.Micros(now))
	if err != nil {
		return nil, err
	}
	if len(all) < 2 {
		return nil, problem.New(problem.Forbidden, "backup-approval-needed",
			"This takes the approval of two different people within %.0f hours, and has %d. Have each approve, under their own name: %s", ApprovalLife.Hours(), len(all), deed)
	}
	return all, deleteApprovals(ctx, tx, deed)
}
