package db

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	batch   prometheus.Histogram
	update  prometheus.Histogram
	queue   prometheus.Gauge
	retries prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	return &metrics{
		batch: register(r, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "strongroom_db_group_commit_batch",
			Help:    "Transactions that share one commit of the embedded database.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256},
		})),
		update: register(r, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "strongroom_db_update_seconds",
			Help:    "Time from the call of Update to its durable outcome.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		})),
		queue: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strongroom_db_queue",
			Help: "Transactions that wait for the writer of the embedded database.",
		})),
		retries: register(r, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strongroom_db_retries_total",
			Help: "Transactions that ran again: serialization failures, lost connections, shared rollbacks.",
		})),
	}
}

// register returns c, or the one that an earlier database of this process registered.
func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	err := r.Register(c)
	var was prometheus.AlreadyRegisteredError
	if errors.As(err, &was) {
		if same, ok := was.ExistingCollector.(C); ok {
			return same
		}
	}
	return c
}
