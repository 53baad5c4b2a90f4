// Package app puts the house together: settings become rooms, rooms get their doors and jobs. It is
// the only place that knows everyone, and holds no rule of its own.
package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"strongroom/internal/actor"
	"strongroom/internal/assurance"
	"strongroom/internal/assurance/report"
	"strongroom/internal/assurance/risk"
	"strongroom/internal/audit"
	"strongroom/internal/audit/repository"
	"strongroom/internal/clock"
	"strongroom/internal/config"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/events"
	"strongroom/internal/finding"
	"strongroom/internal/id"
	"strongroom/internal/identity"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	_ "strongroom/internal/keyring/kms" // the key-management services that root_key.url may name
	"strongroom/internal/policy"
	"strongroom/internal/problem"
	"strongroom/internal/vault"
)

// memoryFile is where the newest checkpoint of the trail is remembered, outside of the database.
const memoryFile = "checkpoint"

// databaseFile is the first file of the embedded database; database.json says which one holds.
const databaseFile = "strongroom-1.db"

// Check returns every fault of the settings, those that only a room can see included.
func Check(c config.Config) error {
	err := errors.Join(c.Validate(), checkBirthDate(c))
	if _, wrong := pinned(c); wrong != nil {
		err = errors.Join(err, wrong)
	}
	if _, faulty := logo(c); faulty != nil {
		err = errors.Join(err, faulty)
	}
	if faulty := events.Validate(sourcesOf(c.Audit.Sources)); faulty != nil {
		err = errors.Join(err, faulty)
	}
	if u := c.Audit.Repository.URL; u != "" {
		if faulty := repository.Check(u); faulty != nil {
			err = errors.Join(err, &config.Error{Key: "audit.repository.url", Problem: faulty.Error()})
		}
	}
	if _, loaded := policy.Load(c.Policies); loaded != nil {
		err = errors.Join(err, &config.Error{Key: "policies", Problem: loaded.Error()})
	}
	return err
}

// House is an installation without its doors: database, keys and trail. Commands use it as it is;
// Serve adds the rooms that customers come to.
type House struct {
	Config   config.Config
	DB       *db.DB
	Ring     *keyring.Keyring
	Trail    *audit.Trail
	Findings *finding.Register
	// Assurance is nil in a house without doors: what is checked is a server.
	Assurance *assurance.Assurance
	Reports   *report.Desk
	Risks     *risk.Register
	Jobs      *jobs.Runner
	Vault     *vault.Vault
	Metrics   *prometheus.Registry
	login     *identity.Identity // nil in a house without doors

	root keyring.Root
	two  keyring.Root // the second root key, while the root moves; the keyring closes it
	log  *slog.Logger
	// accept takes the states of keys as they are; see keyring.Options.AcceptStates.
	accept  bool
	lock    *os.File       // of the data folder, while a server runs on it
	closers []io.Closer    // of the sinks and the archive
	archive *audit.Archive // nil without one

	backups   backups
	memory    string // file of the checkpoint that is remembered, within the data folder; "" remembers none
	restoring bool   // the database may be one whose restore is not done
	replaced  bool   // another database was restored in this one's place
}

// openHouse opens what Init has made, in the name of the actor.
func openHouse(ctx context.Context, c config.Config, by actor.Actor, log *slog.Logger) (*House, error) {
	return openHouseWith(ctx, c, by, log, func(*House) {})
}

func openHouseWith(ctx context.Context, c config.Config, by actor.Actor, log *slog.Logger, prepare func(*House)) (_ *House, err error) {
	h := &House{Config: c, Metrics: prometheus.NewRegistry(), log: log, memory: memoryFile}
	prepare(h)
	defer func() {
		if err != nil {
			_ = h.Close() // the first failure is the one to tell
		}
	}()
	if h.root, err = openRoot(ctx, "root_key", c.RootKey); err != nil {
		return nil, err
	}
	if !c.SecondRootKey.IsZero() {
		if h.two, err = openRoot(ctx, "second_root_key", c.SecondRootKey); err != nil {
			return nil, err
		}
	}
	return h, h.open(ctx, by, false)
}

func (h *House) open(ctx context.Context, by actor.Actor, create bool) error {
	c := h.Config
	options := db.Options{
		Environment: c.Environment, Create: create, Clock: clock.System, Log: h.log, Metrics: h.Metrics,
	}
	if c.Database.URL != "" {
		url, err := c.PostgresURL()
		if err != nil {
			return err
		}
		options.URL = string(url.Reveal())
	} else {
		key, err := keyring.OpenFileKey(ctx, h.root, h.manifest(), c.Environment)
		if err != nil && h.two != nil {
			if second, also := keyring.OpenFileKey(ctx, h.two, h.manifest(), c.Environment); also == nil {
				key, err = second, nil
			}
		}
		if err != nil {
			return err
		}
		options.Dir, options.File, options.Key = c.Data, key.File, key.Key
	}
	return h.openDatabase(ctx, by, options)
}

// openDatabase opens the rooms that every house has, over the database that the options describe.
func (h *House) openDatabase(ctx context.Context, by actor.Actor, options db.Options) (err error) {
	create := options.Create
	if h.DB, err = db.Open(ctx, options); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if err := h.checkRestored(ctx); err != nil {
		return err
	}
	holder := id.New("run")
	h.Jobs = jobs.New(h.DB, jobs.Options{Holder: holder, Clock: clock.System, Log: h.log, Metrics: h.Metrics})
	if err := h.openTrail(ctx, by, holder, create); err != nil {
		return err
	}
	if err := h.openArchive(); err != nil {
		return err
	}
	h.Jobs.Add(h.Trail.Watch())
	h.Jobs.Add(h.Trail.ClockJob())
	h.Reports = report.New(report.Options{DB: h.DB, Keys: h.Ring, Trail: h.Trail, Findings: h.Findings, Clock: clock.System, Log: h.log})
	if err := h.openRisks(ctx, by, create); err != nil {
		return err
	}
	return h.openVault(ctx, by)
}

// openTrail makes the two rooms that need each other: keys, whose making is an event, and the
// trail, whose events are sealed and signed with keys.
func (h *House) openTrail(ctx context.Context, by actor.Actor, holder string, create bool) (err error) {
	atlas, err := h.openAtlas()
	if err != nil {
		return err
	}
	connect := func(k *keyring.Keyring) keyring.Recorder {
		options := audit.Options{
			Clock: clock.System, Log: h.log, Metrics: h.Metrics, Holder: holder,
			Wake:    func() { h.Jobs.Wake(audit.JobName) },
			Locator: atlas, ClockLimit: h.Config.Audit.ClockSkew, Findings: findings{h},
		}
		if h.memory != "" {
			options.Verified = audit.RememberFile(filepath.Join(h.Config.Data, "verified"))
			options.Remember = audit.RememberFile(filepath.Join(h.Config.Data, h.memory))
		}
		h.Trail = audit.New(h.DB, k, options)
		h.Findings = finding.New(finding.Options{DB: h.DB, Trail: h.Trail, Clock: clock.System, Log: h.log, Metrics: h.Metrics})
		return func(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, action, resource string) error {
			return h.Trail.Record(ctx, tx, by, audit.Event{Action: action, Resource: resource, Customer: c, Outcome: audit.Granted})
		}
	}
	h.Ring, err = keyring.Open(ctx, by, keyring.Options{
		DB: h.DB, Root: h.root, Second: h.two, Manifest: h.manifest(), AcceptStates: h.accept, Create: create, Connect: connect,
		Needed: keyNeeded, Findings: findings{h}, Clock: clock.System, Log: h.log, Metrics: h.Metrics,
		KEKEvery: h.Config.Keys.KEKEvery, ServiceEvery: h.Config.Keys.ServiceEvery, Rate: h.Config.Keys.RotationRate,
		CustomerEvery: h.Config.Keys.CustomerEvery,
	})
	return err
}

// findings is the register of findings for the rooms that it stands on itself, which are made before it.
type findings struct{ house *House }

// Raise is that of finding.Register.
func (f findings) Raise(ctx context.Context, kind, subject, detail string) error {
	return f.house.Findings.Raise(ctx, kind, subject, detail)
}

// Clear is that of finding.Register.
func (f findings) Clear(ctx context.Context, kind, subject string) error {
	return f.house.Findings.Clear(ctx, kind, subject)
}

// manifest is the path of the embedded database's manifest, or "".
func (h *House) manifest() string {
	if h.Config.Database.URL != "" {
		return ""
	}
	return filepath.Join(h.Config.Data, keyring.ManifestName)
}

// openRoot opens the root key that the settings under the key name.
func openRoot(ctx context.Context, key string, c config.RootKey) (keyring.Root, error) {
	root := keyring.RootConfig{URL: c.URL, Path: c.File}
	if c.URL == "" || strings.HasPrefix(c.URL, "age:") && !c.Passphrase.IsZero() {
		passphrase, err := c.Passphrase.Read()
		if err != nil {
			return nil, &config.Error{Key: key + ".passphrase", Problem: err.Error()}
		}
		root.Passphrase = passphrase
	}
	opened, err := keyring.OpenRoot(ctx, root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return opened, nil
}

// lockFolder keeps a second server off the data folder for as long as this one is open: the embedded
// database would refuse it, but with PostgreSQL it would take this one's control socket and ready file.
// The kernel lets go of the lock with the process, however that ends.
func (h *House) lockFolder() error {
	path := filepath.Join(h.Config.Data, "server.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%s is held: another server runs on this data folder: stop it, or give this one a folder of its own", path)
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	h.lock = f
	return nil
}

// settle gives every event its place in the log and remembers the last checkpoint.
func (h *House) settle(ctx context.Context) error {
	for {
		n, err := h.Trail.Sequence(ctx)
		if err != nil {
			return errors.Join(err, h.Trail.Remember())
		}
		if n == 0 {
			return h.Trail.Remember()
		}
	}
}

// Close closes what was opened, last first.
func (h *House) Close() error {
	var errs []error
	for _, c := range h.closers {
		errs = append(errs, c.Close())
	}
	errs = append(errs, h.backups.close())
	if h.DB != nil {
		errs = append(errs, h.DB.Close())
	}
	if h.Ring != nil {
		errs = append(errs, h.Ring.CloseSecond())
	}
	if h.root != nil {
		errs = append(errs, h.root.Close())
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
	}
	return errors.Join(errs...)
}

// Init makes an installation in c.Data: the settings file, the root key with a fresh passphrase
// when root_key.passphrase names a file that is not there, the database and its first keys. It
// refuses a folder that already has settings.
func Init(ctx context.Context, c config.Config) error {
	if err := c.Resolve(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	settings := filepath.Join(c.Data, config.FileName)
	if _, err := os.Stat(settings); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there already: this folder holds an installation; choose another, or use it as it is", settings)
	}
	if err := makeRoot("root_key", c.RootKey); err != nil {
		return err
	}
	root, err := openRoot(ctx, "root_key", c.RootKey)
	if err != nil {
		return err
	}
	if c.Database.URL == "" {
		_, err = keyring.CreateFileKey(ctx, root, filepath.Join(c.Data, keyring.ManifestName), c.Environment, databaseFile)
		if err != nil && !errors.Is(err, keyring.ErrExists) { // left by an init that was cut short
			return errors.Join(err, root.Close())
		}
	}
	h := &House{Config: c, Metrics: prometheus.NewRegistry(), log: slog.New(slog.DiscardHandler), root: root, memory: memoryFile}
	err = h.open(ctx, commandActor(os.Getuid()), true)
	var signers []string
	if err == nil {
		signers, err = h.Ring.EvidenceKeys(ctx)
	}
	if err := errors.Join(err, h.Close()); err != nil {
		return err
	}
	if err := errors.Join(writeDevPolicy(c), makeDevRecovery(&c, signers)); err != nil {
		return err
	}
	// The settings come last: a folder that has them is complete.
	text := c.ForInit()
	if c.Environment == config.Dev {
		if text, err = c.Differences(); err != nil {
			return err
		}
	}
	return writeFile(settings, text)
}

// makeRoot makes the local root key, or the age identity that has a passphrase, and its passphrase,
// unless they are there or elsewhere.
func makeRoot(key string, c config.RootKey) error {
	path, create := c.File, keyring.CreateLocalRoot
	if identity, ok := strings.CutPrefix(c.URL, "age://"); ok && !c.Passphrase.IsZero() {
		path, create = identity, keyring.CreateAgeRoot
	} else if c.URL != "" {
		return nil
	}
	if file := c.Passphrase.File; file != "" {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			if err := writeFile(file, newPassphrase()+"\n"); err != nil {
				return err
			}
		}
	}
	passphrase, err := c.Passphrase.Read()
	if err != nil {
		return &config.Error{Key: key + ".passphrase", Problem: err.Error()}
	}
	err = create(path, passphrase)
	if errors.Is(err, keyring.ErrExists) {
		return nil
	}
	return err
}

// newPassphrase returns 130 random bits in groups of four characters, for people who must type it.
func newPassphrase() string {
	text := strings.ToLower(rand.Text())
	var groups []string
	for ; len(text) > 4; text = text[4:] {
		groups = append(groups, text[:4])
	}
	return strings.Join(append(groups, text), "-")
}

// writeFile makes a file that is not there yet, whole or not at all.
func writeFile(path, text string) error {
	draft := path + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) { // left by an init that was cut short
		return err
	}
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Link(draft, path) // which, unlike Rename, does not replace
	}
	if err = errors.Join(err, os.Remove(draft)); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Operate returns the installation's operator: its running server, or the installation itself.
func Operate(ctx context.Context, c config.Config, log *slog.Logger) (Operator, error) {
	remote, err := dial(ctx, c.Data)
	if err == nil {
		return remote, nil
	}
	by := commandActor(os.Getuid())
	h, err := openHouse(ctx, c, by, log)
	if err != nil {
		return nil, err
	}
	return operator{h, by, true}, nil
}

// operator is House in the name of one caller.
type operator struct {
	house *House
	by    actor.Actor
	alone bool // no server runs on the folder
}

func (o operator) Verify(ctx context.Context, progress func(done, total int64)) (audit.Report, error) {
	o.upToDate(ctx)
	return o.house.Trail.Verify(ctx, o.by, progress)
}

func (o operator) Tail(ctx context.Context, after string, limit int) ([]audit.Entry, error) {
	return o.house.Trail.Tail(ctx, o.by, after, limit)
}

func (o operator) Keys(ctx context.Context) ([]keyring.Info, error) {
	infos, err := o.house.Ring.List(ctx, o.by)
	if p := problem.Of(err); p != nil && p.Kind() == problem.Forbidden {
		return nil, o.house.Trail.Deny(ctx, o.by, audit.Event{Action: keyring.ActionList, Resource: "keys"}, p)
	}
	return infos, err
}

func (o operator) Findings(ctx context.Context, all bool) ([]finding.Finding, error) {
	return o.house.Findings.List(ctx, o.by, all)
}

// Close brings the trail up to date and closes the installation.
func (o operator) Close() error {
	if o.house.replaced { // its trail is not this folder's any more
		return o.house.Close()
	}
	return errors.Join(o.house.settle(context.Background()), o.house.Close())
}
