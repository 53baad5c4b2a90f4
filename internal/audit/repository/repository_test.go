package repository_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"strongroom/internal/audit/repository"
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
