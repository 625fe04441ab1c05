// Command caddy is Caddy with the standard modules and epd_proxy. To add other
// plugins, use xcaddy.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-epd/caddy-epd/epdhandler"
)

func main() { caddycmd.Main() }
