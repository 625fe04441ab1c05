package operate

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

func proxyCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "epd-proxy",
		Usage: "--encode <addrs> [--prefill <addrs>|disable] --decode <addrs> [--listen <addr>] [--profiling] [--access-log] [--debug]",
		Short: "A proxy for Encode-Prefill-Decode disaggregation, without a configuration file",
		Long: `
Serves multimodal models in front of pools of encode, prefill and decode engines,
as the directive epd_proxy does with its defaults. For its options, and for more
than a quick start, write a Caddyfile.

The addresses of a pool are separated by commas. They are host:port or URLs. URLs
may have a path, which must be the same for the whole pool. Without --prefill, or
with 'disable' or 'none', decode does prefill as well.

The flags of vLLM's disagg_epd_proxy.py are accepted by their names: --host,
--port, and --encode-servers-urls, --prefill-servers-urls and
--decode-servers-urls for --encode, --prefill and --decode.

--listen is a site address, and replaces --host and --port. A site with a host
name, such as api.example.com, is served over HTTPS with a certificate; one with
only a port, such as :8000, over plain HTTP.
`,
		CobraFunc: func(cmd *cobra.Command) {
			f := cmd.Flags()
			f.StringP("listen", "l", "", "Site address to serve, instead of --host and --port")
			f.String("host", "0.0.0.0", "Address to listen on, over plain HTTP")
			f.Uint16("port", 8000, "Port to listen on, over plain HTTP")
			for _, stage := range telemetry.Stages() {
				f.StringArray(stage, nil, "Addresses of the "+stage+" engines")
				f.StringArray(stage+"-servers-urls", nil, "The same as --"+stage)
			}
			f.Bool("profiling", false, "Serve /start_profile and /stop_profile")
			f.Bool("access-log", false, "Enable the access log")
			f.BoolP("debug", "v", false, "Enable verbose debug logs")
			cmd.RunE = caddycmd.WrapCommandFuncForCobra(cmdProxy)
		},
	}
}

func cmdProxy(fs caddycmd.Flags) (int, error) {
	caddy.TrapSignals()
	if extra := fs.Arg(0); extra != "" {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("unexpected argument '%s'; the addresses of a pool are separated by commas, as in --encode e1:8001,e2:8001", extra)
	}
	handler, err := proxyHandler(fs)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	server, address, err := proxyServer(fs, handler)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if err := caddy.Run(proxyConfig(fs, server)); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	caddy.Log().Info("epd_proxy is serving", zap.String("address", address), zap.Any("handler", handler))
	select {}
}

// proxyHandler returns the JSON of the handler. The parser of the directive reads the flags as
// lines of its block.
func proxyHandler(fs caddycmd.Flags) (json.RawMessage, error) {
	tokens := []caddyfile.Token{{Text: "epd_proxy"}, {Text: "{"}}
	for _, stage := range telemetry.Stages() {
		pool, err := poolTokens(fs, stage)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, pool...)
	}
	if fs.Bool("profiling") {
		tokens = append(tokens, caddyfile.Token{File: "--profiling", Line: 1, Text: "profiling"})
	}
	tokens = append(tokens, caddyfile.Token{Line: 1, Text: "}"})

	module, err := caddy.GetModule("http.handlers.epd_proxy")
	if err != nil {
		return nil, err
	}
	h := module.New()
	if err := h.(caddyfile.Unmarshaler).UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(h, "handler", module.ID.Name(), nil), nil
}

// poolTokens returns the line of a pool with its block, nil if the pool has no upstreams.
func poolTokens(fs caddycmd.Flags, stage string) ([]caddyfile.Token, error) {
	flag, long := stage, stage+"-servers-urls"
	if fs.Changed(long) {
		if fs.Changed(stage) {
			return nil, fmt.Errorf("--%s and --%s are the same; give one of them", stage, long)
		}
		flag = long
	}
	values, _ := fs.GetStringArray(flag) // never fails
	upstreams := strings.Fields(strings.ReplaceAll(strings.Join(values, " "), ",", " "))
	switch {
	case len(upstreams) == 0 && stage == telemetry.Prefill:
		return nil, nil
	case len(upstreams) == 0:
		return nil, fmt.Errorf("there is no %s pool; give --%s host:port, or --%s http://host:port", stage, stage, long)
	}
	path, err := takePath(upstreams)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	line := append([]string{stage}, upstreams...)
	if path == "" {
		return tokensOf("--"+flag, line), nil
	}
	return tokensOf("--"+flag, append(line, "{"),
		[]string{"rewrite", path + "{http.request.uri}"},
		[]string{"health_uri", path + "/health"},
		[]string{"}"}), nil
}

// tokensOf returns the tokens of lines. The flag stands for the file in errors.
func tokensOf(flag string, lines ...[]string) (tokens []caddyfile.Token) {
	for i, line := range lines {
		for _, text := range line {
			tokens = append(tokens, caddyfile.Token{File: flag, Line: i + 1, Text: text})
		}
	}
	return tokens
}

// takePath removes the path from the URLs among upstreams, and returns it. A pool can have only
// one path.
func takePath(upstreams []string) (path string, err error) {
	for i, upstream := range upstreams {
		own := ""
		if u, err := url.Parse(upstream); err == nil && u.Host != "" {
			if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
				return "", fmt.Errorf("'%s' has a query or a fragment; write %s://%s%s", upstream, u.Scheme, u.Host, u.EscapedPath())
			}
			own = strings.TrimRight(u.EscapedPath(), "/")
			upstreams[i] = strings.TrimSuffix(upstream, u.EscapedPath())
		}
		if i > 0 && own != path {
			return "", fmt.Errorf("'%s' has the path '%s', and those before it '%s'; all upstreams of a pool must have the same", upstream, own, path)
		}
		path = own
	}
	return path, nil
}

// proxyServer returns a server for the handler at the address of the flags, and that as a site address.
func proxyServer(fs caddycmd.Flags, handler json.RawMessage) (*caddyhttp.Server, string, error) {
	site := httpcaddyfile.Address{Scheme: "http", Host: fs.String("host"), Port: fs.String("port")}
	on := site.Host // the interface
	if fs.Changed("listen") {
		if fs.Changed("host") || fs.Changed("port") {
			return nil, "", errors.New("--listen is for --host and --port together; give either that or these")
		}
		var err error
		if site, err = siteAddress(fs.String("listen")); err != nil {
			return nil, "", fmt.Errorf("invalid address '%s' for --listen: %w", fs.String("listen"), err)
		}
		on = site.Host
		if _, err := netip.ParseAddr(on); err != nil && on != "localhost" {
			on = "" // a name is served on all interfaces
		}
	}
	route := caddyhttp.Route{HandlersRaw: []json.RawMessage{handler}}
	if site.Host != on || site.Host != "" && site.Scheme == "https" {
		route.MatcherSetsRaw = []caddy.ModuleMap{{"host": caddyconfig.JSON(caddyhttp.MatchHost{site.Host}, nil)}}
	}
	server := &caddyhttp.Server{Listen: []string{net.JoinHostPort(on, site.Port)}, Routes: caddyhttp.RouteList{route}}
	if site.Scheme == "http" {
		server.AutoHTTPS = &caddyhttp.AutoHTTPSConfig{Disabled: true}
	}
	if fs.Bool("access-log") {
		server.Logs = new(caddyhttp.ServerLogConfig)
	}
	return server, site.String(), nil
}

// siteAddress parses an address, and completes it as 'caddy reverse-proxy' does.
func siteAddress(listen string) (httpcaddyfile.Address, error) {
	site, err := httpcaddyfile.ParseAddress(listen)
	ports := map[string]string{"http": strconv.Itoa(caddyhttp.DefaultHTTPPort), "https": strconv.Itoa(caddyhttp.DefaultHTTPSPort)}
	if site.Scheme == "" {
		site.Scheme = "https"
		if site.Port == ports["http"] || site.Host == "" {
			site.Scheme = "http"
		}
	}
	site.Port = cmp.Or(site.Port, ports[site.Scheme])
	switch {
	case err != nil:
	case listen != "" && strings.Trim(listen, "0123456789") == "":
		err = fmt.Errorf("it would be taken for the name of a host; write ':%s'", listen)
	case site.Path != "":
		err = errors.New("it has a path")
	case ports[site.Scheme] == "":
		err = errors.New("write http:// or https://")
	case site.Scheme == "https" && site.Host == "":
		err = errors.New("a certificate is for a host; write one such as https://localhost:8443")
	}
	return site, err
}

// proxyConfig returns the configuration. It has no admin endpoint, because only the flags configure
// this proxy.
func proxyConfig(fs caddycmd.Flags, server *caddyhttp.Server) *caddy.Config {
	app := caddyhttp.App{Servers: map[string]*caddyhttp.Server{"epd_proxy": server}}
	config := &caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: new(false)}},
		AppsRaw: caddy.ModuleMap{"http": caddyconfig.JSON(app, nil)},
	}
	if fs.Bool("debug") {
		config.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{
			"default": {BaseLog: caddy.BaseLog{Level: zap.DebugLevel.CapitalString()}},
		}}
	}
	return config
}
