package identity

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"time"

	"golang.org/x/crypto/bcrypt"

	"strongroom/internal/identity/passcode"
	"strongroom/internal/keyring"
	"strongroom/internal/secret"
)

// hasher hashes private codes: bcrypt over an HMAC under a key, the pepper, that never is in the
// database, so that a stolen database alone allows no guessing. A bounded number run at the same
// time and a bounded number wait, so that a flood of logins takes neither all cores nor all memory
// from customers who are in already.
//
// A comparison costs what the dearest hash in use costs, whichever hash it is with: hashes that were
// made when the cost was another would otherwise tell, by their time, that a number has an account.
type hasher struct {
	keys    *keyring.Keyring
	cost    int // of new hashes
	highest int // of all hashes in use
	queue   *queue
	fillers [bcrypt.MaxCost + 1][]byte // hashes that nothing matches, by cost
	typical time.Duration              // of one comparison on a quiet machine
	compare func(hash, in []byte) error
	metrics *metrics
}

// hashed is a private code as it is stored.
type hashed struct {
	hash   []byte
	pepper uint32
}

// purposeCode keeps the pepper's uses apart.
var purposeCode = []byte("identity.private-code")

// newHasher returns a hasher. Used are the costs of the hashes in the database.
func newHasher(keys *keyring.Keyring, cost int, used []int, workers, waiters int, m *metrics) *hasher {
	h := &hasher{keys: keys, cost: cost, highest: cost, metrics: m, queue: newQueue(workers, waiters), compare: bcrypt.CompareHashAndPassword}
	for _, c := range used {
		h.highest = max(h.highest, min(c, bcrypt.MaxCost))
	}
	for c := bcrypt.MinCost; c <= h.highest; c++ {
		h.fillers[c] = dummyHash(c)
	}
	// Learned at a low cost, since each step doubles the time; the quicker of two, since machines are
	// rarely quicker than they are.
	sample, in := dummyHash(sampleCost), make([]byte, 44)
	for range 2 {
		began := time.Now()
		_ = bcrypt.CompareHashAndPassword(sample, in) // never matches
		if t := time.Since(began); h.typical == 0 || t < h.typical {
			h.typical = t
		}
	}
	h.typical = h.typical << h.highest >> sampleCost
	return h
}

// nobody is what an account that is not there is compared with, under the active pepper.
func (h *hasher) nobody() hashed {
	_, pepper := h.keys.MAC(keyring.KeyPepper, purposeCode)
	return hashed{h.fillers[h.highest], pepper}
}

// sampleCost is bcrypt's cost when its speed is measured.
const sampleCost = 6

// dummyHash returns a bcrypt hash of the given cost that no code matches: its last 31 characters are
// random instead of computed.
func dummyHash(cost int) []byte {
	const alphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	random := make([]byte, 53)
	rand.Read(random)
	for i, b := range random {
		random[i] = alphabet[b%64]
	}
	random[21] = alphabet[2] // a salt of 16 bytes leaves four bits over, which must be zero
	return append(fmt.Appendf(nil, "$2a$%02d$", cost), random...)
}

// enter waits for a worker and returns the function that gives it back. When too many wait already it
// refuses at once. A caller who leaves while waiting leaves the queue.
func (h *hasher) enter(ctx context.Context, g guest) (leave func(), err error) {
	out, err := h.queue.enter(ctx, g)
	h.metrics.queue.Set(float64(h.queue.length()))
	if err != nil {
		if ctx.Err() == nil {
			h.metrics.busy.Inc()
		}
		return nil, err
	}
	return func() {
		out()
		h.metrics.queue.Set(float64(h.queue.length()))
	}, nil
}

// peppered is what bcrypt gets: 44 characters without a zero byte, whatever the code was, so that
// bcrypt's limit of 72 bytes cuts nothing off.
func (h *hasher) peppered(code secret.Value, version uint32) ([]byte, error) {
	mac, err := h.keys.MACVersion(keyring.KeyPepper, version, purposeCode, passcode.Normal(code.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("pepper %d: %w", version, err)
	}
	out := make([]byte, base64.StdEncoding.EncodedLen(len(mac)))
	base64.StdEncoding.Encode(out, mac)
	return out, nil
}

// make hashes a new code under the newest pepper.
func (h *hasher) make(code secret.Value) (hashed, error) {
	_, version := h.keys.MAC(keyring.KeyPepper, purposeCode)
	in, err := h.peppered(code, version)
	if err != nil {
		return hashed{}, err
	}
	defer clear(in)
	h.metrics.hashes.Inc()
	out, err := bcrypt.GenerateFromPassword(in, h.cost)
	if err != nil {
		return hashed{}, fmt.Errorf("hashing: %w", err)
	}
	return hashed{out, version}, nil
}

// matches compares a code with what is stored, in the time of one hash of the highest cost in use. A
// cheaper hash is followed by fillers: 2^n is 2^m and then 2^m, 2^(m+1) and so on to 2^(n-1).
func (h *hasher) matches(code secret.Value, with hashed) (bool, error) {
	in, err := h.peppered(code, with.pepper)
	if err != nil {
		return false, err
	}
	defer clear(in)
	h.metrics.hashes.Inc()
	right := h.compare(with.hash, in) == nil
	if cost, err := bcrypt.Cost(with.hash); err == nil {
		for ; cost < h.highest; cost++ {
			_ = h.compare(h.fillers[cost], in) // never matches
		}
	}
	return right, nil
}

// outdated reports whether a hash would be made otherwise today. A pepper that is newer than this process's
// active one is not outdated: another process knows more.
func (h *hasher) outdated(s hashed) bool {
	cost, err := bcrypt.Cost(s.hash)
	_, pepper := h.keys.MAC(keyring.KeyPepper, purposeCode)
	return err == nil && (cost != h.cost || s.pepper < pepper)
}
