package audit_test

import (
	"context"
	"fmt"
	"testing"

	"strongroom/internal/audit"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// flip changes a bit of a blob.
func (h *house) flip(table, column, where string, args ...any) {
	h.t.Helper()
	var b []byte
	h.update(func(tx *db.Tx) error {
		ctx := context.Background()
		if err := tx.QueryRow(ctx, `SELECT `+column+` FROM `+table+` WHERE `+where, args...).Scan(&b); err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		_, err := tx.Exec(ctx, `UPDATE `+table+` SET `+column+` = $`+fmt.Sprint(len(args)+1)+` WHERE `+where, append(args, b)...)
		return err
	})
}

// swap gives the events at two places each other's place.
func (h *house) swap(a, b int64) {
	h.t.Helper()
	x, y := h.eventAt(a), h.eventAt(b)
	h.exec(`UPDATE event_leaf SET event_id = 'none' WHERE idx = $1`, a)
	h.exec(`UPDATE event_leaf SET event_id = $1 WHERE idx = $2`, x, b)
	h.exec(`UPDATE event_leaf SET event_id = $1 WHERE idx = $2`, y, a)
}

type want struct {
	kind  audit.Kind
	event string
	index int64
}

// Each way to tamper with the database leads to just the findings that name it.
func TestVerifyFinds(t *testing.T) {
	columns := map[string]string{
		"actor_kind": `'staff'`, "actor_id": `'mallory'`, "device_id": `'dev_2'`, "session_id": `''`, "action": `'test.thing.other'`,
		"resource": `'thing 99'`, "outcome": `'denied'`, "reason": `'none'`, "transaction_id": `'pay-2'`,
		"request_id": `'req_2'`, "made_at": `made_at + 1`, "version": `2`, "customer_id": `''`,
		"sealed_under": `'event'`, "commitment": `NULL`, "mac_version": `99999999999`,
	}
	type tampering struct {
		name string
		do   func(h *house) []want
	}
	var cases []tampering
	for column, value := range columns {
		cases = append(cases, tampering{"alter " + column, func(h *house) []want {
			e := h.eventAt(100)
			h.exec(`UPDATE event SET `+column+` = `+value+` WHERE id = $1`, e)
			return []want{{audit.Altered, e, 100}}
		}})
	}
	cases = append(cases, []tampering{
		{"nothing", func(h *house) []want { return nil }},
		{"alter under a MAC key that is not there", func(h *house) []want {
			e := h.eventAt(100)
			h.exec(`UPDATE event SET action = 'x', mac_version = 17 WHERE id = $1`, e)
			return []want{{audit.Altered, e, 100}}
		}},
		{"alter the first and the last", func(h *house) []want {
			first, last := h.eventAt(0), h.eventAt(299)
			h.exec(`UPDATE event SET reason = 'x' WHERE id = $1 OR id = $2`, first, last)
			return []want{{audit.Altered, first, 0}, {audit.Altered, last, 299}}
		}},
		{"alter the MAC", func(h *house) []want {
			e := h.eventAt(7)
			h.flip("event", "mac", "id = $1", e)
			return []want{{audit.Altered, e, 7}}
		}},
		{"alter the commitment", func(h *house) []want {
			e := h.eventAt(7)
			h.flip("event", "commitment", "id = $1", e)
			return []want{{audit.Altered, e, 7}}
		}},
		{"alter the sealed part", func(h *house) []want {
			e := h.eventAt(7)
			h.flip("event", "sealed", "id = $1", e)
			return []want{{audit.Altered, e, 7}}
		}},
		{"remove the sealed part", func(h *house) []want {
			e := h.eventAt(7)
			h.exec(`UPDATE event SET sealed = NULL WHERE id = $1`, e)
			return []want{{audit.Altered, e, 7}}
		}},
		{"take the sealed part of another event", func(h *house) []want {
			e := h.eventAt(7)
			h.exec(`UPDATE event SET sealed = (SELECT o.sealed FROM event o WHERE o.id = $1) WHERE id = $2`, h.eventAt(8), e)
			return []want{{audit.Altered, e, 7}}
		}},
		{"alter the sealed part of an erased customer", func(h *house) []want {
			h.flip("event", "sealed", "id = $1", h.eventAt(7))
			h.erase(h.ada)
			return nil // it reads [erased] either way
		}},
		{"drop an event", func(h *house) []want {
			e := h.eventAt(100)
			h.exec(`DELETE FROM event WHERE id = $1`, e)
			return []want{{audit.Dropped, e, 100}}
		}},
		{"drop an event and its place", func(h *house) []want {
			e := h.eventAt(100)
			h.exec(`DELETE FROM event WHERE id = $1`, e)
			h.exec(`DELETE FROM event_leaf WHERE idx = 100`)
			return []want{{audit.Dropped, "", 100}}
		}},
		{"drop a place", func(h *house) []want {
			e := h.eventAt(100)
			h.exec(`DELETE FROM event_leaf WHERE idx = 100`)
			return []want{{audit.Dropped, e, 100}}
		}},
		{"drop the last event and its place", func(h *house) []want {
			h.exec(`DELETE FROM event WHERE id = $1`, h.eventAt(299))
			h.exec(`DELETE FROM event_leaf WHERE idx = 299`)
			return []want{{audit.Dropped, "", 299}}
		}},
		{"drop from the queue", func(h *house) []want {
			h.record(1)
			e := h.ask(`SELECT max(event_id) FROM event_pending`)
			h.exec(`DELETE FROM event_pending WHERE event_id = $1`, e)
			return []want{{audit.Dropped, e, -1}}
		}},
		{"drop a waiting event", func(h *house) []want {
			h.record(1)
			e := h.ask(`SELECT max(event_id) FROM event_pending`)
			h.exec(`DELETE FROM event WHERE id = $1`, e)
			return []want{{audit.Dropped, e, -1}}
		}},
		{"alter a waiting event", func(h *house) []want {
			h.record(1)
			e := h.ask(`SELECT max(event_id) FROM event_pending`)
			h.exec(`UPDATE event SET outcome = 'denied' WHERE id = $1`, e)
			return []want{{audit.Inserted, e, -1}}
		}},
		{"insert an event", func(h *house) []want {
			h.insert("evt_x", h.eventAt(3))
			return []want{{audit.Inserted, "evt_x", -1}}
		}},
		{"insert an event at the end", func(h *house) []want {
			h.insert("evt_x", h.eventAt(3))
			h.exec(`INSERT INTO event_leaf (idx, event_id) VALUES (300, 'evt_x')`)
			return []want{{audit.Inserted, "evt_x", 300}}
		}},
		{"replace an event by a forged one", func(h *house) []want {
			e := h.eventAt(100)
			h.insert("evt_x", e)
			h.exec(`DELETE FROM event WHERE id = $1`, e)
			h.exec(`UPDATE event_leaf SET event_id = 'evt_x' WHERE idx = 100`)
			return []want{{audit.Altered, "evt_x", 100}}
		}},
		{"replace an event by a waiting one", func(h *house) []want {
			e := h.eventAt(100)
			h.record(1)
			other := h.ask(`SELECT max(event_id) FROM event_pending`)
			h.exec(`UPDATE event_leaf SET event_id = $1 WHERE idx = 100`, other)
			h.exec(`DELETE FROM event_pending WHERE event_id = $1`, other)
			return []want{{audit.Inserted, other, 100}, {audit.Dropped, e, 100}}
		}},
		{"queue an event again", func(h *house) []want {
			e := h.eventAt(100)
			h.exec(`INSERT INTO event_pending (event_id) VALUES ($1)`, e)
			return []want{{audit.Inserted, e, 100}}
		}},
		{"reorder", func(h *house) []want {
			x, y := h.eventAt(20), h.eventAt(270)
			h.swap(20, 270)
			return []want{{audit.Reordered, y, 20}, {audit.Reordered, x, 270}}
		}},
		{"reorder events and tiles", func(h *house) []want {
			h.swap(20, 21)
			h.tile(0, 0, func(b []byte) {
				for i := range 32 {
					b[20*32+i], b[21*32+i] = b[21*32+i], b[20*32+i]
				}
			})
			// Nobody can say which, but between which checkpoints.
			return []want{{audit.Altered, "", 0}}
		}},
		{"alter an event and its tile", func(h *house) []want {
			e := h.eventAt(100)
			h.exec(`UPDATE event SET reason = 'x' WHERE id = $1`, e)
			h.tile(0, 0, func(b []byte) { b[100*32] ^= 1 })
			return []want{{audit.Altered, e, 100}}
		}},
		{"alter a tile", func(h *house) []want {
			e := h.eventAt(100)
			h.tile(0, 0, func(b []byte) { b[100*32] ^= 1 })
			return []want{{audit.Altered, e, 100}}
		}},
		{"alter one event and another's tile", func(h *house) []want {
			e, o := h.eventAt(20), h.eventAt(270)
			h.exec(`UPDATE event SET reason = 'x' WHERE id = $1`, e)
			h.tile(0, 1, func(b []byte) { b[14*32] ^= 1 })
			return []want{{audit.Altered, e, 20}, {audit.Altered, o, 270}}
		}},
		{"alter a tile of the second level", func(h *house) []want {
			h.tile(1, 0, func(b []byte) { b[5] ^= 1 })
			return []want{{audit.Altered, "", -1}}
		}},
		{"drop a tile", func(h *house) []want {
			h.exec(`DELETE FROM log_tile WHERE level = 0 AND n = 0`)
			return []want{{audit.Dropped, "", -1}}
		}},
		{"drop a tile of the second level", func(h *house) []want {
			h.exec(`DELETE FROM log_tile WHERE level = 1 AND n = 0`)
			return []want{{audit.Dropped, "", -1}}
		}},
		{"drop an event and the tile", func(h *house) []want {
			e := h.eventAt(100)
			h.exec(`DELETE FROM log_tile WHERE level = 0 AND n = 0`)
			h.exec(`DELETE FROM event WHERE id = $1`, e)
			return []want{{audit.Dropped, "", -1}, {audit.Dropped, e, 100}}
		}},
		{"alter a checkpoint's note", func(h *house) []want {
			h.exec(`UPDATE log_checkpoint SET note = replace(note, 'strongroom', 'strongboom') WHERE size = 200`)
			return []want{{audit.Altered, "", 199}}
		}},
		{"alter a checkpoint's root", func(h *house) []want {
			h.exec(`UPDATE log_checkpoint SET root = 'x' WHERE size = 200`)
			return []want{{audit.Altered, "", 199}}
		}},
		{"alter the last checkpoint's note", func(h *house) []want {
			h.exec(`UPDATE log_checkpoint SET note = 'x' WHERE size = 300`)
			return []want{{audit.Altered, "", 299}}
		}},
		{"alter a checkpoint's number", func(h *house) []want {
			h.exec(`UPDATE log_checkpoint SET epoch = 1 WHERE size = 200`)
			return []want{{audit.Altered, "", 199}, {audit.Dropped, "", 299}}
		}},
		{"drop a checkpoint", func(h *house) []want {
			h.exec(`DELETE FROM log_checkpoint WHERE size = 200`)
			return []want{{audit.Dropped, "", 299}}
		}},
		{"drop the last checkpoint", func(h *house) []want {
			h.exec(`DELETE FROM log_checkpoint WHERE size = 300`)
			return []want{{audit.Dropped, "", -1}}
		}},
		{"drop all checkpoints", func(h *house) []want {
			h.exec(`DELETE FROM log_checkpoint`)
			return []want{{audit.Dropped, "", -1}}
		}},
		{"insert a checkpoint", func(h *house) []want {
			h.exec(`INSERT INTO log_checkpoint (size, epoch, root, note, made_at) SELECT 1000000000000, 4, root, note, made_at FROM log_checkpoint WHERE size = 300`)
			return []want{{audit.Altered, "", 999999999999}}
		}},
		{"drop the head", func(h *house) []want {
			h.exec(`DELETE FROM log_head`)
			return []want{{audit.Dropped, "", -1}}
		}},
		{"alter the head's root", func(h *house) []want {
			h.exec(`UPDATE log_head SET root = 'x'`)
			return []want{{audit.Altered, "", -1}}
		}},
		{"lengthen the head", func(h *house) []want {
			h.exec(`UPDATE log_head SET size = 1000000000000`)
			return []want{{audit.Altered, "", -1}}
		}},
		{"shorten the head", func(h *house) []want {
			h.exec(`UPDATE log_head SET size = 200, epoch = 2, root = (SELECT root FROM log_checkpoint WHERE size = 200)`)
			return []want{{audit.Altered, "", -1}, {audit.Altered, "", -1}}
		}},
		{"empty the head", func(h *house) []want {
			h.exec(`UPDATE log_head SET size = 0, epoch = 0`)
			return []want{{audit.Altered, "", -1}}
		}},
		{"count too many checkpoints", func(h *house) []want {
			h.exec(`UPDATE log_head SET epoch = 9`)
			return []want{{audit.Dropped, "", -1}}
		}},
		{"count too few checkpoints", func(h *house) []want {
			h.exec(`UPDATE log_head SET epoch = 2`)
			return []want{{audit.Altered, "", -1}}
		}},
	}...)
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		for range 3 {
			h.record(100)
			h.sequence()
		}
		tables := []string{"event", "event_pending", "event_leaf", "log_tile", "log_head", "log_checkpoint", "data_key", "data_key_tombstone"}
		for _, table := range tables {
			h.exec(`CREATE TABLE copy_` + table + ` AS SELECT * FROM ` + table)
		}
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				for _, table := range tables {
					h.exec(`DELETE FROM ` + table)
					h.exec(`INSERT INTO ` + table + ` SELECT * FROM copy_` + table)
				}
				h.ring.Forget(h.ada)
				wanted := c.do(h)
				// A verifier that has seen nothing yet: the database alone gives it away.
				r, err := audit.New(d, h.ring, audit.Options{}).Verify(t.Context(), operator, nil)
				if err != nil {
					t.Fatal(err)
				}
				if len(r.Findings) != len(wanted) {
					t.Errorf("got %d findings, want %d", len(r.Findings), len(wanted))
				}
				got := make(map[want]int)
				for _, f := range r.Findings {
					got[want{f.Kind, f.Event, f.Index}]++
					t.Logf("%+v", f)
				}
				for _, w := range wanted {
					if got[w]--; got[w] < 0 {
						t.Errorf("missing %+v", w)
					}
				}
				if r.Events != 300 {
					t.Errorf("the log has %d events", r.Events)
				}
			})
		}
	})
}

// insert plants a copy of an event under another id.
func (h *house) insert(id, of string) {
	h.t.Helper()
	h.exec(`INSERT INTO event (id, version, made_at, actor_kind, actor_id, device_id, session_id, action, resource,
			customer_id, outcome, reason, transaction_id, request_id, sealed_under, commitment, sealed, mac_version, mac)
		SELECT '`+id+`', version, made_at, actor_kind, actor_id, device_id, session_id, action, resource,
			customer_id, outcome, reason, transaction_id, request_id, sealed_under, commitment, sealed, mac_version, mac
		FROM event WHERE id = $1`, of)
}

// tile changes the hashes of a tile.
func (h *house) tile(level, n int, change func(b []byte)) {
	h.t.Helper()
	ctx := context.Background()
	h.update(func(tx *db.Tx) error {
		var b []byte
		if err := tx.QueryRow(ctx, `SELECT hashes FROM log_tile WHERE level = $1 AND n = $2`, level, n).Scan(&b); err != nil {
			return err
		}
		change(b)
		_, err := tx.Exec(ctx, `UPDATE log_tile SET hashes = $1 WHERE level = $2 AND n = $3`, b, level, n)
		return err
	})
}

func TestVerifyNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		if r := h.holds(); r.Events != 0 || r.Pending != 0 || r.Checkpoint != "" {
			t.Errorf("got %+v", r)
		}
	})
}

// A log with tiles of three levels, verified while it grows.
func TestVerifyWhileGrowing(t *testing.T) {
	if testing.Short() {
		t.Skip("records 70,000 events")
	}
	h := newHouse(t, dbtest.Open(t, db.SQLite), audit.Options{})
	const total = 1<<16 + 3000
	h.fill(total - 2000)
	h.sequence()
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.fill(2000)
		h.sequence()
	}()
	var told int64
	for growing := true; growing; {
		select {
		case <-done:
			growing = false
		default:
		}
		r, err := h.trail.Verify(t.Context(), operator, func(done, total int64) {
			if done < 0 || done > total {
				t.Errorf("%d of %d", done, total)
			}
			told = done
		})
		if err != nil || len(r.Findings) > 0 || told != r.Events {
			t.Fatalf("got %+v, %v; told %d", r, err, told)
		}
	}
	h.sequence()
	if r := h.holds(); r.Events < total {
		t.Errorf("got %d events", r.Events)
	}
	if n := h.count(`SELECT count(*) FROM log_tile WHERE level = 2`); n != 1 {
		t.Errorf("%d tiles of level 2", n)
	}
	// The leap over a whole tile of level 1 is checked too.
	h.tile(1, 0, func(b []byte) { b[255*32] ^= 1 })
	if r := h.verify(); len(r.Findings) != 1 || r.Findings[0].Kind != audit.Altered {
		t.Errorf("got %+v", r.Findings)
	}
}

// fill records n events, many in each transaction.
func (h *house) fill(n int) {
	h.t.Helper()
	for n > 0 {
		some := min(n, 500)
		n -= some
		err := h.db.Update(context.Background(), func(tx *db.Tx) error {
			for i := range some {
				err := h.trail.Record(context.Background(), tx, h.by, audit.Event{
					Action: "test.thing.do", Resource: fmt.Sprintf("thing %d", i), Customer: h.ada, Outcome: audit.Granted,
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			h.t.Error(err)
			return
		}
	}
}
