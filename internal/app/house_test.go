package app

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"strongroom/internal/config"
)

// Only one server at a time runs on a data folder, whatever the database.
func TestOneServerForEachFolder(t *testing.T) {
	c := config.Config{Data: t.TempDir()}
	first, second := &House{Config: c}, &House{Config: c}
	if err := first.lockFolder(); err != nil {
		t.Fatal(err)
	}
	if err := second.lockFolder(); err == nil || !strings.Contains(err.Error(), "another server runs") {
		t.Errorf("got %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.lockFolder(); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// A file is there whole or not at all, replaces nothing, and an earlier try that was cut short is no
// hindrance.
func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path+".new", []byte("ha"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(path, "whole"); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(path, "other"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("replaced: %v", err)
	}
	b, err := os.ReadFile(path)
	info, serr := os.Stat(path)
	if err != nil || serr != nil || string(b) != "whole" || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("%q %v %v %v", b, info, err, serr)
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 1 {
		t.Errorf("%v %v", list, err)
	}
}

// What a killed server left of a restore for practice is removed, and nothing else.
func TestSweepScratch(t *testing.T) {
	h := &House{}
	h.Config.Data = t.TempDir()
	left, _, err := h.scratchFolder()
	if err != nil {
		t.Fatal(err)
	}
	ours := filepath.Join(h.Config.Data, "scratch_of-somebody-else")
	if err := errors.Join(os.WriteFile(filepath.Join(left, databaseFile), []byte("half of it"), 0o600), os.Mkdir(ours, 0o700), h.sweepScratch()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was left: %v", err)
	}
	if _, err := os.Stat(ours); err != nil {
		t.Error(err)
	}
}
