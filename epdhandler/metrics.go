package epdhandler

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
)

// The metrics of all handlers of this process, in the registry that Caddy serves. They go
// on through reloads. No label has a value that a client could choose.
//
// Buckets and names follow OpenTelemetry's conventions for generative AI where there are
// some: gen_ai.server.request.duration and gen_ai.server.time_to_first_token.
var (
	requestsTotal = counter("requests_total", "Requests that are over.", "api", "outcome")

	requestsInFlight = gauge("requests_in_flight", "Requests that are being served.", "api")

	requestDuration = histogram("request_duration_seconds", "Duration of requests, to the end of the answer.",
		prometheus.ExponentialBuckets(0.01, 2, 17), "api")

	timeToFirstToken = histogram("time_to_first_token_seconds", "Time from the arrival of a request for a stream to the first byte of the answer of decode.",
		[]float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}, "api")

	streamDuration = histogram("stream_duration_seconds", "Time from the first byte of a stream to its end.",
		prometheus.ExponentialBuckets(0.01, 2, 17), "api")

	stageDuration = histogram("stage_duration_seconds", "Time that a request spent in a stage, waiting and further attempts included; known when it is over.",
		stageBuckets, "stage")

	stageFailures = counter("stage_failures_total", "Failed attempts of a stage.", "stage", "reason")

	stageRetries = counter("stage_retries_total", "Further attempts of a stage, after one that has failed.", "stage")

	budgetSpent = counter("retry_budget_exhausted_total", "Further attempts of a stage that were not made because the retry budget was spent.", "stage")

	stageWait = histogram("stage_wait_seconds", "Time that requests waited for an instance to have room, of those that had to.",
		stageBuckets, "stage")

	handOvers = counter("prefill_handoffs_total", "What prefill has handed over to decode: KV blocks, none although it has answered, or blocks that expired before decode had room; and requests that cannot have a prefill.", "result")

	mediaItems = counter("media_items_total", "Media items of requests.", "kind")

	mediaBytes = counter("media_bytes_total", "Bytes of media items, as they are in the bodies of requests.", "kind")

	requestItems = histogram("request_media_items", "Media items of each request for a chat completion.",
		[]float64{0, 1, 2, 4, 8, 16, 32, 64, 128})

	upstreamFailures = counter("upstream_failures_total", "Failed attempts at an instance.", "stage", "upstream")

	upstreamEjections = counter("upstream_ejections_total", "How often an instance was ejected.", "stage", "upstream")

	upstreamFirstByte = histogram("upstream_time_to_first_byte_seconds", "Time from sending a request to an instance to the header of its answer.",
		stageBuckets, "stage", "upstream")
)

var stageBuckets = prometheus.ExponentialBuckets(0.001, 2, 20)

// init makes what has few series begin with zero: a counter that appears with its first
// failure has never increased.
func init() {
	for _, stage := range stages {
		for _, reason := range reasons {
			stageFailures.WithLabelValues(stage, string(reason))
		}
		stageRetries.WithLabelValues(stage)
		budgetSpent.WithLabelValues(stage)
		stageDuration.WithLabelValues(stage)
		stageWait.WithLabelValues(stage)
	}
	for _, api := range []string{apiChat, apiCompletions} {
		for _, outcome := range []string{outcomeOK, outcomeRejected, outcomeFailed, outcomeBrokeOff, outcomeClientClosed} {
			requestsTotal.WithLabelValues(api, outcome)
		}
		requestsInFlight.WithLabelValues(api)
	}
	for _, result := range []string{handOverBlocks, handOverNone, handOverExpired, handOverSkipped} {
		handOvers.WithLabelValues(result)
	}
	for _, kind := range []string{media.Image, media.Audio, media.Video} {
		mediaItems.WithLabelValues(kind)
		mediaBytes.WithLabelValues(kind)
	}
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return register(prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "caddy", Subsystem: "epd", Name: name, Help: help}, labels))
}

func gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	return register(prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "caddy", Subsystem: "epd", Name: name, Help: help}, labels))
}

func histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return register(prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "caddy", Subsystem: "epd", Name: name, Help: help, Buckets: buckets}, labels))
}

// collectors are what every configuration's registry gets.
var collectors = []prometheus.Collector{gauges{}}

func register[C prometheus.Collector](c C) C {
	collectors = append(collectors, c)
	return c
}

// showMetrics registers the metrics with a configuration's registry. More than one
// handler may do so.
func showMetrics(registry *prometheus.Registry) error {
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
			if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); !ok {
				return err
			}
		}
	}
	return nil
}

// countItems counts the media of a request for a chat completion.
func (x *exchange) countItems() {
	requestItems.WithLabelValues().Observe(float64(len(x.media.Items())))
	for _, item := range x.media.Items() {
		kind := item.Modality()
		mediaItems.WithLabelValues(kind).Inc()
		mediaBytes.WithLabelValues(kind).Add(float64(item.Size()))
	}
}

// countFailure counts a failed attempt.
func countFailure(f *failure) {
	if f.reason == canceled {
		return
	}
	why := f.why()
	stageFailures.WithLabelValues(f.stage, string(why)).Inc()
	if address := f.call.upstream(); address != "" && why != rejected && why != overloaded {
		historyOf(instance{f.stage, address}).failed(why)
	}
}

// count counts a request that is over.
func (r *report) count() {
	requestsInFlight.WithLabelValues(r.api).Dec()
	requestsTotal.WithLabelValues(r.api, r.outcome).Inc()
	if r.encode.attempts == nil && r.prefill.attempts == nil && r.decode.attempts == nil || r.api == apiModels {
		return // would only make the others look fast
	}
	requestDuration.WithLabelValues(r.api).Observe(r.duration.Seconds())
	for i, s := range r.stages() {
		if s.attempts != nil {
			stageDuration.WithLabelValues(stages[i]).Observe(s.duration.Seconds())
		}
	}
	if !r.begun.IsZero() {
		streamDuration.WithLabelValues(r.api).Observe((r.duration - r.begun.Sub(r.start)).Seconds())
	}
}

// begins notes the first byte of a stream.
func (r *report) begins() {
	if r.begun.IsZero() {
		r.begun = time.Now()
		timeToFirstToken.WithLabelValues(r.api).Observe(r.begun.Sub(r.start).Seconds())
	}
}
