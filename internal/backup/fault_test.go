package backup

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

const (
	childDir  = "STRONGROOM_BACKUP_TEST_CHILD_DIR"
	childKey  = "STRONGROOM_BACKUP_TEST_CHILD_KEY"
	childBase = "STRONGROOM_BACKUP_TEST_CHILD_BASE"
)

// TestMain is also the process that takes a snapshot until it is killed.
func TestMain(m *testing.M) {
	if os.Getenv(childDir) == "" {
		os.Exit(m.Run())
	}
	key, err := hex.DecodeString(os.Getenv(childKey))
	if err == nil {
		err = takeOne(context.Background(), os.Getenv(childDir), os.Getenv(childBase), key, func(b *Backup) error {
			_, err := b.Run(context.Background(), operator)
			return err
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// takeOne opens the database and its backup, as a server that starts does, and hands the backup to do.
func takeOne(ctx context.Context, dir, base string, key []byte, do func(b *Backup) error) (err error) {
	d, err := db.Open(ctx, db.Options{Dir: dir, File: "strongroom-1.db", Key: secret.New(bytes.Clone(key)), Environment: "dev", Create: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	root, err := keyring.OpenRoot(ctx, keyring.RootConfig{URL: "base64key://" + base64.URLEncoding.EncodeToString(key)})
	if err != nil {
		return err
	}
	defer root.Close()
	keys, err := keyring.Open(ctx, actor.OfSystem("test"), keyring.Options{
		DB: d, Root: root, Create: true,
		Record: func(context.Context, *db.Tx, actor.Actor, customer.ID, string, string) error { return nil },
	})
	if err != nil {
		return err
	}
	o := Options{DB: d, Keys: keys, Trail: audit.New(d, keys, audit.Options{}), Folder: filepath.Join(base, "memory"), Segment: 2048, Media: 1, Grace: 1}
	for _, part := range []Part{Data, Keys} {
		r, err := OpenRepository(ctx, RepositoryOptions{Name: string(part), Part: part, Medium: "disk", URL: "file://" + filepath.Join(base, string(part))})
		if err != nil {
			return err
		}
		defer r.Close()
		o.Repositories = append(o.Repositories, r)
	}
	b, err := New(o)
	if err != nil {
		return err
	}
	return do(b)
}

// A process that takes a snapshot is killed, again and again. The next run completes, what it stored
// restores, and what the dead left behind is swept.
func TestKillDuringRun(t *testing.T) {
	dir, base, key := t.TempDir(), t.TempDir(), bytes.Repeat([]byte{9}, 32)
	err := takeOne(t.Context(), dir, base, key, func(b *Backup) error {
		(&house{db: b.o.DB}).fill(t, 0, 3000, strings.Repeat("body", 25))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	objects := filepath.Join(base, string(Data), "objects")
	count := func() int {
		found, err := filepath.Glob(filepath.Join(objects, "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	killed := 0
	for _, after := range []int{1, 20, 45} { // objects more than there were
		was := count()
		command := exec.Command(os.Args[0])
		command.Env = append(os.Environ(), childDir+"="+dir, childKey+"="+hex.EncodeToString(key), childBase+"="+base)
		var said bytes.Buffer
		command.Stderr = &said
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		over := make(chan error, 1)
		go func() { over <- command.Wait() }()
		for running := true; running; {
			select {
			case err := <-over:
				if err != nil {
					t.Fatalf("%v: %s", err, said.String())
				}
				running = false
			default:
				if count() >= was+after {
					_ = command.Process.Kill()
					if <-over != nil {
						killed++
					}
					running = false
				}
			}
		}
	}
	if killed == 0 {
		t.Error("nothing was killed in time")
	}
	err = takeOne(t.Context(), dir, base, key, func(b *Backup) error {
		s, err := b.Run(t.Context(), operator)
		if err != nil {
			return err
		}
		if _, err := b.Verify(t.Context(), operator, s.ID, true, nil); err != nil {
			return err
		}
		p, err := b.Prune(t.Context(), operator)
		if err != nil || len(p.Skipped) > 0 {
			return fmt.Errorf("%+v, %w", p, err)
		}
		sources, err := b.sources(t.Context(), s.ID)
		if err != nil {
			return err
		}
		needed := make(map[string]bool)
		ids, _, err := b.manifests(t.Context(), sources[0].repositories)
		if err != nil {
			return err
		}
		for _, id := range ids {
			m, err := readManifest(t.Context(), sources[0].key, sources[0].repositories, id, nil)
			if err != nil {
				return err
			}
			for name := range m.objects() {
				needed[name] = true
			}
		}
		if n := count(); n != len(needed) {
			t.Errorf("%d objects are left, and %d are needed; swept %d", n, len(needed), p.Objects)
		}
		return restore(t.Context(), dbtest.SQLite(t), sources, nil)
	})
	if err != nil {
		t.Error(err)
	}
}

// A snapshot that is taken while others write is one moment of the database: what two tables have in common
// they have in common in the copy.
func TestSnapshotUnderLoadIsOneMoment(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.fill(t, 0, 1000, strings.Repeat("body", 20))
		ctx, stop := context.WithCancel(t.Context())
		var load sync.WaitGroup
		var begun sync.WaitGroup
		for g := range 4 {
			begun.Add(1)
			load.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					key := fmt.Sprintf("%d-%06d", g, i)
					err := d.Update(ctx, func(tx *db.Tx) error {
						if _, err := tx.Exec(ctx, `INSERT INTO backup_approval (deed, approver, approved_at) VALUES ($1, $2, $3)`, key, "test", i); err != nil {
							return err
						}
						_, err := tx.Exec(ctx, `INSERT INTO finding (kind, subject, detail, opened_at, seen_at, times) VALUES ($1, $2, $3, $4, $4, 1)`, "test.pair", key, "", i)
						return err
					})
					if err != nil && ctx.Err() == nil {
						t.Errorf("write: %v", err)
						i++
					}
					if i == 3 {
						begun.Done()
					}
				}
			})
		}
		begun.Wait()
		var last Snapshot
		for range 3 {
			s, err := h.backup.Run(t.Context(), operator)
			if err != nil {
				t.Error(err)
			}
			last = s
		}
		stop()
		load.Wait()
		into := dbtest.SQLite(t)
		if err := restore(t.Context(), into, h.sources(t, last.ID), nil); err != nil {
			t.Fatal(err)
		}
		into.Create = false
		copied, err := db.Open(t.Context(), into)
		if err != nil {
			t.Fatal(err)
		}
		defer copied.Close()
		err = copied.View(t.Context(), func(tx *db.Tx) error {
			var pairs, left, right int
			err := tx.QueryRow(t.Context(), `
				SELECT (SELECT COUNT(*) FROM finding f JOIN backup_approval a ON a.deed = f.subject WHERE f.kind = $1),
				       (SELECT COUNT(*) FROM finding WHERE kind = $1), (SELECT COUNT(*) FROM backup_approval)`, "test.pair").Scan(&pairs, &left, &right)
			if err == nil && (pairs == 0 || pairs != left || pairs != right) {
				t.Errorf("%d pairs, of %d and %d rows", pairs, left, right)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// otherSigner signs in the installation's name with a key of its own.
type otherSigner struct{ note.Signer }

// A manifest that somebody made who holds the repository's key, but not the installation's, is refused; so
// is one under another's name, and one that was altered.
func TestForgedManifest(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.fill(t, 0, 100, "body")
	s, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	source := h.sources(t, s.ID)[0]
	private, _, err := note.GenerateKey(nil, h.keys.EvidenceSigner().Name())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := source.repositories[0].get(t.Context(), manifestPrefix+s.ID)
	if err != nil {
		t.Fatal(err)
	}
	m := *source.manifest
	forged, err := m.seal(source.key, otherSigner{signer})
	if err != nil {
		t.Fatal(err)
	}
	const later = "snap_29990101t000000_aaaaaa"
	altered := bytes.Clone(whole)
	altered[len(altered)/2] ^= 1
	for name, row := range map[string]struct {
		id     string
		stored []byte
	}{
		"signed by another": {s.ID, forged}, "under another name": {later, whole}, "altered": {s.ID, altered},
		"cut": {s.ID, whole[:len(whole)/2]}, "empty": {s.ID, nil},
	} {
		if _, err := openManifest(source.key, row.id, row.stored, h.keys.EvidenceVerifiers()); !errors.Is(err, ErrObject) {
			t.Errorf("%s: %v", name, err)
		}
		for _, r := range source.repositories {
			if err := r.put(t.Context(), manifestPrefix+row.id, row.stored); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.backup.sources(t.Context(), row.id); err == nil {
			t.Errorf("%s: the snapshot opens", name)
		}
		for _, r := range source.repositories {
			if err := errors.Join(r.remove(t.Context(), manifestPrefix+row.id), r.put(t.Context(), manifestPrefix+s.ID, whole)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// One forged copy is found, and replaced.
	if err := source.repositories[0].put(t.Context(), manifestPrefix+s.ID, forged); err != nil {
		t.Fatal(err)
	}
	v, err := h.backup.Verify(t.Context(), operator, s.ID, false, nil)
	if err != nil || len(v.Faults) != 1 || !v.Faults[0].Mended {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := readManifest(t.Context(), source.key, source.repositories[:1], s.ID, h.keys.EvidenceVerifiers()); err != nil {
		t.Error(err)
	}
}

func TestWrongRecoveryKey(t *testing.T) {
	right, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	master := newMaster()
	sealed, err := sealToRecovery(master, []age.Recipient{right.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := openWithRecovery(t.Context(), sealed, []age.Identity{right}); err != nil || !bytes.Equal(opened, master) {
		t.Errorf("the right key: %v", err)
	}
	if _, err := openWithRecovery(t.Context(), sealed, []age.Identity{wrong}); err == nil || !strings.Contains(err.Error(), "does not open") {
		t.Errorf("a wrong key: %v", err)
	}
	// The master key of another repository opens nothing here.
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	s, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	k, err := newVaultKey(master, scope(h.db), Data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readManifest(t.Context(), k, h.sources(t, s.ID)[0].repositories, s.ID, nil); !errors.Is(err, ErrObject) {
		t.Errorf("another master key: %v", err)
	}
}

// When every copy of an object is gone, the next run writes what it held anew, from the database.
func TestLossEverywhereIsMendedFromTheDatabase(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.fill(t, 0, 300, "body")
	s, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	source := h.sources(t, s.ID)[0]
	n := 0
	for name, size := range source.manifest.objects() {
		for _, r := range source.repositories {
			var err error
			if n%2 == 0 {
				err = r.remove(t.Context(), objectKey(name))
			} else { // as long as it was, and something else
				err = r.put(t.Context(), objectKey(name), make([]byte, size))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		n++
	}
	if _, err := h.backup.Verify(t.Context(), operator, s.ID, true, nil); !problem.Is(err, "backup-damaged") {
		t.Errorf("verify: %v", err)
	}
	if s, err = h.backup.Run(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	if v, err := h.backup.Verify(t.Context(), operator, s.ID, true, nil); err != nil || len(v.Faults) > 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, s.ID), nil); err != nil {
		t.Error(err)
	}
}

// A repository that lost its header, and holds snapshots, gets no new key over them.
func TestLostHeaderIsNotReplaced(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	b := h.with(t, nil, h.folder("near", Data), h.folder("keys", Keys))
	if _, err := b.Run(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	if err := b.o.Repositories[0].remove(t.Context(), headerKey); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Run(t.Context(), operator); !problem.Is(err, "backup-failed") || !strings.Contains(fmt.Sprint(errors.Unwrap(err)), "put it back") {
		t.Errorf("%v", err)
	}
}

// An erased row of the keys is in no object that the newest snapshot needs.
func TestErasedKeysAreInNoNeededObject(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d)
	insert := func(i int, wrapped string) error {
		return d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `INSERT INTO service_key (name, version, kek_version, algorithm, state, wrapped, made_at) VALUES ($1, $2, 1, 'test', 'test', $3, 1)`, "test", i, []byte(wrapped))
			return err
		})
	}
	for i := range 100 {
		if err := insert(i+1, fmt.Sprintf("wrapped key of number %03d", i)); err != nil {
			t.Fatal(err)
		}
	}
	holding := func(s Snapshot) (n int) {
		keys := h.sources(t, s.ID)[1]
		for name := range keys.manifest.objects() {
			plaintext, err := keys.open(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			n += bytes.Count(plaintext, []byte("wrapped key of number 042"))
		}
		return n
	}
	s, err := h.backup.Run(t.Context(), operator)
	if err != nil || holding(s) != 1 {
		t.Fatalf("%d, %v", holding(s), err)
	}
	err = d.Update(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), `DELETE FROM service_key WHERE name = $1 AND version = $2`, "test", 43)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = h.backup.Run(t.Context(), operator); err != nil || holding(s) != 0 {
		t.Errorf("the erased key is in %d objects, %v", holding(s), err)
	}
}

func TestProbeFindsPlaintext(t *testing.T) {
	k, err := newVaultKey(bytes.Repeat([]byte{7}, masterSize), "dev/ins_test", Data)
	if err != nil {
		t.Fatal(err)
	}
	plaintext := []byte(strings.Repeat("Ada Lovelace, 10 December 1815; ", 1000))
	for i := range plaintext {
		if i%37 == 0 {
			plaintext[i] = byte(i * 7919 >> 3)
		}
	}
	stored, err := k.seal("name", plaintext)
	if err != nil {
		t.Fatal(err)
	}
	if err := probe(plaintext, stored); err != nil {
		t.Errorf("ciphertext: %v", err)
	}
	head := stored[:sealedKeySize]
	for name, bad := range map[string][]byte{
		"plaintext":       append(bytes.Clone(head), plaintext...),
		"a piece of it":   append(bytes.Clone(stored), plaintext[:200]...),
		"compressed only": append(bytes.Clone(head), 0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3),
		"masked":          bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, 8}, 1000),
	} {
		if err := probe(plaintext, bad); !errors.Is(err, errPlaintext) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
