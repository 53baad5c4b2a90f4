// Package local keeps what an app keeps on the device: an encrypted database for the app's data, the session
// and the queue of what was done offline. It promises that
//
//   - nothing of it is on the disk in the clear, the write-ahead log included: pages are encrypted by
//     Adiantum under a random key, which the device's KeyStore seals;
//   - what Put and the queue have returned from is on the disk, also after a crash;
//   - when the server says that the device was shut out, or the passphrase was wrong too often, all of it is
//     gone: the keys first, so that what a flash chip still holds of the rest is noise.
//
// A typical app:
//
//	keys, err := local.OpenKeyFile(local.KeyFileOptions{Path: dir + "/device.key", Passphrase: p, Wiped: func() error { return local.Remove(dir) }})
//	store, err := local.Open(dir, keys)
//	c, err := store.Client(client.Options{BaseURL: "https://api.example.com", Pins: pins})
//	queue := store.Queue(c)
package local

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/ncruces/go-sqlite3"
	_ "github.com/ncruces/go-sqlite3/vfs/adiantum" // the encrypting VFS
	"golang.org/x/sys/unix"

	"strongroom/client"
)

// Names of files in a store's folder.
const (
	keyName      = "local.key" // the database's key, sealed by the KeyStore
	databaseName = "local.db"
	lockName     = "local.lock"
)

// ErrInUse means that another process, or another Store, has the folder open.
var ErrInUse = errors.New("strongroom: the local database is in use")

// ErrNotFound means that there is no such item.
var ErrNotFound = errors.New("strongroom: there is no such item on this device")

// Store is the device's encrypted database. It is safe for concurrent use.
type Store struct {
	dir  string
	keys KeyStore

	mu   sync.Mutex
	conn *sqlite3.Conn // nil once closed or wiped
	lock *os.File
	gone error // why conn is nil
}

const schema = `
CREATE TABLE IF NOT EXISTS item (bucket TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (bucket, key)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS operation (
	id INTEGER PRIMARY KEY AUTOINCREMENT, once TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, collection TEXT NOT NULL, key TEXT NOT NULL,
	condition TEXT NOT NULL, value TEXT NOT NULL, fields BLOB NOT NULL, tried INTEGER NOT NULL DEFAULT 0, problem TEXT NOT NULL DEFAULT ''
) STRICT`

// pragmas are set at each opening: a database that is reopened in WAL mode falls back to a synchronous
// setting that may lose acknowledged writes in a power cut.
const pragmas = `PRAGMA busy_timeout=10000; PRAGMA temp_store=MEMORY; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA secure_delete=ON; PRAGMA journal_size_limit=1048576`

// Open opens the store in the folder, or makes it.
func Open(dir string, keys KeyStore) (_ *Store, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("strongroom: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("strongroom: local database: %w", err)
	}
	s := &Store{dir: dir, keys: keys}
	if s.lock, err = os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("strongroom: local database: %w", err)
	}
	defer func() {
		if err != nil {
			_ = s.lock.Close() // the first failure is the one to tell
		}
	}()
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, ErrInUse
	}
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	defer clear(key)
	path := filepath.Join(dir, databaseName)
	for _, end := range []string{"", "-wal", "-shm"} { // SQLite on its own would make them readable by all
		f, err := os.OpenFile(path+end, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("strongroom: local database: %w", err)
		}
	}
	if err := syncDir(dir); err != nil {
		return nil, fmt.Errorf("strongroom: local database: %w", err)
	}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: "vfs=adiantum&hexkey=" + hex.EncodeToString(key)}
	if s.conn, err = sqlite3.OpenFlags(u.String(), sqlite3.OPEN_READWRITE|sqlite3.OPEN_URI); err != nil {
		return nil, fmt.Errorf("strongroom: local database: %w", err)
	}
	if err := errors.Join(s.conn.Exec(pragmas), s.conn.Exec(schema)); err != nil {
		return nil, errors.Join(fmt.Errorf("strongroom: local database: %w", err), s.conn.Close())
	}
	for _, end := range []string{"", "-wal", "-shm"} { // it may have made its log anew
		if err := os.Chmod(path+end, 0o600); err != nil {
			return nil, errors.Join(fmt.Errorf("strongroom: local database: %w", err), s.conn.Close())
		}
	}
	return s, nil
}

// key returns the database's key. A key that the KeyStore does not open stops here: SQLite, given a wrong
// one after a crash, would throw the log away.
func (s *Store) key() ([]byte, error) {
	path := filepath.Join(s.dir, keyName)
	sealed, err := os.ReadFile(path)
	if err == nil {
		key, err := s.keys.Open(sealed)
		if err == nil && len(key) != 32 {
			err = errors.New("strongroom: the local database's key is not 32 bytes")
		}
		return key, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("strongroom: local database: %w", err)
	}
	// Without its key a database is noise, left by a wipe that was cut short.
	if err := removeDatabase(s.dir); err != nil {
		return nil, err
	}
	key := random(32)
	if sealed, err = s.keys.Seal(key); err == nil {
		err = writeFile(path, sealed)
	}
	if err != nil {
		return nil, fmt.Errorf("strongroom: local database: %w", err)
	}
	return key, nil
}

// Client returns a client for this device: its key signs, its session is kept here, and pin sets that the
// server publishes too. Should the server say that the device was shut out, the store is wiped at once.
func (s *Store) Client(o client.Options) (*client.Client, error) {
	o.Key, o.Store, o.PinStore = s.keys.Device(), tokens{s}, pins{s}
	told := o.Revoked
	o.Revoked = func() {
		_ = s.Wipe() // what could not be removed is sealed under keys that are gone
		if told != nil {
			told()
		}
	}
	return client.New(o)
}

// Put keeps a value of the app's.
func (s *Store) Put(bucket, key string, value []byte) error {
	return s.exec(`INSERT INTO item (bucket, key, value) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value`, bucket, key, value)
}

// Get returns a value, or ErrNotFound.
func (s *Store) Get(bucket, key string) ([]byte, error) {
	value, found := []byte(nil), false
	err := s.query(func(r *sqlite3.Stmt) { value, found = r.ColumnBlob(0, nil), true },
		`SELECT value FROM item WHERE bucket = ?1 AND key = ?2`, bucket, key)
	if err == nil && !found {
		err = ErrNotFound
	}
	return value, err
}

// Delete forgets a value; that there is none is no error.
func (s *Store) Delete(bucket, key string) error {
	return s.exec(`DELETE FROM item WHERE bucket = ?1 AND key = ?2`, bucket, key)
}

// Keys returns the keys of a bucket, in order.
func (s *Store) Keys(bucket string) ([]string, error) {
	var keys []string
	err := s.query(func(r *sqlite3.Stmt) { keys = append(keys, r.ColumnText(0)) }, `SELECT key FROM item WHERE bucket = ?1 ORDER BY key`, bucket)
	return keys, err
}

// Close closes the store; what is in it stays.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn, s.gone = nil, errors.New("strongroom: the local database is closed")
	return errors.Join(err, s.lock.Close())
}

// Wipe destroys everything: the keys, then the database. Every later call fails with ErrWiped.
func (s *Store) Wipe() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.gone, ErrWiped) {
		return nil
	}
	errs := []error{shred(filepath.Join(s.dir, keyName)), s.keys.Destroy()}
	if s.conn != nil {
		errs = append(errs, s.conn.Close(), removeDatabase(s.dir), s.lock.Close())
	} else {
		errs = append(errs, removeDatabase(s.dir))
	}
	s.conn, s.gone = nil, ErrWiped
	return errors.Join(errs...)
}

// Remove removes the store of a folder whose keys are gone.
func Remove(dir string) error {
	return errors.Join(shred(filepath.Join(dir, keyName)), removeDatabase(dir))
}

func removeDatabase(dir string) error {
	var errs []error
	for _, end := range []string{"", "-wal", "-shm", "-journal"} {
		errs = append(errs, remove(filepath.Join(dir, databaseName+end)))
	}
	return errors.Join(append(errs, syncDir(dir))...)
}

// exec runs a statement.
func (s *Store) exec(query string, args ...any) error { return s.query(nil, query, args...) }

// query runs a statement, each row of which row sees.
func (s *Store) query(row func(*sqlite3.Stmt), query string, args ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run(row, query, args...)
}

// atomic runs fn in one transaction. The store is locked meanwhile: fn uses run.
func (s *Store) atomic(fn func() error) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.run(nil, `BEGIN IMMEDIATE`); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return errors.Join(err, s.run(nil, `ROLLBACK`))
	}
	return s.run(nil, `COMMIT`)
}

func (s *Store) run(row func(*sqlite3.Stmt), query string, args ...any) error {
	if s.conn == nil {
		return s.gone
	}
	statement, _, err := s.conn.Prepare(query)
	if err != nil {
		return fmt.Errorf("strongroom: local database: %w", err)
	}
	for i, arg := range args {
		switch arg := arg.(type) {
		case string:
			err = errors.Join(err, statement.BindText(i+1, arg))
		case []byte:
			if arg == nil {
				arg = []byte{}
			}
			err = errors.Join(err, statement.BindBlob(i+1, arg))
		case int64:
			err = errors.Join(err, statement.BindInt64(i+1, arg))
		default:
			err = errors.Join(err, fmt.Errorf("no value of type %T is kept", arg))
		}
	}
	if err == nil {
		for statement.Step() {
			if row != nil {
				row(statement)
			}
		}
		err = statement.Err()
	}
	if err = errors.Join(err, statement.Close()); err != nil {
		return fmt.Errorf("strongroom: local database: %w", err)
	}
	return nil
}

// own is the bucket of this package.
const own = "strongroom"

// tokens is the client.TokenStore in a Store.
type tokens struct{ s *Store }

func (t tokens) Load(context.Context) (client.Tokens, error) {
	text, err := t.s.Get(own, "tokens")
	if errors.Is(err, ErrNotFound) {
		return client.Tokens{}, nil
	}
	if err != nil {
		return client.Tokens{}, err
	}
	return client.ParseTokens(text)
}

func (t tokens) Save(_ context.Context, tokens client.Tokens) error {
	if !tokens.IsZero() {
		return t.s.Put(own, "tokens", tokens.Reveal())
	}
	if err := t.s.Delete(own, "tokens"); !errors.Is(err, ErrWiped) {
		return err
	}
	return nil // a session that is over is not there
}

// pins is the client.PinStore in a Store.
type pins struct{ s *Store }

func (p pins) LoadPins(context.Context) ([]byte, error) {
	text, err := p.s.Get(own, "pins")
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return text, err
}

func (p pins) SavePins(_ context.Context, signed []byte) error { return p.s.Put(own, "pins", signed) }
