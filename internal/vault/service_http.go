package vault

import (
	"context"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/problem"
)

// Purpose is what every request of a service carries. It is exported because huma looks only into
// exported fields.
type Purpose struct {
	Purpose string `header:"Strongroom-Purpose" doc:"Why this is done: a slug that policies decide on and the trail keeps. Needed." example:"payment"`
}

func (p Purpose) access() Access { return Access{Purpose: p.Purpose} }

// Change is what a request that changes something may carry as well.
type Change struct {
	Purpose
	Once string `header:"Idempotency-Key" doc:"8 to 128 characters of your own making. The same request with the same key is done once, and has the same answer for 24 hours."`
}

func (c Change) access() Access { return Access{c.Purpose.Purpose, c.Once} }

// CustomerPath is the path of a customer.
type CustomerPath struct {
	Customer string `path:"customer" doc:"The customer's pseudonym." example:"cus_01jd0000000000000000000000"`
}

func (p CustomerPath) id() customer.ID { return customer.ID(p.Customer) }

// CustomerView is a customer in an answer.
type CustomerView struct {
	Customer string `json:"customer"`
}

type customerOutput struct{ Body CustomerView }

type servicePutInput struct {
	CustomerPath
	RecordPath
	Change
	IfMatch     string `header:"If-Match" doc:"The ETag of the version to replace. Needed when the record exists."`
	IfNoneMatch string `header:"If-None-Match" doc:"*: only make a new record."`
	ContentType string `header:"Content-Type" hidden:"true"`
	RawBody     []byte `contentType:"application/json"`
}

type servicePatchInput struct {
	CustomerPath
	RecordPath
	Change
	IfMatch     string `header:"If-Match" doc:"The ETag of the version to change; without it, whatever there is."`
	ContentType string `header:"Content-Type" hidden:"true"`
	RawBody     []byte `contentType:"application/merge-patch+json"`
}

type serviceGetInput struct {
	CustomerPath
	RecordPath
	Purpose
	Reveal  string `query:"reveal" doc:"all, or the names of the fields to show whole, with commas between."`
	Version int64  `query:"version" minimum:"0" doc:"An older version that the collection keeps; 0 is the newest."`
}

type serviceRecordInput struct {
	CustomerPath
	RecordPath
	Purpose
}

type serviceDeleteInput struct {
	CustomerPath
	RecordPath
	Change
	IfMatch string `header:"If-Match" doc:"The ETag of the version to delete."`
}

type serviceListInput struct {
	CustomerPath
	Purpose
	Collection string `path:"collection" doc:"A collection of the configuration, for example profile." example:"profile"`
	Limit      int    `query:"limit" default:"50" minimum:"1" maximum:"100" doc:"The most records to return."`
	After      string `query:"after" doc:"The next of the page before."`
}

// VersionView is a version of a record in an answer.
type VersionView struct {
	Version   int64     `json:"version"`
	UpdatedAt time.Time `json:"updated_at"`
	Current   bool      `json:"current"`
}

type versionsOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Versions []VersionView `json:"versions" nullable:"false" doc:"Newest first."`
	}
}

type lookupInput struct {
	Purpose
	Body struct {
		Collection string `json:"collection" maxLength:"64" example:"profile"`
		Field      string `json:"field" maxLength:"64" doc:"A field that is declared with index: true." example:"email"`
		Value      string `json:"value" maxLength:"16384" doc:"The whole value."`
	}
}

// MatchView is a record that a look-up found.
type MatchView struct {
	Customer string `json:"customer"`
	Key      string `json:"key"`
}

type lookupOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Matches []MatchView `json:"matches" nullable:"false" doc:"At most 16."`
	}
}

// ReadView asks for one record of a batch.
type ReadView struct {
	Customer   string   `json:"customer" maxLength:"64"`
	Collection string   `json:"collection" maxLength:"64"`
	Key        string   `json:"key" maxLength:"64"`
	Reveal     []string `json:"reveal,omitempty" maxItems:"128" doc:"all alone, or the names of the fields to show whole."`
}

type batchInput struct {
	Purpose
	Body struct {
		Reads []ReadView `json:"reads" minItems:"1" maxItems:"100" nullable:"false"`
	}
}

// ProblemView is why one record of a batch was not read (RFC 9457).
type ProblemView struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// ResultView is what came of one record of a batch: a record or a problem.
type ResultView struct {
	Record  *RecordView  `json:"record,omitempty"`
	Problem *ProblemView `json:"problem,omitempty"`
}

type batchOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Results []ResultView `json:"results" nullable:"false" doc:"In the order of the reads."`
	}
}

type tokeniseInput struct {
	CustomerPath
	Change
	Body struct {
		Kind          string `json:"kind" enum:"card,text"`
		Value         string `json:"value" maxLength:"4096"`
		Deterministic bool   `json:"deterministic,omitempty" doc:"Equal values of the customer have one token for the purpose."`
	}
}

// TokenView is a token in an answer.
type TokenView struct {
	Token string `json:"token"`
	Kind  string `json:"kind"`
}

type tokenOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         TokenView
}

type detokeniseInput struct {
	Purpose
	Body struct {
		Token string `json:"token" maxLength:"64"`
	}
}

type deleteTokenInput struct {
	Change
	Body struct {
		Token string `json:"token" minLength:"1" maxLength:"64"`
	}
}

type originalOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Value    string `json:"value"`
		Kind     string `json:"kind"`
		Customer string `json:"customer"`
	}
}

type createCustomerInput struct{ Change }

// Register adds the operations for services to the API of their listener.
func (s *Services) Register(api huma.API) {
	service := []map[string][]string{{"service": {}}}
	common := []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone, http.StatusUnprocessableEntity, http.StatusServiceUnavailable}
	operation := func(id, method, path, tag, summary string, errors ...int) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Tags: []string{tag}, Summary: summary,
			Security: service, RejectUnknownQueryParameters: true, Errors: append(errors, common...)}
	}
	const record = "/v1/customers/{customer}/records/{collection}/{key}"

	create := operation("create-customer", http.MethodPost, "/v1/customers", "Customers", "Make a customer who is known without the app", http.StatusBadRequest, http.StatusConflict)
	create.DefaultStatus = http.StatusCreated
	huma.Register(api, create, s.createCustomer)

	writing := []int{http.StatusBadRequest, http.StatusConflict, http.StatusPreconditionFailed, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusPreconditionRequired}
	body := &huma.RequestBody{Required: true, Description: "The record's fields.", Content: map[string]*huma.MediaType{}}
	put := operation("put-record", http.MethodPut, record, "Records", "Write a record", writing...)
	put.RequestBody, put.SkipValidateBody, put.BodyReadTimeout, put.MaxBodyBytes = body, true, 10*time.Second, maxBody+1
	huma.Register(api, put, s.putRecord)
	fields := s.describe(api)
	body.Content["application/json"].Schema = fields

	patch := operation("patch-record", http.MethodPatch, record, "Records", "Change some fields of a record", writing...)
	patch.RequestBody = &huma.RequestBody{Required: true, Description: "A JSON merge patch (RFC 7396): null takes a field away.", Content: map[string]*huma.MediaType{}}
	patch.SkipValidateBody, patch.BodyReadTimeout, patch.MaxBodyBytes = true, 10*time.Second, maxBody+1
	huma.Register(api, patch, s.patchRecord)
	patch.RequestBody.Content["application/merge-patch+json"].Schema = &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true,
		Description: "The fields to change, each as the collection declares it, or null."}

	huma.Register(api, operation("get-record", http.MethodGet, record, "Records", "Read a record, masked unless revealed"), s.getRecord)
	huma.Register(api, operation("list-versions", http.MethodGet, record+"/versions", "Records", "List the versions of a record that are kept"), s.listVersions)
	remove := operation("delete-record", http.MethodDelete, record, "Records", "Delete a record with its older versions", http.StatusBadRequest, http.StatusConflict, http.StatusPreconditionFailed)
	remove.DefaultStatus = http.StatusNoContent
	huma.Register(api, remove, s.deleteRecord)
	huma.Register(api, operation("list-records", http.MethodGet, "/v1/customers/{customer}/records/{collection}", "Records", "List the records of a collection, masked"), s.listRecords)
	huma.Register(api, operation("read-records", http.MethodPost, "/v1/records/read", "Records", "Read up to 100 records of any customers", http.StatusBadRequest), s.readRecords)
	huma.Register(api, operation("lookup", http.MethodPost, "/v1/lookup", "Records", "Find records by an indexed field", http.StatusBadRequest), s.lookup)

	huma.Register(api, operation("tokenise", http.MethodPost, "/v1/customers/{customer}/tokens", "Tokens", "Make a token for a value", http.StatusBadRequest, http.StatusConflict), s.tokenise)
	huma.Register(api, operation("detokenise", http.MethodPost, "/v1/detokenise", "Tokens", "Learn what a token stands for", http.StatusBadRequest), s.detokenise)
	forget := operation("delete-token", http.MethodPost, "/v1/tokens/delete", "Tokens", "Delete a token with its value", http.StatusBadRequest, http.StatusConflict)
	forget.DefaultStatus = http.StatusNoContent
	huma.Register(api, forget, func(ctx context.Context, in *deleteTokenInput) (*struct{}, error) {
		return nil, s.DeleteToken(ctx, actor.From(ctx), in.access(), in.Body.Token)
	})

	s.registerErasure(api, operation)
	s.registerBlobs(api, operation)
}

func (s *Services) createCustomer(ctx context.Context, in *createCustomerInput) (*customerOutput, error) {
	c, err := s.CreateCustomer(ctx, actor.From(ctx), in.access())
	if err != nil {
		return nil, err
	}
	return &customerOutput{CustomerView{string(c)}}, nil
}

func (s *Services) putRecord(ctx context.Context, in *servicePutInput) (*recordOutput, error) {
	if !isMedia(in.ContentType, "application/json") {
		return nil, problem.New(problem.UnsupportedMedia, "unsupported-media-type", "Send the record as application/json.")
	}
	r, created, err := s.Put(ctx, actor.From(ctx), in.access(), in.id(), in.ref(), in.RawBody, Condition{in.IfMatch, in.IfNoneMatch})
	if err != nil {
		return nil, err
	}
	out := answer(r)
	if created {
		out.Status = http.StatusCreated
	}
	return out, nil
}

func isMedia(header, want string) bool {
	t, _, err := mime.ParseMediaType(header)
	return err == nil && t == want
}

func (s *Services) patchRecord(ctx context.Context, in *servicePatchInput) (*recordOutput, error) {
	if !isMedia(in.ContentType, "application/merge-patch+json") {
		return nil, problem.New(problem.UnsupportedMedia, "unsupported-media-type", "Send the changes as application/merge-patch+json.")
	}
	r, err := s.Patch(ctx, actor.From(ctx), in.access(), in.id(), in.ref(), in.RawBody, Condition{IfMatch: in.IfMatch})
	if err != nil {
		return nil, err
	}
	return answer(r), nil
}

func (s *Services) getRecord(ctx context.Context, in *serviceGetInput) (*recordOutput, error) {
	var reveal Reveal
	if in.Reveal != "" {
		reveal = revealOf(strings.Split(in.Reveal, ","))
	}
	r, err := s.Get(ctx, actor.From(ctx), in.access(), in.id(), in.ref(), in.Version, reveal)
	if err != nil {
		return nil, err
	}
	return answer(r), nil
}

func revealOf(names []string) Reveal {
	if len(names) == 1 && names[0] == "all" {
		return Reveal{All: true}
	}
	return Reveal{Fields: names}
}

func (s *Services) listVersions(ctx context.Context, in *serviceRecordInput) (*versionsOutput, error) {
	versions, err := s.History(ctx, actor.From(ctx), in.access(), in.id(), in.ref())
	if err != nil {
		return nil, err
	}
	out := &versionsOutput{CacheControl: noStore}
	out.Body.Versions = make([]VersionView, len(versions))
	for i, v := range versions {
		out.Body.Versions[i] = VersionView{v.Version, v.UpdatedAt, v.Current}
	}
	return out, nil
}

func (s *Services) deleteRecord(ctx context.Context, in *serviceDeleteInput) (*struct{}, error) {
	return nil, s.Delete(ctx, actor.From(ctx), in.access(), in.id(), in.ref(), Condition{IfMatch: in.IfMatch})
}

func (s *Services) listRecords(ctx context.Context, in *serviceListInput) (*listRecordsOutput, error) {
	page, next, err := s.List(ctx, actor.From(ctx), in.access(), in.id(), in.Collection, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	out := &listRecordsOutput{CacheControl: noStore, Body: RecordPage{Records: make([]RecordView, len(page)), Next: next}}
	for i, r := range page {
		out.Body.Records[i] = view(r)
	}
	return out, nil
}

func (s *Services) readRecords(ctx context.Context, in *batchInput) (*batchOutput, error) {
	reads := make([]Read, len(in.Body.Reads))
	for i, r := range in.Body.Reads {
		reveal := revealOf(r.Reveal)
		reads[i] = Read{customer.ID(r.Customer), Ref{r.Collection, r.Key}, reveal.All, reveal.Fields}
	}
	results, err := s.Batch(ctx, actor.From(ctx), in.access(), reads)
	if err != nil {
		return nil, err
	}
	out := &batchOutput{CacheControl: noStore}
	out.Body.Results = make([]ResultView, len(results))
	for i, r := range results {
		if p := r.Err; p != nil {
			status := p.GetStatus()
			out.Body.Results[i].Problem = &ProblemView{problem.URN + p.Slug(), http.StatusText(status), status, p.Detail()}
			continue
		}
		record := view(r.Record)
		out.Body.Results[i].Record = &record
	}
	return out, nil
}

func (s *Services) lookup(ctx context.Context, in *lookupInput) (*lookupOutput, error) {
	found, err := s.Find(ctx, actor.From(ctx), in.access(), in.Body.Collection, in.Body.Field, in.Body.Value)
	if err != nil {
		return nil, err
	}
	out := &lookupOutput{CacheControl: noStore}
	out.Body.Matches = make([]MatchView, len(found))
	for i, m := range found {
		out.Body.Matches[i] = MatchView{string(m.Customer), m.Key}
	}
	return out, nil
}

func (s *Services) tokenise(ctx context.Context, in *tokeniseInput) (*tokenOutput, error) {
	t, err := s.Tokenise(ctx, actor.From(ctx), in.access(), in.id(), in.Body.Kind, in.Body.Value, in.Body.Deterministic)
	if err != nil {
		return nil, err
	}
	return &tokenOutput{noStore, TokenView(t)}, nil
}

func (s *Services) detokenise(ctx context.Context, in *detokeniseInput) (*originalOutput, error) {
	o, err := s.Detokenise(ctx, actor.From(ctx), in.access(), in.Body.Token)
	if err != nil {
		return nil, err
	}
	out := &originalOutput{CacheControl: noStore}
	out.Body.Value, out.Body.Kind, out.Body.Customer = o.Value, o.Kind, string(o.Customer)
	return out, nil
}
