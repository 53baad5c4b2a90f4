package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/assurance/report"
)

const minutes = "2006-01-02 15:04"

func newReports() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reports",
		Short: "Read what people report about security",
		Long: `What people report about security, through the form on the trust page or POST /v1/security-reports. Reports are
sealed; opening one leaves an event with the name of whoever ran the command.`,
	}
	cmd.AddCommand(newReportsList(), newReportsShow(), newReportsClose())
	return cmd
}

// reportsCommand is a command that asks the operator of an installation.
func reportsCommand(cmd *cobra.Command, run func(cmd *cobra.Command, o app.Operator, args []string) error) *cobra.Command {
	var s settings
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := s.operator(cmd)
		if err != nil {
			return err
		}
		defer o.Close()
		return run(cmd, o, args)
	}
	s.place(cmd)
	return cmd
}

func newReportsList() *cobra.Command {
	var all, asJSON bool
	cmd := reportsCommand(&cobra.Command{Use: "list", Short: "List the reports that are open", Args: cobra.NoArgs},
		func(cmd *cobra.Command, o app.Operator, _ []string) error {
			list, err := o.Reports(cmd.Context(), all)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			printReports(cmd.OutOrStdout(), list, all)
			return nil
		})
	cmd.Flags().BoolVar(&all, "all", false, "also those that were closed")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printReports(w io.Writer, list []report.Entry, all bool) {
	if len(list) == 0 {
		if all {
			fmt.Fprintln(w, "Nobody has reported anything.")
		} else {
			fmt.Fprintln(w, "✓ no report is open")
		}
		return
	}
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "REFERENCE\tRECEIVED\tSTATE")
	for _, e := range list {
		state := "open"
		if e.Closed != nil {
			state = "closed " + e.Closed.Local().Format(minutes) + " by " + e.ClosedBy + ": " + e.Verdict
		}
		fmt.Fprintf(out, "%s\t%s\t%s\n", e.Reference, e.Received.Local().Format(minutes), printable(state))
	}
	_ = out.Flush() // to standard output
}

func newReportsShow() *cobra.Command {
	var asJSON bool
	cmd := reportsCommand(&cobra.Command{Use: "show REFERENCE", Short: "Open a report, which leaves an event", Args: cobra.ExactArgs(1)},
		func(cmd *cobra.Command, o app.Operator, args []string) error {
			r, err := o.ShowReport(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "Report    %s\nReceived  %s\n", r.Reference, r.Received.Local().Format(minutes))
			contact := r.Contact
			if contact == "" {
				contact = "(none given)"
			}
			fmt.Fprintf(w, "Contact   %s\n", printable(contact))
			if r.Closed != nil {
				fmt.Fprintf(w, "Closed    %s by %s: %s\n", r.Closed.Local().Format(minutes), r.ClosedBy, printable(r.Verdict))
			}
			fmt.Fprintln(w)
			for line := range strings.Lines(r.Text) { // a stranger wrote it: nothing in it may move the cursor
				fmt.Fprintln(w, "  "+printable(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", "    ")))
			}
			return nil
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newReportsClose() *cobra.Command {
	var verdict string
	cmd := reportsCommand(&cobra.Command{Use: "close REFERENCE", Short: "Say that a report is dealt with, and how", Args: cobra.ExactArgs(1),
		Example: `  strongroom reports close rep_01jd8xk2m3n4p5q6r7s8t9v0wx --verdict "mended in 1.4.2"`},
		func(cmd *cobra.Command, o app.Operator, args []string) error {
			if strings.TrimSpace(verdict) == "" {
				return errors.New(`say what came of it: --verdict "mended in 1.4.2"`)
			}
			if err := o.CloseReport(cmd.Context(), args[0], verdict); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "✓ %s is closed\n", printable(args[0]))
			return err
		})
	cmd.Flags().StringVar(&verdict, "verdict", "", "what came of it, without personal data")
	return cmd
}
