package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newAuditAcceptRestore() *cobra.Command {
	var s settings
	var checkpoint string
	cmd := &cobra.Command{
		Use:   "accept-restore --checkpoint SIZE:ROOT",
		Short: "Declare that a backup of the database was put back on purpose",
		Long: `After a backup was put back, the log is shorter than this data folder remembers: nothing is sequenced, and
verify calls it rolled back. This command gives up what was seen beyond the backup, which stays on record as an
event. Run it once for each data folder. SIZE:ROOT is the last checkpoint of the backup: the first line of
"strongroom audit checkpoints". Whoever witnesses the log goes on refusing it: they have seen it longer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			done, err := o.AcceptRestore(cmd.Context(), checkpoint)
			closed := o.Close()
			if err != nil {
				return err // closing says once more that the log was rolled back
			}
			fmt.Fprintf(cmd.OutOrStdout(), "✓ the log goes on from %d events; it had %d when it was seen last\n", done.Size, done.Seen)
			return closed
		},
	}
	s.place(cmd)
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "the last checkpoint of the backup, SIZE:ROOT")
	_ = cmd.MarkFlagRequired("checkpoint")
	return cmd
}
