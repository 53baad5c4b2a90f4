// Package kms links the drivers of the key management services that can hold the root key. Importing
// it registers the URL schemes awskms, gcpkms, azurekeyvault and hashivault with keyring.OpenRoot.
// They are apart because they are many times larger than all the rest of keyring, whose users in
// tests need none of them.
package kms

import (
	_ "gocloud.dev/secrets/awskms"        // awskms://
	_ "gocloud.dev/secrets/azurekeyvault" // azurekeyvault://
	_ "gocloud.dev/secrets/gcpkms"        // gcpkms://
	_ "gocloud.dev/secrets/hashivault"    // hashivault://
)
