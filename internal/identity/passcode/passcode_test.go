package passcode

import (
	"strings"
	"testing"
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
