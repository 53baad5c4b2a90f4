package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/secret"
)

// The purposes of a challenge, which are also the prefixes of its id.
const (
	purposeRegistration = "reg"
	purposeLogin        = "log"
)

// challenge is the sealed part of a challenge: what its maker learned and must not show.
type challenge struct {
	// Reason says why the challenge can never be met; "" when it can.
	Reason   string      `json:"reason"`
	Customer customer.ID `json:"customer,omitempty"`
	Phone    string      `json:"phone,omitempty"`
	Known    bool        `json:"known,omitempty"` // the lane is a known device's
	// Method is how the second step of a login is taken, and Passkey what a passkey has to sign.
	Method  Method `json:"method,omitempty"`
	Passkey string `json:"passkey,omitempty"`
}

// newOneTimeCode returns six random digits, each of the million equally likely.
func newOneTimeCode() string {
	const million, fair = 1_000_000, (1 << 32) / 1_000_000 * 1_000_000
	for {
		var b [4]byte
		rand.Read(b[:])
		if n := binary.BigEndian.Uint32(b[:]); uint64(n) < fair {
			return fmt.Sprintf("%06d", n%million)
		}
	}
}

// codeMAC binds a one-time code to its challenge and to the device that asked for it
// (ASVS 5.0 6.6.2). It is keyed, since six digits under a plain hash are read off at once.
func (i *Identity) codeMAC(challengeID, jkt, code string) ([]byte, uint32) {
	return i.Keys.MAC(keyring.KeyToken, purposeOneTime, []byte(challengeID), []byte(jkt), []byte(code))
}

var purposeOneTime = []byte("identity.one-time-code")

// codeMatches compares in constant time.
func (i *Identity) codeMatches(c challengeRow, jkt string, code secret.Value) (bool, error) {
	mac, err := i.Keys.MACVersion(keyring.KeyToken, c.keyVersion, purposeOneTime, []byte(c.id), []byte(jkt), code.Reveal())
	if err != nil {
		return false, fmt.Errorf("one-time code: %w", err)
	}
	return subtle.ConstantTimeCompare(mac, c.mac) == 1, nil
}

// newChallenge stores a challenge for the device jkt and returns its id and its code. Every earlier
// challenge of the slot becomes void; slots are its names, the newest first, and none is a slot that no other
// challenge has.
func (i *Identity) newChallenge(ctx context.Context, tx *db.Tx, purpose, jkt string, slots [][]byte, c challenge, now time.Time) (challengeID, code string, err error) {
	if len(slots) == 0 {
		slots = [][]byte{make([]byte, 32)}
		rand.Read(slots[0])
	}
	row := challengeRow{
		id: id.New(purpose), purpose: purpose, jkt: jkt, slot: slots[0],
		tries: codeTries, expires: clock.Micros(now.Add(CodeLifetime)),
	}
	code = newOneTimeCode()
	row.mac, row.keyVersion = i.codeMAC(row.id, jkt, code)
	if row.sealed, err = i.sealBlank("challenge", row.id, c); err != nil {
		return "", "", err
	}
	return row.id, code, insertChallenge(ctx, tx, row, slots)
}

// openChallenge reads the sealed part.
func (i *Identity) openChallenge(row challengeRow) (c challenge, err error) {
	return c, i.openBlank("challenge", row.id, row.sealed, &c)
}

// blankSize is the step of the length of everything that could tell by its length what it is.
const blankSize = 640

// sealBlank seals v as JSON, padded so that all values have one length.
func (i *Identity) sealBlank(table, record string, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	for len(b)%blankSize != 0 {
		b = append(b, ' ') // JSON ignores it
	}
	return i.Keys.Service(keyring.KeyOutbox).Seal(place(table, "", record), b), nil
}

func (i *Identity) openBlank(table, record string, sealed []byte, v any) error {
	b, err := i.Keys.Service(keyring.KeyOutbox).Open(place(table, "", record), sealed)
	if err != nil {
		return fmt.Errorf("%s %s: %w", table, record, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s %s: %w", table, record, errors.New("sealed part is not what was sealed"))
	}
	return nil
}

// place says where a sealed value of this room lives.
func place(table string, c customer.ID, record string) seal.Place {
	return seal.Place{Room: "identity", Table: table, Customer: string(c), Record: record, Version: 1}
}

// The keyed hashes by which things are found or counted without being named.

// Each is made under every version of the blind-index key, the active one first: under that it is
// written, and under the others it may stand still. See keyring.CatchUp.

func (i *Identity) phoneIndexes(e164 string) []keyring.Blind {
	return i.Keys.BlindIndexes("identity.phone", []byte(e164))
}

// laneKeys name the lane of a number, with an account or without, from the device jkt, or from all unknown
// devices when jkt is "".
func (i *Identity) laneKeys(e164, jkt string) (keys [][]byte) {
	for _, phone := range i.phoneIndexes(e164) {
		lanes := i.Keys.BlindIndexes("identity.lane", append(phone.Value[:len(phone.Value):len(phone.Value)], jkt...))
		if lane, ok := keyring.Under(lanes, phone.Version); ok {
			keys = append(keys, lane.Value)
		}
	}
	return keys
}

// lanesOf names the lane of an attempt by the device jkt.
func (i *Identity) lanesOf(c challenge, jkt string) [][]byte {
	if !c.Known {
		jkt = ""
	}
	return i.laneKeys(c.Phone, jkt)
}

func (i *Identity) slotKeys(purpose string, parts ...string) [][]byte {
	b := []byte(purpose)
	for _, p := range parts {
		b = append(append(b, 0), p...)
	}
	return valuesOf(i.Keys.BlindIndexes("identity.slot", b))
}

func (i *Identity) quotaKeys(kind, subject string) [][]byte {
	return valuesOf(i.Keys.BlindIndexes("identity.quota", []byte(kind+"\x00"+subject)))
}

func valuesOf(blinds []keyring.Blind) [][]byte {
	values := make([][]byte, len(blinds))
	for k, b := range blinds {
		values[k] = b.Value
	}
	return values
}

// catchUp has the keyed hashes be made under the keys that tx sees. It comes first in a transaction.
func (i *Identity) catchUp(ctx context.Context, tx *db.Tx) error {
	_, err := i.Keys.CatchUp(ctx, tx)
	return err
}
