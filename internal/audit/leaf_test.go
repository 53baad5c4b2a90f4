package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"strongroom/internal/keyring/seal"
)

var golden = flag.Bool("golden", false, "rewrite the golden leaf")

// decoded is what a leaf says, by a parser that is not ours.
type decoded struct {
	V     int64
	ID    string
	Time  int64
	Actor struct{ Kind, ID, Device, Session string }

	Action, Resource, Customer, Outcome, Reason, Transaction, Request string

	SealedUnder string `json:"sealed_under"`
	Commitment  string
}

func decode(t interface{ Fatalf(string, ...any) }, leaf []byte) (r row) {
	var d decoded
	dec := json.NewDecoder(bytes.NewReader(leaf))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		t.Fatalf("%q: %v", leaf, err)
	}
	commitment, err := hex.DecodeString(d.Commitment)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return row{
		id: d.ID, version: d.V, madeAt: d.Time, actorKind: d.Actor.Kind, actorID: d.Actor.ID, device: d.Actor.Device,
		session: d.Actor.Session, action: d.Action, resource: d.Resource, customer: d.Customer, outcome: d.Outcome,
		reason: d.Reason, transaction: d.Transaction, request: d.Request, sealedUnder: d.SealedUnder, commitment: commitment,
	}
}

func drawRow(t *rapid.T) row {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", `"`, `\`, "\x00", `","id":"`, "\u2028", "é", "\x1f\x7f"}))
	return row{
		version: rapid.Int64().Draw(t, "version"), madeAt: rapid.Int64().Draw(t, "time"),
		id: text.Draw(t, "id"), actorKind: text.Draw(t, "kind"), actorID: text.Draw(t, "actor"),
		device: text.Draw(t, "device"), session: text.Draw(t, "session"), action: text.Draw(t, "action"),
		resource: text.Draw(t, "resource"), customer: text.Draw(t, "customer"), outcome: text.Draw(t, "outcome"),
		reason: text.Draw(t, "reason"), transaction: text.Draw(t, "transaction"), request: text.Draw(t, "request"),
		sealedUnder: text.Draw(t, "under"), commitment: rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "commitment"),
	}
}

// A leaf is JSON that says all of the row and nothing else, so two rows never have the same.
func TestLeafIsInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRow(t)
		leaf := r.appendLeaf(nil)
		if back := decode(t, leaf); !reflect.DeepEqual(back, r) {
			t.Fatalf("%q\n got %+v\nwant %+v", leaf, back, r)
		}
		// What is not in the leaf does not change it.
		r.sealed, r.mac, r.macVersion = []byte("x"), []byte("y"), 5
		if !bytes.Equal(leaf, r.appendLeaf(nil)) {
			t.Fatalf("the leaf holds what it must not")
		}
	})
}

// The encoding never changes: old trees would not verify any more.
func TestLeafGolden(t *testing.T) {
	rows := []row{
		{},
		{
			version: 1, id: "evt_06gzt14gj1jsndjggfy8hc9xpm", madeAt: 1_795_000_000_123_456, actorKind: "customer",
			actorID: "cus_06gzt14gh6c922k7q3j6qkrk5w", device: "dev_1", session: "ses_1", action: "vault.record.read",
			resource: "record profile/main", customer: "cus_06gzt14gh6c922k7q3j6qkrk5w", outcome: "denied",
			reason: "version-mismatch", transaction: "pay-1", request: "req_1", sealedUnder: "customer",
			commitment: bytes.Repeat([]byte{0xab, 0x01}, 16),
		},
		{version: 2, madeAt: -5, resource: "a\"b\\c\x00\x1f\x7f/<é\u2028\U0001F600>"},
	}
	var got []byte
	for _, r := range rows {
		leaf := r.appendLeaf(nil)
		got = append(got, leaf...)
		got = append(got, "\n"+leafHash(leaf).String()+"\n"...)
	}
	const file = "testdata/leaf.golden"
	if *golden {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestClean(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		limit := rapid.IntRange(8, 64).Draw(t, "limit")
		c := clean(s, limit)
		if len(c) > limit || !utf8.ValidString(c) || strings.ContainsAny(c, "\x00\n\r\x1b\x7f") {
			t.Fatalf("%q became %q", s, c)
		}
		if clean(c, limit) != c {
			t.Fatalf("%q is not clean", c)
		}
	})
	if s := clean("Ada Lovelace", 256); s != "Ada Lovelace" {
		t.Errorf("got %q", s)
	}
}

func TestPersonal(t *testing.T) {
	key, err := seal.NewKey(1, make([]byte, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.NewRing("test", key)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		personal := rapid.MapOf(rapid.StringMatching(`[a-z ]{1,8}`), rapid.StringMatching(`[ -~é]{1,20}`)).Draw(t, "personal")
		address := rapid.SampledFrom([]string{"", "203.0.113.7", "2001:db8::1"}).Draw(t, "address")
		plain := appendPersonal([]byte("before"), personal, address, "", "", "")[len("before"):]
		r := row{id: "evt_1", customer: "cus_1", commitment: commit(plain)}
		r.sealed = ring.Seal(sealPlace(r.id, r.customer), plain)
		object, err := r.openPersonal(ring)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parsePersonal(object)
		if err != nil {
			t.Fatalf("%q: %v", object, err)
		}
		for name, value := range personal {
			if name != nameAddress && got[name] != value {
				t.Fatalf("%q became %q", value, got[name])
			}
		}
		if address != "" && got[nameAddress] != address {
			t.Fatalf("got %q", got)
		}
		names := slices.Collect(func(yield func(string) bool) {
			d := json.NewDecoder(bytes.NewReader(object))
			for i := 0; d.More() || i == 0; i++ {
				token, err := d.Token()
				if s, ok := token.(string); err != nil || ok && i%2 == 1 && !yield(s) {
					return
				}
			}
		})
		if !slices.IsSorted(names) {
			t.Fatalf("%q is not in order", object)
		}
		// The commitment is what RFC 2104 says, and only this object under this salt fits it.
		h := hmac.New(sha256.New, plain[:32])
		h.Write(plain[32:])
		if !hmac.Equal(h.Sum(nil), r.commitment) {
			t.Fatal("the commitment is not an HMAC-SHA-256")
		}
		plain[rapid.IntRange(0, len(plain)-1).Draw(t, "at")] ^= 1
		r.sealed = ring.Seal(sealPlace(r.id, r.customer), plain)
		if _, err := r.openPersonal(ring); err == nil {
			t.Fatal("another personal part fits the commitment")
		}
		// The same person twice leaves two commitments that nobody can tell apart from others.
		if again := appendPersonal(nil, personal, address, "", "", ""); bytes.Equal(commit(again), r.commitment) {
			t.Fatal("the salt is not random")
		}
	})
}

func FuzzParsePersonal(f *testing.F) {
	f.Add([]byte(`{"address":"203.0.113.7"}`))
	f.Add([]byte(`{"a":1}`))
	f.Add([]byte(`[[[[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parsePersonal(b); err != nil && m != nil {
			t.Error("a failure with a result")
		}
	})
}

func TestNewID(t *testing.T) {
	last := ""
	for us := int64(1_795_000_000_000_000); us < 1_795_000_000_003_000; us++ {
		s := newID(us)
		if s <= last || len(s) != 30 {
			t.Fatalf("%q after %q", s, last)
		}
		last = s
	}
}
