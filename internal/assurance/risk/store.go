package risk

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/db"
)

const riskColumns = `id, asset, threat, likelihood_before, impact_before, likelihood_after, impact_after,
	owner, treatment, measures, claims, review_at, reviewed_at, reviewed_by`

// row is what sql.Row and sql.Rows have in common.
type row interface{ Scan(to ...any) error }

func scanRisk(r row) (k Risk, err error) {
	var claims string
	var review int64
	var reviewed sql.NullInt64
	err = r.Scan(&k.ID, &k.Asset, &k.Threat, &k.Before.Likelihood, &k.Before.Impact, &k.After.Likelihood, &k.After.Impact,
		&k.Owner, &k.Treatment, &k.Measures, &claims, &review, &reviewed, &k.ReviewedBy)
	k.Claims, k.ReviewAt, k.ReviewedAt = strings.Fields(claims), clock.FromMicros(review), instant(reviewed)
	return k, err
}

func instant(us sql.NullInt64) *time.Time {
	if !us.Valid {
		return nil
	}
	t := clock.FromMicros(us.Int64)
	return &t
}

func micros(t *time.Time) sql.NullInt64 {
	if t == nil {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: clock.Micros(*t), Valid: true}
}

func countRisks(ctx context.Context, tx *db.Tx) (n int, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM risk`).Scan(&n)
	return n, err
}

func selectRisks(ctx context.Context, tx *db.Tx) ([]Risk, error) {
	rows, err := tx.Query(ctx, `SELECT `+riskColumns+` FROM risk ORDER BY id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []Risk
	for rows.Next() {
		k, err := scanRisk(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, k)
	}
	return list, rows.Err()
}

func selectRisk(ctx context.Context, tx *db.Tx, id string) (Risk, bool, error) {
	k, err := scanRisk(tx.QueryRow(ctx, `SELECT `+riskColumns+` FROM risk WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return Risk{}, false, nil
	}
	return k, err == nil, err
}

func putRisk(ctx context.Context, tx *db.Tx, k Risk) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO risk (`+riskColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		ON CONFLICT (id) DO UPDATE SET asset = excluded.asset, threat = excluded.threat,
			likelihood_before = excluded.likelihood_before, impact_before = excluded.impact_before,
			likelihood_after = excluded.likelihood_after, impact_after = excluded.impact_after,
			owner = excluded.owner, treatment = excluded.treatment, measures = excluded.measures, claims = excluded.claims,
			review_at = excluded.review_at, reviewed_at = excluded.reviewed_at, reviewed_by = excluded.reviewed_by`,
		k.ID, k.Asset, k.Threat, k.Before.Likelihood, k.Before.Impact, k.After.Likelihood, k.After.Impact,
		k.Owner, k.Treatment, k.Measures, strings.Join(k.Claims, " "), clock.Micros(k.ReviewAt), micros(k.ReviewedAt), k.ReviewedBy)
	return err
}

func selectDecisions(ctx context.Context, tx *db.Tx) (map[string]decision, error) {
	rows, err := tx.Query(ctx, `SELECT control, applies, justification, decided_at, decided_by FROM applicability`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make(map[string]decision)
	for rows.Next() {
		var control string
		var applies int
		var d decision
		if err := rows.Scan(&control, &applies, &d.justification, &d.at, &d.by); err != nil {
			return nil, err
		}
		d.applies = applies != 0
		all[control] = d
	}
	return all, rows.Err()
}

func putDecision(ctx context.Context, tx *db.Tx, control string, d decision) error {
	applies := 0
	if d.applies {
		applies = 1
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO applicability (control, applies, justification, decided_at, decided_by) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (control) DO UPDATE SET applies = excluded.applies, justification = excluded.justification,
			decided_at = excluded.decided_at, decided_by = excluded.decided_by`,
		control, applies, d.justification, d.at, d.by)
	return err
}

const actionColumns = `id, action, owner, risk, due_at, state, made_at, ended_at, remark`

func scanAction(r row) (a Action, err error) {
	var due, made int64
	var ended sql.NullInt64
	err = r.Scan(&a.ID, &a.Action, &a.Owner, &a.Risk, &due, &a.State, &made, &ended, &a.Remark)
	a.Due, a.Made, a.Ended = clock.FromMicros(due), clock.FromMicros(made), instant(ended)
	return a, err
}

func countActions(ctx context.Context, tx *db.Tx) (n int, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM improvement WHERE state = $1`, Open).Scan(&n)
	return n, err
}

// selectActions returns those that are open, what is due first coming first, and with all those that have ended after them.
func selectActions(ctx context.Context, tx *db.Tx, all bool) ([]Action, error) {
	every := 0
	if all {
		every = 1
	}
	rows, err := tx.Query(ctx, `
		SELECT `+actionColumns+` FROM improvement WHERE state = $1 OR $2 = 1
		ORDER BY CASE WHEN state = $1 THEN 0 ELSE 1 END, due_at, id LIMIT $3`, Open, every, 2*MaxActions)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []Action{}
	for rows.Next() {
		a, err := scanAction(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, rows.Err()
}

func selectAction(ctx context.Context, tx *db.Tx, id string) (Action, bool, error) {
	a, err := scanAction(tx.QueryRow(ctx, `SELECT `+actionColumns+` FROM improvement WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return Action{}, false, nil
	}
	return a, err == nil, err
}

func putAction(ctx context.Context, tx *db.Tx, a Action) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO improvement (`+actionColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, ended_at = excluded.ended_at, remark = excluded.remark`,
		a.ID, a.Action, a.Owner, a.Risk, clock.Micros(a.Due), a.State, clock.Micros(a.Made), micros(a.Ended), a.Remark)
	return err
}
