package e2e

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"strongroom/client"
)

const testSource = `
audit:
  sources:
    - name: payments
      service: spiffe://strongroom.localhost/dev
      actions: [payments.transfer.create]
      fields:
        - {name: amount, type: decimal, required: true}
        - {name: iban, type: text, personal: true}
`

// TestOneTrailSaysWhatATransactionWas records events with the SDK, finds them with it and with the command
// line, and erases the customer.
func TestOneTrailSaysWhatATransactionWas(t *testing.T) {
	s := startWith(t, testSource)
	errand := s.service().For("payment")
	customer, err := errand.CreateCustomer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	event := client.Event{ID: "transfer-1-created", Action: "payments.transfer.create", Outcome: client.Granted, Customer: customer,
		OnBehalfOf: &client.OnBehalfOf{Kind: "staff", ID: "anna"}, Transaction: "tr-1", OccurredAt: time.Now(),
		Fields: map[string]any{"amount": "12.30", "iban": "DE02120300000000202051"}}
	other := client.Event{Action: "payments.transfer.create", Outcome: client.Failed, Fields: map[string]any{"colour": "red"}}
	results, err := errand.RecordEvents(t.Context(), event, other)
	if err != nil || results[0].Err != nil || results[0].Repeated || !errors.Is(results[1].Err, client.Slug("invalid-event")) {
		t.Fatalf("%+v, %v", results, err)
	}
	again, err := errand.RecordEvents(t.Context(), event)
	if err != nil || again[0] != (client.EventResult{Event: results[0].Event, Repeated: true}) {
		t.Errorf("again: %+v, %v", again, err)
	}
	q := client.EventQuery{Transaction: "tr-1"}
	var page client.EventPage
	for deadline := time.Now().Add(patience); len(page.Events) == 0 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if page, err = errand.SearchEvents(t.Context(), q, 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	if len(page.Events) != 1 || page.Events[0].ID != results[0].Event || page.Events[0].Fields["amount"] != "12.30" || page.Events[0].Personal != nil {
		t.Fatalf("found %+v", page)
	}
	if page, err = errand.RevealEvents(t.Context(), q, 0, ""); err != nil || page.Events[0].Personal["iban"] != "DE02120300000000202051" {
		t.Errorf("revealed %+v, %v", page, err)
	}
	search := func(args ...string) string {
		t.Helper()
		args = append([]string{"audit", "search", "--data", s.data}, args...)
		out, err := exec.Command(binary, args...).Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return string(out)
	}
	table := search("--transaction", "tr-1", "--since", "1h")
	if !strings.Contains(table, "payments.transfer.create") || !strings.Contains(table, "amount 12.30") || strings.Contains(table, "DE0212") {
		t.Errorf("the table:\n%s", table)
	}
	for l := range strings.Lines(table) {
		if n := len([]rune(strings.TrimRight(l, "\n"))); n > 100 {
			t.Errorf("a line of %d characters: %s", n, l)
		}
	}
	var found client.FoundEvent
	line := search("--customer", customer, "--action", "payments.*", "--json", "--reveal", "--purpose", "complaint")
	if err := json.Unmarshal([]byte(line), &found); err != nil || found.Personal["on_behalf_of"] != "staff:anna" {
		t.Errorf("%v in %s", err, line)
	}
	// All pages, of one event each.
	if n := strings.Count(search("--all", "-n", "1", "--json"), "\n"); n < 10 {
		t.Errorf("the trail has %d events", n)
	}
	if out, err := exec.Command(binary, "vault", "erase", "--data", s.data, customer, "--reason", "asked for it").CombinedOutput(); err != nil {
		t.Fatalf("erase: %v\n%s", err, out)
	}
	line = search("--customer", customer, "--action", "payments.*", "--json", "--reveal", "--purpose", "complaint")
	if strings.Contains(line, "12.30") || strings.Contains(line, "anna") || !strings.Contains(line, "[erased]") {
		t.Errorf("of an erased customer: %s", line)
	}
	if line := search("--customer", customer, "--on-behalf-of", "staff:anna", "--json"); line != "" {
		t.Errorf("an erased customer is found by what was personal: %s", line)
	}
	s.stop()
	// Without a server the command does it by itself.
	if table := search("--transaction", "tr-1"); !strings.Contains(table, "payments.transfer.create") {
		t.Errorf("the table:\n%s", table)
	}
}
