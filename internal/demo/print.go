package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// printer tells the story of a journey, as text or as JSON.
type printer struct {
	out    io.Writer
	json   bool
	colour bool

	current stepReport
}

// stepReport is one line of JSON: what a step checked, and how it ended.
type stepReport struct {
	Step     int      `json:"step"`
	Name     string   `json:"name"`
	Title    string   `json:"title"`
	OK       bool     `json:"ok"`
	Checks   []string `json:"checks"` // those that held
	What     string   `json:"what,omitempty"`
	Expected string   `json:"expected,omitempty"`
	Observed string   `json:"observed,omitempty"`
	Millis   float64  `json:"ms"`
}

// endReport is the last line of JSON.
type endReport struct {
	Steps  int     `json:"steps"`
	OK     bool    `json:"ok"`
	Millis float64 `json:"ms"`
}

const (
	green = "32"
	red   = "31"
	bold  = "1"
	dim   = "2"
)

// column is where durations end.
const column = 100

func newPrinter(out io.Writer, asJSON bool) *printer {
	f, ok := out.(*os.File)
	colour := false
	if ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		info, err := f.Stat()
		colour = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return &printer{out: out, json: asJSON, colour: colour}
}

func (p *printer) paint(style, text string) string {
	if !p.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

func (p *printer) begin(url string) {
	if !p.json {
		fmt.Fprintf(p.out, "A customer's journey against %s\n", url)
	}
}

func (p *printer) step(n int, s step) {
	p.current = stepReport{Step: n, Name: s.name, Title: s.title, Checks: []string{}}
	if !p.json {
		fmt.Fprintf(p.out, "\n%2d  %s\n", n, p.paint(bold, s.title))
	}
}

// said tells about a check that held.
func (p *printer) said(text string, took time.Duration) {
	p.current.Checks = append(p.current.Checks, text)
	if p.json {
		return
	}
	duration := readable(took)
	if took < 100*time.Microsecond {
		duration = "" // it came with the check before
	}
	pad := max(column-6-utf8.RuneCountInString(text)-utf8.RuneCountInString(duration), 2)
	if duration != "" {
		duration = strings.Repeat(" ", pad) + p.paint(dim, duration)
	}
	fmt.Fprintf(p.out, "    %s %s%s\n", p.paint(green, "✓"), text, duration)
}

// told says what no check is about. It is for people only.
func (p *printer) told(text string) {
	if !p.json {
		fmt.Fprintf(p.out, "    %s\n", p.paint(dim, "· "+text))
	}
}

func (p *printer) stepEnd(took time.Duration, err error) {
	p.current.OK, p.current.Millis = err == nil, millis(took)
	var m *mismatch
	if errors.As(err, &m) {
		p.current.What, p.current.Expected, p.current.Observed = m.what, m.want, m.got
	} else if err != nil {
		p.current.What, p.current.Observed = p.current.Title, err.Error()
	}
	switch {
	case p.json:
		p.line(p.current)
	case m != nil:
		fmt.Fprintf(p.out, "    %s %s\n      expected  %s\n      observed  %s\n", p.paint(red, "✗"), m.what, m.want, m.got)
	case err != nil:
		fmt.Fprintf(p.out, "    %s %v\n", p.paint(red, "✗"), err)
	}
}

func (p *printer) end(steps int, took time.Duration, err error) {
	if p.json {
		p.line(endReport{steps, err == nil, millis(took)})
		return
	}
	if err == nil {
		fmt.Fprintf(p.out, "\n%s All %d steps came out as they should, in %s.\n", p.paint(green, "✓"), steps, readable(took))
		return
	}
	fmt.Fprintf(p.out, "\n%s Step %d did not come out as it should.\n", p.paint(red, "✗"), steps)
}

// line writes one line of JSON. When the reader has gone there is nobody to tell.
func (p *printer) line(v any) {
	b, err := json.Marshal(v)
	if err == nil {
		_, _ = fmt.Fprintf(p.out, "%s\n", b)
	}
}

func millis(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

// readable writes a duration with two or three digits that mean something.
func readable(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", millis(d))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}
