package vault

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// member is one member of a flat JSON object; raw is its value as it stands in the text.
type member struct {
	name string
	raw  []byte
}

// scan splits a JSON object (RFC 8259) into its members in their order, doubles included. It
// refuses what encoding/json lets pass: broken UTF-8 and lone surrogates in names. The raw values
// are valid JSON and share memory with body.
func scan(body []byte) ([]member, bool) {
	if !utf8.Valid(body) || !json.Valid(body) {
		return nil, false
	}
	// From here on the grammar is known to hold, so finding the ends of tokens is enough.
	i := space(body, 0)
	if body[i] != '{' {
		return nil, false
	}
	var out []member
	for i = space(body, i+1); body[i] != '}'; {
		end := token(body, i)
		name, ok := unquote(body[i:end])
		if !ok {
			return nil, false
		}
		i = space(body, space(body, end)+1) // over the colon
		end = token(body, i)
		out = append(out, member{name, body[i:end]})
		if i = space(body, end); body[i] == ',' {
			i = space(body, i+1)
		}
	}
	return out, true
}

func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// token returns the end of the JSON value that starts at i.
func token(b []byte, i int) int {
	depth := 0
	for {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			i++
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ' ', '\t', '\n', '\r', ',', ':':
			i++
		default:
			for i < len(b) && bytes.IndexByte([]byte(" \t\n\r,:{}[]\""), b[i]) < 0 {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
}

// unquote returns the string that a valid JSON string stands for; false for a lone surrogate,
// which no Unicode text can hold.
func unquote(raw []byte) (string, bool) {
	raw = raw[1 : len(raw)-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw), true
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			continue
		}
		i++
		switch raw[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := hex4(raw[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				if i+6 >= len(raw) || raw[i+1] != '\\' || raw[i+2] != 'u' {
					return "", false
				}
				if r = utf16.DecodeRune(r, hex4(raw[i+3:])); r == unicode.ReplacementChar {
					return "", false
				}
				i += 6
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, raw[i]) // a quote, a solidus or a reverse solidus
		}
	}
	return string(out), true
}

func hex4(b []byte) rune {
	n, _ := strconv.ParseUint(string(b[:4]), 16, 32)
	return rune(n)
}

const hexDigits = "0123456789abcdef"

// appendQuoted appends s as a JSON string in the one form that sealed records use: nothing is
// escaped that need not be (RFC 8785 section 3.2.2.2).
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
