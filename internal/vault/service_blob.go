package vault

import (
	"context"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/policy"
)

// PutBlob is Vault.PutBlob for a service. With an idempotency key the content counts as a part of the
// request: it is read to its end before an earlier answer is given again.
func (s *Services) PutBlob(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref, body io.Reader, c Condition) (Blob, bool, error) {
	// Without If-Match a blob can only be made, with it only changed.
	q := ask{action: ActionBlobUpdate, permit: policy.BlobUpdate, resource: policy.Collection(ref.Collection), owner: owner,
		asked: []string{ref.Collection, ref.Key, c.IfMatch, c.IfNoneMatch}}
	if c.IfMatch == "" {
		q.action, q.permit = ActionBlobCreate, policy.BlobCreate
	}
	return s.putBlob(ctx, s.begin(by, a, q), owner, ref, body, c)
}

// OpenBlob is Vault.OpenBlob for a service.
func (s *Services) OpenBlob(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref) (*BlobReader, error) {
	d := s.begin(by, a, ask{action: ActionBlobRead, permit: policy.BlobRead, resource: policy.Collection(ref.Collection), owner: owner})
	return s.openBlob(ctx, d, owner, ref, a.Purpose)
}

// DeleteBlob is Vault.DeleteBlob for a service.
func (s *Services) DeleteBlob(ctx context.Context, by actor.Actor, a Access, owner customer.ID, ref Ref, c Condition) error {
	d := s.begin(by, a, ask{action: ActionBlobDelete, permit: policy.BlobDelete, resource: policy.Collection(ref.Collection), owner: owner,
		asked: []string{ref.Collection, ref.Key, c.IfMatch}})
	return s.deleteBlob(ctx, d, owner, ref, c)
}

type servicePutBlobInput struct {
	CustomerPath
	RecordPath
	Change
	IfMatch     string `header:"If-Match" doc:"The ETag of the content to replace. Needed when the blob exists."`
	IfNoneMatch string `header:"If-None-Match" doc:"*: only make a new blob."`
	BlobBody
}

type serviceGetBlobInput struct {
	CustomerPath
	RecordPath
	Purpose
}

func (s *Services) registerBlobs(api huma.API, operation func(id, method, path, tag, summary string, errors ...int) huma.Operation) {
	const path = BlobPath + "{customer}/{collection}/{key}"
	document := map[string]*huma.MediaType{BlobType: {}} // as for customers

	put := operation("put-blob", http.MethodPut, path, "Blobs", "Write a document of up to 50 MB", http.StatusBadRequest, http.StatusConflict,
		http.StatusPreconditionFailed, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusPreconditionRequired)
	put.SkipValidateBody, put.DefaultStatus = true, http.StatusOK
	put.RequestBody = &huma.RequestBody{Required: true, Description: "The document, as it is.", Content: document}
	huma.Register(api, put, func(ctx context.Context, in *servicePutBlobInput) (*blobOutput, error) {
		b, created, err := s.PutBlob(ctx, actor.From(ctx), in.access(), in.id(), in.ref(), in.body, Condition{in.IfMatch, in.IfNoneMatch})
		if err != nil {
			return nil, err
		}
		return answerBlob(b, created), nil
	})

	get := operation("get-blob", http.MethodGet, path, "Blobs", "Read a document")
	get.Responses = map[string]*huma.Response{"200": {Description: "The document, as it was written.", Content: document}}
	huma.Register(api, get, func(ctx context.Context, in *serviceGetBlobInput) (*huma.StreamResponse, error) {
		by := actor.From(ctx)
		b, err := s.OpenBlob(ctx, by, in.access(), in.id(), in.ref())
		if err != nil {
			return nil, err
		}
		return s.send(ctx, by, in.id(), b), nil
	})

	remove := operation("delete-blob", http.MethodDelete, path, "Blobs", "Delete a document", http.StatusBadRequest, http.StatusConflict, http.StatusPreconditionFailed)
	remove.DefaultStatus = http.StatusNoContent
	huma.Register(api, remove, func(ctx context.Context, in *serviceDeleteInput) (*struct{}, error) {
		return nil, s.DeleteBlob(ctx, actor.From(ctx), in.access(), in.id(), in.ref(), Condition{IfMatch: in.IfMatch})
	})
}
