package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// DeviceKey is the P-256 key that a device holds and never gives away. Apps implement it over their
// platform's keystore. Implementations must be safe for concurrent use.
type DeviceKey interface {
	// Public returns the public half.
	Public() *ecdsa.PublicKey
	// SignES256 signs the SHA-256 of message and returns the 64 bytes R and S (RFC 7518
	// section 3.4), not their ASN.1 form.
	SignES256(message []byte) ([]byte, error)
}

// NewDeviceKey returns a fresh key that lives in memory, and no longer than the process does.
func NewDeviceKey() (DeviceKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("strongroom: device key: %w", err)
	}
	return &memoryKey{k}, nil
}

type memoryKey struct{ private *ecdsa.PrivateKey }

func (k *memoryKey) Public() *ecdsa.PublicKey { return &k.private.PublicKey }

func (k *memoryKey) SignES256(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, k.private, digest[:])
	if err != nil {
		return nil, err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signature, nil
}

// Format hides the key from every verb of fmt.
func (k *memoryKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// Proof returns a DPoP proof (RFC 9449 section 4.2) for a request that something other than a
// Client sends, such as a download. The query of uri does not count. The nonce is the newest that
// the server gave in a DPoP-Nonce header; access is empty for a request without a token.
func Proof(key DeviceKey, method, uri, nonce string, access Secret) (string, error) {
	p, err := newProver(key)
	if err != nil {
		return "", err
	}
	uri, _, _ = strings.Cut(uri, "#")
	uri, _, _ = strings.Cut(uri, "?")
	return p.prove(method, uri, nonce, access, time.Now())
}

// prover signs proofs with one device's key.
type prover struct{ signer jose.Signer }

func newProver(key DeviceKey) (*prover, error) {
	if key == nil || key.Public() == nil || key.Public().Curve != elliptic.P256() {
		return nil, errors.New("strongroom: Key is needed: a P-256 key, for example of NewDeviceKey")
	}
	options := &jose.SignerOptions{EmbedJWK: true}
	signer, err := jose.NewSigner(jose.SigningKey{
		Algorithm: jose.ES256,
		Key:       opaque{key, jose.JSONWebKey{Key: key.Public()}},
	}, options.WithType("dpop+jwt"))
	if err != nil {
		return nil, fmt.Errorf("strongroom: device key: %w", err)
	}
	return &prover{signer}, nil
}

type claims struct {
	ID     string `json:"jti"`
	Method string `json:"htm"`
	Target string `json:"htu"`
	Issued int64  `json:"iat"` // seconds
	Token  string `json:"ath,omitempty"`
	Nonce  string `json:"nonce,omitempty"`
}

func (p *prover) prove(method, target, nonce string, access Secret, issued time.Time) (string, error) {
	c := claims{ID: rand.Text(), Method: method, Target: target, Issued: issued.Unix(), Nonce: nonce}
	if !access.IsZero() {
		sum := sha256.Sum256([]byte(access.Reveal()))
		c.Token = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("proof: %w", err)
	}
	signed, err := p.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("the device's key did not sign: %w", err)
	}
	return signed.CompactSerialize()
}

// opaque is a DeviceKey as go-jose wants it.
type opaque struct {
	key DeviceKey
	jwk jose.JSONWebKey
}

func (o opaque) Public() *jose.JSONWebKey { return &o.jwk }

func (o opaque) Algs() []jose.SignatureAlgorithm { return []jose.SignatureAlgorithm{jose.ES256} }

func (o opaque) SignPayload(payload []byte, _ jose.SignatureAlgorithm) ([]byte, error) {
	signature, err := o.key.SignES256(payload)
	if err == nil && len(signature) != 64 {
		err = fmt.Errorf("its signature has %d bytes; 64 are expected, R and S", len(signature))
	}
	return signature, err
}
