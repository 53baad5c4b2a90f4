package local

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"strongroom/client"
)

var passphrase = []byte("correct horse battery staple")

func open(t *testing.T, dir string) (*KeyFile, *Store) {
	t.Helper()
	keys, err := OpenKeyFile(KeyFileOptions{Path: filepath.Join(dir, "device.key"), Passphrase: passphrase})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, keys)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return keys, s
}

// everything returns the bytes of all files in a folder.
func everything(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		all[filepath.Base(path)], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestNothingIsOnTheDiskInTheClear(t *testing.T) {
	dir := t.TempDir()
	keys, s := open(t, dir)
	secrets := []string{"GB82WEST12345698765432", "Lovelace", "srt_a-refresh-token-of-this-session", string(passphrase)}
	for i := range 50 {
		if err := s.Put("accounts", fmt.Sprint("key-of-account-", i), []byte(strings.Repeat(secrets[0], 20))); err != nil {
			t.Fatal(err)
		}
	}
	if err := (tokens{s}).Save(t.Context(), client.Tokens{Access: client.NewSecret("sat_x"), Refresh: client.NewSecret(secrets[2])}); err != nil {
		t.Fatal(err)
	}
	if err := s.Queue(nil).Put(NewKey(), "profile", "main", map[string]string{"family_name": secrets[1]}, New()); err != nil {
		t.Fatal(err)
	}
	scalar, err := keys.private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	// The log is still there, as after a crash: nothing has closed the database.
	files := everything(t, dir)
	if len(files["local.db-wal"]) < 4096 || len(files["device.key"]) == 0 || len(files["local.key"]) == 0 {
		t.Fatalf("these are not the files: %d bytes of log", len(files["local.db-wal"]))
	}
	for name, b := range files {
		for _, secret := range append(secrets, string(scalar), "key-of-account-", "SQLite format 3", "CREATE TABLE", "accounts") {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds %q in the clear", name, secret)
			}
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
}

func TestItemsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	keys, s := open(t, dir)
	if _, err := s.Get("b", "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an item that is not there: %v", err)
	}
	for _, k := range []string{"k", "a", "k"} {
		if err := s.Put("b", k, []byte("value of "+k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put("other", "empty", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, keys); !errors.Is(err, ErrInUse) {
		t.Errorf("a second opening: %v", err)
	}
	public := keys.Device().Public()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("b", "k", nil); err == nil {
		t.Error("a closed store took a value")
	}
	keys, s = open(t, dir)
	if !keys.Device().Public().Equal(public) {
		t.Error("the device has another key now")
	}
	if v, err := s.Get("b", "k"); err != nil || string(v) != "value of k" {
		t.Errorf("%q %v", v, err)
	}
	if all, err := s.Keys("b"); err != nil || !slices.Equal(all, []string{"a", "k"}) {
		t.Errorf("%v %v", all, err)
	}
	if err := errors.Join(s.Delete("b", "k"), s.Delete("b", "k")); err != nil {
		t.Error(err)
	}
	if all, _ := s.Keys("b"); !slices.Equal(all, []string{"a"}) {
		t.Errorf("%v", all)
	}
}

func TestTheDeviceKeySigns(t *testing.T) {
	keys, _ := open(t, t.TempDir())
	message := []byte("a proof")
	signature, err := keys.Device().SignES256(message)
	if err != nil || len(signature) != 64 {
		t.Fatal(len(signature), err)
	}
	digest := sha256.Sum256(message)
	if !ecdsa.Verify(keys.Device().Public(), digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		t.Error("the signature does not verify")
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", keys, keys, keys), fmt.Sprintf("%v %+v %#v", keys.Device(), keys.Device(), keys.Device())} {
		if strings.ReplaceAll(text, "[redacted]", "") != "  " {
			t.Errorf("a key was printed: %s", text)
		}
	}
}

func TestWrongPassphrasesWipe(t *testing.T) {
	dir := t.TempDir()
	_, s := open(t, dir)
	if err := s.Put("b", "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o := KeyFileOptions{Path: filepath.Join(dir, "device.key"), Passphrase: []byte("wrong"), Failures: 2, Wiped: func() error { return Remove(dir) }}
	try := func(passphrase string, want error) {
		t.Helper()
		o.Passphrase = []byte(passphrase)
		if _, err := OpenKeyFile(o); !errors.Is(err, want) {
			t.Fatalf("%q: %v, want %v", passphrase, err, want)
		}
	}
	// A success between them starts the count again.
	try("wrong", ErrWrongPassphrase)
	try(string(passphrase), nil)
	try("wrong", ErrWrongPassphrase)
	try("wrong", ErrWiped)
	if files := everything(t, dir); len(files["local.db"])+len(files["local.key"])+len(files["device.key"]) != 0 {
		t.Error("something is left")
	}
	// The right passphrase opens nothing now: it makes another device.
	_, s = open(t, dir)
	if _, err := s.Get("b", "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestATornCountIsTheLastTry(t *testing.T) {
	dir := t.TempDir()
	_, s := open(t, dir)
	if err := errors.Join(s.Close(), os.WriteFile(filepath.Join(dir, "device.key.tries"), []byte("-7"), 0o600)); err != nil {
		t.Fatal(err)
	}
	o := KeyFileOptions{Path: filepath.Join(dir, "device.key"), Passphrase: passphrase}
	if _, err := OpenKeyFile(o); err != nil {
		t.Errorf("the right passphrase: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "device.key.tries"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Passphrase = []byte("wrong")
	if _, err := OpenKeyFile(o); !errors.Is(err, ErrWiped) {
		t.Errorf("the wrong one: %v", err)
	}
}

func TestWipe(t *testing.T) {
	dir := t.TempDir()
	_, s := open(t, dir)
	if err := s.Put("b", "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Wipe(), s.Wipe()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("b", "k"); !errors.Is(err, ErrWiped) {
		t.Errorf("after the wipe: %v", err)
	}
	if err := (tokens{s}).Save(t.Context(), client.Tokens{}); err != nil {
		t.Errorf("ending the session after the wipe: %v", err)
	}
	for name, b := range everything(t, dir) {
		if len(b) > 0 {
			t.Errorf("%s is left", name)
		}
	}
}

// TestAForeignKeyTouchesNothing: SQLite, given a wrong key after a crash, would delete the log.
func TestAForeignKeyTouchesNothing(t *testing.T) {
	dir := t.TempDir()
	_, s := open(t, dir)
	if err := s.Put("b", "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir() // as a crash would leave it
	for name, b := range everything(t, dir) {
		if err := os.WriteFile(filepath.Join(copied, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := everything(t, copied)
	other, err := OpenKeyFile(KeyFileOptions{Path: filepath.Join(t.TempDir(), "device.key"), Passphrase: passphrase})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(copied, other); err == nil {
		t.Fatal("another device's key opened the database")
	}
	for name, b := range everything(t, copied) {
		if !bytes.Equal(b, before[name]) {
			t.Errorf("%s was changed", name)
		}
	}
	_, recovered := open(t, copied)
	if v, err := recovered.Get("b", "k"); err != nil || string(v) != "v" {
		t.Errorf("after the crash: %q %v", v, err)
	}
}

func TestQueueKeepsOrderAndNames(t *testing.T) {
	_, s := open(t, t.TempDir())
	q := s.Queue(nil)
	once := NewKey()
	for range 2 {
		if err := q.Put(once, "profile", "main", map[string]string{"given_name": "Ada"}, New()); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Put(NewKey(), "profile", "main", map[string]string{"given_name": "Augusta"}, New()); err != nil {
		t.Fatal(err)
	}
	if err := q.Delete(NewKey(), "bank_account", "x", Version(`"3"`)); err != nil {
		t.Fatal(err)
	}
	all, err := q.List()
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	if all[0].condition != "new" || all[1].condition != "follows" || all[2].condition != "etag" || all[2].etag != `"3"` || !all[2].Delete {
		t.Errorf("%+v", all)
	}
	for _, bad := range []error{q.Put("", "p", "m", nil, New()), q.Put(NewKey(), "p", "m", nil, Base{}), q.Delete(NewKey(), "p", "m", New())} {
		if bad == nil {
			t.Error("an operation without name or base was taken")
		}
	}
	if err := q.Drop(all[0].ID); err != nil {
		t.Fatal(err)
	}
	if all, err = q.List(); err != nil || len(all) != 1 || all[0].Collection != "bank_account" {
		t.Errorf("%v %v", all, err)
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"kdf":"argon2id","time":3,"memory_kib":65536,"threads":4,"salt":"AAAAAAAAAAAAAAAAAAAAAA==","nonce":"AAAAAAAAAAAAAAAA","sealed":""}`))
	f.Add([]byte(`{"version":1,"kdf":"argon2id","time":4294967295,"memory_kib":4294967295,"threads":255}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := parseKeyFile(text)
		if err == nil && (k.Memory > 1<<20 || k.Memory < argonMemory || k.Time < argonTime || len(k.Sealed) != 80) {
			t.Errorf("%+v was taken", k)
		}
	})
}
