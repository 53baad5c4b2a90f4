package identity

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"strconv"

	"strongroom/internal/customer"
)

// rows reads and writes the rows that say who may come in: accounts, devices and sessions. Each has a
// stamp, a MAC over what decides, under a key that the database does not hold. Whoever can write to the
// database can therefore delete such a row, or put an old one back, but can make none: no session as
// somebody else, no device of one's own on another's account, no other private code.
type rows struct{ keys tokenKeys }

// errForged is a row that Strongroom did not write.
var errForged = errors.New("identity: a row was altered in the database")

// stamp is the key's version in four bytes, and the MAC.
func (r rows) stamp(parts [][]byte) []byte {
	mac, version := r.keys.MAC(parts...)
	return append(binary.BigEndian.AppendUint32(nil, version), mac...)
}

func (r rows) check(stamp []byte, parts [][]byte) error {
	if len(stamp) < 4 {
		return errForged
	}
	mac, err := r.keys.MACVersion(binary.BigEndian.Uint32(stamp), parts...)
	if err != nil || !hmac.Equal(mac, stamp[4:]) {
		return errForged
	}
	return nil
}

func decimal(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

func accountParts(c customer.ID, phoneIndex []byte, h hashed) [][]byte {
	return [][]byte{[]byte("identity.account"), []byte(c), phoneIndex, h.hash, decimal(int64(h.pepper))}
}

func deviceParts(id string, c customer.ID, jkt, status string) [][]byte {
	return [][]byte{[]byte("identity.device"), []byte(id), []byte(c), []byte(jkt), []byte(status)}
}

func sessionParts(s *sessionRow) [][]byte {
	parts := [][]byte{[]byte("identity.session"), []byte(s.id), []byte(s.customer), []byte(s.device), []byte(s.jkt), decimal(s.made), decimal(s.expires)}
	if s.scope == "" {
		return parts // from before there were scopes
	}
	return append(parts, []byte(s.scope), []byte(s.acr))
}
