package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	"gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/gcsblob" // gs://
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"

	"strongroom/internal/secret"
)

// Part is one of the two halves of a backup. A restore needs both, and they lie in different
// repositories under different credentials: the keys open nothing without the data, the data are nothing
// without the keys, and a customer's erasure reaches every copy by reaching the newest copy of the keys.
type Part string

// The parts.
const (
	Data Part = "data" // every table but those of the keys
	Keys Part = "keys" // the tables of the keys: wrapped, each under the one above
)

// RepositoryOptions describe a place where copies lie.
type RepositoryOptions struct {
	Name string // unique, for people and for the trail
	Part Part
	// URL is file:///path, s3://bucket/prefix, gs://bucket or azblob://container. A server that is not
	// Amazon's and calls its region otherwise than Region gets it as s3://bucket?region=us-east-1.
	URL    string
	Medium string // what it lies on, for counting separate media: "disk", "s3-frankfurt"
	Region string // where it lies: "eu-central-1", "on-premises-es"

	// For s3 only. Without AccessKey the machine's own identity is used.
	Endpoint  string // of a server that is not Amazon's
	AccessKey string
	SecretKey secret.Value
	PathStyle bool

	// Lock has the objects kept from being deleted or replaced, by S3's object lock; empty locks nothing.
	Lock LockMode
	// LockFor is for how long the objects of the part Keys are locked, at most Retention.Keys; those of
	// Data are locked for as long as the retention keeps them.
	LockFor time.Duration

	// Timeout bounds each request; 0 means a minute.
	Timeout time.Duration
}

// Repository is an open place. It is safe for concurrent use.
type Repository struct {
	RepositoryOptions
	bucket *blob.Bucket
	folder string // of a file repository
	s3     *s3.Client
	home   string        // S3's bucket
	prefix string        // before every key in it, "" or ending in a slash
	gate   chan struct{} // bounds what is being stored there

	mu     sync.Mutex
	have   map[string]int64     // objects that are known to be there, and their size; nil before the first look
	ailing bool                 // did not answer when it was last asked for an object
	bad    map[string]bool      // objects that were read and found damaged, until they are stored anew
	locks  map[string]time.Time // until when keys are known to be locked
}

// inFlight is how many objects are stored in a repository at a time.
const inFlight = 4

// OpenRepository reaches a repository. It does not look into it.
func OpenRepository(ctx context.Context, o RepositoryOptions) (*Repository, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("backup repository %s: its url is not one", o.Name)
	}
	if err := o.checkLock(u.Scheme); err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	r := &Repository{RepositoryOptions: o, gate: make(chan struct{}, inFlight), bad: make(map[string]bool), locks: make(map[string]time.Time)}
	switch u.Scheme {
	case "file":
		r.folder = filepath.FromSlash(u.Path)
		if err := os.MkdirAll(r.folder, 0o700); err != nil {
			return nil, fmt.Errorf("backup repository %s: %w", o.Name, err)
		}
		r.bucket, err = fileblob.OpenBucket(r.folder, &fileblob.Options{NoTempDir: true, DirFileMode: 0o700, Metadata: fileblob.MetadataDontWrite})
	case "s3":
		signed := o
		if region := u.Query().Get("region"); region != "" {
			signed.Region = region
		}
		r.s3, r.home = newS3(signed), u.Host
		if r.bucket, err = s3blob.OpenBucket(ctx, r.s3, u.Host, nil); err == nil {
			if prefix := strings.Trim(u.Path, "/"); prefix != "" {
				r.prefix = prefix + "/"
				r.bucket = blob.PrefixedBucket(r.bucket, r.prefix)
			}
		}
	default:
		r.bucket, err = blob.OpenBucket(ctx, o.URL)
	}
	if err != nil {
		return nil, fmt.Errorf("backup repository %s: %w", o.Name, err)
	}
	return r, nil
}

func newS3(o RepositoryOptions) *s3.Client {
	options := s3.Options{Region: o.Region, UsePathStyle: o.PathStyle}
	if o.Endpoint != "" {
		options.BaseEndpoint = aws.String(o.Endpoint)
	}
	if o.AccessKey != "" {
		options.Credentials = credentials.NewStaticCredentialsProvider(o.AccessKey, string(o.SecretKey.Reveal()), "")
	}
	return s3.New(options)
}

// Close lets go of it.
func (r *Repository) Close() error { return r.bucket.Close() }

// errAbsent means that a repository does not hold what was asked for.
var errAbsent = errors.New("it is not there")

// bounded runs a request for at most the repository's timeout. A folder on a server that hangs does not
// heed a context: its request is left behind.
func (r *Repository) bounded(ctx context.Context, request func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.Timeout, fmt.Errorf("no answer within %v", r.Timeout))
	defer cancel()
	if r.folder == "" {
		err := request(ctx)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	}
	done := make(chan error, 1)
	go func() { done <- request(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *Repository) failed(key string, err error) error {
	return fmt.Errorf("backup repository %s: %s: %w", r.Name, key, err)
}

// maxStored bounds what is read from under a key, in bytes: what lies there is not always ours.
const maxStored = maxObject + 1<<20

// read returns what lies under a key.
func (r *Repository) read(ctx context.Context, key string) (content []byte, err error) {
	in, err := r.bucket.NewReader(ctx, key, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	if in.Size() > maxStored {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrObject, in.Size())
	}
	out := bytes.NewBuffer(make([]byte, 0, max(0, in.Size())+bytes.MinRead))
	if _, err := out.ReadFrom(io.LimitReader(in, maxStored+1)); err != nil {
		return nil, err
	}
	if out.Len() > maxStored {
		return nil, fmt.Errorf("%w: it is longer than it says", ErrObject)
	}
	return out.Bytes(), nil
}

// get returns what lies under a key.
func (r *Repository) get(ctx context.Context, key string) ([]byte, error) {
	content := make(chan []byte, 1)
	err := r.bounded(ctx, func(ctx context.Context) error {
		b, err := r.read(ctx, key)
		content <- b
		return err
	})
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, r.failed(key, errAbsent)
	}
	if err != nil {
		return nil, r.failed(key, err)
	}
	return <-content, nil
}

// put writes what is to lie under a key, durably, whole or not at all.
func (r *Repository) put(ctx context.Context, key string, content []byte) error {
	return r.putLocked(ctx, key, content, time.Time{})
}

// putLocked is put of what must not be deleted or replaced before a time.
func (r *Repository) putLocked(ctx context.Context, key string, content []byte, until time.Time) error {
	o := &blob.WriterOptions{ContentType: "application/octet-stream"}
	until = r.lockUntil(until)
	if !until.IsZero() {
		o.BeforeWrite = r.lockOnWrite(until)
	}
	err := r.bounded(ctx, func(ctx context.Context) error {
		err := r.bucket.WriteAll(ctx, key, content, o)
		if err == nil && r.folder != "" {
			err = syncFile(filepath.Join(r.folder, filepath.FromSlash(key)))
		}
		return err
	})
	if err != nil {
		return r.failed(key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.locks[key] = until
	return nil
}

// syncFile has a file and its entry in its folder survive a power cut.
func syncFile(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes what lies under a key, in a bucket with versions every version. It fails with errLocked
// when the repository does not allow it yet.
func (r *Repository) remove(ctx context.Context, key string) error {
	if r.s3 != nil {
		return r.removeVersions(ctx, key, false)
	}
	err := r.bounded(ctx, func(ctx context.Context) error { return r.bucket.Delete(ctx, key) })
	if err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return r.failed(key, err)
	}
	return nil
}

// list calls each with every key that has the prefix, and its size in bytes.
func (r *Repository) list(ctx context.Context, prefix string, each func(key string, size int64) error) error {
	return r.listAll(ctx, prefix, func(o *blob.ListObject) error { return each(o.Key, o.Size) })
}

func (r *Repository) listAll(ctx context.Context, prefix string, each func(o *blob.ListObject) error) error {
	iterator := r.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		next := make(chan *blob.ListObject, 1)
		err := r.bounded(ctx, func(ctx context.Context) error {
			o, err := iterator.Next(ctx)
			next <- o
			return err
		})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("backup repository %s: %w", r.Name, err)
		}
		if err := each(<-next); err != nil {
			return err
		}
	}
}

// Names within a repository.
const (
	headerKey      = "repository.json"
	objectPrefix   = "objects/"
	manifestPrefix = "manifests/"
)

func objectKey(name string) string { return objectPrefix + name[:2] + "/" + name }

// look learns which objects are there, and how long they are.
func (r *Repository) look(ctx context.Context) error {
	have := make(map[string]int64)
	err := r.list(ctx, objectPrefix, func(key string, size int64) error {
		have[key[strings.LastIndexByte(key, '/')+1:]] = size
		return nil
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.have = have
	r.mu.Unlock()
	return nil
}

// holds reports whether an object was there at the last look, as long as it has to be, or was put since.
// One that was found damaged does not count.
func (r *Repository) holds(name string, size int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	had, ok := r.have[name]
	return ok && had == size && !r.bad[name]
}

func (r *Repository) ails(now bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ailing = now
}

func (r *Repository) isAiling() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ailing
}

// distrust has an object count as missing.
func (r *Repository) distrust(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad[name] = true
}

// putObject stores an object, over whatever is there.
func (r *Repository) putObject(ctx context.Context, name string, stored []byte, until time.Time) error {
	if err := r.putLocked(ctx, objectKey(name), stored, until); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.have == nil {
		r.have = make(map[string]int64)
	}
	r.have[name] = int64(len(stored))
	delete(r.bad, name)
	return nil
}
