package keyring

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
	_ "gocloud.dev/secrets/localsecrets"

	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// cheapCost is the least that is accepted: tests open many roots.
var cheapCost = argonCost{MemoryKiB: 19 << 10, Time: 2, Threads: 1}

var goodPassphrase = secret.FromString("correct horse battery staple")

// localRootFile returns the path of a new root key file.
func localRootFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.key")
	if err := createLocalRoot(path, goodPassphrase, cheapCost); err != nil {
		t.Fatal(err)
	}
	return path
}

func testRoot(t testing.TB) Root {
	t.Helper()
	root, err := OpenRoot(t.Context(), RootConfig{Path: localRootFile(t), Passphrase: goodPassphrase})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

const testKeyURL = "base64key://c21HYnhRV0VwcVhuQ2RmVHhMSmZWZ3RpUjVQbnZ3aVY="

func remoteTestRoot(t testing.TB) Root {
	t.Helper()
	root, err := OpenRoot(t.Context(), RootConfig{URL: testKeyURL})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestRootsWrapForOneContext(t *testing.T) {
	ctx := t.Context()
	for name, root := range map[string]Root{"local": testRoot(t), "remote": remoteTestRoot(t)} {
		t.Run(name, func(t *testing.T) {
			plaintext := []byte("thirty-two bytes of key material")
			wrapped, err := root.Wrap(ctx, plaintext, []byte("live"))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(wrapped, plaintext) || string(plaintext) != "thirty-two bytes of key material" {
				t.Fatal("the plaintext shows, or was cleared")
			}
			got, err := root.Unwrap(ctx, wrapped, []byte("live"))
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Fatalf("%q, %v", got, err)
			}
			if got, err := root.Unwrap(ctx, wrapped, []byte("uat")); !errors.Is(err, ErrContext) || got != nil {
				t.Errorf("another context: %q, %v", got, err)
			}
			wrapped[len(wrapped)-1] ^= 1
			if got, err := root.Unwrap(ctx, wrapped, []byte("live")); err == nil || got != nil {
				t.Errorf("altered: %q, %v", got, err)
			}
			if _, err := root.Unwrap(ctx, nil, []byte("live")); err == nil {
				t.Error("nothing was unwrapped")
			}
			if root.ID() == "" || strings.Contains(root.ID(), "c21HY") {
				t.Errorf("id %q", root.ID())
			}
			if err := root.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLocalRootFile(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "root.key")
	if err := CreateLocalRoot(path, goodPassphrase); err != nil { // with the standard cost
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	before, _ := os.ReadFile(path)
	if err := CreateLocalRoot(path, goodPassphrase); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the file was replaced")
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}

	a, err := OpenRoot(ctx, RootConfig{Path: path, Passphrase: goodPassphrase})
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenRoot(ctx, RootConfig{URL: "file://" + path, Passphrase: goodPassphrase})
	if err != nil || a.ID() != b.ID() {
		t.Fatalf("%v, %v", b, err)
	}
	wrapped, _ := a.Wrap(ctx, []byte("key"), nil)
	if got, err := b.Unwrap(ctx, wrapped, nil); err != nil || string(got) != "key" {
		t.Errorf("opened again: %q, %v", got, err)
	}
	if got := fmt.Sprintf("%v %+v %#v", a, a, a); strings.Contains(got, "aead") {
		t.Errorf("prints %s", got)
	}
}

// TestRootRefusals: every refusal is typed and names a remedy, and none tells the passphrase.
func TestRootRefusals(t *testing.T) {
	path := localRootFile(t)
	damage := func(t *testing.T, change func(m map[string]any)) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, _ = json.Marshal(m)
		p := filepath.Join(t.TempDir(), "root.key")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	cost := func(name string, v any) func(m map[string]any) {
		return func(m map[string]any) { m["cost"].(map[string]any)[name] = v }
	}
	loose := damage(t, func(map[string]any) {})
	if err := os.Chmod(loose, 0o640); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(t.TempDir(), "root.key")
	if err := os.WriteFile(big, bytes.Repeat([]byte(" "), maxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name       string
		path       string
		passphrase string
		want       error
		remedy     string
	}{
		{"wrong passphrase", path, "incorrect horse battery staple", ErrPassphrase, "check the passphrase"},
		{"no passphrase", path, "", ErrPassphrase, "give the one"},
		{"absent", path + "x", "incorrect horse", ErrNoRoot, "strongroom init"},
		{"absent is also fs.ErrNotExist", path + "x", "incorrect horse", fs.ErrNotExist, "strongroom init"},
		{"no path", "", "incorrect horse", ErrNoRoot, "name its file"},
		{"a folder", filepath.Dir(path), "incorrect horse", ErrDamaged, "regular file"},
		{"loose permissions", loose, "correct horse battery staple", ErrPermissions, "chmod 600"},
		{"too large", big, "correct horse battery staple", ErrDamaged, "larger"},
		{"unknown member", damage(t, func(m map[string]any) { m["x"] = 1 }), "correct horse battery staple", ErrDamaged, "bring it back"},
		{"other format", damage(t, func(m map[string]any) { m["format"] = "strongroom-root-key/2" }), "correct horse battery staple", ErrDamaged, "bring it back"},
		{"other algorithm", damage(t, func(m map[string]any) { m["algorithm"] = "none" }), "correct horse battery staple", ErrDamaged, "bring it back"},
		{"weak memory", damage(t, cost("memory_kib", 1024)), "correct horse battery staple", ErrDamaged, "cost"},
		{"huge memory", damage(t, cost("memory_kib", 1<<30)), "correct horse battery staple", ErrDamaged, "cost"},
		{"huge time", damage(t, cost("time", 1<<20)), "correct horse battery staple", ErrDamaged, "cost"},
		{"no threads", damage(t, cost("threads", 0)), "correct horse battery staple", ErrDamaged, "cost"},
		{"altered time", damage(t, cost("time", 3)), "correct horse battery staple", ErrPassphrase, "altered"},
		{"other id", damage(t, func(m map[string]any) { m["id"] = "root_01jd8z5w6q9m3k2v7x4c1b0n8h" }), "correct horse battery staple", ErrPassphrase, "altered"},
		{"bad id", damage(t, func(m map[string]any) { m["id"] = "x" }), "correct horse battery staple", ErrDamaged, "id"},
		{"short salt", damage(t, func(m map[string]any) { m["salt"] = "AAAA" }), "correct horse battery staple", ErrDamaged, "salt"},
		{"short key", damage(t, func(m map[string]any) { m["sealed"] = "AAAA" }), "correct horse battery staple", ErrDamaged, "sealed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			root, err := OpenRoot(t.Context(), RootConfig{Path: row.path, Passphrase: secret.FromString(row.passphrase)})
			if root != nil || !errors.Is(err, row.want) || !strings.Contains(err.Error(), row.remedy) {
				t.Fatalf("%v; want %v with %q", err, row.want, row.remedy)
			}
			if strings.Contains(err.Error(), "horse") {
				t.Errorf("the passphrase shows: %v", err)
			}
		})
	}
	if err := CreateLocalRoot(filepath.Join(t.TempDir(), "root.key"), secret.FromString("short")); err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("a short passphrase: %v", err)
	}
	if err := CreateLocalRoot(filepath.Join(t.TempDir(), "absent", "root.key"), goodPassphrase); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent folder: %v", err)
	}
}

func TestRootURLsTellNoSecrets(t *testing.T) {
	for _, raw := range []string{
		"base64key://c2hvcnQtYnV0LXNlY3JldA==",
		"base64key://not*base64*but*secret",
		"base64key://c21HYnhRV0VwcVhuQ2RmVHhMSmZWZ3RpUjVQbnZ3aVY=?token=s3cret",
		"unknownkms://user:s3cret@host/key",
		"%zz-s3cret",
		"file://s3cret/root.key",
	} {
		root, err := OpenRoot(t.Context(), RootConfig{URL: raw})
		if err == nil || root != nil {
			t.Errorf("%s was taken", raw)
			continue
		}
		for _, never := range []string{"s3cret", "c2hvcnQ", "not*base64", "c21HYnh"} {
			if strings.Contains(err.Error(), never) {
				t.Errorf("%s shows in %v", never, err)
			}
		}
	}
	u, err := url.Parse("hashivault://user:pass@vault.example/mykey?token=s3cret")
	if err != nil {
		t.Fatal(err)
	}
	if got := remoteID(u.String(), u); got != "hashivault://vault.example/mykey" {
		t.Errorf("id %q", got)
	}
	if got := scrubber(u.String(), u).Replace("PUT " + u.String() + " user pass token=s3cret s3cret"); strings.Contains(got, "s3cret") || strings.Contains(got, "pass") {
		t.Errorf("scrubbed %q", got)
	}
}

// keeper is a key management service that answers as it is told.
type keeper struct {
	code gcerrors.ErrorCode
	err  error
	hang bool
}

func (k *keeper) answer(ctx context.Context) ([]byte, error) {
	if k.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, k.err
}

func (k *keeper) Encrypt(ctx context.Context, _ []byte) ([]byte, error) { return k.answer(ctx) }
func (k *keeper) Decrypt(ctx context.Context, _ []byte) ([]byte, error) { return k.answer(ctx) }
func (k *keeper) Close() error                                          { return nil }
func (k *keeper) ErrorAs(error, any) bool                               { return false }
func (k *keeper) ErrorCode(error) gcerrors.ErrorCode                    { return k.code }

func TestRemoteFailures(t *testing.T) {
	u, _ := url.Parse("awskms://user:s3cret@alias/key?token=t0ken")
	boom := errors.New("PUT awskms://user:s3cret@alias/key?token=t0ken failed: s3cret")
	for _, row := range []struct {
		name   string
		keeper keeper
		want   error // nil: the problem "keys-unavailable"
	}{
		{"hangs", keeper{hang: true}, nil},
		{"deadline", keeper{code: gcerrors.DeadlineExceeded, err: boom}, nil},
		{"broken", keeper{code: gcerrors.Internal, err: boom}, nil},
		{"throttled", keeper{code: gcerrors.ResourceExhausted, err: boom}, nil},
		{"unknown", keeper{code: gcerrors.Unknown, err: boom}, nil},
		{"refused", keeper{code: gcerrors.InvalidArgument, err: boom}, ErrUnwrap},
		{"absent", keeper{code: gcerrors.NotFound, err: boom}, ErrNoRoot},
		{"disabled", keeper{code: gcerrors.FailedPrecondition, err: boom}, ErrNoRoot},
		{"forbidden", keeper{code: gcerrors.PermissionDenied, err: boom}, ErrNoRoot},
	} {
		t.Run(row.name, func(t *testing.T) {
			root := &remoteRoot{
				id: remoteID(u.String(), u), keeper: secrets.NewKeeper(&row.keeper),
				scrub: scrubber(u.String(), u), timeout: 20 * time.Millisecond,
			}
			_, wrapErr := root.Wrap(t.Context(), []byte("k"), nil)
			_, unwrapErr := root.Unwrap(t.Context(), []byte("k"), nil)
			for _, err := range []error{wrapErr, unwrapErr} {
				p := problem.Of(err)
				switch {
				case row.want != nil && (!errors.Is(err, row.want) || p != nil):
					t.Errorf("%v; want %v", err, row.want)
				case row.want == nil && (p == nil || p.Slug() != "keys-unavailable" || p.GetHeaders().Get("Retry-After") == ""):
					t.Errorf("%v; want keys-unavailable with Retry-After", err)
				}
				if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "t0ken") {
					t.Errorf("a secret shows: %v", err)
				}
				if p != nil && strings.Contains(p.Detail(), "awskms") {
					t.Errorf("the caller is told the address: %s", p.Detail())
				}
			}
		})
	}
}

func TestFileKey(t *testing.T) {
	ctx := t.Context()
	root := testRoot(t)
	path := filepath.Join(t.TempDir(), ManifestName)
	if _, err := OpenFileKey(ctx, root, path, "live"); !errors.Is(err, ErrNoManifest) || !strings.Contains(err.Error(), "strongroom init") {
		t.Fatalf("absent: %v", err)
	}
	made, err := CreateFileKey(ctx, root, path, "live", "strongroom-1.db")
	if err != nil {
		t.Fatal(err)
	}
	if made.Key.Len() != 32 || made.File != "strongroom-1.db" || made.RootID != root.ID() {
		t.Errorf("made %+v", made)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	raw, _ := os.ReadFile(path)
	if bytes.Contains(raw, made.Key.Reveal()) || bytes.Contains(raw, []byte(base64.StdEncoding.EncodeToString(made.Key.Reveal()))) {
		t.Error("the key stands in the manifest")
	}
	got, err := OpenFileKey(ctx, root, path, "live")
	if err != nil || !got.Key.Equal(made.Key) || got.File != made.File || got.Environment != "live" {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := CreateFileKey(ctx, root, path, "live", "strongroom-1.db"); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	if _, err := OpenFileKey(ctx, root, path, "uat"); !errors.Is(err, ErrEnvironment) || !strings.Contains(err.Error(), `set environment to "live"`) {
		t.Errorf("another environment: %v", err)
	}
	if _, err := OpenFileKey(ctx, testRoot(t), path, "live"); !errors.Is(err, ErrOtherRoot) || !strings.Contains(err.Error(), root.ID()) {
		t.Errorf("another root: %v", err)
	}
	for _, name := range []string{"", ".", "..", "../x.db", "a/b.db", "/x.db"} {
		if _, err := CreateFileKey(ctx, root, filepath.Join(t.TempDir(), "m"), "live", name); err == nil {
			t.Errorf("the file name %q was taken", name)
		}
	}

	rewrite := func(change func(m map[string]any)) string {
		var m map[string]any
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, _ := json.Marshal(m)
		p := filepath.Join(t.TempDir(), ManifestName)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, row := range []struct {
		name   string
		change func(m map[string]any)
		want   error
	}{
		{"environment altered", func(m map[string]any) { m["environment"] = "uat" }, ErrEnvironment},
		{"file altered", func(m map[string]any) { m["file"] = "other.db" }, ErrEnvironment},
		{"file outside", func(m map[string]any) { m["file"] = "../other.db" }, ErrDamaged},
		{"format", func(m map[string]any) { m["format"] = "strongroom-database/9" }, ErrDamaged},
		{"unknown member", func(m map[string]any) { m["extra"] = true }, ErrDamaged},
		{"member missing", func(m map[string]any) { delete(m, "wrapped_key") }, ErrDamaged},
		{"key altered", func(m map[string]any) { m["wrapped_key"] = "AAAA" }, ErrUnwrap},
	} {
		env := "live"
		if row.name == "environment altered" {
			env = "uat"
		}
		if got, err := OpenFileKey(ctx, root, rewrite(row.change), env); !errors.Is(err, row.want) || got.Key.Len() != 0 {
			t.Errorf("%s: %v; want %v", row.name, err, row.want)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFileKey(ctx, root, path, "live"); !errors.Is(err, ErrPermissions) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("loose permissions: %v", err)
	}
}

// TestOneOfManyCreatesTheFile: of processes that are equally fast, one wins and the file is whole.
func TestOneOfManyCreatesTheFile(t *testing.T) {
	root := testRoot(t)
	path := filepath.Join(t.TempDir(), ManifestName)
	var mu sync.Mutex
	var won []FileKey
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			key, err := CreateFileKey(context.Background(), root, path, "dev", "strongroom-1.db")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, key)
			} else if !errors.Is(err, ErrExists) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	got, err := OpenFileKey(t.Context(), root, path, "dev")
	if err != nil || len(won) != 1 || !got.Key.Equal(won[0].Key) {
		t.Fatalf("%d won; %v", len(won), err)
	}
}

func FuzzRootFile(f *testing.F) {
	good, err := encode(rootFile{
		Format: rootFormat, ID: "root_01jd8z5w6q9m3k2v7x4c1b0n8h", Algorithm: rootAlgorithm, Cost: cheapCost,
		Salt: make([]byte, saltSize), Sealed: make([]byte, 65),
	})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseRootFile(good); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"format":"strongroom-root-key/1","cost":{"memory_kib":4294967295,"time":4294967295,"threads":255}}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if file, err := parseRootFile(b); err == nil && file.Cost.check() != nil {
			t.Fatalf("accepted the cost %+v", file.Cost)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"format":"strongroom-database/1","environment":"dev","file":"strongroom-1.db","root_id":"local:x","wrapped_key":"AAAA"}`))
	f.Add([]byte(`{"file":"../../etc/passwd"}`))
	f.Add([]byte(`{} {}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err == nil && filepath.Dir(filepath.Join("/data", m.File)) != "/data" {
			t.Fatalf("accepted the file %q", m.File)
		}
	})
}
