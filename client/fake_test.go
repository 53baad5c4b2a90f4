package client_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"strongroom/client"
)

// fake speaks the app listener's protocol, proofs and nonces included, over real TLS. It knows one
// customer, whose private code is good and whose one-time codes are all smsCode.
type fake struct {
	*httptest.Server
	authority *x509.Certificate
	pool      *x509.CertPool
	lifetime  time.Duration // of access tokens

	// before may answer a request in the fake's place; then it returns true. It sees requests whose
	// proof was accepted, except for those that raw sees.
	before func(w http.ResponseWriter, r *http.Request) bool
	raw    func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	nonce     string
	seen      map[string]bool // jti
	devices   map[string]*client.Device
	access    map[string]*grant
	refresh   map[string]*grant
	spent     map[string]*grant // refresh tokens that were used
	dead      map[*session]bool
	records   map[string]*stored
	pending   map[string]string // login → private code given
	proofs    []proofClaims
	refreshes int
}

type session struct{ id, device, thumbprint string }

type grant struct {
	session *session
	expires time.Time
}

type stored struct {
	version int64
	fields  map[string]any
}

type proofClaims struct {
	ID     string `json:"jti"`
	Method string `json:"htm"`
	Target string `json:"htu"`
	Issued int64  `json:"iat"`
	Token  string `json:"ath"`
	Nonce  string `json:"nonce"`
}

const (
	smsCode     = "493027"
	privateCode = "tulip-harbour-42"
	phoneNumber = "+447700900123"
)

func newFake() *fake {
	f := &fake{
		lifetime: time.Minute,
		nonce:    "nonce-1",
		seen:     map[string]bool{},
		devices:  map[string]*client.Device{},
		access:   map[string]*grant{},
		refresh:  map[string]*grant{},
		spent:    map[string]*grant{},
		dead:     map[*session]bool{},
		records:  map[string]*stored{},
		pending:  map[string]string{},
	}
	authority, authorityKey := certificate("Fake authority", nil, nil)
	leaf, leafKey := certificate("127.0.0.1", authority, authorityKey)
	f.authority = authority
	f.pool = x509.NewCertPool()
	f.pool.AddCert(authority)
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.EnableHTTP2 = true
	f.TLS = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, authority.Raw}, PrivateKey: leafKey}},
	}
	f.StartTLS()
	return f
}

func certificate(name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
	}
	if parent == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		parent, parentKey = template, key
	} else {
		template.IPAddresses = []net.IP{net.ParseIP(name)}
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		panic(err)
	}
	return cert, key
}

// options are those of an app that knows this server.
func (f *fake) options() client.Options {
	key, err := client.NewDeviceKey()
	if err != nil {
		panic(err)
	}
	return client.Options{
		BaseURL: f.URL,
		RootCAs: f.pool,
		Pins:    []string{client.Pin(f.authority), client.Pin(f.Certificate())},
		Key:     key,
	}
}

func (f *fake) problem(w http.ResponseWriter, status int, slug string, members ...any) {
	m := map[string]any{"type": "urn:strongroom:problem:" + slug, "title": http.StatusText(status), "status": status, "detail": "Detail of " + slug + "."}
	for i := 0; i+1 < len(members); i += 2 {
		m[members[i].(string)] = members[i+1]
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("X-Request-Id", "req_1")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(m)
}

func (f *fake) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

var errNonce = errors.New("nonce")

// prove checks the request's proof as RFC 9449 section 4.3 asks, and returns the key's thumbprint.
func (f *fake) prove(r *http.Request, access string) (string, error) {
	if n := len(r.Header.Values("DPoP")); n != 1 {
		return "", fmt.Errorf("%d proofs", n)
	}
	parsed, err := jose.ParseSignedCompact(r.Header.Get("DPoP"), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return "", err
	}
	h := parsed.Signatures[0].Protected
	if h.ExtraHeaders[jose.HeaderType] != "dpop+jwt" || h.JSONWebKey == nil || !h.JSONWebKey.IsPublic() || h.KeyID != "" {
		return "", errors.New("header")
	}
	payload, err := parsed.Verify(h.JSONWebKey)
	if err != nil {
		return "", err
	}
	var c proofClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		return "", err
	}
	ath := ""
	if access != "" {
		sum := sha256.Sum256([]byte(access))
		ath = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	switch {
	case c.Method != r.Method, c.Target != "https://"+r.Host+r.URL.EscapedPath():
		return "", fmt.Errorf("made for %s %s", c.Method, c.Target)
	case c.Token != ath:
		return "", errors.New("ath")
	case time.Since(time.Unix(c.Issued, 0)).Abs() > time.Minute:
		return "", errors.New("iat")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.Nonce != f.nonce {
		return "", errNonce
	}
	if f.seen[c.ID] {
		return "", errors.New("replayed")
	}
	f.seen[c.ID] = true
	f.proofs = append(f.proofs, c)
	sum, err := h.JSONWebKey.Thumbprint(crypto.SHA256)
	return string(sum), err
}

func (f *fake) setNonce(n string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nonce = n
}

func (f *fake) currentNonce() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nonce
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	if f.raw != nil && f.raw(w, r) {
		return
	}
	access, _ := strings.CutPrefix(r.Header.Get("Authorization"), "DPoP ")
	thumbprint, err := f.prove(r, access)
	if errors.Is(err, errNonce) {
		w.Header().Set("DPoP-Nonce", f.currentNonce())
		w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
		f.problem(w, 401, "use-dpop-nonce")
		return
	}
	if err != nil {
		f.problem(w, 401, "invalid-dpop-proof")
		return
	}
	if f.before != nil && f.before(w, r) {
		return
	}
	var body map[string]any
	if r.ContentLength != 0 {
		d := json.NewDecoder(r.Body)
		d.UseNumber()
		if r.Header.Get("Content-Type") != "application/json" || d.Decode(&body) != nil {
			f.problem(w, 400, "malformed-request")
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	text := func(name string) string { s, _ := body[name].(string); return s }
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	switch route := r.Method + " " + parts[0]; {
	case r.URL.Path == "/v1/registrations":
		f.answer(w, 202, map[string]any{"registration": "reg_1", "expires_in": 300})
		return
	case route == "POST registrations":
		switch {
		case len(text("private_code")) < 8:
			f.problem(w, 422, "weak-private-code")
		case text("code") != smsCode:
			f.problem(w, 401, "registration-failed")
		default:
			d := f.device(thumbprint, text("device_name"), client.DeviceAuthorised)
			f.answer(w, 201, map[string]any{"customer": "cus_1", "device": d.ID})
		}
		return
	case r.URL.Path == "/v1/logins":
		login := fmt.Sprint("log_", len(f.pending)+1)
		f.pending[login] = text("private_code")
		f.answer(w, 202, map[string]any{"login": login, "expires_in": 300})
		return
	case route == "POST logins":
		given := f.pending[parts[1]]
		delete(f.pending, parts[1])
		if given != privateCode || text("code") != smsCode {
			f.problem(w, 401, "login-failed")
			return
		}
		d := f.device(thumbprint, text("device_name"), client.DevicePending)
		if d.Status != client.DeviceAuthorised {
			f.problem(w, 403, "device-pending", "device", d.ID)
			return
		}
		f.grant(w, &session{fmt.Sprint("ses_", len(f.access)), d.ID, thumbprint})
		return
	case r.URL.Path == "/v1/sessions/refresh":
		f.refreshes++
		token := text("refresh_token")
		if g := f.spent[token]; g != nil {
			f.dead[g.session] = true
			f.problem(w, 401, "session-revoked")
			return
		}
		g := f.refresh[token]
		if g == nil || g.session.thumbprint != thumbprint || f.dead[g.session] {
			f.problem(w, 401, "invalid-refresh-token")
			return
		}
		delete(f.refresh, token)
		f.spent[token] = g
		f.grant(w, g.session)
		return
	}
	g := f.access[access]
	switch {
	case g == nil || f.dead[g.session]:
		f.problem(w, 401, "invalid-token")
		return
	case g.session.thumbprint != thumbprint:
		f.problem(w, 401, "invalid-dpop-proof")
		return
	case time.Now().After(g.expires):
		f.problem(w, 401, "token-expired")
		return
	}
	switch r.Method + " " + parts[0] {
	case "GET session":
		f.answer(w, 200, map[string]any{"session": g.session.id, "customer": "cus_1", "device": g.session.device,
			"device_name": "d", "logged_in_at": "2026-01-02T03:04:05Z", "idle_expires_at": "2026-01-02T04:04:05Z", "expires_at": "2026-01-03T03:04:05Z"})
	case "POST logout":
		f.dead[g.session] = true
		w.WriteHeader(204)
	case "GET devices":
		list := []any{}
		for _, d := range f.devices {
			e := *d
			e.Current = d.ID == g.session.device
			list = append(list, e)
		}
		f.answer(w, 200, map[string]any{"devices": list})
	case "POST devices", "DELETE devices":
		for _, d := range f.devices {
			if d.ID == parts[1] {
				d.Status = client.DeviceAuthorised
				if r.Method == "DELETE" {
					d.Status = client.DeviceRevoked
				}
				w.WriteHeader(204)
				return
			}
		}
		f.problem(w, 404, "device-not-found")
	case "GET records", "PUT records", "DELETE records":
		f.record(w, r, parts[1:], body)
	default:
		f.problem(w, 404, "not-found")
	}
}

func (f *fake) device(thumbprint, name string, status client.DeviceStatus) *client.Device {
	d := f.devices[thumbprint]
	if d == nil {
		d = &client.Device{ID: fmt.Sprint("dev_", len(f.devices)+1), Name: name, Status: status}
		f.devices[thumbprint] = d
	}
	return d
}

func (f *fake) grant(w http.ResponseWriter, s *session) {
	access, refresh := rand.Text(), rand.Text()
	g := &grant{s, time.Now().Add(f.lifetime)}
	f.access[access], f.refresh[refresh] = g, g
	f.answer(w, 200, map[string]any{
		"access_token": access, "token_type": "DPoP", "expires_in": int(f.lifetime.Seconds()), "refresh_token": refresh,
		"refresh_expires_in": 3600, "session": s.id, "customer": "cus_1", "device": s.device,
	})
}

func (f *fake) record(w http.ResponseWriter, r *http.Request, parts []string, body map[string]any) {
	if parts[0] != "profile" {
		f.problem(w, 404, "collection-not-found")
		return
	}
	show := func(key string, s *stored, whole bool) map[string]any {
		fields := map[string]any{}
		for k, v := range s.fields {
			if t, ok := v.(string); ok && !whole {
				v = strings.Repeat("•", len(t))
			}
			fields[k] = v
		}
		return map[string]any{"collection": "profile", "key": key, "version": s.version, "fields": fields, "updated_at": "2026-01-02T03:04:05Z"}
	}
	if len(parts) == 1 {
		after, list, next := r.URL.Query().Get("after"), []any{}, ""
		for _, key := range []string{"a", "b", "c", "d", "e"} {
			if s := f.records[key]; s != nil && key > after {
				if len(list) == 2 {
					break
				}
				list = append(list, show(key, s, false))
				next = key
			}
		}
		if len(list) < 2 {
			next = ""
		}
		f.answer(w, 200, map[string]any{"records": list, "next": next})
		return
	}
	key := parts[1]
	s := f.records[key]
	etag := ""
	if s != nil {
		etag = strconv.Quote(fmt.Sprint(s.version))
	}
	match := r.Header.Get("If-Match")
	switch {
	case s == nil && r.Method != "PUT":
		f.problem(w, 404, "record-not-found")
	case match != "" && match != etag, s != nil && r.Header.Get("If-None-Match") == "*":
		f.problem(w, 412, "version-mismatch")
	case r.Method == "DELETE":
		delete(f.records, key)
		w.WriteHeader(204)
	case r.Method == "PUT" && s != nil && match == "":
		f.problem(w, 428, "precondition-required")
	case r.Method == "PUT" && body["iban"] == "bad":
		f.problem(w, 422, "invalid-record", "errors", []any{map[string]any{"field": "iban", "message": "is no IBAN"}})
	case r.Method == "PUT":
		if s == nil {
			s = &stored{}
			f.records[key] = s
		}
		s.version++
		s.fields = body
		w.Header().Set("ETag", strconv.Quote(fmt.Sprint(s.version)))
		f.answer(w, 200, show(key, s, false))
	case r.URL.Query().Has("reveal") && !r.URL.Query().Has("purpose"):
		f.problem(w, 422, "purpose-required")
	default:
		w.Header().Set("ETag", etag)
		f.answer(w, 200, show(key, s, r.URL.Query().Has("reveal")))
	}
}

// loggedIn returns a client with a session, and the fake.
func (f *fake) loggedIn(o client.Options) *client.Client {
	ctx := context.Background()
	c, err := client.New(o)
	if err != nil {
		panic(err)
	}
	r, err := c.Register(ctx, phoneNumber)
	if err != nil {
		panic(err)
	}
	if _, err := r.Complete(ctx, smsCode, privateCode, "phone"); err != nil {
		panic(err)
	}
	l, err := c.Login(ctx, phoneNumber, privateCode)
	if err != nil {
		panic(err)
	}
	if _, err := l.Complete(ctx, smsCode, "phone"); err != nil {
		panic(err)
	}
	return c
}
