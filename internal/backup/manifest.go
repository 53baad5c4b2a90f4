package backup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/db"
)

// formatVersion is the version of everything that lies in a repository.
const formatVersion = 1

// header is the only plaintext in a repository: who can open it.
type header struct {
	Format       int    `json:"format"`
	Installation string `json:"installation"`
	Environment  string `json:"environment"`
	Part         Part   `json:"part"`
	// The master key, sealed under the installation's own key "backup", and to the holders of the recovery
	// keys (age).
	Server   []byte `json:"server"`
	Recovery []byte `json:"recovery,omitempty"`
	// RecoveryOf is the digest of the recipients that Recovery is sealed to.
	RecoveryOf string `json:"recovery_of,omitempty"`
	// RecoveryMark is a MAC of Recovery and RecoveryOf under the master key: the installation cannot open what
	// is sealed to the holders of the recovery keys, and sees by this that it is what it has sealed.
	RecoveryMark []byte `json:"recovery_mark,omitempty"`
}

// Manifest says what one part of a snapshot consists of. It is stored encrypted, and signed.
type Manifest struct {
	Format       int       `json:"format"`
	ID           string    `json:"id"` // of the snapshot; both parts have the same
	Part         Part      `json:"part"`
	Taken        time.Time `json:"taken"` // when the database stood so
	Installation string    `json:"installation"`
	Environment  string    `json:"environment"`
	Engine       string    `json:"engine"`
	Schema       int64     `json:"schema"` // number of the newest migration
	Program      string    `json:"program"`
	Tables       []Copied  `json:"tables"`
	TreeSize     int64     `json:"tree_size"` // events in the trail's tree
	TreeRoot     string    `json:"tree_root"` // base64
	Label        string    `json:"label,omitempty"`
	Jurisdiction string    `json:"jurisdiction,omitempty"`
	Retention    string    `json:"retention,omitempty"` // class: hourly, daily, weekly, monthly, yearly, hold
	Rows         int64     `json:"rows"`
	Bytes        int64     `json:"bytes"`     // of the rows, before compression
	NewBytes     int64     `json:"new_bytes"` // stored for this snapshot alone, in one repository

	// Needs are the versions of each key that were live: what the snapshot needs to be read.
	Needs map[string][]uint32 `json:"needs,omitempty"`
	// Files are the settings and the policies, by their path in the data folder; part Data only.
	Files map[string][]byte `json:"files,omitempty"`
	// KEKs are sealed to the holders of the recovery keys and to nobody else (age); part Keys only. KEKsOf
	// says which KEKs and which holders.
	KEKs   []byte `json:"keks,omitempty"`
	KEKsOf string `json:"keks_of,omitempty"`

	note      string // signed, as it was stored
	statement string // that it must be over
}

// Copied is a table of a snapshot.
type Copied struct {
	db.Table
	Rows     int64     `json:"rows"`
	Hash     string    `json:"hash"` // SHA-256 over the rows in the order of their keys, hexadecimal
	Segments []Segment `json:"segments,omitempty"`
}

// Segment is a stretch of a table in the order of its keys: the rows of an object, less those that the
// change takes away, and those that it adds.
type Segment struct {
	Object string  `json:"object"`
	First  []byte  `json:"first"` // key of the object's first row
	Last   []byte  `json:"last"`
	Rows   int64   `json:"rows"` // of the object
	Bytes  int64   `json:"bytes"`
	Size   int64   `json:"size"` // of the object as it is stored
	Change *Change `json:"change,omitempty"`
}

// Change is what became of a segment since its object was written: a stretch of the plaintext of another
// object.
type Change struct {
	Object string `json:"object"`
	Size   int64  `json:"size"` // of the object as it is stored
	Offset int    `json:"offset"`
	Length int    `json:"length"`
}

// objects returns every object that the manifest needs, and its size as it is stored.
func (m *Manifest) objects() map[string]int64 {
	all := make(map[string]int64)
	for _, t := range m.Tables {
		for _, s := range t.Segments {
			all[s.Object] = s.Size
			if s.Change != nil {
				all[s.Change.Object] = s.Change.Size
			}
		}
	}
	return all
}

// measure fills in the sizes of the objects.
func (m *Manifest) measure(sizes map[string]int64) {
	for _, t := range m.Tables {
		for i := range t.Segments {
			s := &t.Segments[i]
			s.Size = sizes[s.Object]
			if s.Change != nil {
				s.Change.Size = sizes[s.Change.Object]
			}
		}
	}
}

// Signer signs manifests and certificates, as signed notes (C2SP signed-note). The keyring is behind it.
type Signer interface {
	EvidenceSigner() note.Signer
	EvidenceVerifiers() note.Verifiers
}

// signedManifest is what a manifest's object holds.
type signedManifest struct {
	Manifest json.RawMessage `json:"manifest"`
	Note     string          `json:"note"` // signed, over statement(manifest)
}

// statement is what is signed of a manifest: a digest, because a note is a short text.
func statement(manifest []byte) string {
	return fmt.Sprintf("strongroom backup manifest v1\n%x\n", sha256.Sum256(manifest))
}

// seal signs and encrypts the manifest.
func (m *Manifest) seal(k *vaultKey, signer note.Signer) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	signed, err := note.Sign(&note.Note{Text: statement(text)}, signer)
	if err != nil {
		return nil, err
	}
	whole, err := json.Marshal(signedManifest{text, string(signed)})
	if err != nil {
		return nil, err
	}
	return k.seal(manifestName(m.ID), whole)
}

// manifestName is the name for which the manifest's own object is sealed.
func manifestName(id string) string { return "manifest " + id }

// signedBy returns the key, as its name and its hash, that is among the verifiers and signed the manifest.
func (m *Manifest) signedBy(verifiers note.Verifiers) (key string, err error) {
	n, err := note.Open([]byte(m.note), verifiers)
	if err == nil && n.Text != m.statement {
		err = errors.New("its signature is over another manifest")
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s+%08x", n.Sigs[0].Name, n.Sigs[0].Hash), nil
}

// signers names the keys that the manifest says signed it.
func (m *Manifest) signers() string {
	var unknown *note.UnverifiedNoteError
	if _, err := note.Open([]byte(m.note), note.VerifierList()); !errors.As(err, &unknown) || len(unknown.Note.UnverifiedSigs) == 0 {
		return "nobody"
	}
	var all []string
	for _, s := range unknown.Note.UnverifiedSigs {
		all = append(all, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
	}
	return strings.Join(all, " and ")
}

// openManifest decrypts a manifest. With verifiers it also has to be signed by one of them. Without,
// as on a fresh machine that has nothing but the recovery key, that is left to Plan.Signed.
func openManifest(k *vaultKey, id string, stored []byte, verifiers note.Verifiers) (*Manifest, error) {
	damaged := fmt.Errorf("%w: the manifest %s", ErrObject, id)
	plaintext, err := k.open(manifestName(id), stored, false)
	if err != nil {
		return nil, err
	}
	var whole signedManifest
	if err := json.Unmarshal(plaintext, &whole); err != nil {
		return nil, damaged
	}
	m := &Manifest{note: whole.Note, statement: statement(whole.Manifest)}
	if verifiers != nil {
		if _, err := m.signedBy(verifiers); err != nil {
			return nil, fmt.Errorf("%w: the manifest %s is not signed by this installation", ErrObject, id)
		}
	}
	if err := json.Unmarshal(whole.Manifest, m); err != nil || m.ID != id {
		return nil, damaged
	}
	if m.Format != formatVersion {
		return nil, fmt.Errorf("the snapshot %s is of format %d, and this program reads %d", id, m.Format, formatVersion)
	}
	for name := range m.objects() {
		// It becomes a part of paths.
		if len(name) != hex.EncodedLen(sha256.Size) || strings.Trim(name, "0123456789abcdef") != "" {
			return nil, damaged
		}
	}
	return m, nil
}
