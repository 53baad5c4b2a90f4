package api

import (
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
	tree, whole := v.(*any)
	if !whole {
		tree = new(any)
	}
	if err := json.Unmarshal(data, tree); err != nil {
		if !json.Valid(data) {
			return errJSON
		}
		return errShape
	}
	// Of members with one name, whichever way it is written, the tree holds the last: it has fewer than the text.
	written, depth := structure(data)
	switch {
	case depth > maxDepth:
		return errDepth
	case written != members(*tree):
		return errRepeated
	case whole:
		return nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		return errShape
	}
	return nil
}

// structure returns how many members the objects of a valid JSON text have, and how deep it nests.
func structure(data []byte) (members, depth int) {
	open := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case ':':
			members++
		case '{', '[':
			open++
			depth = max(depth, open)
		case '}', ']':
			open--
		}
	}
	return members, depth
}

// members returns how many members the objects of a decoded JSON value have.
func members(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		n = len(v)
		for _, inner := range v {
			n += members(inner)
		}
	case []any:
		for _, inner := range v {
			n += members(inner)
		}
	}
	return n
}
