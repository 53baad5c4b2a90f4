package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/assurance"
	"strongroom/internal/check"
)

// checker reaches the server that runs, or starts one for the moment.
func (s *settings) checker(cmd *cobra.Command) (app.Checker, error) {
	c, err := s.load()
	if err != nil {
		return nil, err
	}
	c.Log.Level = "error"
	log, err := logger(c.Log)
	if err != nil {
		return nil, err
	}
	return app.OpenChecker(cmd.Context(), c, log, version)
}

func newCheck() *cobra.Command {
	var s settings
	var asJSON bool
	var sabotage string
	cmd := &cobra.Command{
		Use:   "check [CHECK…]",
		Short: "Try on the running system whether what is promised holds",
		Long: fmt.Sprintf(`Runs checks, all or those that are named, on the server that runs on the data folder, or on one that is started
for the moment on free ports. What they see is kept as evidence, in the trail too. Exit code %d when one does not hold.

With --sabotage, what a check is about is broken in a scratch copy, and the check has to see it: "all", or names with
commas between them.`, exitFindings),
		Example: `  strongroom check
  strongroom check tls-strong-only storage-no-plaintext
  strongroom check --sabotage all`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := s.checker(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			if sabotage != "" {
				if sabotage != "all" {
					args = append(args, strings.Split(sabotage, ",")...)
				}
				return runSabotage(cmd, o, args, asJSON)
			}
			evidence, err := o.Check(cmd.Context(), args)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), evidence)
			} else {
				printEvidence(cmd.OutOrStdout(), evidence)
			}
			for _, e := range evidence {
				if err == nil && e.Outcome != check.Holds {
					err = exitError(exitFindings)
				}
			}
			return err
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&sabotage, "sabotage", "", "break what the checks are about, in a scratch copy; each has to fail there")
	return cmd
}

func printEvidence(w io.Writer, all []assurance.Evidence) {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	holds, share := 0, 0.0
	for _, e := range all {
		if e.Every > 0 {
			share += float64(e.Took) / float64(e.Every)
		}
		if e.Outcome == check.Holds {
			holds++
		}
		fmt.Fprintf(out, "%s %s\t%s\t%s\n", markOf(w, e.Outcome), e.Check, rounded(e.Took), printable(e.Detail))
	}
	_ = out.Flush() // to standard output
	fmt.Fprintf(w, "\n%d of %d checks hold; at their pace they are at work for %.2f %% of the time\n", holds, len(all), 100*share)
}

func rounded(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

// markOf is green, amber or red on a terminal.
func markOf(w io.Writer, o check.Outcome) string {
	mark := map[check.Outcome]string{check.Holds: "✓", check.Fails: "✗", check.Unknown: "?"}[o]
	return coloured(w, mark, map[check.Outcome]string{check.Holds: "32", check.Fails: "31", check.Unknown: "33"}[o])
}

func coloured(w io.Writer, text, code string) string {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return text
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func runSabotage(cmd *cobra.Command, o app.Checker, names []string, asJSON bool) error {
	all, err := o.Sabotage(cmd.Context(), names)
	if err != nil {
		return err
	}
	blind := 0
	for _, s := range all {
		if s.Outcome != check.Fails {
			blind++
		}
	}
	out := cmd.OutOrStdout()
	if asJSON {
		if err := printJSON(out, all); err != nil {
			return err
		}
	} else {
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, s := range all {
			word := "red, as it has to be"
			if s.Outcome != check.Fails {
				word = "BLIND: it did not see the damage"
			}
			mark := coloured(out, "✓", "32")
			if s.Outcome != check.Fails {
				mark = coloured(out, "✗", "31")
			}
			fmt.Fprintf(table, "%s %s\t%s\t%s\t%s\n", mark, s.Check, rounded(s.Took), word, printable(s.Detail))
		}
		_ = table.Flush() // to standard output
		fmt.Fprintf(out, "\n%d of %d checks were seen red\n", len(all)-blind, len(all))
	}
	if blind > 0 {
		return exitError(exitFindings)
	}
	return nil
}

func newClaims() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "claims",
		Short: "List what is promised, and what the newest evidence says of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.checker(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			all, err := o.Claims(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			printClaims(cmd.OutOrStdout(), all)
			return nil
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(newClaimsHistory())
	return cmd
}

// stateWord is a state in its colour on a terminal, as wide as the widest.
func stateWord(w io.Writer, s assurance.State) string {
	codes := map[assurance.State]string{assurance.Green: "32", assurance.Amber: "33", assurance.Red: "31", assurance.Grey: "90"}
	return coloured(w, fmt.Sprintf("%-5s", s), codes[s])
}

func printClaims(w io.Writer, all []assurance.Status) {
	for _, s := range all {
		fmt.Fprintf(w, "%s  %-6s %s\n", stateWord(w, s.State), s.ID, s.Sentence)
		if s.State == assurance.Amber || s.State == assurance.Red {
			fmt.Fprintf(w, "              %s\n", printable(s.Why))
		}
		for _, r := range s.Results {
			if r.Evidence != nil {
				fmt.Fprintf(w, "              %s %s, %s\n", markOf(w, r.Evidence.Outcome), r.Check, r.Evidence.ObservedAt.Local().Format("2006-01-02 15:04"))
			}
		}
	}
}
