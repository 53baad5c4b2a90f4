package edge

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"strongroom/internal/check"
	"strongroom/internal/clock"
)

// FloodCheck returns the check that who floods the named listener is refused while others are served. It floods
// a scratch listener with the same limits and certificate, so that nobody who is real shares a limit with it.
func FloodCheck(server func() *Server, name string) check.Check {
	const did = "sent more requests than the limits of the listener allow from one address of this machine to a scratch listener with the same limits, then one from another address"
	return check.Check{
		ID: "dos-flooder-refused", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says: "An address that sends too many requests is refused, while others are served.",
		Run: func(ctx context.Context) check.Observation {
			s := server()
			if s == nil || !s.Ready() || s.find(name) == nil {
				return check.Undecided(did, "The listener does not serve.")
			}
			return flood(ctx, did, s.find(name).Listener)
		},
		Sabotage: func(ctx context.Context) check.Observation {
			return flood(ctx, did, Listener{Name: name, Mode: Plain, Limits: Limits{RequestsPerSecond: -1, Burst: 100}})
		},
	}
}

// The flooder's address and somebody else's: all of 127.0.0.0/8 is this machine.
var flooder, bystander = net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)

func flood(ctx context.Context, did string, l Listener) check.Observation {
	undecided := func(err error) check.Observation { return check.Undecided(did, "It could not be tried: %v", err) }
	l.Address, l.Everyone, l.TrustedProxies, l.Hosts = "127.0.0.1:0", true, nil, nil
	l.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	// Its clock stands still, so that the limit does not recover while a slow machine sends.
	s, err := New(Options{Clock: clock.NewManual(clock.System.Now()), ReloadEvery: time.Hour}, l)
	if err == nil {
		err = s.Start(ctx)
	}
	if err != nil {
		return undecided(err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
		defer cancel()
		_ = s.Shutdown(closing) // a scratch server: nothing is lost with it
	}()
	burst := s.doors[0].Limits.Burst
	refusedAt := 0
	send, done := caller(flooder)
	defer done()
	for n := 1; n <= burst+1; n++ {
		status, err := send(ctx, s.URL(l.Name))
		if err != nil {
			return undecided(err)
		}
		if status == http.StatusTooManyRequests {
			refusedAt = n
			break
		}
	}
	if refusedAt == 0 {
		return check.Failed(did, "%d requests at once from one address were all taken.", burst+1).With("requests", burst+1)
	}
	send, done = caller(bystander)
	defer done()
	status, err := send(ctx, s.URL(l.Name))
	if err != nil {
		return undecided(err)
	}
	if status != http.StatusNoContent {
		return check.Failed(did, "While one address flooded, another was answered with status %d.", status)
	}
	return check.Held(did, "The flooder was refused from request %d on; the other address was served.", refusedAt).With("refused_at", refusedAt).With("burst", burst)
}

// caller sends requests from an address of this machine over one connection.
func caller(from net.IP) (send func(ctx context.Context, url string) (status int, err error), done func()) {
	dialer := &net.Dialer{Timeout: probeTime, LocalAddr: &net.TCPAddr{IP: from}}
	transport := &http.Transport{DialContext: dialer.DialContext,
		// Whose certificate it shows is another check's question.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}}
	client := &http.Client{Transport: transport, Timeout: probeTime}
	return func(ctx context.Context, url string) (int, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/", nil)
		if err != nil {
			return 0, err
		}
		answer, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(io.Discard, io.LimitReader(answer.Body, 4096))
		if closed := answer.Body.Close(); err == nil {
			err = closed
		}
		if err != nil {
			err = fmt.Errorf("reading an answer: %w", err)
		}
		return answer.StatusCode, err
	}, transport.CloseIdleConnections
}
