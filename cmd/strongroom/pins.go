package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
)

// pinFormats are the forms in which apps take pins.
var pinFormats = map[string]func(w io.Writer, host string, p app.Pins) error{
	"json":    func(w io.Writer, _ string, p app.Pins) error { return printJSON(w, p) },
	"go":      pinsForGo,
	"android": pinsForAndroid,
	"ios":     pinsForIOS,
	"okhttp":  pinsForOkHttp,
}

func newPins() *cobra.Command {
	var s settings
	var format, host string
	cmd := &cobra.Command{
		Use:   "pins",
		Short: "Print the public keys that apps pin, as their platform takes them",
		Long: `Prints the pin of the certificate in use and that of the backup key, and with go and json the key that signs
the pin sets with which apps of the SDK move to new pins by themselves.

  json     everything, for other tools
  go       Options of this module's client
  android  res/xml/network_security_config.xml
  ios      the NSAppTransportSecurity part of Info.plist
  okhttp   a CertificatePinner in Kotlin`,
		Example: "  strongroom pins --format android > app/src/main/res/xml/network_security_config.xml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			write := pinFormats[format]
			if write == nil {
				return fmt.Errorf("%q is no format: choose json, go, android, ios or okhttp", format)
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			p, err := o.Pins(cmd.Context())
			if err != nil {
				return err
			}
			if host == "" {
				u, err := url.Parse(p.Origin)
				if err != nil {
					return fmt.Errorf("login.origin: %w", err)
				}
				host = u.Hostname()
			}
			if !hostForm.MatchString(host) {
				return fmt.Errorf("%q is no host name: give the one that apps connect to with --host", host)
			}
			if len(p.Pins) == 1 {
				fmt.Fprintln(cmd.ErrOrStderr(), "There is no backup pin: an app whose only pinned key is lost cannot reach its server again. Set listeners.app.backup_key.")
			}
			return write(cmd.OutOrStdout(), host, p)
		},
	}
	s.place(cmd)
	cmd.Flags().StringVar(&format, "format", "json", "json, go, android, ios or okhttp")
	cmd.Flags().StringVar(&host, "host", "", "host name that apps connect to (default that of login.origin)")
	return cmd
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// digests returns the pins without their prefix.
func digests(p app.Pins) []string {
	var all []string
	for _, pin := range p.Pins {
		all = append(all, strings.TrimPrefix(pin, "sha256/"))
	}
	return all
}

func pinsForGo(w io.Writer, _ string, p app.Pins) error {
	list := func(all []string) string {
		var b strings.Builder
		for _, one := range all {
			fmt.Fprintf(&b, "\t\t%q,\n", one)
		}
		return b.String()
	}
	_, err := fmt.Fprintf(w, `package main

import "strongroom/client"

// pinned says which server this app talks to. Made by: strongroom pins --format go
var pinned = client.Options{
	BaseURL: %q,
	Pins: []string{
%s	},
	PinKeys: []string{
%s	},
}
`, p.Origin, list(p.Pins), list(p.Keys))
	return err
}

func pinsForAndroid(w io.Writer, host string, p app.Pins) error {
	type pin struct {
		Digest string `xml:"digest,attr"`
		Value  string `xml:",chardata"`
	}
	type domain struct {
		Subdomains bool   `xml:"includeSubdomains,attr"`
		Name       string `xml:",chardata"`
	}
	var c struct {
		XMLName xml.Name `xml:"network-security-config"`
		Domain  struct {
			Cleartext bool   `xml:"cleartextTrafficPermitted,attr"`
			Domain    domain `xml:"domain"`
			Pins      []pin  `xml:"pin-set>pin"`
		} `xml:"domain-config"`
	}
	c.Domain.Domain.Name = host
	for _, d := range digests(p) {
		c.Domain.Pins = append(c.Domain.Pins, pin{"SHA-256", d})
	}
	text, err := xml.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n%s\n", text)
	return err
}

// pinsForIOS writes the part of Info.plist that App Transport Security reads (NSPinnedDomains, iOS 14).
func pinsForIOS(w io.Writer, host string, p app.Pins) error {
	var b strings.Builder
	for _, d := range digests(p) {
		fmt.Fprintf(&b, "          <dict>\n            <key>SPKI-SHA256-BASE64</key>\n            <string>%s</string>\n          </dict>\n", d)
	}
	_, err := fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>NSAppTransportSecurity</key>
  <dict>
    <key>NSPinnedDomains</key>
    <dict>
      <key>%s</key>
      <dict>
        <key>NSIncludesSubdomains</key>
        <false/>
        <key>NSPinnedLeafIdentities</key>
        <array>
%s        </array>
      </dict>
    </dict>
  </dict>
</dict>
</plist>
`, host, b.String())
	return err
}

func pinsForOkHttp(w io.Writer, host string, p app.Pins) error {
	var b strings.Builder
	for _, pin := range p.Pins {
		fmt.Fprintf(&b, "\n    .add(%q, %q)", host, pin)
	}
	_, err := fmt.Fprintf(w, `import okhttp3.CertificatePinner

val pinner: CertificatePinner = CertificatePinner.Builder()%s
    .build()
`, b.String())
	return err
}
