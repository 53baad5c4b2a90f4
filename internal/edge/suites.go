package edge

import (
	"crypto/tls"
	_ "unsafe" // for go:linkname
)

// crypto/tls has no setting for the cipher suites of TLS 1.3 and would also take AES-128. The two
// lists below are its own, in order of preference, and are kept reachable upstream for this use
// (go.dev/issue/67401). They belong to the whole process: outgoing connections offer only 256-bit
// suites too, in TLS 1.3. TestSuites fails should a new Go version stop looking here.
//
// Under GODEBUG=fips140=on crypto/tls goes by a list that is out of reach, and prefers AES-128. Then
// New refuses TLS listeners, and verifySuite would still end every such connection.

//go:linkname defaultCipherSuitesTLS13 crypto/tls.defaultCipherSuitesTLS13
var defaultCipherSuitesTLS13 []uint16

//go:linkname defaultCipherSuitesTLS13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var defaultCipherSuitesTLS13NoAES []uint16

func init() {
	defaultCipherSuitesTLS13 = []uint16{tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}
	defaultCipherSuitesTLS13NoAES = []uint16{tls.TLS_CHACHA20_POLY1305_SHA256, tls.TLS_AES_256_GCM_SHA384}
}
