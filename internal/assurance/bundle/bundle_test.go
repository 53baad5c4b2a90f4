package bundle

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/defenseunicorns/go-oscal/src/pkg/validation"
	testresult "github.com/in-toto/attestation/go/predicates/test_result/v0"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/encoding/protojson"
	"pgregory.net/rapid"

	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/clock"
)

const origin = "strongroom/dev/ins_test"

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// maker makes bundles over a log of its own.
type maker struct {
	evidence, log       note.Signer
	evidenceKey, logKey string
	claims              []Claim
	checks              []Check
	runs                []Run
	changes             []Change
	leaves              map[string]string // by event; what is not here is what fits
}

func newMaker(t testing.TB) *maker {
	m := &maker{leaves: make(map[string]string)}
	m.evidence, m.evidenceKey = key(t, origin+"/evidence")
	m.log, m.logKey = key(t, origin)
	m.checks = []Check{{"doors-shut", 1, "The doors are shut."}, {"keys-kept", 2, "The keys are kept."}}
	m.claims = []Claim{
		{ID: "DOOR-1", Sentence: "The doors are shut.", Owner: "edge", State: "green", Why: "All checks hold.",
			Controls: []Control{{"They are tried.", []string{"iso:A.8.20"}, []string{"doors-shut"}}, {"The keys too.", []string{"iso:A.8.24"}, []string{"keys-kept"}}}},
		{ID: "MOON-1", Sentence: "We are on the moon.", Owner: "moon", State: "grey", Why: "No."},
	}
	m.run("doors-shut", 1, check.Held("pushed", "All are shut.").With("doors", 4))
	m.run("keys-kept", 2, check.Failed("looked", "One is gone."))
	m.run("keys-kept", 2, check.Held("looked", "They are there."))
	m.change("DOOR-1", "red")
	m.change("DOOR-1", "green")
	return m
}

func key(t testing.TB, name string) (note.Signer, string) {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return s, public
}

func (m *maker) run(name string, version int, o check.Observation) {
	n := len(m.runs)
	at := began.Add(time.Duration(n) * time.Minute)
	text, err := Text(Seen{name, version, at, at.Add(24 * time.Hour), o})
	if err != nil {
		panic(err)
	}
	m.runs = append(m.runs, Run{fmt.Sprintf("ev_%d", n), fmt.Sprintf("evt_r%d", n), time.Duration(n) * time.Millisecond, text})
}

func (m *maker) change(claim, state string) {
	n := len(m.changes)
	m.changes = append(m.changes, Change{claim, state, began.Add(time.Duration(n) * time.Minute), "so", fmt.Sprintf("evt_c%d", n)})
}

func leafOf(event string, at time.Time, action, resource, reason string) string {
	leaf, err := json.Marshal(map[string]any{"v": 1, "id": event, "time": clock.Micros(at), "actor": map[string]string{"kind": "system", "id": "job"},
		"action": action, "resource": resource, "outcome": "granted", "reason": reason})
	if err != nil {
		panic(err)
	}
	return string(leaf)
}

// source is what the maker has, in a log whose leaves say of each event what fits, or what the test wants.
func (m *maker) source(t testing.TB) Source {
	var events, leaves []string
	add := func(event, leaf string) {
		events = append(events, event)
		if other, ok := m.leaves[event]; ok {
			leaf = other
		}
		leaves = append(leaves, leaf)
	}
	for _, r := range m.runs {
		seen, err := r.seen()
		if err != nil {
			t.Fatal(err)
		}
		add(r.Event, leafOf(r.Event, seen.ObservedAt, actionRun, Resource(seen, r.Text), string(seen.Outcome)))
	}
	for _, c := range m.changes {
		if c.Event != "" {
			add(c.Event, leafOf(c.Event, c.Since, actionChange, "claim "+c.Claim+" "+c.State, ""))
		}
	}
	leaves = append([]string{`{"v":1}`}, leaves...)
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (list []tlog.Hash, err error) {
		for _, i := range indexes {
			list = append(list, stored[i])
		}
		return list, nil
	})
	tree := func(n int64) (tlog.Tree, string) {
		root, err := tlog.TreeHash(n, reader)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", origin, n, root)}, m.log)
		if err != nil {
			t.Fatal(err)
		}
		return tlog.Tree{N: n, Hash: root}, string(signed)
	}
	for i, leaf := range leaves {
		hashes, err := tlog.StoredHashes(int64(i), []byte(leaf), reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
	}
	size := int64(len(leaves))
	_, first := tree(1)
	_, last := tree(size)
	chain := []audit.Link{{Time: began, Checkpoint: first}}
	if size > 1 {
		proof, err := tlog.ProveTree(size, 1, reader)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, audit.Link{Time: began.Add(time.Hour), Checkpoint: last, Consistency: proof})
	}
	return Source{
		Info: Info{Installation: "ins_test", Environment: "dev", Program: "strongroom test", From: began.Add(-time.Hour), To: began.Add(2 * time.Hour),
			EvidenceKey: m.evidenceKey, LogKeys: []string{m.logKey}},
		Catalogue: Catalogue{Claims: m.claims, Checks: m.checks},
		Changes:   each(m.changes), Runs: each(m.runs),
		Proofs: func(yield func(string, audit.Proof) error) error {
			for i, event := range events {
				hashes, err := tlog.ProveRecord(size, int64(i+1), reader)
				if err != nil {
					return err
				}
				if err := yield(event, audit.Proof{Leaf: leaves[i+1], Index: int64(i + 1), Hashes: hashes, Checkpoint: last}); err != nil {
					return err
				}
			}
			return nil
		},
		Chain: func() ([]audit.Link, error) { return chain, nil },
	}
}

func each[T any](list []T) func(func(T) error) error {
	return func(yield func(T) error) error {
		for _, v := range list {
			if err := yield(v); err != nil {
				return err
			}
		}
		return nil
	}
}

func (m *maker) write(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(context.Background(), &out, m.evidence, m.source(t)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (m *maker) verify(b []byte) (Report, error) {
	return Verify(context.Background(), bytes.NewReader(b), int64(len(b)), Options{Keys: []string{m.evidenceKey}})
}

// contents are the members of a bundle.
func contents(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]byte)
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if all[f.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// pack makes an archive as Write does, of what there is and in the order given.
func pack(t testing.TB, all map[string][]byte, order []string) []byte {
	t.Helper()
	var out bytes.Buffer
	a := &archive{zip: zip.NewWriter(&out), modified: began.Add(2 * time.Hour)}
	for _, name := range order {
		if err := a.add(name, func(w io.Writer) error {
			_, err := w.Write(all[name])
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.zip.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var order = append(slices.Clone(members), manifestName)

func TestBundle(t *testing.T) {
	m := newMaker(t)
	b := m.write(t)
	r, err := m.verify(b)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Trusted || r.Runs["holds"] != 2 || r.Runs["fails"] != 1 || r.Changes != 2 || r.Checks != 2 || r.LogSize != 6 || r.Checkpoints != 2 ||
		r.Claims["green"] != 1 || r.Claims["grey"] != 1 || r.Installation != "ins_test" || !strings.HasPrefix(r.Fingerprint, "SHA256:") {
		t.Errorf("%+v", r)
	}
	if again := m.write(t); !bytes.Equal(again, b) {
		t.Error("the same source gave other bytes")
	}
	if !bytes.Equal(pack(t, contents(t, b), order), b) {
		t.Fatal("pack, which the other tests use, does not make what Write makes")
	}
	untrusted, err := Verify(t.Context(), bytes.NewReader(b), int64(len(b)), Options{})
	if err != nil || untrusted.Trusted || untrusted.EvidenceKey != m.evidenceKey {
		t.Errorf("without a key: %+v, %v", untrusted, err)
	}
	_, other := key(t, origin+"/evidence")
	_, otherLog := key(t, origin)
	for _, row := range []struct {
		keys []string
		want string
	}{
		{[]string{other}, "manifest.json: its signature does not hold"},
		{[]string{other, m.evidenceKey, m.logKey}, ""},
		{[]string{m.evidenceKey, otherLog}, "manifest.json: none of the keys that are trusted is one of the log's"},
		{[]string{"x/evidence+00+AA=="}, "manifest.json: the key of the evidence is"},
	} {
		_, err := Verify(t.Context(), bytes.NewReader(b), int64(len(b)), Options{Keys: row.keys})
		expect(t, fmt.Sprint(row.keys), err, row.want)
	}
	_, witness := key(t, "witness.example")
	v, err := audit.NewVerifier(witness)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Verify(t.Context(), bytes.NewReader(b), int64(len(b)), Options{Keys: []string{m.evidenceKey}, Witnesses: []note.Verifier{v}, Quorum: 1})
	expect(t, "without a witness", err, "0 of the 1 witnesses have cosigned the last checkpoint, and 1 are asked for")
}

// firstBundle is a bundle of this format that was written once, and its key.
func firstBundle(t testing.TB) (b []byte, key string) {
	t.Helper()
	b, err := os.ReadFile("testdata/v1.zip")
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile("testdata/v1.key")
	if err != nil {
		t.Fatal(err)
	}
	return b, strings.TrimSpace(string(line))
}

// It verifies for ever, whatever the libraries become.
func TestFirstBundle(t *testing.T) {
	b, key := firstBundle(t)
	r, err := Verify(t.Context(), bytes.NewReader(b), int64(len(b)), Options{Keys: []string{key}})
	if err != nil || !r.Trusted || r.Runs["holds"] != 2 || r.Runs["fails"] != 1 || r.Claims["green"] != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func expect(t testing.TB, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err == nil:
	case want == "" || err == nil || !errors.Is(err, ErrBundle) || !strings.Contains(err.Error(), want):
		t.Errorf("%s: %v; want %q", what, err, want)
	}
}

// Each byte counts: the archive's own, and those of all members.
func TestEveryByte(t *testing.T) {
	m := newMaker(t)
	b := m.write(t)
	step := 31 // all of them take a while; which ones are looked at differs from bundle to bundle, whose keys differ
	for at := int(b[len(b)/2]) % step; at < len(b); at += step {
		changed := slices.Clone(b)
		changed[at] ^= 1 << (at % 8)
		if _, err := m.verify(changed); !errors.Is(err, ErrBundle) {
			t.Fatalf("byte %d of %d was changed: %v", at, len(b), err)
		}
	}
	for _, n := range []int{0, 1, 100, len(b) / 2, len(b) - 22, len(b) - 1} {
		_, err := m.verify(b[:n])
		expect(t, fmt.Sprintf("cut to %d bytes", n), err, "the archive: it is not a whole ZIP archive")
	}
	_, err := m.verify(append(slices.Clone(b), 0))
	expect(t, "with a byte more", err, "the archive: ")
	_, err = m.verify(append([]byte("#!/bin/sh\n"), b...))
	expect(t, "with a beginning of its own", err, "the archive: there are bytes in it that are not its members'")
}

// Members that are missing, in other places, another's, or not what they should be.
func TestMembers(t *testing.T) {
	m := newMaker(t)
	b := m.write(t)
	all := contents(t, b)
	stranger := newMaker(t)
	theirs := contents(t, stranger.write(t))
	with := func(name string, content []byte) map[string][]byte {
		other := make(map[string][]byte)
		for n, c := range all {
			other[n] = c
		}
		other[name] = content
		return other
	}
	for i, name := range order {
		_, err := m.verify(pack(t, all, slices.Delete(slices.Clone(order), i, i+1)))
		expect(t, "without "+name, err, name)
		if i > 0 {
			swapped := slices.Clone(order)
			swapped[i-1], swapped[i] = swapped[i], swapped[i-1]
			_, err := m.verify(pack(t, all, swapped))
			expect(t, "with "+name+" before its place", err, fmt.Sprintf("member %d is %q, and should be %s", i, name, order[i-1]))
		}
		if !bytes.Equal(theirs[name], all[name]) {
			_, err = m.verify(pack(t, with(name, theirs[name]), order))
			expect(t, "with another's "+name, err, name+": ")
		}
	}
	for _, name := range []string{"../../etc/passwd", "/etc/passwd", `C:\x`, "README.txt/x", "zz", readmeName} {
		_, err := m.verify(pack(t, with(name, all[readmeName]), append(slices.Clone(order), name)))
		expect(t, "with "+name, err, "the archive: it has more members than a bundle")
		renamed := slices.Clone(order)
		renamed[0] = name
		if name != readmeName {
			_, err = m.verify(pack(t, with(name, all[readmeName]), renamed))
			expect(t, "with a member called "+name, err, "and should be README.txt")
		}
	}
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, name := range order {
		w, err := z.Create(name) // deflated
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(all[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := m.verify(out.Bytes())
	expect(t, "compressed", err, "README.txt: it is not stored as the members of a bundle are")
}

// lie makes a bundle in which one member is another, signed by the installation itself.
func (m *maker) lie(t testing.TB, member string, content []byte) []byte {
	t.Helper()
	all := contents(t, m.write(t))
	all[member] = content
	var hashes [][]byte
	for _, name := range members {
		sum := sha256.Sum256(all[name])
		hashes = append(hashes, sum[:])
	}
	info := m.source(t).Info
	info.Format = format
	statement, err := info.manifest(hashes)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := audit.NewVerifier(m.evidenceKey)
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := seal(t.Context(), statement, envelopeKey{m.evidence, verifier})
	if err != nil {
		t.Fatal(err)
	}
	all[manifestName] = append(envelope, '\n')
	return pack(t, all, order)
}

// What the installation signs and its own log does not bear is found.
func TestLies(t *testing.T) {
	gz := func(text string) []byte {
		var b bytes.Buffer
		if err := zipped(func(w io.Writer) error { _, err := io.WriteString(w, text); return err })(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	whole := func(m *maker) ([]byte, error) { return m.write(t), nil }
	for _, row := range []struct {
		name string
		make func(m *maker) ([]byte, error)
		want string
	}{
		{"nothing", whole, ""},
		{"evidence that the log says something else of", func(m *maker) ([]byte, error) {
			m.leaves["evt_r1"] = leafOf("evt_r1", began, actionRun, "check keys-kept v2 sha256:00", "fails")
			return whole(m)
		}, "evidence.intoto.jsonl.gz: line 2: the log says of the event \"evt_r1\""},
		{"a failure that became a success", func(m *maker) ([]byte, error) {
			seen, _ := m.runs[1].seen()
			m.leaves["evt_r1"] = leafOf("evt_r1", began, actionRun, Resource(seen, m.runs[1].Text), "fails")
			m.runs[1].Text = strings.ReplaceAll(m.runs[1].Text, `"fails"`, `"holds"`)
			return whole(m)
		}, "evidence.intoto.jsonl.gz: line 2: the log says of the event \"evt_r1\""},
		{"the event of a deed of somebody", func(m *maker) ([]byte, error) {
			m.leaves["evt_r0"] = strings.Replace(leafOf("evt_r0", began, actionRun, "x", "holds"), `"system"`, `"staff"`, 1)
			return whole(m)
		}, "the proof of the event \"evt_r0\": the log says something else of the event"},
		{"a change that was not", func(m *maker) ([]byte, error) {
			m.leaves["evt_c0"] = leafOf("evt_c0", began, actionChange, "claim DOOR-1 green", "")
			return whole(m)
		}, "history.jsonl: line 1: the log says of the event \"evt_c0\""},
		{"a change at another time", func(m *maker) ([]byte, error) {
			m.leaves["evt_c0"] = leafOf("evt_c0", began.Add(time.Hour), actionChange, "claim DOOR-1 red", "")
			return whole(m)
		}, "history.jsonl: line 1: the log says of the event \"evt_c0\""},
		{"changes without events", func(m *maker) ([]byte, error) {
			m.changes[0].Event = ""
			return whole(m)
		}, ""},
		{"a claim that does not hold", func(m *maker) ([]byte, error) {
			m.runs = m.runs[:2]
			return whole(m)
		}, "claims.json: \"DOOR-1\" is said to hold, and the newest evidence of \"keys-kept\" does not say so"},
		{"a claim on evidence that has expired", func(m *maker) ([]byte, error) {
			m.runs[0].Text = strings.Replace(m.runs[0].Text, fmt.Sprint(clock.Micros(began.Add(24*time.Hour))), fmt.Sprint(clock.Micros(began.Add(time.Hour))), 1)
			return whole(m)
		}, "claims.json: \"DOOR-1\" is said to hold"},
		{"a claim on an older version of the check", func(m *maker) ([]byte, error) {
			m.checks[1].Version = 3
			return whole(m)
		}, "claims.json: \"DOOR-1\" is said to hold"},
		{"a claim that nothing watches", func(m *maker) ([]byte, error) {
			m.claims[1].State = "green"
			return whole(m)
		}, "claims.json: \"MOON-1\" is said to be green, and no evidence says so"},
		{"a claim in no state", func(m *maker) ([]byte, error) {
			m.claims[1].State = "blue"
			return whole(m)
		}, "claims.json: \"MOON-1\" is in no state that there is"},
		{"a failure that is shown as a part that is not there", func(m *maker) ([]byte, error) {
			m.runs, m.claims[0].State = m.runs[:2], "grey"
			return whole(m)
		}, "claims.json: \"DOOR-1\" is said to be grey, and by the newest evidence of \"keys-kept\" it does not hold"},
		{"a failure that is shown as a doubt", func(m *maker) ([]byte, error) {
			m.runs, m.claims[0].State = m.runs[:2], "amber"
			return whole(m)
		}, "claims.json: \"DOOR-1\" is said to be amber, and by the newest evidence of \"keys-kept\" it does not hold"},
		{"a claim that holds and is said not to", func(m *maker) ([]byte, error) {
			m.claims[0].State = "red"
			return whole(m)
		}, "claims.json: \"DOOR-1\" is said to be red, and by the evidence it is green"},
		{"a claim twice", func(m *maker) ([]byte, error) {
			m.claims = append(m.claims, m.claims[0])
			return whole(m)
		}, "claims.json: \"DOOR-1\" is there twice"},
		{"a state twice, one for each reader", func(m *maker) ([]byte, error) {
			b := contents(t, m.write(t))[claimsName]
			return m.lie(t, claimsName, bytes.Replace(b, []byte(`"state": "green"`), []byte(`"State": "red", "state": "green"`), 1)), nil
		}, "claims.json: it can be read in more than one way"},
		{"a change twice in one line", func(m *maker) ([]byte, error) {
			b := contents(t, m.write(t))[historyName]
			return m.lie(t, historyName, bytes.Replace(b, []byte(`{"claim":`), []byte(`{"Claim":"MOON-1","claim":`), 1)), nil
		}, "history.jsonl: line 1: it can be read in more than one way"},
		{"tools that are told something else", func(m *maker) ([]byte, error) {
			b := contents(t, m.write(t))[oscalName]
			return m.lie(t, oscalName, bytes.Replace(b, []byte(`"not-satisfied"`), []byte(`"satisfied"`), 1)), nil
		}, "oscal-assessment-results.json: it is not what the claims and the evidence make"},
		{"evidence that was dated back", func(m *maker) ([]byte, error) {
			seen, _ := m.runs[0].seen()
			m.leaves["evt_r0"] = leafOf("evt_r0", began.AddDate(0, 3, 0), actionRun, Resource(seen, m.runs[0].Text), "holds")
			return whole(m)
		}, "evidence.intoto.jsonl.gz: line 1: the log has the event \"evt_r0\" at 2026-04-02T03:04:05Z, and what was seen is dated 2026-01-02T03:04:05Z"},
		{"a run that is counted twice", func(m *maker) ([]byte, error) {
			m.runs = append(m.runs, m.runs[2])
			return whole(m)
		}, "evidence.intoto.jsonl.gz: line 4: it is a second run of \"keys-kept\" at the same time"},
		{"runs in another order", func(m *maker) ([]byte, error) {
			m.runs[0], m.runs[1] = m.runs[1], m.runs[0]
			return whole(m)
		}, "evidence.intoto.jsonl.gz: line 2: it is older than the line before"},
		{"changes in another order", func(m *maker) ([]byte, error) {
			m.changes[0], m.changes[1] = m.changes[1], m.changes[0]
			return whole(m)
		}, "history.jsonl: line 2: it is older than the line before"},
		{"a log of somebody else", func(m *maker) ([]byte, error) {
			m.log, _ = key(t, origin)
			return whole(m)
		}, "checkpoints.jsonl: line 1: no key of the log has signed the checkpoint"},
		{"the key of a log of another installation", func(m *maker) ([]byte, error) {
			m.log, m.logKey = key(t, "strongroom/dev/ins_other")
			return whole(m)
		}, "is not a key of the installation's log"},
		{"another installation's key", func(m *maker) ([]byte, error) {
			m.evidence, m.evidenceKey = key(t, "strongroom/dev/ins_other/evidence")
			return whole(m)
		}, "manifest.json: it is signed with the key of another installation"},
		{"another key", func(m *maker) ([]byte, error) {
			_, other := key(t, origin+"/evidence")
			pem, err := keyPEM(other)
			return m.lie(t, keyName, pem), err
		}, "evidence-key.pem: it is another key"},
		{"no proofs", func(m *maker) ([]byte, error) { return m.lie(t, eventsName, gz("")), nil }, "events.jsonl.gz: the proof of the event \"evt_r0\" is missing"},
		{"no runs", func(m *maker) ([]byte, error) { return m.lie(t, runsName, gz("")), nil }, "events.jsonl.gz: line 1: it is about the event \"evt_r0\", and should be about \"evt_c0\""},
		{"no changes", func(m *maker) ([]byte, error) { return m.lie(t, historyName, nil), nil }, "events.jsonl.gz: line 4: nothing in the bundle cites the event"},
		{"no checkpoints", func(m *maker) ([]byte, error) { return m.lie(t, checkpointsName, nil), nil }, "checkpoints.jsonl: there is no checkpoint in it"},
		{"a checkpoint that continues nothing", func(m *maker) ([]byte, error) {
			lines := strings.SplitAfter(string(contents(t, m.write(t))[checkpointsName]), "\n")
			return m.lie(t, checkpointsName, []byte(lines[1])), nil
		}, "checkpoints.jsonl: line 1: the first checkpoint has none before it"},
		{"a checkpoint twice", func(m *maker) ([]byte, error) {
			lines := strings.SplitAfter(string(contents(t, m.write(t))[checkpointsName]), "\n")
			return m.lie(t, checkpointsName, []byte(lines[0]+lines[0])), nil
		}, "checkpoints.jsonl: line 2: the log of 1 events does not continue that of 1"},
		{"a run that is not signed", func(m *maker) ([]byte, error) {
			return m.lie(t, runsName, gz(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"","sig":"AAAA"}]}`)), nil
		}, "evidence.intoto.jsonl.gz: line 1: its signature does not hold"},
		{"the manifest in the place of a run", func(m *maker) ([]byte, error) {
			return m.lie(t, runsName, gz(string(contents(t, m.write(t))[manifestName]))), nil
		}, "evidence.intoto.jsonl.gz: line 1: it is not the statement of a check's run"},
		{"a bomb", func(m *maker) ([]byte, error) {
			return m.lie(t, runsName, gz(strings.Repeat(" ", 100<<10)+strings.Repeat("\n", 20<<20))), nil
		},
			"evidence.intoto.jsonl.gz: line 1: it is not a DSSE envelope"},
		{"a bomb of one line", func(m *maker) ([]byte, error) { return m.lie(t, eventsName, gz(strings.Repeat(" ", 20<<20))), nil },
			"events.jsonl.gz: line 1 is longer than"},
		{"what cannot be unpacked", func(m *maker) ([]byte, error) { return m.lie(t, eventsName, []byte("no")), nil }, "events.jsonl.gz: it cannot be unpacked"},
	} {
		m := newMaker(t)
		b, err := row.make(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.verify(b)
		expect(t, row.name, err, row.want)
	}
}

// A member that grows without end costs no more than its bound.
func TestBomb(t *testing.T) {
	r := &bounded{r: zeros{}, left: 1 << 20}
	n, err := io.Copy(io.Discard, r)
	if !errors.Is(err, errGrows) || n > 1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// An archive of members without number costs no more than the directory of a bundle.
func TestManyMembers(t *testing.T) {
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for n := range 30_000 {
		if _, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("member-%d", n), Method: zip.Store}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	r := &counting{r: bytes.NewReader(out.Bytes())}
	_, err := Verify(t.Context(), r, int64(out.Len()), Options{})
	expect(t, "many members", err, "the archive: it is not a whole ZIP archive")
	if r.n > maxDirectory {
		t.Errorf("%d bytes were read", r.n)
	}
}

type counting struct {
	r io.ReaderAt
	n int
}

func (c *counting) ReadAt(p []byte, at int64) (int, error) {
	c.n += len(p)
	return c.r.ReadAt(p, at)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Whatever was seen, the bundle of it holds, is the same each time, and does not when a byte of it is another.
func TestBundles(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		m := newMaker(t)
		m.runs, m.changes = nil, nil
		newest := make(map[string]check.Outcome) // of the version that counts
		for range rapid.IntRange(0, 12).Draw(r, "runs") {
			o := check.Observation{Outcome: rapid.SampledFrom([]check.Outcome{check.Holds, check.Fails, check.Unknown}).Draw(r, "outcome"),
				Detail: rapid.String().Draw(r, "detail"), Exercised: rapid.String().Draw(r, "exercised")}
			if rapid.Bool().Draw(r, "with figures") {
				o = o.With(rapid.String().Draw(r, "figure"), rapid.Float64Range(-1e9, 1e9).Draw(r, "value"))
			}
			name, version := rapid.SampledFrom([]string{"doors-shut", "keys-kept", "x"}).Draw(r, "check"), rapid.IntRange(0, 3).Draw(r, "version")
			m.run(name, version, o)
			if newest[name] = o.Outcome; version != map[string]int{"doors-shut": 1, "keys-kept": 2}[name] {
				delete(newest, name)
			}
		}
		switch doors, keys := newest["doors-shut"], newest["keys-kept"]; {
		case doors == check.Fails || keys == check.Fails:
			m.claims[0].State = "red"
		case doors == check.Holds && keys == check.Holds:
			m.claims[0].State = "green"
		default:
			m.claims[0].State = "amber"
		}
		for range rapid.IntRange(0, 5).Draw(r, "changes") {
			m.change(rapid.SampledFrom([]string{"DOOR-1", "GONE-1"}).Draw(r, "claim"), rapid.SampledFrom([]string{"green", "amber", "red", "grey"}).Draw(r, "state"))
		}
		b := m.write(t)
		if _, err := m.verify(b); err != nil {
			r.Fatal(err)
		}
		if !bytes.Equal(m.write(t), b) {
			r.Fatal("the same source gave other bytes")
		}
		b[rapid.IntRange(0, len(b)-1).Draw(r, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
		if _, err := m.verify(b); !errors.Is(err, ErrBundle) {
			r.Fatalf("a byte was changed: %v", err)
		}
	})
}

// The OSCAL document is one by the schema of NIST.
func TestOSCAL(t *testing.T) {
	empty := newMaker(t)
	empty.runs, empty.changes, empty.claims = nil, nil, empty.claims[1:]
	for _, m := range []*maker{newMaker(t), empty} {
		document := contents(t, m.write(t))[oscalName]
		v, err := validation.NewValidator(document)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Validate(); err != nil {
			result, _ := v.GetValidationResult()
			t.Errorf("%v: %+v\n%s", err, result, document)
		}
	}
	var d map[string]any
	if err := json.Unmarshal(contents(t, newMaker(t).write(t))[oscalName], &d); err != nil {
		t.Fatal(err)
	}
	delete(d["assessment-results"].(map[string]any), "import-ap")
	v, err := validation.NewValidator(d)
	if err != nil {
		t.Fatal(err)
	}
	if v.Validate() == nil {
		t.Error("the schema takes a document that is not whole")
	}
}

// The statements are what the library of in-toto says a test's result is.
func TestStatements(t *testing.T) {
	m := newMaker(t)
	for i, want := range []string{"PASSED", "FAILED", "PASSED"} {
		statement, _, err := m.runs[i].statement()
		if err != nil {
			t.Fatal(err)
		}
		text, err := protojson.Marshal(statement.Predicate)
		if err != nil {
			t.Fatal(err)
		}
		result := new(testresult.TestResult)
		if err := protojson.Unmarshal(text, result); err != nil {
			t.Fatal(err)
		}
		if err := statement.Validate(); err != nil || result.Result != want {
			t.Errorf("%v: %v", result, err)
		}
	}
}

// What the README in the archive says works, with openssl, jq and sha256sum alone.
func TestReadme(t *testing.T) {
	for _, tool := range []string{"bash", "openssl", "jq", "sha256sum", "gunzip", "base64"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not here: scripts/test installs it", tool)
		}
	}
	m := newMaker(t)
	dir := t.TempDir()
	unpack := func() {
		for name, content := range contents(t, m.write(t)) {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, script, _ := strings.Cut(string(readme), "# begin\n")
	script, _, ok := strings.Cut(script, "# end\n")
	if !ok {
		t.Fatal("the README has no commands")
	}
	run := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	unpack()
	out, err := run()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	fingerprint, err := Fingerprint(m.evidenceKey)
	if err != nil {
		t.Fatal(err)
	}
	digest := strings.TrimPrefix(Digest(m.runs[0].Text), "sha256:")
	for _, want := range []string{strings.TrimPrefix(fingerprint, "SHA256:"), "claims.json: OK", "evidence.intoto.jsonl.gz: OK", digest + "  -", "check doors-shut v1 sha256:" + digest} {
		if !strings.Contains(out, want) {
			t.Errorf("the commands do not say %q:\n%s", want, out)
		}
	}
	if strings.Count(out, "Signature Verified Successfully") != 2 {
		t.Errorf("openssl has not verified two envelopes:\n%s", out)
	}
	if err := os.WriteFile(filepath.Join(dir, claimsName), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(); err == nil || !strings.Contains(out, "claims.json: FAILED") {
		t.Errorf("a file was changed: %v\n%s", err, out)
	}
	unpack()
	manifest, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		t.Fatal(err)
	}
	manifest = bytes.Replace(manifest, []byte(`"payload":"eyJ`), []byte(`"payload":"eyK`), 1)
	if err := os.WriteFile(filepath.Join(dir, manifestName), manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(); err == nil || !strings.Contains(out, "Signature Verification Failure") {
		t.Errorf("the manifest was changed: %v\n%s", err, out)
	}
}
