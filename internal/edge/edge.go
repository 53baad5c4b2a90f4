// Package edge is the front door. Every byte from outside comes through it, and it promises that
//
//   - what is not expected goes nowhere: a connection from an address that is not allowed, over the
//     connection limits, or not speaking TLS is closed without an answer;
//   - TLS is 1.3 with 256-bit suites and hybrid post-quantum key exchange, on every listener that is
//     not the loopback-only one for operations;
//   - a slow, greedy or flooding client meets a bound (of time, bytes, rate or number) that is its
//     own before it can meet one that it shares with others;
//   - every request has an id that the answer, the log and the audit trail share, and an
//     actor.Actor that says where it came from;
//   - every failure is a problem (RFC 9457), every request is one line in the log, and neither holds
//     a query, a header, a body or a whole address;
//   - a shutdown finishes what was begun.
//
// Listener says what stands behind each door, Server opens and closes them all, Certificates and
// DevCA hold the keys. The package knows nothing about what the handlers do.
//
// It follows OWASP ASVS 5.0 chapters 4.2 (HTTP message structure), 12 (secure communication) and
// 16.5 (error handling), and RFC 9325 where that asks for more.
package edge

import (
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/clock"
)

// Mode says how the connections of a listener are protected.
type Mode int

// The modes of a listener.
const (
	// Public is TLS 1.3 in which only the server proves who it is.
	Public Mode = iota
	// Mutual is TLS 1.3 in which the client needs a certificate signed by one of
	// Files.ClientCAs; the actor of its requests is an actor.Service with the name that
	// ServiceName reads from the certificate.
	Mutual
	// Plain is HTTP without TLS. It binds to loopback addresses only.
	Plain
)

// String returns the mode's name for logs.
func (m Mode) String() string {
	switch m {
	case Public:
		return "tls"
	case Mutual:
		return "mutual-tls"
	case Plain:
		return "plain"
	}
	return "unknown"
}

// Listener describes one door. What is not set is closed: without Everyone and Allow only loopback
// addresses may connect.
type Listener struct {
	Name         string        // for logs and metrics: "app", "service", "admin", "ops"
	Address      string        // host:port; port 0 takes a free one. Plain takes loopback hosts only
	Mode         Mode          // Public when not set
	Certificates *Certificates // nil for Plain; Mutual needs its Files.ClientCAs
	Handler      http.Handler  // may be set later, by Server.Handle, but before Server.Start

	Everyone bool           // every address may connect; Allow is ignored
	Allow    []netip.Prefix // addresses that may connect, and for which a trusted proxy may speak
	// TrustedProxies are load balancers: they may connect, count for no per-address limit, and their
	// X-Forwarded-For and X-Request-Id are believed.
	TrustedProxies []netip.Prefix
	// Hosts are the names (without port) that the Host header may carry; empty means any, and for
	// Plain the loopback names, so that a web page cannot reach it by DNS rebinding.
	Hosts []string
	// ContentTypes that a body may have; empty means application/json alone.
	ContentTypes []string
	// Bodies are exceptions to Limits.Body and ContentTypes, for the few paths that need them.
	Bodies []Body
	// Headers are set on every answer instead of, or besides, the strict defaults; a handler may
	// still set its own. An empty value removes a default.
	Headers map[string]string

	Limits Limits
}

// Body is what a request with one method to a path with one prefix may have for a body. Who handles it
// reads it as a stream, and sees to the time that it takes.
type Body struct {
	Method, Prefix string
	Limit          int64 // bytes
	ContentTypes   []string
}

// Limits bound what the clients of a listener may use. Zero means the default in parentheses;
// a negative number means no limit where one is allowed.
type Limits struct {
	Connections           int           // open connections (4096)
	ConnectionsPerAddress int           // of one address, IPv6: of one /64 (128)
	RequestsPerSecond     float64       // of one address, IPv6: of one /64 (50; Plain: none)
	Burst                 int           // requests of one address at once (2 × RequestsPerSecond)
	RequestsPerAddress    int           // being handled at once, of one address, IPv6: of one /64 (64)
	Requests              int           // being handled at once, of all addresses (1024)
	Body                  int64         // bytes of a request body (64 KiB)
	HeaderBytes           int           // of a request's line and headers (16 KiB)
	Streams               int           // at once on one HTTP/2 connection (64)
	HandshakeAndHeader    time.Duration // for the TLS handshake, and again for each request's header (10 s)
	Read                  time.Duration // for a whole request (30 s)
	Write                 time.Duration // from the end of the header to the end of the answer (60 s)
	Idle                  time.Duration // between two requests (120 s)
}

func (l Limits) withDefaults(m Mode) Limits {
	set(&l.Connections, 4096)
	set(&l.ConnectionsPerAddress, 128)
	if m == Plain {
		set(&l.RequestsPerSecond, -1)
	}
	set(&l.RequestsPerSecond, 50)
	set(&l.Burst, max(1, int(2*l.RequestsPerSecond)))
	set(&l.RequestsPerAddress, 64)
	set(&l.Requests, 1024)
	set(&l.Body, 64<<10)
	set(&l.HeaderBytes, 16<<10)
	set(&l.Streams, 64)
	set(&l.HandshakeAndHeader, 10*time.Second)
	set(&l.Read, 30*time.Second)
	set(&l.Write, 60*time.Second)
	set(&l.Idle, 120*time.Second)
	return l
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Options are what all listeners share.
type Options struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: counted, but not shown
	Clock   clock.Clock           // nil: clock.System
	// Drain is how long Shutdown goes on accepting after Ready turned false, so that load balancers
	// notice before connections are refused. Zero is right without one.
	Drain time.Duration
	// ReloadEvery is how often certificate files are looked at for changes; 0 means 10 s.
	ReloadEvery time.Duration
}
