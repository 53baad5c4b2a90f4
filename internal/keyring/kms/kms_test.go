package kms_test

import (
	"slices"
	"testing"

	"gocloud.dev/secrets"

	_ "strongroom/internal/keyring/kms"
)

func TestSchemes(t *testing.T) {
	want := []string{"awskms", "azurekeyvault", "gcpkms", "hashivault"}
	if got := secrets.DefaultURLMux().KeeperSchemes(); !slices.Equal(got, want) {
		t.Errorf("schemes %v, want %v: base64key holds its key in the URL and must not be among them", got, want)
	}
}
