package once

import (
	"context"
	"encoding/binary"
	"fmt"

	"strongroom/internal/db"
)

// KeyNeeded says whether remembered answers need a version of a key, or returns "". They are forgotten
// after a day.
func KeyNeeded(ctx context.Context, tx *db.Tx, name string, version uint32) (by string, err error) {
	var n int64
	switch name {
	case macKey:
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM answer WHERE print_version = $1`, version).Scan(&n)
	case sealingKey:
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM answer WHERE customer_id = '' AND substr(sealed, 2, 4) = $1`,
			binary.BigEndian.AppendUint32(nil, version)).Scan(&n)
	}
	if err != nil || n == 0 {
		return "", err
	}
	return fmt.Sprintf("%d remembered answers", n), nil
}
