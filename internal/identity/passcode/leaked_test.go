package passcode

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// All that fits the policy of the list is refused, and found where it lies.
func TestASVS_6_2_4_CommonCodesAreRefused(t *testing.T) {
	words := strings.Split(strings.TrimSuffix(leakedText, "\n"), "\n")
	fit, numbers := 0, 0
	for n, w := range words {
		if n > 0 && words[n-1] >= w {
			t.Fatalf("line %d, %q, is not after %q: the search would miss codes", n+1, w, words[n-1])
		}
		if w != Folded([]byte(w)) || !leaked(w) {
			t.Errorf("%q is on the list and not found", w)
		}
		if n%10 == 0 && Judge([]byte(w), "", LeastLength) == "" {
			t.Errorf("%q is accepted", w)
		}
		if utf8.RuneCountInString(w) >= MinLength {
			fit++
			if strings.Trim(w, "0123456789") == "" {
				numbers++
			}
		}
	}
	if fit < 3000 {
		t.Errorf("%d codes of the list fit the policy; ASVS asks for 3,000", fit)
	}
	if numbers < 2000 {
		t.Errorf("only %d of them are numbers, which is what most private codes are", numbers)
	}
	for _, w := range []string{"1Q2w3e4r", "Spider-Man", "blink 182", "LIVERPOOL", "zaq12wsx", "78945612"} {
		if got := Judge([]byte(w), "", LeastLength); got != Common {
			t.Errorf("%q is %q and not %q", w, got, Common)
		}
	}
}

// The search finds what a set would, for words of the list and for their neighbours.
func TestLeakedIsASet(t *testing.T) {
	words := strings.Split(strings.TrimSuffix(leakedText, "\n"), "\n")
	set := map[string]bool{}
	for _, w := range words {
		set[w] = true
	}
	for _, w := range []string{"", "\n", words[0][:1], words[len(words)-1] + "x", "\xff", words[7] + "\n" + words[8]} {
		if leaked(w) {
			t.Errorf("%q is found", w)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		w := []byte(rapid.SampledFrom(words).Draw(r, "word"))
		switch rapid.IntRange(0, 3).Draw(r, "change") {
		case 0:
			w = w[:rapid.IntRange(0, len(w)).Draw(r, "cut")]
		case 1:
			w[rapid.IntRange(0, len(w)-1).Draw(r, "at")] = rapid.Byte().Draw(r, "byte")
		case 2:
			w = slices.Insert(w, rapid.IntRange(0, len(w)).Draw(r, "at"), rapid.Byte().Draw(r, "byte"))
		}
		if leaked(string(w)) != set[string(w)] {
			r.Fatalf("%q: found %v, in the set %v", w, leaked(string(w)), set[string(w)])
		}
	})
}

// The list refuses what others have chosen, and next to nothing that chance has.
func TestRandomCodesAreAccepted(t *testing.T) {
	refused := 0
	const every = 49999 // all eight-digit codes in steps of a prime: 2,001 of them
	n := 0
	for code := 0; code < 100_000_000; code += every {
		n++
		if Judge([]byte(pad(code)), "", MinLength) != "" {
			refused++
		}
	}
	if refused*100 > n {
		t.Errorf("%d of %d codes are refused, more than one in a hundred", refused, n)
	}
}

func pad(n int) string {
	b := []byte("00000000")
	for i := len(b) - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return string(b)
}

func BenchmarkJudge(b *testing.B) {
	for b.Loop() {
		Judge([]byte("a quiet harbour at dawn"), "+447700900123", MinLength)
	}
}
