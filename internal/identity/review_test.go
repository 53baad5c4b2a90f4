package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/identity/sms"
	"strongroom/internal/problem"
)

// Each test here is an attack that once succeeded.

func at(key string, n int) actor.Actor {
	by := from(key)
	by.Address = netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)})
	return by
}

func (h *house) lane(number, key string) (l lane) {
	h.t.Helper()
	err := h.DB.View(context.Background(), func(tx *db.Tx) (err error) {
		l, err = getLane(context.Background(), tx, h.laneKeys(number, key))
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

// guessed finds out a one-time code as nobody outside can, by trying all of them.
func (h *house) guessed(challengeID, purpose, key string) string {
	h.t.Helper()
	var row challengeRow
	if found, err := h.findChallenge(context.Background(), challengeID, purpose, &row); err != nil || !found {
		h.t.Fatal("no such challenge", err)
	}
	for n := range 1_000_000 {
		code := fmt.Sprintf("%06d", n)
		if ok, err := h.codeMatches(row, key, value(code)); err == nil && ok {
			return code
		}
	}
	h.t.Fatal("no code matches")
	return ""
}

// Once a number's messages are used up, further registrations have codes that were sent to nobody. Were
// they good, three guesses with each of any number of keys would find one.
func TestCodeThatWasNeverSentRegistersNobody(t *testing.T) {
	each(t, func(o *Options) { o.Limits.NumberHourly, o.Limits.NumberDaily = 2, 2 }, func(t *testing.T, h *house) {
		var ids []string
		for n := range 5 {
			s, err := h.StartRegistration(t.Context(), from(fmt.Sprint("key", n)), number(1))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, s.ID)
		}
		if n := len(h.inbox.Search(number(1))); n != 2 {
			t.Fatalf("%d messages", n)
		}
		for n := 2; n < 5; n++ {
			key := fmt.Sprint("key", n)
			_, err := h.CompleteRegistration(t.Context(), from(key), ids[n], value(h.guessed(ids[n], purposeRegistration, key)), value(goodCode), "thief")
			want(t, err, "registration-failed")
			if got := h.lastEvent(ActionRegistrationComplete); got != "denied message-quota" {
				t.Errorf("event %q", got)
			}
		}
		// An unsent code does not void the one before it, which was sent.
		if _, err := h.StartRegistration(t.Context(), from("key1"), number(1)); err != nil {
			t.Fatal(err)
		}
		if _, err := h.CompleteRegistration(t.Context(), from("key1"), ids[1], value(h.code(number(1))), value(goodCode), "x"); err != nil {
			t.Errorf("the code that was sent: %v", err)
		}
	})
}

// Customers behind one address do not use up each other's starts or messages, nor do strangers there.
func TestNeighboursAtAnAddressDoNotLockTheCustomerOut(t *testing.T) {
	each(t, func(o *Options) {
		o.Limits.Logins, o.Limits.Registrations, o.Limits.Messages = Rate{30, time.Hour}, Rate{30, time.Hour}, Rate{4, time.Hour}
		o.Limits.DeviceLogins = Rate{10, time.Hour}
	}, func(t *testing.T, h *house) {
		h.register(number(1), "own")
		for n := range 3 { // the messages of the network
			if _, err := h.StartRegistration(t.Context(), from("x"), number(10+n)); err != nil {
				t.Fatal(err)
			}
		}
		for n := range 30 { // its starts
			if _, err := h.StartLogin(t.Context(), from(fmt.Sprint("k", n)), number(2), value("83920486")); err != nil {
				t.Fatal(err)
			}
		}
		_, err := h.StartLogin(t.Context(), from("k"), number(1), value(goodCode))
		want(t, err, "too-many-requests")
		for range 4 {
			h.mustLogin(number(1), "own")
		}
		// The device has a limit of its own, from wherever it comes.
		h.clk.Advance(3 * time.Hour)
		refused := 0
		for n := range 15 {
			if _, err := h.StartLogin(t.Context(), at("own", n), number(1), value(goodCode)); problem.Is(err, "too-many-requests") {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if refused != 5 {
			t.Errorf("%d of 15 refused with a limit of 10", refused)
		}
	})
}

// Strangers take their own places in the queue only, and each network two of them.
func TestStrangersInTheQueueDoNotStarveCustomers(t *testing.T) {
	for _, workers := range []int{1, 2} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			q := newQueue(workers, 20)
			leave, err := q.enter(t.Context(), guest{source: "a"})
			if err != nil {
				t.Fatal(err)
			}
			var order []string
			var mu sync.Mutex
			var wg sync.WaitGroup
			served := func() int {
				mu.Lock()
				defer mu.Unlock()
				return len(order)
			}
			wait := func(name string, g guest) {
				before := q.length()
				wg.Go(func() {
					leave, err := q.enter(context.Background(), g)
					if err != nil {
						t.Error(name, err)
						return
					}
					mu.Lock()
					order = append(order, name)
					mu.Unlock()
					leave()
				})
				for q.length() == before && served() == 0 {
					time.Sleep(100 * time.Microsecond)
				}
			}
			for n := range 19 {
				wait("stranger", guest{source: fmt.Sprint("network", n)})
			}
			wait("a", guest{source: "a"})
			if _, err := q.enter(t.Context(), guest{source: "a"}); !problem.Is(err, "login-busy") {
				t.Errorf("a third place for one network: %v", err)
			}
			if _, err := q.enter(t.Context(), guest{source: "b"}); !problem.Is(err, "login-busy") {
				t.Errorf("a place when all are taken: %v", err)
			}
			wait("customer", guest{known: true, source: "own"})
			if workers > 1 {
				for deadline := time.Now().Add(10 * time.Second); served() == 0 && time.Now().Before(deadline); {
					time.Sleep(time.Millisecond)
				}
				if n := served(); n != 1 {
					t.Errorf("the worker that is kept for customers served %d", n)
				}
			}
			leave()
			wg.Wait()
			if len(order) != 21 || order[0] != "customer" {
				t.Errorf("order %v", order)
			}
			if q.busy != 0 || q.others != 0 || len(q.held) != 0 {
				t.Errorf("left behind: %+v", q)
			}
		})
	}
	each(t, func(o *Options) { o.HashWorkers, o.HashQueue = 2, 2 }, func(t *testing.T, h *house) {
		h.register(number(1), "own")
		if _, err := h.hasher.enter(t.Context(), guest{source: "a"}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for n := range 2 {
			go func() { _, _ = h.hasher.enter(ctx, guest{source: fmt.Sprint("w", n)}) }()
		}
		for h.hasher.queue.length() < 3 {
			time.Sleep(time.Millisecond)
		}
		_, err := h.StartLogin(t.Context(), from("stranger"), number(1), value(goodCode))
		want(t, err, "login-busy")
		h.mustLogin(number(1), "own")
	})
}

// Only who has the code that was sent takes a place, and being refused one costs no try.
func TestRegistrationTakesAPlaceOnlyWithTheRightCode(t *testing.T) {
	each(t, func(o *Options) { o.HashWorkers, o.HashQueue = 1, 1 }, func(t *testing.T, h *house) {
		s, err := h.StartRegistration(t.Context(), from("k"), number(1))
		if err != nil {
			t.Fatal(err)
		}
		code := h.code(number(1))
		leave, err := h.hasher.enter(t.Context(), guest{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() { _, _ = h.hasher.enter(ctx, guest{}); close(gone) }()
		for h.hasher.queue.length() < 2 {
			time.Sleep(time.Millisecond)
		}
		complete := func(code, private string) error {
			_, err := h.CompleteRegistration(t.Context(), from("k"), s.ID, value(code), value(private), "x")
			return err
		}
		want(t, complete(wrongCode(code), goodCode), "registration-failed")
		want(t, complete(code, "12345678"), "weak-private-code")
		for range 3 * codeTries {
			want(t, complete(code, goodCode), "login-busy")
		}
		cancel()
		<-gone
		leave()
		want(t, complete(code, goodCode), "")
		want(t, complete(code, goodCode), "registration-failed")
	})
}

// A failure of our own between the count of an attempt and its outcome is no failure of the customer's.
func TestOurOwnFailuresLockNobodyOut(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "own")
		rename := func(a, b string) {
			if err := h.DB.Update(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), "ALTER TABLE "+a+" RENAME TO "+b)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		rename("sms_outbox", "gone")
		for range 2 * maxFailures {
			for _, key := range []string{"own", "new"} {
				if _, err := h.StartLogin(t.Context(), from(key), number(1), value(goodCode)); err == nil {
					t.Fatal("started without an outbox")
				}
			}
		}
		rename("gone", "sms_outbox")
		for _, key := range []string{"own", ""} {
			if l := h.lane(number(1), key); l != (lane{}) {
				t.Errorf("lane of %q: %+v", key, l)
			}
		}
		h.mustLogin(number(1), "own")
	})
}

// Whoever knows the private code, but is not a known device, does not void what the customer is sent.
func TestStrangerWithThePrivateCodeVoidsNothing(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "own")
		own, err := h.StartLogin(t.Context(), from("own"), number(1), value(goodCode))
		if err != nil {
			t.Fatal(err)
		}
		code := h.code(number(1))
		h.clk.Advance(time.Second)
		other, err := h.StartLogin(t.Context(), from("stranger"), number(1), value(goodCode))
		if err != nil {
			t.Fatal(err)
		}
		strangers := h.code(number(1))
		if _, err := h.CompleteLogin(t.Context(), from("own"), own.ID, value(code), ""); err != nil {
			t.Errorf("the customer's own device: %v", err)
		}
		_, err = h.CompleteLogin(t.Context(), from("stranger"), other.ID, value(strangers), "")
		want(t, err, "device-pending")
	})
}

// picky is a gateway that dislikes some numbers.
type picky struct {
	*sms.Inbox
	bad func(to string) bool
	n   atomic.Int32
}

func (p *picky) Send(ctx context.Context, m sms.Message) error {
	if p.bad(m.To) {
		p.n.Add(1)
		return errors.New("sms: the gateway answered with status 403")
	}
	return p.Inbox.Send(ctx, m)
}

func TestOneNumberThatTheGatewayDislikesBreaksNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		p := &picky{bad: func(to string) bool { return to == number(4) }}
		h := newHouse(t, d, func(o *Options) { o.Sender = p })
		p.Inbox = h.inbox
		h.register(number(5), "own")
		for range 60 { // a minute of asking, and nobody else is about
			h.clk.Advance(time.Second)
			if err := h.deliver(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := h.StartRegistration(t.Context(), from("evil"), number(4)); err != nil {
				t.Fatal(err)
			}
		}
		if p.n.Load() < 2*sms.Threshold || h.gateway.Broken() {
			t.Errorf("%d failures, broken %v", p.n.Load(), h.gateway.Broken())
		}
		h.mustLogin(number(5), "own")
	})
}

// While the gateway is taken to be broken, the customer's message has its turn before those that failed.
func TestTrialsOfABrokenGatewayAreNotUsedUpByBadMessages(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		p := &picky{bad: func(to string) bool { return to != number(5) }}
		h := newHouse(t, d, func(o *Options) { o.Sender = p })
		p.Inbox = h.inbox
		h.register(number(5), "own")
		for n := range 2 * sms.Threshold {
			if _, err := h.StartRegistration(t.Context(), from("evil"), number(10+n)); err != nil && !problem.Is(err, "sms-unavailable") {
				t.Fatal(err)
			}
		}
		if !h.gateway.Broken() {
			t.Fatal("not broken")
		}
		// A stranger asks at every moment and so takes every trial that strangers have.
		got := false
		for s := 0; s < 70 && !got; s++ {
			h.clk.Advance(time.Second)
			if _, err := h.StartRegistration(t.Context(), from("evil"), number(100+s)); err != nil && !problem.Is(err, "sms-unavailable") {
				t.Fatal(err)
			}
			_, err := h.StartLogin(t.Context(), from("own"), number(5), value(goodCode))
			got = err == nil
			if err := h.deliver(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if !got || h.gateway.Broken() {
			t.Errorf("the customer got a trial: %v; still broken: %v", got, h.gateway.Broken())
		}
	})
}

func TestHashesOfAnotherCostTakeTheSameWork(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, func(o *Options) { o.Cost = 6 })
		h.register(number(1), "own")
		for _, cost := range []int{4, 8} {
			o := h.Options
			o.Cost = cost
			i, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if want := max(cost, 6); i.hasher.highest != want {
				t.Fatalf("cost %d: highest %d, want %d", cost, i.hasher.highest, want)
			}
			stored := hashed{h.stored(number(1)), i.hasher.nobody().pepper}
			work := func(with hashed) (sum int) {
				i.hasher.compare = func(hash, in []byte) error {
					cost, err := bcrypt.Cost(hash)
					if err != nil {
						t.Fatal(err)
					}
					sum += 1 << cost
					return bcrypt.CompareHashAndPassword(hash, in)
				}
				for _, code := range []string{"83920486", goodCode} {
					if _, err := i.hasher.matches(value(code), with); err != nil {
						t.Fatal(err)
					}
				}
				return sum
			}
			if a, b := work(stored), work(i.hasher.nobody()); a != b || b != 2<<i.hasher.highest {
				t.Errorf("cost %d: an account takes %d rounds, none takes %d", cost, a, b)
			}
		}
	})
}

func (h *house) stored(to string) (hash []byte) {
	h.t.Helper()
	err := h.DB.View(context.Background(), func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), `SELECT code_hash FROM account WHERE phone_index = $1`, h.phoneIndexes(to)[0].Value).Scan(&hash)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return hash
}

// A hash is made anew at the present cost when its customer next shows the code on a known device.
func TestHashIsRenewedAtThePresentCost(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		h.register(number(1), "own")
		o := h.Options
		o.Cost = 5
		h = newHouseOn(&house{Identity: &Identity{Options: o}, t: t, inbox: h.inbox, clk: h.clk, logs: h.logs})
		before := h.stored(number(1))
		for key, private := range map[string]string{"own": "83920486", "stranger": goodCode} {
			if _, err := h.StartLogin(t.Context(), from(key), number(1), value(private)); err != nil {
				t.Fatal(err)
			}
			if err := h.rehash(t.Context()); err != nil || string(h.stored(number(1))) != string(before) {
				t.Fatalf("%s has changed the hash, or %v", key, err)
			}
		}
		h.mustLogin(number(1), "own")
		if err := h.rehash(t.Context()); err != nil {
			t.Fatal(err)
		}
		if cost, err := bcrypt.Cost(h.stored(number(1))); err != nil || cost != 5 {
			t.Errorf("cost %d, %v", cost, err)
		}
		h.mustLogin(number(1), "own")
		if len(h.stale) != 0 {
			t.Error("a present hash is renewed again")
		}
		if _, err := h.login(number(1), "own", "83920486"); !problem.Is(err, "login-failed") {
			t.Errorf("a wrong code after renewal: %v", err)
		}
	})
}

// A known device has a ceiling as well, and whoever reaches it does not hold the customer's device.
func TestNIST_3_2_2_KnownDeviceIsRevokedAfterHundredFailures(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		first := h.register(number(1), "own")
		session := h.mustLogin(number(1), "own")
		_, err := h.login(number(1), "second", goodCode)
		p := problem.Of(err)
		if p == nil || p.Member("device") == nil {
			t.Fatal(err)
		}
		if err := h.ApproveDevice(t.Context(), h.acting(session, "own"), p.Member("device").(string), p.Member("number").(string)); err != nil {
			t.Fatal(err)
		}
		h.clk.Advance(time.Hour) // the session is idle from now on, and not yet over
		compared := func() int { return h.countEvents(ActionLoginStart, "denied wrong-private-code") }
		for n := 0; n < 3*ceiling && h.countEvents(ActionDeviceRevoke, "granted too-many-failures") == 0; n++ {
			if _, err := h.StartLogin(t.Context(), from("own"), number(1), value("83920486")); err != nil {
				t.Fatal(err)
			}
			if n%maxFailures == maxFailures-1 {
				h.clk.Advance(longBlock)
			}
		}
		if n := compared(); n != ceiling {
			t.Errorf("%d comparisons", n)
		}
		if n := h.countEvents(ActionDeviceRevoke, "granted too-many-failures"); n != 1 {
			t.Fatalf("events %v", h.events(ActionDeviceRevoke))
		}
		var status string
		if err := h.DB.View(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT status FROM device WHERE id = $1`, first.Device).Scan(&status)
		}); err != nil || status != revoked {
			t.Errorf("status %q, %v", status, err)
		}
		_, err = h.login(number(1), "own", goodCode)
		want(t, err, "login-failed")
		h.mustLogin(number(1), "second")
	})
}

// Whoever makes proofs without number has those of customers refused by none of it.
func TestProofsOfStrangersTakeNothingFromSessions(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s := h.serve()
		ada, eve := h.newPhone(s), h.newPhone(s)
		h.register(number(1), ada.jkt)
		tokens := h.mustLogin(number(1), ada.jkt)
		ada.access, ada.nonce, eve.nonce = string(tokens.Access.Reveal()), h.Nonce(), h.Nonce()
		// A proof with somebody's token, but not his key, is remembered nowhere: it comes again and
		// is refused for what it is, not as a replay.
		eve.access = ada.access
		proof := eve.proof("GET", "/v1/session", eve.access)
		for range 2 {
			r := get(t, s.URL+"/v1/session", proof, eve.access)
			if a := eve.send(r); a.slug() != "invalid-token" {
				t.Errorf("answer %d %s", a.status, a.raw)
			}
		}
		own := ada.proof("GET", "/v1/session", ada.access)
		for n := range 2 {
			a := ada.send(get(t, s.URL+"/v1/session", own, ada.access))
			if n == 0 && a.status != 200 || n == 1 && (a.status != 401 || !strings.Contains(a.raw, "invalid-dpop-proof")) {
				t.Errorf("time %d: %d %s", n, a.status, a.raw)
			}
		}
	})
}

func get(t *testing.T, url, proof, token string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("DPoP", proof)
	r.Header.Set("Authorization", "DPoP "+token)
	return r
}

// Many starts at the same instant are all served, on PostgreSQL too, where one row that all of them
// write would have most of them run again until they give up.
func TestManyStartsAtOnceAreAllServed(t *testing.T) {
	const customers = 40
	each(t, func(o *Options) { o.HashWorkers, o.HashQueue = 16, 1000; o.Wake = func(string) {} }, func(t *testing.T, h *house) {
		for n := range customers {
			s, err := h.StartRegistration(t.Context(), from(fmt.Sprint("own", n)), number(n))
			if err != nil {
				t.Fatal(err)
			}
			if err := h.deliver(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := h.CompleteRegistration(t.Context(), from(fmt.Sprint("own", n)), s.ID, value(h.code(number(n))), value(goodCode), "x"); err != nil {
				t.Fatal(err)
			}
		}
		var failed atomic.Int32
		var wg sync.WaitGroup
		began := time.Now()
		const rounds = 5
		for n := range customers {
			wg.Go(func() {
				for range rounds {
					if _, err := h.StartLogin(context.Background(), at(fmt.Sprint("own", n), n), number(n), value(goodCode)); err != nil {
						failed.Add(1)
						t.Log(err)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%d starts in %v, %d failed", customers*rounds, time.Since(began).Round(time.Millisecond), failed.Load())
		if failed.Load() != 0 {
			t.Errorf("%d of %d failed", failed.Load(), customers*rounds)
		}
	})
}

// Two replicas that are asked the same thing many times at one instant grant it once.
func TestReplicasGrantOnce(t *testing.T) {
	each(t, func(o *Options) { o.HashWorkers, o.HashQueue = 4, 200 }, func(t *testing.T, h *house) {
		second, err := New(func() Options { o := h.Options; o.Metrics = nil; return o }())
		if err != nil {
			t.Fatal(err)
		}
		replicas := []*Identity{h.Identity, second}
		parallel := func(n int, f func(i *Identity, n int) error, refusal string) (granted int32) {
			var ok atomic.Int32
			var wg sync.WaitGroup
			for k := range n {
				wg.Go(func() {
					if err := f(replicas[k%2], k); err == nil {
						ok.Add(1)
					} else if !problem.Is(err, refusal) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			return ok.Load()
		}
		h.register(number(1), "own")
		s, err := h.StartLogin(t.Context(), from("own"), number(1), value(goodCode))
		if err != nil {
			t.Fatal(err)
		}
		code := h.code(number(1))
		if n := parallel(16, func(i *Identity, _ int) error {
			_, err := i.CompleteLogin(context.Background(), from("own"), s.ID, value(code), "")
			return err
		}, "login-failed"); n != 1 {
			t.Errorf("one code opened %d sessions", n)
		}
		var ids, codes [2]string
		for k := range ids {
			s, err := h.StartRegistration(t.Context(), from(fmt.Sprint("new", k)), number(2))
			if err != nil {
				t.Fatal(err)
			}
			ids[k], codes[k] = s.ID, h.code(number(2))
		}
		if n := parallel(8, func(i *Identity, n int) error {
			k := n / 2 % 2
			_, err := i.CompleteRegistration(context.Background(), from(fmt.Sprint("new", k)), ids[k], value(codes[k]), value(goodCode), "")
			return err
		}, "registration-failed"); n != 1 {
			t.Errorf("one number has %d accounts", n)
		}
	})
}
