package edge

import (
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/client"
	"strongroom/internal/clock"
)

// TestPinSets reads what is published with the SDK that will read it.
func TestPinSets(t *testing.T) {
	key := func() (note.Signer, string) {
		private, public, err := note.GenerateKey(rand.Reader, "strongroom/live/ins_1")
		if err != nil {
			t.Fatal(err)
		}
		s, err := note.NewSigner(private)
		if err != nil {
			t.Fatal(err)
		}
		return s, public
	}
	signer, public := key()
	const a, b = "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "sha256/BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA="
	pins := []string{a, b}
	clk := clock.NewManual(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC))
	sets := NewPinSets(func() []string { return pins }, func() note.Signer { return signer }, clk)
	read := func() client.PinSet {
		t.Helper()
		w := httptest.NewRecorder()
		sets.ServeHTTP(w, httptest.NewRequest(http.MethodGet, PinSetPath, nil))
		s, err := client.ParsePinSet(w.Body.Bytes(), []string{public})
		if err != nil || w.Code != http.StatusOK {
			t.Fatalf("%d %v\n%s", w.Code, err, w.Body)
		}
		return s
	}
	first := read()
	if len(first.Pins) != 2 || first.Pins[0] != a || first.ExpiresAt.Sub(first.IssuedAt) != pinSetLifetime || !first.IssuedAt.Equal(clk.Now()) {
		t.Errorf("%+v", first)
	}
	clk.Advance(pinSetRenewal - time.Second)
	if again := read(); again.Sequence != first.Sequence {
		t.Error("a set was made without a reason")
	}
	newer := func(why string, than client.PinSet) client.PinSet {
		t.Helper()
		s := read()
		if s.Sequence <= than.Sequence {
			t.Errorf("%s: sequence %d after %d", why, s.Sequence, than.Sequence)
		}
		return s
	}
	clk.Advance(time.Second)
	last := newer("a day later", first)
	pins = []string{b, a}
	last = newer("another certificate, at the same moment", last)
	signer, public = key()
	last = newer("another signing key", last)
	clk.Advance(-time.Hour)
	pins = []string{b}
	newer("a clock that was set back", last)
}
