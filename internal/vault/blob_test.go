package vault_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/stream"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

var passport = vault.Ref{Collection: "profile", Key: "passport"}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func (h *house) putBlob(t testing.TB, by actor.Actor, ref vault.Ref, content []byte, c vault.Condition) vault.Blob {
	t.Helper()
	b, _, err := h.vault.PutBlob(t.Context(), by, by.Customer(), ref, bytes.NewReader(content), c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (h *house) getBlob(t testing.TB, by actor.Actor, ref vault.Ref) ([]byte, error) {
	t.Helper()
	r, err := h.vault.OpenBlob(t.Context(), by, by.Customer(), ref, "show-to-customer")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func (h *house) count(t testing.TB, query string) (n int) {
	t.Helper()
	if err := h.db.View(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), query).Scan(&n) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func (h *house) exec(t testing.TB, query string, args ...any) {
	t.Helper()
	err := h.db.Update(t.Context(), func(tx *db.Tx) error {
		n, err := tx.Exec(t.Context(), query, args...)
		if err == nil && n == 0 {
			err = errors.New("no row was changed")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBlobs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, collections())
		ada, eve := h.person(t), h.person(t)
		for _, n := range []int{0, 1, stream.ChunkSize, stream.ChunkSize + 1, 9*stream.ChunkSize + 5} {
			want := random(n)
			ref := vault.Ref{Collection: "profile", Key: "sized"}
			b := h.putBlob(t, ada, ref, want, vault.Condition{IfMatch: map[bool]string{false: "*"}[n == 0]})
			if b.Size != int64(n) {
				t.Errorf("%d bytes are %d", n, b.Size)
			}
			if got, err := h.getBlob(t, ada, ref); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes: %v", n, err)
			}
		}

		content := strings.Repeat("a passport. ", 20_000)
		var etag string
		for _, row := range []struct {
			name, do, header, body string
			by                     *actor.Actor
			status                 int
			want, event            string
		}{
			{name: "nothing yet", do: "GET /v1/blobs/profile/passport?purpose=show-to-customer", status: 404, want: "blob-not-found",
				event: "vault.blob.read denied blob-not-found blob profile/passport"},
			{name: "replace nothing", do: "PUT /v1/blobs/profile/passport", header: "If-Match: *", body: "x", status: 412, want: "version-mismatch",
				event: "vault.blob.update denied version-mismatch blob profile/passport"},
			{name: "made", do: "PUT /v1/blobs/profile/passport", header: "If-None-Match: *", body: content, status: 201, want: `"size":240000`,
				event: "vault.blob.create granted blob profile/passport"},
			{name: "overwritten blindly", do: "PUT /v1/blobs/profile/passport", body: "x", status: 428, want: "precondition-required",
				event: "vault.blob.update denied precondition-required blob profile/passport"},
			{name: "only new", do: "PUT /v1/blobs/profile/passport", header: "If-None-Match: *", body: "x", status: 412, want: "version-mismatch",
				event: "vault.blob.create denied version-mismatch blob profile/passport"},
			{name: "read", do: "GET /v1/blobs/profile/passport?purpose=show-to-customer", status: 200, want: content,
				event: "vault.blob.read granted purpose:show-to-customer blob profile/passport"},
			{name: "no purpose", do: "GET /v1/blobs/profile/passport", status: 422, want: "purpose-required",
				event: "vault.blob.read denied purpose-required blob profile/passport"},
			{name: "wrong purpose", do: "GET /v1/blobs/profile/passport?purpose=curiosity", status: 422, want: "purpose-not-allowed",
				event: "vault.blob.read denied purpose-not-allowed blob profile/passport"},
			{name: "somebody else's", do: "GET /v1/blobs/profile/passport?purpose=show-to-customer", by: &eve, status: 404, want: "blob-not-found",
				event: "vault.blob.read denied blob-not-found blob profile/passport"},
			{name: "bad key", do: "PUT /v1/blobs/profile/Ada%20Lovelace", body: "x", status: 422, want: "invalid-key",
				event: "vault.blob.update denied invalid-key blob profile"},
			{name: "no collection", do: "PUT /v1/blobs/secrets/x", body: "x", status: 404, want: "collection-not-found",
				event: "vault.blob.update denied collection-not-found blob"},
			{name: "old tag", do: "DELETE /v1/blobs/profile/passport", header: `If-Match: "blb_x"`, status: 412, want: "version-mismatch",
				event: "vault.blob.delete denied version-mismatch blob profile/passport"},
			{name: "replaced", do: "PUT /v1/blobs/profile/passport", header: "If-Match: ETAG", body: "new", status: 200, want: `"size":3`,
				event: "vault.blob.update granted blob profile/passport"},
			{name: "replaced again by the old tag", do: "PUT /v1/blobs/profile/passport", header: "If-Match: ETAG", body: "newer", status: 412,
				event: "vault.blob.update denied version-mismatch blob profile/passport"},
			{name: "deleted", do: "DELETE /v1/blobs/profile/passport", status: 204, event: "vault.blob.delete granted blob profile/passport"},
			{name: "gone", do: "DELETE /v1/blobs/profile/passport", status: 404, want: "blob-not-found",
				event: "vault.blob.delete denied blob-not-found blob profile/passport"},
		} {
			by := ada
			if row.by != nil {
				by = *row.by
			}
			method, path, _ := strings.Cut(row.do, " ")
			r := httptest.NewRequest(method, path, strings.NewReader(row.body))
			if name, value, ok := strings.Cut(row.header, ": "); ok {
				r.Header.Set(name, strings.ReplaceAll(value, "ETAG", etag))
			}
			before := h.events(t)
			w := httptest.NewRecorder()
			h.serve(by).ServeHTTP(w, r)
			if w.Code != row.status || !strings.Contains(w.Body.String(), row.want) {
				t.Errorf("%s: %d %.300s", row.name, w.Code, w.Body)
			}
			if row.name == "made" {
				etag = w.Header().Get("ETag")
			}
			if row.name == "read" && (w.Header().Get("Content-Length") != "240000" || w.Header().Get("Content-Type") != vault.BlobType || w.Header().Get("ETag") != etag) {
				t.Errorf("the headers of a blob: %v", w.Header())
			}
			if got := since(before, h.events(t)); !slices.Equal(got, []string{row.event}) {
				t.Errorf("%s left %v", row.name, got)
			}
		}

		// A collection's limit counts.
		for _, key := range []string{"1", "2", "3"} {
			h.putBlob(t, ada, vault.Ref{Collection: "note", Key: key}, []byte("x"), vault.Condition{})
		}
		_, _, err := h.vault.PutBlob(t.Context(), ada, ada.Customer(), vault.Ref{Collection: "note", Key: "4"}, strings.NewReader("x"), vault.Condition{})
		if !problem.Is(err, "too-many-blobs") {
			t.Errorf("over the limit: %v", err)
		}

		// Retention ends blobs too, with an event, and then nothing is left of them.
		h.clock.Advance(25 * time.Hour)
		if err := h.vault.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := h.count(t, `SELECT COUNT(*) FROM blob WHERE collection = 'note'`); n != 0 {
			t.Errorf("%d blobs are left after their retention", n)
		}
		if !slices.Contains(h.events(t), "vault.blob.expire granted retention-over blob note/2") {
			t.Error("no event of the end of retention")
		}
		h.clock.Advance(time.Hour)
		if err := h.vault.SweepBlobs(t.Context()); err != nil {
			t.Fatal(err)
		}
		if contents, chunks := h.count(t, `SELECT COUNT(*) FROM blob_content`), h.count(t, `SELECT COUNT(*) FROM blob_chunk`); contents != 1 || chunks != 10 {
			t.Errorf("after the sweep there are %d contents with %d chunks", contents, chunks)
		}
	})
}

// What arrives is written while it arrives, and what was not finished is no blob and does not stay.
func TestBlobUpload(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		ada := h.person(t)
		put := func(body io.Reader) error {
			_, _, err := h.vault.PutBlob(t.Context(), ada, ada.Customer(), passport, body, vault.Condition{})
			return err
		}
		looked := false
		look := readerFunc(func([]byte) (int, error) {
			looked = true
			if n := h.count(t, `SELECT COUNT(*) FROM blob_chunk`); n < 48-9 {
				t.Errorf("3 MiB came in and %d chunks are written", n)
			}
			return 0, io.EOF
		})
		if err := put(io.MultiReader(bytes.NewReader(make([]byte, 3<<20)), look)); err != nil || !looked {
			t.Fatalf("upload: %v", err)
		}
		if err := h.vault.DeleteBlob(t.Context(), ada, ada.Customer(), passport, vault.Condition{}); err != nil {
			t.Fatal(err)
		}

		lost := errors.New("lost")
		for name, row := range map[string]struct {
			body io.Reader
			want string
		}{
			"a client that leaves": {io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), iotest.ErrReader(lost)), "incomplete-body"},
			"too much":             {io.LimitReader(zeros{}, vault.MaxBlob+1), "blob-too-large"},
		} {
			before := h.events(t)
			if err := put(row.body); !problem.Is(err, row.want) {
				t.Errorf("%s: %v", name, err)
			}
			if got := since(before, h.events(t)); !slices.Equal(got, []string{"vault.blob.update denied " + row.want + " blob profile/passport"}) {
				t.Errorf("%s left %v", name, got)
			}
		}
		if _, err := h.getBlob(t, ada, passport); !problem.Is(err, "blob-not-found") {
			t.Errorf("after uploads that failed: %v", err)
		}
		h.clock.Advance(time.Hour)
		if err := h.vault.SweepBlobs(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := h.count(t, `SELECT COUNT(*) FROM blob_chunk`); n != 0 {
			t.Errorf("%d chunks are left", n)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// A blob that is replaced or deleted while it is read can be read to its end; one whose customer is erased
// ends at once, and an upload of theirs comes to nothing.
func TestBlobsMeanwhile(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		ada := h.person(t)
		content := random(20 * stream.ChunkSize)
		first := h.putBlob(t, ada, passport, content, vault.Condition{})
		open := func() *vault.BlobReader {
			t.Helper()
			r, err := h.vault.OpenBlob(t.Context(), ada, ada.Customer(), passport, "show-to-customer")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.Close)
			if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			return r
		}
		r := open()
		h.putBlob(t, ada, passport, random(20*stream.ChunkSize), vault.Condition{IfMatch: first.ETag})
		if err := h.vault.SweepBlobs(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, content[100:]) {
			t.Errorf("replaced while it was read: %v", err)
		}

		r = open()
		var erasure error
		_, _, err := h.vault.PutBlob(t.Context(), ada, ada.Customer(), vault.Ref{Collection: "profile", Key: "other"},
			io.MultiReader(bytes.NewReader(content), readerFunc(func([]byte) (int, error) {
				_, erasure = h.vault.Erase(t.Context(), operator, ada.Customer(), "customer asked")
				return 0, io.EOF
			})), vault.Condition{})
		if erasure != nil || !problem.Is(err, "customer-erased") {
			t.Errorf("an upload during the erasure: %v, %v", err, erasure)
		}
		if rest, err := io.ReadAll(r); !problem.Is(err, "customer-erased") || len(rest) > 8*stream.ChunkSize {
			t.Errorf("erased while it was read: %d bytes, %v", len(rest), err)
		}
		if _, err := h.getBlob(t, ada, passport); !problem.Is(err, "customer-erased") {
			t.Errorf("afterwards: %v", err)
		}
		if err := h.vault.SweepBlobs(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := h.count(t, `SELECT COUNT(*) FROM blob_chunk`) + h.count(t, `SELECT COUNT(*) FROM blob_content`); n != 0 {
			t.Errorf("%d rows are left of an erased customer's blobs", n)
		}
	})
}

// Whoever can write into the database cannot have a blob read as anything but what was written.
func TestAlteredBlobs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for name, alter := range map[string]func(h *house){
			"a chunk altered": func(h *house) {
				h.exec(t, `UPDATE blob_chunk SET sealed = $1 WHERE n = 3`, random(stream.ChunkSize+stream.Overhead))
			},
			"the last chunk gone":  func(h *house) { h.exec(t, `DELETE FROM blob_chunk WHERE n = 9`) },
			"a chunk gone":         func(h *house) { h.exec(t, `DELETE FROM blob_chunk WHERE n = 4`) },
			"the first chunk gone": func(h *house) { h.exec(t, `DELETE FROM blob_chunk WHERE n = 0`) },
			"two chunks exchanged": func(h *house) {
				h.exec(t, `UPDATE blob_chunk SET n = 99 WHERE n = 1`)
				h.exec(t, `UPDATE blob_chunk SET n = 1 WHERE n = 2`)
				h.exec(t, `UPDATE blob_chunk SET n = 2 WHERE n = 99`)
			},
			"cut, with the end moved": func(h *house) {
				h.exec(t, `DELETE FROM blob_chunk WHERE n = 8`)
				h.exec(t, `UPDATE blob_chunk SET n = 8 WHERE n = 9`)
			},
		} {
			h := newHouse(t, dbtest.Open(t, d.Engine()), nil)
			ada := h.person(t)
			content := random(9*stream.ChunkSize + 100)
			h.putBlob(t, ada, passport, content, vault.Condition{})
			alter(h)
			got, err := h.getBlob(t, ada, passport)
			if !errors.Is(err, stream.ErrOpen) || !bytes.HasPrefix(content, got) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
			// Over HTTP the answer breaks off.
			server := httptest.NewServer(h.serve(ada))
			answer, err := http.Get(server.URL + "/v1/blobs/profile/passport?purpose=show-to-customer")
			if err == nil {
				_, err = io.ReadAll(answer.Body)
				answer.Body.Close()
			}
			if err == nil {
				t.Errorf("%s: the answer looks whole", name)
			}
			server.Close()
			if !strings.Contains(h.log.String(), "a blob could not be sent to its end") {
				t.Errorf("%s: nobody is told", name)
			}
		}

		// A head that belongs to another blob opens nothing.
		h := newHouse(t, d, nil)
		ada := h.person(t)
		h.putBlob(t, ada, passport, []byte("one"), vault.Condition{})
		h.putBlob(t, ada, vault.Ref{Collection: "profile", Key: "other"}, []byte("two"), vault.Condition{})
		h.exec(t, `UPDATE blob SET sealed = (SELECT sealed FROM blob WHERE key = 'other'), content_id = (SELECT content_id FROM blob WHERE key = 'other') WHERE key = 'passport'`)
		if _, err := h.getBlob(t, ada, passport); !problem.Is(err, "record-unreadable") {
			t.Errorf("a moved head: %v", err)
		}
	})
}

// BenchmarkBlob writes and reads 8 MiB, into and out of the database, beside raw AES-256-GCM over chunks of the
// same size in memory: x-aes is the share of that rate, in CPU time.
func BenchmarkBlob(b *testing.B) {
	content := random(8 << 20)
	// rate measures until it is called, in bytes for each second of CPU time.
	rate := func(b *testing.B) func() float64 {
		began := processTime()
		return func() float64 {
			r := float64(len(content)) * float64(b.N) / (processTime() - began).Seconds()
			b.ReportMetric(r/1e6, "MB/cpu-s")
			return r
		}
	}
	var raw float64
	b.Run("aes-gcm", func(b *testing.B) {
		block, err := aes.NewCipher(content[:32])
		if err != nil {
			b.Fatal(err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			b.Fatal(err)
		}
		out, nonce := make([]byte, 0, stream.ChunkSize+aead.Overhead()), make([]byte, aead.NonceSize())
		b.SetBytes(int64(len(content)))
		done := rate(b)
		for b.Loop() {
			for chunk := range slices.Chunk(content, stream.ChunkSize) {
				rand.Read(nonce)
				aead.Seal(out, nonce, chunk, nil)
			}
		}
		raw = done()
	})
	for _, engine := range benchEngines() {
		h := newHouse(b, dbtest.Open(b, engine), nil)
		ada := h.person(b)
		b.Run(engine.String()+"/write", func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			done := rate(b)
			for b.Loop() {
				ref := vault.Ref{Collection: "profile", Key: "bench"}
				if _, _, err := h.vault.PutBlob(b.Context(), ada, ada.Customer(), ref, bytes.NewReader(content), vault.Condition{IfMatch: "*"}); problem.Is(err, "version-mismatch") {
					h.putBlob(b, ada, ref, content, vault.Condition{})
				} else if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(done()/raw, "x-aes")
		})
		b.Run(engine.String()+"/read", func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			done := rate(b)
			for b.Loop() {
				r, err := h.vault.OpenBlob(b.Context(), ada, ada.Customer(), vault.Ref{Collection: "profile", Key: "bench"}, "show-to-customer")
				if err != nil {
					b.Fatal(err)
				}
				if n, err := r.WriteTo(io.Discard); err != nil || n != int64(len(content)) {
					b.Fatal(n, err)
				}
				r.Close()
			}
			b.ReportMetric(done()/raw, "x-aes")
		})
	}
}
