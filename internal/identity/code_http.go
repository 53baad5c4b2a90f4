package identity

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
)

type changeCodeInput struct {
	Body struct {
		Current privateCode `json:"current_code"`
		New     privateCode `json:"new_code"`
	}
}

type startResetInput struct {
	Body struct {
		Phone string `json:"phone" maxLength:"40" minLength:"1" doc:"The number that was registered." example:"+447700900123"`
	}
}

type startResetOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Reset     string `json:"reset" doc:"Names this step when it is completed." example:"rst_01jd8xk2m3n4p5q6r7s8t9v0wx"`
		ExpiresIn int    `json:"expires_in" doc:"Seconds for which the one-time code is good." example:"300"`
	}
}

type completeResetInput struct {
	Reset string `path:"reset" maxLength:"64" doc:"As the start of the step named it."`
	Body  struct {
		Code        oneTimeCode `json:"code"`
		PrivateCode privateCode `json:"private_code"`
	}
}

type completeResetOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Status   string     `json:"status" enum:"held,changed" doc:"held: start and complete again, from usable_at on."`
		UsableAt *time.Time `json:"usable_at,omitempty" doc:"When a held reset may be completed."`
	}
}

// registerCodes adds the operations on private codes.
func (i *Identity) registerCodes(api huma.API) {
	device := []map[string][]string{{"device": {}}}
	read, write := []map[string][]string{{"session": {ScopeRead}}}, []map[string][]string{{"session": {ScopeWrite}}}
	operation := func(name, method, path, summary string, security []map[string][]string, status int, errs ...int) huma.Operation {
		if security[0]["session"] != nil {
			errs = append(errs, http.StatusForbidden) // without the scope
		}
		return huma.Operation{
			OperationID: name, Method: method, Path: path, Summary: summary, Tags: []string{"Private code"},
			Security: security, DefaultStatus: status, MaxBodyBytes: maxBody, BodyReadTimeout: 10 * time.Second,
			RejectUnknownQueryParameters: true,
			Errors:                       append([]int{http.StatusUnauthorized, http.StatusServiceUnavailable}, errs...),
		}
	}
	const bad, over, weak, many = http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusTooManyRequests
	huma.Register(api, operation("change-private-code", http.MethodPost, "/v1/private-code",
		"Change the private code: all other sessions end", write, http.StatusNoContent, bad, over, weak, many), i.changeCode)
	huma.Register(api, operation("start-private-code-reset", http.MethodPost, "/v1/private-code/resets",
		"Forgotten private code: sends a one-time code if the device is an authorised one", device, http.StatusAccepted, bad, over, weak, many), i.startReset)
	huma.Register(api, operation("complete-private-code-reset", http.MethodPost, "/v1/private-code/resets/{reset}/complete",
		"Begin the hold with the one-time code, or choose the new private code once the hold is over", device, http.StatusOK, bad, over, weak), i.completeReset)
	huma.Register(api, operation("cancel-private-code-reset", http.MethodDelete, "/v1/private-code/resets",
		"End the hold: the private code stays", read, http.StatusNoContent), i.cancelReset)
}

func (i *Identity) changeCode(ctx context.Context, in *changeCodeInput) (*struct{}, error) {
	return nil, i.ChangeCode(ctx, actor.From(ctx), in.Body.Current.Value, in.Body.New.Value)
}

func (i *Identity) startReset(ctx context.Context, in *startResetInput) (*startResetOutput, error) {
	s, err := i.StartReset(ctx, actor.From(ctx), in.Body.Phone)
	if err != nil {
		return nil, err
	}
	out := &startResetOutput{CacheControl: noStore}
	out.Body.Reset, out.Body.ExpiresIn = s.ID, seconds(s.Expires)
	return out, nil
}

func (i *Identity) completeReset(ctx context.Context, in *completeResetInput) (*completeResetOutput, error) {
	r, err := i.CompleteReset(ctx, actor.From(ctx), in.Reset, in.Body.Code.Value, in.Body.PrivateCode.Value)
	if err != nil {
		return nil, err
	}
	out := &completeResetOutput{CacheControl: noStore}
	out.Body.Status = "changed"
	if !r.Changed {
		out.Body.Status, out.Body.UsableAt = "held", &r.Ready
	}
	return out, nil
}

func (i *Identity) cancelReset(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, i.CancelReset(ctx, actor.From(ctx))
}
