package sms

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"strongroom/internal/clock"
	"strongroom/internal/id"
	"strongroom/internal/secret"
)

// VonageOptions configure a Vonage.
type VonageOptions struct {
	// Application is the application's id, and Key its RSA private key in PEM.
	Application string
	Key         secret.Value
	// Signature is the account's signature secret, with which Vonage signs its reports, at least
	// 32 bytes; empty means that none are asked for.
	Signature secret.Value
	// From is a number or an alphanumeric sender.
	From string
	// Callback is the https address for reports.
	Callback string
	// URL is Vonage's address; "" means https://api.nexmo.com.
	URL     string
	Timeout time.Duration  // of one request; 0 means 5 s
	Roots   *x509.CertPool // nil means the host's
	Clock   clock.Clock
}

// Vonage is a Sender and a Reporter over Vonage's Messages API, version 1: requests carry a token that
// the application's key signs (RS256), and reports one that the signature secret signs (HS256), with the
// SHA-256 of the body in it.
type Vonage struct {
	o      VonageOptions
	url    string
	signer jose.Signer
	client *http.Client
}

// NewVonage returns a Vonage, or says what is wrong with its options.
func NewVonage(o VonageOptions) (*Vonage, error) {
	if o.URL == "" {
		o.URL = "https://api.nexmo.com"
	}
	u, err := endpoint(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if n := o.Signature.Len(); n > 0 && n < 32 {
		return nil, errors.New("sms: Vonage's signature secret must have at least 32 bytes (RFC 7518 section 3.2); set a longer one in Vonage's dashboard")
	}
	key, err := rsaKey(o.Key)
	if err != nil || o.Application == "" || o.From == "" {
		return nil, errors.New("sms: Vonage needs an application id, its private key in PEM and a sender")
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("sms: Vonage: %w", err)
	}
	return &Vonage{o: o, signer: signer, client: HTTPClient(o.Timeout, o.Roots), url: u.JoinPath("v1", "messages").String()}, nil
}

// rsaKey reads a private key in PKCS #8 or PKCS #1.
func rsaKey(text secret.Value) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(text.Reveal())
	if block == nil {
		return nil, errors.New("no PEM")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("no private key")
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("no RSA key")
	}
	return key, nil
}

// tokenLife is how long the token of one request is good.
const tokenLife = time.Minute

// Send implements Sender.
func (v *Vonage) Send(ctx context.Context, m Message) error {
	now := v.o.Clock.Now()
	token, err := jwt.Signed(v.signer).Claims(map[string]any{
		"application_id": v.o.Application, "iat": now.Unix(), "exp": now.Add(tokenLife).Unix(), "jti": id.New("jwt"),
	}).Serialize()
	if err != nil {
		return fmt.Errorf("sms: signing Vonage's token: %w", err)
	}
	content := map[string]string{
		"message_type": "text", "channel": "sms", "from": v.o.From, "to": strings.TrimPrefix(m.To, "+"),
		"text": m.Text, "client_ref": m.ID,
	}
	if v.o.Callback != "" && v.o.Signature.Len() > 0 {
		content["webhook_url"], content["webhook_version"] = v.o.Callback, "v1"
	}
	body, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("sms: encoding message %s: %w", m.ID, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, v.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("sms: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Authorization", "Bearer "+token)
	status, _, err := ask(v.client, r)
	if err != nil {
		return err
	}
	return verdict(status, "")
}

// Receipt implements Reporter.
func (v *Vonage) Receipt(r *http.Request, body []byte) (Receipt, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if v.o.Signature.Len() == 0 || !strings.EqualFold(scheme, "Bearer") || len(token) > 4096 {
		return Receipt{}, ErrReceipt
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		return Receipt{}, ErrReceipt
	}
	var claims struct {
		Issuer  string `json:"iss"`
		Issued  int64  `json:"iat"`
		Payload string `json:"payload_hash"`
	}
	if err := parsed.Claims(v.o.Signature.Reveal(), &claims); err != nil {
		return Receipt{}, ErrReceipt
	}
	now, issued := v.o.Clock.Now(), time.Unix(claims.Issued, 0)
	sum := sha256.Sum256(body)
	if claims.Issuer != "Vonage" || now.Sub(issued) > receiptAge || issued.Sub(now) > receiptAge ||
		subtle.ConstantTimeCompare([]byte(strings.ToLower(claims.Payload)), []byte(hex.EncodeToString(sum[:]))) != 1 {
		return Receipt{}, ErrReceipt
	}
	var in struct {
		Status string `json:"status"`
		Ref    string `json:"client_ref"`
		Error  struct {
			Title string `json:"title"`
		} `json:"error"`
	}
	if err := json.Unmarshal(body, &in); err != nil || in.Ref == "" {
		return Receipt{}, ErrReceipt
	}
	out := Receipt{Message: in.Ref, State: Underway, Code: receiptCode(in.Error.Title)}
	switch in.Status {
	case "delivered", "read":
		out.State = Delivered
	case "rejected", "undeliverable":
		out.State = Failed
	}
	return out, nil
}
