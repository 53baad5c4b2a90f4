package backup

import (
	"context"
	"testing"
	"time"
)

// A snapshot rests after a turn in which somebody wrote, or waits to, and not else.
func TestGivesWay(t *testing.T) {
	var begun, running int64
	var rested []time.Duration
	w := newWay(func() (int64, int64) { return begun, running })
	w.rest = func(_ context.Context, d time.Duration) { rested = append(rested, d) }
	after := func(worked time.Duration) {
		w.began = time.Now().Add(-worked)
		w.give(t.Context())
	}
	after(time.Hour)
	if len(rested) != 0 {
		t.Errorf("it rests although nobody writes: %v", rested)
	}
	begun = 3
	w.began = time.Now().Add(time.Hour)
	w.give(t.Context())
	if len(rested) != 0 {
		t.Errorf("it rests within a turn: %v", rested)
	}
	after(time.Hour)
	if len(rested) != 1 || rested[0] != maxTurn*3/2 {
		t.Errorf("after an update: %v", rested)
	}
	after(time.Hour)
	if len(rested) != 1 {
		t.Errorf("it rests twice for one update: %v", rested)
	}
	running = 1
	after(turn)
	if len(rested) != 2 || rested[1] < turn || rested[1] > maxTurn*3/2 {
		t.Errorf("while an update waits: %v", rested)
	}
}
