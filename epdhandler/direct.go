package epdhandler

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"golang.org/x/sync/errgroup"
)

// question is a request to instances that the load balancing does not choose: to each
// of them, for it is about the instance.
type question struct {
	method, path string
	header       http.Header
	body         []byte // JSON; nil: none
	timeout      time.Duration
}

// reply is what an instance says to a question.
type reply struct {
	status int
	body   []byte // not more of it than maxReply
	err    error  // why there is none
}

const (
	// maxReply bounds what is read of a reply.
	maxReply = 1 << 20

	// maxAsked is how many instances are asked at the same time.
	maxAsked = 64
)

// target is an instance to ask.
type target struct {
	pool     *pool
	upstream *reverseproxy.Upstream // nil: the pool could not tell its instances
	err      error                  // why not
}

// targets lists the instances of pools, and each just once for its stage: handlers may
// share them.
func targets(ctx context.Context, pools ...*pool) []target {
	var all []target
	seen := make(map[instance]bool)
	for _, p := range pools {
		upstreams, err := p.instances(ctx)
		if err != nil {
			all = append(all, target{pool: p, err: err})
		}
		for _, u := range upstreams {
			if at := (instance{p.stage, u.String()}); !seen[at] {
				seen[at] = true
				all = append(all, target{pool: p, upstream: u})
			}
		}
	}
	return all
}

// askAll asks targets at the same time. do gets the place of each.
func askAll(all []target, do func(i int, t target)) {
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

// address is where the instance is, empty if that is not known.
func (t target) address() string {
	if t.upstream == nil {
		return ""
	}
	return t.upstream.String()
}

// ask sends the question to the instance.
func (t target) ask(ctx context.Context, q question) (said reply) {
	defer func() {
		if v := recover(); v != nil { // on a goroutine of ours it would end the process
			said = reply{err: fmt.Errorf("panic: %v", v)}
		}
	}()
	if t.err != nil {
		return reply{err: t.err}
	}
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	r, err := t.request(ctx, q)
	if err != nil {
		return reply{err: err}
	}
	res, err := t.pool.handler.Transport.RoundTrip(r)
	if err != nil {
		return reply{err: err}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	return reply{status: res.StatusCode, body: text, err: err}
}

// These are names that a transport of reverse_proxy goes by and does not export.
const (
	dialInfoKey      = caddy.CtxKey("reverse_proxy.dial_info") // for [reverseproxy.GetDialInfo]
	proxyProtocolVar = "reverse_proxy.proxy_protocol_info"
)

// request makes the request for the question. It has what the pool's transport and the
// header_up of its block expect of one.
func (t target) request(ctx context.Context, q question) (*http.Request, error) {
	repl := caddy.NewReplacer()
	to, err := dialInfo(t.upstream, repl)
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
	r := &http.Request{Method: q.method, URL: &url.URL{Host: host, Path: q.path}, Host: host, Header: make(http.Header)}
	for name, values := range q.header {
		r.Header[name] = slices.Clone(values)
	}
	if q.body != nil {
		r.Header["Content-Type"] = []string{"application/json"}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(q.body)), int64(len(q.body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(q.body)), nil }
	}
	// without a value it is not sent, but net/http asks again if an idle connection has ended
	r.Header["Idempotency-Key"] = nil
	r = r.WithContext(ctx)
	if rewrite := t.pool.handler.Rewrite; rewrite != nil {
		repl.Set("http.request.uri", q.path)
		repl.Set("http.request.uri.path", q.path)
		repl.Set("http.request.method", q.method)
		rewrite.Rewrite(r, repl)
	}
	if h := t.pool.handler.Headers; h != nil && h.Request != nil {
		h.Request.ApplyToRequest(r)
	}
	return r, nil
}

// dialInfo says where an upstream is to be dialed.
func dialInfo(u *reverseproxy.Upstream, repl *caddy.Replacer) (reverseproxy.DialInfo, error) {
	dial, err := repl.ReplaceOrErr(u.Dial, true, true)
	if err != nil {
		return reverseproxy.DialInfo{}, err
	}
	addr, err := caddy.ParseNetworkAddress(dial)
	if err != nil {
		return reverseproxy.DialInfo{}, err
	}
	if addr.PortRangeSize() != 1 {
		return reverseproxy.DialInfo{}, fmt.Errorf("%s is not one address", dial)
	}
	return reverseproxy.DialInfo{
		Upstream: u,
		Network:  addr.Network,
		Address:  addr.JoinHostPort(0),
		Host:     addr.Host,
		Port:     strconv.Itoa(int(addr.StartPort)),
	}, nil
}
