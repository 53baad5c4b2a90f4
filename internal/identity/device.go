package identity

import (
	"context"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
)

// Device is one of a customer's devices. One key may be a device of several customers who share a
// telephone; for each of them it is a device of its own.
type Device struct {
	ID, Name, Status string
	Added, LastSeen  time.Time // LastSeen to the hour
	Current          bool
	Attestation      string // what vouches for its key, or ""
	Risk             Risk
}

func (i *Identity) deviceName(ctx context.Context, tx *db.Tx, d deviceRow) (string, error) {
	ring, err := i.Keys.Customer(ctx, tx, d.customer)
	if err != nil {
		return "", err
	}
	if ring, err = i.Keys.Holding(ctx, tx, d.customer, ring, d.name); err != nil {
		return "", err
	}
	name, err := ring.Open(place("device", d.customer, d.id), d.name)
	return string(name), err
}

// Devices lists the customer's devices, oldest first.
func (i *Identity) Devices(ctx context.Context, by actor.Actor) (out []Device, err error) {
	c, err := caller(by)
	if err != nil {
		return nil, err
	}
	event := audit.Event{Action: ActionDeviceList, Resource: "devices", Customer: c}
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) error {
		out = []Device{}
		all, err := i.rows.devicesOf(ctx, tx, c)
		if err != nil {
			return err
		}
		trust, err := i.rows.trustOf(ctx, tx, c)
		if err != nil {
			return err
		}
		now := i.Clock.Now()
		for _, d := range all {
			name, err := i.deviceName(ctx, tx, d)
			if err != nil {
				return err
			}
			out = append(out, Device{
				ID: d.id, Name: name, Status: d.status, Added: clock.FromMicros(d.added), LastSeen: clock.FromMicros(d.seen).Truncate(time.Hour),
				Current: d.id == by.Device, Attestation: trust[d.id].attestation, Risk: riskOf(d, trust[d.id], now),
			})
		}
		return nil
	})
	return out, err
}

// RevokeDevice shuts a device of the customer out for good and ends its sessions at once. The last
// authorised device stays: without it nobody could let another one in.
func (i *Identity) RevokeDevice(ctx context.Context, by actor.Actor, device string) error {
	return i.changeDevice(ctx, by, ActionDeviceRevoke, device, func(tx *db.Tx, c customer.ID, d deviceRow, now time.Time) error {
		if d.status == revoked {
			return nil
		}
		if d.status == authorised {
			all, err := i.rows.devicesOf(ctx, tx, c)
			if err != nil {
				return err
			}
			others := 0
			for _, o := range all {
				if o.status == authorised && o.id != d.id {
					others++
				}
			}
			if others == 0 {
				return errLastDevice
			}
		}
		return i.revoke(ctx, tx, by, d, now)
	})
}

// revoke shuts a device out and ends its sessions.
func (i *Identity) revoke(ctx context.Context, tx *db.Tx, by actor.Actor, d deviceRow, now time.Time) error {
	if err := i.rows.setDeviceStatus(ctx, tx, d, revoked, now); err != nil {
		return err
	}
	ended, err := revokeDeviceSessions(ctx, tx, d.id, now)
	if err != nil {
		return err
	}
	for _, s := range ended {
		e := audit.Event{Action: ActionSessionRevoke, Resource: "session " + s, Customer: d.customer, Outcome: audit.Granted, Reason: "device-revoked"}
		if err := i.Trail.Record(ctx, tx, by, e); err != nil {
			return err
		}
	}
	return nil
}

// changeDevice runs change on a device of the calling customer. That the caller's own device is still
// authorised is looked at again inside the transaction: two devices may be revoking each other.
func (i *Identity) changeDevice(ctx context.Context, by actor.Actor, action, device string, change func(*db.Tx, customer.ID, deviceRow, time.Time) error) error {
	c, err := caller(by)
	if err != nil {
		return err
	}
	event := audit.Event{Action: action, Resource: "device", Customer: c}
	if !id.Valid("dev", device) {
		return i.Trail.Deny(ctx, by, event, errDeviceNotFound)
	}
	event.Resource = "device " + device
	return i.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) error {
		own, ok, err := i.rows.deviceByID(ctx, tx, c, by.Device)
		if err != nil {
			return err
		}
		if !ok || own.status != authorised {
			return errSessionRevoked
		}
		d, ok, err := i.rows.deviceByID(ctx, tx, c, device)
		if err != nil {
			return err
		}
		if !ok {
			return errDeviceNotFound
		}
		return change(tx, c, d, i.Clock.Now())
	})
}
