package config

import (
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
)

// Backup says where copies of everything go, and when.
type Backup struct {
	// Repositories are the places. Data and keys lie apart; each part wants Media separate media.
	Repositories []Repository `yaml:"repositories"`
	// AllowedRegions are the regions, or beginnings of their names, in which a repository may be: personal
	// data leave them in no copy.
	AllowedRegions []string `yaml:"allowed_regions"`
	// Media is how many separate media have to hold both parts for a snapshot to count.
	Media int `yaml:"media"`
	// Recipients are the public halves of the keys that open a repository when everything else is lost
	// (age): age1pq…, which quantum computers do not open, or age1…; not both kinds.
	Recipients []string `yaml:"recipients"`
	// Label and Jurisdiction are written into every manifest.
	Label        string `yaml:"label"`
	Jurisdiction string `yaml:"jurisdiction"`

	Retention Retention `yaml:"retention"`

	// DailyAt is the time of day, UTC, at which everything that changed is folded into whole segments.
	DailyAt string `yaml:"daily_at"`
	// Every is the time between the increments; 0 means the daily one only.
	Every time.Duration `yaml:"every"`
	// Continuous is the least time between two looks for changes; 0 means none. For the embedded
	// database; a snapshot may then take a tenth of the time.
	Continuous time.Duration `yaml:"continuous"`
	// DrillEvery is the time between two restores for practice; 0 means none by itself.
	DrillEvery time.Duration `yaml:"drill_every"`
	// DrillDatabase is the PostgreSQL database, postgres://…, in which drills make and drop a schema.
	// Empty means a scratch file in the data folder.
	DrillDatabase string `yaml:"drill_database"`
	// DrillPassword is that database's password, when it asks for one.
	DrillPassword Secret `yaml:"drill_password"`
}

// Retention says how many snapshots are kept: the first of each of so many of the newest hours, days, weeks,
// months and years that have any.
type Retention struct {
	Hourly  int `yaml:"hourly"`
	Daily   int `yaml:"daily"`
	Weekly  int `yaml:"weekly"`
	Monthly int `yaml:"monthly"`
	Yearly  int `yaml:"yearly"`
	// Keys is the longest that a copy of the keys that is not the newest may lie locked in a repository.
	Keys time.Duration `yaml:"keys"`
}

// Repository is one place.
type Repository struct {
	Name string `yaml:"name"`
	// Part is data or keys.
	Part string `yaml:"part"`
	// URL is a folder, file:///…, or s3://bucket/prefix.
	URL string `yaml:"url"`
	// Medium names what it lies on, for counting separate media.
	Medium string `yaml:"medium"`
	// Region is where it lies, as allowed_regions names it.
	Region string `yaml:"region"`
	// Endpoint is the https address of an S3 server that is not Amazon's.
	Endpoint  string `yaml:"endpoint"`
	PathStyle bool   `yaml:"path_style"`
	// AccessKey and SecretKey are the credentials for S3; without them the machine's own are used.
	AccessKey string `yaml:"access_key"`
	SecretKey Secret `yaml:"secret_key"`
	// Lock is "", governance or compliance: S3 keeps objects from being deleted or replaced. LockFor is for
	// how long, in a repository for keys; data are locked for as long as the retention keeps them.
	Lock    string        `yaml:"lock"`
	LockFor time.Duration `yaml:"lock_for"`
}

var repositoryNames = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// EU are the regions of the European Union, as cloud providers name them, and one's own rooms there.
var EU = []string{"eu-", "europe-", "on-premises-eu"}

func defaultBackup() Backup {
	return Backup{
		AllowedRegions: EU, Media: 2, Retention: Retention{24, 14, 8, 12, 7, 7 * 24 * time.Hour}, DailyAt: "02:30", Every: time.Hour, DrillEvery: 24 * time.Hour,
	}
}

// DevBackup returns two folders for each part below the data folder, and a recovery key's recipient. They
// are separate media in name only.
func DevBackup(recipient string) Backup {
	b := defaultBackup()
	b.Recipients = []string{recipient}
	b.Label, b.Jurisdiction = "development", "none"
	for _, part := range []string{"data", "keys"} {
		for i, name := range []string{"near", "far"} {
			b.Repositories = append(b.Repositories, Repository{
				Name: name + "-" + part, Part: part, URL: "backups/" + name + "-" + part,
				Medium: "disk-" + strconv.Itoa(i+1), Region: "on-premises-eu",
			})
		}
	}
	return b
}

// paths returns the folders and files that are named.
func (b *Backup) paths() []*string {
	all := []*string{&b.DrillPassword.File}
	for i := range b.Repositories {
		r := &b.Repositories[i]
		all = append(all, &r.SecretKey.File)
		if !strings.Contains(r.URL, "://") {
			all = append(all, &r.URL)
		}
	}
	return all
}

// secretVariables returns the environment variables that are named as secrets.
func (b *Backup) secretVariables() []string {
	all := []string{b.DrillPassword.Env}
	for _, r := range b.Repositories {
		all = append(all, r.SecretKey.Env)
	}
	return all
}

// RepositoryURL returns the URL of a repository whose path was resolved.
func (r Repository) RepositoryURL() string {
	if strings.Contains(r.URL, "://") {
		return r.URL
	}
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(r.URL)}).String()
}

// RecoveryRecipients parses Recipients.
func (b *Backup) RecoveryRecipients() ([]age.Recipient, error) {
	if len(b.Recipients) == 0 {
		return nil, nil
	}
	all, err := age.ParseRecipients(strings.NewReader(strings.Join(b.Recipients, "\n")))
	if err != nil {
		return nil, &Error{"backup.recipients", "holds what is no recipient of age", "write what `strongroom backup recovery-key` printed: age1pq… or age1…"}
	}
	if len(b.Recipients) != len(all) {
		return nil, &Error{"backup.recipients", "holds an empty line", "remove it"}
	}
	hybrid := 0
	for _, r := range all {
		if _, ok := r.(*age.HybridRecipient); ok {
			hybrid++
		}
	}
	if hybrid != 0 && hybrid != len(all) {
		return nil, &Error{"backup.recipients", "mixes post-quantum recipients with others", "use one kind: the weaker would decide"}
	}
	return all, nil
}

// Daily returns DailyAt as the time since midnight.
func (b *Backup) Daily() (time.Duration, error) {
	at, err := time.Parse("15:04", b.DailyAt)
	return time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute, err
}

func (v *validator) backup(b *Backup) {
	if _, err := b.RecoveryRecipients(); err != nil {
		v.errs = append(v.errs, err)
	}
	_, err := b.Daily()
	v.check(err == nil, "backup.daily_at", "is no time of day", "write for example 02:30 (UTC)")
	every := func(key string, d, least, most time.Duration) {
		v.check(d == 0 || d >= least && d <= most, key, "is not 0 and not from "+least.String()+" to "+most.String(), "")
	}
	every("backup.every", b.Every, time.Minute, 24*time.Hour)
	every("backup.continuous", b.Continuous, time.Second, time.Hour)
	every("backup.drill_every", b.DrillEvery, time.Hour, 31*24*time.Hour)
	v.between("backup.media", b.Media, 1, 9)
	for key, n := range map[string]int{"hourly": b.Retention.Hourly, "daily": b.Retention.Daily, "weekly": b.Retention.Weekly,
		"monthly": b.Retention.Monthly, "yearly": b.Retention.Yearly} {
		v.between("backup.retention."+key, n, 0, 10_000)
	}
	v.duration("backup.retention.keys", b.Retention.Keys, time.Hour, 31*24*time.Hour)
	if b.DrillDatabase != "" {
		u, err := url.Parse(b.DrillDatabase)
		ok := err == nil && (u.Scheme == "postgres" || u.Scheme == "postgresql")
		if ok {
			_, has := u.User.Password()
			ok = !has
		}
		v.check(ok, "backup.drill_database", "is no postgres:// URL, or holds a password", "write postgres://user@host:5432/name, and name the password in backup.drill_password")
	}
	if !b.DrillPassword.IsZero() {
		v.secret("backup.drill_password", b.DrillPassword)
	}
	names, media := map[string]bool{}, map[string]map[string]bool{"data": {}, "keys": {}}
	places := map[string]string{}
	for i, r := range b.Repositories {
		key := "backup.repositories[" + strconv.Itoa(i) + "]"
		v.check(repositoryNames.MatchString(r.Name) && !names[r.Name], key+".name", "is missing, used twice, or not of a-z, 0-9 and -", "write for example near-data")
		names[r.Name] = true
		v.check(media[r.Part] != nil, key+".part", "is not data or keys", "each repository holds one part: the keys lie apart from what they open")
		if media[r.Part] != nil {
			media[r.Part][r.Medium] = true
		}
		v.check(r.Medium != "", key+".medium", "is missing", "name what it lies on, for example disk-1 or s3-frankfurt: a snapshot counts separate media")
		u, err := url.Parse(r.RepositoryURL())
		v.check(r.URL != "" && err == nil && (u.Scheme == "file" && u.Host == "" || u.Scheme == "s3" && u.Host != ""), key+".url",
			"is no folder, file:///… or s3://bucket/prefix", "write for example s3://acme-backup-data/strongroom")
		other := places[r.RepositoryURL()]
		v.check(other == "", key+".url", "is that of "+other, "give each repository a place of its own")
		places[r.RepositoryURL()] = r.Name
		allowed := false
		for _, region := range b.AllowedRegions {
			allowed = allowed || r.Region != "" && strings.HasPrefix(r.Region, region)
		}
		v.check(allowed, key+".region", strconv.Quote(r.Region)+" is not among backup.allowed_regions",
			"keep copies where the data may be ("+strings.Join(b.AllowedRegions, ", ")+"…), or allow the region")
		v.check(r.Lock == "" || (r.Lock == "governance" || r.Lock == "compliance") && u != nil && u.Scheme == "s3", key+".lock",
			"is not governance or compliance, or the place is not S3", "remove it, or write for example lock: compliance")
		v.check(r.LockFor >= 0 && (r.Part != "keys" || r.LockFor <= b.Retention.Keys), key+".lock_for",
			"is longer than backup.retention.keys", "a lock would keep the key of who was erased: shorten it")
		if r.Endpoint != "" {
			e, err := url.Parse(r.Endpoint)
			v.check(err == nil && (e.Scheme == "https" || e.Scheme == "http" && isLoopback(e.Hostname())), key+".endpoint",
				"is not an https address", "http is for loopback addresses only")
		}
		v.check((r.AccessKey == "") == r.SecretKey.IsZero(), key+".secret_key", "and access_key go together", "give both, or neither for the machine's own identity")
		if !r.SecretKey.IsZero() {
			v.secret(key+".secret_key", r.SecretKey)
		}
	}
	if len(b.Repositories) > 0 {
		for part, on := range media {
			v.check(len(on) >= b.Media, "backup.repositories", "have the "+part+" on "+strconv.Itoa(len(on))+" separate media, and backup.media asks for "+strconv.Itoa(b.Media),
				"name more repositories, each with a medium of its own")
		}
		v.check(len(b.Recipients) > 0, "backup.recipients", "is empty: whoever loses the root key loses every copy",
			"make a recovery key with `strongroom backup recovery-key --out FILE` and name its recipient here")
	}
}
