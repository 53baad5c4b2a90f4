package app

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Harden prepares the process before it holds a secret: new files are for their owner only, and its
// memory, in which keys stand, is never written to disk as a core dump, nor, on Linux, read by another
// process of the same user (prctl(2), PR_SET_DUMPABLE). Profiles are not affected: the process makes
// them itself.
func Harden() error {
	unix.Umask(0o077)
	// Hard and soft, so that nothing this process starts can raise it again.
	err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	if err = errors.Join(err, undumpable()); err != nil {
		return fmt.Errorf("keep this process's memory off the disk: %w", err)
	}
	return nil
}
