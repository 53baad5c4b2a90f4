package sink_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	syslog "github.com/leodido/go-syslog/v4"
	"github.com/leodido/go-syslog/v4/octetcounting"
	"github.com/leodido/go-syslog/v4/rfc5424"
	"pgregory.net/rapid"

	"strongroom/internal/audit"
	"strongroom/internal/audit/ocsf"
	"strongroom/internal/audit/sink"
	"strongroom/internal/clock"
	"strongroom/internal/secret"
)

// events returns n of them, from index first on.
func events(first, n int) []audit.Entry {
	var list []audit.Entry
	for i := range n {
		e := audit.Entry{
			ID: "evt_" + strings.Repeat("0", 3), Index: int64(first + i), Time: time.UnixMicro(1_700_000_000_000_000 + int64(i)).UTC(),
			Action: "vault.record.read", Resource: `record profile/"m]a\in`, Customer: "cus_1", Outcome: audit.Granted, Request: "req_1",
		}
		e.Actor.Kind, e.Actor.ID = "service", "spiffe://bank.example/payouts"
		list = append(list, e)
	}
	return list
}

func indexes(t *testing.T, text []byte) []int64 {
	t.Helper()
	var list []int64
	for line := range bytes.Lines(text) {
		var e audit.Entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		list = append(list, e.Index)
	}
	return list
}

func send(t *testing.T, s audit.Sink, list []audit.Entry) {
	t.Helper()
	if err := s.Send(t.Context(), list); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.ndjson")
	clk := clock.NewManual(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	o := sink.FileOptions{Path: path, Encode: sink.JSON, Clock: clk}
	f, err := sink.NewFile(o)
	if err != nil {
		t.Fatal(err)
	}
	send(t, f, events(0, 2))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Error(info.Mode(), err)
	}
	// A crash in the middle of the third line, which comes again.
	half, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := half.WriteString(`{"id":"evt_` + strings.Repeat("x", 100_000)); err != nil {
		t.Fatal(err)
	}
	half.Close()
	if f, err = sink.NewFile(o); err != nil {
		t.Fatal(err)
	}
	send(t, f, events(2, 1))
	if got := indexes(t, read(t, path)); !slices.Equal(got, []int64{0, 1, 2}) {
		t.Errorf("after a crash: %v", got)
	}
	// Somebody else's rotation.
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	send(t, f, events(3, 1))
	if got := indexes(t, read(t, path)); !slices.Equal(got, []int64{3}) {
		t.Errorf("after it was moved away: %v", got)
	}
	// A link in its place is not followed.
	if err := errors.Join(os.Remove(path), os.Symlink(path+".away", path)); err != nil {
		t.Fatal(err)
	}
	if err := f.Send(t.Context(), events(4, 1)); err == nil {
		t.Error("a link was followed")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestFileRotates(t *testing.T) {
	for name, change := range map[string]func(*sink.FileOptions){
		"size": func(o *sink.FileOptions) { o.MaxSize = 600 },
		"age":  func(o *sink.FileOptions) { o.MaxAge = time.Minute },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.ndjson")
			clk := clock.NewManual(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
			o := sink.FileOptions{Path: path, Encode: sink.JSON, Clock: clk}
			change(&o)
			f, err := sink.NewFile(o)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for i := range 3 {
				send(t, f, events(2*i, 2))
				clk.Advance(2 * time.Minute)
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(entries) != 3 {
				t.Fatal(entries, err)
			}
			var all []int64
			for _, e := range entries[1:] { // in order of their times; the newest has none
				rotated := filepath.Join(filepath.Dir(path), e.Name())
				if !sink.Rotated(path, rotated) {
					t.Error(rotated)
				}
				all = append(all, indexes(t, read(t, rotated))...)
			}
			all = append(all, indexes(t, read(t, path))...)
			if !slices.Equal(all, []int64{0, 1, 2, 3, 4, 5}) {
				t.Errorf("%v", all)
			}
		})
	}
}

// trust returns a TLS configuration that believes the server, and no other.
func trust(server *httptest.Server) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, ServerName: "example.com"}
}

func TestWebhook(t *testing.T) {
	key := secret.FromString("a shared secret of a webhook")
	var status int
	var got []int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		// The recipe of docs/audit.md, written down anew.
		stamp, signature, _ := strings.Cut(r.Header.Get("Strongroom-Signature"), ",v1=")
		h := hmac.New(sha256.New, []byte("a shared secret of a webhook"))
		h.Write([]byte(strings.TrimPrefix(stamp, "t=") + "." + string(body)))
		if hex.EncodeToString(h.Sum(nil)) != signature {
			t.Errorf("the signature %q does not hold", r.Header.Get("Strongroom-Signature"))
		}
		if err := sink.Verify(key, r.Header.Get(sink.SignatureHeader), body, time.Now()); err != nil {
			t.Error(err)
		}
		if r.Header.Get("Content-Type") != "application/x-ndjson" {
			t.Error(r.Header)
		}
		if status == http.StatusFound {
			w.Header().Set("Location", "https://elsewhere.example/")
		}
		w.WriteHeader(status)
		if status < 300 {
			got = append(got, indexes(t, body)...)
		}
	}))
	defer server.Close()
	w, err := sink.NewWebhook(sink.WebhookOptions{URL: server.URL, Secret: key, TLS: trust(server), Encode: sink.JSON})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	status = http.StatusNoContent
	send(t, w, events(0, 3))
	for _, status = range []int{http.StatusFound, http.StatusBadRequest, http.StatusInternalServerError} {
		if err := w.Send(t.Context(), events(3, 1)); err == nil {
			t.Errorf("status %d was taken for yes", status)
		}
	}
	status = http.StatusOK
	send(t, w, events(3, 1))
	if !slices.Equal(got, []int64{0, 1, 2, 3}) {
		t.Errorf("%v", got)
	}
	stranger, err := sink.NewWebhook(sink.WebhookOptions{URL: server.URL, Secret: key, Encode: sink.JSON})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if err := stranger.Send(t.Context(), events(4, 1)); err == nil || strings.Contains(err.Error(), server.URL) {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
	for _, bad := range []sink.WebhookOptions{{URL: "http://h/", Secret: key}, {URL: "https://u:p@h/", Secret: key}, {URL: "https://h/", Secret: secret.FromString("short")}} {
		if _, err := sink.NewWebhook(bad); err == nil {
			t.Errorf("%q was accepted", bad.URL)
		}
	}
}

func TestVerify(t *testing.T) {
	key, body := secret.FromString("a shared secret of a webhook"), []byte("{}\n")
	at := time.Unix(1_700_000_000, 0)
	h := hmac.New(sha256.New, []byte("a shared secret of a webhook"))
	h.Write([]byte("1700000000.{}\n"))
	good := "t=1700000000,v1=" + hex.EncodeToString(h.Sum(nil))
	rows := []struct {
		name, header string
		body         string
		now          time.Time
		ok           bool
	}{
		{"good", good, "{}\n", at, true},
		{"late", good, "{}\n", at.Add(5 * time.Minute), true},
		{"too late", good, "{}\n", at.Add(5*time.Minute + time.Second), false},
		{"too early", good, "{}\n", at.Add(-5*time.Minute - time.Second), false},
		{"other body", good, "{}", at, false},
		{"other time", strings.Replace(good, "1700000000", "1700000001", 1), "{}\n", at, false},
		{"cut", good[:len(good)-2], "{}\n", at, false},
		{"no signature", "t=1700000000,v1=", "{}\n", at, false},
		{"empty", "", "{}\n", at, false},
		{"odd time", strings.Replace(good, "t=", "t=+", 1), "{}\n", at, false},
	}
	for _, row := range rows {
		if err := sink.Verify(key, row.header, []byte(row.body), row.now); (err == nil) != row.ok || err != nil && !errors.Is(err, sink.ErrSignature) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	if err := sink.Verify(secret.FromString("another secret"), good, body, at); err == nil {
		t.Error("another secret was accepted")
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("t=1700000000,v1=00", []byte("{}"))
	f.Add("t=,v1=", []byte{})
	f.Add("v1=00,t=1", []byte("x"))
	key := secret.FromString("a shared secret of a webhook")
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		if sink.Verify(key, header, body, time.Unix(1_700_000_000, 0)) == nil {
			t.Errorf("%q is no signature", header)
		}
	})
}

// collector is a syslog server as RFC 5425 wants one; an independent parser reads what it gets.
type collector struct {
	net.Listener
	messages chan *rfc5424.SyslogMessage
	conns    chan net.Conn
	errs     chan error
}

func collect(t *testing.T, config *tls.Config) *collector {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{listener, make(chan *rfc5424.SyslogMessage, 1000), make(chan net.Conn, 10), make(chan error, 1000)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			c.conns <- conn
			go octetcounting.NewParser(syslog.WithListener(func(r *syslog.Result) {
				if r.Error != nil {
					c.errs <- r.Error
					return
				}
				c.messages <- r.Message.(*rfc5424.SyslogMessage)
			})).Parse(bufio.NewReader(conn))
		}
	}()
	t.Cleanup(func() { listener.Close() })
	return c
}

func (c *collector) next(t *testing.T) *rfc5424.SyslogMessage {
	t.Helper()
	select {
	case m := <-c.messages:
		return m
	case err := <-c.errs:
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Fatal("no message came")
	}
	return nil
}

func TestSyslog(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer server.Close()
	c := collect(t, &tls.Config{Certificates: server.TLS.Certificates, MinVersion: tls.VersionTLS12})
	s, err := sink.NewSyslog(sink.SyslogOptions{Address: c.Addr().String(), TLS: trust(server), Encode: sink.OCSF(ocsf.Product{})})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list := events(0, 4)
	list[1].Outcome, list[2].Outcome, list[3].Outcome = audit.Denied, audit.Failed, audit.Unverified
	send(t, s, list)
	for i, severity := range []uint8{6, 4, 3, 2} {
		m := c.next(t)
		data := (*m.StructuredData)[sink.StructuredID]
		if *m.Facility != 13 || *m.Severity != severity || *m.MsgID != "vault.record.read" || *m.Appname != "strongroom" ||
			!m.Timestamp.Equal(list[i].Time) || data["resource"] != `record profile/"m]a\in` || data["outcome"] != string(list[i].Outcome) {
			t.Errorf("%+v %v", m, data)
		}
		if err := ocsf.Validate([]byte(*m.Message)); err != nil {
			t.Errorf("%v: %s", err, *m.Message)
		}
	}
	// The collector restarts: the next Send finds the connection closed, or fails and is sent again.
	(<-c.conns).Close()
	deadline := time.Now().Add(20 * time.Second)
	for s.Send(t.Context(), events(4, 1)) != nil {
		if time.Now().After(deadline) {
			t.Fatal("it does not connect again")
		}
	}
	stranger, err := sink.NewSyslog(sink.SyslogOptions{Address: c.Addr().String(), Encode: sink.JSON})
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Send(t.Context(), events(5, 1)); err == nil {
		t.Error("a collector that nobody vouches for was sent events")
	}
}

// A collector that accepts and never reads does not hold anybody up for longer than the context.
func TestSyslogDoesNotHang(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s, err := sink.NewSyslog(sink.SyslogOptions{Address: listener.Addr().String(), Encode: sink.JSON})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Send(ctx, events(0, 1)); err == nil {
		t.Error("nobody answered, and yet")
	}
}

// Whatever an event holds, its message is one that the other parser reads back.
func TestAnySyslogMessage(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	c := collect(t, &tls.Config{Certificates: server.TLS.Certificates, MinVersion: tls.VersionTLS12})
	s, err := sink.NewSyslog(sink.SyslogOptions{Address: c.Addr().String(), TLS: trust(server), Encode: sink.JSON})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// What audit shows has no control characters.
	text := rapid.StringOf(rapid.Rune().Filter(func(r rune) bool { return r >= ' ' && (r < 0x7f || r > 0x9f) }))
	rapid.Check(t, func(rt *rapid.T) {
		e := events(0, 1)[0]
		e.Resource, e.Reason, e.Action = text.Draw(rt, "resource"), text.Draw(rt, "reason"), text.Draw(rt, "action")
		if err := s.Send(t.Context(), []audit.Entry{e}); err != nil {
			rt.Fatal(err)
		}
		m := c.next(t)
		data := (*m.StructuredData)[sink.StructuredID]
		if data["resource"] != e.Resource || data["reason"] != e.Reason || data["action"] != e.Action {
			rt.Fatalf("%+v became %q", e, data)
		}
	})
}
