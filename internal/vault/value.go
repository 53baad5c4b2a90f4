package vault

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"strongroom/internal/problem"
)

// maxBody is the largest record in bytes of JSON.
const maxBody = 64 << 10

// FieldError says what is wrong with one field of a record, without its value.
type FieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// MarshalJSON adds where the field is in the record, as a JSON Pointer (RFC 6901). Names of fields have
// nothing that a pointer escapes. A name that is not repeated has no pointer, and neither has a rule about
// the record as a whole but the empty one.
func (e FieldError) MarshalJSON() ([]byte, error) {
	out := struct {
		Field   string  `json:"field"`
		Pointer *string `json:"pointer,omitempty"`
		Message string  `json:"message"`
	}{Field: e.Field, Message: e.Message}
	if e.Field == "" {
		out.Pointer = &e.Field
	} else if fieldForm.MatchString(e.Field) {
		pointer := "/" + e.Field
		out.Pointer = &pointer
	}
	return json.Marshal(out)
}

// value is a field's value in its canonical form.
type value struct {
	name string
	text string // what indexes and masks work on: the string itself, or the JSON literal
	raw  []byte // canonical JSON
}

// decode reads the fields of a record from outside. The values come out canonical and sorted by
// name, so that equal records seal equal bytes.
func (s *schema) decode(body []byte) ([]value, *problem.Problem) {
	if len(body) > maxBody {
		return nil, problem.New(problem.TooLarge, "record-too-large", "A record is at most %d bytes of JSON.", maxBody)
	}
	members, ok := scan(body)
	if !ok {
		return nil, problem.New(problem.Invalid, "invalid-json", "The body must be one JSON object in UTF-8: the record's fields.")
	}
	values := make([]value, 0, len(members))
	given := make(map[string]bool, len(members))
	var wrong []FieldError
	for _, m := range members {
		f := s.fields[m.name]
		if f == nil {
			if len(wrong) == 0 || wrong[len(wrong)-1].Field != shownName(m.name) {
				wrong = append(wrong, FieldError{shownName(m.name), "is no field of this collection"})
			}
			continue
		}
		if given[m.name] {
			wrong = append(wrong, FieldError{m.name, "is given more than once"})
			continue
		}
		given[m.name] = true
		text, raw, message := f.read(m.raw)
		if message != "" {
			wrong = append(wrong, FieldError{m.name, message})
			continue
		}
		values = append(values, value{m.name, text, raw})
	}
	for _, f := range s.Fields {
		if f.Required && !given[f.Name] {
			wrong = append(wrong, FieldError{f.Name, "is required"})
		}
	}
	if len(wrong) == 0 {
		wrong = s.validate(values)
	}
	if len(wrong) > 0 {
		// A body of thousands of wrong names is not worth an answer of the same size.
		wrong = wrong[:min(len(wrong), 2*largestFields)]
		return nil, problem.New(problem.Unprocessable, "invalid-record", "Some fields are not right; see errors.").With("errors", wrong)
	}
	slices.SortFunc(values, func(a, b value) int { return strings.Compare(a.name, b.name) })
	return values, nil
}

// shownName returns a field's name for an error. A name that has not the form of one may be a
// value that slipped to the wrong side of a colon, so it is not repeated.
func shownName(name string) string {
	if fieldForm.MatchString(name) {
		return name
	}
	return "?"
}

// encode returns the canonical JSON of values, the plaintext that is sealed.
func encode(values []value) []byte {
	n := 2
	for _, v := range values {
		n += len(v.name) + len(v.raw) + 4
	}
	b := append(make([]byte, 0, n), '{')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendQuoted(b, v.name), ':')
		b = append(b, v.raw...)
	}
	return append(b, '}')
}

// parse reads back what encode wrote, also under an older declaration of the collection.
func parse(plain []byte) ([]value, bool) {
	members, ok := scan(plain)
	if !ok {
		return nil, false
	}
	values := make([]value, len(members))
	for i, m := range members {
		values[i] = value{m.name, string(m.raw), m.raw}
		if m.raw[0] == '"' {
			if values[i].text, ok = unquote(m.raw); !ok {
				return nil, false
			}
		}
	}
	return values, true
}

// known returns the values of fields that the declaration has.
func (s *schema) known(values []value) []value {
	return slices.DeleteFunc(slices.Clone(values), func(x value) bool { return s.fields[x.name] == nil })
}

// whole returns the value as its own JSON type.
func (v value) whole() any {
	switch v.raw[0] {
	case '"':
		return v.text
	case 't', 'f':
		return v.raw[0] == 't'
	}
	return json.Number(v.text)
}

// show returns the values as they may be shown: whole where r says so, masked otherwise. A field that the
// declaration no longer knows is treated as the most sensitive: it is hidden unless r names it.
func (s *schema) show(values []value, r Reveal) map[string]any {
	out := make(map[string]any, len(values))
	for _, v := range values {
		mask, all := MaskAll, false
		if f := s.fields[v.name]; f != nil {
			mask, all = f.Mask, r.All
		}
		if all || mask == MaskNone || slices.Contains(r.Fields, v.name) {
			out[v.name] = v.whole()
		} else {
			out[v.name] = mask.apply(v.text)
		}
	}
	return out
}

// read turns a JSON value into the field's canonical form. The message says what is wrong and
// never holds the value.
func (f *field) read(raw []byte) (text string, canonical []byte, message string) {
	if raw[0] == 'n' {
		return "", nil, "must not be null; leave the field out instead"
	}
	switch f.Type {
	case Boolean:
		if raw[0] != 't' && raw[0] != 'f' {
			return "", nil, "must be true or false"
		}
		return string(raw), bytes.Clone(raw), ""
	case Integer:
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || n > 1<<53-1 || n < -(1<<53-1) {
			return "", nil, "must be an integer between -9007199254740991 and 9007199254740991, without a fraction or an exponent"
		}
		text = strconv.FormatInt(n, 10)
		return text, []byte(text), ""
	case Number:
		if !exactNumber(raw) {
			return "", nil, "must be a number of at most 15 significant digits, without an exponent"
		}
		return string(raw), bytes.Clone(raw), ""
	}
	if raw[0] != '"' {
		return "", nil, "must be a string"
	}
	text, ok := unquote(raw)
	if !ok {
		return "", nil, "must be valid Unicode"
	}
	if text, message = f.normalise(text); message != "" {
		return "", nil, message
	}
	return text, appendQuoted(make([]byte, 0, len(text)+2), text), ""
}

// normalise returns the canonical form of a text value. Equal texts have equal blind indexes, so
// look-up uses it too.
func (f *field) normalise(text string) (canonical, message string) {
	switch f.Type {
	case Date:
		if !date(text) {
			return "", "must be a calendar day, YYYY-MM-DD, from the year 1800 on"
		}
	case Email:
		if text = norm.NFC.String(text); !email(text) {
			return "", "must be an e-mail address of at most 254 characters"
		}
	case Phone:
		if !phoneForm.MatchString(text) {
			return "", "must be a phone number in E.164 form: a plus sign, the country code, up to 15 digits"
		}
	case IBAN:
		if text = strings.ToUpper(strings.ReplaceAll(text, " ", "")); !iban(text) {
			return "", "must be an IBAN; check its length and its digits"
		}
	case BIC:
		if text = strings.ToUpper(text); !bicForm.MatchString(text) {
			return "", "must be a BIC of 8 or 11 characters"
		}
	case Country:
		if !listed(countries, text, 2) {
			return "", "must be an ISO 3166-1 country code of two capital letters"
		}
	case Currency:
		if !listed(currencies, text, 3) {
			return "", "must be an ISO 4217 currency code of three capital letters"
		}
	case String:
		return f.string(text)
	}
	return text, ""
}

func (f *field) string(text string) (canonical, message string) {
	text = norm.NFC.String(text)
	if strings.TrimFunc(text, unicode.IsSpace) == "" {
		return "", "must not be empty; leave the field out instead"
	}
	if utf8.RuneCountInString(text) > f.MaxLength {
		return "", "must be at most " + strconv.Itoa(f.MaxLength) + " characters"
	}
	if strings.ContainsFunc(text, unprintable) {
		return "", "must not hold control characters"
	}
	if f.pattern != nil && !f.pattern.MatchString(text) {
		return "", "does not have the form that this collection asks for"
	}
	return text, ""
}

// unprintable reports control characters and those that turn the direction of writing, with which
// a value can pretend on a screen to be another.
func unprintable(r rune) bool {
	return unicode.Is(unicode.Cc, r) || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 ||
		r == '\u2028' || r == '\u2029' || r == '\ufeff'
}

// exactNumber accepts the literals that survive the way through an IEEE 754 double unchanged.
func exactNumber(raw []byte) bool {
	if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') || bytes.ContainsAny(raw, "eE") {
		return false
	}
	digits := bytes.TrimLeft(bytes.ReplaceAll(bytes.TrimPrefix(raw, []byte("-")), []byte("."), nil), "0")
	return len(digits) <= 15 && len(raw) <= 32
}

func date(text string) bool {
	t, err := time.Parse(time.DateOnly, text)
	return err == nil && t.Year() >= 1800
}

// email accepts addresses that a mail system is likely to take: RFC 5321's lengths and dot-atoms,
// with RFC 6531's letters. Quoted local parts and address literals are refused.
func email(text string) bool {
	local, domain, ok := strings.Cut(text, "@")
	if !ok || len(local) > 64 || len(text) > 254 || !strings.Contains(domain, ".") || strings.Contains(domain, "@") {
		return false
	}
	for part := range strings.SplitSeq(local, ".") {
		if part == "" || strings.ContainsFunc(part, func(r rune) bool { return !addressRune(r) && !strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r) }) {
			return false
		}
	}
	for part := range strings.SplitSeq(domain, ".") {
		if part == "" || len(part) > 63 || part[0] == '-' || part[len(part)-1] == '-' ||
			strings.ContainsFunc(part, func(r rune) bool { return !addressRune(r) && r != '-' }) {
			return false
		}
	}
	return true
}

func addressRune(r rune) bool {
	return r < utf8.RuneSelf && alphanumeric(string(r)) || r >= utf8.RuneSelf && unicode.In(r, unicode.L, unicode.M, unicode.N)
}

func alphanumeric(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

var (
	phoneForm = regexp.MustCompile(`\A\+[1-9][0-9]{6,14}\z`)
	ibanForm  = regexp.MustCompile(`\A[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}\z`)
	bicForm   = regexp.MustCompile(`\A[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}([A-Z0-9]{3})?\z`)
)

// iban checks form, length and check digits (ISO 13616-1; modulo 97 of ISO/IEC 7064). A country
// that has joined the registry since this list was made is checked by form and digits.
func iban(text string) bool {
	if !ibanForm.MatchString(text) {
		return false
	}
	if i := strings.Index(ibanLengths, text[:2]); i >= 0 && ibanLengths[i+2:i+4] != strconv.Itoa(len(text)) {
		return false
	}
	rest := 0
	for _, c := range text[4:] + text[:4] {
		if c <= '9' {
			rest = (rest*10 + int(c-'0')) % 97
		} else {
			rest = (rest*100 + int(c-'A') + 10) % 97
		}
	}
	return rest == 1
}

// listed reports whether code is one of the entries of width n in a list set with single spaces.
func listed(codes, code string, n int) bool {
	return len(code) == n && !strings.Contains(code, " ") && strings.Contains(codes, " "+code+" ")
}

const (
	ibanLengths = " AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 " +
		"EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 " +
		"LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 " +
		"QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30 "
	countries = " AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ " +
		"CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR " +
		"GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP " +
		"KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ " +
		"NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW " +
		"SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ " +
		"UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW "
	currencies = " AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY COP " +
		"CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD " +
		"IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR " +
		"MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP " +
		"SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG " +
		"XOF XPF YER ZAR ZMW ZWG "
)
