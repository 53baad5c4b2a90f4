package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/identity/sms"
	"strongroom/internal/problem"
)

// letter is what the outbox holds, sealed. One without To is a blank.
type letter struct {
	To       string      `json:"to"`
	Text     string      `json:"text"`
	Customer customer.ID `json:"customer,omitempty"`
	Known    bool        `json:"known,omitempty"` // it is for a known device
	Login    bool        `json:"login,omitempty"` // it holds a code that proves the number, of a login, a reset or a payment
	Made     int64       `json:"made"`
	Via      string      `json:"via,omitempty"`   // the provider that accepted it
	Tried    []string    `json:"tried,omitempty"` // providers that accepted it and did not deliver
}

const (
	deliveryBatch = 16               // messages that are claimed and sent together
	deliveryClaim = 30 * time.Second // after which another may try, when the claimant died
	deliveryTime  = 10 * time.Second // for one attempt; well under the claim
	deliveryPause = 30 * time.Second // the longest between two attempts
)

// post writes a letter into the outbox within the transaction of the deed that it tells of. It leaves
// after the commit.
func (i *Identity) post(ctx context.Context, tx *db.Tx, l letter, now time.Time) error {
	return i.postFor(ctx, tx, l, CodeLifetime, now)
}

// postFor is post for a letter that may wait so long. What is for a number that no telephone has is kept for
// the check that asked for it, and a blank goes out in its place.
func (i *Identity) postFor(ctx context.Context, tx *db.Tx, l letter, life time.Duration, now time.Time) error {
	if isUnreal(l.To) {
		mail := l
		tx.AfterCommit(func() { i.caught.put(mail) })
		l = letter{}
	}
	l.Made = clock.Micros(now)
	row := outboxRow{id: id.New("sms"), next: clock.Micros(now), expires: clock.Micros(now.Add(life))}
	var err error
	if row.sealed, err = i.sealBlank("sms_outbox", row.id, l); err != nil {
		return err
	}
	if err := insertOutbox(ctx, tx, row); err != nil {
		return err
	}
	tx.AfterCommit(func() { i.Wake(JobMessages) })
	return nil
}

// codeText is the message with a one-time code. The code is the only run of six digits in its first
// paragraph; the optional last line is the one of the W3C's origin-bound one-time codes, or the hash of
// Android's SMS Retriever.
func (i *Identity) codeText(code string) string {
	text := fmt.Sprintf("Your %s code is %s. It is good for %d minutes. Never tell it to anyone.", i.Brand, code, int(CodeLifetime.Minutes()))
	if i.WebOTPHost != "" {
		text += "\n\n@" + i.WebOTPHost + " #" + code
	}
	if i.AppHash != "" {
		text += "\n\n" + i.AppHash
	}
	return text
}

// knownText tells the owner of a number that somebody tried to register it.
func (i *Identity) knownText() string {
	return fmt.Sprintf("Somebody, perhaps you, tried to register this number with %s. You already have an account: log in instead. If it was not you, you need do nothing.", i.Brand)
}

// deliver carries what is due to the gateway. While the gateway is taken to be broken, one message at
// a time is tried, and so finds out when it works again.
func (i *Identity) deliver(ctx context.Context) error {
	for {
		limit := deliveryBatch
		if i.gateway.Broken() {
			limit = 1
		}
		claimed, more, err := i.claim(ctx, limit)
		if err != nil || !more {
			return err
		}
		var wg sync.WaitGroup
		errs := make([]error, len(claimed))
		for n, row := range claimed {
			wg.Go(func() { errs[n] = i.deliverOne(ctx, row) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		broken := i.gateway.Broken()
		i.metrics.broken.Set(map[bool]float64{true: 1}[broken])
		if broken {
			return nil
		}
	}
}

// claim takes up to limit letters that are due, and throws away blanks and what nobody waits for any
// more. It reports false when nothing was due.
func (i *Identity) claim(ctx context.Context, limit int) (claimed []outboxRow, more bool, err error) {
	now := i.Clock.Now()
	var due []outboxRow
	look := func(tx *db.Tx) (err error) {
		due, err = dueOutbox(ctx, tx, now, deliveryBatch)
		return err
	}
	// Most of the time there is nothing, and looking costs less than a write.
	if err := i.DB.View(ctx, look); err != nil || len(due) == 0 {
		return nil, false, err
	}
	err = i.DB.Update(ctx, func(tx *db.Tx) error {
		claimed = nil
		if err := look(tx); err != nil {
			return err
		}
		if limit < deliveryBatch {
			// One that has failed often must not take the turn of one that has not been tried.
			slices.SortStableFunc(due, func(a, b outboxRow) int { return cmp.Compare(a.attempts, b.attempts) })
		}
		for _, row := range due {
			var l letter
			if err := i.openBlank("sms_outbox", row.id, row.sealed, &l); err != nil {
				// It would stand in the way of all others for ever.
				i.Log.ErrorContext(ctx, "message cannot be opened and is thrown away", "message", row.id, "error", err)
				l = letter{}
			}
			if l.To == "" || row.expires <= clock.Micros(now) {
				if err := deleteOutbox(ctx, tx, row.id); err != nil {
					return err
				}
				continue
			}
			if len(claimed) == limit {
				continue
			}
			ok, err := claimOutbox(ctx, tx, row, clock.Micros(now.Add(deliveryClaim)))
			if err != nil {
				return err
			}
			if ok {
				claimed = append(claimed, row)
			}
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	return claimed, true, nil
}

// deliverOne hands one letter to the gateway and writes down what came of it.
func (i *Identity) deliverOne(ctx context.Context, row outboxRow) error {
	var l letter
	if err := i.openBlank("sms_outbox", row.id, row.sealed, &l); err != nil {
		return err
	}
	held, err := i.simChanged(ctx, l, row.id)
	if held {
		return err
	}
	if err == nil {
		sending, cancel := context.WithTimeout(ctx, deliveryTime)
		err = i.carry(sending, row.id, &l)
		cancel()
	}
	if ctx.Err() != nil && err != nil {
		return nil // we are stopping; the claim ends and somebody tries again
	}
	settled, cancel := settle(ctx)
	defer cancel()
	now := i.Clock.Now()
	e := audit.Event{Action: ActionMessageSend, Resource: "message " + row.id, Customer: l.Customer}
	by := actor.OfSystem("job:" + JobMessages)
	switch {
	case err == nil:
		i.gateway.Success()
		i.metrics.messages.WithLabelValues("sent").Inc()
		return i.Trail.Do(settled, by, e, func(tx *db.Tx, _ *audit.Event) error {
			if err := i.keepSent(settled, tx, row, l); err != nil {
				return err
			}
			return deleteOutbox(settled, tx, row.id)
		})
	case errors.Is(err, sms.ErrRejected):
		i.gateway.Success() // it answers, and dislikes this message
		i.metrics.messages.WithLabelValues("rejected").Inc()
		i.Log.WarnContext(ctx, "message rejected by the gateway", "message", row.id, "error", err)
		reason := because("message-rejected")
		err := i.Trail.Do(settled, by, e, func(tx *db.Tx, e *audit.Event) error {
			e.Deny(reason)
			return deleteOutbox(settled, tx, row.id)
		})
		if problem.Is(err, reason.Slug()) {
			return nil
		}
		return err
	}
	// A message that fails again says nothing new, and one that is put off nothing about the gateway.
	if row.attempts == 0 && !errors.Is(err, sms.ErrLater) {
		i.gateway.Failure(now, l.To, l.Known)
	}
	i.metrics.messages.WithLabelValues("failed").Inc()
	i.Log.WarnContext(ctx, "message not taken by the gateway", "message", row.id, "attempt", row.attempts+1, "error", err)
	pause := min(time.Second<<min(row.attempts, 5), deliveryPause)
	return i.DB.Update(settled, func(tx *db.Tx) error {
		return postponeOutbox(settled, tx, row.id, clock.Micros(now.Add(pause)))
	})
}
