package keyring

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

func TestNamedKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := testRoot(t)
		a := openKeyring(t, d, root)
		update(t, d, func(tx *db.Tx) error {
			return errors.Join(a.CreateNamed(t.Context(), tx, by, "pay", NamedSealing), a.CreateNamed(t.Context(), tx, by, "sum", NamedMAC))
		})
		if _, err := a.Named(t.Context(), "none"); !problem.Is(err, "key-not-found") {
			t.Error(err)
		}
		key, err := a.Named(t.Context(), "pay")
		if err != nil {
			t.Fatal(err)
		}
		ring, err := key.Ring()
		if err != nil {
			t.Fatal(err)
		}
		sealed := ring.Seal(place, []byte("secret"))
		if _, _, err := key.MAC(nil); !problem.Is(err, "key-for-other-use") {
			t.Error(err)
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
			if text := fmt.Sprintf(verb, key); text != redacted {
				t.Errorf("%s prints %s", verb, text)
			}
		}
		// A key is listed like Strongroom's own, and survives a restart with the versions it had.
		update(t, d, func(tx *db.Tx) error {
			_, err := a.RotateNamed(t.Context(), tx, by, "pay")
			return err
		})
		b := openKeyring(t, d, root)
		list, err := b.List(t.Context(), by)
		if err != nil {
			t.Fatal(err)
		}
		var states []string
		for _, i := range list {
			if strings.HasPrefix(i.Name, namedPrefix) {
				states = append(states, fmt.Sprintf("%s/%d %s %s", i.Name, i.Version, i.Algorithm, i.State))
			}
		}
		if got := strings.Join(states, ", "); got != "named/pay/1 AES-256-GCM retired, named/pay/2 AES-256-GCM active, named/sum/1 HMAC-SHA-256 active" {
			t.Error(got)
		}
		for name, k := range map[string]*Keyring{"the process that rotated": a.Keyring, "another": b.Keyring} {
			key, err := k.Named(t.Context(), "pay")
			if err != nil || key.Version() != 2 {
				t.Fatalf("%s: %v", name, err)
			}
			ring, _ := key.Ring()
			if plain, err := ring.Open(place, sealed); err != nil || string(plain) != "secret" {
				t.Errorf("%s: %q %v", name, plain, err)
			}
		}
		// What was made for one name or use is not taken for another.
		exec(t, d, `UPDATE service_key SET wrapped = (SELECT wrapped FROM service_key WHERE name = 'named/pay' AND version = 2) WHERE name = 'named/sum'`)
		if _, err := openKeyring(t, d, root).Named(t.Context(), "sum"); !errors.Is(err, ErrUnwrap) {
			t.Error(err)
		}
		late := openKeyring(t, d, root)
		exec(t, d, `UPDATE service_key SET state = 'retired' WHERE name = 'named/pay'`)
		if _, err := late.Named(t.Context(), "pay"); !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}
