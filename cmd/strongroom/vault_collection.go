package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"strongroom/internal/app"
	"strongroom/internal/vault"
)

func newVaultCollection() *cobra.Command {
	cmd := &cobra.Command{Use: "collection", Short: "Declare the kinds of record that the vault keeps"}
	cmd.AddCommand(
		newCollectionList("list", "List the collections: version, who manages them, what is in force", 0),
		newCollectionShow(),
		newCollectionPut(),
		newCollectionList("history NAME", "List the versions of a collection's declaration, newest first", 1),
	)
	return cmd
}

// operatorCommand makes a command that asks the operator for something and prints it.
func operatorCommand[T any](cmd *cobra.Command, ask func(cmd *cobra.Command, o app.Operator, args []string) (T, error), show func(w io.Writer, answer T) error) *cobra.Command {
	var s settings
	var asJSON bool
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := s.operator(cmd)
		if err != nil {
			return err
		}
		defer o.Close()
		answer, err := ask(cmd, o, args)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), answer)
		}
		return show(cmd.OutOrStdout(), answer)
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newCollectionList(use, short string, args int) *cobra.Command {
	return operatorCommand(&cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(args)},
		func(cmd *cobra.Command, o app.Operator, args []string) ([]vault.Declared, error) {
			if len(args) == 0 {
				return o.Collections(cmd.Context())
			}
			return o.CollectionHistory(cmd.Context(), args[0])
		},
		func(w io.Writer, all []vault.Declared) error {
			out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(out, "COLLECTION\tVERSION\tIN FORCE\tMANAGED BY\tLEGAL BASIS\tSINCE\tBY\tDIGEST")
			for _, d := range all {
				served, basis := "no", "-"
				if d.Served {
					served = "yes"
				}
				if d.LegalBasis != "" {
					basis = string(d.LegalBasis)
				}
				fmt.Fprintf(out, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%.23s…\n", d.Name, d.Version, served, d.Source, basis,
					d.At.Local().Format(time.DateOnly), d.By, d.Digest)
			}
			return out.Flush()
		})
}

func newCollectionShow() *cobra.Command {
	var version int
	cmd := operatorCommand(&cobra.Command{
		Use:   "show NAME",
		Short: "Print a collection's declaration, and what it means for the records that are there",
		Long: `Prints the newest declaration of a collection, as YAML that "put" takes again. Comments before it say how
many records there are, how many of them the retention is about to delete, and whether an index is being
built. --version prints an older one.`,
		Args: cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, o app.Operator, args []string) (vault.Declared, error) {
		return o.Collection(cmd.Context(), args[0], version)
	}, showCollection)
	cmd.Flags().IntVar(&version, "version", 0, "print this version instead of the newest")
	return cmd
}

func showCollection(w io.Writer, d vault.Declared) error {
	fmt.Fprintf(w, "# %s version %d, by %s on %s, managed by %s\n# %s\n", d.Name, d.Version, d.By, d.At.Local().Format(time.DateTime), d.Source, d.Digest)
	if n := d.Records; n != nil {
		fmt.Fprintf(w, "# records: %d", n.All)
		if d.Declaration.Retention > 0 {
			fmt.Fprintf(w, "; %d past their retention, deleted within the hour; %d in 30 days unless they change", n.Over, n.Over30d)
		}
		fmt.Fprintln(w)
	}
	if err := showBuilding(w, "# ", d.Building); err != nil {
		return err
	}
	text, err := d.Declaration.MarshalJSON()
	if err != nil {
		return err
	}
	var plain yaml.Node
	if err := yaml.Load(text, &plain); err != nil {
		return err
	}
	block(&plain, 0)
	out, err := yaml.Dump(&plain, yaml.WithLineWidth(-1), yaml.WithIndent(2))
	if err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

// block writes the outer part of a declaration in YAML's block style, and each field's schema on its line.
func block(n *yaml.Node, depth int) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	if depth >= 4 {
		n.Style |= yaml.FlowStyle
	}
	for _, c := range n.Content {
		block(c, depth+1)
	}
}

func showBuilding(w io.Writer, indent string, b *vault.Building) error {
	if b == nil {
		return nil
	}
	what := "the index is being tidied"
	if len(b.Fields) > 0 {
		what = strings.Join(b.Fields, ", ") + " cannot be looked up before the index is built"
	}
	_, err := fmt.Fprintf(w, "%s%s: %d records done\n", indent, what, b.Done)
	if err == nil && b.Unreadable > 0 {
		_, err = fmt.Fprintf(w, "%s%d records do not open, and are in no index\n", indent, b.Unreadable)
	}
	return err
}

func newCollectionPut() *cobra.Command {
	return operatorCommand(&cobra.Command{
		Use:   "put FILE",
		Short: "Declare a collection, or its next version, from a file in YAML or JSON",
		Long: `Declares a collection, or the next version of one, at once and on all servers. Records that are there keep
the version they were written under and stay readable. What it shows of them follows the new declaration.
FILE may be - for standard input. "show" prints a declaration to begin with.

Refused are: collections that the settings name; another type for a field that records have had;
uniqueness of a field whose values are not unique, or whose index is not complete.`,
		Args: cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, o app.Operator, args []string) (vault.Declared, error) {
		in := cmd.InOrStdin()
		if args[0] != "-" {
			file, err := os.Open(args[0])
			if err != nil {
				return vault.Declared{}, err
			}
			defer file.Close()
			in = file
		}
		text, err := io.ReadAll(io.LimitReader(in, vault.MaxDeclaration+1))
		if err != nil {
			return vault.Declared{}, err
		}
		return o.PutCollection(cmd.Context(), text)
	}, func(w io.Writer, d vault.Declared) error {
		state := "is in force"
		if d.Unchanged {
			state = "is in force already, and stays as it is"
		}
		if _, err := fmt.Fprintf(w, "✓ %s version %d %s\n  %s\n", d.Name, d.Version, state, d.Digest); err != nil {
			return err
		}
		return showBuilding(w, "  ", d.Building)
	})
}
