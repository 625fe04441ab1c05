package operate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Gauges are the metrics of a process that are read when they are collected, because the state
// behind them is kept elsewhere.
type Gauges struct{ process *process.Process }

// NewGauges returns the gauges of a process.
func NewGauges(p *process.Process) Gauges { return Gauges{p} }

var (
	inFlightDesc         = desc("stage_requests_in_flight", "Requests of a stage that are at its instances.", "stage")
	waitingDesc          = desc("stage_requests_waiting", "Requests that wait for a free slot at an instance of a stage.", "stage")
	queueSizeDesc        = desc("queue_size", "How many requests may wait for a stage, if it has a limit.", "stage")
	heldDesc             = desc("body_bytes_held", "Memory that the bodies of requests take.")
	limitDesc            = desc("body_bytes_limit", "Memory that the bodies of requests may take.")
	budgetDesc           = desc("retry_budget_tokens", "How many further attempts of a stage may fail; below 1, none is made. Of the pool with the fewest.", "stage")
	upstreamInFlightDesc = desc("upstream_requests_in_flight", "Requests that are at an instance.", "stage", "upstream")
	upstreamEjectedDesc  = desc("upstream_ejected", "Whether an instance is ejected, because requests fail there and succeed elsewhere.", "stage", "upstream")
	upstreamHealthyDesc  = desc("upstream_healthy", "Whether an instance is up, by its health checks.", "stage", "upstream")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "epd", name), help, labels, nil)
}

// Describe implements prometheus.Collector.
func (Gauges) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		inFlightDesc, waitingDesc, queueSizeDesc, heldDesc, limitDesc, budgetDesc, upstreamInFlightDesc, upstreamEjectedDesc, upstreamHealthyDesc,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (g Gauges) Collect(to chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	r := g.read()
	for at := range r.instances {
		send(upstreamInFlightDesc, float64(at.InFlight()), at.Stage, at.Address)
		send(upstreamEjectedDesc, oneIf(at.IsEjected()), at.Stage, at.Address)
	}
	for at, up := range r.isUp {
		send(upstreamHealthyDesc, oneIf(up), at.Stage, at.Address)
	}
	waiting := g.process.Instances.Waiting()
	for _, stage := range telemetry.Stages() {
		send(inFlightDesc, float64(r.inFlight[stage]), stage)
		send(waitingDesc, float64(waiting[stage]), stage)
		if n, ok := r.tokens[stage]; ok {
			send(budgetDesc, n, stage)
		}
		if size, ok := r.queues[stage]; ok {
			send(queueSizeDesc, float64(size), stage)
		}
	}
	held, limit := memoryUse(g.process)
	send(heldDesc, float64(held))
	send(limitDesc, float64(limit))
}

// reading is what a process does at a moment. The maps without instances are by stage.
type reading struct {
	instances map[*dispatch.Instance]bool // those that a configuration names or that have requests
	isUp      map[*dispatch.Instance]bool // those that are checked
	inFlight  map[string]int
	queues    map[string]int
	tokens    map[string]float64
}

func (g Gauges) read() reading {
	r := reading{make(map[*dispatch.Instance]bool), make(map[*dispatch.Instance]bool), make(map[string]int), make(map[string]int), make(map[string]float64)}
	now := time.Now()
	for _, s := range g.process.Sites() { // the health in a newer one counts
		for _, p := range s.Pools() {
			r.add(p, now)
		}
	}
	g.process.Instances.Range(func(at *dispatch.Instance) {
		if n := at.InFlight(); n > 0 {
			r.instances[at] = true
			r.inFlight[at.Stage] += n
		}
	})
	return r
}

func (r reading) add(p *engine.Pool, now time.Time) {
	if p.RetryBudget > 0 {
		n := p.Budget.Tokens(now)
		if least, ok := r.tokens[p.Stage]; ok {
			n = min(n, least)
		}
		r.tokens[p.Stage] = n
	}
	if p.Limit > 0 {
		r.queues[p.Stage] += p.QueueSize
	}
	for _, u := range p.Handler.Upstreams {
		at := p.Instance(u.Dial)
		r.instances[at] = true
		if p.Checked() {
			r.isUp[at] = u.Healthy()
		}
	}
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

// Interface guard
var _ prometheus.Collector = Gauges{}
