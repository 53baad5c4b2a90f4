package totp

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/pquerna/otp"
	"pgregory.net/rapid"
)

// The vectors of RFC 6238 appendix B for HMAC-SHA-1, eight digits, whose last six are a six-digit code.
func TestPublishedVectors(t *testing.T) {
	secret := []byte("12345678901234567890")
	for seconds, want := range map[int64]string{
		59: "94287082", 1111111109: "07081804", 1111111111: "14050471",
		1234567890: "89005924", 2000000000: "69279037", 20000000000: "65353130",
	} {
		now := time.Unix(seconds, 0)
		got, err := at(secret, Step(now), otp.DigitsEight)
		if err != nil || got != want {
			t.Errorf("at %d: %s %v, want %s", seconds, got, err, want)
		}
		if step, ok, err := Match(secret, []byte(want[2:]), now, 0); err != nil || !ok || step != Step(now) {
			t.Errorf("at %d the code of the step is refused: %d %v %v", seconds, step, ok, err)
		}
	}
}

// The vectors of RFC 4226 appendix D.
func TestPublishedHOTPVectors(t *testing.T) {
	for n, want := range []string{"755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"} {
		if got, err := at([]byte("12345678901234567890"), int64(n), otp.DigitsSix); err != nil || got != want {
			t.Errorf("counter %d: %s %v, want %s", n, got, err, want)
		}
	}
}

// reference is RFC 4226 section 5.3 once more, from the text.
func reference(secret []byte, step int64) string {
	var counter [8]byte
	binary.BigEndian.PutUint64(counter[:], uint64(step))
	mac := hmac.New(sha1.New, secret)
	mac.Write(counter[:])
	sum := mac.Sum(nil)
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[sum[19]&15:])&0x7fffffff%1_000_000)
}

// Whatever the secret and the time, the codes of the steps beside now are good once and no others are.
func TestASVS_6_5_1_and_6_5_5_CodesWorkOnceAndSoon(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, "secret")
		now := time.Unix(rapid.Int64Range(3600, 1<<33).Draw(t, "now"), 0)
		away := rapid.Int64Range(-5, 5).Draw(t, "away")
		code := []byte(reference(secret, Step(now)+away))
		for near := int64(-1); near <= 1; near++ {
			if away != near && reference(secret, Step(now)+near) == string(code) {
				t.Skip("two steps have one code")
			}
		}
		step, ok, err := Match(secret, code, now, 0)
		if err != nil || ok != (away >= -1 && away <= 1) {
			t.Fatalf("%d steps away: %v %v", away, ok, err)
		}
		if !ok {
			return
		}
		if _, again, _ := Match(secret, code, now, step); again {
			t.Fatal("a code was good twice")
		}
	})
}

func TestURI(t *testing.T) {
	u, err := url.Parse(URI([]byte("12345678901234567890"), "Money & Co"))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if u.Scheme != "otpauth" || u.Host != "totp" || u.Path != "/Money & Co" || q.Get("secret") != "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" || q.Get("issuer") != "Money & Co" {
		t.Error(u)
	}
}
