// Package config is everything an operator may set. It is read once, in cmd, and handed down as
// values; nothing else in the program reads the environment or a settings file.
//
// Promise: an unknown key, a weak value or a missing secret stops the start, and the error names
// the key and the remedy. Secrets never stand in the file: they are references to a file or to an
// environment variable.
//
// Precedence, lowest first: the defaults here, strongroom.yaml, environment variables
// (STRONGROOM_ followed by the key in capitals, dots as underscores), command-line flags.
package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"strongroom/internal/secret"
)

// FileName is the name of the settings file inside the data folder.
const FileName = "strongroom.yaml"

// The environments. An installation belongs to one of them for ever: the name is stamped into its
// database and bound into its keys.
const (
	Dev  = "dev"
	UAT  = "uat"
	Live = "live"
)

// Config is one installation's settings.
type Config struct {
	// Environment is dev, uat or live. Some weak settings are allowed in dev only.
	Environment string `yaml:"environment"`
	// Data is the folder of the embedded database, the key files and the control socket.
	// Relative paths elsewhere in the file are relative to it. Default: the file's own folder.
	Data string `yaml:"data"`

	Database Database `yaml:"database"`
	RootKey  RootKey  `yaml:"root_key"`
	// SecondRootKey is the other root key while the root moves from one to the other; empty when it does
	// not. Which of the two is the old one does not matter here: the move knows.
	SecondRootKey RootKey      `yaml:"second_root_key"`
	Keys          Keys         `yaml:"keys"`
	Listeners     Listeners    `yaml:"listeners"`
	Login         Login        `yaml:"login"`
	Devices       Devices      `yaml:"devices"`
	SMS           SMS          `yaml:"sms"`
	Log           Log          `yaml:"log"`
	Audit         Audit        `yaml:"audit"`
	Trust         Trust        `yaml:"trust"`
	Backup        Backup       `yaml:"backup"`
	Collections   []Collection `yaml:"collections"`

	// Witnesses are asked to cosign the checkpoints of the audit log.
	Witnesses []Witness `yaml:"witnesses"`

	// Policies is the folder of the Cedar files that say what services may do; empty permits nothing.
	Policies string `yaml:"policies"`
}

// Database chooses the engine.
type Database struct {
	// URL is empty for the embedded encrypted SQLite database, or postgres://user@host/name for
	// PostgreSQL 15 or newer. It must not hold a password.
	URL string `yaml:"url"`
	// Password is PostgreSQL's password, when it asks for one.
	Password Secret `yaml:"password"`
}

// RootKey says who holds the key at the top of the hierarchy.
type RootKey struct {
	// URL is empty for a local key file sealed by a passphrase, age:///path for an age identity, or a
	// gocloud.dev/secrets URL: awskms://, gcpkms://, azurekeyvault://, hashivault://.
	URL string `yaml:"url"`
	// File is the local key file.
	File string `yaml:"file"`
	// Passphrase unseals the local key file, or the age identity when that is encrypted.
	Passphrase Secret `yaml:"passphrase"`
}

// IsZero reports whether no root key is named.
func (r RootKey) IsZero() bool { return r.URL == "" && r.File == "" }

// Keys says when keys are rotated by themselves, and how fast.
type Keys struct {
	// KEKEvery is the age at which the key-encryption key is rotated; 0 means only when asked.
	KEKEvery time.Duration `yaml:"kek_every"`
	// ServiceEvery is the age at which service keys are rotated, those that can be; 0 means only when
	// asked.
	ServiceEvery time.Duration `yaml:"service_every"`
	// CustomerEvery is the age at which a customer's data key is rotated; 0 means only when asked.
	CustomerEvery time.Duration `yaml:"customer_every"`
	// RotationRate bounds how many keys a second a rotation wraps anew, and how many values it seals anew.
	RotationRate int `yaml:"rotation_rate"`
}

// Listeners are the four doors. Each is closed to everything that it does not name.
type Listeners struct {
	// App serves the customers' app, over TLS 1.3.
	App Listener `yaml:"app"`
	// Service serves the fintech's own back-end services, over mutual TLS.
	Service Listener `yaml:"service"`
	// Admin serves staff, over TLS 1.3 from allowed addresses only.
	Admin Listener `yaml:"admin"`
	// Ops serves health and metrics, over plain HTTP on a loopback address only.
	Ops Ops `yaml:"ops"`
	// Drain is how long a stopping server goes on accepting after /readyz turned, so that load
	// balancers notice before connections are refused. 0 is right without one.
	Drain time.Duration `yaml:"drain"`
}

// Listener is one TLS door.
type Listener struct {
	// Address is host:port; port 0 takes a free one.
	Address string `yaml:"address"`
	// Certificate and Key are PEM files, read again when they change. Empty in dev means the
	// development authority that Strongroom makes itself.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	// BackupKey is the PEM file of the key, private or public, that the next certificate will use.
	// Its pin is announced before it is needed, so that apps that pin keys survive the change.
	BackupKey string `yaml:"backup_key"`
	// ClientCA is the PEM file of the authority that signs clients' certificates (service only).
	ClientCA string `yaml:"client_ca"`
	// Allow lists the address prefixes that may connect; empty means everyone on app and
	// loopback only on service and admin.
	Allow []string `yaml:"allow"`
	// TrustedProxies lists the prefixes of load balancers whose X-Forwarded-For is believed.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// MaxConnections and MaxConnectionsPerAddress bound open connections.
	MaxConnections           int `yaml:"max_connections"`
	MaxConnectionsPerAddress int `yaml:"max_connections_per_address"`
	// MaxRequestsPerAddress bounds the requests of one address that are being handled at once.
	MaxRequestsPerAddress int `yaml:"max_requests_per_address"`
	// RequestsPerSecond and Burst bound the requests of one address (IPv6: of one /64).
	RequestsPerSecond float64 `yaml:"requests_per_second"`
	Burst             int     `yaml:"burst"`
	// MaxBody bounds a request body, in bytes.
	MaxBody int64 `yaml:"max_body"`
}

// Ops is the operators' door.
type Ops struct {
	// Address is a loopback host:port; port 0 takes a free one.
	Address string `yaml:"address"`
	// Pprof serves Go's profiles under /debug/pprof/.
	Pprof bool `yaml:"pprof"`
}

// Login holds the rules of customer login.
type Login struct {
	// Origin is the https origin under which apps reach the app listener; DPoP proofs (RFC 9449) are
	// checked against it, so that one made for another server is worth nothing here. Empty, in dev
	// only, means whatever the Host header says.
	Origin string `yaml:"origin"`
	// DefaultRegion is the ISO 3166 country assumed for phone numbers without a country code;
	// empty means that numbers must have one.
	DefaultRegion string `yaml:"default_region"`
	// AllowTestNumbers accepts numbers that regulators reserve for drama (dev only).
	AllowTestNumbers bool `yaml:"allow_test_numbers"`
	// PrivateCodeMinLength is in characters: 8 or more; 6 or 7 is weaker than NIST SP 800-63B-4
	// asks of a centrally verified secret.
	PrivateCodeMinLength int `yaml:"private_code_min_length"`
	// BcryptCost is bcrypt's cost, 10 to 15.
	BcryptCost int `yaml:"bcrypt_cost"`
	// HashWorkers is how many cores bcrypt may use at once; 0 means half of them.
	HashWorkers int `yaml:"hash_workers"`
	// AccessLifetime is the life of an access token. IdleLifetime ends the scope write of an unused
	// session, and SessionLifetime ends write and payment in any case.
	AccessLifetime  time.Duration `yaml:"access_lifetime"`
	IdleLifetime    time.Duration `yaml:"idle_lifetime"`
	SessionLifetime time.Duration `yaml:"session_lifetime"`
	// PaymentIdle ends the scope payment of an unused session, at most 5 minutes (PSD2 RTS art. 4).
	PaymentIdle time.Duration `yaml:"payment_idle"`
	// ReadIdle and ReadLifetime end the scope read, which apps ask for by name.
	ReadIdle     time.Duration `yaml:"read_idle"`
	ReadLifetime time.Duration `yaml:"read_lifetime"`
	// StepUpAge is the oldest login that a session may do dangerous deeds with.
	StepUpAge time.Duration `yaml:"step_up_age"`
	// StartsPerHour bounds the registrations and logins that one source address may start.
	StartsPerHour int `yaml:"starts_per_hour"`
	// CodeResetHold is how long a customer who forgot the private code waits before choosing another.
	CodeResetHold time.Duration `yaml:"code_reset_hold"`
	// BirthDate names the collection and the field of customers' birth dates, "profile.birth_date", which
	// private codes must not hold; empty means that none are kept.
	BirthDate string `yaml:"birth_date"`
	// Brand is what messages call the operator.
	Brand string `yaml:"brand"`
	// WebOTPHost ends messages with the line that lets browsers fill in a code for that host alone;
	// AndroidAppHash with the 11 characters by which Android's SMS Retriever knows the app. One of them.
	WebOTPHost     string `yaml:"webotp_host"`
	AndroidAppHash string `yaml:"android_app_hash"`
}

// Devices holds the rules of customers' devices.
type Devices struct {
	// Max is how many a customer may have, those included that wait for approval.
	Max int `yaml:"max"`
	// Attestation says whether the maker of a new device must vouch for its key (Android Key
	// Attestation, Apple App Attest): off, when-sent or required.
	Attestation string `yaml:"attestation"`
	// AndroidPackages and AndroidSigners (SHA-256 of the signing certificates, hex) name the Android
	// apps, AppleApps (team and bundle) those of iOS. The keys of others are not vouched for.
	AndroidPackages []string `yaml:"android_packages"`
	AndroidSigners  []string `yaml:"android_signers"`
	AppleApps       []string `yaml:"apple_apps"`
	// PasskeyDomain is the domain that passkeys are made for; empty: none are. PasskeyOrigins are the
	// https origins of web and iOS apps, PasskeyApps the android:apk-key-hash:… of Android apps.
	PasskeyDomain  string   `yaml:"passkey_domain"`
	PasskeyOrigins []string `yaml:"passkey_origins"`
	PasskeyApps    []string `yaml:"passkey_apps"`
	// CancelURL is the page that cancels a change of number; the code is added to it. Empty: the
	// message to the old number holds the code alone.
	CancelURL string `yaml:"cancel_url"`
	// IdentityProofs is asked which new devices belong to people who have proven who they are; without a URL
	// nobody is, and it takes two members of staff.
	IdentityProofs Question `yaml:"identity_proofs"`
}

// SignerHashes returns AndroidSigners as bytes, or an error that names the one that is none.
func (d Devices) SignerHashes() ([][]byte, error) {
	var out [][]byte
	for _, s := range d.AndroidSigners {
		b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
		if err != nil || len(b) != 32 {
			return nil, fmt.Errorf("%q is no SHA-256 in hex", s)
		}
		out = append(out, b)
	}
	return out, nil
}

// SMS says how one-time codes travel.
type SMS struct {
	// Sender is "inbox" (dev: messages are shown, never sent), "webhook", or "providers": those below, in
	// that order, each when the ones before it fail.
	Sender string `yaml:"sender"`
	// Webhook is the HTTPS address of the gateway; each request is signed with Secret.
	Webhook string `yaml:"webhook"`
	Secret  Secret `yaml:"secret"`
	// NumberHourly and NumberDaily bound the messages to one number; logins from the customer's own
	// devices, logins from others and registrations are counted apart.
	NumberHourly int `yaml:"number_hourly"`
	NumberDaily  int `yaml:"number_daily"`
	// DailyCap bounds all messages of a day.
	DailyCap int `yaml:"daily_cap"`
	// CountryDaily and BlockDaily bound the messages of a day to numbers of one country, and to numbers
	// alike but for their last four digits: registrations and logins from unknown devices, each.
	CountryDaily int `yaml:"country_daily"`
	BlockDaily   int `yaml:"block_daily"`
	// DailySpend bounds what the messages of a day cost, in Currency, after Prices; 0 means no bound.
	DailySpend float64 `yaml:"daily_spend"`
	Currency   string  `yaml:"currency"`
	// Prices are those of one segment of a message, by the beginning of the number.
	Prices []Price `yaml:"prices"`
	// Providers are asked in this order when Sender is "providers".
	Providers []Provider `yaml:"providers"`
	// SIMSwap says who knows when SIMs were changed.
	SIMSwap SIMSwap `yaml:"sim_swap"`
}

// SIMSwap is where changes of SIMs are looked up before a login's code is sent. No answer: no code.
type SIMSwap struct {
	// Kind is camara (the SIM Swap API of GSMA Open Gateway), webhook (a service of your own), or empty: nobody is asked.
	Kind string `yaml:"kind"`
	// URL is the https address of the API with its version, or of the webhook.
	URL string `yaml:"url"`
	// TokenURL and Client are for camara: where access tokens come from, and who we are there. Scope is asked for.
	TokenURL string `yaml:"token_url"`
	Client   string `yaml:"client"`
	Scope    string `yaml:"scope"`
	// Secret is the client's, or what signs the webhook's requests and answers.
	Secret Secret `yaml:"secret"`
	// UnknownNumbers says what becomes of numbers that the API does not serve: refuse (no codes) or send.
	UnknownNumbers string `yaml:"unknown_numbers"`
}

// Question is a service of the operator that is asked by requests signed with Secret, and signs its answers.
type Question struct {
	URL    string `yaml:"url"`
	Secret Secret `yaml:"secret"`
}

// Price is what a segment of a message costs.
type Price struct {
	Prefix string  `yaml:"prefix"` // of the number, without its plus sign; the longest that fits holds, "" fits all
	Price  float64 `yaml:"price"`
}

// Provider is one gateway for messages.
type Provider struct {
	// Name is the provider's in receipts, events and logs: lower-case letters, digits and hyphens.
	Name string `yaml:"name"`
	// Kind is twilio, sns, vonage or webhook.
	Kind string `yaml:"kind"`
	// Account is Twilio's account SID, or Vonage's application id.
	Account string `yaml:"account"`
	// Key is the name of the API key: Twilio's SK…, or an AWS access key id (empty: the host's role).
	Key string `yaml:"key"`
	// Secret is that key's secret, Vonage's private key, or the webhook's shared secret.
	Secret Secret `yaml:"secret"`
	// ReceiptSecret checks delivery receipts: Twilio's auth token, or Vonage's signature secret. Empty:
	// none are asked for.
	ReceiptSecret Secret `yaml:"receipt_secret"`
	// From is the sender that customers see; Twilio takes a messaging service's SID as well.
	From string `yaml:"from"`
	// Region is the AWS region.
	Region string `yaml:"region"`
	// URL is the webhook's https address; for the others another than their own.
	URL string `yaml:"url"`
}

// Audit says what the trail takes in, compares, and sends on; see docs/audit.md.
type Audit struct {
	// LocationDatabase and NetworkDatabase are MaxMind DB files of countries and of autonomous systems,
	// read again when they are replaced. Without one, where an address was is unknown.
	LocationDatabase string `yaml:"location_database"`
	NetworkDatabase  string `yaml:"network_database"`
	// ClockSkew is how far servers' clocks may be apart, and from the database's, before it is a finding.
	ClockSkew time.Duration `yaml:"clock_skew"`
	// Sources are the operator's own services that record events.
	Sources []Source `yaml:"sources"`
	// Sinks are where the trail is sent to.
	Sinks []Sink `yaml:"sinks"`
	// Repository is where events go that are older than Online, and are deleted when they are older than
	// Archive. Without one they stay in the database.
	Repository ArchiveRepository `yaml:"repository"`
	Online     time.Duration     `yaml:"online"`
	Archive    time.Duration     `yaml:"archive"`
	// HoldUntil, a day (2006-01-02), stops archiving and deleting until then, for HoldReason.
	HoldUntil  string `yaml:"hold_until"`
	HoldReason string `yaml:"hold_reason"`
}

// ArchiveRepository is where the archive of the trail is kept; see docs/audit.md.
type ArchiveRepository struct {
	// URL is file:///folder or s3://bucket?region=R; empty: there is none.
	URL string `yaml:"url"`
	// AccessKey and SecretKey are the credentials for s3.
	AccessKey Secret `yaml:"access_key"`
	SecretKey Secret `yaml:"secret_key"`
}

// Hold returns until when nothing is archived; the zero time when there is no hold.
func (a Audit) Hold() (time.Time, error) {
	if a.HoldUntil == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.DateOnly, a.HoldUntil)
}

// Source is a service that records events of its own.
type Source struct {
	Name    string        `yaml:"name"`
	Service string        `yaml:"service"` // the name that its certificate carries
	Actions []string      `yaml:"actions"` // each begins with the source's name and a dot
	Fields  []SourceField `yaml:"fields"`
}

// SourceField describes one field of a source's events.
type SourceField struct {
	Name      string `yaml:"name"`
	Type      string `yaml:"type"`
	Personal  bool   `yaml:"personal"`
	Required  bool   `yaml:"required"`
	MaxLength int    `yaml:"max_length"`
}

// Trust says what the trust page shows; see docs/assurance.md.
type Trust struct {
	// Name is the operator's, Intro a sentence or two for the head of the page.
	Name  string `yaml:"name"`
	Intro string `yaml:"intro"`
	// Contact is where security concerns go, mailto:… or https://…; Policy what is promised in return.
	Contact string `yaml:"contact"`
	Policy  string `yaml:"policy"`
	// Title is the heading of the page, Concern what stands above the form for reports.
	Title   string `yaml:"title"`
	Concern string `yaml:"concern"`
	// Accent is a colour, "#14532d", and AccentDark the one for people whose screens are dark.
	Accent     string `yaml:"accent"`
	AccentDark string `yaml:"accent_dark"`
	// Logo is the file of a PNG, JPEG or WebP picture of at most 64 KiB.
	Logo string `yaml:"logo"`
	// Detail says of claims how much everybody may see: none, state (when nothing is said) or figures.
	Detail map[string]string `yaml:"detail"`
}

// Log says what is logged; personal values and secrets never are.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is json or text.
	Format string `yaml:"format"`
}

// Sink is a receiver of the trail; see docs/audit.md.
type Sink struct {
	// Name is stable: where the sink has got to is kept under it.
	Name string `yaml:"name"`
	// Type is file, syslog or webhook.
	Type string `yaml:"type"`
	// Format is ocsf (the default) or json.
	Format string `yaml:"format"`
	// Personal sends the personal parts too. They leave the reach of erasure with that.
	Personal bool `yaml:"personal"`
	// Path is the file's.
	Path string `yaml:"path"`
	// MaxSize, in bytes, and MaxAge say when a file is put aside and a new one begun; 0: never.
	MaxSize int64         `yaml:"max_size"`
	MaxAge  time.Duration `yaml:"max_age"`
	// Address is the syslog collector's host:port.
	Address string `yaml:"address"`
	// URL is the webhook's, and Secret signs the requests.
	URL    string `yaml:"url"`
	Secret Secret `yaml:"secret"`
	// CA is the PEM file of the authorities that may vouch for the receiver; empty: the host's.
	CA string `yaml:"ca"`
	// Certificate and Key are the PEM files of the certificate that is shown to the receiver; empty: none.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
}

// Witness is one who is asked to cosign the checkpoints of the audit log (C2SP tlog-witness).
type Witness struct {
	// Key is the witness's verifier key: name+hash+base64.
	Key string `yaml:"key"`
	// URL is where it takes checkpoints, without /add-checkpoint.
	URL string `yaml:"url"`
}

// Collection is one kind of record, as `strongroom vault collection put` takes it too. The vault reads it:
// see docs/vault.md.
type Collection map[string]any

// Secret refers to a secret that is kept elsewhere: in a file or in an environment variable.
type Secret struct {
	File string `yaml:"file"`
	Env  string `yaml:"env"`
}

// IsZero reports whether nothing is referred to.
func (s Secret) IsZero() bool { return s.File == "" && s.Env == "" }

// maxSecret is the size in bytes over which a secret file is surely not a secret.
const maxSecret = 64 << 10

// Read returns the secret, without a final line break. A file that others than its owner may read
// is refused.
func (s Secret) Read() (secret.Value, error) {
	switch {
	case s.File != "" && s.Env != "":
		return secret.Value{}, errors.New("names both a file and an environment variable; keep one")
	case s.Env != "":
		v := os.Getenv(s.Env)
		if v == "" {
			return secret.Value{}, fmt.Errorf("environment variable %s is empty; set it, or use file", s.Env)
		}
		return secret.FromString(v), nil
	case s.File != "":
		info, err := os.Stat(s.File)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return secret.Value{}, fmt.Errorf("secret file %s does not exist; create it with mode 0600", s.File)
			}
			return secret.Value{}, fmt.Errorf("secret file %s cannot be read: %w", s.File, err)
		}
		if info.Mode().Perm()&0o077 != 0 && info.Mode().IsRegular() {
			return secret.Value{}, fmt.Errorf("secret file %s is open to others (mode %04o); run: chmod 600 %s", s.File, info.Mode().Perm(), s.File)
		}
		if info.Size() > maxSecret {
			return secret.Value{}, fmt.Errorf("secret file %s is larger than %d bytes; is it the right file?", s.File, maxSecret)
		}
		b, err := os.ReadFile(s.File)
		if err != nil {
			return secret.Value{}, fmt.Errorf("secret file %s cannot be read: %w", s.File, err)
		}
		v := strings.TrimRight(string(b), "\r\n")
		if v == "" {
			return secret.Value{}, fmt.Errorf("secret file %s is empty; write the secret into it", s.File)
		}
		return secret.FromString(v), nil
	}
	return secret.Value{}, errors.New("names no secret; set file or env")
}

// Load reads path over the defaults, then the environment (as os.Environ returns it), and makes
// relative paths absolute. It does not validate; call Validate once the flags are applied.
func Load(path string, environ []string) (Config, error) {
	c := Default()
	b, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return c, &Error{Key: path, Problem: "does not exist", Remedy: "run `strongroom init --data " + filepath.Dir(path) + "`, or `strongroom dev` to try it out"}
		}
		return c, fmt.Errorf("reading the configuration: %w", err)
	}
	if err := Parse(b, &c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	if err := c.override(environ); err != nil {
		return c, err
	}
	if c.Data == "" {
		c.Data = filepath.Dir(path)
	} else if !filepath.IsAbs(c.Data) {
		c.Data = filepath.Join(filepath.Dir(path), c.Data)
	}
	return c, c.Resolve()
}

// Parse reads YAML over what c already holds. Unknown and repeated keys are errors.
func Parse(b []byte, c *Config) error {
	if len(strings.TrimSpace(string(b))) == 0 {
		return nil
	}
	if err := yaml.Load(b, c, yaml.WithKnownFields(), yaml.WithUniqueKeys()); err != nil {
		return fmt.Errorf("%w (strongroom init writes a file with every key explained)", err)
	}
	return nil
}

// Resolve makes Data absolute and every other path absolute below it.
func (c *Config) Resolve() error {
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	c.Data = data
	for _, p := range c.paths() {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(data, *p)
		}
	}
	return nil
}

// paths returns every setting that is a path below Data when it is relative.
func (c *Config) paths() []*string {
	list := []*string{
		&c.Policies, &c.Trust.Logo, &c.Audit.LocationDatabase, &c.Audit.NetworkDatabase,
		&c.RootKey.File, &c.RootKey.Passphrase.File, &c.Database.Password.File, &c.SMS.Secret.File, &c.SMS.SIMSwap.Secret.File, &c.Devices.IdentityProofs.Secret.File,
		&c.SecondRootKey.File, &c.SecondRootKey.Passphrase.File, &c.Audit.Repository.AccessKey.File, &c.Audit.Repository.SecretKey.File,
		&c.Listeners.App.Certificate, &c.Listeners.App.Key, &c.Listeners.App.BackupKey, &c.Listeners.App.ClientCA,
		&c.Listeners.Service.Certificate, &c.Listeners.Service.Key, &c.Listeners.Service.BackupKey, &c.Listeners.Service.ClientCA,
		&c.Listeners.Admin.Certificate, &c.Listeners.Admin.Key, &c.Listeners.Admin.BackupKey, &c.Listeners.Admin.ClientCA,
	}
	for i := range c.Audit.Sinks {
		s := &c.Audit.Sinks[i]
		list = append(list, &s.Path, &s.Secret.File, &s.CA, &s.Certificate, &s.Key)
	}
	for i := range c.SMS.Providers {
		p := &c.SMS.Providers[i]
		list = append(list, &p.Secret.File, &p.ReceiptSecret.File)
	}
	return append(list, c.Backup.paths()...)
}

// PostgresURL returns the database URL with its password in place, as a secret.
func (c *Config) PostgresURL() (secret.Value, error) {
	if c.Database.Password.IsZero() {
		return secret.FromString(c.Database.URL), nil
	}
	password, err := c.Database.Password.Read()
	if err != nil {
		return secret.Value{}, &Error{Key: "database.password", Problem: err.Error()}
	}
	u, err := url.Parse(c.Database.URL)
	if err != nil {
		return secret.Value{}, &Error{Key: "database.url", Problem: "is not a URL", Remedy: "write postgres://user@host:5432/name"}
	}
	u.User = url.UserPassword(u.User.Username(), string(password.Reveal()))
	return secret.FromString(u.String()), nil
}

// Differences returns the settings that differ from the defaults as YAML, paths relative to Data
// again: the short settings file of `strongroom dev`.
func (c *Config) Differences() (string, error) {
	own, standard := *c, Default()
	own.Audit.Sinks = slices.Clone(c.Audit.Sinks)
	own.Backup.Repositories = slices.Clone(c.Backup.Repositories) // their folders are named anew below
	for _, p := range own.paths() {
		if below, err := filepath.Rel(c.Data, *p); *p != "" && err == nil && filepath.IsLocal(below) {
			*p = below
		}
	}
	own.Data = ""
	b, err := yaml.Dump(differences(reflect.ValueOf(own), reflect.ValueOf(standard)))
	if err != nil {
		return "", err
	}
	return "# What differs from the defaults; `strongroom config template` prints every key, explained.\n" + string(b), nil
}

func differences(own, standard reflect.Value) map[string]any {
	m := map[string]any{}
	for i := range own.NumField() {
		name := own.Type().Field(i).Tag.Get("yaml")
		a, b := own.Field(i), standard.Field(i)
		switch {
		case reflect.DeepEqual(a.Interface(), b.Interface()):
		case a.Kind() == reflect.Struct:
			m[name] = differences(a, b)
		case a.Type() == reflect.TypeFor[time.Duration]():
			m[name] = a.Interface().(time.Duration).String()
		default:
			m[name] = a.Interface()
		}
	}
	return m
}

// ForInit returns the settings file of `strongroom init`: the template with what c chose.
func (c *Config) ForInit() string {
	quoted := func(s string) string { return strconv.Quote(s) }
	return strings.NewReplacer(
		"environment: live\n", "environment: "+c.Environment+"\n",
		"  url: \"\"\n  # Where PostgreSQL's", "  url: "+quoted(c.Database.URL)+"\n  # Where PostgreSQL's",
		"{file: \"\", env: STRONGROOM_PASSPHRASE}", "{file: "+filepath.Base(c.RootKey.Passphrase.File)+", env: \"\"}",
	).Replace(Template)
}
