package epdhandler

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// call is one sub-request: an attempt of a stage at an instance of its pool.
type call struct {
	method, path string
	query        string          // the client's, which engines do not get
	id           string          // x-request-id
	idHead       string          // what ids of further attempts begin with
	body         *body.Segments  // nil: none
	renew        func()          // makes a body to send after the one before was; nil: the same may be sent
	encoding     []string        // Accept-Encoding; nil: the transport asks for gzip by itself, and undoes it
	skip         []string        // instances not to choose
	turn         *turn           // in the pool's queue; nil: it does not wait
	patience     time.Duration   // how long it may wait, where that is more than queue_timeout
	ready        func() bool     // asked when there is a slot for it; false gives that back
	clock        *stream.Silence // what the time limit goes by
	pinned       string          // the only instance that it may go to, whose slot it has
	rank         string          // of that instance
	spends       bool            // it brings what engines give only once
	alone        bool            // it gets a connection of its own
	attempt      int             // of the stage, from 1
	items        []int           // the media items that it is about, in encode

	// What came of it, besides the answer:
	stage    string
	span     trace.Span
	asked    time.Time // when it was last sent
	status   int       // of the engine's last answer, 0 if there was none
	chosen   []string  // the instances that the load balancing chose, the last one answered
	reached  bool      // a connection was there, so an engine may have got the request
	lost     bool      // an idle connection ended, perhaps with what the call brought
	broke    bool      // the answer ended in its middle
	unframed bool      // nothing but the end of the connection says that the answer ended
	stale    bool      // there was a slot for it, but its KV blocks were too old
	crowded  error     // why there was no slot for it; nil if there was
	chosenAt time.Time // zero: when no instance was ejected
	slot     instance  // where it is in flight
	fault    error     // what somebody else's code did wrong: it panicked, or chose nonsense

	// For the load balancing:
	upstreams reverseproxy.UpstreamPool  // the instances that there are
	waited    time.Duration              // for an instance
	offer     *offer                     // a slot that is kept for it; nil: none
	writer    http.ResponseWriter        // of the policy
	told      http.Header                // what the policy tells the client
	found     *reverseproxy.UpstreamPool // it is only to find out which instances there are
}

// upstream is the instance that answered, or was asked last.
func (c *call) upstream() string {
	if len(c.chosen) == 0 {
		return ""
	}
	return c.chosen[len(c.chosen)-1]
}

type callKey struct{}

// callOf returns the call that a request to an engine belongs to, nil if none.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// do sends a call to a pool and writes the answer to w. The error is that of the
// pool's handler, errBroke, or the call's fault. The call ends when it is known what came of it.
func (x *exchange) do(ctx context.Context, p *pool, c *call, w http.ResponseWriter) (err error) {
	defer freeSlot(c)
	defer x.contain(p, c, &err)
	c.stage = p.stage
	ctx, c.span = startSpan(ctx, c.method+" "+c.path, trace.SpanKindClient)
	if err = p.handler.ServeHTTP(w, x.request(ctx, c, w), noHandler); err == nil && c.broke {
		err = errBroke
	}
	return err
}

// choose has the pool choose an instance for a call that is made later.
func (x *exchange) choose(ctx context.Context, p *pool, c *call) (u *reverseproxy.Upstream, err error) {
	c.stage = p.stage
	defer x.contain(p, c, &err)
	w := new(stream.Answer)
	return p.handler.LoadBalancing.SelectionPolicy.Select(p.handler.Upstreams, x.request(ctx, c, w), w), nil
}

// contain makes a panic, of reverse_proxy or of a module that it uses, a failure of the
// call. On a goroutine of ours it would end the process.
func (x *exchange) contain(p *pool, c *call, err *error) {
	switch v := recover(); v {
	case nil:
	case http.ErrAbortHandler: // by which reverse_proxy ends an answer that its writer did not take
		*err = errBroke
	default:
		c.fault = p.panicked(v, zap.String("request_id", x.id))
		*err = c.fault
	}
}

// errBroke is the end of an answer in its middle.
var errBroke = errors.New("the answer broke off")

var noHandler = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// request makes the request of a call. It shares nothing that can change with the
// client's request or with other calls: Caddy's variables, for one, are a plain
// map in the request's context.
func (x *exchange) request(ctx context.Context, c *call, w http.ResponseWriter) *http.Request {
	c.query = x.r.URL.RawQuery
	r := &http.Request{
		Method:     c.method,
		URL:        &url.URL{Path: c.path, RawQuery: x.r.URL.RawQuery}, // for policies and placeholders: engines get no query
		RequestURI: x.r.RequestURI,
		Proto:      x.r.Proto,
		ProtoMajor: x.r.ProtoMajor,
		ProtoMinor: x.r.ProtoMinor,
		Host:       x.r.Host,
		RemoteAddr: x.r.RemoteAddr,
		TLS:        x.r.TLS,
		Header:     maps.Clone(x.header), // reverse_proxy clones the values
	}
	r.Header["X-Request-Id"] = []string{c.id}
	if c.rank != "" {
		r.Header["X-Data-Parallel-Rank"] = []string{c.rank}
	}
	if r.Header.Del("Accept-Encoding"); c.encoding != nil {
		r.Header["Accept-Encoding"] = c.encoding
	}
	inject(ctx, r.Header)
	if c.body != nil {
		r.Header["Content-Type"] = []string{"application/json"}
		r.ContentLength = c.body.Len()
		r.Body = c.body.Reader()
	}

	parent := x.r.Context()
	server := parent.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	repl := caddy.NewReplacer()
	r = caddyhttp.PrepareRequest(r.WithContext(context.WithValue(ctx, callKey{}, c)), repl, w, server)

	// give back what the fresh context has lost, for placeholders in the pool's options
	x.parent.Lock()
	defer x.parent.Unlock()
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	for k, v := range parent.Value(caddyhttp.VarsCtxKey).(map[string]any) {
		if _, ok := vars[k]; !ok && !strings.HasPrefix(k, "reverse_proxy.") {
			vars[k] = v
		}
	}
	placeholders := parent.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.Map(func(key string) (any, bool) {
		x.parent.Lock() // a look-up can set variables of the client's request
		defer x.parent.Unlock()
		return placeholders.Get(key)
	})
	// in place: the replacer has the pointer
	*r = *r.WithContext(context.WithValue(r.Context(), caddyhttp.OriginalRequestCtxKey, parent.Value(caddyhttp.OriginalRequestCtxKey)))
	return r
}

// What of a client's headers no engine gets: what describes a body, a connection or
// a conversation that is not the one with the engine; what our transport would act on
// (net/http repeats a POST that has an Idempotency-Key as often as connections end);
// and, unless clients are trusted, what tells engines and routers (of vLLM, llm-d,
// Dynamo, SGLang) what to do.
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

// forwarded returns the client's headers that engines get. The values are shared
// with h.
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
