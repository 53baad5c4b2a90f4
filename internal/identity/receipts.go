package identity

import (
	"context"
	"io"
	"net/http"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/identity/sms"
	"strongroom/internal/problem"
)

// ReceiptPath is where providers report what became of messages; the provider's name follows.
const ReceiptPath = "/v1/messages/receipts/"

// carry hands a letter to the gateway, or to the first of several providers that takes it.
func (i *Identity) carry(ctx context.Context, message string, l *letter) (err error) {
	m := sms.Message{ID: message, To: l.To, Text: l.Text, Made: clock.FromMicros(l.Made)}
	if i.route == nil {
		return i.Sender.Send(ctx, m)
	}
	l.Via, err = i.route.Carry(ctx, m, l.Tried)
	return err
}

// keepSent keeps a letter that a provider has accepted until the provider reports, if it does, or the
// code in it is past.
func (i *Identity) keepSent(ctx context.Context, tx *db.Tx, row outboxRow, l letter) error {
	if i.route == nil || !i.route.Reports(l.Via) {
		return nil
	}
	sealed, err := i.sealBlank("sms_sent", row.id, l)
	if err != nil {
		return err
	}
	return insertSent(ctx, tx, row.id, sealed, row.expires)
}

// Receipts serves the reports of providers about messages. A report that its provider did not sign is
// answered with 401 and changes nothing.
func (i *Identity) Receipts() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.route == nil {
			http.NotFound(w, r)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, sms.MaxReceipt))
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		provider := r.PathValue("provider")
		receipt, err := i.route.Receipt(provider, r, body)
		if err != nil {
			// The address is known to many, so the event is bounded as that of any other junk.
			_ = i.denied(r.Context(), actor.From(r.Context()), audit.Event{Action: ActionMessageReceipt}, "unsigned-receipt", "", errReceipt)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		ctx, cancel := settle(r.Context())
		defer cancel()
		if err := i.received(ctx, provider, receipt); err != nil {
			i.Log.ErrorContext(ctx, "delivery receipt not written", "provider", provider, "error", err)
			w.WriteHeader(http.StatusInternalServerError) // the provider reports again
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

var errReceipt = problem.New(problem.Unauthenticated, "unsigned-receipt", "This is not a report of that provider.")

// received writes down what a provider reports. A message that was lost while its code is good goes to
// the next provider; the letter says which ones not to ask again, so it ends.
func (i *Identity) received(ctx context.Context, provider string, r sms.Receipt) error {
	i.metrics.messages.WithLabelValues("reported-" + string(r.State)).Inc()
	if r.State == sms.Underway || !id.Valid("sms", r.Message) {
		return nil
	}
	now := i.Clock.Now()
	lost := because("message-lost")
	e := audit.Event{Action: ActionMessageReceipt, Resource: "message " + r.Message}
	unknown := because("unknown-message")
	// Most of what comes late or twice is found out without an event.
	waits := false
	if err := i.DB.View(ctx, func(tx *db.Tx) (err error) {
		waits, err = isSent(ctx, tx, r.Message)
		return err
	}); err != nil || !waits {
		return err
	}
	err := i.Trail.Do(ctx, actor.OfSystem("sms:"+provider), e, func(tx *db.Tx, e *audit.Event) error {
		sealed, expires, ok, err := takeSent(ctx, tx, r.Message)
		if err != nil {
			return err
		}
		if !ok {
			return unknown
		}
		var l letter
		if err := i.openBlank("sms_sent", r.Message, sealed, &l); err != nil {
			return err
		}
		if l.Via != provider {
			return unknown
		}
		e.Customer = l.Customer
		if r.State == sms.Delivered {
			return nil
		}
		e.Deny(lost)
		l.Tried = append(l.Tried, l.Via)
		if expires <= clock.Micros(now.Add(30*time.Second)) || !i.route.Others(l.Tried) {
			return nil
		}
		again := outboxRow{id: id.New("sms"), next: clock.Micros(now), expires: expires}
		l.Via = ""
		if again.sealed, err = i.sealBlank("sms_outbox", again.id, l); err != nil {
			return err
		}
		tx.AfterCommit(func() { i.Wake(JobMessages) })
		return insertOutbox(ctx, tx, again)
	})
	if problem.Is(err, unknown.Slug()) || problem.Is(err, lost.Slug()) {
		return nil
	}
	return err
}

func insertSent(ctx context.Context, tx *db.Tx, message string, sealed []byte, expires int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO sms_sent (id, sealed, expires_at) VALUES ($1, $2, $3)`, message, sealed, expires)
	return err
}

func isSent(ctx context.Context, tx *db.Tx, message string) (bool, error) {
	var one int
	return none(tx.QueryRow(ctx, `SELECT 1 FROM sms_sent WHERE id = $1`, message).Scan(&one))
}

// takeSent deletes a sent message and returns it; ok is false when it is not there.
func takeSent(ctx context.Context, tx *db.Tx, message string) (sealed []byte, expires int64, ok bool, err error) {
	ok, err = none(tx.QueryRow(ctx, `DELETE FROM sms_sent WHERE id = $1 RETURNING sealed, expires_at`, message).Scan(&sealed, &expires))
	return sealed, expires, ok, err
}
