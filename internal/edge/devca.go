package edge

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"strongroom/internal/clock"
)

// DevService is who the client certificate that DevCA makes speaks for.
const DevService = "spiffe://" + devDomain + "/dev"

const (
	devDomain    = "strongroom.localhost"
	devCALife    = 2 * 365 * day
	devCARenew   = 180 * day // before its end, so that no leaf outlives the authority
	devLeafLife  = 90 * day
	devLeafRenew = 30 * day // before its end
	day          = 24 * time.Hour
)

// DevFiles are the files that DevCA keeps.
type DevFiles struct {
	CA        string // the authority's certificate: what clients trust
	Server    Files  // for listeners of every mode
	ClientPEM string // certificate of the service DevService
	ClientKey string
}

// DevCA makes, or reuses and renews, a certificate authority for development in the folder dir, with
// a certificate for localhost, 127.0.0.1 and ::1 and one for a client. All keys are ECDSA P-256, which
// browsers, phones and OpenSSL take alike, and mode 0600. Should the authority's key leak it is
// worth little: its name constraints confine it to the loopback names.
//
// The next server key lies ready as the backup key; a renewed certificate uses it, and a new one is
// made, so that the pin set always announces the key to come.
func DevCA(dir string, clk clock.Clock) (DevFiles, error) {
	if clk == nil {
		clk = clock.System
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	files := DevFiles{
		CA:        at("ca.pem"),
		Server:    Files{Certificate: at("server.pem"), Key: at("server.key"), BackupKey: at("server-next.key"), ClientCAs: at("ca.pem")},
		ClientPEM: at("client.pem"),
		ClientKey: at("client.key"),
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return DevFiles{}, fmt.Errorf("edge: %w", err)
	}
	ca := devCA{dir: dir, now: clk.Now()}
	steps := []func() error{
		func() error { return ca.open(files.CA, at("ca.key")) },
		func() error { return ca.server(files.Server) },
		func() error { return ca.client(files.ClientPEM, files.ClientKey) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return DevFiles{}, fmt.Errorf("edge: development certificates: %w (deleting %s makes new ones)", err, dir)
		}
	}
	return files, nil
}

type devCA struct {
	dir  string
	now  time.Time
	key  crypto.Signer
	cert *x509.Certificate
}

func (ca *devCA) open(certFile, keyFile string) (err error) {
	if ca.key, err = ca.loadOrMakeKey(keyFile); err != nil {
		return err
	}
	ca.cert, err = loadCert(certFile)
	switch {
	case err == nil && belongs(ca.cert, ca.key) && ca.lasts(ca.cert, devCARenew):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	_, v4, _ := net.ParseCIDR("127.0.0.0/8")
	_, v6, _ := net.ParseCIDR("::1/128")
	template := &x509.Certificate{
		Subject:                     pkix.Name{Organization: []string{"Strongroom"}, CommonName: "Strongroom development authority"},
		NotBefore:                   ca.now.Add(-time.Hour),
		NotAfter:                    ca.now.Add(devCALife),
		KeyUsage:                    x509.KeyUsageCertSign,
		IsCA:                        true,
		BasicConstraintsValid:       true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{"localhost"},
		PermittedIPRanges:           []*net.IPNet{v4, v6},
		PermittedURIDomains:         []string{devDomain},
	}
	ca.cert, err = ca.issue(certFile, template, template, ca.key.Public())
	return err
}

func (ca *devCA) server(files Files) error {
	key, err := ca.loadOrMakeKey(files.Key)
	if err != nil {
		return err
	}
	next, err := ca.loadOrMakeKey(files.BackupKey)
	if err != nil {
		return err
	}
	cert, err := loadCert(files.Certificate)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, err = ca.issueServer(files.Certificate, key)
		return err
	case err != nil:
		return err
	case belongs(cert, key) && ca.signed(cert) && ca.lasts(cert, devLeafRenew):
		return nil
	case !belongs(cert, next) || !ca.signed(cert) || !ca.lasts(cert, devLeafRenew):
		if _, err := ca.issueServer(files.Certificate, next); err != nil {
			return err
		}
	}
	// The certificate is for the next key: just now, or in a run that ended here.
	if err := os.Rename(files.BackupKey, files.Key); err != nil {
		return err
	}
	_, err = ca.loadOrMakeKey(files.BackupKey)
	return err
}

func (ca *devCA) issueServer(path string, key crypto.Signer) (*x509.Certificate, error) {
	return ca.issue(path, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost"},
		NotBefore:   ca.now.Add(-time.Hour),
		NotAfter:    ca.now.Add(devLeafLife - time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}, ca.cert, key.Public())
}

func (ca *devCA) client(certFile, keyFile string) error {
	key, err := ca.loadOrMakeKey(keyFile)
	if err != nil {
		return err
	}
	cert, err := loadCert(certFile)
	switch {
	case err == nil && belongs(cert, key) && ca.signed(cert) && ca.lasts(cert, devLeafRenew):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	name, err := url.Parse(DevService)
	if err != nil {
		return err
	}
	_, err = ca.issue(certFile, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "Strongroom development service"},
		NotBefore:   ca.now.Add(-time.Hour),
		NotAfter:    ca.now.Add(devLeafLife - time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{name},
	}, ca.cert, key.Public())
	return err
}

func (ca *devCA) issue(path string, template, parent *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca.key)
	if err != nil {
		return nil, err
	}
	if err := ca.write(path, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (ca *devCA) signed(cert *x509.Certificate) bool { return cert.CheckSignatureFrom(ca.cert) == nil }

func (ca *devCA) lasts(cert *x509.Certificate, margin time.Duration) bool {
	return !ca.now.Before(cert.NotBefore) && cert.NotAfter.Sub(ca.now) >= margin
}

func (ca *devCA) loadOrMakeKey(path string) (crypto.Signer, error) {
	data, err := readKeyPEM(path)
	if err == nil {
		return parseKey(data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, ca.write(path, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// write puts a whole file in place or none: a process that dies leaves what was there before.
func (ca *devCA) write(path string, block *pem.Block) (err error) {
	f, err := os.CreateTemp(ca.dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err = pem.Encode(f, block); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func loadCert(path string) (*x509.Certificate, error) {
	data, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

func belongs(cert *x509.Certificate, key crypto.Signer) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(cert.PublicKey)
}

// parseKey reads the first private key of a PEM file, in PKCS #8, SEC 1 or PKCS #1.
func parseKey(data []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("the file holds no private key")
		}
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			if signer, ok := key.(crypto.Signer); ok {
				return signer, nil
			}
			return nil, errors.New("the private key cannot sign")
		case "EC PRIVATE KEY":
			return x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		}
	}
}
