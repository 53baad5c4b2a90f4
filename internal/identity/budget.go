package identity

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/identity/phone"
	"strongroom/internal/identity/sms"
)

// Spend bounds what the messages of a day may cost. Amounts are in millionths of the operator's
// currency. Half of the bound is kept for logins from known devices, a quarter for other logins and a
// quarter for registrations, as with Limits.Daily.
type Spend struct {
	Daily int64 // zero means no bound
	// Prices are those of one segment of a message, by the beginning of the number without its plus sign;
	// the longest that fits holds, and "" fits all. A number that none fits costs what the dearest does.
	Prices map[string]int64
}

// Findings keeps what is wrong until it is over. Kinds of this room are identity.…; nothing in them is
// personal.
type Findings interface {
	Raise(ctx context.Context, kind, subject, detail string) error
	Clear(ctx context.Context, kind, subject string) error
}

// findingBudget says that a share of the day's messages, or of their price, is used up.
const findingBudget = "identity.message-budget"

// price returns what a message to the number costs at most, in millionths.
func (s Spend) price(e164 string, text string) int64 {
	return s.segment(e164) * int64(sms.Segments(text))
}

func (s Spend) segment(e164 string) int64 {
	for n := len(e164); n >= 1; n-- {
		if p, ok := s.Prices[e164[1:n]]; ok {
			return p
		}
	}
	return s.dearest()
}

func (s Spend) dearest() (most int64) {
	for _, p := range s.Prices {
		most = max(most, p)
	}
	return most
}

// share returns the class's part of what all messages of a day have.
func (c class) share(daily int64) int64 {
	if c == known {
		return max(1, daily/2)
	}
	return max(1, daily/4)
}

// budget is a bound on the messages of a day, or on their price. It is spread over rows, since one that
// every start writes would have PostgreSQL refuse all but one of those at the same instant.
type budget struct {
	kind, subject string
	limit         int64
	n             int64 // what one message counts
	most          int64 // what the dearest counts
}

// budgetRows is over how many rows a large budget is spread.
const budgetRows = 16

// rows is over how many rows the budget is spread: the fewer, the less of it there is.
func (b budget) rows() int { return int(min(max(b.limit/(100*max(1, b.most)), 1), budgetRows)) }

// blockSize is how many last digits are cut off a number to find its block. Numbers are rented in blocks,
// and whoever is paid for the messages that reach them has whole ones.
const blockSize = 4

// budgets are the bounds beyond those of the number and of who asks. Known devices are bounded by their
// number and by the totals alone: what happens in their country or to their neighbours' numbers must not
// keep them out.
func (i *Identity) budgets(s starter) []budget {
	if isUnreal(s.number) {
		return nil // nothing is sent
	}
	all := []budget{{"messages", string(s.class), s.share(int64(i.Limits.Daily)), 1, 1}}
	if i.Limits.Spend.Daily > 0 {
		all = append(all, budget{"spend", string(s.class), s.share(i.Limits.Spend.Daily), i.messagePrice(s), 2 * i.Limits.Spend.dearest()})
	}
	if s.class == known {
		return all
	}
	if i.Limits.CountryDaily > 0 {
		all = append(all, budget{"messages-country", string(s.class) + phone.Country(s.number), int64(i.Limits.CountryDaily), 1, 1})
	}
	block := s.number[:max(1, len(s.number)-blockSize)]
	return append(all, budget{"messages-block", string(s.class) + block, int64(i.Limits.BlockDaily), 1, 1})
}

// messagePrice is what the dearest of the texts that a start may send costs. Which one it sends must not
// show in what is counted.
func (i *Identity) messagePrice(s starter) int64 {
	code := i.Limits.Spend.price(s.number, i.codeText("000000"))
	if s.class == registering {
		return max(code, i.Limits.Spend.price(s.number, i.knownText()))
	}
	return max(code, i.Limits.Spend.price(s.number, i.attackText()))
}

// row returns a row of the budget with room for n, looking from any row on, and whether there is one. The
// rows have the limit between them.
func (i *Identity) row(ctx context.Context, tx *db.Tx, b budget, n int64, now time.Time) (q counted, ok bool, err error) {
	rows := b.rows()
	first := rand.IntN(rows)
	for k := range rows {
		row := (first + k) % rows
		q.keys = i.quotaKeys(b.kind, b.subject+strconv.Itoa(row))
		q.rate = Rate{(int(b.limit) + row) / rows, 24 * time.Hour}
		if q.counter, err = getCounter(ctx, tx, q.keys, now, q.rate.Per); err != nil {
			return q, false, err
		}
		if q.room(now, q.rate, n) {
			return q, true, nil
		}
	}
	return q, false, nil
}

// exhausted returns the first budget that has no room for a message of s, or nil.
func (i *Identity) exhausted(ctx context.Context, s starter, now time.Time) (empty *budget, err error) {
	err = i.DB.View(ctx, func(tx *db.Tx) error {
		empty = nil
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		for _, b := range i.budgets(s) {
			_, room, err := i.row(ctx, tx, b, b.n, now)
			if err != nil {
				return err
			}
			if !room {
				empty = &b
				return nil
			}
		}
		return nil
	})
	return empty, err
}

// tellExhausted raises a finding about a budget of everybody's. Those of a country or a block are what
// attackers meet, and are counted as refusals.
func (i *Identity) tellExhausted(ctx context.Context, b *budget) {
	if i.Findings == nil || b.kind != "messages" && b.kind != "spend" {
		return
	}
	detail := "The " + b.kind + " of a day for " + b.subject + " are used up, and no more are sent: see who asks for them (strongroom audit tail), and raise sms.daily_cap or sms.daily_spend if they are customers."
	if err := i.Findings.Raise(ctx, findingBudget, b.kind+" "+b.subject, detail); err != nil {
		i.Log.ErrorContext(ctx, "finding not written", "kind", findingBudget, "error", err)
	}
}

// clearBudgets clears the findings of budgets that have room again.
func (i *Identity) clearBudgets(ctx context.Context) error {
	if i.Findings == nil {
		return nil
	}
	now := i.Clock.Now()
	for _, c := range []class{registering, stranger, known} {
		for _, b := range i.budgets(starter{class: c, number: "+"}) {
			if b.kind != "messages" && b.kind != "spend" {
				continue
			}
			room := false
			if err := i.DB.View(ctx, func(tx *db.Tx) (err error) {
				if err := i.catchUp(ctx, tx); err != nil {
					return err
				}
				_, room, err = i.row(ctx, tx, b, b.n, now)
				return err
			}); err != nil {
				return err
			}
			if room {
				if err := i.Findings.Clear(ctx, findingBudget, b.kind+" "+b.subject); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
