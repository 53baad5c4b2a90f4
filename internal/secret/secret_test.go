package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestNothingPrintsASecret(t *testing.T) {
	v := FromString("hunter2")
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("x", "v", v, "p", &v, "in", struct{ V Value }{v})
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v, "in", struct{ V Value }{v})
	b, err := json.Marshal(map[string]any{"v": v, "p": &v})
	if err != nil {
		t.Fatal(err)
	}
	said := []string{string(b), log.String(), errors.Join(fmt.Errorf("%v", v)).Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p"} {
		said = append(said, fmt.Sprintf(verb, v), fmt.Sprintf(verb, struct{ V Value }{v}), fmt.Sprintf(verb, []Value{v}))
	}
	for _, s := range said {
		if strings.Contains(s, "hunter2") || strings.Contains(s, "68756e74") || strings.Contains(strings.ToLower(s), "104 117 110") {
			t.Errorf("the secret is in %q", s)
		}
	}
	if string(v.Reveal()) != "hunter2" {
		t.Error("Reveal does not return the secret")
	}
}

func TestEqual(t *testing.T) {
	if !FromString("a").Equal(FromString("a")) || FromString("a").Equal(FromString("b")) || FromString("a").Equal(FromString("ab")) {
		t.Error("Equal is wrong")
	}
}

func TestUnmarshalErrorsSayNothing(t *testing.T) {
	var in struct{ V Value }
	if err := json.Unmarshal([]byte(`{"V":424242}`), &in); err == nil || strings.Contains(err.Error(), "424242") {
		t.Errorf("got %v", err)
	}
	if err := json.Unmarshal([]byte(`{"V":"s"}`), &in); err != nil || string(in.V.Reveal()) != "s" {
		t.Errorf("got %v", err)
	}
}

func TestWipe(t *testing.T) {
	b := []byte("hunter2")
	New(b).Wipe()
	if !bytes.Equal(b, make([]byte, 7)) {
		t.Errorf("left %q", b)
	}
}
