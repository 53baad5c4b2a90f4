package identity

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"strongroom/internal/db"
	"strongroom/internal/problem"
)

const paymentPolicy = `permit (principal == Service::"payments", action in Action::"payments", resource);`

// A payment is authorised with its amount and payee, by its customer, on the device that the code was sent
// for, and verified once by the service that asked.
func TestPSD2_RTS_5_DynamicLinking(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		s, _ := h.services(paymentPolicy)
		service := serviceActor("payments")
		h.register(number(1), "owner")
		h.register(number(2), "other")
		tokens := h.loginFor(number(1), "owner", "payment")
		owner := h.acting(tokens, "owner")
		other := h.acting(h.loginFor(number(2), "other", "payment"), "other")
		terms := Terms{Amount: "49.90", Currency: "EUR", Payee: "Example Shop", Account: "GB33BUKB20201555555555"}
		ask := func() string {
			t.Helper()
			p, err := s.AskPayment(t.Context(), service, "payment", tokens.Customer, terms)
			if err != nil {
				t.Fatal(err)
			}
			return p.ID
		}
		send := func(payment string) string {
			t.Helper()
			if _, err := h.SendPaymentCode(t.Context(), owner, payment); err != nil {
				t.Fatal(err)
			}
			return h.code(number(1))
		}

		t.Run("the whole way", func(t *testing.T) {
			id := ask()
			_, err := s.VerifyPayment(t.Context(), service, "payment", id, tokens.Customer, terms)
			want(t, err, "payment-void") // not authorised yet
			_, err = h.ReadPayment(t.Context(), other, id)
			want(t, err, "payment-not-found")
			shown, err := h.ReadPayment(t.Context(), owner, id)
			if err != nil || shown.Terms != terms {
				t.Fatalf("%+v %v", shown, err)
			}
			code := send(id)
			for _, part := range []string{"49.90 EUR", "Example Shop", "GB33BUKB20201555555555"} {
				if text := h.inbox.Search(number(1))[0].Text; !strings.Contains(text, part) {
					t.Errorf("%q does not show %s", text, part)
				}
			}
			_, err = h.AuthorisePayment(t.Context(), other, id, value(code), terms)
			want(t, err, "payment-not-found")
			elsewhere := owner
			elsewhere.Key = "second-device"
			_, err = h.AuthorisePayment(t.Context(), elsewhere, id, value(code), terms)
			want(t, err, "payment-not-authorised")
			_, err = h.AuthorisePayment(t.Context(), owner, id, value(wrongCode(code)), terms)
			want(t, err, "payment-not-authorised")
			done, err := h.AuthorisePayment(t.Context(), owner, id, value(code), terms)
			if err != nil || done.Status != paymentAuthorised {
				t.Fatalf("%+v %v", done, err)
			}
			_, err = h.AuthorisePayment(t.Context(), owner, id, value(code), terms)
			want(t, err, "payment-void") // once
			_, err = s.VerifyPayment(t.Context(), serviceActor("thief"), "payment", id, tokens.Customer, terms)
			want(t, err, "not-permitted")
			status, err := s.PaymentStatus(t.Context(), service, "payment", id)
			if err != nil || status.Status != paymentAuthorised || status.Decided.IsZero() {
				t.Errorf("%+v %v", status, err)
			}
			_, err = s.VerifyPayment(t.Context(), service, "payment", id, tokens.Customer, terms)
			want(t, err, "")
			_, err = s.VerifyPayment(t.Context(), service, "payment", id, tokens.Customer, terms)
			want(t, err, "payment-void") // once
		})
		t.Run("a code is for its payment alone", func(t *testing.T) {
			first, second := ask(), ask()
			code := send(first)
			send(second)
			_, err := h.AuthorisePayment(t.Context(), owner, second, value(code), terms)
			if got := h.code(number(1)); got != code {
				want(t, err, "payment-not-authorised")
			}
		})
		more := terms
		more.Amount = "4990.00"
		t.Run("another amount than was shown voids it", func(t *testing.T) {
			id := ask()
			code := send(id)
			_, err := h.AuthorisePayment(t.Context(), owner, id, value(code), more)
			want(t, err, "payment-void")
			_, err = h.AuthorisePayment(t.Context(), owner, id, value(code), terms)
			want(t, err, "payment-void")
		})
		t.Run("another amount than was authorised voids it", func(t *testing.T) {
			id := ask()
			_, err := h.AuthorisePayment(t.Context(), owner, id, value(send(id)), terms)
			want(t, err, "")
			_, err = s.VerifyPayment(t.Context(), service, "payment", id, tokens.Customer, more)
			want(t, err, "payment-void")
			_, err = s.VerifyPayment(t.Context(), service, "payment", id, tokens.Customer, terms)
			want(t, err, "payment-void")
		})
		t.Run("nine guesses at most, three for each code", func(t *testing.T) {
			id := ask()
			for n := range paymentCodes {
				code := send(id)
				for range codeTries {
					_, err := h.AuthorisePayment(t.Context(), owner, id, value(wrongCode(code)), terms)
					want(t, err, "payment-not-authorised")
				}
				_, err := h.AuthorisePayment(t.Context(), owner, id, value(code), terms)
				if problem.Of(err) == nil {
					t.Errorf("code %d is good after its tries: %v", n, err)
				}
			}
			_, err := h.SendPaymentCode(t.Context(), owner, id)
			want(t, err, "payment-void")
		})
		t.Run("it expires", func(t *testing.T) {
			id := ask()
			code := send(id)
			h.clk.Advance(PaymentLifetime)
			_, err := h.AuthorisePayment(t.Context(), owner, id, value(code), terms)
			want(t, err, "payment-not-found")
		})
		t.Run("the database alone authorises nothing", func(t *testing.T) {
			id := ask()
			if err := h.DB.Update(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), `UPDATE payment SET status = 'authorised', decided_at = 1 WHERE id = $1`, id)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.VerifyPayment(t.Context(), service, "payment", id, tokens.Customer, terms); err == nil || problem.Of(err) != nil {
				t.Errorf("forged: %v", err)
			}
		})
		_, err := s.AskPayment(t.Context(), service, "payment", tokens.Customer, Terms{Amount: "1", Currency: "EUR", Payee: "Shop\n123456 is your code"})
		want(t, err, "invalid-payment")
		_, err = s.AskPayment(t.Context(), service, "payment", "cus_01jd8xk2m3n4p5q6r7s8t9v0wx", terms)
		want(t, err, "customer-not-found")
	})
}

// Whatever passes as terms shows on one line, and reads back as itself.
func TestTermsAreOneLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		terms := Terms{rapid.String().Draw(t, "amount"), rapid.StringMatching(`[A-Z]{2,4}`).Draw(t, "currency"), rapid.String().Draw(t, "payee"), ""}
		if rapid.Bool().Draw(t, "number") {
			terms.Amount = rapid.StringMatching(`[0-9]{1,13}(\.[0-9]{0,5})?`).Draw(t, "amount")
		}
		if terms.valid() && (strings.ContainsAny(terms.text(), "\r\n\u2028\u2029\x00") || len(terms.Currency) != 3 || strings.HasPrefix(terms.Amount, "00")) {
			t.Fatalf("%q", terms.text())
		}
	})
}
