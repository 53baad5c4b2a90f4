// Package sms carries text messages to telephones, through whatever the operator has: the Inbox of a
// development server, or a Webhook, a signed HTTPS request to a gateway. What is sent holds one-time
// codes, so neither implementation logs or keeps more than it must.
package sms

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Message is one text message.
type Message struct {
	ID   string    // the same at every attempt to send it, so that a gateway can drop repetitions
	To   string    // E.164
	Text string    // holds a one-time code
	Made time.Time // when the customer asked for it
}

// LogValue hides number and text from log/slog.
func (m Message) LogValue() slog.Value { return slog.StringValue(m.ID) }

// String hides number and text from fmt.
func (m Message) String() string { return "message " + m.ID }

// Sender sends messages. Send returns nil once the message is accepted for delivery; the error never
// holds the number or the text. It must be safe for concurrent use and must end with its context.
// Being called twice with one Message.ID, it should deliver once.
type Sender interface {
	Send(ctx context.Context, m Message) error
}

// ErrRejected means that the gateway works but will never take this message, so that trying again is
// of no use.
var ErrRejected = errors.New("sms: the gateway refuses this message")

// ErrLater means that the gateway works but does not take this message now.
var ErrLater = errors.New("sms: the gateway does not take this message now")
