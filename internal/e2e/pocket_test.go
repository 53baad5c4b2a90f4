package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// TestPocket plays what a newcomer would do in the sample app: open an account, log in, store a profile,
// approve a second phone, and remove it again.
func TestPocket(t *testing.T) {
	s := start(t, "dev", filepath.Join(t.TempDir(), "d"))
	ctx := browser(t, s)
	var mu sync.Mutex
	var complaints []string
	err := chromedp.Listen(ctx, func(e any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := e.(type) {
		case *log.EventEntryAdded:
			// A refused request is part of the journey: a nonce is asked for, a device is pending.
			if e.Entry.Source != log.EntrySourceNetwork {
				complaints = append(complaints, e.Entry.Text)
			}
		case *runtime.EventExceptionThrown:
			complaints = append(complaints, e.ExceptionDetails.Text)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	const private = "lighthouse harbour 41"
	type act = chromedp.Action[chromedp.Void]
	size := func(width, height int64) act { return chromedp.EmulateViewport(width, height) }
	watch := chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, err := cdp.Call(ctx, tab, log.Enable, cdp.Empty{})
		return err
	})
	visible := func(sel chromedp.CSS) act { return chromedp.WaitVisible(sel) }
	says := func(sel, text string) act {
		return until(fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", sel, text))
	}
	offered := func(phone string) act { // the code, as a phone's keyboard offers it
		return chromedp.Steps(click(chromedp.CSS(phone+" button.suggest:not([hidden])")),
			until(fmt.Sprintf("/^[0-9]{6}$/.test(document.querySelector(%q).value)", phone+" [name=code]")))
	}
	steps := []struct {
		what string
		do   []act
	}{
		{"the page opens", []act{watch, size(1280, 900), looks("light"), chromedp.Navigate(s.urls.App + "/pocket/"),
			says("#one", "kept safe"), says("#two", "new phone"), picture("1-welcome-1280"),
			looks("dark"), picture("1-welcome-1280-dark"), looks("light")}},
		{"a code is sent", []act{click("#one [name=join]"), click("#one [type=submit]"), says("#one", "Check your messages"),
			visible("#inbox li b")}},
		{"a weak private code is refused", []act{offered("#one"), fill("#one [name=private]", "12345678"), click("#one [type=submit]"),
			visible("#one .error"), picture("2-weak-1280")}},
		{"the account is opened", []act{fill("#one [name=private]", private), click("#one [type=submit]"), says("#one", "One more code")}},
		{"the customer logs in", []act{offered("#one"), picture("3-code-1280"), click("#one [type=submit]"), says("#one", "Who are you?")}},
		{"the profile is stored and comes back masked", []act{
			fill("#one [name=given_name]", "Ada"), fill("#one [name=family_name]", "Lovelace"), fill("#one [name=date_of_birth]", "1990-12-10"),
			fill("#one [name=email]", "ada@example.com"), fill("#one [name=postcode]", "W1A 1AA"), fill("#one [name=city]", "London"),
			picture("4-form-1280"), click("#one [type=submit]"), says("#one", "Your profile"), says("#one", "Masked as the server sends it"), picture("5-masked-1280")}},
		{"it is shown whole for a purpose", []act{click("#one [name=reveal]"), says("#one", "Lovelace"), picture("6-whole-1280"),
			click("#one [name=hide]"), says("#one", "Masked as the server sends it")}},
		{"it is changed", []act{click("#one [name=edit]"), says("#one", "Edit your profile"), fill("#one [name=city]", "Bath"),
			click("#one [type=submit]"), says("#one", "Version 2")}},
		{"a new phone must be approved", []act{click("#two [name=enter]"), fill("#two [name=private]", private), click("#two [type=submit]"),
			says("#two", "One more code"), offered("#two"), click("#two [type=submit]"), says("#two", "Approve this phone"),
			says("#one .tabs i", "1"), picture("7-pending-1280")}},
		{"the first phone approves it", []act{click("#one [name=tab-devices]"), says("#one", "Is it you?"), picture("8-approve-1280"),
			looks("dark"), picture("8-approve-1280-dark"), looks("light"),
			until(`(document.querySelector("#one [name=number]").value = document.querySelector("#two .number").innerText).length === 3`),
			click("#one .devices [type=submit]"), says("#one", "May log in")}},
		{"it logs in and sees the same profile", []act{click("#two [name=enter]"), fill("#two [name=private]", private), click("#two [type=submit]"),
			says("#two", "One more code"), offered("#two"), click("#two [type=submit]"), says("#two", "Version 2"), picture("9-both-1280")}},
		{"a reload keeps key and session", []act{chromedp.Reload(), says("#two", "Version 2"), says("#one", "Version 2")}},
		{"a removed phone is out at once", []act{click("#one [name=tab-devices]"), click("#one [name=remove]"), says("#one", "Removed for good"),
			click("#two [name=tab-session]"), says("#two", "has wiped itself"), picture("10-removed-1280")}},
		{"and is a new one from then on", []act{click("#two [name=enter]"), fill("#two [name=private]", private), click("#two [type=submit]"),
			says("#two", "One more code"), offered("#two"), click("#two [type=submit]"), says("#two", "Approve this phone")}},
		{"the page fits a phone", []act{size(390, 844), says("#one", "Your devices"), picture("11-devices-390"), click("#one [name=tab-profile]"),
			says("#one", "Version 2"), picture("12-profile-390"), click("#one [name=tab-session]"), says("#one", "Where you are logged in"), picture("13-security-390"),
			click("[data-show=messages]"), visible("#inbox li"), picture("14-messages-390"), looks("dark"), picture("14-messages-390-dark"),
			click("[data-show=two]"), visible("#two"), picture("15-new-phone-390-dark"), looks("light"), click("[data-show=one]")}},
		{"one thing is shown, and nothing is wider than the screen", []act{
			until(`document.documentElement.scrollWidth <= 390`), until(`[...document.querySelectorAll("main > section")].filter(e => e.offsetParent).length === 1`)}},
		{"the customer logs out", []act{click("#one [name=leave]"), says("#one", "You are logged out"), picture("16-out-390")}},
	}
	for _, step := range steps {
		if err := chromedp.Do(ctx, step.do...); err != nil {
			text, _ := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body"))) // what went wrong first counts
			mu.Lock()
			defer mu.Unlock()
			t.Fatalf("%s: %v\nthe browser complains: %q\nthe page says:\n%s\n%s", step.what, err, complaints, text, s.log)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(complaints) > 0 {
		t.Errorf("the browser complains: %q", complaints)
	}
}

// TestPocketIsStrict reads what the page may do, and that it is not there outside development.
func TestPocketIsStrict(t *testing.T) {
	s := start(t, "dev", filepath.Join(t.TempDir(), "d"))
	c := s.client()
	for path, want := range map[string]string{
		"/pocket/": "text/html; charset=utf-8", "/pocket/pocket.css": "text/css; charset=utf-8", "/pocket/icon.svg": "image/svg+xml",
		"/pocket/pocket.js": "text/javascript; charset=utf-8", "/pocket/strongroom.js": "text/javascript; charset=utf-8",
	} {
		answer, err := c.Get(s.urls.App + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		policy := strings.Split(answer.Header.Get("Content-Security-Policy"), "; ")
		if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != want ||
			!slices.Contains(policy, "default-src 'none'") || !slices.Contains(policy, "script-src 'self'") || strings.Contains(policy[1], "unsafe") ||
			answer.Header.Get("X-Content-Type-Options") != "nosniff" || answer.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s %v", path, answer.Status, answer.Header)
		}
	}
	if _, page := get(t, c, s.urls.App+"/pocket/"); strings.Contains(page, "style=") || strings.Contains(page, "<style") || strings.Contains(page, "onclick") {
		t.Error("the page has something inline, which its policy forbids")
	}
	if !strings.Contains(s.out.String(), s.urls.App+"/pocket/") {
		t.Errorf("strongroom dev does not say where the sample app is:\n%s", s.out)
	}
}
