package attest_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"os"
	"testing"
	"time"

	"strongroom/internal/identity/attest"
	"strongroom/internal/identity/attest/attesttest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func verifier(t testing.TB, google, apple *attesttest.Maker) *attest.Verifier {
	t.Helper()
	v, err := attest.New(attest.Options{
		AndroidPackages: []string{attesttest.Package}, AndroidSigners: [][]byte{attesttest.Signer[:]},
		AppleApps: []string{attesttest.AppID}, GoogleRoots: google.Roots, AppleRoots: apple.Roots,
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The shipped roots are those whose fingerprints Google and Apple publish.
func TestShippedRoots(t *testing.T) {
	want := map[string][]string{
		"google.pem": {
			"cedb1cb6dc896ae5ec797348bce9286753c2b38ee71ce0fbe34a9a1248800dfc",
			"6d9db4ce6c5c0b293166d08986e05774a8776ceb525d9e4329520de12ba4bcc0",
			"c1984a3ef45c1e2a918551de10603c86f7051b2249c4891cae3230eabd0c97d5",
			"1ef1a04b8ba58ab94589ac498c8982a783f24ea7307e0159a0c3a73b377d87cc",
			"ab6641178a36e179aa0c1cdddf9a16eb45fa20943e2b8cd7c7c05c26cf8b487a",
		},
		"apple.pem": {"1cb9823ba28ba6ad2d33a006941de2ae4f513ef1d4e831b9f7e0fa7b6242c932"},
	}
	for file, prints := range want {
		rest, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, print := range prints {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				t.Fatalf("%s holds too few roots", file)
			}
			if sum := sha256.Sum256(block.Bytes); hex.EncodeToString(sum[:]) != print {
				t.Errorf("%s holds a root %x", file, sum)
			}
		}
		if block, _ := pem.Decode(rest); block != nil {
			t.Errorf("%s holds more roots than are published", file)
		}
	}
	if _, err := attest.New(attest.Options{}); err != nil {
		t.Error(err)
	}
}

func TestAndroid(t *testing.T) {
	google := attesttest.New(t, now)
	v := verifier(t, google, google)
	challenge := []byte("challenge")
	key := attesttest.Key(t)
	alter := func(f func(*attesttest.Android)) attesttest.Android {
		a := attesttest.Good(challenge)
		f(&a)
		return a
	}
	for _, row := range []struct {
		name  string
		chain [][]byte
		level attest.Level // "" means refused
		at    time.Time
	}{
		{"security chip", google.Android(&key.PublicKey, attesttest.Good(challenge)), attest.AndroidStrongBox, now},
		{"trusted environment", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Level = 1 })), attest.AndroidTEE, now},
		{"software", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Level = 0 })), "", now},
		{"other challenge", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Challenge = []byte("older") })), "", now},
		{"no challenge", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Challenge = nil })), "", now},
		{"other app", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Package = "com.example.evil" })), "", now},
		{"app signed by others", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Signer = make([]byte, 32) })), "", now},
		{"imported key", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Imported = true })), "", now},
		{"open boot loader", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Unlocked = true })), "", now},
		{"not for signing", google.Android(&key.PublicKey, alter(func(a *attesttest.Android) { a.Encrypts = true })), "", now},
		{"attested by an attested key", google.Below(&key.PublicKey, attesttest.Good(challenge)), "", now},
		{"other root", attesttest.New(t, now).Android(&key.PublicKey, attesttest.Good(challenge)), "", now},
		{"out of date", google.Android(&key.PublicKey, attesttest.Good(challenge)), "", now.Add(72 * time.Hour)},
		{"leaf alone", google.Android(&key.PublicKey, attesttest.Good(challenge))[:1], "", now},
		{"nothing", nil, "", now},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, level, err := v.Android(row.chain, challenge, row.at)
			if level != row.level || (err == nil) != (row.level != "") {
				t.Fatalf("%q %v", level, err)
			}
			if err == nil && !got.Equal(&key.PublicKey) {
				t.Error("another key was returned")
			}
		})
	}
}

func TestApple(t *testing.T) {
	apple := attesttest.New(t, now)
	v := verifier(t, apple, apple)
	data := []byte("challenge")
	alter := func(f func(*attesttest.Apple)) []byte {
		a := attesttest.Genuine(data)
		f(&a)
		return apple.Apple(a)
	}
	good := apple.Apple(attesttest.Genuine(data))
	for _, row := range []struct {
		name   string
		object []byte
		data   []byte
		at     time.Time
		ok     bool
	}{
		{"genuine", good, data, now, true},
		{"other challenge", good, []byte("older"), now, false},
		{"other app", alter(func(a *attesttest.Apple) { a.App = "0123456789.com.example.evil" }), data, now, false},
		{"developer's copy", alter(func(a *attesttest.Apple) { a.Environment = "appattestdevelop" }), data, now, false},
		{"other authenticator", alter(func(a *attesttest.Apple) { a.Environment = "something else.." }), data, now, false},
		{"has signed before", alter(func(a *attesttest.Apple) { a.Counter = 1 }), data, now, false},
		{"other key", alter(func(a *attesttest.Apple) { a.KeyID = make([]byte, 32) }), data, now, false},
		{"short key", alter(func(a *attesttest.Apple) { a.KeyID = make([]byte, 3) }), data, now, false},
		{"other root", attesttest.New(t, now).Apple(attesttest.Genuine(data)), data, now, false},
		{"out of date", good, data, now.Add(72 * time.Hour), false},
		{"cut short", good[:len(good)-1], data, now, false},
		{"more behind", append(append([]byte{}, good...), 0), data, now, false},
		{"nothing", nil, data, now, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			level, err := v.Apple(row.object, row.data, row.at)
			if (err == nil) != row.ok || (level == attest.AppleApp) != row.ok {
				t.Errorf("%q %v", level, err)
			}
		})
	}
	dev, err := attest.New(attest.Options{AppleApps: []string{attesttest.AppID}, AppleDevelopment: true, AppleRoots: apple.Roots})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.Apple(alter(func(a *attesttest.Apple) { a.Environment = "appattestdevelop" }), data, now); err != nil {
		t.Error(err)
	}
}

// Whatever comes, nothing passes that was not made so, and nothing panics.
func FuzzApple(f *testing.F) {
	apple := attesttest.New(f, now)
	v := verifier(f, apple, apple)
	f.Add(apple.Apple(attesttest.Genuine([]byte("challenge"))))
	f.Add([]byte{0xa0})
	f.Add([]byte{0xbf, 0xff})
	f.Fuzz(func(t *testing.T, object []byte) {
		if _, err := v.Apple(object, []byte("another challenge"), now); err == nil {
			t.Error("passed")
		}
	})
}

func FuzzAndroid(f *testing.F) {
	google := attesttest.New(f, now)
	v := verifier(f, google, google)
	chain := google.Android(&attesttest.Key(f).PublicKey, attesttest.Good([]byte("challenge")))
	f.Add(chain[0], chain[1])
	f.Add([]byte{}, []byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, leaf, above []byte) {
		if _, _, err := v.Android([][]byte{leaf, above}, []byte("another challenge"), now); err == nil {
			t.Error("passed")
		}
	})
}
