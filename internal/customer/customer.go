// Package customer names the people whose data Strongroom keeps.
package customer

import "strongroom/internal/id"

const prefix = "cus"

// ID is the pseudonym of one customer. It says nothing about the person, so it may stand in logs,
// URLs and audit leaves, and it outlives an erasure.
type ID string

// NewID returns an identifier that was never used before and never will be again.
func NewID() ID { return ID(id.New(prefix)) }

// Valid reports whether i has the form that NewID returns.
func (i ID) Valid() bool { return id.Valid(prefix, string(i)) }
