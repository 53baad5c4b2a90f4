package identity

import (
	"context"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// admit is what comes before everything costly: the limit of the caller's address on kind, the cap
// on all messages of a day, and the state of the gateway. None of these knows an account, so each
// refusal is the same for everybody.
func (i *Identity) admit(ctx context.Context, by actor.Actor, action, kind string, r Rate) error {
	now := i.Clock.Now()
	if wait, ok := i.gateway.Allow(now); !ok {
		return i.denied(ctx, by, audit.Event{Action: action}, errMessages.Slug(), "", errMessages.RetryAfter(wait))
	}
	key := i.quotaKey(kind, network(by.Address))
	daily := Rate{i.Limits.Daily, 24 * time.Hour}
	var p *problem.Problem
	err := i.DB.Update(ctx, func(tx *db.Tx) error {
		p = nil
		c, err := getCounter(ctx, tx, key)
		if err != nil {
			return err
		}
		if !c.add(now, r, 1) {
			p = errTooMany.RetryAfter(c.wait(now, r))
			// The first refusal of a window is an event. The others repeat what it says, and would let
			// whoever is over his limit fill the disk.
			if c.refused == 1 {
				e := audit.Event{Action: action, Outcome: audit.Denied, Reason: p.Slug()}
				if err := i.Trail.Record(ctx, tx, by, e); err != nil {
					return err
				}
			}
		}
		if err := putCounter(ctx, tx, key, c, r.Per); err != nil {
			return err
		}
		if p != nil {
			return nil
		}
		all, err := getCounter(ctx, tx, i.quotaKey("messages", ""))
		if err != nil {
			return err
		}
		if !all.room(now, daily, 1) {
			p = errMessages.RetryAfter(time.Hour)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case p == nil:
		return nil
	case p.Is(errMessages):
		return i.denied(ctx, by, audit.Event{Action: action}, "daily-message-cap", "", p)
	}
	i.metrics.refused.WithLabelValues(action, p.Slug()).Inc()
	return p
}

// mayMessage counts a message to the number from the lane, unless want is false, in which case it
// makes the same writes and counts nothing. It reports whether a message may be sent. The refusal is
// never shown: it would tell that everything before it was right.
func (i *Identity) mayMessage(ctx context.Context, tx *db.Tx, by actor.Actor, number, laneOf string, want bool, now time.Time) (bool, error) {
	n := int64(0)
	if want {
		n = 1
	}
	ok := true
	for _, q := range []struct {
		key  []byte
		rate Rate
	}{
		{i.quotaKey("messages-by-network", network(by.Address)), i.Limits.Messages},
		{i.quotaKey("messages-hourly", number+laneOf), Rate{i.Limits.NumberHourly, time.Hour}},
		{i.quotaKey("messages-daily", number+laneOf), Rate{i.Limits.NumberDaily, 24 * time.Hour}},
		{i.quotaKey("messages", ""), Rate{i.Limits.Daily, 24 * time.Hour}},
	} {
		c, err := getCounter(ctx, tx, q.key)
		if err != nil {
			return false, err
		}
		// Once one is full, the others are written unchanged.
		if ok && !c.add(now, q.rate, n) {
			ok = false
		}
		if err := putCounter(ctx, tx, q.key, c, q.rate.Per); err != nil {
			return false, err
		}
	}
	return ok && want, nil
}
