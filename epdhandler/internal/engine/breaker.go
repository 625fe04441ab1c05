package engine

import (
	"fmt"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// breaker is the circuit breaker of a pool. Everybody who looks at the health of an instance
// asks it, also with a lock held; so the module behind it is asked once for each call, on
// the call's own goroutine, and what it said is kept.
type breaker struct {
	reverseproxy.CircuitBreaker
	open atomic.Bool
}

// loadBreaker puts a breaker around the pool's circuit breaker, if it has one.
func (p *Pool) loadBreaker(ctx caddy.Context) error {
	if p.Handler.CBRaw == nil {
		return nil
	}
	mod, err := ctx.LoadModule(p.Handler, "CBRaw")
	if err != nil {
		return fmt.Errorf("loading circuit breaker: %w", err)
	}
	p.breaker = &breaker{CircuitBreaker: mod.(reverseproxy.CircuitBreaker)}
	p.Handler.CB = p.breaker
	return nil
}

// OK implements reverseproxy.CircuitBreaker.
func (b *breaker) OK() bool { return !b.open.Load() }

// ask asks the module.
func (b *breaker) ask() {
	if b != nil {
		b.open.Store(!b.CircuitBreaker.OK())
	}
}
