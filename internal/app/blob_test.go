package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/api"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/edge"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/vault"
)

// knows takes every caller for this customer.
type knows customer.ID

func (k knows) Session(ctx context.Context, _ *http.Request) (actor.Actor, error) {
	by := actor.From(ctx)
	by.Kind, by.ID = actor.Customer, string(k)
	return by, nil
}

func (k knows) Device(ctx context.Context, r *http.Request) (actor.Actor, error) {
	return k.Session(ctx, r)
}

func (knows) Permit(context.Context, actor.Actor, []string) error { return nil }

func (knows) Nonce() string { return "nonce" }

// blobDoor is a listener that takes the blobs of one customer, who is taken to be known.
func blobDoor(t *testing.T, d *db.DB, limits edge.Limits, http2 bool) (base string, client *http.Client) {
	t.Helper()
	keys := keyringtest.Open(t, d)
	v, err := vault.New(d, keys, audit.New(d, keys, audit.Options{}), vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := customer.NewID()
	if err := d.Update(t.Context(), func(tx *db.Tx) error {
		_, err := keys.CreateCustomer(t.Context(), tx, actor.OfSystem("test"), c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	v.Register(api.New(mux, knows(c), api.Options{Title: "test", Version: "1", Log: slog.New(slog.DiscardHandler)}))
	dev, err := edge.DevCA(t.TempDir(), clock.System)
	if err != nil {
		t.Fatal(err)
	}
	certificates, err := edge.LoadCertificates(dev.Server, clock.System)
	if err != nil {
		t.Fatal(err)
	}
	server, err := edge.New(edge.Options{}, edge.Listener{
		Name: "app", Address: "127.0.0.1:0", Mode: edge.Public, Certificates: certificates, Limits: limits, Bodies: blobBodies,
		Handler: mux,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Shutdown(context.Background()) })
	ca, err := os.ReadFile(dev.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: http2}
	t.Cleanup(transport.CloseIdleConnections)
	return server.URL("app"), &http.Client{Transport: transport}
}

// pattern is n bytes that do not repeat themselves, made as they are read.
func pattern(n int64) io.Reader {
	block := make([]byte, 1<<16)
	at := int64(0)
	return io.LimitReader(readerFunc(func(b []byte) (int, error) {
		n := min(len(b), len(block))
		for i := range n {
			b[i] = byte((at + int64(i)) * 2654435761 >> 13)
		}
		at += int64(n)
		return n, nil
	}), n)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// The largest blob goes in and comes out over TLS, and one byte more does not.
func TestLargestBlob(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		base, client := blobDoor(t, dbtest.Open(t, db.SQLite), edge.Limits{}, http2)
		put := func(n int64) *http.Response {
			t.Helper()
			r, err := http.NewRequest(http.MethodPut, base+"/v1/blobs/profile/passport", pattern(n))
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = n
			r.Header.Set("Content-Type", vault.BlobType)
			answer, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			return answer
		}
		if answer := put(vault.MaxBlob + 1); answer.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("too much: %s", answer.Status)
		}
		if answer := put(vault.MaxBlob); answer.StatusCode != http.StatusCreated {
			t.Fatalf("50 MiB: %s", answer.Status)
		}
		answer, err := client.Get(base + "/v1/blobs/profile/passport?purpose=show-to-customer")
		if err != nil {
			t.Fatal(err)
		}
		got, want := sha256.New(), sha256.New()
		n, err := io.Copy(got, answer.Body)
		answer.Body.Close()
		_, _ = io.Copy(want, pattern(vault.MaxBlob))
		if err != nil || n != vault.MaxBlob || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("read: %d bytes, %v", n, err)
		}
		if answer.Header.Get("X-Content-Type-Options") != "nosniff" || answer.Header.Get("Content-Disposition") != "attachment" {
			t.Errorf("headers: %v", answer.Header)
		}
		r, _ := http.NewRequest(http.MethodPut, base+"/v1/records/profile/main", strings.NewReader(strings.Repeat(" ", 70_000)))
		r.Header.Set("Content-Type", "application/json")
		if answer, err := client.Do(r); err != nil || answer.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("a large record: %v, %v", answer, err)
		}
	}
}

// A transfer may take longer than other requests: its time moves on as it comes in.
func TestSlowBlob(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		base, client := blobDoor(t, dbtest.Open(t, db.SQLite), edge.Limits{Read: 300 * time.Millisecond, Write: 300 * time.Millisecond}, http2)
		left := 10
		r, err := http.NewRequest(http.MethodPut, base+"/v1/blobs/profile/passport", readerFunc(func(b []byte) (int, error) {
			if left == 0 {
				return 0, io.EOF
			}
			left--
			time.Sleep(100 * time.Millisecond)
			return copy(b, "a little"), nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", vault.BlobType)
		answer, err := client.Do(r)
		if err != nil {
			t.Fatalf("http2 %v: %v", http2, err)
		}
		b, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != http.StatusCreated || !bytes.Contains(b, []byte(`"size":80`)) {
			t.Errorf("http2 %v: %s %s", http2, answer.Status, b)
		}
	}
}
