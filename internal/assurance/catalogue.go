package assurance

import (
	"bytes"
	_ "embed"
	"fmt"

	"go.yaml.in/yaml/v4"
)

//go:embed claims.yaml
var claimsFile []byte

// Claim is a sentence for the public and what makes it true.
type Claim struct {
	ID       string    `yaml:"id" json:"id"`
	Sentence string    `yaml:"sentence" json:"sentence"`
	Owner    string    `yaml:"owner" json:"owner"` // the room that makes it true
	Controls []Control `yaml:"controls" json:"controls,omitempty"`
}

// Control is one way in which a claim is made true.
type Control struct {
	Text       string   `yaml:"text" json:"text"`
	References []string `yaml:"references" json:"references"` // identifiers in standards, "iso:A.8.24"
	Checks     []string `yaml:"checks" json:"checks"`
}

// checks returns the names of all checks of a claim.
func (c Claim) checks() (all []string) {
	for _, control := range c.Controls {
		all = append(all, control.Checks...)
	}
	return all
}

// catalogue returns the claims that the product ships.
func catalogue() ([]Claim, error) { return parse(claimsFile) }

// parse reads claims, and refuses what is not whole.
func parse(file []byte) ([]Claim, error) {
	loader, err := yaml.NewLoader(bytes.NewReader(file), yaml.WithKnownFields())
	if err != nil {
		return nil, err
	}
	var claims []Claim
	if err := loader.Load(&claims); err != nil {
		return nil, fmt.Errorf("claims.yaml: %w", err)
	}
	seen := make(map[string]bool)
	for _, c := range claims {
		if c.ID == "" || c.Sentence == "" || c.Owner == "" || seen[c.ID] {
			return nil, fmt.Errorf("claims.yaml: the claim %q is not whole, or is there twice", c.ID)
		}
		seen[c.ID] = true
	}
	return claims, nil
}
