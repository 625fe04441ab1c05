// Command caddy is Caddy with the standard modules and epd_proxy, for development
// and tests. To build a Caddy with other plugins as well, use xcaddy.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-epd/caddy-epd/epdhandler"
)

func main() { caddycmd.Main() }
