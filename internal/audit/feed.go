package audit

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ActionStream is recorded before the first event is sent to a reader of the feed.
const ActionStream = "audit.trail.stream"

const (
	// maxReaders bounds the readers of one process: each looks at the database every feedEvery.
	maxReaders = 16
	feedEvery  = 500 * time.Millisecond
	// beatEvery is how often a reader without events is sent something, so that both ends, and what is
	// between them, know that the other is there.
	beatEvery = 15 * time.Second
	// writeTime is how long a reader may take to take in a page before it is cut off.
	writeTime = 10 * time.Second
	// maxReading ends every connection, so that its certificate is looked at again; the reader resumes.
	maxReading = time.Hour
)

// Feed gives services the trail as it grows, without personal parts. There is no buffer for a reader: each
// reads the log itself, from where it stands, so that a slow one costs nothing, and one that was cut off
// resumes without a gap.
type Feed struct {
	trail  *Trail
	permit func(by actor.Actor, purpose string) *problem.Problem
	places chan struct{}
	ended  chan struct{}
	once   sync.Once

	beat, write time.Duration // beatEvery and writeTime
}

// NewFeed returns a feed that lets in whom permit returns nil for.
func (t *Trail) NewFeed(permit func(by actor.Actor, purpose string) *problem.Problem) *Feed {
	return &Feed{trail: t, permit: permit, places: make(chan struct{}, maxReaders), ended: make(chan struct{}),
		beat: beatEvery, write: writeTime}
}

// Close ends all readers, and refuses new ones: a server that stops would wait for them.
func (f *Feed) Close() { f.once.Do(func() { close(f.ended) }) }

// FeedReader is one reader's place. It is not safe for concurrent use.
type FeedReader struct {
	feed *Feed
	next int64
	born time.Time
	once sync.Once
}

// Open begins to read at the index from, or at the end of the log when it is negative. It leaves an event,
// as does a refusal. Close the reader.
func (f *Feed) Open(ctx context.Context, by actor.Actor, purpose string, from int64) (*FeedReader, error) {
	t := f.trail
	e := Event{Action: ActionStream, Resource: "trail"}
	if p := f.permit(by, purpose); p != nil {
		return nil, t.Deny(ctx, by, e, p)
	}
	e.Reason = "purpose:" + purpose
	select {
	case <-f.ended:
		return nil, t.Deny(ctx, by, e, problem.New(problem.Unavailable, "server-stopping", "This server is stopping. Please try again.").RetryAfter(time.Second))
	default:
	}
	select {
	case f.places <- struct{}{}:
	default:
		return nil, t.Deny(ctx, by, e, problem.New(problem.Unavailable, "too-many-readers",
			"%d readers follow the trail on this server already. Please try again later.", maxReaders).RetryAfter(time.Minute))
	}
	r := &FeedReader{feed: f, next: from, born: time.Now()}
	err := t.Do(ctx, by, e, func(tx *db.Tx, e *Event) error {
		h, err := selectHead(ctx, tx)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w (log_head is empty)", errTampered)
		}
		if err != nil {
			return err
		}
		r.next = from
		if from < 0 {
			r.next = h.size
		}
		if r.next > h.size {
			return problem.New(problem.Invalid, "index-not-there", "The log has %d events, and so no event before index %d. Leave the index out to begin at the end.", h.size, from)
		}
		e.Resource = "trail from index " + strconv.FormatInt(r.next, 10)
		return nil
	})
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Next waits for events, until it is time for a sign of life, and returns them, none when there were none. It fails with
// io.EOF when the reader has to open the feed again.
func (r *FeedReader) Next(ctx context.Context) ([]Entry, error) {
	timer := time.NewTicker(feedEvery)
	defer timer.Stop()
	for began := time.Now(); ; {
		var events []Entry
		var next int64
		err := r.feed.trail.db.View(ctx, func(tx *db.Tx) (err error) {
			events, next, err = r.feed.trail.following(ctx, tx, r.next, false)
			return err
		})
		if err != nil {
			return nil, err
		}
		r.next = next
		if len(events) > 0 || time.Since(began) >= r.feed.beat {
			return events, nil
		}
		if time.Since(r.born) >= maxReading {
			return nil, io.EOF
		}
		select {
		case <-timer.C:
		case <-r.feed.ended:
			return nil, io.EOF
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Close makes room for another reader.
func (r *FeedReader) Close() { r.once.Do(func() { <-r.feed.places }) }

// StreamInput is what a request for the feed carries. It is exported because huma looks only into exported
// fields.
type StreamInput struct {
	Purpose string `header:"Strongroom-Purpose" doc:"Why this is done: a slug that policies decide on and the trail keeps. Needed." example:"monitoring"`
	LastID  string `header:"Last-Event-ID" maxLength:"20" doc:"The id of the last event that was received: the next one comes first."`
	From    int64  `query:"from" minimum:"-1" default:"-1" doc:"The index of the first event, without Last-Event-ID; -1 is the end of the log."`
}

// Register adds the operation to the API of the services' listener.
func (f *Feed) Register(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "stream-trail", Method: http.MethodGet, Path: "/v1/audit/stream", Summary: "Follow the audit trail", Tags: []string{"Audit"},
		Description: "Server-sent events, one for each event of the trail, in the order of the log, without personal parts. " +
			"The id is the event's index: send the last as Last-Event-ID to resume without a gap.",
		Security: []map[string][]string{{"service": {}}}, RejectUnknownQueryParameters: true,
		Responses: map[string]*huma.Response{"200": {Description: "The stream", Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}}}},
		Errors:    []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusUnprocessableEntity, http.StatusServiceUnavailable},
	}, f.serve)
}

func (f *Feed) serve(ctx context.Context, in *StreamInput) (*huma.StreamResponse, error) {
	from := in.From
	if in.LastID != "" {
		last, err := strconv.ParseInt(in.LastID, 10, 64)
		if err != nil || last < 0 || last >= 1<<62 {
			return nil, problem.New(problem.Invalid, "invalid-last-event-id", "Last-Event-ID is not the id of an event of this stream.")
		}
		from = last + 1
	}
	r, err := f.Open(ctx, actor.From(ctx), in.Purpose, from)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(out huma.Context) {
		defer r.Close()
		_, w := humago.Unwrap(out)
		out.SetHeader("Content-Type", "text/event-stream")
		out.SetHeader("Cache-Control", "no-store")
		out.SetStatus(http.StatusOK)
		if err := r.pour(ctx, w); ctx.Err() == nil && !errors.Is(err, io.EOF) {
			f.trail.log.WarnContext(ctx, "a reader of the trail was cut off", "error", err)
		}
	}}, nil
}

// pour writes events until the reader has to come again; the error says why.
func (r *FeedReader) pour(ctx context.Context, w http.ResponseWriter) error {
	control := http.NewResponseController(w)
	page := []byte("retry: 1000\n\n") // so that the reader sees at once that it is let in
	for {
		if err := control.SetWriteDeadline(time.Now().Add(r.feed.write)); err != nil {
			return err
		}
		if _, err := w.Write(page); err != nil {
			return err
		}
		if err := control.Flush(); err != nil {
			return err
		}
		// In HTTP/2 a deadline that passes ends the stream, whether anything is being written or not.
		if err := control.SetWriteDeadline(time.Now().Add(r.feed.beat + r.feed.write)); err != nil {
			return err
		}
		events, err := r.Next(ctx)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		for _, e := range events {
			data, err := json.Marshal(e) // in one line
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "id: %d\nevent: audit\ndata: %s\n\n", e.Index, data)
		}
		if len(events) == 0 {
			b.WriteString(": still here\n\n")
		}
		page = b.Bytes()
	}
}
