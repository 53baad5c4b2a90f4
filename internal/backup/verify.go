package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ActionVerify is recorded when a snapshot's copies were read back.
const ActionVerify = "backup.snapshot.verify"

// sampled is how many objects of each copy are read back when not all are.
const sampled = 16

// Fault is something in a repository that is not what was stored there.
type Fault struct {
	Repository string `json:"repository"`
	Object     string `json:"object"` // "" for the repository as a whole
	Error      string `json:"error"`
	Mended     bool   `json:"mended"` // from another repository
}

// Verification is what Verify found.
type Verification struct {
	Snapshot string  `json:"snapshot"`
	Objects  int64   `json:"objects"` // read, in all repositories
	Bytes    int64   `json:"bytes"`   // of them, as they are stored
	Faults   []Fault `json:"faults"`
}

// Whole reports whether every copy is whole, now.
func (v *Verification) Whole() bool {
	return !slices.ContainsFunc(v.Faults, func(f Fault) bool { return !f.Mended })
}

// Verify reads a snapshot back from every repository, its objects all or a sample, and holds them against
// its manifest. It looks at what lies there, byte for byte: it must be as long as it was, decrypt, be
// what its name says, and show nothing of what it encrypts. What is damaged in one repository is replaced
// from another. Without an id it takes the newest snapshot. When a copy stays damaged, Verify returns what
// it found with the problem "backup-damaged".
func (b *Backup) Verify(ctx context.Context, by actor.Actor, snapshot string, full bool, progress Progress) (Verification, error) {
	v := Verification{Snapshot: snapshot}
	e := audit.Event{Action: ActionVerify, Resource: "snapshots"}
	if snapshot != "" {
		if err := b.known(ctx, snapshot); err != nil {
			return v, b.refuse(ctx, by, e, err)
		}
	}
	err := b.verify(ctx, &v, full, true, progress)
	if v.Snapshot != "" {
		e.Resource = "snapshot " + v.Snapshot
	}
	return v, b.o.Trail.Do(context.WithoutCancel(ctx), by, e, func(_ *db.Tx, e *audit.Event) error {
		switch {
		case err != nil:
			e.Deny(problemOf(err, "backup-verify-failed", "The snapshot could not be verified. The log says why."))
		case !v.Whole():
			e.Deny(problem.New(problem.Unavailable, "backup-damaged", "A copy of the snapshot %s is damaged or cannot be reached. See which, mend the repository, and run the backup again.", v.Snapshot))
		}
		return nil
	})
}

// verify reads all objects or a sample, and with mend replaces what is damaged and tells the findings.
func (b *Backup) verify(ctx context.Context, v *Verification, full, mend bool, progress Progress) error {
	type copied struct {
		key          *vaultKey
		manifest     *Manifest
		repositories []*Repository
		names        []string
	}
	var parts []copied
	faulty := make(map[string][]string) // by repository
	fault := func(r *Repository, object string, err error, mended bool) {
		v.Faults = append(v.Faults, Fault{r.Name, object, err.Error(), mended})
		b.o.Log.WarnContext(ctx, "a copy is damaged", "repository", r.Name, "object", object, "mended", mended, "error", err)
		if !mended {
			faulty[r.Name] = append(faulty[r.Name], object)
		}
	}
	var done, total int64
	for _, part := range []Part{Data, Keys} {
		key, reached, absent, err := b.key(ctx, part, false)
		if err != nil {
			return err
		}
		for r, err := range absent {
			fault(r, "", err, false)
		}
		for _, r := range b.of(part) {
			if !slices.Contains(reached, r) && absent[r] == nil {
				fault(r, headerKey, errAbsent, false)
			}
		}
		var m *Manifest
		if part == Data && v.Snapshot != "" {
			m, err = readManifest(ctx, key, reached, v.Snapshot, b.o.Keys.EvidenceVerifiers())
		} else if m, err = b.newest(ctx, key, reached); err == nil && m == nil {
			err = errNothing
		}
		if err != nil {
			return err
		}
		if part == Data {
			v.Snapshot = m.ID
		}
		names := slices.Sorted(maps.Keys(m.objects()))
		if !full {
			names = pick(names, sampled)
		}
		parts = append(parts, copied{key, m, reached, names})
		total += int64(len(reached) * (len(names) + 1))
	}
	for _, p := range parts {
		sizes := p.manifest.objects()
		for _, r := range p.repositories {
			tick := func() {
				done++
				if progress != nil {
					progress(done, total)
				}
			}
			name := manifestPrefix + p.manifest.ID
			if _, err := readManifest(ctx, p.key, []*Repository{r}, p.manifest.ID, b.o.Keys.EvidenceVerifiers()); err != nil {
				fault(r, name, err, mend && b.mendManifest(ctx, p.key, r, p.manifest) == nil)
			}
			tick()
			for _, name := range p.names {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				n, err := r.check(ctx, p.key, name, sizes[name])
				v.Objects++
				v.Bytes += n
				if err != nil {
					fault(r, name, err, mend && b.mend(ctx, p.key, r, p.repositories, name, sizes[name]) == nil)
				}
				tick()
			}
		}
	}
	for _, r := range b.o.Repositories {
		if !mend {
			break
		}
		if objects := faulty[r.Name]; len(objects) > 0 {
			b.raise(ctx, FindingDamaged, r.Name, fmt.Sprintf("%d objects of the snapshot %s are missing or damaged here, or the repository does not answer. Mend it, run the backup again, and verify.", len(objects), v.Snapshot))
		} else {
			b.clear(ctx, FindingDamaged, r.Name)
		}
	}
	return nil
}

// mend replaces an object from another repository, and sees that it reads back now.
func (b *Backup) mend(ctx context.Context, k *vaultKey, r *Repository, repositories []*Repository, name string, size int64) error {
	r.distrust(name)
	_, stored, err := fetchObject(ctx, k, repositories, name)
	if err != nil {
		return err
	}
	if err := r.putObject(ctx, name, stored, b.o.Clock.Now().Add(leastLock)); err != nil {
		return err
	}
	if _, err := r.check(ctx, k, name, size); err != nil {
		r.distrust(name)
		return err
	}
	return nil
}

func (b *Backup) mendManifest(ctx context.Context, k *vaultKey, r *Repository, m *Manifest) error {
	stored, err := m.seal(k, b.o.Keys.EvidenceSigner())
	if err != nil {
		return err
	}
	if err := r.putLocked(ctx, manifestPrefix+m.ID, stored, b.o.Clock.Now().Add(leastLock)); err != nil {
		return err
	}
	_, err = readManifest(ctx, k, []*Repository{r}, m.ID, b.o.Keys.EvidenceVerifiers())
	return err
}

// sample reads the manifest and some objects of a fresh copy back. The objects that do not read back count
// as missing from then on, and the next run stores them anew.
func (b *Backup) sample(ctx context.Context, k *vaultKey, r *Repository, m *Manifest) (faults []error) {
	if _, err := readManifest(ctx, k, []*Repository{r}, m.ID, b.o.Keys.EvidenceVerifiers()); err != nil {
		faults = append(faults, err)
	}
	sizes := m.objects()
	for _, name := range pick(slices.Collect(maps.Keys(sizes)), sampled) {
		if _, err := r.check(ctx, k, name, sizes[name]); err != nil {
			r.distrust(name)
			faults = append(faults, err)
		}
	}
	return faults
}

// pick returns n of the names, or all if there are no more.
func pick(names []string, n int) []string {
	names = slices.Clone(names)
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names[:min(n, len(names))]
}

// check reads an object back. It returns how long it is.
func (r *Repository) check(ctx context.Context, k *vaultKey, name string, size int64) (int64, error) {
	stored, err := r.get(ctx, objectKey(name))
	if err != nil {
		return 0, err
	}
	n := int64(len(stored))
	if n != size {
		return n, fmt.Errorf("backup repository %s: %w: %s has %d bytes, and %d were stored", r.Name, ErrObject, name, n, size)
	}
	plaintext, err := k.open(name, stored, true)
	if err == nil {
		err = probe(plaintext, stored)
	}
	if err != nil {
		return n, fmt.Errorf("backup repository %s: object %s: %w", r.Name, name, err)
	}
	return n, nil
}

// errPlaintext means that what lies in a repository is not encrypted.
var errPlaintext = errors.New("what is stored is not ciphertext")

const (
	canary      = 16      // bytes of plaintext that must not be found in the ciphertext
	leastProbed = 4 << 10 // bytes from which on the distribution says something
	leastBits   = 7.9     // of entropy that each of so many random bytes has
)

// probe looks at stored bytes as somebody who has no key would: pieces of the plaintext must not be in
// them, nor the mark of a compressed stream, and their bytes must be distributed like random ones.
func probe(plaintext, stored []byte) error {
	for at := 0; at+canary <= len(plaintext); at += max(canary, len(plaintext)/64) {
		if bytes.Contains(stored, plaintext[at:at+canary]) {
			return fmt.Errorf("%w: it shows a piece of its plaintext", errPlaintext)
		}
	}
	if len(stored) > sealedKeySize && bytes.HasPrefix(stored[sealedKeySize:], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return fmt.Errorf("%w: it is compressed and no more", errPlaintext)
	}
	if len(stored) >= leastProbed {
		// Random bytes of that length have more than 7.9 bits of entropy each, but for one in far more
		// objects than there are.
		if bits := entropy(stored); bits < leastBits {
			return fmt.Errorf("%w: its bytes have %.2f bits of entropy", errPlaintext, bits)
		}
	}
	return nil
}

// entropy returns the Shannon entropy of a byte, in bits.
func entropy(b []byte) (bits float64) {
	var counts [256]int
	for _, c := range b {
		counts[c]++
	}
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(b))
			bits -= p * math.Log2(p)
		}
	}
	return bits
}
