package assurance

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"strconv"
	"time"

	"github.com/google/uuid"
	"golang.org/x/tools/blog/atom"
)

// The changes of claims' states for those who want to be told: JSON Feed 1.1 and Atom (RFC 4287).
const (
	jsonFeedPath = PagePath + "/changes.json"
	atomFeedPath = PagePath + "/changes.atom"
)

// entry is a change that everybody may see.
type entry struct {
	id             string // of the change, for ever
	claim          string
	title, content string
	at             time.Time
}

// entries are those of the changes whose claims show their state.
func (p *Page) entries(changes []Change) []entry {
	sentences := make(map[string]string)
	for _, c := range p.assurance.claims {
		sentences[c.ID] = c.Sentence
	}
	var all []entry
	for _, c := range changes {
		if p.o.Detail[c.Claim] == ShowNothing || sentences[c.Claim] == "" {
			continue
		}
		all = append(all, entry{p.urn(c.Claim, strconv.FormatInt(c.Since.UnixMicro(), 10)), c.Claim, c.Claim + ": " + words[c.State], sentences[c.Claim], c.Since.UTC()})
	}
	return all
}

// urn returns an identifier (RFC 9562, version 5) of something that belongs to this installation.
func (p *Page) urn(parts ...string) string {
	name := "urn:strongroom:" + p.assurance.o.DB.Installation()
	for _, part := range parts {
		name += ":" + part
	}
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(name)).URN()
}

func (p *Page) feedTitle() string { return "How " + p.name() + " protects you: changes" }

func (p *Page) name() string {
	if p.o.Name == "" {
		return "this service"
	}
	return p.o.Name
}

// jsonFeed is the document of JSON Feed 1.1. Its addresses have to be whole, so they are there when the origin is known.
type jsonFeed struct {
	Version  string         `json:"version"`
	Title    string         `json:"title"`
	Home     string         `json:"home_page_url,omitempty"`
	Feed     string         `json:"feed_url,omitempty"`
	Language string         `json:"language"`
	Authors  []jsonAuthor   `json:"authors"`
	Items    []jsonFeedItem `json:"items"`
}

type jsonAuthor struct {
	Name string `json:"name"`
}

type jsonFeedItem struct {
	ID        string    `json:"id"`
	URL       string    `json:"url,omitempty"`
	Title     string    `json:"title"`
	Content   string    `json:"content_text"`
	Published time.Time `json:"date_published"`
}

func (p *Page) jsonFeed(entries []entry) ([]byte, error) {
	f := jsonFeed{Version: "https://jsonfeed.org/version/1.1", Title: p.feedTitle(), Language: "en", Authors: []jsonAuthor{{p.name()}}, Items: []jsonFeedItem{}}
	if p.o.Origin != "" {
		f.Home, f.Feed = p.o.Origin+PagePath, p.o.Origin+jsonFeedPath
	}
	for _, e := range entries {
		item := jsonFeedItem{ID: e.id, Title: e.title, Content: e.content, Published: e.at}
		if p.o.Origin != "" {
			item.URL = p.o.Origin + evidencePath(e.claim)
		}
		f.Items = append(f.Items, item)
	}
	return json.Marshal(f)
}

func (p *Page) atomFeed(entries []entry) ([]byte, error) {
	f := atom.Feed{
		Title: p.feedTitle(), ID: p.urn("changes"), Updated: atom.Time(time.Unix(0, 0).UTC()), Author: &atom.Person{Name: p.name()},
		Link: []atom.Link{
			{Rel: "self", Href: p.o.Origin + atomFeedPath, Type: "application/atom+xml"}, {Rel: "alternate", Href: p.o.Origin + PagePath, Type: "text/html"},
		},
	}
	for i, e := range entries {
		if i == 0 { // the newest
			f.Updated = atom.Time(e.at)
		}
		f.Entry = append(f.Entry, &atom.Entry{
			ID: e.id, Title: e.title, Published: atom.Time(e.at), Updated: atom.Time(e.at), Author: f.Author,
			Link:    []atom.Link{{Rel: "alternate", Href: p.o.Origin + evidencePath(e.claim), Type: "text/html"}},
			Content: &atom.Text{Type: "text", Body: e.content}, Summary: &atom.Text{Type: "text", Body: e.content},
		})
	}
	var out bytes.Buffer
	out.WriteString(xml.Header)
	err := xml.NewEncoder(&out).Encode(f)
	return out.Bytes(), err
}
