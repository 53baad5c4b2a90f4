package keyring

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"filippo.io/age"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

// ActionRecoveryExport is recorded when the KEKs are sealed to the holders of the recovery keys.
const ActionRecoveryExport = "keyring.keks.recovery-export"

// recoveryKEKs is what the holders of a recovery key can open: every KEK that is not destroyed. A KEK opens
// nothing without the wrapped keys, which are in the keys part of a backup.
type recoveryKEKs struct {
	Format       string            `json:"format"`
	Environment  string            `json:"environment"`
	Installation string            `json:"installation"`
	KEKs         map[uint32][]byte `json:"keks"`
}

const recoveryFormat = "strongroom-recovery-keks/1"

// maxRecovery bounds what is read of it, in bytes.
const maxRecovery = 1 << 20

// ExportForRecovery returns the KEKs, sealed to the recipients and to nobody else (age): for whoever has
// lost the root key. It asks the root key for each of them, holds them no longer than it takes to seal
// them, and leaves an event. It fails without recipients.
func (k *Keyring) ExportForRecovery(ctx context.Context, by actor.Actor, recipients []age.Recipient) ([]byte, error) {
	if len(recipients) == 0 {
		return nil, errors.New("keyring: nobody is named to seal the KEKs to")
	}
	var rows []kekRow
	err := k.db.Update(ctx, func(tx *db.Tx) (err error) {
		if rows, err = selectKEKs(ctx, tx); err != nil {
			return err
		}
		return k.event(ctx, tx, by, "", ActionRecoveryExport, "keks")
	})
	if err != nil {
		return nil, err
	}
	out := recoveryKEKs{recoveryFormat, k.db.Environment(), k.db.Installation(), make(map[uint32][]byte)}
	defer func() {
		for _, material := range out.KEKs {
			clear(material)
		}
	}()
	for _, row := range rows {
		if row.state == destroyed {
			continue
		}
		if out.KEKs[row.version], err = k.unwrapKEK(ctx, row); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(out)
	defer clear(text)
	if err != nil {
		return nil, err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipients...)
	if err != nil {
		return nil, fmt.Errorf("seal the KEKs to the recovery keys: %w", err)
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return sealed.Bytes(), nil // only now: closing writes the end
}

// Recover has root wrap the KEKs of a restored database that nobody uses yet, out of what
// ExportForRecovery made. What was wrapped by the root key that is lost is deleted. Open then holds every
// KEK against the one that vouches for it, as ever.
func Recover(ctx context.Context, d *db.DB, root Root, sealed []byte, identities ...age.Identity) error {
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	if err != nil {
		return fmt.Errorf("the recovery key does not open the KEKs: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxRecovery))
	defer clear(text)
	if err != nil {
		return fmt.Errorf("%w: the KEKs for recovery are cut short: %w", ErrDamaged, err)
	}
	var in recoveryKEKs
	if err := decodeStrict(text, &in); err != nil || in.Format != recoveryFormat {
		return fmt.Errorf("%w: the KEKs for recovery have another form than this version knows", ErrDamaged)
	}
	defer func() {
		for _, material := range in.KEKs {
			clear(material)
		}
	}()
	if in.Environment != d.Environment() || in.Installation != d.Installation() {
		return fmt.Errorf("%w: the KEKs for recovery are those of %s in %s", ErrEnvironment, in.Installation, in.Environment)
	}
	var rows []kekRow
	if err := d.View(ctx, func(tx *db.Tx) (err error) {
		rows, err = selectKEKs(ctx, tx)
		return err
	}); err != nil {
		return err
	}
	wraps := make(map[uint32][]byte)
	for _, row := range rows {
		if row.state == destroyed {
			continue
		}
		material := in.KEKs[row.version]
		if len(material) != seal.KeySize {
			return fmt.Errorf("%w: KEK %d is not among those for recovery", ErrDamaged, row.version)
		}
		if wraps[row.version], err = root.Wrap(ctx, material, contextOf(kekName, in.Environment, in.Installation, uint64(row.version))); err != nil {
			return fmt.Errorf("wrap KEK %d: %w", row.version, err)
		}
	}
	now := clock.Micros(clock.System.Now())
	return d.Update(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM kek_wrap WHERE kek_version >= $1`, 0); err != nil {
			return err
		}
		for version, wrapped := range wraps {
			if _, err := tx.Exec(ctx, `INSERT INTO kek_wrap (kek_version, root_id, wrapped, made_at) VALUES ($1, $2, $3, $4)`,
				version, root.ID(), wrapped, now); err != nil {
				return err
			}
		}
		return nil
	})
}

// Versions returns the versions of every key that are not destroyed, as tx sees them: "kek", the service
// keys by name, and "customer" for the customers' data keys.
func (k *Keyring) Versions(ctx context.Context, tx *db.Tx) (map[string][]uint32, error) {
	all := make(map[string][]uint32)
	keks, err := selectKEKs(ctx, tx)
	if err != nil {
		return nil, err
	}
	services, err := selectServiceKeys(ctx, tx)
	if err != nil {
		return nil, err
	}
	data, err := countDataKeys(ctx, tx)
	if err != nil {
		return nil, err
	}
	wraps := make(map[uint32]bool)
	for _, d := range data {
		wraps[d.kekVersion] = true
	}
	for _, r := range services {
		if r.state != destroyed {
			all[r.name] = append(all[r.name], r.version)
			wraps[r.kekVersion] = true
		}
	}
	// A KEK that is retired and wraps nothing any more is needed by nobody.
	for _, r := range keks {
		if r.state != destroyed && (r.state != retired || wraps[r.version]) {
			all[kekName] = append(all[kekName], r.version)
		}
	}
	rows, err := tx.Query(ctx, `SELECT DISTINCT version FROM data_key WHERE state <> $1 ORDER BY version`, destroyed)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var version uint32
		if err := rows.Scan(&version); err != nil {
			return nil, err
		}
		all[customerName] = append(all[customerName], version)
	}
	return all, rows.Err()
}

// ErasedCustomers returns every customer who has a tombstone. One that Strongroom did not write fails it.
func (k *Keyring) ErasedCustomers(ctx context.Context, tx *db.Tx) (all []customer.ID, err error) {
	rows, err := tx.Query(ctx, `SELECT customer_id, erased_at, mac FROM data_key_tombstone ORDER BY customer_id`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c customer.ID
		var at int64
		var mac []byte
		if err := rows.Scan(&c, &at, &mac); err != nil {
			return nil, err
		}
		if !k.isTombstone(c, at, mac) {
			return nil, fmt.Errorf("%w: the tombstone of customer %s was not written by Strongroom", ErrDamaged, c)
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

// KEKGeneration names the set of KEKs that there is: it changes when one is made or destroyed.
func KEKGeneration(versions map[string][]uint32) string {
	var b []byte
	for _, v := range versions[kekName] {
		b = append(strconv.AppendUint(b, uint64(v), 10), ' ')
	}
	return string(b)
}

// Sample returns up to n customers who have a key: the newest.
func (k *Keyring) Sample(ctx context.Context, tx *db.Tx, n int) (all []customer.ID, err error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id FROM data_key WHERE version = $1 ORDER BY made_at DESC, customer_id LIMIT $2`, 1, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c customer.ID
		if err := rows.Scan(&c); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}
