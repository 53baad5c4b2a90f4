package config

import (
	"net/url"
	"regexp"
	"strconv"
	"time"
)

var sinkName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

func (v *validator) sinks(list []Sink) {
	names := map[string]bool{}
	paths := map[string]bool{}
	for i, s := range list {
		key := "audit.sinks[" + strconv.Itoa(i) + "]"
		v.check(sinkName.MatchString(s.Name), key+".name", "is not 1 to 32 small letters, digits and hyphens", "write for example siem")
		v.check(!names[s.Name], key+".name", strconv.Quote(s.Name)+" is there twice", "where a sink has got to is kept under its name")
		names[s.Name] = true
		v.check(s.Format == "" || s.Format == "ocsf" || s.Format == "json", key+".format", "is not a format", "choose ocsf or json")
		v.check(s.Type == "file" || s.Path == "" && s.MaxSize == 0 && s.MaxAge == 0, key+".path", "and max_size and max_age are for files only", "remove them")
		v.check(s.Type == "syslog" || s.Address == "", key+".address", "is for syslog only", "remove it")
		v.check(s.Type == "webhook" || s.URL == "" && s.Secret.IsZero(), key+".url", "and secret are for webhooks only", "remove them")
		v.check(s.Type != "file" || s.CA == "" && s.Certificate == "" && s.Key == "", key+".ca", "and certificate and key are not for files", "remove them")
		v.check((s.Certificate == "") == (s.Key == ""), key+".key", "and certificate go together", "set both, or neither")
		switch s.Type {
		case "file":
			v.check(s.Path != "", key+".path", "is missing", "name the file, for example audit.ndjson")
			v.check(!paths[s.Path], key+".path", "is another sink's too", "give each a file of its own")
			paths[s.Path] = true
			v.check(s.MaxSize == 0 || s.MaxSize >= 64<<10, key+".max_size", "is below 65536 bytes", "write for example 104857600, or 0 for no bound")
			v.check(s.MaxAge == 0 || s.MaxAge >= time.Minute, key+".max_age", "is below a minute", "write for example 24h, or 0 for no bound")
		case "syslog":
			v.address(key+".address", s.Address)
		case "webhook":
			u, err := url.Parse(s.URL)
			v.check(err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.Fragment == "", key+".url",
				"is not an https address", "write for example https://siem.internal/strongroom")
			v.secret(key+".secret", s.Secret)
			if value, err := s.Secret.Read(); err == nil {
				v.check(value.Len() >= minPassphrase, key+".secret", "is shorter than 16 characters", "make one: openssl rand -base64 32")
			}
		default:
			v.check(false, key+".type", "is not a type of sink", "choose file, syslog or webhook")
		}
	}
}
