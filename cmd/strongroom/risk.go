package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/assurance"
	"strongroom/internal/assurance/risk"
)

func newRisk() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "risk",
		Short: "Keep the register of risks, the statement of applicability and improvements",
		Long: `The register of risks, the statement of applicability and the actions of improvement that a management of security
asks for (ISO/IEC 27001, ENS). A risk counts for what its treatment proves: while a claim that it leans on does not hold,
it is worth what it would be without the treatment. Every change is in the audit trail.`,
		Example: `  strongroom risk list
  strongroom risk set R-05 --likelihood-after 3 --owner "Head of product"
  strongroom risk review R-05 --next 2027-06-30
  strongroom risk soa`,
	}
	cmd.AddCommand(newRiskList(), newRiskShow(), newRiskSet(), newRiskReview(), newStatement(), newImprovements())
	return cmd
}

// riskCommand is a command that asks a server about risks: the one that runs, or one that is started for the moment.
// It prints what run returns, as JSON when it is asked to.
func riskCommand[T any](cmd *cobra.Command, run func(cmd *cobra.Command, o app.Checker, args []string) (T, error), print func(w io.Writer, t T)) *cobra.Command {
	var s settings
	var asJSON bool
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := s.checker(cmd)
		if err != nil {
			return err
		}
		defer o.Close()
		t, err := run(cmd, o, args)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), t)
		}
		print(cmd.OutOrStdout(), t)
		return nil
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// dayOf reads a day that somebody typed; "" is the zero time.
func dayOf(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return t, fmt.Errorf("--%s: write the day like 2027-06-30", flag)
	}
	return t, nil
}

func newRiskList() *cobra.Command {
	return riskCommand(&cobra.Command{Use: "list", Short: "List the risks, the worst first", Args: cobra.NoArgs},
		func(cmd *cobra.Command, o app.Checker, _ []string) ([]risk.Assessed, error) {
			return o.Risks(cmd.Context())
		},
		printRisks)
}

func printRisks(w io.Writer, list []risk.Assessed) {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "RISK\tNOW\tTREATED\tUNTREATED\tREVIEW\tASSET")
	raised, overdue := 0, 0
	for _, a := range list {
		now := fmt.Sprintf("%2d %s", a.Residual, a.Band)
		if len(a.Raised) > 0 {
			now += " ↑"
			raised++
		}
		review := a.ReviewAt.Format(time.DateOnly)
		if a.Overdue {
			review += " overdue"
			overdue++
		}
		fmt.Fprintf(out, "%s\t%s\t%2d\t%2d\t%s\t%s\n", a.ID, now, a.Target, a.Inherent, review, printable(a.Asset))
	}
	_ = out.Flush() // to standard output
	fmt.Fprintf(w, "\n%d risks", len(list))
	if raised > 0 {
		fmt.Fprintf(w, ", %d raised (↑) because a claim that the treatment leans on is not proven: see `strongroom risk show`", raised)
	}
	if overdue > 0 {
		fmt.Fprintf(w, ", %d reviews overdue", overdue)
	}
	fmt.Fprintln(w)
}

// findRisk returns the risk with the id.
func findRisk(cmd *cobra.Command, o app.Checker, id string) (risk.Assessed, error) {
	list, err := o.Risks(cmd.Context())
	if err != nil {
		return risk.Assessed{}, err
	}
	i := slices.IndexFunc(list, func(a risk.Assessed) bool { return a.ID == id })
	if i < 0 {
		return risk.Assessed{}, fmt.Errorf("there is no risk %q: `strongroom risk list` has them all", printable(id))
	}
	return list[i], nil
}

func newRiskShow() *cobra.Command {
	return riskCommand(&cobra.Command{Use: "show RISK", Short: "Show a risk, and what its treatment leans on", Args: cobra.ExactArgs(1)},
		func(cmd *cobra.Command, o app.Checker, args []string) (risk.Assessed, error) {
			return findRisk(cmd, o, args[0])
		},
		printRisk)
}

func printRisk(w io.Writer, a risk.Assessed) {
	fmt.Fprintf(w, "%s  %s\n\n  %s\n\n", a.ID, printable(a.Asset), printable(a.Threat))
	out := tabwriter.NewWriter(w, 2, 0, 2, ' ', 0)
	level := func(l risk.Level) string {
		return fmt.Sprintf("%2d %s (likelihood %d × impact %d)", l.Value(), risk.Band(l.Value()), l.Likelihood, l.Impact)
	}
	fmt.Fprintf(out, "  now\t%2d %s\n  treated\t%s\n  untreated\t%s\n", a.Residual, a.Band, level(a.After), level(a.Before))
	fmt.Fprintf(out, "  treatment\t%s: %s\n  owner\t%s\n", a.Treatment, printable(a.Measures), printable(a.Owner))
	claims := strings.Join(a.Claims, ", ")
	if claims == "" {
		claims = "no claim: the value is its owner's word"
	}
	fmt.Fprintf(out, "  leans on\t%s\n", claims)
	review := a.ReviewAt.Format(time.DateOnly)
	if a.Overdue {
		review += ", overdue"
	}
	if a.ReviewedAt != nil {
		review += fmt.Sprintf(" (last on %s by %s)", a.ReviewedAt.Format(time.DateOnly), printable(a.ReviewedBy))
	} else {
		review += " (never reviewed)"
	}
	fmt.Fprintf(out, "  review\t%s\n", review)
	_ = out.Flush() // to standard output
	for i, lean := range a.Raised {
		if i == 0 {
			fmt.Fprintln(w, "\nRaised, because")
		}
		fmt.Fprintf(w, "  %s is %s: %s\n", lean.Claim, coloured(w, string(lean.State), stateColours[lean.State]), printable(lean.Why))
	}
}

var stateColours = map[assurance.State]string{assurance.Green: "32", assurance.Amber: "33", assurance.Red: "31", assurance.Grey: "90"}

func newRiskSet() *cobra.Command {
	var c risk.Change
	var asset, threat, owner, treatment, measures, review string
	var claims []string
	var likelihood, impact, likelihoodAfter, impactAfter int
	cmd := riskCommand(&cobra.Command{Use: "set RISK", Short: "Change a risk, or enter a new one", Args: cobra.ExactArgs(1),
		Long: `Changes what is given and leaves the rest. A risk that is not there yet needs everything but claims and review.`,
		Example: `  strongroom risk set R-16 --asset "Payment files" --threat "A file is sent twice." --likelihood 3 --impact 4 \
    --likelihood-after 1 --impact-after 4 --owner "Head of payments" --treatment reduce --measures "Files have a number."`},
		func(cmd *cobra.Command, o app.Checker, args []string) (risk.Assessed, error) {
			for flag, into := range map[string]struct {
				to   **string
				text *string
			}{"asset": {&c.Asset, &asset}, "threat": {&c.Threat, &threat}, "owner": {&c.Owner, &owner}, "treatment": {&c.Treatment, &treatment}, "measures": {&c.Measures, &measures}} {
				if cmd.Flags().Changed(flag) {
					*into.to = into.text
				}
			}
			for flag, into := range map[string]struct {
				to **int
				n  *int
			}{"likelihood": {&c.LikelihoodBefore, &likelihood}, "impact": {&c.ImpactBefore, &impact},
				"likelihood-after": {&c.LikelihoodAfter, &likelihoodAfter}, "impact-after": {&c.ImpactAfter, &impactAfter}} {
				if cmd.Flags().Changed(flag) {
					*into.to = into.n
				}
			}
			if cmd.Flags().Changed("claims") {
				c.Claims = &claims
			}
			if review != "" {
				day, err := dayOf("review", review)
				if err != nil {
					return risk.Assessed{}, err
				}
				c.Review = &day
			}
			if c == (risk.Change{}) {
				return risk.Assessed{}, errors.New("say what to change: strongroom risk set --help lists it")
			}
			if _, err := o.PutRisk(cmd.Context(), args[0], c); err != nil {
				return risk.Assessed{}, err
			}
			return findRisk(cmd, o, args[0])
		}, printRisk)
	f := cmd.Flags()
	f.StringVar(&asset, "asset", "", "what could be harmed")
	f.StringVar(&threat, "threat", "", "by what")
	f.IntVar(&likelihood, "likelihood", 0, "without treatment, 1 to 5")
	f.IntVar(&impact, "impact", 0, "without treatment, 1 to 5")
	f.IntVar(&likelihoodAfter, "likelihood-after", 0, "with treatment, 1 to 5")
	f.IntVar(&impactAfter, "impact-after", 0, "with treatment, 1 to 5")
	f.StringVar(&owner, "owner", "", "a role, not a person")
	f.StringVar(&treatment, "treatment", "", strings.Join(risk.Treatments, ", "))
	f.StringVar(&measures, "measures", "", "what is done")
	f.StringSliceVar(&claims, "claims", nil, "the claims that the treatment leans on, with commas between")
	f.StringVar(&review, "review", "", "the day of the next review")
	return cmd
}

func newRiskReview() *cobra.Command {
	var next string
	cmd := riskCommand(&cobra.Command{Use: "review RISK", Short: "Say that a risk was looked at and stands as it is written", Args: cobra.ExactArgs(1)},
		func(cmd *cobra.Command, o app.Checker, args []string) (risk.Risk, error) {
			day, err := dayOf("next", next)
			if err != nil {
				return risk.Risk{}, err
			}
			return o.ReviewRisk(cmd.Context(), args[0], day)
		},
		func(w io.Writer, k risk.Risk) {
			fmt.Fprintf(w, "✓ %s is reviewed; next on %s\n", k.ID, k.ReviewAt.Format(time.DateOnly))
		})
	cmd.Flags().StringVar(&next, "next", "", "the day of the next review, within 400 days (in 200 days)")
	return cmd
}

func newStatement() *cobra.Command {
	var open bool
	cmd := riskCommand(&cobra.Command{Use: "soa", Short: "Print the statement of applicability (ISO/IEC 27001:2022 Annex A)", Args: cobra.NoArgs,
		Long: `The statement of applicability as it is now: each control of Annex A, whether it applies and why, and the claims and
checks by which Strongroom shows it. What no claim speaks of is "not covered": the operator shows it elsewhere.`},
		func(cmd *cobra.Command, o app.Checker, _ []string) ([]risk.Applied, error) {
			list, err := o.Statement(cmd.Context())
			if open {
				list = slices.DeleteFunc(list, func(a risk.Applied) bool { return a.State == string(assurance.Green) || !a.Applies })
			}
			return list, err
		}, printApplicability)
	cmd.Flags().BoolVar(&open, "open", false, "only what is neither green nor not applicable")
	var no, yes bool
	var because string
	decide := riskCommand(&cobra.Command{Use: "set CONTROL", Short: "Decide whether a control applies", Args: cobra.ExactArgs(1),
		Example: `  strongroom risk soa set A.8.30 --not-applicable --because "All development is done in the house."`},
		func(cmd *cobra.Command, o app.Checker, args []string) (risk.Applied, error) {
			if no == yes {
				return risk.Applied{}, errors.New("say --applicable or --not-applicable")
			}
			if err := o.DecideControl(cmd.Context(), args[0], yes, because); err != nil {
				return risk.Applied{}, err
			}
			list, err := o.Statement(cmd.Context())
			if err != nil {
				return risk.Applied{}, err
			}
			return list[slices.IndexFunc(list, func(a risk.Applied) bool { return a.ID == args[0] })], nil
		},
		func(w io.Writer, a risk.Applied) { printApplicability(w, []risk.Applied{a}) })
	decide.Flags().BoolVar(&no, "not-applicable", false, "the control is not needed here")
	decide.Flags().BoolVar(&yes, "applicable", false, "the control is needed here")
	decide.Flags().StringVar(&because, "because", "", "the justification")
	cmd.AddCommand(decide)
	return cmd
}

func printApplicability(w io.Writer, list []risk.Applied) {
	counts := make(map[string]int)
	for _, a := range list {
		counts[a.State]++
		var by []string
		for _, c := range a.Claims {
			by = append(by, c.Claim+" ("+strings.Join(c.Checks, ", ")+")")
		}
		code := stateColours[assurance.State(a.State)]
		if code == "" {
			code = "90"
		}
		fmt.Fprintf(w, "%-7s %s  %s\n", a.ID, coloured(w, fmt.Sprintf("%-14s", a.State), code), printable(a.Asks))
		fmt.Fprintf(w, "%24s%s\n", "", printable(a.Justification))
		if len(by) > 0 {
			fmt.Fprintf(w, "%24s%s\n", "", strings.Join(by, "; "))
		}
	}
	if len(list) > 1 {
		var parts []string
		for _, state := range []string{string(assurance.Green), string(assurance.Amber), string(assurance.Red), string(assurance.Grey), risk.NotApplicable, risk.NotCovered} {
			if counts[state] > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", counts[state], state))
			}
		}
		fmt.Fprintf(w, "\n%d controls: %s. What is not covered is shown by the operator, elsewhere.\n", len(list), strings.Join(parts, ", "))
	}
}

func newImprovements() *cobra.Command {
	var all bool
	cmd := riskCommand(&cobra.Command{Use: "actions", Short: "List the improvements that are planned", Args: cobra.NoArgs},
		func(cmd *cobra.Command, o app.Checker, _ []string) ([]risk.Action, error) {
			return o.Improvements(cmd.Context(), all)
		}, printActions)
	cmd.Flags().BoolVar(&all, "all", false, "also those that have ended")

	var a risk.Action
	var due string
	add := riskCommand(&cobra.Command{Use: "add", Short: "Plan an improvement", Args: cobra.NoArgs,
		Example: `  strongroom risk actions add --action "Try the restore on a second cloud" --owner "Head of operations" --due 2027-03-31 --risk R-10`},
		func(cmd *cobra.Command, o app.Checker, _ []string) (_ []risk.Action, err error) {
			if a.Due, err = dayOf("due", due); err != nil {
				return nil, err
			}
			made, err := o.AddImprovement(cmd.Context(), a)
			return []risk.Action{made}, err
		}, printActions)
	add.Flags().StringVar(&a.Action, "action", "", "what is to be done")
	add.Flags().StringVar(&a.Owner, "owner", "", "a role, not a person")
	add.Flags().StringVar(&a.Risk, "risk", "", "the risk that it is about")
	add.Flags().StringVar(&due, "due", "", "the day by which it is done")
	cmd.AddCommand(add, endAction("done", risk.Done, "what came of it"), endAction("drop", risk.Dropped, "why; needed"))
	return cmd
}

func endAction(verb, state, help string) *cobra.Command {
	var remark string
	short := map[string]string{risk.Done: "Say that an improvement is made", risk.Dropped: "Give an improvement up"}[state]
	cmd := riskCommand(&cobra.Command{Use: verb + " ACTION", Short: short, Args: cobra.ExactArgs(1)},
		func(cmd *cobra.Command, o app.Checker, args []string) ([]risk.Action, error) {
			a, err := o.EndImprovement(cmd.Context(), args[0], state, remark)
			return []risk.Action{a}, err
		}, printActions)
	cmd.Flags().StringVar(&remark, "remark", "", help)
	return cmd
}

func printActions(w io.Writer, list []risk.Action) {
	if len(list) == 0 {
		fmt.Fprintln(w, "✓ no action is open")
		return
	}
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "ACTION\tDUE\tSTATE\tRISK\tOWNER\tWHAT")
	for _, a := range list {
		state, what := a.State, a.Action
		if a.Overdue {
			state = "overdue"
		}
		if a.Remark != "" {
			what += " (" + a.Remark + ")"
		}
		about := a.Risk
		if about == "" {
			about = "-"
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\n", a.ID, a.Due.Format(time.DateOnly), state, about, printable(a.Owner), printable(what))
	}
	_ = out.Flush() // to standard output
}
