package keyring

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"strongroom/internal/db"
)

// Findings is where the keyring says that something is wrong, and that it is no longer. What is raised
// twice stands once.
type Findings interface {
	Raise(ctx context.Context, kind, subject, detail string) error
	Clear(ctx context.Context, kind, subject string) error
}

// The kinds of findings.
const (
	FindingRoot = "keyring.root-unavailable" // subject: the root key's id
	// FindingCompromised stands for name/version until that is destroyed, and for customer while values wait
	// to be sealed anew that compromised versions of customers' data keys sealed.
	FindingCompromised = "keyring.key-compromised"
	FindingWorn        = "keyring.key-worn" // subject: name/version, until another seals
)

// probeEvery is how often the root key is asked to open the active KEK, to know that it would at a
// restart; while it does not answer, it is asked with every reload.
const probeEvery = time.Minute

// reports is what this process has raised.
type reports struct {
	mu     sync.Mutex
	probed time.Time
	raised map[[2]string]bool
	begun  bool // what an earlier process may have raised was looked at
}

// report raises what is wrong and clears what no longer is. It is called outside of any transaction.
func (k *Keyring) report(ctx context.Context) error {
	if k.findings == nil {
		return nil
	}
	r := &k.reports
	r.mu.Lock()
	defer r.mu.Unlock()
	wrong := make(map[[2]string]string)
	set := k.keys.Load()
	for v, state := range set.states {
		if state == compromised {
			wrong[[2]string{FindingCompromised, v.name + "/" + strconv.Itoa(int(v.version))}] = "somebody may know this key version: have what it made be made anew, then destroy it"
		}
	}
	for _, v := range k.uses.allWorn(set) {
		wrong[[2]string{FindingWorn, v.name + "/" + strconv.Itoa(int(v.version))}] = "this key version has sealed half of what it may: rotate it"
	}
	root := [2]string{FindingRoot, k.root.ID()}
	if now := k.clock.Now(); r.raised[root] || r.probed.IsZero() || now.Sub(r.probed) >= probeEvery {
		r.probed = now
		if err := k.probe(ctx); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			wrong[root] = "the root key does not open the active KEK; servers go on with the keys that they hold, and none can start"
			k.log.WarnContext(ctx, "the root key does not answer as it should", "root", k.root.ID(), "error", err)
		}
	}
	var errs []error
	for key, detail := range wrong {
		if !r.raised[key] {
			if err := k.findings.Raise(ctx, key[0], key[1], detail); err != nil {
				errs = append(errs, err)
				continue
			}
			r.note(key, true)
		}
	}
	for key := range r.raised {
		if _, still := wrong[key]; !still {
			if err := k.findings.Clear(ctx, key[0], key[1]); err != nil {
				errs = append(errs, err)
				continue
			}
			r.note(key, false)
		}
	}
	if !r.begun && len(errs) == 0 { // an earlier process may have raised what is well by now
		for _, key := range append(k.once(set), root) {
			if _, is := wrong[key]; !is {
				errs = append(errs, k.findings.Clear(ctx, key[0], key[1]))
			}
		}
		r.begun = errors.Join(errs...) == nil
	}
	return errors.Join(errs...)
}

func (r *reports) note(key [2]string, raised bool) {
	if r.raised == nil {
		r.raised = make(map[[2]string]bool)
	}
	if raised {
		r.raised[key] = true
	} else {
		delete(r.raised, key)
	}
}

// once returns what may have been wrong with the keys that there are.
func (k *Keyring) once(set *keySet) (all [][2]string) {
	for v := range set.states {
		subject := v.name + "/" + strconv.Itoa(int(v.version))
		all = append(all, [2]string{FindingCompromised, subject}, [2]string{FindingWorn, subject})
	}
	return all
}

// allWorn returns the key versions of the set that seal and have sealed half of what they may.
func (u *uses) allWorn(set *keySet) (worn []versionOf) {
	all := []versionOf{{kekName, set.kek.Version()}}
	for name, key := range set.service {
		if key.ring != nil {
			all = append(all, versionOf{name, key.ring.Version()})
		}
	}
	for _, v := range all {
		if u.worn(v.name, v.version) {
			worn = append(worn, v)
		}
	}
	return worn
}

// probe has the root key open the active KEK.
func (k *Keyring) probe(ctx context.Context) error {
	version := k.keys.Load().kek.Version()
	var rows []kekRow
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		rows, err = selectKEKs(ctx, tx)
		return err
	})
	if err != nil {
		return nil // that is about the database
	}
	for _, row := range rows {
		if row.version != version || row.state == destroyed {
			continue
		}
		material, err := k.unwrapKEK(ctx, row)
		if err == nil {
			err = k.sameKEK(version, material)
		}
		clear(material)
		return err
	}
	return nil
}
