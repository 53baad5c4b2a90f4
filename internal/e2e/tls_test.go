package e2e

import (
	"crypto/tls"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// openssl runs s_client against address and returns what it printed, and whether it shook hands.
func openssl(t *testing.T, address string, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.Command("openssl", append([]string{"s_client", "-connect", address}, args...)...)
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Fatalf("openssl: %v", err)
	}
	text := string(out)
	return text, strings.Contains(text, "Cipher is TLS_") || strings.Contains(text, "Cipher is ECDHE") || strings.Contains(text, "Cipher is AES")
}

func host(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// TestTLS proves TLS-1 on the running server with somebody else's TLS client: old versions and
// 128-bit suites are refused, and what is accepted is a 256-bit suite with hybrid key exchange
// (OWASP ASVS 12.1.1, 12.1.2).
func TestTLS(t *testing.T) {
	s := start(t, "dev", t.TempDir())
	for name, raw := range map[string]string{"app": s.urls.App, "admin": s.urls.Admin} {
		address := host(t, raw)
		for _, refused := range [][]string{
			{"-tls1"}, {"-tls1_1"}, {"-tls1_2"}, {"-tls1_2", "-cipher", "ALL:@SECLEVEL=0"},
			{"-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"},
			{"-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"},
		} {
			if out, ok := openssl(t, address, refused...); ok {
				t.Errorf("%s: %v is accepted:\n%s", name, refused, out)
			}
		}
		for _, offer := range []string{
			"TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
			"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256",
		} {
			out, ok := openssl(t, address, "-tls1_3", "-ciphersuites", offer)
			if !ok || !strings.Contains(out, "Cipher is TLS_AES_256_GCM_SHA384") && !strings.Contains(out, "Cipher is TLS_CHACHA20_POLY1305_SHA256") {
				t.Errorf("%s: offered %s, no 256-bit suite came of it:\n%s", name, offer, out)
			}
		}
	}
	conn, err := tls.Dial("tcp", host(t, s.urls.App), &tls.Config{RootCAs: s.authority()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if state := conn.ConnectionState(); state.CurveID != tls.X25519MLKEM768 || state.Version != tls.VersionTLS13 {
		t.Errorf("key exchange %v, version %x", state.CurveID, state.Version)
	}
}

// TestClosedDoors proves NET-1: a door admits only what it is for.
func TestClosedDoors(t *testing.T) {
	s := start(t, "dev", t.TempDir())

	t.Run("service refuses a caller without certificate", func(t *testing.T) {
		if answer, err := s.client().Get(s.urls.Service + "/v1/session"); err == nil {
			answer.Body.Close()
			t.Errorf("answered %s", answer.Status)
		}
	})
	t.Run("nothing is served behind admin", func(t *testing.T) {
		if status, body := get(t, s.client(), s.urls.Admin+"/v1/session"); status != 404 || !strings.Contains(body, "urn:strongroom:problem:") {
			t.Errorf("answered %d %s", status, body)
		}
	})
	t.Run("health and metrics are not on app", func(t *testing.T) {
		for _, path := range []string{"/metrics", "/healthz", "/readyz", "/debug/pprof/"} {
			if status, _ := get(t, s.client(), s.urls.App+path); status != 404 {
				t.Errorf("%s answered %d", path, status)
			}
		}
	})
	t.Run("records are not on ops", func(t *testing.T) {
		for _, path := range []string{"/v1/session", "/v1/records/profile", "/openapi.json", "/dev/inbox", "/debug/pprof/"} {
			if status, _ := get(t, s.client(), s.urls.Ops+path); status != 404 {
				t.Errorf("%s answered %d", path, status)
			}
		}
	})
	t.Run("plain HTTP goes nowhere", func(t *testing.T) {
		conn, err := net.Dial("tcp", host(t, s.urls.App))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, _ := conn.Read(b)
		if strings.Contains(string(b[:n]), "openapi") || strings.HasPrefix(string(b[:n]), "HTTP/1.1 200") {
			t.Errorf("answered %q", b[:n])
		}
	})
	t.Run("the whole API asks who calls", func(t *testing.T) {
		for _, path := range []string{"/v1/session", "/v1/devices", "/v1/records/profile", "/v1/records/profile/main"} {
			if status, body := get(t, s.client(), s.urls.App+path); status != 401 || !strings.Contains(body, "urn:strongroom:problem:") {
				t.Errorf("%s answered %d %s", path, status, body)
			}
		}
	})
}
