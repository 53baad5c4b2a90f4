package dpop

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"strongroom/internal/clock"
)

// testKeys is an Authenticator with two versions of a key.
type testKeys struct{}

func (testKeys) MAC(parts ...[]byte) ([]byte, uint32) {
	m, _ := testKeys{}.MACVersion(2, parts...)
	return m, 2
}

func (testKeys) MACVersion(version uint32, parts ...[]byte) ([]byte, error) {
	if version < 1 || version > 2 {
		return nil, errors.New("no such version")
	}
	h := hmac.New(sha256.New, []byte{byte(version)})
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		h.Write(p)
	}
	return h.Sum(nil), nil
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newVerifier(t testing.TB, o Options) (*Verifier, *clock.Manual) {
	t.Helper()
	clk := clock.NewManual(start)
	o.Clock, o.Nonces = clk, NewNonces(testKeys{})
	v, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v, clk
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// draft is a proof before it is signed.
type draft struct {
	header map[string]any
	claims map[string]any
}

func publicJWK(k *ecdsa.PrivateKey) map[string]any {
	raw, err := k.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	return map[string]any{"kty": "EC", "crv": "P-256", "x": enc(raw[1:33]), "y": enc(raw[33:])}
}

var jti atomic.Int64

func newDraft(v *Verifier, k *ecdsa.PrivateKey, method, target string) *draft {
	return &draft{
		header: map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": publicJWK(k)},
		claims: map[string]any{
			"jti": fmt.Sprint("proof-", jti.Add(1)), "htm": method, "htu": target,
			"iat": v.clock.Now().Unix(), "nonce": v.Nonce(),
		},
	}
}

func segment(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func signInput(k *ecdsa.PrivateKey, input string) string {
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
	if err != nil {
		panic(err)
	}
	var raw [64]byte
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(raw[:])
}

func (d *draft) sign(k *ecdsa.PrivateKey) string {
	return signInput(k, segment(d.header)+"."+segment(d.claims))
}

func request(method, url, proof string) *http.Request {
	r := httptest.NewRequest(method, url, nil)
	if proof != "" {
		r.Header.Set("DPoP", proof)
	}
	return r
}

func TestRFC9449_4_3_Refusals(t *testing.T) {
	key := newKey(t)
	const url, token = "https://app.example/v1/session", "sat_token"
	rows := []struct {
		name   string
		change func(v *Verifier, d *draft)
		raw    func(proof string) string
		repeat bool
		token  string
		want   string // "" is accepted
	}{
		{name: "good"},
		{name: "good with token", token: token, change: func(_ *Verifier, d *draft) { d.claims["ath"] = TokenHash(token) }},
		{name: "fraction of a second", change: func(v *Verifier, d *draft) { d.claims["iat"] = float64(v.clock.Now().Unix()) + 0.25 }},
		{name: "unknown header member", change: func(_ *Verifier, d *draft) { d.header["kid"] = "1" }},
		{name: "query in htu", change: func(_ *Verifier, d *draft) { d.claims["htu"] = url + "?a=b#c" }},
		{name: "default port and case", change: func(_ *Verifier, d *draft) { d.claims["htu"] = "HTTPS://APP.example:443/v1/session" }},
		{name: "escaped unreserved", change: func(_ *Verifier, d *draft) { d.claims["htu"] = "https://app.example/v1/%73ession" }},
		{name: "ten seconds of future", change: func(v *Verifier, d *draft) { d.claims["iat"] = v.clock.Now().Add(10 * time.Second).Unix() }},

		{name: "missing", raw: func(string) string { return "" }, want: "missing"},
		{name: "two headers", repeat: true, want: "several"},
		{name: "too long", raw: func(p string) string { return p + strings.Repeat("A", MaxSize) }, want: "size"},
		{name: "one segment", raw: func(string) string { return "abc" }, want: "form"},
		{name: "four segments", raw: func(p string) string { return p + ".AA" }, want: "form"},
		{name: "padding", raw: func(p string) string { return p + "==" }, want: "form"},
		{name: "line break", raw: func(p string) string { return p[:len(p)-4] + "\n" + p[len(p)-4:] }, want: "form"},
		{name: "short signature", raw: func(p string) string { return p[:len(p)-4] }, want: "form"},
		{name: "JSON serialization", raw: func(string) string { return `{"payload":"","signatures":[]}` }, want: "form"},
		{name: "header twice a member", raw: func(p string) string {
			h := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"dpop+jwt","typ":"dpop+jwt"}`))
			return h + p[strings.IndexByte(p, '.'):]
		}, want: "form"},
		{name: "typ absent", change: func(_ *Verifier, d *draft) { delete(d.header, "typ") }, want: "type"},
		{name: "typ JWT", change: func(_ *Verifier, d *draft) { d.header["typ"] = "JWT" }, want: "type"},
		{name: "alg none", change: func(_ *Verifier, d *draft) { d.header["alg"] = "none" }, want: "algorithm"},
		{name: "alg HS256", change: func(_ *Verifier, d *draft) { d.header["alg"] = "HS256" }, want: "algorithm"},
		{name: "alg RS256", change: func(_ *Verifier, d *draft) { d.header["alg"] = "RS256" }, want: "algorithm"},
		{name: "alg ES384", change: func(_ *Verifier, d *draft) { d.header["alg"] = "ES384" }, want: "algorithm"},
		{name: "crit", change: func(_ *Verifier, d *draft) { d.header["crit"] = []string{"b64"} }, want: "form"},
		{name: "b64", change: func(_ *Verifier, d *draft) { d.header["b64"] = false }, want: "form"},
		{name: "no key", change: func(_ *Verifier, d *draft) { delete(d.header, "jwk") }, want: "key"},
		{name: "key is null", change: func(_ *Verifier, d *draft) { d.header["jwk"] = nil }, want: "key"},
		{name: "private key", change: func(_ *Verifier, d *draft) {
			d.header["jwk"].(map[string]any)["d"] = base64.RawURLEncoding.EncodeToString(make([]byte, 32))
		}, want: "key"},
		{name: "symmetric key", change: func(_ *Verifier, d *draft) { d.header["jwk"] = map[string]any{"kty": "oct", "k": "AAAA"} }, want: "key"},
		{name: "RSA key", change: func(_ *Verifier, d *draft) {
			k, _ := rsa.GenerateKey(rand.Reader, 2048)
			b, _ := jose.JSONWebKey{Key: &k.PublicKey}.MarshalJSON()
			d.header["jwk"] = json.RawMessage(b)
		}, want: "key"},
		{name: "P-384 key", change: func(_ *Verifier, d *draft) {
			k, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			b, _ := jose.JSONWebKey{Key: &k.PublicKey}.MarshalJSON()
			d.header["jwk"] = json.RawMessage(b)
		}, want: "key"},
		{name: "point off the curve", change: func(_ *Verifier, d *draft) {
			x := base64.RawURLEncoding.EncodeToString(append(make([]byte, 31), 5))
			d.header["jwk"] = map[string]any{"kty": "EC", "crv": "P-256", "x": x, "y": x}
		}, want: "key"},
		{name: "another's key", change: func(_ *Verifier, d *draft) { d.header["jwk"] = publicJWK(newKey(t)) }, want: "signature"},
		{name: "signature of zeros", raw: func(p string) string {
			return p[:strings.LastIndexByte(p, '.')+1] + strings.Repeat("A", 86)
		}, want: "signature"},
		{name: "body changed", raw: func(p string) string {
			s := strings.Split(p, ".")
			b, _ := base64.RawURLEncoding.DecodeString(s[1])
			b = bytes.Replace(b, []byte("proof-"), []byte("qroof-"), 1)
			return s[0] + "." + base64.RawURLEncoding.EncodeToString(b) + "." + s[2]
		}, want: "signature"},
		{name: "other method", change: func(_ *Verifier, d *draft) { d.claims["htm"] = "POST" }, want: "method"},
		{name: "method in lower case", change: func(_ *Verifier, d *draft) { d.claims["htm"] = "get" }, want: "method"},
		{name: "other path", change: func(_ *Verifier, d *draft) { d.claims["htu"] = "https://app.example/v1/devices" }, want: "target"},
		{name: "other host", change: func(_ *Verifier, d *draft) { d.claims["htu"] = "https://evil.example/v1/session" }, want: "target"},
		{name: "other port", change: func(_ *Verifier, d *draft) { d.claims["htu"] = "https://app.example:444/v1/session" }, want: "target"},
		{name: "plain http", change: func(_ *Verifier, d *draft) { d.claims["htu"] = "http://app.example/v1/session" }, want: "target"},
		{name: "user in htu", change: func(_ *Verifier, d *draft) { d.claims["htu"] = "https://a@app.example/v1/session" }, want: "target"},
		{name: "escaped slash", change: func(_ *Verifier, d *draft) { d.claims["htu"] = "https://app.example/v1%2Fsession" }, want: "target"},
		{name: "no htu", change: func(_ *Verifier, d *draft) { delete(d.claims, "htu") }, want: "target"},
		{name: "no iat", change: func(_ *Verifier, d *draft) { delete(d.claims, "iat") }, want: "time"},
		{name: "stale", change: func(v *Verifier, d *draft) { d.claims["iat"] = v.clock.Now().Add(-61 * time.Second).Unix() }, want: "time"},
		{name: "future", change: func(v *Verifier, d *draft) { d.claims["iat"] = v.clock.Now().Add(11 * time.Second).Unix() }, want: "time"},
		{name: "negative", change: func(_ *Verifier, d *draft) { d.claims["iat"] = -1 }, want: "time"},
		{name: "iat is text", change: func(v *Verifier, d *draft) { d.claims["iat"] = fmt.Sprint(v.clock.Now().Unix()) }, want: "time"},
		{name: "no jti", change: func(_ *Verifier, d *draft) { delete(d.claims, "jti") }, want: "id"},
		{name: "long jti", change: func(_ *Verifier, d *draft) { d.claims["jti"] = strings.Repeat("x", 257) }, want: "id"},
		{name: "no nonce", change: func(_ *Verifier, d *draft) { delete(d.claims, "nonce") }, want: "nonce"},
		{name: "invented nonce", change: func(_ *Verifier, d *draft) { d.claims["nonce"] = "abc" }, want: "nonce"},
		{name: "forged nonce", change: func(_ *Verifier, d *draft) {
			d.claims["nonce"] = base64.RawURLEncoding.EncodeToString(make([]byte, 28))
		}, want: "nonce"},
		{name: "stale nonce", change: func(v *Verifier, d *draft) {
			d.claims["nonce"] = v.nonces.Make(v.clock.Now().Add(-NonceLifetime - time.Second))
		}, want: "nonce"},
		{name: "token without ath", token: token, want: "token"},
		{name: "other token's ath", token: token, change: func(_ *Verifier, d *draft) { d.claims["ath"] = TokenHash("sat_other") }, want: "token"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			v, _ := newVerifier(t, Options{})
			d := newDraft(v, key, "GET", url)
			if row.change != nil {
				row.change(v, d)
			}
			proof := d.sign(key)
			if row.raw != nil {
				proof = row.raw(proof)
			}
			r := request("GET", url+"?reveal=all", proof)
			if row.repeat {
				r.Header.Add("DPoP", proof)
			}
			got, err := v.Verify(r, row.token)
			if row.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if want, _ := Thumbprint(&key.PublicKey); got.Thumbprint != want {
					t.Errorf("thumbprint %q, want %q", got.Thumbprint, want)
				}
				return
			}
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Reason != row.want {
				t.Fatalf("error %v, want reason %q", err, row.want)
			}
			if got.Thumbprint != "" {
				t.Error("a refused proof names a key")
			}
		})
	}
}

func TestRFC9449_11_1_ReplayIsRefused(t *testing.T) {
	v, clk := newVerifier(t, Options{})
	key := newKey(t)
	proof := newDraft(v, key, "GET", "https://app.example/x").sign(key)
	if _, err := v.Verify(request("GET", "https://app.example/x", proof), ""); err != nil {
		t.Fatal(err)
	}
	for range 200 { // as long as its iat would let it in, and beyond
		if _, err := v.Verify(request("GET", "https://app.example/x", proof), ""); err == nil {
			t.Fatal("replayed proof accepted")
		}
		clk.Advance(time.Second)
	}
}

func TestReplayAmongParallelCallersHasOneWinner(t *testing.T) {
	v, _ := newVerifier(t, Options{})
	key := newKey(t)
	proof := newDraft(v, key, "GET", "https://app.example/x").sign(key)
	var accepted atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := v.Verify(request("GET", "https://app.example/x", proof), ""); err == nil {
				accepted.Add(1)
			}
		})
	}
	wg.Wait()
	if accepted.Load() != 1 {
		t.Fatalf("%d callers got in with one proof", accepted.Load())
	}
}

// A proof dated in the future lives longest; it must be remembered through every change of generation.
func TestReplayIsRememberedAcrossGenerations(t *testing.T) {
	for offset := -60; offset <= 10; offset += 5 {
		for advance := 0; advance <= 75; advance += 5 {
			v, clk := newVerifier(t, Options{})
			s := v.seen[Stranger]
			digest := sha256.Sum256([]byte("x"))
			s.add(sha256.Sum256([]byte("starts the first generation")), "", clk.Now(), clk.Now())
			clk.Advance(67 * time.Second)
			issued := clk.Now().Add(time.Duration(offset) * time.Second)
			if s.add(digest, "", clk.Now(), issued.Add(Window)) != seenNew {
				t.Fatal("new proof is known")
			}
			clk.Advance(time.Duration(advance) * time.Second)
			if issued.Before(clk.Now().Add(-Window)) {
				break // refused for its time
			}
			if s.add(digest, "", clk.Now(), issued.Add(Window)) != seenBefore {
				t.Fatalf("offset %d advance %d: proof forgotten while it could be accepted", offset, advance)
			}
		}
	}
}

func TestMemoryIsBoundedAndFailsClosed(t *testing.T) {
	clk := clock.NewManual(start)
	s := newSeen(64 * 10)
	full := 0
	for i := range 5000 {
		d := sha256.Sum256(fmt.Append(nil, i))
		if s.add(d, fmt.Sprint(i), clk.Now(), clk.Now().Add(Window)) == seenFull {
			full++
		}
	}
	if full < 5000-640 {
		t.Fatalf("only %d of 5000 refused with room for 640", full)
	}
	clk.Advance(Window + time.Second)
	if d := sha256.Sum256([]byte("later")); s.add(d, "", clk.Now(), clk.Now().Add(Window)) != seenNew {
		t.Fatal("room is not made for new proofs when the old are past")
	}
}

// Whoever has keys without number makes proofs without number. They are refused once they would take
// what is others': customers in their sessions notice nothing, nor do strangers from elsewhere.
func TestFloodOfOneSourceLeavesRoomForAllOthers(t *testing.T) {
	v, clk := newVerifier(t, Options{Remember: 25_600})
	spend := func(kind Kind, source string) error {
		p := Proof{digest: sha256.Sum256(fmt.Append(nil, jti.Add(1))), until: clk.Now().Add(Window)}
		return v.Spend(p, kind, source)
	}
	for _, kind := range []Kind{Stranger, Session} {
		refused := 0
		for range 60_000 {
			if err := spend(kind, "flood"); errors.Is(err, ErrBusy) {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if refused < 20_000 {
			t.Errorf("kind %d: only %d refused", kind, refused)
		}
		for n := range 1000 {
			if err := spend(kind, fmt.Sprint("other", n)); err != nil {
				t.Fatalf("kind %d: source %d is refused: %v", kind, n, err)
			}
		}
		clk.Advance(2*generation + time.Second)
		if err := spend(kind, "flood"); err != nil {
			t.Errorf("kind %d: still refused when all is past: %v", kind, err)
		}
	}
	// From however many sources strangers come, sessions go on.
	for n := range 100_000 {
		if err := spend(Stranger, fmt.Sprint(n)); err != nil && !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	}
	if err := spend(Stranger, "one more"); !errors.Is(err, ErrBusy) {
		t.Errorf("the strangers' memory has no end: %v", err)
	}
	key := newKey(t)
	d := newDraft(v, key, "GET", "https://app.example/x")
	d.claims["ath"] = TokenHash("sat_x")
	if _, err := v.Verify(request("GET", "https://app.example/x", d.sign(key)), "sat_x"); err != nil {
		t.Errorf("a session is refused: %v", err)
	}
}

// A proof that was accepted by a process that has ended is remembered by nobody. Its nonce gives it away.
func TestReplayAfterARestartIsRefused(t *testing.T) {
	for _, started := range []time.Duration{0, 300 * time.Millisecond} {
		clk := clock.NewManual(start.Add(started))
		process := func() *Verifier {
			v, err := New(Options{Clock: clk, Nonces: NewNonces(testKeys{})})
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		verify := func(v *Verifier, proof string) error {
			_, err := v.Verify(request("GET", "https://app.example/x", proof), "")
			return err
		}
		key := newKey(t)
		before := process()
		clk.Advance(400 * time.Millisecond)
		proof := newDraft(before, key, "GET", "https://app.example/x").sign(key)
		if err := verify(before, proof); err != nil {
			t.Fatalf("in its first second a process refuses its own nonces: %v", err)
		}
		clk.Advance(2 * time.Second)
		after := process()
		if err := verify(after, proof); !errors.Is(err, ErrNonce) {
			t.Errorf("replay after a restart: %v", err)
		}
		again := newDraft(after, key, "GET", "https://app.example/x")
		if err := verify(after, again.sign(key)); err != nil {
			t.Errorf("with the new nonce: %v", err)
		}
		// A clock that was set back since must not shut everybody out.
		clk.Advance(-10 * time.Minute)
		if err := verify(after, newDraft(after, key, "GET", "https://app.example/x").sign(key)); err != nil {
			t.Errorf("after the clock was set back: %v", err)
		}
	}
}

func TestNonceIsGoodAtEveryReplicaForFiveMinutes(t *testing.T) {
	a, b := NewNonces(testKeys{}), NewNonces(testKeys{})
	n := a.Make(start)
	for after, want := range map[time.Duration]bool{
		-31 * time.Second: false, -time.Second: true, 0: true,
		5 * time.Minute: true, 5*time.Minute + time.Second: false,
	} {
		if got := b.Check(n, start.Add(after)); got != want {
			t.Errorf("after %v: %v, want %v", after, got, want)
		}
	}
}

func TestOriginsBehindAProxy(t *testing.T) {
	v, _ := newVerifier(t, Options{Origins: []string{"https://APP.example:443"}})
	key := newKey(t)
	ok := newDraft(v, key, "GET", "https://app.example/x").sign(key)
	if _, err := v.Verify(request("GET", "http://10.0.0.7:8080/x", ok), ""); err != nil {
		t.Error(err)
	}
	inner := newDraft(v, key, "GET", "https://10.0.0.7:8080/x").sign(key)
	if _, err := v.Verify(request("GET", "https://10.0.0.7:8080/x", inner), ""); !errors.Is(err, refuse("target")) {
		t.Errorf("an address that is no origin: %v", err)
	}
	for _, bad := range []string{"app.example", "https://app.example/path", "ftp://app.example", "https://u@app.example", "https://a.example?x"} {
		if _, err := New(Options{Nonces: NewNonces(testKeys{}), Origins: []string{bad}}); err == nil {
			t.Errorf("origin %q accepted", bad)
		}
	}
}

// The example of RFC 9449 section 4.1 (its key) and of section 7 (its token hash).
func TestPublishedVectors(t *testing.T) {
	header := segment(json.RawMessage(`{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC",
	 "x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
	 "y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA","crv":"P-256"}}`))
	k, err := parseHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	if want := "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"; k.thumbprint != want {
		t.Errorf("thumbprint %s, want %s", k.thumbprint, want)
	}
	if got, want := TokenHash("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"), "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"; got != want {
		t.Errorf("ath %s, want %s", got, want)
	}
}

// go-jose, an independent signer, makes proofs that are accepted.
func TestGoJoseProofs(t *testing.T) {
	v, _ := newVerifier(t, Options{})
	key := newKey(t)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key},
		(&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		body, _ := json.Marshal(newDraft(v, key, "POST", "https://app.example/v1/logins").claims)
		jws, err := signer.Sign(body)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(request("POST", "https://app.example/v1/logins", proof), ""); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeyCacheIsBounded(t *testing.T) {
	v, _ := newVerifier(t, Options{})
	for i := range 30_000 {
		v.keys.put(fmt.Sprint("header", i), deviceKey{})
	}
	v.keys.put(strings.Repeat("x", maxCachedHeader+1), deviceKey{})
	n := 0
	for i := range v.keys.shards {
		n += len(v.keys.shards[i].young) + len(v.keys.shards[i].old)
	}
	if n > 16*2*keysPerShard {
		t.Fatalf("%d keys kept", n)
	}
}

func FuzzVerify(f *testing.F) {
	v, _ := newVerifier(f, Options{})
	key := newKey(f)
	d := newDraft(v, key, "GET", "https://app.example/x")
	f.Add(d.sign(key), "")
	f.Add(segment(d.header)+"."+segment(d.claims)+".", "tok")
	f.Add("..", "")
	f.Add("e30.e30."+strings.Repeat("A", 86), "")
	f.Add(segment(map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": map[string]any{"kty": "EC", "crv": "P-256", "x": strings.Repeat("A", 43), "y": strings.Repeat("A", 43)}})+".e30.AA", "")
	good := d.sign(key)
	f.Fuzz(func(t *testing.T, proof, token string) {
		p, err := v.Verify(request("GET", "https://app.example/x", proof), token)
		// Without the private key nobody makes an accepted proof but the one that was signed above.
		if err == nil && strings.Split(proof, ".")[1] != strings.Split(good, ".")[1] {
			want, _ := Thumbprint(&key.PublicKey)
			if p.Thumbprint == want {
				t.Fatalf("forged: %q", proof)
			}
		}
		var refusal *Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("error %T", err)
		}
	})
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"https://a/", "HTTPS://A:443", "https://a/%7e%2f%zz%", "http://[::1]:80/x?y#z", "//a", "https://a:/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := parseTarget(s)
		if !ok {
			return
		}
		b, ok := parseTarget(a.origin + a.path)
		if ok && a != b {
			t.Fatalf("normal form is not stable: %+v %+v", a, b)
		}
	})
}

func BenchmarkRawVerify(b *testing.B) {
	key := newKey(b)
	sum := sha256.Sum256([]byte("x"))
	r, s, _ := ecdsa.Sign(rand.Reader, key, sum[:])
	var raw [64]byte
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	for b.Loop() {
		if !ecdsa.Verify(&key.PublicKey, sum[:], new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])) {
			b.Fatal("bad")
		}
	}
}

// BenchmarkVerify shows a whole proof beside one raw P-256 verification: ratio is time over time.
func BenchmarkVerify(b *testing.B) {
	for _, warm := range []bool{true, false} {
		name := map[bool]string{true: "known-key", false: "new-key"}[warm]
		b.Run(name, func(b *testing.B) {
			v, clk := newVerifier(b, Options{Remember: 1 << 30})
			key := newKey(b)
			const n = 512
			requests := make([]*http.Request, n)
			for i := range requests {
				d := newDraft(v, key, "GET", "https://app.example/v1/session")
				d.claims["ath"] = TokenHash("sat_x")
				requests[i] = request("GET", "https://app.example/v1/session", d.sign(key))
			}
			sum := sha256.Sum256([]byte("x"))
			r, s, _ := ecdsa.Sign(rand.Reader, key, sum[:])
			var whole, raw time.Duration
			_ = clk
			i := 0
			for b.Loop() {
				if i%n == 0 {
					v.seen[Session] = newSeen(1 << 30)
				}
				if !warm {
					v.keys = keyCache{seed: v.keys.seed}
				}
				t0 := time.Now()
				if _, err := v.Verify(requests[i%n], "sat_x"); err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				ecdsa.Verify(&key.PublicKey, sum[:], r, s)
				raw += time.Since(t1)
				whole += t1.Sub(t0)
				i++
			}
			b.ReportMetric(float64(whole.Nanoseconds())/float64(i), "verify-ns")
			b.ReportMetric(float64(raw.Nanoseconds())/float64(i), "raw-ns")
			b.ReportMetric(float64(whole)/float64(raw), "ratio")
		})
	}
}
