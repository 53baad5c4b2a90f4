package assurance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
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

	Title      string        // the heading; empty for ours
	Concern    string        // a sentence or two above the form; empty for ours
	AccentDark string        // Accent in the dark; empty for ours
	Logo       *Logo         // nil shows none
	Origin     string        // https://… where the page is; empty: not known
	Form       template.HTML // takes reports at FormPath; empty shows none
	FormPath   string
}

// Logo is the operator's picture. It is a part of the page, so that showing it asks nobody anything.
type Logo struct {
	data template.URL
}

// MaxLogo bounds a logo, in bytes: everybody who reads the page loads it.
const MaxLogo = 64 << 10

// NewLogo takes a PNG, JPEG or WebP picture of up to MaxLogo bytes. SVG is refused: it is a document, which may hold
// more than a picture.
func NewLogo(b []byte) (*Logo, error) {
	kind := http.DetectContentType(b)
	switch {
	case len(b) > MaxLogo:
		return nil, fmt.Errorf("has %d bytes, more than the %d that a page can carry", len(b), MaxLogo)
	case kind != "image/png" && kind != "image/jpeg" && kind != "image/webp":
		return nil, errors.New("is no PNG, JPEG or WebP picture")
	}
	return &Logo{template.URL("data:" + kind + ";base64," + base64.StdEncoding.EncodeToString(b))}, nil
}

//go:embed page.html frame.html page.css
var pageFiles embed.FS

var pageTemplate = template.Must(template.ParseFS(pageFiles, "page.html", "frame.html"))

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
		css = append(css, fmt.Sprintf("\n@media print, not all and (prefers-color-scheme: dark) { :root { --accent: %s; } }\n", o.Accent)...)
	}
	if o.AccentDark != "" {
		css = append(css, fmt.Sprintf("\n@media screen and (prefers-color-scheme: dark) { :root { --accent: %s; } }\n", o.AccentDark)...)
	}
	o.Origin = strings.TrimSuffix(o.Origin, "/")
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

// sectionOf returns where a claim is shown: the last section has those of no other.
func sectionOf(claim string) string {
	prefix, _, _ := strings.Cut(claim, "-")
	for _, s := range sections {
		if strings.Contains(" "+s.prefixes+" ", " "+prefix+" ") {
			return s.title
		}
	}
	return sections[len(sections)-1].title
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
			if sectionOf(status.ID) != s.title {
				continue
			}
			part.Lines = append(part.Lines, p.line(status))
			if p.o.Detail[status.ID] != ShowNothing { // the sum would say what its line does not
				counts[status.State]++
			}
		}
		parts = append(parts, part)
	}
	var html bytes.Buffer
	err = pageTemplate.ExecuteTemplate(&html, "page.html", map[string]any{
		"Look": p.o, "Logo": p.logo(), "Parts": parts, "At": day(now),
		"Green": counts[Green], "Amber": counts[Amber], "Red": counts[Red], "Grey": counts[Grey],
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

// logo is the address of the operator's picture, or "".
func (p *Page) logo() template.URL {
	if p.o.Logo == nil {
		return ""
	}
	return p.o.Logo.data
}

// Frame makes a page of its own of main, in the looks of the trust page.
func (p *Page) Frame(title string, main template.HTML) ([]byte, error) {
	var html bytes.Buffer
	err := pageTemplate.ExecuteTemplate(&html, "frame.html", map[string]any{"Look": p.o, "Logo": p.logo(), "Title": title, "Main": main})
	return html.Bytes(), err
}

// Headers sets what every page says to the browser.
func (p *Page) Headers(h http.Header) {
	h["Content-Security-Policy"], h["Referrer-Policy"] = contentPolicy, referrerPolicy
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
				l.Found = append(l.Found, strings.TrimSpace(r.Says+" "+publicly(*r.Evidence)))
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
	if p.o.Contact != "" || p.o.FormPath != "" {
		mux.HandleFunc("GET "+securityPath, func(w http.ResponseWriter, r *http.Request) {
			text, cache := p.securityText(r.Host), cacheControl
			if p.o.Origin == "" { // it says what the caller calls us: nobody else may get that
				cache = []string{"no-store"}
			}
			answer(w, r, "text/plain; charset=utf-8", text, tag(text), cache)
		})
	}
}

const securityPath = "/.well-known/security.txt"

// securityText is security.txt (RFC 9116) as it is today. The first contact is the preferred one.
func (p *Page) securityText(host string) []byte {
	origin := p.o.Origin
	if origin == "" {
		origin = "https://" + host
	}
	var text strings.Builder
	if p.o.FormPath != "" {
		fmt.Fprintf(&text, "Contact: %s%s\n", origin, p.o.FormPath)
	}
	if p.o.Contact != "" {
		fmt.Fprintf(&text, "Contact: %s\n", p.o.Contact)
	}
	// Expires has to be under a year away; the page is made anew each day.
	expires := p.assurance.o.Clock.Now().UTC().Truncate(24*time.Hour).AddDate(0, 6, 0)
	fmt.Fprintf(&text, "Expires: %s\nPreferred-Languages: en\n", expires.Format(time.RFC3339))
	if p.o.Origin != "" {
		fmt.Fprintf(&text, "Canonical: %s%s\n", origin, securityPath)
	}
	if p.o.Policy != "" {
		fmt.Fprintf(&text, "Policy: %s\n", p.o.Policy)
	}
	return []byte(text.String())
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

// The headers that every answer has, made once. The form is sent with its origin, by which browsers that do not say
// where a request comes from (Sec-Fetch-Site) can be told from another site's.
var (
	referrerPolicy = []string{"same-origin"}
	cacheControl   = []string{"public, max-age=60"}
	contentPolicy  = []string{"default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"}
)

func write(w http.ResponseWriter, r *http.Request, kind string, b []byte, etag string) {
	answer(w, r, kind, b, etag, cacheControl)
}

func answer(w http.ResponseWriter, r *http.Request, kind string, b []byte, etag string, cache []string) {
	h := w.Header()
	h["Cache-Control"], h["Content-Security-Policy"], h["Referrer-Policy"] = cache, contentPolicy, referrerPolicy
	tags := [...]string{kind, etag}
	h["Content-Type"], h["Etag"] = tags[:1:1], tags[1:]
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(b) // who asked has gone
}

// Current reports whether a page that was served is the one that Refresh rendered last.
func (p *Page) Current(served []byte) bool {
	c := p.current.Load()
	return c != nil && bytes.Equal(served, c.html)
}

// PageJobName is the name of the job that renders the page.
const PageJobName = "assurance-page"

// Job renders the page every 30 seconds.
func (p *Page) Job() jobs.Job {
	return jobs.Job{Name: PageJobName, Every: 30 * time.Second, Quiet: true, Run: p.Refresh}
}
