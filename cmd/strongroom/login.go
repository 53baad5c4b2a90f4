package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newLogin() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Help customers who cannot log in",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newLoginUnlock())
	return cmd
}

func newLoginUnlock() *cobra.Command {
	var s settings
	var reason string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "unlock CUSTOMER",
		Short: "Forget the failed logins of a customer, so that they may try again at once",
		Long: `Lifts the blocks that wrong codes have earned a customer's account, on the customer's own devices and on
all others. It shows and changes no code, and a device that was revoked stays revoked: a customer who forgot
the private code chooses another in the app.

Whoever guesses may go on as well, so be sure who is calling. The reason is kept in the trail, sealed under
the customer's key.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := customerID(args[0])
			if err != nil {
				return err
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			u, err := o.Unlock(cmd.Context(), c, reason)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), u)
			}
			if u.Failures == 0 {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "✓ %s has no failed logins: nothing was blocked\n", u.Customer)
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "✓ %s may log in again: %s forgotten, %s lifted\n", u.Customer,
				count(u.Failures, "failed login"), count(int64(u.Blocked), "block"))
			return err
		},
	}
	s.place(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the trail (required)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the outcome as JSON")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

// count names a number of things.
func count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
