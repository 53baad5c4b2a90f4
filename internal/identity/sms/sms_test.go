package sms

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/secret"
)

const signatureVector = "t=1772366400,v1=5aecff8dd4c8272d022201e25986390a3e97aa67291d7133ee22df2a4ba45f66"

var (
	start   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key     = secret.FromString("a shared secret of some length")
	example = Message{ID: "sms_1", To: "+447700900123", Text: "Your code is 123456.", Made: start}
)

func gateway(t *testing.T, h http.HandlerFunc) (*httptest.Server, *Webhook) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	w, err := NewWebhook(WebhookOptions{URL: s.URL + "/sms?account=7", Secret: key, Timeout: 300 * time.Millisecond, Roots: roots, Clock: clock.NewManual(start)})
	if err != nil {
		t.Fatal(err)
	}
	return s, w
}

func TestWebhookSendsSignedJSON(t *testing.T) {
	var got *http.Request
	var body []byte
	_, w := gateway(t, func(rw http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		rw.WriteHeader(http.StatusAccepted)
	})
	if err := w.Send(t.Context(), example); err != nil {
		t.Fatal(err)
	}
	var m map[string]string
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"id": "sms_1", "to": "+447700900123", "text": "Your code is 123456.", "sent_at": "2026-03-01T12:00:00Z"}
	if fmt.Sprint(m) != fmt.Sprint(want) {
		t.Errorf("body %v", m)
	}
	if got.Header.Get(SignatureHeader) != Sign(key, start, body) {
		t.Errorf("signature %q", got.Header.Get(SignatureHeader))
	}
	if got.Header.Get("Idempotency-Key") != "sms_1" || got.Method != "POST" || got.URL.String() != "/sms?account=7" {
		t.Errorf("request %s %s", got.Method, got.URL)
	}
}

// The signature as another implementation computes it:
// printf '1772366400.{}' | openssl dgst -sha256 -hmac 'a shared secret of some length'
func TestSignatureVector(t *testing.T) {
	if got := Sign(key, start, []byte("{}")); got != signatureVector {
		t.Errorf("got %s", got)
	}
}

func TestWebhookFailures(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("redirect followed") }))
	defer elsewhere.Close()
	rows := []struct {
		name     string
		handler  http.HandlerFunc
		rejected bool
		later    bool
	}{
		{"500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, false, false},
		{"401", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, false, false},
		{"403", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, false, false},
		{"404", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, true, false},
		{"408", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(408) }, false, true},
		{"429", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, false, true},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, false, false},
		{"rejected", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(422) }, true, false},
		{"never answers", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() }, false, false},
		{"hangs up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false, false},
		{"body drips", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // or the server does not see the client leave
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, false, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			_, w := gateway(t, row.handler)
			err := w.Send(t.Context(), example)
			if err == nil {
				t.Fatal("accepted")
			}
			if errors.Is(err, ErrRejected) != row.rejected || errors.Is(err, ErrLater) != row.later {
				t.Errorf("error %v", err)
			}
			if s := err.Error(); strings.Contains(s, "7700900123") || strings.Contains(s, "123456") {
				t.Errorf("the error tells the message: %v", err)
			}
		})
	}
}

func TestWebhookReadsNoEndlessAnswer(t *testing.T) {
	_, w := gateway(t, func(rw http.ResponseWriter, _ *http.Request) {
		chunk := make([]byte, 32<<10)
		for range 1000 {
			if _, err := rw.Write(chunk); err != nil {
				return
			}
		}
		t.Error("32 MB of answer were taken")
	})
	if err := w.Send(t.Context(), example); err != nil {
		t.Fatal(err)
	}
}

func TestWebhookChecksTheGatewaysCertificate(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("reached") }))
	defer s.Close()
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	w, err := NewWebhook(WebhookOptions{URL: s.URL, Secret: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(t.Context(), example); err == nil {
		t.Fatal("sent to a gateway that nobody vouches for")
	}
}

func TestWebhookOptions(t *testing.T) {
	for _, o := range []WebhookOptions{
		{URL: "http://gateway.example/", Secret: key},
		{URL: "https://user:pass@gateway.example/", Secret: key},
		{URL: "https:///x", Secret: key},
		{URL: "https://gateway.example/#x", Secret: key},
		{URL: "https://gateway.example/", Secret: secret.FromString("short")},
	} {
		if _, err := NewWebhook(o); err == nil {
			t.Errorf("accepted %q", o.URL)
		} else if strings.Contains(err.Error(), "pass@") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func TestMessageHidesItself(t *testing.T) {
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "message", example)
	b.WriteString(fmt.Sprintf("%v %s %+v", example, example, example))
	if strings.Contains(b.String(), "7700900123") || strings.Contains(b.String(), "123456") {
		t.Error(b.String())
	}
}

func TestInbox(t *testing.T) {
	b := NewInbox(clock.NewManual(start))
	arrived := b.Arrived()
	for i := range inboxSize + 5 {
		if err := b.Send(context.Background(), Message{ID: fmt.Sprint(i), To: fmt.Sprint("+44770090", i%2), Text: fmt.Sprint("<script>", i)}); err != nil {
			t.Fatal(err)
		}
	}
	<-arrived
	if err := b.Send(context.Background(), Message{ID: "7", To: "+447700900"}); err != nil || len(b.Search("")) != inboxSize {
		t.Errorf("%d messages, %v", len(b.Search("")), err)
	}
	s := httptest.NewServer(b.Handler())
	defer s.Close()

	answer, err := http.Post(s.URL+"/dev/inbox/search", "application/json", strings.NewReader(`{"to":"+447700900"}`))
	if err != nil {
		t.Fatal(err)
	}
	var found struct{ Messages []Received }
	if err := json.NewDecoder(answer.Body).Decode(&found); err != nil {
		t.Fatal(err)
	}
	if len(found.Messages) != inboxSize/2 || found.Messages[0].Text != "<script>1004" || !found.Messages[0].SentAt.Equal(start) {
		t.Errorf("found %d, first %+v", len(found.Messages), found.Messages[0])
	}
	for _, bad := range []string{`{}`, `x`, `{"to":"+44","all":true}`, `{"to":"` + strings.Repeat("4", 2000) + `"}`} {
		answer, err := http.Post(s.URL+"/dev/inbox/search", "application/json", strings.NewReader(bad))
		if err != nil || answer.StatusCode != 400 {
			t.Errorf("%.20s: %v %v", bad, answer.StatusCode, err)
		}
	}
	answer, err = http.Get(s.URL + "/dev/inbox")
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(answer.Body)
	if strings.Contains(string(page), "<script>") || strings.Contains(string(page), "<style") || !strings.Contains(string(page), "&lt;script&gt;") {
		t.Error("messages are not escaped, or style is inline")
	}
	if csp := answer.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy %q", csp)
	}
	if answer, err = http.Get(s.URL + "/dev/inbox/style.css"); err != nil || answer.StatusCode != 200 {
		t.Error("no style")
	}
}

func TestBreaker(t *testing.T) {
	var b Breaker
	now, to := start, 0
	fail := func() { to++; b.Failure(now, fmt.Sprint("+4477009", to), false) }
	allow := func() (time.Duration, bool) { return b.Allow(now, false) }
	for range Threshold - 1 {
		fail()
	}
	if _, ok := allow(); !ok {
		t.Fatal("open too early")
	}
	fail()
	if wait, ok := allow(); ok || wait != minPause {
		t.Fatalf("still closed, wait %v", wait)
	}
	now = now.Add(minPause)
	if _, ok := allow(); !ok {
		t.Fatal("no trial after the pause")
	}
	if _, ok := allow(); ok {
		t.Fatal("a second trial at once")
	}
	if _, ok := b.Allow(now, true); !ok {
		t.Fatal("a stranger has taken the trial of known customers")
	}
	now = now.Add(minPause)
	fail() // the trial failed: the pause doubles
	if wait, ok := allow(); ok || wait != 2*minPause {
		t.Fatalf("wait %v %v", wait, ok)
	}
	if _, ok := b.Allow(now, true); !ok {
		t.Fatal("a stranger's failure has put off known customers")
	}
	for range 10 {
		now = now.Add(time.Hour)
		fail()
	}
	if wait, _ := allow(); wait != maxPause {
		t.Fatalf("pause grows to %v", wait)
	}
	b.Success()
	if _, ok := allow(); !ok {
		t.Fatal("open after a success")
	}
}

func TestBreakerCountsEachNumberOnce(t *testing.T) {
	var b Breaker
	for range 100 * Threshold {
		b.Failure(start, "+447700900001", true)
	}
	if b.Broken() {
		t.Fatal("one number has opened it")
	}
	for n := range Threshold {
		b.Failure(start, fmt.Sprint("+4477009", n), true)
	}
	if !b.Broken() {
		t.Fatal("closed after many numbers")
	}
}

// The address may hold a token. It is in no error, whatever goes wrong on the way.
func TestWebhookErrorsDoNotTellItsAddress(t *testing.T) {
	for _, address := range []string{"https://127.0.0.1:1/sms/hush?token=hush", "https://no.such.host.invalid/hush?token=hush"} {
		w, err := NewWebhook(WebhookOptions{URL: address, Secret: key, Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Send(t.Context(), example); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("error %v", err)
		}
	}
	s, w := gateway(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() })
	if err := w.Send(t.Context(), example); err == nil || strings.Contains(err.Error(), s.URL) || strings.Contains(err.Error(), "account=7") {
		t.Errorf("error %v", err)
	}
}
