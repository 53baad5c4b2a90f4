package identity

import (
	"context"
	"encoding/binary"
	"fmt"

	"strongroom/internal/db"
	"strongroom/internal/keyring"
)

// KeyNeeded says what in the rows of customers needs a version of a service key, or "".
func KeyNeeded(ctx context.Context, tx *db.Tx, name string, version uint32) (by string, err error) {
	stamp := binary.BigEndian.AppendUint32(nil, version)
	for _, q := range []struct {
		key, what, query string
		arg              any
	}{
		{keyring.KeyToken, "accounts", `SELECT COUNT(*) FROM account WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "devices", `SELECT COUNT(*) FROM device WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "sessions", `SELECT COUNT(*) FROM session WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "resets of private codes", `SELECT COUNT(*) FROM code_reset WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "second steps", `SELECT COUNT(*) FROM factor WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "rules on SMS", `SELECT COUNT(*) FROM sms_rule WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "attested or waiting devices", `SELECT COUNT(*) FROM device_trust WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "words of staff", `SELECT COUNT(*) FROM vouch WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "changes of numbers", `SELECT COUNT(*) FROM number_change WHERE substr(stamp, 1, 4) = $1`, stamp},
		{keyring.KeyToken, "one-time codes", `SELECT COUNT(*) FROM challenge WHERE key_version = $1`, version},
		{keyring.KeyOutbox, "messages that wait", `SELECT COUNT(*) FROM sms_outbox WHERE substr(sealed, 2, 4) = $1`, stamp},
		{keyring.KeyOutbox, "messages that were sent", `SELECT COUNT(*) FROM sms_sent WHERE substr(sealed, 2, 4) = $1`, stamp},
		{keyring.KeyOutbox, "logins under way", `SELECT COUNT(*) FROM challenge WHERE substr(sealed, 2, 4) = $1`, stamp},
		{keyring.KeyPepper, "private codes", `SELECT COUNT(*) FROM account WHERE pepper_version = $1`, version},
	} {
		if q.key != name {
			continue
		}
		var n int64
		if err := tx.QueryRow(ctx, q.query, q.arg).Scan(&n); err != nil {
			return "", err
		}
		if n > 0 {
			return fmt.Sprintf("%d %s", n, q.what), nil
		}
	}
	return "", nil
}
