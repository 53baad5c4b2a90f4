package bundle

import (
	"bytes"
	"errors"
	"testing"

	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"strongroom/internal/audit"
)

// FuzzVerify: whatever the bytes are, they hold only when they are a bundle that the key has signed.
func FuzzVerify(f *testing.F) {
	b, key := firstBundle(f)
	f.Add([]byte{})
	f.Add([]byte("PK\x05\x06" + string(make([]byte, 18))))
	f.Add(b)
	f.Add(b[:len(b)/2])
	for _, at := range []int{4, 30, len(b) / 3, len(b) - 20} {
		changed := bytes.Clone(b)
		changed[at] ^= 0x40
		f.Add(changed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, keys := range [][]string{{key}, nil} {
			_, err := Verify(t.Context(), bytes.NewReader(data), int64(len(data)), Options{Keys: keys})
			if err == nil && !bytes.Equal(data, b) {
				t.Error("it holds and is not the bundle")
			}
			if err != nil && !errors.Is(err, ErrBundle) {
				t.Errorf("not ErrBundle: %v", err)
			}
		}
	})
}

// FuzzStatement: what is read as the statement of a run is the one that is written of it.
func FuzzStatement(f *testing.F) {
	for _, r := range newMaker(f).runs {
		statement, _, err := r.statement()
		if err != nil {
			f.Fatal(err)
		}
		text, err := protojson.Marshal(statement)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"subject":[{"name":"x"}],"predicate":{"configuration":[{"annotations":{"took_us":1e300}}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := new(intoto.Statement)
		if protojson.Unmarshal(data, s) != nil {
			return
		}
		r, seen, err := runOf(s)
		if err != nil {
			return
		}
		if again, _, err := r.statement(); err != nil || again.Subject[0].Name != r.ID || Resource(seen, r.Text) == "" {
			t.Errorf("%+v: %v", r, err)
		}
	})
}

// FuzzEnvelope: nothing but what was signed is opened.
func FuzzEnvelope(f *testing.F) {
	b, verifierKey := firstBundle(f)
	v, err := audit.NewVerifier(verifierKey)
	if err != nil {
		f.Fatal(err)
	}
	k := envelopeKey{verify: v}
	line := bytes.TrimSuffix(contents(f, b)[manifestName], []byte("\n"))
	f.Add(line)
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[]}`))
	f.Add(bytes.Replace(line, []byte(`"keyid"`), []byte(`"KEYID"`), 1))
	f.Add(append(bytes.Clone(line), ' '))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := open(t.Context(), data, k); err == nil && !bytes.Equal(data, line) {
			t.Errorf("%q was opened", data)
		}
		_, _ = namedKey(data) // must not panic
	})
}
