package dispatch

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Budget limits the further attempts of a pool that fail as well, so that a pool in which
// nothing works does not get twice the load. Requests bring tokens, and a further attempt
// takes one when it has failed. Attempts in flight take none: when an instance dies with
// hundreds of requests, all of them may go to another one. So the balance can fall below
// zero, and then it takes as many requests again until there is a further attempt.
//
// A nil Budget is no limit.
type Budget struct {
	share float64 // of a token that a request brings
	*account
}

type account struct {
	mu      sync.Mutex
	tokens  float64
	updated time.Time
}

const (
	budgetSize      = 10 // the most tokens that are saved, and what a pool begins with
	budgetPerSecond = 1  // tokens that come without requests
)

// budgets are those of the pools of the process. They live through reloads, and handlers with
// the same pool share one.
type budgets struct {
	mu sync.Mutex
	of map[budgetKey]*account
}

type budgetKey struct{ stage, upstreams string }

// Budget returns the retry budget of a pool with these upstreams, and this source of dynamic
// ones, where requests bring a percentage of a token; nil if that is 0.
func (s *Instances) Budget(stage string, upstreams reverseproxy.UpstreamPool, source string, percent int) *Budget {
	if percent == 0 {
		return nil
	}
	var names []string
	for _, u := range upstreams {
		names = append(names, u.Dial)
	}
	slices.Sort(names)
	key := budgetKey{stage, strings.Join(names, " ") + source}
	s.budgets.mu.Lock()
	defer s.budgets.mu.Unlock()
	a := s.budgets.of[key]
	if a == nil {
		s.budgets.forget(time.Now().Add(-keptFor))
		a = &account{tokens: budgetSize, updated: time.Now()}
		s.budgets.of[key] = a
	}
	return &Budget{share: float64(percent) / 100, account: a}
}

// forget drops the accounts that nobody has used since then: they are full.
func (b *budgets) forget(since time.Time) {
	if b.of == nil {
		b.of = make(map[budgetKey]*account)
	}
	for key, a := range b.of {
		a.mu.Lock()
		if a.updated.Before(since) {
			delete(b.of, key)
		}
		a.mu.Unlock()
	}
}

// add returns the tokens that there are with these.
func (b *account) add(now time.Time, tokens float64) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if idle := now.Sub(b.updated); idle > 0 {
		tokens += idle.Seconds() * budgetPerSecond
		b.updated = now
	}
	b.tokens = min(budgetSize, b.tokens+tokens)
	return b.tokens
}

// Earn notes a request of the pool.
func (b *Budget) Earn(now time.Time) {
	if b != nil {
		b.add(now, b.share)
	}
}

// Charge takes the token of a further attempt that has failed.
func (b *Budget) Charge(now time.Time) {
	if b != nil {
		b.add(now, -1)
	}
}

// Tokens is how many further attempts may fail; below 1, none is to be made.
func (b *Budget) Tokens(now time.Time) float64 { return b.add(now, 0) }

// Allows reports whether there may be a further attempt.
func (b *Budget) Allows(now time.Time) bool { return b == nil || b.Tokens(now) >= 1 }
