package audit_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

var monitor = actor.Actor{Kind: actor.Service, ID: "spiffe://bank.example/monitor"}

// feed serves the trail to monitor, whose purpose must be monitoring.
func (h *house) feed(t *testing.T) (*audit.Feed, *httptest.Server) {
	t.Helper()
	f := h.trail.NewFeed(func(_ actor.Actor, purpose string) *problem.Problem {
		if purpose != "monitoring" {
			return problem.New(problem.Forbidden, "not-permitted", "No.")
		}
		return nil
	})
	mux := http.NewServeMux()
	f.Register(humago.New(mux, huma.DefaultConfig("test", "1")))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(actor.With(r.Context(), monitor)))
	}))
	t.Cleanup(server.Close)
	t.Cleanup(f.Close) // first, or the server waits
	return f, server
}

// follow asks for the stream and returns what reads its next event.
func follow(t *testing.T, server *httptest.Server, query, last string) (next func() audit.Entry, stop func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/v1/audit/stream"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Strongroom-Purpose", "monitoring")
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatal(answer.Status, answer.Header)
	}
	lines := bufio.NewScanner(answer.Body)
	return func() (e audit.Entry) {
		t.Helper()
		var id string
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				id = text
			}
			if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				if err := json.Unmarshal([]byte(text), &e); err != nil || fmt.Sprint(e.Index) != id {
					t.Fatalf("%v: id %s, %s", err, id, text)
				}
				return e
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return e
	}, func() { cancel(); answer.Body.Close() }
}

func TestFeed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.recordAtOnce(300) // more than a page
		h.sequence()
		_, server := h.feed(t)

		next, stop := follow(t, server, "?from=0", "")
		for i := range 300 {
			if e := next(); e.Index != int64(i) || e.Personal != nil || e.Action != "test.thing.do" {
				t.Fatalf("event %d: %+v", i, e)
			}
		}
		// What comes later comes by itself; the opening is an event too.
		h.sequence()
		if e := next(); e.Index != 300 || e.Action != audit.ActionStream || e.Reason != "purpose:monitoring" || e.Resource != "trail from index 0" {
			t.Errorf("%+v", e)
		}
		stop()

		next, stop = follow(t, server, "", "123")
		if e := next(); e.Index != 124 {
			t.Errorf("resumed at %d", e.Index)
		}
		stop()
		next, stop = follow(t, server, "", "")
		h.sequence()
		if e := next(); e.Index < 301 {
			t.Errorf("the end is at %d", e.Index)
		}
		stop()

		for _, row := range []struct{ purpose, query, last, event string }{
			{"marketing", "", "", "not-permitted"},
			{"monitoring", "?from=100000", "", "index-not-there"},
			{"monitoring", "", "100000", "index-not-there"},
			{"monitoring", "", "-1", ""},
			{"monitoring", "", "x", ""},
			{"monitoring", "", "9223372036854775807", ""},
		} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/v1/audit/stream"+row.query, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Strongroom-Purpose", row.purpose)
			r.Header.Set("Last-Event-ID", row.last)
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode < 400 {
				t.Errorf("%+v: %s", row, answer.Status)
			}
			if row.event != "" && h.count(`SELECT count(*) FROM event WHERE action = $1 AND outcome = 'denied' AND reason = $2`, audit.ActionStream, row.event) == 0 {
				t.Errorf("%s left no event", row.event)
			}
		}
	})
}

// A silent stream lives on past the time that a reader has for a page, over HTTP/2 too.
func TestFeedSurvivesSilence(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), audit.Options{})
	f, plain := h.feed(t)
	f.Hurry(1500*time.Millisecond, time.Second)
	server := httptest.NewUnstartedServer(plain.Config.Handler)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	t.Cleanup(f.Close)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/v1/audit/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Strongroom-Purpose", "monitoring")
	answer, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.ProtoMajor != 2 {
		t.Fatal(answer.Proto)
	}
	beats := 0
	for lines := bufio.NewScanner(answer.Body); beats < 2; {
		if !lines.Scan() {
			t.Fatalf("the stream ended after %d signs of life: %v", beats, lines.Err())
		}
		if lines.Text() == ": still here" {
			beats++
		}
	}
}

// There is room for so many readers, a closed one makes room, and a feed that ends lets everybody go.
func TestFeedIsBounded(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, dbtest.Open(t, db.SQLite), audit.Options{})
	f, _ := h.feed(t)
	var readers []*audit.FeedReader
	for {
		r, err := f.Open(ctx, monitor, "monitoring", -1)
		if problem.Is(err, "too-many-readers") {
			break
		}
		if err != nil || len(readers) > 1000 {
			t.Fatal(len(readers), err)
		}
		readers = append(readers, r)
	}
	if len(readers) != 16 {
		t.Errorf("%d readers", len(readers))
	}
	readers[0].Close()
	readers[0].Close() // twice is once
	r, err := f.Open(ctx, monitor, "monitoring", -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open(ctx, monitor, "monitoring", -1); !problem.Is(err, "too-many-readers") {
		t.Errorf("closing twice made room for two: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := r.Next(ctx); err != nil {
				ended <- err
				return
			}
		}
	}()
	f.Close()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("a reader at the end of the feed: %v", err)
	}
	if _, err := f.Open(ctx, monitor, "monitoring", -1); !problem.Is(err, "server-stopping") {
		t.Errorf("a feed that has ended: %v", err)
	}
}
