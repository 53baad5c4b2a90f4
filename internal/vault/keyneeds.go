package vault

import (
	"context"
	"fmt"

	"strongroom/internal/db"
	"strongroom/internal/keyring"
)

// KeyNeeded says what in the vault needs a version of a service key, or "": the declarations of
// collections, each of which is authenticated and none of which is ever written again. What needs the
// blind-index key is said by Indexes.
func KeyNeeded(ctx context.Context, tx *db.Tx, name string, version uint32) (by string, err error) {
	if name != keyring.KeyEventMAC {
		return "", nil
	}
	var n int64
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM collection_version WHERE mac_version = $1`, version).Scan(&n)
	if err != nil || n == 0 {
		return "", err
	}
	return fmt.Sprintf("%d declarations of collections", n), nil
}
