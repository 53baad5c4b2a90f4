package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func newKeys() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Look after the keys"}
	var s settings
	var asJSON bool
	list := &cobra.Command{
		Use:   "list",
		Short: "List every key version: age, algorithm, state, what it wraps, when it is rotated by itself",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			infos, err := o.Keys(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), infos)
			}
			out := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(out, "KEY\tVERSION\tALGORITHM\tSTATE\tAGE\tUSES\tWRAPPED BY\tNEXT ROTATION")
			for _, k := range infos {
				uses := "-"
				if k.Uses >= 0 {
					uses = fmt.Sprint(k.Uses)
				}
				next := "-"
				if !k.Next.IsZero() {
					next = k.Next.Local().Format("2006-01-02")
				}
				fmt.Fprintf(out, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Name, k.Version, k.Algorithm, k.State, age(k.MadeAt), uses, k.WrappedBy, next)
			}
			return out.Flush()
		},
	}
	s.place(list)
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(list, newKeysRotate(), newKeysCompromised(), newKeysDestroy(), newKeysMoveRoot(), newKeysAcceptStates())
	return cmd
}

// age says how old something is in the largest unit that fits.
func age(t time.Time) string {
	switch d := time.Since(t); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
