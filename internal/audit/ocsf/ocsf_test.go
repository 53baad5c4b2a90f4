package ocsf_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/audit/catalogue"
	"strongroom/internal/audit/ocsf"
	"strongroom/internal/customer"
)

func entry(action string, kind actor.Kind, outcome audit.Outcome) audit.Entry {
	e := audit.Entry{
		ID: "evt_1", Index: 7, Time: time.UnixMicro(1_700_000_000_123_456).UTC(), Action: action, Resource: "record profile/main v3",
		Customer: "cus_1", Outcome: outcome, Reason: "wrong-code", Transaction: "tx1", Request: "req_1",
	}
	e.Actor.Kind = kind
	if kind != actor.Anonymous {
		e.Actor.ID = "someone"
	}
	if kind == actor.Customer {
		e.Actor.Device, e.Actor.Session = "dev_1", "ses_1"
	}
	return e
}

var (
	kinds    = []actor.Kind{actor.Anonymous, actor.Customer, actor.Service, actor.Staff, actor.System, ""}
	outcomes = []audit.Outcome{audit.Granted, audit.Denied, audit.Failed, audit.Unverified}
)

// Every action that there is, by every actor and however it ended, is an event that the schema allows,
// and so is one that nobody knows.
func TestEveryActionIsValid(t *testing.T) {
	names := []string{"some.new.action", "odd", ""}
	for _, a := range catalogue.All {
		names = append(names, a.Name)
	}
	for _, name := range names {
		for _, kind := range kinds {
			for _, outcome := range outcomes {
				b, err := ocsf.Marshal(entry(name, kind, outcome), ocsf.Product{Version: "1", Installation: "ins_1"})
				if err != nil {
					t.Fatal(err)
				}
				if err := ocsf.Validate(b); err != nil {
					t.Errorf("%s by %q: %v\n%s", name, kind, err, b)
				}
			}
		}
	}
}

// Nothing that an event holds makes an invalid one, or one of more than a line.
func TestAnyEntryIsValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		e := entry(text.Draw(t, "action"), actor.Kind(text.Draw(t, "kind")), audit.Outcome(text.Draw(t, "outcome")))
		e.Actor.ID, e.Actor.Device, e.Resource = text.Draw(t, "id"), text.Draw(t, "device"), text.Draw(t, "resource")
		e.Customer, e.Index = customer.ID(text.Draw(t, "customer")), int64(rapid.IntRange(-1, 1000).Draw(t, "index"))
		e.Personal = rapid.MapOf(text, text).Draw(t, "personal")
		b, err := ocsf.Marshal(e, ocsf.Product{})
		if err != nil {
			t.Fatal(err)
		}
		if err := ocsf.Validate(b); err != nil || strings.ContainsAny(string(b), "\r\n") {
			t.Fatalf("%v\n%s", err, b)
		}
	})
}

// The event says what the entry says, in the places where tools look for it.
func TestMapping(t *testing.T) {
	e := entry("vault.record.read", actor.Service, audit.Denied)
	e.Personal = map[string]string{"address": "203.0.113.7", "revealed": "iban"}
	b, err := ocsf.Marshal(e, ocsf.Product{Version: "v9", Installation: "ins_1"})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"activity_id":1,"activity_name":"Read","category_uid":6,"category_name":"Application Activity","class_uid":6005,` +
		`"class_name":"Datastore Activity","type_uid":600501,"time":1700000000123,"severity_id":3,"status_id":2,"status":"Failure",` +
		`"status_detail":"wrong-code","message":"vault.record.read denied","metadata":{"version":"1.3.0","product":{"name":"Strongroom",` +
		`"vendor_name":"Strongroom","version":"v9","uid":"ins_1"},"uid":"evt_1","event_code":"vault.record.read","log_name":"audit",` +
		`"sequence":7,"correlation_uid":"tx1"},"actor":{"user":{"uid":"someone","type":"Service","type_id":99}},` +
		`"src_endpoint":{"name":"someone","ip":"203.0.113.7"},"database":{"name":"vault","type":"Relational","type_id":1},` +
		`"unmapped":{"customer":"cus_1","outcome":"denied","personal":{"revealed":"iban"},"request":"req_1","resource":"record profile/main v3",` +
		`"time_us":1700000000123456,"transaction":"tx1"}}`
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
	e.Personal = map[string]string{"address": audit.Erased}
	if b, _ = ocsf.Marshal(e, ocsf.Product{}); strings.Contains(string(b), `"ip"`) || !strings.Contains(string(b), audit.Erased) {
		t.Errorf("an erased address: %s", b)
	}
}

// Validate finds what is wrong, so that the tests above can fail.
func TestValidateRefuses(t *testing.T) {
	good, err := ocsf.Marshal(entry("identity.login.complete", actor.Customer, audit.Granted), ocsf.Product{})
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]func(e map[string]any){
		"no metadata":   func(e map[string]any) { delete(e, "metadata") },
		"other version": func(e map[string]any) { e["metadata"].(map[string]any)["version"] = "0.1.0" },
		"no vendor": func(e map[string]any) {
			delete(e["metadata"].(map[string]any)["product"].(map[string]any), "vendor_name")
		},
		"unknown class":    func(e map[string]any) { e["class_uid"] = 9999 },
		"unknown activity": func(e map[string]any) { e["activity_id"] = 42 },
		"wrong type":       func(e map[string]any) { e["type_uid"] = 1 },
		"no user":          func(e map[string]any) { delete(e, "user") },
		"empty user":       func(e map[string]any) { e["user"] = map[string]any{"type_id": 1} },
		"no service":       func(e map[string]any) { delete(e, "service") },
		"time as text":     func(e map[string]any) { e["time"] = "now" },
		"severity":         func(e map[string]any) { e["severity_id"] = 42 },
		"nameless other":   func(e map[string]any) { e["activity_id"], e["type_uid"], e["activity_name"] = 99, 300299, "" },
	}
	for name, change := range rows {
		var e map[string]any
		if err := json.Unmarshal(good, &e); err != nil {
			t.Fatal(err)
		}
		change(e)
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if ocsf.Validate(b) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if ocsf.Validate([]byte("no JSON")) == nil {
		t.Error("accepted what is no JSON")
	}
}

func TestCSV(t *testing.T) {
	e := entry("vault.record.read", actor.Service, audit.Granted)
	e.Actor.ID, e.Personal = `=cmd|'/c calc'!A1`, map[string]string{"address": "203.0.113.7"}
	row, err := ocsf.CSV(e)
	if err != nil || len(row) != len(ocsf.CSVHeader) {
		t.Fatal(row, err)
	}
	if row[4] != `'=cmd|'/c calc'!A1` || row[2] != "2023-11-14T22:13:20.123456Z" || row[14] != `{"address":"203.0.113.7"}` {
		t.Errorf("%q", row)
	}
}
