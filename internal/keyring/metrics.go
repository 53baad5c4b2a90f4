package keyring

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reloads   *prometheus.CounterVec
	rewrapped prometheus.Counter
	failed    prometheus.Gauge
	exposed   prometheus.Gauge
	resealed  prometheus.Counter
	known     prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	return &metrics{
		reloads: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strongroom_keyring_reloads_total",
			Help: "How often this process took over changed keys, by outcome.",
		}, []string{"outcome"})),
		rewrapped: register(r, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strongroom_keyring_rewrapped_total",
			Help: "Keys that this process wrapped anew.",
		})),
		failed: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_keyring_rotation_failed_keys",
			Help: "Keys that the latest rotation of this process could not open.",
		})),
		exposed: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_keyring_compromised_keys",
			Help: "Versions of KEKs that are marked compromised and not destroyed yet.",
		})),
		resealed: register(r, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strongroom_keyring_resealed_total",
			Help: "Values that this process sealed anew under the newest version of their customer's data key.",
		})),
		known: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_keyring_compromised_data_keys",
			Help: "Versions of customers' data keys that are marked compromised and still seal values.",
		})),
	}
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	var was prometheus.AlreadyRegisteredError
	if errors.As(r.Register(c), &was) {
		if same, ok := was.ExistingCollector.(C); ok {
			return same
		}
	}
	return c
}
