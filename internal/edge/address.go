package edge

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// plainAddr returns the address in the one form that prefixes are compared with: IPv4 inside IPv6
// unpacked, and without a zone, which netip.Prefix.Contains never matches.
func plainAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return plainAddr(tcp.AddrPort().Addr())
	}
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		return plainAddr(ap.Addr())
	}
	return netip.Addr{}
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// source is what counts as one client: an IPv4 address, or an IPv6 /64, since everybody who has one
// IPv6 address has all of its /64.
func source(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// Truncate returns the network that an address in a log is shown as: the IPv4 /24 or the IPv6 /48.
// A whole address is personal data (GDPR recital 30); the network tells an operator what a log is
// read for, and the whole address is in the audit trail, sealed.
func Truncate(a netip.Addr) string {
	bits := 24
	if a = plainAddr(a); a.Is6() {
		bits = 48
	}
	p, err := a.Prefix(bits)
	if err != nil || !p.IsValid() {
		return ""
	}
	return p.String()
}

// maxHops bounds how many entries of X-Forwarded-For are looked at, from the right.
const maxHops = 16

// clientAddress returns where a request came from: the peer, or, when the peer is a trusted proxy, the
// right-most entry of X-Forwarded-For that is none. Only what a trusted proxy wrote is believed: the
// walk goes from the right, and ends at the proxy that wrote something which is no address.
// The headers Forwarded (RFC 7239), X-Real-Ip and the like are never read: a proxy that does not
// overwrite them passes on what the client made up.
func clientAddress(peer netip.Addr, trusted []netip.Prefix, h http.Header) netip.Addr {
	client := peer
	if len(trusted) == 0 || !contains(trusted, peer) {
		return client
	}
	hops := 0
	lines := h["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for more := true; more; hops++ {
			if hops == maxHops {
				return client
			}
			entry := rest
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, entry = rest[:comma], rest[comma+1:]
			} else {
				more = false
			}
			a, ok := parseHop(strings.Trim(entry, " \t"))
			if !ok {
				return client
			}
			if client = a; !contains(trusted, a) {
				return client
			}
		}
	}
	return client
}

// parseHop reads an address with or without a port; IPv6 with or without brackets.
func parseHop(s string) (netip.Addr, bool) {
	if len(s) > 64 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		var ap netip.AddrPort
		if ap, err = netip.ParseAddrPort(s); err == nil {
			a = ap.Addr()
		} else if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			a, err = netip.ParseAddr(s[1 : len(s)-1])
		}
	}
	return plainAddr(a), err == nil && a.IsValid()
}

// hostName returns the name in a Host header, without port and in lower case.
func hostName(host string) string {
	if strings.HasPrefix(host, "[") {
		if end := strings.IndexByte(host, ']'); end > 0 {
			return strings.ToLower(host[1:end])
		}
	}
	if colon := strings.LastIndexByte(host, ':'); colon >= 0 && strings.IndexByte(host, ':') == colon {
		host = host[:colon]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// isLoopbackName reports whether a host name can only mean this machine.
func isLoopbackName(name string) bool {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(name)
	return err == nil && a.Unmap().IsLoopback()
}
