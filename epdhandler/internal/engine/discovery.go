package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// discovery is the source of a pool's dynamic upstreams. It keeps from reverse_proxy what
// that would not survive: for nil in a list it leaves a lock of the process locked.
type discovery struct {
	pool   *Pool
	source reverseproxy.UpstreamSource
}

// loadSource puts a discovery around the pool's source of dynamic upstreams.
func (p *Pool) loadSource(ctx caddy.Context) error {
	if p.Handler.DynamicUpstreamsRaw == nil {
		return nil
	}
	mod, err := ctx.LoadModule(p.Handler, "DynamicUpstreamsRaw")
	if err == nil {
		p.Handler.DynamicUpstreams = discovery{p, mod.(reverseproxy.UpstreamSource)}
	}
	return err
}

// GetUpstreams implements reverseproxy.UpstreamSource.
func (d discovery) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	upstreams, err := d.find(r)
	if err != nil { // reverse_proxy logs it
		err = errors.New(d.pool.WithoutAddresses(err, nil))
	}
	return upstreams, err
}

// find asks the source. The upstreams are new: a source may give the same ones to several
// requests, and reverse_proxy writes to them.
func (d discovery) find(r *http.Request) (upstreams []*reverseproxy.Upstream, err error) {
	found, err := d.source.GetUpstreams(r)
	for _, u := range found {
		if u != nil && u.Dial != "" && err == nil {
			upstreams = append(upstreams, &reverseproxy.Upstream{Dial: u.Dial, MaxRequests: u.MaxRequests})
		}
	}
	return upstreams, err
}

// ResetCache implements reverseproxy.CachingUpstreamSource.
func (d discovery) ResetCache(r *http.Request) error {
	if c, ok := d.source.(reverseproxy.CachingUpstreamSource); ok {
		return c.ResetCache(r)
	}
	return nil
}

// Where no request depends on it, a source has so long to answer, and is asked so often at the same
// time: it may never answer.
const (
	lookUpTimeout = 2 * time.Second
	maxLookUps    = 4
)

var errSourceHangs = errors.New("the source of dynamic upstreams does not answer")

// Instances returns the upstreams of a pool, for operators. Like its handler, a dynamic pool
// falls back on those that are written down.
func (p *Pool) Instances(ctx context.Context) (reverseproxy.UpstreamPool, error) {
	if !p.Dynamic {
		return p.Handler.Upstreams, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	select {
	case p.lookUps <- struct{}{}:
	case <-ctx.Done():
		return nil, errSourceHangs
	}
	var upstreams []*reverseproxy.Upstream
	done := make(chan error, 1)
	go func() {
		defer func() { <-p.lookUps }()
		defer func() {
			if v := recover(); v != nil { // it would end the process
				done <- p.panicked(v, "")
			}
		}()
		ctx := context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "/", http.NoBody)
		found, err := p.Handler.DynamicUpstreams.(discovery).find(r)
		upstreams = found
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return nil, errSourceHangs
	}
	switch {
	case err == nil && len(upstreams) == 0:
		return nil, errors.New("there are no instances at the moment")
	case err != nil && len(p.Handler.Upstreams) > 0:
		return p.Handler.Upstreams, nil
	}
	return upstreams, err
}

// panicked logs the panic of a module, or of ours, and makes an error of it.
func (p *Pool) panicked(v any, requestID string) error {
	err := fmt.Errorf("panic: %v", v)
	id := zap.Skip()
	if requestID != "" {
		id = zap.String("request_id", requestID)
	}
	p.Logger.Error("panic", zap.String("stage", p.Stage), zap.String("error", p.WithoutAddresses(err, nil)), zap.ByteString("stack", debug.Stack()), id)
	return err
}

// Interface guard
var _ reverseproxy.CachingUpstreamSource = discovery{}
