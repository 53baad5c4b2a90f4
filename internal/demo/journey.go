package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"strongroom/client"
)

// journey is one customer.
type journey struct {
	world   *world
	looped  bool
	regular bool // has been here before

	number  string
	private string         // the private code
	options client.Options // of the customer's own device
	phone   *client.Client // on it

	tablet   *client.Client // on the second device
	tabletID string
	written  map[string]client.Record // what store has left, by collection

	last time.Time // when the check before ended
	said func(text string, took time.Duration)
	told func(text string)
}

// newcomer returns a customer who has only just got the app.
func (w *world) newcomer() (*journey, error) {
	o, err := w.options()
	if err != nil {
		return nil, err
	}
	c, err := client.New(o)
	if err != nil {
		return nil, err
	}
	return &journey{
		world: w, looped: w.looped, options: o, phone: c, written: map[string]client.Record{},
		said: func(string, time.Duration) {}, told: func(string) {},
	}, nil
}

// leave ends a journey: what was the second device's is gone, and the customer may come back.
func (j *journey) leave() {
	j.regular = true
	j.phone.Close()
	if j.tablet != nil {
		j.tablet.Close()
		j.tablet = nil
	}
}

// holds tells about a check that held.
func (j *journey) holds(format string, args ...any) {
	now := time.Now()
	j.said(fmt.Sprintf(format, args...), now.Sub(j.last))
	j.last = now
}

// tells says what no check is about.
func (j *journey) tells(format string, args ...any) {
	j.told(fmt.Sprintf(format, args...))
}

// refused checks that err is the problem that was expected.
func refused(what string, err error, want client.Slug) error {
	switch {
	case errors.Is(err, want):
		return nil
	case err == nil:
		return &mismatch{what, "to be refused as " + string(want), "it succeeded"}
	case errors.Is(err, context.Canceled):
		return err
	default:
		return &mismatch{what, "to be refused as " + string(want), err.Error()}
	}
}

// done checks that something succeeded.
func done(what string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	var m *mismatch
	if errors.As(err, &m) {
		return err
	}
	return &mismatch{what, "to succeed", err.Error()}
}

// pretty writes a number as people do: +44 7700 900123.
func pretty(number string) string { return number[:3] + " " + number[3:7] + " " + number[7:] }

func (j *journey) door(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, j.world.url+"/openapi.json", nil)
	if err != nil {
		return err
	}
	res, err := j.world.plain.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &mismatch{"a connection to " + j.world.url, "a server that answers; is it still running?", err.Error()}
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return &mismatch{"the server's OpenAPI document", "to be there", fmt.Sprintf("status %d", res.StatusCode)}
	}
	switch res.TLS.CipherSuite {
	case tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256:
	default:
		return &mismatch{"the cipher suite", "one of 256 bits", "it is " + tls.CipherSuiteName(res.TLS.CipherSuite)}
	}
	j.holds("TLS 1.3 with %s and %s", suite(res.TLS.CipherSuite), res.TLS.CurveID)

	old := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: j.world.roots, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
	}}}
	if res, err := old.Do(r.Clone(ctx)); err == nil {
		res.Body.Close()
		return &mismatch{"TLS 1.2", "to be refused", "it was accepted"}
	} else if alert := (*net.OpError)(nil); !errors.As(err, &alert) || alert.Op != "remote error" {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &mismatch{"TLS 1.2", "to be refused by an alert", err.Error()}
	}
	j.holds("TLS 1.2 is refused")

	o := j.options
	o.Pins = []string{"sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "sha256/BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA="}
	o.Observe = nil // it never reaches the server
	other, err := client.New(o)
	if err != nil {
		return err
	}
	if _, err = other.Login(ctx, "+447700900000", digits(8)); !errors.Is(err, client.ErrPinMismatch) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &mismatch{"an app that pins other keys", "to hang up", fmt.Sprint(err)}
	}
	j.holds("an app that pins other keys hangs up before it sends a byte")
	return nil
}

func suite(id uint16) string { return strings.TrimPrefix(tls.CipherSuiteName(id), "TLS_") }

// register finds a number that nobody has, and makes the customer.
func (j *journey) register(ctx context.Context) error {
	var registration *client.Registration
	var code string
	for silent := 0; code == ""; {
		number, doubtful, err := j.world.number(ctx)
		if err != nil {
			return err
		}
		before, err := j.world.newest(ctx, number)
		if err != nil {
			return err
		}
		if registration, err = j.phone.Register(ctx, number); err != nil {
			return done("registration of "+pretty(number), err)
		}
		wait := patience
		if doubtful {
			wait = shortPatience
		}
		m, err := j.world.await(ctx, number, before, wait, anything)
		if errors.Is(err, errSilence) && (doubtful || silent < 3) {
			silent++ // the number is somebody's who has had all the messages that one number may get
			continue
		}
		if err != nil {
			return arrived(number, err)
		}
		// A number with an account gets another text, and the app the same answer.
		j.number, code = number, m.code()
	}
	j.holds("%s asks for an account and gets a code by SMS", pretty(j.number))

	_, err := registration.Complete(ctx, code, "12345678", "Ada's phone")
	if err := refused("private code 12345678", err, client.ErrWeakPrivateCode); err != nil {
		return err
	}
	j.holds("the private code 12345678 is refused: it is too easy to guess")
	_, err = registration.Complete(ctx, otherCode(code), digits(12), "Ada's phone")
	if err := refused("a wrong one-time code", err, client.ErrRegistrationFailed); err != nil {
		return err
	}
	j.holds("a wrong one-time code is refused")
	for try := 0; ; try++ {
		j.private = digits(10)
		made, err := registration.Complete(ctx, code, j.private, "Ada's phone")
		if errors.Is(err, client.ErrWeakPrivateCode) && try < 5 {
			continue // by chance it reads as a date or a sequence
		}
		if err != nil {
			return done("registration", err)
		}
		j.holds("a good private code and the right code make customer %s", made.Customer)
		return nil
	}
}

// otherCode returns six digits that are not the code.
func otherCode(code string) string {
	for {
		if other := digits(6); other != code {
			return other
		}
	}
}

// arrived says which message did not come.
func arrived(number string, err error) error {
	if !errors.Is(err, errSilence) {
		return err
	}
	return &mismatch{"a text message to " + pretty(number), "one within " + patience.String(),
		"none came; the server bounds how many it sends to one number"}
}

// enter logs a client in, and returns how that ended.
func (j *journey) enter(ctx context.Context, c *client.Client, device string) error {
	before, err := j.world.newest(ctx, j.number)
	if err != nil {
		return err
	}
	login, err := c.Login(ctx, j.number, j.private)
	if err != nil {
		return err
	}
	m, err := j.world.await(ctx, j.number, before, patience, sixDigits)
	if err != nil {
		return arrived(j.number, err)
	}
	_, err = login.Complete(ctx, m.code(), device)
	return err
}

func (j *journey) login(ctx context.Context) error {
	before, err := j.world.newest(ctx, j.number)
	if err != nil {
		return err
	}
	login, err := j.phone.Login(ctx, j.number, j.private)
	if err != nil {
		return done("the start of a login", err)
	}
	m, err := j.world.await(ctx, j.number, before, patience, sixDigits)
	if err != nil {
		return arrived(j.number, err)
	}
	j.holds("number and private code are right: a one-time code comes by SMS")
	if _, err = login.Complete(ctx, otherCode(m.code()), "Ada's phone"); err != nil {
		if err := refused("a wrong one-time code", err, client.ErrLoginFailed); err != nil {
			return err
		}
		j.holds("a wrong one-time code is refused")
	} else {
		return &mismatch{"a wrong one-time code", "to be refused", "it let us in"}
	}
	tokens, err := login.Complete(ctx, m.code(), "Ada's phone")
	if err != nil {
		return done("the login", err)
	}
	j.holds("with the right one, and the device's key, session %s begins", tokens.Session)
	s, err := j.phone.Session(ctx)
	if err != nil {
		return done("a look at the session", err)
	}
	if s.ID != tokens.Session || s.Customer != tokens.Customer {
		return &mismatch{"the session", tokens.Session, "it is " + s.ID}
	}
	j.holds("its access token lasts %v, the session until %s at most", time.Until(tokens.AccessExpiresAt).Round(time.Second),
		s.ExpiresAt.Local().Format("15:04 on 2 January"))
	return nil
}

// longestWait is how long the demo is ready to watch an access token expire.
const longestWait = 30 * time.Second

func (j *journey) refresh(ctx context.Context) error {
	old, err := j.phone.Tokens(ctx)
	if err != nil {
		return err
	}
	left := time.Until(old.AccessExpiresAt)
	if j.looped || left > longestWait {
		if err := j.phone.Refresh(ctx); err != nil {
			return done("the refresh", err)
		}
		j.holds("the app asks for new tokens and gets them (it would have to in %v)", left.Round(time.Second))
	} else {
		if err := j.seeExpiry(ctx, old); err != nil {
			return err
		}
	}
	s, err := j.phone.Session(ctx)
	if err != nil {
		return done("the next request", err)
	}
	fresh, err := j.phone.Tokens(ctx)
	if err != nil {
		return err
	}
	if fresh.Access == old.Access || s.ID != old.Session {
		return &mismatch{"the refreshed session", "new tokens for " + old.Session, "they are the old ones, or another session's"}
	}
	j.holds("the session goes on with new tokens, and the customer has noticed nothing")
	return nil
}

// seeExpiry waits until the server refuses the access token.
func (j *journey) seeExpiry(ctx context.Context, old client.Tokens) error {
	left := time.Until(old.AccessExpiresAt)
	j.tells("waiting %v for the access token to expire", max(left, 0).Round(100*time.Millisecond))
	if err := pause(ctx, left); err != nil {
		return err
	}
	for tries := 0; ; tries++ {
		proof, err := j.world.proof(ctx, j.options.Key, "/v1/session", old.Access)
		if err != nil {
			return err
		}
		v, err := j.world.send(ctx, "/v1/session", proof, old.Access)
		if err != nil {
			return err
		}
		if v.slug == client.ErrTokenExpired {
			j.holds("the access token is refused from then on")
			return nil
		}
		if v.status != http.StatusOK || tries == 10 {
			return &mismatch{"the access token after its life time", string(client.ErrTokenExpired), v.String()}
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
}

// The person and the account that every customer of the demo has.
var (
	profile = map[string]string{
		"given_name": "Ada", "family_name": "Example", "date_of_birth": "1987-06-05", "email": "ada@example.com",
		"address_line1": "12 Example Street", "city": "London", "postcode": "EC1A 1BB", "country": "GB",
	}
	account = map[string]string{
		"holder": "Ada Example", "iban": "GB33BUKB20201555555555", "bic": "BUKBGB22XXX", "bank_name": "Example Bank", "currency": "GBP",
	}
	// secretFields are those that a masked answer must not show.
	secretFields = map[string][]string{
		"profile":      {"family_name", "date_of_birth", "email", "address_line1", "postcode"},
		"bank_account": {"holder", "iban", "bic"},
	}
)

const (
	recordKey = "main"
	purpose   = "show-to-customer"
)

func (j *journey) store(ctx context.Context) error {
	for _, r := range []struct {
		collection, what string
		fields           map[string]string
	}{{"profile", "a profile", profile}, {"bank_account", "a bank account", account}} {
		collection := j.phone.Collection(r.collection)
		condition := client.IfNew()
		if j.regular {
			old, err := collection.Get(ctx, recordKey)
			if err != nil {
				return done("reading "+r.what, err)
			}
			condition = client.IfMatch(old.ETag)
		}
		got, err := collection.Put(ctx, recordKey, r.fields, condition)
		if err != nil {
			return done("storing "+r.what, err)
		}
		if err := hidden(r.collection, got, r.fields); err != nil {
			return err
		}
		j.written[r.collection] = got
		j.holds("%s is stored as version %d; the answer shows it masked", r.what, got.Version)
	}
	_, err := j.phone.Collection("bank_account").Put(ctx, "other", map[string]string{"holder": "Ada Example", "iban": "GB34BUKB20201555555555"})
	if err := refused("an IBAN with a typing error", err, client.ErrInvalidRecord); err != nil {
		return err
	}
	j.holds("an IBAN with a typing error is refused")
	return nil
}

// hidden checks that a masked record shows no sensitive value.
func hidden(collection string, r client.Record, whole map[string]string) error {
	for _, field := range secretFields[collection] {
		shown, ok := r.Fields[field].(string)
		if !ok || shown == whole[field] {
			return &mismatch{collection + "." + field, "to be masked", "it is whole or missing"}
		}
	}
	return nil
}

func (j *journey) read(ctx context.Context) error {
	accounts := j.phone.Collection("bank_account")
	masked, err := accounts.Get(ctx, recordKey)
	if err != nil {
		return done("reading the bank account", err)
	}
	if err := hidden("bank_account", masked, account); err != nil {
		return err
	}
	person, err := j.phone.Collection("profile").Get(ctx, recordKey)
	if err != nil {
		return done("reading the profile", err)
	}
	if err := hidden("profile", person, profile); err != nil {
		return err
	}
	j.holds("masked: IBAN %v, born %v, email %v", masked.Fields["iban"], person.Fields["date_of_birth"], person.Fields["email"])

	_, err = accounts.Reveal(ctx, recordKey, "")
	if err := refused("whole values without a purpose", err, client.ErrPurposeRequired); err != nil {
		return err
	}
	_, err = accounts.Reveal(ctx, recordKey, "curiosity")
	if err := refused("whole values out of curiosity", err, client.ErrPurposeNotAllowed); err != nil {
		return err
	}
	j.holds("without a purpose, or for one that is not allowed, nothing is shown whole")

	whole, err := accounts.Reveal(ctx, recordKey, purpose)
	if err != nil {
		return done("reading the bank account whole", err)
	}
	for field, want := range account {
		if whole.Fields[field] != want {
			return &mismatch{"bank_account." + field, "what was stored", "it is something else"}
		}
	}
	j.holds("whole, for the purpose %s: IBAN %v", purpose, whole.Fields["iban"])

	one, err := accounts.Reveal(ctx, recordKey, purpose, "iban")
	if err != nil {
		return done("reading one field whole", err)
	}
	if one.Fields["iban"] != account["iban"] || one.Fields["holder"] == account["holder"] {
		return &mismatch{"one field asked for", "that one whole and the rest masked", "it is not so"}
	}
	j.holds("asked for one field, the server shows that one and masks the rest")

	page, err := accounts.List(ctx, 10, "")
	if err != nil {
		return done("listing the bank accounts", err)
	}
	if len(page.Records) == 0 {
		return &mismatch{"the list of bank accounts", "the one that was stored", "it is empty"}
	}
	return hidden("bank_account", page.Records[0], account)
}

func (j *journey) stale(ctx context.Context) error {
	profiles := j.phone.Collection("profile")
	first := j.written["profile"]
	second, err := profiles.Put(ctx, recordKey, profile, client.IfMatch(first.ETag))
	if err != nil {
		return done("changing the version that was read", err)
	}
	j.holds("the first to save has read version %d, and makes version %d", first.Version, second.Version)
	_, err = profiles.Put(ctx, recordKey, profile, client.IfMatch(first.ETag))
	if err := refused("changing a version that is gone", err, client.ErrVersionMismatch); err != nil {
		return err
	}
	_, err = profiles.Put(ctx, recordKey, profile)
	if err := refused("overwriting without saying which version was read", err, client.ErrPreconditionNeeded); err != nil {
		return err
	}
	j.holds("the other, who has read version %d too, is told so and overwrites nothing", first.Version)
	return nil
}

func (j *journey) replay(ctx context.Context) error {
	tokens, err := j.currentTokens(ctx)
	if err != nil {
		return err
	}
	bare, err := client.Proof(j.options.Key, http.MethodGet, j.world.url+"/v1/session", "", tokens.Access)
	if err != nil {
		return err
	}
	proof, err := j.world.proof(ctx, j.options.Key, "/v1/session", tokens.Access)
	if err != nil {
		return err
	}
	elsewhere, err := j.world.proof(ctx, j.options.Key, "/v1/session", tokens.Access)
	if err != nil {
		return err
	}
	for _, t := range []struct {
		what, path, proof string
		want              verdict
		holds             string
	}{
		{"a proof without the server's nonce", "/v1/session", bare, verdict{slug: client.ErrUseNonce}, "a proof made in advance, without the server's nonce, is refused"},
		{"a request with a good proof", "/v1/session", proof, verdict{status: http.StatusOK}, "a request with a fresh proof is good once"},
		{"the same bytes again", "/v1/session", proof, verdict{slug: client.ErrInvalidProof}, "the same bytes again are refused"},
		{"a proof made for another address", "/v1/devices", elsewhere, verdict{slug: client.ErrInvalidProof}, "a proof made for one address is refused at another"},
	} {
		v, err := j.world.send(ctx, t.path, t.proof, tokens.Access)
		if err != nil {
			return err
		}
		if v.slug != t.want.slug {
			return &mismatch{t.what, t.want.String(), v.String()}
		}
		j.holds("%s", t.holds)
	}
	return nil
}

// currentTokens returns tokens whose access token has most of its life before it.
func (j *journey) currentTokens(ctx context.Context) (client.Tokens, error) {
	if err := j.phone.Refresh(ctx); err != nil {
		return client.Tokens{}, done("the refresh", err)
	}
	return j.phone.Tokens(ctx)
}

func (j *journey) stolenToken(ctx context.Context) error {
	tokens, err := j.currentTokens(ctx)
	if err != nil {
		return err
	}
	thief, err := client.NewDeviceKey()
	if err != nil {
		return err
	}
	proof, err := j.world.proof(ctx, thief, "/v1/session", tokens.Access)
	if err != nil {
		return err
	}
	v, err := j.world.send(ctx, "/v1/session", proof, tokens.Access)
	if err != nil {
		return err
	}
	if v.status != http.StatusUnauthorized {
		return &mismatch{"a stolen token with another device's key", "status 401", v.String()}
	}
	j.holds("with another device's key the token is worth nothing (%s)", v)
	if _, err := j.phone.Session(ctx); err != nil {
		return done("the customer's own session", err)
	}
	j.holds("the customer's own session is not disturbed")
	return nil
}

func (j *journey) secondDevice(ctx context.Context) error {
	o, err := j.world.options()
	if err != nil {
		return err
	}
	if j.tablet, err = client.New(o); err != nil {
		return err
	}
	const name = "Ada's tablet"
	err = j.enter(ctx, j.tablet, name)
	if err := refused("a new device, all three factors right", err, client.ErrDevicePending); err != nil {
		return err
	}
	var number string
	var p *client.Problem
	if errors.As(err, &p) {
		j.tabletID, number = p.Text("device"), p.Text("number")
	}
	j.holds("a new device with all three factors right is still not let in: it is pending")
	if err := j.device(ctx, j.tabletID, client.DevicePending); err != nil {
		return err
	}
	other := digits(3)
	for other == number {
		other = digits(3)
	}
	if err := refused("an approval with another number", j.phone.ApproveDevice(ctx, j.tabletID, other), client.ErrWrongNumber); err != nil {
		return err
	}
	j.holds("it shows %s; with another number the approval fails, so nobody just presses yes", number)
	if err := j.phone.ApproveDevice(ctx, j.tabletID, number); err != nil {
		return done("the approval", err)
	}
	j.holds("the customer types %s into the first device", number)
	if err := j.enter(ctx, j.tablet, name); err != nil {
		return done("the login on the second device", err)
	}
	if _, err := j.tablet.Session(ctx); err != nil {
		return done("a look at the second device's session", err)
	}
	j.holds("now it is let in")
	return nil
}

// device checks a device's status as the first device sees it.
func (j *journey) device(ctx context.Context, id string, want client.DeviceStatus) error {
	all, err := j.phone.Devices(ctx)
	if err != nil {
		return done("listing the devices", err)
	}
	for _, d := range all {
		if d.ID == id {
			if d.Status != want {
				return &mismatch{"the status of " + id, string(want), "it is " + string(d.Status)}
			}
			return nil
		}
	}
	return &mismatch{"the list of devices", "to hold " + id, "it does not"}
}

func (j *journey) lostDevice(ctx context.Context) error {
	all, err := j.phone.Devices(ctx)
	if err != nil {
		return done("listing the devices", err)
	}
	var names []string
	for _, d := range all {
		name := fmt.Sprintf("%s (%s)", d.Name, d.Status)
		if d.Current {
			name = fmt.Sprintf("%s (%s, this one)", d.Name, d.Status)
		}
		names = append(names, name)
	}
	if len(all) != 2 {
		return &mismatch{"the list of devices", "two", fmt.Sprintf("there are %d: %s", len(all), strings.Join(names, ", "))}
	}
	j.holds("the customer's devices: %s", strings.Join(names, ", "))
	if err := j.phone.ReportLost(ctx, j.tabletID); err != nil {
		return done("reporting the second device as lost", err)
	}
	if err := j.device(ctx, j.tabletID, client.DeviceRevoked); err != nil {
		return err
	}
	if _, err := j.tablet.Session(ctx); err == nil {
		return &mismatch{"the session of the revoked device", "to be over", "it goes on"}
	} else if err := refused("a request of the lost device", err, client.ErrThisDeviceRevoked); err != nil {
		return err
	}
	j.holds("reported lost, the tablet has no session any more, and its app is told to wipe itself")
	return nil
}

func (j *journey) refreshReuse(ctx context.Context) error {
	old, err := j.currentTokens(ctx)
	if err != nil {
		return err
	}
	// Twice, so that the first answer has surely arrived: a refresh whose answer was lost may be repeated.
	for range 2 {
		if err := j.phone.Refresh(ctx); err != nil {
			return done("the refresh", err)
		}
	}
	o := j.options // even the device's own key does not help
	store := &memory{}
	o.Store = store
	store.tokens = old
	copied, err := client.New(o)
	if err != nil {
		return err
	}
	defer copied.Close()
	if err := refused("a refresh token that was used before", copied.Refresh(ctx), client.ErrSessionRevoked); err != nil {
		return err
	}
	j.holds("a refresh token is good once; a second use means that there is a copy, and is refused")
	if _, err := j.phone.Session(ctx); err == nil {
		return &mismatch{"the session whose refresh token was copied", "to be over", "it goes on"}
	} else if p := (*client.Problem)(nil); !errors.As(err, &p) || p.Status != http.StatusUnauthorized {
		return done("a request of the ended session", err)
	}
	j.holds("the whole session ends, for the thief and for the customer, who logs in again below")
	return nil
}

// memory is a client.TokenStore for tokens that were copied.
type memory struct{ tokens client.Tokens }

func (m *memory) Load(context.Context) (client.Tokens, error)   { return m.tokens, nil }
func (m *memory) Save(_ context.Context, t client.Tokens) error { m.tokens = t; return nil }

// codes counts the one-time codes among messages.
func codes(sent []message) (n int) {
	for _, m := range sent {
		if m.code() != "" {
			n++
		}
	}
	return n
}

// guesses is how many private codes the attacker tries. PSD2 asks for a lock after five.
const guesses = 6

func (j *journey) attack(ctx context.Context) error {
	o, err := j.world.options()
	if err != nil {
		return err
	}
	attacker, err := client.New(o)
	if err != nil {
		return err
	}
	defer attacker.Close()
	before, err := j.world.newest(ctx, j.number)
	if err != nil {
		return err
	}
	try := func(private string) error {
		login, err := attacker.Login(ctx, j.number, private)
		if err != nil {
			return err
		}
		_, err = login.Complete(ctx, digits(6), "phone")
		return err
	}
	for range guesses {
		if err := refused("a guessed private code", try(digits(10)), client.ErrLoginFailed); err != nil {
			return err
		}
	}
	j.holds("%d guesses from another device and address all get the same answer, and fail", guesses)
	if err := refused("the attacker's login with the right private code", try(j.private), client.ErrLoginFailed); err != nil {
		return err
	}
	// The customer's own login comes after it through the same outbox: once its message is there,
	// the attacker's would be.
	err = j.enter(ctx, j.phone, "Ada's phone")
	if err != nil {
		return done("the customer's own login under attack", err)
	}
	sent, err := j.world.messages(ctx, j.number, before)
	if err != nil {
		return err
	}
	if n := codes(sent); n != 1 {
		return &mismatch{"the codes sent under attack", "one, for the customer", fmt.Sprintf("there are %d", n)}
	}
	j.holds("now even the right private code gets the attacker neither an SMS nor in: locked out")
	if _, err := j.phone.Session(ctx); err != nil {
		return done("the customer's own session", err)
	}
	j.holds("the customer's own device is not locked out: it logs in as ever")
	if _, err := j.world.await(ctx, j.number, before, patience, shutOut); err != nil {
		return arrived(j.number, err)
	}
	j.holds("and the customer is told by SMS that somebody was shut out")
	return nil
}

func (j *journey) logout(ctx context.Context) error {
	tokens, err := j.currentTokens(ctx)
	if err != nil {
		return err
	}
	if err := j.phone.Logout(ctx); err != nil {
		return done("the logout", err)
	}
	proof, err := j.world.proof(ctx, j.options.Key, "/v1/session", tokens.Access)
	if err != nil {
		return err
	}
	v, err := j.world.send(ctx, "/v1/session", proof, tokens.Access)
	if err != nil {
		return err
	}
	if v.status != http.StatusUnauthorized || v.slug == client.ErrInvalidProof {
		return &mismatch{"the access token after the logout", "to be dead", v.String()}
	}
	j.holds("the access token is dead at once (%s), though it had %v to live", v, time.Until(tokens.AccessExpiresAt).Round(time.Second))
	if _, err := j.phone.Session(ctx); !errors.Is(err, client.ErrNotLoggedIn) {
		return &mismatch{"the app after the logout", "to have forgotten the session", fmt.Sprint(err)}
	}
	j.holds("and the app has forgotten it")
	return nil
}

func (j *journey) audit(ctx context.Context) error {
	events, checkpoint, err := j.world.verify(ctx)
	if err != nil {
		return done("the verification of the audit trail", err)
	}
	j.holds("%d events: none altered, dropped, inserted or reordered", events)
	lines := strings.SplitN(strings.TrimSpace(checkpoint), "\n", 4)
	if len(lines) >= 3 {
		j.tells("signed checkpoint of %s", lines[0])
		j.tells("over %s events, with root %s", lines[1], lines[2])
	}
	return nil
}
