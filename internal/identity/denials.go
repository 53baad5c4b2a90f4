package identity

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/problem"
)

// denials decides which refusals get an event of their own. Refusals that cost the caller nothing, a
// made-up token or a broken proof, could be had by the million and would fill the disk with events.
// So each source gets some at once and then a few a minute, and all sources together have a bound
// too; what is over is counted in a metric and in no event. Refusals of genuine tokens have buckets
// of their own, so that junk cannot hide them. Refused logins are not bounded here: their number is
// bounded by the limits on logins themselves.
type denials struct {
	clock clock.Clock
	all   *rate.Limiter

	mu         sync.Mutex
	young, old map[string]*rate.Limiter
}

// The bounds: 20 events at once and 10 a minute per source, 400 at once and 20 a second for junk
// altogether, which are 1.7 million a day at the very most.
const (
	denialBurst    = 20
	denialEvery    = 6 * time.Second
	junkBurst      = 400
	junkPerSecond  = 20
	denialsSources = 4096
)

func newDenials(c clock.Clock) *denials {
	return &denials{clock: c, all: rate.NewLimiter(junkPerSecond, junkBurst), young: map[string]*rate.Limiter{}}
}

// allow reports whether a refusal from the source may have an event.
func (d *denials) allow(source string, genuine bool) bool {
	now := d.clock.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok := d.young[source]
	if !ok {
		if l, ok = d.old[source]; !ok {
			l = rate.NewLimiter(rate.Every(denialEvery), denialBurst)
		}
		if len(d.young) >= denialsSources {
			d.old, d.young = d.young, map[string]*rate.Limiter{}
		}
		d.young[source] = l
	}
	if !l.AllowN(now, 1) {
		return false
	}
	return genuine || d.all.AllowN(now, 1)
}

// denied records, within the bounds above, that p was answered for the reason, and returns p.
// Genuine is the id of the session or challenge that the caller really knows, or "".
func (i *Identity) denied(ctx context.Context, by actor.Actor, e audit.Event, reason, genuine string, p *problem.Problem) error {
	i.metrics.refused.WithLabelValues(e.Action, reason).Inc()
	source := genuine
	if source == "" {
		source = network(by.Address)
	}
	if !i.denials.allow(source, genuine != "") {
		i.metrics.unrecorded.Inc()
		return p
	}
	r := because(reason)
	if err := i.Trail.Deny(ctx, by, e, r); !problem.Is(err, reason) {
		return err
	}
	return p
}

// network returns what is limited as one source: an IPv4 address, or the IPv6 /64 that one customer
// of a provider has.
func network(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return "none"
	}
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return "none"
	}
	return p.String()
}
