package engine

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Client is the request on whose behalf engines are asked.
type Client struct {
	Request *http.Request
	ID      string // x-request-id, for logs

	header http.Header // what engines get of the headers
	mu     sync.Mutex  // guards the variables and placeholders of the request
}

// NewClient returns the client of a request. Engines get more of the headers of one that is trusted.
func NewClient(r *http.Request, id string, trusted bool) *Client {
	return &Client{Request: r, ID: id, header: forwarded(r.Header, trusted)}
}

var noHandler = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// request makes the request of a call. It shares nothing that can change with the client's request
// or with other calls: Caddy's variables, for one, are a plain map.
func (cl *Client) request(ctx context.Context, a *Attempt, w http.ResponseWriter) *http.Request {
	from := cl.Request
	r := &http.Request{
		Method:     a.Method,
		URL:        &url.URL{Path: a.Path, RawQuery: from.URL.RawQuery}, // for policies and placeholders: engines get no query
		RequestURI: from.RequestURI,
		Proto:      from.Proto,
		ProtoMajor: from.ProtoMajor,
		ProtoMinor: from.ProtoMinor,
		Host:       from.Host,
		RemoteAddr: from.RemoteAddr,
		TLS:        from.TLS,
		Header:     maps.Clone(cl.header), // reverse_proxy clones the values
	}
	r.Header["X-Request-Id"] = []string{a.ID}
	if a.Reserved != nil && a.Reserved.Rank != "" {
		r.Header["X-Data-Parallel-Rank"] = []string{a.Reserved.Rank}
	}
	if r.Header.Del("Accept-Encoding"); a.Encoding != nil {
		r.Header["Accept-Encoding"] = a.Encoding
	}
	telemetry.Inject(ctx, r.Header)
	if a.Body != nil {
		r.Header["Content-Type"] = []string{"application/json"}
		r.ContentLength = a.Body.Len()
		r.Body = a.Body.Reader()
	}
	server := from.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	repl := caddy.NewReplacer()
	ctx = dispatch.WithAsk(context.WithValue(ctx, attemptKey{}, a), &a.ask)
	r = caddyhttp.PrepareRequest(r.WithContext(ctx), repl, w, server)
	cl.lend(r, repl)
	return r
}

type attemptKey struct{}

func attemptOf(r *http.Request) *Attempt {
	a, _ := r.Context().Value(attemptKey{}).(*Attempt)
	return a
}

// lend gives back what the fresh context has lost, for placeholders in the pool's options.
func (cl *Client) lend(r *http.Request, repl *caddy.Replacer) {
	parent := cl.Request.Context()
	cl.mu.Lock()
	defer cl.mu.Unlock()
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	for k, v := range parent.Value(caddyhttp.VarsCtxKey).(map[string]any) {
		if _, ok := vars[k]; !ok && !strings.HasPrefix(k, "reverse_proxy.") {
			vars[k] = v
		}
	}
	placeholders := parent.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.Map(func(key string) (any, bool) {
		cl.mu.Lock() // a look-up can set variables of the client's request
		defer cl.mu.Unlock()
		return placeholders.Get(key)
	})
	// in place: the replacer has the pointer
	*r = *r.WithContext(context.WithValue(r.Context(), caddyhttp.OriginalRequestCtxKey, parent.Value(caddyhttp.OriginalRequestCtxKey)))
}

// No engine gets headers that describe the client's own body or connection, or that net/http acts on
// (it repeats a POST with an Idempotency-Key as often as connections end); nor, unless clients are
// trusted, those that tell engines and routers (of vLLM, llm-d, Dynamo, SGLang) what to do.
var (
	notEndToEnd = headerNames{
		names: []string{"Digest", "Repr-Digest", "Transfer-Encoding", "Trailer", "Te", "Expect", "Connection", "Upgrade", "Http2-Settings", "Incremental", "Range",
			"Idempotency-Key", "X-Idempotency-Key"},
		prefixes: []string{"Content-", "If-", ":"},
	}
	steering = headerNames{
		names: []string{"X-Vllm-Priority", "X-Data-Parallel-Rank", "X-Data-Parallel-Host-Port", "X-Prefiller-Host-Port", "X-Prefiller-Url", "X-Encoder-Hosts-Ports", "X-Kv-Cache-Source-Host-Port", "Epp-Profile",
			"X-Dp-Rank", "X-Prefill-Dp-Rank", "X-Worker-Instance-Id", "X-Prefill-Instance-Id",
			"Endpoint-Load-Metrics-Format"}, // answers tell the load then
		prefixes: []string{"X-Llm-D-", "X-Dynamo-", "X-Smg-", "X-Gateway-Destination-Endpoint"},
	}
)

type headerNames struct{ names, prefixes []string }

func (n headerNames) has(name string) bool {
	return slices.Contains(n.names, name) || slices.ContainsFunc(n.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// forwarded returns the client's headers that engines get. It shares the values with h.
func forwarded(h http.Header, trusted bool) http.Header {
	out := maps.Clone(h)
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	maps.DeleteFunc(out, func(name string, _ []string) bool {
		return notEndToEnd.has(name) || !trusted && steering.has(name)
	})
	return out
}
