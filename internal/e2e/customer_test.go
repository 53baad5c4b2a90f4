package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"strongroom/client"
)

// nextNumber hands out drama numbers, each once in this process.
var nextNumber atomic.Int64

// person is a customer with one device.
type person struct {
	phone, privateCode string
	key                client.DeviceKey
	store              *tokens
	app                *client.Client
	id                 string
}

// tokens keeps a session over restarts of the server, whose port changes.
type tokens struct {
	mu sync.Mutex
	t  client.Tokens
}

func (s *tokens) Load(context.Context) (client.Tokens, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t, nil
}

func (s *tokens) Save(_ context.Context, t client.Tokens) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t = t
	return nil
}

// pins returns the pin of the server's authority: the demo installation has no other key to pin.
func (s *server) pins() []string {
	s.t.Helper()
	b, err := os.ReadFile(s.urls.CA)
	if err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	return []string{client.Pin(cert)}
}

func (s *server) device(key client.DeviceKey, store client.TokenStore) *client.Client {
	s.t.Helper()
	c, err := client.New(client.Options{BaseURL: s.urls.App, Pins: s.pins(), RootCAs: s.authority(), Key: key, Store: store})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// newPerson registers a customer and logs them in.
func newPerson(ctx context.Context, s *server) (*person, error) {
	key, err := client.NewDeviceKey()
	if err != nil {
		return nil, err
	}
	p := &person{phone: fmt.Sprintf("+447700900%03d", nextNumber.Add(1)-1), privateCode: "83510274", key: key, store: &tokens{}}
	p.moveTo(s)
	registration, err := p.app.Register(ctx, p.phone)
	if err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	code, err := s.code(ctx, p.phone, "")
	if err != nil {
		return nil, err
	}
	done, err := registration.Complete(ctx, code, p.privateCode, "test")
	if err != nil {
		return nil, fmt.Errorf("complete registration: %w", err)
	}
	p.id = done.Customer
	return p, p.login(ctx, s, code)
}

// moveTo lets the person's app speak to s, in the session that it has.
func (p *person) moveTo(s *server) { p.app = s.device(p.key, p.store) }

// login logs in; lastCode is a code that has come already.
func (p *person) login(ctx context.Context, s *server, lastCode string) error {
	login, err := p.app.Login(ctx, p.phone, p.privateCode)
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	code, err := s.code(ctx, p.phone, lastCode)
	if err != nil {
		return err
	}
	if _, err := login.Complete(ctx, code, "test"); err != nil {
		return fmt.Errorf("complete login: %w", err)
	}
	return nil
}

// pay authorises a payment in a session that may, which the person then has.
func (p *person) pay(ctx context.Context, s *server, payment string, terms client.PaymentTerms) error {
	last, err := s.code(ctx, p.phone, "")
	if err != nil {
		return err
	}
	login, err := p.app.Login(ctx, p.phone, p.privateCode)
	if err != nil {
		return err
	}
	if last, err = s.code(ctx, p.phone, last); err != nil {
		return err
	}
	if _, err := login.CompleteWith(ctx, client.LoginAnswer{Code: last, Scope: client.ScopePayment}); err != nil {
		return err
	}
	if _, err := p.app.SendPaymentCode(ctx, payment); err != nil {
		return err
	}
	if last, err = s.code(ctx, p.phone, last); err != nil {
		return err
	}
	_, err = p.app.AuthorisePayment(ctx, payment, last, terms)
	return err
}

var sixDigits = regexp.MustCompile(`\b[0-9]{6}\b`)

// code waits for the newest one-time code to phone, other than the last one.
func (s *server) code(ctx context.Context, phone, last string) (string, error) {
	return s.found(ctx, phone, sixDigits, last)
}

// found waits for the newest message to phone that has what the pattern describes, other than the last.
func (s *server) found(ctx context.Context, phone string, pattern *regexp.Regexp, last string) (string, error) {
	ask, err := json.Marshal(map[string]string{"to": phone})
	if err != nil {
		return "", err
	}
	http1 := s.client()
	defer http1.CloseIdleConnections()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.urls.App+"/dev/inbox/search", bytes.NewReader(ask))
		if err != nil {
			return "", err
		}
		r.Header.Set("Content-Type", "application/json")
		answer, err := http1.Do(r)
		if err != nil {
			return "", err
		}
		var inbox struct {
			Messages []struct{ Text string }
		}
		err = json.NewDecoder(answer.Body).Decode(&inbox)
		answer.Body.Close()
		if err != nil {
			return "", err
		}
		for _, m := range inbox.Messages {
			code := pattern.FindString(m.Text)
			if code == "" {
				continue // customers are told of more than codes
			}
			if code != last {
				return code, nil
			}
			break // only the newest code counts
		}
	}
	return "", errors.New("no code came")
}

func mustPerson(t testing.TB, s *server) *person {
	t.Helper()
	p, err := newPerson(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
