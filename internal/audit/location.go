package audit

import "net/netip"

// Locator says where addresses are. Package location is behind it.
type Locator interface {
	// Locate returns the country of an address, two capital letters (ISO 3166-1), and the network that it
	// belongs to ("AS64500 Example Net"); each is empty when it is not known.
	Locate(a netip.Addr) (country, network string)
}
