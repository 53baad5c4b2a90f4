package phone

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	rows := []struct {
		text string
		with Rules
		want string // "" is refused
	}{
		{"+447912345678", Rules{}, "+447912345678"},
		{"07912 345 678", Rules{Region: "GB"}, "+447912345678"},
		{"0044 7912 345678", Rules{Region: "GB"}, "+447912345678"},
		{"+44 (0) 7912-345678", Rules{Region: "GB"}, "+447912345678"},
		{"+49 151 23456789", Rules{Region: "GB"}, "+4915123456789"},
		{"+1 650 253 0000", Rules{}, "+16502530000"}, // mobile and fixed look alike there
		{"+44 7700 900000", Rules{AllowTestNumbers: true}, "+447700900000"},
		{"07700 900999", Rules{Region: "GB", AllowTestNumbers: true}, "+447700900999"},

		{"+44 7700 900123", Rules{}, ""},
		{"+44 7700 901000", Rules{AllowTestNumbers: true}, ""},
		{"+44 7700 9001234", Rules{AllowTestNumbers: true}, ""},
		{"07912 345 678", Rules{}, ""}, // which country's?
		{"+44 20 7946 0000", Rules{}, ""},
		{"+44 800 1111", Rules{}, ""},
		{"+44 70 1234 5678", Rules{}, ""},
		{"+447912345678;ext=5", Rules{}, ""},
		{"+447912345678 x5", Rules{}, ""},
		{"+1 800 FLOWERS", Rules{}, ""},
		{"tel:+447912345678", Rules{}, ""},
		{"999", Rules{Region: "GB"}, ""},
		{"", Rules{Region: "GB"}, ""},
		{"+", Rules{}, ""},
		{"+4479123456789012345678901234567890123456789", Rules{}, ""},
		{"+44791234\x005678", Rules{}, ""},
		{"\xff\xfe", Rules{}, ""},
	}
	for _, row := range rows {
		got, err := row.with.Parse(row.text)
		if got != row.want || (err == nil) != (row.want != "") {
			t.Errorf("Parse(%q, %+v) = %q, %v; want %q", row.text, row.with, got, err, row.want)
		}
		if err != nil && row.text != "" && strings.Contains(err.Error(), row.text) && row.text != "+" {
			t.Errorf("the error repeats the number: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"+447912345678", "07700900123", "(0)1;ext=2", "+1-800-FLOWERS", "٠٧٩١٢٣٤٥٦٧٨", "+44\u200b7912345678"} {
		f.Add(s)
	}
	rules := Rules{Region: "GB", AllowTestNumbers: true}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := rules.Parse(s)
		if err != nil {
			return
		}
		if n[0] != '+' || len(n) < 8 || len(n) > 18 || strings.Trim(n[1:], "0123456789") != "" {
			t.Fatalf("%q became %q", s, n)
		}
		// One number has one spelling, and it reads as itself.
		if again, err := rules.Parse(n); err != nil || again != n {
			t.Fatalf("%q became %q, then %q, %v", s, n, again, err)
		}
	})
}
