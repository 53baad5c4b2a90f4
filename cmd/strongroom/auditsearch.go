package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/audit"
)

func newAuditSearch() *cobra.Command {
	var s settings
	var q audit.Query
	var ask audit.Ask
	var since, from, to, saved, save string
	var asJSON, all, wide bool
	cmd := &cobra.Command{
		Use:   "search",
		Short: "Find events of the trail",
		Long: `Finds the events that fit everything that is given, and prints them newest first. Each search is an event
itself. What is personal is shown with --reveal and a --purpose only, and reads [erased] of customers who
were erased.`,
		Example: `  strongroom audit search --data DIR --customer cus_… --outcome denied --since 1h
  strongroom audit search --data DIR --action 'vault.*' --since 7d --save vault-this-week
  strongroom audit search --data DIR --saved vault-this-week --all --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if q.Since, err = seconds(since); err == nil {
				q.From, err = micros("from", from)
			}
			if err == nil {
				q.To, err = micros("to", to)
			}
			if err == nil && saved != "" && (q != audit.Query{} || save != "") {
				err = errors.New("--saved names a whole search: give nothing else that says what to find")
			}
			if err != nil {
				return err
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			if save != "" {
				if err := o.SaveSearch(cmd.Context(), save, q); err != nil {
					return err
				}
				saved, q = save, audit.Query{}
			}
			p := &searchPrinter{out: cmd.OutOrStdout(), asJSON: asJSON, wide: wide}
			return searchAll(cmd, o, saved, q, ask, all, p)
		},
	}
	s.place(cmd)
	f := cmd.Flags()
	f.StringVar(&q.Actor, "actor", "", "the id of who acted: a customer, a service, cli:root")
	f.StringVar(&q.OnBehalf, "on-behalf-of", "", "for whom a service acted: staff:anna")
	f.StringVar(&q.Customer, "customer", "", "whose data or account it was")
	f.StringVar(&q.Device, "device", "", "on which device")
	f.StringVar(&q.Action, "action", "", "what was done; 'vault.*' for all that begins so")
	f.StringVar(&q.Outcome, "outcome", "", "granted, denied or failed")
	f.StringVar(&q.Resource, "resource", "", "what it was done to, whole")
	f.StringVar(&q.Address, "address", "", "from which address")
	f.StringVar(&q.Country, "country", "", "from which country then, two letters")
	f.StringVar(&q.Request, "request", "", "of which request")
	f.StringVar(&q.Transaction, "transaction", "", "of which business transaction")
	f.StringVar(&q.Reason, "reason", "", "what the reason contains")
	f.StringVar(&since, "since", "", "not longer ago: 30m, 12h, 7d")
	f.StringVar(&from, "from", "", "not before: 2026-01-31 or 2026-01-31T12:00:00Z")
	f.StringVar(&to, "to", "", "before: as --from")
	f.StringVar(&saved, "saved", "", "run the search saved under this name")
	f.StringVar(&save, "save", "", "save the search under this name, and run it")
	f.BoolVar(&ask.Reveal, "reveal", false, "show what is personal; needs --purpose")
	f.StringVar(&ask.Purpose, "purpose", "", "why: a slug that the trail keeps")
	f.IntVarP(&ask.Limit, "lines", "n", 50, "how many events, 1 to 500")
	f.StringVar(&ask.After, "after", "", "go on where a search ended")
	f.BoolVar(&all, "all", false, "all events, not only the newest")
	f.BoolVar(&asJSON, "json", false, "one JSON object a line")
	f.BoolVar(&wide, "wide", false, "do not shorten ids and lines")
	return cmd
}

// searchAll prints pages until there are as many events as were asked for, or no more.
func searchAll(cmd *cobra.Command, o app.Operator, saved string, q audit.Query, ask audit.Ask, all bool, p *searchPrinter) error {
	wanted := ask.Limit
	for {
		page, err := o.Search(cmd.Context(), saved, q, ask)
		if err != nil {
			return err
		}
		for _, e := range page.Events {
			if err := p.print(e); err != nil {
				return err
			}
		}
		ask.After = page.Next
		if !all {
			ask.Limit = wanted - p.count
		}
		if page.Next == "" || ask.Limit == 0 {
			return p.end(cmd.ErrOrStderr(), page)
		}
	}
}

// seconds reads a duration, in days too.
func seconds(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int64
		if n, err = strconv.ParseInt(days, 10, 32); err == nil {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d < time.Second {
		return 0, fmt.Errorf("--since %q is no time of a second or more: write for example 30m, 12h or 7d", text)
	}
	return int64(d / time.Second), nil
}

// micros is moment in the form of a query; 0 is no time.
func micros(flag, text string) (int64, error) {
	t, err := moment(flag, text)
	if err != nil || t.IsZero() {
		return 0, err
	}
	return audit.Moment(t), nil
}

type searchPrinter struct {
	out          io.Writer
	asJSON, wide bool
	count        int
}

// lineWidth is in characters.
const lineWidth = 100

func (p *searchPrinter) print(e audit.Found) error {
	if p.count++; p.asJSON {
		return json.NewEncoder(p.out).Encode(e)
	}
	if p.count == 1 {
		if err := p.line("%-19s    %-14s  %-26s  %s", "TIME", "WHO", "ACTION", "WHAT"); err != nil {
			return err
		}
	}
	mark := map[audit.Outcome]string{audit.Granted: "✓", audit.Denied: "✗", audit.Failed: "!"}[e.Outcome]
	if mark == "" {
		mark = "?" // audit.Unverified
	}
	who := p.who(e.Actor.ID)
	if who == "" {
		who = string(e.Actor.Kind)
	}
	var what []string
	if e.Outcome == audit.Unverified {
		what = append(what, "NOT WRITTEN BY STRONGROOM, OR ALTERED SINCE")
	}
	if e.Reason != "" {
		what = append(what, "("+e.Reason+")")
	}
	if e.Resource != "" {
		what = append(what, p.ids(e.Resource))
	}
	if c := string(e.Customer); c != "" && c != e.Actor.ID {
		what = append(what, "of "+p.ids(c))
	}
	if e.Transaction != "" {
		what = append(what, "transaction "+e.Transaction)
	}
	err := p.line("%s  %s %-14s  %-26s  %s", e.Time.Local().Format(time.DateTime), mark, who, e.Action, strings.Join(what, " "))
	for _, m := range []map[string]string{e.Fields, e.Personal} {
		var list []string
		for _, name := range slices.Sorted(maps.Keys(m)) {
			list = append(list, name+" "+m[name])
		}
		if len(list) > 0 && err == nil {
			err = p.line("%23s%s", "", strings.Join(list, ", "))
		}
	}
	return err
}

func (p *searchPrinter) line(format string, args ...any) error {
	text := strings.TrimRight(printable(fmt.Sprintf(format, args...)), " ")
	if n := utf8.RuneCountInString(text); n > lineWidth && !p.wide {
		text = strings.TrimRight(string([]rune(text)[:lineWidth-1]), "_… ") + "…"
	}
	_, err := fmt.Fprintln(p.out, text)
	return err
}

// ids shortens the ids that Strongroom makes to their kind and their random end.
func (p *searchPrinter) ids(text string) string {
	if p.wide {
		return text
	}
	return idForm.ReplaceAllString(text, "${1}_…$2")
}

var idForm = regexp.MustCompile(`\b([a-z]{3})_[0-9a-z]{18}([0-9a-z]{8})\b`)

// who shortens an actor's id to its column; of a SPIFFE name the end says most.
func (p *searchPrinter) who(id string) string {
	const width = 14
	if id = p.ids(id); p.wide || utf8.RuneCountInString(id) <= width {
		return id
	}
	if i := strings.LastIndexByte(id, '/'); i >= 0 {
		id = "…" + id[i:]
	}
	if r := []rune(id); len(r) > width {
		id = string(r[:width-1]) + "…"
	}
	return id
}

// end says how much was found, and how far the search could see; not among the events.
func (p *searchPrinter) end(w io.Writer, page audit.Page) error {
	found := fmt.Sprintf("%d events", p.count)
	if p.count == 1 {
		found = "1 event"
	}
	text := fmt.Sprintf("%s found among the first %d of the log", found, page.Indexed)
	if page.Waiting > 0 {
		text += fmt.Sprintf("; newer than those, and not to be found yet: %d", page.Waiting)
	}
	_, err := fmt.Fprintln(w, text+".")
	if page.Next != "" && err == nil {
		_, err = fmt.Fprintf(w, "There may be more: --all, or go on with --after %s\n", page.Next)
	}
	return err
}

func newAuditSearches() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "searches",
		Short: "List the saved searches",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			list, err := o.Searches(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			if len(list) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "There are none. `strongroom audit search … --save NAME` saves one.")
				return err
			}
			out := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(out, "NAME\tMADE BY\tMADE AT\tFINDS")
			for _, one := range list {
				text, err := json.Marshal(one.Query)
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", printable(one.Name), printable(one.MadeBy), one.MadeAt.Local().Format(time.DateTime), printable(string(text)))
			}
			return out.Flush()
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the list as JSON")
	var d settings
	remove := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a saved search",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := d.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			return o.DeleteSearch(cmd.Context(), args[0])
		},
	}
	d.place(remove)
	cmd.AddCommand(remove)
	return cmd
}
