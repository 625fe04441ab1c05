// Package telemetry is what operators see of requests: metrics, spans, and the words for them.
// It knows nothing of requests, pools or engines.
package telemetry

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are the metrics of a process. They live through reloads, and each
// configuration's registry gets them. No label has a value that a client can choose.
//
// Buckets and names follow OpenTelemetry's conventions for generative AI where there are
// some: gen_ai.server.request.duration and gen_ai.server.time_to_first_token.
type Metrics struct {
	Requests                        *prometheus.CounterVec   // by api, outcome
	RequestsInFlight                *prometheus.GaugeVec     // by api
	RequestDuration, StreamDuration *prometheus.HistogramVec // by api
	TimeToFirstToken                *prometheus.HistogramVec // by api
	MediaItems, MediaBytes          *prometheus.CounterVec   // by kind
	RequestItems                    prometheus.Histogram

	StageDuration, StageWait  *prometheus.HistogramVec // by stage
	StageFailures             *prometheus.CounterVec   // by stage, reason
	StageRetries, BudgetSpent *prometheus.CounterVec   // by stage
	HandOvers                 *prometheus.CounterVec   // by result

	UpstreamFailures, UpstreamEjections *prometheus.CounterVec   // by stage, upstream
	UpstreamFirstByte                   *prometheus.HistogramVec // by stage, upstream

	all *prometheus.Registry
}

// NewMetrics returns metrics of which those with few series begin with zero: a counter that
// appears with its first failure has never increased.
func NewMetrics() *Metrics {
	m := &Metrics{all: prometheus.NewRegistry()}
	long, short := prometheus.ExponentialBuckets(0.01, 2, 17), prometheus.ExponentialBuckets(0.001, 2, 20)
	m.Requests = m.counter("requests_total", "Requests that are over.", "api", "outcome")
	m.RequestsInFlight = promauto.With(m.all).NewGaugeVec(prometheus.GaugeOpts{Namespace: "caddy", Subsystem: "epd", Name: "requests_in_flight",
		Help: "Requests that are being served."}, []string{"api"})
	m.RequestDuration = m.histogram("request_duration_seconds", "Duration of requests, to the end of the answer.", long, "api")
	m.TimeToFirstToken = m.histogram("time_to_first_token_seconds", "Time from the arrival of a request for a stream to the first byte of the answer of decode.",
		[]float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}, "api")
	m.StreamDuration = m.histogram("stream_duration_seconds", "Time from the first byte of a stream to its end.", long, "api")
	m.MediaItems = m.counter("media_items_total", "Media items of requests.", "kind")
	m.MediaBytes = m.counter("media_bytes_total", "Bytes of media items, as they are in the bodies of requests.", "kind")
	m.RequestItems = promauto.With(m.all).NewHistogram(prometheus.HistogramOpts{Namespace: "caddy", Subsystem: "epd", Name: "request_media_items",
		Help: "Media items of each request for a chat completion.", Buckets: []float64{0, 1, 2, 4, 8, 16, 32, 64, 128}})

	m.StageDuration = m.histogram("stage_duration_seconds", "Time that a request spent in a stage, waiting and further attempts included; known when it is over.", short, "stage")
	m.StageFailures = m.counter("stage_failures_total", "Failed attempts of a stage.", "stage", "reason")
	m.StageRetries = m.counter("stage_retries_total", "Further attempts of a stage, after one that has failed.", "stage")
	m.BudgetSpent = m.counter("retry_budget_exhausted_total", "Further attempts of a stage that were not made because the retry budget was spent.", "stage")
	m.StageWait = m.histogram("stage_wait_seconds", "Time that requests waited for an instance to have room, of those that had to.", short, "stage")
	m.HandOvers = m.counter("prefill_handoffs_total", "What prefill has handed over to decode: KV blocks, none although it has answered, or blocks that expired before decode had room; and requests that cannot have a prefill.", "result")

	m.UpstreamFailures = m.counter("upstream_failures_total", "Failed attempts at an instance.", "stage", "upstream")
	m.UpstreamEjections = m.counter("upstream_ejections_total", "How often an instance was ejected.", "stage", "upstream")
	m.UpstreamFirstByte = m.histogram("upstream_time_to_first_byte_seconds", "Time from sending a request to an instance to the header of its answer.", short, "stage", "upstream")
	m.beginWithZero()
	return m
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	return promauto.With(m.all).NewCounterVec(prometheus.CounterOpts{Namespace: "caddy", Subsystem: "epd", Name: name, Help: help}, labels)
}

func (m *Metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return promauto.With(m.all).NewHistogramVec(prometheus.HistogramOpts{Namespace: "caddy", Subsystem: "epd", Name: name, Help: help, Buckets: buckets}, labels)
}

func (m *Metrics) beginWithZero() {
	for _, stage := range Stages() {
		// cancellation and expiry are nobody's failure
		for _, reason := range []Reason{TimedOut, Unavailable, Overloaded, Refused, Broken, BadStatus, Rejected} {
			m.StageFailures.WithLabelValues(stage, string(reason))
		}
		m.StageRetries.WithLabelValues(stage)
		m.BudgetSpent.WithLabelValues(stage)
		m.StageDuration.WithLabelValues(stage)
		m.StageWait.WithLabelValues(stage)
	}
	for _, api := range []string{Chat, Completions} {
		for _, outcome := range []Outcome{OK, Turned, Failed, BrokeOff, ClientClosed} {
			m.Requests.WithLabelValues(api, string(outcome))
		}
		m.RequestsInFlight.WithLabelValues(api)
	}
	for _, result := range []string{HandOverBlocks, HandOverNone, HandOverExpired, HandOverSkipped} {
		m.HandOvers.WithLabelValues(result)
	}
	for _, kind := range []string{"image", "audio", "video"} {
		m.MediaItems.WithLabelValues(kind)
		m.MediaBytes.WithLabelValues(kind)
	}
}

// Register shows the metrics, and gauges, in a configuration's registry. Several handlers of a
// configuration may do so.
func (m *Metrics) Register(registry *prometheus.Registry, gauges prometheus.Collector) error {
	for _, c := range []prometheus.Collector{m.all, gauges} {
		err := registry.Register(c)
		if _, again := errors.AsType[prometheus.AlreadyRegisteredError](err); err != nil && !again {
			return err
		}
	}
	return nil
}
