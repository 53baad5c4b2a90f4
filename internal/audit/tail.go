package audit

import (
	"context"
	"errors"
	"slices"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// What stands in the place of a personal part that cannot be shown.
const (
	Erased     = "[erased]"     // its key was destroyed
	Unreadable = "[unreadable]" // it was altered, or its key is not here; Verify says more
)

// Unverified is the outcome that is shown of a row that Strongroom did not write, or that was altered
// since: nothing in it can be relied on. Its personal part is not opened.
const Unverified Outcome = "unverified"

// Entry is an event as it is shown. Its texts hold no control characters.
type Entry struct {
	ID    string    `json:"id"`
	Index int64     `json:"index"` // its place in the log; -1 while it has none
	Time  time.Time `json:"time"`
	Actor struct {
		Kind    actor.Kind `json:"kind"`
		ID      string     `json:"id,omitempty"`
		Device  string     `json:"device,omitempty"`
		Session string     `json:"session,omitempty"`
	} `json:"actor"`
	Action      string      `json:"action"`
	Resource    string      `json:"resource,omitempty"`
	Customer    customer.ID `json:"customer,omitempty"`
	Outcome     Outcome     `json:"outcome"`
	Reason      string      `json:"reason,omitempty"`
	Transaction string      `json:"transaction,omitempty"`
	Request     string      `json:"request,omitempty"`
	// Personal is what was sealed, the caller's address under "address". When it cannot be opened,
	// that one entry reads Erased or Unreadable.
	Personal map[string]string `json:"personal,omitempty"`
}

// maxTail bounds what Tail returns.
const maxTail = 1000

// Tail returns events, oldest first, with their personal parts opened: at most limit (1 to 1000) of
// those after the event that is named, or the newest when after is empty. Only the system may read
// the trail so far.
//
// The reading is itself an event, which is committed before anything is returned. To find nothing
// but one's own readings is none: otherwise whoever follows the trail would see themselves for ever.
func (t *Trail) Tail(ctx context.Context, by actor.Actor, after string, limit int) ([]Entry, error) {
	e := Event{Action: ActionRead, Resource: "trail"}
	if p := mayInspect(by); p != nil {
		return nil, t.Deny(ctx, by, e, p)
	}
	if limit < 1 || limit > maxTail {
		return nil, t.Deny(ctx, by, e, problem.New(problem.Invalid, "invalid-limit", "Ask for 1 to %d events.", maxTail))
	}
	if after != "" && !id.Valid("evt", after) {
		return nil, t.Deny(ctx, by, e, problem.New(problem.Invalid, "invalid-event", "The event to begin after has no valid id."))
	}
	var entries []Entry
	err := t.db.View(ctx, func(tx *db.Tx) error {
		entries = nil
		var found []placed
		var err error
		if after == "" {
			found, err = selectNewest(ctx, tx, limit)
			slices.Reverse(found)
		} else {
			found, err = selectAfter(ctx, tx, after, limit)
		}
		if err != nil {
			return err
		}
		rings := make(rings)
		for i := range found {
			entry, err := t.show(ctx, tx, &found[i], rings)
			if err != nil {
				return err
			}
			entries = append(entries, entry)
		}
		return nil
	})
	if err == nil && !slices.ContainsFunc(entries, func(e Entry) bool {
		return e.Outcome == Unverified || e.Action != ActionRead || e.Actor.Kind != by.Kind || e.Actor.ID != by.ID
	}) {
		return entries, nil
	}
	e.Outcome = Granted
	if err != nil {
		e.Outcome, e.Reason = classify(err)
	}
	if failed := t.alone(ctx, by, e); failed != nil {
		return nil, unrecorded(failed, err)
	}
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// mayInspect returns why by may not read and verify the trail.
func mayInspect(by actor.Actor) *problem.Problem {
	if by.Kind != actor.System {
		return problem.New(problem.Forbidden, "trail-not-allowed", "You may not read the audit trail.")
	}
	return nil
}

// show returns p as it is shown; without rings, its personal part is left out.
func (t *Trail) show(ctx context.Context, tx *db.Tx, p *placed, rings rings) (Entry, error) {
	e := entryOf(p)
	if p.version != leafVersion || t.authentic(&p.row, p.appendLeaf(nil)) != nil {
		e.Outcome = Unverified
		if p.madeAt < 0 || p.madeAt > maxTime {
			e.Time = clock.FromMicros(0) // JSON has no time for it
		}
		return e, nil
	}
	return t.showPersonal(ctx, tx, p, e, rings)
}

// entryOf returns p as it is shown, without its personal part.
func entryOf(p *placed) Entry {
	e := Entry{
		ID: shown(p.id), Index: p.index, Time: clock.FromMicros(p.madeAt), Action: shown(p.action), Resource: shown(p.resource),
		Customer: customer.ID(shown(p.customer)), Outcome: Outcome(shown(p.outcome)), Reason: shown(p.reason),
		Transaction: shown(p.transaction), Request: shown(p.request),
	}
	e.Actor.Kind, e.Actor.ID = actor.Kind(shown(p.actorKind)), shown(p.actorID)
	e.Actor.Device, e.Actor.Session = shown(p.device), shown(p.session)
	return e
}

// showGenuine is show of an event that is known to be the one of the log.
func (t *Trail) showGenuine(ctx context.Context, tx *db.Tx, p *placed, rings rings) (Entry, error) {
	return t.showPersonal(ctx, tx, p, entryOf(p), rings)
}

// showPersonal adds the personal part to what is shown of p.
func (t *Trail) showPersonal(ctx context.Context, tx *db.Tx, p *placed, e Entry, rings rings) (Entry, error) {
	if p.sealedUnder == underNothing || rings == nil {
		return e, nil
	}
	ring, state, err := t.opener(ctx, tx, &p.row, rings)
	if err != nil {
		return e, err
	}
	switch state {
	case keyErased:
		e.Personal = map[string]string{nameAddress: Erased}
		return e, nil
	case keyThere:
		if object, err := p.openPersonal(ring); err == nil {
			if e.Personal, err = parsePersonal(object); err == nil {
				for name, value := range e.Personal {
					e.Personal[name] = clean(value, maxPersonal)
				}
				return e, nil
			}
		}
	}
	e.Personal = map[string]string{nameAddress: Unreadable}
	return e, nil
}

// maxTime is the last microsecond of the year 9999.
const maxTime = 253402300799999999

func shown(s string) string { return clean(s, maxField) }

// keyState says what became of the key of a personal part.
type keyState int

const (
	keyThere keyState = iota
	keyErased
	keyMissing // there never was one, or its row was removed
)

// rings remembers the customers' keys of one transaction.
type rings map[string]ringState

type ringState struct {
	ring  *seal.Ring
	state keyState
	newer bool // the ring was asked for again
}

// opener returns the key for the personal part of a row that has one.
func (t *Trail) opener(ctx context.Context, tx *db.Tx, r *row, known rings) (*seal.Ring, keyState, error) {
	if r.sealedUnder == underService {
		return t.keys.Service(sealingKey), keyThere, nil
	}
	if r.sealedUnder != underCustomer {
		return nil, keyMissing, nil
	}
	k, ok := known[r.customer]
	var err error
	switch version, form := seal.KeyVersion(r.sealed); {
	case !ok:
		k.ring, err = t.keys.Customer(ctx, tx, customer.ID(r.customer))
		if err != nil || form != nil || k.ring.Holds(version) {
			break
		}
		fallthrough
	case k.ring != nil && !k.newer && form == nil && !k.ring.Holds(version):
		k.newer = true
		k.ring, err = t.keys.Holding(ctx, tx, customer.ID(r.customer), k.ring, r.sealed)
	default:
		return k.ring, k.state, nil
	}
	switch {
	case err == nil:
	case problem.Is(err, "customer-erased"):
		k.state = keyErased
	case problem.Is(err, "customer-not-found"):
		k.state = keyMissing
	case isEngine(err):
		return nil, keyMissing, err
	default:
		k.state = keyMissing // its row was altered
	}
	if err != nil {
		k.ring = nil
	}
	known[r.customer] = k
	return k.ring, k.state, nil
}

// isEngine reports whether err came from a database that does not answer, or a caller who left.
func isEngine(err error) bool {
	p := problem.Of(err)
	return p != nil && p.Kind() == problem.Unavailable || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
