// Package actor says who acts. Every method of every room takes an Actor, so that no deed can be
// done by nobody, and the audit trail names the same actor that was authorised.
package actor

import (
	"context"
	"net/netip"
	"strings"

	"strongroom/internal/customer"
)

// Kind says which door an actor came through.
type Kind string

// The kinds of actor.
const (
	Anonymous Kind = "anonymous" // not yet known: registration, login, a refused request
	Customer  Kind = "customer"  // a customer's session on one of their devices
	Service   Kind = "service"   // a back-end service with a client certificate
	Staff     Kind = "staff"     // an employee
	System    Kind = "system"    // Strongroom itself: a job, or the command line on the host
)

// Actor is who acts, on what device and from where. Actors are values; copying one is fine.
type Actor struct {
	Kind    Kind
	ID      string     // customer.ID, service name, staff name or job name; empty for Anonymous
	Device  string     // the customer's device; empty otherwise
	Session string     // the session; empty without one
	Scope   string     // what the session may do, with spaces between (RFC 6749 section 3.3); empty without one
	Key     string     // JWK SHA-256 thumbprint (RFC 7638) of the key that proved this request
	Address netip.Addr // where the request came from; the zero Addr for System
	Request string     // id of the request, as in logs and answers
}

// OfSystem returns the actor of a job or of a command, for example "job:sequencer".
func OfSystem(name string) Actor { return Actor{Kind: System, ID: name} }

// Customer returns the customer that acts, or "" when the actor is not a customer.
func (a Actor) Customer() customer.ID {
	if a.Kind != Customer {
		return ""
	}
	return customer.ID(a.ID)
}

// May reports whether the session of the actor has the scope.
func (a Actor) May(scope string) bool {
	for s := range strings.SplitSeq(a.Scope, " ") {
		if s == scope && s != "" {
			return true
		}
	}
	return false
}

type contextKey struct{}

// With returns a context that carries a from the front door to the operation that runs behind it.
func With(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, contextKey{}, a)
}

// From returns the actor that With put into ctx. Without one it returns an Anonymous actor, which
// every room refuses: deny on doubt.
func From(ctx context.Context) Actor {
	if a, ok := ctx.Value(contextKey{}).(Actor); ok {
		return a
	}
	return Actor{Kind: Anonymous}
}
