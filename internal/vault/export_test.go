package vault

import (
	"context"

	"strongroom/internal/check"
)

// What the tests look at from outside.
var (
	Luhn     = luhn
	NewToken = newToken
)

// MergePatch returns what a patch makes of a record, both as JSON; nil when the patch is refused.
func MergePatch(record, patch []byte) []byte {
	values, ok := parse(record)
	if !ok {
		panic("not a record")
	}
	members, p := (&schema{}).readPatch(patch)
	if p != nil {
		return nil
	}
	return merge(values, members)
}

// CheckSomeRecords is CheckRecords with another number of records.
func (v *Vault) CheckSomeRecords(ctx context.Context, n int) check.Observation {
	return v.checkRecords(ctx, n)
}
