package identity

import (
	"bytes"
	"cmp"
	"context"
	cryptorand "crypto/rand"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/identity/oracle"
	"strongroom/internal/identity/passcode"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// Trial is a check of this room: what it does to the room that runs, and to one of a scratch copy that it
// breaks first, for good.
type Trial struct {
	ID, Says     string
	Every, Valid time.Duration
	Run, Broken  func(ctx context.Context, i *Identity) check.Observation
}

// Trials returns the checks of the room. They attack the honey customer, in the name of the actor of ctx.
func Trials() []Trial {
	const hourly, day = time.Hour, 24 * time.Hour
	return []Trial{{
		ID: "login-three-factors", Every: hourly, Valid: 3 * hourly,
		Says: "A login without the private code, without the one-time code, or without the device's key comes to nothing.",
		Run:  onStage(threeFactors),
		Broken: broken(threeFactors, func(_ context.Context, i *Identity) error {
			i.hasher.compare = func([]byte, []byte) error { return nil } // any private code is right
			return nil
		}),
	}, {
		ID: "login-codes-single-use", Every: hourly, Valid: 3 * hourly,
		Says: "A one-time code is good for one login, and for no more than three tries.",
		Run:  onStage(singleUse),
		Broken: broken(singleUse, statement(`CREATE TRIGGER again AFTER UPDATE ON challenge WHEN NEW.tries < 3
			BEGIN UPDATE challenge SET superseded = 0, tries = 3 WHERE id = NEW.id; END`)),
	}, {
		ID: "login-guesser-locked-out", Every: hourly, Valid: 3 * hourly,
		Says: "Who guesses private codes is locked out, and the customer's own device is not.",
		Run:  onStage(lockedOut),
		Broken: broken(lockedOut, statement(`CREATE TRIGGER forget AFTER UPDATE ON throttle
			BEGIN DELETE FROM throttle WHERE lane = NEW.lane; END`)),
	}, {
		ID: "login-timing-alike", Every: day, Valid: 3 * day,
		Says: "The time of an answer does not tell whether a number has an account.",
		Run:  onStage(timing),
		Broken: broken(timing, func(_ context.Context, i *Identity) error {
			// Nothing is hashed for a number without an account, and nobody waits until the time is the same.
			hash := i.hasher.compare
			i.hasher.compare = func(with, in []byte) error {
				if slices.ContainsFunc(i.hasher.fillers[:], func(f []byte) bool { return bytes.Equal(f, with) }) {
					return bcrypt.ErrMismatchedHashAndPassword
				}
				time.Sleep(50 * time.Millisecond) // what a hash takes on a slow machine
				return hash(with, in)
			}
			i.hasher.typical = 0
			return nil
		}),
	}, {
		ID: "session-ends", Every: hourly, Valid: 3 * hourly,
		Says: "A session that has expired, and one that was ended, let nobody in.",
		Run:  onStage(sessionEnds),
		Broken: broken(sessionEnds, func(_ context.Context, i *Identity) error {
			const long = 10 * 365 * 24 * time.Hour
			i.AccessLifetime, i.IdleLifetime, i.SessionLifetime, i.PaymentIdle, i.ReadIdle, i.ReadLifetime = long, long, long, long, long, long
			return nil
		}),
	}, {
		ID: "session-needs-device-key", Every: hourly, Valid: 3 * hourly,
		Says:   "A token is refused without a proof by the key of its device.",
		Run:    onStage(func(ctx context.Context, s *stage) check.Observation { return keyNeeded(ctx, s, s.i.Session) }),
		Broken: onStage(func(ctx context.Context, s *stage) check.Observation { return keyNeeded(ctx, s, s.bearerDoor) }),
	}, {
		ID: "device-new-waits", Every: hourly, Valid: 3 * hourly,
		Says: "A new device gets no session before the customer has approved it on one of their own.",
		Run:  onStage(func(ctx context.Context, s *stage) check.Observation { return newWaits(ctx, s, nil) }),
		Broken: onStage(func(ctx context.Context, s *stage) check.Observation {
			s.i.Proofs = provenAll{s.i.Clock}
			return newWaits(ctx, s, s.i.acceptProofs)
		}),
	}, {
		ID: "codes-hashed-with-bcrypt", Every: 6 * hourly, Valid: day,
		Says:   "Every stored private code is a bcrypt hash at the configured cost or above.",
		Run:    onStage(hashes),
		Broken: broken(hashes, statement(`UPDATE account SET code_hash = CAST('e10adc3949ba59abbe56e057f20f883e' AS BLOB)`)),
	}, {
		ID: "login-code-policy", Every: 6 * hourly, Valid: day,
		Says: "Private codes have 8 characters or more, and those that others would try first are refused.",
		Run:  onStage(codePolicy),
		Broken: broken(codePolicy, func(_ context.Context, i *Identity) error {
			i.judge = func(code []byte, _ string, minLength int) passcode.Weakness { // the length is looked at, and nothing else
				if utf8.RuneCount(code) < minLength {
					return passcode.Short
				}
				return ""
			}
			return nil
		}),
	}}
}

// onStage runs a check with the honey customer.
func onStage(exercise func(ctx context.Context, s *stage) check.Observation) func(context.Context, *Identity) check.Observation {
	return func(ctx context.Context, i *Identity) check.Observation {
		s, err := i.enterStage(ctx)
		if err != nil {
			return check.Undecided("asked for the customer that checks attack", "It could not be had: %v", err)
		}
		defer s.leave(ctx)
		return exercise(ctx, s)
	}
}

// broken is onStage in a room that is broken once the honey customer is there.
func broken(exercise func(ctx context.Context, s *stage) check.Observation, damage func(ctx context.Context, i *Identity) error) func(context.Context, *Identity) check.Observation {
	return onStage(func(ctx context.Context, s *stage) check.Observation {
		if err := damage(ctx, s.i); err != nil {
			return check.Undecided("", "The scratch copy could not be broken: %v", err)
		}
		return exercise(ctx, s)
	})
}

// statement breaks what somebody in the database can break.
func statement(sql string) func(ctx context.Context, i *Identity) error {
	return func(ctx context.Context, i *Identity) error {
		return i.DB.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, sql)
			return err
		})
	}
}

// attack is something that must be refused.
type attack struct {
	what string
	do   func() error
}

// allRefused makes attacks one after the other.
func allRefused(did string, attacks []attack) (failed check.Observation, ok bool) {
	for _, a := range attacks {
		switch err := a.do(); {
		case err == nil:
			return check.Failed(did, "%s was let in.", a.what), false
		case !wasRefused(err):
			return check.Undecided(did, "%s could not be tried: %v", a.what, err), false
		}
	}
	return check.Observation{}, true
}

func threeFactors(ctx context.Context, s *stage) check.Observation {
	did := "tried to log in as a customer who is there to be attacked, each time without one of the three factors, and at last with all"
	undecided := func(err error) check.Observation {
		return check.Undecided(did, "The login could not be tried: %v", err)
	}
	login, code, err := s.start(ctx, s.own, wrong())
	if err != nil {
		return undecided(err)
	}
	if code != "" {
		return check.Failed(did, "A wrong private code was answered with a one-time code.")
	}
	failed, ok := allRefused(did, []attack{{"A login with a wrong private code", func() error {
		_, err := s.complete(ctx, s.own, login, "000000")
		return err
	}}})
	if !ok {
		return failed
	}
	if login, code, err = s.start(ctx, s.own, s.private); err != nil {
		return undecided(err)
	}
	if code == "" {
		return check.Undecided(did, "The right private code was answered with no one-time code.")
	}
	if failed, ok = allRefused(did, []attack{
		{"A login with a wrong one-time code", func() error {
			_, err := s.complete(ctx, s.own, login, another(code))
			return err
		}},
		{"A login with the key of another device", func() error {
			_, err := s.complete(ctx, s.attacker, login, code)
			return err
		}},
		{"A login without a device's key", func() error {
			_, err := s.complete(ctx, player{address: s.own.address}, login, code)
			return err
		}},
	}); !ok {
		return failed
	}
	if _, err := s.complete(ctx, s.own, login, code); err != nil {
		return check.Undecided(did, "The login with all three factors failed too, so that the others prove nothing: %v", err)
	}
	return check.Held(did, "All 4 were refused, and the login with all three factors was let in.").With("attempts", 4)
}

func singleUse(ctx context.Context, s *stage) check.Observation {
	did := "logged in as a customer who is there to be attacked, used the one-time code again, and guessed at another one until its tries were over"
	undecided := func(err error) check.Observation {
		return check.Undecided(did, "The login could not be tried: %v", err)
	}
	login, code, err := s.start(ctx, s.own, s.private)
	if err != nil {
		return undecided(err)
	}
	if _, err := s.complete(ctx, s.own, login, code); err != nil {
		return undecided(err)
	}
	again := func() error {
		_, err := s.complete(ctx, s.own, login, code)
		return err
	}
	if failed, ok := allRefused(did, []attack{{"A one-time code that was used before", again}}); !ok {
		return failed
	}
	if login, code, err = s.start(ctx, s.own, s.private); err != nil {
		return undecided(err)
	}
	guess := attack{"A wrong one-time code", func() error {
		_, err := s.complete(ctx, s.own, login, another(code))
		return err
	}}
	attacks := slices.Repeat([]attack{guess}, codeTries)
	if failed, ok := allRefused(did, append(attacks, attack{"The right one-time code after three wrong ones", again})); !ok {
		return failed
	}
	return check.Held(did, "Used again, and right after %d wrong tries, the codes were refused.", codeTries).With("tries", codeTries)
}

func lockedOut(ctx context.Context, s *stage) check.Observation {
	did := "guessed the private code of a customer who is there to be attacked, from a device that is not theirs, then used the right one from there, and logged in from the customer's own device"
	for range maxFailures {
		_, code, err := s.start(ctx, s.attacker, wrong())
		if err != nil {
			return check.Undecided(did, "A guess could not be made: %v", err)
		}
		if code != "" {
			return check.Failed(did, "A wrong private code was answered with a one-time code.")
		}
	}
	login, code, err := s.start(ctx, s.attacker, s.private)
	switch {
	case err != nil && !wasRefused(err) && problem.Of(err) == nil:
		return check.Undecided(did, "The right code could not be tried: %v", err)
	case code != "":
		return check.Failed(did, "After %d wrong guesses the next one is still answered.", maxFailures)
	}
	if err == nil {
		if failed, ok := allRefused(did, []attack{{"The device that had guessed", func() error {
			_, err := s.complete(ctx, s.attacker, login, "000000")
			return err
		}}}); !ok {
			return failed
		}
	}
	if _, err := s.login(ctx, s.own); err != nil {
		if wasRefused(err) {
			return check.Failed(did, "The customer's own device was locked out with the one that guessed.")
		}
		return check.Undecided(did, "The customer's own device could not be tried: %v", err)
	}
	return check.Held(did, "After %d wrong guesses the right code was of no use there, and the customer's own device was let in.", maxFailures).With("guesses", maxFailures)
}

// longAgo is older than any session may be; see the bounds on login.read_lifetime.
const longAgo = 366 * 24 * time.Hour

// aged makes a session that began so long ago.
func (s *stage) aged(ctx context.Context, ago time.Duration) (out Tokens, err error) {
	scope, err := readScope("")
	if err != nil {
		return out, err
	}
	err = s.i.DB.Update(ctx, func(tx *db.Tx) error {
		d, there, err := s.i.rows.deviceByID(ctx, tx, s.owner, s.device)
		if err != nil || !there {
			return cmp.Or(err, error(errDeviceNotFound))
		}
		if out, err = s.i.newSession(ctx, tx, s.as(s.own), d, scope, s.i.Clock.Now().Add(-ago)); err != nil {
			return err
		}
		return s.i.Trail.Record(ctx, tx, s.by, audit.Event{Action: ActionHoneyTry, Resource: "old session " + out.Session, Customer: s.owner, Outcome: audit.Granted})
	})
	return out, err
}

func sessionEnds(ctx context.Context, s *stage) check.Observation {
	did := "used the tokens of a session that began a year ago, and of one that was ended, with the right device's key; used them before it was ended"
	old, err := s.aged(ctx, longAgo)
	if err != nil {
		return check.Undecided(did, "No old session could be made: %v", err)
	}
	fresh, err := s.login(ctx, s.own)
	if err != nil {
		return check.Undecided(did, "The login failed: %v", err)
	}
	by, err := s.enter(ctx, s.i.Session, "DPoP", fresh.Access, &s.own)
	if err != nil {
		return check.Undecided(did, "A fresh session is refused too, so that the others prove nothing: %v", err)
	}
	use := func(what string, t Tokens) []attack {
		return []attack{
			{"The access token of a session that " + what, func() error {
				_, err := s.enter(ctx, s.i.Session, "DPoP", t.Access, &s.own)
				return err
			}},
			{"The refresh token of a session that " + what, func() error {
				_, err := s.i.Refresh(ctx, s.as(s.own), t.Refresh)
				return err
			}},
		}
	}
	if failed, ok := allRefused(did, use("began a year ago", old)); !ok {
		return failed
	}
	if err := s.i.Logout(ctx, by); err != nil {
		return check.Undecided(did, "The session could not be ended: %v", err)
	}
	if failed, ok := allRefused(did, use("was ended", fresh)); !ok {
		return failed
	}
	return check.Held(did, "All were refused; the fresh session was let in.").With("attempts", 4)
}

// bearerDoor lets in whoever has a token, as servers do whose tokens are bound to nothing.
func (s *stage) bearerDoor(ctx context.Context, r *http.Request) (actor.Actor, error) {
	_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	var row sessionRow
	var there bool
	err := s.i.DB.View(ctx, func(tx *db.Tx) (err error) {
		row, there, err = s.i.rows.sessionByAccess(ctx, tx, tokenHash(token))
		return err
	})
	if err == nil && !there {
		err = errInvalidToken
	}
	return actor.Actor{Kind: actor.Customer, ID: string(row.customer), Session: row.id, Device: row.device}, err
}

func keyNeeded(ctx context.Context, s *stage, in door) check.Observation {
	did := "used a live token without a proof, with a proof by another device's key, and as a bearer token; used it with the right key"
	tokens, err := s.login(ctx, s.own)
	if err != nil {
		return check.Undecided(did, "The login failed: %v", err)
	}
	if _, err := s.enter(ctx, in, "DPoP", tokens.Access, &s.own); err != nil {
		return check.Undecided(did, "It is refused with the right key too, so that the rest proves nothing: %v", err)
	}
	knock := func(what, scheme string, p *player) attack {
		return attack{what, func() error {
			_, err := s.enter(ctx, in, scheme, tokens.Access, p)
			return err
		}}
	}
	if failed, ok := allRefused(did, []attack{
		knock("A token without a proof", "DPoP", nil),
		knock("A token with the proof of another device", "DPoP", &s.attacker),
		knock("A bearer token", "Bearer", nil),
		{"A refresh token with the key of another device", func() error {
			_, err := s.i.Refresh(ctx, s.as(s.attacker), tokens.Refresh)
			return err
		}},
	}); !ok {
		return failed
	}
	return check.Held(did, "All 4 were refused; with the right key it was let in.").With("attempts", 4)
}

// provenAll takes everybody's word for who they are.
type provenAll struct{ clock clock.Clock }

func (p provenAll) Proven(_ context.Context, waiting []oracle.Waiting) (proofs []oracle.Proof, err error) {
	for _, w := range waiting {
		proofs = append(proofs, oracle.Proof{Customer: w.Customer, Device: w.Device, At: p.clock.Now()})
	}
	return proofs, nil
}

// waits returns the number that the pending device shows.
func (s *stage) waits(ctx context.Context) (device, number string, err error) {
	err = s.i.DB.View(ctx, func(tx *db.Tx) error {
		all, err := s.i.rows.devicesOf(ctx, tx, s.owner)
		if err != nil {
			return err
		}
		trust, err := s.i.rows.trustOf(ctx, tx, s.owner)
		if err != nil {
			return err
		}
		for _, d := range all {
			if d.jkt != s.attacker.thumbprint || d.status != pending {
				continue
			}
			plain, err := s.i.openOwn(ctx, tx, s.owner, place("device_trust", s.owner, d.id), trust[d.id].number)
			device, number = d.id, string(plain)
			return err
		}
		return errDeviceNotFound
	})
	return device, number, err
}

// newWaits has a device wait and be let in. Meanwhile, if not nil, is what goes on while it waits.
func newWaits(ctx context.Context, s *stage, meanwhile func(context.Context) error) check.Observation {
	did := "logged in with the right codes from a device that is new, typed a wrong number into the customer's own device, then the right one"
	_, err := s.login(ctx, s.attacker)
	switch {
	case err == nil:
		return check.Failed(did, "A new device got a session at its first login.")
	case problem.Is(err, errAttestationRequired.Slug()):
		return check.Held(did, "A new device is refused unless its maker vouches for it, which nobody does for this one.")
	case !problem.Is(err, "device-pending"):
		return check.Undecided(did, "The new device was not asked to wait: %v", err)
	}
	device, number, err := s.waits(ctx)
	if err != nil {
		return check.Undecided(did, "The new device does not wait: %v", err)
	}
	if meanwhile != nil {
		if err := meanwhile(ctx); err != nil {
			return check.Undecided(did, "What goes on meanwhile failed: %v", err)
		}
	}
	tokens, err := s.login(ctx, s.own)
	if err != nil {
		return check.Undecided(did, "The customer's own device could not log in: %v", err)
	}
	by, err := s.enter(ctx, s.i.Session, "DPoP", tokens.Access, &s.own)
	if err != nil {
		return check.Undecided(did, "The customer's own device was not let in: %v", err)
	}
	guess := "000"
	if number == guess {
		guess = "001"
	}
	const unasked = "The new device no longer waits although nobody approved it."
	if again, _, err := s.waits(ctx); err != nil || again != device {
		return check.Failed(did, unasked)
	}
	if err := s.i.ApproveDevice(ctx, by, device, guess); !problem.Is(err, errWrongNumber.Slug()) {
		return check.Failed(did, "A number that the new device does not show was taken for its own.")
	}
	if again, _, err := s.waits(ctx); err != nil || again != device {
		return check.Failed(did, unasked)
	}
	if err := s.i.ApproveDevice(ctx, by, device, number); err != nil {
		return check.Undecided(did, "The right number was refused: %v", err)
	}
	if _, err := s.login(ctx, s.attacker); err != nil {
		return check.Undecided(did, "The approved device could not log in: %v", err)
	}
	return check.Held(did, "It waited until the right number was typed, and was let in then.")
}

// weakCode is a private code that must be refused.
type weakCode struct{ what, code string }

// weakCodes returns some of each kind; what can be random is.
func weakCodes(least int) []weakCode {
	day := time.Date(1940+rand.IntN(70), time.Month(1+rand.IntN(12)), 1+rand.IntN(28), 0, 0, 0, 0, time.UTC)
	at := rand.IntN(3)
	return []weakCode{
		{fmt.Sprintf("A code of %d characters", least-1), strings.ToLower(cryptorand.Text())[:least-1]},
		{"A code that is found in leaks", "iloveyou"},
		{"A code that is found in leaks, with a number behind it", fmt.Sprintf("Password%d", rand.IntN(100))},
		{"A code that is found in leaks, with spaces", "l i v e r p o o l"},
		{"A code that repeats itself", strings.Repeat(strconv.Itoa(10+rand.IntN(90)), 4)},
		{"A code of digits in sequence", "01234567890123456789"[at : at+8]},
		{"A code of digits in sequence backwards", "98765432109876543210"[at : at+8]},
		{"A code of digits in sequence, in Arabic writing", "\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668"},
		{"A code of neighbours on the keyboard", "asdfghjkl"},
		{"A date", day.Format("02012006")},
		{"A date with signs between its parts", day.Format("2006-01-02")},
		{"The customer's own number", strings.TrimPrefix(honeyNumber, "+")},
	}
}

func codePolicy(ctx context.Context, s *stage) check.Observation {
	did := "tried to choose weak private codes, for a customer who is there to be attacked: short, found in leaks, repeated, in sequence, dates and the number; then a good one, each with a wrong current code"
	undecided := func(err error) check.Observation {
		return check.Undecided(did, "No code could be tried: %v", err)
	}
	tokens, err := s.login(ctx, s.own)
	if err != nil {
		return undecided(err)
	}
	by, err := s.enter(ctx, s.i.Session, "DPoP", tokens.Access, &s.own)
	if err != nil {
		return undecided(err)
	}
	current := wrong() // so that nothing is changed, whatever is accepted
	all := weakCodes(s.i.MinCodeLength)
	for _, w := range all {
		switch err := s.i.ChangeCode(ctx, by, current, secret.FromString(w.code)); {
		case problem.Is(err, "weak-private-code"):
		case problem.Is(err, errWrongCode.Slug()): // which is looked at after the new one was found good
			return check.Failed(did, "%s is accepted.", w.what)
		default:
			return undecided(err)
		}
	}
	if weak(passcode.JudgeBirth([]byte("harbour24121987"), "1987-12-24")) == nil {
		return check.Failed(did, "A code with the customer's birth date in it is accepted.")
	}
	if err := s.i.ChangeCode(ctx, by, current, wrong()); !problem.Is(err, errWrongCode.Slug()) {
		return check.Undecided(did, "A random code of 26 characters is refused too, so that the others prove nothing: %v", err)
	}
	least := s.i.MinCodeLength
	seen := check.Held(did, "All %d were refused, and the good one was not; %d characters are asked for.", len(all), least)
	if least < passcode.MinLength {
		seen = check.Undecided(did, "All %d were refused, but codes of %d characters are accepted, by login.private_code_min_length; %d are promised.", len(all), least, passcode.MinLength)
	}
	return seen.With("codes", len(all)).With("least_length", least)
}

// leastCost is bcrypt's least cost that is taken for a hash of private codes at all (OWASP).
const leastCost = 10

func hashes(ctx context.Context, s *stage) check.Observation {
	did := "read the form, length and cost of every stored private code, and compared the one that is known"
	kinds := make(map[string]int64)
	var known account
	err := s.i.DB.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT substr(code_hash, 1, 7), length(code_hash), COUNT(*) FROM account WHERE made_at >= $1 GROUP BY 1, 2`, 0)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var head []byte
			var length, n int64
			if err := rows.Scan(&head, &length, &n); err != nil {
				return err
			}
			if length != 60 { // bytes of every bcrypt hash
				head = nil
			}
			kinds[string(head)] += n
		}
		if err := rows.Err(); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT code_hash, pepper_version FROM account WHERE customer_id = $1`, string(s.owner)).Scan(&known.code.hash, &known.code.pepper)
	})
	if err != nil {
		return check.Undecided(did, "They could not be read: %v", err)
	}
	all, older, least := int64(-1), int64(0), bcrypt.MaxCost // the honey customer's own is no customer's
	for head, n := range kinds {
		all += n
		// bcrypt.Cost reads a whole hash, of which this has the head.
		cost, err := bcrypt.Cost(append([]byte(head), dummyHash(leastCost)[7:]...))
		if err != nil {
			return check.Failed(did, "%d stored private codes are no bcrypt hashes.", n)
		}
		least = min(least, cost)
		if cost < s.i.Cost {
			older += n
		}
	}
	if least < min(leastCost, s.i.Cost) {
		return check.Failed(did, "There are bcrypt hashes of cost %d.", least)
	}
	leave, err := s.i.hasher.enter(ctx, guest{})
	if err != nil {
		return check.Undecided(did, "The known one could not be compared: %v", err)
	}
	right, err := s.i.matches(ctx, s.private, known.code)
	if err == nil && right {
		right, err = s.i.matches(ctx, wrong(), known.code)
		right = !right
	}
	leave()
	if err != nil {
		return check.Undecided(did, "The known one could not be compared: %v", err)
	}
	if !right {
		return check.Failed(did, "The hash of a private code that is known is not its hash.")
	}
	seen := check.Held(did, "The private codes of %d customers are bcrypt hashes of cost %d or more.", all, least)
	if older > 0 {
		seen = check.Undecided(did, "%d hashes are of less than the configured cost of %d; each is made anew when its customer logs in.", older, s.i.Cost)
	}
	return seen.With("customers", all).With("least_cost", least).With("configured_cost", s.i.Cost)
}

// Two samples of times are taken to differ when chance alone would make them differ as much less than once in
// ten thousand times, by an amount that somebody could use, and that twice in a row: a false alarm is then
// rarer than one in a hundred million.
const (
	leastChance  = 1e-4
	usefulTime   = 2 * time.Millisecond
	usefulPart   = 0.02 // of the answer's time
	mostPairs    = 24
	leastPairs   = 12 // fewer could not be as unlikely as that
	timingBudget = 20 * time.Second
	shuffles     = 100_000
)

func timing(ctx context.Context, s *stage) check.Observation {
	did := "timed logins with a wrong private code for a number with an account and one without, in random order, and compared the times by rank (a permutation test)"
	pairs := int(timingBudget / (2*s.i.hasher.typical*5/4 + time.Millisecond))
	pairs = min(max(pairs, leastPairs), mostPairs)
	var p, difference float64
	var seen check.Observation
	for range 2 {
		with, without, err := s.times(ctx, pairs)
		if err != nil {
			return check.Undecided(did, "A login could not be timed: %v", err)
		}
		p = permutation(with, without)
		known, unknown := median(with), median(without)
		difference = math.Abs(float64(known - unknown))
		figures := func(o check.Observation) check.Observation {
			return o.With("pairs", pairs).With("p_value", p).
				With("known_ms", milliseconds(known)).With("unknown_ms", milliseconds(unknown))
		}
		if p >= leastChance || difference < max(float64(usefulTime), usefulPart*float64(max(known, unknown))) {
			return figures(check.Held(did, "The times do not tell them apart (p = %.2g, medians %.1f and %.1f ms).", p, milliseconds(known), milliseconds(unknown)))
		}
		seen = figures(check.Failed(did, "The times tell them apart (p = %.2g, medians %.1f and %.1f ms).", p, milliseconds(known), milliseconds(unknown)))
	}
	return seen
}

func milliseconds(d time.Duration) float64 { return math.Round(float64(d)/1e4) / 100 }

// times takes pairs of times, after a pair that does not count.
func (s *stage) times(ctx context.Context, pairs int) (with, without []time.Duration, err error) {
	for n := range pairs + 1 {
		// Nothing may be locked: that is a path of its own.
		if err := s.i.DB.Update(ctx, func(tx *db.Tx) error {
			if err := s.i.catchUp(ctx, tx); err != nil {
				return err
			}
			return s.clear(ctx, tx)
		}); err != nil {
			return nil, nil, err
		}
		numbers := []string{honeyNumber, strayNumber}
		rand.Shuffle(2, func(a, b int) { numbers[a], numbers[b] = numbers[b], numbers[a] })
		for _, number := range numbers {
			private := wrong()
			began := time.Now()
			if _, err := s.i.beginLogin(ctx, s.as(s.attacker), BySMS, number, private); err != nil {
				return nil, nil, err
			}
			took := time.Since(began)
			switch {
			case n == 0:
			case number == honeyNumber:
				with = append(with, took)
			default:
				without = append(without, took)
			}
		}
	}
	return with, without, nil
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// permutation returns the chance that two samples of the same distribution differ as much as a and b do: by
// how far the sum of the ranks of one is from what is expected (Mann and Whitney), among shuffled ones.
func permutation(a, b []time.Duration) float64 {
	all := slices.Concat(a, b)
	sorted := slices.Sorted(slices.Values(all))
	ranks := make([]float64, len(all))
	for k, v := range all {
		first, _ := slices.BinarySearch(sorted, v)
		past, _ := slices.BinarySearch(sorted, v+1)
		ranks[k] = float64(first+past-1) / 2 // ties share the middle
	}
	expected := float64(len(a)) * float64(len(all)-1) / 2
	distance := func() (sum float64) {
		for _, r := range ranks[:len(a)] {
			sum += r
		}
		return math.Abs(sum - expected)
	}
	seen, asFar := distance(), 0
	for range shuffles {
		for k := range a { // the first len(a) of a shuffle
			other := k + rand.IntN(len(ranks)-k)
			ranks[k], ranks[other] = ranks[other], ranks[k]
		}
		if distance() >= seen {
			asFar++
		}
	}
	return float64(asFar+1) / (shuffles + 1)
}
