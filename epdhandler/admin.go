package epdhandler

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI is what operators get from Caddy's admin endpoint, and clients never do:
//
// Route | What happens
// ------|-------------
// `GET /epd/status` | every pool and instance with its health, load and latency, as JSON, or for a browser as a page
// `POST /epd/start_profile`, `/epd/stop_profile` | asked of every instance of every pool of every handler
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.epd",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes implements caddy.AdminRouter.
func (a adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: "/epd/status", Handler: only(http.MethodGet, serveStatus)},
		{Pattern: "/epd/start_profile", Handler: only(http.MethodPost, a.profile("/start_profile"))},
		{Pattern: "/epd/stop_profile", Handler: only(http.MethodPost, a.profile("/stop_profile"))},
	}
}

// only refuses other methods.
func only(method string, serve caddy.AdminHandlerFunc) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.Method != method {
			w.Header().Set("Allow", method)
			return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("use %s here", method)}
		}
		return serve(w, r)
	}
}

// profile passes a request to profile on to all engines.
func (adminAPI) profile(path string) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		var pools []*pool
		for _, h := range slices.Backward(liveHandlers()) { // what runs comes before what ends
			pools = append(pools, h.pools()...)
		}
		if len(pools) == 0 {
			return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errors.New("there is no epd_proxy in the configuration")}
		}
		q := question{method: r.Method, path: path, header: make(http.Header), timeout: profileTimeout}
		if key := r.Header["Authorization"]; key != nil {
			q.header["Authorization"] = key
		}
		p := profile(r.Context(), q, target.address, pools...)
		for _, said := range p {
			for i := range said {
				if err := said[i].err; err != nil {
					said[i].Result = err.Error()
				}
			}
		}
		status := http.StatusOK
		if !p.some() {
			status = http.StatusServiceUnavailable
		}
		p.write(w, status)
		return nil
	}
}

// Interface guard
var _ caddy.AdminRouter = adminAPI{}
