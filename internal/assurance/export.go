package assurance

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/assurance/bundle"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ActionExport is recorded before the first byte of a bundle leaves; "evidence from MOMENT to MOMENT".
const ActionExport = "assurance.evidence.export"

// Keys signs evidence and knows the public keys of it and of the log. The keyring is behind it.
type Keys interface {
	EvidenceSigner() note.Signer
	EvidenceKeys(ctx context.Context) ([]string, error)
	CheckpointKeys(ctx context.Context) ([]string, error)
}

// Period is a stretch of time.
type Period struct {
	From time.Time `json:"from,omitzero"` // zero: from the beginning
	To   time.Time `json:"to,omitzero"`   // the first moment that is left out; zero: now
}

// exportPage is how many rows of a bundle are held at once.
const exportPage = 256

// Export writes the bundle of a period for an auditor; see package bundle. What was known of each check and claim
// when the period began is in it too. Nothing but a page of it is held in memory. The export is an event, committed
// before the first byte is written; when it is cut short, another one says so. It fails with the problem
// "evidence-altered" when what is stored is not what the trail says.
func (a *Assurance) Export(ctx context.Context, by actor.Actor, p Period, out io.Writer) error {
	now := a.o.Clock.Now()
	if p.To.IsZero() {
		p.To = now
	}
	p.From, p.To = p.From.UTC(), p.To.UTC().Truncate(time.Microsecond)
	from := "the beginning"
	if !p.From.IsZero() {
		from = p.From.Format(time.RFC3339)
	}
	e := audit.Event{Action: ActionExport, Resource: "evidence from " + from + " to " + p.To.Format(time.RFC3339)}
	if refusal := a.mayExport(by, p, now); refusal != nil {
		return a.o.Trail.Deny(ctx, by, audit.Event{Action: ActionExport, Resource: "evidence"}, refusal)
	}
	x := &export{Assurance: a, Period: p, last: -1}
	err := a.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) error { return x.begin(ctx, tx) })
	if err != nil {
		return err
	}
	if err := x.write(ctx, out); err != nil {
		return a.o.Trail.Do(ctx, by, e, func(*db.Tx, *audit.Event) error { return err })
	}
	return nil
}

func (a *Assurance) mayExport(by actor.Actor, p Period, now time.Time) *problem.Problem {
	switch {
	case !slices.Contains(operators, by.Kind):
		return problem.New(problem.Forbidden, "evidence-forbidden", "Bundles of evidence are made by the operators of this installation.")
	case a.o.Keys == nil:
		return problem.New(problem.Unavailable, "evidence-unsigned", "This installation has no key to sign evidence with.")
	case !p.From.IsZero() && !p.From.Before(p.To):
		return problem.New(problem.Invalid, "invalid-period", "The period ends before it begins.")
	case p.To.Year() < 1980 || p.To.Year() > 9999 || !p.From.IsZero() && p.From.Year() < 1970:
		return problem.New(problem.Invalid, "invalid-period", "The period is not within the years 1970 to 9999.")
	case p.To.After(now):
		return problem.New(problem.Invalid, "invalid-period", "The period ends in the future, of which there is no evidence yet.")
	}
	return nil
}

// export is one bundle being written.
type export struct {
	*Assurance
	Period
	catalogue bundle.Catalogue
	before    []Evidence // the newest of each check when the period begins
	stood     []Change   // the newest of each claim then
	last      int64      // the greatest place in the log of an event that is cited
	runs      int64
	changes   int64 // those that have an event
}

// begin reads what stood at the beginning of the period, and how the claims stand at its end.
func (x *export) begin(ctx context.Context, tx *db.Tx) error {
	x.before, x.stood, x.catalogue = nil, nil, bundle.Catalogue{}
	if !x.From.IsZero() {
		newest, err := selectNewest(ctx, tx, clock.Micros(x.From))
		if err != nil {
			return err
		}
		for _, e := range newest {
			x.before = append(x.before, e)
		}
		slices.SortFunc(x.before, func(a, b Evidence) int {
			if c := a.ObservedAt.Compare(b.ObservedAt); c != 0 {
				return c
			}
			return strings.Compare(a.ID, b.ID)
		})
		states, err := selectStates(ctx, tx, clock.Micros(x.From))
		if err != nil {
			return err
		}
		for _, c := range states {
			x.stood = append(x.stood, c)
		}
		slices.SortFunc(x.stood, func(a, b Change) int {
			if c := a.Since.Compare(b.Since); c != 0 {
				return c
			}
			return strings.Compare(a.Claim, b.Claim)
		})
	}
	newest, err := selectNewest(ctx, tx, clock.Micros(x.To))
	if err != nil {
		return err
	}
	if err := x.whole(ctx, tx, newest); err != nil {
		return err
	}
	for _, c := range x.claims {
		s := x.judge(c, newest, x.To)
		claim := bundle.Claim{ID: c.ID, Sentence: c.Sentence, Owner: c.Owner, State: string(s.State), Why: s.Why}
		for _, control := range c.Controls {
			claim.Controls = append(claim.Controls, bundle.Control(control))
		}
		x.catalogue.Claims = append(x.catalogue.Claims, claim)
	}
	for _, c := range x.checks {
		x.catalogue.Checks = append(x.catalogue.Checks, bundle.Check{ID: c.ID, Version: c.Version, Says: c.Says})
	}
	slices.SortFunc(x.catalogue.Checks, func(a, b bundle.Check) int { return strings.Compare(a.ID, b.ID) })
	return nil
}

// whole fails with the problem "evidence-altered" when the trail knows of a run at the end of the period that is newer
// than the evidence, and whose own is gone or altered: the bundle would say what held before it.
func (x *export) whole(ctx context.Context, tx *db.Tx, newest map[string]Evidence) error {
	since := x.To.Add(-x.longestValid()) // what is older has expired
	if since.Before(x.o.Clock.Now().Add(-keepFor)) {
		return nil // it was deleted when its time came
	}
	latest := make(map[string]run)
	if err := x.runsSince(ctx, tx, clock.Micros(since), clock.Micros(x.To), latest); err != nil {
		return err
	}
	for name, r := range latest {
		if newest[name].Event == r.event {
			continue
		}
		kept, err := x.kept(ctx, tx, name, r.event)
		if err != nil {
			return err
		}
		if !kept {
			return problem.New(problem.Conflict, "evidence-altered",
				"The trail knows of a run of %s, the event %s, whose evidence is gone or altered. Run strongroom audit verify, and the check again.", name, r.event)
		}
	}
	return nil
}

func (x *export) write(ctx context.Context, out io.Writer) error {
	if err := x.o.Trail.Settle(ctx); err != nil {
		return err
	}
	info := bundle.Info{
		Installation: x.o.DB.Installation(), Environment: x.o.DB.Environment(), Program: x.o.Program, From: x.From, To: x.To,
	}
	var err error
	if info.LogKeys, err = x.o.Keys.CheckpointKeys(ctx); err != nil {
		return err
	}
	signer := x.o.Keys.EvidenceSigner()
	if info.EvidenceKey, err = verifierKey(ctx, x.o.Keys, signer); err != nil {
		return err
	}
	var end tlog.Tree
	chain := sync.OnceValues(func() (links []audit.Link, err error) {
		links, end, err = x.o.Trail.Chain(ctx, x.From, x.last)
		return links, err
	})
	return bundle.Write(ctx, out, signer, bundle.Source{
		Info: info, Catalogue: x.catalogue,
		Changes: func(yield func(bundle.Change) error) error {
			return x.eachChange(ctx, func(page []Change) error {
				for _, c := range page {
					if err := yield(bundle.Change{Claim: c.Claim, State: string(c.State), Since: c.Since, Why: c.Why, Event: c.Event}); err != nil {
						return err
					}
				}
				events := eventsOfChanges(page)
				x.changes += int64(len(events))
				return x.cites(ctx, events)
			})
		},
		Runs: func(yield func(bundle.Run) error) error {
			return x.eachRun(ctx, func(page []Evidence) error {
				for _, e := range page {
					x.runs++
					if err := yield(bundle.Run{ID: e.ID, Event: e.Event, Took: e.Took, Text: e.text()}); err != nil {
						return err
					}
				}
				return x.cites(ctx, eventsOf(page))
			})
		},
		Proofs: func(yield func(string, audit.Proof) error) error {
			links, err := chain()
			if err != nil {
				return err
			}
			return x.prove(ctx, end, links[len(links)-1], yield)
		},
		Chain: chain,
	})
}

// verifierKey returns the public key of the signer.
func verifierKey(ctx context.Context, keys Keys, signer note.Signer) (string, error) {
	all, err := keys.EvidenceKeys(ctx)
	if err != nil {
		return "", err
	}
	for _, key := range all {
		v, err := audit.NewVerifier(key)
		if err != nil {
			return "", err
		}
		if v.Name() == signer.Name() && v.KeyHash() == signer.KeyHash() {
			return key, nil
		}
	}
	return "", fmt.Errorf("assurance: the public key of %s is not among the installation's", signer.Name())
}

func eventsOf(page []Evidence) (events []string) {
	for _, e := range page {
		events = append(events, e.Event)
	}
	return events
}

func eventsOfChanges(page []Change) (events []string) {
	for _, c := range page {
		if c.Event != "" {
			events = append(events, c.Event)
		}
	}
	return events
}

func (x *export) cites(ctx context.Context, events []string) error {
	last, err := x.o.Trail.Last(ctx, events)
	x.last = max(x.last, last)
	return err
}

// prove proves the events of all runs and then of all changes against the last checkpoint of the chain, and holds
// each run against what its event says.
func (x *export) prove(ctx context.Context, tree tlog.Tree, end audit.Link, yield func(string, audit.Proof) error) error {
	runs := int64(0)
	err := x.eachRun(ctx, func(page []Evidence) error {
		runs += int64(len(page))
		proofs, err := x.cite(ctx, tree, end, eventsOf(page), yield)
		if err != nil {
			return err
		}
		for i, e := range page {
			if p := proofs[i]; p.Action != ActionCheck || p.Resource != e.resource() {
				return problem.New(problem.Conflict, "evidence-altered",
					"What is stored of the evidence %s is not what the trail says of it: it was written or altered by something else. Run strongroom audit verify.", e.ID)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	changes := int64(0)
	err = x.eachChange(ctx, func(page []Change) error {
		events := eventsOfChanges(page)
		changes += int64(len(events))
		_, err := x.cite(ctx, tree, end, events, yield)
		return err
	})
	if err == nil && (runs != x.runs || changes != x.changes) {
		err = problem.New(problem.Conflict, "evidence-moved", "Old evidence was deleted meanwhile. Please export again.")
	}
	return err
}

// cite gives the proofs of the events, which it checks, and returns what they say.
func (x *export) cite(ctx context.Context, tree tlog.Tree, end audit.Link, events []string, yield func(string, audit.Proof) error) ([]audit.Proved, error) {
	proofs, err := x.o.Trail.Cite(ctx, tree.N, events)
	if err != nil {
		return nil, err
	}
	var all []audit.Proved
	for i, p := range proofs {
		// A cosignature that came meanwhile would make it another checkpoint than that of the chain.
		p.Checkpoint = end.Checkpoint
		proved, err := p.CheckIn(tree)
		if err != nil {
			return nil, err
		}
		all = append(all, proved)
		if err := yield(events[i], p); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// eachRun gives take the evidence of the bundle, page by page in the order of time.
func (x *export) eachRun(ctx context.Context, take func([]Evidence) error) error {
	page := x.before
	at, id := clock.Micros(x.From), ""
	for {
		if len(page) > 0 {
			if err := take(page); err != nil {
				return err
			}
			if newest := page[len(page)-1]; !newest.ObservedAt.Before(x.From) {
				at, id = clock.Micros(newest.ObservedAt), newest.ID
			}
		}
		err := x.o.DB.View(ctx, func(tx *db.Tx) (err error) {
			page, err = selectEvidence(ctx, tx, at, id, clock.Micros(x.To), exportPage)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
	}
}

// eachChange is eachRun of the changes of claims' states.
func (x *export) eachChange(ctx context.Context, take func([]Change) error) error {
	page := x.stood
	at, claim := clock.Micros(x.From), ""
	for {
		if len(page) > 0 {
			if err := take(page); err != nil {
				return err
			}
			if newest := page[len(page)-1]; !newest.Since.Before(x.From) {
				at, claim = clock.Micros(newest.Since), newest.Claim
			}
		}
		err := x.o.DB.View(ctx, func(tx *db.Tx) (err error) {
			page, err = selectChangesAfter(ctx, tx, at, claim, clock.Micros(x.To), exportPage)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
	}
}

// maxHistory bounds what History returns.
const maxHistory = 1000

// History returns the newest changes of claims' states, the newest first, at most limit (1 to 1000): of one claim,
// or of all. It leaves an event. It fails with the problem "claim-not-found".
func (a *Assurance) History(ctx context.Context, by actor.Actor, claim string, limit int) (all []Change, err error) {
	e := audit.Event{Action: ActionRead, Resource: "history of claims"}
	switch {
	case !slices.Contains(operators, by.Kind):
		return nil, a.o.Trail.Deny(ctx, by, e, problem.New(problem.Forbidden, "claims-forbidden", "Evidence is for the operators of this installation; the trust page is for everybody."))
	case limit < 1 || limit > maxHistory:
		return nil, a.o.Trail.Deny(ctx, by, e, problem.New(problem.Invalid, "invalid-limit", "Ask for 1 to %d changes.", maxHistory))
	case claim != "" && !slices.ContainsFunc(a.claims, func(c Claim) bool { return c.ID == claim }):
		return nil, a.o.Trail.Deny(ctx, by, e, problem.New(problem.NotFound, "claim-not-found", "There is no claim %q; `strongroom claims` lists them.", claim))
	case claim != "":
		e.Resource = "history of claim " + claim
	}
	err = a.o.Trail.Do(ctx, by, e, func(tx *db.Tx, _ *audit.Event) (err error) {
		all, err = selectChanges(ctx, tx, claim, limit)
		return err
	})
	return all, err
}
