package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/api"
	"strongroom/internal/clock"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/edge"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/policy"
	"strongroom/internal/transit"
)

// worker is a service reduced to what a request needs: one connection over mutual TLS.
type worker struct {
	http     *http.Client
	customer string
	etag     string
}

func newWorker(b *testing.B, s *server) *worker {
	b.Helper()
	certificate, err := tls.LoadX509KeyPair(filepath.Join(s.data, "tls", "client.pem"), filepath.Join(s.data, "tls", "client.key"))
	if err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
		RootCAs: s.authority(), MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}}}
	b.Cleanup(transport.CloseIdleConnections)
	return &worker{http: &http.Client{Timeout: patience, Transport: transport}}
}

// must sends a request, which must succeed.
func (w *worker) must(ctx context.Context, base string, o operation) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, o.method, base+strings.ReplaceAll(o.path, "{customer}", w.customer)+o.query, strings.NewReader(o.body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Strongroom-Purpose", "show-to-customer")
	if o.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if o.method == http.MethodPut {
		if w.etag == "" {
			r.Header.Set("If-None-Match", "*")
		} else {
			r.Header.Set("If-Match", w.etag)
		}
		r.Header.Set("Idempotency-Key", rand.Text())
	}
	res, err := w.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %d %s", o.method, o.path, res.StatusCode, body)
	}
	if o.method == http.MethodPut {
		w.etag = res.Header.Get("ETag")
	}
	return body, err
}

var note = base64.StdEncoding.EncodeToString(make([]byte, 300))

var serviceOperations = []operation{
	{"write", http.MethodPut, "/v1/customers/{customer}/records/profile/main", "", profileBody},
	{"read", http.MethodGet, "/v1/customers/{customer}/records/profile/main", "?reveal=all", ""},
	{"lookup", http.MethodPost, "/v1/lookup", "", `{"collection":"bank_account","field":"iban","value":"GB33BUKB20201555555555"}`},
	{"encrypt", http.MethodPost, "/v1/keys/bench/encrypt", "", `{"plaintext":"` + note + `","context":"order/17"}`},
	{"encrypt-batch", http.MethodPost, "/v1/batch/keys/bench/encrypt", "", batchBody},
}

// batchItems is how many plaintexts are encrypted at once.
const batchItems = 100

var batchBody = `{"items":[` + strings.TrimSuffix(strings.Repeat(`{"plaintext":"`+note+`","context":"order/17"},`, batchItems), ",") + `]}`

// workersOf returns n workers, each with a customer who has a record, and makes the key.
func workersOf(b *testing.B, s *server, n int) []*worker {
	b.Helper()
	workers := make([]*worker, n)
	for i := range workers {
		w := newWorker(b, s)
		body, err := w.must(b.Context(), s.urls.Service, operation{"", http.MethodPost, "/v1/customers", "", ""})
		if err != nil {
			b.Fatal(err)
		}
		var made struct{ Customer string }
		if err := json.Unmarshal(body, &made); err != nil {
			b.Fatal(err)
		}
		w.customer = made.Customer
		if _, err := w.must(b.Context(), s.urls.Service, serviceOperations[0]); err != nil {
			b.Fatal(err)
		}
		workers[i] = w
	}
	account := operation{"", http.MethodPut, "/v1/customers/{customer}/records/bank_account/rent", "", `{"holder":"Ada","iban":"GB33BUKB20201555555555"}`}
	w := *workers[0]
	w.etag = ""
	if _, err := w.must(b.Context(), s.urls.Service, account); err != nil {
		b.Fatal(err)
	}
	if _, err := w.must(b.Context(), s.urls.Service, operation{"", http.MethodPost, "/v1/keys/bench", "", `{"algorithm":"AES-256-GCM"}`}); err != nil {
		b.Fatal(err)
	}
	return workers
}

// askService has n workers ask b.N times, and reports rate, CPU time of the server and latencies.
func askService(b *testing.B, key string, s *server, workers []*worker, n int, o operation) {
	b.Helper()
	for _, w := range workers[:n] {
		if _, err := w.must(b.Context(), s.urls.Service, o); err != nil {
			b.Fatal(err)
		}
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	took := make([][]time.Duration, n)
	var wg sync.WaitGroup
	defer profiled(b, s, key)()
	b.ResetTimer()
	cpu, began := processTime(b, s.cmd.Process.Pid), time.Now()
	for i, w := range workers[:n] {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				sent := time.Now()
				if _, err := w.must(b.Context(), s.urls.Service, o); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(sent))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	rate := float64(b.N) / time.Since(began).Seconds()
	b.StopTimer()
	cost := float64((processTime(b, s.cmd.Process.Pid) - cpu).Nanoseconds()) / float64(b.N) / 1000
	results[key], results[key+" rate"] = cost, rate
	slices.Sort(all)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate, "req/s")
	b.ReportMetric(cost, "cpu-µs/op")
	if len(all) > 0 {
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	}
}

// BenchmarkService measures a service's requests over mutual TLS to the real server: an audited durable
// write with an idempotency key, an audited read of a whole record, a look-up by index, and the encryption
// of 300 bytes, one and a hundred of them, with its durable event beside the same without any (x-unaudited is in CPU time).
func BenchmarkService(b *testing.B) {
	s, _ := startMeasured(b, b.TempDir())
	unaudited := startUnaudited(b, s)
	against := func(engine string, s *server) {
		workers := workersOf(b, s, clientCounts[len(clientCounts)-1])
		for _, o := range serviceOperations {
			for _, n := range clientCounts {
				bare := fmt.Sprintf("service-%s/unaudited/%d", o.name, n)
				if strings.HasPrefix(o.name, "encrypt") && engine == "sqlite" {
					b.Run(fmt.Sprintf("%s/unaudited/%d", o.name, n), func(b *testing.B) { askService(b, bare, unaudited, workers, n, o) })
				}
				b.Run(fmt.Sprintf("%s/%s/%d", o.name, engine, n), func(b *testing.B) {
					key := fmt.Sprintf("service-%s/%s/%d", o.name, engine, n)
					askService(b, key, s, workers, n, o)
					if results[bare] > 0 {
						b.ReportMetric(results[key]/results[bare], "x-unaudited")
						b.ReportMetric(results[bare+" rate"]/results[key+" rate"], "x-time")
					}
				})
			}
		}
	}
	against("sqlite", s)
	if os.Getenv(dbtest.Variable) != "" {
		p, _ := startMeasured(b, b.TempDir(), "--database", dbtest.PostgresURL(b))
		against("postgresql", p)
	}
}

// unauditedVariable turns this test binary into a server that encrypts as Strongroom does, behind the same
// door, and records nothing.
const unauditedVariable = "STRONGROOM_TEST_UNAUDITED"

func init() {
	if data := os.Getenv(unauditedVariable); data != "" {
		fmt.Fprintln(os.Stderr, serveUnaudited(data))
		os.Exit(1)
	}
}

type unauditedInput struct {
	Name    string `path:"name"`
	Purpose string `header:"Strongroom-Purpose"`
	Body    struct {
		Plaintext transit.Base64 `json:"plaintext" maxLength:"43692"`
		Context   string         `json:"context,omitempty" maxLength:"1024"`
	}
}

type unauditedOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Ciphertext string `json:"ciphertext"`
	}
}

type unauditedBatch struct {
	Name    string `path:"name"`
	Purpose string `header:"Strongroom-Purpose"`
	Body    struct {
		Items []transit.PlaintextView `json:"items" minItems:"1" maxItems:"1000" nullable:"false"`
	}
}

type unauditedResults struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Results []transit.ItemView `json:"results" nullable:"false"`
	}
}

func serveUnaudited(data string) error {
	folder := filepath.Join(data, "tls")
	certificates, err := edge.LoadCertificates(edge.Files{Certificate: filepath.Join(folder, "server.pem"),
		Key: filepath.Join(folder, "server.key"), ClientCAs: filepath.Join(folder, "ca.pem")}, clock.System)
	if err != nil {
		return err
	}
	policies, err := policy.Load(filepath.Join(data, "policies"))
	if err != nil {
		return err
	}
	key, err := seal.NewKey(1, make([]byte, seal.KeySize))
	if err != nil {
		return err
	}
	ring, err := seal.NewRing("bench", key)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "strongroom-bench-log-")
	if err != nil {
		return err
	}
	if err := os.Remove(file.Name()); err != nil { // it goes with the process
		return err
	}
	log := slog.New(slog.NewJSONHandler(file, nil))
	mux := http.NewServeMux()
	unaudited := api.NewService(mux, api.Options{Title: "bench", Log: log})
	huma.Register(unaudited, huma.Operation{OperationID: "encrypt", Method: http.MethodPost,
		Path: "/v1/keys/{name}/encrypt", Security: []map[string][]string{{api.Service: {}}}},
		func(ctx context.Context, in *unauditedInput) (*unauditedOutput, error) {
			if p := policies.Decide(policy.Question{By: actor.From(ctx), Action: policy.KeyEncrypt, Resource: policy.Key(in.Name), Purpose: in.Purpose}); p != nil {
				return nil, p
			}
			out := &unauditedOutput{CacheControl: "no-store"}
			place := seal.Place{Room: "transit", Table: "ciphertext", Record: in.Body.Context}
			out.Body.Ciphertext = "sr1." + base64.RawURLEncoding.EncodeToString(ring.Seal(place, in.Body.Plaintext))
			return out, nil
		})
	huma.Register(unaudited, huma.Operation{OperationID: "encrypt-batch", Method: http.MethodPost,
		Path: transit.BatchPath + "{name}/encrypt", Security: []map[string][]string{{api.Service: {}}}},
		func(ctx context.Context, in *unauditedBatch) (*unauditedResults, error) {
			if p := policies.Decide(policy.Question{By: actor.From(ctx), Action: policy.KeyEncrypt, Resource: policy.Key(in.Name), Purpose: in.Purpose}); p != nil {
				return nil, p
			}
			out := &unauditedResults{CacheControl: "no-store"}
			out.Body.Results = make([]transit.ItemView, len(in.Body.Items))
			for i, item := range in.Body.Items {
				place := seal.Place{Room: "transit", Table: "ciphertext", Record: item.Context}
				out.Body.Results[i].Ciphertext = "sr1." + base64.RawURLEncoding.EncodeToString(ring.Seal(place, item.Plaintext))
			}
			return out, nil
		})
	door, err := edge.New(edge.Options{Log: log, Metrics: prometheus.NewRegistry(), Clock: clock.System}, edge.Listener{
		Name: "service", Address: "127.0.0.1:0", Mode: edge.Mutual, Certificates: certificates, Handler: mux,
		Limits: edge.Limits{Connections: 4096, ConnectionsPerAddress: 4096, RequestsPerSecond: 1e6, Burst: 1e6, Body: 64 << 10}})
	if err != nil {
		return err
	}
	if err := door.Listen(context.Background()); err != nil {
		return err
	}
	if err := door.Start(context.Background()); err != nil {
		return err
	}
	fmt.Println(door.URL("service"))
	return <-door.Failed()
}

func startUnaudited(b *testing.B, s *server) *server {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), unauditedVariable+"="+s.data)
	cmd.Stderr = os.Stderr
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
	bare := &server{t: b, cmd: cmd, data: s.data}
	if _, err := fmt.Fscanln(out, &bare.urls.Service); err != nil {
		b.Fatal(err)
	}
	return bare
}
