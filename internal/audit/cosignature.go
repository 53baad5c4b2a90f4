package audit

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/db"
)

// signerOf returns the name and the hash of the known key that signed the note in the name of its origin.
func signerOf(signed string, known note.Verifiers) (name string, hash uint32, err error) {
	n, err := note.Open([]byte(signed), known)
	if err != nil {
		return "", 0, err
	}
	origin, _, _ := strings.Cut(n.Text, "\n")
	for _, s := range n.Sigs {
		if s.Name == origin {
			return s.Name, s.Hash, nil
		}
	}
	return "", 0, errCheckpoint
}

// hexHash writes the hash of a key as a verifier key has it.
func hexHash(hash uint32) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint32(nil, hash))
}

func insertCosignature(ctx context.Context, tx *db.Tx, size int64, witness, line string, now int64) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO log_cosignature (size, witness, line, made_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (size, witness) DO UPDATE SET line = excluded.line, made_at = excluded.made_at`, size, witness, line, now)
	return err
}

// maxCosignatures bounds the witnesses whose lines are put under a checkpoint: a note may have 100.
const maxCosignatures = 32

// withCosignatures returns the signed note with the lines of the witnesses that have cosigned it. They
// are not checked: whoever relies on one does that. A line that is none is left out.
func withCosignatures(ctx context.Context, tx *db.Tx, size int64, signed string) (string, error) {
	lines, err := queryTexts(ctx, tx, `SELECT `+boundedLine+` FROM log_cosignature WHERE size = $1 ORDER BY witness LIMIT $2`, size, maxCosignatures)
	if err != nil {
		return "", err
	}
	for _, line := range lines {
		if isSignatureLine(signed, line) {
			signed += line
		}
	}
	return signed, nil
}

// isSignatureLine reports whether line can stand under the signed note: one that cannot would make the note
// unreadable.
func isSignatureLine(signed, line string) bool {
	if !strings.HasPrefix(line, "— ") || strings.IndexByte(line, '\n') != len(line)-1 {
		return false
	}
	text, _, _ := strings.Cut(signed, "\n\n")
	_, err := note.Open([]byte(text+"\n\n"+line), note.VerifierList())
	var unknown *note.UnverifiedNoteError
	return errors.As(err, &unknown)
}

// boundedLine is boundedText for a signature line: of ML-DSA-44 it has some 3300 bytes.
const boundedLine = `CASE WHEN octet_length(line) <= 4096 THEN line ELSE '' END`

func selectCosigners(ctx context.Context, tx *db.Tx, size int64) ([]string, error) {
	names, err := queryTexts(ctx, tx, `SELECT `+boundedText("witness")+` FROM log_cosignature WHERE size = $1 ORDER BY witness LIMIT $2`, size, maxCosignatures)
	for i := range names {
		names[i] = shown(names[i])
	}
	return names, err
}

func queryTexts(ctx context.Context, tx *db.Tx, query string, args ...any) ([]string, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		list = append(list, text)
	}
	return list, rows.Err()
}

// selectWitnessed returns the size of the newest checkpoint over the size given that has a cosignature,
// or 0.
func selectWitnessed(ctx context.Context, tx *db.Tx, over, upTo int64) (size int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT COALESCE(max(g.size), 0) FROM log_cosignature g JOIN log_checkpoint c ON c.size = g.size
		WHERE g.size > $1 AND g.size <= $2`, over, upTo).Scan(&size)
	return size, err
}
