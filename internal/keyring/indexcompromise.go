package keyring

import (
	"context"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/id"
)

// compromiseIndex is CompromiseService for the blind-index key, whose versions are not only trusted or not:
// rows are found under them. Whoever knows a version can try values against all rows that it made, so that
// every row gets an index under another version, at once and without a bound on the rate, and loses the
// one that is known. Until then rows are looked up under it, and new ones are written under it too: only
// so does a value that must be unique stay unique. An active version hands over in this very transaction,
// without waiting for the other servers, which take over the keys with the next index that they make.
func (k *Keyring) compromiseIndex(ctx context.Context, by actor.Actor, d serviceDefinition, version uint32) error {
	if k.indexes == nil {
		return errNoDependents
	}
	// Counted before, as it walks through all rows; a version that nothing is under has all of them behind it.
	total, err := k.behind(ctx, 1<<31)
	if err != nil {
		return err
	}
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		set, err := k.current(ctx, tx)
		if err != nil {
			return err
		}
		rows, i, err := versionsOf(ctx, tx, d.name, version)
		if err != nil {
			return err
		}
		if err := k.event(ctx, tx, by, "", ActionServiceCompromise, serviceResource(d.name, version)); err != nil {
			return err
		}
		open, err := selectRotation(ctx, tx, d.name)
		if err != nil {
			return err
		}
		now, was := k.clock.Now(), rows[i].state
		if was == published {
			// Nothing stands under it alone: it is not needed to look up.
			err = destroyServiceKey(ctx, tx, d.name, version, "")
		} else {
			err = setServiceState(ctx, tx, d.name, version, compromised)
		}
		if err != nil {
			return err
		}
		next := rotationKey{version: rows[len(rows)-1].version + 1}
		switch {
		case was == published || was == active && open.open() && open.Version == version:
			if err := endRotation(ctx, tx, open.ID, clock.Micros(now)); err != nil {
				return err
			}
		case open.open(): // to a newer version
			if err := hurryRotation(ctx, tx, open.ID, clock.Micros(now)); err != nil {
				return err
			}
			if open.Phase != PhasePublished {
				return k.changed(ctx, tx)
			}
			next = open.rotationKey()
		case was != active:
			return k.changed(ctx, tx) // what its rotation could not make anew, another could not either
		}
		if next.id == "" {
			row := k.newServiceRow(set.kek, d, next.version)
			row.state = published
			if err := insertServiceKey(ctx, tx, row); err != nil {
				return err
			}
			r := Rotation{ID: id.New("rot"), Key: d.name, Version: next.version, Reason: reasonCompromised, Phase: PhasePublished, Started: now, Due: now}
			if err := insertRotation(ctx, tx, rotationRow{Rotation: r}); err != nil {
				return err
			}
			next.id = r.ID
		}
		if err := replaceActiveService(ctx, tx, d.name, next.version); err != nil {
			return err
		}
		if err := activateRotation(ctx, tx, next.id, total); err != nil {
			return err
		}
		if err := k.changed(ctx, tx); err != nil {
			return err
		}
		return k.event(ctx, tx, by, "", ActionServiceActivate, serviceResource(d.name, next.version))
	})
	if err != nil {
		return err
	}
	k.log.WarnContext(ctx, "a version of the blind-index key was marked compromised; every index is made anew", "version", version)
	return k.Reload(ctx)
}
