package edge

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/clock"
)

// PinSetPath is where a listener publishes its pin set.
const PinSetPath = "/.well-known/strongroom-pins"

const (
	// pinSetHeader begins the text, so that no other text that the same key signs is one.
	pinSetHeader   = "strongroom-pins/1"
	pinSetLifetime = 30 * 24 * time.Hour
	pinSetRenewal  = 24 * time.Hour
)

// PinSets publishes which keys apps shall pin, signed (C2SP signed-note), so that apps that are out there move
// to the next key without an update. It is safe for concurrent use.
type PinSets struct {
	pins   func() []string
	signer func() note.Signer
	clock  clock.Clock

	mu     sync.Mutex
	signed []byte
	of     []string // the pins in signed
	by     uint32   // the hash of the key that signed it
	issued time.Time
}

// NewPinSets returns the handler of PinSetPath. Both functions are asked for each request.
func NewPinSets(pins func() []string, signer func() note.Signer, clk clock.Clock) *PinSets {
	return &PinSets{pins: pins, signer: signer, clock: clk}
}

// Current returns the signed set. A new one is made when the pins or the signing key have changed, and once a
// day. Its sequence is the time when it was made, in Unix microseconds: replicas need nothing in common but
// the time, and no set of a restarted process is older than one that it gave out before.
func (p *PinSets) Current() ([]byte, error) {
	pins, signer, now := p.pins(), p.signer(), p.clock.Now().UTC()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.signed != nil && slices.Equal(pins, p.of) && signer.KeyHash() == p.by && now.Sub(p.issued) < pinSetRenewal {
		return p.signed, nil
	}
	if last := p.issued.Add(time.Microsecond); now.Before(last) {
		now = last // the clock was set back
	}
	text, err := json.Marshal(map[string]any{
		"sequence": now.UnixMicro(), "issued_at": now.Truncate(time.Second), "expires_at": now.Truncate(time.Second).Add(pinSetLifetime), "pins": pins,
	})
	if err != nil {
		return nil, err
	}
	signed, err := note.Sign(&note.Note{Text: pinSetHeader + "\n" + string(text) + "\n"}, signer)
	if err != nil {
		return nil, fmt.Errorf("edge: pin set: %w", err)
	}
	p.signed, p.of, p.by, p.issued = signed, pins, signer.KeyHash(), now
	return signed, nil
}

func (p *PinSets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	signed, err := p.Current()
	if err != nil {
		WriteProblem(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(signed) // whoever asked has gone
}
