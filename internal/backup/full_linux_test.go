package backup

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// A folder whose file system is full gets no copy and says so, the other one does, nothing half-written counts,
// and once there is room the next run completes it.
func TestFullFolder(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	far := filepath.Join(h.base, "small")
	if err := os.Mkdir(far, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", far, "tmpfs", 0, "size=384k"); err != nil {
		t.Skipf("a small file system cannot be mounted (it takes root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(far, syscall.MNT_DETACH) })
	noise := make([]byte, 60_000) // compresses to about as much
	rand.Read(noise)
	for i := range 10 {
		h.fill(t, i, i+1, base64.StdEncoding.EncodeToString(bytes.Replace(noise, []byte{0}, []byte{byte(i)}, 50)))
	}
	raised := &register{}
	b := h.with(t, func(o *Options) { o.Media, o.Findings = 2, raised }, h.folder("near", Data), h.folder("small", Data),
		h.folder("keys", Keys), h.folder("keys2", Keys))
	s, err := b.Run(t.Context(), operator)
	if !problem.Is(err, "backup-incomplete") || s.Kept || s.Copies[0].Error != "" || !strings.Contains(s.Copies[1].Error, syscall.ENOSPC.Error()) {
		t.Fatalf("%v, %+v", err, s.Copies)
	}
	if _, err := os.Stat(filepath.Join(far, "manifests", s.ID)); err == nil {
		t.Error("the full folder has a manifest")
	}
	if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, s.ID), nil); err != nil {
		t.Errorf("from the other folder: %v", err)
	}
	if err := syscall.Mount("tmpfs", far, "tmpfs", syscall.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	if s, err = b.Run(t.Context(), operator); err != nil || !s.Kept {
		t.Fatalf("with room: %v, %+v", err, s.Copies)
	}
	if open := raised.open(); len(open) > 0 {
		t.Errorf("still raised: %v", open)
	}
	b.o.Repositories = b.o.Repositories[1:]
	if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, s.ID), nil); err != nil {
		t.Errorf("from the folder that was full: %v", err)
	}
}
