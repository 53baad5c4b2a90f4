package vault

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	"strongroom/internal/problem"
)

// The actions on declarations.
const (
	ActionDeclare      = "vault.collection.put"
	ActionCollections  = "vault.collection.list"
	ActionCollection   = "vault.collection.show"
	ActionDeclarations = "vault.collection.history"
)

// Who manages a collection.
const (
	FromDefault       = "default"       // it ships with the program
	FromConfiguration = "configuration" // the settings name it, and only they change it
	FromOperator      = "operator"      // PutCollection
)

// Declared is a version of a collection's declaration.
type Declared struct {
	Name       string     `json:"name"`
	Version    int        `json:"version"`
	Source     string     `json:"source"`
	Digest     string     `json:"digest"` // sha256: and 64 hexadecimal digits, of the declaration
	LegalBasis LegalBasis `json:"legal_basis,omitempty"`
	By         string     `json:"by"`
	At         time.Time  `json:"at"`
	Served     bool       `json:"served"` // it is the newest, and the collection can be used
	Unchanged  bool       `json:"unchanged,omitempty"`

	Declaration *Collection `json:"declaration,omitempty"` // of ShowCollection
	Records     *Counts     `json:"records,omitempty"`     // of ShowCollection
	Building    *Building   `json:"building,omitempty"`    // of ShowCollection and PutCollection
}

// Counts says how many records a collection has, and how many of them retention is about to delete.
type Counts struct {
	All     int64 `json:"all"`
	Over    int64 `json:"over"`     // past their retention: the next run of the job deletes them
	Over30d int64 `json:"over_30d"` // past it in 30 days, those included, unless they change
}

// Building says how far the indexes are that a new declaration asks for.
type Building struct {
	Fields     []string `json:"fields"` // which cannot be looked up yet
	Done       int64    `json:"done"`
	Unreadable int64    `json:"unreadable,omitempty"` // records that do not open, and are in no index
}

// declarationRow is a row of collection_version.
type declarationRow struct {
	name       string
	version    int
	source     string
	text       string
	by         string
	at         int64
	macVersion uint32
	mac        []byte
}

func (r declarationRow) parts(before []byte) [][]byte {
	return [][]byte{[]byte("strongroom/vault/collection_version"), []byte(r.name), []byte(strconv.Itoa(r.version)), []byte(r.source),
		[]byte(r.text), []byte(r.by), []byte(strconv.FormatInt(r.at, 10)), before}
}

func (r declarationRow) digest() string {
	sum := sha256.Sum256([]byte(r.text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// content is the declaration without its version, to tell a change from a repetition.
func content(c Collection) string {
	c.Version = 0
	text, err := json.Marshal(c)
	if err != nil {
		return ""
	}
	return string(text)
}

// ErrDeclarationDamaged says that a declaration in the database is not as Strongroom wrote it.
var ErrDeclarationDamaged = errors.New("the declaration of a collection was altered in the database")

// declarations returns every version of a collection's declaration, oldest first, of all collections when
// name is empty. It fails when one was altered, or one in between is missing.
func (v *Vault) declarations(ctx context.Context, tx *db.Tx, name string) ([]declarationRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT name, version, source, declaration, made_by, made_at, mac_version, mac FROM collection_version
		WHERE $1 = '' OR name = $1 ORDER BY name, version`, name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []declarationRow
	var before []byte
	for rows.Next() {
		var r declarationRow
		if err := rows.Scan(&r.name, &r.version, &r.source, &r.text, &r.by, &r.at, &r.macVersion, &r.mac); err != nil {
			return nil, err
		}
		if len(out) == 0 || out[len(out)-1].name != r.name {
			before = nil
		}
		mac, err := v.keys.MACVersion(keyring.KeyEventMAC, r.macVersion, r.parts(before)...)
		if err != nil || !hmac.Equal(mac, r.mac) {
			return nil, fmt.Errorf("%w: collection %s version %d", ErrDeclarationDamaged, r.name, r.version)
		}
		before = r.mac
		out = append(out, r)
	}
	return out, rows.Err()
}

// older returns the declarations of rows, whose compile has passed when they were written.
func older(rows []declarationRow) ([]Collection, error) {
	out := make([]Collection, len(rows))
	for i, r := range rows {
		c, err := ParseCollection([]byte(r.text))
		if err != nil {
			return nil, fmt.Errorf("collection %s version %d: %w", r.name, r.version, err)
		}
		out[i] = c
	}
	return out, nil
}

// Settle writes the collections of the settings, or those that ship, into the database, and loads what is
// declared there. Call it once before anything else is asked of the vault. It fails when the settings
// change a declaration without raising its version.
func (v *Vault) Settle(ctx context.Context, by actor.Actor) error {
	for _, name := range slices.Sorted(maps.Keys(v.pinned)) {
		s := v.pinned[name]
		err := v.db.Update(ctx, func(tx *db.Tx) error {
			rows, err := v.declarations(ctx, tx, name)
			if err != nil {
				return err
			}
			old, err := older(rows)
			if err != nil {
				return err
			}
			next := *s
			if len(rows) > 0 {
				newest, version := rows[len(rows)-1], old[len(old)-1].Version
				same := content(old[len(old)-1]) == content(s.Collection)
				known := slices.ContainsFunc(old, func(c Collection) bool { return content(c) == content(s.Collection) })
				switch {
				case same:
					return nil
				case s.source == FromDefault && (newest.source == FromOperator || newest.source == FromDefault && known):
					return nil // what the operator put goes before it, and so does what a newer program ships
				case s.source == FromDefault:
					next.Version = version + 1
				case s.Version == version:
					return fmt.Errorf("collections[%s].version: is %d, but the declaration differs from version %d in the database; raise it to %d",
						name, s.Version, version, version+1)
				case s.Version < version && newest.source == FromConfiguration:
					v.log.WarnContext(ctx, "the settings hold an older version of a collection than the database; the newer one is in force",
						"collection", name, "settings", s.Version, "database", version)
					return nil
				case s.Version < version:
					return fmt.Errorf("collections[%s].version: is %d, but version %d is in the database; raise it to %d, or take the collection out of the settings",
						name, s.Version, version, version+1)
				}
			}
			if p, err := v.declare(ctx, tx, by, &next, rows, old); err != nil {
				return err
			} else if p != nil {
				return fmt.Errorf("collections[%s]: %s", name, p.Detail())
			}
			return v.trail.Record(ctx, tx, by, declaredEvent(&next))
		})
		if err != nil {
			return err
		}
	}
	return v.refresh(ctx)
}

func declaredEvent(s *schema) audit.Event {
	e := audit.Event{Action: ActionDeclare, Outcome: audit.Granted, Reason: s.source,
		Resource: "collection " + s.Name + " v" + strconv.Itoa(s.Version) + " " + s.digest}
	if s.LegalBasis != "" {
		e.Resource += " basis " + string(s.LegalBasis)
	}
	return e
}

// declare writes the next version of a declaration, after rows, which old are read from. A problem says
// why the change cannot be made.
func (v *Vault) declare(ctx context.Context, tx *db.Tx, by actor.Actor, s *schema, rows []declarationRow, old []Collection) (*problem.Problem, error) {
	ever := make(map[string]Type)
	var newest map[string]Field
	for _, c := range old {
		newest = make(map[string]Field, len(c.Fields))
		for _, f := range c.Fields {
			ever[f.Name] = f.Type
			newest[f.Name] = f
		}
	}
	building, err := selectBuild(ctx, tx, s.Name)
	if err != nil {
		return nil, err
	}
	var fields []string // to be built before they can be looked up
	rebuild := false
	for _, f := range s.Fields {
		before, known := newest[f.Name]
		if t, was := ever[f.Name]; was && t != f.Type {
			return problem.New(problem.Conflict, "field-type-changed",
				"Field %s was of type %s, and records hold such values. Give the new field a name of its own.", f.Name, t), nil
		}
		_, was := ever[f.Name]
		pending := building != nil && slices.Contains(building.Fields, f.Name)
		fresh := was && f.Index && (!known || !before.Index)
		if f.Index && (fresh || pending) {
			fields = append(fields, f.Name)
			if f.Unique {
				return problem.New(problem.Conflict, "unique-needs-index",
					"Field %s has no complete index yet. Declare it with index first, wait until that is built, and add unique then.", f.Name), nil
			}
		}
		if known && before.Index && f.Index && before.Unique != f.Unique {
			if f.Unique {
				n, err := countDuplicates(ctx, tx, s.Name, f.Name)
				if err != nil {
					return nil, err
				}
				if n > 0 {
					return problem.New(problem.Conflict, "values-not-unique",
						"%d values of field %s are held by more than one record. Change those records first.", n, f.Name), nil
				}
			}
			if err := setSole(ctx, tx, s.Name, f.Name, f.Unique); err != nil {
				return nil, err
			}
		}
	}
	for name, f := range newest {
		if now := s.fields[name]; f.Index && (now == nil || !now.Index) {
			rebuild = true // what is no longer looked up leaves the index
		}
	}
	if len(rows) == 0 {
		// Records from before there were versions in the database: nothing says which fields are in their index.
		if rebuild, err = anyRecord(ctx, tx, s.Name); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(s.Collection)
	if err != nil {
		return nil, err
	}
	row := declarationRow{name: s.Name, version: s.Version, source: s.source, text: string(text), by: by.ID, at: clock.Micros(v.clock.Now())}
	var before []byte
	if len(rows) > 0 {
		before = rows[len(rows)-1].mac
	}
	row.mac, row.macVersion = v.keys.MAC(keyring.KeyEventMAC, row.parts(before)...)
	s.digest = row.digest()
	if err := insertDeclaration(ctx, tx, row); err != nil {
		return nil, err
	}
	if rebuild || len(fields) > 0 || building != nil {
		return nil, startBuild(ctx, tx, s.Name, s.Version, fields)
	}
	return nil, nil
}

var errCollectionAbsent = problem.New(problem.NotFound, "collection-not-found", "There is no such collection.")

// operate is a deed of the operator on declarations.
func (v *Vault) operate(by actor.Actor, action, name string) *deed {
	d := &deed{Vault: v, by: by, Event: audit.Event{Action: action, Resource: "collections"}, err: systemOnly(by)}
	if name != "" {
		d.Resource = "collection"
		if nameForm.MatchString(name) {
			d.Resource += " " + name
		} else {
			d.refuse(errCollectionAbsent)
		}
	}
	return d
}

// PutCollection declares a collection, or the next version of one: text is what ParseCollection reads.
// Its version may be left out; if it is there it must be the one after the newest. To put what is in force
// already changes nothing. Collections that the settings name are refused. Only the system may do it.
func (v *Vault) PutCollection(ctx context.Context, by actor.Actor, text []byte) (out Declared, err error) {
	c, parsed := ParseCollection(text)
	d := v.operate(by, ActionDeclare, c.Name)
	if parsed != nil {
		d.Resource = "collection"
		d.refuse(problem.New(problem.Unprocessable, "invalid-collection", "%s", parsed.Error()))
	}
	s, wrong := c.compile("collections[" + c.Name + "]")
	if wrong != nil {
		d.refuse(problem.New(problem.Unprocessable, "invalid-collection", "%s", wrong.Error()))
	}
	if p := v.pinned[c.Name]; p != nil && p.source == FromConfiguration {
		d.refuse(problem.New(problem.Conflict, "collection-pinned",
			"The settings of this installation declare collection %s; change it there.", c.Name))
	}
	err = d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		rows, err := v.declarations(ctx, tx, c.Name)
		if err != nil {
			return err
		}
		old, err := older(rows)
		if err != nil {
			return err
		}
		next := *s
		next.source = FromOperator
		next.Version = 1
		if len(rows) > 0 {
			newest := rows[len(rows)-1]
			if newest.source == FromOperator && content(old[len(old)-1]) == content(s.Collection) {
				out = newest.declared(old[len(old)-1])
				out.Served, out.Unchanged = true, true
				e.Resource += " v" + strconv.Itoa(newest.version) + " unchanged"
				return nil
			}
			next.Version = newest.version + 1
		}
		if c.Version != 0 && c.Version != next.Version {
			e.Deny(problem.New(problem.Conflict, "collection-version",
				"The next version of this collection is %d. Put that, or leave the version out.", next.Version))
			return nil
		}
		p, err := v.declare(ctx, tx, by, &next, rows, old)
		if err != nil {
			return err
		}
		if p != nil {
			e.Deny(p)
			return nil
		}
		event := declaredEvent(&next)
		e.Resource, e.Reason = event.Resource, event.Reason
		out = Declared{Name: next.Name, Version: next.Version, Source: next.source, Digest: next.digest, LegalBasis: next.LegalBasis,
			By: by.ID, At: v.clock.Now().UTC(), Served: true}
		out.Building, err = selectBuild(ctx, tx, next.Name)
		return err
	})
	if err != nil {
		return Declared{}, err
	}
	if v.wake != nil {
		v.wake(JobIndex)
	}
	return out, v.refresh(ctx)
}

func (r declarationRow) declared(c Collection) Declared {
	return Declared{Name: r.name, Version: r.version, Source: r.source, Digest: r.digest(), LegalBasis: c.LegalBasis, By: r.by, At: clock.FromMicros(r.at)}
}

// Collections returns the newest version of every collection that was ever declared, by name.
func (v *Vault) Collections(ctx context.Context, by actor.Actor) (out []Declared, err error) {
	all, err := v.read(ctx, v.operate(by, ActionCollections, ""), "")
	for i, d := range all {
		if i == len(all)-1 || all[i+1].Name != d.Name {
			out = append(out, d)
		}
	}
	return out, err
}

// CollectionHistory returns every version of a collection's declaration, newest first.
func (v *Vault) CollectionHistory(ctx context.Context, by actor.Actor, name string) ([]Declared, error) {
	all, err := v.read(ctx, v.operate(by, ActionDeclarations, name), name)
	slices.Reverse(all)
	return all, err
}

// ShowCollection returns the newest declaration of a collection, or that version, with what it means for the records that are there.
func (v *Vault) ShowCollection(ctx context.Context, by actor.Actor, name string, version int) (Declared, error) {
	d := v.operate(by, ActionCollection, name)
	all, err := v.read(ctx, d, name)
	if err != nil {
		return Declared{}, err
	}
	i := len(all) - 1
	if version != 0 {
		i = slices.IndexFunc(all, func(x Declared) bool { return x.Version == version })
	}
	if i < 0 {
		return Declared{}, errCollectionAbsent
	}
	return all[i], nil
}

// read reads declarations as an event of d, with counts when they are of one collection that is shown.
func (v *Vault) read(ctx context.Context, d *deed, name string) (out []Declared, err error) {
	served := v.collections()
	err = d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		rows, err := v.declarations(ctx, tx, name)
		if err != nil {
			return err
		}
		if len(rows) == 0 && name != "" {
			e.Deny(errCollectionAbsent)
			return nil
		}
		all, err := older(rows)
		if err != nil {
			return err
		}
		out = make([]Declared, len(rows))
		for i, r := range rows {
			out[i] = r.declared(all[i])
			newest := i == len(rows)-1 || rows[i+1].name != r.name
			out[i].Served = newest && served[r.name] != nil
			if d.Action != ActionCollection {
				continue
			}
			out[i].Declaration = &all[i]
			if newest {
				if out[i].Records, err = v.countRecords(ctx, tx, all[i]); err != nil {
					return err
				}
				if out[i].Building, err = selectBuild(ctx, tx, name); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return out, err
}

// The jobs that keep collections up to date.
const (
	JobCollections = "vault-collections"
	JobIndex       = "vault-index"
	reloadEvery    = 2 * time.Second
)

// CollectionJobs returns the job by which a replica hears of declarations, and the one that builds indexes.
func (v *Vault) CollectionJobs() []jobs.Job {
	return []jobs.Job{
		{Name: JobCollections, Every: reloadEvery, Quiet: true, Run: v.refresh},
		{Name: JobIndex, Every: 30 * time.Second, Quiet: true, Leased: true, Run: v.BuildIndexes},
	}
}

// collections returns the declarations that are in force in this process.
func (v *Vault) collections() map[string]*schema { return *v.state.Load() }

// refresh loads the declarations when the database has others than this process. A declaration that was
// altered, or is older than one that was in force before, changes nothing.
func (v *Vault) refresh(ctx context.Context) error {
	v.refreshing.Lock()
	defer v.refreshing.Unlock()
	var rows []declarationRow
	var builds map[string]Building
	var stamp string
	err := v.db.View(ctx, func(tx *db.Tx) (err error) {
		rows = nil
		if stamp, builds, err = selectStamp(ctx, tx); err != nil || stamp == v.stamp {
			return err
		}
		rows, err = v.declarations(ctx, tx, "")
		return err
	})
	if err != nil || stamp == v.stamp {
		return err
	}
	next := make(map[string]*schema)
	now := v.collections()
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && rows[n].name == rows[0].name {
			n++
		}
		versions := rows[:n]
		rows = rows[n:]
		newest := versions[n-1]
		if was := now[newest.name]; newest.source != FromOperator && v.pinned[newest.name] == nil && (was == nil || !was.stored) {
			continue // the settings name it no longer; what this process serves already is managed by another's now
		}
		s, err := load(versions, now[newest.name])
		if err != nil {
			return err
		}
		var build Building
		build, s.rebuild = builds[newest.name]
		s.building = make(map[string]bool)
		for _, f := range build.Fields {
			s.building[f] = true
		}
		next[newest.name] = s
	}
	for name, was := range now {
		if was.stored && next[name] == nil {
			return fmt.Errorf("%w: collection %s is missing", ErrDeclarationDamaged, name)
		}
	}
	v.state.Store(&next)
	v.stamp = stamp
	return nil
}

// load makes the newest of the versions of a declaration ready for use; was is what is in force, or nil.
func load(versions []declarationRow, was *schema) (*schema, error) {
	newest := versions[len(versions)-1]
	if was != nil && was.stored {
		if was.Version > newest.version {
			return nil, fmt.Errorf("%w: collection %s is at version %d and was at %d", ErrDeclarationDamaged, newest.name, newest.version, was.Version)
		}
		if was.Version == newest.version && was.digest == newest.digest() {
			same := *was
			return &same, nil
		}
	}
	all, err := older(versions)
	if err != nil {
		return nil, err
	}
	s, err := all[len(all)-1].compile("collections[" + newest.name + "]")
	if err != nil {
		return nil, err
	}
	s.stored, s.source, s.digest, s.gone = true, newest.source, newest.digest(), make(map[string]bool)
	for _, c := range all {
		for _, f := range c.Fields {
			s.gone[f.Name] = s.fields[f.Name] == nil
		}
	}
	return s, nil
}

var errOutdated = problem.New(problem.Unavailable, "collection-changed",
	"The collection was changed just now. Send the request again.").RetryAfter(reloadEvery)

// current fails with errOutdated when another process has declared the collection anew. Every write asks
// in its own transaction: from the commit of a declaration on, no record is written under the one before.
func (s *schema) current(ctx context.Context, tx *db.Tx) error {
	if !s.stored {
		return nil
	}
	version, err := selectNewest(ctx, tx, s.Name)
	if err == nil && version != s.Version {
		err = errOutdated
	}
	return err
}

// outdated reports whether a write failed for a declaration that is known by now, so that it can be done again.
func (v *Vault) outdated(ctx context.Context, err error) bool {
	return problem.Is(err, errOutdated.Slug()) && v.refresh(ctx) == nil
}

func insertDeclaration(ctx context.Context, tx *db.Tx, r declarationRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO collection_version (name, version, source, declaration, made_by, made_at, mac_version, mac)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		r.name, r.version, r.source, r.text, r.by, r.at, r.macVersion, r.mac)
	return err
}

func selectNewest(ctx context.Context, tx *db.Tx, name string) (version int, err error) {
	err = tx.QueryRow(ctx, `SELECT COALESCE(MAX(version), 0) FROM collection_version WHERE name = $1`, name).Scan(&version)
	return version, err
}

// selectStamp returns a text that changes with everything that refresh loads, and the builds.
func selectStamp(ctx context.Context, tx *db.Tx) (stamp string, builds map[string]Building, err error) {
	var b strings.Builder
	rows, err := tx.Query(ctx, `SELECT name, MAX(version), COUNT(*) FROM collection_version GROUP BY name ORDER BY name`)
	if err != nil {
		return "", nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var version, count int
		if err := rows.Scan(&name, &version, &count); err != nil {
			return "", nil, err
		}
		fmt.Fprintf(&b, "%s %d %d\n", name, version, count)
	}
	if err := rows.Err(); err != nil {
		return "", nil, err
	}
	building, err := tx.Query(ctx, `SELECT name, fields FROM collection_build ORDER BY name`)
	if err != nil {
		return "", nil, err
	}
	defer building.Close()
	builds = make(map[string]Building)
	for building.Next() {
		var name, fields string
		if err := building.Scan(&name, &fields); err != nil {
			return "", nil, err
		}
		var one Building
		if err := json.Unmarshal([]byte(fields), &one.Fields); err != nil {
			return "", nil, err
		}
		builds[name] = one
		fmt.Fprintf(&b, "build %s %s\n", name, fields)
	}
	return b.String(), builds, building.Err()
}

func (v *Vault) countRecords(ctx context.Context, tx *db.Tx, c Collection) (*Counts, error) {
	var out Counts
	count := func(n *int64, before int64) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM record WHERE collection = $1 AND updated_day <= $2 AND updated_at <= $3`,
			c.Name, day(before), before).Scan(n)
	}
	now := v.clock.Now()
	if err := count(&out.All, clock.Micros(now.AddDate(100, 0, 0))); err != nil || c.Retention == 0 {
		return &out, err
	}
	if err := count(&out.Over, clock.Micros(now.Add(-c.Retention))); err != nil {
		return nil, err
	}
	return &out, count(&out.Over30d, clock.Micros(now.Add(30*24*time.Hour-c.Retention)))
}

func anyRecord(ctx context.Context, tx *db.Tx, collection string) (bool, error) {
	var n int
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM (SELECT 1 FROM record WHERE collection = $1 LIMIT 1) AS one`, collection).Scan(&n)
	return n > 0, err
}

// countDuplicates returns how many values of an indexed field stand in more than one record.
func countDuplicates(ctx context.Context, tx *db.Tx, collection, field string) (n int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT COALESCE(MAX(n), 0) FROM (
			SELECT COUNT(*) AS n FROM (
				SELECT key_version, blind FROM record_index WHERE collection = $1 AND field = $2
				GROUP BY key_version, blind HAVING COUNT(*) > 1) AS twice
			GROUP BY key_version) AS counts`, collection, field).Scan(&n)
	return n, err
}

func setSole(ctx context.Context, tx *db.Tx, collection, field string, sole bool) error {
	_, err := tx.Exec(ctx, `UPDATE record_index SET sole = $3 WHERE collection = $1 AND field = $2`, collection, field, sole)
	return err
}
