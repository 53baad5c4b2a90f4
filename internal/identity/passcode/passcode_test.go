package passcode

import (
	"strings"
	"testing"
	"unicode"
)

const number = "+447700900123"

func TestASVS_6_2_PrivateCodeRules(t *testing.T) {
	rows := []struct {
		code string
		min  int
		want Weakness
	}{
		{"73920485", 8, ""},
		{"a quiet harbour at dawn", 8, ""},
		{"пароль мой длинный", 8, ""},
		{"90817263", 8, ""},
		{"739204", 6, ""},
		{strings.Repeat("abcdefgh-1", 6), 8, ""},

		{"", 8, Short},
		{"7392048", 8, Short},
		{"73920", 6, Short},
		{strings.Repeat("kdjsleiwnx", 6) + "abcde", 8, Long},
		{strings.Repeat("é", 300), 8, Long},
		{"\xff\xfe739204", 8, Malformed},
		{"7392\x000485", 8, Malformed},
		{"7392\n0485", 8, Malformed},
		{"password", 8, Common},
		{"PassWord99!", 8, Common},
		{"ｐａｓｓｗｏｒｄ", 8, Common}, // NFKC makes it what it looks like
		{"25802580", 8, Common},
		{"correcthorsebatterystaple", 8, Common},
		{"zzzzzzzzz", 8, Repeated},
		{"90909090", 8, Repeated},
		{"738738738", 8, Repeated},
		{"73917391", 8, Repeated},
		{"77377337", 8, Repeated},
		{"34567890", 8, Sequential},
		{"54321098", 8, Sequential},
		{"ghijklmn", 8, Sequential},
		{"lkjhgfdsa", 8, Sequential},
		{"33445566", 8, Sequential},
		{"66554433", 8, Sequential},
		{"24121987", 8, Date},
		{"12241987", 8, Date},
		{"19871224", 8, Date},
		{"24-12-1987", 8, Date},
		{"241287", 6, Date},
		{"871224", 6, Date},
		{"07700900123", 8, Phone},
		{"447700900123", 8, Phone},
		{"00900123", 8, Phone},
		{"7700 900 123", 8, Phone},
		{"+447700900123", 8, Phone},

		// Nothing hides behind what stands between the parts, behind what is not seen, or in another script's digits.
		{"5-6-7-8-9-0-1-2", 8, Sequential},
		{"73.91.73.91", 8, Repeated},
		{"cool_harbour_cool", 8, ""},
		{"pass\u200bword", 8, Common},
		{"p a s s w o r d", 8, Common},
		{"\u00adqwerty\u2060uiop", 8, Common},
		{"5\u200d678\u20609012", 8, Sequential},
		{"24\u200912\u20091987", 8, Date},
		{"١٢٣٤٥٦٧٨", 8, Common},
		{"٥٦٧٨٩٠١٢", 8, Sequential},
		{"٢٤١٢١٩٨٧", 8, Date},
		{"९८७६५४३२", 8, Common},
		{"٠٧٧٠٠٩٠٠١٢٣", 8, Phone},
		{"٢٥٨٠٢٥٨٠", 8, Common},
		{"٧٣٩٢٠٤٨٥", 8, ""},
	}
	for _, row := range rows {
		if got := Judge([]byte(row.code), number, row.min); got != row.want {
			t.Errorf("Judge(%q) = %q, want %q", row.code, got, row.want)
		}
		if row.want != "" && row.want.Explain() == "" {
			t.Errorf("%s is not explained", row.want)
		}
	}
}

// Digits of every script are read by their value.
func TestDigits(t *testing.T) {
	n := 0
	for c := rune(0); c <= unicode.MaxRune; c++ {
		if !unicode.Is(unicode.Nd, c) {
			continue
		}
		n++
		zero := c - digit(c)
		for d := range rune(10) {
			if !unicode.Is(unicode.Nd, zero+d) || digit(zero+d) != d {
				t.Fatalf("%U is not %d", zero+d, d)
			}
		}
		if f := Folded([]byte(string(c))); digits(f) && f != plain(string(c)) {
			t.Errorf("%U is %s and read as %s", c, f, plain(string(c)))
		}
	}
	if n < 500 {
		t.Errorf("%d digits", n)
	}
}

func FuzzJudge(f *testing.F) {
	f.Add([]byte("12345678"), number)
	f.Add([]byte("ﬁﬁﬁﬁﬁﬁﬁﬁ"), "")
	f.Add([]byte("00000000000000000000000000000000000000000000000000000000000000000"), "+1")
	f.Fuzz(func(t *testing.T, code []byte, e164 string) {
		if w := Judge(code, e164, MinLength); w == "" {
			if n := len([]rune(string(Normal(code)))); n < MinLength || n > MaxLength {
				t.Fatalf("%q accepted with %d characters", code, n)
			}
		}
	})
}
