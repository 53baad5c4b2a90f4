package client

import (
	"context"
	"net/http"
)

// ReportConcern tells the operator's security staff of a weakness, and returns the reference to quote when
// writing again. Contact is where an answer may go, and may be empty. The report is bound to no device and no
// session: the server is not told whose app it came from.
func (c *Client) ReportConcern(ctx context.Context, text, contact string) (reference string, err error) {
	body := struct {
		Text    string `json:"text"`
		Contact string `json:"contact,omitempty"`
	}{text, contact}
	var a struct {
		Reference string `json:"reference"`
	}
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/v1/security-reports", body: body, proof: byNobody}, &a)
	return a.Reference, err
}
