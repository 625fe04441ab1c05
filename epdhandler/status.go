package epdhandler

import (
	"context"
	_ "embed"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// processStatus is what the handlers of this process do at the moment. Times are in seconds.
type processStatus struct {
	Handlers []handlerStatus `json:"handlers"`
	Memory   memoryStatus    `json:"memory"`
}

type handlerStatus struct {
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
	Healthy  *bool  `json:"healthy"` // null: nobody checks
	Ejected  bool   `json:"ejected"`
	InFlight int    `json:"in_flight"`
	Answers  int    `json:"answers"` // since Caddy was started

	// FirstByte says how long the last answers took to begin.
	FirstByte struct {
		Median float64 `json:"p50"`
		P95    float64 `json:"p95"`
	} `json:"time_to_first_byte"`

	RecentFailures int      `json:"recent_failures"` // in the last five minutes, 100 at most
	LastFailure    *failing `json:"last_failure,omitempty"`

	HandOvers *handOverStatus `json:"handoffs,omitempty"` // of prefill
}

// handOverStatus is how many answers of an instance of prefill had KV blocks for decode.
type handOverStatus struct {
	Blocks int `json:"blocks"`
	None   int `json:"none"`
}

type memoryStatus struct {
	Held  int64 `json:"held"`
	Limit int64 `json:"limit"`
}

// recently is which failures the status still speaks of.
const recently = 5 * time.Minute

// currentStatus is what is known at this moment. No engine is asked, but a dynamic pool
// may have to look up which instances it has.
func currentStatus(ctx context.Context) processStatus {
	handlers := liveHandlers()
	s := processStatus{Handlers: []handlerStatus{}}
	s.Memory.Held, s.Memory.Limit = memoryUse(handlers)
	busy := busyInstances()
	for _, h := range handlers {
		var hs handlerStatus
		for _, p := range h.pools() {
			hs.Pools = append(hs.Pools, p.status(ctx, busy, h.gate))
		}
		s.Handlers = append(s.Handlers, hs)
	}
	return s
}

func (p *pool) status(ctx context.Context, busy map[instance]int, gate *gate) poolStatus {
	s := poolStatus{
		Stage:     p.stage,
		Health:    p.health(),
		Limit:     p.queue.limit,
		Waiting:   p.queue.waitingNow(),
		Upstreams: []upstreamStatus{},
	}
	if gate != nil && p == gate.pool {
		s.Waiting += gate.waitingNow()
	}
	if p.queue.limit > 0 {
		s.QueueSize = p.queue.size
	}
	for _, t := range targets(ctx, p) {
		if t.upstream == nil {
			continue // nobody knows which there are
		}
		us := p.upstreamStatus(t.upstream, busy)
		s.InFlight += us.InFlight
		s.Upstreams = append(s.Upstreams, us)
	}
	return s
}

func (p *pool) upstreamStatus(u *reverseproxy.Upstream, busy map[instance]int) upstreamStatus {
	at := instance{p.stage, u.String()}
	s := upstreamStatus{Name: p.place(at.address), Address: at.address, InFlight: busy[at]}
	if p.checked() {
		up := u.Healthy()
		s.Healthy = &up
	}
	historyOf(at).describe(&s)
	return s
}

// describe says what an instance has done.
func (h *history) describe(s *upstreamStatus) {
	s.FirstByte.Median, s.FirstByte.P95 = h.quantile(0.5).Seconds(), h.quantile(0.95).Seconds()
	failings := h.since(time.Now().Add(-recently))
	s.RecentFailures = len(failings)
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Answers, s.Ejected = h.answers, h.outlier.ejections > 0
	if h.blocks+h.none > 0 {
		s.HandOvers = &handOverStatus{h.blocks, h.none}
	}
	if n := len(h.failings); n > 0 {
		newest := h.failings[n-1]
		s.LastFailure = &newest
	}
}

//go:embed status.html
var statusPage []byte

// serveStatus answers with the status: as a page if a browser asks, else as JSON.
func serveStatus(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept")
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, err := w.Write(statusPage)
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(currentStatus(r.Context()))
}
