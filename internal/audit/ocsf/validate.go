package ocsf

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// requiredText is what the schema of Version requires of the classes in the catalogue and of the objects
// that they hold: attributes that must be there, and sets of which one must be.
//
//go:embed required.json
var requiredText []byte

type rule struct {
	Required   []string `json:"required"`
	OneOf      []string `json:"one_of"`
	Activities []int    `json:"activities"`
}

var rules = func() (r struct {
	Version string          `json:"version"`
	Event   []string        `json:"event"`
	Classes map[string]rule `json:"classes"`
	Objects map[string]rule `json:"objects"`
}) {
	if err := json.Unmarshal(requiredText, &r); err != nil {
		panic("ocsf: required.json: " + err.Error())
	}
	return r
}()

// Validate reports every way in which a JSON object is not an event of the classes that Strongroom uses:
// an attribute that is missing, an activity that the class does not have, numbers that do not fit together.
func Validate(b []byte) error {
	var e map[string]any
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("ocsf: %w", err)
	}
	var errs []error
	number := func(name string) int {
		n, ok := e[name].(float64)
		if !ok || n != float64(int(n)) {
			errs = append(errs, fmt.Errorf("ocsf: %s is no whole number", name))
		}
		return int(n)
	}
	errs = append(errs, rule{Required: rules.Event}.check("event", e)...)
	class, activity := number("class_uid"), number("activity_id")
	r, ok := rules.Classes[strconv.Itoa(class)]
	if !ok {
		return errors.Join(append(errs, fmt.Errorf("ocsf: there is no class %d", class))...)
	}
	errs = append(errs, r.check("event", e)...)
	if !slices.Contains(r.Activities, activity) {
		errs = append(errs, fmt.Errorf("ocsf: class %d has no activity %d", class, activity))
	}
	if name, _ := e["activity_name"].(string); activity == 99 && name == "" {
		errs = append(errs, errors.New("ocsf: the activity Other needs an activity_name"))
	}
	if number("category_uid") != class/1000 || number("type_uid") != class*100+activity {
		errs = append(errs, errors.New("ocsf: category_uid or type_uid does not fit class_uid and activity_id"))
	}
	if s := number("severity_id"); s < 0 || s > 6 && s != 99 {
		errs = append(errs, fmt.Errorf("ocsf: there is no severity %d", s))
	}
	if t := number("time"); t < 0 {
		errs = append(errs, errors.New("ocsf: time is before 1970"))
	}
	if m, _ := e["metadata"].(map[string]any); m["version"] != rules.Version {
		errs = append(errs, fmt.Errorf("ocsf: metadata.version is not %s", rules.Version))
	}
	return errors.Join(append(errs, objects("event", e)...)...)
}

func (r rule) check(where string, o map[string]any) (errs []error) {
	has := func(name string) bool { v, ok := o[name]; return ok && v != nil && v != "" }
	for _, name := range r.Required {
		if !has(name) {
			errs = append(errs, fmt.Errorf("ocsf: %s.%s is missing", where, name))
		}
	}
	if len(r.OneOf) > 0 && !slices.ContainsFunc(r.OneOf, has) {
		errs = append(errs, fmt.Errorf("ocsf: %s has none of %v", where, r.OneOf))
	}
	return errs
}

// objects checks the objects inside of o by their attribute's name; what is unmapped has no rules.
func objects(where string, o map[string]any) (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(o)) {
		inner, ok := o[name].(map[string]any)
		if !ok || name == "unmapped" {
			continue
		}
		at := where + "." + name
		errs = append(errs, rules.Objects[name].check(at, inner)...)
		errs = append(errs, objects(at, inner)...)
	}
	return errs
}
