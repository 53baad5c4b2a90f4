package assurance

import (
	"context"
	"encoding/json"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/db"
)

func insertEvidence(ctx context.Context, tx *db.Tx, e Evidence, body string) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO evidence (id, check_id, version, observed_at, valid_until, took, outcome, body, event_id)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		e.ID, e.Check, e.Version, clock.Micros(e.ObservedAt), clock.Micros(e.ValidUntil), e.Took.Microseconds(),
		string(e.Outcome), body, e.Event)
	return err
}

// selectNewest returns the newest evidence of each check.
func selectNewest(ctx context.Context, tx *db.Tx) (map[string]Evidence, error) {
	rows, err := tx.Query(ctx, `
		SELECT e.id, e.check_id, e.version, e.observed_at, e.valid_until, e.took, e.body, e.event_id FROM evidence e
		JOIN (SELECT check_id, MAX(observed_at) AS newest FROM evidence WHERE observed_at > $1 GROUP BY check_id) n
			ON n.check_id = e.check_id AND n.newest = e.observed_at
		ORDER BY e.id`, 0)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make(map[string]Evidence)
	for rows.Next() {
		var e Evidence
		var observed, until, took int64
		var body string
		if err := rows.Scan(&e.ID, &e.Check, &e.Version, &observed, &until, &took, &body, &e.Event); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(body), &e.Observation); err != nil {
			return nil, err
		}
		e.ObservedAt, e.ValidUntil, e.Took = clock.FromMicros(observed), clock.FromMicros(until), time.Duration(took)*time.Microsecond
		all[e.Check] = e
	}
	return all, rows.Err()
}

// hasEvidence reports whether the evidence of a check's run is there, by the event of the run.
func hasEvidence(ctx context.Context, tx *db.Tx, name, event string) (bool, error) {
	var n int64
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM evidence WHERE check_id = $1 AND event_id = $2`, name, event).Scan(&n)
	return n > 0, err
}

// stateSince is a claim's state and when it came to be so.
type stateSince struct {
	State State
	Since time.Time
}

func selectStates(ctx context.Context, tx *db.Tx) (map[string]stateSince, error) {
	rows, err := tx.Query(ctx, `
		SELECT s.claim_id, s.state, s.since FROM claim_state s
		JOIN (SELECT claim_id, MAX(since) AS newest FROM claim_state WHERE since > $1 GROUP BY claim_id) n
			ON n.claim_id = s.claim_id AND n.newest = s.since`, 0)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make(map[string]stateSince)
	for rows.Next() {
		var claim, state string
		var since int64
		if err := rows.Scan(&claim, &state, &since); err != nil {
			return nil, err
		}
		all[claim] = stateSince{State(state), clock.FromMicros(since)}
	}
	return all, rows.Err()
}

func insertState(ctx context.Context, tx *db.Tx, claim string, since int64, state State, why string) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO claim_state (claim_id, since, state, why) VALUES ($1, $2, $3, $4)
		ON CONFLICT (claim_id, since) DO UPDATE SET state = excluded.state, why = excluded.why`, claim, since, string(state), why)
	return err
}

// Change is one change of a claim's state.
type Change struct {
	Claim string    `json:"claim"`
	State State     `json:"state"`
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
}

// selectChanges returns the newest changes first.
func selectChanges(ctx context.Context, tx *db.Tx, limit int) ([]Change, error) {
	rows, err := tx.Query(ctx, `SELECT claim_id, state, since, why FROM claim_state ORDER BY since DESC, claim_id LIMIT $1`, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Change
	for rows.Next() {
		var c Change
		var state string
		var since int64
		if err := rows.Scan(&c.Claim, &state, &since, &c.Why); err != nil {
			return nil, err
		}
		c.State, c.Since = State(state), clock.FromMicros(since)
		all = append(all, c)
	}
	return all, rows.Err()
}

func deleteOld(ctx context.Context, tx *db.Tx, before int64) (int64, error) {
	return tx.Exec(ctx, `DELETE FROM evidence WHERE observed_at < $1`, before)
}
