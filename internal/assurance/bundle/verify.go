package bundle

import (
	"archive/zip"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	intoto "github.com/in-toto/attestation/go/v1"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/check"
)

// What is read of a bundle has these limits, so that one that was made to harm costs little.
const (
	maxManifest = 1 << 20
	maxDocument = 16 << 20 // claims.json
	maxOSCAL    = 64 << 20
	maxLine     = 1 << 20
	maxChecks   = 10_000
	// maxDirectory is what is read of the archive to find its members, in bytes; it takes about a thousand.
	maxDirectory = 1 << 20
	// maxRatio bounds how much a compressed member may grow; those that Strongroom writes grow about tenfold.
	maxRatio = 200
)

// slack is how far apart what happened and its event may be: the event is recorded when the check has run, or the state
// was found to be another.
const slack = 10 * time.Minute

// The actions of the trail that are cited. Package assurance records them.
const (
	actionRun    = "assurance.check.run"
	actionChange = "assurance.claim.state"
)

// Options say what the caller knows from elsewhere.
type Options struct {
	// Keys are the verifier keys that the caller trusts: of the installation's evidence, and if they like of its log.
	// Without one of its evidence, the key is the one that the bundle names itself.
	Keys      []string
	Witnesses []note.Verifier // whose cosignatures are looked for under the last checkpoint
	Quorum    int             // how many of them must be there
}

// Report says what a bundle that holds is about.
type Report struct {
	Info
	Trusted     bool             `json:"trusted"` // the key is one that the caller gave
	Fingerprint string           `json:"fingerprint"`
	Claims      map[string]int   `json:"claims"` // how many are in each state at the end of the period
	Checks      int              `json:"checks"` // that were run
	Runs        map[string]int64 `json:"runs"`   // by what they found
	Changes     int64            `json:"changes"`
	Unlinked    int64            `json:"unlinked,omitempty"` // of Changes, those without an event: they stand on the signature alone
	Checkpoints int              `json:"checkpoints"`
	LogSize     int64            `json:"log_size"` // at the last checkpoint
	Witnesses   []string         `json:"witnesses,omitempty"`
}

// Verify reads a bundle of size bytes and checks everything in it: that each byte is one that the installation has
// signed; that each run of a check is signed and is what the audit log has an event of; that each change of a claim's
// state is one too; that the checkpoints are signed and continue each other; and that the claims which are said to
// hold do so by the evidence. It needs no network. It fails with ErrBundle, which names the first thing that does
// not fit.
func Verify(ctx context.Context, r io.ReaderAt, size int64, o Options) (Report, error) {
	v := &verifier{Options: o, ctx: ctx, r: r, size: size, sums: newSums(), report: Report{Claims: make(map[string]int), Runs: make(map[string]int64)}}
	for _, step := range []func() error{v.openArchive, v.openManifest, v.compare, v.checkKey, v.checkChain, v.checkRuns, v.checkHistory, v.checkClaims} {
		if err := ctx.Err(); err != nil {
			return Report{}, err
		}
		if err := step(); err != nil {
			return Report{}, err
		}
	}
	v.report.Checks = len(v.sums)
	return v.report, nil
}

type verifier struct {
	Options
	ctx    context.Context
	r      io.ReaderAt
	size   int64
	report Report

	sections map[string]*io.SectionReader
	manifest *intoto.Statement
	hashes   []string
	key      envelopeKey
	log      []string // the keys of the log that are believed
	last     audit.Link
	tree     tlog.Tree // of last
	events   *lines
	sums     sums
}

// openArchive finds the members; nothing of the archive's names or sizes is used for anything else.
func (v *verifier) openArchive() error {
	z, err := zip.NewReader(&frugal{v.r, maxDirectory}, v.size)
	if err != nil {
		return wrong("the archive", "it is not a whole ZIP archive")
	}
	all := append(slices.Clone(members), manifestName)
	v.sections = make(map[string]*io.SectionReader)
	for i, f := range z.File {
		if i >= len(all) {
			return wrong("the archive", "it has more members than a bundle, the first of them %.80q", f.Name)
		}
		if f.Name != all[i] {
			return wrong("the archive", "member %d is %.80q, and should be %s", i+1, f.Name, all[i])
		}
		at, err := f.DataOffset()
		if f.Method != zip.Store || f.CompressedSize64 != f.UncompressedSize64 || err != nil || at > v.size || f.CompressedSize64 > uint64(v.size-at) {
			return wrong(f.Name, "it is not stored as the members of a bundle are")
		}
		v.sections[f.Name] = io.NewSectionReader(v.r, at, int64(f.CompressedSize64))
	}
	if len(z.File) < len(all) {
		return wrong(all[len(z.File)], "it is not there")
	}
	return nil
}

// frugal is a reader of which no more than left bytes are read.
type frugal struct {
	r    io.ReaderAt
	left int64
}

func (f *frugal) ReadAt(p []byte, at int64) (int, error) {
	if f.left -= int64(len(p)); f.left < 0 {
		return 0, errGrows
	}
	return f.r.ReadAt(p, at)
}

// read returns a member whole.
func (v *verifier) read(name string, limit int64) ([]byte, error) {
	s := v.sections[name]
	if s.Size() > limit {
		return nil, wrong(name, "it is longer than %d bytes", limit)
	}
	b := make([]byte, s.Size())
	if _, err := s.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// openManifest checks the signature of the manifest, by a key that is trusted or by the one that it names itself.
func (v *verifier) openManifest() error {
	b, err := v.read(manifestName, maxManifest)
	if err != nil {
		return err
	}
	line, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok {
		return wrong(manifestName, "it is not a DSSE envelope")
	}
	var evidence, log []string
	for _, key := range v.Keys {
		name, _, _ := strings.Cut(key, "+")
		if strings.HasSuffix(name, evidenceSuffix) {
			evidence = append(evidence, key)
		} else {
			log = append(log, key)
		}
	}
	if v.report.Trusted = len(evidence) > 0; !v.report.Trusted {
		named, err := namedKey(line)
		if err != nil {
			return wrong(manifestName, "%v", err)
		}
		evidence = []string{named}
	}
	why := error(nil)
	for _, key := range evidence {
		if _, err := keyBytes(key); err != nil {
			return wrong(manifestName, "the key of the evidence is %v", err)
		}
		if v.key.verify, err = audit.NewVerifier(key); err != nil {
			return wrong(manifestName, "the key of the evidence is %v", err)
		}
		var hashes []string
		if v.manifest, err = open(v.ctx, line, v.key); err == nil {
			v.report.Info, hashes, err = infoOf(v.manifest)
		}
		if err == nil && v.report.EvidenceKey != key {
			err = errors.New("it names another key than the one that has signed it")
		}
		if err == nil {
			v.hashes, why = hashes, nil
			break
		}
		if why == nil {
			why = err
		}
	}
	if why != nil {
		return wrong(manifestName, "%v", why)
	}
	i := v.report.Info
	origin := "strongroom/" + i.Environment + "/" + i.Installation
	if v.key.verify.Name() != origin+evidenceSuffix {
		return wrong(manifestName, "it is signed with the key of another installation, %.120q", v.key.verify.Name())
	}
	for _, key := range i.LogKeys {
		verifier, err := audit.NewVerifier(key)
		if err != nil || verifier.Name() != origin {
			return wrong(manifestName, "%.120q is not a key of the installation's log", key)
		}
		if len(log) == 0 || slices.Contains(log, key) {
			v.log = append(v.log, key)
		}
	}
	if len(v.log) == 0 {
		return wrong(manifestName, "none of the keys that are trusted is one of the log's")
	}
	v.report.Fingerprint, err = Fingerprint(i.EvidenceKey)
	return err
}

const evidenceSuffix = "/evidence"

// namedKey returns the key of the evidence that a manifest names, which nothing vouches for.
func namedKey(line []byte) (string, error) {
	var envelope dsse.Envelope
	if err := json.Unmarshal(line, &envelope); err != nil {
		return "", errors.New("it is not a DSSE envelope")
	}
	payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
	if err != nil {
		return "", errors.New("it is not a DSSE envelope")
	}
	s := new(intoto.Statement)
	if err := protojson.Unmarshal(payload, s); err != nil {
		return "", errors.New("it is not an in-toto statement")
	}
	i, _, err := infoOf(s)
	return i.EvidenceKey, err
}

// compare writes the archive anew from its members, and holds it against the bytes that are there: so each byte is
// one that is signed, or one that follows from those.
func (v *verifier) compare() error {
	same := &comparer{r: v.r, size: v.size}
	a := &archive{zip: zip.NewWriter(same), modified: v.report.To}
	misplaced := wrong("the archive", "there are bytes in it that are not its members'")
	for i, name := range append(slices.Clone(members), manifestName) {
		err := a.add(name, func(w io.Writer) error {
			_, err := io.Copy(w, v.sections[name])
			return err
		})
		switch {
		case errors.Is(err, errDiffers):
			return misplaced
		case err != nil:
			return err
		case i < len(members) && hex.EncodeToString(a.hashes[i]) != v.hashes[i]:
			return wrong(name, "it does not have the SHA-256 that the manifest says")
		}
	}
	err := a.zip.Close()
	if errors.Is(err, errDiffers) || err == nil && same.at != v.size {
		return misplaced
	}
	return err
}

var errDiffers = errors.New("the bytes differ")

// comparer takes what is written only as long as it is what is there.
type comparer struct {
	r        io.ReaderAt
	at, size int64
	buffer   []byte
}

func (c *comparer) Write(b []byte) (int, error) {
	if int64(len(b)) > c.size-c.at {
		return 0, errDiffers
	}
	c.buffer = slices.Grow(c.buffer[:0], len(b))[:len(b)]
	if _, err := c.r.ReadAt(c.buffer, c.at); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if !bytes.Equal(b, c.buffer) {
		return 0, errDiffers
	}
	c.at += int64(len(b))
	return len(b), nil
}

func (v *verifier) checkKey() error {
	want, err := keyPEM(v.report.EvidenceKey)
	if err != nil {
		return err
	}
	got, err := v.read(keyName, maxManifest)
	if err == nil && !bytes.Equal(got, want) {
		err = wrong(keyName, "it is another key than the one that has signed the manifest")
	}
	return err
}

// checkChain checks the checkpoints, and that each continues the one before.
func (v *verifier) checkChain() error {
	var known []note.Verifier
	for _, key := range v.log {
		one, err := audit.NewVerifier(key)
		if err != nil {
			return err
		}
		known = append(known, one)
	}
	list := v.lines(checkpointsName, false)
	for {
		line, err := list.next()
		if err != nil {
			return err
		}
		if line == nil {
			break
		}
		var link audit.Link
		if err := json.Unmarshal(line, &link); err != nil {
			return list.wrong("it is not a checkpoint")
		}
		tree, err := audit.OpenCheckpoint(link.Checkpoint, note.VerifierList(known...))
		if err != nil {
			return list.wrong("no key of the log has signed the checkpoint")
		}
		switch {
		case list.n == 1 && len(link.Consistency) > 0:
			return list.wrong("the first checkpoint has none before it that it could continue")
		case list.n > 1 && (tree.N <= v.tree.N || tlog.CheckTree(link.Consistency, tree.N, tree.Hash, v.tree.N, v.tree.Hash) != nil):
			return list.wrong("the log of %d events does not continue that of %d", tree.N, v.tree.N)
		}
		v.last, v.tree = link, tree
	}
	if list.n == 0 {
		return wrong(checkpointsName, "there is no checkpoint in it")
	}
	v.report.Checkpoints, v.report.LogSize = list.n, v.tree.N
	var err error
	if v.report.Witnesses, err = (audit.Proof{Checkpoint: v.last.Checkpoint}).Witnessed(v.Witnesses); err != nil {
		return list.wrong("its cosignatures cannot be read")
	}
	if len(v.report.Witnesses) < v.Quorum {
		return list.wrong("%d of the %d witnesses have cosigned the last checkpoint, and %d are asked for", len(v.report.Witnesses), len(v.Options.Witnesses), v.Quorum)
	}
	return nil
}

// proved returns what the log says of the next event, which must be the one named.
func (v *verifier) proved(event string) (p audit.Proved, err error) {
	line, err := v.events.next()
	if err != nil {
		return p, err
	}
	if line == nil {
		return p, wrong(eventsName, "the proof of the event %.80q is missing", event)
	}
	var cited citedEvent
	if err := json.Unmarshal(line, &cited); err != nil {
		return p, v.events.wrong("it is not an event with its proof")
	}
	if cited.Event != event {
		return p, v.events.wrong("it is about the event %.80q, and should be about %.80q", cited.Event, event)
	}
	proof, err := audit.ParseProof([]byte(cited.Proof))
	switch {
	case err != nil:
	case proof.Checkpoint != v.last.Checkpoint:
		err = errors.New("it is not against the last checkpoint")
	case !slices.Contains(v.log, proof.Key):
		err = errors.New("it names another key of the log")
	default:
		p, err = proof.CheckIn(v.tree)
	}
	if err == nil && (p.ID != event || p.Outcome != audit.Granted || p.Actor.Kind != actor.System) {
		err = errors.New("the log says something else of the event")
	}
	if err != nil {
		return p, v.events.wrong("the proof of the event %.80q: %v", event, err)
	}
	return p, nil
}

// checkRuns checks each run's signature, and that the log has an event with its digest.
func (v *verifier) checkRuns() error {
	v.events = v.lines(eventsName, true)
	runs := v.lines(runsName, true)
	var before time.Time
	for {
		line, err := runs.next()
		if err != nil {
			return err
		}
		if line == nil {
			return nil
		}
		statement, err := open(v.ctx, line, v.key)
		if err != nil {
			return runs.wrong("%v", err)
		}
		r, seen, err := runOf(statement)
		switch {
		case err != nil:
			return runs.wrong("%v", err)
		case seen.ObservedAt.Before(before):
			return runs.wrong("it is older than the line before")
		case !seen.ObservedAt.Before(v.report.To):
			return runs.wrong("it is from after the period")
		case v.sums[seen.Check] != nil && !seen.ObservedAt.After(v.sums[seen.Check].newest.ObservedAt):
			return runs.wrong("it is a second run of %.80q at the same time", seen.Check)
		case len(v.sums) >= maxChecks:
			return runs.wrong("there are more than %d checks", maxChecks)
		}
		before = seen.ObservedAt
		p, err := v.proved(r.Event)
		if err != nil {
			return err
		}
		if p.Action != actionRun || p.Resource != Resource(seen, r.Text) || p.Reason != string(seen.Outcome) {
			return runs.wrong("the log says of the event %.80q that it was %.200q, %.80q, and the evidence is %.200q, %q",
				r.Event, p.Resource, p.Reason, Resource(seen, r.Text), seen.Outcome)
		}
		if after := p.Time.Sub(seen.ObservedAt); after < -slack || after > r.Took+slack {
			return runs.wrong("the log has the event %.80q at %s, and what was seen is dated %s",
				r.Event, p.Time.UTC().Format(time.RFC3339), seen.ObservedAt.UTC().Format(time.RFC3339))
		}
		v.sums.add(seen)
		v.report.Runs[string(seen.Outcome)]++
	}
}

// checkHistory checks that each change of a claim's state is an event of the log.
func (v *verifier) checkHistory() error {
	history := v.lines(historyName, false)
	var before time.Time
	for {
		line, err := history.next()
		if err != nil {
			return err
		}
		if line == nil {
			break
		}
		var c Change
		if err := json.Unmarshal(line, &c); err != nil || !isState(c.State) {
			return history.wrong("it is not a change of a claim's state")
		}
		if again, err := json.Marshal(c); err != nil || !bytes.Equal(again, line) {
			return history.wrong("it can be read in more than one way")
		}
		if c.Since.Before(before) {
			return history.wrong("it is older than the line before")
		}
		if !c.Since.Before(v.report.To) {
			return history.wrong("it is from after the period")
		}
		before = c.Since
		v.report.Changes++
		if c.Event == "" {
			v.report.Unlinked++
			continue
		}
		p, err := v.proved(c.Event)
		if err != nil {
			return err
		}
		if apart := p.Time.Sub(c.Since); p.Action != actionChange || p.Resource != "claim "+c.Claim+" "+c.State || apart.Abs() > slack {
			return history.wrong("the log says of the event %.80q that it was %.200q at %s, and not that %.80q became %s at %s", c.Event, p.Resource,
				p.Time.UTC().Format(time.RFC3339), c.Claim, c.State, c.Since.UTC().Format(time.RFC3339))
		}
	}
	if line, err := v.events.next(); err != nil {
		return err
	} else if line != nil {
		return v.events.wrong("nothing in the bundle cites the event")
	}
	return nil
}

func isState(s string) bool { return slices.Contains([]string{"green", "amber", "red", "grey"}, s) }

// checkClaims checks that each claim is in the state that the evidence makes of it, and that the document for tools says
// the same.
func (v *verifier) checkClaims() error {
	b, err := v.read(claimsName, maxDocument)
	if err != nil {
		return err
	}
	var c Catalogue
	if err := json.Unmarshal(b, &c); err != nil {
		return wrong(claimsName, "it is not a list of claims and checks")
	}
	if err := same(b, c); err != nil {
		return wrong(claimsName, "%v", err)
	}
	versions := make(map[string]int)
	for _, k := range c.Checks {
		if _, twice := versions[k.ID]; twice {
			return wrong(claimsName, "the check %.80q is there twice", k.ID)
		}
		versions[k.ID] = k.Version
	}
	seen := make(map[string]bool)
	for _, claim := range c.Claims {
		if !isState(claim.State) {
			return wrong(claimsName, "%.80q is in no state that there is", claim.ID)
		}
		if seen[claim.ID] {
			return wrong(claimsName, "%.80q is there twice", claim.ID)
		}
		seen[claim.ID] = true
		v.report.Claims[claim.State]++
		if err := v.checkState(claim, versions); err != nil {
			return err
		}
	}
	if b, err = v.read(oscalName, maxOSCAL); err != nil {
		return err
	}
	if err := same(b, assessment(v.report.Info, c, v.sums)); err != nil {
		return wrong(oscalName, "it is not what the claims and the evidence make")
	}
	return nil
}

// checkState holds a claim's state against the newest evidence of its checks; see assurance.State.
func (v *verifier) checkState(claim Claim, versions map[string]int) error {
	state, why := "green", ""
	for _, control := range claim.Controls {
		for _, name := range control.Checks {
			one := v.sums[name]
			version, known := versions[name]
			switch {
			case one == nil || !known || one.newest.Version != version || !one.newest.ValidUntil.After(v.report.To):
			case one.newest.Outcome == check.Fails:
				state, why = "red", name
				continue
			case one.newest.Outcome == check.Holds:
				if why == "" {
					why = name
				}
				continue
			}
			if state != "red" {
				state, why = "amber", name
			}
		}
	}
	switch {
	case why == "" && claim.State != "amber" && claim.State != "grey": // no check watches it
		return wrong(claimsName, "%.80q is said to be %s, and no evidence says so", claim.ID, claim.State)
	case why == "" || claim.State == state:
		return nil
	case claim.State == "green":
		return wrong(claimsName, "%.80q is said to hold, and the newest evidence of %.80q does not say so", claim.ID, why)
	case state == "red":
		return wrong(claimsName, "%.80q is said to be %s, and by the newest evidence of %.80q it does not hold", claim.ID, claim.State, why)
	}
	return wrong(claimsName, "%.80q is said to be %s, and by the evidence it is %s", claim.ID, claim.State, state)
}

// same fails unless b is v as a bundle writes it: of a document with a name twice, or in other letters, each program
// may read something else.
func same(b []byte, v any) error {
	var again bytes.Buffer
	if err := document(&again, v); err != nil {
		return err
	}
	if !bytes.Equal(again.Bytes(), b) {
		return errors.New("it can be read in more than one way")
	}
	return nil
}

// lines reads a member line by line.
type lines struct {
	name string
	n    int // of the line that was read last, from 1
	scan *bufio.Scanner
	err  error
}

func (v *verifier) lines(name string, zipped bool) *lines {
	s := v.sections[name]
	l := &lines{name: name}
	if _, err := s.Seek(0, io.SeekStart); err != nil {
		l.err = err
		return l
	}
	var r io.Reader = s
	if zipped {
		z, err := gzip.NewReader(bufio.NewReader(s))
		if err != nil {
			l.err = wrong(name, "it cannot be unpacked")
			return l
		}
		r = &bounded{r: z, left: 1<<20 + maxRatio*s.Size()}
	}
	l.scan = bufio.NewScanner(r)
	l.scan.Buffer(make([]byte, 0, 64<<10), maxLine)
	return l
}

// next returns the next line, or nil after the last.
func (l *lines) next() ([]byte, error) {
	if l.err != nil {
		return nil, l.err
	}
	if l.scan.Scan() {
		l.n++
		return l.scan.Bytes(), nil
	}
	switch err := l.scan.Err(); {
	case err == nil:
	case errors.Is(err, errGrows):
		l.err = wrong(l.name, "it grows more than %d times when it is unpacked", maxRatio)
	case errors.Is(err, bufio.ErrTooLong):
		l.err = wrong(l.name, "line %d is longer than %d bytes", l.n+1, maxLine)
	default:
		l.err = wrong(l.name, "it cannot be unpacked")
	}
	return nil, l.err
}

// wrong is ErrBundle about the line that was read last.
func (l *lines) wrong(why string, args ...any) error {
	return wrong(l.name, "line %d: "+why, append([]any{l.n}, args...)...)
}

var errGrows = errors.New("it grows too much")

// bounded is a reader that fails when it has given more than left bytes.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errGrows
	}
	return n, err
}
