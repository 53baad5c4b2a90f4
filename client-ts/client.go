// Package clientts holds the compiled TypeScript client, so that Go programs can serve it.
package clientts

import _ "embed"

// JS is the client as an ECMAScript module. `make client-ts` compiles it from src/.
//
//go:embed dist/index.js
var JS []byte
