package transit

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/problem"
)

// Call is what every request carries. It is exported because huma looks only into exported fields.
type Call struct {
	Name    string `path:"name" doc:"The key's name." example:"payments"`
	Purpose string `header:"Strongroom-Purpose" doc:"Why this is done: a slug that policies decide on and the trail keeps. Needed." example:"payment"`
}

func (c Call) access() Access { return Access{Purpose: c.Purpose} }

// Base64 is bytes in JSON, as base64 with padding (RFC 4648 section 4). Huma's own schema for bytes takes no
// empty ones.
type Base64 []byte

// Schema describes the bytes.
func (Base64) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "byte"}
}

// MarshalJSON writes no bytes as an empty string, never as null.
func (b Base64) MarshalJSON() ([]byte, error) { return json.Marshal(append([]byte{}, b...)) }

// Change is what a request that changes a key may carry as well.
type Change struct {
	Call
	Once string `header:"Idempotency-Key" doc:"8 to 128 characters of your own making. The same request with the same key is done once, and has the same answer for 24 hours."`
}

func (c Change) access() Access { return Access{c.Purpose, c.Once} }

type createInput struct {
	Change
	Body struct {
		Algorithm string `json:"algorithm" enum:"AES-256-GCM,HMAC-SHA-256,Ed25519"`
	}
}

type rotateInput struct{ Change }

type readInput struct{ Call }

// KeyVersionView is a version of a key in an answer.
type KeyVersionView struct {
	Version   uint32    `json:"version"`
	State     string    `json:"state"`
	MadeAt    time.Time `json:"made_at"`
	PublicKey []byte    `json:"public_key,omitempty" doc:"32 bytes (RFC 8032), of a key that signs."`
}

type createOutput struct {
	Body struct {
		Name    string `json:"name"`
		Version uint32 `json:"version"`
	}
}

type keyOutput struct {
	Body struct {
		Name      string           `json:"name"`
		Algorithm string           `json:"algorithm"`
		Versions  []KeyVersionView `json:"versions" nullable:"false" doc:"Newest first."`
	}
}

type encryptInput struct {
	Call
	Body struct {
		Plaintext Base64 `json:"plaintext" maxLength:"43692" doc:"At most 32 KiB, base64."`
		Context   string `json:"context,omitempty" maxLength:"1024" doc:"What the plaintext belongs to; it must be given again to decrypt."`
	}
}

type ciphertextInput struct {
	Call
	Body struct {
		Ciphertext string `json:"ciphertext" maxLength:"44000"`
		Context    string `json:"context,omitempty" maxLength:"1024"`
	}
}

type ciphertextOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Ciphertext string `json:"ciphertext"`
	}
}

type plaintextOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Plaintext Base64 `json:"plaintext"`
	}
}

type messageInput struct {
	Call
	Body struct {
		Message Base64 `json:"message" maxLength:"43692" doc:"At most 32 KiB, base64."`
		Context string `json:"context,omitempty" maxLength:"1024" doc:"What the message belongs to."`
	}
}

type macOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		MAC string `json:"mac"`
	}
}

type verifyMACInput struct {
	Call
	Body struct {
		Message Base64 `json:"message" maxLength:"43692"`
		Context string `json:"context,omitempty" maxLength:"1024"`
		MAC     string `json:"mac" maxLength:"128"`
	}
}

type signatureOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Signature string `json:"signature"`
	}
}

type verifyInput struct {
	Call
	Body struct {
		Message   Base64 `json:"message" maxLength:"43692"`
		Context   string `json:"context,omitempty" maxLength:"1024"`
		Signature string `json:"signature" maxLength:"160"`
	}
}

type validOutput struct {
	Body struct {
		Valid bool `json:"valid"`
	}
}

// VersionPath is the path of a version of a key.
type VersionPath struct {
	Version uint32 `path:"version" minimum:"1" doc:"The version's number."`
}

type versionInput struct {
	Change
	VersionPath
}

type destroyOutput struct {
	Body struct {
		Name     string `json:"name"`
		Version  uint32 `json:"version"`
		Scrubbed bool   `json:"scrubbed" doc:"No file of the database holds the version any more."`
	}
}

// MessageView is a message of a batch.
type MessageView struct {
	Message Base64 `json:"message" maxLength:"43692" doc:"At most 32 KiB, base64."`
	Context string `json:"context,omitempty" maxLength:"1024" doc:"What it belongs to."`
}

type messagesInput struct {
	Call
	Body struct {
		Items []MessageView `json:"items" minItems:"1" maxItems:"1000" nullable:"false" doc:"At most 512 KiB in all."`
	}
}

// PlaintextView is a plaintext of a batch.
type PlaintextView struct {
	Plaintext Base64 `json:"plaintext" maxLength:"43692" doc:"At most 32 KiB, base64."`
	Context   string `json:"context,omitempty" maxLength:"1024" doc:"What it belongs to; it must be given again to decrypt."`
}

type plaintextsInput struct {
	Call
	Body struct {
		Items []PlaintextView `json:"items" minItems:"1" maxItems:"1000" nullable:"false" doc:"At most 512 KiB in all."`
	}
}

// CiphertextView is a ciphertext of a batch.
type CiphertextView struct {
	Ciphertext string `json:"ciphertext" maxLength:"44000"`
	Context    string `json:"context,omitempty" maxLength:"1024"`
}

type ciphertextsInput struct {
	Call
	Body struct {
		Items []CiphertextView `json:"items" minItems:"1" maxItems:"1000" nullable:"false" doc:"At most 512 KiB in all."`
	}
}

// ItemView is what came of one item of a batch: its answer, or a problem.
type ItemView struct {
	Plaintext  *Base64      `json:"plaintext,omitempty"`
	Ciphertext string       `json:"ciphertext,omitempty"`
	MAC        string       `json:"mac,omitempty"`
	Signature  string       `json:"signature,omitempty"`
	Problem    *ItemProblem `json:"problem,omitempty"`
}

// ItemProblem is why there is no answer for one item of a batch (RFC 9457).
type ItemProblem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

type itemsOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Results []ItemView `json:"results" nullable:"false" doc:"In the order of the items."`
	}
}

func answerItems(done []Done, show func(Done) ItemView) *itemsOutput {
	out := &itemsOutput{CacheControl: noStore}
	out.Body.Results = make([]ItemView, len(done))
	for i, d := range done {
		if p := d.Err; p != nil {
			status := p.GetStatus()
			out.Body.Results[i].Problem = &ItemProblem{problem.URN + p.Slug(), http.StatusText(status), status, p.Detail()}
			continue
		}
		out.Body.Results[i] = show(d)
	}
	return out
}

const noStore = "no-store"

// BatchPath is where batches are done. The listener must take bodies of MaxBatchBody bytes there.
const (
	BatchPath    = "/v1/batch/keys/"
	MaxBatchBody = 1 << 20
)

// Register adds the operations to the API of the services' listener.
func (t *Transit) Register(api huma.API) {
	operation := func(id, method, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: "/v1/keys/{name}" + path, Summary: summary, Tags: []string{"Keys"},
			Security: []map[string][]string{{"service": {}}}, RejectUnknownQueryParameters: true,
			Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict,
				http.StatusUnprocessableEntity, http.StatusServiceUnavailable}}
	}
	create := operation("create-key", http.MethodPost, "", "Make a key")
	create.DefaultStatus = http.StatusCreated
	huma.Register(api, create, func(ctx context.Context, in *createInput) (*createOutput, error) {
		out := &createOutput{}
		out.Body.Name, out.Body.Version = in.Name, 1
		return give(out, t.Create(ctx, actor.From(ctx), in.access(), in.Name, in.Body.Algorithm))
	})
	huma.Register(api, operation("read-key", http.MethodGet, "", "Read a key's versions and public keys"), func(ctx context.Context, in *readInput) (*keyOutput, error) {
		algorithm, versions, err := t.Read(ctx, actor.From(ctx), in.access(), in.Name)
		out := &keyOutput{}
		out.Body.Name, out.Body.Algorithm = in.Name, algorithm
		for _, v := range versions {
			out.Body.Versions = append(out.Body.Versions, KeyVersionView{v.Version, v.State, v.MadeAt, v.Public})
		}
		return give(out, err)
	})
	huma.Register(api, operation("rotate-key", http.MethodPost, "/rotate", "Make the next version of a key"), func(ctx context.Context, in *rotateInput) (*createOutput, error) {
		version, err := t.Rotate(ctx, actor.From(ctx), in.access(), in.Name)
		out := &createOutput{}
		out.Body.Name, out.Body.Version = in.Name, version
		return give(out, err)
	})
	huma.Register(api, operation("destroy-key-version", http.MethodPost, "/versions/{version}/destroy", "Destroy an older version of a key for good"), func(ctx context.Context, in *versionInput) (*destroyOutput, error) {
		scrubbed, err := t.Destroy(ctx, actor.From(ctx), in.access(), in.Name, in.Version)
		out := &destroyOutput{}
		out.Body.Name, out.Body.Version, out.Body.Scrubbed = in.Name, in.Version, scrubbed
		return give(out, err)
	})
	huma.Register(api, operation("compromise-key-version", http.MethodPost, "/versions/{version}/compromise", "Mark a version of a key as known to others"), func(ctx context.Context, in *versionInput) (*createOutput, error) {
		newest, err := t.Compromise(ctx, actor.From(ctx), in.access(), in.Name, in.Version)
		out := &createOutput{}
		out.Body.Name, out.Body.Version = in.Name, newest
		return give(out, err)
	})
	t.registerBatches(api, operation)
	huma.Register(api, operation("encrypt", http.MethodPost, "/encrypt", "Encrypt"), func(ctx context.Context, in *encryptInput) (*ciphertextOutput, error) {
		ciphertext, err := t.Encrypt(ctx, actor.From(ctx), in.access(), in.Name, in.Body.Plaintext, in.Body.Context)
		out := &ciphertextOutput{CacheControl: noStore}
		out.Body.Ciphertext = ciphertext
		return give(out, err)
	})
	huma.Register(api, operation("decrypt", http.MethodPost, "/decrypt", "Decrypt"), func(ctx context.Context, in *ciphertextInput) (*plaintextOutput, error) {
		plaintext, err := t.Decrypt(ctx, actor.From(ctx), in.access(), in.Name, in.Body.Ciphertext, in.Body.Context)
		out := &plaintextOutput{CacheControl: noStore}
		out.Body.Plaintext = plaintext
		return give(out, err)
	})
	huma.Register(api, operation("rewrap", http.MethodPost, "/rewrap", "Encrypt anew with the newest version"), func(ctx context.Context, in *ciphertextInput) (*ciphertextOutput, error) {
		ciphertext, err := t.Rewrap(ctx, actor.From(ctx), in.access(), in.Name, in.Body.Ciphertext, in.Body.Context)
		out := &ciphertextOutput{CacheControl: noStore}
		out.Body.Ciphertext = ciphertext
		return give(out, err)
	})
	huma.Register(api, operation("mac", http.MethodPost, "/mac", "Authenticate a message"), func(ctx context.Context, in *messageInput) (*macOutput, error) {
		mac, err := t.MAC(ctx, actor.From(ctx), in.access(), in.Name, in.Body.Message, in.Body.Context)
		out := &macOutput{CacheControl: noStore}
		out.Body.MAC = mac
		return give(out, err)
	})
	huma.Register(api, operation("verify-mac", http.MethodPost, "/verify-mac", "Check a message's authentication code"), func(ctx context.Context, in *verifyMACInput) (*validOutput, error) {
		valid, err := t.VerifyMAC(ctx, actor.From(ctx), in.access(), in.Name, in.Body.Message, in.Body.Context, in.Body.MAC)
		out := &validOutput{}
		out.Body.Valid = valid
		return give(out, err)
	})
	huma.Register(api, operation("sign", http.MethodPost, "/sign", "Sign a message"), func(ctx context.Context, in *messageInput) (*signatureOutput, error) {
		signature, err := t.Sign(ctx, actor.From(ctx), in.access(), in.Name, in.Body.Message, in.Body.Context)
		out := &signatureOutput{CacheControl: noStore}
		out.Body.Signature = signature
		return give(out, err)
	})
	huma.Register(api, operation("verify", http.MethodPost, "/verify", "Verify a signature"), func(ctx context.Context, in *verifyInput) (*validOutput, error) {
		valid, err := t.Verify(ctx, actor.From(ctx), in.access(), in.Name, in.Body.Message, in.Body.Context, in.Body.Signature)
		out := &validOutput{}
		out.Body.Valid = valid
		return give(out, err)
	})
}

// registerBatches adds the operations on many messages at once.
func (t *Transit) registerBatches(api huma.API, operation func(id, method, path, summary string) huma.Operation) {
	batch := func(verb, summary string) huma.Operation {
		o := operation(verb+"-batch", http.MethodPost, "", summary)
		o.Path, o.MaxBodyBytes, o.BodyReadTimeout = BatchPath+"{name}/"+verb, MaxBatchBody, 10*time.Second
		o.Errors = append(o.Errors, http.StatusRequestEntityTooLarge)
		return o
	}
	huma.Register(api, batch("encrypt", "Encrypt many plaintexts with one event"), func(ctx context.Context, in *plaintextsInput) (*itemsOutput, error) {
		items := make([]Item, len(in.Body.Items))
		for i, v := range in.Body.Items {
			items[i] = Item{Message: v.Plaintext, Context: v.Context}
		}
		done, err := t.EncryptBatch(ctx, actor.From(ctx), in.access(), in.Name, items)
		return give(answerItems(done, func(d Done) ItemView { return ItemView{Ciphertext: d.Text} }), err)
	})
	huma.Register(api, batch("decrypt", "Decrypt many ciphertexts with one event"), func(ctx context.Context, in *ciphertextsInput) (*itemsOutput, error) {
		done, err := t.DecryptBatch(ctx, actor.From(ctx), in.access(), in.Name, in.items())
		return give(answerItems(done, func(d Done) ItemView { return ItemView{Plaintext: (*Base64)(&d.Plaintext)} }), err)
	})
	huma.Register(api, batch("rewrap", "Encrypt many ciphertexts anew with one event"), func(ctx context.Context, in *ciphertextsInput) (*itemsOutput, error) {
		done, err := t.RewrapBatch(ctx, actor.From(ctx), in.access(), in.Name, in.items())
		return give(answerItems(done, func(d Done) ItemView { return ItemView{Ciphertext: d.Text} }), err)
	})
	huma.Register(api, batch("mac", "Authenticate many messages with one event"), func(ctx context.Context, in *messagesInput) (*itemsOutput, error) {
		done, err := t.MACBatch(ctx, actor.From(ctx), in.access(), in.Name, in.items())
		return give(answerItems(done, func(d Done) ItemView { return ItemView{MAC: d.Text} }), err)
	})
	huma.Register(api, batch("sign", "Sign many messages with one event"), func(ctx context.Context, in *messagesInput) (*itemsOutput, error) {
		done, err := t.SignBatch(ctx, actor.From(ctx), in.access(), in.Name, in.items())
		return give(answerItems(done, func(d Done) ItemView { return ItemView{Signature: d.Text} }), err)
	})
}

func (in *messagesInput) items() []Item {
	items := make([]Item, len(in.Body.Items))
	for i, v := range in.Body.Items {
		items[i] = Item{Message: v.Message, Context: v.Context}
	}
	return items
}

func (in *ciphertextsInput) items() []Item {
	items := make([]Item, len(in.Body.Items))
	for i, v := range in.Body.Items {
		items[i] = Item{Text: v.Ciphertext, Context: v.Context}
	}
	return items
}

// give answers with out unless there is an error.
func give[T any](out *T, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return out, nil
}
