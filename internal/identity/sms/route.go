package sms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"strongroom/internal/clock"
)

// Link is one provider of a Route.
type Link struct {
	Name   string
	Sender Sender
}

// Route is a Carrier that asks several providers in the order in which they are given, until one takes
// the message. A provider that failed to answer, or whose last messages did not arrive, is asked last
// for a while. When two providers took one message, since the first answered too late, the customer
// gets it twice, with the same code.
type Route struct {
	clock clock.Clock
	links []*link
}

type link struct {
	Link
	mu     sync.Mutex
	pause  time.Duration // of the last failure
	behind time.Time     // asked last until then
	lost   int           // messages in a row that did not arrive
}

const (
	linkPause    = 15 * time.Second // doubled with each failure in a row
	maxLinkPause = 5 * time.Minute
	maxLost      = 10 // in a row, then the provider is taken to deliver nothing
)

// NewRoute returns a Route. Names must differ.
func NewRoute(c clock.Clock, links ...Link) (*Route, error) {
	r := &Route{clock: c}
	for _, l := range links {
		if l.Name == "" || l.Sender == nil || r.find(l.Name) != nil {
			return nil, fmt.Errorf("sms: provider %q has no name of its own", l.Name)
		}
		r.links = append(r.links, &link{Link: l})
	}
	if len(r.links) == 0 {
		return nil, errors.New("sms: no provider is named")
	}
	return r, nil
}

func (r *Route) find(name string) *link {
	for _, l := range r.links {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// Send implements Sender.
func (r *Route) Send(ctx context.Context, m Message) error {
	_, err := r.Carry(ctx, m, nil)
	return err
}

// Carry implements Carrier. The error is ErrRejected when every provider rejects the message, ErrLater
// when one asks to be tried later and none failed, and otherwise tells of the failures.
func (r *Route) Carry(ctx context.Context, m Message, not []string) (via string, err error) {
	order := r.order(not)
	rejected, later := 0, 0
	var failures []error
	for n, l := range order {
		// Each has its part of the time that is left, or the first that hangs would leave none.
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if deadline, ok := ctx.Deadline(); ok {
			attempt, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(order)-n))
		}
		err := l.Sender.Send(attempt, m)
		cancel()
		switch {
		case err == nil:
			l.worked()
			return l.Name, nil
		case errors.Is(err, ErrRejected):
			rejected++
		case errors.Is(err, ErrLater):
			later++
		case ctx.Err() != nil:
			return "", ctx.Err()
		default:
			l.failed(r.clock.Now())
		}
		failures = append(failures, fmt.Errorf("%s: %w", l.Name, err))
	}
	all := errors.Join(failures...)
	switch {
	case rejected == len(order):
		return "", fmt.Errorf("%w: %w", ErrRejected, all)
	case later > 0 && rejected+later == len(order):
		return "", fmt.Errorf("%w: %w", ErrLater, all)
	}
	// That one of them rejects it must not end the message while another may still take it.
	return "", errors.New(all.Error())
}

// order is in which order providers are asked: those that work, in the order given, then the others.
func (r *Route) order(not []string) []*link {
	now := r.clock.Now()
	var first, last []*link
	for _, l := range r.links {
		switch {
		case slices.Contains(not, l.Name):
		case l.isBehind(now):
			last = append(last, l)
		default:
			first = append(first, l)
		}
	}
	if order := append(first, last...); len(order) > 0 {
		return order
	}
	return r.links
}

func (l *link) isBehind(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.behind)
}

func (l *link) worked() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause = 0
}

func (l *link) failed(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause = min(max(2*l.pause, linkPause), maxLinkPause)
	l.behind = now.Add(l.pause)
}

// Others reports whether a provider is left beside those named.
func (r *Route) Others(not []string) bool {
	return slices.ContainsFunc(r.links, func(l *link) bool { return !slices.Contains(not, l.Name) })
}

// Reports reports whether the named provider sends receipts.
func (r *Route) Reports(name string) bool {
	l := r.find(name)
	if l == nil {
		return false
	}
	_, ok := l.Sender.(Reporter)
	return ok
}

// Receipt reads a report to the named provider's address.
func (r *Route) Receipt(name string, request *http.Request, body []byte) (Receipt, error) {
	l := r.find(name)
	if l == nil {
		return Receipt{}, ErrReceipt
	}
	reporter, ok := l.Sender.(Reporter)
	if !ok {
		return Receipt{}, ErrReceipt
	}
	receipt, err := reporter.Receipt(request, body)
	if err == nil {
		l.reported(receipt.State, r.clock.Now())
	}
	return receipt, err
}

func (l *link) reported(s State, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch s {
	case Delivered:
		l.lost = 0
	case Failed:
		if l.lost++; l.lost >= maxLost {
			l.lost, l.behind = 0, now.Add(maxLinkPause)
		}
	}
}
