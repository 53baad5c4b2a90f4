package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/big"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/identity/attest"
	"strongroom/internal/problem"
)

// What the events of devices say was done, beside those of identity.go.
const (
	ActionDeviceLost   = "identity.device.lost"
	ActionDeviceExpire = "identity.device.expire"
)

// pendingFor is how long a new device waits for approval.
const pendingFor = 24 * time.Hour

// numberTries is how often the number of a new device may be typed. A customer who approves whatever asks
// guesses right three times in a thousand (ASVS 5.0 6.6.4 on push bombing).
const numberTries = 3

var (
	errWrongNumber   = problem.New(problem.Unprocessable, "wrong-number", "This is not the number that the new device shows. If you see no such number, the device is not yours.")
	errDeviceRefused = problem.New(problem.Conflict, "device-refused", "The number was typed wrong too often. The new device is refused for good.")
	errDeviceExpired = problem.New(problem.Conflict, "device-expired", "The new device has waited too long. Log in from it again.")
)

// trustRow is what is known of a device beyond its key.
type trustRow struct {
	device      string
	customer    customer.ID
	attestation string
	expires     int64
	tries       int64
	number      []byte // sealed
}

func trustParts(t *trustRow) [][]byte {
	return [][]byte{[]byte("identity.trust"), []byte(t.device), []byte(t.customer), []byte(t.attestation), decimal(t.expires), decimal(t.tries)}
}

func (r rows) trustOf(ctx context.Context, tx *db.Tx, c customer.ID) (map[string]trustRow, error) {
	found, err := tx.Query(ctx, `
		SELECT device_id, customer_id, attestation, expires_at, tries, number, stamp FROM device_trust WHERE customer_id = $1`, string(c))
	if err != nil {
		return nil, err
	}
	defer found.Close()
	out := make(map[string]trustRow)
	for found.Next() {
		var t trustRow
		var stamp []byte
		if err := found.Scan(&t.device, &t.customer, &t.attestation, &t.expires, &t.tries, &t.number, &stamp); err != nil {
			return nil, err
		}
		if err := r.check(stamp, trustParts(&t)); err != nil {
			return nil, err
		}
		out[t.device] = t
	}
	return out, found.Err()
}

func (r rows) putTrust(ctx context.Context, tx *db.Tx, t trustRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO device_trust (device_id, customer_id, attestation, expires_at, tries, number, stamp) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (device_id) DO UPDATE SET attestation = excluded.attestation, expires_at = excluded.expires_at,
			tries = excluded.tries, number = excluded.number, stamp = excluded.stamp`,
		t.device, string(t.customer), t.attestation, t.expires, t.tries, t.number, r.stamp(trustParts(&t)))
	return err
}

// dropExpired forgets the customer's devices that waited too long. Their keys may ask again.
func (i *Identity) dropExpired(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, now time.Time) error {
	devices, err := i.rows.devicesOf(ctx, tx, c)
	if err != nil {
		return err
	}
	trust, err := i.rows.trustOf(ctx, tx, c)
	if err != nil {
		return err
	}
	for _, d := range devices {
		t, known := trust[d.id]
		if d.status != pending || known && t.expires > clock.Micros(now) {
			continue
		}
		if !known && now.Sub(clock.FromMicros(d.added)) < pendingFor {
			continue // it came before devices had numbers, and gets one when it logs in
		}
		for _, q := range []string{`DELETE FROM device_trust WHERE device_id = $1`, `DELETE FROM device WHERE id = $1`} {
			if _, err := tx.Exec(ctx, q, d.id); err != nil {
				return err
			}
		}
		e := audit.Event{Action: ActionDeviceExpire, Resource: "device " + d.id, Customer: c, Outcome: audit.Granted}
		if err := i.Trail.Record(ctx, tx, by, e); err != nil {
			return err
		}
	}
	return nil
}

// vouched writes down what vouches for the key of a device, if that is more than before.
func (i *Identity) vouched(ctx context.Context, tx *db.Tx, d deviceRow, level attest.Level) error {
	if level == "" {
		return nil
	}
	trust, err := i.rows.trustOf(ctx, tx, d.customer)
	if err != nil {
		return err
	}
	t, ok := trust[d.id]
	if ok && t.attestation == string(level) {
		return nil
	}
	if !ok {
		t = trustRow{device: d.id, customer: d.customer, number: []byte{}}
	}
	t.attestation = string(level)
	return i.rows.putTrust(ctx, tx, t)
}

// await says what the holder of a pending device is told: the number that they type into one of their
// other devices.
func (i *Identity) await(ctx context.Context, tx *db.Tx, by actor.Actor, d deviceRow, now time.Time) (*problem.Problem, error) {
	trust, err := i.rows.trustOf(ctx, tx, d.customer)
	if err != nil {
		return nil, err
	}
	t, ok := trust[d.id]
	if ok && len(t.number) > 0 {
		number, err := i.openOwn(ctx, tx, d.customer, place("device_trust", d.customer, d.id), t.number)
		return devicePending(d.id, string(number)), err
	}
	ring, err := i.Keys.Customer(ctx, tx, d.customer)
	if err != nil {
		return nil, err
	}
	n, err := rand.Int(rand.Reader, big.NewInt(1000))
	if err != nil {
		return nil, err
	}
	number := fmt.Sprintf("%03d", n.Int64())
	t.device, t.customer, t.tries, t.expires = d.id, d.customer, numberTries, clock.Micros(now.Add(pendingFor))
	t.number = ring.Seal(place("device_trust", d.customer, d.id), []byte(number))
	if err := i.rows.putTrust(ctx, tx, t); err != nil {
		return nil, err
	}
	return devicePending(d.id, number), i.tell(ctx, tx, by, d.customer, NoticeDeviceNew, d.id, now)
}

// letIn authorises a pending device for a reason, and tells the customer.
func (i *Identity) letIn(ctx context.Context, tx *db.Tx, by actor.Actor, d deviceRow, reason string, now time.Time) error {
	if err := i.rows.setDeviceStatus(ctx, tx, d, authorised, now); err != nil {
		return err
	}
	e := audit.Event{Action: ActionDeviceApprove, Resource: "device " + d.id, Customer: d.customer, Outcome: audit.Granted, Reason: reason}
	if err := i.Trail.Record(ctx, tx, by, e); err != nil {
		return err
	}
	return i.tell(ctx, tx, by, d.customer, NoticeDeviceApproved, d.id, now)
}

// ApproveDevice lets a pending device of the customer in, when number is the one that it shows. After
// three wrong ones it is refused for good. Approving twice changes nothing.
func (i *Identity) ApproveDevice(ctx context.Context, by actor.Actor, device, number string) error {
	if !id.Valid("dev", device) {
		return i.noDevice(ctx, by, ActionDeviceApprove)
	}
	return i.inSession(ctx, by, ActionDeviceApprove, "device "+device, false, func(tx *db.Tx, e *audit.Event, c customer.ID, now time.Time) error {
		d, t, err := i.waitingDevice(ctx, tx, c, device, now)
		if errors.Is(err, errNotWaiting) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := i.stepUp(ctx, tx, by); err != nil {
			return err
		}
		want, err := i.openOwn(ctx, tx, c, place("device_trust", c, d.id), t.number)
		if err != nil {
			return err
		}
		if subtle.ConstantTimeCompare(want, []byte(number)) == 1 {
			if err := i.rows.setDeviceStatus(ctx, tx, d, authorised, now); err != nil {
				return err
			}
			return i.tell(ctx, tx, by, c, NoticeDeviceApproved, d.id, now)
		}
		t.tries--
		if err := i.rows.putTrust(ctx, tx, t); err != nil {
			return err
		}
		if t.tries > 0 {
			e.Deny(errWrongNumber)
			return nil
		}
		e.Deny(errDeviceRefused)
		if err := i.revoke(ctx, tx, by, d, now); err != nil {
			return err
		}
		return i.tell(ctx, tx, by, c, NoticeDeviceRefused, d.id, now)
	})
}

// noDevice refuses what cannot be the name of a device.
func (i *Identity) noDevice(ctx context.Context, by actor.Actor, action string) error {
	c, err := caller(by)
	if err != nil {
		return err
	}
	return i.Trail.Deny(ctx, by, audit.Event{Action: action, Resource: "device", Customer: c}, errDeviceNotFound)
}

// errNotWaiting says that a device is authorised already.
var errNotWaiting = errors.New("identity: the device does not wait for approval")

// waitingDevice finds a device that waits for approval.
func (i *Identity) waitingDevice(ctx context.Context, tx *db.Tx, c customer.ID, device string, now time.Time) (d deviceRow, t trustRow, err error) {
	d, ok, err := i.rows.deviceByID(ctx, tx, c, device)
	if err != nil {
		return d, t, err
	}
	switch {
	case !ok:
		return d, t, errDeviceNotFound
	case d.status == revoked:
		return d, t, errDeviceRevoked
	case d.status == authorised:
		return d, t, errNotWaiting
	}
	trust, err := i.rows.trustOf(ctx, tx, c)
	if err != nil {
		return d, t, err
	}
	t, ok = trust[d.id]
	if !ok || len(t.number) == 0 || t.expires <= clock.Micros(now) {
		return d, t, errDeviceExpired
	}
	return d, t, nil
}

// ReportLost shuts a device out at once, with its sessions, and tells the customer. Unlike revoking, it
// may be the last one, or the one that reports itself: what is lost must not go on.
func (i *Identity) ReportLost(ctx context.Context, by actor.Actor, device string) error {
	return i.changeDevice(ctx, by, ActionDeviceLost, device, func(tx *db.Tx, c customer.ID, d deviceRow, now time.Time) error {
		return i.lose(ctx, tx, by, d, now)
	})
}

func (i *Identity) lose(ctx context.Context, tx *db.Tx, by actor.Actor, d deviceRow, now time.Time) error {
	if d.status == revoked {
		return nil
	}
	if err := i.revoke(ctx, tx, by, d, now); err != nil {
		return err
	}
	return i.tell(ctx, tx, by, d.customer, NoticeDeviceLost, d.id, now)
}

// Risk is a coarse judgement of a device, for the customer and for whoever decides what it may do.
type Risk string

// The risks.
const (
	RiskLow    Risk = "low"
	RiskMedium Risk = "medium" // nothing vouches for its key, it is new, or it has not been seen for long
	RiskHigh   Risk = "high"   // it waits for approval, or is shut out
)

const (
	youngDevice = 24 * time.Hour
	staleDevice = 90 * 24 * time.Hour
)

func riskOf(d deviceRow, t trustRow, now time.Time) Risk {
	switch {
	case d.status != authorised:
		return RiskHigh
	case t.attestation == "", now.Sub(clock.FromMicros(d.added)) < youngDevice, now.Sub(clock.FromMicros(d.seen)) > staleDevice:
		return RiskMedium
	}
	return RiskLow
}
