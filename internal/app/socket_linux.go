package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A socket's address has room for 107 bytes, and data folders may be deeper than that. Going
// through the folder's descriptor keeps the address short wherever the folder is.
func throughFolder(path string, fn func(short string) error) error {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer folder.Close()
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(path)))
}

// listenUnix listens on path with mode 0600 from the first moment.
func listenUnix(path string) (listener *net.UnixListener, err error) {
	err = throughFolder(path, func(short string) error {
		// The socket file takes its mode from the umask, which belongs to the whole process;
		// the folder itself is 0700, so nobody else can reach it in between.
		listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		if err != nil {
			return err
		}
		listener.SetUnlinkOnClose(false) // its name is the descriptor's, which is closed by then
		return os.Chmod(path, 0o600)
	})
	return listener, err
}

func dialUnix(ctx context.Context, path string) (conn net.Conn, err error) {
	err = throughFolder(path, func(short string) error {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", short)
		return err
	})
	return conn, err
}

// peerUID returns the user at the other end of a unix socket, as the kernel knows it.
func peerUID(conn net.Conn) (int, error) {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return -1, errors.New("not a unix socket")
	}
	control, err := raw.SyscallConn()
	if err != nil {
		return -1, err
	}
	var credentials *unix.Ucred
	var failure error
	if err := control.Control(func(fd uintptr) {
		credentials, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return -1, err
	}
	if failure != nil {
		return -1, failure
	}
	return int(credentials.Uid), nil
}
