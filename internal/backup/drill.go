package backup

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	testresult "github.com/in-toto/attestation/go/predicates/test_result/v0"
	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

// ActionDrill is recorded for every restore for practice. The resource is the drill and its snapshot.
const ActionDrill = "backup.restore.drill"

// Types of a certificate: an in-toto statement in a DSSE envelope, with the predicate of a test's result.
const (
	PayloadType   = "application/vnd.in-toto+json"
	PredicateType = "https://in-toto.io/attestation/test-result/v0.1"
)

// The checks of a drill.
const (
	CheckRows  = "rows-and-hashes" // every table has the rows, and the hash over them, that were copied
	CheckTree  = "audit-tree-root" // the trail's tree has the size and the root that were copied
	CheckTrail = "audit-trail"     // the whole trail verifies
	CheckOpen  = "decrypt-sample"  // customers' records open with the restored keys
)

// Drill is one restore for practice.
type Drill struct {
	ID          string        `json:"id"`
	Started     time.Time     `json:"started"`
	Took        time.Duration `json:"took_ns"`
	Snapshot    string        `json:"snapshot"`
	From        string        `json:"from"` // engine that was copied
	Into        string        `json:"into"` // engine that was restored into
	RTO         time.Duration `json:"rto_ns"`
	RPO         time.Duration `json:"rpo_ns"`
	Tables      int           `json:"tables"`
	Rows        int64         `json:"rows"`
	Events      int64         `json:"events"`  // of the trail, verified
	Sampled     int           `json:"sampled"` // customers whose records were opened
	Passed      []string      `json:"passed"`
	Failed      []string      `json:"failed,omitempty"` // check and reason
	Certificate string        `json:"certificate"`      // DSSE envelope, JSON
	Event       string        `json:"event"`            // of the trail
}

// resource is what the event of a drill is about.
func (d *Drill) resource() string { return "drill " + d.ID + " of " + d.Snapshot }

// Probed is what was found in a restored database.
type Probed struct {
	Events   int64    // of the trail
	Findings []string // of its verification
	Sampled  int      // customers whose records opened
	Broken   []string // those whose did not: reasons without personal data
}

// Scratch is a place for a drill: an empty database, and what takes it away.
type Scratch struct {
	Options db.Options
	Drop    func(ctx context.Context) error
	// Probe opens the restored database with the installation's keys, brings it to where it could serve,
	// calls served, and then looks at the trail and at a sample of customers.
	Probe func(ctx context.Context, served func()) (Probed, error)
}

// Drill restores the newest snapshot into a scratch database, checks it, measures how long that took (the
// recovery time objective that can be kept) and how old the snapshot was (the recovery point), signs a
// certificate of it, and takes the database away. A drill that fails is a finding; Drill then returns it
// with the problem "drill-failed".
func (b *Backup) Drill(ctx context.Context, by actor.Actor, scratch Scratch, progress Progress) (d Drill, err error) {
	defer func() {
		err = errors.Join(err, scratch.Drop(context.WithoutCancel(ctx)))
	}()
	e := audit.Event{Action: ActionDrill, Resource: "drill"}
	if by.Kind != actor.System {
		return d, b.o.Trail.Deny(ctx, by, e, errForbidden)
	}
	if len(b.o.Repositories) == 0 {
		return d, errNotConfigured
	}
	began := b.o.Clock.Now()
	clocked := time.Now()
	d = Drill{ID: id.New("drl"), Started: began, Into: "sqlite"}
	if scratch.Options.URL != "" {
		d.Into = "postgresql"
	}
	var manifest *Manifest
	digest := "0"
	failed := func(check string, why any) { d.Failed = append(d.Failed, fmt.Sprintf("%s: %v", check, why)) }
	parts, err := b.current(ctx, by, "")
	switch {
	case problem.Is(err, "backup-not-found"):
		return d, err
	case err != nil:
		failed(CheckRows, err)
	default:
		manifest = parts[0].manifest
		d.Snapshot, d.From, d.Rows = manifest.ID, manifest.Engine, manifest.Rows+parts[1].manifest.Rows
		d.Tables = len(manifest.Tables) + len(parts[1].manifest.Tables)
		d.RPO = began.Sub(manifest.Taken)
		digest = digestOf(parts)
		b.rehearse(ctx, scratch, parts, progress, &d, clocked, failed)
	}
	d.Took = time.Since(clocked)
	if ctx.Err() != nil {
		return d, ctx.Err()
	}
	if d.Certificate, err = b.certify(ctx, d, manifest, digest); err != nil {
		return d, err
	}
	e.ID, e.Resource = audit.NewID(), d.resource()
	d.Event = e.ID
	var refusal *problem.Problem
	if len(d.Failed) > 0 {
		refusal = problem.New(problem.Conflict, "drill-failed", "The restore for practice failed: %s. The certificate says so too.", d.Failed[0])
	}
	err = b.o.Trail.Do(ctx, by, e, func(tx *db.Tx, e *audit.Event) error {
		if refusal != nil {
			e.Deny(refusal)
		}
		return insertDrill(ctx, tx, d)
	})
	if refusal != nil {
		b.raise(ctx, FindingDrill, "", refusal.Error())
	} else {
		b.clear(ctx, FindingDrill, "")
	}
	return d, err
}

// rehearse does the restore and the checks.
func (b *Backup) rehearse(ctx context.Context, scratch Scratch, parts []*source, progress Progress, d *Drill, began time.Time, failed func(string, any)) {
	into := Into{Progress: progress}
	var probed Probed
	var restored bool
	into.Finish = func(ctx context.Context) error {
		restored = true
		d.Passed = append(d.Passed, CheckRows)
		size, root, err := treeIn(ctx, scratch.Options)
		switch m := parts[0].manifest; {
		case err != nil:
			return err
		case size != m.TreeSize || root != m.TreeRoot:
			failed(CheckTree, fmt.Sprintf("%d events with root %s, and %d with %s were copied", size, root, m.TreeSize, m.TreeRoot))
		default:
			d.Passed = append(d.Passed, CheckTree)
		}
		probed, err = scratch.Probe(ctx, func() { d.RTO = time.Since(began) })
		return err
	}
	if err := restoreInto(ctx, scratch.Options, parts, into); err != nil {
		check := CheckRows
		if restored {
			check = CheckOpen
		}
		failed(check, err)
		return
	}
	d.Events, d.Sampled = probed.Events, probed.Sampled
	if len(probed.Findings) > 0 {
		failed(CheckTrail, fmt.Sprintf("%d findings, the first: %s", len(probed.Findings), probed.Findings[0]))
	} else {
		d.Passed = append(d.Passed, CheckTrail)
	}
	if len(probed.Broken) > 0 {
		failed(CheckOpen, fmt.Sprintf("%d customers, the first: %s", len(probed.Broken), probed.Broken[0]))
	} else {
		d.Passed = append(d.Passed, CheckOpen)
	}
}

// treeIn is treeOf in a database that is opened for it.
func treeIn(ctx context.Context, o db.Options) (size int64, root string, err error) {
	o.Create = false
	d, err := db.Open(ctx, o)
	if err != nil {
		return 0, "", err
	}
	err = d.View(ctx, func(tx *db.Tx) (err error) {
		size, root, err = treeOf(ctx, tx)
		return err
	})
	return size, root, errors.Join(err, d.Close())
}

// digestOf stands for all that was restored: SHA-256 over the names and hashes of the tables.
func digestOf(parts []*source) string {
	h := sha256.New()
	for _, s := range parts {
		for _, t := range s.manifest.Tables {
			fmt.Fprintf(h, "%s %s\n", t.Name, t.Hash)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// certify signs the result: what was tested is the snapshot, and the figures are annotations of the drill.
func (b *Backup) certify(ctx context.Context, d Drill, m *Manifest, digest string) (string, error) {
	figures := map[string]any{
		"drill": d.ID, "started": d.Started.UTC().Format(time.RFC3339Nano), "took_seconds": d.Took.Seconds(),
		"rto_seconds": d.RTO.Seconds(), "rpo_seconds": d.RPO.Seconds(), "from_engine": d.From, "into_engine": d.Into,
		"tables": d.Tables, "rows": d.Rows, "events": d.Events, "sampled_customers": d.Sampled,
		"environment": b.o.DB.Environment(), "installation": b.o.DB.Installation(), "program": b.o.Program,
	}
	if m != nil {
		figures["snapshot_taken"], figures["tree_size"], figures["tree_root"] = m.Taken.UTC().Format(time.RFC3339Nano), m.TreeSize, m.TreeRoot
	}
	annotations, err := structpb.NewStruct(figures)
	if err != nil {
		return "", err
	}
	name := d.Snapshot
	if name == "" {
		name = "none"
	}
	result := &testresult.TestResult{
		Result: "PASSED", PassedTests: d.Passed, FailedTests: d.Failed,
		Configuration: []*intoto.ResourceDescriptor{{Name: "drill", Uri: "urn:strongroom:drill:" + d.ID, Annotations: annotations}},
	}
	if len(d.Failed) > 0 {
		result.Result = "FAILED"
	}
	text, err := protojson.Marshal(result)
	if err != nil {
		return "", err
	}
	predicate := new(structpb.Struct)
	if err := protojson.Unmarshal(text, predicate); err != nil {
		return "", err
	}
	statement := &intoto.Statement{
		Type:          intoto.StatementTypeUri,
		Subject:       []*intoto.ResourceDescriptor{{Name: name, Digest: map[string]string{"sha256": digest}}},
		PredicateType: PredicateType, Predicate: predicate,
	}
	if digest == "0" { // nothing could be read: the certificate is about that
		statement.Subject[0].Digest["sha256"] = hex.EncodeToString(sha256.New().Sum(nil))
	}
	if err := statement.Validate(); err != nil {
		return "", err
	}
	payload, err := protojson.Marshal(statement)
	if err != nil {
		return "", err
	}
	signer, err := dsse.NewEnvelopeSigner(envelopeSigner{b.o.Keys.EvidenceSigner()})
	if err != nil {
		return "", err
	}
	envelope, err := signer.SignPayload(ctx, PayloadType, payload)
	if err != nil {
		return "", err
	}
	out, err := json.Marshal(envelope)
	return string(out), err
}

// envelopeSigner signs DSSE envelopes with the key for evidence. What DSSE signs begins with "DSSEv1", and
// no note that the key signs does.
type envelopeSigner struct{ note.Signer }

// Sign signs the encoded envelope.
func (s envelopeSigner) Sign(_ context.Context, data []byte) ([]byte, error) {
	return s.Signer.Sign(data)
}

// KeyID names the key as signed notes do.
func (s envelopeSigner) KeyID() (string, error) {
	return fmt.Sprintf("%s+%08x", s.Signer.Name(), s.Signer.KeyHash()), nil
}

func insertDrill(ctx context.Context, tx *db.Tx, d Drill) error {
	outcome := "passed"
	if len(d.Failed) > 0 {
		outcome = "failed"
	}
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO backup_drill (id, started_at, ended_at, outcome, snapshot, rto, rpo, certificate) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		d.ID, clock.Micros(d.Started), clock.Micros(d.Started.Add(d.Took)), outcome, d.Snapshot, d.RTO.Microseconds(), d.RPO.Microseconds(), string(text))
	return err
}

// selectDrill returns the newest drill that began by now, or nil: a clock that was ahead hides none.
func selectDrill(ctx context.Context, tx *db.Tx, now time.Time) (*Drill, error) {
	var text string
	err := tx.QueryRow(ctx, `SELECT certificate FROM backup_drill WHERE started_at <= $1 ORDER BY started_at DESC LIMIT 1`, clock.Micros(now)).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	d := new(Drill)
	if err == nil {
		err = json.Unmarshal([]byte(text), d)
	}
	return d, err
}
