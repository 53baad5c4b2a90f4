package edge

import (
	"context"
	"log"
	"log/slog"
	"net/netip"
	"strings"
)

// errorLog makes a log.Logger for http.Server. Handshake failures, which any port scanner can cause at
// will, are counted, and logged at debug level; everything else is a warning. Addresses are cut short.
func errorLog(l *slog.Logger, listener string, m *metrics) *log.Logger {
	return log.New(&serverLog{l, listener, m}, "", 0)
}

type serverLog struct {
	log      *slog.Logger
	listener string
	metrics  *metrics
}

func (s *serverLog) Write(line []byte) (int, error) {
	text := cutAddresses(strings.TrimSpace(string(line)))
	level := slog.LevelWarn
	if strings.Contains(text, "TLS handshake error") {
		s.metrics.failures.WithLabelValues(s.listener, handshakeReason(text)).Inc()
		level = slog.LevelDebug
	}
	s.log.LogAttrs(context.Background(), level, "http server", slog.String("listener", s.listener), slog.String("error", text))
	return len(line), nil
}

// handshakeReason files the message under a few words, for a metric's label.
func handshakeReason(text string) string {
	for _, r := range [...]struct{ part, reason string }{
		{errNotTLS.Error(), "not-tls"},
		{"i/o timeout", "timeout"},
		{"deadline exceeded", "timeout"},
		{"unsupported versions", "version"},
		{"protocol version", "version"},
		{"no cipher suite", "suite"},
		{"is not 256-bit", "suite"},
		{"no key exchanges", "group"},
		{"application protocol", "alpn"},
		{"remote error", "client-alert"},
		{"certificate", "client-certificate"},
		{"EOF", "closed"},
		{"reset by peer", "closed"},
		{"broken pipe", "closed"},
		{"closed network connection", "closed"},
	} {
		if strings.Contains(text, r.part) {
			return r.reason
		}
	}
	return "other"
}

// cutAddresses replaces every word that is an address with a port by its network.
func cutAddresses(text string) string {
	words := strings.Split(text, " ")
	for i, word := range words {
		bare := strings.TrimRight(word, ":,;")
		for _, half := range strings.Split(bare, "->") { // net.OpError: from->to:
			if ap, err := netip.ParseAddrPort(half); err == nil {
				words[i] = strings.Replace(words[i], half, Truncate(ap.Addr()), 1)
			}
		}
	}
	return strings.Join(words, " ")
}
