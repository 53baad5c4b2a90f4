package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Collection is one kind of the customer's records, for example "profile".
type Collection struct {
	name   string
	client *Client
}

// Collection returns the customer's records of a kind. Whether the server knows it shows in use.
func (c *Client) Collection(name string) Collection { return Collection{name, c} }

// Record is an encrypted document of the customer. Its fields are masked unless Reveal returned it.
type Record struct {
	Collection string
	Key        string
	Version    int64
	Fields     map[string]any // strings, json.Number, booleans; as JSON has them
	UpdatedAt  time.Time
	ETag       string // for IfMatch
}

// String names the record without its fields.
func (r Record) String() string {
	return fmt.Sprintf("%s/%s version %d", r.Collection, r.Key, r.Version)
}

// GoString is String.
func (r Record) GoString() string { return r.String() }

// LogValue logs the record without its fields.
func (r Record) LogValue() slog.Value { return slog.StringValue(r.String()) }

// Decode puts the fields into a struct or map, as json.Unmarshal does.
func (r Record) Decode(into any) error {
	b, err := json.Marshal(r.Fields)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return errors.New("strongroom: the record does not fit into the value") // err might repeat a value
	}
	return nil
}

type recordAnswer struct {
	Collection string          `json:"collection"`
	Key        string          `json:"key"`
	Version    int64           `json:"version"`
	Fields     json.RawMessage `json:"fields"`
	UpdatedAt  time.Time       `json:"updated_at"`
}

func (a recordAnswer) record(etag string) (Record, error) {
	r := Record{Collection: a.Collection, Key: a.Key, Version: a.Version, UpdatedAt: a.UpdatedAt, ETag: etag}
	if r.ETag == "" {
		r.ETag = strconv.Quote(strconv.FormatInt(a.Version, 10))
	}
	if len(a.Fields) == 0 {
		return r, nil
	}
	d := json.NewDecoder(bytes.NewReader(a.Fields))
	d.UseNumber() // amounts must not pass through floating point
	if d.Decode(&r.Fields) != nil {
		return Record{}, errors.New("strongroom: the answer's fields are not an object")
	}
	return r, nil
}

// Condition says under which circumstances a record is written or deleted.
type Condition struct{ header, value string }

// IfMatch asks that the record still is what it was when it was read: etag is its Record.ETag.
func IfMatch(etag string) Condition { return Condition{"If-Match", etag} }

// IfNew asks that there is no such record yet.
func IfNew() Condition { return Condition{"If-None-Match", "*"} }

func header(conditions []Condition) http.Header {
	h := http.Header{}
	for _, c := range conditions {
		h.Set(c.header, c.value)
	}
	return h
}

// Put writes a record and returns it masked. The fields are a struct or map that marshals to a JSON
// object. To replace a record, IfMatch is needed; without it the server answers
// ErrPreconditionNeeded, and ErrVersionMismatch when the record has changed since.
func (c Collection) Put(ctx context.Context, key string, fields any, conditions ...Condition) (Record, error) {
	p, err := path("records", c.name, key)
	if err != nil {
		return Record{}, err
	}
	return c.one(ctx, request{method: http.MethodPut, path: p, header: header(conditions), body: fields, proof: bySession})
}

// Get returns a record with its sensitive fields masked.
func (c Collection) Get(ctx context.Context, key string) (Record, error) {
	p, err := path("records", c.name, key)
	if err != nil {
		return Record{}, err
	}
	return c.one(ctx, request{method: http.MethodGet, path: p, proof: bySession, repeatable: true})
}

// Reveal returns a record whole, or only the named fields of it whole, for a purpose that the
// collection allows, such as "show-to-customer". The purpose goes into the audit trail.
func (c Collection) Reveal(ctx context.Context, key, purpose string, fields ...string) (Record, error) {
	p, err := path("records", c.name, key)
	if err != nil {
		return Record{}, err
	}
	reveal := "all"
	if len(fields) > 0 {
		reveal = strings.Join(fields, ",")
	}
	q := url.Values{"reveal": {reveal}}
	if purpose != "" {
		q.Set("purpose", purpose)
	}
	return c.one(ctx, request{method: http.MethodGet, path: p, query: q, proof: bySession, repeatable: true})
}

func (c Collection) one(ctx context.Context, r request) (Record, error) {
	var body recordAnswer
	a, err := c.client.call(ctx, r, &body)
	if err != nil {
		return Record{}, err
	}
	return body.record(a.header.Get("ETag"))
}

// Delete deletes a record. IfMatch makes sure that it is the one that was read.
func (c Collection) Delete(ctx context.Context, key string, conditions ...Condition) error {
	p, err := path("records", c.name, key)
	if err != nil {
		return err
	}
	_, err = c.client.call(ctx, request{method: http.MethodDelete, path: p, header: header(conditions), proof: bySession}, nil)
	return err
}

// Page is a part of a collection.
type Page struct {
	Records []Record // masked, in the order of their keys
	Next    string   // where the next page begins; "" when this is the last
}

// List returns up to limit records that come after the key after; 0 leaves the limit to the server.
func (c Collection) List(ctx context.Context, limit int, after string) (Page, error) {
	p, err := path("records", c.name)
	if err != nil {
		return Page{}, err
	}
	q := url.Values{}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if after != "" {
		q.Set("after", after)
	}
	var body struct {
		Records []recordAnswer `json:"records"`
		Next    string         `json:"next"`
	}
	if _, err := c.client.call(ctx, request{method: http.MethodGet, path: p, query: q, proof: bySession, repeatable: true}, &body); err != nil {
		return Page{}, err
	}
	page := Page{Next: body.Next}
	for _, a := range body.Records {
		r, err := a.record("")
		if err != nil {
			return Page{}, err
		}
		page.Records = append(page.Records, r)
	}
	return page, nil
}

// All returns every record of the collection, masked, page by page. An error is the last thing it
// yields.
func (c Collection) All(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for after := ""; ; {
			page, err := c.List(ctx, 0, after)
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, r := range page.Records {
				if !yield(r, nil) {
					return
				}
			}
			if page.Next == "" || page.Next == after {
				return
			}
			after = page.Next
		}
	}
}
