package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"strongroom/internal/audit"
	"strongroom/internal/clock"
)

// FileOptions configure a File.
type FileOptions struct {
	Path    string        // the file that is written; its folder must exist
	MaxSize int64         // bytes over which the next page begins a new file; 0: no bound
	MaxAge  time.Duration // age over which it does; 0: no bound
	Encode  Encode
	Clock   clock.Clock
}

// File writes JSON lines into a file, mode 0600, synced before each Send returns. A file that is large or
// old enough is renamed to its path, a dot and the time of that in UTC, "20060102T150405.000000Z"; taking
// those away is the operator's part.
//
// A line that a crash cut in the middle is removed before the next is written, since its event comes again.
type File struct {
	FileOptions
	file *os.File
	size int64
	born time.Time
}

// NewFile returns a File, having made sure that the file can be written.
func NewFile(o FileOptions) (*File, error) {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	f := &File{FileOptions: o}
	return f, f.open()
}

func (f *File) open() (err error) {
	file, err := os.OpenFile(f.Path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("sink: %s is no file", f.Path)
	}
	if info.Mode().Perm() != 0o600 {
		if err := file.Chmod(0o600); err != nil {
			return fmt.Errorf("sink: %w", err)
		}
	}
	size, err := wholeLines(file, info.Size())
	if err != nil {
		return fmt.Errorf("sink: %s: %w", f.Path, err)
	}
	if err := file.Truncate(size); err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	if _, err := file.Seek(size, io.SeekStart); err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	if err := syncFolder(f.Path); err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	f.file, f.size, f.born = file, size, f.Clock.Now()
	if size > 0 {
		f.born = info.ModTime() // at most as old as the last write; the time of its making is not kept
	}
	return nil
}

// wholeLines returns the length of the file's whole lines.
func wholeLines(file io.ReaderAt, size int64) (int64, error) {
	b := make([]byte, 64<<10)
	for end := size; end > 0; {
		begin := max(0, end-int64(len(b)))
		n, err := file.ReadAt(b[:end-begin], begin)
		if err != nil && (!errors.Is(err, io.EOF) || int64(n) < end-begin) {
			return 0, err
		}
		if i := bytes.LastIndexByte(b[:n], '\n'); i >= 0 {
			return begin + int64(i) + 1, nil
		}
		end = begin
	}
	return 0, nil
}

// Send implements audit.Sink.
func (f *File) Send(_ context.Context, events []audit.Entry) error {
	text, err := lines(events, f.Encode)
	if err != nil {
		return err
	}
	if err := f.still(); err != nil {
		return err
	}
	if f.size > 0 && (f.MaxSize > 0 && f.size+int64(len(text)) > f.MaxSize || f.MaxAge > 0 && f.Clock.Now().Sub(f.born) >= f.MaxAge) {
		if err := f.rotate(); err != nil {
			return err
		}
	}
	n, err := f.file.Write(text)
	if err == nil {
		err = f.file.Sync()
	}
	if err != nil {
		// What was half written is cut off when the file is opened again.
		_ = f.file.Close()
		f.file = nil
		return fmt.Errorf("sink: %s: %w", f.Path, err)
	}
	f.size += int64(n)
	return nil
}

// still opens the file again when it is closed, or when somebody has moved it away.
func (f *File) still() error {
	if f.file != nil {
		ours, err := f.file.Stat()
		if err != nil {
			return fmt.Errorf("sink: %w", err)
		}
		there, err := os.Lstat(f.Path)
		if err == nil && os.SameFile(ours, there) {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sink: %w", err)
		}
		_ = f.file.Close() // every Send has synced it
		f.file = nil
	}
	return f.open()
}

func (f *File) rotate() error {
	name := f.Path + "." + f.Clock.Now().UTC().Format("20060102T150405.000000Z")
	if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sink: %s is there already", name)
	}
	if err := os.Rename(f.Path, name); err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	err := f.file.Close()
	f.file = nil
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	return f.open()
}

// Close closes the file.
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}

func syncFolder(path string) error {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Rotated reports whether name is that of a file that a File at path has put aside.
func Rotated(path, name string) bool {
	stamp, ok := strings.CutPrefix(name, path+".")
	_, err := time.Parse("20060102T150405.000000Z", stamp)
	return ok && err == nil
}
