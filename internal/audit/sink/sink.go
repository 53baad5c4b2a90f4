// Package sink takes the trail to where others keep it: into files, to a syslog collector over TLS, to a
// webhook. Each adapter is an audit.Sink; audit gives it the events in order and remembers how far it got.
//
// The promise: Send returns nil only when the receiver has the events (a file was synced, a webhook
// answered 2xx); syslog has no answer, so there it means that the connection took them. A redirect is
// not followed and a certificate that does not fit ends the sending: events go where the settings say or
// nowhere.
package sink

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"strongroom/internal/audit"
	"strongroom/internal/audit/ocsf"
)

// Encode returns an event as one line of JSON without its end.
type Encode func(audit.Entry) ([]byte, error)

// JSON is the event as `audit tail --json` prints it.
func JSON(e audit.Entry) ([]byte, error) { return json.Marshal(e) }

// OCSF is the event in the form of OCSF.
func OCSF(p ocsf.Product) Encode {
	return func(e audit.Entry) ([]byte, error) { return ocsf.Marshal(e, p) }
}

// lines returns the events as JSON lines.
func lines(events []audit.Entry, encode Encode) ([]byte, error) {
	var b bytes.Buffer
	for _, e := range events {
		one, err := encode(e)
		if err != nil {
			return nil, fmt.Errorf("sink: event %s: %w", e.ID, err)
		}
		b.Write(one)
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

// TLSFiles name what a connection trusts and shows.
type TLSFiles struct {
	CA               string // PEM file of the authorities that may vouch for the receiver; empty: the host's
	Certificate, Key string // PEM files of the certificate that is shown; empty: none
}

// Config reads the files.
func (f TLSFiles) Config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", f.CA)
		}
	}
	if (f.Certificate == "") != (f.Key == "") {
		return nil, errors.New("certificate and key go together")
	}
	if f.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(f.Certificate, f.Key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
