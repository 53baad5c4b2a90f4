// Package keyringtest gives the tests of other rooms a keyring over their database, fast: its root
// key is random and in memory, so no Argon2id runs.
package keyringtest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"testing"

	_ "gocloud.dev/secrets/localsecrets" // base64key://, which no product code links

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
)

// Root returns a fresh root key that lives in memory.
func Root(t testing.TB) keyring.Root {
	t.Helper()
	material := make([]byte, 32)
	rand.Read(material)
	root, err := keyring.OpenRoot(t.Context(), keyring.RootConfig{URL: "base64key://" + base64.URLEncoding.EncodeToString(material)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// Open opens a keyring under a fresh root key. Its events go nowhere until the test sets a recorder.
func Open(t testing.TB, d *db.DB) *keyring.Keyring {
	t.Helper()
	k, err := keyring.Open(t.Context(), actor.OfSystem("test"), keyring.Options{
		DB: d, Root: Root(t), Create: true,
		Record: func(context.Context, *db.Tx, actor.Actor, customer.ID, string, string) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}
