package db_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// ear writes down what it hears.
type ear struct {
	mu    sync.Mutex
	words map[string]int
}

func (e *ear) hear(word string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.words == nil {
		e.words = map[string]int{}
	}
	e.words[word]++
}

func (e *ear) heard(word string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.words[word]
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// currentAfter waits until everything has been heard that was committed before now.
func currentAfter(t *testing.T, f *db.Feed) {
	t.Helper()
	now := time.Now()
	eventually(t, "nothing is heard any more", func() bool { return f.Current().After(now) })
}

func announce(t *testing.T, d *db.DB, topic, word string) {
	t.Helper()
	if err := d.Update(t.Context(), func(tx *db.Tx) error { return tx.Announce(t.Context(), topic, word) }); err != nil {
		t.Fatal(err)
	}
}

func TestAnnouncements(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var own, other ear
		f := d.Follow("own", own.hear)
		d.Follow("other", other.hear)
		announce(t, d, "own", "one")
		if own.heard("one") == 0 || other.heard("one") != 0 {
			t.Error("this process does not hear at once, or on the wrong topic")
		}
		failed := errors.New("no")
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			if err := tx.Announce(t.Context(), "own", "two"); err != nil {
				return err
			}
			return failed
		}); !errors.Is(err, failed) {
			t.Fatal(err)
		}
		currentAfter(t, f)
		if own.heard("two") != 0 {
			t.Error("what was not committed is heard")
		}
	})
}

// Two processes on one PostgreSQL hear each other. One that loses its connection knows that it may have
// missed something, and hears again once it is back.
func TestAnnouncementsBetweenProcesses(t *testing.T) {
	u := dbtest.PostgresURL(t)
	cable, through := proxied(t, u)
	open := func(u string) *db.DB {
		d, err := db.Open(context.Background(), db.Options{URL: u, Environment: "dev", Create: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	here, there := open(u), open(through)
	var e ear
	f := there.Follow("topic", e.hear)
	if !f.Current().IsZero() {
		t.Error("all has been heard before anything was listened to")
	}
	currentAfter(t, f)
	announce(t, here, "topic", "one")
	currentAfter(t, f)
	if e.heard("one") != 1 {
		t.Errorf("heard %d times what another process announced", e.heard("one"))
	}
	doubts := e.heard("")
	cable.down.Store(true)
	cable.cut()
	eventually(t, "the loss of the connection raises no doubt", func() bool { return e.heard("") > doubts && f.Current().IsZero() })
	announce(t, here, "topic", "two")
	cut := time.Now()
	doubts = e.heard("")
	cable.down.Store(false)
	eventually(t, "it never hears again", func() bool { return f.Current().After(cut) })
	if e.heard("two") == 0 && e.heard("") == doubts {
		t.Error("it hears again, and does not know that it missed something")
	}
	announce(t, here, "topic", "three")
	currentAfter(t, f)
	if e.heard("three") != 1 {
		t.Error("it hears no more after the connection was lost")
	}
}

// pooler stands before PostgreSQL as one that shares connections does: it names process identifiers of its own, brings a
// client what belongs to its own query, and loses what comes at other times. It counts the beats that it brings.
type pooler struct {
	target string
	beats  atomic.Int64
}

func pooled(t *testing.T, u string) (*pooler, string) {
	t.Helper()
	parsed, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p := &pooler{target: parsed.Host}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	q := parsed.Query()
	q.Set("sslmode", "disable") // what it brings, it reads
	parsed.Host, parsed.RawQuery = l.Addr().String(), q.Encode()
	return p, parsed.String()
}

func (p *pooler) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	for in := bufio.NewReader(server); ; {
		head := make([]byte, 5) // kind and length, of all messages from the server
		if _, err := io.ReadFull(in, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		switch {
		case head[0] == 'K': // BackendKeyData
			binary.BigEndian.PutUint32(body, binary.BigEndian.Uint32(body)+1<<30)
		case head[0] == 'A' && bytes.Contains(body, []byte("\x00beat ")): // NotificationResponse
			p.beats.Add(1)
		case head[0] == 'A':
			continue
		}
		if _, err := client.Write(append(head, body...)); err != nil {
			return
		}
	}
}

// Behind a pooler a process hears itself, and may not hear others: it never says that it has heard all.
func TestWhatIsHeardThroughAPoolerIsNotBelieved(t *testing.T) {
	u := dbtest.PostgresURL(t)
	p, through := pooled(t, u)
	d, err := db.Open(context.Background(), db.Options{URL: through, Environment: "dev", Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	var e ear
	f := d.Follow("topic", e.hear)
	f.Current()
	// Once the second is here, the first one has been judged.
	eventually(t, "it does not try to hear", func() bool { return p.beats.Load() >= 2 })
	if at := f.Current(); !at.IsZero() {
		t.Errorf("it believes what it heard through a pooler, until %v", at)
	}
}
