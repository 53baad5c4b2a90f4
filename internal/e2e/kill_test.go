package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"strongroom/client"
	"strongroom/internal/db/dbtest"
)

// cycles is how often the server is killed on each database.
const cycles = 25

// TestKill kills the server under load, again and again, and proves that nothing acknowledged is
// lost: every record reads back as it was last acknowledged (or as it was last tried, when the answer
// was lost with the server), every acknowledged write and read has its event, and the trail verifies
// after every restart.
func TestKill(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		data := t.TempDir()
		s := startPatient(t, data, database...)
		const writers = 8
		people := make([]*writer, writers)
		for i := range people {
			people[i] = &writer{person: mustPerson(t, s), key: "main"}
		}
		var acknowledged int64
		for cycle := range cycles {
			stop, cancel := context.WithCancel(t.Context())
			var load sync.WaitGroup
			for _, w := range people {
				load.Go(func() { w.run(t.Context(), stop) })
			}
			// Long enough for some hundred writes, and never the same moment twice.
			time.Sleep(time.Duration(150+37*(cycle%7)) * time.Millisecond)
			s.kill()
			cancel()
			load.Wait()

			s = startPatient(t, data, database...)
			for _, w := range people {
				if err := w.check(t.Context(), s); err != nil {
					t.Fatalf("cycle %d: %v", cycle, err)
				}
			}
			verifyHolds(t, data, s)
		}
		var records int64
		for _, w := range people {
			acknowledged += w.acknowledged
			records += int64(w.tries)
		}
		if acknowledged < cycles*writers {
			t.Errorf("only %d writes were acknowledged in %d cycles: the load was no load", acknowledged, cycles)
		}
		// Each acknowledged deed has an event. Tries that got no answer may have one as well.
		if events := verifyHolds(t, data, s); events < acknowledged {
			t.Errorf("%d events for %d acknowledged deeds", events, acknowledged)
		}
		t.Logf("%d writes acknowledged of %d tried, over %d kills", acknowledged, records, cycles)
	})
}

// startPatient starts a server whose access tokens outlive the test: a session survives a restart,
// but an app that was killed while it refreshed has to log in again, which is not tested here.
func startPatient(t *testing.T, data string, args ...string) *server {
	t.Helper()
	s, err := tryStart(t, "dev", data, []string{"STRONGROOM_LOGIN_ACCESS_LIFETIME=15m"}, args...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// verifyHolds verifies the trail and returns the number of its events.
func verifyHolds(t *testing.T, data string, s *server) int64 {
	t.Helper()
	r := command(t, "audit", "verify", "--data", data, "--json")
	if r.code != 0 {
		t.Fatalf("the trail does not hold: %v\n%s", r, s.log)
	}
	var report struct{ Events, Pending int64 }
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatal(err)
	}
	return report.Events + report.Pending
}

// writer is a customer who keeps overwriting one record with a growing number, and remembers what
// was acknowledged.
type writer struct {
	*person
	key          string
	etag         string
	known        int   // the newest number that is certainly there
	maybe        int   // a later number whose answer was lost, or 0
	tries        int   // the newest number tried
	acknowledged int64 // writes
}

type profile struct {
	GivenName  string `json:"given_name"`
	FamilyName string `json:"family_name"`
}

// run writes until stop ends or the server does. A write that has begun is awaited: one that was given
// up could be done after somebody looked.
func (w *writer) run(ctx, stop context.Context) {
	for stop.Err() == nil {
		w.tries++
		condition := client.IfNew()
		if w.etag != "" {
			condition = client.IfMatch(w.etag)
		}
		record, err := w.app.Collection("profile").Put(ctx, w.key, profile{strconv.Itoa(w.tries), "Writer"}, condition)
		if err != nil {
			// The server is being killed; whether this write was done is not known.
			w.maybe = w.tries
			return
		}
		w.known, w.etag, w.maybe = w.tries, record.ETag, 0
		w.acknowledged++
	}
}

// check logs in again and reads what is there.
func (w *writer) check(ctx context.Context, s *server) error {
	w.moveTo(s)
	record, err := w.app.Collection("profile").Reveal(ctx, w.key, "show-to-customer")
	if err != nil {
		if errors.Is(err, client.ErrRecordNotFound) && w.known == 0 {
			return nil
		}
		return fmt.Errorf("reading %s of %s: %w", w.key, w.id, err)
	}
	var got profile
	if err := record.Decode(&got); err != nil {
		return err
	}
	number, err := strconv.Atoi(got.GivenName)
	if err != nil || number != w.known && number != w.maybe {
		return fmt.Errorf("%s has %q; acknowledged was %d, unanswered %d", w.id, got.GivenName, w.known, w.maybe)
	}
	w.known, w.etag, w.maybe = number, record.ETag, 0
	return nil
}

// TestTwoServersOnePostgres runs two servers on one database and one root key: customers go from one
// to the other, both sequence the trail, and it never forks, even when one is killed.
func TestTwoServersOnePostgres(t *testing.T) {
	url := dbtest.PostgresURL(t)
	first, second := t.TempDir(), t.TempDir()
	a := startPatient(t, first, "--database", url)
	for _, name := range []string{"root.key", "root.passphrase", "strongroom.yaml"} {
		b, err := os.ReadFile(filepath.Join(first, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(second, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(second, "policies"), os.DirFS(filepath.Join(first, "policies"))); err != nil {
		t.Fatal(err)
	}
	b := startPatient(t, second, "--database", url)

	var people []*writer
	for i := range 8 {
		s := []*server{a, b}[i%2]
		people = append(people, &writer{person: mustPerson(t, s), key: "main"})
	}
	for round := range 4 {
		stop, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		for _, w := range people {
			load.Go(func() { w.run(t.Context(), stop) })
		}
		time.Sleep(400 * time.Millisecond)
		if round == 2 {
			a.kill()
		}
		cancel()
		load.Wait()
		if round == 2 {
			a = startPatient(t, first, "--database", url)
		}
		for i, w := range people {
			// Everybody moves to the other server.
			if err := w.check(t.Context(), []*server{a, b}[(i+round)%2]); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		verifyHolds(t, first, a)
		verifyHolds(t, second, b)
	}
	var acknowledged int64
	for _, w := range people {
		acknowledged += w.acknowledged
	}
	if acknowledged < 100 {
		t.Errorf("only %d writes were acknowledged", acknowledged)
	}
}
