package witness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Client asks a witness.
type Client struct {
	Verifier note.Verifier // of the witness
	URL      string        // its submission prefix
	HTTP     *http.Client  // nil means one with a time limit of 10 s that follows no redirects
}

var defaultHTTP = &http.Client{
	Timeout:       10 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Add sends the request and returns the line with which the witness has cosigned its checkpoint, checked.
// It fails with a *Refusal when the witness does not; any other error says that it was not reached, or has
// answered what it should not.
func (c Client) Add(ctx context.Context, r Request) (line string, err error) {
	ask, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.URL, "/")+"/add-checkpoint", bytes.NewReader(r.Text()))
	if err != nil {
		return "", err
	}
	ask.Header.Set("Content-Type", "text/plain; charset=utf-8")
	client := c.HTTP
	if client == nil {
		client = defaultHTTP
	}
	answer, err := client.Do(ask)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	if err != nil {
		return "", err
	}
	switch s := answer.StatusCode; {
	case s == http.StatusOK:
	case s == http.StatusConflict && answer.Header.Get("Content-Type") == sizeType:
		known, err := strconv.ParseInt(strings.TrimSuffix(string(body), "\n"), 10, 64)
		if err != nil || known < 0 {
			return "", errors.New("the witness answers 409 without the size that it knows")
		}
		return "", &Refusal{s, "", known}
	case s == http.StatusBadRequest, s == http.StatusForbidden, s == http.StatusNotFound, s == http.StatusConflict, s == http.StatusUnprocessableEntity:
		return "", &Refusal{s, "the witness refuses the checkpoint", -1}
	default:
		return "", fmt.Errorf("the witness answers %s", answer.Status)
	}
	// Of the lines that it has sent, the one counts that its key made.
	body = bytes.TrimSuffix(body, []byte("\n"))
	text, _, ok := strings.Cut(string(r.Checkpoint), "\n\n")
	if !ok {
		return "", errRequest
	}
	n, err := note.Open([]byte(text+"\n\n"+string(body)+"\n"), note.VerifierList(c.Verifier))
	if err != nil {
		return "", fmt.Errorf("the witness has not cosigned: %w", err)
	}
	return "— " + n.Sigs[0].Name + " " + n.Sigs[0].Base64 + "\n", nil
}
