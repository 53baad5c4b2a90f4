//go:build !linux

package app

import (
	"errors"
	"net/netip"
)

func boundSockets() ([]netip.AddrPort, error) {
	return nil, errors.New("this is known on Linux only")
}
