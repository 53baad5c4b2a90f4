package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/policy"
	"strongroom/internal/secret"
)

const verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636 appendix B

func s256(v string) string {
	sum := sha256.Sum256([]byte(v))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// authorise logs in and returns an authorization code.
func (h *house) authorise(to, key, verifier, scope string) secret.Value {
	h.t.Helper()
	s, err := h.StartLogin(context.Background(), from(key), to, value(goodCode))
	if err != nil {
		h.t.Fatal(err)
	}
	code, err := h.AuthorizeLogin(context.Background(), from(key), s.ID, value(h.code(to)), "", AuthorizationRequest{
		Client: OAuthClient, Scope: scope, Challenge: s256(verifier), Redirect: "com.example.app:/done"})
	if err != nil {
		h.t.Fatal(err)
	}
	return code
}

func (c *phoneClient) form(path string, values url.Values, change func(*http.Request)) answer {
	c.t.Helper()
	r, err := http.NewRequest("POST", c.server.URL+path, strings.NewReader(values.Encode()))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Content-Type", FormType)
	r.Header.Set("DPoP", c.proof("POST", path, ""))
	if change != nil {
		change(r)
	}
	return c.send(r)
}

func TestRFC_7636_AppendixB(t *testing.T) {
	if got := s256(verifier); got != "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM" {
		t.Error(got)
	}
}

// The token endpoint, to the letter of RFC 6749 sections 4.1.3, 5 and 6, RFC 7636 section 4.6 and RFC 9449
// sections 5 and 8.
func TestRFC_6749_5_TokenEndpoint(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		ada, eve := h.newPhone(s), h.newPhone(s)
		h.register(number(1), ada.jkt)
		exchange := func(code secret.Value, change func(url.Values)) url.Values {
			v := url.Values{"grant_type": {"authorization_code"}, "code": {string(code.Reveal())}, "code_verifier": {verifier},
				"client_id": {OAuthClient}, "redirect_uri": {"com.example.app:/done"}}
			if change != nil {
				change(v)
			}
			return v
		}
		code := h.authorise(number(1), ada.jkt, verifier, "read payment")

		a := ada.form(tokenPath, exchange(code, nil), nil)
		if a.status != 400 || a.text("error") != "use_dpop_nonce" || a.header.Get("DPoP-Nonce") == "" {
			t.Fatalf("RFC 9449 8: %d %s", a.status, a.raw)
		}
		eve.nonce = ada.nonce
		refusals := []struct {
			name   string
			by     *phoneClient
			values url.Values
			change func(*http.Request)
			status int
			err    string
		}{
			{"another device", eve, exchange(code, nil), nil, 400, "invalid_grant"},
			{"another verifier", ada, exchange(code, func(v url.Values) { v.Set("code_verifier", strings.Repeat("a", 43)) }), nil, 400, "invalid_grant"},
			{"no verifier", ada, exchange(code, func(v url.Values) { v.Del("code_verifier") }), nil, 400, "invalid_request"},
			{"another redirect", ada, exchange(code, func(v url.Values) { v.Set("redirect_uri", "https://evil.example") }), nil, 400, "invalid_grant"},
			{"no redirect", ada, exchange(code, func(v url.Values) { v.Del("redirect_uri") }), nil, 400, "invalid_grant"},
			{"another client", ada, exchange(code, func(v url.Values) { v.Set("client_id", "x") }), nil, 400, "invalid_client"},
			{"no client", ada, exchange(code, func(v url.Values) { v.Del("client_id") }), nil, 400, "invalid_request"},
			{"another grant", ada, exchange(code, func(v url.Values) { v.Set("grant_type", "password") }), nil, 400, "unsupported_grant_type"},
			{"no grant", ada, exchange(code, func(v url.Values) { v.Del("grant_type") }), nil, 400, "invalid_request"},
			{"a parameter twice", ada, exchange(code, func(v url.Values) { v.Add("code", "x") }), nil, 400, "invalid_request"},
			{"an empty code", ada, exchange(code, func(v url.Values) { v.Set("code", "") }), nil, 400, "invalid_request"},
			{"a made-up code", ada, exchange(value("sac_"+strings.Repeat("A", 43)), nil), nil, 400, "invalid_grant"},
			{"no proof", ada, exchange(code, nil), func(r *http.Request) { r.Header.Del("DPoP") }, 400, "invalid_dpop_proof"},
			{"in the address", ada, exchange(code, nil), func(r *http.Request) { r.URL.RawQuery = "code=x" }, 400, "invalid_request"},
			{"as JSON", ada, exchange(code, nil), func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }, 400, "invalid_request"},
			{"with a password", ada, exchange(code, nil), func(r *http.Request) { r.SetBasicAuth("app", "x") }, 401, "invalid_client"},
			{"a made-up refresh token", ada, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"x"}}, nil, 400, "invalid_grant"},
			{"no refresh token", ada, url.Values{"grant_type": {"refresh_token"}}, nil, 400, "invalid_request"},
			{"too long", ada, url.Values{"grant_type": {strings.Repeat("x", MaxForm)}}, nil, 400, "invalid_request"},
		}
		for _, row := range refusals {
			a := row.by.form(tokenPath, row.values, row.change)
			if a.status != row.status || a.text("error") != row.err || a.text("error_description") == "" || a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %d %s", row.name, a.status, a.raw)
			}
			if row.status == 401 && a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: no WWW-Authenticate", row.name)
			}
		}

		a = ada.form(tokenPath, exchange(code, nil), nil)
		if a.status != 200 || a.text("token_type") != "DPoP" || a.text("scope") != "read payment" || a.body["expires_in"] != 300.0 ||
			a.header.Get("Cache-Control") != "no-store" || a.header.Get("Pragma") != "no-cache" || a.header.Get("Content-Type") != "application/json" {
			t.Fatalf("%d %s %v", a.status, a.raw, a.header)
		}
		ada.access = a.text("access_token")
		if a := ada.do("GET", "/v1/session", nil); a.status != 200 {
			t.Errorf("%d %s", a.status, a.raw)
		}
		refresh := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.text("refresh_token")}, "client_id": {OAuthClient}}
		refresh.Set("scope", "write read")
		ada.access = ""
		if a := ada.form(tokenPath, refresh, nil); a.status != 200 {
			t.Errorf("payment includes write: %d %s", a.status, a.raw)
		}
		read := h.loginFor(number(1), ada.jkt, "read")
		a = ada.form(tokenPath, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {string(read.Refresh.Reveal())}, "scope": {"payment"}}, nil)
		if a.status != 400 || a.text("error") != "invalid_scope" {
			t.Errorf("RFC 6749 6: %d %s", a.status, a.raw)
		}

		// RFC 6749 4.1.2: a code that is used twice ends what it gave.
		if a := ada.form(tokenPath, exchange(code, nil), nil); a.status != 400 || a.text("error") != "invalid_grant" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		if got := h.lastEvent(ActionSessionRevoke); got != "granted code-reused" {
			t.Errorf("event %q", got)
		}
		if a := ada.form(tokenPath, refresh, nil); a.status != 400 || a.text("error") != "invalid_grant" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		late := h.authorise(number(1), ada.jkt, verifier, "")
		h.clk.Advance(CodeGrantLifetime)
		if a := ada.form(tokenPath, exchange(late, nil), nil); a.text("error") != "invalid_grant" {
			t.Errorf("late: %d %s", a.status, a.raw)
		}
	})
}

func TestRFC_8414_Metadata(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		c := h.newPhone(s)
		r, err := http.NewRequest("GET", s.URL+"/.well-known/oauth-authorization-server", nil)
		if err != nil {
			t.Fatal(err)
		}
		a := c.send(r)
		issuer := "https://" + strings.TrimPrefix(s.URL, "http://")
		if a.status != 200 || a.text("issuer") != issuer || a.text("token_endpoint") != issuer+"/oauth2/token" || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		for _, name := range []string{"response_types_supported", "grant_types_supported", "code_challenge_methods_supported", "dpop_signing_alg_values_supported"} {
			if all, _ := a.body[name].([]any); len(all) == 0 {
				t.Errorf("%s is missing", name)
			}
		}
	})
}

func TestRFC_7009_Revocation(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		ada := h.newPhone(s)
		h.register(number(1), ada.jkt)
		for _, which := range []string{"access", "refresh"} {
			tokens := h.mustLogin(number(1), ada.jkt)
			token := tokens.Access
			if which == "refresh" {
				token = tokens.Refresh
			}
			for n := range 2 { // a token that is not good is answered alike
				a := ada.form(revokePath, url.Values{"token": {string(token.Reveal())}, "client_id": {OAuthClient}}, nil)
				if a.status != 200 || a.raw != "" {
					t.Errorf("%s, time %d: %d %s", which, n, a.status, a.raw)
				}
			}
			_, err := h.Refresh(t.Context(), from(ada.jkt), tokens.Refresh)
			want(t, err, "session-revoked")
		}
		if a := ada.form(revokePath, url.Values{"client_id": {OAuthClient}}, nil); a.status != 400 || a.text("error") != "invalid_request" {
			t.Errorf("%d %s", a.status, a.raw)
		}
	})
}

// services returns the room for services under a policy, and a way to call its forms.
func (h *house) services(policies string) (*Services, func(name, purpose, path string, values url.Values) answer) {
	h.t.Helper()
	dir := h.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "test.cedar"), []byte(policies), 0o600); err != nil {
		h.t.Fatal(err)
	}
	set, err := policy.Load(dir)
	if err != nil {
		h.t.Fatal(err)
	}
	s := h.ForServices(set)
	mux := http.NewServeMux()
	s.RegisterOAuth(mux)
	return s, func(name, purpose, path string, values url.Values) answer {
		r := httptest.NewRequest("POST", path, strings.NewReader(values.Encode()))
		r.Header.Set("Content-Type", FormType)
		r.Header.Set("Strongroom-Purpose", purpose)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r.WithContext(actor.With(r.Context(), serviceActor(name))))
		a := answer{status: w.Code, header: w.Header(), raw: w.Body.String()}
		if err := json.NewDecoder(bytes.NewReader(w.Body.Bytes())).Decode(&a.body); err != nil {
			h.t.Fatal(err)
		}
		return a
	}
}

func serviceActor(name string) actor.Actor {
	return actor.Actor{Kind: actor.Service, ID: name, Address: netip.MustParseAddr("192.0.2.9"), Request: "req"}
}

func TestRFC_7662_Introspection(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		_, call := h.services(`permit (principal == Service::"gateway", action == Action::"session.introspect", resource);`)
		h.register(number(1), "owner")
		tokens := h.loginFor(number(1), "owner", "read payment")
		ask := func(name, purpose string, token secret.Value) answer {
			return call(name, purpose, inspectPath, url.Values{"token": {string(token.Reveal())}, "token_type_hint": {"access_token"}})
		}
		a := ask("gateway", "authorise-request", tokens.Access)
		cnf, _ := a.body["cnf"].(map[string]any)
		if a.status != 200 || a.body["active"] != true || a.text("sub") != string(tokens.Customer) || a.text("token_type") != "DPoP" ||
			a.text("scope") != "read write payment" || cnf["jkt"] != "owner" || a.text("acr") != ACR || a.text("sid") != tokens.Session {
			t.Errorf("%d %s", a.status, a.raw)
		}
		if got := h.lastEvent(ActionSessionIntrospect); got != "granted purpose:authorise-request" {
			t.Errorf("event %q", got)
		}
		if a := ask("other", "authorise-request", tokens.Access); a.status != 403 || a.text("error") != "access_denied" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		if a := ask("gateway", "", tokens.Access); a.status != 400 || a.text("error") != "invalid_request" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		dead := func(name string, token secret.Value) {
			t.Helper()
			if a := ask("gateway", "check", token); strings.TrimSpace(a.raw) != `{"active":false}` {
				t.Errorf("%s: %s", name, a.raw)
			}
		}
		dead("made up", value("sat_"+strings.Repeat("A", 43)))
		dead("junk", value("x"))
		h.clk.Advance(5 * time.Minute)
		dead("expired", tokens.Access)
		fresh := h.mustLogin(number(1), "owner")
		want(t, h.Logout(t.Context(), h.acting(fresh, "owner")), "")
		dead("revoked", fresh.Access)
		dead("revoked", fresh.Refresh)
	})
}

// FuzzForm: whatever comes as a form is refused in the words of RFC 6749, or has each parameter once.
func FuzzForm(f *testing.F) {
	for _, seed := range []string{"grant_type=refresh_token&refresh_token=srt_x", "a=1&a=2", "a=%zz", "a;b", "=", "%00=%00", strings.Repeat("a", MaxForm+1)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/oauth2/token", strings.NewReader(body))
		r.Header.Set("Content-Type", FormType)
		values, err := form(httptest.NewRecorder(), r)
		if (err == nil) == (values == nil) || err == nil && len(body) > MaxForm {
			t.Fatalf("%v %v", values, err)
		}
		for name, all := range values {
			if len(all) != 1 || all[0] == "" {
				t.Fatalf("%q is %q", name, all)
			}
		}
	})
}
