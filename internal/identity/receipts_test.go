package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/identity/sms"
	"strongroom/internal/secret"
)

// two is a house whose messages go through two gateways, first and second.
func two(t *testing.T, d *db.DB, change func(*Options)) (h *house, got [2]*carrier, report func(provider, id, state string) int) {
	t.Helper()
	keys := []secret.Value{secret.FromString("0123456789abcdef"), secret.FromString("fedcba9876543210")}
	var links []sms.Link
	h = newHouse(t, d, func(o *Options) {
		for n, name := range []string{"first", "second"} {
			got[n] = &carrier{}
			s := httptest.NewTLSServer(got[n])
			t.Cleanup(s.Close)
			roots := x509.NewCertPool()
			roots.AddCert(s.Certificate())
			w, err := sms.NewWebhook(sms.WebhookOptions{URL: s.URL, Secret: keys[n], Roots: roots, Clock: o.Clock})
			if err != nil {
				t.Fatal(err)
			}
			links = append(links, sms.Link{Name: name, Sender: w})
		}
		route, err := sms.NewRoute(o.Clock, links...)
		if err != nil {
			t.Fatal(err)
		}
		o.Sender = route
		o.Wake = func(string) {}
		if change != nil {
			change(o)
		}
	})
	mux := http.NewServeMux()
	mux.Handle("POST "+ReceiptPath+"{provider}", h.Receipts())
	report = func(provider, id, state string) int {
		t.Helper()
		body := fmt.Sprintf(`{"id":%q,"state":%q}`, id, state)
		r := httptest.NewRequest("POST", ReceiptPath+provider, strings.NewReader(body))
		key := keys[0]
		if provider == "second" {
			key = keys[1]
		}
		r.Header.Set(sms.SignatureHeader, sms.Sign(key, h.clk.Now(), []byte(body)))
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w.Code
	}
	return h, got, report
}

// A message that its provider accepted and lost reaches the customer through the next one, and no
// forged, repeated, late or misdirected report does anything.
func TestLostMessageGoesToTheNextProvider(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, got, report := two(t, d, nil)
		deliver := func() {
			t.Helper()
			if err := h.deliver(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		start := func(n int) {
			t.Helper()
			if _, err := h.StartRegistration(t.Context(), from("k"), number(n)); err != nil {
				t.Fatal(err)
			}
			deliver()
		}
		counts := func(first, second int) {
			t.Helper()
			if got[0].delivered() != first || got[1].delivered() != second {
				t.Fatalf("%d and %d, want %d and %d", got[0].delivered(), got[1].delivered(), first, second)
			}
		}
		start(1)
		counts(1, 0)
		id := got[0].got[0]
		for _, row := range []struct {
			provider, id, state string
			status              int
		}{
			{"first", id, "underway", 204}, {"second", id, "failed", 204}, {"first", "sms_00000000000000000000000000", "failed", 204},
			{"first", "nonsense", "failed", 204}, {"third", id, "failed", 401}, {"first", id, "eaten", 401},
		} {
			if status := report(row.provider, row.id, row.state); status != row.status {
				t.Errorf("%v: %d", row, status)
			}
			deliver()
		}
		counts(1, 0)
		for event, want := range map[string]int{"denied unknown-message": 1, "denied unsigned-receipt": 2} {
			if got := h.countEvents(ActionMessageReceipt, event); got != want || len(h.events(ActionMessageReceipt)) != 3 {
				t.Errorf("events %v", h.events(ActionMessageReceipt))
			}
		}
		if report("first", id, "failed") != 204 {
			t.Error("the report was refused")
		}
		deliver()
		counts(1, 1)
		if h.lastEvent(ActionMessageReceipt) == "" || h.countEvents(ActionMessageReceipt, "denied message-lost") != 1 {
			t.Errorf("events %v", h.events(ActionMessageReceipt))
		}
		// Again, and when the second loses it too: nobody is left, and it ends.
		report("first", id, "failed")
		report("second", got[1].got[0], "failed")
		deliver()
		counts(1, 1)
		if h.count("sms_sent") != 0 || h.count("sms_outbox") != 0 {
			t.Error("rows are left")
		}
		start(2)
		counts(2, 1)
		report("first", got[0].got[1], "delivered")
		if h.countEvents(ActionMessageReceipt, "granted") != 1 || h.count("sms_sent") != 0 {
			t.Errorf("events %v", h.events(ActionMessageReceipt))
		}
		// Too late to be of use.
		start(3)
		h.clk.Advance(CodeLifetime)
		report("first", got[0].got[2], "failed")
		deliver()
		counts(3, 1)
		start(4)
		h.clk.Advance(CodeLifetime + 2*time.Minute)
		if err := h.cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if h.count("sms_sent") != 0 {
			t.Error("sent messages stay")
		}
	})
}

func TestFailoverBetweenProviders(t *testing.T) {
	h, got, _ := two(t, dbtest.Open(t, db.SQLite), nil)
	got[0].status.Store(503)
	for n := range 3 {
		if _, err := h.StartRegistration(t.Context(), from("k"), number(n)); err != nil {
			t.Fatal(err)
		}
		if err := h.deliver(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got[1].delivered() != 3 || got[0].calls.Load() != 1 || h.gateway.Broken() {
		t.Errorf("the second delivered %d, the first was asked %d times", got[1].delivered(), got[0].calls.Load())
	}
}

// What reaches a provider's server and the logs of ours holds no more of the message than it must.
func TestReceiptBodyIsBounded(t *testing.T) {
	h, _, _ := two(t, dbtest.Open(t, db.SQLite), nil)
	mux := http.NewServeMux()
	mux.Handle("POST "+ReceiptPath+"{provider}", h.Receipts())
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("POST", ReceiptPath+"first", bytes.NewReader(make([]byte, sms.MaxReceipt+1))))
	if w.Code != http.StatusBadRequest {
		t.Errorf("status %d", w.Code)
	}
	w = httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("POST", ReceiptPath+"first", io.LimitReader(bytes.NewReader(nil), 0)))
	if w.Code != http.StatusUnauthorized || w.Body.Len() != 0 || json.Valid(w.Body.Bytes()) {
		t.Errorf("status %d", w.Code)
	}
}
