// Package pocket is a sample app: two phones and their text messages on one web page, on which a newcomer
// sees registration, login, records, and the approval of a second device. It runs in the visitor's browser
// over the TypeScript client and has no server of its own; Strongroom serves it in development only.
package pocket

import (
	"embed"
	"io/fs"
	"net/http"

	clientts "strongroom/client-ts"
)

//go:embed web
var files embed.FS

// csp lets the page run its own files and talk to its own origin, and nothing else. No inline script, no
// inline style, and no text that becomes script or markup.
const csp = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

var types = map[string]string{
	"index.html": "text/html; charset=utf-8",
	"pocket.css": "text/css; charset=utf-8",
	"pocket.js":  "text/javascript; charset=utf-8",
	"icon.svg":   "image/svg+xml",
}

// Handler serves the page under /pocket/.
func Handler() http.Handler {
	mux := http.NewServeMux()
	serve := func(pattern, kind string, body []byte) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Content-Security-Policy", csp)
			_, _ = w.Write(body) // whoever asked has gone
		})
	}
	for name, kind := range types {
		body, err := fs.ReadFile(files, "web/"+name)
		if err != nil {
			panic(err) // it is embedded
		}
		if name == "index.html" {
			serve("/pocket/{$}", kind, body)
		} else {
			serve("/pocket/"+name, kind, body)
		}
	}
	serve("/pocket/strongroom.js", types["pocket.js"], clientts.JS)
	return mux
}
