package identity

import (
	"context"
	"math/rand/v2"
	"strconv"
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

// daily is the class's share of the messages of a day.
func (c class) daily(l Limits) int {
	if c == known {
		return max(1, l.Daily/2)
	}
	return max(1, l.Daily/4)
}

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

// admit is what comes before everything costly: the state of the gateway, the cap on the messages of a
// day, and the limit of the caller's network, or of the device when it is a known one. None of these
// knows an account, except by a key that only the account's own devices have, so each refusal is the
// same for everybody.
func (i *Identity) admit(ctx context.Context, by actor.Actor, action string, s starter) error {
	now := i.Clock.Now()
	if wait, ok := i.gateway.Allow(now, s.class == known); !ok && !s.silent {
		return i.denied(ctx, by, audit.Event{Action: action}, errMessages.Slug(), "", errMessages.RetryAfter(wait))
	}
	var room bool
	if err := i.DB.View(ctx, func(tx *db.Tx) (err error) {
		_, room, err = i.dailyRow(ctx, tx, s.class, 1, now)
		return err
	}); err != nil {
		return err
	}
	if !room && !s.silent {
		return i.denied(ctx, by, audit.Event{Action: action}, "daily-message-cap", "", errMessages.RetryAfter(time.Hour))
	}
	key, r := i.quotaKey(string(s.class), s.source()), s.rate(i.Limits)
	var c counter
	var ok bool
	err := i.DB.UpdateReadCommitted(ctx, func(tx *db.Tx) (err error) {
		if c, err = lockCounter(ctx, tx, key, now); err != nil {
			return err
		}
		ok = c.add(now, r, 1)
		return putCounter(ctx, tx, key, c, r.Per)
	})
	if err != nil || ok {
		return err
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

// counted is a counter with its name and its bound.
type counted struct {
	key []byte
	counter
	rate Rate
}

// dailyRows is over how many rows a daily counter is spread. One row that every start writes would
// have PostgreSQL refuse all but one of those at the same instant.
const dailyRows = 16

// dailyRow returns a row of the class's daily counter with room for n, looking from any row on, and
// whether there is one. The rows have the class's share between them.
func (i *Identity) dailyRow(ctx context.Context, tx *db.Tx, c class, n int64, now time.Time) (q counted, ok bool, err error) {
	limit, first := c.daily(i.Limits), rand.IntN(dailyRows)
	for k := range dailyRows {
		row := (first + k) % dailyRows
		q.key = i.quotaKey("messages", string(c)+strconv.Itoa(row))
		q.rate = Rate{(limit + row) / dailyRows, 24 * time.Hour}
		if q.counter, err = getCounter(ctx, tx, q.key); err != nil {
			return q, false, err
		}
		if q.room(now, q.rate, n) {
			return q, true, nil
		}
	}
	return q, false, nil
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
		{key: i.quotaKey("messages-by-source", s.source()), rate: i.Limits.Messages},
		{key: i.quotaKey("messages-hourly", s.number+laneOf), rate: Rate{i.Limits.NumberHourly, time.Hour}},
		{key: i.quotaKey("messages-daily", s.number+laneOf), rate: Rate{i.Limits.NumberDaily, 24 * time.Hour}},
	}
	for k := range all {
		var err error
		if all[k].counter, err = getCounter(ctx, tx, all[k].key); err != nil {
			return false, err
		}
	}
	daily, _, err := i.dailyRow(ctx, tx, s.class, n, now)
	if err != nil {
		return false, err
	}
	ok := true
	for _, q := range append(all, daily) {
		// Once one is full, the others are written unchanged.
		if ok && !q.add(now, q.rate, n) {
			ok = false
		}
		if err := putCounter(ctx, tx, q.key, q.counter, q.rate.Per); err != nil {
			return false, err
		}
	}
	return ok && want, nil
}
