package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/identity/dpop"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// The honey customer belongs to nobody and is there to be attacked by this room's checks: by the same
// functions, in the same tables and with the same events as everybody. Its number is one that nobody can have
// or type, so that nobody but a check reaches it. Messages to it go to the check that waits for them. What
// counts or lists customers leaves it out, by the table honey.

// What the trail says of the honey customer.
const (
	ActionHoneyMake = "identity.honey.make" // it was made
	ActionHoneyTry  = "identity.honey.try"  // a check begins to attack it; the events of the attack have the same request
)

const (
	// unreal begins numbers of the country code that ITU-T E.164 keeps in reserve: no text is read as one.
	unreal = "+999"
	// honeyNumber is the honey customer's, and strayNumber one without an account.
	honeyNumber = unreal + "0000000001"
	strayNumber = unreal + "0000000002"
	// stageHeld is for how long a check has the honey customer for itself, if it does not say that it is done.
	stageHeld = 3 * time.Minute
)

// isUnreal reports whether a number is one that no telephone has.
func isUnreal(e164 string) bool { return strings.HasPrefix(e164, unreal) }

// The networks that honey logins come from, which are in nobody's use (RFC 3849).
var (
	homeAddress     = netip.MustParseAddr("2001:db8:0:1::1")
	attackerAddress = netip.MustParseAddr("2001:db8:0:2::1")
)

// caught holds the messages to numbers that no telephone has.
type caught struct {
	mu   sync.Mutex
	mail []letter
}

// mostCaught bounds the memory: a check takes away what it asked for.
const mostCaught = 64

func (c *caught) put(l letter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.mail) < mostCaught {
		c.mail = append(c.mail, l)
	}
}

func (c *caught) take() []letter {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.mail
	c.mail = nil
	return taken
}

// player is a device that plays in a check.
type player struct {
	key        *ecdsa.PrivateKey
	thumbprint string
	address    netip.Addr
}

func playerOf(key *ecdsa.PrivateKey, address netip.Addr) (player, error) {
	thumbprint, err := dpop.Thumbprint(&key.PublicKey)
	return player{key, thumbprint, address}, err
}

func newPlayer(address netip.Addr) (player, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return player{}, err
	}
	return playerOf(key, address)
}

// honeyKept is what the owner of the honey account would know and have.
type honeyKept struct {
	Code   string `json:"code"`   // the private code
	Key    []byte `json:"key"`    // of the device, in SEC 1 form
	Device string `json:"device"` // its id
}

// stage is the honey customer as one check has it: nothing has happened to it yet.
type stage struct {
	i        *Identity
	by       actor.Actor // who runs the check
	owner    customer.ID
	private  secret.Value
	device   string
	held     int64  // until when, in Unix microseconds: by that a check knows its own hold
	own      player // the customer's own device
	attacker player // a device that nobody knows, from elsewhere
}

// errStageHeld means that another server's check is at it.
var errStageHeld = errors.New("another check has the honey customer")

// enterStage gives the honey customer to one check, and makes it when there is none.
func (i *Identity) enterStage(ctx context.Context) (s *stage, err error) {
	by := actor.From(ctx)
	by.Request = id.New("req")
	for range 2 {
		var there bool
		if s, there, err = i.claimStage(ctx, by); err != nil || there {
			return s, err
		}
		if err := i.makeHoney(ctx, by); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the honey customer does not stay")
}

func honeyPlace(c customer.ID) seal.Place { return place("honey", c, "honey") }

// claimStage takes hold of the honey customer and clears what was done to it. It reports false when there is
// none, or none that can log in.
func (i *Identity) claimStage(ctx context.Context, by actor.Actor) (s *stage, there bool, err error) {
	now := i.Clock.Now()
	err = i.DB.Update(ctx, func(tx *db.Tx) error {
		s, there = nil, false
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		owner, sealed, held, err := selectHoney(ctx, tx)
		if err != nil || owner == "" {
			return err
		}
		if held > clock.Micros(now) {
			return errStageHeld
		}
		switch err := i.Keys.Erased(ctx, tx, owner); {
		case problem.Is(err, "customer-erased"):
			return nil
		case err != nil:
			return err
		}
		plain, err := i.openOwn(ctx, tx, owner, honeyPlace(owner), sealed)
		if err != nil {
			return err
		}
		var kept honeyKept
		if err := json.Unmarshal(plain, &kept); err != nil {
			return errors.New("what is kept of the honey customer is not what was sealed")
		}
		key, err := x509.ParseECPrivateKey(kept.Key)
		if err != nil {
			return errors.New("the honey customer's key is none")
		}
		own, err := playerOf(key, homeAddress)
		if err != nil {
			return err
		}
		attacker, err := newPlayer(attackerAddress)
		if err != nil {
			return err
		}
		a, has, err := i.rows.accountByPhone(ctx, tx, i.phoneIndexes(honeyNumber))
		if err != nil || !has || a.customer != owner {
			return err
		}
		d, has, err := i.rows.deviceByID(ctx, tx, owner, kept.Device)
		if err != nil || !has || d.status != authorised {
			return err
		}
		there = true
		s = &stage{i: i, by: by, owner: owner, private: secret.FromString(kept.Code), device: kept.Device,
			held: clock.Micros(now.Add(stageHeld)), own: own, attacker: attacker}
		if err := s.clear(ctx, tx); err != nil {
			return err
		}
		if err := holdHoney(ctx, tx, s.held); err != nil {
			return err
		}
		return i.Trail.Record(ctx, tx, by, audit.Event{Action: ActionHoneyTry, Resource: "honey customer", Customer: owner, Outcome: audit.Granted})
	})
	if err == nil {
		i.caught.take()
	}
	return s, there, err
}

// makeHoney makes the honey customer, in the place of one that can log in no more.
func (i *Identity) makeHoney(ctx context.Context, by actor.Actor) error {
	own, err := newPlayer(homeAddress)
	if err != nil {
		return err
	}
	key, err := x509.MarshalECPrivateKey(own.key)
	if err != nil {
		return err
	}
	kept := honeyKept{Code: strings.ToLower(rand.Text()), Key: key, Device: id.New("dev")}
	leave, err := i.hasher.enter(ctx, guest{})
	if err != nil {
		return err
	}
	hash, err := i.hasher.make(secret.FromString(kept.Code))
	leave()
	if err != nil {
		return err
	}
	plain, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	defer clear(plain)
	owner, now := customer.NewID(), i.Clock.Now()
	return i.DB.Update(ctx, func(tx *db.Tx) error {
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		before, _, held, err := selectHoney(ctx, tx)
		if err != nil {
			return err
		}
		if held > clock.Micros(now) {
			return errStageHeld
		}
		if err := deleteHoney(ctx, tx, before); err != nil {
			return err
		}
		ring, err := i.Keys.CreateCustomer(ctx, tx, by, owner)
		if err != nil {
			return err
		}
		ok, err := i.rows.insertAccount(ctx, tx, account{owner, hash}, i.phoneIndexes(honeyNumber),
			ring.Seal(place("account", owner, "phone"), []byte(honeyNumber)), now)
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("somebody has the number of the honey customer")
		}
		us := clock.Micros(now)
		d := deviceRow{id: kept.Device, customer: owner, jkt: own.thumbprint, status: authorised, added: us, seen: us,
			name: ring.Seal(place("device", owner, kept.Device), []byte("Honey"))}
		if err := i.rows.insertDevice(ctx, tx, d); err != nil {
			return err
		}
		if err := insertHoney(ctx, tx, owner, ring.Seal(honeyPlace(owner), plain)); err != nil {
			return err
		}
		return i.Trail.Record(ctx, tx, by, audit.Event{Action: ActionHoneyMake, Resource: "device " + kept.Device, Customer: owner, Outcome: audit.Granted})
	})
}

// clear forgets what checks did to the honey customer, and what they were counted for: failures, limits,
// sessions, and devices but its own.
func (s *stage) clear(ctx context.Context, tx *db.Tx) error {
	i := s.i
	var lanes, counters [][]byte
	for _, number := range []string{honeyNumber, strayNumber} {
		lanes = append(lanes, i.laneKeys(number, "")...)
		lanes = append(lanes, i.laneKeys(number, s.own.thumbprint)...)
		counters = append(counters, i.quotaKeys("warnings", number)...)
		counters = append(counters, i.quotaKeys(string(known), number+s.own.thumbprint)...)
		counters = append(counters, i.quotaKeys("messages-by-source", number+s.own.thumbprint)...)
		for _, kind := range []string{"messages-hourly", "messages-daily"} {
			counters = append(counters, i.quotaKeys(kind, number+string(stranger))...)
			counters = append(counters, i.quotaKeys(kind, number+s.own.thumbprint)...)
		}
	}
	for _, address := range []netip.Addr{homeAddress, attackerAddress} {
		lanes = append(lanes, i.networkKeys(network(address))...)
		counters = append(counters, i.quotaKeys(string(stranger), network(address))...)
		counters = append(counters, i.quotaKeys("messages-by-source", network(address))...)
	}
	counters = append(counters, i.quotaKeys("notices", string(s.owner))...)
	counters = append(counters, i.quotaKeys("code-changes", string(s.owner))...)
	in, args := among(lanes, 1)
	if _, err := tx.Exec(ctx, `DELETE FROM throttle WHERE lane IN (`+in+`)`, args...); err != nil {
		return err
	}
	in, args = among(counters, 1)
	if _, err := tx.Exec(ctx, `DELETE FROM quota WHERE counted IN (`+in+`)`, args...); err != nil {
		return err
	}
	return clearHoney(ctx, tx, s.owner, s.device)
}

// leave clears the stage again, so that nothing of the honey customer's is open between two checks. A check that took
// too long leaves the stage to the one that has it by now.
func (s *stage) leave(ctx context.Context) {
	ctx, cancel := settle(ctx)
	defer cancel()
	err := s.i.DB.Update(ctx, func(tx *db.Tx) error {
		if err := s.i.catchUp(ctx, tx); err != nil {
			return err
		}
		if own, err := releaseHoney(ctx, tx, s.held); err != nil || !own {
			return err
		}
		return s.clear(ctx, tx)
	})
	s.i.caught.take()
	if err != nil {
		s.i.Log.ErrorContext(ctx, "the honey customer was not put back; the next check does", "error", err)
	}
}

// as is who acts with a device: the one that runs the check.
func (s *stage) as(p player) actor.Actor {
	by := s.by
	by.Key, by.Address = p.thumbprint, p.address
	return by
}

var codeForm = regexp.MustCompile(`\b[0-9]{6}\b`)

// start begins a login with the private code, and returns the one-time code that was sent, or "".
func (s *stage) start(ctx context.Context, p player, private secret.Value) (login, code string, err error) {
	s.i.caught.take()
	started, err := s.i.beginLogin(ctx, s.as(p), BySMS, honeyNumber, private)
	if err != nil {
		return "", "", err
	}
	for _, l := range s.i.caught.take() {
		if l.To == honeyNumber && l.Login {
			code = codeForm.FindString(l.Text)
		}
	}
	return started.ID, code, nil
}

func (s *stage) complete(ctx context.Context, p player, login, code string) (Tokens, error) {
	return s.i.CompleteLogin(ctx, s.as(p), login, secret.FromString(code), "Honey check")
}

// login is a whole login, in which nothing is wrong.
func (s *stage) login(ctx context.Context, p player) (Tokens, error) {
	login, code, err := s.start(ctx, p, s.private)
	if err != nil {
		return Tokens{}, err
	}
	if code == "" {
		return Tokens{}, errors.New("no one-time code was sent")
	}
	return s.complete(ctx, p, login, code)
}

// wrong returns a private code that is not the honey customer's.
func wrong() secret.Value { return secret.FromString(strings.ToLower(rand.Text())) }

// another returns a one-time code that is not that one.
func another(code string) string {
	if code == "" || code[0] != '0' {
		return "000000"
	}
	return "1" + code[1:]
}

// request is one as an app sends it: with the token under the scheme, and a proof by the device (RFC 9449), or
// none when it is nil.
func (s *stage) request(ctx context.Context, scheme string, token secret.Value, p *player) (*http.Request, error) {
	origin := "https://strongroom.invalid"
	if len(s.i.Origins) > 0 {
		origin = s.i.Origins[0]
	}
	address := attackerAddress
	if p != nil {
		address = p.address
	}
	ctx = actor.With(ctx, actor.Actor{Kind: actor.Anonymous, Address: address, Request: s.by.Request})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(origin, "/")+"/v1/session", nil)
	if err != nil {
		return nil, err
	}
	text := string(token.Reveal())
	r.Header.Set("Authorization", scheme+" "+text)
	if p == nil {
		return r, nil
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: p.key}, (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"))
	if err != nil {
		return nil, err
	}
	claims, err := json.Marshal(map[string]any{"jti": rand.Text(), "htm": r.Method, "htu": r.URL.String(), "iat": s.i.Clock.Now().Unix(),
		"nonce": s.i.Nonce(), "ath": dpop.TokenHash(text)})
	if err != nil {
		return nil, err
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return nil, err
	}
	proof, err := signed.CompactSerialize()
	r.Header.Set("DPoP", proof)
	return r, err
}

// door is what lets a request in: Identity.Session.
type door func(ctx context.Context, r *http.Request) (actor.Actor, error)

// enter knocks at the door.
func (s *stage) enter(ctx context.Context, in door, scheme string, token secret.Value, p *player) (actor.Actor, error) {
	r, err := s.request(ctx, scheme, token, p)
	if err != nil {
		return actor.Actor{}, err
	}
	return in(r.Context(), r)
}

// wasRefused reports whether err is a refusal of the room's. Any other error is a failure, and says nothing.
func wasRefused(err error) bool {
	p := problem.Of(err)
	return p != nil && (p.Kind() == problem.Unauthenticated || p.Kind() == problem.Forbidden)
}

// selectHoney returns the honey customer, "" when there is none.
func selectHoney(ctx context.Context, tx *db.Tx) (owner customer.ID, sealed []byte, held int64, err error) {
	err = tx.QueryRow(ctx, `SELECT customer_id, sealed, held_until FROM honey WHERE one = $1`, 1).Scan(&owner, &sealed, &held)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil, 0, nil
	}
	return owner, sealed, held, err
}

func insertHoney(ctx context.Context, tx *db.Tx, owner customer.ID, sealed []byte) error {
	_, err := tx.Exec(ctx, `INSERT INTO honey (one, customer_id, sealed, held_until) VALUES ($1, $2, $3, 0)`, 1, string(owner), sealed)
	return err
}

func holdHoney(ctx context.Context, tx *db.Tx, until int64) error {
	_, err := tx.Exec(ctx, `UPDATE honey SET held_until = $1 WHERE one = $2`, until, 1)
	return err
}

// releaseHoney ends a hold, and reports whether it was still the one in force.
func releaseHoney(ctx context.Context, tx *db.Tx, held int64) (bool, error) {
	n, err := tx.Exec(ctx, `UPDATE honey SET held_until = 0 WHERE one = $1 AND held_until = $2`, 1, held)
	return n == 1, err
}

// clearHoney deletes the sessions of the honey customer, what it was told, and its devices but the one to keep.
func clearHoney(ctx context.Context, tx *db.Tx, owner customer.ID, keep string) error {
	for _, query := range []string{
		`DELETE FROM access_token WHERE session_id IN (SELECT id FROM session WHERE customer_id = $1)`,
		`DELETE FROM refresh_token WHERE session_id IN (SELECT id FROM session WHERE customer_id = $1)`,
		`DELETE FROM session WHERE customer_id = $1`,
		`DELETE FROM notice WHERE customer_id = $1`,
	} {
		if _, err := tx.Exec(ctx, query, string(owner)); err != nil {
			return fmt.Errorf("clearing the honey customer: %w", err)
		}
	}
	for _, query := range []string{
		`DELETE FROM device_trust WHERE customer_id = $1 AND device_id <> $2`,
		`DELETE FROM device WHERE customer_id = $1 AND id <> $2`,
	} {
		if _, err := tx.Exec(ctx, query, string(owner), keep); err != nil {
			return fmt.Errorf("clearing the honey customer: %w", err)
		}
	}
	return announceEnd(ctx, tx, owner)
}

// deleteHoney deletes a honey customer that can log in no more. Its data key stays, as the trail needs it.
func deleteHoney(ctx context.Context, tx *db.Tx, owner customer.ID) error {
	if owner == "" {
		return nil
	}
	if err := clearHoney(ctx, tx, owner, ""); err != nil {
		return err
	}
	for _, query := range []string{`DELETE FROM account WHERE customer_id = $1`, `DELETE FROM honey WHERE customer_id = $1`} {
		if _, err := tx.Exec(ctx, query, string(owner)); err != nil {
			return err
		}
	}
	return nil
}
