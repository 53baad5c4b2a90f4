package keyring

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
)

// PhaseClearing comes after PhaseResealing in a rotation of the blind-index key: every row stands under the
// new version, and those under older ones are deleted.
const PhaseClearing = "clearing"

// The actions of a rotation of the blind-index key.
const (
	ActionIndexRenew    = "keyring.blind-index.renew" // a step of rows got an index under the new version
	ActionServiceRetire = "keyring.service-key.retire"
)

const (
	// indexBatch is how many rows one transaction gives an index under the new version: each is opened.
	indexBatch = 100
	// limitsLast is how long the counters live that are named by a blind index: twice the longest window.
	limitsLast = 48 * time.Hour
)

// Index is a table that is looked up by blind indexes, and the room that keeps it. While the key is
// rotated the room writes under all of IndexesToWrite, or under the first of it, and looks up
// BlindIndexes, both of them as its own transaction sees the keys: see CatchUp.
type Index interface {
	// Name is room.table.
	Name() string
	// Versions counts the rows by the version of the key that made their index.
	Versions(ctx context.Context, tx *db.Tx) (map[uint32]int64, error)
	// Behind counts what Renew would do or fail to do from the beginning.
	Behind(ctx context.Context, tx *db.Tx, to uint32) (int64, error)
	// Renew gives the next rows behind the cursor, at most limit, an index under the version to; the
	// first cursor is "". What does not open is left as it is. The transaction is read-committed, so as
	// to be in nobody's way: Renew locks the row that it renews before it reads it.
	Renew(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (Renewed, error)
	// Clear deletes, of the next rows behind the cursor, those under older versions that stand under the
	// version to as well.
	Clear(ctx context.Context, tx *db.Tx, to uint32, after string, limit int) (Renewed, error)
}

// Renewed is a step through an Index.
type Renewed struct {
	Next   string // the next cursor; "" at the end
	Done   int64
	Failed []error // a row each, without anything personal
}

// SetDependents tells the keyring who keeps what the pepper and the blind-index key made: accounts counts
// private codes by the version of the pepper. Without it the blind-index key is not rotated. Call it
// before the jobs start.
func (k *Keyring) SetDependents(accounts func(ctx context.Context, tx *db.Tx) (map[uint32]int64, error), indexes ...Index) {
	needed := k.needed
	k.peppered, k.indexes = accounts, append([]Index{}, indexes...)
	k.needed = func(ctx context.Context, tx *db.Tx, name string, version uint32) (string, error) {
		by, err := k.neededBy(ctx, tx, name, version)
		if err != nil || by != "" {
			return by, err
		}
		return needed(ctx, tx, name, version)
	}
}

// rowsOf returns how many rows each version of the key has made; nil when that is not counted.
func (k *Keyring) rowsOf(ctx context.Context, tx *db.Tx, name string) (map[uint32]int64, error) {
	switch {
	case name == KeyPepper && k.peppered != nil:
		return k.peppered(ctx, tx)
	case name == KeyBlindIndex && k.indexes != nil:
		sum := make(map[uint32]int64)
		for _, index := range k.indexes {
			versions, err := index.Versions(ctx, tx)
			if err != nil {
				return nil, err
			}
			for version, n := range versions {
				sum[version] += n
			}
		}
		return sum, nil
	}
	return nil, nil
}

// neededBy says what in the database needs a version of the pepper or of the blind-index key.
func (k *Keyring) neededBy(ctx context.Context, tx *db.Tx, name string, version uint32) (string, error) {
	used, err := k.rowsOf(ctx, tx, name)
	if err != nil || used == nil {
		return "", err
	}
	n := used[version]
	if name == KeyPepper {
		if n == 0 {
			return "", nil
		}
		return fmt.Sprintf("%d private codes, which move at their customers' next login", n), nil
	}
	if n > 0 {
		return fmt.Sprintf("%d rows of blind indexes", n), nil
	}
	latest, err := selectRotation(ctx, tx, KeyBlindIndex)
	switch {
	case err != nil || latest.ID == "":
		return "", err
	case latest.open():
		return "the rotation that goes on", nil
	case k.clock.Now().Sub(latest.Ended) < limitsLast:
		return "limits that still count under it, until " + latest.Ended.Add(limitsLast).UTC().Format("2006-01-02 15:04 UTC"), nil
	}
	return "", nil
}

// Generation counts the changes of the keys that this process holds. Take it before BlindIndexes or
// IndexesToWrite when they are made before the transaction, and compare it with CatchUp's.
func (k *Keyring) Generation() int64 { return k.keys.Load().generation }

// CatchUp has this process hold the keys as tx sees them, or newer ones, and returns their generation. A
// process that has not heard of a new blind-index key would write rows that others do not find, or miss
// theirs; and since it has read the generation, a serializable transaction cannot be committed behind
// the back of a rotation's next step.
func (k *Keyring) CatchUp(ctx context.Context, tx *db.Tx) (int64, error) {
	set, err := k.current(ctx, tx)
	if err != nil {
		return 0, err
	}
	return set.generation, nil
}

// IndexesToWrite returns the blind indexes under which a value is written, the active version first. It is
// that alone, except while the key is rotated: from before the new version becomes active until every
// row stands under it, rows are written under both, so that a unique index of the database holds over
// both at any moment, whatever of the two the processes take for the active one.
func (k *Keyring) IndexesToWrite(field string, value []byte) []Blind {
	key := k.service(KeyBlindIndex, hmacSHA256)
	return blindsOf(key.macs[:key.written], field, value)
}

// written returns how many of the versions, of which the active one comes first and then the newest, are
// written. While a rotation to the version indexing goes on, the second is either that one, published, or
// the one that was active before it. Compromised ones may have been given up before every row stood under
// them: then rows may stand under none but the newest that is not.
func written(versions []macKey, indexing uint32) int {
	if indexing == 0 {
		return 1
	}
	n := 2
	if versions[0].version == indexing { // active
		for n <= len(versions) && versions[n-1].state == compromised {
			n++
		}
	}
	return min(n, len(versions))
}

// before returns the newest version of the blind-index key that is there and is older.
func (k *Keyring) before(version uint32) (older uint32) {
	for _, key := range k.service(KeyBlindIndex, hmacSHA256).macs {
		if key.version < version {
			older = max(older, key.version)
		}
	}
	return older
}

// reindex does the next step of a rotation of the blind-index key whose new version is active.
func (k *Keyring) reindex(ctx context.Context, lease jobs.Lease, row rotationRow) error {
	if row.Paused {
		return errStopped
	}
	if k.indexes == nil {
		return errNoDependents
	}
	if err := k.Reload(ctx); err != nil {
		return err
	}
	part := int(row.cursorVersion)
	if part >= len(k.indexes) {
		if row.Phase == PhaseClearing {
			return k.completeReindex(ctx, lease, row)
		}
		return k.retireIndex(ctx, lease, row)
	}
	index := k.indexes[part]
	step := index.Renew
	if row.Phase == PhaseClearing {
		step = index.Clear
	}
	began := time.Now()
	batch := indexBatch
	if row.Reason != reasonCompromised {
		batch = min(max(k.rate/20, 1), batch)
	}
	var did Renewed
	err := k.fenced(ctx, lease, k.db.UpdateReadCommitted, func(tx *db.Tx) (err error) {
		if did, err = step(ctx, tx, row.Version, string(row.cursorCustomer), batch); err != nil {
			return fmt.Errorf("%s: %w", index.Name(), err)
		}
		next, done, failed := row, did.Done, int64(len(did.Failed))
		if next.cursorCustomer = customer.ID(did.Next); did.Next == "" {
			next.cursorVersion++
		}
		if row.Phase == PhaseClearing {
			done = 0
		} else if done+failed > 0 {
			resource := fmt.Sprintf("%s %d rows, %d failed, %s", serviceResource(row.Key, row.Version), done, failed, index.Name())
			if err := k.event(ctx, tx, byRotation, "", ActionIndexRenew, resource); err != nil {
				return err
			}
		}
		going, err := advanceReindex(ctx, tx, next, done, failed, row.worked+time.Since(began))
		if err == nil && !going {
			err = errStopped
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, failed := range did.Failed {
		k.log.LogAttrs(ctx, slog.LevelError, "a row keeps its old blind index", slog.String("index", index.Name()), slog.Any("error", failed))
	}
	if row.Reason == reasonCompromised {
		return ctx.Err()
	}
	pause := time.Duration(float64(did.Done)/float64(k.rate)*float64(time.Second)) - time.Since(began)
	return k.wait(ctx, max(0, pause))
}

// errNoDependents: the rows would keep their old index for good.
var errNoDependents = errors.New("keyring: nobody has said who keeps blind indexes")

// behind counts the rows that are not under the version yet.
func (k *Keyring) behind(ctx context.Context, to uint32) (n int64, err error) {
	count := func(tx *db.Tx) error {
		n = 0
		for _, index := range k.indexes {
			left, err := index.Behind(ctx, tx, to)
			if err != nil {
				return err
			}
			n += left
		}
		return nil
	}
	// On PostgreSQL it must be serializable: it then refuses whoever is still writing, in a transaction
	// from before the new version was published, a row that is not counted here.
	if k.db.Engine() == db.SQLite {
		return n, k.db.View(ctx, count)
	}
	err = k.db.Update(ctx, count)
	return n, err
}

// retireIndex has older versions of the blind-index key be written no more, once every row that opens has
// an index under the new one. Should one be missing, there is another pass.
func (k *Keyring) retireIndex(ctx context.Context, lease jobs.Lease, row rotationRow) error {
	left, err := k.behind(ctx, row.Version)
	if err != nil {
		return err
	}
	if left > row.Failed {
		return k.fenced(ctx, lease, k.db.UpdateReadCommitted, func(tx *db.Tx) error { return restartRotation(ctx, tx, row.ID) })
	}
	err = k.fenced(ctx, lease, k.db.Update, func(tx *db.Tx) error {
		going, err := beginClearing(ctx, tx, row.ID)
		if err != nil {
			return err
		}
		if !going {
			return errStopped
		}
		if err := k.changed(ctx, tx); err != nil {
			return err
		}
		return k.event(ctx, tx, byRotation, "", ActionServiceRetire, serviceResource(row.Key, k.before(row.Version)))
	})
	if err != nil {
		return err
	}
	return k.Reload(ctx)
}

func (k *Keyring) completeReindex(ctx context.Context, lease jobs.Lease, row rotationRow) error {
	err := k.fenced(ctx, lease, k.db.Update, func(tx *db.Tx) error {
		now, err := selectRotation(ctx, tx, row.Key)
		if err != nil {
			return err
		}
		if now.ID != row.ID || !now.Ended.IsZero() {
			return errStopped
		}
		if err := endRotation(ctx, tx, row.ID, clock.Micros(k.clock.Now())); err != nil {
			return err
		}
		resource := fmt.Sprintf("%s, %d rows, %d failed", serviceResource(row.Key, row.Version), now.Done, now.Failed)
		return k.event(ctx, tx, byRotation, "", ActionRotationComplete, resource)
	})
	if err == nil {
		k.log.InfoContext(ctx, "every blind index stands under the new key", "version", row.Version, "rows", row.Done, "failed", row.Failed)
	}
	return err
}

// stillPeppered counts the private codes that older versions of the pepper made.
func (k *Keyring) stillPeppered(ctx context.Context, tx *db.Tx, version uint32) (n int64, err error) {
	if k.peppered == nil {
		return 0, nil
	}
	used, err := k.peppered(ctx, tx)
	for v, count := range used {
		if v < version {
			n += count
		}
	}
	return n, err
}

// selectIndexing returns the new version of the blind-index key while rows are written under it and under
// the one before, or 0.
func selectIndexing(ctx context.Context, tx *db.Tx) (version uint32, err error) {
	err = tx.QueryRow(ctx, `
		SELECT COALESCE(MAX(version), 0) FROM rotation
		WHERE key_name = $1 AND ended_at IS NULL AND phase <> $2`, KeyBlindIndex, PhaseClearing).Scan(&version)
	return version, err
}

// advanceReindex is advanceRotation for both of the phases of a re-indexing.
func advanceReindex(ctx context.Context, tx *db.Tx, r rotationRow, done, failed int64, worked time.Duration) (bool, error) {
	n, err := tx.Exec(ctx, `
		UPDATE rotation
		SET done = done + $1, failed = failed + $2, worked = $3, cursor_customer = $4, cursor_version = $5
		WHERE id = $6 AND phase = $7 AND paused = 0 AND ended_at IS NULL`,
		done, failed, worked.Microseconds(), r.cursorCustomer, r.cursorVersion, r.ID, r.Phase)
	return n == 1, err
}

func beginClearing(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	n, err := tx.Exec(ctx, `
		UPDATE rotation SET phase = $1, cursor_customer = '', cursor_version = 0
		WHERE id = $2 AND phase = $3 AND paused = 0 AND ended_at IS NULL`, PhaseClearing, id, PhaseResealing)
	return n == 1, err
}

// Under returns the one of the blinds that the version made.
func Under(blinds []Blind, version uint32) (Blind, bool) {
	i := slices.IndexFunc(blinds, func(b Blind) bool { return b.Version == version })
	if i < 0 {
		return Blind{}, false
	}
	return blinds[i], true
}

// IsOneOf reports whether a row's index is what its version of the key makes of the value that the blinds
// are of.
func (b Blind) IsOneOf(blinds []Blind) bool {
	made, ok := Under(blinds, b.Version)
	return ok && hmac.Equal(made.Value, b.Value)
}

// Cursor writes the place of a row in a table whose rows are ordered by version and index.
func (b Blind) Cursor() string {
	return strconv.Itoa(int(b.Version)) + "/" + fmt.Sprintf("%x", b.Value)
}

// ParseCursor reads what Cursor wrote; "" is before the first row.
func ParseCursor(text string) (b Blind, err error) {
	b.Value = []byte{}
	if text != "" {
		_, err = fmt.Sscanf(text, "%d/%x", &b.Version, &b.Value)
	}
	return b, err
}
