// Package phone reads telephone numbers. A number has one spelling inside Strongroom, E.164 with its
// plus sign, so that an account cannot be reached, or attacked, under two names.
package phone

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/nyaruka/phonenumbers"
)

// ErrNumber means that the text is not the number of a mobile telephone. It never holds the text.
var ErrNumber = errors.New("phone: not a mobile number")

// MaxLength is the length of the longest text that is looked at, in bytes.
const MaxLength = 40

// Rules say which numbers are read, and how.
type Rules struct {
	// Region is the ISO 3166 country of numbers that are written without a country code. Empty means
	// that numbers must be written with one.
	Region string
	// AllowTestNumbers accepts +44 7700 900000 to 900999, which Ofcom keeps for drama: nobody owns
	// them, so they are for development only.
	AllowTestNumbers bool
}

// ofcomDrama is the part in front of the last three digits of Ofcom's numbers for drama.
const ofcomDrama = "+447700900"

// Parse returns the number that text means, in E.164. Only numbers to which a text message can be
// delivered are accepted: mobile ones, and those of countries whose mobile and fixed numbers look
// alike.
func (r Rules) Parse(text string) (string, error) {
	if len(text) > MaxLength || !utf8.ValidString(text) || strings.ContainsAny(text, "\x00;,") {
		return "", ErrNumber
	}
	// Letters are numbers on a keypad for the parser; for us they are a typing error.
	for _, c := range text {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			return "", ErrNumber
		}
	}
	region := r.Region
	if region == "" {
		region = "ZZ" // unknown: the country code has to be there
	}
	n, err := phonenumbers.Parse(text, region)
	if err != nil || n.GetExtension() != "" {
		return "", ErrNumber
	}
	e164 := phonenumbers.Format(n, phonenumbers.E164)
	if r.AllowTestNumbers && len(e164) == len(ofcomDrama)+3 && strings.HasPrefix(e164, ofcomDrama) {
		return e164, nil
	}
	if !phonenumbers.IsValidNumber(n) {
		return "", ErrNumber
	}
	switch phonenumbers.GetNumberType(n) {
	case phonenumbers.MOBILE, phonenumbers.FIXED_LINE_OR_MOBILE:
		return e164, nil
	}
	return "", ErrNumber
}

// Country returns the ISO 3166 country of a number in E.164, "001" for numbers of no country, and "ZZ" for
// what is no number.
func Country(e164 string) string {
	n, err := phonenumbers.Parse(e164, "ZZ")
	if err != nil {
		return "ZZ"
	}
	if region := phonenumbers.GetRegionCodeForNumber(n); region != "" {
		return region
	}
	return "ZZ"
}
