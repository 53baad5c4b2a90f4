package identity

import (
	"context"
	"fmt"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/db"
)

// attackText tells a customer that somebody was shut out of their account.
func (i *Identity) attackText() string {
	return fmt.Sprintf("Somebody tried to get into your %s account and was shut out. Your own devices are not affected. If it was not you, never tell anyone your codes.", i.Brand)
}

// warnings is how often a customer is warned: whoever attacks must not be able to annoy, or to spend.
var warnings = Rate{1, 24 * time.Hour}

// mayWarn counts a warning to the owner of the number, if there is cause for one, and makes the same
// write if there is none. It reports whether to warn.
func (i *Identity) mayWarn(ctx context.Context, tx *db.Tx, number string, cause bool, now time.Time) (bool, error) {
	n := int64(0)
	if cause {
		n = 1
	}
	keys := i.quotaKeys("warnings", number)
	c, err := getCounter(ctx, tx, keys, now, warnings.Per)
	if err != nil {
		return false, err
	}
	ok := c.add(now, warnings, n)
	return ok && cause, putCounter(ctx, tx, keys, c, warnings.Per)
}

// warn tells the owner of the account, when there is cause. The same rows are written when there is none,
// so that who guesses one-time codes does not learn from the time whether the private code was right.
func (i *Identity) warn(ctx context.Context, tx *db.Tx, by actor.Actor, state challenge, cause bool, now time.Time) error {
	if state.Phone == "" {
		return nil // it began before this version
	}
	s := starter{class: stranger, number: state.Phone, key: by.Key, from: network(by.Address)}
	if state.Known {
		s.class = known
	}
	cause, err := i.mayWarn(ctx, tx, s.number, cause, now)
	if err != nil {
		return err
	}
	send, err := i.mayMessage(ctx, tx, s, cause, now)
	if err != nil {
		return err
	}
	l := letter{}
	if send {
		l = letter{To: s.number, Text: i.attackText(), Customer: state.Customer, Known: state.Known}
	}
	return i.post(ctx, tx, l, now)
}

// The delays of a network whose logins come to nothing. They hold for devices that are not known, over all
// accounts, and are told to whoever meets them: they depend on the network alone.
const (
	firstDelay   = time.Minute // doubled with each login that comes to nothing
	longestDelay = time.Hour
	delayMemory  = 24 * time.Hour // without any login, then all is forgotten
)

// networkDelay returns how long a network has to wait before it may start another login.
func (l *lane) networkDelay(now time.Time) time.Duration {
	return max(0, time.UnixMicro(l.blocked).Sub(now))
}

// chargeNetwork counts a login that a device which is not known starts from a network, until refundNetwork
// takes it back; beyond the free ones each begins a delay. Whether the private code was right does not show
// here, since every start counts and only a complete login is taken back.
func (l *lane) chargeNetwork(now time.Time, free int64) {
	if now.Sub(time.UnixMicro(l.blocked)) > delayMemory {
		*l = lane{older: l.older}
	}
	l.failures++
	l.blocked = max(l.blocked, now.UnixMicro())
	if over := l.failures - free; over >= 0 {
		l.blocked = now.Add(min(firstDelay<<min(over, 6), longestDelay)).UnixMicro()
	}
}

func (l *lane) refundNetwork(now time.Time) {
	l.failures = max(0, l.failures-1)
	l.blocked = min(l.blocked, now.UnixMicro())
}

func (i *Identity) networkKeys(from string) [][]byte {
	return valuesOf(i.Keys.BlindIndexes("identity.lane", []byte("network\x00"+from)))
}

// countNetwork counts a login from by's network.
func (i *Identity) countNetwork(ctx context.Context, tx *db.Tx, by actor.Actor, now time.Time) error {
	keys := i.networkKeys(network(by.Address))
	l, err := lockLane(ctx, tx, keys, now)
	if err != nil {
		return err
	}
	l.chargeNetwork(now, int64(i.Limits.Logins.Limit))
	return putLane(ctx, tx, keys, l, now)
}

// freeNetwork takes back the charge of a login that was completed.
func (i *Identity) freeNetwork(ctx context.Context, tx *db.Tx, by actor.Actor, now time.Time) error {
	keys := i.networkKeys(network(by.Address))
	l, err := getLane(ctx, tx, keys)
	if err != nil || l.failures == 0 {
		return err
	}
	l.refundNetwork(now)
	return putLane(ctx, tx, keys, l, now)
}
