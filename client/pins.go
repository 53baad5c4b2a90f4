package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// PinStore keeps the newest signed pin set over restarts. It need not be secret: the signature protects it.
type PinStore interface {
	// LoadPins returns what was saved last, or nil.
	LoadPins(ctx context.Context) ([]byte, error)
	// SavePins replaces what was saved, durably.
	SavePins(ctx context.Context, signed []byte) error
}

// PinSet is what a server says about its keys, signed (C2SP signed-note) by the key of its audit trail.
type PinSet struct {
	Sequence  int64     `json:"sequence"` // grows with each set
	IssuedAt  time.Time `json:"issued_at"`
	ExpiresAt time.Time `json:"expires_at"`
	Pins      []string  `json:"pins"` // the key in use first
}

// Errors of pin sets.
var (
	ErrPinsUnverified = errors.New("strongroom: the pin set is not signed by a known key, or is malformed")
	ErrPinsExpired    = errors.New("strongroom: the pin set has expired")
	ErrPinsOlder      = errors.New("strongroom: the pin set is older than the one that is known")
)

const (
	pinsPath   = "/.well-known/strongroom-pins"
	pinsHeader = "strongroom-pins/1"
	maxPins    = 16 << 10 // bytes
	// pinsAhead is how far a set may be dated ahead of this device's clock.
	pinsAhead = 24 * time.Hour
)

// ParsePinSet verifies a signed pin set with the keys, each as `strongroom pins --format json` prints it.
// It does not look at the clock.
func ParsePinSet(signed []byte, keys []string) (PinSet, error) {
	var verifiers []note.Verifier
	for _, k := range keys {
		v, err := note.NewVerifier(k)
		if err != nil {
			return PinSet{}, errors.New("strongroom: a key in PinKeys is no verifier key")
		}
		verifiers = append(verifiers, v)
	}
	if len(signed) > maxPins {
		return PinSet{}, ErrPinsUnverified
	}
	n, err := note.Open(signed, note.VerifierList(verifiers...))
	if err != nil {
		return PinSet{}, ErrPinsUnverified
	}
	text, ok := strings.CutPrefix(n.Text, pinsHeader+"\n") // a checkpoint, by the same key, begins otherwise
	var set PinSet
	if !ok || json.Unmarshal([]byte(text), &set) != nil || set.Sequence <= 0 || !set.ExpiresAt.After(set.IssuedAt) {
		return PinSet{}, ErrPinsUnverified
	}
	if _, err := pinSet(set.Pins); err != nil {
		return PinSet{}, ErrPinsUnverified
	}
	return set, nil
}

// pinning decides which keys the server may have. It is safe for concurrent use.
type pinning struct {
	builtin map[string]bool
	keys    []string
	store   PinStore
	now     func() time.Time

	mu     sync.Mutex
	loaded bool
	newest PinSet // verified; zero when there is none
	pins   map[string]bool
}

// load takes what the store kept, once. What does not verify is as if it were not there: the pins that the
// app was built with hold then.
func (p *pinning) load(ctx context.Context) error {
	if p.loaded || p.store == nil || len(p.keys) == 0 {
		return nil
	}
	signed, err := p.store.LoadPins(ctx)
	if err != nil {
		return fmt.Errorf("strongroom: pin store: %w", err)
	}
	p.loaded = true
	if len(signed) > 0 {
		if set, err := ParsePinSet(signed, p.keys); err == nil {
			p.newest = set
			p.pins, _ = pinSet(set.Pins) // ParsePinSet has checked them
		}
	}
	return nil
}

// allowed returns the pins in force: those of the newest set, or, when it has expired, those that the app was
// built with.
func (p *pinning) allowed() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.load(context.Background()); err != nil || p.pins == nil || !p.now().Before(p.newest.ExpiresAt) {
		return p.builtin
	}
	return p.pins
}

// accept takes a signed set if it is newer than what is known.
func (p *pinning) accept(ctx context.Context, signed []byte) (PinSet, error) {
	set, err := ParsePinSet(signed, p.keys)
	if err != nil {
		return PinSet{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.load(ctx); err != nil {
		return PinSet{}, err
	}
	now := p.now()
	switch {
	case !now.Before(set.ExpiresAt):
		return PinSet{}, ErrPinsExpired
	case set.IssuedAt.After(now.Add(pinsAhead)):
		return PinSet{}, ErrPinsUnverified
	case set.Sequence < p.newest.Sequence:
		return PinSet{}, ErrPinsOlder
	case set.Sequence == p.newest.Sequence:
		return p.newest, nil
	}
	if p.store != nil {
		if err := p.store.SavePins(ctx, signed); err != nil {
			return PinSet{}, fmt.Errorf("strongroom: pin store: %w", err)
		}
	}
	p.newest = set
	p.pins, err = pinSet(set.Pins)
	return set, err
}

// UpdatePins fetches the server's signed pin set and, when it is newer than the one that is known, puts its
// pins in the place of the old ones. Call it now and then, for example when the app starts.
//
// The set is its own proof, so it is fetched over a connection whose certificate verifies but needs to match
// no pin: that is how an app comes back whose pins are all of the past. Nothing but this request goes there.
func (c *Client) UpdatePins(ctx context.Context) (PinSet, error) {
	if len(c.pinning.keys) == 0 {
		return PinSet{}, errors.New("strongroom: PinKeys are needed: the keys that sign the server's pin set")
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.origin+pinsPath, nil)
	if err != nil {
		return PinSet{}, err
	}
	r.Header.Set("User-Agent", c.userAgent)
	transport := c.transport.Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.transport.TLSClientConfig.RootCAs}
	defer transport.CloseIdleConnections()
	plain := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := plain.Do(r)
	if err != nil {
		return PinSet{}, fmt.Errorf("strongroom: pin set: %w", err)
	}
	defer res.Body.Close()
	signed, err := io.ReadAll(io.LimitReader(res.Body, maxPins+1))
	if err != nil || res.StatusCode != http.StatusOK {
		return PinSet{}, fmt.Errorf("strongroom: pin set: status %d: %w", res.StatusCode, errors.Join(ErrPinsUnverified, err))
	}
	set, err := c.pinning.accept(ctx, signed)
	if err == nil {
		c.http.CloseIdleConnections() // they were checked against the old pins
	}
	return set, err
}
