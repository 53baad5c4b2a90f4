package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"

	"strongroom/internal/actor"
	"strongroom/internal/assurance"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/config"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/edge"
	"strongroom/internal/keyring"
	"strongroom/internal/vault"
)

// rooms are the owners of claims that this version has.
var rooms = []string{"assurance", "audit", "backup", "client", "config", "edge", "identity", "keyring", "vault"}

// openAssurance declares the checks of all rooms and makes the room that runs them.
func (s *Server) openAssurance(mux *http.ServeMux) (err error) {
	h := s.house
	checks := edge.Checks(func() *edge.Server { return s.edge })
	checks = append(checks, h.checks()...)
	checks = append(checks, h.riskChecks()...)
	checks = append(checks, s.reportCheck())
	checks = append(checks, h.identityChecks()...)
	checks = append(checks, s.clientChecks()...)
	checks = append(checks, edge.FloodCheck(func() *edge.Server { return s.edge }, "app"))
	checks = append(checks, check.Check{
		ID: "net-listeners-as-declared", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
		Says:     "The process listens where its settings say and nowhere else.",
		Run:      func(ctx context.Context) check.Observation { return s.listeners(ctx, s.declared()) },
		Sabotage: s.oneMore,
	}, check.Check{
		ID: "trust-page-current", Version: 2, Every: 10 * time.Minute, Valid: time.Hour,
		Says: "The trust page is served over the app's listener and says what the newest evidence says.",
		Run:  func(ctx context.Context) check.Observation { return s.trustPage(ctx, s.edge.URL("app")) },
		Sabotage: func(ctx context.Context) check.Observation {
			scratch := httptest.NewTLSServer(s.stale())
			defer scratch.Close()
			return s.trustPage(ctx, scratch.URL)
		},
	})
	h.Assurance, err = assurance.New(assurance.Options{
		DB: h.DB, Trail: h.Trail, Checks: checks, Rooms: rooms, Findings: h.Findings, Keys: h.Ring, Program: "strongroom " + h.backups.program,
		Changed: func() { h.Jobs.Wake(assurance.PageJobName) }, Log: h.log, Metrics: h.Metrics,
	})
	if err != nil {
		return err
	}
	trust := h.Config.Trust
	detail := make(map[string]assurance.Detail)
	for claim, d := range trust.Detail {
		detail[claim] = assurance.Detail(d)
	}
	look := assurance.PageOptions{
		Name: trust.Name, Intro: trust.Intro, Contact: trust.Contact, Policy: trust.Policy, Accent: trust.Accent, Detail: detail,
	}
	if err := h.furnish(&look); err != nil {
		return err
	}
	if s.page, err = h.Assurance.NewPage(look); err != nil {
		return err
	}
	s.page.Register(mux)
	h.Reports.RegisterForm(mux, s.page)
	h.Jobs.Add(h.Reports.Job())
	h.Jobs.Add(h.Risks.Job())
	if err := h.settleRisks(); err != nil {
		return err
	}
	h.Jobs.Add(h.Assurance.Job())
	h.Jobs.Add(s.page.Job())
	return nil
}

// of makes a check of what a house answers: this one, and one that is made for a moment and damaged.
func (h *House) of(id, says string, every, valid time.Duration, run func(context.Context, *House) check.Observation, damage func(context.Context, *House) error) check.Check {
	return check.Check{ID: id, Says: says, Version: 1, Every: every, Valid: valid,
		Run:      func(ctx context.Context) check.Observation { return run(ctx, h) },
		Sabotage: func(ctx context.Context) check.Observation { return inScratch(ctx, damage, run) },
	}
}

// statements damages a house with what somebody in its database could say.
func statements(all ...string) func(ctx context.Context, h *House) error {
	return func(ctx context.Context, h *House) error {
		return h.DB.Update(ctx, func(tx *db.Tx) error {
			for _, s := range all {
				if _, err := tx.Exec(ctx, s); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// checks are those of the rooms behind the doors.
func (h *House) checks() []check.Check {
	all := []check.Check{
		h.of("audit-trail-consistent", "The two newest checkpoints are signed, and the older log is the beginning of the newer.", 10*time.Minute, time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Trail.CheckConsistency(ctx) },
			statements(`UPDATE log_checkpoint SET root = 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=' WHERE size = (SELECT MAX(size) FROM log_checkpoint)`)),
		h.of("audit-inclusion", "Events taken at random are in the signed log as their rows stand.", 10*time.Minute, time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Trail.CheckInclusion(ctx) },
			statements(`UPDATE event SET actor_id = 'somebody else'`)),
		h.of("audit-events-sequenced", "Every event has its place in the log within seconds.", 5*time.Minute, time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Trail.CheckSequenced(ctx) },
			statements(`DELETE FROM event_leaf WHERE idx = 0`)),
		h.of("audit-search-finds", "A search finds what is in the log.", time.Hour, 3*time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Trail.CheckSearch(ctx) },
			statements(`DELETE FROM event_search`)),
		h.of("audit-clock", "The clock that events are dated by agrees with evidence that NTP does not touch, and the log's times are in its order.", 10*time.Minute, time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Trail.CheckClock(ctx) },
			statements(`UPDATE log_checkpoint SET made_at = made_at + 86400000000 WHERE size = (SELECT MAX(size) FROM log_checkpoint)`)),
		{
			ID: "audit-alteration-noticed", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
			Says: "An altered copy of an event, or of what proves it, is noticed.",
			Run:  func(ctx context.Context) check.Observation { return h.Trail.CheckDetector(ctx, h.Trail.Detects) },
			Sabotage: func(ctx context.Context) check.Observation { // a detector that sees nothing
				return h.Trail.CheckDetector(ctx, func(audit.Proof) error { return nil })
			},
		},
		h.of("keys-rotation-opens", "A key gets a new version, and what the old one sealed still opens.", 24*time.Hour, 72*time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Vault.CheckRotation(ctx) },
			statements(`CREATE TRIGGER lose AFTER INSERT ON data_key BEGIN DELETE FROM data_key WHERE customer_id = NEW.customer_id AND version < NEW.version; END`)),
		h.of(vault.CheckRecordsID, "Every record opens under its customer's key: some at each run, until all had their turn.", 10*time.Minute, time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Vault.CheckRecords(ctx) },
			damageRecord),
		h.of("keys-within-schedule", "No key that seals is older than its schedule allows.", time.Hour, 3*time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Ring.CheckSchedule(ctx) },
			statements(`UPDATE service_key SET made_at = 0`)),
		h.of("keys-root-answers", "The root key opens the active key-encryption key.", 10*time.Minute, time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Ring.CheckRoot(ctx) },
			statements(`UPDATE kek_wrap SET wrapped = zeroblob(60)`)),
		h.of("vault-canary-opens", "A value that is sealed as customers' are opens.", 10*time.Minute, time.Hour,
			func(ctx context.Context, h *House) check.Observation { return h.Vault.CheckCanary(ctx) },
			func(ctx context.Context, h *House) error {
				if _, err := h.Vault.Canary(ctx); err != nil {
					return err
				}
				return h.DB.Update(ctx, func(tx *db.Tx) error {
					var sealed []byte
					if err := tx.QueryRow(ctx, `SELECT sealed FROM canary WHERE one = $1`, 1).Scan(&sealed); err != nil {
						return err
					}
					sealed[len(sealed)-1] ^= 1
					_, err := tx.Exec(ctx, `UPDATE canary SET sealed = $1 WHERE one = $2`, sealed, 1)
					return err
				})
			}),
		h.of("storage-no-plaintext", "No stored byte of a sealed value is readable.", 6*time.Hour, 24*time.Hour, storage,
			func(ctx context.Context, h *House) error {
				plain, err := h.Vault.Canary(ctx)
				if err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(h.Config.Data, "leak.tmp"), plain, 0o600)
			}),
		{
			ID: "environment-apart", Version: 1, Every: time.Hour, Valid: 3 * time.Hour,
			Says: "The database and the keys are refused under the name of another environment.",
			Run: func(ctx context.Context) check.Observation {
				return h.apart(ctx, otherEnvironment(h.Config.Environment))
			},
			Sabotage: func(ctx context.Context) check.Observation { return h.apart(ctx, h.Config.Environment) },
		},
	}
	all = append(all, h.backupChecks()...)
	return all
}

// damageRecord writes a customer's record and flips a bit of what is stored of it.
func damageRecord(ctx context.Context, h *House) error {
	owner := customer.NewID()
	by := actor.Actor{Kind: actor.Customer, ID: string(owner), Scope: "read write"}
	if err := h.DB.Update(ctx, func(tx *db.Tx) error {
		_, err := h.Ring.CreateCustomer(ctx, tx, by, owner)
		return err
	}); err != nil {
		return err
	}
	if _, _, err := h.Vault.Put(ctx, by, owner, vault.Ref{Collection: "profile", Key: "main"}, []byte(`{"given_name":"Ada","family_name":"Lovelace","date_of_birth":"1985-12-10","email":"ada@example.com","country":"GB"}`), vault.Condition{}); err != nil {
		return err
	}
	return h.DB.Update(ctx, func(tx *db.Tx) error {
		var sealed []byte
		if err := tx.QueryRow(ctx, `SELECT sealed FROM record WHERE customer_id = $1`, string(owner)).Scan(&sealed); err != nil {
			return err
		}
		sealed[len(sealed)-1] ^= 1
		_, err := tx.Exec(ctx, `UPDATE record SET sealed = $1 WHERE customer_id = $2`, sealed, string(owner))
		return err
	})
}

// inScratch makes an installation in a folder that is thrown away, damages it, and runs a check on it.
func inScratch(ctx context.Context, damage func(context.Context, *House) error, run func(context.Context, *House) check.Observation) (seen check.Observation) {
	broken := func(err error) check.Observation {
		return check.Undecided("", "The scratch copy could not be made: %v", err)
	}
	dir, err := os.MkdirTemp("", "strongroom-sabotage-*")
	if err != nil {
		return broken(err)
	}
	defer os.RemoveAll(dir)
	c := config.ForDev(dir)
	// A root key without a passphrase, whose making slow would be all that takes time here.
	root, err := age.GenerateX25519Identity()
	if err != nil {
		return broken(err)
	}
	c.RootKey = config.RootKey{URL: "age://" + filepath.Join(dir, "scratch.key")}
	if err := os.WriteFile(filepath.Join(dir, "scratch.key"), []byte(root.String()+"\n"), 0o600); err != nil {
		return broken(err)
	}
	if err := errors.Join(c.Resolve(), Init(ctx, c)); err != nil {
		return broken(err)
	}
	by := actor.OfSystem("sabotage")
	ctx = actor.With(ctx, by)
	h, err := openHouse(ctx, c, by, slog.New(slog.DiscardHandler))
	if err != nil {
		return broken(err)
	}
	defer h.Close()
	for range 2 { // two checkpoints
		if _, err := h.Ring.List(ctx, by); err != nil {
			return broken(err)
		}
		if err := h.settle(ctx); err != nil {
			return broken(err)
		}
	}
	if seen := run(ctx, h); seen.Outcome != check.Holds {
		return check.Undecided(seen.Exercised, "The scratch copy does not hold before it is broken: %s", seen.Detail)
	}
	if err := damage(ctx, h); err != nil {
		return broken(err)
	}
	return run(ctx, h)
}

// storage searches what is stored for the plaintext of the canary.
func storage(ctx context.Context, h *House) check.Observation {
	did := "searched every file of the data folder for the plaintext of a sealed value, and measured the entropy of database pages"
	plain, err := h.Vault.Canary(ctx)
	if err != nil {
		return check.Undecided(did, "The canary could not be read: %v", err)
	}
	if h.DB.Engine() == db.PostgreSQL {
		return storedRows(ctx, h, plain)
	}
	var total int64
	least := 8.0
	err = filepath.WalkDir(h.Config.Data, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the scratch folder of a drill, which has ended
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		found, n, entropy, err := search(ctx, path, plain, path == filepath.Join(h.Config.Data, databaseFile))
		total += n
		least = min(least, entropy)
		if found {
			return fmt.Errorf("%w in %s", errPlaintext, e.Name())
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was put away meanwhile
		}
		return err
	})
	switch {
	case errors.Is(err, errPlaintext):
		return check.Failed(did, "The plaintext was found: %v", err)
	case err != nil:
		return check.Undecided(did, "The files could not be read: %v", err)
	case least < leastEntropy:
		return check.Failed(did, "A page of the database has an entropy of %.2f bits a byte: it is not encrypted.", least)
	}
	return check.Held(did, "It was not found in %d bytes.", total).With("bytes", total).With("least_entropy_bits", math.Round(least*100)/100)
}

var errPlaintext = errors.New("plaintext")

const (
	pageSize = 4096
	// leastEntropy is less than what 4096 random bytes ever show, and more than any page of plaintext.
	leastEntropy = 7.85
)

// search looks for the needle in a file, and measures the entropy of its pages, in bits a byte, when asked to.
func search(ctx context.Context, path string, needle []byte, pages bool) (found bool, n int64, least float64, err error) {
	least = 8
	f, err := os.Open(path)
	if err != nil {
		return false, 0, least, err
	}
	defer f.Close()
	buffer := make([]byte, 0, 1<<20+len(needle))
	chunk := make([]byte, 1<<20)
	for ctx.Err() == nil {
		read, err := io.ReadFull(f, chunk)
		n += int64(read)
		buffer = append(buffer, chunk[:read]...)
		if bytes.Contains(buffer, needle) {
			return true, n, least, nil
		}
		if pages {
			for p := 0; p+pageSize <= read; p += 64 * pageSize {
				least = min(least, entropy(chunk[p:p+pageSize]))
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return false, n, least, nil
		}
		if err != nil {
			return false, n, least, err
		}
		buffer = append(buffer[:0], buffer[len(buffer)-len(needle):]...)
	}
	return false, n, least, ctx.Err()
}

// entropy is Shannon's, in bits a byte.
func entropy(b []byte) (bits float64) {
	var counts [256]int
	for _, c := range b {
		counts[c]++
	}
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(b))
			bits -= p * math.Log2(p)
		}
	}
	return bits
}

// storedRows searches what PostgreSQL stores: its pages cannot be read from here, the bytes of its rows can.
func storedRows(ctx context.Context, h *House, plain []byte) check.Observation {
	did := "searched the newest rows of records, events and the canary, as the database stores them, for the plaintext of a sealed value"
	n := 0
	err := h.DB.View(ctx, func(tx *db.Tx) error {
		for _, query := range []string{
			`SELECT sealed FROM canary WHERE one = $1`,
			`SELECT sealed FROM record WHERE version >= $1 ORDER BY updated_at DESC LIMIT 5000`,
			`SELECT sealed FROM event WHERE version >= $1 AND sealed IS NOT NULL ORDER BY id DESC LIMIT 5000`,
		} {
			rows, err := tx.Query(ctx, query, 1)
			if err != nil {
				return err
			}
			for rows.Next() {
				var sealed []byte
				if err := rows.Scan(&sealed); err != nil {
					return errors.Join(err, rows.Close())
				}
				n++
				if bytes.Contains(sealed, plain) {
					return errors.Join(errPlaintext, rows.Close())
				}
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errPlaintext):
		return check.Failed(did, "The plaintext was found.")
	case err != nil:
		return check.Undecided(did, "The rows could not be read: %v", err)
	}
	return check.Held(did, "It was not found in %d rows.", n).With("rows", n)
}

func otherEnvironment(environment string) string {
	if environment == config.Live {
		return config.UAT
	}
	return config.Live
}

// apart opens what belongs to this environment under the name of the one given, which has to be refused.
func (h *House) apart(ctx context.Context, environment string) check.Observation {
	did := "tried to open the database's key, or the database, as a server of another environment would"
	if h.Config.Database.URL != "" {
		url, err := h.Config.PostgresURL()
		if err != nil {
			return check.Undecided(did, "The database's address could not be read.")
		}
		d, err := db.Open(ctx, db.Options{URL: string(url.Reveal()), Environment: environment})
		switch {
		case err == nil:
			d.Close()
			return check.Failed(did, "It was opened.")
		case errors.Is(err, db.ErrEnvironment):
			return check.Held(did, "It was refused.")
		}
		return check.Undecided(did, "The database did not answer: %v", err)
	}
	_, err := keyring.OpenFileKey(ctx, h.root, h.manifest(), environment)
	switch {
	case err == nil:
		return check.Failed(did, "It was opened.")
	case errors.Is(err, keyring.ErrEnvironment):
		return check.Held(did, "It was refused.")
	}
	return check.Undecided(did, "It could not be tried: %v", err) // a key that nobody can open is no refusal
}

// declared returns the addresses where this server listens.
func (s *Server) declared() (all []netip.AddrPort) {
	for _, name := range []string{"app", "service", "admin", "ops"} {
		all = append(all, s.edge.Addr(name))
	}
	return all
}

// listeners compares the sockets of this process that listen with what was declared.
func (s *Server) listeners(_ context.Context, declared []netip.AddrPort) check.Observation {
	did := "read from the kernel which TCP sockets of this process listen"
	bound, err := boundSockets()
	if err != nil {
		return check.Undecided(did, "The kernel does not say: %v", err)
	}
	for _, b := range bound {
		if !slices.ContainsFunc(declared, func(d netip.AddrPort) bool {
			return d.Port() == b.Port() && (d.Addr().Unmap() == b.Addr().Unmap() || d.Addr().IsUnspecified() && b.Addr().IsUnspecified())
		}) {
			return check.Failed(did, "The process listens on %s, which no setting asks for.", b)
		}
	}
	if len(bound) < len(declared) {
		return check.Failed(did, "The process listens on %d of %d declared addresses.", len(bound), len(declared))
	}
	return check.Held(did, "The %d sockets are those that were declared.", len(bound)).With("sockets", len(bound))
}

// oneMore has this process listen on one more port of this machine for the moment that the check takes.
func (s *Server) oneMore(ctx context.Context) check.Observation {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return check.Undecided("", "no scratch listener: %v", err)
	}
	defer l.Close()
	return s.listeners(ctx, s.declared())
}

// stale serves a trust page that was kept since some other day, as a cache that is stuck does.
func (s *Server) stale() http.Handler {
	page := http.NewServeMux()
	s.page.Register(page)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		page.ServeHTTP(answer, r)
		_, _ = w.Write(bytes.Replace(answer.Body.Bytes(), []byte("<p>As of "), []byte("<p>As of 1 January 2020, and not of "), 1)) // who asked has gone
	})
}

// visitor returns what the app's listener is asked with as by anybody who is not logged in. Whose certificate it
// shows is the question of other checks, app-pins-hold and tls-certificate-life: here it would hide this one's.
func visitor() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13},
	}}
}

// trustPage reads the trust page as anybody would, and compares it with the one that the newest evidence makes.
func (s *Server) trustPage(ctx context.Context, base string) check.Observation {
	did := "made the trust page anew, read it over TLS without logging in, and compared the bytes"
	if base == "" {
		return check.Undecided(did, "The app's listener does not serve.")
	}
	client := visitor()
	defer client.CloseIdleConnections()
	for range 3 { // it may be made anew by the job between the two
		if err := s.page.Refresh(ctx); err != nil {
			return check.Undecided(did, "The page could not be made: %v", err)
		}
		status, body, err := exchange(ctx, client, http.MethodGet, base+assurance.PagePath, "", "")
		if err != nil {
			return check.Failed(did, "The page did not come: %v", err)
		}
		if status != http.StatusOK {
			return check.Failed(did, "The answer was %d.", status)
		}
		if s.page.Current(body) {
			return check.Held(did, "It came, %d bytes, and says what the evidence says.", len(body)).With("bytes", len(body))
		}
	}
	return check.Failed(did, "The page that is served is not the one that the newest evidence makes.")
}
