package db

import "strings"

// numbered rewrites the placeholders $1, $2 … of query to SQLite's ?1, ?2 …. SQLite takes $1 for a
// *named* parameter and numbers names in the order they appear, so that "$2 … $1" would bind the
// wrong values without a word. String literals, quoted names and comments stay as they are.
func numbered(query string) string {
	first := strings.IndexByte(query, '$')
	if first < 0 {
		return query
	}
	var out []byte // nil until the first change
	for i := 0; i < len(query); {
		switch c := query[i]; {
		case c == '\'' || c == '"' || c == '`':
			i = closing(query, i+1, c)
		case c == '[':
			i = closing(query, i+1, ']')
		case c == '-' && strings.HasPrefix(query[i:], "--"):
			i = after(query, i+2, "\n")
		case c == '/' && strings.HasPrefix(query[i:], "/*"):
			i = after(query, i+2, "*/")
		case c == '$' && i+1 < len(query) && digit(query[i+1]):
			if out == nil {
				out = []byte(query)
			}
			out[i] = '?'
			i++
		case word(c):
			// Within a name a dollar sign is a letter, as in PostgreSQL.
			for i < len(query) && (word(query[i]) || query[i] == '$') {
				i++
			}
		default:
			i++
		}
	}
	if out == nil {
		return query
	}
	return string(out)
}

// closing returns the index behind the quote that ends what began before i. A doubled quote looks
// like the end of one literal and the beginning of the next, which comes to the same.
func closing(s string, i int, quote byte) int {
	for ; i < len(s); i++ {
		if s[i] == quote {
			return i + 1
		}
	}
	return len(s)
}

func after(s string, i int, end string) int {
	if n := strings.Index(s[i:], end); n >= 0 {
		return i + n + len(end)
	}
	return len(s)
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func word(c byte) bool {
	return c == '_' || digit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
