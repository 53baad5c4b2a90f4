package sms

import "unicode/utf16"

// gsm7 is the basic alphabet of 3GPP TS 23.038 section 6.2.1, and gsm7Escaped its extension, of which
// each character counts twice.
const (
	gsm7 = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡" +
		"ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
	gsm7Escaped = "\f^{}\\[~]|€"
)

var gsm7Length = func() map[rune]int {
	m := map[rune]int{}
	for _, c := range gsm7 {
		m[c] = 1
	}
	for _, c := range gsm7Escaped {
		m[c] = 2
	}
	return m
}()

// Segments returns how many short messages a text takes, each of which is paid for: 160 characters of
// the GSM alphabet or 70 of UCS-2 in one, 153 or 67 in each of several (3GPP TS 23.040 section 9.2.3.24.1).
func Segments(text string) int {
	units, one, each := 0, 160, 153
	for _, c := range text {
		n, ok := gsm7Length[c]
		if !ok {
			units, one, each = len(utf16.Encode([]rune(text))), 70, 67
			break
		}
		units += n
	}
	if units <= one {
		return 1
	}
	return (units + each - 1) / each
}
