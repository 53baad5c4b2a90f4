package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"strongroom/internal/config"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look after the settings"}
	var s settings
	check := &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong with the settings and what to do about it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return fmt.Errorf("%s:\n%w", s.path(), err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "✓ %s is sound (environment %s)\n", s.path(), c.Environment)
			return err
		},
	}
	s.place(check)
	s.doors(check)
	template := &cobra.Command{
		Use:   "template",
		Short: "Print every setting with its default, explained",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.Template)
			return err
		},
	}
	cmd.AddCommand(check, template)
	return cmd
}
