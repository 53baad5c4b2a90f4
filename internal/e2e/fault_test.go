package e2e

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"strongroom/client"
	"strongroom/internal/db/dbtest"
)

// wire is a TCP proxy that can be cut.
type wire struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	cut      bool
	conns    map[net.Conn]struct{}
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: listener, to: to, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() { listener.Close(); w.set(true) })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			go w.carry(near)
		}
	}()
	return w
}

func (w *wire) carry(near net.Conn) {
	far, err := net.Dial("tcp", w.to)
	if err != nil {
		near.Close()
		return
	}
	w.mu.Lock()
	if w.cut {
		near.Close()
		far.Close()
	}
	w.conns[near], w.conns[far] = struct{}{}, struct{}{}
	w.mu.Unlock()
	go func() { _, _ = io.Copy(far, near); far.Close() }()
	_, _ = io.Copy(near, far)
	near.Close()
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	if cut {
		for c := range w.conns {
			c.Close()
		}
		clear(w.conns)
	}
}

// TestLostDatabase cuts the way to PostgreSQL: requests are answered 503 with Retry-After, nothing
// hangs, readiness says so, and everything works again by itself when the way is back.
func TestLostDatabase(t *testing.T) {
	raw := dbtest.PostgresURL(t)
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, u.Host)
	u.Host = w.listener.Addr().String()
	data := t.TempDir()
	s := startPatient(t, data, "--database", u.String())
	p := mustPerson(t, s)
	put := func(key string) (client.Record, error) {
		return p.app.Collection("profile").Put(t.Context(), key, profile{"Ada", "Writer"}, client.IfNew())
	}
	if _, err := put("before"); err != nil {
		t.Fatal(err)
	}

	w.set(true)
	// One answer, clear and soon, even to a caller who proves nothing: a denial that cannot be
	// recorded is not given. (The SDK would try again by itself, so it is told not to.)
	answer, err := s.client().Post(s.urls.App+"/v1/registrations", "application/json", strings.NewReader(`{"phone":"+447700900999"}`))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" {
		t.Errorf("answered %s, Retry-After %q", answer.Status, answer.Header.Get("Retry-After"))
	}
	device, err := client.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	impatient, err := client.New(client.Options{BaseURL: s.urls.App, Pins: s.pins(), RootCAs: s.authority(), Key: device, Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer impatient.Close()
	var problem *client.Problem
	if _, err := impatient.Register(t.Context(), "+447700900999"); !errors.As(err, &problem) || problem.Status != http.StatusServiceUnavailable || problem.RetryAfter <= 0 {
		t.Errorf("registering without a database: %v", err)
	}
	eventually(t, "readiness turns", func() error {
		if status, body := get(t, s.client(), s.urls.Ops+"/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, `"database":"failing"`) {
			return errors.New(body)
		}
		return nil
	})
	if status, _ := get(t, s.client(), s.urls.Ops+"/healthz"); status != http.StatusOK {
		t.Error("a lost database is no reason to kill the process")
	}

	w.set(false)
	eventually(t, "the server recovers", func() error {
		_, err := put("after" + time.Now().Format("150405000000"))
		return err
	})
	if _, err := p.app.Collection("profile").Get(t.Context(), "before"); err != nil {
		t.Errorf("what was acknowledged is gone: %v", err)
	}
	eventually(t, "readiness turns back", func() error {
		if status, body := get(t, s.client(), s.urls.Ops+"/readyz"); status != http.StatusOK {
			return errors.New(body)
		}
		return nil
	})
	verifyHolds(t, data, s)
}
