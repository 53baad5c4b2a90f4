package keyring

import (
	"context"
	"slices"

	"strongroom/internal/db"
)

// CheckpointKeys returns the verifier keys (C2SP signed-note) of all versions of the key that signs
// checkpoints, oldest first. They are public: whoever checks the log needs them.
func (k *Keyring) CheckpointKeys(ctx context.Context) ([]string, error) {
	return k.publicKeys(ctx, KeyCheckpoint, true)
}

// EvidenceKeys returns the same of the key that signs evidence: certificates, and the manifests of backups.
func (k *Keyring) EvidenceKeys(ctx context.Context) ([]string, error) {
	return k.publicKeys(ctx, KeyEvidence, true)
}

// TrustedEvidenceKeys is EvidenceKeys without those that somebody may know, or that were destroyed, which may have been
// for that: what they sign proves nothing any more to whoever sees it for the first time.
func (k *Keyring) TrustedEvidenceKeys(ctx context.Context) ([]string, error) {
	return k.publicKeys(ctx, KeyEvidence, false)
}

func (k *Keyring) publicKeys(ctx context.Context, name string, all bool) ([]string, error) {
	d := serviceDefinitions[slices.IndexFunc(serviceDefinitions, func(d serviceDefinition) bool { return d.name == name })]
	var keys []string
	err := k.db.View(ctx, func(tx *db.Tx) error {
		keys = nil
		set, err := k.current(ctx, tx)
		if err != nil {
			return err
		}
		rows, err := selectServiceKeys(ctx, tx)
		if err != nil {
			return err
		}
		slices.SortFunc(rows, func(a, b serviceRow) int { return int(a.version) - int(b.version) })
		for _, row := range rows {
			if row.name != name || !all && (row.state == compromised || row.state == destroyed) {
				continue
			}
			key, err := k.verifierOf(set, d, row)
			if err != nil {
				return err
			}
			keys = append(keys, key)
		}
		return nil
	})
	return keys, err
}
