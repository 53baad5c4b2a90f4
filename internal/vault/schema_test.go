package vault

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

const thing = `{"name": "thing", "purposes": ["test"], "schema": `

func TestParseCollectionRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                                            "neither YAML nor JSON",
		`[]`:                                           "neither YAML nor JSON",
		`{name: thing, name: thing}`:                   "neither YAML nor JSON",
		`{name: thing, colour: red}`:                   `unknown field "colour"`,
		`{name: thing, limit: many}`:                   "limit: must be a int",
		`{name: T}`:                                    "name: use 1 to 64",
		`{name: thing, retention: 30}`:                 "retention: must be a string",
		`{name: thing, retention: 9y}`:                 "collections[thing].retention: write days or hours",
		`{name: thing, retention: 999999d}`:            "collections[thing].retention: write whole days",
		`{name: thing}`:                                "collections[thing].schema: is missing",
		thing + `[]}`:                                  "schema: must be an object",
		thing + `{"type": "array"}}`:                   "schema.type: must be object",
		thing + `{"additionalProperties": true}}`:      "schema.additionalProperties: must be false",
		thing + `{"patternProperties": {}}}`:           "schema.patternProperties: list the fields",
		thing + `{"$ref": "https://example.com/s"}}`:   "schema.$ref: references are not taken",
		thing + `{"allOf": [{"not": {"$ref": "#"}}]}}`: "schema.allOf[0].not.$ref: references are not taken",
		thing + `{"$schema": "http://json-schema.org/draft-07/schema#"}}`:                                                        "schema.$schema: must be https://json-schema.org/draft/2020-12/schema",
		thing + `{"required": ["a"]}}`:                                                                                           `schema.required: "a" is no field`,
		thing + `{"properties": {"a": true}}}`:                                                                                   "schema.properties.a: must be a schema",
		thing + `{"properties": {"a": {"type": "string"}}}}`:                                                                     "schema.properties.a.x-strongroom: is missing",
		thing + `{"properties": {"a": {"type": "object", "x-strongroom": {}}}}}`:                                                 "schema.properties.a.type: must be string, integer",
		thing + `{"properties": {"a": {"type": ["string", "null"], "x-strongroom": {}}}}}`:                                       "schema.properties.a.type: must be string, integer",
		thing + `{"properties": {"a": {"type": "string", "maxlength": 3, "x-strongroom": {}}}}}`:                                 "schema.properties.a.maxlength: is no keyword",
		thing + `{"properties": {"a": {"type": "string", "format": "uri", "x-strongroom": {}}}}}`:                                "schema.properties.a.format: use one of bic",
		thing + `{"properties": {"a": {"type": "string", "x-strongroom": {"masc": "all"}}}}}`:                                    `schema.properties.a.x-strongroom: unknown field "masc"`,
		thing + `{"not": ` + strings.Repeat(`{"not": `, 20) + `{}` + strings.Repeat(`}`, 22):                                     "is nested deeper than",
		strings.Repeat(" ", MaxDeclaration+1):                                                                                    "is larger than",
		"{name: thing, purposes: [p], x: &x " + strings.Repeat("y", 30000) + ", description: *x, schema: {a: *x, b: *x, c: *x}}": "is larger than",
	} {
		if _, err := ParseCollection([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: got %v, want %q", text, err, want)
		}
	}
	// These are found when the declaration is compiled.
	for schema, want := range map[string]string{
		`{}`: "fields: is empty",
		`{"properties": {"a": {"type": "string", "pattern": "(?=x)", "x-strongroom": {"sensitivity": "personal"}}}}`:                 "schema: is no JSON Schema",
		`{"properties": {"a": {"type": "string", "minLength": "x", "x-strongroom": {"sensitivity": "personal"}}}}`:                   "schema: is no JSON Schema",
		`{"properties": {"a": {"type": "string", "x-strongroom": {"sensitivity": "secret"}}}}`:                                       "sensitivity: use one of",
		`{"properties": {"a": {"type": "string", "x-strongroom": {"sensitivity": "special", "mask": "none"}}}}`:                      "must not be shown whole",
		`{"properties": {"a": {"type": "string", "x-strongroom": {"sensitivity": "personal", "purposes": ["marketing"]}}}}`:          "purposes[0]: is no purpose of the collection",
		`{"properties": {"a": {"type": "string", "x-strongroom": {"sensitivity": "personal", "legal_basis": "because"}}}}`:           "legal_basis: use one of consent",
		`{"properties": {"a": {"type": "string", "maxLength": 1e300, "x-strongroom": {"sensitivity": "personal", "purposes": []}}}}`: "max_length: must be between",
	} {
		c, err := ParseCollection([]byte(thing + schema + "}"))
		if err == nil {
			err = Validate([]Collection{c})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", schema, err, want)
		}
	}
}

// Each rule of a schema is told by field and rule, never by value.
func TestSchemaRules(t *testing.T) {
	c, err := ParseCollection([]byte(thing + `{
		"type": "object", "required": ["kind"],
		"properties": {
			"kind": {"enum": ["person", "company"], "type": "string", "x-strongroom": {"sensitivity": "public"}},
			"age": {"type": "integer", "minimum": 18, "maximum": 120, "x-strongroom": {"sensitivity": "personal"}},
			"step": {"type": "number", "multipleOf": 0.5, "exclusiveMinimum": 0, "exclusiveMaximum": 10, "x-strongroom": {"sensitivity": "personal"}},
			"code": {"type": "string", "minLength": 3, "maxLength": 5, "pattern": "^[A-Z]+$", "x-strongroom": {"sensitivity": "personal"}},
			"fixed": {"type": "boolean", "const": true, "x-strongroom": {"sensitivity": "personal"}},
			"iban": {"type": "string", "format": "iban", "x-strongroom": {"sensitivity": "financial"}}
		},
		"dependentRequired": {"iban": ["code"]},
		"if": {"properties": {"kind": {"const": "person"}}}, "then": {"required": ["age"]},
		"not": {"required": ["step", "code"]},
		"maxProperties": 4
	}}`))
	if err != nil {
		t.Fatal(err)
	}
	s := compiled(t, c)
	for body, want := range map[string][]string{
		`{"kind": "company"}`:           nil,
		`{"kind": "person", "age": 18}`: nil,
		`{"kind": "company", "iban": "GB33 BUKB 2020 1555 5555 55", "code": "ABC"}`: nil,
		`{"kind": "4711"}`:                                      {"kind is none of the values"},
		`{"kind": "person"}`:                                    {"age is required with these fields"},
		`{"kind": "person", "age": 17}`:                         {"age must be at least 18"},
		`{"kind": "person", "age": 4711}`:                       {"age must be at most 120"},
		`{"kind": "company", "step": 0}`:                        {"step must be more than 0"},
		`{"kind": "company", "step": 10}`:                       {"step must be less than 10"},
		`{"kind": "company", "step": 0.4711}`:                   {"step must be a multiple of 1/2"},
		`{"kind": "company", "code": "4711"}`:                   {"code does not have the form"},
		`{"kind": "company", "code": "AB"}`:                     {"code must be at least 3 characters"},
		`{"kind": "company", "code": "ABCDEFG"}`:                {"code must be at most 5 characters"},
		`{"kind": "company", "fixed": false}`:                   {"fixed is none of the values"},
		`{"kind": "company", "iban": "GB33BUKB20201555555555"}`: {"code is required together with iban"},
		`{"kind": "company", "step": 1, "code": "ABC"}`:         {" breaks a rule of this collection (not)"},
		`{"kind": "company", "age": 20, "fixed": true, "code": "ABC", "iban": "GB33BUKB20201555555555"}`: {" breaks a rule of this collection (maxProperties)"},
	} {
		_, p := s.decode([]byte(body))
		var got []string
		if p != nil {
			text, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "4711") {
				t.Errorf("%s: the answer repeats a value: %s", body, text)
			}
			for _, e := range p.Member("errors").([]FieldError) {
				got = append(got, e.Field+" "+e.Message)
			}
		}
		if len(got) != len(want) || !slices.EqualFunc(got, want, strings.HasPrefix) {
			t.Errorf("%s: got %q, want %q", body, got, want)
		}
	}
}

// The example of docs/vault.md is one that works.
func TestDocumentedCollection(t *testing.T) {
	doc, err := os.ReadFile("../../docs/vault.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "```yaml\n")
	text, _, ok := strings.Cut(rest, "```")
	c, err := ParseCollection([]byte(text))
	if !ok || err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	s := compiled(t, c)
	if _, p := s.decode([]byte(`{"name": "Ada", "iban": "GB33BUKB20201555555555", "kind": "person"}`)); p != nil {
		t.Error(p)
	}
	if _, p := s.decode([]byte(`{"name": "Ada", "iban": "GB33BUKB20201555555555", "kind": "company"}`)); p == nil {
		t.Error("a company without a reference was taken")
	}
}

// What is written down reads back as the same, and what ships is no exception.
func TestDeclarationComesBack(t *testing.T) {
	for _, c := range append(Defaults(), everyType()) {
		s := compiled(t, c)
		text, err := json.Marshal(s.Collection)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseCollection(text)
		if err != nil {
			t.Fatal(err)
		}
		if second := compiled(t, again); content(second.Collection) != content(s.Collection) || len(second.fields) != len(s.fields) {
			t.Errorf("%s came back as\n%s", text, content(again))
		}
	}
}

// No declaration from outside makes the program panic or run away, and one that is taken can be written down
// and used.
func FuzzParseCollection(f *testing.F) {
	for _, c := range append(Defaults(), everyType()) {
		text, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, []byte(`{"a": "b"}`))
	}
	f.Add([]byte("name: thing\npurposes: [p]\nschema:\n  properties:\n    a: {type: string, format: iban, x-strongroom: {sensitivity: financial, mask: iban}}\n  if: {required: [a]}\n  then: false\n"), []byte(`{"a": "GB33BUKB20201555555555"}`))
	f.Add([]byte("a: &a [*a]"), []byte(`{}`))
	f.Add([]byte(thing+`{"properties": {"a": {"type": "number", "multipleOf": 1e-300, "x-strongroom": {"sensitivity": "public"}}}}}`), []byte(`{"a": 1}`))
	f.Fuzz(func(t *testing.T, text, record []byte) {
		c, err := ParseCollection(text)
		if err != nil {
			return
		}
		m, err := compile([]Collection{c})
		if err != nil {
			return
		}
		s := m[c.Name]
		again, err := ParseCollection([]byte(content(s.Collection)))
		if err != nil || content(again) != content(s.Collection) {
			t.Fatalf("does not come back: %v\n%s\n%s", err, content(s.Collection), content(again))
		}
		if values, p := s.decode(record); p == nil {
			if _, p := s.decode(encode(values)); p != nil {
				t.Fatalf("a record that was taken is refused when it is written again: %v", p)
			}
		}
	})
}
