package audit

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Memory keeps the newest signed checkpoint where the database's administrator does not reach it,
// so that a database that was put back to an older state, or given another history, is noticed.
type Memory interface {
	// Load returns the checkpoint stored last, or nil when there is none.
	Load() ([]byte, error)
	// Store replaces it. After a crash Load returns the old one or the new one, nothing in between.
	Store(checkpoint []byte) error
}

// RememberFile returns a Memory in a file, which Store makes with mode 0600.
func RememberFile(path string) Memory { return rememberFile(path) }

type rememberFile string

// String names the file, for messages.
func (f rememberFile) String() string { return string(f) }

func (f rememberFile) Load() ([]byte, error) {
	file, err := os.Open(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxNote+1))
}

func (f rememberFile) Store(checkpoint []byte) (err error) {
	dir := filepath.Dir(string(f))
	draft, err := os.CreateTemp(dir, filepath.Base(string(f))+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(draft.Name())
		}
	}()
	_, err = draft.Write(checkpoint)
	if err = errors.Join(err, draft.Sync(), draft.Close()); err != nil {
		return err
	}
	if err = os.Rename(draft.Name(), string(f)); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
