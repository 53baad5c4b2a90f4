package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// ManifestName is the usual name of the manifest within the data folder.
const ManifestName = "database.json"

const manifestFormat = "strongroom-database/1"

// ErrNoManifest means that the data folder holds no embedded database yet.
var ErrNoManifest = errors.New("there is no database manifest")

// FileKey is what opens the embedded database.
type FileKey struct {
	Environment string
	File        string       // the database's file name within the data folder
	Key         secret.Value // 32 bytes
	RootID      string       // the root key that wraps Key
}

// manifest says which file is the embedded database, and holds its key, wrapped by the root key. To
// give the database a new key is to write a new file and then replace the manifest.
type manifest struct {
	Format      string `json:"format"`
	Environment string `json:"environment"`
	File        string `json:"file"`
	RootID      string `json:"root_id"`
	WrappedKey  []byte `json:"wrapped_key"`
	// Second is the same key as another root key wraps it, while the root key moves.
	Second *manifestWrap `json:"second,omitempty"`
}

type manifestWrap struct {
	RootID     string `json:"root_id"`
	WrappedKey []byte `json:"wrapped_key"`
}

func (m manifest) context() []byte {
	return contextOf("database file key "+m.File, m.Environment, "", 0)
}

func parseManifest(b []byte) (manifest, error) {
	var m manifest
	if err := decodeStrict(b, &m); err != nil {
		return manifest{}, err
	}
	switch {
	case m.Format != manifestFormat:
		return manifest{}, errors.New("its format is not known to this version")
	case m.Environment == "" || m.RootID == "" || len(m.WrappedKey) == 0:
		return manifest{}, errors.New("a member is missing")
	case m.Second != nil && (m.Second.RootID == "" || len(m.Second.WrappedKey) == 0 || m.Second.RootID == m.RootID):
		return manifest{}, errors.New("its second wrap is not whole")
	}
	return m, checkFileName(m.File)
}

// checkFileName keeps the database inside its folder.
func checkFileName(name string) error {
	if name == "" || name == "." || name == ".." || filepath.Base(name) != name {
		return errors.New("the database's file is not a plain name")
	}
	return nil
}

// CreateFileKey makes the key of a new embedded database and writes the manifest to path, which must
// not exist (ErrExists). It is durable when CreateFileKey returns, so no database is ever encrypted
// with a key that a crash could lose.
func CreateFileKey(ctx context.Context, root Root, path, environment, file string) (FileKey, error) {
	if environment == "" {
		return FileKey{}, errors.New("the database's environment is not given")
	}
	if err := checkFileName(file); err != nil {
		return FileKey{}, err
	}
	material := make([]byte, seal.KeySize)
	rand.Read(material)
	m := manifest{Format: manifestFormat, Environment: environment, File: file, RootID: root.ID()}
	var err error
	if m.WrappedKey, err = root.Wrap(ctx, material, m.context()); err != nil {
		return FileKey{}, fmt.Errorf("wrap the database's key: %w", err)
	}
	content, err := encode(m)
	if err != nil {
		return FileKey{}, err
	}
	if err := writeNew(path, content); err != nil {
		return FileKey{}, fmt.Errorf("write the database's manifest: %w", err)
	}
	return FileKey{Environment: environment, File: file, Key: secret.New(material), RootID: m.RootID}, nil
}

// OpenFileKey reads the manifest at path and unwraps the database's key. It fails with ErrNoManifest
// when there is none, with ErrEnvironment when the database belongs to another environment, with
// ErrOtherRoot when another root key wraps it, with ErrPermissions or ErrDamaged, and with the
// problem "keys-unavailable" when the root key's service does not answer.
func OpenFileKey(ctx context.Context, root Root, path, environment string) (FileKey, error) {
	m, err := readManifest(path)
	if err != nil {
		return FileKey{}, err
	}
	if m.Environment != environment {
		return FileKey{}, fmt.Errorf("%w: the database of %s is %q, this server is configured for %q: name another data folder or set environment to %q", ErrEnvironment, path, m.Environment, environment, m.Environment)
	}
	if m.Second != nil && m.Second.RootID == root.ID() {
		m.RootID, m.WrappedKey = m.Second.RootID, m.Second.WrappedKey
	}
	material, err := root.Unwrap(ctx, m.WrappedKey, m.context())
	switch {
	case err == nil && len(material) != seal.KeySize:
		return FileKey{}, fmt.Errorf("%w: the database's key in %s has the wrong length: bring it back from a backup", ErrDamaged, path)
	case err == nil:
		return FileKey{Environment: m.Environment, File: m.File, Key: secret.New(material), RootID: m.RootID}, nil
	case errors.Is(err, ErrContext):
		return FileKey{}, fmt.Errorf("%w: the manifest %s was altered, or its key is that of another database: bring it back from a backup: %w", ErrEnvironment, path, err)
	case m.RootID != root.ID() && problem.Of(err) == nil:
		return FileKey{}, otherRoot("the database's key", m.RootID, root.ID())
	default:
		return FileKey{}, fmt.Errorf("unwrap the database's key in %s, or bring the file back from a backup: %w", path, err)
	}
}

func readManifest(path string) (manifest, error) {
	content, err := readPrivate(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return manifest{}, fmt.Errorf("%w: %s does not exist: name the right data folder, or make one with strongroom init: %w", ErrNoManifest, path, err)
	case err != nil:
		return manifest{}, fmt.Errorf("read the database's manifest: %w", err)
	}
	m, err := parseManifest(content)
	if err != nil {
		return manifest{}, fmt.Errorf("%w: %s is no database manifest, %w: bring it back from a backup", ErrDamaged, path, err)
	}
	return m, nil
}

func replaceManifest(path string, m manifest) error {
	content, err := encode(m)
	if err != nil {
		return err
	}
	if err := replace(path, content); err != nil {
		return fmt.Errorf("write the database's manifest: %w", err)
	}
	return nil
}

// addFileKeyWrap has the manifest hold the file key as the root key to wraps it, too. Only the process
// that has the database open may change the manifest.
func addFileKeyWrap(ctx context.Context, from, to Root, path, environment string) error {
	if from == nil || to == nil {
		return errNeedsBoth
	}
	key, err := OpenFileKey(ctx, from, path, environment)
	if err != nil {
		return err
	}
	defer key.Key.Wipe()
	m, err := readManifest(path)
	if err != nil {
		return err
	}
	wrapped, err := to.Wrap(ctx, key.Key.Reveal(), m.context())
	if err != nil {
		return fmt.Errorf("wrap the database's key by the second root key: %w", err)
	}
	back, err := to.Unwrap(ctx, wrapped, m.context())
	if err != nil || !secret.New(back).Equal(key.Key) {
		return fmt.Errorf("the second root key does not open the database's key that it wrapped: %w", errors.Join(ErrUnwrap, err))
	}
	clear(back)
	m.Second = &manifestWrap{RootID: to.ID(), WrappedKey: wrapped}
	if m.RootID == to.ID() { // a move that comes back: this wrap was the first one
		return nil
	}
	return replaceManifest(path, m)
}

// keepFileKeyWrap drops all wraps of the file key but that by the root key keep, which must open it.
func keepFileKeyWrap(ctx context.Context, keep Root, path, environment string) error {
	key, err := OpenFileKey(ctx, keep, path, environment)
	if err != nil {
		return err
	}
	key.Key.Wipe()
	m, err := readManifest(path)
	if err != nil || m.Second == nil {
		return err
	}
	if m.Second.RootID == keep.ID() {
		m.RootID, m.WrappedKey = m.Second.RootID, m.Second.WrappedKey
	}
	m.Second = nil
	return replaceManifest(path, m)
}

// fileKeyWraps says which of two roots the manifest at path names: "old", "new" or "both".
func fileKeyWraps(path, from, to string) (string, error) {
	m, err := readManifest(path)
	switch {
	case err != nil:
		return "", err
	case m.Second != nil:
		return "both", nil
	case m.RootID == to:
		return "new", nil
	}
	return "old", nil
}
