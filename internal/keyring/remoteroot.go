package keyring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"

	"strongroom/internal/problem"
)

const (
	// remoteTimeout bounds one call to a key management service.
	remoteTimeout = 10 * time.Second
	// retryRemote is how long callers are asked to wait when it did not answer.
	retryRemote = 5 * time.Second
)

// productSchemes are the services whose URLs are addresses. In any other scheme the URL may hold the
// key itself.
var productSchemes = []string{"awskms", "azurekeyvault", "gcpkms", "hashivault"}

type remoteRoot struct {
	id      string
	keeper  *secrets.Keeper
	scrub   *strings.Replacer
	timeout time.Duration
}

func openRemoteRoot(ctx context.Context, raw string, u *url.URL) (Root, error) {
	known := secrets.DefaultURLMux().KeeperSchemes()
	if !slices.Contains(known, u.Scheme) {
		return nil, fmt.Errorf("%w: there is no root key provider %q here, only file and %s", ErrNoRoot, u.Scheme, strings.Join(known, ", "))
	}
	r := &remoteRoot{id: remoteID(raw, u), scrub: scrubber(raw, u), timeout: remoteTimeout}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	keeper, err := secrets.OpenKeeper(ctx, raw)
	if err != nil {
		return nil, r.failure("open", err)
	}
	r.keeper = keeper
	return r, nil
}

// remoteID names the key by its address, without user, password and query. Where the URL may be the
// key, it is named by a digest.
func remoteID(raw string, u *url.URL) string {
	if slices.Contains(productSchemes, u.Scheme) {
		return u.Scheme + "://" + u.Host + u.EscapedPath()
	}
	digest := sha256.Sum256([]byte("strongroom root id" + raw))
	return u.Scheme + ":" + hex.EncodeToString(digest[:8])
}

// scrubber takes what may be secret in the URL out of the service's own words.
func scrubber(raw string, u *url.URL) *strings.Replacer {
	private := []string{raw, u.String(), u.RawQuery}
	if u.User != nil {
		password, _ := u.User.Password()
		private = append(private, u.User.String(), u.User.Username(), password)
	}
	for _, values := range u.Query() {
		private = append(private, values...)
	}
	if !slices.Contains(productSchemes, u.Scheme) {
		private = append(private, u.Host, u.Opaque, u.Path)
	}
	// The longest first: a Replacer takes the first that fits.
	slices.SortFunc(private, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, s := range private {
		if s != "" {
			pairs = append(pairs, s, "[redacted]")
		}
	}
	return strings.NewReplacer(pairs...)
}

// failure tells a service that says no from one that does not answer. What cannot be told counts as
// the latter: the drivers report a lost connection and an unknown refusal alike.
func (r *remoteRoot) failure(do string, err error) error {
	cause := fmt.Errorf("%s with root key %s: %s", do, r.id, r.scrub.Replace(err.Error()))
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		switch gcerrors.Code(err) {
		case gcerrors.InvalidArgument:
			return fmt.Errorf("%w: %w: check that the root key's URL names the key that wrapped it", ErrUnwrap, cause)
		case gcerrors.NotFound, gcerrors.FailedPrecondition, gcerrors.Unimplemented:
			return fmt.Errorf("%w: %w: check the root key's URL, and that the key exists and is enabled", ErrNoRoot, cause)
		case gcerrors.PermissionDenied:
			return fmt.Errorf("%w: %w: allow this server to encrypt and decrypt with the key", ErrNoRoot, cause)
		}
	}
	return keysUnavailable(cause)
}

func keysUnavailable(cause error) error {
	return problem.New(problem.Unavailable, "keys-unavailable",
		"The keys cannot be reached right now. Try again shortly.").RetryAfter(retryRemote).Because(cause)
}

func (r *remoteRoot) Wrap(ctx context.Context, plaintext, context []byte) ([]byte, error) {
	bound := bind(plaintext, context)
	defer clear(bound)
	return r.call(ctx, "wrap", bound, r.keeper.Encrypt)
}

func (r *remoteRoot) Unwrap(ctx context.Context, wrapped, context []byte) ([]byte, error) {
	bound, err := r.call(ctx, "unwrap", wrapped, r.keeper.Decrypt)
	if err != nil {
		return nil, err
	}
	defer clear(bound)
	plaintext, err := unbind(bound, context)
	return bytes.Clone(plaintext), err
}

func (r *remoteRoot) call(ctx context.Context, do string, in []byte, f func(context.Context, []byte) ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	out, err := f(ctx, in)
	if err != nil {
		return nil, r.failure(do, err)
	}
	return out, nil
}

func (r *remoteRoot) ID() string { return r.id }

func (r *remoteRoot) Close() error { return r.keeper.Close() }
