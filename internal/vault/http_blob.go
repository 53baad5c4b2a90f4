package vault

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
)

// BlobPath is where blobs are. The listener must take bodies of MaxBlob bytes and of BlobType there.
const (
	BlobPath = "/v1/blobs/"
	BlobType = "application/octet-stream"
)

const (
	// A transfer may take blobPatience, and as long as its bytes take at blobPace bytes a second: who is
	// slower holds a place that others want.
	blobPatience = 30 * time.Second
	blobPace     = 64 << 10
)

func blobDeadline(began time.Time, bytes int64) time.Time {
	return began.Add(blobPatience + time.Duration(bytes)*time.Second/blobPace)
}

type putBlobInput struct {
	RecordPath
	IfMatch     string `header:"If-Match" doc:"The ETag of the content to replace. Needed when the blob exists."`
	IfNoneMatch string `header:"If-None-Match" doc:"*: only make a new blob."`
	BlobBody
}

// BlobBody is the body of a request that writes a blob. It is exported because huma looks only into
// exported fields.
type BlobBody struct{ body io.Reader }

// Resolve takes hold of the body, which huma would read as a whole.
func (in *BlobBody) Resolve(ctx huma.Context) []error {
	r, w := humago.Unwrap(ctx)
	in.body = &pacedReader{Reader: r.Body, control: http.NewResponseController(w), began: time.Now()}
	return nil
}

// pacedReader moves the deadline of a request on as its body comes in.
type pacedReader struct {
	io.Reader
	control *http.ResponseController
	began   time.Time
	bytes   int64
}

func (p *pacedReader) Read(b []byte) (int, error) {
	// Where there is no deadline to move, as in tests, there is none to keep.
	_ = p.control.SetReadDeadline(blobDeadline(p.began, p.bytes))
	_ = p.control.SetWriteDeadline(blobDeadline(p.began, p.bytes).Add(blobPatience))
	n, err := p.Reader.Read(b)
	p.bytes += int64(n)
	return n, err
}

type blobOutput struct {
	Status       int
	ETag         string `header:"ETag" doc:"The content, for If-Match."`
	CacheControl string `header:"Cache-Control"`
	Body         BlobView
}

// BlobView describes a blob in an answer.
type BlobView struct {
	Collection string    `json:"collection"`
	Key        string    `json:"key"`
	Size       int64     `json:"size" doc:"In bytes."`
	UpdatedAt  time.Time `json:"updated_at"`
}

type getBlobInput struct {
	RecordPath
	Purpose string `query:"purpose" doc:"Why the blob is read; one of the collection's purposes."`
}

func (v *Vault) registerBlobs(api huma.API) {
	session := func(scope string) []map[string][]string { return []map[string][]string{{"session": {scope}}} }
	tags := []string{"Blobs"}
	// OpenAPI 3.1 describes bytes by their type alone, without a schema.
	document := map[string]*huma.MediaType{BlobType: {}}
	common := []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone, http.StatusServiceUnavailable}

	huma.Register(api, huma.Operation{
		OperationID: "put-blob", Method: http.MethodPut, Path: BlobPath + "{collection}/{key}", Tags: tags,
		Summary:  "Write a document of up to 50 MB",
		Security: session("write"), DefaultStatus: http.StatusOK, RejectUnknownQueryParameters: true, SkipValidateBody: true,
		RequestBody: &huma.RequestBody{Required: true, Description: "The document, as it is.", Content: document},
		Errors: append([]int{http.StatusBadRequest, http.StatusConflict, http.StatusPreconditionFailed, http.StatusRequestEntityTooLarge,
			http.StatusUnsupportedMediaType, http.StatusPreconditionRequired}, common...),
	}, v.receiveBlob)

	huma.Register(api, huma.Operation{
		OperationID: "get-blob", Method: http.MethodGet, Path: BlobPath + "{collection}/{key}", Tags: tags,
		Summary:  "Read a document, for a purpose",
		Security: session("read"), RejectUnknownQueryParameters: true,
		Responses: map[string]*huma.Response{"200": {Description: "The document, as it was written.", Content: document}},
		Errors:    append([]int{http.StatusUnprocessableEntity}, common...),
	}, v.giveBlob)

	huma.Register(api, huma.Operation{
		OperationID: "delete-blob", Method: http.MethodDelete, Path: BlobPath + "{collection}/{key}", Tags: tags,
		Summary:  "Delete a document",
		Security: session("write"), DefaultStatus: http.StatusNoContent, RejectUnknownQueryParameters: true,
		Errors: append([]int{http.StatusBadRequest, http.StatusPreconditionFailed}, common...),
	}, v.dropBlob)
}

func (v *Vault) receiveBlob(ctx context.Context, in *putBlobInput) (*blobOutput, error) {
	by := actor.From(ctx)
	b, created, err := v.PutBlob(ctx, by, by.Customer(), in.ref(), in.body, Condition{in.IfMatch, in.IfNoneMatch})
	if err != nil {
		return nil, err
	}
	return answerBlob(b, created), nil
}

func answerBlob(b Blob, created bool) *blobOutput {
	out := &blobOutput{Status: http.StatusOK, ETag: b.ETag, CacheControl: noStore, Body: BlobView{b.Collection, b.Key, b.Size, b.UpdatedAt}}
	if created {
		out.Status = http.StatusCreated
	}
	return out
}

func (v *Vault) giveBlob(ctx context.Context, in *getBlobInput) (*huma.StreamResponse, error) {
	by := actor.From(ctx)
	b, err := v.OpenBlob(ctx, by, by.Customer(), in.ref(), in.Purpose)
	if err != nil {
		return nil, err
	}
	return v.send(ctx, by, by.Customer(), b), nil
}

// send streams a blob into an answer.
func (v *Vault) send(ctx context.Context, by actor.Actor, owner customer.ID, b *BlobReader) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(out huma.Context) {
		defer b.Close()
		_, w := humago.Unwrap(out)
		out.SetHeader("Content-Type", BlobType)
		out.SetHeader("Content-Disposition", "attachment")
		out.SetHeader("Content-Length", strconv.FormatInt(b.Size, 10))
		out.SetHeader("Cache-Control", noStore)
		out.SetHeader("ETag", b.ETag)
		out.SetStatus(http.StatusOK)
		n, err := b.WriteTo(&pacedWriter{Writer: w, control: http.NewResponseController(w), began: time.Now()})
		if err == nil && n == b.Size {
			return
		}
		if ctx.Err() == nil {
			v.log.ErrorContext(ctx, "a blob could not be sent to its end", "customer", owner, "blob", b.Collection+"/"+b.Key,
				"request", by.Request, "sent", n, "size", b.Size, "error", err)
		}
		// Break the connection, so that half a document is not taken for a whole.
		panic(http.ErrAbortHandler)
	}}
}

// pacedWriter moves the deadline of an answer on as it goes out.
type pacedWriter struct {
	io.Writer
	control *http.ResponseController
	began   time.Time
	bytes   int64
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(blobDeadline(p.began, p.bytes+int64(len(b))))
	n, err := p.Writer.Write(b)
	p.bytes += int64(n)
	return n, err
}

func (v *Vault) dropBlob(ctx context.Context, in *deleteRecordInput) (*struct{}, error) {
	by := actor.From(ctx)
	return nil, v.DeleteBlob(ctx, by, by.Customer(), in.ref(), Condition{IfMatch: in.IfMatch})
}
