package assurance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/jobs"
)

// PagePath is where the trust page is.
const PagePath = "/trust"

// Detail is how much of a claim everybody may see.
type Detail string

// The details.
const (
	ShowNothing Detail = "none"    // the sentence alone
	ShowState   Detail = "state"   // whether it holds, and since when
	ShowFigures Detail = "figures" // also what the checks found
)

// PageOptions say what the trust page looks like.
type PageOptions struct {
	Name    string            // of the operator
	Intro   string            // a sentence or two; empty for one of ours
	Contact string            // for security concerns: mailto:… or https://…; empty: there is none
	Policy  string            // https://… of the disclosure policy; may be empty
	Accent  string            // a colour, "#0b5"; empty for ours
	Detail  map[string]Detail // by claim; those that are not named show their state
	Origin  string            // https://… where the page is; empty: not known
}

//go:embed page.html page.css
var pageFiles embed.FS

var pageTemplate = template.Must(template.ParseFS(pageFiles, "page.html"))

// Page serves the trust page and what belongs to it, from memory, to everybody.
type Page struct {
	assurance *Assurance
	o         PageOptions
	css       []byte
	current   atomic.Pointer[rendered]

	refreshing sync.Mutex
	proofs     map[string]proven // by event; guarded by refreshing
}

// rendered is what is served until the next Refresh.
type rendered struct {
	at         time.Time
	html, feed []byte
	htmlTag    string
	feedTag    string
	atom       []byte
	atomTag    string
	evidence   map[string]served // by path
}

// NewPage returns the page, which shows nothing before the first Refresh.
func (a *Assurance) NewPage(o PageOptions) (*Page, error) {
	css, err := pageFiles.ReadFile("page.css")
	if err != nil {
		return nil, err
	}
	if o.Accent != "" {
		css = append(css, fmt.Sprintf("\n:root { --accent: %s; }\n", o.Accent)...)
	}
	return &Page{assurance: a, o: o, css: css}, nil
}

// line is a claim as the template shows it.
type line struct {
	ID, Sentence, Word, Class, Why string
	Since, Proven                  string
	Found                          []string
	Evidence                       string // path of the page about it; empty: there is none
}

type section struct {
	Title string
	Lines []line
}

// sections orders the claims for people: by what they are about.
var sections = []struct{ title, prefixes string }{
	{"Connections", "TLS NET DOS APP"},
	{"Signing in", "LOG DEV KYC"},
	{"Your data", "ENC GDP MAL"},
	{"The people who work here", "ACC"},
	{"What is recorded", "AUD IDS"},
	{"Copies and continuity", "BAK CAP OPS ENV"},
	{"How we keep at it", "VUL ISM TRU"},
}

var words = map[State]string{Green: "Holds", Amber: "Not proven right now", Red: "Does not hold", Grey: "Not part of this system"}

func day(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 UTC") }

// Refresh renders the page anew from the newest evidence.
func (p *Page) Refresh(ctx context.Context) error {
	p.refreshing.Lock()
	defer p.refreshing.Unlock()
	var statuses []Status
	var changes []Change
	err := p.assurance.o.DB.View(ctx, func(tx *db.Tx) (err error) {
		if statuses, err = p.assurance.statuses(ctx, tx); err != nil {
			return err
		}
		changes, err = selectChanges(ctx, tx, "", 100)
		return err
	})
	if err != nil {
		return err
	}
	now := p.assurance.o.Clock.Now()
	counts := make(map[State]int)
	var parts []section
	for _, s := range sections {
		part := section{Title: s.title}
		for _, status := range statuses {
			prefix, _, _ := strings.Cut(status.ID, "-")
			if !strings.Contains(" "+s.prefixes+" ", " "+prefix+" ") {
				continue
			}
			part.Lines = append(part.Lines, p.line(status))
			counts[status.State]++
		}
		parts = append(parts, part)
	}
	var html bytes.Buffer
	err = pageTemplate.ExecuteTemplate(&html, "page.html", map[string]any{
		"Name": p.o.Name, "Intro": p.o.Intro, "Contact": p.o.Contact, "Policy": p.o.Policy, "Parts": parts, "At": day(now),
		"Green": counts[Green], "Amber": counts[Amber], "Red": counts[Red], "Grey": counts[Grey], "All": len(statuses),
	})
	if err != nil {
		return err
	}
	entries := p.entries(changes)
	feed, err := p.jsonFeed(entries)
	if err != nil {
		return err
	}
	atom, err := p.atomFeed(entries)
	if err != nil {
		return err
	}
	evidence, err := p.evidence(ctx, statuses)
	if err != nil {
		return err
	}
	p.current.Store(&rendered{at: now, html: html.Bytes(), feed: feed, htmlTag: tag(html.Bytes()), feedTag: tag(feed),
		atom: atom, atomTag: tag(atom), evidence: evidence})
	return nil
}

func tag(b []byte) string {
	sum := sha256.Sum256(b)
	return `"` + hex.EncodeToString(sum[:12]) + `"`
}

func (p *Page) line(s Status) line {
	l := line{ID: s.ID, Sentence: s.Sentence}
	detail := p.o.Detail[s.ID]
	if detail == ShowNothing {
		return l
	}
	l.Word, l.Class = words[s.State], string(s.State)
	if s.Proven != nil {
		l.Proven = day(*s.Proven)
	}
	l.Since = day(s.Since)
	l.Evidence = evidencePath(s.ID)
	if detail == ShowFigures {
		for _, r := range s.Results {
			if r.Evidence != nil {
				l.Found = append(l.Found, r.Says+" "+r.Evidence.Detail)
			}
		}
	}
	return l
}

// Register adds the page, its feed and security.txt (RFC 9116) to what the app's listener serves.
func (p *Page) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET "+PagePath, func(w http.ResponseWriter, r *http.Request) {
		p.serve(w, r, "text/html; charset=utf-8", func(c *rendered) ([]byte, string) { return c.html, c.htmlTag })
	})
	mux.HandleFunc("GET "+evidencePath("{claim}"), p.serveEvidence)
	mux.HandleFunc("GET "+evidencePath("{claim}")+"/{proof}", p.serveEvidence)
	mux.HandleFunc("GET "+atomFeedPath, func(w http.ResponseWriter, r *http.Request) {
		p.serve(w, r, "application/atom+xml; charset=utf-8", func(c *rendered) ([]byte, string) { return c.atom, c.atomTag })
	})
	mux.HandleFunc("GET "+jsonFeedPath, func(w http.ResponseWriter, r *http.Request) {
		p.serve(w, r, "application/feed+json", func(c *rendered) ([]byte, string) { return c.feed, c.feedTag })
	})
	css := &rendered{html: p.css, htmlTag: tag(p.css)}
	mux.HandleFunc("GET "+PagePath+"/style.css", func(w http.ResponseWriter, r *http.Request) {
		write(w, r, "text/css; charset=utf-8", css.html, css.htmlTag)
	})
	if p.o.Contact != "" {
		mux.HandleFunc("GET /.well-known/security.txt", func(w http.ResponseWriter, r *http.Request) {
			// Expires has to be under a year away; the page is made anew each day.
			expires := p.assurance.o.Clock.Now().UTC().Truncate(24*time.Hour).AddDate(0, 6, 0)
			text := "Contact: " + p.o.Contact + "\nExpires: " + expires.Format(time.RFC3339) + "\nPreferred-Languages: en\n"
			if p.o.Policy != "" {
				text += "Policy: " + p.o.Policy + "\n"
			}
			write(w, r, "text/plain; charset=utf-8", []byte(text), tag([]byte(text)))
		})
	}
}

func (p *Page) serve(w http.ResponseWriter, r *http.Request, kind string, of func(*rendered) ([]byte, string)) {
	c := p.current.Load()
	if c == nil {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "The page is being made. Please come again in a few seconds.", http.StatusServiceUnavailable)
		return
	}
	b, etag := of(c)
	write(w, r, kind, b, etag)
}

// The headers that every answer has, made once.
var (
	cacheControl  = []string{"public, max-age=60"}
	contentPolicy = []string{"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
)

func write(w http.ResponseWriter, r *http.Request, kind string, b []byte, etag string) {
	h := w.Header()
	h["Cache-Control"], h["Content-Security-Policy"] = cacheControl, contentPolicy
	tags := [...]string{kind, etag}
	h["Content-Type"], h["Etag"] = tags[:1:1], tags[1:]
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(b) // who asked has gone
}

// Missing returns the first claim that a page which was served does not show as Refresh rendered it, or "".
func (p *Page) Missing(served []byte) string {
	c := p.current.Load()
	if c == nil || bytes.Equal(served, c.html) {
		return ""
	}
	// It was rendered anew meanwhile: then the claims must still be there, one by one.
	for _, claim := range p.assurance.claims {
		if !bytes.Contains(served, []byte(template.HTMLEscapeString(claim.Sentence))) {
			return claim.ID
		}
	}
	return ""
}

// PageJobName is the name of the job that renders the page.
const PageJobName = "assurance-page"

// Job renders the page every 30 seconds.
func (p *Page) Job() jobs.Job {
	return jobs.Job{Name: PageJobName, Every: 30 * time.Second, Quiet: true, Run: p.Refresh}
}
