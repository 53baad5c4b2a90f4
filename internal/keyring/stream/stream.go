// Package stream encrypts what is too large to be sealed at once: in chunks, so that it can be written
// and read in bounded memory, and so that no plaintext is released that was not authenticated.
//
// It is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and
// its Nonce-Reuse Misuse-Resistance, 2015) in the shape that age gives it, with AES-256-GCM: chunks of 64
// KiB of plaintext, each sealed under one key with a nonce that counts the chunks and says which is the
// last. A chunk that is missing, repeated, moved, cut or added makes opening fail; so does an end that
// comes too early. A Reader has said io.EOF only when it has seen the whole.
//
// The key of a stream is derived by HKDF-SHA-256 (RFC 5869) from a random file key that serves this one
// stream and no other; whoever keeps the stream seals the file key. What the stream is (the context) goes
// into the derivation. The package is pure: no I/O but the functions that it is given, no clock.
//
// Nonce: 11 bytes of the chunk's number, big endian, and one byte, 1 for the last chunk and 0 for
// others. All chunks but the last hold exactly ChunkSize bytes; the last may be shorter, and is empty only
// when it is the only one.
package stream

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// KeySize is the length of a file key in bytes.
	KeySize = 32
	// ChunkSize is how many bytes of plaintext a chunk holds.
	ChunkSize = 64 << 10
	// Overhead is how many bytes longer a sealed chunk is than its plaintext.
	Overhead = 16

	nonceSize = 12
	lastFlag  = 1
	keyLabel  = "strongroom stream v1 "
)

// ErrOpen means that the stream was altered, cut or put together anew, or belongs to another key or
// context.
var ErrOpen = errors.New("stream: it does not open here")

// NewFileKey returns a fresh file key, for one stream.
func NewFileKey() []byte {
	key := make([]byte, KeySize)
	rand.Read(key)
	return key
}

// Chunks returns how many chunks a stream of n bytes has.
func Chunks(n int64) int64 { return max(1, (n+ChunkSize-1)/ChunkSize) }

type chunks struct {
	aead  cipher.AEAD
	nonce [nonceSize]byte
	count uint64
}

func newChunks(fileKey []byte, context string) (chunks, error) {
	if len(fileKey) != KeySize {
		return chunks{}, fmt.Errorf("stream: a file key has %d bytes, not %d", KeySize, len(fileKey))
	}
	key, err := hkdf.Key(sha256.New, fileKey, nil, keyLabel+context, KeySize)
	if err != nil {
		return chunks{}, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return chunks{}, err
	}
	c := chunks{}
	c.aead, err = cipher.NewGCM(block)
	return c, err
}

// next returns the nonce of the next chunk.
func (c *chunks) next(last bool) []byte {
	binary.BigEndian.PutUint64(c.nonce[nonceSize-9:], c.count)
	c.nonce[nonceSize-1] = 0
	if last {
		c.nonce[nonceSize-1] = lastFlag
	}
	c.count++
	return c.nonce[:]
}

// Writer seals what is written to it. It is not safe for concurrent use.
type Writer struct {
	chunks
	emit   func(chunk []byte) error
	plain  []byte
	sealed []byte
	err    error
}

var errClosed = errors.New("stream: written to after its end")

// NewWriter returns a Writer that gives each sealed chunk to emit, in order. The chunk is emit's only until
// it returns. A file key serves one Writer only: a second one would use the same nonces again.
func NewWriter(fileKey []byte, context string, emit func(chunk []byte) error) (*Writer, error) {
	c, err := newChunks(fileKey, context)
	if err != nil {
		return nil, err
	}
	return &Writer{chunks: c, emit: emit, plain: make([]byte, 0, ChunkSize)}, nil
}

// Write is part of io.Writer.
func (w *Writer) Write(b []byte) (n int, err error) {
	for len(b) > 0 && w.err == nil {
		// A full chunk is kept until more comes: it may be the last.
		if len(w.plain) == ChunkSize {
			if w.err = w.flush(false); w.err != nil {
				break
			}
		}
		take := min(len(b), ChunkSize-len(w.plain))
		w.plain = append(w.plain, b[:take]...)
		b = b[take:]
		n += take
	}
	return n, w.err
}

// Close seals the last chunk. Without it the stream does not open.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	if w.err = w.flush(true); w.err != nil {
		return w.err
	}
	w.err = errClosed
	return nil
}

func (w *Writer) flush(last bool) error {
	w.sealed = w.aead.Seal(w.sealed[:0], w.next(last), w.plain, nil)
	clear(w.plain)
	w.plain = w.plain[:0]
	return w.emit(w.sealed)
}

// Reader opens a stream. It is not safe for concurrent use.
type Reader struct {
	chunks
	fetch func() (chunk []byte, err error)
	plain []byte // opened and not read yet
	room  []byte
	ahead []byte // the chunk after, to know whether the present one is the last
	begun bool
	err   error
}

// NewReader returns a Reader that takes the sealed chunks, in order, from fetch, which returns io.EOF after
// the last. The Reader does not change a chunk, and needs it until the second call of fetch after it.
func NewReader(fileKey []byte, context string, fetch func() (chunk []byte, err error)) (*Reader, error) {
	c, err := newChunks(fileKey, context)
	if err != nil {
		return nil, err
	}
	return &Reader{chunks: c, fetch: fetch, room: make([]byte, 0, ChunkSize)}, nil
}

// Read is part of io.Reader. It returns only what was authenticated, io.EOF only after the last chunk, and
// ErrOpen for a stream that is not whole.
func (r *Reader) Read(b []byte) (int, error) {
	for len(r.plain) == 0 && r.err == nil {
		r.err = r.open()
	}
	if len(r.plain) == 0 {
		return 0, r.err
	}
	n := copy(b, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// WriteTo is part of io.WriterTo: it spares a copy.
func (r *Reader) WriteTo(w io.Writer) (written int64, err error) {
	for {
		if len(r.plain) > 0 {
			n, err := w.Write(r.plain)
			written += int64(n)
			r.plain = r.plain[n:]
			if err != nil {
				return written, err
			}
		}
		if r.err == nil {
			r.err = r.open()
		}
		if r.err != nil && len(r.plain) == 0 {
			if r.err == io.EOF {
				return written, nil
			}
			return written, r.err
		}
	}
}

func (r *Reader) pull() ([]byte, error) {
	chunk, err := r.fetch()
	if err == nil && (len(chunk) < Overhead || len(chunk) > ChunkSize+Overhead) {
		err = ErrOpen
	}
	return chunk, err
}

// open opens the next chunk; with the last it returns io.EOF when that holds nothing.
func (r *Reader) open() error {
	if !r.begun {
		r.begun = true
		first, err := r.pull()
		if err == io.EOF {
			return ErrOpen // even an empty stream has a chunk
		}
		if err != nil {
			return err
		}
		r.ahead = first
	}
	if r.ahead == nil {
		return io.EOF
	}
	chunk := r.ahead
	after, err := r.pull()
	last := err == io.EOF
	switch {
	case err != nil && !last:
		return err
	case !last && len(chunk) != ChunkSize+Overhead, last && len(chunk) == Overhead && r.count > 0:
		return ErrOpen
	}
	if r.ahead = after; last {
		r.ahead = nil
	}
	opened, err := r.aead.Open(r.room[:0], r.next(last), chunk, nil)
	if err != nil {
		return ErrOpen
	}
	r.plain = opened
	return nil
}

// Seal returns the sealed chunks of a stream that fits into memory, one after the other.
func Seal(fileKey []byte, context string, plaintext []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := NewWriter(fileKey, context, func(chunk []byte) error {
		_, err := out.Write(chunk)
		return err
	})
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plaintext); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Split returns a function for NewReader that cuts a stream of chunks, as Seal returns it, into its chunks.
func Split(sealed []byte) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(sealed) == 0 {
			return nil, io.EOF
		}
		n := min(len(sealed), ChunkSize+Overhead)
		chunk := sealed[:n]
		sealed = sealed[n:]
		return chunk, nil
	}
}
