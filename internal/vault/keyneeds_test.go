package vault_test

import (
	"strings"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/vault"
)

// TestDeclarationsNeedTheirKey: whoever destroys the key that authenticates a declaration is told so.
func TestDeclarationsNeedTheirKey(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, nil)
		mustDeclare(t, h.settled(t), plainName)
		for name, want := range map[string]bool{keyring.KeyEventMAC: true, keyring.KeyToken: false} {
			for version := uint32(1); version <= 2; version++ {
				var by string
				if err := d.View(t.Context(), func(tx *db.Tx) (err error) {
					by, err = vault.KeyNeeded(t.Context(), tx, name, version)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				if got := strings.HasSuffix(by, "declarations of collections"); got != (want && version == 1) {
					t.Errorf("%s/%d is needed by %q", name, version, by)
				}
			}
		}
	})
}
