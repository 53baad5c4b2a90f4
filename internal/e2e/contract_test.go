package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"strongroom/client"
)

// contract stands between the SDK and the service listener, and holds every request and every answer against
// the server's own OpenAPI document.
type contract struct {
	t    *testing.T
	base string
	http *http.Client
	doc  struct {
		Paths      map[string]map[string]operationDoc `json:"paths"`
		Components struct {
			Schemas map[string]struct {
				Properties map[string]json.RawMessage `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	compiler *jsonschema.Compiler

	mu   sync.Mutex
	seen map[string]map[string]bool // by operation: the members of requests, and of answers with "<" in front
	lose int                        // how many of the next answers are lost on the way
}

type operationDoc struct {
	ID         string `json:"operationId"`
	Parameters []struct {
		Name string `json:"name"`
		In   string `json:"in"`
	} `json:"parameters"`
	RequestBody struct {
		Content map[string]json.RawMessage `json:"content"`
	} `json:"requestBody"`
	Responses map[string]struct {
		Content map[string]json.RawMessage `json:"content"`
	} `json:"responses"`
}

// newContract returns a contract of one of the server's listeners, and the address at which it stands before it.
func newContract(t *testing.T, s *server, listener string) (*contract, string) {
	t.Helper()
	c := &contract{t: t, base: listener, seen: map[string]map[string]bool{}, compiler: jsonschema.NewCompiler()}
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.authority(), Certificates: []tls.Certificate{s.pair("client")}}}}
	res, err := c.http.Get(c.base + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || json.Unmarshal(text, &c.doc) != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.compiler.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewUnstartedServer(c)
	proxy.TLS = &tls.Config{Certificates: []tls.Certificate{s.pair("server")}, MinVersion: tls.VersionTLS13}
	proxy.StartTLS()
	t.Cleanup(proxy.Close)
	return c, proxy.URL
}

// pair returns one of the development authority's certificates.
func (s *server) pair(name string) tls.Certificate {
	s.t.Helper()
	c, err := tls.LoadX509KeyPair(filepath.Join(s.data, "tls", name+".pem"), filepath.Join(s.data, "tls", name+".key"))
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// kept holds that everything in the document was done, and every parameter said.
func (c *contract) kept(elsewhere ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, operations := range c.doc.Paths {
		for method, op := range operations {
			if slices.Contains(elsewhere, op.ID) {
				continue
			}
			if !c.seen[op.ID]["<"] {
				c.t.Errorf("the SDK has not done %s: %s %s", op.ID, method, path)
				continue
			}
			for _, p := range op.Parameters {
				if p.In != "path" && !c.seen[op.ID][p.Name] {
					c.t.Errorf("%s: %s was never said", op.ID, p.Name)
				}
			}
			for _, name := range c.members(op) {
				if !c.seen[op.ID][name] {
					c.t.Errorf("%s: the body's %s was never said", op.ID, name)
				}
			}
		}
	}
}

// members returns the names that the JSON body of an operation's requests may have.
func (c *contract) members(op operationDoc) (names []string) {
	var media struct {
		Schema struct {
			Ref string `json:"$ref"`
		} `json:"schema"`
	}
	if text, ok := op.RequestBody.Content["application/json"]; !ok || json.Unmarshal(text, &media) != nil {
		return nil
	}
	for name := range c.doc.Components.Schemas[strings.TrimPrefix(media.Schema.Ref, "#/components/schemas/")].Properties {
		names = append(names, name)
	}
	return names
}

func (c *contract) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Error(err)
	}
	path, op := c.find(r)
	if op == nil {
		c.t.Errorf("%s %s is not in the document", r.Method, r.URL.Path)
		w.WriteHeader(http.StatusTeapot)
		return
	}
	pointer := "openapi.json#/paths/" + escape(path) + "/" + strings.ToLower(r.Method)
	c.parameters(r, op)
	c.check(op, "", pointer+"/requestBody", r.Header.Get("Content-Type"), op.RequestBody.Content, body)

	out, err := http.NewRequestWithContext(r.Context(), r.Method, c.base+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		c.t.Error(err)
		return
	}
	out.Header, out.Host = r.Header.Clone(), r.Host // proofs name the address
	res, err := c.http.Do(out)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Error(err)
	}
	status := fmt.Sprint(res.StatusCode)
	if _, ok := op.Responses[status]; !ok && res.StatusCode == http.StatusCreated {
		status = "200" // a put that made something
	}
	documented, ok := op.Responses[status]
	if !ok {
		c.t.Errorf("%s answers %d, which is not in the document", op.ID, res.StatusCode)
	}
	kind := res.Header.Get("Content-Type")
	if res.StatusCode < 300 {
		c.saw(op, "<")
		c.check(op, "<", pointer+"/responses/"+status, kind, documented.Content, answer)
	}
	c.mu.Lock()
	lost := c.lose > 0
	if lost {
		c.lose--
	}
	c.mu.Unlock()
	if lost {
		panic(http.ErrAbortHandler)
	}
	for name, values := range res.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(res.StatusCode)
	_, _ = w.Write(answer) // the test has what it wants or says so
}

// find returns the operation that a request is for.
func (c *contract) find(r *http.Request) (string, *operationDoc) {
	is := strings.Split(r.URL.Path, "/")
	best, fixed := "", -1
	for path, operations := range c.doc.Paths {
		segments := strings.Split(path, "/")
		if _, ok := operations[strings.ToLower(r.Method)]; !ok || len(segments) != len(is) {
			continue
		}
		n := 0
		for i, s := range segments {
			if s == is[i] {
				n++
			} else if !strings.HasPrefix(s, "{") {
				n = -1
				break
			}
		}
		if n > fixed {
			best, fixed = path, n
		}
	}
	if fixed < 0 {
		return "", nil
	}
	op := c.doc.Paths[best][strings.ToLower(r.Method)]
	return best, &op
}

func escape(s string) string {
	return strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(s)
}

func (c *contract) saw(op *operationDoc, member string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen[op.ID] == nil {
		c.seen[op.ID] = map[string]bool{}
	}
	c.seen[op.ID][member] = true
}

// parameters holds that the request carries no query parameter that is not documented.
func (c *contract) parameters(r *http.Request, op *operationDoc) {
	for _, p := range op.Parameters {
		if p.In == "query" && r.URL.Query().Has(p.Name) || p.In == "header" && r.Header.Get(p.Name) != "" {
			c.saw(op, p.Name)
		}
	}
	for name := range r.URL.Query() {
		if !slices.ContainsFunc(op.Parameters, func(p struct {
			Name string `json:"name"`
			In   string `json:"in"`
		}) bool {
			return p.In == "query" && p.Name == name
		}) {
			c.t.Errorf("%s has no parameter %s", op.ID, name)
		}
	}
}

// check holds a body against its schema.
func (c *contract) check(op *operationDoc, direction, pointer, kind string, content map[string]json.RawMessage, body []byte) {
	c.saw(op, direction+"body")
	kind, _, _ = strings.Cut(kind, ";")
	if len(content) == 0 {
		if len(body) != 0 {
			c.t.Errorf("%s: a body that is not in the document: %.100s", op.ID, body)
		}
		return
	}
	media, ok := content[kind]
	if !ok {
		c.t.Errorf("%s: a body of type %q, which is not in the document", op.ID, kind)
		return
	}
	if kind != "application/json" || !strings.Contains(string(media), `"schema"`) {
		return // bytes, or lines
	}
	schema, err := c.compiler.Compile(pointer + "/content/" + escape(kind) + "/schema")
	if err != nil {
		c.t.Errorf("%s: %v", op.ID, err)
		return
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err == nil {
		err = schema.Validate(value)
	}
	if err != nil {
		c.t.Errorf("%s: %v\n%.300s", op.ID, err, body)
		return
	}
	if members, ok := value.(map[string]any); ok {
		for name := range members {
			c.saw(op, direction+name)
		}
	}
}

// TestSDKKeepsTheContract does everything that the SDK for services can do, while every request and answer is
// held against the OpenAPI document; and holds that there is no operation, header or parameter that the SDK
// cannot do. The live stream alone is for tools: it has no end that could be held against a schema.
func TestSDKKeepsTheContract(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		s := startWith(t, testSource, database...)
		c, base := newContract(t, s, s.urls.Service)
		service, err := client.NewService(client.ServiceOptions{BaseURL: base, Certificate: s.pair("client"), RootCAs: s.authority()})
		if err != nil {
			t.Fatal(err)
		}
		defer service.Close()
		ctx, payment := t.Context(), service.For("payment")
		ok := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		refused := func(err error, want client.Slug) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Errorf("%v instead of %s", err, want)
			}
		}
		customer, err := payment.CreateCustomer(ctx)
		ok(err)
		accounts := payment.Records(customer, "bank_account")
		first, err := accounts.Put(ctx, "rent", map[string]string{"holder": "Grace Hopper", "iban": "GB33BUKB20201555555555"}, client.IfNew())
		ok(err)
		_, err = accounts.Put(ctx, "rent", map[string]string{"holder": "Grace M. Hopper", "iban": "GB33BUKB20201555555555"}, client.IfMatch(first.ETag))
		ok(err)
		second, err := accounts.Patch(ctx, "rent", map[string]any{"holder": "Grace Murray Hopper"}, client.IfMatch(`"2"`))
		ok(err)
		_, err = accounts.Get(ctx, "rent")
		ok(err)
		_, err = accounts.RevealVersion(ctx, "rent", 0, "iban")
		ok(err)
		_, err = accounts.Versions(ctx, "rent")
		ok(err)
		_, err = accounts.List(ctx, 10, "a")
		ok(err)
		_, err = payment.Lookup(ctx, "bank_account", "iban", "GB33BUKB20201555555555")
		ok(err)
		results, err := payment.Read(ctx, client.Read{Customer: customer, Collection: "bank_account", Key: "rent", Reveal: []string{"iban"}},
			client.Read{Customer: customer, Collection: "bank_account", Key: "none"})
		ok(err)
		ok(results[0].Err)
		refused(results[1].Err, client.ErrRecordNotFound)
		ok(accounts.Delete(ctx, "rent", client.IfMatch(second.ETag)))

		token, err := payment.TokeniseSame(ctx, customer, client.CardToken, "5500005555555559")
		ok(err)
		_, _, err = payment.Detokenise(ctx, token)
		ok(err)
		ok(payment.DeleteToken(ctx, token))
		_, _, err = payment.Detokenise(ctx, token)
		refused(err, client.ErrNoSuchToken)

		// A document is streamed, and sent again from its beginning when its answer was lost.
		scan := make([]byte, 3<<20)
		rand.Read(scan)
		show := service.For("show-to-customer").Blobs(customer, "profile")
		c.lose = 1
		blob, err := show.Put(ctx, "scan", bytes.NewReader(scan), client.IfNew())
		ok(err)
		content, err := show.Get(ctx, "scan")
		ok(err)
		read, err := io.ReadAll(content)
		ok(err)
		ok(content.Close())
		if !bytes.Equal(read, scan) || blob.Size != int64(len(scan)) || content.Size != blob.Size || content.ETag != blob.ETag {
			t.Errorf("%d bytes came back, %+v %+v", len(read), blob, content.Blob)
		}
		_, err = show.Put(ctx, "scan", bytes.NewReader(nil))
		refused(err, client.ErrPreconditionNeeded)
		_, err = show.Put(ctx, "scan", io.MultiReader(strings.NewReader("not "), strings.NewReader("seekable")), client.IfMatch(blob.ETag))
		ok(err)
		_, err = service.For("curiosity").Blobs(customer, "profile").Get(ctx, "scan")
		refused(err, client.ErrPurposeNotAllowed)
		ok(show.Delete(ctx, "scan", client.IfMatch("*")))
		_, err = show.Get(ctx, "scan")
		refused(err, client.ErrBlobNotFound)

		suffix := strings.ToLower(rand.Text()[:8])
		sealing, mac, signing := payment.Key("column-"+suffix), payment.Key("hooks-"+suffix), payment.Key("receipts-"+suffix)
		ok(errors.Join(sealing.Create(ctx, client.KeyForEncryption), mac.Create(ctx, client.KeyForMAC), signing.Create(ctx, client.KeyForSigning)))
		message := []byte("a column")
		one, err := sealing.Encrypt(ctx, message, "row/1")
		ok(err)
		many, err := sealing.EncryptBatch(ctx, client.Message{Data: message, Context: "row/2"}, client.Message{})
		ok(err)
		if v, err := sealing.CompromiseVersion(ctx, 1); err != nil || v != 2 {
			t.Error(v, err)
		}
		rewrapped, err := sealing.RewrapBatch(ctx, client.Sealed{Ciphertext: many[0], Context: "row/2"}, client.Sealed{Ciphertext: many[1]}, client.Sealed{Ciphertext: one})
		ok(err)
		refused(rewrapped[2].Err, client.ErrDoesNotOpen)
		one, err = sealing.Rewrap(ctx, one, "row/1")
		ok(err)
		_, err = sealing.DestroyVersion(ctx, 2)
		refused(err, client.ErrKeyInUse)
		_, err = sealing.DestroyVersion(ctx, 1)
		ok(err)
		_, err = sealing.DestroyVersion(ctx, 1)
		refused(err, client.ErrNoSuchKeyVersion)
		opened, err := sealing.DecryptBatch(ctx, client.Sealed{Ciphertext: rewrapped[0].Ciphertext, Context: "row/2"}, client.Sealed{Ciphertext: rewrapped[1].Ciphertext},
			client.Sealed{Ciphertext: many[0], Context: "row/2"})
		ok(err)
		if !bytes.Equal(opened[0].Plaintext, message) || opened[1].Err != nil || len(opened[1].Plaintext) != 0 {
			t.Errorf("%+v", opened)
		}
		refused(opened[2].Err, client.ErrDoesNotOpen)
		for context, text := range map[string]string{"row/1": one, "": rewrapped[1].Ciphertext} {
			_, err = sealing.Decrypt(ctx, text, context)
			ok(err)
		}
		sums, err := mac.MACBatch(ctx, client.Message{Data: message, Context: "hook"})
		ok(err)
		_, err = mac.MAC(ctx, message, "hook")
		ok(err)
		if good, err := mac.VerifyMAC(ctx, message, "hook", sums[0]); err != nil || !good {
			t.Error(good, err)
		}
		signatures, err := signing.SignBatch(ctx, client.Message{Data: message, Context: "receipt"})
		ok(err)
		_, err = signing.Sign(ctx, message, "receipt")
		ok(err)
		if good, err := signing.Verify(ctx, message, "receipt", signatures[0]); err != nil || !good {
			t.Error(good, err)
		}
		_, err = signing.Rotate(ctx)
		ok(err)
		versions, err := signing.Versions(ctx)
		ok(err)
		if len(versions) != 2 {
			t.Error(versions)
		}

		terms := client.PaymentTerms{Amount: "49.90", Currency: "EUR", Payee: "Example Shop", Account: "GB33BUKB20201555555555"}
		payer := mustPerson(t, s)
		asked, err := payment.AskPayment(ctx, payer.id, terms)
		ok(err)
		if state, err := payment.Payment(ctx, asked.ID); err != nil || state.Status != client.PaymentAsked || state.PaymentTerms != terms {
			t.Error(state, err)
		}
		_, err = payment.VerifyPayment(ctx, asked.ID, payer.id, terms)
		refused(err, client.ErrPaymentVoid)
		ok(payer.pay(ctx, s, asked.ID, terms))
		if done, err := payment.VerifyPayment(ctx, asked.ID, payer.id, terms); err != nil || done.Status != client.PaymentUsed {
			t.Error(done, err)
		}

		event := client.Event{Action: "payments.transfer.create", Outcome: client.Granted, Customer: payer.id, Resource: "transfer 1", Reason: "asked-for",
			OnBehalfOf: &client.OnBehalfOf{Kind: "staff", ID: "anna"}, Transaction: "contract-1", OccurredAt: time.Now(),
			Fields: map[string]any{"amount": "49.90", "iban": "DE02120300000000202051"}}
		c.lose = 1
		alone, err := payment.RecordEvent(ctx, event)
		if err != nil || !alone.Repeated {
			t.Errorf("an event whose first answer was lost: %+v, %v", alone, err)
		}
		event.Action = "payments.transfer.invent"
		_, err = payment.RecordEvent(ctx, event)
		refused(err, "invalid-event")
		event.Action = "payments.transfer.create"
		together, err := payment.RecordEvents(ctx, event, event)
		if err != nil || together[0].Err != nil || together[1].Err != nil {
			t.Errorf("%+v, %v", together, err)
		}
		everything := client.EventQuery{Actor: "spiffe://strongroom.localhost/dev", OnBehalfOf: "staff:anna", Customer: payer.id, Device: "none",
			Action: "payments.*", Outcome: client.Granted, Resource: "transfer 1", Address: "127.0.0.1", Country: "GB", Request: "none",
			Transaction: "contract-1", Reason: "asked", From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour), Since: 3600}
		if page, err := payment.SearchEvents(ctx, everything, 10, ""); err != nil || len(page.Events) != 0 {
			t.Error(page, err) // no event is of that device
		}
		refused(payment.SaveSearch(ctx, "everything", everything), "invalid-search") // addresses are personal
		everything.Address = ""
		ok(payment.SaveSearch(ctx, "everything", everything))
		mine := client.EventQuery{Transaction: "contract-1"}
		ok(payment.SaveSearch(ctx, "mine", mine))
		saved, err := payment.SavedSearches(ctx)
		if err != nil || len(saved) != 2 || saved[1].Name != "mine" || saved[1].Query != mine {
			t.Error(saved, err)
		}
		eventually(t, "the events are found", func() error {
			page, err := payment.RunSearch(ctx, "mine", false, 0, "")
			if err == nil && len(page.Events) != 3 {
				err = fmt.Errorf("%d events", len(page.Events))
			}
			return err
		})
		page, err := payment.RunSearch(ctx, "mine", true, 2, "")
		if err != nil || len(page.Events) != 2 || page.Events[0].Personal["iban"] == "" || page.Next == "" {
			t.Error(page, err)
		}
		if page, err = payment.RevealEvents(ctx, mine, 2, page.Next); err != nil || len(page.Events) != 1 || page.Events[0].ID != alone.Event {
			t.Error(page, err)
		}
		ok(payment.DeleteSearch(ctx, "everything"))

		// The erasure, asked for twice because its answer was lost, is done once; others can check it.
		c.lose = 1
		erasure, err := payment.Erase(ctx, customer, "asked to be forgotten, case 4711")
		ok(err)
		receipt, err := payment.Receipt(ctx, customer)
		ok(err)
		if receipt.Statement != erasure.Receipt.Statement {
			t.Errorf("%s\ninstead of %s", receipt.Statement, erasure.Receipt.Statement)
		}
		_, err = payment.Erase(ctx, customer, "once more")
		refused(err, client.ErrCustomerErased)
		text, err := json.Marshal(receipt)
		ok(err)
		file := filepath.Join(t.TempDir(), "receipt.json")
		ok(os.WriteFile(file, text, 0o600))
		if r := must(t, "vault", "check-receipt", file); !strings.Contains(r.stdout, customer) {
			t.Error(r)
		}
		must(t, "audit", "verify", "--data", s.data)

		c.kept("stream-trail")
	})
}
