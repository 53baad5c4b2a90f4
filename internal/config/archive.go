package config

import (
	"net/url"
	"path/filepath"
	"time"
)

func (v *validator) archive(a Audit) {
	v.duration("audit.online", a.Online, time.Hour, 100*365*24*time.Hour)
	v.duration("audit.archive", a.Archive, time.Hour, 100*365*24*time.Hour)
	v.check(a.Archive >= a.Online, "audit.archive", "is shorter than audit.online", "it counts from the event, as audit.online does")
	_, err := a.Hold()
	v.check(err == nil, "audit.hold_until", "is not a day", "write for example 2027-01-31")
	v.check((a.HoldUntil == "") == (a.HoldReason == ""), "audit.hold_reason", "and hold_until go together", "set both, or neither")
	r := a.Repository
	if r.URL == "" {
		v.check(r.AccessKey.IsZero() && r.SecretKey.IsZero(), "audit.repository.url", "is missing", "write for example file:///var/lib/strongroom-archive")
		return
	}
	u, err := url.Parse(r.URL)
	remedy := "write file:///folder or s3://bucket?region=R"
	if err != nil || u.Scheme != "file" && u.Scheme != "s3" {
		v.check(false, "audit.repository.url", "is neither a folder nor a bucket", remedy)
		return
	}
	if u.Scheme == "file" {
		v.check(u.Host == "" && filepath.IsAbs(u.Path), "audit.repository.url", "does not name a folder by its whole path", remedy)
		v.check(r.AccessKey.IsZero() && r.SecretKey.IsZero(), "audit.repository.access_key", "and secret_key are for s3 only", "remove them")
		return
	}
	v.secret("audit.repository.access_key", r.AccessKey)
	v.secret("audit.repository.secret_key", r.SecretKey)
}
