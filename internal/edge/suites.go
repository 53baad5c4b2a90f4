package edge

import (
	"crypto/tls"
	_ "unsafe" // for go:linkname
)

// crypto/tls has no setting for the cipher suites of TLS 1.3 and would also take AES-128. The two
// lists below are its own order of preference, with and without hardware AES, and are kept
// reachable upstream for this use (go.dev/issue/67401). They belong to the whole process: outgoing
// connections offer only 256-bit suites too, in TLS 1.3. In FIPS 140-3 mode crypto/tls goes by a list
// of its own instead; verifySuite stands behind this one for that case, and TestSuites fails should
// a new Go version stop looking here.

//go:linkname defaultCipherSuitesTLS13 crypto/tls.defaultCipherSuitesTLS13
var defaultCipherSuitesTLS13 []uint16

//go:linkname defaultCipherSuitesTLS13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var defaultCipherSuitesTLS13NoAES []uint16

func init() {
	defaultCipherSuitesTLS13 = []uint16{tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}
	defaultCipherSuitesTLS13NoAES = []uint16{tls.TLS_CHACHA20_POLY1305_SHA256, tls.TLS_AES_256_GCM_SHA384}
}
