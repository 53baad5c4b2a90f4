package identity

import (
	"context"
	"fmt"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// Exported is what this room knows of a customer, for the customer to take elsewhere. What secures the
// account, hashes, keys and tokens, is not in it.
type Exported struct {
	Number   string            `json:"number"` // E.164
	Since    time.Time         `json:"since"`
	Devices  []ExportedDevice  `json:"devices"`
	Sessions []ExportedSession `json:"sessions"`
}

// ExportedDevice is a device, revoked ones included.
type ExportedDevice struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Status   string    `json:"status"`
	AddedAt  time.Time `json:"added_at"`
	LastSeen time.Time `json:"last_seen"`
}

// ExportedSession is a session that has not been forgotten yet.
type ExportedSession struct {
	ID      string    `json:"id"`
	Device  string    `json:"device"`
	Began   time.Time `json:"began"`
	Used    time.Time `json:"used"` // to the minute
	Ends    time.Time `json:"ends"`
	Revoked bool      `json:"revoked"`
}

// ExportCustomer returns an Exported of c as it stands in tx, or nil for a customer without an account. A
// number or a name that does not open fails all of it: an export that leaves something out would be a lie.
// The caller's event covers it.
func (e Eraser) ExportCustomer(ctx context.Context, tx *db.Tx, c customer.ID) (any, error) {
	_, number, exists, err := e.room.accountOf(ctx, tx, c)
	if err != nil || !exists {
		return nil, err
	}
	if number == "" {
		return nil, fmt.Errorf("identity: the number of customer %s does not open", c)
	}
	ring, err := e.room.Keys.Customer(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	out := Exported{Number: number, Devices: []ExportedDevice{}, Sessions: []ExportedSession{}}
	var since int64
	if err := tx.QueryRow(ctx, `SELECT made_at FROM account WHERE customer_id = $1`, string(c)).Scan(&since); err != nil {
		return nil, err
	}
	out.Since = clock.FromMicros(since)
	devices, err := e.room.rows.devicesOf(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if ring, err = e.room.Keys.Holding(ctx, tx, c, ring, d.name); err != nil {
			return nil, err
		}
		name, err := ring.Open(place("device", c, d.id), d.name)
		if err != nil {
			return nil, fmt.Errorf("identity: the name of device %s: %w", d.id, err)
		}
		out.Devices = append(out.Devices, ExportedDevice{d.id, string(name), d.status, clock.FromMicros(d.added), clock.FromMicros(d.seen)})
	}
	rows, err := tx.Query(ctx, `
		SELECT id, device_id, made_at, used_at, expires_at, CASE WHEN revoked_at IS NULL THEN 0 ELSE 1 END FROM session
		WHERE customer_id = $1 ORDER BY made_at, id`, string(c))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var s ExportedSession
		var began, used, ends int64
		var revoked int
		if err := rows.Scan(&s.ID, &s.Device, &began, &used, &ends, &revoked); err != nil {
			return nil, err
		}
		s.Began, s.Used, s.Ends, s.Revoked = clock.FromMicros(began), clock.FromMicros(used), clock.FromMicros(ends), revoked == 1
		out.Sessions = append(out.Sessions, s)
	}
	return out, rows.Err()
}
