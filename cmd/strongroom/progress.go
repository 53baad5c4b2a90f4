package main

import (
	"fmt"
	"os"
	"time"
)

// progress is one line that tells how far a long command is. It is drawn on a terminal only.
type progress struct {
	file  *os.File
	what  string
	began time.Time
	drawn time.Time
	shown bool
}

func newProgress(file *os.File, what string) *progress {
	return &progress{file: file, what: what, began: time.Now()}
}

func (p *progress) update(done, total int64) {
	now := time.Now()
	if !isTerminal(p.file) || now.Sub(p.began) < time.Second || now.Sub(p.drawn) < 100*time.Millisecond || total == 0 {
		return
	}
	p.drawn, p.shown = now, true
	rate := float64(done) / now.Sub(p.began).Seconds()
	left := time.Duration(float64(total-done) / max(rate, 1) * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(p.file, "\r\033[K%3d%%  %d of %d %s  %.0f/s  %v left", done*100/total, done, total, p.what, rate, left)
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.file, "\r\033[K")
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}
