package oracle

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/identity/sms"
	"strongroom/internal/secret"
)

const number = "+447700900123"

var shared = secret.FromString("sixteen bytes and more")

// outside is a server that answers by a function, over TLS.
func outside(t testing.TB, answer http.HandlerFunc) (url string, roots *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(answer)
	t.Cleanup(s.Close)
	roots = x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.URL, roots
}

// replier answers signed questions: reply makes the body from the question's id.
func replier(t testing.TB, clk clock.Clock, reply func(w http.ResponseWriter, id string, question map[string]any) string) *Webhook {
	t.Helper()
	url, roots := outside(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" ||
			!sms.Verify(shared, r.Header.Values(sms.SignatureHeader), body, clk.Now()) {
			t.Errorf("%s %v is not a signed question", r.Method, r.Header)
		}
		var question map[string]any
		if err := json.Unmarshal(body, &question); err != nil {
			t.Error(err)
		}
		if at, err := time.Parse(time.RFC3339, question["asked_at"].(string)); err != nil || !at.Equal(clk.Now().UTC()) {
			t.Errorf("asked at %v, %v", question["asked_at"], err)
		}
		answer := reply(w, question["id"].(string), question)
		if w.Header().Get(sms.SignatureHeader) == "" {
			w.Header().Set(sms.SignatureHeader, sms.Sign(shared, clk.Now(), []byte(answer)))
		}
		_, _ = io.WriteString(w, answer)
	})
	w, err := NewWebhook(WebhookOptions{URL: url, Secret: shared, Roots: roots, Clock: clk})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestSIMWebhook(t *testing.T) {
	clk := clock.NewManual(time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC))
	hour := clk.Now().Add(-time.Hour).Format(time.RFC3339)
	for _, row := range []struct {
		name   string
		answer string // with ID for the question's id
		spoil  func(h http.Header)
		want   time.Time
		fails  bool
	}{
		{name: "changed", answer: `{"id":"ID","changed_at":"` + hour + `"}`, want: clk.Now().Add(-time.Hour)},
		{name: "not changed", answer: `{"id":"ID","changed_at":null}`},
		{name: "nothing said", answer: `{"id":"ID"}`, fails: true},
		{name: "a time that was not set", answer: `{"id":"ID","changed_at":"0001-01-01T00:00:00Z"}`, fails: true},
		{name: "no date", answer: `{"id":"ID","changed_at":"yesterday"}`, fails: true},
		{name: "to come", answer: `{"id":"ID","changed_at":"2026-05-04T13:00:00Z"}`, fails: true},
		{name: "another question", answer: `{"id":"another","changed_at":null}`, fails: true},
		{name: "not JSON", answer: `changed`, fails: true},
		{name: "unsigned", answer: `{"id":"ID","changed_at":null}`, fails: true, spoil: func(h http.Header) { h.Set(sms.SignatureHeader, "none") }},
		{name: "signed for another body", answer: `{"id":"ID","changed_at":null}`, fails: true, spoil: func(h http.Header) {
			h.Set(sms.SignatureHeader, sms.Sign(shared, clk.Now(), []byte("{}")))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := replier(t, clk, func(w http.ResponseWriter, id string, question map[string]any) string {
				if question["number"] != number {
					t.Errorf("asked about %v", question)
				}
				if row.spoil != nil {
					row.spoil(w.Header())
				}
				return strings.Replace(row.answer, "ID", id, 1)
			})
			at, err := SIMWebhook{w}.ChangedAt(t.Context(), number)
			if (err != nil) != row.fails || !at.Equal(row.want) {
				t.Errorf("%v, %v; want %v, failure %v", at, err, row.want, row.fails)
			}
			if err != nil && strings.Contains(err.Error(), "7700900123") {
				t.Errorf("the error tells the number: %v", err)
			}
		})
	}
	for _, status := range []int{204, 302, 401, 404, 500} {
		w := replier(t, clk, func(w http.ResponseWriter, id string, _ map[string]any) string {
			w.WriteHeader(status)
			return `{"id":"` + id + `","changed_at":null}`
		})
		if _, err := (SIMWebhook{w}).ChangedAt(t.Context(), number); err == nil {
			t.Errorf("status %d is taken for an answer", status)
		}
	}
}

func TestProofWebhook(t *testing.T) {
	clk := clock.NewManual(time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC))
	waiting := []Waiting{{"cus_1", "dev_1", clk.Now().Add(-time.Hour)}, {"cus_2", "dev_2", clk.Now().Add(-time.Minute)}}
	for _, row := range []struct {
		name, answer string
		want         int
		fails        bool
	}{
		{"one", `{"id":"ID","proven":[{"customer":"cus_2","device":"dev_2","at":"2026-05-04T11:59:30Z"}]}`, 1, false},
		{"none", `{"id":"ID","proven":[]}`, 0, false},
		{"nothing said", `{"id":"ID"}`, 0, true},
		{"null", `{"id":"ID","proven":null}`, 0, true},
		{"another's device", `{"id":"ID","proven":[{"customer":"cus_1","device":"dev_2","at":"2026-05-04T11:59:30Z"}]}`, 0, true},
		{"a device that does not wait", `{"id":"ID","proven":[{"customer":"cus_1","device":"dev_3","at":"2026-05-04T11:59:30Z"}]}`, 0, true},
		{"to come", `{"id":"ID","proven":[{"customer":"cus_1","device":"dev_1","at":"2026-05-04T12:59:30Z"}]}`, 0, true},
		{"no time", `{"id":"ID","proven":[{"customer":"cus_1","device":"dev_1"}]}`, 0, true},
		{"another question", `{"id":"other","proven":[]}`, 0, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := replier(t, clk, func(_ http.ResponseWriter, id string, question map[string]any) string {
				if asked := fmt.Sprint(question["waiting"]); asked != "[map[customer:cus_1 device:dev_1 since:2026-05-04T11:00:00Z] map[customer:cus_2 device:dev_2 since:2026-05-04T11:59:00Z]]" {
					t.Errorf("asked about %s", asked)
				}
				return strings.Replace(row.answer, "ID", id, 1)
			})
			proofs, err := ProofWebhook{w}.Proven(t.Context(), waiting)
			if (err != nil) != row.fails || len(proofs) != row.want {
				t.Errorf("%v, %v", proofs, err)
			}
		})
	}
}

// network is a CAMARA SIM Swap API with its token endpoint, which checks requests as they are documented.
type network struct {
	t      testing.TB
	tokens int
	revoke bool // takes no token of before
	status int
	answer string
}

func (n *network) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/oauth2/token": // RFC 6749 section 4.4.2
		id, password, ok := r.BasicAuth()
		if !ok || id != "strong%3Aroom" || password != "hush%26" || string(body) != "grant_type=client_credentials&scope=sim-swap%3Acheck" ||
			r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
			n.t.Errorf("token request %v %q", r.Header, body)
		}
		n.tokens++
		fmt.Fprintf(w, `{"access_token":"token%d","token_type":"Bearer","expires_in":3600}`, n.tokens)
	case "/sim-swap/v2/check":
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("x-correlator") == "" ||
			string(body) != `{"maxAge":168,"phoneNumber":"`+number+`"}` {
			n.t.Errorf("%s %v %s", r.Method, r.Header, body)
		}
		if r.Header.Get("Authorization") != fmt.Sprint("Bearer token", n.tokens) || n.revoke {
			n.revoke = false
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"status":401,"code":"UNAUTHENTICATED","message":"no"}`)
			return
		}
		w.WriteHeader(n.status)
		_, _ = io.WriteString(w, n.answer)
	default:
		n.t.Errorf("asked for %s", r.URL.Path)
	}
}

func TestCAMARASIMSwap(t *testing.T) {
	clk := clock.NewManual(time.Now().Truncate(time.Second))
	n := &network{t: t}
	url, roots := outside(t, n.ServeHTTP)
	options := CAMARAOptions{
		URL: url + "/sim-swap/v2/", TokenURL: url + "/oauth2/token", Client: "strong:room", Secret: secret.FromString("hush&"),
		MaxAge: 7 * 24 * time.Hour, Roots: roots, Clock: clk,
	}
	c, err := NewCAMARA(options)
	if err != nil {
		t.Fatal(err)
	}
	options.Unknown = true
	lax, err := NewCAMARA(options)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := `{"status":422,"code":"SERVICE_NOT_APPLICABLE","message":"not ours"}`
	for _, row := range []struct {
		name      string
		of        *CAMARA
		status    int
		answer    string
		swapped   bool
		complaint string
	}{
		{"swapped", c, 200, `{"swapped":true}`, true, ""},
		{"not swapped", c, 200, `{"swapped":false}`, false, ""},
		{"nothing said", c, 200, `{}`, false, "does not say"},
		{"not JSON", c, 200, `swapped`, false, "does not say"},
		{"longer than they look back", c, 400, `{"status":400,"code":"OUT_OF_RANGE","message":"30 days"}`, false, "400 OUT_OF_RANGE"},
		{"forbidden", c, 403, `{"status":403,"code":"PERMISSION_DENIED","message":"no ` + number + `"}`, false, "403 PERMISSION_DENIED"},
		{"another network's, in doubt", c, 422, elsewhere, false, "422 SERVICE_NOT_APPLICABLE"},
		{"another network's, allowed", lax, 422, elsewhere, false, ""},
		{"unknown, allowed", lax, 404, `{"status":404,"code":"IDENTIFIER_NOT_FOUND","message":""}`, false, ""},
		{"no such API, though unknown is allowed", lax, 404, `{"status":404,"code":"NOT_FOUND","message":""}`, false, "404 NOT_FOUND"},
		{"too many", c, 429, `{"status":429,"code":"TOO_MANY_REQUESTS","message":""}`, false, "429"},
		{"broken", c, 500, `<html>`, false, "500"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n.status, n.answer = row.status, row.answer
			at, err := row.of.ChangedAt(t.Context(), number)
			if at.Equal(clk.Now()) != row.swapped || !row.swapped && !at.IsZero() {
				t.Errorf("changed at %v", at)
			}
			if (err == nil) != (row.complaint == "") || err != nil && !strings.Contains(err.Error(), row.complaint) {
				t.Errorf("%v, want %q", err, row.complaint)
			}
			if err != nil && strings.Contains(err.Error(), "7700900123") {
				t.Errorf("the error tells the number: %v", err)
			}
		})
	}
	n.status, n.answer, n.revoke = 200, `{"swapped":false}`, true
	before := n.tokens
	if _, err := c.ChangedAt(t.Context(), number); err != nil || n.tokens != before+1 {
		t.Errorf("after the token was revoked: %v, with %d new ones", err, n.tokens-before)
	}
	if _, err := c.ChangedAt(t.Context(), number); err != nil || n.tokens != before+1 {
		t.Errorf("a token is not used again: %v", err)
	}
}

// Whatever goes wrong at the token endpoint is an error, which tells no secret.
func TestCAMARATokens(t *testing.T) {
	for _, answer := range []string{`{"error":"invalid_client","error_description":"hush& is wrong"}`, `{}`, `hush&`} {
		status := http.StatusOK
		if strings.Contains(answer, "error") {
			status = http.StatusUnauthorized
		}
		url, roots := outside(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, answer)
		})
		c, err := NewCAMARA(CAMARAOptions{URL: url, TokenURL: url, Client: "c", Secret: secret.FromString("hush&"), MaxAge: time.Hour, Roots: roots})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ChangedAt(t.Context(), number); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := CAMARAOptions{URL: "https://a.example/v2", TokenURL: "https://a.example/t", Client: "c", Secret: shared, MaxAge: time.Hour}
	if _, err := NewCAMARA(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*CAMARAOptions){
		"http":       func(o *CAMARAOptions) { o.URL = "http://a.example" },
		"token":      func(o *CAMARAOptions) { o.TokenURL = "" },
		"client":     func(o *CAMARAOptions) { o.Client = "" },
		"secret":     func(o *CAMARAOptions) { o.Secret = secret.Value{} },
		"no age":     func(o *CAMARAOptions) { o.MaxAge = 0 },
		"great age":  func(o *CAMARAOptions) { o.MaxAge = 2401 * time.Hour },
		"half hours": func(o *CAMARAOptions) { o.MaxAge = 90 * time.Minute },
	} {
		o := good
		spoil(&o)
		if _, err := NewCAMARA(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for _, o := range []WebhookOptions{{URL: "http://a.example", Secret: shared}, {URL: "https://u:p@a.example", Secret: shared}, {URL: "https://a.example", Secret: secret.FromString("short")}} {
		if _, err := NewWebhook(o); err == nil {
			t.Errorf("%s is accepted", o.URL)
		}
	}
}

// A question ends with its context.
func TestAskingEndsWithItsContext(t *testing.T) {
	url, roots := outside(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	w, err := NewWebhook(WebhookOptions{URL: url, Secret: shared, Roots: roots, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (SIMWebhook{w}).ChangedAt(ctx, number); err == nil {
		t.Error("nobody answered, and that is an answer")
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add(`{"id":"ID","changed_at":null}`)
	f.Add(`{"id":"ID","proven":[{"customer":"cus_1","device":"dev_1","at":"2026-05-04T11:59:30Z"}]}`)
	clk := clock.NewManual(time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC))
	answer := ""
	w := replier(f, clk, func(_ http.ResponseWriter, id string, _ map[string]any) string {
		return strings.ReplaceAll(answer, "ID", id)
	})
	f.Fuzz(func(t *testing.T, text string) {
		answer = text
		if at, err := (SIMWebhook{w}).ChangedAt(t.Context(), number); err == nil && at.After(clk.Now().Add(ahead)) {
			t.Errorf("a SIM will be changed at %v", at)
		}
		proofs, err := ProofWebhook{w}.Proven(t.Context(), []Waiting{{"cus_1", "dev_1", clk.Now()}})
		for _, p := range proofs {
			if err != nil || p.Customer != "cus_1" || p.Device != "dev_1" {
				t.Errorf("%v is proven, and was not asked about; %v", p, err)
			}
		}
	})
}
