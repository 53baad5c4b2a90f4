package transit

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
)

const (
	// MaxBatch is the most items of a batch.
	MaxBatch = 1000
	// MaxBatchBytes is how long the messages, or ciphertexts, and contexts of a batch may be in all.
	MaxBatchBytes = 512 << 10
)

// Item is one message of a batch, in its context.
type Item struct {
	Message []byte // a plaintext or message of at most MaxMessage bytes; nil when Text counts
	Text    string // a ciphertext
	Context string
}

// Done is what came of an Item: an answer, or why there is none. Only what does not open has a problem of
// its own; everything else that is wrong refuses the batch.
type Done struct {
	Plaintext []byte // of DecryptBatch
	Text      string // a ciphertext, MAC or signature
	Err       *problem.Problem
}

// EncryptBatch is Encrypt for many plaintexts with one event, which says how many there were and which
// version of the key was used. It is durable before any answer leaves.
func (t *Transit) EncryptBatch(ctx context.Context, by actor.Actor, a Access, name string, items []Item) ([]Done, error) {
	return t.batch(ctx, by, a, ActionEncrypt, policy.KeyEncrypt, name, items, func(k *keyring.Named, in Item) (Done, uint32, error) {
		ring, err := k.Ring()
		if err != nil {
			return Done{}, 0, err
		}
		return Done{Text: textOf(ring.Seal(place(in.Context), in.Message))}, ring.Version(), nil
	})
}

// DecryptBatch is Decrypt for many ciphertexts, like EncryptBatch. What does not open does not keep the
// others, and is an event of its own.
func (t *Transit) DecryptBatch(ctx context.Context, by actor.Actor, a Access, name string, items []Item) ([]Done, error) {
	return t.batch(ctx, by, a, ActionDecrypt, policy.KeyDecrypt, name, items, func(k *keyring.Named, in Item) (Done, uint32, error) {
		_, version, plaintext, err := open(k, in.Text, in.Context)
		return Done{Plaintext: plaintext}, version, err
	})
}

// RewrapBatch is Rewrap for many ciphertexts, like DecryptBatch. The event names the versions that they were
// sealed with before.
func (t *Transit) RewrapBatch(ctx context.Context, by actor.Actor, a Access, name string, items []Item) ([]Done, error) {
	return t.batch(ctx, by, a, ActionRewrap, policy.KeyRewrap, name, items, func(k *keyring.Named, in Item) (Done, uint32, error) {
		ring, version, plaintext, err := open(k, in.Text, in.Context)
		if err != nil {
			return Done{}, version, err
		}
		defer clear(plaintext)
		return Done{Text: textOf(ring.Seal(place(in.Context), plaintext))}, version, nil
	})
}

// MACBatch is MAC for many messages, like EncryptBatch.
func (t *Transit) MACBatch(ctx context.Context, by actor.Actor, a Access, name string, items []Item) ([]Done, error) {
	return t.batch(ctx, by, a, ActionMAC, policy.KeyMAC, name, items, func(k *keyring.Named, in Item) (Done, uint32, error) {
		sum, version, err := k.MAC([]byte(macDomain), []byte(in.Context), in.Message)
		return Done{Text: versioned(version, sum)}, version, err
	})
}

// SignBatch is Sign for many messages, like EncryptBatch.
func (t *Transit) SignBatch(ctx context.Context, by actor.Actor, a Access, name string, items []Item) ([]Done, error) {
	return t.batch(ctx, by, a, ActionSign, policy.KeySign, name, items, func(k *keyring.Named, in Item) (Done, uint32, error) {
		s, version, err := k.Sign(Signed(in.Context, in.Message))
		return Done{Text: versioned(version, s)}, version, err
	})
}

// batch does fn with each item and the key in memory, and then records all of it.
func (t *Transit) batch(ctx context.Context, by actor.Actor, a Access, action, permit, name string, items []Item,
	fn func(k *keyring.Named, in Item) (Done, uint32, error)) ([]Done, error) {
	e, p := t.begin(by, a, action, permit, name)
	if p == nil {
		p = checkBatch(items)
	}
	var key *keyring.Named
	if p == nil {
		var err error
		if key, err = t.Keys.Named(ctx, name); err != nil {
			if p = problem.Of(err); p == nil {
				return nil, t.Trail.Do(ctx, by, e, func(*db.Tx, *audit.Event) error { return err })
			}
		}
	}
	if p != nil {
		return nil, t.Trail.Deny(ctx, by, e, p)
	}
	results := make([]Done, len(items))
	var versions []uint32
	failed := 0
	for i, in := range items {
		done, version, err := fn(key, in)
		if p := problem.Of(err); p != nil && p.Slug() == errOpen.Slug() {
			results[i].Err = p
			failed++
			continue
		} else if p != nil {
			return nil, t.Trail.Deny(ctx, by, e, p)
		}
		if err != nil {
			return nil, t.Trail.Do(ctx, by, e, func(*db.Tx, *audit.Event) error { return err })
		}
		results[i] = done
		if !slices.Contains(versions, version) {
			versions = append(versions, version)
		}
	}
	of := " of " + strconv.Itoa(len(items)) + " items"
	denied := e
	denied.Resource += " " + strconv.Itoa(failed) + of
	e.Resource += used(versions) + " " + strconv.Itoa(len(items)-failed) + of
	if failed == len(items) {
		if err := t.Trail.Deny(ctx, by, denied, errOpen); !problem.Is(err, errOpen.Slug()) {
			return nil, err
		}
		return results, nil
	}
	err := t.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error {
		if failed == 0 {
			return nil
		}
		denied.Outcome, denied.Reason = audit.Denied, errOpen.Slug()
		return t.Trail.Record(ctx, tx, by, denied)
	})
	if err != nil {
		for _, r := range results {
			clear(r.Plaintext)
		}
		return nil, err
	}
	return results, nil
}

// maxNamedVersions is how many versions an event names; a batch that needs more says how many there were.
const maxNamedVersions = 8

// used names the versions of a key in an event: " v1,v3".
func used(versions []uint32) string {
	if len(versions) == 0 {
		return ""
	}
	if len(versions) > maxNamedVersions {
		return " " + strconv.Itoa(len(versions)) + " versions"
	}
	slices.Sort(versions)
	names := make([]string, len(versions))
	for i, v := range versions {
		names[i] = "v" + strconv.FormatUint(uint64(v), 10)
	}
	return " " + strings.Join(names, ",")
}

func checkBatch(items []Item) *problem.Problem {
	if n := len(items); n < 1 || n > MaxBatch {
		return problem.New(problem.Unprocessable, "invalid-batch", "A batch has 1 to %d items.", MaxBatch)
	}
	total := 0
	for _, in := range items {
		if len(in.Message) > MaxMessage || len(in.Context) > MaxContext || fits(in.Text) > MaxMessage {
			return errSize
		}
		total += len(in.Message) + len(in.Text)*3/4 + len(in.Context)
	}
	if total > MaxBatchBytes+len(items)*seal.Overhead {
		return problem.New(problem.TooLarge, "batch-too-large", "A batch has at most %d bytes of messages and contexts.", MaxBatchBytes)
	}
	return nil
}
