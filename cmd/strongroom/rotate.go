package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/keyring"
)

func newKeysRotate() *cobra.Command {
	var s settings
	var watch, status, pause, resume, asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate [KEY | customer CUSTOMER | customers]",
		Short: "Give a key a new version, while everything goes on",
		Long: `Makes a new version of a key, waits until every server holds it, and has it seal from then on. KEY is kek,
the key-encryption key, or a service key: ` + strings.Join(keyring.Rotatable()[1:], ", ") + `.

After that all keys are wrapped anew that the old key-encryption key wraps; it stays, retired, until
"strongroom keys destroy kek VERSION". The old version of a service key stays for what it made; what the
blind-index key made is made anew, and what the pepper made at each customer's next login.

"customer CUSTOMER" gives one customer a new version of their data key, and "customers" gives one to each. What
older versions sealed is sealed anew, customer by customer; they stay for the events of the trail.

A running server does the work, and goes on after a restart where it was; without a server this command does it.`,
		Example: `  strongroom keys rotate kek --watch
  strongroom keys rotate customers --watch
  strongroom keys rotate --status
  strongroom keys rotate --pause`,
		Args:      cobra.MaximumNArgs(2),
		ValidArgs: append(keyring.Rotatable(), oneCustomer, keyring.AllCustomers),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] == oneCustomer && !status && !pause && !resume {
				return rotateCustomer(cmd, &s, args, asJSON)
			}
			switch {
			case len(args) == 2:
				return fmt.Errorf("%q is too much: name one key", args[1])
			case len(args) == 1 && args[0] != keyring.AllCustomers && !slices.Contains(keyring.Rotatable(), args[0]):
				return fmt.Errorf("%q is no key that can be rotated: name one of %s, customer CUSTOMER, customers", args[0], strings.Join(keyring.Rotatable(), ", "))
			case len(args) == 0 && !status && !pause && !resume:
				return errors.New("say what to rotate: strongroom keys rotate kek; or look at a rotation with --status")
			case len(args) == 1 && (status || pause || resume):
				return errors.New("--status, --pause and --resume are about the rotation that goes on: name no key")
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			ctx := cmd.Context()
			var r keyring.Rotation
			switch {
			case len(args) == 1:
				r, err = o.Rotate(ctx, args[0])
			case pause:
				r, err = o.PauseRotation(ctx, true)
			case resume:
				r, err = o.PauseRotation(ctx, false)
			default:
				r, err = o.Rotation(ctx)
			}
			if err != nil {
				return err
			}
			if len(args) == 1 || resume || status && watch {
				return follow(cmd, o, watch, asJSON, progressUnit(r))
			}
			return printRotation(cmd.OutOrStdout(), r, asJSON)
		},
	}
	s.place(cmd)
	f := cmd.Flags()
	f.BoolVar(&watch, "watch", false, "follow the rotation to its end: done, rate, time left")
	f.BoolVar(&status, "status", false, "print how far the rotation is, or how the latest ended")
	f.BoolVar(&pause, "pause", false, "stop the rotation where it is")
	f.BoolVar(&resume, "resume", false, "let a paused rotation go on")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("status", "pause", "resume")
	return cmd
}

func newKeysCompromised() *cobra.Command {
	var s settings
	var watch, asJSON bool
	var before string
	cmd := &cobra.Command{
		Use:   "compromised {KEY VERSION | customer CUSTOMER VERSION | customers --before TIME}",
		Short: "Say that somebody knows a key version: it never seals again, and what it wraps is wrapped anew at once",
		Args:  cobra.RangeArgs(1, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == oneCustomer || args[0] == keyring.AllCustomers {
				return compromiseCustomers(cmd, &s, args, before, asJSON)
			}
			version, err := keyVersion(args)
			if err != nil {
				return err
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			if args[0] != "kek" {
				if err := o.CompromiseService(cmd.Context(), args[0], version); err != nil {
					return err
				}
				if args[0] == keyring.KeyBlindIndex {
					fmt.Fprintf(cmd.ErrOrStderr(), "blind-index key %d is marked compromised; every index is made anew; destroy it when nothing needs it: strongroom keys destroy blind-index %d\n", version, version)
					r, err := o.Rotation(cmd.Context())
					if err != nil || r.Key != keyring.KeyBlindIndex || !r.Ended.IsZero() {
						return err
					}
					return follow(cmd, o, watch, asJSON, progressUnit(r))
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "✓ %s key %d is marked compromised and makes nothing more; destroy it when nothing needs it: strongroom keys destroy %s %d\n",
					args[0], version, args[0], version)
				return err
			}
			r, err := o.CompromiseKEK(cmd.Context(), version)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "KEK %d is marked compromised; destroy it when nothing needs it: strongroom keys destroy kek %d\n", version, version)
			if r.ID == "" || !r.Ended.IsZero() {
				return nil // nothing had to be wrapped anew
			}
			return follow(cmd, o, watch, asJSON, "keys")
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "follow the rotation to its end: done, rate, time left")
	cmd.Flags().StringVar(&before, "before", "", "with customers: all versions that were made before this time (RFC 3339)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newKeysDestroy() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "destroy {KEY VERSION | customer CUSTOMER VERSION}",
		Short: "Destroy a key version that nothing needs any more; refused as long as something does",
		Args:  cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == oneCustomer {
				return destroyCustomerKey(cmd, &s, args)
			}
			version, err := keyVersion(args)
			if err != nil {
				return err
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			if args[0] != "kek" {
				if err := o.DestroyService(cmd.Context(), args[0], version); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "✓ %s key %d is destroyed\n", args[0], version)
				return err
			}
			if err := o.DestroyKEK(cmd.Context(), version); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "✓ KEK %d is destroyed\n", version)
			return err
		},
	}
	s.place(cmd)
	return cmd
}

// keyVersion reads "kek 2".
func keyVersion(args []string) (uint32, error) {
	if len(args) != 2 || !slices.Contains(keyring.Rotatable(), args[0]) {
		return 0, fmt.Errorf("%q is no key that this can be done to: name customer CUSTOMER VERSION, or a version of one of %s",
			strings.Join(args, " "), strings.Join(keyring.Rotatable(), ", "))
	}
	version, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil || version == 0 {
		return 0, fmt.Errorf("%q is no version: strongroom keys list prints them", args[1])
	}
	return uint32(version), nil
}

// follow waits for the rotation as long as somebody watches or nobody else does the work.
func follow(cmd *cobra.Command, o app.Operator, watch, asJSON bool, unit string) error {
	said := ""
	bar := newProgress(os.Stderr, unit)
	r, err := o.AwaitRotation(cmd.Context(), watch, func(r keyring.Rotation) {
		if phase := phaseLine(r); phase != said && !asJSON && r.Ended.IsZero() {
			bar.clear()
			said = phase
			fmt.Fprintln(cmd.OutOrStdout(), phase)
		}
		if r.Phase == keyring.PhaseResealing {
			bar.update(r.Done, r.Total)
		}
	})
	bar.clear()
	if err != nil {
		return err
	}
	return printRotation(cmd.OutOrStdout(), r, asJSON)
}

// isKEK tells the key-encryption key, under which others are wrapped anew, from service keys.
func isKEK(r keyring.Rotation) bool { return r.Key == "kek" }

// isIndex tells the blind-index key, under which rows get a new index.
func isIndex(r keyring.Rotation) bool { return r.Key == keyring.KeyBlindIndex }

func keyName(r keyring.Rotation) string {
	if isKEK(r) {
		return "KEK"
	}
	return r.Key + " key"
}

func phaseLine(r keyring.Rotation) string {
	if isCustomers(r) {
		return customersPhase(r)
	}
	name := keyName(r)
	switch r.Phase {
	case keyring.PhasePublished:
		return fmt.Sprintf("%s %d is published; it is active from %s on, when every server holds it", name, r.Version, r.Due.Local().Format("15:04:05"))
	case keyring.PhaseResealing:
		if isIndex(r) {
			return fmt.Sprintf("%s %d is active; %d rows get an index under it", name, r.Version, r.Total)
		}
		return fmt.Sprintf("%s %d seals; %d keys are wrapped anew", name, r.Version, r.Total)
	case keyring.PhaseClearing:
		return fmt.Sprintf("%s %d has every row; those under older versions are deleted", name, r.Version)
	default:
		return ""
	}
}

func printRotation(w io.Writer, r keyring.Rotation, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	if isCustomers(r) {
		return printCustomers(w, r)
	}
	name := keyName(r)
	var err error
	switch {
	case !r.Ended.IsZero() && isIndex(r) && r.Failed > 0:
		_, err = fmt.Fprintf(w, "✗ %s %d: %d rows have a new index; %d do not open and keep the old one, which stays needed: see the log\n", name, r.Version, r.Done, r.Failed)
		if err == nil {
			err = exitError(exitFindings)
		}
	case !r.Ended.IsZero() && isIndex(r):
		_, err = fmt.Fprintf(w, "✓ %s %d: %d rows have a new index, after %v\n", name, r.Version, r.Done, r.Ended.Sub(r.Started).Round(time.Millisecond))
	case !r.Ended.IsZero() && r.Left > 0:
		_, err = fmt.Fprintf(w, "✓ %s %d is active; %d private codes move to it when their customers next log in\n", name, r.Version, r.Left)
	case !r.Ended.IsZero() && !isKEK(r):
		_, err = fmt.Fprintf(w, "✓ %s %d is active\n", name, r.Version)
	case !r.Ended.IsZero() && r.Failed > 0:
		_, err = fmt.Fprintf(w, "✗ %s %d: %d keys wrapped anew; %d do not open and stay as they are: bring them back from a backup\n", name, r.Version, r.Done, r.Failed)
		if err == nil {
			err = exitError(exitFindings)
		}
	case !r.Ended.IsZero():
		_, err = fmt.Fprintf(w, "✓ %s %d: %d keys wrapped anew in %v\n", name, r.Version, r.Done, r.Ended.Sub(r.Started).Round(time.Millisecond))
	case r.Phase == keyring.PhasePublished:
		_, err = fmt.Fprintln(w, phaseLine(r))
	default:
		state, did := "", "keys wrapped anew"
		if r.Paused {
			state = "paused: "
		}
		if isIndex(r) {
			did = "rows have a new index"
		}
		_, err = fmt.Fprintf(w, "%s%s %d: %d of %d %s, %.0f/s, %v left\n", state, name, r.Version, r.Done, r.Total, did, r.Rate, r.Estimate.Round(time.Second))
	}
	return err
}
