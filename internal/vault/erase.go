package vault

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// The actions of erasure.
const (
	ActionErase   = "vault.customer.erase"
	ActionReceipt = "vault.customer.receipt"
)

// maxReason is how many characters the reason of an erasure may have.
const maxReason = 500

// Eraser is a room that keeps something of customers too. The identity room is behind it.
type Eraser interface {
	// EraseCustomer deletes all that the room keeps of c, in tx, and returns how many rows there were,
	// by kind. c's data key is still there, and is destroyed in the same transaction afterwards.
	EraseCustomer(ctx context.Context, tx *db.Tx, c customer.ID) (deleted map[string]int64, err error)
}

// Erasure is what Erase did.
type Erasure struct {
	Receipt Receipt `json:"receipt"`
	// Scrubbed says that no file of the database holds the wrapped keys any more. PostgreSQL cannot
	// promise it: what it deletes stays in its files for a while; see docs/keys.md.
	Scrubbed bool `json:"scrubbed"`
}

// Erase erases a customer for good: it deletes their records and indexes, all that the other rooms keep
// of them, and destroys their data key in all versions, in one transaction with the event that says
// so. From then on nothing of them can be read, in this database or in any copy of it that does not
// hold the key; the trail verifies as before and shows "[erased]" in the place of what was personal. A
// tombstone stays, so that the key is not taken from an old copy.
//
// The reason goes into the event, under the trail's own key, and is kept: it must not describe the
// person. The receipt proves the erasure to others; Receipt gives it again. The system may erase, and a
// service as far as policy permits (Services.Erase). Erase fails with the problem "customer-erased" for who was erased before, and with
// "customer-not-found".
//
// When the database was erased but the receipt could not be made, the error says so and the Erasure is
// empty: ask for the receipt again.
func (v *Vault) Erase(ctx context.Context, by actor.Actor, owner customer.ID, reason string) (Erasure, error) {
	e := audit.Event{Action: ActionErase, Resource: "customer", Customer: owner}
	if !owner.Valid() {
		e.Customer = ""
	}
	return v.erase(ctx, &deed{Vault: v, by: by, Event: e, err: mayErase(by)}, owner, reason)
}

func (v *Vault) erase(ctx context.Context, d *deed, owner customer.ID, reason string) (Erasure, error) {
	reason = strings.TrimSpace(reason)
	if n := utf8.RuneCountInString(reason); !utf8.ValidString(reason) || n == 0 || n > maxReason {
		d.refuse(problem.New(problem.Unprocessable, "reason-required",
			"Say in 1 to %d characters why the customer is erased, without describing the person.", maxReason))
	} else {
		d.Personal = map[string]string{"reason": reason}
	}
	now := v.clock.Now()
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		row := erasure{event: audit.NewID(), erasedAt: clock.Micros(now), deleted: map[string]int64{}}
		e.ID = row.event
		// Who is unknown, or erased, is so before anything is deleted.
		if err := v.keys.Erased(ctx, tx, owner); err != nil {
			return err
		}
		if _, err := v.keys.Customer(ctx, tx, owner); err != nil {
			return err
		}
		for _, room := range append([]Eraser{v}, v.erasers...) {
			deleted, err := room.EraseCustomer(ctx, tx, owner)
			if err != nil {
				return err
			}
			for kind, n := range deleted {
				row.deleted[kind] += n
			}
		}
		maps.DeleteFunc(row.deleted, func(_ string, n int64) bool { return n == 0 })
		var err error
		if row.keys, err = v.keys.DestroyCustomer(ctx, tx, d.by, owner); err != nil {
			return err
		}
		return insertErasure(ctx, tx, owner, row)
	})
	if err != nil {
		return Erasure{}, err
	}
	// Committed: what follows can be done again.
	if v.erased != nil {
		v.erased()
	}
	var out Erasure
	out.Scrubbed, err = v.scrub(ctx)
	if err != nil {
		v.log.WarnContext(ctx, "what an erasure deleted may still be in the database's log until it is written back",
			"customer", owner, "error", err)
	}
	if out.Receipt, err = v.receipt(ctx, d.by, owner); err != nil {
		return Erasure{}, fmt.Errorf("the customer is erased, but the receipt could not be made; ask for it again: %w", err)
	}
	return out, nil
}

// scrubTime is for how long Erase waits for readers that keep the database's log.
const scrubTime = 10 * time.Second

func (v *Vault) scrub(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, scrubTime)
	defer cancel()
	return v.db.Scrub(ctx)
}

func mayErase(by actor.Actor) *problem.Problem {
	if by.Kind != actor.System {
		return problem.New(problem.Forbidden, "erasure-not-allowed", "You may not erase customers.")
	}
	return nil
}

// EraseCustomer deletes the records of c with their indexes and marks, and the name under which they were
// imported but for its keyed hash. It makes the vault the first of
// the rooms that Erase asks.
func (v *Vault) EraseCustomer(ctx context.Context, tx *db.Tx, c customer.ID) (map[string]int64, error) {
	deleted := make(map[string]int64)
	for _, d := range []struct{ kind, query string }{
		{"records", `DELETE FROM record WHERE customer_id = $1`},
		{"record-versions", `DELETE FROM record_version WHERE customer_id = $1`},
		{"tokens", `DELETE FROM token WHERE customer_id = $1`},
		{"answers", `DELETE FROM answer WHERE customer_id = $1`},
		{"index-entries", `DELETE FROM record_index WHERE customer_id = $1`},
		{"external-names", `UPDATE external_ref SET sealed = NULL WHERE customer_id = $1`},
		{"record-marks", `DELETE FROM record_mark WHERE customer_id = $1`},
	} {
		n, err := tx.Exec(ctx, d.query, string(c))
		if err != nil {
			return nil, err
		}
		deleted[d.kind] = n
	}
	n, err := eraseBlobs(ctx, tx, c, clock.Micros(v.clock.Now()))
	deleted["blobs"] = n
	return deleted, err
}

// Receipt gives the receipt of an erasure again, against the newest checkpoint. It fails with the problem
// "not-erased" for a customer who was not.
func (v *Vault) Receipt(ctx context.Context, by actor.Actor, owner customer.ID) (Receipt, error) {
	d := &deed{Vault: v, by: by, Event: audit.Event{Action: ActionReceipt, Resource: "customer", Customer: owner}, err: mayErase(by)}
	if !owner.Valid() {
		d.Customer = ""
	}
	return v.giveReceipt(ctx, d, owner)
}

func (v *Vault) giveReceipt(ctx context.Context, d *deed, owner customer.ID) (Receipt, error) {
	if err := d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		_, found, err := selectErasure(ctx, tx, owner)
		if err == nil && !found {
			e.Deny(errNotErased)
		}
		return err
	}); err != nil {
		return Receipt{}, err
	}
	return v.receipt(ctx, d.by, owner)
}

var errNotErased = problem.New(problem.NotFound, "not-erased", "There is no erasure of such a customer.")

// receiptTitle is the first line of a receipt's statement. A checkpoint's first line is the name of the
// log, so neither is ever taken for the other although one key signs both.
const receiptTitle = "strongroom erasure receipt v1"

// Receipt proves an erasure to somebody who has nothing but the log's verifier key.
type Receipt struct {
	// Statement is a signed note (C2SP signed-note) of two lines: the title, and a Statement as JSON.
	Statement string `json:"statement"`
	// Proof shows that the event that the statement names is in the log.
	Proof audit.Proof `json:"proof"`
	// Key is the verifier key of the log. A receipt vouches for itself only as far as this is known to be
	// the installation's from elsewhere.
	Key string `json:"key"`
}

// Statement is what a receipt says.
type Statement struct {
	Customer     customer.ID      `json:"customer"`
	Event        string           `json:"event"`
	ErasedAt     time.Time        `json:"erased_at"`
	Environment  string           `json:"environment"`
	Installation string           `json:"installation"`
	Keys         int              `json:"keys_destroyed"` // versions of the customer's data key
	Deleted      map[string]int64 `json:"deleted"`        // rows by kind
}

func (v *Vault) receipt(ctx context.Context, by actor.Actor, owner customer.ID) (Receipt, error) {
	var row erasure
	err := v.db.View(ctx, func(tx *db.Tx) (err error) {
		var found bool
		if row, found, err = selectErasure(ctx, tx, owner); err == nil && !found {
			err = errNotErased
		}
		return err
	})
	if err != nil {
		return Receipt{}, err
	}
	text, err := json.Marshal(Statement{
		Customer: owner, Event: row.event, ErasedAt: clock.FromMicros(row.erasedAt), Keys: row.keys, Deleted: row.deleted,
		Environment: v.db.Environment(), Installation: v.db.Installation(),
	})
	if err != nil {
		return Receipt{}, err
	}
	r := Receipt{Key: v.keys.CheckpointKey()}
	signed, err := note.Sign(&note.Note{Text: receiptTitle + "\n" + string(text) + "\n"}, v.keys.CheckpointSigner())
	if err != nil {
		return Receipt{}, err
	}
	r.Statement = string(signed)
	if by.Kind != actor.System {
		// The trail is not a service's to read, and yet the proof of this one event is, once the vault has
		// decided, and recorded, who gets the receipt.
		by = actor.Actor{Kind: actor.System, ID: "vault", Request: by.Request}
	}
	r.Proof, err = v.trail.Prove(ctx, by, row.event)
	return r, err
}

// ErrReceipt means that a receipt does not prove what it says.
var ErrReceipt = errors.New("the receipt does not hold")

// Check checks the receipt against the log's verifier key, which the caller trusts; when it is empty,
// against the key that the receipt brings along. It needs no installation. It fails with ErrReceipt.
func (r Receipt) Check(key string) (Statement, audit.Proved, error) {
	fail := func(format string, args ...any) (Statement, audit.Proved, error) {
		return Statement{}, audit.Proved{}, fmt.Errorf("%w: "+format, append([]any{ErrReceipt}, args...)...)
	}
	if key == "" {
		key = r.Key
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return fail("its verifier key has not the form name+hash+key")
	}
	known := note.VerifierList(verifier)
	signed, err := note.Open([]byte(r.Statement), known)
	if err != nil {
		return fail("the statement is not signed by %s", verifier.Name())
	}
	title, rest, _ := strings.Cut(signed.Text, "\n")
	var s Statement
	decode := json.NewDecoder(strings.NewReader(rest))
	decode.DisallowUnknownFields()
	if err := decode.Decode(&s); err != nil || title != receiptTitle {
		return fail("what was signed is no erasure receipt")
	}
	proved, err := r.Proof.Check(known)
	switch {
	case err != nil:
		return fail("%w", err)
	case proved.ID != s.Event || proved.Action != ActionErase || proved.Outcome != audit.Granted || proved.Customer != s.Customer:
		return fail("the event in the log is another one")
	}
	return s, proved, nil
}

// erasure is a row of the table.
type erasure struct {
	event    string
	erasedAt int64
	keys     int
	deleted  map[string]int64
}

func insertErasure(ctx context.Context, tx *db.Tx, c customer.ID, e erasure) error {
	deleted, err := json.Marshal(e.deleted)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO erasure (customer_id, event_id, erased_at, keys, deleted) VALUES ($1, $2, $3, $4, $5)`,
		string(c), e.event, e.erasedAt, e.keys, string(deleted))
	return err
}

func selectErasure(ctx context.Context, tx *db.Tx, c customer.ID) (e erasure, found bool, err error) {
	var deleted string
	err = tx.QueryRow(ctx, `SELECT event_id, erased_at, keys, deleted FROM erasure WHERE customer_id = $1`, string(c)).
		Scan(&e.event, &e.erasedAt, &e.keys, &deleted)
	if errors.Is(err, sql.ErrNoRows) {
		return erasure{}, false, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(deleted), &e.deleted)
	}
	return e, err == nil, err
}
