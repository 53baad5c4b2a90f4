package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
)

// What a stranger wrote moves no cursor, neither as text nor as JSON, and JSON still says all of it.
func TestHostileText(t *testing.T) {
	hostile := "a\x1b[2J\x9b\u009b1A\u202egnp.\u2028\U000e0041\x7f\r\nü🔐"
	var out strings.Builder
	if err := printJSON(&out, map[string]string{"text": hostile}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{out.String(), printable(hostile)} {
		if strings.ContainsFunc(text, func(c rune) bool { return c != '\n' && c != ' ' && !unicode.IsPrint(c) }) {
			t.Errorf("a terminal would act upon %q", text)
		}
	}
	var back map[string]string
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || back["text"] != strings.ToValidUTF8(hostile, "\ufffd") {
		t.Errorf("%q: %v", back["text"], err)
	}
	if !strings.Contains(out.String(), "ü🔐") {
		t.Errorf("what can be read is escaped: %s", out.String())
	}
}
