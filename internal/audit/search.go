package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// The actions of searching.
const (
	ActionSearch       = "audit.trail.search"
	ActionSearchSave   = "audit.search.save"
	ActionSearchDelete = "audit.search.delete"
	ActionSearchList   = "audit.search.list"
)

// Query says which events are asked for: those that fit everything that it names. Values are whole unless
// it says otherwise.
type Query struct {
	Actor       string `json:"actor,omitempty"`         // the id of who acted: a customer, a service, "cli:root"
	OnBehalf    string `json:"on_behalf_of,omitempty"`  // for whom a service acted: "staff:anna", "customer:cus_…"
	Customer    string `json:"customer,omitempty"`      // whose data or account it was
	Device      string `json:"device,omitempty"`        // on which device
	Action      string `json:"action,omitempty"`        // what was done; with a * at the end, what it begins with
	Outcome     string `json:"outcome,omitempty"`       // granted, denied or failed
	Resource    string `json:"resource,omitempty"`      // what it was done to
	Address     string `json:"address,omitempty"`       // from where; never saved
	Country     string `json:"country,omitempty"`       // the address's country then: two letters (ISO 3166-1)
	Request     string `json:"request,omitempty"`       // of which request
	Transaction string `json:"transaction,omitempty"`   // of which business transaction
	Reason      string `json:"reason,omitempty"`        // what the reason contains, in small or capital letters
	From        int64  `json:"from,omitempty"`          // Unix microseconds: not before
	To          int64  `json:"to,omitempty"`            // Unix microseconds: before
	Since       int64  `json:"since_seconds,omitempty"` // not longer ago than so many seconds when the search begins
}

// Ask is what may change from page to page.
type Ask struct {
	Purpose string // a slug; needed of services, and by Reveal
	Reveal  bool   // open what is personal
	Limit   int    // of events on a page, 1 to 500; 0 means 50
	After   string // Page.Next of the page before; empty for the first
}

// Found is an event that a search found.
type Found struct {
	Entry
	// Fields are those of a source's event that are not personal; see package events.
	Fields map[string]string `json:"fields,omitempty"`
}

// Page is a part of what a search finds, newest first. It may have no events and yet a Next: a search
// looks at a bounded number of events each time.
type Page struct {
	Events []Found `json:"events"`
	Next   string  `json:"next,omitempty"` // gives the next page; empty when there is none
	// Indexed is how many events of the log can be found, which are those with an index below it, and
	// Waiting how many cannot yet, a second after they happened at most.
	Indexed int64 `json:"indexed"`
	Waiting int64 `json:"waiting"`
}

// Policy decides whether a service may search. Package policy is behind it.
type Policy interface {
	// MaySearch returns nil, or the problem to refuse with. The customer is empty when the query names
	// none; reveal says that what is personal is asked for too.
	MaySearch(by actor.Actor, purpose string, c customer.ID, reveal bool) *problem.Problem
}

// Search finds events of a trail. It is safe for concurrent use.
type Search struct {
	trail  *Trail
	policy Policy
}

// Search returns what finds events. Services may do what the policy says, nothing without one; the system
// may always, and nobody else ever.
func (t *Trail) Search(p Policy) *Search { return &Search{t, p} }

const (
	defaultPage = 50
	maxPage     = 500
	// scan bounds how many index rows one page looks at, and with it the time that it takes: what the
	// index of the most telling value does not decide is compared row by row.
	scan = 1024
)

// Run returns a page of the events that q asks for. The search is itself an event, which is committed
// before anything is returned: its resource names what was given, and its personal part, under the key of
// the customer whom the query names, holds the values. What is personal about an erased customer reads
// Erased, and nothing of theirs is found by it.
//
// Pages are stable: no event is on two of them, and none is left out, whatever is added meanwhile. Run fails with the problem "invalid-search", "invalid-cursor", "purpose-required", or
// that of the policy.
func (s *Search) Run(ctx context.Context, by actor.Actor, q Query, a Ask) (Page, error) {
	return s.run(ctx, by, q, a, "")
}

func (s *Search) run(ctx context.Context, by actor.Actor, q Query, a Ask, saved string) (Page, error) {
	t := s.trail
	e := Event{Action: ActionSearch, Resource: "search " + q.names()}
	if saved != "" {
		e.Resource = "saved search " + saved
	}
	if a.Reveal {
		e.Resource += " revealed"
	}
	if c := customer.ID(q.Customer); c.Valid() {
		e.Customer = c
	}
	if a.Purpose != "" && checkPurpose(a.Purpose) == nil {
		e.Reason = "purpose:" + a.Purpose
	}
	if text, err := json.Marshal(q); err == nil {
		e.Personal = map[string]string{"query": string(text)}
	}
	if p := s.may(by, a.Purpose, e.Customer, a.Reveal); p != nil {
		return Page{}, t.Deny(ctx, by, e, p)
	}
	if p := q.check(); p != nil {
		return Page{}, t.Deny(ctx, by, e, p)
	}
	if a.Limit == 0 {
		a.Limit = defaultPage
	}
	if a.Limit < 1 || a.Limit > maxPage {
		return Page{}, t.Deny(ctx, by, e, problem.New(problem.Invalid, "invalid-limit", "Ask for 1 to %d events.", maxPage))
	}
	at, err := t.parseCursor(a.After, by, q)
	if err != nil {
		return Page{}, t.Deny(ctx, by, e, invalidCursor.Because(err))
	}
	if a.After == "" {
		at.from = q.From
		if q.Since > 0 {
			at.from = max(at.from, clock.Micros(t.clock.Now())-q.Since*1e6)
		}
	}
	var page Page
	err = t.db.View(ctx, func(tx *db.Tx) (err error) {
		page, err = t.find(ctx, tx, q, at, a, by)
		return err
	})
	e.Outcome = Granted
	if err != nil {
		e.Outcome, e.Reason = classify(err)
	}
	if failed := t.alone(ctx, by, e); failed != nil {
		return Page{}, unrecorded(failed, err)
	}
	if err != nil {
		return Page{}, err
	}
	return page, nil
}

// may decides who may search.
func (s *Search) may(by actor.Actor, purpose string, c customer.ID, reveal bool) *problem.Problem {
	switch {
	case by.Kind == actor.System:
		if reveal || purpose != "" {
			return checkPurpose(purpose)
		}
		return nil
	case by.Kind == actor.Service && s.policy != nil:
		return s.policy.MaySearch(by, purpose, c, reveal)
	}
	return mayInspect(by)
}

var slug = regexp.MustCompile(`\A[a-z0-9]+(-[a-z0-9]+)*\z`)

func checkPurpose(purpose string) *problem.Problem {
	if len(purpose) > 64 || !slug.MatchString(purpose) {
		return problem.New(problem.Unprocessable, "purpose-required",
			"Say for which purpose this is done: at most 64 of a-z, 0-9 and single hyphens.")
	}
	return nil
}

// names returns what the query names; its values are only where they can say nothing of a person.
func (q Query) names() string {
	var list []string
	for _, f := range []struct{ name, value string }{
		{"actor", q.Actor}, {"on_behalf_of", q.OnBehalf}, {"customer", q.Customer}, {"device", q.Device}, {"action", q.Action},
		{"outcome", q.Outcome}, {"resource", q.Resource}, {"address", q.Address}, {"country", q.Country}, {"request", q.Request},
		{"transaction", q.Transaction}, {"reason", q.Reason},
	} {
		if f.value != "" {
			list = append(list, f.name)
		}
	}
	if q.From != 0 || q.To != 0 || q.Since != 0 {
		list = append(list, "time")
	}
	if len(list) == 0 {
		return "everything"
	}
	return strings.Join(list, " ")
}

var actionForm = regexp.MustCompile(`\A[a-z0-9][a-z0-9._-]*\*?\z`)

// check returns why a query cannot be run.
func (q Query) check() *problem.Problem {
	bad := func(detail string) *problem.Problem {
		return problem.New(problem.Unprocessable, "invalid-search", "%s", detail)
	}
	for _, text := range []string{q.Actor, q.OnBehalf, q.Customer, q.Device, q.Action, q.Resource, q.Request, q.Transaction, q.Reason} {
		if len(text) > maxField || !utf8.ValidString(text) || clean(text, maxField) != text {
			return bad("A value is at most 256 bytes of UTF-8 without control characters.")
		}
	}
	switch {
	case q.Action != "" && !actionForm.MatchString(q.Action):
		return bad("An action is of a-z, 0-9, dots, underscores and hyphens, with a * at its end for all that begin so: vault.*")
	case q.Outcome != "" && !slices.Contains([]Outcome{Granted, Denied, Failed}, Outcome(q.Outcome)):
		return bad("An outcome is granted, denied or failed.")
	case q.Address != "" && normalAddress(q.Address) == "":
		return bad("An address is one IPv4 or IPv6 address.")
	case q.Country != "" && !countryForm.MatchString(q.Country):
		return bad("A country is two capital letters (ISO 3166-1), for example DE.")
	case q.From < 0 || q.To < 0 || q.From > maxTime || q.To > maxTime || q.Since < 0 || q.Since > maxTime/1_000_000:
		return bad("A time is not before 1970 and not after 9999.")
	}
	return nil
}

var countryForm = regexp.MustCompile(`\A[A-Z]{2}\z`)

// wanted returns the values that q asks for, by dimension.
func (q Query) wanted() (v [len(dimensions)]string) {
	v[dimRequest], v[dimTransaction], v[dimDevice], v[dimCustomer] = q.Request, q.Transaction, q.Device, q.Customer
	v[dimActor], v[dimResource] = q.Actor, q.Resource
	v[dimAddress], v[dimCountry], v[dimBehalf] = normalAddress(q.Address), q.Country, q.OnBehalf
	if q.Outcome != string(Granted) {
		v[dimOutcome] = q.Outcome
	}
	if prefix, cut := strings.CutSuffix(q.Action, "*"); !cut {
		v[dimAction] = q.Action
	} else if room, _, dot := strings.Cut(prefix, "."); dot {
		v[dimRoom] = room
	}
	return v
}

// fits reports whether an event is one that q asks for. The index only proposes.
func (q Query) fits(p *placed, personal map[string]string, from int64) bool {
	prefix, cut := strings.CutSuffix(q.Action, "*")
	if cut && !strings.HasPrefix(p.action, prefix) || q.Outcome != "" && p.outcome != q.Outcome ||
		q.Reason != "" && !strings.Contains(lower(p.reason), lower(q.Reason)) ||
		p.madeAt < from || q.To != 0 && p.madeAt >= q.To {
		return false
	}
	has := facets(p, personal)
	for d, want := range q.wanted() {
		if want != "" && has[d] != want {
			return false
		}
	}
	return true
}

// lower folds ASCII only, as both databases do.
func lower(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}, s)
}

// statement returns the query that reads at most scan index rows that may fit, from the position on, and the
// one that says where those end.
func (t *Trail) statement(q Query, at cursor, limit int) (matches, end string, args []any) {
	bind := func(v any) string {
		args = append(args, v)
		return "$" + strconv.Itoa(len(args))
	}
	wanted := q.wanted()
	values := func(d int) []int64 {
		if isPersonal(d) {
			return t.blindTerms(dimensions[d], wanted[d])
		}
		return []int64{term(dimensions[d], wanted[d])}
	}
	window := ` (s.made_at, s.idx) < (` + bind(at.madeAt) + `, ` + bind(at.index) + `) AND s.made_at >= ` + bind(at.from)
	const order = ` ORDER BY made_at DESC, idx DESC LIMIT `
	driver := slices.IndexFunc(wanted[:], func(v string) bool { return v != "" })
	var sources []string
	if driver < 0 {
		sources = []string{`SELECT * FROM event_search s WHERE` + window}
	} else {
		for _, n := range values(driver) {
			column := "s." + dimensions[driver]
			sources = append(sources, `SELECT * FROM event_search s WHERE `+column+` = `+bind(n)+` AND `+column+` <> 0 AND`+window)
		}
	}
	budget := strconv.Itoa(scan)
	from := sources[0] + order + budget
	if len(sources) > 1 {
		for i := range sources {
			sources[i] = `SELECT * FROM (` + sources[i] + order + budget + `) s` + strconv.Itoa(i)
		}
		from = strings.Join(sources, ` UNION ALL `) + order + budget
	}
	end = `SELECT c.made_at, c.idx FROM (` + from + `) c ORDER BY c.made_at DESC, c.idx DESC LIMIT 1 OFFSET ` + strconv.Itoa(scan-1)
	matches = `SELECT c.event_id, c.made_at, c.idx FROM (` + from + `) c`
	var where []string
	var more []any
	bindMore := func(v any) string {
		more = append(more, v)
		return "$" + strconv.Itoa(len(args)+len(more))
	}
	for d := range dimensions {
		if wanted[d] == "" || d == driver {
			continue
		}
		var holders []string
		for _, n := range values(d) {
			holders = append(holders, bindMore(n))
		}
		where = append(where, `c.`+dimensions[d]+` IN (`+strings.Join(holders, ", ")+`)`)
	}
	if q.Outcome == string(Granted) {
		where = append(where, `c.outcome = 0`)
	}
	prefix, cut := strings.CutSuffix(q.Action, "*")
	if cut || q.Reason != "" {
		matches += ` JOIN event e ON e.id = c.event_id`
		if cut {
			where = append(where, `e.action LIKE `+bindMore(escapeLike(prefix)+"%")+` ESCAPE '\'`)
		}
		if q.Reason != "" {
			where = append(where, `lower(e.reason) LIKE `+bindMore("%"+escapeLike(lower(q.Reason))+"%")+` ESCAPE '\'`)
		}
	}
	if len(where) > 0 {
		matches += ` WHERE ` + strings.Join(where, " AND ")
	}
	matches += ` ORDER BY c.made_at DESC, c.idx DESC LIMIT ` + strconv.Itoa(limit)
	return matches, end, append(args, more...)
}

func escapeLike(s string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(s)
}

func (t *Trail) find(ctx context.Context, tx *db.Tx, q Query, at cursor, a Ask, by actor.Actor) (page Page, err error) {
	page.Events = []Found{}
	if page.Indexed, err = selectIndexed(ctx, tx); err != nil {
		return page, err
	}
	h, err := selectHead(ctx, tx)
	if err != nil {
		return page, err
	}
	waiting, err := countPending(ctx, tx)
	if err != nil {
		return page, err
	}
	page.Waiting = h.size - page.Indexed + waiting
	if q.To != 0 && q.To < at.madeAt {
		at.madeAt, at.index = q.To, -1 // nothing has an index below 0
	}
	matches, end, args := t.statement(q, at, a.Limit+1)
	hits, err := selectHits(ctx, tx, matches, args)
	if err != nil {
		return page, err
	}
	next := at
	switch {
	case len(hits) > a.Limit:
		hits = hits[:a.Limit]
		next.madeAt, next.index = hits[a.Limit-1].madeAt, hits[a.Limit-1].index
		page.Next = t.formatCursor(next, by, q)
	default:
		list, err := selectHitsAt(ctx, tx, end, args)
		if err != nil {
			return page, err
		}
		if len(list) == 1 {
			next.madeAt, next.index = list[0].madeAt, list[0].index
			page.Next = t.formatCursor(next, by, q)
		}
	}
	ids := make([]any, len(hits))
	for i, h := range hits {
		ids[i] = h.event
	}
	events, err := selectEvents(ctx, tx, ids)
	if err != nil {
		return page, err
	}
	rings := make(rings)
	for _, h := range hits {
		p := events[h.event]
		if p == nil {
			continue // deleted by a retention rule, or dropped; Verify knows
		}
		entry, err := t.show(ctx, tx, p, rings)
		if err != nil {
			return page, err
		}
		if entry.Outcome != Unverified && !q.fits(p, entry.Personal, at.from) {
			continue
		}
		page.Events = append(page.Events, open(entry, a.Reveal))
	}
	return page, nil
}

// openPrefix begins the names of what a source reports and is not personal, though it is sealed with the rest.
const openPrefix = "open:"

// open sorts what stands in a personal part by who may see it.
func open(e Entry, reveal bool) Found {
	f := Found{Entry: e}
	var personal map[string]string
	for name, value := range e.Personal {
		bare, isOpen := strings.CutPrefix(name, openPrefix)
		switch {
		case isOpen:
			if f.Fields == nil {
				f.Fields = make(map[string]string)
			}
			f.Fields[bare] = value
		case reveal:
			if personal == nil {
				personal = make(map[string]string)
			}
			personal[name] = value
		}
	}
	address, known := personal[nameAddress]
	if known && address != Erased && address != Unreadable && personal[nameCountry] == "" {
		personal[nameCountry] = "unknown"
	}
	f.Personal = personal
	return f
}

type hit struct {
	event         string
	madeAt, index int64
}

func selectHits(ctx context.Context, tx *db.Tx, query string, args []any) ([]hit, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []hit
	for rows.Next() {
		var h hit
		if err := rows.Scan(&h.event, &h.madeAt, &h.index); err != nil {
			return nil, err
		}
		list = append(list, h)
	}
	return list, rows.Err()
}

// selectHitsAt is selectHits for the position alone. The query names the first of args only.
func selectHitsAt(ctx context.Context, tx *db.Tx, query string, args []any) ([]hit, error) {
	rows, err := tx.Query(ctx, query, args[:holders(query)]...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []hit
	for rows.Next() {
		var h hit
		if err := rows.Scan(&h.madeAt, &h.index); err != nil {
			return nil, err
		}
		list = append(list, h)
	}
	return list, rows.Err()
}

// holders returns the highest number among the $n of a query.
func holders(query string) (n int) {
	for _, m := range holderForm.FindAllStringSubmatch(query, -1) {
		i, _ := strconv.Atoi(m[1]) // digits
		n = max(n, i)
	}
	return n
}

var holderForm = regexp.MustCompile(`\$([0-9]+)`)

func selectEvents(ctx context.Context, tx *db.Tx, ids []any) (map[string]*placed, error) {
	found := make(map[string]*placed, len(ids))
	const some = 50
	for len(ids) > 0 {
		n := min(some, len(ids))
		holders := make([]string, n)
		for i := range holders {
			holders[i] = "$" + strconv.Itoa(i+1)
		}
		list, err := queryPlaced(ctx, tx, make([]placed, 0, n), `
			SELECT e.id, COALESCE(l.idx, -1), `+eventColumns+`
			FROM event e LEFT JOIN event_leaf l ON l.event_id = e.id WHERE e.id IN (`+strings.Join(holders, ", ")+`)`, ids[:n]...)
		if err != nil {
			return nil, err
		}
		for i := range list {
			found[list[i].id] = &list[i]
		}
		ids = ids[n:]
	}
	return found, nil
}

// cursor is where a page begins: after the event with this time and index, and not before from.
type cursor struct{ madeAt, index, from int64 }

var invalidCursor = problem.New(problem.Invalid, "invalid-cursor",
	"This continues no search of yours with these values. Begin again without it.")

// A cursor is the key's version, the three numbers and the first half of a MAC over them, over who asked,
// and over what was asked: it is of use for nothing else.
const cursorSize = 4 + 3*8 + 16

func cursorParts(head []byte, by actor.Actor, q Query) [][]byte {
	text, _ := json.Marshal(q) // strings and numbers
	sum := sha256.Sum256(text)
	return [][]byte{[]byte("event-search-cursor"), head, []byte(by.Kind), []byte(by.ID), sum[:]}
}

func (t *Trail) formatCursor(c cursor, by actor.Actor, q Query) string {
	head := make([]byte, 0, cursorSize)
	for _, n := range []int64{c.madeAt, c.index, c.from} {
		head = binary.BigEndian.AppendUint64(head, uint64(n))
	}
	mac, version := t.keys.MAC(macKey, cursorParts(head, by, q)...)
	return base64.RawURLEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(head, version), mac[:16]...))
}

func (t *Trail) parseCursor(text string, by actor.Actor, q Query) (cursor, error) {
	if text == "" {
		return cursor{madeAt: maxTime + 1}, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != cursorSize {
		return cursor{}, errForged
	}
	head := raw[:24]
	mac, err := t.keys.MACVersion(macKey, binary.BigEndian.Uint32(raw[24:]), cursorParts(head, by, q)...)
	if err != nil || !hmac.Equal(mac[:16], raw[28:]) {
		return cursor{}, errForged
	}
	n := func(i int) int64 { return int64(binary.BigEndian.Uint64(head[8*i:])) }
	return cursor{n(0), n(1), n(2)}, nil
}

// Moment returns a query's time for a time.
func Moment(t time.Time) int64 { return clock.Micros(t) }
