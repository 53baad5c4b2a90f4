package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"strongroom/internal/audit"
)

// StructuredID is the name of the structured data element that each message has (RFC 5424 section 6.3.2).
// Its number is the one that RFC 5612 keeps for documentation.
const StructuredID = "strongroom@32473"

// facilityAudit is "log audit" (RFC 5424 section 6.2.1).
const facilityAudit = 13

// SyslogOptions configure a Syslog.
type SyslogOptions struct {
	Address string      // host:port; 6514 is the port of RFC 5425
	TLS     *tls.Config // nil: the host's authorities, no certificate
	Encode  Encode      // of the message; ASCII control characters must not be in it
}

// Syslog sends each event as a message of RFC 5424 in a frame of RFC 5425: its length in octets, a space,
// the message, over TLS. The event's members are structured data, and the event whole is the text.
//
// Syslog has no answers. What a connection took just before it broke may be lost; the structured datum
// sequence has no gaps, so the receiver can tell. A connection that the receiver has closed is noticed
// before more is written.
type Syslog struct {
	SyslogOptions
	host string

	mu   sync.Mutex
	conn *tls.Conn
	gone chan struct{} // closed when the receiver has ended conn
}

// NewSyslog returns a Syslog, or says what is wrong with its options. It does not connect yet.
func NewSyslog(o SyslogOptions) (*Syslog, error) {
	if _, _, err := net.SplitHostPort(o.Address); err != nil {
		return nil, errors.New("sink: the address of the syslog collector is not host:port")
	}
	if o.TLS == nil {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	return &Syslog{SyslogOptions: o, host: header(host, 255)}, nil
}

// Send implements audit.Sink.
func (s *Syslog) Send(ctx context.Context, events []audit.Entry) error {
	var frames bytes.Buffer
	for _, e := range events {
		message, err := s.message(e)
		if err != nil {
			return fmt.Errorf("sink: event %s: %w", e.ID, err)
		}
		frames.WriteString(strconv.Itoa(len(message)))
		frames.WriteByte(' ')
		frames.Write(message)
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	// Closing ends a Write that ctx does not wait for any longer.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	_, err = conn.Write(frames.Bytes())
	if !stop() || err != nil {
		_ = s.Close()
		return fmt.Errorf("sink: sending to the syslog collector: %w", errors.Join(err, ctx.Err()))
	}
	return nil
}

// connect returns the open connection, or a new one.
func (s *Syslog) connect(ctx context.Context) (*tls.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		select {
		case <-s.gone:
			_ = s.conn.Close()
			s.conn = nil
		default:
			return s.conn, nil
		}
	}
	dialer := &tls.Dialer{Config: s.TLS}
	conn, err := dialer.DialContext(ctx, "tcp", s.Address)
	if err != nil {
		return nil, fmt.Errorf("sink: connecting to the syslog collector: %w", err)
	}
	s.conn, s.gone = conn.(*tls.Conn), make(chan struct{})
	go func(conn *tls.Conn, gone chan struct{}) {
		defer close(gone)
		// A collector has nothing to say. When reading ends, it has closed.
		_, _ = io.Copy(io.Discard, conn)
	}(s.conn, s.gone)
	return s.conn, nil
}

// Close ends the connection.
func (s *Syslog) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	<-s.gone
	s.conn = nil
	return err
}

// message returns the event as RFC 5424 section 6 wants it.
func (s *Syslog) message(e audit.Entry) ([]byte, error) {
	severity := map[audit.Outcome]int{audit.Granted: 6, audit.Denied: 4, audit.Failed: 3}[e.Outcome]
	if severity == 0 {
		severity = 2 // critical: audit.Unverified
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%d>1 %s %s strongroom - %s [%s", facilityAudit*8+severity,
		e.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), s.host, header(e.Action, 32), StructuredID)
	for _, d := range []struct{ name, value string }{
		{"id", e.ID}, {"sequence", strconv.FormatInt(e.Index, 10)}, {"action", e.Action}, {"outcome", string(e.Outcome)},
		{"reason", e.Reason}, {"actorKind", string(e.Actor.Kind)}, {"actorId", e.Actor.ID}, {"device", e.Actor.Device},
		{"resource", e.Resource}, {"customer", string(e.Customer)}, {"request", e.Request}, {"transaction", e.Transaction},
	} {
		if d.value != "" {
			b.WriteString(" " + d.name + `="` + escape.Replace(strings.ToValidUTF8(d.value, "\uFFFD")) + `"`)
		}
	}
	b.WriteString("] ")
	text, err := s.Encode(e)
	if err != nil {
		return nil, err
	}
	b.Write(text)
	return b.Bytes(), nil
}

// escape is RFC 5424 section 6.3.3.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`)

// header returns s fit for a field of the header: printable ASCII without spaces, at most limit long, and
// the nil value for none.
func header(s string, limit int) string {
	s = strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return '_'
		}
		return c
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), limit)]
}
