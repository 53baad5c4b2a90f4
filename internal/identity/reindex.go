package identity

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
)

// Index is the accounts, each of which is looked up by the blind index of its number. Keyring has them
// made anew when it rotates the key. It needs no more than the keys, so that an installation without a
// running server has it too.
//
// An account moves to the new version with its lanes, whose failures therefore stay counted. What counts
// messages and starts moves by itself with the next one, and is gone after two days anyway.
type Index struct{ room *Identity }

// NewIndex returns the Index of the accounts.
func NewIndex(keys *keyring.Keyring, clk clock.Clock) Index {
	return Index{&Identity{Options: Options{Keys: keys, Clock: clk}, rows: rows{tokenKeys{keys}}}}
}

// Peppers counts the private codes by the version of the pepper that they were hashed under.
func Peppers(ctx context.Context, tx *db.Tx) (map[uint32]int64, error) {
	return countBy(ctx, tx, "pepper_version")
}

func countBy(ctx context.Context, tx *db.Tx, column string) (map[uint32]int64, error) {
	rows, err := tx.Query(ctx, `SELECT `+column+`, COUNT(*) FROM account GROUP BY `+column)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := make(map[uint32]int64)
	for rows.Next() {
		var version uint32
		var n int64
		if err := rows.Scan(&version, &n); err != nil {
			return nil, err
		}
		counts[version] = n
	}
	return counts, rows.Err()
}

// Name is the table.
func (Index) Name() string { return "identity.account" }

// Versions counts the accounts by the version of the key that made their index.
func (Index) Versions(ctx context.Context, tx *db.Tx) (map[uint32]int64, error) {
	return countBy(ctx, tx, "index_version")
}

// Behind counts the accounts that older versions than to made.
func (Index) Behind(ctx context.Context, tx *db.Tx, to uint32) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM account WHERE index_version < $1`, int64(to)).Scan(&n)
	return n, err
}

// maxMoves bounds the accounts of one transaction: logins at the same instant touch the same lanes.
const maxMoves = 20

// indexed is an account as its move needs it.
type indexed struct {
	account
	keyring.Blind
	sealed, stamp []byte
}

// Renew moves the next accounts to the version.
func (x Index) Renew(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (did keyring.Renewed, err error) {
	limit = min(limit, maxMoves)
	all, err := selectBehind(ctx, tx, to, after, limit)
	if err != nil {
		return did, err
	}
	if len(all) == limit {
		did.Next = string(all[len(all)-1].customer)
	}
	for _, a := range all {
		moved, failed, err := x.move(ctx, tx, a, to)
		switch {
		case err != nil:
			return did, err
		case failed != nil:
			did.Failed = append(did.Failed, fmt.Errorf("the account of %s: %w", a.customer, failed))
		case moved:
			did.Done++
		}
	}
	return did, nil
}

func selectBehind(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (all []indexed, err error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id, phone_index, index_version, phone, code_hash, pepper_version, stamp FROM account
		WHERE customer_id > $1 AND index_version < $2 ORDER BY customer_id LIMIT $3`, after, int64(to), int64(limit))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var a indexed
		if err := rows.Scan(&a.customer, &a.Value, &a.Version, &a.sealed, &a.code.hash, &a.code.pepper, &a.stamp); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, rows.Err()
}

var (
	errOtherNumber = errors.New("the index is not that of the sealed number")
	errNumberTaken = errors.New("another account has the number's index")
)

// move gives an account and its lanes their names under the version; failed says why it cannot. What
// somebody else changed meanwhile is not moved: the next pass has it.
func (x Index) move(ctx context.Context, tx *db.Tx, a indexed, to uint32) (moved bool, failed, err error) {
	i := x.room
	if failed := i.rows.check(a.stamp, accountParts(a.customer, a.Value, a.code)); failed != nil {
		return false, failed, nil
	}
	ring, err := i.Keys.Customer(ctx, tx, a.customer)
	if err == nil {
		ring, err = i.Keys.Holding(ctx, tx, a.customer, ring, a.sealed)
	}
	if errors.Is(err, keyring.ErrDamaged) || errors.Is(err, keyring.ErrUnwrap) {
		return false, err, nil
	}
	if err != nil {
		return false, nil, err
	}
	number, failed := ring.Open(place("account", a.customer, "phone"), a.sealed)
	if failed != nil {
		return false, failed, nil
	}
	defer clear(number)
	phone := i.phoneIndexes(string(number))
	fresh, ok := keyring.Under(phone, to)
	if !ok {
		return false, nil, fmt.Errorf("identity: version %d of the blind-index key is not here", to)
	}
	if !a.IsOneOf(phone) {
		return false, errOtherNumber, nil
	}
	switch _, err := accountAt(ctx, tx, fresh.Value); {
	case err == nil:
		return false, errNumberTaken, nil
	case !errors.Is(err, sql.ErrNoRows):
		return false, nil, err
	}
	// A private code that was hashed anew meanwhile has a new stamp.
	n, err := tx.Exec(ctx, `UPDATE account SET phone_index = $1, index_version = $2, stamp = $3 WHERE customer_id = $4 AND phone_index = $5 AND code_hash = $6`,
		fresh.Value, int64(to), i.rows.stamp(accountParts(a.customer, fresh.Value, a.code)), string(a.customer), a.Value, a.code.hash)
	if err != nil || n == 0 {
		return false, nil, err
	}
	sources, err := deviceKeys(ctx, tx, a.customer)
	if err != nil {
		return false, nil, err
	}
	for _, source := range append(sources, "") {
		keys := i.laneKeys(string(number), source)
		l, err := getLane(ctx, tx, keys)
		if err != nil {
			return false, nil, err
		}
		if !l.older {
			continue
		}
		if l, err = lockLane(ctx, tx, keys, i.Clock.Now()); err != nil {
			return false, nil, err
		}
		if err := putLane(ctx, tx, keys, l, i.Clock.Now()); err != nil {
			return false, nil, err
		}
	}
	return true, nil, nil
}

func accountAt(ctx context.Context, tx *db.Tx, phoneIndex []byte) (c customer.ID, err error) {
	err = tx.QueryRow(ctx, `SELECT customer_id FROM account WHERE phone_index = $1`, phoneIndex).Scan(&c)
	return c, err
}

// deviceKeys returns what names the lanes of a customer's devices.
func deviceKeys(ctx context.Context, tx *db.Tx, c customer.ID) (keys []string, err error) {
	rows, err := tx.Query(ctx, `SELECT jkt FROM device WHERE customer_id = $1`, string(c))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		keys = append(keys, key, key+resetLane)
	}
	return keys, rows.Err()
}

// Clear has nothing to do: what is moved is not in two places.
func (Index) Clear(context.Context, *db.Tx, uint32, string, int) (keyring.Renewed, error) {
	return keyring.Renewed{}, nil
}
