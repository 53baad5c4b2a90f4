package app

import (
	"strongroom/internal/clock"
	"strongroom/internal/config"
	"strongroom/internal/identity"
	"strongroom/internal/identity/oracle"
)

// oracles adds to o those outside who know when SIMs were changed and who has proven their identity.
func oracles(o *identity.Options, c config.Config) error {
	if s := c.SMS.SIMSwap; s.Kind != "" {
		key, err := s.Secret.Read()
		if err != nil {
			return &config.Error{Key: "sms.sim_swap.secret", Problem: err.Error()}
		}
		if s.Kind == "camara" {
			o.SIMs, err = oracle.NewCAMARA(oracle.CAMARAOptions{
				URL: s.URL, TokenURL: s.TokenURL, Client: s.Client, Secret: key, Scope: s.Scope,
				MaxAge: identity.SIMHold, Unknown: s.UnknownNumbers == "send", Clock: clock.System,
			})
		} else {
			var w *oracle.Webhook
			w, err = oracle.NewWebhook(oracle.WebhookOptions{URL: s.URL, Secret: key, Clock: clock.System})
			o.SIMs = oracle.SIMWebhook{Webhook: w}
		}
		if err != nil {
			return &config.Error{Key: "sms.sim_swap", Problem: err.Error()}
		}
	}
	if p := c.Devices.IdentityProofs; p.URL != "" {
		key, err := p.Secret.Read()
		if err != nil {
			return &config.Error{Key: "devices.identity_proofs.secret", Problem: err.Error()}
		}
		w, err := oracle.NewWebhook(oracle.WebhookOptions{URL: p.URL, Secret: key, Clock: clock.System})
		if err != nil {
			return &config.Error{Key: "devices.identity_proofs", Problem: err.Error()}
		}
		o.Proofs = oracle.ProofWebhook{Webhook: w}
	}
	return nil
}
