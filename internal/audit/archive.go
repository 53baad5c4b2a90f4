package audit

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring/seal"
	keystream "strongroom/internal/keyring/stream"
	"strongroom/internal/problem"
)

// The actions of archiving. Nobody does it by hand.
const (
	ActionArchive       = "audit.archive.store"
	ActionArchiveRemove = "audit.archive.remove"
	ActionArchiveHold   = "audit.archive.hold"
)

// FindingArchive is the kind of the finding that old events cannot be archived, or deleted.
const FindingArchive = "audit.archive-failed"

// ArchiveJobName is the name of the job that archives.
const ArchiveJobName = "audit.archive"

const (
	// archiveRange bounds the events of one object; a multiple of the width of a tile.
	archiveRange = 256 * tileWidth
	// purgeStep is how many events are deleted at once: all writers of the embedded database wait for it.
	purgeStep = tileWidth
	// maxLine bounds one event in an object: its leaf and its sealed part, as text.
	maxLine = 4 * maxSealed
)

// Repository keeps the archive's objects. What Write has taken is there when it returns, and what Read
// returns is not trusted.
type Repository interface {
	Write(ctx context.Context, name string, content []byte) error
	// Read returns an object, or its beginning when it is longer than limit bytes.
	Read(ctx context.Context, name string, limit int64) ([]byte, error)
	// List returns the names of all objects that begin so.
	List(ctx context.Context, prefix string) ([]string, error)
	// Delete deletes an object; that it is not there is no failure.
	Delete(ctx context.Context, name string) error
}

// ArchiveOptions say what is archived when.
type ArchiveOptions struct {
	Repository Repository
	Online     time.Duration // events younger than that stay in the database
	Keep       time.Duration // the objects whose events are all older than that are deleted
	HoldUntil  time.Time     // nothing is archived and nothing deleted before; zero: no hold
	Sinks      []string      // events that one of these has not confirmed stay in the database
	Range      int64         // events of an object; 0 means archiveRange
}

// Archive moves old events out of the database into a repository, as sealed objects of up to 65,536 events
// with consecutive places. Tiles and checkpoints stay, and with them the proof that each event was where it
// was. What is personal in an event is sealed in the object as it was in the database, so that an erasure
// reaches it there. It is safe for concurrent use.
type Archive struct {
	trail *Trail
	o     ArchiveOptions
}

// OpenArchive connects the trail with its archive, from which Prove, Export and VerifyArchive then read.
func (t *Trail) OpenArchive(o ArchiveOptions) *Archive {
	o.Range = cmp.Or(o.Range, archiveRange)
	a := &Archive{t, o}
	t.archive.Store(a)
	return a
}

// Hold records that a legal hold stops the archive, as the settings say, and why.
func (a *Archive) Hold(ctx context.Context, by actor.Actor, reason string) error {
	e := Event{Action: ActionArchiveHold, Resource: "archive until " + a.o.HoldUntil.UTC().Format(time.DateOnly), Personal: map[string]string{"reason": reason}}
	return a.trail.Do(ctx, by, e, func(*db.Tx, *Event) error { return nil })
}

// Job returns the job that archives and deletes what is old enough.
func (a *Archive) Job() jobs.Job {
	return jobs.Job{Name: ArchiveJobName, Every: time.Hour, Run: a.run, Leased: true}
}

func (a *Archive) run(ctx context.Context) error {
	t := a.trail
	if t.clock.Now().Before(a.o.HoldUntil) {
		return nil
	}
	err := a.all(ctx)
	if t.findings == nil || ctx.Err() != nil {
		return err
	}
	if err != nil {
		return errors.Join(err, t.findings.Raise(ctx, FindingArchive, "archive", "Old events of the trail were not archived, or not deleted: "+err.Error()))
	}
	return t.findings.Clear(ctx, FindingArchive, "archive")
}

func (a *Archive) all(ctx context.Context) error {
	for tidied := false; ; tidied = true {
		list, err := a.trail.ranges(ctx)
		if err != nil {
			return err
		}
		if !tidied {
			if err := a.tidy(ctx, list); err != nil {
				return err
			}
		}
		// What a run before this one has archived and not deleted from the database.
		if len(list) > 0 {
			if err := a.purge(ctx, &list[len(list)-1]); err != nil {
				return err
			}
		}
		if err := a.expire(ctx, list); err != nil {
			return err
		}
		lo, hi, err := a.due(ctx, endOf(list))
		if err != nil || hi == lo {
			return err
		}
		if err := a.store(ctx, lo, hi); err != nil {
			return err
		}
	}
}

// prefix begins the names of this installation's objects; the place of the first event follows, and a hyphen.
func (a *Archive) prefix() string { return "audit/" + a.trail.db.Installation() + "/" }

// tidy deletes the objects that a run wrote and did not come to record, once others hold those events. What
// begins where nothing is archived yet is left: another server may be about to record it.
func (a *Archive) tidy(ctx context.Context, list []archived) error {
	names, err := a.o.Repository.List(ctx, a.prefix())
	if err != nil {
		return fmt.Errorf("audit: the archive's objects were not listed: %w", err)
	}
	live := make(map[string]bool)
	for i := range list {
		live[list[i].Name] = list[i].RemovedAt == 0
	}
	for _, name := range names {
		text, _, _ := strings.Cut(strings.TrimPrefix(name, a.prefix()), "-")
		first, err := strconv.ParseInt(text, 10, 64)
		if err != nil || first >= endOf(list) || live[name] {
			continue
		}
		if err := a.o.Repository.Delete(ctx, name); err != nil {
			return fmt.Errorf("audit: the object %s was not deleted: %w", name, err)
		}
	}
	return nil
}

// archived is a row of audit_archive.
type archived struct {
	First      int64           `json:"first"`
	Past       int64           `json:"past"`
	Name       string          `json:"name"`
	Hash       []byte          `json:"hash"`
	Bytes      int64           `json:"bytes"`
	FirstID    string          `json:"first_id"`
	LastID     string          `json:"last_id"`
	Oldest     int64           `json:"oldest"`
	Newest     int64           `json:"newest"`
	Announced  json.RawMessage `json:"announced"` // a map of keys' hashes to places
	KeyVersion int64           `json:"key_version"`
	ArchivedAt int64           `json:"archived_at"`
	RemovedAt  int64           `json:"removed_at"`

	macVersion int64
	mac        []byte
}

// parts is what the row's MAC is over. An event's MAC has one part.
func (r *archived) parts() [][]byte {
	text, err := json.Marshal(r)
	if err != nil {
		text = nil // its Announced is no JSON, and so nothing that was given a MAC
	}
	return [][]byte{[]byte("audit-archive"), text}
}

func (t *Trail) authenticRange(r *archived) bool {
	parts := r.parts()
	if parts[1] == nil || r.macVersion <= 0 || r.macVersion > 1<<32-1 || r.First < 0 || r.Past <= r.First {
		return false
	}
	mac, err := t.keys.MACVersion(macKey, uint32(r.macVersion), parts...)
	return err == nil && hmac.Equal(mac, r.mac)
}

func (t *Trail) signRange(r *archived) {
	mac, version := t.keys.MAC(macKey, r.parts()...)
	r.mac, r.macVersion = mac, int64(version)
}

// ranges returns what is archived, in order. It fails when a row of audit_archive is not ours.
func (t *Trail) ranges(ctx context.Context) (list []archived, err error) {
	var bad []int64
	err = t.db.View(ctx, func(tx *db.Tx) (err error) {
		list, bad, err = t.selectRanges(ctx, tx)
		return err
	})
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("%w (the row of audit_archive for the events from index %d on)", errTampered, bad[0])
	}
	return list, err
}

// selectRanges returns the rows that are ours, and where the others claim to begin.
func (t *Trail) selectRanges(ctx context.Context, tx *db.Tx) (list []archived, bad []int64, err error) {
	rows, err := tx.Query(ctx, `
		SELECT first, past, `+boundedText("name")+`, substr(hash, 1, 65), bytes, `+boundedText("first_id")+`, `+boundedText("last_id")+`,
			oldest, newest, `+boundedNote("announced")+`, key_version, archived_at, removed_at, mac_version, substr(mac, 1, 65)
		FROM audit_archive ORDER BY first`)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r archived
		var announced string
		if err := rows.Scan(&r.First, &r.Past, &r.Name, &r.Hash, &r.Bytes, &r.FirstID, &r.LastID, &r.Oldest, &r.Newest,
			&announced, &r.KeyVersion, &r.ArchivedAt, &r.RemovedAt, &r.macVersion, &r.mac); err != nil {
			return nil, nil, err
		}
		r.Announced = json.RawMessage(announced)
		if t.authenticRange(&r) {
			list = append(list, r)
		} else if len(bad) < maxStrays {
			bad = append(bad, r.First)
		}
	}
	return list, bad, rows.Err()
}

// endOf returns the first place that is not archived.
func endOf(list []archived) int64 {
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].Past
}

// due returns the next places to be archived; none when lo is hi. Objects are full, unless that would keep
// their oldest event in the database for a twelfth of the time longer; they end where a tile does.
func (a *Archive) due(ctx context.Context, lo int64) (_, hi int64, err error) {
	t := a.trail
	cutoff := t.clock.Now().Add(-a.o.Online)
	err = t.db.View(ctx, func(tx *db.Tx) error {
		h, err := selectHead(ctx, tx)
		if err != nil {
			return err
		}
		indexed, err := selectIndexed(ctx, tx)
		if err != nil {
			return err
		}
		hi = min(lo+a.o.Range, h.size, indexed)
		for _, name := range a.o.Sinks {
			next, err := selectCursor(ctx, tx, name)
			if err != nil {
				return err
			}
			hi = min(hi, next)
		}
		if hi, err = selectFirstYoung(ctx, tx, lo, hi, clock.Micros(cutoff)); err != nil {
			return err
		}
		if hi -= hi % tileWidth; hi <= lo {
			hi = lo
			return nil
		}
		if hi == lo+a.o.Range {
			return nil
		}
		oldest, err := selectTimeFrom(ctx, tx, lo)
		if err == nil && oldest >= clock.Micros(cutoff.Add(-a.o.Online/12)) {
			hi = lo // more will come
		}
		return err
	})
	return lo, hi, err
}

// selectFirstYoung returns the first place from lo on, below hi, whose event was made at the time given or
// later; hi when there is none.
func selectFirstYoung(ctx context.Context, tx *db.Tx, lo, hi, cutoff int64) (first int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT COALESCE(min(l.idx), $1) FROM event_leaf l JOIN event e ON e.id = l.event_id
		WHERE l.idx >= $2 AND l.idx < $1 AND e.made_at >= $3`, hi, lo, cutoff).Scan(&first)
	return first, err
}

// storedEvent is one line of an object.
type storedEvent struct {
	Index      int64  `json:"index"`
	Leaf       string `json:"leaf"` // which has all columns but these:
	Sealed     []byte `json:"sealed,omitempty"`
	MACVersion int64  `json:"mac_version"`
	MAC        []byte `json:"mac"`
}

// objectHeader is the first line of an object; what follows is a stream (see package keyring/stream) of
// gzip (RFC 1952) of lines.
type objectHeader struct {
	Version int    `json:"v"`
	First   int64  `json:"first"`
	Past    int64  `json:"past"`
	Key     []byte `json:"key"` // the file key of the stream, sealed
}

func (t *Trail) objectContext(first, past int64) string {
	return "audit-archive " + t.db.Installation() + " " + strconv.FormatInt(first, 10) + " " + strconv.FormatInt(past, 10)
}

func objectPlace(first, past int64) seal.Place {
	return seal.Place{Room: "audit", Table: "audit_archive", Record: strconv.FormatInt(first, 10) + "-" + strconv.FormatInt(past, 10), Version: 1}
}

// errArchive says that the archive does not have what was stored there.
var errArchive = errors.New("audit: the archive does not have what was stored there")

// store writes the events from lo to hi-1 as an object, reads it back, and takes them out of the database.
func (a *Archive) store(ctx context.Context, lo, hi int64) error {
	t := a.trail
	r := archived{First: lo, Past: hi, ArchivedAt: clock.Micros(t.clock.Now())}
	needed := make(map[archiveKey]bool)
	content, err := a.pack(ctx, &r, needed)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	r.Hash, r.Bytes = sum[:], int64(len(content))
	r.Name = fmt.Sprintf("%s%012d-%012d-%s", a.prefix(), lo, hi, hex.EncodeToString(sum[:]))
	if err := a.o.Repository.Write(ctx, r.Name, content); err != nil {
		return fmt.Errorf("audit: the object %s was not written: %w", r.Name, err)
	}
	events, err := t.object(ctx, &r)
	if err != nil {
		return err
	}
	t.signRange(&r)
	e := Event{Action: ActionArchive, Resource: fmt.Sprintf("events %d to %d sha256:%x", lo, hi-1, sum)}
	err = t.Do(ctx, archivist, e, func(tx *db.Tx, _ *Event) error {
		if err := holdsLease(ctx, tx); err != nil {
			return err
		}
		for key := range needed {
			if err := upsertArchiveKey(ctx, tx, key, hi); err != nil {
				return err
			}
		}
		return insertRange(ctx, tx, &r)
	})
	if err != nil {
		return err
	}
	return a.remove(ctx, &r, events)
}

// archivist is in whose name the job acts.
var archivist = actor.OfSystem("archive")

// archiveKey is a version of a customer's key, or of the trail's own.
type archiveKey struct {
	customer string
	version  uint32
}

// pack returns the object of the range, whose events have to lead to the signed root of the log, and says in
// r what is in it.
func (a *Archive) pack(ctx context.Context, r *archived, needed map[archiveKey]bool) ([]byte, error) {
	t := a.trail
	fileKey := keystream.NewFileKey()
	defer clear(fileKey)
	ring := t.keys.Service(sealingKey)
	r.KeyVersion = int64(ring.Version())
	var object bytes.Buffer
	header := objectHeader{Version: 1, First: r.First, Past: r.Past, Key: ring.Seal(objectPlace(r.First, r.Past), fileKey)}
	if err := json.NewEncoder(&object).Encode(header); err != nil {
		return nil, err
	}
	sealed, err := keystream.NewWriter(fileKey, t.objectContext(r.First, r.Past), func(chunk []byte) error {
		object.Write(chunk)
		return nil
	})
	if err != nil {
		return nil, err
	}
	zipped := gzip.NewWriter(sealed)
	lines := json.NewEncoder(zipped)
	lines.SetEscapeHTML(false)
	announced := make(map[string]int64)
	for lo := r.First; lo < r.Past; lo += verifyPage {
		hi := min(lo+verifyPage, r.Past)
		var events []placed
		err := t.db.View(ctx, func(tx *db.Tx) (err error) {
			if events, err = selectLeaves(ctx, tx, lo, hi); err != nil {
				return err
			}
			return t.authenticLeaves(ctx, tx, lo, hi, events)
		})
		if err != nil {
			return nil, err
		}
		for i := range events {
			e := &events[i]
			if key, at, ok := e.announced(e.index); ok {
				if _, known := announced[hexHash(key)]; !known {
					announced[hexHash(key)] = at
				}
			}
			if version, err := seal.KeyVersion(e.sealed); err == nil {
				key := archiveKey{version: version}
				if e.sealedUnder == underCustomer {
					key.customer = e.customer
				}
				needed[key] = true
			}
			if first := e.index == r.First; first || e.id < r.FirstID {
				r.FirstID = e.id
			}
			r.LastID = max(r.LastID, e.id)
			if first := e.index == r.First; first || e.madeAt < r.Oldest {
				r.Oldest = e.madeAt
			}
			r.Newest = max(r.Newest, e.madeAt)
			if err := lines.Encode(storedEvent{e.index, string(e.appendLeaf(nil)), e.sealed, e.macVersion, e.mac}); err != nil {
				return nil, err
			}
		}
	}
	if r.Announced, err = json.Marshal(announced); err != nil {
		return nil, err
	}
	if err := errors.Join(zipped.Close(), sealed.Close()); err != nil {
		return nil, err
	}
	return object.Bytes(), nil
}

// authenticLeaves checks that the events are those with the places from lo to hi-1, by way of the tiles and
// the signed root.
func (t *Trail) authenticLeaves(ctx context.Context, tx *db.Tx, lo, hi int64, events []placed) error {
	h, err := selectHead(ctx, tx)
	if err != nil {
		return err
	}
	tree, err := t.headTree(h)
	if err != nil {
		return err
	}
	if int64(len(events)) != hi-lo || hi > tree.N {
		return fmt.Errorf("%w (events from index %d on are missing)", errTampered, lo)
	}
	places := make([]int64, len(events))
	for i := range events {
		places[i] = tlog.StoredHashIndex(0, lo+int64(i))
	}
	hashes, err := tlog.TileHashReader(tree, tileReader{ctx, tx}).ReadHashes(places)
	if err != nil {
		return tampered(err)
	}
	for i := range events {
		e := &events[i]
		if e.index != lo+int64(i) || e.version != leafVersion || leafHash(e.appendLeaf(nil)) != hashes[i] || len(e.sealed) > maxSealed {
			return fmt.Errorf("%w (the event at index %d)", errTampered, lo+int64(i))
		}
	}
	return nil
}

// object reads an object and returns its events, in order.
func (t *Trail) object(ctx context.Context, r *archived) ([]placed, error) {
	a := t.archive.Load()
	if a == nil {
		return nil, fmt.Errorf("audit: the events from index %d to %d are archived, and no archive is set: name audit.repository.url in the settings", r.First, r.Past-1)
	}
	content, err := a.o.Repository.Read(ctx, r.Name, r.Bytes+1)
	if err != nil {
		return nil, fmt.Errorf("audit: the object %s was not read: %w", r.Name, err)
	}
	if sum := sha256.Sum256(content); int64(len(content)) != r.Bytes || !bytes.Equal(sum[:], r.Hash) {
		return nil, fmt.Errorf("%w: the object %s was altered", errArchive, r.Name)
	}
	events, err := t.unpack(r, content)
	if err != nil {
		return nil, fmt.Errorf("%w: the object %s: %w", errArchive, r.Name, err)
	}
	return events, nil
}

// unpack takes apart what is genuine by its hash.
func (t *Trail) unpack(r *archived, content []byte) ([]placed, error) {
	first, chunks, found := bytes.Cut(content, []byte("\n"))
	var header objectHeader
	if err := json.Unmarshal(first, &header); err != nil || !found || header.Version != 1 || header.First != r.First || header.Past != r.Past {
		return nil, errors.New("it has an unknown form")
	}
	fileKey, err := t.keys.Service(sealingKey).Open(objectPlace(r.First, r.Past), header.Key)
	if err != nil {
		return nil, err
	}
	defer clear(fileKey)
	opened, err := keystream.NewReader(fileKey, t.objectContext(r.First, r.Past), func() ([]byte, error) {
		if len(chunks) == 0 {
			return nil, io.EOF
		}
		n := min(len(chunks), keystream.ChunkSize+keystream.Overhead)
		chunk := chunks[:n]
		chunks = chunks[n:]
		return chunk, nil
	})
	if err != nil {
		return nil, err
	}
	unzipped, err := gzip.NewReader(opened)
	if err != nil {
		return nil, err
	}
	lines := json.NewDecoder(io.LimitReader(unzipped, (r.Past-r.First)*maxLine))
	events := make([]placed, 0, min(r.Past-r.First, archiveRange))
	for index := r.First; index < r.Past; index++ {
		var s storedEvent
		if err := lines.Decode(&s); err != nil {
			return nil, err
		}
		e := placed{index: s.Index}
		if e.row, err = parseLeaf(s.Leaf); err != nil {
			return nil, err
		}
		e.event, e.sealed, e.macVersion, e.mac = e.id, s.Sealed, s.MACVersion, s.MAC
		if e.index != index {
			return nil, errors.New("its events are not in order")
		}
		events = append(events, e)
	}
	if lines.More() {
		return nil, errors.New("it has more events than it should")
	}
	return events, nil
}

// parseLeaf is the inverse of appendLeaf.
func parseLeaf(text string) (r row, err error) {
	var l leafText
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return row{}, errors.New("a leaf has an unknown form")
	}
	r = row{
		id: l.ID, version: l.V, madeAt: l.Time, actorKind: string(l.Actor.Kind), actorID: l.Actor.ID, device: l.Actor.Device, session: l.Actor.Session,
		action: l.Action, resource: l.Resource, customer: string(l.Customer), outcome: string(l.Outcome), reason: l.Reason,
		transaction: l.Transaction, request: l.Request, sealedUnder: l.SealedUnder,
	}
	if r.commitment, err = hex.DecodeString(l.Commitment); err != nil || r.version != leafVersion || string(r.appendLeaf(nil)) != text {
		return row{}, errors.New("a leaf has an unknown form")
	}
	if len(r.commitment) == 0 {
		r.commitment = nil
	}
	return r, nil
}

// purge deletes from the database what is left there of a range, after its object was read once more.
func (a *Archive) purge(ctx context.Context, r *archived) error {
	var left int64
	err := a.trail.db.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT count(*) FROM event_leaf WHERE idx >= $1 AND idx < $2`, r.First, r.Past).Scan(&left)
	})
	if err != nil || left == 0 || r.RemovedAt != 0 {
		return err
	}
	events, err := a.trail.object(ctx, r)
	if err != nil {
		return err
	}
	return a.remove(ctx, r, events)
}

// remove deletes the events, which are those of the range's object, from the database, some at a time.
func (a *Archive) remove(ctx context.Context, r *archived, events []placed) error {
	for from := 0; from < len(events); from += purgeStep {
		step := events[from:min(from+purgeStep, len(events))]
		err := a.trail.db.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
			if err := holdsLease(ctx, tx); err != nil {
				return err
			}
			// By the ids that the object has: places can be exchanged in the database.
			var ids []any
			var holders []string
			for i := range step {
				ids = append(ids, step[i].id)
				holders = append(holders, "$"+strconv.Itoa(i+1))
			}
			in := ` IN (` + strings.Join(holders, ", ") + `)`
			for _, query := range []string{`DELETE FROM event_leaf WHERE event_id` + in, `DELETE FROM event WHERE id` + in} {
				if _, err := tx.Exec(ctx, query, ids...); err != nil {
					return err
				}
			}
			_, err := a.trail.PruneSearch(ctx, tx, step[len(step)-1].index+1)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// expire deletes the objects whose time is over.
func (a *Archive) expire(ctx context.Context, list []archived) error {
	t := a.trail
	now := t.clock.Now()
	for i := range list {
		r := &list[i]
		if r.RemovedAt != 0 {
			continue
		}
		if r.Newest >= clock.Micros(now.Add(-a.o.Keep)) {
			return nil // the others are younger
		}
		if err := a.o.Repository.Delete(ctx, r.Name); err != nil {
			return fmt.Errorf("audit: the object %s was not deleted: %w", r.Name, err)
		}
		r.RemovedAt = clock.Micros(now)
		t.signRange(r)
		e := Event{Action: ActionArchiveRemove, Resource: fmt.Sprintf("events %d to %d sha256:%x", r.First, r.Past-1, r.Hash)}
		err := t.Do(ctx, archivist, e, func(tx *db.Tx, _ *Event) error {
			if err := holdsLease(ctx, tx); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `DELETE FROM audit_archive_key WHERE past <= $1`, r.Past); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `UPDATE audit_archive SET removed_at = $1, mac_version = $2, mac = $3 WHERE first = $4`, r.RemovedAt, r.macVersion, r.mac, r.First)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// holdsLease fails when the job's lease was lost.
func holdsLease(ctx context.Context, tx *db.Tx) error {
	lease, leased := jobs.LeaseOf(ctx)
	if !leased {
		return nil
	}
	held, err := jobs.Holds(ctx, tx, lease.Name, lease.Holder, lease.Epoch)
	if err == nil && !held {
		err = errors.New("audit: the lease was lost")
	}
	return err
}

func insertRange(ctx context.Context, tx *db.Tx, r *archived) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO audit_archive (first, past, name, hash, bytes, first_id, last_id, oldest, newest, announced, key_version,
			archived_at, removed_at, mac_version, mac)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
		r.First, r.Past, r.Name, r.Hash, r.Bytes, r.FirstID, r.LastID, r.Oldest, r.Newest, string(r.Announced), r.KeyVersion,
		r.ArchivedAt, r.RemovedAt, r.macVersion, r.mac)
	return err
}

func upsertArchiveKey(ctx context.Context, tx *db.Tx, key archiveKey, past int64) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO audit_archive_key (customer_id, version, past) VALUES ($1, $2, $3)
		ON CONFLICT (customer_id, version) DO UPDATE SET past = excluded.past`, key.customer, key.version, past)
	return err
}

// inArchive looks for an event in the archive.
func (t *Trail) inArchive(ctx context.Context, event string) (p placed, found bool, err error) {
	list, err := t.ranges(ctx)
	if err != nil {
		return placed{}, false, err
	}
	for i := range list {
		r := &list[i]
		if event < r.FirstID || event > r.LastID {
			continue
		}
		if r.RemovedAt != 0 {
			continue
		}
		events, err := t.object(ctx, r)
		if err != nil {
			return placed{}, false, err
		}
		if at := slices.IndexFunc(events, func(e placed) bool { return e.id == event }); at >= 0 {
			return events[at], true, nil
		}
	}
	return placed{}, false, nil
}

// exportArchive gives take those events of the ranges with places from lo on that the query names and whose
// ids are greater than after, in the order of their ids within an object.
func (t *Trail) exportArchive(ctx context.Context, list []archived, lo int64, after string, q ExportQuery, take func([]Entry) error) error {
	since, until := int64(0), clock.Micros(q.Until)
	if !q.Since.IsZero() {
		since = clock.Micros(q.Since)
	}
	for i := range list {
		r := &list[i]
		if r.First < lo || r.RemovedAt != 0 || r.Newest < since || r.Oldest >= until {
			continue
		}
		events, err := t.object(ctx, r)
		if err != nil {
			return err
		}
		events = slices.DeleteFunc(events, func(e placed) bool {
			return e.id <= after || e.madeAt < since || e.madeAt >= until || q.Customer != "" && customer.ID(e.customer) != q.Customer
		})
		slices.SortFunc(events, func(a, b placed) int { return strings.Compare(a.id, b.id) })
		for page := range slices.Chunk(events, exportPage) {
			var entries []Entry
			err := t.db.View(ctx, func(tx *db.Tx) error {
				entries = entries[:0]
				var known rings
				if q.Reveal {
					known = make(rings)
				}
				for i := range page {
					e, err := t.showGenuine(ctx, tx, &page[i], known)
					if err != nil {
						return err
					}
					entries = append(entries, e)
				}
				return nil
			})
			if err != nil {
				return err
			}
			if err := take(entries); err != nil {
				return err
			}
		}
	}
	return nil
}

// VerifyArchive is Verify, and reads all archived events from the archive too.
func (t *Trail) VerifyArchive(ctx context.Context, by actor.Actor, progress func(done, total int64)) (Report, error) {
	return t.verify(ctx, by, progress, verifyMode{archive: true})
}

var errNoArchive = problem.New(problem.Conflict, "no-archive", "No archive is set: name audit.repository.url in the settings.")

// readArchive checks the archived events against the tiles, which have been compared with the checkpoints.
func (v *verification) readArchive(ctx context.Context) error {
	for i := range v.ranges {
		r := &v.ranges[i]
		if r.RemovedAt != 0 {
			continue
		}
		events, err := v.object(ctx, r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.find(Altered, "", -1, "the archived events %d to %d cannot be read: %v", r.First, r.Past-1, err)
			continue
		}
		known := make(rings)
		for page := range slices.Chunk(events, verifyPage) {
			lo, hi := page[0].index, page[len(page)-1].index+1
			var tiles map[int64][]byte
			err := v.db.View(ctx, func(tx *db.Tx) (err error) {
				if tiles, err = selectTiles(ctx, tx, 0, lo/tileWidth, (hi+tileWidth-1)/tileWidth); err != nil {
					return err
				}
				for i := range page {
					if _, _, err := v.opener(ctx, tx, &page[i].row, known); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			for i := range page {
				e := &page[i]
				hash := leafHash(e.appendLeaf(nil))
				if at := int(e.index%tileWidth) * tlog.HashSize; !bytes.HasPrefix(tiles[e.index/tileWidth][min(at, len(tiles[e.index/tileWidth])):], hash[:]) {
					v.find(Altered, e.id, e.index, "the archived event does not have the hash that tile 0/%d of the log has for it", e.index/tileWidth)
				}
				switch state, err := v.personal(ctx, e, known); state {
				case personalErased:
					v.Erased++
				case personalAltered:
					v.find(Altered, e.id, e.index, "the personal part of the archived event was altered: %v", err)
				case personalKeyless:
					if !v.missingKeys[e.customer] {
						v.missingKeys[e.customer] = true
						v.find(Altered, e.id, e.index, "the data key of customer %q is missing or damaged, and no erasure is on record; this is the first event concerned", clean(e.customer, maxField))
					}
				}
			}
			v.ArchiveRead += int64(len(page))
		}
	}
	return nil
}

// rangeOf returns the range that the place belongs to; nil when it is not archived.
func rangeOf(list []archived, index int64) *archived {
	i, found := slices.BinarySearchFunc(list, index, func(r archived, index int64) int { return cmp.Compare(r.First, index) })
	switch {
	case found:
		return &list[i]
	case i > 0 && index < list[i-1].Past:
		return &list[i-1]
	}
	return nil
}

// announcedIn adds the checkpoint keys that the events of the range announce to what is known.
func (r *archived) announcedIn(known map[uint32]int64) {
	announced := make(map[string]int64)
	_ = json.Unmarshal(r.Announced, &announced) // it has our MAC
	for text, at := range announced {
		key, err := strconv.ParseUint(text, 16, 32)
		if err != nil {
			continue
		}
		if was, there := known[uint32(key)]; !there || at < was {
			known[uint32(key)] = at
		}
	}
}

// away marks those of the page's places whose events are out of the database because they are archived. What
// was archived after the verification began, the page's own snapshot knows.
func (v *verification) away(ctx context.Context, tx *db.Tx, p *page, events []placed) error {
	if int64(len(events)) >= p.hi-p.lo {
		return nil
	}
	here := make([]bool, p.hi-p.lo)
	for i := range events {
		here[events[i].index-p.lo] = true
	}
	ranges, again := v.ranges, false
	var last *archived
	for i := range here {
		index := p.lo + int64(i)
		if here[i] {
			continue
		}
		r := rangeOf(ranges, index)
		if r == nil && !again {
			again = true
			var err error
			if ranges, _, err = v.selectRanges(ctx, tx); err != nil {
				return err
			}
			r = rangeOf(ranges, index)
		}
		if r == nil {
			continue
		}
		p.leaves[i].archived = true
		p.away++
		if r != last {
			last = r
			if p.announced == nil {
				p.announced = make(map[uint32]int64)
			}
			r.announcedIn(p.announced)
		}
	}
	return nil
}
