package backup

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	testresult "github.com/in-toto/attestation/go/predicates/test_result/v0"
	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	"strongroom/internal/actor"
	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
)

const (
	// firstWait is for how long a check of a server that has just begun waits for its first snapshot or drill:
	// well below what a check may take.
	firstWait = 45 * time.Second
	// firstTry is for how long after its start a server may not have tried yet what is due.
	firstTry = time.Minute
	// slack is how much later than scheduled a snapshot or a drill may end before it is noted.
	slack = 15 * time.Minute
	// probed is how many stored objects of each repository CheckStored reads.
	probed = 32
	// byHand is how often drills are expected where none are scheduled.
	byHand = 31 * 24 * time.Hour
)

// errUnder means that something is due and on its way.
var errUnder = errors.New("it is under way")

// nowhere is the observation of an installation without repositories.
func nowhere(did string) check.Observation {
	return check.Failed(did, "No repositories are named: nothing is copied anywhere. Name them in backup.repositories.")
}

// settled returns the runs of snapshots, the newest first, once whatever is due at the server's start was
// tried. It fails with errUnder when that goes on.
func (b *Backup) settled(ctx context.Context) (runs []run, err error) {
	err = b.await(ctx, func() (due bool, tried time.Time, err error) {
		if runs, err = b.runs(ctx, recent); err != nil {
			return false, tried, err
		}
		now := b.o.Clock.Now()
		at, _ := b.o.Schedule.due(runs, now)
		if last := lastTried(runs, now); last != nil {
			tried = clock.FromMicros(last.ended)
		}
		return !now.Before(at), tried, nil
	})
	return runs, err
}

// await waits while something is due that the jobs of this server have not tried yet.
func (b *Backup) await(ctx context.Context, look func() (due bool, tried time.Time, err error)) error {
	began := time.Now()
	for {
		due, tried, err := look()
		if err != nil || !due || b.o.Since.IsZero() || tried.After(b.o.Since) {
			return err
		}
		busy := !b.taking.TryLock()
		if !busy {
			b.taking.Unlock()
		}
		if !busy && b.o.Clock.Now().Sub(b.o.Since) > firstTry {
			return nil // it does not come
		}
		if time.Since(began) > firstWait {
			return errUnder
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// CheckSchedule compares the age of the newest snapshot that counts with the schedule: amber when it is late,
// red when it is overdue. The first snapshot of an installation that was just made is neither.
func (b *Backup) CheckSchedule(ctx context.Context) check.Observation {
	did := "compared the age of the newest snapshot that counts with the schedule"
	if len(b.o.Repositories)+len(b.o.Unopened) == 0 {
		return nowhere(did)
	}
	runs, err := b.settled(ctx)
	now, pace := b.o.Clock.Now(), b.o.Schedule.pace()
	newest := newestKept(runs, now)
	age := now.Sub(newest)
	switch {
	case newest.IsZero() && errors.Is(err, errUnder):
		return check.Undecided(did, "The first snapshot is under way.")
	case err != nil && !errors.Is(err, errUnder):
		return check.Undecided(did, "The history could not be read: %v", err)
	case newest.IsZero() && len(runs) == 0:
		return check.Failed(did, "No snapshot was ever taken. See that a server runs, or run strongroom backup run.")
	case newest.IsZero():
		return check.Failed(did, "%d snapshots were taken, and none counts. See strongroom backup list.", len(runs))
	}
	seen := check.Held(did, "The newest is %v old; one is due every %v.", age.Round(time.Second), pace)
	if usual := b.o.Schedule.estimate(runs, now).Took; age > pace+slack+2*usual {
		seen = check.Undecided(did, "The newest is %v old, and one is due every %v: it is late.", age.Round(time.Second), pace)
	}
	if age > overdue(pace) {
		seen = check.Failed(did, "The newest is %v old, and one is due every %v: it is overdue. See strongroom backup list.", age.Round(time.Second), pace)
	}
	return seen.With("age_seconds", int64(age.Seconds())).With("due_every_seconds", int64(pace.Seconds()))
}

// CheckDrill verifies the newest drill's certificate, and that it says what the history, the trail and the
// snapshot's manifest say.
func (b *Backup) CheckDrill(ctx context.Context) check.Observation {
	did := "verified the signature of the newest certificate of a restore, and held what it says against the history, the trail and the snapshot"
	if len(b.o.Repositories)+len(b.o.Unopened) == 0 {
		return nowhere(did)
	}
	if _, err := b.settled(ctx); err != nil && !errors.Is(err, errUnder) {
		return check.Undecided(did, "The history could not be read: %v", err)
	}
	newest := func() (d *Drill, err error) {
		err = b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
			d, err = selectDrill(ctx, tx, b.o.Clock.Now())
			return err
		})
		return d, err
	}
	var d *Drill
	every := b.o.Schedule.DrillEvery
	err := b.await(ctx, func() (due bool, tried time.Time, err error) {
		if d, err = newest(); err != nil || every == 0 {
			return false, tried, err
		}
		if d != nil {
			tried = d.Started.Add(d.Took)
		}
		due, err = b.drillDue(ctx)
		return due, tried, err
	})
	switch {
	case d == nil && errors.Is(err, errUnder):
		return check.Undecided(did, "The first restore for practice is under way.")
	case err != nil && !errors.Is(err, errUnder):
		return check.Undecided(did, "The history could not be read: %v", err)
	case d == nil && every == 0:
		return check.Undecided(did, "None was ever held, and backup.drill_every schedules none: run strongroom backup drill.")
	case d == nil:
		return check.Failed(did, "None was ever held: there was no snapshot to restore, or no server to do it. Run strongroom backup drill.")
	case len(d.Failed) > 0:
		return check.Failed(did, "The last restore for practice failed: %s", d.Failed[0])
	}
	if err := b.checkCertificate(ctx, d); err != nil {
		return check.Failed(did, "The certificate of %s does not hold: %v", d.ID, err)
	}
	vouched := false
	if err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		vouched, err = b.o.Trail.Vouches(ctx, tx, d.Event, ActionDrill, d.resource())
		return err
	}); err != nil {
		return check.Undecided(did, "The trail could not be read: %v", err)
	}
	if !vouched {
		return check.Failed(did, "The trail does not have %s.", d.ID)
	}
	if every == 0 {
		every = byHand
	}
	age := b.o.Clock.Now().Sub(d.Started)
	seen := check.Held(did, "%s restored from %s into %s in %v: %d rows as they were copied.", d.Snapshot, d.From, d.Into, d.RTO.Round(time.Millisecond), d.Rows)
	if age > every+slack+2*d.Took {
		seen = check.Undecided(did, "The last restore for practice is %v old, and one is due every %v: it is late.", age.Round(time.Second), every)
	}
	if age > overdue(every) {
		seen = check.Failed(did, "The last restore for practice is %v old, and one is due every %v. Run strongroom backup drill.", age.Round(time.Second), every)
	}
	return seen.With("age_seconds", int64(age.Seconds())).With("rto_seconds", figure(d.RTO)).With("rpo_seconds", figure(d.RPO)).With("rows", d.Rows)
}

func figure(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// certificateVerifier verifies DSSE envelopes with the key for evidence.
type certificateVerifier struct{ note.Verifier }

// Verify verifies the encoded envelope.
func (v certificateVerifier) Verify(_ context.Context, data, sig []byte) error {
	if !v.Verifier.Verify(data, sig) {
		return errors.New("the signature does not hold")
	}
	return nil
}

// KeyID names the key as envelopeSigner does.
func (v certificateVerifier) KeyID() (string, error) {
	return envelopeSigner{noteKey(v)}.KeyID()
}

// Public is not needed: the key is known by its name.
func (v certificateVerifier) Public() crypto.PublicKey { return nil }

// noteKey is the name of a key that signs nothing here.
type noteKey struct{ note.Verifier }

func (noteKey) Sign([]byte) ([]byte, error) { return nil, errors.New("this key only verifies") }

// openCertificate verifies a certificate and returns what it says.
func openCertificate(ctx context.Context, text string, verifiers note.Verifiers) (*intoto.Statement, *testresult.TestResult, error) {
	var envelope dsse.Envelope
	if err := json.Unmarshal([]byte(text), &envelope); err != nil || len(envelope.Signatures) == 0 || envelope.PayloadType != PayloadType {
		return nil, nil, errors.New("it is no signed statement")
	}
	name, hash, _ := cutLast(envelope.Signatures[0].KeyID, "+")
	n, err := strconv.ParseUint(hash, 16, 32)
	if err != nil {
		return nil, nil, errors.New("its key has no name")
	}
	key, err := verifiers.Verifier(name, uint32(n))
	if err != nil {
		return nil, nil, fmt.Errorf("it is signed by %s, which is no key of this installation", envelope.Signatures[0].KeyID)
	}
	verifier, err := dsse.NewEnvelopeVerifier(certificateVerifier{key})
	if err != nil {
		return nil, nil, err
	}
	if _, err := verifier.Verify(ctx, &envelope); err != nil {
		return nil, nil, fmt.Errorf("its signature: %w", err)
	}
	payload, err := envelope.DecodeB64Payload()
	if err != nil {
		return nil, nil, err
	}
	statement, result := new(intoto.Statement), new(testresult.TestResult)
	if err := protojson.Unmarshal(payload, statement); err != nil {
		return nil, nil, err
	}
	if err := statement.Validate(); err != nil {
		return nil, nil, err
	}
	predicate, err := protojson.Marshal(statement.GetPredicate())
	if err == nil {
		err = protojson.Unmarshal(predicate, result)
	}
	return statement, result, err
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// checkCertificate says in what the certificate of d differs from the truth.
func (b *Backup) checkCertificate(ctx context.Context, d *Drill) error {
	statement, result, err := openCertificate(ctx, d.Certificate, b.o.Keys.EvidenceVerifiers())
	if err != nil {
		return err
	}
	if statement.GetPredicateType() != PredicateType || statement.GetSubject()[0].GetName() != d.Snapshot || len(result.GetConfiguration()) == 0 {
		return errors.New("it is about something else")
	}
	if result.GetResult() != "PASSED" || len(result.GetFailedTests()) > 0 {
		return errors.New("it does not say that the restore passed")
	}
	for _, name := range []string{CheckRows, CheckTree, CheckTrail, CheckOpen} {
		if !slices.Contains(result.GetPassedTests(), name) {
			return fmt.Errorf("it does not have %s among what passed", name)
		}
	}
	wanted := map[string]any{
		"drill": d.ID, "environment": b.o.DB.Environment(), "installation": b.o.DB.Installation(), "rows": float64(d.Rows),
		"rto_seconds": d.RTO.Seconds(), "rpo_seconds": d.RPO.Seconds(), "into_engine": d.Into, "from_engine": d.From,
	}
	// The manifest says more, while the snapshot is kept.
	if key, reached, _, err := b.key(ctx, Data, false); err == nil {
		if m, err := readManifest(ctx, key, reached, d.Snapshot, b.o.Keys.EvidenceVerifiers()); err == nil {
			wanted["snapshot_taken"], wanted["tree_size"], wanted["tree_root"] = m.Taken.UTC().Format(time.RFC3339Nano), float64(m.TreeSize), m.TreeRoot
		}
	}
	said := result.GetConfiguration()[0].GetAnnotations().AsMap()
	for name, value := range wanted {
		if said[name] != value {
			return fmt.Errorf("it says %v of %s, and it was %v", said[name], name, value)
		}
	}
	return nil
}

// holders returns the newest snapshot of a part, its manifest, and which repositories have it.
func (b *Backup) holders(ctx context.Context, part Part) (m *Manifest, with []*Repository, err error) {
	key, reached, lost, err := b.key(ctx, part, false)
	if err != nil {
		return nil, nil, err
	}
	for _, err := range lost {
		b.o.Log.WarnContext(ctx, "a backup repository cannot be checked", "error", err)
	}
	ids, all, err := b.manifests(ctx, reached)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range slices.Backward(ids) {
		if m, err = readManifest(ctx, key, all[id], id, b.o.Keys.EvidenceVerifiers()); err == nil {
			return m, all[id], nil
		}
	}
	return nil, nil, errors.Join(errNothing, err)
}

// undecided says why nothing was found out about copies.
func undecided(did string, err error) check.Observation {
	if errors.Is(err, errUnder) {
		return check.Undecided(did, "The first snapshot is under way.")
	}
	return check.Undecided(did, "The repositories could not be read: %v", err)
}

// CheckMedia looks where the newest copies of both parts lie: on as many media as the policy asks for, in
// allowed regions, labelled.
func (b *Backup) CheckMedia(ctx context.Context) check.Observation {
	did := "listed where the newest snapshot lies: media, regions, label"
	if len(b.o.Repositories)+len(b.o.Unopened) == 0 {
		return nowhere(did)
	}
	if _, err := b.settled(ctx); err != nil {
		return undecided(did, err)
	}
	if b.o.Media < 2 {
		return check.Failed(did, "backup.media is %d: copies on one medium are not separate.", b.o.Media)
	}
	for _, r := range b.o.Repositories {
		if !slices.ContainsFunc(b.o.Regions, func(allowed string) bool { return r.Region != "" && strings.HasPrefix(r.Region, allowed) }) {
			return check.Failed(did, "The repository %s is in the region %q, which is not allowed.", r.Name, r.Region)
		}
	}
	seen := check.Held(did, "")
	var places []string
	devices := make(map[uint64]string) // medium, by device
	shared, newest := "", ""
	for _, part := range []Part{Data, Keys} {
		m, with, err := b.holders(ctx, part)
		if err != nil {
			return check.Failed(did, "No copy of the %s can be read: %v", part, err)
		}
		if m.ID < newest {
			return check.Failed(did, "The newest copy of the keys, %s, is older than the newest of the data, %s, and does not open all of it. Run strongroom backup run, and see who deleted the newer one.", m.ID, newest)
		}
		newest = m.ID
		var media []string
		for _, r := range with {
			if !slices.Contains(media, r.Medium) {
				media = append(media, r.Medium)
			}
			if device, ok := r.device(); ok {
				if other := devices[device]; other != "" && other != r.Medium {
					shared = other + " and " + r.Medium
				}
				devices[device] = r.Medium
			}
		}
		if len(media) < b.o.Media {
			return check.Failed(did, "The %s of %s lie on %d separate media, and %d are asked for.", part, m.ID, len(media), b.o.Media)
		}
		if m.Label == "" || m.Jurisdiction == "" {
			return check.Failed(did, "The copies are not labelled: set backup.label and backup.jurisdiction.")
		}
		places = append(places, fmt.Sprintf("the %s on %s", part, strings.Join(media, " and ")))
		seen = seen.With("media_"+string(part), len(media)).With("label", m.Label).With("jurisdiction", m.Jurisdiction)
	}
	switch {
	case shared != "" && b.o.DB.Environment() != "dev":
		return check.Undecided(did, "The media %s are folders of one file system: they are lost together. Put one elsewhere.", shared)
	case shared != "":
		seen.Detail = " These are folders of one file system, which is right for trying out only."
	}
	seen.Detail = fmt.Sprintf("The newest snapshot lies in allowed regions, %s.", strings.Join(places, ", ")) + seen.Detail
	return seen
}

// device returns what a folder lies on.
func (r *Repository) device() (uint64, bool) {
	if r.folder == "" {
		return 0, false
	}
	info, err := os.Stat(r.folder)
	if err != nil {
		return 0, false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return uint64(s.Dev), true
}

// CheckCopies reads a sample of the newest snapshot back from every repository and changes nothing.
func (b *Backup) CheckCopies(ctx context.Context) check.Observation {
	did := "read the manifest and objects taken at random back from every repository, decrypted them, and compared them with their names"
	if len(b.o.Repositories)+len(b.o.Unopened) == 0 {
		return nowhere(did)
	}
	if _, err := b.settled(ctx); err != nil {
		return undecided(did, err)
	}
	var v Verification
	if err := b.verify(ctx, &v, false, false, nil); err != nil {
		if ctx.Err() != nil {
			return check.Undecided(did, "It was stopped.")
		}
		return check.Failed(did, "No copy can be read: %v", err)
	}
	for _, u := range b.o.Unopened {
		v.Faults = append(v.Faults, Fault{Repository: u.Name, Error: u.Err.Error()})
	}
	if len(v.Faults) > 0 {
		return check.Failed(did, "%d faults in the copies of %s, the first in %s: %s. Run strongroom backup verify: it mends what another copy has.",
			len(v.Faults), v.Snapshot, v.Faults[0].Repository, v.Faults[0].Error)
	}
	return check.Held(did, "%d objects of %s are as they were stored.", v.Objects, v.Snapshot).With("objects", v.Objects).With("bytes", v.Bytes)
}

// CheckStored reads what lies in the repositories as somebody who has no key would, and searches it for a
// plaintext that is in the database under encryption.
func (b *Backup) CheckStored(ctx context.Context, canary []byte) check.Observation {
	did := "read stored objects taken at random from every repository without a key, searched them for the plaintext of a sealed value, and measured their entropy"
	if len(b.o.Repositories) == 0 {
		return nowhere(did)
	}
	if _, err := b.settled(ctx); err != nil {
		return undecided(did, err)
	}
	objects, total := 0, int64(0)
	least := 8.0
	for _, r := range b.o.Repositories {
		keys := []string{headerKey}
		var stored []string
		err := r.list(ctx, "", func(key string, _ int64) error {
			if strings.HasPrefix(key, objectPrefix) || strings.HasPrefix(key, manifestPrefix) {
				stored = append(stored, key)
			}
			return nil
		})
		if err != nil {
			return undecided(did, err)
		}
		var small []byte // what is too short to measure by itself
		for _, key := range append(keys, pick(stored, probed)...) {
			content, err := r.get(ctx, key)
			if errors.Is(err, errAbsent) {
				continue // it was pruned meanwhile
			}
			if err != nil {
				return undecided(did, err)
			}
			objects++
			total += int64(len(content))
			if bytes.Contains(content, canary) {
				return check.Failed(did, "The plaintext lies in the repository %s, in %s.", r.Name, key)
			}
			switch {
			case key == headerKey:
			case len(content) < leastProbed:
				small = append(small, content...)
			default:
				least = min(least, entropy(content))
			}
		}
		if len(small) >= leastProbed {
			least = min(least, entropy(small))
		}
		if least < leastBits {
			return check.Failed(did, "What lies in the repository %s has %.2f bits of entropy a byte: it is not encrypted.", r.Name, least)
		}
	}
	return check.Held(did, "It was not found in %d objects, %d bytes.", objects, total).With("objects", objects).With("bytes", total).
		With("least_entropy_bits", math.Round(least*100)/100)
}

// CheckRetention sees that every snapshot that the retention or a hold keeps is still there, and that what is to
// be locked is.
func (b *Backup) CheckRetention(ctx context.Context) check.Observation {
	did := "compared the snapshots that the retention and the holds keep with those that are there, and looked at locks"
	if len(b.o.Repositories)+len(b.o.Unopened) == 0 {
		return nowhere(did)
	}
	if _, err := b.settled(ctx); err != nil {
		return undecided(did, err)
	}
	var known []run
	var held map[string]bool
	if err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		if known, err = selectRuns(ctx, tx, math.MaxInt32); err == nil {
			held, err = readHolds(ctx, tx)
		}
		return err
	}); err != nil {
		return check.Undecided(did, "The history could not be read: %v", err)
	}
	_, reached, lost, err := b.key(ctx, Data, false)
	if err != nil {
		return undecided(did, err)
	}
	if len(lost) > 0 {
		return check.Undecided(did, "%d repositories could not be read.", len(lost))
	}
	_, with, err := b.manifests(ctx, reached)
	if err != nil {
		return undecided(did, err)
	}
	// What lies there and is not in the history is not ours to count: it would push out what is to be kept.
	var all []string
	ours := make(map[string]bool) // those that counted
	for _, r := range known {
		if r.class == classKeys || r.outcome == "failed" {
			continue
		}
		all = append(all, r.id)
		ours[r.id] = r.outcome == "kept"
	}
	slices.Sort(all)
	all = slices.Compact(all)
	due := b.o.Retention.keep(slices.DeleteFunc(all, func(id string) bool { return !snapshotIDs.MatchString(id) }))
	for id := range held {
		due[id], ours[id] = kept{class: "hold"}, true
	}
	expected, thin := 0, 0
	for id := range due {
		if !ours[id] {
			continue
		}
		expected++
		media := make(map[string]bool)
		for _, r := range with[id] {
			media[r.Medium] = true
		}
		if len(media) == 0 {
			return check.Failed(did, "The snapshot %s is to be kept, and is in no repository. See who deleted it, and lock what can be locked.", id)
		}
		if len(media) < b.o.Media {
			thin++
		}
	}
	locked := 0
	for _, r := range b.o.Repositories {
		if err := r.checkBucket(ctx, b.o.Retention.Keys); err != nil {
			return check.Failed(did, "%v", err)
		}
		if r.Lock == Unlocked {
			continue
		}
		newest := ""
		if err := r.list(ctx, manifestPrefix, func(key string, _ int64) error { newest = max(newest, key); return nil }); err != nil {
			return undecided(did, err)
		}
		if newest != "" && !r.isLocked(ctx, newest, "") {
			return check.Failed(did, "The newest manifest in the repository %s is not locked, and lock: %s is asked for.", r.Name, r.Lock)
		}
		locked++
	}
	if thin > 0 {
		return check.Undecided(did, "%d of %d snapshots that are to be kept lie on fewer media than are asked for now.", thin, expected)
	}
	return check.Held(did, "All %d snapshots that are to be kept are there, %d of them held.", expected, len(held)).
		With("snapshots", expected).With("holds", len(held)).With("locked_repositories", locked)
}

// CheckHistory sees that the newest snapshot is recorded, in the history and in the trail, with an estimate of
// the next, and that the newest of the history is stored: whoever holds the repositories may have put them back to
// how they were, and with them the keys of who was erased since.
func (b *Backup) CheckHistory(ctx context.Context) check.Observation {
	did := "looked for the newest stored snapshot in the history and in the trail, for the newest of the history in the repositories, and for the estimate of the next"
	if len(b.o.Repositories)+len(b.o.Unopened) == 0 {
		return nowhere(did)
	}
	runs, err := b.settled(ctx)
	if err != nil {
		return undecided(did, err)
	}
	m, _, err := b.holders(ctx, Data)
	if err != nil {
		return undecided(did, err)
	}
	i := slices.IndexFunc(runs, func(r run) bool { return r.id == m.ID })
	if i < 0 {
		return check.Failed(did, "The history does not have %s, which lies in the repositories.", m.ID)
	}
	r := runs[i]
	if part, stored, was, err := b.rolledBack(ctx); err != nil {
		return undecided(did, err)
	} else if part != "" {
		return check.Failed(did, "The newest copy of the %s that opens is %s, and %s was stored. See who put the repositories back, and run strongroom backup run.", part, stored, was)
	}
	vouched := false
	if err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		vouched, err = b.o.Trail.Vouches(ctx, tx, r.figures.Event, ActionRun, "snapshot "+r.id)
		return err
	}); err != nil {
		return check.Undecided(did, "The trail could not be read: %v", err)
	}
	if !vouched {
		return check.Failed(did, "The trail does not have the run of %s.", r.id)
	}
	next := b.o.Schedule.estimate(runs, b.o.Clock.Now())
	if next.At.IsZero() || next.Took <= 0 {
		return check.Failed(did, "There is no estimate of the next snapshot.")
	}
	return check.Held(did, "%s is recorded; the next, %s, comes at %s and will take about %v and %d bytes.", r.id, next.Class,
		next.At.UTC().Format(time.RFC3339), next.Took.Round(time.Millisecond), next.NewBytes).
		With("runs", len(runs)).With("next_at", next.At.UTC().Format(time.RFC3339)).With("next_seconds", figure(next.Took)).With("next_bytes", next.NewBytes)
}

// rolledBack says of which part the newest that is stored is older than the newest that was; "" of none.
func (b *Backup) rolledBack(ctx context.Context) (of Part, stored, was string, err error) {
	// The history first: a run that ends meanwhile is in the repositories and not in it.
	var known []run
	if err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		known, err = selectRuns(ctx, tx, recent)
		return err
	}); err != nil {
		return "", "", "", err
	}
	for _, part := range []Part{Data, Keys} {
		key, reached, _, err := b.key(ctx, part, false)
		if err != nil {
			return "", "", "", err
		}
		m, err := b.newest(ctx, key, reached)
		if err != nil {
			return "", "", "", err
		}
		if m != nil {
			stored = m.ID
		} else {
			stored = "none"
		}
		for _, r := range known {
			copied := slices.ContainsFunc(r.figures.Copies, func(c Copy) bool {
				return c.Part == part && c.Error == "" && slices.ContainsFunc(reached, func(r *Repository) bool { return r.Name == c.Repository })
			})
			if copied && (m == nil || r.id > m.ID) {
				return part, stored, r.id, nil
			}
		}
	}
	return "", "", "", nil
}

// recordTables are the tables that a copy must have to hold the trail and the record of the backups themselves.
var recordTables = []string{"event", "event_leaf", "log_tile", "log_head", "log_checkpoint", "backup_run", "backup_drill"}

// CheckTrail sees that the newest snapshot holds the trail and the record of backups, and that the trail as it
// was copied is the beginning of the trail as it is.
func (b *Backup) CheckTrail(ctx context.Context) check.Observation {
	did := "compared the trail in the newest snapshot, by its size and root, with the trail as it is"
	if len(b.o.Repositories)+len(b.o.Unopened) == 0 {
		return nowhere(did)
	}
	if _, err := b.settled(ctx); err != nil {
		return undecided(did, err)
	}
	m, _, err := b.holders(ctx, Data)
	if err != nil {
		return undecided(did, err)
	}
	for _, name := range recordTables {
		i := slices.IndexFunc(m.Tables, func(t Copied) bool { return t.Name == name })
		if i < 0 || m.Tables[i].Rows == 0 && m.TreeSize > 0 && (name == "log_tile" || name == "log_checkpoint") {
			return check.Failed(did, "The snapshot %s does not hold the table %s.", m.ID, name)
		}
	}
	var begins bool
	var size int64
	if err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		if size, _, err = treeOf(ctx, tx); err == nil {
			begins, err = b.o.Trail.Begins(ctx, tx, m.TreeSize, m.TreeRoot)
		}
		return err
	}); err != nil {
		return check.Undecided(did, "The trail could not be read: %v", err)
	}
	if !begins {
		return check.Failed(did, "The trail that was copied into %s, of %d events, is not the beginning of the trail as it is, of %d: one of them was altered or cut.", m.ID, m.TreeSize, size)
	}
	return check.Held(did, "The %d events in %s are the beginning of the %d that there are.", m.TreeSize, m.ID, size).
		With("copied", m.TreeSize).With("events", size)
}

// CheckRunbook renders the recovery guide and sees that it names every place, the newest snapshot and a measured
// time, and that the recovery keys that the settings name open the copies.
func (b *Backup) CheckRunbook(ctx context.Context, facts Facts) check.Observation {
	did := "rendered the recovery guide, and compared it and the repositories with the settings"
	if len(b.o.Repositories)+len(b.o.Unopened) == 0 {
		return nowhere(did)
	}
	if _, err := b.settled(ctx); err != nil {
		return undecided(did, err)
	}
	if len(b.o.Recovery) == 0 {
		return check.Failed(did, "No recovery key is named: without the root key nothing could be read. Make one with strongroom backup recovery-key.")
	}
	for _, r := range b.o.Repositories {
		text, err := r.get(ctx, headerKey)
		h := new(header)
		if err == nil {
			err = json.Unmarshal(text, h)
		}
		if err != nil {
			return undecided(did, err)
		}
		if h.RecoveryOf != b.recipients() || len(h.Recovery) == 0 {
			return check.Failed(did, "The repository %s is not sealed to the recovery keys that backup.recipients names: run strongroom backup run.", r.Name)
		}
		if key, _, _, err := b.key(ctx, r.Part, false); err != nil {
			return undecided(did, err)
		} else if !key.sealed(h) {
			return check.Failed(did, "What the repository %s has for the recovery keys is not what was sealed to them: run strongroom backup run, which seals it again, and see who altered it.", r.Name)
		}
	}
	text, err := b.Runbook(ctx, actor.OfSystem("check"), facts)
	if err != nil {
		return check.Undecided(did, "It could not be rendered: %v", err)
	}
	if strings.Contains(text, noneCounts) {
		return check.Failed(did, "The guide has no snapshot that counts to restore.")
	}
	wanted := []string{b.o.DB.Installation(), facts.Data, facts.Root}
	for _, r := range b.o.Repositories {
		wanted = append(wanted, r.Name, r.URL)
	}
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			return check.Failed(did, "The guide does not name %s.", w)
		}
	}
	return check.Held(did, "It names the %d repositories and a snapshot, and the recovery keys open them.", len(b.o.Repositories)).With("bytes", len(text))
}
