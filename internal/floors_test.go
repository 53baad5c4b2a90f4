// Package internal holds the rooms of Strongroom; this test keeps their floors.
package internal

import (
	"go/build"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// floors says on which floor each package stands. Imports run strictly downwards; packages below
// another one (keyring/seal) belong to it and may also be imported by its neighbours when they are
// pure, which is what the second table is for.
var floors = map[string]int{
	"actor": 0, "problem": 0, "secret": 0, "clock": 0, "config": 0, "customer": 0, "id": 0, "check": 0,
	"db": 1, "jobs": 1, "witness": 1,
	"location": 2,
	"keyring":  2, "audit": 2, "policy": 2, "once": 2,
	"vault": 3, "edge": 3, "transit": 3, "events": 3, "finding": 3,
	"identity": 4, "backup": 4,
	"assurance": 5,
	"api":       6, "demo": 6,
	"app": 7,
	"e2e": 8,
}

// pure packages do no I/O and know no room: everybody above floor 0 may use them.
var pure = map[string]bool{"keyring/seal": true, "keyring/stream": true}

// neighbours are pairs on one floor of which the first may import the second.
var neighbours = map[[2]string]bool{
	{"jobs", "db"}: true, // the lease table
	{"id", "id"}:   true,
	// The words on floor 0 may lean on each other.
	{"customer", "id"}: true, {"actor", "customer"}: true, {"config", "secret"}: true,
}

func TestImportsRunDownwards(t *testing.T) {
	const module = "strongroom/internal/"
	var seen int
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == "." {
			return err
		}
		if d.Name() == "testdata" {
			return filepath.SkipDir
		}
		pkg, err := build.ImportDir(path, 0)
		if _, none := err.(*build.NoGoError); none {
			return nil
		}
		if err != nil {
			return err
		}
		from := filepath.ToSlash(path)
		room, _, _ := strings.Cut(from, "/")
		floor, ok := floors[room]
		if !ok {
			t.Errorf("%s stands on no floor: add it to the table and to ARCHITECTURE.md", room)
			return nil
		}
		seen++
		for _, imported := range pkg.Imports {
			to, inside := strings.CutPrefix(imported, module)
			if !inside || pure[to] {
				continue
			}
			other, _, _ := strings.Cut(to, "/")
			if other == room || floors[other] < floor || neighbours[[2]string{room, other}] {
				continue
			}
			t.Errorf("%s (floor %d) imports %s (floor %d)", from, floor, to, floors[other])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 15 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

func TestTheClientStandsAlone(t *testing.T) {
	for _, dir := range []string{"client", "client/local", "client/mobile"} {
		pkg, err := build.ImportDir("../"+dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, imported := range pkg.Imports {
			if strings.HasPrefix(imported, "strongroom/") && (dir == "client" || !strings.HasPrefix(imported, "strongroom/client")) {
				t.Errorf("%s imports %s; apps outside this module could not use it", dir, imported)
			}
		}
	}
}
