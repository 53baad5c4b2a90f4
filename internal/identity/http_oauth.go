package identity

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// The paths of the standard endpoints. What lies under OAuthPrefix takes forms of at most MaxForm bytes.
const (
	OAuthPrefix  = "/oauth2/"
	MaxForm      = 8 << 10
	FormType     = "application/x-www-form-urlencoded"
	metadataPath = "/.well-known/oauth-authorization-server"
	tokenPath    = OAuthPrefix + "token"
	revokePath   = OAuthPrefix + "revoke"
	inspectPath  = OAuthPrefix + "introspect"
)

// RegisterOAuth adds the token endpoint (RFC 6749, RFC 9449), the revocation endpoint (RFC 7009) and the
// metadata (RFC 8414). They speak as those standards say, so they are not problems and not in the OpenAPI
// document; the deeds behind them are those of the other operations.
func (i *Identity) RegisterOAuth(mux *http.ServeMux) {
	mux.HandleFunc("POST "+tokenPath, i.token)
	mux.HandleFunc("POST "+revokePath, i.revokeToken)
	mux.HandleFunc("GET "+metadataPath, i.metadata)
}

// issuer is the name of this authorization server (RFC 8414 section 2).
func (i *Identity) issuer(r *http.Request) string {
	if len(i.Origins) > 0 {
		return i.Origins[0]
	}
	return "https://" + r.Host
}

type issuerKey struct{}

// oauthError is an error in the words of RFC 6749 section 5.2.
type oauthError struct {
	status      int
	code        string
	description string
	header      http.Header
}

// oauthErrors are the words for problems.
var oauthErrors = map[string]oauthError{
	"use-dpop-nonce":         {status: http.StatusBadRequest, code: "use_dpop_nonce"},
	"invalid-dpop-proof":     {status: http.StatusBadRequest, code: "invalid_dpop_proof"},
	errInvalidRefresh.Slug(): {status: http.StatusBadRequest, code: "invalid_grant"},
	errSessionRevoked.Slug(): {status: http.StatusBadRequest, code: "invalid_grant"},
	errInvalidGrant.Slug():   {status: http.StatusBadRequest, code: "invalid_grant"},
	errInvalidScope.Slug():   {status: http.StatusBadRequest, code: "invalid_scope"},
	"too-many-proofs":        {status: http.StatusServiceUnavailable, code: "temporarily_unavailable"},
	"database-unavailable":   {status: http.StatusServiceUnavailable, code: "temporarily_unavailable"},
	"audit-unavailable":      {status: http.StatusServiceUnavailable, code: "temporarily_unavailable"},
	"not-permitted":          {status: http.StatusForbidden, code: "access_denied"},
	"certificate-required":   {status: http.StatusUnauthorized, code: "invalid_client"},
	"unsupported-grant-type": {status: http.StatusBadRequest, code: "unsupported_grant_type"},
	"invalid-client":         {status: http.StatusBadRequest, code: "invalid_client"},
	"client-authentication":  {status: http.StatusUnauthorized, code: "invalid_client", header: http.Header{challengeHeader: {`Basic realm="strongroom"`}}},
	"invalid-form":           {status: http.StatusBadRequest, code: "invalid_request"},
}

// refuseOAuth answers with an error. What is not the caller's fault goes to the log.
func (i *Identity) refuseOAuth(w http.ResponseWriter, r *http.Request, err error) {
	e := oauthError{status: http.StatusInternalServerError, code: "server_error", description: "Something went wrong on our side."}
	if p := problem.Of(err); p != nil {
		if known, ok := oauthErrors[p.Slug()]; ok {
			e = known
		} else if p.Kind() < problem.Internal {
			e = oauthError{status: http.StatusBadRequest, code: "invalid_request"}
		}
		if p.Kind() < problem.Internal || e.code != "server_error" {
			e.description = p.Detail()
		}
		if wait := p.GetHeaders().Get("Retry-After"); wait != "" {
			w.Header().Set("Retry-After", wait)
		}
	}
	if e.status >= http.StatusInternalServerError {
		by := actor.From(r.Context())
		i.Log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.String("request", by.Request), slog.String("route", r.Pattern), slog.Any("error", err))
	}
	for name, values := range e.header {
		w.Header()[name] = values
	}
	answerOAuth(w, e.status, map[string]string{"error": e.code, "error_description": e.description})
}

// answerOAuth answers with JSON that no cache keeps (RFC 6749 section 5.1).
func answerOAuth(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", noStore)
	h.Set("Pragma", "no-cache")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // whoever asked has gone
}

func invalidForm(text string) error { return problem.New(problem.Invalid, "invalid-form", "%s", text) }

// form reads the parameters of a request. None may come twice, and those without a value count as absent
// (RFC 6749 section 3.2). Secrets belong into the body, so a query is refused.
func form(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != FormType {
		return nil, invalidForm("Send the parameters as " + FormType + ".")
	}
	if r.URL.RawQuery != "" {
		return nil, invalidForm("Send the parameters in the body, not in the address.")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxForm))
	if err != nil {
		return nil, invalidForm("The body is too long or ended early.")
	}
	values, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, invalidForm("The body is not a form.")
	}
	for name, all := range values {
		if len(all) > 1 {
			return nil, invalidForm("A parameter came twice.")
		}
		if all[0] == "" {
			delete(values, name)
		}
	}
	return values, nil
}

// publicClient checks the client of a request. Ours have no secret, and so must not pretend to have one.
func publicClient(r *http.Request, values url.Values, needed bool) error {
	if len(r.Header["Authorization"]) > 0 || values.Has("client_secret") || values.Has("client_assertion") {
		return problem.New(problem.Unauthenticated, "client-authentication", "The app is a public client: send client_id alone.")
	}
	switch client := values.Get("client_id"); {
	case client == "" && needed:
		return invalidForm("The parameter client_id is missing.")
	case client != "" && client != OAuthClient:
		return errInvalidClient
	}
	return nil
}

func (i *Identity) token(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("DPoP-Nonce", i.Nonce())
	t, err := i.grant(w, r)
	if err != nil {
		i.refuseOAuth(w, r, err)
		return
	}
	answerOAuth(w, http.StatusOK, tokensAnswer(t).Body)
}

// grant is one request to the token endpoint.
func (i *Identity) grant(w http.ResponseWriter, r *http.Request) (Tokens, error) {
	values, err := form(w, r)
	if err != nil {
		return Tokens{}, err
	}
	need := func(names ...string) error {
		for _, name := range names {
			if !values.Has(name) {
				return invalidForm("The parameter " + name + " is missing.")
			}
		}
		return nil
	}
	grantType := values.Get("grant_type")
	if err := need("grant_type"); err != nil {
		return Tokens{}, err
	}
	if !knownGrant(grantType) {
		return Tokens{}, problem.New(problem.Invalid, "unsupported-grant-type", "The grants are authorization_code and refresh_token.")
	}
	if err := publicClient(r, values, grantType == "authorization_code"); err != nil {
		return Tokens{}, err
	}
	by, err := i.Device(r.Context(), r)
	if err != nil {
		return Tokens{}, err
	}
	if grantType == "authorization_code" {
		if err := need("code", "code_verifier"); err != nil {
			return Tokens{}, err
		}
		return i.ExchangeCode(r.Context(), by, secret.FromString(values.Get("code")), secret.FromString(values.Get("code_verifier")),
			values.Get("client_id"), values.Get("redirect_uri"))
	}
	if err := need("refresh_token"); err != nil {
		return Tokens{}, err
	}
	// A scope in a refresh can only be what the session has (RFC 6749 section 6), and the answer says what that is.
	if _, err := readScope(values.Get("scope")); err != nil {
		return Tokens{}, err
	}
	return i.refreshWithin(r.Context(), by, secret.FromString(values.Get("refresh_token")), values.Get("scope"))
}

func (i *Identity) revokeToken(w http.ResponseWriter, r *http.Request) {
	values, err := form(w, r)
	if err == nil {
		err = publicClient(r, values, true)
	}
	if err == nil && !values.Has("token") {
		err = invalidForm("The parameter token is missing.")
	}
	if err == nil {
		err = i.RevokeToken(r.Context(), actor.From(r.Context()), secret.FromString(values.Get("token")))
	}
	if err != nil {
		i.refuseOAuth(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", noStore)
	w.WriteHeader(http.StatusOK)
}

// metadata is RFC 8414. There is no authorization_endpoint: codes come from the operation authorize-login.
func (i *Identity) metadata(w http.ResponseWriter, r *http.Request) {
	issuer := i.issuer(r)
	none := []string{"none"}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // whoever asked has gone
		"issuer":                                         issuer,
		"token_endpoint":                                 issuer + tokenPath,
		"revocation_endpoint":                            issuer + revokePath,
		"grant_types_supported":                          grantTypes,
		"response_types_supported":                       []string{"code"},
		"scopes_supported":                               scopeOrder,
		"acr_values_supported":                           []string{ACR},
		"code_challenge_methods_supported":               []string{"S256"},
		"token_endpoint_auth_methods_supported":          none,
		"revocation_endpoint_auth_methods_supported":     none,
		"dpop_signing_alg_values_supported":              []string{"ES256"},
		"authorization_response_iss_parameter_supported": true,
	})
}

type authorizeLoginInput struct {
	Login string `path:"login" maxLength:"64" doc:"As the start of the login named it."`
	Body  struct {
		Code          oneTimeCode `json:"code"`
		DeviceName    string      `json:"device_name,omitempty" maxLength:"64" doc:"What the customer calls this device, should it be new."`
		ResponseType  string      `json:"response_type" enum:"code"`
		ClientID      string      `json:"client_id" maxLength:"64" example:"app"`
		RedirectURI   string      `json:"redirect_uri,omitempty" maxLength:"1024" doc:"Only compared with that of the token request: nobody is redirected."`
		Scope         string      `json:"scope,omitempty" maxLength:"64" example:"read payment"`
		State         string      `json:"state,omitempty" maxLength:"512" doc:"Comes back as it is."`
		CodeChallenge string      `json:"code_challenge" maxLength:"43" doc:"RFC 7636."`
		Method        string      `json:"code_challenge_method" enum:"S256"`
	}
}

type authorizeLoginOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Code      string `json:"code" doc:"For the token endpoint, once."`
		Issuer    string `json:"iss" doc:"RFC 9207."`
		State     string `json:"state,omitempty"`
		ExpiresIn int    `json:"expires_in" example:"60"`
	}
}

func (i *Identity) registerAuthorize(api huma.API, operation func(name, method, path, summary string, security []map[string][]string, status int, errs ...int) huma.Operation) {
	device := []map[string][]string{{"device": {}}}
	op := operation("authorize-login", http.MethodPost, "/v1/logins/{login}/authorize",
		"Complete a login with an authorization code for a standard OAuth client", device, http.StatusOK,
		http.StatusBadRequest, http.StatusForbidden, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity)
	op.Middlewares = append(op.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		next(huma.WithValue(ctx, issuerKey{}, i.issuer(&http.Request{Host: ctx.Host()})))
	})
	huma.Register(api, op, i.authorizeLogin)
}

func (i *Identity) authorizeLogin(ctx context.Context, in *authorizeLoginInput) (*authorizeLoginOutput, error) {
	code, err := i.AuthorizeLogin(ctx, actor.From(ctx), in.Login, in.Body.Code.Value, in.Body.DeviceName,
		AuthorizationRequest{Client: in.Body.ClientID, Redirect: in.Body.RedirectURI, Scope: in.Body.Scope, Challenge: in.Body.CodeChallenge})
	if err != nil {
		return nil, err
	}
	out := &authorizeLoginOutput{CacheControl: noStore}
	out.Body.Code, out.Body.State, out.Body.ExpiresIn = string(code.Reveal()), in.Body.State, int(CodeGrantLifetime/time.Second)
	out.Body.Issuer, _ = ctx.Value(issuerKey{}).(string)
	return out, nil
}

// RegisterOAuth adds token introspection (RFC 7662) to the service listener.
func (s *Services) RegisterOAuth(mux *http.ServeMux) {
	mux.HandleFunc("POST "+inspectPath, s.introspect)
}

// introspected is RFC 7662 section 2.2, with cnf of RFC 9449 section 6.2.
type introspected struct {
	Active    bool              `json:"active"`
	Scope     string            `json:"scope,omitempty"`
	ClientID  string            `json:"client_id,omitempty"`
	TokenType string            `json:"token_type,omitempty"`
	Expires   int64             `json:"exp,omitempty"`
	Subject   string            `json:"sub,omitempty"`
	Session   string            `json:"sid,omitempty"`
	ACR       string            `json:"acr,omitempty"`
	AuthTime  int64             `json:"auth_time,omitempty"`
	Confirm   map[string]string `json:"cnf,omitempty"`
}

func (s *Services) introspect(w http.ResponseWriter, r *http.Request) {
	by := actor.From(r.Context())
	if by.Kind != actor.Service || by.ID == "" {
		s.refuseOAuth(w, r, problem.New(problem.Unauthenticated, "certificate-required", "Call this listener with a client certificate that names your service."))
		return
	}
	values, err := form(w, r)
	if err == nil && !values.Has("token") {
		err = invalidForm("The parameter token is missing.")
	}
	var t Introspection
	if err == nil {
		t, err = s.Introspect(r.Context(), by, r.Header.Get("Strongroom-Purpose"), secret.FromString(values.Get("token")))
	}
	if err != nil {
		s.refuseOAuth(w, r, err)
		return
	}
	if !t.Active {
		answerOAuth(w, http.StatusOK, introspected{})
		return
	}
	out := introspected{Active: true, Scope: t.Scope, ClientID: OAuthClient, TokenType: "DPoP", Expires: t.Expires.Unix(), Subject: string(t.Customer),
		Session: t.Session, ACR: t.ACR, AuthTime: t.LoggedIn.Unix(), Confirm: map[string]string{"jkt": t.Thumbprint}}
	if t.Refresh {
		out.TokenType = ""
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	answerOAuth(w, http.StatusOK, out)
}
