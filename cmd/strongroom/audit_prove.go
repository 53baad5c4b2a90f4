package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/audit"
)

func newAuditProve() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "prove EVENT",
		Short: "Print the proof that an event is in the log, for anybody to check",
		Long: `Prints a proof in the form of C2SP tlog-proof: the signed checkpoint with the signatures of witnesses, the
event's place, the hashes that lead from it to the checkpoint's root, and the event as it was hashed, which
holds nothing personal. "strongroom audit check-proof" checks it anywhere.`,
		Example: `  strongroom audit prove evt_… > event.tlog-proof
  strongroom audit check-proof event.tlog-proof --key "$(strongroom audit key)"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			p, err := o.Prove(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(p.Text())
			return err
		},
	}
	s.place(cmd)
	return cmd
}

// maxProofFile bounds the file that check-proof reads.
const maxProofFile = 1 << 20

func newAuditCheckProof() *cobra.Command {
	var keys, witnesses []string
	var quorum int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check-proof FILE [--key KEY]",
		Short: "Check a proof, without an installation and without a network",
		Long: fmt.Sprintf(`Checks that the log whose verifier key you trust has signed the proof's checkpoint, and that the event leads to
its root. "strongroom audit key" prints the key; have it from the installation's operator, not from whoever
gave you the proof. Without --key the key is taken that the proof itself names, and printed: that shows that the
proof fits together, and whose it is only once you have compared the key. With --witness it also takes the
cosignatures of so many of these witnesses as --quorum says. FILE may be - for standard input.

Exit code 0: the proof holds. %d: it does not. 1: it could not be checked.`, exitFindings),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			trusted, err := verifierList("--key", keys)
			if err != nil {
				return err
			}
			watching, err := verifierList("--witness", witnesses)
			if err != nil {
				return err
			}
			if !cmd.Flags().Changed("quorum") {
				quorum = len(watching)
			}
			if quorum < 0 || quorum > len(watching) {
				return fmt.Errorf("--quorum is %d, and there are %d witnesses: name each with --witness", quorum, len(watching))
			}
			text, err := readFile(cmd, args[0], maxProofFile)
			if err != nil {
				return err
			}
			var said audit.Proved
			var seenBy []string
			p, err := audit.ParseProof(text)
			named := "" // the key that only the proof vouches for
			if err == nil && len(trusted) == 0 {
				if named = p.Key; named == "" {
					return errors.New("the proof does not name the log's key: give it with --key")
				}
				v, bad := audit.NewVerifier(named)
				if bad != nil {
					err = fmt.Errorf("%w: the key that it names: %w", audit.ErrProof, bad)
				} else {
					trusted = append(trusted, v)
				}
			}
			if err == nil {
				said, err = p.Check(note.VerifierList(trusted...))
			}
			if err == nil {
				seenBy, err = p.Witnessed(watching)
			}
			if err == nil && len(seenBy) < quorum {
				err = fmt.Errorf("%w: %d of the %d witnesses have cosigned its checkpoint, and %d are asked for", audit.ErrProof, len(seenBy), len(watching), quorum)
			}
			switch {
			case errors.Is(err, audit.ErrProof):
				fmt.Fprintf(cmd.ErrOrStderr(), "✗ %s\n", printable(err.Error()))
				return exitError(exitFindings)
			case err != nil:
				return err
			case asJSON:
				return printJSON(cmd.OutOrStdout(), checked{said, seenBy, p.Key, named == ""})
			}
			if err := printProved(cmd.OutOrStdout(), said, seenBy); err != nil || named == "" {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "! the key is the one that the proof names itself; it is worth nothing until you have compared it:\n  %s\n", printable(named))
			return err
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&keys, "key", nil, "verifier key of the log, once for each version that may have signed (default: what the proof names)")
	f.StringArrayVar(&witnesses, "witness", nil, "verifier key of a witness; may be repeated")
	f.IntVar(&quorum, "quorum", 0, "how many of the witnesses must have cosigned (default all)")
	f.BoolVar(&asJSON, "json", false, "print what the proof says as JSON")
	return cmd
}

// checked is what check-proof prints as JSON. Pinned says that --key was given, and holds.
type checked struct {
	audit.Proved
	Witnesses []string `json:"Witnesses,omitempty"`
	Key       string   `json:"Key,omitempty"`
	Pinned    bool
}

// verifierList reads the verifier keys of a flag, which may hold several, separated by white space.
func verifierList(flag string, keys []string) ([]note.Verifier, error) {
	var list []note.Verifier
	for _, key := range strings.Fields(strings.Join(keys, " ")) {
		v, err := audit.NewVerifier(key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		list = append(list, v)
	}
	return list, nil
}

// readFile reads the file, or standard input for -, of no more than limit bytes.
func readFile(cmd *cobra.Command, name string, limit int64) ([]byte, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	return b, err
}

func printProved(w io.Writer, p audit.Proved, witnesses []string) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "✓ the proof holds: the event is in the log\n")
	who := string(p.Actor.Kind)
	if p.Actor.ID != "" {
		who += " " + p.Actor.ID
	}
	for _, line := range [][2]string{
		{"event", p.ID}, {"when", p.Time.Format(time.RFC3339Nano)}, {"who", who}, {"device", p.Actor.Device}, {"action", p.Action},
		{"resource", p.Resource}, {"customer", string(p.Customer)}, {"outcome", string(p.Outcome)}, {"reason", p.Reason},
		{"place", fmt.Sprintf("%d of %d", p.Index, p.Size)}, {"witnesses", strings.Join(witnesses, ", ")},
	} {
		if line[1] != "" {
			fmt.Fprintf(out, "  %s\t%s\n", line[0], printable(line[1]))
		}
	}
	return out.Flush()
}

func newAuditKey() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print the log's verifier keys, oldest first, for those who check it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			keys, err := o.LogKeys(cmd.Context())
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

func newAuditCheckpoints() *cobra.Command {
	var s settings
	var limit int
	var below int64
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "checkpoints",
		Short: "List the signed checkpoints, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			list, err := o.Checkpoints(cmd.Context(), below, limit)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			out := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(out, "number\tsigned\tkey\tsize:root\twitnesses")
			for _, c := range list {
				fmt.Fprintf(out, "%d\t%s\t%s\t%d:%s\t%s\n", c.Number, c.Time.Local().Format("2006-01-02 15:04:05.000"), c.Key, c.Size, printable(c.Root),
					strings.Join(c.Witnesses, ", "))
			}
			return out.Flush()
		},
	}
	s.place(cmd)
	cmd.Flags().IntVarP(&limit, "lines", "n", 20, "how many checkpoints, 1 to 1000")
	cmd.Flags().Int64Var(&below, "below", -1, "list those of smaller sizes than this")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the signed notes")
	return cmd
}
