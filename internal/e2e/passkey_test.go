package e2e

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
)

// startForPasskeys starts a server that knows the origin of its page, for which its port must be known before.
func startForPasskeys(t *testing.T) (s *server, origin string) {
	t.Helper()
	var err error
	for range 3 { // somebody else may be faster at the port
		free, listen := net.Listen("tcp", "127.0.0.1:0")
		if listen != nil {
			t.Fatal(listen)
		}
		port := free.Addr().(*net.TCPAddr).Port
		free.Close()
		origin = fmt.Sprintf("https://localhost:%d", port)
		if s, err = tryStart(t, "dev", t.TempDir(), []string{"STRONGROOM_DEVICES_PASSKEY_ORIGINS=" + origin}, "--app-addr", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return s, origin
		}
	}
	t.Fatal(err)
	return nil, ""
}

// TestPasskeyInChromium makes a passkey and logs in with it in the sample app, with Chromium's own WebAuthn and
// an authenticator of its developer tools, and sees one refused that does not sign, one that did not look at its
// owner, and a good one on a phone that is not approved.
func TestPasskeyInChromium(t *testing.T) {
	s, origin := startForPasskeys(t)
	ctx := browser(t, s)
	const private = "lighthouse harbour 41"
	type act = chromedp.Action[chromedp.Void]
	says := func(sel, text string) act {
		return until(fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", sel, text))
	}
	offered := func(phone string) act {
		return chromedp.Steps(click(chromedp.CSS(phone+" button.suggest:not([hidden])")), click(chromedp.CSS(phone+" [type=submit]")))
	}
	byPasskey := func(phone string) act {
		return chromedp.Steps(click(chromedp.CSS(phone+" [name=enter]")), fill(chromedp.CSS(phone+" [name=private]"), private), click(chromedp.CSS(phone+" [name=passkey]")))
	}
	logout := chromedp.Steps(click("#one [name=tab-session]"), click("#one [name=leave]"), says("#one", "You are logged out"))
	var authenticator webauthn.AuthenticatorID
	withAuthenticator := chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		if _, err := cdp.Call(ctx, tab, webauthn.Enable, webauthn.EnableParams{}); err != nil {
			return err
		}
		made, err := cdp.Call(ctx, tab, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
			Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
			HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}})
		authenticator = made.AuthenticatorID
		return err
	})
	signsNonsense := func(is bool) act {
		return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
			_, err := cdp.Call(ctx, tab, webauthn.SetResponseOverrideBits, webauthn.SetResponseOverrideBitsParams{AuthenticatorID: authenticator, IsBogusSignature: &is})
			return err
		})
	}
	looksAway := func(is bool) act {
		return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
			_, err := cdp.Call(ctx, tab, webauthn.SetResponseOverrideBits, webauthn.SetResponseOverrideBitsParams{AuthenticatorID: authenticator, IsBadUV: &is})
			return err
		})
	}
	steps := []struct {
		what string
		do   []act
	}{
		{"the customer registers and logs in by SMS", []act{withAuthenticator, chromedp.EmulateViewport(1280, 900), looks("light"), chromedp.Navigate(origin + "/pocket/"),
			click("#one [name=join]"), click("#one [type=submit]"), says("#one", "Check your messages"), fill("#one [name=private]", private), offered("#one"),
			says("#one", "One more code"), offered("#one"), says("#one", "Who are you?")}},
		{"a passkey is made", []act{click("#one [name=tab-session]"), says("#one", "Whoever has your SIM"), click("#one [name=add-passkey]"),
			says("#one .entries ~ .entries", "Passkey"), picture("20-passkey-1280"),
			chromedp.EmulateViewport(390, 844), picture("20-passkey-390"), chromedp.EmulateViewport(1280, 900)}},
		{"it opens the account, without an SMS", []act{logout, byPasskey("#one"), says("#one", "Who are you?")}},
		{"a wrong signature opens nothing", []act{logout, signsNonsense(true), byPasskey("#one"), says("#one .error:not([hidden])", "not right"), picture("21-refused-1280"), signsNonsense(false)}},
		{"nor does one without a look at its owner", []act{looksAway(true), click("#one [name=passkey]"), says("#one .error:not([hidden])", "not right"), looksAway(false)}},
		{"and the right one does again", []act{click("#one [name=passkey]"), says("#one", "Who are you?")}},
		{"on another phone it is not enough", []act{byPasskey("#two"), says("#two", "Approve this phone")}},
	}
	for _, step := range steps {
		if err := chromedp.Do(ctx, step.do...); err != nil {
			text, _ := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body"))) // what went wrong first counts
			t.Fatalf("%s: %v\nthe page says:\n%s\n%s", step.what, err, text, s.log)
		}
	}
}
