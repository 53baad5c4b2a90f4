package problem

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestOutsideAndInside(t *testing.T) {
	inside := errors.New("relation does not exist")
	base := New(Unavailable, "database-unavailable", "Try again.")
	p := base.Because(inside).RetryAfter(1500*time.Millisecond).With("device", "dev_1").WithHeader("X", "y")

	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"type":"urn:strongroom:problem:database-unavailable"`, `"title":"Service Unavailable"`, `"status":503`, `"detail":"Try again."`, `"device":"dev_1"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("outside lacks %s: %s", want, b)
		}
	}
	if strings.Contains(string(b), "relation") {
		t.Errorf("outside tells the inside: %s", b)
	}
	if !strings.Contains(p.Error(), "relation") || !errors.Is(p, inside) {
		t.Errorf("inside is lost: %v", p)
	}
	if p.GetHeaders().Get("Retry-After") != "2" || p.GetHeaders().Get("X") != "y" {
		t.Errorf("headers are %v", p.GetHeaders())
	}
	if base.Unwrap() != nil || base.Member("device") != nil || len(base.GetHeaders()) != 0 {
		t.Error("the original was changed")
	}
}

func TestIs(t *testing.T) {
	p := New(NotFound, "record-not-found", "There is no record %q.", "a")
	wrapped := fmt.Errorf("reading: %w", p.Because(errors.New("x")))
	if !Is(wrapped, "record-not-found") || Is(wrapped, "other") || Is(nil, "other") || !errors.Is(wrapped, p) || Of(wrapped).Detail() != `There is no record "a".` {
		t.Errorf("got %v", wrapped)
	}
	if New(Invalid, "x", "100% sure").Detail() != "100% sure" {
		t.Error("a detail without arguments was formatted")
	}
}
