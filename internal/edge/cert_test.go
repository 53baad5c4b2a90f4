package edge

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"strongroom/internal/clock"
)

func readFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
		files[e.Name()] = string(data)
	}
	return files
}

func parseCert(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	cert, err := loadCert(path)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func devCAAt(t *testing.T, dir string, clk clock.Clock) (DevFiles, *Certificates) {
	t.Helper()
	files, err := DevCA(dir, clk)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := LoadCertificates(files.Server, clk)
	if err != nil {
		t.Fatal(err)
	}
	return files, certs
}

func TestDevCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "tls")
	clk := clock.NewManual(time.Now())
	files, certs := devCAAt(t, dir, clk)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	first := readFiles(t, dir)
	if len(first) != 7 {
		t.Errorf("%d files", len(first))
	}
	leaf := parseCert(t, files.Server.Certificate)
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > 90*24*time.Hour {
		t.Errorf("the server's certificate lives for %v", life)
	}
	out, err := exec.Command("openssl", "verify", "-x509_strict", "-CAfile", files.CA, files.Server.Certificate, files.ClientPEM).CombinedOutput()
	if err != nil {
		t.Errorf("openssl does not take the certificates: %v\n%s", err, out)
	}
	pins := certs.Pins()
	if len(pins) != 2 || pins[0] == pins[1] || pins[0] != Pin(leaf) {
		t.Errorf("pins %v", pins)
	}

	clk.Advance(59 * 24 * time.Hour)
	if _, again := devCAAt(t, dir, clk); !slices.Equal(again.Pins(), pins) {
		t.Error("the certificate changed after 59 days")
	}
	for name, was := range first {
		if now := readFiles(t, dir)[name]; now != was {
			t.Errorf("%s changed", name)
		}
	}

	clk.Advance(2 * 24 * time.Hour)
	_, renewed := devCAAt(t, dir, clk)
	if got := renewed.Pins(); len(got) != 2 || got[0] != pins[1] || got[1] == pins[0] {
		t.Errorf("pins %v, before %v: the backup did not come into use", got, pins)
	}
	if parseCert(t, files.ClientPEM).NotAfter.Before(clk.Now().Add(80 * 24 * time.Hour)) {
		t.Error("the client's certificate was not renewed")
	}
	if readFiles(t, dir)["ca.pem"] != first["ca.pem"] {
		t.Error("the authority changed with a leaf")
	}

	clk.Advance(devCALife - devCARenew)
	_, later := devCAAt(t, dir, clk)
	if readFiles(t, dir)["ca.pem"] == first["ca.pem"] || later.Pins()[0] != renewed.Pins()[1] {
		t.Error("the authority was not renewed, or the leaf skipped the backup key")
	}
	verifyLeaf(t, files, clk.Now())
}

func verifyLeaf(t *testing.T, files DevFiles, now time.Time) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(parseCert(t, files.CA))
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if _, err := parseCert(t, files.Server.Certificate).Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now}); err != nil {
			t.Errorf("for %s: %v", name, err)
		}
	}
}

// A run that died between the two renames of a renewal must not leave a pair that does not match.
func TestDevCAInterruptedRenewal(t *testing.T) {
	dir := t.TempDir()
	files, before := devCAAt(t, dir, nil)
	next, err := os.ReadFile(files.Server.BackupKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseKey(next)
	if err != nil {
		t.Fatal(err)
	}
	ca := devCA{dir: dir, now: time.Now()}
	if err := ca.open(files.CA, filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.issueServer(files.Server.Certificate, key); err != nil {
		t.Fatal(err)
	}
	issued := readFiles(t, dir)["server.pem"]
	_, after := devCAAt(t, dir, nil)
	if after.Pins()[0] != before.Pins()[1] || readFiles(t, dir)["server.pem"] != issued {
		t.Error("the renewal was not carried to its end")
	}
	verifyLeaf(t, files, time.Now())

	if err := os.Remove(files.Server.BackupKey); err != nil { // or died before the new backup key
		t.Fatal(err)
	}
	if _, again := devCAAt(t, dir, nil); len(again.Pins()) != 2 || again.Pins()[0] != after.Pins()[0] {
		t.Errorf("pins %v", again.Pins())
	}
}

// The authority must be worthless outside of this machine.
func TestDevCAConstrained(t *testing.T) {
	dir := t.TempDir()
	files, _ := devCAAt(t, dir, nil)
	ca := devCA{dir: dir, now: time.Now()}
	if err := ca.open(files.CA, filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for name, template := range map[string]*x509.Certificate{
		"name":    {DNSNames: []string{"bank.example"}},
		"address": {IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}},
		"service": {URIs: []*url.URL{{Scheme: "spiffe", Host: "bank.example", Path: "/payments"}}},
		"authority": {IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
			DNSNames: []string{"localhost"}},
	} {
		template.NotBefore, template.NotAfter = ca.now.Add(-time.Hour), ca.now.Add(time.Hour)
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		cert, err := ca.issue(filepath.Join(dir, "evil.pem"), template, ca.cert, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		opts := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if template.IsCA {
			opts.Intermediates = x509.NewCertPool()
			opts.Intermediates.AddCert(cert)
			leaf := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotBefore: template.NotBefore, NotAfter: template.NotAfter}
			der, err := x509.CreateCertificate(rand.Reader, leaf, cert, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			if cert, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := cert.Verify(opts); err == nil {
			t.Errorf("the authority may sign for another %s", name)
		}
	}
}

// writePair writes a self-signed certificate and its key.
func writePair(t *testing.T, dir string, template x509.Certificate, rsaBits int) Files {
	t.Helper()
	var key interface{}
	var public interface{}
	if rsaBits > 0 {
		k, err := rsa.GenerateKey(rand.Reader, rsaBits)
		if err != nil {
			t.Fatal(err)
		}
		key, public = k, k.Public()
	} else {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key, public = k, k.Public()
	}
	set(&template.NotBefore, time.Now().Add(-time.Hour))
	set(&template.NotAfter, time.Now().Add(time.Hour))
	template.SerialNumber = big.NewInt(7)
	template.Subject = pkix.Name{CommonName: "test"}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := Files{Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	write(t, files.Certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, files.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	return files
}

// write replaces a file as a careful operator would.
func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestLoadCertificates(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	for _, tt := range []struct {
		name     string
		template x509.Certificate
		rsa      int
		spoil    func(f *Files)
		want     string
	}{
		{name: "good"},
		{name: "RSA", rsa: 2048},
		{name: "weak", rsa: 1024, want: "2048"},
		{name: "expired", template: x509.Certificate{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}, want: "renew it"},
		{name: "early", template: x509.Certificate{NotBefore: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)}, want: "clock"},
		{name: "for clients", template: x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, want: "serverAuth"},
		{name: "for servers", template: x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}},
		{name: "absent", spoil: func(f *Files) { f.Certificate += "x" }, want: "no such file"},
		{name: "no key", spoil: func(f *Files) { f.Key += "x" }, want: "no such file"},
		{name: "swapped", spoil: func(f *Files) { f.Certificate, f.Key = f.Key, f.Certificate }, want: "pair"},
		{name: "not PEM", spoil: func(f *Files) { os.WriteFile(f.Certificate, []byte("hello"), 0o600) }, want: "not a PEM"},
		{name: "open to all", spoil: func(f *Files) { os.Chmod(f.Key, 0o644) }, want: "chmod"},
		{name: "open to the group", spoil: func(f *Files) { os.Chmod(f.Key, 0o640) }},
		{name: "no client authorities", spoil: func(f *Files) { f.ClientCAs = f.Key }, want: "no certificate in"},
		{name: "broken backup key", spoil: func(f *Files) { f.BackupKey = f.Certificate }, want: "no private key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := writePair(t, t.TempDir(), tt.template, tt.rsa)
			if tt.spoil != nil {
				tt.spoil(&files)
			}
			_, err := LoadCertificates(files, nil)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE") {
				t.Error("the error quotes the key")
			}
		})
	}
}

// The backup key may be known by its public half alone, as when the private one lies in a safe.
func TestPins(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	files := writePair(t, dir, x509.Certificate{}, 0)
	backup := writePair(t, other, x509.Certificate{}, 0)
	cert := parseCert(t, backup.Certificate)
	public := filepath.Join(other, "public.pem")
	write(t, public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: cert.RawSubjectPublicKeyInfo}))
	for _, path := range []string{public, backup.Key} {
		files.BackupKey = path
		certs, err := LoadCertificates(files, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := certs.Pins(); len(got) != 2 || got[1] != Pin(cert) {
			t.Errorf("pins %v", got)
		}
	}
	files.BackupKey = files.Key
	if certs, err := LoadCertificates(files, nil); err != nil || len(certs.Pins()) != 1 {
		t.Errorf("a backup key already in use: %v", err)
	}
	// The same as by openssl's hand.
	out, err := exec.Command("sh", "-c", `openssl x509 -in "$0" -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | openssl base64`, backup.Certificate).Output()
	if err != nil || "sha256/"+string(bytes.TrimSpace(out)) != Pin(cert) {
		t.Errorf("openssl's pin is %s (%v), ours %s", out, err, Pin(cert))
	}
}

func TestReload(t *testing.T) {
	h := unbuilt(t)
	dir := t.TempDir()
	files := writePair(t, dir, x509.Certificate{}, 0)
	var err error
	if h.certs, err = LoadCertificates(files, nil); err != nil {
		t.Fatal(err)
	}
	h.build(Options{ReloadEvery: time.Millisecond}, Listener{Name: "app"})
	insecure := &tls.Config{InsecureSkipVerify: true} // the test looks at the pin itself
	serves := func() string {
		c := h.dial(insecure)
		defer c.Close()
		return Pin(c.ConnectionState().PeerCertificates[0])
	}
	first := h.certs.Pins()[0]
	if serves() != first {
		t.Fatal("the server does not use the certificate")
	}
	old := h.client(func(tr *http.Transport) { tr.TLSClientConfig = insecure })
	if a := get(t, old, h.URL("app")); a.status != 200 {
		t.Fatal(a)
	}

	write(t, files.Certificate, []byte("-----BEGIN CERTIFICATE-----\nbroken\n"))
	await(t, "the broken pair is noticed", func() bool {
		return h.count("strongroom_certificate_reloads_total", "listener=app", "outcome=failed") == 1
	})
	if serves() != first {
		t.Error("a broken pair replaced a good one")
	}
	if !strings.Contains(h.log.String(), "stays in use") {
		t.Error("the log does not tell of the broken pair")
	}

	writePair(t, dir, x509.Certificate{NotAfter: time.Now().Add(5 * time.Hour)}, 0)
	await(t, "the new pair is used", func() bool { return serves() != first })
	if a := get(t, old, h.URL("app")); a.status != 200 {
		t.Error("the connection from before ended")
	}
	if got := h.count("strongroom_certificate_not_after_seconds", "listener=app"); got != float64(h.certs.NotAfter().Unix()) {
		t.Errorf("expiry %v", got)
	}
	if err := h.Reload(); err != nil {
		t.Error(err)
	}
	os.Remove(files.Key)
	if err := h.Reload(); err == nil {
		t.Error("Reload without a key succeeds")
	}
}
