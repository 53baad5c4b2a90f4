package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// ErrNoSource says that the service is declared as no source of events.
const ErrNoSource = Slug("no-source")

// The outcomes of events.
const (
	Granted = "granted" // it was done
	Denied  = "denied"  // it was refused
	Failed  = "failed"  // it should have been done, but was not
)

// Event is what a service reports to the trail, as the operator's configuration declares it for the service.
// Action and Outcome are needed. Nothing but Fields and OnBehalfOf may be personal: all else stays in the
// trail for ever.
type Event struct {
	// ID is the service's own, 8 to 128 printable ASCII characters: the same whenever the event is sent again,
	// so that it is recorded once. RecordEvents makes one for an event without.
	ID          string         `json:"id"`
	Action      string         `json:"action"`
	Outcome     string         `json:"outcome"`
	Reason      string         `json:"reason,omitempty"` // a slug
	Resource    string         `json:"resource,omitempty"`
	Customer    string         `json:"customer,omitempty"`
	OnBehalfOf  *OnBehalfOf    `json:"on_behalf_of,omitempty"`
	Transaction string         `json:"transaction,omitempty"`
	OccurredAt  time.Time      `json:"occurred_at,omitzero"`
	Fields      map[string]any `json:"fields,omitempty"`
}

// OnBehalfOf is for whom a service acted: Kind is customer, staff or system.
type OnBehalfOf struct {
	Kind   string `json:"kind"`
	ID     string `json:"id"`
	Device string `json:"device,omitempty"`
}

// EventResult is what came of an Event.
type EventResult struct {
	Event    string // its id in the trail
	Repeated bool   // it was there already
	Err      error  // a *Problem; nil when it is recorded
}

// RecordEvent records one event of the service's own, with the id that the event or WithIdempotencyKey gives.
func (e Errand) RecordEvent(ctx context.Context, event Event) (EventResult, error) {
	if event.ID == "" {
		event.ID = idempotencyKey(ctx)
	}
	var out struct {
		Event    string `json:"event"`
		Repeated bool   `json:"repeated"`
	}
	_, err := e.change(WithIdempotencyKey(ctx, event.ID), http.MethodPost, nil, event, &out, "events")
	return EventResult{Event: out.Event, Repeated: out.Repeated, Err: err}, err
}

// MaxEvents is the most events that RecordEvents sends at once.
const MaxEvents = 1000

// RecordEvents records up to MaxEvents events of the service's own. Those that are well-formed are recorded
// together; the results are in the order of the events. An error means that none may be: send them again
// with the same ids.
func (e Errand) RecordEvents(ctx context.Context, events ...Event) ([]EventResult, error) {
	var body bytes.Buffer
	lines := json.NewEncoder(&body)
	for _, event := range events {
		if event.ID == "" {
			event.ID = rand.Text()
		}
		if err := lines.Encode(event); err != nil {
			return nil, err
		}
	}
	var out struct {
		Results []struct {
			Event    string         `json:"event"`
			Repeated bool           `json:"repeated"`
			Problem  *problemAnswer `json:"problem"`
		} `json:"results"`
	}
	header := http.Header{"Strongroom-Purpose": {e.purpose}, "Content-Type": {"application/x-ndjson"}}
	p, err := path("events", "batch")
	if err != nil {
		return nil, err
	}
	_, err = e.client.call(ctx, request{method: http.MethodPost, path: p, header: header,
		body: rawBody(body.Bytes()), repeatable: true}, &out)
	if err != nil {
		return nil, err
	}
	if len(out.Results) != len(events) {
		return nil, errors.New("strongroom: the answer has another number of results")
	}
	results := make([]EventResult, len(events))
	for i, r := range out.Results {
		results[i] = EventResult{Event: r.Event, Repeated: r.Repeated}
		if r.Problem != nil {
			results[i].Err = r.Problem.problem()
		}
	}
	return results, nil
}

// rawBody is a request body that is sent as it is.
type rawBody []byte

type problemAnswer struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func (p problemAnswer) problem() *Problem {
	return &Problem{Type: p.Type, Slug: Slug(strings.TrimPrefix(p.Type, urn)), Title: p.Title, Status: p.Status, Detail: p.Detail}
}

// EventQuery says which events of the trail are asked for: those that fit everything that it names.
type EventQuery struct {
	Actor       string    `json:"actor,omitempty"`
	OnBehalfOf  string    `json:"on_behalf_of,omitempty"` // "staff:anna"
	Customer    string    `json:"customer,omitempty"`
	Device      string    `json:"device,omitempty"`
	Action      string    `json:"action,omitempty"` // "vault.*" for all that begins so
	Outcome     string    `json:"outcome,omitempty"`
	Resource    string    `json:"resource,omitempty"`
	Address     string    `json:"address,omitempty"`
	Country     string    `json:"country,omitempty"` // two capital letters
	Request     string    `json:"request,omitempty"`
	Transaction string    `json:"transaction,omitempty"`
	Reason      string    `json:"reason,omitempty"` // what it contains
	From        time.Time `json:"from,omitzero"`
	To          time.Time `json:"to,omitzero"`
	Since       int64     `json:"since_seconds,omitempty"` // not longer ago, in seconds, when the search begins: for SaveSearch
}

// FoundEvent is an event of the trail.
type FoundEvent struct {
	ID    string    `json:"id"`
	Index int64     `json:"index"` // its place in the log
	Time  time.Time `json:"time"`
	Actor struct {
		Kind    string `json:"kind"`
		ID      string `json:"id"`
		Device  string `json:"device"`
		Session string `json:"session"`
	} `json:"actor"`
	Action      string            `json:"action"`
	Resource    string            `json:"resource"`
	Customer    string            `json:"customer"`
	Outcome     string            `json:"outcome"`
	Reason      string            `json:"reason"`
	Transaction string            `json:"transaction"`
	Request     string            `json:"request"`
	Fields      map[string]string `json:"fields"`
	Personal    map[string]string `json:"personal"` // when it was asked for
}

// EventPage is a part of what a search finds, newest first. It may have no events and yet a Next.
type EventPage struct {
	Events  []FoundEvent `json:"events"`
	Next    string       `json:"next"`    // gives the next page; empty when there is none
	Indexed int64        `json:"indexed"` // so many events of the log can be found
	Waiting int64        `json:"waiting"` // and so many cannot yet
}

// SearchEvents returns up to limit events of the trail, without what is personal; 0 leaves the limit to the
// server. After is the Next of the page before.
func (e Errand) SearchEvents(ctx context.Context, q EventQuery, limit int, after string) (EventPage, error) {
	return e.searchEvents(ctx, q, limit, after, false)
}

// RevealEvents is SearchEvents with what is personal, which policies decide on by itself.
func (e Errand) RevealEvents(ctx context.Context, q EventQuery, limit int, after string) (EventPage, error) {
	return e.searchEvents(ctx, q, limit, after, true)
}

func (e Errand) searchEvents(ctx context.Context, q EventQuery, limit int, after string, reveal bool) (page EventPage, err error) {
	body := map[string]any{"query": q, "limit": limit, "after": after, "reveal": reveal}
	_, err = e.ask(ctx, http.MethodPost, body, &page, url.Values(nil), "audit", "search")
	return page, err
}

// SavedSearch is a search of the trail that has a name.
type SavedSearch struct {
	Name   string     `json:"name"`
	Query  EventQuery `json:"query"`
	MadeBy string     `json:"made_by"`
	MadeAt time.Time  `json:"made_at"`
}

// SaveSearch saves a search under a name of at most 64 of a-z, 0-9 and hyphens, for everybody who may search.
func (e Errand) SaveSearch(ctx context.Context, name string, q EventQuery) error {
	_, err := e.ask(ctx, http.MethodPut, q, nil, nil, "audit", "searches", name)
	return err
}

// SavedSearches returns all saved searches.
func (e Errand) SavedSearches(ctx context.Context) ([]SavedSearch, error) {
	var out struct {
		Searches []SavedSearch `json:"searches"`
	}
	_, err := e.ask(ctx, http.MethodGet, nil, &out, nil, "audit", "searches")
	return out.Searches, err
}

// RunSearch is SearchEvents, or RevealEvents, with a saved query.
func (e Errand) RunSearch(ctx context.Context, name string, reveal bool, limit int, after string) (page EventPage, err error) {
	body := map[string]any{"limit": limit, "after": after, "reveal": reveal}
	_, err = e.ask(ctx, http.MethodPost, body, &page, nil, "audit", "searches", name, "run")
	return page, err
}

// DeleteSearch deletes a saved search.
func (e Errand) DeleteSearch(ctx context.Context, name string) error {
	_, err := e.ask(ctx, http.MethodDelete, nil, nil, nil, "audit", "searches", name)
	return err
}
