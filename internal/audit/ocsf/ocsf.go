// Package ocsf shows events in the form of the Open Cybersecurity Schema Framework, version 1.3.0, which
// security tools take in without a parser of their own. It is pure.
//
// Each action has its class and activity in the catalogue; one that is not there is an API Activity, so
// that an event is never lost for want of an entry. What an event says and the schema has no place for
// stands under "unmapped".
package ocsf

import (
	"bytes"
	"cmp"
	"encoding/json"
	"strconv"
	"strings"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/audit/catalogue"
)

// Version is the version of the schema that the events follow, as metadata.version says.
const Version = "1.3.0"

// Product is who reports, in metadata.product.
type Product struct {
	Version      string // of the program; may be empty
	Installation string // the installation's id; may be empty
}

// The numbers of the schema that do not depend on the class.
const (
	severityInformational = 1
	severityMedium        = 3
	severityCritical      = 5
	statusSuccess         = 1
	statusFailure         = 2
	statusOther           = 99
)

type event struct {
	Activity     int            `json:"activity_id"`
	ActivityName string         `json:"activity_name"`
	Category     int            `json:"category_uid"`
	CategoryName string         `json:"category_name"`
	Class        int            `json:"class_uid"`
	ClassName    string         `json:"class_name"`
	Type         int            `json:"type_uid"`
	Time         int64          `json:"time"` // Unix milliseconds
	Severity     int            `json:"severity_id"`
	Status       int            `json:"status_id"`
	StatusName   string         `json:"status"`
	StatusDetail string         `json:"status_detail,omitempty"`
	Message      string         `json:"message"`
	Metadata     metadata       `json:"metadata"`
	Actor        *who           `json:"actor,omitempty"`
	Source       *endpoint      `json:"src_endpoint,omitempty"`
	User         *user          `json:"user,omitempty"`
	Service      *entity        `json:"service,omitempty"`
	Session      *session       `json:"session,omitempty"`
	Entity       *entity        `json:"entity,omitempty"`
	API          *api           `json:"api,omitempty"`
	Resources    []entity       `json:"resources,omitempty"`
	Database     *database      `json:"database,omitempty"`
	Unmapped     map[string]any `json:"unmapped,omitempty"`
}

type metadata struct {
	Version     string  `json:"version"`
	Product     product `json:"product"`
	UID         string  `json:"uid"`
	EventCode   string  `json:"event_code"`
	LogName     string  `json:"log_name"`
	Sequence    *int64  `json:"sequence,omitempty"` // the place in the log, from 0 without gaps
	Correlation string  `json:"correlation_uid,omitempty"`
}

type product struct {
	Name    string `json:"name"`
	Vendor  string `json:"vendor_name"`
	Version string `json:"version,omitempty"`
	UID     string `json:"uid,omitempty"`
}

type who struct {
	User    user     `json:"user"`
	Session *session `json:"session,omitempty"`
}

type user struct {
	UID    string `json:"uid,omitempty"`
	Name   string `json:"name,omitempty"`
	Type   string `json:"type"`
	TypeID int    `json:"type_id"`
}

type endpoint struct {
	UID  string `json:"uid,omitempty"`
	Name string `json:"name,omitempty"`
	IP   string `json:"ip,omitempty"`
}

type session struct {
	UID string `json:"uid"`
}

type entity struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"`
	UID  string `json:"uid,omitempty"`
}

type api struct {
	Operation string   `json:"operation"`
	Service   entity   `json:"service"`
	Request   *session `json:"request,omitempty"`
}

type database struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	TypeID int    `json:"type_id"`
}

type class struct {
	name, category string
	activities     map[int]string
}

var crud = map[int]string{1: "Create", 2: "Read", 3: "Update", 4: "Delete"}

// classes are the classes of the catalogue, with the names of their activities in the schema.
var classes = map[int]class{
	catalogue.AccountChange: {"Account Change", "Identity & Access Management", map[int]string{
		1: "Create", 2: "Enable", 3: "Password Change", 4: "Password Reset", 5: "Disable", 6: "Delete",
		7: "Attach Policy", 8: "Detach Policy", 9: "Lock", 10: "MFA Factor Enable", 11: "MFA Factor Disable"}},
	catalogue.Authentication: {"Authentication", "Identity & Access Management", map[int]string{
		1: "Logon", 2: "Logoff", 3: "Authentication Ticket", 4: "Service Ticket Request", 5: "Service Ticket Renew"}},
	catalogue.EntityChange: {"Entity Management", "Identity & Access Management", crud},
	catalogue.APIActivity:  {"API Activity", "Application Activity", crud},
	catalogue.Datastore: {"Datastore Activity", "Application Activity", map[int]string{
		1: "Read", 2: "Update", 3: "Connect", 4: "Query", 5: "Write", 6: "Create", 7: "Delete", 8: "List", 9: "Encrypt", 10: "Decrypt"}},
}

// Marshal returns e as one JSON object without a line break. What is personal in it is there when e has
// it: the address as the source's, the rest under "unmapped".
func Marshal(e audit.Entry, p Product) ([]byte, error) {
	found, ok := catalogue.Find(e.Action)
	if !ok {
		found = catalogue.Action{Class: catalogue.APIActivity, Activity: catalogue.Other}
	}
	room, rest, _ := strings.Cut(e.Action, ".")
	c := classes[found.Class]
	out := event{
		Activity: found.Activity, ActivityName: cmp.Or(c.activities[found.Activity], rest, "Other"),
		Class: found.Class, ClassName: c.name, Category: found.Class / 1000, CategoryName: c.category,
		Type: found.Class*100 + found.Activity, Time: e.Time.UnixMilli(), StatusDetail: e.Reason,
		Message: e.Action + " " + string(e.Outcome),
		Metadata: metadata{Version: Version, UID: e.ID, EventCode: e.Action, LogName: "audit",
			Correlation: cmp.Or(e.Transaction, e.Request),
			Product:     product{Name: "Strongroom", Vendor: "Strongroom", Version: p.Version, UID: p.Installation}},
		Actor:    &who{User: userOf(e.Actor.Kind, e.Actor.ID)},
		Unmapped: map[string]any{"outcome": string(e.Outcome), "time_us": e.Time.UnixMicro()},
	}
	if e.Index >= 0 {
		out.Metadata.Sequence = &e.Index
	}
	if e.Actor.Session != "" {
		out.Actor.Session = &session{e.Actor.Session}
	}
	switch e.Outcome {
	case audit.Granted:
		out.Severity, out.Status, out.StatusName = severityInformational, statusSuccess, "Success"
	case audit.Denied, audit.Failed:
		out.Severity, out.Status, out.StatusName = severityMedium, statusFailure, "Failure"
	default: // audit.Unverified: somebody changed the database
		out.Severity, out.Status, out.StatusName = severityCritical, statusOther, string(e.Outcome)
	}
	// The device is where it came from; of who has none, it is their name or kind.
	out.Source = &endpoint{UID: e.Actor.Device, IP: e.Personal["address"]}
	if out.Source.UID == "" {
		out.Source.Name = cmp.Or(e.Actor.ID, string(e.Actor.Kind), "unknown")
	}
	if e.Personal["address"] == audit.Erased || e.Personal["address"] == audit.Unreadable {
		out.Source.IP = "" // no address
		out.Unmapped["personal"] = e.Personal["address"]
	} else if len(e.Personal) > 0 {
		rest := make(map[string]string, len(e.Personal))
		for name, value := range e.Personal {
			if name != "address" {
				rest[name] = value
			}
		}
		if len(rest) > 0 {
			out.Unmapped["personal"] = rest
		}
	}
	for name, value := range map[string]string{"resource": e.Resource, "customer": string(e.Customer), "transaction": e.Transaction, "request": e.Request} {
		if value != "" {
			out.Unmapped[name] = value
		}
	}

	thing := entity{Name: cmp.Or(e.Resource, room, "unknown"), Type: room, UID: string(e.Customer)}
	switch found.Class {
	case catalogue.AccountChange, catalogue.Authentication:
		subject := userOf(e.Actor.Kind, e.Actor.ID)
		if e.Customer != "" {
			subject = userOf(actor.Customer, string(e.Customer))
		}
		out.User = &subject
		if found.Class == catalogue.Authentication {
			out.Service = &entity{Name: "Strongroom"}
			if e.Actor.Session != "" {
				out.Session = &session{e.Actor.Session}
			}
		}
	case catalogue.EntityChange:
		out.Entity = &thing
	case catalogue.APIActivity:
		out.API = &api{Operation: cmp.Or(e.Action, "unknown"), Service: entity{Name: "Strongroom"}}
		if e.Request != "" {
			out.API.Request = &session{e.Request}
		}
		out.Resources = []entity{thing}
	case catalogue.Datastore:
		out.Database = &database{Name: "vault", Type: "Relational", TypeID: 1}
	}
	var b bytes.Buffer
	line := json.NewEncoder(&b)
	line.SetEscapeHTML(false)
	if err := line.Encode(&out); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func userOf(kind actor.Kind, id string) user {
	u := user{UID: id, Type: "Other", TypeID: 99}
	switch kind {
	case actor.Customer:
		u.Type, u.TypeID = "User", 1
	case actor.Staff:
		u.Type, u.TypeID = "Admin", 2
	case actor.System:
		u.Type, u.TypeID = "System", 3
	case actor.Anonymous:
		u.Type, u.TypeID = "Unknown", 0
	case actor.Service:
		u.Type = "Service"
	}
	if id == "" {
		u.Name = cmp.Or(string(kind), "unknown")
	}
	return u
}

// CSVHeader are the names of the columns of CSV.
var CSVHeader = []string{"id", "index", "time", "actor_kind", "actor_id", "device", "session", "action", "resource",
	"customer", "outcome", "reason", "transaction", "request", "personal"}

// CSV returns e as a row (RFC 4180, for encoding/csv) under CSVHeader. A text that a spreadsheet would
// take for a formula has an apostrophe before it. What is personal is one JSON object.
func CSV(e audit.Entry) ([]string, error) {
	personal := ""
	if len(e.Personal) > 0 {
		b, err := json.Marshal(e.Personal)
		if err != nil {
			return nil, err
		}
		personal = string(b)
	}
	row := []string{e.ID, strconv.FormatInt(e.Index, 10), e.Time.UTC().Format("2006-01-02T15:04:05.000000Z"),
		string(e.Actor.Kind), e.Actor.ID, e.Actor.Device, e.Actor.Session, e.Action, e.Resource, string(e.Customer),
		string(e.Outcome), e.Reason, e.Transaction, e.Request, personal}
	for i, text := range row {
		if i != 1 && text != "" && strings.ContainsRune("=+-@", rune(text[0])) {
			row[i] = "'" + text
		}
	}
	return row, nil
}
