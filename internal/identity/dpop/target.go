package dpop

import (
	"net/http"
	"net/url"
	"strings"
)

// target is an http address in the normal form of RFC 3986 sections 6.2.2 and 6.2.3: lower-case
// scheme and host, no default port, unreserved characters unescaped, upper-case escapes, no empty
// path. Query and fragment are left out (RFC 9449 section 4.3, number 9).
type target struct {
	origin string // scheme://host[:port]
	path   string
}

func parseTarget(s string) (target, bool) {
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Host == "" || u.Opaque != "" {
		return target{}, false
	}
	// url.Parse has lower-cased the scheme.
	if u.Scheme != "https" && u.Scheme != "http" {
		return target{}, false
	}
	path := normalPath(u.EscapedPath())
	return target{u.Scheme + "://" + normalHost(u.Scheme, u.Host), path}, true
}

func normalHost(scheme, host string) string {
	host = strings.ToLower(host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return strings.TrimSuffix(host, ":")
}

func normalPath(path string) string {
	if path == "" {
		return "/"
	}
	if !strings.Contains(path, "%") {
		return path
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			b.WriteByte(path[i])
			continue
		}
		c, ok := unhex(path[i+1], path[i+2])
		switch {
		case !ok:
			b.WriteByte('%')
			continue
		case unreserved(c):
			b.WriteByte(c)
		default:
			b.WriteString(strings.ToUpper(path[i : i+3]))
		}
		i += 2
	}
	return b.String()
}

func unhex(hi, lo byte) (byte, bool) {
	h, l := strings.IndexByte(hexDigits, hi|0x20), strings.IndexByte(hexDigits, lo|0x20)
	if h < 0 || l < 0 {
		return 0, false
	}
	return byte(h<<4 | l), true
}

const hexDigits = "0123456789abcdef"

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// sameTarget reports whether htu names the address that r was sent to.
func (v *Verifier) sameTarget(htu string, r *http.Request) bool {
	path := r.URL.EscapedPath()
	if len(v.origins) == 0 {
		// What nearly every client sends, without taking it apart.
		if rest, ok := strings.CutPrefix(htu, "https://"); ok {
			if rest, ok = strings.CutPrefix(rest, r.Host); ok && rest == path && path != "" && !strings.Contains(path, "%") {
				return r.Host != ""
			}
		}
	}
	claimed, ok := parseTarget(htu)
	if !ok || claimed.path != normalPath(path) {
		return false
	}
	if len(v.origins) == 0 {
		return r.Host != "" && claimed.origin == "https://"+normalHost("https", r.Host)
	}
	for _, origin := range v.origins {
		if claimed.origin == origin {
			return true
		}
	}
	return false
}
