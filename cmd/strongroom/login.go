package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/customer"
	"strongroom/internal/identity"
)

func newLogin() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Help customers who cannot log in",
		Long: `Help for customers who cannot log in: unlock forgets their failed logins.

The others are for those who have lost what they log in with. None of these is enough by itself:
a device that is let in has come with the private code and a one-time code, a number that is changed waits
24 hours in which its owner can object, and both need two members of staff who have each seen who the
customer is. The customer is told at the first word. All is in the audit trail under the name of the
account on this host and the name given as --operator.`,
	}
	cmd.AddCommand(
		newLoginUnlock(),
		assistCommand("approve-device DEVICE", "Vouch for the holder of a new device; the second member of staff lets it in", 1,
			func(cmd *cobra.Command, o app.Operator, operator string, args []string) (identity.Assisted, error) {
				return o.ApproveDevice(cmd.Context(), operator, args[0])
			},
			func(w io.Writer, a identity.Assisted, args []string) {
				fmt.Fprintf(w, "✓ %s of %s is authorised: its holder can log in now\n", printable(args[0]), a.Customer)
			}),
		assistCommand("change-number CUSTOMER", "Vouch for a customer's new number, read from standard input; the second member of staff has its 24 hours begin", 1,
			func(cmd *cobra.Command, o app.Operator, operator string, args []string) (identity.Assisted, error) {
				// Not an argument, which everybody on the host may read.
				fmt.Fprint(cmd.ErrOrStderr(), "New number: ")
				number, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64)).ReadString('\n')
				if err != nil && !errors.Is(err, io.EOF) {
					return identity.Assisted{}, err
				}
				return o.ChangeNumber(cmd.Context(), operator, customer.ID(args[0]), strings.TrimSpace(number))
			},
			func(w io.Writer, a identity.Assisted, _ []string) {
				fmt.Fprintf(w, "✓ %s gets the new number at %s, unless somebody cancels; the old number has been told\n", a.Customer, a.Due.Local().Format(time.DateTime))
			}),
		assistCommand("lose-device DEVICE", "Shut a lost device out at once, with its sessions", 1,
			func(cmd *cobra.Command, o app.Operator, operator string, args []string) (identity.Assisted, error) {
				return o.LoseDevice(cmd.Context(), operator, args[0])
			},
			func(w io.Writer, a identity.Assisted, args []string) {
				fmt.Fprintf(w, "✓ %s of %s is shut out, and its sessions are over\n", printable(args[0]), a.Customer)
			}),
	)
	return cmd
}

// assistCommand is a command in the name of a member of staff.
func assistCommand(use, short string, args int, do func(*cobra.Command, app.Operator, string, []string) (identity.Assisted, error), print func(io.Writer, identity.Assisted, []string)) *cobra.Command {
	var s settings
	var operator string
	var asJSON bool
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			if operator == "" {
				return errors.New("say who you are: --operator ada.lovelace")
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			a, err := do(cmd, o, operator, args)
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				return printJSON(cmd.OutOrStdout(), a)
			case a.Done:
				print(cmd.OutOrStdout(), a, args)
			default:
				fmt.Fprintf(cmd.OutOrStdout(), "✓ noted: %d of 2. Another member of staff must do the same within 24 hours; %s has been told\n", a.Vouched, a.Customer)
			}
			return nil
		},
	}
	s.place(cmd)
	cmd.Flags().StringVar(&operator, "operator", "", "who you are, for the audit trail")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
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
