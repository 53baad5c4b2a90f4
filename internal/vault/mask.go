package vault

import (
	"strings"
	"unicode"
)

// Mask is how much of a value is shown to somebody who did not ask for the whole of it. Whatever
// the mask, at least as many characters stay hidden as are shown, and the length of a value never
// shows.
type Mask string

// The masks.
const (
	MaskNone    Mask = "none"    // the whole value
	MaskAll     Mask = "all"     // nothing: ****
	MaskLast4   Mask = "last4"   // up to four last characters: ****1234
	MaskInitial Mask = "initial" // the first character: A****
	MaskYear    Mask = "year"    // a date's year: 1987-**-**
	MaskEmail   Mask = "email"   // initials and the top-level domain: a****@e****.com
	MaskIBAN    Mask = "iban"    // the country and the last four: GB****5432
)

const stars = "****"

var masks = []Mask{MaskNone, MaskAll, MaskLast4, MaskInitial, MaskYear, MaskEmail, MaskIBAN}

// maskTypes says which types a mask fits; nil means every type.
var maskTypes = map[Mask][]Type{
	MaskNone:    nil,
	MaskAll:     nil,
	MaskLast4:   {String, Phone, IBAN, BIC},
	MaskInitial: {String, Email, BIC},
	MaskYear:    {Date},
	MaskEmail:   {Email},
	MaskIBAN:    {IBAN},
}

// apply returns what may be shown of text. A value that has not the form its mask expects, as one
// kept under an older declaration may, is hidden whole.
func (m Mask) apply(text string) string {
	switch m {
	case MaskNone:
		return text
	case MaskLast4:
		c := characters(text)
		return stars + strings.Join(c[len(c)-min(4, len(c)/2):], "")
	case MaskInitial:
		return initial(text)
	case MaskYear:
		if date(text) {
			return text[:4] + "-**-**"
		}
	case MaskEmail:
		return maskEmail(text)
	case MaskIBAN:
		if len(text) >= 12 && alphanumeric(text) {
			return text[:2] + stars + text[len(text)-4:]
		}
	}
	return stars
}

func initial(text string) string {
	c := characters(text)
	if len(c) < 2 {
		return stars
	}
	return c[0] + stars
}

func maskEmail(text string) string {
	local, domain, ok := strings.Cut(text, "@")
	dot := strings.LastIndexByte(domain, '.')
	if !ok || dot < 0 {
		return stars
	}
	for _, masked := range []string{
		initial(local) + "@" + initial(domain[:dot]) + domain[dot:],
		initial(local) + "@" + stars + domain[dot:],
	} {
		if shown := len(characters(masked)) - 2*len(stars); 2*shown <= len(characters(text)) {
			return masked
		}
	}
	return stars
}

// characters splits text into what a reader sees as characters: a rune with the marks that belong
// to it, and runes that a zero-width joiner ties together. A mask that cut between them would show
// something that is not in the value.
func characters(text string) []string {
	out := make([]string, 0, len(text))
	start, joined := 0, false
	for i, r := range text {
		if i > start && !joined && !unicode.Is(unicode.M, r) && r != '\u200d' {
			out = append(out, text[start:i])
			start = i
		}
		joined = r == '\u200d'
	}
	if start < len(text) {
		out = append(out, text[start:])
	}
	return out
}
