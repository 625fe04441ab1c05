// Package operate is what operators use: metrics that are read on demand, the status, profiles, and
// the commands epd-check and epd-proxy. It knows nothing of how requests are served.
package operate

import (
	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

// Register registers the routes of the admin endpoint and the commands with Caddy. It must be
// called once, before main.
func Register() {
	caddy.RegisterModule(adminAPI{})
	caddycmd.RegisterCommand(checkCommand())
	caddycmd.RegisterCommand(proxyCommand())
}
