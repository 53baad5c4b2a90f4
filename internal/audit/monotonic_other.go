//go:build !linux

package audit

import "time"

var started = time.Now()

// steady returns Go's monotonic time, which is what there is.
func steady() (raw, boot time.Duration, err error) {
	since := time.Since(started)
	return since, since, nil
}
