package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"strongroom/client"
	"strongroom/internal/clock"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/edge"
	"strongroom/internal/identity/dpop"
)

// The figures of this file are taken from outside: the real binary, with the settings that
// production has except for the limits per address, is asked over TLS by clients that keep their
// connections open, and the kernel says how much CPU time the server's process took. What the
// clients take is not in it, so it does not matter that they share the machine.

// measured are the settings of every server that is measured: it logs each request as in production,
// into a file, and sends nobody away.
var measured = []string{
	"STRONGROOM_LOG_LEVEL=info", "STRONGROOM_LOG_FORMAT=json",
	"STRONGROOM_LOGIN_ACCESS_LIFETIME=15m",
	"STRONGROOM_LISTENERS_APP_REQUESTS_PER_SECOND=1000000", "STRONGROOM_LISTENERS_APP_BURST=1000000",
	"STRONGROOM_LISTENERS_SERVICE_REQUESTS_PER_SECOND=1000000", "STRONGROOM_LISTENERS_SERVICE_BURST=1000000",
}

// startMeasured runs `strongroom dev` on data and returns how long it took to serve.
func startMeasured(b *testing.B, data string, args ...string) (*server, time.Duration) {
	b.Helper()
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	ready := filepath.Join(b.TempDir(), "ready.json")
	args = append([]string{"dev", "--data", data, "--ready-file", ready}, args...)
	s := &server{t: b, data: data, cmd: exec.Command(binary, append(args, anyPorts...)...), log: &buffer{}, out: &buffer{}, done: make(chan error, 1)}
	s.cmd.Env = append(append(os.Environ(), measured...), fmt.Sprintf("STRONGROOM_LISTENERS_OPS_PPROF=%t", os.Getenv(profileVariable) != ""))
	s.cmd.Stderr = log
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	b.Cleanup(s.kill)
	for time.Since(began) < patience {
		text, err := os.ReadFile(ready)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		took := time.Since(began)
		if err := json.Unmarshal(text, &s.urls); err != nil {
			b.Fatal(err)
		}
		return s, took
	}
	text, _ := os.ReadFile(log.Name()) // an empty text is all there is to tell
	b.Fatalf("the server is not ready:\n%s", text)
	return nil, 0
}

// profileVariable names a folder for CPU profiles of the server under each load, for go tool pprof.
// Give -benchtime some seconds more than profileSeconds then.
const (
	profileVariable = "STRONGROOM_TEST_PROFILES"
	profileSeconds  = 4
)

// profiled takes a profile of s from now on, when they are wanted; the function that it returns
// waits for it.
func profiled(b *testing.B, s *server, key string) (wait func()) {
	folder := os.Getenv(profileVariable)
	if folder == "" || s.urls.Ops == "" || b.N < 100 {
		return func() {}
	}
	done := make(chan error)
	go func() {
		res, err := http.Get(fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", s.urls.Ops, profileSeconds))
		if err == nil {
			var profile []byte
			profile, err = io.ReadAll(res.Body)
			res.Body.Close()
			err = errors.Join(err, os.WriteFile(filepath.Join(folder, strings.ReplaceAll(key, "/", "-")+".pprof"), profile, 0o600))
		}
		done <- err
	}()
	return func() {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}

// processTime is the CPU time that a process has taken, in user and kernel mode.
func processTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name before it may hold anything
	fields := strings.Fields(rest)
	var ticks int64
	for _, field := range fields[11:13] { // utime and stime, proc(5)
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 wherever Go runs
}

// answer is what a server says to a request.
type answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// caller is a customer's app reduced to what a request needs, so that the machine is left to the
// server: one connection, one key, one session.
type caller struct {
	http  *http.Client
	key   client.DeviceKey
	head  string // the header of its proofs
	token string
	nonce string
	etag  string // of its record
}

func newCaller(b *testing.B, s *server, p *person) *caller {
	b.Helper()
	point, err := p.key.Public().Bytes() // 0x04, X and Y (SEC 1 section 2.3.3)
	if err != nil {
		b.Fatal(err)
	}
	part := base64.RawURLEncoding.EncodeToString
	head := fmt.Sprintf(`{"alg":"ES256","typ":"dpop+jwt","jwk":{"kty":"EC","crv":"P-256","x":"%s","y":"%s"}}`, part(point[1:33]), part(point[33:]))
	session, err := p.store.Load(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: s.authority(), MinVersion: tls.VersionTLS13},
		ForceAttemptHTTP2: true, // as apps do
	}
	b.Cleanup(transport.CloseIdleConnections)
	return &caller{
		http: &http.Client{Timeout: patience, Transport: transport}, key: p.key,
		head: base64.RawURLEncoding.EncodeToString([]byte(head)), token: session.Access.Reveal(),
	}
}

func (c *caller) proof(method, target string) (string, error) {
	claims := fmt.Sprintf(`{"jti":"%s","htm":"%s","htu":"%s","iat":%d,"ath":"%s","nonce":"%s"}`,
		rand.Text(), method, target, time.Now().Unix(), dpop.TokenHash(c.token), c.nonce)
	text := c.head + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	signature, err := c.key.SignES256([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), err
}

// call is one operation with its proof.
func (c *caller) call(ctx context.Context, base string, o operation) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, o.method, base+o.path+o.query, strings.NewReader(o.body))
	if err != nil {
		return answer{}, err
	}
	proof, err := c.proof(o.method, base+o.path)
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("DPoP", proof)
	r.Header.Set("Authorization", "DPoP "+c.token)
	if o.body != "" {
		r.Header.Set("Content-Type", "application/json")
		if c.etag == "" {
			r.Header.Set("If-None-Match", "*")
		} else {
			r.Header.Set("If-Match", c.etag)
		}
	}
	res, err := c.http.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return answer{}, err
	}
	if nonce := res.Header.Get("DPoP-Nonce"); nonce != "" {
		c.nonce = nonce
	}
	if tag := res.Header.Get("ETag"); tag != "" {
		c.etag = tag
	}
	return answer{res.StatusCode, res.Header, body}, nil
}

// must is call that succeeds, after a second try with the nonce when there was none yet.
func (c *caller) must(ctx context.Context, base string, o operation) (answer, error) {
	a, err := c.call(ctx, base, o)
	if err == nil && a.Status == http.StatusUnauthorized {
		a, err = c.call(ctx, base, o)
	}
	if err == nil && a.Status/100 != 2 {
		err = fmt.Errorf("%s %s: %d %s", o.method, o.path, a.Status, a.Body)
	}
	return a, err
}

// operation is what is measured.
type operation struct{ name, method, path, query, body string }

const profileBody = `{"given_name":"Ada","family_name":"Lovelace","date_of_birth":"1985-12-10","email":"ada.lovelace@example.com",` +
	`"address_line1":"12 St James's Square","address_line2":"Second floor, the door on the left","postcode":"SW1Y 4JH","city":"London","country":"GB"}`

var write = operation{"write", http.MethodPut, "/v1/records/profile/main", "", profileBody}

var operations = []operation{
	write,
	{"read", http.MethodGet, "/v1/records/profile/main", "?reveal=all&purpose=show-to-customer", ""},
	{"session", http.MethodGet, "/v1/session", "", ""},
}

// clientCounts are how many ask at once.
var clientCounts = []int{1, 16, 64}

// results keep the CPU time per operation of what was measured already, in microseconds, and rates,
// so that each figure can be shown beside its baseline.
var results = map[string]float64{}

// ask has n callers ask s b.N times altogether, and reports their rate and the CPU time that the
// process of s took for each request. The time of the trail's sequencer is in it.
//
// CPU time is no constant: the busier the machine, the colder the caches. So a raw P-256 verification
// is measured all the while, too rarely to matter, and is what the cost is held against.
func ask(b *testing.B, key string, s *server, n int, callers []*caller, o operation) {
	b.Helper()
	base, pid := s.urls.App, s.cmd.Process.Pid
	for _, c := range callers[:n] { // connections and nonces are there before the clock starts
		if _, err := c.must(b.Context(), base, o); err != nil {
			b.Fatal(err)
		}
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	defer profiled(b, s, key)()
	verification := meanwhile(b)
	b.ResetTimer()
	cpu, began := processTime(b, pid), time.Now()
	for _, c := range callers[:n] {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := c.must(b.Context(), base, o); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	b.StopTimer()
	cost := float64((processTime(b, pid) - cpu).Nanoseconds()) / float64(b.N) / 1000
	results[key] = cost
	results[key+" rate"] = float64(b.N) / took.Seconds()
	results[key+" verify"] = verification()
	b.ReportMetric(0, "ns/op") // the rate says it
	b.ReportMetric(results[key+" rate"], "req/s")
	b.ReportMetric(cost, "cpu-µs")
	b.ReportMetric(results[key+" verify"], "verify-µs")
}

// BenchmarkRequest measures requests to the real server: an audited durable write, an audited read
// of a whole record and a look at the session, which is an event too. Each is shown beside a bare TLS
// handler in a process of its own that answers with the same bytes, and beside the raw verification of
// a P-256 signature under the same load; one that is behind every request's DPoP proof.
//
// beyond-verify-µs is the CPU time beyond that verification, the whole of HTTP and TLS included.
// beyond-bare-µs is the CPU time beyond the bare handler and the whole check of the proof, which is
// that verification and what dpop-verify shows to be around it.
func BenchmarkRequest(b *testing.B) {
	b.Run("p256-verify", benchVerify)
	b.Run("dpop-verify", benchProof)
	s, _ := startMeasured(b, b.TempDir())
	callers := callersOf(b, s, clientCounts[len(clientCounts)-1])
	bare := startBare(b, s, callers[0])
	for _, o := range operations {
		for _, n := range clientCounts {
			baseline, key := fmt.Sprintf("%s/bare/%d", o.name, n), fmt.Sprintf("%s/sqlite/%d", o.name, n)
			b.Run(baseline, func(b *testing.B) { ask(b, baseline, bare, n, callers, o) })
			b.Run(key, func(b *testing.B) {
				ask(b, key, s, n, callers, o)
				compare(b, key, baseline)
			})
		}
	}
	if os.Getenv(dbtest.Variable) == "" {
		return
	}
	s, _ = startMeasured(b, b.TempDir(), "--database", dbtest.PostgresURL(b))
	callers = callersOf(b, s, clientCounts[len(clientCounts)-1])
	for _, o := range operations {
		for _, n := range clientCounts {
			baseline, key := fmt.Sprintf("%s/bare/%d", o.name, n), fmt.Sprintf("%s/postgresql/%d", o.name, n)
			b.Run(key, func(b *testing.B) {
				ask(b, key, s, n, callers, o)
				compare(b, key, baseline)
			})
		}
	}
}

// compare reports what key costs beyond its baseline.
func compare(b *testing.B, key, baseline string) {
	verify := results[key+" verify"]
	b.ReportMetric(results[key]-verify, "beyond-verify-µs")
	bare, proof, raw := results[baseline], results["dpop"], results["p256"]
	if bare > 0 && proof > 0 && raw > 0 {
		// The baseline ran under a load of its own.
		bare *= verify / results[baseline+" verify"]
		b.ReportMetric(results[key]-bare-verify*proof/raw, "beyond-bare-µs")
		b.ReportMetric(results[key+" rate"]/results[baseline+" rate"], "x-bare-rate")
	}
}

// callersOf returns n customers of s, logged in, each with a record.
func callersOf(b *testing.B, s *server, n int) []*caller {
	b.Helper()
	callers := make([]*caller, n)
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				p, err := newPerson(b.Context(), s)
				if err != nil {
					b.Error(err)
					return
				}
				callers[i] = newCaller(b, s, p)
				if _, err := callers[i].must(b.Context(), s.urls.App, write); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return callers
}

// bareVariable turns this test binary into the bare server.
const bareVariable = "STRONGROOM_TEST_BARE"

func init() {
	if tlsFolder := os.Getenv(bareVariable); tlsFolder != "" {
		fmt.Fprintln(os.Stderr, serveBare(tlsFolder))
		os.Exit(1)
	}
}

// serveBare answers over the same TLS as Strongroom, with the answers that come by standard input,
// and does nothing else. It writes its address to standard output.
func serveBare(tlsFolder string) error {
	var answers map[string]answer
	if err := json.NewDecoder(os.Stdin).Decode(&answers); err != nil {
		return err
	}
	certificates, err := edge.LoadCertificates(edge.Files{
		Certificate: filepath.Join(tlsFolder, "server.pem"), Key: filepath.Join(tlsFolder, "server.key"),
	}, clock.System)
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", certificates.Config(edge.Public))
	if err != nil {
		return err
	}
	fmt.Printf("https://%s\n", listener.Addr())
	mux := http.NewServeMux()
	for pattern, a := range answers {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // a client that has gone is no concern here
			for name, values := range a.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(a.Status)
			_, _ = w.Write(a.Body)
		})
	}
	return http.Serve(listener, mux)
}

// startBare starts the bare server with the answers that s gives to c.
func startBare(b *testing.B, s *server, c *caller) *server {
	b.Helper()
	answers := map[string]answer{}
	for _, o := range operations {
		a, err := c.must(b.Context(), s.urls.App, o)
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range []string{"Date", "Dpop-Nonce", "Etag"} {
			a.Header.Del(name)
		}
		// As long as what they stand for, and nothing that a caller would keep.
		a.Header.Set("X-Nonce", c.nonce)
		a.Header.Set("X-Tag", c.etag)
		answers[o.method+" "+o.path] = a
	}
	text, err := json.Marshal(answers)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), bareVariable+"="+filepath.Dir(s.urls.CA))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait() // it was killed
	})
	bare := &server{t: b, cmd: cmd}
	if _, err := fmt.Fscanln(out, &bare.urls.App); err != nil {
		b.Fatal(err)
	}
	return bare
}

// alone runs b.N times what takes one core, and reports the CPU time of each.
func alone(b *testing.B, key string, do func(i int)) {
	b.ResetTimer()
	began := processTime(b, os.Getpid())
	for i := range b.N {
		do(i)
	}
	results[key] = float64((processTime(b, os.Getpid()) - began).Nanoseconds()) / float64(b.N) / 1000
	b.StopTimer()
	b.ReportMetric(0, "ns/op") // the machine's other work is in it
	b.ReportMetric(results[key], "cpu-µs")
}

// signature is one over a digest, to be verified.
type signature struct {
	public *ecdsa.PublicKey
	digest [sha256.Size]byte
	asn1   []byte
}

func newSignature(b *testing.B) *signature {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	s := &signature{public: &key.PublicKey, digest: sha256.Sum256([]byte("message"))}
	if s.asn1, err = ecdsa.SignASN1(rand.Reader, key, s.digest[:]); err != nil {
		b.Fatal(err)
	}
	return s
}

func (s *signature) verify() {
	if !ecdsa.VerifyASN1(s.public, s.digest[:], s.asn1) {
		panic("the signature does not verify")
	}
}

// benchVerify is one raw verification of a P-256 signature.
func benchVerify(b *testing.B) {
	s := newSignature(b)
	alone(b, "p256", func(int) { s.verify() })
}

// meanwhile verifies signatures now and then until the function that it returns is called, which says
// how many microseconds of CPU time one took.
func meanwhile(b *testing.B) (stop func() float64) {
	b.Helper()
	s := newSignature(b)
	done, result := make(chan struct{}), make(chan float64)
	go func() {
		runtime.LockOSThread() // whose time is read
		defer runtime.UnlockOSThread()
		const burst = 8
		var total time.Duration
		n := 0
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			s.verify() // the caches' time, which the server does not pay each time
			began := threadTime()
			for range burst {
				s.verify()
			}
			total, n = total+threadTime()-began, n+burst
			select {
			case <-tick.C:
			case <-done:
				tick.Stop()
				result <- float64(total.Nanoseconds()) / float64(n) / 1000
				return
			}
		}
	}()
	return func() float64 {
		close(done)
		return <-result
	}
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// fixedKey authenticates nonces as the keyring does.
type fixedKey struct{}

func (fixedKey) MAC(parts ...[]byte) ([]byte, uint32) {
	sum := sha256.Sum256(bytes.Join(parts, []byte{0}))
	return sum[:], 1
}

func (k fixedKey) MACVersion(_ uint32, parts ...[]byte) ([]byte, error) {
	sum, _ := k.MAC(parts...)
	return sum, nil
}

// benchProof is one check of a whole DPoP proof, all of RFC 9449 section 4.3.
func benchProof(b *testing.B) {
	key, err := client.NewDeviceKey()
	if err != nil {
		b.Fatal(err)
	}
	verifier, err := dpop.New(dpop.Options{Nonces: dpop.NewNonces(fixedKey{}), Remember: b.N*2 + 1000000})
	if err != nil {
		b.Fatal(err)
	}
	token, nonce := "sat_"+rand.Text(), verifier.Nonce()
	const target = "https://127.0.0.1:8443/v1/records/profile/main"
	requests := make([]*http.Request, b.N)
	for i := range requests {
		if requests[i], err = http.NewRequest(http.MethodGet, target, nil); err != nil {
			b.Fatal(err)
		}
		proof, err := client.Proof(key, http.MethodGet, target, nonce, client.NewSecret(token))
		if err != nil {
			b.Fatal(err)
		}
		requests[i].Header.Set("DPoP", proof)
	}
	alone(b, "dpop", func(i int) {
		if _, err := verifier.Verify(requests[i], token); err != nil {
			b.Fatal(err)
		}
	})
}
