package clock

import (
	"testing"
	"time"
)

func TestMicrosecondsComeBack(t *testing.T) {
	now := System.Now()
	if got := FromMicros(Micros(now)); !got.Equal(now.Truncate(time.Microsecond)) || got.Location() != time.UTC {
		t.Errorf("%v became %v", now, got)
	}
}

func TestManualMovesOnlyWhenTold(t *testing.T) {
	start := time.Unix(1, 0).UTC()
	m := NewManual(start)
	m.Advance(time.Minute)
	if got := m.Now(); !got.Equal(start.Add(time.Minute)) {
		t.Errorf("got %v", got)
	}
}
