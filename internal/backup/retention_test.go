package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

func idAt(t time.Time) string { return newSnapshotID(t) }

// With a snapshot every hour for eight years, the retention keeps what its numbers say, spread as they say.
func TestRetentionKeeps(t *testing.T) {
	var ids []string
	end := time.Date(2034, 6, 15, 12, 0, 0, 0, time.UTC)
	for at := end.AddDate(-8, 0, 0); !at.After(end); at = at.Add(time.Hour) {
		ids = append(ids, "snap_"+at.Format(idTime)+"_aaaaaa")
	}
	keep := DefaultRetention.keep(ids)
	count := map[string]int{}
	for _, is := range keep {
		count[is.class]++
	}
	// Days that begin a week, weeks that begin a month and so on count for the longer class.
	want := map[string]int{"yearly": 7, "monthly": 11, "weekly": 7, "daily": 12, "hourly": 23}
	for class, n := range want {
		if count[class] != n {
			t.Errorf("%d are kept as %s, and %d should be: %v", count[class], class, n, count)
		}
	}
	for id, class := range map[string]string{
		"snap_20280101t000000_aaaaaa": "yearly", "snap_20331101t000000_aaaaaa": "monthly",
		"snap_20340605t000000_aaaaaa": "weekly", "snap_20340613t000000_aaaaaa": "daily",
		"snap_20340615t120000_aaaaaa": "hourly", "snap_20270101t000000_aaaaaa": "", "snap_20340614t070000_aaaaaa": "",
	} {
		if keep[id].class != class {
			t.Errorf("%s is kept as %q, not %q", id, keep[id].class, class)
		}
	}
	if until := keep["snap_20280101t000000_aaaaaa"].until; !until.Equal(time.Date(2035, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("the copy of 2028 is locked until %v", until)
	}
}

// Whatever the times of snapshots are, the newest is kept; what was kept stays kept when the clock jumps
// ahead; and once let go, a snapshot is never asked back.
func TestRetentionOfAnyTimes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		k := Retention{
			Hourly: rapid.IntRange(0, 5).Draw(rt, "hourly"), Daily: rapid.IntRange(0, 5).Draw(rt, "daily"), Weekly: rapid.IntRange(0, 4).Draw(rt, "weekly"),
			Monthly: rapid.IntRange(0, 4).Draw(rt, "monthly"), Yearly: rapid.IntRange(0, 3).Draw(rt, "yearly"),
		}
		at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var there []string
		gone := map[string]bool{}
		for range rapid.IntRange(1, 60).Draw(rt, "snapshots") {
			at = at.Add(time.Duration(rapid.IntRange(1, 3000).Draw(rt, "hours")) * 17 * time.Minute)
			there = append(there, idAt(at))
			keep := k.keep(there)
			if _, ok := keep[there[len(there)-1]]; !ok {
				rt.Fatal("the newest is not kept")
			}
			if most := k.Hourly + k.Daily + k.Weekly + k.Monthly + k.Yearly + 1; len(keep) > most {
				rt.Fatalf("%d are kept, and at most %d should be", len(keep), most)
			}
			for id := range keep {
				if gone[id] {
					rt.Fatalf("%s was let go", id)
				}
			}
			there = slices.DeleteFunc(there, func(id string) bool {
				_, ok := keep[id]
				gone[id] = !ok
				return !ok
			})
		}
		if text, err := parseRetention(k.String()); err != nil || text != k {
			rt.Fatalf("%s is read as %s, %v", k, text, err)
		}
	})
}

// objectsIn counts the objects of a repository in a folder.
func objectsIn(t testing.TB, folder string) (n int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(folder, "objects"), func(_ string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPrune(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		at := clock.NewManual(time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC))
		near, keys := h.folder("near", Data), h.folder("near-keys", Keys)
		raised := &register{}
		b := h.with(t, func(o *Options) {
			o.Clock, o.Findings = at, raised
			o.Retention = Retention{Hourly: 2, Daily: 2, Keys: 3 * time.Hour}
		}, near, keys)
		var all []string
		for i := range 6 { // one an hour
			h.fill(t, i*100, (i+1)*100, strings.Repeat(fmt.Sprint("body", i), 30))
			s, err := b.Run(t.Context(), operator)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s.ID)
			at.Advance(time.Hour)
		}
		if err := b.Hold(t.Context(), operator, all[2], "asked for by the court"); err != nil {
			t.Fatal(err)
		}
		if err := b.Hold(t.Context(), operator, "snap_20200101t000000_aaaaaa", "?"); !problem.Is(err, "backup-not-found") {
			t.Errorf("holding what is not there: %v", err)
		}
		orphan := strings.Repeat("ab", 32)
		if err := b.o.Repositories[0].putObject(t.Context(), orphan, []byte("of a run that died"), time.Time{}); err != nil {
			t.Fatal(err)
		}
		p, err := b.Prune(t.Context(), operator)
		// The first is that of the day, the last two those of their hours, one is held.
		if err != nil || !slices.Equal(p.Snapshots, []string{all[1], all[3]}) || p.Objects != 0 {
			t.Fatalf("%+v, %v", p, err)
		}
		// Objects go when they are older than the grace, as the repository's clock tells.
		before := objectsIn(t, filepath.Join(h.base, "near"))
		b.o.Grace = time.Nanosecond
		if p, err = b.Prune(t.Context(), operator); err != nil || p.Objects == 0 || len(p.Skipped) > 0 {
			t.Fatalf("%+v, %v", p, err)
		}
		if _, err := b.o.Repositories[0].get(t.Context(), objectKey(orphan)); !errors.Is(err, errAbsent) {
			t.Errorf("the orphan: %v", err)
		}
		if after := objectsIn(t, filepath.Join(h.base, "near")); after >= before {
			t.Errorf("%d objects before, %d after", before, after)
		}
		for _, id := range []string{all[0], all[2], all[4], all[5]} {
			if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, id), nil); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}

		// A held snapshot cannot be deleted; any other only by two people, neither of them a job, neither
		// twice the same, and not with approvals of yesterday.
		if err := b.Delete(t.Context(), operator, all[2], false); !problem.Is(err, "backup-held") {
			t.Errorf("deleting what is held: %v", err)
		}
		if err := b.Release(t.Context(), operator, all[2]); err != nil {
			t.Fatal(err)
		}
		if err := b.Release(t.Context(), operator, all[2]); !problem.Is(err, "backup-hold-not-found") {
			t.Errorf("releasing twice: %v", err)
		}
		operators := b.o.Approvals.(*Operators)
		approve := func(who, deed string) error {
			return operators.Approve(t.Context(), actor.OfSystem(who), deed)
		}
		refused := func(when string) {
			t.Helper()
			if err := b.Delete(t.Context(), operator, all[2], false); !problem.Is(err, "backup-approval-needed") {
				t.Errorf("%s: %v", when, err)
			}
		}
		refused("without approvals")
		if err := approve("cli:ada", "delete "+all[2]); err != nil {
			t.Fatal(err)
		}
		refused("with one")
		if err := approve("cli:ada", "delete "+all[2]); err != nil {
			t.Fatal(err)
		}
		refused("with one, given twice")
		if err := approve("job:backup", "delete "+all[2]); !problem.Is(err, "backup-approver-refused") {
			t.Errorf("a job: %v", err)
		}
		if err := approve("cli:ada", "delete everything"); !problem.Is(err, "backup-deed-unknown") {
			t.Errorf("a deed that is none: %v", err)
		}
		if err := approve("cli:grace", "delete "+all[4]); err != nil {
			t.Fatal(err)
		}
		refused("with another's for another snapshot")
		at.Advance(ApprovalLife + time.Second)
		if err := approve("cli:grace", "delete "+all[2]); err != nil {
			t.Fatal(err)
		}
		refused("with one of yesterday")
		if len(raised.open()) > 0 {
			t.Errorf("raised too early: %v", raised.open())
		}
		if err := approve("cli:ada", "delete "+all[2]); err != nil {
			t.Fatal(err)
		}
		if err := b.Delete(t.Context(), operator, all[2], false); err != nil {
			t.Fatal(err)
		}
		if open := raised.open(); !slices.Equal(open, []string{FindingEarlyDeletion + " " + all[2]}) {
			t.Errorf("raised: %v", open)
		}
		if _, err := b.sources(t.Context(), all[2]); err == nil {
			t.Error("the deleted snapshot is there")
		}

		// So does a shorter retention; a longer one is simply taken.
		b.o.Retention.Daily = 1
		if _, err := b.Prune(t.Context(), operator); !problem.Is(err, "backup-approval-needed") {
			t.Errorf("a shorter retention: %v", err)
		}
		for _, who := range []string{"cli:ada", "cli:grace"} {
			if err := approve(who, "keep "+b.o.Retention.String()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Prune(t.Context(), operator); err != nil || len(raised.open()) != 2 {
			t.Errorf("with two approvals: %v, %v", err, raised.open())
		}
		b.o.Retention.Daily = 5
		if _, err := b.Prune(t.Context(), operator); err != nil {
			t.Errorf("a longer retention: %v", err)
		}
	})
}

// Nothing is swept while a manifest cannot be read, in any repository; junk beside the manifests does not
// count.
func TestNothingIsSweptInDoubt(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	raised := &register{}
	b := h.with(t, func(o *Options) { o.Findings, o.Grace = raised, time.Nanosecond }, h.folder("near", Data), h.folder("far", Data), h.folder("keys", Keys))
	h.fill(t, 0, 200, "body")
	s, err := b.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	near, far := b.o.Repositories[0], b.o.Repositories[1]
	orphan := strings.Repeat("ab", 32)
	if err := errors.Join(near.putObject(t.Context(), orphan, []byte("orphan"), time.Time{}), near.put(t.Context(), manifestPrefix+s.ID+".184.tmp", []byte("half"))); err != nil {
		t.Fatal(err)
	}
	whole, err := near.get(t.Context(), manifestPrefix+s.ID)
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte("x"), whole...)
	if err := errors.Join(near.put(t.Context(), manifestPrefix+s.ID, damaged), far.put(t.Context(), manifestPrefix+s.ID, damaged)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Prune(t.Context(), operator); !problem.Is(err, "backup-prune-failed") {
		t.Errorf("with a manifest that is damaged everywhere: %v", err)
	}
	if _, err := near.get(t.Context(), objectKey(orphan)); err != nil {
		t.Errorf("it was swept: %v", err)
	}
	if len(raised.open()) != 1 {
		t.Errorf("raised: %v", raised.open())
	}
	// One whole copy is enough to know.
	if err := far.put(t.Context(), manifestPrefix+s.ID, whole); err != nil {
		t.Fatal(err)
	}
	p, err := b.Prune(t.Context(), operator)
	if err != nil || p.Objects != 2 || len(raised.open()) > 0 {
		t.Errorf("%+v, %v, %v", p, err, raised.open())
	}
}

// The clock is set back by a year, and ahead by ten: snapshots stay in their order, the newest keys are the
// newest, and nothing is deleted for it.
func TestClockJumps(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	at := clock.NewManual(now)
	b := h.with(t, func(o *Options) { o.Clock = at; o.Grace = time.Nanosecond }, h.folder("near", Data), h.folder("keys", Keys))
	var all []string
	for i, jump := range []time.Duration{0, -365 * 24 * time.Hour, 10 * 365 * 24 * time.Hour, -10 * 365 * 24 * time.Hour} {
		at.Advance(jump)
		h.fill(t, 0, 50, fmt.Sprint("at ", i))
		s, err := b.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s.ID)
		if sources := h.sources(t, s.ID); sources[1].manifest.ID != s.ID {
			t.Errorf("%s is restored with the keys of %s", s.ID, sources[1].manifest.ID)
		}
	}
	if !slices.IsSorted(all) {
		t.Errorf("out of order: %v", all)
	}
	// The second, with the clock set back, was taken within the hour of the first.
	p, err := b.Prune(t.Context(), operator)
	if err != nil || !slices.Equal(p.Snapshots, []string{all[1]}) {
		t.Errorf("%+v, %v", p, err)
	}
	for _, id := range []string{all[0], all[2], all[3]} {
		if err := restore(context.Background(), dbtest.SQLite(t), h.sources(t, id), nil); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}
