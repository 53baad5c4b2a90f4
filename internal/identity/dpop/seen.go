package dpop

import (
	"hash/maphash"
	"strings"
	"sync"
	"time"
)

// seen remembers the proofs that were accepted, each until it could not be accepted again. It is
// split in shards, so that callers rarely wait for each other, and bounded: a full shard accepts
// nothing, since a proof that cannot be remembered could be replayed. From half full on, it accepts
// nothing from sources that have had their share, so that none of them fills it.
type seen struct {
	shards  [64]shard
	limit   int // of each shard
	sources [16]sourceShard
	share   int // of each source
	seed    maphash.Seed
}

// sourceShard counts the proofs of sources, generation by generation.
type sourceShard struct {
	mu         sync.Mutex
	young, old map[uint64]int
	turn       time.Time
}

// sharesOf is into how many shares a memory is divided.
const sharesOf = 256

type shard struct {
	mu    sync.Mutex
	old   map[proofID]int64 // Unix microseconds at which each is forgotten
	young map[proofID]int64
	turn  time.Time // when young becomes old
	swept time.Time
	_     [16]byte // keeps neighbours off one cache line
}

// proofID is half of a SHA-256, which is enough that nobody finds two proofs with one id.
type proofID [16]byte

type verdict int

const (
	seenNew verdict = iota
	seenBefore
	seenFull
)

// generation is the time after which a generation of proofs is closed. A proof lives Window+Future
// at most, so when a generation has been closed for that long nothing in it is alive.
const generation = Window + Future

func newSeen(capacity int) *seen {
	s := &seen{limit: max(1, capacity/64), share: max(1, capacity/sharesOf), seed: maphash.MakeSeed()}
	for i := range s.sources {
		s.sources[i].young = map[uint64]int{}
	}
	for i := range s.shards {
		s.shards[i].young = map[proofID]int64{}
		s.shards[i].old = map[proofID]int64{}
	}
	return s
}

// count counts a proof of the source and reports whether that is within its share.
func (s *seen) count(source string, now time.Time) bool {
	h := maphash.String(s.seed, source)
	sh := &s.sources[h%16]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if now.After(sh.turn) {
		sh.old, sh.young = sh.young, map[uint64]int{}
		if now.After(sh.turn.Add(generation)) {
			sh.old = nil
		}
		sh.turn = now.Add(generation)
	}
	sh.young[h]++
	return sh.young[h]+sh.old[h] <= s.share
}

// add remembers the proof of the source with the digest until the given time, and says whether it was
// known.
func (s *seen) add(digest [32]byte, source string, now, until time.Time) verdict {
	var id proofID
	copy(id[:], digest[:])
	sh := &s.shards[digest[31]%64]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if now.After(sh.turn) {
		if now.After(sh.turn.Add(generation)) {
			clear(sh.young) // nobody came for so long that the young are past too
		}
		sh.old, sh.young = sh.young, map[proofID]int64{}
		sh.turn = now.Add(generation)
	}
	if _, ok := sh.young[id]; ok {
		return seenBefore
	}
	if _, ok := sh.old[id]; ok {
		return seenBefore
	}
	within := s.count(source, now)
	if n := len(sh.young) + len(sh.old); n >= s.limit || !within && n >= s.limit/2 {
		if !sh.sweep(now) {
			return seenFull
		}
		if n = len(sh.young) + len(sh.old); n >= s.limit || !within && n >= s.limit/2 {
			return seenFull
		}
	}
	sh.young[id] = until.UnixMicro()
	return seenNew
}

// sweep forgets what is past, when the shard is full before its turn. It does so once a second at
// most, and reports whether it did: a flood of refusals must not cost a sweep each.
func (sh *shard) sweep(now time.Time) bool {
	if now.Sub(sh.swept).Abs() < time.Second {
		return false
	}
	sh.swept = now
	us := now.UnixMicro()
	for _, m := range []map[proofID]int64{sh.old, sh.young} {
		for id, until := range m {
			if until < us {
				delete(m, id)
			}
		}
	}
	return true
}

// keyCache keeps the keys of headers whose signature was verified. A device sends the same header
// with every proof, and reading it costs a third of a signature check.
type keyCache struct {
	seed   maphash.Seed
	shards [16]keyShard
}

type keyShard struct {
	mu         sync.RWMutex
	young, old map[string]deviceKey
}

// A shard's generation holds keysPerShard headers of at most maxCachedHeader bytes, so the whole
// cache stays under 5 MB.
const (
	keysPerShard    = 256
	maxCachedHeader = 400
)

func (c *keyCache) shard(head string) *keyShard { return &c.shards[maphash.String(c.seed, head)%16] }

func (c *keyCache) get(head string) (deviceKey, bool) {
	if len(head) > maxCachedHeader {
		return deviceKey{}, false
	}
	s := c.shard(head)
	s.mu.RLock()
	k, ok := s.young[head]
	if !ok {
		k, ok = s.old[head]
	}
	s.mu.RUnlock()
	return k, ok
}

func (c *keyCache) put(head string, k deviceKey) {
	if len(head) > maxCachedHeader {
		return
	}
	s := c.shard(head)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.young) >= keysPerShard || s.young == nil {
		s.old, s.young = s.young, make(map[string]deviceKey)
	}
	s.young[strings.Clone(head)] = k
}
