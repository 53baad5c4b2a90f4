package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/log"
	tdproof "github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// tileServer serves the house's log to whoever sends no header Refused.
func (h *house) tileServer(t *testing.T) string {
	handler := h.trail.Tiles(func(r *http.Request) *problem.Problem {
		if r.Header.Get("Refused") != "" {
			return problem.New(problem.Forbidden, "not-permitted", "No.")
		}
		return nil
	}, func(w http.ResponseWriter, _ *http.Request, err error) {
		status := http.StatusInternalServerError
		if p := problem.Of(err); p != nil {
			status = p.GetStatus()
		}
		http.Error(w, err.Error(), status)
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(actor.With(r.Context(), h.by)))
	}))
	t.Cleanup(server.Close)
	return server.URL + "/audit/"
}

func get(t testing.TB, url string, headers ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, body
}

// httpTiles reads tiles over HTTP for golang.org/x/mod/sumdb/tlog, as any client of ours would.
type httpTiles struct {
	t      testing.TB
	prefix string
}

func (h httpTiles) Height() int                         { return 8 }
func (h httpTiles) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (h httpTiles) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		path := strings.TrimPrefix(tile.Path(), "tile/8/")
		answer, body := get(h.t, h.prefix+"tile/"+path)
		if answer.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s: %s", path, answer.Status)
		}
		data = append(data, body)
	}
	return data, nil
}

// Two clients that are not ours, golang.org/x/mod/sumdb/tlog and transparency-dev's merkle and formats,
// read the log over HTTP and find the same tree.
func TestForeignClientsReadTheLog(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		prefix := h.tileServer(t)
		if answer, _ := get(t, prefix+"checkpoint"); answer.StatusCode != http.StatusNotFound {
			t.Errorf("an empty log: %s", answer.Status)
		}
		h.fill(300)
		h.sequence()
		answer, first := get(t, prefix+"checkpoint")
		if ct := answer.Header.Get("Content-Type"); answer.StatusCode != http.StatusOK || ct != "text/plain; charset=utf-8" || answer.Header.Get("Cache-Control") != "private, max-age=1" {
			t.Fatalf("%s %v", answer.Status, answer.Header)
		}
		h.fill(1300 - 300)
		h.sequence()
		_, second := get(t, prefix+"checkpoint")

		verifier, err := note.NewVerifier(h.ring.CheckpointKey())
		if err != nil {
			t.Fatal(err)
		}
		var points [2]*log.Checkpoint
		for i, signed := range [][]byte{first, second} {
			if points[i], _, _, err = log.ParseCheckpoint(signed, verifier.Name(), verifier); err != nil {
				t.Fatal(err)
			}
		}
		old, tree := points[0], points[1]
		if old.Size != 300 || tree.Size != 1300 {
			t.Fatalf("sizes %d and %d", old.Size, tree.Size)
		}

		// tlog: every hash that it hands out is authenticated by the checkpoint's root.
		reader := tlog.TileHashReader(tlog.Tree{N: int64(tree.Size), Hash: tlog.Hash(tree.Hash)}, httpTiles{t, prefix})
		root, err := tlog.TreeHash(int64(old.Size), reader)
		if err != nil || !bytes.Equal(root[:], old.Hash) {
			t.Errorf("the tree of 300 is not its beginning: %v", err)
		}

		// transparency-dev: inclusion and consistency from nodes that come from the tiles, and the
		// root from the entries alone.
		hash := func(id compact.NodeID) []byte {
			hashes, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(int(id.Level), int64(id.Index))})
			if err != nil {
				t.Fatal(err)
			}
			return hashes[0][:]
		}
		collect := func(nodes proof.Nodes) (hashes [][]byte) {
			for _, id := range nodes.IDs {
				hashes = append(hashes, hash(id))
			}
			hashes, err := nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
			if err != nil {
				t.Fatal(err)
			}
			return hashes
		}
		nodes, err := proof.Consistency(old.Size, tree.Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.Size, tree.Size, collect(nodes), old.Hash, tree.Hash); err != nil {
			t.Error(err)
		}
		var leaves [][]byte
		for _, path := range []string{"000", "001", "004", "005.p/20"} {
			answer, bundle := get(t, prefix+"tile/entries/"+path)
			if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "application/octet-stream" ||
				!strings.Contains(answer.Header.Get("Cache-Control"), "immutable") || !answer.Uncompressed {
				t.Fatalf("%s: %s %v", path, answer.Status, answer.Header)
			}
			if bytes.Contains(bundle, []byte(address.String())) || bytes.Contains(bundle, []byte("thumbprint")) {
				t.Errorf("bundle %s holds what is personal", path)
			}
			leaves = nil
			for len(bundle) > 0 {
				size := int(binary.BigEndian.Uint16(bundle))
				leaves = append(leaves, bundle[2:2+size])
				bundle = bundle[2+size:]
			}
			_, tile := get(t, prefix+"tile/0/"+path)
			if len(leaves)*sha256.Size != len(tile) {
				t.Fatalf("%s: %d leaves, %d bytes of hashes", path, len(leaves), len(tile))
			}
			for i, leaf := range leaves {
				if !bytes.Equal(rfc6962.DefaultHasher.HashLeaf(leaf), tile[i*sha256.Size:][:sha256.Size]) {
					t.Fatalf("%s: leaf %d has another hash", path, i)
				}
			}
		}
		last := tree.Size - 1
		if nodes, err = proof.Inclusion(last, tree.Size); err != nil {
			t.Fatal(err)
		}
		leaf := rfc6962.DefaultHasher.HashLeaf(leaves[len(leaves)-1])
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, last, tree.Size, leaf, collect(nodes), tree.Hash); err != nil {
			t.Error(err)
		}
		// What the standard says a tree of 1,300 has.
		for path, size := range map[string]int{"0/004": 256, "0/005.p/20": 20, "1/000.p/5": 5} {
			if answer, body := get(t, prefix+"tile/"+path); answer.StatusCode != http.StatusOK || len(body) != size*32 || answer.Header.Get("Content-Encoding") != "" {
				t.Errorf("%s: %s, %d bytes", path, answer.Status, len(body))
			}
		}
		if _, body := get(t, prefix+"tile/entries/000", "Accept-Encoding", "identity"); len(body) < 256*300 {
			t.Errorf("%d bytes", len(body))
		}

		// The formats library reads our proofs.
		p, err := h.trail.Prove(t.Context(), operator, h.eventAt(1234))
		if err != nil {
			t.Fatal(err)
		}
		p.Key = "example.com/log+3fc2f8a4+AbKKlZQ0oL7Q7N9vXVt4r4p0z0v8m1c9b8s2hQ2y3m4c"
		var foreign tdproof.TLogProof
		if err := foreign.Unmarshal(p.Text()); err != nil || foreign.Index != 1234 {
			t.Fatalf("%v %+v", err, foreign)
		}
		point, _, _, err := log.ParseCheckpoint(foreign.Checkpoint, verifier.Name(), verifier)
		if err != nil {
			t.Fatal(err)
		}
		var path [][]byte
		for _, h := range foreign.Hashes {
			path = append(path, h[:])
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, foreign.Index, point.Size, rfc6962.DefaultHasher.HashLeaf(foreign.ExtraData), path, point.Hash); err != nil {
			t.Error(err)
		}
		ours, err := audit.ParseProof(p.Text())
		if err != nil {
			t.Fatal(err)
		}
		if ours.Key != p.Key || ours.Checkpoint != p.Checkpoint {
			t.Errorf("%+v", ours)
		}
		if said, err := ours.Check(note.VerifierList(verifier)); err != nil || said.Index != 1234 {
			t.Errorf("%+v %v", said, err)
		}
	})
}

func TestTilesThatAreNot(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		prefix := h.tileServer(t)
		h.fill(300)
		h.sequence()
		for _, path := range []string{
			"0/002", "0/001", "0/001.p/45", "0/000.p/256", "0/000.p/0", "0/000.p/01", "0/1", "0/0001", "0/x000/001", "1/000", "1/000.p/2", "6/000", "64/000", "00/000",
			"0/001/000", "0/x001", "-1/000.p/1", "entries/001", "entries/000.p/256", "entries/", "0/", "", "0/000.p/1/", "0/x999/x999/x999/x999/x999/x999/999", "0/+01.p/1", "0/ 00",
		} {
			if answer, body := get(t, prefix+"tile/"+strings.ReplaceAll(path, " ", "%20")); answer.StatusCode != http.StatusNotFound {
				t.Errorf("%s: %s %q", path, answer.Status, body)
			}
		}
		// A tile that was partial stays to be had when it is full, and entries with it.
		for _, path := range []string{"0/000.p/1", "0/000.p/255", "0/001.p/44", "0/001.p/3", "1/000.p/1", "entries/000.p/7"} {
			if answer, _ := get(t, prefix+"tile/"+path); answer.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", path, answer.Status)
			}
		}
		for _, path := range []string{"checkpoint", "checkpoints", "tile/0/000", "tile/entries/000"} {
			if answer, _ := get(t, prefix+path, "Refused", "1"); answer.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %s", path, answer.Status)
			}
		}
		if e := h.newest(audit.ActionTiles); e.Outcome != audit.Denied || e.Reason != "not-permitted" {
			t.Errorf("%+v", e)
		}
		get(t, prefix+"tile/entries/001.p/5")
		if e := h.newest(audit.ActionTiles); e.Outcome != audit.Granted || e.Resource != "entries 256 to 260" {
			t.Errorf("%+v", e)
		}
		before := h.count(`SELECT count(*) FROM event`)
		get(t, prefix+"tile/0/000")
		get(t, prefix+"checkpoint")
		if n := h.count(`SELECT count(*) FROM event`); n != before {
			t.Errorf("hashes have left %d events", n-before)
		}

		var list []audit.Checkpoint
		if _, body := get(t, prefix+"checkpoints?limit=5"); json.Unmarshal(body, &list) != nil || len(list) != 1 || list[0].Size != 300 || list[0].Number != 1 {
			t.Errorf("%s", body)
		}
		if answer, _ := get(t, prefix+"checkpoints?below=x"); answer.StatusCode != http.StatusBadRequest {
			t.Errorf("%s", answer.Status)
		}
		// A log whose tables do not fit together is not given out.
		h.exec(`DELETE FROM event_leaf WHERE idx = 7`)
		if answer, _ := get(t, prefix+"tile/entries/000"); answer.StatusCode != http.StatusInternalServerError {
			t.Errorf("with a hole: %s", answer.Status)
		}
	})
}

func TestCheckpointHistory(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		for range 3 {
			h.record(2)
			h.sequence()
		}
		list, err := h.trail.Checkpoints(t.Context(), operator, -1, 2)
		if err != nil || len(list) != 2 || list[0].Size != 6 || list[1].Size != 4 || list[0].Number != 3 || !strings.Contains(h.ring.CheckpointKey(), "+"+list[0].Key+"+") {
			t.Errorf("%+v %v", list, err)
		}
		if list, err = h.trail.Checkpoints(t.Context(), operator, 4, 10); err != nil || len(list) != 1 || list[0].Size != 2 {
			t.Errorf("%+v %v", list, err)
		}
		if _, err := h.trail.Checkpoints(t.Context(), h.by, -1, 1); !problem.Is(err, "trail-not-allowed") {
			t.Error(err)
		}
		if _, err := h.trail.Checkpoints(context.Background(), operator, -1, 0); !problem.Is(err, "invalid-limit") {
			t.Error(err)
		}
	})
}

func FuzzParseProof(f *testing.F) {
	f.Add([]byte("c2sp.org/tlog-proof@v1\nextra e30=\nindex 7\ngSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\n\nexample.com/log\n9\nsFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=\n\n— example.com/log hI2DJw==\n"))
	f.Add(audit.Proof{Leaf: "{}", Index: 1, Checkpoint: "example.com/log\n9\nsFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=\n\n— example.com/log hI2DJw==\n", Key: "a+1+b"}.Text())
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 0\n\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := audit.ParseProof(text)
		if err != nil {
			if !errors.Is(err, audit.ErrProof) {
				t.Error(err)
			}
			return
		}
		again, err := audit.ParseProof(p.Text())
		if err != nil || again.Index != p.Index || again.Leaf != p.Leaf || again.Key != p.Key || len(again.Hashes) != len(p.Hashes) {
			t.Errorf("%v %+v", err, again)
		}
		if _, err := p.Check(note.VerifierList()); !errors.Is(err, audit.ErrProof) {
			t.Errorf("held: %v", err)
		}
	})
}
