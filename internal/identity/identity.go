// Package identity knows customers by what they have and know: a mobile number, a private code and a
// device that holds a key.
//
// The promise: nobody gets a session without a one-time code sent to the number, the private code,
// and a proof by the key of a device that the customer has authorised (NIST SP 800-63B-4 AAL2, PSD2
// RTS on strong customer authentication). A stranger learns nothing on the way: a number that is
// unknown, a wrong private code and a locked account are answered alike, through one code path with
// the same writes and the same hashing, after the same time. Who guesses locks out himself and all
// other unknown devices, never the customer's own device. Whoever steals a token finds it bound to
// the device's key (RFC 9449), short-lived, and revoked when it is used twice.
//
// Terms: a lane is one count of failures, of an account and a known device or of an account and all
// unknown devices together. A challenge is a registration or login that waits for its one-time code.
// A blank is an outbox row without a message, written so that nothing shows whether one was sent.
package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"runtime"
	"time"

	"github.com/go-webauthn/webauthn/webauthn"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/bcrypt"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/identity/attest"
	"strongroom/internal/identity/dpop"
	"strongroom/internal/identity/passcode"
	"strongroom/internal/identity/phone"
	"strongroom/internal/identity/sms"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	"strongroom/internal/problem"
)

// What the room's events say was done.
const (
	ActionRegistrationStart    = "identity.registration.start"
	ActionRegistrationComplete = "identity.registration.complete"
	ActionLoginStart           = "identity.login.start"
	ActionLoginComplete        = "identity.login.complete"
	ActionSessionCheck         = "identity.session.check" // refusals only; what is let in has its own event
	ActionSessionRead          = "identity.session.read"
	ActionSessionRefresh       = "identity.session.refresh"
	ActionSessionRevoke        = "identity.session.revoke"
	ActionSessionList          = "identity.session.list"
	ActionSessionIntrospect    = "identity.session.introspect"
	ActionCodeExchange         = "identity.code.exchange" // an authorization code for tokens
	ActionPaymentAsk           = "identity.payment.ask"
	ActionPaymentRead          = "identity.payment.read"
	ActionPaymentCode          = "identity.payment.code"
	ActionPaymentAuthorise     = "identity.payment.authorise"
	ActionPaymentVerify        = "identity.payment.verify"
	ActionDeviceCheck          = "identity.device.check" // refusals only
	ActionDeviceAdd            = "identity.device.add"
	ActionDeviceList           = "identity.device.list"
	ActionDeviceApprove        = "identity.device.approve"
	ActionDeviceRevoke         = "identity.device.revoke"
	ActionMessageSend          = "identity.message.send"
	ActionMessageReceipt       = "identity.message.receipt" // what a provider reported
)

// The names of the room's jobs.
const (
	JobMessages = "identity.messages" // carries the outbox to the gateway
	JobCleanup  = "identity.cleanup"  // deletes what is past
	JobRehash   = "identity.rehash"   // hashes private codes at the present cost
	JobNumbers  = "identity.numbers"  // makes the changes of numbers whose time has come
)

// Rate is a number of times in a period.
type Rate struct {
	Limit int
	Per   time.Duration
}

// Limits bound what one address, one number and everybody together may ask for. They are counted in
// the database, so they hold over all replicas. An address means one IPv4 address or one IPv6 /64.
type Limits struct {
	Registrations Rate // started, per address; zero means 20 an hour
	Logins        Rate // started, per address, by devices that are not known; zero means 60 an hour
	DeviceLogins  Rate // started, per known device; zero means 20 an hour, or a third of Logins if that is more
	// Messages are those sent per address, zero means as many as Registrations and Logins together.
	// Those to a known device are counted by the device: its neighbours at an address do not matter.
	Messages Rate
	// NumberHourly and NumberDaily bound the messages to one number. Logins from each of the
	// customer's own devices, logins from all other devices, and registrations are counted apart, so
	// that nobody uses up the customer's own. Zero means 5 and 10.
	NumberHourly, NumberDaily int
	// Daily bounds all messages of a day, whose price attackers would have the operator pay. Half of
	// it is kept for logins from known devices, a quarter for other logins and a quarter for
	// registrations, so that strangers drain their own share only. Zero means 10,000.
	Daily int
	// CountryDaily and BlockDaily bound the messages to all numbers of a country and of a block, which are
	// those alike but for their last four digits: registrations and logins from devices that are not known,
	// each. Zero means no bound for a country and 100 for a block.
	CountryDaily, BlockDaily int
	Spend                    Spend
}

// Options configure an Identity. DB, Keys, Trail and Sender are needed; the rest has defaults.
type Options struct {
	DB      *db.DB
	Keys    *keyring.Keyring
	Trail   *audit.Trail
	Sender  sms.Sender
	Clock   clock.Clock
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Findings learns what is wrong; nil means nobody.
	Findings Findings
	// Profiles knows birth dates, which private codes must not hold; nil means that none is known.
	Profiles Profiles
	// Wake asks that a job of Jobs runs soon. Without it messages wait for the job's own pace.
	Wake func(job string)

	// Phone says which numbers are read.
	Phone phone.Rules
	// Cost is bcrypt's cost; 0 means 12. The configuration allows 10 and more, only tests less.
	Cost int
	// MinCodeLength is the least number of characters of a private code; 0 means 8.
	MinCodeLength int
	// HashWorkers is how many private codes are hashed at the same time; 0 means half of the cores.
	// With two and more, one is kept for known devices. HashQueue is how many more may wait, known
	// devices and strangers each; 0 means 16 for each worker.
	HashWorkers, HashQueue int

	AccessLifetime  time.Duration // of an access token; 0 means 5 minutes
	IdleLifetime    time.Duration // of the scope write in a session that is not used; 0 means 1 hour (NIST AAL2)
	SessionLifetime time.Duration // of the scopes write and payment; 0 means 24 hours (NIST AAL2)
	PaymentIdle     time.Duration // of the scope payment in a session that is not used; 0 means 5 minutes (PSD2 RTS art. 4)
	ReadIdle        time.Duration // of the scope read in a session that is not used; 0 means 30 days
	ReadLifetime    time.Duration // of the scope read; 0 means 90 days
	StepUpAge       time.Duration // the oldest login that dangerous deeds go with; 0 means 15 minutes

	// CodeResetHold is how long a customer who forgot the private code waits before choosing another;
	// 0 means 24 hours.
	CodeResetHold time.Duration
	// SessionMemories is how many sessions that were found good are remembered between two requests; 0 means 16,384, less
	// than 0 none.
	SessionMemories int
	// MaxDevices is how many devices a customer may have, pending ones included; 0 means 5.
	MaxDevices int
	// Attest says what must vouch for the keys of devices.
	Attest AttestOptions
	// Passkeys say for whom passkeys are made.
	Passkeys PasskeyOptions
	// SIMs, when set, keeps codes from numbers whose SIM was changed a short while ago.
	SIMs SIMs
	// Proofs, when set, lets devices in whose holders have proven who they are.
	Proofs IdentityProofs
	// CancelURL is the page of the app that cancels a change of number; the code is added to it. Without
	// it the message holds the code alone.
	CancelURL string
	// Origins are the addresses of the app listener when a proxy stands before it; see dpop.Options.
	Origins []string
	// Brand is what messages call the operator; "" means Strongroom.
	Brand string
	// WebOTPHost, when set, ends messages with the line that lets browsers fill in the code for that
	// host alone (W3C origin-bound one-time codes).
	WebOTPHost string
	// AppHash, when set, ends messages with the 11 characters by which Android's SMS Retriever knows the
	// app that may read them. A message has one end, so it excludes WebOTPHost.
	AppHash string
	Limits  Limits
}

// CodeLifetime is how long a one-time code is good (NIST SP 800-63B-4 allows 10 minutes).
const CodeLifetime = 5 * time.Minute

// codeTries is how often a one-time code may be tried.
const codeTries = 3

// Identity is the room. It is safe for concurrent use.
type Identity struct {
	Options
	hasher   *hasher
	proofs   *dpop.Verifier
	gateway  sms.Breaker
	nonces   *dpop.Nonces
	attest   *attest.Verifier
	passkeys *webauthn.WebAuthn
	memory   *memory
	stale    chan rehashing
	writing  chan struct{}
	denials  *denials
	caught   caught // messages to the honey customer
	judge    func(code []byte, e164 string, minLength int) passcode.Weakness
	metrics  *metrics
	rows     rows
	route    *sms.Route // the Sender, when it is one of several providers
}

// appHash is what AppSignatureHelper of Android's SMS Retriever computes.
var appHash = regexp.MustCompile(`^[A-Za-z0-9+/]{11}$`)

// New returns an Identity.
func New(o Options) (*Identity, error) {
	if o.DB == nil || o.Keys == nil || o.Trail == nil || o.Sender == nil {
		return nil, errors.New("identity: database, keys, trail and sender are needed")
	}
	orDefault := func(n *int, d int) {
		if *n <= 0 {
			*n = d
		}
	}
	orDuration := func(t *time.Duration, d time.Duration) {
		if *t <= 0 {
			*t = d
		}
	}
	orRate := func(r *Rate, limit int) {
		if r.Limit <= 0 || r.Per <= 0 {
			*r = Rate{limit, time.Hour}
		}
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Wake == nil {
		o.Wake = func(string) {}
	}
	if o.Brand == "" {
		o.Brand = defaultBrand
	}
	orDefault(&o.Cost, 12)
	orDefault(&o.MinCodeLength, passcode.MinLength)
	orDefault(&o.HashWorkers, max(1, runtime.GOMAXPROCS(0)/2))
	orDefault(&o.HashQueue, 16*o.HashWorkers)
	orDefault(&o.MaxDevices, 5)
	orDuration(&o.AccessLifetime, 5*time.Minute)
	orDuration(&o.IdleLifetime, time.Hour)
	orDuration(&o.SessionLifetime, 24*time.Hour)
	orDuration(&o.PaymentIdle, 5*time.Minute)
	orDuration(&o.ReadIdle, 30*24*time.Hour)
	orDuration(&o.ReadLifetime, 90*24*time.Hour)
	orDuration(&o.StepUpAge, 15*time.Minute)
	orDuration(&o.CodeResetHold, 24*time.Hour)
	orRate(&o.Limits.Registrations, 20)
	orRate(&o.Limits.Logins, 60)
	orRate(&o.Limits.DeviceLogins, max(20, o.Limits.Logins.Limit/3))
	orRate(&o.Limits.Messages, o.Limits.Registrations.Limit+o.Limits.Logins.Limit)
	orDefault(&o.Limits.NumberHourly, 5)
	orDefault(&o.Limits.NumberDaily, 10)
	orDefault(&o.Limits.Daily, 10_000)
	orDefault(&o.Limits.BlockDaily, 100)
	if o.Cost < bcrypt.MinCost || o.Cost > bcrypt.MaxCost {
		return nil, fmt.Errorf("identity: bcrypt cost %d is not between %d and %d", o.Cost, bcrypt.MinCost, bcrypt.MaxCost)
	}
	if o.MinCodeLength < passcode.LeastLength {
		return nil, fmt.Errorf("identity: private codes of %d characters are too short; 8 is the rule, 6 the least", o.MinCodeLength)
	}

	if o.AppHash != "" && (o.WebOTPHost != "" || !appHash.MatchString(o.AppHash)) {
		return nil, errors.New("identity: the app's hash must be 11 characters of base64, without a WebOTP host beside it")
	}

	i := &Identity{Options: o, rows: rows{tokenKeys{o.Keys}}, denials: newDenials(o.Clock), stale: make(chan rehashing, rehashes), writing: make(chan struct{}, writers),
		judge: passcode.Judge}
	i.route, _ = o.Sender.(*sms.Route)
	var err error
	if i.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var used []int
	if err := o.DB.View(ctx, func(tx *db.Tx) (err error) {
		used, err = hashCosts(ctx, tx)
		return err
	}); err != nil {
		return nil, fmt.Errorf("identity: reading the costs of hashes: %w", err)
	}
	i.hasher = newHasher(o.Keys, o.Cost, used, o.HashWorkers, o.HashQueue, i.metrics)
	i.memory = newMemory(o.DB, cmp.Or(o.SessionMemories, sessionMemories))
	i.nonces = dpop.NewNonces(tokenKeys{o.Keys})
	i.proofs, err = dpop.New(dpop.Options{Clock: o.Clock, Nonces: i.nonces, Origins: o.Origins})
	if err != nil {
		return nil, err
	}
	if i.passkeys, err = newPasskeys(o.Passkeys, o.Brand); err != nil {
		return nil, err
	}
	if i.attest, err = newAttestation(o.Attest); err != nil {
		return nil, err
	}
	return i, nil
}

const defaultBrand = "Strongroom"

// tokenKeys gives the token key to the makers of nonces and codes.
type tokenKeys struct{ keys *keyring.Keyring }

func (t tokenKeys) MAC(parts ...[]byte) ([]byte, uint32) {
	return t.keys.MAC(keyring.KeyToken, parts...)
}

func (t tokenKeys) MACVersion(version uint32, parts ...[]byte) ([]byte, error) {
	return t.keys.MACVersion(keyring.KeyToken, version, parts...)
}

// Jobs returns the room's background work.
func (i *Identity) Jobs() []jobs.Job {
	all := []jobs.Job{
		{Name: JobMessages, Every: time.Second, Run: i.deliver, Quiet: true},
		{Name: JobNumbers, Every: time.Minute, Run: i.changeNumbers, Leased: true, Quiet: true},
		{Name: JobCleanup, Every: 10 * time.Minute, Run: i.cleanup, Leased: true},
		{Name: JobRehash, Run: i.rehash, Quiet: true}, // when woken
	}
	if i.Proofs != nil {
		all = append(all, jobs.Job{Name: JobProofs, Every: proofsEvery, Run: i.acceptProofs, Leased: true, Quiet: true})
	}
	return all
}

// What callers are told. One answer stands for many reasons; the reason itself is for the trail.
var (
	errInvalidPhone       = problem.New(problem.Unprocessable, "invalid-phone", "This is not a mobile number. Write it with its country code, for example +447700900123.")
	errRegistrationFailed = problem.New(problem.Unauthenticated, "registration-failed", "The registration cannot be completed. Start again.")
	errLoginFailed        = problem.New(problem.Unauthenticated, "login-failed", "The login cannot be completed. Start again.")
	errLoginBusy          = problem.New(problem.Unavailable, "login-busy", "Too many customers are logging in at this moment. Try again shortly.").RetryAfter(2 * time.Second)
	errTooMany            = problem.New(problem.TooMany, "too-many-requests", "Too many attempts from your network. Try again later.")
	errMessages           = problem.New(problem.Unavailable, "sms-unavailable", "Text messages cannot be sent at this moment. Try again later.")
	errInvalidRefresh     = problem.New(problem.Unauthenticated, "invalid-refresh-token", "The refresh token is not good, or no longer. Log in again.")
	errSessionRevoked     = problem.New(problem.Unauthenticated, "session-revoked", "This session has been ended. Log in again.")
	errDeviceNotFound     = problem.New(problem.NotFound, "device-not-found", "You have no such device.")
	errDeviceRevoked      = problem.New(problem.Conflict, "device-revoked", "This device has been revoked. Its key cannot be used again.")
	errLastDevice         = problem.New(problem.Conflict, "last-device", "This is your only authorised device. Approve another one first.")
	errTooManyDevices     = problem.New(problem.Forbidden, "too-many-devices", "You have as many devices as are allowed. Revoke one first.")
	errNotCustomer        = problem.New(problem.Forbidden, "customers-only", "Only a logged-in customer may do this.")
)

// because returns the problem that stands for a reason in the trail. Nobody outside sees it.
func because(reason string) *problem.Problem {
	return problem.New(problem.Unauthenticated, reason, "")
}

// caller returns the customer and the session that act, or refuses.
func caller(by actor.Actor) (customer.ID, error) {
	if by.Customer() == "" || by.Session == "" || by.Device == "" {
		return "", errNotCustomer
	}
	return by.Customer(), nil
}

// settle detaches ctx from its caller's patience: once an attempt is counted, its outcome is written
// down even if nobody waits for it any more.
func settle(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
}
