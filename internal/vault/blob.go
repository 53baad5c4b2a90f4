package vault

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/keyring/stream"
	"strongroom/internal/problem"
)

// The actions on blobs.
const (
	ActionBlobCreate = "vault.blob.create"
	ActionBlobUpdate = "vault.blob.update"
	ActionBlobRead   = "vault.blob.read"
	ActionBlobDelete = "vault.blob.delete"
	ActionBlobExpire = "vault.blob.expire"
)

const (
	// MaxBlob is the largest blob in bytes.
	MaxBlob = 50 << 20
	// blobStep is how many chunks one transaction writes or reads, and so how much of a blob is in
	// memory at once: some 256 KiB, twice.
	blobStep = 4
	// maxTransfers is how many blobs are on their way at once.
	maxTransfers = 32
	// Contents that a blob names no more stay for those who are reading them; those that were never
	// finished until no upload can still be going on.
	replacedKeep = 10 * time.Minute
	uploadKeep   = 2 * time.Hour
	// sweepChunks is how many chunks one transaction of the sweep deletes.
	sweepChunks = 32
)

// Blob describes a document that is too large for a record.
type Blob struct {
	Ref
	ETag      string // strong, and never the same for two contents
	Size      int64
	UpdatedAt time.Time
}

// The states of a content.
const (
	uploading = "uploading"
	live      = "live"
	replaced  = "replaced"
	erased    = "erased"
)

var (
	errNoBlob    = problem.New(problem.NotFound, "blob-not-found", "There is no such blob.")
	errLargeBlob = problem.New(problem.TooLarge, "blob-too-large", "A blob is at most %d bytes.", MaxBlob)
	errPartBlob  = problem.New(problem.Invalid, "incomplete-body", "The body ended early. Send it again.")
	errBlobsBusy = problem.New(problem.Unavailable, "blobs-busy",
		"Too many large documents are on their way. Try again shortly.").RetryAfter(2 * time.Second)
)

// enter takes one of the places for transfers.
func (v *Vault) enter() (leave func(), p *problem.Problem) {
	if v.transfers.Add(1) > maxTransfers {
		v.transfers.Add(-1)
		return nil, errBlobsBusy
	}
	return func() { v.transfers.Add(-1) }, nil
}

// findBlob is find with the event naming a blob.
func (v *Vault) findBlob(d *deed, ref Ref) *schema {
	s, resource, p := v.find(ref)
	d.Resource = "blob" + resource[len("record"):]
	d.refuse(p)
	return s
}

// blobETag is the entity tag of a content.
func blobETag(content string) string { return `"` + content + `"` }

// checkBlob is condition.check for a blob, whose content is "" when there is none.
func (c condition) checkBlob(content string) *problem.Problem {
	if c.absent && content != "" {
		return errVersion
	}
	if c.match && (content == "" || !c.any && !slices.Contains(c.tags, blobETag(content))) {
		return errVersion
	}
	return nil
}

// PutBlob writes a blob from body, which it reads to its end, in bounded memory: at most MaxBlob bytes. The
// content is sealed chunk by chunk under a key of its own (see keyring/stream), which is sealed under the
// customer's key, bound to customer, collection, key and content. The blob is there, as a whole, once the
// event that says so is durable, and not before; what was sent of one that fails is deleted later. A blob
// that exists is replaced only when the condition names its ETag.
func (v *Vault) PutBlob(ctx context.Context, by actor.Actor, owner customer.ID, ref Ref, body io.Reader, c Condition) (b Blob, created bool, err error) {
	return v.putBlob(ctx, v.begin(by, owner, ActionBlobUpdate), owner, ref, body, c)
}

func (v *Vault) putBlob(ctx context.Context, d *deed, owner customer.ID, ref Ref, body io.Reader, c Condition) (b Blob, created bool, err error) {
	s := v.findBlob(d, ref)
	cond, p := c.parse()
	d.refuse(p)
	if d.err == nil && cond.absent {
		d.Action = ActionBlobCreate
	}
	if d.err != nil {
		return Blob{}, false, d.do(ctx, nil)
	}
	leave, p := v.enter()
	if p != nil {
		d.refuse(p)
		return Blob{}, false, d.do(ctx, nil)
	}
	defer leave()
	// admit is asked before anything is sent, to save the way, and decides in the end.
	admit := func(tx *db.Tx) (ring *seal.Ring, content string, p *problem.Problem, err error) {
		if err := v.keys.Erased(ctx, tx, owner); err != nil {
			return nil, "", nil, err
		}
		if ring, err = v.keys.Customer(ctx, tx, owner); err != nil {
			return nil, "", nil, err
		}
		row, found, err := selectBlob(ctx, tx, owner, ref)
		if err != nil {
			return nil, "", nil, err
		}
		if p = cond.checkBlob(row.content); p == nil && found && !cond.match {
			p = errUnconditional
		}
		if p == nil && !found {
			var n int
			if n, err = countBlobs(ctx, tx, owner, ref.Collection); err == nil && n >= s.Limit {
				p = problem.New(problem.Conflict, "too-many-blobs", "This collection holds at most %d blobs of one customer.", s.Limit)
			}
		}
		return ring, row.content, p, err
	}
	content := id.New("blb")
	begin := func(tx *db.Tx) error {
		return insertContent(ctx, tx, content, owner, clock.Micros(v.clock.Now()))
	}
	var refused *problem.Problem
	err = v.db.Update(ctx, func(tx *db.Tx) (err error) {
		if _, _, refused, err = admit(tx); err != nil || refused != nil {
			return err
		}
		return begin(tx)
	})
	if err == nil && refused != nil && d.once != nil {
		// What was done before may be asked for again, although it could not be done again.
		err = v.db.Update(ctx, func(tx *db.Tx) error {
			known, err := d.once.book.Known(ctx, tx, d.once.request)
			if err != nil || !known {
				return err
			}
			refused = nil
			return begin(tx)
		})
	}
	if p := problem.Of(err); p != nil {
		refused, err = p, nil
	}
	if err != nil {
		return Blob{}, false, err
	}
	if refused != nil {
		d.refuse(refused)
		return Blob{}, false, d.do(ctx, nil)
	}
	defer func() {
		if err != nil || d.once != nil && d.once.given != nil {
			v.abandon(ctx, content)
		}
	}()
	digest := sha256.New()
	if d.once != nil {
		body = io.TeeReader(body, digest)
	}
	fileKey := stream.NewFileKey()
	defer clear(fileKey)
	size, err := v.upload(ctx, content, fileKey, body)
	if p := problem.Of(err); p != nil {
		d.refuse(p)
		return Blob{}, false, d.do(ctx, nil)
	}
	if err != nil {
		return Blob{}, false, err
	}
	head := binary.BigEndian.AppendUint64(slices.Clone(fileKey), uint64(size))
	defer clear(head)
	now := clock.Micros(v.clock.Now())
	result := func() writtenBlob {
		return writtenBlob{Blob{ref, blobETag(content), size, clock.FromMicros(now)}, created}
	}
	if d.once != nil {
		d.once.request.Asked = append(d.once.request.Asked, digest.Sum(nil))
	}
	d.remember(func() any { return result() })
	err = d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		ring, old, p, err := admit(tx)
		if err != nil {
			return err
		}
		created = old == ""
		e.Action = ActionBlobUpdate
		if created {
			e.Action = ActionBlobCreate
		}
		d.Action = e.Action
		if p != nil {
			e.Deny(p)
			return nil
		}
		// An erasure or the sweep may have come in between.
		if err := setContent(ctx, tx, content, uploading, live, now); err != nil {
			return err
		}
		if !created {
			if err := setContent(ctx, tx, old, live, replaced, now); err != nil {
				return err
			}
		}
		return upsertBlob(ctx, tx, owner, ref, blobRow{content, ring.Seal(blobPlace(owner, ref, content), head), now})
	})
	if err != nil {
		return Blob{}, false, err
	}
	out, err := recall(d, result)
	return out.Blob, out.Created, err
}

// writtenBlob is what PutBlob answers.
type writtenBlob struct {
	Blob    Blob
	Created bool
}

// blobPlace binds the key of a content to the blob that it is of.
func blobPlace(owner customer.ID, ref Ref, content string) seal.Place {
	return seal.Place{Room: room, Table: "blob", Customer: string(owner), Record: ref.Collection + "/" + ref.Key + "#" + content, Version: 1}
}

// upload seals body into chunks, step by step.
func (v *Vault) upload(ctx context.Context, content string, fileKey []byte, body io.Reader) (size int64, err error) {
	var step [][]byte
	first := int64(0)
	flush := func() error {
		if len(step) == 0 {
			return nil
		}
		err := v.db.Update(ctx, func(tx *db.Tx) error {
			state, err := contentState(ctx, tx, content)
			if err != nil {
				return err
			}
			if state != uploading {
				return errGone(state)
			}
			return insertChunks(ctx, tx, content, first, step)
		})
		first += int64(len(step))
		step = step[:0]
		return err
	}
	w, err := stream.NewWriter(fileKey, content, func(chunk []byte) error {
		step = append(step, slices.Clone(chunk))
		if len(step) < blobStep {
			return nil
		}
		return flush()
	})
	if err != nil {
		return 0, err
	}
	source := &faulty{Reader: io.LimitReader(body, MaxBlob+1)}
	size, err = io.Copy(w, source)
	switch {
	case source.err != nil:
		return 0, errPartBlob.Because(source.err)
	case err != nil:
		return 0, err
	case size > MaxBlob:
		return 0, errLargeBlob
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	return size, flush()
}

// faulty remembers that reading failed, to tell it from a failure of writing.
type faulty struct {
	io.Reader
	err error
}

func (f *faulty) Read(b []byte) (int, error) {
	n, err := f.Reader.Read(b)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// errGone says what became of a content that is no longer what it was.
func errGone(state string) error {
	if state == erased {
		return problem.New(problem.Gone, "customer-erased", "The customer's data were erased.")
	}
	return problem.New(problem.Conflict, "blob-replaced", "The blob was replaced or deleted meanwhile. Ask again.")
}

// abandon gives what was uploaded to the sweep. Without it the sweep comes later.
func (v *Vault) abandon(ctx context.Context, content string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := v.db.Update(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE blob_content SET state = $1, changed_at = $2 WHERE id = $3 AND state = $4`,
			replaced, clock.Micros(v.clock.Now()), content, uploading)
		return err
	})
	if err != nil {
		v.log.WarnContext(ctx, "an upload that failed is deleted later", "content", content, "error", err)
	}
}

// BlobReader reads a blob. Close it.
type BlobReader struct {
	Blob
	*stream.Reader
	leave func()
}

// Close ends the reading.
func (r *BlobReader) Close() { r.leave() }

// OpenBlob returns the blob for reading, for a purpose that its collection allows. The event is durable
// before OpenBlob returns. The content is read in small steps, and no step is released before it was
// authenticated; reading fails when anything of it was altered, and from the moment at which the customer
// is erased. A blob that is replaced meanwhile can be read to its end.
func (v *Vault) OpenBlob(ctx context.Context, by actor.Actor, owner customer.ID, ref Ref, purpose string) (*BlobReader, error) {
	return v.openBlob(ctx, v.begin(by, owner, ActionBlobRead), owner, ref, purpose)
}

func (v *Vault) openBlob(ctx context.Context, d *deed, owner customer.ID, ref Ref, purpose string) (*BlobReader, error) {
	s := v.findBlob(d, ref)
	if d.err == nil {
		d.refuse(s.allows(Reveal{All: true, Purpose: purpose}))
	}
	if d.err == nil {
		d.Reason = "purpose:" + purpose
	}
	return v.readBlob(ctx, d, owner, ref)
}

// ExportBlob returns the content of a blob that an Export names, also of a collection that is no longer declared.
// The event has the reason "purpose:portability". Only the system may export so far.
func (v *Vault) ExportBlob(ctx context.Context, by actor.Actor, owner customer.ID, b ExportBlob) (*BlobReader, error) {
	ref := Ref{b.Collection, b.Key}
	d := &deed{Vault: v, by: by, Event: audit.Event{Action: ActionBlobRead, Resource: "blob " + b.Collection + "/" + b.Key,
		Customer: owner, Reason: "purpose:portability"}, err: systemOnly(by)}
	if !owner.Valid() {
		d.Customer = ""
	}
	return v.readBlob(ctx, d, owner, ref)
}

// readBlob opens a blob, unless d was refused.
func (v *Vault) readBlob(ctx context.Context, d *deed, owner customer.ID, ref Ref) (*BlobReader, error) {
	leave := func() {}
	if d.err == nil {
		var p *problem.Problem
		if leave, p = v.enter(); p != nil {
			d.refuse(p)
		}
	}
	var ring *seal.Ring
	var row blobRow
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) (err error) {
		if ring, err = v.keys.Customer(ctx, tx, owner); err != nil {
			return err
		}
		var found bool
		if row, found, err = selectBlob(ctx, tx, owner, ref); err == nil && !found {
			if err = v.keys.Erased(ctx, tx, owner); err == nil {
				e.Deny(errNoBlob)
			}
		}
		if err == nil {
			ring, err = v.keys.Holding(ctx, tx, owner, ring, row.sealed)
		}
		return err
	})
	if err != nil {
		if d.err == nil {
			leave()
		}
		return nil, err
	}
	head, err := ring.Open(blobPlace(owner, ref, row.content), row.sealed)
	if err != nil || len(head) != stream.KeySize+8 {
		leave()
		return nil, d.damaged(ctx, ref, cmp.Or(err, errors.New("the blob's head has another length")))
	}
	defer clear(head)
	b := Blob{ref, blobETag(row.content), int64(binary.BigEndian.Uint64(head[stream.KeySize:])), clock.FromMicros(row.updatedAt)}
	r, err := stream.NewReader(head[:stream.KeySize], row.content, v.chunks(ctx, row.content, stream.Chunks(b.Size)))
	if err != nil {
		leave()
		return nil, err
	}
	return &BlobReader{b, r, leave}, nil
}

// chunks returns a function that fetches the chunks of a content in order, a few at a time.
func (v *Vault) chunks(ctx context.Context, content string, total int64) func() ([]byte, error) {
	var next int64
	var step [][]byte
	return func() ([]byte, error) {
		if next == total {
			return nil, io.EOF
		}
		if len(step) == 0 {
			err := v.db.View(ctx, func(tx *db.Tx) error {
				state, err := contentState(ctx, tx, content)
				if err != nil {
					return err
				}
				if state != live && state != replaced {
					return errGone(state)
				}
				step, err = selectChunks(ctx, tx, content, next)
				return err
			})
			if err != nil {
				return nil, err
			}
			if len(step) == 0 {
				return nil, fmt.Errorf("%w: chunk %d is missing", stream.ErrOpen, next)
			}
		}
		chunk := step[0]
		step = step[1:]
		next++
		return chunk, nil
	}
}

// DeleteBlob removes a blob. Its key is gone at once, its chunks soon after.
func (v *Vault) DeleteBlob(ctx context.Context, by actor.Actor, owner customer.ID, ref Ref, c Condition) error {
	return v.deleteBlob(ctx, v.begin(by, owner, ActionBlobDelete), owner, ref, c)
}

func (v *Vault) deleteBlob(ctx context.Context, d *deed, owner customer.ID, ref Ref, c Condition) error {
	v.findBlob(d, ref)
	cond, p := c.parse()
	d.refuse(p)
	return d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		if _, err := v.keys.Customer(ctx, tx, owner); err != nil {
			return err
		}
		row, found, err := selectBlob(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		if !found {
			if err := v.keys.Erased(ctx, tx, owner); err != nil {
				return err
			}
			e.Deny(errNoBlob)
			return nil
		}
		if p := cond.checkBlob(row.content); p != nil {
			e.Deny(p)
			return nil
		}
		return removeBlob(ctx, tx, owner, ref, row.content, clock.Micros(v.clock.Now()))
	})
}

// BlobJob returns the job that deletes the chunks of contents that nobody needs any more.
func (v *Vault) BlobJob() jobs.Job {
	return jobs.Job{Name: "vault-blobs", Every: time.Minute, Run: v.SweepBlobs, Leased: true, Quiet: true}
}

// SweepBlobs deletes the chunks of contents that were erased, replaced some time ago or never finished, in
// small transactions, until none is left or ctx ends. Without the key of its content, which went before, a
// chunk says nothing.
func (v *Vault) SweepBlobs(ctx context.Context) error {
	now := v.clock.Now()
	for _, due := range []struct {
		state string
		keep  time.Duration
	}{{erased, 0}, {replaced, replacedKeep}, {uploading, uploadKeep}} {
		for {
			var contents []string
			before := clock.Micros(now.Add(-due.keep))
			err := v.db.View(ctx, func(tx *db.Tx) (err error) {
				contents, err = selectContents(ctx, tx, due.state, before)
				return err
			})
			if err != nil {
				return err
			}
			for _, content := range contents {
				for left := true; left; {
					if err := ctx.Err(); err != nil {
						return err
					}
					err := v.db.Update(ctx, func(tx *db.Tx) (err error) {
						left, err = sweepContent(ctx, tx, content, due.state)
						return err
					})
					if err != nil {
						return fmt.Errorf("deleting the chunks of a blob: %w", err)
					}
				}
			}
			if len(contents) < sweepContents {
				break
			}
		}
	}
	return nil
}

// expireBlobs ends the retention of a collection's blobs.
func (v *Vault) expireBlobs(ctx context.Context, by actor.Actor, s *schema, before int64) error {
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var gone int
		err := v.db.Update(ctx, func(tx *db.Tx) error {
			old, err := selectOldBlobs(ctx, tx, s.Name, before)
			if err != nil {
				return err
			}
			gone = len(old)
			for _, o := range old {
				ref := Ref{s.Name, o.key}
				if err := removeBlob(ctx, tx, o.customer, ref, o.content, clock.Micros(v.clock.Now())); err != nil {
					return err
				}
				if err := v.trail.Record(ctx, tx, by, audit.Event{
					Action: ActionBlobExpire, Resource: "blob " + s.Name + "/" + o.key, Customer: o.customer,
					Outcome: audit.Granted, Reason: "retention-over",
				}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("expire the blobs of %s: %w", s.Name, err)
		}
		v.operations.WithLabelValues(ActionBlobExpire, "granted").Add(float64(gone))
		more = gone == expireBatch
	}
	return nil
}

// blobRow is a blob as it stands in the database.
type blobRow struct {
	content   string
	sealed    []byte
	updatedAt int64
}

func selectBlob(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref) (b blobRow, found bool, err error) {
	err = tx.QueryRow(ctx, `SELECT content_id, sealed, updated_at FROM blob WHERE customer_id = $1 AND collection = $2 AND key = $3`,
		string(owner), ref.Collection, ref.Key).Scan(&b.content, &b.sealed, &b.updatedAt)
	if errors.Is(err, sql.ErrNoRows) {
		return blobRow{}, false, nil
	}
	return b, err == nil, err
}

func countBlobs(ctx context.Context, tx *db.Tx, owner customer.ID, collection string) (n int, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM blob WHERE customer_id = $1 AND collection = $2`, string(owner), collection).Scan(&n)
	return n, err
}

func upsertBlob(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref, b blobRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO blob (customer_id, collection, key, content_id, sealed, updated_at) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (customer_id, collection, key) DO UPDATE
		SET content_id = excluded.content_id, sealed = excluded.sealed, updated_at = excluded.updated_at`,
		string(owner), ref.Collection, ref.Key, b.content, b.sealed, b.updatedAt)
	return err
}

func removeBlob(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref, content string, now int64) error {
	n, err := tx.Exec(ctx, `DELETE FROM blob WHERE customer_id = $1 AND collection = $2 AND key = $3 AND content_id = $4`,
		string(owner), ref.Collection, ref.Key, content)
	if err := exactlyOne(n, err); err != nil {
		return err
	}
	return setContent(ctx, tx, content, live, replaced, now)
}

func insertContent(ctx context.Context, tx *db.Tx, content string, owner customer.ID, now int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO blob_content (id, customer_id, state, changed_at) VALUES ($1, $2, $3, $4)`,
		content, string(owner), uploading, now)
	return err
}

// contentState returns the state of a content, or "".
func contentState(ctx context.Context, tx *db.Tx, content string) (state string, err error) {
	err = tx.QueryRow(ctx, `SELECT state FROM blob_content WHERE id = $1`, content).Scan(&state)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return state, err
}

func setContent(ctx context.Context, tx *db.Tx, content, from, to string, now int64) error {
	n, err := tx.Exec(ctx, `UPDATE blob_content SET state = $1, changed_at = $2 WHERE id = $3 AND state = $4`, to, now, content, from)
	if err == nil && n != 1 {
		err = errGone("")
	}
	return err
}

func insertChunks(ctx context.Context, tx *db.Tx, content string, first int64, chunks [][]byte) error {
	for i, c := range chunks {
		if _, err := tx.Exec(ctx, `INSERT INTO blob_chunk (content_id, n, sealed) VALUES ($1, $2, $3)`, content, first+int64(i), c); err != nil {
			return err
		}
	}
	return nil
}

// selectChunks returns the next few chunks from number n on, as far as they follow each other.
func selectChunks(ctx context.Context, tx *db.Tx, content string, n int64) (chunks [][]byte, err error) {
	rows, err := tx.Query(ctx, `SELECT n, sealed FROM blob_chunk WHERE content_id = $1 AND n >= $2 ORDER BY n LIMIT $3`, content, n, blobStep)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var number int64
		var sealed []byte
		if err := rows.Scan(&number, &sealed); err != nil {
			return nil, err
		}
		if number != n+int64(len(chunks)) {
			break
		}
		chunks = append(chunks, sealed)
	}
	return chunks, rows.Err()
}

// sweepContents is how many contents the sweep looks up at once.
const sweepContents = 100

func selectContents(ctx context.Context, tx *db.Tx, state string, before int64) (contents []string, err error) {
	rows, err := tx.Query(ctx, `SELECT id FROM blob_content WHERE state = $1 AND changed_at <= $2 ORDER BY changed_at LIMIT $3`,
		state, before, sweepContents)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var content string
		if err := rows.Scan(&content); err != nil {
			return nil, err
		}
		contents = append(contents, content)
	}
	return contents, rows.Err()
}

// sweepContent deletes some chunks, and the content itself once it has none, and reports whether some may
// be left. A content that is no longer in the state is left alone.
func sweepContent(ctx context.Context, tx *db.Tx, content, state string) (left bool, err error) {
	now, err := contentState(ctx, tx, content)
	if err != nil || now != state {
		return false, err
	}
	n, err := tx.Exec(ctx, `
		DELETE FROM blob_chunk WHERE content_id = $1 AND n IN
			(SELECT n FROM blob_chunk WHERE content_id = $1 ORDER BY n LIMIT $2)`, content, sweepChunks)
	if err != nil || n > 0 {
		return n > 0, err
	}
	_, err = tx.Exec(ctx, `DELETE FROM blob_content WHERE id = $1`, content)
	return false, err
}

type oldBlob struct {
	customer     customer.ID
	key, content string
}

func selectOldBlobs(ctx context.Context, tx *db.Tx, collection string, before int64) (out []oldBlob, err error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id, key, content_id FROM blob WHERE collection = $1 AND updated_at <= $2 ORDER BY updated_at LIMIT $3`,
		collection, before, expireBatch)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var o oldBlob
		if err := rows.Scan(&o.customer, &o.key, &o.content); err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, rows.Err()
}

// eraseBlobs takes the keys of all contents of a customer at once, finished or not; the sweep deletes
// what is left of them.
func eraseBlobs(ctx context.Context, tx *db.Tx, c customer.ID, now int64) (n int64, err error) {
	if n, err = tx.Exec(ctx, `DELETE FROM blob WHERE customer_id = $1`, string(c)); err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, `UPDATE blob_content SET state = $1, changed_at = $2 WHERE customer_id = $3`, erased, now, string(c))
	return n, err
}
