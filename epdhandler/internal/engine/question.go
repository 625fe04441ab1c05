package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"golang.org/x/sync/errgroup"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
)

// Question is a request that is sent to each of several instances, without load balancing.
type Question struct {
	Method, Path string
	Header       http.Header
	Body         []byte // JSON; nil: none
	Timeout      time.Duration
}

// Reply is the answer of an instance to a question.
type Reply struct {
	Status int
	Body   []byte // at most maxReply bytes of it
	Err    error  // why there is none
}

const (
	maxReply = 1 << 20 // bytes that are read of a reply
	maxAsked = 64      // instances that are asked at the same time
)

// Target is an instance to ask.
type Target struct {
	Pool     *Pool
	Upstream *reverseproxy.Upstream // nil: the instances of the pool are not known
	err      error                  // why not
}

// Targets lists the instances of pools, each once for its stage, even if several handlers have it.
func Targets(ctx context.Context, pools ...*Pool) []Target {
	var all []Target
	seen := make(map[*dispatch.Instance]bool)
	for _, p := range pools {
		upstreams, err := p.Instances(ctx)
		if err != nil {
			all = append(all, Target{Pool: p, err: err})
		}
		for _, u := range upstreams {
			if at := p.Instance(u.Dial); !seen[at] {
				seen[at] = true
				all = append(all, Target{Pool: p, Upstream: u})
			}
		}
	}
	return all
}

// AskAll asks targets at the same time. do gets the place of each.
func AskAll(all []Target, do func(i int, t Target)) {
	var group errgroup.Group
	group.SetLimit(maxAsked)
	for i, t := range all {
		group.Go(func() error {
			do(i, t)
			return nil
		})
	}
	_ = group.Wait() // no function fails
}

// Address is where the instance is, empty if that is not known.
func (t Target) Address() string {
	if t.Upstream == nil {
		return ""
	}
	return t.Upstream.String()
}

// Place names the instance by its place in the pool, empty if the instance is not known.
func (t Target) Place() string { return t.Pool.Place(t.Address()) }

// Ask sends the question to the instance.
func (t Target) Ask(ctx context.Context, q Question) (said Reply) {
	defer func() {
		if v := recover(); v != nil { // on a goroutine of ours it would end the process
			said = Reply{Err: fmt.Errorf("panic: %v", v)}
		}
	}()
	if t.err != nil {
		return Reply{Err: t.err}
	}
	ctx, cancel := context.WithTimeout(ctx, q.Timeout)
	defer cancel()
	r, err := t.request(ctx, q)
	if err != nil {
		return Reply{Err: err}
	}
	res, err := t.Pool.Handler.Transport.RoundTrip(r)
	if err != nil {
		return Reply{Err: err}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	return Reply{Status: res.StatusCode, Body: text, Err: err}
}

// These are names that a transport of reverse_proxy goes by and does not export.
const (
	dialInfoKey      = caddy.CtxKey("reverse_proxy.dial_info") // for [reverseproxy.GetDialInfo]
	proxyProtocolVar = "reverse_proxy.proxy_protocol_info"
)

// request makes the request, with what the pool's transport and the header_up of its block expect.
func (t Target) request(ctx context.Context, q Question) (*http.Request, error) {
	repl := caddy.NewReplacer()
	to, err := dialInfo(t.Upstream, repl)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{"address": to.String(), "hostport": to.Address, "host": to.Host, "port": to.Port} {
		repl.Set("http.reverse_proxy.upstream."+name, value)
	}
	ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, repl)
	ctx = context.WithValue(ctx, dialInfoKey, to)
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{
		// no client's address: the question is ours
		proxyProtocolVar: reverseproxy.ProxyProtocolInfo{AddrPort: netip.MustParseAddrPort("127.0.0.1:0")},
	})
	host := to.Address
	if network := (caddy.NetworkAddress{Network: to.Network}); network.IsUnixNetwork() || network.IsFdNetwork() {
		host = "localhost" // a path is no host
	}
	r, err := http.NewRequestWithContext(ctx, q.Method, "//"+host+q.Path, bytes.NewReader(q.Body)) // the transport sets the scheme
	if err != nil {
		return nil, err
	}
	maps.Copy(r.Header, q.Header.Clone())
	if q.Body != nil {
		r.Header["Content-Type"] = []string{"application/json"}
	}
	// without a value it is not sent, but net/http asks again if an idle connection has ended
	r.Header["Idempotency-Key"] = nil
	if rewrite := t.Pool.Handler.Rewrite; rewrite != nil {
		repl.Set("http.request.uri", q.Path)
		repl.Set("http.request.uri.path", q.Path)
		repl.Set("http.request.method", q.Method)
		rewrite.Rewrite(r, repl)
	}
	if h := t.Pool.Handler.Headers; h != nil && h.Request != nil {
		h.Request.ApplyToRequest(r)
	}
	return r, nil
}

// dialInfo says where an upstream is to be dialed.
func dialInfo(u *reverseproxy.Upstream, repl *caddy.Replacer) (to reverseproxy.DialInfo, err error) {
	dial, err := repl.ReplaceOrErr(u.Dial, true, true)
	if err != nil {
		return to, err
	}
	addr, err := caddy.ParseNetworkAddress(dial)
	if err == nil && addr.PortRangeSize() != 1 {
		err = fmt.Errorf("%s is not one address", dial)
	}
	port := strconv.Itoa(int(addr.StartPort))
	return reverseproxy.DialInfo{Upstream: u, Network: addr.Network, Address: addr.JoinHostPort(0), Host: addr.Host, Port: port}, err
}
