package bundle

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	oscal "github.com/defenseunicorns/go-oscal/src/types/oscal-1-1-3"
	"github.com/google/uuid"

	"strongroom/internal/check"
)

// sum is what the runs of one check came to.
type sum struct {
	runs   map[check.Outcome]int64
	newest Seen
}

// sums has one sum for each check; it is all that is remembered of runs.
type sums map[string]*sum

func newSums() sums { return make(sums) }

func (s sums) add(seen Seen) {
	one := s[seen.Check]
	if one == nil {
		one = &sum{runs: make(map[check.Outcome]int64)}
		s[seen.Check] = one
	}
	one.runs[seen.Outcome]++
	if !seen.ObservedAt.Before(one.newest.ObservedAt) {
		one.newest = seen
	}
}

// namespace is that of the properties which OSCAL does not have.
const namespace = "urn:strongroom:oscal"

// assessment returns the bundle's content for tools that read OSCAL: an observation for each check, with what its
// runs came to and what the newest saw, and a finding for each claim.
func assessment(info Info, c Catalogue, sums sums) oscal.OscalCompleteSchema {
	id := func(parts ...string) string {
		return uuid.NewSHA1(uuid.NameSpaceURL, []byte(strings.Join(append([]string{
			"urn:strongroom", info.Installation, info.From.UTC().Format(time.RFC3339Nano), info.To.UTC().Format(time.RFC3339Nano),
		}, parts...), ":"))).String()
	}
	says := make(map[string]string)
	for _, k := range c.Checks {
		says[k.ID] = k.Says
	}
	start := info.To.UTC()
	var observations []oscal.Observation
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		one := sums[name]
		seen := one.newest
		if seen.ObservedAt.Before(start) {
			start = seen.ObservedAt.UTC()
		}
		expires := seen.ValidUntil.UTC()
		observations = append(observations, oscal.Observation{
			UUID: id("check", name), Title: name, Description: sentence(says[name], seen.Exercised), Methods: []string{"TEST"}, Types: &[]string{"control-objective"},
			Collected: seen.ObservedAt.UTC(), Expires: &expires, Remarks: seen.Detail,
			Props: &[]oscal.Property{
				{Name: "outcome", Ns: namespace, Value: string(seen.Outcome)},
				{Name: "runs", Ns: namespace, Value: strconv.FormatInt(one.runs[check.Holds]+one.runs[check.Fails]+one.runs[check.Unknown], 10)},
				{Name: "runs-held", Ns: namespace, Value: strconv.FormatInt(one.runs[check.Holds], 10)},
				{Name: "runs-failed", Ns: namespace, Value: strconv.FormatInt(one.runs[check.Fails], 10)},
				{Name: "runs-unknown", Ns: namespace, Value: strconv.FormatInt(one.runs[check.Unknown], 10)},
			},
			RelevantEvidence: &[]oscal.RelevantEvidence{{Href: runsName, Description: "Every run as a signed in-toto statement."}},
		})
	}
	if !info.From.IsZero() {
		start = info.From.UTC()
	}
	var findings []oscal.Finding
	var controls []oscal.AssessedControlsSelectControlById
	for _, claim := range c.Claims {
		controls = append(controls, oscal.AssessedControlsSelectControlById{ControlId: token(claim.ID)})
		status := oscal.ObjectiveStatus{State: "not-satisfied", Reason: "other", Remarks: claim.Why}
		switch claim.State {
		case "green":
			status.State, status.Reason = "satisfied", "pass"
		case "red":
			status.Reason = "fail"
		}
		f := oscal.Finding{
			UUID: id("claim", claim.ID), Title: claim.ID, Description: claim.Sentence,
			Target: oscal.FindingTarget{Type: "objective-id", TargetId: token(claim.ID), Status: status},
		}
		props := []oscal.Property{{Name: "state", Ns: namespace, Value: claim.State}}
		var related []oscal.RelatedObservation
		for _, control := range claim.Controls {
			for _, r := range control.References {
				props = append(props, oscal.Property{Name: "reference", Ns: namespace, Value: r})
			}
			for _, name := range control.Checks {
				if sums[name] != nil {
					related = append(related, oscal.RelatedObservation{ObservationUuid: id("check", name)})
				}
			}
		}
		f.Props = &props
		if len(related) > 0 {
			f.RelatedObservations = &related
		}
		findings = append(findings, f)
	}
	end := info.To.UTC()
	result := oscal.Result{
		UUID: id("result"), Title: "Checks of the running system", Start: start, End: &end,
		Description: "Each claim stands on checks that exercise the running system. A claim is satisfied while all of its checks hold and none of their evidence has expired; what is unknown is not satisfied.",
		ReviewedControls: oscal.ReviewedControls{
			Description:       "The claims of the installation; their references to standards are properties of the findings.",
			ControlSelections: []oscal.AssessedControls{{IncludeControls: &controls}},
		},
	}
	if len(observations) > 0 {
		result.Observations = &observations
	}
	if len(findings) > 0 {
		result.Findings = &findings
	}
	plan := id("plan")
	return oscal.OscalCompleteSchema{AssessmentResults: &oscal.AssessmentResults{
		UUID: id("results"),
		Metadata: oscal.Metadata{
			Title: fmt.Sprintf("What the checks of %s (%s) found", info.Installation, info.Environment), LastModified: end,
			Version: end.Format(time.RFC3339), OscalVersion: oscal.Version, Remarks: "Written by " + info.Program + ".",
		},
		ImportAp: oscal.ImportAp{Href: "#" + plan},
		Results:  []oscal.Result{result},
		BackMatter: &oscal.BackMatter{Resources: &[]oscal.Resource{{
			UUID: plan, Title: "The claims and their checks", Description: "The plan is the catalogue of claims: what is promised, and which checks try it.",
			Rlinks: &[]oscal.ResourceLink{{Href: claimsName, MediaType: "application/json"}},
		}}},
	}}
}

// sentence returns what a check says, and what was done.
func sentence(says, exercised string) string {
	if says == "" {
		says = "A check that this version does not have."
	}
	if exercised != "" {
		says += " The check " + exercised + "."
	}
	return says
}

// token makes an identifier a token as OSCAL wants it.
func token(id string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsLetter(c) || unicode.IsDigit(c) || strings.ContainsRune("-._", c) {
			return c
		}
		return '_'
	}, id)
}
