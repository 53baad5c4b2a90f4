package client_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"strongroom/client"
)

// TestBlobsOfAnApp sends a document that the server does not take at the first try, and gets one back.
func TestBlobsOfAnApp(t *testing.T) {
	f := newFake()
	defer f.Close()
	c := f.loggedIn(f.options())
	defer c.Close()
	c.SetSleep(func(context.Context, time.Duration) error { return nil })
	const document = "a scan of a passport"
	var got []string
	var refuse func(w http.ResponseWriter) bool
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/v1/blobs/") {
			return false
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = append(got, r.Method+" "+string(body))
		if refuse != nil && refuse(w) {
			refuse = nil
			return true
		}
		w.Header().Set("ETag", `"abc"`)
		if r.Method == http.MethodGet {
			if r.URL.Query().Get("purpose") != "show-to-customer" {
				t.Error(r.URL)
			}
			_, _ = io.WriteString(w, document)
			return true
		}
		f.answer(w, 200, map[string]any{"collection": "profile", "key": "scan", "size": len(body), "updated_at": "2026-01-02T03:04:05Z"})
		return true
	}
	blobs := c.Blobs("profile")
	put := func() (client.Blob, error) {
		content := strings.NewReader("..." + document)
		if _, err := content.Seek(3, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		return blobs.Put(t.Context(), "scan", content, client.IfNew())
	}

	for _, row := range []struct {
		name   string
		refuse func(w http.ResponseWriter) bool
		sends  int
	}{
		{"a stale nonce", func(http.ResponseWriter) bool { return false }, 1}, // the fake looks at it before the body
		{"an expired token", func(w http.ResponseWriter) bool { f.problem(w, 401, "token-expired"); return true }, 2},
		{"too many requests", func(w http.ResponseWriter) bool {
			w.Header().Set("Retry-After", "1")
			f.problem(w, 429, "too-many-requests")
			return true
		}, 2},
	} {
		got, refuse = nil, row.refuse
		f.setNonce("nonce of " + row.name)
		blob, err := put()
		if err != nil || blob.Size != int64(len(document)) || blob.ETag != `"abc"` {
			t.Errorf("%s: %+v, %v", row.name, blob, err)
		}
		if len(got) != row.sends || got[len(got)-1] != "PUT "+document {
			t.Errorf("%s: sent %q", row.name, got)
		}
	}

	// A lost answer is not asked for again: the server may have done it.
	got, refuse = nil, func(http.ResponseWriter) bool { panic(http.ErrAbortHandler) }
	var p *client.Problem
	if _, err := put(); err == nil || errors.As(err, &p) || len(got) != 1 {
		t.Errorf("a lost answer: %v after %q", err, got)
	}
	refuse = nil

	content, err := blobs.Get(t.Context(), "scan", "show-to-customer")
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	if read, err := io.ReadAll(content); string(read) != document || err != nil || content.ETag != `"abc"` {
		t.Errorf("%q %v", read, err)
	}
}
