package epdhandler

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// profileTimeout is how long an instance may take to start or stop profiling. When it
// stops, it writes down all that it has seen.
const profileTimeout = 30 * time.Minute

// profiles is what instances say to a request to profile, by stage.
type profiles map[string][]profiled

// profiled is what one of them says.
type profiled struct {
	Upstream string `json:"upstream,omitempty"`
	Status   int    `json:"status,omitempty"`
	Result   string `json:"result"`

	target target
	err    error
}

const profileOK = "ok"

// profile asks every instance of the pools, which are called by their names then.
func profile(ctx context.Context, q question, name func(target) string, pools ...*pool) profiles {
	all := targets(ctx, pools...)
	said := make([]profiled, len(all))
	askAll(all, func(i int, t target) {
		r := t.ask(ctx, q)
		said[i] = profiled{name(t), r.status, r.profiled(t.pool.stage), t, r.err}
	})
	p := make(profiles)
	for _, s := range said {
		p[s.target.pool.stage] = append(p[s.target.pool.stage], s)
	}
	return p
}

// profiled says in words what the instance has done.
func (r reply) profiled(stage string) string {
	switch {
	case r.err != nil:
		return "no answer"
	case r.status/100 == 2: // vLLM says nothing besides
		return profileOK
	case r.status == http.StatusNotFound: // vLLM has no such route unless it is told to
		return "not available"
	}
	return engineError(stage, r.status, &stream.Answer{Status: r.status, Body: *bytes.NewBuffer(r.body)}).Message
}

// all returns what all instances say.
func (p profiles) all() []profiled {
	return slices.Concat(slices.Collect(maps.Values(p))...)
}

// some reports whether there is an instance that does it.
func (p profiles) some() bool {
	return slices.ContainsFunc(p.all(), func(s profiled) bool { return s.Result == profileOK })
}

// write sends it as a response.
func (p profiles) write(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p)
}

// mayProfile reports whether clients may ask for profiles.
func (h *Handler) mayProfile() bool { return h.Profiling }

// profile answers a client, who may be anybody: it gets to know no addresses.
func (x *exchange) profile() {
	if !fromHere(x.r) {
		x.reject(badRequest(http.StatusForbidden, "origin_not_allowed", "a page of another site must not do this"))
		return
	}
	_, e := x.readRaw() // engines do not look at it; to its end, so that we see when the client leaves
	x.release()
	if e != nil {
		x.reject(e)
		return
	}
	q := question{method: x.r.Method, path: x.r.URL.Path, header: http.Header{"X-Request-Id": {x.id}}, timeout: profileTimeout}
	if key := x.r.Header["Authorization"]; key != nil {
		q.header["Authorization"] = key
	}
	p := profile(x.r.Context(), q, func(t target) string { return t.pool.place(t.address()) }, x.h.pools()...)
	switch {
	case x.r.Context().Err() != nil:
		x.report.outcome = outcomeClientClosed
		return
	case p.some():
		x.report.outcome = outcomeOK
		p.write(x.w, http.StatusOK)
	default:
		x.report.outcome = outcomeFailed
		x.sendError(serverError(http.StatusServiceUnavailable, "profiling_unavailable", "no instance can profile: %s", p))
	}
	for _, s := range p.all() {
		x.logProfiled(s)
	}
}

// fromHere reports whether no page of another site has sent a request. A browser sends
// one that needs no body without asking first (CORS), but says where it comes from.
func fromHere(r *http.Request) bool {
	origins := r.Header["Origin"]
	if len(origins) == 0 {
		return true
	}
	scheme, port := "http", ":80"
	if r.TLS != nil {
		scheme, port = "https", ":443"
	}
	here := scheme + "://" + strings.TrimSuffix(r.Host, port)
	return len(origins) == 1 && strings.EqualFold(origins[0], here)
}

func (x *exchange) logProfiled(s profiled) {
	if s.Result == profileOK {
		return
	}
	address := s.target.address()
	fields := []zap.Field{zap.String("request_id", x.id), zap.String("stage", s.target.pool.stage),
		zap.String("upstream", s.target.pool.name(address)), zap.Int("status", s.Status)}
	if s.err != nil {
		fields = append(fields, zap.String("error", s.target.pool.withoutAddresses(s.err, &call{chosen: []string{address}})))
	}
	x.h.logger.Warn("profiling failed", fields...)
}

// String says in one line what went wrong.
func (p profiles) String() string {
	var failed []string
	for _, s := range p.all() {
		if s.Result != profileOK {
			failed = append(failed, strings.TrimSpace(s.Upstream+" "+s.Result))
		}
	}
	slices.Sort(failed)
	return strings.Join(failed, ", ")
}
