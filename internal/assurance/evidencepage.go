package assurance

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/audit"
	"strongroom/internal/check"
)

//go:embed evidence.html
var evidenceFile string

var evidenceTemplate = template.Must(template.New("evidence").Parse(evidenceFile))

// evidencePath is where the evidence of a claim is for everybody.
func evidencePath(claim string) string { return PagePath + "/evidence/" + claim }

// reproveAfter is how long a proof is served before it is made anew against a newer checkpoint, which witnesses may
// have cosigned meanwhile.
const reproveAfter = time.Hour

// served is an answer that is ready.
type served struct {
	kind, tag string
	body      []byte
}

// exhibit is one event as its page shows it.
type exhibit struct {
	Check, Says, Word, Class, Detail string
	Event, Seen, Until               string
	Proof, Text                      string // paths; empty when there is none yet
}

var outcomeWords = map[check.Outcome][2]string{
	check.Holds: {"Holds", string(Green)}, check.Fails: {"Fails", string(Red)}, check.Unknown: {"Could not be found out", string(Amber)},
}

// evidence makes the pages of evidence, with the proofs, of those claims whose state everybody may see. Which check
// saw what is on those pages of which the operator shows figures; the others have the proof of the claim's state alone.
// What is proven are events of the system's own, which name nobody.
func (p *Page) evidence(ctx context.Context, statuses []Status) (map[string]served, error) {
	pages := make(map[string]served)
	proofs := make(map[string]proven)
	prove := func(event, action, resource, path string) (string, error) {
		text, err := p.prove(ctx, proofs, event, action, resource)
		if err != nil || text == nil {
			return "", err
		}
		pages[path] = served{"text/plain; charset=utf-8", tag(text), text}
		return path, nil
	}
	for _, s := range statuses {
		detail := p.o.Detail[s.ID]
		if detail == ShowNothing {
			continue
		}
		l := p.line(s)
		base := evidencePath(s.ID)
		var err error
		state := exhibit{Event: s.Event, Word: l.Word, Class: l.Class, Seen: l.Since}
		if state.Proof, err = prove(s.Event, ActionState, "claim "+s.ID+" "+string(s.State), base+"/state.tlog-proof"); err != nil {
			return nil, err
		}
		var checks []exhibit
		for _, r := range s.Results {
			if detail != ShowFigures || r.Evidence == nil {
				continue
			}
			e := r.Evidence
			x := exhibit{
				Check: r.Check, Says: r.Says, Word: outcomeWords[e.Outcome][0], Class: outcomeWords[e.Outcome][1], Detail: e.Detail,
				Event: e.Event, Seen: day(e.ObservedAt), Until: day(e.ValidUntil),
			}
			if x.Proof, err = prove(e.Event, ActionCheck, e.resource(), base+"/"+r.Check+".tlog-proof"); err != nil {
				return nil, err
			}
			if x.Detail = publicly(*e); x.Proof != "" && x.Detail != "" {
				text := []byte(e.text())
				x.Text = base + "/" + r.Check + ".txt"
				pages[x.Text] = served{"text/plain; charset=utf-8", tag(text), text}
			}
			checks = append(checks, x)
		}
		why := s.Why
		if slices.ContainsFunc(s.Results, func(r Result) bool { return r.Evidence != nil && r.Evidence.Outcome == check.Unknown }) {
			why = ""
		}
		var main bytes.Buffer
		err = evidenceTemplate.Execute(&main, map[string]any{"Line": l, "Why": why, "State": state, "Checks": checks, "Figures": detail == ShowFigures})
		if err != nil {
			return nil, err
		}
		html, err := p.Frame("Evidence for "+s.ID, template.HTML(main.String()))
		if err != nil {
			return nil, err
		}
		pages[base] = served{"text/html; charset=utf-8", tag(html), html}
	}
	p.proofs = proofs // those that are not shown any more are forgotten
	return pages, nil
}

// publicly is what everybody may read of what a check saw. What it could not find out it says in the words of an error,
// with names and addresses of the inside: that is for the operator and auditors.
func publicly(e Evidence) string {
	if e.Outcome == check.Unknown {
		return ""
	}
	return e.Detail
}

// proven is a proof that was made, what it says, and when that was.
type proven struct {
	text []byte
	said audit.Proved
	at   time.Time
}

// prove returns the proof of an event of the system's own as text, or nil when there is none to show: the event is not in
// the log yet, or says something else. It keeps the proof in proofs.
func (p *Page) prove(ctx context.Context, proofs map[string]proven, event, action, resource string) ([]byte, error) {
	if event == "" || p.assurance.o.Keys == nil {
		return nil, nil
	}
	one, known := proofs[event]
	if !known {
		one, known = p.proofs[event]
	}
	if now := p.assurance.o.Clock.Now(); !known || now.Sub(one.at).Abs() >= reproveAfter {
		var err error
		one, err = p.assurance.proven(ctx, event)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, audit.ErrNotPlaced):
			return nil, nil
		case err != nil: // the page goes on without it
			p.assurance.o.Log.LogAttrs(ctx, slog.LevelWarn, "there is no proof for the trust page", slog.String("event", event), slog.Any("error", err))
			return nil, nil
		}
	}
	proofs[event] = one
	if by := one.said.Actor; by.Kind != system.Kind || by.ID != system.ID || one.said.Action != action || one.said.Resource != resource {
		return nil, nil // it names who had the check run, or is not about this
	}
	return one.text, nil
}

// proven makes the proof of an event, against the newest checkpoint that a witness has cosigned, or the newest.
func (a *Assurance) proven(ctx context.Context, event string) (proven, error) {
	proof, err := a.o.Trail.Show(ctx, event)
	if errors.Is(err, audit.ErrNotPlaced) { // it has just happened
		if _, err = a.o.Trail.Sequence(ctx); err == nil {
			proof, err = a.o.Trail.Show(ctx, event)
		}
	}
	if err != nil {
		return proven{}, err
	}
	keys, err := a.o.Keys.CheckpointKeys(ctx)
	if err != nil {
		return proven{}, err
	}
	if err := proof.NameKey(keys); err != nil {
		return proven{}, err
	}
	v, err := audit.NewVerifier(proof.Key)
	if err != nil {
		return proven{}, err
	}
	said, err := proof.Check(note.VerifierList(v))
	return proven{proof.Text(), said, a.o.Clock.Now()}, err
}

// serveEvidence serves what evidence has made.
func (p *Page) serveEvidence(w http.ResponseWriter, r *http.Request) {
	c := p.current.Load()
	if c == nil {
		p.serve(w, r, "", nil)
		return
	}
	one, ok := c.evidence[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	write(w, r, one.kind, one.body, one.tag)
}
