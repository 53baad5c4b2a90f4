package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/config"
	"strongroom/internal/keyring"
)

func newKeysMoveRoot() *cobra.Command {
	var s settings
	var begin, status, confirm, abort, asJSON bool
	cmd := &cobra.Command{
		Use:   "move-root",
		Short: "Move the root key to another provider, while everything goes on",
		Long: `Moves the root key between a local key file, an age identity and key-management services.

Name the new root key as second_root_key in ` + config.FileName + `, and begin: every key-encryption key, and the
embedded database's file key, is wrapped by both roots. From then on a server starts with either. Swap the
two blocks in the settings and restart the servers when it suits you; then confirm, which drops what the
old root wraps, for good. It refuses when the new root cannot open every key at that moment. Until then
abort goes back. Each step goes on where it was cut off when it is run again.

A local key file or an encrypted age identity that is not there yet is made.`,
		Example: `  strongroom keys move-root --begin
  strongroom keys move-root --status
  strongroom keys move-root --confirm`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			do, second := app.MoveStatus, config.RootKey{}
			switch {
			case begin:
				c, err := config.Load(s.path(), environ())
				if err != nil {
					return err
				}
				if c.SecondRootKey.IsZero() {
					return errors.New("second_root_key in " + s.path() + " is empty: name the new root key there")
				}
				if err := app.MakeSecondRoot(c); err != nil {
					return err
				}
				do, second = app.MoveBegin, c.SecondRootKey
			case confirm:
				do = app.MoveConfirm
			case abort:
				do = app.MoveAbort
			case !status:
				return errors.New("say what to do: --begin, --status, --confirm or --abort")
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			move, err := o.MoveRoot(cmd.Context(), do, second)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), move)
			}
			return printMove(cmd.OutOrStdout(), move)
		},
	}
	s.place(cmd)
	f := cmd.Flags()
	f.BoolVar(&begin, "begin", false, "have the root key that second_root_key names wrap everything, too")
	f.BoolVar(&status, "status", false, "print how far the move is, or how the latest ended")
	f.BoolVar(&confirm, "confirm", false, "drop what the old root key wraps, for good")
	f.BoolVar(&abort, "abort", false, "drop what the new root key wraps")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("begin", "status", "confirm", "abort")
	return cmd
}

func printMove(w io.Writer, m keyring.RootMove) error {
	line, next := "", ""
	switch m.Phase {
	case keyring.MoveWrapping:
		line, next = "… the new root key does not wrap everything yet", "go on with --begin, or go back with --abort"
	case keyring.MoveOpen:
		line, next = "✓ both root keys open everything; a server starts with either",
			"swap root_key and second_root_key in the settings and restart; then --confirm, or go back with --abort"
	case keyring.MoveConfirming:
		line, next = "… the move is being confirmed", "run --confirm again to its end"
	case keyring.MoveAborting:
		line, next = "… the move is being aborted", "run --abort again to its end"
	case keyring.MoveConfirmed:
		line, next = "✓ the root key has moved; the old one opens nothing here any more",
			"make the new one root_key and empty second_root_key; keep the old root key for as long as you keep backups from before"
	case keyring.MoveAborted:
		line, next = "✓ the move was aborted; the new root key opens nothing", "empty second_root_key"
	}
	if _, err := fmt.Fprintf(w, "%s\n\n  from      %s\n  to        %s\n  KEKs      %d of %d wrapped by the new one\n", line, m.From, m.To, m.Wrapped, m.KEKs); err != nil {
		return err
	}
	if m.FileKey != "" {
		by := map[string]string{"old": "wrapped by the old one", "new": "wrapped by the new one", "both": "wrapped by both"}[m.FileKey]
		if _, err := fmt.Fprintf(w, "  file key  %s\n", by); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "\nNext: %s.\n", next)
	return err
}

func newKeysAcceptStates() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "accept-states",
		Short: "Have the states of the keys hold as they are in the database, after you looked at them",
		Long: `A server refuses keys whose states (active, retired, compromised, destroyed) are not those that Strongroom
wrote: somebody changed them, or brought only some tables back from a backup. Compare the tables kek and
service_key with what the trail says (strongroom audit tail), and run this only if they are right. No server
may run. It is recorded in the trail.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			log, err := logger(c.Log)
			if err != nil {
				return err
			}
			if err := app.AcceptStates(cmd.Context(), c, log); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "✓ the states of the keys hold as they are; strongroom keys list prints them")
			return err
		},
	}
	s.place(cmd)
	return cmd
}
