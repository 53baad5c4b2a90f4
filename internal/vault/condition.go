package vault

import (
	"slices"
	"strconv"
	"strings"

	"strongroom/internal/problem"
)

// Condition is what must be true of a record before it is changed: the fields If-Match and
// If-None-Match of RFC 9110 section 13.1, as they came in. The zero Condition asks for nothing.
type Condition struct {
	IfMatch     string // "*", or entity tags as ETag returns them
	IfNoneMatch string // only "*": the record must not exist
}

// IfVersion asks for exactly this version.
func IfVersion(version int64) Condition { return Condition{IfMatch: ETag(version)} }

// IfAbsent asks that there is no such record.
func IfAbsent() Condition { return Condition{IfNoneMatch: "*"} }

// ETag returns the strong entity tag of a version (RFC 9110 section 8.8.3). A version is given to a
// key once and never again, also when the record is deleted and made anew, so an old tag never
// matches a newer record.
func ETag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// condition is a Condition that was read.
type condition struct {
	match  bool     // If-Match is there
	any    bool     // and it is *
	tags   []string // or these strong tags, quotes included
	absent bool
}

var errCondition = problem.New(problem.Invalid, "invalid-precondition",
	"If-Match must be * or a list of entity tags such as \"3\"; If-None-Match must be *.")

func (c Condition) parse() (condition, *problem.Problem) {
	var out condition
	if c.IfNoneMatch != "" {
		if strings.Trim(c.IfNoneMatch, " \t") != "*" {
			return out, errCondition
		}
		out.absent = true
	}
	if c.IfMatch == "" {
		return out, nil
	}
	out.match = true
	rest := strings.Trim(c.IfMatch, " \t")
	if rest == "*" {
		out.any = true
		return out, nil
	}
	for {
		// Weak tags are read and never match: If-Match compares strongly.
		tag, weak := strings.CutPrefix(rest, "W/")
		if tag == "" || tag[0] != '"' {
			return out, errCondition
		}
		end := strings.IndexByte(tag[1:], '"') + 2
		if end < 2 || strings.ContainsFunc(tag[:end], func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return out, errCondition
		}
		if !weak {
			out.tags = append(out.tags, tag[:end])
		}
		rest = strings.TrimLeft(tag[end:], " \t")
		if rest == "" {
			return out, nil
		}
		if rest[0] != ',' {
			return out, errCondition
		}
		rest = strings.TrimLeft(rest[1:], " \t")
	}
}

var (
	errVersion = problem.New(problem.PreconditionFailed, "version-mismatch",
		"The record is not in the state that If-Match or If-None-Match asks for. Read it again.")
	errUnconditional = problem.New(problem.PreconditionRequired, "precondition-required",
		"The record exists: say in If-Match which version to replace, with the ETag of the last answer.")
)

// check reports whether the condition holds for a record of this version, 0 when there is none.
func (c condition) check(version int64) *problem.Problem {
	if c.absent && version != 0 {
		return errVersion
	}
	if c.match && (version == 0 || !c.any && !slices.Contains(c.tags, ETag(version))) {
		return errVersion
	}
	return nil
}
