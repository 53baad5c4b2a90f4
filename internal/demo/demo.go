// Package demo plays a customer's whole journey against a running server, over real TLS and with a
// real device key, and checks at every step that what should work works and that what must not
// does not.
//
// It promises that a journey which ends without an error has seen each of its checks hold. Every
// journey is a new customer with a number from the range that Ofcom reserves for drama
// (+44 7700 900000 to 900999); it needs a server whose one-time codes go to the development inbox.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Options say which server to play against, and how.
type Options struct {
	// ReadyFile is what `strongroom dev --ready-file` writes. URL and CA take its place when set.
	ReadyFile string
	URL       string   // of the app listener; without the other, nothing is asked as a service
	CA        string   // PEM file of the authority that signed the app listener's certificate
	Pins      []string // public-key pins of the app listener; none means the keys in CA

	// VerifyAudit verifies the audit trail through the server, and returns the number of events and
	// the checkpoint. Nil leaves that step out.
	VerifyAudit func(ctx context.Context) (events int64, checkpoint string, err error)

	Out  io.Writer // where the story goes
	JSON bool      // one JSON object a line in place of text

	// Loop plays journey after journey, and prints a summary line every Every (0: 10 s), until the
	// context ends, For is over (0: never) or Runs journeys are played (0: no end). Parallel
	// journeys go on at once (0: 1).
	Loop     bool
	Runs     int
	For      time.Duration
	Every    time.Duration
	Parallel int
}

// step is one part of the journey. It returns nil when every check in it has held.
type step struct {
	name  string // stable, for scripts
	title string
	play  func(j *journey, ctx context.Context) error
	// newcomer steps are for customers on their first journey; in a loop, customers come back once
	// all numbers are taken.
	newcomer bool
	// once steps are too slow to repeat in a loop.
	once bool
	// service steps need the services' listener and a certificate for it.
	service bool
}

// steps is the journey. Each step finds what the ones before it have left.
var steps = []step{
	{name: "door", title: "Open the door", play: (*journey).door},
	{name: "register", title: "Register", play: (*journey).register, newcomer: true},
	{name: "login", title: "Log in with three factors", play: (*journey).login},
	{name: "refresh", title: "Let the session's access expire", play: (*journey).refresh},
	{name: "store", title: "Store a profile and a bank account", play: (*journey).store},
	{name: "read", title: "Read them back, masked and whole", play: (*journey).read},
	{name: "stale", title: "Two copies of the app change one record", play: (*journey).stale},
	{name: "replay", title: "Somebody records a request and sends it again", play: (*journey).replay},
	{name: "stolen-token", title: "Somebody steals the access token", play: (*journey).stolenToken},
	{name: "second-device", title: "Add a second device", play: (*journey).secondDevice, newcomer: true},
	{name: "sessions", title: "See all sessions, and end one", play: (*journey).sessions, once: true},
	{name: "lost-device", title: "Lose the second device", play: (*journey).lostDevice, newcomer: true},
	{name: "authenticator", title: "Log in with an authenticator app instead of an SMS", play: (*journey).authenticator, once: true},
	{name: "payment", title: "Authorise a payment: this amount to this payee", play: (*journey).payment, once: true, service: true},
	{name: "number", title: "Somebody moves the account to another number", play: (*journey).changeNumber, once: true},
	{name: "forgotten-code", title: "Forget the private code", play: (*journey).forgottenCode, once: true},
	{name: "change-code", title: "Change the private code", play: (*journey).changeCode, once: true},
	{name: "refresh-reuse", title: "Somebody uses an old refresh token", play: (*journey).refreshReuse, newcomer: true},
	{name: "attack", title: "Somebody guesses the private code", play: (*journey).attack, newcomer: true},
	{name: "logout", title: "Log out", play: (*journey).logout},
	{name: "audit", title: "Verify the audit trail of all that", play: (*journey).audit, once: true},
}

// Run plays the journey once, or in a loop. Its error says that something did not come out as it
// should; what, is printed.
func Run(ctx context.Context, o Options) error {
	if o.Out == nil {
		o.Out = io.Discard
	}
	w, err := open(o)
	if err != nil {
		return err
	}
	defer w.close()
	if o.Loop {
		return loop(ctx, w, o)
	}
	p := newPrinter(o.Out, o.JSON)
	p.begin(w.url)
	began := time.Now()
	j, err := w.newcomer()
	if err != nil {
		return err
	}
	defer j.leave()
	j.said, j.told = p.said, p.told
	played, err := j.run(ctx, p)
	p.end(played, time.Since(began), err)
	if err != nil {
		return fmt.Errorf("the demo stopped at step %d: %w", played, err)
	}
	return nil
}

// run plays the steps that fit the customer, and returns how many it began.
func (j *journey) run(ctx context.Context, p *printer) (played int, err error) {
	for _, s := range steps {
		if s.newcomer && j.regular || s.once && j.looped || s.name == "audit" && j.world.verify == nil || s.service && j.world.service == nil {
			continue
		}
		played++
		if err := j.step(ctx, p, played, s); err != nil {
			return played, err
		}
	}
	return played, nil
}

func (j *journey) step(ctx context.Context, p *printer, n int, s step) error {
	p.step(n, s)
	began := time.Now()
	j.last = began
	err := s.play(j, ctx)
	p.stepEnd(time.Since(began), err)
	if err != nil {
		return fmt.Errorf("%s: %w", s.title, err)
	}
	return nil
}

// ready is what a server writes about itself.
type ready struct {
	App     string   `json:"app"`
	Service string   `json:"service"`
	CA      string   `json:"ca"`
	Pins    []string `json:"pins"`
}

func readReady(path string) (ready, error) {
	var r ready
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("no server is ready: %s is not there; start one with `strongroom dev`, or name another with --ready-file", path)
	}
	if err != nil {
		return r, fmt.Errorf("ready file: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil || r.App == "" {
		return r, fmt.Errorf("%s is not a ready file: it names no app listener", path)
	}
	return r, nil
}

// mismatch is a check that did not hold.
type mismatch struct{ what, want, got string }

func (m *mismatch) Error() string {
	return fmt.Sprintf("%s: expected %s, observed: %s", m.what, m.want, m.got)
}
