package sms

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"strongroom/internal/clock"
	"strongroom/internal/secret"
)

// provider is a server that answers like a provider and keeps the last request.
type provider struct {
	*httptest.Server
	roots  *x509.CertPool
	status int
	answer string
	got    *http.Request
	body   []byte
	calls  int
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{status: http.StatusOK, roots: x509.NewCertPool()}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.calls++
		p.got = r.Clone(context.Background())
		p.body, _ = io.ReadAll(r.Body)
		w.WriteHeader(p.status)
		_, _ = io.WriteString(w, p.answer)
	}))
	t.Cleanup(p.Close)
	p.roots.AddCert(p.Certificate())
	return p
}

// failing runs a sender through answers of its provider.
func failing(t *testing.T, p *provider, s Sender, rows map[string]error) {
	t.Helper()
	for answer, want := range rows {
		status, body, _ := strings.Cut(answer, " ")
		if _, err := fmt.Sscan(status, &p.status); err != nil {
			t.Fatal(err)
		}
		p.answer = body
		err := s.Send(t.Context(), example)
		switch {
		case err == nil:
			t.Errorf("%s: accepted", answer)
		case want == nil && (errors.Is(err, ErrRejected) || errors.Is(err, ErrLater)):
			t.Errorf("%s: %v, want a failure of the gateway", answer, err)
		case want != nil && !errors.Is(err, want):
			t.Errorf("%s: %v, want %v", answer, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), example.To) || strings.Contains(err.Error(), "123456") || strings.Contains(err.Error(), "hush")) {
			t.Errorf("%s: the error tells too much: %v", answer, err)
		}
	}
}

func TestTwilioSends(t *testing.T) {
	p := newProvider(t)
	s, err := NewTwilio(TwilioOptions{Account: "AC7", Key: "SK9", Secret: secret.FromString("hush"), Token: secret.FromString("12345"),
		From: "MG1", Callback: "https://bank.example/r/main", URL: p.URL, Roots: p.roots})
	if err != nil {
		t.Fatal(err)
	}
	p.status, p.answer = http.StatusCreated, `{"sid":"SM1","status":"queued"}`
	if err := s.Send(t.Context(), example); err != nil {
		t.Fatal(err)
	}
	// https://www.twilio.com/docs/messaging/api/message-resource#create-a-message-resource
	user, password, _ := p.got.BasicAuth()
	if p.got.Method != "POST" || p.got.URL.Path != "/2010-04-01/Accounts/AC7/Messages.json" || user != "SK9" || password != "hush" {
		t.Errorf("%s %s as %s", p.got.Method, p.got.URL, user)
	}
	form, err := url.ParseQuery(string(p.body))
	if err != nil {
		t.Fatal(err)
	}
	want := url.Values{"To": {example.To}, "Body": {example.Text}, "MessagingServiceSid": {"MG1"}, "StatusCallback": {"https://bank.example/r/main?message=sms_1"}}
	if form.Encode() != want.Encode() || p.got.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		t.Errorf("form %v", form)
	}
	failing(t, p, s, map[string]error{
		`400 {"code":21211,"message":"+447700900123 is not valid"}`: ErrRejected,
		`400 {"code":21610}`: ErrRejected,
		`400 {"code":21606}`: nil, // our own sender
		`401 {"code":20003}`: nil,
		`402`:                nil,
		`404 nonsense`:       ErrRejected,
		`429 {"code":20429}`: ErrLater,
		`503`:                nil,
		`302`:                nil,
	})
}

// The vectors of Twilio's own libraries (RequestValidatorTest).
func TestTwilioSignatureVectors(t *testing.T) {
	token := secret.FromString("12345")
	const address = "https://mycompany.com/myapp.php?foo=1&bar=2"
	for want, body := range map[string]string{
		"RSOYDt4T1cUTdK1PDd93/VVr8B8=": "CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212",
		"IK+Dwps556ElfBT0I3Rgjkr1wJU=": "Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234",
	} {
		form, err := url.ParseQuery(body)
		if err != nil {
			t.Fatal(err)
		}
		if got := twilioSignature(token, address, form); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
}

func TestTwilioReceipts(t *testing.T) {
	token := secret.FromString("12345")
	s, err := NewTwilio(TwilioOptions{Account: "AC7", Secret: secret.FromString("hush"), Token: token, From: "Bank", Callback: "https://bank.example/r/main"})
	if err != nil {
		t.Fatal(err)
	}
	for status, want := range map[string]State{"sent": Underway, "delivered": Delivered, "undelivered": Failed, "failed": Failed} {
		form := url.Values{"MessageSid": {"SM1"}, "MessageStatus": {status}, "ErrorCode": {"30003"}}
		signed := twilioSignature(token, "https://bank.example/r/main?message=sms_1", form)
		ask := func(query, signature string, form url.Values) (Receipt, error) {
			r := httptest.NewRequest("POST", "http://10.0.0.7/r/main?"+query, nil) // behind a proxy
			r.Header.Set("X-Twilio-Signature", signature)
			return s.Receipt(r, []byte(form.Encode()))
		}
		got, err := ask("message=sms_1", signed, form)
		if err != nil || got != (Receipt{"sms_1", want, "30003"}) {
			t.Errorf("%s: %+v, %v", status, got, err)
		}
		other := url.Values{"MessageSid": {"SM1"}, "MessageStatus": {"delivered"}, "More": {"x"}}
		for _, bad := range []func() (Receipt, error){
			func() (Receipt, error) { return ask("message=sms_2", signed, form) },
			func() (Receipt, error) { return ask("message=sms_1", signed, other) },
			func() (Receipt, error) { return ask("message=sms_1", "", form) },
			func() (Receipt, error) { return ask("", signed, form) },
		} {
			if _, err := bad(); !errors.Is(err, ErrReceipt) {
				t.Errorf("%s: a forged receipt gives %v", status, err)
			}
		}
	}
}

const signatureSecret = "a signature secret of 32 characters"

func vonageKey(t *testing.T) (*rsa.PrivateKey, secret.Value) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return k, secret.FromString(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func TestVonageSends(t *testing.T) {
	p := newProvider(t)
	k, text := vonageKey(t)
	s, err := NewVonage(VonageOptions{Application: "app-1", Key: text, Signature: secret.FromString(signatureSecret), From: "Bank",
		Callback: "https://bank.example/r/second", URL: p.URL, Roots: p.roots, Clock: clock.NewManual(start)})
	if err != nil {
		t.Fatal(err)
	}
	p.status, p.answer = http.StatusAccepted, `{"message_uuid":"u"}`
	if err := s.Send(t.Context(), example); err != nil {
		t.Fatal(err)
	}
	// https://developer.vonage.com/en/api/messages
	var m map[string]string
	if err := json.Unmarshal(p.body, &m); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"message_type": "text", "channel": "sms", "from": "Bank", "to": "447700900123", "text": example.Text,
		"client_ref": "sms_1", "webhook_url": "https://bank.example/r/second", "webhook_version": "v1"}
	if fmt.Sprint(m) != fmt.Sprint(want) || p.got.URL.Path != "/v1/messages" {
		t.Errorf("%s %v", p.got.URL, m)
	}
	token, err := jwt.ParseSigned(strings.TrimPrefix(p.got.Header.Get("Authorization"), "Bearer "), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Application string `json:"application_id"`
		Issued      int64  `json:"iat"`
		Expires     int64  `json:"exp"`
		ID          string `json:"jti"`
	}
	if err := token.Claims(&k.PublicKey, &claims); err != nil || claims.Application != "app-1" || claims.ID == "" ||
		claims.Issued != start.Unix() || claims.Expires != start.Unix()+60 {
		t.Errorf("%+v, %v", claims, err)
	}
	failing(t, p, s, map[string]error{
		`401`: nil, `402`: nil, `403`: nil, `500`: nil, `422 {"title":"Invalid params"}`: ErrRejected, `429`: ErrLater,
	})
}

func TestVonageReceipts(t *testing.T) {
	_, text := vonageKey(t)
	clk := clock.NewManual(start)
	s, err := NewVonage(VonageOptions{Application: "app-1", Key: text, Signature: secret.FromString(signatureSecret), From: "Bank", Clock: clk})
	if err != nil {
		t.Fatal(err)
	}
	// Made by hand, so that it is not our own library that agrees with itself.
	token := func(alg, issuer, key, body string, at time.Time) string {
		sum := sha256.Sum256([]byte(body))
		enc := base64.RawURLEncoding.EncodeToString
		head := enc([]byte(`{"typ":"JWT","alg":"`+alg+`"}`)) + "." +
			enc(fmt.Appendf(nil, `{"iat":%d,"iss":%q,"jti":"1","payload_hash":%q,"api_key":"k"}`, at.Unix(), issuer, hex.EncodeToString(sum[:])))
		h := hmac.New(sha256.New, []byte(key))
		h.Write([]byte(head))
		return head + "." + enc(h.Sum(nil))
	}
	ask := func(token, body string) (Receipt, error) {
		r := httptest.NewRequest("POST", "/r/second", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		return s.Receipt(r, []byte(body))
	}
	const key = signatureSecret
	for status, want := range map[string]State{"submitted": Underway, "delivered": Delivered, "rejected": Failed, "undeliverable": Failed} {
		body := `{"status":"` + status + `","client_ref":"sms_1","error":{"title":"1260"},"channel":"sms"}`
		got, err := ask(token("HS256", "Vonage", key, body, start), body)
		if err != nil || got != (Receipt{"sms_1", want, "1260"}) {
			t.Errorf("%s: %+v, %v", status, got, err)
		}
		for name, bad := range map[string]string{
			"other key": token("HS256", "Vonage", "another secret", body, start), "other body": token("HS256", "Vonage", key, body+" ", start),
			"none": token("none", "Vonage", key, body, start), "old": token("HS256", "Vonage", key, body, start.Add(-6*time.Minute)),
			"ahead": token("HS256", "Vonage", key, body, start.Add(6*time.Minute)), "issuer": token("HS256", "Mallory", key, body, start), "empty": "",
		} {
			if _, err := ask(bad, body); !errors.Is(err, ErrReceipt) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestSNSSends(t *testing.T) {
	p := newProvider(t)
	s, err := NewSNS(t.Context(), SNSOptions{Region: "eu-central-1", Key: "AKIDEXAMPLE", Secret: secret.FromString("hush"), From: "BANK", URL: p.URL, Roots: p.roots})
	if err != nil {
		t.Fatal(err)
	}
	p.answer = `<PublishResponse xmlns="https://sns.amazonaws.com/doc/2010-03-31/"><PublishResult><MessageId>m</MessageId></PublishResult></PublishResponse>`
	if err := s.Send(t.Context(), example); err != nil {
		t.Fatal(err)
	}
	// https://docs.aws.amazon.com/sns/latest/api/API_Publish.html
	form, err := url.ParseQuery(string(p.body))
	if err != nil {
		t.Fatal(err)
	}
	if form.Get("Action") != "Publish" || form.Get("PhoneNumber") != example.To || form.Get("Message") != example.Text || !strings.Contains(form.Encode(), "Transactional") {
		t.Errorf("form %v", form)
	}
	// The signature, made again from what arrived.
	sum := sha256.Sum256(p.body)
	at, err := time.Parse("20060102T150405Z", p.got.Header.Get("X-Amz-Date"))
	if err != nil {
		t.Fatal(err)
	}
	again := func(key string) string {
		r, err := http.NewRequest("POST", p.URL+p.got.URL.Path, strings.NewReader(string(p.body)))
		if err != nil {
			t.Fatal(err)
		}
		_, list, _ := strings.Cut(p.got.Header.Get("Authorization"), "SignedHeaders=")
		list, _, _ = strings.Cut(list, ",")
		for _, name := range strings.Split(list, ";") {
			if name != "host" && name != "content-length" {
				r.Header.Set(name, p.got.Header.Get(name))
			}
		}
		err = v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: key}, r, hex.EncodeToString(sum[:]), "sns", "eu-central-1", at)
		if err != nil {
			t.Fatal(err)
		}
		return r.Header.Get("Authorization")
	}
	if got := p.got.Header.Get("Authorization"); got != again("hush") || got == again("another") || !strings.Contains(got, "/eu-central-1/sns/aws4_request") {
		t.Errorf("%q, want %q", got, again("hush"))
	}
	calls := p.calls
	fault := func(code string) string {
		return `<ErrorResponse><Error><Type>Sender</Type><Code>` + code + `</Code><Message>+447700900123 hush</Message></Error></ErrorResponse>`
	}
	failing(t, p, s, map[string]error{
		"400 " + fault("InvalidParameter"): ErrRejected, "400 " + fault("Throttling"): ErrLater, "403 " + fault("InvalidClientTokenId"): nil,
		"403 " + fault("AuthorizationError"): nil, "500 " + fault("InternalError"): nil, "503 oh": nil,
	})
	if got := p.calls - calls; got != 6 {
		t.Errorf("%d calls for 6 messages: the outbox tries again, not the SDK", got)
	}
}

// scripted answers with what it is told.
type scripted struct {
	err   error
	calls int
	slow  bool
}

func (s *scripted) Send(ctx context.Context, _ Message) error {
	s.calls++
	if s.slow {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.err
}

func TestRouteFailsOver(t *testing.T) {
	broken := errors.New("broken")
	for _, row := range []struct {
		name          string
		first, second scripted
		via           string
		want          error // nil with via "" means any other
	}{
		{name: "first", via: "a"},
		{name: "broken", first: scripted{err: broken}, via: "b"},
		{name: "rejected", first: scripted{err: ErrRejected}, via: "b"},
		{name: "later", first: scripted{err: ErrLater}, via: "b"},
		{name: "slow", first: scripted{slow: true}, via: "b"},
		{name: "both reject", first: scripted{err: ErrRejected}, second: scripted{err: ErrRejected}, want: ErrRejected},
		{name: "both later", first: scripted{err: ErrLater}, second: scripted{err: ErrRejected}, want: ErrLater},
		{name: "broken and rejected", first: scripted{err: broken}, second: scripted{err: ErrRejected}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := NewRoute(clock.NewManual(start), Link{"a", &row.first}, Link{"b", &row.second})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
			defer cancel()
			via, err := r.Carry(ctx, example, nil)
			if via != row.via || (via == "") == (err == nil) || row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("via %q, %v", via, err)
			}
			if via == "" && row.want == nil && (errors.Is(err, ErrRejected) || errors.Is(err, ErrLater)) {
				t.Errorf("%v ends a message that may still be taken", err)
			}
		})
	}
}

func TestRouteRemembersWhoFails(t *testing.T) {
	clk := clock.NewManual(start)
	a, b := &scripted{err: errors.New("broken")}, &scripted{}
	r, err := NewRoute(clk, Link{"a", a}, Link{"b", b})
	if err != nil {
		t.Fatal(err)
	}
	send := func(want string, not ...string) {
		t.Helper()
		if via, err := r.Carry(t.Context(), example, not); via != want || err != nil {
			t.Errorf("via %q, %v; want %q", via, err, want)
		}
	}
	send("b")
	send("b")
	if a.calls != 1 {
		t.Errorf("the broken one was asked %d times", a.calls)
	}
	a.err = nil
	clk.Advance(linkPause)
	send("a")
	send("b", "a")
	send("a", "a", "b") // better the same than none
	if r.Others([]string{"a", "b"}) || !r.Others([]string{"a"}) || r.Reports("a") {
		t.Error("others or reports")
	}
	// Accepted and never delivered is no better than refused.
	for range maxLost {
		r.find("a").reported(Failed, clk.Now())
	}
	send("b")
	clk.Advance(maxLinkPause)
	send("a")
	if _, err := NewRoute(clk, Link{"a", a}, Link{"a", b}); err == nil {
		t.Error("two providers of one name")
	}
}

func TestWebhookReceipts(t *testing.T) {
	_, w := gateway(t, func(http.ResponseWriter, *http.Request) {})
	ask := func(signature, body string) (Receipt, error) {
		r := httptest.NewRequest("POST", "/r/own", nil)
		r.Header.Set(SignatureHeader, signature)
		return w.Receipt(r, []byte(body))
	}
	body := `{"id":"sms_1","state":"failed","code":"no such number!"}`
	got, err := ask(Sign(key, start, []byte(body)), body)
	if err != nil || got != (Receipt{"sms_1", Failed, "nosuchnumber"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, signature := range map[string]string{
		"old": Sign(key, start.Add(-6*time.Minute), []byte(body)), "ahead": Sign(key, start.Add(6*time.Minute), []byte(body)),
		"other key": Sign(secret.FromString("another shared secret"), start, []byte(body)), "other body": Sign(key, start, []byte("{}")), "none": "", "odd": "t=,v1=",
	} {
		if _, err := ask(signature, body); !errors.Is(err, ErrReceipt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReceipts(f *testing.F) {
	webhook, err := NewWebhook(WebhookOptions{URL: "https://h/x", Secret: key, Clock: clock.NewManual(start)})
	if err != nil {
		f.Fatal(err)
	}
	twilio, err := NewTwilio(TwilioOptions{Account: "AC7", Secret: key, Token: key, From: "Bank", Callback: "https://h/r"})
	if err != nil {
		f.Fatal(err)
	}
	vonage := &Vonage{o: VonageOptions{Signature: key, Clock: clock.NewManual(start)}}
	f.Add("t=1772366400,v1=00", "MessageStatus=sent", "message=sms_1")
	f.Add("Bearer e30.e30.e30", `{"status":"delivered"}`, "")
	f.Fuzz(func(t *testing.T, header, body, query string) {
		r := httptest.NewRequest("POST", "/r", nil)
		r.URL.RawQuery = query
		for _, name := range []string{SignatureHeader, "X-Twilio-Signature", "Authorization"} {
			r.Header.Set(name, header)
		}
		for _, s := range []Reporter{webhook, twilio, vonage} {
			if got, err := s.Receipt(r, []byte(body)); err == nil {
				t.Errorf("forged: %+v", got)
			}
		}
	})
}

// Lengths as 3GPP TS 23.038 and 23.040 have them.
func TestSegments(t *testing.T) {
	for _, row := range []struct {
		text string
		want int
	}{
		{"", 1}, {strings.Repeat("a", 160), 1}, {strings.Repeat("a", 161), 2}, {strings.Repeat("a", 306), 2}, {strings.Repeat("a", 307), 3},
		{strings.Repeat("€", 80), 1}, {strings.Repeat("€", 81), 2}, {strings.Repeat("ж", 70), 1}, {strings.Repeat("ж", 71), 2}, {strings.Repeat("😀", 35), 1}, {strings.Repeat("😀", 36), 2},
	} {
		if got := Segments(row.text); got != row.want {
			t.Errorf("%d characters %.3q: %d segments, want %d", len([]rune(row.text)), row.text, got, row.want)
		}
	}
}
