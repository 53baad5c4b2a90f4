package repository_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"strongroom/internal/audit/repository"
	"strongroom/internal/secret"
)

func TestFolder(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "a", "archive")
	r, err := repository.Open(repository.Options{URL: "file://" + folder})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx := t.Context()
	for _, content := range []string{"one", "another"} {
		if err := r.Write(ctx, "audit/ins_1/0-1", []byte(content)); err != nil {
			t.Fatal(err)
		}
		if b, err := r.Read(ctx, "audit/ins_1/0-1", 100); err != nil || string(b) != content {
			t.Errorf("%q %v", b, err)
		}
	}
	if b, err := r.Read(ctx, "audit/ins_1/0-1", 3); err != nil || !bytes.Equal(b, []byte("ano")) {
		t.Errorf("%q %v", b, err)
	}
	info, err := os.Stat(filepath.Join(folder, "audit", "ins_1", "0-1"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if names, err := r.List(ctx, "audit/ins_1/"); err != nil || len(names) != 1 || names[0] != "audit/ins_1/0-1" {
		t.Errorf("%v %v", names, err)
	}
	for range 2 {
		if err := r.Delete(ctx, "audit/ins_1/0-1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Read(ctx, "audit/ins_1/0-1", 3); err == nil {
		t.Error("a deleted object was read")
	}
}

func TestAddresses(t *testing.T) {
	for text, good := range map[string]bool{
		"file:///var/lib/archive": true, "s3://bucket?region=eu-central-1": true, "s3://bucket?region=r&endpoint=https://s3.internal&prefix=a/": true,
		"file://archive": false, "file:///": false, "file:///a?create_dir=1": false, "s3://bucket": false, "s3://bucket/x?region=r": false,
		"s3://bucket?region=r&endpoint=http://s3.internal": false, "s3://key:secret@bucket?region=r": false, "gs://bucket": false, "": false,
		"s3://bucket?region=r&anonymous=true": false, "mem://": false,
	} {
		if err := repository.Check(text); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The same over the S3 protocol, against another's implementation of it, with credentials.
func TestBucket(t *testing.T) {
	var calls int
	store := gofakes3.New(s3mem.New()).Server()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		if a := r.Header.Get("Authorization"); !strings.HasPrefix(a, "AWS4-HMAC-SHA256 Credential=the-access-key/") {
			t.Errorf("%s %s is signed by %q", r.Method, r.URL, a)
		}
		store.ServeHTTP(w, r)
	}))
	defer server.Close()
	made, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL+"/bucket", nil)
	if err != nil {
		t.Fatal(err)
	}
	made.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=the-access-key/")
	answer, err := http.DefaultClient.Do(made)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", answer, err)
	}
	_ = answer.Body.Close()
	r, err := repository.Open(repository.Options{
		URL:       "s3://bucket?region=eu-central-1&prefix=trail/&endpoint=" + url.QueryEscape(server.URL),
		AccessKey: secret.FromString("the-access-key"), SecretKey: secret.FromString("the secret key"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx := t.Context()
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // in parts
	if err := r.Write(ctx, "audit/ins_1/0-1", content); err != nil {
		t.Fatal(err)
	}
	if b, err := r.Read(ctx, "audit/ins_1/0-1", int64(len(content))+1); err != nil || !bytes.Equal(b, content) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if names, err := r.List(ctx, "audit/"); err != nil || len(names) != 1 || names[0] != "audit/ins_1/0-1" {
		t.Errorf("%v %v", names, err)
	}
	for range 2 {
		if err := r.Delete(ctx, "audit/ins_1/0-1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Read(ctx, "audit/ins_1/0-1", 3); err == nil || calls == 0 {
		t.Errorf("a deleted object was read: %v, %d calls", err, calls)
	}
}
