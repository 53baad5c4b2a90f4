package db_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/secret"
)

const (
	childDir = "STRONGROOM_DB_TEST_CHILD_DIR"
	childKey = "STRONGROOM_DB_TEST_CHILD_KEY"
	childRun = "STRONGROOM_DB_TEST_CHILD_RUN"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child writes rows from several goroutines for as long as it lives, and prints each key after
// the database acknowledged it.
func child(dir string) error {
	key, err := hex.DecodeString(os.Getenv(childKey))
	if err != nil {
		return err
	}
	ctx := context.Background()
	d, err := db.Open(ctx, db.Options{Dir: dir, File: "strongroom-1.db", Key: secret.New(key), Environment: "dev"})
	if err != nil {
		return err
	}
	failed := make(chan error)
	var out sync.Mutex
	for g := range 8 {
		go func() {
			for i := 0; ; i++ {
				k := fmt.Sprintf("%s-%d-%d", os.Getenv(childRun), g, i)
				err := d.Update(ctx, func(tx *db.Tx) error {
					_, err := tx.Exec(ctx, insertScratch, k, make([]byte, 1000), i)
					return err
				})
				if err != nil {
					failed <- err
					return
				}
				out.Lock()
				fmt.Println(k)
				out.Unlock()
			}
		}()
	}
	return <-failed
}

// Whatever was acknowledged before SIGKILL is there afterwards.
func TestKilled(t *testing.T) {
	o := dbtest.SQLite(t)
	d := open(t, o)
	scratch(t, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var acknowledged []string
	for run := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+o.Dir, childKey+"="+hex.EncodeToString(o.Key.Reveal()),
			childRun+"="+strconv.Itoa(run))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for n := 0; ; n++ {
			if n == 500+700*run {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			line, err := lines.ReadString('\n')
			if err != nil { // a part of a line was not printed in whole
				break
			}
			acknowledged = append(acknowledged, strings.TrimSpace(line))
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the child ended with %v", err)
		}
		if run%2 == 0 {
			continue // the next child recovers on its own
		}
		d := open(t, o)
		there := map[string]bool{}
		for _, k := range keys(t, d) {
			there[k] = true
		}
		for _, k := range acknowledged {
			if !there[k] {
				t.Errorf("%s was acknowledged and is gone", k)
			}
		}
		var verdict string
		err = d.View(context.Background(), func(tx *db.Tx) error {
			return tx.QueryRow(context.Background(), `PRAGMA integrity_check`).Scan(&verdict)
		})
		if err != nil || verdict != "ok" {
			t.Errorf("integrity: %q %v", verdict, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(acknowledged) < 1000 {
		t.Errorf("only %d rows were acknowledged", len(acknowledged))
	}
}
