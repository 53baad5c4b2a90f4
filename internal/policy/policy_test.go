package policy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/policy"
)

// load writes the files, named in turn, into a folder and loads it.
func load(t testing.TB, files ...string) (*policy.Set, error) {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return policy.Load(dir)
}

var payouts = actor.Actor{Kind: actor.Service, ID: "spiffe://bank.example/payouts"}

const (
	ada = customer.ID("cus_01jd0000000000000000000000")
	eve = customer.ID("cus_01jd0000000000000000000001")
)

const grants = `
// Payouts reads account numbers to pay, and nothing else.
permit (
  principal == Service::"spiffe://bank.example/payouts",
  action in [Action::"record.read", Action::"record.reveal"],
  resource == Collection::"bank_account"
) when { context.purpose == "payment" && ["iban", "holder"].containsAll(context.fields) };

permit (principal == Service::"spiffe://bank.example/payouts", action in Action::"keys", resource == Key::"payments");
permit (principal, action == Action::"customer.create", resource == Environment::"dev");

// Nobody at all touches eve.
forbid (principal, action, resource)
when { context has customer && context.customer == Customer::"cus_01jd0000000000000000000001" };
`

func TestDecide(t *testing.T) {
	set, err := load(t, "payouts.cedar", grants, "README.md", "not a policy")
	if err != nil {
		t.Fatal(err)
	}
	account, profile := policy.Collection("bank_account"), policy.Collection("profile")
	for _, row := range []struct {
		name string
		q    policy.Question
		want string // a problem, or nothing when it is permitted
	}{
		{"what is permitted", policy.Question{payouts, policy.RecordReveal, account, "payment", ada, []string{"iban"}}, ""},
		{"masked", policy.Question{payouts, policy.RecordRead, account, "payment", ada, nil}, ""},
		{"another field", policy.Question{payouts, policy.RecordReveal, account, "payment", ada, []string{"iban", "bic"}}, "not-permitted"},
		{"another purpose", policy.Question{payouts, policy.RecordReveal, account, "marketing", ada, []string{"iban"}}, "not-permitted"},
		{"no purpose", policy.Question{payouts, policy.RecordRead, account, "", ada, nil}, "purpose-required"},
		{"a purpose that is a person", policy.Question{payouts, policy.RecordRead, account, "Ada Lovelace", ada, nil}, "invalid-purpose"},
		{"another collection", policy.Question{payouts, policy.RecordRead, profile, "payment", ada, nil}, "not-permitted"},
		{"another action", policy.Question{payouts, policy.RecordDelete, account, "payment", ada, nil}, "not-permitted"},
		{"forbidden outweighs permitted", policy.Question{payouts, policy.RecordRead, account, "payment", eve, nil}, "not-permitted"},
		{"another service", policy.Question{actor.Actor{Kind: actor.Service, ID: "spiffe://bank.example/crm"}, policy.RecordRead, account, "payment", ada, nil}, "not-permitted"},
		{"a group of actions", policy.Question{payouts, policy.KeyDecrypt, policy.Key("payments"), "payment", "", nil}, ""},
		{"another key", policy.Question{payouts, policy.KeyDecrypt, policy.Key("other"), "payment", "", nil}, "not-permitted"},
		{"any service", policy.Question{actor.Actor{Kind: actor.Service, ID: "x"}, policy.CustomerCreate, policy.Environment("dev"), "onboarding", "", nil}, ""},
		{"a customer is no service", policy.Question{actor.Actor{Kind: actor.Customer, ID: payouts.ID}, policy.RecordRead, account, "payment", ada, nil}, "not-permitted"},
		{"a service without a name", policy.Question{actor.Actor{Kind: actor.Service}, policy.CustomerCreate, policy.Environment("dev"), "onboarding", "", nil}, "not-permitted"},
		{"an action that nobody declared", policy.Question{payouts, "record.everything", account, "payment", ada, nil}, "not-permitted"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := ""
			if p := set.Decide(row.q); p != nil {
				got = p.Slug()
				if strings.Contains(p.Detail(), "bank.example") || strings.Contains(p.Detail(), "Ada") {
					t.Errorf("the answer repeats what was asked: %s", p.Detail())
				}
			}
			if got != row.want {
				t.Errorf("%q instead of %q", got, row.want)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"what is not Cedar", "permit everything", "a.cedar"},
		{"a misspelt action", `forbid (principal, action == Action::"record.raed", resource);`, "a.cedar line 1"},
		{"a misspelt attribute", "\n\n" + `forbid (principal, action, resource) when { context.porpose == "x" };`, "a.cedar line 3"},
		{"an optional attribute that is not asked for", `forbid (principal, action, resource) when { context.customer == Customer::"x" };`, "a.cedar"},
		{"a misspelt type", `permit (principal, action, resource == Colection::"profile");`, "a.cedar"},
		{"an action on what it is not for", `permit (principal, action == Action::"key.sign", resource == Collection::"profile");`, "a.cedar"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := load(t, "a.cedar", row.text); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("a folder that is not there", func(t *testing.T) {
		if _, err := policy.Load(filepath.Join(t.TempDir(), "policies")); err == nil || !strings.Contains(err.Error(), "make it") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a file that others may write", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "a.cedar")
		if err := os.WriteFile(path, []byte(grants), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o622); err != nil {
			t.Fatal(err)
		}
		if _, err := policy.Load(dir); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
			t.Errorf("%v", err)
		}
	})
}

func TestHashSaysWhatHolds(t *testing.T) {
	hash := func(files ...string) string {
		s, err := load(t, files...)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(s.Resource(), "sha256:"+s.Hash()) || len(s.Hash()) != 64 {
			t.Errorf("resource %q", s.Resource())
		}
		return s.Hash()
	}
	same := hash("a.cedar", grants)
	if hash("a.cedar", grants) != same || hash("a.cedar", grants, "notes.txt", "x") != same {
		t.Error("the hash of the same policies changes")
	}
	for _, other := range []string{hash(), hash("b.cedar", grants), hash("a.cedar", grants+"\n"), hash("a.cedar", grants, "b.cedar", "")} {
		if other == same {
			t.Error("other policies have the same hash")
		}
	}
}

// TestNothingIsPermittedByDefault asks at random for what no operator has permitted.
func TestNothingIsPermittedByDefault(t *testing.T) {
	set, err := policy.Load("")
	if err != nil {
		t.Fatal(err)
	}
	actions := []string{policy.CustomerCreate, policy.RecordCreate, policy.RecordRead, policy.RecordReveal, policy.RecordUpdate,
		policy.RecordDelete, policy.RecordList, policy.RecordHistory, policy.RecordLookup, policy.TokenCreate, policy.TokenReveal,
		policy.KeyCreate, policy.KeyRead, policy.KeyRotate, policy.KeyEncrypt, policy.KeyDecrypt, policy.KeyRewrap, policy.KeyMAC,
		policy.KeyVerifyMAC, policy.KeySign, policy.KeyVerify, policy.AuditStream,
		policy.AuditSearch, policy.AuditReveal, policy.AuditTiles, policy.EventRecord}
	// Each is in the schema, or a policy about it could not be written.
	for _, a := range actions {
		if _, err := load(t, "a.cedar", `permit (principal, action == Action::"`+a+`", resource);`); err != nil {
			t.Error(err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		q := policy.Question{
			By:       actor.Actor{Kind: actor.Service, ID: rapid.String().Draw(t, "service")},
			Action:   rapid.SampledFrom(actions).Draw(t, "action"),
			Resource: policy.Resource{Type: rapid.SampledFrom([]string{"Collection", "TokenKind", "Key", "Source", "Environment"}).Draw(t, "type"), ID: rapid.String().Draw(t, "id")},
			Purpose:  rapid.StringMatching(`[a-z0-9]{1,20}`).Draw(t, "purpose"),
			Fields:   rapid.SliceOf(rapid.String()).Draw(t, "fields"),
		}
		if set.Decide(q) == nil {
			t.Fatal("permitted")
		}
	})
}

// FuzzLoad holds that no text of a policy file brings the loader down.
func FuzzLoad(f *testing.F) {
	f.Add(grants)
	f.Add(`@id("x") permit (principal is Service, action, resource) unless { context.fields.isEmpty() };`)
	f.Fuzz(func(t *testing.T, text string) {
		set, err := load(t, "a.cedar", text)
		if err == nil {
			_ = set.Decide(policy.Question{By: payouts, Action: policy.RecordRead, Resource: policy.Collection("profile"), Purpose: "test", Customer: ada})
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	set, err := load(b, "payouts.cedar", grants)
	if err != nil {
		b.Fatal(err)
	}
	q := policy.Question{payouts, policy.RecordReveal, policy.Collection("bank_account"), "payment", ada, []string{"iban"}}
	b.ReportAllocs()
	for b.Loop() {
		if set.Decide(q) != nil {
			b.Fatal("refused")
		}
	}
}
