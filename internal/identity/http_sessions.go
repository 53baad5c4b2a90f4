package identity

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
)

// SessionView is one of the customer's sessions in an answer.
type SessionView struct {
	Session       string    `json:"session"`
	Device        string    `json:"device"`
	DeviceName    string    `json:"device_name"`
	Address       string    `json:"address,omitempty" doc:"Where the login came from, if that is known." example:"192.0.2.1"`
	Scope         string    `json:"scope" doc:"What the session may do now."`
	LoggedInAt    time.Time `json:"logged_in_at"`
	LastUsedAt    time.Time `json:"last_used_at" doc:"To the minute."`
	IdleExpiresAt time.Time `json:"idle_expires_at"`
	ExpiresAt     time.Time `json:"expires_at"`
	Current       bool      `json:"current" doc:"Whether it is the session that asks."`
}

type sessionsOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Sessions []SessionView `json:"sessions" nullable:"false"`
	}
}

type sessionInput struct {
	Session string `path:"session" maxLength:"64" doc:"As the list of sessions names it."`
}

type revokedOutput struct {
	Body struct {
		Revoked int `json:"revoked" doc:"How many sessions were ended."`
	}
}

// registerSessions adds the operations on all of a customer's sessions. To end one takes no more than to
// read: it can only be to the good.
func (i *Identity) registerSessions(api huma.API, operation func(name, method, path, summary string, security []map[string][]string, status int, errs ...int) huma.Operation) {
	read := []map[string][]string{{"session": {ScopeRead}}}
	huma.Register(api, operation("list-sessions", http.MethodGet, "/v1/sessions",
		"List the customer's sessions", read, http.StatusOK, http.StatusForbidden), i.listSessions)
	huma.Register(api, operation("revoke-session", http.MethodDelete, "/v1/sessions/{session}",
		"End one of the customer's sessions", read, http.StatusNoContent, http.StatusForbidden, http.StatusNotFound), i.revokeOne)
	huma.Register(api, operation("revoke-other-sessions", http.MethodPost, "/v1/sessions/revoke-others",
		"End all of the customer's sessions but this one", read, http.StatusOK, http.StatusForbidden), i.revokeOthers)
	i.registerPayments(api, operation)
	i.registerAuthorize(api, operation)
}

func (i *Identity) listSessions(ctx context.Context, _ *struct{}) (*sessionsOutput, error) {
	all, err := i.Sessions(ctx, actor.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &sessionsOutput{CacheControl: noStore}
	out.Body.Sessions = make([]SessionView, len(all))
	for n, s := range all {
		out.Body.Sessions[n] = SessionView{Session: s.Session, Device: s.Device, DeviceName: s.DeviceName, Address: s.Address, Scope: s.Scope,
			LoggedInAt: s.LoggedIn, LastUsedAt: s.LastUsed, IdleExpiresAt: s.IdleExpires, ExpiresAt: s.Expires, Current: s.Current}
	}
	return out, nil
}

func (i *Identity) revokeOne(ctx context.Context, in *sessionInput) (*struct{}, error) {
	return nil, i.RevokeSession(ctx, actor.From(ctx), in.Session)
}

func (i *Identity) revokeOthers(ctx context.Context, _ *struct{}) (*revokedOutput, error) {
	n, err := i.RevokeOtherSessions(ctx, actor.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &revokedOutput{}
	out.Body.Revoked = n
	return out, nil
}
