package api

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestUnmarshal(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("[", n) + "1" + strings.Repeat("]", n) }
	for _, row := range []struct {
		body string
		want error
	}{
		{`{"a":1,"b":{"a":2},"c":[{"a":3},{"a":4}]}`, nil},
		{`{"a":"x:\"{[","b\\\"":":"}`, nil},
		{`  [ ] `, nil},
		{`"a"`, nil},
		{`{"a":1,"a":1}`, errRepeated},
		{`{"a":1,"\u0061":1}`, errRepeated},
		{`[{"b":{"a":1,"c":0,"a":2}}]`, errRepeated},
		{`{"a":{"x":1,"x":2},"b":{"y":1}}`, errRepeated},
		{`{"a":{"x":1},"a":1}`, errRepeated},
		{`{"a":"` + "\xff" + `"}`, errUTF8},
		{`{"a":1`, errJSON},
		{`{"a":1}x`, errJSON},
		{``, errJSON},
		{nested(maxDepth), nil},
		{nested(maxDepth + 1), errDepth},
	} {
		var tree any
		if err := unmarshal([]byte(row.body), &tree); err != row.want {
			t.Errorf("%.60s: %v instead of %v", row.body, err, row.want)
		}
		var raw json.RawMessage
		if err := unmarshal([]byte(row.body), &raw); err != row.want {
			t.Errorf("%.60s into a type: %v instead of %v", row.body, err, row.want)
		}
	}
	var number int
	if err := unmarshal([]byte(`"x"`), &number); err != errShape {
		t.Error(err)
	}
}

// FuzzRepeated holds the count of members against a reading of the text token by token.
func FuzzRepeated(f *testing.F) {
	for _, body := range []string{`{"a":1,"a":2}`, `{"a":{"b":[1,{"c":"\":{"}]}}`, `[]`, `{"\u0061":1,"a":2}`, `{"a":1}{`, "\xff", `{"":0,"":0}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var tree any
		err := unmarshal(body, &tree)
		if err != nil && err != errRepeated {
			return
		}
		d := json.NewDecoder(strings.NewReader(string(body)))
		if twice := repeated(t, d); twice != (err == errRepeated) {
			t.Errorf("%q: %v", body, err)
		}
	})
}

// repeated reads one value and reports whether an object in it has a member twice.
func repeated(t *testing.T, d *json.Decoder) bool {
	token, err := d.Token()
	if err != nil {
		t.Fatal(err)
	}
	open, ok := token.(json.Delim)
	if !ok {
		return false
	}
	seen, twice := map[any]bool{}, false
	for d.More() {
		if open == '{' {
			name, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			twice = twice || seen[name]
			seen[name] = true
		}
		twice = repeated(t, d) || twice
	}
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	return twice
}
