package edge

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"
)

// An exception for bodies is for its method and its paths alone, however the path is written.
func TestBodies(t *testing.T) {
	l := Listener{Name: "app", Mode: Public, Limits: Limits{Body: 100}.withDefaults(Public), ContentTypes: []string{"application/json"},
		Bodies: []Body{{Method: "PUT", Prefix: "/v1/blobs/", Limit: 1000, ContentTypes: []string{"application/octet-stream"}}}}
	d := &door{Listener: l}
	for _, row := range []struct {
		name, method, path, kind string
		length                   int
		unannounced              bool
		want                     string // the problem's slug, or what reading says
	}{
		{name: "large", method: "PUT", path: "/v1/blobs/profile/passport", kind: "application/octet-stream", length: 1000},
		{name: "too large", method: "PUT", path: "/v1/blobs/profile/passport", kind: "application/octet-stream", length: 1001, want: "body-too-large"},
		{name: "too large, unannounced", method: "PUT", path: "/v1/blobs/profile/passport", kind: "application/octet-stream", length: 1001,
			unannounced: true, want: "too large"},
		{name: "JSON", method: "PUT", path: "/v1/blobs/profile/passport", kind: "application/json", length: 10, want: "unsupported-media-type"},
		{name: "other method", method: "POST", path: "/v1/blobs/profile/passport", kind: "application/json", length: 101, want: "body-too-large"},
		{name: "other path", method: "PUT", path: "/v1/records/profile/main", kind: "application/json", length: 101, want: "body-too-large"},
		{name: "other path, other type", method: "PUT", path: "/v1/records/profile/main", kind: "application/octet-stream", length: 10, want: "not-json"},
		{name: "a way round", method: "PUT", path: "/v1/blobs/../records/profile/main", kind: "application/json", length: 101, want: "body-too-large"},
		{name: "an encoded way round", method: "PUT", path: "/v1/blobs/%2e%2e/records/profile/main", kind: "application/json", length: 101, want: "body-too-large"},
		{name: "small JSON elsewhere", method: "PUT", path: "/v1/records/profile/main", kind: "application/json", length: 100},
	} {
		r := httptest.NewRequest(row.method, row.path, strings.NewReader(strings.Repeat("x", row.length)))
		r.Header.Set("Content-Type", row.kind)
		if row.unannounced {
			r.ContentLength = -1
		}
		x := &exchange{ResponseWriter: httptest.NewRecorder(), door: d, request: r}
		err := x.admitBody()
		if err == nil {
			_, err = io.ReadAll(r.Body)
		}
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}
