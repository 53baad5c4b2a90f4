package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the program under test, built once, without cgo, as `make build` does.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "strongroom-e2e-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "strongroom")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "strongroom/cmd/strongroom")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the binary: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// patience is how long a test waits for something that must happen. It is long because machines are
// slow, and no test passes because it ran out.
const patience = 60 * time.Second

// urls is what a server writes to its ready file.
type urls struct {
	App, Service, Admin, Ops, CA, Data string
	Pins                               []string
}

// server is a running strongroom.
type server struct {
	t    testing.TB
	cmd  *exec.Cmd
	data string
	log  *buffer // standard error: the log
	out  *buffer
	urls urls
	done chan error
}

// buffer is a bytes.Buffer that may be read while a process writes to it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var anyPorts = []string{"--app-addr", "127.0.0.1:0", "--service-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"}

// start runs `strongroom verb --data data args…` on free ports and waits until it serves.
func start(t testing.TB, verb, data string, args ...string) *server {
	t.Helper()
	s, err := tryStart(t, verb, data, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// startLogging is start with everything that can be logged.
func startLogging(t testing.TB, verb, data string, args ...string) *server {
	t.Helper()
	s, err := tryStart(t, verb, data, []string{"STRONGROOM_LOG_LEVEL=debug", "STRONGROOM_LOG_FORMAT=json"}, args...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// startWith is start of a development installation whose settings end with more.
func startWith(t testing.TB, more string, args ...string) *server {
	t.Helper()
	s := start(t, "dev", t.TempDir(), args...)
	s.stop()
	settings, err := os.OpenFile(filepath.Join(s.data, "strongroom.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = settings.WriteString(more)
		err = errors.Join(err, settings.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return start(t, "dev", s.data, args...)
}

func tryStart(t testing.TB, verb, data string, env []string, args ...string) (*server, error) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready.json")
	args = slices.Concat([]string{verb, "--data", data, "--ready-file", ready}, anyPorts, args)
	s := &server{t: t, data: data, cmd: exec.Command(binary, args...), log: &buffer{}, out: &buffer{}, done: make(chan error, 1)}
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stderr, s.cmd.Stdout = s.log, s.out
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.done <- s.cmd.Wait() }()
	t.Cleanup(func() { s.kill() })
	deadline := time.Now().Add(patience)
	for {
		if b, err := os.ReadFile(ready); err == nil {
			return s, json.Unmarshal(b, &s.urls)
		}
		select {
		case err := <-s.done:
			s.done <- err
			return nil, fmt.Errorf("strongroom %s ended early: %v\n%s", verb, err, s.log)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("strongroom %s is not ready:\n%s", verb, s.log)
		}
	}
}

// kill ends the server as a power cut would, and waits until it is gone.
func (s *server) kill() {
	_ = s.cmd.Process.Signal(syscall.SIGKILL) // it may have ended already
	s.done <- <-s.done
}

// stop ends the server as an orchestrator would. It must end well.
func (s *server) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.done:
		s.done <- err
		if err != nil {
			s.t.Fatalf("stopping: %v\n%s", err, s.log)
		}
	case <-time.After(patience):
		s.t.Fatalf("the server does not stop:\n%s", s.log)
	}
}

// client returns an HTTP client that trusts the server's authority.
func (s *server) client() *http.Client {
	s.t.Helper()
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: s.authority(), MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}}
}

func (s *server) authority() *x509.CertPool {
	s.t.Helper()
	b, err := os.ReadFile(s.urls.CA)
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		s.t.Fatal("the ready file's ca holds no certificate")
	}
	return pool
}

// result is what a command left.
type result struct {
	code   int
	stdout string
	stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
}

// command runs strongroom to its end.
func command(t testing.TB, args ...string) result {
	t.Helper()
	return commandEnv(t, nil, args...)
}

func commandEnv(t testing.TB, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("strongroom %s: %v", strings.Join(args, " "), err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// must runs strongroom, which must succeed.
func must(t testing.TB, args ...string) result {
	t.Helper()
	r := command(t, args...)
	if r.code != 0 {
		t.Fatalf("strongroom %s: %v", strings.Join(args, " "), r)
	}
	return r
}

// get fetches a URL and returns status and body.
func get(t testing.TB, c *http.Client, url string) (int, string) {
	t.Helper()
	answer, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

// eventually waits until ok returns nil.
func eventually(t testing.TB, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
