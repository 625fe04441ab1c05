package epdhandler

import (
	"net/http"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/operate"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// mayProfile reports whether clients may ask for profiles.
func (h *Handler) mayProfile() bool { return h.Profiling }

// profile asks all instances for a profile. The client may be anybody: it gets to know no addresses.
func (x *exchange) profile() {
	if !operate.FromHere(x.r) {
		x.reject(badRequest(http.StatusForbidden, "origin_not_allowed", "a page of another site must not do this"))
		return
	}
	_, in, e := x.readBody() // engines do not look at it; to its end, so that we see when the client leaves
	in.release()
	if e != nil {
		x.reject(e)
		return
	}
	q := operate.ProfileQuestion(x.r, x.r.URL.Path)
	q.Header["X-Request-Id"] = []string{x.id}
	p := operate.Profile(x.r.Context(), q, engine.Target.Place, x.h.site.Pools()...)
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
