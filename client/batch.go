package client

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
)

// Message is a plaintext or message of a batch: at most 32 KiB, with what it belongs to.
type Message struct {
	Data    []byte
	Context string
}

// Sealed is a ciphertext of a batch, with the context that it was made for.
type Sealed struct {
	Ciphertext string `json:"ciphertext"`
	Context    string `json:"context,omitempty"`
}

// Opened is what came of one ciphertext of a batch.
type Opened struct {
	Plaintext []byte
	Err       error // a *Problem such as ErrDoesNotOpen; nil when there is a plaintext
}

// Rewrapped is what came of one ciphertext of a batch.
type Rewrapped struct {
	Ciphertext string
	Err        error // a *Problem such as ErrDoesNotOpen; nil when there is a ciphertext
}

type batchPlaintext struct {
	Plaintext []byte `json:"plaintext"`
	Context   string `json:"context,omitempty"`
}

type batchMessage struct {
	Message []byte `json:"message"`
	Context string `json:"context,omitempty"`
}

type batchItem struct {
	Plaintext  []byte       `json:"plaintext"`
	Ciphertext string       `json:"ciphertext"`
	MAC        string       `json:"mac"`
	Signature  string       `json:"signature"`
	Problem    *itemProblem `json:"problem"`
}

// itemProblem is a problem in the place of an answer.
type itemProblem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func (p *itemProblem) problem() *Problem {
	return &Problem{Type: p.Type, Slug: Slug(strings.TrimPrefix(p.Type, urn)), Title: p.Title, Status: p.Status, Detail: p.Detail}
}

func (k NamedKey) batch(ctx context.Context, verb string, items any, n int) ([]batchItem, error) {
	var out struct {
		Results []batchItem `json:"results"`
	}
	if _, err := k.errand.ask(ctx, http.MethodPost, map[string]any{"items": items}, &out, nil, "batch", "keys", k.name, verb); err != nil {
		return nil, err
	}
	if len(out.Results) != n {
		return nil, errors.New("strongroom: the answer has another number of results")
	}
	return out.Results, nil
}

// texts does a verb that takes messages and fails as a whole.
func (k NamedKey) texts(ctx context.Context, verb string, messages []Message, text func(batchItem) string) ([]string, error) {
	in := make([]batchMessage, len(messages))
	for i, m := range messages {
		in[i] = batchMessage{*bytesOf(m.Data), m.Context}
	}
	results, err := k.batch(ctx, verb, in, len(in))
	return collect(results, text), err
}

func collect(results []batchItem, text func(batchItem) string) []string {
	var out []string
	for _, r := range results {
		out = append(out, text(r))
	}
	return out
}

// EncryptBatch returns the ciphertexts of up to 1000 plaintexts, 512 KiB in all, in their order. It is one
// event in the trail, and much cheaper than as many calls of Encrypt.
func (k NamedKey) EncryptBatch(ctx context.Context, plaintexts ...Message) ([]string, error) {
	in := make([]batchPlaintext, len(plaintexts))
	for i, m := range plaintexts {
		in[i] = batchPlaintext{*bytesOf(m.Data), m.Context}
	}
	results, err := k.batch(ctx, "encrypt", in, len(in))
	return collect(results, func(r batchItem) string { return r.Ciphertext }), err
}

// MACBatch returns the authentication codes of up to 1000 messages, like EncryptBatch.
func (k NamedKey) MACBatch(ctx context.Context, messages ...Message) ([]string, error) {
	return k.texts(ctx, "mac", messages, func(r batchItem) string { return r.MAC })
}

// SignBatch returns the signatures of up to 1000 messages, like EncryptBatch.
func (k NamedKey) SignBatch(ctx context.Context, messages ...Message) ([]string, error) {
	return k.texts(ctx, "sign", messages, func(r batchItem) string { return r.Signature })
}

// DecryptBatch returns the plaintexts of up to 1000 ciphertexts, like EncryptBatch. What does not open has an
// error of its own and does not keep the others.
func (k NamedKey) DecryptBatch(ctx context.Context, ciphertexts ...Sealed) ([]Opened, error) {
	results, err := k.batch(ctx, "decrypt", ciphertexts, len(ciphertexts))
	if err != nil {
		return nil, err
	}
	out := make([]Opened, len(results))
	for i, r := range results {
		if r.Problem != nil {
			out[i].Err = r.Problem.problem()
			continue
		}
		out[i].Plaintext = r.Plaintext
	}
	return out, nil
}

// RewrapBatch returns up to 1000 ciphertexts under the newest version of the key, like DecryptBatch.
func (k NamedKey) RewrapBatch(ctx context.Context, ciphertexts ...Sealed) ([]Rewrapped, error) {
	results, err := k.batch(ctx, "rewrap", ciphertexts, len(ciphertexts))
	if err != nil {
		return nil, err
	}
	out := make([]Rewrapped, len(results))
	for i, r := range results {
		if r.Problem != nil {
			out[i].Err = r.Problem.problem()
			continue
		}
		out[i].Ciphertext = r.Ciphertext
	}
	return out, nil
}

func versionPath(k NamedKey, version uint32, verb string) []string {
	return []string{"keys", k.name, "versions", strconv.FormatUint(uint64(version), 10), verb}
}

// DestroyVersion destroys an older version of the key for good: what only it opens is lost. It reports
// whether no file of the server's database holds it any more. The newest version cannot be destroyed
// (ErrKeyInUse).
func (k NamedKey) DestroyVersion(ctx context.Context, version uint32) (scrubbed bool, err error) {
	var out struct {
		Scrubbed bool `json:"scrubbed"`
	}
	_, err = k.errand.change(ctx, http.MethodPost, nil, nil, &out, versionPath(k, version, "destroy")...)
	return out.Scrubbed, err
}

// CompromiseVersion marks a version of the key as known to others and returns the newest version, which is
// made if need be. What it signed or authenticated is no longer valid; what it sealed still opens: rewrap it,
// then destroy the version.
func (k NamedKey) CompromiseVersion(ctx context.Context, version uint32) (newest uint32, err error) {
	var out struct {
		Version uint32 `json:"version"`
	}
	_, err = k.errand.change(ctx, http.MethodPost, nil, nil, &out, versionPath(k, version, "compromise")...)
	return out.Version, err
}
