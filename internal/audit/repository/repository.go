// Package repository keeps the objects of the trail's archive: in a folder, or in a bucket of a service
// that speaks the S3 protocol.
//
// The promise: what Write has taken is there whole under its name, or not at all, and a name that is there is
// not overwritten with less. What is in an object is not its concern: the trail seals objects, and checks them
// when they come back.
package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"

	"strongroom/internal/secret"
)

// Options say where objects are kept.
type Options struct {
	// URL is file:///folder, or s3://bucket?region=R, with &endpoint=https://host for another service than
	// Amazon's and &prefix=folder/ for objects below a name.
	URL string
	// AccessKey and SecretKey are the credentials for s3.
	AccessKey, SecretKey secret.Value
}

// Repository is a folder or a bucket. It is safe for concurrent use.
type Repository struct {
	bucket *blob.Bucket
	folder string // empty of a bucket
}

// Check returns what is wrong with the URL.
func Check(text string) error {
	_, err := parse(text)
	return err
}

func parse(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("is not a URL")
	}
	known := map[string]bool{"region": u.Scheme == "s3", "endpoint": u.Scheme == "s3", "prefix": u.Scheme == "s3"}
	for name := range u.Query() {
		if !known[name] {
			return nil, fmt.Errorf("has the parameter %q, which is not known", name)
		}
	}
	switch {
	case u.User != nil || u.Fragment != "":
		return nil, errors.New("holds a user or a fragment")
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path) && filepath.Clean(u.Path) != "/":
		return u, nil
	case u.Scheme == "file":
		return nil, errors.New("does not name a folder by its whole path")
	case u.Scheme != "s3" || u.Host == "" || u.Path != "":
		return nil, errors.New("is neither file:///folder nor s3://bucket?region=R")
	case u.Query().Get("region") == "":
		return nil, errors.New("names no region")
	}
	if text := u.Query().Get("endpoint"); text != "" {
		e, err := url.Parse(text)
		if err != nil || e.Scheme != "https" && !(e.Scheme == "http" && (e.Hostname() == "127.0.0.1" || e.Hostname() == "::1")) || e.Host == "" || e.User != nil {
			return nil, errors.New("has an endpoint that is not https")
		}
	}
	return u, nil
}

// Open opens a repository. A folder is made with mode 0700 when it is not there.
func Open(o Options) (*Repository, error) {
	u, err := parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("the repository's address %w", err)
	}
	if u.Scheme == "file" {
		if err := os.MkdirAll(u.Path, 0o700); err != nil {
			return nil, err
		}
		b, err := fileblob.OpenBucket(u.Path, &fileblob.Options{NoTempDir: true, DirFileMode: 0o700, Metadata: fileblob.MetadataDontWrite})
		if err != nil {
			return nil, err
		}
		return &Repository{b, u.Path}, nil
	}
	q := u.Query()
	client := s3.New(s3.Options{
		Region:      q.Get("region"),
		Credentials: credentials.NewStaticCredentialsProvider(string(o.AccessKey.Reveal()), string(o.SecretKey.Reveal()), ""),
	}, func(s *s3.Options) {
		if endpoint := q.Get("endpoint"); endpoint != "" {
			s.BaseEndpoint, s.UsePathStyle = aws.String(endpoint), true
		}
	})
	b, err := s3blob.OpenBucket(context.Background(), client, u.Host, nil)
	if err != nil {
		return nil, err
	}
	if prefix := q.Get("prefix"); prefix != "" {
		b = blob.PrefixedBucket(b, prefix)
	}
	return &Repository{bucket: b}, nil
}

// Write stores an object, which outlives a power failure when Write has returned.
func (r *Repository) Write(ctx context.Context, name string, content []byte) error {
	err := r.bucket.WriteAll(ctx, name, content, &blob.WriterOptions{ContentType: "application/octet-stream"})
	if err != nil || r.folder == "" {
		return err
	}
	path := filepath.Join(r.folder, filepath.FromSlash(name))
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	// The library renames the file into its place, and leaves it to the kernel when that is on disk.
	for ; ; path = filepath.Dir(path) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
		if path == filepath.Clean(r.folder) {
			return nil
		}
	}
}

// Read returns an object, or its first bytes when it has more than limit.
func (r *Repository) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	in, err := r.bucket.NewReader(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(in, limit))
	return b, errors.Join(err, in.Close())
}

// List returns the names of all objects that begin so.
func (r *Repository) List(ctx context.Context, prefix string) ([]string, error) {
	var names []string
	for i := r.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := i.Next(ctx)
		if err == io.EOF {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
		names = append(names, o.Key)
	}
}

// Delete deletes an object. One that is not there is deleted already.
func (r *Repository) Delete(ctx context.Context, name string) error {
	err := r.bucket.Delete(ctx, name)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil
	}
	return err
}

// Close lets go of the repository.
func (r *Repository) Close() error { return r.bucket.Close() }
