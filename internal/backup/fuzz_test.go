package backup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"strongroom/internal/db"
)

var fuzzTable = db.Table{
	Name: "t", Columns: []db.Column{{Name: "a", Type: db.TextColumn}, {Name: "b", Type: db.IntColumn}, {Name: "c", Type: db.BlobColumn}}, Key: []int{1, 0},
}

// FuzzRows reads any bytes as rows: what is read is written the same again, but for lengths and integers
// that could have been written shorter.
func FuzzRows(f *testing.F) {
	text := func(s string) db.Value { return db.Value{Kind: db.TextColumn, Bytes: []byte(s)} }
	number := func(n int64) db.Value { return db.Value{Kind: db.IntColumn, Int: n} }
	blob := func(s string) db.Value { return db.Value{Kind: db.BlobColumn, Bytes: []byte(s)} }
	for _, values := range [][]db.Value{{text("text"), number(-5), blob("blob")}, {{}, {}, {}}, {text(""), number(1 << 62), blob("")}} {
		row := appendRow(nil, values)
		f.Add(append(binary.AppendUvarint(nil, uint64(len(row))), row...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		values, again := make([]db.Value, 3), make([]db.Value, 3)
		for rest := b; len(rest) > 0; {
			row, after, err := nextRow(rest)
			if err != nil {
				if !errors.Is(err, errRow) {
					t.Fatal(err)
				}
				return
			}
			if len(after) >= len(rest) {
				t.Fatal("no progress")
			}
			rest = after
			if err := readRow(row, values, fuzzTable.Columns); err != nil {
				if !errors.Is(err, errRow) {
					t.Fatal(err)
				}
				continue
			}
			written := appendRow(nil, values)
			if len(written) > len(row) {
				t.Fatalf("%x was read from %x", written, row)
			}
			if err := readRow(written, again, fuzzTable.Columns); err != nil || compareKeys(values, again) != 0 {
				t.Fatalf("%v is read again as %v, %v", values, again, err)
			}
			if key := appendKey(nil, &fuzzTable, values); !bytes.Equal(key, appendRow(nil, []db.Value{values[1], values[0]})) {
				t.Fatalf("the key of %v is %x", values, key)
			}
		}
	})
}

// FuzzChange reads any bytes as a change.
func FuzzChange(f *testing.F) {
	f.Add((&change{}).append(nil))
	f.Add((&change{removed: []fingerprint{{1}, {2}}, added: []byte("\x04\x00\x00\x00\x00"), rows: 1}).append(nil))
	f.Add(binary.AppendUvarint(nil, 1<<63))
	f.Fuzz(func(t *testing.T, b []byte) {
		removed, added, err := readChange(b)
		if err != nil {
			if !errors.Is(err, errRow) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.HasSuffix(b, added) || len(removed)*len(fingerprint{}) > len(b) {
			t.Fatalf("%d removed and %d bytes added out of %d bytes", len(removed), len(added), len(b))
		}
	})
}

// FuzzObject opens any bytes as an object and as a manifest. Only what was sealed opens.
func FuzzObject(f *testing.F) {
	k, err := newVaultKey(bytes.Repeat([]byte{7}, masterSize), "dev/ins_test", Data)
	if err != nil {
		f.Fatal(err)
	}
	plaintext := bytes.Repeat([]byte("some rows "), 300)
	name := k.nameOf(plaintext)
	stored, err := k.seal(name, plaintext)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(stored)
	f.Add(stored[:sealedKeySize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := k.open(name, b, true); err == nil != bytes.Equal(b, stored) || err == nil && !bytes.Equal(got, plaintext) {
			t.Fatalf("%d bytes opened to %d, %v", len(b), len(got), err)
		}
		if _, err := openManifest(k, "snap_20260102t150405_abcdef", b, nil); err == nil {
			t.Fatal("it opened as a manifest")
		}
	})
}

// FuzzManifest opens a manifest with any plaintext, as somebody could make one who holds the repository's
// key: whatever it says, it is refused or read, and its objects can be listed.
func FuzzManifest(f *testing.F) {
	k, err := newVaultKey(bytes.Repeat([]byte{7}, masterSize), "dev/ins_test", Data)
	if err != nil {
		f.Fatal(err)
	}
	const id = "snap_20260102t150405_abcdef"
	f.Add([]byte(`{"manifest":{"format":1,"id":"` + id + `","tables":[{"name":"t","segments":[{"object":"` + strings.Repeat("ab", 32) + `","change":{"object":"` + strings.Repeat("cd", 32) + `"}}]}]},"note":""}`))
	f.Add([]byte(`{"manifest":{"format":1,"id":"` + id + `","tables":[{"segments":[{"object":"a"}]}]}}`))
	f.Add([]byte(`{"manifest":{"format":2,"id":"` + id + `"},"note":"x"}`))
	f.Add([]byte(`{"manifest":null}`))
	f.Fuzz(func(t *testing.T, plaintext []byte) {
		stored, err := k.seal(manifestName(id), plaintext)
		if err != nil {
			t.Fatal(err)
		}
		m, err := openManifest(k, id, stored, nil)
		if err != nil {
			return
		}
		if m.ID != id || m.Format != formatVersion {
			t.Fatalf("%+v", m)
		}
		for name := range m.objects() {
			_ = objectKey(name)
		}
	})
}
