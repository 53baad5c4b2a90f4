package app

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHarden: after it, no core can be written, nobody may look into the memory, and what the server
// does through /proc/self still works.
func TestHarden(t *testing.T) {
	if err := Harden(); err != nil {
		t.Fatal(err)
	}
	var cores unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &cores); err != nil || cores.Cur != 0 || cores.Max != 0 {
		t.Errorf("core dumps may have %+v bytes, %v", cores, err)
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || n != 0 {
		t.Errorf("dumpable %d, %v", n, err)
	}
	folder := t.TempDir()
	listener, err := listenUnix(filepath.Join(folder, socketName))
	if err != nil {
		t.Fatalf("the control socket: %v", err)
	}
	defer listener.Close()
	info, err := os.Stat(filepath.Join(folder, socketName))
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
