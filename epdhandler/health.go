package epdhandler

import (
	"encoding/json"
	"net/http"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
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
