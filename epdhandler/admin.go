package epdhandler

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI is what operators get from Caddy's admin endpoint, and clients never do:
//
// Route | What it does
// ------|-------------
// `GET /epd/status` | every pool and instance with its health, load and latency, as JSON, or for a browser as a page
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.epd",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes returns the routes of the admin endpoint.
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: "/epd/status", Handler: only(serveStatus, http.MethodGet, http.MethodHead)},
	}
}

// only refuses other methods than these.
func only(serve caddy.AdminHandlerFunc, methods ...string) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		for _, m := range methods {
			if r.Method == m {
				return serve(w, r)
			}
		}
		allow := strings.Join(methods, ", ")
		w.Header().Set("Allow", allow)
		return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("method not allowed; use %s here", allow)}
	}
}

// Interface guard
var _ caddy.AdminRouter = adminAPI{}
