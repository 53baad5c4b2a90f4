package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"strongroom/client"
)

// fakeVault is as much of the service listener as the examples need. It insists on a client certificate
// and a purpose, and answers a request with a known idempotency key as the first time.
type fakeVault struct {
	*httptest.Server
	certificate tls.Certificate

	mu    sync.Mutex
	once  map[string]string
	fail  int // how many answers are lost
	calls []string
	blob  string
}

func newVault() *fakeVault {
	f := &fakeVault{once: map[string]string{}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "payouts"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "bank.example", Path: "/payouts"}}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	f.certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
	f.StartTLS()
	return f
}

func (f *fakeVault) options() client.ServiceOptions {
	pool := x509.NewCertPool()
	pool.AddCert(f.Server.Certificate())
	return client.ServiceOptions{BaseURL: f.URL, Certificate: f.certificate, RootCAs: pool}
}

func (f *fakeVault) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, r.Method+" "+r.URL.Path+" "+r.Header.Get("Content-Type"))
	if r.Header.Get("Strongroom-Purpose") != "payment" {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"type":"urn:strongroom:problem:not-permitted","title":"Forbidden","status":403}`)
		return
	}
	answer := f.answer(r, body)
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		if kept, ok := f.once[key]; ok {
			answer = kept
		}
		f.once[key] = answer
	}
	if f.fail > 0 {
		f.fail--
		panic(http.ErrAbortHandler) // the connection is cut before the answer
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, answer)
}

func (f *fakeVault) answer(r *http.Request, body []byte) string {
	var in map[string]any
	_ = json.Unmarshal(body, &in)
	if strings.HasPrefix(r.URL.Path, "/v1/blobs/") {
		if r.Method == http.MethodGet {
			return f.blob
		}
		f.blob = string(body)
		return fmt.Sprintf(`{"collection":"profile","key":"passport","size":%d}`, len(body))
	}
	switch verb := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; {
	case strings.HasPrefix(r.URL.Path, "/v1/batch/"):
		var results []string
		for _, item := range in["items"].([]any) {
			results = append(results, fmt.Sprintf(`{"ciphertext":"sr1.%s"}`, item.(map[string]any)["plaintext"]))
		}
		return `{"results":[` + strings.Join(results, ",") + `]}`
	case verb == "erase":
		return `{"receipt":{"statement":"strongroom erasure receipt v1\n{\"customer\":\"cus_1\"}\n"},"scrubbed":true}`
	case verb == "customers":
		return fmt.Sprintf(`{"customer":"cus_%d"}`, len(f.once)+1)
	case verb == "lookup":
		return `{"matches":[{"customer":"cus_1","key":"rent"}]}`
	case verb == "read":
		return `{"results":[{"record":{"key":"rent","version":1}},{"problem":{"type":"urn:strongroom:problem:record-not-found","status":404}}]}`
	case verb == "tokens":
		return `{"token":"7394028845031111"}`
	case verb == "detokenise":
		return `{"value":"4111111111111111","customer":"cus_1"}`
	case verb == "encrypt":
		return fmt.Sprintf(`{"ciphertext":"sr1.%s"}`, in["plaintext"])
	case verb == "decrypt":
		return fmt.Sprintf(`{"plaintext":%q}`, strings.TrimPrefix(in["ciphertext"].(string), "sr1."))
	case r.URL.Query().Get("reveal") == "iban":
		return `{"key":"rent","version":1,"fields":{"iban":"GB82WEST12345698765432"}}`
	}
	return `{"key":"rent","version":1,"fields":{"iban":"GB****5432"}}`
}

// A service keeps a customer's account number, finds it again, and reads it whole for a payment.
func ExampleService() {
	server := newVault() // in place of your Strongroom
	defer server.Close()
	ctx := context.Background()

	service, err := client.NewService(server.options()) // BaseURL, and the certificate that says who calls
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()
	payment := service.For("payment")

	customer, err := payment.CreateCustomer(ctx)
	if err != nil {
		log.Fatal(err)
	}
	accounts := payment.Records(customer, "bank_account")
	masked, err := accounts.Put(ctx, "rent", map[string]string{"holder": "Ada Lovelace", "iban": "GB82WEST12345698765432"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("kept", masked.Fields["iban"])

	found, err := payment.Lookup(ctx, "bank_account", "iban", "GB82WEST12345698765432")
	if err != nil {
		log.Fatal(err)
	}
	whole, err := accounts.Reveal(ctx, found[0].Key, "iban")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("paying to", whole.Fields["iban"])

	_, err = service.For("marketing").Records(customer, "bank_account").Get(ctx, "rent")
	fmt.Println(errors.Is(err, client.ErrNotPermitted))
	// Output:
	// kept GB****5432
	// paying to GB82WEST12345698765432
	// true
}

// A service that has a database of its own keeps card numbers out of it.
func ExampleErrand_Tokenise() {
	server := newVault()
	defer server.Close()
	ctx := context.Background()
	service, err := client.NewService(server.options())
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()

	token, err := service.For("payment").Tokenise(ctx, "cus_1", client.CardToken, "4111 1111 1111 1111")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("in your database:", token)
	card, customer, err := service.For("payment").Detokenise(ctx, token)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("at the processor:", card, "of", customer)
	// Output:
	// in your database: 7394028845031111
	// at the processor: 4111111111111111 of cus_1
}

// A service encrypts a column of its own database with a key that never leaves Strongroom.
func ExampleNamedKey() {
	server := newVault()
	defer server.Close()
	ctx := context.Background()
	service, err := client.NewService(server.options())
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()

	key := service.For("payment").Key("orders")
	ciphertext, err := key.Encrypt(ctx, []byte("leave it with the neighbour"), "order/17/note")
	if err != nil {
		log.Fatal(err)
	}
	plaintext, err := key.Decrypt(ctx, ciphertext, "order/17/note")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(plaintext))
	// Output:
	// leave it with the neighbour
}

// A service keeps a scanned document as a stream, and reads it as one.
func ExampleServiceBlobs() {
	server := newVault()
	defer server.Close()
	ctx := context.Background()
	service, err := client.NewService(server.options())
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()

	documents := service.For("payment").Blobs("cus_1", "profile")
	scan := strings.NewReader("a scanned page") // or a file: whatever can seek is sent again when its answer is lost
	kept, err := documents.Put(ctx, "passport", scan)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("kept", kept.Size, "bytes")

	content, err := documents.Get(ctx, "passport")
	if err != nil {
		log.Fatal(err)
	}
	defer content.Close()
	text, err := io.ReadAll(content)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
	// Output:
	// kept 14 bytes
	// a scanned page
}

// A service encrypts a thousand columns for the price of one event.
func ExampleNamedKey_EncryptBatch() {
	server := newVault()
	defer server.Close()
	service, err := client.NewService(server.options())
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()

	ciphertexts, err := service.For("payment").Key("orders").EncryptBatch(context.Background(),
		client.Message{Data: []byte("leave it outside"), Context: "order/17/note"},
		client.Message{Data: []byte("ring twice"), Context: "order/18/note"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(ciphertexts), "columns")
	// Output:
	// 2 columns
}

// A service erases a customer and keeps the receipt, which proves it to whoever asks.
func ExampleErrand_Erase() {
	server := newVault()
	defer server.Close()
	service, err := client.NewService(server.options())
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()

	// The case is the key: however often the job starts anew, the customer is erased once.
	ctx := client.WithIdempotencyKey(context.Background(), "erasure-case-4711")
	erasure, err := service.For("payment").Erase(ctx, "cus_1", "asked to be forgotten, case 4711")
	if err != nil {
		log.Fatal(err)
	}
	receipt, err := json.Marshal(erasure.Receipt) // for strongroom vault check-receipt
	if err != nil {
		log.Fatal(err)
	}
	title, _, _ := strings.Cut(erasure.Receipt.Statement, "\n")
	fmt.Println(title, len(receipt) > 0)
	// Output:
	// strongroom erasure receipt v1 true
}

// TestBlobsAreSentAgain loses answers: what can be rewound is sent again from where it stood, what cannot is
// not sent in part.
func TestBlobsAreSentAgain(t *testing.T) {
	server := newVault()
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	service, err := client.NewService(server.options())
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	documents := service.For("payment").Blobs("cus_1", "profile")

	content := strings.NewReader("head and the body")
	if _, err := content.Seek(9, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	server.fail = 2
	b, err := documents.Put(t.Context(), "passport", content)
	if err != nil || b.Size != 8 || server.blob != "the body" || len(server.once) != 1 || len(server.calls) != 3 {
		t.Errorf("%+v %v: %q after %d calls", b, err, server.blob, len(server.calls))
	}
	server.fail = 1
	before := len(server.calls)
	if _, err := documents.Put(t.Context(), "passport", io.LimitReader(strings.NewReader("once"), 4)); err == nil || len(server.calls) != before+1 {
		t.Errorf("%v after %d calls", err, len(server.calls)-before)
	}
	server.fail = 1
	if r, err := documents.Get(t.Context(), "passport"); err != nil {
		t.Error(err)
	} else if text, err := io.ReadAll(r); err != nil || string(text) != "once" || r.Close() != nil {
		t.Errorf("%q %v", text, err)
	}
	if _, err := service.For("marketing").Blobs("cus_1", "profile").Get(t.Context(), "passport"); !errors.Is(err, client.ErrNotPermitted) {
		t.Error(err)
	}
	if _, err := documents.Put(t.Context(), "..", strings.NewReader("")); err == nil {
		t.Error("a key that is a direction is sent")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := documents.Put(gone, "passport", strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestServiceSendsAgain loses answers: the request is sent again with the same key, and done once.
func TestServiceSendsAgain(t *testing.T) {
	server := newVault()
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	var attempts int
	o := server.options()
	o.Observe = func(client.Exchange) { attempts++ }
	service, err := client.NewService(o)
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	server.fail = 2
	first, err := service.For("payment").CreateCustomer(client.WithIdempotencyKey(t.Context(), "my own key"))
	if err != nil || first != "cus_1" || attempts != 3 || len(server.once) != 1 {
		t.Errorf("%q %v, %d attempts, %d keys", first, err, attempts, len(server.once))
	}
	again, err := service.For("payment").CreateCustomer(client.WithIdempotencyKey(t.Context(), "my own key"))
	if err != nil || again != first {
		t.Errorf("%q %v", again, err)
	}
	if other, err := service.For("payment").CreateCustomer(t.Context()); err != nil || other == first {
		t.Errorf("%q %v", other, err)
	}
}

func TestServiceOperations(t *testing.T) {
	server := newVault()
	defer server.Close()
	service, err := client.NewService(server.options())
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	payment, ctx := service.For("payment"), t.Context()
	if _, err := payment.Records("cus_1", "bank_account").Patch(ctx, "rent", map[string]any{"bic": nil}, client.IfMatch(`"1"`)); err != nil {
		t.Error(err)
	}
	if got := server.calls[len(server.calls)-1]; got != "PATCH /v1/customers/cus_1/records/bank_account/rent application/merge-patch+json" {
		t.Error(got)
	}
	results, err := payment.Read(ctx, client.Read{Customer: "cus_1", Collection: "bank_account", Key: "rent"}, client.Read{Customer: "cus_1", Collection: "x", Key: "y"})
	if err != nil || results[0].Err != nil || results[0].Record.Version != 1 || !errors.Is(results[1].Err, client.ErrRecordNotFound) {
		t.Errorf("%+v %v", results, err)
	}
	if _, err := payment.Records("..", "bank_account").Get(ctx, "rent"); err == nil {
		t.Error("a customer that is a direction is sent")
	}
	// A server of another authority, or with another key than the pinned one, is told nothing.
	before := len(server.calls)
	o := server.options()
	o.RootCAs = x509.NewCertPool()
	for name, o := range map[string]client.ServiceOptions{"authority": o, "pin": func() client.ServiceOptions {
		o := server.options()
		o.Pins = []string{"sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
		return o
	}()} {
		other, err := client.NewService(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.For("payment").CreateCustomer(ctx); err == nil || len(server.calls) != before {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := client.NewService(client.ServiceOptions{BaseURL: server.URL}); err == nil {
		t.Error("a service without a certificate")
	}
}
