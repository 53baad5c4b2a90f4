package identity

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// Exported is what this room knows of a customer, for the customer to take elsewhere. What secures the
// account, hashes, keys, secrets and tokens, is not in it. Times that do not apply are left out.
type Exported struct {
	Number        string            `json:"number"` // E.164
	Since         time.Time         `json:"since"`
	CodeChangedAt time.Time         `json:"private_code_changed_at,omitzero"`
	Devices       []ExportedDevice  `json:"devices"`
	Sessions      []ExportedSession `json:"sessions"`
	SecondSteps   []ExportedStep    `json:"second_steps"` // beside codes by SMS
	SMSOff        bool              `json:"sms_off"`      // the customer wants no codes by SMS
	SMSHeldUntil  time.Time         `json:"sms_held_until,omitzero"`
	NumberChange  *ExportedNumber   `json:"number_change,omitempty"` // that waits out its day
	CodeReset     *ExportedReset    `json:"private_code_reset,omitempty"`
	Payments      []ExportedPayment `json:"payments"`
	Notices       []ExportedNotice  `json:"notices"`
	Assistance    []ExportedWord    `json:"assistance"`
}

// ExportedDevice is a device, revoked ones included.
type ExportedDevice struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Status      string    `json:"status"`
	AddedAt     time.Time `json:"added_at"`
	DecidedAt   time.Time `json:"decided_at,omitzero"` // when it was authorised or revoked
	LastSeen    time.Time `json:"last_seen"`
	Attestation string    `json:"attestation,omitempty"`    // what vouches for its key
	WaitsUntil  time.Time `json:"waits_until,omitzero"`     // a pending one, for approval
	TriesLeft   int64     `json:"approvals_left,omitempty"` // of its number
}

// ExportedSession is a session that has not been forgotten yet.
type ExportedSession struct {
	ID        string    `json:"id"`
	Device    string    `json:"device"`
	Address   string    `json:"address,omitempty"` // of the login
	Scope     string    `json:"scope"`
	ACR       string    `json:"acr,omitempty"`
	Began     time.Time `json:"began"`
	Used      time.Time `json:"used"` // to the minute
	IdleEnds  time.Time `json:"idle_ends"`
	Ends      time.Time `json:"ends"`
	Revoked   bool      `json:"revoked"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// ExportedStep is an authenticator app or a passkey.
type ExportedStep struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Status  string    `json:"status"`
	AddedAt time.Time `json:"added_at"`
	UsedAt  time.Time `json:"used_at,omitzero"`
}

// ExportedNumber is a change of number that waits.
type ExportedNumber struct {
	Number string    `json:"number"`
	DueAt  time.Time `json:"due_at"`
}

// ExportedReset is a forgotten private code that may be chosen anew.
type ExportedReset struct {
	Device  string    `json:"device"`
	AskedAt time.Time `json:"asked_at"`
	FromAt  time.Time `json:"from"`
	UntilAt time.Time `json:"until"`
}

// ExportedPayment is a payment that a service asked the customer to authorise.
type ExportedPayment struct {
	ID        string    `json:"id"`
	Service   string    `json:"service"`
	Terms     Terms     `json:"terms"`
	Status    string    `json:"status"`
	Session   string    `json:"session,omitempty"`
	DecidedAt time.Time `json:"decided_at,omitzero"`
	Expires   time.Time `json:"expires"`
}

// ExportedNotice is what the customer was told.
type ExportedNotice struct {
	Kind   string    `json:"kind"`
	Device string    `json:"device,omitempty"`
	At     time.Time `json:"at"`
}

// ExportedWord is a member of staff's word for the customer, which waits for a second. Who gave it is theirs.
type ExportedWord struct {
	For   string    `json:"for"`
	Until time.Time `json:"until"`
}

// instant is a time that may be missing.
func instant(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return clock.FromMicros(us)
}

// ExportCustomer returns an Exported of c as it stands in tx, or nil for a customer without an account. A
// number or a name that does not open fails all of it: an export that leaves something out would be a lie.
// The caller's event covers it.
func (e Eraser) ExportCustomer(ctx context.Context, tx *db.Tx, c customer.ID) (any, error) {
	i := e.room
	_, number, exists, err := i.accountOf(ctx, tx, c)
	if err != nil || !exists {
		return nil, err
	}
	if number == "" {
		return nil, fmt.Errorf("identity: the number of customer %s does not open", c)
	}
	out := Exported{Number: number}
	var since int64
	if err := tx.QueryRow(ctx, `SELECT made_at FROM account WHERE customer_id = $1`, string(c)).Scan(&since); err != nil {
		return nil, err
	}
	out.Since = clock.FromMicros(since)
	changed := int64(0)
	if _, err := none(tx.QueryRow(ctx, `SELECT changed_at FROM code_change WHERE customer_id = $1`, string(c)).Scan(&changed)); err != nil {
		return nil, err
	}
	out.CodeChangedAt = instant(changed)
	if out.Devices, err = i.exportDevices(ctx, tx, c); err != nil {
		return nil, err
	}
	if out.Sessions, err = i.exportSessions(ctx, tx, c); err != nil {
		return nil, err
	}
	factors, err := i.rows.factorsOf(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	out.SecondSteps = []ExportedStep{}
	for _, f := range factors {
		out.SecondSteps = append(out.SecondSteps, ExportedStep{f.id, f.kind, f.status, instant(f.made), instant(f.used)})
	}
	rule, err := i.rows.smsRuleOf(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	out.SMSOff, out.SMSHeldUntil = rule.off, instant(rule.held)
	if n, ok, err := i.rows.numberOf(ctx, tx, c); err != nil {
		return nil, err
	} else if ok {
		fresh, err := i.openOwn(ctx, tx, c, place("number_change", c, "phone"), n.phone)
		if err != nil {
			return nil, fmt.Errorf("identity: the new number of customer %s: %w", c, err)
		}
		out.NumberChange = &ExportedNumber{string(fresh), instant(n.due)}
	}
	if r, ok, err := i.rows.reset(ctx, tx, c); err != nil {
		return nil, err
	} else if ok {
		out.CodeReset = &ExportedReset{r.device, instant(r.made), instant(r.ready), instant(r.expires)}
	}
	if out.Payments, err = i.exportPayments(ctx, tx, c); err != nil {
		return nil, err
	}
	out.Notices, err = list(ctx, tx, `SELECT kind, device_id, made_at FROM notice WHERE customer_id = $1 ORDER BY id`, c,
		func(rows *sql.Rows) (n ExportedNotice, err error) {
			var made int64
			err = rows.Scan(&n.Kind, &n.Device, &made)
			n.At = instant(made)
			return n, err
		})
	if err != nil {
		return nil, err
	}
	out.Assistance, err = list(ctx, tx, `SELECT subject, expires_at FROM vouch WHERE customer_id = $1 ORDER BY subject, operator`, c,
		func(rows *sql.Rows) (w ExportedWord, err error) {
			var until int64
			err = rows.Scan(&w.For, &until)
			w.For, _, _ = strings.Cut(w.For, " cus_") // a change of number goes on with keyed hashes
			w.Until = instant(until)
			return w, err
		})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// list reads all rows of a query about a customer.
func list[T any](ctx context.Context, tx *db.Tx, query string, c customer.ID, scan func(*sql.Rows) (T, error)) ([]T, error) {
	rows, err := tx.Query(ctx, query, string(c))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := []T{}
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

func (i *Identity) exportDevices(ctx context.Context, tx *db.Tx, c customer.ID) ([]ExportedDevice, error) {
	devices, err := i.rows.devicesOf(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	trust, err := i.rows.trustOf(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	type decision struct {
		device string
		at     sql.NullInt64
	}
	decisions, err := list(ctx, tx, `SELECT id, decided_at FROM device WHERE customer_id = $1`, c, func(rows *sql.Rows) (d decision, err error) {
		return d, rows.Scan(&d.device, &d.at)
	})
	if err != nil {
		return nil, err
	}
	out := []ExportedDevice{}
	for _, d := range devices {
		name, err := i.openOwn(ctx, tx, c, place("device", c, d.id), d.name)
		if err != nil {
			return nil, fmt.Errorf("identity: the name of device %s: %w", d.id, err)
		}
		one := ExportedDevice{ID: d.id, Name: string(name), Status: d.status, AddedAt: instant(d.added), LastSeen: instant(d.seen), Attestation: trust[d.id].attestation}
		if n := slices.IndexFunc(decisions, func(x decision) bool { return x.device == d.id }); n >= 0 {
			one.DecidedAt = instant(decisions[n].at.Int64)
		}
		if d.status == pending {
			one.WaitsUntil, one.TriesLeft = instant(trust[d.id].expires), trust[d.id].tries
		}
		out = append(out, one)
	}
	return out, nil
}

func (i *Identity) exportSessions(ctx context.Context, tx *db.Tx, c customer.ID) ([]ExportedSession, error) {
	type sealed struct {
		ExportedSession
		origin []byte
	}
	found, err := list(ctx, tx, `
		SELECT id, device_id, scope, acr, made_at, used_at, idle_expires_at, expires_at, revoked_at, origin FROM session
		WHERE customer_id = $1 ORDER BY made_at, id`, c, func(rows *sql.Rows) (s sealed, err error) {
		var began, used, idle, ends int64
		var revoked sql.NullInt64
		err = rows.Scan(&s.ID, &s.Device, &s.Scope, &s.ACR, &began, &used, &idle, &ends, &revoked, &s.origin)
		s.Began, s.Used, s.IdleEnds, s.Ends = instant(began), instant(used), instant(idle), instant(ends)
		s.Revoked, s.RevokedAt = revoked.Valid, instant(revoked.Int64)
		return s, err
	})
	if err != nil {
		return nil, err
	}
	out := []ExportedSession{}
	for _, s := range found {
		if len(s.origin) > 0 {
			address, err := i.openOwn(ctx, tx, c, place("session", c, s.ID), s.origin)
			if err != nil {
				return nil, fmt.Errorf("identity: the address of session %s: %w", s.ID, err)
			}
			s.Address = string(address)
		}
		out = append(out, s.ExportedSession)
	}
	return out, nil
}

func (i *Identity) exportPayments(ctx context.Context, tx *db.Tx, c customer.ID) ([]ExportedPayment, error) {
	type sealed struct {
		ExportedPayment
		terms []byte
	}
	found, err := list(ctx, tx, `SELECT id, service, terms, status, session_id, decided_at, expires_at FROM payment WHERE customer_id = $1 ORDER BY id`, c,
		func(rows *sql.Rows) (p sealed, err error) {
			var decided, expires int64
			err = rows.Scan(&p.ID, &p.Service, &p.terms, &p.Status, &p.Session, &decided, &expires)
			p.DecidedAt, p.Expires = instant(decided), instant(expires)
			return p, err
		})
	if err != nil {
		return nil, err
	}
	out := []ExportedPayment{}
	for _, p := range found {
		if err := i.openBlank("payment", p.ID, p.terms, &p.Terms); err != nil {
			return nil, fmt.Errorf("identity: the terms of payment %s: %w", p.ID, err)
		}
		out = append(out, p.ExportedPayment)
	}
	return out, nil
}
