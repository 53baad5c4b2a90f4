package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"strongroom/internal/db"
)

// A table is copied in segments. What a segment's rows were when its object was written is kept as
// fingerprints; a later snapshot holds the rows against them and stores what differs, and only when more
// than a quarter does, the segment anew. So a snapshot costs what changed, wherever in the table that is,
// and a restore reads each segment from two objects at most.

const (
	defaultSegment = 1 << 20 // bytes of rows in an object
	rewriteShare   = 4       // a change of more than 1/4 of the segment writes it anew
)

// print is what is remembered of a row.
type print struct{ key, row fingerprint }

// printsOf returns the fingerprints of the rows of a segment's object.
func printsOf(k *vaultKey, t *db.Table, plaintext []byte) ([]print, error) {
	mark := k.fingerprints()
	values := make([]db.Value, len(t.Columns))
	var prints []print
	var key []byte
	for rest := plaintext; len(rest) > 0; {
		row, after, err := nextRow(rest)
		if err != nil {
			return nil, err
		}
		if err := readRow(row, values, t.Columns); err != nil {
			return nil, err
		}
		key = appendKey(key[:0], t, values)
		prints = append(prints, print{mark(key), mark(row)})
		rest = after
	}
	return prints, nil
}

// memory keeps the fingerprints of segments on the disk of this machine, so that a snapshot need not read
// back what it is compared with. Whatever is missing there is made again from the object.
type memory struct{ folder string }

const printSize = 2 * len(fingerprint{})

func (m memory) load(object string) []print {
	if m.folder == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(m.folder, object))
	if err != nil || len(b) == 0 || len(b)%printSize != 0 {
		return nil
	}
	prints := make([]print, len(b)/printSize)
	for i := range prints {
		copy(prints[i].key[:], b[i*printSize:])
		copy(prints[i].row[:], b[i*printSize+len(fingerprint{}):])
	}
	return prints
}

func (m memory) store(object string, prints []print) error {
	if m.folder == "" {
		return nil
	}
	b := make([]byte, 0, len(prints)*printSize)
	for _, p := range prints {
		b = append(append(b, p.key[:]...), p.row[:]...)
	}
	draft, err := os.CreateTemp(m.folder, "draft-*")
	if err != nil {
		return err
	}
	_, err = draft.Write(b)
	if err = errors.Join(err, draft.Close()); err == nil {
		err = os.Rename(draft.Name(), filepath.Join(m.folder, object))
	}
	if err != nil {
		_ = os.Remove(draft.Name())
	}
	return err
}

// keep forgets every segment but those.
func (m memory) keep(objects map[string]bool) error {
	if m.folder == "" {
		return nil
	}
	entries, err := os.ReadDir(m.folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !objects[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(m.folder, e.Name())))
		}
	}
	return err
}

// A change is written as the number of rows that are taken away, the fingerprints of their keys, and the
// rows that are added, each as in a segment.
type change struct {
	removed []fingerprint
	added   []byte
	rows    int64 // added
}

func (c *change) empty() bool { return len(c.removed) == 0 && c.rows == 0 }

func (c *change) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(c.removed)))
	for _, f := range c.removed {
		dst = append(dst, f[:]...)
	}
	return append(dst, c.added...)
}

func readChange(b []byte) (removed map[fingerprint]bool, added []byte, err error) {
	n, size := binary.Uvarint(b)
	const width = uint64(len(fingerprint{}))
	if size <= 0 || n > uint64(len(b)-size)/width {
		return nil, nil, errRow
	}
	b = b[size:]
	removed = make(map[fingerprint]bool, n)
	for range n {
		removed[fingerprint(b[:width])] = true
		b = b[width:]
	}
	return removed, b, nil
}

// restoreSegment calls each with every row that the segment has now. Open returns the plaintext of an
// object.
func restoreSegment(ctx context.Context, k *vaultKey, t *db.Table, s Segment, open func(ctx context.Context, name string) ([]byte, error), each func(row []byte) error) error {
	base, err := open(ctx, s.Object)
	if err != nil {
		return err
	}
	if s.Change == nil {
		return eachRow(base, each)
	}
	pack, err := open(ctx, s.Change.Object)
	if err != nil {
		return err
	}
	if s.Change.Offset < 0 || s.Change.Length < 0 || s.Change.Offset > len(pack)-s.Change.Length {
		return fmt.Errorf("%w: %s", ErrObject, s.Change.Object)
	}
	removed, added, err := readChange(pack[s.Change.Offset : s.Change.Offset+s.Change.Length])
	if err != nil {
		return fmt.Errorf("%w: %s", ErrObject, s.Change.Object)
	}
	mark := k.fingerprints()
	values := make([]db.Value, len(t.Columns))
	var key []byte
	err = eachRow(base, func(row []byte) error {
		if err := readRow(row, values, t.Columns); err != nil {
			return err
		}
		key = appendKey(key[:0], t, values)
		if removed[mark(key)] {
			return nil
		}
		return each(row)
	})
	if err != nil {
		return err
	}
	return eachRow(added, each)
}

func eachRow(rows []byte, each func(row []byte) error) error {
	for len(rows) > 0 {
		row, rest, err := nextRow(rows)
		if err != nil {
			return err
		}
		if err := each(row); err != nil {
			return err
		}
		rows = rest
	}
	return nil
}
