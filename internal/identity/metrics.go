package identity

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	hashes, busy, unrecorded prometheus.Counter
	queue, broken            prometheus.Gauge
	refused                  *prometheus.CounterVec
	done                     *prometheus.CounterVec
	messages                 *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "strongroom", Subsystem: "identity", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "strongroom", Subsystem: "identity", Name: name, Help: help})
	}
	vector := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "strongroom", Subsystem: "identity", Name: name, Help: help}, labels)
	}
	m := &metrics{
		hashes:     counter("hashes_total", "Private codes hashed, dummies included."),
		busy:       counter("hash_queue_refusals_total", "Logins refused because too many were waiting."),
		unrecorded: counter("unrecorded_denials_total", "Refusals of junk beyond the bound on events."),
		queue:      gauge("hash_queue_length", "Logins that are being hashed or wait for it."),
		broken:     gauge("messages_gateway_broken", "1 while the message gateway is taken to be broken."),
		refused:    vector("refusals_total", "Refusals, by action and reason.", "action", "reason"),
		done:       vector("granted_total", "What was let through, by action.", "action"),
		messages:   vector("messages_total", "Text messages, by outcome.", "outcome"),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.hashes, m.busy, m.unrecorded, m.queue, m.broken, m.refused, m.done, m.messages} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("identity: registering metrics: %w", err)
		}
	}
	return m, nil
}
