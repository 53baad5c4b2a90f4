package audit

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ActionExport is recorded before the first event of an export leaves.
const ActionExport = "audit.trail.export"

// ExportQuery says what is exported.
type ExportQuery struct {
	Since    time.Time   `json:"since,omitzero"`     // the first moment; zero: from the beginning
	Until    time.Time   `json:"until,omitzero"`     // the first moment that is left out; zero: now
	Customer customer.ID `json:"customer,omitempty"` // events about one customer only; empty: about everybody
	Reveal   bool        `json:"reveal,omitempty"`   // personal parts too
	Reason   string      `json:"reason,omitempty"`   // why they are needed; sealed in the event of the export
}

// exportPage is how many events are read in one snapshot and held at once.
const exportPage = 512

// Export gives take the events that the query names, oldest first, some hundred at a time, which take must
// not keep; nothing else is held in memory. Personal parts are left out unless Reveal is set, which needs
// a Reason. Only the system may export so far. The export is itself an event, committed before take is
// called first; when it is cut short, another one says so.
func (t *Trail) Export(ctx context.Context, by actor.Actor, q ExportQuery, take func([]Entry) error) error {
	e := Event{Action: ActionExport, Resource: "trail without personal parts", Customer: q.Customer}
	if q.Reveal {
		e.Resource = "trail with personal parts"
	}
	if q.Reason != "" {
		e.Personal = map[string]string{"reason": q.Reason}
	}
	if q.Until.IsZero() {
		q.Until = t.clock.Now()
	}
	if p := mayExport(by, q); p != nil {
		return t.Deny(ctx, by, e, p)
	}
	granted := e
	granted.Outcome = Granted
	if err := t.alone(ctx, by, granted); err != nil {
		return unrecorded(err, nil)
	}
	err := t.export(ctx, q, take)
	if err != nil {
		e.Outcome, e.Reason = classify(err)
		if failed := t.alone(ctx, by, e); failed != nil {
			return unrecorded(failed, err)
		}
	}
	return err
}

func mayExport(by actor.Actor, q ExportQuery) *problem.Problem {
	switch p := mayInspect(by); {
	case p != nil:
		return p
	case q.Reveal && strings.TrimSpace(q.Reason) == "":
		return problem.New(problem.Invalid, "reason-needed", "Say why the personal parts are needed: the trail keeps the reason.")
	case !q.Since.Before(q.Until):
		return problem.New(problem.Invalid, "invalid-period", "The period ends before it begins.")
	case q.Since.Year() > 9999 || q.Until.Year() > 9999 || !q.Since.IsZero() && q.Since.Year() < 1970 || q.Until.Year() < 1970:
		return problem.New(problem.Invalid, "invalid-period", "The period is not within the years 1970 to 9999.")
	case q.Customer != "" && !q.Customer.Valid():
		return problem.New(problem.Invalid, "invalid-customer", "The customer has no valid id.")
	}
	return nil
}

func (t *Trail) export(ctx context.Context, q ExportQuery, take func([]Entry) error) error {
	since := int64(0)
	if !q.Since.IsZero() {
		since = clock.Micros(q.Since)
	}
	var entries []Entry
	archivedTo := int64(0) // the events before it were taken from the archive, or deleted there
	for after := ""; ; {
		var last string
		var list []archived
		err := t.db.View(ctx, func(tx *db.Tx) error {
			var err error
			var bad []int64
			if list, bad, err = t.selectRanges(ctx, tx); err != nil {
				return err
			}
			if len(bad) > 0 {
				return fmt.Errorf("%w (the row of audit_archive for the events from index %d on)", errTampered, bad[0])
			}
			if endOf(list) > archivedTo {
				return nil // those first
			}
			found, err := selectSpan(ctx, tx, after, since, clock.Micros(q.Until), q.Customer, exportPage)
			if err != nil {
				return err
			}
			entries, last = entries[:0], ""
			if len(found) > 0 {
				last = found[len(found)-1].event
			}
			// What is archived may still be in the database as well.
			found = slices.DeleteFunc(found, func(p placed) bool { return p.index >= 0 && p.index < archivedTo })
			entries, err = t.showAll(ctx, tx, found, entries, q.Reveal)
			return err
		})
		if err == nil && endOf(list) > archivedTo {
			if err = t.exportArchive(ctx, list, archivedTo, after, q, take); err == nil {
				archivedTo = endOf(list)
				continue
			}
		}
		if err != nil || last == "" {
			return err
		}
		if err := take(entries); err != nil {
			return err
		}
		after = last
	}
}

// showAll appends the events as they are shown, without their personal parts unless reveal is set.
func (t *Trail) showAll(ctx context.Context, tx *db.Tx, found []placed, into []Entry, reveal bool) ([]Entry, error) {
	var known rings
	if reveal {
		known = make(rings)
	}
	for i := range found {
		e, err := t.show(ctx, tx, &found[i], known)
		if err != nil {
			return into, err
		}
		into = append(into, e)
	}
	return into, nil
}

// slack is how far apart the time in an event's id and the time of the event can be: a deed may name its
// event when it begins.
const slack = time.Hour

// idAt returns the least id that an event can have that was made at the time given, give or take slack.
func idAt(us int64, slack time.Duration) string {
	var raw [16]byte
	us = max(0, us+slack.Microseconds())
	binary.BigEndian.PutUint64(raw[:], uint64(us/1000)<<16|uint64(us%1000)<<6)
	return "evt_" + encoding.EncodeToString(raw[:])
}

// selectSpan returns the events made from since on and before until, after the id given. The ids, which
// begin with the time, keep it from looking at the whole table.
func selectSpan(ctx context.Context, tx *db.Tx, after string, since, until int64, c customer.ID, limit int) ([]placed, error) {
	return queryPlaced(ctx, tx, nil, `
		SELECT e.id, COALESCE(l.idx, -1), `+eventColumns+`
		FROM event e LEFT JOIN event_leaf l ON l.event_id = e.id
		WHERE e.id > $1 AND e.id < $2 AND e.made_at >= $3 AND e.made_at < $4
			AND (CAST($5 AS TEXT) = '' OR e.customer_id = $5) AND `+isShort("e.id")+`
		ORDER BY e.id LIMIT $6`, max(after, idAt(since, -slack)), idAt(until, slack), since, until, string(c), limit)
}
