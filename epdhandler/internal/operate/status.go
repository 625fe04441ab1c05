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
	Memory   memoryStatus `json:"memory"`
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

	FirstByte      firstByteStatus   `json:"time_to_first_byte"` // of the last answers
	RecentFailures int               `json:"recent_failures"`    // in the last five minutes, 100 at most
	LastFailure    *dispatch.Failure `json:"last_failure,omitempty"`
	HandOvers      *handOverStatus   `json:"handoffs,omitempty"` // of prefill
}

type firstByteStatus struct {
	Median float64 `json:"p50"`
	P95    float64 `json:"p95"`
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

// recently is the age up to which failures count as recent.
const recently = 5 * time.Minute

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
	s := poolStatus{
		Stage:     p.Stage,
		Health:    p.Health(),
		Limit:     p.Limit,
		Waiting:   p.Waiting(),
		Upstreams: []upstreamStatus{},
	}
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
	did := at.Summary(recently)
	s := upstreamStatus{
		Name: p.Place(at.Address), Address: at.Address, Ejected: at.IsEjected(), InFlight: at.InFlight(), Answers: did.Answers,
		FirstByte:      firstByteStatus{did.Median.Seconds(), did.P95.Seconds()},
		RecentFailures: did.Recent,
		LastFailure:    did.Last,
	}
	if p.Checked() {
		up := u.Healthy()
		s.Healthy = &up
	}
	if did.Blocks+did.None > 0 {
		s.HandOvers = &handOverStatus{did.Blocks, did.None}
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
