package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	uploadtypes "github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"strongroom/internal/clock"
)

// LockMode is how an S3 repository keeps objects from being deleted and replaced before their time.
type LockMode string

// The modes of S3's object lock.
const (
	Unlocked   LockMode = ""
	Governance LockMode = "governance" // who holds a special permission may delete all the same
	Compliance LockMode = "compliance" // nobody may, the owner of the account included
)

const (
	// lockSlack is how much longer than needed an object is locked, so that its lock need not be extended
	// with every snapshot that needs it.
	lockSlack = 7 * 24 * time.Hour
	// leastLock is for how long the newest snapshots are locked, whatever the retention makes of them.
	leastLock = 24 * time.Hour
)

// errLocked means that an object may not be deleted yet.
var errLocked = errors.New("it is locked until its time is over")

func (o *RepositoryOptions) checkLock(scheme string) error {
	switch {
	case o.Lock != Unlocked && o.Lock != Governance && o.Lock != Compliance:
		return fmt.Errorf("backup repository %s: its lock is %q: write governance, compliance, or nothing", o.Name, o.Lock)
	case o.Lock != Unlocked && scheme != "s3":
		return fmt.Errorf("backup repository %s: only S3 locks objects; leave its lock empty", o.Name)
	case o.Lock != Unlocked && o.Part == Keys && o.LockFor <= 0:
		return fmt.Errorf("backup repository %s: keys are locked for a stated time only, or an erased customer's key could not be deleted; say for how long, at most as long as old keys are kept", o.Name)
	case o.LockFor != 0 && (o.Part == Data || o.Lock == Unlocked):
		return fmt.Errorf("backup repository %s: the time of a lock is for locked keys; data are locked for as long as the retention keeps them", o.Name)
	}
	return nil
}

// checkBucket refuses a bucket whose own rules say otherwise than the configuration. longest is for how
// long keys may be locked.
func (r *Repository) checkBucket(ctx context.Context, longest time.Duration) error {
	if r.s3 == nil {
		return nil
	}
	if r.Part == Keys && r.LockFor > longest {
		return fmt.Errorf("backup repository %s: keys would be locked for %v, and are to be gone after %v: a customer's erasure deletes their key, and a lock would keep it. Shorten the lock", r.Name, r.LockFor, longest)
	}
	var found *s3.GetObjectLockConfigurationOutput
	err := r.bounded(ctx, func(ctx context.Context) (err error) {
		found, err = r.s3.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &r.home})
		return err
	})
	var answer smithy.APIError
	switch {
	case err == nil:
	case errors.As(err, &answer) && (answer.ErrorCode() == "ObjectLockConfigurationNotFoundError" || answer.ErrorCode() == "NotImplemented"):
		if r.Lock != Unlocked {
			return fmt.Errorf("backup repository %s: its objects are to be locked, and the bucket was made without object lock; make one with it", r.Name)
		}
		return nil
	case r.Lock == Unlocked && r.Part == Data && errors.As(err, &answer):
		return nil // nothing depends on it, and these credentials may not ask
	default:
		return r.failed("object lock", err)
	}
	c := found.ObjectLockConfiguration
	if c == nil || c.ObjectLockEnabled != types.ObjectLockEnabledEnabled {
		if r.Lock != Unlocked {
			return fmt.Errorf("backup repository %s: its objects are to be locked, and the bucket does not lock; make one with object lock", r.Name)
		}
		return nil
	}
	if r.Part == Keys && c.Rule != nil && c.Rule.DefaultRetention != nil {
		d := c.Rule.DefaultRetention
		by := time.Duration(aws.ToInt32(d.Days))*24*time.Hour + time.Duration(aws.ToInt32(d.Years))*366*24*time.Hour
		if by > longest {
			return fmt.Errorf("backup repository %s: the bucket itself locks every object for %v, and keys are to be gone after %v: a customer's erasure deletes their key, and a lock would keep it. Take the default retention from the bucket", r.Name, by, longest)
		}
	}
	return nil
}

// lockUntil returns until when the repository locks what is stored now, given until when data are kept;
// the zero time for not.
func (r *Repository) lockUntil(until time.Time) time.Time {
	switch {
	case r.Lock == Unlocked || until.IsZero():
		return time.Time{}
	case r.Part == Keys:
		return clock.System.Now().Add(r.LockFor)
	}
	return until
}

// lockOnWrite has an upload lock what it writes.
func (r *Repository) lockOnWrite(until time.Time) func(as func(any) bool) error {
	return func(as func(any) bool) error {
		var upload *transfermanager.UploadObjectInput
		if !as(&upload) {
			return errors.New("the objects of this repository cannot be locked")
		}
		upload.ObjectLockMode = uploadtypes.ObjectLockMode(r.lockMode())
		upload.ObjectLockRetainUntilDate = aws.Time(until.UTC())
		return nil
	}
}

func (r *Repository) lockMode() types.ObjectLockRetentionMode {
	if r.Lock == Compliance {
		return types.ObjectLockRetentionModeCompliance
	}
	return types.ObjectLockRetentionModeGovernance
}

// extend has a key locked at least until a time. It reports whether the lock was shorter before.
func (r *Repository) extend(ctx context.Context, key string, until time.Time) (bool, error) {
	r.mu.Lock()
	known := r.locks[key]
	r.mu.Unlock()
	if r.Lock == Unlocked || !known.Before(until) {
		return false, nil
	}
	full := aws.String(r.prefix + key)
	extended := false
	err := r.bounded(ctx, func(ctx context.Context) error {
		now, err := r.s3.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &r.home, Key: full})
		var answer smithy.APIError
		switch {
		case errors.As(err, &answer) && answer.ErrorCode() == "NoSuchObjectLockConfiguration":
		case err != nil:
			return err
		case now.Retention != nil && !aws.ToTime(now.Retention.RetainUntilDate).Before(until):
			known = *now.Retention.RetainUntilDate
			return nil
		}
		known = until.Add(lockSlack)
		_, err = r.s3.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{Bucket: &r.home, Key: full,
			Retention: &types.ObjectLockRetention{Mode: r.lockMode(), RetainUntilDate: aws.Time(known.UTC())}})
		extended = err == nil
		return err
	})
	if err != nil {
		return false, r.failed(key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.locks[key] = known
	return extended, nil
}

// eachVersion calls each with the versions of a key, the newest first, until it returns false. In a bucket
// without versions there is one. Deletions are versions too.
func (r *Repository) eachVersion(ctx context.Context, key string, each func(version string, deletion bool) (bool, error)) error {
	full := r.prefix + key
	in := &s3.ListObjectVersionsInput{Bucket: &r.home, Prefix: &full}
	for {
		var out *s3.ListObjectVersionsOutput
		err := r.bounded(ctx, func(ctx context.Context) (err error) {
			out, err = r.s3.ListObjectVersions(ctx, in)
			return err
		})
		if err != nil {
			return r.failed(key, err)
		}
		type version struct {
			id       string
			at       time.Time
			deletion bool
		}
		var all []version
		for _, v := range out.Versions {
			if aws.ToString(v.Key) == full {
				all = append(all, version{aws.ToString(v.VersionId), aws.ToTime(v.LastModified), false})
			}
		}
		for _, v := range out.DeleteMarkers {
			if aws.ToString(v.Key) == full {
				all = append(all, version{aws.ToString(v.VersionId), aws.ToTime(v.LastModified), true})
			}
		}
		for _, v := range all {
			if more, err := each(v.id, v.deletion); err != nil || !more {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return nil
		}
		in.KeyMarker, in.VersionIdMarker = out.NextKeyMarker, out.NextVersionIdMarker
	}
}

// older offers the versions of a key to good, the newest first, until it takes one, and reports whether it
// did. Whoever has the credentials of a bucket that locks can hide what is there behind a deletion or
// another version, and no more.
func (r *Repository) older(ctx context.Context, key string, good func(content []byte) bool) bool {
	if r.s3 == nil {
		return false
	}
	taken := false
	_ = r.eachVersion(ctx, key, func(id string, deletion bool) (bool, error) {
		if deletion {
			return true, nil
		}
		err := r.bounded(ctx, func(ctx context.Context) error {
			out, err := r.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &r.home, Key: aws.String(r.prefix + key), VersionId: &id})
			if err != nil {
				return err
			}
			defer out.Body.Close()
			content, err := io.ReadAll(io.LimitReader(out.Body, maxObject+1))
			taken = err == nil && good(content)
			return err
		})
		_ = err // of a version that cannot be read there is nothing to be had: the next
		return !taken, nil
	})
	return taken
}

// removeVersions deletes every version of a key. With bypass it also deletes what is locked in the mode
// Governance, if the credentials allow it.
func (r *Repository) removeVersions(ctx context.Context, key string, bypass bool) error {
	var ids []string
	err := r.eachVersion(ctx, key, func(id string, _ bool) (bool, error) {
		ids = append(ids, id)
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, id := range ids {
		in := &s3.DeleteObjectInput{Bucket: &r.home, Key: aws.String(r.prefix + key)}
		if id != "" && id != "null" {
			in.VersionId = &id
		}
		if bypass {
			in.BypassGovernanceRetention = aws.Bool(true)
		}
		err := r.bounded(ctx, func(ctx context.Context) error {
			_, err := r.s3.DeleteObject(ctx, in)
			return err
		})
		var answer smithy.APIError
		switch {
		case errors.As(err, &answer) && (answer.ErrorCode() == "AccessDenied" || answer.ErrorCode() == "ObjectLocked" || answer.ErrorCode() == "InvalidRequest") && r.isLocked(ctx, key, id):
			return r.failed(key, errLocked)
		case err != nil:
			return r.failed(key, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.locks, key)
	return nil
}

// isLocked reports whether a version is under a lock.
func (r *Repository) isLocked(ctx context.Context, key, version string) bool {
	locked := false
	err := r.bounded(ctx, func(ctx context.Context) error {
		in := &s3.GetObjectRetentionInput{Bucket: &r.home, Key: aws.String(r.prefix + key)}
		if version != "" && version != "null" {
			in.VersionId = &version
		}
		out, err := r.s3.GetObjectRetention(ctx, in)
		locked = err == nil && out.Retention != nil && out.Retention.RetainUntilDate != nil
		return err
	})
	return err == nil && locked
}
