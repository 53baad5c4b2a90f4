package audit

import (
	"time"

	"golang.org/x/sys/unix"
)

// steady returns the times of two clocks of the kernel that nobody sets: the one of the oscillator as it is, which
// NTP does not touch and which stands still while the machine sleeps, and the one that counts sleep.
func steady() (raw, boot time.Duration, err error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &t); err != nil {
		return 0, 0, err
	}
	raw = time.Duration(t.Nano())
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, 0, err
	}
	return raw, time.Duration(t.Nano()), nil
}
