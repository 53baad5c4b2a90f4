package app

import (
	"context"

	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/identity"
	"strongroom/internal/identity/sms"
)

// identityChecks attack the login of this server, and in a scratch copy one that was broken.
func (h *House) identityChecks() (all []check.Check) {
	for _, t := range identity.Trials() {
		all = append(all, check.Check{
			ID: t.ID, Says: t.Says, Version: 1, Every: t.Every, Valid: t.Valid,
			Run: func(ctx context.Context) check.Observation {
				if h.login == nil {
					return check.Undecided("", "No login serves.")
				}
				return t.Run(ctx, h.login)
			},
			Sabotage: func(ctx context.Context) check.Observation {
				var room *identity.Identity
				isBroken := false
				damage := func(context.Context, *House) error {
					isBroken = true
					return nil
				}
				return inScratch(ctx, damage, func(ctx context.Context, scratch *House) (seen check.Observation) {
					if room == nil {
						var err error
						if room, err = scratch.scratchLogin(); err != nil {
							return check.Undecided("", "No scratch login: %v", err)
						}
					}
					if isBroken {
						return t.Broken(ctx, room)
					}
					return t.Run(ctx, room)
				})
			},
		})
	}
	return all
}

// scratchCost is bcrypt's in a scratch copy, where nothing is worth guessing.
const scratchCost = 8

// scratchLogin makes the login of a house without doors.
func (h *House) scratchLogin() (*identity.Identity, error) {
	return identity.New(identity.Options{DB: h.DB, Keys: h.Ring, Trail: h.Trail, Sender: sms.NewInbox(clock.System), Clock: clock.System, Log: h.log, Cost: scratchCost})
}
