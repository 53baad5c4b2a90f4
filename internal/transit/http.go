package transit

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
)

// Call is what every request carries. It is exported because huma looks only into exported fields.
type Call struct {
	Name    string `path:"name" doc:"The key's name." example:"payments"`
	Purpose string `header:"Strongroom-Purpose" doc:"Why this is done: a slug that policies decide on and the trail keeps. Needed." example:"payment"`
}

func (c Call) access() Access { return Access{Purpose: c.Purpose} }

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
		Plaintext []byte `json:"plaintext" maxLength:"43692" doc:"At most 32 KiB, base64."`
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
		Plaintext []byte `json:"plaintext"`
	}
}

type messageInput struct {
	Call
	Body struct {
		Message []byte `json:"message" maxLength:"43692" doc:"At most 32 KiB, base64."`
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
		Message []byte `json:"message" maxLength:"43692"`
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
		Message   []byte `json:"message" maxLength:"43692"`
		Context   string `json:"context,omitempty" maxLength:"1024"`
		Signature string `json:"signature" maxLength:"160"`
	}
}

type validOutput struct {
	Body struct {
		Valid bool `json:"valid"`
	}
}

const noStore = "no-store"

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

// give answers with out unless there is an error.
func give[T any](out *T, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return out, nil
}
