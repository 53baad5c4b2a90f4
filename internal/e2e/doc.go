// Package e2e tests the real binary from outside, the way its users meet it: over TLS, through the
// command line, against both databases, and while it is being killed, starved and cut off. It holds
// tests only.
package e2e
