package epdhandler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// gauges are metrics that are known elsewhere and looked up when they are asked for.
type gauges struct{}

var (
	inFlightDesc         = desc("stage_requests_in_flight", "Requests of a stage that are at its instances.", "stage")
	waitingDesc          = desc("stage_requests_waiting", "Requests that wait for an instance of a stage to have room.", "stage")
	queueSizeDesc        = desc("queue_size", "How many requests may wait for a stage, if it has a limit.", "stage")
	heldDesc             = desc("body_bytes_held", "Memory that the bodies of requests hold.")
	limitDesc            = desc("body_bytes_limit", "Memory that the bodies of requests may hold.")
	budgetDesc           = desc("retry_budget_tokens", "How many further attempts of a stage may fail; below 1, none is made. Of the pool that has the fewest.", "stage")
	upstreamInFlightDesc = desc("upstream_requests_in_flight", "Requests that are at an instance.", "stage", "upstream")
	upstreamEjectedDesc  = desc("upstream_ejected", "Whether an instance is ejected, because requests fail there and succeed elsewhere.", "stage", "upstream")
	upstreamHealthyDesc  = desc("upstream_healthy", "Whether an instance is up, as health checks see it.", "stage", "upstream")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "epd", name), help, labels, nil)
}

// Describe implements prometheus.Collector.
func (gauges) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		inFlightDesc, waitingDesc, queueSizeDesc, heldDesc, limitDesc, budgetDesc, upstreamInFlightDesc, upstreamEjectedDesc, upstreamHealthyDesc,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (gauges) Collect(to chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	handlers := liveHandlers()
	inFlight, waiting, queues := make(map[string]int), waitingByStage(), make(map[string]int)
	isUp, tokens := make(map[instance]bool), make(map[string]float64)
	now := time.Now()
	busy := busyInstances()
	for _, h := range handlers { // what a newer one says counts
		for _, p := range h.pools() {
			if p.budget != nil {
				least, ok := tokens[p.stage]
				if tokens[p.stage] = p.budget.add(now, 0); ok {
					tokens[p.stage] = min(tokens[p.stage], least)
				}
			}
			if p.queue.limit > 0 {
				queues[p.stage] += p.queue.size
			}
			for _, u := range p.handler.Upstreams {
				at := instance{p.stage, u.String()}
				busy[at] += 0
				if p.checked() {
					isUp[at] = u.Healthy()
				}
			}
		}
	}
	for at, n := range busy {
		inFlight[at.stage] += n
		send(upstreamInFlightDesc, float64(n), at.stage, at.address)
		send(upstreamEjectedDesc, oneIf(historyOf(at).isEjected()), at.stage, at.address)
	}
	for at, up := range isUp {
		send(upstreamHealthyDesc, oneIf(up), at.stage, at.address)
	}
	for _, stage := range stages {
		send(inFlightDesc, float64(inFlight[stage]), stage)
		send(waitingDesc, float64(waiting[stage]), stage)
		if n, ok := tokens[stage]; ok {
			send(budgetDesc, n, stage)
		}
		if size, ok := queues[stage]; ok {
			send(queueSizeDesc, float64(size), stage)
		}
	}
	held, limit := memoryUse(handlers)
	send(heldDesc, float64(held))
	send(limitDesc, float64(limit))
}

// memoryUse returns how many bytes the bodies of requests hold, and how many they may: by
// the strictest handler.
func memoryUse(handlers []*Handler) (held, limit int64) {
	for _, h := range handlers {
		if limit == 0 || h.MaxMemory < limit {
			limit = h.MaxMemory
		}
	}
	return memoryLedger.Held(), limit
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Interface guard
var _ prometheus.Collector = gauges{}
