package main

import (
	"fmt"
	"strconv"
	"strings"
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
		Short: "List every key version: age, algorithm, state, what uses it, how often it sealed, when it is rotated by itself",
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
			fmt.Fprintln(out, "KEY\tVER\tALGORITHM\tSTATE\tAGE\tUSES\tSEALS\tWRAPPED BY\tROTATES")
			for _, k := range infos {
				next := "-"
				if !k.Next.IsZero() {
					next = k.Next.Local().Format("2006-01-02")
				}
				for i, by := range strings.Split(k.WrappedBy, ", ") {
					if i > 0 { // a second root key, while the root moves
						fmt.Fprintf(out, "\t\t\t\t\t\t\t%s\t\n", short(by))
						continue
					}
					fmt.Fprintf(out, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Name, k.Version, k.Algorithm, k.State, age(k.MadeAt),
						counted(k.Uses, ""), counted(k.Seals, "≤"), short(by), next)
				}
			}
			return out.Flush()
		},
	}
	s.place(list)
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(list, newKeysRotate(), newKeysCompromised(), newKeysDestroy(), newKeysMoveRoot(), newKeysAcceptStates())
	return cmd
}

// counted writes a number in thousands, millions and so on when it is large.
func counted(n int64, before string) string {
	switch {
	case n < 0:
		return "-"
	case n == 0:
		return "0"
	case n < 10_000:
		return before + strconv.FormatInt(n, 10)
	case n < 10_000_000:
		return before + strconv.FormatInt(n/1000, 10) + "k"
	default:
		return before + strconv.FormatInt(n/1_000_000, 10) + "M"
	}
}

// short keeps the ends of a root key's id, so that a line stays in its place; --json has all of it.
func short(name string) string {
	if len(name) <= 24 {
		return name
	}
	return name[:11] + "…" + name[len(name)-12:]
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
