// Package backup keeps copies of everything on other media, proves that they restore, and never brings an
// erased customer back.
//
// A snapshot is taken in one read transaction, so it is the database as it stood at one moment, and it is
// the same on both engines: a copy of the embedded database restores into PostgreSQL, and back. It has two
// parts in different repositories under different credentials: the data, and the wrapped keys. The
// promise: what a repository holds is ciphertext, authenticated to the last byte, signed, and of no use
// without the other part; whatever differs from the snapshot before is stored and nothing else; a restore
// takes the keys as they are now and not as they were then, so whoever was erased since stays erased; and
// a snapshot counts as kept only when as many separate media hold it as the policy says.
package backup

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// The actions that backup records. The resource is the snapshot.
const (
	ActionRun  = "backup.snapshot.run"   // a snapshot was taken and stored
	ActionList = "backup.snapshots.list" // somebody read which snapshots there are
)

// keyTables are the tables of the part Keys.
var keyTables = []string{"data_key", "data_key_tombstone", "kek", "kek_wrap", "key_generation", "key_use", "root_move", "rotation", "service_key"}

// sealingKey is the service key that seals the repositories' master keys.
const sealingKey = "backup"

// KeySource gives the keys that repositories are opened and manifests signed with. The keyring is behind it.
type KeySource interface {
	Signer
	// Service returns the sealing key called "backup".
	Service(name string) *seal.Ring
	// Versions returns the live versions of each key, as tx sees them.
	Versions(ctx context.Context, tx *db.Tx) (map[string][]uint32, error)
	// ExportForRecovery returns the KEKs, sealed to the recipients.
	ExportForRecovery(ctx context.Context, by actor.Actor, recipients []age.Recipient) ([]byte, error)
}

// Options say what a Backup works with. DB, Keys, Trail and Repositories are needed.
type Options struct {
	DB           *db.DB
	Keys         KeySource
	Trail        *audit.Trail
	Repositories []*Repository
	// Unopened are the repositories that could not be opened: their copies are missing.
	Unopened []Unopened
	// Taking is held while a snapshot is taken, for whoever opens the repositories anew; nil makes one.
	Taking *sync.Mutex
	// Recovery are the holders of the keys that open a repository when everything else is lost.
	Recovery []age.Recipient
	// Folder keeps, on this machine, the fingerprints of what was stored; it may be lost. Empty keeps none.
	Folder string
	// Media is how many separate media have to hold a snapshot for it to count; 0 means 2.
	Media int
	// Regions are beginnings of the names of regions in which a repository may be. For the checks: the
	// settings refuse others.
	Regions []string
	// Since is when the server began whose jobs take what is due. The checks of a server that has just begun
	// wait for its first snapshot and drill; zero means that there are no jobs to wait for.
	Since time.Time

	// Files returns the settings and what belongs to them, by their path in the data folder: no secrets.
	// nil means none.
	Files    func() (map[string][]byte, error)
	Schedule Schedule

	Program      string // its version, for manifests
	Label        string
	Jurisdiction string
	Segment      int // bytes of rows in one object; 0 means 1 MiB

	Retention Retention     // the zero value means DefaultRetention
	Grace     time.Duration // how old an object is that nobody needs when Prune deletes it; 0 means a day
	Approvals Approvals     // of deeds that take two; nil means Operators
	Findings  Findings      // nil keeps none

	Clock clock.Clock  // nil means clock.System
	Log   *slog.Logger // nil discards
}

// Backup takes, lists and restores snapshots. It is safe for concurrent use; snapshots are taken one at a
// time.
type Backup struct {
	o      Options
	taking *sync.Mutex
}

// Unopened is a repository that could not be opened, and why.
type Unopened struct {
	RepositoryOptions
	Err error
}

// New returns the backup of o.DB.
func New(o Options) (*Backup, error) {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Media == 0 {
		o.Media = 2
	}
	if o.Segment == 0 {
		o.Segment = defaultSegment
	}
	if o.Retention == (Retention{}) {
		o.Retention = DefaultRetention
	}
	if o.Grace == 0 {
		o.Grace = defaultGrace
	}
	if o.Approvals == nil {
		o.Approvals = &Operators{Trail: o.Trail, Clock: o.Clock}
	}
	if o.Folder != "" {
		if err := os.MkdirAll(o.Folder, 0o700); err != nil {
			return nil, err
		}
	}
	if o.Taking == nil {
		o.Taking = new(sync.Mutex)
	}
	return &Backup{o: o, taking: o.Taking}, nil
}

// Copy is one part of a snapshot in one repository.
type Copy struct {
	Repository string `json:"repository"`
	Part       Part   `json:"part"`
	Medium     string `json:"medium"`
	Region     string `json:"region"`
	Error      string `json:"error,omitempty"` // why there is none; empty when it is there
}

// Snapshot is one state of the database in the repositories.
type Snapshot struct {
	ID       string        `json:"id"`
	Class    string        `json:"class,omitempty"` // daily, hourly, continuous, manual
	Taken    time.Time     `json:"taken"`
	Took     time.Duration `json:"took_ns"`
	Rows     int64         `json:"rows"`
	Bytes    int64         `json:"bytes"`
	NewBytes int64         `json:"new_bytes"`
	TreeSize int64         `json:"tree_size"`
	Copies   []Copy        `json:"copies"`
	Kept     bool          `json:"kept"` // enough separate media hold both parts
}

// figures are the part of a Snapshot that is kept as JSON.
type figures struct {
	Rows     int64  `json:"rows"`
	Bytes    int64  `json:"bytes"`
	NewBytes int64  `json:"new_bytes"`
	TreeSize int64  `json:"tree_size"`
	Copies   []Copy `json:"copies"`
	Taken    int64  `json:"taken"`  // Unix microseconds
	Erased   int64  `json:"erased"` // customers whose keys are in no copy any more
	Event    string `json:"event"`  // of the trail, that records the run
}

func newSnapshotID(at time.Time) string {
	return "snap_" + at.UTC().Format(idTime) + "_" + strings.ToLower(rand.Text()[:6])
}

// scope names the environment and the installation in whatever is sealed.
func scope(d *db.DB) string { return d.Environment() + "/" + d.Installation() }

func (b *Backup) of(part Part) []*Repository {
	var all []*Repository
	for _, r := range b.o.Repositories {
		if r.Part == part {
			all = append(all, r)
		}
	}
	return all
}

// key returns the key of a part, and makes it when no repository has one yet. A repository that does not
// answer is left out of those that are returned, with the reason in lost.
func (b *Backup) key(ctx context.Context, part Part, create bool) (key *vaultKey, reached []*Repository, lost map[*Repository]error, err error) {
	lost = make(map[*Repository]error)
	place := seal.Place{Room: "backup", Table: "repository", Record: string(part)}
	var found *header
	var master []byte
	defer func() { clear(master) }()
	var unopened error                // of a header that is there
	var empty, outdated []*Repository // without a header, and with one that others than b.o.Recovery open
	for _, r := range b.of(part) {
		text, err := r.get(ctx, headerKey)
		switch {
		case errors.Is(err, errAbsent):
			empty = append(empty, r)
			continue
		case err != nil:
			lost[r] = err
			continue
		}
		h := new(header)
		if err := json.Unmarshal(text, h); err != nil || h.Format != formatVersion || h.Part != part {
			lost[r] = fmt.Errorf("backup repository %s: its repository.json is not one of part %q that this program knows", r.Name, part)
			continue
		}
		if h.Installation != b.o.DB.Installation() || h.Environment != b.o.DB.Environment() {
			lost[r] = fmt.Errorf("backup repository %s: it belongs to %s in %s; give each installation repositories of its own", r.Name, h.Installation, h.Environment)
			continue
		}
		if found == nil {
			opened, err := b.o.Keys.Service(sealingKey).Open(place, h.Server)
			if err == nil {
				key, err = newVaultKey(opened, scope(b.o.DB), part)
			}
			if err != nil { // damaged here: the others may be whole
				unopened = fmt.Errorf("backup repository %s: its key does not open with this installation's keys: %w", r.Name, err)
				lost[r] = unopened
				continue
			}
			master, found = opened, h
		} else if string(found.Server) != string(h.Server) {
			lost[r] = fmt.Errorf("backup repository %s: its key is another than that of the others; it was not copied from them", r.Name)
			continue
		}
		if create && len(b.o.Recovery) > 0 && (h.RecoveryOf != b.recipients() || !key.sealed(h)) {
			outdated = append(outdated, r)
			continue
		}
		reached = append(reached, r)
	}
	switch {
	case found != nil:
	case unopened != nil:
		return nil, nil, lost, unopened
	case !create:
		return nil, nil, lost, errors.Join(append([]error{errNothing}, values(lost)...)...)
	case len(empty) == 0:
		return nil, nil, lost, errors.Join(append([]error{fmt.Errorf("no repository for the part %q can be reached", part)}, values(lost)...)...)
	default:
		for _, r := range empty {
			occupied := false
			err := r.list(ctx, manifestPrefix, func(string, int64) error { occupied = true; return errAbsent })
			if occupied {
				err = fmt.Errorf("backup repository %s: it holds snapshots and its repository.json is gone; put it back, for a new one would not open them", r.Name)
			}
			if err != nil {
				return nil, nil, lost, err
			}
		}
		master = newMaster()
		if key, err = newVaultKey(master, scope(b.o.DB), part); err != nil {
			return nil, nil, lost, err
		}
		found = &header{Format: formatVersion, Installation: b.o.DB.Installation(), Environment: b.o.DB.Environment(), Part: part,
			Server: b.o.Keys.Service(sealingKey).Seal(place, master)}
	}
	if create {
		// Recipients that were named, or named anew, after the repository was made can open it too.
		if of := b.recipients(); len(b.o.Recovery) > 0 && (found.RecoveryOf != of || len(outdated) > 0) {
			if found.Recovery, err = sealToRecovery(master, b.o.Recovery); err != nil {
				return nil, nil, lost, err
			}
			found.RecoveryOf = of
			found.RecoveryMark = key.mark(found)
			empty = append(empty, outdated...)
		}
		text, err := json.MarshalIndent(found, "", "  ")
		if err != nil {
			return nil, nil, lost, err
		}
		for _, r := range empty {
			if err := r.put(ctx, headerKey, text); err != nil {
				lost[r] = err
				continue
			}
			reached = append(reached, r)
		}
	}
	return key, reached, lost, nil
}

func values(m map[*Repository]error) (all []error) {
	for _, err := range m {
		all = append(all, err)
	}
	return all
}

// The classes of snapshots.
const (
	ClassManual     = "manual"
	ClassDaily      = "daily"
	ClassHourly     = "hourly"
	ClassContinuous = "continuous"
	classKeys       = "keys" // the keys alone, after an erasure
)

// Taking says how a snapshot is taken.
type Taking struct {
	Class    string   // "" means ClassManual
	Progress Progress // nil tells nobody

	keysOnly bool
}

// Run is Take by hand.
func (b *Backup) Run(ctx context.Context, by actor.Actor) (Snapshot, error) {
	return b.Take(ctx, by, Taking{})
}

// Take takes a snapshot and stores it in every repository that can be reached. The snapshot counts as kept
// when enough media hold both parts; when not, Take returns it with the problem "backup-incomplete". The
// daily one folds what changed into whole segments, so that a restore reads one object for each.
func (b *Backup) Take(ctx context.Context, by actor.Actor, how Taking) (Snapshot, error) {
	b.taking.Lock()
	defer b.taking.Unlock()
	if by.Kind != actor.System {
		return Snapshot{}, b.o.Trail.Deny(ctx, by, audit.Event{Action: ActionRun, Resource: "snapshot"}, errForbidden)
	}
	if how.Class == "" {
		how.Class = ClassManual
	}
	began := b.o.Clock.Now()
	s := Snapshot{ID: newSnapshotID(began), Class: how.Class}
	r := run{id: s.ID, started: clock.Micros(began), class: how.Class, outcome: "kept"}
	err := b.take(ctx, by, began, how, &s, &r)
	s.Took = b.o.Clock.Now().Sub(began)
	refusal := b.judge(&s, err, how.keysOnly)
	r.ended = clock.Micros(began.Add(s.Took))
	event := audit.Event{ID: audit.NewID(), Action: ActionRun, Resource: "snapshot " + s.ID}
	recorded := b.o.Trail.Do(context.WithoutCancel(ctx), by, event, func(tx *db.Tx, e *audit.Event) error {
		if refusal != nil {
			r.outcome, r.reason = "partial", refusal.Slug()
			if err != nil {
				r.outcome = "failed"
			}
			e.Deny(refusal)
		}
		r.figures.Rows, r.figures.Bytes, r.figures.NewBytes, r.figures.TreeSize = s.Rows, s.Bytes, s.NewBytes, s.TreeSize
		r.figures.Copies, r.figures.Taken, r.figures.Event = s.Copies, clock.Micros(s.Taken), e.ID
		return insertRun(context.WithoutCancel(ctx), tx, r)
	})
	if err != nil {
		b.o.Log.ErrorContext(ctx, "backup failed", "snapshot", s.ID, "error", err)
	}
	b.tell(ctx, refusal)
	return s, recorded
}

// tell raises or clears what the outcome of a run says.
func (b *Backup) tell(ctx context.Context, refusal *problem.Problem) {
	if refusal != nil {
		b.raise(ctx, FindingIncomplete, "", refusal.Error())
		return
	}
	b.clear(ctx, FindingIncomplete, "")
	b.clear(ctx, FindingOverdue, "")
}

// judge decides whether the snapshot counts, and says why not.
func (b *Backup) judge(s *Snapshot, err error, keysOnly bool) *problem.Problem {
	if err != nil {
		return problem.New(problem.Unavailable, "backup-failed", "The backup failed: no snapshot was stored.").Because(err)
	}
	for _, part := range []Part{Data, Keys} {
		if keysOnly && part == Data {
			continue
		}
		var media, without []string
		for _, c := range s.Copies {
			if c.Part == part && c.Error == "" && !slices.Contains(media, c.Medium) {
				media = append(media, c.Medium)
			}
			if c.Part == part && c.Error != "" {
				without = append(without, c.Repository)
			}
		}
		if len(media) < b.o.Media {
			return problem.New(problem.Unavailable, "backup-incomplete",
				"The %s of this snapshot lie on %d separate media, and %d are asked for. Without a copy: %s. The log says why; mend the repository, and run the backup again.",
				part, len(media), b.o.Media, strings.Join(without, ", "))
		}
	}
	s.Kept = true
	return nil
}

// take copies both parts from one moment, and stores the manifests last: what has none is no snapshot.
func (b *Backup) take(ctx context.Context, by actor.Actor, began time.Time, how Taking, s *Snapshot, r *run) error {
	parts := map[Part]*taking{}
	wanted := []Part{Data, Keys}
	if how.keysOnly {
		wanted = wanted[1:]
	}
	var expected int64
	for _, part := range wanted {
		t, err := b.begin(ctx, part)
		if t != nil {
			t.whole = how.Class == ClassDaily
			parts[part] = t
			expected += t.rowsBefore
		}
		if err != nil {
			return err
		}
	}
	for _, t := range parts {
		began = afterNewest(began, t.newest)
	}
	s.ID = newSnapshotID(began)
	r.id = s.ID
	var class string
	if t := parts[Data]; t != nil {
		k := b.o.Retention.keep(append(t.ids, s.ID))[s.ID]
		t.until, class = k.until, k.class
	}
	tell := func(int64) {}
	if how.Progress != nil {
		var done int64
		tell = func(n int64) {
			done += n
			how.Progress(done, max(expected, done))
		}
	}
	// The root key may be a service far away: it is asked before the transaction, and again when the KEKs
	// have changed meanwhile.
	if err := b.exportKEKs(ctx, by, parts[Keys]); err != nil {
		return err
	}
	way := newWay(b.o.DB.Updates)
	err := b.o.DB.Snapshot(ctx, func(tx *db.Tx) error {
		schema, err := tx.SchemaVersion(ctx)
		if err != nil {
			return err
		}
		size, root, err := treeOf(ctx, tx)
		if err != nil {
			return err
		}
		if r.needs, err = b.o.Keys.Versions(ctx, tx); err != nil {
			return err
		}
		if r.figures.Erased, err = countTombstones(ctx, tx); err != nil {
			return err
		}
		s.Taken, s.TreeSize = b.o.Clock.Now(), size
		tables, err := tx.Tables(ctx)
		if err != nil {
			return err
		}
		for part, t := range parts {
			t.manifest = &Manifest{
				Format: formatVersion, ID: s.ID, Part: part, Taken: s.Taken, Installation: b.o.DB.Installation(),
				Environment: b.o.DB.Environment(), Engine: b.o.DB.Engine().String(), Schema: schema, Program: b.o.Program,
				TreeSize: size, TreeRoot: root, Label: b.o.Label, Jurisdiction: b.o.Jurisdiction, Retention: class, Needs: r.needs,
			}
			if part == Keys {
				if len(b.o.Recovery) > 0 && t.keksOf != b.keksOf(r.needs) {
					return errKEKsMoved
				}
				t.manifest.KEKs, t.manifest.KEKsOf = t.keks, t.keksOf
			} else if b.o.Files != nil {
				if t.manifest.Files, err = b.o.Files(); err != nil {
					return fmt.Errorf("the settings cannot be copied: %w", err)
				}
			}
		}
		for _, table := range tables {
			part := Data
			if slices.Contains(keyTables, table.Name) {
				part = Keys
			}
			t := parts[part]
			if t == nil || table.Name == restoringTable {
				continue
			}
			t.tell, t.way = tell, way
			copied, bytes, err := t.copyTable(ctx, tx, table, t.before[table.Name])
			if err != nil {
				return err
			}
			t.manifest.Tables = append(t.manifest.Tables, copied)
			t.manifest.Rows += copied.Rows
			t.manifest.Bytes += bytes
			s.Rows += copied.Rows
			s.Bytes += bytes
		}
		return nil
	})
	for _, t := range parts {
		t.wait.Wait()
		err = errors.Join(err, t.err)
	}
	if err != nil {
		for _, t := range parts {
			t.settle()
		}
		return err
	}
	// The keys first: data whose keys are missing would be of no use, keys are of use to all data before them.
	for _, part := range slices.Backward(wanted) {
		if err := b.finish(ctx, s, parts[part]); err != nil {
			return err
		}
	}
	slices.SortStableFunc(s.Copies, func(a, b Copy) int { return strings.Compare(string(a.Part), string(b.Part)) })
	return b.sweepKeys(ctx, s, parts[Keys])
}

// errKEKsMoved means that a KEK was made or destroyed while the snapshot began.
var errKEKsMoved = errors.New("the key-encryption keys changed while the backup began; run it again")

// keksOf says which KEKs are sealed to whom.
func (b *Backup) keksOf(versions map[string][]uint32) string {
	return keyring.KEKGeneration(versions) + "for " + b.recipients()
}

// recipients returns a digest of the recipients of the recovery keys.
func (b *Backup) recipients() string {
	h := sha256.New()
	for _, r := range b.o.Recovery {
		fmt.Fprintln(h, r) // as age writes it: the recipient is public
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// exportKEKs has the KEKs sealed to the holders of the recovery keys, unless the snapshot before has them.
func (b *Backup) exportKEKs(ctx context.Context, by actor.Actor, t *taking) error {
	if len(b.o.Recovery) == 0 {
		return nil
	}
	var versions map[string][]uint32
	err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		versions, err = b.o.Keys.Versions(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	if of := b.keksOf(versions); t.keksOf != of {
		if t.keks, err = b.o.Keys.ExportForRecovery(ctx, by, b.o.Recovery); err != nil {
			return err
		}
		t.keksOf = of
	}
	return nil
}

// taking is the taking of one part.
type taking struct {
	*copier
	before   map[string]*Copied // of the snapshot before, by table
	newest   string             // id of the newest snapshot that there is
	ids      []string           // of all snapshots that there are, the oldest first
	manifest *Manifest
	absent   map[*Repository]error // could not be reached to begin with

	rowsBefore int64
	keks       []byte // of the snapshot before, or fresh
	keksOf     string
}

func (b *Backup) begin(ctx context.Context, part Part) (*taking, error) {
	key, reached, absent, err := b.key(ctx, part, true)
	if err != nil {
		return nil, err
	}
	t := &taking{before: make(map[string]*Copied), absent: absent}
	var usable []*Repository
	for _, r := range reached {
		err := r.checkBucket(ctx, b.o.Retention.Keys)
		if err == nil {
			err = r.look(ctx)
		}
		if err != nil {
			absent[r] = err
			continue
		}
		usable = append(usable, r)
	}
	t.copier = newCopier(key, usable, b.o.Segment)
	if b.o.Folder != "" {
		t.memory.folder = filepath.Join(b.o.Folder, string(part))
		if err := os.MkdirAll(t.memory.folder, 0o700); err != nil {
			return nil, err
		}
	}
	ids, _, err := b.manifests(ctx, usable)
	if err != nil {
		return nil, err
	}
	newest, err := b.newest(ctx, key, usable)
	if err != nil {
		return nil, err
	}
	t.ids = slices.DeleteFunc(ids, func(id string) bool { return !snapshotIDs.MatchString(id) })
	t.until, t.erasing = b.o.Clock.Now(), part == Keys
	if newest != nil {
		// One that does not open says nothing of the order: anybody who may write there can name it as he likes.
		t.newest = newest.ID
		t.rowsBefore, t.keks, t.keksOf = newest.Rows, newest.KEKs, newest.KEKsOf
		t.sizes = newest.objects()
		for i := range newest.Tables {
			t.before[newest.Tables[i].Name] = &newest.Tables[i]
		}
	}
	return t, nil
}

// newest returns the newest manifest that opens, or nil.
func (b *Backup) newest(ctx context.Context, key *vaultKey, repositories []*Repository) (*Manifest, error) {
	m, _, _, err := b.newestUntil(ctx, key, repositories, "", b.o.Keys.EvidenceVerifiers())
	return m, err
}

// newestUntil returns the newest manifest that opens and is not newer than last, "" for any; nil when there is
// none. passed are the snapshots that are newer than it, and failed says why those that do not open do not.
func (b *Backup) newestUntil(ctx context.Context, key *vaultKey, repositories []*Repository, last string, verifiers note.Verifiers) (m *Manifest, passed []string, failed, err error) {
	ids, _, err := b.manifests(ctx, repositories)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, id := range slices.Backward(ids) {
		if !snapshotIDs.MatchString(id) {
			continue
		}
		if last == "" || id <= last {
			m, err := readManifest(ctx, key, repositories, id, verifiers)
			if err == nil {
				return m, passed, failed, nil
			}
			failed = errors.Join(failed, err)
		}
		passed = append(passed, id)
	}
	return nil, passed, failed, nil
}

// manifests returns the snapshots that any of the repositories has, the oldest first, and who has them.
func (b *Backup) manifests(ctx context.Context, repositories []*Repository) ([]string, map[string][]*Repository, error) {
	holders := make(map[string][]*Repository)
	var failed []error
	for _, r := range repositories {
		err := r.list(ctx, manifestPrefix, func(key string, _ int64) error {
			id := strings.TrimPrefix(key, manifestPrefix)
			holders[id] = append(holders[id], r)
			return nil
		})
		if err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) == len(repositories) && len(failed) > 0 {
		return nil, nil, errors.Join(failed...)
	}
	var ids []string
	for id := range holders {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, holders, nil
}

func readManifest(ctx context.Context, key *vaultKey, repositories []*Repository, id string, verifiers note.Verifiers) (*Manifest, error) {
	var failed error
	for _, r := range repositories {
		stored, err := r.get(ctx, manifestPrefix+id)
		if err == nil {
			var m *Manifest
			if m, err = openManifest(key, id, stored, verifiers); err == nil {
				return m, nil
			}
			err = fmt.Errorf("backup repository %s: %w", r.Name, err)
		}
		failed = errors.Join(failed, err)
	}
	return nil, failed
}

var errForbidden = problem.New(problem.Forbidden, "backup-forbidden", "Backups are for the operators of this installation.")

// errNothing means that there is no snapshot.
var errNothing = problem.New(problem.NotFound, "backup-not-found", "There is no snapshot in these repositories. Run a backup first.")
