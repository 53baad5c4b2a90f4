package sms

import (
	"context"
	_ "embed"
	"encoding/json"
	"html/template"
	"net/http"
	"slices"
	"sync"
	"time"

	"strongroom/internal/clock"
)

// Inbox is a Sender for development: it keeps the newest messages in memory and shows them to
// everybody who asks. It must never be mounted outside development.
type Inbox struct {
	clock clock.Clock

	mu       sync.Mutex
	messages []Received // oldest first
	arrived  chan struct{}
}

// inboxSize is how many messages an Inbox keeps.
const inboxSize = 1000

// Received is a message that lies in an Inbox.
type Received struct {
	To     string    `json:"to"`
	Text   string    `json:"text"`
	SentAt time.Time `json:"sent_at"`
	id     string
}

// NewInbox returns an empty Inbox.
func NewInbox(c clock.Clock) *Inbox {
	if c == nil {
		c = clock.System
	}
	return &Inbox{clock: c, arrived: make(chan struct{})}
}

// Send implements Sender.
func (b *Inbox) Send(_ context.Context, m Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.messages, func(r Received) bool { return r.id == m.ID }) {
		return nil
	}
	b.messages = append(b.messages, Received{m.To, m.Text, b.clock.Now(), m.ID})
	if over := len(b.messages) - inboxSize; over > 0 {
		b.messages = slices.Delete(b.messages, 0, over)
	}
	close(b.arrived)
	b.arrived = make(chan struct{})
	return nil
}

// Search returns the messages to a number, or all of them for "", newest first.
func (b *Inbox) Search(to string) []Received {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := []Received{}
	for _, m := range slices.Backward(b.messages) {
		if to == "" || m.To == to {
			found = append(found, m)
		}
	}
	return found
}

// Arrived returns a channel that is closed when the next message arrives.
func (b *Inbox) Arrived() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.arrived
}

//go:embed inbox.html
var inboxHTML string

//go:embed inbox.css
var inboxCSS []byte

var inboxPage = template.Must(template.New("inbox").Parse(inboxHTML))

// Handler serves the inbox: POST /dev/inbox/search takes {"to": "+44…"} and answers
// {"messages": […]}, newest first; GET /dev/inbox is a page that renews itself.
func (b *Inbox) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /dev/inbox/search", func(w http.ResponseWriter, r *http.Request) {
		var query struct {
			To string `json:"to"`
		}
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1024))
		d.DisallowUnknownFields()
		if err := d.Decode(&query); err != nil || query.To == "" {
			http.Error(w, `send {"to": "+44…"}`, http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if err := json.NewEncoder(w).Encode(map[string]any{"messages": b.Search(query.To)}); err != nil {
			return // the client has gone
		}
	})
	mux.HandleFunc("GET /dev/inbox", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		if err := inboxPage.Execute(w, b.Search("")); err != nil {
			return // the client has gone
		}
	})
	mux.HandleFunc("GET /dev/inbox/style.css", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/css; charset=utf-8")
		_, _ = w.Write(inboxCSS)
	})
	return mux
}
