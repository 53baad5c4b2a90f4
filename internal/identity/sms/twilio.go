package sms

import (
	"context"
	"crypto/hmac"
	"crypto/sha1" // Twilio's signature is HMAC-SHA-1, which the collisions of SHA-1 do not touch
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"strongroom/internal/secret"
)

// TwilioOptions configure a Twilio.
type TwilioOptions struct {
	// Account is the account's SID, AC….
	Account string
	// Key and Secret are an API key's SID, SK…, and its secret. Without Key the account's own token is
	// used, which can do everything in the account.
	Key    string
	Secret secret.Value
	// Token is the account's auth token, with which Twilio signs its reports; empty means that none are
	// asked for.
	Token secret.Value
	// From is a number in E.164, an alphanumeric sender or a messaging service's SID, MG….
	From string
	// Callback is the https address for reports; the message's id is added to it.
	Callback string
	// URL is Twilio's address; "" means https://api.twilio.com.
	URL     string
	Timeout time.Duration  // of one request; 0 means 5 s
	Roots   *x509.CertPool // nil means the host's
}

// Twilio is a Sender and a Reporter over Twilio's Programmable Messaging API, version 2010-04-01.
type Twilio struct {
	o      TwilioOptions
	url    string
	client *http.Client
}

// NewTwilio returns a Twilio, or says what is wrong with its options.
func NewTwilio(o TwilioOptions) (*Twilio, error) {
	if o.URL == "" {
		o.URL = "https://api.twilio.com"
	}
	u, err := endpoint(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Key == "" {
		o.Key = o.Account
	}
	if !strings.HasPrefix(o.Account, "AC") || o.From == "" || o.Secret.Len() == 0 {
		return nil, errors.New("sms: Twilio needs an account SID (AC…), a secret and a sender")
	}
	return &Twilio{o: o, client: HTTPClient(o.Timeout, o.Roots),
		url: u.JoinPath("2010-04-01", "Accounts", o.Account, "Messages.json").String()}, nil
}

// twilioOurs are Twilio's error codes for a fault of ours, which another message would meet too; they
// come with status 400. All other codes with that status are about the number or the text.
var twilioOurs = []int{21212, 21603, 21606, 21659, 21660, 21701, 21703, 21704}

// Send implements Sender.
func (t *Twilio) Send(ctx context.Context, m Message) error {
	form := url.Values{"To": {m.To}, "Body": {m.Text}}
	if strings.HasPrefix(t.o.From, "MG") {
		form.Set("MessagingServiceSid", t.o.From)
	} else {
		form.Set("From", t.o.From)
	}
	if t.o.Callback != "" && t.o.Token.Len() > 0 {
		form.Set("StatusCallback", t.callback(m.ID))
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, strings.NewReader(form.Encode()))
	if err != nil {
		return fmt.Errorf("sms: %w", err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	r.SetBasicAuth(t.o.Key, string(t.o.Secret.Reveal()))
	status, body, err := ask(t.client, r)
	if err != nil {
		return err
	}
	var fault struct {
		Code int `json:"code"`
	}
	if status >= 400 {
		_ = json.Unmarshal(body, &fault) // an answer that is not Twilio's has no code
	}
	if status == http.StatusBadRequest && slices.Contains(twilioOurs, fault.Code) {
		return fmt.Errorf("sms: Twilio refuses our sender (code %d)", fault.Code)
	}
	detail := ""
	if fault.Code != 0 {
		detail = fmt.Sprintf("code %d", fault.Code)
	}
	return verdict(status, detail)
}

// callback is where Twilio reports about a message.
func (t *Twilio) callback(message string) string {
	return t.o.Callback + "?message=" + url.QueryEscape(message)
}

// Receipt implements Reporter. Twilio signs the address that it was given, so what a proxy did to the
// request's own does not matter.
func (t *Twilio) Receipt(r *http.Request, body []byte) (Receipt, error) {
	message := r.URL.Query().Get("message")
	form, err := url.ParseQuery(string(body))
	signature := r.Header.Values("X-Twilio-Signature")
	if err != nil || message == "" || len(signature) != 1 || t.o.Token.Len() == 0 ||
		!hmac.Equal([]byte(signature[0]), []byte(twilioSignature(t.o.Token, t.callback(message), form))) {
		return Receipt{}, ErrReceipt
	}
	out := Receipt{Message: message, State: Underway, Code: receiptCode(form.Get("ErrorCode"))}
	switch form.Get("MessageStatus") {
	case "delivered":
		out.State = Delivered
	case "failed", "undelivered":
		out.State = Failed
	}
	return out, nil
}

// twilioSignature is X-Twilio-Signature: HMAC-SHA-1 under the auth token over the address and, sorted,
// the name and each different value of every parameter, in base64.
func twilioSignature(token secret.Value, address string, form url.Values) string {
	h := hmac.New(sha1.New, token.Reveal())
	h.Write([]byte(address))
	for _, name := range slices.Sorted(maps.Keys(form)) {
		for _, value := range slices.Compact(slices.Sorted(slices.Values(form[name]))) {
			h.Write([]byte(name + value))
		}
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}
