// Package dpop checks that a request was made by the holder of a device's private key (RFC 9449).
//
// The promise: Verify accepts a request only when exactly one well-formed proof came with it, signed
// with ES256 by the public key the proof itself carries, made for this method and this address, fresh
// by the server's own nonce and by its time, bound to the access token that came along, and never
// accepted before by this process. Everything else is a Refusal, which says why for the log and
// nothing about any account. Verify is Examine and then Spend: what can be examined is examined, and
// only then is the proof remembered.
//
// No source of proofs can have those of others refused. Proofs of sessions and proofs without one are
// remembered apart, and once a memory is half full each source has a small share of it.
//
// Keys and thumbprints are go-jose's. The compact serialization has one algorithm and one shape here,
// so it is taken apart directly: the general parser reads the header several times, which costs half
// as much again as the signature itself.
package dpop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"hash/maphash"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"strongroom/internal/clock"
)

// MaxSize is the length of the longest proof that is looked at, in bytes.
const MaxSize = 4096

// How far a proof's iat may lie from the server's time: Window in the past, Future in the future. FAPI
// 2.0 asks to accept 10 seconds of future, and more of it would only let proofs be stored up.
const (
	Window = 60 * time.Second
	Future = 10 * time.Second
)

// maxID is the length of the longest jti, in bytes.
const maxID = 256

// Refusal is the error of a proof that is not accepted.
type Refusal struct {
	// Reason is a stable slug for logs and events: missing, several, size, form, type, algorithm,
	// key, signature, method, target, time, id, replayed, token, nonce, busy.
	Reason string
}

// Error returns the reason.
func (r *Refusal) Error() string { return "dpop: proof refused: " + r.Reason }

// Is makes errors.Is compare reasons.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Reason == r.Reason
}

// Refusals that callers tell apart from the rest.
var (
	// ErrNonce asks for a proof with a fresh nonce (RFC 9449 section 8): offer one.
	ErrNonce = &Refusal{"nonce"}
	// ErrBusy means that no more proofs of this kind and source can be remembered for now, so none
	// can be accepted.
	ErrBusy = &Refusal{"busy"}
)

func refuse(reason string) error { return &Refusal{reason} }

// Options configure a Verifier.
type Options struct {
	Clock clock.Clock
	// Nonces makes and checks the server's nonces. It is needed: every proof must carry one.
	Nonces *Nonces
	// Origins are the addresses under which clients reach this server, for example
	// "https://app.example.com", when a proxy stands before it. Empty means https and the request's
	// own Host.
	Origins []string
	// Remember is how many proofs of sessions are remembered against replay; 0 means 400,000. A
	// quarter as many without a session are remembered beside them. Each is remembered for as long as
	// it could be accepted again, 70 seconds at most, and takes about 40 bytes.
	Remember int
}

// Verifier checks proofs. It is safe for concurrent use.
type Verifier struct {
	clock   clock.Clock
	nonces  *Nonces
	origins []string
	began   time.Time // no nonce from before is good
	seen    [2]*seen  // by kind
	keys    keyCache
}

// Kind says in which memory a proof is spent.
type Kind int

const (
	// Stranger is the kind of proofs that show a key and nothing more. Anybody can make them.
	Stranger Kind = iota
	// Session is the kind of proofs by the key of a session that was found.
	Session
)

// New returns a Verifier. It fails when an origin is not of the form scheme://host[:port].
func New(o Options) (*Verifier, error) {
	v := &Verifier{clock: o.Clock, nonces: o.Nonces, keys: keyCache{seed: maphash.MakeSeed()}}
	if v.clock == nil {
		v.clock = clock.System
	}
	if v.nonces == nil {
		return nil, fmt.Errorf("dpop: no nonces")
	}
	// Nonces tell whole seconds, so those of this process begin with the next one.
	v.began = v.clock.Now().Truncate(time.Second)
	if v.began.Before(v.clock.Now()) {
		v.began = v.began.Add(time.Second)
	}
	for _, s := range o.Origins {
		t, ok := parseTarget(s)
		if !ok || t.path != "/" || strings.ContainsAny(s, "?#") {
			return nil, fmt.Errorf("dpop: origin %q is not of the form https://host[:port]", s)
		}
		v.origins = append(v.origins, t.origin)
	}
	capacity := o.Remember
	if capacity <= 0 {
		capacity = 400_000
	}
	v.seen = [2]*seen{Stranger: newSeen(capacity / 4), Session: newSeen(capacity)}
	return v, nil
}

// Proof is what an accepted proof says.
type Proof struct {
	// Thumbprint is the SHA-256 JWK thumbprint (RFC 7638) of the key, in base64url.
	Thumbprint string

	digest [32]byte
	until  time.Time // it could be accepted again
}

// Spent returns by what an accepted proof is known, and until when it could be accepted again: for those who
// remember it beyond this process.
func (p Proof) Spent() (digest []byte, until time.Time) { return p.digest[:], p.until }

// claims are the members of a proof's payload (RFC 9449 section 4.2).
type claims struct {
	ID     string          `json:"jti"`
	Method string          `json:"htm"`
	Target string          `json:"htu"`
	Issued json.RawMessage `json:"iat"`
	Token  string          `json:"ath"`
	Nonce  string          `json:"nonce"`
}

// Verify examines and spends the proof in r's DPoP header, as one of the kind that accessToken tells:
// it is empty for requests that carry none. A *Refusal is the only error.
func (v *Verifier) Verify(r *http.Request, accessToken string) (Proof, error) {
	p, err := v.Examine(r, accessToken)
	if err != nil {
		return Proof{}, err
	}
	kind := Stranger
	if accessToken != "" {
		kind = Session
	}
	if err := v.Spend(p, kind, ""); err != nil {
		return Proof{}, err
	}
	return p, nil
}

// Spend accepts an examined proof, once. Nothing may be done for a request before its proof is spent.
// The source is whose share of the memory it takes: a network or a session.
func (v *Verifier) Spend(p Proof, kind Kind, source string) error {
	switch v.seen[kind].add(p.digest, source, v.clock.Now(), p.until) {
	case seenBefore:
		return refuse("replayed")
	case seenFull:
		return ErrBusy
	}
	return nil
}

// Examine makes all checks of RFC 9449 section 4.3 on the proof in r's DPoP header but one: that it
// was not accepted before, which is for Spend. A *Refusal is the only error.
func (v *Verifier) Examine(r *http.Request, accessToken string) (Proof, error) {
	headers := r.Header["Dpop"]
	switch {
	case len(headers) == 0 || headers[0] == "":
		return Proof{}, refuse("missing")
	case len(headers) > 1:
		return Proof{}, refuse("several")
	case len(headers[0]) > MaxSize:
		return Proof{}, refuse("size")
	}
	head, rest, ok1 := strings.Cut(headers[0], ".")
	body, sig, ok2 := strings.Cut(rest, ".")
	if !ok1 || !ok2 {
		return Proof{}, refuse("form")
	}

	// Everything cheap comes before the signature.
	key, cached := v.keys.get(head)
	if !cached {
		var err error
		if key, err = parseHeader(head); err != nil {
			return Proof{}, err
		}
	}
	var rs [64]byte
	if n, err := decode(rs[:], sig); err != nil || n != len(rs) {
		return Proof{}, refuse("form")
	}
	payload, err := strict.DecodeString(body)
	if err != nil {
		return Proof{}, refuse("form")
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return Proof{}, refuse("form")
	}
	if c.ID == "" || len(c.ID) > maxID {
		return Proof{}, refuse("id")
	}
	if c.Method != r.Method {
		return Proof{}, refuse("method")
	}
	if !v.sameTarget(c.Target, r) {
		return Proof{}, refuse("target")
	}
	now := v.clock.Now()
	issued, ok := seconds(c.Issued)
	if !ok || issued.Before(now.Add(-Window)) || issued.After(now.Add(Future)) {
		// A nonce that is not ours comes first: a client whose clock is wrong is told so with the
		// answer's Date, one that merely has no nonce yet is told to fetch one.
		if ok && !v.fresh(c.Nonce, now) {
			return Proof{}, ErrNonce
		}
		return Proof{}, refuse("time")
	}
	if !v.fresh(c.Nonce, now) {
		return Proof{}, ErrNonce
	}
	if accessToken != "" && subtle.ConstantTimeCompare([]byte(c.Token), []byte(TokenHash(accessToken))) != 1 {
		return Proof{}, refuse("token")
	}

	digest := sha256.Sum256([]byte(headers[0][:len(head)+1+len(body)]))
	if !ecdsa.Verify(key.public, digest[:], new(big.Int).SetBytes(rs[:32]), new(big.Int).SetBytes(rs[32:])) {
		return Proof{}, refuse("signature")
	}

	if !cached {
		v.keys.put(head, key)
	}
	return Proof{key.thumbprint, sha256.Sum256([]byte(key.thumbprint + "\x00" + c.ID)), issued.Add(Window)}, nil
}

// Nonce returns a nonce for the DPoP-Nonce header of an answer.
func (v *Verifier) Nonce() string {
	now := v.clock.Now()
	if now.Before(v.began) {
		now = v.began
	}
	return v.nonces.Make(now)
}

// fresh reports whether a proof with the nonce can be told from a replay. What was accepted before
// this process began is not remembered, and so no nonce from before is good: its client is asked to
// make the proof again. Nonces made at the very beginning are good although they may be from the
// future, should the clock have been set back since.
func (v *Verifier) fresh(nonce string, now time.Time) bool {
	made, ok := v.nonces.read(nonce)
	return ok && !made.Before(v.began) && (inTime(made, now) || made.Equal(v.began) && now.Before(made))
}

// TokenHash returns the ath claim that belongs to an access token (RFC 9449 section 4.2).
func TokenHash(accessToken string) string {
	sum := sha256.Sum256([]byte(accessToken))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// strict refuses padding, line breaks and trailing bits, so that one proof has one spelling.
var strict = base64.RawURLEncoding.Strict()

// decode is strict.Decode into a buffer that must be large enough, without the panic when it is not.
func decode(dst []byte, src string) (int, error) {
	if strict.DecodedLen(len(src)) > len(dst) || strings.ContainsAny(src, "\r\n") {
		return 0, fmt.Errorf("too long")
	}
	return strict.Decode(dst, []byte(src))
}

// seconds reads a NumericDate (RFC 7519 section 2), which may have a fraction.
func seconds(n json.RawMessage) (time.Time, bool) {
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil || !(f >= 0 && f < 1<<40) {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(f * 1000)), true
}

// deviceKey is the public key of a device, with its name.
type deviceKey struct {
	public     *ecdsa.PublicKey
	thumbprint string
}

// header is the JOSE header of a proof. Members that RFC 9449 does not name are ignored, as RFC 7515
// section 4 asks, except those that would change how the signature is understood.
type header struct {
	Type      string          `json:"typ"`
	Algorithm string          `json:"alg"`
	Key       json.RawMessage `json:"jwk"`
	Critical  json.RawMessage `json:"crit"`
	Unencoded json.RawMessage `json:"b64"`
}

// jwk names the members that are looked at before go-jose reads the key.
type jwk struct {
	Type  string          `json:"kty"`
	Curve string          `json:"crv"`
	X     string          `json:"x"`
	Y     string          `json:"y"`
	D     json.RawMessage `json:"d"`
	K     json.RawMessage `json:"k"`
	Priv  json.RawMessage `json:"priv"`
	P     json.RawMessage `json:"p"`
	Q     json.RawMessage `json:"q"`
	X5C   json.RawMessage `json:"x5c"`
}

func parseHeader(encoded string) (deviceKey, error) {
	raw, err := strict.DecodeString(encoded)
	if err != nil {
		return deviceKey{}, refuse("form")
	}
	var h header
	if err := json.Unmarshal(raw, &h); err != nil {
		return deviceKey{}, refuse("form")
	}
	switch {
	case h.Type != "dpop+jwt":
		return deviceKey{}, refuse("type")
	case h.Algorithm != string(jose.ES256):
		return deviceKey{}, refuse("algorithm")
	case h.Critical != nil || h.Unencoded != nil:
		return deviceKey{}, refuse("form")
	}
	var named jwk
	if err := json.Unmarshal(h.Key, &named); err != nil {
		return deviceKey{}, refuse("key")
	}
	private := named.D != nil || named.K != nil || named.Priv != nil || named.P != nil || named.Q != nil
	// A P-256 coordinate is 32 bytes, leading zeros included (RFC 7518 section 6.2.1.2).
	if private || named.X5C != nil || named.Type != "EC" || named.Curve != "P-256" || len(named.X) != 43 || len(named.Y) != 43 {
		return deviceKey{}, refuse("key")
	}
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(h.Key); err != nil || !k.Valid() || !k.IsPublic() {
		return deviceKey{}, refuse("key")
	}
	public, ok := k.Key.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return deviceKey{}, refuse("key")
	}
	sum, err := Thumbprint(public)
	if err != nil {
		return deviceKey{}, refuse("key")
	}
	return deviceKey{public, sum}, nil
}

// Thumbprint returns the SHA-256 thumbprint of a public key (RFC 7638), in base64url.
func Thumbprint(public *ecdsa.PublicKey) (string, error) {
	k := jose.JSONWebKey{Key: public}
	sum, err := k.Thumbprint(sha256CryptoHash)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}
