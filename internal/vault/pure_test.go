package vault

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"strongroom/internal/problem"
)

func TestDefaultsAreValid(t *testing.T) {
	if err := Validate(Defaults()); err != nil {
		t.Fatal(err)
	}
}

func TestValidateNamesKeyAndRemedy(t *testing.T) {
	with := func(change func(*Collection)) []Collection {
		c := Collection{Name: "c", Purposes: []string{"p"}, Fields: []Field{{Name: "f", Type: String, Sensitivity: Personal}}}
		change(&c)
		return []Collection{c}
	}
	if err := Validate(with(func(*Collection) {})); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		collections []Collection
		want        string
	}{
		"collection name":     {with(func(c *Collection) { c.Name = "C" }), "collections[0].name: use"},
		"twice":               {append(Defaults(), Defaults()...), "collections[profile]: declared twice; rename"},
		"no fields":           {with(func(c *Collection) { c.Fields = nil }), "collections[c].fields: is empty; declare"},
		"no purposes":         {with(func(c *Collection) { c.Purposes = nil }), "collections[c].purposes: is empty; name"},
		"purpose":             {with(func(c *Collection) { c.Purposes = []string{"Show me"} }), "collections[c].purposes[0]: use"},
		"purpose twice":       {with(func(c *Collection) { c.Purposes = []string{"p", "p"} }), "collections[c].purposes[1]: listed twice"},
		"retention":           {with(func(c *Collection) { c.Retention = 30 }), "collections[c].retention: is under an hour"},
		"negative retention":  {with(func(c *Collection) { c.Retention = -time.Hour }), "collections[c].retention: must not be negative"},
		"limit":               {with(func(c *Collection) { c.Limit = -1 }), "collections[c].limit: must be between"},
		"version":             {with(func(c *Collection) { c.Version = -1 }), "collections[c].version: must not"},
		"field name":          {with(func(c *Collection) { c.Fields[0].Name = "1" }), "collections[c].fields[0].name: use"},
		"field all":           {with(func(c *Collection) { c.Fields[0].Name = "all" }), "collections[c].fields[all].name: "},
		"field twice":         {with(func(c *Collection) { c.Fields = append(c.Fields, c.Fields...) }), "collections[c].fields[f]: declared twice"},
		"type":                {with(func(c *Collection) { c.Fields[0].Type = "text" }), "collections[c].fields[f].type: use one of string"},
		"sensitivity":         {with(func(c *Collection) { c.Fields[0].Sensitivity = "" }), "collections[c].fields[f].sensitivity: use one of public"},
		"mask":                {with(func(c *Collection) { c.Fields[0].Mask = "first" }), "collections[c].fields[f].mask: use one of none"},
		"mask of other type":  {with(func(c *Collection) { c.Fields[0].Mask = MaskYear }), "collections[c].fields[f].mask: year does not fit type string; it fits date"},
		"mask too weak":       {with(func(c *Collection) { c.Fields[0].Mask, c.Fields[0].Sensitivity = MaskNone, Special }), "must not be shown whole"},
		"index":               {with(func(c *Collection) { c.Fields[0].Type, c.Fields[0].Index = Boolean, true }), "collections[c].fields[f].index: a boolean"},
		"unique":              {with(func(c *Collection) { c.Fields[0].Unique = true }), "collections[c].fields[f].unique: wants index: true"},
		"max length":          {with(func(c *Collection) { c.Fields[0].MaxLength = 1 << 20 }), "collections[c].fields[f].max_length: must be"},
		"pattern":             {with(func(c *Collection) { c.Fields[0].Pattern = "(" }), "collections[c].fields[f].pattern: write it"},
		"pattern of a number": {with(func(c *Collection) { c.Fields[0].Type, c.Fields[0].Pattern = Integer, "1" }), "max_length and pattern are for type string"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Validate(row.collections); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("got %v, want %q", err, row.want)
			}
		})
	}
}

// everyType is a collection that has them all.
func everyType() Collection {
	c := Collection{Name: "every_type", Purposes: []string{"test"}}
	for _, typ := range types {
		c.Fields = append(c.Fields, Field{Name: "a_" + string(typ), Type: typ, Sensitivity: Personal})
	}
	c.Fields = append(c.Fields, Field{Name: "formed", Type: String, Sensitivity: Personal, Pattern: "a|bc", MaxLength: 4})
	return c
}

func compiled(t testing.TB, c Collection) *schema {
	t.Helper()
	m, err := compile([]Collection{c})
	if err != nil {
		t.Fatal(err)
	}
	return m[c.Name]
}

func TestFieldValues(t *testing.T) {
	s := compiled(t, everyType())
	for _, row := range []struct{ field, in, want string }{ // want: canonical JSON, or ! and a part of the message
		{"a_string", `"Ada"`, `"Ada"`},
		{"a_string", `"\u0041\n"`, "!control"},
		{"a_string", `"a\u0000"`, "!control"},
		{"a_string", `"a\u202eb"`, "!control"},
		{"a_string", `"e\u0301"`, `"é"`},
		{"a_string", `"\ud83d\ude00"`, `"😀"`},
		{"a_string", `"\ud83d"`, "!valid Unicode"},
		{"a_string", `"\ude00\ud83d"`, "!valid Unicode"},
		{"a_string", `"\ud83dx"`, "!valid Unicode"},
		{"a_string", `"<&>\/\"\\"`, `"<&>/\"\\"`},
		{"a_string", `""`, "!empty"},
		{"a_string", `" \u00a0"`, "!empty"},
		{"a_string", `1`, "!string"},
		{"a_string", `{"a":[1,"}"]}`, "!string"},
		{"a_string", `null`, "!null"},
		{"a_string", `"` + strings.Repeat("é", 256) + `"`, `"` + strings.Repeat("é", 256) + `"`},
		{"a_string", `"` + strings.Repeat("é", 257) + `"`, "!at most 256"},
		{"formed", `"bc"`, `"bc"`},
		{"formed", `"bcd"`, "!form"},
		{"formed", `"abcde"`, "!at most 4"},
		{"a_integer", `-9007199254740991`, `-9007199254740991`},
		{"a_integer", `9007199254740992`, "!integer"},
		{"a_integer", `-0`, `0`},
		{"a_integer", `1.0`, "!integer"},
		{"a_integer", `1e3`, "!integer"},
		{"a_integer", `"1"`, "!integer"},
		{"a_integer", `true`, "!integer"},
		{"a_number", `0.10`, `0.10`},
		{"a_number", `-123456789.012345`, `-123456789.012345`},
		{"a_number", `1234567890.1234567`, "!15 significant"},
		{"a_number", `0.000000000000000000000000000000001`, "!15 significant"},
		{"a_number", `1E2`, "!exponent"},
		{"a_number", `false`, "!number"},
		{"a_boolean", `true`, `true`},
		{"a_boolean", `"true"`, "!true or false"},
		{"a_date", `"2000-02-29"`, `"2000-02-29"`},
		{"a_date", `"1900-02-29"`, "!day"},
		{"a_date", `"1799-01-01"`, "!day"},
		{"a_date", `"2000-2-9"`, "!day"},
		{"a_email", `"Ada.Lovelace+x@Example.co.uk"`, `"Ada.Lovelace+x@Example.co.uk"`},
		{"a_email", `"jörg@münchen.example"`, `"jörg@münchen.example"`},
		{"a_email", `"a..b@example.com"`, "!e-mail"},
		{"a_email", `"a@b@example.com"`, "!e-mail"},
		{"a_email", `"a@localhost"`, "!e-mail"},
		{"a_email", `"a@-x.com"`, "!e-mail"},
		{"a_email", `"a b@x.com"`, "!e-mail"},
		{"a_email", `"a@x.com\n"`, "!e-mail"},
		{"a_phone", `"+447700900123"`, `"+447700900123"`},
		{"a_phone", `"07700900123"`, "!E.164"},
		{"a_iban", `"gb82 west 1234 5698 7654 32"`, `"GB82WEST12345698765432"`},
		{"a_iban", `"GB82WEST12345698765433"`, "!IBAN"},
		{"a_iban", `"GB82WEST1234569876543"`, "!IBAN"},
		{"a_iban", `"DE89370400440532013000"`, `"DE89370400440532013000"`},
		{"a_iban", `"NO9386011117947"`, `"NO9386011117947"`},
		{"a_bic", `"deutdeff"`, `"DEUTDEFF"`},
		{"a_bic", `"DEUTDEFF500"`, `"DEUTDEFF500"`},
		{"a_bic", `"DEUTDEFF5"`, "!BIC"},
		{"a_country", `"GB"`, `"GB"`},
		{"a_country", `"UK"`, "!3166"},
		{"a_country", `"gb"`, "!3166"},
		{"a_country", `" A"`, "!3166"},
		{"a_currency", `"EUR"`, `"EUR"`},
		{"a_currency", `"EU "`, "!4217"},
		{"a_currency", `"AAA"`, "!4217"},
	} {
		t.Run(row.field+" "+row.in[:min(len(row.in), 40)], func(t *testing.T) {
			values, err := s.decode([]byte(`{"` + row.field + `": ` + row.in + `}`))
			message, fails := strings.CutPrefix(row.want, "!")
			if !fails {
				if err != nil {
					t.Fatal(problem.Of(err).Member("errors"))
				}
				if string(values[0].raw) != row.want {
					t.Fatalf("got %s, want %s", values[0].raw, row.want)
				}
				return
			}
			if !problem.Is(err, "invalid-record") {
				t.Fatalf("got %v", err)
			}
			wrong := problem.Of(err).Member("errors").([]FieldError)
			if len(wrong) != 1 || wrong[0].Field != row.field || !strings.Contains(wrong[0].Message, message) {
				t.Fatalf("got %v, want %q", wrong, message)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	s := compiled(t, Defaults()[0])
	const good = `"given_name":"Ada","family_name":"Lovelace"`
	for name, row := range map[string]struct{ body, slug, want, never string }{
		"empty":              {"", "invalid-json", "", ""},
		"null":               {"null", "invalid-json", "", ""},
		"array":              {`[{` + good + `}]`, "invalid-json", "", ""},
		"cut":                {`{` + good, "invalid-json", "", ""},
		"two":                {`{` + good + `}{}`, "invalid-json", "", ""},
		"comma":              {`{` + good + `,}`, "invalid-json", "", ""},
		"single quotes":      {`{'given_name':'Ada'}`, "invalid-json", "", ""},
		"broken UTF-8":       {"{" + good + ",\"city\":\"\xff\"}", "invalid-json", "", ""},
		"surrogate in name":  {`{` + good + `,"\ud800":"x"}`, "invalid-json", "", ""},
		"deep":               {strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000), "record-too-large", "", ""},
		"large":              {`{"city":"` + strings.Repeat("x", maxBody) + `"}`, "record-too-large", "", ""},
		"deep but small":     {strings.Repeat("[", 10001) + strings.Repeat("]", 10001), "invalid-json", "", ""},
		"missing":            {`{"given_name":"Ada"}`, "invalid-record", "{family_name is required}", "Ada"},
		"unknown":            {`{` + good + `,"nick_name":"countess"}`, "invalid-record", "{nick_name is no field of this collection}", "countess"},
		"value as a name":    {`{` + good + `,"Ada Lovelace":"x"}`, "invalid-record", "{? is no field of this collection}", "Ada"},
		"twice":              {`{` + good + `,"given_name":"Eve"}`, "invalid-record", "{given_name is given more than once}", "Eve"},
		"twice by an escape": {`{` + good + `,"given\u005fname":"Eve"}`, "invalid-record", "{given_name is given more than once}", "Eve"},
		"wrong type":         {`{` + good + `,"city":{"a":"London"}}`, "invalid-record", "{city must be a string}", "London"},
		"wrong date":         {`{` + good + `,"date_of_birth":"1815-12-32"}`, "invalid-record", "date_of_birth", "1815"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.decode([]byte(row.body))
			p := problem.Of(err)
			if p == nil || p.Slug() != row.slug {
				t.Fatalf("got %v, want %s", err, row.slug)
			}
			said, _ := json.Marshal(p)
			all := fmt.Sprint(string(said), err, p.Member("errors"))
			if !strings.Contains(all, row.want) {
				t.Errorf("%s lacks %q", all, row.want)
			}
			if row.never != "" && strings.Contains(all, row.never) {
				t.Errorf("%s repeats a value", all)
			}
		})
	}
}

// FuzzDecode holds the reader of records against encoding/json: what one takes the other takes, with
// the same meaning, except where the vault is stricter on purpose.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a_string":"x"}`, ` { "a_string" : "\u00e9\ud83d\ude00" , "a_integer" : -1 } `, `{"a":{"b":["}",1]}}`,
		`{"a_string":"\ud800"}`, `{"a_number":1.50,"a_boolean":true}`, `{"a_string":"a","a_string":"b"}`, `[1]`, "{\"a\":\"\xff\"}", `{"a":"\\\""}`, `{"formed":"bc"}`} {
		f.Add([]byte(seed))
	}
	s := compiled(f, everyType())
	f.Fuzz(func(t *testing.T, body []byte) {
		var want map[string]any
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber()
		reference := decoder.Decode(&want)
		members, ok := scan(body)
		if ok && (reference != nil || want == nil) {
			t.Fatalf("took what encoding/json refuses: %q", body)
		}
		if ok {
			for _, m := range members {
				if !json.Valid(m.raw) {
					t.Fatalf("%q is not JSON", m.raw)
				}
				if _, there := want[m.name]; !there {
					t.Fatalf("name %q is not there", m.name)
				}
			}
		}
		values, err := s.decode(body)
		if err != nil {
			return
		}
		if len(values) != len(want) {
			t.Fatalf("%d values of %d", len(values), len(want))
		}
		plain := encode(values)
		again, ok := parse(plain)
		if !ok || !reflect.DeepEqual(values, again) {
			t.Fatalf("%s does not come back", plain)
		}
		if _, err := s.decode(plain); err != nil {
			t.Fatalf("canonical %s is refused: %v", plain, err)
		}
	})
}

func TestRecordComesBack(t *testing.T) {
	s := compiled(t, everyType())
	values, p := s.decode([]byte(`{"a_string":"Ada \"<&>\" é","a_number":1.50,"a_boolean":false,"a_integer":-7,"a_date":"1815-12-10"}`))
	if p != nil {
		t.Fatal(p)
	}
	got, err := json.Marshal(s.show(values, Reveal{All: true}))
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if json.Unmarshal(got, &a) != nil || json.Unmarshal(encode(values), &b) != nil || !reflect.DeepEqual(a, b) {
		t.Fatalf("%s is not %s", got, encode(values))
	}
	if !bytes.Contains(got, []byte("1.50")) {
		t.Errorf("%s lost a digit", got)
	}
	for name, v := range s.show(values, Reveal{}) {
		if v != stars {
			t.Errorf("%s shows %v", name, v)
		}
	}
}

func TestMasks(t *testing.T) {
	for _, row := range []struct {
		mask     Mask
		in, want string
	}{
		{MaskNone, "GB", "GB"},
		{MaskAll, "anything", "****"},
		{MaskLast4, "1234567890", "****7890"},
		{MaskLast4, "12345", "****45"},
		{MaskLast4, "1", "****"},
		{MaskLast4, "", "****"},
		{MaskLast4, "aaaae\u0301e\u0301e\u0301e\u0301", "****e\u0301e\u0301e\u0301e\u0301"},
		{MaskInitial, "Ada", "A****"},
		{MaskInitial, "A", "****"},
		{MaskInitial, "👩‍👩‍👧x", "👩‍👩‍👧****"},
		{MaskInitial, "Éa", "É****"},
		{MaskYear, "1987-03-04", "1987-**-**"},
		{MaskYear, "hello", "****"},
		{MaskEmail, "ada@example.com", "a****@e****.com"},
		{MaskEmail, "ada@mail.com", "a****@****.com"},
		{MaskEmail, "a@b.co", "****"},
		{MaskEmail, "ab@cd.museum", "****"},
		{MaskEmail, "nothing", "****"},
		{MaskIBAN, "GB82WEST12345698765432", "GB****5432"},
		{MaskIBAN, "GB82", "****"},
	} {
		if got := row.mask.apply(row.in); got != row.want {
			t.Errorf("%s of %q is %q, want %q", row.mask, row.in, got, row.want)
		}
	}
}

// Whatever the value, a mask shows a beginning and an end of it, cut between characters, no longer
// than the mask permits and no longer together than what it hides.
func TestMasksHideEnough(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z]{1,9}(\.[a-z]{1,3})?@[a-zé]{1,9}\.[a-z]{2,9}`),
		rapid.StringMatching(`[A-Z]{2}[0-9]{2}[A-Z0-9]{0,30}`), rapid.StringMatching("[a-c\u0301\u200d👩]{0,12}"),
		rapid.StringMatching(`[0-9]{4}-[01][0-9]-[0-3][0-9]`))
	most := map[Mask][2]int{MaskAll: {0, 0}, MaskLast4: {0, 4}, MaskInitial: {1, 0}, MaskYear: {4, 0}, MaskIBAN: {2, 4}}
	rapid.Check(t, func(t *rapid.T) {
		in := text.Draw(t, "text")
		mask := rapid.SampledFrom(masks[1:]).Draw(t, "mask")
		got := mask.apply(in)
		if !utf8.ValidString(got) {
			t.Fatalf("%q is broken", got)
		}
		all := characters(in)
		if strings.Join(all, "") != in {
			t.Fatalf("characters of %q are %q", in, all)
		}
		if mask == MaskEmail {
			shown := len(characters(strings.ReplaceAll(got, stars, "")))
			if 2*shown > len(all) {
				t.Fatalf("%q shows %d of %d", got, shown, len(all))
			}
			return
		}
		got = strings.TrimSuffix(got, "-**-**")
		if mask == MaskYear && got != stars {
			got += stars
		}
		head, tail, ok := strings.Cut(got, stars)
		if mask == MaskInitial && strings.HasPrefix(in, "*") {
			head, tail, ok = strings.TrimSuffix(got, stars), "", true
		}
		if !ok || !strings.HasPrefix(in, head) || !strings.HasSuffix(in, tail) {
			t.Fatalf("%q shows what is not in %q", got, in)
		}
		h, e := len(characters(head)), len(characters(tail))
		if h > most[mask][0] || e > most[mask][1] || 2*(h+e) > len(all) {
			t.Fatalf("%q shows %d+%d of %d", got, h, e, len(all))
		}
	})
}

func TestConditions(t *testing.T) {
	for _, row := range []struct {
		match, none string
		version     int64
		want        string // "", version-mismatch, invalid-precondition
	}{
		{"", "", 0, ""},
		{"", "", 3, ""},
		{`"3"`, "", 3, ""},
		{`"3"`, "", 4, "version-mismatch"},
		{`"3"`, "", 0, "version-mismatch"},
		{`"1" , "2",	"3"`, "", 3, ""},
		{`W/"3"`, "", 3, "version-mismatch"},
		{`W/"3", "3"`, "", 3, ""},
		{`"03"`, "", 3, "version-mismatch"},
		{`"a,b", "3"`, "", 3, ""},
		{"*", "", 3, ""},
		{" * ", "", 0, "version-mismatch"},
		{"", "*", 0, ""},
		{"", "*", 3, "version-mismatch"},
		{`"3"`, "*", 3, "version-mismatch"},
		{"3", "", 3, "invalid-precondition"},
		{`"3`, "", 3, "invalid-precondition"},
		{`"3" "4"`, "", 3, "invalid-precondition"},
		{`"3",`, "", 3, "invalid-precondition"},
		{`*, "3"`, "", 3, "invalid-precondition"},
		{`"3", *`, "", 3, "invalid-precondition"},
		{`"a b"`, "", 3, "invalid-precondition"},
		{"", `"3"`, 3, "invalid-precondition"},
	} {
		c, err := Condition{row.match, row.none}.parse()
		if err == nil {
			if p := c.check(row.version); p != nil {
				err = p
			}
		}
		if got := problem.Of(err); got == nil && row.want != "" || got != nil && got.Slug() != row.want {
			t.Errorf("If-Match %q If-None-Match %q at %d: %v, want %q", row.match, row.none, row.version, err, row.want)
		}
	}
}

func FuzzCondition(f *testing.F) {
	for _, seed := range []string{`"1"`, `*`, `W/"1", "2"`, `"`, `W/`, `,`, `"a" ,	"b"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, field string) {
		c, err := Condition{IfMatch: field}.parse()
		if err != nil || field == "" {
			return
		}
		if !c.match {
			t.Fatalf("%q asks for nothing", field)
		}
		if c.check(7) == nil && !c.any && !strings.Contains(field, `"7"`) {
			t.Fatalf("%q matches version 7", field)
		}
	})
}
