package keyring_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lukechampine.com/adiantum"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/identity"
	"strongroom/internal/identity/phone"
	"strongroom/internal/identity/sms"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/keyring/stream"
	"strongroom/internal/secret"
	"strongroom/internal/vault"
)

// TestNothingOfTheErasedOpens takes every value of every table after an erasure, and every page of the
// embedded database's files, together with the root key and every key that it still leads to, and finds
// nothing of the person: neither in the clear, nor by decrypting anything with any key wherever it may
// have come from. Before the erasure the same search finds all of it.
func TestNothingOfTheErasedOpens(t *testing.T) {
	for _, engine := range []db.Engine{db.SQLite, db.PostgreSQL} {
		t.Run(engine.String(), func(t *testing.T) {
			o := dbtest.SQLite(t)
			if engine == db.PostgreSQL {
				o = db.Options{URL: dbtest.PostgresURL(t), Environment: "dev", Create: true}
			}
			d, err := db.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			nothingOpens(t, d, o)
		})
	}
}

func nothingOpens(t *testing.T, d *db.DB, o db.Options) {
	ctx := t.Context()
	var trail *audit.Trail
	keys, err := keyring.Open(ctx, actor.OfSystem("test"), keyring.Options{Create: true, DB: d, Root: keyringtest.Root(t),
		Connect: func(k *keyring.Keyring) keyring.Recorder {
			trail = audit.New(d, k, audit.Options{})
			return func(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, action, resource string) error {
				return trail.Record(ctx, tx, by, audit.Event{Action: action, Resource: resource, Customer: c, Outcome: audit.Granted})
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	inbox := sms.NewInbox(nil)
	id, err := identity.New(identity.Options{DB: d, Keys: keys, Trail: trail, Sender: inbox,
		Phone: phone.Rules{Region: "GB", AllowTestNumbers: true}, Cost: 4, HashWorkers: 2})
	if err != nil {
		t.Fatal(err)
	}
	records, err := vault.New(d, keys, trail, vault.Options{Erasers: []vault.Eraser{identity.NewEraser(keys)}})
	if err != nil {
		t.Fatal(err)
	}

	// A neighbour first, so that there are other customers' keys; then the person, with all that can be
	// had of them, some of it still on its way.
	play := func(number, name, address string) (actor.Actor, identity.Tokens) {
		t.Helper()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		// Who has no account yet is nobody, and comes from another address: what is kept of that is not kept
		// of a customer.
		nobody := actor.Actor{Kind: actor.Anonymous, Key: thumbprint(name), Address: netip.MustParseAddr("198.51.100.9")}
		send := func() string {
			t.Helper()
			deliver(t, id)
			return regexp.MustCompile(`\b[0-9]{6}\b`).FindString(inbox.Search(number)[0].Text)
		}
		started, err := id.StartRegistration(ctx, nobody, number)
		must(err)
		nobody.Address = netip.MustParseAddr(address)
		person, err := id.CompleteRegistration(ctx, nobody, started.ID, secret.FromString(send()), secret.FromString("73920485"), "telephone of "+name)
		must(err)
		login, err := id.StartLogin(ctx, nobody, number, secret.FromString("73920485"))
		must(err)
		tokens, err := id.CompleteLogin(ctx, nobody, login.ID, secret.FromString(send()), "telephone of "+name)
		must(err)
		by := actor.Actor{Kind: actor.Customer, ID: string(person.Customer), Device: tokens.Device, Session: tokens.Session, Address: nobody.Address}
		_, _, err = records.Put(ctx, by, person.Customer, vault.Ref{Collection: "profile", Key: "main"},
			[]byte(`{"given_name":"`+name+`","family_name":"Person","email":"`+name+`@example.com"}`), vault.Condition{})
		must(err)
		_, _, err = records.PutBlob(ctx, by, person.Customer, vault.Ref{Collection: "profile", Key: "passport"},
			strings.NewReader("passport of "+name), vault.Condition{})
		must(err)
		_, err = records.Get(ctx, by, person.Customer, vault.Ref{Collection: "profile", Key: "main"}, vault.Reveal{})
		must(err)
		// A login that failed, one that is under way with its message, and a stranger who tries to register
		// the number.
		_, err = id.StartLogin(ctx, nobody, number, secret.FromString("wrong-code-1"))
		must(err)
		_, err = id.StartLogin(ctx, nobody, number, secret.FromString("73920485"))
		must(err)
		stranger := actor.Actor{Kind: actor.Anonymous, Key: "stranger", Address: netip.MustParseAddr("198.51.100.7")}
		_, err = id.StartRegistration(ctx, stranger, number)
		must(err)
		return by, tokens
	}
	keys.Connect(trail, records, identity.Resealer{})
	play("+447700900111", "Neighbour", "203.0.113.50")
	ada, tokens := play("+447700900222", "Adalgisa", "203.0.113.99")
	// Her key has several versions: all values are sealed anew under the second; what she wrote after that is
	// under the third; her events are under the first.
	operator := actor.OfSystem("cli:test")
	if _, err := keys.RotateCustomer(ctx, operator, ada.Customer()); err != nil {
		t.Fatal(err)
	}
	// The profile, the head of the blob, the number, the device's name and the address of the login.
	if done, failed, err := keys.ResealCustomer(ctx, ada.Customer()); err != nil || done != 5 || failed != 0 {
		t.Fatalf("%d values sealed anew, %d failed, %v", done, failed, err)
	}
	if err := keys.CompromiseCustomer(ctx, operator, ada.Customer(), 2); err != nil {
		t.Fatal(err)
	}
	if _, _, err = records.Put(ctx, ada, ada.Customer(), vault.Ref{Collection: "bank_account", Key: "main"},
		[]byte(`{"holder":"Adalgisa Person","iban":"GB82 WEST 1234 5698 7654 32","currency":"GBP"}`), vault.Condition{}); err != nil {
		t.Fatal(err)
	}

	// A collection of the operator's, with an index and older versions.
	if err := records.Settle(ctx, operator); err != nil {
		t.Fatal(err)
	}
	if _, err := records.PutCollection(ctx, operator, []byte(`{name: pet, purposes: [test], retention: 30d, legal_basis: contract, history: 2,
		schema: {type: object, properties: {name: {type: string, x-strongroom: {sensitivity: personal, mask: all, index: true}}}}}`)); err != nil {
		t.Fatal(err)
	}
	for i, pet := range []string{"first dog of A.", "second dog of A."} {
		c := vault.Condition{}
		if i > 0 {
			c.IfMatch = "*"
		}
		if _, _, err := records.Put(ctx, ada, ada.Customer(), vault.Ref{Collection: "pet", Key: "dog"}, []byte(`{"name":"`+pet+`"}`), c); err != nil {
			t.Fatal(err)
		}
	}

	needles := []string{"first dog of A.", "second dog of A.", "GB82WEST12345698765432", "+447700900222", "7700900222", "Adalgisa", "Adalgisa@example.com", "telephone of Adalgisa", "passport of Adalgisa", "203.0.113.99"}
	search := func() (found []string, values int) {
		blobs := everything(t, d, o)
		all := allKeys(blobs, keyring.Materials(t, keys))
		for _, n := range needles {
			if slices.ContainsFunc(blobs, func(b []byte) bool { return bytes.Contains(b, []byte(n)) }) {
				t.Errorf("%q stands in the clear", n)
			}
		}
		opened := opened(all, blobs, chunks(t, d))
		for _, b := range blobs {
			for _, key := range all {
				opened = append(opened, decrypt(key, b))
			}
		}
		for _, plain := range opened {
			for _, n := range needles {
				if bytes.Contains(plain, []byte(n)) && !slices.Contains(found, n) {
					found = append(found, n)
				}
			}
		}
		return found, len(blobs)
	}
	if found, _ := search(); len(found) != len(needles) {
		t.Fatalf("before the erasure only %q are found: this test looks in the wrong place", found)
	}

	erasure, err := records.Erase(ctx, actor.OfSystem("cli:test"), ada.Customer(), "customer asked")
	if err != nil {
		t.Fatal(err)
	}
	if statement, _, err := erasure.Receipt.Check(""); err != nil || statement.Keys != 3 {
		t.Errorf("the receipt: %+v, %v", statement, err)
	}
	found, values := search()
	if len(found) > 0 {
		t.Errorf("after the erasure these can still be read: %q", found)
	}
	if values < 100 {
		t.Errorf("only %d values were looked at", values)
	}
	t.Logf("%d values", values)

	// The session is dead, the trail holds, and the number is free.
	if _, err := id.Refresh(ctx, actor.Actor{Key: thumbprint("Adalgisa")}, tokens.Refresh); err == nil {
		t.Error("the session can be refreshed")
	}
	report, err := trail.Verify(ctx, actor.OfSystem("test"), nil)
	if err != nil || len(report.Findings) > 0 || report.Erased == 0 {
		t.Errorf("the trail: %+v, %v", report, err)
	}
	again, _ := play("+447700900222", "Berengaria", "203.0.113.98")
	if again.ID == ada.ID {
		t.Error("the number came back to the erased customer")
	}
}

// thumbprint stands for that of a device's key, which says nothing of a person.
func thumbprint(name string) string {
	sum := sha256.Sum256([]byte(name))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// deliver empties the outbox, as the job does.
func deliver(t *testing.T, id *identity.Identity) {
	t.Helper()
	for _, job := range id.Jobs() {
		if job.Name == identity.JobMessages {
			if err := job.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// everything returns each value of each table that is text or bytes, and of the embedded database
// every decrypted page of its files, cut at each place where a sealed value may begin.
func everything(t *testing.T, d *db.DB, o db.Options) (all [][]byte) {
	t.Helper()
	list := `SELECT name FROM sqlite_schema WHERE type = 'table'`
	if d.Engine() == db.PostgreSQL {
		list = `SELECT tablename FROM pg_tables WHERE schemaname = current_schema()`
	}
	err := d.View(t.Context(), func(tx *db.Tx) error {
		var tables []string
		rows, err := tx.Query(t.Context(), list)
		if err != nil {
			return err
		}
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			tables = append(tables, name)
		}
		if err := rows.Close(); err != nil {
			return err
		}
		for _, table := range tables {
			rows, err := tx.Query(t.Context(), `SELECT * FROM `+table)
			if err != nil {
				return err
			}
			columns, err := rows.Columns()
			if err != nil {
				return err
			}
			for rows.Next() {
				values := make([]any, len(columns))
				for i := range values {
					values[i] = new(any)
				}
				if err := rows.Scan(values...); err != nil {
					return err
				}
				for _, v := range values {
					switch v := (*v.(*any)).(type) {
					case []byte:
						all = append(all, bytes.Clone(v))
					case string:
						all = append(all, []byte(v))
					}
				}
			}
			if err := rows.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if o.URL != "" {
		return all
	}
	const page = 4096
	c := adiantum.New(o.Key.Reveal())
	for _, end := range []string{"", "-wal"} {
		b, err := os.ReadFile(filepath.Join(o.Dir, o.File+end))
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at+page <= len(b); at += page {
			var tweak [8]byte
			binary.LittleEndian.PutUint64(tweak[:], uint64(at))
			c.Decrypt(b[at:at+page], tweak[:])
		}
		all = append(all, b)
		for at := range b {
			// Format and key version of a sealed value.
			if bytes.HasPrefix(b[at:], []byte{1, 0, 0, 0}) && len(b)-at > seal.Overhead {
				all = append(all, b[at:min(at+1024, len(b))])
			}
		}
	}
	return all
}

// allKeys returns keys, and every key that one of them leads to: what 32 bytes decrypt to may be one.
func allKeys(blobs, keys [][]byte) [][]byte {
	seen := make(map[string]bool)
	var all [][]byte
	add := func(key []byte) {
		if len(key) == seal.KeySize && !seen[string(key)] {
			seen[string(key)] = true
			all = append(all, key)
		}
	}
	for _, key := range keys {
		add(key)
	}
	kek := keys[0]
	for _, b := range blobs {
		if len(b) >= seal.KeySize+seal.Overhead && b[0] == 1 {
			add(decrypt(kek, b[:seal.KeySize+seal.Overhead]))
		}
	}
	return all
}

// chunks returns the first chunk of each content of a blob, which the sweep has not deleted yet.
func chunks(t *testing.T, d *db.DB) map[string][]byte {
	t.Helper()
	all := make(map[string][]byte)
	err := d.View(t.Context(), func(tx *db.Tx) error {
		rows, err := tx.Query(t.Context(), `SELECT content_id, sealed FROM blob_chunk WHERE n = 0`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var content string
			var sealed []byte
			if err := rows.Scan(&content, &sealed); err != nil {
				return err
			}
			all[content] = bytes.Clone(sealed)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("there are no chunks")
	}
	return all
}

// opened returns what opens of the chunks of blobs, when every key may lead to the key of any content.
// Here the tag is asked, as everything that goes into it is known.
func opened(keys, blobs [][]byte, chunks map[string][]byte) (all [][]byte) {
	for _, b := range blobs {
		if len(b) > 200 {
			continue // the head of a blob is short, and pages are looked at value by value as well
		}
		for _, key := range keys {
			fileKey := decrypt(key, b)
			if len(fileKey) < stream.KeySize {
				break
			}
			for content, chunk := range chunks {
				r, err := stream.NewReader(fileKey[:stream.KeySize], content, stream.Split(chunk))
				if err != nil {
					panic(err)
				}
				if plain, err := io.ReadAll(r); err == nil {
					all = append(all, plain)
				}
			}
		}
	}
	return all
}

// decrypt returns what the key makes of a sealed value, whatever it was bound to: without asking GCM's
// tag, for which one would have to know the place.
func decrypt(key, sealed []byte) []byte {
	if len(sealed) < seal.Overhead || sealed[0] != 1 {
		return nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(fmt.Sprint(err))
	}
	counter := append(bytes.Clone(sealed[5:17]), 0, 0, 0, 2)
	plain := make([]byte, len(sealed)-seal.Overhead)
	cipher.NewCTR(block, counter).XORKeyStream(plain, sealed[17:len(sealed)-16])
	return plain
}
