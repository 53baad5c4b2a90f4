package assurance

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"strongroom/internal/check"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// diskRoom is that a share of the disk that the folder is on is free.
func diskRoom(folder string, least float64) check.Check {
	look := func(least float64) check.Observation {
		did := "asked the file system of the data folder how much of it is free"
		var disk unix.Statfs_t
		if err := unix.Statfs(folder, &disk); err != nil {
			return check.Undecided(did, "The file system does not say: %v", err)
		}
		free := float64(disk.Bavail) / float64(disk.Blocks)
		if free < least {
			return check.Failed(did, "%.0f%% of the disk is free, less than %.0f%%.", 100*free, 100*least)
		}
		return check.Held(did, "%.0f%% of the disk is free.", 100*free).With("free", free)
	}
	return check.Check{
		ID: "disk-has-room", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says: "There is room on the disk.",
		Run:  func(context.Context) check.Observation { return look(least) },
		// The same code where the promise does not hold. A check without it is refused.
		Sabotage: func(context.Context) check.Observation { return look(1.1) },
	}
}

// block returns the first block of that language after the heading of docs/assurance.md.
func block(t *testing.T, heading, language string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/assurance.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(page), "\n## "+heading+"\n")
	_, after, also := strings.Cut(after, "\n```"+language+"\n")
	text, _, ended := strings.Cut(after, "\n```\n")
	if !found || !also || !ended {
		t.Fatalf("docs/assurance.md has no block of %s under %q", language, heading)
	}
	return text + "\n"
}

// TestTheWorkedExample follows docs/assurance.md: the code of the page is the one above, which the compiler has read, and
// with the claim of the page it turns green and red.
func TestTheWorkedExample(t *testing.T) {
	const heading = "Adding a claim and a check"
	here, err := os.ReadFile("worked_example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if code := block(t, heading, "go"); !strings.Contains(string(here), "\n"+code+"\n") {
		t.Errorf("the page and this file have different code; the page's:\n%s", code)
	}
	claims, err := parse([]byte(block(t, heading, "yaml")))
	if err != nil || len(claims) != 1 {
		t.Fatalf("%+v %v", claims, err)
	}
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	for least, want := range map[float64]State{0: Green, 1.1: Red} {
		a, err := New(Options{DB: h.o.DB, Trail: h.trail, Checks: []check.Check{diskRoom(t.TempDir(), least)}, Rooms: []string{"backup"}, Clock: h.clock})
		if err != nil {
			t.Fatal(err)
		}
		a.claims = append(slices.Clone(a.claims), claims...)
		h.clock.Advance(time.Minute)
		if _, err := a.Run(t.Context(), operator, []string{"disk-has-room"}); err != nil {
			t.Fatal(err)
		}
		page, err := a.NewPage(PageOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := page.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		mux, w := http.NewServeMux(), httptest.NewRecorder()
		page.Register(mux)
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, PagePath, nil))
		if shown := `<article id="CAP-3" class="` + string(want) + `">` + "\n<p class=\"sentence\">" + claims[0].Sentence; !strings.Contains(w.Body.String(), shown) {
			t.Errorf("with %v of the disk asked for, the page does not say %q", least, shown)
		}
		if err := a.Sabotage(t.Context(), []string{"disk-has-room"}, func(name string, seen check.Observation) {
			if seen.Outcome != check.Fails {
				t.Errorf("%s did not see the damage: %+v", name, seen)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
}
