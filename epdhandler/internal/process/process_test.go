package process

import (
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
)

// pool returns a pool with one upstream, which has a limit.
func pool(p *Process, stage, address string, limit int) *engine.Pool {
	d := p.Instances.New(dispatch.Settings{Stage: stage, Limit: limit}, reverseproxy.UpstreamPool{{Dial: address, Host: new(reverseproxy.Host)}})
	return &engine.Pool{Dispatcher: d}
}

func TestSites(t *testing.T) {
	t.Parallel()
	p := New()
	assert.Empty(t, p.Sites())
	first := &Site{Encode: pool(p, "encode", "e:1", 0), Decode: pool(p, "decode", "d:1", 1)}
	second := &Site{Encode: pool(p, "encode", "e:1", 0), Prefill: pool(p, "prefill", "p:1", 0), Decode: pool(p, "decode", "d:1", 2)}
	assert.Equal(t, []*engine.Pool{first.Encode, first.Decode}, first.Pools())
	assert.Equal(t, []*engine.Pool{second.Encode, second.Prefill, second.Decode}, second.Pools())

	p.Enlist(first)
	p.Enlist(second)
	sites := p.Sites()
	assert.Equal(t, []*Site{first, second}, sites)
	p.Delist(first)
	assert.Equal(t, []*Site{second}, p.Sites())
	assert.Equal(t, []*Site{first, second}, sites, "a list changed after it was returned")
	p.Delist(first)
	p.Delist(second)
	assert.Empty(t, p.Sites())
}

// A call that a replaced configuration has in its queue goes by the limit of the one that serves.
func TestLimitInForce(t *testing.T) {
	t.Parallel()
	p := New()
	old := &Site{Encode: pool(p, "encode", "e:1", 0), Decode: pool(p, "decode", "d:1", 1)}
	p.Enlist(old)
	choose := func(d *dispatch.Dispatcher) error {
		_, slot, err := d.Choose(t.Context(), d.Upstreams(), &dispatch.Ask{Turn: new(dispatch.Turn), Policy: func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream { return fit[0] }})
		t.Cleanup(slot.Release)
		return err
	}
	assert.NoError(t, choose(old.Decode.Dispatcher))
	assert.ErrorAs(t, choose(old.Decode.Dispatcher), new(dispatch.BusyError))

	next := &Site{Encode: pool(p, "encode", "e:1", 0), Decode: pool(p, "decode", "d:1", 2)}
	p.Enlist(next)
	p.Delist(old)
	old.Decode.Retire()
	assert.NoError(t, choose(old.Decode.Dispatcher))
	assert.ErrorAs(t, choose(next.Decode.Dispatcher), new(dispatch.BusyError))
}

// The state of the process lives until the last handler and the last of its requests are done.
func TestUsers(t *testing.T) {
	var first, second Users
	p := first.Use()
	assert.Same(t, p, second.Use())
	second.Done()
	assert.Same(t, p, Current())
	first.Add() // a request
	first.Done()
	assert.Same(t, p, Current())
	first.Add()
	first.Done() // the handler
	assert.Same(t, p, Current(), "a request goes on")
	first.Done()
	assert.NotSame(t, p, Current())
	first.Add() // too late
	first.Done()
	assert.Empty(t, Current().Sites())
}
