package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	fnote "github.com/transparency-dev/formats/note"
)

// maxProof bounds the text of a proof: a leaf, 63 hashes and a checkpoint with its cosignatures.
const maxProof = 256 << 10

// Text returns the proof in the form of C2SP tlog-proof, whose extra data is the leaf. Key, when it is set,
// stands among the signatures.
func (p Proof) Text() []byte {
	t := proof.TLogProof{Index: uint64(p.Index), Checkpoint: []byte(p.Checkpoint + keyLine(p.Key)), ExtraData: []byte(p.Leaf)}
	for _, h := range p.Hashes {
		t.Hashes = append(t.Hashes, h)
	}
	return t.Marshal()
}

// ParseProof reads what Text wrote. It checks the form alone; Check checks the proof. It fails with ErrProof.
func ParseProof(text []byte) (Proof, error) {
	var t proof.TLogProof
	if len(text) > maxProof {
		return Proof{}, fmt.Errorf("%w: it is longer than %d bytes", ErrProof, maxProof)
	}
	if err := t.Unmarshal(text); err != nil {
		return Proof{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	if t.Index > math.MaxInt64 || len(t.Hashes) > 63 {
		return Proof{}, fmt.Errorf("%w: the log has no such place", ErrProof)
	}
	if len(t.ExtraData) == 0 {
		return Proof{}, fmt.Errorf("%w: it does not bring its leaf along as extra data", ErrProof)
	}
	p := Proof{Leaf: string(t.ExtraData), Index: int64(t.Index)}
	p.Checkpoint, p.Key = cutKeyLine(string(t.Checkpoint))
	for _, h := range t.Hashes {
		p.Hashes = append(p.Hashes, tlog.Hash(h))
	}
	return p, nil
}

// keyLineName is the name of the line among a checkpoint's signatures that says which verifier key the log
// has. It is no signature: to whoever knows it not, it is one of an unknown key, which C2SP signed-note has
// them pass over. What follows the four bytes of its hash is the verifier key.
const keyLineName = "strongroom.verifier-key"

// keyLineHash stands where a signature has the hash of its key.
var keyLineHash = sha256.Sum256([]byte(keyLineName + "\n\xff"))

// keyLine returns the line that names the verifier key; empty without one.
func keyLine(key string) string {
	if key == "" {
		return ""
	}
	return "— " + keyLineName + " " + base64.StdEncoding.EncodeToString(append(keyLineHash[:4:4], key...)) + "\n"
}

// cutKeyLine takes the line that names the verifier key off the end of a checkpoint.
func cutKeyLine(checkpoint string) (rest, key string) {
	at := strings.LastIndex(strings.TrimSuffix(checkpoint, "\n"), "\n") + 1
	text, ok := strings.CutPrefix(checkpoint[at:], "— "+keyLineName+" ")
	if !ok {
		return checkpoint, ""
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(text, "\n"))
	if err != nil || len(b) < 4 || [4]byte(b) != [4]byte(keyLineHash[:4]) {
		return checkpoint, ""
	}
	// Only what Text writes is taken off.
	if key = string(b[4:]); keyLine(key) != checkpoint[at:] {
		return checkpoint, ""
	}
	return checkpoint[:at], key
}

// NewVerifier returns the verifier of a key in the form of a C2SP signed-note verifier key, by the byte
// that names its algorithm: Ed25519 of logs (1), Ed25519 cosignatures (4) and ML-DSA-44 cosignatures (6).
func NewVerifier(key string) (note.Verifier, error) {
	v, err := fnote.NewVerifier(key)
	if err != nil {
		return nil, fmt.Errorf("not a verifier key (name+hash+base64): %w", err)
	}
	return v, nil
}

// Witnessed returns the names of those of the witnesses that have cosigned the proof's checkpoint, in
// the order given. Of what others signed it says nothing.
func (p Proof) Witnessed(witnesses []note.Verifier) ([]string, error) {
	if len(witnesses) == 0 {
		return nil, nil
	}
	return cosigners(p.Checkpoint, witnesses)
}

// cosigners returns the names of those of the witnesses that have signed the note.
func cosigners(signed string, witnesses []note.Verifier) ([]string, error) {
	n, err := note.Open([]byte(signed), note.VerifierList(witnesses...))
	var none *note.UnverifiedNoteError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, w := range witnesses {
		for _, s := range n.Sigs {
			if s.Name == w.Name() && s.Hash == w.KeyHash() {
				names = append(names, w.Name())
				break
			}
		}
	}
	return names, nil
}
