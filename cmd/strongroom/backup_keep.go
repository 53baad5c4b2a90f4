package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/backup"
)

func newBackupPrune() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Delete the snapshots that backup.retention does not keep, and what only they needed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, &s, asJSON, func(o app.Operator) (backup.Pruned, error) { return o.BackupPrune(cmd.Context()) },
				func(w io.Writer, p backup.Pruned) error {
					_, err := fmt.Fprintf(w, "✓ %d snapshots deleted, %d objects, %s; %d are locked still\n", len(p.Snapshots), p.Objects, size(p.Bytes), p.Locked)
					for repository, why := range p.Skipped {
						fmt.Fprintf(w, "  ✗ %s: %s\n", repository, printable(why))
					}
					return err
				})
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// newBackupDeed is a command about one thing that answers nothing but that it is done.
func newBackupDeed(use, short, long, done string, flags func(cmd *cobra.Command), do func(cmd *cobra.Command, o app.Operator, what string) error) *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return operate(cmd, &s, asJSON, func(o app.Operator) (map[string]string, error) {
				return map[string]string{"done": args[0]}, do(cmd, o, args[0])
			}, func(w io.Writer, _ map[string]string) error {
				_, err := fmt.Fprintf(w, "✓ "+done+"\n", args[0])
				return err
			})
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	if flags != nil {
		flags(cmd)
	}
	return cmd
}

func newBackupHold() *cobra.Command {
	var reason string
	return newBackupDeed("hold SNAPSHOT", "Keep a snapshot, whatever the retention says", "", "%s is held", func(cmd *cobra.Command) {
		cmd.Flags().StringVar(&reason, "reason", "", "why; it is kept, without describing a person")
	}, func(cmd *cobra.Command, o app.Operator, snapshot string) error {
		return o.BackupHold(cmd.Context(), snapshot, reason, false)
	})
}

func newBackupRelease() *cobra.Command {
	return newBackupDeed("release SNAPSHOT", "End a hold", "", "%s is held no longer", nil, func(cmd *cobra.Command, o app.Operator, snapshot string) error {
		return o.BackupHold(cmd.Context(), snapshot, "", true)
	})
}

func newBackupApprove() *cobra.Command {
	return newBackupDeed("approve DEED", "Agree to a deed that takes two people",
		`Agrees to "delete SNAPSHOT", "unlock SNAPSHOT" or "keep RETENTION", the latter as the refusal spelt it. Two
different people have to.`, "you approved: %s", nil, func(cmd *cobra.Command, o app.Operator, deed string) error {
			return o.BackupApprove(cmd.Context(), deed)
		})
}

func newBackupDelete() *cobra.Command {
	var locked bool
	return newBackupDeed("delete SNAPSHOT", "Delete a snapshot before its time; it takes two approvals", "", "%s is deleted", func(cmd *cobra.Command) {
		cmd.Flags().BoolVar(&locked, "locked", false, "also where it is locked in the mode governance")
	}, func(cmd *cobra.Command, o app.Operator, snapshot string) error {
		return o.BackupDelete(cmd.Context(), snapshot, locked)
	})
}
