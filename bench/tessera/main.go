// Command tessera measures transparency-dev's Tessera on a POSIX folder as the audit trail is measured: callers that
// wait for the same promise, one entry of 400 bytes after the other. It is the baseline of docs/performance.md and
// no part of the product.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func main() {
	callers := flag.String("callers", "1,16,64,256", "how many callers wait at once, one run each")
	age := flag.Duration("batch-age", tessera.DefaultBatchMaxAge, "how long a batch may wait")
	batch := flag.Uint("batch", tessera.DefaultBatchMaxSize, "entries in a batch")
	interval := flag.Duration("checkpoint", 400*time.Millisecond, "time between two checkpoints; the trail's is 400 ms")
	length := flag.Duration("for", 4*time.Second, "how long each run takes")
	flag.Parse()
	for _, promise := range []string{"sequenced", "published"} {
		for text := range strings.SplitSeq(*callers, ",") {
			n, err := strconv.Atoi(text)
			if err == nil {
				err = run(promise, n, *batch, *age, *interval, *length)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "tessera:", err)
				os.Exit(1)
			}
		}
	}
}

func run(promise string, callers int, batch uint, age, interval, length time.Duration) error {
	dir, err := os.MkdirTemp("", "tessera")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	key, _, err := note.GenerateKey(rand.Reader, "bench.example/log")
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: filepath.Join(dir, "log")})
	if err != nil {
		return err
	}
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).WithBatching(batch, age).WithCheckpointInterval(interval))
	if err != nil {
		return err
	}
	awaiter := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 10*time.Millisecond)

	var group sync.WaitGroup
	var next atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	cpu, began := cpuTime(), time.Now()
	for range callers {
		group.Go(func() {
			var mine []time.Duration
			var err error
			for err == nil && time.Since(began) < length {
				entry := fmt.Appendf(nil, "%0400d", next.Add(1))
				at := time.Now()
				future := appender.Add(ctx, tessera.NewEntry(entry))
				if promise == "published" {
					_, _, err = awaiter.Await(ctx, future)
				} else {
					_, err = future()
				}
				mine = append(mine, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if err != nil {
				failed = err
			}
		})
	}
	group.Wait()
	elapsed, used := time.Since(began), cpuTime()-cpu
	if failed != nil {
		return failed
	}
	if err := shutdown(ctx); err != nil {
		return err
	}
	slices.Sort(took)
	fmt.Printf("tessera/%s/%d\t%8d\t%8.0f events/s\t%8.1f cpu-µs/op\t%8.1f p50-ms\t%8.1f p99-ms\n", promise, callers, len(took),
		float64(len(took))/elapsed.Seconds(), float64(used.Microseconds())/float64(len(took)),
		float64(took[len(took)/2].Microseconds())/1000, float64(took[len(took)*99/100].Microseconds())/1000)
	return nil
}
