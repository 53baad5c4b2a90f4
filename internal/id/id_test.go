package id

import (
	"strings"
	"testing"
	"time"
)

func TestNewIsValidUniqueAndOrdered(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := New("cus")
		if !Valid("cus", s) || Valid("dev", s) {
			t.Fatalf("%q is not valid for its own prefix alone", s)
		}
		if seen[s] {
			t.Fatalf("%q was made twice", s)
		}
		seen[s] = true
	}
	a := New("x")
	time.Sleep(2 * time.Millisecond) // the order is by millisecond
	if b := New("x"); a >= b {
		t.Errorf("%q was made before %q", a, b)
	}
}

func TestValidRefuses(t *testing.T) {
	good := New("cus")
	for _, s := range []string{"", "cus", "cus_", good[:len(good)-1], good + "0", strings.ToUpper(good), "cus_" + strings.Repeat("u", 26), strings.Replace(good, "_", "-", 1)} {
		if Valid("cus", s) {
			t.Errorf("%q is accepted", s)
		}
	}
}

func FuzzValid(f *testing.F) {
	f.Add(New("cus"))
	f.Add("cus_")
	f.Fuzz(func(t *testing.T, s string) {
		if Valid("cus", s) && (len(s) != 30 || strings.ContainsAny(s, "/ '\x00")) {
			t.Errorf("%q is accepted", s)
		}
	})
}
