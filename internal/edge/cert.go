package edge

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"strongroom/internal/clock"
)

// Files names the PEM files behind a listener's TLS.
type Files struct {
	Certificate string // the chain, leaf first
	Key         string // the leaf's private key; nobody but owner and group may read it
	// BackupKey is the key that the next certificate will use, as a private or (when the private one
	// lies in a safe) a public key; optional. Its pin is in the pin set before it is ever used, so
	// that apps that pin can be moved to it overnight (RFC 7469 section 4.3, MASVS-NETWORK-2).
	BackupKey string
	ClientCAs string // the authorities that sign clients' certificates; for Mutual
}

// Certificates is what Files held when they were last read well. It is safe for concurrent use, and
// every new connection uses what the latest reload brought.
type Certificates struct {
	files   Files
	clock   clock.Clock
	mu      sync.Mutex // held during a reload
	tried   []fs.FileInfo
	current atomic.Pointer[certificates]
}

type certificates struct {
	pair    tls.Certificate
	clients *x509.CertPool
	pins    []string
}

// LoadCertificates reads the files. It fails when one is missing or malformed, when certificate and
// key do not belong together, when the certificate is not valid at present or its key is weak, and
// when the private key is readable by everyone.
func LoadCertificates(files Files, clk clock.Clock) (*Certificates, error) {
	if clk == nil {
		clk = clock.System
	}
	c := &Certificates{files: files, clock: clk}
	return c, c.Reload()
}

// Reload reads the files again. When that fails, the connections to come use what they used before.
func (c *Certificates) Reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tried = c.stat()
	next, err := c.read()
	if err != nil {
		return err
	}
	c.current.Store(next)
	return nil
}

// reloadChanged reads the files again if one of them is not the one that was last tried.
func (c *Certificates) reloadChanged() (changed bool, err error) {
	c.mu.Lock()
	same := true
	for i, now := range c.stat() {
		was := c.tried[i]
		same = same && (now == nil) == (was == nil) && (now == nil ||
			os.SameFile(now, was) && now.ModTime().Equal(was.ModTime()) && now.Size() == was.Size())
	}
	c.mu.Unlock()
	if same {
		return false, nil
	}
	return true, c.Reload()
}

// stat is taken before the files are read, so that a change in between is found the next time.
func (c *Certificates) stat() []fs.FileInfo {
	var infos []fs.FileInfo
	for _, name := range []string{c.files.Certificate, c.files.Key, c.files.BackupKey, c.files.ClientCAs} {
		info, err := os.Stat(name)
		if err != nil {
			info = nil
		}
		infos = append(infos, info)
	}
	return infos
}

func (c *Certificates) read() (*certificates, error) {
	chain, err := readPEM(c.files.Certificate)
	if err != nil {
		return nil, err
	}
	key, err := readKeyPEM(c.files.Key)
	if err != nil {
		return nil, err
	}
	var next certificates
	if next.pair, err = tls.X509KeyPair(chain, key); err != nil {
		return nil, fmt.Errorf("edge: %s and %s do not make a pair: %w", c.files.Certificate, c.files.Key, err)
	}
	leaf := next.pair.Leaf
	if err := checkLeaf(leaf, c.clock.Now()); err != nil {
		return nil, fmt.Errorf("edge: %s: %w", c.files.Certificate, err)
	}
	next.pins = []string{Pin(leaf)}
	if c.files.BackupKey != "" {
		pin, err := pinOfKeyFile(c.files.BackupKey)
		if err != nil {
			return nil, err
		}
		if pin != next.pins[0] {
			next.pins = append(next.pins, pin)
		}
	}
	if c.files.ClientCAs != "" {
		pool, err := readPEM(c.files.ClientCAs)
		if err != nil {
			return nil, err
		}
		next.clients = x509.NewCertPool()
		if !next.clients.AppendCertsFromPEM(pool) {
			return nil, fmt.Errorf("edge: there is no certificate in %s", c.files.ClientCAs)
		}
	}
	return &next, nil
}

func checkLeaf(leaf *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s; look at the clock", leaf.NotBefore.Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate expired at %s; renew it", leaf.NotAfter.Format(time.RFC3339))
	}
	if key, ok := leaf.PublicKey.(interface{ Size() int }); ok && key.Size() < 256 { // RSA, in bytes
		return errors.New("the RSA key is shorter than 2048 bits; use ECDSA P-256")
	}
	for _, usage := range leaf.ExtKeyUsage {
		if usage == x509.ExtKeyUsageServerAuth || usage == x509.ExtKeyUsageAny {
			return nil
		}
	}
	if len(leaf.ExtKeyUsage) > 0 {
		return errors.New("the certificate is not for servers: its extended key usage lacks serverAuth")
	}
	return nil
}

// NotAfter returns when the certificate in use expires.
func (c *Certificates) NotAfter() time.Time { return c.current.Load().pair.Leaf.NotAfter }

// Pins returns the pin of the certificate in use and, when there is a backup key that is not yet in
// use, the pin of that, each in the form that Pin returns.
func (c *Certificates) Pins() []string {
	return append([]string(nil), c.current.Load().pins...)
}

// Pin returns "sha256/" and the base64 of the SHA-256 of the certificate's SubjectPublicKeyInfo
// (RFC 7469 section 2.4), the form that OkHttp, TrustKit and curl --pinnedpubkey take.
func Pin(cert *x509.Certificate) string { return pinOf(cert.RawSubjectPublicKeyInfo) }

func pinOf(spki []byte) string {
	sum := sha256.Sum256(spki)
	return "sha256/" + base64.StdEncoding.EncodeToString(sum[:])
}

func pinOfKeyFile(path string) (string, error) {
	data, err := readPEM(path)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(data)
	if block != nil && block.Type == "PUBLIC KEY" {
		if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return "", fmt.Errorf("edge: %s: %w", path, err)
		}
		return pinOf(block.Bytes), nil
	}
	if data, err = readKeyPEM(path); err != nil {
		return "", err
	}
	key, err := parseKey(data)
	if err != nil {
		return "", fmt.Errorf("edge: %s: %w", path, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", fmt.Errorf("edge: %s: %w", path, err)
	}
	return pinOf(spki), nil
}

// maxPEM bounds what a misnamed file can make us read.
const maxPEM = 1 << 20

func readPEM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM))
	if err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		return nil, fmt.Errorf("edge: %s is not a PEM file", path)
	}
	return data, nil
}

func readKeyPEM(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("edge: everyone on this host may read the private key %s; run: chmod o= %s", path, path)
	}
	return readPEM(path)
}
