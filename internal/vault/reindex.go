package vault

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// Indexes returns the tables of the vault that are looked up by blind indexes, for keyring to have them
// made anew when it rotates the key.
func (v *Vault) Indexes() []keyring.Index {
	return []keyring.Index{recordIndex{v}, tokenIndex{v}, externalNames{v}}
}

// among returns the condition that a row was made by any of the blinds, of which there is at least one, with
// its arguments, the first of which is $n. One query asks for all versions.
func among(blinds []keyring.Blind, column string, n int) (condition string, args []any) {
	versions, values := make([]string, len(blinds)), make([]string, len(blinds))
	for i, b := range blinds {
		versions[i], values[i] = "$"+strconv.Itoa(n+2*i), "$"+strconv.Itoa(n+2*i+1)
		args = append(args, b.Version, b.Value)
	}
	return "key_version IN (" + strings.Join(versions, ", ") + ") AND " + column + " IN (" + strings.Join(values, ", ") + ")", args
}

var (
	errOtherValue = errors.New("the index is not that of the sealed value")
	errTaken      = errors.New("another row has the index already")
)

// countVersions counts a table's rows by the version that made their index.
func countVersions(ctx context.Context, tx *db.Tx, table string) (map[uint32]int64, error) {
	rows, err := tx.Query(ctx, `SELECT key_version, COUNT(*) FROM `+table+` GROUP BY key_version`)
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

// recordIndex is the index of records' fields. During a rotation a field has a row under both versions.
type recordIndex struct{ v *Vault }

func (recordIndex) Name() string { return "vault.record_index" }

func (recordIndex) Versions(ctx context.Context, tx *db.Tx) (map[uint32]int64, error) {
	return countVersions(ctx, tx, "record_index")
}

func (recordIndex) Behind(ctx context.Context, tx *db.Tx, to uint32) (n int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT COUNT(*) FROM (
			SELECT DISTINCT customer_id, collection, key, field FROM record_index o
			WHERE key_version < $1 AND NOT EXISTS (
				SELECT 1 FROM record_index n WHERE n.customer_id = o.customer_id AND n.collection || '' = o.collection
				AND n.key = o.key AND n.field = o.field AND n.key_version = $1)) missing`, to).Scan(&n)
	return n, err
}

// indexRow is a row of record_index.
type indexRow struct {
	owner customer.ID
	ref   Ref
	field string
	sole  bool
	keyring.Blind
}

func (r indexRow) cursor() string { return string(r.owner) + "/" + r.ref.Collection + "/" + r.ref.Key }

// page names the next records.
func (recordIndex) page(ctx context.Context, tx *db.Tx, after string, limit int) (all []indexRow, next string, err error) {
	var at [3]string
	if after != "" {
		parts := strings.Split(after, "/")
		if len(parts) != len(at) {
			return nil, "", fmt.Errorf("vault: %q is no place in the index", after)
		}
		copy(at[:], parts)
	}
	rows, err := tx.Query(ctx, `
		SELECT DISTINCT customer_id, collection, key FROM record_index
		WHERE customer_id >= $1 AND (customer_id, collection, key) > ($1, $2, $3)
		ORDER BY customer_id, collection, key LIMIT $4`, at[0], at[1], at[2], limit)
	if err != nil {
		return nil, "", err
	}
	all, err = collect(rows, func(r *indexRow) error { return rows.Scan(&r.owner, &r.ref.Collection, &r.ref.Key) })
	if len(all) == limit {
		next = all[len(all)-1].cursor()
	}
	return all, next, err
}

// of returns all rows of a record, by field and version: see byRecord.
func (recordIndex) of(ctx context.Context, tx *db.Tx, record indexRow) ([]indexRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id, collection, key, field, sole, key_version, blind FROM record_index
		WHERE `+byRecord, string(record.owner), record.ref.Collection, record.ref.Key)
	if err != nil {
		return nil, err
	}
	all, err := collect(rows, func(r *indexRow) error {
		return rows.Scan(&r.owner, &r.ref.Collection, &r.ref.Key, &r.field, &r.sole, &r.Version, &r.Value)
	})
	slices.SortFunc(all, func(a, b indexRow) int {
		return cmp.Or(cmp.Compare(a.field, b.field), cmp.Compare(a.Version, b.Version))
	})
	return all, err
}

// fields calls fn with the rows of each field of each record.
func fields(all []indexRow, fn func(rows []indexRow) error) error {
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].cursor() == all[0].cursor() && all[n].field == all[0].field {
			n++
		}
		if err := fn(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// Renew works on rows and not on the declarations of collections, so that also a field that is declared no
// longer is found when it is declared again.
func (x recordIndex) Renew(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (did keyring.Renewed, err error) {
	all, next, err := x.page(ctx, tx, after, limit)
	if err != nil {
		return did, err
	}
	did.Next = next
	for _, r := range all {
		rows, err := x.of(ctx, tx, r)
		if err != nil {
			return did, err
		}
		if !slices.ContainsFunc(rows, func(r indexRow) bool { return r.Version < to }) {
			continue
		}
		if err := x.renew(ctx, tx, to, r, &did); err != nil {
			return did, err
		}
	}
	return did, nil
}

// renew locks a record and gives its fields an index under the version. Whoever changes the rows of a
// record changes the record in the same transaction, and waits.
func (x recordIndex) renew(ctx context.Context, tx *db.Tx, to uint32, of indexRow, did *keyring.Renewed) error {
	values, unopened, err := x.v.values(ctx, tx, of.owner, of.ref)
	if err != nil {
		return err
	}
	all, err := x.of(ctx, tx, of)
	if err != nil {
		return err
	}
	return fields(all, func(rows []indexRow) error {
		newest := rows[len(rows)-1]
		if newest.Version >= to {
			return nil
		}
		failed := unopened
		if failed == nil {
			if failed, err = renewField(ctx, tx, x.v.keys, rows, values, to); err != nil {
				return err
			}
		}
		if failed != nil {
			did.Failed = append(did.Failed, fmt.Errorf("record %s field %s: %w", newest.cursor(), newest.field, failed))
			return nil
		}
		did.Done++
		return nil
	})
}

// values locks a record and opens it; failed says why it does not open.
func (v *Vault) values(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref) (values []value, failed, err error) {
	var w row
	err = tx.QueryRow(ctx, `
		UPDATE record SET version = version WHERE customer_id = $1 AND collection = $2 AND key = $3
		RETURNING version, schema_version, sealed, updated_at`,
		string(owner), ref.Collection, ref.Key).Scan(&w.version, &w.schemaVersion, &w.sealed, &w.updatedAt)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errAbsent, nil
	}
	if err != nil {
		return nil, nil, err
	}
	ring, failed, err := v.ringOf(ctx, tx, owner, w.sealed)
	if failed != nil || err != nil {
		return nil, failed, err
	}
	values, failed = open(ring, owner, ref, w)
	return values, failed, nil
}

// ringOf returns the customer's keys, the one that sealed the value among them; failed says why there are none.
func (v *Vault) ringOf(ctx context.Context, tx *db.Tx, owner customer.ID, sealed []byte) (ring *seal.Ring, failed, err error) {
	if ring, err = v.keys.Customer(ctx, tx, owner); err == nil {
		ring, err = v.keys.Holding(ctx, tx, owner, ring, sealed)
	}
	if p := problem.Of(err); p != nil && (p.Kind() == problem.Gone || p.Kind() == problem.NotFound) ||
		errors.Is(err, keyring.ErrDamaged) || errors.Is(err, keyring.ErrUnwrap) {
		return nil, err, nil
	}
	return ring, nil, err
}

// renewField gives a field an index under the version, beside rows, which it has under older ones.
func renewField(ctx context.Context, tx *db.Tx, keys *keyring.Keyring, rows []indexRow, values []value, to uint32) (failed, err error) {
	row := rows[len(rows)-1]
	i := slices.IndexFunc(values, func(x value) bool { return x.name == row.field })
	if i < 0 {
		return errOtherValue, nil
	}
	blinds := keys.BlindIndexes(blindName(row.ref.Collection, row.field), []byte(values[i].text))
	fresh, ok := keyring.Under(blinds, to)
	if !ok {
		return nil, fmt.Errorf("vault: version %d of the blind-index key is not here", to)
	}
	// One is enough: a version that was given up before it was active is destroyed, and has left rows.
	i = slices.IndexFunc(rows, func(r indexRow) bool { return r.IsOneOf(blinds) })
	if i < 0 {
		return errOtherValue, nil
	}
	// Locked, so that a declaration that makes the field unique or not, and does not lock the record,
	// waits for this row, or is waited for.
	row = rows[i]
	err = tx.QueryRow(ctx, `
		UPDATE record_index SET sole = sole
		WHERE collection = $1 AND field = $2 AND key_version = $3 AND blind = $4 AND customer_id = $5 AND key = $6 RETURNING sole`,
		row.ref.Collection, row.field, row.Version, row.Value, string(row.owner), row.ref.Key).Scan(&row.sole)
	if err != nil {
		return nil, err
	}
	n, err := tx.Exec(ctx, `
		INSERT INTO record_index (collection, field, key_version, blind, customer_id, key, sole)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
		row.ref.Collection, row.field, fresh.Version, fresh.Value, string(row.owner), row.ref.Key, row.sole)
	if err == nil && n == 0 {
		return errTaken, nil
	}
	return nil, err
}

func (x recordIndex) Clear(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (did keyring.Renewed, err error) {
	all, next, err := x.page(ctx, tx, after, limit)
	if err != nil {
		return did, err
	}
	did.Next = next
	clearField := func(rows []indexRow) error {
		if rows[0].Version >= to || !slices.ContainsFunc(rows, func(r indexRow) bool { return r.Version == to }) {
			return nil
		}
		for _, r := range rows {
			if r.Version >= to {
				continue
			}
			n, err := tx.Exec(ctx, `
				DELETE FROM record_index
				WHERE collection = $1 AND field = $2 AND key_version = $3 AND blind = $4 AND customer_id = $5 AND key = $6`,
				r.ref.Collection, r.field, r.Version, r.Value, string(r.owner), r.ref.Key)
			if err != nil {
				return err
			}
			did.Done += n
		}
		return nil
	}
	for _, r := range all {
		rows, err := x.of(ctx, tx, r)
		if err == nil {
			err = fields(rows, clearField)
		}
		if err != nil {
			return did, err
		}
	}
	return did, nil
}

// tokenIndex is the tokens. Each has one row, which moves from the old version to the new one.
type tokenIndex struct{ v *Vault }

func (tokenIndex) Name() string { return "vault.token" }

func (tokenIndex) Versions(ctx context.Context, tx *db.Tx) (map[uint32]int64, error) {
	return countVersions(ctx, tx, "token")
}

func (tokenIndex) Behind(ctx context.Context, tx *db.Tx, to uint32) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM token WHERE key_version < $1`, to).Scan(&n)
	return n, err
}

// blindedRow is a row that has its index in itself.
type blindedRow struct {
	keyring.Blind
	tokenRow
	value []byte // the index of a deterministic token's value
}

func (x tokenIndex) Renew(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (did keyring.Renewed, err error) {
	at, err := keyring.ParseCursor(after)
	if err != nil {
		return did, err
	}
	rows, err := tx.Query(ctx, `
		SELECT key_version, blind, customer_id, kind, purpose, value_blind, sealed FROM token
		WHERE (key_version, blind) > ($1, $2) AND key_version < $3 ORDER BY key_version, blind LIMIT $4`, at.Version, at.Value, to, limit)
	if err != nil {
		return did, err
	}
	all, err := collect(rows, func(r *blindedRow) error {
		return rows.Scan(&r.Version, &r.Value, &r.customer, &r.kind, &r.purpose, &r.value, &r.sealed)
	})
	if err != nil {
		return did, err
	}
	if len(all) == limit {
		did.Next = all[len(all)-1].Cursor()
	}
	for _, r := range all {
		failed, err := x.move(ctx, tx, r, to)
		if err != nil {
			return did, err
		}
		if failed != nil {
			did.Failed = append(did.Failed, fmt.Errorf("token %s of %s: %w", r.Cursor(), r.customer, failed))
			continue
		}
		did.Done++
	}
	return did, nil
}

// collect reads all rows.
func collect[T any](rows *sql.Rows, scan func(*T) error) (all []T, err error) {
	defer rows.Close()
	for rows.Next() {
		var t T
		if err := scan(&t); err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, rows.Err()
}

func (x tokenIndex) move(ctx context.Context, tx *db.Tx, r blindedRow, to uint32) (failed, err error) {
	ring, failed, err := x.v.ringOf(ctx, tx, r.customer, r.sealed)
	if failed != nil || err != nil {
		return failed, err
	}
	content, failed := openToken(ring, r.customer, r.kind, r.purpose, r.sealed)
	if failed != nil {
		return failed, nil
	}
	names := x.v.keys.BlindIndexes(tokenField, []byte(content.Token))
	fresh, ok := keyring.Under(names, to)
	if !ok {
		return nil, fmt.Errorf("vault: version %d of the blind-index key is not here", to)
	}
	if !r.IsOneOf(names) {
		return errOtherValue, nil
	}
	var same []byte
	if r.value != nil {
		values := x.v.keys.BlindIndexes(tokenValueField(r.kind, r.purpose, r.customer), []byte(content.Value))
		if !(keyring.Blind{Version: r.Version, Value: r.value}).IsOneOf(values) {
			return errOtherValue, nil
		}
		b, _ := keyring.Under(values, to)
		same = b.Value
	}
	var taken int
	if err := tx.QueryRow(ctx, `
		SELECT COUNT(*) FROM token WHERE key_version = $1 AND (blind = $2 OR customer_id = $3 AND kind = $4 AND purpose = $5 AND value_blind = $6)`,
		fresh.Version, fresh.Value, string(r.customer), r.kind, r.purpose, same).Scan(&taken); err != nil {
		return nil, err
	}
	if taken > 0 {
		return errTaken, nil
	}
	// Should it be gone meanwhile, with its customer, nothing is moved.
	_, err = tx.Exec(ctx, `UPDATE token SET key_version = $1, blind = $2, value_blind = $3 WHERE key_version = $4 AND blind = $5`,
		fresh.Version, fresh.Value, same, r.Version, r.Value)
	return nil, err
}

func (tokenIndex) Clear(context.Context, *db.Tx, uint32, string, int) (keyring.Renewed, error) {
	return keyring.Renewed{}, nil
}

// externalNames are the names under which customers were imported. During a rotation a name has a row
// under both versions. Of an erased customer nobody knows the name any more: its row stays as it is.
type externalNames struct{ v *Vault }

func (externalNames) Name() string { return "vault.external_ref" }

func (externalNames) Versions(ctx context.Context, tx *db.Tx) (map[uint32]int64, error) {
	return countVersions(ctx, tx, "external_ref")
}

func (externalNames) Behind(ctx context.Context, tx *db.Tx, to uint32) (n int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT COUNT(*) FROM external_ref o WHERE key_version < $1 AND sealed IS NOT NULL
		AND NOT EXISTS (SELECT 1 FROM external_ref n WHERE n.customer_id = o.customer_id AND n.key_version + 0 = $1)`, to).Scan(&n)
	return n, err
}

func (externalNames) page(ctx context.Context, tx *db.Tx, to uint32, after string, limit int, there bool) (all []blindedRow, next string, err error) {
	at, err := keyring.ParseCursor(after)
	if err != nil {
		return nil, "", err
	}
	exists := `NOT EXISTS`
	if there {
		exists = `EXISTS`
	}
	rows, err := tx.Query(ctx, `
		SELECT key_version, blind, customer_id, sealed FROM external_ref o
		WHERE (key_version, blind) > ($1, $2) AND key_version < $3
		AND `+exists+` (SELECT 1 FROM external_ref n WHERE n.customer_id = o.customer_id AND n.key_version + 0 = $3)
		ORDER BY key_version, blind LIMIT $4`, at.Version, at.Value, to, limit)
	if err != nil {
		return nil, "", err
	}
	all, err = collect(rows, func(r *blindedRow) error { return rows.Scan(&r.Version, &r.Value, &r.customer, &r.sealed) })
	if len(all) == limit {
		next = all[len(all)-1].Cursor()
	}
	return all, next, err
}

func (x externalNames) Renew(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (did keyring.Renewed, err error) {
	all, next, err := x.page(ctx, tx, to, after, limit, false)
	did.Next = next
	added := make(map[customer.ID]bool) // one who has a row under several older versions
	for _, r := range all {
		if added[r.customer] {
			continue
		}
		// Locked, so that an erasure waits and then sees both rows.
		err := tx.QueryRow(ctx, `UPDATE external_ref SET sealed = sealed WHERE key_version = $1 AND blind = $2 RETURNING sealed`,
			r.Version, r.Value).Scan(&r.sealed)
		if errors.Is(err, sql.ErrNoRows) || err == nil && r.sealed == nil {
			continue
		}
		if err != nil {
			return did, err
		}
		failed, err := x.add(ctx, tx, r, to)
		if err != nil {
			return did, err
		}
		if failed != nil {
			did.Failed = append(did.Failed, fmt.Errorf("the external name of %s: %w", r.customer, failed))
			continue
		}
		added[r.customer] = true
		did.Done++
	}
	return did, err
}

func (x externalNames) add(ctx context.Context, tx *db.Tx, r blindedRow, to uint32) (failed, err error) {
	ring, failed, err := x.v.ringOf(ctx, tx, r.customer, r.sealed)
	if failed != nil || err != nil {
		return failed, err
	}
	name, failed := ring.Open(externalPlace(r.customer), r.sealed)
	if failed != nil {
		return failed, nil
	}
	blinds := x.v.keys.BlindIndexes(externalIndex, name)
	fresh, ok := keyring.Under(blinds, to)
	if !ok {
		return nil, fmt.Errorf("vault: version %d of the blind-index key is not here", to)
	}
	if !r.IsOneOf(blinds) {
		return errOtherValue, nil
	}
	n, err := tx.Exec(ctx, `INSERT INTO external_ref (key_version, blind, customer_id, sealed) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
		fresh.Version, fresh.Value, string(r.customer), r.sealed)
	if err == nil && n == 0 {
		return errTaken, nil
	}
	return nil, err
}

func (x externalNames) Clear(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (did keyring.Renewed, err error) {
	all, next, err := x.page(ctx, tx, to, after, limit, true)
	did.Next = next
	for _, r := range all {
		n, err := tx.Exec(ctx, `DELETE FROM external_ref WHERE key_version = $1 AND blind = $2`, r.Version, r.Value)
		if err != nil {
			return did, err
		}
		did.Done += n
	}
	return did, err
}
