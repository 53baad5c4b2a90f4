// Package location says in which country an address is and whose network it belongs to, from files that the
// operator provides (MaxMind DB format 2.0, with the members of GeoLite2 and DB-IP). It asks nobody, and it
// never guesses: what the files do not know is empty.
package location

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/oschwald/maxminddb-golang/v2"

	"strongroom/internal/jobs"
)

// MaxFile is the size in bytes over which a file is surely no such database.
const MaxFile = 1 << 30

// every is how often the files are looked at.
const every = 30 * time.Second

// Atlas knows where addresses are. It is safe for concurrent use. Its files may be replaced at any time,
// also written over: they are read whole into memory.
type Atlas struct {
	countries, networks *file
	mu                  sync.Mutex // of Reload
}

type file struct {
	path   string
	reader atomic.Pointer[maxminddb.Reader]
	seen   os.FileInfo
}

// Open reads the databases of countries and of networks; an empty path is a file that there is not. One file
// may be both.
func Open(countries, networks string) (*Atlas, error) {
	a := &Atlas{}
	for _, f := range []struct {
		path string
		into **file
	}{{countries, &a.countries}, {networks, &a.networks}} {
		if f.path == "" {
			continue
		}
		*f.into = &file{path: f.path}
	}
	return a, a.Reload(context.Background())
}

// Reload reads the files that were replaced. When one cannot be read, what it held before goes on to be used,
// and the error says so.
func (a *Atlas) Reload(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, f := range []*file{a.countries, a.networks} {
		if f == nil {
			continue
		}
		if err := f.load(); err != nil {
			errs = append(errs, fmt.Errorf("location: %s: %w", f.path, err))
		}
	}
	return errors.Join(errs...)
}

func (f *file) load() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	if f.seen != nil && os.SameFile(f.seen, info) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size() {
		return nil
	}
	if !info.Mode().IsRegular() || info.Size() > MaxFile {
		return fmt.Errorf("is no file of at most %d bytes", MaxFile)
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	reader, err := maxminddb.OpenBytes(data)
	if err != nil {
		return fmt.Errorf("is no MaxMind DB file: %w", err)
	}
	f.reader.Store(reader)
	f.seen = info
	return nil
}

// Job returns the job that reads the files again when they were replaced, on every server.
func (a *Atlas) Job() jobs.Job {
	return jobs.Job{Name: "location.reload", Every: every, Run: a.Reload, Quiet: true}
}

// Locate returns the country of an address (ISO 3166-1, two capital letters) and its network ("AS64500 Example
// Net"); each is empty when it is not known.
func (a *Atlas) Locate(address netip.Addr) (country, network string) {
	address = address.Unmap().WithZone("")
	if a.countries != nil {
		if r := a.countries.reader.Load().Lookup(address); r.Found() {
			// What cannot be decoded is not known.
			if r.DecodePath(&country, "country", "iso_code") != nil || !isCountry(country) {
				country = ""
			}
		}
	}
	if a.networks != nil {
		if r := a.networks.reader.Load().Lookup(address); r.Found() {
			var number uint64
			var name string
			if r.DecodePath(&number, "autonomous_system_number") == nil && number > 0 && number < 1<<32 {
				network = "AS" + strconv.FormatUint(number, 10)
				if r.DecodePath(&name, "autonomous_system_organization") == nil && isName(name) {
					network += " " + name
				}
			}
		}
	}
	return country, network
}

func isCountry(s string) bool {
	return len(s) == 2 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'A' && s[1] <= 'Z'
}

func isName(s string) bool {
	if s == "" || len(s) > 200 || !utf8.ValidString(s) {
		return false
	}
	for _, c := range s {
		if !unicode.IsPrint(c) {
			return false
		}
	}
	return true
}
