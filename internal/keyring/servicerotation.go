package keyring

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/jobs"
	"strongroom/internal/problem"
)

// The actions of a service key's rotation.
const (
	ActionServicePublish  = "keyring.service-key.publish"
	ActionServiceActivate = "keyring.service-key.activate"
)

// rotatable are the service keys. The new version of most simply takes over: what older versions sealed,
// MACed or signed says under which, and they stay for it. What the blind-index key made is made anew by a
// job, and what the pepper made at each customer's next login.
var rotatable = []string{KeyBackup, KeyBlindIndex, KeyCheckpoint, KeyEvent, KeyEventMAC, KeyEvidence, KeyOutbox, KeyPepper, KeyToken}

// Rotatable returns the names of all keys that Rotate takes.
func Rotatable() []string { return append([]string{kekName}, rotatable...) }

// Rotate gives the key called name, "kek" or a service key, a new version; see RotateKEK. A service
// key's new version is active once every process had the time to load it, and the one before stays,
// retired, for what it made. The event that publishes a signing key names its verifier, and the old key
// signs a checkpoint over that event before it hands over. The blind-index key's rotation goes on until
// every index stands under the new version; the pepper's old version stays needed by the private codes of
// customers who have not logged in since, whose number is Rotation.Left. Rotate fails with the problem
// "key-not-rotatable" for any other name.
func (k *Keyring) Rotate(ctx context.Context, by actor.Actor, name string) (Rotation, error) {
	if name == kekName {
		return k.RotateKEK(ctx, by)
	}
	return k.startService(ctx, by, name, reasonAsked)
}

func (k *Keyring) startService(ctx context.Context, by actor.Actor, name, reason string) (r Rotation, err error) {
	if !slices.Contains(rotatable, name) {
		return r, problem.New(problem.Conflict, "key-not-rotatable", "There is no key %q that is rotated in this way.", name)
	}
	if k.record.Load() == nil {
		return r, errNoRecorder
	}
	if name == KeyBlindIndex && k.indexes == nil {
		return r, errNoDependents
	}
	if err := k.Reload(ctx); err != nil {
		return r, err
	}
	d := serviceDefinitions[slices.IndexFunc(serviceDefinitions, func(d serviceDefinition) bool { return d.name == name })]
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		r = Rotation{}
		open, err := selectRotation(ctx, tx, "")
		if err != nil {
			return err
		}
		if open.open() {
			return errRotating
		}
		set, err := k.current(ctx, tx)
		if err != nil {
			return err
		}
		rows, err := selectServiceKeys(ctx, tx)
		if err != nil {
			return err
		}
		var version uint32
		for _, r := range rows {
			if r.name == name {
				version = max(version, r.version)
			}
		}
		row := k.newServiceRow(set.kek, d, version+1)
		row.state = published
		if err := insertServiceKey(ctx, tx, row); err != nil {
			return err
		}
		now := k.clock.Now()
		wait := k.publish
		if d.algorithm == ed25519Name {
			wait = k.handOver
		}
		r = Rotation{ID: id.New("rot"), Key: name, Version: row.version, Reason: reason, Phase: PhasePublished, Started: now, Due: now.Add(wait)}
		if err := insertRotation(ctx, tx, rotationRow{Rotation: r}); err != nil {
			return err
		}
		if err := k.changed(ctx, tx); err != nil {
			return err
		}
		resource := serviceResource(name, row.version)
		if d.algorithm == ed25519Name {
			verifier, err := k.verifierOf(set, d, row)
			if err != nil {
				return err
			}
			resource += " " + verifier
		}
		return k.event(ctx, tx, by, "", ActionServicePublish, resource)
	})
	if err != nil {
		return Rotation{}, err
	}
	return r, k.Reload(ctx)
}

func serviceResource(name string, version uint32) string {
	return "service key " + name + "/" + strconv.Itoa(int(version))
}

// verifierOf returns the public part of a signing key, as C2SP signed-note writes it.
func (k *Keyring) verifierOf(set *keySet, d serviceDefinition, row serviceRow) (string, error) {
	material, err := unwrap(set.kek, servicePlace(d.name, d.algorithm, row.version), row.kekVersion, row.wrapped)
	if err != nil {
		return "", err
	}
	defer clear(material)
	_, encoded, err := verifier(k.signerName(d.name), material)
	return encoded, err
}

// activateService has a published service key take over, once its time has come.
func (k *Keyring) activateService(ctx context.Context, lease jobs.Lease, row rotationRow) error {
	if row.Phase != PhasePublished {
		return k.reindex(ctx, lease, row)
	}
	if left := row.Due.Sub(k.clock.Now()); left > 0 {
		return k.wait(ctx, min(left, watchPause))
	}
	var total int64
	if row.Key == KeyBlindIndex {
		var err error
		if total, err = k.behind(ctx, row.Version); err != nil {
			return err
		}
	}
	err := k.fenced(ctx, lease, k.db.Update, func(tx *db.Tx) error {
		now, err := selectRotation(ctx, tx, row.Key)
		if err != nil {
			return err
		}
		if now.ID != row.ID || now.Phase != PhasePublished {
			return errStopped
		}
		if err := replaceActiveService(ctx, tx, row.Key, row.Version); err != nil {
			return err
		}
		if row.Key == KeyBlindIndex {
			err = activateRotation(ctx, tx, row.ID, total)
		} else {
			err = endRotation(ctx, tx, row.ID, clock.Micros(k.clock.Now()))
		}
		if err != nil {
			return err
		}
		if err := k.changed(ctx, tx); err != nil {
			return err
		}
		return k.event(ctx, tx, byRotation, "", ActionServiceActivate, serviceResource(row.Key, row.Version))
	})
	if err != nil {
		return err
	}
	k.log.InfoContext(ctx, "a new version of a service key is active", "key", row.Key, "version", row.Version)
	return k.Reload(ctx)
}

func replaceActiveService(ctx context.Context, tx *db.Tx, name string, version uint32) error {
	if _, err := tx.Exec(ctx, `UPDATE service_key SET state = 'retired' WHERE name = $1 AND state = 'active'`, name); err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `UPDATE service_key SET state = 'active' WHERE name = $1 AND version = $2`, name, version)
	if err == nil && n != 1 {
		err = fmt.Errorf("%w: service key %s/%d is not there: bring the table service_key back from a backup", ErrDamaged, name, version)
	}
	return err
}

// activeFirst puts the active version before all others, the newest of which comes first.
func activeFirst(versions []macKey, active uint32) {
	slices.SortFunc(versions, func(a, b macKey) int {
		if a.version == active || b.version == active {
			return cmp.Compare(b2i(b.version == active), b2i(a.version == active))
		}
		return cmp.Compare(b.version, a.version)
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
