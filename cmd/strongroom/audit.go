package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/audit"
)

func newAudit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read and verify the audit trail"}
	cmd.AddCommand(newAuditVerify(), newAuditTail(), newAuditSearch(), newAuditSearches(), newAuditExport(),
		newAuditProve(), newAuditCheckProof(), newAuditKey(), newAuditCheckpoints(), newAuditAcceptRestore())
	return cmd
}

// operator reaches the installation: through its running server, or itself when there is none.
func (s *settings) operator(cmd *cobra.Command) (app.Operator, error) {
	c, err := s.load()
	if err != nil {
		return nil, err
	}
	log, err := logger(c.Log)
	if err != nil {
		return nil, err
	}
	return app.Operate(cmd.Context(), c, log)
}

func newAuditVerify() *cobra.Command {
	var s settings
	var asJSON, onlyNew, withArchive bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Recompute the whole trail and name every event that was altered, dropped, inserted or reordered",
		Long: fmt.Sprintf(`Recomputes every event's hash, the Merkle tree over them and every signed checkpoint from the
database, and compares. Exit code %d when the trail does not hold.

With --new it begins where the last verification on this data folder has found nothing, and looks only at what
was added since: run it often, and without --new now and then, since older events may be altered too.

Events that were moved to the archive are verified by their hashes, which stay in the database; with --archive they
are read from the archive as well, each of them.`, exitFindings),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			began := time.Now()
			bar := newProgress(os.Stderr, "events")
			verify := o.Verify
			if onlyNew {
				verify = o.VerifyNew
			}
			if withArchive {
				verify = o.VerifyArchive
			}
			report, err := verify(cmd.Context(), bar.update)
			bar.clear()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				err = printJSON(out, report)
			} else {
				err = printReport(out, report, time.Since(began))
			}
			if err == nil && len(report.Findings) > 0 {
				err = exitError(exitFindings)
			}
			return err
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	cmd.Flags().BoolVar(&onlyNew, "new", false, "verify only what was added since the last verification")
	cmd.Flags().BoolVar(&withArchive, "archive", false, "read the archived events too")
	cmd.MarkFlagsMutuallyExclusive("new", "archive")
	return cmd
}

func printReport(w io.Writer, r audit.Report, took time.Duration) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Findings) == 0 {
		fmt.Fprintf(out, "✓ the trail holds: %d events, none altered, dropped, inserted or reordered\n", r.Events)
	} else {
		fmt.Fprintf(out, "✗ the trail does not hold: %d findings in %d events\n", len(r.Findings), r.Events)
	}
	for _, f := range r.Findings {
		event := f.Event
		if event == "" {
			event = "-"
		}
		place := "-"
		if f.Index >= 0 {
			place = fmt.Sprintf("index %d", f.Index)
		}
		fmt.Fprintf(out, "  %s\t%s\t%s\t%s\n", f.Kind, printable(event), place, printable(f.Detail))
	}
	if r.From > 0 {
		fmt.Fprintf(out, "  new, verified now\t%d; the %d before were verified earlier\n", r.Events-r.From, r.From)
	}
	if r.Archived > 0 {
		fmt.Fprintf(out, "  archived\t%d; %s\n", r.Archived, archiveNote(r))
	}
	if r.Pending > 0 {
		fmt.Fprintf(out, "  waiting for the next checkpoint\t%d\n", r.Pending)
	}
	for i, l := range strings.Split(strings.TrimSpace(r.Checkpoint), "\n") {
		label := ""
		if i == 0 {
			label = "checkpoint"
		}
		if l != "" {
			fmt.Fprintf(out, "  %s\t%s\n", label, printable(l))
		}
	}
	fmt.Fprintf(out, "  took\t%v\n", took.Round(time.Millisecond))
	return out.Flush()
}

// archiveNote says how far archived events were verified.
func archiveNote(r audit.Report) string {
	switch {
	case r.ArchiveRead == 0:
		return "verified by their hashes alone: --archive reads them"
	case r.ArchiveRead < r.Archived:
		return fmt.Sprintf("%d were read from the archive, the others verified by their hashes alone", r.ArchiveRead)
	}
	return "all were read from the archive"
}

func newAuditTail() *cobra.Command {
	var s settings
	var limit int
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print the newest events",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			after := ""
			forged := make(map[string]bool)
			for {
				entries, err := o.Tail(cmd.Context(), after, limit)
				if err != nil {
					if cmd.Context().Err() != nil {
						return nil // stopped by hand
					}
					return err
				}
				for _, e := range entries {
					if e.Outcome != audit.Unverified {
						after = e.ID
					} else if forged[e.ID] {
						continue // its id may be any: it comes again
					} else {
						forged[e.ID] = true
					}
					if err := printEntry(cmd.OutOrStdout(), e, asJSON); err != nil {
						return err
					}
				}
				if !follow {
					return nil
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	s.place(cmd)
	cmd.Flags().IntVarP(&limit, "lines", "n", 20, "how many events, 1 to 1000")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line")
	return cmd
}

func printEntry(w io.Writer, e audit.Entry, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	_, err := fmt.Fprintln(w, printable(entryLine(e)))
	return err
}

// printJSON prints v; what a terminal would act upon is escaped, as it may be in JSON: strangers write reports, and names.
func printJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, c := range string(text) {
		if c == '\n' || c == ' ' || unicode.IsPrint(c) {
			b.WriteRune(c)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, c) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	b.WriteByte('\n')
	_, err = io.WriteString(w, b.String())
	return err
}

// printable returns s without what a terminal would act upon instead of showing it.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c != ' ' && !unicode.IsPrint(c) {
			return unicode.ReplacementChar
		}
		return c
	}, s)
}

// entryLine is one event for people: when, who, what, on what, and how it ended.
func entryLine(e audit.Entry) string {
	var b strings.Builder
	mark := map[audit.Outcome]string{audit.Granted: "✓", audit.Denied: "✗", audit.Failed: "!"}[e.Outcome]
	if mark == "" {
		mark = "?" // audit.Unverified
	}
	who := string(e.Actor.Kind)
	if e.Actor.ID != "" {
		who = e.Actor.ID
	}
	fmt.Fprintf(&b, "%s %s  %-32s %-28s", e.Time.Local().Format("2006-01-02 15:04:05.000"), mark, who, e.Action)
	if e.Resource != "" {
		fmt.Fprintf(&b, " %s", e.Resource)
	}
	if e.Customer != "" && string(e.Customer) != e.Actor.ID {
		fmt.Fprintf(&b, "  of %s", e.Customer)
	}
	if e.Reason != "" {
		fmt.Fprintf(&b, "  (%s)", e.Reason)
	}
	if address := e.Personal["address"]; address != "" {
		fmt.Fprintf(&b, "  from %s", address)
	}
	if e.Outcome == audit.Unverified {
		b.WriteString("  NOT WRITTEN BY STRONGROOM, OR ALTERED SINCE")
	}
	return b.String()
}
