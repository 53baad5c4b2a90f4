package keyring

import (
	"context"
	"sync"

	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

const (
	// wornAt is how often a key version may have sealed before it is rotated: half of what it may, so that
	// there is all the time that a rotation can take.
	wornAt = seal.Limit / 2
	// Processes reserve uses in blocks: as many as they are likely to need in the next reloads.
	leastBlock = 1 << 12
	mostBlock  = 1 << 24
	blockAhead = 8 // times what was used since the last reservation
)

// uses counts how often each key version seals. A process reserves uses in the database before it needs
// them, and a crash loses what it had left: the count in the database can only be too high. Should a
// process seal faster than it reserves, it goes on, and the next reservation makes up for it.
type uses struct {
	mu       sync.Mutex
	counters map[versionOf]*useCount
}

type useCount struct {
	seal.Counter
	seals    bool  // it is the version that seals
	seen     int64 // used at the last reservation
	reserved int64 // by all processes, as of then
}

// counter returns the counter of a key version; it lives as long as the process.
func (u *uses) counter(name string, version uint32) *seal.Counter {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.counters == nil {
		u.counters = make(map[versionOf]*useCount)
	}
	v := versionOf{name, version}
	if u.counters[v] == nil {
		u.counters[v] = new(useCount)
	}
	return &u.counters[v].Counter
}

// seals says that this version of the key is the one that seals.
func (u *uses) seals(name string, version uint32) {
	u.counter(name, version)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.counters[versionOf{name, version}].seals = true
}

// grant is what to reserve for one counter.
type grant struct {
	versionOf
	count *useCount
	n     int64
	used  int64
	total int64 // of all processes, once reserved
}

// due returns what to reserve now: for each version that seals or did, and is close to the end of what
// was granted to it.
func (u *uses) due() (grants []grant) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for v, c := range u.counters {
		used, left := c.Used(), c.Granted()-c.Used()
		block := min(max(blockAhead*(used-c.seen), leastBlock), mostBlock)
		if left >= block/2 || used == 0 && !c.seals {
			continue
		}
		grants = append(grants, grant{versionOf: v, count: c, n: block - min(left, 0), used: used})
	}
	return grants
}

// reserve writes down what this process is about to seal: before it begins, and then with every reload.
func (k *Keyring) reserve(ctx context.Context) error {
	set := k.keys.Load()
	k.uses.seals(kekName, set.kek.Version())
	for name, key := range set.service {
		if key.ring != nil {
			k.uses.seals(name, key.ring.Version())
		}
	}
	grants := k.uses.due()
	if len(grants) == 0 {
		return nil
	}
	err := k.db.UpdateReadCommitted(ctx, func(tx *db.Tx) (err error) {
		for i, g := range grants {
			if grants[i].total, err = reserveUses(ctx, tx, g.name, g.version, g.n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	k.uses.mu.Lock()
	defer k.uses.mu.Unlock()
	for _, g := range grants {
		g.count.seen, g.count.reserved = g.used, g.total
		// What goes beyond the limit is not granted, and then there is no other grant.
		n := max(0, min(g.n, seal.Limit-(g.total-g.n)))
		g.count.Grant(n, g.total >= seal.Limit)
	}
	return nil
}

// worn reports whether the version has sealed so often that the key is to be rotated.
func (u *uses) worn(name string, version uint32) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.counters[versionOf{name, version}]
	return c != nil && c.reserved >= wornAt
}

// reserveUses adds n to what is reserved of a key version, and returns the sum.
func reserveUses(ctx context.Context, tx *db.Tx, name string, version uint32, n int64) (total int64, err error) {
	err = tx.QueryRow(ctx, `
		INSERT INTO key_use (name, version, reserved) VALUES ($1, $2, $3)
		ON CONFLICT (name, version) DO UPDATE SET reserved = key_use.reserved + excluded.reserved
		RETURNING reserved`, name, version, n).Scan(&total)
	return total, err
}

// selectUses returns how often each key version may have sealed.
func selectUses(ctx context.Context, tx *db.Tx) (map[versionOf]int64, error) {
	rows, err := tx.Query(ctx, `SELECT name, version, reserved FROM key_use`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all := make(map[versionOf]int64)
	for rows.Next() {
		var v versionOf
		var n int64
		if err := rows.Scan(&v.name, &v.version, &n); err != nil {
			return nil, err
		}
		all[v] = n
	}
	return all, rows.Err()
}
