package audit

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// Events are made findable after they have their place in the log, by whoever sequences, so that no deed
// waits for it. The rows are an index and nothing more: see the table event_search.

const (
	// indexBatch bounds the events that one transaction makes findable, and with it how long a deed may
	// have to wait for the embedded database's one writer.
	indexBatch = 64
	// indexTime bounds how long one run of the sequencer, of which there are two a second, spends on it: when
	// there is more to do than fits, deeds go first and the index lags.
	indexTime = 100 * time.Millisecond
)

// term is 64 bits of a hash of a value, never 0.
func term(dimension, value string) int64 {
	h := sha256.New()
	h.Write([]byte(dimension))
	h.Write([]byte{0})
	h.Write([]byte(value))
	return number(h.Sum(nil))
}

func number(sum []byte) int64 {
	if n := int64(binary.BigEndian.Uint64(sum)); n != 0 {
		return n
	}
	return 1
}

// blindParts is what the keyed hash of a personal value is over. An event's MAC has one part.
func blindParts(dimension, value string) [][]byte {
	return [][]byte{[]byte("event-search"), []byte(dimension), []byte(value)}
}

// blindTerm is term for what is personal: whoever has the database alone cannot try values.
func (t *Trail) blindTerm(dimension, value string) int64 {
	mac, _ := t.keys.MAC(macKey, blindParts(dimension, value)...)
	return number(mac)
}

// maxVersions bounds the versions of the key under which a personal value is looked for.
const maxVersions = 16

// blindTerms returns the terms of a personal value under all versions of the key that are there.
func (t *Trail) blindTerms(dimension, value string) []int64 {
	mac, newest := t.keys.MAC(macKey, blindParts(dimension, value)...)
	all := []int64{number(mac)}
	for v := newest - 1; v > 0 && newest-v < maxVersions; v-- {
		if mac, err := t.keys.MACVersion(macKey, v, blindParts(dimension, value)...); err == nil {
			all = append(all, number(mac))
		}
	}
	return all
}

// searchRow is a row of event_search.
type searchRow struct {
	index    int64
	event    string
	madeAt   int64
	terms    [len(dimensions)]int64
	customer string
}

// The dimensions, as the columns are called, the most telling first: of those that a query names, the
// first is the one whose index is read. Personal ones are from address on.
var dimensions = [...]string{
	"request", "transaction_ref", "address", "behalf", "device", "customer", "actor", "resource", "outcome", "action", "room", "country",
}

const (
	dimRequest = iota
	dimTransaction
	dimAddress
	dimBehalf
	dimDevice
	dimCustomer
	dimActor
	dimResource
	dimOutcome
	dimAction
	dimRoom
	dimCountry
)

func isPersonal(dimension int) bool {
	return dimension == dimAddress || dimension == dimBehalf || dimension == dimCountry
}

// roomOf returns what stands before an action's first dot.
func roomOf(action string) string {
	room, _, _ := strings.Cut(action, ".")
	return room
}

// facets returns the values by which an event is found, by dimension; empty ones it does not have.
func facets(p *placed, personal map[string]string) (v [len(dimensions)]string) {
	v[dimRequest], v[dimTransaction], v[dimDevice], v[dimCustomer] = p.request, p.transaction, p.device, p.customer
	v[dimActor], v[dimResource], v[dimAction], v[dimRoom] = p.actorID, p.resource, p.action, roomOf(p.action)
	if p.outcome != string(Granted) {
		v[dimOutcome] = p.outcome
	}
	v[dimAddress], v[dimCountry], v[dimBehalf] = normalAddress(personal[nameAddress]), personal[nameCountry], personal[nameBehalf]
	return v
}

// Index makes the next events of the log findable, at most some dozen, and returns how many they were. It
// may run anywhere at any time, also twice at once.
func (t *Trail) Index(ctx context.Context) (int, error) { return t.indexSome(ctx, indexBatch) }

func (t *Trail) indexSome(ctx context.Context, some int64) (int, error) {
	var from, to int64
	var batch []searchRow
	err := t.db.View(ctx, func(tx *db.Tx) error {
		batch = nil
		h, err := selectHead(ctx, tx)
		if err != nil {
			return err
		}
		if from, err = selectIndexed(ctx, tx); err != nil {
			return err
		}
		to = min(h.size, from+some)
		if to <= from {
			return nil
		}
		leaves, err := selectLeaves(ctx, tx, from, to)
		if err != nil {
			return err
		}
		rings := make(rings)
		for i := range leaves {
			p := &leaves[i]
			if p.version != leafVersion {
				continue // it is gone, or not of ours; Verify says so
			}
			personal, err := t.personal(ctx, tx, p, rings)
			if err != nil {
				return err
			}
			row := searchRow{index: p.index, event: p.id, madeAt: p.madeAt, customer: p.customer}
			for d, value := range facets(p, personal) {
				switch {
				case value == "":
				case isPersonal(d):
					row.terms[d] = t.blindTerm(dimensions[d], value)
				default:
					row.terms[d] = term(dimensions[d], value)
				}
			}
			batch = append(batch, row)
		}
		return nil
	})
	if err != nil || to <= from {
		return 0, err
	}
	n := int(to - from)
	err = t.db.Update(ctx, func(tx *db.Tx) error {
		n = int(to - from)
		moved, err := swapIndexed(ctx, tx, from, to)
		if err != nil {
			return err
		}
		if !moved {
			n = 0 // somebody else has done it
			return nil
		}
		erased := make(map[string]bool)
		for i := range batch {
			row := &batch[i]
			if row.customer == "" {
				continue
			}
			gone, known := erased[row.customer]
			if !known {
				if gone, err = isForgotten(ctx, tx, term(dimensions[dimCustomer], row.customer)); err != nil {
					return err
				}
				erased[row.customer] = gone
			}
			if gone {
				row.terms[dimAddress], row.terms[dimCountry], row.terms[dimBehalf] = 0, 0, 0
			}
		}
		return insertSearchRows(ctx, tx, batch)
	})
	return n, err
}

// personal opens an event's personal part; nil when it has none, or it cannot be opened.
func (t *Trail) personal(ctx context.Context, tx *db.Tx, p *placed, rings rings) (map[string]string, error) {
	if p.sealedUnder == underNothing {
		return nil, nil
	}
	ring, state, err := t.opener(ctx, tx, &p.row, rings)
	if err != nil || state != keyThere {
		return nil, err
	}
	object, err := p.openPersonal(ring)
	if err != nil {
		return nil, nil
	}
	m, err := parsePersonal(object)
	if err != nil {
		return nil, nil
	}
	return m, nil
}

// IndexAll makes all events of the log findable.
func (t *Trail) IndexAll(ctx context.Context) error {
	for {
		if n, err := t.Index(ctx); err != nil || n == 0 {
			return err
		}
	}
}

// sequenceAndIndex is what the sequencer's job does: places first, then as much of the index as fits.
func (t *Trail) sequenceAndIndex(ctx context.Context) error {
	if err := t.sequenceAll(ctx); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < indexTime && ctx.Err() == nil; {
		n, err := t.Index(ctx)
		if errors.Is(err, sql.ErrNoRows) { // the sequencer says what is wrong with the log
			return nil
		}
		if err != nil || n == 0 {
			return err
		}
	}
	return nil
}

// EraseCustomer takes all that is personal about c out of the search index: their events are no longer
// found by address, country or on whose behalf they were. It makes the trail one of the rooms that an
// erasure asks.
func (t *Trail) EraseCustomer(ctx context.Context, tx *db.Tx, c customer.ID) (map[string]int64, error) {
	n, err := forgetTerms(ctx, tx, term(dimensions[dimCustomer], string(c)))
	return map[string]int64{"search-entries": n}, err
}

// PruneSearch forgets the index rows of the events with a place below the one given, in tx, the
// transaction that deletes those events. It returns how many there were.
func (t *Trail) PruneSearch(ctx context.Context, tx *db.Tx, below int64) (int64, error) {
	return tx.Exec(ctx, `DELETE FROM event_search WHERE idx < $1`, below)
}

func selectIndexed(ctx context.Context, tx *db.Tx) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT size FROM event_search_head WHERE one = 1`).Scan(&n)
	return n, err
}

func swapIndexed(ctx context.Context, tx *db.Tx, from, to int64) (bool, error) {
	n, err := tx.Exec(ctx, `UPDATE event_search_head SET size = $1 WHERE one = 1 AND size = $2`, to, from)
	return n == 1, err
}

func isForgotten(ctx context.Context, tx *db.Tx, c int64) (bool, error) {
	var n int64
	err := tx.QueryRow(ctx, `SELECT count(*) FROM event_search_erased WHERE customer = $1`, c).Scan(&n)
	return n > 0, err
}

func forgetTerms(ctx context.Context, tx *db.Tx, c int64) (int64, error) {
	if _, err := tx.Exec(ctx, `INSERT INTO event_search_erased (customer) VALUES ($1) ON CONFLICT (customer) DO NOTHING`, c); err != nil {
		return 0, err
	}
	return tx.Exec(ctx, `UPDATE event_search SET address = 0, country = 0, behalf = 0
		WHERE customer = $1 AND customer <> 0 AND (address <> 0 OR country <> 0 OR behalf <> 0)`, c)
}

var searchChunks = [...]int{16, 1}

var insertSearchTexts = func() (texts [len(searchChunks)]string) {
	width := 3 + len(dimensions)
	for i, rows := range searchChunks {
		var tuples []string
		for r := range rows {
			holders := make([]string, width)
			for c := range width {
				holders[c] = "$" + strconv.Itoa(r*width+c+1)
			}
			tuples = append(tuples, "("+strings.Join(holders, ", ")+")")
		}
		texts[i] = `INSERT INTO event_search (idx, event_id, made_at, ` + strings.Join(dimensions[:], ", ") + `) VALUES ` + strings.Join(tuples, ", ")
	}
	return texts
}()

func insertSearchRows(ctx context.Context, tx *db.Tx, list []searchRow) error {
	var args []any
	for i, rows := range searchChunks {
		for ; len(list) >= rows; list = list[rows:] {
			args = args[:0]
			for _, r := range list[:rows] {
				args = append(args, r.index, r.event, r.madeAt)
				for _, n := range r.terms {
					args = append(args, n)
				}
			}
			if _, err := tx.Exec(ctx, insertSearchTexts[i], args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// normalAddress returns an address as events have it; empty for what is none.
func normalAddress(text string) string {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return ""
	}
	return a.Unmap().String()
}
