package app

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/config"
	"strongroom/internal/edge"
	"strongroom/internal/policy"
)

// TestDevelopmentPolicies holds that a new development installation grants its own certificate what
// the example says, that an operator's folder is left alone, and that each start is an event.
func TestDevelopmentPolicies(t *testing.T) {
	c := config.ForDev(t.TempDir())
	if err := Init(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(filepath.Join(c.Data, config.FileName), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := Check(c); err != nil {
		t.Fatal(err)
	}
	set, err := policy.Load(c.Policies)
	if err != nil {
		t.Fatal(err)
	}
	for service, want := range map[string]bool{edge.DevService: true, "spiffe://strongroom.localhost/other": false} {
		p := set.Decide(policy.Question{By: actor.Actor{Kind: actor.Service, ID: service},
			Action: policy.RecordRead, Resource: policy.Collection("profile"), Purpose: "test"})
		if (p == nil) != want {
			t.Errorf("%s: %v", service, p)
		}
	}

	h, err := openHouse(t.Context(), c, actor.OfSystem("test"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := h.loadPolicies(context.Background(), actor.OfSystem("server")); err != nil {
		t.Fatal(err)
	}
	if got := newest(t, h); got.Action != policy.ActionLoad || got.Resource != set.Resource() || got.Outcome != audit.Granted {
		t.Errorf("the event of the start: %+v", got)
	}

	own := filepath.Join(c.Policies, "dev.cedar")
	if err := os.WriteFile(own, []byte("permit nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeDevPolicy(c); err != nil {
		t.Fatal(err)
	}
	if err := Check(c); err == nil || !strings.Contains(err.Error(), "policies: ") || !strings.Contains(err.Error(), "dev.cedar") {
		t.Errorf("a broken policy: %v", err)
	}
}

func newest(t *testing.T, h *House) audit.Entry {
	t.Helper()
	entries, err := h.Trail.Tail(t.Context(), actor.OfSystem("test"), "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Action == policy.ActionLoad {
			return e
		}
	}
	t.Fatal("there is no event of the start")
	return audit.Entry{}
}
