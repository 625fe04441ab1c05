// Package operate is what operators use: metrics that are read on demand, the status, profiles, and
// the commands epd-check and epd-proxy. It knows nothing of how requests are served.
package operate

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
)

// Register registers the routes of the admin endpoint and the commands with Caddy. It must be
// called once, before main.
func Register() {
	caddy.RegisterModule(adminAPI{})
	caddycmd.RegisterCommand(checkCommand())
	caddycmd.RegisterCommand(proxyCommand())
}

// adminAPI is the part of Caddy's admin endpoint that is for epd_proxy:
//
// Route | What happens
// ------|-------------
// `GET /epd/status` | the health, load and latency of every pool and instance are returned, as JSON, or for a browser as a page
// `POST /epd/start_profile`, `/epd/stop_profile` | the request is sent to every instance of every pool of every handler
type adminAPI struct{}

var _ caddy.AdminRouter = adminAPI{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.epd",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes implements caddy.AdminRouter.
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: "/epd/status", Handler: only(http.MethodGet, serveStatus)},
		{Pattern: "/epd/start_profile", Handler: only(http.MethodPost, profileAll("/start_profile"))},
		{Pattern: "/epd/stop_profile", Handler: only(http.MethodPost, profileAll("/stop_profile"))},
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

// profileAll sends a request to profile to all engines.
func profileAll(path string) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		pools := process.Current().Pools()
		slices.Reverse(pools) // while a reload goes on, the new ones first
		if len(pools) == 0 {
			return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errors.New("there is no epd_proxy in the configuration")}
		}
		p := Profile(r.Context(), ProfileQuestion(r, path), false, pools...)
		status := http.StatusOK
		if !p.Some() {
			status = http.StatusServiceUnavailable
		}
		p.Write(w, status)
		return nil
	}
}
