package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTemplateIsTheDefault(t *testing.T) {
	var c Config
	if err := Parse([]byte(Template), &c); err != nil {
		t.Fatal(err)
	}
	want := Default()
	// An empty list in the file and none at all mean the same.
	c.Collections, c.Audit.Sinks, c.Audit.Sources, c.Witnesses, c.Trust.Detail = nil, nil, nil, nil, nil
	c.Backup.Repositories, c.Backup.Recipients = nil, nil
	for _, l := range []*Listener{&c.Listeners.App, &c.Listeners.Service, &c.Listeners.Admin} {
		l.Allow, l.TrustedProxies = nil, nil
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("the template differs from Default:\n%+v\n%+v", c, want)
	}
}

// load writes yaml into a fresh folder with a good passphrase and loads it.
func load(t *testing.T, yaml string, environ ...string) (Config, error) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "pass"), "correct horse battery staple", 0o600)
	write(t, filepath.Join(dir, FileName), yaml, 0o600)
	return Load(filepath.Join(dir, FileName), environ)
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

const devBase = "environment: dev\nroot_key: {passphrase: {file: pass, env: ''}}\nsms: {sender: inbox}\n"

func TestRefusals(t *testing.T) {
	rows := []struct {
		name, yaml string
		environ    []string
		want       []string // every one of them stands in the error
		never      string
	}{
		{name: "unknown key", yaml: devBase + "databse: {}\n", want: []string{"databse", "strongroom init"}},
		{name: "repeated key", yaml: devBase + "environment: live\n", want: []string{"environment"}},
		{name: "wrong type", yaml: devBase + "login: {bcrypt_cost: lots}\n", want: []string{"lots"}},
		{name: "environment", yaml: strings.Replace(devBase, "dev", "production", 1), want: []string{"environment: is not dev, uat or live"}},
		{name: "weak bcrypt", yaml: devBase + "login: {bcrypt_cost: 9}\n", want: []string{"login.bcrypt_cost: is not from 10 to 15"}},
		{name: "SIM swaps without a kind", yaml: strings.Replace(devBase, "inbox", "inbox, sim_swap: {url: 'https://a.example'}", 1), want: []string{"sms.sim_swap.kind: is missing"}},
		{name: "SIM swaps over http", yaml: strings.Replace(devBase, "inbox", "inbox, sim_swap: {kind: camara, url: 'http://a.example', unknown_numbers: perhaps}", 1), want: []string{"sms.sim_swap.url: is not", "sms.sim_swap.token_url: is not", "sms.sim_swap.client: is missing", "sms.sim_swap.unknown_numbers: is not", "sms.sim_swap.secret"}},
		{name: "proofs of identity without a secret", yaml: devBase + "devices: {identity_proofs: {url: 'http://kyc.example'}}\n", want: []string{"devices.identity_proofs.url: is not", "devices.identity_proofs.secret"}},
		{name: "short private code", yaml: devBase + "login: {private_code_min_length: 5}\n", want: []string{"login.private_code_min_length"}},
		{name: "ops in the open", yaml: devBase + "listeners: {ops: {address: '0.0.0.0:8446'}}\n", want: []string{"listeners.ops.address: is not a loopback address"}},
		{name: "prefix", yaml: devBase + "listeners: {admin: {allow: [10.0.0.0]}}\n", want: []string{"listeners.admin.allow", "10.0.0.0/8"}},
		{name: "password in the URL", yaml: devBase + "database: {url: 'postgres://u:hunter2@h/d'}\n", want: []string{"database.url: holds a password", "database.password"}, never: "hunter2"},
		{name: "not a URL", yaml: devBase + "database: {url: 'postgres://u:hunter2@h:x/d'}\n", want: []string{"database.url: is not a URL"}, never: "hunter2"},
		{name: "host among the parameters", yaml: "environment: uat\ndatabase: {url: 'postgres://u@localhost/d?host=db.example.com&sslmode=disable'}\n", want: []string{"database.url: names host among its parameters"}},
		{name: "missing passphrase", yaml: "environment: dev\nsms: {sender: inbox}\n", want: []string{"root_key.passphrase: environment variable STRONGROOM_PASSPHRASE is empty"}},
		{name: "unknown variable", yaml: devBase, environ: []string{"STRONGROOM_LOGIN_COST=3"}, want: []string{"STRONGROOM_LOGIN_COST: names no setting"}},
		{name: "bad variable", yaml: devBase, environ: []string{"STRONGROOM_LOGIN_BCRYPT_COST=x"}, want: []string{"STRONGROOM_LOGIN_BCRYPT_COST: is not a whole number"}},
		{name: "live lacks everything", yaml: "environment: live\n", want: []string{
			"login.origin: is missing", "listeners.app.certificate: is missing", "listeners.service.client_ca: is missing", "sms.webhook", "sms.secret", "root_key.passphrase"}},
		{name: "providers", yaml: "sms: {sender: providers, daily_spend: 5, currency: euro, prices: [{prefix: '+44', price: 0}], providers: [" +
			"{name: a, kind: twilio}, {name: a, kind: sns, url: 'http://x'}, {name: B, kind: pigeon, secret: {env: NOT_SET}}, {name: w, kind: webhook}]}\n", want: []string{
			"sms.providers.a: lacks account", "sms.providers.a: is not a name of its own", "sms.providers.a: has no https", "sms.providers.a: lacks a region",
			"sms.providers.B: is of no known kind", "sms.providers.B.secret", "sms.providers.w: has no https", "sms.currency", "sms.prices",
		}},
		{name: "login texts", yaml: "login: {brand: '', webotp_host: 'https://x', android_app_hash: short, birth_date: born, code_reset_hold: 1m}\n", want: []string{
			"login.brand", "login.webotp_host", "login.android_app_hash: and webotp_host", "login.android_app_hash: is not 11", "login.birth_date", "login.code_reset_hold",
		}},
		{name: "colours", yaml: devBase + "trust: {accent: '#9f9', accent_dark: '#14532d'}\n", want: []string{
			"trust.accent: cannot be read on the page: its contrast is 1.2 to 1; choose a darker one", "trust.accent_dark: cannot be read on the page: its contrast is 1.8 to 1; choose a lighter one",
		}},
		{name: "dev things in live", yaml: "environment: live\nsms: {sender: inbox}\nlogin: {allow_test_numbers: true, private_code_min_length: 5}\n", want: []string{
			"sms.sender: inbox shows one-time codes to anyone", "login.allow_test_numbers: is for dev only", "login.private_code_min_length"}},
		{name: "sinks", yaml: devBase + "audit: {sinks: [{name: A, type: fax}, {name: w, type: webhook, url: 'http://h', path: x}, {name: w, type: syslog, address: h}, {name: f, type: file, key: k, format: xml, max_size: 1}]}\n", want: []string{
			"audit.sinks[0].name: is not 1 to 32", "audit.sinks[0].type: is not a type", "audit.sinks[1].url: is not an https address", "audit.sinks[1].secret: names no secret",
			"audit.sinks[1].path: and max_size", "audit.sinks[2].name: \"w\" is there twice", "audit.sinks[2].address: is not host:port", "audit.sinks[3].path: is missing",
			"audit.sinks[3].format", "audit.sinks[3].key: and certificate go together", "audit.sinks[3].max_size"}},
		{name: "unverified database", yaml: "environment: uat\ndatabase: {url: 'postgres://u@db.internal/d'}\n", want: []string{"does not verify the server's certificate"}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c, err := load(t, row.yaml, row.environ...)
			if err == nil {
				err = c.Validate()
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range row.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error lacks %q:\n%v", want, err)
				}
			}
			if row.never != "" && strings.Contains(err.Error(), row.never) {
				t.Errorf("error tells %q:\n%v", row.never, err)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	c, err := load(t, devBase+"login: {access_lifetime: 90s}\n",
		"STRONGROOM_LISTENERS_ADMIN_ALLOW=10.0.0.0/8, 192.0.2.0/24", "STRONGROOM_LOGIN_IDLE_LIFETIME=2h",
		"STRONGROOM_TEST_POSTGRES=ignored", "HOME=/")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Login.AccessLifetime != 90*time.Second || c.Login.IdleLifetime != 2*time.Hour {
		t.Errorf("lifetimes are %v and %v", c.Login.AccessLifetime, c.Login.IdleLifetime)
	}
	if got := strings.Join(c.Listeners.Admin.Allow, " "); got != "10.0.0.0/8 192.0.2.0/24" {
		t.Errorf("admin.allow is %q", got)
	}
	if c.RootKey.File != filepath.Join(c.Data, "root.key") || !filepath.IsAbs(c.Data) {
		t.Errorf("paths are not below the file's folder: %s, %s", c.Data, c.RootKey.File)
	}
}

func TestDevIsValid(t *testing.T) {
	c := ForDev(t.TempDir())
	if err := c.Resolve(); err != nil {
		t.Fatal(err)
	}
	write(t, c.RootKey.Passphrase.File, "correct horse battery staple\n", 0o600)
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestWrittenSettingsReadBack(t *testing.T) {
	dir := t.TempDir()
	c := ForDev(dir)
	c.Database.URL = "postgres://strongroom@127.0.0.1/x"
	if err := c.Resolve(); err != nil {
		t.Fatal(err)
	}
	short, err := c.Differences()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, FileName), short, 0o600)
	got, err := Load(filepath.Join(dir, FileName), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, c) {
		t.Errorf("read back\n%+v\nwrote\n%+v\n%s", got, c, short)
	}
	if strings.Contains(short, dir) {
		t.Errorf("the file cannot be moved with its folder:\n%s", short)
	}
}

func TestInitSettings(t *testing.T) {
	c := Default()
	c.Environment, c.Database.URL = UAT, "postgres://strongroom@127.0.0.1/x"
	c.RootKey.Passphrase = Secret{File: "root.passphrase"}
	got := Default()
	if err := Parse([]byte(c.ForInit()), &got); err != nil {
		t.Fatal(err)
	}
	if got.Environment != UAT || got.Database.URL != c.Database.URL || got.RootKey.Passphrase != c.RootKey.Passphrase {
		t.Errorf("got %+v", got)
	}
}

func TestSecretFileOpenToOthersIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pass")
	write(t, path, "correct horse battery staple", 0o644)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Secret{File: path}.Read()
	if err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Template))
	f.Add([]byte("environment: dev"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := Default()
		if Parse(b, &c) == nil {
			_ = c.Validate()
		}
	})
}

// backupIn returns settings with one repository for each part, the data's as given.
func backupIn(data string) string {
	return devBase + `backup:
  media: 1
  recipients: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p]
  repositories:
    - {name: data, part: data, medium: disk, ` + data + `}
    - {name: keys, part: keys, medium: disk, region: eu-central-1, url: keys}
`
}

// A backup that would leave the region, lie on one medium, or lock the keys of the erased is refused.
func TestBackupRefusals(t *testing.T) {
	for _, row := range []struct{ name, yaml, want string }{
		{"sound", backupIn("region: eu-west-1, url: data"), ""},
		{"region", backupIn("region: us-east-1, url: data"), `backup.repositories[0].region: "us-east-1" is not among`},
		{"no region", backupIn("url: data"), "backup.repositories[0].region"},
		{"place", backupIn("region: eu-west-1, url: 'ftp://host/x'"), "backup.repositories[0].url"},
		{"one place for both", backupIn("region: eu-west-1, url: keys"), "is that of data"},
		{"media", strings.Replace(backupIn("region: eu-west-1, url: data"), "media: 1", "media: 2", 1), "on 1 separate media, and backup.media asks for 2"},
		{"nobody to recover", strings.Replace(backupIn("region: eu-west-1, url: data"), "recipients: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p]", "recipients: []", 1), "backup.recipients: is empty"},
		{"recipient", strings.Replace(backupIn("region: eu-west-1, url: data"), "age1ql3", "age1xx3", 1), "backup.recipients: holds what is no recipient"},
		{"plain http", backupIn("region: eu-west-1, url: 's3://b', endpoint: 'http://s3.example.com'"), "backup.repositories[0].endpoint"},
		{"half a credential", backupIn("region: eu-west-1, url: 's3://b', access_key: id"), "backup.repositories[0].secret_key"},
		{"lock on a folder", backupIn("region: eu-west-1, url: data, lock: compliance"), "backup.repositories[0].lock"},
		{"time of day", backupIn("region: eu-west-1, url: data") + "  daily_at: noon\n", "backup.daily_at"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, err := load(t, row.yaml)
			if err == nil {
				err = c.Validate()
			}
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%v", err)
			}
		})
	}
	c, err := load(t, backupIn("region: eu-west-1, url: data"))
	if err != nil {
		t.Fatal(err)
	}
	if url := c.Backup.Repositories[0].RepositoryURL(); url != "file://"+filepath.Join(c.Data, "data") {
		t.Errorf("the folder is %s", url)
	}
	text, err := c.Differences()
	if err != nil || !strings.Contains(text, "url: data") || c.Backup.Repositories[0].URL != filepath.Join(c.Data, "data") {
		t.Errorf("%v\n%s", err, text)
	}
}
