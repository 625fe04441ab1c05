package operate

import (
	"context"
	_ "embed"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
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
		up := u.Healthy()
		s.Healthy = &up
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
