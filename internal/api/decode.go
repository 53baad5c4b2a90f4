package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxDepth is how deep a body may nest. No operation needs more, and the checks stay cheap.
const maxDepth = 16

// The faults of a body as a whole. Their texts go to the caller, so none repeats what was sent.
var (
	errUTF8     = errors.New("it is not valid UTF-8")
	errJSON     = errors.New("it is not valid JSON")
	errRepeated = errors.New("it has a member twice")
	errDepth    = fmt.Errorf("it nests deeper than %d levels", maxDepth)
	errShape    = errors.New("a value has another type or size than this operation takes")
)

// unmarshal reads a request body. encoding/json alone would replace broken UTF-8 and keep the last
// of two equal members, so that two readers of one body could see two different things
// (RFC 8259 section 4); both are refused here.
func unmarshal(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errUTF8
	}
	if !json.Valid(data) {
		return errJSON
	}
	if err := unique(json.NewDecoder(bytes.NewReader(data)), 0); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return errShape
	}
	return nil
}

// unique reads one JSON value and refuses repeated members and deep nesting.
func unique(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return errDepth
	}
	token, err := d.Token()
	if err != nil {
		return errJSON
	}
	open, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	var seen map[string]bool
	if open == '{' {
		seen = map[string]bool{}
	}
	for d.More() {
		if seen != nil {
			token, err := d.Token()
			if err != nil {
				return errJSON
			}
			name, _ := token.(string)
			if seen[name] {
				return errRepeated
			}
			seen[name] = true
		}
		if err := unique(d, depth+1); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return errJSON
	}
	return nil
}
