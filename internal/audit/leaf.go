package audit

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/keyring/seal"
)

// leafVersion is the form of leaf that this version writes.
const leafVersion = 1

// What a row's personal part is sealed under.
const (
	underNothing  = ""         // it has none
	underCustomer = "customer" // the data key of the event's customer
	underService  = "event"    // the service key for events
)

// row is an event as the table holds it.
type row struct {
	id          string
	version     int64
	madeAt      int64 // Unix microseconds
	actorKind   string
	actorID     string
	device      string
	session     string
	action      string
	resource    string
	customer    string
	outcome     string
	reason      string
	transaction string
	request     string
	sealedUnder string
	commitment  []byte
	sealed      []byte
	macVersion  int64
	mac         []byte
}

// appendLeaf appends the row's leaf, version 1: a JSON object (RFC 8259) without white space and
// with these members in this order, all of them always there:
//
//	v             1
//	id            the event's id
//	time          Unix microseconds
//	actor         an object of kind, id, device and session
//	action, resource, customer, outcome, reason, transaction, request
//	sealed_under  what the personal part is sealed under: customer, event, or empty without one
//	commitment    HMAC-SHA-256 of the personal part under its salt, in lower-case hex, or empty
//
// In strings the quotation mark and the backslash are escaped by a backslash and bytes below 0x20
// as \u00xx in lower case; all else stands for itself. Two different rows never give one leaf, and
// the leaf's hash in the tree is that of RFC 6962 section 2.1.
func (r *row) appendLeaf(b []byte) []byte {
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, r.version, 10)
	b = appendMember(b, `,"id":`, r.id)
	b = append(b, `,"time":`...)
	b = strconv.AppendInt(b, r.madeAt, 10)
	b = appendMember(b, `,"actor":{"kind":`, r.actorKind)
	b = appendMember(b, `,"id":`, r.actorID)
	b = appendMember(b, `,"device":`, r.device)
	b = appendMember(b, `,"session":`, r.session)
	b = appendMember(b, `},"action":`, r.action)
	b = appendMember(b, `,"resource":`, r.resource)
	b = appendMember(b, `,"customer":`, r.customer)
	b = appendMember(b, `,"outcome":`, r.outcome)
	b = appendMember(b, `,"reason":`, r.reason)
	b = appendMember(b, `,"transaction":`, r.transaction)
	b = appendMember(b, `,"request":`, r.request)
	b = appendMember(b, `,"sealed_under":`, r.sealedUnder)
	b = append(b, `,"commitment":"`...)
	b = hex.AppendEncode(b, r.commitment)
	return append(b, `"}`...)
}

func appendMember(b []byte, name, value string) []byte {
	return appendString(append(b, name...), value)
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		if c < 0x20 {
			b = append(b, `\u00`...)
			b = hex.AppendEncode(b, []byte{c})
		} else {
			b = append(b, '\\', c)
		}
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

func leafHash(leaf []byte) tlog.Hash { return tlog.RecordHash(leaf) }

// The longest fields; longer ones are cut, since an event must never fail for what somebody sent.
const (
	maxField    = 256
	maxPersonal = 4096
)

// clean returns s fit for every database and terminal: valid UTF-8 without control characters, and
// no longer than limit bytes.
func clean(s string, limit int) string {
	plain := len(s) <= limit
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= 0x20 && s[i] < 0x7f
	}
	if plain {
		return s
	}
	s = strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return utf8.RuneError
		}
		return c
	}, s)
	if len(s) <= limit {
		return s
	}
	const mark = "…"
	cut := limit - len(mark)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + mark
}

// The personal part, before it is sealed: a random salt and a JSON object of strings with its names
// in ascending order. The commitment is the HMAC-SHA-256 of the object under the salt: without the
// salt, which goes with the key, it says nothing about the person, and with it, it fits one object.
const saltSize = 32

// appendPersonal appends the salt and the object of personal, and of the caller the address, its country and
// network, and the key.
func appendPersonal(b []byte, personal map[string]string, address, country, key, network string) []byte {
	b = slices.Grow(b, saltSize+128)[:len(b)+saltSize]
	rand.Read(b[len(b)-saltSize:])
	own := [...]struct{ name, value string }{{nameAddress, address}, {nameCountry, country}, {nameKey, key}, {nameNetwork, network}}
	b = append(b, '{')
	first := true
	add := func(name, value string) {
		if value == "" {
			return
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = appendString(b, name)
		b = append(b, ':')
		b = appendString(b, clean(value, maxPersonal))
	}
	if len(personal) == 0 {
		for _, o := range own {
			add(o.name, o.value)
		}
		return append(b, '}')
	}
	all := make(map[string]string, len(personal)+len(own))
	for name, value := range personal {
		all[clean(name, maxField)] = value
	}
	for _, o := range own {
		if o.value != "" {
			all[o.name] = o.value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		add(name, all[name])
	}
	return append(b, '}')
}

// commit returns the commitment to a personal part.
func commit(plain []byte) []byte {
	h := hmac.New(sha256.New, plain[:saltSize])
	h.Write(plain[saltSize:])
	return h.Sum(make([]byte, 0, sha256.Size))
}

var errPersonal = errors.New("the personal part is not the one that the event commits to")

// openPersonal opens the personal part and checks it against the commitment.
func (r *row) openPersonal(ring *seal.Ring) ([]byte, error) {
	plain, err := ring.Open(sealPlace(r.id, r.customer), r.sealed)
	if err != nil {
		return nil, err
	}
	if len(plain) < saltSize || !hmac.Equal(commit(plain), r.commitment) {
		return nil, errPersonal
	}
	return plain[saltSize:], nil
}

func parsePersonal(object []byte) (map[string]string, error) {
	var m map[string]string
	if err := json.Unmarshal(object, &m); err != nil {
		return nil, errPersonal
	}
	return m, nil
}

func sealPlace(id, customer string) seal.Place {
	return seal.Place{Room: "audit", Table: "event", Customer: customer, Record: id, Version: leafVersion}
}
