package identity

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
)

// none turns "there is no row" into false.
func none(err error) (bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// account is somebody who can log in.
type account struct {
	customer customer.ID
	code     hashed
}

func (r rows) accountByPhone(ctx context.Context, tx *db.Tx, phone []keyring.Blind) (a account, ok bool, err error) {
	var phoneIndex, stamp []byte
	in, args := among(valuesOf(phone), 1)
	ok, err = none(tx.QueryRow(ctx, `SELECT customer_id, phone_index, code_hash, pepper_version, stamp FROM account WHERE phone_index IN (`+in+`)`,
		args...).Scan(&a.customer, &phoneIndex, &a.code.hash, &a.code.pepper, &stamp))
	if ok {
		err = r.check(stamp, accountParts(a.customer, phoneIndex, a.code))
	}
	return a, ok, err
}

// insertAccount reports false when the number has an account already. Under one version of the
// blind-index key the unique index says so. Over two of them it is this look: the transaction is
// serializable and has read the generation of the keys, so nobody else can have inserted, or be inserting,
// the number under the other version and both be committed.
func (r rows) insertAccount(ctx context.Context, tx *db.Tx, a account, phone []keyring.Blind, sealedPhone []byte, now time.Time) (bool, error) {
	if len(phone) > 1 {
		if _, taken, err := r.accountByPhone(ctx, tx, phone); err != nil || taken {
			return false, err
		}
	}
	n, err := tx.Exec(ctx, `
		INSERT INTO account (customer_id, phone_index, index_version, phone, code_hash, pepper_version, made_at, stamp)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (phone_index) DO NOTHING`,
		string(a.customer), phone[0].Value, int64(phone[0].Version), sealedPhone, a.code.hash, int64(a.code.pepper), clock.Micros(now),
		r.stamp(accountParts(a.customer, phone[0].Value, a.code)))
	return n == 1, err
}

// replaceHash puts fresh in the place of old, if that is still there.
func (r rows) replaceHash(ctx context.Context, tx *db.Tx, c customer.ID, old, fresh hashed) error {
	var phoneIndex, stamp []byte
	there, err := none(tx.QueryRow(ctx, `SELECT phone_index, stamp FROM account WHERE customer_id = $1 AND code_hash = $2`,
		string(c), old.hash).Scan(&phoneIndex, &stamp))
	if err != nil || !there {
		return err
	}
	if err := r.check(stamp, accountParts(c, phoneIndex, old)); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE account SET code_hash = $1, pepper_version = $2, stamp = $3 WHERE customer_id = $4 AND code_hash = $5`,
		fresh.hash, int64(fresh.pepper), r.stamp(accountParts(c, phoneIndex, fresh)), string(c), old.hash)
	return err
}

// hashCosts returns the costs of the hashes in use, which stand in their fifth and sixth characters.
func hashCosts(ctx context.Context, tx *db.Tx) (costs []int, err error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT substr(code_hash, 5, 2) FROM account`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var digits []byte
		if err := rows.Scan(&digits); err != nil {
			return nil, err
		}
		if c, err := strconv.Atoi(string(digits)); err == nil {
			costs = append(costs, c)
		}
	}
	return costs, rows.Err()
}

// The states of a device.
const (
	pending    = "pending"
	authorised = "authorised"
	revoked    = "revoked"
)

// deviceRow is a device as it is stored.
type deviceRow struct {
	id       string
	customer customer.ID
	jkt      string
	name     []byte // sealed
	status   string
	added    int64
	seen     int64
}

const deviceColumns = `id, customer_id, jkt, name, status, added_at, last_seen_at, stamp`

func (r rows) scanDevice(row interface{ Scan(...any) error }) (d deviceRow, err error) {
	var stamp []byte
	if err = row.Scan(&d.id, &d.customer, &d.jkt, &d.name, &d.status, &d.added, &d.seen, &stamp); err == nil {
		err = r.check(stamp, deviceParts(d.id, d.customer, d.jkt, d.status))
	}
	return d, err
}

func (r rows) deviceByKey(ctx context.Context, tx *db.Tx, c customer.ID, jkt string) (d deviceRow, ok bool, err error) {
	d, err = r.scanDevice(tx.QueryRow(ctx, `SELECT `+deviceColumns+` FROM device WHERE customer_id = $1 AND jkt = $2`, string(c), jkt))
	ok, err = none(err)
	return d, ok, err
}

func (r rows) deviceByID(ctx context.Context, tx *db.Tx, c customer.ID, id string) (d deviceRow, ok bool, err error) {
	d, err = r.scanDevice(tx.QueryRow(ctx, `SELECT `+deviceColumns+` FROM device WHERE customer_id = $1 AND id = $2`, string(c), id))
	ok, err = none(err)
	return d, ok, err
}

func (r rows) devicesOf(ctx context.Context, tx *db.Tx, c customer.ID) ([]deviceRow, error) {
	found, err := tx.Query(ctx, `SELECT `+deviceColumns+` FROM device WHERE customer_id = $1 ORDER BY id`, string(c))
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var out []deviceRow
	for found.Next() {
		d, err := r.scanDevice(found)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, found.Err()
}

func (r rows) insertDevice(ctx context.Context, tx *db.Tx, d deviceRow) error {
	var decided any
	if d.status == authorised {
		decided = d.added
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO device (id, customer_id, jkt, name, status, added_at, decided_at, last_seen_at, stamp)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		d.id, string(d.customer), d.jkt, d.name, d.status, d.added, decided, d.seen,
		r.stamp(deviceParts(d.id, d.customer, d.jkt, d.status)))
	return err
}

func (r rows) setDeviceStatus(ctx context.Context, tx *db.Tx, d deviceRow, status string, now time.Time) error {
	if err := announceEnd(ctx, tx, d.customer); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE device SET status = $1, decided_at = $2, stamp = $3 WHERE id = $4`,
		status, clock.Micros(now), r.stamp(deviceParts(d.id, d.customer, d.jkt, status)), d.id)
	return err
}

// sessionRow is a session with what is asked of its device.
type sessionRow struct {
	id, device, jkt      string
	customer             customer.ID
	made, used           int64
	idleExpires, expires int64
	revoked              sql.NullInt64
	deviceStatus         string
	tokenExpires         int64
	tokenUsed            sql.NullInt64 // refresh tokens only
	stamp, deviceStamp   []byte
	scope, acr           string
	origin               []byte // sealed; written, and read by the list of sessions alone
}

const (
	sessionColumns = `s.id, s.device_id, s.jkt, s.customer_id, s.made_at, s.used_at, s.idle_expires_at, s.expires_at, s.revoked_at, s.stamp, s.scope, s.acr, d.status, d.stamp`
	sessionDevice  = `device d ON d.id = s.device_id AND d.customer_id = s.customer_id AND d.jkt = s.jkt`
)

func (s *sessionRow) fields(more ...any) []any {
	return append([]any{&s.id, &s.device, &s.jkt, &s.customer, &s.made, &s.used, &s.idleExpires, &s.expires, &s.revoked, &s.stamp,
		&s.scope, &s.acr, &s.deviceStatus, &s.deviceStamp}, more...)
}

// checkSession checks the stamps of a session and of its device.
func (r rows) checkSession(s *sessionRow) error {
	if err := r.check(s.stamp, sessionParts(s)); err != nil {
		return err
	}
	return r.check(s.deviceStamp, deviceParts(s.device, s.customer, s.jkt, s.deviceStatus))
}

// checked finishes the reading of a session.
func (r rows) checked(s sessionRow, scan error) (sessionRow, bool, error) {
	ok, err := none(scan)
	if ok {
		err = r.checkSession(&s)
	}
	return s, ok, err
}

// over reports whether the session has ended by itself at now.
func (s *sessionRow) over(now time.Time) bool {
	us := clock.Micros(now)
	return us >= s.idleExpires || us >= s.expires
}

const sessionByAccessQuery = `
	SELECT ` + sessionColumns + `, t.expires_at
	FROM access_token t JOIN session s ON s.id = t.session_id JOIN ` + sessionDevice + `
	WHERE t.hash = $1`

// sessionByAccess is the one read of every session check.
func (r rows) sessionByAccess(ctx context.Context, tx *db.Tx, hash []byte) (sessionRow, bool, error) {
	var s sessionRow
	err := tx.QueryRow(ctx, sessionByAccessQuery, hash).Scan(s.fields(&s.tokenExpires)...)
	return r.checked(s, err)
}

func (r rows) sessionByRefresh(ctx context.Context, tx *db.Tx, hash []byte) (sessionRow, bool, error) {
	var s sessionRow
	err := tx.QueryRow(ctx, `
		SELECT `+sessionColumns+`, t.expires_at, t.used_at
		FROM refresh_token t JOIN session s ON s.id = t.session_id JOIN `+sessionDevice+`
		WHERE t.hash = $1`, hash).Scan(s.fields(&s.tokenExpires, &s.tokenUsed)...)
	return r.checked(s, err)
}

func (r rows) sessionByID(ctx context.Context, tx *db.Tx, c customer.ID, id string) (sessionRow, bool, error) {
	var s sessionRow
	err := tx.QueryRow(ctx, `
		SELECT `+sessionColumns+` FROM session s JOIN `+sessionDevice+`
		WHERE s.id = $1 AND s.customer_id = $2`, id, string(c)).Scan(s.fields()...)
	return r.checked(s, err)
}

func (r rows) insertSession(ctx context.Context, tx *db.Tx, s sessionRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO session (id, customer_id, device_id, jkt, made_at, used_at, idle_expires_at, expires_at, scope, acr, origin, stamp)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		s.id, string(s.customer), s.device, s.jkt, s.made, s.used, s.idleExpires, s.expires, s.scope, s.acr, s.origin, r.stamp(sessionParts(&s)))
	return err
}

// touch moves the end of idleness, for a session that is in use, and takes away the scopes that have ended.
func (r rows) touch(ctx context.Context, tx *db.Tx, s sessionRow) error {
	_, err := tx.Exec(ctx, `
		UPDATE session SET used_at = $1, idle_expires_at = $2, scope = $3, stamp = $4
		WHERE id = $5 AND used_at < $1 AND revoked_at IS NULL`,
		s.used, s.idleExpires, s.scope, r.stamp(sessionParts(&s)), s.id)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE device SET last_seen_at = $1 WHERE id = $2 AND last_seen_at < $1`, s.used, s.device)
	return err
}

func revokeSession(ctx context.Context, tx *db.Tx, id string, now time.Time) (bool, error) {
	var c customer.ID
	ok, err := none(tx.QueryRow(ctx, `UPDATE session SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL RETURNING customer_id`,
		clock.Micros(now), id).Scan(&c))
	if err != nil || !ok {
		return false, err
	}
	return true, announceEnd(ctx, tx, c)
}

// revokeDeviceSessions ends all sessions of a device and returns their ids.
func revokeDeviceSessions(ctx context.Context, tx *db.Tx, device string, now time.Time) ([]string, error) {
	rows, err := tx.Query(ctx, `
		UPDATE session SET revoked_at = $1 WHERE device_id = $2 AND revoked_at IS NULL AND expires_at > $1
		RETURNING id`, clock.Micros(now), device)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

func insertTokens(ctx context.Context, tx *db.Tx, session string, access, refresh, parent []byte, accessExpires, refreshExpires int64) error {
	if _, err := tx.Exec(ctx, `INSERT INTO access_token (hash, session_id, expires_at) VALUES ($1, $2, $3)`,
		access, session, accessExpires); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO refresh_token (hash, session_id, expires_at, parent) VALUES ($1, $2, $3, $4)`,
		refresh, session, refreshExpires, parent)
	return err
}

// useRefresh marks the token used, and reports false when somebody was faster.
func useRefresh(ctx context.Context, tx *db.Tx, hash []byte, now time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `UPDATE refresh_token SET used_at = $1 WHERE hash = $2 AND used_at IS NULL`, clock.Micros(now), hash)
	return n == 1, err
}

// successorUsed reports whether a token that this one was exchanged for has been used: its answer arrived.
func successorUsed(ctx context.Context, tx *db.Tx, hash []byte) (used bool, err error) {
	var n int64
	err = tx.QueryRow(ctx, `SELECT count(*) FROM refresh_token WHERE parent = $1 AND used_at IS NOT NULL`, hash).Scan(&n)
	return n > 0, err
}

// spendProof reports false when the proof was spent before, at whatever server.
func spendProof(ctx context.Context, tx *db.Tx, digest []byte, until time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `INSERT INTO spent_proof (digest, expires_at) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING`, digest, clock.Micros(until))
	return n == 1, err
}

// challengeRow is a challenge as it is stored.
type challengeRow struct {
	id, purpose, jkt string
	slot             []byte
	superseded       bool
	mac              []byte
	keyVersion       uint32
	tries            int64
	expires          int64
	sealed           []byte
}

func challengeByID(ctx context.Context, tx *db.Tx, id, purpose string) (c challengeRow, ok bool, err error) {
	var superseded int64
	ok, err = none(tx.QueryRow(ctx, `
		SELECT id, purpose, jkt, slot, superseded, code_mac, key_version, tries, expires_at, sealed
		FROM challenge WHERE id = $1 AND purpose = $2`, id, purpose).
		Scan(&c.id, &c.purpose, &c.jkt, &c.slot, &superseded, &c.mac, &c.keyVersion, &c.tries, &c.expires, &c.sealed))
	c.superseded = superseded != 0
	return c, ok, err
}

// insertChallenge makes all earlier challenges of the slot void, under all its names.
func insertChallenge(ctx context.Context, tx *db.Tx, c challengeRow, slots [][]byte) error {
	in, args := among(slots, 1)
	if _, err := tx.Exec(ctx, `UPDATE challenge SET superseded = 1 WHERE slot IN (`+in+`) AND superseded = 0`, args...); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO challenge (id, purpose, jkt, slot, superseded, code_mac, key_version, tries, expires_at, sealed)
		VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8, $9)`,
		c.id, c.purpose, c.jkt, c.slot, c.mac, int64(c.keyVersion), c.tries, c.expires, c.sealed)
	return err
}

func setTries(ctx context.Context, tx *db.Tx, id string, tries int64) error {
	_, err := tx.Exec(ctx, `UPDATE challenge SET tries = $1 WHERE id = $2`, tries, id)
	return err
}

// useChallenge closes a challenge for good, and reports false when it was closed before.
func useChallenge(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	n, err := tx.Exec(ctx, `UPDATE challenge SET superseded = 1, tries = 0 WHERE id = $1 AND superseded = 0`, id)
	return n == 1, err
}

// among writes the list behind IN, with its arguments, the first of which is $n.
func among(keys [][]byte, n int) (list string, args []any) {
	for k, key := range keys {
		if k > 0 {
			list += ", "
		}
		list += "$" + strconv.Itoa(n+k)
		args = append(args, key)
	}
	return list, args
}

// A lane or a counter has as many names as there are versions of the blind-index key, the newest first. What
// stands under an older name still counts, and is taken over by the next write.

const (
	laneColumns    = `failures, total, level, blocked_until`
	counterColumns = `counted, since, count, previous, refused`
)

func getLane(ctx context.Context, tx *db.Tx, keys [][]byte) (l lane, err error) {
	in, args := among(keys, 1)
	rows, err := tx.Query(ctx, `SELECT lane, `+laneColumns+` FROM throttle WHERE lane IN (`+in+`)`, args...)
	if err != nil {
		return lane{}, err
	}
	err = l.gather(rows, keys[0])
	return l, err
}

// gather adds up rows of a lane; those that do not have the newest name make it older.
func (l *lane) gather(rows *sql.Rows, newest []byte) error {
	defer rows.Close()
	for rows.Next() {
		var name []byte
		var one lane
		if err := rows.Scan(&name, &one.failures, &one.total, &one.level, &one.blocked); err != nil {
			return err
		}
		l.add(one)
		l.older = l.older || !bytes.Equal(name, newest)
	}
	return rows.Err()
}

func putLane(ctx context.Context, tx *db.Tx, keys [][]byte, l lane, now time.Time) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO throttle (lane, failures, total, level, blocked_until, updated_at) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (lane) DO UPDATE SET failures = excluded.failures, total = excluded.total, level = excluded.level,
			blocked_until = excluded.blocked_until, updated_at = excluded.updated_at`,
		keys[0], l.failures, l.total, l.level, l.blocked, clock.Micros(now))
	if err != nil || !l.older || len(keys) == 1 {
		return err
	}
	in, args := among(keys[1:], 1)
	_, err = tx.Exec(ctx, `DELETE FROM throttle WHERE lane IN (`+in+`)`, args...)
	return err
}

// lockLane returns the lane for a transaction that may be read-committed: until its end nobody else
// changes the lane, and what is returned is what was committed last; putLane has to follow. Under full
// serialization starts at the same instant would refuse each other, since their lanes lie side by side in
// one index.
func lockLane(ctx context.Context, tx *db.Tx, keys [][]byte, now time.Time) (l lane, err error) {
	_, err = tx.Exec(ctx, `
		INSERT INTO throttle (lane, failures, total, level, blocked_until, updated_at) VALUES ($1, 0, 0, 0, 0, $2)
		ON CONFLICT (lane) DO UPDATE SET updated_at = excluded.updated_at`, keys[0], clock.Micros(now))
	if err != nil {
		return lane{}, err
	}
	if l, err = getLane(ctx, tx, keys[:1]); err != nil || len(keys) == 1 {
		return l, err
	}
	// What is deleted waits for whoever is changing it.
	in, args := among(keys[1:], 1)
	rows, err := tx.Query(ctx, `DELETE FROM throttle WHERE lane IN (`+in+`) RETURNING lane, `+laneColumns, args...)
	if err != nil {
		return lane{}, err
	}
	err = l.gather(rows, keys[0])
	return l, err
}

// lockCounter is to counters what lockLane is to lanes.
func lockCounter(ctx context.Context, tx *db.Tx, keys [][]byte, now time.Time, per time.Duration) (c counter, err error) {
	_, err = tx.Exec(ctx, `
		INSERT INTO quota (counted, since, count, previous, refused, expires_at) VALUES ($1, 0, 0, 0, 0, $2)
		ON CONFLICT (counted) DO UPDATE SET counted = excluded.counted`, keys[0], clock.Micros(now))
	if err != nil {
		return counter{}, err
	}
	if c, err = getCounter(ctx, tx, keys[:1], now, per); err != nil || len(keys) == 1 {
		return c, err
	}
	in, args := among(keys[1:], 1)
	rows, err := tx.Query(ctx, `DELETE FROM quota WHERE counted IN (`+in+`) RETURNING `+counterColumns, args...)
	if err != nil {
		return counter{}, err
	}
	err = c.gather(rows, keys[0], now, per)
	return c, err
}

func getCounter(ctx context.Context, tx *db.Tx, keys [][]byte, now time.Time, per time.Duration) (c counter, err error) {
	in, args := among(keys, 1)
	rows, err := tx.Query(ctx, `SELECT `+counterColumns+` FROM quota WHERE counted IN (`+in+`)`, args...)
	if err != nil {
		return counter{}, err
	}
	err = c.gather(rows, keys[0], now, per)
	return c, err
}

// gather adds up rows of a counter.
func (c *counter) gather(rows *sql.Rows, newest []byte, now time.Time, per time.Duration) error {
	defer rows.Close()
	for rows.Next() {
		var name []byte
		var one counter
		if err := rows.Scan(&name, &one.since, &one.count, &one.previous, &one.refused); err != nil {
			return err
		}
		c.merge(one, now, per)
		c.older = c.older || !bytes.Equal(name, newest)
	}
	return rows.Err()
}

func putCounter(ctx context.Context, tx *db.Tx, keys [][]byte, c counter, per time.Duration) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO quota (counted, since, count, previous, refused, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (counted) DO UPDATE SET since = excluded.since, count = excluded.count, previous = excluded.previous,
			refused = excluded.refused, expires_at = excluded.expires_at`,
		keys[0], c.since, c.count, c.previous, c.refused, c.since+2*per.Microseconds())
	if err != nil || !c.older || len(keys) == 1 {
		return err
	}
	in, args := among(keys[1:], 1)
	_, err = tx.Exec(ctx, `DELETE FROM quota WHERE counted IN (`+in+`)`, args...)
	return err
}

// outboxRow is a message or a blank that waits.
type outboxRow struct {
	id       string
	sealed   []byte
	attempts int64
	next     int64
	expires  int64
}

func insertOutbox(ctx context.Context, tx *db.Tx, o outboxRow) error {
	_, err := tx.Exec(ctx, `INSERT INTO sms_outbox (id, sealed, attempts, next_at, expires_at) VALUES ($1, $2, 0, $3, $4)`,
		o.id, o.sealed, o.next, o.expires)
	return err
}

func dueOutbox(ctx context.Context, tx *db.Tx, now time.Time, limit int) ([]outboxRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT id, sealed, attempts, next_at, expires_at FROM sms_outbox WHERE next_at <= $1 ORDER BY next_at LIMIT $2`,
		clock.Micros(now), int64(limit))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []outboxRow
	for rows.Next() {
		var o outboxRow
		if err := rows.Scan(&o.id, &o.sealed, &o.attempts, &o.next, &o.expires); err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, rows.Err()
}

// claimOutbox gives a row to its caller until the given time, and reports false when another has it.
func claimOutbox(ctx context.Context, tx *db.Tx, o outboxRow, until int64) (bool, error) {
	n, err := tx.Exec(ctx, `UPDATE sms_outbox SET next_at = $1, attempts = attempts + 1 WHERE id = $2 AND next_at = $3`,
		until, o.id, o.next)
	return n == 1, err
}

func postponeOutbox(ctx context.Context, tx *db.Tx, id string, next int64) error {
	_, err := tx.Exec(ctx, `UPDATE sms_outbox SET next_at = $1 WHERE id = $2`, next, id)
	return err
}

func deleteOutbox(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `DELETE FROM sms_outbox WHERE id = $1`, id)
	return err
}

// cleanupBatch is how many rows one transaction of the cleanup deletes.
const cleanupBatch = 500

// sweeps delete what is past. $1 is the time before which it ended, $2 how many rows at most. Each
// goes through an index.
var sweeps = []struct {
	query string
	keep  time.Duration
}{
	{`DELETE FROM challenge WHERE id IN (SELECT id FROM challenge WHERE expires_at < $1 LIMIT $2)`, time.Minute},
	// An expired token is told apart from an unknown one for as long as a client may hold on to it.
	{`DELETE FROM access_token WHERE hash IN (SELECT hash FROM access_token WHERE expires_at < $1 LIMIT $2)`, 24 * time.Hour},
	{`DELETE FROM refresh_token WHERE hash IN (SELECT hash FROM refresh_token WHERE expires_at < $1 LIMIT $2)`, 24 * time.Hour},
	{`DELETE FROM session WHERE id IN (SELECT id FROM session WHERE expires_at < $1 LIMIT $2)`, 30 * 24 * time.Hour},
	{`DELETE FROM oauth_code WHERE hash IN (SELECT hash FROM oauth_code WHERE expires_at < $1 LIMIT $2)`, time.Hour},
	{`DELETE FROM payment WHERE id IN (SELECT id FROM payment WHERE expires_at < $1 LIMIT $2)`, 24 * time.Hour},
	{`DELETE FROM spent_proof WHERE digest IN (SELECT digest FROM spent_proof WHERE expires_at < $1 LIMIT $2)`, time.Minute},
	{`DELETE FROM quota WHERE counted IN (SELECT counted FROM quota WHERE expires_at < $1 LIMIT $2)`, 0},
	{`DELETE FROM sms_outbox WHERE id IN (SELECT id FROM sms_outbox WHERE expires_at < $1 AND next_at < $1 LIMIT $2)`, time.Minute},
	{`DELETE FROM sms_sent WHERE id IN (SELECT id FROM sms_sent WHERE expires_at < $1 LIMIT $2)`, time.Minute},
	{`DELETE FROM code_reset WHERE customer_id IN (SELECT customer_id FROM code_reset WHERE expires_at < $1 LIMIT $2)`, 0},
	{`DELETE FROM vouch WHERE expires_at < $1 AND subject IN (SELECT subject FROM vouch WHERE expires_at < $1 LIMIT $2)`, 0},
	{`DELETE FROM notice WHERE id IN (SELECT id FROM notice WHERE made_at < $1 LIMIT $2)`, noticesKept},
	// A lane at its ceiling is only opened by a login, never by time.
	{`DELETE FROM throttle WHERE lane IN (SELECT lane FROM throttle WHERE updated_at < $1 AND total < 100 LIMIT $2)`, 90 * 24 * time.Hour},
}

// cleanup deletes what is past, in small transactions.
func (i *Identity) cleanup(ctx context.Context) error {
	now := i.Clock.Now()
	for _, s := range sweeps {
		for {
			var n int64
			err := i.DB.UpdateReadCommitted(ctx, func(tx *db.Tx) (err error) {
				n, err = tx.Exec(ctx, s.query, clock.Micros(now.Add(-s.keep)), int64(cleanupBatch))
				return err
			})
			if err != nil {
				return fmt.Errorf("deleting what is past: %w", err)
			}
			if n < cleanupBatch {
				break
			}
		}
	}
	return i.clearBudgets(ctx)
}
