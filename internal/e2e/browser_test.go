package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// browser starts a headless Chromium that trusts the server by its pin alone, in a profile of its own. Its
// context ends after patience, or with the test.
func browser(t *testing.T, s *server) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("there is no Chromium: apt-get install chromium, or run scripts/test, which does")
	}
	pins := make([]string, len(s.urls.Pins))
	for i, pin := range s.urls.Pins {
		pins[i] = strings.TrimPrefix(pin, "sha256/")
	}
	allocator, cancel := chromedp.NewExecAllocator(t.Context(),
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("lang", "en-GB"),
		chromedp.Flag("ignore-certificate-errors-spki-list", strings.Join(pins, ",")),
	)
	t.Cleanup(cancel)
	tab, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	// The first Do starts the browser, which lives as long as its context: only what follows has a limit.
	if err := chromedp.Do(tab); err != nil {
		t.Fatalf("chromium: %v", err)
	}
	t.Cleanup(func() { _ = chromedp.Cancel(tab) }) // before its profile is removed
	ctx, cancel := context.WithTimeout(tab, 2*patience)
	t.Cleanup(cancel)
	return ctx
}

// until waits until the JavaScript expression is true.
func until(expression string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		for began := time.Now(); ; {
			ok, err := chromedp.Evaluate[bool]("!!("+expression+")")(ctx, tab)
			if err != nil || ok {
				return err
			}
			if time.Since(began) > patience/2 {
				return errors.New("this does not come true: " + expression)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// steady does it again when the page was drawn anew between finding an element and using it.
func steady(do chromedp.Action[chromedp.Void]) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		for began := time.Now(); ; {
			_, err := do(ctx, tab)
			if err == nil || !strings.Contains(err.Error(), "Could not find node") || time.Since(began) > patience/2 {
				return err
			}
		}
	})
}

// click clicks on what the selector finds, once it is to be seen.
func click(sel chromedp.CSS) chromedp.Action[chromedp.Void] {
	return steady(chromedp.Steps(chromedp.WaitVisible(sel), chromedp.Click(sel)))
}

// fill puts a text into a field.
func fill(sel chromedp.CSS, text string) chromedp.Action[chromedp.Void] {
	return steady(chromedp.SetValue(sel, text))
}

// looks sets the colour scheme, and stills what moves.
func looks(scheme string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
		return err
	})
}

// picture saves a screenshot under E2E_PICTURES, for people to look at; without it nothing happens.
func picture(name string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		dir := os.Getenv("E2E_PICTURES")
		if dir == "" {
			return nil
		}
		png, err := chromedp.FullScreenshot(100)(ctx, tab)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	})
}
