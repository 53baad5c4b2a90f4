// Package once answers a request that is sent again as it was answered the first time.
//
// A service puts a key of its own making into each request that changes something. The promise: within
// 24 hours of the first answer, the same request with the same key does nothing more and gets that
// answer, also when both arrive at the same moment; another request with the same key is refused. The
// answer is kept in the transaction of the deed, sealed under the key of the customer that it is
// about, so that it dies with them. A refusal did nothing, and is not kept.
package once

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

const (
	// Lifetime is how long an answer is kept.
	Lifetime = 24 * time.Hour
	// JobName is the name of the job that forgets.
	JobName = "once-expiry"

	room       = "once"
	sealingKey = "event" // of the trail; the place keeps the two apart
	macKey     = "token"
	batch      = 512
)

// Raced is the slug of the problem that the same key was used at the same moment. Ask again: by then
// there is an answer.
const Raced = "idempotency-raced"

// ErrRaced is that problem.
var ErrRaced = problem.New(problem.Conflict, Raced, "The same request is being answered at this moment. Send it again.").RetryAfter(time.Second)

// Keys gives the keys that answers are sealed with. The keyring is behind it.
type Keys interface {
	Customer(ctx context.Context, tx *db.Tx, c customer.ID) (*seal.Ring, error)
	// Holding returns ring, the key of c, or a newer one when ring does not open one of the values.
	Holding(ctx context.Context, tx *db.Tx, c customer.ID, ring *seal.Ring, values ...[]byte) (*seal.Ring, error)
	Service(name string) *seal.Ring
	MAC(name string, parts ...[]byte) (mac []byte, version uint32)
	MACVersion(name string, version uint32, parts ...[]byte) ([]byte, error)
}

// Book keeps answers. It is safe for concurrent use.
type Book struct {
	db    *db.DB
	keys  Keys
	clock clock.Clock
}

// New returns the book in d. A nil clock means clock.System.
func New(d *db.DB, keys Keys, c clock.Clock) *Book {
	if c == nil {
		c = clock.System
	}
	return &Book{d, keys, c}
}

// Request is a request that wants to be answered once.
type Request struct {
	Service string
	Key     string   // the service's own
	Asked   [][]byte // everything that the answer depends on
}

// maxKey is the length of a key in bytes.
const maxKey = 128

// Check checks the form of a key.
func Check(key string) *problem.Problem {
	ok := len(key) >= 8 && len(key) <= maxKey
	for i := range len(key) {
		ok = ok && key[i] > ' ' && key[i] < 0x7f
	}
	if !ok {
		return problem.New(problem.Invalid, "invalid-idempotency-key",
			"Idempotency-Key is 8 to %d printable ASCII characters without spaces; a random UUID is a good one.", maxKey)
	}
	return nil
}

func (r Request) name() []byte {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32([]byte("once"), uint32(len(r.Service))))
	h.Write([]byte(r.Service))
	h.Write([]byte(r.Key))
	return h.Sum(nil)
}

func place(name []byte, c customer.ID) seal.Place {
	return seal.Place{Room: room, Table: "answer", Customer: string(c), Record: hex.EncodeToString(name)}
}

// Answer is an answer that was given before.
type Answer struct {
	Customer customer.ID // whom it is about; empty for nobody
	book     *Book
	name     []byte
	sealed   []byte
	ring     *seal.Ring
}

// Look returns the answer to an earlier request like r, or nil. It fails with the problem
// "idempotency-key-reused" when the key came with another request before.
func (b *Book) Look(ctx context.Context, r Request) (*Answer, error) {
	a := &Answer{book: b, name: r.name()}
	var print []byte
	var version uint32
	var expires int64
	err := b.db.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT print, print_version, customer_id, sealed, expires_at FROM answer WHERE name = $1`, a.name).
			Scan(&print, &version, &a.Customer, &a.sealed, &expires)
	})
	if errors.Is(err, sql.ErrNoRows) || err == nil && expires <= clock.Micros(b.clock.Now()) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// When the key of the print is gone, what was asked cannot be compared, and is not taken for the same.
	again, err := b.keys.MACVersion(macKey, version, r.print()...)
	if err != nil || !hmac.Equal(print, again) {
		return nil, problem.New(problem.Unprocessable, "idempotency-key-reused",
			"This Idempotency-Key came with another request before. Make a new one for each request.").Because(err)
	}
	return a, nil
}

// Known reports whether there is an answer under the key of r, to whatever request: r.Asked is not looked at.
func (b *Book) Known(ctx context.Context, tx *db.Tx, r Request) (bool, error) {
	var n int
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM answer WHERE name = $1 AND expires_at > $2`, r.name(), clock.Micros(b.clock.Now())).Scan(&n)
	return n > 0, err
}

func (r Request) print() [][]byte { return append([][]byte{[]byte("once")}, r.Asked...) }

// Unlock gets the key that opens the answer, in the transaction that records that it is given again.
func (a *Answer) Unlock(ctx context.Context, tx *db.Tx) (err error) {
	if a.Customer == "" {
		a.ring = a.book.keys.Service(sealingKey)
		return nil
	}
	if a.ring, err = a.book.keys.Customer(ctx, tx, a.Customer); err != nil {
		return err
	}
	a.ring, err = a.book.keys.Holding(ctx, tx, a.Customer, a.ring, a.sealed)
	return err
}

// Open returns the answer. Call it when that transaction is durable.
func (a *Answer) Open() ([]byte, error) { return a.ring.Open(place(a.name, a.Customer), a.sealed) }

// Keep keeps the answer to r, in the transaction of the deed; c is whom it is about. It fails with the
// problem Raced when the key was used in the meantime: then the deed must fail too.
func (b *Book) Keep(ctx context.Context, tx *db.Tx, r Request, c customer.ID, answer []byte) error {
	ring := b.keys.Service(sealingKey)
	if c != "" {
		var err error
		if ring, err = b.keys.Customer(ctx, tx, c); err != nil {
			return err
		}
	}
	name, now := r.name(), b.clock.Now()
	print, version := b.keys.MAC(macKey, r.print()...)
	n, err := tx.Exec(ctx, `
		INSERT INTO answer (name, print, print_version, customer_id, sealed, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (name) DO UPDATE
			SET print = excluded.print, print_version = excluded.print_version, customer_id = excluded.customer_id,
			    sealed = excluded.sealed, expires_at = excluded.expires_at
			WHERE answer.expires_at <= $7`,
		name, print, version, string(c), ring.Seal(place(name, c), answer), clock.Micros(now.Add(Lifetime)), clock.Micros(now))
	if err == nil && n == 0 {
		return ErrRaced
	}
	return err
}

// Job returns the job that forgets answers whose time is over.
func (b *Book) Job() jobs.Job {
	return jobs.Job{Name: JobName, Every: time.Hour, Run: b.Expire, Leased: true}
}

// Expire forgets answers whose time is over, in batches until none is left or ctx ends.
func (b *Book) Expire(ctx context.Context) error {
	now := clock.Micros(b.clock.Now())
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var n int64
		err := b.db.Update(ctx, func(tx *db.Tx) (err error) {
			n, err = tx.Exec(ctx, `DELETE FROM answer WHERE name IN (
				SELECT name FROM answer WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)`, now, batch)
			return err
		})
		if err != nil || n < batch {
			return err
		}
	}
}
