package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/finding"
)

func newFindings() *cobra.Command {
	var s settings
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "findings",
		Short: "List what is wrong and wants somebody's attention",
		Long: fmt.Sprintf(`Lists the findings that are open: what a room of Strongroom noticed and what stays so until that room
says that it is over. Exit code %d when there are any.`, exitFindings),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			list, err := o.Findings(cmd.Context(), all)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), list)
			} else {
				printFindings(cmd.OutOrStdout(), list)
			}
			for _, f := range list {
				if err == nil && f.Cleared == nil {
					err = exitError(exitFindings)
				}
			}
			return err
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "also those that are over")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print them as JSON")
	return cmd
}

func printFindings(w io.Writer, list []finding.Finding) {
	if len(list) == 0 {
		fmt.Fprintln(w, "✓ nothing is wrong that Strongroom knows of")
		return
	}
	const layout = "2006-01-02 15:04:05"
	for _, f := range list {
		mark, state := "✗", "open since "+f.Opened.Local().Format(layout)+", last seen "+f.Seen.Local().Format(layout)
		if f.Cleared != nil {
			mark, state = "✓", f.Opened.Local().Format(layout)+" to "+f.Cleared.Local().Format(layout)+
				" ("+f.Cleared.Sub(f.Opened).Round(time.Second).String()+")"
		}
		subject := ""
		if f.Subject != "" {
			subject = "  " + printable(f.Subject)
		}
		fmt.Fprintf(w, "%s %s%s\n    %s\n    %s\n", mark, f.Kind, subject, printable(f.Detail), state)
	}
}
