package assurance

import (
	"context"
	"encoding/json"
	"math"
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

const evidenceColumns = `e.id, e.check_id, e.version, e.observed_at, e.valid_until, e.took, e.body, e.event_id`

// forEver is after all that there is.
const forEver = math.MaxInt64

// selectNewest returns the newest evidence of each check that was seen before the time given.
func selectNewest(ctx context.Context, tx *db.Tx, before int64) (map[string]Evidence, error) {
	list, err := queryEvidence(ctx, tx, `
		SELECT `+evidenceColumns+` FROM evidence e
		JOIN (SELECT check_id, MAX(observed_at) AS newest FROM evidence WHERE observed_at > 0 AND observed_at < $1 GROUP BY check_id) n
			ON n.check_id = e.check_id AND n.newest = e.observed_at
		ORDER BY e.id`, before)
	all := make(map[string]Evidence)
	for _, e := range list {
		all[e.Check] = e
	}
	return all, err
}

// selectEvidence returns what was seen after the evidence that is named by its time and id, and before the time
// given, in the order of time.
func selectEvidence(ctx context.Context, tx *db.Tx, at int64, id string, before int64, limit int) ([]Evidence, error) {
	return queryEvidence(ctx, tx, `
		SELECT `+evidenceColumns+` FROM evidence e
		WHERE e.observed_at >= $1 AND e.observed_at < $2 AND (e.observed_at > $1 OR e.id > $3)
		ORDER BY e.observed_at, e.id LIMIT $4`, at, before, id, limit)
}

func queryEvidence(ctx context.Context, tx *db.Tx, query string, args ...any) (all []Evidence, err error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
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
		all = append(all, e)
	}
	return all, rows.Err()
}

// selectRun returns what is stored as the evidence of a check's run, by the event of the run.
func selectRun(ctx context.Context, tx *db.Tx, name, event string) ([]Evidence, error) {
	return queryEvidence(ctx, tx, `SELECT `+evidenceColumns+` FROM evidence e WHERE e.check_id = $1 AND e.event_id = $2 LIMIT 4`, name, event)
}

// Change is one change of a claim's state.
type Change struct {
	Claim string    `json:"claim"`
	State State     `json:"state"`
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
	Event string    `json:"event,omitempty"` // of the trail; empty for changes that are older than this link
}

const changeColumns = `s.claim_id, s.state, s.since, s.why, s.event_id`

// selectStates returns the newest change of each claim before the time given.
func selectStates(ctx context.Context, tx *db.Tx, before int64) (map[string]Change, error) {
	list, err := queryChanges(ctx, tx, `
		SELECT `+changeColumns+` FROM claim_state s
		JOIN (SELECT claim_id, MAX(since) AS newest FROM claim_state WHERE since > 0 AND since < $1 GROUP BY claim_id) n
			ON n.claim_id = s.claim_id AND n.newest = s.since`, before)
	all := make(map[string]Change)
	for _, c := range list {
		all[c.Claim] = c
	}
	return all, err
}

func insertState(ctx context.Context, tx *db.Tx, c Change) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO claim_state (claim_id, since, state, why, event_id) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (claim_id, since) DO UPDATE SET state = excluded.state, why = excluded.why, event_id = excluded.event_id`,
		c.Claim, clock.Micros(c.Since), string(c.State), c.Why, c.Event)
	return err
}

// selectChanges returns the newest changes first, of one claim or, when it is empty, of all.
func selectChanges(ctx context.Context, tx *db.Tx, claim string, limit int) ([]Change, error) {
	return queryChanges(ctx, tx, `
		SELECT `+changeColumns+` FROM claim_state s WHERE CAST($1 AS TEXT) = '' OR s.claim_id = $1
		ORDER BY s.since DESC, s.claim_id LIMIT $2`, claim, limit)
}

// selectChangesAfter returns the changes after the one that is named by its time and claim, and before the time
// given, in the order of time.
func selectChangesAfter(ctx context.Context, tx *db.Tx, at int64, claim string, before int64, limit int) ([]Change, error) {
	return queryChanges(ctx, tx, `
		SELECT `+changeColumns+` FROM claim_state s
		WHERE s.since >= $1 AND s.since < $2 AND (s.since > $1 OR s.claim_id > $3)
		ORDER BY s.since, s.claim_id LIMIT $4`, at, before, claim, limit)
}

func queryChanges(ctx context.Context, tx *db.Tx, query string, args ...any) ([]Change, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Change
	for rows.Next() {
		var c Change
		var state string
		var since int64
		if err := rows.Scan(&c.Claim, &state, &since, &c.Why, &c.Event); err != nil {
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
