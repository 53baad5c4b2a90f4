package identity

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

func TestPrices(t *testing.T) {
	s := Spend{Prices: map[string]int64{"44": 40_000, "4477": 50_000, "1": 8_000, "881": 900_000}}
	long := string(make([]byte, 161)) // not of the GSM alphabet: three segments
	for _, row := range []struct {
		to, text string
		want     int64
	}{
		{"+447700900123", "x", 50_000}, {"+442079460000", "x", 40_000}, {"+12025550100", "x", 8_000},
		{"+4915112345678", "x", 900_000}, {"+12025550100", long, 24_000},
	} {
		if got := s.price(row.to, row.text); got != row.want {
			t.Errorf("%s costs %d, want %d", row.to, got, row.want)
		}
	}
	s.Prices[""] = 70_000
	if got := s.price("+4915112345678", "x"); got != 70_000 {
		t.Errorf("the rest costs %d", got)
	}
}

// raised are findings that are kept in memory.
type raised map[string]string

func (r raised) Raise(_ context.Context, kind, subject, detail string) error {
	r[kind+" "+subject] = detail
	return nil
}

func (r raised) Clear(_ context.Context, kind, subject string) error {
	delete(r, kind+" "+subject)
	return nil
}

// Whoever rents numbers to be paid for the messages that they get is stopped by the block, the country
// and the price of a day, from however many addresses he asks; and known devices go on.
func TestASVS_2_4_1_MessagesCannotBePumped(t *testing.T) {
	for _, row := range []struct {
		name    string
		limits  func(*Limits)
		sent    int
		reason  string
		finding string
	}{
		{"block", func(l *Limits) { l.BlockDaily = 7 }, 7, "denied messages-block-budget", ""},
		{"country", func(l *Limits) { l.CountryDaily = 9 }, 9, "denied messages-country-budget", ""},
		{"messages", func(l *Limits) { l.Daily = 44 }, 11, "denied messages-budget", "identity.message-budget messages registrations"},
		// A registration costs 0.05, and of 2.00 a quarter is for registrations.
		{"spend", func(l *Limits) {
			l.Spend = Spend{Daily: 2_000_000, Prices: map[string]int64{"44": 50_000, "1": 8_000}}
		}, 10, "denied spend-budget", "identity.message-budget spend registrations"},
	} {
		t.Run(row.name, func(t *testing.T) {
			engines := []db.Engine{db.SQLite}
			if row.name == "spend" {
				engines = append(engines, db.PostgreSQL) // one budget is counted like another
			}
			for _, engine := range engines {
				d := dbtest.Open(t, engine)
				found := raised{}
				h := newHouse(t, d, func(o *Options) { o.Findings = found })
				h.register(number(999), "owner")
				h.clk.Advance(48 * time.Hour)
				row.limits(&h.Limits)
				sent, refused := 0, 0
				for n := range row.sent + 5 {
					by := from(fmt.Sprint("k", n))
					by.Address = netip.AddrFrom4([4]byte{10, byte(n), 0, 1})
					switch _, err := h.StartRegistration(t.Context(), by, number(n)); {
					case err == nil:
						sent++
					case problem.Is(err, "sms-unavailable"):
						refused++
					default:
						t.Fatal(err)
					}
				}
				if sent != row.sent || refused != 5 {
					t.Errorf("%d sent and %d refused, want %d and 5", sent, refused, row.sent)
				}
				if !slices.Contains(h.events(ActionRegistrationStart), row.reason) {
					t.Errorf("events %v", h.events(ActionRegistrationStart))
				}
				if row.finding != "" && found[row.finding] == "" || row.finding == "" && len(found) > 0 {
					t.Errorf("findings %v", found)
				}
				h.mustLogin(number(999), "owner")
				h.clk.Advance(48 * time.Hour)
				if err := h.cleanup(t.Context()); err != nil {
					t.Fatal(err)
				}
				if len(found) > 0 {
					t.Errorf("findings stay: %v", found)
				}
				if _, err := h.StartRegistration(t.Context(), from("k"), number(1)); err != nil {
					t.Errorf("the next day: %v", err)
				}
			}
		})
	}
}

// A budget too small to be spread is still met exactly, and a large one never exceeded.
func TestBudgetRows(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), nil)
	for _, b := range []budget{{"k", "small", 7, 2, 3}, {"k", "large", 500, 1, 1}, {"k", "dear", 1000, 300, 300}} {
		n := 0
		for range 600 {
			ok := false
			if err := h.DB.Update(t.Context(), func(tx *db.Tx) error {
				q, _, err := h.row(t.Context(), tx, b, b.n, h.clk.Now())
				if err != nil {
					return err
				}
				ok = q.add(h.clk.Now(), q.rate, b.n)
				return putCounter(t.Context(), tx, q.keys, q.counter, q.rate.Per)
			}); err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			n++
		}
		if want := int(b.limit / b.n); n != want {
			t.Errorf("%s: %d passed, want %d", b.subject, n, want)
		}
	}
}

// The formats that telephones read by themselves: the origin-bound line has to be the last (W3C), and
// so has the app's hash (SMS Retriever), in at most 140 bytes.
func TestMessageForTheAppsEyes(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), func(o *Options) { o.Brand, o.AppHash = "Example Bank", "FA+9qCX9VSu" })
	got := h.codeText("123456")
	want := "Your Example Bank code is 123456. It is good for 5 minutes. Never tell it to anyone.\n\nFA+9qCX9VSu"
	if got != want || len(got) > 140 {
		t.Errorf("%q", got)
	}
	o := h.Options
	for _, bad := range []func(*Options){func(o *Options) { o.WebOTPHost = "bank.example" }, func(o *Options) { o.AppHash = "short" }} {
		o := o
		bad(&o)
		if _, err := New(o); err == nil {
			t.Error("accepted")
		}
	}
}
