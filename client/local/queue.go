package local

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/ncruces/go-sqlite3"

	"strongroom/client"
)

// Queue holds what the customer did while the server could not be reached, and does it, in order, when Flush
// says so. Each operation is done at most once: it carries a condition that no longer holds after it was
// done, and when an answer was lost on the way, the record itself tells whether the operation was.
type Queue struct {
	store  *Store
	client *client.Client
	// Purpose is why the record is read whole after a lost answer, to compare; it goes into the audit trail.
	// "" means "show-to-customer".
	Purpose string

	mu sync.Mutex // one Flush at a time
}

// Queue returns the store's queue, whose operations c sends.
func (s *Store) Queue(c *client.Client) *Queue { return &Queue{store: s, client: c} }

// Operation is a change of a record that waits, or that the server did not take.
type Operation struct {
	ID         int64
	Once       string // the idempotency key
	Delete     bool   // of the record; else it is written
	Collection string
	Key        string
	Fields     json.RawMessage // of a write
	// Problem is "" while the operation waits. Otherwise the server did not take it, and it waits for Resolve:
	// client.ErrVersionMismatch means that somebody else has changed the record meanwhile.
	Problem client.Slug

	condition, etag string
	tried           bool // it was sent, and the answer was lost
}

// String names the operation without its fields.
func (o Operation) String() string {
	return fmt.Sprintf("operation %d on %s/%s", o.ID, o.Collection, o.Key)
}

// Base says what the customer saw when they changed the record.
type Base struct{ condition, etag string }

// New means that there was no such record.
func New() Base { return Base{"new", ""} }

// Version means that it was the one with this ETag.
func Version(etag string) Base { return Base{"etag", etag} }

// NewKey returns an idempotency key.
func NewKey() string { return rand.Text() }

// Put queues the writing of a record. Once names the operation: queueing it again does nothing. When an
// earlier operation on the record waits, this one follows it, whatever base says.
func (q *Queue) Put(once, collection, key string, fields any, base Base) error {
	body, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("strongroom: %w", err)
	}
	return q.add(Operation{Once: once, Collection: collection, Key: key, Fields: body, condition: base.condition, etag: base.etag})
}

// Delete queues the deletion of a record.
func (q *Queue) Delete(once, collection, key string, base Base) error {
	return q.add(Operation{Once: once, Delete: true, Collection: collection, Key: key, condition: base.condition, etag: base.etag})
}

func (q *Queue) add(o Operation) error {
	if o.Once == "" || o.condition == "" || o.Delete && o.condition == "new" {
		return errors.New("strongroom: an operation needs an idempotency key and a base")
	}
	return q.store.atomic(func() error {
		before := int64(0)
		err := q.store.run(func(r *sqlite3.Stmt) { before = r.ColumnInt64(0) },
			`SELECT COUNT(*) FROM operation WHERE collection = ?1 AND key = ?2`, o.Collection, o.Key)
		if err != nil {
			return err
		}
		if before > 0 {
			o.condition, o.etag = "follows", "" // the ETag is that of the earlier one's outcome
		}
		kind := "put"
		if o.Delete {
			kind = "delete"
		}
		return q.store.run(nil, `INSERT INTO operation (once, kind, collection, key, condition, value, fields) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
			ON CONFLICT (once) DO NOTHING`, o.Once, kind, o.Collection, o.Key, o.condition, o.etag, []byte(o.Fields))
	})
}

// List returns the operations in their order.
func (q *Queue) List() ([]Operation, error) {
	var all []Operation
	err := q.store.query(func(r *sqlite3.Stmt) {
		all = append(all, Operation{
			ID: r.ColumnInt64(0), Once: r.ColumnText(1), Delete: r.ColumnText(2) == "delete", Collection: r.ColumnText(3), Key: r.ColumnText(4),
			condition: r.ColumnText(5), etag: r.ColumnText(6), Fields: r.ColumnBlob(7, nil), tried: r.ColumnInt64(8) != 0, Problem: client.Slug(r.ColumnText(9)),
		})
	}, `SELECT id, once, kind, collection, key, condition, value, fields, tried, problem FROM operation ORDER BY id`)
	return all, err
}

// Flush sends what waits, in order, and returns how many operations are done. It stops at the first that the
// server could not be asked about, with that error; the rest waits for the next Flush. What the server does
// not take stays in List with its Problem, holds back later operations on the same record, and no others.
func (q *Queue) Flush(ctx context.Context) (done int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	all, err := q.List()
	if err != nil {
		return 0, err
	}
	held := map[[2]string]bool{}
	etags := map[[2]string]string{}
	for _, o := range all {
		record := [2]string{o.Collection, o.Key}
		if o.Problem != "" || held[record] {
			held[record] = true
			continue
		}
		if etag, ok := etags[record]; ok && o.condition == "follows" {
			o.condition, o.etag = "etag", etag
			if etag == "" {
				o.condition = "new" // the earlier one deleted it
			}
		}
		// Before it is sent, since afterwards may be too late.
		if err := q.store.exec(`UPDATE operation SET tried = 1, condition = ?2, value = ?3 WHERE id = ?1`, o.ID, o.condition, o.etag); err != nil {
			return done, err
		}
		etag, err := q.send(ctx, o)
		var p *client.Problem
		switch {
		case err == nil:
			if err := q.finish(o, etag); err != nil {
				return done, err
			}
			etags[record] = etag
			done++
		case errors.As(err, &p) && refused(p):
			if err := q.store.exec(`UPDATE operation SET problem = ?2, tried = 0 WHERE id = ?1`, o.ID, string(p.Slug)); err != nil {
				return done, err
			}
			held[record] = true
		default:
			return done, err
		}
	}
	return done, nil
}

// refused reports whether the server will say the same the next time.
func refused(p *client.Problem) bool {
	switch p.Status {
	case 401, 408, 429:
		return false
	}
	return p.Status >= 400 && p.Status < 500
}

// finish removes an operation that is done, and tells the one that follows it what to build upon.
func (q *Queue) finish(o Operation, etag string) error {
	return q.store.atomic(func() error {
		if err := q.store.run(nil, `DELETE FROM operation WHERE id = ?1`, o.ID); err != nil {
			return err
		}
		condition := "etag"
		if etag == "" {
			condition = "new"
		}
		return q.store.run(nil, `UPDATE operation SET condition = ?3, value = ?4 WHERE id = (
			SELECT MIN(id) FROM operation WHERE collection = ?1 AND key = ?2 AND condition = 'follows')`, o.Collection, o.Key, condition, etag)
	})
}

// send does the operation and returns the ETag that the record then has; "" when it is gone.
func (q *Queue) send(ctx context.Context, o Operation) (etag string, err error) {
	records := q.client.Collection(o.Collection)
	condition := client.IfNew()
	if o.condition == "etag" {
		condition = client.IfMatch(o.etag)
	}
	if o.Delete {
		err = records.Delete(ctx, o.Key, condition)
		if o.tried && errors.Is(err, client.ErrRecordNotFound) {
			err = nil
		}
		return "", err
	}
	r, err := records.Put(ctx, o.Key, o.Fields, condition)
	if err == nil {
		return r.ETag, nil
	}
	if o.tried && (errors.Is(err, client.ErrVersionMismatch) || errors.Is(err, client.ErrPreconditionNeeded)) {
		if etag, same := q.same(ctx, o); same {
			return etag, nil
		}
	}
	return "", err
}

// same reports whether the record is what the operation would make of it.
func (q *Queue) same(ctx context.Context, o Operation) (etag string, same bool) {
	purpose := q.Purpose
	if purpose == "" {
		purpose = "show-to-customer"
	}
	r, err := q.client.Collection(o.Collection).Reveal(ctx, o.Key, purpose)
	if err != nil {
		return "", false
	}
	var wanted map[string]any
	d := json.NewDecoder(bytes.NewReader(o.Fields))
	d.UseNumber()
	if d.Decode(&wanted) != nil {
		return "", false
	}
	return r.ETag, reflect.DeepEqual(wanted, r.Fields)
}

// Resolve lets an operation that the server did not take wait again, on the base that the customer has seen
// since.
func (q *Queue) Resolve(id int64, base Base) error {
	return q.store.exec(`UPDATE operation SET problem = '', tried = 0, condition = ?2, value = ?3 WHERE id = ?1 AND problem <> ''`, id, base.condition, base.etag)
}

// Drop forgets an operation, and with it those that follow it on the same record.
func (q *Queue) Drop(id int64) error {
	return q.store.exec(`DELETE FROM operation WHERE id >= ?1 AND (collection, key) = (SELECT collection, key FROM operation WHERE id = ?1)`, id)
}
