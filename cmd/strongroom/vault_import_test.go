package main

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// Whatever comes in, rows come out in order with the number of their line, lines that are none are
// said to be none without repeating them, and the end comes.
func FuzzRows(f *testing.F) {
	f.Add("customer,key,name\n1,main,\"Ada\nL\"\n2,main\n", true)
	f.Add("\ufeffcustomer\n\"", true)
	f.Add(`{"customer":"a","fields":{}}`+"\n\n{\"customer\":1}\nx", false)
	f.Add(strings.Repeat("x", maxLine+1)+"\n{\"customer\":\"a\",\"fields\":{\"b\":1}}", false)
	f.Fuzz(func(t *testing.T, text string, isCSV bool) {
		format := "ndjson"
		if isCSV {
			format = "csv"
		}
		next, err := rowReader(strings.NewReader(text), format)
		if err != nil {
			return
		}
		last := int64(0)
		for range len(text) + 2 {
			row, err := next()
			var bad errRow
			line := row.Line
			switch {
			case err == io.EOF:
				return
			case errors.As(err, &bad):
				line = bad.line
			case err != nil:
				return // of CSV that cannot be read on
			}
			if line <= last {
				t.Fatalf("line %d after line %d", line, last)
			}
			last = line
		}
		t.Fatal("it does not end")
	})
}

func TestLongLines(t *testing.T) {
	next, err := rowReader(strings.NewReader(strings.Repeat("x", 3*maxLine)+"\n"+`{"customer":"a","fields":{"b":1}}`), "ndjson")
	if err != nil {
		t.Fatal(err)
	}
	var bad errRow
	if _, err := next(); !errors.As(err, &bad) || bad.line != 1 {
		t.Errorf("a long line: %v", err)
	}
	if row, err := next(); err != nil || row.Line != 2 || row.External != "a" {
		t.Errorf("the line after: %+v, %v", row, err)
	}
	if _, err := next(); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
}
