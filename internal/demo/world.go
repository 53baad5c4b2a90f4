package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"strongroom/client"
)

// world is the server and everything about it that journeys share.
type world struct {
	url     string
	roots   *x509.CertPool
	pins    []string
	plain   *http.Client    // for what no client would send: replays, and the inbox
	service *client.Service // one of the operator's services, or nil
	verify  func(ctx context.Context) (int64, string, error)
	looped  bool
	observe func(client.Exchange)

	mu       sync.Mutex
	fresh    []string // numbers that nobody was found to have, in random order
	doubtful []string // numbers that have had messages
}

func open(o Options) (*world, error) {
	r := ready{App: o.URL, CA: o.CA, Pins: o.Pins}
	if o.URL == "" {
		if o.ReadyFile == "" {
			return nil, errors.New("say which server: give a ready file, or a URL and a CA file")
		}
		var err error
		if r, err = readReady(o.ReadyFile); err != nil {
			return nil, err
		}
	}
	if r.CA == "" {
		return nil, errors.New("the server has no development authority: the demo plays against `strongroom dev` only")
	}
	text, err := os.ReadFile(r.CA)
	if err != nil {
		return nil, fmt.Errorf("the server's authority: %w", err)
	}
	w := &world{url: strings.TrimSuffix(r.App, "/"), roots: x509.NewCertPool(), pins: r.Pins, verify: o.VerifyAudit,
		looped: o.Loop, observe: func(client.Exchange) {}}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.CA, err)
		}
		w.roots.AddCert(cert)
		if len(r.Pins) == 0 {
			w.pins = append(w.pins, client.Pin(cert))
		}
	}
	w.plain = &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: w.roots},
			ForceAttemptHTTP2:   true,
			MaxIdleConnsPerHost: 16,
		},
	}
	if r.Service != "" {
		// The development authority has made a certificate for one service.
		dir := filepath.Dir(r.CA)
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key"))
		if err != nil {
			return nil, fmt.Errorf("the development service's certificate: %w", err)
		}
		w.service, err = client.NewService(client.ServiceOptions{BaseURL: r.Service, Certificate: pair, RootCAs: w.roots, UserAgent: "strongroom-demo", Observe: w.observe})
		if err != nil {
			return nil, err
		}
	}
	for _, i := range mathrand.Perm(1000) {
		w.fresh = append(w.fresh, fmt.Sprintf("+447700900%03d", i))
	}
	return w, nil
}

func (w *world) close() {
	w.plain.CloseIdleConnections()
	if w.service != nil {
		w.service.Close()
	}
}

// options are those of an app that knows the server, on a new device somewhere in the world.
func (w *world) options() (client.Options, error) {
	key, err := client.NewDeviceKey()
	return client.Options{
		BaseURL: w.url, Pins: w.pins, RootCAs: w.roots, Key: key, UserAgent: "strongroom-demo", Observe: w.observe,
		Dial: w.somewhere(),
	}, err
}

// somewhere makes connections from an address of its own, as every real device does, so that limits
// per address meet the demo's many people as they would meet real ones. On Linux every address in
// 127.0.0.0/8 is the machine's own; where that is not so, the ordinary address serves.
func (w *world) somewhere() func(ctx context.Context, network, address string) (net.Conn, error) {
	ordinary := &net.Dialer{Timeout: 10 * time.Second}
	u, err := url.Parse(w.url)
	if err != nil {
		return ordinary.DialContext
	}
	if ip := net.ParseIP(u.Hostname()); ip == nil || !ip.IsLoopback() || ip.To4() == nil {
		return ordinary.DialContext
	}
	own := net.IPv4(127, byte(1+mathrand.N(254)), byte(mathrand.N(256)), byte(1+mathrand.N(254)))
	special := &net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: own}}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if conn, err := special.DialContext(ctx, network, address); err == nil {
			return conn, nil
		}
		return ordinary.DialContext(ctx, network, address)
	}
}

// errNoNumbers says that there are no new customers left.
var errNoNumbers = errors.New("all 1000 numbers that Ofcom reserves for drama are customers of this server already; start one with a new data folder: strongroom dev --data \"$(mktemp -d)\"")

// number returns a number that may be new, and whether it has had messages before, which is a sign
// that it is not.
func (w *world) number(ctx context.Context) (number string, doubtful bool, err error) {
	for {
		if number, doubtful, err = w.draw(); err != nil || doubtful {
			return number, doubtful, err
		}
		had, err := w.messages(ctx, number, time.Time{})
		if err != nil || len(had) == 0 {
			return number, false, err
		}
		// A message without a code told somebody that the number has an account.
		if !slices.ContainsFunc(had, func(m message) bool { return m.code() == "" }) {
			w.doubt(number)
		}
	}
}

// draw takes a number that was not tried yet. Those that have had messages come last.
func (w *world) draw() (number string, doubtful bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := &w.fresh
	if len(*list) == 0 {
		list, doubtful = &w.doubtful, true
	}
	if len(*list) == 0 {
		return "", false, errNoNumbers
	}
	last := len(*list) - 1
	number, *list = (*list)[last], (*list)[:last]
	return number, doubtful, nil
}

func (w *world) doubt(number string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.doubtful = append(w.doubtful, number)
}

// message is a text message in the development inbox.
type message struct {
	To     string    `json:"to"`
	Text   string    `json:"text"`
	SentAt time.Time `json:"sent_at"`
}

// What messages have in them.
var (
	anything   = regexp.MustCompile(``)
	sixDigits  = regexp.MustCompile(`\b[0-9]{6}\b`)
	cancelCode = regexp.MustCompile(`\b[0-9A-Z]{16}\b`) // keeps the account at its number
	shutOut    = regexp.MustCompile(`was shut out`)
)

// code returns the one-time code in the message, or "".
func (m message) code() string { return sixDigits.FindString(m.Text) }

// messages returns what was sent to the number after a time, newest first.
func (w *world) messages(ctx context.Context, number string, after time.Time) ([]message, error) {
	body, err := json.Marshal(map[string]string{"to": number})
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/dev/inbox/search", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := w.plain.Do(r)
	if err != nil {
		return nil, fmt.Errorf("development inbox: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotFound {
		return nil, errors.New("the server has no development inbox: set sms.sender to inbox, or use `strongroom dev`")
	}
	var box struct {
		Messages []message `json:"messages"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 4<<20)).Decode(&box); err != nil || res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("development inbox: status %d", res.StatusCode)
	}
	var newer []message
	for _, m := range box.Messages {
		if m.SentAt.After(after) {
			newer = append(newer, m)
		}
	}
	return newer, nil
}

// newest returns when the newest message to the number was sent.
func (w *world) newest(ctx context.Context, number string) (time.Time, error) {
	all, err := w.messages(ctx, number, time.Time{})
	if err != nil || len(all) == 0 {
		return time.Time{}, err
	}
	return all[0].SentAt, nil
}

// How long a text message may take, and how long it is waited for where it may well not come.
const (
	patience      = 15 * time.Second
	shortPatience = 3 * time.Second
)

// errSilence says that a text message did not come in time.
var errSilence = errors.New("no text message came")

// await returns the first message to the number after a time that has something: customers are told of more
// than codes.
func (w *world) await(ctx context.Context, number string, after time.Time, patience time.Duration, something *regexp.Regexp) (message, error) {
	began := time.Now()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		got, err := w.messages(ctx, number, after)
		if err != nil {
			return message{}, err
		}
		for _, m := range slices.Backward(got) {
			if something.MatchString(m.Text) {
				return m, nil
			}
		}
		if time.Since(began) > patience {
			return message{}, errSilence
		}
		if err := pause(ctx, wait); err != nil {
			return message{}, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// verdict is the server's answer to a request that no client would send.
type verdict struct {
	status int
	slug   client.Slug
	nonce  string
}

func (v verdict) String() string {
	if v.slug != "" {
		return string(v.slug)
	}
	return fmt.Sprintf("status %d", v.status)
}

// send sends a GET with exactly this proof and token.
func (w *world) send(ctx context.Context, path, proof string, access client.Secret) (verdict, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+path, nil)
	if err != nil {
		return verdict{}, err
	}
	r.Header.Set("DPoP", proof)
	if !access.IsZero() {
		r.Header.Set("Authorization", "DPoP "+access.Reveal())
	}
	began := time.Now()
	res, err := w.plain.Do(r)
	if err != nil {
		return verdict{}, err
	}
	defer res.Body.Close()
	w.observe(client.Exchange{Method: r.Method, Path: path, Status: res.StatusCode, Duration: time.Since(began)})
	var problem struct {
		Type string `json:"type"`
	}
	v := verdict{status: res.StatusCode, nonce: res.Header.Get("DPoP-Nonce")}
	if res.StatusCode >= 400 {
		if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&problem); err != nil {
			return v, fmt.Errorf("status %d without a problem document", v.status)
		}
		slug, _ := strings.CutPrefix(problem.Type, "urn:strongroom:problem:")
		v.slug = client.Slug(slug)
	}
	return v, nil
}

// proof returns a proof for a GET that is fresh: it carries the server's newest nonce.
func (w *world) proof(ctx context.Context, key client.DeviceKey, path string, access client.Secret) (string, error) {
	stale, err := client.Proof(key, http.MethodGet, w.url+path, "", client.Secret{})
	if err != nil {
		return "", err
	}
	v, err := w.send(ctx, path, stale, client.Secret{})
	if err != nil {
		return "", err
	}
	if v.nonce == "" {
		return "", &mismatch{"a request without the server's nonce", "to be given one", v.String()}
	}
	return client.Proof(key, http.MethodGet, w.url+path, v.nonce, access)
}

// digits returns n random digits.
func digits(n int) string {
	var b strings.Builder
	for range n {
		d, err := rand.Int(rand.Reader, big.NewInt(10))
		if err != nil {
			panic(err) // crypto/rand never fails
		}
		b.WriteString(d.String())
	}
	return b.String()
}
