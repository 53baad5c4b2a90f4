package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// gatewayVariable names the environment variable with the path of the S3 server that the tests run.
const gatewayVariable = "STRONGROOM_TEST_VERSITYGW"

// gateway is an S3 server with credentials of its own, and a proxy before it that can be made to fail.
type gateway struct {
	*httptest.Server
	user   string
	client *s3.Client // around the proxy

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request, next http.Handler) // nil for none
}

func newGateway(t testing.TB, user string) *gateway {
	t.Helper()
	binary := os.Getenv(gatewayVariable)
	if binary == "" {
		t.Fatalf("%s is not set: run \"make test\", which installs an S3 server for the tests", gatewayVariable)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	for _, folder := range []string{"data", "versions"} {
		if err := os.Mkdir(filepath.Join(base, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command(binary, "--quiet", "--region", "eu-central-1", "--port", address, "posix", "--versioning-dir", filepath.Join(base, "versions"), filepath.Join(base, "data"))
	command.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+user, "ROOT_SECRET_KEY=secret-of-"+user)
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- command.Wait() }()
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		select {
		case <-over:
		case <-time.After(10 * time.Second):
			_ = command.Process.Kill()
			<-over
		}
	})
	for {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
			break
		}
		select {
		case <-over:
			over <- nil
			t.Fatalf("the S3 server ended: %s", said.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	g := &gateway{user: user}
	target := &url.URL{Scheme: "http", Host: address}
	proxy := &httputil.ReverseProxy{
		// The signature covers the Host header: it stays as the client wrote it.
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		fault := g.fault
		g.mu.Unlock()
		if fault != nil {
			fault(w, r, proxy)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Server.Close)
	g.client = newS3(g.options("direct", Data, "unused"))
	return g
}

// inject has every request fail as fault does; nil mends it.
func (g *gateway) inject(fault func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fault = fault
}

func (g *gateway) options(name string, part Part, bucket string) RepositoryOptions {
	return RepositoryOptions{
		Name: name, Part: part, URL: "s3://" + bucket + "/strongroom", Medium: name, Region: "eu-central-1",
		Endpoint: g.endpoint(), AccessKey: g.user, SecretKey: secret.New([]byte("secret-of-" + g.user)), PathStyle: true,
		Timeout: 20 * time.Second,
	}
}

func (g *gateway) endpoint() string { return g.Server.URL }

// bucket makes a bucket.
func (g *gateway) bucket(t testing.TB, name string, lock bool) string {
	t.Helper()
	_, err := g.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: &lock})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// with gives the house a backup into other repositories.
func (h *house) with(t testing.TB, edit func(o *Options), repositories ...RepositoryOptions) *Backup {
	t.Helper()
	o := h.backup.o
	o.Repositories, o.Approvals = nil, nil
	for _, r := range repositories {
		opened, err := OpenRepository(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = opened.Close() })
		o.Repositories = append(o.Repositories, opened)
	}
	o.Media = 1
	if edit != nil {
		edit(&o)
	}
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	h.backup = b
	return b
}

func (h *house) folder(name string, part Part) RepositoryOptions {
	return RepositoryOptions{Name: name, Part: part, Medium: name, URL: "file://" + filepath.Join(h.base, name)}
}

// A bucket that locks keeps what it holds from everybody, and gives it back from behind a deletion and
// behind junk; the keys lie elsewhere, under credentials of their own, and can be deleted.
func TestObjectLock(t *testing.T) {
	g, other := newGateway(t, "data-user"), newGateway(t, "keys-user")
	for _, mode := range []LockMode{Governance, Compliance} {
		t.Run(string(mode), func(t *testing.T) {
			h := newHouse(t, dbtest.Open(t, db.SQLite))
			h.fill(t, 0, 300, "body")
			data := g.options("locked", Data, g.bucket(t, "data-"+string(mode), true))
			data.Lock = mode
			keys := other.options("keys", Keys, other.bucket(t, "keys-"+string(mode), true))
			now := time.Now()
			at := clock.NewManual(now.Add(-3 * time.Second))
			b := h.with(t, func(o *Options) { o.Clock = at; o.Grace = time.Nanosecond }, data, keys)
			first, err := b.Run(t.Context(), operator)
			if err != nil {
				t.Fatal(err, first.Copies)
			}
			r, keysRepository := b.o.Repositories[0], b.o.Repositories[1]
			m := h.sources(t, first.ID)[0].manifest
			var name string
			for name = range m.objects() {
				break
			}
			key := r.prefix + objectKey(name)
			head := func() *s3.HeadObjectOutput {
				t.Helper()
				out, err := g.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &r.home, Key: &key})
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			was := head()
			if string(was.ObjectLockMode) != strings.ToUpper(string(mode)) || was.ObjectLockRetainUntilDate.Before(now.AddDate(6, 11, 0)) {
				t.Errorf("the lock is %s until %v", was.ObjectLockMode, was.ObjectLockRetainUntilDate)
			}
			version := was.VersionId
			_, err = g.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &r.home, Key: &key, VersionId: version})
			if err == nil {
				t.Fatal("a locked object was deleted")
			}
			if err := r.remove(t.Context(), objectKey(name)); !errors.Is(err, errLocked) {
				t.Errorf("removing a locked object: %v", err)
			}
			_, err = g.client.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{Bucket: &r.home, Key: &key,
				Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionMode(was.ObjectLockMode), RetainUntilDate: aws.Time(now.Add(time.Hour))}})
			if err == nil {
				t.Error("a lock was made shorter")
			}

			// Whoever holds the credentials hides it behind a deletion, and then behind junk.
			if _, err = g.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &r.home, Key: &key}); err != nil {
				t.Fatal(err)
			}
			if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, first.ID), nil); err != nil {
				t.Errorf("behind a deletion: %v", err)
			}
			if _, err = g.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &r.home, Key: &key, Body: strings.NewReader("encrypted by somebody else")}); err != nil {
				t.Fatal(err)
			}
			if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, first.ID), nil); err != nil {
				t.Errorf("behind junk: %v", err)
			}
			v, err := b.Verify(t.Context(), operator, first.ID, true, nil)
			if err != nil || len(v.Faults) != 1 || !v.Faults[0].Mended || v.Faults[0].Object != name {
				t.Errorf("%+v, %v", v, err)
			}
			if stored, err := r.get(t.Context(), objectKey(name)); err != nil || int64(len(stored)) != m.objects()[name] {
				t.Errorf("it was not mended: %d bytes, %v", len(stored), err)
			}

			// What was mended is locked for a day, and prune extends that to what the retention says.
			at.Advance(time.Second)
			p, err := b.Prune(t.Context(), operator)
			if err != nil || p.Extended == 0 || len(p.Skipped) > 0 {
				t.Errorf("%+v, %v", p, err)
			}
			if until := *head().ObjectLockRetainUntilDate; until.Before(now.AddDate(6, 11, 0)) {
				t.Errorf("the lock was not extended: until %v", until)
			}

			// A second snapshot changes the keys; the old copy of them is past its time, and goes, though the
			// bucket keeps versions.
			h.fill(t, 0, 3, "another")
			at.Advance(time.Second)
			second, err := b.Run(t.Context(), operator)
			if err != nil {
				t.Fatal(err)
			}
			b.o.Retention.Keys = time.Nanosecond
			if p, err = b.Prune(t.Context(), operator); err != nil || p.Manifests == 0 {
				t.Errorf("%+v, %v", p, err)
			}
			versions := 0
			err = keysRepository.eachVersion(t.Context(), manifestPrefix+first.ID, func(string, bool) (bool, error) { versions++; return true, nil })
			if err != nil || versions != 0 {
				t.Errorf("old keys have %d versions left, %v", versions, err)
			}

			// Deleting a snapshot that is locked takes two people; in compliance mode it cannot be done.
			operators := b.o.Approvals.(*Operators)
			err = b.Delete(t.Context(), operator, first.ID, true)
			if !problem.Is(err, "backup-approval-needed") {
				t.Errorf("without approvals: %v", err)
			}
			for _, who := range []string{"cli:ada", "cli:grace"} {
				if err := operators.Approve(t.Context(), actor.OfSystem(who), "unlock "+first.ID); err != nil {
					t.Fatal(err)
				}
			}
			err = b.Delete(t.Context(), operator, first.ID, true)
			if mode == Governance && err != nil || mode == Compliance && !problem.Is(err, "backup-delete-incomplete") {
				t.Errorf("with two approvals: %v", err)
			}
			if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, second.ID), nil); err != nil {
				t.Errorf("the other snapshot: %v", err)
			}
			// The credentials of one repository are of no use at the other.
			wrong := keys
			wrong.AccessKey, wrong.SecretKey = data.AccessKey, data.SecretKey
			intruder, err := OpenRepository(t.Context(), wrong)
			if err != nil {
				t.Fatal(err)
			}
			defer intruder.Close()
			if _, err := intruder.get(t.Context(), headerKey); err == nil || errors.Is(err, errAbsent) {
				t.Errorf("the keys opened to the credentials for data: %v", err)
			}
		})
	}
}

// Locks that would keep an erased customer's key, or that would not lock, are refused, with the reason.
func TestLocksThatAreRefused(t *testing.T) {
	g := newGateway(t, "user")
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	week := 7 * 24 * time.Hour
	plain, locking := g.bucket(t, "plain", false), g.bucket(t, "locking", true)
	_, err := g.client.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{Bucket: &locking,
		ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled,
			Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeCompliance, Days: aws.Int32(30)}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		edit func(o *RepositoryOptions)
		want string
	}{
		{"keys for ever", func(o *RepositoryOptions) { o.Part, o.Lock = Keys, Compliance }, "say for how long"},
		{"keys for longer than they are kept", func(o *RepositoryOptions) { o.Part, o.Lock, o.LockFor = Keys, Governance, week+time.Hour }, "Shorten the lock"},
		{"keys in a bucket that locks by itself", func(o *RepositoryOptions) { o.Part, o.URL = Keys, "s3://"+locking }, "Take the default retention from the bucket"},
		{"data in a bucket that does not lock", func(o *RepositoryOptions) { o.Lock = Governance }, "make one with"},
		{"a folder", func(o *RepositoryOptions) { o.URL, o.Lock = "file://"+t.TempDir(), Governance }, "only S3 locks"},
		{"a mode that is none", func(o *RepositoryOptions) { o.Lock = "forever" }, "write governance, compliance"},
		{"a time for data", func(o *RepositoryOptions) { o.Lock, o.LockFor = Governance, week }, "as long as the retention"},
	} {
		t.Run(row.name, func(t *testing.T) {
			o := g.options("r", Data, plain)
			row.edit(&o)
			r, err := OpenRepository(t.Context(), o)
			if err == nil {
				defer r.Close()
				err = r.checkBucket(t.Context(), week)
			}
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v", err)
			}
		})
	}
	// And nothing is stored in such a repository.
	bad := g.options("bad", Keys, locking)
	b := h.with(t, nil, h.folder("data", Data), h.folder("keys", Keys), bad)
	s, err := b.Run(t.Context(), operator)
	if err != nil || !strings.Contains(s.Copies[2].Error, "default retention") {
		t.Errorf("%+v, %v", s.Copies, err)
	}
}

// Whatever one repository does, the snapshot gets into the other, the run says what failed, and the next
// run mends it.
func TestFaultsOfARepository(t *testing.T) {
	g := newGateway(t, "user")
	isObject := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/objects/") }
	answer := func(w http.ResponseWriter, status int, code string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
	}
	// altered serves an object as next does, changed.
	altered := func(change func([]byte) []byte) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method != http.MethodGet || !isObject(r) {
				next.ServeHTTP(w, r)
				return
			}
			whole := httptest.NewRecorder()
			next.ServeHTTP(whole, r)
			body := change(whole.Body.Bytes())
			for name, values := range whole.Header() {
				if name != "Content-Length" && !strings.HasPrefix(name, "X-Amz-Checksum") {
					w.Header()[name] = values
				}
			}
			w.WriteHeader(whole.Code)
			_, _ = w.Write(body)
		}
	}
	for _, row := range []struct {
		name, want string
		fault      func(w http.ResponseWriter, r *http.Request, next http.Handler)
		timeout    time.Duration
	}{
		{name: "full", want: "InsufficientStorage", fault: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodPut {
				_, _ = io.Copy(io.Discard, r.Body)
				answer(w, http.StatusInsufficientStorage, "InsufficientStorage")
				return
			}
			next.ServeHTTP(w, r)
		}},
		{name: "does not answer", want: "no answer within", timeout: 200 * time.Millisecond, fault: func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}},
		{name: "hangs while objects are stored", want: "no answer within", timeout: 200 * time.Millisecond, fault: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodPut && isObject(r) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		}},
		{name: "cuts connections", timeout: 200 * time.Millisecond, want: "repository far", fault: func(http.ResponseWriter, *http.Request, http.Handler) {
			panic(http.ErrAbortHandler)
		}},
		{name: "refuses the credentials", want: "AccessDenied", fault: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			answer(w, http.StatusForbidden, "AccessDenied")
		}},
		{name: "gives back corrupted objects", want: ErrObject.Error(), fault: altered(func(b []byte) []byte {
			if len(b) > 100 {
				b[100] ^= 1
			}
			return b
		})},
		{name: "gives back truncated objects", want: "were stored", fault: altered(func(b []byte) []byte { return b[:len(b)/2] })},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := newHouse(t, dbtest.Open(t, db.SQLite))
			h.fill(t, 0, 300, strings.Repeat("body", 20))
			far := g.options("far", Data, g.bucket(t, "b-"+strings.ReplaceAll(row.name, " ", "-"), false))
			far.Timeout = 2 * time.Second
			if row.timeout > 0 {
				far.Timeout = row.timeout
			}
			raised := &register{}
			b := h.with(t, func(o *Options) { o.Findings = raised }, h.folder("near", Data), far, h.folder("keys", Keys))
			g.inject(row.fault)
			defer g.inject(nil)
			s, err := b.Run(t.Context(), operator)
			if err != nil || s.Copies[0].Error != "" {
				t.Fatalf("the other repository: %v, %+v", err, s.Copies)
			}
			if !strings.Contains(s.Copies[1].Error, row.want) {
				t.Errorf("the fault is told as %q", s.Copies[1].Error)
			}
			b.o.Media = 2 // and now it does not count
			if s, err = b.Run(t.Context(), operator); !problem.Is(err, "backup-incomplete") || s.Kept {
				t.Errorf("a snapshot on one medium: %v", err)
			}
			if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, s.ID), nil); err != nil {
				t.Errorf("while it lasts: %v", err)
			}
			v, err := b.Verify(t.Context(), operator, s.ID, true, nil)
			if !problem.Is(err, "backup-damaged") && !(row.name == "full" || row.timeout > 0) || len(v.Faults) == 0 && row.name != "full" {
				t.Errorf("verify: %+v, %v", v, err)
			}
			g.inject(nil)
			b.o.Media = 1
			if s, err = b.Run(t.Context(), operator); err != nil || s.Copies[1].Error != "" {
				t.Fatalf("when it is over: %v, %+v", err, s.Copies)
			}
			if v, err = b.Verify(t.Context(), operator, s.ID, true, nil); err != nil || len(v.Faults) > 0 || v.Objects == 0 {
				t.Errorf("when it is over: %+v, %v", v, err)
			}
			if open := raised.open(); len(open) > 0 {
				t.Errorf("still raised: %v", open)
			}
			b.o.Repositories = b.o.Repositories[1:] // from the mended one alone
			if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, s.ID), nil); err != nil {
				t.Errorf("from the mended repository: %v", err)
			}
		})
	}
}

// A repository that answers slowly gets its copy, and does not keep the snapshot of the database open.
func TestSlowRepository(t *testing.T) {
	g := newGateway(t, "user")
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.fill(t, 0, 2000, strings.Repeat("body", 50))
	b := h.with(t, nil, h.folder("near", Data), g.options("far", Data, g.bucket(t, "slow", false)), h.folder("keys", Keys))
	// Objects are stored at the far repository only after the manifest lies in the near one: all of the
	// reading, and one whole copy, are done before it answers the first time.
	done := func() bool {
		found, err := os.ReadDir(filepath.Join(h.base, "near", "manifests"))
		return err == nil && len(found) > 0
	}
	g.inject(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/objects/") {
			for !done() && r.Context().Err() == nil {
				time.Sleep(5 * time.Millisecond)
			}
		}
		next.ServeHTTP(w, r)
	})
	s, err := b.Run(t.Context(), operator)
	if err != nil || s.Copies[0].Error != "" || s.Copies[1].Error != "" {
		t.Fatalf("%+v, %v", s, err)
	}
	g.inject(nil)
	if v, err := b.Verify(t.Context(), operator, s.ID, true, nil); err != nil || len(v.Faults) > 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

// register is what is wrong, in memory.
type register struct {
	mu  sync.Mutex
	all map[string]string
}

func (r *register) Raise(_ context.Context, kind, subject, detail string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = make(map[string]string)
	}
	r.all[kind+" "+subject] = detail
	return nil
}

func (r *register) Clear(_ context.Context, kind, subject string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, kind+" "+subject)
	return nil
}

func (r *register) open() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for what := range r.all {
		all = append(all, what)
	}
	return all
}
