package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"strongroom/client"
)

// service returns the SDK's client of the service listener, with the development certificate.
func (s *server) service() *client.Service {
	s.t.Helper()
	certificate, err := tls.LoadX509KeyPair(filepath.Join(s.data, "tls", "client.pem"), filepath.Join(s.data, "tls", "client.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := client.NewService(client.ServiceOptions{BaseURL: s.urls.Service, Certificate: certificate, RootCAs: s.authority()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

var block = regexp.MustCompile("(?s)```sh\n(.*?)```\n(?:```\n(.*?)```\n)?")

// TestVaultExamples runs every request of docs/vault.md as it stands there, and holds its answer
// against the one that is printed.
func TestVaultExamples(t *testing.T) {
	page, err := os.ReadFile("../../docs/vault.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, found := bytes.Cut(page, []byte("## For your services"))
	if !found {
		t.Fatal("docs/vault.md has no examples for services")
	}
	s := start(t, "dev", t.TempDir())
	const mark = "---- end of a block ----"
	script := "set -euo pipefail\n"
	blocks := block.FindAllSubmatch(page, -1)
	for _, b := range blocks {
		script += string(b[1]) + "\necho; echo '" + mark + "'\n"
	}
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "D="+s.data)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, stderr.String())
	}
	answers := strings.Split(string(out), mark)
	requests := 0
	for i, b := range blocks {
		if b[2] == nil {
			continue
		}
		requests++
		want := regexp.QuoteMeta(strings.Join(strings.Fields(string(b[2])), ""))
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(want, "…", ".*") + "$")
		if got := strings.Join(strings.Fields(answers[i]), ""); !pattern.MatchString(got) {
			t.Errorf("%s\nanswers %s\ninstead of %s", b[1], answers[i], b[2])
		}
	}
	if requests != 13 {
		t.Errorf("%d examples instead of 13", requests)
	}
	if r := must(t, "audit", "verify", "--data", s.data); !strings.Contains(r.stdout, "ok") {
		t.Error(r)
	}
}

// TestServiceJourney plays a service's day through the SDK, and then looks for its values on the disk
// and in the log.
func TestServiceJourney(t *testing.T) {
	s := startLogging(t, "dev", t.TempDir())
	service, ctx := s.service(), t.Context()
	payment := service.For("payment")
	customer, err := payment.CreateCustomer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	accounts := payment.Records(customer, "bank_account")
	first, err := accounts.Put(ctx, "rent", map[string]string{"holder": "Grace Hopper", "iban": "GB33BUKB20201555555555"})
	if err != nil || first.Fields["iban"] != "GB****5555" {
		t.Fatal(first.Fields, err)
	}
	second, err := accounts.Patch(ctx, "rent", map[string]any{"holder": "Grace Murray Hopper"}, client.IfMatch(first.ETag))
	if err != nil || second.Version != 2 {
		t.Fatal(second, err)
	}
	if _, err := accounts.Patch(ctx, "rent", map[string]any{"holder": "X"}, client.IfMatch(first.ETag)); !errors.Is(err, client.ErrVersionMismatch) {
		t.Error(err)
	}
	whole, err := accounts.Reveal(ctx, "rent")
	if err != nil || whole.Fields["holder"] != "Grace Murray Hopper" {
		t.Error(whole.Fields, err)
	}
	versions, err := accounts.Versions(ctx, "rent")
	if err != nil || len(versions) != 1 || !versions[0].Current {
		t.Error(versions, err)
	}
	if _, err := service.For("curiosity").Records(customer, "bank_account").Reveal(ctx, "rent"); !errors.Is(err, client.ErrPurposeNotAllowed) {
		t.Error(err)
	}
	found, err := payment.Lookup(ctx, "bank_account", "iban", "GB33BUKB20201555555555")
	if err != nil || !slices.Equal(found, []client.Match{{Customer: customer, Key: "rent"}}) {
		t.Error(found, err)
	}
	results, err := payment.Read(ctx, client.Read{Customer: customer, Collection: "bank_account", Key: "rent", Reveal: []string{"iban"}},
		client.Read{Customer: customer, Collection: "bank_account", Key: "none"})
	if err != nil || results[0].Record.Fields["iban"] != "GB33BUKB20201555555555" || !errors.Is(results[1].Err, client.ErrRecordNotFound) {
		t.Errorf("%+v %v", results, err)
	}
	const card = "5500005555555559"
	token, err := payment.TokeniseSame(ctx, customer, client.CardToken, card)
	if again, err2 := payment.TokeniseSame(ctx, customer, client.CardToken, card); err != nil || err2 != nil || again != token {
		t.Error(token, again, err, err2)
	}
	if value, whose, err := payment.Detokenise(ctx, token); err != nil || value != card || whose != customer {
		t.Error(value, whose, err)
	}
	sealing, mac, signing := payment.Key("column"), payment.Key("webhooks"), payment.Key("receipts")
	if err := errors.Join(sealing.Create(ctx, client.KeyForEncryption), mac.Create(ctx, client.KeyForMAC), signing.Create(ctx, client.KeyForSigning)); err != nil {
		t.Fatal(err)
	}
	secret := []byte("Grace's note: the moth is in the relay")
	ciphertext, err := sealing.Encrypt(ctx, secret, "note/1")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := sealing.Rotate(ctx); err != nil || v != 2 {
		t.Error(v, err)
	}
	again, err := sealing.Rewrap(ctx, ciphertext, "note/1")
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := sealing.Decrypt(ctx, again, "note/1"); err != nil || !bytes.Equal(plain, secret) {
		t.Error(plain, err)
	}
	if _, err := sealing.Decrypt(ctx, again, "note/2"); !errors.Is(err, client.ErrDoesNotOpen) {
		t.Error(err)
	}
	sum, err := mac.MAC(ctx, secret, "hook")
	if ok, err2 := mac.VerifyMAC(ctx, secret, "hook", sum); err != nil || err2 != nil || !ok {
		t.Error(sum, ok, err, err2)
	}
	signature, err := signing.Sign(ctx, secret, "receipt")
	if ok, err2 := signing.Verify(ctx, secret, "receipt", signature); err != nil || err2 != nil || !ok {
		t.Error(signature, ok, err, err2)
	}
	if ok, err := signing.Verify(ctx, secret, "other", signature); err != nil || ok {
		t.Error(ok, err)
	}
	if keys, err := signing.Versions(ctx); err != nil || len(keys) != 1 || len(keys[0].PublicKey) != 32 {
		t.Error(keys, err)
	}
	if r := must(t, "keys", "list", "--data", s.data); !strings.Contains(r.stdout, "named/column") {
		t.Error(r)
	}
	if err := accounts.Delete(ctx, "rent"); err != nil {
		t.Error(err)
	}
	trail := must(t, "audit", "tail", "--data", s.data, "--json", "-n", "1000").stdout
	for _, action := range []string{"policy.set.load", "vault.customer.create", "vault.record.lookup", "vault.record.batch", "vault.token.reveal", "transit.key.decrypt", "keyring.named-key.rotate"} {
		if !strings.Contains(trail, action) {
			t.Errorf("the trail does not say %s", action)
		}
	}
	must(t, "audit", "verify", "--data", s.data)
	s.stop()
	plain := []string{"Hopper", "GB33BUKB", card, token, "moth"}
	everything := []string{s.log.String(), trail}
	err = filepath.WalkDir(s.data, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		everything = append(everything, string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	checkCatalogue(t, s.urls.Data)
	for _, text := range everything {
		for _, value := range plain {
			if value != token && strings.Contains(text, value) {
				t.Errorf("%q stands in the clear", value)
			}
		}
	}
}

// TestServicesAreDeniedByDefault starts without policies: the certificate alone opens nothing.
func TestServicesAreDeniedByDefault(t *testing.T) {
	s, err := tryStart(t, "dev", t.TempDir(), []string{"STRONGROOM_POLICIES="})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.data, "policies")); err != nil {
		t.Fatal(err)
	}
	_, err = s.service().For("onboarding").CreateCustomer(t.Context())
	if errors.Is(err, client.ErrNotPermitted) {
		return
	}
	t.Error(fmt.Errorf("without a policy: %v", err))
}
