package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

func insertEvent(ctx context.Context, tx *db.Tx, r *row) error {
	n, err := tx.Exec(ctx, `
		INSERT INTO event (id, version, made_at, actor_kind, actor_id, device_id, session_id, action, resource,
			customer_id, outcome, reason, transaction_id, request_id, sealed_under, commitment, sealed, mac_version, mac)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`,
		r.id, r.version, r.madeAt, r.actorKind, r.actorID, r.device, r.session, r.action, r.resource,
		r.customer, r.outcome, r.reason, r.transaction, r.request, r.sealedUnder, r.commitment, r.sealed, r.macVersion, r.mac)
	if err == nil && n == 1 {
		n, err = tx.Exec(ctx, `INSERT INTO event_pending (event_id) VALUES ($1)`, r.id)
	}
	if err == nil && n != 1 { // a trigger or a rule swallowed it
		err = errors.New("audit: the database did not keep an event")
	}
	return err
}

// placed is an event with its place, either of which may be missing.
type placed struct {
	row
	event string // the id by which the place knows the event; row.version is 0 when there is no such event
	index int64  // -1 without a place
}

// A planted row may be of any length, and must not fill the memory of whoever looks at it. A text that
// is longer than Record makes it reads tooLong, which no genuine one does, as clean leaves no control
// character; of bytes one more is read than Record makes.
const (
	tooLong   = "\x01too long"
	maxSealed = 64 << 10
)

func boundedText(column string) string {
	return `CASE WHEN octet_length(` + column + `) <= 256 THEN ` + column + ` WHEN ` + column + ` IS NULL THEN '' ELSE '` + tooLong + `' END`
}

// eventColumns may stand in an outer join: an event that is missing has version 0. leafColumns leave
// out the sealed part, which the leaf does not hold.
var (
	eventColumns = columnsOf(`substr(e.sealed, 1, 65537)`) // maxSealed + 1
	leafColumns  = columnsOf(`NULL`)
)

func columnsOf(sealed string) string {
	all := []string{`COALESCE(e.version, 0)`, `COALESCE(e.made_at, 0)`}
	for _, c := range []string{"actor_kind", "actor_id", "device_id", "session_id", "action", "resource", "customer_id",
		"outcome", "reason", "transaction_id", "request_id", "sealed_under"} {
		all = append(all, boundedText("e."+c))
	}
	return strings.Join(append(all, `substr(e.commitment, 1, 65)`, sealed, `COALESCE(e.mac_version, 0)`, `substr(e.mac, 1, 65)`), ", ")
}

// isShort is the condition that an id is not longer than Strongroom makes them; countLong counts the
// others.
func isShort(column string) string { return `octet_length(` + column + `) <= 256` }

func scanPlaced(rows *sql.Rows, p *placed) error {
	err := rows.Scan(&p.event, &p.index, &p.version, &p.madeAt, &p.actorKind, &p.actorID, &p.device, &p.session,
		&p.action, &p.resource, &p.customer, &p.outcome, &p.reason, &p.transaction, &p.request, &p.sealedUnder,
		&p.commitment, &p.sealed, &p.macVersion, &p.mac)
	p.id = p.event
	return err
}

func queryPlaced(ctx context.Context, tx *db.Tx, into []placed, query string, args ...any) ([]placed, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		into = append(into, placed{})
		if err := scanPlaced(rows, &into[len(into)-1]); err != nil {
			return nil, err
		}
	}
	return into, rows.Err()
}

// selectPending returns what waits after the id given, in order of the ids.
func selectPending(ctx context.Context, tx *db.Tx, after string, limit int) ([]placed, error) {
	return queryPlaced(ctx, tx, make([]placed, 0, 64), `
		SELECT p.event_id, COALESCE(l.idx, -1), `+leafColumns+`
		FROM event_pending p
		LEFT JOIN event e ON e.id = p.event_id
		LEFT JOIN event_leaf l ON l.event_id = p.event_id
		WHERE p.event_id > $1 AND `+isShort("p.event_id")+` ORDER BY p.event_id LIMIT $2`, after, limit)
}

func countPending(ctx context.Context, tx *db.Tx) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT count(*) FROM event_pending`).Scan(&n)
	return n, err
}

// selectLeaves returns the events with an index from lo to hi-1 in order; places may be missing.
func selectLeaves(ctx context.Context, tx *db.Tx, lo, hi int64) ([]placed, error) {
	all := make([]placed, 0, hi-lo)
	err := tx.Each(ctx, `
		SELECT `+boundedText("l.event_id")+`, l.idx, `+eventColumns+`
		FROM event_leaf l LEFT JOIN event e ON e.id = l.event_id
		WHERE l.idx >= $1 AND l.idx < $2 ORDER BY l.idx LIMIT $3`, func(columns []db.Value) error {
		all = append(all, placed{})
		p := &all[len(all)-1]
		before := p // the event before, with which this one shares many texts
		if len(all) > 1 {
			before = &all[len(all)-2]
		}
		c := &columnReader{columns: columns}
		c.text(&p.event, "")
		c.number(&p.index)
		c.number(&p.version)
		c.number(&p.madeAt)
		c.text(&p.actorKind, before.actorKind)
		c.text(&p.actorID, before.actorID)
		c.text(&p.device, before.device)
		c.text(&p.session, before.session)
		c.text(&p.action, before.action)
		c.text(&p.resource, before.resource)
		c.text(&p.customer, before.customer)
		c.text(&p.outcome, before.outcome)
		c.text(&p.reason, before.reason)
		c.text(&p.transaction, before.transaction)
		c.text(&p.request, before.request)
		c.text(&p.sealedUnder, before.sealedUnder)
		c.bytes(&p.commitment)
		c.bytes(&p.sealed)
		c.number(&p.macVersion)
		c.bytes(&p.mac)
		p.id = p.event
		return c.err
	}, lo, hi, 2*(hi-lo))
	return all, err
}

// columnReader takes the columns of a row one after the other.
type columnReader struct {
	columns []db.Value
	err     error
}

func (c *columnReader) next(kind db.ColumnType, nullable bool) db.Value {
	v := c.columns[0]
	c.columns = c.columns[1:]
	if v.Kind != kind && (v.Kind != 0 || !nullable) {
		c.err = fmt.Errorf("a column of an event is of type %q", v.Kind)
		return db.Value{}
	}
	return v
}

// text takes a text; like is one that it is often equal to, which saves memory.
func (c *columnReader) text(dst *string, like string) {
	if v := c.next(db.TextColumn, false); string(v.Bytes) == like {
		*dst = like
	} else {
		*dst = string(v.Bytes)
	}
}

func (c *columnReader) number(dst *int64) { *dst = c.next(db.IntColumn, false).Int }

// bytes takes a blob; nil is NULL.
func (c *columnReader) bytes(dst *[]byte) {
	if v := c.next(db.BlobColumn, true); v.Kind != 0 {
		*dst = append(make([]byte, 0, len(v.Bytes)), v.Bytes...)
	}
}

// selectStrays returns the places that are not from 0 to size-1, at most limit.
func selectStrays(ctx context.Context, tx *db.Tx, size int64, limit int) ([]placed, error) {
	return queryPlaced(ctx, tx, nil, `
		SELECT `+boundedText("l.event_id")+`, l.idx, `+leafColumns+`
		FROM event_leaf l LEFT JOIN event e ON e.id = l.event_id
		WHERE l.idx < 0 OR l.idx >= $1 ORDER BY l.idx LIMIT $2`, size, limit)
}

// selectNewest returns the newest events, newest first.
func selectNewest(ctx context.Context, tx *db.Tx, limit int) ([]placed, error) {
	return queryPlaced(ctx, tx, nil, `
		SELECT e.id, COALESCE(l.idx, -1), `+eventColumns+`
		FROM event e LEFT JOIN event_leaf l ON l.event_id = e.id
		WHERE `+isShort("e.id")+` ORDER BY e.id DESC LIMIT $1`, limit)
}

// selectAfter returns the events after the id given, oldest first.
func selectAfter(ctx context.Context, tx *db.Tx, after string, limit int) ([]placed, error) {
	return queryPlaced(ctx, tx, nil, `
		SELECT e.id, COALESCE(l.idx, -1), `+eventColumns+`
		FROM event e LEFT JOIN event_leaf l ON l.event_id = e.id
		WHERE e.id > $1 AND `+isShort("e.id")+` ORDER BY e.id LIMIT $2`, after, limit)
}

// selectOrphans looks at the next span events after the id given and returns those that neither
// have a place nor wait for one, and the id of the last that it looked at; empty means that there
// are no more.
func selectOrphans(ctx context.Context, tx *db.Tx, after string, span int) (orphans []placed, last string, err error) {
	err = tx.QueryRow(ctx, `SELECT id FROM event WHERE id > $1 AND `+isShort("id")+` ORDER BY id LIMIT 1 OFFSET $2`, after, span-1).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRow(ctx, `SELECT COALESCE(max(id), '') FROM event WHERE id > $1 AND `+isShort("id"), after).Scan(&last)
	}
	if err != nil || last == "" {
		return nil, "", err
	}
	orphans, err = queryPlaced(ctx, tx, nil, `
		SELECT e.id, -1, `+leafColumns+`
		FROM event e
		WHERE e.id > $1 AND e.id <= $2 AND `+isShort("e.id")+`
			AND NOT EXISTS (SELECT 1 FROM event_leaf l WHERE l.event_id = e.id)
			AND NOT EXISTS (SELECT 1 FROM event_pending p WHERE p.event_id = e.id)
		ORDER BY e.id`, after, last)
	return orphans, last, err
}

// head is the row log_head with the checkpoint of its size.
type head struct {
	size  int64
	root  string
	epoch int64
	note  string // empty without a checkpoint
}

// selectHead returns sql.ErrNoRows when the row is gone.
func selectHead(ctx context.Context, tx *db.Tx) (h head, err error) {
	err = tx.QueryRow(ctx, `
		SELECT h.size, `+boundedText("h.root")+`, h.epoch, `+boundedNote("c.note")+`
		FROM log_head h LEFT JOIN log_checkpoint c ON c.size = h.size
		WHERE h.one = 1`).Scan(&h.size, &h.root, &h.epoch, &h.note)
	return h, err
}

// swapHead replaces the head unless it is no longer the one given.
func swapHead(ctx context.Context, tx *db.Tx, old head, size int64, root, holder string) (bool, error) {
	n, err := tx.Exec(ctx, `
		UPDATE log_head SET size = $1, root = $2, epoch = epoch + 1, holder = $3
		WHERE one = 1 AND size = $4 AND root = $5 AND epoch = $6`, size, root, holder, old.size, old.root, old.epoch)
	return n == 1, err
}

type checkpointRow struct {
	size, epoch int64
	root, note  string
}

func insertCheckpoint(ctx context.Context, tx *db.Tx, c checkpointRow, madeAt int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO log_checkpoint (size, epoch, root, note, made_at) VALUES ($1, $2, $3, $4, $5)`,
		c.size, c.epoch, c.root, c.note, madeAt)
	return err
}

// selectCheckpoints returns the checkpoints of sizes over lo and up to hi, in order.
func selectCheckpoints(ctx context.Context, tx *db.Tx, lo, hi int64) ([]checkpointRow, error) {
	return queryCheckpoints(ctx, tx, `
		SELECT `+checkpointColumns+` FROM log_checkpoint WHERE size > $1 AND size <= $2 ORDER BY size`, lo, hi)
}

// selectNewestCheckpoints returns checkpoints of sizes over the one given, the largest first.
func selectNewestCheckpoints(ctx context.Context, tx *db.Tx, over int64, limit int) ([]checkpointRow, error) {
	return queryCheckpoints(ctx, tx, `
		SELECT `+checkpointColumns+` FROM log_checkpoint WHERE size > $1 ORDER BY size DESC LIMIT $2`, over, limit)
}

// selectEmptyCheckpoints returns checkpoints of no events; Strongroom signs none.
func selectEmptyCheckpoints(ctx context.Context, tx *db.Tx, limit int) ([]checkpointRow, error) {
	return queryCheckpoints(ctx, tx, `
		SELECT `+checkpointColumns+` FROM log_checkpoint WHERE size <= 0 ORDER BY size LIMIT $1`, limit)
}

var checkpointColumns = `size, epoch, ` + boundedText("root") + `, ` + boundedNote("note")

// boundedNote is boundedText for signed notes; see maxNote.
func boundedNote(column string) string {
	return `CASE WHEN octet_length(` + column + `) <= 65536 THEN ` + column + ` WHEN ` + column + ` IS NULL THEN '' ELSE '` + tooLong + `' END`
}

func queryCheckpoints(ctx context.Context, tx *db.Tx, query string, args ...any) ([]checkpointRow, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []checkpointRow
	for rows.Next() {
		var c checkpointRow
		if err := rows.Scan(&c.size, &c.epoch, &c.root, &c.note); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, rows.Err()
}

// countPlaces returns how many places the log has at most: one more than the largest index that is
// possible with so many rows, gaps included, behind those that are archived.
func countPlaces(ctx context.Context, tx *db.Tx, archived int64) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COALESCE(max(idx) + 1, $1) FROM event_leaf
		WHERE idx >= 0 AND idx < (SELECT $1 + 2 * count(*) + 1024 FROM event_leaf)`, archived).Scan(&n)
	return n, err
}

// countLong counts the rows with an id that is longer than Strongroom makes them.
func countLong(ctx context.Context, tx *db.Tx) (events, waiting int64, err error) {
	err = tx.QueryRow(ctx, `SELECT count(*) FROM event WHERE NOT `+isShort("id")).Scan(&events)
	if err == nil {
		err = tx.QueryRow(ctx, `SELECT count(*) FROM event_pending WHERE NOT `+isShort("event_id")).Scan(&waiting)
	}
	return events, waiting, err
}

// isPending reports whether the event waits for its place.
func isPending(ctx context.Context, tx *db.Tx, event string) (bool, error) {
	var n int64
	err := tx.QueryRow(ctx, `SELECT count(*) FROM event_pending WHERE event_id = $1`, event).Scan(&n)
	return n > 0, err
}

// selectTile returns the hashes of a tile, or nil when it is missing. Of one that is longer than a
// tile can be, it returns one byte too much.
func selectTile(ctx context.Context, tx *db.Tx, level int, n int64) ([]byte, error) {
	var hashes []byte
	err := tx.QueryRow(ctx, `SELECT substr(hashes, 1, 8193) FROM log_tile WHERE level = $1 AND n = $2`, level, n).Scan(&hashes)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return hashes, err
}

// selectTiles returns the hashes of the tiles of a level with numbers from lo to hi-1.
func selectTiles(ctx context.Context, tx *db.Tx, level int, lo, hi int64) (map[int64][]byte, error) {
	rows, err := tx.Query(ctx, `SELECT n, substr(hashes, 1, 8193) FROM log_tile WHERE level = $1 AND n >= $2 AND n < $3`, level, lo, hi)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	tiles := make(map[int64][]byte)
	for rows.Next() {
		var n int64
		var hashes []byte
		if err := rows.Scan(&n, &hashes); err != nil {
			return nil, err
		}
		tiles[n] = hashes
	}
	return tiles, rows.Err()
}

// selectStrayTiles returns the level and number of tiles that a tree of size does not have.
func selectStrayTiles(ctx context.Context, tx *db.Tx, size int64, limit int) ([]tile, error) {
	var list []tile
	args := []any{tileLevels, limit}
	where := `level < 0 OR level >= $1 OR n < 0`
	for level := range tileLevels {
		w, n := width(size, level)
		if w > 0 {
			n++
		}
		args = append(args, n)
		where += ` OR level = ` + strconv.Itoa(level) + ` AND n >= $` + strconv.Itoa(len(args))
	}
	rows, err := tx.Query(ctx, `SELECT level, n FROM log_tile WHERE `+where+` ORDER BY level, n LIMIT $2`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var t tile
		var level int64
		if err := rows.Scan(&level, &t.n); err != nil {
			return nil, err
		}
		t.level = int(level)
		list = append(list, t)
	}
	return list, rows.Err()
}

func upsertTile(ctx context.Context, tx *db.Tx, t tile) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO log_tile (level, n, hashes) VALUES ($1, $2, $3)
		ON CONFLICT (level, n) DO UPDATE SET hashes = excluded.hashes`, t.level, t.n, t.hashes)
	return err
}

// chunks are the numbers of rows that one statement inserts or deletes, so that there are few texts.
var chunks = [...]int{128, 16, 1}

var insertLeafTexts, deletePendingTexts = chunkTexts()

func chunkTexts() (insert, remove [len(chunks)]string) {
	for i, rows := range chunks {
		var pairs, singles []string
		for r := range rows {
			pairs = append(pairs, "($"+strconv.Itoa(2*r+1)+", $"+strconv.Itoa(2*r+2)+")")
			singles = append(singles, "$"+strconv.Itoa(r+1))
		}
		insert[i] = `INSERT INTO event_leaf (idx, event_id) VALUES ` + strings.Join(pairs, ", ")
		remove[i] = `DELETE FROM event_pending WHERE event_id IN (` + strings.Join(singles, ", ") + `)`
	}
	return insert, remove
}

// moveToLog takes the events out of the queue and gives them the places from index first on. It
// returns false when one of them was not in the queue.
func moveToLog(ctx context.Context, tx *db.Tx, first int64, events []placed) (bool, error) {
	args := make([]any, 0, 2*chunks[0])
	for i, rows := range chunks {
		for ; len(events) >= rows; events = events[rows:] {
			args = args[:0]
			for _, e := range events[:rows] {
				args = append(args, e.id)
			}
			n, err := tx.Exec(ctx, deletePendingTexts[i], args...)
			if err != nil || n != int64(rows) {
				return false, err
			}
			args = args[:0]
			for _, e := range events[:rows] {
				args = append(args, first, e.id)
				first++
			}
			if _, err := tx.Exec(ctx, insertLeafTexts[i], args...); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// NeedsKey reports whether the personal part of an event of c is sealed under the version of their data
// key, also in the archive. It walks through the trail.
func (t *Trail) NeedsKey(ctx context.Context, tx *db.Tx, c customer.ID, version uint32) (bool, error) {
	var n int64
	err := tx.QueryRow(ctx, `
		SELECT COUNT(*) FROM (
			SELECT 1 FROM event WHERE customer_id = $1 AND sealed_under = $2 AND substr(sealed, 1, 5) = $3 LIMIT 1) AS one`,
		string(c), underCustomer, seal.Header(version)).Scan(&n)
	if err == nil && n == 0 {
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM audit_archive_key WHERE customer_id = $1 AND customer_id <> '' AND version = $2`, string(c), version).Scan(&n)
	}
	return n > 0, err
}
