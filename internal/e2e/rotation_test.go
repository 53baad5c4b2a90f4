package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"strongroom/client"
)

type rotation struct {
	Version, Done, Total, Failed int
	Phase                        string
}

func rotationStatus(t *testing.T, data string) (rotation, error) {
	t.Helper()
	r := command(t, "keys", "rotate", "--status", "--json", "--data", data)
	if r.code != 0 {
		return rotation{}, fmt.Errorf("%v", r)
	}
	var got rotation
	return got, json.Unmarshal([]byte(r.stdout), &got)
}

// TestRotateUnderLoad: keys are rotated again and again while customers' journeys are played, and no
// request fails.
func TestRotateUnderLoad(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		data := t.TempDir()
		s := start(t, "dev", data, database...)
		file := ready(t, s)
		var demo result
		var playing sync.WaitGroup
		playing.Go(func() {
			demo = command(t, "demo", "--loop", "--parallel", "3", "--for", "25s", "--ready-file", file)
		})
		for version := 2; version <= 3; version++ {
			r := must(t, "keys", "rotate", "kek", "--watch", "--data", data)
			if want := fmt.Sprintf("✓ KEK %d: ", version); !strings.Contains(r.stdout, want) {
				t.Errorf("%q is not in %v", want, r)
			}
		}
		destroyFirstKEK(t, data)
		if r := must(t, "keys", "compromised", "kek", "3", "--watch", "--data", data); !strings.Contains(r.stdout, "✓ KEK 4: ") {
			t.Errorf("%v", r)
		}
		for range 2 {
			if r := must(t, "keys", "rotate", "customers", "--watch", "--data", data); !strings.Contains(r.stdout, "customers have a new version of their data key, their values sealed anew") {
				t.Errorf("%v", r)
			}
		}
		playing.Wait()
		if demo.code != 0 || strings.Contains(demo.stdout, "✗") {
			t.Errorf("a request failed while keys were rotated: %v\n%s", demo, s.log)
		}
		list := must(t, "keys", "list", "--data", data).stdout
		for _, want := range []string{"destroyed", "retired", "compromised", "kek/4"} {
			if !strings.Contains(list, want) {
				t.Errorf("%q is not in\n%s", want, list)
			}
		}
		if strings.Contains(list, "kek/1") || strings.Contains(list, "kek/2") || strings.Contains(list, "kek/3") {
			t.Errorf("an old KEK still wraps something:\n%s", list)
		}
		verifyHolds(t, data, s)
	})
}

// TestKillDuringRotation: a server that is killed in the middle of a rotation goes on with it after its
// restart, and every customer's record opens.
func TestKillDuringRotation(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		data := t.TempDir()
		slow := []string{"STRONGROOM_LOGIN_ACCESS_LIFETIME=15m", "STRONGROOM_KEYS_ROTATION_RATE=10"}
		again := func() *server {
			s, err := tryStart(t, "dev", data, slow, database...)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := again()
		people := make([]*writer, 20)
		for i := range people {
			people[i] = &writer{person: mustPerson(t, s), key: "main"}
			record, err := people[i].app.Collection("profile").Put(t.Context(), "main", profile{"1", "Writer"}, client.IfNew())
			if err != nil {
				t.Fatal(err)
			}
			people[i].known, people[i].etag = 1, record.ETag
		}
		must(t, "keys", "rotate", "kek", "--data", data)
		var now rotation
		progress := func(phase string) {
			was := now.Done
			eventually(t, phase, func() (err error) {
				if now, err = rotationStatus(t, data); err == nil && (now.Phase != phase || now.Done == was) {
					err = fmt.Errorf("the rotation is at %+v", now)
				}
				return err
			})
		}
		for range 2 {
			progress("resealing")
			s.kill()
			s = again()
			if next, err := rotationStatus(t, data); err != nil || next.Done < now.Done {
				t.Fatalf("before the kill %+v, after it %+v, %v", now, next, err)
			}
		}
		progress("done")
		if now.Failed != 0 || now.Done != now.Total {
			t.Errorf("%+v: keys were wrapped twice, or not at all", now)
		}
		destroyFirstKEK(t, data)
		now = rotation{}
		must(t, "keys", "rotate", "customers", "--data", data)
		progress("resealing")
		s.kill()
		s = again()
		progress("done")
		if now.Failed != 0 || now.Done != now.Total || now.Done < len(people) {
			t.Errorf("%+v: customers were renewed twice, or not at all", now)
		}
		s.kill()
		s = again()
		for _, p := range people {
			if err := p.check(t.Context(), s); err != nil {
				t.Error(err)
			}
		}
		verifyHolds(t, data, s)
	})
}

// destroyFirstKEK takes two backups, so that the copies of the keys that are kept need the old version no more,
// and destroys it.
func destroyFirstKEK(t testing.TB, data string) {
	t.Helper()
	for range 2 {
		must(t, "backup", "run", "--data", data)
	}
	must(t, "keys", "destroy", "kek", "1", "--data", data)
}
