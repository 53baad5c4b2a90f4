package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// What a server may refuse to do with a blob, for errors.Is.
const (
	ErrBlobNotFound = Slug("blob-not-found")
	ErrBlobTooLarge = Slug("blob-too-large") // over 50 MiB
	ErrBlobsBusy    = Slug("blobs-busy")     // too many at once; a blob that can be sent again is
)

// Blob describes a document that is too large for a record.
type Blob struct {
	Collection string    `json:"collection"`
	Key        string    `json:"key"`
	Size       int64     `json:"size"` // in bytes
	UpdatedAt  time.Time `json:"updated_at"`
	ETag       string    `json:"-"` // for IfMatch; never the same for two contents
}

// BlobContent is a blob that is being read. Close it. A read fails when the rest of the content did not
// arrive, and its UpdatedAt is not known.
type BlobContent struct {
	Blob
	io.ReadCloser
}

// Blobs returns a customer's documents in a collection.
func (e Errand) Blobs(customer, collection string) ServiceBlobs {
	return ServiceBlobs{e, customer, collection}
}

// ServiceBlobs is one kind of a customer's documents.
type ServiceBlobs struct {
	errand               Errand
	customer, collection string
}

func (b ServiceBlobs) request(method, key string, header http.Header) (request, error) {
	p, err := path("blobs", b.customer, b.collection, key)
	header.Set("Strongroom-Purpose", b.errand.purpose)
	return request{method: method, path: p, header: header}, err
}

// Put writes a document of up to 50 MiB from content, which it reads to its end, as a stream. When content
// is an io.Seeker, as a file is, it is sent again from where it stood if the answer was lost, and still
// written once. To replace a document, IfMatch is needed.
func (b ServiceBlobs) Put(ctx context.Context, key string, content io.Reader, conditions ...Condition) (Blob, error) {
	h := header(conditions)
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Idempotency-Key", idempotencyKey(ctx))
	r, err := b.request(http.MethodPut, key, h)
	if err != nil {
		return Blob{}, err
	}
	_, r.repeatable = content.(io.Seeker)
	return b.errand.client.putBlob(ctx, r, content)
}

func (c *Client) putBlob(ctx context.Context, r request, content io.Reader) (Blob, error) {
	res, err := c.transfer(ctx, r, content)
	if err != nil {
		return Blob{}, err
	}
	defer res.Body.Close()
	var out Blob
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&out); err != nil {
		return Blob{}, errors.New("strongroom: the answer is not the JSON that was expected")
	}
	out.ETag = res.Header.Get("ETag")
	return out, nil
}

// Get returns a document for reading, as a stream; the errand's purpose must be one of the collection's.
func (b ServiceBlobs) Get(ctx context.Context, key string) (*BlobContent, error) {
	r, err := b.request(http.MethodGet, key, http.Header{})
	if err != nil {
		return nil, err
	}
	r.repeatable = true
	return b.errand.client.getBlob(ctx, r, b.collection, key)
}

func (c *Client) getBlob(ctx context.Context, r request, collection, key string) (*BlobContent, error) {
	res, err := c.transfer(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	return &BlobContent{Blob{Collection: collection, Key: key, Size: res.ContentLength, ETag: res.Header.Get("ETag")}, res.Body}, nil
}

// Delete deletes a document.
func (b ServiceBlobs) Delete(ctx context.Context, key string, conditions ...Condition) error {
	_, err := b.errand.change(ctx, http.MethodDelete, header(conditions), nil, nil, "blobs", b.customer, b.collection, key)
	return err
}

// Blobs returns the customer's documents in a collection.
func (c *Client) Blobs(collection string) Blobs { return Blobs{c, collection} }

// Blobs is one kind of the customer's documents.
type Blobs struct {
	client     *Client
	collection string
}

func (b Blobs) request(method, key string, header http.Header) (request, error) {
	p, err := path("blobs", b.collection, key)
	return request{method: method, path: p, header: header, proof: bySession}, err
}

// Put writes a document of up to 50 MiB, as a stream. The content is read once more from where it stood when
// the server asks for another proof, and is not sent again when the answer was lost. To replace a document,
// IfMatch is needed.
func (b Blobs) Put(ctx context.Context, key string, content io.ReadSeeker, conditions ...Condition) (Blob, error) {
	h := header(conditions)
	h.Set("Content-Type", "application/octet-stream")
	r, err := b.request(http.MethodPut, key, h)
	if err != nil {
		return Blob{}, err
	}
	return b.client.putBlob(ctx, r, content)
}

// Get returns a document for reading, as a stream, for a purpose that the collection allows. The purpose goes
// into the audit trail.
func (b Blobs) Get(ctx context.Context, key, purpose string) (*BlobContent, error) {
	r, err := b.request(http.MethodGet, key, http.Header{})
	if err != nil {
		return nil, err
	}
	r.query, r.repeatable = url.Values{"purpose": {purpose}}, true
	return b.client.getBlob(ctx, r, b.collection, key)
}

// Delete deletes a document. IfMatch makes sure that it is the one that was read.
func (b Blobs) Delete(ctx context.Context, key string, conditions ...Condition) error {
	r, err := b.request(http.MethodDelete, key, header(conditions))
	if err != nil {
		return err
	}
	_, err = b.client.call(ctx, r, nil)
	return err
}

// transfer sends r with content, which may be nil, for its body, again where that is right, and returns a
// successful answer with its body unread. Whole transfers have no time limit but ctx; one that stands
// still for the client's HTTPTimeout is given up.
func (c *Client) transfer(ctx context.Context, r request, content io.Reader) (*http.Response, error) {
	var start, size int64 = 0, -1
	seeker, _ := content.(io.Seeker)
	if seeker != nil {
		var err error
		if start, size, err = extent(seeker); err != nil {
			return nil, fmt.Errorf("strongroom: the content: %w", err)
		}
	}
	gone := content != nil && seeker == nil // once it was sent, also when the server did not want it
	var done remedies
	for attempt := 0; ; {
		var access Secret
		if r.proof == bySession {
			var err error
			if access, err = c.access(ctx); err != nil {
				return nil, c.failed(r, err)
			}
		}
		res, h, err := c.transferOnce(ctx, r, content, size, access)
		if err == nil {
			return res, nil
		}
		if gone {
			return nil, c.failed(r, err)
		}
		cured, failure := c.cure(ctx, access, h, err, &done)
		if failure != nil {
			return nil, c.failed(r, failure)
		}
		if !cured {
			wait, again := c.again(ctx, r, attempt, err)
			if !again {
				return nil, c.failed(r, err)
			}
			if err := c.sleep(ctx, wait); err != nil {
				return nil, err
			}
			attempt++
			done.nonce = false
		}
		if seeker != nil {
			if _, err := seeker.Seek(start, io.SeekStart); err != nil {
				return nil, fmt.Errorf("strongroom: the content: %w", err)
			}
		}
	}
}

// extent returns where a content stands and how much there is from there on.
func extent(s io.Seeker) (start, size int64, err error) {
	if start, err = s.Seek(0, io.SeekCurrent); err != nil {
		return 0, 0, err
	}
	end, err := s.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	_, err = s.Seek(start, io.SeekStart)
	return start, end - start, err
}

func (c *Client) transferOnce(ctx context.Context, r request, content io.Reader, size int64, access Secret) (_ *http.Response, _ http.Header, err error) {
	ctx, cancel := context.WithCancel(ctx)
	stall := time.AfterFunc(c.timeout, cancel)
	var body *watched
	var reader io.Reader
	if content != nil {
		body = &watched{Reader: content, stall: stall, patience: c.timeout, closed: make(chan struct{})}
		reader = body
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.origin+r.path, reader)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	req.URL.RawQuery = r.query.Encode()
	if size >= 0 && body != nil {
		req.ContentLength = size
		if size == 0 {
			req.Body = http.NoBody
			body = nil
		}
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("Accept", "application/octet-stream, application/json, application/problem+json")
	req.Header.Set("User-Agent", c.userAgent)
	if err := c.sign(req, r, access); err != nil {
		cancel()
		return nil, nil, err
	}
	began, status := time.Now(), 0
	defer func() {
		x := Exchange{Method: r.method, Path: r.path, Status: status, Duration: time.Since(began)}
		if status == 0 {
			x.Err = err
		}
		c.observe(x)
		if err == nil {
			return
		}
		cancel()
		stall.Stop()
		if body != nil {
			<-body.closed // until then the transport may read of it
		}
	}()
	res, err := c.http.Do(req)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return nil, nil, &failure{err, true}
	}
	stall.Stop()
	status = res.StatusCode
	c.keepNonce(res.Header)
	res.Body = &watched{Reader: res.Body, closer: res.Body, stall: stall, patience: c.timeout, cancel: cancel, closed: make(chan struct{})}
	if status >= 200 && status <= 299 {
		return res, res.Header, nil
	}
	defer res.Body.Close()
	read, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, nil, &failure{fmt.Errorf("the answer broke off: %w", err), true}
	}
	return nil, res.Header, problemOf(answer{status, res.Header, read}, c.now())
}

// watched is a body that must not stand still.
type watched struct {
	io.Reader
	closer   io.Closer // nil for a content, which stays its owner's
	stall    *time.Timer
	patience time.Duration
	cancel   context.CancelFunc
	done     atomic.Bool
	closed   chan struct{}
}

func (w *watched) Read(b []byte) (int, error) {
	if w.closer != nil { // an answer: how long its reader thinks between two reads does not count
		w.stall.Reset(w.patience)
		defer w.stall.Stop()
		return w.Reader.Read(b)
	}
	n, err := w.Reader.Read(b)
	w.stall.Reset(w.patience)
	return n, err
}

func (w *watched) Close() (err error) {
	if w.done.Swap(true) {
		return nil
	}
	if w.closer != nil {
		w.stall.Stop()
		err = w.closer.Close()
		w.cancel()
	}
	close(w.closed)
	return err
}
