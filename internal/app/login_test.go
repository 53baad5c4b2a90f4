package app

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"strongroom/internal/config"
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
	c.Collections = []config.Collection{{Name: "profile", Purposes: []string{birthPurpose}, Fields: []config.Field{{Name: "date_of_birth", Type: "date"}}}}
	if err := checkBirthDate(c); err != nil {
		t.Error(err)
	}
}
