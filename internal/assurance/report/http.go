package report

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"strongroom/internal/actor"
	"strongroom/internal/problem"
)

// The form's address, the media type of what it sends, and the most bytes of it: a character is up to four bytes, and
// each of them three in a form.
const (
	FormPath = "/trust/report"
	FormType = "application/x-www-form-urlencoded"
	MaxForm  = 12*(MaxText+MaxContact) + 1024
)

// maxJSON is the most bytes of the operation's body; a character that is escaped has six or twelve.
const maxJSON = 64 << 10

type submitInput struct {
	Body struct {
		Text    string `json:"text" minLength:"10" maxLength:"8000" doc:"What you found, and how to see it." example:"The page /… answers with the data of another customer when …"`
		Contact string `json:"contact,omitempty" maxLength:"200" doc:"Where an answer may go: one line, anything that reaches you. Leave it out to stay unknown." example:"mailto:ada@example.com"`
	}
}

type submitOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Reference string    `json:"reference" doc:"Names the report. Keep it: quote it when you write again." example:"rep_01jd8xk2m3n4p5q6r7s8t9v0wx"`
		Received  time.Time `json:"received_at"`
	}
}

// Register adds the operation that takes a report from anybody.
func (d *Desk) Register(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "submit-security-report", Method: http.MethodPost, Path: "/v1/security-reports",
		Summary: "Report a concern about security", Tags: []string{"Security reports"},
		Description:   "For everybody, without an account. What is sent is sealed, and opened by the security staff alone.",
		Security:      []map[string][]string{{"none": {}}},
		DefaultStatus: http.StatusAccepted, MaxBodyBytes: maxJSON, BodyReadTimeout: 10 * time.Second, RejectUnknownQueryParameters: true,
		Errors: []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusTooManyRequests, http.StatusServiceUnavailable},
	}, d.submit)
}

func (d *Desk) submit(ctx context.Context, in *submitInput) (*submitOutput, error) {
	e, err := d.Submit(ctx, actor.From(ctx), Message{Text: in.Body.Text, Contact: in.Body.Contact})
	if err != nil {
		return nil, err
	}
	out := &submitOutput{CacheControl: "no-store"}
	out.Body.Reference, out.Body.Received = e.Reference, e.Received
	return out, nil
}

// Frame makes a whole page of a part, in the looks of the operator. The trust page is behind it.
type Frame interface {
	Frame(title string, main template.HTML) ([]byte, error)
	// Headers sets what every page says to the browser.
	Headers(h http.Header)
}

//go:embed form.html
var formFile string

var forms = template.Must(template.New("form.html").Parse(formFile))

// filled is the form with what was written into it, or the thanks for a report.
type filled struct {
	Message
	Path, Problem string
	MinText       int
	MaxText       int
	MaxContact    int
	Reference     string
}

func render(f filled) (template.HTML, error) {
	f.Path, f.MinText, f.MaxText, f.MaxContact = FormPath, minText, MaxText, MaxContact
	var b bytes.Buffer
	err := forms.Execute(&b, f)
	return template.HTML(b.String()), err // made by the template, which escapes what it is given
}

// Form returns the empty form, for the trust page.
func Form() (template.HTML, error) { return render(filled{}) }

// RegisterForm serves the form, for browsers without JavaScript. It knows nobody and sets no cookie, so there is no
// session that another site could use; what another site sends is refused all the same, or it could have its
// visitors use up our patience with their addresses.
func (d *Desk) RegisterForm(mux *http.ServeMux, page Frame) {
	foreign := http.NewCrossOriginProtection()
	mux.HandleFunc("GET "+FormPath, func(w http.ResponseWriter, r *http.Request) { d.answer(w, r, page, http.StatusOK, filled{}) })
	mux.HandleFunc("POST "+FormPath, func(w http.ResponseWriter, r *http.Request) {
		if err := foreign.Check(r); err != nil {
			d.answer(w, r, page, http.StatusForbidden, filled{Problem: "This came from another site. Please write your report here."})
			return
		}
		d.post(w, r, page)
	})
}

func (d *Desk) post(w http.ResponseWriter, r *http.Request, page Frame) {
	m, err := decode(w, r)
	if err != nil {
		d.answer(w, r, page, http.StatusBadRequest, filled{Problem: "What the form sent could not be read. Please shorten it and send it again."})
		return
	}
	e, err := d.Submit(r.Context(), actor.From(r.Context()), m)
	var p *problem.Problem
	switch {
	case errors.As(err, &p):
		if again := p.GetHeaders().Get("Retry-After"); again != "" {
			w.Header().Set("Retry-After", again)
		}
		d.answer(w, r, page, p.GetStatus(), filled{Message: m, Problem: p.Detail()})
	case err != nil:
		d.o.Log.ErrorContext(r.Context(), "a security report could not be stored", "error", err)
		d.answer(w, r, page, http.StatusInternalServerError, filled{Message: m, Problem: "Something went wrong on our side. Please send it again."})
	default:
		d.answer(w, r, page, http.StatusOK, filled{Reference: e.Reference})
	}
}

// decode reads what the form sent: two fields, each once.
func decode(w http.ResponseWriter, r *http.Request) (Message, error) {
	r.Body = http.MaxBytesReader(w, r.Body, MaxForm)
	if err := r.ParseForm(); err != nil {
		return Message{}, err
	}
	return fields(r.PostForm)
}

func fields(form url.Values) (Message, error) {
	for name, values := range form {
		if name != "text" && name != "contact" || len(values) != 1 {
			return Message{}, errors.New("another form")
		}
	}
	return Message{Text: form.Get("text"), Contact: form.Get("contact")}, nil
}

func (d *Desk) answer(w http.ResponseWriter, r *http.Request, page Frame, status int, f filled) {
	main, err := render(f)
	var b []byte
	if err == nil {
		b, err = page.Frame("Report a concern", main)
	}
	if err != nil {
		d.o.Log.ErrorContext(r.Context(), "the page of a security report could not be made", "error", err)
		http.Error(w, "Something went wrong on our side. Please try again.", http.StatusInternalServerError)
		return
	}
	page.Headers(w.Header())
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b) // who asked has gone
}
