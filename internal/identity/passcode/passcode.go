// Package passcode judges private codes before they are accepted, and never afterwards: a login is
// only ever compared. The rules are those of NIST SP 800-63B-4 section 3.1.1.2 and OWASP ASVS 5.0
// 6.2.4 to 6.2.12: a length, no rule about kinds of characters, and a refusal of what is guessed
// first.
package passcode

import (
	_ "embed"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Lengths are in characters.
const (
	MinLength = 8
	// LeastLength is that of the shortest code that a deployment may allow.
	LeastLength = 6
	MaxLength   = 64
)

// Weakness says why a code is refused. The empty Weakness is a good code.
type Weakness string

// The weaknesses, in the order in which they are looked for.
const (
	Malformed  Weakness = "malformed"  // not text, or with control characters
	Short      Weakness = "short"      // fewer characters than asked for
	Long       Weakness = "long"       // more than MaxLength characters
	Common     Weakness = "common"     // on the list of codes that are tried first
	Repeated   Weakness = "repeated"   // one to four characters over and over
	Sequential Weakness = "sequential" // a run along the digits, the alphabet or the keyboard
	Date       Weakness = "date"       // reads as a day
	Phone      Weakness = "phone"      // part of the customer's own number
)

// Explain returns what a person should do about the weakness.
func (w Weakness) Explain() string {
	switch w {
	case Malformed:
		return "Use letters, digits, spaces and signs only."
	case Short:
		return "Choose a longer code."
	case Long:
		return "Choose a code of at most 64 characters."
	case Common:
		return "This code is among the first that others would try. Choose another."
	case Repeated:
		return "This code repeats itself. Choose another."
	case Sequential:
		return "This code is a simple sequence. Choose another."
	case Date:
		return "This code reads as a date. Choose another."
	case Birth:
		return "This code holds your birth date. Choose another."
	case Phone:
		return "This code is part of your phone number. Choose another."
	}
	return ""
}

//go:embed common.txt
var commonText string

var common = func() map[string]bool {
	m := map[string]bool{}
	for word := range strings.FieldsSeq(commonText) {
		m[word] = true
	}
	return m
}()

// leakedText is sorted by bytes, a code to a line; see generate.
//
//go:embed leaked.txt
var leakedText string

// leaked reports whether s, which is Folded, is among the codes found most often in leaks of passwords
// (ASVS 5.0 6.2.4 asks for at least 3,000 that fit the policy). The list is searched where it lies.
func leaked(s string) bool {
	low, high := 0, len(leakedText) // of whole lines
	for low < high {
		mid := low + (high-low)/2
		begin := strings.LastIndexByte(leakedText[low:mid], '\n') + 1 + low
		end := begin + strings.IndexByte(leakedText[begin:], '\n')
		switch line := leakedText[begin:end]; {
		case line == s:
			return true
		case line < s:
			low = end + 1
		default:
			high = begin
		}
	}
	return false
}

// Folded returns the form of a code in which it is judged: Normal, in lower case.
func Folded(code []byte) string { return strings.ToLower(string(Normal(code))) }

// plain leaves out what people put between the parts of a code, and what cannot be seen, and writes the digits of all
// scripts as 0 to 9: what is left is what a person would call the code.
func plain(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case strings.ContainsRune("-_./+", c), unicode.IsSpace(c), unicode.Is(unicode.Cf, c):
			return -1
		case unicode.Is(unicode.Nd, c):
			return '0' + digit(c)
		}
		return c
	}, s)
}

// digit returns the value of a decimal digit: each script has its ten in a row (Unicode 16, section 4.6).
func digit(c rune) rune {
	for _, r := range unicode.Nd.R16 {
		if rune(r.Lo) <= c && c <= rune(r.Hi) {
			return (c - rune(r.Lo)) % 10
		}
	}
	for _, r := range unicode.Nd.R32 {
		if rune(r.Lo) <= c && c <= rune(r.Hi) {
			return (c - rune(r.Lo)) % 10
		}
	}
	return 0
}

// Normal returns the form of a code that is hashed and compared: NFKC, so that one code typed on two
// keyboards is one code (NIST SP 800-63B-4 section 3.1.1.2). Nothing is trimmed or shortened.
func Normal(code []byte) []byte { return norm.NFKC.Bytes(code) }

// Judge returns what is wrong with code, given the customer's number in E.164 ("" when unknown) and
// the least number of characters.
func Judge(code []byte, e164 string, minLength int) Weakness {
	if !utf8.Valid(code) || len(code) > 4*MaxLength {
		if utf8.Valid(code) {
			return Long
		}
		return Malformed
	}
	s := Folded(code)
	for _, c := range s {
		if unicode.IsControl(c) || c == utf8.RuneError {
			return Malformed
		}
	}
	runes, p := []rune(s), plain(s)
	switch {
	case len(runes) < minLength:
		return Short
	case len(runes) > MaxLength:
		return Long
	case common[strings.TrimRight(s, "0123456789!.?")], common[strings.TrimRight(p, "0123456789!?")], common[s], common[p]:
		return Common
	case repeated(runes), repeated([]rune(p)):
		return Repeated
	case sequential(s), sequential(p):
		return Sequential
	case date(p):
		return Date
	case partOf(p, e164):
		return Phone
	case leaked(s), leaked(p): // last, since the others say more
		return Common
	}
	return ""
}

// repeated reports a code that is made of one to four characters over and over, or of fewer than
// three different ones.
func repeated(runes []rune) bool {
	different := map[rune]bool{}
	for _, r := range runes {
		different[r] = true
	}
	if len(different) < 3 {
		return true
	}
	for period := 1; period <= 4; period++ {
		same := true
		for i := period; i < len(runes) && same; i++ {
			same = runes[i] == runes[i-period]
		}
		if same && len(runes) >= 2*period {
			return true
		}
	}
	return false
}

// runs are what fingers find by themselves, forwards and backwards.
var runs = []string{
	"01234567890123456789012345678901234567890123456789012345678901234567890",
	"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
	"qwertyuiopasdfghjklzxcvbnm", "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
	"147258369", "159357", "qazwsxedcrfvtgbyhnujmikolp",
	"0246802468024680246802468", "1357913579135791357913579",
}

func sequential(s string) bool {
	back := []rune(s)
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	for _, run := range runs {
		if strings.Contains(run, s) || strings.Contains(run, string(back)) {
			return true
		}
	}
	// Pairs that climb, such as 11223344.
	if len(s)%2 == 0 && digits(s) {
		climbs, falls := true, true
		for i := 0; i < len(s); i += 2 {
			if s[i] != s[i+1] {
				return false
			}
			if i > 0 {
				climbs = climbs && (s[i]-'0') == (s[i-2]-'0'+1)%10
				falls = falls && (s[i-2]-'0') == (s[i]-'0'+1)%10
			}
		}
		return climbs || falls
	}
	return false
}

// date reports six or eight digits that read as a day, in any order of day, month and year.
func date(s string) bool {
	if !digits(s) {
		return false
	}
	number := func(t string) int {
		n := 0
		for _, c := range t {
			n = 10*n + int(c-'0')
		}
		return n
	}
	day := func(d, m string) bool {
		dd, mm := number(d), number(m)
		return dd >= 1 && dd <= 31 && mm >= 1 && mm <= 12
	}
	year := func(y string) bool { n := number(y); return n >= 1900 && n <= 2099 }
	switch len(s) {
	case 8:
		return year(s[4:]) && (day(s[:2], s[2:4]) || day(s[2:4], s[:2])) ||
			year(s[:4]) && (day(s[6:], s[4:6]) || day(s[4:6], s[6:]))
	case 6:
		return day(s[:2], s[2:4]) || day(s[2:4], s[:2]) || day(s[4:], s[2:4])
	}
	return false
}

// partOf reports digits that stand in the number, written nationally or internationally.
func partOf(s, e164 string) bool {
	if e164 == "" || !digits(s) {
		return false
	}
	international := strings.TrimPrefix(e164, "+")
	if strings.Contains(international, s) || strings.Contains("00"+international, s) {
		return true
	}
	// A country code is one to three digits; a national number may have a zero before it.
	for n := 1; n <= 3 && n < len(international); n++ {
		if strings.Contains("0"+international[n:], s) {
			return true
		}
	}
	return false
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
