package identity

import "strongroom/internal/problem"

// errThisDevice is told to nobody but who holds the device's key and a token that was the device's, so
// that the app on it knows that it must wipe what it keeps.
var errThisDevice = problem.New(problem.Unauthenticated, "this-device-revoked", "This device has been shut out of the account. Wipe what it keeps.")

// ended is the answer to the holder of key and token of a session that has ended: p, or that the device
// itself is shut out.
func (s sessionRow) ended(p *problem.Problem) *problem.Problem {
	if s.deviceStatus == revoked {
		return errThisDevice
	}
	return p
}
