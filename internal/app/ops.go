package app

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
)

// minFree is the free space of the data folder, in bytes, below which this replica asks for no more
// work: the embedded database needs room for its write-ahead log, and a checkpoint.
const minFree = 64 << 20

// ready looks at everything that a request leans on.
type ready struct {
	house    *House
	draining func() bool
	log      *slog.Logger
}

// checks returns what is wrong, by name; empty means ready.
func (r *ready) checks(ctx context.Context) map[string]error {
	found := map[string]error{}
	add := func(name string, err error) {
		if err != nil {
			found[name] = err
		}
	}
	if r.draining() {
		add("server", fmt.Errorf("is stopping"))
	}
	add("database", r.house.DB.Ping(ctx))
	add("keys", probeKeys(r.house.Ring))
	add("disk", probeDisk(r.house.Config.Data))
	return found
}

// probeKeys seals and opens a value, so that a key set that was lost is noticed before a customer is.
func probeKeys(k *keyring.Keyring) error {
	place := seal.Place{Room: "app", Table: "ready"}
	ring := k.Service(keyring.KeyOutbox)
	_, err := ring.Open(place, ring.Seal(place, []byte("ready")))
	return err
}

func probeDisk(folder string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return err
	}
	if free := s.Bavail * uint64(s.Bsize); free < minFree {
		return fmt.Errorf("%d MB free in the data folder, %d MB needed", free>>20, minFree>>20)
	}
	return nil
}

func (r *ready) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	ctx, cancel := context.WithTimeout(req.Context(), 3*time.Second)
	defer cancel()
	answer := map[string]string{"server": "ok", "database": "ok", "keys": "ok", "disk": "ok"}
	status := http.StatusOK
	for name, err := range r.checks(ctx) {
		answer[name], status = "failing", http.StatusServiceUnavailable
		r.log.WarnContext(ctx, "not ready", "check", name, "error", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // whoever asked has gone
}

// opsHandler serves health and metrics, and profiles when the settings ask for them.
func opsHandler(house *House, draining func() bool, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /readyz", &ready{house, draining, log})
	mux.Handle("GET /metrics", promhttp.HandlerFor(house.Metrics, promhttp.HandlerOpts{}))
	if house.Config.Listeners.Ops.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	}
	return mux
}
