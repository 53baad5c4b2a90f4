// Package witness speaks C2SP tlog-witness, as both sides of it: a log asks witnesses to cosign its
// checkpoints, and a witness cosigns those of logs that it watches.
//
// The promise of a Witness: it never cosigns two trees of one log of which the larger does not begin with the
// smaller, whatever it is sent, by how many at once, and whenever its machine stops: what it cosigns is on disk
// before it answers. Who relies on a checkpoint that it has cosigned relies on nobody who can change the log.
//
// Cosignatures are those of C2SP tlog-cosignature, Ed25519 (cosignature/v1) or ML-DSA-44: the byte
// of the algorithm in a key says which.
package witness

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

const (
	// maxBody bounds a request: 63 hashes and a checkpoint with 100 signatures of ML-DSA-44.
	maxBody = 512 << 10
	// maxProof is how many hashes the standard lets a proof have.
	maxProof = 63
	// sizeType is the content type of the answer that says which size is known.
	sizeType = "text/x.tlog.size"
)

// Request asks for a cosignature.
type Request struct {
	Old        int64       // the size of the tree that the witness is thought to know
	Proof      []tlog.Hash // that the checkpoint's tree continues it (RFC 6962 section 2.1.2)
	Checkpoint []byte      // a signed note
}

// Text returns the request as add-checkpoint takes it.
func (r Request) Text() []byte {
	b := fmt.Appendf(nil, "old %d\n", r.Old)
	for _, h := range r.Proof {
		b = append(append(b, h.String()...), '\n')
	}
	return append(append(b, '\n'), r.Checkpoint...)
}

var errRequest = errors.New("not a request of add-checkpoint")

// ParseRequest reads what Text wrote; nothing in it is checked but the form.
func ParseRequest(text []byte) (r Request, err error) {
	head, checkpoint, ok := bytes.Cut(text, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	size, isOld := strings.CutPrefix(lines[0], "old ")
	if r.Old, err = strconv.ParseInt(size, 10, 64); !ok || !isOld || err != nil || r.Old < 0 || strconv.FormatInt(r.Old, 10) != size || len(lines)-1 > maxProof {
		return Request{}, errRequest
	}
	for _, line := range lines[1:] {
		h, err := tlog.ParseHash(line)
		if err != nil || h.String() != line {
			return Request{}, errRequest
		}
		r.Proof = append(r.Proof, h)
	}
	r.Checkpoint = checkpoint
	return r, nil
}

// Witness cosigns the checkpoints of logs. It is an http.Handler.
type Witness struct {
	signer note.Signer
	logs   map[string][]note.Verifier // by origin
	dir    string
	lock   *os.File
	log    *slog.Logger
	mux    *http.ServeMux

	mu sync.Mutex // what is known is compared and replaced in one step
}

// Open returns the witness that signs with the key, a signed-note private key, for the logs with the
// verifier keys. dir keeps what it knows; no two processes open one.
func Open(dir, key string, logs []string, l *slog.Logger) (_ *Witness, err error) {
	w := &Witness{logs: make(map[string][]note.Verifier), dir: dir, log: l}
	if w.signer, err = fnote.NewSignerForCosignatureV1(strings.TrimSpace(key)); err != nil {
		return nil, fmt.Errorf("the key of the witness: %w", err)
	}
	for _, text := range logs {
		v, err := fnote.NewVerifier(text)
		if err != nil {
			return nil, fmt.Errorf("the key of a log: %w", err)
		}
		w.logs[v.Name()] = append(w.logs[v.Name()], v)
	}
	if len(w.logs) == 0 {
		return nil, errors.New("name a log to watch")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if w.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is held by another witness: %w", dir, err), w.lock.Close())
	}
	w.mux = http.NewServeMux()
	w.mux.HandleFunc("POST /add-checkpoint", w.add)
	return w, nil
}

// Close lets go of the folder.
func (w *Witness) Close() error { return w.lock.Close() }

// ServeHTTP answers add-checkpoint.
func (w *Witness) ServeHTTP(out http.ResponseWriter, r *http.Request) { w.mux.ServeHTTP(out, r) }

func (w *Witness) add(out http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(out, r.Body, maxBody))
	if err != nil {
		http.Error(out, "the request was not read", http.StatusBadRequest)
		return
	}
	lines, err := w.Cosign(body)
	var refused *Refusal
	switch {
	case err == nil:
		out.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = out.Write(lines)
	case errors.As(err, &refused) && refused.Known >= 0:
		out.Header().Set("Content-Type", sizeType)
		out.WriteHeader(refused.Status)
		fmt.Fprintf(out, "%d\n", refused.Known)
	case errors.As(err, &refused):
		w.log.Warn("a checkpoint was not cosigned", "status", refused.Status, "reason", refused.Why)
		http.Error(out, refused.Why, refused.Status)
	default:
		w.log.Error("a checkpoint could not be cosigned", "error", err)
		http.Error(out, "the checkpoint could not be cosigned", http.StatusInternalServerError)
	}
}

// Refusal is why a checkpoint was not cosigned.
type Refusal struct {
	Status int    // as tlog-witness has it
	Why    string // for people
	Known  int64  // the size that the witness knows, when the request took another to be known; else -1
}

func (r *Refusal) Error() string {
	if r.Known >= 0 {
		return fmt.Sprintf("the witness knows a tree of %d (%d)", r.Known, r.Status)
	}
	return fmt.Sprintf("%s (%d)", r.Why, r.Status)
}

func refuse(status int, why string) error { return &Refusal{status, why, -1} }

// Cosign returns the signature lines for the checkpoint of a request, once it is on disk that it was
// cosigned. It fails with a *Refusal.
func (w *Witness) Cosign(request []byte) ([]byte, error) {
	r, err := ParseRequest(request)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, err.Error())
	}
	origin, _, _ := strings.Cut(string(r.Checkpoint), "\n")
	keys := w.logs[origin]
	if keys == nil {
		return nil, refuse(http.StatusNotFound, "the log is not one that this witness watches")
	}
	tree, text, err := parse(r.Checkpoint, origin, keys)
	if err != nil {
		return nil, err
	}
	if r.Old > tree.N {
		return nil, refuse(http.StatusBadRequest, "the old size is larger than the checkpoint's")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	known, err := w.known(origin, keys)
	if err != nil {
		return nil, err
	}
	if r.Old != known.N {
		return nil, &Refusal{http.StatusConflict, "", known.N}
	}
	switch {
	case known.N == tree.N && known.Hash != tree.Hash:
		w.log.Error("THE LOG WAS FORKED: two trees of one size are signed", "log", origin, "size", tree.N, "known", known.Hash, "sent", tree.Hash)
		return nil, refuse(http.StatusConflict, "another tree of this size is known")
	case known.N == 0 || known.N == tree.N:
		if len(r.Proof) > 0 {
			return nil, refuse(http.StatusUnprocessableEntity, "there is nothing to prove, and a proof")
		}
	default:
		if err := tlog.CheckTree(tlog.TreeProof(r.Proof), tree.N, tree.Hash, known.N, known.Hash); err != nil {
			return nil, refuse(http.StatusUnprocessableEntity, "the proof does not show that the tree continues the one that is known")
		}
	}
	if known != tree || tree.N == 0 {
		if err := store(w.path(origin), r.Checkpoint); err != nil {
			return nil, err
		}
	}
	signed, err := note.Sign(&note.Note{Text: text}, w.signer)
	if err != nil {
		return nil, err
	}
	return signed[len(text)+1:], nil
}

var emptyRoot, _ = tlog.TreeHash(0, nil)

// parse checks that a key of the log has signed the checkpoint, and returns its tree and its text.
func parse(signed []byte, origin string, keys []note.Verifier) (tlog.Tree, string, error) {
	for _, key := range keys {
		c, _, n, err := log.ParseCheckpoint(signed, origin, key)
		if err != nil {
			continue
		}
		// The library reads numbers more freely than the standard writes them.
		if c.Size > math.MaxInt64 || len(c.Hash) != tlog.HashSize || !strings.HasPrefix(n.Text, string(c.Marshal())) {
			return tlog.Tree{}, "", refuse(http.StatusBadRequest, "not a checkpoint")
		}
		tree := tlog.Tree{N: int64(c.Size), Hash: tlog.Hash(c.Hash)}
		if tree.N == 0 && tree.Hash != emptyRoot {
			return tlog.Tree{}, "", refuse(http.StatusBadRequest, "not a checkpoint of an empty log")
		}
		return tree, n.Text, nil
	}
	return tlog.Tree{}, "", refuse(http.StatusForbidden, "no key of the log has signed the checkpoint")
}

func (w *Witness) path(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(w.dir, hex.EncodeToString(sum[:16])+".checkpoint")
}

// known returns the tree that was cosigned last. A file that cannot be read is no reason to begin anew.
func (w *Witness) known(origin string, keys []note.Verifier) (tlog.Tree, error) {
	path := w.path(origin)
	signed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return tlog.Tree{Hash: emptyRoot}, nil
	}
	if err != nil {
		return tlog.Tree{}, err
	}
	tree, _, err := parse(signed, origin, keys)
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("%s is damaged, or signed by a key that is not named any more: %w", path, errors.New(err.Error()))
	}
	return tree, nil
}

// store replaces a file whole or not at all, and returns when it is durable.
func store(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	draft, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(draft.Name())
		}
	}()
	_, err = draft.Write(data)
	if err = errors.Join(err, draft.Sync(), draft.Close()); err != nil {
		return err
	}
	if err = os.Rename(draft.Name(), path); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// GenerateKey returns a new key of a witness and its verifier key; algorithm is ed25519 or ml-dsa-44.
func GenerateKey(name, algorithm string) (key, verifier string, err error) {
	switch algorithm {
	case "ed25519":
		if key, verifier, err = note.GenerateKey(rand.Reader, name); err != nil {
			return "", "", err
		}
		verifier, err = fnote.VKeyToCosignatureV1(verifier)
		return key, verifier, err
	case "ml-dsa-44":
		return fnote.GenerateMLDSAKey(name)
	}
	return "", "", fmt.Errorf("there is no algorithm %q: choose ed25519 or ml-dsa-44", algorithm)
}
