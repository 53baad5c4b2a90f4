package edge

import (
	"context"
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"strongroom/internal/clock"
)

// Server opens and closes all listeners together.
type Server struct {
	options Options
	metrics *metrics
	doors   []*serving
	failed  chan error
	state   atomic.Int32
	cancel  context.CancelFunc // ends the certificate watch and, at a forced close, all requests
	base    context.Context
	running sync.WaitGroup // the certificate watch and the Serve calls
	mu      sync.Mutex     // guards Listen, Start, Shutdown against each other
}

const (
	stateNew int32 = iota
	stateBound
	stateServing
	stateDraining
)

// serving is one listener at work.
type serving struct {
	*door
	http  *http.Server
	gate  *gate // nil until bound
	bound netip.AddrPort

	mu    sync.Mutex
	fresh map[net.Conn]struct{} // connections that have not yet sent a request
}

type connKey struct{}

// freshGrace is how long a shutdown waits for connections that have not yet sent a request.
const freshGrace = time.Second

// New checks the listeners; nothing is bound yet.
func New(o Options, listeners ...Listener) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	set(&o.ReloadEvery, 10*time.Second)
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	s := &Server{options: o, metrics: m, failed: make(chan error, len(listeners))}
	s.base, s.cancel = context.WithCancel(context.Background())
	for _, l := range listeners {
		switch {
		case l.Name == "" || s.find(l.Name) != nil:
			return nil, fmt.Errorf("edge: listeners need names of their own, not %q", l.Name)
		case l.Mode != Public && l.Mode != Mutual && l.Mode != Plain:
			return nil, fmt.Errorf("edge: listener %s has no mode", l.Name)
		case l.Mode != Plain && fips140.Enabled():
			return nil, fmt.Errorf("edge: listener %s: with GODEBUG=fips140 Go prefers 128-bit cipher suites, which this server refuses; start it without", l.Name)
		case (l.Certificates == nil) != (l.Mode == Plain):
			return nil, fmt.Errorf("edge: listener %s: a certificate is for TLS, and TLS needs one", l.Name)
		case l.Mode == Mutual && l.Certificates.current.Load().clients == nil:
			return nil, fmt.Errorf("edge: listener %s needs the authorities that sign clients' certificates", l.Name)
		}
		l.Limits = l.Limits.withDefaults(l.Mode)
		v := &serving{door: newDoor(l, o, m), fresh: make(map[net.Conn]struct{})}
		v.next = l.Handler
		v.http = s.httpServer(v)
		s.doors = append(s.doors, v)
	}
	return s, nil
}

func (s *Server) httpServer(v *serving) *http.Server {
	l := v.Limits
	srv := &http.Server{
		Handler:           v.door,
		ReadHeaderTimeout: l.HandshakeAndHeader, // covers the handshake too: net/http takes the shortest
		ReadTimeout:       l.Read,
		WriteTimeout:      l.Write,
		IdleTimeout:       l.Idle,
		MaxHeaderBytes:    l.HeaderBytes,
		ErrorLog:          errorLog(s.options.Log, v.Name, s.metrics),
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: l.Streams,
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          15 * time.Second,
			WriteByteTimeout:     l.Write,
		},
		// OPTIONS * would be answered before the door saw it.
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return s.base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: v.track,
	}
	srv.Protocols.SetHTTP1(true)
	if v.Mode != Plain {
		srv.Protocols.SetHTTP2(true)
		srv.TLSConfig = s.countHandshakes(v.Certificates.Config(v.Mode), v.Name)
	}
	return srv
}

func (s *Server) countHandshakes(config *tls.Config, listener string) *tls.Config {
	count := func(c *tls.Config) {
		verify := c.VerifyConnection
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := verify(cs); err != nil {
				return err
			}
			s.metrics.handshakes.WithLabelValues(listener, tls.CipherSuiteName(cs.CipherSuite), cs.CurveID.String()).Inc()
			return nil
		}
	}
	count(config)
	if perClient := config.GetConfigForClient; perClient != nil {
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := perClient(hello)
			if err == nil {
				count(c)
			}
			return c, err
		}
	}
	return config
}

// track follows connections until their first request.
func (v *serving) track(c net.Conn, state http.ConnState) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if state == http.StateNew {
		v.fresh[c] = struct{}{}
	} else {
		delete(v.fresh, c)
	}
}

func (v *serving) closeFresh() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for c := range v.fresh {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn() // closing the tls.Conn would wait for its handshake
		}
		_ = c.Close()
	}
}

func (s *Server) find(name string) *serving {
	for _, v := range s.doors {
		if v.Name == name {
			return v
		}
	}
	return nil
}

// Handle sets what stands behind the listener of that name. It must come before Start.
func (s *Server) Handle(name string, h http.Handler) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.find(name)
	if v == nil {
		return fmt.Errorf("edge: there is no listener %q", name)
	}
	if s.state.Load() >= stateServing {
		return errors.New("edge: the server has already started")
	}
	v.next = h
	return nil
}

// Listen binds all listeners, or none, so that their addresses are known. Connections wait until
// Start. Start calls it when it was not called before.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listen(ctx)
}

func (s *Server) listen(ctx context.Context) error {
	if s.state.Load() != stateNew {
		return nil
	}
	for _, v := range s.doors {
		ln, err := listen(ctx, v.Listener)
		if err != nil {
			for _, w := range s.doors {
				if w.gate != nil {
					err = errors.Join(err, w.gate.Close())
					w.gate = nil
				}
			}
			return err
		}
		name := v.Name
		v.gate = &gate{
			Listener: ln, tls: v.Mode != Plain, everyone: v.Everyone && v.Mode != Plain, allow: v.Allow, trusted: v.TrustedProxies,
			max: v.Limits.Connections, maxPer: v.Limits.ConnectionsPerAddress, per: make(map[netip.Addr]int),
			refused:    func(reason string) { s.metrics.refused.WithLabelValues(name, reason).Inc() },
			opened:     s.metrics.connections.WithLabelValues(name).Add,
			acceptFail: s.metrics.acceptFails.WithLabelValues(name).Inc,
		}
		v.bound = ln.Addr().(*net.TCPAddr).AddrPort()
	}
	s.state.Store(stateBound)
	return nil
}

// Start serves. It returns once every listener accepts connections; what goes wrong later comes out
// of Failed.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Load() > stateBound {
		return errors.New("edge: the server has already started")
	}
	for _, v := range s.doors {
		if v.next == nil {
			return fmt.Errorf("edge: listener %s has no handler", v.Name)
		}
	}
	if err := s.listen(ctx); err != nil {
		return err
	}
	for _, v := range s.doors {
		s.running.Go(func() {
			serve := v.http.Serve
			if v.Mode != Plain {
				serve = func(ln net.Listener) error { return v.http.ServeTLS(ln, "", "") }
			}
			if err := serve(v.gate); !errors.Is(err, http.ErrServerClosed) {
				s.failed <- fmt.Errorf("edge: listener %s: %w", v.Name, err)
			}
		})
		s.options.Log.Info("listening", "listener", v.Name, "address", v.bound.String(), "mode", v.Mode.String())
	}
	s.expiries()
	s.running.Go(s.watch)
	s.state.Store(stateServing)
	return nil
}

// Addr returns where the listener is bound; the zero AddrPort before Listen.
func (s *Server) Addr(name string) netip.AddrPort {
	if v := s.find(name); v != nil {
		return v.bound
	}
	return netip.AddrPort{}
}

// URL returns the base URL under which this host reaches the listener, for example
// "https://127.0.0.1:8443"; "" before Listen.
func (s *Server) URL(name string) string {
	v := s.find(name)
	if v == nil || !v.bound.IsValid() {
		return ""
	}
	at := netip.AddrPortFrom(v.bound.Addr().Unmap(), v.bound.Port())
	if at.Addr().IsUnspecified() {
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	}
	if v.Mode == Plain {
		return "http://" + at.String()
	}
	return "https://" + at.String()
}

// Ready reports whether the server serves and is not about to stop: one part of a readiness answer.
func (s *Server) Ready() bool { return s.state.Load() == stateServing }

// Failed delivers the error of a listener that ended by itself.
func (s *Server) Failed() <-chan error { return s.failed }

// Reload reads all certificate files again; it is what SIGHUP should do. Files that changed are
// also found without it, within Options.ReloadEvery.
func (s *Server) Reload() error {
	return s.reload(func(c *Certificates) (bool, error) { return true, c.Reload() })
}

func (s *Server) reload(one func(*Certificates) (bool, error)) error {
	var errs []error
	seen := make(map[*Certificates]bool)
	for _, v := range s.doors {
		c := v.Certificates
		if c == nil || seen[c] {
			continue
		}
		seen[c] = true
		changed, err := one(c)
		if !changed {
			continue
		}
		outcome := "ok"
		if err != nil {
			outcome = "failed"
			errs = append(errs, err)
			s.options.Log.Error("certificate not reloaded; the one before stays in use", "listener", v.Name, "error", err.Error())
		} else {
			s.options.Log.Info("certificate reloaded", "listener", v.Name, "expires", c.NotAfter().Format(time.RFC3339))
		}
		s.metrics.reloads.WithLabelValues(v.Name, outcome).Inc()
	}
	s.expiries()
	return errors.Join(errs...)
}

func (s *Server) expiries() {
	for _, v := range s.doors {
		if v.Certificates != nil {
			s.metrics.notAfter.WithLabelValues(v.Name).Set(float64(v.Certificates.NotAfter().Unix()))
		}
	}
}

func (s *Server) watch() {
	ticker := time.NewTicker(s.options.ReloadEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.base.Done():
			return
		case <-ticker.C:
			_ = s.reload((*Certificates).reloadChanged) // logged and counted there
		}
	}
}

// Shutdown stops in an order that loses nothing: Ready turns false and answers ask clients to
// leave; after Options.Drain no connection is accepted; requests that were begun are finished; the plain
// listeners, which show all this, go last. When ctx ends before that, what is left is broken off, its
// contexts end, and ctx's error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.state.Swap(stateDraining)
	defer s.cancel()
	switch was {
	case stateDraining:
		return nil
	case stateNew, stateBound:
		var errs []error
		for _, v := range s.doors {
			if v.gate != nil {
				errs = append(errs, v.gate.Close())
			}
		}
		return errors.Join(errs...)
	}
	for _, v := range s.doors {
		v.draining.Store(true)
	}
	if s.options.Drain > 0 {
		timer := time.NewTimer(s.options.Drain)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	err := s.shut(ctx, func(v *serving) bool { return v.Mode != Plain })
	err = errors.Join(err, s.shut(ctx, func(v *serving) bool { return v.Mode == Plain }))
	s.cancel()
	s.running.Wait()
	return err
}

func (s *Server) shut(ctx context.Context, which func(*serving) bool) error {
	var wg sync.WaitGroup
	errs := make([]error, len(s.doors))
	for i, v := range s.doors {
		if !which(v) {
			continue
		}
		wg.Go(func() {
			// net/http waits five seconds for connections that never said anything.
			timer := time.AfterFunc(freshGrace, v.closeFresh)
			defer timer.Stop()
			if err := v.http.Shutdown(ctx); err != nil {
				s.cancel()
				errs[i] = fmt.Errorf("edge: listener %s: requests were broken off: %w", v.Name, errors.Join(err, v.http.Close()))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
