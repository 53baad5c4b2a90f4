package events

import (
	"bytes"
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/problem"
)

// BatchPath is where many events are sent at once, as BatchType (ndjson.org): one event a line.
const (
	BatchPath = "/v1/events/batch"
	BatchType = "application/x-ndjson"
)

// Purpose is what every request carries. It is exported because huma looks only into exported fields.
type Purpose struct {
	Purpose string `header:"Strongroom-Purpose" doc:"Why this is done: a slug that policies decide on and the trail keeps. Needed." example:"payment"`
}

type eventInput struct {
	Purpose
	Once    string `header:"Idempotency-Key" doc:"The event's id, when the event has none."`
	RawBody []byte `contentType:"application/json"`
}

type eventBatchInput struct {
	Purpose
	RawBody []byte `contentType:"application/x-ndjson"`
}

// RecordedEventView is an event that was taken in.
type RecordedEventView struct {
	Event    string `json:"event" doc:"The event's id in the trail."`
	Repeated bool   `json:"repeated,omitempty" doc:"It was there already."`
}

type eventOutput struct{ Body RecordedEventView }

// EventProblemView is why an event was not taken in (RFC 9457).
type EventProblemView struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// EventResultView is what came of one line.
type EventResultView struct {
	Event    string            `json:"event,omitempty" doc:"The event's id in the trail."`
	Repeated bool              `json:"repeated,omitempty" doc:"It was there already."`
	Problem  *EventProblemView `json:"problem,omitempty"`
}

type eventBatchOutput struct {
	Body struct {
		Results []EventResultView `json:"results" nullable:"false" doc:"In the order of the lines."`
	}
}

// TrailQueryView says which events are asked for: those that fit everything that it names.
type TrailQueryView struct {
	Actor       string    `json:"actor,omitempty" maxLength:"256" doc:"Who acted."`
	OnBehalf    string    `json:"on_behalf_of,omitempty" maxLength:"256" doc:"For whom a service acted." example:"staff:anna"`
	Customer    string    `json:"customer,omitempty" maxLength:"256" doc:"Whose data or account it was."`
	Device      string    `json:"device,omitempty" maxLength:"256"`
	Action      string    `json:"action,omitempty" maxLength:"256" doc:"What was done; with a * at its end, all that begins so." example:"vault.*"`
	Outcome     string    `json:"outcome,omitempty" enum:"granted,denied,failed"`
	Resource    string    `json:"resource,omitempty" maxLength:"256" doc:"Whole."`
	Address     string    `json:"address,omitempty" maxLength:"64" doc:"Whole."`
	Country     string    `json:"country,omitempty" pattern:"^[A-Z]{2}$"`
	Request     string    `json:"request,omitempty" maxLength:"256"`
	Transaction string    `json:"transaction,omitempty" maxLength:"256"`
	Reason      string    `json:"reason,omitempty" maxLength:"256" doc:"What the reason contains."`
	From        time.Time `json:"from,omitzero" doc:"Not before."`
	To          time.Time `json:"to,omitzero" doc:"Before."`
	Since       int64     `json:"since_seconds,omitempty" minimum:"0" doc:"Not longer ago when the search begins."`
}

func (v TrailQueryView) query() audit.Query {
	q := audit.Query{Actor: v.Actor, OnBehalf: v.OnBehalf, Customer: v.Customer, Device: v.Device, Action: v.Action, Outcome: v.Outcome,
		Resource: v.Resource, Address: v.Address, Country: v.Country, Request: v.Request, Transaction: v.Transaction, Reason: v.Reason, Since: v.Since}
	if !v.From.IsZero() {
		q.From = audit.Moment(v.From)
	}
	if !v.To.IsZero() {
		q.To = audit.Moment(v.To)
	}
	return q
}

func viewOf(q audit.Query) TrailQueryView {
	v := TrailQueryView{Actor: q.Actor, OnBehalf: q.OnBehalf, Customer: q.Customer, Device: q.Device, Action: q.Action, Outcome: q.Outcome,
		Resource: q.Resource, Address: q.Address, Country: q.Country, Request: q.Request, Transaction: q.Transaction, Reason: q.Reason, Since: q.Since}
	if q.From != 0 {
		v.From = time.UnixMicro(q.From).UTC()
	}
	if q.To != 0 {
		v.To = time.UnixMicro(q.To).UTC()
	}
	return v
}

// PageAsk is what may change from page to page.
type PageAsk struct {
	Reveal bool   `json:"reveal,omitempty" doc:"Open what is personal; [erased] of customers who were erased."`
	Limit  int    `json:"limit,omitempty" minimum:"0" maximum:"500" doc:"0 means 50."`
	After  string `json:"after,omitempty" maxLength:"128" doc:"The next of the page before."`
}

type trailSearchInput struct {
	Purpose
	Body struct {
		Query TrailQueryView `json:"query"`
		PageAsk
	}
}

type runInput struct {
	Purpose
	Name string `path:"name"`
	Body PageAsk
}

type saveInput struct {
	Purpose
	Name string `path:"name" doc:"At most 64 of a-z, 0-9 and hyphens."`
	Body TrailQueryView
}

type namedInput struct {
	Purpose
	Name string `path:"name"`
}

type listInput struct{ Purpose }

type trailPageOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         audit.Page
}

// SavedSearchView is a saved search.
type SavedSearchView struct {
	Name   string         `json:"name"`
	Query  TrailQueryView `json:"query"`
	MadeBy string         `json:"made_by"`
	MadeAt time.Time      `json:"made_at"`
}

type searchesOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Searches []SavedSearchView `json:"searches" nullable:"false"`
	}
}

const noStore = "no-store"

// Register adds the operations to the API of the services' listener.
func (e *Events) Register(api huma.API) {
	operation := func(id, method, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"Trail"},
			Security: []map[string][]string{{"service": {}}}, RejectUnknownQueryParameters: true,
			Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusUnprocessableEntity,
				http.StatusServiceUnavailable}}
	}
	record := operation("record-event", http.MethodPost, "/v1/events", "Record an event of the service's own")
	record.DefaultStatus, record.SkipValidateBody, record.MaxBodyBytes, record.BodyReadTimeout = http.StatusCreated, true, MaxLine+1, 10*time.Second
	record.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{},
		Description: "The event, as audit.sources declares it: id, action, outcome, reason, resource, customer, on_behalf_of, transaction, occurred_at, fields."}
	huma.Register(api, record, func(ctx context.Context, in *eventInput) (*eventOutput, error) {
		results, err := e.Record(ctx, actor.From(ctx), in.Purpose.Purpose, in.Once, [][]byte{in.RawBody})
		if err != nil {
			return nil, err
		}
		if p := results[0].Problem; p != nil {
			return nil, p
		}
		return &eventOutput{RecordedEventView{results[0].Event, results[0].Repeated}}, nil
	})
	record.RequestBody.Content["application/json"].Schema = &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}

	batch := operation("record-events", http.MethodPost, BatchPath, "Record up to 1000 events of the service's own")
	batch.SkipValidateBody, batch.MaxBodyBytes, batch.BodyReadTimeout = true, MaxBody+1, 30*time.Second
	batch.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{},
		Description: "One event a line, each as for record-event and with an id. All that are well-formed are taken in together."}
	huma.Register(api, batch, func(ctx context.Context, in *eventBatchInput) (*eventBatchOutput, error) {
		results, err := e.Record(ctx, actor.From(ctx), in.Purpose.Purpose, "", split(in.RawBody))
		if err != nil {
			return nil, err
		}
		out := &eventBatchOutput{}
		out.Body.Results = make([]EventResultView, len(results))
		for i, r := range results {
			out.Body.Results[i] = EventResultView{Event: r.Event, Repeated: r.Repeated}
			if p := r.Problem; p != nil {
				status := p.GetStatus()
				out.Body.Results[i].Problem = &EventProblemView{problem.URN + p.Slug(), http.StatusText(status), status, p.Detail()}
			}
		}
		return out, nil
	})
	batch.RequestBody.Content[BatchType].Schema = &huma.Schema{Type: huma.TypeString}

	huma.Register(api, operation("search-trail", http.MethodPost, "/v1/audit/search", "Find events of the trail"),
		func(ctx context.Context, in *trailSearchInput) (*trailPageOutput, error) {
			return page(e.o.Search.Run(ctx, actor.From(ctx), in.Body.Query.query(), in.Body.ask(in.Purpose)))
		})
	huma.Register(api, operation("run-search", http.MethodPost, "/v1/audit/searches/{name}/run", "Run a saved search"),
		func(ctx context.Context, in *runInput) (*trailPageOutput, error) {
			return page(e.o.Search.RunSaved(ctx, actor.From(ctx), in.Name, in.Body.ask(in.Purpose)))
		})
	save := operation("save-search", http.MethodPut, "/v1/audit/searches/{name}", "Save a search")
	save.DefaultStatus = http.StatusNoContent
	huma.Register(api, save, func(ctx context.Context, in *saveInput) (*struct{}, error) {
		return nil, e.o.Search.Save(ctx, actor.From(ctx), in.Purpose.Purpose, in.Name, in.Body.query())
	})
	remove := operation("delete-search", http.MethodDelete, "/v1/audit/searches/{name}", "Delete a saved search")
	remove.DefaultStatus = http.StatusNoContent
	huma.Register(api, remove, func(ctx context.Context, in *namedInput) (*struct{}, error) {
		return nil, e.o.Search.Delete(ctx, actor.From(ctx), in.Purpose.Purpose, in.Name)
	})
	huma.Register(api, operation("list-searches", http.MethodGet, "/v1/audit/searches", "List the saved searches"),
		func(ctx context.Context, in *listInput) (*searchesOutput, error) {
			list, err := e.o.Search.List(ctx, actor.From(ctx), in.Purpose.Purpose)
			if err != nil {
				return nil, err
			}
			out := &searchesOutput{CacheControl: noStore}
			out.Body.Searches = make([]SavedSearchView, len(list))
			for i, s := range list {
				out.Body.Searches[i] = SavedSearchView{s.Name, viewOf(s.Query), s.MadeBy, s.MadeAt}
			}
			return out, nil
		})
}

func (a PageAsk) ask(p Purpose) audit.Ask {
	return audit.Ask{Purpose: p.Purpose, Reveal: a.Reveal, Limit: a.Limit, After: a.After}
}

func page(p audit.Page, err error) (*trailPageOutput, error) {
	if err != nil {
		return nil, err
	}
	return &trailPageOutput{noStore, p}, nil
}

// split returns the lines that are not empty, at most one more than a batch may have.
func split(body []byte) (lines [][]byte) {
	for l := range bytes.Lines(body) {
		if l = bytes.TrimSpace(l); len(l) > 0 {
			lines = append(lines, l)
		}
		if len(lines) > MaxLines {
			break
		}
	}
	return lines
}
