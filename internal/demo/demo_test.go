package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"strongroom/client"
	"strongroom/internal/app"
	"strongroom/internal/config"
)

// server starts a real server in a fresh folder, and returns the options that lead to it.
func server(t *testing.T) Options {
	t.Helper()
	c := config.ForDev(t.TempDir())
	c.Login.AccessLifetime = 2 * time.Second
	c.Login.BcryptCost = 4 // the demo does not measure hashing
	for _, address := range []*string{&c.Listeners.App.Address, &c.Listeners.Service.Address, &c.Listeners.Admin.Address, &c.Listeners.Ops.Address} {
		*address = "127.0.0.1:0"
	}
	if err := app.Init(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(filepath.Join(c.Data, config.FileName), nil)
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	s, err := app.Serve(t.Context(), c, app.Options{Log: quiet, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(t.TempDir(), "ready.json")
	b, err := json.Marshal(s.URLs())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{
		ReadyFile: file,
		VerifyAudit: func(ctx context.Context) (int64, string, error) {
			o, err := app.Operate(ctx, c, quiet)
			if err != nil {
				return 0, "", err
			}
			defer o.Close()
			report, err := o.Verify(ctx, nil)
			if err == nil && len(report.Findings) > 0 {
				err = fmt.Errorf("%d findings", len(report.Findings))
			}
			return report.Events, report.Checkpoint, err
		},
	}
}

func TestJourney(t *testing.T) {
	o := server(t)
	var out bytes.Buffer
	o.Out = &out
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	text := out.String()
	t.Log("\n" + text)
	for _, s := range steps {
		if !strings.Contains(text, s.title) {
			t.Errorf("step %q is not told about", s.title)
		}
	}
	if strings.Contains(text, "✗") || strings.Contains(text, "\x1b") {
		t.Error("a failure or a colour in the text")
	}

	// Again on the same server, for a machine to read.
	out.Reset()
	o.JSON = true
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(steps)+1 {
		t.Fatalf("%d lines:\n%s", len(lines), out.String())
	}
	for i, line := range lines[:len(steps)] {
		var r stepReport
		if err := json.Unmarshal([]byte(line), &r); err != nil || !r.OK || r.Step != i+1 || r.Name != steps[i].name || len(r.Checks) == 0 {
			t.Errorf("%s: %v", line, err)
		}
	}
	var end endReport
	if err := json.Unmarshal([]byte(lines[len(steps)]), &end); err != nil || !end.OK || end.Steps != len(steps) {
		t.Errorf("%v %v", end, err)
	}
}

func TestLoop(t *testing.T) {
	o := server(t)
	var out bytes.Buffer
	o.Out, o.Loop, o.Runs, o.Parallel, o.Every = &out, true, 5, 2, 500*time.Millisecond
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	text := out.String()
	if !strings.Contains(text, "runs 5") || !strings.Contains(text, "failed 0") || !strings.Contains(text, "the audit trail holds") {
		t.Error(text)
	}
}

// When there are no new numbers left, those who were here before come back.
func TestLoopWithoutNewNumbers(t *testing.T) {
	o := server(t)
	var out bytes.Buffer
	o.Out, o.Loop, o.Runs, o.Every, o.JSON = &out, true, 4, time.Hour, true
	w, err := open(o)
	if err != nil {
		t.Fatal(err)
	}
	w.fresh = w.fresh[:2]
	if err := loop(t.Context(), w, o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	var s summary
	if err := json.Unmarshal(bytes.TrimSpace(out.Bytes()), &s); err != nil || s.OK != 4 || s.Failed != 0 || s.P99 < s.P50 || s.Rate <= 0 {
		t.Errorf("%s %v", out.String(), err)
	}

	// A demo that begins on that server finds the taken numbers out, and says so at the end.
	for range 2 {
		again, err := open(o)
		if err != nil {
			t.Fatal(err)
		}
		again.fresh = w.taken(t)
		if err := loop(t.Context(), again, o); !errors.Is(err, errNoNumbers) {
			t.Errorf("error is %v", err)
		}
	}
}

// taken returns the numbers that have had messages.
func (w *world) taken(t *testing.T) (numbers []string) {
	t.Helper()
	for i := range 1000 {
		number := fmt.Sprintf("+447700900%03d", i)
		at, err := w.newest(t.Context(), number)
		if err != nil {
			t.Fatal(err)
		}
		if !at.IsZero() {
			numbers = append(numbers, number)
		}
	}
	if len(numbers) != 2 {
		t.Fatalf("taken are %v", numbers)
	}
	return numbers
}

func TestLoopEndsByHandAndByTime(t *testing.T) {
	o := server(t)
	o.Loop, o.Parallel = true, 2
	ctx, cancel := context.WithCancel(t.Context())
	o.Out = writer(func(b []byte) (int, error) { cancel(); return len(b), nil })
	o.Every = time.Millisecond
	if err := Run(ctx, o); err != nil {
		t.Errorf("stopped by hand: %v", err)
	}
	o.Out, o.For, o.VerifyAudit = io.Discard, time.Millisecond, nil
	if err := Run(t.Context(), o); err != nil {
		t.Errorf("stopped by time: %v", err)
	}
}

type writer func(b []byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// A demo that could not fail would prove nothing. Each row is a server that does one thing wrong; the
// demo must stop at the step that looks for it.
func TestFaultsAreFound(t *testing.T) {
	o := server(t)
	o.VerifyAudit = nil
	r, err := readReady(o.ReadyFile)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer whole.close()
	pair, err := tls.LoadX509KeyPair(serverFiles(filepath.Dir(r.CA)))
	if err != nil {
		t.Fatal(err)
	}
	wrong := func(status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true }
	}
	seen := map[string]bool{} // the demo sends one request after the other
	answers := func(suffix, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, suffix) {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, body)
			return true
		}
	}
	soon := time.Now().Add(time.Minute).UTC().Format(time.RFC3339)
	rows := []struct {
		name, method, path string
		do                 func(w http.ResponseWriter, r *http.Request) bool
		steps              string // the last of them looks for it
	}{
		{"shows records whole", "GET", "/v1/records/bank_account/main", func(_ http.ResponseWriter, r *http.Request) bool {
			r.URL.RawQuery = "reveal=all&purpose=show-to-customer"
			return false
		}, "register login store read"},
		{"forgets If-Match", "PUT", "/v1/records/profile/main", func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("If-Match") == `"1"` {
				r.Header.Del("If-Match")
			}
			return false
		}, "register login store stale"},
		{"approves devices by itself", "POST", "/v1/devices/", wrong(204), "register login second-device"},
		{"ends no session", "DELETE", "/v1/sessions/", wrong(204), "register login second-device sessions"},
		{"loses nothing", "POST", "/v1/devices/", func(w http.ResponseWriter, r *http.Request) bool {
			lost := strings.HasSuffix(r.URL.Path, "/lost")
			if lost {
				w.WriteHeader(http.StatusNoContent)
			}
			return lost
		}, "register login second-device lost-device"},
		{"keeps second steps", "DELETE", "/v1/factors/", wrong(204), "register login authenticator"},
		{"changes numbers at once", "POST", "/v1/number/", answers("/complete", `{"changes_at":"`+soon+`"}`), "register login number"},
		{"changes forgotten codes at once", "POST", "/v1/private-code/resets/", answers("/complete", `{"status":"changed"}`), "register login forgotten-code"},
		{"asks for no current code", "POST", "/v1/private-code", wrong(204), "register login change-code"},
		{"takes a payment's code for any amount", "POST", "/v1/payments/", answers("/authorise", `{"payment":"pay_1","status":"authorised"}`), "register login payment"},
		{"logs nobody out", "POST", "/v1/logout", wrong(204), "register login logout"},
		{"takes a proof twice", "GET", "/v1/session", func(w http.ResponseWriter, r *http.Request) bool {
			proof := r.Header.Get("DPoP")
			again := seen[proof]
			seen[proof] = true
			return again
		}, "register login replay"},
		{"takes every private code for good", "POST", "/v1/registrations/", answers("", `{"customer": "cus_1", "device": "dev_1"}`), "register"},
		{"is down for logins", "POST", "/v1/logins", wrong(500), "register login"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			target, err := url.Parse(r.App)
			if err != nil {
				t.Fatal(err)
			}
			proxy := &httputil.ReverseProxy{
				Rewrite: func(p *httputil.ProxyRequest) {
					p.SetURL(target)
					p.Out.Host = p.In.Host
				},
				Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
				ErrorLog:  log.New(io.Discard, "", 0),
			}
			front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				if q.Method == row.method && strings.HasPrefix(q.URL.Path, row.path) && row.do(w, q) {
					return
				}
				proxy.ServeHTTP(w, q)
			}))
			front.Config.ErrorLog = log.New(io.Discard, "", 0)
			front.EnableHTTP2 = true
			front.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
			front.StartTLS()
			defer front.Close()

			var out bytes.Buffer
			world, err := open(Options{URL: front.URL, CA: r.CA, Pins: r.Pins, Loop: true}) // without waiting for tokens to expire
			if err != nil {
				t.Fatal(err)
			}
			defer world.plain.CloseIdleConnections()
			world.service = whole.service // which the front does not stand before
			j, err := world.newcomer()
			if err != nil {
				t.Fatal(err)
			}
			p := newPrinter(&out, true)
			names := strings.Fields(row.steps)
			for n, name := range names {
				i := slices.IndexFunc(steps, func(s step) bool { return s.name == name })
				if err := j.step(t.Context(), p, n+1, steps[i]); (err != nil) != (n == len(names)-1) {
					t.Fatalf("the demo goes wrong at %s: %v\n%s", name, err, out.String())
				}
			}
			var last stepReport
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.OK || last.Observed == "" {
				t.Errorf("the demo stopped at %s\n%v", lines[len(lines)-1], err)
			}
		})
	}
}

// serverFiles returns certificate and key of the development authority's server.
func serverFiles(dir string) (cert, key string) {
	return filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
}

func TestWithoutServer(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	rows := map[string]struct {
		o    Options
		want string
	}{
		"nothing said":  {Options{}, "say which server"},
		"no file":       {Options{ReadyFile: filepath.Join(dir, "none")}, "start one with"},
		"no ready file": {Options{ReadyFile: write("a", "{}")}, "names no app listener"},
		"no authority":  {Options{ReadyFile: write("b", `{"app": "https://127.0.0.1:1"}`)}, "strongroom dev"},
		"no CA file":    {Options{URL: "https://127.0.0.1:1", CA: filepath.Join(dir, "none")}, "authority"},
		"nobody there":  {Options{URL: "https://127.0.0.1:1", CA: write("c", ""), Pins: []string{client.Pin(&x509.Certificate{})}}, "connection"},
	}
	for name, row := range rows {
		if err := Run(t.Context(), row.o); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error is %v; want %q", name, err, row.want)
		}
	}
}

func TestReservoir(t *testing.T) {
	var r reservoir
	for i := range 1_000_000 {
		r.add(time.Duration(i))
	}
	if n := len(r.kept); n < 10_000 || n >= 100_000 {
		t.Fatalf("%d are kept", n)
	}
	if p := percentile(r.kept, 0.5); p < 480_000 || p > 520_000 {
		t.Errorf("the median is %d", p)
	}
	if percentile(nil, 0.99) != 0 {
		t.Error("nothing has a percentile")
	}
}

func TestMessageCode(t *testing.T) {
	for text, want := range map[string]string{
		"Your Strongroom code is 123456. It is good for 5 minutes. Never tell it to anyone.": "123456",
		"Code 654321.\n\n@example.com #654321":                                               "654321",
		"You already have an account: log in instead.":                                       "",
		"Call +447700900123": "",
	} {
		if got := (message{Text: text}).code(); got != want {
			t.Errorf("%q: code %q", text, got)
		}
	}
}
