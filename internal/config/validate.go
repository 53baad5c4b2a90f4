package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Error says which key is wrong, what is wrong with it and what to do.
type Error struct {
	Key, Problem, Remedy string
}

func (e *Error) Error() string {
	s := e.Key + ": " + e.Problem
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Validate returns every fault at once, each an *Error, joined; nil when there is none.
func (c *Config) Validate() error {
	var v validator
	v.check(c.Environment == Dev || c.Environment == UAT || c.Environment == Live,
		"environment", "is not dev, uat or live", "choose one; it can never change for a database")
	dev := c.Environment == Dev

	v.database(c)
	v.rootKey("root_key", c.RootKey, dev)
	if !c.SecondRootKey.IsZero() {
		v.rootKey("second_root_key", c.SecondRootKey, dev)
	}
	v.keys(c.Keys)
	v.listener("listeners.app", c.Listeners.App, dev)
	v.listener("listeners.service", c.Listeners.Service, dev)
	v.listener("listeners.admin", c.Listeners.Admin, dev)
	v.check(dev || c.Listeners.Service.ClientCA != "", "listeners.service.client_ca", "is missing",
		"name the PEM file of the authority that signs your services' certificates")
	if host, ok := v.address("listeners.ops.address", c.Listeners.Ops.Address); ok {
		ip, err := netip.ParseAddr(host)
		v.check(host == "localhost" || err == nil && ip.IsLoopback(), "listeners.ops.address",
			"is not a loopback address", "health and metrics are plain HTTP: use 127.0.0.1:8446 and let an agent on the host collect them")
	}
	v.duration("listeners.drain", c.Listeners.Drain, 0, 5*time.Minute)
	v.login(c.Login, dev)
	v.devices(c.Devices)
	v.sms(c.SMS, dev)
	v.duration("audit.clock_skew", c.Audit.ClockSkew, 100*time.Millisecond, time.Hour)
	v.witnesses(c.Witnesses, dev)
	v.trust(c.Trust)
	v.backup(&c.Backup)
	v.check(c.Log.Level == "debug" || c.Log.Level == "info" || c.Log.Level == "warn" || c.Log.Level == "error",
		"log.level", "is not a level", "choose debug, info, warn or error")
	v.check(c.Log.Format == "json" || c.Log.Format == "text", "log.format", "is not a format", "choose json or text")
	v.sinks(c.Audit.Sinks)
	v.archive(c.Audit)
	return errors.Join(v.errs...)
}

type validator struct{ errs []error }

func (v *validator) check(ok bool, key, problem, remedy string) {
	if !ok {
		v.errs = append(v.errs, &Error{key, problem, remedy})
	}
}

func (v *validator) secret(key string, s Secret) {
	if _, err := s.Read(); err != nil {
		v.errs = append(v.errs, &Error{Key: key, Problem: err.Error()})
	}
}

func (v *validator) database(c *Config) {
	if c.Database.URL == "" {
		return
	}
	const form = "write postgres://user@host:5432/name?sslmode=verify-full"
	u, err := url.Parse(c.Database.URL)
	if err != nil {
		// url's error quotes the text, which may hold a password.
		v.check(false, "database.url", "is not a URL", form)
		return
	}
	v.check(u.Scheme == "postgres" || u.Scheme == "postgresql", "database.url", "is not a postgres:// URL", form)
	_, hasPassword := u.User.Password()
	v.check(!hasPassword && !u.Query().Has("password"), "database.url", "holds a password",
		"take it out and name its file in database.password: {file: PATH}")
	for _, name := range []string{"host", "hostaddr", "service", "servicefile", "passfile"} {
		v.check(!u.Query().Has(name), "database.url", "names "+name+" among its parameters", "name the host before the path; "+form)
	}
	if !c.Database.Password.IsZero() {
		v.secret("database.password", c.Database.Password)
	}
	if c.Environment != Dev && !isLoopback(u.Hostname()) {
		mode := u.Query().Get("sslmode")
		v.check(mode == "verify-full" || mode == "verify-ca", "database.url", "does not verify the server's certificate",
			"add ?sslmode=verify-full (and sslrootcert=PATH)")
	}
}

func isLoopback(host string) bool {
	if host == "" || host == "localhost" || strings.HasPrefix(host, "/") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// minPassphrase is in bytes. Argon2id makes guessing slow; the length makes it hopeless.
const minPassphrase = 16

func (v *validator) rootKey(key string, r RootKey, dev bool) {
	passphrase := func() {
		s, err := r.Passphrase.Read()
		if err != nil {
			v.errs = append(v.errs, &Error{Key: key + ".passphrase", Problem: err.Error()})
			return
		}
		v.check(s.Len() >= minPassphrase, key+".passphrase", fmt.Sprintf("is shorter than %d characters", minPassphrase),
			"make one: openssl rand -base64 32")
	}
	if r.URL != "" {
		u, err := url.Parse(r.URL)
		ok := err == nil
		if ok {
			switch u.Scheme {
			case "awskms", "gcpkms", "azurekeyvault", "hashivault":
			case "age":
				ok = u.Host == "" && u.Path != ""
				if !r.Passphrase.IsZero() {
					passphrase()
				}
			case "base64key":
				ok = dev
			default:
				ok = false
			}
		}
		v.check(ok, key+".url", "names no key-management service and no age identity",
			"use awskms://, gcpkms://, azurekeyvault://, hashivault:// or age:///path, or leave it empty for a local key file")
		return
	}
	v.check(r.File != "", key+".file", "is empty", "name the local key file, for example root.key")
	passphrase()
}

func (v *validator) keys(k Keys) {
	const year = 365 * 24 * time.Hour
	every := func(key string, d, most time.Duration, years string) {
		v.check(d == 0 || d >= time.Hour && d <= most, key,
			"is not 0 and not from an hour to "+years, "write 2160h for 90 days, or 0 to rotate by hand only")
	}
	every("keys.kek_every", k.KEKEvery, year, "a year")
	every("keys.service_every", k.ServiceEvery, 5*year, "five years")
	every("keys.customer_every", k.CustomerEvery, 5*year, "five years")
	v.between("keys.rotation_rate", k.RotationRate, 10, 1_000_000)
}

func (v *validator) address(key, address string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		var n int
		n, err = strconv.Atoi(port)
		if err == nil && (n < 0 || n > 65535) {
			err = errors.New("port out of range")
		}
	}
	v.check(err == nil, key, "is not host:port", "write for example 127.0.0.1:8443")
	return host, err == nil
}

func (v *validator) listener(key string, l Listener, dev bool) {
	v.address(key+".address", l.Address)
	v.check((l.Certificate == "") == (l.Key == ""), key+".key", "and certificate go together", "set both, or neither in dev")
	v.check(dev || l.Certificate != "", key+".certificate", "is missing", "name the PEM files of certificate and key")
	for name, list := range map[string][]string{"allow": l.Allow, "trusted_proxies": l.TrustedProxies} {
		for _, p := range list {
			_, err := netip.ParsePrefix(p)
			v.check(err == nil, key+"."+name, strconv.Quote(p)+" is not an address prefix", "write for example 10.0.0.0/8 or 2001:db8::/32")
		}
	}
	v.between(key+".max_connections", l.MaxConnections, 1, 1<<20)
	v.between(key+".max_connections_per_address", l.MaxConnectionsPerAddress, 1, 1<<20)
	v.between(key+".max_requests_per_address", l.MaxRequestsPerAddress, 1, 1<<20)
	v.between(key+".burst", l.Burst, 1, 1<<20)
	v.check(l.RequestsPerSecond > 0, key+".requests_per_second", "is not above 0", "50 is the default")
	v.between(key+".max_body", int(l.MaxBody), 1024, 64<<20)
}

func (v *validator) between(key string, n, low, high int) {
	v.check(n >= low && n <= high, key, fmt.Sprintf("is not from %d to %d", low, high), "")
}

func (v *validator) login(l Login, dev bool) {
	if l.Origin != "" {
		u, err := url.Parse(l.Origin)
		v.check(err == nil && u.Scheme == "https" && u.Host != "" && u.Path == "" && u.RawQuery == "" && u.User == nil,
			"login.origin", "is not an https origin", "write for example https://api.example.com")
	}
	v.check(dev || l.Origin != "", "login.origin", "is missing",
		"write the https origin that apps use, for example https://api.example.com: proofs are bound to it")
	v.check(dev || !l.AllowTestNumbers, "login.allow_test_numbers", "is for dev only", "remove it")
	v.between("login.private_code_min_length", l.PrivateCodeMinLength, 6, 32)
	v.duration("login.code_reset_hold", l.CodeResetHold, time.Hour, 30*24*time.Hour)
	v.check(l.BirthDate == "" || birthDate.MatchString(l.BirthDate), "login.birth_date", "is not collection.field", "write for example profile.birth_date")
	v.check(l.Brand != "" && len(l.Brand) <= 32, "login.brand", "is empty or longer than 32 characters", "name your product, as customers know it")
	v.check(l.WebOTPHost == "" || l.AndroidAppHash == "", "login.android_app_hash", "and webotp_host exclude each other", "a message has one end: keep the one that most customers use")
	v.check(l.AndroidAppHash == "" || appHash.MatchString(l.AndroidAppHash), "login.android_app_hash", "is not 11 characters of base64", "compute it with AppSignatureHelper")
	v.check(l.WebOTPHost == "" || host.MatchString(l.WebOTPHost), "login.webotp_host", "is not a host name", "write for example bank.example")
	v.between("login.bcrypt_cost", l.BcryptCost, 10, 15)
	v.between("login.hash_workers", l.HashWorkers, 0, 1024)
	v.between("login.starts_per_hour", l.StartsPerHour, 1, 1<<30)
	v.duration("login.access_lifetime", l.AccessLifetime, time.Second, 15*time.Minute)
	v.duration("login.idle_lifetime", l.IdleLifetime, l.AccessLifetime, 30*24*time.Hour)
	v.duration("login.session_lifetime", l.SessionLifetime, l.IdleLifetime, 90*24*time.Hour)
	v.duration("login.payment_idle", l.PaymentIdle, time.Minute, 5*time.Minute)
	v.duration("login.read_idle", l.ReadIdle, l.AccessLifetime, 90*24*time.Hour)
	v.duration("login.read_lifetime", l.ReadLifetime, l.ReadIdle, 180*24*time.Hour)
	v.duration("login.step_up_age", l.StepUpAge, time.Minute, 24*time.Hour)
}

var (
	birthDate = regexp.MustCompile(`^[a-z][a-z0-9_-]*\.[a-z][a-z0-9_]*$`)
	appHash   = regexp.MustCompile(`^[A-Za-z0-9+/]{11}$`)
	host      = regexp.MustCompile(`^[a-z0-9-]+(\.[a-z0-9-]+)+$`)
	provider  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
	prefix    = regexp.MustCompile(`^[0-9]{0,12}$`)
	currency  = regexp.MustCompile(`^[A-Z]{3}$`)
)

func (v *validator) devices(d Devices) {
	v.between("devices.max", d.Max, 1, 100)
	v.check(slices.Contains([]string{"off", "when-sent", "required"}, d.Attestation), "devices.attestation", "is not off, when-sent or required", "")
	_, err := d.SignerHashes()
	v.check(err == nil, "devices.android_signers", fmt.Sprint(err), "write what apksigner verify --print-certs prints as SHA-256")
	named := len(d.AppleApps) > 0 || len(d.AndroidPackages) > 0 && len(d.AndroidSigners) > 0
	v.check(d.Attestation != "required" || named, "devices.attestation", "is required, and no app is named",
		"write apple_apps, or android_packages and android_signers: no new device could be enrolled")
	v.check(d.PasskeyDomain == "" || len(d.PasskeyOrigins)+len(d.PasskeyApps) > 0, "devices.passkey_origins", "is empty",
		"write for example [https://app.example.com]")
	for _, o := range d.PasskeyOrigins {
		u, err := url.Parse(o)
		v.check(err == nil && u.Scheme == "https" && u.Host != "" && u.Path == "", "devices.passkey_origins", fmt.Sprintf("%q is not an https origin", o), "")
	}
	if d.IdentityProofs.URL != "" {
		v.https("devices.identity_proofs.url", d.IdentityProofs.URL)
		v.secret("devices.identity_proofs.secret", d.IdentityProofs.Secret)
	}
	v.check(d.CancelURL == "" || strings.HasPrefix(d.CancelURL, "https://"), "devices.cancel_url", "is not an https address", "")
}

func (v *validator) duration(key string, d, low, high time.Duration) {
	v.check(d >= low && d <= high, key, fmt.Sprintf("is not from %v to %v", low, high), "")
}

func (v *validator) sms(s SMS, dev bool) {
	v.between("sms.number_hourly", s.NumberHourly, 1, 1<<30)
	v.between("sms.number_daily", s.NumberDaily, s.NumberHourly, 1<<30)
	v.between("sms.daily_cap", s.DailyCap, 1, 1<<30)
	switch s.Sender {
	case "inbox":
		v.check(dev, "sms.sender", "inbox shows one-time codes to anyone, and is for dev only", "use webhook")
	case "webhook":
		u, err := url.Parse(s.Webhook)
		v.check(err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil, "sms.webhook", "is not an https address",
			"name your gateway, for example https://sms.internal/send")
		v.secret("sms.secret", s.Secret)
	case "providers":
		v.providers(s.Providers)
	default:
		v.check(false, "sms.sender", "is not a sender", "choose webhook, providers, or inbox in dev")
	}
	v.simSwap(s.SIMSwap)
	v.check(s.Sender == "providers" || len(s.Providers) == 0, "sms.providers", "are named and not used", "write sms.sender: providers")
	v.between("sms.country_daily", s.CountryDaily, 1, 1<<30)
	v.between("sms.block_daily", s.BlockDaily, 1, 1<<30)
	v.check(s.DailySpend >= 0 && s.DailySpend <= 1e9, "sms.daily_spend", "is not from 0 to 1,000,000,000", "0 means no bound")
	v.check(currency.MatchString(s.Currency), "sms.currency", "is not an ISO 4217 code", "write for example EUR")
	v.check(s.DailySpend == 0 || len(s.Prices) > 0, "sms.prices", "are missing", "daily_spend needs them; begin with {prefix: \"\", price: …}, the dearest that you pay")
	seen := map[string]bool{}
	for _, p := range s.Prices {
		v.check(prefix.MatchString(p.Prefix) && !seen[p.Prefix], "sms.prices", strconv.Quote(p.Prefix)+" is not digits, or there twice", "write the beginning of a number without +")
		v.check(p.Price > 0 && p.Price <= 1000, "sms.prices", strconv.Quote(p.Prefix)+" has no price above 0", "write what one segment costs")
		seen[p.Prefix] = true
	}
}

func (v *validator) https(key, text string) {
	u, err := url.Parse(text)
	v.check(err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.Fragment == "", key, "is not an https address",
		"write for example https://api.example.com/sim-swap/v2")
}

func (v *validator) simSwap(s SIMSwap) {
	switch s.Kind {
	case "":
		v.check(s.URL == "", "sms.sim_swap.kind", "is missing", "choose camara or webhook, or remove url")
		return
	case "camara":
		v.https("sms.sim_swap.token_url", s.TokenURL)
		v.check(s.Client != "", "sms.sim_swap.client", "is missing", "write the client id that the operator gave you")
	case "webhook":
	default:
		v.check(false, "sms.sim_swap.kind", "is not camara or webhook", "")
	}
	v.https("sms.sim_swap.url", s.URL)
	v.check(s.UnknownNumbers == "refuse" || s.UnknownNumbers == "send", "sms.sim_swap.unknown_numbers", "is not refuse or send", "")
	v.secret("sms.sim_swap.secret", s.Secret)
}

func (v *validator) providers(all []Provider) {
	v.check(len(all) > 0, "sms.providers", "names nobody", "name at least one gateway")
	seen := map[string]bool{}
	for _, p := range all {
		key := "sms.providers." + p.Name
		v.check(provider.MatchString(p.Name) && !seen[p.Name], key, "is not a name of its own", "use lower-case letters, digits and hyphens")
		seen[p.Name] = true
		u, err := url.Parse(p.URL)
		v.check(p.URL == "" && p.Kind != "webhook" || err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil, key, "has no https address",
			"set url, for example https://sms.internal/send")
		if p.Kind != "sns" || p.Key != "" {
			v.secret(key+".secret", p.Secret)
		}
		if !p.ReceiptSecret.IsZero() {
			v.secret(key+".receipt_secret", p.ReceiptSecret)
		}
		switch p.Kind {
		case "twilio", "vonage":
			v.check(p.Account != "" && p.From != "", key, "lacks account or from", "name the account (Vonage: the application) and the sender")
		case "sns":
			v.check(p.Region != "", key, "lacks a region", "write for example eu-central-1")
		case "webhook":
		default:
			v.check(false, key, "is of no known kind", "choose twilio, sns, vonage or webhook")
		}
	}
}

const envPrefix = "STRONGROOM_"

// override applies STRONGROOM_* variables. One that names no key is an error: a misspelt override
// would otherwise be a setting that silently does not hold.
func (c *Config) override(environ []string) error {
	fields := map[string]reflect.Value{}
	collect(fields, envPrefix, reflect.ValueOf(c).Elem())
	var errs []error
	var unknown []string
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, envPrefix+"TEST_") {
			continue
		}
		field, ok := fields[name]
		if !ok {
			unknown = append(unknown, name)
			continue
		}
		if err := set(field, value); err != nil {
			errs = append(errs, &Error{Key: name, Problem: err.Error()})
		}
	}
	// Only now is it known which variables the settings name as secrets.
	providers := map[string]bool{}
	for _, p := range c.SMS.Providers {
		providers[p.Secret.Env], providers[p.ReceiptSecret.Env] = true, true
	}
	for _, name := range unknown {
		sink := slices.ContainsFunc(c.Audit.Sinks, func(s Sink) bool { return s.Secret.Env == name })
		if name != c.RootKey.Passphrase.Env && name != c.SecondRootKey.Passphrase.Env && name != c.Database.Password.Env && name != c.SMS.Secret.Env &&
			name != c.SMS.SIMSwap.Secret.Env && name != c.Devices.IdentityProofs.Secret.Env &&
			!sink && !providers[name] && !slices.Contains(c.Backup.secretVariables(), name) {
			errs = append(errs, &Error{Key: name, Problem: "names no setting", Remedy: "see the keys in " + FileName + ", or unset it"})
		}
	}
	return errors.Join(errs...)
}

func collect(fields map[string]reflect.Value, prefix string, v reflect.Value) {
	for i := range v.NumField() {
		name := prefix + strings.ToUpper(v.Type().Field(i).Tag.Get("yaml"))
		switch f := v.Field(i); {
		case f.Kind() == reflect.Struct:
			collect(fields, name+"_", f)
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() != reflect.String:
			// Collections are too rich for a variable.
		default:
			fields[name] = f
		}
	}
}

func set(f reflect.Value, s string) error {
	switch f.Interface().(type) {
	case string:
		f.SetString(s)
	case []string:
		var list []string
		for _, item := range strings.Split(s, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		f.Set(reflect.ValueOf(list))
	case time.Duration:
		d, err := time.ParseDuration(s)
		if err != nil {
			return errors.New("is not a duration; write for example 5m")
		}
		f.SetInt(int64(d))
	case bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return errors.New("is not true or false")
		}
		f.SetBool(b)
	case int, int64:
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return errors.New("is not a whole number")
		}
		f.SetInt(n)
	case float64:
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return errors.New("is not a number")
		}
		f.SetFloat(n)
	}
	return nil
}

func (v *validator) witnesses(list []Witness, dev bool) {
	names := make(map[string]bool)
	for i, w := range list {
		key := "witnesses[" + strconv.Itoa(i) + "]"
		name, _, _ := strings.Cut(w.Key, "+")
		v.check(name != "" && strings.Count(w.Key, "+") >= 2, key+".key", "is not a verifier key",
			"have it from the witness's operator: name+hash+base64")
		v.check(!names[name], key+".key", "has a name that another witness has", "name each witness once")
		names[name] = true
		u, err := url.Parse(w.URL)
		v.check(err == nil && u.Host != "" && u.User == nil && (u.Scheme == "https" || dev && u.Scheme == "http"), key+".url",
			"is not an https address", "give the address to which /add-checkpoint is added")
	}
}

var colour = regexp.MustCompile(`^(#([0-9a-fA-F]{3}|[0-9a-fA-F]{6}))?$`)

// contrast is the ratio of two colours, #rgb or #rrggbb, as WCAG 2.2 defines it.
func contrast(a, b string) float64 {
	luminance := func(c string) float64 {
		if c = c[1:]; len(c) == 3 {
			c = string([]byte{c[0], c[0], c[1], c[1], c[2], c[2]})
		}
		var sum float64
		for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
			n, _ := strconv.ParseUint(c[2*i:2*i+2], 16, 8) // the form was checked
			s := float64(n) / 255
			if s <= 0.04045 {
				s /= 12.92
			} else {
				s = math.Pow((s+0.055)/1.055, 2.4)
			}
			sum += weight * s
		}
		return sum
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func (v *validator) trust(t Trust) {
	link := func(key, text string, schemes ...string) {
		u, err := url.Parse(text)
		v.check(text == "" || err == nil && slices.Contains(schemes, u.Scheme) && !strings.ContainsAny(text, "\r\n "), key,
			"is not an address", "begin it with "+strings.Join(schemes, ": or ")+":")
	}
	link("trust.contact", t.Contact, "mailto", "https")
	link("trust.policy", t.Policy, "https")
	readable := func(key, accent, ground, remedy string) {
		if v.check(colour.MatchString(accent), key, "is not a colour", "write it like #14532d"); accent == "" || !colour.MatchString(accent) {
			return
		}
		ratio := contrast(accent, ground)
		v.check(ratio >= 4.5, key, fmt.Sprintf("cannot be read on the page: its contrast is %.1f to 1", ratio), remedy+" of at least 4.5 to 1 (WCAG 2.2, 1.4.3)")
	}
	readable("trust.accent", t.Accent, "#fbfaf7", "choose a darker one, with a contrast")
	readable("trust.accent_dark", t.AccentDark, "#1f1d1b", "choose a lighter one, with a contrast")
	for claim, detail := range t.Detail {
		v.check(detail == "none" || detail == "state" || detail == "figures", "trust.detail."+claim, "is not a detail", "choose none, state or figures")
	}
}
