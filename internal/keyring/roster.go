package keyring

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

// ActionRosterAccept is recorded when somebody has the states be taken as they are.
const ActionRosterAccept = "keyring.states.accept"

// roster is a digest of all that decides what a KEK or service key may do: its name, version, algorithm,
// state and age. The active KEK seals it with every change, so that who can write to the database cannot
// call a compromised key active.
func roster(rows keyRows) []byte {
	h := sha256.New()
	field := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	number := func(n uint64) {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], n)
		h.Write(b[:])
	}
	row := func(name string, version uint32, algorithm, state string, madeAt int64) {
		field(name)
		number(uint64(version))
		field(algorithm)
		field(state)
		number(uint64(madeAt))
	}
	field("strongroom key roster v1")
	number(uint64(len(rows.keks)))
	for _, r := range rows.keks {
		row(kekName, r.version, r.algorithm, r.state, r.madeAt)
	}
	// How often a KEK was wrapped, by which root, and which KEK wraps a service key, changes without a
	// change of state; both are bound where they are wrapped.
	services := slices.SortedFunc(slices.Values(rows.services), func(a, b serviceRow) int { // no database's collation
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.version, b.version))
	})
	for _, r := range services {
		row(r.name, r.version, r.algorithm, r.state, r.madeAt)
		field(r.verifier)
	}
	return h.Sum(nil)
}

func rosterPlace(generation int64) seal.Place {
	return seal.Place{Room: room, Table: "key_generation", Record: "roster", Version: generation}
}

// activeKEK returns the version of the KEK that the rows call active.
func activeKEK(rows []kekRow) (uint32, error) {
	states := make([]string, len(rows))
	for i, r := range rows {
		states[i] = r.state
	}
	i, err := activeOf(states)
	if err != nil {
		return 0, fmt.Errorf("the KEKs: %w", err)
	}
	return rows[i].version, nil
}

// checkRoster refuses rows whose states are not those that Strongroom wrote.
func (s *keySet) checkRoster(rows keyRows) error {
	var digest []byte
	version, err := seal.KeyVersion(rows.roster)
	if err == nil && version == s.kek.Version() {
		digest, err = s.kek.Open(rosterPlace(rows.generation), rows.roster)
	}
	if err != nil || !hmac.Equal(digest, roster(rows)) {
		return fmt.Errorf("%w: the states of the keys are not those that Strongroom wrote: somebody changed or restored rows of kek, service_key or key_generation. Look at them, bring the three tables back from one backup, or run strongroom keys accept-states", ErrDamaged)
	}
	return nil
}

// changed counts a change of KEKs or service keys, and has the KEK that is active now seal their states.
// Call it after the last change of the transaction; fresh is a KEK that the transaction itself made.
func (k *Keyring) changed(ctx context.Context, tx *db.Tx, fresh ...heldKEK) error {
	if err := raiseGeneration(ctx, tx); err != nil {
		return err
	}
	rows, err := selectKeys(ctx, tx)
	if err != nil {
		return err
	}
	version, err := activeKEK(rows.keks)
	if err != nil {
		return err
	}
	var key *seal.Key
	if set := k.keys.Load(); set != nil {
		key = set.held[version].key
	}
	for _, f := range fresh {
		if f.key != nil && f.key.Version() == version {
			key = f.key
		}
	}
	if key == nil {
		return keysUnavailable(fmt.Errorf("KEK %d is active and not held here yet", version))
	}
	ring, err := k.kekRing(key)
	if err != nil {
		return err
	}
	return setRoster(ctx, tx, ring.Seal(rosterPlace(rows.generation), roster(rows)))
}

type versionOf struct {
	name    string
	version uint32
}

func statesOf(rows keyRows) map[versionOf]string {
	states := make(map[versionOf]string, len(rows.services))
	for _, r := range rows.keks {
		states[versionOf{kekName, r.version}] = r.state
	}
	for _, r := range rows.services {
		states[versionOf{r.name, r.version}] = r.state
	}
	return states
}

// acceptStates has the states be taken as they are, after somebody looked at them.
func (k *Keyring) acceptStates(ctx context.Context, by actor.Actor) error {
	return k.db.Update(ctx, func(tx *db.Tx) error {
		if err := k.changed(ctx, tx); err != nil {
			return err
		}
		return k.event(ctx, tx, by, "", ActionRosterAccept, "the states of all keys")
	})
}
