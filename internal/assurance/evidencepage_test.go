package assurance

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// publicPage is a page that has been made, and what asks it.
func publicPage(t *testing.T, h *house, o PageOptions) (refresh func(), get func(path string) *httptest.ResponseRecorder) {
	t.Helper()
	page, err := h.NewPage(o)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	page.Register(mux)
	get = func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w
	}
	refresh = func() {
		t.Helper()
		if err := h.trail.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := page.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return refresh, get
}

// The link of a claim leads to its evidence, at the detail that the operator allows, and to proofs that hold for anybody
// who knows the log's key.
func TestEvidencePage(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		refresh, get := publicPage(t, h, PageOptions{Name: "Ada <Bank>", Detail: map[string]Detail{"ENC-1": ShowFigures, "ENC-2": ShowNothing}})
		if w := get("/trust/evidence/ENC-1"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("before it is made: %d", w.Code)
		}
		if _, err := h.Run(t.Context(), operator, nil); err != nil {
			t.Fatal(err)
		}
		refresh()
		trust := get("/trust").Body.String()
		for _, want := range []string{`href="/trust/evidence/ENC-1"`, `href="/trust/evidence/TLS-1"`} {
			if !strings.Contains(trust, want) {
				t.Errorf("the trust page has no %s", want)
			}
		}
		if strings.Contains(trust, "/trust/evidence/ENC-2") {
			t.Error("a claim without details has a link to them")
		}

		keys, err := h.o.Keys.CheckpointKeys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		v, err := audit.NewVerifier(keys[0])
		if err != nil {
			t.Fatal(err)
		}
		proof := func(path string) audit.Proved {
			t.Helper()
			w := get(path)
			p, err := audit.ParseProof(w.Body.Bytes())
			if err != nil || w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" || p.Key != keys[0] {
				t.Fatalf("%s: %d %v", path, w.Code, err)
			}
			said, err := p.Check(note.VerifierList(v))
			if err != nil || said.Actor != system {
				t.Fatalf("%s: %+v, %v", path, said, err)
			}
			return said
		}
		if said := proof("/trust/evidence/ENC-1/state.tlog-proof"); said.Resource != "claim ENC-1 green" {
			t.Errorf("%+v", said)
		}
		if said := proof("/trust/evidence/TLS-1/state.tlog-proof"); said.Resource != "claim TLS-1 amber" {
			t.Errorf("%+v", said)
		}
		sum := sha256.Sum256(get("/trust/evidence/ENC-1/vault-canary-opens.txt").Body.Bytes())
		if said := proof("/trust/evidence/ENC-1/vault-canary-opens.tlog-proof"); said.Reason != "holds" || !strings.HasSuffix(said.Resource, "sha256:"+hex.EncodeToString(sum[:])) {
			t.Errorf("%+v", said)
		}

		figures, state := get("/trust/evidence/ENC-1"), get("/trust/evidence/TLS-1")
		for _, want := range []string{"Ada &lt;Bank&gt;", "All checks hold.", "vault-canary-opens is so.", "seen", "state.tlog-proof", "storage-no-plaintext.txt"} {
			if !strings.Contains(figures.Body.String(), want) {
				t.Errorf("the page of a claim with figures does not say %q", want)
			}
		}
		for _, never := range []string{"<script", "cli:test", "was not run", "not installed", "tls-strong-only"} {
			if strings.Contains(figures.Body.String()+state.Body.String(), never) {
				t.Errorf("a page says %q", never)
			}
		}
		if figures.Header().Get("Cache-Control") == "" || figures.Header().Get("ETag") == "" {
			t.Errorf("it cannot be cached: %v", figures.Header())
		}
		for _, none := range []string{"/trust/evidence/ENC-2", "/trust/evidence/ENC-2/state.tlog-proof", "/trust/evidence/TLS-1/tls-strong-only.tlog-proof",
			"/trust/evidence/TLS-1/tls-strong-only.txt", "/trust/evidence/NO-1", "/trust/evidence/", "/trust/evidence/ENC-1/x"} {
			if w := get(none); w.Code != http.StatusNotFound {
				t.Errorf("%s: %d", none, w.Code)
			}
		}

		// The state that it changes to is not proven by the event of the one before.
		first := get("/trust/evidence/ENC-1/state.tlog-proof").Body.String()
		h.outcomes["vault-canary-opens"] = check.Fails
		h.clock.Advance(time.Minute)
		if _, err := h.Run(t.Context(), operator, nil); err != nil {
			t.Fatal(err)
		}
		refresh()
		if said := proof("/trust/evidence/ENC-1/state.tlog-proof"); said.Resource != "claim ENC-1 red" {
			t.Errorf("%+v", said)
		}
		// A proof stays until it is old.
		second := get("/trust/evidence/ENC-1/state.tlog-proof").Body.String()
		h.state(t, "ENC-1") // the log grows
		refresh()
		third := get("/trust/evidence/ENC-1/state.tlog-proof").Body.String()
		h.clock.Advance(reproveAfter)
		refresh()
		fourth := get("/trust/evidence/ENC-1/state.tlog-proof").Body.String()
		if first == second || second != third || third == fourth {
			t.Error("the proofs are not made when they should be")
		}

		// What somebody altered has no proof.
		h.statement(t, `UPDATE claim_state SET event_id = 'evt_06gzyff7mn176a0r354wph42gc' WHERE claim_id = 'ENC-1'`)
		h.statement(t, `UPDATE evidence SET valid_until = valid_until + 1000000 WHERE check_id = 'vault-canary-opens'`)
		refresh()
		if w := get("/trust/evidence/ENC-1/state.tlog-proof"); w.Code != http.StatusNotFound {
			t.Errorf("a state with the event of nothing: %d", w.Code)
		}
		if w := get("/trust/evidence/ENC-1/vault-canary-opens.txt"); w.Code != http.StatusNotFound {
			t.Errorf("altered evidence is shown: %d %s", w.Code, w.Body)
		}
		if w := get("/trust/evidence/ENC-1"); !strings.Contains(w.Body.String(), "is being made") {
			t.Errorf("the page says nothing about the missing proof: %s", w.Body)
		}
	})
}

// The feeds are what JSON Feed 1.1 and RFC 4287 ask for, with and without an origin.
func TestFeeds(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d)
	for _, origin := range []string{"", "https://ada.example"} {
		refresh, get := publicPage(t, h, PageOptions{Name: "Ada & Co", Origin: origin, Detail: map[string]Detail{"ENC-2": ShowNothing}})
		refresh()
		if w := get("/trust/changes.atom"); w.Code != http.StatusOK { // without any change yet
			t.Fatal(w.Code)
		} else {
			checkAtom(t, w.Body.String())
		}
		if _, err := h.Run(t.Context(), operator, nil); err != nil {
			t.Fatal(err)
		}
		h.clock.Advance(time.Minute)
		h.outcomes["vault-canary-opens"] = check.Fails
		if _, err := h.Run(t.Context(), operator, nil); err != nil {
			t.Fatal(err)
		}
		refresh()
		w := get("/trust/changes.json")
		if kind := w.Header().Get("Content-Type"); kind != "application/feed+json" {
			t.Error(kind)
		}
		ids := checkJSONFeed(t, w.Body.String(), origin)
		w = get("/trust/changes.atom")
		if kind := w.Header().Get("Content-Type"); kind != "application/atom+xml; charset=utf-8" {
			t.Error(kind)
		}
		if also := checkAtom(t, w.Body.String()); !slices.Equal(ids, also) || len(ids) < len(h.claims)-1 {
			t.Errorf("the feeds have other changes: %d and %d", len(ids), len(also))
		}
		for _, feed := range []string{"/trust/changes.json", "/trust/changes.atom"} {
			if text := get(feed).Body.String(); strings.Contains(text, "ENC-2") || !strings.Contains(text, "ENC-1: Does not hold") {
				t.Errorf("%s: %.300s", feed, text)
			}
		}
	}
}

// checkJSONFeed checks a document against the specification of JSON Feed 1.1, and returns the ids of its items.
func checkJSONFeed(t *testing.T, text, origin string) (ids []string) {
	t.Helper()
	var feed struct { // all members that the specification has and ours may have
		Version  *string `json:"version"`
		Title    *string `json:"title"`
		Home     *string `json:"home_page_url"`
		Feed     *string `json:"feed_url"`
		Language string  `json:"language"`
		Authors  []struct {
			Name string `json:"name"`
		} `json:"authors"`
		Items *[]struct {
			ID        *string `json:"id"`
			URL       *string `json:"url"`
			Title     string  `json:"title"`
			Text      *string `json:"content_text"`
			Published string  `json:"date_published"`
		} `json:"items"`
	}
	in := json.NewDecoder(strings.NewReader(text))
	in.DisallowUnknownFields()
	if err := in.Decode(&feed); err != nil {
		t.Fatal(err)
	}
	if feed.Version == nil || *feed.Version != "https://jsonfeed.org/version/1.1" || feed.Title == nil || *feed.Title == "" || feed.Items == nil ||
		feed.Language == "" || len(feed.Authors) != 1 || feed.Authors[0].Name == "" {
		t.Errorf("%.400s", text)
	}
	whole := func(u *string) {
		t.Helper()
		if (u != nil) != (origin != "") || u != nil && !strings.HasPrefix(*u, origin+"/trust") {
			t.Errorf("an address: %v", u)
		}
	}
	whole(feed.Home)
	whole(feed.Feed)
	for _, item := range *feed.Items {
		if item.ID == nil || *item.ID == "" || slices.Contains(ids, *item.ID) || item.Text == nil || *item.Text == "" {
			t.Errorf("%+v", item)
			continue
		}
		if _, err := time.Parse(time.RFC3339, item.Published); err != nil {
			t.Error(err)
		}
		whole(item.URL)
		ids = append(ids, *item.ID)
	}
	return ids
}

// checkAtom checks a document against RFC 4287, section 4, and returns the ids of its entries.
func checkAtom(t *testing.T, text string) (ids []string) {
	t.Helper()
	const space = "http://www.w3.org/2005/Atom"
	type node struct {
		XMLName  xml.Name
		Attrs    []xml.Attr `xml:",any,attr"`
		Children []node     `xml:",any"`
		Text     string     `xml:",chardata"`
	}
	var feed node
	if err := xml.Unmarshal([]byte(text), &feed); err != nil {
		t.Fatal(err)
	}
	all := func(n node, name string) (found []node) {
		for _, c := range n.Children {
			if c.XMLName == (xml.Name{Space: space, Local: name}) {
				found = append(found, c)
			}
		}
		return found
	}
	one := func(n node, name string) node {
		t.Helper()
		found := all(n, name)
		if len(found) != 1 {
			t.Fatalf("%s has %d elements %s: %.300s", n.XMLName.Local, len(found), name, text)
		}
		return found[0]
	}
	attr := func(n node, name string) string {
		i := slices.IndexFunc(n.Attrs, func(a xml.Attr) bool { return a.Name.Local == name })
		if i < 0 {
			return ""
		}
		return n.Attrs[i].Value
	}
	common := func(n node) string {
		t.Helper()
		id := one(n, "id").Text
		if u, err := url.Parse(id); err != nil || !u.IsAbs() {
			t.Errorf("the id %q is no IRI", id)
		}
		if _, err := time.Parse(time.RFC3339, one(n, "updated").Text); err != nil {
			t.Error(err)
		}
		if one(n, "title").Text == "" || one(one(n, "author"), "name").Text == "" {
			t.Error("no title or author")
		}
		alternates := 0
		for _, link := range all(n, "link") {
			if _, err := url.Parse(attr(link, "href")); err != nil || attr(link, "href") == "" {
				t.Errorf("a link to %q", attr(link, "href"))
			}
			if attr(link, "rel") == "alternate" {
				alternates++
			}
		}
		if alternates != 1 {
			t.Errorf("%d alternates", alternates)
		}
		return id
	}
	if feed.XMLName != (xml.Name{Space: space, Local: "feed"}) {
		t.Fatalf("the document is %v", feed.XMLName)
	}
	common(feed)
	for _, entry := range all(feed, "entry") {
		id := common(entry)
		if slices.Contains(ids, id) {
			t.Errorf("%s is there twice", id)
		}
		if _, err := time.Parse(time.RFC3339, one(entry, "published").Text); err != nil {
			t.Error(err)
		}
		if content := one(entry, "content"); attr(content, "type") != "text" || content.Text == "" {
			t.Errorf("%+v", content)
		}
		ids = append(ids, id)
	}
	return ids
}
