package identity

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/identity/sms"
	"strongroom/internal/jobs"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// carrier is a gateway that can be made slow and broken.
type carrier struct {
	status atomic.Int32
	slow   atomic.Bool
	mu     sync.Mutex
	got    []string // ids
	calls  atomic.Int32
}

func (c *carrier) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.calls.Add(1)
	body, _ := io.ReadAll(r.Body)
	if c.slow.Load() {
		<-r.Context().Done()
		return
	}
	if s := c.status.Load(); s != 0 {
		w.WriteHeader(int(s))
		return
	}
	var m map[string]string
	if json.Unmarshal(body, &m) == nil {
		c.mu.Lock()
		c.got = append(c.got, m["id"])
		c.mu.Unlock()
	}
}

func (c *carrier) delivered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got)
}

func withCarrier(t *testing.T, d *db.DB) (*house, *carrier) {
	t.Helper()
	c := &carrier{}
	s := httptest.NewTLSServer(c)
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	w, err := sms.NewWebhook(sms.WebhookOptions{URL: s.URL, Secret: secret.FromString("0123456789abcdef"), Timeout: 100 * time.Millisecond, Roots: roots})
	if err != nil {
		t.Fatal(err)
	}
	return newHouse(t, d, func(o *Options) {
		o.Sender = w
		o.Wake = func(string) {}
	}), c
}

func TestGatewayBreaksAndRecovers(t *testing.T) {
	for _, fault := range []string{"broken", "slow"} {
		t.Run(fault, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, d *db.DB) {
				h, gate := withCarrier(t, d)
				deliver := func() {
					t.Helper()
					if err := h.deliver(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				start := func(n int) error {
					_, err := h.StartRegistration(t.Context(), from("k"), number(n))
					return err
				}
				want(t, start(1), "")
				deliver()
				if gate.delivered() != 1 || h.count("sms_outbox") != 0 {
					t.Fatal("not delivered")
				}
				gate.status.Store(map[string]int32{"broken": 500}[fault])
				gate.slow.Store(fault == "slow")
				for n := range sms.Threshold {
					want(t, start(n), "") // nobody is told yet, and nothing hangs: the message waits
				}
				deliver()
				for _, n := range []int{1, 500} {
					err := start(n)
					want(t, err, "sms-unavailable")
					if p := problem.Of(err); p == nil || p.GetHeaders().Get("Retry-After") == "" {
						t.Error("no Retry-After")
					}
					_, err = h.StartLogin(t.Context(), from("k"), number(n), value(goodCode))
					want(t, err, "sms-unavailable")
				}
				// While it is broken one message at a time finds that out.
				calls := gate.calls.Load()
				h.clk.Advance(3 * time.Second)
				deliver()
				if got := gate.calls.Load() - calls; got != 1 {
					t.Errorf("%d calls to a broken gateway", got)
				}
				gate.status.Store(0)
				gate.slow.Store(false)
				h.clk.Advance(30 * time.Second)
				deliver()
				want(t, start(2), "")
				h.clk.Advance(time.Second)
				deliver()
				if got := gate.delivered(); got != 1+sms.Threshold+1 {
					t.Errorf("%d delivered", got)
				}
				if n := h.count("sms_outbox"); n != 0 {
					t.Errorf("%d left", n)
				}
			})
		})
	}
}

func TestMessageIsNotSentOnceItsCodeIsPast(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, gate := withCarrier(t, d)
		if _, err := h.StartRegistration(t.Context(), from("k"), number(1)); err != nil {
			t.Fatal(err)
		}
		h.clk.Advance(CodeLifetime)
		if err := h.deliver(t.Context()); err != nil {
			t.Fatal(err)
		}
		if gate.calls.Load() != 0 || h.count("sms_outbox") != 0 {
			t.Errorf("%d calls, %d rows", gate.calls.Load(), h.count("sms_outbox"))
		}
	})
}

func TestRejectedMessageIsDroppedWithAnEvent(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, gate := withCarrier(t, d)
		gate.status.Store(422)
		for n := range 2 * sms.Threshold {
			if _, err := h.StartRegistration(t.Context(), from("k"), number(n)); err != nil {
				t.Fatal(err)
			}
			if err := h.deliver(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.countEvents(ActionMessageSend, "denied message-rejected"); got != 2*sms.Threshold || h.count("sms_outbox") != 0 {
			t.Errorf("events %v, %d rows", h.events(ActionMessageSend), h.count("sms_outbox"))
		}
	})
}

// Two replicas share one outbox, through the real job runner: every message leaves once.
func TestReplicasShareTheOutbox(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, gate := withCarrier(t, d)
		const n = 40
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for _, replica := range []*Identity{h.Identity, newHouseOn(h).Identity} {
			r := jobs.New(d, jobs.Options{})
			for _, j := range replica.Jobs() {
				r.Add(j)
			}
			replica.Wake = r.Wake
			r.Start(ctx)
			defer func() {
				if err := r.Stop(context.Background()); err != nil {
					t.Error(err)
				}
			}()
		}
		for k := range n {
			if _, err := h.StartRegistration(t.Context(), from("k"), number(k)); err != nil {
				t.Fatal(err)
			}
		}
		for gate.delivered() < n && ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
		}
		seen := map[string]bool{}
		gate.mu.Lock()
		defer gate.mu.Unlock()
		for _, id := range gate.got {
			if seen[id] {
				t.Errorf("%s twice", id)
			}
			seen[id] = true
		}
		if len(seen) != n {
			t.Errorf("%d of %d delivered", len(seen), n)
		}
	})
}

func TestMessageTexts(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), func(o *Options) { o.Brand, o.WebOTPHost = "Example Bank", "bank.example" })
	if _, err := h.StartRegistration(t.Context(), from("k"), number(1)); err != nil {
		t.Fatal(err)
	}
	code := h.code(number(1))
	if got, want := h.inbox.Search(number(1))[0].Text,
		"Your Example Bank code is "+code+". It is good for 5 minutes. Never tell it to anyone.\n\n@bank.example #"+code; got != want {
		t.Errorf("%q", got)
	}
}
