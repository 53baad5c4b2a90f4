package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
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
	Name   string // unique, for people and for the trail
	Part   Part
	URL    string // file:///path, s3://bucket/prefix, and what else gocloud.dev/blob opens
	Medium string // what it lies on, for counting separate media: "disk", "s3-frankfurt"
	Region string // where it lies: "eu-central-1", "on-premises-es"

	// For s3 only. Without AccessKey the machine's own identity is used.
	Endpoint  string // of a server that is not Amazon's
	AccessKey string
	SecretKey secret.Value
	PathStyle bool
}

// Repository is an open place. It is safe for concurrent use.
type Repository struct {
	RepositoryOptions
	bucket *blob.Bucket
	folder string // of a file repository
	s3     *s3.Client

	mu   sync.Mutex
	have map[string]bool // objects that are known to be there; nil before the first look
}

// OpenRepository reaches a repository. It does not look into it.
func OpenRepository(ctx context.Context, o RepositoryOptions) (*Repository, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("backup repository %s: its url is not one", o.Name)
	}
	r := &Repository{RepositoryOptions: o}
	switch u.Scheme {
	case "file":
		r.folder = filepath.FromSlash(u.Path)
		if err := os.MkdirAll(r.folder, 0o700); err != nil {
			return nil, fmt.Errorf("backup repository %s: %w", o.Name, err)
		}
		r.bucket, err = fileblob.OpenBucket(r.folder, &fileblob.Options{NoTempDir: true, DirFileMode: 0o700, Metadata: fileblob.MetadataDontWrite})
	case "s3":
		r.s3 = newS3(o)
		if r.bucket, err = s3blob.OpenBucket(ctx, r.s3, u.Host, nil); err == nil {
			if prefix := strings.Trim(u.Path, "/"); prefix != "" {
				r.bucket = blob.PrefixedBucket(r.bucket, prefix+"/")
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

// get returns what lies under a key.
func (r *Repository) get(ctx context.Context, key string) ([]byte, error) {
	b, err := r.bucket.ReadAll(ctx, key)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, fmt.Errorf("backup repository %s: %s: %w", r.Name, key, errAbsent)
	}
	if err != nil {
		return nil, fmt.Errorf("backup repository %s: %s: %w", r.Name, key, err)
	}
	return b, nil
}

// put writes what is to lie under a key, durably, whole or not at all.
func (r *Repository) put(ctx context.Context, key string, content []byte) error {
	err := r.bucket.WriteAll(ctx, key, content, &blob.WriterOptions{ContentType: "application/octet-stream"})
	if err == nil && r.folder != "" {
		err = syncFile(filepath.Join(r.folder, filepath.FromSlash(key)))
	}
	if err != nil {
		return fmt.Errorf("backup repository %s: %s: %w", r.Name, key, err)
	}
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

func (r *Repository) remove(ctx context.Context, key string) error {
	err := r.bucket.Delete(ctx, key)
	if err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return fmt.Errorf("backup repository %s: %s: %w", r.Name, key, err)
	}
	return nil
}

// list calls each with every key that has the prefix, and its size in bytes.
func (r *Repository) list(ctx context.Context, prefix string, each func(key string, size int64) error) error {
	iterator := r.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		o, err := iterator.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("backup repository %s: %w", r.Name, err)
		}
		if err := each(o.Key, o.Size); err != nil {
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

// look learns which objects are there.
func (r *Repository) look(ctx context.Context) error {
	have := make(map[string]bool)
	err := r.list(ctx, objectPrefix, func(key string, _ int64) error {
		have[key[strings.LastIndexByte(key, '/')+1:]] = true
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

// holds reports whether an object was there at the last look or was put since.
func (r *Repository) holds(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.have[name]
}

// putObject stores an object unless it is there.
func (r *Repository) putObject(ctx context.Context, name string, stored []byte) error {
	if r.holds(name) {
		return nil
	}
	if err := r.put(ctx, objectKey(name), stored); err != nil {
		return err
	}
	r.mu.Lock()
	r.have[name] = true
	r.mu.Unlock()
	return nil
}
