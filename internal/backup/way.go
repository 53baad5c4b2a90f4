package backup

import (
	"context"
	"time"
)

// giveWayEvery is after how many rows a snapshot looks whether somebody else wants to work.
const giveWayEvery = 16

// A snapshot that gives way works for a turn and rests for half as long again. The seal of a segment may take
// longer than a turn; the rest is bounded all the same.
const (
	turn    = 2 * time.Millisecond
	maxTurn = 20 * time.Millisecond
)

// way has a snapshot give way to those who write meanwhile: on few cores, what works without pause makes
// everybody else wait for theirs. When nobody writes it does not rest.
type way struct {
	updates func() (begun, running int64) // db.DB.Updates
	rest    func(ctx context.Context, d time.Duration)
	began   time.Time // of this turn
	seen    int64     // updates that had begun
}

func newWay(updates func() (begun, running int64)) *way {
	w := &way{updates: updates, rest: pause, began: time.Now()}
	w.seen, _ = updates()
	return w
}

// give rests when a turn is over in which somebody wrote.
func (w *way) give(ctx context.Context) {
	worked := time.Since(w.began)
	if worked < turn {
		return
	}
	begun, running := w.updates()
	if begun != w.seen || running > 0 {
		w.seen = begun
		w.rest(ctx, min(worked, maxTurn)*3/2)
	}
	w.began = time.Now()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
