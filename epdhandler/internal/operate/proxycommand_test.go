package operate

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	caddytokens "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/caddyfile"
)

func init() {
	Register()
	caddy.RegisterModule(new(directive))
}

// directive is the part of the directive that the command needs.
type directive struct {
	Encode    *reverseproxy.Handler `json:"encode,omitempty"`
	Prefill   *reverseproxy.Handler `json:"prefill,omitempty"`
	Decode    *reverseproxy.Handler `json:"decode,omitempty"`
	Profiling bool                  `json:"profiling,omitempty"`
}

func (*directive) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.epd_proxy", New: func() caddy.Module { return new(directive) }}
}

func (h *directive) UnmarshalCaddyfile(d *caddytokens.Dispenser) error {
	_, err := caddyfile.Parse(d, caddyfile.Options{
		"encode":    caddyfile.Pool(&h.Encode),
		"prefill":   caddyfile.OptionalPool(&h.Prefill),
		"decode":    caddyfile.Pool(&h.Decode),
		"profiling": caddyfile.Flag(&h.Profiling),
	})
	return err
}

func TestRegister(t *testing.T) {
	t.Parallel()
	_, err := caddy.GetModule("admin.api.epd")
	assert.NoError(t, err)
	for _, name := range []string{"epd-check", "epd-proxy"} {
		assert.Contains(t, caddycmd.Commands(), name)
	}
}

// proxyFlags returns the command's flags with these arguments, which are separated by |.
func proxyFlags(t *testing.T, args string) (caddycmd.Flags, error) {
	t.Helper()
	cmd := new(cobra.Command)
	proxyCommand().CobraFunc(cmd)
	return caddycmd.Flags{FlagSet: cmd.Flags()}, cmd.ParseFlags(strings.Split(args, "|"))
}

func TestProxyPools(t *testing.T) {
	t.Parallel()
	const one, other, third = `{"dial":"e1:8001"}`, `{"dial":"e2:8002"}`, `{"dial":"d1:8003"}`
	const decode = `"decode":{"upstreams":[` + third + `]}`
	for args, want := range map[string]string{
		"--encode|e1:8001|--decode|d1:8003":                                                                                       `{"encode":{"upstreams":[` + one + `]},` + decode + `}`,
		"--encode|e1:8001,e2:8002|--prefill|disable|--decode|d1:8003":                                                             `{"encode":{"upstreams":[` + one + `,` + other + `]},` + decode + `}`,
		"--encode| e1:8001 , e2:8002, |--prefill|none|--decode|d1:8003":                                                           `{"encode":{"upstreams":[` + one + `,` + other + `]},` + decode + `}`,
		"--encode|e1:8001|--encode|e2:8002|--prefill||--decode|d1:8003":                                                           `{"encode":{"upstreams":[` + one + `,` + other + `]},` + decode + `}`,
		"--encode=e1:8001|--prefill=e2:8002|--decode=d1:8003|--profiling":                                                         `{"encode":{"upstreams":[` + one + `]},"prefill":{"upstreams":[` + other + `]},` + decode + `,"profiling":true}`,
		"--encode-servers-urls|http://e1:8001,http://e2:8002|--prefill-servers-urls|disable|--decode-servers-urls|http://d1:8003": `{"encode":{"upstreams":[` + one + `,` + other + `]},` + decode + `}`,
		"--encode-servers-urls|http://e1:8001|--prefill-servers-urls|http://e2:8002|--decode|d1:8003":                             `{"encode":{"upstreams":[` + one + `]},"prefill":{"upstreams":[` + other + `]},` + decode + `}`,
		"--encode|https://e1:8001|--decode|d1:8003":                                                                               `{"encode":{"upstreams":[` + one + `],"transport":{"protocol":"http","tls":{}}},` + decode + `}`,
		"--encode|http://e1:8001/,http://e2:8002|--decode|http://d1:8003/v%20l/m/": `{"encode":{"upstreams":[` + one + `,` + other + `]},"decode":{"upstreams":[` + third + `],` +
			`"rewrite":{"uri":"/v%20l/m{http.request.uri}"},"health_checks":{"active":{"uri":"/v%20l/m/health"}}}}`,
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			fs, err := proxyFlags(t, args)
			require.NoError(t, err)
			got, err := proxyHandler(fs)
			require.NoError(t, err)
			assert.JSONEq(t, `{"handler":"epd_proxy",`+want[1:], string(got))
		})
	}
}

func TestProxyListens(t *testing.T) {
	t.Parallel()
	const off = `"automatic_https":{"disable":true}`
	for args, want := range map[string]struct{ address, server, match string }{
		"":                             {"http://0.0.0.0:8000", `"listen":["0.0.0.0:8000"],` + off, ""},
		"--host|127.0.0.1|--port|9000": {"http://127.0.0.1:9000", `"listen":["127.0.0.1:9000"],` + off, ""},
		"--host|::1":                   {"http://[::1]:8000", `"listen":["[::1]:8000"],` + off, ""},
		"--listen|:8000":               {"http://:8000", `"listen":[":8000"],` + off, ""},
		"--listen|api.example.com":     {"https://api.example.com", `"listen":[":443"]`, `"match":[{"host":["api.example.com"]}],`},
		"--listen|localhost:8443":      {"https://localhost:8443", `"listen":["localhost:8443"]`, `"match":[{"host":["localhost"]}],`},
		"--listen|http://127.0.0.1:81": {"http://127.0.0.1:81", `"listen":["127.0.0.1:81"],` + off, ""},
		"--listen|https://[::1]:8443":  {"https://[::1]:8443", `"listen":["[::1]:8443"]`, `"match":[{"host":["::1"]}],`},
		"--listen|http://api.x:8000":   {"http://api.x:8000", `"listen":[":8000"],` + off, `"match":[{"host":["api.x"]}],`},
		"--listen|api.x:80":            {"http://api.x", `"listen":[":80"],` + off, `"match":[{"host":["api.x"]}],`},
		"--access-log":                 {"http://0.0.0.0:8000", `"listen":["0.0.0.0:8000"],"logs":{},` + off, ""},
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			fs, err := proxyFlags(t, args)
			require.NoError(t, err)
			server, address, err := proxyServer(fs, json.RawMessage(`{"handler":"epd_proxy"}`))
			require.NoError(t, err)
			assert.Equal(t, want.address, address)
			got, err := json.Marshal(proxyConfig(fs, server))
			require.NoError(t, err)
			assert.JSONEq(t, `{"admin":{"disabled":true,"config":{"persist":false}},"apps":{"http":{"servers":{"epd_proxy":{`+
				want.server+`,"routes":[{`+want.match+`"handle":[{"handler":"epd_proxy"}]}]}}}}}`, string(got))
		})
	}
}

func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	const pools = "--encode|e1:8001|--decode|d1:8003|"
	for args, want := range map[string]string{
		"--decode|d1:8003":                                            "there is no encode pool; give --encode host:port, or --encode-servers-urls http://host:port",
		"--encode|e1:8001|--decode|":                                  "there is no decode pool; give --decode host:port, or --decode-servers-urls http://host:port",
		pools + "--encode-servers-urls|e1:8001":                       "--encode and --encode-servers-urls are the same; give one of them",
		pools + "--prefill|off":                                       "'off' would be taken for the name of a host; write 'prefill disable', at --prefill:1",
		pools + "--prefill|disable,p1:8002":                           "'disable' switches prefill off, so that nothing can follow; write either upstreams or 'disable', at --prefill:1",
		"--encode|http://e1:8001/a,e2:8001|--decode|d1:8003":          "--encode: 'e2:8001' has the path '', and those before it '/a'; all upstreams of a pool must have the same",
		"--encode|http://e1:8001/a,http://e2:8001/b|--decode|d1:8003": "--encode: 'http://e2:8001/b' has the path '/b', and those before it '/a'; all upstreams of a pool must have the same",
		"--decode-servers-urls|http://d1:8003/a?b=c|--encode|e1:8001": "--decode-servers-urls: 'http://d1:8003/a?b=c' has a query or a fragment; write http://d1:8003/a",
		"--encode|http://e1:8001/{x}|--decode|d1:8003":                "--encode:1",
		"--encode-servers-urls|ftp://e1:8001|--decode|d1:8003":        "--encode-servers-urls:1",
		pools + "--listen|:80|--port|8000":                            "--listen is for --host and --port together; give either that or these",
		pools + "--listen|:80|--host|0.0.0.0":                         "--listen is for --host and --port together; give either that or these",
		pools + "--listen|api.x/v1":                                   "invalid address 'api.x/v1' for --listen: it has a path",
		pools + "--listen|:99999":                                     "invalid address ':99999' for --listen: port 99999 is out of range",
		pools + "--listen|https://:8443":                              "invalid address 'https://:8443' for --listen: a certificate is for a host",
		pools + "--listen|ftp://api.x":                                "invalid address 'ftp://api.x' for --listen: write http:// or https://",
		pools + "--listen|8000":                                       "invalid address '8000' for --listen: it would be taken for the name of a host; write ':8000'",
		"--encode|e1|--decode|d1:8003":                                "'e1' has no port, which would mean port 80",
		pools + "--port|99999":                                        `invalid argument "99999" for "--port" flag`,
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			fs, err := proxyFlags(t, args)
			var handler json.RawMessage
			if err == nil {
				handler, err = proxyHandler(fs)
			}
			if err == nil {
				_, _, err = proxyServer(fs, handler)
			}
			assert.ErrorContains(t, err, want)
		})
	}
}
