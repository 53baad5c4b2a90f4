package identity

import (
	"bytes"
	"context"
	"database/sql"
	"errors"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/problem"
)

// Eraser deletes what this room keeps of a customer. It needs no more than the keys, so that an
// installation without a running server has it too.
type Eraser struct{ room *Identity }

// NewEraser returns an Eraser.
func NewEraser(keys *keyring.Keyring) Eraser {
	return Eraser{&Identity{Options: Options{Keys: keys}, rows: rows{tokenKeys{keys}}}}
}

// EraseCustomer deletes the account of c with the number, the private code's hash and the devices; their
// sessions, which are dead at once; their failures and the counts of messages to the number; and what
// waits for them, challenges and messages, by whomever it was asked for. The number can then be
// registered anew, by a new customer. It returns how many rows there were, by kind.
//
// Hashes of access and refresh tokens stay until they would have expired: without their session they
// lead nowhere.
func (e Eraser) EraseCustomer(ctx context.Context, tx *db.Tx, c customer.ID) (map[string]int64, error) {
	i := e.room
	deleted := make(map[string]int64)
	remove := func(kind, query string, args ...any) error {
		n, err := tx.Exec(ctx, query, args...)
		deleted[kind] += n
		return err
	}
	if err := i.catchUp(ctx, tx); err != nil {
		return nil, err
	}
	index, number, exists, err := i.accountOf(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	devices, err := i.rows.devicesOf(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	// The keys of the customer's own devices name lanes, as "" names that of all others.
	sources := []string{""}
	for _, d := range devices {
		sources = append(sources, d.jkt, d.jkt+resetLane)
	}
	for _, counted := range i.Keys.BlindIndexes("identity.quota", []byte("notices\x00"+string(c))) {
		if err := remove("counters", `DELETE FROM quota WHERE counted = $1`, counted.Value); err != nil {
			return nil, err
		}
	}
	if exists {
		indexes := [][]byte{index}
		for _, b := range i.Keys.BlindIndexes("identity.phone", []byte(number)) {
			if !bytes.Equal(b.Value, index) {
				indexes = append(indexes, b.Value)
			}
		}
		for _, index := range indexes {
			for _, source := range sources {
				for _, lane := range i.Keys.BlindIndexes("identity.lane", append(bytes.Clone(index), source...)) {
					if err := remove("lanes", `DELETE FROM throttle WHERE lane = $1`, lane.Value); err != nil {
						return nil, err
					}
				}
			}
		}
		for _, counted := range i.Keys.BlindIndexes("identity.quota", []byte("warnings\x00"+number)) {
			if err := remove("counters", `DELETE FROM quota WHERE counted = $1`, counted.Value); err != nil {
				return nil, err
			}
		}
		for _, kind := range []string{"messages-hourly", "messages-daily"} {
			for _, source := range append([]string{string(registering), string(stranger)}, sources[1:]...) {
				for _, counted := range i.Keys.BlindIndexes("identity.quota", []byte(kind+"\x00"+number+source)) {
					if err := remove("counters", `DELETE FROM quota WHERE counted = $1`, counted.Value); err != nil {
						return nil, err
					}
				}
			}
		}
	}
	if err := i.eraseWaiting(ctx, tx, c, number, remove); err != nil {
		return nil, err
	}
	for _, d := range []struct{ kind, query string }{
		{"code resets", `DELETE FROM code_reset WHERE customer_id = $1`},
		{"code changes", `DELETE FROM code_change WHERE customer_id = $1`},
		{"sessions", `DELETE FROM session WHERE customer_id = $1`},
		{"sessions", `DELETE FROM oauth_code WHERE customer_id = $1`},
		{"challenges", `DELETE FROM payment WHERE customer_id = $1`},
		{"devices", `DELETE FROM device WHERE customer_id = $1`},
		{"devices", `DELETE FROM device_trust WHERE customer_id = $1`},
		{"factors", `DELETE FROM factor WHERE customer_id = $1`},
		{"factors", `DELETE FROM sms_rule WHERE customer_id = $1`},
		{"number-changes", `DELETE FROM number_change WHERE customer_id = $1`},
		{"vouches", `DELETE FROM vouch WHERE customer_id = $1`},
		{"notices", `DELETE FROM notice WHERE customer_id = $1`},
		{"accounts", `DELETE FROM account WHERE customer_id = $1`},
	} {
		if err := remove(d.kind, d.query, string(c)); err != nil {
			return nil, err
		}
	}
	return deleted, announceEnd(ctx, tx, c)
}

// accountOf returns the number of a customer and its index. A customer need not have an account. A
// number that does not open keeps nobody from being erased.
func (i *Identity) accountOf(ctx context.Context, tx *db.Tx, c customer.ID) (index []byte, number string, exists bool, err error) {
	var sealed []byte
	err = tx.QueryRow(ctx, `SELECT phone_index, phone FROM account WHERE customer_id = $1`, string(c)).Scan(&index, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, "", false, nil
	}
	if err != nil {
		return nil, "", false, err
	}
	ring, err := i.Keys.Customer(ctx, tx, c)
	if problem.Is(err, "customer-erased") {
		return index, "", true, nil // a restored copy of who was erased: what the number leads to expires
	}
	if err != nil {
		return nil, "", false, err
	}
	if ring, err = i.Keys.Holding(ctx, tx, c, ring, sealed); err != nil {
		return nil, "", false, err
	}
	plain, err := ring.Open(place("account", c, "phone"), sealed)
	if err != nil {
		return index, "", true, nil
	}
	return index, string(plain), true, nil
}

// eraseWaiting deletes the challenges and the messages of a customer or for their number. They live for
// minutes, sealed under a key that is nobody's, so they are found by opening them all.
func (i *Identity) eraseWaiting(ctx context.Context, tx *db.Tx, c customer.ID, number string, remove func(kind, query string, args ...any) error) error {
	concerns := func(owner customer.ID, phone string) bool {
		return owner == c || number != "" && phone == number
	}
	challenges, err := waiting(ctx, tx, `SELECT id, sealed FROM challenge`)
	if err != nil {
		return err
	}
	for _, w := range challenges {
		state, err := i.openChallenge(challengeRow{id: w.id, sealed: w.sealed})
		if err == nil && concerns(state.Customer, state.Phone) {
			if err := remove("challenges", `DELETE FROM challenge WHERE id = $1`, w.id); err != nil {
				return err
			}
		}
	}
	for _, table := range []string{"sms_outbox", "sms_sent"} {
		letters, err := waiting(ctx, tx, `SELECT id, sealed FROM `+table)
		if err != nil {
			return err
		}
		for _, w := range letters {
			var l letter
			if err := i.openBlank(table, w.id, w.sealed, &l); err == nil && concerns(l.Customer, l.To) {
				if err := remove("messages", `DELETE FROM `+table+` WHERE id = $1`, w.id); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// waitingRow is a challenge or a message before it is opened.
type waitingRow struct {
	id     string
	sealed []byte
}

func waiting(ctx context.Context, tx *db.Tx, query string) (all []waitingRow, err error) {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var w waitingRow
		if err := rows.Scan(&w.id, &w.sealed); err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	return all, rows.Err()
}
