package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/customer"
	"strongroom/internal/keyring"
)

// oneCustomer names one customer's data key, before the customer's id.
const oneCustomer = "customer"

func rotateCustomer(cmd *cobra.Command, s *settings, args []string, asJSON bool) error {
	if len(args) != 2 {
		return errors.New("say whose key: strongroom keys rotate customer CUSTOMER, or keys rotate customers for all")
	}
	o, err := s.operator(cmd)
	if err != nil {
		return err
	}
	defer o.Close()
	k, err := o.RotateCustomer(cmd.Context(), customer.ID(args[1]))
	if err != nil {
		return err
	}
	return printCustomerKey(cmd.OutOrStdout(), k, asJSON)
}

func compromiseCustomers(cmd *cobra.Command, s *settings, args []string, before string, asJSON bool) error {
	var c customer.ID
	var version uint32
	var at time.Time
	var err error
	if args[0] == oneCustomer {
		c, version, err = customerVersion(args)
	} else if at, err = time.Parse(time.RFC3339, before); err != nil || len(args) != 1 {
		err = errors.New("say which versions: strongroom keys compromised customers --before 2026-01-31T12:00:00Z")
	}
	if err != nil {
		return err
	}
	o, err := s.operator(cmd)
	if err != nil {
		return err
	}
	defer o.Close()
	if args[0] == oneCustomer {
		k, err := o.CompromiseCustomer(cmd.Context(), c, version)
		if err != nil {
			return err
		}
		return printCustomerKey(cmd.OutOrStdout(), k, asJSON)
	}
	n, err := o.CompromiseCustomers(cmd.Context(), at)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]int64{"versions": n})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "✓ %d versions of customers' data keys are marked compromised and seal no more; "+
		"what they sealed is sealed anew, before everything else\n", n)
	return err
}

func destroyCustomerKey(cmd *cobra.Command, s *settings, args []string) error {
	c, version, err := customerVersion(args)
	if err != nil {
		return err
	}
	o, err := s.operator(cmd)
	if err != nil {
		return err
	}
	defer o.Close()
	if _, err := o.DestroyCustomerKey(cmd.Context(), c, version); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "✓ version %d of the data key of %s is destroyed\n", version, c)
	return err
}

// customerVersion reads "customer cus_… 2".
func customerVersion(args []string) (customer.ID, uint32, error) {
	if len(args) != 3 {
		return "", 0, errors.New("name the customer and the version: customer CUSTOMER VERSION")
	}
	version, err := strconv.ParseUint(args[2], 10, 32)
	if err != nil || version == 0 {
		return "", 0, fmt.Errorf("%q is no version: strongroom keys rotate customer prints them", args[2])
	}
	return customer.ID(args[1]), uint32(version), nil
}

func printCustomerKey(w io.Writer, k app.CustomerKey, asJSON bool) error {
	if asJSON {
		return printJSON(w, k)
	}
	mark := "✓"
	if k.Failed > 0 {
		mark = "✗"
	}
	fmt.Fprintf(w, "%s %s: %d values sealed anew", mark, k.Customer, k.Resealed)
	if k.Failed > 0 {
		fmt.Fprintf(w, "; %d do not open and stay as they are: bring them back from a backup", k.Failed)
	}
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "\nVERSION\tSTATE\tAGE\t")
	for _, v := range k.Versions {
		note := ""
		switch {
		case v.Waiting:
			note = "values may wait to be sealed anew"
		case v.State == "retired" || v.State == "compromised":
			note = "kept for events of the trail"
		}
		fmt.Fprintf(out, "%d\t%s\t%s\t%s\n", v.Version, v.State, age(v.MadeAt), note)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if k.Failed > 0 {
		return exitError(exitFindings)
	}
	return nil
}

// isCustomers tells the rotation of all customers' data keys.
func isCustomers(r keyring.Rotation) bool { return r.Key == oneCustomer }

// progressUnit is what a rotation counts.
func progressUnit(r keyring.Rotation) string {
	if isCustomers(r) {
		return "customers"
	}
	return "keys"
}

func customersPhase(r keyring.Rotation) string {
	if r.Phase != keyring.PhaseResealing {
		return ""
	}
	return fmt.Sprintf("%d customers get a new version of their data key, and their values are sealed anew", r.Total)
}

func printCustomers(w io.Writer, r keyring.Rotation) error {
	var err error
	switch {
	case !r.Ended.IsZero() && r.Failed > 0:
		_, err = fmt.Fprintf(w, "✗ %d customers have a new version of their data key; %d values do not open and stay as they are: bring them back from a backup\n", r.Done, r.Failed)
		if err == nil {
			err = exitError(exitFindings)
		}
	case !r.Ended.IsZero():
		_, err = fmt.Fprintf(w, "✓ %d customers have a new version of their data key, their values sealed anew, in %v\n", r.Done, r.Ended.Sub(r.Started).Round(time.Millisecond))
	default:
		state := ""
		if r.Paused {
			state = "paused: "
		}
		_, err = fmt.Fprintf(w, "%s%d of %d customers have a new version of their data key, %.0f/s, %v left\n", state, r.Done, r.Total, r.Rate, r.Estimate.Round(time.Second))
	}
	return err
}
