package audit

import (
	"context"
	"encoding/binary"
	"fmt"

	"strongroom/internal/db"
)

// KeyNeeded says what in the trail needs a version of a key, or "": every event needs the key of its MAC
// for as long as it is kept, and one that is sealed under nobody's key needs that, as a saved search does.
func KeyNeeded(ctx context.Context, tx *db.Tx, name string, version uint32) (by string, err error) {
	var n int64
	switch name {
	case macKey:
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM event WHERE mac_version = $1`, version).Scan(&n)
	case sealingKey:
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM event WHERE sealed_under = $1 AND substr(sealed, 2, 4) = $2`,
			underService, binary.BigEndian.AppendUint32(nil, version)).Scan(&n)
	}
	if err != nil || n > 0 {
		return fmt.Sprintf("%d events of the trail", n), err
	}
	switch name {
	case macKey:
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM audit_archive WHERE mac_version = $1`, version).Scan(&n)
	case sealingKey:
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM audit_archive WHERE removed_at = 0 AND (key_version = $1
			OR past <= (SELECT COALESCE(max(past), 0) FROM audit_archive_key WHERE customer_id = '' AND version = $1))`, version).Scan(&n)
	}
	if err != nil || n > 0 {
		return fmt.Sprintf("%d archived objects of the trail", n), err
	}
	if name == sealingKey {
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM saved_search WHERE substr(sealed, 2, 4) = $1`,
			binary.BigEndian.AppendUint32(nil, version)).Scan(&n)
	}
	if err != nil || n == 0 {
		return "", err
	}
	return fmt.Sprintf("%d saved searches", n), nil
}
