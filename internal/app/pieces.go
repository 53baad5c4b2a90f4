package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// piece is one line of an answer that is too long for one piece: some of it, its end, or why it was cut short.
type piece[T any] struct {
	Some  T      `json:"some,omitempty"`
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

// sendPieces answers a command with what do sends.
func sendPieces[A, T any](c *control, do func(ctx context.Context, o operator, ask A, send func(T) error) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out := json.NewEncoder(w)
		var ask A
		err := json.NewDecoder(io.LimitReader(r.Body, maxAsk)).Decode(&ask)
		if err == nil {
			err = do(r.Context(), c.by(r), ask, func(some T) error { return out.Encode(piece[T]{Some: some}) })
		}
		last := piece[T]{End: true}
		if err != nil {
			last = piece[T]{Error: err.Error()}
			c.log.ErrorContext(r.Context(), "control command failed", "path", r.URL.Path, "error", err)
		}
		_ = out.Encode(last) // the command may have gone; there is nobody to tell
	}
}

// takePieces asks a running server, and gives take what sendPieces sends.
func takePieces[T any](ctx context.Context, d *dialled, path string, ask any, take func(T) error) error {
	body, write := io.Pipe()
	go func() { write.CloseWithError(json.NewEncoder(write).Encode(ask)) }()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://strongroom"+path, body)
	if err != nil {
		return err
	}
	answer, err := d.client.Do(r)
	if err != nil {
		return fmt.Errorf("the running server did not answer: %w", err)
	}
	defer answer.Body.Close()
	for pieces := json.NewDecoder(answer.Body); ; {
		var p piece[T]
		if err := pieces.Decode(&p); err != nil {
			return fmt.Errorf("the running server stopped in the middle of its answer; ask again: %w", err)
		}
		switch {
		case p.Error != "":
			return errors.New(p.Error)
		case p.End:
			return nil
		}
		if err := take(p.Some); err != nil {
			return err
		}
	}
}
