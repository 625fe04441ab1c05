package dispatch

import (
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Budget limits the further attempts of a pool that fail as well, so that a pool in which
// nothing works does not get twice the load. Requests bring tokens, and a further attempt takes one
// only when it has failed: if an instance dies with hundreds of requests, all of them may go to
// another one. So the balance can fall below zero.
//
// The zero value is no limit.
type Budget struct {
	share float64 // of a token that a request brings
	*account
}

// account is shared by all handlers with the same pool, and lives through reloads.
type account struct {
	mu      sync.Mutex
	tokens  float64
	updated time.Time
}

const (
	budgetSize      = 10 // the most tokens that are saved, and what a pool begins with
	budgetPerSecond = 1  // tokens that come without requests
)

// Budget returns the retry budget of a pool with these upstreams, and this source of dynamic
// ones, where requests bring a percentage of a token; without a limit if that is 0.
func (s *Instances) Budget(stage string, upstreams reverseproxy.UpstreamPool, source string, percent int) Budget {
	if percent == 0 {
		return Budget{}
	}
	names := []string{stage}
	for _, u := range upstreams {
		names = append(names, u.Dial)
	}
	slices.Sort(names[1:])
	key := strings.Join(append(names, source), " ")
	s.budgeting.Lock()
	defer s.budgeting.Unlock()
	a := s.budgets[key]
	if a == nil {
		for old, a := range s.budgets {
			a.mu.Lock()
			if time.Since(a.updated) > keptFor { // it is full again
				delete(s.budgets, old)
			}
			a.mu.Unlock()
		}
		a = &account{tokens: budgetSize, updated: time.Now()}
		s.budgets[key] = a
	}
	return Budget{share: float64(percent) / 100, account: a}
}

// add returns the tokens that there are with these.
func (a *account) add(now time.Time, tokens float64) float64 {
	if a == nil {
		return math.Inf(1)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if idle := now.Sub(a.updated); idle > 0 {
		tokens += idle.Seconds() * budgetPerSecond
		a.updated = now
	}
	a.tokens = min(budgetSize, a.tokens+tokens)
	return a.tokens
}

// Earn notes a request of the pool.
func (b Budget) Earn(now time.Time) { b.add(now, b.share) }

// Charge takes the token of a further attempt that has failed.
func (b Budget) Charge(now time.Time) { b.add(now, -1) }

// Tokens is how many further attempts may fail; below 1, none is to be made.
func (b Budget) Tokens(now time.Time) float64 { return b.add(now, 0) }
