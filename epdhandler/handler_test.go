package epdhandler

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
)

// load provisions a handler as Caddy does, including its life cycle.
func load(t *testing.T, config string) (*Handler, error) {
	t.Helper()
	ctx, err := caddy.ProvisionContext(&caddy.Config{})
	require.NoError(t, err)
	ctx, cancel := caddy.NewContext(ctx)
	t.Cleanup(cancel) // cleans up the handler
	mod, err := ctx.LoadModuleByID("http.handlers.epd_proxy", json.RawMessage(config))
	if err != nil {
		return nil, err
	}
	return mod.(*Handler), nil
}

// loadAlone provisions a handler that shares nothing of the process with others.
func loadAlone(t *testing.T, config string) *Handler {
	t.Helper()
	ctx, err := caddy.ProvisionContext(&caddy.Config{})
	require.NoError(t, err)
	ctx, cancel := caddy.NewContext(ctx)
	t.Cleanup(cancel)
	h := &Handler{process: process.New()}
	require.NoError(t, caddy.StrictUnmarshalJSON([]byte(config), h))
	t.Cleanup(func() { assert.NoError(t, h.Cleanup()) })
	require.NoError(t, h.Provision(ctx))
	return h
}

func TestProvisionRefuses(t *testing.T) {
	const one = `{"upstreams":[{"dial":"localhost:1"}]}`
	for name, tc := range map[string]struct{ config, want string }{
		"no encode":           {`{"decode":` + one + `}`, `there is no encode pool; write "encode e1:8001 e2:8001" in the epd_proxy block (JSON: "encode": {"upstreams": [{"dial": "host:port"}]})`},
		"no decode":           {`{"encode":` + one + `}`, `there is no decode pool; write "decode pd1:8003 pd2:8003" in the epd_proxy block`},
		"empty encode":        {`{"encode":{},"decode":` + one + `}`, `the encode pool has no upstreams; write "encode e1:8001 e2:8001"`},
		"empty prefill":       {`{"encode":` + one + `,"prefill":{},"decode":` + one + `}`, `the prefill pool has no upstreams; write "prefill p1:8002"`},
		"unknown policy":      {`{"encode":` + one + `,"decode":{"load_balancing":{"selection_policy":{"policy":"best"}},"upstreams":[{"dial":"localhost:1"}]}}`, "provisioning decode pool: loading load balancing policy: "},
		"unknown transport":   {`{"encode":{"transport":{"protocol":"carrier_pigeon"},"upstreams":[{"dial":"localhost:1"}]},"decode":` + one + `}`, "provisioning encode pool: loading transport: "},
		"other transport":     {`{"encode":` + one + `,"prefill":{"transport":{"protocol":"fastcgi"},"upstreams":[{"dial":"localhost:1"}]},"decode":` + one + `}`, "provisioning prefill pool: loading transport: transport fastcgi is not supported; use 'transport http'"},
		"fails early":         {`{"encode":` + one + `,"prefill":{"trusted_proxies":["nonsense"],"upstreams":[{"dial":"localhost:1"}]},"decode":` + one + `}`, "provisioning prefill pool: "},
		"fails late":          {`{"encode":` + one + `,"prefill":` + one + `,"decode":{"health_checks":{"active":{"expect_body":"("}},"upstreams":[{"dial":"localhost:1"}]}}`, "provisioning decode pool: "},
		"negative retries":    {`{"retries":-1,"encode":` + one + `,"decode":` + one + `}`, "retries must not be negative"},
		"negative body size":  {`{"max_body_size":-1,"encode":` + one + `,"decode":` + one + `}`, "max_body_size must not be negative"},
		"negative timeout":    {`{"encode_timeout":-1,"encode":` + one + `,"decode":` + one + `}`, "encode_timeout must not be negative"},
		"negative items":      {`{"max_media_items":-1,"encode":` + one + `,"decode":` + one + `}`, "max_media_items must not be negative"},
		"negative limit":      {`{"decode_limit":-1,"encode":` + one + `,"decode":` + one + `}`, "decode_limit must not be negative"},
		"little memory":       {`{"max_memory":1048576,"max_body_size":524289,"encode":` + one + `,"decode":` + one + `}`, "max_memory (1048576 bytes) must be twice max_body_size (524289 bytes) at least"},
		"many items":          {`{"max_memory":1048576,"max_media_items":257,"encode":` + one + `,"decode":` + one + `}`, "max_memory (1048576 bytes) must be 1052672 bytes at least for max_media_items 257"},
		"no such consumer":    {`{"ec_consumers":{"http://localhost:1":["tcp://x:1"]},"encode":` + one + `,"decode":` + one + `}`, "ec_consumers names 'http://localhost:1', which is no upstream of the decode pool; write it as host:port"},
		"consumers of decode": {`{"ec_consumers":{"localhost:2":["tcp://x:1"]},"encode":` + one + `,"prefill":` + one + `,"decode":{"upstreams":[{"dial":"localhost:2"}]}}`, "ec_consumers names 'localhost:2', which is no upstream of the prefill pool"},
		"a silent consumer":   {`{"ec_consumers":{"localhost:1":["tcp://x:1"]},"encode":` + one + `,"decode":{"upstreams":[{"dial":"localhost:1"},{"dial":"localhost:2"}]}}`, "ec_consumers has no address for 'localhost:2' of the decode pool"},
		"no address":          {`{"ec_consumers":{"localhost:1":[]},"encode":` + one + `,"decode":` + one + `}`, "ec_consumers has no address for 'localhost:1'"},
		"no scheme":           {`{"ec_consumers":{"localhost:1":["tcp://x:1","x:2"]},"encode":` + one + `,"decode":` + one + `}`, "ec_consumers has 'x:2' for 'localhost:1', which is no address of a consumer; write tcp://host:port"},
		"no port":             {`{"ec_consumers":{"localhost:1":["tcp://x"]},"encode":` + one + `,"decode":` + one + `}`, "ec_consumers has 'tcp://x' for 'localhost:1', which is no address of a consumer; write tcp://host:port"},
		"unknown consumers":   {`{"ec_consumers":{"localhost:1":["tcp://x:1"]},"encode":` + one + `,"decode":{"dynamic_upstreams":{"source":"a","name":"localhost","port":"1"}}}`, "ec_consumers needs to know the upstreams of the decode pool; it cannot be dynamic"},
		"a silent prefill":    {`{"kv_bootstrap":{"localhost:1":"http://x:1"},"encode":` + one + `,"prefill":{"upstreams":[{"dial":"localhost:1"},{"dial":"localhost:2"}]},"decode":` + one + `}`, "kv_bootstrap has no address for 'localhost:2' of the prefill pool; write one such as http://host:8998"},
		"no such prefill":     {`{"kv_bootstrap":{"localhost:2":"http://x:1"},"encode":` + one + `,"prefill":` + one + `,"decode":` + one + `}`, "kv_bootstrap names 'localhost:2', which is no upstream of the prefill pool; write it as host:port"},
		"a path":              {`{"kv_bootstrap":{"localhost:1":"http://x:1/query"},"encode":` + one + `,"prefill":` + one + `,"decode":` + one + `}`, "kv_bootstrap has 'http://x:1/query' for 'localhost:1', which is no address of a bootstrap server; write http://host:8998"},
		"no http":             {`{"kv_bootstrap":{"localhost:1":"tcp://x:1"},"encode":` + one + `,"prefill":` + one + `,"decode":` + one + `}`, "kv_bootstrap has 'tcp://x:1' for 'localhost:1', which is no address"},
		"one for two":         {`{"kv_bootstrap":{"localhost:1":"http://x:1","localhost:2":"http://x:1"},"encode":` + one + `,"prefill":{"upstreams":[{"dial":"localhost:1"},{"dial":"localhost:2"}]},"decode":` + one + `}`, "kv_bootstrap has 'http://x:1' for 'localhost:1' and for 'localhost:2'"},
		"unknown prefill":     {`{"kv_bootstrap":{"localhost:1":"http://x:1"},"encode":` + one + `,"prefill":{"dynamic_upstreams":{"source":"a","name":"localhost","port":"1"}},"decode":` + one + `}`, "kv_bootstrap needs to know the upstreams of the prefill pool; it cannot be dynamic"},
		"a queue for nobody":  {`{"queue_timeout":1,"encode":` + one + `,"decode":` + one + `}`, "queue_timeout has no effect without encode_limit, prefill_limit or decode_limit"},
		"pushes or none":      {`{"encode_optional":true,"ec_consumers":{"localhost:1":["tcp://x:1"]},"encode":` + one + `,"decode":` + one + `}`, "encode_optional does not go with ec_consumers"},
		"a salt for nothing":  {`{"uuid_salt":"x","encode":` + one + `,"decode":` + one + `}`, "uuid_salt has no effect without references or ec_consumers"},
		"no such JSON member": {`{"encoder":` + one + `}`, "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			// another handler shares the hosts, so that releasing them twice is detected
			_, err := load(t, `{"encode":`+one+`,"decode":`+one+`}`)
			require.NoError(t, err)
			for range 3 {
				_, err = load(t, tc.config)
				require.ErrorContains(t, err, tc.want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	h, err := load(t, `{"encode":{"upstreams":[{"dial":"localhost:1"}]},"decode":{"upstreams":[{"dial":"localhost:1"}]}}`)
	require.NoError(t, err)
	assert.Equal(t, 1, *h.Retries)
	assert.Equal(t, 16, h.EncodeConcurrency)
	assert.EqualValues(t, time.Minute, h.EncodeTimeout)
	assert.EqualValues(t, 256<<20, h.MaxBodySize)
	assert.GreaterOrEqual(t, h.MaxMemory, int64(512<<20))
	assert.Equal(t, 1000, *h.QueueSize)
	assert.EqualValues(t, 30*time.Second, h.QueueTimeout)
	assert.Zero(t, h.EncodeLimit)
	assert.Equal(t, 128, h.MaxMediaItems)
	assert.Nil(t, h.site.Prefill)
	for _, p := range h.site.Pools() {
		active := p.Handler.HealthChecks.Active
		assert.Equal(t, "/health", active.URI)
		assert.EqualValues(t, 5*time.Second, active.Interval)
		assert.EqualValues(t, 5*time.Second, active.Timeout)
		assert.Equal(t, 3, active.Fails)
		assert.Equal(t, 1, active.Passes)
		assert.Nil(t, p.Handler.HealthChecks.Passive)
		transport := httpTransport(p.Handler)
		assert.Equal(t, 2500*time.Millisecond, transport.IdleConnTimeout)
		assert.Equal(t, 1024, transport.MaxIdleConnsPerHost)
	}
}

// httpTransport is the wrapped transport of a pool's handler.
func httpTransport(h *reverseproxy.Handler) *http.Transport {
	return reflect.ValueOf(h.Transport).FieldByName("HTTPTransport").Interface().(*reverseproxy.HTTPTransport).Transport
}

func TestWhatTheUserSaysStays(t *testing.T) {
	h, err := load(t, `{"retries":0,
		"encode":{"upstreams":[{"dial":"localhost:1"}],
			"load_balancing":{"selection_policy":{"policy":"first"}},
			"transport":{"protocol":"http","dial_timeout":"7s","keep_alive":{"idle_timeout":"9s"}},
			"health_checks":{"active":{"uri":"/ready","fails":1},"passive":{"fail_duration":"30s"}}},
		"prefill":{"upstreams":[{"dial":"localhost:1"}],
			"transport":{"protocol":"http","keep_alive":{"max_idle_conns_per_host":5}},
			"health_checks":{"active":{"interval":"1m","port":9}}},
		"decode":{"dynamic_upstreams":{"source":"a","name":"localhost","port":"1"},"transport":{"protocol":"http","keep_alive":null},
			"health_checks":{"active":{}}}}`)
	require.NoError(t, err)
	assert.Equal(t, 0, *h.Retries)

	encode := h.Encode
	assert.Equal(t, "/ready", encode.HealthChecks.Active.URI)
	assert.Equal(t, 1, encode.HealthChecks.Active.Fails)
	assert.EqualValues(t, 5*time.Second, encode.HealthChecks.Active.Interval)
	assert.NotNil(t, encode.HealthChecks.Passive)
	assert.Equal(t, 9*time.Second, httpTransport(encode).IdleConnTimeout)
	assert.Equal(t, 1024, httpTransport(encode).MaxIdleConnsPerHost)

	prefill := h.Prefill
	assert.Equal(t, "/health", prefill.HealthChecks.Active.URI)
	assert.EqualValues(t, time.Minute, prefill.HealthChecks.Active.Interval)
	assert.Equal(t, 2500*time.Millisecond, httpTransport(prefill).IdleConnTimeout)
	assert.Equal(t, 5, httpTransport(prefill).MaxIdleConnsPerHost)

	assert.False(t, h.Decode.HealthChecks.Active.IsEnabled())
	assert.Equal(t, engine.Unknown, h.site.Decode.Health())
}

// The options of the directive, the JSON members of the module and the rows of the
// documentation's tables have the same names.
func TestOptionsAreTheSameEverywhere(t *testing.T) {
	options := slices.Sorted(maps.Keys(new(Handler).options()))
	assert.Equal(t, options, slices.Sorted(maps.Keys(fields(new(Handler)))))

	var rows []string
	for _, o := range documented(t) {
		rows = append(rows, o.name)
	}
	slices.Sort(rows)
	assert.Equal(t, options, rows)
}

// A configuration that contains all documented defaults equals one without them.
func TestDefaultsAreAsDocumented(t *testing.T) {
	const pools = "encode localhost:1\ndecode localhost:1\n"
	silent := fromCaddyfile(t, pools)
	written := pools + "decode_limit 1\n" // required by queue_size and queue_timeout
	for _, o := range documented(t) {
		value, isCode := strings.CutPrefix(o.initially, "`")
		value, _, _ = strings.Cut(value, "`")
		switch {
		case isCode:
			written += o.name + " " + value + "\n"
		case o.initially == "required":
			continue // TestProvisionRefuses
		case o.name == "max_memory":
			assert.Equal(t, memory.DefaultLimit(), silent.MaxMemory)
		default:
			assert.Contains(t, []string{"off", "none", "anywhere"}, o.initially, "default of %s", o.name)
			assert.Zero(t, fields(silent)[o.name], "default of %s", o.name)
		}
	}
	want, got := fields(fromCaddyfile(t, written)), fields(silent)
	for _, name := range []string{"encode", "decode", "decode_limit"} {
		delete(want, name)
		delete(got, name)
	}
	assert.Equal(t, want, got)
}

// option is a row of docs/configuration.md.
type option struct{ name, initially string }

func documented(t *testing.T) (all []option) {
	text, err := os.ReadFile("../docs/configuration.md")
	require.NoError(t, err)
	tables := strings.Split(string(text), "| option | default |")[1:]
	for _, table := range tables {
		table, _, _ = strings.Cut(table, "\n\n")
		for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+`) \\| ([^|]+) \\|").FindAllStringSubmatch(table, -1) {
			for name := range strings.SplitSeq(row[1], ", ") {
				all = append(all, option{strings.Trim(name, "`"), row[2]})
			}
		}
	}
	return all
}

// fields returns the handler's JSON members by name.
func fields(h *Handler) map[string]any {
	all := make(map[string]any)
	v := reflect.ValueOf(h).Elem()
	for f := range v.Type().Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			all[name] = v.FieldByIndex(f.Index).Interface()
		}
	}
	return all
}

// fromCaddyfile provisions a handler with this block.
func fromCaddyfile(t *testing.T, block string) *Handler {
	t.Helper()
	h, err := parseCaddyfile(httpcaddyfile.Helper{Dispenser: caddyfile.NewTestDispenser("epd_proxy {\n" + block + "}")})
	require.NoError(t, err)
	config, err := json.Marshal(h)
	require.NoError(t, err)
	provisioned, err := load(t, string(config))
	require.NoError(t, err)
	return provisioned
}
