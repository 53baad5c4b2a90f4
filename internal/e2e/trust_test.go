package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// axe returns axe-core's source, which scripts/test has installed.
func axe(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("trust/node_modules"); err != nil {
		if out, err := exec.Command("npm", "ci", "--prefix", "trust").CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	source, err := os.ReadFile("trust/node_modules/axe-core/axe.min.js")
	if err != nil {
		t.Fatal(err)
	}
	return string(source)
}

// logo writes a picture and returns its file.
func logo(t *testing.T) string {
	t.Helper()
	picture := image.NewRGBA(image.Rect(0, 0, 96, 96))
	for y := range 96 {
		for x := range 96 {
			if dx, dy := x-48, y-48; dx*dx+dy*dy < 46*46 {
				picture.Set(x, y, color.RGBA{11, 61, 145, 255})
			}
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, picture); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "logo.png")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTrustPage reads the trust page as people do, on a phone and on a desktop, by day and by night, and reports a
// concern there; axe-core finds nothing that would keep anybody out.
func TestTrustPage(t *testing.T) {
	source := axe(t)
	data := t.TempDir()
	start(t, "dev", data).stop()
	settings := filepath.Join(data, "strongroom.yaml")
	given, err := os.ReadFile(settings)
	if err == nil {
		err = os.WriteFile(settings, append(given, "trust: {detail: {ENV-1: figures}}\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := tryStart(t, "dev", data, []string{"STRONGROOM_TRUST_NAME=Ada Bank", "STRONGROOM_TRUST_LOGO=" + logo(t), "STRONGROOM_TRUST_ACCENT=#0b3d91",
		"STRONGROOM_TRUST_ACCENT_DARK=#9ec1ff", "STRONGROOM_TRUST_CONTACT=mailto:security@ada.example", "STRONGROOM_TRUST_POLICY=https://ada.example/disclosure"})
	if err != nil {
		t.Fatal(err)
	}
	must(t, "check", "--data", data, "trust-page-current", "environment-apart", "keys-root-answers")
	c := s.client()
	eventually(t, "the page says what was seen", func() error {
		if _, page := get(t, c, s.urls.App+"/trust"); !strings.Contains(page, `<article id="ENV-1" class="green">`) {
			return fmt.Errorf("it says\n%s", page)
		}
		return nil
	})
	answer, err := c.Get(s.urls.App + "/trust")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if policy := answer.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "script-src") || strings.Contains(policy, "unsafe") {
		t.Errorf("the page's policy: %s", policy)
	}
	if _, text := get(t, c, s.urls.App+"/.well-known/security.txt"); !strings.HasPrefix(text, "Contact: "+s.urls.App+"/trust/report\nContact: mailto:security@ada.example\n") {
		t.Errorf("security.txt: %s", text)
	}

	ctx := browser(t, s)
	type act = chromedp.Action[chromedp.Void]
	dress := func(width int64, scheme string) act {
		return chromedp.Steps(chromedp.EmulateViewport(width, 844), chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
			_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
			return err
		}))
	}
	// look has axe-core look at the page as it stands, in all that it knows of, and at what does not fit on the screen.
	look := func(name string, widths ...int64) {
		t.Helper()
		for _, width := range widths {
			for _, scheme := range []string{"light", "dark"} {
				as := fmt.Sprintf("%s-%d-%s", name, width, scheme)
				if err := chromedp.Do(ctx, dress(width, scheme), picture("trust-"+as), until(fmt.Sprintf("document.documentElement.scrollWidth <= %d", width))); err != nil {
					t.Fatalf("%s: %v", as, err)
				}
				found, err := chromedp.Run(ctx, chromedp.Evaluate[string](source+`;
					axe.run(document, {resultTypes: ["violations", "incomplete"]}).then(r => JSON.stringify([r.passes.length,
						...[...r.violations, ...r.incomplete].map(v => v.id + ": " + v.help + ": " + v.nodes.map(n => n.html + " " + n.failureSummary).join("; "))]))`,
					chromedp.EvalAwaitPromise))
				if err != nil {
					t.Fatalf("%s: %v", as, err)
				}
				var result []any
				if err := json.Unmarshal([]byte(found), &result); err != nil || len(result) == 0 {
					t.Fatalf("%s: axe says %q", as, found)
				}
				if passes, _ := result[0].(float64); passes < 15 || len(result) > 1 {
					t.Errorf("%s: %v rules hold, and these do not:\n%v", as, result[0], result[1:])
				}
			}
		}
	}
	do := func(what string, acts ...act) {
		t.Helper()
		if err := chromedp.Do(ctx, acts...); err != nil {
			text, _ := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body"))) // what went wrong first counts
			t.Fatalf("%s: %v\nthe page says:\n%s\n%s", what, err, text, s.log)
		}
	}
	do("the page opens", dress(390, "light"), chromedp.Navigate(s.urls.App+"/trust"),
		until(`document.body.innerText.includes("Ada Bank") && document.images[0].naturalWidth === 96`))
	// Nothing is broken here: one article is dressed as if its claim did not hold, to see that state too.
	do("a claim fails", until(`(() => { const a = document.querySelector("article.green"); a.className = "red"; a.querySelector(".word").textContent = "Does not hold"; return true })()`))
	look("page", 390, 1280)
	onPaper := chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print",
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
		return err
	})
	do("it is printed: light, without the form", dress(800, "dark"), onPaper, picture("trust-page-print"),
		until(`getComputedStyle(document.documentElement).backgroundColor === "rgb(255, 255, 255)" && document.querySelector("form").offsetParent === null`))
	do("what the checks saw of a claim", dress(390, "light"), chromedp.Navigate(s.urls.App+"/trust/evidence/ENV-1"),
		until(`document.body.innerText.includes("Proof for environment-apart")`))
	look("figures", 390, 1280)
	do("how a claim stands", dress(390, "light"), chromedp.Navigate(s.urls.App+"/trust/evidence/TLS-1"), until(`document.querySelector("h2 ~ article")`))
	look("evidence", 390)
	do("too little is reported", dress(390, "light"), chromedp.Navigate(s.urls.App+"/trust"), until(`document.querySelector("form")`),
		chromedp.SetValue(chromedp.CSS("#report-text"), "hacked!"),
		until(`(document.querySelector("form").noValidate = true)`), click("form button"), until(`document.querySelector(".problem")?.innerText.includes("10 to 8000")`))
	look("refused", 390)
	const text = "The page /v1/session shows me <b>somebody else</b>."
	do("a concern is reported", chromedp.SetValue(chromedp.CSS("#report-text"), text), chromedp.SetValue(chromedp.CSS("#report-contact"), "ada@example.com"),
		click("form button"), until(`document.querySelector(".thanks code")`))
	look("thanks", 390)
	reference, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS(".thanks code")))
	if err != nil {
		t.Fatal(err)
	}
	if shown := must(t, "reports", "show", reference, "--data", data).stdout; !strings.Contains(shown, text) || !strings.Contains(shown, "ada@example.com") {
		t.Errorf("what was reported is not what is shown:\n%s", shown)
	}
	if open := command(t, "findings", "--data", data); !strings.Contains(open.stdout, "assurance.report-waits  "+reference) {
		t.Errorf("nothing says that a report waits: %v", open)
	}
	must(t, "reports", "close", reference, "--verdict", "mended", "--data", data)
	reportByProgram(t, s)
	checkCatalogue(t, data)
}

// reportByProgram sends reports as programs do; one came from here within the hour.
func reportByProgram(t *testing.T, s *server) {
	c := s.client()
	for _, row := range []struct {
		name, body string
		status     int
		want       string
	}{
		{"taken", `{"text":"The page /x shows too much."}`, http.StatusAccepted, `"reference":"rep_`},
		{"too short", `{"text":"x"}`, http.StatusUnprocessableEntity, "urn:strongroom:problem:invalid-request"},
		{"unknown member", `{"text":"The page /x shows too much.","name":"Ada"}`, http.StatusUnprocessableEntity, "urn:strongroom:problem:"},
		{"blanks", `{"text":"                 x"}`, http.StatusUnprocessableEntity, "urn:strongroom:problem:report-invalid"},
		{"largest", `{"text":"` + strings.Repeat("é", 8000) + `"}`, http.StatusAccepted, `"reference":"rep_`},
		{"too large", `{"text":"` + strings.Repeat("x", 70_000) + `"}`, http.StatusRequestEntityTooLarge, "urn:strongroom:problem:body-too-large"},
		{"fourth", `{"text":"Another concern of mine."}`, http.StatusAccepted, `"reference":"rep_`},
		{"fifth", `{"text":"Another concern of mine."}`, http.StatusAccepted, `"reference":"rep_`},
		{"sixth within the hour", `{"text":"Another concern of mine."}`, http.StatusTooManyRequests, "urn:strongroom:problem:too-many-reports"},
	} {
		status, body := post(t, c, s.urls.App+"/v1/security-reports", row.body)
		if status != row.status || !strings.Contains(body, row.want) {
			t.Errorf("%s: %d %s", row.name, status, body)
		}
	}
	var list []struct{ Reference string }
	if err := json.Unmarshal([]byte(must(t, "reports", "list", "--all", "--json", "--data", s.data).stdout), &list); err != nil || len(list) != 5 {
		t.Errorf("%+v %v", list, err)
	}
}

// post sends JSON and returns the answer's status and body.
func post(t *testing.T, c *http.Client, url, body string) (int, string) {
	t.Helper()
	answer, err := c.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(answer.Body); err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, b.String()
}
