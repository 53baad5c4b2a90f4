package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// What a server may refuse a service with, for errors.Is.
const (
	ErrNotPermitted         = Slug("not-permitted")          // no policy permits it for this purpose
	ErrNoSuchCustomer       = Slug("customer-not-found")     // there is no such customer
	ErrCustomerErased       = Slug("customer-erased")        // there was one
	ErrIdempotencyKeyReused = Slug("idempotency-key-reused") // the key came with another request before
	ErrDoesNotOpen          = Slug("does-not-open")          // the ciphertext is of another key or context, or was altered
	ErrNoSuchKey            = Slug("key-not-found")          // there is no such named key
	ErrKeyExists            = Slug("key-exists")             // there is one already
	ErrNoSuchKeyVersion     = Slug("key-version-not-found")  // or it was destroyed
	ErrKeyInUse             = Slug("key-in-use")             // the newest version cannot be destroyed
	ErrNoSuchToken          = Slug("token-not-found")        // there is no such token
)

// ServiceOptions configure a Service. BaseURL and Certificate are needed.
type ServiceOptions struct {
	// BaseURL is the origin of the service listener: https://host[:port].
	BaseURL string
	// Certificate is what the service proves itself with; tls.LoadX509KeyPair reads it from files.
	Certificate tls.Certificate
	// GetCertificate, when it is there, is asked for the certificate at each connection instead, for
	// certificates that are renewed while the service runs.
	GetCertificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	// RootCAs are the authorities that the server's chain may end in; nil means the system's.
	RootCAs *x509.CertPool
	// Pins are public keys of which the server's chain must hold one, as Pin returns them; none pins none.
	Pins []string
	// HTTPTimeout, Retries, MaxRetryWait, UserAgent, Log, Observe and Dial are as in Options.
	HTTPTimeout  time.Duration
	Retries      int
	MaxRetryWait time.Duration
	UserAgent    string
	Log          *slog.Logger
	Observe      func(Exchange)
	Dial         func(ctx context.Context, network, address string) (net.Conn, error)
}

// Service talks to Strongroom for one of its operator's own services, over mutual TLS. Every request that
// changes something carries an idempotency key, so it is sent again when its answer was lost, and still
// done once. It is safe for concurrent use.
type Service struct{ client *Client }

// NewService returns a Service. It does not connect.
func NewService(o ServiceOptions) (*Service, error) {
	if len(o.Certificate.Certificate) == 0 && o.GetCertificate == nil {
		return nil, errors.New("strongroom: Certificate is needed: it says which service calls")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	origin, err := parseOrigin(o.BaseURL)
	if err != nil {
		return nil, err
	}
	pins := make(map[string]bool, len(o.Pins))
	for _, p := range o.Pins {
		if !strings.HasPrefix(p, pinPrefix) {
			return nil, errors.New("strongroom: a pin is what Pin returns")
		}
		pins[p] = true
	}
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: o.RootCAs, GetClientCertificate: o.GetCertificate}
	if o.GetCertificate == nil {
		config.Certificates = []tls.Certificate{o.Certificate}
	}
	if len(pins) > 0 {
		config.VerifyConnection = func(cs tls.ConnectionState) error { return checkPins(pins, cs) }
	}
	c := &Client{
		origin: origin,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: dial, TLSClientConfig: config, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
				IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 64, DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		timeout: o.HTTPTimeout, retries: max(o.Retries, 0), maxWait: o.MaxRetryWait, userAgent: o.UserAgent,
		log: o.Log, observe: o.Observe, now: time.Now, sleep: sleep,
	}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if o.Retries == 0 {
		c.retries = defaultRetries
	}
	if c.maxWait <= 0 {
		c.maxWait = defaultMaxWait
	}
	if c.userAgent == "" {
		c.userAgent = "strongroom-go"
	}
	if c.observe == nil {
		c.observe = func(Exchange) {}
	}
	return &Service{c}, nil
}

// Close closes idle connections.
func (s *Service) Close() { s.client.Close() }

// For returns the service's operations for one purpose, a slug such as "payment". Policies decide on it,
// and the trail keeps it.
func (s *Service) For(purpose string) Errand { return Errand{s.client, purpose} }

// Errand is what a service does for one purpose.
type Errand struct {
	client  *Client
	purpose string
}

type onceKey struct{}

// WithIdempotencyKey has the one changing call that is made with the context carry this key instead of a
// random one, so that a service that was restarted can send it again. Keys are 8 to 128 printable ASCII
// characters without spaces.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, onceKey{}, key)
}

func idempotencyKey(ctx context.Context) string {
	if key, ok := ctx.Value(onceKey{}).(string); ok {
		return key
	}
	return rand.Text()
}

// ask sends a request that changes nothing.
func (e Errand) ask(ctx context.Context, method string, body, out any, query url.Values, segments ...string) (answer, error) {
	p, err := path(segments...)
	if err != nil {
		return answer{}, err
	}
	return e.client.call(ctx, request{method: method, path: p, query: query, body: body, repeatable: true,
		header: http.Header{"Strongroom-Purpose": {e.purpose}}}, out)
}

// change sends a request that changes something, once.
func (e Errand) change(ctx context.Context, method string, header http.Header, body, out any, segments ...string) (answer, error) {
	p, err := path(segments...)
	if err != nil {
		return answer{}, err
	}
	if header == nil {
		header = http.Header{}
	}
	header.Set("Strongroom-Purpose", e.purpose)
	header.Set("Idempotency-Key", idempotencyKey(ctx))
	return e.client.call(ctx, request{method: method, path: p, header: header, body: body, repeatable: true}, out)
}

// CreateCustomer makes a customer who is known without the app, and returns the pseudonym.
func (e Errand) CreateCustomer(ctx context.Context) (string, error) {
	var out struct {
		Customer string `json:"customer"`
	}
	_, err := e.change(ctx, http.MethodPost, nil, nil, &out, "customers")
	return out.Customer, err
}

// Records returns a customer's records of a kind.
func (e Errand) Records(customer, collection string) ServiceRecords {
	return ServiceRecords{e, customer, collection}
}

// ServiceRecords is one kind of a customer's records.
type ServiceRecords struct {
	errand               Errand
	customer, collection string
}

func (r ServiceRecords) at(more ...string) []string {
	return append([]string{"customers", r.customer, "records", r.collection}, more...)
}

func one(a answer, body recordAnswer, err error) (Record, error) {
	if err != nil {
		return Record{}, err
	}
	return body.record(a.header.Get("ETag"))
}

// Put writes a record and returns it masked. To replace one, IfMatch is needed.
func (r ServiceRecords) Put(ctx context.Context, key string, fields any, conditions ...Condition) (Record, error) {
	var body recordAnswer
	a, err := r.errand.change(ctx, http.MethodPut, header(conditions), fields, &body, r.at(key)...)
	return one(a, body, err)
}

// Patch changes some fields of a record and returns it masked. Changes is a struct or map that marshals to a
// JSON merge patch (RFC 7396): null takes a field away. Without IfMatch it is made to any version.
func (r ServiceRecords) Patch(ctx context.Context, key string, changes any, conditions ...Condition) (Record, error) {
	h := header(conditions)
	h.Set("Content-Type", "application/merge-patch+json")
	var body recordAnswer
	a, err := r.errand.change(ctx, http.MethodPatch, h, changes, &body, r.at(key)...)
	return one(a, body, err)
}

// Get returns a record, masked.
func (r ServiceRecords) Get(ctx context.Context, key string) (Record, error) {
	return r.get(ctx, key, nil)
}

// Reveal returns a record whole, or only the named fields of it whole.
func (r ServiceRecords) Reveal(ctx context.Context, key string, fields ...string) (Record, error) {
	return r.get(ctx, key, url.Values{"reveal": {revealed(fields)}})
}

func revealed(fields []string) string {
	if len(fields) == 0 {
		return "all"
	}
	return strings.Join(fields, ",")
}

// RevealVersion is Reveal of an older version that the collection keeps.
func (r ServiceRecords) RevealVersion(ctx context.Context, key string, version int64, fields ...string) (Record, error) {
	return r.get(ctx, key, url.Values{"version": {strconv.FormatInt(version, 10)}, "reveal": {revealed(fields)}})
}

func (r ServiceRecords) get(ctx context.Context, key string, query url.Values) (Record, error) {
	var body recordAnswer
	a, err := r.errand.ask(ctx, http.MethodGet, nil, &body, query, r.at(key)...)
	return one(a, body, err)
}

// RecordVersion is a version of a record, without what it holds.
type RecordVersion struct {
	Version   int64     `json:"version"`
	UpdatedAt time.Time `json:"updated_at"`
	Current   bool      `json:"current"`
}

// Versions returns the versions of a record that are kept, newest first.
func (r ServiceRecords) Versions(ctx context.Context, key string) ([]RecordVersion, error) {
	var out struct {
		Versions []RecordVersion `json:"versions"`
	}
	_, err := r.errand.ask(ctx, http.MethodGet, nil, &out, nil, r.at(key, "versions")...)
	return out.Versions, err
}

// List returns up to limit records, masked, that come after the key after; 0 leaves the limit to the server.
func (r ServiceRecords) List(ctx context.Context, limit int, after string) (Page, error) {
	query := url.Values{}
	if limit > 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	if after != "" {
		query.Set("after", after)
	}
	var out struct {
		Records []recordAnswer `json:"records"`
		Next    string         `json:"next"`
	}
	if _, err := r.errand.ask(ctx, http.MethodGet, nil, &out, query, r.at()...); err != nil {
		return Page{}, err
	}
	page := Page{Next: out.Next}
	for _, a := range out.Records {
		record, err := a.record("")
		if err != nil {
			return Page{}, err
		}
		page.Records = append(page.Records, record)
	}
	return page, nil
}

// Delete deletes a record with its older versions.
func (r ServiceRecords) Delete(ctx context.Context, key string, conditions ...Condition) error {
	_, err := r.errand.change(ctx, http.MethodDelete, header(conditions), nil, nil, r.at(key)...)
	return err
}

// Read asks for one record of a batch.
type Read struct {
	Customer   string   `json:"customer"`
	Collection string   `json:"collection"`
	Key        string   `json:"key"`
	Reveal     []string `json:"reveal,omitempty"` // "all" alone, or the fields to show whole
}

// ReadResult is what came of a Read.
type ReadResult struct {
	Record Record
	Err    error // a *Problem; nil when there is a record
}

// Read reads up to 100 records of any customers; the results are in the order of the reads.
func (e Errand) Read(ctx context.Context, reads ...Read) ([]ReadResult, error) {
	var out struct {
		Results []struct {
			Record  *recordAnswer `json:"record"`
			Problem *itemProblem  `json:"problem"`
		} `json:"results"`
	}
	if _, err := e.ask(ctx, http.MethodPost, map[string]any{"reads": reads}, &out, nil, "records", "read"); err != nil {
		return nil, err
	}
	if len(out.Results) != len(reads) {
		return nil, errors.New("strongroom: the answer has another number of results")
	}
	results := make([]ReadResult, len(reads))
	for i, r := range out.Results {
		switch {
		case r.Record != nil:
			results[i].Record, results[i].Err = r.Record.record("")
		case r.Problem != nil:
			results[i].Err = r.Problem.problem()
		default:
			results[i].Err = errors.New("strongroom: a result is empty")
		}
	}
	return results, nil
}

// Match is a record that Lookup found.
type Match struct {
	Customer string `json:"customer"`
	Key      string `json:"key"`
}

// Lookup returns the records whose indexed field has exactly this value, at most 16.
func (e Errand) Lookup(ctx context.Context, collection, field, value string) ([]Match, error) {
	var out struct {
		Matches []Match `json:"matches"`
	}
	_, err := e.ask(ctx, http.MethodPost, map[string]string{"collection": collection, "field": field, "value": value}, &out, nil, "lookup")
	return out.Matches, err
}

// The kinds of token.
const (
	CardToken = "card" // as many digits as the card number, the same last four, and a wrong check digit
	TextToken = "text"
)

// Tokenise returns a random token for a value of a customer.
func (e Errand) Tokenise(ctx context.Context, customer, kind, value string) (string, error) {
	return e.tokenise(ctx, customer, kind, value, false)
}

// TokeniseSame returns the same token for equal values of a customer and the errand's purpose.
func (e Errand) TokeniseSame(ctx context.Context, customer, kind, value string) (string, error) {
	return e.tokenise(ctx, customer, kind, value, true)
}

func (e Errand) tokenise(ctx context.Context, customer, kind, value string, same bool) (string, error) {
	var out struct {
		Token string `json:"token"`
	}
	body := map[string]any{"kind": kind, "value": value, "deterministic": same}
	_, err := e.change(ctx, http.MethodPost, nil, body, &out, "customers", customer, "tokens")
	return out.Token, err
}

// Detokenise returns what a token stands for, and whose it is.
func (e Errand) Detokenise(ctx context.Context, token string) (value, customer string, err error) {
	var out struct {
		Value    string `json:"value"`
		Customer string `json:"customer"`
	}
	_, err = e.ask(ctx, http.MethodPost, map[string]string{"token": token}, &out, nil, "detokenise")
	return out.Value, out.Customer, err
}

// The algorithms of named keys.
const (
	KeyForEncryption = "AES-256-GCM"
	KeyForMAC        = "HMAC-SHA-256"
	KeyForSigning    = "Ed25519"
)

// Key returns the named key.
func (e Errand) Key(name string) NamedKey { return NamedKey{e, name} }

// NamedKey is a key that never leaves the server. The context of an operation says what the message belongs
// to, and must be the same when it is opened or verified.
type NamedKey struct {
	errand Errand
	name   string
}

type keyBody struct {
	Plaintext  *[]byte `json:"plaintext,omitempty"`
	Message    *[]byte `json:"message,omitempty"`
	Context    string  `json:"context,omitempty"`
	Ciphertext string  `json:"ciphertext,omitempty"`
	MAC        string  `json:"mac,omitempty"`
	Signature  string  `json:"signature,omitempty"`
	Valid      bool    `json:"valid,omitempty"`
}

// bytesOf keeps an empty message in the body, where nil would leave it out.
func bytesOf(b []byte) *[]byte {
	if b == nil {
		b = []byte{}
	}
	return &b
}

func (k NamedKey) do(ctx context.Context, verb string, in keyBody) (out keyBody, err error) {
	_, err = k.errand.ask(ctx, http.MethodPost, in, &out, nil, "keys", k.name, verb)
	return out, err
}

// Create makes the key, for one algorithm.
func (k NamedKey) Create(ctx context.Context, algorithm string) error {
	_, err := k.errand.change(ctx, http.MethodPost, nil, map[string]string{"algorithm": algorithm}, nil, "keys", k.name)
	return err
}

// Rotate makes the next version of the key and returns its number.
func (k NamedKey) Rotate(ctx context.Context) (version uint32, err error) {
	var out struct {
		Version uint32 `json:"version"`
	}
	_, err = k.errand.change(ctx, http.MethodPost, nil, nil, &out, "keys", k.name, "rotate")
	return out.Version, err
}

// KeyVersion is a version of a named key.
type KeyVersion struct {
	Version   uint32    `json:"version"`
	State     string    `json:"state"`
	MadeAt    time.Time `json:"made_at"`
	PublicKey []byte    `json:"public_key"` // Ed25519, of a key that signs
}

// Versions returns the versions of the key, newest first.
func (k NamedKey) Versions(ctx context.Context) ([]KeyVersion, error) {
	var out struct {
		Versions []KeyVersion `json:"versions"`
	}
	_, err := k.errand.ask(ctx, http.MethodGet, nil, &out, nil, "keys", k.name)
	return out.Versions, err
}

// Encrypt returns a ciphertext.
func (k NamedKey) Encrypt(ctx context.Context, plaintext []byte, context string) (string, error) {
	out, err := k.do(ctx, "encrypt", keyBody{Plaintext: bytesOf(plaintext), Context: context})
	return out.Ciphertext, err
}

// Decrypt returns the plaintext.
func (k NamedKey) Decrypt(ctx context.Context, ciphertext, context string) ([]byte, error) {
	out, err := k.do(ctx, "decrypt", keyBody{Ciphertext: ciphertext, Context: context})
	if err != nil || out.Plaintext == nil {
		return nil, err
	}
	return *out.Plaintext, nil
}

// Rewrap returns the ciphertext under the newest version of the key.
func (k NamedKey) Rewrap(ctx context.Context, ciphertext, context string) (string, error) {
	out, err := k.do(ctx, "rewrap", keyBody{Ciphertext: ciphertext, Context: context})
	return out.Ciphertext, err
}

// MAC returns the message's authentication code.
func (k NamedKey) MAC(ctx context.Context, message []byte, context string) (string, error) {
	out, err := k.do(ctx, "mac", keyBody{Message: bytesOf(message), Context: context})
	return out.MAC, err
}

// VerifyMAC reports whether MAC returned mac for the message.
func (k NamedKey) VerifyMAC(ctx context.Context, message []byte, context, mac string) (bool, error) {
	out, err := k.do(ctx, "verify-mac", keyBody{Message: bytesOf(message), Context: context, MAC: mac})
	return out.Valid, err
}

// Sign returns the message's signature.
func (k NamedKey) Sign(ctx context.Context, message []byte, context string) (string, error) {
	out, err := k.do(ctx, "sign", keyBody{Message: bytesOf(message), Context: context})
	return out.Signature, err
}

// Verify reports whether Sign returned the signature for the message.
func (k NamedKey) Verify(ctx context.Context, message []byte, context, signature string) (bool, error) {
	out, err := k.do(ctx, "verify", keyBody{Message: bytesOf(message), Context: context, Signature: signature})
	return out.Valid, err
}
