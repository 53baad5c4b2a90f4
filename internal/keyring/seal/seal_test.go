package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The AES-256 test cases 13 to 16 of McGrew and Viega, "The Galois/Counter Mode of Operation",
// appendix B, which NIST SP 800-38D took over.
var vectors = []struct{ name, key, nonce, plaintext, ad, sealed string }{
	{
		name:   "13",
		key:    "0000000000000000000000000000000000000000000000000000000000000000",
		nonce:  "000000000000000000000000",
		sealed: "530f8afbc74536b9a963b4f1c4cb738b",
	},
	{
		name:      "14",
		key:       "0000000000000000000000000000000000000000000000000000000000000000",
		nonce:     "000000000000000000000000",
		plaintext: "00000000000000000000000000000000",
		sealed:    "cea7403d4d606b6e074ec5d3baf39d18" + "d0d1c8a799996bf0265b98b5d48ab919",
	},
	{
		name:  "15",
		key:   "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
		nonce: "cafebabefacedbaddecaf888",
		plaintext: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
			"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
		sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
			"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad" +
			"b094dac5d93471bdec1a502270e3cc6c",
	},
	{
		name:  "16",
		key:   "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
		nonce: "cafebabefacedbaddecaf888",
		plaintext: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
			"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
		ad: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
		sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
			"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" +
			"76fc6ece0f4e1768cddf8853bb2d551b",
	},
}

func TestPublishedVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			aead, err := newAEAD(unhex(t, v.key))
			if err != nil {
				t.Fatal(err)
			}
			sealed := append(unhex(t, v.nonce), unhex(t, v.sealed)...)
			got, err := aead.Open(nil, nil, sealed, unhex(t, v.ad))
			if err != nil || !bytes.Equal(got, unhex(t, v.plaintext)) {
				t.Fatalf("open: %x, %v; want %s", got, err, v.plaintext)
			}
			for i := range sealed {
				bad := bytes.Clone(sealed)
				bad[i] ^= 0x80
				if _, err := aead.Open(nil, nil, bad, unhex(t, v.ad)); err == nil {
					t.Fatalf("opened with byte %d altered", i)
				}
			}
		})
	}
}

// TestFormat holds the format in which values lie in databases: it must open for ever. The wanted
// value is put together by hand from the package's documentation.
func TestFormat(t *testing.T) {
	material := unhex(t, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	ring := mustRing(t, "strongroom/dev/ins_1/customer", mustKey(t, 7, material))
	p := Place{Room: "vault", Table: "record", Customer: "cus_1", Record: "profile/main", Version: 258}

	var ad bytes.Buffer
	ad.WriteString("\x01\x00\x00\x00\x07")
	for _, s := range []string{"strongroom/dev/ins_1/customer", "vault", "record", "cus_1", "profile/main"} {
		ad.WriteString("\x00\x00\x00" + string(rune(len(s))) + s)
	}
	ad.WriteString("\x00\x00\x00\x00\x00\x00\x01\x02")
	block, err := aes.NewCipher(material)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("twelve bytes")
	sealed := slices.Concat([]byte("\x01\x00\x00\x00\x07"), nonce, gcm.Seal(nil, nonce, []byte("Ada"), ad.Bytes()))

	const stored = "0100000007" + "7477656c7665206279746573" + "ebe182751a46bbbafa8d2548c18753103deea2"
	if got := hex.EncodeToString(sealed); got != stored {
		t.Errorf("the format changed: %s", got)
	}
	got, err := ring.Open(p, sealed)
	if err != nil || string(got) != "Ada" {
		t.Fatalf("open: %q, %v", got, err)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		versions := rapid.SliceOfNDistinct(rapid.Uint32Range(1, 1<<32-1), 1, 4, rapid.ID).Draw(t, "versions")
		var keys []*Key
		for _, v := range versions {
			keys = append(keys, mustKey(t, v, drawMaterial(t)))
		}
		scope := rapid.String().Draw(t, "scope")
		ring := mustRing(t, scope, keys...)
		newest := slices.Max(versions)
		if ring.Version() != newest || ring.Versions()[0] != newest || len(ring.Versions()) != len(versions) {
			t.Fatalf("versions %v, newest %d", ring.Versions(), ring.Version())
		}
		p := drawPlace(t)
		plaintext := rapid.SliceOf(rapid.Byte()).Draw(t, "plaintext")

		sealed := ring.Seal(p, plaintext)
		if len(sealed) != len(plaintext)+Overhead {
			t.Fatalf("%d bytes became %d", len(plaintext), len(sealed))
		}
		if v, err := KeyVersion(sealed); err != nil || v != newest {
			t.Fatalf("sealed with %d, %v", v, err)
		}
		// Every version alone seals what the whole ring opens.
		for _, k := range keys {
			old := mustRing(t, scope, k).Seal(p, plaintext)
			if got, err := ring.Open(p, old); err != nil || !bytes.Equal(got, plaintext) {
				t.Fatalf("version %d: %x, %v", k.Version(), got, err)
			}
		}
		prefix := []byte("prefix")
		if got := ring.AppendSeal(bytes.Clone(prefix), p, plaintext); !bytes.HasPrefix(got, prefix) || len(got) != len(sealed)+len(prefix) {
			t.Fatalf("append: %x", got)
		}
		got, err := ring.AppendOpen(bytes.Clone(prefix), p, sealed)
		if err != nil || !bytes.Equal(got, slices.Concat(prefix, plaintext)) {
			t.Fatalf("append: %x, %v", got, err)
		}
	})
}

// TestOpensNowhereElse: another place, scope, key, key version or byte does not open.
func TestOpensNowhereElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		material, scope, p := drawMaterial(t), rapid.String().Draw(t, "scope"), drawPlace(t)
		version := rapid.Uint32Range(1, 1<<32-2).Draw(t, "version")
		ring := mustRing(t, scope, mustKey(t, version, material))
		plaintext := rapid.SliceOf(rapid.Byte()).Draw(t, "plaintext")
		sealed := ring.Seal(p, plaintext)

		if q := drawPlace(t); q != p {
			refuse(t, "another place", ring, q, sealed)
		}
		other := rapid.StringN(1, 3, -1).Draw(t, "other")
		for name, change := range map[string]func(*Place){
			"room":              func(q *Place) { q.Room += other },
			"table":             func(q *Place) { q.Table += other },
			"customer":          func(q *Place) { q.Customer += other },
			"record":            func(q *Place) { q.Record += other },
			"version":           func(q *Place) { q.Version ^= 1 << rapid.IntRange(0, 63).Draw(t, "bit") },
			"room moved":        func(q *Place) { q.Room, q.Table = "", q.Room+q.Table+other },
			"customer, swapped": func(q *Place) { q.Customer, q.Record = q.Record+other, q.Customer },
		} {
			q := p
			change(&q)
			refuse(t, name, ring, q, sealed)
		}
		refuse(t, "another scope", mustRing(t, scope+other, mustKey(t, version, material)), p, sealed)
		bad := bytes.Clone(material)
		bad[rapid.IntRange(0, KeySize-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		refuse(t, "another key", mustRing(t, scope, mustKey(t, version, bad)), p, sealed)

		// The same material under another version number, and the header altered to match.
		renumbered := mustRing(t, scope, mustKey(t, version+1, material))
		if _, err := renumbered.Open(p, sealed); !errors.Is(err, ErrKeyVersion) {
			t.Fatalf("another version: %v", err)
		}
		forged := bytes.Clone(sealed)
		copy(forged, renumbered.Seal(p, plaintext)[:headerSize])
		refuse(t, "altered header", renumbered, p, forged)

		i := rapid.IntRange(0, len(sealed)-1).Draw(t, "byte")
		altered := bytes.Clone(sealed)
		altered[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := ring.Open(p, altered); err == nil {
			t.Fatalf("opened with byte %d altered", i)
		}
		if _, err := ring.Open(p, sealed[:rapid.IntRange(0, len(sealed)-1).Draw(t, "length")]); err == nil {
			t.Fatal("opened cut short")
		}
		if _, err := ring.Open(p, append(bytes.Clone(sealed), 0)); err == nil {
			t.Fatal("opened with a byte too many")
		}
	})
}

func refuse(t *rapid.T, name string, ring *Ring, p Place, sealed []byte) {
	t.Helper()
	got, err := ring.Open(p, sealed)
	if !errors.Is(err, ErrOpen) || got != nil {
		t.Fatalf("%s: %x, %v; want ErrOpen", name, got, err)
	}
}

func TestNoncesDiffer(t *testing.T) {
	ring := mustRing(t, "s", mustKey(t, 1, make([]byte, KeySize)))
	seen := map[string]bool{}
	for range 10_000 {
		nonce := string(ring.Seal(Place{}, nil)[headerSize : headerSize+nonceSize])
		if seen[nonce] {
			t.Fatal("a nonce came twice")
		}
		seen[nonce] = true
	}
}

func TestRefusedKeysAndRings(t *testing.T) {
	for _, n := range []int{0, 16, 24, 31, 33} {
		if _, err := NewKey(1, make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes was taken", n)
		}
	}
	if _, err := NewKey(0, make([]byte, KeySize)); err == nil {
		t.Error("version 0 was taken")
	}
	k := mustKey(t, 1, make([]byte, KeySize))
	for name, keys := range map[string][]*Key{"empty": {}, "nil": {k, nil}, "twice": {k, k}} {
		if _, err := NewRing("s", keys...); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func TestKeyKeepsNoReferenceToMaterial(t *testing.T) {
	material := bytes.Repeat([]byte{9}, KeySize)
	ring := mustRing(t, "s", mustKey(t, 1, material))
	clear(material)
	again := mustRing(t, "s", mustKey(t, 1, bytes.Repeat([]byte{9}, KeySize)))
	if got, err := again.Open(Place{}, ring.Seal(Place{}, []byte("x"))); err != nil || string(got) != "x" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestNothingPrints(t *testing.T) {
	k := mustKey(t, 1, bytes.Repeat([]byte{0xab}, KeySize))
	r := mustRing(t, "scope", k)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k, "ring", r)
	for _, got := range []string{
		fmt.Sprintf("%v %+v %#v %s %x %d %q", k, k, k, k, k, k, k),
		fmt.Sprintf("%v %+v %#v %s %x %d %q", *r, *r, *r, *r, *r, *r, *r),
		fmt.Sprintf("%v %+v %#v", []any{k, r}, struct{ K Key }{*k}, map[string]Ring{"r": *r}),
		log.String(),
	} {
		for _, never := range []string{"ab", "171", "scope", "aead", "gcm"} {
			if strings.Contains(strings.ToLower(strings.ReplaceAll(got, "map[", "")), never) {
				t.Errorf("%q holds %q", got, never)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	ring := mustRing(f, "scope", mustKey(f, 1, make([]byte, KeySize)), mustKey(f, 2, bytes.Repeat([]byte{1}, KeySize)))
	// Fixed, because the fuzzer's workers are processes of their own and share the seeds.
	good, err := hex.DecodeString("010000000201049b9338e996c92b00a2ff" +
		"37ab0329ae18dae813732699496222125efb88bc76")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, "r", "x", int64(0))
	f.Add(good, "r", "y", int64(0))
	f.Add(good[:Overhead-1], "r", "x", int64(0))
	f.Add([]byte{}, "", "", int64(-1))
	f.Add([]byte{formatV1, 0, 0, 0, 2}, "", "", int64(1))
	f.Add(bytes.Repeat([]byte{formatV1}, 64), "", "", int64(1))
	f.Fuzz(func(t *testing.T, sealed []byte, room, record string, version int64) {
		p := Place{Room: room, Record: record, Version: version}
		got, err := ring.Open(p, sealed)
		genuine := bytes.Equal(sealed, good) && p == Place{Room: "r", Record: "x"}
		switch {
		case genuine && (err != nil || string(got) != "plain"):
			t.Fatalf("the genuine value: %q, %v", got, err)
		case !genuine && !errors.Is(err, ErrOpen) && !errors.Is(err, ErrKeyVersion):
			t.Fatalf("a forgery: %q, %v", got, err)
		}
	})
}

var sizes = []struct {
	name string
	n    int
}{{"300B", 300}, {"64KB", 64 << 10}}

// BenchmarkSeal and BenchmarkOpen set the package beside crypto/cipher's own GCM with a random nonce,
// a plain 16-byte associated datum and the same way of handing out memory.
func BenchmarkSeal(b *testing.B) {
	ring, raw, ad := benchKeys(b)
	for _, size := range sizes {
		plaintext := make([]byte, size.n)
		run(b, "seal/"+size.name, size.n, func() { ring.Seal(benchPlace, plaintext) })
		run(b, "raw/"+size.name, size.n, func() { raw.Seal(nil, nil, plaintext, ad) })
		dst := make([]byte, 0, size.n+Overhead)
		run(b, "seal-append/"+size.name, size.n, func() { ring.AppendSeal(dst, benchPlace, plaintext) })
		run(b, "raw-append/"+size.name, size.n, func() { raw.Seal(dst, nil, plaintext, ad) })
	}
}

func BenchmarkOpen(b *testing.B) {
	ring, raw, ad := benchKeys(b)
	for _, size := range sizes {
		sealed := ring.Seal(benchPlace, make([]byte, size.n))
		rawSealed := raw.Seal(nil, nil, make([]byte, size.n), ad)
		dst := make([]byte, 0, size.n)
		must := func(_ []byte, err error) {
			if err != nil {
				b.Fatal(err)
			}
		}
		run(b, "open/"+size.name, size.n, func() { must(ring.Open(benchPlace, sealed)) })
		run(b, "raw/"+size.name, size.n, func() { must(raw.Open(nil, nil, rawSealed, ad)) })
		run(b, "open-append/"+size.name, size.n, func() { must(ring.AppendOpen(dst, benchPlace, sealed)) })
		run(b, "raw-append/"+size.name, size.n, func() { must(raw.Open(dst, nil, rawSealed, ad)) })
	}
}

var benchPlace = Place{Room: "vault", Table: "record", Customer: "cus_01jd8z5w6q9m3k2v7x4c1b0n8h", Record: "profile/main", Version: 3}

func benchKeys(b *testing.B) (*Ring, cipher.AEAD, []byte) {
	material := bytes.Repeat([]byte{7}, KeySize)
	raw, err := newAEAD(material)
	if err != nil {
		b.Fatal(err)
	}
	return mustRing(b, "strongroom/live/ins_01jd8z5w6q9m3k2v7x4c1b0n8h/customer", mustKey(b, 1, material)), raw, make([]byte, 16)
}

func run(b *testing.B, name string, n int, op func()) {
	b.Run(name, func(b *testing.B) {
		b.SetBytes(int64(n))
		b.ReportAllocs()
		for b.Loop() {
			op()
		}
	})
}

type fataler interface {
	Helper()
	Fatal(...any)
}

func mustKey(t fataler, version uint32, material []byte) *Key {
	t.Helper()
	k, err := NewKey(version, material)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustRing(t fataler, scope string, keys ...*Key) *Ring {
	t.Helper()
	r, err := NewRing(scope, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func drawMaterial(t *rapid.T) []byte {
	return rapid.SliceOfN(rapid.Byte(), KeySize, KeySize).Draw(t, "material")
}

func drawPlace(t *rapid.T) Place {
	s := rapid.StringN(0, 6, -1)
	return Place{
		Room: s.Draw(t, "room"), Table: s.Draw(t, "table"), Customer: s.Draw(t, "customer"),
		Record: s.Draw(t, "record"), Version: rapid.Int64().Draw(t, "placeVersion"),
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUnder: an older version seals when it is told to, and all versions open all the same.
func TestUnder(t *testing.T) {
	one, two := newKey(t, 1), newKey(t, 2)
	newest, err := NewRing("scope", one, two)
	if err != nil {
		t.Fatal(err)
	}
	older, err := newest.Under(1)
	if err != nil || older.Version() != 1 || newest.Version() != 2 || !slices.Equal(older.Versions(), newest.Versions()) {
		t.Fatalf("versions %d of %v and %d of %v, %v", older.Version(), older.Versions(), newest.Version(), newest.Versions(), err)
	}
	p := Place{Room: "vault", Record: "r"}
	for want, ring := range map[uint32]*Ring{1: older, 2: newest} {
		sealed := ring.Seal(p, []byte("x"))
		if v, err := KeyVersion(sealed); err != nil || v != want {
			t.Errorf("sealed with version %d, %v; want %d", v, err, want)
		}
		for _, r := range []*Ring{older, newest} {
			if got, err := r.Open(p, sealed); err != nil || string(got) != "x" {
				t.Errorf("%q, %v", got, err)
			}
		}
	}
	if r, err := newest.Under(3); !errors.Is(err, ErrKeyVersion) || r != nil {
		t.Errorf("a version that is not there: %v", err)
	}
}

func newKey(t *testing.T, version uint32) *Key {
	t.Helper()
	k, err := NewKey(version, bytes.Repeat([]byte{byte(version)}, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}
