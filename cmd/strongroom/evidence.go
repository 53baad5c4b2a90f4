package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/assurance"
	"strongroom/internal/assurance/bundle"
)

func newEvidence() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "evidence",
		Short: "Give an auditor what the checks saw, with the proofs, and verify that offline",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newEvidenceExport(), newEvidenceVerify(), newEvidenceKey())
	return cmd
}

func newEvidenceExport() *cobra.Command {
	var s settings
	var from, to, out string
	cmd := &cobra.Command{
		Use:   "export --out FILE",
		Short: "Write one signed archive for an auditor",
		Long: `Writes what was promised, every run of a check in the period as a signed in-toto statement, every change of a claim's
state, the same as OSCAL assessment results, the events of the audit log for all of it with their proofs, and the
checkpoints of the log with the proofs that each continues the one before. The archive holds nothing personal, says itself
how it is verified, and is verified before the command ends. The export is an event of the trail.

"strongroom evidence verify" checks it anywhere. Give the auditor the key that is printed by another way than the archive.`,
		Example: `  strongroom evidence export --from 2026-01-01 --to 2026-04-01 --out first-quarter.zip
  strongroom evidence verify first-quarter.zip --key "$(strongroom evidence key)"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			var p assurance.Period
			if p.From, err = moment("from", from); err != nil {
				return err
			}
			if p.To, err = moment("to", to); err != nil {
				return err
			}
			if out == "" {
				return errors.New("say with --out which file to write")
			}
			o, err := s.checker(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			keys, err := o.EvidenceKeys(cmd.Context())
			if err != nil {
				return err
			}
			var report bundle.Report
			err = whole(out, func(draft *os.File) error {
				if err := o.ExportEvidence(cmd.Context(), p, draft); err != nil {
					return err
				}
				report, err = verifyBundle(cmd.Context(), draft, bundle.Options{Keys: keys})
				return err
			})
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "%s was written and holds\n", printable(out))
			printBundle(w, report)
			return nil
		},
	}
	s.place(cmd)
	cmd.Flags().StringVar(&from, "from", "", "the first day or moment (2026-01-31 or 2026-01-31T12:00:00Z); empty: from the beginning")
	cmd.Flags().StringVar(&to, "to", "", "the first day or moment that is left out; empty: now")
	cmd.Flags().StringVar(&out, "out", "", "the file to write; it must not be there yet")
	return cmd
}

// whole makes a file that is not there yet, whole or not at all.
func whole(path string, write func(*os.File) error) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already: choose another name", path)
	}
	draft, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(draft.Name())) }()
	err = errors.Join(write(draft), draft.Sync(), draft.Close())
	if err != nil {
		return err
	}
	return os.Link(draft.Name(), path) // which, unlike Rename, does not replace
}

func verifyBundle(ctx context.Context, f *os.File, o bundle.Options) (bundle.Report, error) {
	info, err := f.Stat()
	if err != nil {
		return bundle.Report{}, err
	}
	return bundle.Verify(ctx, f, info.Size(), o)
}

func newEvidenceVerify() *cobra.Command {
	var o bundle.Options
	var witnesses []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE [--key KEY]",
		Short: "Verify an archive of evidence, without an installation and without a network",
		Long: fmt.Sprintf(`Checks that every byte of the archive is one that the installation has signed, that the audit log has an event with the
digest of each run of a check and of each change of a claim, that the log's checkpoints continue each other, and that the
claims which are said to hold do so by the evidence. The first thing that does not fit is named.

"strongroom evidence key" prints the key; have it from the installation's operator, not from the archive. A key of the log
("strongroom audit key") may be given as well. Without --key the key is taken that the archive names itself, and its fingerprint
printed: that shows that the archive fits together, and whose it is only once you have compared it. With --witness the last
checkpoint needs the cosignatures of so many of these witnesses as --quorum says.

Exit code 0: it holds. %d: it does not. 1: it could not be verified.`, exitFindings),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var keys []string
			for _, key := range o.Keys {
				keys = append(keys, strings.Fields(key)...)
			}
			o.Keys = keys
			if _, err := verifierList("--key", keys); err != nil {
				return err
			}
			var err error
			if o.Witnesses, err = verifierList("--witness", witnesses); err != nil {
				return err
			}
			if !cmd.Flags().Changed("quorum") {
				o.Quorum = len(o.Witnesses)
			}
			if o.Quorum < 0 || o.Quorum > len(o.Witnesses) {
				return fmt.Errorf("--quorum is %d, and there are %d witnesses: name each with --witness", o.Quorum, len(o.Witnesses))
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			report, err := verifyBundle(cmd.Context(), f, o)
			switch {
			case errors.Is(err, bundle.ErrBundle):
				fmt.Fprintf(cmd.ErrOrStderr(), "✗ %s\n", printable(err.Error()))
				return exitError(exitFindings)
			case err != nil:
				return err
			case asJSON:
				return printJSON(cmd.OutOrStdout(), report)
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "%s the bundle holds\n", coloured(w, "✓", "32"))
			printBundle(w, report)
			if !report.Trusted {
				fmt.Fprintf(w, "! the key is the one that the bundle names itself; it is worth nothing until you have compared it:\n  %s\n", printable(report.EvidenceKey))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.Keys, "key", nil, "verifier key of the installation's evidence, or of its log; may be repeated (default: what the bundle names)")
	f.StringArrayVar(&witnesses, "witness", nil, "verifier key of a witness; may be repeated")
	f.IntVar(&o.Quorum, "quorum", 0, "how many of the witnesses must have cosigned (default all)")
	f.BoolVar(&asJSON, "json", false, "print what the bundle says as JSON")
	return cmd
}

func printBundle(w io.Writer, r bundle.Report) {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	from := "the beginning"
	if !r.From.IsZero() {
		from = r.From.UTC().Format(time.RFC3339)
	}
	claims := fmt.Sprintf("%d hold, %d are not proven, %d do not hold, %d are not part of this system",
		r.Claims["green"], r.Claims["amber"], r.Claims["red"], r.Claims["grey"])
	runs := fmt.Sprintf("%d of %d checks: %d held, %d failed, %d could not find out", r.Runs["holds"]+r.Runs["fails"]+r.Runs["unknown"], r.Checks,
		r.Runs["holds"], r.Runs["fails"], r.Runs["unknown"])
	changes := fmt.Sprintf("%d of claims' states", r.Changes)
	if r.Unlinked > 0 {
		changes += fmt.Sprintf("; %d are from before changes named their events, and stand on the signature alone", r.Unlinked)
	}
	for _, line := range [][2]string{
		{"installation", r.Installation + " (" + r.Environment + ")"}, {"period", from + " to " + r.To.UTC().Format(time.RFC3339)},
		{"claims", claims}, {"runs", runs}, {"changes", changes},
		{"log", fmt.Sprintf("%d events at the last of the checkpoints, of which there are %d", r.LogSize, r.Checkpoints)}, {"witnesses", strings.Join(r.Witnesses, ", ")},
		{"key", r.EvidenceKey}, {"fingerprint", r.Fingerprint},
	} {
		if line[1] != "" {
			fmt.Fprintf(out, "  %s\t%s\n", line[0], printable(line[1]))
		}
	}
	_ = out.Flush() // to standard output
}

func newEvidenceKey() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print the verifier keys of the evidence, oldest first, for those who verify it",
		Long: `Prints the verifier keys of the evidence, oldest first. Those of versions that are marked compromised, or destroyed, are
left out: whoever knows such a key can sign bundles of their own, of any date.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.checker(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			keys, err := o.EvidenceKeys(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(keys, "\n"))
			return err
		},
	}
	s.place(cmd)
	return cmd
}

func newClaimsHistory() *cobra.Command {
	var s settings
	var limit int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "history [CLAIM]",
		Short: "List when claims changed their states, the newest first",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			claim := strings.Join(args, "")
			o, err := s.checker(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			all, err := o.ClaimHistory(cmd.Context(), claim, limit)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				return printJSON(w, all)
			}
			for _, c := range all {
				fmt.Fprintf(w, "%s  %s  %-6s %s\n", c.Since.Local().Format("2006-01-02 15:04:05"), stateWord(w, c.State), c.Claim, printable(c.Why))
			}
			return nil
		},
	}
	s.place(cmd)
	cmd.Flags().IntVarP(&limit, "lines", "n", 50, "how many changes, 1 to 1000")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the events of the changes")
	return cmd
}
