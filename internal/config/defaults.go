package config

import (
	_ "embed"
	"time"
)

// Default returns the settings that hold when nothing is said. They are safe for live, and still
// lack what only the operator can give: certificates, an SMS gateway and a passphrase.
func Default() Config {
	door := Listener{
		MaxConnections:           4096,
		MaxConnectionsPerAddress: 128,
		MaxRequestsPerAddress:    64,
		RequestsPerSecond:        50,
		Burst:                    100,
		MaxBody:                  64 << 10,
	}
	listener := func(address string) Listener { l := door; l.Address = address; return l }
	return Config{
		Environment: Live,
		RootKey:     RootKey{File: "root.key", Passphrase: Secret{Env: "STRONGROOM_PASSPHRASE"}},
		Keys:        Keys{KEKEvery: 90 * 24 * time.Hour, ServiceEvery: 365 * 24 * time.Hour, CustomerEvery: 365 * 24 * time.Hour, RotationRate: 5_000},
		Listeners: Listeners{
			App:     listener("127.0.0.1:8443"),
			Service: listener("127.0.0.1:8444"),
			Admin:   listener("127.0.0.1:8445"),
			Ops:     Ops{Address: "127.0.0.1:8446"},
		},
		Login: Login{
			PrivateCodeMinLength: 8,
			BcryptCost:           12,
			AccessLifetime:       5 * time.Minute,
			IdleLifetime:         time.Hour,
			SessionLifetime:      24 * time.Hour,
			PaymentIdle:          5 * time.Minute,
			ReadIdle:             30 * 24 * time.Hour,
			ReadLifetime:         90 * 24 * time.Hour,
			StepUpAge:            15 * time.Minute,
			StartsPerHour:        60,
			CodeResetHold:        24 * time.Hour,
			Brand:                "Strongroom",
		},
		Backup: defaultBackup(),
		Devices: Devices{
			Max: 5, Attestation: "when-sent",
			AndroidPackages: []string{}, AndroidSigners: []string{}, AppleApps: []string{}, PasskeyOrigins: []string{}, PasskeyApps: []string{},
		},
		SMS: SMS{Sender: "webhook", NumberHourly: 5, NumberDaily: 10, DailyCap: 10_000, CountryDaily: 5_000, BlockDaily: 100, Currency: "EUR",
			SIMSwap: SIMSwap{Scope: "sim-swap:check", UnknownNumbers: "refuse"}},
		Audit: Audit{ClockSkew: 2 * time.Second, Online: 365 * 24 * time.Hour, Archive: 6 * 365 * 24 * time.Hour},
		Log:   Log{Level: "info", Format: "json"},
	}
}

// ForDev returns the settings of `strongroom dev`: everything on this machine, codes in an inbox,
// access tokens that expire while one watches, and limits that one eager developer does not meet.
func ForDev(data string) Config {
	c := Default()
	c.Environment = Dev
	c.Data = data
	c.RootKey.Passphrase = Secret{File: "root.passphrase"}
	c.Policies = "policies"
	c.SMS.Sender = "inbox"
	c.SMS.NumberHourly, c.SMS.NumberDaily, c.SMS.DailyCap = 10_000, 100_000, 1_000_000
	c.SMS.CountryDaily, c.SMS.BlockDaily = 1_000_000, 1_000_000
	c.Login.AllowTestNumbers = true
	c.Login.DefaultRegion = "GB"
	c.Login.BcryptCost = 10
	c.Login.AccessLifetime = 5 * time.Second
	c.Login.StartsPerHour = 1_000_000
	c.Devices.PasskeyDomain, c.Devices.PasskeyOrigins = "localhost", []string{"https://localhost:8443"} // browsers have none for addresses
	for _, l := range []*Listener{&c.Listeners.App, &c.Listeners.Service, &c.Listeners.Admin} {
		l.RequestsPerSecond, l.Burst = 5000, 10_000
		l.MaxConnectionsPerAddress, l.MaxRequestsPerAddress = 2048, 512
	}
	return c
}

// Template is the file that `strongroom init` writes: every key with its default and what it
// means. It parses to Default, with the environment filled in.
//
//go:embed strongroom.yaml
var Template string
