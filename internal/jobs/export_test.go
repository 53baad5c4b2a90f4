package jobs

import "time"

// SetLeaseTime shortens the leases of a runner that was not started yet.
func SetLeaseTime(r *Runner, d time.Duration) { r.lease = d }
