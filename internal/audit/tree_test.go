package audit

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// store is a whole tree in memory, kept the way of tlog's own documentation.
type store struct {
	hashes []tlog.Hash
	size   int64
}

func (s *store) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		list[i] = s.hashes[x]
	}
	return list, nil
}

func (s *store) append(t *testing.T, h tlog.Hash) {
	hashes, err := tlog.StoredHashesForRecordHash(s.size, h, s)
	if err != nil {
		t.Fatal(err)
	}
	s.hashes = append(s.hashes, hashes...)
	s.size++
}

func leafOf(i int64) tlog.Hash { return leafHash(fmt.Appendf(nil, "leaf %d", i)) }

// The edge has the root and the tiles that tlog computes from the whole tree, at every size.
func TestEdge(t *testing.T) {
	const total = 1<<16 + 1<<8 + 3
	whole, e := new(store), new(edge)
	tiles := make(map[tlog.Tile][]byte)
	var full []tile
	var err error
	check := func(c tile) {
		w := len(c.hashes) / tlog.HashSize
		x := tlog.Tile{H: tileHeight, L: c.level, N: c.n, W: w}
		want, err := tlog.ReadTileData(x, whole)
		if err != nil || !bytes.Equal(c.hashes, want) {
			t.Fatalf("tile %v of a tree of %d: %v", x.Path(), e.size, err)
		}
		tiles[x] = want
	}
	old := int64(0)
	for i := int64(0); i < total; i++ {
		whole.append(t, leafOf(i))
		if full, err = e.append(leafOf(i), full); err != nil {
			t.Fatal(err)
		}
		if i > 1000 && i%509 != 0 && i < 1<<16-2 && i != total-1 {
			continue
		}
		root, err := e.root()
		if want, _ := tlog.TreeHash(i+1, whole); err != nil || root != want {
			t.Fatalf("root of %d: %v", i+1, err)
		}
		// What is to be stored is what tlog says is new.
		fresh := make(map[tlog.Tile]bool)
		for _, x := range tlog.NewTiles(tileHeight, old, i+1) {
			fresh[x] = true
		}
		changed := append(full, e.partial(old)...)
		if len(changed) != len(fresh) {
			t.Fatalf("from %d to %d: %d tiles, want %d", old, i+1, len(changed), len(fresh))
		}
		for _, c := range changed {
			check(c)
			if !fresh[tlog.Tile{H: tileHeight, L: c.level, N: c.n, W: len(c.hashes) / tlog.HashSize}] {
				t.Fatalf("tile %d/%d is not new", c.level, c.n)
			}
		}
		old, full = i+1, nil
		// An edge that is read from the tiles is the same one.
		again, err := newEdge(tlog.Tree{N: i + 1, Hash: root}, func(level int, n int64) ([]byte, error) {
			w, _ := width(i+1, level)
			return bytes.Clone(tiles[tlog.Tile{H: tileHeight, L: level, N: n, W: w}]), nil
		})
		if err != nil {
			t.Fatalf("edge of %d: %v", i+1, err)
		}
		next, _ := again.append(leafOf(i+1), nil)
		copied := e.clone()
		nextToo, _ := copied.append(leafOf(i+1), nil)
		a, _ := again.root()
		b, _ := copied.root()
		if a != b || len(next) != len(nextToo) {
			t.Fatalf("at %d the edges grow apart", i+1)
		}
	}
	if len(e.tiles[1]) != tlog.HashSize || len(e.tiles[2]) != tlog.HashSize {
		t.Error("the test does not reach the third level")
	}
}

// Proofs made from the tiles hold against the root.
func TestTilesProve(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 1500).Draw(t, "size")
		e := new(edge)
		var all []tile
		for i := range size {
			all, _ = e.append(leafOf(i), all)
		}
		root, err := e.root()
		if err != nil {
			t.Fatal(err)
		}
		tree := tlog.Tree{N: size, Hash: root}
		r := tlog.TileHashReader(tree, memoryTiles(append(all, e.partial(0)...)))
		n := rapid.Int64Range(0, size-1).Draw(t, "record")
		proof, err := tlog.ProveRecord(size, n, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.CheckRecord(proof, size, root, n, leafOf(n)); err != nil {
			t.Fatal(err)
		}
		old := rapid.Int64Range(1, size).Draw(t, "old")
		before := new(edge)
		for i := range old {
			if _, err := before.append(leafOf(i), nil); err != nil {
				t.Fatal(err)
			}
		}
		oldRoot, _ := before.root()
		if ok, err := extends(tlog.Tree{N: old, Hash: oldRoot}, r); err != nil || !ok {
			t.Fatalf("extends: %v, %v", ok, err)
		}
		oldRoot[0] ^= 1
		if ok, _ := extends(tlog.Tree{N: old, Hash: oldRoot}, r); ok {
			t.Fatal("extends another tree")
		}
	})
}

type memoryTiles []tile

func (memoryTiles) Height() int                     { return tileHeight }
func (memoryTiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (m memoryTiles) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, x := range tiles {
		for _, c := range m {
			if c.level == x.L && c.n == x.N {
				data = append(data, c.hashes[:x.W*tlog.HashSize])
			}
		}
	}
	return data, nil
}

func TestEdgeRefusesOtherTiles(t *testing.T) {
	e := new(edge)
	for i := range int64(700) {
		if _, err := e.append(leafOf(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	root, _ := e.root()
	for _, change := range []func(level int, b []byte) ([]byte, error){
		func(level int, b []byte) ([]byte, error) { b[len(b)-1] ^= 1; return b, nil },
		func(level int, b []byte) ([]byte, error) { return b[1:], nil },
		func(level int, b []byte) ([]byte, error) { return nil, nil },
		func(level int, b []byte) ([]byte, error) { return append(b, make([]byte, 32)...), nil },
		func(level int, b []byte) ([]byte, error) { return nil, errors.New("no") },
	} {
		_, err := newEdge(tlog.Tree{N: 700, Hash: root}, func(level int, n int64) ([]byte, error) {
			return change(level, bytes.Clone(e.tiles[level]))
		})
		if err == nil {
			t.Error("tiles that do not fit were taken")
		}
	}
}

func signers(t testing.TB, name string) (note.Signer, note.Verifiers) {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return signer, note.VerifierList(verifier)
}

func TestCheckpoint(t *testing.T) {
	signer, known := signers(t, "strongroom/dev/ins_1")
	other, _ := signers(t, "strongroom/dev/ins_1")
	tree := tlog.Tree{N: 300, Hash: leafOf(1)}
	signed, err := signCheckpoint(tree, signer)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseCheckpoint(signed, known); err != nil || got != tree {
		t.Fatalf("%s: %v", signed, err)
	}
	hash := tree.Hash.String()
	for name, text := range map[string]string{
		"another origin":  "strongroom/dev/ins_2\n300\n" + hash + "\n",
		"an extension":    "strongroom/dev/ins_1\n300\n" + hash + "\nmore\n",
		"no root":         "strongroom/dev/ins_1\n300\n",
		"a zero in front": "strongroom/dev/ins_1\n0300\n" + hash + "\n",
		"a sign":          "strongroom/dev/ins_1\n+300\n" + hash + "\n",
		"negative":        "strongroom/dev/ins_1\n-1\n" + hash + "\n",
		"too large":       "strongroom/dev/ins_1\n9223372036854775808\n" + hash + "\n",
		"a short root":    "strongroom/dev/ins_1\n300\nAAAA\n",
		"a loose root":    "strongroom/dev/ins_1\n300\n" + hash[:len(hash)-2] + "B=\n",
	} {
		b, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseCheckpoint(b, known); err == nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
	forged, err := signCheckpoint(tree, other)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range [][]byte{forged, nil, []byte("x"), signed[:len(signed)-2], bytes.Repeat(signed, 1000)} {
		if _, err := parseCheckpoint(b, known); err == nil {
			t.Errorf("%d was taken", i)
		}
	}
	for i := range signed {
		b := bytes.Clone(signed)
		b[i] ^= 1
		// The last bits of a signature's base64 mean nothing; all else counts.
		if got, err := parseCheckpoint(b, known); err == nil && (got != tree || i < len(signed)-5) {
			t.Fatalf("byte %d changed: got %v", i, got)
		}
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	signer, known := signers(f, "strongroom/dev/ins_1")
	tree := tlog.Tree{N: 300, Hash: leafOf(1)}
	signed, err := signCheckpoint(tree, signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add([]byte("strongroom/dev/ins_1\n300\n\n\n— strongroom/dev/ins_1 AAAA\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseCheckpoint(b, known); err == nil && got != tree {
			t.Errorf("a checkpoint that was never signed: %+v", got)
		}
		// Signed or not, the text is parsed strictly.
		if signed, err := note.Sign(&note.Note{Text: string(b)}, signer); err == nil {
			if got, err := parseCheckpoint(signed, known); err == nil && checkpointText(signer.Name(), got) != string(b) {
				t.Errorf("%q was taken for %+v", b, got)
			}
		}
	})
}

func TestRememberFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "checkpoint")
	m := RememberFile(path)
	if b, err := m.Load(); b != nil || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	for _, s := range []string{"one", "two"} {
		if err := m.Store([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if b, err := m.Load(); string(b) != s || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if list, err := os.ReadDir(dir); len(list) != 1 || err != nil {
		t.Errorf("%v is left, %v", list, err)
	}
	if err := RememberFile(filepath.Join(dir, "none", "checkpoint")).Store(nil); err == nil {
		t.Error("stored in a folder that is not there")
	}
}
