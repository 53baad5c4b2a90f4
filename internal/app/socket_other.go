//go:build !linux

package app

import (
	"context"
	"errors"
	"net"
	"os"
)

func listenUnix(path string) (*net.UnixListener, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return listener, os.Chmod(path, 0o600)
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

// peerUID is known on Linux only; elsewhere the control socket lets nobody in.
func peerUID(net.Conn) (int, error) {
	return -1, errors.New("the caller's identity cannot be checked on this system")
}
