package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"strongroom/client"
	"strongroom/internal/identity/sms"
	"strongroom/internal/secret"
)

// authority is a certificate authority of the test's own.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue writes a certificate for 127.0.0.1, or for a client of that name, and its key.
func (a *authority) issue(dir, client string) (certificate, key string) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if client == "" {
		template.IPAddresses, template.ExtKeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	} else {
		template.DNSNames, template.ExtKeyUsage = []string{client}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	secretDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, "cert"+client+".pem"), filepath.Join(dir, "key"+client+".pem")
	writePEM(a.t, certificate, "CERTIFICATE", der)
	writePEM(a.t, key, "PRIVATE KEY", secretDER)
	return certificate, key
}

// gateway is an SMS gateway that checks each request's signature.
type gateway struct {
	mu       sync.Mutex
	messages []struct{ ID, To, Text string }
	bad      []string
}

const gatewaySecret = "a secret shared with the gateway"

func (g *gateway) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	g.mu.Lock()
	defer g.mu.Unlock()
	signature := r.Header.Get(sms.SignatureHeader)
	var seconds int64
	if _, scan := fmt.Sscanf(signature, "t=%d,", &seconds); err != nil || scan != nil ||
		sms.Sign(secret.FromString(gatewaySecret), time.Unix(seconds, 0), body) != signature || time.Since(time.Unix(seconds, 0)).Abs() > time.Minute {
		g.bad = append(g.bad, signature)
		return
	}
	var m struct{ ID, To, Text string }
	if err := json.Unmarshal(body, &m); err != nil {
		g.bad = append(g.bad, err.Error())
		return
	}
	g.messages = append(g.messages, m)
}

func (g *gateway) code(t *testing.T, to, last string) (code string) {
	t.Helper()
	eventually(t, "a message comes", func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, m := range g.messages {
			if m.To == to {
				code = sixDigits.FindString(m.Text)
			}
		}
		if code == "" || code == last {
			return fmt.Errorf("no new message to %s", to)
		}
		return nil
	})
	return code
}

// TestProduction runs an installation as an operator would: init, own certificates, a real gateway,
// UAT, serve. A customer registers and logs in, a service shows its certificate, certificates are
// replaced while it runs.
func TestProduction(t *testing.T) {
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)

	var messages gateway
	gatewayCert, gatewayKey := ca.issue(t.TempDir(), "")
	pair, err := tls.LoadX509KeyPair(gatewayCert, gatewayKey)
	if err != nil {
		t.Fatal(err)
	}
	sending := httptest.NewUnstartedServer(&messages)
	sending.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	sending.StartTLS()
	defer sending.Close()

	data := filepath.Join(t.TempDir(), "uat")
	must(t, "init", "--data", data, "--environment", "uat")
	certificate, key := ca.issue(data, "")
	if err := os.WriteFile(filepath.Join(data, "gateway.secret"), []byte(gatewaySecret), 0o600); err != nil {
		t.Fatal(err)
	}
	// Proofs are bound to the origin, so its port must be known beforehand.
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	env := []string{
		"STRONGROOM_LOGIN_ORIGIN=https://" + address,
		"SSL_CERT_FILE=" + ca.file,
		"STRONGROOM_SMS_WEBHOOK=" + sending.URL, "STRONGROOM_SMS_SECRET_FILE=gateway.secret",
		"STRONGROOM_LISTENERS_SERVICE_CLIENT_CA=" + ca.file,
		"STRONGROOM_LOG_LEVEL=debug",
	}
	for _, door := range []string{"APP", "SERVICE", "ADMIN"} {
		env = append(env, "STRONGROOM_LISTENERS_"+door+"_CERTIFICATE="+certificate, "STRONGROOM_LISTENERS_"+door+"_KEY="+key)
	}
	if r := commandEnv(t, env, "config", "check", "--data", data); r.code != 0 {
		t.Fatal(r)
	}
	s, err := tryStart(t, "serve", data, env, "--app-addr", address)
	if err != nil {
		t.Fatal(err)
	}
	if s.urls.CA != "" || len(s.urls.Pins) == 0 {
		t.Errorf("ready file says ca %q, pins %v", s.urls.CA, s.urls.Pins)
	}

	t.Run("a customer", func(t *testing.T) {
		key, err := client.NewDeviceKey()
		if err != nil {
			t.Fatal(err)
		}
		app, err := client.New(client.Options{BaseURL: s.urls.App, RootCAs: pool, Pins: s.urls.Pins, Key: key})
		if err != nil {
			t.Fatal(err)
		}
		defer app.Close()
		ctx := t.Context()
		if _, err := app.Register(ctx, "+447700900001"); err == nil {
			t.Error("a drama number is accepted outside dev")
		}
		const phone = "+447400123456"
		registration, err := app.Register(ctx, phone)
		if err != nil {
			t.Fatal(err)
		}
		code := messages.code(t, phone, "")
		if _, err := registration.Complete(ctx, code, "83510274", "phone"); err != nil {
			t.Fatal(err)
		}
		login, err := app.Login(ctx, phone, "83510274")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := login.Complete(ctx, messages.code(t, phone, code), "phone"); err != nil {
			t.Fatal(err)
		}
		if _, err := app.Session(ctx); err != nil {
			t.Error(err)
		}
		if len(messages.bad) > 0 {
			t.Errorf("requests to the gateway were not signed well: %q", messages.bad)
		}
		if strings.Contains(s.log.String(), phone) || strings.Contains(s.log.String(), code) {
			t.Error("the log holds the number or the code")
		}
	})
	t.Run("no inbox", func(t *testing.T) {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
		if status, _ := get(t, c, s.urls.App+"/dev/inbox"); status != http.StatusNotFound {
			t.Errorf("the inbox answered %d", status)
		}
	})
	t.Run("a service shows its certificate", func(t *testing.T) {
		good, goodKey := ca.issue(t.TempDir(), "ledger")
		other, otherKey := newAuthority(t).issue(t.TempDir(), "ledger")
		for _, row := range []struct {
			certificate, key string
			served           bool
		}{{good, goodKey, true}, {other, otherKey, false}} {
			pair, err := tls.LoadX509KeyPair(row.certificate, row.key)
			if err != nil {
				t.Fatal(err)
			}
			c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}}}
			answer, err := c.Get(s.urls.Service + "/v1/anything")
			if err == nil {
				answer.Body.Close()
			}
			if (err == nil) != row.served {
				t.Errorf("%s: %v", row.certificate, err)
			}
			if row.served && err == nil && answer.StatusCode != http.StatusNotFound {
				t.Errorf("nothing is served to services yet, but: %s", answer.Status)
			}
		}
	})
	t.Run("certificates are replaced while it runs", func(t *testing.T) {
		serial := func() string {
			conn, err := tls.Dial("tcp", host(t, s.urls.App), &tls.Config{RootCAs: pool})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
		}
		before := serial()
		ca.issue(data, "")
		eventually(t, "the new certificate is used", func() error {
			if serial() == before {
				return fmt.Errorf("still the old one")
			}
			return nil
		})
	})
	s.stop()
}

// TestShutdownLosesNothing stops the server while customers write: what was acknowledged is there
// after the next start, requests in flight are answered, and the trail is complete.
func TestShutdownLosesNothing(t *testing.T) {
	data := t.TempDir()
	s := startPatient(t, data)
	people := make([]*writer, 4)
	for i := range people {
		people[i] = &writer{person: mustPerson(t, s), key: "main"}
	}
	for range 3 {
		stop, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		for _, w := range people {
			load.Go(func() { w.run(t.Context(), stop) })
		}
		time.Sleep(200 * time.Millisecond)
		s.stop()
		cancel()
		load.Wait()
		if r := command(t, "audit", "verify", "--data", data, "--json"); r.code != 0 || strings.Contains(r.stdout, `"pending": 0`) == false {
			t.Errorf("the trail was not brought up to date: %v", r)
		}
		s = startPatient(t, data)
		for _, w := range people {
			if err := w.check(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestOps looks at what an orchestrator and Prometheus see.
func TestOps(t *testing.T) {
	s := start(t, "dev", t.TempDir())
	mustPerson(t, s)
	if status, body := get(t, s.client(), s.urls.Ops+"/readyz"); status != http.StatusOK || !strings.Contains(body, `"database":"ok"`) {
		t.Errorf("readyz: %d %s", status, body)
	}
	if limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.cmd.Process.Pid)); err != nil ||
		!regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
		t.Errorf("a core could be dumped: %v\n%s", err, limits)
	}
	_, metrics := get(t, s.client(), s.urls.Ops+"/metrics")
	for _, name := range []string{
		"strongroom_http_requests_total{", "strongroom_http_request_seconds_bucket{", "strongroom_db_group_commit_batch_bucket",
		"strongroom_db_queue", "strongroom_audit_pending", "strongroom_audit_events_total{", "strongroom_audit_tree_size",
		"go_goroutines", "process_resident_memory_bytes",
	} {
		if !strings.Contains(metrics, name) {
			t.Errorf("metrics lack %s", name)
		}
	}
	for _, never := range []string{"cus_", "+447", "127.0.0"} {
		if strings.Contains(metrics, never) {
			t.Errorf("metrics tell %q", never)
		}
	}
}
