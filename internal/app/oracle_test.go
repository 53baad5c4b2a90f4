package app

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"strongroom/internal/config"
	"strongroom/internal/identity"
	"strongroom/internal/identity/oracle"
)

// The settings decide who is asked, and a weak secret is refused by the name of its setting.
func TestOraclesComeFromTheSettings(t *testing.T) {
	write := func(text string) config.Secret {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return config.Secret{File: path}
	}
	good, weak := write("sixteen bytes and more"), write("short")
	var o identity.Options
	if err := oracles(&o, config.Default()); err != nil || o.SIMs != nil || o.Proofs != nil {
		t.Errorf("nobody is to be asked: %v %v %v", o.SIMs, o.Proofs, err)
	}
	c := config.Default()
	c.SMS.SIMSwap = config.SIMSwap{Kind: "camara", URL: "https://a.example/sim-swap/v2", TokenURL: "https://a.example/token", Client: "we", Secret: good, UnknownNumbers: "refuse"}
	c.Devices.IdentityProofs = config.Question{URL: "https://kyc.example/proofs", Secret: good}
	if err := oracles(&o, c); err != nil {
		t.Fatal(err)
	}
	if api, ok := o.SIMs.(*oracle.CAMARA); !ok || api.MaxAge != identity.SIMHold || api.Unknown || o.Proofs == nil {
		t.Errorf("%+v %v", o.SIMs, o.Proofs)
	}
	c.SMS.SIMSwap.Kind = "webhook"
	if err := oracles(&o, c); err != nil {
		t.Fatal(err)
	}
	if _, ok := o.SIMs.(oracle.SIMWebhook); !ok {
		t.Errorf("%T", o.SIMs)
	}
	for key, spoil := range map[string]func(*config.Config){
		"sms.sim_swap":            func(c *config.Config) { c.SMS.SIMSwap.Secret = weak },
		"devices.identity_proofs": func(c *config.Config) { c.Devices.IdentityProofs.Secret = weak },
	} {
		c := c
		spoil(&c)
		var e *config.Error
		if err := oracles(&o, c); !errors.As(err, &e) || e.Key != key {
			t.Errorf("%s: %v", key, err)
		}
	}
}
