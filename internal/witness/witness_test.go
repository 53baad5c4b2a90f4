package witness_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"strongroom/internal/witness"
)

var quiet = slog.New(slog.DiscardHandler)

// tree is a log in memory.
type tree struct {
	hashes []tlog.Hash
	size   int64
}

func (l *tree) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, x := range at {
		out[i] = l.hashes[x]
	}
	return out, nil
}

func (l *tree) grow(n int, salt string) {
	for range n {
		stored, err := tlog.StoredHashes(l.size, fmt.Appendf(nil, "%s %d", salt, l.size), l)
		if err != nil {
			panic(err)
		}
		l.hashes = append(l.hashes, stored...)
		l.size++
	}
}

func (l *tree) checkpoint(size int64, signers ...note.Signer) []byte {
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		panic(err)
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", signers[0].Name(), size, root)
	signed, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		panic(err)
	}
	return signed
}

func (l *tree) proof(old, size int64) []tlog.Hash {
	if old == 0 || old == size {
		return nil
	}
	p, err := tlog.ProveTree(size, old, l)
	if err != nil {
		panic(err)
	}
	return p
}

func logKey(t testing.TB, name string) (note.Signer, string) {
	t.Helper()
	key, verifier, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, verifier
}

func open(t testing.TB, dir, key string, logs ...string) *witness.Witness {
	t.Helper()
	w, err := witness.Open(dir, key, logs, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// What the protocol asks for, status by status, with a key of each algorithm.
func TestProtocol(t *testing.T) {
	for _, algorithm := range []string{"ed25519", "ml-dsa-44"} {
		t.Run(algorithm, func(t *testing.T) {
			key, vkey, err := witness.GenerateKey("witness.example/w1", algorithm)
			if err != nil {
				t.Fatal(err)
			}
			verifier, err := fnote.NewVerifier(vkey)
			if err != nil {
				t.Fatal(err)
			}
			signer, logVerifier := logKey(t, "log.example")
			stranger, _ := logKey(t, "log.example")
			foreign, _ := logKey(t, "other.example")
			dir := t.TempDir()
			w := open(t, dir, key, logVerifier)
			server := httptest.NewServer(w)
			defer server.Close()
			client := witness.Client{Verifier: verifier, URL: server.URL + "/"}

			var l, fork tree
			l.grow(40, "leaf")
			fork.grow(40, "another")
			for _, row := range []struct {
				name   string
				ask    witness.Request
				status int
				known  int64
			}{
				{"an unknown log", witness.Request{Checkpoint: l.checkpoint(5, foreign)}, 404, -1},
				{"a key that is not the log's", witness.Request{Checkpoint: l.checkpoint(5, stranger)}, 403, -1},
				{"old is larger", witness.Request{Old: 9, Checkpoint: l.checkpoint(5, signer)}, 400, -1},
				{"old is not known", witness.Request{Old: 3, Proof: l.proof(3, 5), Checkpoint: l.checkpoint(5, signer)}, 409, 0},
				{"a proof from nothing", witness.Request{Proof: l.proof(3, 5), Checkpoint: l.checkpoint(5, signer)}, 422, -1},
				{"the first", witness.Request{Checkpoint: l.checkpoint(5, signer)}, 200, -1},
				{"the same again", witness.Request{Old: 5, Checkpoint: l.checkpoint(5, signer)}, 200, -1},
				{"the same size, forked", witness.Request{Old: 5, Checkpoint: fork.checkpoint(5, signer)}, 409, -1},
				{"from nothing again", witness.Request{Checkpoint: l.checkpoint(7, signer)}, 409, 5},
				{"without a proof", witness.Request{Old: 5, Checkpoint: l.checkpoint(9, signer)}, 422, -1},
				{"forked", witness.Request{Old: 5, Proof: fork.proof(5, 9), Checkpoint: fork.checkpoint(9, signer)}, 422, -1},
				{"grown, and signed by a stranger too", witness.Request{Old: 5, Proof: l.proof(5, 40), Checkpoint: l.checkpoint(40, signer, foreign)}, 200, -1},
				{"smaller", witness.Request{Old: 5, Proof: l.proof(5, 20), Checkpoint: l.checkpoint(20, signer)}, 409, 40},
			} {
				line, err := client.Add(t.Context(), row.ask)
				var refused *witness.Refusal
				switch {
				case row.status == 200 && err == nil:
					n, err := note.Open(append(bytes.Clone(row.ask.Checkpoint), line...), note.VerifierList(verifier))
					if err != nil || n.Sigs[0].Name != "witness.example/w1" {
						t.Errorf("%s: the line does not stand under the checkpoint: %v", row.name, err)
						continue
					}
					if at, err := fnote.CoSigV1Timestamp(n.Sigs[0]); err != nil || at.IsZero() {
						t.Errorf("%s: %v %v", row.name, at, err)
					}
				case !errors.As(err, &refused) || refused.Status != row.status || refused.Known != row.known:
					t.Errorf("%s: %q %v", row.name, line, err)
				}
			}
			for _, body := range []string{"", "old 1\n", "old 01\n\nx", "old -1\n\nx", "old 1\nx\n\ny", "new 1\n\nx", "old 1\n" + strings.Repeat(tlog.Hash{}.String()+"\n", 64) + "\nx"} {
				answer, err := http.Post(server.URL+"/add-checkpoint", "text/plain", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				answer.Body.Close()
				if answer.StatusCode != 400 {
					t.Errorf("%q: %s", body, answer.Status)
				}
			}
			// It remembers over its own end, and holds its folder alone.
			if _, err := witness.Open(dir, key, []string{logVerifier}, quiet); err == nil {
				t.Error("two witnesses share a folder")
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			again := open(t, dir, key, logVerifier)
			var refused *witness.Refusal
			if _, err := again.Cosign(witness.Request{Checkpoint: l.checkpoint(3, signer)}.Text()); !errors.As(err, &refused) || refused.Known != 40 {
				t.Errorf("after a restart: %v", err)
			}
			// A state that is damaged is not begun anew.
			files, err := filepath.Glob(filepath.Join(dir, "*.checkpoint"))
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			if err := os.WriteFile(files[0], []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := again.Cosign(witness.Request{Checkpoint: l.checkpoint(3, signer)}.Text()); err == nil || errors.As(err, &refused) {
				t.Errorf("with a damaged state: %v", err)
			}
		})
	}
}

// However many ask at once, with whatever of two forks, what is cosigned is one log.
func TestNeverCosignsAFork(t *testing.T) {
	key, _, err := witness.GenerateKey("w", "ed25519")
	if err != nil {
		t.Fatal(err)
	}
	signer, logVerifier := logKey(t, "log.example")
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			r.Fatal(err)
		}
		w, err := witness.Open(dir, key, []string{logVerifier}, quiet)
		if err != nil {
			r.Fatal(err)
		}
		defer w.Close()
		var forks [2]tree
		common := rapid.IntRange(0, 6).Draw(r, "common")
		for i := range forks {
			forks[i].grow(common, "same")
			forks[i].grow(12-common, fmt.Sprint("fork ", i))
		}
		type ask struct {
			fork      int
			old, size int64
		}
		asks := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) ask {
			size := rapid.Int64Range(1, 12).Draw(r, "size")
			return ask{rapid.IntRange(0, 1).Draw(r, "fork"), rapid.Int64Range(0, size).Draw(r, "old"), size}
		}), 1, 30).Draw(r, "asks")
		var group sync.WaitGroup
		var mu sync.Mutex
		cosigned := make(map[int64]map[tlog.Hash]bool)
		for _, a := range asks {
			group.Go(func() {
				l := &forks[a.fork]
				text := witness.Request{Old: a.old, Proof: l.proof(a.old, a.size), Checkpoint: l.checkpoint(a.size, signer)}.Text()
				if _, err := w.Cosign(text); err == nil {
					root, _ := tlog.TreeHash(a.size, l)
					mu.Lock()
					defer mu.Unlock()
					if cosigned[a.size] == nil {
						cosigned[a.size] = make(map[tlog.Hash]bool)
					}
					cosigned[a.size][root] = true
				}
			})
		}
		group.Wait()
		// All that was cosigned has to lie on one fork.
		for i := range forks {
			fits := true
			for size, roots := range cosigned {
				root, _ := tlog.TreeHash(size, &forks[i])
				fits = fits && len(roots) == 1 && roots[root]
			}
			if fits {
				return
			}
		}
		r.Fatalf("cosigned %v", cosigned)
	})
}

// A witness that lies is not believed.
func TestClientChecks(t *testing.T) {
	key, vkey, err := witness.GenerateKey("w", "ed25519")
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := fnote.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	signer, logVerifier := logKey(t, "log.example")
	var l tree
	l.grow(9, "leaf")
	w := open(t, t.TempDir(), key, logVerifier)
	line, err := w.Cosign(witness.Request{Checkpoint: l.checkpoint(5, signer)}.Text())
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, body string
		status     int
	}{
		{"another checkpoint's", string(line), 200},
		{"nothing", "", 200},
		{"rubbish", "— w AAAA\n", 200},
		{"a conflict without a size", "", 409},
		{"an error", "", 500},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if row.status == 409 {
				out.Header().Set("Content-Type", "text/x.tlog.size")
			}
			out.WriteHeader(row.status)
			_, _ = io.WriteString(out, row.body)
		}))
		if got, err := (witness.Client{Verifier: verifier, URL: server.URL}).Add(context.Background(), witness.Request{Checkpoint: l.checkpoint(7, signer)}); err == nil {
			t.Errorf("%s: got %q", row.name, got)
		}
		server.Close()
	}
}

func FuzzParseRequest(f *testing.F) {
	signer, _ := logKey(f, "log.example")
	var l tree
	l.grow(9, "leaf")
	f.Add(witness.Request{Old: 4, Proof: l.proof(4, 9), Checkpoint: l.checkpoint(9, signer)}.Text())
	f.Add([]byte("old 0\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := witness.ParseRequest(text)
		if err == nil && !bytes.Equal(r.Text(), text) {
			t.Errorf("%q is read as %q", text, r.Text())
		}
	})
}
