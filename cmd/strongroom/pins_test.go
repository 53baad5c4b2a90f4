package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"slices"
	"strings"
	"testing"

	"strongroom/internal/app"
)

var somePins = app.Pins{
	Origin: "https://api.example.com",
	Pins:   []string{"sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "sha256/BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA="},
	Keys:   []string{"strongroom/live/ins_1+0badcafe+AbCd"},
}

func printed(t *testing.T, format string) string {
	t.Helper()
	var b bytes.Buffer
	if err := pinFormats[format](&b, "api.example.com", somePins); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPinsForAndroid(t *testing.T) {
	var c struct {
		XMLName xml.Name `xml:"network-security-config"`
		Domain  struct {
			Cleartext string `xml:"cleartextTrafficPermitted,attr"`
			Domain    struct {
				Subdomains string `xml:"includeSubdomains,attr"`
				Name       string `xml:",chardata"`
			} `xml:"domain"`
			Set struct {
				Expiration string `xml:"expiration,attr"`
				Pins       []struct {
					Digest string `xml:"digest,attr"`
					Value  string `xml:",chardata"`
				} `xml:"pin"`
			} `xml:"pin-set"`
		} `xml:"domain-config"`
	}
	text := printed(t, "android")
	if err := xml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	d := c.Domain
	// After an expiration date Android would not pin any more.
	if d.Cleartext != "false" || d.Domain.Name != "api.example.com" || d.Domain.Subdomains != "false" || d.Set.Expiration != "" || len(d.Set.Pins) != 2 ||
		d.Set.Pins[0].Digest != "SHA-256" || "sha256/"+d.Set.Pins[1].Value != somePins.Pins[1] {
		t.Errorf("%+v\n%s", d, text)
	}
}

// plist reads a property list of dicts, arrays, strings and booleans.
func plist(t *testing.T, d *xml.Decoder, start xml.StartElement) any {
	t.Helper()
	var list []any
	key, dict := "", map[string]any{}
	for {
		token, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			var v any
			switch token.Name.Local {
			case "key", "string":
				var text string
				if err := d.DecodeElement(&text, &token); err != nil {
					t.Fatal(err)
				}
				if token.Name.Local == "key" {
					key = text
					continue
				}
				v = text
			default:
				v = plist(t, d, token)
			}
			list = append(list, v)
			dict[key] = v
		case xml.EndElement:
			switch start.Name.Local {
			case "true", "false":
				return start.Name.Local == "true"
			case "dict":
				return dict
			}
			return list
		}
	}
}

func TestPinsForIOS(t *testing.T) {
	text := printed(t, "ios")
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			t.Fatalf("there is no plist in\n%s", text)
		}
		if err != nil {
			t.Fatal(err)
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		all := plist(t, d, start).([]any)
		domain := all[0].(map[string]any)["NSAppTransportSecurity"].(map[string]any)["NSPinnedDomains"].(map[string]any)["api.example.com"].(map[string]any)
		leaves := domain["NSPinnedLeafIdentities"].([]any)
		if len(leaves) != 2 || domain["NSIncludesSubdomains"] != false || "sha256/"+leaves[0].(map[string]any)["SPKI-SHA256-BASE64"].(string) != somePins.Pins[0] {
			t.Errorf("%v\n%s", domain, text)
		}
		return
	}
}

func TestPinsForGo(t *testing.T) {
	text := printed(t, "go")
	f, err := parser.ParseFile(token.NewFileSet(), "pins.go", text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	var values []string
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.BasicLit); ok {
			values = append(values, strings.Trim(v.Value, `"`))
		}
		return true
	})
	for _, want := range slices.Concat(somePins.Pins, somePins.Keys, []string{somePins.Origin}) {
		if !slices.Contains(values, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}

func TestPinsForOkHttp(t *testing.T) {
	text := printed(t, "okhttp")
	for _, pin := range somePins.Pins {
		if !strings.Contains(text, `.add("api.example.com", "`+pin+`")`) {
			t.Errorf("%s is missing in\n%s", pin, text)
		}
	}
	if strings.Count(text, "(") != strings.Count(text, ")") || !strings.Contains(text, "CertificatePinner.Builder()") {
		t.Error(text)
	}
}

func TestPinsTakeNoHostThatIsNone(t *testing.T) {
	for _, bad := range []string{"", "a b", "</key>", `x"`, "-x", "x\n", "https://x"} {
		if hostForm.MatchString(bad) {
			t.Errorf("%q was taken", bad)
		}
	}
}
