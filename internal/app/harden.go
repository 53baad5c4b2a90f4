package app

import "golang.org/x/sys/unix"

// Harden prepares the process before it holds a secret: new files are for their owner only.
func Harden() { unix.Umask(0o077) }
