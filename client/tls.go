package client

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// ErrPinMismatch means that the server's certificate chain verifies but holds no pinned key:
// somebody stands in between, or the server has changed to a key that this app does not know.
var ErrPinMismatch = errors.New("strongroom: the server's certificate chain holds no pinned key")

const pinPrefix = "sha256/"

// Pin returns a certificate's public-key pin: "sha256/" and the base64 of the SHA-256 of its
// SubjectPublicKeyInfo, the form of RFC 7469 and of the pinning settings of Android and OkHttp. It
// stays the same when the certificate is renewed with the same key.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return pinPrefix + base64.StdEncoding.EncodeToString(sum[:])
}

// pinSet returns the pins as a set, if each is one.
func pinSet(list []string) (map[string]bool, error) {
	if len(list) == 0 {
		return nil, errors.New("strongroom: Pins are needed: the key in use and a backup, each as Pin returns it")
	}
	pins := make(map[string]bool, len(list))
	for _, p := range list {
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p, pinPrefix))
		if !strings.HasPrefix(p, pinPrefix) || err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("strongroom: pin %q is not sha256/ and the base64 of 32 bytes", p)
		}
		pins[p] = true
	}
	return pins, nil
}

func newTransport(o Options, allowed func() map[string]bool) *http.Transport {
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	return &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: dial,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			RootCAs:    o.RootCAs,
			// It runs on every connection, after the chain has verified and before the client's
			// half of the handshake is finished; so nothing has been sent yet.
			VerifyConnection: func(cs tls.ConnectionState) error { return checkPins(allowed(), cs) },
		},
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: 16,
		DisableCompression:  true, // tokens and records must not share a compression window
	}
}

func checkPins(pins map[string]bool, cs tls.ConnectionState) error {
	for _, chain := range cs.VerifiedChains {
		for _, cert := range chain {
			if pins[Pin(cert)] {
				return nil
			}
		}
	}
	if len(cs.PeerCertificates) > 0 {
		return fmt.Errorf("%w (its own is %s)", ErrPinMismatch, Pin(cs.PeerCertificates[0]))
	}
	return ErrPinMismatch
}

// permanent reports failures that another attempt would only repeat.
func permanent(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		header       tls.RecordHeaderError
		network      *net.OpError
		dns          *net.DNSError
	)
	if errors.As(err, &network) && (network.Op == "remote error" || network.Op == "local error") {
		return true // a TLS alert: the two sides do not agree on how to talk
	}
	return errors.Is(err, ErrPinMismatch) || errors.As(err, &verification) || errors.As(err, &header) ||
		errors.As(err, &dns) && dns.IsNotFound
}
