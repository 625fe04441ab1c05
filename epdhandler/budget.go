package epdhandler

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// budget limits the further attempts of a pool that fail as well, so that a pool in which
// nothing works does not get twice the load. Requests bring tokens, and a further attempt
// takes one when it has failed. Attempts in flight take none: when an instance dies with
// hundreds of requests, all of them may go to another one. So the balance can fall below
// zero, and then it takes as many requests again until there is a further attempt.
type budget struct {
	mu      sync.Mutex
	tokens  float64
	updated time.Time
}

const (
	budgetSize      = 10 // the most tokens that are saved, and what a pool begins with
	budgetPerSecond = 1  // tokens that come without requests
)

// add returns the tokens that there are with these.
func (b *budget) add(now time.Time, tokens float64) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if idle := now.Sub(b.updated); idle > 0 {
		tokens += idle.Seconds() * budgetPerSecond
		b.updated = now
	}
	b.tokens = min(budgetSize, b.tokens+tokens)
	return b.tokens
}

// earn notes a request of the pool.
func (p *pool) earn(now time.Time) {
	if p.budget != nil {
		p.budget.add(now, p.budgetShare)
	}
}

// charge takes the token of a further attempt that has failed.
func (p *pool) charge(now time.Time) {
	if p.budget != nil {
		p.budget.add(now, -1)
	}
}

// mayRetry reports whether there is a token for a further attempt.
func (p *pool) mayRetry(now time.Time) bool {
	if p.budget == nil || p.budget.add(now, 0) >= 1 {
		return true
	}
	budgetSpent.WithLabelValues(p.stage).Inc()
	return false
}

// budgets are those of the pools of this process, by the instances that the pools have. They
// go on through a reload, and handlers with the same pool share one.
var budgets = caddy.NewUsagePool()

type budgetKey struct{ stage, upstreams string }

// budgetKeyOf must be called before the source of dynamic upstreams is loaded: the handler
// forgets its configuration then.
func budgetKeyOf(stage string, handler *reverseproxy.Handler) budgetKey {
	var names []string
	for _, u := range handler.Upstreams {
		names = append(names, u.String())
	}
	slices.Sort(names)
	return budgetKey{stage, strings.Join(names, " ") + string(handler.DynamicUpstreamsRaw)}
}

// useBudget gives the pool its budget, if percent is not 0.
func (p *pool) useBudget(percent int) {
	if percent == 0 {
		return
	}
	p.budgetShare = float64(percent) / 100
	value, _, _ := budgets.LoadOrNew(p.budgetKey, func() (caddy.Destructor, error) {
		return &budget{tokens: budgetSize, updated: time.Now()}, nil
	})
	p.budget = value.(*budget)
}

// leaveBudget lets go of it.
func (p *pool) leaveBudget() {
	if p.budget != nil {
		_, _ = budgets.Delete(p.budgetKey)
	}
}

// Destruct implements caddy.Destructor.
func (*budget) Destruct() error { return nil }
