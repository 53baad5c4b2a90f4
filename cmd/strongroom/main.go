// Command strongroom keeps customers' identity and personal data, and proves how it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
)

// version is set when a release is linked.
var version = "unknown"

// The exit codes. 1 is every failure that has no code of its own.
const exitFindings = 3 // audit verify, keys rotate and findings have something to tell

// exitError carries an exit code past cobra; what it has to say is printed already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if err := app.Harden(); err != nil {
		fmt.Fprintln(os.Stderr, "strongroom:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	}
	fmt.Fprintln(os.Stderr, "strongroom:", err)
	return 1
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "strongroom",
		Short: "Keeps customers' identity and personal data, and proves how it does",
		Long: `Strongroom keeps the identity and the personal data of a money app's customers: encrypted record by
record, behind three-factor login, with every access in a trail that cannot be altered unnoticed.

Start with "strongroom dev" and, in a second terminal, "strongroom demo".`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newDev(), newInit(), newServe(), newDemo(), newAudit(), newCheck(), newClaims(), newEvidence(), newFindings(), newLogin(), newKeys(),
		newVault(), newBackup(), newWitness(), newPins(), newReports(), newRisk(), newConfig(), newVersion())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "strongroom", version)
			return err
		},
	}
}
