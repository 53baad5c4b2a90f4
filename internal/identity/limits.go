package identity

import (
	"context"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
)

// class is who asks for a message. Each class has limits of its own, so that none uses up another's.
type class string

const (
	registering class = "registrations"
	stranger    class = "logins"
	known       class = "device-logins" // the key of an authorised device of the number
)

// starter is somebody who starts a registration or a login.
type starter struct {
	class
	number string
	key    string // of the device
	from   string // network
	silent bool   // no message is asked for
}

// source names who is counted: a known device by its key and number, everybody else by network.
func (s starter) source() string {
	if s.class == known {
		return s.number + s.key
	}
	return s.from
}

// rate bounds the starts of the class from one source.
func (s starter) rate(l Limits) Rate {
	switch s.class {
	case known:
		return l.DeviceLogins
	case registering:
		return l.Registrations
	}
	return l.Logins
}

// admit is what comes before everything costly: the state of the gateway, the budgets of messages, and
// the limit of the caller's network, or of the device when it is a known one. None of these
// knows an account, except by a key that only the account's own devices have, so each refusal is the
// same for everybody.
func (i *Identity) admit(ctx context.Context, by actor.Actor, action string, s starter) error {
	now := i.Clock.Now()
	if wait, ok := i.gateway.Allow(now, s.class == known); !ok && !s.silent {
		return i.denied(ctx, by, audit.Event{Action: action}, errMessages.Slug(), "", errMessages.RetryAfter(wait))
	}
	empty, err := i.exhausted(ctx, s, now)
	if err != nil {
		return err
	}
	if empty != nil && !s.silent {
		i.tellExhausted(ctx, empty)
		return i.denied(ctx, by, audit.Event{Action: action}, empty.kind+"-budget", "", errMessages.RetryAfter(time.Hour))
	}
	r := s.rate(i.Limits)
	var c counter
	var ok bool
	var delay time.Duration // that the network's failures have earned it
	err = i.DB.UpdateReadCommitted(ctx, func(tx *db.Tx) (err error) {
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		delay = 0
		keys := i.quotaKeys(string(s.class), s.source())
		if c, err = lockCounter(ctx, tx, keys, now, r.Per); err != nil {
			return err
		}
		ok = c.add(now, r, 1)
		if err := putCounter(ctx, tx, keys, c, r.Per); err != nil || !ok || s.class != stranger {
			return err
		}
		l, err := getLane(ctx, tx, i.networkKeys(s.from))
		delay = l.networkDelay(now)
		return err
	})
	if err != nil {
		return err
	}
	if delay > 0 {
		return i.denied(ctx, by, audit.Event{Action: action}, "network-delay", "", errTooMany.RetryAfter(delay))
	}
	if ok {
		return nil
	}
	p := errTooMany.RetryAfter(c.wait(now, r))
	i.metrics.refused.WithLabelValues(action, p.Slug()).Inc()
	// The first refusal of a window is an event. The others repeat what it says, and would let whoever is
	// over his limit fill the disk.
	if c.refused > 1 {
		return p
	}
	return i.Trail.Deny(ctx, by, audit.Event{Action: action}, p)
}

// writers is how many starts write at the same time. PostgreSQL tells the reads and writes of
// serializable transactions apart by the page, so in small tables all of them would refuse each other.
const writers = 4

// write runs a transaction of a start when fewer than writers are under way.
func (i *Identity) write(ctx context.Context, transaction func() error) error {
	select {
	case i.writing <- struct{}{}:
	case <-ctx.Done():
		return errLoginBusy.Because(ctx.Err())
	}
	defer func() { <-i.writing }()
	return transaction()
}

// counted is a counter with its names and its bound.
type counted struct {
	keys [][]byte
	counter
	rate Rate
	n    int64 // what one message counts
}

// mayMessage counts a message to the number from the lane, unless want is false, in which case it
// makes the same writes and counts nothing. It reports whether a message may be sent. The refusal is
// never shown: it would tell that everything before it was right.
func (i *Identity) mayMessage(ctx context.Context, tx *db.Tx, s starter, want bool, now time.Time) (bool, error) {
	n := int64(0)
	if want {
		n = 1
	}
	laneOf := string(s.class)
	if s.class == known {
		laneOf = s.key
	}
	all := []counted{
		{keys: i.quotaKeys("messages-by-source", s.source()), rate: i.Limits.Messages, n: 1},
		{keys: i.quotaKeys("messages-hourly", s.number+laneOf), rate: Rate{i.Limits.NumberHourly, time.Hour}, n: 1},
		{keys: i.quotaKeys("messages-daily", s.number+laneOf), rate: Rate{i.Limits.NumberDaily, 24 * time.Hour}, n: 1},
	}
	for k := range all {
		var err error
		if all[k].counter, err = getCounter(ctx, tx, all[k].keys, now, all[k].rate.Per); err != nil {
			return false, err
		}
	}
	for _, b := range i.budgets(s) {
		q, _, err := i.row(ctx, tx, b, n*b.n, now)
		if err != nil {
			return false, err
		}
		q.n = b.n
		all = append(all, q)
	}
	ok := true
	for _, q := range all {
		// Once one is full, the others are written unchanged.
		if ok && !q.add(now, q.rate, n*q.n) {
			ok = false
		}
		if err := putCounter(ctx, tx, q.keys, q.counter, q.rate.Per); err != nil {
			return false, err
		}
	}
	return ok && want, nil
}
