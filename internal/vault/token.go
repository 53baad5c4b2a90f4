package vault

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
)

// The actions on tokens.
const (
	ActionTokenCreate = "vault.token.create"
	ActionTokenReveal = "vault.token.reveal"
	ActionTokenDelete = "vault.token.delete"
)

// The kinds of token.
const (
	// TokenCard stands for a card number. It has as many digits and the same last four, and its check
	// digit (ISO/IEC 7812-1, Luhn) is wrong on purpose: no token is ever anybody's card, and a payment
	// system that is given one by mistake refuses it.
	TokenCard = "card"
	// TokenText stands for any text. It looks like tok_ and 26 characters.
	TokenText = "text"
)

const (
	tokenPrefix = "tok"
	maxToken    = 4096 // bytes of a value
	tokenTries  = 8    // at a token that is not taken yet
)

// Token is a value's stand-in.
type Token struct {
	Token string
	Kind  string
}

// Original is what a token stands for.
type Original struct {
	Value    string
	Kind     string
	Customer customer.ID
}

// tokenContent is what is sealed: the token too, so that a row that was exchanged shows.
type tokenContent struct {
	Token string `json:"token"`
	Value string `json:"value"`
}

// Tokenise returns a token for a value of a customer, for the purpose that the call names. Tokens are
// random; a deterministic one is the same for equal values of that customer and that purpose, and says
// no more than that they are equal. The value is sealed under the customer's key and goes with it.
func (s *Services) Tokenise(ctx context.Context, by actor.Actor, a Access, owner customer.ID, kind, text string, deterministic bool) (Token, error) {
	mode := "random"
	if deterministic {
		mode = "deterministic"
	}
	d := s.begin(by, a, ask{action: ActionTokenCreate, permit: policy.TokenCreate, resource: policy.TokenKind(kind), owner: owner,
		asked: []string{kind, text, mode}})
	d.Resource = "token"
	switch kind {
	case TokenCard:
		d.Resource += " " + kind + " " + mode
		text = strings.NewReplacer(" ", "", "-", "").Replace(text)
		if !cardNumber(text) {
			d.refuse(problem.New(problem.Unprocessable, "invalid-value", "A card number has 12 to 19 digits, the last of which checks the others."))
		}
	case TokenText:
		d.Resource += " " + kind + " " + mode
		if text == "" || len(text) > maxToken || !utf8.ValidString(text) {
			d.refuse(problem.New(problem.Unprocessable, "invalid-value", "A value is 1 to %d bytes of UTF-8.", maxToken))
		}
	default:
		d.refuse(problem.New(problem.Unprocessable, "invalid-kind", "A token's kind is %s or %s.", TokenCard, TokenText))
	}
	now := clock.Micros(s.clock.Now())
	var made Token
	fresh := func() Token { return made }
	d.remember(func() any { return made })
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		ring, err := s.keys.Customer(ctx, tx, owner)
		if err != nil {
			return err
		}
		if _, err := s.keys.CatchUp(ctx, tx); err != nil {
			return err
		}
		made = Token{Kind: kind}
		for range tokenTries {
			var values []keyring.Blind
			if deterministic {
				values = s.keys.BlindIndexes(tokenValueField(kind, a.Purpose, owner), []byte(text))
				sealed, found, err := selectSameToken(ctx, tx, owner, kind, a.Purpose, values)
				if err != nil {
					return err
				}
				if found {
					if ring, err = s.keys.Holding(ctx, tx, owner, ring, sealed); err != nil {
						return err
					}
					content, err := openToken(ring, owner, kind, a.Purpose, sealed)
					if err != nil {
						return err
					}
					made.Token = content.Token
					return nil
				}
			}
			made.Token = newToken(kind, text)
			plain, err := json.Marshal(tokenContent{made.Token, text})
			if err != nil {
				return err
			}
			names := s.keys.BlindIndexes(tokenField, []byte(made.Token))
			var same []byte
			if deterministic {
				if values[0].Version != names[0].Version {
					continue // the keys have changed between the two
				}
				same = values[0].Value
			}
			if len(names) > 1 { // within one version the database itself keeps tokens apart
				if _, taken, err := selectToken(ctx, tx, names); err != nil {
					return err
				} else if taken {
					continue
				}
			}
			ok, err := insertToken(ctx, tx, owner, kind, a.Purpose, names[0], same, ring.Seal(tokenPlace(owner, kind, a.Purpose), plain), now)
			clear(plain)
			if err != nil || ok {
				return err
			}
		}
		return problem.New(problem.Unavailable, "no-token-free", "No token was free. Please try again.")
	})
	if err != nil {
		return Token{}, err
	}
	return recall(d, fresh)
}

// Detokenise returns what a token stands for. The purpose must be the one that the token was made for.
func (s *Services) Detokenise(ctx context.Context, by actor.Actor, a Access, token string) (Original, error) {
	d := s.begin(by, a, ask{action: ActionTokenReveal})
	kind := kindOf(token)
	d.Resource = "token " + kind
	var ring *seal.Ring
	var row tokenRow
	err := d.do(ctx, func(tx *db.Tx, e *audit.Event) (err error) {
		if row, err = s.findToken(ctx, tx, e, by, policy.TokenReveal, a.Purpose, token); err != nil || e.Denied() {
			return err
		}
		if ring, err = s.keys.Customer(ctx, tx, row.customer); err != nil {
			return err
		}
		ring, err = s.keys.Holding(ctx, tx, row.customer, ring, row.sealed)
		return err
	})
	if err != nil {
		return Original{}, err
	}
	content, err := openToken(ring, row.customer, row.kind, row.purpose, row.sealed)
	if err == nil && content.Token != token {
		err = errors.New("vault: the row is another token's")
	}
	if err != nil {
		d.Customer = row.customer
		return Original{}, d.damaged(ctx, Ref{"token", kind}, err)
	}
	return Original{content.Value, row.kind, row.customer}, nil
}

// kindOf returns the kind that a token has by its looks.
func kindOf(token string) string {
	if digits(token) {
		return TokenCard
	}
	return TokenText
}

// findToken finds a token and decides, now that it is known whose it is, whether it may be worked with.
func (s *Services) findToken(ctx context.Context, tx *db.Tx, e *audit.Event, by actor.Actor, permit, purpose, token string) (row tokenRow, err error) {
	if _, err := s.keys.CatchUp(ctx, tx); err != nil {
		return row, err
	}
	row, found, err := selectToken(ctx, tx, s.keys.BlindIndexes(tokenField, []byte(token)))
	if err != nil {
		return row, err
	}
	q := policy.Question{By: by, Action: permit, Resource: policy.TokenKind(kindOf(token)), Purpose: purpose}
	if found {
		q.Resource, q.Customer, e.Customer = policy.TokenKind(row.kind), row.customer, row.customer
	}
	switch p := s.policy.Decide(q); {
	case p != nil:
		e.Deny(p)
	case !found:
		e.Deny(problem.New(problem.NotFound, "token-not-found", "There is no such token."))
	case row.purpose != purpose:
		e.Deny(problem.New(problem.Unprocessable, "purpose-not-allowed", "The token was made for another purpose."))
	}
	return row, nil
}

// DeleteToken deletes a token with the value that it stands for: from then on nobody learns it. The purpose
// must be the one that the token was made for. The same value may get another token later.
func (s *Services) DeleteToken(ctx context.Context, by actor.Actor, a Access, token string) error {
	d := s.begin(by, a, ask{action: ActionTokenDelete, asked: []string{token}})
	kind := kindOf(token)
	d.Resource = "token " + kind
	if d.once != nil {
		d.once.again = func(owner customer.ID) *problem.Problem {
			return s.policy.Decide(policy.Question{By: by, Action: policy.TokenDelete, Resource: policy.TokenKind(kind), Purpose: a.Purpose, Customer: owner})
		}
	}
	return d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		row, err := s.findToken(ctx, tx, e, by, policy.TokenDelete, a.Purpose, token)
		if err != nil || e.Denied() {
			return err
		}
		// Of a customer whose keys are gone there is nothing left to delete, and the answer says so.
		if _, err := s.keys.Customer(ctx, tx, row.customer); err != nil {
			return err
		}
		n, err := tx.Exec(ctx, `DELETE FROM token WHERE key_version = $1 AND blind = $2`, row.blind.Version, row.blind.Value)
		return exactlyOne(n, err)
	})
}

// tokenField names tokens to the blind-index key.
const tokenField = "token"

// tokenValueField names the values of a customer's deterministic tokens for a purpose.
func tokenValueField(kind, purpose string, owner customer.ID) string {
	return "token-value/" + kind + "/" + purpose + "/" + string(owner)
}

func tokenPlace(owner customer.ID, kind, purpose string) seal.Place {
	return seal.Place{Room: room, Table: "token", Customer: string(owner), Record: kind + "/" + purpose}
}

func openToken(ring *seal.Ring, owner customer.ID, kind, purpose string, sealed []byte) (c tokenContent, err error) {
	plain, err := ring.Open(tokenPlace(owner, kind, purpose), sealed)
	if err != nil {
		return c, err
	}
	defer clear(plain)
	return c, json.Unmarshal(plain, &c)
}

func newToken(kind, text string) string {
	if kind == TokenText {
		return id.New(tokenPrefix)
	}
	for {
		b := []byte(text)
		randomDigits(b[:len(b)-4])
		if !luhn(string(b)) {
			return string(b)
		}
	}
}

// randomDigits fills b with digits of which each is as likely as any other.
func randomDigits(b []byte) {
	var random [1]byte
	for i := range b {
		for {
			rand.Read(random[:])
			if random[0] < 250 {
				break
			}
		}
		b[i] = '0' + random[0]%10
	}
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func cardNumber(s string) bool { return len(s) >= 12 && len(s) <= 19 && digits(s) && luhn(s) }

// luhn reports whether the last digit checks the others (ISO/IEC 7812-1 annex B).
func luhn(s string) bool {
	sum := 0
	for i := range len(s) {
		n := int(s[len(s)-1-i] - '0')
		if i%2 == 1 {
			if n *= 2; n > 9 {
				n -= 9
			}
		}
		sum += n
	}
	return sum%10 == 0
}

type tokenRow struct {
	customer      customer.ID
	kind, purpose string
	sealed        []byte
	blind         keyring.Blind
}

func selectToken(ctx context.Context, tx *db.Tx, blinds []keyring.Blind) (r tokenRow, found bool, err error) {
	condition, args := among(blinds, "blind", 1)
	err = tx.QueryRow(ctx, `SELECT customer_id, kind, purpose, sealed, key_version, blind FROM token WHERE `+condition+` LIMIT 1`, args...).
		Scan(&r.customer, &r.kind, &r.purpose, &r.sealed, &r.blind.Version, &r.blind.Value)
	if errors.Is(err, sql.ErrNoRows) {
		return tokenRow{}, false, nil
	}
	return r, err == nil, err
}

func selectSameToken(ctx context.Context, tx *db.Tx, owner customer.ID, kind, purpose string, blinds []keyring.Blind) (sealed []byte, found bool, err error) {
	condition, args := among(blinds, "value_blind", 4)
	err = tx.QueryRow(ctx, `SELECT sealed FROM token WHERE customer_id = $1 AND kind = $2 AND purpose = $3 AND `+condition+` LIMIT 1`,
		append([]any{string(owner), kind, purpose}, args...)...).Scan(&sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, false, nil
	}
	return sealed, err == nil, err
}

// insertToken reports whether neither the token nor, for a deterministic one, the value was there.
func insertToken(ctx context.Context, tx *db.Tx, owner customer.ID, kind, purpose string, token keyring.Blind, value, sealed []byte, now int64) (bool, error) {
	n, err := tx.Exec(ctx, `
		INSERT INTO token (key_version, blind, customer_id, kind, purpose, value_blind, sealed, made_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
		token.Version, token.Value, string(owner), kind, purpose, value, sealed, now)
	return n == 1, err
}
