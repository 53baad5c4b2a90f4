package keyring

import (
	"context"
	"fmt"
	"slices"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// The actions on service keys that are no longer trusted, or needed.
const (
	ActionServiceCompromise = "keyring.service-key.compromise"
	ActionServiceDestroy    = "keyring.service-key.destroy"
)

// definitionOf returns the definition of a service key.
func definitionOf(name string) (serviceDefinition, error) {
	i := slices.IndexFunc(serviceDefinitions, func(d serviceDefinition) bool { return d.name == name })
	if i < 0 {
		return serviceDefinition{}, errNoKey
	}
	return serviceDefinitions[i], nil
}

// versionsOf returns the versions of a service key, oldest first, and the place of the one asked for.
func versionsOf(ctx context.Context, tx *db.Tx, name string, version uint32) ([]serviceRow, int, error) {
	all, err := selectServiceKeys(ctx, tx)
	if err != nil {
		return nil, 0, err
	}
	rows := slices.DeleteFunc(all, func(r serviceRow) bool { return r.name != name })
	i := slices.IndexFunc(rows, func(r serviceRow) bool { return r.version == version && r.state != destroyed })
	if i < 0 {
		return nil, 0, errNoKey
	}
	return rows, i, nil
}

// CompromiseService marks a version of a service key as known to somebody who must not know it. When it
// is the active one, another takes its place in the same transaction, without waiting for the other
// servers: for as long as they take to notice, some seconds, what the new one made is unknown to them. A
// version that is only published is destroyed. What a compromised version made still opens and verifies,
// until it is destroyed. A version of the blind-index key leaves a rotation behind, which makes every index
// anew: see compromiseIndex. It fails with the problem "key-not-found" when there is no such version.
func (k *Keyring) CompromiseService(ctx context.Context, by actor.Actor, name string, version uint32) error {
	d, err := definitionOf(name)
	if err != nil {
		return err
	}
	if name == KeyBlindIndex {
		return k.compromiseIndex(ctx, by, d, version)
	}
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		set, err := k.current(ctx, tx)
		if err != nil {
			return err
		}
		rows, i, err := versionsOf(ctx, tx, name, version)
		if err != nil {
			return err
		}
		if err := k.event(ctx, tx, by, "", ActionServiceCompromise, serviceResource(name, version)); err != nil {
			return err
		}
		open, err := selectRotation(ctx, tx, name)
		if err != nil {
			return err
		}
		newest, now := rows[len(rows)-1], clock.Micros(k.clock.Now())
		switch rows[i].state {
		case published: // nothing needs it yet
			if err := destroyServiceKey(ctx, tx, name, version, ""); err != nil {
				return err
			}
			if err := endRotation(ctx, tx, open.ID, now); err != nil {
				return err
			}
		case active:
			next := newest.version
			resource := serviceResource(name, next)
			if newest.state != published {
				next++
				row := k.newServiceRow(set.kek, d, next)
				row.state = published
				if err := insertServiceKey(ctx, tx, row); err != nil {
					return err
				}
				resource = serviceResource(name, next)
				if d.algorithm == ed25519Name {
					verifier, err := k.verifierOf(set, d, row)
					if err != nil {
						return err
					}
					resource += " " + verifier // who trusts the trail learns the new key from it
				}
			} else if open.open() {
				if err := endRotation(ctx, tx, open.ID, now); err != nil {
					return err
				}
			}
			if err := replaceActiveService(ctx, tx, name, next); err != nil {
				return err
			}
			if err := setServiceState(ctx, tx, name, version, compromised); err != nil {
				return err
			}
			if err := k.event(ctx, tx, by, "", ActionServiceActivate, resource); err != nil {
				return err
			}
		default:
			if err := setServiceState(ctx, tx, name, version, compromised); err != nil {
				return err
			}
		}
		return k.changed(ctx, tx)
	})
	if err != nil {
		return err
	}
	k.log.WarnContext(ctx, "a version of a service key was marked compromised", "key", name, "version", version)
	return k.Reload(ctx)
}

// DestroyService destroys a version of a service key that nothing needs any more. Of a signing key the
// public part stays, so that what it signed verifies. It fails with the problem "key-not-found" when there
// is no such version, and with "key-needed", which says what needs it.
func (k *Keyring) DestroyService(ctx context.Context, by actor.Actor, name string, version uint32) error {
	d, err := definitionOf(name)
	if err != nil {
		return err
	}
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		set, err := k.current(ctx, tx)
		if err != nil {
			return err
		}
		rows, i, err := versionsOf(ctx, tx, name, version)
		if err != nil {
			return err
		}
		needed := func(why string) error {
			return problem.New(problem.Conflict, "key-needed", "The %s key %d cannot be destroyed: %s.", name, version, why)
		}
		if s := rows[i].state; s == active || s == published {
			return needed("it is " + s + "; rotate first")
		}
		if name == KeyEventMAC {
			n, err := countTombstones(ctx, tx, version)
			if err != nil {
				return err
			}
			if n > 0 {
				return needed(fmt.Sprintf("%d tombstones of erased customers are authenticated by it", n))
			}
		}
		who, err := k.needed(ctx, tx, name, version)
		if err != nil {
			return err
		}
		if who != "" {
			return needed("it is needed by " + who)
		}
		public := ""
		if d.algorithm == ed25519Name {
			if public, err = k.verifierOf(set, d, rows[i]); err != nil {
				return err
			}
		}
		if err := destroyServiceKey(ctx, tx, name, version, public); err != nil {
			return err
		}
		if err := k.changed(ctx, tx); err != nil {
			return err
		}
		return k.event(ctx, tx, by, "", ActionServiceDestroy, serviceResource(name, version))
	})
	if err != nil {
		return err
	}
	return k.Reload(ctx)
}

func setServiceState(ctx context.Context, tx *db.Tx, name string, version uint32, state string) error {
	_, err := tx.Exec(ctx, `UPDATE service_key SET state = $1 WHERE name = $2 AND version = $3`, state, name, version)
	return err
}

// destroyServiceKey leaves the version's row, and what verifies with it.
func destroyServiceKey(ctx context.Context, tx *db.Tx, name string, version uint32, verifier string) error {
	_, err := tx.Exec(ctx, `
		UPDATE service_key SET state = 'destroyed', wrapped = NULL, verifier = NULLIF($1, '') WHERE name = $2 AND version = $3`,
		verifier, name, version)
	return err
}

// countTombstones counts the tombstones under a version of the key "event-mac".
func countTombstones(ctx context.Context, tx *db.Tx, version uint32) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM data_key_tombstone WHERE substr(mac, 1, 4) = $1`, bigEndian(version)).Scan(&n)
	return n, err
}

func bigEndian(v uint32) []byte { return []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)} }
