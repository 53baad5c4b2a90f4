package keyring

import (
	"crypto/hmac"
	"encoding/binary"

	"strongroom/internal/customer"
)

// TombstoneMAC returns what whoever erases c at a time, in Unix microseconds, writes into the column mac
// of data_key_tombstone: the version of the key "event-mac", 4 bytes, and the MAC under it. A tombstone
// without it counts as damage and not as an erasure. Before a version of that key is destroyed, the
// tombstones under it have to be written anew.
func (k *Keyring) TombstoneMAC(c customer.ID, erasedAt int64) []byte {
	mac, version := k.MAC(KeyEventMAC, tombstoneParts(c, erasedAt)...)
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(mac)), version), mac...)
}

// isTombstone checks the column.
func (k *Keyring) isTombstone(c customer.ID, erasedAt int64, column []byte) bool {
	if len(column) < 4 {
		return false
	}
	mac, err := k.MACVersion(KeyEventMAC, binary.BigEndian.Uint32(column), tombstoneParts(c, erasedAt)...)
	return err == nil && hmac.Equal(mac, column[4:])
}

// tombstoneParts are three; an event's MAC is over one, so that neither passes for the other.
func tombstoneParts(c customer.ID, erasedAt int64) [][]byte {
	return [][]byte{[]byte("strongroom tombstone v1"), []byte(c), binary.BigEndian.AppendUint64(nil, uint64(erasedAt))}
}
