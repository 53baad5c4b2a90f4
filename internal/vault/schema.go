package vault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v4"
)

const (
	// MaxDeclaration is the largest declaration of a collection, in bytes.
	MaxDeclaration = 64 << 10
	// largestDepth is how deep a schema may be nested.
	largestDepth  = 16
	annotationKey = "x-strongroom"
	dialect       = "https://json-schema.org/draft/2020-12/schema"
)

// LegalBasis is why the law lets the operator keep something: GDPR article 6(1).
type LegalBasis string

// The legal bases, in the order of the article's points a to f.
const (
	Consent             LegalBasis = "consent"
	Contract            LegalBasis = "contract"
	LegalObligation     LegalBasis = "legal-obligation"
	VitalInterests      LegalBasis = "vital-interests"
	PublicTask          LegalBasis = "public-task"
	LegitimateInterests LegalBasis = "legitimate-interests"
)

var bases = []LegalBasis{Consent, Contract, LegalObligation, VitalInterests, PublicTask, LegitimateInterests}

// declaration is a Collection as it is written down, in YAML or JSON.
type declaration struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Version     int             `json:"version,omitempty"`
	Purposes    []string        `json:"purposes"`
	LegalBasis  LegalBasis      `json:"legal_basis,omitempty"`
	Retention   string          `json:"retention,omitempty"`
	Limit       int             `json:"limit,omitempty"`
	History     int             `json:"history,omitempty"`
	Schema      json.RawMessage `json:"schema"`
}

// annotation is what a field's schema says to Strongroom, as x-strongroom.
type annotation struct {
	Sensitivity Sensitivity `json:"sensitivity"`
	Mask        Mask        `json:"mask,omitempty"`
	Index       bool        `json:"index,omitempty"`
	Unique      bool        `json:"unique,omitempty"`
	Purposes    []string    `json:"purposes,omitempty"`
	LegalBasis  LegalBasis  `json:"legal_basis,omitempty"`
}

// ParseCollection reads the declaration of a collection: YAML or JSON of at most 64 KiB, whose schema is
// JSON Schema draft 2020-12 with x-strongroom beside each field's own keywords. Its error names the key and
// the remedy. It does not check what Validate checks.
func ParseCollection(text []byte) (Collection, error) {
	if len(text) > MaxDeclaration {
		return Collection{}, fmt.Errorf("the declaration is larger than %d bytes", MaxDeclaration)
	}
	// Through a plain value YAML becomes JSON, and the rest is strict about names.
	var plain map[string]any
	if err := yaml.Load(text, &plain, yaml.WithUniqueKeys()); err != nil {
		return Collection{}, fmt.Errorf("the declaration is neither YAML nor JSON: %w", err)
	}
	asJSON, err := json.Marshal(plain)
	if err != nil {
		return Collection{}, fmt.Errorf("the declaration is no JSON: %w", err)
	}
	if len(asJSON) > MaxDeclaration { // YAML can say a thing once and mean it often
		return Collection{}, fmt.Errorf("the declaration is larger than %d bytes", MaxDeclaration)
	}
	var d declaration
	if err := strict(asJSON, &d); err != nil {
		return Collection{}, err
	}
	at := "collections[" + d.Name + "]"
	if !nameForm.MatchString(d.Name) {
		return Collection{}, errors.New("name: use 1 to 64 of a-z, 0-9 and _")
	}
	c := Collection{
		Name: d.Name, Description: d.Description, Version: d.Version, Purposes: d.Purposes, LegalBasis: d.LegalBasis,
		Limit: d.Limit, History: d.History, Schema: d.Schema,
	}
	if c.Retention, err = duration(d.Retention); err != nil {
		return Collection{}, fmt.Errorf("%s.retention: %w", at, err)
	}
	if len(d.Schema) == 0 {
		return Collection{}, fmt.Errorf("%s.schema: is missing; write a JSON Schema with the properties that a record has", at)
	}
	if c.Fields, err = fieldsOf(d.Schema); err != nil {
		return Collection{}, fmt.Errorf("%s.%w", at, err)
	}
	return c, nil
}

// strict decodes JSON and refuses members that are not declared.
func strict(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return fmt.Errorf("%s: must be a %s", wrong.Field, wrong.Type)
	case err != nil:
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// duration reads how long something is kept: "3650d", or hours as "8760h".
func duration(text string) (time.Duration, error) {
	if text == "" || text == "0" {
		return 0, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 0 || n > 36525 {
			return 0, errors.New("write whole days, for example 3650d, at most 36525d")
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errors.New("write days or hours, for example 3650d or 72h")
	}
	return d, nil
}

// MarshalJSON writes the declaration down as ParseCollection reads it.
func (c Collection) MarshalJSON() ([]byte, error) {
	d := declaration{
		Name: c.Name, Description: c.Description, Version: c.Version, Purposes: c.Purposes, LegalBasis: c.LegalBasis,
		Limit: c.Limit, History: c.History, Schema: c.Schema,
	}
	switch day := 24 * time.Hour; {
	case c.Retention > 0 && c.Retention%day == 0:
		d.Retention = strconv.FormatInt(int64(c.Retention/day), 10) + "d"
	case c.Retention > 0:
		d.Retention = c.Retention.String()
	}
	if len(c.Schema) == 0 {
		d.Schema = schemaOf(c.Fields)
	}
	return json.Marshal(d)
}

// schemaOf returns the JSON Schema of fields that are declared in Go.
func schemaOf(fields []Field) json.RawMessage {
	properties := make(map[string]any, len(fields))
	var required []string
	for _, f := range fields {
		p := map[string]any{"type": "string", annotationKey: annotation{
			f.Sensitivity, f.Mask, f.Index, f.Unique, f.Purposes, f.LegalBasis}}
		switch f.Type {
		case String:
			if f.MaxLength != 0 {
				p["maxLength"] = f.MaxLength
			}
			if f.Pattern != "" {
				p["pattern"] = `^(?:` + f.Pattern + `)$`
			}
		case Integer, Number, Boolean:
			p["type"] = string(f.Type)
		default:
			p["format"] = string(f.Type)
		}
		properties[f.Name] = p
		if f.Required {
			required = append(required, f.Name)
		}
	}
	schema := map[string]any{"type": "object", "properties": properties}
	if required != nil {
		schema["required"] = required
	}
	text, err := json.Marshal(schema)
	if err != nil {
		panic(err) // strings, numbers and booleans only
	}
	// Once more, for the order of names that ParseCollection leaves: equal declarations are equal texts.
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		panic(err)
	}
	if text, err = json.Marshal(plain); err != nil {
		panic(err)
	}
	return text
}

// fieldsOf reads from a schema what Strongroom itself must know of each field.
func fieldsOf(text json.RawMessage) ([]Field, error) {
	var root map[string]json.RawMessage
	if err := json.Unmarshal(text, &root); err != nil {
		return nil, errors.New("schema: must be an object")
	}
	var any any
	if err := json.Unmarshal(text, &any); err != nil {
		return nil, errors.New("schema: must be an object")
	}
	if err := allowed2020(any, "schema", 0); err != nil {
		return nil, err
	}
	if t, ok := root["type"]; ok && string(t) != `"object"` {
		return nil, errors.New(`schema.type: must be object: a record is a JSON object`)
	}
	if extra, ok := root["additionalProperties"]; ok && string(extra) != "false" {
		return nil, errors.New("schema.additionalProperties: must be false or left out: each field says how sensitive it is")
	}
	for _, keyword := range []string{"patternProperties", "unevaluatedProperties"} {
		if _, ok := root[keyword]; ok {
			return nil, fmt.Errorf("schema.%s: list the fields under properties: each says how sensitive it is", keyword)
		}
	}
	var required []string
	if r, ok := root["required"]; ok {
		if err := json.Unmarshal(r, &required); err != nil {
			return nil, errors.New("schema.required: must be a list of names of fields")
		}
	}
	var properties map[string]json.RawMessage
	if p, ok := root["properties"]; ok {
		if err := json.Unmarshal(p, &properties); err != nil {
			return nil, errors.New("schema.properties: must be an object of fields")
		}
	}
	for _, name := range required {
		if properties[name] == nil {
			return nil, fmt.Errorf("schema.required: %q is no field under properties", name)
		}
	}
	var fields []Field
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		f, err := fieldOf(name, properties[name])
		if err != nil {
			return nil, fmt.Errorf("schema.properties.%s%w", name, err)
		}
		f.Required = slices.Contains(required, name)
		fields = append(fields, f)
	}
	return fields, nil
}

// formats are the values of format that make a text one of the types with a canonical form.
var formats = map[string]Type{
	"date": Date, "email": Email, "idn-email": Email, "phone": Phone, "iban": IBAN, "bic": BIC, "country": Country, "currency": Currency,
}

func fieldOf(name string, text json.RawMessage) (Field, error) {
	var p struct {
		Type      json.RawMessage `json:"type"`
		Format    string          `json:"format"`
		MaxLength float64         `json:"maxLength"`
		Note      json.RawMessage `json:"x-strongroom"`
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return Field{}, errors.New(": must be a schema with type, format, maxLength and x-strongroom in their own types")
	}
	if p.Note == nil {
		return Field{}, errors.New(`.x-strongroom: is missing; write at least {sensitivity: personal}`)
	}
	var a annotation
	if err := strict(p.Note, &a); err != nil {
		return Field{}, fmt.Errorf(".x-strongroom: %w", err)
	}
	f := Field{Name: name, Sensitivity: a.Sensitivity, Mask: a.Mask, Index: a.Index, Unique: a.Unique,
		Purposes: a.Purposes, LegalBasis: a.LegalBasis}
	var t string
	_ = json.Unmarshal(p.Type, &t) // what is no string is no type that the switch knows
	switch t {
	case "string":
		f.Type = String
		if p.Format != "" {
			f.Type = formats[p.Format]
		} else {
			f.MaxLength = int(min(p.MaxLength, largestMaxLength+1))
		}
	case "integer", "number", "boolean":
		f.Type = Type(t)
	default:
		return Field{}, errors.New(".type: must be string, integer, number or boolean: records are flat")
	}
	return f, nil
}

// The keywords of draft 2020-12 that a schema may use, by what they hold. A keyword that is not known
// would be passed over by a validator, and a misspelt rule would be a rule that does not hold; references
// would let a small schema take exponential time, and a remote one would ask the network.
var (
	keywordsPlain = []string{"$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
		"type", "enum", "const", "format", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum",
		"maxLength", "minLength", "pattern", "maxProperties", "minProperties", "required", "dependentRequired", annotationKey}
	keywordsSchema = []string{"not", "if", "then", "else", "propertyNames", "additionalProperties", "unevaluatedProperties"}
	keywordsList   = []string{"allOf", "anyOf", "oneOf"}
	keywordsMap    = []string{"properties", "patternProperties", "dependentSchemas"}
)

// allowed2020 walks a schema and refuses what Strongroom does not take.
func allowed2020(node any, at string, depth int) error {
	if depth > largestDepth {
		return fmt.Errorf("%s: is nested deeper than %d", at, largestDepth)
	}
	schema, ok := node.(map[string]any)
	if !ok {
		if _, ok := node.(bool); ok {
			return nil
		}
		return fmt.Errorf("%s: must be a schema", at)
	}
	for _, keyword := range slices.Sorted(maps.Keys(schema)) {
		below, here := schema[keyword], at+"."+keyword
		switch {
		case strings.HasPrefix(keyword, "$") && keyword != "$schema" && keyword != "$comment":
			return fmt.Errorf("%s: references are not taken; write the schema out in place", here)
		case keyword == "$schema" && below != dialect:
			return fmt.Errorf("%s: must be %s", here, dialect)
		case keyword == "format":
			if name, _ := below.(string); formats[name] == "" {
				return fmt.Errorf("%s: use one of %s", here, strings.Join(slices.Sorted(maps.Keys(formats)), ", "))
			}
		case keyword == "pattern":
			if text, _ := below.(string); len(text) > largestPattern {
				return fmt.Errorf("%s: must be at most %d bytes", here, largestPattern)
			}
		case slices.Contains(keywordsPlain, keyword):
		case slices.Contains(keywordsSchema, keyword):
			if err := allowed2020(below, here, depth+1); err != nil {
				return err
			}
		case slices.Contains(keywordsList, keyword):
			list, ok := below.([]any)
			if !ok {
				return fmt.Errorf("%s: must be a list of schemas", here)
			}
			for i, item := range list {
				if err := allowed2020(item, here+"["+strconv.Itoa(i)+"]", depth+1); err != nil {
					return err
				}
			}
		case slices.Contains(keywordsMap, keyword):
			m, ok := below.(map[string]any)
			if !ok {
				return fmt.Errorf("%s: must be an object of schemas", here)
			}
			for _, name := range slices.Sorted(maps.Keys(m)) {
				if err := allowed2020(m[name], here+"."+name, depth+1); err != nil {
					return err
				}
			}
		default:
			return fmt.Errorf("%s: is no keyword of JSON Schema that flat records know; is it misspelt?", here)
		}
	}
	return nil
}

// noLoader keeps the compiler from files and from the network, also if a reference should slip through.
type noLoader struct{}

func (noLoader) Load(string) (any, error) { return nil, errors.New("remote schemas are not loaded") }

var errForm = errors.New("has not the form")

// compileSchema makes the validator of a schema that allowed2020 has passed.
func compileSchema(text json.RawMessage) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(noLoader{})
	for name, t := range formats {
		f := &field{Field: Field{Type: t}}
		c.RegisterFormat(&jsonschema.Format{Name: name, Validate: func(v any) error {
			if text, ok := v.(string); ok {
				if _, message := f.normalise(text); message != "" {
					return errForm
				}
			}
			return nil
		}})
	}
	const url = "urn:strongroom:collection"
	if err := c.AddResource(url, doc); err != nil {
		return nil, err
	}
	compiled, err := c.Compile(url)
	var invalid *jsonschema.SchemaValidationError
	if errors.As(err, &invalid) {
		err = invalid.Err
	}
	return compiled, err
}

// validate holds canonical values against the whole schema. What it says names fields and rules, and
// never a value.
func (s *schema) validate(values []value) []FieldError {
	record := make(map[string]any, len(values))
	for _, v := range values {
		record[v.name] = v.whole()
	}
	var wrong *jsonschema.ValidationError
	if err := s.validator.Validate(record); !errors.As(err, &wrong) {
		if err != nil { // a schema that runs in a circle; none is taken
			return []FieldError{{"", "cannot be checked"}}
		}
		return nil
	}
	var out []FieldError
	explain(wrong, &out)
	return out
}

func explain(e *jsonschema.ValidationError, out *[]FieldError) {
	name := ""
	if len(e.InstanceLocation) > 0 {
		name = shownName(e.InstanceLocation[0])
	}
	tell := func(format string, args ...any) {
		if told := (FieldError{name, fmt.Sprintf(format, args...)}); !slices.Contains(*out, told) && len(*out) < 2*largestFields {
			*out = append(*out, told)
		}
	}
	switch k := e.ErrorKind.(type) {
	case *kind.AnyOf, *kind.OneOf, *kind.Not: // what is below tells of each choice why it is not that one
		tell("breaks a rule of this collection (%s)", map[bool]string{true: "not", false: "anyOf or oneOf"}[isNot(k)])
		return
	case *kind.Required:
		for _, name = range k.Missing {
			tell("is required with these fields")
		}
	case *kind.DependentRequired:
		for _, name = range k.Missing {
			tell("is required together with %s", k.Prop)
		}
	case *kind.Enum, *kind.Const:
		tell("is none of the values that this collection allows")
	case *kind.MinLength:
		tell("must be at least %d characters", k.Want)
	case *kind.MaxLength:
		tell("must be at most %d characters", k.Want)
	case *kind.Pattern, *kind.Format:
		tell("does not have the form that this collection asks for")
	case *kind.Minimum:
		tell("must be at least %s", rat(k.Want.RatString()))
	case *kind.Maximum:
		tell("must be at most %s", rat(k.Want.RatString()))
	case *kind.ExclusiveMinimum:
		tell("must be more than %s", rat(k.Want.RatString()))
	case *kind.ExclusiveMaximum:
		tell("must be less than %s", rat(k.Want.RatString()))
	case *kind.MultipleOf:
		tell("must be a multiple of %s", rat(k.Want.RatString()))
	default:
		if len(e.Causes) == 0 {
			rule := "schema"
			if path := e.ErrorKind.KeywordPath(); len(path) > 0 {
				rule = path[0]
			}
			tell("breaks a rule of this collection (%s)", rule)
		}
	}
	for _, cause := range e.Causes {
		explain(cause, out)
	}
}

func isNot(k jsonschema.ErrorKind) bool { _, is := k.(*kind.Not); return is }

// rat shortens what a schema says of a number.
func rat(text string) string { return text[:min(len(text), 32)] }

// UnmarshalJSON reads what MarshalJSON wrote.
func (c *Collection) UnmarshalJSON(text []byte) (err error) {
	*c, err = ParseCollection(text)
	return err
}
