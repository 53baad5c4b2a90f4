package app

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"strongroom/internal/actor"
	"strongroom/internal/config"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/vault"
)

// Every kind of gateway can be made from settings, in their order, and those that report have receipts.
func TestGatewaysFromSettings(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) config.Secret {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return config.Secret{File: path}
	}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	long := write("long", strings.Repeat("x", 40))
	c := config.Default()
	c.Login.Origin = "https://bank.example"
	c.SMS.Sender = "providers"
	c.SMS.Providers = []config.Provider{
		{Name: "main", Kind: "twilio", Account: "AC1", Key: "SK1", Secret: long, ReceiptSecret: long, From: "MG1"},
		{Name: "second", Kind: "vonage", Account: "app", From: "BANK", ReceiptSecret: long,
			Secret: write("vonage", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})))},
		{Name: "third", Kind: "sns", Region: "eu-central-1"},
		{Name: "own", Kind: "webhook", URL: "https://sms.internal/send", Secret: long},
	}
	r, err := gateways(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"main": true, "second": true, "third": false, "own": true, "nobody": false} {
		if r.Reports(name) != want {
			t.Errorf("%s reports: %v", name, !want)
		}
	}
	c.SMS.Providers[1].Secret = long
	if _, err := gateways(t.Context(), c); err == nil || !strings.Contains(err.Error(), "sms.providers.second") || strings.Contains(err.Error(), "xxxx") {
		t.Errorf("a key that is none: %v", err)
	}
}

func TestBirthDateSetting(t *testing.T) {
	c := config.ForDev(t.TempDir())
	if err := checkBirthDate(c); err != nil {
		t.Error(err)
	}
	c.Login.BirthDate = "profile.date_of_birth"
	if err := checkBirthDate(c); err == nil || !strings.Contains(err.Error(), birthPurpose) {
		t.Errorf("a collection that is not read for it: %v", err)
	}
	c.Collections = []config.Collection{{"name": "profile", "purposes": []any{birthPurpose}, "schema": map[string]any{
		"type": "object", "additionalProperties": false, "properties": map[string]any{"date_of_birth": map[string]any{
			"type": "string", "format": "date", "x-strongroom": map[string]any{"sensitivity": "personal", "mask": "year"}}}}}}
	if err := checkBirthDate(c); err != nil {
		t.Error(err)
	}
}

// Birth dates come from the customer's own record, and every read leaves an event.
func TestBirthDateOfARecord(t *testing.T) {
	c := config.ForDev(t.TempDir())
	c.Login.BirthDate = "person.born"
	c.Collections = []config.Collection{{"name": "person", "purposes": []any{birthPurpose}, "schema": map[string]any{
		"type": "object", "additionalProperties": false, "properties": map[string]any{"born": map[string]any{
			"type": "string", "format": "date", "x-strongroom": map[string]any{"sensitivity": "personal", "mask": "year"}}}}}}
	if err := Init(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := c.Resolve(); err != nil {
		t.Fatal(err)
	}
	h, err := openHouse(t.Context(), c, actor.OfSystem("test"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ada := customer.NewID()
	if err := h.DB.Update(t.Context(), func(tx *db.Tx) error {
		_, err := h.Ring.CreateCustomer(t.Context(), tx, actor.OfSystem("test"), ada)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	b := births{h.Vault, "person", "born"}
	by := actor.Actor{Kind: actor.Anonymous, Key: "k"}
	if got, err := b.BirthDate(t.Context(), by, ada); got != "" || err != nil {
		t.Errorf("without a record %q, %v", got, err)
	}
	self := actor.Actor{Kind: actor.Customer, ID: string(ada), Session: "s", Device: "d"}
	if _, _, err := h.Vault.Put(t.Context(), self, ada, vault.Ref{Collection: "person", Key: "main"}, []byte(`{"born":"1984-03-29"}`), vault.Condition{}); err != nil {
		t.Fatal(err)
	}
	if got, err := b.BirthDate(t.Context(), by, ada); got != "1984-03-29" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	events, err := h.Trail.Tail(t.Context(), actor.OfSystem("test"), "", 20)
	if err != nil {
		t.Fatal(err)
	}
	read := false
	for _, e := range events {
		read = read || e.Action == vault.ActionRead && e.Customer == ada
	}
	if !read {
		t.Error("a read without an event")
	}
}
