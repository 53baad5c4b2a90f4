package app

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/backup"
	"strongroom/internal/clock"
	"strongroom/internal/config"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	"strongroom/internal/secret"
	"strongroom/internal/vault"
)

// RestoreRequest says what to restore where.
type RestoreRequest struct {
	Snapshot string `json:"snapshot,omitempty"` // "" is the newest
	To       string `json:"to"`                 // a folder, or postgres://…
	// Force replaces a database that is there; Environment is then its environment, typed by whoever asks.
	Force       bool   `json:"force,omitempty"`
	Environment string `json:"environment,omitempty"`
	// Only is "" for everything, or "audit" for the trail and the keys that it is verified with.
	Only string `json:"only,omitempty"`
}

// RestoreReport says what was restored.
type RestoreReport struct {
	backup.Restored
	To       string `json:"to"`
	Erased   int    `json:"erased"`             // customers who were erased since, and are erased again
	Replaced string `json:"replaced,omitempty"` // file of the database that was there before; it is kept
	// SignedBy is the key that signed the manifests, as its name and hash; Pinned says that it is one that whoever
	// recovers has brought, and not one that came with the copies.
	SignedBy string `json:"signed_by,omitempty"`
	Pinned   bool   `json:"pinned"`
}

// onlyTrail are the tables of "audit" besides those of the keys.
var onlyTrail = []string{"installation", "event", "event_pending", "event_leaf", "log_tile", "log_head", "log_checkpoint", "log_cosignature", "erasure",
	"data_key", "data_key_tombstone", "kek", "kek_wrap", "key_generation", "key_use", "root_move", "rotation", "service_key"}

var databaseFiles = regexp.MustCompile(`^strongroom-(\d+)\.db$`)

// sharedRoot is a root key that somebody else closes.
type sharedRoot struct{ keyring.Root }

// Close does nothing.
func (sharedRoot) Close() error { return nil }

// checkRestored refuses a database whose restore was cut off, but to whoever restores it.
func (h *House) checkRestored(ctx context.Context) error {
	if h.restoring {
		return nil
	}
	unfinished, err := backup.Unfinished(ctx, h.DB)
	if err == nil && unfinished {
		err = errors.New("database: a restore into it was cut off: run the same `strongroom backup restore` again to end it")
	}
	return err
}

// restoration is one restore on its way.
type restoration struct {
	config config.Config // of what is restored: Data is its folder
	root   keyring.Root
	plan   *backup.Plan
	ask    RestoreRequest
	by     actor.Actor
	log    *slog.Logger
	// adopt makes the restored keys open with root; nil when they do.
	adopt    func(ctx context.Context, d *db.DB) error
	signedBy string // the key that signed the manifests, once the restored keys are open
}

func (o operator) BackupRestore(ctx context.Context, ask RestoreRequest, progress backup.Progress) (RestoreReport, error) {
	h := o.house
	if ask.Only != "" && ask.Only != "audit" {
		return RestoreReport{}, fmt.Errorf("--only %s: only the trail can be restored by itself (audit), or a customer with --customer", ask.Only)
	}
	b, err := h.backup(ctx)
	if err != nil {
		return RestoreReport{}, err
	}
	c := h.Config
	c.Backup.Repositories = nil // two installations never write into the same repositories
	if !isPostgres(ask.To) {
		c.Database = config.Database{}
		if c.Data, err = filepath.Abs(ask.To); err != nil {
			return RestoreReport{}, err
		}
		if c.Data == h.Config.Data && !o.alone {
			return RestoreReport{}, errors.New("a server runs on this folder: stop it before its database is replaced")
		}
	}
	r := restoration{config: c, root: sharedRoot{h.root}, ask: ask, by: o.by, log: h.log}
	if err := r.mayReplace(); err != nil {
		return RestoreReport{}, err
	}
	if r.plan, err = b.Plan(ctx, o.by, ask.Snapshot); err != nil {
		return RestoreReport{}, err
	}
	if o.alone {
		o.settleFirst(ctx)
	}
	if isPostgres(ask.To) {
		same, err := h.DB.Same(ctx, ask.To)
		if err == nil && same && !o.alone {
			err = errors.New("a server runs on this database: stop it, and every other one that serves it, before the database is replaced")
		}
		if err != nil {
			return RestoreReport{}, err
		}
		h.replaced = same && ask.Force
		return r.intoPostgres(ctx, progress)
	}
	var unlock func() error
	if c.Data != h.Config.Data {
		if unlock, err = lockTarget(c.Data); err != nil {
			return RestoreReport{}, err
		}
		defer func() { _ = unlock() }()
	}
	report, err := r.intoFolder(ctx, progress)
	if err == nil && c.Data == h.Config.Data {
		h.replaced = true
	}
	return report, err
}

func isPostgres(to string) bool {
	return strings.HasPrefix(to, "postgres://") || strings.HasPrefix(to, "postgresql://")
}

// lockTarget makes the folder and keeps servers and other restores off it.
func lockTarget(folder string) (func() error, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	h := &House{Config: config.Config{Data: folder}}
	if err := h.lockFolder(); err != nil {
		return nil, err
	}
	return h.lock.Close, nil
}

// mayReplace refuses to restore over something without the word of whoever asks, twice.
func (r *restoration) mayReplace() error {
	if r.ask.Force && r.ask.Environment != r.config.Environment {
		return fmt.Errorf("--force replaces the database of %s: say that you mean it with --environment %s", r.ask.To, r.config.Environment)
	}
	return nil
}

func (r *restoration) into(progress backup.Progress) backup.Into {
	into := backup.Into{Replace: r.ask.Force, Progress: progress}
	if r.ask.Only == "audit" {
		into.Only = func(table string) bool { return slices.Contains(onlyTrail, table) }
	}
	return into
}

// intoFolder makes a complete installation of the folder, or gives the one that is there another database.
// The settings, and the name of the database in database.json, come last: until then the folder is none,
// or is as it was.
func (r *restoration) intoFolder(ctx context.Context, progress backup.Progress) (RestoreReport, error) {
	folder := r.config.Data
	report := RestoreReport{To: folder}
	settings, manifest := filepath.Join(folder, config.FileName), filepath.Join(folder, keyring.ManifestName)
	_, err := os.Stat(settings)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return report, err
	}
	file := databaseFile
	if exists {
		if !r.ask.Force {
			return report, fmt.Errorf("%s holds an installation: choose another folder, or replace its database with --force --environment %s", folder, r.config.Environment)
		}
		was, err := keyring.OpenFileKey(ctx, r.root, manifest, r.config.Environment)
		if err != nil {
			return report, err
		}
		report.Replaced = filepath.Join(folder, was.File)
		if file, err = nextFile(folder); err != nil {
			return report, err
		}
		manifest += ".restored"
	}
	if !exists {
		if err := r.refuseStranger(folder, manifest); err != nil {
			return report, err
		}
	}
	// A mark says that a database without settings is ours, from a restore that was cut off.
	mark, ours := filepath.Join(folder, restoreMark), false
	if !exists {
		if _, err := os.Stat(mark); err == nil {
			ours = true
		} else if err := writeFile(mark, r.plan.Snapshot+"\n"); err != nil {
			return report, err
		}
	}
	key, err := keyring.OpenFileKey(ctx, r.root, manifest, r.config.Environment)
	if errors.Is(err, keyring.ErrNoManifest) {
		key, err = keyring.CreateFileKey(ctx, r.root, manifest, r.config.Environment, file)
	}
	if err != nil {
		return report, err
	}
	options := db.Options{Dir: folder, File: key.File, Key: key.Key, Environment: r.config.Environment, Log: r.log}
	const memory = memoryFile + ".restored"
	into := r.into(progress)
	into.Replace = into.Replace || ours
	into.Finish = func(ctx context.Context) (err error) {
		report.Erased, err = r.finish(ctx, options, memory)
		return err
	}
	if report.Restored, err = r.plan.Restore(ctx, options, into); err != nil {
		return report, err
	}
	// What is remembered of the trail is what the restored trail has: the restore itself is an event there.
	if err := os.Rename(filepath.Join(folder, memory), filepath.Join(folder, memoryFile)); err != nil {
		return report, err
	}
	if exists {
		if err := os.Rename(manifest, filepath.Join(folder, keyring.ManifestName)); err != nil {
			return report, err
		}
	} else if err := errors.Join(r.writeSettings(&r.config), os.Remove(mark)); err != nil {
		return report, err
	}
	return report, nil
}

// restoreMark is a file in a folder whose restore is not done.
const restoreMark = "restoring"

// refuseStranger refuses a folder without settings that has a database which no restore has made.
func (r *restoration) refuseStranger(folder, manifest string) error {
	if _, err := os.Stat(filepath.Join(folder, restoreMark)); err == nil {
		return nil
	}
	if _, err := os.Stat(manifest); err == nil {
		return fmt.Errorf("%s holds a database: choose another folder", folder)
	}
	return nil
}

// nextFile returns a name for a database file that the folder does not have.
func nextFile(folder string) (string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	highest := 0
	for _, e := range entries {
		if m := databaseFiles.FindStringSubmatch(e.Name()); m != nil {
			n, err := strconv.Atoi(m[1])
			if err == nil && n > highest {
				highest = n
			}
		}
	}
	return fmt.Sprintf("strongroom-%d.db", highest+1), nil
}

// intoPostgres fills a PostgreSQL database.
func (r *restoration) intoPostgres(ctx context.Context, progress backup.Progress) (RestoreReport, error) {
	options := db.Options{URL: r.ask.To, Environment: r.config.Environment, Log: r.log}
	report := RestoreReport{To: withoutPassword(r.ask.To)}
	into := r.into(progress)
	into.Finish = func(ctx context.Context) (err error) {
		report.Erased, err = r.finish(ctx, options, "")
		return err
	}
	var err error
	report.Restored, err = r.plan.Restore(ctx, options, into)
	return report, err
}

// finish brings a restored database to where it may serve: its keys open, and whoever was erased since the
// snapshot is erased.
func (r *restoration) finish(ctx context.Context, options db.Options, memory string) (erased int, err error) {
	if r.adopt != nil {
		d, err := db.Open(ctx, options)
		if err != nil {
			return 0, err
		}
		if err := errors.Join(r.adopt(ctx, d), d.Close()); err != nil {
			return 0, err
		}
	}
	h := &House{Config: r.config, Metrics: prometheus.NewRegistry(), log: r.log, root: sharedRoot{r.root}, memory: memory, restoring: true}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := h.openDatabase(ctx, r.by, options); err != nil {
		return 0, err
	}
	if r.signedBy, err = r.plan.Signed(h.Ring.EvidenceVerifiers()); err != nil {
		return 0, fmt.Errorf("the restored installation did not make this copy: %w", err)
	}
	if erased, err = h.eraseAgain(ctx, r.by); err != nil {
		return erased, err
	}
	event := audit.Event{Action: backup.ActionRestore, Resource: "snapshot " + r.plan.Snapshot}
	if r.adopt != nil {
		event.Reason = "recovery-key"
	}
	err = h.Trail.Do(ctx, r.by, event, func(tx *db.Tx, _ *audit.Event) error { return backup.Leave(ctx, tx, clock.System.Now()) })
	return erased, errors.Join(err, h.settle(ctx))
}

// eraseAgain erases whoever has a tombstone and came back with the data.
func (h *House) eraseAgain(ctx context.Context, by actor.Actor) (erased int, err error) {
	var all []customer.ID
	err = h.DB.View(ctx, func(tx *db.Tx) (err error) {
		all, err = h.Ring.ErasedCustomers(ctx, tx)
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, c := range all {
		did, err := h.Vault.EraseRestored(ctx, by, c)
		if err != nil {
			return erased, err
		}
		if did {
			erased++
		}
	}
	return erased, nil
}

// writeSettings writes the policies and then the settings of a restored folder.
func (r *restoration) writeSettings(c *config.Config) error {
	for _, name := range slices.Sorted(keysOf(r.plan.Files)) {
		if policy, _ := path.Match("policies/*.cedar", name); !policy {
			continue // whoever made the copy chose the names
		}
		file := filepath.Join(c.Data, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := writeFile(file, string(r.plan.Files[name])); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		c.Policies = filepath.Join(c.Data, "policies")
	}
	text, err := c.Differences()
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(c.Data, config.FileName), text)
}

func keysOf(m map[string][]byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// RecoverRequest says how to restore on a machine that has nothing.
type RecoverRequest struct {
	RestoreRequest
	Data    string // folder to make: settings, the new root key, and the database unless To is PostgreSQL
	KeyFile string // the recovery key
	// ManifestKeys are verifier keys (C2SP signed-note); without any, those that KeyFile names. The manifests must be
	// signed by one of them. When there are none, only the keys that come with the copies say who signed.
	ManifestKeys []string
	Repositories []backup.RepositoryOptions
}

// Recover restores with nothing but the recovery key and the repositories: after the loss of the server and
// of the root key. It makes a new root key in the folder.
func Recover(ctx context.Context, ask RecoverRequest, log *slog.Logger, progress backup.Progress) (_ RestoreReport, err error) {
	report := RestoreReport{To: ask.To}
	identities, err := readIdentities(ask.KeyFile)
	if err != nil {
		return report, err
	}
	var repositories []*backup.Repository
	defer func() {
		for _, r := range repositories {
			err = errors.Join(err, r.Close())
		}
	}()
	for _, o := range ask.Repositories {
		r, err := backup.OpenRepository(ctx, o)
		if err != nil {
			return report, err
		}
		repositories = append(repositories, r)
	}
	plan, err := backup.PlanRecovery(ctx, repositories, identities, ask.Snapshot)
	if err != nil {
		return report, err
	}
	if plan.KEKs == nil {
		return report, errors.New("the copy of the keys holds nothing for a recovery key: none was named in backup.recipients when it was made")
	}
	known, err := manifestKeys(ask.KeyFile, ask.ManifestKeys)
	if err != nil {
		return report, err
	}
	if known != nil {
		if _, err := plan.Signed(known); err != nil {
			return report, fmt.Errorf("nothing was restored: %w; compare the keys with a later recovery guide", err)
		}
	}
	c := config.Default()
	if text := plan.Files[settingsPath]; text != nil {
		if err := config.Parse(text, &c); err != nil {
			return report, fmt.Errorf("the settings in the snapshot: %w", err)
		}
	}
	c.Environment = plan.Environment
	c.Data, c.Database, c.Policies = ask.Data, config.Database{}, ""
	c.RootKey = config.RootKey{File: "root.key", Passphrase: config.Secret{File: "root.passphrase"}}
	c.Backup.Repositories = nil
	if isPostgres(ask.To) {
		c.Database.URL = withoutPassword(ask.To)
	}
	if err := c.Resolve(); err != nil {
		return report, err
	}
	r := restoration{config: c, plan: plan, ask: ask.RestoreRequest, by: commandActor(os.Getuid()), log: log}
	if err := r.mayReplace(); err != nil {
		return report, err
	}
	unlock, err := lockTarget(c.Data)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := makeRoot("root_key", c.RootKey); err != nil {
		return report, err
	}
	if r.root, err = openRoot(ctx, "root_key", c.RootKey); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, r.root.Close()) }()
	r.adopt = func(ctx context.Context, d *db.DB) error {
		return keyring.Recover(ctx, d, r.root, plan.KEKs, identities...)
	}
	if isPostgres(ask.To) {
		if report, err = r.intoPostgres(ctx, progress); err == nil {
			err = r.writeSettings(&r.config)
		}
	} else {
		report, err = r.intoFolder(ctx, progress)
	}
	report.SignedBy, report.Pinned = r.signedBy, known != nil
	return report, err
}

// scratchFolder is a fresh folder below the data folder, and what removes it.
func (h *House) scratchFolder() (string, func() error, error) {
	folder := filepath.Join(h.Config.Data, id.New(scratchPrefix))
	return folder, func() error { return os.RemoveAll(folder) }, os.MkdirAll(folder, 0o700)
}

// scratchPrefix begins the names of scratch folders.
const scratchPrefix = "scratch"

// sweepScratch removes what a server that was killed left of a restore for practice. Whoever calls it holds the
// lock of the data folder, so nobody uses one.
func (h *House) sweepScratch() error {
	left, err := filepath.Glob(filepath.Join(h.Config.Data, scratchPrefix+"_*"))
	for _, folder := range left {
		if id.Valid(scratchPrefix, filepath.Base(folder)) {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}
	return err
}

// scratchOptions describe an embedded database under a key that nobody keeps.
func (h *House) scratchOptions(folder string) db.Options {
	key := make([]byte, 32)
	rand.Read(key)
	return db.Options{Dir: folder, File: databaseFile, Key: secret.New(key), Environment: h.Config.Environment, Log: h.log}
}

// CustomerReport says what of a customer a snapshot had, and where it is now.
type CustomerReport struct {
	Customer customer.ID `json:"customer"`
	Snapshot string      `json:"snapshot"`
	Taken    time.Time   `json:"taken"`
	To       string      `json:"to"`
	Records  int         `json:"records"`
	Blobs    int         `json:"blobs"`
	Bytes    int64       `json:"bytes"` // of the blobs
}

// BackupCustomer restores the snapshot into a scratch database and exports the customer from there into a new
// folder: the data come out through the same door as ever, and nothing in the live database is touched, where
// they may have changed since. Whoever was erased has no key, and is not exported.
func (o operator) BackupCustomer(ctx context.Context, snapshot string, c customer.ID, to string, progress backup.Progress) (report CustomerReport, err error) {
	h := o.house
	report = CustomerReport{Customer: c, To: to}
	if _, err := os.Lstat(to); !filepath.IsAbs(to) || !errors.Is(err, fs.ErrNotExist) {
		return report, fmt.Errorf("%s is there already, or is no whole path: name a new folder", to)
	}
	b, err := h.backup(ctx)
	if err != nil {
		return report, err
	}
	plan, err := b.Plan(ctx, o.by, snapshot)
	if err != nil {
		return report, err
	}
	report.Snapshot, report.Taken = plan.Snapshot, plan.Taken
	// The event is where the live trail has it, before anything leaves.
	if err := h.Trail.Do(ctx, o.by, audit.Event{Action: vault.ActionExport, Resource: "snapshot " + plan.Snapshot, Customer: c, Reason: "backup"},
		func(tx *db.Tx, _ *audit.Event) error {
			_, err := h.Ring.Customer(ctx, tx, c)
			return err
		}); err != nil {
		return report, err
	}
	folder, remove, err := h.scratchFolder()
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	options := h.scratchOptions(folder)
	_, err = plan.Restore(ctx, options, backup.Into{Progress: progress, Finish: func(ctx context.Context) error {
		return h.within(ctx, o.by, options, func(ctx context.Context, restored *House) error {
			return restored.writeCustomer(ctx, o.by, c, &report)
		})
	}})
	return report, err
}

// writeCustomer writes what is kept of a customer into a new folder: customer.json, the blobs as they are, and,
// for a customer who was imported, each collection as vault import takes it.
func (h *House) writeCustomer(ctx context.Context, by actor.Actor, c customer.ID, report *CustomerReport) (err error) {
	export, err := h.Vault.Export(ctx, by, c)
	if err != nil {
		return err
	}
	if err := os.Mkdir(report.To, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil { // it is not whole
			err = errors.Join(err, os.RemoveAll(report.To))
		}
	}()
	for _, b := range export.Blobs {
		n, err := h.writeBlob(ctx, by, c, b, filepath.Join(report.To, "blobs", fileName(b.Collection), fileName(b.Key)))
		if err != nil {
			return err
		}
		report.Blobs++
		report.Bytes += n
	}
	for name, records := range export.Collections {
		report.Records += len(records)
		if export.External == "" {
			continue
		}
		var lines strings.Builder
		encoder := json.NewEncoder(&lines)
		for _, r := range records {
			if err := encoder.Encode(map[string]any{"customer": export.External, "key": r.Key, "fields": r.Fields}); err != nil {
				return err
			}
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(report.To, "import"), 0o700),
			writeFile(filepath.Join(report.To, "import", fileName(name)+".ndjson"), lines.String())); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(export, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(report.To, "customer.json"), string(text)+"\n")
}

// fileName returns the name of the file for a key. The keys ".." and "." are ones like any other, and folders.
func fileName(key string) string {
	name := url.PathEscape(key)
	if rest, dot := strings.CutPrefix(name, "."); dot {
		return "%2E" + rest
	}
	return name
}

func (h *House) writeBlob(ctx context.Context, by actor.Actor, c customer.ID, b vault.ExportBlob, path string) (int64, error) {
	r, err := h.Vault.ExportBlob(ctx, by, c, b)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, r)
	if err == nil && n != r.Size {
		err = fmt.Errorf("the blob %s/%s has %d bytes, and %d could be read", b.Collection, b.Key, r.Size, n)
	}
	return n, errors.Join(err, f.Sync(), f.Close())
}

// within opens a restored scratch database with this house's keys.
func (h *House) within(ctx context.Context, by actor.Actor, options db.Options, fn func(ctx context.Context, restored *House) error) (err error) {
	ctx = jobs.WithoutLease(ctx) // of the job that drills: the restored database knows it not
	restored := &House{Config: h.Config, Metrics: prometheus.NewRegistry(), log: h.log, root: sharedRoot{h.root}, restoring: true}
	defer func() { err = errors.Join(err, restored.Close()) }()
	if err := restored.openDatabase(ctx, by, options); err != nil {
		return err
	}
	if _, err := restored.eraseAgain(ctx, by); err != nil {
		return err
	}
	return fn(ctx, restored)
}

// drillSample is how many customers' records a drill opens.
const drillSample = 20

// drill restores for practice, into the other engine when one is configured.
func (h *House) drill(ctx context.Context, by actor.Actor, progress backup.Progress) (backup.Drill, error) {
	b, err := h.backup(ctx)
	if err != nil {
		return backup.Drill{}, err
	}
	var scratch backup.Scratch
	if place := h.Config.Backup.DrillDatabase; place != "" {
		u, err := withPassword(place, h.Config.Backup.DrillPassword)
		if err != nil {
			return backup.Drill{}, err
		}
		scratch.Options = db.Options{Environment: h.Config.Environment, Log: h.log}
		if scratch.Options.URL, scratch.Drop, err = db.Scratch(ctx, string(u.Reveal())); err != nil {
			return backup.Drill{}, err
		}
	} else {
		folder, remove, err := h.scratchFolder()
		if err != nil {
			return backup.Drill{}, err
		}
		scratch.Options, scratch.Drop = h.scratchOptions(folder), func(context.Context) error { return remove() }
	}
	scratch.Probe = func(ctx context.Context, served func()) (p backup.Probed, err error) {
		err = h.within(ctx, by, scratch.Options, func(ctx context.Context, restored *House) error {
			if err := restored.settle(ctx); err != nil {
				return err
			}
			served()
			p, err = restored.probe(ctx, by)
			return err
		})
		return p, err
	}
	return b.Drill(ctx, by, scratch, progress)
}

// probe verifies the trail and opens a sample of customers.
func (h *House) probe(ctx context.Context, by actor.Actor) (p backup.Probed, err error) {
	report, err := h.Trail.Verify(ctx, by, nil)
	if err != nil {
		return p, err
	}
	p.Events = report.Events
	for _, f := range report.Findings {
		p.Findings = append(p.Findings, string(f.Kind)+" "+f.Detail)
	}
	var sample []customer.ID
	if err := h.DB.View(ctx, func(tx *db.Tx) (err error) {
		sample, err = h.Ring.Sample(ctx, tx, drillSample)
		return err
	}); err != nil {
		return p, err
	}
	for _, c := range sample {
		if _, err := h.Vault.Export(ctx, by, c); err != nil {
			p.Broken = append(p.Broken, err.Error())
			continue
		}
		p.Sampled++
	}
	return p, nil
}

func withoutPassword(postgres string) string {
	before, after, found := strings.Cut(postgres, "@")
	scheme, user, _ := strings.Cut(before, "://")
	if name, _, has := strings.Cut(user, ":"); found && has {
		return scheme + "://" + name + "@" + after
	}
	return postgres
}
