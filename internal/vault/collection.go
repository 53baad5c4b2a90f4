package vault

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Type is what a field holds.
type Type string

// The types of field. Values are strings in JSON unless said otherwise; all are kept in one
// canonical form, so that equal values have equal indexes.
const (
	String   Type = "string"   // text in Unicode normalisation form C, without control characters
	Integer  Type = "integer"  // a JSON number that every JSON reader keeps exact: at most 2^53-1 from zero
	Number   Type = "number"   // a JSON number of at most 15 significant digits, kept digit for digit
	Boolean  Type = "boolean"  // true or false
	Date     Type = "date"     // a calendar day, YYYY-MM-DD
	Email    Type = "email"    // an address of the form local@domain
	Phone    Type = "phone"    // ITU-T E.164 with its plus sign
	IBAN     Type = "iban"     // ISO 13616, kept without spaces; length and check digits are verified
	BIC      Type = "bic"      // ISO 9362, 8 or 11 characters
	Country  Type = "country"  // ISO 3166-1 alpha-2
	Currency Type = "currency" // ISO 4217, three letters
)

// Sensitivity is how much harm a field does in the wrong hands.
type Sensitivity string

// The classes of sensitivity. Special is what GDPR article 9 calls special categories.
const (
	Public    Sensitivity = "public"
	Internal  Sensitivity = "internal" // says nothing about a person, and is nobody else's business
	Personal  Sensitivity = "personal"
	Financial Sensitivity = "financial"
	Special   Sensitivity = "special"
)

// Field declares one field of a collection.
type Field struct {
	Name        string
	Type        Type
	Required    bool
	Sensitivity Sensitivity
	Mask        Mask       // empty: none when public, else all
	Index       bool       // exact look-up by blind index
	Unique      bool       // no two records may hold the same value; wants Index
	MaxLength   int        // characters; 0 means 256; strings only
	Pattern     string     // RE2, the whole value must match; strings only. Only of fields declared in Go: a schema has its own
	Purposes    []string   // some of the collection's; nil means all of them
	LegalBasis  LegalBasis // empty means the collection's
}

// Collection declares the shape of the records that share a purpose and a life time. ParseCollection reads
// one; those that ship with the program are declared in Go, by Fields, and their Schema is made of these.
type Collection struct {
	Name        string
	Description string
	Version     int // of this declaration; 0 means 1. Raise it with every change.
	Fields      []Field
	Schema      json.RawMessage // JSON Schema draft 2020-12
	Purposes    []string        // why whole values may be read
	LegalBasis  LegalBasis      // why the law lets it be kept; may be empty
	Retention   time.Duration   // after the last change; 0 means as long as the customer
	Limit       int             // records per customer; 0 means 100
	History     int             // older versions of each record that are kept
}

const (
	defaultLimit     = 100
	defaultMaxLength = 256
	largestMaxLength = 16384
	largestPattern   = 512
	largestFields    = 128
	largestHistory   = 1000
)

// Defaults returns the collections that are there when the configuration declares none.
func Defaults() []Collection {
	return []Collection{{
		Name:        "profile",
		Description: "Who the customer is and where they live.",
		Fields: []Field{
			{Name: "given_name", Type: String, Required: true, Sensitivity: Personal, Mask: MaskInitial, MaxLength: 100},
			{Name: "family_name", Type: String, Required: true, Sensitivity: Personal, Mask: MaskInitial, MaxLength: 100},
			{Name: "date_of_birth", Type: Date, Sensitivity: Personal, Mask: MaskYear},
			{Name: "email", Type: Email, Sensitivity: Personal, Mask: MaskEmail, Index: true},
			{Name: "address_line1", Type: String, Sensitivity: Personal, Mask: MaskAll, MaxLength: 200},
			{Name: "address_line2", Type: String, Sensitivity: Personal, Mask: MaskAll, MaxLength: 200},
			{Name: "postcode", Type: String, Sensitivity: Personal, Mask: MaskAll, MaxLength: 16},
			{Name: "city", Type: String, Sensitivity: Personal, Mask: MaskInitial, MaxLength: 100},
			{Name: "country", Type: Country, Sensitivity: Personal, Mask: MaskNone},
		},
		Purposes: []string{"show-to-customer"},
	}, {
		Name:        "bank_account",
		Description: "Accounts that the customer pays from or is paid to.",
		Fields: []Field{
			{Name: "holder", Type: String, Required: true, Sensitivity: Personal, Mask: MaskInitial, MaxLength: 140},
			{Name: "iban", Type: IBAN, Required: true, Sensitivity: Financial, Mask: MaskIBAN, Index: true},
			{Name: "bic", Type: BIC, Sensitivity: Financial, Mask: MaskAll},
			{Name: "bank_name", Type: String, Sensitivity: Financial, Mask: MaskInitial, MaxLength: 140},
			{Name: "currency", Type: Currency, Sensitivity: Public, Mask: MaskNone},
		},
		Purposes: []string{"show-to-customer", "payment"},
	}}
}

var (
	nameForm    = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)
	fieldForm   = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
	purposeForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	types       = []Type{String, Integer, Number, Boolean, Date, Email, Phone, IBAN, BIC, Country, Currency}
	classes     = []Sensitivity{Public, Internal, Personal, Financial, Special}
)

// Validate checks declarations. Its error names the key in the configuration and the remedy.
func Validate(collections []Collection) error {
	_, err := compile(collections)
	return err
}

// schema is a Collection made ready for use.
type schema struct {
	Collection
	fields    map[string]*field
	indexed   []*field
	validator *jsonschema.Schema

	// What the database adds; see declare.go.
	stored   bool
	source   string
	digest   string
	gone     map[string]bool // fields that only older versions have
	rebuild  bool            // BuildIndexes has work here
	building map[string]bool // indexed fields whose older records are not all in the index yet
}

func blindName(collection, field string) string { return "vault/" + collection + "/" + field }

type field struct {
	Field
	pattern *regexp.Regexp
	blind   string // names the field to the blind-index key: one field's index says nothing about another's
}

func compile(collections []Collection) (map[string]*schema, error) {
	m := make(map[string]*schema, len(collections))
	for i, c := range collections {
		at := fmt.Sprintf("collections[%d]", i)
		if !nameForm.MatchString(c.Name) {
			return nil, fmt.Errorf("%s.name: use 1 to 64 of a-z, 0-9 and _", at)
		}
		at = fmt.Sprintf("collections[%s]", c.Name)
		if m[c.Name] != nil {
			return nil, fmt.Errorf("%s: declared twice; rename or remove one", at)
		}
		s, err := c.compile(at)
		if err != nil {
			return nil, err
		}
		m[c.Name] = s
	}
	return m, nil
}

func (c Collection) compile(at string) (*schema, error) {
	switch {
	case c.Version < 0:
		return nil, fmt.Errorf("%s.version: must not be negative; start with 1", at)
	case c.Retention < 0:
		return nil, fmt.Errorf("%s.retention: must not be negative; 0 keeps records as long as the customer", at)
	case c.Retention > 0 && c.Retention < time.Hour:
		return nil, fmt.Errorf("%s.retention: is under an hour; give a unit, for example 8760h", at)
	case c.Limit < 0 || c.Limit > 10000:
		return nil, fmt.Errorf("%s.limit: must be between 0 (meaning %d) and 10000", at, defaultLimit)
	case c.History < 0 || c.History > largestHistory:
		return nil, fmt.Errorf("%s.history: must be between 0 and %d", at, largestHistory)
	case c.LegalBasis != "" && !slices.Contains(bases, c.LegalBasis):
		return nil, fmt.Errorf("%s.legal_basis: use one of %s", at, list(bases))
	case len(c.Fields) == 0:
		return nil, fmt.Errorf("%s.fields: is empty; declare at least one field", at)
	case len(c.Fields) > largestFields:
		return nil, fmt.Errorf("%s.fields: declare at most %d", at, largestFields)
	case len(c.Purposes) == 0:
		return nil, fmt.Errorf("%s.purposes: is empty; name why whole values may be read, for example show-to-customer", at)
	}
	for i, p := range c.Purposes {
		if len(p) > 64 || !purposeForm.MatchString(p) {
			return nil, fmt.Errorf("%s.purposes[%d]: use at most 64 of a-z, 0-9 and single hyphens", at, i)
		}
		if slices.Index(c.Purposes, p) != i {
			return nil, fmt.Errorf("%s.purposes[%d]: listed twice; remove one", at, i)
		}
	}
	c.Version = cmp.Or(c.Version, 1)
	c.Limit = cmp.Or(c.Limit, defaultLimit)
	s := &schema{Collection: c, fields: make(map[string]*field, len(c.Fields))}
	s.Fields = slices.Clone(c.Fields)
	s.Purposes = slices.Clone(c.Purposes)
	for i, d := range s.Fields {
		if !fieldForm.MatchString(d.Name) {
			return nil, fmt.Errorf("%s.fields[%d].name: use 1 to 64 of a-z, 0-9 and _, a letter first", at, i)
		}
		if d.Name == "all" {
			return nil, fmt.Errorf("%s.fields[all].name: all is the word that reveals every field; choose another", at)
		}
		if s.fields[d.Name] != nil {
			return nil, fmt.Errorf("%s.fields[%s]: declared twice; rename or remove one", at, d.Name)
		}
		f, err := d.compile(fmt.Sprintf("%s.fields[%s]", at, d.Name))
		if err != nil {
			return nil, err
		}
		for j, p := range d.Purposes {
			if !slices.Contains(c.Purposes, p) {
				return nil, fmt.Errorf("%s.fields[%s].purposes[%d]: is no purpose of the collection; a field has some of those", at, d.Name, j)
			}
		}
		f.blind = blindName(c.Name, d.Name)
		s.Fields[i] = f.Field
		s.fields[d.Name] = f
		if f.Index {
			s.indexed = append(s.indexed, f)
		}
	}
	if len(s.Schema) == 0 {
		s.Schema = schemaOf(s.Fields)
	}
	var err error
	if s.validator, err = compileSchema(s.Schema); err != nil {
		return nil, fmt.Errorf("%s.schema: is no JSON Schema of draft 2020-12: %w", at, err)
	}
	return s, nil
}

func (d Field) compile(at string) (*field, error) {
	if !slices.Contains(types, d.Type) {
		return nil, fmt.Errorf("%s.type: use one of %s", at, list(types))
	}
	if !slices.Contains(classes, d.Sensitivity) {
		return nil, fmt.Errorf("%s.sensitivity: use one of %s", at, list(classes))
	}
	if d.Mask == "" {
		d.Mask = MaskAll
		if d.Sensitivity == Public {
			d.Mask = MaskNone
		}
	}
	if fit, ok := maskTypes[d.Mask]; !ok {
		return nil, fmt.Errorf("%s.mask: use one of %s", at, list(masks))
	} else if fit != nil && !slices.Contains(fit, d.Type) {
		return nil, fmt.Errorf("%s.mask: %s does not fit type %s; it fits %s", at, d.Mask, d.Type, list(fit))
	}
	if d.Mask == MaskNone && (d.Sensitivity == Financial || d.Sensitivity == Special) {
		return nil, fmt.Errorf("%s.mask: a %s field must not be shown whole by default; use %s", at, d.Sensitivity, MaskAll)
	}
	if d.LegalBasis != "" && !slices.Contains(bases, d.LegalBasis) {
		return nil, fmt.Errorf("%s.legal_basis: use one of %s", at, list(bases))
	}
	if d.Index && (d.Type == Boolean || d.Type == Number) {
		return nil, fmt.Errorf("%s.index: a %s has no exact look-up; set index: false", at, d.Type)
	}
	if d.Unique && !d.Index {
		return nil, fmt.Errorf("%s.unique: wants index: true as well", at)
	}
	f := &field{}
	if d.Type == String {
		d.MaxLength = cmp.Or(d.MaxLength, defaultMaxLength)
		if d.MaxLength < 1 || d.MaxLength > largestMaxLength {
			return nil, fmt.Errorf("%s.max_length: must be between 1 and %d", at, largestMaxLength)
		}
		if d.Pattern != "" {
			if len(d.Pattern) > largestPattern {
				return nil, fmt.Errorf("%s.pattern: must be at most %d bytes", at, largestPattern)
			}
			re, err := regexp.Compile(`\A(?:` + d.Pattern + `)\z`)
			if err != nil {
				return nil, fmt.Errorf("%s.pattern: write it in RE2 syntax: %w", at, err)
			}
			f.pattern = re
		}
	} else if d.MaxLength != 0 || d.Pattern != "" {
		return nil, fmt.Errorf("%s: max_length and pattern are for type string; type %s has its own rules", at, d.Type)
	}
	f.Field = d
	return f, nil
}

func list[T ~string](values []T) string {
	s := make([]string, len(values))
	for i, v := range values {
		s[i] = string(v)
	}
	return strings.Join(s, ", ")
}
