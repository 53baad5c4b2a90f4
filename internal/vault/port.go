package vault

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// The actions of import and export. What an import does to a record is recorded like any other change of
// it, with the reason "import".
const (
	ActionImport  = "vault.import"
	ActionCompare = "vault.record.compare" // an import found the record there already
	ActionExport  = "vault.customer.export"
)

const (
	// MaxImport is the most rows that Import takes at once. All of them are one transaction, for which
	// other writers of the embedded database wait some 20 ms.
	MaxImport = 64
	// maxExternal is how many characters the name that another system gave to a customer may have.
	maxExternal = 128
	// importKey is the key of a record whose row names none.
	importKey = "main"
)

// ImportRow is a record to be imported.
type ImportRow struct {
	Line     int64  `json:"line"`          // where it stands in what is imported; it comes back in the result
	External string `json:"customer"`      // the name that the system it comes from gave to the customer
	Key      string `json:"key,omitempty"` // empty means main
	// Fields is the record as JSON. Columns is the same as text, as CSV has it: numbers and booleans as
	// JSON writes them, an empty text for a field that is left out. One of the two is given.
	Fields  json.RawMessage   `json:"fields,omitempty"`
	Columns map[string]string `json:"columns,omitempty"`
}

// The outcomes of a row.
const (
	Created   = "created"   // the record is new
	Updated   = "updated"   // the record was replaced
	Unchanged = "unchanged" // the record was there, with just these values
	Refused   = "refused"
)

// ImportResult is what became of a row. It holds no value of it.
type ImportResult struct {
	Line     int64        `json:"line"`
	Outcome  string       `json:"outcome"`
	Customer customer.ID  `json:"customer,omitempty"` // whose record it is; empty when refused
	Reason   string       `json:"reason,omitempty"`   // why it was refused: the slug of a problem
	Detail   string       `json:"detail,omitempty"`
	Errors   []FieldError `json:"errors,omitempty"`
}

// incoming is a row on its way.
type incoming struct {
	ImportRow
	ref    Ref
	values []value
	plain  []byte
	blinds []blind
	index  []byte
	names  []keyring.Blind // of External, under every version
	write  []keyring.Blind // of External, as it is written
}

// Import writes up to MaxImport records of other systems, each to the customer whom the external name
// stands for, and makes the customers that are not there yet, with a key of their own. The records are one
// transaction, with an event for each; a row that cannot be taken is refused by itself, with the reason
// in its result. A record that is there is left alone: the row is Unchanged when it says the same, and
// otherwise refused, or, with replace, written over it. So whatever was interrupted can be imported once
// more. A customer who was erased is not made again.
//
// External names are looked up by a keyed hash and sealed under the customer's key. Only the system may
// import so far.
func (v *Vault) Import(ctx context.Context, by actor.Actor, collection string, rows []ImportRow, replace bool) ([]ImportResult, error) {
	results, err := v.importRows(ctx, by, collection, rows, replace)
	if v.outdated(ctx, err) {
		results, err = v.importRows(ctx, by, collection, rows, replace)
	}
	return results, err
}

func (v *Vault) importRows(ctx context.Context, by actor.Actor, collection string, rows []ImportRow, replace bool) ([]ImportResult, error) {
	d := &deed{Vault: v, by: by, Event: audit.Event{Action: ActionImport, Resource: "collection"}, err: systemOnly(by)}
	s := v.collections()[collection]
	if s == nil {
		d.refuse(problem.New(problem.NotFound, "collection-not-found", "There is no such collection."))
	} else {
		d.Resource += " " + s.Name
	}
	if len(rows) == 0 || len(rows) > MaxImport {
		d.refuse(problem.New(problem.Unprocessable, "invalid-batch", "Import 1 to %d rows at once.", MaxImport))
	}
	if d.err != nil {
		return nil, d.do(ctx, nil)
	}
	// All that does not depend on the database comes first: other writers wait for the transaction.
	ready := make([]incoming, len(rows))
	wrong := make([]*problem.Problem, len(rows))
	defer func() {
		for _, r := range ready {
			clear(r.plain)
		}
	}()
	generation := v.keys.Generation()
	for i, r := range rows {
		ready[i], wrong[i] = v.incoming(s, r)
	}
	now := clock.Micros(v.clock.Now())
	results := make([]ImportResult, len(rows))
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		if err := s.current(ctx, tx); err != nil {
			return err
		}
		keys, err := v.keys.CatchUp(ctx, tx)
		if err != nil {
			return err
		}
		refused := 0
		for i := range rows {
			if keys != generation && wrong[i] == nil {
				v.index(s, &ready[i])
			}
			results[i] = ImportResult{Line: rows[i].Line}
			p := wrong[i]
			if p == nil {
				var err error
				results[i].Outcome, results[i].Customer, err = v.take(ctx, tx, by, s, &ready[i], replace, now)
				if p = problem.Of(err); err != nil && (p == nil || p.Kind() >= problem.Internal) {
					return err
				}
			}
			if p != nil {
				refused++
				results[i] = ImportResult{Line: rows[i].Line, Outcome: Refused, Reason: p.Slug(), Detail: p.Detail()}
				results[i].Errors, _ = p.Member("errors").([]FieldError)
			}
		}
		e.Resource += " " + strconv.Itoa(len(rows)) + " rows"
		if refused > 0 {
			e.Resource += ", " + strconv.Itoa(refused) + " refused"
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

func systemOnly(by actor.Actor) *problem.Problem {
	if by.Kind != actor.System {
		return problem.New(problem.Forbidden, "not-allowed", "Only the operator may do this.")
	}
	return nil
}

// incoming checks a row and does all the work that can be done before the transaction.
func (v *Vault) incoming(s *schema, r ImportRow) (in incoming, p *problem.Problem) {
	in = incoming{ImportRow: r, ref: Ref{s.Name, r.Key}}
	if in.ref.Key == "" {
		in.ref.Key = importKey
	}
	if n := utf8.RuneCountInString(r.External); !utf8.ValidString(r.External) || n == 0 || n > maxExternal ||
		strings.ContainsFunc(r.External, unprintable) {
		return in, problem.New(problem.Unprocessable, "invalid-customer",
			"customer must be the name of the customer in the system that the row comes from, of 1 to %d characters.", maxExternal)
	}
	if !keyForm.MatchString(in.ref.Key) {
		return in, problem.New(problem.Unprocessable, "invalid-key",
			"A record's key is 1 to 64 letters, digits, dots, hyphens and underscores.")
	}
	body := []byte(r.Fields)
	if r.Columns != nil {
		body = s.object(r.Columns)
	}
	if in.values, p = s.decode(body); p != nil {
		return in, p
	}
	in.plain = encode(in.values)
	v.index(s, &in)
	return in, nil
}

func (v *Vault) index(s *schema, in *incoming) {
	in.blinds = v.blinds(s, in.values)
	in.index = digest(in.blinds)
	in.names = v.keys.BlindIndexes(externalIndex, []byte(in.External))
	in.write = v.keys.IndexesToWrite(externalIndex, []byte(in.External))
}

const externalIndex = "vault.external"

// object returns the columns of a row of text as the JSON that the fields' types ask for.
func (s *schema) object(columns map[string]string) []byte {
	b := []byte{'{'}
	for name, text := range columns {
		if text == "" {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(appendQuoted(b, name), ':')
		f := s.fields[name]
		if f != nil && (f.Type == Integer || f.Type == Number || f.Type == Boolean) && literal(text) {
			b = append(b, text...)
		} else {
			b = appendQuoted(b, text)
		}
	}
	return append(b, '}')
}

// literal reports whether text is a JSON number or boolean.
func literal(text string) bool {
	return text[0] != '"' && text[0] != '{' && text[0] != '[' && text[0] != 'n' && json.Valid([]byte(text)) &&
		!strings.ContainsAny(text, " \t\r\n")
}

var errRecordExists = problem.New(problem.Conflict, "record-exists",
	"The customer has such a record already, with other values. Import with replace to write over it.")

// take writes one row. A problem refuses the row, before anything was written for it.
func (v *Vault) take(ctx context.Context, tx *db.Tx, by actor.Actor, s *schema, in *incoming, replace bool, now int64) (outcome string, owner customer.ID, err error) {
	if owner, err = selectExternal(ctx, tx, in.names); err != nil {
		return "", "", err
	}
	var ring *seal.Ring
	var old row
	there := false
	if owner != "" {
		if err := v.keys.Erased(ctx, tx, owner); err != nil {
			return "", "", err
		}
		if ring, err = v.keys.Customer(ctx, tx, owner); err != nil {
			return "", "", err
		}
		if old, there, err = selectRecord(ctx, tx, owner, in.ref); err != nil {
			return "", "", err
		}
		if ring, err = v.keys.Holding(ctx, tx, owner, ring, old.sealed); err != nil {
			return "", "", err
		}
	}
	event := audit.Event{Resource: "record " + s.Name + "/" + in.ref.Key, Customer: owner, Outcome: audit.Granted, Reason: "import"}
	w := row{version: old.version + 1, schemaVersion: s.Version, indexed: in.index, updatedAt: now}
	if there {
		plain, err := ring.Open(place(owner, in.ref, old), old.sealed)
		same := err == nil && bytes.Equal(plain, in.plain)
		clear(plain)
		switch {
		case err != nil && !replace:
			return "", "", problem.New(problem.Conflict, "record-unreadable", "The customer's record cannot be read.")
		case same:
			event.Action = ActionCompare
			return Unchanged, owner, v.trail.Record(ctx, tx, by, event)
		case !replace:
			return "", "", errRecordExists
		}
	} else if owner != "" {
		var count int
		if w.version, count, err = selectRoom(ctx, tx, owner, s.Name); err != nil {
			return "", "", err
		}
		if count >= s.Limit {
			return "", "", problem.New(problem.Conflict, "too-many-records", "This collection holds at most %d records of one customer.", s.Limit)
		}
	}
	if err := free(ctx, tx, owner, in); err != nil {
		return "", "", err
	}
	// From here on only the database can fail.
	if owner == "" {
		owner = customer.NewID()
		event.Customer = owner
		if ring, err = v.keys.CreateCustomer(ctx, tx, by, owner); err != nil {
			return "", "", err
		}
		if err := insertExternal(ctx, tx, owner, in.write, ring.Seal(externalPlace(owner), []byte(in.External))); err != nil {
			return "", "", err
		}
	}
	w.sealed = ring.Seal(place(owner, in.ref, w), in.plain)
	event.Resource += " v" + strconv.FormatInt(w.version, 10)
	if there {
		outcome, event.Action = Updated, ActionUpdate
		if err = updateRecord(ctx, tx, owner, in.ref, old.version, w); err == nil {
			err = deleteIndex(ctx, tx, owner, in.ref)
		}
	} else {
		outcome, event.Action = Created, ActionCreate
		err = insertRecord(ctx, tx, owner, in.ref, w)
	}
	if err != nil {
		return "", "", err
	}
	if err := insertIndex(ctx, tx, owner, in.ref, in.blinds); err != nil {
		return "", "", errors.Join(errIndexTaken, err)
	}
	return outcome, owner, v.trail.Record(ctx, tx, by, event)
}

// errIndexTaken ends the transaction: free has said that there is room.
var errIndexTaken = problem.New(problem.Unavailable, "import-conflict", "Somebody else wrote the same value. Import again.")

func externalPlace(owner customer.ID) seal.Place {
	return seal.Place{Room: room, Table: "external_ref", Customer: string(owner), Version: 1}
}

// free refuses values that must be unique and that another record holds.
func free(ctx context.Context, tx *db.Tx, owner customer.ID, in *incoming) error {
	for _, b := range in.blinds {
		if !b.sole {
			continue
		}
		var n int
		err := tx.QueryRow(ctx, `
			SELECT COUNT(*) FROM record_index
			WHERE collection = $1 AND field = $2 AND key_version = $3 AND blind = $4 AND NOT (customer_id = $5 AND key = $6)`,
			in.ref.Collection, b.field, b.Version, b.Value, string(owner), in.ref.Key).Scan(&n)
		if err != nil {
			return err
		}
		if n > 0 {
			return problem.New(problem.Conflict, "value-taken", "Another record holds a value that must be unique; see errors.").
				With("errors", []FieldError{{b.field, "is in use already"}})
		}
	}
	return nil
}

// selectExternal returns the customer with the external name, or "".
func selectExternal(ctx context.Context, tx *db.Tx, names []keyring.Blind) (c customer.ID, err error) {
	condition, args := among(names, "blind", 1)
	err = tx.QueryRow(ctx, `SELECT customer_id FROM external_ref WHERE `+condition+` LIMIT 1`, args...).Scan(&c)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return c, err
}

func insertExternal(ctx context.Context, tx *db.Tx, c customer.ID, names []keyring.Blind, sealed []byte) error {
	for _, b := range names {
		if _, err := tx.Exec(ctx, `INSERT INTO external_ref (key_version, blind, customer_id, sealed) VALUES ($1, $2, $3, $4)`,
			b.Version, b.Value, string(c), sealed); err != nil {
			return err
		}
	}
	return nil
}

// Export is what the vault keeps of a customer: all records, whole, and the names of blobs.
type Export struct {
	Customer    customer.ID               `json:"customer"`
	External    string                    `json:"external,omitempty"` // the name under which they were imported
	ExportedAt  time.Time                 `json:"exported_at"`
	Identity    any                       `json:"identity,omitempty"`    // what the identity room keeps: number, devices, sessions
	LegalBases  map[string]LegalBasis     `json:"legal_bases,omitempty"` // of the collections that name one; fields that have another: collection.field
	Collections map[string][]ExportRecord `json:"collections"`
	Blobs       []ExportBlob              `json:"blobs,omitempty"`
}

// ExportBlob names a blob; its content is read by OpenBlob.
type ExportBlob struct {
	Collection string    `json:"collection"`
	Key        string    `json:"key"`
	UpdatedAt  time.Time `json:"updated_at"`
}

// ExportRecord is one record of an Export.
type ExportRecord struct {
	Key       string         `json:"key"`
	Version   int64          `json:"version"`
	UpdatedAt time.Time      `json:"updated_at"`
	Fields    map[string]any `json:"fields"`
}

// Exporter is another room that keeps something of customers, for Export.
type Exporter interface {
	// ExportCustomer returns what the room keeps of c, as JSON can hold it; nil when there is nothing. It
	// fails rather than leave something out.
	ExportCustomer(ctx context.Context, tx *db.Tx, c customer.ID) (any, error)
}

// bases adds the legal bases of a collection and of its fields.
func (s *schema) bases(all map[string]LegalBasis) {
	if s.LegalBasis != "" {
		all[s.Name] = s.LegalBasis
	}
	for _, f := range s.Fields {
		if f.LegalBasis != "" {
			all[s.Name+"."+f.Name] = f.LegalBasis
		}
	}
}

// Export returns all records of a customer whole, those of collections that are no longer declared
// included, with what the identity room keeps, and names their blobs, for the customer to take elsewhere (GDPR article 20). The event, with
// the reason "purpose:portability", is durable before anything leaves. A record that does not open fails
// all of it: an export that silently leaves something out would be a lie. Only the system may export so far.
func (v *Vault) Export(ctx context.Context, by actor.Actor, owner customer.ID) (Export, error) {
	d := &deed{Vault: v, by: by, Event: audit.Event{Action: ActionExport, Resource: "customer", Customer: owner, Reason: "purpose:portability"}, err: systemOnly(by)}
	if !owner.Valid() {
		d.Customer = ""
	}
	var ring *seal.Ring
	var rows []placedRow
	var blobs []ExportBlob
	var external []byte
	var identity any
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) (err error) {
		if err = v.keys.Erased(ctx, tx, owner); err != nil {
			return err
		}
		if ring, err = v.keys.Customer(ctx, tx, owner); err != nil {
			return err
		}
		if rows, err = selectAll(ctx, tx, owner); err != nil {
			return err
		}
		if blobs, err = selectBlobs(ctx, tx, owner); err != nil {
			return err
		}
		if v.identity != nil {
			if identity, err = v.identity.ExportCustomer(ctx, tx, owner); err != nil {
				return err
			}
		}
		err = tx.QueryRow(ctx, `SELECT sealed FROM external_ref WHERE customer_id = $1 ORDER BY key_version DESC LIMIT 1`, string(owner)).Scan(&external)
		if errors.Is(err, sql.ErrNoRows) {
			external, err = nil, nil
		}
		if err != nil {
			return err
		}
		sealed := [][]byte{external}
		for _, w := range rows {
			sealed = append(sealed, w.sealed)
		}
		ring, err = v.keys.Holding(ctx, tx, owner, ring, sealed...)
		e.Resource += " " + strconv.Itoa(len(rows)) + " records"
		return err
	})
	if err != nil {
		return Export{}, err
	}
	out := Export{Customer: owner, ExportedAt: v.clock.Now().UTC(), Identity: identity, LegalBases: make(map[string]LegalBasis),
		Collections: make(map[string][]ExportRecord), Blobs: blobs}
	if external != nil {
		name, err := ring.Open(externalPlace(owner), external)
		if err != nil {
			return Export{}, d.damaged(ctx, Ref{"external", "name"}, err)
		}
		out.External = string(name)
	}
	for _, w := range rows {
		ref := Ref{w.collection, w.key}
		values, err := open(ring, owner, ref, w.row)
		if err != nil {
			return Export{}, d.damaged(ctx, ref, err)
		}
		fields := make(map[string]any, len(values))
		for _, x := range values {
			fields[x.name] = x.whole()
		}
		if s := v.collections()[w.collection]; s != nil {
			s.bases(out.LegalBases)
		}
		out.Collections[w.collection] = append(out.Collections[w.collection],
			ExportRecord{w.key, w.version, clock.FromMicros(w.updatedAt), fields})
	}
	return out, nil
}

// placedRow is a row with its collection.
type placedRow struct {
	collection string
	row
}

// selectAll returns all records of a customer.
func selectAll(ctx context.Context, tx *db.Tx, owner customer.ID) (all []placedRow, err error) {
	rows, err := tx.Query(ctx, `
		SELECT collection, key, version, schema_version, sealed, updated_at FROM record
		WHERE customer_id = $1 ORDER BY collection, key`, string(owner))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var w placedRow
		if err := rows.Scan(&w.collection, &w.key, &w.version, &w.schemaVersion, &w.sealed, &w.updatedAt); err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	return slices.Clip(all), rows.Err()
}

func selectBlobs(ctx context.Context, tx *db.Tx, owner customer.ID) (all []ExportBlob, err error) {
	rows, err := tx.Query(ctx, `SELECT collection, key, updated_at FROM blob WHERE customer_id = $1 ORDER BY collection, key`, string(owner))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var b ExportBlob
		var updatedAt int64
		if err := rows.Scan(&b.Collection, &b.Key, &updatedAt); err != nil {
			return nil, err
		}
		b.UpdatedAt = clock.FromMicros(updatedAt)
		all = append(all, b)
	}
	return all, rows.Err()
}
