package location_test

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"strongroom/internal/location"
)

// database makes a file with a writer that is not ours.
func database(t testing.TB, kind string, entries map[string]mmdbtype.DataType) []byte {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: kind, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for prefix, value := range entries {
		_, network, err := net.ParseCIDR(prefix)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(network, value); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := tree.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func country(code string) mmdbtype.DataType {
	return mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(code)}}
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	// As operators do it: a new file in the place of the old.
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	countries, networks := filepath.Join(dir, "countries.mmdb"), filepath.Join(dir, "networks.mmdb")
	write(t, countries, database(t, "GeoLite2-Country", map[string]mmdbtype.DataType{
		"192.0.2.0/25": country("DE"), "2001:db8:1::/48": country("NG"), "198.51.100.0/24": country("Germany"),
		"203.0.113.0/24": mmdbtype.Map{"country": mmdbtype.String("DE")}, "192.0.2.200/32": mmdbtype.Map{"continent": mmdbtype.String("EU")},
	}))
	write(t, networks, database(t, "GeoLite2-ASN", map[string]mmdbtype.DataType{
		"192.0.2.0/24":    mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(64500), "autonomous_system_organization": mmdbtype.String("Example Net")},
		"2001:db8::/32":   mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(64501), "autonomous_system_organization": mmdbtype.String("a\x1b[31mb")},
		"198.51.100.0/24": mmdbtype.Map{"autonomous_system_organization": mmdbtype.String("nameless")},
	}))
	a, err := location.Open(countries, networks)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ address, country, network string }{
		{"192.0.2.7", "DE", "AS64500 Example Net"},
		{"::ffff:192.0.2.7", "DE", "AS64500 Example Net"},
		{"192.0.2.200", "", "AS64500 Example Net"},
		{"2001:db8:1::1", "NG", "AS64501"},
		{"2001:db8:2::1", "", "AS64501"},
		{"198.51.100.1", "", ""}, // no country code, no number
		{"203.0.113.1", "", ""},  // of another form
		{"10.0.0.1", "", ""},
	} {
		if country, network := a.Locate(netip.MustParseAddr(c.address)); country != c.country || network != c.network {
			t.Errorf("%s is in %q, %q", c.address, country, network)
		}
	}
	neither, err := location.Open("", "")
	if err != nil {
		t.Fatal(err)
	}
	if country, network := neither.Locate(netip.MustParseAddr("192.0.2.7")); country != "" || network != "" {
		t.Errorf("without a file: %q, %q", country, network)
	}
}

func TestAReplacedFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "countries.mmdb")
	if _, err := location.Open(path, ""); err == nil {
		t.Error("a file that is not there was opened")
	}
	write(t, path, database(t, "x", map[string]mmdbtype.DataType{"192.0.2.0/24": country("DE")}))
	a, err := location.Open(path, "")
	if err != nil {
		t.Fatal(err)
	}
	in := func() string {
		c, _ := a.Locate(netip.MustParseAddr("192.0.2.1"))
		return c
	}
	write(t, path, []byte("not a database"))
	if err := a.Reload(t.Context()); err == nil || in() != "DE" {
		t.Errorf("a broken file: %v, %q", err, in())
	}
	write(t, path, database(t, "x", map[string]mmdbtype.DataType{"192.0.2.0/24": country("NG")}))
	if err := a.Reload(t.Context()); err != nil || in() != "NG" {
		t.Errorf("a new file: %v, %q", err, in())
	}
	// Written over in place, as some do.
	if err := os.WriteFile(path, database(t, "x", map[string]mmdbtype.DataType{"192.0.2.0/24": country("FR")}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := a.Reload(t.Context()); err != nil || in() != "FR" {
		t.Errorf("a file written over: %v, %q", err, in())
	}
}

// FuzzLocate holds that no file brings a server down.
func FuzzLocate(f *testing.F) {
	f.Add(database(f, "x", map[string]mmdbtype.DataType{"192.0.2.0/24": country("DE")}))
	f.Add([]byte("\xab\xcd\xefMaxMind.com"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x.mmdb")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := location.Open(path, path)
		if err != nil {
			return
		}
		for _, address := range []string{"192.0.2.1", "2001:db8::1"} {
			a.Locate(netip.MustParseAddr(address))
		}
	})
}
