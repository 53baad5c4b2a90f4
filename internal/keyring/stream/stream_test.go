package stream_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"strongroom/internal/keyring/stream"
)

const sealedChunk = stream.ChunkSize + stream.Overhead

func seal(t testing.TB, key []byte, context string, plain []byte) []byte {
	t.Helper()
	sealed, err := stream.Seal(key, context, plain)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func open(key []byte, context string, sealed []byte) ([]byte, error) {
	r, err := stream.NewReader(key, context, stream.Split(sealed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestLengths(t *testing.T) {
	for _, n := range []int{0, 1, 100, stream.ChunkSize - 1, stream.ChunkSize, stream.ChunkSize + 1, 3 * stream.ChunkSize, 3*stream.ChunkSize + 7} {
		key, plain := stream.NewFileKey(), random(n)
		sealed := seal(t, key, "here", plain)
		if want := n + int(stream.Chunks(int64(n)))*stream.Overhead; len(sealed) != want {
			t.Errorf("%d bytes become %d, not %d", n, len(sealed), want)
		}
		got, err := open(key, "here", sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", n, err)
		}
		var out bytes.Buffer
		r, err := stream.NewReader(key, "here", stream.Split(sealed))
		if err != nil {
			t.Fatal(err)
		}
		if written, err := r.WriteTo(&out); err != nil || written != int64(n) || !bytes.Equal(out.Bytes(), plain) {
			t.Errorf("%d bytes by WriteTo: %d, %v", n, written, err)
		}
		if n == 0 {
			continue // iotest wants to read something
		}
		if r, err = stream.NewReader(key, "here", stream.Split(sealed)); err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, plain); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// Whoever holds the chunks can cut, add, repeat, exchange, shorten and alter them: nothing of that opens
// to the end, and nothing is released before it that is not the beginning of what was sealed.
func TestNothingElseOpens(t *testing.T) {
	key := stream.NewFileKey()
	plain := random(4*stream.ChunkSize + 100)
	sealed := seal(t, key, "here", plain)
	other := seal(t, stream.NewFileKey(), "here", plain)
	chunk := func(b []byte, n int) []byte { return b[n*sealedChunk : min(len(b), (n+1)*sealedChunk)] }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	last := chunk(sealed, 4)
	for name, forged := range map[string][]byte{
		"nothing":                    nil,
		"without the last chunk":     sealed[:4*sealedChunk],
		"without the first chunk":    sealed[sealedChunk:],
		"without one in the middle":  join(sealed[:sealedChunk], sealed[2*sealedChunk:]),
		"cut within a chunk":         sealed[:2*sealedChunk+999],
		"cut within a tag":           sealed[:2*sealedChunk+3],
		"one byte less":              sealed[:len(sealed)-1],
		"one byte more":              join(sealed, []byte{0}),
		"two chunks exchanged":       join(chunk(sealed, 1), chunk(sealed, 0), sealed[2*sealedChunk:]),
		"a chunk twice":              join(chunk(sealed, 0), sealed),
		"the last chunk twice":       join(sealed, last),
		"a chunk after the last":     join(sealed[:4*sealedChunk], last, chunk(sealed, 0)),
		"an empty chunk at the end":  join(sealed, seal(t, key, "here", nil)),
		"a chunk of another stream":  join(chunk(other, 0), sealed[sealedChunk:]),
		"the stream of another key":  other,
		"the same in another place":  seal(t, key, "there", plain),
		"only the last chunk":        last,
		"the last chunk as a middle": join(sealed[:3*sealedChunk], last, chunk(sealed, 3)),
	} {
		got, err := open(key, "here", forged)
		if !errors.Is(err, stream.ErrOpen) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.HasPrefix(plain, got) {
			t.Errorf("%s: something else was released", name)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		forged := bytes.Clone(sealed)
		forged[rapid.IntRange(0, len(forged)-1).Draw(r, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
		if got, err := open(key, "here", forged); !errors.Is(err, stream.ErrOpen) || !bytes.HasPrefix(plain, got) {
			r.Fatalf("an altered bit: %v", err)
		}
	})
}

// However the plaintext is cut into writes, the stream is the same.
func TestWrites(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		key, plain := stream.NewFileKey(), random(rapid.IntRange(0, 3*stream.ChunkSize).Draw(r, "length"))
		var out bytes.Buffer
		w, err := stream.NewWriter(key, "", func(chunk []byte) error { out.Write(chunk); return nil })
		if err != nil {
			r.Fatal(err)
		}
		for rest := plain; len(rest) > 0; {
			n := min(len(rest), rapid.IntRange(1, 2*stream.ChunkSize).Draw(r, "write"))
			if _, err := w.Write(rest[:n]); err != nil {
				r.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			r.Fatal(err)
		}
		if want := seal(t, key, "", plain); !bytes.Equal(out.Bytes(), want) {
			r.Fatal("the chunks differ")
		}
	})
}

func TestMisuse(t *testing.T) {
	if _, err := stream.NewWriter(make([]byte, 16), "", nil); err == nil {
		t.Error("a key of 16 bytes is taken")
	}
	if _, err := stream.NewReader(nil, "", nil); err == nil {
		t.Error("no key is taken")
	}
	full := errors.New("full")
	w, err := stream.NewWriter(stream.NewFileKey(), "", func([]byte) error { return full })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 2*stream.ChunkSize)); !errors.Is(err, full) {
		t.Errorf("write: %v", err)
	}
	if err := w.Close(); !errors.Is(err, full) {
		t.Errorf("close after a failure: %v", err)
	}
	w, _ = stream.NewWriter(stream.NewFileKey(), "", func([]byte) error { return nil })
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("written to after its end")
	}
	if err := w.Close(); err == nil {
		t.Error("closed twice: a second last chunk would use a nonce again")
	}
	lost := errors.New("lost")
	r, err := stream.NewReader(stream.NewFileKey(), "", func() ([]byte, error) { return nil, lost })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, lost) {
		t.Errorf("read: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	key := make([]byte, stream.KeySize)
	good, err := stream.Seal(key, "fuzz", []byte("the plaintext"))
	if err != nil {
		f.Fatal(err)
	}
	two, err := stream.Seal(key, "fuzz", make([]byte, stream.ChunkSize+1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[1:])
	f.Add(two)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		plain, err := open(key, "fuzz", sealed)
		switch {
		case err != nil && !errors.Is(err, stream.ErrOpen):
			t.Fatal(err)
		case err == nil:
			// Under a key that the fuzzer cannot use, only what Seal made opens.
			if again := seal(t, key, "fuzz", plain); !bytes.Equal(again, sealed) {
				t.Fatal("two streams open to one plaintext")
			}
		}
	})
}

// BenchmarkStream seals and opens 8 MiB, beside raw AES-GCM over chunks of the same size.
func BenchmarkStream(b *testing.B) {
	const size = 8 << 20
	plain, key := random(size), stream.NewFileKey()
	sealed := seal(b, key, "", plain)
	block, err := aes.NewCipher(key)
	if err != nil {
		b.Fatal(err)
	}
	raw, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	out, nonce := make([]byte, 0, sealedChunk), make([]byte, raw.NonceSize())
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("seal/raw", func() error {
		for at := 0; at < size; at += stream.ChunkSize {
			raw.Seal(out, nonce, plain[at:at+stream.ChunkSize], nil)
		}
		return nil
	})
	run("seal/stream", func() error {
		w, err := stream.NewWriter(key, "", func([]byte) error { return nil })
		if err != nil {
			return err
		}
		if _, err := w.Write(plain); err != nil {
			return err
		}
		return w.Close()
	})
	chunks := make([][]byte, 0, size/stream.ChunkSize)
	for at := 0; at < size; at += stream.ChunkSize {
		chunks = append(chunks, raw.Seal(nil, nonce, plain[at:at+stream.ChunkSize], nil))
	}
	run("open/raw", func() error {
		for _, c := range chunks {
			if _, err := raw.Open(out, nonce, c, nil); err != nil {
				return err
			}
		}
		return nil
	})
	run("open/stream", func() error {
		r, err := stream.NewReader(key, "", stream.Split(sealed))
		if err != nil {
			return err
		}
		if n, err := r.WriteTo(io.Discard); err != nil || n != size {
			return fmt.Errorf("%d bytes: %w", n, err)
		}
		return nil
	})
}
