package vault

import (
	"context"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/problem"
)

// RecordView is a record in an answer.
type RecordView struct {
	Collection string         `json:"collection"`
	Key        string         `json:"key"`
	Version    int64          `json:"version"`
	Fields     map[string]any `json:"fields" doc:"The fields, masked unless revealed."`
	UpdatedAt  time.Time      `json:"updated_at"`
}

func view(r Record) RecordView {
	return RecordView{r.Collection, r.Key, r.Version, r.Fields, r.UpdatedAt}
}

// noStore keeps records out of every cache on their way (RFC 9111 section 5.2.2.5).
const noStore = "no-store"

// RecordPath is the path of a record. It is exported because huma looks only into exported fields.
type RecordPath struct {
	Collection string `path:"collection" doc:"A collection of the configuration, for example profile." example:"profile"`
	Key        string `path:"key" doc:"1 to 64 letters, digits, dots, hyphens and underscores." example:"main"`
}

func (p RecordPath) ref() Ref { return Ref(p) }

type putRecordInput struct {
	RecordPath
	IfMatch     string `header:"If-Match" doc:"The ETag of the version to replace. Needed when the record exists."`
	IfNoneMatch string `header:"If-None-Match" doc:"*: only make a new record."`
	ContentType string `header:"Content-Type" hidden:"true"`
	RawBody     []byte `contentType:"application/json"`
}

type recordOutput struct {
	Status       int
	ETag         string `header:"ETag" doc:"The version, for If-Match."`
	CacheControl string `header:"Cache-Control"`
	Body         RecordView
}

type getRecordInput struct {
	RecordPath
	Reveal  string `query:"reveal" doc:"all, or the names of the fields to show whole, with commas between."`
	Purpose string `query:"purpose" doc:"Why whole values are read; one of the collection's purposes."`
}

type listRecordsInput struct {
	Collection string `path:"collection" doc:"A collection of the configuration, for example profile." example:"profile"`
	Limit      int    `query:"limit" default:"50" minimum:"1" maximum:"100" doc:"The most records to return."`
	After      string `query:"after" doc:"The next of the page before."`
}

type listRecordsOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         RecordPage
}

// RecordPage is some of a collection's records, masked.
type RecordPage struct {
	Records []RecordView `json:"records" nullable:"false"`
	Next    string       `json:"next" doc:"Give it as after to read on; empty at the end."`
}

type deleteRecordInput struct {
	RecordPath
	IfMatch string `header:"If-Match" doc:"The ETag of the version to delete."`
}

// Register adds the operations on the calling customer's own records and blobs.
func (v *Vault) Register(api huma.API) {
	session := func(scope string) []map[string][]string { return []map[string][]string{{"session": {scope}}} }
	tags := []string{"Records"}
	body := &huma.RequestBody{Required: true, Description: "The record's fields.", Content: map[string]*huma.MediaType{}}

	huma.Register(api, huma.Operation{
		OperationID: "put-record", Method: http.MethodPut, Path: "/v1/records/{collection}/{key}", Tags: tags,
		Summary:  "Write a record",
		Security: session("write"), DefaultStatus: http.StatusOK, RejectUnknownQueryParameters: true,
		RequestBody: body, SkipValidateBody: true, BodyReadTimeout: 10 * time.Second,
		MaxBodyBytes: maxBody + 1, // huma refuses a body of exactly the limit
		Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict,
			http.StatusGone, http.StatusPreconditionFailed, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType,
			http.StatusPreconditionRequired, http.StatusServiceUnavailable},
	}, v.putRecord)
	// huma knows a raw body only as a string; what it has to look like is declared per collection.
	body.Content["application/json"].Schema = v.describe(api)

	huma.Register(api, huma.Operation{
		OperationID: "get-record", Method: http.MethodGet, Path: "/v1/records/{collection}/{key}", Tags: tags,
		Summary:  "Read a record, masked unless revealed for a purpose",
		Security: session("read"), RejectUnknownQueryParameters: true,
		Errors: []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone, http.StatusServiceUnavailable},
	}, v.getRecord)

	huma.Register(api, huma.Operation{
		OperationID: "list-records", Method: http.MethodGet, Path: "/v1/records/{collection}", Tags: tags,
		Summary:  "List the records of a collection, masked",
		Security: session("read"), RejectUnknownQueryParameters: true,
		Errors: []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone, http.StatusServiceUnavailable},
	}, v.listRecords)

	huma.Register(api, huma.Operation{
		OperationID: "delete-record", Method: http.MethodDelete, Path: "/v1/records/{collection}/{key}", Tags: tags,
		Summary:  "Delete a record",
		Security: session("write"), DefaultStatus: http.StatusNoContent, RejectUnknownQueryParameters: true,
		Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone,
			http.StatusPreconditionFailed, http.StatusServiceUnavailable},
	}, v.deleteRecord)
	v.registerBlobs(api)
}

func (v *Vault) putRecord(ctx context.Context, in *putRecordInput) (*recordOutput, error) {
	if t, _, err := mime.ParseMediaType(in.ContentType); err != nil || t != "application/json" {
		return nil, problem.New(problem.UnsupportedMedia, "unsupported-media-type", "Send the record as application/json.")
	}
	by := actor.From(ctx)
	r, created, err := v.Put(ctx, by, by.Customer(), in.ref(), in.RawBody, Condition{in.IfMatch, in.IfNoneMatch})
	if err != nil {
		return nil, err
	}
	out := answer(r)
	if created {
		out.Status = http.StatusCreated
	}
	return out, nil
}

func (v *Vault) getRecord(ctx context.Context, in *getRecordInput) (*recordOutput, error) {
	by := actor.From(ctx)
	reveal := Reveal{Purpose: in.Purpose}
	if in.Reveal == "all" {
		reveal.All = true
	} else if in.Reveal != "" {
		reveal.Fields = strings.Split(in.Reveal, ",")
	}
	r, err := v.Get(ctx, by, by.Customer(), in.ref(), reveal)
	if err != nil {
		return nil, err
	}
	return answer(r), nil
}

func answer(r Record) *recordOutput {
	return &recordOutput{Status: http.StatusOK, ETag: ETag(r.Version), CacheControl: noStore, Body: view(r)}
}

func (v *Vault) listRecords(ctx context.Context, in *listRecordsInput) (*listRecordsOutput, error) {
	by := actor.From(ctx)
	page, next, err := v.List(ctx, by, by.Customer(), in.Collection, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	out := &listRecordsOutput{CacheControl: noStore, Body: RecordPage{Records: make([]RecordView, len(page)), Next: next}}
	for i, r := range page {
		out.Body.Records[i] = view(r)
	}
	return out, nil
}

func (v *Vault) deleteRecord(ctx context.Context, in *deleteRecordInput) (*struct{}, error) {
	by := actor.From(ctx)
	return nil, v.Delete(ctx, by, by.Customer(), in.ref(), Condition{IfMatch: in.IfMatch})
}

// describe puts a schema of each collection into the document and returns their choice.
func (v *Vault) describe(api huma.API) *huma.Schema {
	components := api.OpenAPI().Components.Schemas.Map()
	choice := &huma.Schema{Description: "The fields of a record of the collection that the path names."}
	for _, name := range slices.Sorted(maps.Keys(v.collections())) {
		s := v.collections()[name]
		object := &huma.Schema{
			Type: huma.TypeObject, Title: name, Description: s.Description,
			Properties: map[string]*huma.Schema{}, AdditionalProperties: false,
		}
		for _, f := range s.Fields {
			object.Properties[f.Name] = f.describe()
			if f.Required {
				object.Required = append(object.Required, f.Name)
			}
		}
		id := "RecordOf_" + name
		components[id] = object
		choice.OneOf = append(choice.OneOf, &huma.Schema{Ref: "#/components/schemas/" + id})
	}
	return choice
}

func (f Field) describe() *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString, Description: string(f.Sensitivity) + ", mask " + string(f.Mask)}
	switch f.Type {
	case Integer:
		s.Type = huma.TypeInteger
	case Number:
		s.Type = huma.TypeNumber
	case Boolean:
		s.Type = huma.TypeBoolean
	case Date:
		s.Format = "date"
	case Email:
		s.Format = "idn-email"
	case Phone:
		s.Pattern = `^\+[1-9][0-9]{6,14}$`
	case Country:
		s.Pattern = `^[A-Z]{2}$`
	case Currency:
		s.Pattern = `^[A-Z]{3}$`
	case IBAN, BIC:
		s.Format = string(f.Type)
	case String:
		s.MaxLength = &f.MaxLength
		if f.Pattern != "" {
			s.Pattern = `^(?:` + f.Pattern + `)$`
		}
	}
	return s
}
