package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// keepAlive finds peers that vanished without a word in about 90 seconds.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4}

// listen binds the address. Plain binds to loopback alone, whatever the configuration says.
func listen(ctx context.Context, l Listener) (net.Listener, error) {
	address := l.Address
	if l.Mode == Plain {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("edge: listener %s: address %q: %w", l.Name, address, err)
		}
		if host == "localhost" {
			host = "127.0.0.1" // not what a hosts file or a resolver says it is
		}
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Unmap().IsLoopback() {
			return nil, fmt.Errorf("edge: listener %s speaks plain HTTP and binds to 127.0.0.1, [::1] or localhost only, not to %q", l.Name, l.Address)
		}
		address = net.JoinHostPort(host, port)
	}
	ln, err := (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("edge: listener %s: %w", l.Name, err)
	}
	return ln, nil
}

// Why a connection is refused, as a label of strongroom_connections_refused_total.
const (
	refusedAddress    = "address"
	refusedTotal      = "connections"
	refusedPerAddress = "connections-per-address"
	refusedNotTLS     = "not-tls"
)

// gate is a net.Listener that closes unwelcome connections before a byte of them is read.
type gate struct {
	net.Listener
	tls        bool
	everyone   bool
	allow      []netip.Prefix
	trusted    []netip.Prefix
	max        int // negative: no limit
	maxPer     int // negative: no limit
	refused    func(reason string)
	opened     func(delta float64)
	acceptFail func()

	mu   sync.Mutex
	open int
	per  map[netip.Addr]int // open connections by source; only those over zero
}

// Accept returns the next connection that is welcome. Errors such as too many open files are returned
// for http.Server to wait and try again.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				g.acceptFail()
			}
			return nil, err
		}
		peer := addrOf(c.RemoteAddr())
		counted, reason := g.admit(peer)
		if reason == "" {
			g.opened(1)
			return &conn{Conn: c, gate: g, peer: peer, counted: counted, spoke: !g.tls}, nil
		}
		g.refused(reason)
		if tcp, ok := c.(*net.TCPConn); ok {
			// A reset instead of a farewell: nothing of a flood stays behind in TIME_WAIT.
			_ = tcp.SetLinger(0)
		}
		_ = c.Close() // refused; there is nothing to lose
	}
}

// admits reports whether connections from the address may come in at all.
func (g *gate) admits(peer netip.Addr) bool {
	return contains(g.trusted, peer) || allowed(peer, g.everyone, g.allow)
}

// admit counts the connection, or says why not. The returned address is the one to discount later.
func (g *gate) admit(peer netip.Addr) (counted netip.Addr, reason string) {
	proxy := contains(g.trusted, peer)
	if !g.admits(peer) {
		return netip.Addr{}, refusedAddress
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.max >= 0 && g.open >= g.max {
		return netip.Addr{}, refusedTotal
	}
	if !proxy && g.maxPer >= 0 {
		counted = source(peer)
		if g.per[counted] >= g.maxPer {
			return netip.Addr{}, refusedPerAddress
		}
		g.per[counted]++
	}
	g.open++
	return counted, ""
}

func (g *gate) release(counted netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if !counted.IsValid() {
		return
	}
	if g.per[counted]--; g.per[counted] == 0 {
		delete(g.per, counted)
	}
}

// allowed reports whether an address may use a listener. Without a rule, loopback may.
func allowed(a netip.Addr, everyone bool, allow []netip.Prefix) bool {
	if everyone {
		return true
	}
	if len(allow) == 0 {
		return a.IsLoopback()
	}
	return contains(allow, a)
}

// conn is an admitted connection. It leaves the count when it is closed.
type conn struct {
	net.Conn
	gate    *gate
	peer    netip.Addr
	counted netip.Addr
	spoke   bool // the first byte was looked at
	once    sync.Once

	identify     sync.Once // the client certificate was looked at
	service, key string
}

var errNotTLS = errors.New("the first byte is not that of a TLS handshake")

// Read ends a connection that does not begin with a TLS handshake record (RFC 8446 section 5.1) without an
// answer; http.Server would send plain HTTP a hint.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.spoke && n > 0 {
		c.spoke = true
		if b[0] != 22 {
			c.gate.refused(refusedNotTLS)
			return 0, errNotTLS
		}
	}
	return n, err
}

// CloseWrite lets http.Server end a plain connection so that the client still reads the answer.
func (c *conn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.gate.release(c.counted)
		c.gate.opened(-1)
	})
	return c.Conn.Close()
}
