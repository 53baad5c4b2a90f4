package risk

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/assurance"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
)

var operator = actor.OfSystem("cli:ada")

// office is a register with everything around it. The claims stand as the test says; those that it says nothing of are
// green.
type office struct {
	*Register
	trail  *audit.Trail
	clock  *clock.Manual
	states map[string]assurance.State
	open   []string // findings
}

func (o *office) Raise(_ context.Context, kind, subject, _ string) error {
	if f := kind + " " + subject; !slices.Contains(o.open, f) {
		o.open = append(o.open, f)
	}
	return nil
}

func (o *office) Clear(_ context.Context, kind, subject string) error {
	o.open = slices.DeleteFunc(o.open, func(f string) bool { return f == kind+" "+subject })
	return nil
}

func (o *office) Standing(context.Context, *db.Tx) (all []assurance.Status, err error) {
	claims, err := assurance.Catalogue()
	for _, c := range claims {
		s := assurance.Status{Claim: c, State: assurance.Green}
		if state, ok := o.states[c.ID]; ok {
			s.State, s.Why = state, "the test says so"
		}
		all = append(all, s)
	}
	return all, err
}

func newOffice(t *testing.T, d *db.DB) *office {
	t.Helper()
	o := &office{clock: clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)), states: map[string]assurance.State{}}
	o.trail = audit.New(d, keyringtest.Open(t, d), audit.Options{Clock: o.clock})
	var err error
	if o.Register, err = New(Options{DB: d, Trail: o.trail, Claims: o, Findings: o, Clock: o.clock}); err != nil {
		t.Fatal(err)
	}
	if err := o.Settle(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *office) risk(t *testing.T, id string) Assessed {
	t.Helper()
	list, err := o.Risks(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(a Assessed) bool { return a.ID == id })
	if i < 0 {
		t.Fatalf("there is no risk %s", id)
	}
	return list[i]
}

// expectEvents compares what the trail has: action, resource, outcome and reason.
func (o *office) expectEvents(t *testing.T, want ...string) {
	t.Helper()
	entries, err := o.trail.Tail(t.Context(), operator, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, strings.TrimSpace(e.Action+" "+e.Resource+" "+string(e.Outcome)+" "+e.Reason))
	}
	for _, w := range want {
		if !slices.Contains(all, w) {
			t.Errorf("the trail lacks %q:\n%s", w, strings.Join(all, "\n"))
		}
	}
}

func slug(err error) string {
	if p := problem.Of(err); p != nil {
		return p.Slug()
	}
	return ""
}

// The product's own lists are whole, and claims refer to controls that there are.
func TestTheLists(t *testing.T) {
	r, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for theme, n := range map[int]int{5: 37, 6: 8, 7: 14, 8: 34} {
		for i := range n {
			want = append(want, fmt.Sprintf("A.%d.%d", theme, i+1))
		}
	}
	var got []string
	for _, c := range r.controls {
		got = append(got, c.ID)
		if !line(c.Asks, 120) || !line(c.Why, 120) {
			t.Errorf("%s is not whole: %+v", c.ID, c)
		}
	}
	slices.Sort(want)
	sorted := slices.Sorted(slices.Values(got))
	if len(got) != 93 || !slices.Equal(sorted, want) {
		t.Errorf("%d controls: %v", len(got), got)
	}
	claims, err := assurance.Catalogue()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range claims {
		for _, control := range c.Controls {
			for _, reference := range control.References {
				if id, ok := strings.CutPrefix(reference, "iso:"); ok && !slices.Contains(got, id) {
					t.Errorf("%s refers to %s, which Annex A does not have", c.ID, reference)
				}
			}
		}
	}
	if len(r.starter) != 15 {
		t.Errorf("%d starter risks", len(r.starter))
	}
}

// A risk is worth between its treated and its untreated value, the first when all claims hold and the second when one
// fails; and no claim that gets worse makes a risk smaller.
func TestResidual(t *testing.T) {
	level := rapid.Custom(func(t *rapid.T) Level {
		return Level{rapid.IntRange(1, 5).Draw(t, "likelihood"), rapid.IntRange(1, 5).Draw(t, "impact")}
	})
	states := []assurance.State{assurance.Green, assurance.Amber, assurance.Red}
	rapid.Check(t, func(t *rapid.T) {
		k := Risk{Before: level.Draw(t, "before"), After: level.Draw(t, "after"), Claims: []string{"A", "B", "C"}[:rapid.IntRange(0, 3).Draw(t, "claims")]}
		if k.After.Value() > k.Before.Value() {
			k.Before, k.After = k.After, k.Before
		}
		claims, worst := map[string]assurance.Status{}, 0
		for _, id := range k.Claims {
			rank := rapid.IntRange(0, 2).Draw(t, id)
			claims[id], worst = assurance.Status{State: states[rank]}, max(worst, rank)
		}
		a := assess(k, claims, time.Time{})
		if a.Residual < a.Target || a.Residual > a.Inherent || worst == 0 && a.Residual != a.Target || worst == 2 && a.Residual != a.Inherent ||
			worst == 1 && 2*a.Residual < a.Inherent+a.Target || a.Band != Band(a.Residual) {
			t.Fatalf("%+v is worth %d", k, a.Residual)
		}
		if len(k.Claims) > 0 {
			claims[k.Claims[0]] = assurance.Status{State: assurance.Red}
			if assess(k, claims, time.Time{}).Residual < a.Residual {
				t.Fatalf("%+v: smaller when a claim fails", k)
			}
			delete(claims, k.Claims[0])
			if assess(k, claims, time.Time{}).Residual != a.Inherent {
				t.Fatalf("%+v: a claim that is not there bears", k)
			}
		}
	})
}

func TestTheRegister(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o, ctx := newOffice(t, d), t.Context()
		if err := o.Settle(ctx, operator); err != nil {
			t.Fatal(err)
		}
		list, err := o.Risks(ctx, operator)
		if err != nil || len(list) != 15 {
			t.Fatalf("%d risks: %v", len(list), err)
		}
		if !slices.IsSortedFunc(list, func(a, b Assessed) int { return b.Residual - a.Residual }) {
			t.Error("the worst do not come first")
		}
		// What a treatment leans on raises the risk while it does not bear, and lets it fall again.
		for state, want := range map[assurance.State]int{assurance.Red: 15, assurance.Grey: 15, assurance.Amber: 9, assurance.Green: 3} {
			o.states["ENC-1"] = state
			if a := o.risk(t, "R-01"); a.Residual != want || (len(a.Raised) > 0) != (state != assurance.Green) || a.Inherent != 15 || a.Target != 3 {
				t.Errorf("ENC-1 is %s, and R-01 worth %d because of %+v", state, a.Residual, a.Raised)
			}
		}
		text, five, nine, three := "Payment files", 5, 9, 3
		whole := Change{Asset: &text, Threat: &text, LikelihoodBefore: &three, ImpactBefore: &five, LikelihoodAfter: &three, ImpactAfter: &three,
			Owner: &text, Treatment: &Treatments[0], Measures: &text, Claims: &[]string{"AUD-1"}}
		if _, err := o.Put(ctx, operator, "PAY-1", whole); err != nil {
			t.Fatal(err)
		}
		if a := o.risk(t, "PAY-1"); a.Residual != 9 || !slices.Equal(a.Claims, []string{"AUD-1"}) || a.Asset != text || !a.ReviewAt.After(o.clock.Now()) {
			t.Errorf("%+v", a)
		}
		bad, empty, long, yesterday := "two\nlines", "", strings.Repeat("x", 101), o.clock.Now().Add(-24*time.Hour)
		late := o.clock.Now().Add(500 * 24 * time.Hour)
		for name, c := range map[string]Change{
			"nine": {ImpactAfter: &nine}, "worse after": {LikelihoodAfter: &five, ImpactAfter: &five}, "two lines": {Threat: &bad}, "no owner": {Owner: &empty},
			"long": {Asset: &long}, "treatment": {Treatment: &text}, "claim": {Claims: &[]string{"NOT-1"}}, "claim twice": {Claims: &[]string{"AUD-1", "AUD-1"}},
			"past": {Review: &yesterday}, "far": {Review: &late},
		} {
			if _, err := o.Put(ctx, operator, "PAY-1", c); slug(err) != "risk-invalid" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := o.Put(ctx, operator, "PAY-2", Change{Asset: &text}); slug(err) != "risk-invalid" {
			t.Errorf("half a risk: %v", err)
		}
		if _, err := o.Put(ctx, operator, "pay'--", whole); slug(err) != "risk-invalid" {
			t.Errorf("a name that is none: %v", err)
		}
		if _, err := o.Review(ctx, operator, "NOT-1", time.Time{}); slug(err) != "risk-not-found" {
			t.Errorf("a review of nothing: %v", err)
		}
		stranger := actor.Actor{Kind: actor.Customer, ID: "cus_x"}
		_, read := o.Risks(ctx, stranger)
		_, put := o.Put(ctx, stranger, "PAY-1", whole)
		_, reviewed := o.Review(ctx, stranger, "PAY-1", time.Time{})
		_, stated := o.Statement(ctx, stranger)
		_, listed := o.Actions(ctx, stranger, false)
		_, added := o.AddAction(ctx, stranger, Action{})
		_, ended := o.EndAction(ctx, stranger, "act_x", Done, "")
		for i, err := range []error{read, put, reviewed, stated, listed, added, ended, o.Decide(ctx, stranger, "A.5.1", false, "no")} {
			if slug(err) != "risks-forbidden" {
				t.Errorf("a customer, %d: %v", i, err)
			}
		}
		o.expectEvents(t, "assurance.risks.seed risks 15 granted", "assurance.risks.read risks granted", "assurance.risk.put risk PAY-1 granted",
			"assurance.risk.put risk PAY-1 denied risk-invalid", "assurance.risk.put risk denied risk-invalid", "assurance.risk.review risk NOT-1 denied risk-not-found",
			"assurance.risks.read risks denied risks-forbidden")
	})
}

func TestOverdue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o, ctx := newOffice(t, d), t.Context()
		expect := func(when string, outcome check.Outcome, findings ...string) {
			t.Helper()
			if err := o.tend(ctx); err != nil {
				t.Fatal(err)
			}
			if seen := o.CheckCurrent(ctx); seen.Outcome != outcome {
				t.Errorf("%s: the check %s: %s", when, seen.Outcome, seen.Detail)
			}
			if got := slices.Sorted(slices.Values(o.open)); !slices.Equal(got, findings) {
				t.Errorf("%s: findings %q", when, got)
			}
		}
		expect("at first", check.Holds)
		risks, err := o.Risks(ctx, operator)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range risks {
			if k.ID != "R-02" {
				if _, err := o.Review(ctx, operator, k.ID, o.clock.Now().Add(399*24*time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
		}
		a, err := o.AddAction(ctx, operator, Action{Action: "Try a restore.", Owner: "Head of operations", Risk: "R-10", Due: o.clock.Now().Add(48 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		expect("with an action", check.Holds)
		o.clock.Advance(72 * time.Hour)
		expect("when it is overdue", check.Fails, FindingImprovement+" "+a.ID)
		o.clock.Advance(90 * 24 * time.Hour)
		expect("when a review is overdue too", check.Fails, FindingImprovement+" "+a.ID, FindingReview+" R-02")
		if !o.risk(t, "R-02").Overdue || o.risk(t, "R-01").Overdue {
			t.Error("the register does not say which is overdue")
		}
		if k, err := o.Review(ctx, operator, "R-02", time.Time{}); err != nil || k.ReviewedBy != "cli:ada" || !k.ReviewAt.After(o.clock.Now().Add(190*24*time.Hour)) {
			t.Errorf("%+v %v", k, err)
		}
		if _, err := o.EndAction(ctx, operator, a.ID, Dropped, ""); slug(err) != "risk-invalid" {
			t.Errorf("dropped without a word: %v", err)
		}
		if _, err := o.EndAction(ctx, operator, a.ID, "ended", ""); slug(err) != "risk-invalid" {
			t.Errorf("ended in no known way: %v", err)
		}
		if _, err := o.EndAction(ctx, operator, a.ID, Done, "it took an hour"); err != nil || len(o.open) > 0 { // at once, not when the job runs
			t.Errorf("%v, findings %q", err, o.open)
		}
		if _, err := o.EndAction(ctx, operator, a.ID, Done, ""); slug(err) != "improvement-ended" {
			t.Errorf("done twice: %v", err)
		}
		if _, err := o.EndAction(ctx, operator, "act_x", Done, ""); slug(err) != "improvement-not-found" {
			t.Errorf("nothing was done: %v", err)
		}
		expect("when all is done", check.Holds)
		for name, bad := range map[string]Action{
			"no text": {Owner: "x", Due: o.clock.Now().Add(48 * time.Hour)}, "no owner": {Action: "x", Due: o.clock.Now().Add(48 * time.Hour)}, "no day": {Action: "x", Owner: "x"},
		} {
			if _, err := o.AddAction(ctx, operator, bad); slug(err) != "risk-invalid" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := o.AddAction(ctx, operator, Action{Action: "x", Owner: "x", Risk: "NOT-1", Due: o.clock.Now().Add(48 * time.Hour)}); slug(err) != "risk-not-found" {
			t.Errorf("about no risk: %v", err)
		}
		open, err := o.Actions(ctx, operator, false)
		all, also := o.Actions(ctx, operator, true)
		if err != nil || also != nil || len(open) != 0 || len(all) != 1 || all[0].State != Done || all[0].Remark != "it took an hour" {
			t.Errorf("%+v %v, %+v %v", open, err, all, also)
		}
		o.expectEvents(t, "assurance.improvement.add improvement "+a.ID+" granted", "assurance.improvement.end improvement "+a.ID+" done granted",
			"assurance.risk.review risk R-02 granted", "assurance.improvement.end improvement denied improvement-not-found")
	})
}

func TestTheStatement(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		o, ctx := newOffice(t, d), t.Context()
		of := func(control string) Applied {
			t.Helper()
			list, err := o.Statement(ctx, operator)
			if err != nil || len(list) != 93 {
				t.Fatalf("%d lines: %v", len(list), err)
			}
			return list[slices.IndexFunc(list, func(a Applied) bool { return a.ID == control })]
		}
		a := of("A.8.31")
		if a.State != "green" || !a.Applies || a.Justification == "" || !slices.ContainsFunc(a.Claims, func(c Covering) bool {
			return c.Claim == "ENV-1" && slices.Contains(c.Checks, "environment-apart")
		}) {
			t.Errorf("%+v", a)
		}
		// One claim of several that fails makes the control fail.
		o.states["NET-3"] = assurance.Red
		if a := of("A.8.20"); a.State != "red" || len(a.Claims) < 4 {
			t.Errorf("%+v", a)
		}
		o.states["NET-3"] = assurance.Amber
		if a := of("A.8.20"); a.State != "amber" {
			t.Errorf("%+v", a)
		}
		if a := of("A.7.4"); a.State != NotCovered || len(a.Claims) != 0 || !a.Applies {
			t.Errorf("what nothing covers: %+v", a)
		}
		if err := o.Decide(ctx, operator, "A.7.4", false, "There are no premises."); err != nil {
			t.Fatal(err)
		}
		if a := of("A.7.4"); a.Applies || a.State != NotApplicable || a.Justification != "There are no premises." || a.DecidedBy != "cli:ada" {
			t.Errorf("%+v", a)
		}
		if err := o.Decide(ctx, operator, "A.7.4", true, "There are premises now."); err != nil || !of("A.7.4").Applies {
			t.Errorf("decided again: %v", err)
		}
		if err := o.Decide(ctx, operator, "A.9.1", false, "no"); slug(err) != "control-not-found" {
			t.Errorf("a control that is not there: %v", err)
		}
		if err := o.Decide(ctx, operator, "A.7.4", false, " "); slug(err) != "risk-invalid" {
			t.Errorf("without a word: %v", err)
		}
		o.expectEvents(t, "assurance.statement.decide control A.7.4 granted", "assurance.statement.decide control denied control-not-found", "assurance.statement.read statement of applicability granted")
	})
}
