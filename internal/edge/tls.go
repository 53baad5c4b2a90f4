package edge

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// Config returns the TLS configuration of a listener in the mode Public or Mutual. It follows its
// certificates' reloads.
//
// Version: 1.3 alone (ASVS 12.1.1 allows 1.2; nobody who talks to us needs it). There is no 0-RTT:
// crypto/tls servers never accept early data, so no request can be replayed.
//
// Key exchange: X25519MLKEM768 is chosen whenever the client has it, even at the price of a round
// trip, because what is recorded today must stay closed to a quantum computer of tomorrow. X25519 is
// for clients without it, P-256 for those held to FIPS 140 or to a secure element, P-384 for those
// held to the CNSA suite. P-521 is left out: nobody needs it and it costs the server most.
//
// Session tickets are off. A resumed session would skip what a full handshake proves: that we still
// hold the key for the certificate (so a replaced certificate keeps speaking, and pins go unchecked
// in clients that check them only with the chain), and that a service's certificate still verifies.
// It would also let an observer link a customer's connections. The price is one P-256 signature, tens of
// microseconds, per connection; connections are kept open.
func (c *Certificates) Config(m Mode) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{
			tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384,
		},
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &c.current.Load().pair, nil
		},
		VerifyConnection: verifySuite,
	}
	if m != Mutual {
		return config
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = x509.NewCertPool() // trusts nobody; the live pool comes with each handshake
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifySuite(cs); err != nil {
			return err
		}
		if len(cs.VerifiedChains) == 0 {
			return errors.New("edge: the client certificate is not verified")
		}
		_, err := ServiceName(cs.PeerCertificates[0])
		return err
	}
	base := config.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		live := base.Clone()
		live.ClientCAs = c.current.Load().clients
		return live, nil
	}
	return config
}

func verifySuite(cs tls.ConnectionState) error {
	switch cs.CipherSuite {
	case tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256:
		return nil
	}
	return fmt.Errorf("edge: cipher suite %s is not 256-bit", tls.CipherSuiteName(cs.CipherSuite))
}

// ServiceName returns who a client certificate speaks for: its only URI SAN, which is a SPIFFE ID
// ("spiffe://…") and is the name as it stands, or else its only DNS SAN. A certificate with several
// candidates is refused: who it speaks for would depend on their order. The subject is not read, for it
// could claim the name of another kind (RFC 9525 section 2).
func ServiceName(cert *x509.Certificate) (string, error) {
	switch {
	case len(cert.URIs) == 1 && cert.URIs[0].Scheme == "spiffe" && cert.URIs[0].Host != "":
		name := cert.URIs[0].String()
		if len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune(dnsBytes+":/", r) }) {
			return name, nil
		}
	case len(cert.URIs) > 0:
		return "", errors.New("edge: the client certificate must carry one spiffe:// URI, and no other")
	case len(cert.DNSNames) == 1:
		name := cert.DNSNames[0]
		if name != "" && len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune(dnsBytes, r) }) {
			return name, nil
		}
	case len(cert.DNSNames) > 1:
		return "", errors.New("edge: the client certificate carries several DNS names; give it one, or one spiffe:// URI")
	}
	return "", errors.New("edge: the client certificate names no service; give it one spiffe:// URI or one DNS name")
}

const dnsBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

// thumbprint returns the RFC 7638 SHA-256 thumbprint of the certificate's key, the form in which an
// actor.Actor names the key that proved a request; "" for a kind of key that JWK does not know.
func thumbprint(cert *x509.Certificate) string {
	sum, err := (&jose.JSONWebKey{Key: cert.PublicKey}).Thumbprint(crypto.SHA256)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}
