package edge

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics carry the names of listeners, routes and reasons: a handful of values each, never one that
// a client chooses.
type metrics struct {
	requests    *prometheus.CounterVec   // listener, route, method, code
	seconds     *prometheus.HistogramVec // listener, route
	inFlight    *prometheus.GaugeVec     // listener
	connections *prometheus.GaugeVec     // listener
	refused     *prometheus.CounterVec   // listener, reason
	acceptFails *prometheus.CounterVec   // listener
	handshakes  *prometheus.CounterVec   // listener, suite, group
	failures    *prometheus.CounterVec   // listener, reason
	panics      *prometheus.CounterVec   // listener
	notAfter    *prometheus.GaugeVec     // listener
	reloads     *prometheus.CounterVec   // listener, outcome
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "strongroom_" + name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "strongroom_" + name, Help: help}, labels)
	}
	m := &metrics{
		requests: counter("http_requests_total", "Requests answered.", "listener", "route", "method", "code"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "strongroom_http_request_seconds", Help: "Time from the end of a request's header to the end of its handler.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"listener", "route"}),
		inFlight:    gauge("http_in_flight", "Requests being handled.", "listener"),
		connections: gauge("connections", "Open connections.", "listener"),
		refused:     counter("connections_refused_total", "Connections closed unanswered, by reason.", "listener", "reason"),
		acceptFails: counter("accept_failures_total", "Connections that the operating system could not hand over.", "listener"),
		handshakes:  counter("tls_handshakes_total", "TLS handshakes completed, by cipher suite and key exchange group.", "listener", "suite", "group"),
		failures:    counter("tls_handshake_failures_total", "TLS handshakes that failed, by reason.", "listener", "reason"),
		panics:      counter("http_panics_total", "Requests whose handler panicked.", "listener"),
		notAfter:    gauge("certificate_not_after_seconds", "When the certificate in use expires, in Unix seconds.", "listener"),
		reloads:     counter("certificate_reloads_total", "Reloads of certificate files, by outcome.", "listener", "outcome"),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.inFlight, m.connections, m.refused, m.acceptFails,
		m.handshakes, m.failures, m.panics, m.notAfter, m.reloads} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// methodLabel keeps made-up methods from becoming time series.
func methodLabel(method string) string {
	if methods[method] {
		return method
	}
	return "other"
}
