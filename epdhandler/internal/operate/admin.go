// Package operate is what operators use: metrics that are read on demand, the status, profiles, and
// the commands epd-check and epd-proxy. It knows nothing of how requests are served.
package operate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
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

// profileTimeout is how long an instance may take to start or stop profiling. When it stops, it
// writes its whole profile.
const profileTimeout = 30 * time.Minute

// Profiles are the answers of instances to a request to profile.
type Profiles []profiled

type profiled struct {
	Upstream string `json:"upstream,omitempty"`
	Status   int    `json:"status,omitempty"`
	Result   string `json:"result"`

	target engine.Target
	err    error
}

const profileOK = "ok"

// ProfileQuestion returns the question for the instances, with the credentials of a request.
func ProfileQuestion(r *http.Request, path string) engine.Question {
	header := http.Header{"Authorization": r.Header["Authorization"]}
	return engine.Question{Method: r.Method, Path: path, Header: header, Timeout: profileTimeout}
}

// Profile sends a question to every instance of the pools. If everybody may read the answers, they
// have no addresses.
func Profile(ctx context.Context, q engine.Question, public bool, pools ...*engine.Pool) Profiles {
	all := engine.Targets(ctx, pools...)
	p := make(Profiles, len(all))
	engine.AskAll(all, func(i int, t engine.Target) {
		r := t.Ask(ctx, q)
		p[i] = profiled{t.Place(), r.Status, result(t.Pool.Stage, r), t, r.Err}
		if !public {
			p[i].Upstream = t.Address()
			if r.Err != nil {
				p[i].Result = r.Err.Error()
			}
		}
	})
	return p
}

func result(stage string, r engine.Reply) string {
	switch {
	case r.Err != nil:
		return "no answer"
	case r.Status/100 == 2: // vLLM's answer is empty
		return profileOK
	case r.Status == http.StatusNotFound: // vLLM has the route only if it is started with a profiler
		return "not available"
	}
	return cmp.Or(engine.ErrorOf(r.Status, r.Body).Message, fmt.Sprintf("the %s stage answered with status %d", stage, r.Status))
}

// Some reports whether any instance has done it.
func (p Profiles) Some() bool {
	return slices.ContainsFunc(p, func(s profiled) bool { return s.Result == profileOK })
}

// Write sends the answers as JSON, by stage.
func (p Profiles) Write(w http.ResponseWriter, status int) {
	stages := make(map[string]Profiles)
	for _, s := range p {
		stages[s.target.Pool.Stage] = append(stages[s.target.Pool.Stage], s)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(stages)
}

// Log logs the instances that have not done it.
func (p Profiles) Log(logger *zap.Logger, requestID string) {
	for _, s := range p {
		if s.Result == profileOK {
			continue
		}
		pool, address := s.target.Pool, s.target.Address()
		fields := []zap.Field{zap.String("request_id", requestID), zap.String("stage", pool.Stage),
			zap.String("upstream", pool.Name(address)), zap.Int("status", s.Status)}
		if s.err != nil {
			fields = append(fields, zap.String("error", pool.WithoutAddresses(s.err, &engine.Attempt{Chosen: []string{address}})))
		}
		logger.Warn("profiling failed", fields...)
	}
}

// String lists the instances that have not done it, in one line.
func (p Profiles) String() string {
	var failed []string
	for _, s := range p {
		if s.Result != profileOK {
			failed = append(failed, strings.TrimSpace(s.Upstream+" "+s.Result))
		}
	}
	slices.Sort(failed)
	return strings.Join(failed, ", ")
}

// FromHere reports whether a request does not come from a page of another site. Browsers send a
// POST without a body to any site without asking it first (CORS), but with the Origin of the page.
func FromHere(r *http.Request) bool {
	here := "http://" + strings.TrimSuffix(r.Host, ":80")
	if r.TLS != nil {
		here = "https://" + strings.TrimSuffix(r.Host, ":443")
	}
	origins := r.Header["Origin"]
	return len(origins) == 0 || len(origins) == 1 && strings.EqualFold(origins[0], here)
}
