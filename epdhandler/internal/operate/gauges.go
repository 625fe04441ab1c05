package operate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Gauges are the metrics of a process that are read when they are collected, because the state
// behind them is kept elsewhere.
type Gauges struct{ Process *process.Process }

var _ prometheus.Collector = Gauges{}

// Describe implements prometheus.Collector.
func (g Gauges) Describe(to chan<- *prometheus.Desc) {
	for _, gauge := range g.read() {
		gauge.Describe(to)
	}
}

// Collect implements prometheus.Collector.
func (g Gauges) Collect(to chan<- prometheus.Metric) {
	for _, gauge := range g.read() {
		gauge.Collect(to)
	}
}

func (g Gauges) read() (all []prometheus.Collector) {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "caddy", Subsystem: "epd", Name: name, Help: help}, labels)
		all = append(all, v)
		return v
	}
	inFlight := gauge("stage_requests_in_flight", "Requests of a stage that are at its instances.", "stage")
	waiting := gauge("stage_requests_waiting", "Requests that wait for a free slot at an instance of a stage.", "stage")
	queueSize := gauge("queue_size", "How many requests may wait for a stage, if it has a limit.", "stage")
	budget := gauge("retry_budget_tokens", "How many further attempts of a stage may fail; below 1, none is made. Of the pool with the fewest.", "stage")
	atInstance := gauge("upstream_requests_in_flight", "Requests that are at an instance.", "stage", "upstream")
	ejected := gauge("upstream_ejected", "Whether an instance is ejected, because requests fail there and succeed elsewhere.", "stage", "upstream")
	healthy := gauge("upstream_healthy", "Whether an instance is up, by its health checks.", "stage", "upstream")

	held, limit := memoryUse(g.Process)
	gauge("body_bytes_held", "Memory that the bodies of requests take.").WithLabelValues().Set(float64(held))
	gauge("body_bytes_limit", "Memory that the bodies of requests may take.").WithLabelValues().Set(float64(limit))

	waits := g.Process.Instances.Waiting()
	for _, stage := range telemetry.Stages() {
		inFlight.WithLabelValues(stage)
		waiting.WithLabelValues(stage).Set(float64(waits[stage]))
	}
	show := func(at *dispatch.Instance) {
		atInstance.WithLabelValues(at.Stage, at.Address).Set(float64(at.InFlight()))
		ejected.WithLabelValues(at.Stage, at.Address).Set(oneIf(at.IsEjected()))
	}
	tokens, now := make(map[string]float64), time.Now()
	for _, p := range g.Process.Pools() { // the health in a newer configuration counts
		if p.RetryBudget > 0 {
			n := p.Budget.Tokens(now)
			if least, ok := tokens[p.Stage]; !ok || n < least {
				tokens[p.Stage] = n
				budget.WithLabelValues(p.Stage).Set(n)
			}
		}
		if p.Limit > 0 {
			queueSize.WithLabelValues(p.Stage).Add(float64(p.QueueSize))
		}
		for _, u := range p.Handler.Upstreams {
			at := p.Instance(u.Dial)
			show(at)
			if p.Checked() {
				healthy.WithLabelValues(at.Stage, at.Address).Set(oneIf(u.Healthy()))
			}
		}
	}
	g.Process.Instances.Range(func(at *dispatch.Instance) {
		if n := at.InFlight(); n > 0 { // perhaps of a configuration that has been replaced
			show(at)
			inFlight.WithLabelValues(at.Stage).Add(float64(n))
		}
	})
	return all
}

// memoryUse returns how many bytes the bodies of requests take, and how many they may take by
// the strictest configuration.
func memoryUse(p *process.Process) (held, limit int64) {
	for _, s := range p.Sites() {
		if limit == 0 || s.MaxMemory < limit {
			limit = s.MaxMemory
		}
	}
	return p.Memory.Held(), limit
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
