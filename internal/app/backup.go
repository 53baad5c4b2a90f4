package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/backup"
	"strongroom/internal/clock"
	"strongroom/internal/config"
	"strongroom/internal/customer"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// BackupOperator is what the command line may ask about backups; it is a part of Operator. Progress may be
// nil everywhere.
type BackupOperator interface {
	BackupRun(ctx context.Context, progress backup.Progress) (backup.Snapshot, error)
	BackupList(ctx context.Context) (backup.Listing, error)
	BackupShow(ctx context.Context, snapshot string) (backup.Shown, error)
	BackupVerify(ctx context.Context, snapshot string, progress backup.Progress) (backup.Verification, error)
	BackupDrill(ctx context.Context, progress backup.Progress) (backup.Drill, error)
	BackupRestore(ctx context.Context, ask RestoreRequest, progress backup.Progress) (RestoreReport, error)
	// BackupCustomer writes what a snapshot has of one customer into a new folder, whose path is whole.
	BackupCustomer(ctx context.Context, snapshot string, c customer.ID, to string, progress backup.Progress) (CustomerReport, error)
	BackupRunbook(ctx context.Context) (string, error)
	// BackupPrune deletes what the retention does not keep.
	BackupPrune(ctx context.Context) (backup.Pruned, error)
	// BackupHold keeps a snapshot whatever the retention says, or with release no longer.
	BackupHold(ctx context.Context, snapshot, reason string, release bool) error
	// BackupApprove agrees to a deed that takes two: "delete SNAPSHOT", "unlock SNAPSHOT", "keep RETENTION".
	BackupApprove(ctx context.Context, deed string) error
	// BackupDelete deletes a snapshot before its time; locked ones too when it says so.
	BackupDelete(ctx context.Context, snapshot string, locked bool) error
}

// backups are the open repositories of a house.
type backups struct {
	mu      sync.Mutex
	taking  sync.Mutex
	open    *backup.Backup
	all     []*backup.Repository
	whole   bool      // every repository was opened
	since   time.Time // when the server's jobs began; zero without
	program string
}

func (b *backups) close() error {
	var errs []error
	for _, r := range b.all {
		errs = append(errs, r.Close())
	}
	b.all = nil
	return errors.Join(errs...)
}

// backup returns the room. Repositories that could not be opened before are tried again.
func (h *House) backup(ctx context.Context) (*backup.Backup, error) {
	b, c := &h.backups, h.Config.Backup
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != nil && b.whole {
		return b.open, nil
	}
	options := backup.Options{
		DB: h.DB, Keys: h.Ring, Trail: h.Trail, Findings: h.Findings, Taking: &b.taking,
		Folder: filepath.Join(h.Config.Data, "backup-memory"), Media: c.Media, Files: h.settingsFiles,
		Program: cmp.Or(b.program, builtFrom()), Label: c.Label, Jurisdiction: c.Jurisdiction, Clock: clock.System, Log: h.log,
		Schedule: schedule(c), Retention: backup.Retention(c.Retention), Regions: c.AllowedRegions, Since: b.since,
	}
	var err error
	if options.Recovery, err = c.RecoveryRecipients(); err != nil {
		return nil, err
	}
	opened := make(map[string]*backup.Repository)
	for _, r := range b.all {
		opened[r.Name] = r
	}
	for i, r := range c.Repositories {
		place := backup.RepositoryOptions{
			Name: r.Name, Part: backup.Part(r.Part), URL: r.RepositoryURL(), Medium: r.Medium, Region: r.Region,
			Endpoint: r.Endpoint, AccessKey: r.AccessKey, PathStyle: r.PathStyle,
			Lock: backup.LockMode(r.Lock), LockFor: r.LockFor,
		}
		if opened[r.Name] != nil {
			options.Repositories = append(options.Repositories, opened[r.Name])
			continue
		}
		err := error(nil)
		if !r.SecretKey.IsZero() {
			if place.SecretKey, err = r.SecretKey.Read(); err != nil {
				err = &config.Error{Key: fmt.Sprintf("backup.repositories[%d].secret_key", i), Problem: err.Error()}
			}
		}
		var repository *backup.Repository
		if err == nil {
			repository, err = backup.OpenRepository(ctx, place)
		}
		if err != nil {
			h.log.WarnContext(ctx, "a backup repository cannot be opened", "repository", r.Name, "error", err)
			options.Unopened = append(options.Unopened, backup.Unopened{RepositoryOptions: place, Err: err})
			continue
		}
		b.all = append(b.all, repository)
		options.Repositories = append(options.Repositories, repository)
	}
	if b.open, err = backup.New(options); err != nil {
		return nil, err
	}
	b.whole = len(options.Unopened) == 0
	return b.open, nil
}

// builtFrom names the program when nobody has said its version.
func builtFrom() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

func schedule(c config.Backup) backup.Schedule {
	daily, err := c.Daily()
	if err != nil {
		daily = 0 // Validate has refused it
	}
	return backup.Schedule{Daily: daily, Every: c.Every, Continuous: c.Continuous, DrillEvery: c.DrillEvery}
}

// backupJobs adds the jobs that keep the copies up to date.
func (h *House) backupJobs() error {
	for _, job := range backup.Jobs(schedule(h.Config.Backup), h.DB.Engine(), len(h.Config.Backup.Repositories) > 0, h.backup, func(ctx context.Context) error {
		_, err := h.drill(ctx, actor.OfSystem("backup"), nil)
		if problem.Is(err, "backup-not-found") {
			return nil // the first snapshot is yet to come
		}
		return err
	}, h.Jobs.Wake) {
		h.Jobs.Add(job)
	}
	return nil
}

// settingsPath is the settings' name in a snapshot.
const settingsPath = config.FileName

// maxPolicies bounds the policies that are copied, in bytes.
const maxPolicies = 4 << 20

// settingsFiles returns the settings and the policies. Settings hold no secrets.
func (h *House) settingsFiles() (map[string][]byte, error) {
	text, err := h.Config.Differences()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{settingsPath: []byte(text)}
	if h.Config.Policies == "" {
		return files, nil
	}
	found, err := filepath.Glob(filepath.Join(h.Config.Policies, "*.cedar"))
	if err != nil {
		return nil, err
	}
	size := 0
	for _, path := range found {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if size += len(content); size > maxPolicies {
			return nil, fmt.Errorf("the policies in %s have more than %d bytes", h.Config.Policies, maxPolicies)
		}
		files["policies/"+filepath.Base(path)] = content
	}
	return files, nil
}

// recoveryFile is where a development installation's recovery key is.
const recoveryFile = "recovery.key"

// makeDevRecovery gives a development installation repositories and a recovery key.
func makeDevRecovery(c *config.Config, signers []string) error {
	if c.Environment != config.Dev || len(c.Backup.Repositories) > 0 {
		return nil
	}
	path := filepath.Join(c.Data, recoveryFile)
	recipient, err := MakeRecoveryKey(path, signers...)
	if errors.Is(err, fs.ErrExist) { // left by an init that was cut short
		var identity *age.HybridIdentity
		if identity, err = readHybrid(path); err == nil {
			recipient = identity.Recipient().String()
		}
	}
	if err != nil {
		return err
	}
	c.Backup = config.DevBackup(recipient)
	return nil
}

// MakeRecoveryKey writes a new recovery key to a file that is not there yet, mode 0600, and returns the
// recipient for backup.recipients. It is a post-quantum hybrid key (ML-KEM-768 with X25519) of age. With the
// verifier keys of signers, a restore with it takes only what these signed.
func MakeRecoveryKey(path string, signers ...string) (recipient string, err error) {
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("%s: %w; it is not replaced, because what it opens would be lost", path, fs.ErrExist)
	}
	identity, err := age.GenerateHybridIdentity()
	if err != nil {
		return "", err
	}
	recipient = identity.Recipient().String()
	text := fmt.Sprintf("# Recovery key of Strongroom, made %s. Keep it offline: with the repositories it opens everything.\n# public key: %s\n%s\n",
		clock.System.Now().UTC().Format(time.RFC3339), recipient, identity)
	for _, key := range signers {
		text += manifestKeyLine + key + "\n"
	}
	return recipient, writeFile(path, text)
}

func readHybrid(path string) (*age.HybridIdentity, error) {
	all, err := readIdentities(path)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if h, ok := i.(*age.HybridIdentity); ok {
			return h, nil
		}
	}
	return nil, fmt.Errorf("%s holds no post-quantum key of age", path)
}

// manifestKeyLine begins a line of a recovery key's file that names a key that signs manifests. For age it is a
// comment.
const manifestKeyLine = "# manifest key: "

// manifestKeyLines are lines that are meant so: one that was copied from paper must not pass for a comment.
var manifestKeyLines = regexp.MustCompile(`(?i)^#\s*manifest[ -]*keys?\b\s*:?(.*)$`)

// manifestKeys returns the verifiers of the keys that the list names, or, when it names none, a recovery key's file;
// nil when neither does.
func manifestKeys(path string, list []string) (note.Verifiers, error) {
	text, err := (config.Secret{File: path}).Read()
	if err != nil {
		return nil, err
	}
	named := list
	for line := range strings.Lines(string(text.Reveal())) {
		if m := manifestKeyLines.FindStringSubmatch(strings.TrimSpace(line)); m != nil && len(list) == 0 {
			named = append(named, m[1])
		}
	}
	var all []note.Verifier
	seen := make(map[string]bool)
	for _, key := range named {
		key = strings.TrimSpace(key)
		if seen[key] {
			continue // VerifierList takes a key that is named twice for two that are not to be told apart
		}
		seen[key] = true
		v, err := note.NewVerifier(key)
		if err != nil {
			return nil, fmt.Errorf("%q is no manifest key: write it as the recovery guide has it, NAME+HASH+KEY", key)
		}
		all = append(all, v)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return note.VerifierList(all...), nil
}

func readIdentities(path string) ([]age.Identity, error) {
	text, err := (config.Secret{File: path}).Read()
	if err != nil {
		return nil, err
	}
	all, err := age.ParseIdentities(strings.NewReader(string(text.Reveal())))
	if err != nil {
		return nil, fmt.Errorf("%s holds no key of age (AGE-SECRET-KEY-…)", path)
	}
	return all, nil
}

// refreshKeys has an erasure reach the copies at once.
func (o operator) refreshKeys(ctx context.Context) {
	b, err := o.house.backup(ctx)
	if err == nil {
		err = b.RefreshKeys(ctx, o.by)
	}
	if err != nil {
		o.house.log.WarnContext(ctx, "the erasure has not reached the backups yet; the server tries again, or run strongroom backup run", "error", err)
	}
}

func (o operator) BackupRun(ctx context.Context, progress backup.Progress) (backup.Snapshot, error) {
	b, err := o.house.backup(ctx)
	if err != nil {
		return backup.Snapshot{}, err
	}
	if o.alone {
		o.settleFirst(ctx)
	}
	return b.Take(ctx, o.by, backup.Taking{Progress: progress})
}

// settleFirst gives what the last server left behind its place in the trail.
func (o operator) settleFirst(ctx context.Context) {
	if err := o.house.settle(ctx); err != nil {
		o.house.log.WarnContext(ctx, "the trail was not brought up to date", "error", err)
	}
}

func (o operator) BackupList(ctx context.Context) (backup.Listing, error) {
	b, err := o.house.backup(ctx)
	if err != nil {
		return backup.Listing{}, err
	}
	return b.List(ctx, o.by)
}

func (o operator) BackupShow(ctx context.Context, snapshot string) (backup.Shown, error) {
	b, err := o.house.backup(ctx)
	if err != nil {
		return backup.Shown{}, err
	}
	return b.Show(ctx, o.by, snapshot)
}

func (o operator) BackupVerify(ctx context.Context, snapshot string, progress backup.Progress) (backup.Verification, error) {
	b, err := o.house.backup(ctx)
	if err != nil {
		return backup.Verification{}, err
	}
	v, err := b.Verify(ctx, o.by, snapshot, true, progress)
	if problem.Is(err, "backup-damaged") {
		err = nil // the answer says more
	}
	return v, err
}

func (o operator) BackupDrill(ctx context.Context, progress backup.Progress) (backup.Drill, error) {
	return o.house.drill(ctx, o.by, progress)
}

func (o operator) BackupRunbook(ctx context.Context) (string, error) {
	b, err := o.house.backup(ctx)
	if err != nil {
		return "", err
	}
	facts, err := o.house.backupFacts(ctx)
	if err != nil {
		return "", err
	}
	return b.Runbook(ctx, o.by, facts)
}

// backupFacts are what the recovery guide says of this house.
func (h *House) backupFacts(ctx context.Context) (backup.Facts, error) {
	c := h.Config
	signers, err := h.Ring.EvidenceKeys(ctx)
	if err != nil {
		return backup.Facts{}, err
	}
	facts := backup.Facts{Signers: signers, Data: c.Data, Engine: h.DB.Engine().String(), Root: "the local root key " + c.RootKey.File}
	if c.RootKey.URL != "" {
		u, err := url.Parse(c.RootKey.URL)
		if err != nil {
			return facts, err
		}
		facts.Root = "the key at the key-management service " + u.Scheme + "://" + u.Host
	}
	return facts, nil
}

func (o operator) BackupPrune(ctx context.Context) (backup.Pruned, error) {
	b, err := o.house.backup(ctx)
	if err != nil {
		return backup.Pruned{}, err
	}
	return b.Prune(ctx, o.by)
}

func (o operator) BackupHold(ctx context.Context, snapshot, reason string, release bool) error {
	b, err := o.house.backup(ctx)
	if err != nil {
		return err
	}
	if release {
		return b.Release(ctx, o.by, snapshot)
	}
	return b.Hold(ctx, o.by, snapshot, reason)
}

func (o operator) BackupApprove(ctx context.Context, deed string) error {
	approvals := &backup.Operators{Trail: o.house.Trail, Clock: clock.System}
	return approvals.Approve(ctx, o.by, deed)
}

func (o operator) BackupDelete(ctx context.Context, snapshot string, locked bool) error {
	b, err := o.house.backup(ctx)
	if err != nil {
		return err
	}
	return b.Delete(ctx, o.by, snapshot, locked)
}

// backupAsk is what a command asks of a running server about backups.
type backupAsk struct {
	Snapshot string         `json:"snapshot,omitempty"`
	Customer customer.ID    `json:"customer,omitempty"`
	Restore  RestoreRequest `json:"restore"`
	Text     string         `json:"text,omitempty"`  // a reason, a deed, or a folder
	Other    bool           `json:"other,omitempty"` // release and not hold; also what is locked
}

// backupRoutes adds the backup commands to the control socket.
func (c *control) backupRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /backup/run", streamed(c, func(ctx context.Context, o operator, _ backupAsk, p backup.Progress) (backup.Snapshot, error) {
		return o.BackupRun(ctx, p)
	}))
	mux.HandleFunc("POST /backup/list", streamed(c, func(ctx context.Context, o operator, _ backupAsk, _ backup.Progress) (backup.Listing, error) {
		return o.BackupList(ctx)
	}))
	mux.HandleFunc("POST /backup/show", streamed(c, func(ctx context.Context, o operator, ask backupAsk, _ backup.Progress) (backup.Shown, error) {
		return o.BackupShow(ctx, ask.Snapshot)
	}))
	mux.HandleFunc("POST /backup/verify", streamed(c, func(ctx context.Context, o operator, ask backupAsk, p backup.Progress) (backup.Verification, error) {
		return o.BackupVerify(ctx, ask.Snapshot, p)
	}))
	mux.HandleFunc("POST /backup/drill", streamed(c, func(ctx context.Context, o operator, _ backupAsk, p backup.Progress) (backup.Drill, error) {
		return o.BackupDrill(ctx, p)
	}))
	mux.HandleFunc("POST /backup/restore", streamed(c, func(ctx context.Context, o operator, ask backupAsk, p backup.Progress) (RestoreReport, error) {
		return o.BackupRestore(ctx, ask.Restore, p)
	}))
	mux.HandleFunc("POST /backup/customer", streamed(c, func(ctx context.Context, o operator, ask backupAsk, p backup.Progress) (CustomerReport, error) {
		return o.BackupCustomer(ctx, ask.Snapshot, ask.Customer, ask.Text, p)
	}))
	mux.HandleFunc("POST /backup/prune", streamed(c, func(ctx context.Context, o operator, _ backupAsk, _ backup.Progress) (backup.Pruned, error) {
		return o.BackupPrune(ctx)
	}))
	done := struct{}{}
	mux.HandleFunc("POST /backup/hold", streamed(c, func(ctx context.Context, o operator, ask backupAsk, _ backup.Progress) (struct{}, error) {
		return done, o.BackupHold(ctx, ask.Snapshot, ask.Text, ask.Other)
	}))
	mux.HandleFunc("POST /backup/approve", streamed(c, func(ctx context.Context, o operator, ask backupAsk, _ backup.Progress) (struct{}, error) {
		return done, o.BackupApprove(ctx, ask.Text)
	}))
	mux.HandleFunc("POST /backup/delete", streamed(c, func(ctx context.Context, o operator, ask backupAsk, _ backup.Progress) (struct{}, error) {
		return done, o.BackupDelete(ctx, ask.Snapshot, ask.Other)
	}))
	mux.HandleFunc("POST /backup/runbook", streamed(c, func(ctx context.Context, o operator, _ backupAsk, _ backup.Progress) (string, error) {
		return o.BackupRunbook(ctx)
	}))
}

// streamed is a command that tells how far it is.
func streamed[Ask, Answer any](c *control, fn func(ctx context.Context, o operator, ask Ask, progress backup.Progress) (Answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var ask Ask
		if err := json.NewDecoder(io.LimitReader(r.Body, maxAsk)).Decode(&ask); err != nil {
			c.answer(w, r, nil, err)
			return
		}
		out := json.NewEncoder(w)
		var last time.Time
		answer, err := fn(r.Context(), c.by(r), ask, func(done, total int64) {
			if now := time.Now(); now.Sub(last) > 100*time.Millisecond {
				last = now
				_ = out.Encode(line{Done: done, Total: total}) // a caller that has gone is noticed through the context
				_ = http.NewResponseController(w).Flush()
			}
		})
		c.answer(w, r, answer, err)
	}
}

func (d *dialled) BackupRun(ctx context.Context, progress backup.Progress) (out backup.Snapshot, err error) {
	err = d.call(ctx, "/backup/run", backupAsk{}, &out, progress)
	return out, err
}

func (d *dialled) BackupList(ctx context.Context) (out backup.Listing, err error) {
	err = d.call(ctx, "/backup/list", backupAsk{}, &out, nil)
	return out, err
}

func (d *dialled) BackupShow(ctx context.Context, snapshot string) (out backup.Shown, err error) {
	err = d.call(ctx, "/backup/show", backupAsk{Snapshot: snapshot}, &out, nil)
	return out, err
}

func (d *dialled) BackupVerify(ctx context.Context, snapshot string, progress backup.Progress) (out backup.Verification, err error) {
	err = d.call(ctx, "/backup/verify", backupAsk{Snapshot: snapshot}, &out, progress)
	return out, err
}

func (d *dialled) BackupDrill(ctx context.Context, progress backup.Progress) (out backup.Drill, err error) {
	err = d.call(ctx, "/backup/drill", backupAsk{}, &out, progress)
	return out, err
}

func (d *dialled) BackupRestore(ctx context.Context, ask RestoreRequest, progress backup.Progress) (out RestoreReport, err error) {
	err = d.call(ctx, "/backup/restore", backupAsk{Restore: ask}, &out, progress)
	return out, err
}

func (d *dialled) BackupCustomer(ctx context.Context, snapshot string, c customer.ID, to string, progress backup.Progress) (out CustomerReport, err error) {
	err = d.call(ctx, "/backup/customer", backupAsk{Snapshot: snapshot, Customer: c, Text: to}, &out, progress)
	return out, err
}

func (d *dialled) BackupPrune(ctx context.Context) (out backup.Pruned, err error) {
	err = d.call(ctx, "/backup/prune", backupAsk{}, &out, nil)
	return out, err
}

func (d *dialled) BackupHold(ctx context.Context, snapshot, reason string, release bool) error {
	return d.call(ctx, "/backup/hold", backupAsk{Snapshot: snapshot, Text: reason, Other: release}, &struct{}{}, nil)
}

func (d *dialled) BackupApprove(ctx context.Context, deed string) error {
	return d.call(ctx, "/backup/approve", backupAsk{Text: deed}, &struct{}{}, nil)
}

func (d *dialled) BackupDelete(ctx context.Context, snapshot string, locked bool) error {
	return d.call(ctx, "/backup/delete", backupAsk{Snapshot: snapshot, Other: locked}, &struct{}{}, nil)
}

func (d *dialled) BackupRunbook(ctx context.Context) (out string, err error) {
	err = d.call(ctx, "/backup/runbook", backupAsk{}, &out, nil)
	return out, err
}

// RepositoryURL returns the URL of a repository that is named as in the settings, a folder relative to the
// current one.
func RepositoryURL(text string) (string, error) {
	if strings.Contains(text, "://") {
		return text, nil
	}
	folder, err := filepath.Abs(text)
	return config.Repository{URL: folder}.RepositoryURL(), err
}

// withPassword puts a password into the URL of a PostgreSQL database.
func withPassword(postgres string, password config.Secret) (secret.Value, error) {
	c := config.Config{Database: config.Database{URL: postgres, Password: password}}
	return c.PostgresURL()
}
