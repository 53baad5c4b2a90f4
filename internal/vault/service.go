package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/once"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
)

// The actions that vault records for services alone.
const (
	ActionCustomerCreate = "vault.customer.create"
	ActionHistory        = "vault.record.history"
	ActionLookup         = "vault.record.lookup"
	ActionBatch          = "vault.record.batch"
)

// MaxBatch is the most records that Batch reads at once.
const MaxBatch = 100

// Services is the vault as the operator's own services may use it: with any customer's records, as far
// as policy permits for the purpose that each call must name. Whole values need the collection's
// consent to the purpose as well. It is safe for concurrent use.
type Services struct {
	*Vault
	policy *policy.Set
	book   *once.Book
}

// ForServices returns the vault's operations for services.
func (v *Vault) ForServices(p *policy.Set, book *once.Book) *Services { return &Services{v, p, book} }

// Access is what a service says of a call beside what it asks for.
type Access struct {
	Purpose string // why; a slug
	Once    string // its idempotency key; may be empty
}

// ask is a call before it is decided.
type ask struct {
	action   string // of the event
	permit   string // of the policy; empty when that is decided later
	resource policy.Resource
	owner    customer.ID // empty if nobody's
	fields   []string
	asked    []string // what an answer that is given once depends on
}

func (s *Services) begin(by actor.Actor, a Access, q ask) *deed {
	d := &deed{Vault: s.Vault, by: by, Event: audit.Event{Action: q.action, Customer: q.owner}}
	if q.owner != "" && !q.owner.Valid() {
		d.Customer = ""
		d.refuse(problem.New(problem.NotFound, "customer-not-found", "There is no such customer."))
	}
	d.refuse(policy.Purpose(a.Purpose))
	if d.err == nil {
		d.Reason = "purpose:" + a.Purpose
		if q.permit != "" || by.Kind != actor.Service {
			d.refuse(s.policy.Decide(policy.Question{
				By: by, Action: q.permit, Resource: q.resource, Purpose: a.Purpose, Customer: q.owner, Fields: q.fields}))
		}
	}
	if a.Once != "" {
		d.refuse(once.Check(a.Once))
		asked := [][]byte{[]byte(q.action), []byte(a.Purpose), []byte(q.owner)}
		for _, part := range q.asked {
			asked = append(asked, []byte(part))
		}
		d.once = &onceDeed{book: s.book, request: once.Request{Service: by.ID, Key: a.Once, Asked: asked}}
	}
	return d
}

// onceDeed is a deed whose answer is kept.
type onceDeed struct {
	book    *once.Book
	request once.Request
	answer  func() any // what to keep; nil keeps that it was done
	given   *once.Answer
	nobody  bool // the answer outlives the customer, and is kept under nobody's key
	// again decides whether it may be done, for a deed that is only decided while it is done.
	again func(owner customer.ID) *problem.Problem
}

func (o *onceDeed) do(ctx context.Context, d *deed, fn func(tx *db.Tx, e *audit.Event) error) error {
	for tries := 0; ; tries++ {
		given, err := o.book.Look(ctx, o.request)
		if p := problem.Of(err); p != nil && p.Kind() < problem.Internal {
			return d.trail.Deny(ctx, d.by, d.Event, p)
		}
		if err != nil {
			return err
		}
		if given != nil {
			event := d.Event
			if !o.nobody {
				event.Customer = given.Customer
			}
			if o.again != nil {
				if p := o.again(given.Customer); p != nil {
					return d.trail.Deny(ctx, d.by, event, p)
				}
			}
			event.Reason += " replayed"
			o.given = given
			return d.trail.Do(ctx, d.by, event, func(tx *db.Tx, _ *audit.Event) error { return given.Unlock(ctx, tx) })
		}
		err = d.trail.Do(ctx, d.by, d.Event, func(tx *db.Tx, e *audit.Event) error {
			if err := fn(tx, e); err != nil {
				return err
			}
			if e.Denied() {
				// The same request, which was faster, may be what stands in its way.
				known, err := o.book.Known(ctx, tx, o.request)
				if known {
					err = once.ErrRaced
				}
				return err
			}
			var result any
			if o.answer != nil {
				result = o.answer()
			}
			kept, err := json.Marshal(result)
			if err != nil {
				return err
			}
			defer clear(kept)
			about := e.Customer
			if o.nobody {
				about = ""
			}
			return o.book.Keep(ctx, tx, o.request, about, kept)
		})
		// Somebody was faster with the same key: by now there is an answer.
		if tries == 2 || !problem.Is(err, once.Raced) {
			return err
		}
	}
}

// remember says what to keep when the deed is done once. f is called in the deed's transaction, after
// everything else.
func (d *deed) remember(f func() any) {
	if d.once != nil {
		d.once.answer = f
	}
}

// recall returns the answer that was kept, if the deed had been done before, else the fresh one.
func recall[T any](d *deed, fresh func() T) (out T, err error) {
	if d.once == nil || d.once.given == nil {
		return fresh(), nil
	}
	kept, err := d.once.given.Open()
	if err != nil {
		return out, fmt.Errorf("vault: an answer that was kept: %w", err)
	}
	defer clear(kept)
	decoder := json.NewDecoder(bytes.NewReader(kept))
	decoder.UseNumber()
	return out, decoder.Decode(&out)
}

// written is what Put and Patch answer.
type written struct {
	Record  Record
	Created bool
}

// CreateCustomer makes a customer: a pseudonym with a key of its own, for people whom the operator
// knows without the app. They cannot log in.
func (s *Services) CreateCustomer(ctx context.Context, by actor.Actor, a Access) (customer.ID, error) {
	d := s.begin(by, a, ask{action: ActionCustomerCreate, permit: policy.CustomerCreate, resource: policy.Environment(s.db.Environment())})
	made := customer.NewID()
	d.Resource = "customer"
	fresh := func() customer.ID { return made }
	d.remember(func() any { return made })
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		e.Customer = made
		_, err := s.keys.CreateCustomer(ctx, tx, by, made)
		return err
	})
	if err != nil {
		return "", err
	}
	return recall(d, fresh)
}

// Put is Vault.Put for a service.
func (s *Services) Put(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref, body []byte, c Condition) (Record, bool, error) {
	// Without If-Match a record can only be made, with it only changed.
	q := ask{action: ActionUpdate, permit: policy.RecordUpdate, resource: policy.Collection(ref.Collection), owner: owner,
		asked: []string{ref.Collection, ref.Key, c.IfMatch, c.IfNoneMatch, string(body)}}
	if c.IfMatch == "" {
		q.action, q.permit = ActionCreate, policy.RecordCreate
	}
	r, created, err := s.put(ctx, s.begin(by, a, q), owner, ref, body, c)
	if s.outdated(ctx, err) {
		r, created, err = s.put(ctx, s.begin(by, a, q), owner, ref, body, c)
	}
	return r, created, err
}

// Patch changes some fields of a record: body is a JSON merge patch (RFC 7396), in which null takes a
// field away. The whole record that comes of it is checked like a new one; fields that the collection has
// no longer are left behind. Without a condition the
// patch is made to whatever version there is.
func (s *Services) Patch(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref, body []byte, c Condition) (Record, error) {
	r, err := s.patch(ctx, by, a, owner, ref, body, c)
	if s.outdated(ctx, err) {
		r, err = s.patch(ctx, by, a, owner, ref, body, c)
	}
	return r, err
}

func (s *Services) patch(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref, body []byte, c Condition) (Record, error) {
	d := s.begin(by, a, ask{action: ActionUpdate, permit: policy.RecordUpdate, resource: policy.Collection(ref.Collection), owner: owner,
		asked: []string{"patch", ref.Collection, ref.Key, c.IfMatch, c.IfNoneMatch, string(body)}})
	schema, resource, p := s.find(ref)
	d.Resource = resource
	d.refuse(p)
	cond, p := c.parse()
	d.refuse(p)
	var patch []member
	if d.err == nil {
		patch, p = schema.readPatch(body)
		d.refuse(p)
	}
	now := s.clock.Now()
	var values []value
	var version int64
	result := func() written {
		return written{Record: Record{
			Ref: ref, Version: version, SchemaVersion: schema.Version, Fields: schema.show(values, Reveal{}),
			UpdatedAt: clock.FromMicros(clock.Micros(now)),
		}}
	}
	d.remember(func() any { return result() })
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		ring, err := s.keys.Customer(ctx, tx, owner)
		if err != nil {
			return err
		}
		w, found, err := selectRecord(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		if !found {
			e.Deny(errAbsent)
			return nil
		}
		if p := cond.check(w.version); p != nil {
			e.Deny(p)
			return nil
		}
		if ring, err = s.keys.Holding(ctx, tx, owner, ring, w.sealed); err != nil {
			return err
		}
		old, err := open(ring, owner, ref, w)
		if err != nil {
			s.unreadable(ctx, d, ref, err)
			e.Deny(errUnreadable.Because(err))
			return nil
		}
		var p *problem.Problem
		if err := schema.current(ctx, tx); err != nil {
			return err
		}
		if values, p = schema.decode(merge(schema.known(old), patch)); p != nil {
			e.Deny(p)
			return nil
		}
		plain := encode(values)
		defer clear(plain)
		if _, err := s.keys.CatchUp(ctx, tx); err != nil {
			return err
		}
		blinds := s.blinds(schema, values)
		_, indexed, err := selectVersion(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		version = w.version + 1
		next := row{version: version, schemaVersion: schema.Version, indexed: digest(blinds), updatedAt: clock.Micros(now)}
		next.sealed = ring.Seal(place(owner, ref, next), plain)
		e.Resource = d.version(resource, version)
		if err := s.replace(ctx, tx, schema, owner, ref, w.version, next); err != nil || bytes.Equal(indexed, next.indexed) {
			return err
		}
		if err := deleteIndex(ctx, tx, owner, ref); err != nil {
			return err
		}
		return insertIndex(ctx, tx, owner, ref, blinds)
	})
	if err != nil {
		return Record{}, err
	}
	out, err := recall(d, result)
	return out.Record, err
}

// readPatch reads a merge patch of a flat record.
func (s *schema) readPatch(body []byte) ([]member, *problem.Problem) {
	if len(body) > maxBody {
		return nil, problem.New(problem.TooLarge, "record-too-large", "A record is at most %d bytes of JSON.", maxBody)
	}
	patch, ok := scan(body)
	if !ok {
		return nil, problem.New(problem.Invalid, "invalid-json", "The body must be one JSON object in UTF-8: the fields to change.")
	}
	given := make(map[string]bool, len(patch))
	for _, m := range patch {
		if given[m.name] {
			return nil, problem.New(problem.Unprocessable, "invalid-record", "Some fields are not right; see errors.").
				With("errors", []FieldError{{shownName(m.name), "is given more than once"}})
		}
		given[m.name] = true
	}
	return patch, nil
}

// merge returns the record that a patch makes of values, for decode to check.
func merge(values []value, patch []member) []byte {
	changed := make(map[string]bool, len(patch))
	b := []byte{'{'}
	add := func(name string, raw []byte) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(appendQuoted(b, name), ':'), raw...)
	}
	for _, m := range patch {
		changed[m.name] = true
		if m.raw[0] != 'n' {
			add(m.name, m.raw)
		}
	}
	for _, v := range values {
		if !changed[v.name] {
			add(v.name, v.raw)
		}
	}
	return append(b, '}')
}

// reads returns how a read is asked for: masked, or with these fields whole.
func (s *Services) reads(owner customer.ID, ref Ref, reveal Reveal) ask {
	q := ask{action: ActionRead, permit: policy.RecordRead, resource: policy.Collection(ref.Collection), owner: owner}
	if reveal.All || len(reveal.Fields) > 0 {
		q.permit, q.fields = policy.RecordReveal, reveal.Fields
		if c := s.collections()[ref.Collection]; c != nil && reveal.All {
			q.fields = make([]string, len(c.Fields))
			for i, f := range c.Fields {
				q.fields[i] = f.Name
			}
		}
	}
	return q
}

// Get reads a record, whole where reveal says so and masked otherwise. Version 0 is the newest; an
// older one that the collection keeps needs the permission to read history as well.
func (s *Services) Get(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref, version int64, reveal Reveal) (Record, error) {
	reveal.Purpose = a.Purpose
	q := s.reads(owner, ref, reveal)
	d := s.begin(by, a, q)
	if version != 0 && d.err == nil {
		d.refuse(s.policy.Decide(policy.Question{By: by, Action: policy.RecordHistory, Resource: q.resource, Purpose: a.Purpose, Customer: owner}))
	}
	return s.get(ctx, d, owner, ref, version, reveal)
}

// History returns the versions of a record that are kept, newest first, without what they hold.
func (s *Services) History(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref) ([]Version, error) {
	d := s.begin(by, a, ask{action: ActionHistory, permit: policy.RecordHistory, resource: policy.Collection(ref.Collection), owner: owner})
	_, resource, p := s.find(ref)
	d.Resource = resource
	d.refuse(p)
	var out []Version
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) (err error) {
		if _, err = s.keys.Customer(ctx, tx, owner); err != nil {
			return err
		}
		if out, err = selectVersions(ctx, tx, owner, ref); err == nil && len(out) == 0 {
			e.Deny(errAbsent)
		}
		return err
	})
	return out, err
}

// List is Vault.List for a service.
func (s *Services) List(ctx context.Context, by actor.Actor, a Access, owner customer.ID, collection, after string, limit int) ([]Record, string, error) {
	d := s.begin(by, a, ask{action: ActionList, permit: policy.RecordList, resource: policy.Collection(collection), owner: owner})
	return s.list(ctx, d, owner, collection, after, limit)
}

// Delete removes a record with its older versions.
func (s *Services) Delete(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref, c Condition) error {
	d := s.begin(by, a, ask{action: ActionDelete, permit: policy.RecordDelete, resource: policy.Collection(ref.Collection), owner: owner,
		asked: []string{ref.Collection, ref.Key, c.IfMatch}})
	return s.delete(ctx, d, owner, ref, c)
}

// Find returns the records, of any customer, whose indexed field has exactly this value, at most 16.
// The look-up is an event, and so is each customer that it finds.
func (s *Services) Find(ctx context.Context, by actor.Actor, a Access, collection, field, text string) ([]Match, error) {
	d := s.begin(by, a, ask{action: ActionLookup, permit: policy.RecordLookup, resource: policy.Collection(collection), fields: []string{field}})
	c := s.collections()[collection]
	d.Resource = "collection"
	switch {
	case c == nil:
		d.refuse(problem.New(problem.NotFound, "collection-not-found", "There is no such collection."))
	case c.fields[field] == nil || !c.fields[field].Index:
		d.Resource += " " + c.Name
		d.refuse(problem.New(problem.Unprocessable, "field-not-indexed", "This field has no index; declare it with index: true."))
	default:
		d.Resource += " " + c.Name + " field " + field
	}
	var found []Match
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) (err error) {
		if found, err = s.Lookup(ctx, tx, collection, field, text); err != nil {
			return err
		}
		e.Resource += " " + strconv.Itoa(len(found)) + " found"
		for _, m := range found {
			if err := s.trail.Record(ctx, tx, by, audit.Event{
				Action: ActionLookup, Resource: "record " + collection + "/" + m.Key + " field " + field,
				Customer: m.Customer, Outcome: audit.Granted, Reason: d.Reason,
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Read is one record that Batch reads.
type Read struct {
	Customer customer.ID
	Ref
	All    bool     // show it whole
	Fields []string // or these fields
}

// Result is what came of a Read: a record, or why there is none.
type Result struct {
	Record Record
	Err    *problem.Problem
}

var errUnreadable = problem.New(problem.Internal, "record-unreadable", "The record cannot be read. The operator has been told.")

func (s *Services) unreadable(ctx context.Context, d *deed, ref Ref, err error) {
	s.log.ErrorContext(ctx, "a record does not open", "customer", d.Customer, "record", ref.Collection+"/"+ref.Key,
		"request", d.by.Request, "error", err)
}

// pending is a Read on its way.
type pending struct {
	s      *schema
	reveal Reveal
	name   string // of the record
	what   string // name, and what is revealed of it
	ring   *seal.Ring
	row    row
	read   bool
}

// Batch reads up to MaxBatch records, of any customers, in one go. What is wrong with one of them does
// not keep the others. The batch is an event; so is each customer that it touches, one for the records
// that were read and one for those that were refused; all of them are durable before any value leaves.
func (s *Services) Batch(ctx context.Context, by actor.Actor, a Access, reads []Read) ([]Result, error) {
	d := s.begin(by, a, ask{action: ActionBatch}) // what is permitted is decided record by record
	if n := len(reads); n < 1 || n > MaxBatch {
		d.refuse(problem.New(problem.Unprocessable, "invalid-batch", "A batch reads 1 to %d records.", MaxBatch))
	}
	var owners []customer.ID // in order of appearance
	results := make([]Result, len(reads))
	work := make([]pending, len(reads))
	if d.err == nil {
		for i, r := range reads {
			if !slices.Contains(owners, r.Customer) {
				owners = append(owners, r.Customer)
			}
			work[i], results[i].Err = s.prepare(by, a, r)
		}
	}
	d.Resource = fmt.Sprintf("%d records of %d customers", len(reads), len(owners))
	refused := slices.Clone(results)
	err := d.do(ctx, func(tx *db.Tx, _ *audit.Event) error {
		copy(results, refused)
		for _, owner := range owners {
			var granted, denied []string
			var reason string
			for i, r := range reads {
				if r.Customer != owner {
					continue
				}
				work[i].read = false
				if results[i].Err == nil {
					if err := s.fetch(ctx, tx, r, &work[i], &results[i]); err != nil {
						return err
					}
				}
				if work[i].read {
					w := work[i]
					granted = append(granted, w.name+" v"+strconv.FormatInt(w.row.version, 10)+strings.TrimPrefix(w.what, w.name))
				} else {
					denied = append(denied, work[i].what)
					if reason == "" {
						reason = results[i].Err.Slug()
					}
				}
			}
			if !owner.Valid() {
				owner = ""
			}
			for _, e := range []struct {
				list []string
				audit.Event
			}{
				{granted, audit.Event{Action: ActionRead, Customer: owner, Outcome: audit.Granted, Reason: d.Reason}},
				{denied, audit.Event{Action: ActionRead, Customer: owner, Outcome: audit.Denied, Reason: reason}},
			} {
				if len(e.list) == 0 {
					continue
				}
				e.Resource = "records " + strings.Join(e.list, ", ")
				if len(e.Resource) > maxResource {
					e.Personal = map[string]string{"records": strings.Join(e.list, ", ")}
					e.Resource = strconv.Itoa(len(e.list)) + " records"
				}
				if err := s.trail.Record(ctx, tx, by, e.Event); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, r := range reads {
		if !work[i].read {
			continue
		}
		values, err := open(work[i].ring, r.Customer, r.Ref, work[i].row)
		if err != nil {
			one := &deed{Vault: s.Vault, by: by, Event: audit.Event{Action: ActionRead, Resource: "record " + work[i].what, Customer: r.Customer}}
			if results[i].Err = problem.Of(one.damaged(ctx, r.Ref, err)); results[i].Err == nil {
				results[i].Err = errUnreadable
			}
			continue
		}
		results[i].Record = work[i].s.record(r.Ref, work[i].row, values, work[i].reveal)
	}
	return results, nil
}

// prepare decides on one record of a batch.
func (s *Services) prepare(by actor.Actor, a Access, r Read) (pending, *problem.Problem) {
	w := pending{reveal: Reveal{All: r.All, Fields: r.Fields, Purpose: a.Purpose}}
	schema, resource, p := s.find(r.Ref)
	w.s = schema
	one := s.begin(by, a, s.reads(r.Customer, r.Ref, w.reveal))
	w.name = strings.TrimPrefix(resource, "record ")
	one.Resource = w.name
	one.refuse(p)
	if one.err == nil && (r.All || len(r.Fields) > 0) {
		one.refuse(schema.allows(w.reveal))
		one.tell(schema, w.reveal)
	}
	w.what = one.Resource
	return w, one.err
}

// fetch reads the row of one record of a batch; its error ends the batch.
func (s *Services) fetch(ctx context.Context, tx *db.Tx, r Read, w *pending, out *Result) error {
	ring, err := s.keys.Customer(ctx, tx, r.Customer)
	if p := problem.Of(err); p != nil && (p.Kind() == problem.Gone || p.Kind() == problem.NotFound) {
		out.Err = p
		return nil
	}
	if err != nil {
		return err
	}
	row, found, err := selectRecord(ctx, tx, r.Customer, r.Ref)
	if err != nil {
		return err
	}
	if !found {
		out.Err = errAbsent
		return nil
	}
	w.ring, err = s.keys.Holding(ctx, tx, r.Customer, ring, row.sealed)
	w.row, w.read = row, true
	return err
}
