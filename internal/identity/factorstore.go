package identity

import (
	"context"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// The kinds and the states of a factor.
const (
	factorTOTP    = "totp"
	factorPasskey = "passkey"

	factorPending = "pending"
	factorActive  = "active"
)

// factorRow is a factor as it is stored.
type factorRow struct {
	id       string
	customer customer.ID
	kind     string
	status   string
	step     int64
	made     int64
	used     int64
	sealed   []byte
}

func factorParts(f *factorRow) [][]byte {
	return [][]byte{[]byte("identity.factor"), []byte(f.id), []byte(f.customer), []byte(f.kind), []byte(f.status), decimal(f.step), decimal(f.made)}
}

func (r rows) factorsOf(ctx context.Context, tx *db.Tx, c customer.ID) ([]factorRow, error) {
	found, err := tx.Query(ctx, `
		SELECT id, customer_id, kind, status, step, made_at, used_at, sealed, stamp FROM factor WHERE customer_id = $1 ORDER BY id`, string(c))
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var out []factorRow
	for found.Next() {
		var f factorRow
		var stamp []byte
		if err := found.Scan(&f.id, &f.customer, &f.kind, &f.status, &f.step, &f.made, &f.used, &f.sealed, &stamp); err != nil {
			return nil, err
		}
		if err := r.check(stamp, factorParts(&f)); err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, found.Err()
}

func (r rows) putFactor(ctx context.Context, tx *db.Tx, f factorRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO factor (id, customer_id, kind, status, step, made_at, used_at, sealed, stamp)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (id) DO UPDATE SET status = excluded.status, step = excluded.step, made_at = excluded.made_at,
			used_at = excluded.used_at, sealed = excluded.sealed, stamp = excluded.stamp`,
		f.id, string(f.customer), f.kind, f.status, f.step, f.made, f.used, f.sealed, r.stamp(factorParts(&f)))
	return err
}

func deleteFactor(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `DELETE FROM factor WHERE id = $1`, id)
	return err
}

// smsRule says whether a customer is sent codes by SMS. The zero value: yes.
type smsRule struct {
	off  bool
	held int64 // until when, in Unix microseconds
}

func smsRuleParts(c customer.ID, s smsRule) [][]byte {
	return [][]byte{[]byte("identity.sms-rule"), []byte(c), decimal(number01(s.off)), decimal(s.held)}
}

func number01(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func (r rows) smsRuleOf(ctx context.Context, tx *db.Tx, c customer.ID) (s smsRule, err error) {
	var off int64
	var stamp []byte
	ok, err := none(tx.QueryRow(ctx, `SELECT off, held_until, stamp FROM sms_rule WHERE customer_id = $1`, string(c)).Scan(&off, &s.held, &stamp))
	if !ok || err != nil {
		return smsRule{}, err
	}
	s.off = off != 0
	return s, r.check(stamp, smsRuleParts(c, s))
}

func (r rows) putSMSRule(ctx context.Context, tx *db.Tx, c customer.ID, s smsRule) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO sms_rule (customer_id, off, held_until, stamp) VALUES ($1, $2, $3, $4)
		ON CONFLICT (customer_id) DO UPDATE SET off = excluded.off, held_until = excluded.held_until, stamp = excluded.stamp`,
		string(c), number01(s.off), s.held, r.stamp(smsRuleParts(c, s)))
	return err
}

// why says why no code may be sent at now, or "".
func (s smsRule) why(now time.Time) string {
	switch {
	case s.off:
		return "sms-off"
	case s.held > clock.Micros(now):
		return "sim-changed"
	}
	return ""
}
