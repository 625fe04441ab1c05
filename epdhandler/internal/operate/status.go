package operate

import (
	"context"
	_ "embed"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Status is what the handlers of a process do at the moment. Times are in seconds.
type Status struct {
	Handlers []siteStatus `json:"handlers"`
	Memory   struct {
		Held  int64 `json:"held"`
		Limit int64 `json:"limit"`
	} `json:"memory"`
}

type siteStatus struct {
	Pools []poolStatus `json:"pools"`
}

type poolStatus struct {
	Stage     string           `json:"stage"`
	Health    string           `json:"health"`
	InFlight  int              `json:"in_flight"`
	Limit     int              `json:"limit,omitempty"` // of each instance; 0: none
	Waiting   int              `json:"waiting"`
	QueueSize int              `json:"queue_size,omitempty"`
	Upstreams []upstreamStatus `json:"upstreams"`
}

type upstreamStatus struct {
	Name     string `json:"name"` // in logs
	Address  string `json:"address"`
	Healthy  *bool  `json:"healthy"` // null: there are no health checks
	Ejected  bool   `json:"ejected"`
	InFlight int    `json:"in_flight"`
	Answers  int    `json:"answers"` // since Caddy was started

	FirstByte      map[string]float64 `json:"time_to_first_byte"` // of the last answers
	RecentFailures int                `json:"recent_failures"`    // in the last five minutes, 100 at most
	LastFailure    *dispatch.Failure  `json:"last_failure,omitempty"`
	HandOvers      map[string]int     `json:"handoffs,omitempty"` // answers of prefill with and without KV blocks
}

// StatusOf returns the status of a process. No engine is contacted, but the source of a dynamic
// pool may be asked for its instances.
func StatusOf(ctx context.Context, p *process.Process) Status {
	s := Status{Handlers: []siteStatus{}}
	s.Memory.Held, s.Memory.Limit = memoryUse(p)
	for _, site := range p.Sites() {
		var ss siteStatus
		for _, pool := range site.Pools() {
			ps := statusOf(ctx, pool)
			if pool == site.Decode && site.Gate != nil {
				ps.Waiting += site.Gate.Waiting()
			}
			ss.Pools = append(ss.Pools, ps)
		}
		s.Handlers = append(s.Handlers, ss)
	}
	return s
}

func statusOf(ctx context.Context, p *engine.Pool) poolStatus {
	s := poolStatus{Stage: p.Stage, Health: p.Health(), Limit: p.Limit, Waiting: p.Waiting(), Upstreams: []upstreamStatus{}}
	if p.Limit > 0 {
		s.QueueSize = p.QueueSize
	}
	for _, t := range engine.Targets(ctx, p) {
		if t.Upstream == nil {
			continue // the instances are not known
		}
		us := upstreamStatusOf(p, t.Upstream)
		s.InFlight += us.InFlight
		s.Upstreams = append(s.Upstreams, us)
	}
	return s
}

func upstreamStatusOf(p *engine.Pool, u *reverseproxy.Upstream) upstreamStatus {
	at := p.Instance(u.Dial)
	did := at.Summary(5 * time.Minute)
	s := upstreamStatus{
		Name: p.Place(at.Address), Address: at.Address, Ejected: at.IsEjected(), InFlight: at.InFlight(), Answers: did.Answers,
		FirstByte:      map[string]float64{"p50": did.Median.Seconds(), "p95": did.P95.Seconds()},
		RecentFailures: did.Recent,
		LastFailure:    did.Last,
	}
	if p.Checked() {
		s.Healthy = new(u.Healthy())
	}
	if did.Blocks+did.None > 0 {
		s.HandOvers = map[string]int{"blocks": did.Blocks, "none": did.None}
	}
	return s
}

//go:embed status.html
var statusPage []byte

// serveStatus answers with the status of this process: for a browser as a page, else as JSON.
func serveStatus(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept")
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, err := w.Write(statusPage)
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(StatusOf(r.Context(), process.Current()))
}

// Gauges are the metrics of a process that are read when they are collected, because the state
// behind them is kept elsewhere.
type Gauges struct{ Process *process.Process }

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
