package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/vault"
)

func newVault() *cobra.Command {
	cmd := &cobra.Command{Use: "vault", Short: "Look after customers' data: collections, import, export, erase, check a receipt"}
	cmd.AddCommand(newVaultCollection(), newVaultImport(), newVaultExport(), newVaultErase(), newVaultReceipt(), newVaultCheckReceipt())
	return cmd
}

func customerID(text string) (customer.ID, error) {
	c := customer.ID(text)
	if !c.Valid() {
		return "", errors.New("the customer is named by an id, cus_ and 26 characters; the trail has it: strongroom audit tail")
	}
	return c, nil
}

func newVaultErase() *cobra.Command {
	var s settings
	var reason, file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "erase CUSTOMER",
		Short: "Erase a customer for good: destroy their key, delete their data, and print the receipt",
		Long: `Destroys the customer's data key in all its versions, and deletes their records, number, devices and
sessions, in one transaction. Nothing brings the data back: no copy of the database without that key
can be read for this person. The trail still verifies and shows [erased] for what was personal.

The reason is kept in the trail: do not describe the person in it. The receipt proves the erasure to
others; check it anywhere with "strongroom vault check-receipt".`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := customerID(args[0])
			if err != nil {
				return err
			}
			// The receipt must have a place before there is no way back.
			var out *os.File
			if file != "" {
				if out, err = os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
					return fmt.Errorf("receipt: %w", err)
				}
				defer out.Close()
			}
			erasure, err := func() (vault.Erasure, error) {
				o, err := s.operator(cmd)
				if err != nil {
					return vault.Erasure{}, err
				}
				defer o.Close()
				return o.Erase(cmd.Context(), c, reason)
			}()
			if err != nil {
				if out != nil {
					_ = os.Remove(file) // it is empty
				}
				return err
			}
			if out != nil {
				if err := errors.Join(printJSON(out, erasure.Receipt), out.Sync()); err != nil {
					return fmt.Errorf("the customer is erased, but the receipt was not written; get it again by `strongroom vault receipt`: %w", err)
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), erasure)
			}
			statement, proved, err := erasure.Receipt.Check("")
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "✓ %s is erased\n", c)
			if err := printStatement(w, statement, proved, erasure.Receipt.Key); err != nil {
				return err
			}
			switch {
			case file != "":
				fmt.Fprintf(w, "  receipt    %s\n", file)
			default:
				fmt.Fprintf(w, "  receipt    strongroom vault receipt %s\n", c)
			}
			if !erasure.Scrubbed {
				fmt.Fprintln(w, "\nThe wrapped key may still lie in the database's files, as deleted rows and log. It opens only with this\n"+
					"installation's KEK. docs/keys.md says what to do about it.")
			}
			return nil
		},
	}
	s.place(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the trail; not about the person")
	cmd.Flags().StringVar(&file, "receipt", "", "write the receipt to this new file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.MarkFlagRequired("reason")
	_ = cmd.MarkFlagFilename("receipt", "json")
	return cmd
}

func newVaultReceipt() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "receipt CUSTOMER",
		Short: "Print the receipt of an erasure again, against the newest checkpoint",
		Args:  cobra.ExactArgs(1),
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
			receipt, err := o.Receipt(cmd.Context(), c)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), receipt)
		},
	}
	s.place(cmd)
	return cmd
}

// maxReceipt bounds the file that check-receipt reads.
const maxReceipt = 1 << 20

func newVaultCheckReceipt() *cobra.Command {
	var key string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check-receipt FILE",
		Short: "Check an erasure receipt, without an installation",
		Long: `Checks that the receipt is signed and that the event it names is in the log whose checkpoint it brings
along. It needs no installation and no network. Without --key the receipt is checked against the key
that it brings along, and proves no more than that this key made it: compare the key with one that
you have from elsewhere. FILE may be - for standard input.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer file.Close()
				in = file
			}
			var r vault.Receipt
			if err := json.NewDecoder(io.LimitReader(in, maxReceipt)).Decode(&r); err != nil {
				return fmt.Errorf("%s is no receipt: %w", args[0], err)
			}
			statement, proved, err := r.Check(key)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), statement)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "✓ the receipt holds: %s was erased\n", statement.Customer)
			if err := printStatement(cmd.OutOrStdout(), statement, proved, r.Key); err != nil {
				return err
			}
			if key == "" {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "\nThe key came with the receipt: compare it with the installation's, or give it with --key.")
			}
			return err
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the installation's verifier key, as an earlier receipt shows it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the receipt says as JSON")
	return cmd
}

func printStatement(w io.Writer, s vault.Statement, p audit.Proved, key string) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "  when\t%s\n", s.ErasedAt.Format(time.RFC3339))
	fmt.Fprintf(out, "  by\t%s\n", p.Actor.ID)
	fmt.Fprintf(out, "  where\t%s, installation %s\n", s.Environment, s.Installation)
	fmt.Fprintf(out, "  destroyed\tthe data key in %d versions\n", s.Keys)
	var kinds []string
	for kind := range s.Deleted {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		fmt.Fprintf(out, "  deleted\t%d %s\n", s.Deleted[kind], kind)
	}
	fmt.Fprintf(out, "  event\t%s, number %d of %d in the signed log\n", p.ID, p.Index, p.Size)
	fmt.Fprintf(out, "  signed by\t%s\n", key)
	return out.Flush()
}
