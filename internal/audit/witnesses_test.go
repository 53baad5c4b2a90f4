package audit_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/witness"
)

// raised collects findings.
type raised struct {
	mu   sync.Mutex
	open []string
}

func (f *raised) Raise(_ context.Context, kind, subject, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.open, kind+" "+subject) {
		f.open = append(f.open, kind+" "+subject)
		slices.Sort(f.open)
	}
	return nil
}

func (f *raised) Clear(_ context.Context, kind, subject string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = slices.DeleteFunc(f.open, func(s string) bool { return s == kind+" "+subject })
	return nil
}

// Two witnesses, each a process of its own kind, cosign a log as it grows; one that is away is caught up
// with, and both refuse a log that was rolled back.
func TestWitnesses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		var list []audit.Witness
		var away bool
		for i, algorithm := range []string{"ed25519", "ml-dsa-44"} {
			key, vkey, err := witness.GenerateKey("w"+string(rune('1'+i))+".example", algorithm)
			if err != nil {
				t.Fatal(err)
			}
			w, err := witness.Open(t.TempDir(), key, []string{h.ring.CheckpointKey()}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = w.Close() })
			server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
				if away && i == 1 {
					_, _ = io.Copy(io.Discard, r.Body)
					out.WriteHeader(http.StatusBadGateway)
					return
				}
				w.ServeHTTP(out, r)
			}))
			t.Cleanup(server.Close)
			v, err := audit.NewVerifier(vkey)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, audit.Witness{Key: v, URL: server.URL})
		}
		var findings raised
		ws := audit.NewWitnesses(h.trail, list, time.Second, &findings, nil)
		ask := func() {
			t.Helper()
			if err := ws.Ask(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		keys := []note.Verifier{list[0].Key, list[1].Key}
		prove := func(event string) []string {
			t.Helper()
			p, err := h.trail.Prove(t.Context(), operator, event)
			if err != nil {
				t.Fatal(err)
			}
			p, err = audit.ParseProof(p.Text())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Check(verifiers(t, h.ring.CheckpointKey())); err != nil {
				t.Fatal(err)
			}
			names, err := p.Witnessed(keys)
			if err != nil {
				t.Fatal(err)
			}
			return names
		}
		ask() // an empty log
		h.record(3)
		h.sequence()
		ask()
		event := h.eventAt(1)
		if names := prove(event); !slices.Equal(names, []string{"w1.example", "w2.example"}) {
			t.Errorf("cosigned by %v", names)
		}
		// Rows that the database's administrator wrote keep no witness from being asked, and no proof from being read.
		h.exec(`UPDATE log_cosignature SET line = $1 WHERE witness = 'w1.example'`, "— w1.example AAAAAAAAAAAA\n")
		for i, line := range []string{"— junk ???\n", "— junk AAAA\n", "— a b c\n", "junk\n", "— junk AAAAAAAAAAAA\n— x\n", ""} {
			h.exec(`INSERT INTO log_cosignature (size, witness, line, made_at) SELECT size, $1, $2, 1 FROM log_head`, "junk"+string(rune('a'+i)), line)
		}
		ask()
		if names := prove(event); !slices.Equal(names, []string{"w1.example", "w2.example"}) {
			t.Errorf("cosigned by %v", names)
		}
		h.exec(`DELETE FROM log_cosignature WHERE witness LIKE 'junk%'`)
		prefix := h.tileServer(t)
		h.record(300)
		h.sequence()
		if _, body := get(t, prefix+"checkpoint"); strings.Contains(string(body), "w1.example") {
			t.Errorf("cosigned before it was asked for: %s", body)
		}
		away = true
		for range 3 {
			ask()
		}
		if !slices.Equal(findings.open, []string{"audit.witness-lag w2.example"}) {
			t.Errorf("findings %v", findings.open)
		}
		if names := prove(event); !slices.Equal(names, []string{"w1.example"}) {
			t.Errorf("cosigned by %v", names)
		}
		away = false
		// What the database has forgotten, the witness says.
		h.exec(`DELETE FROM log_cosignature WHERE witness = 'w1.example'`)
		h.record(2)
		h.sequence()
		ask()
		if len(findings.open) != 0 {
			t.Errorf("findings %v", findings.open)
		}
		_, body := get(t, prefix+"checkpoint")
		n, err := note.Open(body, note.VerifierList(keys...))
		if err != nil || len(n.Sigs) != 2 {
			t.Errorf("%v %s", err, body)
		}
		if list, err := h.trail.Checkpoints(t.Context(), operator, -1, 1); err != nil || len(list[0].Witnesses) != 2 {
			t.Errorf("%+v %v", list, err)
		}
		h.holds()

		// Somebody with the keys cuts the log off and grows it anew: servers forget, witnesses do not.
		for _, table := range []string{"event", "event_leaf", "event_pending", "log_tile", "log_checkpoint", "log_cosignature"} {
			h.exec(`DELETE FROM ` + table)
		}
		h.exec(`UPDATE log_head SET size = 0, epoch = 0, root = '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='`)
		h.trail = audit.New(d, h.ring, audit.Options{})
		ws = audit.NewWitnesses(h.trail, list, time.Second, &findings, nil)
		h.record(5)
		h.sequence()
		ask()
		h.record(400)
		h.sequence()
		ask() // longer than it was, and another
		if !slices.Equal(findings.open, []string{"audit.witness-refused w1.example", "audit.witness-refused w2.example"}) {
			t.Errorf("findings %v", findings.open)
		}
		if n := h.count(`SELECT count(*) FROM log_cosignature`); n != 0 {
			t.Errorf("%d cosignatures of a fork", n)
		}
	})
}
