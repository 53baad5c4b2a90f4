package keyring

import (
	"slices"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// A key of evidence that somebody may know is handed to nobody as one to be trusted, and is there for what it signed.
func TestTrustedEvidenceKeys(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	k := openKeyring(t, d, testRoot(t))
	ctx := t.Context()
	before, err := k.TrustedEvidenceKeys(ctx)
	if err != nil || len(before) != 1 {
		t.Fatalf("%q %v", before, err)
	}
	if err := k.CompromiseService(ctx, by, KeyEvidence, 1); err != nil {
		t.Fatal(err)
	}
	all, err := k.EvidenceKeys(ctx)
	if err != nil || len(all) != 2 || all[0] != before[0] {
		t.Fatalf("%q %v", all, err)
	}
	if trusted, err := k.TrustedEvidenceKeys(ctx); err != nil || !slices.Equal(trusted, all[1:]) {
		t.Errorf("%q are to be trusted, of %q: %v", trusted, all, err)
	}
}
