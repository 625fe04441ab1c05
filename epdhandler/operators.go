package epdhandler

import (
	"encoding/json"
	"net/http"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/operate"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// health reports the last results of Caddy's health checks for each pool, under the keys of vLLM's
// disagg_epd_proxy.py; no engine is contacted. The status is 503 if all instances of a pool
// that requests need are down.
func (x *exchange) health() {
	site := x.h.site
	encode, prefill, decode := site.Encode.Health(), site.Prefill.Health(), site.Decode.Health()
	status := http.StatusOK
	if encode == engine.Unhealthy && !x.h.EncodeOptional || prefill == engine.Unhealthy || decode == engine.Unhealthy {
		status = http.StatusServiceUnavailable
	} else {
		x.report.outcome = telemetry.OK
	}
	x.w.Header().Set("Content-Type", "application/json")
	x.w.Header().Set("Cache-Control", "no-store")
	x.w.WriteHeader(status)
	_ = json.NewEncoder(x.w).Encode(map[string]string{
		"proxy":           engine.Healthy,
		"encode_cluster":  encode,
		"prefill_cluster": prefill,
		"decode_cluster":  decode,
	})
}

// profile starts or stops profiles at all instances. The answer contains no addresses.
func (x *exchange) profile() {
	if !operate.FromHere(x.r) {
		x.reject(badRequest(http.StatusForbidden, "origin_not_allowed", "a page of another site must not do this"))
		return
	}
	_, in, e := x.readBody() // not needed, but read to its end, so that we notice when the client leaves
	in.release()
	if e != nil {
		x.reject(e)
		return
	}
	q := operate.ProfileQuestion(x.r, x.r.URL.Path)
	q.Header["X-Request-Id"] = []string{x.id}
	p := operate.Profile(x.r.Context(), q, true, x.h.site.Pools()...)
	switch {
	case x.r.Context().Err() != nil:
		x.report.outcome = telemetry.ClientClosed
		return
	case p.Some():
		x.report.outcome = telemetry.OK
		p.Write(x.w, http.StatusOK)
	default:
		x.report.outcome = telemetry.Failed
		x.sendError(serverError(http.StatusServiceUnavailable, "profiling_unavailable", "no instance can profile: %s", p))
	}
	p.Log(x.h.logger, x.id)
}
