package bundle

import (
	"archive/zip"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/audit"
)

// Source gives a bundle its content. Its functions are called once each, in the order of the fields, and give
// what they have one after the other: nothing but the catalogue and a sum for each check is held in memory.
type Source struct {
	Info
	Catalogue Catalogue
	Changes   func(yield func(Change) error) error // in the order of time
	Runs      func(yield func(Run) error) error    // in the order of time
	// Proofs gives those of the events of all runs, and then of all changes that have one, in their order, each
	// against the last checkpoint of Chain.
	Proofs func(yield func(event string, p audit.Proof) error) error
	Chain  func() ([]audit.Link, error)
}

// Write writes the bundle, signed; signer is the one whose verifier key is Info.EvidenceKey. The same source
// gives the same bytes.
func Write(ctx context.Context, out io.Writer, signer note.Signer, s Source) error {
	s.Format = format
	key := envelopeKey{sign: signer}
	var err error
	if key.verify, err = audit.NewVerifier(s.EvidenceKey); err != nil {
		return err
	}
	pem, err := keyPEM(s.EvidenceKey)
	if err != nil {
		return err
	}
	a := &archive{zip: zip.NewWriter(out), modified: s.To}
	sums := newSums()
	text := func(b []byte) func(io.Writer) error {
		return func(w io.Writer) error {
			_, err := w.Write(b)
			return err
		}
	}
	for _, m := range []struct {
		name  string
		write func(io.Writer) error
	}{
		{readmeName, text(readme)},
		{keyName, text(pem)},
		{claimsName, func(w io.Writer) error { return document(w, s.Catalogue) }},
		{historyName, func(w io.Writer) error {
			lines := json.NewEncoder(w)
			return s.Changes(func(c Change) error {
				c.Since = c.Since.UTC()
				return lines.Encode(c)
			})
		}},
		{runsName, zipped(func(w io.Writer) error {
			return s.Runs(func(r Run) error {
				statement, seen, err := r.statement()
				if err != nil {
					return err
				}
				sums.add(seen)
				line, err := seal(ctx, statement, key)
				if err != nil {
					return err
				}
				_, err = w.Write(append(line, '\n'))
				return err
			})
		})},
		{eventsName, zipped(func(w io.Writer) error {
			lines := json.NewEncoder(w)
			var last audit.Proof // all are against one checkpoint
			return s.Proofs(func(event string, p audit.Proof) error {
				if p.Checkpoint != last.Checkpoint {
					last = p
					if err := last.NameKey(s.LogKeys); err != nil {
						return err
					}
				}
				p.Key = last.Key
				return lines.Encode(citedEvent{event, string(p.Text())})
			})
		})},
		{checkpointsName, func(w io.Writer) error {
			chain, err := s.Chain()
			lines := json.NewEncoder(w)
			for _, link := range chain {
				if err == nil {
					link.Time = link.Time.UTC()
					err = lines.Encode(link)
				}
			}
			return err
		}},
		{oscalName, func(w io.Writer) error { return document(w, assessment(s.Info, s.Catalogue, sums)) }},
	} {
		if err := a.add(m.name, m.write); err != nil {
			return err
		}
	}
	statement, err := s.manifest(a.hashes)
	if err != nil {
		return err
	}
	envelope, err := seal(ctx, statement, key)
	if err != nil {
		return err
	}
	if err := a.add(manifestName, text(append(envelope, '\n'))); err != nil {
		return err
	}
	return a.zip.Close()
}

// document writes v as JSON for people to read.
func document(w io.Writer, v any) error {
	lines := json.NewEncoder(w)
	lines.SetIndent("", "  ")
	return lines.Encode(v)
}

// zipped compresses what write writes. Members are stored as they are, so that their bytes, and with them all
// bytes of the archive, are determined by what is signed.
func zipped(write func(io.Writer) error) func(io.Writer) error {
	return func(w io.Writer) error {
		z := gzip.NewWriter(w)
		if err := write(z); err != nil {
			return err
		}
		return z.Close()
	}
}

// archive is a ZIP archive of stored members that were all changed at one time.
type archive struct {
	zip      *zip.Writer
	modified time.Time
	hashes   [][]byte
}

// add adds a member and notes its SHA-256.
func (a *archive) add(name string, write func(io.Writer) error) error {
	w, err := a.zip.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: a.modified.UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := write(io.MultiWriter(w, h)); err != nil {
		return err
	}
	a.hashes = append(a.hashes, h.Sum(nil))
	return nil
}
