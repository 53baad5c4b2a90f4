package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	tileBytes  = tileWidth * tlog.HashSize
	// tileLevels is enough for 2^48 events.
	tileLevels = 6
)

// frontier is the right edge of a tree: the roots of its largest complete subtrees, from which
// every later root follows. hash[l] counts when bit l of size is set.
type frontier struct {
	size int64
	hash [tileLevels * tileHeight]tlog.Hash
}

// ReadHashes is part of tlog.HashReader; tlog asks a growing tree for nothing but its edge.
func (f *frontier) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		level, n := tlog.SplitStoredHashIndex(x)
		if level >= len(f.hash) || n != f.size>>level-1 || n&1 != 0 {
			return nil, fmt.Errorf("hash %d is not at the edge of a tree of %d", x, f.size)
		}
		hashes[i] = f.hash[level]
	}
	return hashes, nil
}

// append adds a leaf and returns the hashes of all subtrees that it completes, its own first.
func (f *frontier) append(leaf tlog.Hash) ([]tlog.Hash, error) {
	hashes, err := tlog.StoredHashesForRecordHash(f.size, leaf, f)
	if err != nil {
		return nil, err
	}
	top := len(hashes) - 1
	if top >= len(f.hash) {
		return nil, errors.New("the log is full")
	}
	f.hash[top] = hashes[top]
	f.size++
	return hashes, nil
}

func (f *frontier) root() (tlog.Hash, error) { return tlog.TreeHash(f.size, f) }

// edge is a frontier with the incomplete tiles, to which the tree grows.
type edge struct {
	frontier
	tiles [tileLevels][]byte
}

// tile is the content of one row of log_tile.
type tile struct {
	level  int
	n      int64
	hashes []byte
}

// width returns how many hashes the incomplete tile of a level has in a tree of size, and its number.
func width(size int64, level int) (w int, n int64) {
	hashes := size >> (tileHeight * level)
	return int(hashes % tileWidth), hashes / tileWidth
}

// append adds a leaf and returns full with the tiles appended that it completes.
func (e *edge) append(leaf tlog.Hash, full []tile) ([]tile, error) {
	hashes, err := e.frontier.append(leaf)
	if err != nil {
		return full, err
	}
	for l := 0; l < len(hashes); l += tileHeight {
		level := l / tileHeight
		t := append(e.tiles[level], hashes[l][:]...)
		if len(t) == tileBytes {
			_, n := width(e.size, level)
			full = append(full, tile{level, n - 1, t})
			t = nil
		}
		e.tiles[level] = t
	}
	return full, nil
}

// partial returns the incomplete tiles that have a hash that the tree did not have at the size old.
func (e *edge) partial(old int64) []tile {
	var tiles []tile
	for level := range e.tiles {
		if w, n := width(e.size, level); w > 0 && e.size>>(tileHeight*level) != old>>(tileHeight*level) {
			tiles = append(tiles, tile{level, n, e.tiles[level]})
		}
	}
	return tiles
}

// clone returns a copy that grows on its own.
func (e *edge) clone() *edge {
	c := *e
	for i := range c.tiles {
		c.tiles[i] = slices.Clone(c.tiles[i])
	}
	return &c
}

// newEdge makes the edge of a tree from its incomplete tiles, which read returns, and accepts them
// only when they lead to the tree's root.
func newEdge(tree tlog.Tree, read func(level int, n int64) ([]byte, error)) (*edge, error) {
	e := new(edge)
	e.size = tree.N
	for level := range tileLevels {
		w, n := width(tree.N, level)
		if w == 0 {
			continue
		}
		data, err := read(level, n)
		if err != nil {
			return nil, err
		}
		if len(data) != w*tlog.HashSize {
			return nil, fmt.Errorf("tile %d/%d has %d bytes and should have %d", level, n, len(data), w*tlog.HashSize)
		}
		e.tiles[level] = data
		t := tlog.Tile{H: tileHeight, L: level, N: n, W: w}
		for l := level * tileHeight; l < (level+1)*tileHeight; l++ {
			if tree.N>>l&1 == 0 {
				continue
			}
			if e.hash[l], err = tlog.HashFromTile(t, data, tlog.StoredHashIndex(l, tree.N>>l-1)); err != nil {
				return nil, err
			}
		}
	}
	root, err := e.root()
	if err != nil {
		return nil, err
	}
	if root != tree.Hash {
		return nil, errors.New("the tiles do not lead to the root of the log")
	}
	return e, nil
}

// extends reports whether the tree that thr authenticates has old as its beginning.
func extends(old tlog.Tree, thr tlog.HashReader) (bool, error) {
	root, err := tlog.TreeHash(old.N, thr)
	return err == nil && root == old.Hash, err
}

// maxNote bounds a signed checkpoint; one with ten cosignatures has some 2000 bytes.
const maxNote = 64 << 10

// checkpointText returns the body of a checkpoint (C2SP tlog-checkpoint): the log's origin, its size
// and its root in base64, each in a line.
func checkpointText(origin string, t tlog.Tree) string {
	return origin + "\n" + strconv.FormatInt(t.N, 10) + "\n" + t.Hash.String() + "\n"
}

// signCheckpoint returns a signed note with the checkpoint of t, whose origin is the key's name.
func signCheckpoint(t tlog.Tree, signer note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: checkpointText(signer.Name(), t)}, signer)
}

var errCheckpoint = errors.New("not a checkpoint")

// parseCheckpoint returns the tree that a signed checkpoint describes. At least one of its signatures
// must be by a known key, whose name is the checkpoint's origin.
func parseCheckpoint(signed []byte, known note.Verifiers) (tlog.Tree, error) {
	tree, _, err := openCheckpoint(signed, known)
	return tree, err
}

// openCheckpoint is parseCheckpoint and returns the hash of the key as well.
func openCheckpoint(signed []byte, known note.Verifiers) (tree tlog.Tree, key uint32, err error) {
	if len(signed) > maxNote {
		return tree, 0, errCheckpoint
	}
	n, err := note.Open(signed, known)
	if err != nil {
		return tree, 0, err
	}
	origin, rest, _ := strings.Cut(n.Text, "\n")
	decimal, rest, _ := strings.Cut(rest, "\n")
	encoded, rest, ok := strings.Cut(rest, "\n")
	size, err := strconv.ParseInt(decimal, 10, 64)
	// Lines after these are extensions, which a checkpoint of ours does not have.
	if !ok || rest != "" || err != nil || size < 0 || strconv.FormatInt(size, 10) != decimal {
		return tree, 0, errCheckpoint
	}
	root, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(root) != tlog.HashSize || len(encoded) != base64.StdEncoding.EncodedLen(tlog.HashSize) {
		return tree, 0, errCheckpoint
	}
	at := slices.IndexFunc(n.Sigs, func(s note.Signature) bool { return s.Name == origin })
	if at < 0 {
		return tree, 0, errCheckpoint
	}
	return tlog.Tree{N: size, Hash: tlog.Hash(root)}, n.Sigs[at].Hash, nil
}
